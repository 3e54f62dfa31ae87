"""A job that is killed at chosen points, in forked children of a process that has done nothing else.

`python job_kills.py PLAN OUT` kills one run after another, lets the last one finish, and prints one line of
JSON: how each ended, and whether there was a merged result by then.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from terralapse.engine.jobs.ledger import Ledger
from terralapse.engine.jobs.plan import JobPlan
from terralapse.workflows.run import run_job

# Imported before the fork, as everything that takes time.
MODULES = ("terralapse.products.write", "terralapse.products.merge", "terralapse.engine.scene")


def at_record(number: int, *, half: bool) -> None:
    """A kill at the n-th line of the journal: before it is written, or after half of it."""
    plain, written = Ledger._append, 0

    def append(self: Ledger, record: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        if written == number:
            if half:
                self._file.write(json.dumps(record).encode()[:9])
                self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        plain(self, record)

    mock.patch.object(Ledger, "_append", append).start()


def at_call(module: str, name: str, number: int) -> None:
    """A kill at the n-th call of a function, in its place."""
    home, made = importlib.import_module(module), 0
    plain = getattr(home, name)

    def call(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **options)

    mock.patch.object(home, name, call).start()


# Of a job of four units. Each run finds what the one before has left.
KILLS: list[Callable[[], None]] = [
    lambda: at_record(3, half=False),
    lambda: at_record(4, half=True),  # the first unit is there, and the journal does not know
    lambda: at_call("terralapse.workflows.run", "_write_manifest", 2),
    lambda: at_call("terralapse.products.write", "write_facts", 2),  # within a unit's products
    lambda: at_call("terralapse.products.merge", "_write_vrt", 1),
    lambda: at_call("terralapse.products.merge", "write_collection", 1),
    lambda: None,
]


def main(plan: str, out: str) -> None:
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    codes, merged = [], []
    for arm in KILLS:
        child = os.fork()
        if not child:
            code = 1
            try:
                arm()
                code = 0 if run_job(JobPlan.read(plan), out, kind="threads", resume=True).complete else 3
            finally:
                os._exit(code)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        merged.append((Path(out) / "merged").exists())
    sys.stdout.write(json.dumps({"codes": codes, "merged": merged}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
