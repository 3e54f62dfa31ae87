"""Threads that compute tiles side by side, each with a core of its own.

Several threads on one tile gain little for a small network: they wait for each other at the end of every
layer, and wait long when another thread or another process has taken a core. Tiles need not wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from terralapse.engine.memory import on_main_heap

_TRIES = 64  # threads that are turned away before any will do

_Work = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class Crew:
    """`count` threads that take work in order; a context manager.

    Only glibc's main heap can keep blocks of any size (see `memory.big_blocks_stay`), and a thread cannot
    choose its heap. So threads are started until enough of them have come to be on it.
    """

    def __init__(self, count: int) -> None:
        self._work: _Work = queue.SimpleQueue()
        self._hired: list[_Candidate] = []
        turned_away: list[_Candidate] = []  # they stay until the end, or the next one would get their heap
        while len(self._hired) < count:
            candidate = _Candidate(self._work)
            fits = candidate.fits or len(turned_away) >= _TRIES
            (self._hired if fits else turned_away).append(candidate)
        for candidate in self._hired:
            candidate.hired.put(True)
        for candidate in turned_away:
            candidate.hired.put(False)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Hands over work; its result or its error is in the future."""
        future: Future[Any] = Future()
        self._work.put((future, call))
        return future

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        """Drops what has not begun, and waits for what has."""
        while True:
            try:
                item = self._work.get_nowait()
            except queue.Empty:
                break
            if item is not None:
                item[0].cancel()
        for _thread in self._hired:
            self._work.put(None)
        for thread in self._hired:
            thread.join()


class _Candidate(threading.Thread):
    """A thread that says which heap it is on, and works if it is hired."""

    def __init__(self, work: _Work) -> None:
        super().__init__(name="tile", daemon=True)
        self._work = work
        self._heap: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.hired: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.start()
        self.fits = self._heap.get()

    def run(self) -> None:
        self._heap.put(on_main_heap())
        if not self.hired.get():
            return
        while (item := self._work.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del item, future, call  # the arrays in them must not wait for the next tile
