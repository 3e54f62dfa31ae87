"""Data sets of a few small images in the layouts of their authors, for tests of the readers."""

from __future__ import annotations

import json
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


STILL = (
    "there is no difference",
    "the two scenes seem identical",
    "the scene is the same as before",
    "no change has occurred",
    "almost nothing has changed",
)
BUILT = (
    "two houses are built at the top .",
    "two buildings appear in the top .",
    "two houses appear at the edge of the scene .",
    "two houses are built at the top of the scene .",
    "two buildings show up in the desert .",
)


def levir_mci(
    root: Path, splits: Mapping[str, int], size: int = 32, masks: bool = True, captions: bool = True
) -> Path:
    """LEVIR-MCI as released, with gaps in the numbers of its files: in the pairs of even place two bright
    buildings appear at the top and a road beside them, in the others nothing does."""
    images = []
    for split, count in splits.items():
        for i in range(count):
            name = f"{split}_{3 * i + 1:06d}.png"
            before = np.random.default_rng(i).integers(60, 90, (size, size, 3), dtype=np.uint8)
            after, mask = before.copy(), np.zeros((size, size), np.uint8)
            if changed := i % 2 == 0:
                third = size // 3
                after[2:third, 2:third] = after[2:third, -third:-2] = 230
                mask[2:third, 2:third] = mask[2:third, -third:-2] = 255
                after[third + 2 : third + 6] = (200, 180, 60)
                mask[third + 2 : third + 6] = 128
            folder = root / "images" / split
            save(folder / "A" / name, before)
            save(folder / "B" / name, after)
            if masks:
                save(folder / "label" / name, np.repeat(mask[..., None], 3, axis=2))
            said = BUILT if changed else STILL
            sentences = [
                {"raw": f" {s}", "tokens": s.split(), "imgid": i, "sentid": j} for j, s in enumerate(said)
            ]
            entry = {"filepath": split, "split": split, "filename": name, "imgid": i}
            images.append({**entry, "sentences": sentences, "changeflag": int(changed)})
    if captions:
        (root / "LevirCCcaptions.json").write_text(json.dumps({"images": images, "dataset": "LEVIR-CC"}))
    return root
