"""Planned: change detection, semantic change, damage, and the data generators that feed them."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.sensors import Unit

_RGB = ("red", "green", "blue")
_IMAGENET = Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_UNSTATED = "not stated (no licence file)"


def _pair(size_multiple: int, normalisation: Normalisation | None = _IMAGENET) -> Inputs:
    return Inputs(
        dates=2,
        bands=_RGB,
        units=(Unit.RGB255,),
        size_multiple=size_multiple,
        normalisation=normalisation,
    )


_CARDS = (
    Card(
        slug="cdmaskformer",
        title="Rethinking Remote Sensing Change Detection With A Mask View",
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary="Binary change as mask classification: learned queries each predict a class and a mask.",
        year=2024,
        paper="arXiv:2406.15320",
        repository="https://github.com/xwmaxwma/rschange",
        inputs=_pair(32),
        licences=Licences(code=_UNSTATED),
        limits=("The output map is stretched to its own minimum and maximum, image by image.",),
    ),
    Card(
        slug="cfnet",
        title="CFNet: Optimizing Remote Sensing Change Detection through Content-Aware Enhancement",
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary=(
            "A Siamese EfficientNet with a content decoder for each date and weights from cosine distance."
        ),
        year=2025,
        paper="arXiv:2503.08505",
        repository="https://github.com/wifiBlack/CFNet",
        inputs=Inputs(dates=2, bands=("blue", "green", "red"), units=(Unit.RGB255,), size_multiple=16),
        licences=Licences(code="Apache-2.0"),
        quirks=(
            "Channels are in the order blue, green, red, with one mean and deviation per data set and date.",
        ),
        limits=("The output is a regression squashed by tanh, not a probability.",),
        checkpoints="Hugging Face wifibk/CFNet",
    ),
    Card(
        slug="fsg-net",
        title=(
            "FSG-Net: Frequency-Spatial Synergistic Gated Network for High-Resolution Remote Sensing Change "
            "Detection"
        ),
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary="Wavelet-domain difference features, spatio-temporal attention and gated fusion.",
        year=2025,
        paper="arXiv:2509.06482",
        repository="https://github.com/zxXie-Air/FSG-Net",
        inputs=_pair(32, normalisation=None),
        licences=Licences(code=_UNSTATED),
        checkpoints="none",
        limits=("Only one module of the network is published; the rest can only be rebuilt from the paper.",),
    ),
    Card(
        slug="lenet",
        title=(
            "A Remote Sensing Image Change Detection Method Integrating Layer Exchange and Channel-Spatial "
            "Differences"
        ),
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary="A Siamese SwinV2 whose two feature pyramids exchange layers, weighted by differences.",
        year=2025,
        paper="doi:10.1109/JSTARS.2025.3576831",
        repository="https://github.com/dyzy41/lenet",
        inputs=_pair(256),
        licences=Licences(code=f"{_UNSTATED}; a fork of mmsegmentation, Apache-2.0"),
        limits=("The window layout fixes the tile size to 256 pixels.",),
    ),
    Card(
        slug="semicd-vl",
        title="SemiCD-VL: Visual-Language Model Guidance Makes Better Semi-supervised Change Detector",
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary=(
            "Semi-supervised binary change: consistency training plus pseudo labels of a vision-language "
            "model."
        ),
        year=2024,
        paper="arXiv:2405.04788",
        repository="https://github.com/likyoo/SemiCD-VL",
        inputs=Inputs(dates=2, bands=_RGB, units=(Unit.RGB255,), normalisation=_IMAGENET),
        licences=Licences(code="Apache-2.0 (parts of UniMatch, MIT)"),
        checkpoints="none",
    ),
    Card(
        slug="fusu",
        title=(
            "FUSU: A Multi-temporal-source Land Use Change Segmentation Dataset for Fine-grained Urban "
            "Semantic "
            "Understanding"
        ),
        task=Task.SEMANTIC_CHANGE,
        status=Status.PLANNED,
        summary=(
            "Land use of two very-high-resolution dates and their change, helped by a Sentinel-1/2 series."
        ),
        year=2024,
        paper="arXiv:2405.19055",
        repository="https://github.com/yuanshuai0914/FUSU",
        inputs=Inputs(dates=2, bands=_RGB, units=(Unit.RGB255,), gsd_range=(0.2, 0.5)),
        licences=Licences(code="MIT (header of the code it builds on)"),
        checkpoints="none",
        limits=(
            "The released code has defects that a port must mend, so no published score can be met yet.",
        ),
    ),
    Card(
        slug="changen2",
        title="Changen2: Multi-Temporal Remote Sensing Generative Change Foundation Model",
        task=Task.CHANGE,
        status=Status.PLANNED,
        summary=(
            "Makes change data by simulating events on masks and synthesising images; detectors trained on "
            "it."
        ),
        year=2024,
        paper="arXiv:2406.17998",
        repository="https://github.com/Z-Zheng/pytorch-change-models",
        inputs=_pair(32),
        licences=Licences(code="Apache-2.0", data="CC BY-NC-SA 4.0 (Changen2-S1-15k)"),
        limits=(
            "The diffusion training and sampling script is not public.",
            "The synthetic data is for non-commercial use.",
        ),
        checkpoints="Hugging Face EVER-Z/Changen2-ChangeStar1x256, EVER-Z/Changen2_RSDiT-B-2-xView2-256",
    ),
    Card(
        slug="hyscdg",
        title=(
            "The Change You Want To Detect: Semantic Change Detection In Earth Observation With Hybrid Data "
            "Generation"
        ),
        task=Task.SEMANTIC_CHANGE,
        status=Status.PLANNED,
        summary=(
            "Builds a second date by guided inpainting of a mapped image, then trains semantic change on it."
        ),
        year=2025,
        paper="arXiv:2503.15683",
        repository="https://github.com/yb23/HySCDG",
        inputs=_pair(32, normalisation=None),
        licences=Licences(code=_UNSTATED),
        checkpoints="Hugging Face Yanis236/HySCDG, Yanis236/FSC-Pretrained",
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
