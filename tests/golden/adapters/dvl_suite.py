"""DVL-Suite: the released scores of choices, judged texts and masks, the loss and the coding of its
baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from golden import fill
from golden.case import Case, Result
from terralapse.data.dvl import MULTIPLE, SINGLE, from_stored, to_stored
from terralapse.layers.sliding import starts
from terralapse.tasks.dice import dice_loss
from terralapse.tasks.dvl_metrics import (
    judged_scores,
    mask_change_scores,
    mask_scores,
    parse_grades,
    right_choice,
)
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.metrics import confusion_matrix, semantic_scores


def _rng(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


def run(case: Case) -> Result:
    values: dict[tuple[Any, ...], Any] = {}
    for part in (_choice, _judge, _referring, _semantic, _loss, _coding, _windows):
        values |= part(case)
    return Result(values=values)


def _choice(case: Case) -> dict[tuple[Any, ...], Any]:
    items = case.spec["choice"]["items"]
    right = [right_choice(i["response"], i["truth"], i["type"] == MULTIPLE) for i in items]
    found: dict[tuple[Any, ...], Any] = {
        ("choice", "items", k, "correct"): int(r) for k, r in enumerate(right)
    }
    for kind in (SINGLE, MULTIPLE):
        own = [r for r, i in zip(right, items, strict=True) if i["type"] == kind]
        found["choice", "accuracy", kind] = float(np.mean(own))
    return found


def _judge(case: Case) -> dict[tuple[Any, ...], Any]:
    spec = case.spec["judge"]
    grades = [parse_grades(r, spec["criteria"]) for r in spec["responses"]]
    scores = judged_scores(grades)
    return {
        ("judge", "parsed"): grades,
        ("judge", "criterion_means"): {c: scores[c] for c in spec["criteria"]},
        ("judge", "task_score"): scores["score"],
    }


def _referring(case: Case) -> dict[tuple[Any, ...], Any]:
    rng = _rng(901)
    pairs = case.spec["referring"]["pairs_source_target"]
    answers, truth = [], []
    for _ in pairs:
        answers.append(rng.integers(0, 2, (12, 10)))
        truth.append(rng.integers(0, 2, (12, 10)))
    answers[1][:], truth[1][:], answers[2][:] = 0, 0, 0
    changes = [(source - 1) * 5 + target for source, target in pairs]
    exact = mask_change_scores(truth, answers, changes)
    return {
        ("referring", "iou"): mask_scores(truth, answers),
        ("referring", "semantic"): mask_change_scores(truth, answers, changes, released=True),
        ("referring", "semantic_recall_with_correct_denominator"): exact["Recall"],
    }


def _semantic(case: Case) -> dict[tuple[Any, ...], Any]:
    rng, shape = _rng(902), (3, 16, 15)
    p, g, keep = rng.integers(0, 7, shape), rng.integers(0, 7, shape), rng.integers(0, 3, shape)
    scores = semantic_scores(confusion_matrix(g, np.where(keep > 0, g, p), 7, ignore=None))
    values = {"kappa_n0": scores.kappa_n0, "f1": scores.f_scd, "miou": scores.miou, "sek": scores.sek}
    return {("semantic_change_meter", "values"): values}


def _loss(case: Case) -> dict[tuple[Any, ...], Any]:
    spec = case.spec["loss"]["logits"]
    logits = torch.from_numpy(fill.image(spec["seed"], tuple(spec["shape"]), spec["low"], spec["high"]))
    label = torch.from_numpy(_rng(903).integers(0, 6, [2, 9, 8]))
    label[0, 0, :2] = 255
    entropy, dice = float(cross_entropy(logits, label)), float(dice_loss(logits, label, over_all=True))
    return {
        ("loss", "cross_entropy"): entropy,
        ("loss", "dice"): dice,
        ("loss", "sum"): entropy + dice,
    }


def _coding(case: Case) -> dict[tuple[Any, ...], Any]:
    spec = case.spec["mask_coding"]
    classes = from_stored(np.array(spec["stored"]))
    return {
        ("mask_coding", "class"): classes.tolist(),
        ("mask_coding", "stored"): to_stored(classes).tolist(),
    }


def _windows(case: Case) -> dict[tuple[Any, ...], Any]:
    found: dict[tuple[Any, ...], Any] = {}
    for number, spec in enumerate(case.spec["sliding_windows"]):
        height, width = spec["input"]
        # A side that is shorter than the window is seen whole: the network here is padded up to it instead.
        tall, wide = min(spec["kernel"], height), min(spec["kernel"], width)
        boxes = [
            [x, y, x + wide, y + tall]
            for y in starts(height, tall, spec["stride"])
            for x in starts(width, wide, spec["stride"])
        ]
        found["sliding_windows", number, "boxes"] = boxes
    return found
