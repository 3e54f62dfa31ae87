"""Scans along several orders of the same positions, as tables of indices."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import NamedTuple

import torch
from torch import Tensor

from terralapse.layers.scan import portable
from terralapse.layers.scan.arguments import Arguments
from terralapse.layers.scan.backends import choose
from terralapse.layers.scan.checks import check_paths
from terralapse.layers.scan.reference import selective_scan_reference
from terralapse.layers.scan.selective import run


class Paths(NamedTuple):
    """`order` int64 [K, L]: path k visits position order[k, t] at step t; `inverse` int64 [K, L]: the step
    at which path k visits a position."""

    order: Tensor
    inverse: Tensor


class LowRank(NamedTuple):
    """A step size that is given as a product: delta[b, k, d, l] = sum_r weight[k, d, r] value[b, k, r, l].

    `value` [B, K, R, L]; `weight` [K, D, R].
    """

    value: Tensor
    weight: Tensor


def _paths(orders: list[Tensor]) -> Paths:
    order = torch.stack(orders)
    return Paths(order, order.argsort(dim=1))


def path_table(build: Callable[[int, int], Paths]) -> Callable[[int, int], Paths]:
    """Keeps the last tables. Those made while a graph is traced are fakes and must not be kept, and those
    made in inference mode could not be used in training."""
    kept = lru_cache(maxsize=64)(torch.inference_mode(False)(build))

    @wraps(build)
    def table(height: int, width: int) -> Paths:
        return build(height, width) if torch.compiler.is_compiling() else kept(height, width)

    return table


@path_table
def cross_paths(height: int, width: int) -> Paths:
    """The four directions of VMamba's SS2D: rows, columns, and both of them backwards.

    Sides may be symbols of `torch.export`: the tables are then computed inside the exported program.
    """
    y, x = (
        torch.arange(height, device="cpu"),
        torch.arange(width, device="cpu"),
    )  # whatever the default device
    rows = (y[:, None] * width + x).reshape(-1)
    columns = (x[:, None] + y * width).reshape(-1)
    step = (x * height + y[:, None]).reshape(-1)
    last = height * width - 1
    order = torch.stack([rows, columns, last - rows, last - columns])
    return Paths(order, torch.stack([rows, step, last - rows, last - step]))


@path_table
def diagonal_paths(height: int, width: int) -> Paths:
    """The main diagonals, the anti-diagonals, and both of them backwards; from the top left and top right."""
    y = torch.arange(height, device="cpu")[:, None].expand(height, width)
    x = torch.arange(width, device="cpu").expand(height, width)
    main = ((x - y + height - 1) * height + y).reshape(-1).argsort()
    anti = ((x + y) * height + y).reshape(-1).argsort()
    return _paths([main, anti, main.flip(0), anti.flip(0)])


@path_table
def cs2d_paths(height: int, width: int) -> Paths:
    """Rows, columns, main diagonals and anti-diagonals, all forwards: four orders instead of two and their
    reversals, the reading of "cross 2D scanning" in CVMH-UNet."""
    straight, slanted = cross_paths(height, width).order, diagonal_paths(height, width).order
    return _paths([straight[0], straight[1], slanted[0], slanted[1]])


@path_table
def full_paths(height: int, width: int) -> Paths:
    """The eight of `cross_paths` and `diagonal_paths`."""
    return _paths([*cross_paths(height, width).order, *diagonal_paths(height, width).order])


def path_scan(
    u: Tensor,
    delta: Tensor | LowRank,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    paths: Paths,
    backend: str = "auto",
) -> Tensor:
    """The sum over K paths of a selective scan along each, back at the positions where its inputs lie.

    Args:
        u: [B, D, L], by position; every path scans the same values.
        delta: [B, K * D, L] by position (path 0's D channels first), or a `LowRank` product.
        A: [K * D, N]; D, delta_bias: [K * D].
        B, C: [B, K, N, L] by position.
        paths: the orders, each a permutation of the L positions.
        backend: see `backends`; `mamba-ssm` knows no paths.

    Returns:
        [B, D, L] in the type of `u`, computed in float32 (float64 if an input is).

    Raises:
        ValueError: an argument's shape, type or device does not fit the others.
    """
    value, weight = delta if isinstance(delta, LowRank) else (delta, None)
    vectors = {"D": D, "delta_bias": delta_bias}
    check_paths(u, value, weight, A, B, C, vectors, *paths)
    chosen = choose(backend, u, value, weight, A, B, C, D, delta_bias)
    order, inverse = paths.order.to(u.device), paths.inverse.to(u.device)
    if chosen in ("cpu", "triton"):
        return run(Arguments(u, value, weight, A, B, C, D, delta_bias, None, order, delta_softplus))[0]
    if chosen == "portable":
        return portable.path_scan(u, value, weight, A, B, C, D, delta_bias, delta_softplus, order, inverse)
    return _by_gathering(u, value, weight, A, B, C, D, delta_bias, delta_softplus, order, inverse)


def _by_gathering(
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
    """The definition: everything put into the order of each path, one reference scan, everything put back."""
    count, length = order.shape
    batch, channels, _ = u.shape
    if weight is not None:
        delta = torch.einsum("bkrl,kdr->bkdl", delta, weight.to(delta.dtype)).flatten(1, 2)
    wide = order[None, :, None].expand(batch, count, channels, length)
    along = u[:, None].expand(batch, count, channels, length).gather(3, wide).flatten(1, 2)
    steps = delta.unflatten(1, (count, channels)).gather(3, wide).flatten(1, 2)
    narrow = order[None, :, None].expand(batch, count, B.shape[2], length)
    y, _ = selective_scan_reference(
        along, steps, A, B.gather(3, narrow), C.gather(3, narrow), D, bias, soft, None, True
    )
    back = inverse[None, :, None].expand(batch, count, channels, length)
    return y.unflatten(1, (count, channels)).gather(3, back).sum(dim=1)
