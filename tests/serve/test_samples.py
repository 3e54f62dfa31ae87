"""Samples over HTTP: drawn, labelled point by point, and read as areas."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import rasterio
from fastapi.testclient import TestClient
from PIL import Image

from terralapse.products.area_report import report
from terralapse.products.area_sample import read_labels, read_sample


@pytest.fixture
def samples(ids: dict[str, str]) -> str:
    return f"/api/results/{ids['Blobs']}/samples"


def labelled(kept: TestClient, samples: str, shelf: Path, size: int = 40) -> tuple[dict, np.ndarray]:
    """A sample whose points are labelled as the map has them."""
    drawn = kept.post(samples, json={"by": "Ada", "size": size, "seed": 3})
    assert drawn.status_code == 201, drawn.text
    with rasterio.open(shelf / "Blobs/change.tif") as file:
        change = file.read(1)
    for p in drawn.json()["points"]:
        name = ("no_change", "change")[change[p["row"], p["col"]]]
        said = kept.post(
            f"{samples}/{drawn.json()['id']}/points/{p['id']}",
            json={"by": "Ada", "version": 0, "label": name},
        )
        assert said.status_code == 200, said.text
    return drawn.json(), change


def test_draw_label_areas(kept, samples, shelf, tmp_path):
    drawn, change = labelled(kept, samples, shelf)
    one = f"{samples}/{drawn['id']}"
    assert "stratum" not in str(drawn["points"])
    assert drawn["classes"] == {"no_change": "No change", "change": "Change"}
    assert [s["points"] for s in drawn["strata"]] == [20, 20]
    found = kept.get(f"{one}/areas").json()
    assert found["labelled"] == 40
    mapped = float(((change == 1)[:, 20:]).sum() * 4)
    assert found["classes"][1]["area"]["value"] == pytest.approx(mapped, rel=0.002)
    # A point of the map's no change that turns out to be change weighs what its stratum weighs.
    point = next(p for p in drawn["points"] if change[p["row"], p["col"]] == 0)
    body = {"by": "Bob", "version": 1, "label": "change"}
    assert kept.post(f"{one}/points/{point['id']}", json=body).status_code == 200
    more = kept.get(f"{one}/areas").json()
    no = found["strata"][0]["area"]
    assert more["classes"][1]["area"]["value"] == pytest.approx(mapped + no / 20, rel=0.002)
    assert more["classes"][1]["area"]["error"] > 0
    listed = kept.get(samples).json()
    assert listed["samples"][0] | {"at": ""} == {
        "id": drawn["id"], "at": "", "by": "Ada", "map": "change", "points": 40, "labelled": 40,
    }  # fmt: skip
    assert listed["maps"] == ["change"]
    rows = list(csv.DictReader(io.StringIO(kept.get(f"{one}/areas.csv").text)))
    assert [r["class"] for r in rows] == ["no_change", "change"]
    # The command line reads what the page gives.
    (tmp_path / "points.csv").write_text(kept.get(f"{one}/points.csv").text)
    (tmp_path / "sample.json").write_text(kept.get(f"{one}/sample.json").text)
    sample = read_sample(tmp_path)
    again = report(sample, read_labels(tmp_path / "points.csv", sample)).as_dict()
    assert again["classes"] == more["classes"]


def test_a_label_is_taken_back_and_two_people_do_not_overwrite_each_other(kept, samples):
    drawn = kept.post(samples, json={"by": "Ada", "size": 10}).json()
    point = f"{samples}/{drawn['id']}/points/1"
    assert kept.post(point, json={"by": "Ada", "version": 0, "label": "unsure"}).json()["version"] == 1
    late = kept.post(point, json={"by": "Bob", "version": 0, "label": "change"})
    assert (late.status_code, late.json()["current"]["label"]) == (409, "unsure")
    assert kept.get(samples).json()["samples"][0]["labelled"] == 1
    kept.post(point, json={"by": "Ada", "version": 1, "label": ""})
    assert kept.get(samples).json()["samples"][0]["labelled"] == 0
    assert kept.get(f"{samples}/{drawn['id']}/areas").status_code == 409
    assert "labelled points" in kept.get(f"{samples}/{drawn['id']}/areas").json()["detail"]


def test_chips_have_their_point_in_the_middle(kept, samples, shelf):
    drawn = kept.post(samples, json={"by": "Ada", "size": 10}).json()
    with rasterio.open(shelf / "Blobs/after.tif") as file:
        after = file.read()
    for point in drawn["points"][:4]:
        answer = kept.get(f"{samples}/{drawn['id']}/points/{point['id']}/after.webp", params={"across": 17})
        assert answer.headers["content-type"] == "image/webp"
        picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
        assert picture.shape == (256, 256, 3)
        middle = np.median(picture[124:132, 124:132].reshape(-1, 3), axis=0)
        assert np.abs(middle - after[:, point["row"], point["col"]]).max() < 14
    far = kept.get(f"{samples}/{drawn['id']}/points/1/after.webp", params={"across": 513})
    assert far.status_code == 200


def test_places_are_those_of_the_map(kept, samples, client, ids):
    drawn = kept.post(samples, json={"by": "Ada", "size": 10}).json()
    west, south, east, north = client.get(f"/api/results/{ids['Blobs']}").json()["bounds"]
    for p in drawn["points"]:
        lng, lat = p["place"]
        assert west < lng < east
        assert south < lat < north


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"size": 3}, 422),
        ({"size": 9999}, 422),
        ({"by": " "}, 422),
        ({"map": "prob"}, 422),
        ({"map": "damage"}, 404),
        ({"expected": {"water": 0.5}}, 409),
        ({"expected": {"change": 2}}, 422),
        ({"size": None, "standard_error": 0.001}, 409),
    ],
)
def test_what_cannot_be_drawn_is_refused(kept, samples, wrong, code):
    answer = kept.post(samples, json={"by": "Ada", "size": 20} | wrong)
    assert answer.status_code == code, answer.text
    assert kept.get(samples).json()["samples"] == []


def test_what_is_not_there_is_not_there(kept, samples, ids):
    drawn = kept.post(samples, json={"by": "Ada", "size": 10}).json()
    other = f"/api/results/{ids['pixels']}/samples/{drawn['id']}"
    assert kept.get(other).status_code == 404
    assert kept.get(f"{samples}/nothing/areas").status_code == 404
    label = {"by": "Ada", "version": 0, "label": "change"}
    assert kept.post(f"{samples}/{drawn['id']}/points/11", json=label).status_code == 404
    assert kept.post(f"{samples}/{drawn['id']}/points/1", json=label | {"label": "water"}).status_code == 422
    series = f"/api/results/{ids['clearing']}/samples"
    assert kept.post(series, json={"by": "Ada", "size": 20}).status_code == 404
