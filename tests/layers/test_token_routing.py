"""The choice of tokens by closed forms: what a chosen and an unchosen token becomes, in which order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from terralapse.layers.mamba import PathType
from terralapse.layers.token_routing import (
    MambaBlock,
    RoutedMamba,
    Routing,
    SpatialSparseMixer,
    global_tokens,
)


def mixer(keep: int, width: int = 8, **routing: object) -> SpatialSparseMixer:
    torch.manual_seed(0)
    return SpatialSparseMixer(width, keep, Routing(**routing)).eval()  # type: ignore[arg-type]


def tokens(height: int = 4, width: int = 4, channels: int = 8) -> torch.Tensor:
    return torch.randn(2, height * width, channels, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("widths", "depths", "size", "count"),
    [
        ((96, 192, 384, 768), (2, 4, 16, 4), 512, 36_745_536),
        ((96, 192, 384, 768), (2, 4, 16, 4), 1024, 41_464_128),
        ((128, 256, 512, 1024), (2, 4, 32, 4), 512, 91_242_240),
        ((128, 256, 512, 1024), (2, 4, 32, 4), 1024, 97_533_696),
    ],
)
def test_parameters_are_those_of_the_table(
    widths: tuple[int, ...], depths: tuple[int, ...], size: int, count: int
) -> None:
    with torch.device("meta"):
        plain, pooled = (RoutedMamba(widths, depths, size, pooled=p) for p in (False, True))
    assert sum(p.numel() for p in plain.parameters()) == count
    assert sum(p.numel() for p in pooled.parameters()) == count + 2 * widths[-1]


@pytest.mark.parametrize(("width", "count"), [(96, 68_352), (192, 251_904), (384, 964_608), (768, 3_772_416)])
def test_parameters_of_a_block(width: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in SpatialSparseMixer(width, 8, Routing()).parameters()) == count


@pytest.mark.parametrize(("keep", "softmax_on_x"), [(8, True), (4, True), (1, True), (4, False)])
def test_with_a_mixer_that_adds_nothing_a_token_is_weighed_by_its_probability(
    keep: int, softmax_on_x: bool
) -> None:
    block, x = mixer(keep, softmax_on_x=softmax_on_x), tokens()
    nn.init.zeros_(block.spatial_mamba_mixer.mamba_layer.out_proj.weight)
    probability, chosen = block.select(x)
    weight = probability[..., None]
    if not softmax_on_x:
        weight = weight * torch.zeros_like(weight).scatter(1, chosen[..., None], 1.0)
    assert chosen.shape == (2, 16 // keep)
    assert torch.allclose(block(x, 4), x * (1 + weight), atol=1e-6)


def test_with_a_gate_of_zeros_the_first_tokens_are_chosen_and_the_others_grow_by_one_part() -> None:
    block, x = mixer(4), tokens()
    assert block.spatial_gate is not None
    nn.init.zeros_(block.spatial_gate.weight)
    probability, chosen = block.select(x)
    assert torch.equal(probability, torch.full((2, 16), 1 / 16))
    assert chosen.tolist() == [[0, 1, 2, 3]] * 2  # ties are broken by the position
    assert torch.equal(block(x, 4)[:, 4:], x[:, 4:] * (1 + 1 / 16))


def test_tokens_enter_in_the_order_of_their_scores_behind_the_rows() -> None:
    block, x = mixer(2), tokens()
    seen = []
    block.spatial_mamba_mixer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    block(x, 4)
    probability, _ = block.select(x)
    order = probability.sort(dim=1, descending=True, stable=True).indices[:, :8]
    assert torch.allclose(seen[0][:, :4], x.view(2, 4, 4, 8).mean(dim=2))
    assert torch.equal(seen[0][:, 4:], torch.stack([x[i, order[i]] for i in range(2)]))


def test_what_a_chosen_token_becomes() -> None:
    block, x = mixer(4), tokens()
    probability, chosen = block.select(x)
    image = 1
    rows = x[image].view(4, 4, 8).mean(dim=1)
    sequence = torch.cat([rows, x[image, chosen[image]]])[None]
    said = block.spatial_mamba_mixer(sequence)[0, 4:]
    expected = x[image, chosen[image]] + probability[image, chosen[image], None] * said
    assert torch.allclose(block(x, 4)[image, chosen[image]], expected, atol=1e-6)


def test_global_tokens() -> None:
    x = tokens(3, 5)
    assert torch.allclose(global_tokens(x, -1, 3), x.view(2, 3, 5, 8).mean(dim=2))
    assert global_tokens(x, 0, 3).shape == (2, 0, 8)
    assert global_tokens(x, 4, 3).shape == (2, 4, 8)
    assert torch.allclose(global_tokens(x, 4, 3)[:, 0], x[:, :4].mean(dim=1), atol=1e-6)


def test_noise_chooses_in_training_only_and_the_gate_learns_through_the_weight() -> None:
    block, x = mixer(4), tokens()
    assert torch.equal(block.select(x)[1], block.select(x)[1])
    block.train()
    block.gumbel_scale = 10.0
    torch.manual_seed(0)
    first, second = block.select(x)[1], block.select(x)[1]
    assert not torch.equal(first, second)
    block.gumbel_scale = 0.0
    probability, chosen = block.select(x)
    assert torch.equal(chosen, probability.sort(dim=1, descending=True, stable=True).indices[:, :4])
    block(x, 4).square().sum().backward()
    assert block.spatial_gate is not None
    assert block.spatial_gate.weight.grad is not None
    assert float(block.spatial_gate.weight.grad.abs().sum()) > 0


def test_no_reduction_at_all_is_a_plain_block() -> None:
    block, x = mixer(0), tokens()
    assert block.spatial_gate is None
    assert torch.equal(block(x, 4), block.spatial_mamba_mixer(x))


@pytest.mark.parametrize("path", list(PathType))
def test_all_orders_keep_the_residual(path: PathType) -> None:
    torch.manual_seed(0)
    block, x = MambaBlock(8, path), tokens()
    nn.init.zeros_(block.mamba_layer.out_proj.weight)
    assert torch.equal(block(x), x)


# --- the whole backbone --------------------------------------------------------------------------------
def small(size: int = 128) -> RoutedMamba:
    torch.manual_seed(0)
    return RoutedMamba((8, 8, 16, 16), (1, 1, 1, 1), size).eval()


def test_shapes_of_the_maps() -> None:
    maps = small()(torch.randn(1, 3, 128, 128))
    assert [tuple(m.shape) for m in maps] == [(1, 8, 32, 32), (1, 8, 16, 16), (1, 16, 8, 8), (1, 16, 4, 4)]


@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (160, 64)])
def test_other_sizes_run_with_a_resized_table(shape: tuple[int, int]) -> None:
    maps = small(64)(torch.randn(2, 3, *shape))
    assert maps[0].shape[-2:] == (shape[0] // 4, shape[1] // 4)
    assert maps[3].shape[-2:] == (shape[0] // 32, shape[1] // 32)
    assert all(m.isfinite().all() for m in maps)


def test_checkpointing_draws_the_same_noise_again() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = small(64).train()
        network.checkpointing = checkpointing
        network.set_gumbel_scale(1.0)
        torch.manual_seed(3)
        network(torch.ones(1, 3, 64, 64).cumsum(3) / 64)[3].square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-5)


def test_a_frozen_first_stage_leaves_the_table_free() -> None:
    network = small()
    network.freeze_first_stage()
    free = {n for n, p in network.named_parameters() if p.requires_grad}
    assert "pos_embed" in free
    assert not any(n.startswith("layers.0.") for n in free)
    assert any(n.startswith("layers.1.") for n in free)
