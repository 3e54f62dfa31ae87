"""The composites of a series as layers of the map.

All are drawn with one look, so that a difference that is seen is a difference in the data.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terralapse.errors import UnreadableFileError
from terralapse.grid._gdal import GDAL_ERRORS, gdal_env
from terralapse.products.imagery import look_of, shown_of
from terralapse.sensors import Unit
from terralapse.serve.layers import Layer
from terralapse.serve.shelf import Result

_FILE = re.compile(r"composites/(\d{4}(?:-\d{2}|-q[1-4])?)\.tif")
_COUNT = "usable dates"  # the last band, which is no part of the picture
_SMALL = 256  # pixels a side that the look is measured on
_MOST = 24  # composites that it is measured on


@dataclass(frozen=True)
class Composite:
    """One period: `name` as `terralapse series` calls it (`2021-06`, `2021-q2`, `2021`), and its dates."""

    name: str
    dates: tuple[str, ...]
    layer: Layer


def composites_of(result: Result) -> list[Composite]:
    """The composites that a run has kept, in time; none where it has none.

    Raises:
        UnreadableFileError: one is damaged, or not all have the same bands.
    """
    paths = {m[1]: path for name, path in result.files().items() if (m := _FILE.fullmatch(name))}
    if result.kind != "series" or not paths:
        return []
    made = result.run.get("composites")
    told = {c["period"]: tuple(c["dates"]) for c in made} if isinstance(made, list) else {}
    names = sorted(paths)
    bands, unit = _bands(paths[names[0]])
    shown = shown_of(set(bands), bands)
    numbers = tuple(bands.index(band) + 1 for band in shown)
    step = -(-len(names) // _MOST)
    look = look_of(np.stack([_small(paths[n], bands, numbers) for n in names[::step]]), shown, unit)
    return [
        Composite(
            name,
            told.get(name, ()),
            Layer(
                f"composite-{name}", f"Composite of {name}", paths[name], "picture", bands=numbers, look=look
            ),
        )
        for name in names
    ]


def _bands(path: Path) -> tuple[tuple[str, ...], Unit]:
    try:
        with gdal_env(), rasterio.open(path, driver="GTiff") as file:
            named = [d or f"band {i}" for i, d in enumerate(file.descriptions, start=1)]
            unit = file.units[0]
    except GDAL_ERRORS as error:
        raise _damaged(path) from error
    bands = tuple(n for n in named if n != _COUNT)
    if not bands:
        raise _damaged(path)
    return bands, Unit(unit) if unit in set(Unit) else Unit.RAW


def _small(path: Path, bands: tuple[str, ...], numbers: tuple[int, ...]) -> np.ndarray:
    """The bands that are shown, float [C, h, w] of one size for all, NaN where nothing is known."""
    if _bands(path)[0] != bands:
        raise UnreadableFileError(path, "has other bands than the others", "Run `terralapse series` again.")
    try:
        with gdal_env(), rasterio.open(path, driver="GTiff") as file:
            step = max(1, -(-max(file.shape) // _SMALL))
            size: Any = (len(numbers), max(1, file.height // step), max(1, file.width // step))
            return file.read(numbers, out_shape=size).astype(np.float64)
    except GDAL_ERRORS as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UnreadableFileError:
    return UnreadableFileError(path, "is no composite that can be read", "Run `terralapse series` again.")
