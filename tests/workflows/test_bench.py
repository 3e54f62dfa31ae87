"""A benchmark appears whole or not at all, and its log can be checked afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.bench_stand_ins import known, squares
from terralapse import cli
from terralapse.engine import bench as engine
from terralapse.errors import FileMissingError, OutputExistsError
from terralapse.workflows.bench import bench_change, verify_bench

__all__ = ["known"]  # a fixture
FILES = {
    "bench.json", "bench.md", "index.html", "log.jsonl", "f1.svg", "speed.svg", "objects.svg",
    "robustness.svg", "misregistration.svg",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path / "cache"))
    squares(tmp_path / "data", "test", 3)
    return tmp_path / "data"


def settings(root: Path, **more: Any) -> dict[str, Any]:
    return {
        "data": "levir-cd",
        "root": root,
        "models": ("known/level", "known/never"),
        "samples": 100,
        **more,
    }


@pytest.mark.usefixtures("known")
def test_the_folder_is_whole_and_verifies_until_it_is_touched(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = bench_change(out, **settings(root))
    assert {p.name for p in out.iterdir()} == FILES
    assert json.loads((out / "bench.json").read_text()) == result
    assert verify_bench(out) == []
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "known/level has the highest F1: 100.0 %" in page
    assert "no other run of this benchmark has opened" in page
    with pytest.raises(OutputExistsError, match="overwrite"):
        bench_change(out, **settings(root))
    again = bench_change(out, overwrite=True, **settings(root))
    assert again["opened_before"] == 1
    assert "was opened once before this run" in (out / "index.html").read_text(encoding="utf-8")
    stored = (out / "bench.json").read_text()
    (out / "bench.json").write_text(stored.replace('"seed": 0', '"seed": 1'))
    assert verify_bench(out) == ["bench.json is not the one that the log names"]
    text = (out / "log.jsonl").read_text()
    (out / "log.jsonl").write_text(text.replace('"threshold_from"', '"threshold_found"', 1))
    assert "was altered" in verify_bench(out)[0]


@pytest.mark.usefixtures("known")
def test_an_interrupt_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_undisturbed", stop)
    with pytest.raises(KeyboardInterrupt):
        bench_change(tmp_path / "out", **settings(root))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "data"]
    monkeypatch.undo()


def test_a_folder_without_a_benchmark_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"log\.jsonl"):
        verify_bench(tmp_path)


@pytest.mark.usefixtures("known")
def test_the_command_prints_the_table_and_where_the_page_is(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "out")
    told = ["--data", "levir-cd", "--root", str(root), "--models", "known/level, known/never", "-o", out]
    monkeypatch.setattr(
        "sys.argv", ["terralapse", "bench", "change", *told, "--limit", "2", "--samples", "100"]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said, _ = capsys.readouterr()
    assert stop.value.code == 0
    for part in ("known/level", "100.0", "A quick look: only 2 of 3", "index.html"):
        assert part in said
    monkeypatch.setattr("sys.argv", ["terralapse", "bench", "verify", out])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "opened once" in capsys.readouterr().out
    (tmp_path / "out/log.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
