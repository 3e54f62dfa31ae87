"""The map sheet of a disaster report: the later image under the grades of damage, or under what changed."""

from __future__ import annotations

import textwrap
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.enums import Resampling

from terralapse.labels import BINARY_CHANGE, DAMAGE, VALIDITY, Reason
from terralapse.products.class_facts import DAMAGED
from terralapse.products.disaster import GRADES, DisasterReport
from terralapse.products.furniture import (
    DPI,
    draw_footer,
    draw_graticule,
    draw_header,
    draw_scale_and_north,
    fit_into,
    save,
)
from terralapse.products.imagery import CHANGE_COLOUR, mask_layer, rgb
from terralapse.products.panel import GLOBE, LINE, draw_legend, draw_locator, draw_sources
from terralapse.products.sheet import A4, INK, PAPER, SEA, Sheet, clip, frame, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "disaster"  # of the files
_ROOM = (0.74, 1.26, 7.52, 5.86)  # x, y, width, height for the map
_MOST_PIXELS = 1500
_FADE = 0.72  # the picture under the colours
_TOP = 7.0
_DESTROYED = "#b2182b"
_LINES = 6  # of a statement in the panel


def write_disaster_map(
    report: DisasterReport, folder: Path, geobox: GeoBox, made: datetime, sources: list[tuple[str, str]]
) -> None:
    """Writes `disaster.png` and `disaster.pdf` beside the rasters that they show.

    Args:
        folder: of the run, or a folder with its `change.tif`, `valid.tif` and, where there are any,
            `after.tif` and `damage.tif`.
        sources: names and texts for the foot of the panel.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    facts = report.facts
    graded = "damage.buildings" in facts
    with mpl.rc_context(style()):  # type: ignore[arg-type]
        figure = Figure(figsize=A4, dpi=DPI, facecolor=PAPER)
        shape = (geobox.shape.y, geobox.shape.x)
        sheet = Sheet(figure, facts, geobox, made, fit_into(_ROOM, shape))
        where = f"Around {facts['grid.corners'].display}  ·  " if "grid.corners" in facts else ""
        title = clip(report.event, 60) or "Disaster map"
        shown = "Grades of damage of buildings" if graded else "What differs, which is not all damage,"
        draw_header(sheet, title, f"{where}{shown} over the later image")
        _draw_map(sheet.place(*sheet.map), sheet, folder, graded)
        draw_scale_and_north(sheet)
        _panel(sheet, report, folder, graded, sources)
        draw_footer(sheet)
        save(sheet, folder, f"Disaster map {facts.run_id}", NAME)


def _draw_map(axes: Axes, sheet: Sheet, folder: Path, graded: bool) -> None:
    rows, cols = sheet.shape
    axes.set_facecolor(SEA)
    axes.imshow(map_picture(folder, sheet.shape, graded), extent=(0, cols, rows, 0), aspect="auto")
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)
    frame(axes, 0.9)
    draw_graticule(axes, sheet.geobox)


def map_picture(folder: Path, shape: tuple[int, int], graded: bool) -> np.ndarray:
    """uint8 [h, w, 3]: the faded later image, masked pixels in the colours of their reasons, and grades or
    change on top. Classes are taken at the nearest pixel, so that no grade is invented between two."""
    step = max(1.0, max(shape) / _MOST_PIXELS)
    size = (max(1, round(shape[0] / step)), max(1, round(shape[1] / step)))

    def read(name: str, how: Resampling = Resampling.nearest) -> np.ndarray:
        with rasterio.open(folder / name) as source:
            return source.read(out_shape=(source.count, *size), resampling=how)

    picture = np.full((*size, 3), 255.0)
    if (folder / "after.tif").is_file():
        later = np.moveaxis(read("after.tif", Resampling.average), 0, -1).astype(np.float64)
        grey = later.mean(axis=-1, keepdims=True)  # the colours of the picture must not pass for grades
        picture = 255 - (255 - (0.4 * later + 0.6 * grey)) * _FADE
    masked = mask_layer(read("valid.tif")[0])
    covered = masked[..., 3] > 0
    picture[covered] = masked[covered, :3]
    scheme, name = (DAMAGE, DAMAGED) if graded else (BINARY_CHANGE, "change.tif")
    values = read(name)[0]
    for c in scheme.classes:
        if c.value:
            colour = np.array(rgb(c.colour if graded else CHANGE_COLOUR), np.float64)
            own = values == c.value
            opaque = 0.9 if graded else 0.55
            picture[own] = (1 - opaque) * picture[own] + opaque * colour
    return picture.round().astype(np.uint8)


def _panel(
    sheet: Sheet, report: DisasterReport, folder: Path, graded: bool, sources: list[tuple[str, str]]
) -> None:
    facts, y = report.facts, _TOP
    if graded:
        headline, colour = f"{facts['damage.destroyed.count'].display} destroyed", _DESTROYED
        more = f"{facts['damage.any.count'].display} of {facts['damage.buildings'].display} damaged"
    else:
        headline, colour = f"{facts['area.changed'].display} changed", CHANGE_COLOUR
        more = f"{facts['object.count'].display} of {facts['object.minimum'].display} or more; no grades"
    sheet.write(sheet.x, y - 0.04, headline, fontsize=18, fontweight="bold", color=colour)
    sheet.write(sheet.x, y - 0.25, more, fontsize=8.5)
    y = draw_legend(sheet, y - 0.42, _legend(report, folder, graded))
    most = int(sheet.width / 0.053)
    if report.immediate:
        y = sheet.heading(y, "First, by stated rules")
        lines = [
            line
            for s in report.immediate
            for line in textwrap.wrap(f"• {s.text}", most, subsequent_indent="   ")
        ]
        foot = 0.7 + 0.3 + LINE * len(sources) + (0.0 if sheet.unit == "px" else GLOBE + 0.36)
        room = max(_LINES, int((y - foot) / LINE) - 1)
        if len(lines) > room:
            lines = [*lines[: room - 1], "… the report has the rest"]
        for line in lines:
            y -= LINE
            sheet.write(sheet.x, y, line, fontsize=7, color=INK)
        y -= 0.14
    if sheet.unit != "px":
        y = draw_locator(sheet, y)
    draw_sources(sheet, y, sources)


def _legend(report: DisasterReport, folder: Path, graded: bool) -> list[tuple[str, str, str]]:
    facts = report.facts
    if graded:
        colours = {c.name: c.colour for c in DAMAGE.classes}
        entries = [
            (colours[g], f"{t} damage" if g in ("minor", "major") else t, facts[f"damage.{g}.count"].display)
            for g, t in reversed(GRADES)
        ]
    else:
        entries = [(CHANGE_COLOUR, "Change", facts["area.changed"].display)]
    with rasterio.open(folder / "valid.tif") as source:
        codes: Any = np.unique(source.read(1, out_shape=(min(source.height, 512), min(source.width, 512))))
    for code in codes.tolist():
        if code not in (Reason.VALID, VALIDITY.nodata):
            c = VALIDITY.by_value(code)
            entries.append((c.colour, c.title, ""))
    return entries
