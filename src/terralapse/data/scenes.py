"""Sets for the classification of scenes: a folder of images for each class, in a folder or in a zip.

`<root>/<class>/<file>` (all images), `<root>/<split>/<class>/<file>`, `<root>/<split>.zip` with
`<class>/<file>` in it, or a list `<split>.txt` with lines `<class>/<file>` that chooses among the images of
`<root>`. EuroSAT, UC Merced, AID and NWPU-RESISC45 are released as `<class>/<file>`.

The order of classes is alphabetical by folder unless a list of classes is given. The lists that are in common
use have a random order, and checkpoints follow it: the scheme of a data set says which order it has.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from terralapse.data.folders import read_list
from terralapse.data.pictures import RGB, SUFFIXES, read_rgb
from terralapse.data.samples import ClassifiedImage
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import SCHEMES, ClassScheme, numbered
from terralapse.sensors import Unit


class Scenes:
    """Images of one class each, in the order of `<class>/<file>`, or in that of the list.

    A zip is read into memory once; its images are decoded when they are asked for.

    Args:
        root: the folder of the data set.
        split: a folder, a zip or a list by this name; None for every image in `root`.
        scheme: the classes; names of folders are compared without regard to case, blanks, `_` and `-`.
        gsd: pixel size in metres, NaN where it differs from image to image.
        title: for tables.
        lists: the folder of `<split>.txt` (and of `cls_names.txt`), if it is not `root`.
        classes: a file with one class a line, whose order the values follow; default: `cls_names.txt` in
            `lists`, where that is given and holds one, else the order of `scheme`. An order that a scheme of
            `terralapse.labels` has gives that scheme.

    Raises:
        FileMissingError: folder, zip, list or a listed image is missing.
        SettingError: the list of classes is not the classes of the scheme.
        UnreadableFileError: a folder that is no class.
    """

    bands = RGB
    unit = Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None,
        scheme: ClassScheme,
        gsd: float = float("nan"),
        title: str = "scenes",
        lists: Path | str | None = None,
        classes: Path | str | None = None,
    ) -> None:
        self.root, self.gsd = Path(root), gsd
        self.title = title if split is None else f"{title} {split}"
        if not self.root.is_dir():
            raise FileMissingError(self.root, "is not there", "Give the folder of the data set.")
        if classes is None and lists is not None and (Path(lists) / "cls_names.txt").is_file():
            classes = Path(lists) / "cls_names.txt"
        self.scheme = scheme if classes is None else _reordered(scheme, Path(classes))
        self._values = {_plain(c.name): c.value for c in self.scheme.classes}
        self._packed: dict[str, bytes] = {}
        self._folder = self.root
        members = self._members(split, Path(lists) if lists is not None else self.root)
        self._labels = [self._value(m) for m in members]
        self.names = members

    def _members(self, split: str | None, lists: Path) -> list[str]:
        """The images of the split as `<class>/<file>`."""
        if split is None:
            return _below(self.root)
        if (self.root / split).is_dir():
            self._folder = self.root / split
            return _below(self._folder)
        if (archive := self.root / f"{split}.zip").is_file():
            try:
                with zipfile.ZipFile(archive) as opened:
                    images = [n for n in sorted(opened.namelist()) if n.lower().endswith(SUFFIXES)]
                    self._packed = {n: opened.read(n) for n in images}
            except zipfile.BadZipFile as error:
                raise UnreadableFileError(archive, f"is no whole zip ({error})", "Copy it again.") from error
            self._folder = archive
            return images
        if not (lists / f"{split}.txt").is_file():
            raise FileMissingError(
                self.root / split,
                "is not there",
                f"A split is a folder, {split}.zip, or a list {split}.txt (`lists=` says where).",
            )
        members = read_list(lists / f"{split}.txt")
        for member in members:
            if not (self.root / member).is_file():
                raise FileMissingError(
                    self.root / member, f"is in {split}.txt and not there", "Complete the folder or the list."
                )
        return members

    def _value(self, member: str) -> int:
        folder = PurePosixPath(member).parent.name
        if _plain(folder) not in self._values:
            raise UnreadableFileError(
                self._folder / member,
                f"lies in {folder}, which is no class of {self.scheme.slug}",
                "Check that it is this data set.",
            )
        return self._values[_plain(folder)]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> ClassifiedImage:
        name = self.names[index]
        image = read_rgb(self._folder / name, self._packed.get(name))
        return ClassifiedImage(name, image, self._labels[index], self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[ClassifiedImage]:
        return (self[i] for i in range(len(self)))

    def labels(self) -> np.ndarray:
        """The class of every image, int64 [N], without reading one."""
        return np.array(self._labels, np.int64)


def _below(folder: Path) -> list[str]:
    """`<class>/<file>` of every image in the folders of `folder`."""
    found = sorted(
        p.relative_to(folder).as_posix() for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES
    )
    if not found:
        raise FileMissingError(folder, "holds no <class>/<image>", "Give the folder of the classes.")
    return found


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _reordered(scheme: ClassScheme, path: Path) -> ClassScheme:
    """The classes of a scheme in the order of a file."""
    known = {_plain(c.name): c.name for c in scheme.classes}
    listed = [_plain(line) for line in read_list(path)]
    if sorted(listed) != sorted(known):
        strange = sorted(set(listed) ^ set(known))
        raise SettingError(
            f"classes={path}",
            f"is not the classes of {scheme.slug}: {', '.join(strange) or 'repeated ones'}",
            "Give the list of this data set.",
        )
    names = [known[n] for n in listed]
    for other in SCHEMES.values():
        if names == [c.name for c in other.classes]:
            return other
    digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]  # two orders never share a slug
    title = f"{scheme.title.partition(',')[0]}, in the order of {path.name}"
    return numbered(f"{scheme.slug}-{digest}", title, " ".join(names))
