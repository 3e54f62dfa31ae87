"""What is decided once, before the first tile: state, threshold, precision, plan, batch; kept on disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse._version import __version__
from terralapse.engine import memory
from terralapse.engine.parts import load_record
from terralapse.engine.plan import ScenePlan, Seams, plan_scene
from terralapse.engine.runner import (
    Precision,
    Runner,
    TorchRunner,
    bytes_per_pixel,
    choose_precision,
    steady_classes,
    weights_digest,
)
from terralapse.engine.runtimes import PACKAGES, Engine, choose_engine
from terralapse.engine.sample import sample_of
from terralapse.errors import ResumeMismatchError, SettingError
from terralapse.grid.pair import REMOTE_READERS, Pair, PairSample
from terralapse.grid.scene import Window
from terralapse.tasks.change import ChangeDetector

Progress = Callable[[str, int, int], None]

FORMAT = 1  # of the records on disk: runs of another format are not resumed
TILE_MEMORY = 1536 * memory.MIB  # of the network; the process then stays 1.5 GiB above its libraries
GPU_MEMORY = 4096 * memory.MIB  # the same on a GPU, whose memory is its own
HELD = 4  # copies of a tile's pixels that are held for each that is computed: read ahead, put together
THREADS_GAIN = 0.4  # n threads on one tile are n ** 0.4 times as fast as one: 1.3 for two, measured
HELD_PLANES = 8  # copies of a tile's planes of classes, float32: computed, waiting to be stored, and sums
LOOKED_AT = 768  # side of the tile, at most, that the memory of a network is measured on
MANY_TILES = 24  # of that side in a scene, from which on the measurement pays
BATCH_PIXELS = 1 << 20  # small tiles are batched up to this many pixels


def check_settings(threshold: float | None, tile: int | None, batch: int | None, threads: int | None) -> None:
    """Refuses numbers that mean nothing, before anything is read.

    Raises:
        SettingError: names the setting.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise SettingError(
            f"threshold {threshold:g}", "lies outside of 0 to 1", "Give a probability, e.g. 0.5."
        )
    for name, value in (("tile", tile), ("batch", batch), ("threads", threads)):
        if value is not None and value < 1:
            raise SettingError(f"{name} {value}", "is not positive", "Leave it out to have it chosen.")


def identity_of(detector: ChangeDetector, pair: Pair, asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that decides the bytes of the result, besides the machine."""
    return {
        "format": FORMAT,
        "version": __version__,
        "pair": json.loads(json.dumps(pair.fingerprint(), default=str)),
        "shape": list(pair.shape),
        "grid": [list(pair.geobox.affine[:6]), str(pair.geobox.crs)],
        "bands": [band.name for band in pair.bands],
        "card": detector.card.slug,
        "weights": weights_digest(detector),
        "asked": asked,
    }


def earlier(folder: Path, identity: str) -> dict[str, Any] | None:
    """The record of an interrupted run in `folder`; None when there is none.

    Raises:
        ResumeMismatchError: it was another run.
    """
    record = load_record(folder, "plan")
    if record is not None and record.get("identity") != identity:
        raise ResumeMismatchError(
            folder,
            "holds a half-finished run of other inputs, weights or settings",
            "Give what that run was given, or run without --resume to start afresh.",
        )
    return record


def prepare(
    detector: ChangeDetector,
    pair: Pair,
    asked: dict[str, Any],
    device: torch.device,
    threads: int,
    report: Progress,
) -> dict[str, Any]:
    """What is decided once, as it is kept on disk: state, threshold, precision, plan, engine, batch.

    The plan is that of torch whichever engine computes it, so that engines are compared on the same tiles.
    `asked` has `classes` where maps of classes are wanted.
    """
    rule = detector.class_maps if asked.get("classes") else None
    started = time.perf_counter()
    looking = REMOTE_READERS if pair.remote else min(4, threads)  # nothing else runs yet
    sample = sample_of(pair, looking, report)
    state: dict[str, Any] = {}
    precision, per_pixel = Precision("fp32", "nothing to compute", {}), 1.0
    engine = Engine("torch", "nothing to compute", {})
    probe: np.ndarray | None = None
    if sample.windows:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            state = json.loads(json.dumps(detector.fit(sample)))  # as a resumed run will read it
    threshold = _threshold(asked["threshold"], state, detector)
    if sample.windows:
        probe = _probe(sample, detector)
        wanted = asked["precision"]
        if wanted == "auto" and asked["engine"] in PACKAGES:
            wanted = "fp32"  # the only one that these engines compute in
        precision = choose_precision(wanted, detector, state, device, probe, detector.halo, threshold)
        if rule is not None and wanted == "auto" and precision.name == "bf16":
            precision = steady_classes(precision, detector, state, device, probe, rule)
        eager = TorchRunner(detector, state, device, precision.name, classes=rule is not None)
        per_pixel = _working_memory(eager, probe, pair.shape, detector.multiple, _tile_memory(device))
    needs = per_pixel + HELD * 8 * len(pair.bands)
    if rule is not None:
        needs += HELD_PLANES * 4 * rule.planes
    plan, workers = cut(pair.shape, detector, asked["tile"], needs, threads, device)
    if probe is not None:
        engine = choose_engine(
            asked["engine"],
            detector,
            state,
            device,
            precision,
            probe,
            threshold,
            threads,
            plan.computed_pixels(),
            classes=rule is not None,
        )
    if engine.name in PACKAGES:
        workers = 1  # these bring their own threads
    first = plan.tile(0, 0).read
    area = first.height * first.width
    room = min(BATCH_PIXELS // area, int(_tile_memory(device) / (workers * needs * area)))
    return {
        "state": state,
        "threshold": threshold,
        "precision": precision.as_dict(),
        "engine": engine.as_dict(),
        "plan": plan.as_dict(),
        "workers": workers,
        "batch": asked["batch"] or max(1, min(room, 64)),
        "sample_fraction": sample.fraction,
        "fit_seconds": time.perf_counter() - started,
    }


def cut(
    shape: tuple[int, int],
    detector: ChangeDetector,
    tile: int | None,
    bytes_per_pixel: float,
    threads: int,
    device: torch.device,
) -> tuple[ScenePlan, int]:
    """The plan, and how many tiles are computed side by side: as many as there are threads, unless so many
    tiles would have to be so small that the repeated halos cost more than is gained."""
    seams = Seams.EXACT if getattr(detector, "exact", True) else Seams.BLEND
    room = _tile_memory(device)
    best: tuple[float, ScenePlan, int] | None = None
    for workers in _counts(threads) if device.type == "cpu" else (1,):
        plan = plan_scene(
            shape,
            halo=detector.halo,
            multiple=detector.multiple,
            seams=seams,
            tile=tile,
            bytes_per_pixel=bytes_per_pixel,
            memory=room // workers,
        )
        read = plan.tile(0, 0).read
        fits = read.height * read.width * bytes_per_pixel * workers <= room
        if best is not None and not (fits and workers <= plan.rows * plan.cols):
            continue
        seconds = plan.computed_pixels() / (workers * (threads / workers) ** THREADS_GAIN)
        if best is None or seconds < best[0]:
            best = seconds, plan, workers
    assert best is not None  # one tile at a time is always taken
    return best[1], best[2]


def _counts(threads: int) -> list[int]:
    """1, 2, 4 ... and `threads` itself."""
    return sorted({threads, *(1 << i for i in range(threads.bit_length()))})


def _threshold(asked: float | None, state: dict[str, Any], detector: ChangeDetector) -> float:
    for found in (asked, state.get("threshold"), detector.card.threshold):
        if found is not None:
            return float(found)
    return 0.5


def _probe(sample: PairSample, detector: ChangeDetector) -> np.ndarray:
    """A window [1, 2, C, side, side] to measure the network on: around the fullest block of the sample, and
    of those the one nearest to the middle, so that it lies within the scene where it can."""
    middle = len(sample.windows) // 2
    valid = [int(block.valid.sum()) for block in sample]
    centre = sample.windows[max(range(len(valid)), key=lambda i: (valid[i], -abs(i - middle)))]
    multiple = detector.multiple
    halo = -(-detector.halo // multiple) * multiple
    side = -(-max(256, 3 * halo) // multiple) * multiple + 2 * halo
    row, col = (centre.row // multiple) * multiple - halo, (centre.col // multiple) * multiple - halo
    return np.ascontiguousarray(sample.pair.read(Window(row, col, side, side)).images[None])


def _working_memory(
    run: Runner, probe: np.ndarray, shape: tuple[int, int], multiple: int, room: int
) -> float:
    """Bytes for each pixel of a tile; some of the probe is masked, which can take a network more.

    A network that computes large tiles piece by piece takes less for each pixel of them: a scene of many
    tiles is worth another look, on a tile about as large as its own will be.
    """
    masked = probe.copy()
    masked[..., : probe.shape[-2] // 8, :] = np.nan
    found = bytes_per_pixel(run, masked)
    side = min(LOOKED_AT, int((room / found) ** 0.5)) // multiple * multiple
    if side < 1.5 * max(probe.shape[-2:]) or MANY_TILES * side**2 > shape[0] * shape[1]:
        return found
    more = [(0, 0)] * 3 + [(0, max(0, side - now)) for now in masked.shape[-2:]]
    return bytes_per_pixel(run, np.pad(masked, more, mode="wrap"), warm=True)


def _tile_memory(device: torch.device) -> int:
    """Bytes that tiles may take on the device that computes them."""
    if device.type == "cuda":
        return min(GPU_MEMORY, int(0.4 * torch.cuda.mem_get_info(device)[0]))
    return memory.budget(TILE_MEMORY)


def reader_count(threads: int, *, remote: bool = False) -> int:
    """Threads that read while the network runs. For a server they mostly wait. From a local disk half as many
    as compute are enough, four at most: each thread decodes into a cache of its own, and blocks on which the
    tiles of two threads lie are decoded twice."""
    if remote:
        return REMOTE_READERS
    return max(1, min(4, threads // 2, (os.cpu_count() or 1) // 2))
