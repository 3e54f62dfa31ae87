"""A map of classes of the earlier date, laid over an aligned pair as one more band.

The band is named `map`, holds the same class ids at both dates, and 255 where the map says nothing: it is
never NaN, so that it decides nothing about which pixels can be compared. A map file keeps its own place on
the ground; where coregistration moved the earlier image, the map is not moved with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.errors import FileMissingError, ModelInputError, UnreadableFileError
from terralapse.grid._positions import Target, compose
from terralapse.grid._resample import Kernel
from terralapse.grid._stack import Layer, StackScene
from terralapse.grid.pair import Pair, PairBlock
from terralapse.grid.raster import open_raster
from terralapse.grid.scene import SceneInfo, Window
from terralapse.grid.sources import sha256_of
from terralapse.grid.warp import warp
from terralapse.labels import ClassScheme
from terralapse.sensors import UNKNOWN, Band, Unit

MAP_BAND = Band("map", "map")
NOTHING = 255  # what the map does not say
SIDE = 1024  # pixels of the blocks that a file is checked in
MOST_BLOCKS = 256  # of them; a larger file is checked in blocks spread over it, and again as it is read


class MapSource(Protocol):
    """Where the classes come from."""

    def ids(self, grid: GeoBox, before: np.ndarray, pair: Pair) -> np.ndarray:
        """Class ids uint8 [H, W] on a grid, on which the earlier image of `pair` is `before` [C, H, W]."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run compares."""
        ...


class MapFile:
    """A raster of class ids, of any grid; taken by nearest neighbour. Thread-safe.

    Values are those of `scheme`; 255, the scheme's nodata, and the file's own nodata say nothing.

    Args:
        path: the file; of several bands the first would be a guess, so it has one.
        scheme: the classes.
        assume_crs, pixel_grid: as for the images, see `terralapse.grid.raster.open_file`.

    Raises:
        FileMissingError: there is no such file.
        UnreadableFileError: it has several bands.
        ModelInputError: it holds values that the scheme has not; lists them and the classes.
        and others of `open_raster`.
    """

    def __init__(
        self,
        path: Path | str,
        scheme: ClassScheme,
        *,
        assume_crs: str | None = None,
        pixel_grid: bool = False,
    ) -> None:
        self.path, self.scheme = Path(path), scheme
        if not self.path.is_file():
            raise FileMissingError(
                path, "the map of the earlier date is no file that exists", "Check the path."
            )
        raster = open_raster(self.path, assume_crs=assume_crs, pixel_grid=pixel_grid)
        bands = raster.profile["count"]
        if bands != 1:
            raise UnreadableFileError(
                path, f"has {bands} bands, and a map of classes has one", "Give the band with the class ids."
            )
        nodata = raster.profile["nodata"][0]
        info = SceneInfo(
            self.path.stem, str(path), UNKNOWN, (MAP_BAND,), Unit.RAW, raster.geobox, notes=raster.notes
        )
        self._scene = StackScene(info, [Layer(raster.handle, 1, nodata=nodata)])
        self._known = np.array([c.value for c in scheme.classes], np.float32)
        self._digest = sha256_of(self.path)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    @property
    def geobox(self) -> GeoBox:
        """The grid of the file."""
        return self._scene.info.geobox

    def _check(self) -> None:
        """Looks for strange values in the file, before anything else is done with it."""
        grid = self._scene.info.geobox
        blocks = [
            Window(row, col, SIDE, SIDE).clip(grid.shape.y, grid.shape.x)
            for row in range(0, grid.shape.y, SIDE)
            for col in range(0, grid.shape.x, SIDE)
        ]
        found: set[float] = set()
        for window in blocks[:: -(-len(blocks) // MOST_BLOCKS)]:
            found |= set(np.unique(self._scene.read(window).data).tolist())
        self._refuse(np.array(sorted(v for v in found if v == v)))

    def _refuse(self, values: np.ndarray) -> None:
        """Raises where a value is neither a class nor one that says nothing."""
        allowed = [*self._known.tolist(), float(NOTHING), float(self.scheme.nodata)]
        if np.isin(values, allowed).all():
            return
        shown = ", ".join(f"{v:g}" for v in values[:12]) + (", ..." if len(values) > 12 else "")
        classes = ", ".join(f"{c.value} {c.name}" for c in self.scheme.classes)
        raise ModelInputError(
            self.path,
            f"holds the values {shown}, and the classes of {self.scheme.slug} are {classes}",
            "Renumber the map to these classes, with 255 for what is none of them.",
        )

    def ids(self, grid: GeoBox, before: np.ndarray, pair: Pair) -> np.ndarray:
        return self.resampled(grid)

    def resampled(self, grid: GeoBox) -> np.ndarray:
        """Class ids uint8 [H, W] on a grid; 255 where the map says nothing."""
        target = Target(grid.affine, grid.crs, (grid.shape.y, grid.shape.x))
        data = warp(self._scene, target, kernel=Kernel.NEAREST).data[0]
        self._refuse(np.unique(data[np.isfinite(data)]))
        return np.where(np.isin(data, self._known), data, NOTHING).astype(np.uint8)

    def fingerprint(self) -> dict[str, Any]:
        return {"path": str(self.path), "sha256": self._digest, "classes": self.scheme.slug}

    def close(self) -> None:
        """Closes the file."""
        self._scene.close()


class PairWithMap(Pair):
    """An aligned pair with a map of the earlier date as its last band; `read` is as thread-safe as the
    pair's."""

    def __init__(self, pair: Pair, source: MapSource) -> None:
        self.pair, self.source = pair, source
        self.geobox, self.unit, self.notes = pair.geobox, pair.unit, pair.notes
        self.before, self.after = pair.before, pair.after
        self.bands = (*pair.bands, MAP_BAND)

    def read(self, window: Window) -> PairBlock:
        move = Affine.translation(window.col, window.row)
        grid = GeoBox((window.height, window.width), compose(self.geobox.affine, move), self.geobox.crs)
        return self._with_map(self.pair.read(window), grid)

    def preview(self, max_size: int, bands: Sequence[str] | None = None) -> tuple[PairBlock, GeoBox]:
        block, grid = self.pair.preview(max_size, bands)
        return (self._with_map(block, grid) if bands is None else block), grid

    def _with_map(self, block: PairBlock, grid: GeoBox) -> PairBlock:
        ids = self.source.ids(grid, block.images[0], self.pair).astype(np.float32)
        both = np.broadcast_to(ids, (2, 1, *ids.shape))
        return PairBlock(np.concatenate([block.images, both], axis=1), block.reason)

    def fingerprint(self) -> dict[str, Any]:
        return {**self.pair.fingerprint(), "map": self.source.fingerprint()}
