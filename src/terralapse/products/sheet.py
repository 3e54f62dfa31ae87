"""A sheet of paper in inches: where things go on it, and how it is lettered."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from odc.geo.geobox import GeoBox
from PIL import Image

from terralapse.products.facts import Facts
from terralapse.products.polygons import area_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE, PAPER, SEA = "#14263a", "#56677a", "#b9c4cf", "#ffffff", "#e8eff5"
A4 = (11.69, 8.27)
LEFT, RIGHT = 0.38, 11.31
_FONTS = ("Source Sans 3", "Source Sans Pro", "Liberation Sans", "Arial", "Helvetica", "DejaVu Sans")


def style() -> dict[str, Any]:
    """Settings of matplotlib; of the wanted fonts those that this machine has (the last always is)."""
    from matplotlib import font_manager

    present = set(font_manager.get_font_names())
    return {
        "font.family": [f for f in _FONTS if f in present],
        "font.size": 7.5,
        "text.color": INK,
        "axes.edgecolor": INK,
        "pdf.fonttype": 42,
    }


@dataclass(frozen=True)
class Sheet:
    """What is being drawn: `geobox` is the grid of the map, `map` the x, y, width and height of it; the panel
    fills what it leaves. `facts` hold those of `terralapse.products.facts.place_facts`."""

    figure: Figure
    facts: Facts
    geobox: GeoBox
    started: datetime
    map: tuple[float, float, float, float]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.geobox.shape.y, self.geobox.shape.x

    @property
    def unit(self) -> str:
        """`m2`, or `px` without a CRS."""
        return area_unit(self.geobox)

    @property
    def x(self) -> float:
        """Left side of the panel."""
        return self.map[0] + self.map[2] + 0.34

    @property
    def width(self) -> float:
        """Of the panel."""
        return RIGHT - self.x

    def place(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without ticks at a place of the sheet, from its lower left corner."""
        axes = self.figure.add_axes((x / A4[0], y / A4[1], width / A4[0], height / A4[1]))
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def write(self, x: float, y: float, text: str, **look: Any) -> None:
        """Text at a place of the sheet; never read as mathematics."""
        look = {"va": "baseline"} | look
        self.figure.text(x / A4[0], y / A4[1], text, parse_math=False, **look)

    def rule(self, x0: float, x1: float, y: float, colour: str = RULE, width: float = 0.6) -> None:
        """A horizontal line."""
        from matplotlib.lines import Line2D

        line = Line2D([x0 / A4[0], x1 / A4[0]], [y / A4[1]] * 2, color=colour, linewidth=width)
        self.figure.add_artist(line)

    def heading(self, y: float, text: str) -> float:
        """A rule across the panel with small capitals under it; returns where the section goes on."""
        self.rule(self.x, RIGHT, y)
        self.write(self.x, y - 0.16, text.upper(), fontsize=6.5, fontweight="bold", color=QUIET)
        return y - 0.2


def frame(axes: Axes, width: float, colour: str = INK) -> None:
    """The line around axes."""
    for spine in axes.spines.values():
        spine.set_linewidth(width)
        spine.set_edgecolor(colour)


def clip(text: str, most: int) -> str:
    """Names of files can be long; the middle goes."""
    half = max(most // 2 - 1, 1)
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def shrunk(picture: np.ndarray, most: int) -> np.ndarray:
    """A picture of at most this many pixels a side."""
    longer = max(picture.shape[:2])
    if longer <= most:
        return picture
    size = tuple(max(1, round(n * most / longer)) for n in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))  # type: ignore[arg-type]
