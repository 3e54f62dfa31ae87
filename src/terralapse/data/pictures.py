"""Images and label maps as the data sets store them: PNG, JPEG and TIFF of 8 bits, and what labels hold.

A label map is stored in one of three ways: 0 and 255 (or 0 and 1) for two classes, class ids, or the colours
of a scheme. What a file holds is checked, so that a wrong order of colours or a resampled mask is an error
that names the file, not a few wrong pixels.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from terralapse.data.pairs import IGNORE
from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.labels import ClassScheme

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
RGB = ("red", "green", "blue")
MOST_NAMED = 12  # classes or colours in one error
Colour = tuple[int, int, int]


def files_of(folder: Path) -> dict[str, Path]:
    """The images in a folder by name without suffix.

    Raises:
        UnreadableFileError: two files have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise UnreadableFileError(
                path, f"has the same name as {found[path.stem].name}", "Keep one file for each image."
            )
        found[path.stem] = path
    return found


def need_folder(folder: Path, hint: str) -> Path:
    """`folder`, which has to be there.

    Raises:
        FileMissingError: it is not.
    """
    if not folder.is_dir():
        raise FileMissingError(folder, "is not there", hint)
    return folder


def same_size(path: Path, label: np.ndarray, *images: np.ndarray) -> None:
    """Checks that a label [H, W] and its images [C, H, W] are of one size.

    Raises:
        UnreadableFileError: they are not; names the label's file and the sizes.
    """
    sizes = [i.shape[1:] for i in images]
    if any(s != label.shape for s in sizes):
        raise UnreadableFileError(
            path,
            f"is {label.shape}, its images are {' and '.join(map(str, sizes))}",
            "The files of one sample must have the same height and width.",
        )


def read_rgb(path: Path, content: bytes | None = None) -> np.ndarray:
    """An image as float32 [3, H, W] of 0..255; grey is repeated. `content` is read in place of the file.

    Of a TIFF with more bands the first three are taken.

    Raises:
        UnreadableFileError: no image of 8 bits.
    """
    pixels, mode = _open(path, content, as_rgb=("P", "PA", "CMYK", "YCbCr", "LAB"))
    if mode == "RGBA" and path.suffix.lower() not in (".tif", ".tiff") and (pixels[..., 3] != 255).any():
        raise UnreadableFileError(path, "is transparent in places", "Store it as RGB.")
    if pixels.dtype != np.uint8:
        raise UnreadableFileError(path, f"has values of type {pixels.dtype}", "RGB of 8 bits is needed.")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] < 3:
        raise UnreadableFileError(path, f"has {pixels.shape[2]} bands", "RGB of 8 bits is needed.")
    return np.ascontiguousarray(pixels[..., :3].transpose(2, 0, 1), dtype=np.float32)


def read_binary(path: Path, threshold: int | None = None, content: bytes | None = None) -> np.ndarray:
    """A label of two classes as uint8 [H, W] of 0, 1 and `IGNORE`.

    The file holds 0 and 255, or 0 and 1, or 0, 1 and 255 (not annotated). Without a 1 in the file, 255 is
    the class 1. Masks that were resampled or stored as JPEG hold other values too: with `threshold`, values
    above it are 1 and nothing is left out.

    Raises:
        UnreadableFileError: other values, or colours.
    """
    plane = read_values(path, content)
    if threshold is not None:
        return (plane > threshold).astype(np.uint8)
    found = set(values_in(plane))
    if not found <= {0, 1, 255}:
        raise UnreadableFileError(
            path,
            f"holds {_few(sorted(found))}, and a mask holds 0 and 255 or 0 and 1",
            "If it was resampled or compressed, give `threshold=127`.",
        )
    if 1 not in found:
        return (plane == 255).astype(np.uint8)
    return plane.astype(np.uint8)


def read_classes(
    path: Path, scheme: ClassScheme, ignored: tuple[Colour, ...] = (), content: bytes | None = None
) -> np.ndarray:
    """A map of class ids or of the colours of `scheme` as uint8 [H, W] of the scheme's values and `IGNORE`.

    Args:
        ignored: colours that stand for `IGNORE`. An id that is the scheme's nodata does so too.

    Raises:
        UnreadableFileError: an id or a colour that the scheme does not have.
    """
    pixels, mode = _open(path, content)
    table = _colour_table(scheme, ignored)
    if mode == "P":  # with the colours of the scheme, or with ids and any colours
        coloured, _ = _open(path, content, as_rgb=("P",))
        if np.isin(_packed(coloured), list(table)).all():
            return _by_colour(path, coloured, table)
    if pixels.ndim == 3:
        repeated = bool((pixels[..., :1] == pixels[..., 1:3]).all())
        if repeated and not ignored and pixels[..., 0].max() < len(scheme.classes):
            return _by_id(path, pixels[..., 0], scheme)  # ids, the same in every band
        return _by_colour(path, pixels[..., :3], table)
    return _by_id(path, pixels, scheme)


def _by_id(path: Path, plane: np.ndarray, scheme: ClassScheme) -> np.ndarray:
    known = [c.value for c in scheme.classes]
    strange = [v for v in values_in(plane) if v not in known and v != scheme.nodata]
    if strange:
        counts = ", ".join(f"{v} on {int((plane == v).sum()):,} pixels" for v in strange[:MOST_NAMED])
        raise UnreadableFileError(
            path,
            f"holds {_few(strange)}, which is no class of {scheme.slug} ({counts})",
            f"{scheme.slug} has {_few(known)}. Check the data set's version, or name another scheme.",
        )
    return np.where(plane == scheme.nodata, IGNORE, plane).astype(np.uint8)


def _by_colour(path: Path, pixels: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    packed = _packed(pixels)
    values, known = np.zeros(packed.shape, np.uint8), np.zeros(packed.shape, bool)
    for colour, value in table.items():
        here = packed == colour
        values[here] = value
        known |= here
    if not known.all():
        colours, counts = np.unique(packed[~known], return_counts=True)
        most = np.argsort(-counts, kind="stable")[:MOST_NAMED]
        named = "; ".join(
            f"({c >> 16}, {c >> 8 & 255}, {c & 255}) on {n:,} pixels"
            for c, n in ((int(colours[i]), int(counts[i])) for i in most)
        )
        rest = f"; and {len(colours) - MOST_NAMED} more" if len(colours) > MOST_NAMED else ""
        raise UnreadableFileError(
            path,
            f"holds colours that no class has: {named}{rest}",
            "Labels must be stored without compression losses, in the colours of their scheme.",
        )
    return values


def _colour_table(scheme: ClassScheme, ignored: tuple[Colour, ...]) -> dict[int, int]:
    table = {int(c.colour[1:], 16): c.value for c in scheme.classes}
    return table | {red << 16 | green << 8 | blue: IGNORE for red, green, blue in ignored}


def _packed(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def values_in(plane: np.ndarray) -> list[int]:
    """The values that occur, in order; quick for 8 bits."""
    if plane.dtype == np.uint8:
        return np.flatnonzero(np.bincount(plane.ravel(), minlength=256)).tolist()
    return np.unique(plane).tolist()


def _few(values: list[int]) -> str:
    shown = ", ".join(map(str, values[:6]))
    return shown if len(values) <= 6 else f"{shown} and {len(values) - 6} more"


def read_values(path: Path, content: bytes | None = None) -> np.ndarray:
    """The numbers in a file of one band as [H, W]; bands that are all the same count as one.

    Raises:
        UnreadableFileError: the bands differ.
    """
    pixels, _ = _open(path, content)
    if pixels.ndim == 2:
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if (pixels[..., :1] != pixels[..., 1:3]).any():
        raise UnreadableFileError(path, "is coloured, and a mask is not", "Give the mask.")
    return pixels[..., 0]


def _open(path: Path, content: bytes | None, as_rgb: tuple[str, ...] = ()) -> tuple[np.ndarray, str]:
    """Pixels [H, W] or [H, W, C] and the mode of Pillow (`raster` where GDAL read them); images of the modes
    `as_rgb` are converted."""
    if content is None and not path.is_file():
        raise FileMissingError(path, "is not there", "Check the data set's folder.")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            found = image.convert("RGB") if image.mode in as_rgb else image
            return np.asarray(found), found.mode
    except UnidentifiedImageError as error:
        if content is None and path.suffix.lower() in (".tif", ".tiff"):
            return _open_raster(path), "raster"
        raise UnreadableFileError(path, "is no image", "Check that it was copied whole.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableFileError(path, f"is too large ({error})", "Cut the scene into tiles.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error


def _open_raster(path: Path) -> np.ndarray:
    """A TIFF that Pillow does not know, read with GDAL."""
    import rasterio  # here, so that data sets without such files need no GDAL
    from rasterio.errors import RasterioError

    from terralapse.grid._gdal import gdal_env

    try:
        with gdal_env(), rasterio.open(path) as file:
            bands = file.read()
    except RasterioError as error:
        raise UnreadableFileError(path, f"cannot be read ({error})", "Copy it again.") from error
    return bands[0] if len(bands) == 1 else bands.transpose(1, 2, 0)
