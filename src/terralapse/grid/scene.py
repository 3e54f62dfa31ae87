"""What a reader returns: one image of a place at one time, in physical units, with a reason for each
pixel that cannot be used.

A `Scene` is lazy: opening one reads headers and metadata only. `read` is thread-safe (each thread has its
own file handles), so that the engine can read while the network runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.errors import BandError
from terralapse.labels import SceneMask
from terralapse.sensors import Band, Sensor, Unit


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels; it may lie partly or wholly outside of its grid."""

    row: int
    col: int
    height: int
    width: int

    def pad(self, pixels: int) -> Window:
        """Grown by `pixels` on each side."""
        return Window(self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def clip(self, height: int, width: int) -> Window:
        """The part inside a grid of this size; zero height or width when there is none."""
        r0, c0 = min(max(self.row, 0), height), min(max(self.col, 0), width)
        r1 = min(max(self.row + self.height, r0), height)
        c1 = min(max(self.col + self.width, c0), width)
        return Window(r0, c0, r1 - r0, c1 - c0)

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices; only for a window inside its grid."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


@dataclass
class Block:
    """Pixels of one scene: `data` float32 [C, h, w] in the scene's unit, NaN wherever `mask` is not VALID;
    `mask` uint8 [h, w] of `SceneMask` codes."""

    data: np.ndarray
    mask: np.ndarray


def reduce_block(block: Block, k: int) -> Block:
    """Means over k x k squares of valid pixels; the last row and column of squares may be partial."""
    if k == 1:
        return block
    mask = reduce_codes(block.mask, k)
    finite = np.isfinite(block.data)
    count = _sums(finite.astype(np.uint16), k)
    total = _sums(np.where(finite, block.data, np.float32(0)), k, np.float64)
    data = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0).astype(np.float32)
    data[:, mask != SceneMask.VALID] = np.nan
    return Block(data, mask)


def reduce_codes(codes: np.ndarray, k: int) -> np.ndarray:
    """VALID where at least half of what a k x k square has inside the grid is; otherwise the most frequent
    reason there. OUTSIDE where the square has nothing inside."""
    if k == 1:
        return codes
    counts = {c: _sums((codes == c).astype(np.uint16), k) for c in SceneMask if c and (codes == c).any()}
    outside = counts.pop(SceneMask.OUTSIDE, np.int64(0))
    inside = _sums(np.ones(codes.shape, np.uint16), k) - outside
    out = np.zeros(inside.shape, np.uint8)
    if counts:
        present = np.array(list(counts), np.uint8)
        stacked = np.stack(list(counts.values()))
        few = 2 * (inside - stacked.sum(axis=0)) < inside
        out[few] = present[stacked.argmax(axis=0)][few]
    out[inside == 0] = SceneMask.OUTSIDE
    return out


def _sums(values: np.ndarray, k: int, dtype: type = np.int64) -> np.ndarray:
    """Sums over k x k squares of the last two axes; rows first, which is the fast way through memory."""
    rows, cols = (np.arange(0, n, k) for n in values.shape[-2:])
    return np.add.reduceat(np.add.reduceat(values, rows, axis=-2, dtype=dtype), cols, axis=-1, dtype=dtype)


@dataclass(frozen=True)
class Note:
    """Something that a reader decided or found: `level` is `info` or `warning`; `code` is a stable
    machine name (`s2-offset-applied`), `text` a sentence for people."""

    level: str
    code: str
    text: str


@dataclass(frozen=True)
class Source:
    """One file behind a scene, for the record of the run; of a remote file the `etag` stands for the hash."""

    path: str
    bytes: int | None = None
    sha256: str | None = None
    etag: str | None = None


@dataclass
class SceneInfo:
    """What is known of a scene without reading its pixels."""

    name: str
    uri: str
    sensor: Sensor
    bands: tuple[Band, ...]
    unit: Unit
    geobox: GeoBox  # the native grid; south-up and rotated affines are legal
    time: datetime | None = None  # UTC
    dtype: str = "float32"  # as stored
    nodata: str = "none"  # how nodata is told: "value 0", "nan", "alpha", "mask band", "QA_PIXEL", ...
    cloud_mask: str = "none"  # "SCL", "QA_PIXEL", or "none"
    level: str = ""  # processing level or baseline, free text
    notes: list[Note] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    @property
    def remote(self) -> bool:
        """Whether pixels come over the network, so that reading is waiting and several reads at once pay."""
        return any(s.path.startswith(("http://", "https://")) for s in self.sources)


class Scene(ABC):
    """An image of a place at one time. `info` says what it is; `read` gives pixels of its native grid."""

    info: SceneInfo

    @abstractmethod
    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        """Pixels of a window of the native grid.

        Args:
            window: in full-resolution pixels; outside of the grid pixels come back as NaN with
                mask OUTSIDE, so the shape is always that of the window.
            bands: common names in the order wanted; None for all.
            decimation: a whole number; returns about ceil(height / d) x ceil(width / d) pixels, averaged or
                from overviews. For previews and statistics.

        Raises:
            BandError: a band that the scene has not.
            TruncatedFileError: a broken block, named.
        """

    def parts(self) -> list[Scene]:
        """The scenes that this one is made of, in order of precedence: itself, unless it is a mosaic.

        Each part has one native grid, and warping works part by part.
        """
        return [self]

    def close(self) -> None:  # noqa: B027 - most scenes have nothing to let go of
        """Lets go of file handles."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def band_indices(self, bands: Sequence[str] | None) -> list[int]:
        """Positions of the named bands in `info.bands`; all when None."""
        names = [b.name for b in self.info.bands]
        if bands is None:
            return list(range(len(names)))
        missing = [b for b in bands if b not in names]
        if missing:
            raise BandError(
                self.info.uri,
                f"has no band named {', '.join(missing)}",
                f"Its bands are: {', '.join(names)}.",
            )
        return [names.index(b) for b in bands]


class ArrayScene(Scene):
    """A scene held in memory: `data` [C, H, W] on `info.geobox`; NaN is nodata. `mask` as in `Block`."""

    def __init__(self, info: SceneInfo, data: np.ndarray, mask: np.ndarray | None = None) -> None:
        self.info = info
        self._data = np.asarray(data, dtype=np.float32)
        invalid = np.isnan(self._data).any(axis=0)
        own = np.where(invalid, int(SceneMask.NODATA), 0).astype(np.uint8)
        self._mask = own if mask is None else np.where(mask > 0, mask, own).astype(np.uint8)

    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        height, width = self._mask.shape
        inside = window.clip(height, width)
        picked = self.band_indices(bands)
        data = np.full((len(picked), window.height, window.width), np.nan, np.float32)
        mask = np.full((window.height, window.width), int(SceneMask.OUTSIDE), np.uint8)
        if inside.height and inside.width:
            here = Window(
                inside.row - window.row, inside.col - window.col, inside.height, inside.width
            ).slices
            mask[here] = self._mask[inside.slices]
            data[:, here[0], here[1]] = self._data[picked, inside.slices[0], inside.slices[1]]
        data[:, mask != SceneMask.VALID] = np.nan
        return reduce_block(Block(data, mask), decimation)


def as_path(uri: str) -> Path | None:
    """A local path for a URI without a scheme or with `file://`; None for anything else."""
    if uri.startswith("file://"):
        return Path(uri[7:])
    return None if "://" in uri or uri.startswith("/vsi") else Path(uri)
