"""DynamicVis: the backbone with its choices of tokens, and the pre-training head with its losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.mamba import PathType
from terralapse.layers.token_routing import Routing
from terralapse.models.pretraining.dynamicvis import (
    SIZES,
    Pretraining,
    from_official,
    pretraining_losses,
)


def routing_of(config: dict[str, Any]) -> Routing:
    given = config.get("global_token_cfg", {"pos": "head", "num": -1})
    position = (given or {}).get("pos", "none")
    if position not in ("head", "none"):
        raise NotCoveredError(f"global tokens at the position {position}")
    return Routing(
        keep=tuple(config.get("spatial_token_keep_ratios", (8, 4, 2, 1))),
        global_tokens=0 if position == "none" else given.get("num", -1),
        softmax_on_x=config.get("is_softmax_on_x", True),
        path=PathType(config.get("path_type", "forward_reverse_mean")),
    )


def weights_of(case: Case) -> dict[str, Tensor]:
    """The fill, with what the case's rule says in words."""
    tensors = case.state_dict()
    for name in tensors:
        if name.endswith(".mamba_layer.out_proj.weight"):
            tensors[name] = tensors[name] * 4
    if "neck.post_module.gamma" in tensors:
        tensors["neck.post_module.gamma"] = torch.full_like(tensors["neck.post_module.gamma"], 0.7)
        tensors["head.logit_scale"] = torch.full_like(tensors["head.logit_scale"], math.log(1 / 0.07))
    return tensors


def run(case: Case) -> Result:
    c = case.config
    network = Pretraining(SIZES[c["arch"]], c["img_size"], routing_of(c), c.get("num_classes", 63)).eval()
    tensors = from_official(weights_of(case), network.backbone.grid)
    image = torch.from_numpy(case.input("image"))
    if not any(k.startswith("pre_neck.") for k in tensors):
        stripped = {k.removeprefix("backbone."): v for k, v in tensors.items()}
        network.backbone.load_state_dict(stripped, strict=True)
        assert sum(p.numel() for p in network.backbone.parameters()) == case.spec["parameters"]
        return backbone(case, network, image)
    network.load_state_dict(tensors, strict=True)
    assert sum(p.numel() for p in network.parameters()) == case.spec["parameters"]
    rois, label = torch.from_numpy(case.input("rois")), torch.from_numpy(case.input("labels"))
    with torch.inference_mode():
        levels = network.pre_neck(network.backbone(image))
        total = network.neck.gather(levels, rois)
        feature = network.neck.post_module(total)
        logits, vectors = network.head(feature)
        parts = pretraining_losses(network.head, logits, vectors, label, float(c.get("mil_weight", 0.5)))
    outputs = {f"p{i + 2}": level for i, level in enumerate(levels)}
    outputs |= {"roi_sum": total, "roi_feature": feature, "logits": logits}
    names = {
        "cls_loss": "classification",
        "mil_region_to_class": "region_to_class",
        "mil_class_to_region": "class_to_region",
        "mil_loss": "contrast",
    }
    return Result(
        outputs={k: v for k, v in outputs.items() if k in case.stored},
        values={("losses", k): float(parts[v]) for k, v in names.items() if k in case.spec["losses"]},
    )


def backbone(case: Case, network: Pretraining, image: Tensor) -> Result:
    outputs: dict[str, Tensor] = {}
    for s, stage in enumerate(network.backbone.layers):
        for i, block in enumerate(stage[1]):  # type: ignore[index]
            name = f"stage{s}_block{i}"
            block.spatial_mamba_mixer.register_forward_hook(
                lambda _m, _i, out, name=name: outputs.__setitem__(f"{name}_mamba", out)
            )
            if block.spatial_gate is not None:
                block.register_forward_pre_hook(
                    lambda m, args, name=name: outputs.__setitem__(f"{name}_tokens", m.select(args[0])[1])
                )
    with torch.inference_mode():
        outputs |= {f"stage{s}": x for s, x in enumerate(network.backbone(image))}
    return Result(outputs={k: v for k, v in outputs.items() if k in case.stored})
