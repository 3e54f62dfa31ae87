"""What a labelled sample says of areas and of the map, for people and for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.errors import SettingError
from terralapse.products import units
from terralapse.products.area_sample import Sample
from terralapse.products.record import write_json
from terralapse.tasks.area import LEAST, Estimates, Measured, estimate

_FEW = 5  # points outside of a class's own strata, below which its interval is told to be short


@dataclass(frozen=True)
class AreaReport:
    """Estimates of a sample. `counts` [strata, classes] of labels; `cautions` are what a reader must know."""

    sample: Sample
    classes: tuple[str, ...]
    counts: np.ndarray
    estimates: Estimates
    cautions: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; what is not known is null."""
        found, sample = self.estimates, self.sample
        return {
            "schema": "terralapse-areas",
            "version": 1,
            "run_id": sample.run_id,
            "map": sample.map,
            "unit": sample.unit,
            "points": len(sample.points),
            "labelled": int(self.counts.sum()),
            "overall": _told(found.overall),
            "classes": [
                {
                    "name": name,
                    "title": sample.classes[name],
                    "mapped_area": float(found.mapped[i]),
                    "area": _told(found.area[i]),
                    "share": _told(found.share[i]),
                    "users": _told(found.users[i]),
                    "producers": _told(found.producers[i]),
                    "text": self.sentence(i),
                }
                for i, name in enumerate(self.classes)
            ],
            "strata": [
                {"name": s.name, "title": s.title, "mapped": s.mapped, "area": s.area, "points": s.points,
                 "labels": dict(zip(self.classes, self.counts[i].tolist(), strict=True))}
                for i, s in enumerate(sample.strata)
            ],
            "proportions": found.proportions.tolist(),
            "cautions": list(self.cautions),
            "source": "Olofsson et al., Remote Sensing of Environment 148 (2014), equations 4 to 11; 95 %",
        }  # fmt: skip

    def sentence(self, i: int) -> str:
        """`Change: 12.3 ha ± 1.2 ha (95 %), where the map shows 14 ha.`"""
        unit, measured = self.sample.unit, self.estimates.area[i]
        half = measured.interval[1] - measured.value
        title = self.sample.classes[self.classes[i]]
        mapped = units.area(float(self.estimates.mapped[i]), unit)
        return (
            f"{title}: {units.area(measured.value, unit)} ± {units.area(half, unit)} (95 %), mapped {mapped}."
        )

    def as_csv(self) -> str:
        """One row a class."""
        sink = io.StringIO()
        table = csv.writer(sink, lineterminator="\n")
        unit = self.sample.unit
        heads = ["class", f"mapped_{unit}", f"area_{unit}", f"area_low_{unit}", f"area_high_{unit}"]
        heads += [f"{which}{end}" for which in ("users", "producers") for end in ("", "_low", "_high")]
        table.writerow(heads)
        for i, name in enumerate(self.classes):
            found = self.estimates
            row: list[Any] = [name, round(float(found.mapped[i]), 2)]
            row += _three(found.area[i], 2) + _three(found.users[i], 4) + _three(found.producers[i], 4)
            table.writerow(row)
        return sink.getvalue()


def _told(measured: Measured) -> dict[str, float | None]:
    low, high = measured.interval
    named = {"value": measured.value, "error": measured.error, "low": low, "high": high}
    return {k: v if math.isfinite(v) else None for k, v in named.items()}


def _three(measured: Measured, digits: int) -> list[Any]:
    values = (measured.value, *measured.interval)
    return [round(v, digits) if math.isfinite(v) else "" for v in values]


def report(sample: Sample, labels: Mapping[int, str]) -> AreaReport:
    """The estimates of the points that are labelled.

    Args:
        sample: as it was drawn.
        labels: names of classes by the id of the point; points that are missing are left out.

    Raises:
        SettingError: a stratum with fewer than two labelled points.
    """
    strata = {s.name: i for i, s in enumerate(sample.strata)}
    # Classes that neither the map nor anybody who looked has seen would be rows of nothing.
    seen = {s.mapped for s in sample.strata} | set(labels.values())
    classes = tuple(c for c in sample.classes if c in seen)
    counts = np.zeros((len(strata), len(classes)), np.int64)
    for point in sample.points:
        if point.id in labels:
            counts[strata[point.stratum], classes.index(labels[point.id])] += 1
    for s, n in zip(sample.strata, counts.sum(axis=1), strict=True):
        if n < LEAST:
            raise SettingError(
                f"stratum {s.name}",
                f"has {n} labelled points of {s.points}, and {LEAST} are needed",
                "Label more of its points.",
            )
    mapped = [classes.index(s.mapped) for s in sample.strata]
    found = estimate(counts, [s.area for s in sample.strata], mapped)
    return AreaReport(sample, classes, counts, found, _cautions(sample, classes, counts, mapped))


def _cautions(
    sample: Sample, classes: tuple[str, ...], counts: np.ndarray, mapped: list[int]
) -> tuple[str, ...]:
    said = []
    missing = len(sample.points) - int(counts.sum())
    if missing:
        said.append(
            f"{missing} of {len(sample.points)} points have no label. They are left out as if they were like "
            "the others of their stratum, which need not be so."
        )
    for j, name in enumerate(classes):
        outside = int(sum(counts[i, j] for i, m in enumerate(mapped) if m != j))
        if outside < _FEW:
            said.append(
                f"{sample.classes[name]}: only {outside} points outside of what is mapped so turned out "
                "to be it. Its interval is likely too short; more points of the other strata would tell."
            )
    return tuple(said)


def write_report(found: AreaReport, folder: Path) -> list[Path]:
    """`areas.json` and `areas.csv`."""
    write_json(found.as_dict(), folder / "areas.json")
    (folder / "areas.csv").write_text(found.as_csv(), encoding="utf-8")
    return [folder / "areas.json", folder / "areas.csv"]
