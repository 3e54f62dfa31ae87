"""How much memory there is, how much is in use, and how to keep big blocks from going back too early."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

MIB = 1 << 20

_CGROUP = Path("/sys/fs/cgroup")
# mallopt's parameters, from glibc's malloc.h, with glibc's own defaults.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_GLIBC_DEFAULTS = {_M_TRIM_THRESHOLD: 128 * 1024, _M_TOP_PAD: 128 * 1024, _M_MMAP_MAX: 65536}


def rss() -> int:
    """Bytes of memory that this process holds now."""
    return psutil.Process().memory_info().rss


def peak_rss() -> int:
    """The most bytes of memory that this process has held since it started."""
    if sys.platform == "win32":  # pragma: no cover - psutil's own field there
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available(cgroup: Path = _CGROUP) -> int:
    """Bytes that can still be taken without swapping: of the machine, or of the container if that is less.

    Containers are seen through the files of control groups, version 2 (`memory.max`, `memory.current`).
    """
    free = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def budget(ceiling: int, share: float = 0.4) -> int:
    """The bytes that one consumer may plan with: `ceiling`, or `share` of what is available if that is less.

    The ceiling is what decides on any machine with memory to spare, so that the same scene gets the same
    plan there; only a machine that is short of memory gets a smaller one.
    """
    return min(ceiling, int(share * available()))


@contextmanager
def big_blocks_stay() -> Iterator[None]:
    """Inside, freed memory stays with the process; outside, it goes back to the system as usual.

    glibc maps every block over 32 MiB anew and unmaps it when it is freed, so that each activation of a
    large tile pays for fresh, zeroed pages: up to half of the time of a small convolutional network.
    The heaps of threads cannot hold such blocks, so that from the first call on new threads share the main
    one. Does nothing where the C library has no `mallopt`.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.malloc_trim(0)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 16 * MIB)
    try:
        yield
    finally:
        for parameter, value in _GLIBC_DEFAULTS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def on_main_heap() -> bool:
    """Whether this thread allocates from the main heap; True where there is no other."""
    libc = _glibc()
    if libc is None:
        return True
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(64 * 1024))
    top = libc.sbrk(ctypes.c_ssize_t(0))  # the main heap ends here; all others are mapped far above
    libc.free(ctypes.c_void_p(block))
    return block is not None and top is not None and block < top


def _glibc() -> ctypes.CDLL | None:
    """The C library, when it is one whose allocator can be told what to do."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.mallopt and libc.malloc_trim else None
    except (AttributeError, OSError, TypeError):
        return None
