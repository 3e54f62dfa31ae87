"""The scheduler, its journal and its simulator: on a clock of their own, without waiting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from job_toys import Toy
from terralapse.engine.jobs.ledger import DEAD, JOURNAL, Ledger, State
from terralapse.engine.jobs.schedule import Retry, run_units
from terralapse.engine.jobs.simulate import Rates, makespan, simulate
from terralapse.engine.jobs.work import Outcome, is_lasting
from terralapse.errors import (
    FileMissingError,
    OutputExistsError,
    OutputLockedError,
    ResumeMismatchError,
    SettingError,
    TruncatedFileError,
    UnreadableFileError,
)


class Script:
    """An executor whose outcomes are written down: a list a unit, then success."""

    def __init__(self, outcomes: dict[str, list[Outcome]], slots: int = 2) -> None:
        self.slots, self.now, self.most = slots, 0.0, 0
        self.tried: list[tuple[str, float]] = []
        self._outcomes = {k: list(v) for k, v in outcomes.items()}
        self._flying: list[str] = []

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        self.tried.append((unit, self.now))
        self._flying.append(unit)
        self.most = max(self.most, len(self._flying))

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        unit = self._flying.pop(0)
        left = self._outcomes.get(unit)
        return [(unit, left.pop(0) if left else Outcome(digest=f"of {unit}"))]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


BAD, NETWORK = Outcome(reason="bad input", lasting=True), Outcome(reason="no network")


def go(folder: Path, units: Any, script: Script, retry: Retry | None = None, **options: Any) -> Any:
    with Ledger(folder, "plan", resume=options.pop("resume", False)) as ledger:
        counts = run_units(
            units, script, ledger, retry or Retry(), clock=lambda: script.now, sleep=script.sleep, **options
        )
        return counts, dict(ledger.entries)


def toys(count: int) -> list[Toy]:
    return [Toy(f"u{n}") for n in range(count)]


def test_bad_input_is_tried_once_and_everything_else_until_the_attempts_are_used_up(tmp_path: Path) -> None:
    script = Script({"u0": [BAD], "u1": [NETWORK] * 2, "u2": [NETWORK] * 3})
    counts, entries = go(tmp_path / "job", toys(5), script, Retry(attempts=3, base_s=4, most_s=60))
    assert (counts.total, counts.done, counts.dead, counts.retries) == (5, 3, 2, 4)
    tries = {u: [t for name, t in script.tried if name == u] for u in ("u0", "u1", "u2", "u3")}
    assert [len(t) for t in tries.values()] == [1, 3, 3, 1]
    assert entries["u0"].state is entries["u2"].state is State.DEAD
    assert (entries["u1"].state, entries["u1"].failures) == (State.DONE, 2)
    first, second = tries["u1"][1] - tries["u1"][0], tries["u1"][2] - tries["u1"][1]
    assert 2 <= first <= 4.01 <= second + 0.02 <= 8.1  # doubled, half of it drawn
    assert first != tries["u2"][1] - tries["u2"][0]  # they do not come back together


def test_units_are_read_as_there_is_room_and_never_more_are_in_flight(tmp_path: Path) -> None:
    script = Script({}, slots=3)
    ahead: list[int] = []
    taken = 0

    def units() -> Iterator[Toy]:
        nonlocal taken
        for toy in toys(50):
            taken += 1
            ahead.append(taken - (len(script.tried) - len(script._flying)))
            yield toy

    counts, _ = go(tmp_path / "job", units(), script, in_flight=4)
    assert counts.done == 50
    assert script.most == counts.most_in_flight == 4
    assert max(ahead) <= 5


def test_ten_thousand_units_of_which_one_in_a_hundred_fails_twice(tmp_path: Path) -> None:
    faults = {f"u{n}": [NETWORK] * 2 for n in range(0, 10_000, 100)}
    counts, entries = go(tmp_path / "job", toys(10_000), Script(faults, slots=16))
    assert (counts.done, counts.dead, counts.retries) == (10_000, 0, 200)
    assert sum(e.failures == 2 for e in entries.values()) == 100


def test_a_resumed_job_does_only_what_is_left(tmp_path: Path) -> None:
    job = tmp_path / "job"
    go(job, toys(4), Script({"u1": [BAD]}))
    script = Script({})
    counts, _ = go(job, toys(6), script, resume=True)
    assert [u for u, _ in script.tried] == ["u4", "u5"]
    assert (counts.total, counts.done, counts.dead) == (6, 5, 1)
    with Ledger(job, "plan", resume=True) as ledger:
        assert ledger.revive() == 1
    script = Script({})
    counts, _ = go(job, toys(6), script, resume=True)
    assert ([u for u, _ in script.tried], counts.done) == (["u1"], 6)


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_a_journal_cut_by_a_kill_loses_its_last_line_only(tmp_path: Path, cut: int) -> None:
    job = tmp_path / "job"
    go(job, toys(3), Script({}))
    journal = job / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-cut])
    script = Script({})
    counts, _ = go(job, toys(3), script, resume=True)
    assert [u for u, _ in script.tried] == ["u2"]
    assert counts.done == 3
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_what_was_running_when_the_writer_died_is_pending(tmp_path: Path) -> None:
    job = tmp_path / "job"
    with Ledger(job, "plan") as ledger:
        ledger.running("u0")
        ledger.failed("u0", "no network")
        ledger.running("u0")
    with Ledger(job, "plan", resume=True) as ledger:
        assert (ledger.entry("u0").state, ledger.entry("u0").failures) == (State.PENDING, 1)


def test_two_runs_on_one_folder_and_who_holds_it(tmp_path: Path) -> None:
    import os

    with Ledger(tmp_path / "job", "plan"), pytest.raises(OutputLockedError) as caught:
        Ledger(tmp_path / "job", "plan", resume=True).__enter__()
    assert f"process {os.getpid()} on" in str(caught.value)
    assert "since 2" in str(caught.value)
    Ledger(tmp_path / "job", "plan", resume=True).__enter__().__exit__(None, None, None)


def test_a_folder_with_a_job_is_not_taken_for_another(tmp_path: Path) -> None:
    go(tmp_path / "job", toys(1), Script({}))
    with pytest.raises(OutputExistsError, match="--resume"):
        Ledger(tmp_path / "job", "plan").__enter__()
    with pytest.raises(ResumeMismatchError, match="another plan"):
        Ledger(tmp_path / "job", "other", resume=True).__enter__()
    journal = tmp_path / "job" / JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b'"done"', b'"gone"'))
    with pytest.raises(ResumeMismatchError, match="line 3"):
        Ledger(tmp_path / "job", "plan", resume=True).__enter__()


def test_the_dead_letters_say_why_in_the_order_of_the_plan(tmp_path: Path) -> None:
    with Ledger(tmp_path / "job", "plan") as ledger:
        run_units(toys(3), Script({"u2": [BAD], "u0": [BAD]}), ledger, Retry())
        path = ledger.write_dead_letters((t.id, f"place {t.id}") for t in toys(3))
        assert path == tmp_path / "job" / DEAD
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(r["name"], r["reason"]) for r in rows] == [
            ("place u0", "bad input"),
            ("place u2", "bad input"),
        ]
        ledger.revive()
        assert ledger.write_dead_letters((t.id, "") for t in toys(3)) is None
    assert not (tmp_path / "job" / DEAD).exists()


def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script({"u1": [NETWORK] * 2})
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("time.time", lambda: next(jumps))
    counts, _ = go(tmp_path / "job", toys(20), script)
    assert (counts.done, counts.retries) == (20, 2)


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (FileMissingError("a.tif", "does not exist", ""), True),
        (TruncatedFileError("a.tif", "ends early", ""), True),
        (TruncatedFileError("http://host/a.tif", "ends early", ""), False),
        (OutputLockedError("out", "another run", ""), False),
        (MemoryError(), False),
        (ConnectionResetError(), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_only_faults_that_last_are_given_up_at_once(error: Exception, lasting: bool) -> None:
    assert is_lasting(error) is lasting


@pytest.mark.parametrize(("code", "lasting"), [(404, True), (403, True), (429, False), (503, False)])
def test_a_server_that_is_busy_is_asked_again(code: int, lasting: bool) -> None:
    from email.message import Message
    from urllib.error import HTTPError, URLError

    error = UnreadableFileError("http://host/a.json", "the server answered", "")
    error.__cause__ = HTTPError("http://host", code, "", Message(), None)
    assert is_lasting(error) is lasting
    error.__cause__ = URLError("no route")
    assert is_lasting(error) is False


def test_settings_of_a_retry_are_checked() -> None:
    with pytest.raises(SettingError, match="attempts"):
        Retry(attempts=0)
    with pytest.raises(SettingError, match="base_s"):
        Retry(base_s=10, most_s=5)


def test_a_simulated_job_takes_as_long_as_its_units_and_longer_with_stragglers() -> None:
    even = Rates(60, spread=0, stragglers=0, faults=0)
    plain = simulate(100, 10, even)
    assert (plain.makespan_s, plain.busy, plain.done) == (600, 1.0, 100)
    slow = simulate(100, 10, Rates(60, spread=0, stragglers=0.05, slow=10, faults=0))
    assert slow.makespan_s > 600 + 60
    assert slow.busy < 1


def test_a_job_too_long_to_simulate_ends_once() -> None:
    rates = Rates(60, stragglers=0.02, slow=10, faults=0)
    whole, cut = (makespan(4000, 20, rates, most=m) for m in (4000, 1000))
    assert cut == pytest.approx(whole, rel=0.02)
    scaled = 4 * simulate(1000, 20, rates).makespan_s
    assert abs(cut - whole) < abs(scaled - whole)


def test_a_simulated_job_repeats_what_fails() -> None:
    found = simulate(1000, 20, Rates(10, faults=0.1, dead=0.01), retry=Retry(attempts=4, base_s=1))
    assert found.done + found.dead == 1000
    assert 3 <= found.dead <= 25
    assert 80 <= found.retries <= 180
    assert found == simulate(1000, 20, Rates(10, faults=0.1, dead=0.01), retry=Retry(attempts=4, base_s=1))
    with pytest.raises(SettingError, match="0 units"):
        simulate(0, 1, Rates(1))
