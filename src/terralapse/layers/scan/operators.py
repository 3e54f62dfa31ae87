"""The scan as an operator of torch: `torch.compile` and `torch.export` see one node with known shapes.

`terralapse::scan` covers both functions of this room: with `order` it scans along K paths and sums them, with
`weight` the step size is the product of `LowRank`. On a CPU it runs `cpu`, on CUDA `gpu`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terralapse.layers.scan import cpu, gpu


@torch.library.custom_op("terralapse::scan", mutates_args=(), device_types="cpu")
def scan(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    z: Tensor | None,
    order: Tensor | None,
    soft: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, D, L], the last state [B, K * D, N], and the states that the backward pass needs (if `keep`)."""
    return cpu.forward(u, delta, weight, A, B, C, D, bias, z, order, soft, keep)


@scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    z: Tensor | None,
    order: Tensor | None,
    soft: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, length = u.shape
    paths, states = (1 if order is None else order.shape[0]), A.shape[1]
    along = order is not None or u.device.type == "cuda" or cpu.channels_last(u)
    y = cpu.empty_like_layout(batch, channels, length, along, u).to(u.dtype)
    last = A.new_empty(batch, paths * channels, states, dtype=torch.float32)
    tiles = (length + cpu.STEPS - 1) // cpu.STEPS
    marks = (batch, paths, tiles, states, channels) if keep else (0,) * 5
    return y, last, u.new_empty(marks, dtype=torch.float32)


@torch.library.custom_op("terralapse::scan_backward", mutates_args=(), device_types="cpu")
def scan_backward(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    z: Tensor | None,
    order: Tensor | None,
    soft: bool,
    marks: Tensor,
    gy: Tensor,
    glast: Tensor,
) -> list[Tensor]:
    """Gradients of u, delta, weight, A, B, C, D, bias and z; an empty tensor for what is absent."""
    return cpu.backward(u, delta, weight, A, B, C, D, bias, z, order, soft, marks, gy, glast)


@scan_backward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    z: Tensor | None,
    order: Tensor | None,
    soft: bool,
    marks: Tensor,
    gy: Tensor,
    glast: Tensor,
) -> list[Tensor]:
    along = order is not None or u.device.type == "cuda" or cpu.channels_last(u)

    def wide(x: Tensor | None) -> Tensor:
        if x is None:
            return u.new_empty(0)
        batch, channels, length = x.shape
        return cpu.empty_like_layout(batch, channels, length, along, x).to(x.dtype)

    def turned(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], x.shape[3], x.shape[2]).transpose(2, 3)

    def plain(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else x.new_empty(x.shape)

    return [
        wide(u),
        wide(delta) if weight is None else turned(delta),
        plain(weight),
        plain(A),
        turned(B),
        turned(C),
        plain(D),
        plain(bias),
        wide(z),
    ]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.soft, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, gy: Tensor, glast: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError(
            "terralapse::scan: called with keep=False, so there are no states to go back along"
        )
    u, delta, weight, A, B, C, D, bias, z, order, marks = ctx.saved_tensors
    found = torch.ops.terralapse.scan_backward(
        u, delta, weight, A, B, C, D, bias, z, order, ctx.soft, marks, gy, glast
    )
    present = (u, delta, weight, A, B, C, D, bias, z)
    return *(None if x is None else g for x, g in zip(present, found, strict=True)), None, None, None


scan.register_kernel("cuda")(gpu.forward)
scan_backward.register_kernel("cuda")(gpu.backward)
scan.register_autograd(_backward, setup_context=_save)
