"""RoIAlign against planes, where bilinear samples are exact; attention and pyramid against closed forms."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from terralapse.layers.fpn import FPN
from terralapse.layers.generalized_attention import PositionAttention
from terralapse.layers.regions import RegionExtractor
from terralapse.layers.roi_align import roi_align
from terralapse.layers.upernet import FCNHead, UPerHead


def plane(height: int, width: int) -> torch.Tensor:
    """Two channels that hold the x and the y of the centres of the pixels, in pixels of a stride of 1."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(1, 10),
    y=st.floats(1, 10),
    width=st.floats(0.5, 8),
    height=st.floats(0.5, 8),
    stride=st.sampled_from([1, 2, 4]),
)
def test_of_a_plane_a_cell_is_its_centre(
    x: float, y: float, width: float, height: float, stride: int
) -> None:
    features = plane(20, 20) * stride
    box = torch.tensor([[0, x * stride, y * stride, (x + width) * stride, (y + height) * stride]])
    cells = roi_align(features, box, 4, 1 / stride)[0]
    centre = torch.tensor([0.125, 0.375, 0.625, 0.875])
    assert torch.allclose(cells[0], ((x + width * centre) * stride).expand(4, 4), atol=1e-3)
    assert torch.allclose(cells[1], ((y + height * centre) * stride)[:, None].expand(4, 4), atol=1e-3)


def test_boxes_read_their_own_image_and_zero_beyond_the_map() -> None:
    features = torch.stack([torch.full((1, 8, 8), v) for v in (1.0, 2.0)])
    boxes = torch.tensor([[1, 1, 1, 5, 5], [0, 1, 1, 5, 5], [0, 100, 100, 120, 120], [0, -1, 0, 9, 8.0]])
    found = roi_align(features, boxes, 2, 1.0)
    assert found[0].unique().tolist() == [2]
    assert found[1].unique().tolist() == [1]
    assert found[2].unique().tolist() == [0]
    assert found[3].unique().tolist() == [1]  # less than a pixel outside: the edge
    assert roi_align(features, boxes[:0], 2, 1.0).shape == (0, 1, 2, 2)


def test_a_box_of_many_pixels_by_hand() -> None:
    features = torch.arange(16.0).view(1, 1, 4, 4)
    found = roi_align(features, torch.tensor([[0, 0, 0, 4, 4.0]]), 2, 1.0)
    assert found.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]  # means of blocks of 2 x 2


def test_parameters_and_the_start_of_the_extractor() -> None:
    extractor = RegionExtractor()
    assert sum(p.numel() for p in extractor.pre_module.parameters()) == 1_638_656
    assert sum(p.numel() for p in extractor.post_module.parameters()) == 258_305
    levels = [torch.randn(1, 256, s, s) for s in (16, 8, 4, 2)]
    rois = torch.tensor([[0, 3, 4, 50, 60.0]])
    # gamma starts at zero: the attention adds nothing yet
    assert torch.equal(extractor(levels, rois), extractor.gather(levels, rois))
    assert extractor(levels, rois, 14).shape == (1, 256, 14, 14)


def test_attention_over_equal_values_returns_them() -> None:
    torch.manual_seed(0)
    attention = PositionAttention(24, heads=2)
    nn.init.ones_(attention.gamma)
    x = torch.randn(1, 24, 1, 1).expand(1, 24, 7, 7)
    value = attention.value_conv(x)
    assert torch.allclose(attention(x), attention.proj_conv(value) + x, atol=1e-5)
    with pytest.raises(ValueError, match="square"):
        attention(torch.zeros(1, 24, 6, 7))


@pytest.mark.parametrize(
    ("widths", "count"), [((96, 192, 384, 768), 2_729_984), ((128, 256, 512, 1024), 2_852_864)]
)
def test_the_pyramid(widths: tuple[int, ...], count: int) -> None:
    pyramid = FPN(widths)
    assert sum(p.numel() for p in pyramid.parameters()) == count
    sides = (16, 8, 4, 2)
    levels = pyramid([torch.randn(1, c, s, s) for c, s in zip(widths, sides, strict=True)])
    assert [tuple(x.shape) for x in levels] == [(1, 256, s, s) for s in (16, 8, 4, 2, 1)]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


def test_coarse_levels_reach_fine_ones_and_not_the_other_way_round() -> None:
    pyramid = FPN((4, 4), outputs=4, extra=0)
    fine, coarse = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)
    first = pyramid([fine, coarse])
    assert torch.equal(pyramid([fine + 1, coarse])[1], first[1])
    assert not torch.equal(pyramid([fine, coarse + 1])[0], first[0])


def test_heads_of_segmentation() -> None:
    maps = [torch.randn(2, 8, s, s) for s in (16, 8, 4, 2)]
    head = UPerHead((8,) * 4, 5, channels=16).eval()
    assert head(maps).shape == (2, 5, 16, 16)
    assert FCNHead(8, 5, channels=16).eval()(maps[2]).shape == (2, 5, 4, 4)
    # mmseg's layout for 4 x 256 channels: 4 poolings, bottleneck, 3 laterals, 3 + 1 convolutions, classes
    with torch.device("meta"):
        count = sum(p.numel() for p in UPerHead((256,) * 4, 2).parameters())
    norm = 2 * 512
    assert count == (
        4 * (256 * 512 + norm)
        + (256 + 4 * 512) * 512 * 9
        + norm
        + 3 * (256 * 512 + norm)
        + 3 * (512 * 512 * 9 + norm)
        + 4 * 512 * 512 * 9
        + norm
        + 512 * 2
        + 2
    )
