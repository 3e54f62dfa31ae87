"""Tiles show what the rasters hold, where it lies."""

from __future__ import annotations

import io
import math
import shutil

import numpy as np
import pyproj
import pytest
import rasterio
from affine import Affine
from PIL import Image

from terralapse.labels import BINARY_CHANGE, VALIDITY, Reason
from terralapse.products.imagery import probability_layer
from terralapse.serve.layers import layers_of
from terralapse.serve.shelf import Shelf
from terralapse.serve.tiles import Tiler, Wanted


def picture(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))


def at(lon: float, lat: float, zoom: int) -> tuple[int, int, int, int]:
    """Tile x, y and pixel column, row of a place."""
    x = (lon + 180) / 360 * 2**zoom
    y = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom
    return int(x), int(y), int(x % 1 * 256), int(y % 1 * 256)


def place(col: float, row: float) -> tuple[float, float]:
    """Longitude and latitude of a pixel of the grid of the tests."""
    turn = pyproj.Transformer.from_crs(32615, 4326, always_xy=True)
    return turn.transform(400000 + 2 * col, 4100000 - 2 * row)


def pixel(client, result: str, layer: str, col: float, row: float, zoom: int = 17, **query) -> np.ndarray:
    x, y, c, r = at(*place(col, row), zoom)
    return picture(client.get(f"/tiles/{result}/{layer}/{zoom}/{x}/{y}.png", params=query))[r, c]


def test_codes_are_the_stored_probabilities(client, ids):
    changed = pixel(client, ids["Blobs"], "probability", 220.5, 60.5, style="codes")
    quiet = pixel(client, ids["Blobs"], "probability", 100.5, 120.5, style="codes")
    masked = pixel(client, ids["Blobs"], "probability", 10.5, 120.5, style="codes")
    assert changed.tolist() == [0, 180, 0, 255]
    assert quiet.tolist() == [0, 20, 0, 255]
    assert masked.tolist() == [0, 0, 0, 0]


def test_drawn_tiles_have_the_colours_of_the_legend(client, ids):
    table = probability_layer(np.array([[0.9]]))[0, 0]
    assert pixel(client, ids["Blobs"], "probability", 220.5, 60.5).tolist() == table.tolist()
    colour = BINARY_CHANGE.by_value(1).colour
    assert pixel(client, ids["Blobs"], "change", 220.5, 60.5).tolist() == [
        *bytes.fromhex(colour[1:]),
        255,
    ]
    assert pixel(client, ids["Blobs"], "change", 100.5, 120.5)[3] == 0
    colour = VALIDITY.by_value(Reason.NODATA_BEFORE).colour
    assert pixel(client, ids["Blobs"], "validity", 10.5, 120.5).tolist() == [*bytes.fromhex(colour[1:]), 255]


def test_pictures_are_those_of_the_previews(client, ids, shelf):
    with rasterio.open(shelf / "Blobs/after.tif") as file:
        stored = file.read()[:, 60, 220]
    shown = pixel(client, ids["Blobs"], "after", 220.5, 60.5)
    assert np.abs(shown[:3].astype(int) - stored).max() <= 6
    assert shown[3] == 255


def test_double_tiles_show_the_same_place_finer(client, ids):
    x, y, c, r = at(*place(220.5, 60.5), 17)
    answer = client.get(f"/tiles/{ids['Blobs']}/probability/17/{x}/{y}@2x.png?style=codes")
    shown = picture(answer)
    assert shown.shape == (512, 512, 4)
    assert shown[2 * r, 2 * c].tolist() == [0, 180, 0, 255]


def test_break_dates_come_back_from_their_codes(client, ids, shelf):
    found = client.get(f"/api/results/{ids['clearing']}").json()
    layer = next(x for x in found["layers"] if x["name"] == "break_date")
    with rasterio.open(shelf / "clearing/break_days.tif") as file:
        days = int(file.read(1)[20, 20])
        turn = pyproj.Transformer.from_crs(file.crs, 4326, always_xy=True)
        lon, lat = turn.transform(*file.xy(20, 20))
    zoom = layer["native_zoom"]
    x, y, c, r = at(lon, lat, zoom)
    red, green, _, alpha = picture(
        client.get(f"/tiles/{ids['clearing']}/break_date/{zoom}/{x}/{y}.png?style=codes")
    )[r, c].astype(int)
    assert alpha == 255
    assert layer["scale"]["zero"] + 256 * red + green == days


def test_an_image_without_a_place_has_tiles_of_its_pixels(client, ids):
    found = client.get(f"/api/results/{ids['pixels']}").json()
    assert (found["crs"], found["area_unit"]) == (None, "px")
    # One metre of Web Mercator a pixel, from the equator down.
    lon, lat = pyproj.Transformer.from_crs(3857, 4326, always_xy=True).transform(220.5, -60.5)
    x, y, c, r = at(lon, lat, 17)
    for layer, expected in (("probability", [0, 180, 0, 255]), ("after", None)):
        query = {} if expected is None else {"style": "codes"}
        shown = picture(client.get(f"/tiles/{ids['pixels']}/{layer}/17/{x}/{y}.png", params=query))
        assert shown[r, c].tolist() == expected if expected else shown[r, c, 3] == 255


def test_a_tile_that_is_held_is_not_sent_again(client, ids):
    found = client.get(f"/api/results/{ids['Blobs']}").json()
    layer = next(x for x in found["layers"] if x["name"] == "change")
    x, y, *_ = at(*place(220.5, 60.5), 17)
    first = client.get(layer["tiles"].format(z=17, x=x, y=y))
    assert first.headers["cache-control"] == "private, max-age=31536000, immutable"
    bare = f"/tiles/{ids['Blobs']}/change/17/{x}/{y}@2x.png"
    again = client.get(bare, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "private, no-cache"
    other = client.get(bare.replace("@2x", ""), headers={"if-none-match": first.headers["etag"]})
    assert other.status_code == 200


def test_a_raster_that_is_replaced_gives_new_tiles(serve, shelf, tmp_path):
    shutil.copytree(shelf / "Blobs", tmp_path / "run")
    client = serve(tmp_path)
    result = client.get("/api/results").json()["results"][0]["id"]
    before = pixel(client, result, "probability", 220.5, 60.5, style="codes")
    path = tmp_path / "run/prob.tif"
    with rasterio.open(path) as file:
        data, profile = file.read(), file.profile
    new = path.with_name("new.tif")
    with rasterio.open(new, "w", **profile) as file:
        file.write(np.where(data == 180, 160, data).astype(np.uint8))
    new.replace(path)
    after = pixel(client, result, "probability", 220.5, 60.5, style="codes")
    assert (before[1], after[1]) == (180, 160)


@pytest.mark.parametrize(
    "path",
    [
        "change/17/0/0.png",  # elsewhere
        "change/30/0/0.png",  # a zoom that no map has
        "change/24/1/1.png",
        "change/0/0/0.png",  # the whole world for 600 m
        "change/17/-1/0.png",
        "change/17/33554432/0",
        "change/17/1/1.tif",
        "change/17/1/1@9x.png",
        "nothing/17/1/1.png",
        "change/17/1/1.png?style=codes",  # classes have no codes
    ],
)
def test_what_is_no_tile_is_refused(client, ids, path):
    answer = client.get(f"/tiles/{ids['Blobs']}/{path}")
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"detail"}


def test_tilejson_leads_to_tiles(client, ids):
    said = client.get(f"/tiles/{ids['Blobs']}/after/tilejson.json").json()
    lon, lat, zoom = said["center"]
    x, y, *_ = at(lon, lat, zoom)
    answer = client.get(said["tiles"][0].format(z=zoom, x=x, y=y))
    assert answer.headers["content-type"] == "image/webp"
    assert picture(answer)[128, 128, 3] == 255


def test_the_cache_keeps_to_its_size(shelf):
    shelf_ = Shelf((shelf,))
    result = next(r for r in shelf_.results()[0].values() if r.folder.name == "Blobs")
    layer = layers_of(result)["probability"]
    tiler = Tiler(cache=2000, underzoom=4, overzoom=4)
    grid = Affine(*result.run["grid"]["transform"])
    sizes = []
    for zoom in (14, 15, 16, 17, 18):
        x, y, *_ = at(*place(220.5, 60.5), zoom)
        sizes.append(len(tiler.tile(layer, grid, Wanted(zoom, x, y))))
        assert tiler.kept_bytes <= 2000
    assert sum(sizes) > 2000
    assert tiler.kept_bytes > 0
