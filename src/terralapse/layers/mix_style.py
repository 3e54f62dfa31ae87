"""MixStyle: features with the statistics of another sample, in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MixStyle(nn.Module):
    """Mixes the mean and the standard deviation of each channel over the image with those of another sample
    of the batch, with probability `share` in training; elsewhere nothing happens.

    Source: Zhou, Yang, Qiao and Xiang, "Domain Generalization with MixStyle", ICLR 2021.
    """

    def __init__(self, share: float = 0.5, alpha: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.share, self.eps = share, eps
        self.mix = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        if not self.training or torch.rand(()) >= self.share:
            return x
        mean = x.mean(dim=(2, 3), keepdim=True)
        std = (x.var(dim=(2, 3), keepdim=True) + self.eps).sqrt()
        mean, std = mean.detach(), std.detach()  # the styles are given, not learned
        other = torch.randperm(len(x), device=x.device)
        weight = self.mix.sample((len(x), 1, 1, 1)).to(x)
        normal = (x - mean) / std
        return normal * torch.lerp(std[other], std, weight) + torch.lerp(mean[other], mean, weight)
