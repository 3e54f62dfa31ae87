"""The command as a process: what it prints, where it listens, what GDAL may still do in it, how it ends."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from bad_inputs import image
from serve_clients import TOKEN, running, start
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


# Takes the place of the worker, under the same command, in the processes that a server starts: a result that
# was made before, at once or, where it lies open for long, at the second attempt.
_STAND_IN = """
import json, os, pathlib, shutil, sys, time
if "terralapse.serve.worker" in sys.orig_argv:
    task = json.loads(sys.stdin.readline())
    part = pathlib.Path(task["output"] + ".part")
    if "long" in task["before"] and not part.exists():
        part.mkdir()
        print(json.dumps({"stage": str(os.getpid()), "share": 0.5}), flush=True)
        time.sleep(600)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(os.environ["MADE_BEFORE"], task["output"])
    os._exit(0)
"""


def until(client: httpx2.Client, path: str, seen: Callable[[Any], bool]) -> Any:
    """The answer at a path once something is seen in it."""
    end = time.monotonic() + 120
    while not seen(found := client.get(path).json()):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def digests(folder: Path) -> dict[str, str]:
    paths = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def test_kill_9_of_server_and_worker_loses_nothing_that_was_done_or_said(tmp_path: Path, shelf: Path) -> None:
    """The analysis itself is a stand-in; `test_a_server_that_is_killed_loses_nothing` has the real one."""
    work, images = tmp_path / "work", tmp_path / "images"
    work.mkdir()
    images.mkdir()
    for seed, name in enumerate(("short.tif", "long.tif", "after.tif")):
        image(images, name, seed=seed)
    (tmp_path / "sitecustomize.py").write_text(_STAND_IN)
    environment = {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
        "MADE_BEFORE": str(shelf / "Blobs"),
    }
    arguments = ("--workspace", work, "--inputs", images)
    asked = {"after": "images/after.tif", "model": "difference"}

    process, address = start(*arguments, **environment)
    worker = None
    try:
        with httpx2.Client(base_url=address, timeout=60) as client:
            first = client.post("api/jobs", json=asked | {"before": "images/short.tif"}).json()["id"]
            first = until(client, f"api/jobs/{first}", lambda job: job["state"] not in ("queued", "running"))
            assert (first["state"], first["message"]) == ("done", "")
            result = until(client, "api/results", lambda found: found["results"])["results"][0]
            review = f"api/results/{result['id']}/review"
            for number, version, verdict in ((1, 0, "accepted"), (1, 1, "rejected"), (2, 0, "accepted")):
                said = {"by": "Ada", "version": version, "verdict": verdict, "comment": f"no. {version}"}
                assert client.post(f"{review}/{number}", json=said).status_code == 200
            histories = [client.get(f"{review}/{number}").json()["history"] for number in (1, 2)]
            assert [[h["verdict"] for h in x] for x in histories] == [["accepted", "rejected"], ["accepted"]]
            shown, files = client.get(result["href"]).json(), digests(work / first["output"])
            second = client.post("api/jobs", json=asked | {"before": "images/long.tif"}).json()["id"]
            running_job = until(client, f"api/jobs/{second}", lambda job: job["stage"])
            assert running_job["state"] == "running"
            worker = psutil.Process(int(running_job["stage"]))
    finally:
        process.kill()
        process.communicate()
        if worker is not None:
            worker.kill()
    assert [p.name for p in work.glob("*.part")] == [f"{running_job['output']}.part"]

    with running(*arguments, **environment) as address, httpx2.Client(base_url=address, timeout=60) as client:
        assert client.get(f"api/jobs/{first['id']}").json() == first
        assert client.get(result["href"]).json() == shown
        assert digests(work / first["output"]) == files
        assert [client.get(f"{review}/{number}").json()["history"] for number in (1, 2)] == histories
        job = until(client, f"api/jobs/{second}", lambda job: job["state"] not in ("queued", "running"))
        assert (job["state"], job["message"]) == ("done", "")
        assert digests(work / job["output"]) == files
        until(client, "api/results", lambda found: len(found["results"]) == 2)
