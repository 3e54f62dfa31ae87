"""One honest score of a detector on a labelled data set, under a protocol that the report states.

Whole tiles go through the detector as the scene engine would feed them (nothing but nodata around them). One
confusion matrix is kept for each tile; scores come from their sum, intervals from drawing tiles again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from terralapse import registry
from terralapse.data.pairs import IGNORE, ChangeSet, LabelledPair
from terralapse.data.samples import SemanticPair
from terralapse.errors import SettingError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.metrics import (
    BinaryScores,
    binary_scores,
    bootstrap_interval,
    boundary_counts,
    boundary_f1,
    confusion_matrix,
    expected_calibration_error,
    object_counts,
    reliability,
)

Fit = Literal["tile", "set"]
OBJECT_SIZES = (0, 16, 64, 256, 1024)  # pixels
OUTLINE_TOLERANCE = 2.0  # pixels


@dataclass(frozen=True)
class ScoreReport:
    """What was measured, how, and the counts that it can be recomputed from.

    `counts` int64 [parts, 2, 2] (rows label, columns prediction) of each tile, or of each block of a scene
    when `block` is set; `interval` the 95 % interval of the change F1 over these parts, None with fewer than
    two. `ece` is of the probabilities as they are. `megapixels_a_second` covers `predict` alone,
    `fit_seconds` all of the fitting.
    """

    detector: str
    dataset: str
    fit: Fit
    threshold: float
    tiles: int
    block: int | None
    parts: list[str]
    counts: np.ndarray
    scores: BinaryScores
    interval: tuple[float, float] | None
    ece: float
    reliability: np.ndarray
    boundary_f1: float
    objects: np.ndarray
    masked: int
    megapixels_a_second: float
    fit_seconds: float
    device: str
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """The protocol as a sentence."""
        fitted = "each tile by itself" if self.fit == "tile" else "all tiles together"
        over = "tiles" if self.block is None else f"blocks of {self.block} pixels"
        return (
            f"{self.tiles} whole tiles, statistics of the scene fitted on {fitted}, threshold "
            f"{self.threshold:g}, counts summed over the set, 95 % interval by bootstrap over {over}"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is 0/0 becomes None."""
        found = {k: _number(v) for k, v in self.scores.as_dict().items()}
        return {
            "detector": self.detector,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "fit": self.fit,
            "threshold": self.threshold,
            "tiles": self.tiles,
            "scores": found,
            "f1_interval_95": None if self.interval is None else list(self.interval),
            "ece": _number(self.ece),
            "reliability": {
                "pixels": self.reliability[0].tolist(),
                "probability": self.reliability[1].tolist(),
                "changed": self.reliability[2].tolist(),
            },
            "boundary_f1": _number(self.boundary_f1),
            "boundary_tolerance_pixels": OUTLINE_TOLERANCE,
            "objects": [
                {"from_pixels": size, "found": int(f), "all": int(n)}
                for size, (f, n) in zip(OBJECT_SIZES, self.objects, strict=True)
            ],
            "masked_pixels": self.masked,
            "megapixels_a_second": self.megapixels_a_second,
            "fit_seconds": self.fit_seconds,
            "device": self.device,
            "versions": self.versions,
            "parts": dict(zip(self.parts, self.counts.reshape(-1, 4).tolist(), strict=True)),
        }


def score(
    detector: str | ChangeDetector,
    dataset: ChangeSet,
    *,
    fit: Fit = "tile",
    threshold: float | None = None,
    block: int | None = None,
    device: str = "cpu",
    samples: int = 2000,
    seed: int = 0,
) -> ScoreReport:
    """Scores a detector of binary change on a labelled data set.

    Args:
        detector: a slug, or a built detector.
        dataset: labelled pairs; its split is its own affair and belongs in its title.
        fit: whether what must be known of a scene (stretch, statistics, threshold) is taken from each tile
            by itself, as for a scene of that size, or from all tiles together, as for one large scene.
        threshold: of the probability; by default the detector's own.
        block: cuts each tile into squares of this many pixels for the interval: for sets of one scene.
        device: for `predict`.
        samples, seed: of the bootstrap.

    Raises:
        SettingError: the data set is empty, or `block` is not positive.
        ModelInputError: the detector cannot take these bands.
    """
    built: ChangeDetector = registry.build(detector) if isinstance(detector, str) else detector
    if len(dataset) == 0:
        raise SettingError(dataset.title, "has no labelled pairs", "Check the folder and the split.")
    if block is not None and block < 1:
        raise SettingError(f"block={block}", "is not a number of pixels", "Give a positive number.")
    built = built.to(device)
    shared, fit_seconds = (None, 0.0) if fit == "tile" else _timed_fit(built, _all_together(dataset, built))
    tally = _Tally(block)
    used = threshold
    for pair in dataset:
        state, seconds = (shared, 0.0) if shared is not None else _timed_fit(built, _sample(pair, built))
        fit_seconds += seconds
        used = threshold_of(built, state) if threshold is None else threshold
        started = time.perf_counter()
        probability, known = predict_whole(built, array_pair(pair, built), state, device)
        tally.add(pair, probability, known, used, time.perf_counter() - started)
    assert used is not None
    return tally.report(
        detector=built.card.slug,
        dataset=dataset.title,
        fit=fit,
        threshold=used,
        tiles=len(dataset),
        fit_seconds=fit_seconds,
        device=device,
        samples=samples,
        seed=seed,
    )


def predict_whole(
    detector: ChangeDetector, pair: ArrayPair, state: dict[str, Any], device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Probability float32 [H, W] of a pair in memory as one tile with its halo, and where it is known."""
    height, width = pair.shape
    window = Window(0, 0, height, width).pad(detector.halo)
    grown = Window(
        window.row,
        window.col,
        -(-window.height // detector.multiple) * detector.multiple,
        -(-window.width // detector.multiple) * detector.multiple,
    )
    block = pair.read(grown)
    images = torch.from_numpy(block.images)[None].to(device)
    valid = torch.isfinite(images).all(dim=2)
    with torch.inference_mode():
        probability = detector.predict(images, valid, state)[0].cpu().numpy()
    core = (slice(detector.halo, detector.halo + height), slice(detector.halo, detector.halo + width))
    return probability[core], block.valid[core]


def _layers(
    pair: LabelledPair | SemanticPair, detector: ChangeDetector | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Images and their bands, with the map as one more for a detector that takes one."""
    if pair.map is None or "map" not in getattr(detector, "extras", ()):
        return pair.images, pair.bands
    plane = np.broadcast_to(pair.map.astype(np.float32), (2, 1, *pair.map.shape))
    return np.concatenate([pair.images, plane], axis=1), (*pair.bands, "map")


def array_pair(pair: LabelledPair | SemanticPair, detector: ChangeDetector | None = None) -> ArrayPair:
    """A labelled pair as the scene that a detector is fitted on, with its map for one that takes it."""
    images, bands = _layers(pair, detector)
    return ArrayPair(images, bands=bands, unit=pair.unit, gsd=pair.gsd, name=pair.name)


def _sample(pair: LabelledPair, detector: ChangeDetector) -> PairSample:
    return array_pair(pair, detector).sample()


def _all_together(dataset: ChangeSet, detector: ChangeDetector) -> PairSample:
    """All tiles of a set as blocks of one scene, one below the other."""
    pairs = list(dataset)
    first = pairs[0]
    tiles = [_layers(p, detector) for p in pairs]
    width = max(p.images.shape[3] for p in pairs)
    rows = [
        np.pad(
            images,
            ((0, 0), (0, 0), (0, 0), (0, width - images.shape[3])),
            constant_values=np.float32(np.nan),
        )
        for images, _ in tiles
    ]
    scene = ArrayPair(
        np.concatenate(rows, axis=2),
        bands=tiles[0][1],
        unit=first.unit,
        gsd=first.gsd,
        name=dataset.title,
    )
    starts = np.cumsum([0, *(p.images.shape[2] for p in pairs)])
    windows = [
        Window(int(top), 0, p.images.shape[2], p.images.shape[3])
        for top, p in zip(starts[:-1], pairs, strict=True)
    ]
    return PairSample(scene, windows, 1.0)


def _timed_fit(detector: ChangeDetector, sample: PairSample) -> tuple[dict[str, Any], float]:
    started = time.perf_counter()
    state = detector.fit(sample)
    return state, time.perf_counter() - started


def threshold_of(detector: ChangeDetector, state: dict[str, Any]) -> float:
    """The detector's own threshold: what it found in the scene, or what its card states."""
    stated = state.get("threshold", detector.card.threshold)
    return 0.5 if stated is None else float(stated)


class _Tally:
    """Adds up what the tiles of one set give."""

    def __init__(self, block: int | None) -> None:
        self.block = block
        self.parts: list[str] = []
        self.counts: list[np.ndarray] = []
        self.reliability = np.zeros((3, 15))
        self.outlines = np.zeros(4, np.int64)
        self.objects = np.zeros((len(OBJECT_SIZES), 2), np.int64)
        self.masked = 0
        self.pixels = 0
        self.seconds = 0.0

    def add(
        self, pair: LabelledPair, probability: np.ndarray, known: np.ndarray, threshold: float, seconds: float
    ) -> None:
        label = np.where(known, pair.label, IGNORE).astype(np.uint8)
        change = (probability >= threshold).astype(np.uint8)
        for name, area in self._areas(pair.name, label.shape):
            counts = confusion_matrix(label[area], change[area], 2)
            if counts.sum():
                self.parts.append(name)
                self.counts.append(counts)
        self.reliability += reliability(probability, label)
        self.outlines += boundary_counts(label, change, OUTLINE_TOLERANCE)
        self.objects += object_counts(label, change, OBJECT_SIZES)
        self.masked += int((~known).sum())
        self.pixels += label.size
        self.seconds += seconds

    def _areas(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[slice, slice]]]:
        if self.block is None:
            yield name, (slice(None), slice(None))
            return
        for row in range(0, shape[0], self.block):
            for col in range(0, shape[1], self.block):
                yield (
                    f"{name} {row}_{col}",
                    (slice(row, row + self.block), slice(col, col + self.block)),
                )

    def report(
        self,
        *,
        detector: str,
        dataset: str,
        fit: Fit,
        threshold: float,
        tiles: int,
        fit_seconds: float,
        device: str,
        samples: int,
        seed: int,
    ) -> ScoreReport:
        counts = np.stack(self.counts) if self.counts else np.zeros((0, 2, 2), np.int64)
        interval = None
        if len(counts) > 1:
            interval = bootstrap_interval(counts, lambda m: binary_scores(m).f1, samples, seed=seed)
        return ScoreReport(
            detector=detector,
            dataset=dataset,
            fit=fit,
            threshold=threshold,
            tiles=tiles,
            block=self.block,
            parts=self.parts,
            counts=counts,
            scores=binary_scores(counts.sum(axis=0)),
            interval=interval,
            ece=expected_calibration_error(self.reliability),
            reliability=self.reliability,
            boundary_f1=boundary_f1(self.outlines),
            objects=self.objects,
            masked=self.masked,
            megapixels_a_second=self.pixels / 1e6 / max(self.seconds, 1e-9),
            fit_seconds=fit_seconds,
            device=device,
            versions={"torch": torch.__version__, "numpy": np.__version__},
        )


def _number(value: float) -> float | None:
    return None if value != value else value
