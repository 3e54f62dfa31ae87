"""HRSCD: aerial images of two French departments, 2005 or 2006 and 2012, with land cover and change.

`images/<2006|2012>/<D14|D35>/<site>`, `labels/<2006|2012>/<D>/<site>`, `labels/change/<D>/<site>`, where a
site is a scene `<site>.tif` or a folder of tiles `<site>/<row>_<column>.tif`; lists of sites, by the name of
their earlier image, in `splits/train191.txt`, `val50.txt` and `test50.txt`. All labels, those of 2006 too,
have the name of the later image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.pictures import RGB
from terralapse.data.samples import SemanticPair
from terralapse.data.sites import Area, changes_of, raster_size, read_raster, sites_of
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import BINARY_CHANGE, HRSCD_CHANGE, ClassScheme
from terralapse.sensors import Unit

LAND = 5  # classes, stored as 1 to 5; 0 is no information


class Hrscd:
    """Tiles of pairs with the map of the earlier date, in the order of the list and of rows and columns.

    Args:
        root: the folder of the data set.
        split: a list in `splits`, with or without the number of its sites; None takes every site.
        semantic: give classes of both dates where something changed (`SemanticPair`), not change alone.
        tile: side of the tiles that scenes are read in; the edge of a scene that does not fill one is left
            out, as by MapFormer. Tiles that are stored stay as they are.
        gsd, title: as for other readers.

    Raises:
        FileMissingError: a folder, a list or a file is missing.
        SettingError: `tile` is no size.
        UnreadableFileError: (when a pair is read) sizes or values are wrong.
    """

    bands, unit = RGB, Unit.RGB255

    def __init__(
        self,
        root: Path | str,
        split: str | None = None,
        semantic: bool = False,
        tile: int = 500,
        gsd: float = 0.5,
        title: str = "HRSCD",
    ) -> None:
        self.root, self.semantic, self.gsd, self.tile = Path(root), semantic, gsd, tile
        self.title = title if split is None else f"{title} {split}"
        self.scheme: ClassScheme = HRSCD_CHANGE if semantic else BINARY_CHANGE
        if tile < 1:
            raise SettingError(f"tile={tile}", "is no size", "Give pixels, such as 500.")
        earlier = self.root / "images" / "2006"
        if not earlier.is_dir():
            raise FileMissingError(earlier, "is not there", "Give the folder with images and labels.")
        sites = sites_of(self.root, split) if split else sorted(p.stem for p in earlier.glob("D*/*"))
        self._tiles = [(site, tile) for site in sites for tile in self._of_site(earlier, site)]
        self.names = [
            f"{site} {t}" if isinstance(t, str) else f"{site} {t[0] // tile}_{t[1] // tile}"
            for site, t in self._tiles
        ]

    def _of_site(self, earlier: Path, site: str) -> list[str] | list[Area]:
        """Names of the stored tiles of a site, or the areas of its scene."""
        path = earlier / _department(site) / site
        if path.is_dir():
            return sorted((p.stem for p in path.glob("*.tif")), key=_place)
        height, width = raster_size(path.with_name(f"{site}.tif"))
        side = self.tile
        return [
            (row, col, side, side)
            for row in range(0, height - side + 1, side)
            for col in range(0, width - side + 1, side)
        ]

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> LabelledPair | SemanticPair:
        site, tile = self._tiles[index]
        later = _later(site)
        images = [self._read(f"images/{y}", s, tile) for y, s in (("2006", site), ("2012", later))]
        first, second = (self._classes(f"labels/{year}", later, tile) for year in ("2006", "2012"))
        change = self._plane("labels/change", later, tile, 1)
        if len({i.shape[1:] for i in (*images, first[None], second[None], change[None])}) > 1:
            raise UnreadableFileError(
                self.names[index], "has images and labels of several sizes", "Complete the data set."
            )
        pixels = np.stack([i[:3].astype(np.float32) for i in images])
        name, given = self.names[index], (self.gsd, self.bands, self.unit, first)
        if not self.semantic:
            return LabelledPair(name, pixels, change, *given)
        return SemanticPair(name, pixels, changes_of(first, change), changes_of(second, change), *given)

    def __iter__(self) -> Iterator[LabelledPair | SemanticPair]:
        return (self[i] for i in range(len(self)))

    def _path(self, folder: str, site: str, tile: str | Area) -> Path:
        place = self.root / folder / _department(site)
        return place / site / f"{tile}.tif" if isinstance(tile, str) else place / f"{site}.tif"

    def _read(self, folder: str, site: str, tile: str | Area) -> np.ndarray:
        return read_raster(self._path(folder, site, tile), None if isinstance(tile, str) else tile)

    def _plane(self, folder: str, site: str, tile: str | Area, highest: int) -> np.ndarray:
        """One band uint8 [H, W] of 0 to `highest`."""
        plane = self._read(folder, site, tile)[0]
        if plane.max(initial=0) > highest or plane.min(initial=0) < 0:
            raise UnreadableFileError(
                self._path(folder, site, tile),
                f"holds {plane.max()}, and its classes are 0 to {highest}",
                "Check the data set's version.",
            )
        return plane.astype(np.uint8)

    def _classes(self, folder: str, site: str, tile: str | Area) -> np.ndarray:
        """uint8 [H, W] of 0..4 and `IGNORE`."""
        stored = self._plane(folder, site, tile, LAND)
        return np.where(stored == 0, IGNORE, stored - 1).astype(np.uint8)


def _department(site: str) -> str:
    return f"D{site[:2]}"


def _later(site: str) -> str:
    """The name of the later image of a site: the year is its second part."""
    parts = site.split("-")
    return "-".join([parts[0], "2012", *parts[2:]])


def _place(tile: str) -> tuple[int, ...]:
    """Row and column of a stored tile."""
    return tuple(int(n) for n in tile.split("_"))
