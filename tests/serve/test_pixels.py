"""Images without a place: what the server says of them is in pixels, and nothing is in degrees or metres."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
from affine import Affine
from fastapi.testclient import TestClient
from odc.geo.geobox import GeoBox
from PIL import Image

from product_runs import ALIGNMENT, build_run
from terralapse.grid._georef import LOCAL_GRID
from terralapse.products.write import write_products

METRES = re.compile(r"\d (?:m|km|ha|m²|km²)\b|°|m²")
SQUARE = 20037508.342789244 / 180  # metres of Web Mercator in a degree at the equator


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A change of images without any georeference, which are put on a grid of one metre a pixel."""
    folder = tmp_path_factory.mktemp("bare") / "scan"
    box = GeoBox((240, 320), Affine.scale(1, -1), LOCAL_GRID)
    alignment = copy.deepcopy(ALIGNMENT)
    del alignment["coregistration"]["residual_median_m"]
    settings = {"pixel_grid": True, "geojson": True}
    write_products(build_run(folder, box=box, settings=settings, alignment=alignment))
    return folder


@pytest.fixture(scope="module")
def scan(bare: Path, serve: Any) -> TestClient:
    return serve(bare)


@pytest.fixture(scope="module")
def base(scan: TestClient) -> str:
    return scan.get("/api/results").json()["results"][0]["href"]


def test_a_run_without_a_place_writes_pixels(bare):
    facts = json.loads((bare / "facts.json").read_text())
    assert facts["area_unit"] == "px"
    by_id = {f["id"]: f for f in facts["facts"]}
    assert by_id["object.1.area"]["value"] == 2400
    assert by_id["grid.crs"]["display"] == "none (pixels)"
    assert "grid.corners" not in by_id
    assert [f["sentence"] for f in facts["facts"] if METRES.search(f["sentence"])] == []
    frame = pyogrio.read_dataframe(bare / "change.gpkg", layer="change")
    assert {"area_px", "perimeter_px"} <= set(frame)
    assert frame["lon"].isna().all()
    assert "changed_px" in (bare / "stats.csv").read_text().splitlines()[0]
    # A place in the Gulf of Guinea would be made up.
    assert not (bare / "item.json").exists()
    assert not (bare / "change.geojson").exists()
    report = (bare / "report.html").read_text().split("<script")[0]
    assert METRES.search(re.sub(r"<[^>]*>", " ", report)) is None


def test_every_answer_about_it_is_in_pixels(scan, base):
    about = scan.get(base).json()
    assert about["crs"] is None
    assert about["area_unit"] == "px"
    assert [s["text"] for s in about["sentences"] if METRES.search(s["text"])] == []
    assert scan.get(f"{base}/histogram").json()["area_unit"] == "px"
    assert "changed_px" in scan.get(f"{base}/stats").json()["rows"][0]
    for fact in scan.get(f"{base}/facts").json()["facts"]:
        assert METRES.search(fact["sentence"]) is None, fact
        assert fact["unit"] not in ("m", "m2"), fact
    properties = scan.get(f"{base}/features/collections/change/items/1").json()["properties"]
    assert properties["area_px"] == 2400
    assert properties["lon"] is None


def test_its_polygons_and_tiles_lie_a_pixel_a_metre(scan, base):
    feature = scan.get(f"{base}/features/collections/change/items/1").json()
    west, south, east, north = np.array(feature["bbox"]) * SQUARE
    assert (west, east) == pytest.approx((200, 240), abs=1.5)
    assert (-north, -south) == pytest.approx((30, 90), abs=1.5)
    about = scan.get(base).json()
    assert np.array(about["bounds"]) * SQUARE == pytest.approx([0, -240, 320, 0], abs=0.01)
    change = next(layer for layer in about["layers"] if layer["name"] == "change")
    zoom = 17  # 0.6 metres a pixel of the tile
    tile = scan.get(f"/tiles/{about['id']}/change/{zoom}/{2 ** (zoom - 1)}/{2 ** (zoom - 1)}.png")
    side = 40075016.68557849 / 2**zoom / 256
    with Image.open(io.BytesIO(tile.content)) as picture:
        rows, cols = np.nonzero(np.asarray(picture.convert("RGBA"))[..., 3])
    big = cols * side > 190
    assert change["native_zoom"] >= 17
    assert (rows[big].min() * side, (rows[big & (cols * side < 245)].max() + 1) * side) == pytest.approx(
        (30, 90), abs=2
    )


def test_questions_about_it_are_answered_in_pixels(scan, base):
    answer = scan.post(f"{base}/talk", json={"question": "What is the largest change?"})
    assert "2,400 px" in answer.text
    assert METRES.search(answer.text) is None
