"""Planned: captions, questions and answers, dialogue, and retrieval by text."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Status, Task
from terralapse.sensors import Unit

_RGB = ("red", "green", "blue")


def _rgb(dates: int) -> Inputs:
    return Inputs(dates=dates, bands=_RGB, units=(Unit.RGB255,))


_CARDS = (
    Card(
        slug="closp",
        title="Text-to-Remote-Sensing-Image Retrieval beyond RGB Sources",
        task=Task.RETRIEVAL,
        status=Status.PLANNED,
        summary="One embedding space for text, Sentinel-1 and Sentinel-2, with text as the bridge.",
        year=2025,
        paper="arXiv:2507.10403",
        repository="https://github.com/DarthReca/closp",
        inputs=Inputs(dates=1, sensors=("sentinel2", "sentinel1")),
        licences=Licences(
            code="Apache-2.0 (location code: SatCLIP's licence)",
            data="non-commercial, by a third party's note",
        ),
        checkpoints="Hugging Face DarthReca/{CLOSP-RN,CLOSP-VS,CLOSP-VL,GeoCLOSP-RN}",
        limits=("The evaluation script is not released.",),
    ),
    Card(
        slug="search-tta",
        title="Search-TTA: A Multimodal Test-Time Adaptation Framework for Visual Search in the Wild",
        task=Task.RETRIEVAL,
        status=Status.PLANNED,
        summary="Maps where a target may be on a satellite image and corrects the map as a search goes on.",
        year=2025,
        paper="arXiv:2505.11350",
        repository="https://github.com/marmotlab/Search-TTA-VLN",
        inputs=_rgb(1),
        licences=Licences(code="Apache-2.0"),
        checkpoints="Hugging Face derektan95/search-tta-sat, derektan95/search-tta-sound",
    ),
    Card(
        slug="skyscript",
        title="SkyScript: A Large and Semantically Diverse Vision-Language Dataset for Remote Sensing",
        task=Task.RETRIEVAL,
        status=Status.PLANNED,
        summary="Image and text pairs from map tags, and CLIP models trained further on them.",
        year=2023,
        paper="arXiv:2312.12856",
        repository="https://github.com/wangzhecheng/SkyScript",
        inputs=_rgb(1),
        licences=Licences(code="MIT"),
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
