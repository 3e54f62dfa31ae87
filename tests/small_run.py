"""Runs to write products from: small ones in memory, with rasters made the way the engine makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy import ndimage

from terralapse.cards import Card, Figure, Status, Task
from terralapse.grid.cog import write_cog
from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Note
from terralapse.labels import BINARY_CHANGE, VALIDITY, Reason
from terralapse.products.run import ChangeRun
from terralapse.sensors import RGB, Unit

BOX = GeoBox((240, 320), Affine(2.0, 0, 400000, 0, -2.0, 4100000), "EPSG:32615")
CARD = Card(
    slug="testnet/rgb",
    title="A network for tests",
    task=Task.CHANGE,
    status=Status.RUNS,
    figures=(Figure("ece", 0.021, "made up", "validation split", "here"),),
    limits=("Has seen nothing but blobs.",),
)
ALIGNMENT: dict[str, Any] = {
    "verdict": "The dates are aligned within 0.2 px after correcting 1.4 px.",
    "rule": "the grid of the date before",
    "before": {"resampling": "none (pixels as they are)"},
    "after": {"resampling": "bilinear"},
    "coregistration": {
        "status": "corrected",
        "model": "translation",
        "moved": "after",
        "shift_px": {"dy": -0.9, "dx": 1.1},
        "standard_error_px": 0.02,
        "median_before_px": 1.41,
        "residual_median_px": 0.09,
        "residual_median_m": 0.18,
        "residual_p90_px": 0.17,
        "blocks_measured": 2,
        "blocks_reliable": 1,
        "misregistered": [],
        "blocks": [
            {
                "window": [0, 0, 120, 160],
                "state": "reliable",
                "shift_px": [-0.9, 1.1],
                "residual_px": [0.1, 0],
            },
            {"window": [120, 160, 120, 160], "state": "unknown", "shift_px": None, "residual_px": None},
        ],
    },
}


def squares(shape: tuple[int, int]) -> np.ndarray:
    """Two blocks of change (60 x 40 and 20 x 30 px), a speck and a thin line."""
    change = np.zeros(shape, bool)
    change[30:90, 200:240] = True
    change[150:170, 40:70] = True
    change[200, 300] = True
    change[210:212, 100:130] = True
    return change


def write_rasters(
    folder: Path, box: GeoBox, change: np.ndarray, prob: np.ndarray, reason: np.ndarray
) -> None:
    """The three rasters of a run."""
    valid = reason == Reason.VALID
    stored = np.where(valid, np.rint(prob * 200), 255).astype(np.uint8)
    classes = np.where(valid, change, 255).astype(np.uint8)
    write_cog(classes, folder / "change.tif", geobox=box, kind="class", nodata=255, scheme=BINARY_CHANGE)
    write_cog(stored, folder / "prob.tif", geobox=box, kind="continuous", nodata=255, scale=0.005)
    write_cog(reason, folder / "valid.tif", geobox=box, kind="class", scheme=VALIDITY)


def build_run(
    folder: Path,
    change: np.ndarray | None = None,
    probability: np.ndarray | None = None,
    reason: np.ndarray | None = None,
    box: GeoBox = BOX,
    bands: int = 3,
    **fields: Any,
) -> ChangeRun:
    """A run in a new folder; what is not given is the plain case."""
    folder.mkdir()
    shape = (box.shape.y, box.shape.x)
    change = squares(shape) if change is None else change
    probability = np.where(change, 0.9, 0.1) if probability is None else probability
    reason = np.zeros(shape, np.uint8) if reason is None else reason
    write_rasters(folder, box, change, probability, reason)
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(bands, *shape)), (0, 4, 4))
    ground = 120 + 400 * noise
    pair = ArrayPair(
        np.stack([ground, np.where(change, 210.0, ground)]),
        bands=RGB.bands[:bands],
        unit=Unit.RGB255,
        geobox=box,
        reason=reason,
        sensor=RGB,
        times=(datetime(2023, 5, 10, tzinfo=UTC), datetime(2024, 6, 2, 10, 30, tzinfo=UTC)),
        name="blobs",
    )
    values: dict[str, Any] = {
        "run_id": "0123456789ab",
        "folder": folder,
        "pair": pair,
        "card": CARD,
        "state": {"stretch": [[0.0, 255.0]]},
        "threshold": 0.5,
        "alignment": ALIGNMENT,
        "scene": {"tile": 512},
        "settings": {"before": "before.tif", "after": "after.tif", "model": "auto"},
        "started": datetime(2026, 11, 24, 8, 0, tzinfo=UTC),
        "warnings": [Note("warning", "gsd-out-of-range", "The pixels are larger than those of training.")],
    }
    return ChangeRun(**(values | fields))
