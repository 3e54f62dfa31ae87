"""Batch normalisation in inference, where it is a fixed linear map: put into the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def inferring(module: nn.Module) -> bool:
    """Whether a module only infers: its statistics are fixed, and nobody will ask for a gradient. What it
    computes on the way may then be overwritten. False where a graph is made of it, which has its own ways."""
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def folded(weight: Tensor, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what one with `weight` [outputs, ...] and no bias does,
    followed by `bn`. Made anew for each call, from whatever the weights are then: they are small."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch normalisation without statistics cannot be folded")
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    shaped = scale.view(-1, *(1 for _ in weight.shape[1:]))
    return weight * shaped, bn.bias - bn.running_mean * scale
