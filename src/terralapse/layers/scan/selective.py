"""Mamba's selective scan: checks its arguments and hands them to a backend."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from terralapse.layers.scan import operators, portable
from terralapse.layers.scan.arguments import Arguments
from terralapse.layers.scan.backends import choose
from terralapse.layers.scan.checks import check_scan
from terralapse.layers.scan.reference import selective_scan_reference


def run(given: Arguments) -> tuple[Tensor, Tensor]:
    """The operator `terralapse::scan`; it keeps states for a backward pass where one may come."""
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given.learned)
    y, last, _ = operators.scan(*given, keep)
    return y, last


def selective_scan(
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
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t;  y_t = C_t . h_t + D u_t, channel by channel, then y silu(z).

    Args:
        u, delta, z: [B, D, L], also as a view of [B, L, D] memory, which is then not copied; dt is delta +
            delta_bias, through softplus if `delta_softplus`.
        A: [D, N]; D, delta_bias: [D].
        B, C: [B, G, N, L], each shared by D / G neighbouring channels.
        return_last_state: also return the last state [B, D, N], in float32 (float64 if an input is).
        backend: see `backends`.

    Returns:
        y [B, D, L] in the type of `u`, computed in float32 (float64 if an input is).

    Raises:
        ValueError: an argument's shape, type or device does not fit the others, or the backend cannot run.

    Source: Gu and Dao, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv:2312.00752.
    """
    check_scan(u, delta, A, B, C, {"D": D, "delta_bias": delta_bias}, z)
    chosen = choose(backend, u, delta, A, B, C, D, delta_bias, z, states=A.shape[1])
    if chosen in ("cpu", "triton"):
        y, last = run(Arguments(u, delta, None, A, B, C, D, delta_bias, z, None, delta_softplus))
    elif chosen == "portable":
        y, last = portable.selective_scan(u, delta, A, B, C, D, delta_bias, delta_softplus, z)
    elif chosen == "mamba-ssm":
        y, last = _by_mamba(u, delta, A, B, C, D, delta_bias, delta_softplus, z)
    else:
        y, last = selective_scan_reference(u, delta, A, B, C, D, delta_bias, delta_softplus, z, True)
    return (y, last) if return_last_state else y


def _by_mamba(
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
    """The kernel of the package mamba-ssm, which wants one type for what has steps, else float32."""
    kernel = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    wide = [None if x is None else x.to(u.dtype).contiguous() for x in (u, delta, B, C, z)]
    plain = [None if x is None else x.float().contiguous() for x in (A, D, bias)]
    y, last = kernel(
        *(wide[0], wide[1], plain[0], wide[2], wide[3], plain[1], wide[4], plain[2]),
        delta_softplus=soft,
        return_last_state=True,
    )
    return y, last
