"""The guard that keeps the tests off the network does refuse, and lets the loopback through."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request

import pytest


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 443)])
def test_connections_that_leave_the_machine_are_refused(address: tuple[str, int]) -> None:
    with pytest.raises(AssertionError, match="tried to reach"):
        socket.create_connection(address, timeout=1)


def test_a_raw_socket_is_refused_too() -> None:
    with socket.socket() as raw, pytest.raises(AssertionError, match=r"192\.0\.2\.7"):
        raw.connect(("192.0.2.7", 80))


def test_urllib_is_refused() -> None:
    with pytest.raises((AssertionError, urllib.error.URLError), match="tried to reach"):
        urllib.request.urlopen("http://example.org/", timeout=1)


def test_gdal_is_refused() -> None:
    import rasterio
    from rasterio.errors import RasterioIOError

    with pytest.raises(RasterioIOError):
        rasterio.open("/vsicurl/http://192.0.2.1/a.tif")


def test_the_loopback_is_open() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        threading.Thread(target=lambda: server.accept()[0].sendall(b"x"), daemon=True).start()
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.recv(1) == b"x"
