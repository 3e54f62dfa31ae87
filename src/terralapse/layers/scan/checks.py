"""What the arguments of a scan must be; each mistake has one sentence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def _fail(name: str, found: object, expected: str) -> ValueError:
    return ValueError(f"{name} is {found}; expected {expected}")


def _shape(name: str, x: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if x.dim() != len(expected) or any(a != b for a, b in zip(x.shape, expected, strict=True)):
        raise _fail(name, list(x.shape), f"{list(expected)} = {meaning}")


def _kind(name: str, x: Tensor, device: torch.device) -> None:
    if not x.is_floating_point():
        raise _fail(name, x.dtype, "a real floating type")
    if x.device != device:
        raise _fail(name, f"on {x.device}", f"{device}, where u is")


def check_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    vectors: Mapping[str, Tensor | None],
    z: Tensor | None,
) -> None:
    """Raises ValueError unless the arguments of `selective_scan` fit together."""
    if u.dim() != 3:
        raise _fail("u", list(u.shape), "[B, D, L]")
    batch, channels, length = u.shape
    if A.dim() != 2:
        raise _fail("A", list(A.shape), "[D, N]")
    states = A.shape[1]
    _shape("delta", delta, (batch, channels, length), "[B, D, L] of u")
    _shape("A", A, (channels, states), "[D, N] with the D of u")
    if B.dim() != 4:
        raise _fail("B", list(B.shape), "[B, G, N, L]")
    groups = B.shape[1]
    if groups == 0 or channels % groups:
        raise _fail(
            "B", list(B.shape), f"a number of groups (dimension 1) that divides the {channels} channels of u"
        )
    _shape("B", B, (batch, groups, states, length), "[B, G, N, L] with the B and L of u and the N of A")
    _shape("C", C, (batch, groups, states, length), "[B, G, N, L] as B")
    if z is not None:
        _shape("z", z, (batch, channels, length), "[B, D, L] of u")
    _vectors(vectors, channels, "[D] of u")
    _kinds(u, {"u": u, "delta": delta, "A": A, "B": B, "C": C, "z": z, **vectors})


def check_paths(
    u: Tensor,
    delta: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    vectors: Mapping[str, Tensor | None],
    order: Tensor,
    inverse: Tensor,
) -> None:
    """Raises ValueError unless the arguments of `path_scan` fit together."""
    if u.dim() != 3:
        raise _fail("u", list(u.shape), "[B, D, L]")
    batch, channels, length = u.shape
    for name, table in (("paths.order", order), ("paths.inverse", inverse)):
        if table.dtype != torch.int64:
            raise _fail(name, table.dtype, "torch.int64")
        if table.dim() != 2 or table.shape[0] == 0:
            raise _fail(name, list(table.shape), "[K, L] with at least one path")
        _shape(name, table, (order.shape[0], length), "[K, L] with the L of u")
    paths = order.shape[0]
    if A.dim() != 2:
        raise _fail("A", list(A.shape), "[K * D, N]")
    states = A.shape[1]
    _shape("A", A, (paths * channels, states), "[K * D, N] with the D of u and the K of paths")
    if weight is None:
        _shape("delta", delta, (batch, paths * channels, length), "[B, K * D, L]")
    else:
        if weight.dim() != 3:
            raise _fail("delta.weight", list(weight.shape), "[K, D, R]")
        rank = weight.shape[2]
        _shape(
            "delta.weight", weight, (paths, channels, rank), "[K, D, R] with the D of u and the K of paths"
        )
        _shape("delta.value", delta, (batch, paths, rank, length), "[B, K, R, L] with the R of delta.weight")
    _shape("B", B, (batch, paths, states, length), "[B, K, N, L] with the N of A")
    _shape("C", C, (batch, paths, states, length), "[B, K, N, L] as B")
    _vectors(vectors, paths * channels, "[K * D]")
    _kinds(u, {"u": u, "delta": delta, "delta.weight": weight, "A": A, "B": B, "C": C, **vectors})


def _vectors(vectors: Mapping[str, Tensor | None], length: int, meaning: str) -> None:
    for name, x in vectors.items():
        if x is not None:
            _shape(name, x, (length,), meaning)


def _kinds(u: Tensor, named: Mapping[str, Tensor | None]) -> None:
    for name, x in named.items():
        if x is not None:
            _kind(name, x, u.device)
