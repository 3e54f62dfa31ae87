"""Cosine filters: orthonormal, the average as their first, and FcaNet's rule for larger grids."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from terralapse.layers.dct import (
    ChannelConv,
    DCTPool,
    MultiSpectralAttention,
    channel_kernel,
    dct_basis,
    dct_filters,
    frequencies,
    pool_to,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_49_filters_of_a_grid_are_orthonormal() -> None:
    filters = dct_filters([(u, v) for u in range(7) for v in range(7)], 7, 7).flatten(1)
    assert torch.allclose(filters @ filters.T, torch.eye(49), atol=1e-6)


def test_one_filter_by_its_formula() -> None:
    basis = dct_basis(7)
    assert float(basis[3, 2]) == pytest.approx(math.sqrt(2 / 7) * math.cos(math.pi * 3 * 2.5 / 7))
    assert float(dct_filters([(3, 5)], 7, 7)[0, 2, 4]) == pytest.approx(
        2 / 7 * math.cos(math.pi * 3 * 2.5 / 7) * math.cos(math.pi * 5 * 4.5 / 7), abs=1e-7
    )


def test_frequency_zero_is_seven_times_the_average() -> None:
    pool = DCTPool(4, names="top1")
    x = noise(2, 4, 7, 7)
    assert torch.allclose(pool(x), 7 * x.mean(dim=(2, 3)), atol=1e-5)


def test_lists_have_32_different_frequencies_and_begin_alike() -> None:
    for name in ("top", "low", "bot"):
        whole = frequencies(f"{name}32")
        assert len(set(whole)) == 32
        assert max(max(p) for p in whole) <= 6
        assert frequencies(f"{name}8") == whole[:8]
    for wrong in ("top0", "top33", "best16", "16"):
        with pytest.raises(ValueError, match="no list of frequencies"):
            frequencies(wrong)


def test_larger_grids_multiply_the_frequencies_and_do_not_see_flips() -> None:
    x = noise(2, 32, 56, 56)
    large, small = DCTPool(32, (56, 56), split=True), DCTPool(32, split=True)
    assert torch.allclose(
        large.weight[6 * 2],
        dct_filters([(1, 2)], 7, 7).new_tensor(torch.outer(dct_basis(56)[8], dct_basis(56)[16]).tolist()),
        atol=1e-6,
    )
    assert torch.allclose(large(x), large(x.flip(-1)), atol=1e-3)
    assert not torch.allclose(small(x), small(x.flip(-1)), atol=1e-1)


def test_split_gives_each_group_its_frequency_and_the_mean_gives_all_to_each() -> None:
    x = noise(1, 32, 7, 7)
    each = (x[:, :, None] * dct_filters(frequencies("top16"), 7, 7)).sum(dim=(3, 4))  # [1, 32, 16]
    assert torch.allclose(
        DCTPool(32, split=True)(x), each[:, range(32), [k // 2 for k in range(32)]], atol=1e-5
    )
    assert torch.allclose(DCTPool(32)(x), each.mean(dim=2), atol=1e-5)
    with pytest.raises(ValueError, match="24 channels"):
        DCTPool(24, split=True)


def test_the_filters_are_no_part_of_the_weights() -> None:
    layer = MultiSpectralAttention(32)
    assert set(layer.state_dict()) == {"fc.0.weight", "fc.2.weight"}
    assert sum(p.numel() for p in layer.parameters()) == 2 * 32 * 2


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 8))
def test_pooling_by_products_is_adaptive_pooling(height: int, width: int, side: int) -> None:
    x = noise(1, 2, height, width, seed=height * 31 + width)
    assert torch.allclose(pool_to(x, (side, side)), F.adaptive_avg_pool2d(x, side), atol=1e-5)


def test_kernel_across_channels() -> None:
    assert [channel_kernel(c) for c in (96, 128, 192, 256, 384, 512, 768, 1024)] == [3, 5, 5, 5, 5, 5, 5, 5]
    conv = ChannelConv(96)
    x = noise(2, 96)
    expected = F.conv1d(x[:, None], conv.conv.weight, padding=1)[:, 0]
    assert torch.equal(conv(x), expected)
    assert conv(x).shape == x.shape


def test_half_precision_sums_in_float() -> None:
    x = noise(1, 16, 9, 11).bfloat16()
    pool = DCTPool(16).bfloat16()
    assert pool(x).dtype is torch.bfloat16
    assert torch.allclose(pool(x).float(), DCTPool(16)(x.float()), rtol=1e-2, atol=2e-2)
