"""The convolutional block attention module: first which channels count, then which places.

Woo, Park, Lee and Kweon 2018, "CBAM: Convolutional Block Attention Module", section 3. Names of parameters
are those that published checkpoints have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """A weight in 0..1 for each channel, from its mean and its maximum over the image."""

    def __init__(self, width: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, width // ratio)
        self.fc1 = nn.Conv2d(width, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, 1, 1]."""
        pooled = (x.mean(dim=(2, 3), keepdim=True), x.amax(dim=(2, 3), keepdim=True))
        mean, most = (self.fc2(self.fc1(p).relu()) for p in pooled)
        return torch.sigmoid(mean + most)


class SpatialAttention(nn.Module):
    """A weight in 0..1 for each place, from the mean and the maximum over its channels."""

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W]."""
        return torch.sigmoid(self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class CBAM(nn.Module):
    """Features [B, C, H, W] times both weights, the second from what the first has left."""

    def __init__(self, width: int, ratio: int = 16, kernel: int = 7) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(width, ratio)
        self.spatial_attention = SpatialAttention(kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)
