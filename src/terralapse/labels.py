"""Class schemes: what the values of a class raster mean, and how they are drawn.

The table travels with every raster, so that no reader has to guess an order of classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True)
class LabelClass:
    """One class: raster `value`, machine `name`, `title` for people, `colour` as #rrggbb."""

    value: int
    name: str
    title: str
    colour: str


@dataclass(frozen=True)
class ClassScheme:
    """An ordered set of classes with the value that means nodata."""

    slug: str
    title: str
    classes: tuple[LabelClass, ...]
    nodata: int = 255

    def by_value(self, value: int) -> LabelClass:
        """The class of a raster value; KeyError when the scheme has no such value."""
        for c in self.classes:
            if c.value == value:
                return c
        raise KeyError(value)

    def palette(self) -> dict[int, tuple[int, int, int, int]]:
        """Value to RGBA, as rasterio's `write_colormap` takes it."""
        return {
            c.value: (int(c.colour[1:3], 16), int(c.colour[3:5], 16), int(c.colour[5:7], 16), 255)
            for c in self.classes
        }


BINARY_CHANGE = ClassScheme(
    "binary-change",
    "Change",
    (
        LabelClass(0, "no_change", "No change", "#f2f0eb"),
        LabelClass(1, "change", "Change", "#d81b60"),
    ),
)


class Reason(IntEnum):
    """Why a pixel is masked, as stored in `valid.tif`. When several hold, the lowest non-zero code wins."""

    VALID = 0
    OUTSIDE_AOI = 1
    OUTSIDE_BEFORE = 2
    OUTSIDE_AFTER = 3
    NODATA_BEFORE = 4
    NODATA_AFTER = 5
    CLOUD_BEFORE = 6
    CLOUD_AFTER = 7
    SHADOW_BEFORE = 8
    SHADOW_AFTER = 9
    SNOW_BEFORE = 10
    SNOW_AFTER = 11
    SATURATED_BEFORE = 12
    SATURATED_AFTER = 13
    MISREGISTERED = 14


class SceneMask(IntEnum):
    """Why one pixel of one scene is masked, as the readers return it. 0 is usable."""

    VALID = 0
    OUTSIDE = 1
    NODATA = 2
    CLOUD = 3
    SHADOW = 4
    SNOW = 5
    SATURATED = 6


def pair_reason(mask: SceneMask, date: int) -> Reason:
    """The `Reason` for a scene's mask code at date 0 (before) or 1 (after)."""
    if mask == SceneMask.VALID:
        return Reason.VALID
    return Reason(2 * int(mask) + date)


VALIDITY = ClassScheme(
    "validity",
    "Why a pixel is masked",
    (
        LabelClass(0, "valid", "Compared", "#ffffff"),
        LabelClass(1, "outside_aoi", "Outside the area of interest", "#e8e8e8"),
        LabelClass(2, "outside_before", "Outside the image before", "#d0d0d0"),
        LabelClass(3, "outside_after", "Outside the image after", "#bdbdbd"),
        LabelClass(4, "nodata_before", "No data before", "#969696"),
        LabelClass(5, "nodata_after", "No data after", "#737373"),
        LabelClass(6, "cloud_before", "Cloud before", "#a6cee3"),
        LabelClass(7, "cloud_after", "Cloud after", "#6baed6"),
        LabelClass(8, "shadow_before", "Cloud shadow before", "#8c96c6"),
        LabelClass(9, "shadow_after", "Cloud shadow after", "#6a51a3"),
        LabelClass(10, "snow_before", "Snow before", "#c7e9e4"),
        LabelClass(11, "snow_after", "Snow after", "#80cdc1"),
        LabelClass(12, "saturated_before", "Saturated before", "#fdd0a2"),
        LabelClass(13, "saturated_after", "Saturated after", "#fdae6b"),
        LabelClass(14, "misregistered", "Dates do not align here", "#e6c229"),
    ),
)
