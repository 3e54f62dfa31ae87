"""Rasters as xarray arrays that read only the pixels that are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from pyproj import CRS
from rasterio.windows import Window
from xarray.backends import BackendArray
from xarray.core import indexing


class _Raster(BackendArray):
    """The first band of a file. It is opened for each reading, so that threads and processes can share it."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: Any, scaled: bool) -> None:
        self.path, self.shape, self.dtype, self._scaled = path, shape, np.dtype(dtype), scaled

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        spans = [
            range(n)[k] if isinstance(k, slice) else range(k, k + 1)
            for k, n in zip(key, self.shape, strict=True)
        ]
        if any(len(s) == 0 for s in spans):
            shape = tuple(len(s) for s, k in zip(spans, key, strict=True) if isinstance(k, slice))
            return np.empty(shape, self.dtype)
        (r0, r1), (c0, c1) = ((min(s[0], s[-1]), max(s[0], s[-1]) + 1) for s in spans)
        with rasterio.open(self.path) as source:
            block = source.read(1, window=Window(c0, r0, c1 - c0, r1 - r0))  # type: ignore[call-arg]
            nodata, scale = source.nodata, np.float32(source.scales[0])
        rows, cols = (np.asarray(s) - start for s, start in zip(spans, (r0, c0), strict=True))
        picked = block[np.ix_(rows, cols)]
        if self._scaled:
            picked = np.where(picked != nodata, picked * scale, np.float32("nan"))
        whole = tuple(slice(None) if isinstance(k, slice) else 0 for k in key)
        return picked[whole].astype(self.dtype, copy=False)


def open_raster(path: Path, *, scaled: bool = False) -> xr.DataArray:
    """A one-band raster with its coordinates and CRS (as odc-geo and rioxarray read them).

    Args:
        path: of the file.
        scaled: give float32 of stored x scale, NaN for nodata; else the stored values.
    """
    with rasterio.open(path) as source:
        shape = source.height, source.width
        dtype = "float32" if scaled else source.dtypes[0]
        attrs: dict[str, Any] = {} if scaled or source.nodata is None else {"nodata": source.nodata}
        crs = None if source.crs is None else CRS.from_wkt(source.crs.to_wkt())
        names = ("latitude", "longitude") if crs is not None and crs.is_geographic else ("y", "x")
        coords = _coordinates(source.transform, shape, names)
        transform = source.transform
    if crs is not None:
        about = crs.to_cf() | {"GeoTransform": " ".join(map(str, transform.to_gdal()))}
        coords["spatial_ref"] = xr.Variable((), np.int32(0), about)
    lazy = indexing.LazilyIndexedArray(_Raster(path, shape, dtype, scaled))
    array = xr.DataArray(xr.Variable(names, lazy), coords=coords, name=path.stem, attrs=attrs)
    if crs is not None:
        array.encoding["grid_mapping"] = "spatial_ref"
    return array


def _coordinates(transform: Affine, shape: tuple[int, int], names: tuple[str, str]) -> dict[str, xr.Variable]:
    """Middles of the pixels. (odc.geo.xr would give them, but its import asks for dask.)"""
    down = transform.f + transform.e * (np.arange(shape[0]) + 0.5)
    across = transform.c + transform.a * (np.arange(shape[1]) + 0.5)
    return {names[0]: xr.Variable(names[0], down), names[1]: xr.Variable(names[1], across)}
