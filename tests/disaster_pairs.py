"""Pairs with maps of damage and roads whose counts are known."""

from __future__ import annotations

import numpy as np

from terralapse.data.disaster_made import MadePair


def block_maps(
    intact: int, damaged: int, destroyed: int, flooded: int = 0, debris: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Maps uint8 [64, 96]: buildings of 4 x 4 pixels on a lattice of 8, roads in the rows below them."""
    damage, roads = np.zeros((2, 64, 96), np.uint8)
    grades = [1] * intact + [2 + i % 2 for i in range(damaged)] + [4] * destroyed
    for i, grade in enumerate(grades):
        row, col = 8 * (i // 12), 8 * (i % 12)
        damage[row : row + 4, col : col + 4] = grade
    for i, state in enumerate([2] * flooded + [3] * debris):
        roads[58:60, 12 * i : 12 * i + 8] = state
    roads[62:64] = 1
    return damage, roads


def made_pair(name: str, *counts: int, sar: bool = False) -> MadePair:
    """A pair over `block_maps`; the pictures show the maps and noise."""
    damage, roads = block_maps(*counts)
    rng = np.random.default_rng(len(name))
    before = rng.integers(60, 120, (*damage.shape, 3)).astype(np.uint8)
    after = before + (damage[..., None] * 20).astype(np.uint8)
    return MadePair(name, before, after[..., 0] if sar else after, damage, roads, sar)
