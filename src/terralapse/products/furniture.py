"""What every map sheet has around its map: header, graticule, scale bar, north arrow, footer, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.grid.areas import Compass
from terralapse.products import units
from terralapse.products.graticule import bar_length, graticule, metres_per_pixel
from terralapse.products.imagery import CHANGE_COLOUR
from terralapse.products.sheet import INK, LEFT, PAPER, QUIET, RIGHT, Sheet, frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 200


def save(sheet: Sheet, folder: Path, title: str, name: str = "map") -> None:
    """Writes `<name>.png` (200 dpi) and `<name>.pdf` (outlines and text as vectors)."""
    sheet.figure.savefig(folder / f"{name}.png", metadata={"Software": "terralapse", "Title": title})
    about = {"Creator": "terralapse", "Producer": None, "Title": title, "CreationDate": sheet.started}
    sheet.figure.savefig(folder / f"{name}.pdf", metadata=about)


def fit_into(
    room: tuple[float, float, float, float], shape: tuple[int, int]
) -> tuple[float, float, float, float]:
    """The largest frame of the grid's proportions in the room, at its upper left."""
    x, y, width, height = room
    scale = min(width / shape[1], height / shape[0])
    w, h = shape[1] * scale, shape[0] * scale
    return x, y + height - h, w, h


def draw_header(sheet: Sheet, title: str, said: str) -> None:
    """The title of the sheet, a line under it, and the name of the sheet."""
    sheet.rule(LEFT, RIGHT, 7.98, INK, 1.6)
    sheet.write(LEFT, 7.62, title, fontsize=17, fontweight="bold")
    sheet.write(LEFT, 7.38, said, fontsize=8.5, color=QUIET)
    sheet.write(RIGHT, 7.66, "terralapse", fontsize=11, fontweight="bold", ha="right")
    sheet.write(RIGHT, 7.46, f"Sheet {sheet.facts.run_id}", fontsize=7.5, color=QUIET, ha="right")


def draw_footer(sheet: Sheet) -> None:
    """What a reader must not forget, and when the sheet was made."""
    sheet.rule(LEFT, RIGHT, 0.52, INK, 0.8)
    warning = "AUTOMATIC, NOT FIELD VALIDATED"
    sheet.write(LEFT, 0.33, warning, fontsize=8.5, fontweight="bold", color=CHANGE_COLOUR)
    said = "Made by a program without any check on the ground. Verify on site before you act on it."
    sheet.write(LEFT + 2.5, 0.335, said, color=QUIET)
    made = f"Made {units.date(sheet.started)}"
    sheet.write(RIGHT, 0.335, made, color=QUIET, ha="right")


def draw_graticule(axes: Axes, geobox: GeoBox) -> None:
    """Crosses and ticks of degrees over a map whose axes count pixels; nothing without a CRS."""
    lines = graticule(geobox)
    if lines is None:
        return
    rows, cols = geobox.shape.y, geobox.shape.x
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


def draw_scale_and_north(sheet: Sheet, reach: float | None = None) -> None:
    """The bar is true in the middle of the map; the arrow points to true north. `reach` is the width of both
    together, that of the map unless given."""
    x, y = sheet.map[0], 0.84
    per_inch = metres_per_pixel(sheet.geobox)[0] * sheet.shape[1] / sheet.map[2]
    total = bar_length(2.2 * per_inch)
    long = total / per_inch
    bar = sheet.place(x, y, long, 0.06)
    for i in range(4):
        bar.axvspan(i / 4, (i + 1) / 4, facecolor=INK if i % 2 == 0 else PAPER, edgecolor=INK, linewidth=0.5)
    bar.set_xlim(0, 1)
    frame(bar, 0.5)
    for share in (0, 0.5, 1):
        value = "0" if share == 0 else units.length(share * total, "px" if sheet.unit == "px" else "m")
        sheet.write(x + share * long, y - 0.13, value, fontsize=7, ha="left" if share == 0 else "center")
    if sheet.unit == "px":
        return
    sheet.write(x + long + 0.36, y - 0.01, f"1 : {units.number(per_inch / 0.0254)}", fontsize=8.5)
    sheet.write(x + long + 0.36, y - 0.13, "on A4 paper", fontsize=6.5, color=QUIET)
    _north(sheet, x + (reach or sheet.map[2]) - 1.1, y + 0.02, Compass(sheet.geobox).picture_north())


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
