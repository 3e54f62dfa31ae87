"""The tables of a run over DisasterM3: per cent by task, marks by criterion, a row a sensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from terralapse.data.disasterm3 import CHOICES
from terralapse.tasks.disaster import CRITERIA

NONE = "–"


def tables(result: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, head and rows of each table that has something in it."""
    sensors = result["sensors"]
    if any(s["choices"]["tasks"] for s in sensors.values()):
        rows = [
            [
                sensor,
                *(_percent(s["choices"]["tasks"].get(t, {}).get("accuracy")) for t in CHOICES),
                *(_percent(s["choices"][mean]) for mean in ("average", "average_of_asked")),
            ]
            for sensor, s in sensors.items()
        ]
        first = sensors["all"]["choices"]["tasks"]
        rows.append(["chance", *(_percent(first.get(t, {}).get("chance")) for t in CHOICES), NONE, NONE])
        rows.append(["not read", *(_percent(first.get(t, {}).get("failures")) for t in CHOICES), NONE, NONE])
        rows.append(
            ["questions", *(str(first.get(t, {}).get("questions", NONE)) for t in CHOICES), NONE, NONE]
        )
        yield "Choices: exact sets, per cent", ["sensor", *CHOICES, "AVG", "AVG of those asked"], rows
    drawn = {sensor: s["segmentation"] for sensor, s in sensors.items() if "segmentation" in s}
    if drawn:
        rows = [[k, _percent(s["miou"]), _percent(s["ciou"]), str(s["masks"])] for k, s in drawn.items()]
        yield "Referring segmentation, per cent", ["sensor", "mIoU", "cIoU", "masks"], rows
    for task, criteria in CRITERIA.items():
        marked = {sensor: s[task] for sensor, s in sensors.items() if task in s}
        if marked:
            rows = [
                [
                    k,
                    *(f"{s[c]:.2f}" for c in criteria),
                    f"{s['average']:.2f}",
                    str(s["reports"]),
                    str(s["missing"]),
                ]
                for k, s in marked.items()
            ]
            title = f"{task.capitalize()}: marks of 0 to 5 by the judge `{result['judge']}`"
            yield title, ["sensor", *criteria, "AVG", "reports", "missing"], rows


def _percent(value: float | None) -> str:
    return NONE if value is None or value != value else f"{100 * value:.1f}"


def cautions(result: dict[str, Any]) -> list[str]:
    """What a reader must know before a number is compared."""
    found = []
    if result["limit"] is not None:
        found.append(f"A quick look: only the first {result['limit']} of each subset were asked.")
    if result["unanswered"]:
        listed = ", ".join(f"{n} of {k}" for k, n in result["unanswered"].items())
        found.append(
            f"The answerer had no answer to {listed}. A choice without an answer counts as wrong; masks and "
            "reports are scored over those that were given."
        )
    if result["judge"] == "facts":
        found.append("Marks of the facts judge cannot be compared with those of a model such as GPT-4.1.")
    if result["sensors"]["all"]["choices"]["average"] is None:
        found.append("AVG is over six tasks; some were not asked.")
    return found


def markdown(result: dict[str, Any]) -> str:
    """The content of `bench.md`."""
    lines = [f"# DisasterM3: {result['answerer']}", ""]
    lines += [f"> {c}" for c in cautions(result)] + [""]
    for title, head, rows in tables(result):
        lines += [f"## {title}", "", _row(head), _row(["---", *["---:"] * (len(head) - 1)])]
        lines += [*(_row(r) for r in rows), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "/") for c in cells) + " |"
