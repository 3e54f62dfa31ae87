from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.errors import WeightsMismatchError
from terralapse.layers.mix_transformer import (
    B2,
    MixSize,
    MixTransformer,
    ReducedAttention,
    both_dates,
    load_mix_transformer,
)

SMALL = MixSize((8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 3, 4), mlp=2, drop_path_rate=0.0)


def small(bands: int = 3) -> MixTransformer:
    torch.manual_seed(0)
    return MixTransformer(SMALL, bands).eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_b2_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MixTransformer(B2).parameters()) == 24_196_288


def test_strides_and_widths() -> None:
    with torch.no_grad():
        found = small()(normal(2, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in found] == [(8, 16, 24), (16, 8, 12), (24, 4, 6), (32, 2, 3)]


def test_two_dates_in_one_pass_are_those_of_two() -> None:
    encoder, before, after = small(), normal(2, 3, 32, 32), normal(2, 3, 32, 32, seed=1)
    with torch.no_grad():
        both = both_dates(encoder, before, after)
        apart = [encoder(before), encoder(after)]
    for date in (0, 1):
        for one, other in zip(both[date], apart[date], strict=True):
            assert torch.allclose(one, other, atol=1e-5)


def test_attention_over_reduced_keys_is_the_sum_that_its_weights_say() -> None:
    torch.manual_seed(0)
    attention, x = ReducedAttention(6, 2, 2).eval(), normal(1, 16, 6)
    with torch.no_grad():
        keys = attention.norm(attention.sr(x.transpose(1, 2).reshape(1, 6, 4, 4)).flatten(2).transpose(1, 2))
        k, v = attention.kv(keys).split(6, dim=2)
        q = attention.q(x)
        heads = [
            (q[..., h] @ k[..., h].transpose(1, 2) / 3**0.5).softmax(dim=2) @ v[..., h]
            for h in (slice(0, 3), slice(3, 6))
        ]
        wanted = attention.proj(torch.cat(heads, dim=2))
        assert torch.allclose(attention(x, (4, 4)), wanted, atol=1e-5)


def test_a_published_encoder_loads_without_its_classifier() -> None:
    theirs, own = small(), MixTransformer(SMALL)
    published = {**theirs.state_dict(), "head.weight": torch.zeros(1), "head.bias": torch.zeros(1)}
    load_mix_transformer(own, {f"backbone.{k}": v for k, v in published.items() if "head" not in k})
    load_mix_transformer(own, published)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in own.state_dict().items())


def test_other_bands_keep_the_filters_of_their_colours() -> None:
    theirs, own = small(), small(4)
    load_mix_transformer(own, theirs.state_dict(), ("nir", "red", "green", "blue"))
    name = "patch_embed1.proj.weight"
    rgb, wide = theirs.state_dict()[name], own.state_dict()[name]
    assert torch.allclose(wide[:, 1:], 0.75 * rgb)
    assert torch.allclose(wide[:, 0], 0.75 * rgb.mean(dim=1))


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(WeightsMismatchError, match=r"patch_embed1\.proj\.weight"):
        load_mix_transformer(small(), {"conv1.weight": torch.zeros(1)})
