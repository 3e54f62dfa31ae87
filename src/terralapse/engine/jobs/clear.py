"""How clear each image of a place is over one unit: measured on its own mask, else as its item says.

The pixels of a unit's cell are looked at in coarse steps. What is nodata or outside of the image counts as
not clear. Where the product has a mask of clouds, that is the share; where it has none, the share with data
is multiplied by what the item's `eo:cloud_cover` leaves, which is a figure of the whole item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.grid._positions import Target, compose
from terralapse.grid.aoi import Area
from terralapse.grid.median import in_threads
from terralapse.grid.open import open_scene
from terralapse.grid.warp import warp
from terralapse.labels import SceneMask

LOOK = 128  # coarse pixels along the longer side of a cell
_HALF = 0.5  # of a coarse pixel that must be usable
_OPENING = ("assume_crs", "s2_offset")


@dataclass(frozen=True)
class Candidate:
    """An item as far as choosing among several needs it.

    `cloud` is `eo:cloud_cover` in per cent or None, `distance` in seconds from the middle of the period.
    """

    href: str
    id: str
    cloud: float | None
    distance: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Look:
    """A candidate and its clear share 0..1: `by` is `mask`, or `item`, or `unknown` where neither says
    anything (and `clear` is the share with data)."""

    candidate: Candidate
    clear: float
    by: str

    @property
    def order(self) -> tuple[bool, float, float, str, str]:
        """The best first: known before unknown, the larger clear share, the nearer to the middle of the
        period, the identifier, the address."""
        c = self.candidate
        return self.by == "unknown", -self.clear, c.distance, c.id, c.href

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        return {"href": self.candidate.href, "id": self.candidate.id, "clear": self.clear, "by": self.by}


def look_at(
    candidates: Sequence[Candidate], cell: GeoBox, area: Area | None, settings: Mapping[str, Any]
) -> list[Look]:
    """The candidates with their clear shares over a cell, the best first.

    They are read side by side; the result depends on none of that. Shares are rounded to a hundredth of a
    per cent, and what is equal then is decided by the rules of `Look.order`.

    Args:
        candidates: of one period.
        cell: the pixels that a unit answers for.
        area: only what lies inside counts.
        settings: of a change, for how images are opened.

    Raises:
        TerralapseError: an image cannot be read.
    """
    step = max(1, -(-max(cell.shape.x, cell.shape.y) // LOOK))
    shape = (-(-cell.shape.y // step), -(-cell.shape.x // step))
    target = Target(compose(cell.affine, Affine.scale(step)), cell.crs, shape)
    inside = np.ones(shape, bool) if area is None else ~area.outside(target.affine, cell.crs, shape)
    if not inside.any():  # the area is a sliver that no coarse pixel has its middle in
        inside[:] = True
    options = {k: v for k, v in settings.items() if k in _OPENING}

    def one(candidate: Candidate) -> Look:
        with open_scene(candidate.href, **options) as scene:
            first = [scene.info.bands[0].name]
            usable = warp(scene, target, first, share=_HALF).mask == SceneMask.VALID
            masked = scene.info.cloud_mask != "none"
        share = float(usable[inside].mean())
        if masked:
            return Look(candidate, round(share, 4), "mask")
        if candidate.cloud is None:
            return Look(candidate, round(share, 4), "unknown")
        return Look(candidate, round(share * (1 - candidate.cloud / 100), 4), "item")

    return sorted(in_threads(one, list(candidates)), key=lambda look: look.order)


def cell_of(window: GeoBox, core: tuple[int, int, int, int]) -> GeoBox:
    """The pixels that a unit answers for, from its window with margins."""
    margin = (window.shape.y - core[2]) // 2
    return window[margin : margin + core[2], margin : margin + core[3]]


def area_of(path: str | None) -> Area | None:
    """The area of a unit."""
    return None if path is None else Area(Path(path))
