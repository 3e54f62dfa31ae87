"""Cloud-optimised GeoTIFFs: written from windows, never from a whole array, and whole or not at all.

GDAL's COG driver can only copy, so the windows go to a tiled GeoTIFF beside the target first. What matters
here and is easily got wrong: classes are never averaged in overviews, the nodata value is never averaged
into anything, the class table travels with the file, and a full disk is an error even where GDAL is silent.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError  # what `rasterio.shutil.copy` raises; it has no public name
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.shutil import copy as copy_raster
from rasterio.transform import Affine
from rasterio.windows import Window as GdalWindow

from terralapse._version import __version__
from terralapse.errors import OutputNotWritableError
from terralapse.grid._gdal import gdal_env
from terralapse.grid.scene import Window
from terralapse.labels import ClassScheme

Windows = Iterable[tuple[Window, np.ndarray]]
BLOCK = 512
_GDAL_FAILURES = (RasterioError, CPLE_BaseError)
# What the system and the TIFF library say when bytes do not reach the disk.
# The last is about blocks of a draft that GDAL wrote when its cache was full, without telling that they did
# not reach the disk.
_FULL = re.compile(
    r"No space left|File too large|quota|(Write|Seek) error|TIFF(Rewrite|Write)Directory|"
    r"TIFFFillTile:Read error"
)
_ENV = {"GDAL_PAM_ENABLED": "NO"}  # no .aux.xml beside the file
# No num_threads in the draft: GDAL's threaded writer swallows the error of a full disk.
_DRAFT = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": BLOCK,
    "blockysize": BLOCK,
    "compress": "zstd",
    "zstd_level": 1,
    "bigtiff": "if_safer",
}
# Level 4 takes half the time of 6, which is what GDAL takes, on probabilities, in files 7 % larger.
_COG = {"BLOCKSIZE": BLOCK, "COMPRESS": "DEFLATE", "LEVEL": 4, "BIGTIFF": "IF_SAFER"}


def write_cog(
    source: np.ndarray | Windows,
    dst: Path,
    *,
    geobox: GeoBox,
    kind: Literal["class", "continuous"],
    dtype: str | None = None,
    bands: int = 1,
    nodata: float | None = None,
    scheme: ClassScheme | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
    descriptions: Sequence[str] = (),
    units: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> Path:
    """Writes one cloud-optimised GeoTIFF.

    The bytes depend on the arguments only, not on `threads` or on how the source is cut into windows.

    Args:
        source: an array [H, W] or [bands, H, W], or windows with their pixels, in any order, that cover the
            grid. Windows aligned to 512 pixels are the fastest.
        dst: the file; replaced when it exists.
        geobox: the grid. A grid without a CRS gives a file without one.
        kind: `class` takes the most frequent value into overviews, `continuous` the average.
        dtype: of the file; needed when `source` is not an array.
        bands: number of bands when `source` is not an array.
        nodata: the value that means nodata, if one does.
        scheme: the class table: palette, and names in the tags `CLASS_<value>` and `CLASSES` (JSON).
        scale, offset: physical = stored * scale + offset, written as such; stored values are not changed.
        descriptions, units: one a band.
        tags: dataset tags.
        threads: of compression; None for as many as there are cores.

    Raises:
        OutputNotWritableError: the folder cannot be written, or the disk is full.
    """
    if isinstance(source, np.ndarray):
        planes = source[None] if source.ndim == 2 else source
        dtype, bands = dtype or str(planes.dtype), len(planes)
        source = _strips(planes)
    if dtype is None:
        raise TypeError("dtype is needed when the source is not an array")
    profile = {
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "sparse_ok": nodata is not None,
        "height": geobox.shape.y,
        "width": geobox.shape.x,
        "transform": Affine(*geobox.affine[:6]),
        "crs": None if geobox.crs is None else geobox.crs.to_wkt(),
    }
    resampling = "MODE" if kind == "class" else "AVERAGE"
    options = {
        "PREDICTOR": "NO" if kind == "class" else "YES",
        "OVERVIEW_RESAMPLING": resampling,
        "NUM_THREADS": threads or os.cpu_count() or 1,
    }
    stem = f".{dst.name}.{uuid4().hex[:8]}"
    draft, copy = dst.with_name(stem + ".draft.tif"), dst.with_name(stem + ".cog.tif")
    try:
        with gdal_env(remote=False, **_ENV):
            drawn = _open_draft(draft, dst, profile)
            try:
                with _writing(dst):
                    _describe(drawn, scheme, nodata, scale, offset, descriptions, units, tags or {})
                for window, pixels in source:
                    with _writing(dst):
                        drawn.write(pixels if pixels.ndim == 3 else pixels[None], window=_gdal(window))
            finally:
                with _writing(dst):
                    drawn.close()
            with _writing(dst):
                copy_raster(draft, copy, driver="COG", **_COG, **options)
                draft.unlink()
                _read_back(copy)
                _sync(copy)
                copy.replace(dst)
    finally:
        for left in dst.parent.glob(stem + ".*"):
            left.unlink(missing_ok=True)
    return dst


def _open_draft(draft: Path, dst: Path, profile: dict[str, Any]) -> Any:
    with _writing(dst), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a grid of plain pixels is legal here
        return rasterio.open(draft, "w", **_DRAFT, **profile)


def _describe(
    drawn: Any,
    scheme: ClassScheme | None,
    nodata: float | None,
    scale: float,
    offset: float,
    descriptions: Sequence[str],
    units: Sequence[str],
    tags: Mapping[str, str],
) -> None:
    """Everything of a file that is not pixels."""
    drawn.update_tags(TIFFTAG_SOFTWARE=f"terralapse {__version__}", **tags)
    if descriptions:
        drawn.descriptions = tuple(descriptions)
    if units:
        drawn.units = tuple(units)
    if (scale, offset) != (1.0, 0.0):
        drawn.scales, drawn.offsets = (scale,) * drawn.count, (offset,) * drawn.count
    if scheme is not None:
        palette = scheme.palette()
        if nodata is not None:
            palette[int(nodata)] = (0, 0, 0, 0)
        drawn.write_colormap(1, palette)
        table = [
            {"value": c.value, "name": c.name, "title": c.title, "colour": c.colour} for c in scheme.classes
        ]
        names = {f"CLASS_{c.value}": c.title for c in scheme.classes}
        drawn.update_tags(1, CLASS_SCHEME=scheme.slug, CLASSES=json.dumps(table), **names)


def _strips(planes: np.ndarray) -> Iterator[tuple[Window, np.ndarray]]:
    height, width = planes.shape[1:]
    for row in range(0, height, BLOCK):
        strip = planes[:, row : row + BLOCK]
        yield Window(row, 0, strip.shape[1], width), strip


def _gdal(window: Window) -> GdalWindow:
    return GdalWindow(window.col, window.row, window.width, window.height)  # pyright: ignore[reportCallIssue]


def _read_back(path: Path) -> None:
    """Decodes every block of every level: the only proof that all of the file reached the disk."""
    levels = [{}]
    with rasterio.open(path) as whole:
        levels += [{"overview_level": i} for i in range(len(whole.overviews(1)))]
    for level in levels:
        with rasterio.open(path, **level) as opened:
            for row in range(0, opened.height, BLOCK):
                opened.read(window=((row, min(row + BLOCK, opened.height)), (0, opened.width)))


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _writing(dst: Path) -> Iterator[None]:
    """Turns the failures of writing into one that says what to do."""
    try:
        yield
    except (OSError, *_GDAL_FAILURES) as error:
        raise not_writable(dst, error) from error


def not_writable(path: Path, error: BaseException) -> OutputNotWritableError:
    """The error for a file or folder that could not be written: no space left, or what the system says."""
    folder = path if path.is_dir() else path.parent
    free = shutil.disk_usage(folder).free if folder.is_dir() else None
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    text = texts[-1].strip().rstrip(".")
    if (free is not None and free < 1 << 20) or any(_FULL.search(t) for t in texts):
        left = "" if free is None else f" ({free / 1e6:,.1f} MB are free)"
        return OutputNotWritableError(
            path, f"no space left on the disk, or a limit was met{left}", "Free some, or write elsewhere."
        )
    return OutputNotWritableError(path, f"cannot be written ({text})", "Check the folder and its rights.")
