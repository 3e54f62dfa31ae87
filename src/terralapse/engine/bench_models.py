"""The detectors of a benchmark: built, known by the digest of their weights, and their costs measured."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from terralapse import registry
from terralapse.cards import Card, Task
from terralapse.data.pairs import LabelledPair
from terralapse.data.samples import SemanticPair
from terralapse.data.training import batch_of
from terralapse.engine.evaluate import array_pair, predict_whole, threshold_of
from terralapse.engine.runner import LiveTensors, weights_digest
from terralapse.engine.score import predict_sample
from terralapse.engine.sources import pick_bands
from terralapse.errors import ModelInputError, SettingError, UnreadableFileError
from terralapse.labels import ClassScheme, scheme
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeDetector

TASKS = (Task.CHANGE, Task.SEMANTIC_CHANGE)
SIDE = 256  # pixels: the pair on which costs are measured
Sample = LabelledPair | SemanticPair
Source = Literal["card", "training", "val", "each image"]


@dataclass(frozen=True)
class Cost:
    """Of one pair of 256 x 256 pixels. `macs` counts multiply-adds of matrix products and convolutions, as
    `torch.utils.flop_counter` finds them, and `flops` is twice that; scans, interpolation, normalisation and
    whatever is done outside of torch are not in it. `peak_bytes` is the most that tensors made during
    one prediction held at one time, without weights; on a GPU the peak of its allocator."""

    parameters: int
    macs: int
    flops: int
    peak_bytes: int


@dataclass
class Contender:
    """One detector with its selection: `threshold` None means that each image gives its own."""

    name: str
    system: Any
    weights: str
    digest: str
    threshold: float | None
    source: Source
    cost: Cost | None = None

    @property
    def card(self) -> Card:
        return self.system.card

    @property
    def takes_map(self) -> bool:
        return "map" in getattr(self.system, "extras", ())

    def selection(self) -> dict[str, Any]:
        """What is frozen before the test split is opened."""
        return {
            "model": self.name,
            "slug": self.card.slug,
            "weights": self.weights,
            "weights_sha256": self.digest,
            "threshold": self.threshold,
            "threshold_from": self.source,
            "temperature": self.card.temperature,
            "classes": self.card.classes,
        }

    def check(self, sample: Sample) -> None:
        """Refuses data that the detector cannot take, before anything is computed.

        Raises:
            ModelInputError: bands are missing, too few, or of a unit that no stretch can mend.
        """
        needed = self.card.inputs.bands or ()
        missing = [b for b in needed if b not in sample.bands]
        if missing:
            raise ModelInputError(
                self.name,
                f"needs the bands {', '.join(needed)}, and the data lack {', '.join(missing)}",
                "Leave it out, or choose data that have them.",
            )
        if len(sample.bands) < self.card.inputs.min_bands:
            raise ModelInputError(
                self.name,
                f"needs {self.card.inputs.min_bands} bands, and the data have {len(sample.bands)}",
                "Leave it out, or choose data with more bands.",
            )

    def predict(self, sample: Sample, device: str) -> Prediction:
        """The probability of change of one sample, its images as they are."""
        started = time.perf_counter()
        if isinstance(self.system, ChangeDetector):
            pair = array_pair(sample, self.system)  # with its map for one that takes it
            state = self.system.fit(pair.sample())
            fitted = time.perf_counter()
            probability, known = predict_whole(self.system, pair, state, device)
            threshold = threshold_of(self.system, state)
        else:
            picked = pick_bands(sample, self.system)
            batch = {k: v.to(device) for k, v in batch_of([picked]).items()}
            fitted = time.perf_counter()
            with torch.inference_mode():
                found = predict_sample(self.system, picked, batch).change()
                probability = found.probability(self.card.temperature)[0].cpu().numpy()
            known = np.isfinite(picked.images).all(axis=(0, 1))
            threshold = 0.5 if self.card.threshold is None else self.card.threshold
        seconds = time.perf_counter() - fitted
        used = threshold if self.threshold is None else self.threshold
        return Prediction(probability, known, used, fitted - started, seconds)


@dataclass(frozen=True)
class Prediction:
    """`probability` float32 [H, W], `known` bool [H, W] where both dates have data."""

    probability: np.ndarray
    known: np.ndarray
    threshold: float
    fit_seconds: float
    seconds: float

    @property
    def change(self) -> np.ndarray:
        """uint8 [H, W]: 1 where the probability reaches the threshold."""
        return (self.probability >= self.threshold).astype(np.uint8)


# --- building --------------------------------------------------------------------------------------
def contenders(models: Sequence[str], device: str) -> list[Contender]:
    """Builds what is to be compared.

    Args:
        models: slugs, or `slug=file` for weights of the user.
        device: where networks go.

    Raises:
        SettingError: no model, one twice, or two whose orders of the same classes differ.
        ModelInputError: a system that finds no change.
        UnknownSystemError, SystemNotReadyError, FileMissingError and others of registry and weights.
    """
    if not models:
        raise SettingError("--models", "names no model", "Give slugs of `terralapse systems --task change`.")
    found: list[Contender] = []
    for model in models:
        slug, _, file = model.partition("=")
        card = registry.card(slug)
        if card.task not in TASKS:
            raise ModelInputError(
                slug,
                f"is a system for {card.task}, and change is compared here",
                "See `terralapse systems --task change`.",
            )
        name = f"{slug}={Path(file).name}" if file else slug
        if any(name == c.name for c in found):
            raise SettingError(
                f"--models {model}",
                f"{name} is named twice",
                "Name each once, and give files names of their own.",
            )
        found.append(_built(name, slug, file, device))
    together([(c.name, scheme(c.card.classes)) for c in found if c.card.classes])
    return found


def _built(name: str, slug: str, file: str, device: str) -> Contender:
    system = registry.build(slug, **({"weights": Path(file)} if file else {})).to(device)
    card: Card = system.card
    network = getattr(system, "network", None)
    shipped = card.weights[0].file if card.weights else "shipped"
    trained = trained_card(card, Path(file)) if file and network is not None else None
    if trained is not None:
        system.card = card = trained
    return Contender(
        name=name,
        system=system,
        weights="none" if network is None else file or shipped,
        digest=weights_digest(system),
        # Without weights to have been chosen with, a threshold comes from each image.
        threshold=None if network is None else 0.5 if card.threshold is None else card.threshold,
        source="each image" if network is None else "training" if trained is not None else "card",
    )


def trained_card(card: Card, weights: Path) -> Card | None:
    """The card with the temperature and the threshold that a training run found for its weights and wrote
    beside them; None where there is no such record, or where it is of other weights or of semantic change.

    Raises:
        UnreadableFileError: the record is no JSON.
    """
    record = weights.parent / "result.json"
    if not record.is_file():
        return None
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest() or "calibration" not in found:
            return None
        temperature, threshold = (
            found["calibration"]["temperature"],
            found["validation"]["binary"]["threshold"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableFileError(
            record, f"is no record of a training run ({error!r})", "Move it away from the weights."
        ) from error
    return replace(card, temperature=temperature, threshold=threshold)


def together(tables: Sequence[tuple[str, ClassScheme]]) -> None:
    """Refuses tables that number the same classes in different orders; binary change goes with all.

    Args:
        tables: who uses which classes: models, and the labels.

    Raises:
        SettingError: names the two.
    """
    for i, (one, first) in enumerate(tables):
        for other, second in tables[i + 1 :]:
            names = [{c.name for c in s.classes} for s in (first, second)]
            if first.slug != second.slug and names[0] == names[1] and len(names[0]) > 2:
                raise SettingError(
                    f"{one} and {other}",
                    f"number the same classes in two orders ({first.slug} and {second.slug})",
                    "Compare only what shares one order, or read the labels with `--option scheme=SLUG`.",
                )


# --- costs -----------------------------------------------------------------------------------------
def measure(contender: Contender, device: str) -> Cost:
    """The costs of a detector on a made-up pair; it is warm afterwards, so that times mean something."""
    bands = contender.card.inputs.bands or ("red", "green", "blue")[: max(3, contender.card.inputs.min_bands)]
    units = contender.card.inputs.units
    rng = np.random.default_rng(0)
    images = rng.uniform(20, 200, (2, len(bands), SIDE, SIDE)).astype(np.float32)
    images[1, :, 64:128, 64:128] += 40
    label = np.zeros((SIDE, SIDE), np.uint8)
    sample = LabelledPair("made up", images, label, 1.0, bands, units[0] if units else Unit.RGB255)
    sample = replace(sample, map=label) if contender.takes_map else sample
    contender.predict(sample, device)
    network = getattr(contender.system, "network", None)
    if network is not None:
        network.requires_grad_(False)  # the counter follows what could be trained, and inference has no graph
    with FlopCounterMode(display=False) as counter:
        contender.predict(sample, device)
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        contender.predict(sample, device)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveTensors() as memory:
            contender.predict(sample, device)
        peak = memory.peak
    flops = int(counter.get_total_flops())
    parameters = 0 if network is None else sum(p.numel() for p in network.parameters())
    return Cost(parameters, flops // 2, flops, int(peak))


def described(contender: Contender) -> dict[str, Any]:
    """A contender as JSON-ready facts."""
    card = contender.card
    assert contender.cost is not None
    return {
        "name": contender.name,
        **contender.selection(),
        "title": card.title,
        "summary": card.summary,
        "learned": contender.weights != "none",
        "takes_map": contender.takes_map,
        "date_order": None if card.date_order is None else str(card.date_order),
        "gsd_range": None if card.inputs.gsd_range is None else list(card.inputs.gsd_range),
        "licences": asdict(card.licences),
        "limits": list(card.limits),
        "cost": asdict(contender.cost),
    }
