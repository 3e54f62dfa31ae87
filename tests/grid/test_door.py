"""What may be reached when a stranger names the address: with a resolver that lies and a local server."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bad_inputs import image
from file_server import serve_files
from terralapse.errors import HostileFileError, TerralapseError, UnreadableFileError
from terralapse.grid import _http
from terralapse.grid._door import Door, is_public
from terralapse.grid.open import open_scene

PUBLIC, OTHER = "93.184.216.34", "8.8.8.8"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        (PUBLIC, True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("192.0.2.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        (f"::ffff:{PUBLIC}", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("localhost", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.tif",
        "ftp://example.org/a.tif",
        "file:///etc/passwd",
        "https://user:secret@example.org/a.tif",
        "https://example.org:8443/a.tif",
        "https:///a.tif",
        "https://example.org\\@127.0.0.1/a.tif",
        "https://example.org/a b.tif",
        "https://[::1/a.tif",
        "https://[::1]/a.tif",
        "https://[2606:4700:4700:0:0:0:0:1111]/a.tif",
        "https://example.org/cube.tif::2021-06-01",
        "https://example.org:99999999/a.tif",
    ],
)
def test_addresses_of_another_form_are_refused(url):
    with pytest.raises(HostileFileError):
        Door(10).check(url)


def test_a_plain_https_address_passes():
    Door(10).check("https://example.org/a.tif?x=1")
    Door(10).check("https://example.org:443/a.tif")


class World:
    """Names with their addresses, one after the other, and the local port that each address stands for."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.port = 0
        self.connected: list[tuple[str, int]] = []

    def resolve(self, host: str, port: int) -> list[str]:
        answers = self.names.get(host, [])
        if not answers:
            raise socket.gaierror("unknown")
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(self, place: tuple[str, int], timeout: Any) -> socket.socket:
        self.connected.append(place)
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def door(self, budget: int = 10**9) -> Door:
        return Door(budget, resolve=self.resolve, connect=self.connect, schemes=("http",), ports=None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(_http, "BACKOFF_S", 0.001)
    yield World()
    _http.through(None)


Serve = Callable[[Callable[[str], tuple[int, dict[str, str], bytes]]], int]


@pytest.fixture
def answering() -> Iterator[Serve]:
    servers = []

    def make(answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> int:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = answer(self.path)
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return made.server_address[1]

    yield make
    for made in servers:
        made.shutdown()
        made.server_close()


def test_an_image_is_read_through_the_door(world, tmp_path):
    image(tmp_path, "a.tif", size=256)
    with serve_files(tmp_path) as server:
        world.port = int(server.address.rpartition(":")[2].strip("/"))
        world.names["images.example"] = [[PUBLIC]]
        _http.through(world.door())
        with open_scene("http://images.example/a.tif") as scene:
            assert scene.info.geobox.shape == (256, 256)
    assert {place for place, _ in world.connected} == {PUBLIC}


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["169.254.169.254"], ["::1"], [PUBLIC, "10.0.0.1"], ["::ffff:127.0.0.1"], []]
)
def test_a_name_that_is_not_public_is_never_connected_to(world, answer):
    world.names["inner.example"] = [answer]
    _http.through(world.door())
    with pytest.raises(HostileFileError, match=r"inner\.example: is not on the public Internet"):
        _http.get("http://inner.example/a.tif", most=10)
    assert world.connected == []


def test_numbers_in_place_of_names_pass_the_same_door(world):
    world.names |= {"127.0.0.1": [["127.0.0.1"]], "2130706433": [["127.0.0.1"]]}
    _http.through(world.door())
    for host in ("127.0.0.1", "2130706433"):
        with pytest.raises(HostileFileError, match="is not on the public Internet"):
            _http.get(f"http://{host}/latest/meta-data", most=10)
    assert world.connected == []


def test_a_name_that_answers_otherwise_the_second_time_gains_nothing(world, answering):
    """Each connection looks up once and goes to what was checked; a new one is checked anew."""
    world.port = answering(lambda _: (200, {"Connection": "close"}, b"public"))
    world.names["turns.example"] = [[PUBLIC], ["127.0.0.1"]]
    _http.through(world.door())
    assert _http.get("http://turns.example/a", most=10).body == b"public"
    assert world.connected == [(PUBLIC, 80)]
    with pytest.raises(HostileFileError, match="public Internet"):
        _http.get("http://turns.example/a", most=10)
    assert world.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("http://inner.example/secret", "inner.example: is not on the public Internet"),
        ("http://127.0.0.1/secret", "127.0.0.1: is not on the public Internet"),
        ("https://far.example/a", "leads to an address that may not be reached"),
        ("file:///etc/passwd", "No host specified"),
    ],
)
def test_redirects_pass_the_same_door(world, answering, target, error):
    world.port = answering(lambda _: (302, {"Location": target}, b""))
    world.names |= {
        "far.example": [[PUBLIC]], "inner.example": [["192.168.0.1"]], "127.0.0.1": [["127.0.0.1"]]
    }  # fmt: skip
    _http.through(world.door())
    with pytest.raises(TerralapseError, match=error):
        _http.get("http://far.example/a", most=10)
    assert {place for place, _ in world.connected} == {PUBLIC}


def test_a_redirect_to_another_public_host_is_followed(world, answering):
    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, b"here") if path == "/b" else (302, {"Location": "http://other.example/b"}, b"")

    world.port = answering(answer)
    world.names |= {"far.example": [[PUBLIC]], "other.example": [[OTHER]]}
    _http.through(world.door())
    assert _http.get("http://far.example/a", most=10).body == b"here"
    assert [place for place, _ in world.connected] == [PUBLIC, OTHER]


def test_no_more_is_read_than_was_allowed(world, answering):
    world.port = answering(lambda _: (200, {}, b"x" * 600))
    world.names["far.example"] = [[PUBLIC]]
    _http.through(world.door(1000))
    assert len(_http.get("http://far.example/a", most=10**6).body) == 600
    with pytest.raises(HostileFileError, match="more than the 1,000 bytes"):
        _http.get("http://far.example/a", most=10**6)


def test_a_proxy_of_the_environment_is_not_used(world, answering, monkeypatch):
    world.port = answering(lambda _: (200, {}, b"direct"))
    world.names["far.example"] = [[PUBLIC]]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    _http.through(world.door())
    assert _http.get("http://far.example/a", most=10).body == b"direct"


def test_a_door_without_schemes_lets_nothing_through(world, tmp_path):
    _http.through(Door(0, schemes=()))
    with pytest.raises(HostileFileError, match="no address is read here"):
        open_scene("https://images.example/a.tif")
    with open_scene(Path(image(tmp_path, "a.tif"))) as scene:
        assert scene.info.geobox.shape == (96, 96)


def test_a_name_that_is_not_known_is_said(world):
    _http.through(world.door())
    with pytest.raises(UnreadableFileError, match="cannot be reached"):
        _http.get("http://nowhere.example/a", most=10)
