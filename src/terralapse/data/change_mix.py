"""Training samples for change: real pairs and made pairs, mixed by stated shares.

A sample depends on nothing but the seed and its number, so that a run can be resumed and repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from terralapse.data import change_pairs as cp
from terralapse.data.augment import Geometry, Radiometry, recolour, warp
from terralapse.data.change_pairs import Masked, Pair, Rng
from terralapse.errors import SettingError


@dataclass
class Pools:
    """What samples are drawn from: labelled pairs, images with object masks, revisits of unchanged places,
    and images without masks."""

    real: Sequence[Pair]
    masked: Sequence[Masked] = ()
    revisits: Sequence[Sequence[np.ndarray]] = ()
    plain: Sequence[Masked] = ()


@dataclass
class ChangeMix(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Draws augmented samples: float32 [2, C, size, size] on the 0..255 scale, and uint8 labels.

    `shares` names the kinds and their shares: `real`, `unrelated`, `remove`, `destroy`, `revisit`.
    `on_change` is the share of real samples centred on a changed pixel; `paste` the chance that changed
    objects of another pair are pasted into a real or unchanged one; `untouched` the share of real samples
    that keep their colours, so that the statistics of real images stay among those that are learned.
    """

    pools: Pools
    shares: dict[str, float]
    size: int
    seed: int = 0
    on_change: float = 0.5
    paste: float = 0.4
    zoom: tuple[float, float] = (0.75, 1.5)
    shift: float = 2.0
    strength: tuple[float, float] = (0.2, 0.9)
    jpeg: float = 0.3
    blur: float = 0.4
    untouched: float = 0.4
    _changed: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        unknown = set(self.shares) - {"real", "unrelated", "remove", "destroy", "revisit"}
        if unknown:
            raise SettingError(f"shares={sorted(unknown)}", "no such kind of sample", "See ChangeMix.")
        self._changed = [i for i, p in enumerate(self.pools.real) if (p.label == 1).sum() >= 30]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, index])
        kinds = list(self.shares)
        weights = np.array([self.shares[k] for k in kinds])
        kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
        pair, zoom = getattr(self, f"_{kind}")(rng)
        geometry = Geometry(self.size, zoom, self.shift)
        images, label = warp(pair, self._centre(pair, rng), geometry, rng)
        if kind == "real" and rng.random() < self.untouched:
            return images, label
        radiometry = Radiometry(float(rng.uniform(*self.strength)), self.jpeg, self.blur)
        return recolour(images, radiometry, rng), label

    def _centre(self, pair: Pair, rng: Rng) -> tuple[float, float]:
        height, width = pair.label.shape
        changed = np.argwhere(pair.label == 1) if rng.random() < self.on_change else np.empty((0, 2))
        jitter = rng.uniform(-self.size / 3, self.size / 3, 2)
        if len(changed):
            centre = changed[int(rng.integers(len(changed)))] + jitter
        else:
            centre = rng.uniform(0, 1, 2) * (height, width)
        # Keeps the crop inside where the image is large enough, so that little is mirrored.
        half = np.minimum(self.size / 2, np.array([height, width]) / 2)
        row, col = np.clip(centre, half, np.array([height, width]) - half)
        return float(row), float(col)

    def _real(self, rng: Rng) -> tuple[Pair, tuple[float, float]]:
        pair = self.pools.real[int(rng.integers(len(self.pools.real)))]
        if self._changed and rng.random() < self.paste:
            donor = self.pools.real[self._changed[int(rng.integers(len(self._changed)))]]
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            shift = (int(rng.integers(pair.label.shape[0])), int(rng.integers(pair.label.shape[1])))
            image = cp._move(donor.images[1], turns, flip, shift)
            mask = cp.objects_of(cp._move(donor.label == 1, turns, flip, shift), rng, 0.7, min_pixels=4)
            pair = cp.paste(pair, image, mask & (pair.label == 0), rng, date=1)
        return pair, self.zoom

    def _fine(self, gsd: float) -> tuple[float, float]:
        """Zoom that brings a fine image to between its own resolution and about 2 m."""
        return max(0.3, gsd / 1.5), 1.1

    def _masked(self, rng: Rng) -> Masked:
        found = self.pools.masked[int(rng.integers(len(self.pools.masked)))]
        side = min(256, *found.objects.shape)
        row, col = (int(rng.integers(n - side + 1)) for n in found.objects.shape)
        window = (slice(row, row + side), slice(col, col + side))
        return Masked(found.image[:, *window], found.objects[window], found.gsd)

    def _unrelated(self, rng: Rng) -> tuple[Pair, tuple[float, float]]:
        first, second = self._masked(rng), self._masked(rng)
        return cp.unrelated(first, second), self._fine(first.gsd)

    def _remove(self, rng: Rng) -> tuple[Pair, tuple[float, float]]:
        image = self._masked(rng)
        return cp.remove(image, image.image, rng, float(rng.uniform(0.15, 0.6))), self._fine(image.gsd)

    def _destroy(self, rng: Rng) -> tuple[Pair, tuple[float, float]]:
        if self.pools.revisits and rng.random() < 0.4:
            first, second = self._two_visits(rng)
            image = Masked(first, np.zeros(first.shape[1:], bool), 0.6)
            return cp.destroy(image, second, rng), (0.75, 1.3)
        image = self._masked(rng)
        return cp.destroy(image, image.image, rng), self._fine(image.gsd)

    def _two_visits(self, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
        visits = self.pools.revisits[int(rng.integers(len(self.pools.revisits)))]
        first, second = rng.permutation(len(visits))[:2]
        return visits[first], visits[second]

    def _revisit(self, rng: Rng) -> tuple[Pair, tuple[float, float]]:
        """An unchanged place, now and then with objects of another image pasted into one date."""
        if self.pools.plain and rng.random() < 0.25:
            image = self.pools.plain[int(rng.integers(len(self.pools.plain)))]
            row, col = (int(rng.integers(n - 511)) for n in image.objects.shape)
            crop = image.image[:, row : row + 512, col : col + 512]
            pair, zoom = Pair(np.stack([crop, crop]), np.zeros((512, 512), np.uint8), image.gsd), (0.35, 0.7)
        else:
            pair = Pair(np.stack(self._two_visits(rng)), np.zeros((256, 256), np.uint8), 0.6)
            zoom = (0.75, 1.3)
        if self.pools.masked and pair.label.shape == (256, 256) and rng.random() < self.paste:
            donor = self._masked(rng)
            if donor.objects.shape == (256, 256):
                pair = cp.paste(pair, donor.image, cp.objects_of(donor.objects, rng, 0.5), rng, date=1)
        return pair, zoom
