"""Reviews over HTTP: who said what, two people at once, a server that is killed, and what comes out."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import zipfile
from pathlib import Path

import httpx2
import pyogrio
import pytest

from serve_clients import start
from terralapse.data.folders import BiTemporal
from terralapse.errors import FileMissingError
from terralapse.serve import notebook as notebooks
from terralapse.serve.notebook import ConflictError, Notebook
from terralapse.serve.options import Options

ADA = {"by": "Ada", "version": 0, "verdict": "accepted"}


def test_what_is_said_is_kept_with_who_and_when(kept, review):
    said = kept.post(f"{review}/1", json=ADA | {"grade": "major", "comment": "a\nroof\x00 is gone"})
    assert said.status_code == 200, said.text
    first = said.json()
    assert (first["version"], first["by"], first["grade"], first["comment"]) == (
        1, "Ada", "major", "a roof is gone",
    )  # fmt: skip
    kept.post(f"{review}/1", json={"by": "Bob", "version": 1, "verdict": "rejected"})
    history = kept.get(f"{review}/1").json()["history"]
    assert [(h["by"], h["verdict"], h["version"]) for h in history] == [
        ("Ada", "accepted", 1),
        ("Bob", "rejected", 2),
    ]
    assert history[0]["at"] <= history[1]["at"]
    assert kept.get(review).json()["reviews"] == [history[1]]


def test_the_second_of_two_people_is_told_what_the_first_said(kept, review):
    kept.post(f"{review}/1", json=ADA)
    late = kept.post(f"{review}/1", json={"by": "Bob", "version": 0, "verdict": "rejected"})
    assert late.status_code == 409
    assert late.json()["current"]["by"] == "Ada"
    assert "meanwhile" in late.json()["detail"]
    assert kept.get(review).json()["reviews"][0]["verdict"] == "accepted"


def test_of_many_at_once_one_gets_through(tmp_path):
    """Two servers over one file, each with its own connection."""
    books = [Notebook(tmp_path) for _ in range(4)]
    won: list[str] = []
    barrier = threading.Barrier(4)

    def say(n: int) -> None:
        barrier.wait()
        try:
            books[n].say("run", 1, 0, by=f"p{n}", verdict="accepted", grade=None, comment="")
            won.append(f"p{n}")
        except ConflictError:
            pass

    threads = [threading.Thread(target=say, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert [r["by"] for r in books[0].reviews("run")] == won


@pytest.mark.parametrize(
    "wrong",
    [
        {"by": ""},
        {"by": "\n\t"},
        {"by": "x" * 81},
        {"verdict": "maybe"},
        {"grade": "total"},
        {"version": -1},
        {"comment": "x" * 2001},
        {"extra": 1},
        {"geometry": {"type": "Point", "coordinates": [0, 0]}},
        {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [0, 0]]]}},
        {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}},  # elsewhere
        {"geometry": {"type": "Polygon", "coordinates": [[[999, 0], [1, 0], [1, 1], [0, 0]]]}},
        {
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[-94.2, 37], [-94.1, 37.1], [-94.1, 37], [-94.2, 37.1], [-94.2, 37]]],
            }
        },
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_kept(kept, review, wrong):
    answer = kept.post(f"{review}/1", json=ADA | wrong)
    assert answer.status_code == 422, answer.text
    assert isinstance(answer.json()["detail"], str)
    assert kept.get(review).json()["reviews"] == []


def test_polygons_that_there_are_not_have_no_review(kept, review, ids):
    for polygon in ("0", "999", str(2**40)):
        assert kept.post(f"{review}/{polygon}", json=ADA).status_code == 404
    series = f"/api/results/{ids['clearing']}/review"
    assert kept.post(f"{series}/1", json=ADA).status_code == 404


def test_without_a_folder_nothing_can_be_said(client, review):
    assert client.get("/api/results").json()["reviews"] is False
    assert client.get(review).status_code == 404
    assert client.post(f"{review}/1", json=ADA).status_code == 405
    with pytest.raises(FileMissingError):
        Options(reviews=Path("nowhere"))


def test_other_sites_and_other_forms_cannot_write(kept, review):
    foreign = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert kept.post(f"{review}/1", json=ADA, headers=foreign).status_code == 403
    plain = kept.post(f"{review}/1", content=json.dumps(ADA), headers={"content-type": "text/plain"})
    assert plain.status_code == 415
    assert kept.post(f"{review}/1", json=ADA | {"comment": "x" * 70000}).status_code == 413
    assert kept.request("PUT", f"{review}/1", json=ADA).status_code == 405
    assert kept.get(review).json()["reviews"] == []


def test_edits_have_an_end(kept, review, monkeypatch):
    monkeypatch.setattr(notebooks, "MOST_EDITS", 2)
    for version in (0, 1):
        assert kept.post(f"{review}/1", json=ADA | {"version": version}).status_code == 200
    assert kept.post(f"{review}/1", json=ADA | {"version": 2}).status_code == 429


def test_the_reviewed_set_and_its_labels_come_out(kept, review, ids, shelf, tmp_path):
    west, south, east, north = kept.get(
        f"/api/results/{ids['Blobs']}/features/collections/change/items/1"
    ).json()["bbox"]
    middle = (south + north) / 2
    half = [[west, middle], [east, middle], [east, north], [west, north], [west, middle]]
    drawn = {"type": "Polygon", "coordinates": [half]}
    assert kept.get(f"{review}-labels.zip").status_code == 409  # nobody has accepted anything
    kept.post(f"{review}/1", json=ADA | {"geometry": drawn, "grade": "destroyed"})
    kept.post(f"{review}/2", json=ADA | {"verdict": "rejected", "comment": "shadow"})
    found = kept.get(f"{review}.gpkg")
    assert "attachment" in found.headers["content-disposition"]
    (tmp_path / "r.gpkg").write_bytes(found.content)
    frame = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="reviewed").set_index("id")
    assert frame["verdict"].tolist() == ["accepted", "rejected"]
    assert frame.loc[1, "area_m2"] == pytest.approx(4800, rel=0.04)  # degrees are not parallel to the grid
    answer = kept.get(f"{review}-labels.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(tmp_path / "labels")
    (pair,) = BiTemporal(tmp_path / "labels")
    assert pair.name == ids["Blobs"]
    assert (pair.label[32:58, 202:238] == 1).all()
    assert (pair.label[64:88, 202:238] == 0).all()
    assert (pair.label[152:168, 42:68] == 0).all()
    record = json.loads((tmp_path / "labels/record.json").read_text())
    assert record["reviews"][1]["comment"] == "shadow"
    assert str(shelf) not in json.dumps(record)
    whole = kept.get(f"{review}-labels.zip", params={"background": "unchanged"})
    assert whole.status_code == 200
    assert kept.get(f"{review}-labels.zip", params={"background": "x"}).status_code == 422


def test_images_without_a_place_are_reviewed_too(kept, ids, tmp_path):
    review = f"/api/results/{ids['pixels']}/review"
    item = kept.get(f"/api/results/{ids['pixels']}/features/collections/change/items/1").json()
    drawn = {"type": "Polygon", "coordinates": item["geometry"]["coordinates"][0]}
    assert kept.post(f"{review}/1", json=ADA | {"geometry": drawn}).status_code == 200
    (tmp_path / "r.gpkg").write_bytes(kept.get(f"{review}.gpkg").content)
    frame = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="reviewed")
    assert frame.loc[0, "area_px"] == pytest.approx(2400, rel=0.02)


@pytest.mark.slow
def test_what_was_said_survives_kill_9(shelf, tmp_path, ids):
    path = f"api/results/{ids['Blobs']}/review"
    process, address = start(shelf, "--reviews", tmp_path)
    for version in range(3):
        said = httpx2.post(f"{address}{path}/1", json=ADA | {"version": version}, timeout=60)
        assert said.status_code == 200
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    process, address = start(shelf, "--reviews", tmp_path)
    try:
        history = httpx2.get(f"{address}{path}/1", timeout=60).json()["history"]
        assert [h["version"] for h in history] == [1, 2, 3]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
