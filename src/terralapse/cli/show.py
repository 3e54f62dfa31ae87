"""What the commands print for people, drawn with rich on a terminal and plain in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from terralapse.cards import Status
from terralapse.registry import System

# From the furthest to the least.
STATUS_STYLE = {
    Status.REPRODUCED: "bold green",
    Status.RUNS: "green",
    Status.READER_ONLY: "yellow",
    Status.PLANNED: "dim",
}


def _console() -> Console:
    """As wide as the terminal; wide enough in a pipe that a row stays a line."""
    return Console(width=None if sys.stdout.isatty() else 240)


def systems_table(systems: Sequence[System]) -> None:
    """One row a system: slug, task, status, year, title; what runs first, with its variants."""
    console = _console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("system", "task", "status", "year"):
        table.add_column(column, no_wrap=True)
    table.add_column("title", overflow="fold")
    order = list(STATUS_STYLE)
    for system in sorted(systems, key=lambda s: (order.index(s.status), s.task, s.slug)):
        style = STATUS_STYLE[system.status]
        table.add_row(
            system.slug,
            system.task,
            f"[{style}]{system.status}[/]",
            str(system.head.year or ""),
            escape(system.title),
        )
        for variant in system.variants if len(system.cards) > 1 or system.head.slug != system.slug else ():
            table.add_row(
                f"  {variant.slug}", "", f"[{style}]{variant.status}[/]", "", escape(variant.summary)
            )
    console.print(table)
    running = sum(s.status in (Status.RUNS, Status.REPRODUCED) for s in systems)
    console.print(f"\n{len(systems)} systems, {running} of them run today.", highlight=False)


def inspection_table(record: dict[str, Any]) -> None:
    """A file as two columns, then its problems with their next steps."""
    console = _console()
    console.print(f"[bold]{escape(str(record['source']))}[/]", highlight=False)
    for key, value in record.items():
        if key in ("source", "problems", "notes") or value in (None, "", [], {}):
            continue
        for i, line in enumerate(_lines(value)):
            title = key.replace("_", " ") if i == 0 else ""
            console.print(f"[dim]{title:<16}[/]{escape(line)}", highlight=False, soft_wrap=True)
    told = {p["code"] for p in record["problems"]}
    for note in record["notes"]:
        if note["code"] not in told:
            mark = "[yellow]![/]" if note["level"] == "warning" else "[dim]-[/]"
            console.print(f"{mark} {escape(note['text'])}", highlight=False)
    for problem in record["problems"]:
        console.print(f"[yellow]![/] {escape(problem['text'])} {escape(problem['hint'])}", highlight=False)
    console.print()


def _lines(value: Any) -> list[str]:
    """One line for a plain value, one for each part of what has parts of its own."""
    if isinstance(value, dict) and all(isinstance(v, dict) for v in value.values()):
        return [f"{k}: {_flat(v)}" for k, v in value.items()]
    if isinstance(value, list | tuple) and isinstance(value[0], dict):
        return [_flat(v) for v in value]
    return [_flat(value)]


def _flat(value: Any) -> str:
    """A value on one line; a name comes first and without its key."""
    if isinstance(value, dict):
        name = value.get("name") or value.get("band")
        rest = [f"{k.replace('_', ' ')} {_flat(v)}" for k, v in value.items()
                if k not in ("name", "band") and v not in (None, "")]  # fmt: skip
        return ": ".join(filter(None, [name, ", ".join(rest)]))
    if isinstance(value, list | tuple):
        return ", ".join(_flat(v) for v in value)
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def result_panel(result: Any) -> None:
    """The summary, the warnings, and where the files are."""
    console = _console()
    console.print()
    console.print(escape(result.summary), highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]![/] {escape(str(warning))}", highlight=False)
    console.print()
    for title, name in (("Report", "report.html"), ("Polygons", "change.gpkg"), ("Map", "map.pdf")):
        console.print(f"{title:<9}{escape(str(result.folder / name))}", highlight=False, soft_wrap=True)


def scores_table(title: str, modes: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Scores times 100 with two decimals, a column a mode and a block a protocol; counts as they are."""
    console = _console()
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("protocol", no_wrap=True)
    table.add_column("score", no_wrap=True)
    for mode in modes:
        table.add_column(mode, justify="right", no_wrap=True)
    first = next(iter(modes.values()))
    for protocol, scores in first.items():
        for number, name in enumerate(scores):
            cells = [_score(m.get(protocol, {}).get(name)) for m in modes.values()]
            table.add_row(protocol if number == 0 else "", name, *cells)
    console.print(table)


def bench_table(title: str, scores: dict[str, Any]) -> None:
    """A table of `products.bench_page`: the first column is text, the others are numbers."""
    console = _console()
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(scores["head"]):
        table.add_column(head, justify="right" if number else "left", no_wrap=True)
    for row in scores["rows"]:
        table.add_row(*(escape(text) for text, _ in row))
    console.print(table)


def _score(value: Any) -> str:
    """Undefined ratios are printed as 0.00*."""
    if value is None or value != value:
        return "0.00*"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_score(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " ".join(_score(v) for v in value)
    return f"{100 * value:.2f}" if isinstance(value, float) else str(value)
