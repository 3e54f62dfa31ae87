"""`terralapse area` from a run to areas, as a person types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from product_runs import BOX, build_run
from terralapse.cli.app import app
from terralapse.errors import OutputExistsError, SettingError
from terralapse.products.record import write_json

RUNNER = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = build_run(tmp_path / "run").folder
    grid = {"crs": "EPSG:32615", "transform": list(BOX.affine[:6]), "height": 240, "width": 320}
    write_json({"run_id": "0123456789ab", "grid": grid}, folder / "run.json")
    return folder


def test_draw_label_estimate(run, tmp_path):
    out = tmp_path / "sample"
    done = RUNNER.invoke(app, ["area", "sample", str(run), "-o", str(out), "--size", "120", "--seed", "4"])
    assert done.exit_code == 0, done.output
    assert "120" in done.output.replace("60 points", "") or "points of" in done.output
    with rasterio.open(run / "change.tif") as file:
        change = file.read(1)
    rows = list(csv.DictReader((out / "points.csv").open()))
    assert len(rows) == 120
    with (out / "points.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        for row in rows:
            row["label"] = ("no_change", "change")[change[int(row["row"]), int(row["col"])]]
            table.writerow(row)
    done = RUNNER.invoke(app, ["area", "estimate", str(out)])
    assert done.exit_code == 0, done.output
    assert "user's accuracy 100.0 % ± 0.0" in done.output
    assert "Overall accuracy 100.0 % ± 0.0, 120 of 120 points" in done.output
    assert "only 0 points outside" in done.output  # a sample without an error is no proof of a perfect map
    told = json.loads(RUNNER.invoke(app, ["area", "estimate", str(out), "--json"]).output)
    mapped = float(np.sum(change == 1)) * 4
    assert told["classes"][1]["area"]["value"] == pytest.approx(mapped, rel=0.002)


def test_what_is_wrong_is_said(run, tmp_path):
    out = str(tmp_path / "sample")
    given = ["area", "sample", str(run), "-o", out]
    assert RUNNER.invoke(app, [*given, "--size", "40"]).exit_code == 0
    assert isinstance(RUNNER.invoke(app, [*given, "--size", "40"]).exception, OutputExistsError)
    again = RUNNER.invoke(app, [*given, "--overwrite", "--expect", "change"])
    assert isinstance(again.exception, SettingError)
    bare = RUNNER.invoke(app, ["area", "estimate", out])
    assert isinstance(bare.exception, SettingError)
    assert "labelled points" in str(bare.exception)
