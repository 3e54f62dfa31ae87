"""Analyses beside the workers of a Dask cluster: `terralapse serve --dask tcp://host:8786`.

Each runs in a process of its own under a worker, because GDAL and the network are restricted for a whole
process. A worker looks at the state of its own task: when the server cancels it, or goes away, the scheduler
takes the task back and the process is ended. Workers need terralapse and the same folders, at the same paths.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from terralapse.errors import MissingExtraError, SettingError
from terralapse.serve.attempts import Attempt, Ending, Process, Told

_CONNECT_S = 30
_OFTEN = 0.2  # seconds between two notes of progress
_LOOK = 0.5  # seconds between two looks whether somebody still wants a task
_COUNT = 1.0  # seconds for which a count of the workers is good
_POLL = 1.0  # seconds between two looks whether a worker is still there


class OnDask:
    """Attempts under the workers of a cluster, one a worker.

    Args:
        address: of the scheduler.
        command: what starts a worker; tests give another.

    Raises:
        MissingExtraError: dask.distributed is not installed.
        SettingError: no scheduler answers at the address.
    """

    def __init__(self, address: str, command: tuple[str, ...] = ()) -> None:
        try:
            import distributed
        except ImportError as error:
            raise MissingExtraError(
                "--dask", "needs dask.distributed", "Install it with pip install 'terralapse[scale]'."
            ) from error
        self._address, self._command = address, command
        self._topic = f"terralapse-{secrets.token_hex(6)}"
        self._listening: dict[str, queue.SimpleQueue[dict[str, Any]]] = {}
        self._placed: dict[str, str] = {}  # the worker of each attempt that has not ended
        self._lock = threading.Lock()
        self._counted = (-_COUNT, frozenset[str]())
        try:
            self._client: Any = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"--dask {address}", f"no scheduler answers ({error})", "Check the address and start it."
            ) from error
        self._client.subscribe_topic(self._topic, self._heard)

    @property
    def slots(self) -> int:
        """The workers that are there now; 0 while the scheduler is away."""
        return len(self.workers())

    def workers(self) -> frozenset[str]:
        """The addresses of the workers that are there now."""
        with self._lock:
            if time.monotonic() - self._counted[0] > _COUNT:
                self._counted = (time.monotonic(), self._count())
            return self._counted[1]

    def _count(self) -> frozenset[str]:
        try:
            if self._client.status in ("closed", "closing"):
                self._again()
            return frozenset(self._client.nthreads())
        except (OSError, ValueError, RuntimeError, AttributeError):
            return frozenset()  # the scheduler is away

    def _again(self) -> None:
        """Another client, for one that has lost its scheduler stays closed."""
        from distributed import Client

        self._client = Client(self._address, timeout=1, set_as_default=False)
        self._client.subscribe_topic(self._topic, self._heard)

    def start(self, task: Mapping[str, Any]) -> Attempt:
        """An attempt under the worker that has least to do.

        Raises:
            OSError: there is no worker, or no scheduler.
        """
        try:
            busy = self._client.processing()
        except (RuntimeError, ValueError, AttributeError) as error:
            raise OSError("the scheduler is away") from error
        if not busy:
            raise OSError("no worker is there")
        name = secrets.token_hex(8)
        with self._lock:
            # The scheduler may not have heard of the attempt before this one, so that ours are counted here.
            load = {w: {str(k) for k in keys} | self._keys(w) for w, keys in busy.items()}
            worker = min(load, key=lambda w: (len(load[w]), w))
            self._placed[name] = worker
        news: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._listening[name] = news
        # Pinned: where its worker dies, the queue of the server decides what becomes of it, not Dask.
        try:
            future = self._client.submit(
                carry_out,
                dict(task),
                self._command,
                self._topic,
                name,
                key=_key(name),
                workers=[worker],
                allow_other_workers=False,
                pure=False,
                retries=0,
            )
        except (RuntimeError, ValueError, AttributeError) as error:
            self.forget(name)
            raise OSError("the scheduler is away") from error
        return _Afar(self, future, worker, name, news)

    def forget(self, name: str) -> None:
        """Hears no more of an attempt."""
        self._listening.pop(name, None)
        with self._lock:
            self._placed.pop(name, None)

    def _keys(self, worker: str) -> set[str]:
        return {_key(name) for name, at in self._placed.items() if at == worker}

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        news = self._listening.get(event[1].get("name", ""))
        if news is not None:
            news.put(event[1])

    def close(self) -> None:
        """Leaves the cluster."""
        self._client.close(timeout=5)


class _Afar:
    """An attempt under a worker."""

    def __init__(
        self, runner: OnDask, future: Any, worker: str, name: str, news: queue.SimpleQueue[dict[str, Any]]
    ) -> None:
        self._runner, self._future, self._worker, self._name, self._news = runner, future, worker, name, news
        self._ended = threading.Event()
        future.add_done_callback(lambda _: news.put({"ended": True}))

    def follow(self, told: Told) -> Ending:
        """Waits for the end, and tells how far it is; lost where the worker or the scheduler goes."""
        looked = time.monotonic()
        try:
            while not self._ended.is_set() and not self._future.done():
                try:
                    news = self._news.get(timeout=_POLL)
                except queue.Empty:
                    news = {}
                if "stage" in news:
                    told(news["stage"], news["share"])
                if time.monotonic() - looked > _POLL:
                    looked = time.monotonic()
                    if self._worker not in self._runner.workers():
                        break
            if not self._ended.is_set() and self._future.status == "finished":
                return Ending(*self._future.result(timeout=_CONNECT_S))
            if not self._ended.is_set() and self._future.status == "error":
                error = self._future.exception(timeout=_CONNECT_S)
                if type(error).__name__ != "KilledWorker":
                    return Ending("failed", f"The analysis ended with {type(error).__name__}: {error}"[:600])
            return Ending("lost")
        except (OSError, TimeoutError):
            return Ending("lost")  # the worker went with its answer
        finally:
            self._release()

    def end(self) -> None:
        """Takes the task back; its worker ends the process when it sees that."""
        self._ended.set()
        self._release()
        self._news.put({"ended": True})

    def _release(self) -> None:
        self._runner.forget(self._name)
        try:
            if not self._future.done():
                self._future.cancel()
        except (OSError, RuntimeError, TimeoutError):
            return  # the scheduler is away and has forgotten it anyway


def _key(name: str) -> str:
    """What Dask calls an attempt."""
    return f"terralapse-{name}"


def carry_out(task: dict[str, Any], command: tuple[str, ...], topic: str, name: str) -> tuple[str, str]:
    """On a worker: an attempt in a process of its own, ended when nobody wants the task any more."""
    from distributed import get_worker

    worker = get_worker()
    key = _key(name)
    process = Process(task, command)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK):
            known = worker.state.tasks.get(key)
            if known is None or known.state != "executing":
                process.end()
                return

    threading.Thread(target=watch, name="terralapse-watch", daemon=True).start()
    last = 0.0

    def told(stage: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last > _OFTEN:
            last = time.monotonic()
            worker.log_event(topic, {"name": name, "stage": stage, "share": share})

    try:
        ending = process.follow(told)
    finally:
        over.set()
    return ending.how, ending.message
