"""Addresses by https, from the name to the pixels: a local server with certificates of its own authority,
and a resolver that says where names lie."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bad_inputs import image
from terralapse.errors import HostileFileError, TerralapseError, UnreadableFileError
from terralapse.grid import _door, _http
from terralapse.grid._door import Door
from terralapse.grid.open import open_scene
from terralapse.serve import looks

PUBLIC, OTHER, PRIVATE = "93.184.216.34", "8.8.8.8", "127.0.0.1"
REQ = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch")


class Authority:
    """Makes certificates with openssl; `file` is what those who trust it are given."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.file, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        self._make("-keyout", self.key, "-out", self.file, "-subj", f"/CN={name}", "-days", "2")

    def own(self) -> ssl.SSLContext:
        """What a server shows that signs for itself."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        return context

    def sign(self, host: str) -> ssl.SSLContext:
        """What a server of this host shows."""
        path = self.folder / f"{self.name}-{host}.pem"
        self._make(
            "-keyout", path, "-out", f"{path}.crt", "-subj", f"/CN={host}", "-days", "2",
            "-CA", self.file, "-CAkey", self.key,
            "-addext", f"subjectAltName=DNS:{host}", "-addext", "basicConstraints=CA:FALSE",
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{path}.crt", path)
        return context

    @staticmethod
    def _make(*more: str | Path) -> None:
        subprocess.run([*REQ, *map(str, more)], check=True, capture_output=True, timeout=60)


class Server(http.server.ThreadingHTTPServer):
    """One address of the Internet: shows each name its certificate, and knows what it was asked."""

    daemon_threads = True

    def __init__(self, shown: dict[str, ssl.SSLContext], pages: dict[str, bytes | str]) -> None:
        self.named: list[str | None] = []
        self.asked: list[str] = []
        self.shown, self.pages = shown, pages
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.sni_callback = self._choose
        super().__init__((PRIVATE, 0), Handler)

    def _choose(self, connection: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        self.named.append(name)
        connection.context = self.shown.get(name or "", next(iter(self.shown.values())))

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            secure = self.tls.wrap_socket(request, server_side=True)
        except OSError:
            return  # whoever came did not like the certificate
        with secure:
            super().finish_request(secure, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """A page that is a text leads to the address in it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(f"{self.headers['Host']}{self.path}")
        page = self.server.pages[self.path]
        body = page if isinstance(page, bytes) else b""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.send_response(302 if isinstance(page, str) else 206 if wanted else 200)
        if isinstance(page, str):
            self.send_header("Location", page)
        elif wanted:
            start, end = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
            body = body[start : end + 1]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Internet:
    """Names with what they resolve to, one look-up after the other, and the server at each address."""

    def __init__(self) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.servers: dict[str, Server] = {}
        self.connected: list[tuple[str, int]] = []

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        answers = self.names[host]
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    def connect(self, place: tuple[str, int], _timeout: Any) -> socket.socket:
        self.connected.append(place)
        server = self.servers[place[0]]
        made = socket.socket()
        made.settimeout(20)
        made.connect(server.server_address)
        return made

    def listen(self, address: str, shown: dict[str, ssl.SSLContext], **pages: bytes | str) -> Server:
        server = Server(shown, {f"/{name}": page for name, page in pages.items()})
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.servers[address] = server
        return server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificates")
    return Authority(tmp_path_factory.mktemp("authority"), "good")


@pytest.fixture
def internet(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    """The door of an analysis of a server with `--allow-urls`, in this process; only the wires are ours."""
    made = Internet()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setattr(_http, "BACKOFF_S", 0.001)
    monkeypatch.setattr(_door.socket, "getaddrinfo", made.getaddrinfo)
    monkeypatch.setattr(_door, "Door", functools.partial(Door, connect=made.connect))
    looks.shut(10**6)
    yield made
    _http.through(None)
    for server in made.servers.values():
        server.shutdown()
        server.server_close()


def test_a_host_that_shows_its_certificate_is_read(internet, authority, tmp_path):
    """By its name, in the handshake, the certificate and the request; at the address that was checked."""
    names = ("images.example", "else.example")
    pixels = Path(image(tmp_path, "a.tif", size=96)).read_bytes()
    server = internet.listen(PUBLIC, {n: authority.sign(n) for n in reversed(names)}, **{"a.tif": pixels})
    internet.names = {n: [[PUBLIC]] for n in names}
    for name in names:
        with open_scene(f"https://{name}/a.tif") as scene:
            assert scene.info.geobox.shape == (96, 96)
    assert list(dict.fromkeys(server.named)) == list(names)
    assert list(dict.fromkeys(server.asked)) == [f"{n}/a.tif" for n in names]
    assert set(internet.connected) == {(PUBLIC, 443)}


@pytest.mark.parametrize(
    ("shows", "reason"),
    [
        ("another name", "is not valid for 'images.example'"),
        ("another authority", "unable to get local issuer certificate"),
        ("its own authority", "self-signed certificate"),
    ],
)
def test_a_host_that_shows_another_certificate_is_refused_at_once(
    internet, authority, tmp_path, shows, reason
):
    made = {
        "another name": lambda: authority.sign("else.example"),
        "another authority": lambda: Authority(tmp_path, "bad").sign("images.example"),
        "its own authority": lambda: Authority(tmp_path, "images.example").own(),
    }
    server = internet.listen(PUBLIC, {"images.example": made[shows]()}, a=b"secret")
    internet.names["images.example"] = [[PUBLIC]]
    with pytest.raises(UnreadableFileError, match="shows a certificate that does not hold") as caught:
        _http.get("https://images.example/a", most=10)
    assert reason in caught.value.fault
    assert str(caught.value).startswith("https://images.example/a: ")
    assert server.asked == []
    assert len(internet.connected) == 1, "a certificate does not get better by asking again"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("https://inner.example/b", r"inner\.example: is not on the public Internet"),
        ("https://127.0.0.1/b", r"127\.0\.0\.1: is not on the public Internet"),
        ("https://far.example:8443/b", r"far\.example: is named with the port 8443"),
        ("http://far.example/b", "leads to an address that may not be reached"),
    ],
)
def test_a_redirect_goes_nowhere_else(internet, authority, target, error):
    far = internet.listen(PUBLIC, {"far.example": authority.sign("far.example")}, a=target, b=b"far")
    inner = internet.listen(PRIVATE, {"inner.example": authority.sign("inner.example")}, b=b"secret")
    internet.names = {"far.example": [[PUBLIC]], "inner.example": [[PRIVATE]], "127.0.0.1": [[PRIVATE]]}
    with pytest.raises(TerralapseError, match=error):
        _http.get("https://far.example/a", most=10)
    assert far.asked == ["far.example/a"]
    assert (inner.named, inner.asked) == ([], [])


def test_a_redirect_to_another_public_host_asks_for_its_certificate(internet, authority):
    internet.listen(PUBLIC, {"far.example": authority.sign("far.example")}, a="https://other.example/b")
    other = internet.listen(OTHER, {"other.example": authority.sign("other.example")}, b=b"here")
    internet.names = {"far.example": [[PUBLIC]], "other.example": [[OTHER]]}
    assert _http.get("https://far.example/a", most=10).body == b"here"
    assert (other.named, other.asked) == (["other.example"], ["other.example/b"])


def test_a_name_that_turns_private_does_not_reach_what_is_private(internet, authority):
    """A valid certificate does not help it: the private server has one for the same name."""
    shown = {"turns.example": authority.sign("turns.example")}
    public = internet.listen(PUBLIC, shown, a=b"public")
    private = internet.listen(PRIVATE, shown, a=b"secret")
    internet.names["turns.example"] = [[PUBLIC], [PRIVATE]]
    assert _http.get("https://turns.example/a", most=10).body == b"public"
    looks.shut(10**6)  # as before each look and each analysis: nothing stays connected
    with pytest.raises(HostileFileError, match=r"turns\.example: is not on the public Internet"):
        _http.get("https://turns.example/a", most=10)
    assert internet.connected == [(PUBLIC, 443)]
    assert public.asked == ["turns.example/a"]
    assert (private.named, private.asked) == ([], [])
