"""A unit of work: one pair of dates within one window, known by what it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse._version import __version__

if TYPE_CHECKING:
    from terralapse.engine.jobs.plan import JobPlan

_END = 1 << 16  # bytes at either end of a file that stand for its content


@dataclass(frozen=True)
class Unit:
    """What one worker does in one go.

    Attributes:
        name: for people.
        before, after: addresses of one image, or of several: see `rule`.
        grid: the window to compute, as `terralapse.grid.common.cell_text` writes it; None for the grid that
            `terralapse change` chooses.
        core: row, column, height, width on the job's grid of what the unit answers for; None for all.
        area: a vector file to look inside of, or None.
        settings: of `terralapse change`.
        content: digests that stand for the content of its inputs.
        rule: what becomes of several images of a date: `best` takes the clearest over the cell, `composite`
            the first that is clear at each pixel, `median` the median of those; empty for one image a date.
        min_clear: for `median`: clear looks that a pixel needs.
        candidates: for a unit of a catalogue: what its items are known by, for both dates, see
            `terralapse.engine.jobs.clear.Candidate`.
        id: a hash of all that.
    """

    name: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    grid: str | None = None
    core: tuple[int, int, int, int] | None = None
    area: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    content: tuple[str, ...] = ()
    rule: str = ""
    min_clear: int = 0
    candidates: tuple[tuple[Mapping[str, Any], ...], ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            record = json.dumps([__version__, asdict(self)], sort_keys=True, default=str)
            object.__setattr__(self, "id", hashlib.sha256(record.encode()).hexdigest()[:16])

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as it goes to a worker."""
        return asdict(self)

    @staticmethod
    def of_dict(plain: Mapping[str, Any]) -> Unit:
        """The unit that `as_dict` wrote."""
        record = dict(plain)
        for key in ("before", "after", "content"):
            record[key] = tuple(record[key])
        record["candidates"] = tuple(tuple(date) for date in record["candidates"])
        if record["core"] is not None:
            record["core"] = tuple(record["core"])
        return Unit(**record)


def content_of(source: str) -> str:
    """A digest that stands for an input's content: size and both ends of a file, the files of a folder.

    An address stands for itself, and what cannot be read for its absence: the unit will say why. Times of
    files say nothing here, so that a copy is the same input.
    """
    path = Path(source)
    try:
        if path.is_dir():
            inner = sorted(p for p in path.rglob("*") if p.is_file())
            return _digest(*(f"{p.relative_to(path)}={content_of(str(p))}" for p in inner))
        with path.open("rb") as file:
            size = path.stat().st_size
            head = file.read(_END)
            file.seek(max(0, size - _END))
            return _digest(str(size), head, file.read(_END))
    except OSError:
        return _digest(source)


def content_of_settings(plan: JobPlan) -> tuple[str, ...]:
    """Digests of the files that a plan's settings and area name."""
    named = [plan.area, *(plan.settings.get(k) for k in ("weights", "zones", "before_map"))]
    return tuple(content_of(str(n)) for n in named if n is not None)


def _digest(*parts: str | bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8) + raw)
    return found.hexdigest()[:16]
