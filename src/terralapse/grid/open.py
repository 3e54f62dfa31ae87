"""The one door for inputs: from a path, an address, a folder or a pattern to a `Scene`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from terralapse.errors import BandError, FileMissingError, SettingError, UnreadableFileError
from terralapse.grid import _remote, cube, landsat, sentinel2, stac
from terralapse.grid._guess import band_of_name, parse_time
from terralapse.grid._safety import SUPPORTED, check_zip, format_of, read_text
from terralapse.grid.composite import CompositeList, is_composite
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.raster import open_file
from terralapse.grid.scene import Note, Scene
from terralapse.grid.stack import open_bands

_TILES = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".webp", ".vrt")
_MAX_TILES = 20_000


def open_scene(
    source: str | Path,
    *,
    assume_crs: str | None = None,
    time: str | None = None,
    pixel_grid: bool = False,
    s2_offset: float | None = None,
) -> Scene:
    """Opens one image of a place at one time; headers and metadata only.

    Args:
        source: a GeoTIFF, COG, JPEG 2000, PNG, JPEG, WebP or VRT file; a folder or a pattern (`tiles/*.tif`)
            of tiles, or of single-band files of one scene; a Sentinel-2 SAFE folder or zip; a Landsat
            folder; a STAC item; a Zarr folder or NetCDF file; an http(s) address of a COG or a STAC item.
            `cube.zarr::2021-06-01` names a date.
        assume_crs: the CRS of inputs that do not state one.
        time: the date wanted of a cube; of anything else, its date, over what the file says.
        pixel_grid: put images without any georeference on an arbitrary grid of one metre a pixel.
        s2_offset: the offset of Sentinel-2 in reflectance (0 or -0.1), over what metadata and pixels say.

    Raises:
        FileMissingError, UnreadableFileError, TruncatedFileError, HostileFileError: it cannot be read.
        NoGeoreferenceError, UnsupportedGeoreferenceError: it cannot be placed.
        BandError, SettingError: it has no usable bands, or a date must be named.
    """
    text, time = _date_of(str(source), time)
    scene = _open(text, assume_crs, time, pixel_grid, s2_offset)
    return scene if time is None or isinstance(scene, cube.CubeScene) else _dated(scene, time)


def _open(
    text: str, assume_crs: str | None, time: str | None, pixel_grid: bool, s2_offset: float | None
) -> Scene:
    if _remote.is_url(text):
        return _open_url(text, assume_crs, pixel_grid, s2_offset)
    if "://" in text and not text.startswith("file://"):
        hint = "Give a local path or an http(s) address."
        raise UnreadableFileError(text, "is an address of a kind that is not read", hint)
    if text.startswith("/vsi") or re.match(r"^[A-Za-z0-9_]{2,}:", text.removeprefix("file://")):
        raise UnreadableFileError(
            text, "is a GDAL connection string", "Give a local path or an http(s) address."
        )
    path = Path(text.removeprefix("file://"))
    if not path.exists():
        if any(c in text for c in "*?["):
            return _open_tiles(_matches(text), Path(text).name, text, assume_crs, pixel_grid, s2_offset)
        raise FileMissingError(text, "does not exist", "Check the path.")
    if path.is_dir():
        return _open_folder(path, assume_crs, time, pixel_grid, s2_offset)
    return _open_path(path, assume_crs, time, pixel_grid, s2_offset)


def _date_of(text: str, time: str | None) -> tuple[str, str | None]:
    head, mark, tail = text.rpartition("::")
    if not mark:
        return text, time
    if time is not None and time != tail:
        raise SettingError(text, f"names the date {tail}, and {time} was given as well", "Give one of them.")
    return head, tail


def _dated(scene: Scene, time: str) -> Scene:
    """A scene whose date the user gave."""
    given = parse_time(time)
    if given is None:
        raise SettingError(f"date {time!r}", "is not a date", "Write it like 2021-06-01.")
    stated, notes = scene.info.time, list(scene.info.notes)
    if stated is None:
        notes.append(Note("info", "given-date", f"The date {given:%Y-%m-%d} was given."))
    elif stated.date() != given.date():
        text = f"The date {given:%Y-%m-%d} was given; the file itself says {stated:%Y-%m-%d}."
        notes.append(Note("warning", "given-date", text))
    if stated is None or stated.date() != given.date():
        scene.info = replace(scene.info, time=given, notes=notes)
    return scene


def _open_url(url: str, assume_crs: str | None, pixel_grid: bool, s2_offset: float | None) -> Scene:
    if _remote.holds_json(url):
        return stac.open_item(url, s2_offset=s2_offset)
    return open_file(url, assume_crs=assume_crs, pixel_grid=pixel_grid, s2_offset=s2_offset)


def _open_path(
    path: Path, assume_crs: str | None, time: str | None, pixel_grid: bool, s2_offset: float | None
) -> Scene:
    if path.suffix.lower() in (".json", ".geojson") and path.stat().st_size:
        text = read_text(path)
        if stac.is_item(text):
            return stac.open_item(path, s2_offset=s2_offset)
        if is_composite(text):
            several = CompositeList.read(path, text)
            return several.open(path, lambda s: _open(s, assume_crs, None, False, s2_offset))
    kind = format_of(path)
    if kind in ("HDF5", "NETCDF3"):
        return cube.open_cube(path, time=time, assume_crs=assume_crs)
    if kind == "ZIP":
        check_zip(path)
        if sentinel2.is_safe(path):
            return sentinel2.open_safe(path)
        hint = "Unpack it and give the folder."
        raise UnreadableFileError(path, "is an archive and not a Sentinel-2 product", hint)
    if kind == "GRIB":
        hint = "Convert it to NetCDF (cdo -f nc copy, or xarray with cfgrib)."
        raise UnreadableFileError(path, "is a GRIB file, which is not read", hint)
    return open_file(path, assume_crs=assume_crs, pixel_grid=pixel_grid, s2_offset=s2_offset)


def _open_folder(
    path: Path, assume_crs: str | None, time: str | None, pixel_grid: bool, s2_offset: float | None
) -> Scene:
    if cube.is_zarr(path):
        return cube.open_cube(path, time=time, assume_crs=assume_crs)
    if sentinel2.is_safe(path):
        return sentinel2.open_safe(path)
    if landsat.mtl_of(path) is not None:
        return landsat.open_landsat(path)
    products = [p for p in sorted(path.iterdir()) if p.suffix.upper() == ".SAFE" or cube.is_zarr(p)]
    if len(products) == 1:
        return _open_folder(products[0], assume_crs, time, pixel_grid, s2_offset)
    if products:
        names = ", ".join(p.name for p in products[:4])
        raise SettingError(path, f"holds {len(products)} products ({names})", "Name the one that is meant.")
    tiles = sorted(
        (p for p in path.iterdir() if p.suffix.lower() in _TILES and p.is_file()), key=natural_order
    )
    if not tiles:
        tiles = sorted(
            (p for p in path.rglob("*") if p.suffix.lower() in _TILES and p.is_file()), key=natural_order
        )
    if not tiles:
        raise FileMissingError(path, "holds no images", f"Give a folder of {SUPPORTED} files.")
    return _open_tiles(tiles, path.name, str(path), assume_crs, pixel_grid, s2_offset)


def _open_tiles(
    paths: list[Path],
    name: str,
    uri: str,
    assume_crs: str | None,
    pixel_grid: bool,
    s2_offset: float | None,
) -> Scene:
    """A mosaic, or one scene when the files are its single bands."""
    if len(paths) == 1:
        return open_file(paths[0], assume_crs=assume_crs, pixel_grid=pixel_grid, s2_offset=s2_offset)
    if len(paths) > _MAX_TILES:
        raise SettingError(
            uri, f"holds {len(paths):,} images (at most {_MAX_TILES:,})", "Give a part of them."
        )
    if pixel_grid:
        raise SettingError(
            uri, "is a folder, and images without a CRS cannot be mosaicked", "Name one image."
        )
    scenes = [open_file(p, assume_crs=assume_crs, s2_offset=s2_offset) for p in paths]
    ids = [band_of_name(p.name) for p in paths]
    single = [len(s.layers) == 1 for s in scenes]
    if all(single) and all(ids) and len(set(ids)) == len(ids):
        return open_bands(scenes, name, uri)
    if all(single) and len({str(s.info.geobox.extent.wkt) for s in scenes}) == 1:
        hint = "Name the bands in the file names (B02, B03, ...), or stack them in one file."
        raise BandError(uri, f"holds {len(paths)} single-band images of the same place", hint)
    return MosaicScene(scenes, name, uri)


def _matches(pattern: str) -> list[Path]:
    parts = Path(pattern).parts
    fixed = next(i for i, p in enumerate(parts) if any(c in p for c in "*?["))
    found = Path(*parts[:fixed]).glob("/".join(parts[fixed:]))
    tiles = sorted((p for p in found if p.is_file() and p.suffix.lower() in _TILES), key=natural_order)
    if not tiles:
        raise FileMissingError(pattern, "matches no image", "Check the pattern, and put it in quotes.")
    return tiles


def natural_order(path: Path) -> tuple:
    """Order by name with numbers as numbers, so that tile 10 follows tile 9 on every machine."""
    parts = re.split(r"(\d+)", str(path))
    return tuple((int(p), "") if p.isdigit() else (-1, p) for p in parts)
