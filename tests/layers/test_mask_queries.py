from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from terralapse.layers.mask_queries import Attention, AxialAttention, MaskQueries, seen, waves


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decoder(queries: int = 3, depth: int = 5) -> MaskQueries:
    torch.manual_seed(0)
    return MaskQueries(8, 2, 16, depth, queries)


def pyramid(batch: int = 2) -> tuple[list[Tensor], list[Tensor], Tensor]:
    sides = [(1, 2), (2, 4), (4, 8), (8, 16)]
    maps = [normal(batch, 8, *side, seed=i) for i, side in enumerate(sides)]
    places = [normal(batch, 8, *side, seed=10 + i) for i, side in enumerate(sides)]
    return maps, places, normal(batch, 8, 8, 16, seed=20)


def test_attention_is_that_of_pytorch() -> None:
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    query, key, value = normal(2, 3, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    mask = normal(2, 3, 5, seed=3) > 0
    mask[..., 0] = True
    blocked = ~mask.repeat_interleave(2, dim=0)
    wanted = theirs(query, key, value, attn_mask=blocked, need_weights=False)[0]
    assert torch.allclose(ours(query, key, value, mask), wanted, atol=1e-6)
    assert torch.allclose(ours(query, key, value), theirs(query, key, value)[0], atol=1e-6)


def test_axial_attention_is_full_attention_with_weights_of_rank_one() -> None:
    layer = AxialAttention(8, 2)
    along, down, memory = normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(2, 8, 4, 6, seed=2)
    position = normal(2, 8, 4, 6, seed=3)
    with torch.no_grad():
        columns, rows = layer.weights(along, down, memory, position)
        assert torch.allclose(columns.sum(-1), torch.ones(2, 2, 3))
        full = rows[..., :, None] * columns[..., None, :]  # [B, heads, Q, H, W]
        w, b = layer.in_proj_weight[32:], layer.in_proj_bias[32:]
        value = (torch.einsum("oc,bchw->bohw", w, memory) + b[:, None, None]).unflatten(1, (2, 4))
        found = torch.einsum("bnqhw,bndhw->bqnd", full, value).flatten(2)
        assert torch.allclose(layer(along, down, memory, position), layer.out_proj(found), atol=1e-5)


def test_axial_keys_are_means_of_the_projected_map_times_the_gate_of_the_scene() -> None:
    layer = AxialAttention(4, 1)
    along, down, memory = normal(1, 2, 4), normal(1, 2, 4, seed=1), normal(1, 4, 3, 5, seed=2)
    position = normal(1, 4, 3, 5, seed=3)
    w, b = layer.in_proj_weight.chunk(5), layer.in_proj_bias.chunk(5)
    with torch.no_grad():
        gate = torch.sigmoid(layer.lin(memory.mean(dim=(2, 3))))[0]
        pixels = (memory + position)[0].permute(1, 2, 0)
        key = (pixels @ w[2].T + b[2]).mean(dim=0) * gate
        query = along[0] @ w[0].T + b[0]
        wanted = (query @ key.T / 2).softmax(-1)
        assert torch.allclose(layer.weights(along, down, memory, position)[0][0, 0], wanted, atol=1e-6)


def test_a_position_is_sines_and_cosines_in_turn() -> None:
    found = waves(torch.tensor([0.25]), 4)
    slow = 2 * math.pi * 0.25 / 100
    assert found[0].tolist() == pytest.approx([1.0, 0.0, math.sin(slow), math.cos(slow)], abs=1e-6)


def test_a_query_sees_what_may_be_in_its_mask() -> None:
    """Above 0.15, and everything where nothing is."""
    mask = torch.full((1, 2, 2, 2), -9.0)
    mask[0, 0] = torch.tensor([[0.2, 0.14], [0.5, 0.1]]).logit()
    found = seen(mask, (2, 2))
    assert found.shape == (1, 2, 4)
    assert found[0, 0].tolist() == [True, False, True, False]
    assert found[0, 1].all()


def test_there_is_a_prediction_before_and_after_every_layer() -> None:
    network = decoder()
    logits, masks = network(*pyramid())
    assert logits.shape == (6, 2, 3, 2)
    assert masks.shape == (6, 2, 3, 8, 16)
    start, drawn = network.predict(network.query_feat.weight.expand(2, -1, -1), pyramid()[2])
    assert torch.equal(logits[0], start)
    assert torch.equal(masks[0], drawn)


def test_queries_have_no_order() -> None:
    network, order = decoder(), [2, 0, 1]
    with torch.no_grad():
        logits, masks = network(*pyramid())
        for table in (network.query_feat, network.query_embed, network.query_pos_embed):
            table.weight.copy_(table.weight[order].clone())
        again, drawn = network(*pyramid())
    assert torch.allclose(again, logits[:, :, order], atol=1e-5)
    assert torch.allclose(drawn, masks[:, :, order], atol=1e-5)


def test_every_part_is_trained() -> None:
    network = decoder()
    logits, masks = network(*pyramid())
    (logits.square().mean() + masks.square().mean()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
