"""Analyses started over HTTP: the queue, its survival, cancelling, and what strangers may not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient
from rasterio.transform import from_origin

from bad_inputs import image
from serve_clients import running, start
from terralapse.errors import SettingError
from terralapse.serve.app import create_app
from terralapse.serve.inputs import Inputs
from terralapse.serve.jobs import MOST_WAITING, Jobs, QueueFullError
from terralapse.serve.options import Limits, Options

BASE = "http://127.0.0.1:8800"
FREE = Limits(rate=1e6, burst=10**6)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, one in a folder; a text, a VRT and a link that must not be offered."""
    folder = tmp_path / "images"
    (folder / "tiles").mkdir(parents=True)
    image(folder, "before.tif", seed=1)
    image(folder / "tiles", "after.tif", seed=2)
    (folder / "text.tif").write_text("no image")
    (folder / "all.vrt").write_text("<VRTDataset/>")
    (folder / "vrt.tif").write_text("<VRTDataset/>")
    (tmp_path / "secret.tif").write_bytes((folder / "before.tif").read_bytes())
    (folder / "link.tif").symlink_to(tmp_path / "secret.tif")
    return folder


@pytest.fixture
def options(tmp_path: Path, images: Path) -> Options:
    (tmp_path / "work").mkdir()
    return Options(workspace=tmp_path / "work", inputs=(images,), limits=FREE)


@pytest.fixture
def client(options: Options) -> Iterator[TestClient]:
    with TestClient(create_app(options), base_url=BASE) as found:
        yield found


ASKED = {"before": "images/before.tif", "after": "images/tiles/after.tif", "model": "difference"}


def ended(client: TestClient, identity: str, seconds: float = 120) -> dict:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.get(f"/api/jobs/{identity}").json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"still {found}")


def fake(tmp_path: Path, body: str) -> tuple[str, ...]:
    """A worker of a few lines, which has read its `task`."""
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, time, pathlib\n"
        "task = json.loads(sys.stdin.readline())\n"
        f"tell = lambda **v: print(json.dumps(v), flush=True)\n{body}\n"
    )
    return (sys.executable, str(script))


def wait_for(jobs: Jobs, identity: str, *states: str) -> dict:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = jobs.get(identity)
        assert found is not None
        if found["state"] in states:
            return found
        time.sleep(0.02)
    raise AssertionError(f"still {found['state']}")


def add(jobs: Jobs) -> str:
    return jobs.add(("a", Path("a")), ("b.tif", Path("b")), {"model": "auto"})["id"]


# --- what is offered ---------------------------------------------------------------------------------
def test_only_images_below_the_allowed_folders_are_offered(client):
    found = client.get("/api/inputs").json()
    assert [(i["name"], i["kind"]) for i in found["inputs"]] == [
        ("images/before.tif", "image"),
        ("images/tiles", "tiles"),
        ("images/tiles/after.tif", "image"),
    ]
    assert {"ir-mad", "lapsenet"} <= {m["slug"] for m in found["models"]}


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "in").mkdir(parents=True)
        image(tmp_path / parent / "in", "x.tif")
    names = Inputs((tmp_path / "a/in", tmp_path / "b/in")).all()
    assert list(names) == ["in-1/x.tif", "in-2/x.tif"]


# --- from asking to the result -----------------------------------------------------------------------
def test_an_analysis_ends_in_a_result_of_the_server(client, options):
    said = client.post("/api/jobs", json=ASKED)
    assert said.status_code == 201, said.text
    assert str(options.workspace) not in said.text
    done = ended(client, said.json()["id"])
    assert (done["state"], done["message"]) == ("done", "")
    time.sleep(1.1)  # a listing is good for a second
    found = client.get("/api/results").json()["results"]
    assert [r["title"] for r in found] == [done["output"]]
    run = client.get(f"{found[0]['href']}/run").json()
    assert run["model"]["slug"] == "difference"


def test_what_the_person_can_mend_is_said(client, images):
    far = image(images, "far.tif", transform=from_origin(9e5, 1e6, 2, 2))
    said = client.post("/api/jobs", json=ASKED | {"after": "images/far.tif"}).json()
    done = ended(client, said["id"])
    assert done["state"] == "failed"
    assert "Traceback" not in done["message"]
    assert str(Path(far).parent) not in done["message"]
    assert done["message"].endswith(".")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"before": "images/link.tif"}, "choose both"),
        ({"before": "images/../secret.tif"}, "choose both"),
        ({"before": "/etc/passwd"}, "choose both"),
        ({"before": "/vsicurl/http://127.0.0.1/x.tif"}, "choose both"),
        ({"before": "http://169.254.169.254/latest"}, "choose both"),
        ({"after": "images/before.tif"}, "two different"),
        ({"model": "__import__('os')"}, "one of those that are offered"),
        ({"model": "lapsenet=/tmp/x.pth"}, "one of those that are offered"),
        ({"threshold": 2}, "threshold"),
        ({"date_before": "yesterday"}, "date_before"),
        ({"weights": "/tmp/x.pth"}, "weights"),
    ],
)
def test_what_is_not_offered_is_refused(client, change, said):
    answer = client.post("/api/jobs", json=ASKED | change)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert client.get("/api/jobs").json() == {"jobs": []}


# --- strangers ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_can_start_nothing(client, headers):
    assert client.post("/api/jobs", json=ASKED, headers=headers).status_code == 403
    assert client.delete("/api/jobs/x", headers=headers).status_code == 403


def test_a_form_and_a_flood_are_refused(client):
    form = client.post("/api/jobs", content=json.dumps(ASKED), headers={"content-type": "text/plain"})
    assert form.status_code == 415
    large = client.post("/api/jobs", content=b" " * 70_000, headers={"content-type": "application/json"})
    assert large.status_code == 413
    pieces = client.post("/api/jobs", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert pieces.status_code == 413
    assert client.post("/api/results").status_code == 405


def test_without_a_workspace_there_are_no_jobs(serve):
    client = serve()
    assert client.get("/api/results").json()["jobs"] is False
    assert client.post("/api/jobs", json=ASKED).status_code == 405
    assert client.get("/api/jobs").status_code == 404


def test_a_workspace_and_inputs_come_together(tmp_path):
    for given in ({"workspace": tmp_path}, {"inputs": (tmp_path,)}):
        with pytest.raises(SettingError, match="only of use together"):
            Options(**given)


# --- the queue ---------------------------------------------------------------------------------------
def test_one_runs_after_the_other_and_tells_how_far_it_is(tmp_path):
    body = (
        "tell(stage='predict', share=0.5)\n"
        "while not pathlib.Path(task['output'] + '.go').exists(): time.sleep(0.02)"
    )
    jobs = Jobs(tmp_path, fake(tmp_path, body))
    jobs.start()
    try:
        first, second = add(jobs), add(jobs)
        wait_for(jobs, first, "running")
        until = time.monotonic() + 30
        while jobs.get(first)["stage"] != "predict" and time.monotonic() < until:
            time.sleep(0.02)
        assert (jobs.get(first)["stage"], jobs.get(first)["share"]) == ("predict", 0.5)
        assert jobs.get(second)["state"] == "queued"
        for identity in (first, second):
            Path(tmp_path / f"{jobs.get(identity)['output']}.go").touch()
            wait_for(jobs, identity, "done")
        assert [j["number"] for j in jobs.all()] == [2, 1]
    finally:
        jobs.stop()


def test_cancelling_ends_the_process_and_removes_its_work(tmp_path):
    body = (
        "part = pathlib.Path(task['output'] + '.part')\npart.mkdir()\n"
        "tell(stage=str(os.getpid()), share=0)\ntime.sleep(600)"
    )
    jobs = Jobs(tmp_path, fake(tmp_path, body))
    jobs.start()
    try:
        running, waiting = add(jobs), add(jobs)
        until = time.monotonic() + 30
        while not (pid := jobs.get(running)["stage"]) and time.monotonic() < until:
            time.sleep(0.02)
        assert jobs.cancel(waiting)
        assert jobs.cancel(running)
        assert not jobs.cancel(running)
        assert not jobs.cancel("unknown")
        until = time.monotonic() + 30
        while list(tmp_path.glob("*.part")) and time.monotonic() < until:
            time.sleep(0.02)
        assert list(tmp_path.glob("*.part")) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
        assert [j["state"] for j in jobs.all()] == ["cancelled", "cancelled"]
    finally:
        jobs.stop()


def test_what_ran_when_the_server_ended_runs_again(tmp_path):
    body = (
        "seen = pathlib.Path(task['output'] + '.seen')\n"
        "if not seen.exists():\n    seen.touch()\n    tell(stage='first', share=0)\n    time.sleep(600)"
    )
    jobs = Jobs(tmp_path, fake(tmp_path, body))
    jobs.start()
    identity = add(jobs)
    until = time.monotonic() + 30
    while jobs.get(identity)["stage"] != "first" and time.monotonic() < until:
        time.sleep(0.02)
    jobs.stop()
    later = Jobs(tmp_path, fake(tmp_path, body))
    assert later.get(identity)["state"] == "queued"
    later.start()
    try:
        assert wait_for(later, identity, "done", "failed")["state"] == "done"
    finally:
        later.stop()


def test_a_worker_that_dies_is_a_failure_with_a_reason(tmp_path):
    jobs = Jobs(
        tmp_path,
        fake(tmp_path, "sys.stderr.write('no memory left\\n')\nsys.stderr.flush()\nos.kill(os.getpid(), 9)"),
    )
    jobs.start()
    try:
        found = wait_for(jobs, add(jobs), "failed")
        assert found["message"] == "The analysis ended with code -9. no memory left"
    finally:
        jobs.stop()


def test_a_worker_whose_server_is_killed_ends_too():
    command = [sys.executable, "-m", "terralapse.serve.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"before": "a", "after": "b", "output": "c", "settings": {}}))
    process.stdin.close()  # as when the server has died
    assert process.wait(60) != 0


def test_the_queue_has_an_end(tmp_path):
    jobs = Jobs(tmp_path)
    for _ in range(MOST_WAITING):
        add(jobs)
    with pytest.raises(QueueFullError):
        add(jobs)


@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing(tmp_path, images):
    """kill -9 in the middle of the second analysis: the first is still there, the second goes on and ends."""
    (tmp_path / "work").mkdir()
    for name, seed in (("large-1.tif", 3), ("large-2.tif", 4)):
        image(images, name, seed=seed, size=1400)
    arguments = ("--workspace", tmp_path / "work", "--inputs", images)
    large = {"before": "images/large-1.tif", "after": "images/large-2.tif", "model": "difference"}

    def state(client: httpx2.Client, identity: str, *wanted: str) -> dict:
        until = time.monotonic() + 240
        while time.monotonic() < until:
            found = client.get(f"api/jobs/{identity}").json()
            if found["state"] in wanted:
                return found
            time.sleep(0.05)
        raise AssertionError(f"still {found}")

    process, address = start(*arguments)
    try:
        with httpx2.Client(base_url=address) as client:
            first = client.post("api/jobs", json=ASKED).json()["id"]
            state(client, first, "done")
            second = client.post("api/jobs", json=large).json()["id"]
            state(client, second, "running")
            while not list((tmp_path / "work").glob("*.part")):
                time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    with running(*arguments) as address, httpx2.Client(base_url=address) as client:
        states = {j["id"]: j["state"] for j in client.get("api/jobs").json()["jobs"]}
        assert states[first] == "done"
        assert states[second] in ("queued", "running")
        assert state(client, second, "done", "failed")["message"] == ""
        time.sleep(1.1)
        assert len(client.get("api/results").json()["results"]) == 2
