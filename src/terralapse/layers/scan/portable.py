"""The scan in plain torch operations: any device, any floating type, differentiable any number of times, and
traceable to ONNX.

The recurrence is associative: two steps (a, b) and (a', b') of h -> a h + b make one step (a' a, a' b + b').
Blocks of 16 steps are run in step with each other, their results are scanned in the same way, and so on: 16
operations a level, log16(L) levels, about two multiply-adds an element, no division and so no overflow that
the recurrence itself does not have.

Where the length is a symbol of `torch.export` the levels are not known, and a graph with enough of them for
any length takes minutes to trace. There one level of blocks is written out, and their results go through
torch's own `scan`, one step after the other, which ONNX has as an operator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 16
_SLAB = 2**20
"""The most states that are held at once where the length is known; 4 MiB in float32."""


def _levels(length: int) -> int:
    levels, reach = 0, 1
    while reach < length:
        levels, reach = levels + 1, reach * _BLOCK
    return levels


def _blocks(a: Tensor, b: Tensor, short: int) -> tuple[Tensor, Tensor]:
    """Running compositions [blocks, 16, ...] of the steps (a, b) within each block of 16, after `short` steps
    that change nothing are added at the end."""
    a = torch.cat([a, a.new_ones(short, *a.shape[1:])]).unflatten(0, (-1, _BLOCK))
    b = torch.cat([b, b.new_zeros(short, *b.shape[1:])]).unflatten(0, (-1, _BLOCK))
    gains, values = [a[:, 0]], [b[:, 0]]
    for i in range(1, _BLOCK):
        values.append(a[:, i] * values[-1] + b[:, i])
        gains.append(a[:, i] * gains[-1])
    return torch.stack(gains, 1), torch.stack(values, 1)


def _combine(a: Tensor, b: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Running compositions of the steps (a, b) along dimension 0, of length 16^levels at most."""
    if levels == 0:
        return a, b
    length = a.shape[0]
    gain, value = _blocks(a, b, -length % _BLOCK)
    if levels > 1:
        before_gain, before = _combine(gain[:, -1], value[:, -1], levels - 1)
        before_gain = torch.cat([torch.ones_like(before_gain[:1]), before_gain[:-1]])[:, None]
        before = torch.cat([torch.zeros_like(before[:1]), before[:-1]])[:, None]
        value = gain * before + value
        gain = gain * before_gain
    return gain.flatten(0, 1)[:length], value.flatten(0, 1)[:length]


def _states_of_any_length(a: Tensor, b: Tensor) -> Tensor:
    """States after each of the steps (a, b) along dimension 0, whose length is a symbol; from zero."""
    from torch._higher_order_ops.scan import scan  # loading it takes a while, and only an export needs it

    length = a.shape[0]
    # Three blocks at least: where a size, or a size less one, may be 1, export would fix it.
    gain, value = _blocks(a, b, 3 * _BLOCK - length % _BLOCK)
    _, before = scan(_step, torch.zeros_like(value[0, 0]), (gain[:, -1], value[:, -1]))
    return (gain * before[:, None] + value).flatten(0, 1)[:length]


def _step(state: Tensor, step: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The state after a step, and a copy of that before it: `scan` wants no result that is an argument."""
    return step[0] * state + step[1], state.clone()


def scan_time_first(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """y [L, batch, D] without the skip, and the last state [batch, D, N].

    u, dt: [L, batch, D]; A [D, N]; B, C [L, batch, G, N].
    """
    length, batch, channels = u.shape
    states = A.shape[1]
    if isinstance(length, torch.SymInt):
        gain, value = _steps(u, dt, A, B, groups)
        value = _states_of_any_length(gain, value)
        return _read(value, C, groups), value[-1]
    slab = length
    if not torch.compiler.is_compiling():
        # About ten tensors of states exist at a time; each is kept to half the size of u.
        slab = max(_BLOCK, min(length // (2 * states), _SLAB // max(1, batch * channels * states)))
    h = u.new_zeros(batch, channels, states)
    parts = []
    for start in range(0, length, slab):
        here = slice(start, start + slab)
        gain, value = _steps(u[here], dt[here], A, B[here], groups)
        gain, value = _combine(gain, value, _levels(gain.shape[0]))
        value = gain * h + value
        h = value[-1]
        parts.append(_read(value, C[here], groups))
    return (torch.cat(parts) if parts else torch.zeros_like(u)), h


def _steps(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """What each step multiplies the state by, and what it adds: [L, batch, D, N] both."""
    gain = (dt[..., None] * A).exp()
    value = ((dt * u).unflatten(2, (groups, -1))[..., None] * B[:, :, :, None]).flatten(2, 3)
    return gain, value


def _read(states: Tensor, C: Tensor, groups: int) -> Tensor:
    """[L, batch, D] of states [L, batch, D, N]."""
    return (states.unflatten(2, (groups, -1)) * C[:, :, :, None]).sum(-1).flatten(2, 3)


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
    """The sum over the paths, [B, D, L]; path after path, so that the tensors of one exist at a time, but for
    a length that is a symbol: there all paths are one scan, so that the graph stays small."""
    kind = torch.promote_types(u.dtype, torch.float32)
    channels, count = u.shape[1], order.shape[0]
    x = u.to(kind).permute(2, 0, 1)

    def along_path(k: int) -> tuple[Tensor, ...]:
        """u, dt, B and C of path k in its order."""
        mine, along = slice(k * channels, (k + 1) * channels), order[k]
        raw = (delta[:, mine] if weight is None else delta[:, k]).to(kind).transpose(1, 2)
        if weight is not None:  # with the batch first, as a tracer that is shown three images wants it
            raw = raw @ weight[k].to(kind).t()
        raw = raw.transpose(0, 1).index_select(0, along)
        dt = _step_sizes(raw, None if bias is None else bias[mine].to(kind), soft)
        b, c = (z[:, k : k + 1].to(kind).permute(3, 0, 1, 2).index_select(0, along) for z in (B, C))
        return x.index_select(0, along), dt, b, c

    found: list[Tensor] = []
    if isinstance(u.shape[2], torch.SymInt):
        ours, dt, b, c = (torch.cat(z, dim=2) for z in zip(*map(along_path, range(count)), strict=True))
        found = list(scan_time_first(ours, dt, A.to(kind), b, c, count)[0].split(channels, dim=2))
    total = None
    for k in range(count):
        mine = slice(k * channels, (k + 1) * channels)
        if found:
            y = found[k]
        else:
            ours, dt, b, c = along_path(k)
            y, _ = scan_time_first(ours, dt, A[mine].to(kind), b, c, 1)
        # Batch first: a later step that joins batch and length would ask whether there is but one image.
        y = y.transpose(0, 1).index_select(1, inverse[k])
        if D is not None:
            y = y + D[mine].to(kind) * x.transpose(0, 1)
        total = y if total is None else total + y
    assert total is not None
    return total.transpose(1, 2).to(u.dtype)
