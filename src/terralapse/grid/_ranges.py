"""The bytes of remote files: fetched in ranges, many at once, each about once, kept within a budget.

A file is cut into chunks. Who needs bytes asks for ranges; chunks that are neither kept nor on their way are
fetched in as few requests as that takes, all at the same time, and what several threads want is fetched for
one of them. The chunks of all files share one budget; those that were not used for longest go first.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count as counter
from itertools import groupby

from terralapse.errors import TerralapseError, UnreadableFileError
from terralapse.grid import _http
from terralapse.grid._tiff import TiffLayout

CHUNK = 8192  # a block of a file costs at most two of these more than its bytes
HEAD = 4 * CHUNK  # the first request: the header of most cloud-optimised files
RUN = 128 * CHUNK  # 1 MiB: longer runs are fetched as several requests at the same time
BUDGET = 128 * 2**20  # kept of all files; a row of blocks of both dates of a Sentinel-2 scene fits
MAX_FILES = 1024  # that are remembered

Chunks = dict[int, bytes]
_SERIAL = counter()  # without a tag, two looks at an address may be two files


class RemoteFile:
    """One version of one file behind an address; random access to its bytes, from any thread.

    `size` in bytes; `ranged` is False where the server gives whole files only, and then no more than the
    first `HEAD` bytes can be read. A file that changes on the server while it is read is an error.
    """

    def __init__(self, url: str) -> None:
        """Fetches the first bytes.

        Raises:
            FileMissingError, UnreadableFileError: with the address and what the server said.
        """
        self.name = url
        try:
            answer = _http.get(url, 0, HEAD, most=HEAD)
        except _http.Unsatisfiable:  # some servers say so of an empty file
            answer = _http.Answer(b"", 0, 0, None, None, True)
        self.ranged = answer.ranged and answer.size is not None
        self.size = answer.size if answer.size is not None else len(answer.body)
        self.tag = answer.tag
        told = f"{url}\0{self.size}\0{self.tag}".encode()
        # The same in every process, so that a handle that is sent to another one finds the same version.
        self.stamp = int.from_bytes(hashlib.sha256(told).digest()[:7])
        self.serial = next(_SERIAL)
        self._head = answer.body
        self.layouts: list[TiffLayout] | None = None  # of a TIFF, as soon as somebody has read them
        self._held = threading.local()

    def at(self, offset: int, count: int, ahead: int = 0) -> bytes:
        """At most `count` bytes from `offset`; fewer at the end of the file.

        Args:
            offset, count: in bytes.
            ahead: when something must be fetched, so many bytes beyond are fetched with it.

        Raises:
            FileMissingError, UnreadableFileError: the server does not give them, or those of a newer version.
        """
        end = min(offset + count, self.size)
        if end <= offset:
            return b""
        if end <= len(self._head):
            return self._head[offset:end]
        first, last = offset // CHUNK, (end - 1) // CHUNK
        held: Chunks = getattr(self._held, "chunks", {})
        found = {n: held[n] for n in range(first, last + 1) if n in held}
        if len(found) <= last - first:
            until = max(last, (min(end + ahead, self.size) - 1) // CHUNK) if ahead else last
            found |= self._need(n for n in range(first, until + 1) if n not in found)
        joined = b"".join(found[n] for n in range(first, last + 1))
        return joined[offset - first * CHUNK : end - first * CHUNK]

    @contextmanager
    def held(self, ranges: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Fetches ranges (first byte, one past the last), all at the same time, and keeps them at hand for
        this thread while the block runs, whatever the budget.

        Raises:
            FileMissingError, UnreadableFileError: as `at`.
        """
        chunks = {
            n
            for start, end in ranges
            for n in range(max(0, start) // CHUNK, -(-min(end, self.size) // CHUNK))
        }
        before = getattr(self._held, "chunks", {})
        self._held.chunks = before | self._need(chunks - before.keys())
        try:
            yield
        finally:
            self._held.chunks = before

    def _need(self, chunks: Iterable[int]) -> Chunks:
        """Chunks by their numbers, from the store or the server."""
        wanted = sorted(chunks)
        first = {n: self._head[n * CHUNK : (n + 1) * CHUNK] for n in wanted if self._in_head(n)}
        found, coming, missing = _STORE.look(self, [n for n in wanted if n not in first])
        found |= first
        if len(missing) == 1:
            self._run(*missing[0])  # without a way through another thread
        else:
            for run, future in missing:
                _STORE.pool().submit(self._run, run, future)
        errors: list[BaseException] = []
        for n, future in coming.items():
            error = future.exception()
            if error is None:
                found[n] = future.result()[n]
            else:
                errors.append(error)
        if errors:
            raise errors[0]
        return found

    def _in_head(self, chunk: int) -> bool:
        return min((chunk + 1) * CHUNK, self.size) <= len(self._head)

    def _run(self, run: range, future: Future[Chunks]) -> None:
        """Fetches consecutive chunks for everybody who waits for them."""
        try:
            raw = self._fetch(run.start * CHUNK, min(run.stop * CHUNK, self.size))
        except BaseException as e:
            _STORE.fail(self, run, future, e)
            return
        _STORE.put(self, {n: raw[i * CHUNK : (i + 1) * CHUNK] for i, n in enumerate(run)}, future)

    def _fetch(self, start: int, end: int) -> bytes:
        if not self.ranged:
            raise self.rangeless()
        try:
            answer = _http.get(self.name, start, end, most=end - start)
        except _http.Unsatisfiable as e:
            raise self._changed() from e
        if answer.ranged and (answer.size != self.size or answer.tag != self.tag):
            raise self._changed()
        if not answer.ranged:
            raise self.rangeless()
        if answer.first != start or len(answer.body) != end - start:
            raise UnreadableFileError(
                self.name,
                f"the server gave {len(answer.body):,} bytes from {answer.first:,} "
                f"instead of {end - start:,} from {start:,}",
                "Download the file and give its path.",
            )
        return answer.body

    def rangeless(self) -> TerralapseError:
        """What to say of a server that gives whole files only."""
        fault = "the server gives only the whole file, not parts of it (it ignores Range requests)"
        return UnreadableFileError(self.name, fault, "Download the file and give its path.")

    def _changed(self) -> TerralapseError:
        fault = "changed on the server while it was read"
        return UnreadableFileError(self.name, fault, "Run again when it is no longer written to.")


# --- what is kept ----------------------------------------------------------------------------------
_Key = tuple[int, int]  # the serial number of a file, and the number of a chunk


class _Store:
    """Chunks of all files within the budget, and those on their way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()
        self._coming: dict[_Key, Future[Chunks]] = {}
        self._bytes = 0
        self._pool: ThreadPoolExecutor | None = None

    def pool(self) -> ThreadPoolExecutor:
        """The threads that fetch; they wait for nothing but the network."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_http.CONNECTIONS, thread_name_prefix="fetch")
            return self._pool

    def look(
        self, file: RemoteFile, chunks: list[int]
    ) -> tuple[Chunks, dict[int, Future[Chunks]], list[tuple[range, Future[Chunks]]]]:
        """What is kept, what comes (also for others), and the runs that the caller must fetch."""
        found: Chunks = {}
        coming: dict[int, Future[Chunks]] = {}
        missing: list[int] = []
        with self._lock:
            for n in chunks:
                key = (file.serial, n)
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[n] = self._kept[key]
                elif key in self._coming:
                    coming[n] = self._coming[key]
                else:
                    missing.append(n)
            mine: list[tuple[range, Future[Chunks]]] = []
            for run in _runs(missing):
                future: Future[Chunks] = Future()
                mine.append((run, future))
                for n in run:
                    coming[n] = self._coming[file.serial, n] = future
        return found, coming, mine

    def put(self, file: RemoteFile, chunks: Chunks, future: Future[Chunks]) -> None:
        """Chunks that have come."""
        with self._lock:
            for n, raw in chunks.items():
                del self._coming[file.serial, n]
                self._kept[file.serial, n] = raw
                self._bytes += len(raw)
            while self._bytes > BUDGET:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        future.set_result(chunks)

    def fail(self, file: RemoteFile, run: range, future: Future[Chunks], error: BaseException) -> None:
        """A run that did not come; who asks again tries again."""
        with self._lock:
            for n in run:
                del self._coming[file.serial, n]
        future.set_exception(error)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            return self._bytes

    def clear(self) -> None:
        """Forgets what is kept."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0


def _runs(chunks: list[int]) -> Iterator[range]:
    """Consecutive numbers as ranges of at most `RUN` bytes."""
    for _, group in groupby(enumerate(chunks), key=lambda pair: pair[1] - pair[0]):
        numbers = [n for _, n in group]
        start, stop, step = numbers[0], numbers[-1] + 1, RUN // CHUNK
        yield from (range(at, min(at + step, stop)) for at in range(start, stop, step))


# --- which files -----------------------------------------------------------------------------------
_STORE = _Store()
_FILES: OrderedDict[str, RemoteFile] = OrderedDict()
_FILES_LOCK = threading.Lock()


def look_at(url: str) -> RemoteFile:
    """The file behind an address as it is now: one request.

    Raises:
        FileMissingError, UnreadableFileError: with the address and what the server said.
    """
    new = RemoteFile(url)
    with _FILES_LOCK:
        old = _FILES.get(url)
        # Without a tag nothing says that it is still the same file.
        found = old if old is not None and old.stamp == new.stamp and new.tag is not None else new
        _FILES[url] = found
        _FILES.move_to_end(url)
        while len(_FILES) > MAX_FILES:
            _FILES.popitem(last=False)
    return found


def file_of(url: str, stamp: int) -> RemoteFile:
    """The file that `look_at` saw, by its address and stamp, without a request where this process knows it.

    Raises:
        FileMissingError, UnreadableFileError: it is gone, or another version is there now.
    """
    with _FILES_LOCK:
        found = _FILES.get(url)
    if found is None:
        found = look_at(url)
    if found.stamp != stamp:
        fault = "changed on the server since it was opened"
        raise UnreadableFileError(url, fault, "Run again when it is no longer written to.")
    return found


def _forget() -> None:
    """A forked child has none of its parent's threads, and its locks may be held by them."""
    global _STORE, _FILES_LOCK
    _STORE, _FILES_LOCK = _Store(), threading.Lock()
    _FILES.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
