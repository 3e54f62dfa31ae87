"""The map sheet: A4 landscape, as PNG and PDF.

One main map with its graticule, and a margin that says everything a reader needs to judge it: what is drawn,
of when, from what, how large, and that no one has checked it in the field.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely

from terralapse.grid.areas import on_ground
from terralapse.products.facts import Facts
from terralapse.products.findings import Findings
from terralapse.products.furniture import (
    DPI,
    draw_footer,
    draw_graticule,
    draw_header,
    draw_scale_and_north,
    fit_into,
    save,
)
from terralapse.products.imagery import CHANGE_COLOUR, mask_layer
from terralapse.products.panel import ChangeSheet, draw_panel
from terralapse.products.sheet import A4, PAPER, SEA, clip, frame, shrunk, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROOM = (0.74, 1.26, 7.52, 5.86)  # x, y, width, height for the main map
_MOST_OUTLINES = 6000
_MOST_PIXELS = 1500  # of the picture: 250 dpi at the size of the main map
_FADE = 0.84  # the picture under the overprint is a little faded, so that the outlines stand out


def write_map(findings: Findings, facts: Facts, folder: Path) -> None:
    """Writes `map.png` (200 dpi) and `map.pdf` (outlines and text as vectors)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        figure = Figure(figsize=A4, dpi=DPI, facecolor=PAPER)
        run = findings.run
        room = fit_into(_ROOM, run.pair.shape)
        sheet = ChangeSheet(figure, facts, run.pair.geobox, run.started, room, findings)
        _header(sheet)
        _main_map(sheet)
        draw_scale_and_north(sheet)
        draw_panel(sheet)
        draw_footer(sheet)
        save(sheet, folder, f"Change map {run.run_id}")


def _title(f: Findings) -> str:
    before, after = f.run.pair.before, f.run.pair.after
    if before.time and after.time:
        days = [f"{t.day} {t:%B %Y}" for t in (before.time, after.time)]
        return f"Change from {days[0]} to {days[1]}"
    return f"Change between “{clip(before.name, 32)}” and “{clip(after.name, 32)}”"


def _header(sheet: ChangeSheet) -> None:
    where = f"Around {sheet.facts['grid.corners'].display}  ·  " if "grid.corners" in sheet.facts else ""
    draw_header(sheet, _title(sheet.findings), f"{where}What differs is outlined on the later image")


# --- main map --------------------------------------------------------------------------------------
def _main_map(sheet: ChangeSheet) -> None:
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
    draw_graticule(axes, f.run.pair.geobox)


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
