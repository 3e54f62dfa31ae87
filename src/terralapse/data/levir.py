"""LEVIR-CD and sets released in its layout: folders `A` (before), `B` (after) and `label`, RGB at 0.5 m.

`<root>/[<split>/]{A,B,label}/<name>.png`; A and B may also be JPEG; a label is 0 where nothing changed and
anything else where a building appeared or vanished. Official LEVIR-CD has 637 pairs of 1024 x 1024 pixels in
`train`, `val` and `test`; the samples that the literature ships are tiles of 256 x 256 of it.

Source: Chen and Shi, A spatial-temporal attention-based method and a new dataset for remote sensing image
change detection, Remote Sensing 12(10), 2020 (academic use; Google Earth imagery).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from terralapse.data.pairs import LabelledPair
from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.sensors import Unit

BANDS = ("red", "green", "blue")
IMAGES = (".png", ".jpg", ".jpeg", ".tif")


class Levir:
    """Pairs of A, B and label by file name, in the order of the names. A pair without a label is left out
    and its name kept in `unlabelled`.

    Args:
        root: the folder of the data set.
        split: a folder in `root` (`train`, `val`, `test`); None when `root` holds A, B and label itself.
        gsd: pixel size in metres; 0.5 for LEVIR-CD.
        title: for tables.

    Raises:
        FileMissingError: a folder is missing, or an image has no partner on the other date.
        UnreadableFileError: the images of a pair are not of one size.
    """

    bands = BANDS
    unit = Unit.RGB255

    def __init__(
        self, root: Path | str, split: str | None = None, gsd: float = 0.5, title: str = "LEVIR-CD"
    ) -> None:
        self.root = Path(root) if split is None else Path(root) / split
        self.gsd = gsd
        self.title = title if split is None else f"{title} {split}"
        before, after, labels = (self._files(name) for name in ("A", "B", "label"))
        for one, other, folder in ((before, after, "B"), (after, before, "A")):
            alone = sorted(one.keys() - other.keys())
            if alone:
                raise FileMissingError(
                    self.root / folder / alone[0], "has a partner on the other date only", "Add the file."
                )
        self.unlabelled = sorted(before.keys() - labels.keys())
        self._paths = [
            (name, before[name], after[name], labels[name]) for name in sorted(before.keys() & labels.keys())
        ]

    def _files(self, name: str) -> dict[str, Path]:
        folder = self.root / name
        if not folder.is_dir():
            raise FileMissingError(
                folder, "is not there", "Give a folder with A, B and label, or name a split that has them."
            )
        return {p.stem: p for p in folder.iterdir() if p.suffix.lower() in IMAGES}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[LabelledPair]:
        for name, *paths in self._paths:
            before, after = (_rgb(p) for p in paths[:2])
            label = (np.asarray(Image.open(paths[2])) > 0).astype(np.uint8)
            if not before.shape[1:] == after.shape[1:] == label.shape:
                raise UnreadableFileError(
                    paths[2],
                    f"is {label.shape}, its images are {before.shape[1:]} and {after.shape[1:]}",
                    "The three files of a pair must have the same height and width.",
                )
            yield LabelledPair(name, np.stack([before, after]), label, self.gsd, self.bands, self.unit)


def _rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).transpose(2, 0, 1)
