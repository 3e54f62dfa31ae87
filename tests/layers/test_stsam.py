"""STSAM against its definition, written out with the matrix of all pairs of places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from terralapse.layers.stsam import STSAM, CoordinateAttention, CrossDateAttention


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(channels: int = 16, gamma: float = 0.7) -> STSAM:
    torch.manual_seed(0)
    module = STSAM(channels)
    nn.init.constant_(module.branch1.gamma, gamma)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return module.eval()


@pytest.mark.parametrize(
    ("channels", "wanted"), [(64, 15_337), (128, 57_273), (256, 221_017), (512, 880_305)]
)
def test_the_number_of_parameters(channels: int, wanted: int) -> None:
    assert sum(p.numel() for p in STSAM(channels).parameters()) == wanted


def test_date_two_asks_and_date_one_answers() -> None:
    branch = lively().branch1
    first, second = normal(2, 16, 3, 5), normal(2, 16, 3, 5, seed=1)
    with torch.no_grad():
        one, two = first + branch.t_embedding1, second + branch.t_embedding2

        def answer(asks: Tensor, answers: Tensor) -> Tensor:
            query, key = branch.query_conv(asks).flatten(2), branch.key_conv(answers).flatten(2)
            weights = (query.transpose(1, 2) @ key).softmax(dim=2)  # over the keys
            return (branch.value_conv(answers).flatten(2) @ weights.transpose(1, 2)).view_as(asks)

        wanted = branch.gamma * answer(two, one) + first, branch.gamma * answer(one, two) + second
        for found, right in zip(branch(first, second), wanted, strict=True):
            assert torch.allclose(found, right, atol=1e-5)


def test_no_matrix_of_all_places_is_made() -> None:
    """The values go to the kernel in heads as wide as the keys, which is what lets it work in blocks."""
    branch = lively().branch1
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        branch(normal(1, 16, 8, 8), normal(1, 16, 8, 8, seed=1))
    names = {event.key for event in seen.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names


def test_new_weights_leave_the_attention_out() -> None:
    module = STSAM(16).eval()
    first, second = normal(1, 16, 4, 4), normal(1, 16, 4, 4, seed=1)
    with torch.no_grad():
        one, two = module(first, second)
        for found, own in ((one, first), (two, second)):
            assert torch.equal(found, module.fusion_conv(torch.cat([own, module.branch2(own)], dim=1)))


def test_exchanged_dates_with_their_embeddings_give_exchanged_answers() -> None:
    module, other = lively(), lively()
    other.branch1.t_embedding1, other.branch1.t_embedding2 = (
        other.branch1.t_embedding2,
        other.branch1.t_embedding1,
    )
    first, second = normal(1, 16, 4, 6), normal(1, 16, 4, 6, seed=1)
    with torch.no_grad():
        one, two = module(first, second)
        back, forth = other(second, first)
        assert torch.allclose(one, forth, atol=1e-6)
        assert torch.allclose(two, back, atol=1e-6)
        unlike, _ = module(second, first)
        assert (unlike - two).abs().max() > 1e-3


def test_the_bias_of_the_keys_does_nothing() -> None:
    module = lively()
    dates = normal(1, 16, 4, 4), normal(1, 16, 4, 4, seed=1)
    with torch.no_grad():
        before = module(*dates)[0]
        assert module.branch1.key_conv.bias is not None
        module.branch1.key_conv.bias += 5.0
        assert torch.allclose(module(*dates)[0], before, atol=1e-5)


def test_coordinate_attention_weighs_rows_and_columns() -> None:
    """The factor of a place is one of its row times one of its column."""
    attention = CoordinateAttention(8).eval()
    x = normal(1, 8, 5, 7).abs() + 0.5
    with torch.no_grad():
        factor = attention(x) / x
    assert torch.allclose(
        factor[..., 1:, 1:] * factor[..., :1, :1], factor[..., 1:, :1] * factor[..., :1, 1:], rtol=1e-4
    )
    assert factor.min() > 0
    assert factor.max() < 1


def test_widths_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        CrossDateAttention(12)
