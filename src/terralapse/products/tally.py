"""One streamed pass over the three rasters of a run: every number of the products comes from here.

Areas are sums of true pixel areas. The pass also reduces the rasters to the grid of the preview pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.grid.areas import PixelArea, on_ground
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.products.ninths import NINTHS, Ninths
from terralapse.products.zones import Zones

PROB_STEPS = 200  # prob.tif holds probability x 200
_PROBABILITY = np.minimum(np.arange(256), PROB_STEPS) / PROB_STEPS  # by stored value
_READ = 512  # rows: whole blocks
_STRIP = 256  # rows: what is computed on the way is half as large as what is read
_REASONS = len(Reason)
# Columns of a zone's sums: areas by reason (0 is what was compared), then these.
CHANGED, EXPECTED = _REASONS, _REASONS + 1
_COLUMNS = _REASONS + 2


@dataclass
class Layers:
    """The rasters on the preview grid: shares of the compared pixels, 0..1, NaN where none is.

    `reason` is the commonest code of the masked pixels where nothing is compared, and 0 elsewhere.
    """

    geobox: GeoBox
    changed: np.ndarray
    probability: np.ndarray
    reason: np.ndarray


@dataclass
class Tally:
    """What one pass finds.

    `area` float64 [15] and `pixels` int64 [15] by `Reason` (0: compared); `histogram` float64 [201]: compared
    area by stored probability; `changed_area`, `changed_pixels`: compared and over the threshold;
    `expected_area`: sum of probability x area over what was compared; `zones` float64 [n, 17]: areas by
    reason, changed, expected; `ninths` float64 [9, 3]: compared, changed and expected area in the order of
    `ninths.NINTHS`.
    """

    area: np.ndarray
    pixels: np.ndarray
    histogram: np.ndarray
    changed_area: float
    changed_pixels: int
    expected_area: float
    expected_changed: float
    zones: np.ndarray
    ninths: np.ndarray
    layers: Layers

    @property
    def observed_area(self) -> float:
        """Area that could be compared."""
        return float(self.area[Reason.VALID])

    @property
    def masked_area(self) -> float:
        """Area that could not, without what lies outside of the area of interest."""
        return float(self.area[Reason.OUTSIDE_AOI + 1 :].sum())

    @property
    def considered_area(self) -> float:
        """Compared and masked together: the area of interest."""
        return self.observed_area + self.masked_area


def tally(
    folder: Path,
    geobox: GeoBox,
    preview: GeoBox,
    zones: Zones,
    progress: Callable[[float], None] | None = None,
) -> Tally:
    """Reads `change.tif`, `prob.tif` and `valid.tif` of `folder` once, strip by strip.

    Args:
        folder: of the run.
        geobox: the grid of the rasters.
        preview: a coarser grid of the same place, for `Layers`.
        zones: what to count by.
        progress: called with the share done.
    """
    height, width = geobox.shape.y, geobox.shape.x
    sums = _Sums(len(zones), Ninths(geobox, _STRIP))
    coarse = _Coarse(geobox, preview)
    pixel_area = PixelArea(geobox)
    with (
        rasterio.open(folder / "change.tif") as change,
        rasterio.open(folder / "prob.tif") as prob,
        rasterio.open(folder / "valid.tif") as valid,
    ):
        for top in range(0, height, _READ):
            rows = min(_READ, height - top)
            window = RioWindow(0, top, width, rows)  # type: ignore[call-arg]
            read = [raster.read(1, window=window) for raster in (valid, prob, change)]
            for row in range(0, rows, _STRIP):
                reason, stored, changed = (pixels[row : row + _STRIP] for pixels in read)
                compared = (reason == Reason.VALID) & (stored <= PROB_STEPS)
                start = top + row
                area = pixel_area.block(Window(start, 0, len(reason), width))
                area = np.broadcast_to(area, reason.shape)
                strip = _Strip(start, reason, stored, (changed == 1) & compared, compared, area)
                sums.add(strip, zones)
                coarse.add(strip)
            if progress:
                progress((top + rows) / height)
    return sums.tally(coarse.layers())


@dataclass
class _Strip:
    start: int
    reason: np.ndarray
    stored: np.ndarray
    changed: np.ndarray
    compared: np.ndarray
    area: np.ndarray

    @cached_property
    def pixels(self) -> np.ndarray:
        """Number of pixels by reason."""
        return np.bincount(self.reason.ravel(), minlength=_REASONS)

    @property
    def columns(self) -> list[tuple[int, np.ndarray]]:
        """The column of a zone's sums that each layer of areas belongs to; empty layers are left out."""
        found = [(int(r), self.area * (self.reason == r)) for r in np.flatnonzero(self.pixels)]
        if self.changed.any():
            found.append((CHANGED, self.area * self.changed))
        expected = _PROBABILITY[self.stored]
        expected *= self.weight
        return [*found, (EXPECTED, expected)]

    @cached_property
    def weight(self) -> np.ndarray:
        """The area of what was compared, 0 elsewhere."""
        return self.area * self.compared


class _Sums:
    def __init__(self, zones: int, ninths: Ninths) -> None:
        self._ninths = ninths
        self.ninths = np.zeros((len(NINTHS), 3))
        self.area = np.zeros(_REASONS)
        self.pixels = np.zeros(_REASONS, np.int64)
        self.histogram = np.zeros(PROB_STEPS + 1)
        self.changed = np.zeros(3)  # area, pixels, expected area
        self.zones = np.zeros((zones, _COLUMNS))

    def add(self, strip: _Strip, zones: Zones) -> None:
        self.pixels += strip.pixels
        steps = np.bincount(strip.stored.ravel(), strip.weight.ravel(), minlength=len(_PROBABILITY))
        self.histogram += steps[: PROB_STEPS + 1]
        at, probability = strip.area[strip.changed], strip.stored[strip.changed] / PROB_STEPS
        self.changed += (at.sum(), len(at), (at * probability).sum())
        columns = strip.columns
        named = dict(columns)
        for code in np.flatnonzero(strip.pixels):
            self.area[code] += named[int(code)].sum()
        nothing = np.broadcast_to(0.0, strip.reason.shape)
        layers = [named.get(c, nothing) for c in (int(Reason.VALID), CHANGED, EXPECTED)]
        self._ninths.add(strip.start, layers, self.ninths)
        if zones.kind == "cell":
            self._add_cells(strip, zones, columns)
            return
        flat = [(c, layer.ravel()) for c, layer in columns]
        for zone, pixels, share in zones.cover(strip.start, *strip.reason.shape):
            for column, layer in flat:
                self.zones[zone, column] += (layer[pixels] * share).sum()

    def _add_cells(self, strip: _Strip, zones: Zones, columns: list[tuple[int, np.ndarray]]) -> None:
        rows, width = strip.reason.shape
        side = zones.side_px
        r = np.arange(strip.start, strip.start + rows) // side
        c = np.arange(width) // side
        table = self.zones.reshape(*zones.cells, _COLUMNS)
        for column, layer in columns:
            _reduce(layer, r, c, table[:, :, column])

    def tally(self, layers: Layers) -> Tally:
        values = np.arange(PROB_STEPS + 1) / PROB_STEPS
        area, pixels, expected = self.changed
        return Tally(
            area=self.area,
            pixels=self.pixels,
            histogram=self.histogram,
            changed_area=float(area),
            changed_pixels=int(pixels),
            expected_area=float((self.histogram * values).sum()),
            expected_changed=float(expected),
            zones=self.zones,
            ninths=self.ninths,
            layers=layers,
        )


def _reduce(layer: np.ndarray, rows: np.ndarray, cols: np.ndarray, total: np.ndarray) -> None:
    """Adds the sums of `layer` by (non-decreasing) row and column groups to `total`."""
    r = np.flatnonzero(np.diff(rows, prepend=rows[0] - 1))
    c = np.flatnonzero(np.diff(cols, prepend=cols[0] - 1))
    sums = np.add.reduceat(np.add.reduceat(layer, r, axis=0, dtype=np.float64), c, axis=1)
    total[np.ix_(rows[r], cols[c])] += sums


class _Coarse:
    """Sums on the preview grid, which must have the directions of the full one."""

    def __init__(self, geobox: GeoBox, preview: GeoBox) -> None:
        self._preview = preview
        shape = preview.shape.y, preview.shape.x
        down, across = np.arange(geobox.shape.y) + 0.5, np.arange(geobox.shape.x) + 0.5
        back = ~preview.affine
        cols = on_ground(back, *on_ground(geobox.affine, across, 0.5))[0]
        rows = on_ground(back, *on_ground(geobox.affine, 0.5, down))[1]
        self._rows = np.clip(rows.astype(np.intp), 0, shape[0] - 1)
        self._cols = np.clip(cols.astype(np.intp), 0, shape[1] - 1)
        self._compared, self._changed, self._prob = (np.zeros(shape) for _ in range(3))
        self._reasons: dict[int, np.ndarray] = {}

    def add(self, strip: _Strip) -> None:
        rows = self._rows[strip.start : strip.start + len(strip.reason)]
        _reduce(strip.compared, rows, self._cols, self._compared)
        _reduce(strip.changed, rows, self._cols, self._changed)
        _reduce(np.where(strip.compared, strip.stored, 0), rows, self._cols, self._prob)
        for code in np.flatnonzero(strip.pixels[1:]) + 1:
            total = self._reasons.setdefault(int(code), np.zeros(self._compared.shape, np.float32))
            _reduce(strip.reason == code, rows, self._cols, total)

    def layers(self) -> Layers:
        with np.errstate(invalid="ignore", divide="ignore"):
            changed = self._changed / self._compared
            probability = self._prob / self._compared / PROB_STEPS
        reason = np.zeros(changed.shape, np.uint8)
        most = np.zeros(changed.shape, np.float32)
        for code, total in sorted(self._reasons.items()):
            commoner = (total > most) & (self._compared == 0)
            reason[commoner], most[commoner] = code, total[commoner]
        return Layers(self._preview, changed.astype(np.float32), probability.astype(np.float32), reason)
