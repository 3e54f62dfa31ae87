"""DynamicEarthNet: monthly Planet mosaics of two years with land cover, as pairs with the map before.

The layout is the one that MapFormer is trained with: `images/<site>/<YYYY-MM-DD>.tif` with at least three
bands, `labels/<site>/<YYYY-MM-DD>.tif` with one band for each of seven classes, and `splits/train35.txt`,
`val10.txt` and `test10.txt` with one site a line. A site is a whole image or a tile of one.

The first three bands of the images are taken for blue, green and red, which follows from their means and is
stated nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageSequence

from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.pictures import RGB
from terralapse.data.samples import SemanticPair
from terralapse.data.sites import changes_of, read_raster, sites_of
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import BINARY_CHANGE, DYNAMICEARTHNET_CHANGE, ClassScheme
from terralapse.sensors import Unit

STORED_MEAN, STORED_STD = (649.9822, 862.5364, 939.1118), (654.9196, 727.9036, 872.8431)
SHOWN_MEAN, SHOWN_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSES, SNOW = 7, 6


class DynamicEarthNet:
    """Pairs of months of a site, in the order of sites and months, with the map of the earlier month.

    Images are brought to 0..255 as MapFormer's training does: mean and deviation of each stored band to those
    of a photograph, cut to 8 bits. Snow and ice, and places without any class, are ignored.

    Args:
        root: the folder of the data set.
        split: a list in `splits`, with or without the number of its sites; None takes every site.
        semantic: give classes of both dates where something changed (`SemanticPair`), not change alone.
        pairs: `consecutive` months, or `all` of a site in order; None takes all for a split that begins with
            `train`, and consecutive ones otherwise, as MapFormer does.
        gsd, title: as for other readers.

    Raises:
        FileMissingError: a folder, a list or a file is missing.
        SettingError: `pairs` is neither.
        UnreadableFileError: (when a pair is read) sizes or bands are wrong.
    """

    bands, unit = RGB, Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        semantic: bool = False,
        pairs: Literal["consecutive", "all"] | None = None,
        gsd: float = 3.0,
        title: str = "DynamicEarthNet",
    ) -> None:
        self.root, self.semantic, self.gsd = Path(root), semantic, gsd
        self.title = title if split is None else f"{title} {split}"
        self.scheme: ClassScheme = DYNAMICEARTHNET_CHANGE if semantic else BINARY_CHANGE
        if pairs not in (None, "consecutive", "all"):
            raise SettingError(f"pairs={pairs}", "is no choice of pairs", "Choose consecutive or all.")
        labels = self.root / "labels"
        if not labels.is_dir():
            raise FileMissingError(labels, "is not there", "Give the folder with images and labels.")
        sites = (
            sites_of(self.root, split) if split else sorted(p.name for p in labels.iterdir() if p.is_dir())
        )
        every = pairs == "all" or (pairs is None and split is not None and split.startswith("train"))
        self._pairs: list[tuple[str, str, str]] = []
        for site in sites:
            if not (labels / site).is_dir():
                raise FileMissingError(labels / site, "is not there, and its split names it", "Complete it.")
            dates = sorted(
                p.stem for p in (labels / site).glob("*.tif") if re.fullmatch(r"\d{4}-\d\d-\d\d", p.stem)
            )
            chosen = combinations(dates, 2) if every else pairwise(dates)
            self._pairs += [(site, first, second) for first, second in chosen]
        self.names = [f"{site} {first} {second}" for site, first, second in self._pairs]

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> LabelledPair | SemanticPair:
        site, *dates = self._pairs[index]
        images = np.stack([self._image(self.root / "images" / site / f"{d}.tif") for d in dates])
        paths = [self.root / "labels" / site / f"{d}.tif" for d in dates]
        first, second = (self._classes(p) for p in paths)
        for path, plane in zip(paths, (first, second), strict=True):
            if plane.shape != images.shape[2:]:
                raise UnreadableFileError(
                    path, f"is {plane.shape}, its image {images.shape[2:]}", "Complete the data set."
                )
        unknown = (first == IGNORE) | (second == IGNORE)
        change = np.where(unknown, IGNORE, first != second).astype(np.uint8)
        name, given = self.names[index], (self.gsd, self.bands, self.unit, first)
        if not self.semantic:
            return LabelledPair(name, images, change, *given)
        return SemanticPair(name, images, changes_of(first, change), changes_of(second, change), *given)

    def __iter__(self) -> Iterator[LabelledPair | SemanticPair]:
        return (self[i] for i in range(len(self)))

    def _image(self, path: Path) -> np.ndarray:
        """Red, green and blue of 0..255."""
        stored = read_raster(path)
        if len(stored) < 3:
            raise UnreadableFileError(path, f"has {len(stored)} bands", "Blue, green and red are needed.")
        columns = (STORED_MEAN, STORED_STD, SHOWN_STD, SHOWN_MEAN)
        mean, std, wide, middle = (np.array(c, np.float32)[:, None, None] for c in columns)
        shown = np.floor(np.clip((stored[:3].astype(np.float32) - mean) / std * wide + middle, 0, 255))
        return np.ascontiguousarray(shown[::-1])

    def _classes(self, path: Path) -> np.ndarray:
        """uint8 [H, W] of 0..5 and `IGNORE`."""
        planes = read_raster(path)
        if planes.shape[0] == 1 and planes.shape[2] == CLASSES:
            planes = _pages(path)
        if len(planes) != CLASSES:
            raise UnreadableFileError(
                path, f"has {len(planes)} bands", f"A label has {CLASSES}, one for each class."
            )
        found = planes.argmax(axis=0)
        return np.where((found == SNOW) | ~planes.any(axis=0), IGNORE, found).astype(np.uint8)


def _pages(path: Path) -> np.ndarray:
    """Planes [7, H, W] of a file that holds each row of the image as a page, columns by classes: so it is
    stored by software that is given an array [H, W, 7] and is not told what it means."""
    with Image.open(path) as file:
        rows = [np.asarray(page) for page in ImageSequence.Iterator(file)]
    return np.stack(rows).transpose(2, 0, 1)
