"""Polygons by pages, by boxes and one by one."""

from __future__ import annotations

import json

import geopandas as gpd
import pyproj
import pytest
import shapely

from terralapse.errors import UnreadableFileError
from terralapse.serve.options import Limits
from terralapse.serve.vectors import Polygons


@pytest.fixture(scope="session")
def items(ids) -> str:
    return f"/api/results/{ids['Blobs']}/features/collections/change/items"


@pytest.fixture(scope="session")
def truth(shelf) -> gpd.GeoDataFrame:
    return gpd.read_file(shelf / "Blobs/change.gpkg", layer="change")


def test_all_polygons_with_their_shapes_and_properties(client, items, truth):
    found = client.get(items).json()
    assert client.get(items).headers["content-type"] == "application/geo+json"
    assert found["numberMatched"] == found["numberReturned"] == len(truth) > 2
    placed = truth.to_crs(4326)
    for feature, (_, row) in zip(found["features"], placed.iterrows(), strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shapely.hausdorff_distance(shape, row.geometry) < 1e-6
        assert feature["id"] == feature["properties"]["id"] == row["id"]
        assert feature["properties"]["area_m2"] == row["area_m2"]
        assert shapely.box(*feature["bbox"]).buffer(1e-6).covers(shape)
        assert all(p.exterior.is_ccw for p in shape.geoms)


def test_pages_follow_each_other_and_end(client, items, truth):
    seen, url = [], f"{items}?limit=2"
    while url:
        page = client.get(url).json()
        assert page["numberReturned"] <= 2
        seen += [f["id"] for f in page["features"]]
        url = next((k["href"] for k in page["links"] if k["rel"] == "next"), None)
    assert seen == truth["id"].tolist()


def test_a_box_finds_what_it_touches(client, items, truth):
    west, south, east, north = truth.to_crs(4326).iloc[1:2].total_bounds
    box = f"{west},{south},{east},{north}"
    found = client.get(items, params={"bbox": box}).json()
    assert [f["id"] for f in found["features"]] == [2]
    assert found["numberMatched"] == 1
    assert client.get(items, params={"bbox": "10,10,11,11"}).json()["features"] == []
    # Over the antimeridian, all around the world to the other side of the polygons.
    around = client.get(items, params={"bbox": f"{west - 1e-6},-90,{west - 1},90"}).json()
    assert around["numberMatched"] >= 1


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "1,5,2,4", "nan,0,1,1", "0,0,inf,1", "0,-91,1,1", ""])
def test_a_box_that_is_none_is_said_to_be_none(client, items, box):
    answer = client.get(items, params={"bbox": box})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("bbox:")


@pytest.mark.parametrize("query", ["limit=0", "limit=100000", "offset=-1", "limit=x"])
def test_pages_have_limits(client, items, query):
    answer = client.get(f"{items}?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(query.partition("=")[0])


def test_a_page_ends_before_it_has_too_many_vertices(serve, items, truth):
    client = serve(limits=Limits(rate=1e6, burst=10**6, vertices=1))
    page = client.get(items).json()
    assert (page["numberReturned"], page["numberMatched"]) == (1, len(truth))
    assert any(k["rel"] == "next" for k in page["links"])


def test_one_polygon(client, items):
    assert client.get(f"{items}/2").json()["id"] == 2
    for number in ("0", "999", "99999999999999999999"):
        assert client.get(f"{items}/{number}").status_code == 404


def test_the_whole_file_streams_as_geojson(client, ids, truth):
    whole = json.loads(client.get(f"/api/results/{ids['Blobs']}/polygons.geojson").content)
    assert [f["id"] for f in whole["features"]] == truth["id"].tolist()


def test_an_ogc_client_finds_its_way(client, ids):
    def follow(page: dict, rel: str) -> dict:
        return client.get(next(k["href"] for k in page["links"] if k["rel"] == rel)).json()

    landing = client.get(f"/api/results/{ids['Blobs']}/features").json()
    assert any(c.endswith("/core") for c in follow(landing, "conformance")["conformsTo"])
    collection = follow(landing, "data")["collections"][0]
    assert follow(landing, "service-desc")["openapi"].startswith("3.")
    features = follow(collection, "items")["features"]
    west, south, east, north = collection["extent"]["spatial"]["bbox"][0]
    extent = shapely.box(west, south, east, north).buffer(1e-6)
    assert all(extent.covers(shapely.geometry.shape(f["geometry"])) for f in features)


def test_polygons_without_a_place_lie_on_their_pixels(client, ids):
    base = f"/api/results/{ids['pixels']}/features/collections/change/items"
    feature = client.get(base).json()["features"][0]
    turn = pyproj.Transformer.from_crs(4326, 3857, always_xy=True)
    west, south, east, north = feature["bbox"]
    (x0, y0), (x1, y1) = turn.transform(west, south), turn.transform(east, north)
    assert (x0, y0, x1, y1) == pytest.approx((200, -90, 240, -30), abs=0.1)
    assert client.get(base, params={"bbox": f"{west},{south},{east},{north}"}).json()["numberMatched"] == 1


def test_series_have_no_polygons(client, ids):
    assert client.get(f"/api/results/{ids['clearing']}/features").status_code == 404


@pytest.mark.filterwarnings("ignore:.*bad application_id")
def test_a_file_that_only_has_the_name_is_refused(tmp_path):
    from affine import Affine

    path = tmp_path / "change.gpkg"
    path.write_text('<OGRVRTDataSource><OGRVRTLayer name="change"/></OGRVRTDataSource>')
    with pytest.raises(UnreadableFileError, match="no GeoPackage"):
        Polygons(path, Affine.identity())
    path.write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(UnreadableFileError, match="no layer of changes"):
        Polygons(path, Affine.identity())
