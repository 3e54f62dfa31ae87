"""The first six stages of EfficientNet-Lite0, which ImageNet weights exist for, as an encoder of maps.

Tan and Le 2019, in the variant without squeeze-and-excitation. Strides 2, 4 and 8 are a tenth of a million
parameters, and strictly local.
"""

from __future__ import annotations

from torch import Tensor, nn

from terralapse.errors import WeightsMismatchError
from terralapse.layers.mbconv import ConvBN, InvertedResidual
from terralapse.layers.stem import inflate_stem
from terralapse.layers.weights import load_strict

CHANNELS = (16, 24, 80)  # of the maps of strides 2, 4 and 8
_PARTS = {  # ours: the published model's
    "stem.conv": "_conv_stem",
    "stem.bn": "_bn0",
    **{
        f"{ours}.{part}": f"_blocks.{number}.{theirs}"
        for number, ours in enumerate(
            ("stage2.0", "stage4.0", "stage4.1", "stage8.0", "stage8.1", "stage8.2")
        )
        for part, theirs in (
            ("expand.conv", "_expand_conv"),
            ("expand.bn", "_bn0"),
            ("depthwise.conv", "_depthwise_conv"),
            ("depthwise.bn", "_bn1"),
            ("project.conv", "_project_conv"),
            ("project.bn", "_bn2"),
        )
        if (number, part) not in ((0, "expand.conv"), (0, "expand.bn"))  # the first block does not expand
    },
}


class Lite0(nn.Module):
    """The stages; what is built on them has their tensors by the same names.

    Args:
        bands: of the images.
    """

    def __init__(self, bands: int = 3) -> None:
        super().__init__()
        self.stem = ConvBN(bands, 32, 3, stride=2)
        self.stage2 = nn.Sequential(InvertedResidual(32, 16, 3, expansion=1))
        self.stage4 = nn.Sequential(InvertedResidual(16, 24, 3, stride=2), InvertedResidual(24, 24, 3))
        self.stage8 = nn.Sequential(
            InvertedResidual(24, 40, 5, stride=2), InvertedResidual(40, 40, 5), InvertedResidual(40, 80, 3)
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """Features of strides 2, 4 and 8, with `CHANNELS`, of images [B, bands, H, W]."""
        found = []
        x = self.stem(images)
        for stage in (self.stage2, self.stage4, self.stage8):
            x = stage(x)
            found.append(x)
        return found


def load_lite0(network: Lite0, published: dict[str, Tensor], bands: tuple[str, ...]) -> None:
    """Starts the stages from the published EfficientNet-Lite0 (names as in its PyTorch release); bands follow
    `inflate_stem`.

    Raises:
        WeightsMismatchError: tensors are missing, or of another shape.
        ModelInputError: its first convolution is not for red, green and blue.
    """
    started: dict[str, Tensor] = {}
    for ours, theirs in _PARTS.items():
        for key in [k for k in network.state_dict() if k.startswith(f"{ours}.")]:
            name = theirs + key[len(ours) :]
            if name not in published:
                raise WeightsMismatchError(
                    "the published encoder", f"has no {name}", "Give the weights of EfficientNet-Lite0."
                )
            started[key] = published[name]
    started["stem.conv.weight"] = inflate_stem(started["stem.conv.weight"], bands)
    load_strict(network, network.state_dict() | started, "the published encoder")
