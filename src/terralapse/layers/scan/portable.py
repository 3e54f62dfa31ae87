"""The scan in plain torch operations: any device, any floating type, differentiable any number of times, and
traceable to ONNX.

The recurrence is associative: two steps (a, b) and (a', b') of h -> a h + b make one step (a' a, a' b + b').
Blocks of 16 steps are run in step with each other, their results are scanned in the same way, and so on: 16
operations a level, log16(L) levels, about two multiply-adds an element, no division and so no overflow that
the recurrence itself does not have.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 16
_LEVELS_TRACED = 5
"""Levels when the length is a symbol: enough for 16^5 = 1,048,576 steps."""
_SLAB = 2**20
"""The most states that are held at once where the length is known; 4 MiB in float32."""


def _levels(length: int | torch.SymInt) -> int:
    if isinstance(length, torch.SymInt):
        return _LEVELS_TRACED
    levels, reach = 0, 1
    while reach < length:
        levels, reach = levels + 1, reach * _BLOCK
    return levels


def _combine(a: Tensor, b: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Running compositions of the steps (a, b) along dimension 0, of length 16^levels at most."""
    if levels == 0:
        return a, b
    length = a.shape[0]
    # For a symbol three blocks at least: where a size, or a size less one, may be 1, export would fix it.
    short = 3 * _BLOCK - length % _BLOCK if isinstance(length, torch.SymInt) else -length % _BLOCK
    a = torch.cat([a, a.new_ones(short, *a.shape[1:])]).unflatten(0, (-1, _BLOCK))
    b = torch.cat([b, b.new_zeros(short, *b.shape[1:])]).unflatten(0, (-1, _BLOCK))
    gains, values = [a[:, 0]], [b[:, 0]]
    for i in range(1, _BLOCK):
        values.append(a[:, i] * values[-1] + b[:, i])
        gains.append(a[:, i] * gains[-1])
    gain, value = torch.stack(gains, 1), torch.stack(values, 1)
    if levels > 1:
        before_gain, before = _combine(gains[-1], values[-1], levels - 1)
        before_gain = torch.cat([torch.ones_like(before_gain[:1]), before_gain[:-1]])[:, None]
        before = torch.cat([torch.zeros_like(before[:1]), before[:-1]])[:, None]
        value = gain * before + value
        gain = gain * before_gain
    return gain.flatten(0, 1)[:length], value.flatten(0, 1)[:length]


def scan_time_first(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """y [L, batch, D] without the skip, and the last state [batch, D, N].

    u, dt: [L, batch, D]; A [D, N]; B, C [L, batch, G, N].
    """
    length, batch, channels = u.shape
    share, states = channels // groups, A.shape[1]
    known = not isinstance(length, torch.SymInt)
    slab = length
    if known and not torch.compiler.is_compiling():
        # About ten tensors of states exist at a time; each is kept to half the size of u.
        slab = max(_BLOCK, min(length // (2 * states), _SLAB // max(1, batch * channels * states)))
    h = u.new_zeros(batch, channels, states)
    parts = []
    for start in range(0, length, slab) if known else (0,):
        here = slice(start, start + slab) if known else slice(None)
        step = dt[here]
        gain = (step[..., None] * A).exp()
        narrow = B[here][:, :, :, None]
        value = ((step * u[here]).unflatten(2, (groups, share))[..., None] * narrow).flatten(2, 3)
        gain, value = _combine(gain, value, _levels(step.shape[0]))
        value = gain * h + value
        h = value[-1]
        parts.append((value.unflatten(2, (groups, share)) * C[here][:, :, :, None]).sum(-1).flatten(2, 3))
    return (torch.cat(parts) if parts else torch.zeros_like(u)), h


def _step_sizes(delta: Tensor, bias: Tensor | None, soft: bool) -> Tensor:
    if bias is not None:
        delta = delta + bias
    return F.softplus(delta) if soft else delta


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    soft: bool,
    z: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y [B, D, L] and the last state [B, D, N]; arguments as in `scan.selective_scan`."""
    kind = torch.promote_types(u.dtype, torch.float32)
    x = u.to(kind).permute(2, 0, 1)
    dt = _step_sizes(delta.to(kind).permute(2, 0, 1), None if bias is None else bias.to(kind), soft)
    b, c = B.to(kind).permute(3, 0, 1, 2), C.to(kind).permute(3, 0, 1, 2)
    y, h = scan_time_first(x, dt, A.to(kind), b, c, B.shape[1])
    if D is not None:
        y = y + D.to(kind) * x
    if z is not None:
        y = y * F.silu(z.to(kind).permute(2, 0, 1))
    return y.permute(1, 2, 0).to(u.dtype), h


def path_scan(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    soft: bool,
    order: Tensor,
    inverse: Tensor,
) -> Tensor:
    """The sum over the paths, [B, D, L]; path after path, so that the tensors of one exist at a time."""
    kind = torch.promote_types(u.dtype, torch.float32)
    channels = u.shape[1]
    x = u.to(kind).permute(2, 0, 1)
    total = None
    for k in range(order.shape[0]):
        mine = slice(k * channels, (k + 1) * channels)
        if weight is None:
            raw = delta[:, mine].to(kind).permute(2, 0, 1)
        else:
            raw = delta[:, k].to(kind).permute(2, 0, 1) @ weight[k].to(kind).t()
        along = order[k]
        dt = _step_sizes(raw.index_select(0, along), None if bias is None else bias[mine].to(kind), soft)
        b = B[:, k : k + 1].to(kind).permute(3, 0, 1, 2).index_select(0, along)
        c = C[:, k : k + 1].to(kind).permute(3, 0, 1, 2).index_select(0, along)
        y, _ = scan_time_first(x.index_select(0, along), dt, A[mine].to(kind), b, c, 1)
        y = y.index_select(0, inverse[k])
        if D is not None:
            y = y + D[mine].to(kind) * x
        total = y if total is None else total + y
    assert total is not None
    return total.permute(1, 2, 0).to(u.dtype)
