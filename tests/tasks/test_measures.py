"""Measures against the metric functions that they are made of, and against the worked examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terralapse.cards import Task
from terralapse.errors import SystemNotReadyError
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.classification import ClassificationOutput
from terralapse.tasks.damage import DamageOutput
from terralapse.tasks.measures import (
    ChangeMeasure,
    DamageMeasure,
    SemanticChangeMeasure,
    fusu_release_scores,
    measure_for,
)
from terralapse.tasks.metrics import binary_scores, confusion_matrix, expected_calibration_error, reliability
from terralapse.tasks.segmentation import SegmentationOutput
from terralapse.tasks.semantic_change import FullMapsOutput, SemanticChangeOutput


def one_hot(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits [B, K, H, W] whose argmax is `values`."""
    return 5.0 * torch.nn.functional.one_hot(values.long(), classes).permute(0, 3, 1, 2).float()


def grid(text: str) -> torch.Tensor:
    """A map [1, H, W] from rows of digits."""
    return torch.tensor([[[int(c) for c in row] for row in text.split("/")]])


# --- binary change -----------------------------------------------------------------------------------
def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    label = (rng.random((3, 20, 30)) < 0.15).astype(np.uint8)
    logits = rng.normal(0, 1.5, label.shape) + 2.5 * label - 1.5
    label[:, :2] = 255
    return torch.from_numpy(logits).float(), torch.from_numpy(label)


def test_change_at_a_given_threshold():
    logits, label = drawn()
    measure = ChangeMeasure(threshold=0.37)
    for i in range(3):  # one image at a time adds up
        measure.update(ChangeOutput(logits[i : i + 1]), {"label": label[i : i + 1]})
    found = measure.compute()["binary"]
    probability = torch.sigmoid(logits).numpy()
    matrix = confusion_matrix(label.numpy(), probability >= 0.37, 2)
    assert {k: found[k] for k in binary_scores(matrix).as_dict()} == binary_scores(matrix).as_dict()
    assert found["threshold_chosen"] == "given"
    table = reliability(probability, label.numpy(), bins=50)
    assert found["ece"] == pytest.approx(expected_calibration_error(table), abs=1e-6)


def test_the_best_threshold_against_trying_each():
    logits, label = drawn(1)
    measure = ChangeMeasure()
    measure.update(ChangeOutput(logits), {"label": label})
    found = measure.compute()["binary"]
    probability = torch.sigmoid(logits).numpy()
    tried = {
        t / 200: binary_scores(confusion_matrix(label.numpy(), probability >= t / 200, 2)).f1
        for t in range(1, 200)
    }
    assert found["f1"] == pytest.approx(max(tried.values()))
    assert tried[found["threshold"]] == pytest.approx(found["f1"])
    assert found["threshold_chosen"] == "best of these data"
    assert measure.main_score(measure.compute()) == pytest.approx(found["f1"])


def test_nothing_to_find_has_no_score_but_a_number_for_training():
    measure = ChangeMeasure(0.5)
    measure.update(
        ChangeOutput(torch.full((1, 4, 4), -9.0)), {"label": torch.zeros(1, 4, 4, dtype=torch.uint8)}
    )
    assert np.isnan(measure.compute()["binary"]["f1"])
    assert measure.main_score(measure.compute()) == -1.0


# --- semantic change: the worked example of the definitions -----------------------------------------
def test_semantic_change_by_both_protocols():
    before, after = grid("0000/1100/5520/0003"), grid("0000/5500/1130/0005")
    guess_before, guess_after = grid("0000/1200/5500/0043"), grid("0000/5500/1200/0055")
    output = SemanticChangeOutput(
        one_hot(guess_before > 0, 2), one_hot(guess_before, 7), one_hot(guess_after, 7)
    )
    measure = SemanticChangeMeasure(6)
    measure.update(output, {"before": before, "after": after})
    found = measure.compute()
    assert found["scd_p7"]["miou"] == pytest.approx(0.766234, abs=1e-6)
    assert found["scd_p7"]["sek"] == pytest.approx(0.330650, abs=1e-6)
    assert found["scd_p7"]["f_scd"] == pytest.approx(0.666667, abs=1e-6)
    assert found["scd_p7"]["oa"] == pytest.approx(0.8125)
    assert found["scd_p37"]["sek"] == pytest.approx(0.262143, abs=1e-6)
    assert found["scd_p37"]["score"] == pytest.approx(0.413370, abs=1e-6)
    assert found["binary"]["iou"] == pytest.approx(10 / 14)


def test_a_head_that_says_unchanged_inside_of_change_is_asked_for_its_best_class():
    """The from-to protocol has no place for class 0, and the official scorer fails on it."""
    before, after = grid("12"), grid("21")
    logits = torch.tensor([[[[5.0, 5.0]], [[4.0, 1.0]], [[1.0, 4.0]]]])  # class 0 wins at both pixels
    output = SemanticChangeOutput(one_hot(torch.ones(1, 1, 2), 2), logits, logits.flip(-1))
    measure = SemanticChangeMeasure(2)
    measure.update(output, {"before": before, "after": after})
    assert measure.compute()["scd_p37"]["f_scd"] == 1.0
    assert output.maps(argmax_over_zero=True)[0].tolist() == [[[0, 0]]]


def test_ignored_pixels_of_either_date_count_nowhere():
    before, after = grid("1200"), grid("2100")
    before[0, 0, 3] = 255
    output = SemanticChangeOutput(
        one_hot(grid("1101"), 2), one_hot(grid("1211"), 3), one_hot(grid("2111"), 3)
    )
    measure = SemanticChangeMeasure(2)
    measure.update(output, {"before": before, "after": after})
    assert measure.counts()["binary"].tolist() == [[1, 0], [0, 2]]
    assert measure.counts()["per_date"].sum() == 6


def test_full_maps_are_scored_as_change_and_as_segmentation():
    """Only the second and third pixel changed; the last is not labelled, the one before it ignored."""
    before, after = grid("121120"), grid("112122")
    label = torch.tensor([[[0, 1, 1, 0, 255, 255]]])
    right, wrong = grid("010010"), grid("001011")  # classes 1 and 2 as logits 0 and 1
    changed = one_hot(grid("011000"), 2)
    output = FullMapsOutput(changed, one_hot(right, 2), one_hot(wrong, 2))
    measure = SemanticChangeMeasure(2)
    measure.update(output, {"before": before, "after": after, "label": label})
    found = measure.compute()
    assert measure.counts()["binary"].tolist() == [[2, 0], [0, 2]]
    assert measure.counts()["per_date"].tolist() == [[4, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert found["scd_p7"]["sek"] == pytest.approx(1.0)
    assert found["scd_p37"]["f_scd"] == 1.0
    matrix = measure.counts()["full"]
    assert matrix.tolist() == [[0, 1, 0], [0, 6, 0], [0, 0, 5]]
    assert found["fusu_release"]["miou"] == 1.0
    assert found["fusu_release"] == fusu_release_scores(matrix)
    only_changed = SemanticChangeMeasure(2)
    only_changed.update(output, {"before": before * (label == 1), "after": after * (label == 1)})
    assert "fusu_release" not in only_changed.compute()


def test_the_released_score_of_maps_without_a_fault():
    assert fusu_release_scores(np.diag([5, 3, 4]))["score"] == pytest.approx(1.0)
    half = fusu_release_scores(np.array([[0, 0, 0], [0, 2, 2], [0, 2, 2]]))
    assert half["sek"] == pytest.approx(0.0)
    assert half["iou"] == pytest.approx((1 / 3, 1 / 3))


# --- damage: the worked example of the definitions ---------------------------------------------------
def test_damage_by_both_scorers():
    target = {
        "damage": grid("1111223400"),
        "building": grid("1111111100"),
    }
    building, damage = grid("1110111110"), grid("1121213430")
    logits = one_hot(damage, 5)
    measure = DamageMeasure()
    measure.update(DamageOutput(one_hot(building, 2), logits), target)
    found = measure.compute()
    assert found["xview2_official"]["f1_localisation"] == pytest.approx(0.875)
    assert found["xview2_official"]["f1_damage"] == pytest.approx(0.695653, abs=1e-6)
    assert found["xview2_official"]["f1"] == pytest.approx(0.749457, abs=1e-6)
    assert found["changemamba_damage"]["f1"] == pytest.approx(0.787501, abs=1e-5)
    assert found["xview2_official"]["f1_minor"] == pytest.approx(0.5)


def test_damage_as_change_is_the_probability_of_a_damaged_building():
    building = torch.tensor([0.3, -0.2]).log_softmax(0).view(1, 2, 1, 1)
    damage = torch.tensor([9.0, 0.1, 0.5, -0.3, 0.2]).view(1, 5, 1, 1)  # background does not matter
    grades = damage[0, 1:, 0, 0].softmax(0)
    expected = building.exp()[0, 1, 0, 0] * grades[1:].sum()
    found = DamageOutput(building, damage).change().probability()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


# --- classes -----------------------------------------------------------------------------------------
def test_segmentation_and_classification_count_the_right_cells():
    label, guess = grid("0120/1122"), grid("0121/1022")
    label[0, 0, 0] = 255
    measure = measure_for(Task.SEGMENTATION, 3)
    measure.update(SegmentationOutput(one_hot(guess, 3)), {"label": label})
    assert measure.counts()["matrix"].tolist() == [[0, 1, 0], [1, 2, 0], [0, 0, 3]]
    assert measure.compute()["segmentation"]["oa"] == pytest.approx(5 / 7)
    measure = measure_for(Task.CLASSIFICATION, 3)
    logits = torch.eye(3)[[0, 1, 2, 1]]
    measure.update(ClassificationOutput(logits), {"label": torch.tensor([0, 1, 2, 2])})
    measure.update(ClassificationOutput(logits[:1]), {"label": torch.tensor([[0.1, 0.7, 0.2]])})
    assert measure.counts()["matrix"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_a_class_that_there_is_not_is_no_other_class():
    """Added up blindly, the prediction 3 for the label 0 would be the cell of label 1 and prediction 0."""
    measure = measure_for(Task.SEGMENTATION, 3)
    with pytest.raises(ValueError, match=r"outside of 0\.\.2"):
        measure.update(SegmentationOutput(one_hot(grid("3"), 4)), {"label": grid("0")})


def test_a_task_without_a_measure_says_so():
    with pytest.raises(SystemNotReadyError, match="cannot be scored"):
        measure_for(Task.GENERATION, 2)
