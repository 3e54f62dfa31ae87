"""Stacks of small items whose right median is known: noise-free values, outliers, clouds, gaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from shapely.geometry import box, mapping

from fixtures_eo import write_tif

CRS, PIXEL, LEFT, TOP = "EPSG:32632", 10.0, 600_320.0, 5_199_360.0
SIDE = 64
GROUND, CLOUD = 4, 9  # of SCL


def put_item(
    folder: Path,
    day: str,
    values: np.ndarray,
    scl: np.ndarray | None = None,
    *,
    cloud: float | None = 10.0,
    name: str = "",
    where: tuple[float, float] = (LEFT, TOP),
    crs: str = CRS,
    sentinel: bool = True,
) -> Path:
    """An item of one day: stored uint16 [C, H, W] of red and near-infrared (0: nodata), with an SCL at twice
    the pixel where given. Returns its path."""
    name = name or f"item-{day}"
    place = from_origin(*where, PIXEL, PIXEL)
    assets = {}
    for index, band in enumerate(("red", "nir")):
        file = folder / f"{name}_{band}.tif"
        write_tif(file, values[index : index + 1].astype(np.uint16), crs=crs, transform=place, nodata=0)
        known = [{"name": band, "common_name": band}]
        assets[band] = {
            "href": f"./{file.name}",
            "type": "image/tiff; application=geotiff",
            "eo:bands": known,
        }
    if scl is not None:
        coarse = from_origin(*where, 2 * PIXEL, 2 * PIXEL)
        write_tif(folder / f"{name}_scl.tif", scl.astype(np.uint8)[None], crs=crs, transform=coarse)
        assets["scl"] = {"href": f"./{name}_scl.tif", "type": "image/tiff; application=geotiff"}
    height, width = values.shape[1:]
    x, y = where
    ground = box(*transform_bounds(crs, "EPSG:4326", x, y - height * PIXEL, x + width * PIXEL, y))
    properties: dict[str, object] = {"datetime": f"{day}T10:00:00Z"}
    if sentinel:
        properties |= {"platform": "sentinel-2a", "constellation": "sentinel-2", "instruments": ["msi"]}
    if cloud is not None:
        properties["eo:cloud_cover"] = cloud
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "geometry": mapping(ground.buffer(1e-5)),
        "links": [], "bbox": list(ground.bounds), "properties": properties, "assets": assets,
    }  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps(item))
    return path


def flat(value: int, side: int = SIDE) -> np.ndarray:
    """Red of `value` and near-infrared of twice that."""
    return np.stack([np.full((side, side), value), np.full((side, side), 2 * value)])


def sky(cloudy: slice | tuple[slice, slice] | None = None, side: int = SIDE) -> np.ndarray:
    """An SCL of ground, with cloud over a part of it (in its own pixels, of twice the size)."""
    scl = np.full((side // 2, side // 2), GROUND)
    if cloudy is not None:
        scl[cloudy] = CLOUD
    return scl
