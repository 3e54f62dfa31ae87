"""Planned: forecasting, causal effects, three-dimensional reconstruction and matching."""

from __future__ import annotations

from terralapse.cards import Card, Inputs, Licences, Status, Task
from terralapse.sensors import Unit

_UNSTATED = "not stated (no licence file)"

_CARDS = (
    Card(
        slug="cate-eo",
        title=(
            "Effect Heterogeneity with Earth Observation in Randomized Controlled Trials: Exploring "
            "the Role of "
            "Data, Model, and Evaluation Metric Choice"
        ),
        task=Task.CAUSAL,
        status=Status.PLANNED,
        summary="For whom a treatment works, estimated from images of the places before it.",
        year=2024,
        paper="arXiv:2407.11674",
        repository="https://github.com/cjerzak/causalimages-software",
        inputs=Inputs(dates=0),
        licences=Licences(code="GPL-3"),
        checkpoints="none",
        limits=("The official package is under the GPL: nothing of it may be taken over.",),
    ),
    Card(
        slug="denguenet",
        title=(
            "DengueNet: Dengue Prediction using Spatiotemporal Satellite Imagery for Resource-Limited "
            "Countries"
        ),
        task=Task.FORECASTING,
        status=Status.PLANNED,
        summary="Next week's dengue cases of a municipality from the last weeks of Sentinel-2.",
        year=2024,
        paper="arXiv:2401.11114",
        repository="https://github.com/mimikuo365/DengueNet-IJCAI",
        inputs=Inputs(dates=0, sensors=("sentinel2",)),
        licences=Licences(code=_UNSTATED),
        checkpoints="none",
        limits=("One model a municipality; neither images nor labels nor weights are public.",),
    ),
    Card(
        slug="dynst",
        title="DynST: Dynamic Sparse Training for Resource-Constrained Spatio-Temporal Forecasting",
        task=Task.FORECASTING,
        status=Status.PLANNED,
        summary="Learns which cells of the history a forecast can do without.",
        year=2024,
        paper="arXiv:2403.02914",
        inputs=Inputs(dates=0),
        checkpoints="none",
        limits=("No official code could be found.",),
    ),
    Card(
        slug="sat-dn",
        title=(
            "Sat-DN: Implicit Surface Reconstruction from Multi-View Satellite Images with Depth and Normal "
            "Supervision"
        ),
        task=Task.GEOMETRY,
        status=Status.PLANNED,
        summary="Fits a surface to many satellite views of one scene; gives a mesh and a height model.",
        year=2025,
        paper="arXiv:2502.08352",
        repository="https://github.com/costune/SatDN",
        inputs=Inputs(dates=0, bands=("red", "green", "blue")),
        licences=Licences(code="MIT"),
        checkpoints="none",
        limits=("Optimised scene by scene; there is nothing pre-trained.",),
    ),
    Card(
        slug="md-frn",
        title=(
            "Learning multi-domain feature relation for visible and Long-wave Infrared image patch matching"
        ),
        task=Task.MATCHING,
        status=Status.PLANNED,
        summary="Whether a visible and a thermal patch show the same place.",
        year=2023,
        paper="arXiv:2308.04880",
        inputs=Inputs(dates=2, units=(Unit.RGB255,)),
        checkpoints="none",
        limits=("No code, weights or data archive could be found.",),
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
