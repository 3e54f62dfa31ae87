"""MapFormer: change alone, and change with the classes after from one feature; their losses in evaluation."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.decoding import up_to
from terralapse.models.change import mapformer
from terralapse.models.semantic_change import mapformer_scd
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.mapped import MapContrast, map_contrast

IGNORED = 6  # of the case; 255 here
NAMES = {"before_alike": "t1_pos", "after_alike": "t2_pos", "after_unlike": "t2_neg"}


def run(case: Case) -> Result:
    head = case.config["head"]
    classes = case.config["n_semantic_classes"]
    network: Any
    if head.startswith("bcd"):
        network = mapformer.MapFormer(mapformer.PAPER, classes)
        tensors = mapformer.official_names(case.state_dict())
    elif head.startswith("scd_f_"):
        network = mapformer_scd.JointMapFormer(classes)
        tensors = mapformer_scd.official_names(case.state_dict())
    elif head.startswith("scd_f2_"):
        network = mapformer_scd.SplitMapFormer(classes)
        tensors = mapformer_scd.official_names(case.state_dict())
    else:
        raise NotCoveredError(f"the head {head}")
    network.load_state_dict(tensors, strict=True)
    network.eval()
    with torch.inference_mode():
        return _run(case, network)


def _run(case: Case, network: Any) -> Result:
    images = torch.from_numpy(case.input("img"))
    known, pair = _map(case), (images[:, :3], images[:, 3:])
    pyramids = network.pyramids(*pair)
    about = network.head.map_encoder(known)
    joined = [torch.cat(level, dim=1) for level in zip(*pyramids, strict=True)]
    decided = network.decide(pyramids, known)
    contrast = network.contrast(pyramids, about)
    outputs: dict[str, Tensor] = {
        "bc": decided[0],
        "bc_full": up_to(decided[0], images.shape),
        "contrastive_pre": contrast.before,
        "contrastive_post": contrast.after,
        "map_features": about,
        "fused": network.head.fuse(joined, about),
        **{f"backbone{i}": torch.cat(level) for i, level in enumerate(zip(*pyramids, strict=True))},
    }
    if "sem" in case.stored:
        outputs["sem"] = decided[1]
    for level in range(4):
        small = up_to(about, joined[level].shape)
        outputs[f"kconcat{level}"] = network.head.temporal_fusion_modules[level](
            torch.cat([joined[level], small], dim=1)
        )
    kept = {n: t for n, t in outputs.items() if n in case.stored}
    return Result(outputs=kept, values=_losses(case, outputs, images.shape))


def _map(case: Case) -> Tensor:
    """Whole numbers of 0 to 6 in blocks of 4 x 4 pixels."""
    spec = case.input_spec("map")
    batch, height, width = spec["shape"]
    ids = draw(spec["seed"]).integers(0, 7, (batch, height // 4, width // 4))
    return torch.from_numpy(ids.repeat(4, axis=1).repeat(4, axis=2))


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _losses(case: Case, outputs: dict[str, Tensor], shape: torch.Size) -> dict[Any, Any]:
    listed = case.spec.get("losses")
    if not listed:
        return {}
    head, alone = listed["head"], listed["contrastive_module"]
    post = head["recipe"]["post_label"]
    seeds = [int(s) for s in re.findall(r"seed (\d+)", head["recipe"]["change_label"])]
    size = (shape[0], 1, *shape[-2:])
    hidden = torch.from_numpy(draw(seeds[1]).integers(0, 12, size) == 0)[:, 0]
    change = torch.from_numpy(draw(seeds[0]).integers(0, 2, size))[:, 0].masked_fill(hidden, 255)
    values: dict[Any, Any] = {
        ("losses", "head", "bc.loss_seg"): cross_entropy(outputs["bc_full"], change, over_all=True).item()
    }
    parts = MapContrast(outputs["map_features"], outputs["contrastive_pre"], outputs["contrastive_post"])
    prefix = "bc." if any(k.startswith("bc.contrastive") for k in head) else ""
    for name, value in map_contrast(parts, change, faithful=True).items():
        values["losses", "head", f"{prefix}contrastive_loss.{NAMES[name]}"] = value.item()
    if "sem" in outputs:
        seed = int(re.findall(r"seed (\d+)", post)[0])
        label = torch.from_numpy(draw(seed).integers(0, 6, size))[:, 0].masked_fill(hidden, 255)
        values["losses", "head", "sem.loss_seg"] = cross_entropy(
            up_to(outputs["sem"], shape), label, over_all=True
        ).item()
    first, second, third, label_seed = (int(s) for s in re.findall(r"seed (\d+)", alone["recipe"]))
    g = draw(first).standard_normal((2, 32, 6, 7))
    before, after = (draw(s).standard_normal((2, 32, 6, 7)) + w * g for s, w in ((second, 0.5), (third, 0.3)))
    label = torch.from_numpy(draw(label_seed).integers(0, 2, (2, 1, 24, 28)))[:, 0]
    label[:, :5] = 255
    parts = MapContrast(*(torch.from_numpy(x).float() for x in (g, before, after)))
    for key in ("balanced", "not_balanced"):
        found = map_contrast(parts, label, balanced=key == "balanced", faithful=True)
        for name, value in found.items():
            values["losses", "contrastive_module", key, f"contrastive_loss.{NAMES[name]}"] = value.item()
    return values
