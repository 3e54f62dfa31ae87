"""The map sheet of a series: when each pixel broke and by how much, side by side, with their legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terralapse.labels import SERIES_QUALITY, SERIES_UNUSABLE
from terralapse.products import units
from terralapse.products.facts import Facts
from terralapse.products.furniture import (
    DPI,
    draw_footer,
    draw_graticule,
    draw_header,
    draw_scale_and_north,
    fit_into,
    save,
)
from terralapse.products.imagery import RAMP, rgb
from terralapse.products.panel import GLOBE, LINE, draw_legend, draw_locator, draw_sources
from terralapse.products.sheet import A4, INK, PAPER, QUIET, SEA, Sheet, clip, frame, shrunk, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FALL, RISE, NEUTRAL = "#b0126f", "#0b7a75", "#d9d5cc"
_ROOM = (0.74, 1.26, 7.52, 5.86)  # x, y, width, height for both maps with their legends
_LEGEND = 0.62  # height under a map
_GAP = 0.42  # beside or above another map, for the degrees at its side
_LEAST_REACH = 4.2  # of the scale bar and the arrow beside it
_MOST_PIXELS = 1500
_TOP = 7.0
_BARE = "#f2f0eb"  # no break found, and none of the last dates shows the ground
_GREY = "#dddddd"  # the middle of the greys of the ground


@dataclass(frozen=True)
class SeriesView:
    """What a sheet shows, on one decimated grid.

    Attributes:
        name: of the area.
        index: in capitals.
        days: float64 [h, w], days since 1970-01-01 of the break; NaN where there is none.
        magnitude: float64 [h, w]; NaN where there is none.
        valid: uint8 [h, w], codes of `SERIES_QUALITY`.
        ground: float [h, w], the index as it last was; NaN where that is not known.
        first, last: of the dates, days.
        shares: share of the area looked at by code of what is not known.
        headline: the result in a few words, and lines under it.
        sources: names and texts.
    """

    name: str
    index: str
    days: np.ndarray
    magnitude: np.ndarray
    valid: np.ndarray
    ground: np.ndarray
    first: float
    last: float
    shares: dict[int, float]
    headline: tuple[str, ...]
    sources: Sequence[tuple[str, str]]

    @property
    def most(self) -> float:
        """The magnitude at the ends of the scale."""
        known = np.abs(self.magnitude[np.isfinite(self.magnitude)])
        return max(float(np.percentile(known, 98)) if known.size else 1.0, 1e-9)


def write_series_map(view: SeriesView, facts: Facts, geobox: Any, started: datetime, folder: Path) -> None:
    """Writes `map.png` (200 dpi) and `map.pdf`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        figure = Figure(figsize=A4, dpi=DPI, facecolor=PAPER)
        shape = (geobox.shape.y, geobox.shape.x)
        first, second = rooms(shape)
        taken = second[0] + second[2] - first[0]
        sheet = Sheet(figure, facts, geobox, started, (*first[:2], taken, first[3]))
        dates = [f"{_day(d):%Y}" for d in (view.first, view.last)]
        where = f"Around {facts['grid.corners'].display}  ·  " if "grid.corners" in facts else ""
        title = f"{clip(view.name, 40)}: when {view.index} broke, {dates[0]} to {dates[1]}"
        said = f"{where}Coloured where the series left season and trend, over the latest {view.index} in grey"
        draw_header(sheet, title, said)
        for place, picture, legend in (
            (first, when_layer(view), _date_legend),
            (second, how_layer(view), _size_legend),
        ):
            _map(sheet, place, view, picture)
            legend(sheet, place, view)
        draw_scale_and_north(replace(sheet, map=first), max(taken, _LEAST_REACH))
        _panel(sheet, view)
        draw_footer(sheet)
        save(sheet, folder, f"Series map {facts.run_id}")


def rooms(shape: tuple[int, int]) -> tuple[tuple[float, float, float, float], ...]:
    """Frames of the two maps: beside or above each other, whichever makes them larger."""
    x, y, width, height = _ROOM
    beside = ((width - _GAP) / 2, height - _LEGEND)
    above = (width, (height - _GAP) / 2 - _LEGEND)
    scale = {way: min(w / shape[1], h / shape[0]) for way, (w, h) in (("beside", beside), ("above", above))}
    if scale["beside"] >= scale["above"]:
        half, step = beside
        first = fit_into((x, y + _LEGEND, half, step), shape)
        return first, (first[0] + first[2] + _GAP, *first[1:])
    first = fit_into((x, y + height - above[1], *above), shape)
    return first, (first[0], first[1] - first[3] - _LEGEND - _GAP, *first[2:])


def _day(days: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=float(days))


# --- layers ----------------------------------------------------------------------------------------
def base_layer(view: SeriesView) -> np.ndarray:
    """The ground in grey, and the colour of its code where nothing can be said: uint8 [h, w, 3]."""
    known = np.isfinite(view.ground)
    base = np.full((*view.valid.shape, 3), rgb(_BARE), np.uint8)
    if known.any():
        low, high = np.percentile(view.ground[known], (2, 98))
        share = np.clip((view.ground[known] - low) / max(high - low, 1e-9), 0, 1)
        # Light, so that every colour of a break is darker or stronger than the ground.
        base[known] = (190 + 62 * share)[:, None].round().astype(np.uint8)
    for c in SERIES_QUALITY.classes:
        if c.value >= SERIES_UNUSABLE:
            base[view.valid == c.value] = rgb(c.colour)
    return base


def when_layer(view: SeriesView) -> np.ndarray:
    """The ground with the date of the break along the ramp, early light and late dark."""
    picture, broken = base_layer(view), np.isfinite(view.days)
    share = (view.days[broken] - view.first) / max(view.last - view.first, 1)
    picture[broken] = (_date_colours()(share)[:, :3] * 255).round().astype(np.uint8)
    return picture


def how_layer(view: SeriesView) -> np.ndarray:
    """The ground with the magnitude of the break: falling purple, rising green."""
    picture, broken = base_layer(view), np.isfinite(view.magnitude)
    share = np.clip(view.magnitude[broken] / view.most, -1, 1)
    picture[broken] = (_size_colours()((share + 1) / 2)[:, :3] * 255).round().astype(np.uint8)
    return picture


def _date_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("dates", RAMP[1:])  # its first colour is that of bare paper


def _size_colours() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("magnitudes", (FALL, NEUTRAL, RISE))


# --- drawing ---------------------------------------------------------------------------------------
def _map(sheet: Sheet, place: tuple[float, ...], view: SeriesView, picture: np.ndarray) -> None:
    rows, cols = sheet.shape
    axes = sheet.place(*place)
    axes.set_facecolor(SEA)
    smooth = max(picture.shape[:2]) > _MOST_PIXELS
    axes.imshow(
        shrunk(picture, _MOST_PIXELS),
        extent=(0, cols, rows, 0),
        aspect="auto",
        interpolation="antialiased" if smooth else "nearest",
    )
    axes.set_xlim(0, cols)
    axes.set_ylim(rows, 0)
    frame(axes, 0.9)
    draw_graticule(axes, sheet.geobox)


def _bar(sheet: Sheet, place: tuple[float, ...], title: str, colours: Any) -> Axes:
    """A colour scale under a map, from 0 to 1."""
    x, y, width, _ = place
    sheet.write(x, y - 0.31, title, fontsize=7.5, fontweight="bold")
    axes = sheet.place(x, y - 0.46, width, 0.09)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=colours, extent=(0, 1, 0, 1), aspect="auto")
    axes.set_xlim(0, 1)
    frame(axes, 0.5)
    return axes


def _ticks(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    for at, text in marks:
        axes.plot([at, at], [-0.35, 0], color=INK, linewidth=0.6, clip_on=False)
        side = "left" if at < 0.02 else "right" if at > 0.98 else "center"
        axes.text(at, -0.9, text, fontsize=6.5, ha=side, va="top", color=QUIET, parse_math=False)


def _date_legend(sheet: Sheet, place: tuple[float, ...], view: SeriesView) -> None:
    axes = _bar(sheet, place, "Date of the break", _date_colours())
    _ticks(axes, date_marks(view.first, view.last, max(2, int(place[2] / 0.42))))


def date_marks(first: float, last: float, most: int = 8) -> list[tuple[float, str]]:
    """Positions 0..1 and texts for the scale of dates: years where there are two or more, else months."""
    start, end = _day(first), _day(last)
    span = max(last - first, 1.0)

    def at(day: datetime) -> float:
        return ((day - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() / 86400 - first) / span

    years = [datetime(y, 1, 1, tzinfo=UTC) for y in range(start.year + 1, end.year + 1)]
    if len(years) >= 2:
        step = -(-len(years) // most)
        return [(at(y), f"{y:%Y}") for y in years[::step]]
    return [(0.0, f"{start:%Y-%m-%d}"), (1.0, f"{end:%Y-%m-%d}")]


def _size_legend(sheet: Sheet, place: tuple[float, ...], view: SeriesView) -> None:
    axes = _bar(sheet, place, f"Change of {view.index} at the break", _size_colours())
    most = view.most
    _ticks(axes, [(0.0, f"−{most:.2g} or less"), (0.5, "0"), (1.0, f"+{most:.2g} or more")])


def _panel(sheet: Sheet, view: SeriesView) -> None:
    legend = [(_GREY, f"No break found ({view.index} of the last dates in grey)", "")]
    for c in SERIES_QUALITY.classes:
        share = view.shares.get(c.value, 0.0)
        if c.value >= SERIES_UNUSABLE and share > 0:
            legend.append((c.colour, c.title, units.percent(share)))
    y = _TOP
    sheet.write(sheet.x, y - 0.04, view.headline[0], fontsize=18, fontweight="bold", color=FALL)
    for i, line in enumerate(view.headline[1:]):
        sheet.write(sheet.x, y - 0.27 - 0.17 * i, line, fontsize=8.5)
    y = draw_legend(sheet, y - 0.32 - 0.17 * (len(view.headline) - 1), legend)
    if sheet.unit != "px" and y > GLOBE + 1.2 + LINE * len(view.sources):
        y = draw_locator(sheet, y)
    draw_sources(sheet, y, view.sources)
