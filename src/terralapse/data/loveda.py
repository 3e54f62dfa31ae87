"""LoveDA: land cover of 18 Chinese city and country districts, RGB at 0.3 m, 1024 x 1024 pixels.

`<root>/{Train,Val}/{Rural,Urban}/{images_png,masks_png}/<number>.png`. The files hold 0 for no data and the
classes as 1 to 7; read, they are 0 to 6 and `IGNORE`. The labels of `Test` are not published.

Source: Wang et al., LoveDA: A remote sensing land-cover dataset for domain adaptive semantic segmentation,
NeurIPS 2021 data sets track (CC BY-NC-SA 4.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import RGB, files_of, need_folder, read_rgb, read_values, same_size
from terralapse.data.samples import LabelledImage
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import LOVEDA
from terralapse.sensors import Unit

SPLITS = {"train": "Train", "val": "Val"}
SCENES = ("Rural", "Urban")


class LoveDA:
    """Images with the class of every pixel, Rural before Urban, by number (`Rural/<number>`).

    Args:
        root: the folder that holds Train and Val.
        split: `train` or `val`.
        scenes: `Rural`, `Urban` or both.

    Raises:
        FileMissingError: a folder or a mask is missing.
        SettingError: another split; `test` has no published labels.
        UnreadableFileError: (when an image is read) a mask of another size or with other values.
    """

    scheme = LOVEDA
    bands = RGB
    unit = Unit.RGB255
    gsd = 0.3

    def __init__(self, root: Path | str, split: str = "train", scenes: Sequence[str] = SCENES) -> None:
        if split not in SPLITS:
            raise SettingError(f"split={split}", "has no published labels", "Choose train or val.")
        if not scenes or not set(scenes) <= set(SCENES):
            raise SettingError(
                f"scenes={', '.join(scenes)}", "no such scenes", "Choose Rural, Urban or both."
            )
        self.title = f"LoveDA {split}" + ("" if len(scenes) == 2 else f" {scenes[0]}")
        self._files: dict[str, tuple[Path, Path]] = {}
        for scene in sorted(set(scenes)):
            folder = Path(root) / SPLITS[split] / scene
            images = files_of(need_folder(folder / "images_png", "Give the folder that holds Train and Val."))
            masks = files_of(need_folder(folder / "masks_png", "Give the folder that holds Train and Val."))
            for stem in sorted(images, key=lambda s: (len(s), s)):
                if stem not in masks:
                    raise FileMissingError(
                        folder / "masks_png" / f"{stem}.png",
                        "is not there, and its image is",
                        "Add the file.",
                    )
                self._files[f"{scene}/{stem}"] = (images[stem], masks[stem])
        self.names = list(self._files)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledImage:
        name = self.names[index]
        path, mask = self._files[name]
        image, stored = read_rgb(path), read_values(mask)
        same_size(mask, stored, image)
        if stored.max() > len(LOVEDA.classes):
            raise UnreadableFileError(mask, f"holds {stored.max()}, and classes go to 7", "Copy it again.")
        label = np.where(stored == 0, IGNORE, stored - 1).astype(np.uint8)
        return LabelledImage(name, image, label, self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[i] for i in range(len(self)))
