"""One score for a system of any task on a split of a data set: whole images and tiles, with its protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terralapse import registry
from terralapse._version import __version__
from terralapse.cards import Task
from terralapse.data.catalogue import DATASETS, open_dataset
from terralapse.data.chat import is_chat
from terralapse.data.pairs import LabelledPair
from terralapse.data.samples import SemanticPair
from terralapse.data.training import batch_of
from terralapse.engine import evaluate
from terralapse.engine.chat import score_chat
from terralapse.engine.questions import score_questions
from terralapse.engine.sources import pick_bands, reader_options
from terralapse.errors import ModelInputError, SettingError
from terralapse.grid.pair import ArrayPair
from terralapse.labels import NOT_COUNTED
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.chat import ChatSystem
from terralapse.tasks.image_captions import ImageCaptioner, ImageCaptionMeasure
from terralapse.tasks.measures import Measure, measure_for
from terralapse.tasks.metrics import bootstrap_interval
from terralapse.tasks.network import NetworkDetector, NetworkSystem

MAPS = ("label", "before", "after", "building", "damage", "map", "change")


@dataclass(frozen=True)
class ModeScores:
    """`scores` by protocol; `interval` the 95 % interval of the score named `main`, over images (or tiles)
    drawn again, None with fewer than two and for captions, whose scores are of a whole corpus; `counts` what
    everything can be recomputed from."""

    samples: int
    scores: dict[str, dict[str, Any]]
    main: str
    interval: tuple[float, float] | None
    counts: dict[str, Any]
    megapixels_a_second: float


@dataclass(frozen=True)
class SplitReport:
    """What was measured and how. `modes` are `whole` and, where asked for, `tile<side>`."""

    system: str
    weights: str
    data: str
    split: str
    title: str
    classes: str
    device: str
    modes: dict[str, ModeScores]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """As a sentence."""
        return (
            "counts summed over the split before any ratio; pixels that nobody labelled left out; tiles cut "
            "from each image without overlap and predicted by themselves; 95 % intervals by bootstrap over "
            "images or tiles"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; what is 0/0 becomes None."""
        return {
            "system": self.system,
            "weights": self.weights,
            "data": self.data,
            "split": self.split,
            "title": self.title,
            "classes": self.classes,
            "protocol": self.protocol,
            "device": self.device,
            "versions": self.versions,
            "modes": {
                name: {
                    "samples": mode.samples,
                    "scores": _jsonable(mode.scores),
                    "main": mode.main,
                    "interval_95": None if mode.interval is None else _jsonable(list(mode.interval)),
                    "counts": mode.counts,
                    "megapixels_a_second": mode.megapixels_a_second,
                }
                for name, mode in self.modes.items()
            },
        }


def score_split(
    slug: str,
    data: str,
    root: Path | str,
    split: str | None = "test",
    *,
    options: Mapping[str, Any] | None = None,
    build: Mapping[str, Any] | None = None,
    weights: Path | str | None = None,
    tile: int | None = 256,
    threshold: float | None = None,
    device: str = "cpu",
    samples: int = 2000,
) -> SplitReport:
    """Scores a system on a split.

    Args:
        slug: of a system whose task is that of the data set.
        data: a name of the catalogue.
        root: the folder of the data set.
        split: as the data set calls it; None where the folder itself is the split.
        options: of the data set's reader (`holdout`, `lists`, `scheme` by slug).
        build: of the system's builder (`data` of RSMamba).
        weights: a file in place of the system's own.
        tile: side of the tiles of the second mode; None for whole images alone. A set of images that are no
            larger has one mode.
        threshold: of the probability of change; by default the system's own.
        device: where the network runs.
        samples: of the bootstrap.

    Raises:
        SettingError: task and data set do not belong together, or a number makes no sense.
        FileMissingError, BandError, SystemNotReadyError and others of readers and builder.
    """
    if tile is not None and tile < 16:
        raise SettingError(f"tile {tile}", "is too small to be scored", "Give 16 pixels or more.")
    task = registry.card(slug).task
    if data in DATASETS:  # otherwise the catalogue says what it knows
        theirs = DATASETS[data].task
        also = ((Task.CHANGE, Task.SEMANTIC_CHANGE), (Task.LANGUAGE, Task.RETRIEVAL))
        if task is not theirs and (task, theirs) not in also:
            raise SettingError(
                f"{slug} on {data}",
                f"the task of the system is {task}, that of the data set {theirs}",
                f"See `terralapse systems --task {theirs}`.",
            )
    dataset = open_dataset(data, root, split, **reader_options(options or {}))
    if len(dataset) == 0:
        raise SettingError(dataset.title, "has no labelled samples", "Check the folder and the split.")
    given = {} if weights is None else {"weights": weights}
    system = registry.build(slug, **given, **(build or {})).to(device)
    if (
        task is Task.LANGUAGE
        and DATASETS[data].task is Task.RETRIEVAL
        and not isinstance(system, ImageCaptioner)
    ):
        raise SettingError(f"{slug} on {data}", "the system captions no single images", "Take gaia/blip2.")
    classes = system.card.classes  # an option of the builder can decide them
    if task is DATASETS[data].task and task is not Task.CHANGE and classes not in ("", dataset.scheme.slug):
        raise SettingError(
            f"{slug} on {data}",
            f"the classes of the system are {classes}, those of the labels {dataset.scheme.slug}",
            f"Read the labels in the order of the system, where they can be: scheme={classes}.",
        )
    modes = {"whole": _mode(system, dataset, None, threshold, device, samples)}
    whole = (Task.CLASSIFICATION, Task.LANGUAGE, Task.RETRIEVAL, Task.VQA)  # of an image as a whole
    if tile is not None and task not in whole and _larger(dataset[0], tile):
        modes[f"tile{tile}"] = _mode(system, dataset, tile, threshold, device, samples)
    shipped = system.card.weights[0].file if system.card.weights else ""
    return SplitReport(
        system=slug,
        weights=str(weights) if weights is not None else shipped,
        data=data,
        split=split or "",
        title=dataset.title,
        classes=dataset.scheme.slug,
        device=device,
        modes=modes,
        versions={"terralapse": __version__, "torch": torch.__version__, "numpy": np.__version__},
    )


def _mode(
    system: Any, dataset: Any, tile: int | None, threshold: float | None, device: str, samples: int
) -> ModeScores:
    cut = dataset if tile is None else _Cut(dataset, tile)
    if system.card.task is Task.VQA:
        return ModeScores(**score_questions(system, dataset, device, samples))
    if isinstance(system, ChatSystem) or is_chat(dataset):
        return ModeScores(**score_chat(system, dataset, device))
    if system.card.task is Task.CHANGE:
        return _change(system, cut, threshold, device, samples)
    return _network(system, cut, dataset.scheme, device, samples)


# --- cutting ---------------------------------------------------------------------------------------
class _Cut:
    """The samples of a set in tiles; those at the right and lower edge are smaller."""

    def __init__(self, dataset: Any, side: int) -> None:
        self.dataset, self.side = dataset, side
        self.title, self.scheme = f"{dataset.title} in tiles of {side}", dataset.scheme

    def __iter__(self) -> Iterator[Any]:
        for sample in self.dataset:
            height, width = _size(sample)
            for row in range(0, height, self.side):
                for col in range(0, width, self.side):
                    yield cut_sample(sample, row, col, self.side)

    def __len__(self) -> int:
        return sum(-(-h // self.side) * -(-w // self.side) for h, w in map(_size, self.dataset))


def cut_sample(sample: Any, row: int, col: int, side: int) -> Any:
    """The part of a sample of any task at a place: images and label maps alike. A series, which
    belongs to the whole, is left out."""
    area = (slice(row, row + side), slice(col, col + side))
    pixels = "images" if hasattr(sample, "images") else "image"
    parts: dict[str, Any] = {pixels: np.ascontiguousarray(getattr(sample, pixels)[..., *area])}
    names = {f for f in sample.__dataclass_fields__ if f in MAPS and getattr(sample, f) is not None}
    parts |= {name: np.ascontiguousarray(getattr(sample, name)[area]) for name in names}
    if getattr(sample, "series", None) is not None:
        parts["series"] = None
    return replace(sample, name=f"{sample.name} {row}_{col}", **parts)


def _size(sample: Any) -> tuple[int, int]:
    images = sample.images if hasattr(sample, "images") else sample.image
    return images.shape[-2], images.shape[-1]


def _larger(sample: Any, side: int) -> bool:
    return max(_size(sample)) > side


# --- binary change ---------------------------------------------------------------------------------
class _Binary:
    """Semantic pairs as binary ones; binary ones as they are."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.title = dataset, dataset.title

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[LabelledPair]:
        for s in self.dataset:
            if isinstance(s, SemanticPair):
                s = LabelledPair(s.name, s.images, s.label, s.gsd, s.bands, s.unit, s.map)
            yield s


def _change(
    system: ChangeDetector, dataset: Any, threshold: float | None, device: str, samples: int
) -> ModeScores:
    report = evaluate.score(system, _Binary(dataset), threshold=threshold, device=device, samples=samples)
    found = {**report.scores.as_dict(), "threshold": report.threshold, "ece": report.ece}
    found["boundary_f1"] = report.boundary_f1
    return ModeScores(
        samples=report.tiles,
        scores={"binary": found},
        main="binary.f1",
        interval=report.interval,
        counts={"decided": report.counts.sum(axis=0).tolist(), "objects": report.objects.tolist()},
        megapixels_a_second=report.megapixels_a_second,
    )


# --- all other tasks -------------------------------------------------------------------------------
def _network(system: NetworkSystem, dataset: Any, scheme: Any, device: str, samples: int) -> ModeScores:
    classes = sum(c.name not in NOT_COUNTED for c in scheme.classes)
    excluded = tuple(c.value for c in scheme.classes if c.name == "clutter")
    captions = isinstance(system, ImageCaptioner)
    measure = ImageCaptionMeasure() if captions else measure_for(system.card.task, classes, excluded=excluded)
    measure = measure.to(device)
    parts: list[dict[str, np.ndarray]] = []
    pixels, seconds = 0, 0.0
    for sample in dataset:
        picked = pick_bands(sample, system)
        batch = {k: v.to(device) for k, v in batch_of([picked]).items()}
        started = time.perf_counter()
        output = predict_sample(system, picked, batch)
        seconds += time.perf_counter() - started
        _same_classes(system, output, classes, scheme.slug)
        measure.reset()
        measure.update(output, batch)
        parts.append(measure.counts())
        pixels += batch["images"].shape[-2] * batch["images"].shape[-1]
    totals = measure.joined(parts)
    return ModeScores(
        samples=len(parts),
        scores=measure.scores(totals),
        main=measure.monitor,
        interval=_interval(measure, parts, samples),
        counts={name: np.asarray(total).tolist() for name, total in totals.items()},
        megapixels_a_second=pixels / 1e6 / max(seconds, 1e-9),
    )


def predict_sample(system: NetworkSystem, sample: Any, batch: Mapping[str, Tensor]) -> Any:
    """The output of the task for one sample and its batch of one.

    Raises:
        ModelInputError: an image in units that the system was not made for, and that no stretch can mend.
    """
    state: dict[str, Any] = {}
    if isinstance(system, NetworkDetector):
        pair = ArrayPair(
            sample.images, bands=sample.bands, unit=sample.unit, gsd=sample.gsd, name=sample.name
        )
        state = system.fit(pair.sample())
    elif system.card.inputs.units and sample.unit not in system.card.inputs.units:
        wanted = " or ".join(system.card.inputs.units)
        raise ModelInputError(
            system.card.slug, f"takes {wanted}, and {sample.name} is in {sample.unit}", "Convert the images."
        )
    images = sample.images if hasattr(sample, "images") else sample.image[None]
    usable = torch.from_numpy(np.isfinite(images).all(axis=(0, 1)))[None].to(batch["images"].device)
    with torch.inference_mode():
        return system.respond(batch, state, None if usable.all() else usable)


def _same_classes(system: NetworkSystem, output: Any, classes: int, scheme: str) -> None:
    """A table of another length would score nonsense, or fail far from here."""
    logits = getattr(output, "logits", None)
    if logits is not None and logits.shape[1] != classes:
        raise SettingError(
            f"{system.card.slug} on the classes {scheme}",
            f"the system has {logits.shape[1]} classes and the labels {classes}",
            "Give weights that were trained on these classes.",
        )


def _interval(
    measure: Measure, parts: list[dict[str, np.ndarray]], samples: int
) -> tuple[float, float] | None:
    if len(parts) < 2 or not measure.sums:
        return None
    names, shapes = list(parts[0]), [parts[0][n].shape for n in parts[0]]
    flat = np.stack([np.concatenate([p[n].ravel() for n in names]) for p in parts])
    ends = np.cumsum([int(np.prod(s)) for s in shapes])[:-1]

    def statistic(total: np.ndarray) -> float:
        pieces = [v.reshape(s) for v, s in zip(np.split(total, ends), shapes, strict=True)]
        return measure.main_score(measure.scores(dict(zip(names, pieces, strict=True))))

    return bootstrap_interval(flat, statistic, samples)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return None if value != value else float(value)
    return value
