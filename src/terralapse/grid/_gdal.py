"""GDAL in one place: its settings, one handle a thread, and its errors in our words.

GDAL datasets are not thread-safe, so every thread that reads has its own handles. They are kept open,
up to a limit, because opening is what costs on remote files and on large archives.

Remote files are opened through rasterio's openers, which keep what is open in context variables: a file must
be closed in the context in which it was opened, and not by the garbage collector of another thread. So all of
them are opened and closed in one context, are held until they are closed, and pass on to the next thread
when theirs ends.
"""

from __future__ import annotations

import atexit
import contextvars
import os
import re
import threading
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError  # some calls let GDAL's own error through
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from terralapse.errors import FileMissingError, TerralapseError, TruncatedFileError, UnreadableFileError
from terralapse.grid import _remote
from terralapse.grid._ranges import file_of

MAX_OPEN = 48  # handles a thread: 16 threads stay below the usual limit of 1,024 files
GDAL_ERRORS = (RasterioError, CPLE_BaseError)
_OPENED_AS = re.compile(rf"\S*{_remote.Opener.NAME}")  # a remote file, to GDAL

_SETTINGS: dict[str, Any] = {
    "GDAL_CACHEMAX": 256,  # MiB of decoded blocks in the process; reads are planned to need each block once
    # GDAL's own decoding threads lose the error of a broken JPEG 2000 block; reads run in several threads.
    "GDAL_NUM_THREADS": "1",
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",
    "GDAL_PAM_ENABLED": "YES",
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "GDAL_MAX_DATASET_POOL_SIZE": 64,
    "GDAL_MAX_BAND_COUNT": 4096,
    "VSI_CACHE": "FALSE",  # it would hold up to 16 MiB of each open file; the system caches those of a disk
}
# Side files (.msk, .ovr, .aux.xml, world files) are looked for beside local files only.
_REMOTE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


@contextmanager
def gdal_env(*, remote: bool = False, **options: Any) -> Iterator[None]:
    """The settings under which the whole project uses GDAL; cheap, and needed in every thread.

    Args:
        remote: for files behind http(s): no listing of the folder.
        options: GDAL configuration options that are added or win.
    """
    with rasterio.Env(**{**_SETTINGS, **(_REMOTE if remote else {}), **options}):
        yield


@dataclass(frozen=True)
class Handle:
    """What to open: a GDAL path or an address with its driver, perhaps one of its overviews (by number),
    perhaps warped.

    `gcps` is the WKT of the CRS into which ground control points put the file; it is then seen through a warp
    to a north-up grid that GDAL chooses, with an alpha band added. `stamp` is when the file was written, or
    which version a server gave, so that a file that was replaced is opened anew.
    """

    path: str
    driver: str
    overview: int | None = None
    gcps: str | None = None
    stamp: int = 0

    @property
    def remote(self) -> bool:
        """Whether reading goes over the network."""
        return _remote.is_url(self.path)


class _Mine:
    """The open datasets of one thread; when the thread ends, its remote ones go to the next."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[Handle, Any] = OrderedDict()
        self.remote: dict[Handle, Any] = {}

    def __del__(self) -> None:
        for handle, found in self.remote.items():
            if not found.closed and self.pid == os.getpid():
                _IDLE.setdefault(handle, deque()).append(found)


class _Local(threading.local):
    def __init__(self) -> None:
        self.mine = _Mine()


_LOCAL = _Local()
_ALL: dict[Handle, weakref.WeakSet[Any]] = {}
_IDLE: dict[Handle, deque[Any]] = {}  # remote ones whose thread has ended
_REMOTE_OPEN: dict[int, tuple[Any, ...]] = {}  # by id: a dataset and what it reads from
_REMOTE_CONTEXT = contextvars.copy_context()
_LOCK = threading.Lock()
_CONTEXT_LOCK = threading.RLock()  # a context can be entered once at a time


def dataset(handle: Handle) -> Any:
    """This thread's open rasterio dataset for `handle`; call it and use it inside `gdal_env`.

    Raises:
        FileMissingError, UnreadableFileError: it cannot be opened.
    """
    if os.getpid() != _LOCAL.mine.pid:  # a forked child must not share file positions with its parent
        _LOCAL.mine = _Mine()
    mine = _LOCAL.mine.open
    found = mine.get(handle)
    if found is not None and not found.closed:
        mine.move_to_end(handle)
        return found
    found = mine[handle] = _idle(handle) or _open(handle)
    if handle.remote:
        _LOCAL.mine.remote[handle] = found
    with _LOCK:
        _ALL.setdefault(handle, weakref.WeakSet()).add(found)
    while len(mine) > MAX_OPEN:
        old, unused = mine.popitem(last=False)
        _LOCAL.mine.remote.pop(old, None)
        _shut(unused)
    return found


@contextmanager
def reading(handle: Handle, fallback: str) -> Iterator[Any]:
    """This thread's dataset for `handle`, with errors of GDAL and of the network in our words.

    `fallback` names the window when GDAL does not say which block it was.

    Raises:
        FileMissingError, UnreadableFileError, TruncatedFileError: names the file and what is wrong with it.
    """
    with gdal_env(remote=handle.remote):
        found = dataset(handle)
        try:
            yield found
        except GDAL_ERRORS as e:
            raise _remote.failure() or read_error(handle.path, e, fallback) from e
        if handle.remote and (error := _remote.failure()) is not None:
            raise error  # GDAL made do with less, and must not


@contextmanager
def fetched(
    handle: Handle, bands: Sequence[int], windows: Sequence[tuple[tuple[int, int], tuple[int, int]]]
) -> Iterator[None]:
    """The blocks of a remote file that windows need, fetched all at once and at hand while the block runs.
    Nothing is done for local files.

    Args:
        bands: from 1; 0 is the mask.
        windows: of the handle's own pixels, as ((first row, end), (first column, end)).

    Raises:
        FileMissingError, UnreadableFileError: the server does not give them.
    """
    if not handle.remote or handle.gcps is not None:  # which pixels a warp reads is not known here
        yield
        return
    file = file_of(handle.path, handle.stamp)
    with gdal_env(remote=True):
        shape = dataset(handle).shape
    ranges = [r for rows, cols in windows for r in _remote.blocks(file, shape, bands, rows, cols)]
    with file.held(ranges):
        yield


def close(handles: Iterable[Handle]) -> None:
    """Closes the handles of all threads; no thread may be reading from them."""
    with _LOCK:
        opened = []
        for h in handles:
            opened += _ALL.pop(h, ())
            _IDLE.pop(h, None)
    for d in opened:
        _shut(d)


def _idle(handle: Handle) -> Any:
    with _LOCK:
        waiting = _IDLE.get(handle)
        while waiting:
            found = waiting.pop()
            if not found.closed:
                return found
    return None


def _shut(found: Any) -> None:
    """Closes one dataset, a remote one in its context and what it reads from after it."""
    held = _REMOTE_OPEN.pop(id(found), None)
    if held is None:
        found.close()
        return
    with _CONTEXT_LOCK:
        for one in held:
            _REMOTE_CONTEXT.run(one.close)


@atexit.register
def _shut_all() -> None:
    for held in list(_REMOTE_OPEN.values()):
        _shut(held[0])


def _after_fork() -> None:
    """The child opens its own; the locks may be held by threads that it does not have."""
    global _LOCK, _CONTEXT_LOCK
    _LOCK, _CONTEXT_LOCK = threading.Lock(), threading.RLock()
    _INHERITED.extend(_REMOTE_OPEN.values())
    _REMOTE_OPEN.clear()
    _IDLE.clear()


_INHERITED: list[Any] = []  # of the parent: closing them is not for the child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _open(handle: Handle) -> Any:
    options: dict[str, Any] = {} if handle.overview is None else {"OVERVIEW_LEVEL": handle.overview}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            if not handle.remote:
                return _seen(handle, rasterio.open(handle.path, driver=handle.driver, **options))[0]
            options["opener"] = _remote.Opener(handle.path, handle.stamp)
            with _CONTEXT_LOCK:
                name = _remote.Opener.NAME
                found = _REMOTE_CONTEXT.run(rasterio.open, name, driver=handle.driver, **options)
                opened = _seen(handle, found)
                _REMOTE_OPEN[id(opened[0])] = opened
            return opened[0]
    except GDAL_ERRORS as e:
        raise _remote.failure() or open_error(handle.path, e) from e


def _seen(handle: Handle, found: Any) -> tuple[Any, ...]:
    """A dataset as the handle wants to see it, then what it reads from."""
    if handle.gcps is None:
        return (found,)
    # A grid of our own choice would make rasterio forget the control points.
    warped = WarpedVRT(
        found,
        src_crs=handle.gcps,
        crs=handle.gcps,
        resampling=Resampling.bilinear,
        add_alpha=True,
    )
    return warped, found


def plain_name(path: str) -> str:
    """A GDAL path as a person wrote it."""
    return path.removeprefix("/vsizip/")


def open_error(path: str, error: Exception) -> TerralapseError:
    """What to say of a file that cannot be opened, or whose header GDAL does not understand."""
    text = str(error)
    name = plain_name(path)
    if re.search(r"\b(404|410)\b|No such file|does not exist", text):
        return FileMissingError(name, "does not exist", "Check the path or the address.")
    fault = _OPENED_AS.sub(name, text.replace(path, name)).strip().rstrip(".")
    return UnreadableFileError(name, f"cannot be opened ({fault})", "Check that it is a whole image file.")


def read_error(path: str, error: BaseException, fallback: str) -> TerralapseError:
    """What to say of a read that failed: the file, the band and the block, from GDAL's own message.

    `fallback` names the window when GDAL does not say which block it was.
    """
    texts = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 8:
        texts.append(str(getattr(cause, "errmsg", cause)))
        cause = cause.__cause__
    for text in texts:
        found = re.search(r"band (\d+): IReadBlock failed at X offset (\d+), Y offset (\d+)", text)
        if found:
            band, x, y = found.groups()
            where = f"band {band}, block ({x}, {y})"
            break
    else:
        where = fallback
    return TruncatedFileError(
        plain_name(path),
        f"{where} cannot be decoded ({_OPENED_AS.sub(plain_name(path), texts[-1]).strip().rstrip('.')})",
        "The file is cut short or damaged: copy or download it again.",
    )
