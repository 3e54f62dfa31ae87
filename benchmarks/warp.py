"""Speed and accuracy of warping beside GDAL (`rasterio.warp.reproject` on whole arrays in memory).

    python benchmarks/warp.py [side]

Four float32 bands from one UTM zone to the next, as given and with 0.05 % of the pixels missing. GDAL runs as
rasterio calls it by default, and with its transformer held to a hundredth of a pixel. Millions of band pixels
out per CPU second; position error against the projection library.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.warp import Resampling, reproject

from terralapse.grid.scene import ArrayScene, SceneInfo
from terralapse.grid.warp import read_onto
from terralapse.sensors import UNKNOWN, Band, Unit

BANDS = 4


def grids(side: int, pixel: float) -> tuple[GeoBox, GeoBox]:
    source = GeoBox((side, side), Affine(10, 0, 600_000, 0, -10, 5_000_000), "EPSG:32632")
    to_next = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    x, y = to_next.transform(600_000 + side * 5, 5_000_000 - side * 5)
    count = int(side * 10 / pixel)
    affine = Affine(pixel, 0, x - side * 5 + 3.3, 0, -pixel, y + side * 5 + 2.2)
    return source, GeoBox((count, count), affine, "EPSG:32633")


def gdal(data: np.ndarray, source: GeoBox, target: GeoBox, kernel: str, tolerance: float) -> np.ndarray:
    out = np.empty((len(data), *target.shape), np.float32)
    reproject(
        data,
        out,
        src_transform=source.affine,
        src_crs="EPSG:32632",
        dst_transform=target.affine,
        dst_crs="EPSG:32633",
        resampling=Resampling[kernel],
        src_nodata=np.nan,
        dst_nodata=np.nan,
        tolerance=tolerance,
    )
    return out


def scene(data: np.ndarray, geobox: GeoBox) -> ArrayScene:
    bands = tuple(Band(f"b{i + 1}", f"b{i + 1}") for i in range(len(data)))
    return ArrayScene(SceneInfo("x", "memory:x", UNKNOWN, bands, Unit.RAW, geobox), data)


def rate(job, pixels: int, repeats: int = 3) -> float:
    best = np.inf
    for _ in range(repeats):
        start = time.process_time()
        job()
        best = min(best, time.process_time() - start)
    return pixels / best / 1e6


def position_error(warped: np.ndarray, source: GeoBox, target: GeoBox) -> float:
    """Largest error of positions, when the bands held (x, y) of their own pixels."""
    row, col = np.mgrid[0 : target.shape.y, 0 : target.shape.x] + 0.5
    a = target.affine
    back = Transformer.from_crs("EPSG:32633", "EPSG:32632", always_xy=True)
    x, y = back.transform(a.a * col + a.c, a.e * row + a.f)
    s = source.affine
    x, y = (x - s.c) / s.a, (y - s.f) / s.e
    inner = (x > 3) & (x < source.shape.x - 3) & (y > 3) & (y < source.shape.y - 3)
    return float(max(np.abs(warped[0] - x)[inner].max(), np.abs(warped[1] - y)[inner].max()))


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    data = np.random.default_rng(0).normal(size=(BANDS, side, side)).astype(np.float32)
    holes = np.where(np.random.default_rng(1).random((side, side)) < 5e-4, np.float32(np.nan), data)
    print("| kernel | data | terralapse | GDAL, default | GDAL, 0.01 px | ratio |\n|---|---|---|---|---|---|")
    for kernel, pixel in (("nearest", 10.0), ("bilinear", 10.0), ("cubic", 10.0), ("average", 30.0)):
        source, target = grids(side, pixel)
        pixels = BANDS * target.shape.x * target.shape.y
        for name, values in (("complete", data), ("with holes", holes)):
            image = scene(values, source)
            ours = rate(lambda i=image, t=target, k=kernel: read_onto(i, t, resampling=k), pixels)
            theirs = [
                rate(lambda v=values, s=source, t=target, k=kernel, e=e: gdal(v, s, t, k, e), pixels)
                for e in (0.125, 0.01)
            ]
            rates = " | ".join(f"{r:.1f}" for r in (ours, *theirs, ours / theirs[0]))
            print(f"| {kernel} | {name} | {rates} |")
    source, target = grids(side, 10.0)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + np.float32(0.5)
    ramp = np.stack([x, y])
    ours = position_error(read_onto(scene(ramp, source), target).data, source, target)
    theirs = [
        position_error(gdal(ramp, source, target, "bilinear", e), source, target) for e in (0.125, 0.01)
    ]
    print(
        f"\nLargest position error in pixels: terralapse {ours:.4f}, GDAL {theirs[0]:.4f}, "
        f"held to 0.01: {theirs[1]:.4f}"
    )


if __name__ == "__main__":
    main()
