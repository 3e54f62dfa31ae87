"""A job on paper: the scheduler itself, with units that take drawn times and workers that fail.

Nothing waits: the clock jumps from one event to the next.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from terralapse.engine.jobs.ledger import Ledger
from terralapse.engine.jobs.schedule import Retry, run_units
from terralapse.engine.jobs.work import Outcome
from terralapse.errors import SettingError


@dataclass(frozen=True)
class Rates:
    """What a simulated unit is like.

    Attributes:
        seconds: the median time of an attempt.
        spread: sigma of its logarithm: 0 for equal times; 0.3 means that one in six takes a third longer.
        stragglers: the share of attempts that take `slow` times as long.
        slow: see there.
        faults: the share of attempts that fail and are worth a retry, drawn anew each time.
        dead: the share of units that fail whatever is done.
    """

    seconds: float
    spread: float = 0.3
    stragglers: float = 0.01
    slow: float = 5.0
    faults: float = 0.01
    dead: float = 0.0

    def __post_init__(self) -> None:
        for name in ("stragglers", "faults", "dead"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"{name} {getattr(self, name):g}", "is no share", "Give 0 to 1.")
        if self.seconds <= 0 or self.spread < 0 or self.slow < 1:
            raise SettingError("the rates of a simulation", "are out of range", "Give positive seconds.")


@dataclass(frozen=True)
class Simulated:
    """How it went: `makespan_s` from the first to the last event, `busy` the share of worker time in use."""

    makespan_s: float
    busy: float
    done: int
    dead: int
    retries: int


@dataclass(frozen=True)
class _Numbered:
    id: str

    def as_dict(self) -> Mapping[str, Any]:
        return {}


class _Paper:
    """An executor on a clock of its own."""

    def __init__(self, workers: int, rates: Rates, seed: int) -> None:
        self.slots = workers
        self.now = self.busy = 0.0
        self._rates, self._draw = rates, random.Random(seed)
        self._free = [0.0] * workers
        self._running: list[tuple[float, str, Outcome]] = []
        self._doomed: dict[str, bool] = {}

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        r, draw = self._rates, self._draw
        seconds = (
            r.seconds * draw.lognormvariate(0, r.spread) * (r.slow if draw.random() < r.stragglers else 1)
        )
        doomed = self._doomed.setdefault(unit, draw.random() < r.dead)
        failed = draw.random() < r.faults or doomed
        outcome = Outcome(reason="simulated") if failed else Outcome(digest=unit)
        start = max(self.now, heapq.heappop(self._free))
        heapq.heappush(self._free, start + seconds)
        heapq.heappush(self._running, (start + seconds, unit, outcome))
        self.busy += seconds

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        due = self._running[0][0]
        if timeout is not None and due > self.now + timeout:
            self.now += timeout
            return []
        self.now, unit, outcome = heapq.heappop(self._running)
        return [(unit, outcome)]

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def simulate(
    units: int, workers: int, rates: Rates, *, retry: Retry | None = None, seed: int = 0
) -> Simulated:
    """Runs so many units on so many workers, on paper.

    Raises:
        SettingError: a number is not positive.
    """
    if units < 1 or workers < 1:
        raise SettingError(f"{units} units on {workers} workers", "is nothing to plan", "Give 1 or more.")
    paper = _Paper(workers, rates, seed)
    retry = retry or Retry()
    with TemporaryDirectory() as folder, Ledger(Path(folder) / "job", "simulated") as ledger:
        counts = run_units(_numbered(units), paper, ledger, retry, clock=lambda: paper.now, sleep=paper.sleep)
    busy = paper.busy / (paper.now * workers) if paper.now else 0.0
    return Simulated(paper.now, busy, counts.done, counts.dead, counts.retries)


def makespan(
    units: int, workers: int, rates: Rates, *, retry: Retry | None = None, most: int = 20_000
) -> float:
    """Seconds that a job takes: its first `most` units with the end of the job are simulated, and the rest
    adds what it keeps all workers busy for."""
    count = min(units, most)
    found = simulate(count, workers, rates, retry=retry)
    return found.makespan_s * (1 + found.busy * (units - count) / count)


def _numbered(count: int) -> Iterator[_Numbered]:
    for number in range(count):
        yield _Numbered(f"u{number}")
