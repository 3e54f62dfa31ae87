"""The composites of a series as layers: which there are, how they are drawn, and what damage leads to."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from rasterio.transform import from_origin

from fixtures_eo import write_tif
from terralapse.workflows.series import series

DAYS = ("20190105", "20190120", "20190212", "20190510", "20191103", "20191120")
PERIODS = ["2019-q1", "2019-q2", "2019-q4"]


def stack(folder: Path, days: tuple[str, ...], steps: tuple[float, ...], size: int = 40) -> Path:
    """Images of red, green and blue, with `steps` of each date on the red; nothing is known of the upper rows
    of the fourth."""
    folder.mkdir(exist_ok=True)
    ramp = np.linspace(0.05, 0.25, size)[None].repeat(size, 0)
    for i, (day, step) in enumerate(zip(days, steps, strict=True)):
        data = np.stack([ramp + step, ramp, np.full_like(ramp, 0.1) + ramp / 4]).astype(np.float32)
        if i == 3:
            data[:, :10] = np.nan
        place = from_origin(500000, 5000000, 10, 10)
        names = ("red", "green", "blue")
        write_tif(folder / f"s_{day}.tif", data, descriptions=names, nodata=np.nan, transform=place)
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Composites by quarter, and no breaks: one value in the first two quarters, a redder one in the last."""
    folder = tmp_path_factory.mktemp("composites")
    images = stack(folder / "images", DAYS, (0, 0, 0, 0, 0.3, 0.3))
    series(images, folder / "field", index="red", period="quarterly", breaks=False, threads=1)
    return folder / "field"


@pytest.fixture(scope="module")
def served(serve: Any, kept: Path) -> TestClient:
    return serve(kept)


@pytest.fixture(scope="module")
def about(served: TestClient) -> dict[str, Any]:
    return served.get(served.get("/api/results").json()["results"][0]["href"]).json()


def test_composites_are_layers_for_other_programs_too(served, about):
    answer = served.get(about["links"]["wmts"])
    names = re.findall(r"<ows:Identifier>(composite-[^<]+)</ows:Identifier>", answer.text)
    assert names == [f"composite-{p}" for p in reversed(PERIODS)]
    template = re.search(r'template="[^"]*(/tiles/[^"]*/composite-2019-q4/[^"]*)"', answer.text)[1]
    layer = about["composites"]["periods"][-1]
    west, south, east, north = layer["bounds"]
    z = layer["native_zoom"]
    x = int(((west + east) / 2 + 180) / 360 * 2**z)
    y = int((1 - np.arcsinh(np.tan(np.radians((south + north) / 2))) / np.pi) / 2 * 2**z)
    place = template.replace("{TileMatrix}", str(z)).replace("{TileCol}", str(x)).replace("{TileRow}", str(y))
    assert served.get(place).status_code == 200


def drawn(client: TestClient, layer: dict[str, Any]) -> np.ndarray:
    """uint8 [h, w, 4]: the tile that holds the middle of a layer."""
    west, south, east, north = layer["bounds"]
    z = layer["native_zoom"]
    lat = np.radians((south + north) / 2)
    x = int(((west + east) / 2 + 180) / 360 * 2**z)
    y = int((1 - np.log(np.tan(lat) + 1 / np.cos(lat)) / np.pi) / 2 * 2**z)
    answer = client.get(layer["tiles"].replace("{z}/{x}/{y}@2x.webp", f"{z}/{x}/{y}@2x.png"))
    assert answer.status_code == 200, answer.text
    assert "immutable" in answer.headers["cache-control"]
    return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))


def test_a_series_says_which_composites_it_has(about):
    composites = about["composites"]
    assert [p["period"] for p in composites["periods"]] == PERIODS
    assert composites["periods"][0]["dates"] == ["2019-01-05", "2019-01-20", "2019-02-12"]
    assert composites["shown"] == "natural colour"
    assert about["bounds"] == composites["periods"][0]["bounds"]
    assert not {p["name"] for p in composites["periods"]} & {x["name"] for x in about["layers"]}


def test_they_are_drawn_alike_so_that_a_difference_is_one_of_the_data(served, about):
    first, second, third = (drawn(served, p) for p in about["composites"]["periods"])
    known = (first[..., 3] == 255) & (second[..., 3] == 255) & (third[..., 3] == 255)
    assert known.sum() > 1000
    assert np.abs(first[known].astype(int) - second[known]).max() <= 2
    red = third[known][:, 0].astype(int) - first[known][:, 0]
    assert np.median(red) > 60
    assert np.abs(third[known][:, 1].astype(int) - first[known][:, 1]).max() <= 2
    lost = (first[..., 3] == 255) & (second[..., 3] == 0)  # where the one date of that quarter knows nothing
    assert lost.sum() > 100
    assert np.nonzero(lost)[0].max() <= np.nonzero(known)[0].min() + 2


def test_other_names_are_no_layers(served, about):
    for name in ("composite-2019-q3", "composite-", "composite-../../run", "composite"):
        assert served.get(f"/tiles/{about['id']}/{name}/10/500/300.png").status_code == 404
    found = served.get(about["composites"]["periods"][1]["tilejson"]).json()
    assert found["name"] == "field: Composite of 2019-q2"


def test_a_series_and_a_change_without_composites_have_none(client, ids):
    for name in ("clearing", "Blobs"):
        found = client.get(f"/api/results/{ids[name]}").json()
        assert found["composites"] == {"shown": None, "periods": []}


def test_a_damaged_composite_is_said(serve, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "field")
    (tmp_path / "field/composites/2019-q2.tif").write_bytes(b"II*\0")
    client = serve(tmp_path)
    answer = client.get(client.get("/api/results").json()["results"][0]["href"])
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("2019-q2.tif: is no composite that can be read.")
    assert str(tmp_path) not in answer.text
