"""Pictures of the two dates and of the layers over them, small enough to be sent.

Both dates get the same stretch, from the 2nd to the 98th percentile of what is valid in either, so that a
difference that is seen is a difference in the data. What has no data is transparent.
"""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

from terralapse.grid.pair import Pair
from terralapse.grid.scene import Window
from terralapse.labels import BINARY_CHANGE, VALIDITY
from terralapse.sensors import Unit

RAMP = ("#fff7d6", "#fed98e", "#fb9a4b", "#e7526d", "#b0126f", "#5e0a5c")  # lightness falls all the way
CHANGE_COLOUR = BINARY_CHANGE.by_value(1).colour
_MOST_BYTES = 1_250_000  # of one picture in the report
_COLOUR_SETS = (("red", "green", "blue"), ("nir", "red", "green"), ("vv", "vh"))


@dataclass(frozen=True)
class Look:
    """Which bands are shown and how: `low` and `high` by band, in the unit of the pair."""

    bands: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    decibel: bool = False

    @property
    def text(self) -> str:
        """For the caption."""
        if len(self.bands) == 1:
            return f"{self.bands[0]} in grey"
        if self.bands == ("red", "green", "blue"):
            return "natural colour"
        return "/".join(self.bands) + " as red/green/blue"

    def draw(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[C, h, w] in the pair's unit to uint8 [h, w, 3] and the uint8 [h, w] opacity."""
        values = _decibel(images) if self.decibel else images
        known = np.isfinite(values).all(axis=0)
        span = np.maximum(self.high - self.low, 1e-12)[:, None, None]
        scaled = np.clip((values - self.low[:, None, None]) / span, 0, 1)
        drawn = np.where(known, np.nan_to_num(scaled) * 255, 255).round().astype(np.uint8)
        drawn = drawn[[0, min(1, len(drawn) - 1), len(drawn) - 1]] if len(drawn) != 3 else drawn
        return np.moveaxis(drawn, 0, -1), np.where(known, 255, 0).astype(np.uint8)


@dataclass
class Pictures:
    """The two dates on one preview grid: uint8 [h, w, 3], and what is not transparent, uint8 [h, w]."""

    geobox: GeoBox
    look: Look
    before: np.ndarray
    before_alpha: np.ndarray
    after: np.ndarray
    after_alpha: np.ndarray


def _decibel(values: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.where(values > 0, values, np.nan))


def display_bands(pair: Pair) -> tuple[str, ...]:
    """Natural colour where both dates have it, else the first three bands, else the first in grey."""
    common = {b.name for b in pair.before.bands} & {b.name for b in pair.after.bands}
    common |= {b.name for b in pair.bands}
    return shown_of(common, tuple(b.name for b in pair.bands))


def shown_of(known: set[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """The bands that are shown: a set of colours that is known, else the first three of `names`, or one."""
    for wanted in _COLOUR_SETS:
        if known.issuperset(wanted):
            return wanted
    return names[:3] if len(names) >= 3 else names[:1]


def picture(pair: Pair, max_size: int) -> Pictures:
    """Both dates, decimated so that neither side exceeds `max_size`."""
    bands = display_bands(pair)
    block, box = pair.preview(max_size, bands)
    look = look_of(block.images, bands, pair.unit)
    return Pictures(box, look, *look.draw(block.images[0]), *look.draw(block.images[1]))


def look_of(images: np.ndarray, bands: tuple[str, ...], unit: Unit) -> Look:
    """One look for all dates of images [T, C, h, w]: from the 2nd to the 98th percentile of what is known."""
    decibel = unit is Unit.POWER
    values = _decibel(images) if decibel else images
    low, high = np.empty(len(bands)), np.empty(len(bands))
    # Display values of one camera keep their colour balance; physical bands are stretched one by one.
    groups = [list(range(len(bands)))] if unit is Unit.RGB255 else [[i] for i in range(len(bands))]
    for group in groups:
        known = values[:, group][np.isfinite(values[:, group])]
        low[group], high[group] = np.percentile(known, (2, 98)) if known.size else (0.0, 1.0)
    return Look(bands, low, high, decibel)


def thumbnails(pair: Pair, pictures: Pictures, window: Window, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Both dates around a window of the full grid, uint8 [size, size, 4] each.

    Read at full resolution when the window is not much larger than the thumbnail and the pair holds the
    bands shown, else cut from the preview.
    """
    names = [b.name for b in pair.bands]
    step = pair.shape[1] / pictures.geobox.shape.x
    sharp = step > 1 and max(window.height, window.width) <= 4 * size
    if sharp and set(pictures.look.bands) <= set(names):
        order = [names.index(b) for b in pictures.look.bands]
        images = pair.read(window).images[:, order]
        drawn = [np.dstack(pictures.look.draw(images[date])) for date in range(2)]
    else:
        drawn = [
            _cut(np.dstack([picture, alpha]), window, step)
            for picture, alpha in (
                (pictures.before, pictures.before_alpha),
                (pictures.after, pictures.after_alpha),
            )
        ]
    before, after = (
        np.asarray(Image.fromarray(d).resize((size, size), Image.Resampling.LANCZOS)) for d in drawn
    )
    return before, after


def _cut(picture: np.ndarray, window: Window, step: float) -> np.ndarray:
    """The window (full pixels) of a preview; transparent beyond it."""
    r0, c0 = int(window.row // step), int(window.col // step)
    h, w = max(1, round(window.height / step)), max(1, round(window.width / step))
    out = np.zeros((h, w, 4), np.uint8)
    inside = Window(r0, c0, h, w).clip(*picture.shape[:2])
    if inside.height and inside.width:
        rows, cols = Window(inside.row - r0, inside.col - c0, inside.height, inside.width).slices
        out[rows, cols] = picture[inside.slices]
    return out


# --- layers ----------------------------------------------------------------------------------------
def rgb(colour: str) -> tuple[int, int, int]:
    """#rrggbb as three numbers."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def ramp(values: np.ndarray) -> np.ndarray:
    """0..1 to uint8 [..., 3] along the sequential ramp."""
    stops = np.array([rgb(c) for c in RAMP], np.float64)
    at = np.nan_to_num(np.clip(values, 0, 1)) * (len(stops) - 1)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, i]) for i in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def change_layer(changed: np.ndarray) -> np.ndarray:
    """Share of change of each preview pixel to RGBA; a trace of change stays visible."""
    share = np.nan_to_num(changed)
    alpha = np.where(share > 0, 90 + 165 * np.sqrt(share), 0)
    return np.dstack([np.full((*share.shape, 3), rgb(CHANGE_COLOUR), np.uint8), alpha.astype(np.uint8)])


def probability_layer(probability: np.ndarray) -> np.ndarray:
    """Probability to RGBA: the unlikely lets the picture through."""
    alpha = np.where(np.isfinite(probability), 235 * np.clip(np.nan_to_num(probability) / 0.45, 0, 1), 0)
    return np.dstack([ramp(probability), alpha.astype(np.uint8)])


def mask_layer(reason: np.ndarray) -> np.ndarray:
    """Reasons to RGBA; compared pixels are transparent."""
    table = np.zeros((256, 4), np.uint8)
    for c in VALIDITY.classes:
        table[c.value] = (*rgb(c.colour), 0 if c.value == 0 else 255)
    return table[reason]


def data_uri(image: np.ndarray, *, quality: int | None = 80, most: int = _MOST_BYTES) -> str:
    """WebP as a data URI; `quality` None is lossless.

    A lossy picture that takes more than `most` bytes is made again, coarser each time: first in quality,
    then in size (the page stretches it to the same place).
    """
    picture = Image.fromarray(image)
    sink = io.BytesIO()
    if quality is None:
        picture.save(sink, "WEBP", lossless=True, quality=60, method=4)
    else:
        picture.save(sink, "WEBP", quality=quality, method=4, alpha_quality=70)
        if sink.tell() > most and quality > 45:
            return data_uri(image, quality=quality - 15, most=most)
        if sink.tell() > most and min(picture.size) > 64:
            half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
            return data_uri(np.asarray(half), quality=quality, most=most)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode("ascii")


def write_preview(path: Path, picture: np.ndarray, alpha: np.ndarray, geobox: GeoBox) -> None:
    """A small georeferenced picture (JPEG in GeoTIFF with a mask), for GIS and notebooks."""
    profile = {
        "driver": "GTiff",
        "count": 3,
        "dtype": "uint8",
        "height": picture.shape[0],
        "width": picture.shape[1],
        "transform": geobox.affine,
        "crs": None if geobox.crs is None else str(geobox.crs.to_wkt()),
        "compress": "jpeg",
        "photometric": "ycbcr",
        "jpeg_quality": 85,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
    }
    with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a run in pixels has nothing to write
        with rasterio.open(path, "w", **profile) as sink:
            sink.write(np.moveaxis(picture, -1, 0))
            sink.write_mask(alpha)
