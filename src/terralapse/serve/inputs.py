"""The images that an analysis may be started on: what lies below the folders that the operator allowed.

An input is named `FOLDER/path/below/it`. The name is looked up in a listing, so that no name leads out of it;
links are passed over, and so is everything whose content is not an image of an allowed kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from terralapse.errors import TerralapseError
from terralapse.grid._safety import format_of

ALLOWED = frozenset({"GTiff", "PNG", "JPEG", "JP2OpenJPEG"})
_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2")
_DEEPEST = 3
_MOST = 5000


class Inputs:
    """What may be compared; listed anew each time, so that a file that is put there appears."""

    def __init__(self, folders: tuple[Path, ...]) -> None:
        self._folders = tuple(f.resolve() for f in folders)

    def all(self) -> dict[str, Path]:
        """Files by name, and folders that hold images (tiles of one date) by name."""
        found: dict[str, Path] = {}
        for number, folder in enumerate(self._folders, start=1):
            head = (
                folder.name
                if sum(f.name == folder.name for f in self._folders) == 1
                else f"{folder.name}-{number}"
            )
            for path in _images(folder, _DEEPEST):
                found[f"{head}/{path.relative_to(folder).as_posix()}"] = path
                if path.parent != folder:
                    found[f"{head}/{path.parent.relative_to(folder).as_posix()}"] = path.parent
                if len(found) >= _MOST:
                    return dict(sorted(found.items()))
        return dict(sorted(found.items()))

    def describe(self) -> list[dict[str, Any]]:
        """Name, title, kind (`image` or `tiles`) and bytes of each."""
        return [
            {
                "name": name,
                "title": name,
                "kind": "tiles" if path.is_dir() else "image",
                "bytes": None if path.is_dir() else path.stat().st_size,
            }
            for name, path in self.all().items()
        ]


def _images(folder: Path, deep: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                if deep:
                    yield from _images(Path(entry.path), deep - 1)
            elif entry.name.lower().endswith(_SUFFIXES) and _allowed(Path(entry.path)):
                yield Path(entry.path)


def _allowed(path: Path) -> bool:
    try:
        return format_of(path) in ALLOWED
    except TerralapseError:
        return False
