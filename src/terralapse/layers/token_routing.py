"""A backbone whose Mamba blocks see only the tokens that a gate scores highest.

Source: Chen et al., "DynamicVis", 2025 (arXiv:2503.16426). Parameter names are the official ones. Four points
that are easily got wrong and that official weights depend on: the chosen tokens enter the mixer in the order
of their scores, not of the raster; the global tokens are the means of the image's rows; the output is weighed
by a softmax over ALL tokens, which is not normalised again over the chosen ones; and ties are broken by the
position, so that every device chooses alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terralapse.layers.mamba import MambaMixer, PathType, RMSNorm, path_gate, run_paths
from terralapse.layers.position import resize_position


class MambaBlock(nn.Module):
    """x plus one mixer along several orders of norm(x). A shuffled order is drawn anew in each pass."""

    def __init__(self, width: int, path: PathType = PathType.REVERSE_MEAN) -> None:
        super().__init__()
        self.path = path
        self.pre_norm = RMSNorm(width)
        self.mamba_layer = MambaMixer(width)
        self.gate_layers = path_gate(width, path) if path.gated else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] to [B, L, C]."""
        shuffle = torch.rand(x.shape[1], device=x.device).argsort() if self.path.shuffled else None
        return x + run_paths(self.mamba_layer, self.pre_norm(x), self.path, self.gate_layers, shuffle)


@dataclass(frozen=True)
class Routing:
    """How tokens are chosen.

    `keep` is the reduction at each stage: one of that many tokens is kept; 0 or less means all of them,
    without a gate. `global_tokens` is how many means of the sequence are put before it: -1 for one each row,
    0 for none. With `softmax_on_x` the tokens that were not chosen are weighed, too.
    """

    keep: tuple[int, ...] = (8, 4, 2, 1)
    global_tokens: int = -1
    softmax_on_x: bool = True
    path: PathType = PathType.REVERSE_MEAN


class SpatialSparseMixer(nn.Module):
    """One block over the tokens that its gate chooses. `gumbel_scale` is that of the noise in training."""

    def __init__(self, width: int, keep: int, routing: Routing) -> None:
        super().__init__()
        self.keep, self.routing, self.gumbel_scale = keep, routing, 0.1
        self.spatial_gate = nn.Linear(width, 1, bias=False) if keep > 0 else None
        self.spatial_mamba_mixer = MambaBlock(width, routing.path)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities float32 [B, N] over the tokens, and int64 [B, N // keep], the chosen ones in the
        order of their scores. The choice has no gradient; the probabilities have."""
        assert self.spatial_gate is not None
        with torch.autocast(x.device.type, enabled=False):  # the order must not depend on the precision
            logits = F.linear(x.float(), self.spatial_gate.weight.float())[..., 0]
        probability = logits.softmax(dim=1)
        scores = probability.detach()
        if self.training:
            uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
            scores = (logits.detach() - self.gumbel_scale * (-uniform.log()).log()).softmax(dim=1)
        count = max(1, x.shape[1] // self.keep)
        if torch.onnx.is_in_onnx_export():  # has no stable sort, and its TopK is stable by definition
            return probability, scores.topk(count, dim=1).indices
        return probability, scores.sort(dim=1, descending=True, stable=True).indices[:, :count]

    def forward(self, x: Tensor, height: int) -> Tensor:
        """Tokens [B, N, C] of a map of `height` rows, in raster order, to the same."""
        if self.spatial_gate is None:
            return self.spatial_mamba_mixer(x)
        probability, chosen = self.select(x)
        weight = probability.to(x.dtype)[..., None]  # [B, N, 1]
        index = chosen[..., None].expand(-1, -1, x.shape[2])
        sequence = x.gather(1, index)
        rows = global_tokens(x, self.routing.global_tokens, height)
        count = rows.shape[1]
        y = self.spatial_mamba_mixer(torch.cat([rows, sequence], dim=1))[:, count:]
        y = (y * weight.gather(1, chosen[..., None])).to(x.dtype)
        if self.routing.softmax_on_x:
            return x + (x * weight).scatter(1, index, y)
        return x.scatter(1, index, sequence + y)


def global_tokens(x: Tensor, number: int, height: int) -> Tensor:
    """Means of consecutive parts of a sequence [B, N, C], as many as `number` (-1: `height`, so that each is
    the mean of a row; 0: none)."""
    count = height if number < 0 else number
    if count == 0:
        return x[:, :0]
    if x.shape[1] % count == 0:
        return x.unflatten(1, (count, -1)).mean(dim=2)
    return F.adaptive_avg_pool1d(x.transpose(1, 2), count).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """A strided convolution and a LayerNorm over the channels."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        nn.init.kaiming_normal_(self.projection.weight, mode="fan_in", nonlinearity="linear")

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """[B, C, H, W] to tokens [B, h * w, D], and h, w."""
        x = self.projection(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class RoutedMamba(nn.Module):
    """Four stages of strides 4, 8, 16, 32.

    Args:
        widths, depths: of the stages.
        size: side of the square image that the position table is for; other sizes run with the table
            resized bicubically in each pass.
        pooled: whether the mean over the last map, normalised, is what tasks take.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        size: int,
        routing: Routing | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        routing = Routing() if routing is None else routing
        self.widths, self.size = tuple(widths), size
        self.grid = -(-size // 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, widths[0]))
        self.layers = nn.ModuleList()
        inputs = (3, *widths[:-1])
        for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            embed = PatchEmbedding(inputs[s], width, 7 if s == 0 else 3, 4 if s == 0 else 2)
            blocks = [SpatialSparseMixer(width, routing.keep[s], routing) for _ in range(depth)]
            self.layers.append(nn.ModuleList([embed, nn.ModuleList(blocks), nn.LayerNorm(width, eps=1e-6)]))
        self.post_meanpool_norm = nn.LayerNorm(widths[-1], eps=1e-6) if pooled else None
        self.checkpointing = False

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to four maps [B, C, H/4, W/4] to [B, C, H/32, W/32], sides rounded
        up."""
        x, maps = images, []
        for s, (embed, blocks, norm) in enumerate(self.layers):  # pyright: ignore[reportGeneralTypeIssues]
            x, height, width = embed(x)
            if s == 0:
                x = x + resize_position(self.pos_embed, height, width).to(x.dtype)
            for block in blocks:
                if self.checkpointing and torch.is_grad_enabled():
                    # The noise of the choice is drawn again as it was.
                    x = checkpoint(block, x, height, use_reentrant=False)
                else:
                    x = block(x, height)
            x = norm(x).transpose(1, 2).unflatten(2, (height, width))
            maps.append(x)
        return maps

    def pool(self, maps: list[Tensor]) -> Tensor:
        """[B, C], the spatial mean of the last map, normalised where the backbone is pooled."""
        mean = maps[-1].mean(dim=(2, 3))
        return mean if self.post_meanpool_norm is None else self.post_meanpool_norm(mean)

    def set_gumbel_scale(self, scale: float) -> None:
        """The scale of the noise in training: 0.1 in pre-training; fine-tuning lowers it to 1e-4."""
        for module in self.modules():
            if isinstance(module, SpatialSparseMixer):
                module.gumbel_scale = scale

    def freeze_first_stage(self) -> None:
        """Stops the training of stage 1 (embedding, blocks, norm); the position table goes on learning."""
        self.layers[0].requires_grad_(False)
