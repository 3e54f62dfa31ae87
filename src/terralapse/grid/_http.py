"""One request at a time over http(s): connections that are kept, retries, and errors in our words."""

from __future__ import annotations

import os
import random
import re
import ssl
import threading
import time
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, URLSchemeUnknown

from terralapse.errors import FileMissingError, HostileFileError, TerralapseError, UnreadableFileError
from terralapse.grid._door import Door

TIMEOUT_S = 60
CONNECTIONS = 16  # to one server; more requests at once wait for one of them
ATTEMPTS = 5
BACKOFF_S = 0.25  # before the second attempt, doubled each time: 3.75 s in all
MOST_PATIENCE_S = 30  # of what a server asks for with Retry-After
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_HEADERS = {"User-Agent": "terralapse", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Answer:
    """What a server said: `body` is what was asked for, `first` the position of its first byte, `size` of the
    whole file (None where the server does not say it), `tag` its version (ETag, else the time of writing),
    `ranged` whether the answer is a part of the file."""

    body: bytes
    first: int
    size: int | None
    tag: str | None
    etag: str | None
    ranged: bool


class Unsatisfiable(Exception):
    """The range begins beyond the end of the file."""


def get(url: str, start: int | None = None, end: int | None = None, *, most: int) -> Answer:
    """The bytes `start` to `end` (exclusive) of a file, or all of it; never more than `most`.

    A server that ignores ranges gives the first `most` bytes, with `ranged` False. What passes by itself (a
    full server, a connection that breaks) is tried again.

    Raises:
        FileMissingError, UnreadableFileError: with the address and what the server said.
        Unsatisfiable: there is no byte `start`.
    """
    wanted = {} if start is None or end is None else {"Range": f"bytes={start}-{end - 1}"}
    return _persist("GET", url, wanted, most)


def head(url: str) -> Answer:
    """What a server says of a file, without its bytes.

    Raises:
        FileMissingError, UnreadableFileError: as `get`.
    """
    return _persist("HEAD", url, {}, 0)


def _persist(method: str, url: str, wanted: dict[str, str], most: int) -> Answer:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _once(method, url, wanted, most)
        except _Again as again:
            if attempt == ATTEMPTS:
                raise again.error from again.__cause__
            pause = BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            time.sleep(max(pause, min(again.after, MOST_PATIENCE_S)))
    raise AssertionError("unreachable")


class _Again(Exception):
    """A fault that may pass, the error to give when it does not, and how long the server asks to wait."""

    def __init__(self, error: TerralapseError, after: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


def _once(method: str, url: str, wanted: dict[str, str], most: int) -> Answer:
    if _DOOR is not None:
        _DOOR.check(url)
    try:
        answer = _pool(url).request(
            method,
            url,
            headers=_HEADERS | wanted,
            preload_content=False,
            retries=urllib3.Retry(total=None, connect=0, read=0, other=0, status=0, redirect=5),
            timeout=urllib3.Timeout(connect=15, read=TIMEOUT_S),
        )
        try:
            _refuse(url, answer)
            return _taken(url, answer, wanted, most)
        finally:
            if answer.length_remaining != 0:
                answer.close()  # what is left of a body would be taken for the next answer
            answer.release_conn()
    except URLSchemeUnknown as e:
        hint = "Give an address that is not redirected, or redirected to https."
        raise HostileFileError(url, "leads to an address that may not be reached", hint) from e
    except (HTTPError, OSError, ValueError) as e:
        cause = e.reason if isinstance(e, MaxRetryError) and e.reason is not None else e
        if (shown := _certificate(cause)) is not None:
            hint = "Check the address; the host must be the one that the certificate is for."
            raise UnreadableFileError(url, f"shows a certificate that does not hold ({shown})", hint) from e
        reason = re.sub(r"^<[^>]*>: ?|^.*?(?:object at 0x\w+>|Connection\([^)]*\)): ?", "", str(cause))
        fault = f"cannot be reached, or the connection broke ({reason})"
        error = UnreadableFileError(url, fault, "Check the address and the network.")
        if isinstance(e, ValueError):  # an address that is none; nothing that would pass
            raise error from e
        raise _Again(error) from e


def _certificate(error: BaseException | None) -> str | None:
    """What is wrong with the certificate, if that is the fault."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message.rstrip(".")
        error = error.__cause__ or error.__context__
    return None


def _refuse(url: str, answer: urllib3.BaseHTTPResponse) -> None:
    if answer.status == 416:
        raise Unsatisfiable
    if answer.status < 400:
        return
    said = f"the server answered {answer.status} {answer.reason or ''}".rstrip()
    if answer.status in (404, 410):
        raise FileMissingError(url, f"does not exist ({said})", "Check the address.")
    if answer.status in _TRANSIENT:
        after = answer.headers.get("Retry-After", "")
        error = UnreadableFileError(url, f"{said}, {ATTEMPTS} times in a row", "Try again later.")
        raise _Again(error, float(after) if after.isdigit() else 0.0)
    raise UnreadableFileError(url, said, "Check the address; it may need a signature or a login.")


def _taken(url: str, answer: urllib3.BaseHTTPResponse, wanted: dict[str, str], most: int) -> Answer:
    ranged = answer.status == 206 and bool(wanted)
    length = answer.headers.get("Content-Length", "")
    first, size = 0, int(length) if length.isdigit() else None
    if ranged:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None:
            hint = "Download the file and give its path."
            raise UnreadableFileError(url, "the server gives a part and does not say which", hint)
        first = int(found[1])
        size = int(found[3]) if found[3] != "*" else None
    body = answer.read(most) if most else b""
    if _DOOR is not None:
        _DOOR.take(len(body), url)
    etag = answer.headers.get("ETag")
    # A weak and a strong tag of one version differ by the mark only.
    tag = etag.removeprefix("W/") if etag else answer.headers.get("Last-Modified")
    return Answer(body, first, size, tag, etag, ranged)


# --- connections -----------------------------------------------------------------------------------
_POOLS: dict[str | None, urllib3.PoolManager] = {}
_LOCK = threading.Lock()
_DOOR: Door | None = None
_KEPT = {"num_pools": 16, "maxsize": CONNECTIONS, "block": True}


def through(door: Door | None) -> None:
    """From here on this process reaches nothing but what a door lets through; None opens everything again."""
    global _DOOR
    with _LOCK:
        _DOOR = door
        _POOLS.clear()


def _pool(url: str) -> urllib3.PoolManager:
    """The kept connections, through the proxy that the environment names for this address, or the door."""
    if _DOOR is not None:
        with _LOCK:
            if None not in _POOLS:
                _POOLS[None] = _DOOR.pools(**_KEPT)
            return _POOLS[None]
    parts = urlsplit(url)
    proxy = None
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        proxy = urllib.request.getproxies().get(parts.scheme)
    with _LOCK:
        if proxy not in _POOLS:
            _POOLS[proxy] = (
                urllib3.PoolManager(**_KEPT) if proxy is None else urllib3.ProxyManager(proxy, **_KEPT)
            )
        return _POOLS[proxy]


def _forget() -> None:
    """A forked child must not answer on its parent's connections."""
    global _LOCK
    _LOCK = threading.Lock()
    _POOLS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
