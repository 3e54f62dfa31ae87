"""Accuracy and time of shift measurement beside scikit-image, on known shifts of real imagery.

    python benchmarks/coregister.py

The 0.6 m example image before is averaged to 2.4 m at offsets of whole source pixels, which gives shifts of
quarter pixels that are exactly known. scikit-image (`pip install scikit-image`) is compared when installed;
arosics needs the GDAL bindings for Python, which no package index carries ready to use, and is not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

from terralapse.grid._phase import measure, taper
from terralapse.grid._positions import Target, compose
from terralapse.grid._shiftmodel import Correction
from terralapse.grid.coregister import coregister_dates
from terralapse.grid.scene import ArrayScene, Block, SceneInfo
from terralapse.grid.warp import warp
from terralapse.sensors import UNKNOWN, Band, Unit

TILES = Path(__file__).resolve().parents[1] / "examples/joplin/before"
FACTOR, SIZE = 4, 480
OFFSETS = [(1, 2), (-3, 1), (5, -6), (9, 14), (-22, 7), (60, -48)]
Shift = tuple[float, float]


def image() -> np.ndarray:
    """The four example tiles as one band of 2048 x 2048."""
    whole = np.zeros((2048, 2048), np.float32)
    tiles = []
    for path in sorted(TILES.glob("*.tif")):
        with rasterio.open(path) as file:
            tiles.append((file.transform.c, file.transform.f, file.read(1)))
    west, north = min(t[0] for t in tiles), max(t[1] for t in tiles)
    for x, y, data in tiles:
        row, col = round((north - y) / 0.6), round((x - west) / 0.6)
        whole[row : row + 1024, col : col + 1024] = data
    return whole


def averaged(source: np.ndarray, row: int, col: int) -> np.ndarray:
    cut = source[64 + row : 64 + row + SIZE * FACTOR, 64 + col : 64 + col + SIZE * FACTOR]
    return cut.reshape(SIZE, FACTOR, SIZE, FACTOR).mean(axis=(1, 3))


def conditions() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    rng = np.random.default_rng(0)
    rough = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 25)
    cloud = rough > np.quantile(rough, 0.8)
    white = 230 + 30 * gaussian_filter(rng.normal(size=(SIZE, SIZE)), 2)
    noise = rng.normal(0, 20, (SIZE, SIZE))
    return {
        "clean": lambda a: a,
        "gain 0.5, offset 60": lambda a: 0.5 * a + 60,
        "noise of 20 grey values": lambda a: a + noise,
        "20 % cloud, masked": lambda a: np.where(cloud, np.nan, a),
        "20 % cloud, not masked": lambda a: np.where(cloud, white, a),
        "contrast inverted": lambda a: 255 - a,
    }


def whole_scene(before: np.ndarray, after: np.ndarray) -> Shift | None:
    """All of `terralapse.grid.coregister`: blocks, voting, model, correction and the measurement after it."""
    grid = GeoBox(before.shape, Affine(2.4, 0, 6e5, 0, -2.4, 5e6), "EPSG:32615")
    info = SceneInfo("x", "memory:x", UNKNOWN, (Band("b1", "b1"),), Unit.RAW, grid)
    scenes = [ArrayScene(info, a[None]) for a in (before, after)]

    def read(to_grid: Affine, shape: tuple[int, int], move: Correction) -> tuple[Block, Block]:
        moves = Affine.identity(), move.affine
        fields = None, move.field
        one, two = (
            warp(s, Target(compose(grid.affine, compose(m, to_grid)), grid.crs, shape, f, to_grid))
            for s, m, f in zip(scenes, moves, fields, strict=True)
        )
        return one, two

    return coregister_dates(read, before.shape).shift


def one_block(before: np.ndarray, after: np.ndarray) -> Shift | None:
    found = measure(before.astype(np.float32), after.astype(np.float32))
    return None if found is None or not found[0].reliable else (found[0].dy, found[0].dx)


def methods() -> dict[str, Callable[[np.ndarray, np.ndarray], Shift | None]]:
    ours = {"terralapse, one block": one_block, "terralapse, blocks and model": whole_scene}
    try:
        from skimage.registration import phase_cross_correlation
    except ImportError:
        print("scikit-image is not installed; only terralapse is measured.\n")
        return ours

    def plain(before: np.ndarray, after: np.ndarray, **options: object) -> Shift:
        filled = [np.where(np.isfinite(a), a, np.nanmean(a)) for a in (before, after)]
        shift, _, _ = phase_cross_correlation(*filled, upsample_factor=100, **options)
        return -float(shift[0]), -float(shift[1])

    def on_edges(before: np.ndarray, after: np.ndarray) -> Shift:
        edges = []
        for a in (before, after):
            e = gaussian_gradient_magnitude(np.where(np.isfinite(a), a, np.nanmean(a)), 1.0)
            edges.append((e - e.mean()) * taper(e.shape))
        shift, _, _ = phase_cross_correlation(*edges, upsample_factor=100, normalization=None)
        return -float(shift[0]), -float(shift[1])

    return ours | {
        "scikit-image, default": plain,
        "scikit-image, not normalised": lambda a, b: plain(a, b, normalization=None),
        "scikit-image, edges and Hann": on_edges,
    }


def main() -> None:
    source = image()
    before = averaged(source, 0, 0)
    tools = methods()
    print(
        f"Largest error in pixels over {len(OFFSETS)} known shifts of up to {60 / FACTOR:g} px, "
        f"{SIZE} x {SIZE} px:\n"
    )
    print("| condition | " + " | ".join(tools) + " |\n|---" + "|---" * len(tools) + "|")
    seconds: dict[str, list[float]] = {name: [] for name in tools}
    for condition, disturb in conditions().items():
        cells = []
        for name, tool in tools.items():
            errors = []
            for row, col in OFFSETS:
                after = disturb(averaged(source, row, col))
                start = time.process_time()
                found = tool(before, after)
                seconds[name].append(time.process_time() - start)
                truth = np.array([-row / FACTOR, -col / FACTOR])
                errors.append(np.inf if found is None else float(np.abs(np.array(found) - truth).max()))
            cells.append(f"{max(errors):.3f}" if np.isfinite(max(errors)) else "not claimed")
        print(f"| {condition} | " + " | ".join(cells) + " |")
    times = " | ".join(f"{1000 * statistics.median(s):.0f}" for s in seconds.values())
    print(f"| CPU time, ms (median) | {times} |")


if __name__ == "__main__":
    main()
