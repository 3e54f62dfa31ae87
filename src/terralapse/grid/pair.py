"""The contract between alignment and everything after it: two dates on one grid, read block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.grid.scene import Note, SceneInfo, Window
from terralapse.labels import Reason
from terralapse.sensors import Band, Unit


@dataclass
class PairBlock:
    """Two dates of one window.

    `images` float32 [2, C, h, w] in the unit of the pair, NaN where that date cannot be used;
    `reason` uint8 [h, w] of `Reason` codes, for both dates together.
    """

    images: np.ndarray
    reason: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """bool [h, w]: both dates can be compared here."""
        return self.reason == Reason.VALID


class Pair(ABC):
    """Two aligned dates. `read` is thread-safe and depends on nothing but the window, so that any tile plan
    gives the same pixels; outside of the grid it returns NaN with an OUTSIDE reason."""

    geobox: GeoBox
    bands: tuple[Band, ...]  # the common bands, in the order of `images`
    unit: Unit
    before: SceneInfo
    after: SceneInfo
    notes: list[Note]

    @abstractmethod
    def read(self, window: Window) -> PairBlock:
        """Pixels of a window of the common grid, which may reach beyond it."""

    @abstractmethod
    def preview(self, max_size: int, bands: Sequence[str] | None = None) -> tuple[PairBlock, GeoBox]:
        """The whole pair decimated so that neither side exceeds `max_size`, with its grid. `bands` may name
        bands that the scenes have beyond the common ones chosen for the model (red, green, blue)."""

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run compares: sources, grid, bands, alignment settings."""
        return {}

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the common grid."""
        return self.geobox.shape.y, self.geobox.shape.x


@dataclass
class PairSample:
    """Blocks drawn from a pair by a rule that depends only on its grid; it can be iterated many times.

    `fraction` is the share of the grid that the blocks cover (1.0: all of it).
    """

    pair: Pair
    windows: list[Window]
    fraction: float
    _cache: list[PairBlock] = field(default_factory=list, repr=False)

    def __iter__(self) -> Iterator[PairBlock]:
        if not self._cache:
            self._cache = [self.pair.read(w) for w in self.windows]
        return iter(self._cache)
