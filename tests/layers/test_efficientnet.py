from __future__ import annotations

import pytest
import torch
from torchvision.models import efficientnet_b5
from torchvision.ops import StochasticDepth

from terralapse.layers.efficientnet import B5, B5_DROP_PATH, Stage, efficientnet_stages

SMALL = (Stage(1, 3, 1, 8, 8, 1), Stage(2, 3, 2, 8, 16, 2))


def test_it_is_the_beginning_of_efficientnet_b5() -> None:
    """Names, shapes, options of the normalisations, and stochastic depth."""
    with torch.device("meta"):
        ours, whole = efficientnet_stages(B5, B5_DROP_PATH), efficientnet_b5(weights=None).features[:5]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (ours, whole)]
    assert shapes[0] == shapes[1]
    assert str(ours[0]) == str(whole[0])
    depths = [[m.p for m in net.modules() if isinstance(m, StochasticDepth)] for net in (ours, whole)]
    assert len(depths[0]) == 20
    assert depths[0] == pytest.approx(depths[1])


def test_other_bands() -> None:
    for bands in (3, 13):
        x = torch.zeros(1, bands, 16, 24)
        for stage in efficientnet_stages(SMALL, bands=bands).eval():
            x = stage(x)
        assert x.shape == (1, 16, 4, 6)
