"""Analyses under the workers of a Dask cluster of this machine: progress, cancelling, workers that die."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from bad_inputs import image
from job_machines import free_port
from terralapse.errors import SettingError
from terralapse.serve import on_dask
from terralapse.serve.app import create_app
from terralapse.serve.jobs import Jobs
from terralapse.serve.on_dask import OnDask
from terralapse.serve.options import Limits, Options

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    options: Any = {"dashboard_address": None, "host": "127.0.0.1", "silence_logs": 50}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as found:
        yield found


Make = Callable[[str], Jobs]


@pytest.fixture
def queue(tmp_path: Path, cluster: Any) -> Iterator[Make]:
    """Queues whose workers are a few lines that know their `task` and `tell` of it."""
    made: list[Jobs] = []
    cluster.wait_for_workers(2)

    def make(body: str) -> Jobs:
        script = tmp_path / "worker.py"
        script.write_text(
            "import json, os, sys, threading, time, pathlib\n"
            "task = json.loads(sys.stdin.readline())\n"
            "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(75)), daemon=True).start()\n"
            f"tell = lambda **v: print(json.dumps(v), flush=True)\n{body}\n"
        )
        jobs = Jobs(tmp_path, runner=OnDask(cluster.scheduler_address, (sys.executable, str(script))))
        made.append(jobs)
        jobs.start()
        return jobs

    yield make
    for jobs in made:
        jobs.stop()


def add(jobs: Jobs) -> str:
    return jobs.add(("a", Path("a")), ("b.tif", Path("b")), {"model": "auto"})["id"]


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def state(jobs: Jobs, identity: str) -> str:
    found = jobs.get(identity)
    assert found is not None
    return found["state"]


def lives(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


WAIT = (
    "part = pathlib.Path(task['output'] + '.part')\npart.mkdir(exist_ok=True)\n"
    "tell(stage=f'{os.getpid()} {os.getppid()}', share=0.5)\n"
    "while not pathlib.Path(task['output'] + '.go').exists(): time.sleep(0.02)"
)


def processes(jobs: Jobs, identity: str) -> tuple[int, int]:
    """Of the analysis, and of the worker of Dask that it is under."""
    mine, above = until(lambda: jobs.get(identity)["stage"]).split()  # type: ignore[index]
    return int(mine), int(above)


def test_as_many_run_at_once_as_there_are_workers_and_tell_how_far_they_are(tmp_path, queue):
    jobs = queue(WAIT)
    known = [add(jobs) for _ in range(3)]
    above = {processes(jobs, identity)[1] for identity in known[:2]}
    assert len(above) == 2
    assert jobs.get(known[0])["share"] == 0.5
    assert state(jobs, known[2]) == "queued"
    for identity in known:
        Path(tmp_path / f"{jobs.get(identity)['output']}.go").touch()
    until(lambda: {j["state"] for j in jobs.all()} == {"done"})


def test_two_that_start_together_get_a_worker_each_though_the_scheduler_has_not_heard_of_the_first(
    tmp_path, cluster, monkeypatch
):
    cluster.wait_for_workers(2)
    runner = OnDask(cluster.scheduler_address, (sys.executable, "-c", "input()"))
    idle = dict.fromkeys(runner.workers(), ())
    monkeypatch.setattr(runner._client, "processing", lambda: idle)
    attempts: list[Any] = [runner.start({"output": str(tmp_path / name)}) for name in "ab"]
    assert {a._worker for a in attempts} == set(idle)
    attempts[0].end()
    again: Any = runner.start({"output": str(tmp_path / "c")})
    assert again._worker == attempts[0]._worker
    for attempt in (again, attempts[1]):
        attempt.end()
    runner.close()


def test_cancelling_ends_the_process_under_the_worker_and_removes_its_work(tmp_path, queue):
    jobs = queue(WAIT)
    identity = add(jobs)
    mine, above = processes(jobs, identity)
    assert jobs.cancel(identity)
    until(lambda: not lives(mine))
    assert lives(above)
    until(lambda: not list(tmp_path.glob("*.part")))
    assert state(jobs, identity) == "cancelled"


def test_a_worker_that_dies_puts_the_job_back(tmp_path, queue):
    jobs = queue(WAIT)
    identity = add(jobs)
    mine, above = processes(jobs, identity)
    os.kill(above, signal.SIGKILL)
    until(lambda: not lives(mine))
    until(lambda: jobs.get(identity)["stage"].split()[:1] not in ([], [str(mine)]))
    assert processes(jobs, identity)[1] != above
    Path(tmp_path / f"{jobs.get(identity)['output']}.go").touch()
    until(lambda: state(jobs, identity) == "done")


def test_an_analysis_that_fails_says_why(queue):
    jobs = queue("tell(error='b.tif: is damaged. Send it again.')\nsys.exit(2)")
    identity = add(jobs)
    until(lambda: state(jobs, identity) == "failed")
    assert jobs.get(identity)["message"] == "b.tif: is damaged. Send it again."


def test_a_server_that_goes_takes_its_process_with_it(queue):
    jobs = queue(WAIT)
    identity = add(jobs)
    mine, _ = processes(jobs, identity)
    jobs.stop()
    until(lambda: not lives(mine))


def test_an_address_where_nobody_answers(monkeypatch):
    monkeypatch.setattr(on_dask, "_CONNECT_S", 1)
    with pytest.raises(SettingError, match="no scheduler answers"):
        OnDask(f"tcp://127.0.0.1:{free_port()}")


@pytest.mark.slow
def test_an_analysis_of_the_page_runs_on_the_cluster(tmp_path, cluster):
    for name in ("work", "images"):
        (tmp_path / name).mkdir()
    image(tmp_path / "images", "before.tif", seed=1)
    image(tmp_path / "images", "after.tif", seed=2)
    options = Options(
        workspace=tmp_path / "work",
        inputs=(tmp_path / "images",),
        dask=cluster.scheduler_address,
        limits=Limits(rate=1e6, burst=10**6),
    )
    asked = {"before": "images/before.tif", "after": "images/after.tif", "model": "difference"}
    with TestClient(create_app(options), base_url="http://127.0.0.1:8800") as client:
        known = client.post("/api/jobs", json=asked).json()["id"]
        ends = ("done", "failed")
        job = until(lambda: (j := client.get(f"/api/jobs/{known}").json())["state"] in ends and j, 240)
        assert (job["state"], job["message"]) == ("done", "")
        time.sleep(1.1)
        assert [r["title"] for r in client.get("/api/results").json()["results"]] == [job["output"]]
