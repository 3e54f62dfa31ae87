"""What the commands print for people, drawn with rich on a terminal and plain in a pipe."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

STATUS_STYLE = {"reproduced": "bold green", "runs": "green", "reader-only": "yellow", "planned": "dim"}


def systems_table(cards: list[dict[str, Any]]) -> None:
    """One row a card: slug, task, status, year, title."""
    console = Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("system", no_wrap=True)
    table.add_column("task", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("year", no_wrap=True)
    table.add_column("title", overflow="fold")
    order = {"reproduced": 0, "runs": 1, "reader-only": 2, "planned": 3}
    for card in sorted(cards, key=lambda c: (order[c["status"]], c["task"], c["slug"])):
        style = STATUS_STYLE[card["status"]]
        table.add_row(
            card["slug"],
            card["task"],
            f"[{style}]{card['status']}[/]",
            str(card["year"] or ""),
            card["title"],
        )
    console.print(table)
    running = sum(c["status"] in ("runs", "reproduced") for c in cards)
    console.print(f"\n{len(cards)} systems, {running} of them run today.", highlight=False)


def inspection_table(record: dict[str, Any]) -> None:
    """A file as two columns, then its problems."""
    console = Console()
    console.print(f"[bold]{record.get('source', record.get('uri', ''))}[/]", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in record.items():
        if key in ("source", "uri", "problems") or value in (None, "", [], {}):
            continue
        table.add_row(key.replace("_", " "), _flat(value))
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
    console = Console()
    console.print()
    console.print(result.summary, highlight=False)
    for warning in result.warnings:
        console.print(f"[yellow]![/] {warning}", highlight=False)
    console.print()
    console.print(f"Report   {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"Polygons {result.folder / 'change.gpkg'}", highlight=False, soft_wrap=True)
    console.print(f"Map      {result.folder / 'map.pdf'}", highlight=False, soft_wrap=True)
