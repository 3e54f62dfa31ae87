"""Building masks of several sets, in the layout of the samples: `<set>/images/*.jpg`, `<set>/masks/*.png`.

Only Inria comes in parts (`inria/train`, `inria/val`, `inria/test`). The split `train` is Inria's part and
every set without parts, so that `val` and `test` are those of its authors.

Source: arghadeep25/Building-Footprint-Extraction-from-High-Resolution-Satellite-Images, with images of
Inria, ISPRS Potsdam, WHU and SpaceNet 2 (research use).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from terralapse.data.pictures import RGB, files_of, need_folder, read_binary, read_rgb, same_size
from terralapse.data.samples import LabelledImage
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import BUILDINGS
from terralapse.sensors import Unit

BUILDING_SETS = {  # folder to nominal GSD in metres
    "inria/train": 0.3,
    "inria_cities": 0.3,
    "potsdam": 0.3,
    "whu_east_asia": 0.5,
    "whu_new_zealand": 0.3,
    "whu_global_cities": 0.5,
    "spacenet2": 0.3,
}
SPLITS = {"train": tuple(BUILDING_SETS), "val": ("inria/val",), "test": ("inria/test",)}


class Buildings:
    """Images with a mask of buildings, in the order of the sets and of the names (`<set>/<name>`).

    Args:
        root: the folder of the sets.
        split: `train`, `val` or `test`.
        sets: folders to take in place of those of the split, for example one set alone.
        gsd: metres; images are brought to this pixel size (the mean of what a pixel covers, or cubic where
            it is finer), and a pixel is a building when at least half of it is one. None keeps theirs.

    Raises:
        FileMissingError: a set or a mask is missing.
        SettingError: no such split.
        UnreadableFileError: (when an image is read) a mask of another size or with other values.
    """

    scheme = BUILDINGS
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str = "train",
        sets: Sequence[str] | None = None,
        gsd: float | None = None,
    ) -> None:
        if gsd is not None and gsd <= 0:
            raise SettingError(f"gsd={gsd:g}", "is no pixel size", "Give metres above 0.")
        self._gsd = gsd
        if split not in SPLITS:
            raise SettingError(f"split={split}", "no such split", f"Choose one of {', '.join(SPLITS)}.")
        self.title = f"buildings {split if sets is None else ', '.join(sets)}"
        self._files: dict[str, tuple[Path, Path, float]] = {}
        for name in sets or SPLITS[split]:
            folder = Path(root) / name
            images = files_of(need_folder(folder / "images", "Give the root of the building sets."))
            masks = files_of(need_folder(folder / "masks", "Give the root of the building sets."))
            for stem, path in images.items():
                if stem not in masks:
                    raise FileMissingError(
                        folder / "masks" / stem, "is not there, and its image is", "Add it."
                    )
                gsd = BUILDING_SETS.get(
                    name, BUILDING_SETS["inria/train"] if "inria" in name else float("nan")
                )
                self._files[f"{name}/{stem}"] = (path, masks[stem], gsd)
        self.names = list(self._files)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledImage:
        name = self.names[index]
        path, mask, gsd = self._files[name]
        image, label = read_rgb(path), read_binary(mask)
        same_size(mask, label, image)
        if self._gsd is not None:
            image, label = _resized(image, label, gsd / self._gsd)
            gsd = self._gsd
        return LabelledImage(name, image, label, gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[i] for i in range(len(self)))


def _resized(image: np.ndarray, label: np.ndarray, by: float) -> tuple[np.ndarray, np.ndarray]:
    """An image [C, H, W] and its mask [H, W], `by` times as large."""
    height, width = (max(1, round(side * by)) for side in label.shape)
    how = Image.Resampling.BOX if by < 1 else Image.Resampling.BICUBIC

    def plane(x: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(x.astype(np.float32)).resize((width, height), how))

    bands = np.stack([plane(band, how) for band in image]).clip(0, 255)
    return bands, (plane(label, Image.Resampling.BOX) >= 0.5).astype(np.uint8)
