"""The weights that ship for tasks other than binary change, on held-out data, in one run.

    python benchmarks/accuracy_tasks.py --data ../shared/data

writes docs/scores-tasks.md and benchmarks/results/accuracy_tasks.json. Binary change has its own benchmark,
`accuracy_change.py`. No test split was used for anything but these numbers.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from terralapse import __version__, registry
from terralapse.engine.score import SplitReport, score_split

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Bench:
    """One system on one split, with what a reader must know about it."""

    system: str
    data: str
    folder: str
    split: str
    options: dict[str, Any]
    about: str


BENCHES = (
    Bench(
        "rsmamba/eurosat-nano",
        "eurosat",
        "scene_eurosat_rgb",
        "val",
        {},
        "655 tiles of 64 x 64 pixels; no block of one degree is shared with the training tiles; used to "
        "choose the epoch.",
    ),
    Bench(
        "rsmamba/eurosat-nano",
        "eurosat",
        "scene_eurosat_rgb",
        "test",
        {},
        "900 tiles, 90 a class, of blocks that neither training nor validation has; used for nothing else.",
    ),
    Bench(
        "changemamba/bda-nano",
        "xbd",
        "damage_xbd_ida",
        "held",
        {"holdout": 0.44},
        "the tiles of Hurricanes Harvey (xBD) and Ida that were held out, and that chose the epoch: too few "
        "for a claim, and of the same events as the training tiles. There is no test split. No building here "
        "is destroyed, so the harmonic mean over four grades is near 0 whatever is predicted.",
    ),
)


def number(value: Any) -> str:
    """Times 100; what is 0/0 is printed as 0 with a mark."""
    return "0.00*" if value is None else f"{100 * value:.2f}"


def section(bench: Bench, report: SplitReport) -> str:
    """One system as Markdown: a row a mode."""
    found = report.as_dict()
    lines = [f"## `{bench.system}` on {report.title}\n", f"{bench.about[0].upper()}{bench.about[1:]}\n"]
    for protocol in next(iter(found["modes"].values()))["scores"]:
        first = next(iter(found["modes"].values()))["scores"][protocol]
        names = [n for n, v in first.items() if v is None or isinstance(v, float)]
        lines.append(f"| {protocol} | {' | '.join(names)} | 95 % interval | MPix/s |")
        lines.append("| --- |" + " --- |" * (len(names) + 2))
        for mode, values in found["modes"].items():
            main, low_high = values["main"], values["interval_95"]
            interval = ""
            if low_high is not None and main.startswith(f"{protocol}."):
                interval = f"{main.partition('.')[2]} {number(low_high[0])} to {number(low_high[1])}"
            cells = [number(values["scores"][protocol][n]) for n in names]
            speed = f"{values['megapixels_a_second']:.2g}"
            lines.append(f"| {mode} | {' | '.join(cells)} | {interval} | {speed} |")
        lines.append("")
    return "\n".join(lines) + classes(report)


def classes(report: SplitReport) -> str:
    """The confusion matrix of a classification."""
    matrix = report.modes["whole"].counts.get("matrix")
    if matrix is None:
        return ""
    from terralapse.labels import scheme

    names = [c.title for c in scheme(report.classes).classes]
    lines = ["\nRows are the label, columns the prediction.\n", f"| | {' | '.join(names)} |"]
    lines.append("| --- |" + " --- |" * len(names))
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in zip(names, matrix, strict=True)]
    return "\n".join(lines) + "\n"


INTRODUCTION = """# Scores of other tasks

Made by `python benchmarks/accuracy_tasks.py` on {date} with terralapse {version} and torch {torch} on
{machine}. Do not edit: run it again. The counts behind every number are in
`benchmarks/results/accuracy_tasks.json`; the protocols are those of [Training and scoring](training.md).
Weights are half precision, as they ship. Scores are percent; a * marks 0/0, printed as 0. Intervals hold
95 % of 2,000 bootstrap draws of the images. Speed is on one thread of a CPU.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores the shipped weights of all tasks but change.")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the samples")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/scores-tasks.md")
    stored = ROOT / "benchmarks/results/accuracy_tasks.json"
    asked = parser.parse_args()
    torch.set_num_threads(1)
    when = datetime.now(UTC)
    parts, kept = [], []
    for bench in BENCHES:
        if not registry.card(bench.system).weights:
            print(f"{bench.system}: no weights ship, left out")
            continue
        root = asked.data / bench.folder
        report = score_split(bench.system, bench.data, root, bench.split, options=bench.options)
        parts.append(section(bench, report))
        kept.append({"about": bench.about, **report.as_dict()})
        print(parts[-1], flush=True)
    start = INTRODUCTION.format(
        date=f"{when:%Y-%m-%d}",
        version=__version__,
        torch=torch.__version__,
        machine=f"an {platform.machine()} CPU",
    )
    asked.page.write_text(start + "\n" + "\n".join(parts), encoding="utf-8")
    text = json.dumps({"made": when.isoformat(timespec="seconds"), "reports": kept}, indent=1)
    stored.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {asked.page} and {stored}")


if __name__ == "__main__":
    main()
