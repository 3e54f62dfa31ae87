"""One labelled pair of dates, the form in which every change data set hands out what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from terralapse.sensors import Unit

IGNORE = 255  # pixels of a label that nobody annotated


@dataclass(frozen=True)
class LabelledPair:
    """Two dates of one place and what changed.

    `images` float32 [2, C, H, W] (before, after) in `unit`, NaN where there is no data; `label` uint8 [H, W]:
    1 changed, 0 not, `IGNORE` not annotated; `bands` common names in the order of C; `gsd` in metres.
    `map` uint8 [H, W], for systems that take one: the classes of the earlier date, `IGNORE` where unknown.
    """

    name: str
    images: np.ndarray
    label: np.ndarray
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    map: np.ndarray | None = None


class ChangeSet(Protocol):
    """A data set for scoring change: it has a title and can be gone through many times in the same order."""

    title: str

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[LabelledPair]: ...


class _Tile(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def images(self) -> np.ndarray: ...
    @property
    def label(self) -> np.ndarray: ...
    @property
    def gsd(self) -> float: ...


class Labelled:
    """Tiles of a data set made for training, as labelled pairs for scoring.

    Args:
        tiles: things with `name`, `images` [2, C, H, W], `label` [H, W] and `gsd`.
        title: of the set and split, for tables.
        bands, unit: of the images, which the tiles do not carry.
    """

    def __init__(self, tiles: Iterable[_Tile], title: str, bands: tuple[str, ...], unit: Unit) -> None:
        self.title = title
        self.bands, self.unit = bands, unit
        self._tiles = list(tiles)

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[LabelledPair]:
        for tile in self._tiles:
            images = tile.images.astype(np.float32)
            yield LabelledPair(tile.name, images, tile.label, tile.gsd, self.bands, self.unit)
