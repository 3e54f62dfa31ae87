"""The chain of a log breaks where it is touched, and the ledger knows what was opened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from terralapse.engine.bench_log import Ledger, Openings, RunLog, faults, line_hash
from terralapse.errors import OutputNotWritableError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    made = RunLog(tmp_path / "log.jsonl")
    made.add("started", run="a")
    made.add("model frozen", model="m", threshold=0.5)
    made.add("test split opened", split="test")
    made.add("sample read", sample="one", sha256="1")
    made.add("sample read", sample="two", sha256="2")
    made.add("test split closed", files=[{"file": "one.png", "opened": 1}])
    made.add("finished")
    return made.path


def rewrite(path: Path, change: Any) -> None:
    """Alters the records and gives each a right hash again, but not the chain."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    change(records)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def chain(path: Path) -> None:
    """What somebody does who forges the whole log."""
    previous = "0" * 64
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for number, record in enumerate(records):
        record |= {"n": number, "previous": previous}
        record["hash"] = previous = line_hash(record)
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


def test_a_whole_log_has_no_fault(log: Path) -> None:
    assert faults(log) == []


def test_an_altered_line_is_found_also_when_its_own_hash_was_mended(log: Path) -> None:
    rewrite(log, lambda r: r[1].update(threshold=0.3))
    assert faults(log) == ["line 2 was altered"]
    rewrite(log, lambda r: r[1].update(hash=line_hash(r[1])))
    assert faults(log) == ["line 3 does not follow the line before it"]


def test_a_missing_or_cut_line_is_found(log: Path) -> None:
    text = log.read_text()
    rewrite(log, lambda r: r.pop(3))
    assert "line 4 does not follow the line before it" in faults(log)
    log.write_text(text[:-40])
    assert faults(log) == ["line 7 is no JSON"]
    log.write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert faults(log) == ["the run did not finish"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.insert(3, dict(r[2])), "the test split was opened 2 times"),
        (lambda r: r.append(r.pop(1)) or r.append(r.pop(-2)), "a model was frozen after"),
        (lambda r: r.insert(4, dict(r[3])), "one was read twice"),
        (lambda r: r.insert(1, r.pop(3)), "outside of the one pass"),
        (lambda r: r[5]["files"][0].update(opened=2), "one.png was opened more than once"),
    ],
)
def test_a_broken_protocol_is_found_though_the_chain_holds(log: Path, change: Any, said: str) -> None:
    rewrite(log, change)
    chain(log)
    assert any(said in fault for fault in faults(log))


def test_openings_below_a_folder_are_counted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/a.txt", "in/b.txt", "out.txt"):
        (tmp_path / name).write_text(name)
    with Openings(tmp_path / "in") as files:
        (tmp_path / "in/a.txt").read_text()
        with (tmp_path / "in/b.txt").open("rb") as one, open(tmp_path / "in/b.txt") as _:  # noqa: PTH123
            one.read()
        (tmp_path / "out.txt").read_text()
        (tmp_path / "in/made.txt").write_text("written, not read")
    (tmp_path / "in/a.txt").read_text()
    assert files.times == {"a.txt": 1, "b.txt": 2}
    found = files.files()
    assert found[0]["sha256"] == __import__("hashlib").sha256(b"in/a.txt").hexdigest()
    assert [f["bytes"] for f in found] == [8, 8]


def test_the_ledger_counts_runs_by_place_and_by_content(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "cache" / "ledger.jsonl")
    here, there = {"root": "/here"}, {"root": "/there"}
    assert ledger.earlier("me", here, ["ab" * 32]) == 0
    ledger.open("first", here)  # and then it was killed
    ledger.open("second", there)
    ledger.close("second", ["ab" * 32, "cd" * 32])
    ledger.open("me", here)
    with ledger.path.open("a") as file:
        file.write('{"cut off\n')
    assert ledger.earlier("me", here, []) == 1
    assert ledger.earlier("me", here, ["cd" * 32]) == 2
    assert ledger.earlier("me", {"root": "/elsewhere"}, ["ef" * 32]) == 0


def test_nothing_is_opened_without_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritableError, match="TERRALAPSE_CACHE"):
        Ledger(tmp_path / "file" / "ledger.jsonl").open("me", {})


def test_the_ledger_lies_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path))
    assert Ledger().path.parent == tmp_path
