"""The scan as an operator of torch: `torch.compile` and `torch.export` see one node with known shapes.

`terralapse::scan` covers both functions of this room: with `order` it scans along K paths and sums them, with
`weight` the step size is the product of `LowRank`. On a CPU it runs `cpu`, on CUDA `gpu`. The signatures are
the fields of `Arguments`, written out, since operators take no tuple.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terralapse.layers.scan import cpu, gpu
from terralapse.layers.scan.arguments import Arguments, saved_states


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
    return cpu.forward(Arguments(u, delta, weight, A, B, C, D, bias, z, order, soft), keep)


@scan.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, keep = arguments
    given = Arguments(*inputs)
    u = given.u
    batch, channels, _ = u.shape
    last = u.new_empty(batch, given.paths * channels, given.A.shape[1], dtype=torch.float32)
    marks = u.new_empty(saved_states(given, cpu.STEPS, keep), dtype=torch.float32)
    return _wide(u, _along(given)), last, marks


def _along(given: Arguments) -> bool:
    """Whether wide results lie in memory as [B, L, D]."""
    u = given.u
    return given.order is not None or u.device.type == "cuda" or cpu.channels_last(u)


def _wide(x: Tensor, along: bool) -> Tensor:
    batch, channels, length = x.shape
    return cpu.empty_like_layout(batch, channels, length, along, x).to(x.dtype)


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
    given = Arguments(u, delta, weight, A, B, C, D, bias, z, order, soft)
    return cpu.backward(given, marks, gy, glast)


@scan_backward.register_fake
def _(*arguments: Any) -> list[Tensor]:
    *inputs, _, _, _ = arguments
    given = Arguments(*inputs)
    along = _along(given)

    def turned(x: Tensor) -> Tensor:
        return x.new_empty(*x.shape[:2], x.shape[3], x.shape[2]).transpose(2, 3)

    def like(name: str, x: Tensor | None) -> Tensor:
        if x is None:
            return given.u.new_empty(0)
        if name in ("B", "C") or (name == "delta" and given.weight is not None):
            return turned(x)
        return _wide(x, along) if name in ("u", "delta", "z") else x.new_empty(x.shape)

    return [like(name, x) for name, x in zip(Arguments._fields[:9], given.learned, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.soft, ctx.keep = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, gy: Tensor, glast: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError(
            "terralapse::scan: called with keep=False, so there are no states to go back along"
        )
    *tensors, marks = ctx.saved_tensors
    given = Arguments._make((*tensors, ctx.soft))
    found = torch.ops.terralapse.scan_backward(*given, marks, gy, glast)
    present = zip(given.learned, found, strict=True)
    return *(None if x is None else g for x, g in present), None, None, None


@scan.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *inputs, keep = arguments
    return gpu.forward(Arguments(*inputs), keep)


@scan_backward.register_kernel("cuda")
def _(*arguments: Any) -> list[Tensor]:
    *inputs, marks, gy, glast = arguments
    return gpu.backward(Arguments(*inputs), marks, gy, glast)


scan.register_autograd(_backward, setup_context=_save)
