"""SemiCD-VL: the network with the light decoders, and the losses of its training."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result, ValuePath
from terralapse.layers.dilated_resnet import pyramid
from terralapse.models.change.semicd_vl import SIZES, SemiCDVL, from_official
from terralapse.tasks.consistency import (
    all_mean,
    contrast,
    contrast_pixels,
    feature_distance,
    pixel_entropy,
    pseudo_label,
    sure_mean,
)


def run(case: Case) -> Result:
    if case.config.get("head") != "LightHead":
        raise NotCoveredError(f"{case.config.get('head')}")
    network = SemiCDVL(SIZES["lighthead-r50"], faithful=True).eval()
    network.load_state_dict(from_official(case.state_dict()), strict=True)
    before, after = (torch.from_numpy(case.input(n)) for n in ("imgA", "imgB"))
    with torch.inference_mode():
        found = network.everything(before, after)
        levels = pyramid(network.backbone, before)
        outputs = {
            "logits": network(before, after),
            "vl_logits": found.guided,
            "segA": found.first,
            "segB": found.second,
            "official_distance": found.distance,
            **{f"c{i}_A": level for i, level in enumerate(levels, start=1)},
        }
        values: dict[ValuePath, object] = {
            ("parameter_count",): sum(p.numel() for p in network.parameters()),
            **_losses(case.spec["losses"]),
        }
    return Result(outputs=outputs, values=values)


def _draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _normal(text: str) -> Tensor:
    """`3*standard_normal((2,2,12,10)) seed 1103 ...`, with or without a factor and an absolute value."""
    parsed = re.search(r"(?:([\d.]+)\*)?(abs\()?standard_normal\(\(([\d,]+)\)\)\)? seed (\d+)", text)
    assert parsed, text
    x = _draw(int(parsed[4])).standard_normal(tuple(map(int, parsed[3].split(","))))
    x = float(parsed[1] or 1) * (np.abs(x) if parsed[2] else x)
    return torch.from_numpy(x.astype(np.float32))


def _label(text: str) -> Tensor:
    """`integers(0,2,(2,12,10)) seed 1101, 255 where integers(0,10,...) seed 1102 is 0`."""
    parsed = re.search(
        r"integers\(0,2,\(([\d,]+)\)\) seed (\d+), 255 where integers\(0,(\d+),\.\.\.\) seed (\d+) is 0", text
    )
    assert parsed, text
    shape = tuple(map(int, parsed[1].split(",")))
    label = _draw(int(parsed[2])).integers(0, 2, shape)
    return torch.from_numpy(
        np.where(_draw(int(parsed[4])).integers(0, int(parsed[3]), shape) == 0, 255, label)
    )


def _losses(spec: dict[str, dict[str, object]]) -> dict[ValuePath, object]:
    apart, label = _normal(str(spec["contrast"]["distance"])), _label(str(spec["contrast"]["label"]))
    weak, strong = (_normal(str(spec["fixmatch"][k])) for k in ("weak_logits", "strong_logits"))
    own, confidence = pseudo_label(weak)
    counts = torch.ones_like(own, dtype=torch.bool)
    counts[..., :2] = False  # "first two columns 255"
    quirk = [
        torch.from_numpy(_draw(s).standard_normal((2, 8, 6, 5)).astype(np.float32)) for s in (1107, 1108)
    ]
    wrong = feature_distance(*quirk, size=(12, 10), faithful=True)
    matched = sure_mean(pixel_entropy(strong, own), confidence, counts)
    apart_matched = sure_mean(contrast_pixels(apart, own), confidence, counts)
    found: dict[tuple[str, str], object] = {
        ("contrast", "batch_balanced_mean"): float(contrast(apart, label)),
        ("contrast", "per_pixel_sum"): float(contrast_pixels(apart, label).sum()),
        ("fixmatch", "loss"): float(matched),
        ("fixmatch", "contrast_with_pseudo_label_on_the_distance_above"): float(apart_matched),
        ("vl_mean_all", "loss"): float(all_mean(strong, _label(str(spec["vl_mean_all"]["label"])))),
        ("official_distance_quirk", "mean"): float(wrong.mean()),
        ("official_distance_quirk", "first_row"): wrong[0, 0].tolist(),
    }
    return {("losses", *path): value for path, value in found.items()}
