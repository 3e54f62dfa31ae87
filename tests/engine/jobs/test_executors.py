"""Where attempts run: what comes back when a worker dies, runs out of memory, or fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from job_toys import Toy, environment, toy_work
from terralapse.engine.jobs.executors import Processes, executor
from terralapse.engine.jobs.ledger import Ledger, State
from terralapse.engine.jobs.schedule import Retry, run_units
from terralapse.errors import SettingError

QUICK = Retry(attempts=3, base_s=0.001, most_s=0.01)


def go(folder: Path, units: list[Toy], kind: str, workers: int, **options: Any) -> tuple[Any, Any]:
    with (
        Ledger(folder / "job", "plan") as ledger,
        executor(kind, toy_work, workers=workers, **options) as runs,
    ):
        counts = run_units(units, runs, ledger, QUICK)
        return counts, dict(ledger.entries)


def test_ten_thousand_units_on_threads(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    units = [Toy(f"u{n:05d}", {"log": str(log), "fail": 2} if n % 100 == 0 else {}) for n in range(10_000)]
    counts, entries = go(tmp_path, units, "threads", 4)
    assert (counts.done, counts.dead, counts.retries) == (10_000, 0, 200)
    assert Counter(p.stat().st_size for p in log.iterdir()) == {3: 100}
    assert entries["u00001"].digest == "digest of u00001"
    assert counts.most_in_flight <= 6


def test_a_worker_that_dies_costs_no_other_unit_an_attempt(tmp_path: Path) -> None:
    plain = {"log": str(tmp_path)}
    units = [
        Toy("dies-once", plain | {"die": 1}),
        Toy("dies-always", plain | {"die": 99}),
        Toy("no-memory-twice", plain | {"memory": 2}),
        *(Toy(f"u{n}", plain) for n in range(6)),
    ]
    counts, entries = go(tmp_path, units, "processes", 2)
    assert (counts.done, counts.dead) == (8, 1)
    assert (entries["dies-always"].state, entries["dies-always"].failures) == (State.DEAD, 3)
    assert "signal 9" in entries["dies-always"].reason
    assert "memory" in entries["dies-always"].reason
    assert entries["dies-once"].failures == 1
    assert "MemoryError" in entries["no-memory-twice"].reason
    assert [(tmp_path / f"u{n}").stat().st_size for n in range(6)] == [1] * 6


def test_each_process_sees_one_card() -> None:
    runs = Processes(environment, 2, cards=(3, 5))
    try:
        for unit in ("a", "b"):
            runs.submit(unit, {})
        seen: dict[str, str | None] = {}
        while len(seen) < 2:
            seen |= {unit: outcome.digest for unit, outcome in runs.wait(None)}
    finally:
        runs.close()
    assert seen == {"a": "3", "b": "5"}


def test_no_such_executor() -> None:
    with pytest.raises(SettingError, match="Choose one of"), executor("fibres", toy_work):
        pass
    with pytest.raises(SettingError, match="not positive"), executor("threads", toy_work, workers=0):
        pass
