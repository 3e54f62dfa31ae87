"""The command line as a client of a server: what it sends, shows, writes and leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import urllib3

from bad_inputs import image
from serve_clients import TOKEN, living
from terralapse.errors import FileMissingError, ServerError, SettingError
from terralapse.serve import client as clients
from terralapse.serve.client import Client, change, settings_of
from terralapse.serve.looks import Looker
from terralapse.serve.options import Options
from terralapse.workflows.change import ChangeSettings

DEFAULTS = asdict(ChangeSettings())
QUICK = {"model": "difference"}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "mine").mkdir()
    return image(tmp_path / "mine", "first.tif", seed=1), image(tmp_path / "mine", "second.tif", seed=2)


@pytest.fixture
def server(tmp_path: Path, looker: Looker) -> Iterator[str]:
    """A server that takes uploads and wants a token."""
    (tmp_path / "work").mkdir()
    (tmp_path / "images").mkdir()
    image(tmp_path / "images", "offered.tif", seed=3)
    options = Options(workspace=tmp_path / "work", uploads=True, inputs=(tmp_path / "images",), token=TOKEN)
    with living(options, looker) as address:
        yield address


def uploads(tmp_path: Path) -> list[str]:
    return [p.name for p in (tmp_path / "work/.terralapse-uploads").iterdir()]


def test_two_files_become_a_folder_of_products(server, pair, tmp_path):
    told: list[tuple[str, int, int]] = []
    client = Client(f"{server}?token={TOKEN}")
    result = change(client, *pair, tmp_path / "out", QUICK, progress=lambda *a: told.append(a))
    made = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    kept = next(p for p in (tmp_path / "work").iterdir() if p.name.startswith("second-"))
    assert made == {p.relative_to(kept).as_posix() for p in kept.rglob("*") if p.is_file()}
    assert all((tmp_path / "out" / n).read_bytes() == (kept / n).read_bytes() for n in made)
    assert result.run["model"]["slug"] == "difference"
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert (stages[0], stages[-1]) == ("upload", "download")
    assert any(stage.endswith("on the server") for stage in stages)
    assert uploads(tmp_path) == []
    assert not list(tmp_path.glob("out.*"))


def test_images_of_the_server_are_named_and_an_area_is_sent(server, pair, tmp_path):
    ring = [[15.0, 45.15221], [15.001, 45.15221], [15.001, 45.153], [15.0, 45.153], [15.0, 45.15221]]
    (tmp_path / "aoi.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    settings = settings_of({"model": "difference", "aoi": tmp_path / "aoi.geojson"}, DEFAULTS)
    assert settings["area"]["coordinates"][0][0] == pytest.approx(ring[0], abs=1e-9) or settings["area"]
    result = change(Client(server, TOKEN), "images/offered.tif", pair[1], tmp_path / "out", settings)
    grid = result.run["grid"]
    assert (grid["width"], grid["height"]) < (96, 96)


def test_what_is_wrong_is_one_error_and_nothing_is_written(server, pair, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ServerError, match=r"wants a token\. Give it with --token"):
        change(Client(server), *pair, out, QUICK)
    with pytest.raises(FileMissingError, match=r"nowhere\.tif: is neither a file here.*images/offered\.tif"):
        change(Client(server, TOKEN), "nowhere.tif", pair[1], out, QUICK)
    with pytest.raises(SettingError, match="is a folder"):
        change(Client(server, TOKEN), str(tmp_path), pair[1], out, QUICK)
    (tmp_path / "text.tif").write_text("a letter " * 9)
    with pytest.raises(ServerError, match=r"text\.tif: holds text, not an image"):
        change(Client(server, TOKEN), pair[0], str(tmp_path / "text.tif"), out, QUICK)
    with pytest.raises(ServerError, match=r"cannot be reached.*serve"):
        change(Client("http://127.0.0.1:9", TOKEN), *pair, out, QUICK)
    assert not out.exists()
    assert not list(tmp_path.glob("out.*"))
    assert uploads(tmp_path) == []


@pytest.mark.parametrize("server", ["ftp://a", "127.0.0.1:8800", "http://", ""])
def test_an_address_that_is_none_is_said(server):
    with pytest.raises(SettingError, match=r"is no address\. Write it like"):
        Client(server)


def test_what_a_server_does_not_take_is_said(tmp_path):
    with pytest.raises(SettingError, match="--tile: is not sent to a server"):
        settings_of({"tile": 256}, DEFAULTS)
    assert settings_of({"tile": None, "grid": "coarser", "pixel_grid": True}, DEFAULTS) == {
        "pixel_grid": True
    }
    hole = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]],
                                               [[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]]}  # fmt: skip
    (tmp_path / "hole.geojson").write_text(json.dumps(hole))
    with pytest.raises(SettingError, match="has a hole"):
        settings_of({"aoi": tmp_path / "hole.geojson"}, DEFAULTS)


def test_a_transfer_that_breaks_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "PIECE", 4000)
    monkeypatch.setattr(clients, "BACKOFF", 0.01)
    path = Path(image(tmp_path, "a.tif"))
    client = Client(server, TOKEN)
    sending, broken, offsets = client._send, [], []

    def send(method: str, where: str, body: Any, headers: Any, preload: bool = True) -> Any:
        if method == "PATCH":
            offsets.append(int(headers["upload-offset"]))
            if len(offsets) in (2, 3):
                broken.append(where)
                raise urllib3.exceptions.ProtocolError("Connection aborted.")
        return sending(method, where, body, headers, preload)

    monkeypatch.setattr(client, "_send", send)
    made = client.upload(path)
    assert made["image"]["width"] == 96
    assert offsets[:4] == [0, 4000, 4000, 4000]
    assert len(broken) == 2
    monkeypatch.setattr(client, "_send", sending)
    assert client.ask("DELETE", f"/api/uploads/{made['id']}") == {}


def test_names_of_products_that_lead_out_are_refused(tmp_path, monkeypatch):
    client = Client("http://127.0.0.1:9")
    answers = {
        "/api/results": {"results": [{"title": "r", "href": "/api/results/r"}]},
        "/api/results/r/files": {"files": [{"name": "../../evil", "bytes": 1}]},
    }
    monkeypatch.setattr(client, "ask", lambda method, path: answers[path])
    with pytest.raises(ServerError, match="which is no name of a file"):
        client.download("r", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_cancels_the_analysis_on_the_server(server, tmp_path):
    """The command as a process: interrupted while the server works, it leaves nothing anywhere."""
    pair = [image(tmp_path, f"large-{n}.tif", seed=n, size=2048) for n in (1, 2)]
    command = [
        sys.executable,
        "-m",
        "terralapse",
        "change",
        *pair,
        "-o",
        str(tmp_path / "out"),
        "-m",
        "ir-mad",
    ]
    command += ["--server", server, "--token", TOKEN]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    client = Client(server, TOKEN)
    until = time.monotonic() + 240
    while time.monotonic() < until:
        states = [j["state"] for j in client.ask("GET", "/api/jobs")["jobs"]]
        if states == ["running"]:
            break
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; nothing was written" in said
    assert [j["state"] for j in client.ask("GET", "/api/jobs")["jobs"]] == ["cancelled"]
    assert not (tmp_path / "out").exists()
    assert uploads(tmp_path) == []
    assert not [p for p in (tmp_path / "work").iterdir() if p.name.startswith("large-") and p.is_dir()]
