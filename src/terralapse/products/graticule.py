"""Where meridians and parallels cross a picture, how long a metre is in it, and where it is on the globe.

Works in the pixel coordinates of the full grid (x to the right, y down), so that it holds for any CRS, for
south-up grids and for rotated ones.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer

from terralapse.grid.areas import Compass, has_place, on_ground

_STEPS = (30, 15, 10, 5, 2, 1, 0.5, 0.25, 1 / 6, 1 / 12, 1 / 30, 1 / 60, 1 / 120, 1 / 240, 1 / 360, 1 / 720)
_STEPS_SECONDS = (2 / 3600, 1 / 3600, 0.5 / 3600, 0.2 / 3600, 0.1 / 3600)
_SAMPLES = 400


@dataclass(frozen=True)
class Tick:
    """A line of the graticule on the frame: `at` in pixels along the edge, `text` its coordinate."""

    at: float
    text: str


@dataclass(frozen=True)
class Graticule:
    """Ticks on each edge of the frame and the crossings inside it, in pixels."""

    bottom: tuple[Tick, ...]
    left: tuple[Tick, ...]
    top: tuple[Tick, ...]
    right: tuple[Tick, ...]
    crossings: np.ndarray


def graticule(geobox: GeoBox, wanted: int = 4) -> Graticule | None:
    """About `wanted` meridians and parallels; None for a grid without a place."""
    if not has_place(geobox):
        return None
    compass = Compass(geobox)
    height, width = geobox.shape.y, geobox.shape.x

    def along(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lon, lat = compass.lonlat(*on_ground(geobox.affine, x, y))
        return np.degrees(np.unwrap(np.radians(lon))), lat

    across, down = np.linspace(0, width, _SAMPLES), np.linspace(0, height, _SAMPLES)
    edges = {
        "bottom": (across, along(across, np.full(_SAMPLES, height))[0]),
        "top": (across, along(across, np.zeros(_SAMPLES))[0]),
        "left": (down, along(np.zeros(_SAMPLES), down)[1]),
        "right": (down, along(np.full(_SAMPLES, width), down)[1]),
    }
    ticks: dict[str, tuple[Tick, ...]] = {}
    lines: dict[str, list[tuple[float, float]]] = {"lon": [], "lat": []}
    for pair, kind in ((("bottom", "top"), "lon"), (("left", "right"), "lat")):
        step = _step(max(float(np.ptp(edges[e][1])) for e in pair) / wanted)
        for edge in pair:
            found = _crossings(*edges[edge], step)
            ticks[edge] = tuple(Tick(at, degrees(value, kind, step)) for at, value in found)
            lines[kind] += [(at, value) for at, value in found] if edge in ("bottom", "left") else []
    return Graticule(**ticks, crossings=_inside(geobox, lines, (height, width)))


def _inside(
    geobox: GeoBox, lines: dict[str, list[tuple[float, float]]], shape: tuple[int, int]
) -> np.ndarray:
    """Pixel positions [n, 2] of the crossings of the lines that the frame shows."""
    crs = CRS.from_user_input(geobox.crs)
    back = Transformer.from_crs(crs.geodetic_crs or CRS.from_epsg(4326), crs, always_xy=True)
    lon, lat = np.meshgrid([v for _, v in lines["lon"]], [v for _, v in lines["lat"]])
    if not lon.size:
        return np.empty((0, 2))
    col, row = on_ground(~geobox.affine, *back.transform(lon.ravel(), lat.ravel()))
    within = (col > 0) & (col < shape[1]) & (row > 0) & (row < shape[0])
    return np.column_stack([col[within], row[within]])


def _step(span: float) -> float:
    steps = (*_STEPS, *_STEPS_SECONDS)
    return next((s for s in steps if s <= span * 1.3), steps[-1])


def _crossings(at: np.ndarray, values: np.ndarray, step: float) -> list[tuple[float, float]]:
    """Positions where a monotonic edge takes a multiple of `step`."""
    if values[0] > values[-1]:
        at, values = at[::-1], values[::-1]
    first, last = math.ceil(values[0] / step - 1e-9), math.floor(values[-1] / step + 1e-9)
    marks = [i * step for i in range(first, last + 1)]
    found = [(float(np.interp(m, values, at)), m) for m in marks]
    return sorted(found)


def degrees(value: float, kind: str, step: float) -> str:
    """`94°29′30″ W`; minutes and seconds as far as the step needs them."""
    wrapped = (value + 180) % 360 - 180 if kind == "lon" else value
    side = ("E" if wrapped >= 0 else "W") if kind == "lon" else ("N" if wrapped >= 0 else "S")
    decimals = 1 if step < 1 / 3600 - 1e-12 else 0
    total = round(abs(wrapped) * 3600, decimals)
    whole, rest = divmod(total, 3600)
    minutes, seconds = divmod(rest, 60)
    text = f"{int(whole)}°"
    if step < 1 - 1e-9:
        text += f"{int(minutes):02d}′"
    if step < 1 / 60 - 1e-9:
        text += f"{seconds:0{2 if decimals == 0 else 4}.{decimals}f}″"
    return f"{text} {side}"


# --- scale -----------------------------------------------------------------------------------------
def metres_per_pixel(geobox: GeoBox) -> tuple[float, float]:
    """True size of a pixel across and down in the middle of the grid; 1, 1 without a place."""
    if not has_place(geobox):
        return 1.0, 1.0
    col, row = geobox.shape.x / 2, geobox.shape.y / 2
    points = on_ground(geobox.affine, np.array([col, col + 1, col]), np.array([row, row, row + 1]))
    east, north = Compass(geobox).offsets(*points)
    across, down = np.hypot(east[1:] - east[0], north[1:] - north[0])
    return float(across), float(down)


def bar_length(most: float) -> float:
    """The longest 1, 2 or 5 times a power of ten that is no longer than `most`."""
    power = 10 ** math.floor(math.log10(most))
    return next(f * power for f in (5, 2, 1) if f * power <= most * (1 + 1e-9))


# --- globe -----------------------------------------------------------------------------------------
@cache
def land() -> tuple[np.ndarray, ...]:
    """Outlines of the land, degrees [n, 2] each (Natural Earth 1:110m, public domain)."""
    text = resources.files("terralapse.products").joinpath("data/land.json").read_text(encoding="utf-8")
    return tuple(np.array(ring) for ring in json.loads(text)["rings"])


def globe(lon: float, lat: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Land and graticule on a globe seen from above a point, as closed and open lines on the unit disc.

    x to the right, y up. Land beyond the horizon is pressed onto the edge of the disc, so that outlines
    stay closed.
    """
    shapes = []
    for ring in land():
        dense = _densified(ring)
        xy, front = _orthographic(dense[:, 0], dense[:, 1], lon, lat)
        if front.any():
            shapes.append(xy)
    lines = []
    sweep = np.linspace(-180, 180, 121)
    for parallel in range(-60, 61, 30):
        lines += _visible(*_orthographic(sweep, np.full_like(sweep, parallel), lon, lat))
    tall = np.linspace(-90, 90, 61)
    for meridian in range(-180, 180, 30):
        lines += _visible(*_orthographic(np.full_like(tall, meridian), tall, lon, lat))
    return shapes, lines


def _densified(ring: np.ndarray) -> np.ndarray:
    t = np.arange(len(ring))
    fine = np.linspace(0, len(ring) - 1, 3 * (len(ring) - 1) + 1)
    return np.column_stack([np.interp(fine, t, ring[:, 0]), np.interp(fine, t, ring[:, 1])])


def _orthographic(
    lon: np.ndarray, lat: np.ndarray, lon0: float, lat0: float
) -> tuple[np.ndarray, np.ndarray]:
    a, b, b0 = np.radians(lon - lon0), np.radians(lat), math.radians(lat0)
    x = np.cos(b) * np.sin(a)
    y = math.cos(b0) * np.sin(b) - math.sin(b0) * np.cos(b) * np.cos(a)
    front = math.sin(b0) * np.sin(b) + math.cos(b0) * np.cos(b) * np.cos(a) >= 0
    reach = np.maximum(np.hypot(x, y), 1e-9)
    scale = np.where(front, 1.0, 1 / reach)
    return np.column_stack([x * scale, y * scale]), front


def _visible(xy: np.ndarray, front: np.ndarray) -> list[np.ndarray]:
    """The runs of a line that lie on the near side."""
    cuts = np.flatnonzero(np.diff(front.astype(int))) + 1
    return [
        run
        for run, seen in zip(np.split(xy, cuts), np.split(front, cuts), strict=True)
        if seen.all() and len(run) > 1
    ]
