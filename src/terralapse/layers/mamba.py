"""Mamba blocks over token sequences, and one mixer run along several orders of the same tokens.

Source: Gu and Dao 2023 (Mamba); the orders and their gate are those of RSMamba (Chen et al. 2024) and
DynamicVis (Chen et al. 2025). Parameter names are those of the `MambaMixer` that both use.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.scan import selective_scan


class MambaMixer(nn.Module):
    """The Mamba-1 mixer: two projections, a causal depthwise convolution, a selective scan, a gate.

    Args:
        width: channels C of a token.
        expand: inner channels are `expand` times C.
        state: length of the state of each inner channel.
        kernel: taps of the causal convolution.
        rank: of the step size; ceil(C / 16) when None.
    """

    def __init__(
        self, width: int, expand: int = 2, state: int = 16, kernel: int = 4, rank: int | None = None
    ) -> None:
        super().__init__()
        inner = expand * width
        self.state, self.rank = state, math.ceil(width / 16) if rank is None else rank
        self.A_log = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.conv1d = nn.Conv1d(inner, inner, kernel, padding=kernel - 1, groups=inner)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self._start_steps()

    def _start_steps(self, low: float = 1e-3, high: float = 0.1) -> None:
        """Step sizes that start log-uniform in low..high: the bias is the inverse of the softplus."""
        with torch.no_grad():
            steps = torch.empty(len(self.D)).uniform_(math.log(low), math.log(high)).exp().clamp(min=1e-4)
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))
            nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, L, C] to [B, L, C]; a token depends on those before it and on itself."""
        length = x.shape[1]
        u, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)  # [B, E, L] each
        # Padded on both sides by kernel - 1; without the tail the convolution is causal.
        u = F.silu(self.conv1d(u)[..., :length])
        step, b, c = self.x_proj(u.transpose(1, 2)).split([self.rank, self.state, self.state], dim=-1)
        delta = F.linear(step, self.dt_proj.weight).transpose(1, 2)  # the bias is added in full precision
        y = selective_scan(
            u,
            delta,
            -_wide(self.A_log).exp(),
            b.transpose(1, 2)[:, None],
            c.transpose(1, 2)[:, None],
            self.D,
            self.dt_proj.bias,
            delta_softplus=True,
            z=z,
        )
        assert isinstance(y, Tensor)
        return self.out_proj(y.transpose(1, 2))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a weight; computed in float32 at least, as the mixers expect it."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _wide(x)
        wide = wide * (wide.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return self.weight * wide.to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# --- several orders of the same tokens -----------------------------------------------------------------
class PathType(StrEnum):
    """Which orders one mixer runs along, and how their outputs are joined."""

    FORWARD = "forward"
    REVERSE_MEAN = "forward_reverse_mean"
    REVERSE_GATE = "forward_reverse_gate"
    SHUFFLE_MEAN = "forward_reverse_shuffle_mean"
    SHUFFLE_GATE = "forward_reverse_shuffle_gate"

    @property
    def shuffled(self) -> bool:
        """Whether one of the orders is a permutation that has to be given."""
        return self in (PathType.SHUFFLE_MEAN, PathType.SHUFFLE_GATE)

    @property
    def gated(self) -> bool:
        """Whether a learned gate weighs the orders."""
        return self in (PathType.REVERSE_GATE, PathType.SHUFFLE_GATE)

    @property
    def orders(self) -> int:
        """How many orders there are."""
        return 1 if self is PathType.FORWARD else 3 if self.shuffled else 2


def path_gate(width: int, path: PathType) -> nn.Sequential:
    """The gate over the orders: [B, orders * C] to weights that sum to one."""
    return nn.Sequential(nn.Linear(path.orders * width, path.orders, bias=False), nn.Softmax(dim=-1))


def path_order(path: PathType, length: int, shuffle: Tensor | None, device: torch.device) -> Tensor:
    """int64 [orders, L]: step t of order k visits token order[k, t]. `shuffle` int64 [L] is the permutation
    where there is one.

    Raises:
        ValueError: a permutation is missing, or has another length.
    """
    forward = torch.arange(length, device=device)
    orders = [forward, forward.flip(0)][: path.orders]
    if path.shuffled:
        if shuffle is None or shuffle.shape != (length,):
            found = None if shuffle is None else tuple(shuffle.shape)
            raise ValueError(f"{path} needs a permutation of {length} tokens, not {found}")
        orders.append(shuffle.to(device))
    return torch.stack(orders)


def run_paths(
    mixer: nn.Module, x: Tensor, path: PathType, gate: nn.Module | None = None, shuffle: Tensor | None = None
) -> Tensor:
    """One mixer along all orders of `path`, its outputs back in raster order and joined.

    The orders are stacked along the batch, order by order, and pass through the mixer at once. A gate sees
    the means over the tokens of the mixer's outputs, not of its inputs.

    Args:
        mixer: [n, L, C] to [n, L, C].
        x: tokens [B, L, C], already normalised.
        gate: from `path_gate`, where `path` is gated.
        shuffle: int64 [L], where `path` is shuffled.

    Returns:
        [B, L, C].
    """
    batch, length, _ = x.shape
    order = path_order(path, length, shuffle, x.device)
    y = mixer(torch.cat([x[:, o] for o in order.unbind()]))  # [orders * B, L, C]
    inverse = order.argsort(dim=1)
    back = torch.stack([part[:, i] for part, i in zip(y.split(batch), inverse.unbind(), strict=True)], dim=1)
    if not path.gated:
        return back.mean(dim=1)
    if gate is None:
        raise ValueError(f"{path} needs a gate")
    weight = gate(back.mean(dim=2).flatten(1))  # [B, orders]
    return (weight[:, :, None, None] * back).sum(dim=1)


def seeded_shuffle(length: int, seed: int) -> Tensor:
    """A permutation int64 [L] that is a function of `seed` alone, on every machine."""
    import numpy as np

    drawn = np.random.Generator(np.random.Philox(key=seed)).random(length)
    return torch.from_numpy(drawn.argsort(kind="stable"))
