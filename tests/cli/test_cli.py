"""The command line: exit codes, what goes to which stream, and the list of systems."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from terralapse import cli, registry
from terralapse._version import __version__


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The command in this process: exit code, standard output, standard error."""
    sys.argv = ["terralapse", *arguments]
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def write(path: Path, seed: int, size: int = 256) -> Path:
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(1).integers(40, 180, (3, size // 8, size // 8)).repeat(8, 1).repeat(8, 2)
    data = (coarse + rng.normal(0, 4, coarse.shape)).clip(1, 255).astype("uint8")
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": size, "width": size}
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=from_origin(5e5, 4e6, 2.0, 2.0), photometric="rgb", **profile
    ) as f:
        f.write(data)
    return path


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version", capsys=capsys) == (0, f"terralapse {__version__}\n", "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("--help", capsys=capsys)
    assert code == 0
    for command in ("change", "demo", "inspect", "systems"):
        assert command in out


def test_usage_errors_exit_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("change", "only-one.tif", capsys=capsys)
    assert code == 2
    assert out == ""
    assert "Missing argument" in err


def test_systems_as_json_is_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("systems", "--json", capsys=capsys)
    assert code == 0
    listed = json.loads(out)
    assert [s["slug"] for s in listed] == [s.slug for s in registry.systems()]
    assert sum(s["seed"] for s in listed) == 57


def test_systems_can_be_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("systems", "--json", "--task", "change", "--status", "runs", capsys=capsys)
    listed = json.loads(out)
    assert listed
    assert {(s["task"], s["status"]) for s in listed} == {("change", "runs")}


def test_systems_table_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("systems", capsys=capsys)
    assert code == 0
    firsts = {line.split()[0] for line in out.splitlines() if line.strip()}
    assert {s.slug for s in registry.systems()} <= firsts


def test_inspect_reports_every_file_and_fails_for_the_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "good.tif", 1), tmp_path / "bad.tif"
    bad.write_text("not a raster")
    code, out, err = run("inspect", str(bad), str(good), capsys=capsys)
    assert code == 2
    assert "good.tif" in out
    assert "bad.tif" in err


def test_inspect_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("inspect", "--json", str(write(tmp_path / "a.tif", 1)), capsys=capsys)
    assert code == 0
    record = json.loads(out)
    assert "32633" in json.dumps(record)
    assert "red" in json.dumps(record)


def test_json_summary_is_alone_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.tif", 1), write(tmp_path / "b.tif", 2)
    out_folder = tmp_path / "out"
    code, out, err = run(
        "change", str(a), str(b), "-o", str(out_folder), "-m", "cva", "--json", capsys=capsys
    )
    assert code == 0, err
    summary = json.loads(out)
    assert summary["folder"] == str(out_folder)
    assert (out_folder / "report.html").exists()


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.tif", 1, 2048), write(tmp_path / "b.tif", 2, 2048)
    command = [sys.executable, "-m", "terralapse", "change", str(a), str(b), "-o", str(tmp_path / "out")]
    run = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ},
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 180
    while not (tmp_path / "out.part").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "out.part").exists(), "the run never started"
    time.sleep(0.3)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=180)
    assert run.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "b.tif"]
