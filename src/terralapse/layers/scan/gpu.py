"""The scan on CUDA: hands tensors to the kernels of `_triton`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from terralapse.layers.scan.arguments import Arguments, Sums, gradients, saved_states

STEPS = 64
"""Steps between two saved states, as on the CPU: the operator's shapes do not depend on the device."""


@lru_cache(maxsize=1)
def kernels() -> Any:
    """The kernels. Importing them loads Triton; the first call of one compiles it."""
    from terralapse.layers.scan import _triton

    return _triton


def _up(n: int) -> int:
    """The next power of two, as Triton's tiles need."""
    return 1 << max(0, n - 1).bit_length()


def _last(x: Tensor) -> Tensor:
    """[B, D, L] as contiguous [B, L, D]; a copy unless it lies so already."""
    return x.detach().transpose(1, 2).contiguous()


def _narrow(x: Tensor) -> Tensor:
    """[B, G, N, L] as contiguous [B, G, L, N]."""
    return x.detach().transpose(2, 3).contiguous()


class _Call(NamedTuple):
    grid: tuple[int, int]
    pieces: int
    inputs: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    options: dict[str, Any]


def _prepare(
    given: Arguments,
) -> _Call:
    u, delta, weight, A, B, C, D, bias, z, order, soft = given
    batch, channels, length = u.shape
    paths, rank = given.paths, given.rank
    groups, states = B.shape[1] // paths, A.shape[1]
    share = channels // groups
    # A tile of states is kept in registers; about 1024 of them leave room for the others.
    block = min(_up(share), max(16, 1024 // _up(max(states, rank, 1))), 128)
    pieces = -(-share // block)
    nothing = u.new_zeros(1, dtype=torch.float32)

    def vector(x: Tensor | None) -> Tensor:
        return nothing.new_zeros(paths * channels) if x is None else x.detach().float().contiguous()

    inputs = (
        _last(u),
        _last(delta) if weight is None else _narrow(delta),
        nothing if weight is None else weight.detach().float().contiguous(),
        A.detach().float().contiguous(),
        *(_narrow(B), _narrow(C), vector(D), vector(bias)),
        nothing if z is None else _last(z),
        torch.arange(length, device=u.device) if order is None else order.contiguous(),
    )
    options = {
        "K": paths,
        "N": states,
        "NP": _up(states),
        "R": rank,
        "RP": _up(max(rank, 1)),
        "SOFT": soft,
        "GATED": z is not None,
        "STEPS": STEPS,
        "BLOCK": block,
    }
    return _Call((batch, groups * pieces), pieces, inputs, (length, channels, groups, pieces), options)


def forward(
    given: Arguments,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.forward`; y is always a view of [B, L, D] memory."""
    call, u = _prepare(given), given.u
    batch, channels, length = u.shape
    new = {"dtype": torch.float32, "device": u.device}
    y = torch.empty(batch, length, channels, **new)
    last = torch.zeros(batch, given.paths * channels, given.A.shape[1], **new)
    marks = torch.empty(saved_states(given, STEPS, keep), **new)
    if y.numel():
        with torch.cuda.device_of(u):
            kernels().forward_kernel[call.grid](
                *call.inputs, y, last, marks, *call.sizes, KEEP=keep, **call.options
            )
    return y.to(u.dtype).transpose(1, 2), last, marks


def backward(
    given: Arguments,
    marks: Tensor,
    gy: Tensor,
    glast: Tensor,
) -> list[Tensor]:
    """As `cpu.backward`; wide gradients are always views of [B, L, D] memory."""
    call, u, z = _prepare(given), given.u, given.z
    batch, channels, length = u.shape
    o = call.options
    paths, states, rank, wide = o["K"], o["N"], o["R"], o["K"] * channels
    groups = call.sizes[2]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=u.device)

    gu, dense = zeros(batch, length, channels), zeros(batch, length, wide if rank == 0 else 0)
    gvalue = zeros(groups * call.pieces, batch, paths, length, rank)
    gweight, gA = zeros(batch, paths, channels, rank), zeros(batch, wide, states)
    gB = zeros(call.pieces, batch, paths * groups, length, states)
    gC, gD, gbias = torch.zeros_like(gB), zeros(batch, wide), zeros(batch, wide)
    gz = zeros(batch, length, 0 if z is None else channels)
    scratch = zeros(call.grid[0] * call.grid[1], STEPS, o["BLOCK"], o["NP"])
    if u.numel():
        with torch.cuda.device_of(u):
            kernels().backward_kernel[call.grid](
                *call.inputs,
                *(marks, _last(gy), glast.float().contiguous(), scratch),
                *(gu, dense, gvalue, gweight, gA, gB, gC, gD, gbias, gz),
                *(batch, *call.sizes),
                **o,
            )
    gu, dense, gz = (x.transpose(1, 2) for x in (gu, dense, gz))
    return gradients(given, Sums(gu, dense, gvalue, gweight, gA, gB, gC, gD, gbias, gz))
