"""Queue and reviews in a file and in a real PostgreSQL: several servers, none of which takes from another."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("psycopg")

from bad_inputs import image
from serve_clients import running, start
from serve_postgres import Postgres, postgres
from terralapse.errors import SettingError
from terralapse.serve import jobs as queue
from terralapse.serve.jobs import Jobs
from terralapse.serve.notebook import ConflictError, Notebook
from terralapse.serve.options import Options

RUN = "0123456789ab"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str | None:
    """None, which is a file in the workspace, or an empty database."""
    if request.param == "sqlite":
        return None
    return request.getfixturevalue("server").new()


def worker(tmp_path: Path, body: str) -> tuple[str, ...]:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, sys, threading, time, pathlib\n"
        "task = json.loads(sys.stdin.readline())\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(75)), daemon=True).start()\n"
        f"tell = lambda **v: print(json.dumps(v), flush=True)\n{body}\n"
    )
    return (sys.executable, str(script))


def add(jobs: Jobs) -> str:
    return jobs.add(("a", Path("a")), ("b.tif", Path("b")), {"model": "auto"})["id"]


def until(jobs: Jobs, identity: str, *states: str) -> dict:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = jobs.get(identity)
        assert found is not None
        if found["state"] in states:
            return found
        time.sleep(0.05)
    raise AssertionError(f"still {found}")


def soon(true: Callable[[], bool]) -> None:
    """Waits until it is true: a job is taken in the database before its server has a worker for it."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_job_is_taken_once_by_servers_that_ask_at_the_same_time(tmp_path, database):
    servers = [Jobs(tmp_path, database=database) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        numbers = list(
            pool.map(lambda k: servers[k % 6].add(("a", "a"), ("b", "b"), {})["number"], range(36))
        )
    assert sorted(numbers) == list(range(1, 37))
    gate = threading.Barrier(6)

    def take(jobs: Jobs) -> list[str]:
        gate.wait()
        taken = []
        while (job := jobs._claim()) is not None:
            taken.append(job.id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [identity for found in pool.map(take, servers) for identity in found]
    assert len(taken) == 36
    assert set(Counter(taken).values()) == {1}
    assert {j["state"] for j in servers[0].all()} == {"running"}


def test_two_servers_share_the_work_and_either_can_cancel_it(tmp_path, database, monkeypatch):
    monkeypatch.setattr(queue, "_BEAT", 0.1)
    body = "tell(stage=str(os.getpid()), share=0.5)\ntime.sleep(600)"
    one, two = (Jobs(tmp_path, worker(tmp_path, body), database=database) for _ in range(2))
    first = add(one)
    one.start()
    try:
        soon(lambda: set(one._running) == {first})
        two.start()
        second = add(one)  # `one` is busy
        soon(lambda: set(two._running) == {second})
        assert set(one._running) == {first}
        soon(lambda: all(j["stage"] for j in two.all()))
        numbers = {j["id"]: int(j["stage"]) for j in two.all()}
        assert two.cancel(first)  # which `one` runs
        soon(lambda: not one._running)
        with pytest.raises(ProcessLookupError):
            os.kill(numbers[first], 0)
        os.kill(numbers[second], 0)
        assert '"cancelled"' in two.listing()
    finally:
        one.stop()
        two.stop()


def test_what_a_silent_server_has_is_taken_back_and_its_word_counts_no_more(tmp_path, database, monkeypatch):
    gone, here = (Jobs(tmp_path, database=database) for _ in range(2))
    identity = add(gone)
    assert gone._claim() is not None
    here._take_back()
    assert here.get(identity)["state"] == "running"  # it is alive, and has just spoken
    monkeypatch.setattr(queue, "_LEASE", -1.0)
    here._take_back()
    assert here.get(identity)["state"] == "queued"
    assert not gone._note(identity, state="done")
    assert here._claim().id == identity
    assert here._note(identity, state="done")


def test_a_result_that_was_published_before_its_server_died_is_not_made_again(tmp_path, database):
    jobs = Jobs(tmp_path, worker(tmp_path, "sys.exit(3)"), database=database)
    identity = add(jobs)
    (tmp_path / jobs.get(identity)["output"]).mkdir()
    jobs.start()
    try:
        assert until(jobs, identity, "done", "failed")["state"] == "done"
    finally:
        jobs.stop()


def test_a_worker_that_is_always_lost_fails_in_the_end(tmp_path, database):
    jobs = Jobs(tmp_path, worker(tmp_path, "sys.exit(75)"), database=database)
    identity = add(jobs)
    jobs.start()
    try:
        assert until(jobs, identity, "failed")["message"] == "Its worker died again and again."
    finally:
        jobs.stop()


def test_workspaces_in_one_database_do_not_see_each_other(tmp_path, server):
    database = server.new()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, two = (Jobs(tmp_path / name, database=database) for name in ("a", "b"))
    identity = add(one)
    assert two.all() == []
    assert two.get(identity) is None
    assert two._claim() is None
    assert not two.cancel(identity)
    assert one._claim().id == identity


def test_a_queue_of_an_earlier_version_goes_on(tmp_path):
    file = tmp_path / ".terralapse-jobs.sqlite"
    names = "id number created state before after before_path after_path settings output stage share message"
    columns = ", ".join(f'"{n}" {"INTEGER" if n == "number" else "VARCHAR"} NOT NULL' for n in names.split())
    with sqlite3.connect(file) as connection:
        connection.execute(f"CREATE TABLE jobs ({columns}, started FLOAT, finished FLOAT, PRIMARY KEY (id))")
        values = ("x1", 1, 1.0, "running", "a", "b", "a", "b", "{}", "b-x1", "read", 0.5, "", 1.0, None)
        connection.execute(f"INSERT INTO jobs VALUES ({', '.join('?' * len(values))})", values)
    connection.close()
    jobs = Jobs(tmp_path, worker(tmp_path, "pass"))
    jobs.start()
    try:
        assert until(jobs, "x1", "done")["number"] == 1
    finally:
        jobs.stop()


# --- reviews -----------------------------------------------------------------------------------------
def test_reviews_are_kept_and_the_second_of_two_is_told(tmp_path, database):
    books = [Notebook(tmp_path, database) for _ in range(4)]
    told = []

    def say(number: int) -> None:
        try:
            books[number].say(RUN, 7, 0, by=f"r{number}", verdict="accepted", grade=None, comment="")
            told.append("kept")
        except ConflictError as error:
            told.append(error.current["by"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(say, range(4)))
    found = books[0].history(RUN, 7)
    assert [e["version"] for e in found] == [1]
    assert sorted(told) == sorted(["kept", *[found[0]["by"]] * 3])
    shape = {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}
    said = {"by": "é", "verdict": None, "grade": "minor", "comment": "x" * 2000}
    books[1].say(RUN, 7, 1, geometry=shape, **said)
    last = books[2].reviews(RUN)
    assert last == [
        {"polygon": 7, "version": 2, "at": last[0]["at"], "geometry": shape, "class_after": None, **said}
    ]
    sample = books[0].keep(RUN, "a", {"points": [1, 2]})
    books[3].mark(sample, 0, 0, "a", "change")
    assert books[1].marks(sample)[0]["label"] == "change"
    assert books[2].sample(RUN, sample)["design"] == {"points": [1, 2]}
    for book in books:
        book.close()


def test_a_database_that_breaks_loses_no_review_and_no_job(tmp_path, server):
    database = server.new()
    book, jobs = Notebook(tmp_path, database), Jobs(tmp_path, worker(tmp_path, "pass"), database=database)
    identity = add(jobs)
    jobs.start()
    until(jobs, identity, "done")
    book.say(RUN, 1, 0, by="a", verdict="rejected", grade=None, comment="")
    server.stop()
    time.sleep(1.5)  # the queue asks it in vain meanwhile
    server.start()
    assert [e["verdict"] for e in book.reviews(RUN)] == ["rejected"]
    assert until(jobs, add(jobs), "done")["number"] == 2
    assert jobs.get(identity)["state"] == "done"
    jobs.stop()
    book.close()


def test_those_who_add_objects_at_once_get_a_number_each(tmp_path, database):
    books = [Notebook(tmp_path, database) for _ in range(4)]
    gate = threading.Barrier(4)

    def add(n: int) -> list[int]:
        gate.wait()
        said = {"verdict": "added", "grade": None, "comment": "", "geometry": {"type": "Polygon"}}
        return [books[n].add(RUN, by=f"p{n}", **said)["polygon"] for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        numbers = [n for some in pool.map(add, range(4)) for n in some]
    assert sorted(numbers) == list(range(-12, 0))
    assert books[0].say(RUN, -12, 1, by="Ada", verdict="removed", grade=None, comment="")["version"] == 2
    assert books[1].add("another run", by="Ada", verdict="added", grade=None, comment="")["polygon"] == -1
    for book in books:
        book.close()


# --- what is wrong with an address -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("database", "said"),
    [
        ("nonsense", "is no address"),
        ("mysql://u:secret@h/d", "is not of the kind"),
        ("postgresql+psycopg://u:secret@127.0.0.1:9/d", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_error_without_its_password(tmp_path, database, said):
    with pytest.raises(SettingError, match=said) as caught:
        Jobs(tmp_path, database=database)
    assert "secret" not in str(caught.value)


def test_a_database_with_nothing_to_keep_is_refused(tmp_path):
    with pytest.raises(SettingError, match="no use without what it keeps"):
        Options(database="postgresql+psycopg://h/d")
    with pytest.raises(SettingError, match="no use without analyses"):
        Options(reviews=tmp_path, dask="tcp://127.0.0.1:8786")


@pytest.mark.slow
def test_a_second_server_goes_on_with_what_the_first_was_killed_at(tmp_path, server):
    (tmp_path / "work").mkdir()
    (tmp_path / "images").mkdir()
    for name, seed in (("one.tif", 3), ("two.tif", 4)):
        image(tmp_path / "images", name, seed=seed, size=900)
    arguments = ("--workspace", tmp_path / "work", "--inputs", tmp_path / "images")
    database = server.new()
    asked = {"before": "images/one.tif", "after": "images/two.tif", "model": "difference"}
    process, address = start(*arguments, TERRALAPSE_DATABASE=database)
    try:
        with running(*arguments, TERRALAPSE_DATABASE=database) as other:
            with httpx2.Client(base_url=address) as client:
                known = client.post("api/jobs", json=asked).json()["id"]
                end = time.monotonic() + 120
                while not list((tmp_path / "work").glob("*.part")) and time.monotonic() < end:
                    time.sleep(0.02)
            process.kill()
            with httpx2.Client(base_url=other) as client:
                end = time.monotonic() + 240
                while (job := client.get(f"api/jobs/{known}").json())["state"] != "done":
                    assert job["state"] in ("queued", "running"), job
                    assert time.monotonic() < end
                    time.sleep(0.1)
                time.sleep(1.1)
                found = client.get("api/results").json()["results"]
                assert [r["title"] for r in found] == [job["output"]]
    finally:
        process.kill()
        process.communicate()
