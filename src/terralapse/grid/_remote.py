"""Files behind http(s): the same judgement as for local ones, and their bytes for GDAL.

GDAL decodes and never reaches the network itself: it reads a remote file through `Opener`, which takes bytes
from `_ranges`. Before a window is read, `blocks` says which bytes it needs, so that all of them are fetched
at the same time; GDAL then finds them there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from terralapse.errors import HostileFileError, TerralapseError, UnreadableFileError
from terralapse.grid import _http
from terralapse.grid._ranges import CHUNK, RUN, RemoteFile, file_of, look_at
from terralapse.grid._safety import MAX_TEXT_BYTES, SUPPORTED, sniff
from terralapse.grid._tiff import TiffLayout, read_layouts

MOST_BLOCKS = 2**18  # of a directory whose list of blocks is fetched: 3 MiB; 260,000 pixels a side in COGs
_IMAGES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # a request saved


@dataclass
class Remote:
    """A remote image that may be opened; `stamp` names the version that was seen."""

    driver: str
    size: int
    stamp: int
    layouts: list[TiffLayout] = field(default_factory=list)


def is_url(text: str) -> bool:
    """Whether this is an http or https address."""
    return text.lower().startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """The last part of an address, without its query."""
    return PurePosixPath(urlsplit(url).path).name or url


def check_image(url: str) -> Remote:
    """Judges a remote image by its first bytes, and a TIFF by its directories.

    Raises:
        FileMissingError, UnreadableFileError, HostileFileError, TruncatedFileError: each with the reason.
    """
    source = look_at(url)
    driver = sniff(source.at(0, 512))
    if driver not in ("GTiff", "PNG", "JPEG", "JP2OpenJPEG", "WEBP"):
        held = driver or "data of an unknown format"
        raise UnreadableFileError(
            url, f"holds {held}, not an image", f"Give the address of a {SUPPORTED} file."
        )
    if not source.ranged:
        raise source.rangeless()
    return Remote(driver, source.size, source.stamp, _layouts(source))


def _layouts(source: RemoteFile) -> list[TiffLayout]:
    if source.layouts is None:
        is_tiff = sniff(source.at(0, 512)) == "GTiff"
        source.layouts = read_layouts(source, most_blocks=MOST_BLOCKS) if is_tiff else []
    return source.layouts


def holds_json(url: str) -> bool:
    """Whether an address gives a JSON object: by its ending, and where it has none (`.../items/ID` of a
    STAC API) by the first bytes of what it gives.

    Raises:
        FileMissingError, UnreadableFileError: nothing answers there.
    """
    ending = PurePosixPath(urlsplit(url).path).suffix.lower()
    if ending in (".json", ".geojson"):
        return True
    if ending in _IMAGES:
        return False
    return look_at(url).at(0, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def read_text(url: str) -> str:
    """A small text document, for example a STAC item."""
    raw = _http.get(url, most=MAX_TEXT_BYTES + 1).body
    if len(raw) > MAX_TEXT_BYTES:
        raise HostileFileError(url, "is a text of more than 64 MiB", "Check the address.")
    return raw.decode("utf-8-sig", errors="replace")


def head(url: str) -> tuple[int | None, str | None]:
    """Size in bytes and ETag, as far as the server says them."""
    answer = _http.head(url)
    return answer.size, answer.etag


# --- bytes for GDAL --------------------------------------------------------------------------------
_FAILED = threading.local()


def failure() -> TerralapseError | None:
    """What went wrong on the network in this thread since the last call. GDAL passes no error of ours on."""
    found = getattr(_FAILED, "error", None)
    _FAILED.error = None
    return found


class Opener:
    """Gives GDAL, through rasterio, one remote file under the name `NAME` and nothing else."""

    NAME = "terralapse-remote-file"

    def __init__(self, url: str, stamp: int) -> None:
        self._file = file_of(url, stamp)

    def __call__(self, path: str, mode: str = "rb", **_: Any) -> RemoteReader:
        if PurePosixPath(path).name != self.NAME or "w" in mode:
            raise FileNotFoundError(path)  # a file beside it, which remote files do not have
        return RemoteReader(self._file)


class RemoteReader:
    """A remote file with a position. Reading never raises: what fails reads short, as a cut file does, and
    `failure` knows why; an exception cannot pass through GDAL."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._position = file, 0
        self._next, self._ahead = 0, 0

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes. Reading on where the last read ended fetches more and more at once."""
        on = 0 <= self._position - self._next <= CHUNK
        self._ahead = min(max(2 * self._ahead, 2 * CHUNK), RUN) if on else 0
        count = self._file.size - self._position if count < 0 else count
        try:
            raw = self._file.at(self._position, count, self._ahead)
        except TerralapseError as e:
            _FAILED.error = e
            return b""
        self._position += len(raw)
        self._next = self._position
        return raw

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to a position from the start, from here, or from the end."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> RemoteReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def blocks(
    file: RemoteFile,
    shape: tuple[int, int],
    bands: Sequence[int],
    rows: tuple[int, int],
    cols: tuple[int, int],
) -> list[tuple[int, int]]:
    """The ranges of a file that a window of one of its directories needs.

    Args:
        file: of one image; where its blocks lie is known of TIFFs only.
        shape: height and width of the directory that is read.
        bands: from 1; 0 is the mask, which is a directory of its own or else made from the bands.
        rows, cols: first pixel and one past the last.
    """
    fitting = [x for x in _layouts(file) if (x.height, x.width) == shape]
    wanted = [x for x in fitting if x.mask == (0 in bands)] or [x for x in fitting if not x.mask]
    if not wanted:
        return []
    first = wanted[0]
    planes = range(first.samples) if 0 in bands else [b - 1 for b in bands if b <= first.samples]
    return first.ranges(list(planes), rows, cols)
