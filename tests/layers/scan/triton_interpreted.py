"""Run by `test_triton` with TRITON_INTERPRET=1: the Triton kernels on a CPU against the reference.

Prints the largest relative error of every output and gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from terralapse.layers.scan import LowRank, cross_paths, gpu, path_scan, selective_scan
from terralapse.layers.scan.arguments import Arguments


def worst(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
        for a, b in zip(found, expected, strict=True)
    )


def scan_case(batch: int, channels: int, groups: int, states: int, length: int, soft: bool) -> float:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    wide, narrow = (batch, channels, length), (batch, groups, states, length)
    u, delta, z = normal(*wide), normal(*wide).abs() * 0.5, normal(*wide)
    A, B, C = -normal(channels, states).abs(), normal(*narrow), normal(*narrow)
    D, bias = normal(channels), normal(channels).abs() * 0.1
    given = Arguments(u, delta, None, A, B, C, D, bias, z, None, soft)
    y, last, marks = gpu.forward(given, True)
    gy, glast = normal(*y.shape), normal(*last.shape)
    found = gpu.backward(given, marks, gy, glast)
    leaves = [x.double().requires_grad_() for x in (u, delta, A, B, C, D, bias, z)]
    expected = selective_scan(*leaves[:7], soft, leaves[7], True, backend="reference")
    wanted = torch.autograd.grad(list(expected), leaves, [gy.double(), glast.double()])
    del found[2]
    return worst([y, last, *found], [*expected, *wanted])


def path_case(
    batch: int, channels: int, states: int, height: int, width: int, rank: int, dense: bool
) -> float:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    paths, length = cross_paths(height, width), height * width
    count = paths.order.shape[0]
    u, value, weight = (
        normal(batch, channels, length),
        normal(batch, count, rank, length),
        normal(count, channels, rank),
    )
    B, C = normal(batch, count, states, length), normal(batch, count, states, length)
    A, D, bias = -normal(count * channels, states).abs(), normal(count * channels), normal(count * channels)
    if dense:
        delta, factor = torch.einsum("bkrl,kdr->bkdl", value, weight).flatten(1, 2), None
    else:
        delta, factor = value, weight
    given = Arguments(u, delta, factor, A, B, C, D, bias, None, paths.order, True)
    y, last, marks = gpu.forward(given, True)
    gy = normal(*y.shape)
    found = gpu.backward(given, marks, gy, torch.zeros_like(last))
    leaves = [x.double().requires_grad_() for x in (u, delta, *([] if dense else [weight]), A, B, C, D, bias)]
    step = leaves[1] if dense else LowRank(leaves[1], leaves[2])
    expected = path_scan(leaves[0], step, *leaves[-5:], paths=paths, backend="reference")
    wanted = torch.autograd.grad(expected, leaves, gy.double())
    return worst([y, *(x for x in found if x.numel())], [expected, *wanted])


if __name__ == "__main__":
    print(  # noqa: T201
        scan_case(1, 6, 2, 3, 66, True),
        scan_case(1, 40, 1, 1, 5, False),
        path_case(1, 5, 1, 3, 5, 3, False),
        path_case(2, 18, 2, 2, 3, 1, True),
    )
