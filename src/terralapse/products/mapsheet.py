"""The map sheet: A4 landscape, as PNG and PDF.

One main map with its graticule, and a margin that says everything a reader needs to judge it: what is drawn,
of when, from what, how large, and that no one has checked it in the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from terralapse.grid.areas import Compass, on_ground
from terralapse.products import units
from terralapse.products.facts import Facts
from terralapse.products.findings import Findings
from terralapse.products.graticule import bar_length, graticule, metres_per_pixel
from terralapse.products.imagery import CHANGE_COLOUR, mask_layer
from terralapse.products.panel import draw_panel
from terralapse.products.sheet import (
    A4,
    INK,
    LEFT,
    PAPER,
    QUIET,
    RIGHT,
    SEA,
    Sheet,
    clip,
    frame,
    shrunk,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 200
_ROOM = (0.74, 1.26, 7.52, 5.86)  # x, y, width, height for the main map
_MOST_OUTLINES = 6000
_MOST_PIXELS = 1500  # of the picture: 250 dpi at the size of the main map
_FADE = 0.84  # the picture under the overprint is a little faded, so that the outlines stand out


def write_map(findings: Findings, facts: Facts, folder: Path) -> None:
    """Writes `map.png` (200 dpi) and `map.pdf` (outlines and text as vectors)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        figure = Figure(figsize=A4, dpi=_DPI, facecolor=PAPER)
        sheet = Sheet(figure, findings, facts, _fit(findings.run.pair.shape))
        _header(sheet)
        _main_map(sheet)
        _scale_and_north(sheet)
        draw_panel(sheet)
        _footer(sheet)
        title = f"Change map {findings.run.run_id}"
        when = findings.run.started
        figure.savefig(folder / "map.png", metadata={"Software": "terralapse", "Title": title})
        about = {"Creator": "terralapse", "Producer": None, "Title": title, "CreationDate": when}
        figure.savefig(folder / "map.pdf", metadata=about)


def _fit(shape: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest frame of the grid's proportions in the room, at its upper left."""
    x, y, width, height = _ROOM
    scale = min(width / shape[1], height / shape[0])
    w, h = shape[1] * scale, shape[0] * scale
    return x, y + height - h, w, h


def _title(f: Findings) -> str:
    before, after = f.run.pair.before, f.run.pair.after
    if before.time and after.time:
        days = [f"{t.day} {t:%B %Y}" for t in (before.time, after.time)]
        return f"Change from {days[0]} to {days[1]}"
    return f"Change between “{clip(before.name, 32)}” and “{clip(after.name, 32)}”"


def _header(sheet: Sheet) -> None:
    f, facts = sheet.findings, sheet.facts
    sheet.rule(LEFT, RIGHT, 7.98, INK, 1.6)
    sheet.write(LEFT, 7.62, _title(f), fontsize=17, fontweight="bold")
    place = f"Around {facts['grid.corners'].display}  ·  " if "grid.corners" in facts else ""
    said = f"{place}What differs is outlined on the later image"
    sheet.write(LEFT, 7.38, said, fontsize=8.5, color=QUIET)
    sheet.write(RIGHT, 7.66, "terralapse", fontsize=11, fontweight="bold", ha="right")
    sheet.write(RIGHT, 7.46, f"Sheet {f.run.run_id}", fontsize=7.5, color=QUIET, ha="right")


def _footer(sheet: Sheet) -> None:
    sheet.rule(LEFT, RIGHT, 0.52, INK, 0.8)
    warning = "AUTOMATIC, NOT FIELD VALIDATED"
    sheet.write(LEFT, 0.33, warning, fontsize=8.5, fontweight="bold", color=CHANGE_COLOUR)
    said = "Made by a program without any check on the ground. Verify on site before you act on it."
    sheet.write(LEFT + 2.5, 0.335, said, color=QUIET)
    made = f"Made {units.date(sheet.findings.run.started)}"
    sheet.write(RIGHT, 0.335, made, color=QUIET, ha="right")


# --- main map --------------------------------------------------------------------------------------
def _main_map(sheet: Sheet) -> None:
    f = sheet.findings
    rows, cols = f.run.pair.shape
    axes = sheet.place(*sheet.map)
    axes.set_facecolor(SEA)
    pictures = f.pictures
    step = cols / pictures.geobox.shape.x
    extent = (0, pictures.geobox.shape.x * step, pictures.geobox.shape.y * step, 0)
    faded = (255 - (255 - pictures.after.astype(np.float32)) * _FADE).round().astype(np.uint8)
    axes.imshow(shrunk(np.dstack([faded, pictures.after_alpha]), _MOST_PIXELS), extent=extent)
    masked = mask_layer(f.tally.layers.reason)
    if masked[..., 3].any():
        axes.imshow(masked, extent=extent, interpolation="nearest")
    _draw_change(axes, f)
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)
    frame(axes, 0.9)
    _draw_graticule(axes, f)


def outlines(f: Findings) -> np.ndarray:
    """Polygons in pixel coordinates, the largest first."""
    back = ~f.run.pair.geobox.affine
    shapes = np.asarray(f.polygons.geometry.values[:_MOST_OUTLINES])
    return shapely.transform(shapes, lambda c: np.column_stack(on_ground(back, *c.T)))


def _draw_change(axes: Axes, f: Findings) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path as Outline

    paths = []
    for part in shapely.get_parts(outlines(f)):
        rings = [np.asarray(r.coords) for r in (part.exterior, *part.interiors)]
        codes = [np.r_[Outline.MOVETO, np.full(len(r) - 2, Outline.LINETO), Outline.CLOSEPOLY] for r in rings]
        paths.append(Outline(np.concatenate(rings), np.concatenate(codes)))
    halo = {"facecolors": "none", "edgecolors": [(1, 1, 1, 0.85)], "linewidths": 1.3}
    body = {"facecolors": [to_rgba(CHANGE_COLOUR, 0.38)], "edgecolors": CHANGE_COLOUR, "linewidths": 0.55}
    for look in (halo, body):
        axes.add_collection(PathCollection(paths, **look), autolim=False)


def _draw_graticule(axes: Axes, f: Findings) -> None:
    lines = graticule(f.run.pair.geobox)
    if lines is None:
        return
    rows, cols = f.run.pair.shape
    for colour, width in (("white", 1.7), (INK, 0.6)):
        axes.plot(*lines.crossings.T, "+", color=colour, markersize=7, markeredgewidth=width)
    mark = {"color": INK, "linewidth": 0.7, "clip_on": False}
    text = {"fontsize": 6.5, "color": QUIET, "clip_on": False}
    reach = 0.008 * max(rows, cols)
    for edge, near, far in ((lines.bottom, rows, rows + reach), (lines.top, 0, -reach)):
        for tick in edge:
            axes.plot([tick.at] * 2, [near, far], **mark)
    for edge, near, far in ((lines.left, 0, -reach), (lines.right, cols, cols + reach)):
        for tick in edge:
            axes.plot([near, far], [tick.at] * 2, **mark)
    for tick in lines.bottom:
        axes.text(tick.at, rows + 1.6 * reach, tick.text, ha="center", va="top", **text)
    for tick in lines.left:
        at = min(max(tick.at, 0.06 * rows), 0.94 * rows)  # a label is long and must stay on the map's side
        axes.text(-1.6 * reach, at, tick.text, ha="right", va="center", rotation=90, **text)


# --- scale and north -------------------------------------------------------------------------------
def _scale_and_north(sheet: Sheet) -> None:
    """The bar is true in the middle of the map; the arrow points to true north."""
    f = sheet.findings
    x, y = sheet.map[0], 0.84
    per_inch = metres_per_pixel(f.run.pair.geobox)[0] * f.run.pair.shape[1] / sheet.map[2]
    total = bar_length(2.2 * per_inch)
    long = total / per_inch
    bar = sheet.place(x, y, long, 0.06)
    for i in range(4):
        bar.axvspan(i / 4, (i + 1) / 4, facecolor=INK if i % 2 == 0 else PAPER, edgecolor=INK, linewidth=0.5)
    bar.set_xlim(0, 1)
    frame(bar, 0.5)
    for share in (0, 0.5, 1):
        value = "0" if share == 0 else units.length(share * total, f.length_unit)
        sheet.write(x + share * long, y - 0.13, value, fontsize=7, ha="left" if share == 0 else "center")
    if f.unit == "px":
        return
    sheet.write(x + long + 0.36, y - 0.01, f"1 : {units.number(per_inch / 0.0254)}", fontsize=8.5)
    sheet.write(x + long + 0.36, y - 0.13, "on A4 paper", fontsize=6.5, color=QUIET)
    _north(sheet, x + sheet.map[2] - 1.1, y + 0.02, Compass(f.run.pair.geobox).picture_north())


def _north(sheet: Sheet, x: float, y: float, clockwise: float) -> None:
    from matplotlib.patches import Polygon

    axes = sheet.place(x - 0.2, y - 0.2, 0.4, 0.4)
    axes.set_xlim(-1, 1)
    axes.set_ylim(-1, 1)
    axes.set_axis_off()
    turn = np.radians(clockwise)
    rotate = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    for side, face in ((-1, INK), (1, PAPER)):
        points = np.array([(0, 0.6), (side * 0.34, -0.66), (0, -0.38)]) @ rotate.T
        axes.add_patch(Polygon(points, closed=True, facecolor=face, edgecolor=INK, linewidth=0.6))
    top = rotate @ (0, 0.98)
    axes.text(top[0], top[1], "N", ha="center", va="center", fontsize=7, fontweight="bold", clip_on=False)
    sheet.write(x + 0.26, y, "True north", fontsize=7)
    if abs(clockwise) >= 0.05:
        side = "right" if clockwise > 0 else "left"
        sheet.write(x + 0.26, y - 0.13, f"{abs(clockwise):.1f}° {side} of up", fontsize=6.5, color=QUIET)
