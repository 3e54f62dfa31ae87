"""Files behind http(s): the same judgement as for local ones, from a few ranged requests.

Only the header is fetched here; pixels are read by GDAL through `/vsicurl/`.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from terralapse.errors import FileMissingError, HostileFileError, UnreadableFileError
from terralapse.grid._safety import MAX_TEXT_BYTES, SUPPORTED, sniff
from terralapse.grid._tiff import TiffLayout, read_layouts

TIMEOUT_S = 60
_CHUNK = 32768
_IMAGES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".webp")  # a request saved


@dataclass
class Remote:
    """A remote image that may be opened."""

    driver: str
    size: int | None
    layouts: list[TiffLayout] = field(default_factory=list)


def is_url(text: str) -> bool:
    """Whether this is an http or https address."""
    return text.lower().startswith(("http://", "https://"))


def file_name(url: str) -> str:
    """The last part of an address, without its query."""
    return PurePosixPath(urlsplit(url).path).name or url


def check_image(url: str) -> Remote:
    """Judges a remote image by its first bytes.

    Raises:
        FileMissingError, UnreadableFileError, HostileFileError, TruncatedFileError: each with the reason.
    """
    source = RemoteBytes(url)
    head = source.at(0, 512)
    driver = sniff(head)
    if driver not in ("GTiff", "PNG", "JPEG", "JP2OpenJPEG", "WEBP"):
        held = driver or "data of an unknown format"
        raise UnreadableFileError(
            url, f"holds {held}, not an image", f"Give the address of a {SUPPORTED} file."
        )
    layouts = read_layouts(source, with_blocks=False) if driver == "GTiff" and source.ranged else []
    return Remote(driver, source.size, layouts)


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
    return RemoteBytes(url).at(0, 64).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def read_text(url: str) -> str:
    """A small text document, for example a STAC item."""
    with _request(url) as answer:
        raw = answer.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise HostileFileError(url, "is a text of more than 64 MiB", "Check the address.")
    return raw.decode("utf-8-sig", errors="replace")


def head(url: str) -> tuple[int | None, str | None]:
    """Size in bytes and ETag, as far as the server says them."""
    with _request(url, method="HEAD") as answer:
        size = answer.headers.get("Content-Length")
        return (int(size) if size and size.isdigit() else None), answer.headers.get("ETag")


class RemoteBytes:
    """Random access to a remote file in chunks that are kept; `ranged` says whether the server allows it."""

    def __init__(self, url: str) -> None:
        self.name = url
        self.size = 0
        self.ranged = True
        self._chunks: dict[int, bytes] = {}

    def at(self, offset: int, count: int) -> bytes:
        if offset + count > 2**40 or count > MAX_TEXT_BYTES:
            return b""
        out = b""
        while len(out) < count:
            number, skip = divmod(offset + len(out), _CHUNK)
            piece = self._chunk(number)[skip:]
            if not piece:
                break
            out += piece[: count - len(out)]
        return out

    def _chunk(self, number: int) -> bytes:
        if number in self._chunks:
            return self._chunks[number]
        start = number * _CHUNK
        if number and (not self.ranged or start >= self.size):
            return b""
        with _request(self.name, headers={"Range": f"bytes={start}-{start + _CHUNK - 1}"}) as answer:
            self.ranged = answer.status == 206
            raw = answer.read(_CHUNK)
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            length = total if self.ranged else answer.headers.get("Content-Length", "")
            self.size = int(length) if length.isdigit() else 2**40
        self._chunks[number] = raw
        return raw


def _request(
    url: str, *, method: str = "GET", headers: dict[str, str] | None = None
) -> http.client.HTTPResponse:
    request = urllib.request.Request(
        url, method=method, headers={"User-Agent": "terralapse", **(headers or {})}
    )
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as e:
        if e.code in (404, 410):
            raise FileMissingError(url, "does not exist", "Check the address.") from e
        hint = "Check the address; it may need a signature or a login."
        raise UnreadableFileError(url, f"the server answered {e.code} {e.reason}", hint) from e
    except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as e:
        reason = getattr(e, "reason", e)
        raise UnreadableFileError(
            url, f"cannot be reached ({reason})", "Check the address and the network."
        ) from e
