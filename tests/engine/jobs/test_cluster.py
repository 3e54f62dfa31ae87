"""A Dask cluster whose worker is killed and whose scheduler is started again in the middle of a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job_machines import PYTHONPATH, Machines, free_port
from job_toys import Toy, environment, toy_work
from terralapse.engine.jobs.executors import executor
from terralapse.engine.jobs.ledger import Ledger
from terralapse.engine.jobs.schedule import Progress, Retry, run_units
from terralapse.errors import SettingError

pytest.importorskip("distributed")
PATIENT = Retry(attempts=20, base_s=0.1, most_s=1.0)


@pytest.fixture
def machines() -> Iterator[Machines]:
    found = Machines()
    yield found
    found.end()


def test_a_job_outlives_a_worker_and_the_scheduler(tmp_path: Path, machines: Machines) -> None:
    machines.scheduler()
    workers = [machines.worker(), machines.worker()]
    go = tmp_path / "go"
    # From the fifth on they wait for a file, so that worker and scheduler surely go with work in their hands.
    units = [Toy(f"u{n:02d}", {"wait_for": str(go)} if n >= 4 else {}) for n in range(24)]
    steps: list[str] = []

    def tell(counts: Progress) -> None:
        if counts.done == 4 and not steps:
            steps.append("worker killed")
            workers[0].send_signal(signal.SIGKILL)
            time.sleep(1)  # the scheduler moves its work
            steps.append("scheduler started again")
            machines.start_again()
            go.touch()

    with (
        Ledger(tmp_path / "job", "plan") as ledger,
        executor("cluster", toy_work, address=machines.address) as runs,
    ):
        counts = run_units(units, runs, ledger, PATIENT, in_flight=4, tell=tell)
        digests = {u: e.digest for u, e in ledger.entries.items()}
    assert steps == ["worker killed", "scheduler started again"]
    assert (counts.done, counts.dead) == (24, 0)
    assert counts.retries >= 1
    assert digests == {u.id: f"digest of {u.id}" for u in units}


def test_an_address_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terralapse.engine.jobs.cluster._CONNECT_S", 0)
    started = time.monotonic()
    with (
        pytest.raises(SettingError, match="no scheduler answers"),
        executor("cluster", toy_work, address=f"tcp://127.0.0.1:{free_port()}"),
    ):
        pass
    assert time.monotonic() - started < 60


def test_cards_are_pinned_where_workers_are_started() -> None:
    with (
        pytest.raises(SettingError, match="Pin them"),
        executor("cluster", toy_work, address="tcp://127.0.0.1:1", cards=(0,)),
    ):
        pass


@pytest.mark.slow
def test_workers_of_this_machine_see_one_card_each_and_outlive_a_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    with (
        Ledger(tmp_path / "cards", "plan") as ledger,
        executor("cluster", environment, workers=1, cards=(5,)) as runs,
    ):
        run_units([Toy("a")], runs, ledger, PATIENT)
        assert ledger.entry("a").digest == "5"
    units = [Toy("dies-once", {"log": str(tmp_path), "die": 1}), Toy("b")]
    with (
        Ledger(tmp_path / "job", "plan") as ledger,
        executor("cluster", toy_work, workers=1) as runs,
    ):
        counts = run_units(units, runs, ledger, PATIENT)
        assert (counts.done, counts.dead) == (2, 0)
    assert (tmp_path / "dies-once").stat().st_size == 2
