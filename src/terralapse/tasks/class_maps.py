"""From probabilities of classes to maps of them: what a scene keeps of a system that knows more than change.

A network gives planes of probabilities beside that of change. Where tiles overlap, the planes are averaged as
the probability of change is; only then is a class chosen. Probabilities and no logits, so that no tile has
more than its weight because its logits are large. A class is chosen by the largest sum: what the sums are
divided by is the same for all classes, so it need not be known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from terralapse.cards import Card, Task
from terralapse.labels import DAMAGE, NOT_COUNTED, SCHEMES, ClassScheme

UNKNOWN = 255  # where no class has any probability, and nodata of the maps


class ClassRule(Protocol):
    """How the maps of a system come from its planes.

    Attributes:
        scheme: of the classes.
        rasters: the maps, as NAME.tif.
        planes: of probabilities that the system gives for each pixel.
        kept: uint8 layers that `decide` makes of them.
    """

    @property
    def scheme(self) -> ClassScheme: ...
    @property
    def rasters(self) -> tuple[str, ...]: ...
    @property
    def planes(self) -> int: ...
    @property
    def kept(self) -> int: ...

    def decide(self, planes: np.ndarray) -> np.ndarray:
        """Class ids uint8 [kept, h, w] of weighted sums of probabilities float32 [planes, h, w]; `UNKNOWN`
        where all are zero."""
        ...

    def raster(self, name: str, ids: np.ndarray, changed: np.ndarray) -> np.ndarray:
        """One map uint8 [h, w] of what `decide` gave and of what counts as changed, bool [h, w]."""
        ...


@dataclass(frozen=True)
class SemanticRule:
    """Classes of both dates. Planes: the classes of the earlier date, then those of the later one.

    Inside of change each date has its best class. Outside, a scheme that knows "unchanged" has 0 at both
    dates. Any other says the class of every place: outside of change it is one for both dates, that with the
    largest sum over the two, so that the maps differ nowhere but where the map of change says so.
    """

    scheme: ClassScheme

    @property
    def rasters(self) -> tuple[str, ...]:
        return ("classes_before", "classes_after")

    @property
    def values(self) -> np.ndarray:
        """uint8: those of the classes that have a plane, in order."""
        return np.array([c.value for c in self.scheme.classes if c.name not in NOT_COUNTED], np.uint8)

    @property
    def whole(self) -> bool:
        """Whether the maps say the class of every place."""
        return not any(c.name == "unchanged" for c in self.scheme.classes)

    @property
    def planes(self) -> int:
        return 2 * len(self.values)

    @property
    def kept(self) -> int:
        return 3 if self.whole else 2

    def decide(self, planes: np.ndarray) -> np.ndarray:
        before, after = planes[: len(planes) // 2], planes[len(planes) // 2 :]
        ids = [self._best(before), self._best(after)]
        if self.whole:
            ids.append(self._best(before + after))
        return np.stack(ids)

    def _best(self, sums: np.ndarray) -> np.ndarray:
        at = sums.argmax(axis=0)
        known = np.take_along_axis(sums, at[None], axis=0)[0] > 0
        return np.where(known, self.values[at], np.uint8(UNKNOWN))

    def raster(self, name: str, ids: np.ndarray, changed: np.ndarray) -> np.ndarray:
        own = ids[self.rasters.index(name)]
        return np.where(changed, own, ids[2] if self.whole else np.uint8(0))


@dataclass(frozen=True)
class DamageRule:
    """Grades of damage of buildings. Planes: ground, building, and the four grades.

    0 where ground has the larger sum, else the best grade. The map of change has no part in it: it may call a
    building damaged whose best single grade is "no damage", or follow another threshold.
    """

    scheme: ClassScheme = DAMAGE
    rasters: tuple[str, ...] = ("damage",)
    planes: int = 6
    kept: int = 1

    def decide(self, planes: np.ndarray) -> np.ndarray:
        ground, building, grades = planes[0], planes[1], planes[2:]
        ids = np.where(building > ground, grades.argmax(axis=0) + 1, 0)
        return np.where(ground + building > 0, ids, UNKNOWN).astype(np.uint8)[None]

    def raster(self, name: str, ids: np.ndarray, changed: np.ndarray) -> np.ndarray:
        return ids[0]


def rule_of(card: Card) -> ClassRule | None:
    """The rule of a system for semantic change or damage; None for any other task, and where the card names
    no scheme whose class 0 is that of places without a class."""
    if card.task is Task.DAMAGE:
        return DamageRule()
    scheme = SCHEMES.get(card.classes)
    if card.task is not Task.SEMANTIC_CHANGE or scheme is None:
        return None
    first = scheme.classes[0]
    return SemanticRule(scheme) if first.value == 0 and first.name in NOT_COUNTED else None
