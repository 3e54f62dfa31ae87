"""FSG-Net: STSAM, the one module that its authors published, in two widths."""

from __future__ import annotations

import torch

from golden.case import Case, Result
from terralapse.layers.stsam import STSAM


def run(case: Case) -> Result:
    outputs: dict[str, torch.Tensor] = {}
    tensors = case.state_dict()
    with torch.inference_mode():
        for name, config in case.config.items():
            block = STSAM(config["channels"], config["reduction"]).eval()
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            block.load_state_dict(own, strict=True)
            first, second = (torch.from_numpy(case.input(f"{name}_f{i}")) for i in (1, 2))
            outputs[f"{name}_cross1"], outputs[f"{name}_cross2"] = block.branch1(first, second)
            outputs[f"{name}_coord1"] = block.branch2(first)
            outputs[f"{name}_out1"], outputs[f"{name}_out2"] = block(first, second)
    return Result(outputs={n: t for n, t in outputs.items() if n in case.stored})
