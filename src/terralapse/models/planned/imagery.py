"""Planned: segmentation, detection, restoration, generation and compression of images."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.sensors import Unit

_RGB = ("red", "green", "blue")
_IMAGENET = Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_UNSTATED = "not stated (no licence file)"


def _rgb(
    normalisation: Normalisation | None = None,
    size_multiple: int = 1,
    gsd_range: tuple[float, float] | None = None,
) -> Inputs:
    return Inputs(
        dates=1,
        bands=_RGB,
        units=(Unit.RGB255,),
        gsd_range=gsd_range,
        size_multiple=size_multiple,
        normalisation=normalisation,
    )


_CARDS = (
    Card(
        slug="bi-mix",
        title="Bi-Mix: Bidirectional Mixing for Domain Adaptive Nighttime Semantic Segmentation",
        task=Task.SEGMENTATION,
        status=Status.PLANNED,
        summary="Carries a segmentation from day to night by mixing classes and relighting both ways.",
        year=2021,
        paper="arXiv:2111.10339",
        repository="https://github.com/ygjwd12345/BiMix",
        inputs=_rgb(_IMAGENET),
        licences=Licences(code=_UNSTATED),
        limits=("Trained on street scenes, not on images from above.",),
    ),
    Card(
        slug="cloudtracks",
        title="CloudTracks: A Dataset for Localizing Ship Tracks in Satellite Images of Clouds",
        task=Task.SEGMENTATION,
        status=Status.PLANNED,
        summary="Masks and counts the tracks that ships leave in MODIS cloud images.",
        year=2024,
        paper="arXiv:2401.14486",
        inputs=Inputs(dates=1, units=(Unit.RGB255,), gsd_range=(1000, 1000)),
        checkpoints="none",
        limits=("Architectures and splits of the paper's baselines are not known.",),
    ),
    Card(
        slug="manet",
        title="MANet: Fine-Tuning Segment Anything Model for Multimodal Remote Sensing Semantic Segmentation",
        task=Task.SEGMENTATION,
        status=Status.PLANNED,
        summary="Adapters let a frozen Segment Anything encoder read an image and its heights together.",
        year=2024,
        paper="arXiv:2410.11160",
        repository="https://github.com/sstary/SSRS",
        inputs=_rgb(size_multiple=256),
        licences=Licences(code="Apache-2.0"),
        checkpoints="none",
        quirks=("Published training leaves the relative positions of the frozen encoder at zero.",),
        limits=("Needs a surface model beside the image.",),
    ),
    Card(
        slug="flightscope",
        title=(
            "FlightScope: An Experimental Comparative Review of Aircraft Detection Algorithms in Satellite "
            "Imagery"
        ),
        task=Task.DETECTION,
        status=Status.PLANNED,
        summary="One training set, one outside test, and a row of detectors that must find aircraft.",
        year=2024,
        paper="arXiv:2404.02877",
        repository="https://github.com/toelt-llc/FlightScope_Bench",
        inputs=_rgb(),
        licences=Licences(code="research and non-commercial use only; some detectors AGPL-3.0"),
        checkpoints="a file-sharing archive",
        limits=("Non-commercial code: nothing of it may be taken over.",),
    ),
    Card(
        slug="hop",
        title="Temporal Enhanced Training of Multi-view 3D Object Detector via Historical Object Prediction",
        task=Task.DETECTION,
        status=Status.PLANNED,
        summary="Trains a multi-camera 3-D detector to also predict the objects of a frame withheld from it.",
        year=2023,
        paper="arXiv:2304.00967",
        repository="https://github.com/Sense-X/HoP",
        inputs=Inputs(dates=0, bands=_RGB, units=(Unit.RGB255,)),
        licences=Licences(code="MIT", data="nuScenes: non-commercial"),
        checkpoints="files of the repository's GitHub release",
        limits=("Made for cars' cameras, not for images from above.",),
    ),
    Card(
        slug="star-sgg",
        title=(
            "STAR: A First-Ever Dataset and A Large-Scale Benchmark for Scene Graph Generation in Large-Size "
            "Satellite Imagery"
        ),
        task=Task.DETECTION,
        status=Status.PLANNED,
        summary="Finds objects in very large images and says how they stand to each other.",
        year=2024,
        paper="arXiv:2406.09410",
        repository="https://github.com/Zhuzi24/SGG-ToolKit",
        inputs=_rgb(gsd_range=(0.15, 1)),
        licences=Licences(code="Apache-2.0 by its read-me, no licence text"),
        checkpoints="Hugging Face Zhuzi24/STAR_OBJ_REL_WEIGHTS",
    ),
    Card(
        slug="crefdiff",
        title=(
            "Controllable Reference Guided Diffusion with Local Global Fusion for Real World Remote Sensing "
            "Image Super Resolution"
        ),
        task=Task.RESTORATION,
        status=Status.PLANNED,
        summary="Ten-fold super-resolution of Sentinel-2 guided by an older aerial image of the same place.",
        year=2025,
        paper="arXiv:2506.23801",
        repository="https://github.com/wwangcece/CRefDiff",
        inputs=Inputs(dates=2, bands=_RGB, units=(Unit.RGB255,), gsd_range=(1, 10)),
        licences=Licences(code=_UNSTATED),
        checkpoints="Hugging Face wangcce/RefSR_x10",
        limits=("What it adds is invented from an older image and must not be read as an observation.",),
    ),
    Card(
        slug="panflownet",
        title="PanFlowNet: A Flow-Based Deep Network for Pan-sharpening",
        task=Task.RESTORATION,
        status=Status.PLANNED,
        summary="Pan-sharpening by an invertible flow, whose draws also show the uncertainty.",
        year=2023,
        paper="arXiv:2305.07774",
        repository="https://github.com/yggame/PanFlowNet",
        inputs=Inputs(dates=1, bands=("blue", "green", "red", "nir"), units=(Unit.RGB255,)),
        licences=Licences(
            code="not stated (no licence file); its metric code is derived from GPL-3 and MIT code"
        ),
        limits=("Exactly four bands and a panchromatic image at a quarter of their pixel size.",),
    ),
    Card(
        slug="crossviewdiff",
        title="CrossViewDiff: A Cross-View Diffusion Model for Satellite-to-Street View Synthesis",
        task=Task.GENERATION,
        status=Status.PLANNED,
        summary="Draws a street panorama from a satellite tile under controls of structure and texture.",
        year=2024,
        paper="arXiv:2408.14765",
        repository="https://github.com/opendatalab/CrossViewDiff",
        inputs=_rgb(gsd_range=(0.1, 0.5)),
        licences=Licences(code="none: no code was released"),
        checkpoints="none",
        limits=("No code or weights were released: only a reconstruction is possible.",),
    ),
    Card(
        slug="thermalgen",
        title=(
            "ThermalGen: Style-Disentangled Flow-Based Generative Models for RGB-to-Thermal Image Translation"
        ),
        task=Task.GENERATION,
        status=Status.PLANNED,
        summary="Flow matching from a colour image to a thermal one in the style of a chosen sensor.",
        year=2025,
        paper="arXiv:2509.24878",
        repository="https://github.com/arplaboratory/ThermalGen",
        inputs=_rgb(size_multiple=16),
        licences=Licences(code="MIT"),
        checkpoints="Hugging Face xjh19972/ThermalGen-XL-2",
        limits=("The output is relative intensity, not a temperature.",),
    ),
    Card(
        slug="xarrayvideo",
        title="Video Compression for Spatiotemporal Earth System Data",
        task=Task.COMPRESSION,
        status=Status.PLANNED,
        summary="Keeps a cube of dates and bands as video files and says what rate costs in distortion.",
        year=2025,
        paper="arXiv:2506.19656",
        repository="https://github.com/IPL-UV/xarrayvideo",
        inputs=Inputs(dates=0),
        licences=Licences(code="MIT", data="CC BY 4.0"),
        limits=("Missing values are not preserved by the official code.", "Needs the ffmpeg program."),
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
