"""What the API says of results is what their files hold."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.serve.app import create_app
from terralapse.serve.options import Options


def test_every_finished_folder_is_listed_with_its_kind(client, ids):
    assert ids == {
        "Blobs": "blobs-01234567",
        "clearing": ids["clearing"],
        "pixels": "pixels-fedcba98",
    }
    found = {r["title"]: r["kind"] for r in client.get("/api/results").json()["results"]}
    assert found == {"Blobs": "change", "clearing": "series", "pixels": "change"}


def test_a_result_says_what_its_record_says(client, ids, shelf):
    found = client.get(f"/api/results/{ids['Blobs']}").json()
    run = json.loads((shelf / "Blobs/run.json").read_text())
    assert found["summary"] == run["summary"]["summary"]
    assert found["warnings"] == ["The pixels are larger than those of training."]
    assert found["numbers"]["changed_area"] == run["summary"]["changed_area"]
    assert found["dates"] == {"before": "2023-05-10T00:00:00+00:00", "after": "2024-06-02T10:30:00+00:00"}
    assert " ".join(s["text"] for s in found["sentences"]) == found["summary"]
    assert [layer["name"] for layer in found["layers"]] == [
        "before",
        "after",
        "validity",
        "probability",
        "change",
    ]
    assert client.get(found["links"]["run"]).json() == run


def test_bounds_hold_the_grid(client, ids):
    west, south, east, north = client.get(f"/api/results/{ids['Blobs']}").json()["bounds"]
    # 320 x 240 pixels of 2 m at 37 degrees north
    assert (east - west) * 111320 * np.cos(np.radians(37)) == pytest.approx(640, rel=0.05)
    assert (north - south) * 111000 == pytest.approx(480, rel=0.05)


def test_the_histogram_gives_the_run_back_at_its_threshold(client, ids):
    found = client.get(f"/api/results/{ids['Blobs']}/histogram").json()
    said = client.get(f"/api/results/{ids['Blobs']}").json()["numbers"]
    at = round(found["threshold"] / found["step"])
    assert len(found["area"]) == 201
    assert sum(found["area"][at:]) == pytest.approx(said["changed_area"], rel=1e-7)
    assert sum(found["area"]) == pytest.approx(said["observed_area"], rel=1e-7)
    assert sum(found["pixels"]) == 240 * 300


def test_the_alignment_is_told_as_in_the_report(client, ids, shelf):
    found = client.get(f"/api/results/{ids['Blobs']}/alignment").json()
    assert found["report"] == json.loads((shelf / "Blobs/alignment.json").read_text())
    assert found["level"] == "good"
    assert {"name": "Correction", "text": "by translation"} in found["rows"]
    assert client.get(f"/api/results/{ids['clearing']}/alignment").status_code == 404


def test_facts_by_id_and_by_polygon(client, ids):
    base = f"/api/results/{ids['Blobs']}/facts"
    every = client.get(base).json()["facts"]
    one = client.get(f"{base}/area.changed").json()
    assert one in every
    assert one["kind"] == "area"
    of_second = {f["id"] for f in client.get(base, params={"polygon": 2}).json()["facts"]}
    assert "object.2.area" in of_second
    assert "object.1.area" not in of_second
    assert client.get(f"{base}/no.such").status_code == 404


def test_every_file_can_be_downloaded_whole_and_in_ranges(client, ids, shelf):
    found = client.get(f"/api/results/{ids['Blobs']}").json()["files"]
    names = {f["name"] for f in found}
    assert {"change.tif", "change.gpkg", "change.geojson", "stats.csv", "map.pdf", "report.html"} <= names
    for file in found:
        answer = client.get(file["href"])
        assert hashlib.sha256(answer.content).digest() == (
            hashlib.sha256((shelf / "Blobs" / file["name"]).read_bytes()).digest()
        ), file["name"]
        assert answer.headers["content-disposition"].startswith("attachment")
    part = client.get(f"/api/results/{ids['Blobs']}/files/prob.tif", headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, (shelf / "Blobs/prob.tif").read_bytes()[:4])


def test_a_series_has_its_own_layers_and_table(client, ids, shelf):
    found = client.get(f"/api/results/{ids['clearing']}").json()
    assert [layer["name"] for layer in found["layers"]] == [
        "validity",
        "probability",
        "magnitude",
        "break_date",
    ]
    assert len(found["dates"]["series"]) == 30
    rows = client.get(found["links"]["stats"]).json()["rows"]
    with rasterio.open(shelf / "clearing/break_date.tif") as file:
        years = {v // 10000 for v in np.unique(file.read(1)) if v > 0}
    assert {int(r["year"]) for r in rows} == years
    breaks = client.get(found["links"]["breaks"]).json()
    assert sum(breaks["area"]) == pytest.approx(found["numbers"]["broken_area"], rel=1e-6)
    assert breaks["days"] == sorted(breaks["days"])
    assert client.get(f"/api/results/{ids['clearing']}/histogram").status_code == 404
    assert client.get(f"/api/results/{ids['Blobs']}/breaks").status_code == 404


def test_a_result_that_ends_while_the_server_is_up_appears(serve, shelf, tmp_path, monkeypatch):
    client = serve(tmp_path)
    monkeypatch.setattr("terralapse.serve.shelf._FRESH", 0)
    assert client.get("/api/results").json()["results"] == []
    shutil.copytree(shelf / "Blobs", tmp_path / "later.part")
    assert client.get("/api/results").json()["results"] == []
    (tmp_path / "later.part").rename(tmp_path / "later")
    assert [r["title"] for r in client.get("/api/results").json()["results"]] == ["later"]


def test_a_damaged_result_is_named_and_the_others_are_shown(serve, shelf, tmp_path):
    shutil.copytree(shelf / "Blobs", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text('{"run_id": ')
    found = serve(tmp_path).get("/api/results").json()
    assert [r["title"] for r in found["results"]] == ["good"]
    assert found["problems"] == ["bad: is missing or damaged. Run the command again."]
    with pytest.raises(UnreadableFileError, match="bad"):
        create_app(Options((tmp_path / "bad",)))


def test_folders_of_one_name_get_ids_of_their_own(serve, shelf, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(shelf / "Blobs", tmp_path / parent / "out")
    client = serve(tmp_path / "a/out", tmp_path / "b/out")
    found = [r["id"] for r in client.get("/api/results").json()["results"]]
    assert found == ["out-01234567", "out-01234567-2"]
    assert all(client.get(f"/api/results/{i}").status_code == 200 for i in found)


def test_a_folder_that_is_not_there_is_refused_at_once(tmp_path: Path):
    with pytest.raises(FileMissingError, match="nowhere"):
        Options((tmp_path / "nowhere",))
