"""Every detector of change on every labelled set, in one run and under one protocol.

    python benchmarks/accuracy_change.py --data ../shared/data

writes docs/scores.md (the tables) and benchmarks/results/accuracy_change.json (the counts that they follow
from). The sets are described in their files under src/terralapse/data. The settings of the unsupervised
detectors were chosen on the validation tiles and on Taizhou; no test tile was used for anything.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import from_bounds

from terralapse import __version__, registry
from terralapse.cards import Card, Status, Task
from terralapse.data.levir import Levir
from terralapse.data.mshs_bcd import RGB_BANDS, S2_10M, S2_20M, MshsBcd
from terralapse.data.pairs import ChangeSet, Labelled
from terralapse.data.taizhou import Taizhou
from terralapse.engine.evaluate import ScoreReport, score
from terralapse.engine.scene import predict_scene
from terralapse.errors import SystemNotReadyError
from terralapse.grid.align import align
from terralapse.grid.open import open_scene
from terralapse.sensors import Unit
from terralapse.tasks.metrics import binary_scores, paired_bootstrap

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "difference"
SAMPLES = 2000
ORDER = (
    "lapsenet/rgb",
    "lapsenet/s2",
    "changemamba/bcd-nano",
    "ir-mad",
    "cva",
    "rcva",
    "pca-kmeans",
    "difference",
)


@dataclass(frozen=True)
class Bench:
    """One labelled set with what a reader must know about it."""

    slug: str
    dataset: ChangeSet
    about: str
    block: int | None = None  # pixels: one scene has no tiles to draw from, so blocks of it are drawn


def benches(data: Path) -> Iterator[Bench]:
    """The sets under a folder of sample data."""
    change = "only buildings are labelled, about 2.3 % of the pixels, and the dates are in different seasons"
    for split, note in (("val", "used to choose settings and thresholds"), ("test", "used for nothing else")):
        tiles = MshsBcd(data / "cd_mshs_bcd", split, "gf1")
        title = f"MS-HS-BCD {split}, Gaofen-1 RGB 2.5 m"
        about = f"{len(tiles)} official tiles of 256 x 256 pixels; {change}; {note}."
        yield Bench(f"mshs-rgb-{split}", Labelled(tiles, title, RGB_BANDS, Unit.RGB255), about)
        bands = (*S2_10M, *S2_20M)
        tiles = MshsBcd(data / "cd_mshs_bcd", split, "s2", bands)
        title = f"MS-HS-BCD {split}, Sentinel-2 10 m"
        about = (
            f"the same {len(tiles)} tiles as 64 x 64 pixels of ten bands, stored as 8 bit; a pixel counts as "
            f"changed when at least half of it is; {change}; {note}."
        )
        yield Bench(f"mshs-s2-{split}", Labelled(tiles, title, bands, Unit.RAW), about)
    levir = Levir(data / "cd_vhr_samples/levir", title="LEVIR-CD sample tiles, RGB 0.5 m")
    about = (
        f"{len(levir)} tiles of 256 x 256 pixels from the official LEVIR-CD, used for nothing else; too few "
        "for a ranking; only buildings are labelled."
    )
    yield Bench("levir-samples", levir, about)
    about = (
        "one scene of 400 x 400 pixels, six bands, 30 m; scored on the 13 % of pixels that are annotated "
        "(easy ones: clear change and clear no-change); looked at when the settings of the unsupervised "
        "detectors were chosen."
    )
    yield Bench("taizhou", Taizhou(data / "cd_landsat_tm"), about, block=50)


def detectors(only: list[str] | None) -> list[Card]:
    """Cards of all detectors of binary change that run, in the order of the table."""
    found = [
        c for c in registry.cards() if c.task is Task.CHANGE and c.status in (Status.RUNS, Status.REPRODUCED)
    ]
    found = [c for c in found if (only is None or c.slug in only) and ready(c.slug)]
    rank = {slug: i for i, slug in enumerate(ORDER)}
    return sorted(found, key=lambda c: (rank.get(c.slug, len(rank)), c.slug))


def ready(slug: str) -> bool:
    """Whether a detector runs without a file of weights of the user."""
    try:
        registry.build(slug)
    except SystemNotReadyError:
        return False
    return True


def fits(card: Card, dataset: ChangeSet) -> bool:
    """Whether a detector can be scored on a set: its bands are there and it was made for such pixels."""
    first = next(iter(dataset))
    if card.inputs.bands is not None and not set(card.inputs.bands) <= set(first.bands):
        return False
    low, high = card.inputs.gsd_range or (0.0, float("inf"))
    return low <= first.gsd <= high


def run(bench: Bench, cards: list[Card]) -> list[ScoreReport]:
    """All detectors that fit a set; on sets of many tiles with both ways of fitting."""
    reports = []
    for card in cards:
        if not fits(card, bench.dataset):
            continue
        for fit in ("tile", "set") if len(bench.dataset) > 1 else ("tile",):
            report = score(card.slug, bench.dataset, fit=fit, block=bench.block, samples=SAMPLES)
            reports.append(report)
            print(f"{bench.slug:16} {card.slug:14} {fit:5} F1 {report.scores.f1:.3f}", flush=True)
    return reports


# --- the example without labels ---------------------------------------------------------------------
JOPLIN = {  # boxes in EPSG:26915: west, south, east, north; drawn by hand on the image after
    "debris field": (367296.6, 4103287.2, 367836.6, 4103575.2),
    "lawn beside it": (367584.6, 4104049.2, 367836.6, 4104175.2),
    "park with paths": (366732.6, 4104049.2, 366864.6, 4104157.2),
    "main street": (367176.6, 4103590.2, 367836.6, 4103600.4),
}


def joplin(cards: list[Card]) -> dict[str, dict[str, float]]:
    """Share of each box that a detector flags on the Joplin pair, through the scene engine."""
    rows: dict[str, dict[str, float]] = {}
    folders = [ROOT / "examples/joplin" / d for d in ("before", "after")]
    for card in cards:
        if (
            card.inputs.gsd_range is not None
            and not card.inputs.gsd_range[0] <= 0.6 <= card.inputs.gsd_range[1]
        ):
            continue
        with (
            TemporaryDirectory() as folder,
            open_scene(folders[0]) as before,
            open_scene(folders[1]) as after,
        ):
            predict_scene(registry.build(card.slug), align(before, after, bands=RGB_BANDS), Path(folder))
            with rasterio.open(Path(folder) / "change.tif") as made:
                rows[card.slug] = {
                    name: flagged(made.read(1, window=from_bounds(*box, transform=made.transform)))
                    for name, box in JOPLIN.items()
                }
                rows[card.slug]["whole scene"] = flagged(made.read(1))
        print(f"{'joplin':16} {card.slug:14}", rows[card.slug], flush=True)
    return rows


def flagged(change: np.ndarray) -> float:
    """Share of change among the pixels that were compared."""
    return float((change == 1).sum() / max((change != 255).sum(), 1))


# --- the page --------------------------------------------------------------------------------------
def number(value: float, digits: int = 3) -> str:
    """A score for a table; 0/0 is printed as 0 with a mark that the page explains."""
    return f"{0:.{digits}f}*" if value != value else f"{value:.{digits}f}"


def against(report: ScoreReport, reports: list[ScoreReport]) -> str:
    """Difference of F1 to the plain difference on the same tiles and way of fitting."""
    base = next((r for r in reports if r.detector == BASELINE and r.fit == report.fit), None)
    if base is None or report is base or len(report.counts) < 2:
        return ""
    found = paired_bootstrap(report.counts, base.counts, lambda m: binary_scores(m).f1, SAMPLES)
    return f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def table(reports: list[ScoreReport]) -> str:
    """One set as Markdown."""
    head = (
        "| detector | fitted on | F1 | 95 % interval | precision | recall | IoU | kappa | ECE "
        "| F1 minus baseline | MPix/s |"
    )
    lines = [head, "| --- | --- | " + "--- | " * 8 + "--- |"]
    for r in reports:
        twin = next((o for o in reports if o.detector == r.detector and o.fit != r.fit), None)
        alike = twin is not None and np.array_equal(twin.counts, r.counts)
        if alike and r.fit == "set":
            continue
        fitted = {"tile": "each tile", "set": "all tiles"}[r.fit]
        s, low_high = r.scores, r.interval
        cells = [
            f"`{r.detector}`",
            "the scene" if r.tiles == 1 else "either" if alike else fitted,
            f"**{number(s.f1)}**",
            "" if low_high is None else f"{low_high[0]:.3f} to {low_high[1]:.3f}",
            number(s.precision),
            number(s.recall),
            number(s.iou),
            number(s.kappa),
            number(r.ece),
            against(r, reports),
            f"{r.megapixels_a_second:.2g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


INTRODUCTION = """# Scores

Made by `python benchmarks/accuracy_change.py` on {date} with terralapse {version}{commit} and torch {torch}
on {machine}. Do not edit: run it again. The counts behind every number are in
`benchmarks/results/accuracy_change.json`.

**Protocol.** Whole tiles, each fed as the scene engine feeds it. One confusion matrix of the change class is
summed over the set before any ratio is taken; nothing is averaged over tiles. The threshold is the
detector's own: chosen on the validation tiles for a trained network, found in the images themselves, without
labels, for the others. *Fitted on* says what the statistics of a scene (stretch, radiometry, threshold) were
taken from: each tile as if it were a scene, or all tiles as one scene. Intervals hold 95 % of {samples}
bootstrap draws of the tiles (for the one-scene set, of its blocks of 50 pixels: neighbouring blocks resemble
each other, so true uncertainty is larger). *F1 minus baseline* is the paired difference to `difference` on
the same tiles. ECE is the expected calibration error of the probabilities in 15 bins: where change is rare, a
detector that always says "no" has a low one. MPix/s is `predict` alone on one thread of a busy machine; small
tiles pay for the halo around them, scenes hardly do{star}.

Unsupervised detectors flag every difference. Where only buildings are labelled and the dates lie in different
seasons, their low precision says that fields and trees changed too, not that nothing did.
"""


def joplin_section(rows: dict[str, dict[str, float]]) -> str:
    """The Joplin pair as Markdown."""
    names = [*JOPLIN, "whole scene"]
    lines = [f"| detector | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    lines += [
        f"| `{slug}` | " + " | ".join(f"{row[n]:.1%}" for n in names) + " |" for slug, row in rows.items()
    ]
    return JOPLIN_TEXT + "\n".join(lines) + "\n"


JOPLIN_TEXT = """## Joplin, before and after the tornado of 22 May 2011

No labels: the share of four boxes, drawn by hand, that each detector flags. A good one flags much of the
debris field and little of the rest. The images are of different months, sensors and sun, RGB at 0.6 m.

"""


def page(
    results: list[tuple[Bench, list[ScoreReport]]], example: dict[str, dict[str, float]], when: datetime
) -> str:
    """docs/scores.md."""
    body = []
    for bench, reports in results:
        body.append(
            f"## {bench.dataset.title}\n\n{bench.about[0].upper()}{bench.about[1:]}\n\n{table(reports)}\n"
        )
    if example:
        body.append(joplin_section(example))
    text = "\n".join(body)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    start = INTRODUCTION.format(
        date=f"{when:%Y-%m-%d}",
        version=__version__,
        commit=f" (commit {commit})" if commit else "",
        torch=torch.__version__,
        machine=f"{platform.machine()} CPU",
        samples=SAMPLES,
        star=". A * marks 0/0, printed as 0" if "0.000*" in text else "",
    )
    return start + "\n" + text


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores all detectors of change on all labelled sets.")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "../shared/data", help="folder of the sample data"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs/scores.md")
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks/results/accuracy_change.json", dest="stored"
    )
    parser.add_argument("--detector", action="append", help="only this one; may be repeated")
    parser.add_argument("--set", action="append", help="only this set; may be repeated")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    when = datetime.now(UTC)
    chosen = [b for b in benches(asked.data) if not asked.set or b.slug in asked.set]
    results = [(bench, run(bench, detectors(asked.detector))) for bench in chosen]
    example = joplin(detectors(asked.detector)) if not asked.set or "joplin" in asked.set else {}
    stored: dict[str, Any] = {
        "made": when.isoformat(timespec="seconds"),
        "terralapse": __version__,
        "sets": {
            bench.slug: {"about": bench.about, "reports": [r.as_dict() for r in reports]}
            for bench, reports in results
        },
        "joplin": example,
    }
    asked.stored.parent.mkdir(parents=True, exist_ok=True)
    asked.stored.write_text(json.dumps(stored, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    asked.page.write_text(page(results, example, when), encoding="utf-8")
    print(f"wrote {asked.page} and {asked.stored}")


if __name__ == "__main__":
    main()
