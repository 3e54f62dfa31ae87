"""Planned: captions, questions and answers, dialogue, and retrieval by text."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Status, Task
from terralapse.sensors import Unit

_RGB = ("red", "green", "blue")


def _rgb(dates: int) -> Inputs:
    return Inputs(dates=dates, bands=_RGB, units=(Unit.RGB255,))


_CARDS = (
    Card(
        slug="deltavlm",
        title=(
            "DeltaVLM: Interactive Remote Sensing Image Change Analysis via Instruction-guided Difference "
            "Perception"
        ),
        task=Task.LANGUAGE,
        status=Status.PLANNED,
        summary=(
            "Answers instructions about a pair of dates through a difference module and a language model."
        ),
        year=2025,
        paper="arXiv:2507.22346",
        repository="https://github.com/hanlinwu/DeltaVLM",
        inputs=_rgb(2),
        licences=Licences(code="BSD-3-Clause file headers, no licence file", data="CC BY 4.0"),
        checkpoints="Hugging Face hlwu/DeltaVLM",
        limits=("The language model (Vicuna-7B) is not part of the checkpoint and has its own licence.",),
    ),
    Card(
        slug="disasterm3",
        title=(
            "DisasterM3: A Remote Sensing Vision-Language Dataset for Disaster Damage Assessment and Response"
        ),
        task=Task.LANGUAGE,
        status=Status.PLANNED,
        summary=(
            "Questions, reports and referring masks on disaster pairs, optical before and optical or SAR "
            "after."
        ),
        year=2025,
        paper="arXiv:2505.21089",
        repository="https://github.com/Junjue-Wang/DisasterM3",
        inputs=Inputs(dates=2, gsd_range=(0.8, 0.8)),
        licences=Licences(data="CC BY-NC(-SA) 4.0, academic only"),
        checkpoints="none",
        limits=("The data is non-commercial.", "Training code was never released."),
    ),
    Card(
        slug="dvl-suite",
        title="DynamicVL: Benchmarking Multimodal Large Language Models for Dynamic City Understanding",
        task=Task.LANGUAGE,
        status=Status.PLANNED,
        summary="Benchmark and dialogue on many dates of American cities in one-metre aerial images.",
        year=2025,
        paper="arXiv:2505.21076",
        repository="https://github.com/weihao1115/dynamicvl",
        inputs=Inputs(dates=0, bands=_RGB, units=(Unit.RGB255,), gsd_range=(1, 1)),
        licences=Licences(code="Apache-2.0"),
        limits=("The code of its dialogue model is not published.",),
    ),
    Card(
        slug="earthdial",
        title="EarthDial: Turning Multi-sensory Earth Observations to Interactive Dialogues",
        task=Task.LANGUAGE,
        status=Status.PLANNED,
        summary="A dialogue model for optical, multispectral and SAR images of one or several dates.",
        year=2024,
        paper="arXiv:2412.15190",
        repository="https://github.com/hiyamdebary/EarthDial",
        inputs=Inputs(dates=0),
        licences=Licences(code="MIT"),
        checkpoints="Hugging Face akshaydudhane/EarthDial_4B_{RGB,MS,Methane_UHI}",
    ),
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
