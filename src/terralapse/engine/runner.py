"""Where a detector is called: the seam between the engine and whatever computes.

A `Runner` takes tiles as arrays and gives probabilities as arrays; it knows nothing of scenes. `TorchRunner`
calls a detector in this process. Another runtime is another class with the same call.
"""

from __future__ import annotations

import hashlib
import threading
import tracemalloc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from terralapse.engine.memory import MIB
from terralapse.errors import ModelInputError, SettingError
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.class_maps import ClassRule

SCRATCH = 2.2  # kernels' own buffers and gaps between blocks, measured: 1.9 to 2.5 times the tensors
INVARIANT = 1e-4  # by how much a probability may depend on the tile, the batch or the threads
MEAN_DIFFERENCE = 0.01  # bf16 against fp32, above which `auto` stays with fp32
SHARE_FLIPPED = 0.005  # pixels that change sides of the threshold, likewise


class Runner(Protocol):
    """Computes tiles.

    `images` float32 [B, 2, C, h, w], NaN where a date cannot be used; returns float32 [B, h, w], or
    [B, 1 + planes, h, w] from one that gives the planes of classes after the probability.

    Raises:
        MemoryError: the batch is too large for the device; nothing else is raised for that reason.
    """

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


class TorchRunner:
    """A detector in this process, in inference mode, on one device, in one precision; with `classes`, the
    planes of its classes follow the probability."""

    def __init__(
        self,
        detector: ChangeDetector,
        state: dict[str, Any],
        device: torch.device,
        precision: str,
        classes: bool = False,
    ) -> None:
        self.detector = detector.to(device)
        self.state, self.device, self.precision = state, device, precision
        self.rule = detector.class_maps if classes else None
        for network in networks(detector):
            network.eval()
            for layer in network.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    layer.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._predict(images)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise MemoryError(str(error)) from error
        except RuntimeError as error:
            if "DefaultCPUAllocator" in str(error):  # how torch says it on a CPU
                raise MemoryError(str(error)) from error
            raise

    def _predict(self, images: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(images)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), half:
            tensor = tensor.to(self.device, non_blocking=True)
            usable = ~tensor.isnan().any(dim=2)
            wanted = (len(images), *images.shape[-2:])
            if self.rule is None:
                return self._checked(self.detector.predict(tensor, usable, self.state), wanted)
            prob, planes = self.detector.predict_classes(tensor, usable, self.state)
            found = np.empty((len(images), 1 + self.rule.planes, *wanted[1:]), np.float32)
            found[:, 0] = self._checked(prob, wanted)
            found[:, 1:] = self._checked(planes, (len(images), self.rule.planes, *wanted[1:]))
            return found

    def _checked(self, given: torch.Tensor, wanted: tuple[int, ...]) -> np.ndarray:
        if given.shape != wanted:
            raise ModelInputError(
                self.detector.card.slug,
                f"returned {tuple(given.shape)} for tiles of {wanted}",
                "This is a fault of the system, not of the input.",
            )
        return given.float().cpu().numpy()


class Backoff:
    """Runs tiles in batches and, when memory does not suffice, in smaller ones.

    First the batch is halved; then, where seams are exact, the core of a tile is computed in 2 x 2, 4 x 4 ...
    pieces, each with its halo. What was learned holds for the tiles that follow. May be called from several
    threads.

    Args:
        run: computes a batch.
        batch: tiles at once, at most.
        halo, multiple: of the plan.
        divisible: whether a tile may be computed in pieces.
    """

    def __init__(self, run: Runner, batch: int, halo: int, multiple: int, divisible: bool) -> None:
        self.run, self.batch, self.halo, self.multiple, self.divisible = run, batch, halo, multiple, divisible
        self.pieces = 1  # along each side
        self.events: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, tiles: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What the runner gives, [h, w] or [planes, h, w], of tiles [2, C, h, w] of one shape; only cores
        count when seams are exact."""
        done: list[np.ndarray] = []
        while len(done) < len(tiles):
            batch, pieces = self.batch, self.pieces
            group = tiles[len(done) : len(done) + batch]
            try:
                done += self._group(group, pieces)
            except MemoryError as error:
                with self._lock:
                    if (batch, pieces) == (self.batch, self.pieces):  # else another thread has seen to it
                        self._shrink(len(group), group[0].shape[-2:], error)
        return done

    def _group(self, tiles: Sequence[np.ndarray], pieces: int) -> list[np.ndarray]:
        if pieces == 1:
            return list(self.run(tiles[0][None] if len(tiles) == 1 else np.stack(tiles)))
        return [self._in_pieces(tile, pieces) for tile in tiles]

    def _in_pieces(self, tile: np.ndarray, pieces: int) -> np.ndarray:
        height, width = tile.shape[-2:]
        prob: np.ndarray | None = None
        for y0, y1 in self._cuts(height, pieces):
            for x0, x1 in self._cuts(width, pieces):
                piece = tile[None, ..., y0 : y1 + 2 * self.halo, x0 : x1 + 2 * self.halo]
                found = self.run(np.ascontiguousarray(piece))[0]
                if prob is None:
                    prob = np.full((*found.shape[:-2], height, width), np.nan, np.float32)
                core = slice(self.halo, self.halo + y1 - y0), slice(self.halo, self.halo + x1 - x0)
                at = slice(self.halo + y0, self.halo + y1), slice(self.halo + x0, self.halo + x1)
                prob[..., *at] = found[..., *core]
        assert prob is not None  # a tile has a core
        return prob

    def _cuts(self, side: int, pieces: int) -> Iterator[tuple[int, int]]:
        core = side - 2 * self.halo
        step = -(-core // (pieces * self.multiple)) * self.multiple
        return ((start, min(start + step, core)) for start in range(0, core, step))

    def _shrink(self, group: int, shape: tuple[int, ...], error: MemoryError) -> None:
        if group > 1:
            self.batch = max(1, group // 2)
            self.events.append(f"out of memory: the batch was reduced to {self.batch}")
            return
        core = min(shape) - 2 * self.halo
        if not self.divisible or core // (2 * self.pieces) < max(self.multiple, 32):
            raise SettingError(
                f"a tile of {shape[0]} x {shape[1]} pixels",
                "needs more memory than there is",
                "Give a smaller --tile, close other programs, or use a machine with more memory.",
            ) from error
        self.batch, self.pieces = 1, 2 * self.pieces
        self.events.append(f"out of memory: each tile was computed in {self.pieces} x {self.pieces} pieces")


# --- what is known of a detector -------------------------------------------------------------------
def networks(detector: ChangeDetector) -> list[nn.Module]:
    """The networks that a detector holds; none for methods without weights."""
    if isinstance(detector, nn.Module):
        return [detector]
    return [value for value in vars(detector).values() if isinstance(value, nn.Module)]


def weights_digest(detector: ChangeDetector) -> str:
    """A hash of all weights, wherever they came from; empty for methods without."""
    found = hashlib.sha256()
    empty = True
    for network in networks(detector):
        for name, tensor in network.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            empty = False
    return "" if empty else found.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one, and the CPU otherwise.

    Raises:
        SettingError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingError(
            f"device {name}", "is not there or cannot be used", "Leave it out, or give --device cpu."
        ) from error
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware, so that it is faster."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public way to ask
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    return False


@dataclass(frozen=True)
class Precision:
    """What was chosen and why. `measured` holds the comparison of bf16 with fp32 on a window of the scene."""

    name: str
    why: str
    measured: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_precision(
    requested: str,
    detector: ChangeDetector,
    state: dict[str, Any],
    device: torch.device,
    probe: np.ndarray,
    halo: int,
    threshold: float,
) -> Precision:
    """Half precision where it is faster and does not change what the run says.

    `auto` computes a window of the scene both ways and takes bf16 when the probabilities agree on average,
    nearly all pixels stay on their side of the threshold, and a pixel's probability in bf16 does not depend
    on the tile or the batch that it is computed in.

    Args:
        requested: `auto`, `fp32` or `bf16`.
        probe: float32 [1, 2, C, h, w], a window of the scene with sides longer than `4 halo`, cut at a
            multiple of the detector's.

    Raises:
        SettingError: `requested` is none of these.
    """
    if requested not in ("auto", "fp32", "bf16"):
        raise SettingError(f"precision {requested}", "is not known", "Choose auto, fp32 or bf16.")
    if not networks(detector):
        return Precision("fp32", "the method has no network", {})
    if requested == "fp32":
        return Precision("fp32", "asked for", {})
    if requested == "auto" and not has_bf16(device):
        return Precision("fp32", f"{device.type} has no bfloat16 units", {})
    known = known_core(probe, halo)
    if not known.any():
        return Precision("fp32", "no valid window to compare bf16 on", {})
    full = TorchRunner(detector, state, device, "fp32")(probe)[0]
    half = TorchRunner(detector, state, device, "bf16")
    measured = difference(full, half, probe, known, halo, detector.multiple, threshold)
    if requested == "bf16":
        return Precision("bf16", "asked for", measured)
    if agrees(measured) and measured["dependence_on_tiles"] <= INVARIANT:
        return Precision("bf16", "it agrees with fp32 on a window of the scene", measured)
    why = (
        "bf16 differs from fp32" if not agrees(measured) else "bf16 would make the result depend on the tiles"
    )
    return Precision("fp32", f"{why} on a window of the scene", measured)


def steady_classes(
    chosen: Precision,
    detector: ChangeDetector,
    state: dict[str, Any],
    device: torch.device,
    probe: np.ndarray,
    rule: ClassRule,
) -> Precision:
    """bf16 as `choose_precision` chose it, or fp32 where bf16 changes the class of too many pixels of that
    probe."""
    known = known_core(probe, detector.halo)
    both = [TorchRunner(detector, state, device, name, classes=True)(probe)[0] for name in ("fp32", "bf16")]
    full, half = (rule.decide(found[1:])[:, known] for found in both)
    flipped = float((full != half).any(axis=0).mean())
    measured = {**chosen.measured, "share_of_classes_flipped": flipped}
    if flipped <= SHARE_FLIPPED:
        return Precision("bf16", chosen.why, measured)
    return Precision("fp32", "bf16 gives other classes on a window of the scene", measured)


def known_core(probe: np.ndarray, halo: int) -> np.ndarray:
    """bool [h, w]: pixels of a probe [1, 2, C, h, w] that are valid and do not feel its edge."""
    height, width = probe.shape[-2:]
    known = np.zeros((height, width), bool)
    core = slice(halo, height - halo), slice(halo, width - halo)
    known[core] = np.logical_not(np.isnan(probe[0]).any(axis=(0, 1)))[core]
    return known


def difference(
    full: np.ndarray,
    run: Runner,
    probe: np.ndarray,
    known: np.ndarray,
    halo: int,
    multiple: int,
    threshold: float,
) -> dict[str, float]:
    """How a runner's probabilities on a probe differ from `full` [h, w] where `known`, and by how much they
    depend on the tile and the batch."""
    whole = run(probe)[0]
    apart = np.abs(full - whole)[known]
    return {
        "max_difference": float(apart.max()),
        "mean_difference": float(apart.mean()),
        "share_flipped": float(((full >= threshold) != (whole >= threshold))[known].mean()),
        "dependence_on_tiles": dependence(run, probe, whole, known, halo, multiple),
    }


def agrees(measured: dict[str, float]) -> bool:
    """Whether what `difference` found leaves the map as it is."""
    return measured["mean_difference"] <= MEAN_DIFFERENCE and measured["share_flipped"] <= SHARE_FLIPPED


def dependence(
    run: Runner, probe: np.ndarray, whole: np.ndarray, known: np.ndarray, halo: int, multiple: int
) -> float:
    """The largest change of a probability when the window is cut smaller and computed in a batch of two."""
    height, width = (side // multiple * multiple for side in probe.shape[-2:])
    y, x = (max(multiple, side // 8 // multiple * multiple) for side in (height, width))
    if height - y <= 2 * halo or width - x <= 2 * halo:
        return 0.0
    part = np.ascontiguousarray(probe[..., y:height, x:width])
    found = run(np.concatenate([part, part]))[1]
    here = np.zeros_like(known)
    here[y + halo : height - halo, x + halo : width - halo] = True
    here &= known
    moved = np.abs(found - whole[y:height, x:width])[here[y:height, x:width]]
    return float(moved.max(initial=0.0))


# --- memory ----------------------------------------------------------------------------------------
def bytes_per_pixel(run: Runner, probe: np.ndarray, *, warm: bool = False) -> float:
    """Working memory for each pixel of a tile: tensors and arrays alive at once, counted, not sampled.

    The same on every machine and in every run, so that the tile that is chosen from it is too.
    """
    if not warm:
        run(probe)  # the first call also loads what is loaded late
    live = LiveTensors()
    tracing = tracemalloc.is_tracing()
    if not tracing:
        tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    try:
        with live:
            run(probe)
        arrays = tracemalloc.get_traced_memory()[1] - before
    finally:
        if not tracing:
            tracemalloc.stop()
    arrays = round(arrays / MIB) * MIB  # the interpreter's own objects vary by some kilobytes
    return SCRATCH * (live.peak + max(arrays, 0)) / (probe.shape[-2] * probe.shape[-1])


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler, which takes seconds, to keep it out of here

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextmanager
def torch_settings(threads: int | None) -> Iterator[int]:
    """Threads, and everything that makes the same input give the same bytes; put back afterwards."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield torch.get_num_threads()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
        torch.set_num_threads(before)
