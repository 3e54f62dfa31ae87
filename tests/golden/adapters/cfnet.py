"""CFNet: every intermediate map of the network, its losses with given pairs of places, and its scores."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result, ValuePath
from terralapse.layers.self_similarity import structure_gap
from terralapse.models.change.cfnet import (
    BGR,
    SIZES,
    CFNet,
    official_names,
    squared_error,
)
from terralapse.tasks.metrics import binary_scores, confusion_matrix


def run(case: Case) -> Result:
    widths = [s.outputs for s in SIZES["b5"].stages]
    if case.config["channel_list"] != [case.config["in_channel"], *widths]:
        raise NotCoveredError(f"widths {case.config['channel_list']}")
    network = CFNet(SIZES["b5"])
    network.load_state_dict(official_names(case.state_dict(), BGR), strict=True)
    network.eval()
    x1, x2 = (torch.from_numpy(case.input(name)) for name in ("x1", "x2"))
    with torch.inference_mode():
        found = network(x1, x2)
        pyramid = network.pyramids(x1, x2)[0]
    outputs = {"change": found.before_tanh.tanh(), "pre_tanh": found.before_tanh}
    maps = {"enc1": pyramid, "content1": found.first, "content2": found.second, "focus": found.focus}
    for name, scales in maps.items():
        outputs |= {f"{name}_{n}": scale for n, scale in enumerate(scales)}
    return Result(outputs=outputs, values=losses(case.spec["losses"]))


def losses(spec: dict[str, Any]) -> dict[ValuePath, Any]:
    content, change = spec["content"], spec["change"]
    first, second = (normal(content["x1"], seed_of(content[x])) for x in ("x1", "x2"))
    gap = structure_gap(first, second, *(torch.tensor(content[k]) for k in ("pairs_i", "pairs_j"))).mean()
    shape = shape_of(change["prediction"])
    raw = normal(change["prediction"], seed_of(change["prediction"])).tanh()
    label = draw(seed_of(change["target"])).integers(0, 2, shape)
    scores = binary_scores(confusion_matrix(label, (raw > 0.5).long().numpy(), 2))
    found = {"Recall": scores.recall, "Precision": scores.precision, "F1": scores.f1, "IoU": scores.iou}
    return {
        ("losses", "content", "unchange"): float(gap),
        ("losses", "content", "change"): float(1.0 - gap),
        ("losses", "change", "mse"): float(squared_error(raw, torch.from_numpy(label))),
        **{("losses", "scores_of_prediction_above_0_5", k): float(v) for k, v in found.items()},
    }


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def normal(recipe: str, seed: int) -> Tensor:
    return torch.from_numpy(draw(seed).standard_normal(shape_of(recipe)).astype("float32"))


def shape_of(recipe: str) -> tuple[int, ...]:
    found = re.search(r"\(\(([\d,]+)\)\)", recipe)
    assert found is not None
    return tuple(int(n) for n in found[1].split(","))


def seed_of(recipe: str) -> int:
    found = re.search(r"seed (\d+)", recipe)
    assert found is not None
    return int(found[1])
