"""Attempts on a Dask cluster: one of this machine, or whatever stands behind the address of a scheduler.

Dask moves the work and finds dead workers; all state of the job is in its ledger. A scheduler that goes away
takes nothing with it: attempts that it held end as lost, and the client connects again for as long as the
scheduler may need to come back.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Mapping
from typing import Any

from terralapse.engine.jobs.executors import drain
from terralapse.engine.jobs.work import Outcome, Work, attempt
from terralapse.errors import MissingExtraError, SettingError

_CONNECT_S = 30
_POLL_S = 1.0


class Cluster:
    """A Dask cluster. Each worker should have one thread, for the network has its own.

    Args:
        work: found by name on each worker, where terralapse is installed.
        workers: of a cluster on this machine; not used with an address.
        address: of a scheduler, or None for a cluster on this machine.
        cards: of CUDA for the workers of this machine, one each in turn. Workers at an address are pinned
            where they are started.
        patience_s: how long a scheduler may stay away.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        SettingError: no scheduler answers at the address.
    """

    def __init__(
        self,
        work: Work,
        *,
        workers: int = 1,
        address: str | None = None,
        cards: tuple[int, ...] = (),
        patience_s: float = 600,
    ) -> None:
        try:
            import distributed
        except ImportError as error:
            raise MissingExtraError(
                "--cluster", "needs dask.distributed", "Install it with pip install 'terralapse[scale]'."
            ) from error
        if address is not None and cards:
            raise SettingError(
                "--gpus", "has no effect on workers of another cluster", "Pin them where they are started."
            )
        self._work, self._patience = work, patience_s
        self._own: Any = None
        if address is None:
            self._own = _local(distributed, workers, cards)
            address = str(self._own.scheduler_address)
        self._address = address
        self._ended: queue.SimpleQueue[tuple[int, str, Outcome]] = queue.SimpleQueue()
        self._flying: dict[str, int] = {}
        self._number = 0
        try:
            self._client = self._connect(_CONNECT_S)
        except OSError as error:
            raise SettingError(
                f"--cluster {address}", f"no scheduler answers ({error})", "Check the address and start it."
            ) from error

    @property
    def slots(self) -> int:
        """Threads of all workers that are there now."""
        try:
            return max(1, sum(self._client.nthreads().values()))
        except (OSError, ValueError, RuntimeError, AttributeError):
            return 1  # the scheduler is away

    def submit(self, unit: str, payload: Mapping[str, Any]) -> None:
        """Starts an attempt; where the scheduler is away, it is lost at once and tried again later."""
        self._number += 1
        number = self._flying[unit] = self._number
        try:
            self._client = self._alive()
            future = self._client.submit(
                attempt,
                self._work,
                dict(payload),
                key=f"{unit}-{os.getpid()}-{number}",
                pure=False,
                retries=0,
            )
        except (OSError, RuntimeError) as error:
            self._ended.put((number, unit, Outcome(reason=f"scheduler lost: {error}")))
            return
        future.add_done_callback(lambda f: self._ended.put((number, unit, _outcome(f))))

    def wait(self, timeout: float | None) -> list[tuple[str, Outcome]]:
        """Attempts that have ended."""
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            step = _POLL_S if until is None else min(_POLL_S, max(0.0, until - time.monotonic()))
            ended = [
                (unit, outcome)
                for number, unit, outcome in drain(self._ended, step)
                if self._flying.get(unit) == number
            ]
            if not ended and self._gone():
                ended = [(unit, Outcome(reason="scheduler lost")) for unit in self._flying]
            for unit, _ in ended:
                del self._flying[unit]
            if ended or (until is not None and time.monotonic() >= until):
                return ended

    def close(self) -> None:
        """Leaves the cluster; ends it when it is of this machine."""
        self._client.close(timeout=5)
        if self._own is not None:
            self._own.close(timeout=30)

    def _gone(self) -> bool:
        return self._client.status in ("closed", "closing")

    def _alive(self) -> Any:
        return self._connect(self._patience) if self._gone() else self._client

    def _connect(self, patience: float) -> Any:
        """A client, as soon as a scheduler answers."""
        from distributed import Client

        until = time.monotonic() + patience
        while True:
            try:
                return Client(self._address, timeout=5, set_as_default=False)
            except OSError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_POLL_S)


def _outcome(future: Any) -> Outcome:
    """How an attempt ended, as its future tells it."""
    if future.status == "finished":
        return future.result()
    if future.status == "cancelled":
        return Outcome(reason="scheduler lost: it forgot the attempt")
    error = future.exception()
    return Outcome(reason=f"worker lost: {type(error).__name__}: {error}"[:600])


def _local(distributed: Any, workers: int, cards: tuple[int, ...]) -> Any:
    """A cluster of this machine: a process a worker, one thread each, and one card each where asked."""
    pinned = [{"CUDA_VISIBLE_DEVICES": str(cards[k % len(cards)])} if cards else {} for k in range(workers)]
    spec = {
        k: {"cls": distributed.Nanny, "options": {"nthreads": 1, "env": env, "host": "127.0.0.1"}}
        for k, env in enumerate(pinned)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False},
    }
    return distributed.SpecCluster(workers=spec, scheduler=scheduler, silence_logs=40)
