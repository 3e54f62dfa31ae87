"""What is counted for one model of a benchmark, and the scores that follow from the counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from terralapse.data.pairs import IGNORE
from terralapse.engine.evaluate import OBJECT_SIZES, OUTLINE_TOLERANCE
from terralapse.tasks.metrics import (
    BinaryScores,
    binary_scores,
    boundary_counts,
    boundary_f1,
    confusion_matrix,
    expected_calibration_error,
    object_counts,
    reliability,
)
from terralapse.tasks.significance import compare, f1_interval, f1_of, holm

RATIOS = ("precision", "recall", "f1", "iou", "oa", "kappa")


class ModeTally:
    """Counts of one way of predicting the images (whole, or in tiles), image by image."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self.counts: list[np.ndarray] = []
        self.outlines: list[np.ndarray] = []
        self.objects: list[np.ndarray] = []
        self.reliability = np.zeros((3, 15))
        self.masked = 0

    def add(
        self, name: str, label: np.ndarray, probability: np.ndarray, change: np.ndarray, known: np.ndarray
    ) -> None:
        """Counts one image; where `known` is False nothing counts."""
        label = np.where(known, label, IGNORE).astype(np.uint8)
        self.images.append(name)
        self.counts.append(confusion_matrix(label, change, 2))
        self.outlines.append(boundary_counts(label, change, OUTLINE_TOLERANCE))
        self.objects.append(object_counts(label, change, OBJECT_SIZES))
        self.reliability += reliability(probability, label)
        self.masked += int((~known).sum())

    def summary(self, gsd: float, samples: int, seed: int) -> dict[str, Any]:
        """JSON-ready scores with every count that they follow from; what is 0/0 is None."""
        counts = np.stack(self.counts)
        outlines, objects = np.sum(self.outlines, axis=0), np.sum(self.objects, axis=0)
        low, high = f1_interval(counts, samples, seed=seed)
        return {
            "micro": _ratios(binary_scores(counts.sum(axis=0))),
            "f1_interval_95": _pair(low, high),
            # IoU = F1 / (2 - F1) rises with F1, so that its interval follows from that of F1.
            "iou_interval_95": _pair(low / (2 - low), high / (2 - high)),
            "mean_per_image": mean_per_image(self.counts),
            "boundary_f1": number(boundary_f1(outlines)),
            "ece": number(expected_calibration_error(self.reliability)),
            "objects": object_rows(objects, gsd),
            "masked_pixels": self.masked,
            "counts": {
                "tn_fp_fn_tp": {n: c.ravel().tolist() for n, c in zip(self.images, self.counts, strict=True)},
                "outlines": {n: o.tolist() for n, o in zip(self.images, self.outlines, strict=True)},
                "objects_found_all": {n: o.tolist() for n, o in zip(self.images, self.objects, strict=True)},
                "reliability_pixels_probability_changed": self.reliability.tolist(),
            },
        }


class Tally:
    """All counts of one model: `whole` images, `tiled` ones, and the matrices under each perturbation."""

    def __init__(self) -> None:
        self.whole, self.tiled = ModeTally(), ModeTally()
        self.disturbed: dict[str, list[np.ndarray]] = {}
        self.speeds: list[float] = []  # megapixels a second of `predict`, image by image
        self.fit_seconds: list[float] = []

    def disturb(self, slug: str, label: np.ndarray, change: np.ndarray, known: np.ndarray) -> None:
        """Counts one image under a perturbation."""
        label = np.where(known, label, IGNORE).astype(np.uint8)
        self.disturbed.setdefault(slug, []).append(confusion_matrix(label, change, 2))

    def robustness(self, slugs: Sequence[str], samples: int, seed: int) -> list[dict[str, Any]]:
        """F1 under each perturbation and how far it fell from that of the undisturbed images, with the paired
        bootstrap interval of the fall; None throughout where the model was not run."""
        clean = np.stack(self.whole.counts)
        rows: list[dict[str, Any]] = []
        for slug in slugs:
            if slug not in self.disturbed:
                rows.append(
                    {"perturbation": slug, "f1": None, "drop": None, "interval_95": None, "counts": None}
                )
                continue
            counts = np.stack(self.disturbed[slug])
            found = compare(clean, counts, samples=samples, exchanges=1, seed=seed)
            rows.append(
                {
                    "perturbation": slug,
                    "f1": number(float(f1_of(counts.sum(axis=0)))),
                    "drop": number(found.difference),
                    "interval_95": _pair(found.low, found.high),
                    "counts": {n: c.ravel().tolist() for n, c in zip(self.whole.images, counts, strict=True)},
                }
            )
        return rows


def paired_tests(tallies: dict[str, Tally], samples: int, seed: int) -> list[dict[str, Any]]:
    """Every pair of models on the whole images, with p corrected by Holm over the pairs."""
    names = list(tallies)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    counts = {n: np.stack(t.whole.counts) for n, t in tallies.items()}
    found = [compare(counts[a], counts[b], samples=samples, seed=seed) for a, b in pairs]
    corrected = holm([f.p for f in found])
    return [
        {
            "first": a,
            "second": b,
            "difference": number(f.difference),
            "interval_95": _pair(f.low, f.high),
            "p": number(f.p),
            "p_holm": number(p),
            "exact": f.exact,
            "images": f.images,
        }
        for (a, b), f, p in zip(pairs, found, corrected, strict=True)
    ]


def mean_per_image(counts: Sequence[np.ndarray]) -> dict[str, Any]:
    """The mean over images of each ratio, over the images where it is defined, whose number stands beside
    it. This weighs images alike; it is not the score of the published scorers."""
    scores = [binary_scores(c) for c in counts]
    means: dict[str, Any] = {}
    for ratio in RATIOS:
        values = [v for s in scores if not math.isnan(v := getattr(s, ratio))]
        means[ratio] = sum(values) / len(values) if values else None
        means[f"{ratio}_images"] = len(values)
    return means


def object_rows(found_all: np.ndarray, gsd: float) -> list[dict[str, Any]]:
    """Recall of labelled objects by size: in pixels, and in square metres where the pixel size is known."""
    known = math.isfinite(gsd)
    return [
        {
            "from_pixels": size,
            "from_m2": round(size * gsd**2, 2) if known else None,
            "found": int(found),
            "all": int(every),
            "recall": int(found) / int(every) if every else None,
        }
        for size, (found, every) in zip(OBJECT_SIZES, found_all, strict=True)
    ]


def number(value: float) -> float | None:
    """None for NaN, which JSON does not have."""
    return None if math.isnan(value) else float(value)


def _pair(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) or math.isnan(high) else [float(low), float(high)]


def _ratios(scores: BinaryScores) -> dict[str, Any]:
    return {k: number(v) if isinstance(v, float) else v for k, v in scores.as_dict().items()}
