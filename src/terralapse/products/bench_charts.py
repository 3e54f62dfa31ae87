"""Drawings of a benchmark as SVG that stand alone: light and dark, and readable without colour.

Every value is written as a number or has its own shape and line; colour only repeats it. What comes from
outside (names of models) is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup, escape

DASHES = ("", "7 3", "2 3", "10 3 2 3", "1 4", "12 4", "4 2 1 2", "6 6")


@cache
def _style() -> str:
    return resources.files("terralapse.products").joinpath("templates/chart.css").read_text(encoding="utf-8")


def _svg(width: float, height: float, label: str, body: str) -> Markup:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{escape(label)}" class="chart"><style>{_style()}</style>'
        f'<rect class="ground" width="{width:g}" height="{height:g}"/>'
    )
    return Markup(f"{head}{body}</svg>")


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = "") -> str:
    extra = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{extra}/>'


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _mark(shape: int, x: float, y: float, r: float = 5) -> str:
    """One of six shapes, told apart without colour."""
    if shape % 6 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:g}" class="mark"/>'
    outlines = (
        [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        [(0, -1.25), (1.2, 0.95), (-1.2, 0.95)],
        [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)],
        [(0, 1.25), (1.2, -0.95), (-1.2, -0.95)],
        [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4), (0.4, 1.2), (-0.4, 1.2),
         (-0.4, 0.4), (-1.2, 0.4), (-1.2, -0.4), (-0.4, -0.4)],
    )  # fmt: skip
    points = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in outlines[shape % 6 - 1])
    return f'<polygon points="{points}" class="mark"/>'


# --- F1 --------------------------------------------------------------------------------------------
def f1_chart(models: Sequence[dict[str, Any]]) -> Markup:
    """F1 of each model with its interval, best first."""
    left, room, step, top = 180, 360, 28, 12
    foot = top + step * len(models)
    body = ""
    for tick in range(0, 101, 20):
        x = left + room * tick / 100
        body += _line(x, top, x, foot, "rule") + _text(x, foot + 15, f"{tick}", "middle", "quiet")
    for i, m in enumerate(models):
        y, f1, ends = top + step * (i + 0.5), m["whole"]["micro"]["f1"], m["whole"]["f1_interval_95"]
        body += _text(left - 10, y + 4, _short(m["name"]), "end")
        if ends is not None:
            low, high = (left + room * e for e in ends)
            body += _line(low, y, high, y, "line")
            body += _line(low, y - 5, low, y + 5, "line") + _line(high, y - 5, high, y + 5, "line")
        if f1 is not None:
            body += _mark(0, left + room * f1, y)
        body += _text(left + room + 12, y + 4, "–" if f1 is None else f"{100 * f1:.1f}", kind="strong")
    body += _text(left + room / 2, foot + 32, "F1 of change, %, with its 95 % interval", "middle", "quiet")
    return _svg(left + room + 60, foot + 42, "F1 of change of each model with its interval", body)


# --- grids of numbers ------------------------------------------------------------------------------
def grid_chart(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    label: str,
    legend: str,
    most: float,
) -> Markup:
    """A number in each cell over a bar of its length (0 to `most`); negative numbers have no bar."""
    left, wide, tall, top = 180, 62, 34, 74
    body = ""
    for j, column in enumerate(columns):
        x = left + wide * (j + 0.5)
        body += (
            f'<text x="{x:.1f}" y="{top - 8}" text-anchor="start" '
            f'transform="rotate(-40 {x:.1f} {top - 8})">{escape(column)}</text>'
        )
    for i, row in enumerate(rows):
        y = top + tall * i
        body += _text(left - 10, y + 20, _short(row), "end")
        for j, value in enumerate(values[i]):
            x = left + wide * j
            body += f'<rect x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{tall - 2}" class="box"/>'
            if value is None:
                body += _text(x + wide / 2, y + 19, "–", "middle", "quiet")
                continue
            share = min(max(value / most, 0.0), 1.0) if most > 0 else 0.0
            body += (
                f'<rect x="{x + 1}" y="{y + tall - 7}" width="{(wide - 2) * share:.1f}" height="6" '
                'class="cell"/>'
            )
            body += _text(x + wide / 2, y + 19, f"{round(value, 1) + 0.0:.1f}".replace("-", "−"), "middle")
    foot = top + tall * len(rows)
    body += _text(left, foot + 20, legend, kind="quiet")
    return _svg(left + wide * len(columns) + 60, foot + 32, label, body)


def drops_chart(models: Sequence[dict[str, Any]], perturbations: Sequence[dict[str, Any]]) -> Markup:
    """How many points of F1 each model loses under each perturbation."""
    values = [[None if r["drop"] is None else 100 * r["drop"] for r in m["robustness"]] for m in models]
    most = max([v for row in values for v in row if v is not None] or [1.0])
    return grid_chart(
        [m["name"] for m in models],
        [p["title"] for p in perturbations],
        values,
        "Points of F1 lost under each perturbation",
        "Points of F1 lost; a negative number is a gain. The longest bar is the largest loss.",
        max(most, 1.0),
    )


def sizes_chart(models: Sequence[dict[str, Any]]) -> Markup:
    """Share of labelled objects found, by size."""
    rows = models[0]["whole"]["objects"]
    return grid_chart(
        [m["name"] for m in models],
        [f"{size_class(rows, i)}" for i in range(len(rows))],
        [[None if o["recall"] is None else 100 * o["recall"] for o in m["whole"]["objects"]] for m in models],
        "Share of labelled objects that each model finds, by size",
        "Per cent of labelled objects of which at least half was found; – where there is no such object.",
        100.0,
    )


def size_class(rows: Sequence[dict[str, Any]], index: int) -> str:
    """A class of size in words: `400 to 1,600 m²`, or in pixels where the pixel size is not known."""
    unit, key = ("m²", "from_m2") if rows[index]["from_m2"] is not None else ("px", "from_pixels")
    low = rows[index][key]
    if index + 1 == len(rows):
        return f"from {low:,.0f} {unit}"
    high = rows[index + 1][key]
    return f"below {high:,.0f} {unit}" if low == 0 else f"{low:,.0f} to {high:,.0f} {unit}"


# --- mis-registration ------------------------------------------------------------------------------
def shift_chart(models: Sequence[dict[str, Any]], perturbations: Sequence[dict[str, Any]]) -> Markup | None:
    """F1 against the shift between the dates: a shape and a dash for each model, and its name at the end."""
    shifts = [(i, p["amount"]) for i, p in enumerate(perturbations) if p["group"] == "shift"]
    if not shifts:
        return None
    left, room, top, tall, names = 52, 330, 14, 260, 210
    furthest = max(a for _, a in shifts)
    body = ""
    for tick in range(0, 101, 20):
        y = top + tall * (1 - tick / 100)
        body += _line(left, y, left + room, y, "rule") + _text(left - 8, y + 4, f"{tick}", "end", "quiet")
    for amount in (0.0, *(a for _, a in shifts)):
        x = left + room * amount / furthest
        body += _text(x, top + tall + 16, f"{amount:g}", "middle", "quiet")
    ends = []
    for number, m in enumerate(models):
        points = [(0.0, m["whole"]["micro"]["f1"]), *((a, m["robustness"][i]["f1"]) for i, a in shifts)]
        known = [(left + room * a / furthest, top + tall * (1 - f)) for a, f in points if f is not None]
        if not known:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in known)
        dash = DASHES[number % len(DASHES)]
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        body += f'<polyline points="{path}" class="line"{extra}/>'
        body += "".join(_mark(number, x, y, 4.5) for x, y in known)
        ends.append((known[-1][1], number, m["name"]))
    place = -math.inf
    for y, number, name in sorted(ends):
        at = max(y, place + 15)
        place = at
        body += _line(left + room + 4, y, left + room + 16, at, "rule")
        body += _mark(number, left + room + 24, at, 4.5) + _text(left + room + 36, at + 4, _short(name))
    foot = max(top + tall + 20, place)
    body += _text(left + room / 2, top + tall + 34, "shift of the later date, pixels", "middle", "quiet")
    body += _text(left, top - 3, "F1, %", "start", "quiet")
    return _svg(left + room + names, foot + 30, "F1 of change against the shift between the dates", body)


# --- speed -----------------------------------------------------------------------------------------
def speed_chart(models: Sequence[dict[str, Any]]) -> Markup:
    """F1 against speed on a logarithmic axis."""
    left, room, top, tall = 52, 430, 14, 260
    speeds = [max(m["megapixels_a_second"], 1e-6) for m in models]
    low, high = math.floor(math.log10(min(speeds))), math.ceil(math.log10(max(speeds)) + 1e-9)
    high = max(high, low + 1)
    body = ""
    for tick in range(0, 101, 20):
        y = top + tall * (1 - tick / 100)
        body += _line(left, y, left + room, y, "rule") + _text(left - 8, y + 4, f"{tick}", "end", "quiet")
    for power in range(low, high + 1):
        x = left + room * (power - low) / (high - low)
        body += _line(x, top, x, top + tall, "rule")
        body += _text(x, top + tall + 16, f"{10.0**power:g}", "middle", "quiet")
    taken: list[tuple[float, float]] = []
    for number, (m, speed) in enumerate(zip(models, speeds, strict=True)):
        f1 = m["whole"]["micro"]["f1"]
        if f1 is None:
            continue
        x = left + room * (math.log10(speed) - low) / (high - low)
        y = top + tall * (1 - f1)
        at = y + 4
        while any(abs(at - v) < 13 and abs(x - u) < 150 for u, v in taken):
            at -= 13
        taken.append((x, at))
        right = x < left + room * 0.62
        body += _mark(number, x, y)
        body += _text(x + (10 if right else -10), at, _short(m["name"]), "start" if right else "end")
    body += _text(left + room / 2, top + tall + 34, "megapixels a second (logarithmic)", "middle", "quiet")
    body += _text(left, top - 3, "F1, %", "start", "quiet")
    return _svg(left + room + 40, top + tall + 44, "F1 of change against speed", body)
