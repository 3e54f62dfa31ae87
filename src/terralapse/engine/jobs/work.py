"""What passes between the scheduler and its workers: how an attempt ended, and whether to try again.

Nothing is raised across a process border: an exception may not survive the way, its words always do.
"""

from __future__ import annotations

import errno
import http.client
import urllib.error
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from terralapse.errors import (
    HostileFileError,
    OutputLockedError,
    OutputNotWritableError,
    TerralapseError,
    TruncatedFileError,
    UnreadableFileError,
)

# A function that an importing worker finds by name, given a unit as plain data; returns the digest of what it
# wrote.
Work = Callable[[Mapping[str, Any]], str]

_REASON_LENGTH = 600
_BAD_STATUS = range(400, 500)
_WORTH_WAITING = (408, 425, 429)  # of those: timeout, too early, too many requests


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended.

    `digest` of the outputs when it succeeded, else None; `reason` in words; `lasting` is True for a fault
    that another attempt cannot mend.
    """

    digest: str | None = None
    reason: str = ""
    lasting: bool = False


def attempt(work: Work, unit: Mapping[str, Any]) -> Outcome:
    """One attempt at a unit; every error that is not the end of the process becomes an outcome."""
    try:
        return Outcome(digest=work(unit))
    except Exception as error:
        kind = type(error).__name__
        return Outcome(reason=f"{kind}: {error}"[:_REASON_LENGTH], lasting=is_lasting(error))


def is_lasting(error: BaseException) -> bool:
    """Whether another attempt would fail in the same way.

    Bad input is lasting; a lock held by another worker, a full disk, and whatever comes over a network are
    not, except that a server which says that there is no such file is believed. An error that is none of
    ours (memory, network, a fault of a library) is worth another attempt.
    """
    if not isinstance(error, TerralapseError):
        return False
    if isinstance(error, OutputLockedError | OutputNotWritableError):
        return False
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, urllib.error.HTTPError):
            return cause.code in _BAD_STATUS and cause.code not in _WORTH_WAITING
    remote = error.what.lower().startswith(("http://", "https://"))
    if remote and isinstance(error, TruncatedFileError | UnreadableFileError | HostileFileError):
        # A connection that breaks looks like a file that ends early.
        return not (isinstance(error, TruncatedFileError) or any(map(_is_network, chain)))
    return not any(isinstance(c, MemoryError) or _is_network(c) for c in chain)


def _is_network(error: BaseException) -> bool:
    if isinstance(error, urllib.error.URLError | ConnectionError | TimeoutError | http.client.HTTPException):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def _causes(error: BaseException | None):
    """An error and what it came from."""
    while error is not None:
        yield error
        error = error.__cause__
