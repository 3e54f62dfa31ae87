"""LEVIR-MCI and LEVIR-CC: pairs of dates with five sentences each about what changed, and (LEVIR-MCI) a mask
of changed roads and buildings.

`<root>/LevirCCcaptions.json` with `<root>/images/{train,val,test}/{A,B,label}/<split>_<6 digits>.png`, as
released; LEVIR-CC has no `label`. The numbers of the files have gaps, so that the list in the JSON file
decides. Masks hold 0, 128 (road) and 255 (building) in their first channel.

Source: Liu et al., Remote Sensing Image Change Captioning With Dual-Branch Transformers, IEEE TGRS 2022
(LEVIR-CC), and Change-Agent, IEEE TGRS 2024 (LEVIR-MCI).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.data.pictures import RGB, need_folder, read_rgb, same_size, values_in
from terralapse.data.samples import CaptionedPair
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import LEVIR_MCI
from terralapse.sensors import Unit

CAPTIONS = "LevirCCcaptions.json"
STORED = {0: 0, 128: 1, 255: 2}  # value of a mask to class


class LevirMci:
    """Pairs of one split, in the order of the list.

    Args:
        root: the folder that holds `LevirCCcaptions.json` and `images`.
        split: train, val or test.
        masks: False leaves the masks out, as in LEVIR-CC.
        gsd: in metres.
        title: for tables.

    Raises:
        FileMissingError: the list, a folder or an image is missing.
        UnreadableFileError: the list is another file, or (when a pair is read) files of several sizes, or a
            mask with other values.
        SettingError: the list has no pair of this split.
    """

    scheme = LEVIR_MCI
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str,
        masks: bool = True,
        gsd: float = 0.5,
        title: str = "LEVIR-MCI",
    ) -> None:
        self.root, self.split, self.masks, self.gsd = Path(root), split, masks, gsd
        self.title = f"{title} {split}"
        listed = read_captions(self.root / CAPTIONS)
        self.captions = {Path(file).stem: found for (part, file), found in listed.items() if part == split}
        self._files = {Path(file).stem: file for part, file in listed if part == split}
        if not self.captions:
            parts = ", ".join(sorted({part for part, _ in listed}))
            raise SettingError(f"split={split}", f"has no pair in {CAPTIONS}", f"It has {parts}.")
        self.names = list(self.captions)
        folders = ("A", "B", "label") if masks else ("A", "B")
        hint = "Unpack the images as released" + (
            "; LEVIR-CC has no masks: read it as levir-cc." if masks else "."
        )
        self._folders = [need_folder(self.root / "images" / split / f, hint) for f in folders]
        for folder in self._folders:
            if lost := [n for n in self.names if not (folder / self._files[n]).is_file()]:
                more = f", like {len(lost) - 1} more" if len(lost) > 1 else ""
                raise FileMissingError(
                    folder / self._files[lost[0]], f"is in {CAPTIONS} and not there{more}", "Add the files."
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CaptionedPair:
        name = self.names[index]
        paths = [folder / self._files[name] for folder in self._folders]
        before, after = read_rgb(paths[0]), read_rgb(paths[1])
        label = read_mask(paths[2]) if self.masks else None
        same_size(paths[-1], after[0] if label is None else label, before, after)
        return CaptionedPair(
            name, np.stack([before, after]), label, self.captions[name], self.gsd, self.bands, self.unit
        )

    def __iter__(self) -> Iterator[CaptionedPair]:
        return (self[i] for i in range(len(self)))

    def files(self, index: int) -> tuple[str, str]:
        """The paths of both images of a pair, relative to the folder `images`."""
        file = self._files[self.names[index]]
        return f"{self.split}/A/{file}", f"{self.split}/B/{file}"

    def label(self, index: int) -> np.ndarray:
        """The mask uint8 [H, W] of a pair, without its images.

        Raises:
            SettingError: the masks were left out.
        """
        if not self.masks:
            raise SettingError(self.title, "was read without its masks", "Read it as levir-mci.")
        return read_mask(self._folders[2] / self._files[self.names[index]])


def read_captions(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """The sentences of each pair by split and file name, in the order of the file.

    Raises:
        FileMissingError, UnreadableFileError: there is no such file, or something else is in it.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Copy it from the release, beside `images`.")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        found = {
            (e["split"] if "split" in e else e["filepath"], e["filename"]): tuple(map(_said, e["sentences"]))
            for e in entries
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableFileError(path, f"is no list of captions ({error!r})", "Copy it again.") from error
    for (_, file), sentences in found.items():
        if not sentences or not all(s.strip() for s in sentences):
            raise UnreadableFileError(path, f"has no sentence, or an empty one, for {file}", "Copy it again.")
    return found


def _said(sentence: dict[str, Any]) -> str:
    return str(sentence["raw"]).strip()


def read_mask(path: Path) -> np.ndarray:
    """The classes uint8 [H, W] that a mask stores.

    Raises:
        UnreadableFileError: it holds other values.
    """
    plane = read_rgb(path)[0].astype(np.uint8)
    if strange := sorted(set(values_in(plane)) - STORED.keys()):
        raise UnreadableFileError(
            path, f"holds {strange[0]}", "A mask holds 0, 128 (road) and 255 (building); copy it again."
        )
    table = np.zeros(256, np.uint8)
    for value, label in STORED.items():
        table[value] = label
    return table[plane]
