"""Small products as the agencies deliver them, made on the spot, with the numbers that must come out.

Each function writes files and returns what a reader must find in them. Nothing is downloaded.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine, from_origin

from file_server import serve_files

S2_ORIGIN = (600000.0, 5000040.0)
S2_BANDS_10 = ("B02", "B03", "B04", "B08")
S2_BANDS_20 = ("B05", "B06", "B07", "B8A", "B11", "B12")
S2_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@dataclass
class Truth:
    """What was written: `dn` of each band id at its own resolution, and the class band."""

    path: Path
    dn: dict[str, np.ndarray] = field(default_factory=dict)
    classes: np.ndarray | None = None


def write_tif(
    path: Path,
    data: np.ndarray,
    *,
    crs: str | None = "EPSG:32633",
    transform: Affine | None = None,
    driver: str = "GTiff",
    descriptions: tuple[str, ...] | None = None,
    mask: np.ndarray | None = None,
    tags: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """Writes `data` [C, H, W]; a transform of None is a 10 m grid at (500000, 5000000)."""
    bands, height, width = data.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": driver,
        "count": bands,
        "height": height,
        "width": width,
        "dtype": data.dtype.name,
        "crs": crs,
        "transform": from_origin(500000, 5000000, 10, 10) if transform is None else transform,
        **options,
    }
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dst:
        dst.write(data)
        for i, text in enumerate(descriptions or (), 1):
            dst.set_band_description(i, text)
        if mask is not None:
            dst.write_mask(mask)
        if tags:
            dst.update_tags(**tags)
    return path


def write_jp2(path: Path, data: np.ndarray, pixel: float, *, block: int = 1024) -> Path:
    """Lossless JPEG 2000 of one band or several, at the origin of the Sentinel-2 fixture."""
    stack = data if data.ndim == 3 else data[None]
    options = {"QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": block, "BLOCKYSIZE": block}
    transform = from_origin(*S2_ORIGIN, pixel, pixel)
    return write_tif(path, stack, transform=transform, driver="JP2OpenJPEG", **options)


def make_safe(
    folder: Path,
    *,
    baseline: str = "04.00",
    offset: int | None = -1000,
    level: str = "L2A",
    size: int = 120,
    day: str = "20210601",
    classi: bool = False,
    zipped: bool = False,
    seed: int = 0,
) -> Truth:
    """A Sentinel-2 product of `size` x `size` pixels at 10 m (a multiple of 6), in `folder`.

    SCL: a square of cloud (9) in the middle, shadow (3) at the lower right, snow (11) at the lower left,
    nodata (0) at row 4 and saturated (1) at row 5 of the first column; B02 has four pixels of nodata and one
    saturated in its first row. `offset` None leaves the list of offsets out of the XML.
    """
    rng = np.random.default_rng(seed)
    short, dots = level[1:], baseline.replace(".", "")
    stamp = f"{day}T100031"
    name = f"S2A_MSI{level}_{stamp}_N{dots}_R122_T33UUP_{day}T120000.SAFE"
    root = folder / name
    images = root / "GRANULE" / f"{level}_T33UUP_A000001_{stamp}" / "IMG_DATA"
    truth = Truth(root)
    low, high = (1000, 6000) if offset else (1, 5000)
    wanted = [(b, 10) for b in S2_BANDS_10] + [(b, 20) for b in S2_BANDS_20] + [("B01", 60), ("B09", 60)]
    if level == "L1C":
        wanted.append(("B10", 60))
    for band, metres in wanted:
        n = size * 10 // metres
        dn = rng.integers(low, high, (n, n)).astype(np.uint16)
        truth.dn[band] = dn
        where = images / f"R{metres}m" if level == "L2A" else images
        tail = f"_{metres}m" if level == "L2A" else ""
        write_jp2(where / f"T33UUP_{stamp}_{band}{tail}.jp2", dn, metres)
    if level == "L2A":
        truth.dn["B02"][0, :4] = 0  # nodata
        truth.dn["B02"][0, 6] = 65535  # saturated
        write_jp2(images / "R10m" / f"T33UUP_{stamp}_B02_10m.jp2", truth.dn["B02"], 10)
        n = size // 2
        scl = np.full((n, n), 4, np.uint8)
        scl[n // 2 - 4 : n // 2 + 4, n // 2 - 4 : n // 2 + 4] = 9
        scl[-3:, -3:] = 3
        scl[-3:, :3] = 11
        scl[4, 0] = 0
        scl[5, 0] = 1
        truth.classes = scl
        write_jp2(images / "R20m" / f"T33UUP_{stamp}_SCL_20m.jp2", scl, 20)
    elif classi:
        n = size // 6
        masks = np.zeros((3, n, n), np.uint8)
        masks[0, n // 2, n // 2] = 1
        masks[2, 0, 0] = 1
        truth.classes = masks
        write_jp2(images.parent / "QI_DATA" / "MSK_CLASSI_B00.jp2", masks, 60)
    (root / f"MTD_MSI{level}.xml").write_text(_s2_xml(short, baseline, offset, day), encoding="utf-8")
    if zipped:
        truth.path = folder / f"{name[:-5]}.zip"
        with zipfile.ZipFile(truth.path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(p for p in root.rglob("*") if p.is_file()):
                archive.write(file, file.relative_to(folder).as_posix())
    return truth


def _s2_xml(level: str, baseline: str, offset: int | None, day: str) -> str:
    tag = "BOA" if level == "2A" else "RADIO"
    listed = "".join(
        f'<{tag}_ADD_OFFSET band_id="{i}">{offset}</{tag}_ADD_OFFSET>' for i in range(len(S2_IDS))
    )
    offsets = f"<Offsets>{listed}</Offsets>" if offset is not None else ""
    quantification = (
        '<BOA_QUANTIFICATION_VALUE unit="none">10000</BOA_QUANTIFICATION_VALUE>'
        if level == "2A"
        else '<QUANTIFICATION_VALUE unit="none">10000</QUANTIFICATION_VALUE>'
    )
    iso = f"{day[:4]}-{day[4:6]}-{day[6:]}T10:00:31.024Z"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.example/">'
        f"<n1:General_Info><Product_Info><PRODUCT_START_TIME>{iso}</PRODUCT_START_TIME>"
        f"<PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>"
        f"<PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE></Product_Info>"
        f"<Product_Image_Characteristics>{quantification}{offsets}</Product_Image_Characteristics>"
        f"</n1:General_Info></n1:Level-{level}_User_Product>"
    )


def make_landsat(
    folder: Path,
    *,
    level: str = "L2SP",
    craft: str = "LANDSAT_8",
    size: int = 60,
    sun_elevation: float = 30.0,
    mtl: str = "txt",
    seed: int = 0,
) -> Truth:
    """A Landsat Collection 2 folder. The first pixels of the second row carry one QA bit each: fill, dilated
    cloud, cirrus, cloud, shadow, snow, clear, water; the first of the third row is saturated in B4."""
    rng = np.random.default_rng(seed)
    oli = craft in ("LANDSAT_8", "LANDSAT_9")
    prefix = {"LANDSAT_8": "LC08", "LANDSAT_9": "LC09", "LANDSAT_7": "LE07", "LANDSAT_5": "LT05"}[craft]
    product = f"{prefix}_{level}_190027_20210601_20210608_02_T1"
    numbers = (1, 2, 3, 4, 5, 6, 7) if oli else (1, 2, 3, 4, 5, 7)
    folder.mkdir(parents=True, exist_ok=True)
    truth = Truth(folder)
    # Landsat pixels are centred on multiples of 30 m, so that corners lie at 15 m.
    grid = {"crs": "EPSG:32633", "transform": from_origin(500000 - 15, 5000000 + 15, 30, 30)}
    stem = "SR_B" if level.startswith("L2") else "B"
    for n in numbers:
        dn = rng.integers(7273, 43637, (size, size)).astype(np.uint16)
        dn[0, :3] = 0
        dn[0, 3], dn[0, 4] = 7273, 43636
        truth.dn[f"B{n}"] = dn
        write_tif(folder / f"{product}_{stem}{n}.TIF", dn[None], nodata=0, **grid)
    qa = np.full((1, size, size), 1 << 6, np.uint16)
    for bit in range(8):
        qa[0, 1, bit] = 1 << bit
    qa[0, 0, :3] = 1
    truth.classes = qa[0]
    write_tif(folder / f"{product}_QA_PIXEL.TIF", qa, nodata=1, **grid)
    radsat = np.zeros((1, size, size), np.uint16)
    radsat[0, 2, 0] = 1 << 3
    radsat[0, 2, 1] = 1 << 7  # a band that is not read
    write_tif(folder / f"{product}_QA_RADSAT.TIF", radsat, **grid)
    tree = _mtl_tree(product, level, craft, numbers, stem, sun_elevation)
    if mtl == "json":
        (folder / f"{product}_MTL.json").write_text(json.dumps(tree), encoding="utf-8")
    else:
        (folder / f"{product}_MTL.txt").write_text(_mtl_text(tree), encoding="utf-8")
    return truth


def _mtl_tree(
    product: str, level: str, craft: str, numbers: tuple, stem: str, elevation: float
) -> dict[str, Any]:
    files = {f"FILE_NAME_BAND_{n}": f"{product}_{stem}{n}.TIF" for n in numbers}
    level1 = {f"REFLECTANCE_MULT_BAND_{n}": "2.0000E-05" for n in numbers}
    level1 |= {f"REFLECTANCE_ADD_BAND_{n}": "-0.100000" for n in numbers}
    groups: dict[str, Any] = {
        "PRODUCT_CONTENTS": {"LANDSAT_PRODUCT_ID": product, "PROCESSING_LEVEL": level, **files},
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": craft,
            "SENSOR_ID": "OLI_TIRS" if craft in ("LANDSAT_8", "LANDSAT_9") else "TM",
            "DATE_ACQUIRED": "2021-06-01",
            "SCENE_CENTER_TIME": "09:46:12.1234567Z",
            "SUN_ELEVATION": f"{elevation}",
        },
        "LEVEL1_RADIOMETRIC_RESCALING": level1,
    }
    if level.startswith("L2"):
        level2 = {f"REFLECTANCE_MULT_BAND_{n}": "2.75e-05" for n in numbers}
        level2 |= {f"REFLECTANCE_ADD_BAND_{n}": "-0.2" for n in numbers}
        groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"] = level2
    return {"LANDSAT_METADATA_FILE": groups}


def _mtl_text(tree: dict[str, Any], indent: str = "") -> str:
    out = ""
    for key, value in tree.items():
        if isinstance(value, dict):
            out += f"{indent}GROUP = {key}\n{_mtl_text(value, indent + '  ')}{indent}END_GROUP = {key}\n"
        else:
            quoted = f'"{value}"' if any(c.isalpha() for c in value) and "E-" not in value else value
            out += f"{indent}{key} = {quoted}\n"
    return out + ("" if indent else "END\n")


def make_stac(
    folder: Path,
    *,
    baseline: str | None = "04.00",
    raw: bool = True,
    stated_offset: float | None = -0.1,
    applied_flag: bool | None = None,
    version: str = "1.0.0",
    size: int = 120,
    water: bool = True,
    low: int = 20,
    seed: int = 0,
) -> Truth:
    """A Sentinel-2 item with local assets blue, red, nir (10 m), swir16 (20 m) and scl.

    `raw` says whether the stored numbers still hold the offset of 1000; `stated_offset` and `applied_flag`
    are what the metadata claims, which may be wrong. Surface reflectance is in `dn` / 10000 without it, from
    `low` upwards; `water` marks the left quarter as water in SCL.
    """
    rng = np.random.default_rng(seed)
    truth = Truth(folder / "item.json")
    assets: dict[str, Any] = {}
    for band, name, metres in (
        ("B02", "blue", 10),
        ("B04", "red", 10),
        ("B08", "nir", 10),
        ("B11", "swir16", 20),
    ):
        n = size * 10 // metres
        surface = rng.integers(low, 4000, (n, n)).astype(np.uint16)
        truth.dn[name] = surface
        stored = surface + np.uint16(1000) if raw else surface
        transform = from_origin(*S2_ORIGIN, metres, metres)
        write_tif(folder / "assets" / f"{band}.tif", stored[None], transform=transform, nodata=0, tiled=True)
        raster: dict[str, Any] = {"nodata": 0, "data_type": "uint16", "scale": 0.0001}
        if stated_offset is not None:
            raster["offset"] = stated_offset
        asset: dict[str, Any] = {
            "href": f"./assets/{band}.tif",
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "roles": ["data", "reflectance"],
        }
        if version == "1.0.0":
            asset |= {"eo:bands": [{"name": name, "common_name": name}], "raster:bands": [raster]}
        else:
            moved = {f"raster:{k}": v for k, v in raster.items() if k in ("scale", "offset")}
            asset |= {"bands": [{"name": band, "eo:common_name": name, "nodata": 0, **moved}]}
        assets[name] = asset
    n = size // 2
    scl = np.full((1, n, n), 4, np.uint8)
    scl[0, :, : n // 4] = 6 if water else 4
    scl[0, 0, 0] = 0
    scl[0, n // 2, n // 2] = 9
    truth.classes = scl[0]
    write_tif(folder / "assets" / "SCL.tif", scl, transform=from_origin(*S2_ORIGIN, 20, 20), nodata=0)
    assets["scl"] = {"href": "./assets/SCL.tif", "type": "image/tiff", "roles": ["data"]}
    assets["thumbnail"] = {"href": "./preview.jpg", "type": "image/jpeg", "roles": ["thumbnail"]}
    properties: dict[str, Any] = {"datetime": "2022-06-01T10:00:31Z", "platform": "sentinel-2a"}
    if baseline is not None:
        properties["s2:processing_baseline"] = baseline
    if applied_flag is not None:
        properties["earthsearch:boa_offset_applied"] = applied_flag
    item = {
        "type": "Feature",
        "stac_version": version,
        "id": "S2A_33UUP_20220601",
        "properties": properties,
        "geometry": None,
        "links": [],
        "assets": assets,
    }
    truth.path.write_text(json.dumps(item), encoding="utf-8")
    return truth


def make_cube(
    path: Path, *, south_up: bool = False, packed: bool = False, crs: bool = True, size: int = 40
) -> Truth:
    """A cube of red and nir on three dates (1 and 11 June, 1 July 2021): Zarr or NetCDF by the suffix.

    `dn` holds physical values [time, y, x], NaN at (time 0, row 0, column 0) when `packed`.
    """
    import xarray as xr
    from pyproj import CRS

    rng = np.random.default_rng(3)
    times = np.array(["2021-06-01T10:00", "2021-06-11T10:00", "2021-07-01T10:00"], "datetime64[ns]")
    x = 500000 + 10 * (np.arange(size + 5) + 0.5)
    y = 5000000 - 10 * (np.arange(size) + 0.5)
    if south_up:
        y = y[::-1]
    truth = Truth(path)
    variables = {}
    encoding: dict[str, dict[str, Any]] = {}
    for name in ("red", "nir"):
        values = rng.integers(100, 4000, (3, size, size + 5)).astype(np.float32)
        if packed:
            values = (values / 10000).astype(np.float32)
            values[0, 0, 0] = np.nan
            encoding[name] = {"dtype": "uint16", "scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0}
        truth.dn[name] = values
        attrs = {"grid_mapping": "spatial_ref"} if crs else {}
        variables[name] = (("time", "y", "x"), values, attrs)
    cube = xr.Dataset(variables, coords={"time": times, "y": y, "x": x})
    if crs:
        cube = cube.assign_coords(spatial_ref=((), 0, CRS.from_epsg(32633).to_cf()))
    if path.suffix == ".zarr":
        cube.to_zarr(path, encoding=encoding, mode="w")
    else:
        cube.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return truth


def raw_tiff(
    path: Path,
    *,
    width: int = 64,
    height: int = 64,
    samples: int = 1,
    bits: int = 8,
    compression: int = 1,
    tile: tuple[int, int] | None = None,
    rows_per_strip: int | None = None,
    blocks: int = 1,
    payload: bytes = b"\0" * 16,
    byte_count: int | None = None,
) -> Path:
    """A classic TIFF whose header says whatever it is told to; all blocks point at one payload."""
    counts = [byte_count if byte_count is not None else len(payload)] * blocks
    entries: list[tuple[int, int, list[int]]] = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [bits]),
        (259, 3, [compression]),
        (262, 3, [1]),
        (277, 3, [samples]),
    ]
    offsets_tag, counts_tag = (324, 325) if tile else (273, 279)
    entries += [(322, 4, [tile[0]]), (323, 4, [tile[1]])] if tile else [(278, 4, [rows_per_strip or height])]
    entries += [(offsets_tag, 4, [0] * blocks), (counts_tag, 4, counts)]
    entries.sort()
    directory = 2 + 12 * len(entries) + 4
    extra_at = 8 + directory
    data_at = extra_at + sum(4 * len(v) for _, _, v in entries if len(v) > 1)
    head, extra = struct.pack("<H", len(entries)), b""
    for tag, kind, values in entries:
        values = [data_at] * blocks if tag == offsets_tag else values
        if len(values) > 1:
            field_bytes = struct.pack("<I", extra_at + len(extra))
            extra += struct.pack(f"<{len(values)}I", *values)
        else:
            field_bytes = struct.pack(
                "<I" if kind == 4 else "<HH", *(values if kind == 4 else [values[0], 0])
            )
        head += struct.pack("<HHI", tag, kind, len(values)) + field_bytes
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + head + b"\0\0\0\0" + extra + payload)
    return path


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """An http server of a folder on this machine; gives its address."""
    with serve_files(folder) as served:
        yield served.address
