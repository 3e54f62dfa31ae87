"""The pictures of a finished run as others may look at them: whole, or cut around a place."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.grid.scene import Window
from terralapse.products.imagery import change_layer
from terralapse.products.ninths import NINTHS, PARTS, Ninths

_LEAST = 32  # pixels of a side of a crop, so that there is something to see
_MARGIN = 0.15  # of the longer side, around an object


def place_mask(box: GeoBox, place: str) -> np.ndarray:
    """bool [h, w]: the pixels of a grid that lie in `ninth.north-west`, `part.north` and so on.

    Raises:
        SettingError: no ninth and no third.
    """
    kind, _, name = place.partition(".")
    wanted = (name,) if kind == "ninth" and name in NINTHS else PARTS.get(name, ()) if kind == "part" else ()
    if not wanted:
        raise SettingError(f"place {place}", "is no ninth and no third of a grid", "Write ninth.north-west.")
    height = box.shape.y
    return np.isin(Ninths(box, height).codes(0, height), [NINTHS.index(n) for n in wanted])


@dataclass
class RunPictures:
    """Both dates of a run as its products show them: uint8 [h, w, 3] each on one preview grid, grey where
    nothing is known, in the run's stretch; `step` is full pixels to one of theirs."""

    folder: Path
    before: np.ndarray
    after: np.ndarray
    box: GeoBox
    step: float
    shape: tuple[int, int]
    run: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> RunPictures:
        """Reads `before.tif`, `after.tif` and `run.json`.

        Raises:
            FileMissingError: no finished run of two dates, or one without pictures.
            UnreadableFileError: damaged, or a run of many dates.
        """
        folder = Path(folder)
        path = folder / "run.json"
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            shape = run["grid"]["height"], run["grid"]["width"]
        except FileNotFoundError as error:
            raise FileMissingError(path, "is missing, so this is no finished run", "Run again.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableFileError(
                path, "is no record of a run of two dates", "Give a folder of `terralapse change`."
            ) from error
        drawn = [_read(folder / f"{date}.tif") for date in ("before", "after")]
        size = drawn[0][0].shape[:2]
        if drawn[1][0].shape[:2] != size:
            raise UnreadableFileError(folder, "has pictures of different sizes", "Run again.")
        grid = run["grid"]
        box = GeoBox(size, drawn[0][1], grid["crs"])
        return cls(folder, drawn[0][0], drawn[1][0], box, shape[1] / size[1], shape, run)

    def window(self, place: str) -> Window:
        """Where a place is on the full grid: `ninth.north`, `part.north`, or `object.1`.

        Raises:
            SettingError: no such place.
        """
        if place.startswith("object."):
            return self._of_object(place)
        rows, cols = (np.flatnonzero(place_mask(self.box, place).any(axis=a)) for a in (1, 0))
        if not len(rows):
            raise SettingError(f"place {place}", "holds no pixel", "Ask about a larger one.")
        edges = [round(self.step * v) for v in (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1)]
        return Window(edges[0], edges[1], edges[2] - edges[0], edges[3] - edges[1]).clip(*self.shape)

    def _of_object(self, place: str) -> Window:
        path = self.folder / "facts.json"
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
            found = next(f for f in facts if f["id"] == f"{place}.place")["value"]["window"]
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            raise SettingError(place, "is none of the objects with facts of their own", "Try 1.") from error
        around = Window(*map(int, found))
        return around.pad(round(_MARGIN * max(around.height, around.width))).clip(*self.shape)

    def cut(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        """Both dates inside a window of the full grid, uint8 [h, w, 3], at least 32 pixels a side where the
        picture has them."""
        slices = self._slices(window)
        return self.before[slices], self.after[slices]

    def _slices(self, window: Window) -> tuple[slice, slice]:
        found = []
        for start, length, size in zip(
            (window.row, window.col), (window.height, window.width), self.before.shape, strict=False
        ):
            first, last = int(start / self.step), int(np.ceil((start + length) / self.step))
            lack = max(0, min(_LEAST, size) - (last - first))
            first = min(max(0, first - lack // 2), max(0, size - (last - first) - lack))
            found.append(slice(first, min(size, max(last, first + min(_LEAST, size)))))
        return found[0], found[1]

    def marked(self, window: Window | None = None) -> np.ndarray:
        """The later date with what changed drawn over it, uint8 [h, w, 3], whole or inside a window."""
        with _quiet(), rasterio.open(self.folder / "change.tif") as file:
            shape = self.before.shape[:2]
            changed = file.read(1, out_shape=shape, resampling=Resampling.nearest) == 1
        layer = change_layer(changed.astype(np.float32))
        alpha = layer[..., 3:] / 255.0
        drawn = (self.after * (1 - alpha) + layer[..., :3] * alpha).round().astype(np.uint8)
        return drawn if window is None else drawn[self._slices(window)]


def as_image(picture: np.ndarray, most: int) -> Image.Image:
    """A picture for a model or a file: RGB, no side longer than `most`."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image


def side_by_side(before: np.ndarray, after: np.ndarray, gap: int = 8) -> np.ndarray:
    """Both dates in one picture, the earlier one on the left, white between them."""
    between = np.full((before.shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([before, between, after], axis=1)


def _quiet() -> warnings.catch_warnings[None]:
    """A run in pixels has no georeference, which is no news."""
    return warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning)


def _read(path: Path) -> tuple[np.ndarray, Affine]:
    if not path.is_file():
        raise FileMissingError(
            path, "is missing: the run has written no pictures", "Run again with pictures=True (the default)."
        )
    try:
        with _quiet(), rasterio.open(path) as source:
            picture = np.moveaxis(source.read((1, 2, 3)), 0, -1)
            known = source.dataset_mask() > 0
            transform = source.transform
    except (RasterioIOError, IndexError) as error:
        raise UnreadableFileError(path, "is no picture of a run", "Run `terralapse change` again.") from error
    return np.where(known[..., None], picture, np.uint8(128)), transform
