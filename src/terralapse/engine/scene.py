"""From an aligned pair and a detector to rasters on disk, in memory that the scene does not decide.

Three stages overlap: threads read the pair, a crew of threads runs the network, each on a tile of its own,
and another thread stitches, quantises and stores. At the end the parts become cloud-optimised GeoTIFFs.
Whatever the tile, the batch and the number of threads, a probability moves by less than 1e-4.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse.engine import memory
from terralapse.engine.crew import Crew
from terralapse.engine.output import require_space
from terralapse.engine.parts import (
    CLASS_LAYERS,
    LAYERS,
    PartStore,
    PartWriter,
    clear_records,
    load_record,
    save_record,
)
from terralapse.engine.plan import ScenePlan, Seams, Tile, digest
from terralapse.engine.prepare import (
    Progress,
    check_settings,
    earlier,
    identity_of,
    prepare,
    reader_count,
)
from terralapse.engine.runner import Backoff, choose_device, torch_settings
from terralapse.engine.runtimes import PACKAGES, runner_of
from terralapse.engine.sample import sample_of
from terralapse.engine.stitch import NODATA, Blend, Crop, Piece
from terralapse.engine.stitch_classes import BlendClasses, CropClasses
from terralapse.engine.tiles import TileReader
from terralapse.grid.cog import write_cog
from terralapse.grid.pair import Pair, PairBlock
from terralapse.grid.scene import Window
from terralapse.labels import BINARY_CHANGE, VALIDITY, Reason
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.class_maps import ClassRule

__all__ = ["SceneResult", "predict_scene", "sample_of"]

Sink = Callable[[Piece], None]

REMOTE_AHEAD = 4  # tiles read before they are needed, at least, where reading is mostly waiting
WRITE_BEHIND = 3  # tiles computed but not yet stored

_Given = tuple[Tile, np.ndarray | None, np.ndarray]  # images, or None where nothing is valid; reason
_Computed = tuple[Tile, np.ndarray | None, np.ndarray]  # what the runner gives, or None likewise; reason


@dataclass(frozen=True)
class SceneResult:
    """What a run did. `as_dict` is the `scene` entry of `run.json`.

    Attributes:
        folder: holds `prob.tif`, `valid.tif`, `change.tif`, and the rasters of `classes`.
        threshold: probability from which a pixel counts as changed.
        state: what the detector's `fit` returned.
        valid_pixels, changed_pixels: counts over the scene; `reasons` splits all pixels by `Reason` name.
        plan, plan_hash: how the scene was cut; the hash covers inputs, detector, weights and settings too.
        tiles, tiles_skipped, tiles_resumed: all; without a valid pixel; already there when the run began.
            A tile that is taken up again by a resumed run counts once.
        batch, workers, threads, device, precision, engine: how it was computed; `workers` tiles or batches of
            tiles side by side, with `threads` shared among them.
        events: what went otherwise than planned (memory).
        seconds: `fit`, `predict` and `write` on the clock; `read`, `network` and `store` are the time that
            the stages of `predict` were busy, which overlap.
        peak_rss: bytes, of the process until now.
        classes: names of the maps of classes that were written, without their ending.
    """

    folder: Path
    threshold: float
    state: dict[str, Any]
    valid_pixels: int
    changed_pixels: int
    reasons: dict[str, int]
    plan: dict[str, Any]
    plan_hash: str
    tiles: int
    tiles_skipped: int
    tiles_resumed: int
    batch: int
    workers: int
    threads: int
    device: str
    precision: dict[str, Any]
    engine: dict[str, Any]
    sample_fraction: float
    events: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss: int = 0
    classes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the folder and the state, which stand elsewhere in `run.json`."""
        return {k: v for k, v in asdict(self).items() if k not in ("folder", "state")}


def predict_scene(
    detector: ChangeDetector,
    pair: Pair,
    folder: Path,
    *,
    threshold: float | None = None,
    tile: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    resume: bool = False,
    progress: Progress | None = None,
    sink: Sink | None = None,
) -> SceneResult:
    """Writes `prob.tif`, `valid.tif` and `change.tif` into `folder`.

    `prob.tif` is uint8: probability x 200, 255 nodata, scale 0.005. `change.tif` is uint8
    (`labels.BINARY_CHANGE`, 255 nodata) and equals `prob.tif * 0.005 >= threshold`. `valid.tif` is uint8
    (`labels.Reason`). A detector may say `exact = False` when no halo makes its tiles independent (attention
    over the image, normalisation by its content): its tiles are then blended over the halo.

    The same pass gives the maps of classes of a detector that knows some, as its `class_maps` says:
    `classes_before.tif` and `classes_after.tif`, or `damage.tif`, uint8 in the scheme of its card, 255 where
    nothing is known. Graphs (`openvino`, `onnx`) hold change alone: these engines make no such maps.

    Args:
        detector: with its weights.
        pair: read block by block, from several threads.
        folder: exists. What is needed to resume is kept in `folder/.work`.
        threshold: 0 to 1; None takes the state's, then the card's.
        tile: side of the core of a tile in pixels; None has it chosen by memory.
        batch: tiles at once, at most.
        threads: of the network and of reading; None for as many as torch uses.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: `auto`, `fp32`, `bf16`; see `terralapse.engine.runner.choose_precision`.
        engine: `auto`, `torch`, `compile`, `openvino`, `onnx`; see `terralapse.engine.runtimes`.
        resume: go on from what a run of the same inputs and settings left in `folder`.
        progress: called from this thread as `progress(stage, done, total)`; stages `fit` (windows), `predict`
            (pixels), `write` (rasters).
        sink: called with every finished piece, before it is quantised, from the storing thread.

    Raises:
        SettingError: a setting out of range, a device that is not there, an engine that cannot run the
            detector, or too little memory for a tile.
        MissingExtraError: the engine is not installed.
        ModelInputError: the detector cannot take the pair, or gave no probability for a valid pixel.
        ResumeMismatchError: `folder` holds a run of other inputs or settings.
        OutputNotWritableError: the disk is full, or not ours to write.
    """
    check_settings(threshold, tile, batch, threads)
    report = progress or (lambda _stage, _done, _total: None)
    asked = {
        "threshold": threshold,
        "tile": tile,
        "batch": batch,
        "device": device,
        "precision": precision,
        "engine": engine,
    }
    rule = None if engine in PACKAGES else detector.class_maps
    if rule is not None:  # what knows change alone is identified as ever
        asked["classes"] = True
    with torch_settings(threads) as used:
        where = choose_device(device)
        identity = digest(identity_of(detector, pair, asked))
        record = earlier(folder, identity) if resume else None
        if record is None:
            clear_records(folder)
            for name in CLASS_LAYERS:
                (folder / f"{name}.tif").unlink(missing_ok=True)
            require_space(folder, pair.shape[0] * pair.shape[1] // 2)
            record = prepare(detector, pair, asked, where, used, report) | {"identity": identity}
            save_record(folder, "plan", record)
        elif (finished := load_record(folder, "done")) is not None and _all_there(folder, finished):
            return SceneResult(folder=folder, state=record["state"], **finished)
        run = _Run(detector, pair, folder, record, where, used, report, sink, rule)
        with memory.big_blocks_stay():
            run.compute()
        result = run.write()
    save_record(folder, "done", result.as_dict())
    run.store.clear()
    return result


def _all_there(folder: Path, finished: dict[str, Any]) -> bool:
    return all((folder / f"{layer}.tif").is_file() for layer in (*LAYERS, *finished["classes"]))


# --- tile after tile -------------------------------------------------------------------------------
class _Run:
    """One pass over the scene."""

    def __init__(
        self,
        detector: ChangeDetector,
        pair: Pair,
        folder: Path,
        record: dict[str, Any],
        device: torch.device,
        threads: int,
        report: Progress,
        sink: Sink | None,
        rule: ClassRule | None,
    ) -> None:
        self.pair, self.folder, self.record, self.report, self.sink = pair, folder, record, report, sink
        self.detector, self.device, self.threads = detector, device, threads
        self.plan = ScenePlan.from_dict(record["plan"])
        self.threshold: float = record["threshold"]
        self.rule = rule
        self.rasters = LAYERS if rule is None else (*LAYERS, *rule.rasters)
        self.store = PartStore(folder, self.plan, rule)
        self.exact = self.plan.seams is Seams.EXACT
        self.workers = min(record["workers"], threads)
        runner = runner_of(
            record["engine"]["name"],
            detector,
            record["state"],
            device,
            record["precision"]["name"],
            threads,
            classes=rule is not None,
        )
        self.predict = Backoff(runner, record["batch"], self.plan.halo, self.plan.multiple, self.exact)
        self.skipped = self.resumed = 0
        self.seconds = {"fit": record["fit_seconds"]}
        self.busy = {"read": 0.0, "network": 0.0, "store": 0.0}

    def compute(self) -> None:
        """Computes and stores the parts that are missing."""
        started = time.perf_counter()
        done = self.store.done()
        there = [part for part in self.plan.parts() if part.index in done]
        self.resumed = sum((p.row1 - p.row0) * (p.col1 - p.col0) for p in there)
        pixels = sum(p.window.height * p.window.width for p in there)
        total = self.plan.height * self.plan.width
        self.report("predict", pixels, total)
        torch.set_num_threads(max(1, self.threads // self.workers))
        with (
            ThreadPoolExecutor(
                reader_count(self.threads, remote=self.pair.remote), thread_name_prefix="read"
            ) as readers,
            Crew(self.workers) as crew,
            _Behind(WRITE_BEHIND) as storing,
        ):
            for lane in range(self.plan.lanes):
                for new in self._lane(lane, done, readers, crew, storing):
                    pixels += new
                    self.report("predict", pixels, total)
        self.seconds["predict"] = time.perf_counter() - started

    def _lane(
        self, lane: int, done: set[int], readers: ThreadPoolExecutor, crew: Crew, storing: _Behind
    ) -> Iterator[int]:
        """Computes the missing parts of a lane; yields the number of new pixels, tile after tile."""
        todo = [part for part in self.plan.parts(lane) if part.index not in done]
        if not todo:
            return
        wanted = {row for part in todo for row in range(part.row0, part.row1)}
        rows = set(wanted)
        if not self.exact:  # a row is final only with the rows above and below it
            rows = {r for row in wanted for r in (row - 1, row, row + 1) if 0 <= r < self.plan.rows}
        stitch = Crop() if self.exact else Blend(self.plan, lane, min(rows))
        writer = PartWriter(self.store, todo, self.threshold, self.detector.card.slug, self.sink)
        own = range(*self.plan.lane(lane))
        decide = None
        if self.rule is not None:
            decide = CropClasses(self.rule) if self.exact else BlendClasses(self.plan, lane, self.rule)

        def finish(pieces: Iterator[Piece]) -> None:
            since = time.perf_counter()
            for piece in pieces:
                writer.take(piece)
            self.busy["store"] += time.perf_counter() - since

        def add(tile: Tile, found: np.ndarray | None, reason: np.ndarray) -> None:
            if decide is None:
                finish(stitch.add(tile, found, reason))
                return
            finish(stitch.add(tile, None if found is None else found[0], reason))
            since = time.perf_counter()
            for piece in decide.add(tile, None if found is None else found[1:]):
                writer.take_classes(piece)
            self.busy["store"] += time.perf_counter() - since

        for tile, found, reason in self._predicted(sorted(rows), lane, readers, crew):
            storing.submit(partial(add, tile, found, reason))
            if tile.row in wanted and tile.col in own:
                self.skipped += found is None
                yield tile.core.height * tile.core.width
        storing.submit(lambda: finish(stitch.end_lane()))
        storing.wait()

    def _predicted(
        self, rows: list[int], lane: int, readers: ThreadPoolExecutor, crew: Crew
    ) -> Iterator[_Computed]:
        """Tiles with what the runner gives, in order, computed batch by batch and side by side. A batch never
        reaches over a row, so that a resumed run computes the same batches."""
        flying: deque[tuple[list[_Given], Future[tuple[list[np.ndarray], float]]]] = deque()
        batch: list[_Given] = []
        for tile, block in self._read(rows, lane, readers):
            core = Window(self.plan.halo, self.plan.halo, tile.core.height, tile.core.width).slices
            images = block.images if (block.reason[core] == Reason.VALID).any() else None
            if batch and not _belong(batch, tile, images, self.predict.batch):
                flying.append((batch, crew.submit(partial(self._network, batch))))
                batch = []
            batch.append((tile, images, block.reason))
            while len(flying) > self.workers + 1:  # one more than can be computed, so that none waits
                yield from self._landed(*flying.popleft())
        flying.append((batch, crew.submit(partial(self._network, batch))))
        while flying:
            yield from self._landed(*flying.popleft())

    def _network(self, batch: list[_Given]) -> tuple[list[np.ndarray], float]:
        """What the runner gives for those tiles of a batch that have any valid pixel, and the seconds."""
        since = time.perf_counter()
        tiles = [images for _, images, _ in batch if images is not None]
        return self.predict(tiles), time.perf_counter() - since

    def _landed(
        self, batch: list[_Given], future: Future[tuple[list[np.ndarray], float]]
    ) -> Iterator[_Computed]:
        probabilities, seconds = future.result()
        self.busy["network"] += seconds
        found = iter(probabilities)
        for tile, images, reason in batch:
            yield tile, None if images is None else next(found), reason

    def _read(
        self, rows: list[int], lane: int, readers: ThreadPoolExecutor
    ) -> Iterator[tuple[Tile, PairBlock]]:
        """Tiles with their pixels, read ahead."""
        ahead = max(self.workers, REMOTE_AHEAD if self.pair.remote else 0)
        tiles = TileReader(self.plan, self.pair, rows, lane, readers, ahead)
        yield from tiles
        self.busy["read"] += tiles.seconds

    # --- after the last tile -----------------------------------------------------------------------
    def write(self) -> SceneResult:
        """The parts as rasters, and what was done."""
        started = time.perf_counter()
        tags = {
            "TERRALAPSE_MODEL": self.detector.card.slug,
            "TERRALAPSE_PLAN": self._hash(),
            "TERRALAPSE_THRESHOLD": f"{self.threshold:.6g}",
            "TERRALAPSE_PRECISION": self.record["precision"]["name"],
            "TERRALAPSE_ENGINE": self.record["engine"]["name"],
            "TERRALAPSE_SEAMS": str(self.plan.seams),
        }
        count = len(self.rasters)
        self.report("write", 0, count)
        # Two at a time, for a draft is written by one thread; the drafts of all would fill GDAL's cache.
        with ThreadPoolExecutor(min(2, self.threads), thread_name_prefix="write") as writers:
            written = [writers.submit(self._write, layer, tags) for layer in self.rasters]
            try:
                for number, future in enumerate(as_completed(written)):
                    future.result()
                    self.report("write", number + 1, count)
            except BaseException:
                writers.shutdown(wait=True, cancel_futures=True)
                raise
        self.seconds["write"] = time.perf_counter() - started
        return self._result()

    def _write(self, layer: str, tags: dict[str, str]) -> None:
        probability = layer == "prob"
        scheme = {"valid": VALIDITY, "change": BINARY_CHANGE}.get(layer)
        if self.rule is not None and layer in self.rule.rasters:
            scheme = self.rule.scheme
        write_cog(
            self.store.windows(layer, self.threshold),
            self.folder / f"{layer}.tif",
            geobox=self.pair.geobox,
            kind="continuous" if probability else "class",
            dtype="uint8",
            nodata=None if layer == "valid" else NODATA,
            scheme=scheme,
            scale=0.005 if probability else 1.0,
            descriptions=[_DESCRIPTIONS[layer]],
            tags=tags,
            threads=self.threads,
        )

    def _hash(self) -> str:
        """Covers inputs, weights, settings, state and cut, but nothing that was measured."""
        kept = {k: self.record[k] for k in ("identity", "state", "threshold", "plan")}
        return digest(kept | {name: self.record[name]["name"] for name in ("precision", "engine")})

    def _result(self) -> SceneResult:
        counts = self.store.counts()
        seconds = {**self.seconds, **self.busy}
        return SceneResult(
            folder=self.folder,
            threshold=self.threshold,
            state=self.record["state"],
            valid_pixels=counts.valid,
            changed_pixels=counts.changed,
            reasons={
                reason.name.lower(): counts.reasons[reason] for reason in Reason if counts.reasons[reason]
            },
            plan=self.plan.as_dict(),
            plan_hash=self._hash(),
            tiles=self.plan.rows * self.plan.cols,
            tiles_skipped=self.skipped,
            tiles_resumed=self.resumed,
            batch=self.predict.batch,
            workers=self.workers,
            threads=self.threads,
            device=str(self.device),
            precision=self.record["precision"],
            engine=self.record["engine"],
            sample_fraction=self.record["sample_fraction"],
            events=self.predict.events,
            seconds={name: round(value, 3) for name, value in seconds.items()},
            peak_rss=memory.peak_rss(),
            classes=[] if self.rule is None else list(self.rule.rasters),
        )


def _belong(batch: list[_Given], tile: Tile, images: np.ndarray | None, most: int) -> bool:
    """Whether a tile may join a batch: same row, same shape, and there is room."""
    computed = [given for _, given, _ in batch if given is not None]
    alike = images is None or not computed or computed[0].shape == images.shape
    return alike and tile.row == batch[0][0].row and len(computed) < most and len(batch) < 4 * most


_DESCRIPTIONS = {
    "prob": "probability of change",
    "valid": "why a pixel is masked",
    "change": "change",
    "classes_before": "classes before",
    "classes_after": "classes after",
    "damage": "damage of buildings",
}


class _Behind:
    """One thread that does what it is given in order, with a bounded queue; its errors come back here."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._given: deque[Future[None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Hands over work; waits while the queue is full."""
        while len(self._given) >= self._most or (self._given and self._given[0].done()):
            self._given.popleft().result()
        self._given.append(self._pool.submit(work))

    def wait(self) -> None:
        """Returns when everything is done."""
        while self._given:
            self._given.popleft().result()

    def __enter__(self) -> _Behind:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
