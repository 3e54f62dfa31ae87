"""Data sets of a few small images in the layouts of their authors, for tests of the readers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def picture(
    seed: int, size: tuple[int, int] = (8, 8), first: tuple[int, int, int] = (10, 20, 30)
) -> np.ndarray:
    """Random RGB [H, W, 3] with a known pixel in the corner."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[0, 0] = first
    return pixels


def save(path: Path, pixels: np.ndarray) -> Path:
    """Writes an image, in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def pairs(
    root: Path,
    names: Iterable[str],
    folders: tuple[str, str] = ("A", "B"),
    labels: Mapping[str, np.ndarray] | None = None,
    suffix: str = ".png",
) -> Path:
    """Pairs whose corner pixel is (10, 20, 30) before and (11, 21, 31) after; `labels` by folder, for all."""
    for i, name in enumerate(names):
        for date, folder in enumerate(folders):
            corner = (10 + date, 20 + date, 30 + date)
            save(root / folder / f"{name}{suffix}", picture(2 * i + date, first=corner))
        for folder, label in (labels or {}).items():
            save(root / folder / f"{name}.png", label)
    return root


def rows(*values: int, width: int = 8) -> np.ndarray:
    """uint8 [len(values), width], each row of one value."""
    return np.repeat(np.array(values, np.uint8)[:, None], width, axis=1)


def coloured(*colours: tuple[int, int, int], width: int = 8) -> np.ndarray:
    """RGB [len(colours), width, 3], each row of one colour."""
    return np.repeat(np.array(colours, np.uint8)[:, None], width, axis=1)


MASK = rows(255, 255, 0, 0, 0, 0, 0, 0)
