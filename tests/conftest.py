"""What all tests share: where the data is, few threads, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Before anything imports torch or numpy, and inherited by every process that a test starts. Several tests
# run at once on few cores, so each keeps to one thread; a test about threads sets its own number.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

# CI draws the same examples every time, so that a change is judged by what it changes; here they vary.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-root",
        type=Path,
        default=None,
        help="Folder of golden cases (<system>/<case>/case.json); default: tests/golden/cases.",
    )
    parser.addoption(
        "--golden-adapters",
        type=Path,
        default=None,
        help="Folder of adapters for the golden cases; default: tests/golden/adapters.",
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sheets and data beside the repository; a test that needs it is skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def shared_data(shared: Path) -> Path:
    """The sample data beside the repository; a test that needs it is skipped without it."""
    if not (shared / "data").is_dir():
        pytest.skip("needs the folder ../shared/data beside the repository")
    return shared / "data"


@pytest.fixture(scope="session")
def joplin(root: Path) -> tuple[Path, Path]:
    """The two folders of tiles, before and after, of the pair that ships with the package."""
    return root / "examples/joplin/before", root / "examples/joplin/after"


class NetworkUsed(AssertionError):
    """A test reached out of this machine."""


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Refuses connections and look-ups that leave this machine; servers on the loopback are fine."""
    patch = pytest.MonkeyPatch()
    look_up = socket.getaddrinfo

    def refuse(address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else address
        if isinstance(host, bytes):
            host = host.decode(errors="replace")
        if host in (None, "", "localhost", "::1") or str(host).startswith(("127.", "/", "\0")):
            return
        raise NetworkUsed(f"a test tried to reach {host}")

    class Guarded(socket.socket):
        def connect(self, address: Any, /) -> None:
            refuse(address)
            super().connect(address)

        def connect_ex(self, address: Any, /) -> int:
            refuse(address)
            return super().connect_ex(address)

    def guarded_look_up(host: Any, *args: Any, **options: Any) -> Any:
        refuse(host)
        return look_up(host, *args, **options)

    patch.setattr(socket, "socket", Guarded)
    patch.setattr(socket, "getaddrinfo", guarded_look_up)
    # GDAL opens its own sockets: a proxy that nobody serves stops them, loopback excepted.
    patch.setenv("GDAL_HTTP_PROXY", "http://127.0.0.1:9")
    patch.setenv("NO_PROXY", "localhost,127.0.0.1,::1")
    patch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    yield
    patch.undo()
