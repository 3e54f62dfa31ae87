"""What maps of damage say of a pair, counted: buildings by state, roads by state, shares of the ground.

The sheet is what the answerer `rules` knows, what the offline judge checks reports against, and what a
benchmark is made from (`disaster_made`). Buildings are instances (patches of one state), never pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from terralapse.data.damage_questions import SMALLEST, STATES, TO_STATE
from terralapse.errors import FileMissingError, UnreadableFileError

ROADS = ("intact", "flooded", "debris")  # values 1..3 of a map of roads
_TOUCHING = np.ones((3, 3), int)


@dataclass(frozen=True)
class DamageSheet:
    """Counts of one pair: `buildings` and `roads` by state (patches that touch also by corners), the shares
    of the picture that they cover, and for each state of buildings the distance in pixels from its nearest
    one to the nearest road that is not intact (None where there is no such pair)."""

    buildings: dict[str, int]
    roads: dict[str, int]
    building_share: dict[str, float]
    road_share: dict[str, float]
    to_bad_road: dict[str, float | None]

    @classmethod
    def of(cls, damage: np.ndarray, roads: np.ndarray) -> DamageSheet:
        """From maps uint8 [H, W]: grades of xBD (0..4 and 255), and 0 or one of `ROADS` from 1 on."""
        states = building_states(damage)
        bad = (roads == 2) | (roads == 3)
        far = ndimage.distance_transform_edt(~bad) if bad.any() else None
        masks = {s: states == i for i, s in enumerate(STATES, start=1)}
        tracks = {s: roads == i for i, s in enumerate(ROADS, start=1)}
        return cls(
            buildings={s: patches(m) for s, m in masks.items()},
            roads={s: patches(m) for s, m in tracks.items()},
            building_share={s: float(m.mean()) for s, m in masks.items()},
            road_share={s: float(m.mean()) for s, m in tracks.items()},
            to_bad_road={
                s: float(np.asarray(far)[m].min()) if far is not None and m.any() else None
                for s, m in masks.items()
            },
        )

    @property
    def hurt(self) -> bool:
        """Whether anything is damaged, destroyed, flooded or covered."""
        return any(self.buildings[s] for s in STATES[1:]) or any(self.roads[s] for s in ROADS[1:])

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def building_states(damage: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: 0, or 1 + the place in `STATES`, from the grades of xBD."""
    table = np.zeros(256, np.uint8)
    table[list(TO_STATE)] = list(TO_STATE.values())
    return table[damage]


def patches(mask: np.ndarray) -> int:
    """How many patches of `SMALLEST` pixels or more there are, touching also by corners."""
    labels, count = ndimage.label(mask, _TOUCHING)  # pyright: ignore[reportGeneralTypeIssues]
    if not count:
        return 0
    return int((np.bincount(np.asarray(labels).ravel())[1:] >= SMALLEST).sum())


def read_maps(folder: Path, image: Path) -> tuple[np.ndarray, np.ndarray]:
    """The maps of damage and of roads that belong to a later image: `<folder>/damage/<stem>.png` and
    `<folder>/roads/<stem>.png`; without a map of roads none are known.

    Raises:
        FileMissingError: there is no map of damage.
        UnreadableFileError: maps of other values or of two sizes.
    """
    path = folder / "damage" / f"{image.stem}.png"
    damage = _values(path, (0, 1, 2, 3, 4, 255), "a grade of xBD, 0 to 4 or 255")
    tracks = folder / "roads" / f"{image.stem}.png"
    if not tracks.is_file():
        return damage, np.zeros_like(damage)
    roads = _values(tracks, (0, 1, 2, 3), "0 or a state of roads, 1 to 3")
    if roads.shape != damage.shape:
        raise UnreadableFileError(tracks, f"is not of the size of {path.name}", "Make both of one image.")
    return damage, roads


def _values(path: Path, known: tuple[int, ...], what: str) -> np.ndarray:
    if not path.is_file():
        raise FileMissingError(
            path, "is not there", "The answerer `rules` needs a map of damage for each later image."
        )
    try:
        with Image.open(path) as source:
            found = np.asarray(source)
    except OSError as error:
        raise UnreadableFileError(path, f"is no image ({error})", "Write it again.") from error
    if found.ndim != 2 or found.dtype != np.uint8 or not np.isin(found, known).all():
        raise UnreadableFileError(path, "holds other values", f"Each pixel is {what}.")
    return found
