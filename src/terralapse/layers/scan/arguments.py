"""What goes into a scan and what comes back out of it, in the one order that all of this room keeps to."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """The arguments of `terralapse::scan`, which are those of `selective_scan` and `path_scan` together.

    `delta` is the step size, or with `weight` the value of `LowRank`; `order` [K, L] are the paths, None for
    one that is the order of memory; `soft` puts the step size through softplus.
    """

    u: Tensor
    delta: Tensor
    weight: Tensor | None
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    z: Tensor | None
    order: Tensor | None
    soft: bool

    @property
    def learned(self) -> tuple[Tensor | None, ...]:
        """What has a gradient, if it is there, in the order in which the backward pass returns them."""
        return self[:9]

    @property
    def paths(self) -> int:
        """K, the number of paths."""
        return 1 if self.order is None else self.order.shape[0]

    @property
    def rank(self) -> int:
        """R of the product that the step size is; 0 where it is given as it is."""
        return 0 if self.weight is None else self.weight.shape[2]


class Sums(NamedTuple):
    """The float32 gradients as kernels leave them: those over channels and positions [B, D, L] (`dense` of a
    step size without `weight`), the others in parts along the first dimension, which are to be added."""

    u: Tensor
    dense: Tensor
    value: Tensor
    weight: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    z: Tensor


def gradients(given: Arguments, sums: Sums) -> list[Tensor]:
    """Gradients of `given.learned` in the types of what they belong to; empty tensors for what is absent."""
    value = sums.dense if given.weight is None else sums.value.sum(0).transpose(2, 3)
    found = (
        *(sums.u, value, sums.weight.sum(0), sums.A.sum(0)),
        *(sums.B.sum(0).transpose(2, 3), sums.C.sum(0).transpose(2, 3)),
        *(sums.D.sum(0), sums.bias.sum(0), sums.z),
    )
    nothing = given.u.new_empty
    return [nothing(0) if x is None else g.to(x.dtype) for x, g in zip(given.learned, found, strict=True)]


def saved_states(given: Arguments, steps: int, keep: bool) -> tuple[int, ...]:
    """The shape [B, K, tiles, N, D] of the states that a forward pass keeps for the backward pass; of no
    element where it keeps none."""
    batch, channels, length = given.u.shape
    return (
        (batch, given.paths, (length + steps - 1) // steps, given.A.shape[1], channels) if keep else (0,) * 5
    )
