"""DisasterM3: questions, reports and referring masks on disaster pairs, as its benchmark is released.

`<root>/<subset>.json`, a list of records for each of `SUBSETS`; images under `<root>/images/`, but those of
`relational_reasoning_qa` (and masks) relative to `<root>` itself; separators may be backslashes. The official
runner fixes the files and the fields `prompts`, `options_str` (`option_str` of relational questions),
`pre_image_path`, `post_image_path` and `image_path`; `ground_truth_option`, `ground_truth` and
`post_image_type` are those of the paper's records. The archive itself is given out by a form only and has not
been read here. It has no runner for masks: the file `referring_segmentation.json`, with the path of the mask
as `ground_truth`, is this library's choice.

Source: Wang et al., DisasterM3, NeurIPS 2025 (arXiv:2505.21089), CC BY-NC(-SA) 4.0, academic use only.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

Kind = Literal["multiple", "single", "caption", "advice", "mask"]
OPTICAL, SAR, UNSTATED = "optical-optical", "optical-SAR", "not stated"
_PERCENT = (2, 98)  # of the values of a radar image that is not yet stretched
_LETTER = re.compile(r"(?:^|[\s;,\n])\(?([A-Z])\)?[.):]\s*")


@dataclass(frozen=True)
class Subset:
    """A file of the benchmark: its task in the paper's letters, what kind of answer it asks for, and which
    images it shows."""

    name: str
    task: str
    kind: Kind
    images: tuple[str, ...] = ("pre", "post")


SUBSETS: dict[str, Subset] = {
    s.name: s
    for s in (
        Subset("landuse", "DSR", "multiple", ("pre",)),
        Subset("disaster_type", "DTR", "single"),
        Subset("bearing_body", "BBR", "multiple"),
        Subset("building_damage_counting", "BDC", "single"),
        Subset("road_damage_counting", "DRE", "single"),
        Subset("relational_reasoning_qa", "ORR", "single", ("image",)),
        Subset("caption", "caption", "caption"),
        Subset("recovery", "advice", "advice"),
        Subset("referring_segmentation", "segmentation", "mask"),
    )
}
CHOICES = ("DSR", "DTR", "BBR", "BDC", "DRE", "ORR")
"""The six tasks of the average, in the order of the paper's tables."""


@dataclass(frozen=True)
class Item:
    """One record. `images` are paths in the order in which they are shown; `options` the texts by letter;
    `truth` the letters, the reference text, or the path of the mask; `sensor` is that of the pair."""

    id: str
    subset: Subset
    question: str
    options_text: str
    options: dict[str, str]
    images: tuple[Path, ...]
    truth: str
    sensor: str

    @property
    def letters(self) -> str:
        """What can be chosen; all letters where the options could not be read."""
        return "".join(self.options) or "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_options(text: str) -> dict[str, str]:
    """Texts of options by letter, from `A. bridge B. road` in one line or several; empty where it is not in
    this form. Letters must follow each other from A."""
    found: dict[str, str] = {}
    kept: list[re.Match[str]] = []
    for mark in _LETTER.finditer(text):
        if mark[1] == chr(ord("A") + len(kept)):
            kept.append(mark)
    ends = [*(mark.start() for mark in kept[1:]), len(text)]
    for mark, end in zip(kept, ends, strict=False):  # without a mark there is one end and nothing to read
        found[mark[1]] = text[mark.end() : end].strip(" ;,\n")
    return found


class DisasterM3:
    """The records of one subset, in the order of its file; ids are `<subset>_<index>`.

    Args:
        root: the folder with `<subset>.json` and `images`.
        subset: a name of `SUBSETS`.

    Raises:
        SettingError: no such subset.
        FileMissingError, UnreadableFileError: no file, or one that is no list of such records.
    """

    def __init__(self, root: Path | str, subset: str) -> None:
        if subset not in SUBSETS:
            raise SettingError(f"subset {subset}", "is not known", f"There are {', '.join(SUBSETS)}.")
        self.root, self.subset = Path(root), SUBSETS[subset]
        self.path = self.root / f"{subset}.json"
        self._records = _records(self.path)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Item:
        record, subset = self._records[index], self.subset
        options = self._text(record, index, "options_str", "option_str") if subset.kind in _CHOSEN else ""
        listed = record.get("options_list")
        texts = read_options(options)
        if not texts and isinstance(listed, list):
            texts = {chr(ord("A") + i): str(o) for i, o in enumerate(listed)}
        truth = "ground_truth_option" if subset.kind in _CHOSEN else "ground_truth"
        fixed = subset.kind in ("caption", "advice")  # the prompt of a report is the same for all
        return Item(
            id=f"{subset.name}_{index}",
            subset=subset,
            question="" if fixed else self._text(record, index, "prompts"),
            options_text=options,
            options=texts,
            images=tuple(self._image(record, index, which) for which in subset.images),
            truth=self._truth(record, index, truth),
            sensor=_sensor(record),
        )

    def _text(self, record: dict[str, Any], index: int, *names: str) -> str:
        for name in names:
            if isinstance(record.get(name), str):
                return record[name]
        raise UnreadableFileError(
            self.path, f"record {index} has no {names[0]}", "Use the files of the released benchmark."
        )

    def _truth(self, record: dict[str, Any], index: int, name: str) -> str:
        value = record.get(name)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if not isinstance(value, str):
            raise UnreadableFileError(
                self.path, f"record {index} has no {name}", "Use the files of the released benchmark."
            )
        return value if self.subset.kind != "mask" else str(inside(self.root, value))

    def _image(self, record: dict[str, Any], index: int, which: str) -> Path:
        name = "image_path" if which == "image" else f"{which}_image_path"
        folder = self.root if which == "image" else self.root / "images"
        return inside(folder, self._text(record, index, name))


_CHOSEN = ("single", "multiple")


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give the folder that holds the benchmark's JSON files.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFileError(path, f"is no JSON ({error})", "Download it again.") from error
    if not isinstance(found, list) or not all(isinstance(r, dict) for r in found):
        raise UnreadableFileError(path, "is no list of records", "Download it again.")
    return found


def inside(folder: Path, name: str) -> Path:
    """A path of the benchmark below `folder`, its separators made those of here.

    Raises:
        UnreadableFileError: it leads out of the folder.
    """
    plain = name.replace("\\", "/")
    if plain.startswith("/") or ".." in plain.split("/") or re.match(r"[A-Za-z]:", plain):
        raise UnreadableFileError(name, "leads out of the benchmark's folder", "Correct the record.")
    return folder / plain


def _sensor(record: dict[str, Any]) -> str:
    stated = record.get("post_image_type") or record.get("image_type")
    if not isinstance(stated, str) or not stated.strip():
        return UNSTATED
    return SAR if "sar" in stated.lower() else OPTICAL


def read_picture(path: Path, side: int | None = None) -> np.ndarray:
    """An image as a model takes it: uint8 [H, W, 3].

    Grey is repeated over three channels; radar of more than 8 bits is stretched first, from the 2nd to the
    98th percentile of log(1 + value). `side` makes it a square by bicubic resampling, as the official runner
    can.

    Raises:
        FileMissingError, UnreadableFileError: there is none, or no image.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Check the folder of the benchmark.")
    try:
        with Image.open(path) as source:
            source.load()
            deep = source.mode in ("I", "F", "I;16", "I;16B")
            picture = Image.fromarray(_stretched(np.asarray(source, np.float64))) if deep else source
            picture = picture.convert("RGB")
    except OSError as error:
        raise UnreadableFileError(path, f"is no image ({error})", "Download it again.") from error
    return np.asarray(square(picture, side) if side else picture)


def square(picture: Image.Image, side: int) -> Image.Image:
    """A picture of `side` x `side` by bicubic resampling."""
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _stretched(values: np.ndarray) -> np.ndarray:
    """uint8 of the same shape."""
    log = np.log1p(np.clip(np.nan_to_num(values), 0, None))
    low, high = np.percentile(log, _PERCENT)
    return (255 * np.clip((log - low) / max(high - low, 1e-9), 0, 1)).round().astype(np.uint8)


def read_mask(path: Path) -> np.ndarray:
    """bool [H, W]: where a mask is not 0.

    Raises:
        FileMissingError, UnreadableFileError: there is none, or no image.
    """
    return read_picture(path).max(axis=-1) > 0
