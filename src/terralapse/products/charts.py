"""Small drawings of the report as inline SVG.

Colours are classes of the page's style sheet, so that they follow light and dark; text from outside (names of
zones) is escaped here, because what these functions return is trusted by the template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from markupsafe import Markup, escape

from terralapse.products import units
from terralapse.products.alignment import AlignmentView
from terralapse.products.imagery import RAMP, ramp
from terralapse.products.tally import PROB_STEPS

_WIDTH = 420


def _svg(width: float, height: float, label: str, body: str) -> Markup:
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" class="chart">'
    return Markup(f"{head}{body}</svg>")


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(text)}</text>'


def _hex(share: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*ramp(np.array(share)))


# --- sizes -----------------------------------------------------------------------------------------
def size_classes(areas: np.ndarray, unit: str) -> list[tuple[str, int, float]]:
    """Classes of size by powers of ten: name, number of objects, area together."""
    if not len(areas):
        return []
    low, high = math.floor(math.log10(areas.min())), math.ceil(math.log10(areas.max()) + 1e-9)
    edges = [10.0**e for e in range(low, max(high, low + 1) + 1)]
    found = []
    for a, b in pairwise(edges):
        inside = (areas >= a) & (areas < b)
        name = f"{units.area(a, unit)} – {units.area(b, unit)}"
        found.append((name, int(inside.sum()), float(areas[inside].sum())))
    return found


def sizes(areas: np.ndarray, unit: str) -> Markup:
    """One bar a class of size: the area that its objects cover together."""
    rows = size_classes(areas, unit)
    most = max((area for _, _, area in rows), default=1.0)
    return bars(
        [(name, area / most, units.area(area, unit), units.count(n, "object")) for name, n, area in rows],
        "Area by size of the objects",
    )


def bars(rows: Sequence[tuple[str, float, str, str]], label: str) -> Markup:
    """Horizontal bars: name, length 0..1, value, remark."""
    step, left, room = 34, 122, 178
    body = ""
    for i, (name, share, value, remark) in enumerate(rows):
        y = i * step + 6
        short = name if len(name) <= 22 else name[:21] + "…"
        body += _text(left - 10, y + 15, short, "end", "name")
        body += f'<rect x="{left}" y="{y}" width="{room}" height="20" class="track"/>'
        body += f'<rect x="{left}" y="{y}" width="{max(room * share, 0.8):.1f}" height="20" class="bar"/>'
        body += _text(left + room + 8, y + 9, value, kind="value")
        body += _text(left + room + 8, y + 21, remark, kind="quiet")
    return _svg(_WIDTH, len(rows) * step + 6, label, body)


# --- probability -----------------------------------------------------------------------------------
def probabilities(histogram: np.ndarray, threshold: float) -> Markup:
    """Compared area by probability in twenty bins, on a logarithmic axis, with the threshold."""
    bins = 20
    at = np.minimum(np.arange(PROB_STEPS + 1) * bins // PROB_STEPS, bins - 1)
    share = np.bincount(at, histogram, minlength=bins) / max(histogram.sum(), 1e-12)
    floor, top = -5, 0  # from a hundred thousandth to all of the area
    left, foot, width, height = 44, 180, 364, 164
    body = ""
    for power in range(floor, top + 1):
        y = foot - height * (power - floor) / (top - floor)
        body += f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        body += _text(left - 6, y + 4, f"{10.0 ** (power + 2):g} %", "end", "quiet")
    for i, value in enumerate(share):
        if value > 0:
            tall = height * max(math.log10(value) - floor, 0.05) / (top - floor)
            x = left + width * i / bins
            fill = _hex((i + 0.5) / bins)
            body += (
                f'<rect x="{x + 1:.1f}" y="{foot - tall:.1f}" width="{width / bins - 2:.1f}" '
                f'height="{tall:.1f}" fill="{fill}" class="column"><title>'
                f"{i / bins:.2f} to {(i + 1) / bins:.2f}: {escape(units.percent(float(value)))} of the area"
                "</title></rect>"
            )
    x = left + width * threshold
    body += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{foot}" class="threshold"/>'
    side = "end" if threshold > 0.5 else "start"
    body += _text(x + (-5 if side == "end" else 5), 16, f"threshold {threshold:.2f}", side, "value")
    for mark in (0, 0.25, 0.5, 0.75, 1):
        body += _text(left + width * mark, foot + 16, f"{mark:g}", "middle", "quiet")
    body += _text(left + width / 2, foot + 32, "probability of change", "middle", "quiet")
    return _svg(_WIDTH, foot + 38, "Share of the compared area by probability of change", body)


# --- places ----------------------------------------------------------------------------------------
def squares(percent: np.ndarray, cells: tuple[int, int], names: Sequence[str]) -> Markup:
    """The squares of the grid where they lie, darker the more of them changed; empty ones are not filled."""
    down, across = cells
    side = min((_WIDTH - 30) / across, 300 / down)
    most = max(float(np.nanmax(percent)) if np.isfinite(percent).any() else 0.0, 1e-9)
    body = ""
    for i, (value, name) in enumerate(zip(percent, names, strict=True)):
        r, c = divmod(i, across)
        x, y = 26 + c * side, 18 + r * side
        known = math.isfinite(value)
        paint = f'fill="{_hex(value / most)}"' if known else 'class="unknown"'
        said = units.percent(value / 100) + " changed" if known else "not compared"
        body += (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side - 1.5:.1f}" height="{side - 1.5:.1f}" {paint}>'
            f"<title>{escape(name)}: {escape(said)}</title></rect>"
        )
        if known and side >= 34:
            ink = "#ffffff" if value / most > 0.55 else "#14263a"
            body += (
                f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}" text-anchor="middle" fill="{ink}">'
                f"{value:.1f}</text>"
            )
    every = max(1, math.ceil(14 / side))
    for c in range(0, across, every):
        body += _text(26 + (c + 0.5) * side, 12, names[c].rstrip("0123456789"), "middle", "quiet")
    for r in range(0, down, every):
        body += _text(20, 18 + (r + 0.5) * side + 4, str(r + 1), "end", "quiet")
    foot = 18 + down * side + 10
    body += _ramp_legend(26, foot, f"0 to {units.number(most)} % of a square changed")
    return _svg(_WIDTH, foot + 36, "Share that changed in each square of the grid, in per cent", body)


def _ramp_legend(x: float, y: float, text: str) -> str:
    width = 26
    body = "".join(
        f'<rect x="{x + i * width:.1f}" y="{y:.1f}" width="{width}" height="9" fill="{colour}"/>'
        for i, colour in enumerate(RAMP)
    )
    return body + _text(x, y + 25, text, kind="quiet")


def rose(shares: dict[str, float]) -> Markup:
    """The nine parts of the grid and what share of the objects' area each holds."""
    rows = (
        ("north-west", "north", "north-east"),
        ("west", "centre", "east"),
        ("south-west", "south", "south-east"),
    )
    side = 78
    most = max(shares.values(), default=1.0)
    body = ""
    for r, names in enumerate(rows):
        for c, name in enumerate(names):
            value = shares.get(name, 0.0)
            x, y = c * side, r * side
            ink = "#ffffff" if value / most > 0.55 else "#14263a"
            body += (
                f'<rect x="{x}" y="{y}" width="{side - 2}" height="{side - 2}" fill="{_hex(value / most)}"/>'
                f'<text x="{x + side / 2 - 1}" y="{y + side / 2 - 4}" text-anchor="middle" fill="{ink}" '
                f'class="place">{name}</text>'
                f'<text x="{x + side / 2 - 1}" y="{y + side / 2 + 14}" text-anchor="middle" fill="{ink}">'
                f"{escape(units.percent(value))}</text>"
            )
    return _svg(3 * side, 3 * side, "Share of the area of the objects in each ninth of the grid", body)


# --- alignment -------------------------------------------------------------------------------------
def shifts(view: AlignmentView, shape: tuple[int, int]) -> Markup:
    """The shift of each block as an arrow, enlarged; blocks that did not count are grey."""
    rows, cols = shape
    width = min(_WIDTH - 20, 300 * cols / rows)
    height = width * rows / cols
    lengths = [math.hypot(a.dx, a.dy) for a in view.arrows if a.reliable]
    longest = max([*lengths, 0.05])
    reach = min(width, height) / (2 * max(math.sqrt(max(len(view.arrows), 1)), 2))
    unit = reach / longest
    body = f'<rect x="10" y="10" width="{width:.1f}" height="{height:.1f}" class="frame"/>'
    for a in sorted(view.arrows, key=lambda a: a.reliable):
        x, y = 10 + a.x * width, 10 + a.y * height
        if not a.reliable:
            body += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" class="unsure"/>'
            continue
        body += _arrow(x, y, a.dx * unit, a.dy * unit)
    size = units.number(longest, 2)
    body += _arrow(14, height + 28, reach, 0)
    body += _text(14 + reach + 12, height + 32, f"{size} px (the longest)", kind="quiet")
    if any(not a.reliable for a in view.arrows):
        body += f'<circle cx="{14 + reach + 132:.1f}" cy="{height + 28:.1f}" r="2.2" class="unsure"/>'
        body += _text(14 + reach + 140, height + 32, "block not used", kind="quiet")
    return _svg(_WIDTH, height + 42, "Shift between the dates, block by block", body)


def _arrow(x: float, y: float, dx: float, dy: float) -> str:
    """From its middle block; the head is drawn only when there is length to carry it."""
    x1, y1 = x + dx, y + dy
    long = math.hypot(dx, dy)
    line = f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="arrow"/>'
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" class="root"/>'
    if long < 4:
        return dot + line
    ux, uy = dx / long, dy / long
    head = " ".join(
        f"{px:.1f},{py:.1f}"
        for px, py in (
            (x1, y1),
            (x1 - 5 * ux + 2.6 * uy, y1 - 5 * uy - 2.6 * ux),
            (x1 - 5 * ux - 2.6 * uy, y1 - 5 * uy + 2.6 * ux),
        )
    )
    return dot + line + f'<polygon points="{head}" class="head"/>'
