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
    """A file as two columns, then its problems."""
    console = _console()
    console.print(f"[bold]{escape(str(record.get('source', record.get('uri', ''))))}[/]", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        if key in ("source", "uri", "problems") or value in (None, "", [], {}):
            continue
        table.add_row(key.replace("_", " "), escape(_flat(value)))
    console.print(table)
    for problem in record.get("problems", []):
        console.print(
            f"[yellow]! [/]{problem if isinstance(problem, str) else _flat(problem)}", highlight=False
        )
    console.print()


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v not in (None, ""))
    if isinstance(value, list | tuple):
        return (
            "; ".join(_flat(v) for v in value)
            if value and isinstance(value[0], dict)
            else ", ".join(map(_flat, value))
        )
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


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
