"""FUSU: land use of five Chinese cities at two dates, RGB at 0.2 to 0.5 m, with a monthly series at 10 m.

Two layouts are read, each as the folder itself or as a split in it:

- as released: `im1`, `im2`, `im1_label`, `im2_label` with `<city>_<id>.png`, and the series in `A`, `B` and
  `C` (a year each) as `<month>/<city>_<id>_<year>_<month>.<suffix>`, also without the folders of months;
- as the authors' code has it: `im1`, `im2`, `label1`, `label2`, `label_bin` (0 and 1, what changed), and the
  series in `Times` as `<city>_<id>_<anything>.<suffix>`.

Labels are 0 (background, not labelled) to 17 everywhere, changed or not. Files of the series are PNG, TIFF or
NumPy arrays of any number of bands; where two dates of a name can be told apart by year and month they are in
their order, else by the numbers in their names.

Source: Yuan et al., FUSU, NeurIPS 2024 Datasets and Benchmarks (arXiv:2405.19055).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import (
    RGB,
    files_of,
    need_folder,
    read_binary,
    read_classes,
    read_rgb,
    same_size,
)
from terralapse.data.samples import SemanticPair
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import FUSU
from terralapse.sensors import Unit

YEARS = ("A", "B", "C")
LABELS = (("im1_label", "im2_label"), ("label1", "label2"))
SUFFIXES = (".png", ".tif", ".tiff", ".npy")
_MONTH = re.compile(r"([A-Z])_(\d{1,2})$")


class Fusu:
    """Pairs with full maps of classes at both dates, what changed, and the series, by name.

    Args:
        root: the folder of the data set.
        split: a folder in `root`; None where `root` holds the images itself.
        series: whether to read the series; without it nothing of it has to be there.
        series_scale: what its stored values are divided by.
        full: False leaves classes where something changed alone, as data sets for semantic change have them.
        gsd: pixel size in metres, NaN where it is not known.
        title: for tables.

    Raises:
        FileMissingError: a folder, a label or the series of a pair is missing.
        SettingError: `series_scale` is not above 0.
        UnreadableFileError: (when a pair is read) files of several sizes, or a label that is none.
    """

    scheme = FUSU
    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        series: bool = True,
        series_scale: float = 1.0,
        full: bool = True,
        gsd: float = float("nan"),
        title: str = "FUSU",
    ) -> None:
        if not series_scale > 0:
            raise SettingError(f"series_scale={series_scale:g}", "divides values", "Give a number above 0.")
        self.root = Path(root) if split is None else Path(root) / split
        self.title = title if split is None else f"{title} {split}"
        self.gsd, self.full, self.series_scale = gsd, full, series_scale
        hint = "Give the folder that holds im1 and im2, or one of its splits."
        self._images = [files_of(need_folder(self.root / name, hint)) for name in ("im1", "im2")]
        pair = next((p for p in LABELS if (self.root / p[0]).is_dir()), None)
        if pair is None:
            raise FileMissingError(self.root / LABELS[0][0], "is not there, nor is label1", hint)
        self._labels = [files_of(need_folder(self.root / name, hint)) for name in pair]
        stated = self.root / "label_bin"
        self._change = files_of(stated) if stated.is_dir() else None
        self.names = sorted(self._images[0].keys() | self._images[1].keys())
        everything = [*zip(("im1", "im2"), self._images, strict=True), *zip(pair, self._labels, strict=True)]
        for folder, files in everything + ([("label_bin", self._change)] if self._change is not None else []):
            if missing := [n for n in self.names if n not in files]:
                raise FileMissingError(
                    self.root / folder / f"{missing[0]}.png", "is not there, and others of it are", "Add it."
                )
        self._series = self._dates() if series else None
        self.dates = max((len(d) for d in self._series.values()), default=0) if self._series else 0

    def _dates(self) -> dict[str, list[Path]]:
        """The files of each name in the order of their dates."""
        folders = [self.root / n for n in (*YEARS, "Times") if (self.root / n).is_dir()]
        if not folders:
            raise FileMissingError(
                self.root / "A",
                "is not there, nor is Times",
                "Add the series, or read without: series=False.",
            )
        found: dict[str, list[Path]] = {name: [] for name in self.names}
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES and (name := self._name_of(path.stem)) is not None:
                    found[name].append(path)
        if empty := [name for name, paths in found.items() if not paths]:
            raise FileMissingError(
                folders[0] / f"{empty[0]}_*", "is not there", "Add the series, or read without: series=False."
            )
        return {name: sorted(paths, key=_date) for name, paths in found.items()}

    def _name_of(self, stem: str) -> str | None:
        """The pair that a file of the series belongs to: the longest name that it begins with."""
        while "_" in stem:
            stem = stem.rpartition("_")[0]
            if stem in self._images[0]:
                return stem
        return None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> SemanticPair:
        name = self.names[index]
        images = [read_rgb(files[name]) for files in self._images]
        before, after = (read_classes(files[name], FUSU) for files in self._labels)
        for files, label in zip(self._labels, (before, after), strict=True):
            same_size(files[name], label, *images)
        known = (before != 0) & (after != 0) & (before != IGNORE) & (after != IGNORE)
        if self._change is None:
            change = np.where(known, before != after, IGNORE).astype(np.uint8)
        else:
            change = read_binary(self._change[name])
            same_size(self._change[name], change, *images)
        if not self.full:
            out, kept = change == IGNORE, (change == 1) & known
            before, after = (np.where(out, IGNORE, x * kept).astype(np.uint8) for x in (before, after))
        return SemanticPair(
            name,
            np.stack(images),
            before,
            after,
            self.gsd,
            self.bands,
            self.unit,
            change=change if self.full else None,
            series=self._read_series(name),
        )

    def __iter__(self) -> Iterator[SemanticPair]:
        return (self[i] for i in range(len(self)))

    def _read_series(self, name: str) -> np.ndarray | None:
        """float32 [T, C, h, w], filled up with zeros to as many dates as any pair of the set has."""
        if self._series is None:
            return None
        paths = self._series[name]
        dates = [_planes(path) for path in paths]
        for path, date in zip(paths, dates, strict=True):
            if date.shape != dates[0].shape:
                raise UnreadableFileError(
                    path,
                    f"is {date.shape}, and {paths[0].name} is {dates[0].shape}",
                    "All dates of a series must have the same bands and size.",
                )
        series = np.zeros((self.dates, *dates[0].shape), np.float32)
        series[: len(dates)] = np.stack(dates) / self.series_scale
        return series


def _date(path: Path) -> tuple[str, list[int], str]:
    """What files of one series are sorted by: year and month, or the numbers in the name."""
    if found := _MONTH.search(path.stem):
        return found[1], [int(found[2])], path.stem
    return "", [int(n) for n in re.findall(r"\d+", path.stem)], path.stem


def _planes(path: Path) -> np.ndarray:
    """One date as float32 [C, h, w]."""
    try:
        if path.suffix.lower() == ".npy":
            pixels = np.load(path, allow_pickle=False)
            if pixels.ndim == 3 and pixels.shape[2] < min(pixels.shape[:2]):
                pixels = pixels.transpose(2, 0, 1)
        elif path.suffix.lower() == ".png":
            with Image.open(path) as image:
                pixels = np.asarray(image)
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        else:
            pixels = _raster(path)
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error
    if pixels.ndim != 3:
        raise UnreadableFileError(
            path, f"has the shape {pixels.shape}", "A date has bands, rows and columns."
        )
    return pixels.astype(np.float32)


def _raster(path: Path) -> np.ndarray:
    import rasterio  # here, so that series in other files need no GDAL
    from rasterio.errors import RasterioError

    from terralapse.grid._gdal import gdal_env

    try:
        with gdal_env(), rasterio.open(path) as file:
            return file.read()
    except RasterioError as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error
