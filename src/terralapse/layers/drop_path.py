"""Stochastic depth: a residual branch that is left out at random while training."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """Sets the branch of a whole sample to zero with probability `rate`, and scales the others by
    1 / (1 - rate), so that the mean stays; the identity in evaluation.

    Huang et al. 2016, "Deep Networks with Stochastic Depth", drawn for each sample of the batch.

    Raises:
        ValueError: `rate` is not in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"a drop rate lies in [0, 1), not at {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, ...]."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        drawn = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * drawn / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"
