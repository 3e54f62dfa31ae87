"""Which unit runs next: a bounded number at a time, retried with back-off, given up after some attempts.

The loop knows nothing of what a unit does nor where it runs. Time comes from a clock that is handed in and
only decides when a unit is tried again, so that a simulator runs this very code, and a wall clock that jumps
changes nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from terralapse.engine.jobs.ledger import Ledger, State
from terralapse.engine.jobs.work import Outcome
from terralapse.errors import SettingError


class Task(Protocol):
    """What the scheduler needs of a unit."""

    @property
    def id(self) -> str:
        """Its identifier."""
        ...

    def as_dict(self) -> Mapping[str, Any]:
        """The unit as plain data, for the worker."""
        ...


class Executor(Protocol):
    """Where attempts run. See `terralapse.engine.jobs.executors`."""

    @property
    def slots(self) -> int:
        """How many attempts run at once now; never less than 1."""
        ...

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        """Starts an attempt."""
        ...

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        """Attempts that have ended, at least one unless `timeout` seconds pass first."""
        ...


@dataclass(frozen=True)
class Retry:
    """How a failed unit is tried again.

    Attributes:
        attempts: in all; after so many failures a unit is given up.
        base_s, most_s: the delay before the second attempt and the longest; it doubles in between, and half
            of it is drawn by `seed`, the unit and the attempt, so that units that failed together do not come
            back together.
        seed: of the draw.
    """

    attempts: int = 3
    base_s: float = 2.0
    most_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise SettingError(f"retry.attempts {self.attempts}", "is not positive", "Give 1 or more.")
        if not 0 <= self.base_s <= self.most_s:
            raise SettingError(
                f"retry.base_s {self.base_s:g}", "is not from 0 to retry.most_s", "Give seconds, e.g. 2."
            )

    def delay(self, unit: str, failures: int) -> float:
        """Seconds to wait after the `failures`-th failure of a unit."""
        full = min(self.most_s, self.base_s * 2 ** min(failures - 1, 60))
        drawn = hashlib.sha256(f"{self.seed}/{unit}/{failures}".encode()).digest()[:8]
        return full * (0.5 + 0.5 * int.from_bytes(drawn) / 2**64)


@dataclass
class Progress:
    """Counts of a job while it runs."""

    total: int = 0
    done: int = 0
    dead: int = 0
    retries: int = 0
    most_in_flight: int = 0


def run_units(
    units: Iterable[Task],
    executor: Executor,
    ledger: Ledger,
    retry: Retry,
    *,
    in_flight: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    tell: Callable[[Progress], None] | None = None,
) -> Progress:
    """Runs all units that the ledger does not know as done or dead.

    Args:
        units: read one by one as there is room, so that millions of them cost no memory.
        executor: where attempts run.
        ledger: is told of everything before the next decision.
        retry: how failures are tried again.
        in_flight: at most so many attempts at once, waiting ones of the executor included; None for two more
            than it has slots. This is what keeps the memory of the workers and of the scheduler flat.
        clock, sleep: seconds of a clock that never goes back.
        tell: called after each change.

    Returns:
        The counts, units that were done before included.
    """
    counts = Progress()
    flying: dict[str, Task] = {}
    waiting: list[tuple[float, int, Task]] = []  # by when they are due
    fresh = _to_do(units, ledger, counts)
    order = 0
    exhausted = False
    while True:
        limit = in_flight or executor.slots + 2
        while len(flying) < limit:
            unit = _due(waiting, clock())
            if unit is None and not exhausted:
                unit = next(fresh, None)
                exhausted = unit is None
            if unit is None:
                break
            ledger.running(unit.id)
            flying[unit.id] = unit
            counts.most_in_flight = max(counts.most_in_flight, len(flying))
            executor.submit(unit.id, unit.as_dict())
        if not flying and not waiting:
            return counts
        pause = max(0.0, waiting[0][0] - clock()) if waiting else None
        if not flying:
            sleep(pause or 0.0)
            continue
        for name, outcome in executor.wait(pause if len(flying) < limit else None):
            unit = flying.pop(name)
            if outcome.digest is not None:
                ledger.done(name, outcome.digest)
                counts.done += 1
            elif outcome.lasting or ledger.entry(name).failures + 1 >= retry.attempts:
                ledger.dead(name, outcome.reason)
                counts.dead += 1
            else:
                ledger.failed(name, outcome.reason)
                counts.retries += 1
                order += 1
                due = clock() + retry.delay(name, ledger.entry(name).failures)
                heapq.heappush(waiting, (due, order, unit))
            if tell is not None:
                tell(counts)


def _to_do(units: Iterable[Task], ledger: Ledger, counts: Progress) -> Iterator[Task]:
    for unit in units:
        counts.total += 1
        state = ledger.entry(unit.id).state
        if state is State.DONE:
            counts.done += 1
        elif state is State.DEAD:
            counts.dead += 1
        else:
            yield unit


def _due(waiting: list[tuple[float, int, Task]], now: float) -> Task | None:
    return heapq.heappop(waiting)[2] if waiting and waiting[0][0] <= now else None
