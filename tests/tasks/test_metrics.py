"""The worked examples and identities of the metric definitions, and what the counting must refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terralapse.tasks import metrics as m
from terralapse.tasks.confusion import BinaryChangeMetric, SemanticChangeMetric

SIX = {"abs": 5e-7}


def matrix(tp: int, fp: int, fn: int, tn: int) -> np.ndarray:
    return np.array([[tn, fp], [fn, tp]])


def digits(rows: str) -> np.ndarray:
    return np.array([[int(c) for c in row] for row in rows.split("/")])


# --- binary ----------------------------------------------------------------------------------------
def test_binary_worked_example() -> None:
    s = m.binary_scores(matrix(80, 10, 20, 890))
    assert s.precision == pytest.approx(0.888889, **SIX)
    assert s.recall == pytest.approx(0.8, **SIX)
    assert s.f1 == pytest.approx(0.842105, **SIX)
    assert s.iou == pytest.approx(0.727273, **SIX)
    assert s.oa == pytest.approx(0.97, **SIX)
    assert s.kappa == pytest.approx(0.825581, **SIX)
    assert s.miou == pytest.approx(0.847332, **SIX)
    assert (s.tp, s.fp, s.fn, s.tn) == (80, 10, 20, 890)


def test_counts_are_summed_before_the_ratio() -> None:
    one, other = matrix(10, 0, 10, 0), matrix(0, 5, 0, 0)
    assert m.binary_scores(one + other).f1 == pytest.approx(0.571429, **SIX)


def test_nothing_there_is_not_a_number() -> None:
    s = m.binary_scores(matrix(0, 0, 0, 50))
    assert math.isnan(s.precision)
    assert math.isnan(s.recall)
    assert math.isnan(s.f1)
    assert math.isnan(s.kappa)
    assert s.oa == 1.0


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=4))
def test_identities_of_binary_scores(counts: list[int]) -> None:
    s = m.binary_scores(matrix(*counts))
    if not math.isnan(s.f1):
        assert s.iou == pytest.approx(s.f1 / (2 - s.f1), abs=1e-12)
    if s.precision > 0 and s.recall > 0:
        assert s.f1 == pytest.approx(2 * s.precision * s.recall / (s.precision + s.recall), abs=1e-12)
    turned = m.binary_scores(matrix(*counts).T)
    assert turned.precision == pytest.approx(s.recall, abs=1e-12, nan_ok=True)
    assert turned.kappa == pytest.approx(s.kappa, abs=1e-9, nan_ok=True)


def test_rows_are_labels() -> None:
    counted = m.confusion_matrix([[0, 1, 1, 255]], [[1, 1, 0, 1]], 2)
    assert counted.tolist() == [[0, 1], [1, 1]]
    assert counted.dtype == np.int64


@pytest.mark.parametrize(("label", "guess"), [([0, 2], [0, 1]), ([0, 1], [0, 2]), ([0, 1], [0, -1])])
def test_a_value_out_of_range_is_never_wrapped(label: list[int], guess: list[int]) -> None:
    with pytest.raises(ValueError, match=r"outside of 0\.\.1"):
        m.confusion_matrix(label, guess, 2)
    with pytest.raises(ValueError, match=r"outside of 0\.\.1"):
        BinaryChangeMetric().update(torch.tensor(guess), torch.tensor(label))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="prediction"):
        m.confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 2)


# --- semantic --------------------------------------------------------------------------------------
LABELS = digits("0000/1100/5520/0003"), digits("0000/5500/1130/0005")
GUESSES = digits("0000/1200/5500/0043"), digits("0000/5500/1200/0055")


def test_semantic_worked_example_per_date() -> None:
    q = m.per_date_matrix(LABELS, GUESSES)
    assert q.sum() == 32
    assert q[0, 0] == 18
    assert (q[1, 2], q[2, 1]) == (2, 0)  # label 1 that was called 2, never the other way round
    assert q[5, 5] == 5
    s = m.semantic_scores(q)
    assert s.iou_no_change == pytest.approx(0.818182, **SIX)
    assert s.iou_change == pytest.approx(0.714286, **SIX)
    assert s.miou == pytest.approx(0.766234, **SIX)
    assert s.kappa_n0 == pytest.approx(0.44, **SIX)
    assert s.sek == pytest.approx(0.330650, **SIX)
    assert s.f_scd == pytest.approx(0.666667, **SIX)
    assert s.score == pytest.approx(0.461325, **SIX)
    accuracy = [m.image_accuracy(a, b) for a, b in zip(LABELS, GUESSES, strict=True)]
    assert np.mean(accuracy) == pytest.approx(0.8125, **SIX)


def test_semantic_worked_example_from_to() -> None:
    s = m.semantic_scores(m.from_to_matrix(LABELS, GUESSES))
    assert s.miou == pytest.approx(0.766234, **SIX)
    assert s.kappa_n0 == pytest.approx(0.348837, **SIX)
    assert s.sek == pytest.approx(0.262143, **SIX)
    assert s.f_scd == pytest.approx(0.5, **SIX)
    assert s.score == pytest.approx(0.413370, **SIX)


def test_semantic_identities() -> None:
    perfect = m.semantic_scores(m.per_date_matrix(LABELS, LABELS))
    assert perfect.sek == pytest.approx(1.0)
    nothing = [np.zeros_like(a) for a in LABELS]
    blind = m.semantic_scores(m.per_date_matrix(LABELS, nothing))
    assert blind.sek == 0
    assert blind.iou_change == 0
    q = m.per_date_matrix(LABELS, GUESSES)
    s, t = m.semantic_scores(q), m.semantic_scores(q.T)
    assert (t.kappa_n0, t.miou, t.sek) == pytest.approx((s.kappa_n0, s.miou, s.sek))
    assert (t.precision, t.recall) == pytest.approx((s.recall, s.precision))


def test_change_on_one_date_only_is_refused() -> None:
    with pytest.raises(ValueError, match="none on the other"):
        m.from_to([[1, 0]], [[0, 0]])
    with pytest.raises(ValueError, match=r"outside of 0\.\.6"):
        m.from_to([[7]], [[1]])
    assert m.from_to([[1, 6, 255]], [[1, 6, 255]]).tolist() == [[1, 36, 255]]


# --- damage ----------------------------------------------------------------------------------------
DAMAGE = np.array([1, 1, 1, 1, 2, 2, 3, 4, 0, 0])
BUILDING = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
FOUND = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 0])
GUESS = np.array([1, 1, 2, 1, 2, 1, 3, 4, 3, 0])


def test_damage_worked_example_of_the_official_scorer() -> None:
    s = m.damage_scores(*m.damage_matrices(BUILDING, DAMAGE, FOUND, GUESS))
    assert s["f1_localisation"] == pytest.approx(0.875, **SIX)
    assert s["f1_by_class"] == pytest.approx([0.571429, 0.5, 1, 1], **SIX)
    assert s["f1_damage"] == pytest.approx(0.695653, **SIX)
    assert s["f1"] == pytest.approx(0.749457, **SIX)


def test_damage_worked_example_without_the_building_mask() -> None:
    counts = m.damage_matrices(BUILDING, DAMAGE, FOUND, GUESS, mask_by_building=False)
    s = m.damage_scores(*counts)
    assert s["f1_by_class"] == pytest.approx([0.75, 0.5, 1, 1], **SIX)
    assert s["f1_damage"] == pytest.approx(0.750001, **SIX)
    assert s["f1"] == pytest.approx(0.787501, **SIX)
    other = m.damage_scores(*counts, scorer="changemamba")
    assert other["f1_damage"] == pytest.approx(0.75, abs=2e-6)
    assert other["f1_damage"] != s["f1_damage"]
    assert other["scorer"] == "changemamba"


def test_damage_second_check_and_a_dead_class() -> None:
    f1 = np.array([0.95, 0.62, 0.76, 0.88])
    # Counts that have exactly these F1: 2 tp / (2 tp + fp) with 2 tp = 2000 f, fp = 2000 (1 - f).
    damaged = np.zeros((5, 5))
    for c, f in enumerate(f1, start=1):
        damaged[c, c] = 1000 * f
        damaged[c, 0] = 2000 * (1 - f)
    located = matrix(43, 7, 7, 0)
    s = m.damage_scores(located, damaged)
    assert s["f1_localisation"] == pytest.approx(0.86)
    assert s["f1_damage"] == pytest.approx(0.781604, **SIX)
    assert s["f1"] == pytest.approx(0.805123, **SIX)
    damaged[2, 2] = 0
    assert m.damage_scores(located, damaged)["f1_damage"] == pytest.approx(4e-6, rel=1e-3)
    assert m.damage_scores(located, damaged, "changemamba")["f1_damage"] == 0


# --- MapFormer -------------------------------------------------------------------------------------
def test_bc_and_sc() -> None:
    change = matrix(3, 1, 1, 5)
    semantics = np.array([[2, 1], [0, 1]])
    s = m.bc_sc_scores(change, semantics)
    assert s["BC"] == pytest.approx(0.6)
    assert s["SC"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert s["SCS"] == pytest.approx((s["BC"] + s["SC"]) / 2)
    absent = np.pad(semantics, (0, 1))
    assert math.isnan(m.bc_sc_scores(change, absent)["SC"])


# --- calibration -----------------------------------------------------------------------------------
def test_calibration_of_a_known_table() -> None:
    p = np.r_[np.full(100, 0.25), np.full(100, 0.75), [0.9]]
    y = np.r_[np.repeat([1, 0], [25, 75]), np.repeat([1, 0], [50, 50]), [255]].astype(np.uint8)
    table = m.reliability(p, y, bins=10)
    assert table[0].sum() == 200
    assert m.expected_calibration_error(table) == pytest.approx(0.5 * 0.25)
    halves = m.reliability(p[:150], y[:150], bins=10) + m.reliability(p[150:], y[150:], bins=10)
    assert np.allclose(halves, table)
    assert m.reliability([1.0, 0.0], [1, 0], bins=4)[0].tolist() == [1, 0, 0, 1]


# --- outlines and objects --------------------------------------------------------------------------
def test_a_shift_within_the_tolerance_costs_no_outline() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[10:20, 10:20] = 1
    moved = np.roll(label, 2, axis=1)
    assert m.boundary_f1(m.boundary_counts(label, moved, tolerance=2)) == 1
    assert m.boundary_f1(m.boundary_counts(label, moved, tolerance=1)) < 0.8
    assert math.isnan(m.boundary_f1(m.boundary_counts(label, np.zeros_like(label))))
    label[:, 20:] = 255
    # The right edge of the square touches the unknown: it is not an outline that could be scored there.
    counted = m.boundary_counts(label, label)
    assert counted[1] == counted[3] > 0


def test_objects_by_size() -> None:
    label = np.zeros((50, 50), np.uint8)
    label[2:5, 2:5] = 1  # 9 pixels, found
    label[10:20, 10:20] = 1  # 100 pixels, 40 % covered: missed
    label[30:40, 30:40] = 1  # 100 pixels, found
    label[40, 40] = 1  # touches the last one by its corner: the same object
    guess = np.zeros_like(label)
    guess[2:5, 2:5] = 1
    guess[10:14, 10:20] = 1
    guess[30:36, 30:40] = 1
    assert m.object_counts(label, guess).tolist() == [[1, 1], [0, 0], [1, 2], [0, 0], [0, 0]]
    assert m.object_counts(label, guess, covered=0.4)[2].tolist() == [2, 2]
    assert m.object_counts(np.zeros_like(label), guess).sum() == 0


# --- intervals -------------------------------------------------------------------------------------
def f1_of(total: np.ndarray) -> float:
    return m.binary_scores(total).f1


def tiles(number: int, quality: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    changed = rng.integers(50, 300, number)
    right = (changed * np.clip(quality + rng.normal(0, 0.1, number), 0, 1)).astype(int)
    return np.stack([matrix(t, c - t, c - t, 5000) for t, c in zip(right, changed, strict=True)])


def test_the_interval_holds_the_estimate_and_narrows_with_more_images() -> None:
    few, many = tiles(10, 0.6), tiles(400, 0.6)
    low, high = m.bootstrap_interval(few, f1_of)
    assert low < f1_of(few.sum(axis=0)) < high
    narrow = m.bootstrap_interval(many, f1_of)
    assert narrow[1] - narrow[0] < 0.35 * (high - low)
    assert m.bootstrap_interval(few, f1_of) == (low, high)
    assert all(math.isnan(v) for v in m.bootstrap_interval(few[:1], f1_of))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = f1_of(tiles(20_000, 0.6, seed=99).sum(axis=0))
    hits = 0
    for seed in range(60):
        low, high = m.bootstrap_interval(tiles(40, 0.6, seed), f1_of, samples=300)
        hits += low <= truth <= high
    assert 50 <= hits <= 60


def test_paired_images_show_a_difference_that_intervals_hide() -> None:
    first = tiles(40, 0.6)
    second = first.copy()
    second[:, 1, 1] -= 3  # three pixels worse on every image
    second[:, 1, 0] += 3
    found = m.paired_bootstrap(first, second, f1_of)
    assert found.low > 0
    assert found.p < 0.01
    assert found.difference == pytest.approx(f1_of(first.sum(0)) - f1_of(second.sum(0)))
    same = m.paired_bootstrap(first, first, f1_of)
    assert same.difference == 0
    assert same.p == 1
    with pytest.raises(ValueError, match="same images"):
        m.paired_bootstrap(first, second[1:], f1_of)


# --- torchmetrics ----------------------------------------------------------------------------------
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_batches_add_up_to_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.choice([0, 1, 255], (4, 9, 7))
    guess = rng.integers(0, 2, label.shape)
    metric = BinaryChangeMetric()
    for a, b in zip(label, guess, strict=True):
        metric.update(torch.from_numpy(b), torch.from_numpy(a))
    whole = m.confusion_matrix(label, guess, 2)
    assert np.array_equal(metric.counts(), whole)
    expected = m.binary_scores(whole).as_dict()
    assert metric.compute() == pytest.approx(expected, nan_ok=True)
    metric.reset()
    assert metric.counts().sum() == 0


def test_the_counts_are_exact_whole_numbers_that_processes_sum() -> None:
    metric = SemanticChangeMetric("from-to")
    assert metric.matrix.dtype == torch.int64
    assert metric.matrix.shape == (37, 37)
    assert (
        metric._reductions["matrix"] is torch.sum or metric._reductions["matrix"].__name__ == "dim_zero_sum"
    )
    truth, guess = m.from_to(*LABELS), m.from_to(*GUESSES)
    metric.update(torch.from_numpy(guess), torch.from_numpy(truth))
    assert metric.compute()["sek"] == pytest.approx(0.262143, **SIX)
    dated = SemanticChangeMetric("per-date")
    for label, said in zip(LABELS, GUESSES, strict=True):
        dated.update(torch.from_numpy(said), torch.from_numpy(label))
    assert dated.compute()["sek"] == pytest.approx(0.330650, **SIX)
