"""Released checkpoints, from a server that stands in for the archive."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from terralapse.cards import Card, Released, Status, Task
from terralapse.errors import FileMissingError, SettingError, UnsafeWeightsError
from terralapse.layers.released import fetch, find

BODY = b"weights of a network" * 1000
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """The paths that were asked for, while a server answers for record 7."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            known = ("/records/7/files/net.pth", "/someone/nets/resolve/abc/net.pth")
            if self.path.partition("?")[0] not in known:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for site in ("ZENODO", "HUB"):
        monkeypatch.setenv(f"TERRALAPSE_{site}", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()


def test_a_file_is_fetched_once_and_checked_each_time(archive):
    released = Released("net.pth", "zenodo:7", sha256=SHA)
    path = fetch(released)
    assert path.read_bytes() == BODY
    assert fetch(released) == path
    assert archive == ["/records/7/files/net.pth?download=1"]
    path.write_bytes(b"changed")
    with pytest.raises(UnsafeWeightsError, match="sha256"):
        fetch(released)


def test_a_file_of_another_hash_is_not_kept(archive, tmp_path):
    with pytest.raises(UnsafeWeightsError, match="not the one that is known"):
        fetch(Released("net.pth", "zenodo:7", sha256="0" * 64))
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_file_of_the_hub_at_its_revision_and_one_known_by_md5(archive):
    assert fetch(Released("net.pth", "hub:someone/nets@abc", sha256=SHA)).read_bytes() == BODY
    assert fetch(Released("net.pth", "zenodo:7", md5=hashlib.md5(BODY).hexdigest())).read_bytes() == BODY
    assert archive == ["/someone/nets/resolve/abc/net.pth", "/records/7/files/net.pth?download=1"]
    with pytest.raises(UnsafeWeightsError, match="md5"):
        fetch(Released("net.pth", "zenodo:7", md5="0" * 32))


def test_what_is_not_there_is_said(archive):
    with pytest.raises(FileMissingError, match=r"(?s)other\.pth.*give its path"):
        fetch(Released("other.pth", "zenodo:7", sha256=SHA))
    with pytest.raises(SettingError, match="no known source"):
        fetch(Released("net.pth", "ftp:7", sha256=SHA))


def test_a_file_without_a_known_hash_is_never_fetched(archive):
    with pytest.raises(FileMissingError, match="hash is not known"):
        fetch(Released("net.pth", "zenodo:7"))
    assert archive == []


def test_a_name_or_a_path(archive, tmp_path):
    card = Card("a", "A", Task.CHANGE, Status.RUNS, released=(Released("net.pth", "zenodo:7", sha256=SHA),))
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"x")
    assert find(card, own) == own
    assert find(card, "net.pth").read_bytes() == BODY
    with pytest.raises(FileMissingError, match=r"one of the released files: net\.pth"):
        find(card, "nets.pth")
