"""Many images of one period as one: at each pixel and band the median of those that are clear there.

Items of one day are one look at the ground: tiles of a pass overlap, and what was seen once must not count
twice. Each look is resampled once onto the grid of the composite, block by block, and a block is small enough
for all looks to lie in memory together.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.errors import SettingError
from terralapse.grid._gdal import gdal_env
from terralapse.grid._positions import Target, compose
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.scene import Block, Note, Scene, SceneInfo, Window, reduce_block
from terralapse.grid.warp import warp
from terralapse.labels import SceneMask
from terralapse.sensors import Band, Unit

MOST_ITEMS = 200  # of one composite
BUDGET = 128 << 20  # bytes of one block of all looks and bands
SIDES = (512, 256, 128, 64, 32)
LEAST = 3  # looks: the fewest among which one outlier is outvoted
READERS = 8  # threads

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def median(data: np.ndarray) -> np.ndarray:
    """Medians over the first axis without NaN, as `numpy.nanmedian`; NaN where there is nothing else.

    Args:
        data: float [T, ...]; it is sorted in place, so that no second stack is needed.
    """
    count = np.isfinite(data).sum(axis=0, keepdims=True)
    data.sort(axis=0)  # NaN comes last
    low = np.take_along_axis(data, np.maximum(count - 1, 0) // 2, axis=0)[0]
    high = np.take_along_axis(data, np.minimum(count // 2, len(data) - 1), axis=0)[0]
    return np.where(count[0] % 2 == 1, low, (low + high) / 2)


def side_of(looks: int, bands: int) -> int:
    """The side of a block whose looks and bands stay within `BUDGET`; it does not change the result."""
    fitting = [s for s in SIDES if s * s * looks * bands * 4 <= BUDGET]
    return fitting[0] if fitting else SIDES[-1]


def in_threads(
    work: Callable[[_In], _Out], things: Sequence[_In], pool: ThreadPoolExecutor | None = None
) -> list[_Out]:
    """`work` of each thing, in their order whatever finishes first; of several faults the first is raised.

    Args:
        work: reads files.
        things: what it is called with.
        pool: to do it in; None for one that ends with the call.
    """

    def one(thing: _In) -> _Out:
        with gdal_env():
            return work(thing)

    if pool is not None:
        return list(pool.map(one, things))
    with ThreadPoolExecutor(min(READERS, len(things)) or 1, thread_name_prefix="items") as own:
        return list(own.map(one, things))


def open_all(sources: Sequence[str], opening: Callable[[str], Scene]) -> list[Scene]:
    """Several scenes side by side; when one cannot be opened, the others are closed."""
    opened: list[Scene] = []  # appending is atomic

    def one(source: str) -> Scene:
        scene = opening(source)
        opened.append(scene)
        return scene

    try:
        return in_threads(one, sources)
    except BaseException:
        for scene in opened:
            scene.close()
        raise


class MedianScene(Scene):
    """The median of several images on one grid. `read` is thread-safe; a block is computed once, when it is
    first needed, and kept on disk until the scene is closed.

    A pixel with fewer than `least` clear looks is masked: as NODATA where there were some, by the most
    telling reason of its looks where there was none.

    Args:
        scenes: of one place and period; closed with this one.
        grid: what they are put on.
        least: clear looks that a pixel needs.
        path: of the list that names them.

    Raises:
        SettingError: more than `MOST_ITEMS` scenes, or fewer than one look asked for.
        BandError: they have no band in common, or different units.
    """

    def __init__(self, scenes: Sequence[Scene], grid: GeoBox, least: int, path: Path) -> None:
        if len(scenes) > MOST_ITEMS:
            raise SettingError(
                path, f"names {len(scenes)} images (at most {MOST_ITEMS})", "Shorten the period."
            )
        if least < 1:
            raise SettingError(path, f"asks for {least} clear looks", "Give 1 or more.")
        whole = MosaicScene(scenes, path.stem, str(path), several_dates=True)
        self.least = least
        self._scenes = list(scenes)
        self._looks = _looks(scenes)
        self._scratch = tempfile.TemporaryDirectory(prefix="terralapse-median-")
        self._computing = threading.Lock()
        # Each thread keeps its files open, so that the same threads read all blocks.
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="looks")
        days = sorted(s.info.time for s in scenes if s.info.time is not None)
        span = f", {days[0]:%Y-%m-%d} to {days[-1]:%Y-%m-%d}" if days else ""
        text = (
            f"Medians of {len(self._looks)} looks ({len(scenes)} images{span}); a pixel needs {least} clear "
            "ones. The middle one dates the composite."
        )
        notes = [n for n in whole.info.notes if n.code != "several-dates"]
        notes.append(Note("info", "median-of-looks", text))
        self.info = replace(whole.info, geobox=grid, notes=notes)

    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        names = tuple(self.info.bands[i].name for i in self.band_indices(bands))
        return self._read(window, names, decimation, counts=False)

    def counts(self, bands: Sequence[str]) -> Scene:
        """The number of clear looks at each pixel, for medians of these bands, as a scene of one band."""
        return _Counts(self, tuple(bands))

    def close(self) -> None:
        self._pool.shutdown()
        for scene in self._scenes:
            scene.close()
        self._scratch.cleanup()

    def _read(self, window: Window, names: tuple[str, ...], decimation: int, *, counts: bool) -> Block:
        """Medians, or counts as one band, of a window; strips of rows keep a decimated read small."""
        if decimation > 1:
            rows = max(1, SIDES[0] // decimation) * decimation
            strips = [
                reduce_block(
                    self._read(replace(window, row=window.row + r, height=h), names, 1, counts=counts),
                    decimation,
                )
                for r in range(0, window.height, rows)
                if (h := min(rows, window.height - r))
            ]
            return Block(
                np.concatenate([s.data for s in strips], axis=1), np.concatenate([s.mask for s in strips])
            )
        channels = 1 if counts else len(names)
        data = np.full((channels, window.height, window.width), np.nan, np.float32)
        mask = np.full((window.height, window.width), int(SceneMask.OUTSIDE), np.uint8)
        shape = self.info.geobox.shape
        inside = window.clip(shape.y, shape.x)
        for block in _blocks(inside, side_of(len(self._looks), len(names)), (shape.y, shape.x)):
            values, codes, clear = self._block(block, names)
            own = _common(block, inside)
            there = Window(own.row - window.row, own.col - window.col, own.height, own.width).slices
            here = Window(own.row - block.row, own.col - block.col, own.height, own.width).slices
            data[:, there[0], there[1]] = clear[None, here[0], here[1]] if counts else values[:, *here]
            mask[there] = SceneMask.VALID if counts else codes[here]
        return Block(data, mask)

    def _block(self, block: Window, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Medians float32 [C, h, w], codes uint8 [h, w] and clear looks uint8 [h, w] of one block."""
        which = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
        path = Path(self._scratch.name) / f"{which}_{block.row}_{block.col}.npz"
        if not path.exists():
            with self._computing:  # one stack at a time, so that memory is that of one
                if not path.exists():
                    values, codes, clear = self._compute(block, names)
                    part = path.with_suffix(".part")
                    with part.open("wb") as file:
                        np.savez(file, values=values, codes=codes, clear=clear)
                    part.rename(path)
        with np.load(path, allow_pickle=False) as kept:
            return kept["values"], kept["codes"], kept["clear"]

    def _compute(self, block: Window, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        to_grid = Affine.translation(block.col, block.row)
        affine = compose(self.info.geobox.affine, to_grid)
        target = Target(affine, self.info.geobox.crs, (block.height, block.width), None, to_grid)
        stack = np.empty((len(self._looks), len(names), block.height, block.width), np.float32)
        codes = np.empty((len(self._looks), block.height, block.width), np.uint8)

        def one(number: int) -> None:
            found = warp(self._looks[number], target, names)
            stack[number], codes[number] = found.data, found.mask

        in_threads(one, range(len(self._looks)), self._pool)
        clear = (codes == SceneMask.VALID).sum(axis=0).astype(np.uint8)
        stack[np.broadcast_to((codes != SceneMask.VALID)[:, None], stack.shape)] = np.nan
        values = median(stack)
        few = np.where(clear > 0, np.uint8(SceneMask.NODATA), codes.max(axis=0))
        mask = np.where(clear >= self.least, np.uint8(SceneMask.VALID), few)
        values[:, mask != SceneMask.VALID] = np.nan
        return values, mask, clear


class _Counts(Scene):
    """See `MedianScene.counts`."""

    def __init__(self, scene: MedianScene, names: tuple[str, ...]) -> None:
        band = Band("looks", "looks")
        self.info: SceneInfo = replace(scene.info, bands=(band,), unit=Unit.RAW, dtype="uint8")
        self._scene, self._names = scene, names

    def read(self, window: Window, bands: Sequence[str] | None = None, decimation: int = 1) -> Block:
        self.band_indices(bands)
        return self._scene._read(window, self._names, decimation, counts=True)


def _looks(scenes: Sequence[Scene]) -> list[Scene]:
    """Scenes of one day as one, the first of them first; days in order, what has no date by itself."""
    days: dict[str, list[Scene]] = {}
    for number, scene in enumerate(scenes):
        time = scene.info.time
        days.setdefault(f"~{number}" if time is None else f"{time:%Y%m%d}", []).append(scene)
    return [
        group[0] if len(group) == 1 else MosaicScene(group, day, group[0].info.uri, several_dates=True)
        for day, group in sorted(days.items())
    ]


def _blocks(inside: Window, side: int, shape: tuple[int, int]) -> Iterator[Window]:
    """Squares of the grid, cut at its end, that a window meets."""
    if not (inside.height and inside.width):
        return
    for row in range(inside.row // side * side, inside.row + inside.height, side):
        for col in range(inside.col // side * side, inside.col + inside.width, side):
            yield Window(row, col, side, side).clip(*shape)


def _common(a: Window, b: Window) -> Window:
    """What two windows share."""
    row, col = max(a.row, b.row), max(a.col, b.col)
    return Window(
        row,
        col,
        min(a.row + a.height, b.row + b.height) - row,
        min(a.col + a.width, b.col + b.width) - col,
    )
