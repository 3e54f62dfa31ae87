"""One audited protocol for comparing detectors of change: everything is chosen first, then the test split is
gone through once, and each sample that is read goes to every model and through every perturbation."""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from terralapse._version import __version__
from terralapse.data.catalogue import DATASETS, open_dataset
from terralapse.data.pairs import IGNORE
from terralapse.engine.bench_log import Ledger, Openings, RunLog, sample_digest
from terralapse.engine.bench_models import (
    TASKS,
    Contender,
    Sample,
    contenders,
    described,
    measure,
    together,
)
from terralapse.engine.bench_scores import Tally, paired_tests
from terralapse.engine.evaluate import OBJECT_SIZES, OUTLINE_TOLERANCE
from terralapse.engine.runner import choose_device, torch_settings
from terralapse.engine.score import cut_sample
from terralapse.engine.sources import reader_options
from terralapse.errors import SettingError
from terralapse.labels import scheme
from terralapse.tasks.measures import BINS, ChangeMeasure
from terralapse.tasks.robustness import PERTURBATIONS, Perturbation, perturb

Progress = Callable[[str, int, int], None]
WHOLE = "none"  # what the command line calls a folder that is the split itself


@dataclass(frozen=True)
class BenchSettings:
    """What decides the result of a benchmark of change.

    Args:
        data: a name of the catalogue whose task is change or semantic change.
        root: the folder of the data set.
        models: slugs, or `slug=file`.
        split: the test split; `none` where `root` itself is the split.
        val_split: where thresholds are chosen with `threshold="val"`.
        threshold: `card`: as each card states; `val`: chosen for each model on `val_split`.
        options: of the reader (`scheme` by slug, `gsd`, ...).
        tile: side of the tiles of the second mode, in pixels.
        limit: only the first samples of each split, for a quick look.
        device, threads: where and on how many threads of the CPU networks run.
        samples, seed: of the bootstrap; the seed also decides the perturbations.
        perturbations: slugs; all by default.
    """

    data: str
    root: Path
    models: tuple[str, ...]
    split: str = "test"
    val_split: str = "val"
    threshold: Literal["card", "val"] = "card"
    options: Mapping[str, Any] = field(default_factory=dict)
    tile: int = 256
    limit: int | None = None
    device: str = "cpu"
    threads: int | None = None
    samples: int = 2000
    seed: int = 0
    perturbations: tuple[str, ...] = tuple(p.slug for p in PERTURBATIONS)

    def __post_init__(self) -> None:
        if self.threshold not in ("card", "val"):
            raise SettingError(
                f"threshold {self.threshold}", "is neither card nor val", "Choose one of them."
            )
        if self.data in DATASETS and DATASETS[self.data].task not in TASKS:
            known = ", ".join(sorted(n for n, e in DATASETS.items() if e.task in TASKS))
            raise SettingError(
                f"data={self.data}",
                f"its task is {DATASETS[self.data].task}, and change is compared here",
                f"Choose from {known}.",
            )
        if self.threshold == "val" and self.val_split == self.split:
            raise SettingError(
                f"val-split {self.val_split}", "is the test split", "Choose thresholds on another split."
            )
        for name, least in (("tile", 16), ("limit", 1), ("threads", 1), ("samples", 100)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"{name} {value}", "is too small", f"Give {least} or more.")


def run_bench(
    settings: BenchSettings,
    log: RunLog,
    *,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Runs a benchmark and returns its result, JSON-ready, with the counts that everything follows from.

    Args:
        settings: see there.
        log: gets every step.
        ledger: of openings of test splits; by default that of the user's cache.
        progress: called with a stage, what is done and what there is to do.
        say: called with a sentence about each decision.

    Raises:
        SettingError: models and data do not belong together, or the split holds nothing.
        ModelInputError: a model cannot take these images.
        FileMissingError and others: of the reader and of the weights.
        OutputNotWritableError: the ledger cannot be written; the test split is then not opened.
    """
    tell, report = say or (lambda _: None), progress or (lambda _s, _d, _t: None)
    device = str(choose_device(settings.device))
    run, started = uuid.uuid4().hex[:12], datetime.now(UTC)
    with torch_settings(settings.threads) as threads:
        log.add("started", run=run, terralapse=__version__, settings=_plain(settings), versions=_versions())
        models = contenders(settings.models, device)
        for number, model in enumerate(models):
            report("Measuring costs", number, len(models))
            model.cost = measure(model, device)
        if settings.threshold == "val":
            _choose_thresholds(settings, models, log, device, report)
        for model in models:
            log.add("model frozen", **model.selection())
            where = (
                "from each image" if model.threshold is None else f"{model.threshold:.2f} ({model.source})"
            )
            tell(f"{model.name}: threshold {where}")
        tested = _test(settings, models, log, ledger or Ledger(), run, device, report)
    tell(f"The test split was read once: {len(tested.names)} images.")
    return _result(settings, models, tested, run, started, device, threads)


# --- validation ------------------------------------------------------------------------------------
def _choose_thresholds(
    settings: BenchSettings, models: list[Contender], log: RunLog, device: str, report: Progress
) -> None:
    """The threshold of the best F1 on the validation split, in steps of 0.005, for every model alike."""
    dataset = _opened(settings, settings.val_split)
    log.add("validation split opened", split=settings.val_split, title=dataset.title, samples=len(dataset))
    sums = {
        m.name: {"histogram": np.zeros((2, BINS), np.int64), "probability": np.zeros((2, BINS))}
        for m in models
    }
    total = _count(dataset, settings.limit)
    for index in range(total):
        sample = dataset[index]
        for place, model in enumerate(models):
            report("Choosing thresholds", index * len(models) + place, total * len(models))
            if index == 0:
                model.check(sample)
            found = model.predict(sample, device)
            counted = found.known & (sample.label != IGNORE)
            p, y = found.probability[counted], sample.label[counted].astype(np.int64)
            place_of = y * BINS + np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
            sums[model.name]["histogram"] += np.bincount(place_of, minlength=2 * BINS).reshape(2, BINS)
    for model in models:
        scores = ChangeMeasure().scores(sums[model.name])["binary"]
        model.threshold, model.source = float(scores["threshold"]), "val"
        log.add("threshold chosen", model=model.name, threshold=model.threshold, validation_f1=scores["f1"])


# --- the one pass ----------------------------------------------------------------------------------
@dataclass
class _Tested:
    title: str
    scheme: str
    names: list[str]
    gsd: float
    sizes: list[tuple[int, int]]
    bands: tuple[str, ...]
    unit: str
    available: int
    tallies: dict[str, Tally]
    earlier: int
    digests: list[str]
    seconds: float


def _test(
    settings: BenchSettings,
    models: list[Contender],
    log: RunLog,
    ledger: Ledger,
    run: str,
    device: str,
    report: Progress,
) -> _Tested:
    """Opens the test split, goes through it once, closes it."""
    place = {
        "data": settings.data,
        "split": settings.split,
        "root": str(settings.root.resolve()),
        "options": {k: str(v) for k, v in sorted(settings.options.items()) if k != "title"},
    }
    started, digests = time.perf_counter(), []
    ledger.open(run, place)
    try:
        log.add("test split opened", **place, limit=settings.limit)
        with Openings(settings.root) as files:
            dataset = _opened(settings, settings.split)
            _same_classes(models, dataset)
            tested = _pass(settings, models, dataset, log, device, report, digests)
        log.add("test split closed", samples=len(digests), files=files.files())
    finally:
        ledger.close(run, digests)
    tested.earlier = ledger.earlier(run, place, digests)
    tested.seconds = time.perf_counter() - started
    return tested


def _pass(
    settings: BenchSettings,
    models: list[Contender],
    dataset: Any,
    log: RunLog,
    device: str,
    report: Progress,
    digests: list[str],
) -> _Tested:
    chosen = [p for p in PERTURBATIONS if p.slug in settings.perturbations]
    tallies = {m.name: Tally() for m in models}
    total = _count(dataset, settings.limit)
    applied = sum(_applies(how, model) for how in chosen for model in models)
    steps, done = total * (len(models) + applied), 0
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    gsds: set[float] = set()
    first: Any = None
    for index in range(total):
        sample = dataset[index]
        if index == 0:
            first = sample
            for model in models:
                model.check(sample)
        digests.append(sample_digest(sample))
        log.add("sample read", sample=sample.name, sha256=digests[-1])
        names.append(sample.name)
        sizes.append(sample.label.shape)
        gsds.add(float(sample.gsd))
        for model in models:
            report("Scoring", done, steps)
            _undisturbed(model, sample, tallies[model.name], settings.tile, device)
            done += 1
        tasks = [(model, how) for how in chosen for model in models if _applies(how, model)]
        for (model, how), (change, known) in zip(
            tasks, _disturbed(sample, tasks, settings, device), strict=True
        ):
            tallies[model.name].disturb(how.slug, sample.label, change, known)
            report("Scoring", done, steps)
            done += 1
    return _Tested(
        title=dataset.title,
        scheme=dataset.scheme.slug,
        names=names,
        gsd=gsds.pop() if len(gsds) == 1 else float("nan"),
        sizes=sizes,
        bands=tuple(first.bands),
        unit=str(first.unit),
        available=len(dataset),
        tallies=tallies,
        earlier=0,
        digests=digests,
        seconds=0.0,
    )


def _undisturbed(model: Contender, sample: Sample, tally: Tally, tile: int, device: str) -> None:
    """The whole image, and its tiles put together again; an image that is no larger than a tile is one."""
    found = model.predict(sample, device)
    tally.speeds.append(sample.label.size / 1e6 / max(found.seconds, 1e-9))
    tally.fit_seconds.append(found.fit_seconds)
    tally.whole.add(sample.name, sample.label, found.probability, found.change, found.known)
    height, width = sample.label.shape
    if max(height, width) <= tile:
        tally.tiled.add(sample.name, sample.label, found.probability, found.change, found.known)
        return
    probability, change = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)
    known = np.zeros((height, width), bool)
    for row in range(0, height, tile):
        for col in range(0, width, tile):
            area = (slice(row, row + tile), slice(col, col + tile))
            part = cut_sample(sample, row, col, tile)
            if not np.isfinite(part.images).all(axis=(0, 1)).any():
                continue  # nothing to fit on, nothing to count
            piece = model.predict(part, device)
            probability[area], change[area], known[area] = piece.probability, piece.change, piece.known
    tally.tiled.add(sample.name, sample.label, probability, change, known)


def _disturbed(
    sample: Sample, tasks: Sequence[tuple[Contender, Perturbation]], settings: BenchSettings, device: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The map of change and where it is known, for each task in order. Nothing is timed here: on the CPU so
    many tasks run at a time as there are threads, each on one."""

    def run(task: tuple[Contender, Perturbation]) -> tuple[np.ndarray, np.ndarray]:
        model, how = task
        images = perturb(sample.images, sample.unit, how, sample.name, settings.seed)
        found = model.predict(replace(sample, images=images), device)
        return found.change, found.known

    workers = torch.get_num_threads() if device == "cpu" else 1
    if workers == 1 or not tasks:
        yield from map(run, tasks)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(run, tasks)


def _applies(how: Perturbation, model: Contender) -> bool:
    """A map of the earlier date cannot be exchanged with the dates."""
    return how.apply is not None or not model.takes_map


def _opened(settings: BenchSettings, split: str) -> Any:
    dataset = open_dataset(
        settings.data, settings.root, None if split == WHOLE else split, **reader_options(settings.options)
    )
    if len(dataset) == 0:
        raise SettingError(dataset.title, "has no labelled samples", "Check the folder and the split.")
    return dataset


def _count(dataset: Any, limit: int | None) -> int:
    return len(dataset) if limit is None else min(limit, len(dataset))


def _same_classes(models: list[Contender], dataset: Any) -> None:
    tables = [(m.name, scheme(m.card.classes)) for m in models if m.card.classes]
    together([*tables, (f"the labels of {dataset.title}", dataset.scheme)])


# --- the result ------------------------------------------------------------------------------------
def _result(
    settings: BenchSettings,
    models: list[Contender],
    tested: _Tested,
    run: str,
    started: datetime,
    device: str,
    threads: int,
) -> dict[str, Any]:
    chosen = [p for p in PERTURBATIONS if p.slug in settings.perturbations]
    one_tile = all(max(size) <= settings.tile for size in tested.sizes)
    return {
        "terralapse": __version__,
        "kind": "change",
        "run": run,
        "started": started.isoformat(timespec="seconds"),
        "settings": _plain(settings),
        "data": {
            "name": settings.data,
            "split": settings.split,
            "title": tested.title,
            "licence": DATASETS[settings.data].licence,
            "notes": DATASETS[settings.data].notes,
            "classes": tested.scheme,
            "images": len(tested.names),
            "available": tested.available,
            "limited": len(tested.names) < tested.available,
            "bands": list(tested.bands),
            "unit": tested.unit,
            "gsd": None if tested.gsd != tested.gsd else tested.gsd,
            "changed_pixels": int(
                np.sum([c[1].sum() for c in next(iter(tested.tallies.values())).whole.counts])
            ),
            "pixels": int(np.sum([h * w for h, w in tested.sizes])),
        },
        "opened_before": tested.earlier,
        "protocol": {
            "whole_and_tiles_coincide": one_tile,
            "tile": settings.tile,
            "outline_tolerance_pixels": OUTLINE_TOLERANCE,
            "object_sizes_pixels": list(OBJECT_SIZES),
            "threshold": settings.threshold,
            "threshold_split": settings.val_split if settings.threshold == "val" else None,
            "bootstrap_samples": settings.samples,
            "seed": settings.seed,
            "device": device,
            "threads": threads,
            "test_seconds": round(tested.seconds, 2),
            "versions": _versions(),
        },
        "perturbations": [
            {
                "slug": p.slug,
                "title": p.title,
                "group": p.group,
                "amount": p.amount,
                "definition": p.definition,
            }
            for p in chosen
        ],
        "models": [_scored(m, tested, settings, [p.slug for p in chosen]) for m in models],
        "tests": paired_tests(tested.tallies, settings.samples, settings.seed),
    }


def _scored(model: Contender, tested: _Tested, settings: BenchSettings, slugs: list[str]) -> dict[str, Any]:
    tally = tested.tallies[model.name]
    return {
        **described(model),
        "megapixels_a_second": float(np.median(tally.speeds)),
        "fit_seconds_an_image": float(np.median(tally.fit_seconds)),
        "whole": tally.whole.summary(tested.gsd, settings.samples, settings.seed),
        "tiled": tally.tiled.summary(tested.gsd, settings.samples, settings.seed),
        "robustness": tally.robustness(slugs, settings.samples, settings.seed),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


def _plain(settings: BenchSettings) -> dict[str, Any]:
    """The settings as JSON-ready values."""
    plain = {k: getattr(settings, k) for k in settings.__dataclass_fields__}
    lists = {k: list(v) for k, v in plain.items() if isinstance(v, tuple)}
    options = {
        k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in settings.options.items()
    }
    return plain | lists | {"root": str(settings.root), "options": options}
