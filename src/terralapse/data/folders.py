"""The layout of most change data sets: a folder for each date, and one or two folders of labels.

`<root>/[<split>/]{<before>,<after>,<label>}/<name>.<png, jpg or tif>`, one name for all files of a pair. The
folders have many names (A and B, T1 and T2, im1 and im2, ...); see `DATES`, `CHANGE` and `CLASSES`. A split
is a folder, or a list of names in `<split>.txt`, `<split>_list.txt` or `list/<split>.txt` at the root; where
there are both, the list chooses among the files of the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from terralapse.data.pairs import LabelledPair
from terralapse.data.pictures import (
    RGB,
    SUFFIXES,
    files_of,
    read_binary,
    read_classes,
    read_rgb,
    same_size,
)
from terralapse.data.samples import SemanticPair
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import BINARY_CHANGE, ClassScheme
from terralapse.sensors import Unit

# Names are compared without regard to case. The folders of a pair of dates have names of one line.
DATES = (
    ("A", "B"),
    ("T1", "T2"),
    ("time1", "time2"),
    ("im1", "im2"),
    ("image1", "image2"),
    ("pre", "post"),
    ("before", "after"),
)
CHANGE = ("label", "labels", "GT", "GT_CD", "OUT", "mask", "masks", "change")
CLASSES = (("label1", "label2"), ("labelA", "labelB"), ("GT_T1", "GT_T2"), ("label_A", "label_B"))
MOST_NAMED = 20  # files in one error
LISTS = ("list/{}.txt", "{}_list.txt", "{}.txt", "list/{}_list.txt")


class _Pairs:
    """The names and files of a split: what the binary and the semantic reader share."""

    unit = Unit.RGB255
    bands = RGB

    def __init__(self, root: Path | str, split: str | None, gsd: float, title: str) -> None:
        self.split, self.gsd = split, gsd
        self.title = title if split is None else f"{title} {split}"
        self.root, self._listed = _split_of(Path(root), split)
        self._folders = _subfolders(self.root)
        before, after = self._pair_of(DATES, "the two dates")
        self._before, self._after = self._files(before), self._files(after)
        for one, other, folder in ((self._before, self._after, after), (self._after, self._before, before)):
            _refuse_missing(
                [folder / one[n].name for n in sorted(one.keys() - other.keys())],
                "has a partner on the other date only",
            )

    def _pair_of(self, names: tuple[tuple[str, str], ...], what: str) -> tuple[Path, Path]:
        """The one pair of folders of `names` that is there."""
        found = [
            (one, two) for one, two in names if one.lower() in self._folders or two.lower() in self._folders
        ]
        known = ", ".join(f"{one} and {two}" for one, two in names)
        if not found:
            raise FileMissingError(
                self.root / names[0][0],
                f"is not there, nor any other folder for {what}",
                f"Give a folder that holds one of {known}, or name a split that does.",
            )
        if len(found) > 1:
            several = "; ".join(f"{one} and {two}" for one, two in found)
            raise SettingError(
                str(self.root), f"has several folders for {what} ({several})", "Keep one pair of them."
            )
        for name in found[0]:
            if name.lower() not in self._folders:
                raise FileMissingError(
                    self.root / name, "is not there, only its partner is", f"Give {what} as {known}."
                )
        one, two = found[0]
        return self._folders[one.lower()], self._folders[two.lower()]

    def _files(self, folder: Path) -> dict[str, Path]:
        """The files of a folder that the split's list names, or all."""
        files = files_of(folder)
        if self._listed is None:
            return files
        path, names = self._listed
        _refuse_missing([folder / n for n in names if n not in files], f"is in {path.name} and not there")
        return {n: files[n] for n in names}


class BiTemporal(_Pairs):
    """Pairs with a binary label, by name, in the order of the names. A pair without a label is left out and
    its name kept in `unlabelled`.

    Args:
        root: the folder of the data set.
        split: a folder or a list in `root`; None when `root` holds the folders of the dates itself.
        gsd: pixel size in metres, NaN where it is not known.
        title: for tables.
        threshold: for masks that hold more than two values; see `pictures.read_binary`.

    Raises:
        FileMissingError: a folder is missing, a listed file is, or an image has no partner on the other date.
        SettingError: the folder holds two pairs of dates.
        UnreadableFileError: (when a pair is read) files of several sizes, or a label that is no mask.
    """

    scheme = BINARY_CHANGE

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        gsd: float = float("nan"),
        title: str = "pairs",
        threshold: int | None = None,
    ) -> None:
        super().__init__(root, split, gsd, title)
        self.threshold = threshold
        found = [self._folders[n.lower()] for n in CHANGE if n.lower() in self._folders]
        if not found:
            raise FileMissingError(
                self.root / CHANGE[0],
                "is not there, nor any other folder for the change",
                f"Give a folder that holds one of {', '.join(CHANGE)}, or name a split that does.",
            )
        if len(found) > 1:
            raise SettingError(
                str(self.root),
                f"has several folders for the change ({', '.join(f.name for f in found)})",
                "Keep one of them.",
            )
        labels = files_of(found[0])
        self.unlabelled = sorted(self._before.keys() - labels.keys())
        self.names = sorted(self._before.keys() & labels.keys())
        self._labels = labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledPair:
        name = self.names[index]
        before, after = read_rgb(self._before[name]), read_rgb(self._after[name])
        label = read_binary(self._labels[name], self.threshold)
        same_size(self._labels[name], label, before, after)
        return LabelledPair(name, np.stack([before, after]), label, self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[LabelledPair]:
        return (self[i] for i in range(len(self)))


class SemanticBiTemporal(_Pairs):
    """Pairs with the class of each changed place at both dates, as class ids or as colours of `scheme`.

    A binary label beside them is not read: a place has changed where it has a class.

    Args:
        scheme: what the ids or the colours mean; value 0 is "unchanged".
        root, split, gsd, title: as for `BiTemporal`.

    Raises:
        as `BiTemporal`; a pair without both labels is a FileMissingError.
    """

    def __init__(
        self,
        root: Path | str,
        split: str | None,
        scheme: ClassScheme,
        gsd: float = float("nan"),
        title: str = "pairs",
    ) -> None:
        super().__init__(root, split, gsd, title)
        self.scheme = scheme
        folders = self._pair_of(CLASSES, "the classes of the two dates")
        self._labels = [files_of(f) for f in folders]
        self.names = sorted(self._before)
        for files, folder in zip(self._labels, folders, strict=True):
            _refuse_missing(
                [folder / self._before[n].name for n in self.names if n not in files],
                "is not there, and its images are",
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> SemanticPair:
        name = self.names[index]
        images = [read_rgb(self._before[name]), read_rgb(self._after[name])]
        labels = [read_classes(files[name], self.scheme) for files in self._labels]
        for files, label in zip(self._labels, labels, strict=True):
            same_size(files[name], label, *images)
        return SemanticPair(name, np.stack(images), labels[0], labels[1], self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[SemanticPair]:
        return (self[i] for i in range(len(self)))


def _refuse_missing(paths: list[Path], fault: str) -> None:
    """One error that names all files that are missing, so that they can be mended in one go."""
    if not paths:
        return
    if len(paths) > 1:
        rest = f" and {len(paths) - MOST_NAMED} more" if len(paths) > MOST_NAMED else ""
        names = ", ".join(p.name for p in paths[:MOST_NAMED])
        fault = f"{fault}, as {len(paths)} files in all: {names}{rest}"
    raise FileMissingError(paths[0], fault, "Complete the folder, or take the names out of the list.")


def _subfolders(folder: Path) -> dict[str, Path]:
    return {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}


def _split_of(root: Path, split: str | None) -> tuple[Path, tuple[Path, list[str]] | None]:
    """The folder of a split, and the list of its names with the file it stands in, where there is one."""
    if not root.is_dir():
        raise FileMissingError(root, "is not there", "Give the folder of the data set.")
    if split is None:
        return root, None
    folder = _subfolders(root).get(split.lower())
    path = next((root / n.format(split) for n in LISTS if (root / n.format(split)).is_file()), None)
    if path is None:
        if folder is None:
            tried = ", ".join(n.format(split) for n in LISTS)
            raise FileMissingError(
                root / split, "is not there", f"A split is a folder, or a list in one of {tried}."
            )
        return folder, None
    names = read_list(path)
    return folder or root, (
        path,
        [Path(n).stem if n.lower().endswith(SUFFIXES) else Path(n).name for n in names],
    )


def read_list(path: Path) -> list[str]:
    """The lines of a list of files, without blank ones.

    Raises:
        FileMissingError: it is not there, or names nothing.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give the list of the split.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise FileMissingError(path, "names no file", "Give the list of the split.")
    return names
