"""The encoder of EfficientNet-Lite0: its maps, and its start from the names of the published file."""

from __future__ import annotations

import pytest
import torch

from terralapse import registry
from terralapse.errors import WeightsMismatchError
from terralapse.layers import lite0
from terralapse.layers.lite0 import CHANNELS, Lite0

USERS = ("lapsenet/rgb", "lapsenet/s2", "semicd-vl/lite0")


def published(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random tensors by the names of the published file."""
    found = {}
    for ours, theirs in lite0._PARTS.items():
        for key, value in network.state_dict().items():
            if key.startswith(f"{ours}."):
                shape = (32, 3, 3, 3) if key == "stem.conv.weight" else value.shape
                found[theirs + key[len(ours) :]] = torch.randn(shape).to(value.dtype)
    return found


def test_maps_have_the_strides_and_widths_that_are_said():
    found = Lite0(4).eval().maps(torch.rand(2, 4, 64, 96))
    assert [tuple(m.shape) for m in found] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, (2, 4, 8), strict=True)
    ]


@pytest.mark.parametrize("slug", USERS)
def test_an_encoder_starts_from_the_published_names(slug):
    system = registry.build(slug, untrained=True)
    network = system.network
    encoder = network if isinstance(network, Lite0) else network.backbone
    given = published(encoder)
    system.start_encoder(given)
    loaded = encoder.state_dict()
    assert torch.equal(loaded["stage8.2.project.bn.bias"], given["_blocks.5._bn2.bias"])
    assert torch.equal(loaded["stage2.0.depthwise.conv.weight"], given["_blocks.0._depthwise_conv.weight"])
    bands = system.card.inputs.bands
    stem = loaded["stem.conv.weight"]
    assert torch.allclose(
        stem[:, bands.index("red")] * len(bands) / 3, given["_conv_stem.weight"][:, 0], atol=1e-6
    )
    assert len({k for k in loaded if k.startswith(("stem", "stage"))}) == len(given)


def test_a_file_that_lacks_a_part_is_no_start():
    encoder = Lite0()
    given = published(encoder)
    del given["_blocks.3._bn1.weight"]
    with pytest.raises(WeightsMismatchError, match=r"has no _blocks\.3\._bn1\.weight"):
        lite0.load_lite0(encoder, given, ("red", "green", "blue"))
    given["_blocks.3._bn1.weight"] = torch.ones(7)
    with pytest.raises(WeightsMismatchError, match=r"1 of another shape: stage8\.0\.depthwise\.bn\.weight"):
        lite0.load_lite0(encoder, given, ("red", "green", "blue"))
