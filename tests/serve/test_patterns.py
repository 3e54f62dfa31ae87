"""Maps of classes as layers: their schemes, their patterns, and that these tell classes apart without
colours."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from PIL import Image

from product_runs import BOX
from terralapse.grid.cog import write_cog
from terralapse.labels import DAMAGE, SECOND_MAMBA
from terralapse.serve.patterns import PATTERNS, PERIOD, hatch, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shelf: Path) -> Path:
    """A run with maps of classes: trees on the left, buildings on the right, nothing on top."""
    made = tmp_path_factory.mktemp("classes") / "run"
    shutil.copytree(shelf / "Blobs", made)
    classes = np.full((240, 320), 3, np.uint8)
    classes[:, 160:], classes[:40] = 5, 0
    box: GeoBox = BOX
    write_cog(classes, made / "classes_after.tif", geobox=box, kind="class", nodata=255, scheme=SECOND_MAMBA)
    write_cog(
        np.full((240, 320), 4, np.uint8),
        made / "damage.tif",
        geobox=box,
        kind="class",
        nodata=255,
        scheme=DAMAGE,
    )
    return made


def test_patterns_differ_and_repeat_at_the_edges_of_tiles():
    assert 256 % PERIOD == 0
    seen = [tuple(rows_of(n)) for n in range(len(PATTERNS))]
    assert len(set(seen)) == len(PATTERNS)
    shares = [np.mean([(r >> x) & 1 for r in rows for x in range(PERIOD)]) for rows in seen]
    assert shares[0] == 0
    assert all(0.08 < s < 0.5 for s in shares[1:])


def test_of_one_colour_classes_are_still_told_apart():
    classes = np.repeat(np.arange(4, dtype=np.uint8), 32)[None].repeat(32, 0)
    drawn = np.full((32, 128, 4), (120, 120, 120, 255), np.uint8)
    drawn[:, 96:] = 0
    patterns = np.zeros(256, np.uint8)
    patterns[:4] = [0, 1, 5, 2]
    made = hatch(drawn, classes, patterns)
    parts = [made[:, 32 * i : 32 * i + 32, 0] for i in range(4)]
    assert (parts[0] == 120).all()
    assert not np.array_equal(parts[1], parts[2])
    assert (parts[1] > 120).mean() == 0.25
    assert (made[:, 96:] == 0).all()


def test_maps_of_classes_are_layers_with_a_legend(serve: Any, folder: Path):
    client = serve(folder)
    (result,) = client.get("/api/results").json()["results"]
    layers = {x["name"]: x for x in client.get(result["href"]).json()["layers"]}
    assert list(layers) == ["before", "after", "validity", "probability", "classes_after", "damage", "change"]
    legend = layers["classes_after"]["legend"]
    assert [e["title"] for e in legend][:3] == ["Low vegetation", "Non-vegetated ground", "Tree"]
    assert len({tuple(e["pattern"]["rows"]) for e in legend}) == len(legend)
    assert [e["title"] for e in layers["damage"]["legend"]] == [
        "No damage",
        "Minor damage",
        "Major damage",
        "Destroyed",
    ]
    layer = layers["classes_after"]
    west, south, east, north = layer["bounds"]
    z = layer["native_zoom"]
    lat = np.radians((south + north) / 2)
    x = int(((west + (east - west) * 0.25) + 180) / 360 * 2**z)
    y = int((1 - np.log(np.tan(lat) + 1 / np.cos(lat)) / np.pi) / 2 * 2**z)
    tile = client.get(f"/tiles/{result['id']}/classes_after/{z}/{x}/{y}.png")
    picture = np.asarray(Image.open(io.BytesIO(tile.content)))
    colours = {tuple(c) for c in picture[picture[..., 3] == 255][:, :3]}
    tree = tuple(legend[2]["pattern"]["ink"])
    assert (0, 255, 0) in colours
    assert tree in colours
