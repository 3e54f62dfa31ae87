"""The card of a system: everything that can be said about it without building it.

The table of systems in the README and the docs, the list of the command line, the default choice of a model
and the test matrix are all generated from cards; no second list exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from terralapse.sensors import Unit


class Status(StrEnum):
    """How far a system is."""

    REPRODUCED = "reproduced"  # meets a published or golden number
    RUNS = "runs"  # complete and tested; no published number to meet, or not met yet
    READER_ONLY = "reader-only"  # only its data or its metrics are here
    PLANNED = "planned"  # a card and nothing else


class Task(StrEnum):
    """What a system returns."""

    CHANGE = "change"
    SEMANTIC_CHANGE = "semantic-change"
    DAMAGE = "damage"
    SEGMENTATION = "segmentation"
    CLASSIFICATION = "classification"
    DETECTION = "detection"
    PRETRAINING = "pretraining"
    RETRIEVAL = "retrieval"
    LANGUAGE = "language"
    VQA = "vqa"
    GENERATION = "generation"
    RESTORATION = "restoration"
    GEOLOCATION = "geolocation"
    MATCHING = "matching"
    GEOMETRY = "geometry"
    FORECASTING = "forecasting"
    CAUSAL = "causal"
    COMPRESSION = "compression"
    EVALUATION = "evaluation"
    DATA = "data"


class Stretch(StrEnum):
    """How a model wants its input scaled before the band-wise mean and standard deviation."""

    NONE = "none"
    SCENE_PERCENTILE = "scene-percentile"  # 2nd..98th percentile of both dates of the scene to 0..1


class DateOrder(StrEnum):
    """What exchanging the two dates does to a system for pairs."""

    SYMMETRIC = "symmetric"  # the map of change stays as it is (maps of classes change places)
    ORDERED = "ordered"  # before and after are told apart: swapped dates give another map


@dataclass(frozen=True)
class Normalisation:
    """x' = (stretch(x) - mean) / std, band by band, in the model's band order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    stretch: Stretch = Stretch.NONE


@dataclass(frozen=True)
class Inputs:
    """What a system takes. `bands` is the exact band order, or None when any bands will do. `dates` is 2 for
    a pair, 1 for a single image, 0 when no image goes in or when any number of dates does."""

    dates: int = 2
    bands: tuple[str, ...] | None = None
    units: tuple[Unit, ...] = ()
    gsd_range: tuple[float, float] | None = None  # metres, the range it was trained on
    sensors: tuple[str, ...] = ()  # slugs of the sensors it was trained on; () = any
    min_bands: int = 1  # how many bands it needs when any will do
    size_multiple: int = 1
    halo: int = 0  # pixels on each side that a tile needs beyond its core
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class Weights:
    """A file of weights. `hub` is `owner/name` on the Hugging Face hub, or None for the library's own:
    the defaults in the package under `terralapse/weights/`, the others in the folder `weights` of the
    repository."""

    file: str
    sha256: str
    hub: str | None = None
    revision: str | None = None
    licence: str = ""


@dataclass(frozen=True)
class Released:
    """A checkpoint that the authors published. `source` is `hub:owner/name@revision` or `zenodo:record`.

    `sha256`, or the `md5` that an archive states, are empty where they are not known: such a file is never
    downloaded, the user gives its path. `what` says what it was trained on and which figure it belongs to.
    """

    file: str
    source: str
    what: str = ""
    sha256: str = ""
    md5: str = ""


@dataclass(frozen=True)
class Licences:
    """Of the original code, the weights and the data that they were trained on."""

    code: str = ""
    weights: str = ""
    data: str = ""


@dataclass(frozen=True)
class Figure:
    """A score with its protocol. `source` is `paper`, `golden` or `here`."""

    metric: str
    value: float
    dataset: str
    protocol: str
    source: str
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Card:
    """What a system is. Data only; building it is the registry's work.

    `slug` is `<system>` or `<system>/<variant>`. `seed` is True for the published systems that the library
    sets out to hold, False for what is its own. `quirks` name oddities of the official code that a
    checkpoint needs. `limits` says in sentences where it fails. `checkpoints` says where the authors publish
    theirs (a hub name, a Zenodo record), `none` when they publish none, or is empty when that is not known;
    `weights` are those that come with the library, `released` the files of the authors. `date_order` is
    stated, and tested, by every system for pairs that runs.
    """

    slug: str
    title: str
    task: Task
    status: Status
    summary: str = ""
    year: int | None = None
    paper: str = ""
    repository: str = ""
    seed: bool = True
    inputs: Inputs = field(default_factory=Inputs)
    classes: str = ""  # slug of a ClassScheme
    licences: Licences = field(default_factory=Licences)
    weights: tuple[Weights, ...] = ()
    released: tuple[Released, ...] = ()
    figures: tuple[Figure, ...] = ()
    temperature: float = 1.0
    threshold: float | None = 0.5
    quirks: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    parameters: int | None = None
    default_rank: int | None = None  # lowest first among the systems that fit an input; None: only when asked
    checkpoints: str = ""
    date_order: DateOrder | None = None

    @property
    def system(self) -> str:
        """The slug without its variant."""
        return self.slug.partition("/")[0]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """The card that `as_dict` gave, also after a passage through JSON; unknown keys are an error."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["task"] = Task(data["task"])
        values["status"] = Status(data["status"])
        values["date_order"] = None if data["date_order"] is None else DateOrder(data["date_order"])
        values["inputs"] = _inputs_from(data["inputs"])
        values["licences"] = Licences(**data["licences"])
        values["weights"] = tuple(Weights(**w) for w in data["weights"])
        values["released"] = tuple(Released(**r) for r in data["released"])
        values["figures"] = tuple(
            Figure(**{**f, "interval": None if f["interval"] is None else tuple(f["interval"])})
            for f in data["figures"]
        )
        return cls(**values)


def trained_card(card: Card, record: Mapping[str, Any]) -> Card:
    """A card of a system of ours with the weights that were trained here.

    Args:
        card: without weights.
        record: an entry of `_trained.json`: `weights`, `temperature`, `threshold`, `figures` and `limits` as
            in a card, `licence` of the data and of what was made from them, and the `gsd_range`.

    Raises:
        ValueError: the card names weights already.
    """
    if card.weights:
        raise ValueError(f"{card.slug} names weights of its own")
    licence = record["licence"]
    return replace(
        card,
        weights=tuple(Weights(**w, licence=licence["weights"]) for w in record["weights"]),
        temperature=record["temperature"],
        threshold=record["threshold"],
        figures=tuple(Figure(**{**f, "interval": tuple(f["interval"])}) for f in record["figures"]),
        limits=(*card.limits, *record["limits"]),
        licences=replace(card.licences, **licence),
        inputs=replace(card.inputs, gsd_range=tuple(record["gsd_range"])),
    )


def _inputs_from(data: Mapping[str, Any]) -> Inputs:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    values["units"] = tuple(Unit(u) for u in data["units"])
    if (norm := data["normalisation"]) is not None:
        values["normalisation"] = Normalisation(
            tuple(norm["mean"]), tuple(norm["std"]), Stretch(norm["stretch"])
        )
    return Inputs(**values)
