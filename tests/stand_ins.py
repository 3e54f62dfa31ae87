"""Detectors and pairs that stand in for real ones in tests of the engine: small, and with known answers."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from odc.geo.geobox import GeoBox
from rasterio.transform import Affine
from torch import Tensor, nn

from terralapse.cards import Card, Inputs, Status, Task
from terralapse.grid.pair import Pair, PairBlock, PairSample
from terralapse.grid.scene import SceneInfo, Window
from terralapse.labels import Reason
from terralapse.sensors import UNKNOWN, Band, Unit
from terralapse.tasks.change import ChangeDetector


def card(slug: str = "stand-in", halo: int = 0, **fields: Any) -> Card:
    return Card(slug, slug, Task.CHANGE, Status.RUNS, inputs=Inputs(halo=halo), **fields)


class FirstBand(ChangeDetector):
    """The probability is the first band of the first date: what goes in comes out."""

    def __init__(self, halo: int = 0, multiple: int = 1, exact: bool = True) -> None:
        self.card, self.halo, self.multiple, self.exact = card(halo=halo), halo, multiple, exact
        self.shapes: list[tuple[int, ...]] = []

    def fit(self, sample: PairSample) -> dict[str, Any]:
        return {"windows": len(sample.windows)}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        self.shapes.append(tuple(images.shape))
        return images[:, 0, 0].nan_to_num()


class Convolutions(ChangeDetector):
    """Five random 3 x 3 convolutions, or one for `depth` 1; steep, so that differences show."""

    def __init__(
        self, halo: int, bands: int = 2, depth: int = 5, width: int = 8, multiple: int = 1, exact: bool = True
    ) -> None:
        self.card, self.halo, self.multiple, self.exact = card(halo=halo), halo, multiple, exact
        generator = torch.Generator().manual_seed(1)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(2 * bands if i == 0 else width, width, 3, padding=1), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))
        with torch.no_grad():
            for p in self.network.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * (0.25 if p.ndim > 1 else 0.1))

    def fit(self, sample: PairSample) -> dict[str, Any]:
        return {}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        return torch.sigmoid(self.network(images.flatten(1, 2).nan_to_num())[:, 0].float())


class Attention(ChangeDetector):
    """Depends on the mean of the tile: no halo makes it independent of the tile."""

    exact = False

    def __init__(self, halo: int) -> None:
        self.card, self.halo = card(halo=halo), halo

    def fit(self, sample: PairSample) -> dict[str, Any]:
        return {}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        band = images[:, 0, 0].nan_to_num()
        return (0.8 * band + 0.2 * band.mean(dim=(1, 2), keepdim=True)).clamp(0, 1)


class Slow(FirstBand):
    """Takes its time for each batch, so that it can be killed in the middle."""

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(**options)
        self.seconds = seconds

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        time.sleep(self.seconds)
        return super().predict(images, valid, state)


class WavePair(Pair):
    """A pair of any size that is computed when it is read: smooth waves in 0..1, with a hole of nodata."""

    def __init__(self, height: int, width: int, hole: Window | None = None) -> None:
        self.geobox = GeoBox((height, width), Affine(10, 0, 500000, 0, -10, 4600000), "EPSG:32631")
        self.bands = (Band("b1", "b1"), Band("b2", "b2"))
        self.unit = Unit.RAW
        self.before = SceneInfo("before", "memory:before", UNKNOWN, self.bands, Unit.RAW, self.geobox)
        self.after = SceneInfo("after", "memory:after", UNKNOWN, self.bands, Unit.RAW, self.geobox)
        self.notes = []
        self.hole = hole

    def read(self, window: Window) -> PairBlock:
        rows = np.arange(window.row, window.row + window.height, dtype=np.float32)[:, None]
        cols = np.arange(window.col, window.col + window.width, dtype=np.float32)[None]
        images = np.empty((2, 2, window.height, window.width), np.float32)
        for date in range(2):
            for band in range(2):
                phase = 1.7 * date + 0.6 * band
                images[date, band] = 0.25 * (2 + np.sin(rows / 7 + phase) + np.cos(cols / 11 - phase))
        reason = np.zeros((window.height, window.width), np.uint8)
        height, width = self.shape
        reason[(rows < 0) | (rows >= height) | (cols < 0) | (cols >= width)] = Reason.OUTSIDE_BEFORE
        if self.hole is not None:
            h = self.hole
            inside = (rows >= h.row) & (rows < h.row + h.height) & (cols >= h.col) & (cols < h.col + h.width)
            reason[inside] = Reason.CLOUD_AFTER
        images[:, :, reason > 0] = np.nan
        return PairBlock(images, reason)

    def preview(self, max_size: int, bands: Any = None) -> Any:
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        return {"waves": list(self.shape)}
