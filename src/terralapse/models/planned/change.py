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
