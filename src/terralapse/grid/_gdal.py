"""GDAL in one place: its settings, one handle a thread, and its errors in our words.

GDAL datasets are not thread-safe, so every thread that reads has its own handles. They are kept open,
up to a limit, because opening is what costs on remote files and on large archives.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError  # some calls let GDAL's own error through
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT

from terralapse.errors import FileMissingError, TerralapseError, TruncatedFileError, UnreadableFileError

MAX_OPEN = 48  # handles a thread: 16 threads stay below the usual limit of 1,024 files
GDAL_ERRORS = (RasterioError, CPLE_BaseError)

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
    "GDAL_HTTP_TIMEOUT": 60,
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": 16 * 2**20,
}
# Side files (.msk, .ovr, .aux.xml, world files) are looked for beside local files only.
_REMOTE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}


@contextmanager
def gdal_env(*, remote: bool = False, **options: Any) -> Iterator[None]:
    """The settings under which the whole project uses GDAL; cheap, and needed in every thread.

    Args:
        remote: for files behind `/vsicurl/`: no listing of the folder.
        options: GDAL configuration options that are added or win.
    """
    with rasterio.Env(**{**_SETTINGS, **(_REMOTE if remote else {}), **options}):
        yield


@dataclass(frozen=True)
class Handle:
    """What to open: a GDAL path with its driver, perhaps one of its overviews (by number), perhaps warped.

    `gcps` is the WKT of the CRS into which ground control points put the file; it is then seen through a warp
    to a north-up grid that GDAL chooses, with an alpha band added. `stamp` is when the file was written, so
    that a file that was replaced is opened anew.
    """

    path: str
    driver: str
    overview: int | None = None
    gcps: str | None = None
    stamp: int = 0

    @property
    def remote(self) -> bool:
        """Whether reading goes over the network."""
        return "/vsicurl/" in self.path


class _Local(threading.local):
    def __init__(self) -> None:
        self.pid = os.getpid()
        self.open: OrderedDict[Handle, Any] = OrderedDict()


_LOCAL = _Local()
_ALL: dict[Handle, weakref.WeakSet[Any]] = {}
_LOCK = threading.Lock()


def dataset(handle: Handle) -> Any:
    """This thread's open rasterio dataset for `handle`; call it and use it inside `gdal_env`.

    Raises:
        FileMissingError, UnreadableFileError: it cannot be opened.
    """
    if os.getpid() != _LOCAL.pid:  # a forked child must not share file positions with its parent
        _LOCAL.pid, _LOCAL.open = os.getpid(), OrderedDict()
    mine = _LOCAL.open
    found = mine.get(handle)
    if found is not None and not found.closed:
        mine.move_to_end(handle)
        return found
    found = mine[handle] = _open(handle)
    with _LOCK:
        _ALL.setdefault(handle, weakref.WeakSet()).add(found)
    while len(mine) > MAX_OPEN:
        mine.popitem(last=False)[1].close()
    return found


def close(handles: Iterable[Handle]) -> None:
    """Closes the handles of all threads; no thread may be reading from them."""
    with _LOCK:
        opened = [d for h in handles for d in _ALL.pop(h, ())]
    for d in opened:
        d.close()


def _open(handle: Handle) -> Any:
    options: dict[str, Any] = {} if handle.overview is None else {"OVERVIEW_LEVEL": handle.overview}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            found = rasterio.open(handle.path, driver=handle.driver, **options)
            if handle.gcps is None:
                return found
            # A grid of our own choice would make rasterio forget the control points.
            return WarpedVRT(
                found,
                src_crs=handle.gcps,
                crs=handle.gcps,
                resampling=Resampling.bilinear,
                add_alpha=True,
            )
    except GDAL_ERRORS as e:
        raise open_error(handle.path, e) from e


def plain_name(path: str) -> str:
    """A GDAL path as a person wrote it."""
    return path.removeprefix("/vsicurl/").removeprefix("/vsizip/")


def open_error(path: str, error: Exception) -> TerralapseError:
    """What to say of a file that cannot be opened, or whose header GDAL does not understand."""
    text = str(error)
    name = plain_name(path)
    if re.search(r"\b(404|410)\b|No such file|does not exist", text):
        return FileMissingError(name, "does not exist", "Check the path or the address.")
    fault = text.replace(path, name).strip().rstrip(".")
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
        f"{where} cannot be decoded ({texts[-1].strip().rstrip('.')})",
        "The file is cut short or damaged: copy or download it again.",
    )
