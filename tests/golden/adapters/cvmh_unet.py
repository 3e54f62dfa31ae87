"""Golden cases of CVMH-UNet: the skeleton of VM-UNet, and the frequency attention of FcaNet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.dct import MultiSpectralAttention, frequencies
from terralapse.models.segmentation.cvmh_unet import VM_UNET, CVMHUNet, from_official


def run(case: Case) -> Result:
    if case.spec["source"]["classname"] == "VMUNet":
        return vm_unet(case)
    if case.spec["source"]["classname"] == "MultiSpectralAttentionLayer":
        return attention(case)
    raise NotCoveredError(case.spec["source"]["classname"])


# --- VM-UNet -------------------------------------------------------------------------------------------
FACTORS = {"x_proj_weight": 8.0, "dt_projs_weight": 16.0, "dt_projs_bias": 10.0}


def vm_unet(case: Case) -> Result:
    config = case.config
    design = replace(
        VM_UNET,
        dims=tuple(config["dims"]),
        depths=tuple(config["depths"]),
        decoder_depths=tuple(config["depths_decoder"]),
        state=config["d_state"],
    )
    image = torch.from_numpy(case.input("image"))
    network = CVMHUNet(config["num_classes"], image.shape[1], design).eval()
    tensors = case.state_dict()
    for name, tensor in tensors.items():
        for ending, factor in FACTORS.items():
            if name.endswith(ending):
                tensor *= factor
    network.load_state_dict(from_official(tensors), strict=True)
    found: dict[str, Tensor] = {}
    places = {"patch_embed": "patch_embed", "ss2d_first": "layers.0.blocks.0.self_attention"}
    places |= {f"enc{i}": f"layers.{i}" for i in range(4)} | {f"dec{i}": f"layers_up.{i}" for i in range(4)}
    places |= {"final_up": "final_up"}
    for name, place in places.items():
        network.get_submodule(place).register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, output)
        )
    with torch.inference_mode():
        found["output"] = network(image)
    values: dict[tuple[str | int, ...], Any] = {("parameters",): sum(p.numel() for p in network.parameters())}
    return Result(outputs={k: v for k, v in found.items() if k in case.stored}, values=values)


# --- FcaNet --------------------------------------------------------------------------------------------
def attention(case: Case) -> Result:
    outputs: dict[str, Tensor] = {}
    parameters = 0
    tensors = case.state_dict(keep=["*.dct_layer.weight"])
    for name, config in case.config.items():
        layer = MultiSpectralAttention(
            config["channels"],
            (config["dct_h"], config["dct_w"]),
            config["frequencies"],
            config["reduction"],
        )
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        own["fc.0.weight"] = 0.3 * own["fc.0.weight"].abs()
        own["fc.2.weight"] = 2 * own["fc.2.weight"]
        layer.load_state_dict(own, strict=True)
        parameters += sum(p.numel() for p in layer.parameters())
        x = torch.from_numpy(case.input(f"x_{name}"))
        with torch.inference_mode():
            outputs[f"{name}_out"] = layer(x)
            outputs[f"{name}_frequency_vector"] = layer.dct_layer(x)
        outputs[f"{name}_filters"] = layer.dct_layer.weight
    lists = {
        ("frequency_lists", name, axis): np.array(frequencies(name))[:, column].tolist()
        for name in case.spec.get("frequency_lists", {})
        for column, axis in enumerate(("u", "v"))
    }
    values: dict[tuple[str | int, ...], Any] = {("parameters",): parameters, **lists}
    return Result(outputs={k: v for k, v in outputs.items() if k in case.stored}, values=values)
