"""Where attempts run: threads, processes of this machine, or a Dask cluster, behind one interface.

An executor starts attempts and hands back how they ended. A worker that dies ends its attempt with an outcome
that is worth a retry and names how it died; no other attempt suffers.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context
from typing import TYPE_CHECKING, Any, TypeVar

from terralapse.engine.jobs.work import Outcome, Work, attempt
from terralapse.errors import SettingError

if TYPE_CHECKING:
    from terralapse.engine.jobs.schedule import Executor

T = TypeVar("T")
KINDS = ("processes", "threads", "cluster")


class Threads:
    """Attempts in threads of this process; for work that waits more than it computes."""

    def __init__(self, work: Work, count: int) -> None:
        self.slots = count
        self._work = work
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="unit")
        self._ended: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        """Starts an attempt."""

        def ended(future: Future[Outcome]) -> None:
            self._ended.put((unit, future.result()))

        self._pool.submit(attempt, self._work, payload).add_done_callback(ended)

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        """Attempts that have ended."""
        return drain(self._ended, timeout)

    def close(self) -> None:
        """Waits for what runs; starts nothing more."""
        self._pool.shutdown(cancel_futures=True)


class Processes:
    """Attempts in processes of their own, one at a time each.

    A process that dies (killed by the system for memory, by a fault in a library, by a person) is replaced,
    and its attempt ends with the signal as the reason.

    Args:
        work: found by name in each process.
        count: of processes.
        cards: of CUDA, by number; process k sees card `cards[k % len(cards)]` and no other. Empty leaves what
            they see alone.
    """

    def __init__(self, work: Work, count: int, cards: tuple[int, ...] = ()) -> None:
        self.slots = count
        self._work, self._cards = work, cards
        self._context = get_context("spawn")  # a fork of a process with threads may hang
        self._backlog: list[tuple[str, Mapping[str, Any]]] = []
        self._workers = [self._start(k) for k in range(count)]

    def _start(self, number: int) -> _Worker:
        card = self._cards[number % len(self._cards)] if self._cards else None
        return _Worker(self._context, self._work, number, card)

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        """Starts an attempt, or keeps it until a process is free."""
        self._backlog.append((unit, payload))
        self._feed()

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        """Attempts that have ended."""
        busy = {w.pipe: w for w in self._workers if w.unit is not None}
        ended = []
        for pipe in connection.wait(list(busy), timeout):
            worker = busy[pipe]  # type: ignore[index]
            unit = worker.unit
            assert unit is not None
            outcome = worker.result()
            if outcome is None:
                outcome = Outcome(reason=worker.how_it_died())
                self._workers[worker.number] = self._start(worker.number)
            ended.append((unit, outcome))
        self._feed()
        return ended

    def _feed(self) -> None:
        for number, worker in enumerate(self._workers):
            if not self._backlog:
                return
            if worker.unit is not None:
                continue
            if not worker.alive():
                worker = self._workers[number] = self._start(number)
            worker.give(*self._backlog.pop(0))

    def close(self) -> None:
        """Ends all processes, those at work too."""
        for worker in self._workers:
            worker.stop()


class _Worker:
    """One process and the pipe to it; a process that dies closes its end."""

    def __init__(self, context: Any, work: Work, number: int, card: int | None) -> None:
        self.number = number
        self.unit: str | None = None
        self.pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, work, card), name=f"unit-{number}", daemon=True
        )
        self._process.start()
        other.close()

    def alive(self) -> bool:
        return self._process.is_alive()

    def give(self, unit: str, payload: Mapping[str, Any]) -> None:
        self.unit = unit
        try:
            self.pipe.send(payload)
        except OSError:
            return  # it died just now: `wait` finds the pipe at its end

    def result(self) -> Outcome | None:
        """What the process sent; None when it died instead."""
        self.unit = None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def how_it_died(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        if code < 0:
            return f"worker lost: killed by signal {-code} (9 is what the system sends when memory is short)"
        return f"worker lost: ended with code {code}"

    def stop(self) -> None:
        self.pipe.close()
        if self.unit is not None:
            self._process.kill()
        self._process.join()


def _serve(pipe: Any, work: Work, card: int | None) -> None:
    """The life of a process: attempts until the pipe is closed."""
    if card is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(card)  # before anything imports torch
    while True:
        try:
            payload = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        pipe.send(attempt(work, payload))


def drain(ended: queue.SimpleQueue[T], timeout: float | None) -> list[T]:
    """What has ended, at least one unless the time is over first."""
    try:
        found = [ended.get(timeout=timeout)]
    except queue.Empty:
        return []
    while not ended.empty():
        found.append(ended.get())
    return found


@contextmanager
def executor(
    kind: str,
    work: Work,
    *,
    workers: int = 1,
    address: str | None = None,
    cards: tuple[int, ...] = (),
) -> Iterator[Executor]:
    """An executor that is closed at the end.

    Args:
        kind: `processes`, `threads`, or `cluster` (Dask: one of this machine, or the one at `address`).
        work: what an attempt does.
        workers: how many, but for a cluster at an address, which has its own.
        address: of a Dask scheduler, e.g. tcp://host:8786.
        cards: of CUDA, one a worker in turn.

    Raises:
        SettingError: no such kind, or no scheduler answers at the address.
        MissingExtraError: Dask is not installed.
    """
    if workers < 1:
        raise SettingError(f"workers {workers}", "is not positive", "Give 1 or more.")
    if kind == "threads":
        opened: Any = Threads(work, workers)
    elif kind == "processes":
        opened = Processes(work, workers, cards)
    elif kind == "cluster":
        from terralapse.engine.jobs.cluster import Cluster

        opened = Cluster(work, workers=workers, address=address, cards=cards)
    else:
        raise SettingError(f"executor {kind!r}", "is not known", f"Choose one of {', '.join(KINDS)}.")
    try:
        yield opened
    finally:
        opened.close()
