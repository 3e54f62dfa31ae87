"""SwinV2 in stages that a caller can step between, for images of one size or of any.

Source: Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022; the blocks are those
of timm, in `float32` the same numbers. Of one size, the shift is left out where a window is the whole map, as
timm does for that size. Of any size, the blocks always shift, and maps are padded to whole windows by
repeating their last row and column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terralapse.layers.padding import cut_to, pad_to_multiple

KEPT_OUT = ("relative_position_index", "relative_coords_table", "attn_mask")  # computed, not learned


class SwinBlocks(nn.Module):
    """Blocks one after the other on a map [B, C, H, W], every second one with its windows shifted by half.

    Args:
        dim: C, a multiple of `heads`.
        side: H and W where they are fixed; None for maps of any size.
    """

    def __init__(
        self, dim: int, depth: int, heads: int, window: int, side: int | None, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        from timm.models.swin_transformer_v2 import SwinTransformerV2Block  # loading timm takes seconds

        self.blocks = nn.ModuleList(
            SwinTransformerV2Block(
                dim,
                side or 2 * window,
                heads,
                window_size=window,
                shift_size=window // 2 if number % 2 else 0,
                always_partition=side is None,
                dynamic_mask=side is None,
                mlp_ratio=mlp_ratio,
            )
            for number in range(depth)
        )
        self.multiple = window if side is None else 1
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return run_blocks(self.blocks, x, self.multiple, self.checkpointing)


def run_blocks(blocks: nn.ModuleList, x: Tensor, multiple: int, checkpointing: bool) -> Tensor:
    """A map [B, C, H, W] through blocks of timm, padded to whole windows of `multiple` in between."""
    height, width = x.shape[-2:]
    x = pad_to_multiple(x, multiple).permute(0, 2, 3, 1)
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False)  # pyright: ignore[reportAssignmentType]
        else:
            x = block(x)
    return cut_to(x.permute(0, 3, 1, 2), height, width)


class SwinV2(nn.Module):
    """The patches and the stages of a SwinV2, each a step of its own.

    Args:
        bands: of the images.
        dim: channels of the first stage; each further one has twice as many and half the side.
        side: of the images where it is fixed; None for images of any size that is a multiple of 32.
    """

    def __init__(
        self,
        bands: int,
        dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: int,
        side: int | None,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        from timm.models.swin_transformer_v2 import SwinTransformerV2  # loading timm takes seconds

        whole = SwinTransformerV2(
            img_size=side or 64 * window,
            in_chans=bands,
            num_classes=0,
            embed_dim=dim,
            depths=tuple(depths),
            num_heads=tuple(heads),
            window_size=window,
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
            always_partition=side is None,
            strict_img_size=side is not None,
        )
        self.patch_embed = whole.patch_embed
        for number, stage in enumerate(whole.layers):
            self.add_module(f"layers_{number}", stage)
        self.dims = tuple(dim * 2**i for i in range(len(depths)))
        self.multiple = window if side is None else 1
        self.checkpointing = False

    def steps(self) -> Iterator[tuple[str, nn.Module]]:
        """Names and modules of the patches and of each stage, in order; see `step`."""
        return self.named_children()

    def step(self, name: str, x: Tensor) -> Tensor:
        """[B, C, H, W] through one of `steps`: images for `patch_embed`, else the map of the step before."""
        module = self.get_submodule(name)
        if name == "patch_embed":
            return module(x).permute(0, 3, 1, 2)
        smaller = module.get_submodule("downsample")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        blocks = module.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        return run_blocks(blocks, smaller, self.multiple, self.checkpointing)


def imagenet_names(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """A SwinV2 trained for classification, of timm or of its authors, by the names of `SwinV2`; its last norm
    and its classifier are left out."""
    of_timm = not any(k.startswith("layers.0.downsample.") for k in published)
    found = {}
    for name, value in published.items():
        if name.startswith(("norm.", "head.")) or name.endswith(KEPT_OUT):
            continue
        stage = re.match(r"layers\.(\d+)\.", name)
        if stage is not None:
            # The authors count the merging of patches to the stage before it, timm to the one after it.
            later = not of_timm and name.startswith(f"{stage[0]}downsample.")
            name = f"layers_{int(stage[1]) + later}.{name[stage.end() :]}"
        found[name] = value
    return found
