"""LapseNet: a compact Siamese network for change between two images, small enough to ship with the library.

Each date passes through the same encoder, the first six stages of EfficientNet-Lite0 (ImageNet weights to
start from). At strides 2, 4 and 8 the features of the two dates meet in a fusion that does not know which
came first, and a light decoder brings them back to full resolution. Exchanging the dates therefore changes
nothing, and every pixel of the result depends on at most 64 pixels around it (`Inputs.halo`), exactly:
there is no pooling over the image, no attention, and no normalisation but that of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import (
    Card,
    DateOrder,
    Figure,
    Inputs,
    Licences,
    Normalisation,
    Status,
    Stretch,
    Task,
    Weights,
)
from terralapse.layers.folding import inferring
from terralapse.layers.lite0 import Lite0, load_lite0
from terralapse.layers.mbconv import ConvBN, within
from terralapse.layers.padding import pad_to_multiple
from terralapse.layers.pairing import SymmetricFusion
from terralapse.layers.strips import in_strips, strip_rows
from terralapse.layers.weights import load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.change_loss import change_loss
from terralapse.tasks.network import NetworkDetector, Target

WEIGHTS_LICENCE = (
    "Apache-2.0 as far as it is ours to give; some of the training data is for research or states none"
)
DATA_LICENCE = (
    "MS-HS-BCD: no licence stated, public research data of Gaofen-1 and modified Copernicus Sentinel data"
)
PROTOCOL = (
    "whole tiles, counts summed over the set, the threshold of the card, interval by bootstrap over tiles"
)
RGB = Card(
    slug="lapsenet/rgb",
    title="LapseNet for RGB images of 0.3 to 3 m",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Buildings that were built, removed or destroyed, and debris, in colour images of 0.3 to 3 m; "
    "a compact Siamese network that does not care which date came first.",
    inputs=Inputs(
        bands=("red", "green", "blue"),
        units=(Unit.RGB255,),
        gsd_range=(0.3, 3.0),
        size_multiple=8,
        halo=64,
        normalisation=Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ),
    classes="binary-change",
    licences=Licences(
        code="Apache-2.0",
        weights=f"{WEIGHTS_LICENCE}; encoder from EfficientNet-Lite0 (Apache-2.0, ImageNet)",
        data=DATA_LICENCE,
    ),
    weights=(
        Weights(
            "lapsenet-rgb.safetensors",
            sha256="823b3302f89998b2d168ce545b8190352365cae5e1d63552fe5fc4223bb764c1",
            licence=WEIGHTS_LICENCE,
        ),
    ),
    parameters=543_972,
    temperature=1.657,
    threshold=0.2,
    figures=(
        Figure("change F1", 0.389, "MS-HS-BCD test, Gaofen-1 RGB 2.5 m", PROTOCOL, "here", (0.216, 0.511)),
        Figure("ECE", 0.0073, "MS-HS-BCD test, Gaofen-1 RGB 2.5 m", PROTOCOL, "here"),
        Figure("change F1", 0.453, "MS-HS-BCD val, Gaofen-1 RGB 2.5 m", PROTOCOL, "here", (0.391, 0.519)),
        Figure("ECE", 0.0030, "MS-HS-BCD val, Gaofen-1 RGB 2.5 m", PROTOCOL, "here"),
        Figure("change F1", 0.469, "LEVIR-CD samples, RGB 0.5 m", PROTOCOL, "here", (0.395, 0.534)),
        Figure("change F1", 0.504, "DSIFN samples, RGB 2 m", PROTOCOL, "here", (0.333, 0.637)),
    ),
    limits=(
        "It knows buildings and debris: roads, quarries, clear-cuts and floods are not what it looks for.",
        "It does not say which way a change went: exchanging the dates changes nothing.",
        "It finds half of the labelled objects from 64 pixels on and a third below; it merges close ones.",
        "Earthworks, the yards of new buildings, and roofs that changed their colour are called change.",
        "Its labelled pairs are of one Chinese city; elsewhere its probability ranks, and is no frequency.",
    ),
    default_rank=10,
)
S2 = Card(
    slug="lapsenet/s2",
    title="LapseNet for Sentinel-2 at 10 m",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Buildings that were built or removed, in the four 10 m bands of Sentinel-2; a compact Siamese "
    "network that does not care which date came first.",
    inputs=Inputs(
        bands=("blue", "green", "red", "nir"),
        units=(Unit.REFLECTANCE,),
        gsd_range=(8.0, 15.0),
        sensors=("sentinel2",),
        size_multiple=8,
        halo=32,
        normalisation=Normalisation(
            (0.30, 0.33, 0.38, 0.45), (0.24, 0.25, 0.25, 0.25), Stretch.SCENE_PERCENTILE
        ),
    ),
    classes="binary-change",
    licences=Licences(
        code="Apache-2.0",
        weights=f"{WEIGHTS_LICENCE}; encoder from EfficientNet-Lite0 (Apache-2.0, ImageNet)",
        data=DATA_LICENCE,
    ),
    weights=(
        Weights(
            "lapsenet-s2.safetensors",
            sha256="7dc500e94bd0c50d303a28d8cfbfa843dcb8fc8bb772b3dfd6f50c7ce8662999",
            licence=WEIGHTS_LICENCE,
        ),
    ),
    parameters=544_161,
    temperature=2.05,
    threshold=0.2,
    figures=(
        Figure("change F1", 0.425, "MS-HS-BCD test, Sentinel-2 10 m", PROTOCOL, "here", (0.286, 0.538)),
        Figure("ECE", 0.0075, "MS-HS-BCD test, Sentinel-2 10 m", PROTOCOL, "here"),
        Figure("change F1", 0.392, "MS-HS-BCD val, Sentinel-2 10 m", PROTOCOL, "here", (0.301, 0.480)),
        Figure("ECE", 0.0033, "MS-HS-BCD val, Sentinel-2 10 m", PROTOCOL, "here"),
    ),
    limits=(
        "It knows buildings only: roads, quarries, clear-cuts and floods are not what it looks for.",
        "It does not say which way a change went: exchanging the dates changes nothing.",
        "It finds half of the labelled objects from 1600 m² on, and a third of smaller ones.",
        "Its input is stretched over the scene; on a scene of half a square kilometre F1 falls by 0.03.",
        "It was trained on values that had been stretched to 8 bit, from one Chinese city and two dates.",
    ),
    default_rank=10,
)


# Images and where they are valid, or None for everywhere, to images as the network takes them.
Normalise = Callable[[Tensor, Tensor | None], Tensor]


class LapseNet(Lite0):
    """The network. `zoom` 2 magnifies the input first: at 10 m a house is a pixel, and the first convolution
    already halves the resolution. Sides must be multiples of 8 (of 4 when `zoom` is 2)."""

    def __init__(self, bands: int, zoom: int = 1, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__(bands)
        w2, w4, w8 = widths
        self.zoom = zoom
        self.fuse2 = SymmetricFusion(16, w2)
        self.fuse4 = SymmetricFusion(24, w4)
        self.fuse8 = SymmetricFusion(80, w8)
        self.refine8 = nn.Sequential(ConvBN(w8, 2 * w8, 3), ConvBN(2 * w8, w8))
        self.narrow8 = ConvBN(w8, w4)
        self.refine4 = ConvBN(2 * w4, w4, 3)
        self.narrow4 = ConvBN(w4, w2)
        self.refine2 = ConvBN(2 * w2, w2, 3)
        self.head = nn.Conv2d(w2, (2 // zoom) ** 2, 1)
        nn.init.constant_(self.head.bias, -3.0)  # pyright: ignore[reportArgumentType]

    def forward(
        self, images: Tensor, valid: Tensor | None = None, normalise: Normalise | None = None
    ) -> Tensor:
        """Logits of change [B, H, W] for normalised images [B, 2, C, H, W].

        `valid` bool [B, H, W] is where both dates have data; the images are zero elsewhere. The edge of the
        data is then treated as the edge of an image. None stands for data everywhere. With `normalise`, which
        takes images [N, 1, C, h, w] and where they are valid [N, h, w], images are in physical units and of
        any value where they are not valid: they are normalised as far as they are needed at a time.
        """
        x = images.transpose(0, 1).flatten(0, 1)  # [2B, C, H, W]: all first dates, then all second dates
        known = None if valid is None else valid[:, None].to(x.dtype).repeat(2, 1, 1, 1)
        in2, in4, in8 = self._masks(known)
        # The same encoder for both dates; strides are with respect to the zoomed input.
        row = 4 * x.shape[0] * x.shape[-1] * 32  # bytes; the features of the stem are of half the size
        reach, stride = (2, 1) if self.zoom == 2 else (3, 2)
        first = partial(self._first, normalise=normalise)
        e2 = self._in_strips(first, (x, known), row, reach, stride)  # [2B, 16, H/2, W/2]
        del x
        e4 = _run(self.stage4, e2, in2, in4)  # [2B, 24, H/4, W/4]
        e8 = _run(self.stage8, e4, in4, in8)  # [2B, 80, H/8, W/8]
        # The dates meet at each stride; the decoder has one map a pair.
        in2, in4, in8 = (None if m is None else m[: images.shape[0]] for m in (in2, in4, in8))
        alone = inferring(self)  # nobody else needs the features that are masked
        d8 = self.refine8(within(self.fuse8(e8), in8, in_place=alone))  # [B, 128, H/8, W/8]
        del e8
        d8 = self.narrow8(d8)  # [B, 64, H/8, W/8]
        # [B, 32, H/4, W/4]
        d4 = self._step(self.fuse4, lambda d4: self.narrow4(self.refine4(d4)), e4, d8, in4)
        del e4, d8  # the last step has the largest features
        # [B, 4, H/2, W/2], each one of 2 x 2 pixels; at zoom 2 [B, 1, H, W]
        logits = self._step(self.fuse2, lambda d2: self.head(self.refine2(d2)), e2, d4, in2)
        return F.pixel_shuffle(logits, 2 // self.zoom).squeeze(1)

    def _masks(self, known: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """For strides 2, 4 and 8 a mask [2B, 1, h, w] of where there is any data."""
        if known is None:
            return None, None, None
        at2 = known if self.zoom == 2 else F.max_pool2d(known, 2)
        at4 = F.max_pool2d(at2, 2)
        return at2, at4, F.max_pool2d(at4, 2)

    def _first(self, x: Tensor, known: Tensor | None, normalise: Normalise | None) -> Tensor:
        """From the images [2B, C, H, W] to the features of stride 2."""
        if normalise is not None:
            x = normalise(x[:, None], None if known is None else known[:, 0] > 0)[:, 0]
        x = x.contiguous(memory_format=torch.channels_last)
        if self.zoom > 1:
            x = F.interpolate(x, scale_factor=self.zoom, mode="bilinear", align_corners=False)
            if known is not None:
                # Zeros beyond the edge must not be mixed into the data: divide by the weight of data.
                weight = F.interpolate(known, scale_factor=self.zoom, mode="bilinear", align_corners=False)
                outside = F.interpolate(known, scale_factor=self.zoom) == 0
                x = x.div_(weight.clamp_(min=0.1)).masked_fill_(outside, 0.0)
        in2 = self._masks(known)[0]
        return _run(self.stage2, self.stem(x), in2, in2)

    def _step(
        self,
        fuse: nn.Module,
        refine: Callable[[Tensor], Tensor],
        features: Tensor,
        coarse: Tensor,
        inside: Tensor | None,
    ) -> Tensor:
        """The dates of one stride [2B, C, h, w] with what was decoded at the next, [B, C', h/2, w/2]."""

        def run(features: Tensor, coarse: Tensor, inside: Tensor | None) -> Tensor:
            both = torch.cat([F.interpolate(coarse, scale_factor=2.0), fuse(features)], dim=1)
            return refine(within(both, inside, in_place=inferring(self)))

        row = 2 * coarse.shape[1] * features.shape[-1] * coarse.element_size() * coarse.shape[0]
        return self._in_strips(run, (features, coarse, inside), row, 1)

    def _in_strips(
        self,
        run: Callable[..., Tensor],
        inputs: tuple[Tensor | None, ...],
        row_bytes: int,
        reach: int,
        stride: int = 1,
    ) -> Tensor:
        """In inference strip by strip: the features of the largest maps then fit in a cache."""
        if not inferring(self):
            return run(*inputs)
        return in_strips(run, inputs, strip_rows(row_bytes), reach=reach, stride=stride)


def _run(blocks: nn.Sequential, x: Tensor, before: Tensor | None, after: Tensor | None) -> Tensor:
    """Blocks of which the first may halve the resolution; masks for its input and for those of the others."""
    for number, block in enumerate(blocks):
        x = block(x, before if number == 0 else after)
    return x


class LapseNetDetector(NetworkDetector):
    """LapseNet behind the contract of change detectors. Its reach is finite: no tile is blended."""

    network: LapseNet
    exact = True

    def __init__(self, card: Card, network: LapseNet) -> None:
        super().__init__(card, network.to(memory_format=torch.channels_last))  # pyright: ignore

    def forward(self, images: Tensor, usable: Tensor | None = None) -> ChangeOutput:
        """See `NetworkSystem.forward`; `usable` bool [B, H, W] is treated as in `LapseNet.forward`."""
        height, width = images.shape[-2:]
        images = self.padded(images)
        if usable is not None and images.shape[-2:] != usable.shape[-2:]:
            usable = pad_to_multiple(usable.float(), self.multiple) > 0
        return ChangeOutput(self.network(images, usable)[..., :height, :width])

    def loss(self, output: ChangeOutput, target: Target) -> dict[str, Tensor]:
        return {"total": change_loss(output.logits, target["label"])}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        """Calibrated probability of change, float32 [B, H, W]; see `ChangeDetector.predict`."""
        with torch.inference_mode():
            if state["bands"] != list(range(images.shape[2])):
                images = images[:, :, state["bands"]]
            usable = valid.all(dim=1) & ~images.isnan().any(dim=(1, 2))
            known = None if usable.all() else usable
            if any(side % self.multiple for side in images.shape[-2:]):  # what is added is zero as it is seen
                output = self.forward(self.normalise(images, usable, state), known)
            else:
                output = ChangeOutput(self.network(images, known, partial(self.normalise, state=state)))
            return output.probability(state["temperature"])

    def traced(self, normal: Tensor, usable: Tensor, **extras: Tensor) -> Tensor:
        """See `NetworkDetector.traced`; the edge of the data is the edge of an image, as in `predict`."""
        return self.forward(normal, usable).probability(self.card.temperature)

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from the published EfficientNet-Lite0; for training."""
        load_lite0(self.network, published, self.bands)

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of every pixel; for calibration."""
        with torch.no_grad():
            self.network.head.bias += by  # pyright: ignore[reportOperatorIssue]


@register(RGB, S2)
def build(card: Card, weights: Path | str | None = None, *, untrained: bool = False) -> LapseNetDetector:
    """LapseNet with the weights of its card, or with those of a file.

    Args:
        card: `RGB` or `S2`.
        weights: a `.safetensors` file (or a checkpoint of tensors only) in place of the shipped one.
        untrained: random weights, for training.

    Raises:
        UnsafeWeightsError, WeightsMismatchError, and others of `terralapse.layers.weights`.
    """
    network = LapseNet(len(card.inputs.bands or ()), zoom=2 if card.slug == S2.slug else 1)
    if not untrained:
        load_weights(network, card, weights)
    return LapseNetDetector(card, network.eval())
