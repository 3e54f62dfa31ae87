"""The recurrence itself, step by step: what every other backend is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    z: Tensor | None = None,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t;  y_t = C_t . h_t + D u_t, channel by channel.

    Args:
        u, delta, z: [B, D, L]; A: [D, N]; D, delta_bias: [D].
        B, C: [B, G, N, L], each shared by D / G channels.

    Returns:
        y [B, D, L] in the type of `u` (and the last state [B, D, N] in float32, or float64 for float64).
    """
    kind = torch.promote_types(u.dtype, torch.float32)
    x, dt = u.to(kind), delta.to(kind)
    if delta_bias is not None:
        dt = dt + delta_bias.to(kind)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    repeat = u.shape[1] // B.shape[1]
    b = B.to(kind).repeat_interleave(repeat, dim=1)
    c = C.to(kind).repeat_interleave(repeat, dim=1)
    h = x.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    steps = []
    for t in range(u.shape[2]):
        h = (dt[:, :, t, None] * A.to(kind)).exp() * h + (dt[:, :, t] * x[:, :, t])[..., None] * b[..., t]
        steps.append((h * c[..., t]).sum(dim=-1))
    y = torch.stack(steps, dim=-1) if steps else torch.zeros_like(x)
    if D is not None:
        y = y + D.to(kind)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(kind))
    y = y.to(u.dtype)
    return (y, h) if return_last_state else y
