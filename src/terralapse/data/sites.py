"""Data sets of rasters by site: lists of sites in a folder of splits, and rasters of any number of bands."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from terralapse.data.folders import read_list
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

Area = tuple[int, int, int, int]  # row, column, height, width


def sites_of(root: Path, split: str) -> list[str]:
    """The names in `<root>/splits/<split>.txt`, or in the one list there that is called so but for a number
    at its end, such as `train35.txt` for `train`.

    Raises:
        FileMissingError: there is no such list, or it names nothing.
        SettingError: there are several.
    """
    folder = root / "splits"
    exact = folder / f"{split}.txt"
    if exact.is_file():
        return read_list(exact)
    found = sorted(p for p in folder.glob("*.txt") if re.fullmatch(rf"{re.escape(split)}\d+", p.stem))
    if len(found) > 1:
        raise SettingError(
            f"split={split}",
            f"fits {', '.join(p.stem for p in found)}",
            "Give one of these names as the split.",
        )
    if not found:
        raise FileMissingError(exact, "is not there", "Copy the authors' lists to the folder `splits`.")
    return read_list(found[0])


def read_raster(path: Path, area: Area | None = None) -> np.ndarray:
    """All bands [C, H, W] of a raster as stored, or of a part of it.

    Raises:
        FileMissingError: it is not there.
        UnreadableFileError: it is no raster.
    """
    import rasterio  # here, so that data sets without such files need no GDAL
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    from terralapse.grid._gdal import gdal_env

    if not path.is_file():
        raise FileMissingError(path, "is not there", "Complete the data set.")
    try:
        with gdal_env(), rasterio.open(path) as file:
            if area is None:
                return file.read()
            row, col, height, width = area
            return file.read(window=Window(col, row, width, height))  # pyright: ignore[reportCallIssue]
    except RasterioError as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error


def raster_size(path: Path) -> tuple[int, int]:
    """Height and width of a raster.

    Raises:
        as `read_raster`.
    """
    import rasterio
    from rasterio.errors import RasterioError

    from terralapse.grid._gdal import gdal_env

    if not path.is_file():
        raise FileMissingError(path, "is not there", "Complete the data set.")
    try:
        with gdal_env(), rasterio.open(path) as file:
            return file.height, file.width
    except RasterioError as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error


def changes_of(classes: np.ndarray, change: np.ndarray, ignore: int = 255) -> np.ndarray:
    """Class ids [H, W] as a map of what changed: one higher where `change` is 1, 0 where it is 0, and
    `ignore` where either says so."""
    found = np.where(change == 1, np.where(classes == ignore, ignore, classes + 1), 0)
    return np.where(change == ignore, ignore, found).astype(np.uint8)
