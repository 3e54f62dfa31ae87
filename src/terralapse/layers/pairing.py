"""Layers that take the features of two dates, and do not care which date came first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.folding import folded, inferring


def halves(stacked: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second date of a batch that holds both, [2 B, ...] to [B, ...] twice. By slices: a
    chunk would fix the batch of an exported graph."""
    pairs = stacked.shape[0] // 2
    return stacked[:pairs], stacked[pairs:]


class SymmetricFusion(nn.Module):
    """A learned function of two feature maps that is invariant to their order.

    With two linear maps P and Q it computes relu(bn(P a + Q b)) + relu(bn(P b + Q a)): with Q = -P this is
    the absolute difference of learned projections, with Q = P their sum; the first half of the channels
    starts as the former. Features come stacked along the batch, all first dates and then all second dates:
    [2 B, C, H, W] -> [B, outputs, H, W].
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(inputs, 2 * outputs, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        with torch.no_grad():
            half = outputs // 2
            self.maps.weight[outputs : outputs + half] = -self.maps.weight[:half]

    def forward(self, stacked: Tensor) -> Tensor:
        if inferring(self):
            return self._inferred(stacked)
        p, q = self.maps(stacked).chunk(2, dim=1)
        first, second = halves(q)
        first, second = halves(F.relu(self.bn(p + torch.cat([second, first]))))
        return first + second

    def _inferred(self, stacked: Tensor) -> Tensor:
        """The same in place, date by date, with the normalisation in the maps (P' = s P, Q' = s Q, and the
        bias added once)."""
        p, q = self.maps.weight.chunk(2)
        p, bias = folded(p, self.bn)
        q, _ = folded(q, self.bn)
        first, second = halves(stacked)
        found = F.relu(F.conv2d(first, p, bias).add_(F.conv2d(second, q)), inplace=True)
        return found.add_(F.relu(F.conv2d(second, p, bias).add_(F.conv2d(first, q)), inplace=True))
