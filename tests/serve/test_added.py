"""Objects that the run has missed, over HTTP: added, changed, taken back, refused, and in what comes out."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
from fastapi.testclient import TestClient

from product_runs import BOX, build_run
from serve_browser import outline
from terralapse.data.folders import BiTemporal
from terralapse.grid.cog import write_cog
from terralapse.labels import SECOND_MAMBA
from terralapse.products.write import write_products
from terralapse.serve import notebook as notebooks
from terralapse.serve.notebook import FILE

MISSED = {"by": "Ada", "geometry": outline(180, 200, 220, 260), "comment": "a  shed"}


def test_an_object_is_added_changed_taken_back_and_put_back(kept, review):
    answer = kept.post(review, json=MISSED | {"grade": "major"})
    assert answer.status_code == 201, answer.text
    first = answer.json()
    assert (first["polygon"], first["version"], first["verdict"]) == (-1, 1, "added")
    assert (first["by"], first["grade"], first["comment"]) == ("Ada", "major", "a shed")
    assert first["geometry"] == MISSED["geometry"]
    assert kept.post(review, json=MISSED | {"by": "Bob"}).json()["polygon"] == -2
    edit = {"by": "Bob", "version": 1, "verdict": "removed", "comment": "a shadow"}
    removed = kept.post(f"{review}/-1", json=edit)
    assert removed.status_code == 200, removed.text
    assert removed.json()["geometry"] == MISSED["geometry"]  # it stays as it was drawn
    late = kept.post(f"{review}/-1", json=edit | {"by": "Eve"})
    assert late.status_code == 409
    assert late.json()["current"]["by"] == "Bob"
    wider = outline(180, 200, 225, 270)
    again = kept.post(f"{review}/-1", json={"by": "Ada", "version": 2, "verdict": "added", "geometry": wider})
    assert again.json()["geometry"] == wider
    history = kept.get(f"{review}/-1").json()["history"]
    assert [(h["by"], h["verdict"]) for h in history] == [
        ("Ada", "added"),
        ("Bob", "removed"),
        ("Ada", "added"),
    ]
    assert history[0]["at"] <= history[1]["at"] <= history[2]["at"]
    last = kept.get(review).json()["reviews"]
    assert [(r["polygon"], r["version"]) for r in last] == [(-2, 1), (-1, 3)]


SQUARE = MISSED["geometry"]["coordinates"][0]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"by": " "}, "by"),
        ({"by": None}, "by"),
        ({"geometry": None}, "geometry"),
        ({"geometry": {"type": "Point", "coordinates": [0, 0]}}, "geometry"),
        ({"geometry": outline(180, 200, 180, 260)}, "geometry"),  # a line
        ({"geometry": outline(200, 280, 230, 340)}, "outside"),  # partly
        ({"geometry": outline(300, 400, 340, 460)}, "outside"),
        ({"geometry": {"type": "Polygon", "coordinates": [SQUARE[:-1]]}}, "end where it starts"),
        ({"geometry": {"type": "Polygon", "coordinates": [[SQUARE[i] for i in (0, 2, 1, 3, 0)]]}}, "crosses"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[0, 0]] * 2001]}}, "geometry"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[1e9, 0], *SQUARE]]}}, "geometry"),
        ({"grade": "total"}, "grade"),
        ({"class_after": "tree"}, "no classes"),
        ({"comment": "x" * 2001}, "comment"),
        ({"verdict": "added"}, "verdict"),
    ],
)
def test_what_is_no_object_is_refused_and_nothing_is_kept(kept, review, wrong, field):
    answer = kept.post(review, json=MISSED | wrong)
    assert answer.status_code == 422, answer.text
    assert field in answer.json()["detail"]
    assert kept.get(review).json()["reviews"] == []


def test_what_is_said_of_a_polygon_is_not_said_of_one_that_was_added(kept, review):
    kept.post(review, json=MISSED)
    for verdict in ("accepted", "rejected", None):
        said = kept.post(f"{review}/-1", json={"by": "Ada", "version": 1, "verdict": verdict})
        assert said.status_code == 422
    for wrong in ({"verdict": "removed"}, {"verdict": "added"}, {"class_after": "tree"}):
        assert kept.post(f"{review}/1", json={"by": "Ada", "version": 0} | wrong).status_code == 422
    for number in ("-2", "0", str(-(2**40))):
        said = kept.post(f"{review}/{number}", json={"by": "Ada", "version": 0, "verdict": "added"})
        assert said.status_code == 404
    assert len(kept.get(review).json()["reviews"]) == 1


def test_without_a_folder_and_from_other_sites_nothing_is_added(client, kept, review, ids):
    assert client.post(review, json=MISSED).status_code == 405
    foreign = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert kept.post(review, json=MISSED, headers=foreign).status_code == 403
    assert kept.post(f"/api/results/{ids['clearing']}/review", json=MISSED).status_code == 404
    assert kept.get(review).json()["reviews"] == []


def test_objects_that_are_added_have_an_end(kept, review, monkeypatch):
    monkeypatch.setattr(notebooks, "MOST_ADDED", 2)
    answers = [kept.post(review, json=MISSED).status_code for _ in range(3)]
    assert answers == [201, 201, 429]


def test_a_file_of_an_earlier_version_is_kept_and_can_be_added_to(tmp_path, serve, shelf, review):
    with sqlite3.connect(tmp_path / FILE) as old:
        old.execute(
            "CREATE TABLE edits (id INTEGER NOT NULL PRIMARY KEY, run VARCHAR NOT NULL, "
            "polygon INTEGER NOT NULL, version INTEGER NOT NULL, at VARCHAR NOT NULL, by VARCHAR NOT NULL, "
            "verdict VARCHAR, grade VARCHAR, comment VARCHAR NOT NULL, geometry VARCHAR, "
            "UNIQUE (run, polygon, version))"
        )
        old.execute(
            "INSERT INTO edits (run, polygon, version, at, by, verdict, comment) "
            "VALUES ('0123456789ab', 1, 1, '2026-01-01T00:00:00.000Z', 'Eve', 'accepted', 'old')"
        )
    old.close()
    with serve(shelf, reviews=tmp_path) as client:
        assert client.post(review, json=MISSED).status_code == 201
        said = client.get(review).json()["reviews"]
    assert [(r["polygon"], r["by"], r["class_after"]) for r in said] == [(-1, "Ada", None), (1, "Eve", None)]


# --- what comes out ----------------------------------------------------------------------------------
def saved(client: TestClient, review: str, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "r.gpkg").write_bytes(client.get(f"{review}.gpkg").content)
    return pyogrio.read_dataframe(folder / "r.gpkg", layer="reviewed").set_index("id")


def labels(client: TestClient, review: str, folder: Path) -> np.ndarray:
    answer = client.get(f"{review}-labels.zip")
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    return BiTemporal(folder)[0].label


def test_the_reviewed_set_and_the_labels_have_what_was_added(kept, review, tmp_path):
    kept.post(review, json=MISSED | {"grade": "destroyed"})
    kept.post(review, json=MISSED | {"geometry": outline(100, 100, 120, 120)})
    kept.post(f"{review}/-2", json={"by": "Ada", "version": 1, "verdict": "removed"})
    kept.post(f"{review}/1", json={"by": "Bob", "version": 0, "verdict": "accepted"})
    frame = saved(kept, review, tmp_path)
    assert list(frame.index) == [1, -1]
    assert frame["added"].tolist() == [False, True]
    assert frame["redrawn"].tolist() == [False, False]
    mine = frame.loc[-1]
    assert (mine["verdict"], mine["reviewer"], mine["comment"]) == ("added", "Ada", "a shed")
    assert mine["area_m2"] == pytest.approx(40 * 60 * 4, rel=0.002)
    assert (mine["row"], mine["col"], mine["height"], mine["width"]) == (180, 200, 40, 60)
    assert mine["pixels"] == 2400
    assert np.isnan(mine["mean_prob"])
    assert mine["location"] == "south-east"
    table = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="history", read_geometry=False)
    assert table[table["polygon"] < 0]["verdict"].tolist() == ["added", "added", "removed"]
    label = labels(kept, review, tmp_path / "labels")
    assert (label[181:219, 201:259] == 1).all()
    assert (label[100:120, 100:120] == 255).all()  # it was taken back: nobody says anything of it
    with rasterio.open(next((tmp_path / "labels/damage").iterdir())) as file:
        assert (file.read(1)[181:219, 201:259] == 4).all()
    record = json.loads((tmp_path / "labels/record.json").read_text())
    assert [(r["polygon"], r["verdict"]) for r in record["reviews"]] == [
        (-2, "removed"), (-1, "added"), (1, "accepted"),
    ]  # fmt: skip


def test_a_run_that_found_nothing_can_be_added_to(serve, tmp_path):
    write_products(build_run(tmp_path / "nothing", change=np.zeros((240, 320), bool)))
    with serve(tmp_path / "nothing", reviews=tmp_path) as client:
        review = f"{client.get('/api/results').json()['results'][0]['href']}/review"
        assert client.post(review, json=MISSED).status_code == 201
        frame = saved(client, review, tmp_path / "out")
        assert frame["area_m2"].tolist() == pytest.approx([40 * 60 * 4], rel=0.002)
        assert (labels(client, review, tmp_path / "labels") == 1).sum() == 2400


def test_classes_are_those_of_the_run(serve, shelf, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(shelf / "Blobs", folder)
    ground = np.full((240, 320), 3, np.uint8)
    write_cog(ground, folder / "classes_after.tif", geobox=BOX, kind="class", nodata=255, scheme=SECOND_MAMBA)
    with serve(folder, reviews=tmp_path) as client:
        found = client.get(client.get("/api/results").json()["results"][0]["href"]).json()
        legend = next(x for x in found["layers"] if x["name"] == "classes_after")["legend"]
        assert "water" in {c["name"] for c in legend}
        review = f"/api/results/{found['id']}/review"
        refused = client.post(review, json=MISSED | {"class_after": "lava"})
        assert refused.status_code == 422
        assert "water" in refused.json()["detail"]
        assert client.post(review, json=MISSED | {"class_after": "water"}).status_code == 201
        frame = saved(client, review, tmp_path / "out")
        assert frame["class_after"].tolist() == ["water"]


def test_images_without_a_place_are_added_to_in_pixels(kept, ids, tmp_path):
    review = f"/api/results/{ids['pixels']}/review"
    degree = 20037508.342789244 / 180
    ring = [
        [x / degree, -y / degree] for x, y in ((200, 180), (260, 180), (260, 220), (200, 220), (200, 180))
    ]
    drawn = {"type": "Polygon", "coordinates": [ring]}
    assert kept.post(review, json=MISSED | {"geometry": drawn}).status_code == 201
    far = {"type": "Polygon", "coordinates": [[[x, y + 1] for x, y in ring]]}
    assert kept.post(review, json=MISSED | {"geometry": far}).status_code == 422
    frame = saved(kept, review, tmp_path / "out")
    assert frame.loc[-1, "area_px"] == pytest.approx(2400, rel=0.001)
    assert (labels(kept, review, tmp_path / "labels")[181:219, 201:259] == 1).all()
