from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from terralapse.layers.swin_v2 import SwinBlocks, SwinV2, imagenet_names

SIZE: dict[str, Any] = {"dim": 8, "depths": (1, 2), "heads": (1, 2), "window": 4}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module) -> Any:
    """In evaluation, with norms that let the blocks speak: they start at zero."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=draw))
    return network.eval()


def swin(side: int | None, **more: Any) -> SwinV2:
    torch.manual_seed(0)
    return lively(SwinV2(3, side=side, **{**SIZE, **more}))


def through(network: SwinV2, x: Tensor) -> Tensor:
    for name, _ in network.steps():
        x = network.step(name, x)
    return x


def published(side: int = 64) -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    return lively(
        SwinTransformerV2(
            img_size=side, num_classes=5, embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4
        )
    )


def test_the_steps_are_those_of_timm() -> None:
    theirs, ours = published(), swin(64)
    assert [name for name, _ in ours.steps()] == ["patch_embed", "layers_0", "layers_1"]
    assert ours.dims == (8, 16)
    ours.load_state_dict(imagenet_names(theirs.state_dict()))
    images = normal(2, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.layers(theirs.patch_embed(images))  # pyright: ignore[reportCallIssue]
        assert torch.allclose(through(ours, images), wanted.permute(0, 3, 1, 2), atol=1e-6)


def test_files_of_the_authors_count_the_merging_to_the_stage_before() -> None:
    of_timm = published().state_dict()
    theirs = {
        k.replace("layers.1.downsample", "layers.0.downsample").replace("head.fc.", "head."): v
        for k, v in of_timm.items()
    }
    theirs["layers.1.blocks.1.attn_mask"] = torch.zeros(1)
    theirs["layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1)
    wanted = imagenet_names(of_timm)
    assert imagenet_names(theirs).keys() == wanted.keys() == swin(64).state_dict().keys()


def test_any_size_is_the_fixed_one_where_windows_fit() -> None:
    """In a map larger than a window timm shifts as well, so that the two agree."""
    fixed, free = swin(64), swin(None)
    free.load_state_dict(fixed.state_dict())
    images = normal(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(through(free, images), through(fixed, images), atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (40, 24), (64, 72)])
def test_maps_of_any_size(size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = through(swin(None), normal(2, 3, *size))
    assert found.shape == (2, 16, size[0] // 8, size[1] // 8)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("depth", [1, 2])
def test_the_border_of_a_map_does_not_see_the_opposite_one(depth: int) -> None:
    """Nor what pads it: with windows of 4 in a side of 10, nothing is moved from the end to the start."""
    torch.manual_seed(0)
    blocks = lively(SwinBlocks(4, depth, 2, 4, side=None))
    x = normal(1, 4, 10, 10)
    changed = x.clone()
    changed[..., 9] += 5.0
    with torch.no_grad():
        moved = (blocks(changed) - blocks(x)).abs().amax(dim=(0, 1, 2))
    assert (moved[: 8 if depth == 1 else 6] < 1e-5).all()
    assert moved[9] > 1e-2


def test_checkpointing_gives_the_same_gradients() -> None:
    network = swin(None).train()
    found = []
    for on in (False, True):
        network.checkpointing = on
        network.zero_grad()
        torch.manual_seed(0)
        through(network, normal(1, 3, 16, 16)).square().mean().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(found[0]) > 30
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))
