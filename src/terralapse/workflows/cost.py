"""What a plan would cost, before it runs: counted from the plan, and timed on one of its units."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from terralapse.engine.jobs.executors import Processes
from terralapse.engine.jobs.partition import units_of
from terralapse.engine.jobs.plan import JobPlan
from terralapse.engine.jobs.simulate import Rates, makespan
from terralapse.engine.jobs.units import Unit
from terralapse.errors import TerralapseError
from terralapse.workflows.run import Placed, check_products, check_settings, compute


@dataclass(frozen=True)
class Estimate:
    """The cost of a plan.

    Attributes:
        units, pixels: counted; pixels of one date with margins, where the plan has a grid (else None).
        bytes: of the local files of both dates, and what the margins of cells make of them; None where an
            input is an address, or is not there.
        workers: that the hours are for.
        unit_s: of the unit that was run, start of its worker included; None without a probe.
        hours: of the whole job, simulated with stragglers and failures (see `Rates`).
        worker_bytes: the most memory that the worker of the probe held.
        probed: the name of the unit that was run.
    """

    units: int
    pixels: int | None
    bytes: int | None
    workers: int
    unit_s: float | None = None
    hours: float | None = None
    worker_bytes: int | None = None
    probed: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        lines = [f"Units             {self.units:,}"]
        if self.pixels is not None:
            lines.append(f"Pixels of a date  {self.pixels:,}")
        lines.append(
            f"Bytes to read     {'not known' if self.bytes is None else f'{self.bytes / 1e6:,.1f} MB'}"
        )
        if self.unit_s is not None and self.hours is not None and self.worker_bytes is not None:
            lines.append(f"Seconds a unit    {self.unit_s:,.1f} (measured on {self.probed})")
            lines.append(f"Memory a worker   {self.worker_bytes / 1e6:,.0f} MB (measured)")
            lines.append(f"Hours             {self.hours:,.2f} with {self.workers} workers (simulated)")
        return "\n".join(lines)


def estimate(plan: JobPlan, *, workers: int = 1, probe: bool = True) -> Estimate:
    """Counts a plan, and times the unit in its middle in a process of its own; nothing is kept.

    Raises:
        TerralapseError: the plan could not run, or the unit that is timed failed; says why.
    """
    check_settings(plan)
    check_products(plan)
    units = list(units_of(plan))
    found = Estimate(len(units), _pixels(plan, len(units)), _bytes(plan, units), workers)
    if not probe:
        return found
    chosen = units[len(units) // 2]
    seconds, memory = _timed(chosen)
    span = makespan(len(units), workers, Rates(seconds), retry=plan.retry)
    return Estimate(
        found.units,
        found.pixels,
        found.bytes,
        workers,
        round(seconds, 3),
        span / 3600,
        memory,
        chosen.name,
    )


def probed(payload: Mapping[str, Any]) -> str:
    """A unit's work, with the peak memory of its process in place of the digest."""
    from terralapse.engine.memory import peak_rss

    compute(payload)
    return str(peak_rss())


def _timed(unit: Unit) -> tuple[float, int]:
    """Seconds and peak bytes of one unit in a fresh process."""
    with TemporaryDirectory() as folder:
        runs = Processes(probed, 1)
        try:
            started = time.perf_counter()
            runs.submit(unit.id, Placed(unit, Path(folder) / "units" / unit.id, 1).as_dict())
            ((_, outcome),) = runs.wait(None)
            seconds = time.perf_counter() - started
        finally:
            runs.close()
    if outcome.digest is None:
        raise TerralapseError(
            f"the unit {unit.name}", f"was run to measure it, and failed ({outcome.reason})",
            "Mend its input, or leave the measurement out with --no-probe.",
        )  # fmt: skip
    return seconds, int(outcome.digest)


def _pixels(plan: JobPlan, units: int) -> int | None:
    return None if plan.grid is None else units * (plan.grid.cell + 2 * plan.grid.margin) ** 2


def _bytes(plan: JobPlan, units: list[Unit]) -> int | None:
    """Bytes of the files of all units; margins are read twice."""
    sizes: dict[str, int | None] = {}
    for unit in units:
        for source in (*unit.before, *unit.after):
            if source not in sizes:
                sizes[source] = _size(source)
    known = [s for s in sizes.values() if s is not None]
    if len(known) < len(sizes):
        return None
    if plan.grid is None:
        return sum(known)
    side = plan.grid.cell
    return round(sum(known) * ((side + 2 * plan.grid.margin) / side) ** 2)


def _size(source: str) -> int | None:
    path = Path(source)
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        return None if path.suffix.lower() == ".json" else path.stat().st_size
    except OSError:
        return None
