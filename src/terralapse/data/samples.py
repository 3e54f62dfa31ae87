"""One labelled sample of each task, the form in which every data set hands out what it holds.

Images are float32 in physical units, [2, C, H, W] (before, after) or [C, H, W], NaN where there is no data;
`bands` are common names in the order of C; `gsd` is in metres, NaN where it is not known. A pair with a
binary label is `terralapse.data.pairs.LabelledPair`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from terralapse.data.pairs import IGNORE
from terralapse.data.words import says_change
from terralapse.labels import ClassScheme
from terralapse.sensors import Unit


@dataclass(frozen=True)
class SemanticPair:
    """Two dates, and the class of each changed place at both: `before`, `after` uint8 [H, W] of 0
    (unchanged), 1..K, and `IGNORE`. `map` as in `LabelledPair`.

    Where `change` uint8 [H, W] of 0, 1 and `IGNORE` is given, it says what changed, and the other two are
    full maps: the class of every place, changed or not, 0 being "not labelled".

    `series` float32 [T, C, h, w] is what another sensor saw of the same place at T dates, at any scale and
    centred on the images: in whatever unit its data set has it, and zero at a date that only fills up.
    """

    name: str
    images: np.ndarray
    before: np.ndarray
    after: np.ndarray
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    map: np.ndarray | None = None
    change: np.ndarray | None = None
    series: np.ndarray | None = None

    @property
    def label(self) -> np.ndarray:
        """The binary label uint8 [H, W]: `change`, or 1 where either date has a class."""
        if self.change is not None:
            return self.change
        changed = ((self.before > 0) | (self.after > 0)).astype(np.uint8)
        return np.where((self.before == IGNORE) | (self.after == IGNORE), IGNORE, changed).astype(np.uint8)


@dataclass(frozen=True)
class DamagePair:
    """Two dates with buildings: `building` uint8 [H, W] of 0 and 1 as they stood before; `damage` uint8
    [H, W] of 0 (background), 1 none, 2 minor, 3 major, 4 destroyed, and `IGNORE`."""

    name: str
    images: np.ndarray
    building: np.ndarray
    damage: np.ndarray
    gsd: float
    bands: tuple[str, ...]
    unit: Unit


@dataclass(frozen=True)
class LabelledImage:
    """One image [C, H, W] with a class for each pixel: `label` uint8 [H, W], `IGNORE` where nobody said."""

    name: str
    image: np.ndarray
    label: np.ndarray
    gsd: float
    bands: tuple[str, ...]
    unit: Unit


@dataclass(frozen=True)
class ClassifiedImage:
    """One image [C, H, W] of one class: `label` is a value of the data set's scheme."""

    name: str
    image: np.ndarray
    label: int
    gsd: float
    bands: tuple[str, ...]
    unit: Unit


@dataclass(frozen=True)
class CaptionedPair:
    """Two dates and one or more sentences about what changed between them.

    `label` uint8 [H, W] of the scheme's values and `IGNORE`, None where there is no mask. `tokens` int64
    [R, L] are the sentences in the vocabulary of a system (see `terralapse.data.words`), once one is chosen.
    """

    name: str
    images: np.ndarray
    label: np.ndarray | None
    captions: tuple[str, ...]
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    tokens: np.ndarray | None = None

    @property
    def changed(self) -> bool:
        """Whether the first sentence tells of a change."""
        return says_change(self.captions[0])


@dataclass(frozen=True)
class CaptionedImage:
    """One image [C, H, W] and one or more captions of it. `tokens` int64 [R, L] are the captions in the ids
    of a system, once one is chosen."""

    name: str
    image: np.ndarray
    captions: tuple[str, ...]
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    tokens: np.ndarray | None = None


Sample = TypeVar("Sample", covariant=True)


class DataSet(Protocol[Sample]):
    """A split of a data set, read from disk one sample at a time, always in the same order.

    `title` names set and split, for tables; `scheme` says what the labels mean.
    """

    title: str
    scheme: ClassScheme

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...
