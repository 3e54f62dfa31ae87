"""Units of a trivial kind, and their work; light, so that a worker of a test starts at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Toy:
    """A unit of a trivial kind: `plain` says what its work is."""

    id: str
    plain: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"id": self.id, **self.plain}


def toy_work(unit: Mapping[str, Any]) -> str:
    """Counts its attempts in a file where asked, and fails or dies in the first `fail` or `die` of them."""
    made = 0
    if "log" in unit:
        log = Path(unit["log"]) / unit["id"]
        with log.open("ab") as file:
            file.write(b".")
        made = log.stat().st_size
    if made <= unit.get("die", 0) and "die" in unit:
        os.kill(os.getpid(), signal.SIGKILL)
    if made <= unit.get("memory", 0) and "memory" in unit:
        raise MemoryError("no memory for an array")
    if made <= unit.get("fail", 0) and "fail" in unit:
        raise ConnectionError("the server hung up")
    if "wait_for" in unit:
        while not Path(unit["wait_for"]).exists():
            time.sleep(0.01)
    return f"digest of {unit['id']}"


def environment(_unit: Mapping[str, Any]) -> str:
    """The card that a worker sees."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all")
