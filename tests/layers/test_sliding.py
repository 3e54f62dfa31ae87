from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.layers.sliding import pad_to_least, slide, starts


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [256, 257, 425, 426, 427, 512, 596, 1024])
def test_windows_start_where_the_authors_start_them(side: int) -> None:
    count = max(side - 256 + 170 - 1, 0) // 170 + 1
    wanted = [max(min(i * 170 + 256, side) - 256, 0) for i in range(count)]
    assert starts(side, 256, 170) == wanted


@pytest.mark.parametrize("size", [(8, 8), (9, 20), (3, 13), (25, 8), (1, 1)])
def test_a_network_of_single_pixels_says_what_it_says_of_the_whole(size: tuple[int, int]) -> None:
    images = normal(2, 3, *size)
    double, first = slide(lambda x: [2 * x, x[:, :1]], images, 8, 5)
    assert torch.allclose(double, 2 * images, atol=1e-6)
    assert torch.allclose(first, images[:, :1], atol=1e-6)


def test_every_pixel_is_the_mean_over_its_windows() -> None:
    """The windows of a side of 13 with 8 pixels every 5 lie at 0 and 5, and overlap in the pixels 5 to 7."""
    numbers = iter(range(4))
    (found,) = slide(lambda x: [torch.full_like(x, next(numbers))], torch.zeros(1, 1, 13, 13), 8, 5)
    found = found[0, 0]
    corners = found[:5, :5], found[:5, 8:], found[8:, :5], found[8:, 8:]
    assert [c.unique().tolist() for c in corners] == [[0], [1], [2], [3]]
    assert (found[:5, 5:8] == 0.5).all()
    assert (found[5:8, 5:8] == 1.5).all()


def test_short_images_are_padded_with_their_border() -> None:
    seen: list[Tensor] = []
    image = normal(1, 2, 3, 5, 4)
    (found,) = slide(lambda x: [seen.append(x) or x[:, 0]], image, 8, 5)
    assert seen[0].shape == (1, 2, 3, 8, 8)
    assert (seen[0][..., 5:, :4] == image[..., 4:, :]).all()
    assert (seen[0][..., :5, 4:] == image[..., 3:]).all()
    assert found.shape == (1, 3, 5, 4)
    assert pad_to_least(image, 4) is image


def test_gradients_reach_every_window() -> None:
    images = normal(1, 1, 13, 9).requires_grad_()
    (found,) = slide(lambda x: [x.square()], images, 8, 5)
    found.sum().backward()
    assert images.grad is not None
    assert torch.allclose(images.grad, 2 * images.detach(), atol=1e-5)
