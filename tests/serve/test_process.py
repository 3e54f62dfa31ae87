"""The command as a process: what it prints, where it listens, what GDAL may still do in it, how it ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from serve_clients import TOKEN, running
from terralapse.errors import SettingError
from terralapse.serve.options import Options
from terralapse.serve.run import _bind, serve


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "terralapse", "serve", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def test_it_prints_where_it_is_and_serves_tiles_there(shelf: Path) -> None:
    with running(shelf / "Blobs") as address:
        assert urlsplit(address).hostname == "127.0.0.1"
        with httpx2.Client(base_url=address) as client:
            result = client.get("/api/results").json()["results"][0]
            found = client.get(result["href"]).json()
            layer = next(x for x in found["layers"] if x["name"] == "probability")
            said = client.get(layer["tilejson"]).json()
            zoom = said["center"][2]
            answer = client.get(f"{layer['tilejson'].removesuffix('/tilejson.json')}/{zoom}/0/0.png")
            assert answer.status_code == 404
            assert "server" not in answer.headers
            features = client.get(found["links"]["polygons"]).json()
            assert features["numberMatched"] == found["numbers"]["polygons"]


def test_with_a_token_the_address_holds_it_and_other_interfaces_are_bound(shelf: Path) -> None:
    with running(shelf, "--host", "0.0.0.0", TERRALAPSE_TOKEN=TOKEN) as address:
        assert urlsplit(address).query == f"token={TOKEN}"
        with httpx2.Client(follow_redirects=True) as client:
            root = address.partition("?")[0]
            assert client.get(f"{root}api/results").status_code == 401
            assert client.get(address).status_code == 200
            assert client.get(f"{root}api/results").status_code == 200


def test_what_cannot_be_served_is_one_error() -> None:
    done = command("--host", "0.0.0.0")
    assert done.returncode == 2
    assert done.stderr == (
        "terralapse: host 0.0.0.0: can be reached from other machines and no token is set. "
        "Set one with --token or TERRALAPSE_TOKEN, or bind to 127.0.0.1.\n"
    )


def test_an_address_that_cannot_be_had_is_said_to_be_so() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(SettingError, match=f"127.0.0.1:{port}: is taken. Choose another with --port"):
            serve(Options(port=port), print)


def test_a_small_answer_does_not_wait_for_the_word_of_the_client() -> None:
    with _bind(Options(port=0)) as bound:
        assert bound.proto == socket.IPPROTO_TCP


_PROBE = """
import json, sys
from terralapse.serve.drivers import ALLOWED, loaded, restrict
restrict()
import rasterio
tried = {}
for name in sys.argv[1:]:
    try:
        rasterio.open(name)
        tried[name] = "opened"
    except rasterio.errors.RasterioIOError as error:
        tried[name] = "refused"
drivers = {p: sorted(loaded(p)) for p in ("rasterio", "pyogrio")}
print(json.dumps({"drivers": drivers, "tried": tried, "allowed": sorted(ALLOWED)}))
"""


def test_gdal_keeps_no_driver_that_is_not_needed(shelf: Path, tmp_path: Path) -> None:
    ascii_grid = tmp_path / "grid.asc"
    ascii_grid.write_text("ncols 1\nnrows 1\nxllcorner 0\nyllcorner 0\ncellsize 1\n1\n")
    names = [str(ascii_grid), "WMS:http://127.0.0.1:9/x", str(shelf / "Blobs/change.tif")]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *names], capture_output=True, text=True, check=True, timeout=60
    )
    found = json.loads(done.stdout)
    for package, needed in (("rasterio", {"GTiff", "PNG", "JPEG"}), ("pyogrio", {"GPKG", "GeoJSON"})):
        assert needed <= set(found["drivers"][package]) <= set(found["allowed"])
    assert list(found["tried"].values()) == ["refused", "refused", "opened"]
    assert not {"WMS", "WCS", "WMTS", "HTTP", "STACIT", "GTI", "EEDAI"} & set(found["allowed"])
    assert done.stderr == ""


def test_gdal_that_was_used_before_is_not_served_with() -> None:
    used = "import rasterio\nwith rasterio.Env(): pass\n"
    words = [sys.executable, "-c", used + _PROBE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "rasterio keeps the drivers" in done.stderr
