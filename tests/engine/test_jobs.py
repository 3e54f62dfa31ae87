"""What happens to a run that is killed, interrupted, out of disk, or very large."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that can be forked")

TESTS = Path(__file__).parents[1]


def job(*arguments: object, timeout: float = 300) -> list[dict[str, Any]]:
    """The JSON lines that a job prints."""
    command = [sys.executable, str(TESTS / "scene_job.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize("seams", ["exact", pytest.param("blend", marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_leaves_the_bytes_of_one_that_was_not(
    tmp_path: Path, seams: str
) -> None:
    import scene_job

    scene_job.run(tmp_path / "whole", scene_job.detector(seams))
    (said,) = job("kill", tmp_path / "killed", seams, 1)
    assert said["code"] == 0
    assert said["killed"][:2] == [1, 2]  # the later ones may have been too fast
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert set(bytes_of(tmp_path / "killed")) == {"prob.tif", "valid.tif", "change.tif"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["killed", "whole"]


def test_ctrl_c_leaves_nothing_unless_the_run_is_to_be_resumed(tmp_path: Path) -> None:
    (said,) = job("interrupt", tmp_path / "out", "afresh")
    assert said["code"] == 130
    assert list(tmp_path.iterdir()) == []
    (said,) = job("interrupt", tmp_path / "out", "resume")
    assert said["code"] == 130
    assert [p.name for p in tmp_path.iterdir()] == ["out.part"]
    assert list((tmp_path / "out.part" / ".work" / "parts").iterdir())


def test_a_limit_on_the_length_of_files_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The limits stop a record, a part, and a raster."""
    said = job("starve", tmp_path / "out", 400, 60_000, 200_000)
    assert [line["code"] for line in said[1::2]] == [2, 2, 2]
    for line in said[::2]:
        assert line["error"] == "OutputNotWritableError"
        assert "no space left on the disk" in line["text"]
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_an_error_and_leaves_nothing(small_disk: Path) -> None:
    (small_disk / "taken").write_bytes(bytes(60_000))
    said = job("fill", small_disk / "out")
    assert said[-1] == {"code": 2}
    assert said[0]["error"] == "OutputNotWritableError"
    assert "no space left on the disk" in said[0]["text"]
    assert [p.name for p in small_disk.iterdir()] == ["taken"]


@pytest.mark.slow
def test_memory_is_flat_in_the_size_of_the_scene(tmp_path: Path) -> None:
    (said,) = job("memory", tmp_path, 4096, 16384)
    small, large = said["peaks"]
    # Both are large enough for the same tile.
    assert large - small < 120e6, f"{small / 1e6:.0f} MB, then {large / 1e6:.0f} MB for 16 times the pixels"


@pytest.mark.slow
def test_memory_is_flat_up_to_four_thousand_million_pixels(tmp_path: Path) -> None:
    (said,) = job("memory", tmp_path, 8192, 65536, timeout=7200)
    small, large = said["peaks"]
    assert large - small < 250e6
