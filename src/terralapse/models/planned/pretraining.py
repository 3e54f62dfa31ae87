"""Planned: backbones, pre-trained encoders, location encoders, classification and the data behind them."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.sensors import Unit

_RGB = ("red", "green", "blue")
_IMAGENET = Normalisation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_UNSTATED = "not stated (no licence file)"
_S2_13 = (
    "coastal",
    "blue",
    "green",
    "red",
    "rededge1",
    "rededge2",
    "rededge3",
    "nir",
    "nir08",
    "nir09",
    "cirrus",
    "swir16",
    "swir22",
)
_S2_10 = tuple(band for band in _S2_13 if band not in ("coastal", "nir09", "cirrus"))


def _rgb(normalisation: Normalisation | None = None, size_multiple: int = 1) -> Inputs:
    return Inputs(
        dates=1,
        bands=_RGB,
        units=(Unit.RGB255,),
        normalisation=normalisation,
        size_multiple=size_multiple,
    )


_CARDS = (
    Card(
        slug="agrifm",
        title="AgriFM: A Multi-source Temporal Remote Sensing Foundation Model for Crop Mapping",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="A video transformer that halves time together with space, for crop maps from long series.",
        year=2025,
        paper="arXiv (2025)",
        repository="https://github.com/flyakon/AgriFM",
        inputs=Inputs(dates=0, bands=None, sensors=("sentinel2", "landsat-oli")),
        licences=Licences(code="Apache-2.0", weights="not stated"),
        checkpoints="on the authors' web site, not on a hub",
        limits=("The released configuration leaves the MODIS and Landsat patch sizes open.",),
    ),
    Card(
        slug="less-vit",
        title="Towards Scalable Foundation Model for Multi-modal and Hyperspectral Geospatial Data",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary=(
            "A transformer on a grid of channels by places with low-rank attention, aware of wavelengths."
        ),
        year=2025,
        repository="https://github.com/uiuctml/GeospatialFM",
        inputs=Inputs(dates=1),
        licences=Licences(code=_UNSTATED),
        checkpoints="none",
    ),
    Card(
        slug="satmaepp",
        title="Rethinking Transformers Pre-training for Multi-Spectral Satellite Imagery",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="A masked auto-encoder that also rebuilds the image at two and four times its resolution.",
        year=2024,
        paper="CVPR 2024",
        repository="https://github.com/techmn/satmae_pp",
        inputs=Inputs(dates=1, bands=_S2_10, sensors=("sentinel2",)),
        licences=Licences(code="Apache-2.0 (derived from SatMAE, non-commercial)", weights="not stated"),
        checkpoints=(
            "Hugging Face mubashir04/checkpoint_ViT-L_{pretrain,finetune}_fmow_sentinel and ..._fmow_rgb"
        ),
        limits=("The licence of the code it derives from is non-commercial.",),
    ),
    Card(
        slug="skysense",
        title=(
            "SkySense: A Multi-Modal Remote Sensing Foundation Model Towards Universal Interpretation "
            "for Earth "
            "Observation Imagery"
        ),
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="Encoders for very-high-resolution images, Sentinel-2 and Sentinel-1 series, fused in time.",
        year=2023,
        paper="CVPR 2024",
        repository="https://github.com/Jack-bo1220/SkySense",
        inputs=Inputs(dates=0, sensors=("sentinel2", "sentinel1", "rgb")),
        licences=Licences(code="the release's own legal notice", weights="non-commercial research only"),
        checkpoints="a page linked by the official repository",
        limits=(
            "The weights are non-commercial.",
            "Pre-training code, losses and data were never published.",
        ),
    ),
    Card(
        slug="softcon",
        title="Multi-Label Guided Soft Contrastive Learning for Efficient Earth Observation Pretraining",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="Sentinel-1 and Sentinel-2 encoders whose contrastive loss is softened by shared land cover.",
        year=2024,
        paper="IEEE TGRS 2024",
        repository="https://github.com/zhu-xlab/softcon",
        inputs=Inputs(dates=1, bands=_S2_13, sensors=("sentinel2", "sentinel1")),
        licences=Licences(code="Apache-2.0"),
        checkpoints="Hugging Face wangyi111/softcon",
        limits=("Code of the loss and the pre-training was not published.",),
    ),
    Card(
        slug="spectralearth",
        title="SpectralEarth: Training Hyperspectral Foundation Models at Scale",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="Hyperspectral backbones with a spectral adapter that takes any number of bands.",
        year=2024,
        repository="https://github.com/AABNassim/spectral_earth",
        inputs=Inputs(dates=1, units=(Unit.REFLECTANCE,), gsd_range=(30, 30)),
        licences=Licences(code=_UNSTATED),
        checkpoints="a file-sharing page linked by the official repository",
    ),
    Card(
        slug="ssl4eco",
        title="SSL4Eco: A Global Seasonal Dataset for Geospatial Foundation Models in Ecology",
        task=Task.PRETRAINING,
        status=Status.PLANNED,
        summary="Places seen in four local seasons, a network pre-trained on them, and probes from ecology.",
        year=2025,
        paper="CVPR EarthVision 2025",
        repository="https://github.com/PlekhanovaElena/ssl4eco",
        inputs=Inputs(dates=1, sensors=("sentinel2",), gsd_range=(10, 10)),
        licences=Licences(code="not stated"),
        checkpoints="Hugging Face torchgeo/seco-eco, torchgeo/seco-eco-ndvi",
    ),
    Card(
        slug="satclip",
        title="SatCLIP: Global, General-Purpose Location Embeddings with Satellite Imagery",
        task=Task.GEOLOCATION,
        status=Status.PLANNED,
        summary="From longitude and latitude to a vector learnt against Sentinel-2 images.",
        year=2023,
        paper="AAAI 2025",
        repository="https://github.com/microsoft/satclip",
        inputs=Inputs(dates=0),
        licences=Licences(code="MIT"),
        checkpoints="Hugging Face microsoft/SatCLIP-{ResNet18,ResNet50,ViT16}-{L10,L40}",
        quirks=("The zonal harmonics carry a factor of pi that the checkpoints were trained with.",),
        limits=("The finest harmonics resolve a few degrees, so it cannot tell near places apart.",),
    ),
    Card(
        slug="planet",
        title="PlaNet - Photo Geolocation with Convolutional Neural Networks",
        task=Task.GEOLOCATION,
        status=Status.PLANNED,
        summary="Where a picture was taken, as a choice among cells that are small where pictures are many.",
        year=2016,
        paper="arXiv:1602.05314",
        inputs=_rgb(),
        checkpoints="none",
        limits=(
            "Dual use: no locator for people's photographs will be shipped.",
            "No official code or weights exist.",
        ),
    ),
    Card(
        slug="paris-end",
        title="The 'Paris-end' of town? Urban typology through machine learning",
        task=Task.GEOLOCATION,
        status=Status.PLANNED,
        summary="Names the city of a tile and uses the confusions as a map of which city a place resembles.",
        year=2019,
        paper="arXiv:1910.03220",
        inputs=_rgb(),
        checkpoints="none",
        limits=(
            "No official code was found.",
            "The imagery of the paper may not be stored or redistributed, so open imagery takes its place.",
        ),
    ),
    Card(
        slug="eurosat-attention",
        title=(
            "Balanced Multi-Task Attention for Satellite Image Classification: A Systematic Approach to "
            "Achieving 97.23% Accuracy on EuroSAT Without Pre-Training"
        ),
        task=Task.CLASSIFICATION,
        status=Status.PLANNED,
        summary="Three convolutional networks of growing depth and attention for ten land-use classes.",
        year=2025,
        paper="arXiv:2510.15527",
        repository="https://github.com/virAditya/satellite-image-classification-eurosat",
        inputs=Inputs(dates=1, bands=_RGB, units=(Unit.RGB255,), gsd_range=(10, 10), normalisation=_IMAGENET),
        licences=Licences(code="MIT"),
        checkpoints="none",
    ),
    Card(
        slug="landcoverai",
        title=(
            "LandCover.ai: Dataset for Automatic Mapping of Buildings, Woodlands, Water and Roads from "
            "Aerial "
            "Imagery"
        ),
        task=Task.DATA,
        status=Status.PLANNED,
        summary="Aerial images of rural Poland with buildings, woodland, water and roads, and a baseline.",
        year=2020,
        paper="arXiv:2005.02264",
        inputs=Inputs(dates=1, bands=_RGB, units=(Unit.RGB255,), gsd_range=(0.25, 0.5)),
        licences=Licences(data="CC BY-NC-SA 4.0"),
        checkpoints="none",
        limits=("The data is for non-commercial use.",),
    ),
    Card(
        slug="reben",
        title="reBEN: Refined BigEarthNet Dataset for Remote Sensing Image Analysis",
        task=Task.DATA,
        status=Status.PLANNED,
        summary=(
            "Sentinel-1 and Sentinel-2 patch pairs with nineteen land-cover labels and a geographic split."
        ),
        year=2024,
        repository="https://github.com/kai-tub/bigearthnet-pipeline",
        inputs=Inputs(dates=1, sensors=("sentinel2", "sentinel1")),
        licences=Licences(code="MIT", data="CDLA-Permissive-1.0"),
    ),
    Card(
        slug="torchgeo",
        title="TorchGeo: Deep Learning With Geospatial Data",
        task=Task.DATA,
        status=Status.PLANNED,
        summary=(
            "Loaders, samplers and transforms that join rasters and vectors of different grids on the fly."
        ),
        year=2021,
        paper="ACM SIGSPATIAL 2022",
        repository="https://github.com/torchgeo/torchgeo",
        inputs=Inputs(dates=0),
        licences=Licences(code="MIT"),
    ),
    Card(
        slug="rs-benchmarks",
        title="Revisiting pre-trained remote sensing model benchmarks: resizing and normalization matters",
        task=Task.EVALUATION,
        status=Status.PLANNED,
        summary="Scores frozen features by nearest neighbours and linear probes under controlled resizing.",
        year=2023,
        paper="CVPR PBVS 2024",
        repository="https://github.com/isaaccorley/resize-is-all-you-need",
        inputs=Inputs(dates=1),
        licences=Licences(code="Apache-2.0"),
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
