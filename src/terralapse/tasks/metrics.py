"""Scores of change: counts first, ratios last.

Everything is a pure function of integer confusion matrices, summed over the whole set before any ratio is
taken, so a score can be recomputed from the counts that a report keeps. Rows of a matrix are the label,
columns the prediction. What is 0/0 is NaN here; a table that prints it as 0 says so. The definitions are
those of the published scorers, by name; protocols that cannot be compared have different functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from terralapse.data.pairs import IGNORE

Counts: TypeAlias = npt.NDArray[np.int64]


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


def _harmonic(a: float, b: float) -> float:
    return _ratio(2 * a * b, a + b)


# --- counting --------------------------------------------------------------------------------------
def confusion_matrix(
    label: npt.ArrayLike, prediction: npt.ArrayLike, classes: int, ignore: int | None = IGNORE
) -> Counts:
    """int64 [classes, classes]: rows label, columns prediction; pixels labelled `ignore` are left out.

    Raises:
        ValueError: the shapes differ, or a value outside of 0..classes-1 is to be counted.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    if label.shape != prediction.shape:
        raise ValueError(f"the label is {label.shape} and the prediction {prediction.shape}")
    counted = np.ones(label.shape, bool) if ignore is None else label != ignore
    rows, columns = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    for name, values in (("label", rows), ("prediction", columns)):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise ValueError(f"the {name} has values outside of 0..{classes - 1}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def cohen_kappa(matrix: npt.NDArray[Any]) -> float:
    """(po - pe) / (1 - pe); NaN when chance alone agrees everywhere, or nothing was counted."""
    total = float(matrix.sum())
    if not total:
        return float("nan")
    po = float(np.trace(matrix)) / total
    pe = float((matrix.sum(axis=0) / total) @ (matrix.sum(axis=1) / total))
    return _ratio(po - pe, 1 - pe)


# --- binary change ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class BinaryScores:
    """Scores of the change class from one matrix; `miou` and `mf1` are means over both classes."""

    precision: float
    recall: float
    f1: float
    iou: float
    oa: float
    kappa: float
    miou: float
    mf1: float
    tp: int
    fp: int
    fn: int
    tn: int

    def as_dict(self) -> dict[str, float]:
        """A JSON-ready dictionary (NaN included)."""
        return asdict(self)


def binary_scores(matrix: npt.NDArray[Any]) -> BinaryScores:
    """Of an int [2, 2] matrix whose class 1 is change."""
    tn, fp, fn, tp = (int(v) for v in np.asarray(matrix).reshape(4))
    f1, f1_still = _ratio(2 * tp, 2 * tp + fp + fn), _ratio(2 * tn, 2 * tn + fp + fn)
    iou, iou_still = _ratio(tp, tp + fp + fn), _ratio(tn, tn + fp + fn)
    return BinaryScores(
        precision=_ratio(tp, tp + fp),
        recall=_ratio(tp, tp + fn),
        f1=f1,
        iou=iou,
        oa=_ratio(tp + tn, tp + fp + fn + tn),
        kappa=cohen_kappa(matrix),
        miou=(iou + iou_still) / 2,
        mf1=(f1 + f1_still) / 2,
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
    )


# --- semantic change (SECOND, Landsat-SCD) ---------------------------------------------------------
@dataclass(frozen=True)
class SemanticScores:
    """`sek` is the separated kappa, `score` = 0.3 mIoU + 0.7 SeK; `kappa_n0` is SeK's kappa without its
    exponent. State the protocol beside them: per-date and from-to numbers cannot be compared."""

    miou: float
    sek: float
    f_scd: float
    score: float
    kappa_n0: float
    precision: float
    recall: float
    iou_change: float
    iou_no_change: float

    def as_dict(self) -> dict[str, float]:
        """A JSON-ready dictionary (NaN included)."""
        return asdict(self)


def semantic_scores(matrix: npt.NDArray[Any]) -> SemanticScores:
    """Of a matrix of either protocol, whose class 0 is "no change" (Yang et al. 2021; Ding et al. 2022)."""
    q = np.asarray(matrix).astype(np.float64)
    total, still = float(q.sum()), float(q[0, 0])
    labelled_still, predicted_still = float(q[0].sum()), float(q[:, 0].sum())
    iou_still = _ratio(still, labelled_still + predicted_still - still)
    iou_change = _ratio(q[1:, 1:].sum(), total - still)
    q[0, 0] = 0
    # Fixed by the published scorer: an empty matrix, or chance alone, has kappa 0.
    kappa = cohen_kappa(q)
    kappa = 0.0 if np.isnan(kappa) else kappa
    right = float(np.trace(q))
    precision, recall = _ratio(right, total - predicted_still), _ratio(right, total - labelled_still)
    miou, sek = (iou_still + iou_change) / 2, kappa * float(np.exp(iou_change - 1))
    return SemanticScores(
        miou=miou,
        sek=sek,
        f_scd=_harmonic(precision, recall),
        score=0.3 * miou + 0.7 * sek,
        kappa_n0=kappa,
        precision=precision,
        recall=recall,
        iou_change=iou_change,
        iou_no_change=iou_still,
    )


def per_date_matrix(
    labels: Sequence[npt.ArrayLike], predictions: Sequence[npt.ArrayLike], classes: int = 6
) -> Counts:
    """The per-date protocol (7 classes on SECOND): maps of 0..classes of both dates in one matrix."""
    return sum(
        (confusion_matrix(a, b, classes + 1) for a, b in zip(labels, predictions, strict=True)),
        start=np.zeros((classes + 1, classes + 1), np.int64),
    )


def from_to(before: npt.ArrayLike, after: npt.ArrayLike, classes: int = 6) -> npt.NDArray[np.int64]:
    """The from-to map of the 37-class protocol: (before - 1) * classes + after where changed, 0 elsewhere;
    `IGNORE` where either date has it.

    Raises:
        ValueError: a pixel is changed on one date only, or a class is out of range. Take the argmax of a
            semantic head over the classes 1..classes, never over 0.
    """
    a, b = np.asarray(before).astype(np.int64), np.asarray(after).astype(np.int64)
    ignored = (a == IGNORE) | (b == IGNORE)
    a, b = np.where(ignored, 0, a), np.where(ignored, 0, b)
    if ((a > 0) != (b > 0)).any():
        raise ValueError("a pixel has a class on one date and none on the other")
    if min(a.min(initial=0), b.min(initial=0)) < 0 or max(a.max(initial=0), b.max(initial=0)) > classes:
        raise ValueError(f"a class is outside of 0..{classes}")
    return np.where(ignored, IGNORE, np.where(a > 0, (a - 1) * classes + b, 0))


def from_to_matrix(
    labels: Sequence[npt.ArrayLike], predictions: Sequence[npt.ArrayLike], classes: int = 6
) -> Counts:
    """The from-to protocol (37 classes on SECOND): both dates must be right."""
    truth, guess = (from_to(before, after, classes) for before, after in (labels, predictions))
    return confusion_matrix(truth, guess, classes**2 + 1)


def image_accuracy(label: npt.ArrayLike, prediction: npt.ArrayLike, ignore: int | None = IGNORE) -> float:
    """Share of right pixels of one map. The OA of semantic change is the mean of this over images (per-date:
    over both dates first), not a global ratio."""
    label, prediction = np.asarray(label), np.asarray(prediction)
    counted = np.ones(label.shape, bool) if ignore is None else label != ignore
    return _ratio(int((label == prediction)[counted].sum()), int(counted.sum()))


# --- map-guided change (MapFormer, DynamicEarthNet) ------------------------------------------------
def bc_sc_scores(change: npt.NDArray[Any], semantics: npt.NDArray[Any]) -> dict[str, float]:
    """BC, SC and SCS of MapFormer: `change` [2, 2]; `semantics` [C, C] of the later date, counted only where
    the LABEL says change. A class that never occurs makes SC NaN, as in the published scorer."""
    hits = np.diag(semantics)
    unions = semantics.sum(axis=0) + semantics.sum(axis=1) - hits
    bc = binary_scores(change).iou
    sc = float(np.mean([_ratio(h, u) for h, u in zip(hits, unions, strict=True)]))
    return {"BC": bc, "SC": sc, "SCS": (bc + sc) / 2}


# --- segmentation ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a map of classes. `iou`, `f1`, `precision`, `recall` have one number for each class, in
    order, NaN where the class occurs in neither label nor prediction (precision: where it is never
    predicted; recall: where it is never labelled)."""

    miou: float
    mf1: float
    oa: float
    kappa: float
    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary (NaN included)."""
        return asdict(self)


def segmentation_scores(matrix: npt.NDArray[Any], exclude: Sequence[int] = ()) -> SegmentationScores:
    """Of an int [K, K] matrix over a whole set.

    Classes in `exclude` count in no mean, but their pixels count in `oa` and `kappa` and as errors of the
    other classes: so the five-class columns of ISPRS leave out clutter. Pixels that nobody is to be judged
    on (eroded borders) are left out while counting, as `ignore`. The means run over the classes that occur.

    Raises:
        ValueError: the matrix is not square, or `exclude` names a class that it does not have.
    """
    q = np.asarray(matrix).astype(np.float64)
    if q.ndim != 2 or q.shape[0] != q.shape[1]:
        raise ValueError(f"a confusion matrix is square, this is {q.shape}")
    if any(not 0 <= c < len(q) for c in exclude):
        raise ValueError(f"exclude names {list(exclude)}, the matrix has {len(q)} classes")
    hits, labelled, predicted = np.diag(q), q.sum(axis=1), q.sum(axis=0)
    iou = tuple(_ratio(h, a + b - h) for h, a, b in zip(hits, labelled, predicted, strict=True))
    f1 = tuple(_ratio(2 * h, a + b) for h, a, b in zip(hits, labelled, predicted, strict=True))
    kept = [c for c in range(len(q)) if c not in exclude and labelled[c] + predicted[c] > 0]
    return SegmentationScores(
        miou=_ratio(sum(iou[c] for c in kept), len(kept)),
        mf1=_ratio(sum(f1[c] for c in kept), len(kept)),
        oa=_ratio(hits.sum(), q.sum()),
        kappa=cohen_kappa(q),
        iou=iou,
        f1=f1,
        precision=tuple(_ratio(h, b) for h, b in zip(hits, predicted, strict=True)),
        recall=tuple(_ratio(h, a) for h, a in zip(hits, labelled, strict=True)),
    )


# --- classification --------------------------------------------------------------------------------
@dataclass(frozen=True)
class MacroScores:
    """Scores of one class for one image. `precision`, `recall`, `f1` are means over ALL classes of the
    matrix; `oa` is the share of right images (top-1)."""

    precision: float
    recall: float
    f1: float
    oa: float
    precision_by_class: tuple[float, ...]
    recall_by_class: tuple[float, ...]
    f1_by_class: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary (NaN included)."""
        return asdict(self)


def macro_scores(matrix: npt.NDArray[Any]) -> MacroScores:
    """Of an int [K, K] matrix over a whole set, as the published scorer of RSMamba takes them.

    Unlike elsewhere here, 0/0 counts as 0: a class that is absent from the labels, or never predicted, still
    has its part in each mean. Macro F1 is the mean of the classes' F1.

    Raises:
        ValueError: the matrix is not square.
    """
    q = np.asarray(matrix).astype(np.float64)
    if q.ndim != 2 or q.shape[0] != q.shape[1]:
        raise ValueError(f"a confusion matrix is square, this is {q.shape}")
    hits, labelled, predicted = np.diag(q), q.sum(axis=1), q.sum(axis=0)
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(labelled, 1)
    f1 = 2 * hits / np.maximum(labelled + predicted, 1)
    return MacroScores(
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        oa=_ratio(hits.sum(), q.sum()),
        precision_by_class=tuple(precision.tolist()),
        recall_by_class=tuple(recall.tolist()),
        f1_by_class=tuple(f1.tolist()),
    )


# --- building damage (xView2) ----------------------------------------------------------------------
def damage_matrices(
    building_label: npt.ArrayLike,
    damage_label: npt.ArrayLike,
    building: npt.ArrayLike,
    damage: npt.ArrayLike,
    mask_by_building: bool = True,
) -> tuple[Counts, Counts]:
    """Localisation [2, 2] and damage [5, 5] matrices of xBD maps (0 background, 1 none .. 4 destroyed).

    Damage is counted only where the damage label is a building. The official scorer first sets it to 0
    where no building was predicted (`mask_by_building`); the evaluation of ChangeMamba does not.
    """
    found = np.asarray(building) > 0
    located = confusion_matrix(np.asarray(building_label) > 0, found, 2, ignore=None)
    truth, guess = np.asarray(damage_label), np.asarray(damage)
    if mask_by_building:
        guess = np.where(found, guess, 0)
    return located, confusion_matrix(truth[truth > 0], guess[truth > 0], 5, ignore=None)


def damage_scores(
    located: npt.NDArray[Any],
    damaged: npt.NDArray[Any],
    scorer: Literal["xview2", "changemamba"] = "xview2",
) -> dict[str, Any]:
    """F1 of localisation, of each damage class, their harmonic mean, and 0.3 / 0.7 of both.

    `xview2` adds 1e-6 to each class in the harmonic mean; `changemamba` adds 1e-7 inside precision, recall
    and F1 instead. Feed each with matrices counted its own way.
    """
    tp = np.diag(damaged)[1:].astype(np.float64)
    fp, fn = damaged.sum(axis=0)[1:] - tp, damaged.sum(axis=1)[1:] - tp
    with np.errstate(divide="ignore", invalid="ignore"):
        if scorer == "xview2":
            by_class = np.where(tp > 0, 2 * tp / (2 * tp + fp + fn), 0.0)
            harmonic = 4 / (1 / (by_class + 1e-6)).sum()
        else:
            p, r = tp / (tp + fp + 1e-7), tp / (tp + fn + 1e-7)
            by_class = 2 * p * r / (p + r + 1e-7)
            harmonic = 4 / (1 / by_class).sum()
    f1_loc = binary_scores(located).f1
    return {
        "scorer": scorer,
        "f1_localisation": f1_loc,
        "f1_by_class": by_class.tolist(),
        "f1_damage": float(harmonic),
        "f1": 0.3 * f1_loc + 0.7 * float(harmonic),
    }


# --- probabilities ---------------------------------------------------------------------------------
def reliability(
    probability: npt.ArrayLike, label: npt.ArrayLike, bins: int = 15, ignore: int = IGNORE
) -> npt.NDArray[np.float64]:
    """Reliability bins [3, bins] over 0..1: pixels, sum of their probabilities, changed pixels. They add up
    over images."""
    label = np.asarray(label)
    counted = label != ignore
    p, y = np.asarray(probability, np.float64)[counted], label[counted] == 1
    place = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    sums = [np.bincount(place, weights=w, minlength=bins) for w in (np.ones_like(p), p, y)]
    return np.stack(sums).astype(np.float64)


def expected_calibration_error(table: npt.NDArray[np.float64]) -> float:
    """Mean over pixels of |mean probability - share that changed| of the pixel's bin."""
    pixels, probability, changed = table
    return _ratio(float(np.abs(probability - changed).sum()), float(pixels.sum()))


# --- outlines and objects --------------------------------------------------------------------------
def boundary_counts(
    label: npt.ArrayLike, prediction: npt.ArrayLike, tolerance: float = 2.0, ignore: int = IGNORE
) -> Counts:
    """int64 [4] that add up over images: predicted outline pixels within `tolerance` pixels of a labelled
    one, predicted, labelled within `tolerance` of a predicted one, labelled."""
    label = np.asarray(label)
    counted = label != ignore
    true, guess = (_outline((m == 1) & counted) & counted for m in (label, np.asarray(prediction)))
    near_true = _distance(true) <= tolerance
    near_guess = _distance(guess) <= tolerance
    return np.array([(guess & near_true).sum(), guess.sum(), (true & near_guess).sum(), true.sum()], np.int64)


def boundary_f1(counts: npt.NDArray[Any]) -> float:
    """Harmonic mean of the shares of predicted and of labelled outline that have a partner."""
    return _harmonic(_ratio(counts[0], counts[1]), _ratio(counts[2], counts[3]))


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    # The border of the image is no outline: nobody knows how an object goes on there.
    return mask & ~np.asarray(ndimage.binary_erosion(mask, border_value=1), np.bool_)


def _distance(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(ndimage.distance_transform_edt(~mask))


def object_counts(
    label: npt.ArrayLike,
    prediction: npt.ArrayLike,
    sizes: Sequence[float] = (0, 16, 64, 256, 1024),
    covered: float = 0.5,
    ignore: int = IGNORE,
) -> Counts:
    """int64 [len(sizes), 2] that add up over images: labelled objects found, and all, by size in pixels.

    An object is an 8-connected patch of changed label; it is found when at least `covered` of it is
    predicted. Row i holds the objects of sizes[i] up to less than sizes[i + 1] pixels.
    """
    label = np.asarray(label)
    changed = (label == 1) & (label != ignore)
    patches = np.zeros(label.shape, np.int32)
    number = int(np.asarray(ndimage.label(changed, np.ones((3, 3)), output=patches)))
    place, predicted = patches.ravel(), (np.asarray(prediction) == 1).ravel()
    inside = np.bincount(place, minlength=number + 1)[1:]
    hit = np.bincount(place, weights=predicted, minlength=number + 1)[1:]
    row = np.searchsorted(np.asarray(sizes), inside, side="right")  # 0: smaller than all sizes
    found = row[hit >= covered * inside]
    columns = [np.bincount(r, minlength=len(sizes) + 1)[1:] for r in (found, row)]
    return np.stack(columns, axis=1).astype(np.int64)


# --- how sure --------------------------------------------------------------------------------------
Statistic: TypeAlias = Callable[[npt.NDArray[Any]], float]


def _resampled(parts: npt.NDArray[Any], samples: int, seed: int) -> npt.NDArray[np.float64]:
    """Sums over images drawn with replacement: [samples, ...] from [images, ...]."""
    number = len(parts)
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=samples)
    flat = parts.reshape(number, -1).astype(np.float64)
    return (drawn @ flat).reshape(samples, *parts.shape[1:])


def bootstrap_interval(
    parts: npt.NDArray[Any], statistic: Statistic, samples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of `statistic(sum of the parts)` over images drawn with replacement.

    Args:
        parts: one matrix (or vector) of counts for each image, [images, ...].
        statistic: of a summed matrix.

    Returns:
        Low and high end; NaN with fewer than two images, where nothing can be said.
    """
    if len(parts) < 2:
        return float("nan"), float("nan")
    values = np.array([statistic(total) for total in _resampled(parts, samples, seed)])
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail]) if np.isfinite(values).any() else (np.nan, np.nan)
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """`difference` of a statistic (first minus second) over the same images, its interval, and `p`, the
    two-sided bootstrap probability that the sign is chance."""

    difference: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    statistic: Statistic,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """Whether one system beats another on the same images: both are resampled alike.

    Raises:
        ValueError: the two do not count the same number of images.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} images against {len(second)}: a paired test needs the same images")
    observed = statistic(first.sum(axis=0)) - statistic(second.sum(axis=0))
    gaps = np.array(
        [
            statistic(a) - statistic(b)
            for a, b in zip(_resampled(first, samples, seed), _resampled(second, samples, seed), strict=True)
        ]
    )
    tail = (1 - level) / 2
    low, high = np.nanquantile(gaps, [tail, 1 - tail])
    p = 2 * min(float((gaps <= 0).mean()), float((gaps >= 0).mean()))
    return PairedDifference(observed, float(low), float(high), min(p, 1.0))
