"""The margin of the map sheet: the number, the two dates, the legend, the place, the sources."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terralapse.grid.areas import Compass, on_ground
from terralapse.labels import VALIDITY, Reason
from terralapse.products import units
from terralapse.products.findings import Findings
from terralapse.products.graticule import globe, metres_per_pixel
from terralapse.products.imagery import CHANGE_COLOUR
from terralapse.products.sheet import INK, QUIET, RIGHT, RULE, SEA, Sheet, clip, frame, shrunk

_TOP, _FOOT = 7.0, 0.62
LINE = 0.145
GLOBE = 0.86
LEGEND_LINE = 0.17
_VERDICT_LINES = 3


@dataclass(frozen=True)
class ChangeSheet(Sheet):
    """The sheet of a change run."""

    findings: Findings


def draw_panel(sheet: ChangeSheet) -> None:
    """From top to foot; the pictures of the two dates get the height that the rest leaves."""
    legend = _legend_entries(sheet)
    sources = _source_lines(sheet)
    place = 0.0 if sheet.findings.unit == "px" else GLOBE + 0.36
    rest = 0.62 + 0.65 + (0.34 + LEGEND_LINE * len(legend)) + place + (0.3 + LINE * len(sources))
    y = _headline(sheet, _TOP)
    y = _dates(sheet, y, _TOP - _FOOT - rest)
    y = draw_legend(sheet, y, legend, faint=1)
    if place:
        y = draw_locator(sheet, y)
    draw_sources(sheet, y, sources)


def _headline(sheet: ChangeSheet, y: float) -> float:
    facts = sheet.facts
    none = sheet.findings.tally.changed_pixels == 0
    number = "No change found" if none else f"{facts['area.changed'].display} changed"
    colour = INK if none else CHANGE_COLOUR
    sheet.write(sheet.x, y - 0.04, number, fontsize=18, fontweight="bold", color=colour)
    for i, line in enumerate(
        (
            f"{facts['share.changed'].display} of the {facts['area.observed'].display} compared",
            f"{facts['object.count'].display} of {facts['object.minimum'].display} or more",
        )
    ):
        sheet.write(sheet.x, y - 0.25 - 0.17 * i, line, fontsize=8.5)
    return y - 0.62


def _dates(sheet: ChangeSheet, y: float, room: float) -> float:
    """The two dates side by side with the same stretch."""
    f = sheet.findings
    y = sheet.heading(y, f"The two dates ({f.pictures.look.text}, same stretch)")
    gap = 0.12
    rows, cols = f.run.pair.shape
    width = (sheet.width - gap) / 2
    height = min(width * rows / cols, max(room, 0.6))
    shown = min(width, height * cols / rows)
    pictures = (
        (f.pictures.before, f.pictures.before_alpha, f.run.pair.before, "Before"),
        (f.pictures.after, f.pictures.after_alpha, f.run.pair.after, "After"),
    )
    for i, (picture, alpha, info, word) in enumerate(pictures):
        x = sheet.x + i * (width + gap)
        axes = sheet.place(x, y - 0.04 - height, shown, height)
        axes.set_facecolor(SEA)
        axes.imshow(shrunk(np.dstack([picture, alpha]), 560), aspect="auto")
        frame(axes, 0.5)
        sheet.write(x, y - 0.19 - height, word, fontsize=7.5, fontweight="bold")
        sheet.write(x, y - 0.32 - height, units.date(info.time), fontsize=7, color=QUIET)
    return y - 0.45 - height


def _legend_entries(sheet: ChangeSheet) -> list[tuple[str, str, str]]:
    """Colour, text and share of the area; the first is the change itself."""
    f = sheet.findings
    entries = [(CHANGE_COLOUR, f"Change (probability from {f.run.threshold:.2f} on)", "")]
    for reason in list(Reason)[1:]:
        if f.tally.area[reason] > 0:
            c = VALIDITY.by_value(reason)
            inside = reason > Reason.OUTSIDE_AOI
            share = units.percent(f.tally.area[reason] / f.tally.considered_area) if inside else ""
            entries.append((c.colour, c.title, share))
    return entries


def draw_legend(sheet: Sheet, y: float, entries: Sequence[tuple[str, str, str]], faint: int = 0) -> float:
    """Colour, text and a figure at the right of each entry; the first `faint` are outlines with little fill.
    Returns where the panel goes on."""
    from matplotlib.colors import to_rgba

    y = sheet.heading(y, "Legend")
    for i, (colour, text, share) in enumerate(entries):
        y -= LEGEND_LINE
        patch = sheet.place(sheet.x, y - 0.01, 0.2, 0.11)
        patch.set_facecolor(to_rgba(colour, 0.38 if i < faint else 1))
        frame(patch, 0.8, colour if i < faint else RULE)
        sheet.write(sheet.x + 0.28, y, text)
        sheet.write(RIGHT, y, share, ha="right", color=QUIET)
    return y - 0.14


def draw_locator(sheet: Sheet, y: float) -> float:
    """Where on Earth the map lies; returns where the panel goes on."""
    from matplotlib.patches import Circle, Polygon

    facts = sheet.facts
    y = sheet.heading(y, "Where it is")
    axes = sheet.place(sheet.x, y - 0.05 - GLOBE, GLOBE, GLOBE)
    axes.set_xlim(-1.03, 1.03)
    axes.set_ylim(-1.03, 1.03)
    axes.set_axis_off()
    compass = Compass(sheet.geobox)
    rows, cols = sheet.shape
    lon, lat = compass.lonlat(*on_ground(sheet.geobox.affine, np.array([cols / 2]), np.array([rows / 2])))
    shapes, lines = globe(float(lon[0]), float(lat[0]))
    axes.add_patch(Circle((0, 0), 1, facecolor=SEA, edgecolor="none"))
    for shape in shapes:
        axes.add_patch(Polygon(shape, closed=True, facecolor="#c3ccd4", edgecolor="white", linewidth=0.2))
    for line in lines:
        axes.plot(line[:, 0], line[:, 1], color="white", linewidth=0.35)
    axes.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=INK, linewidth=0.6))
    dot = {"color": CHANGE_COLOUR, "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.8}
    axes.plot([0], [0], "o", **dot)
    size = metres_per_pixel(sheet.geobox)
    texts = [
        ("Middle", facts["grid.corners"].display),
        ("Extent", " × ".join(units.length(n * m) for n, m in zip((cols, rows), size, strict=True))),
        ("CRS", clip(facts["grid.crs"].display, 26)),
        ("Pixel", facts["grid.resolution"].display),
    ]
    for i, (name, text) in enumerate(texts):
        at = y - 0.2 - 0.2 * i
        sheet.write(sheet.x + GLOBE + 0.12, at, name, fontsize=6.5, color=QUIET)
        sheet.write(sheet.x + GLOBE + 0.5, at, text, fontsize=7)
    return y - GLOBE - 0.16


def _source_lines(sheet: ChangeSheet) -> list[tuple[str, str]]:
    run = sheet.findings.run
    most = int((sheet.width - 0.52) / 0.055)
    verdict = textwrap.wrap(
        sheet.findings.alignment.verdict, most, max_lines=_VERDICT_LINES, placeholder=" …"
    )
    return [
        *(
            (word, clip(f"{info.name} ({info.sensor.title})", most))
            for word, info in (("Before", run.pair.before), ("After", run.pair.after))
        ),
        ("Model", clip(run.card.slug, most)),
        ("Run", run.run_id),
        *(("" if i else "Alignment", line) for i, line in enumerate(verdict)),
    ]


def draw_sources(sheet: Sheet, y: float, lines: Sequence[tuple[str, str]]) -> None:
    """Names and texts, a line each."""
    y = sheet.heading(y, "Sources and method")
    for name, text in lines:
        y -= LINE
        sheet.write(sheet.x, y, name, fontsize=6.5, color=QUIET)
        sheet.write(sheet.x + 0.52, y, text, fontsize=7)
