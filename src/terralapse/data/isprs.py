"""ISPRS 2D semantic labelling: Potsdam (RGB, 0.05 m) and Vaihingen (infrared, red, green; 0.09 m).

The folders and names are those of the release; the labels are colours:

* Potsdam: `4_Ortho_RGBIR/top_potsdam_<id>_RGBIR.tif` (first three bands) or `2_Ortho_RGB/..._RGB.tif`, with
  `5_Labels_for_participants/top_potsdam_<id>_label.tif` and
  `5_Labels_for_participants_no_Boundary/top_potsdam_<id>_label_noBoundary.tif`;
* Vaihingen: `top/top_mosaic_09cm_area<id>.tif`, with `gts_for_participants/` of the same name and
  `gts_eroded_for_participants/top_mosaic_09cm_area<id>_noBoundary.tif`.

Crops of Potsdam in `images/top_potsdam_<id>_RGB.jpg` and `classes/top_potsdam_<id>_RGB.png` are read too.

In the eroded labels black is a border that nobody scores: `IGNORE`. The published numbers of most networks
are scores against eroded labels.

Source: ISPRS Commission II, 2D Semantic Labeling Contest (research use, cite ISPRS and DGPF).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from terralapse.data.pictures import RGB, files_of, read_classes, read_rgb, same_size
from terralapse.data.samples import LabelledImage
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import ISPRS
from terralapse.sensors import Unit

BLACK = (0, 0, 0)
# Which tiles train and which test is a convention of the literature; there are two that differ.
_GEOSEG_POTSDAM = "2_13 2_14 3_13 3_14 4_13 4_14 4_15 5_13 5_14 5_15 6_13 6_14 6_15 7_13"
_GEOSEG_VAIHINGEN = "2 4 6 8 10 12 14 16 20 22 24 27 29 31 33 35 38"
TILES = {
    "potsdam": {
        "ssrs": {
            "train": "6_10 7_10 2_12 3_11 2_10 7_8 5_10 3_12 5_12 7_11 7_9 6_9 7_7 4_12 6_8 6_12 6_7 4_11",
            "test": "4_10 5_11 2_11 3_10 6_11 7_12",
        },
        "geoseg": {"test": _GEOSEG_POTSDAM},
    },
    "vaihingen": {
        "ssrs": {"train": "1 3 23 26 7 11 13 28 17 32 34 37", "test": "5 21 15 30"},
        "geoseg": {"test": _GEOSEG_VAIHINGEN},
    },
}
# Per set: folder and name of an image, of a label, and of an eroded label.
_Layout = tuple[tuple[str, str], tuple[str, str], tuple[str, str] | None]
_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    "potsdam": (
        (
            ("4_Ortho_RGBIR", "top_potsdam_{}_RGBIR"),
            ("5_Labels_for_participants", "top_potsdam_{}_label"),
            ("5_Labels_for_participants_no_Boundary", "top_potsdam_{}_label_noBoundary"),
        ),
        (
            ("2_Ortho_RGB", "top_potsdam_{}_RGB"),
            ("5_Labels_for_participants", "top_potsdam_{}_label"),
            ("5_Labels_for_participants_no_Boundary", "top_potsdam_{}_label_noBoundary"),
        ),
        (("images", "top_potsdam_{}_RGB"), ("classes", "top_potsdam_{}_RGB"), None),
    ),
    "vaihingen": (
        (
            ("top", "top_mosaic_09cm_area{}"),
            ("gts_for_participants", "top_mosaic_09cm_area{}"),
            ("gts_eroded_for_participants", "top_mosaic_09cm_area{}_noBoundary"),
        ),
    ),
}


class Isprs:
    """Tiles of a split with the class of every pixel, in the order of their numbers.

    Args:
        root: the folder of the release.
        area: `potsdam` or `vaihingen`.
        split: `train` or `test`; None for every tile whose image and label are there.
        tiles: the division: `ssrs` (Potsdam 18 and 6 tiles, Vaihingen 12 and 4) or `geoseg` (Potsdam's test
            has 14, Vaihingen's 17; `train` is every other tile that is there).
        eroded: labels without borders.

    Raises:
        FileMissingError: the folders are missing, or a tile of the split is.
        SettingError: no such area, split or division, or no eroded labels in this layout.
        UnreadableFileError: (when a tile is read) a colour that no class has, or files of several sizes.
    """

    scheme = ISPRS
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        area: str,
        split: str | None = None,
        tiles: str = "ssrs",
        eroded: bool = False,
    ) -> None:
        if area not in TILES:
            raise SettingError(f"area={area}", "no such area", f"Choose one of {', '.join(TILES)}.")
        if tiles not in TILES[area]:
            raise SettingError(
                f"tiles={tiles}", "no such division", f"Choose one of {', '.join(TILES[area])}."
            )
        if split not in (None, "train", "test"):
            raise SettingError(f"split={split}", "no such split", "Choose train or test.")
        self.root = Path(root)
        self.gsd = 0.05 if area == "potsdam" else 0.09
        self.bands = RGB if area == "potsdam" else ("nir", "red", "green")
        self.title = f"ISPRS {area.capitalize()}" + (f" {split}" if split else "")
        images, labels = self._folders(area, eroded)
        there = sorted(images.keys() & labels.keys(), key=_number)
        self.names = there if split is None else _chosen(there, TILES[area][tiles], split)
        for name in self.names:
            if name not in images or name not in labels:
                kind = "image" if name not in images else "label"
                raise FileMissingError(
                    self.root, f"has no {kind} of tile {name}", "Complete the release, or choose other tiles."
                )
        self._files = {n: (images[n], labels[n]) for n in self.names}

    def _folders(self, area: str, eroded: bool) -> tuple[dict[str, Path], dict[str, Path]]:
        """Images and labels of all tiles by tile."""
        for image, label, without_border in _LAYOUTS[area]:
            chosen = without_border if eroded else label
            if not (self.root / image[0]).is_dir():
                continue
            if chosen is None:
                raise SettingError("eroded=True", f"there are none beside {image[0]}", "Leave it out.")
            if not (self.root / chosen[0]).is_dir():
                raise FileMissingError(
                    self.root / chosen[0], "is not there", "Add the labels of the release."
                )
            return _tiles(self.root, image), _tiles(self.root, chosen)
        known = " or ".join(layout[0][0] for layout in _LAYOUTS[area])
        raise FileMissingError(self.root, f"holds no folder {known}", "Give the folder of the release.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledImage:
        name = self.names[index]
        path, path_label = self._files[name]
        image, label = read_rgb(path), read_classes(path_label, ISPRS, ignored=(BLACK,))
        same_size(path_label, label, image)
        return LabelledImage(name, image, label, self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[i] for i in range(len(self)))


def _tiles(root: Path, place: tuple[str, str]) -> dict[str, Path]:
    """The files of a folder by the number of their tile."""
    begin, end = place[1].split("{}")
    return {
        "_".join(str(int(part)) for part in stem[len(begin) : len(stem) - len(end)].split("_")): path
        for stem, path in files_of(root / place[0]).items()
        if stem.startswith(begin)
        and stem.endswith(end)
        and _is_number(stem[len(begin) : len(stem) - len(end)])
    }


def _is_number(text: str) -> bool:
    return text.replace("_", "", 1).isdigit()


def _number(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("_"))


def _chosen(there: list[str], tiles: dict[str, str], split: str) -> list[str]:
    if split in tiles:
        return sorted(tiles[split].split(), key=_number)
    return [n for n in there if n not in tiles["test"].split()]
