"""Layers in strips give what they give in one piece."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from terralapse.layers import mbconv, strips
from terralapse.layers.mbconv import InvertedResidual
from terralapse.layers.strips import LEAST_ROWS, STRIP_BYTES, in_strips, strip_rows


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("rows", [8, 24, 1000])
def test_strips_give_what_one_piece_gives(kernel, stride, rows):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, kernel, stride, kernel // 2)
    x = torch.rand(2, 3, 100, 40)
    with torch.inference_mode():
        assert torch.allclose(
            in_strips(conv, (x,), rows, reach=kernel // 2, stride=stride), conv(x), atol=1e-6
        )


def test_a_reach_that_is_too_short_shows():
    conv = nn.Conv2d(3, 5, 5, 1, 2)
    x = torch.rand(1, 3, 100, 40)
    with torch.inference_mode():
        assert not torch.allclose(in_strips(conv, (x,), 8, reach=1), conv(x), atol=1e-3)


def test_coarser_maps_and_absent_ones_go_with_the_strips():
    x, coarse = torch.rand(1, 4, 96, 32), torch.rand(1, 4, 48, 16)
    conv = nn.Conv2d(4, 4, 3, 1, 1)

    def run(x, coarse, mask):
        assert mask is None
        return conv(x + nn.functional.interpolate(coarse, scale_factor=2.0))

    with torch.inference_mode():
        found = in_strips(run, (x, coarse, None), 16, reach=1)
        assert torch.allclose(found, run(x, coarse, None), atol=1e-6)


def test_strips_take_what_they_may_and_never_too_few_rows():
    assert strip_rows(STRIP_BYTES // 100) == 100 // LEAST_ROWS * LEAST_ROWS
    assert strip_rows(2 * STRIP_BYTES) == strip_rows(STRIP_BYTES) == LEAST_ROWS


@pytest.mark.parametrize(("kernel", "stride", "expansion"), [(3, 1, 6), (5, 2, 6), (3, 2, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_bottleneck_in_strips_is_that_in_one_piece(monkeypatch, kernel, stride, expansion, masked):
    torch.manual_seed(0)
    block = InvertedResidual(6, 6, kernel, stride, expansion).eval()
    x = torch.randn(2, 6, 128, 48)
    inside = torch.ones(2, 1, 128, 48) if masked else None
    if inside is not None:
        inside[:, :, :20] = 0
        x = x * inside
    whole = block(x, inside)  # with gradients: the way of training
    widest: list[int] = []
    monkeypatch.setattr(strips, "STRIP_BYTES", 1)
    within = mbconv.within
    monkeypatch.setattr(
        mbconv, "within", lambda x, *a, **k: (widest.append(x.shape[-2]), within(x, *a, **k))[1]
    )
    kept = x.clone()
    with torch.inference_mode():
        assert torch.allclose(block(x, inside), whole, atol=1e-5)
    assert max(widest) <= stride * (LEAST_ROWS + 4)
    assert torch.equal(x, kept)  # nobody's input is overwritten
