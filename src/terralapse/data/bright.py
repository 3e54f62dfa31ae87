"""BRIGHT: optical images before a disaster, radar after it, and how badly each building was hit.

`<root>/pre-event/<event>_<8 digits>_pre_disaster.tif` (RGB of 8 bits),
`<root>/post-event/<event>_<8 digits>_post_disaster.tif` (one band of 8 bits) and
`<root>/target/<event>_<8 digits>_building_damage.tif` (0 background, 1 intact, 2 damaged, 3 destroyed). A
split is a list of `<event>_<8 digits>` in `<root>/<split>_set.txt` or `<root>/<split>.txt`.

Source: Chen et al., "BRIGHT: a globally distributed multimodal building damage assessment dataset with
very-high-resolution for all-weather disaster response", 2025.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from terralapse.data.folders import read_list
from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import (
    RGB,
    files_of,
    need_folder,
    read_rgb,
    read_values,
    same_size,
    values_in,
)
from terralapse.data.samples import DamagePair
from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.labels import DAMAGE
from terralapse.sensors import Unit

# BRIGHT has one grade between none and destroyed; of those of xBD, "major" stands for it.
TO_XBD = {0: 0, 1: 1, 2: 3, 3: 4, IGNORE: IGNORE}
FOLDERS = {"pre-event": "_pre_disaster", "post-event": "_post_disaster", "target": "_building_damage"}


class Bright:
    """Pairs by name (`<event>_<8 digits>`), in the order of the names, or of the list of the split.

    The damage is in the grades of xBD (`TO_XBD`). The image of radar is repeated over three bands.

    Raises:
        FileMissingError: a folder or a file of a pair is missing.
        UnreadableFileError: (when a pair is read) files of several sizes, or labels that hold something else.
    """

    scheme = DAMAGE
    bands = RGB
    unit = Unit.RGB255
    sar = True

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        gsd: float = float("nan"),
        title: str = "BRIGHT",
    ) -> None:
        self.root, self.gsd = Path(root), gsd
        self.title = title if split is None else f"{title} {split}"
        self._files: dict[str, dict[str, Path]] = {}
        for folder, ending in FOLDERS.items():
            found = files_of(need_folder(self.root / folder, f"BRIGHT has {', '.join(FOLDERS)}."))
            self._files[folder] = {s.removesuffix(ending): p for s, p in found.items() if s.endswith(ending)}
        every = set.union(*(set(f) for f in self._files.values()))
        self.names = sorted(every) if split is None else self._listed(split)
        for name in self.names:
            for folder, ending in FOLDERS.items():
                if name not in self._files[folder]:
                    raise FileMissingError(
                        self.root / folder / f"{name}{ending}.tif", "is not there", "Add the file."
                    )

    def _listed(self, split: str) -> list[str]:
        paths = [self.root / f"{split}_set.txt", self.root / f"{split}.txt"]
        return read_list(next((p for p in paths if p.is_file()), paths[0]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DamagePair:
        name = self.names[index]
        before, after, path = (self._files[folder][name] for folder in FOLDERS)
        images = [read_rgb(before), read_rgb(after)]
        target = read_values(path)
        strange = sorted(set(values_in(target)) - TO_XBD.keys())
        if strange:
            raise UnreadableFileError(path, f"holds {strange[0]}", "Damage of BRIGHT is 0 to 3.")
        same_size(path, target, *images)
        table = np.zeros(256, np.uint8)
        table[list(TO_XBD)] = list(TO_XBD.values())
        damage = table[target]
        building = np.where(damage == IGNORE, IGNORE, damage > 0).astype(np.uint8)
        return DamagePair(name, np.stack(images), building, damage, self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[DamagePair]:
        return (self[i] for i in range(len(self)))
