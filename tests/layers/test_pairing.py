import torch

from terralapse.layers.pairing import SymmetricFusion


def stacked(seed=0):
    return torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(seed))


def test_order_of_dates_does_not_matter():
    fusion = SymmetricFusion(5, 8).eval()
    x = stacked()
    swapped = torch.cat([x[3:], x[:3]])
    assert torch.allclose(fusion(x), fusion(swapped), atol=1e-6)


def test_pairs_do_not_mix():
    fusion = SymmetricFusion(5, 8).eval()
    x = stacked()
    y = x.clone()
    y[1] += 1.0  # the first date of pair 1
    before, after = fusion(x), fusion(y)
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])


def test_first_half_starts_as_an_absolute_difference():
    fusion = SymmetricFusion(5, 8).eval()
    x = stacked()
    same = fusion(torch.cat([x[:3], x[:3]]))
    assert torch.equal(same[:, :4], torch.zeros_like(same[:, :4]))
    expected = torch.einsum("oc,bchw->bohw", fusion.maps.weight[:4, :, 0, 0], x[:3] - x[3:]).abs()
    assert torch.allclose(fusion(x)[:, :4] * (1 + 1e-5) ** 0.5, expected, atol=1e-5)
