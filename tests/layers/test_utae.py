"""U-TAE and L-TAE: attention over dates, with gaps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.layers.ltae import LTAE
from terralapse.layers.utae import UTAE, Collapsed, Cropped, absent, weighted


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small() -> UTAE:
    torch.manual_seed(0)
    return UTAE(3, (8, 8, 16), (8, 8, 16), heads=4, width=32).eval()


def test_attention_is_shared_out_over_the_dates_that_are_there() -> None:
    series = noise(2, 4, 3, 16, 24)
    series[1, 2:] = 0
    assert absent(series).tolist() == [[False] * 4, [False, False, True, True]]
    with torch.no_grad():
        maps, attention = small()(series)
    assert [tuple(x.shape) for x in maps] == [(2, 16, 4, 6), (2, 8, 8, 12), (2, 8, 16, 24)]
    assert attention.shape == (4, 2, 4, 4, 6)
    assert torch.allclose(attention.sum(dim=2), torch.ones(4, 2, 4, 6), atol=1e-5)
    assert float(attention[:, 1, 2:].abs().max()) == 0


def test_the_norm_of_dates_leaves_out_the_gaps() -> None:
    encoder = LTAE(16, heads=4, width=32).eval()
    x = noise(1, 5, 16, 2, 3)
    padded = torch.tensor([[False, False, False, True, True]])
    x[0, 3:] = 0
    with torch.no_grad():
        part, _ = encoder(x, padded)
        alone, _ = encoder(x[:, :3], padded[:, :3])
        encoder.norm_sees_padding = True
        exact, _ = encoder(x[:, :3], padded[:, :3])
        other, _ = encoder(x, padded)
    assert torch.allclose(part, alone, atol=1e-5)
    assert torch.allclose(alone, exact, atol=1e-5), "without gaps it is the usual norm"
    assert not torch.allclose(other, alone, atol=1e-3)


def test_a_head_weighs_its_channels() -> None:
    dates, attention = noise(1, 2, 4, 4, 4), torch.zeros(2, 1, 2, 2, 2)
    attention[0, :, 0] = 1  # the first head looks at the first date, the second at the second
    attention[1, :, 1] = 1
    summed = weighted(dates, attention)
    assert torch.allclose(summed[:, :2], dates[:, 0, :2])
    assert torch.allclose(summed[:, 2:], dates[:, 1, 2:])


def test_fusions() -> None:
    cropped, collapsed = Cropped(4, (4, 7)), Collapsed(4, (4, 7)).eval()
    x = torch.zeros(2, 4, 12, 12)
    x[:, :, 4:8, 4:8] = 1.0
    with torch.no_grad():
        middle = cropped(x, 4, (6, 6))
        assert torch.allclose(middle, middle[..., :1, :1].expand_as(middle), atol=1e-6)
        assert collapsed(noise(2, 4, 5, 6)).shape == (2, 7, 1, 1)
    widths = {k: v.shape[0] for k, v in collapsed.state_dict().items() if k.endswith("weight")}
    assert list(widths.values()) == [8, 8, 4, 5, 6, 7], "twice as wide, then in equal steps"


def test_widths_that_do_not_belong_together() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        UTAE(3, (8, 16), (8, 8, 16))
