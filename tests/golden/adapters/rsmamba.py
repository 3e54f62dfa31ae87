"""RSMamba: all path types of the case, patch tokens and mixers inside, the loss and the macro scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.mamba import PathType
from terralapse.models.classification.rsmamba import SIZES, RSMamba, from_official
from terralapse.tasks.confusion import ClassificationMetric
from terralapse.tasks.label_smoothing import smoothed_cross_entropy


def run(case: Case) -> Result:
    c = case.config
    if c.get("cls_position", "none") != "none" or c.get("pe_type", "learnable") not in ("learnable", "none"):
        raise NotCoveredError("class tokens and the sine-cosine position table")
    if c.get("out_type", "avg_featmap") != "avg_featmap":
        raise NotCoveredError(f"output of the kind {c['out_type']}")
    size = replace(
        SIZES[c["arch"]],
        image=c.get("img_size", 224),
        patch=c.get("patch_size", 16),
        stride=c.get("stride", 8),
    )
    path = PathType(c.get("path_type", "forward_reverse_shuffle_gate"))
    # The case's permutation of block i has the seed 7000 + i and the recipe of `seeded_shuffle`.
    network = RSMamba(size, c["num_classes"], path, c.get("pe_type") != "none", shuffle_seed=7000).eval()
    network.load_state_dict(from_official(case.state_dict(), network.backbone.grid), strict=True)
    if "parameters" in case.spec:
        assert sum(p.numel() for p in network.parameters()) == case.spec["parameters"]
    image = torch.from_numpy(case.input("image"))
    outputs: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}
    backbone = network.backbone

    def keep(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _m, _i, out: seen.__setitem__(name, out[: len(image)]))

    keep("patch_tokens", backbone.patch_embed)
    for number, layer in enumerate(backbone.layers):
        keep(f"mixer{number}_out_forward_path", layer)
    with torch.inference_mode():
        outputs["logits"], outputs["feature"] = network(image)
        outputs |= {k: v for k, v in seen.items() if k in case.stored}
        for name, other in (("logits_mean2", PathType.REVERSE_MEAN), ("logits_forward", PathType.FORWARD)):
            if name in case.stored:
                backbone.path = other
                outputs[name] = network(image)[0]
    return Result(outputs=outputs, values={**_losses(case), **_metrics(case)})


def _losses(case: Case) -> dict[tuple[str | int, ...], float]:
    if "losses" not in case.spec:
        return {}
    rng = np.random.Generator(np.random.Philox(key=511))
    logits = torch.from_numpy((3 * rng.standard_normal((6, 30))).astype(np.float32))
    y, y2 = torch.from_numpy(rng.integers(0, 30, 6)), torch.from_numpy(rng.integers(0, 30, 6))
    mixed = 0.3 * nn.functional.one_hot(y, 30).float() + 0.7 * nn.functional.one_hot(y2, 30).float()
    return {
        ("losses", "label_smooth_hard"): float(smoothed_cross_entropy(logits, y)),
        ("losses", "label_smooth_mixed"): float(smoothed_cross_entropy(logits, mixed)),
    }


def _metrics(case: Case) -> dict[tuple[str | int, ...], object]:
    if "metrics" not in case.spec:
        return {}
    rng = np.random.Generator(np.random.Philox(key=512))
    y = rng.integers(0, 29, 400)
    p = np.where(rng.random(400) < 0.6, y, rng.integers(0, 30, 400))
    metric = ClassificationMetric(30)
    metric.update(torch.from_numpy(p), torch.from_numpy(y))
    scores = metric.compute()
    return {
        ("metrics", "macro"): {k: 100 * scores[k] for k in ("precision", "recall", "f1")},
        ("metrics", "per_class_f1"): [100 * f1 for f1 in scores["f1_by_class"]],
        ("metrics", "support"): metric.counts().sum(axis=1).tolist(),
    }
