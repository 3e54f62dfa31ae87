"""Maps of classes and damage as pictures over the two dates, with a legend of what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.labels import ClassScheme, LabelClass
from terralapse.products.class_facts import ClassMaps, silent
from terralapse.products.imagery import rgb

_STRIP = 512


@dataclass(frozen=True)
class ClassView:
    """One map on the preview grid: RGBA uint8 [h, w, 4], clear where nothing is said, and the classes that
    occur in it, in the order of the scheme. `name` is the file without its ending."""

    name: str
    title: str
    picture: np.ndarray
    legend: tuple[LabelClass, ...]


def class_views(folder: Path, maps: ClassMaps, box: GeoBox, preview: GeoBox) -> list[ClassView]:
    """The maps of a run, each read once, strip by strip.

    Args:
        folder: of the run.
        maps: which there are.
        box: the grid of the run.
        preview: a coarser grid with the same directions; each of its pixels shows the one in its middle.
    """
    found = []
    for name, (scheme, title) in maps.rasters.items():
        ids = _middle_pixels(folder / name, box, preview)
        table = np.zeros((256, 4), np.uint8)
        for c in scheme.classes:
            table[c.value] = (*rgb(c.colour), 0 if c.value in silent(scheme) else 255)
        legend = tuple(c for c in _shown(scheme) if (ids == c.value).any())
        found.append(ClassView(name.removesuffix(".tif"), title, table[ids], legend))
    return found


def _shown(scheme: ClassScheme) -> list[LabelClass]:
    return [c for c in scheme.classes if c.value not in silent(scheme)]


def _middle_pixels(path: Path, box: GeoBox, preview: GeoBox) -> np.ndarray:
    """Class ids uint8 on the preview grid."""
    back = ~box.affine * preview.affine
    rows = (back.f + back.e * (np.arange(preview.shape.y) + 0.5)).astype(int).clip(0, box.shape.y - 1)
    cols = (back.c + back.a * (np.arange(preview.shape.x) + 0.5)).astype(int).clip(0, box.shape.x - 1)
    ids = np.zeros((len(rows), len(cols)), np.uint8)
    with rasterio.open(path) as source:
        for start in range(0, box.shape.y, _STRIP):
            here = np.flatnonzero((rows >= start) & (rows < start + _STRIP))
            if len(here):
                height = min(_STRIP, box.shape.y - start)
                strip = source.read(1, window=RioWindow(0, start, box.shape.x, height))  # type: ignore[call-arg]
                ids[here] = strip[rows[here] - start][:, cols]
    return ids
