"""The visual state-space block of VMamba and its encoder, channel-last.

Liu et al. 2024, "VMamba: Visual State Space Model", arXiv:2401.10166. Parameters have the names of the
official code, so its checkpoints load without a table. Three forms of the same core are in use:

- `SS2D(dim)`: "v3noz", without a gate, one state: ChangeMamba and Mamba-FCS;
- `SS2D(dim, state=16, conv_bias=True, gated=True)`: "v2", and v0 as VM-UNet has it.

The scan runs along `paths`, tables that say in which order the positions of an image are visited. Everything
before it depends on one position (or its 3 x 3 neighbourhood), so it is computed once for all directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terralapse.layers.drop_path import DropPath
from terralapse.layers.scan import LowRank, Paths, cross_paths, path_scan
from terralapse.layers.weights import load_strict

PathTable = Callable[[int, int], Paths]

DT_RANGE = (1e-3, 0.1)  # of the step sizes at the start
DT_FLOOR = 1e-4


class SS2D(nn.Module):
    """A selective scan over an image, along several paths at once, between two linear maps.

    Args:
        dim: channels C of input and output.
        state: N, values of state per channel and direction.
        ratio: the scan has D = ratio * C channels.
        conv_bias: whether the depthwise convolution has one.
        gated: multiplies the normalised result by SiLU of a second half of the input map.
        rank: of the step sizes; "auto" is ceil(C / 16).
        paths: gives the orders for a height and a width; as many directions K as it has.

    `A_logs` [K * D, N] and `Ds` [K * D] stay float32 when the network is cast to a 16-bit type, since decay
    rates do not survive 8 bits of mantissa; every other parameter is cast.
    """

    def __init__(
        self,
        dim: int,
        state: int = 1,
        ratio: float = 2.0,
        conv_bias: bool = False,
        gated: bool = False,
        rank: int | Literal["auto"] = "auto",
        paths: PathTable = cross_paths,
    ) -> None:
        super().__init__()
        inner = int(ratio * dim)
        self.rank = math.ceil(dim / 16) if rank == "auto" else rank
        self.state, self.gated, self.paths = state, gated, paths
        count = paths(1, 1).order.shape[0]
        self.x_proj_weight = nn.Parameter(torch.empty(count, self.rank + 2 * state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(count, inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(count, inner))
        self.A_logs = nn.Parameter(torch.empty(count * inner, state))
        self.Ds = nn.Parameter(torch.ones(count * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.in_proj = nn.Linear(dim, 2 * inner if gated else inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self._start()

    def _start(self) -> None:
        """The start of Mamba: S4D-real decay rates, step sizes log-uniform over `DT_RANGE`."""
        with torch.no_grad():
            self.x_proj_weight.uniform_(-1, 1).div_(math.sqrt(self.x_proj_weight.shape[2]))
            self.dt_projs_weight.uniform_(-1, 1).div_(math.sqrt(self.rank))
            low, high = (math.log(x) for x in DT_RANGE)
            dt = torch.empty_like(self.dt_projs_bias).uniform_(low, high).exp().clamp(min=DT_FLOOR)
            self.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            self.A_logs.copy_(torch.arange(1, self.state + 1).float().log().expand_as(self.A_logs))

    @property
    def parameters_a_direction(self) -> int:
        """How many numbers a direction computes from a position: its step size in low rank, B and C."""
        return self.rank + 2 * self.state

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """`x` [B, H, W, C] to [B, H, W, C]. `shift` [B, K, parameters_a_direction] is added at every position
        to what each direction computes there (the low-rank step size, B and C): a condition from outside."""
        batch, height, width, _ = x.shape
        x = self.in_proj(x)
        x, z = x.chunk(2, dim=-1) if self.gated else (x, None)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        x = x.reshape(batch, height * width, -1)  # [B, L, D]
        # [B, L, K, R + 2N]: what each direction needs of each position, in one product.
        needed = F.linear(x, self.x_proj_weight.flatten(0, 1)).unflatten(2, self.x_proj_weight.shape[:2])
        if shift is not None:
            needed = needed + shift[:, None].to(needed.dtype)
        dt, b, c = needed.permute(0, 2, 3, 1).split([self.rank, self.state, self.state], dim=2)
        y = path_scan(
            x.transpose(1, 2),
            LowRank(dt, self.dt_projs_weight),
            -self.A_logs.float().exp(),
            b,
            c,
            self.Ds,
            self.dt_projs_bias.flatten(),
            True,
            paths=self.paths(height, width),
        )
        y = self.out_norm(y.transpose(1, 2)).unflatten(1, (height, width))
        return self.out_proj(y if z is None else y * F.silu(z))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SS2D:
        """Moves and casts as any module does, but `A_logs` and `Ds` are not cast to 16 bits."""
        wide = [t for p in (self.A_logs, self.Ds) for t in (p, p.grad) if t is not None]

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrow = moved.is_floating_point() and moved.itemsize < 4
            return tensor.to(moved.device) if narrow and any(tensor is t for t in wide) else moved

        return super()._apply(keep, recurse)


class Mlp(nn.Module):
    """Linear, GELU, Linear, over the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VSSBlock(nn.Module):
    """x + SS2D(LN(x)), then x + MLP(LN(x)), on [B, H, W, C]; without the MLP where `mlp_ratio` is 0.

    `ss2d` are the options of `SS2D`. With `checkpointing` the block keeps only its input for the backward
    pass and computes the rest again.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, mlp_ratio: float = 4.0, **ss2d: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, **ss2d)
        self.drop_path = DropPath(drop_path)
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.has_mlp = mlp_ratio > 0
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, H, W, C] to [B, H, W, C]."""
        if self.checkpointing and torch.is_grad_enabled():
            again = checkpoint(self._forward, x, use_reentrant=False)
            assert isinstance(again, Tensor)
            return again
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x))) if self.has_mlp else x


class Checkpointing(nn.Module):
    """A module whose `VSSBlock`s are told together whether to save memory in training."""

    @property
    def checkpointing(self) -> bool:
        """Whether all blocks compute again in the backward pass what they did not keep."""
        blocks = [m for m in self.modules() if isinstance(m, VSSBlock)]
        return bool(blocks) and all(b.checkpointing for b in blocks)

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for module in self.modules():
            if isinstance(module, VSSBlock):
                module.checkpointing = on


class Permute(nn.Module):
    """Exchanges the order of dimensions inside of a sequence; holds a place in the official numbering."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def to_nhwc() -> Permute:
    """[B, C, H, W] to [B, H, W, C]."""
    return Permute(0, 2, 3, 1)


def to_nchw() -> Permute:
    """[B, H, W, C] to [B, C, H, W]."""
    return Permute(0, 3, 1, 2)


class VSSStage(nn.Module):
    """Blocks at one stride, and the step to the next: a strided convolution, or nothing."""

    def __init__(self, blocks: list[VSSBlock], dim: int, to_dim: int | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample: nn.Module = nn.Identity()
        if to_dim is not None:
            conv = nn.Conv2d(dim, to_dim, 3, stride=2, padding=1)
            self.downsample = nn.Sequential(to_nchw(), conv, to_nhwc(), nn.LayerNorm(to_dim))


class VSSEncoder(Checkpointing):
    """VMamba as a pyramid: strides 4, 8, 16, 32, each stage's output before its downsampling, normalised.

    Args:
        dims: channels of the stages.
        depths: blocks of the stages.
        drop_path_rate: of the last block; it grows linearly from 0 over all blocks.
        bands: channels of the input.
        block: options of `VSSBlock` and its `SS2D`.
    """

    def __init__(
        self,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        drop_path_rate: float = 0.0,
        bands: int = 3,
        **block: Any,
    ) -> None:
        super().__init__()
        self.dims = tuple(dims)
        first = dims[0]
        self.patch_embed = nn.Sequential(
            nn.Conv2d(bands, first // 2, 3, stride=2, padding=1),
            to_nhwc(),
            nn.LayerNorm(first // 2),
            to_nchw(),
            nn.GELU(),
            nn.Conv2d(first // 2, first, 3, stride=2, padding=1),
            to_nhwc(),
            nn.LayerNorm(first),
        )
        last = max(sum(depths) - 1, 1)
        rates = iter(drop_path_rate * number / last for number in range(sum(depths)))
        self.layers = nn.ModuleList(
            VSSStage([VSSBlock(dim, next(rates), **block) for _ in range(depth)], dim, to_dim)
            for dim, depth, to_dim in zip(dims, depths, (*dims[1:], None), strict=True)
        )
        self.apply(_start)
        for number, dim in enumerate(dims):
            self.add_module(f"outnorm{number}", nn.LayerNorm(dim))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features [B, dims[i], H / (4 * 2^i), W / (4 * 2^i)] of normalised images [B, bands, H, W]; sides
        that are no multiple of the stride are rounded up."""
        x = self.patch_embed(images)
        features = []
        for number, stage in enumerate(self.layers):
            assert isinstance(stage, VSSStage)
            x = stage.blocks(x)
            features.append(self.get_submodule(f"outnorm{number}")(x).permute(0, 3, 1, 2))
            x = stage.downsample(x)
        return features


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


LINEAR = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight")


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an official file under the names and shapes used here: without the prefix `module.` of
    distributed training, and with linear maps [out, in] where a release stores 1 x 1 convolutions."""
    if tensors and all(k.startswith("module.") for k in tensors):
        tensors = {k.removeprefix("module."): v for k, v in tensors.items()}
    return {
        k: v.flatten(1) if k.endswith(LINEAR) and v.shape[2:] == (1, 1) else v for k, v in tensors.items()
    }


def load_imagenet(encoder: VSSEncoder, published: dict[str, Tensor]) -> None:
    """Starts an encoder from a published VMamba that was trained to classify ImageNet.

    The published network ends in `classifier.*`, which the encoder does not have, and lacks the encoder's
    `outnorm*`, which keep their start. Everything else must be there and fit.

    Raises:
        WeightsMismatchError: something else is missing, unknown or of another shape.
    """
    own = {k: v for k, v in encoder.state_dict().items() if k.startswith("outnorm")}
    tensors = official_names(published)
    body = {k: v for k, v in tensors.items() if not k.startswith("classifier.")}
    load_strict(encoder, own | body, "the published VMamba")
