"""xBD, the data set of xView2: buildings before a disaster, and how badly each was hit.

`<root>/[<split>/]images/<disaster>_<8 digits>_{pre,post}_disaster.png` with one of three sources of labels:
`masks/` with the names of the images (0 and 1 before; 0 and the grades 1..4 after: the layout of ChangeMamba,
also for tiles `<disaster>_<8 digits>_{pre,post}_disaster_<row>_<column>.png`), `targets/<image>_target.png`
with the same values (the official rasters), or `labels/<image>.json` with the polygons (the official labels).

Source: Gupta et al., Creating xBD: A dataset for assessing building damage from satellite imagery, CVPR
workshops 2019 (CC BY-NC-SA 4.0). Ida-BD follows the same layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import (
    RGB,
    files_of,
    need_folder,
    read_binary,
    read_rgb,
    read_values,
    same_size,
    values_in,
)
from terralapse.data.samples import DamagePair
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import DAMAGE
from terralapse.sensors import Unit

GRADES = {"no-damage": 1, "minor-damage": 2, "major-damage": 3, "destroyed": 4, "un-classified": 5}
UNCLASSIFIED = GRADES["un-classified"]
SOURCES = ("masks", "targets", "labels")
_NAME = re.compile(r"(?P<scene>.+)_(?P<date>pre|post)_disaster(?P<tile>(_\d+)*)")


class XBD:
    """Pairs of one split, by name, in the order of the names (`<disaster>_<id>`, and `_<row>_<column>` for
    tiles).

    Args:
        root: the folder of the data set.
        split: a folder in `root`, by its released name; None when `root` holds `images` itself.
        source: `masks`, `targets` or `labels`; None takes the first of them that is there.
        unclassified: what a building of the subtype `un-classified` (the value 5 in rasters) is in `damage`:
            `IGNORE`, or 1 as in much published code, which takes it as not damaged.
        gsd: in metres; scenes of xBD have 0.3 to 0.8, which the files do not say.
        title: for tables.

    Raises:
        FileMissingError: a folder or a file of a pair is missing.
        UnreadableFileError: (when a pair is read) files of several sizes, or labels that hold something else.
    """

    scheme = DAMAGE
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        source: str | None = None,
        unclassified: int = IGNORE,
        gsd: float = float("nan"),
        title: str = "xBD",
    ) -> None:
        self.root = Path(root) if split is None else Path(root) / split
        if unclassified not in (1, IGNORE):
            raise SettingError(f"unclassified={unclassified}", "is no choice", f"Choose {IGNORE} or 1.")
        self.gsd, self.unclassified = gsd, unclassified
        self.title = title if split is None else f"{title} {split}"
        images = need_folder(self.root / "images", "Give the folder that holds `images`, or name a split.")
        if source is not None and source not in SOURCES:
            raise SettingError(f"source={source}", "no such labels", f"Choose one of {', '.join(SOURCES)}.")
        there = [s for s in SOURCES if (self.root / s).is_dir()]
        if source is None and not there:
            raise FileMissingError(
                self.root / SOURCES[0], "is not there", f"Labels are read from one of {', '.join(SOURCES)}."
            )
        self.source = source or there[0]
        need_folder(self.root / self.source, "Choose a source of labels that is there.")
        self._files = _pairs(images)
        self.names = sorted(self._files)
        for name in self.names:
            for path in self._labels(name):
                if not path.is_file():
                    raise FileMissingError(path, "is not there, and its image is", "Add the file.")

    def _labels(self, name: str) -> list[Path]:
        """The files of the labels before and after."""
        ending = {"masks": ".png", "targets": "_target.png", "labels": ".json"}[self.source]
        return [self.root / self.source / (path.stem + ending) for path in self._files[name]]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DamagePair:
        name = self.names[index]
        images = [read_rgb(p) for p in self._files[name]]
        before, after = self._labels(name)
        if self.source == "labels":
            size = (images[0].shape[1], images[0].shape[2])
            building = (polygons(before, size) > 0).astype(np.uint8)
            damage = polygons(after, size)
        else:
            building, damage = read_binary(before), read_values(after)
        strange = sorted(set(values_in(damage)) - {0, *GRADES.values(), IGNORE})
        if strange:
            raise UnreadableFileError(after, f"holds {strange[0]}", "Damage is 0 to 5, or 255 where unknown.")
        damage = np.where(damage == UNCLASSIFIED, self.unclassified, damage).astype(np.uint8)
        same_size(before, building, *images)
        same_size(after, damage, *images)
        return DamagePair(name, np.stack(images), building, damage, self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[DamagePair]:
        return (self[i] for i in range(len(self)))


def _pairs(images: Path) -> dict[str, tuple[Path, Path]]:
    """The files before and after of each pair, by name."""
    dates: dict[str, dict[str, Path]] = {"pre": {}, "post": {}}
    for stem, path in files_of(images).items():
        match = _NAME.fullmatch(stem)
        if match is None:
            raise UnreadableFileError(
                path,
                "is not named <disaster>_<id>_pre_disaster or _post_disaster",
                "Take it away or rename it.",
            )
        dates[match["date"]][match["scene"] + match["tile"]] = path
    alone = sorted(dates["pre"].keys() ^ dates["post"].keys())
    if alone:
        path = dates["pre"].get(alone[0]) or dates["post"][alone[0]]
        raise FileMissingError(path, "has no partner on the other date", "Add the file.")
    return {name: (path, dates["post"][name]) for name, path in dates["pre"].items()}


def polygons(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The buildings of an official label file as uint8 [H, W]: the grade of each (1 where the file states
    none, as those before the disaster do; 5 for `un-classified`), 0 elsewhere.

    Coordinates count from the centre of the first pixel, and the outline belongs to a polygon; of polygons
    that overlap, the later one in the file wins.

    Raises:
        UnreadableFileError: no such file of labels, or a subtype that xBD does not have.
    """
    from shapely import wkt  # here, since only these labels need it
    from shapely.errors import ShapelyError

    label = np.zeros(size, np.uint8)
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]["xy"]
        shapes = [(wkt.loads(f["wkt"]), f["properties"].get("subtype", "no-damage")) for f in features]
    except (ValueError, KeyError, TypeError, ShapelyError) as error:
        raise UnreadableFileError(path, f"is no label file of xBD ({error})", "Copy it again.") from error
    for shape, subtype in shapes:
        if subtype not in GRADES:
            raise UnreadableFileError(path, f"has the subtype {subtype}", f"Known are {', '.join(GRADES)}.")
        for part in getattr(shape, "geoms", [shape]):
            mask = Image.new("1", (size[1], size[0]))
            draw = ImageDraw.Draw(mask)
            draw.polygon(list(part.exterior.coords), fill=1)
            for hole in part.interiors:
                draw.polygon(list(hole.coords), fill=0)
            label[np.asarray(mask)] = GRADES[subtype]
    return label
