"""The contract between alignment and everything after it: two dates on one grid, read block by block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.errors import BandError
from terralapse.grid.scene import Note, SceneInfo, Window
from terralapse.labels import Reason, SceneMask, pair_reason
from terralapse.sensors import UNKNOWN, Band, Sensor, Unit

REMOTE_READERS = 6  # blocks read at once when reading is mostly waiting for a server


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
    def remote(self) -> bool:
        """Whether a date comes over the network; see `SceneInfo.remote`."""
        return self.before.remote or self.after.remote

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


class ArrayPair(Pair):
    """Two dates held in memory: for data sets, notebooks and tests.

    Args:
        images: [2, C, H, W], converted to float32; NaN (in any band) is nodata of that date.
        bands: a `Band` or common name for each of C; `b1`, `b2` ... when not given.
        unit: of the values.
        geobox: the grid; when not given, one without CRS whose pixels are `gsd` units wide.
        reason: uint8 [H, W] of `Reason` codes to begin with; NaN pixels are added to it.
        times: of the two dates.
    """

    def __init__(
        self,
        images: np.ndarray,
        *,
        bands: Sequence[Band | str] | None = None,
        unit: Unit = Unit.RAW,
        geobox: GeoBox | None = None,
        gsd: float = 1.0,
        reason: np.ndarray | None = None,
        sensor: Sensor = UNKNOWN,
        times: tuple[datetime | None, datetime | None] = (None, None),
        name: str = "array",
    ) -> None:
        self._images = np.array(images, dtype=np.float32)
        if self._images.ndim != 4 or self._images.shape[0] != 2:
            raise ValueError(f"a pair is [2, C, H, W], not {list(self._images.shape)}")
        channels, height, width = self._images.shape[1:]
        given = [f"b{i + 1}" for i in range(channels)] if bands is None else list(bands)
        if len(given) != channels:
            raise ValueError(f"{len(given)} bands are named and the arrays have {channels}")
        self.bands = tuple(b if isinstance(b, Band) else Band(b, b, gsd=gsd) for b in given)
        self.unit = unit
        self.geobox = geobox or GeoBox((height, width), Affine(gsd, 0, 0, 0, -gsd, 0), None)
        self.before, self.after = (
            SceneInfo(f"{name}-{date}", f"memory:{name}-{date}", sensor, self.bands, unit, self.geobox, time)
            for date, time in zip(("before", "after"), times, strict=True)
        )
        self.notes = []
        self._reason = self._why_masked(reason)
        for date in range(2):
            of_date = [int(pair_reason(code, date)) for code in SceneMask if code != SceneMask.VALID]
            gone = np.isnan(self._images[date]).any(axis=0) | np.isin(self._reason, of_date)
            self._images[date][:, gone] = np.nan

    def _why_masked(self, reason: np.ndarray | None) -> np.ndarray:
        shape = self._images.shape[2:]
        why = np.zeros(shape, np.uint8) if reason is None else np.array(reason, np.uint8)
        for date, code in enumerate((Reason.NODATA_BEFORE, Reason.NODATA_AFTER)):
            missing = np.isnan(self._images[date]).any(axis=0)
            why[missing & (why == Reason.VALID)] = code
        return why

    def read(self, window: Window) -> PairBlock:
        images = np.full((2, len(self.bands), window.height, window.width), np.nan, np.float32)
        reason = np.full((window.height, window.width), int(Reason.OUTSIDE_BEFORE), np.uint8)
        inside = window.clip(*self.shape)
        if inside.height and inside.width:
            rows, cols = Window(
                inside.row - window.row, inside.col - window.col, inside.height, inside.width
            ).slices
            images[:, :, rows, cols] = self._images[:, :, inside.slices[0], inside.slices[1]]
            reason[rows, cols] = self._reason[inside.slices]
        return PairBlock(images, reason)

    def preview(self, max_size: int, bands: Sequence[str] | None = None) -> tuple[PairBlock, GeoBox]:
        height, width = self.shape
        step = max(1, -(-max(height, width) // max_size))
        block = self.read(Window(0, 0, -(-height // step) * step, -(-width // step) * step))
        if bands is not None:
            block.images = block.images[:, self._positions(bands)]
        rows, cols = block.reason.shape[0] // step, block.reason.shape[1] // step
        cells = block.images.reshape(2, -1, rows, step, cols, step)
        known = np.isfinite(cells)
        total = np.where(known, cells, 0).sum(axis=(3, 5), dtype=np.float64)
        count = known.sum(axis=(3, 5))
        means = np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
        # A cell can be used when any of its pixels can: the lowest code is VALID, then the strongest reason.
        reason = block.reason.reshape(rows, step, cols, step).min(axis=(1, 3))
        a, b, c, d, e, f = self.geobox.affine[:6]
        coarse = Affine(a * step, b * step, c, d * step, e * step, f)
        return PairBlock(means, reason), GeoBox((rows, cols), coarse, self.geobox.crs)

    def _positions(self, bands: Sequence[str]) -> list[int]:
        names = [b.name for b in self.bands]
        missing = [b for b in bands if b not in names]
        if missing:
            raise BandError(
                "the pair", f"has no band named {', '.join(missing)}", f"Its bands are: {', '.join(names)}."
            )
        return [names.index(b) for b in bands]

    def sample(self) -> PairSample:
        """The whole pair as a sample of one block."""
        return PairSample(self, [Window(0, 0, *self.shape)], 1.0)
