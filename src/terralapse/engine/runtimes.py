"""Engines: torch as it is, `torch.compile`, OpenVINO, ONNX Runtime. Each is a `Runner`.

`auto` takes torch unless another engine is faster on a window of the scene and gives what float32 in torch
gives. It looks only where there is something to win: see `SMALL` and `WORTH`. What computes is decided once,
recorded, and kept by a run that is resumed.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse.engine import exported
from terralapse.engine.export import card_of, exportable, inputs_of, publish, write_graph
from terralapse.engine.plan import digest
from terralapse.engine.runner import (
    INVARIANT,
    Precision,
    Runner,
    TorchRunner,
    agrees,
    dependence,
    difference,
    known_core,
)
from terralapse.errors import ModelInputError, SettingError, TerralapseError, UnreadableFileError
from terralapse.layers.weights import cache
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.network import NetworkDetector

NAMES = ("torch", "openvino", "onnx", "compile")
PACKAGES = {"openvino": ("openvino", "onnx", "onnxscript"), "onnx": ("onnxruntime", "onnx", "onnxscript")}
SMALL = 16  # probes: of a scene with less to compute, even timing torch would cost more than it gives
WORTH = {"openvino": 60.0, "onnx": 60.0, "compile": 600.0}  # seconds that torch takes, to get ready for less
TIMING = 0.5  # seconds, about, that one engine is timed for
FASTER = 1.1  # times as fast as torch, below which torch is kept
_NO_MEMORY = ("bad_alloc", "failed to allocate", "cannot allocate", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Engine:
    """What was chosen and why. `tried` holds, for each engine that was looked at, `megapixels_a_second` and
    the differences from float32 in torch (see `runner.difference`), or `fault`."""

    name: str
    why: str
    tried: dict[str, dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class GraphRunner:
    """Tiles through the graph of a detector (see `engine.export`), on a CPU, in float32."""

    def __init__(self, detector: NetworkDetector, state: dict[str, Any], call: exported.Call) -> None:
        self.detector, self.state, self.bands, self.call = detector, state, state["bands"], call
        self.ends = {name: np.array(ends, np.float32) for name, ends in state.get("stretch", {}).items()}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        usable = np.logical_not(np.isnan(images).any(axis=(1, 2)))  # [B, h, w]
        found = np.zeros(usable.shape, np.float32)
        if not usable.any():
            return found
        picked = images[:, :, self.bands]
        area = slice(None), slice(None)
        if not usable.all():
            picked = np.where(usable[:, None, None], picked, np.float32(np.nan))
            if not self.detector.exact:  # as in `NetworkDetector.predict`
                area = _bounds(usable)
        part = picked[..., area[0], area[1]]
        height, width = part.shape[-2:]
        down, right = -height % self.detector.multiple, -width % self.detector.multiple
        if down or right:
            part = np.pad(part, ((0, 0), (0, 0), (0, 0), (0, down), (0, right)), mode="edge")
        given = {"images": np.ascontiguousarray(part, np.float32), **self.ends}
        for name, value in self.detector.extras_of(torch.from_numpy(images[..., *area]), self.state).items():
            given[name] = np.pad(value.numpy(), ((0, 0), (0, down), (0, right)), mode="edge")
        try:
            prob = self.call(given)
        except Exception as error:  # runtimes say it in words alone
            if any(words in str(error).lower() for words in _NO_MEMORY):
                raise MemoryError(str(error)) from error
            raise
        found[:, area[0], area[1]] = np.nan_to_num(prob[:, :height, :width])
        return found


def _bounds(usable: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold everything usable in any of the masks [B, h, w]."""
    rows, cols = (np.flatnonzero(usable.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)


def runner_of(
    name: str,
    detector: ChangeDetector,
    state: dict[str, Any],
    device: torch.device,
    precision: str,
    threads: int,
    classes: bool = False,
) -> Runner:
    """The runner of an engine; with `classes` it gives the planes of classes too, which graphs do not have.

    Raises:
        SettingError: it cannot run this detector on this device in this precision, or gives no classes.
        MissingExtraError: it is not installed.
        ModelInputError: the detector cannot be expressed as a graph.
    """
    if name == "torch":
        return TorchRunner(detector, state, device, precision, classes)
    if fault := unfit(name, detector, device, precision):
        raise SettingError(f"engine {name}", fault, "Leave --engine out, or give --engine torch.")
    assert isinstance(detector, NetworkDetector)
    if name == "compile":
        return TorchRunner(_compiled(detector), state, device, precision, classes)
    if classes:
        raise SettingError(f"engine {name}", "computes no maps of classes", "Give --engine torch.")
    for package in PACKAGES[name]:
        exported.need(package, "openvino" if package == "openvino" else "export")
    return GraphRunner(detector, state, open_graph(name, detector, "stretch" in state, threads))


def unfit(name: str, detector: ChangeDetector, device: torch.device, precision: str) -> str:
    """Why an engine other than torch cannot run a detector; empty when it can."""
    if not isinstance(detector, NetworkDetector):
        return f"cannot run {detector.card.slug}, which has no network"
    if name == "compile":
        return compiler_fault(device)
    if device.type != "cpu":
        return f"computes on a CPU, and the device is {device}"
    return "" if precision == "fp32" else f"computes in fp32, and not in {precision}"


def compiler_fault(device: torch.device) -> str:
    """What `torch.compile` lacks on a device; empty if nothing is known to be missing."""
    if device.type != "cpu":
        return (
            "" if _importable("triton") else f"needs the package triton on {device}, which is not installed"
        )
    wanted = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(wanted) is None:
        return f"needs a C++ compiler, and there is no {wanted} here (install one, or name one in CXX)"
    return ""


def _compiled(detector: NetworkDetector) -> NetworkDetector:
    """The same detector whose network is compiled when it is first called; weights are shared."""
    shell, network = copy.copy(detector), copy.copy(detector.network)
    network.compile()
    shell.network = network
    return shell


def open_graph(name: str, detector: NetworkDetector, stretched: bool, threads: int) -> exported.Call:
    """The graph of a detector, written once for each set of weights and read from the cache afterwards."""
    path = graph_file(detector, stretched)
    opened: Callable[..., exported.Call] = (
        exported.open_openvino if name == "openvino" else exported.open_onnx
    )
    with exported.whole(path):
        return opened(path, inputs_of(detector, stretched), threads)


def graph_file(detector: NetworkDetector, stretched: bool) -> Path:
    """The ONNX file of a detector in the cache; made when it is not there. Two processes may do so at once.

    Raises:
        ModelInputError: the detector cannot be expressed as a graph.
    """
    exportable(detector)
    key = digest([card_of(detector, stretched), torch.__version__])[:20]
    path = cache() / "engines" / f"{detector.card.slug.replace('/', '-')}-{key}.onnx"
    if path.is_file():
        try:
            exported.read_card(path)
            return path
        except UnreadableFileError:
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        write_graph(detector, draft, "onnx", stretched)
        publish(draft, path)
    return path


# --- the choice ------------------------------------------------------------------------------------
def choose_engine(
    requested: str,
    detector: ChangeDetector,
    state: dict[str, Any],
    device: torch.device,
    precision: Precision,
    probe: np.ndarray,
    threshold: float,
    threads: int,
    work: int,
    classes: bool = False,
) -> Engine:
    """Which engine computes a scene.

    Args:
        requested: `auto` or one of `NAMES`.
        precision: what torch would compute in.
        probe: float32 [1, 2, C, h, w], a window of the scene, as in `runner.choose_precision`.
        work: pixels that go through the network.
        classes: whether maps of classes are wanted, which graphs cannot give.

    Raises:
        SettingError: `requested` is not known or cannot run the detector here.
        MissingExtraError: it is not installed.
        ModelInputError: the detector cannot be expressed as a graph.
    """
    if requested not in ("auto", *NAMES):
        raise SettingError(
            f"engine {requested}", "is not known", f"Choose auto, {', '.join(NAMES[:-1])} or {NAMES[-1]}."
        )
    trial = _Trial(detector, state, device, precision.name, probe, threshold, threads)
    if requested == "torch":
        return Engine("torch", "asked for", {})
    if requested != "auto":
        return Engine(requested, "asked for", {requested: trial.compared(requested)})
    others = [n for n in NAMES[1:] if _installed(n) and not unfit(n, detector, device, precision.name)]
    if classes or not detector.exact:  # scans and attention over a tile take minutes to trace for any size
        others = [n for n in others if n not in PACKAGES]
    if not others:
        return Engine("torch", "no other engine is installed that can be made ready soon for this", {})
    pixels = probe.shape[-2] * probe.shape[-1]
    if work < SMALL * pixels:
        return Engine("torch", "the scene is small", {})
    own = trial.seconds("torch")
    tried: dict[str, dict[str, Any]] = {"torch": {"megapixels_a_second": pixels / 1e6 / own}}
    expected = own * work / pixels
    others = [n for n in others if expected >= WORTH[n]]
    if not others:
        return Engine("torch", f"it needs about {expected:.0f} s, too little to make another ready", tried)
    best, name = own / FASTER, "torch"
    for other in others:
        try:
            tried[other] = trial.compared(other)
            seconds = trial.seconds(other)
        except (TerralapseError, MemoryError) as error:
            tried[other] = {"fault": str(error)}
            continue
        tried[other]["megapixels_a_second"] = pixels / 1e6 / seconds
        if tried[other]["agrees"] and seconds < best:
            best, name = seconds, other
    if name == "torch":
        return Engine(name, "no other engine is faster and gives the same on a window of the scene", tried)
    return Engine(name, f"it is {own / best:.1f} times as fast as torch on a window of the scene", tried)


def _installed(name: str) -> bool:
    return all(_importable(package) for package in PACKAGES.get(name, ()))


def _importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class _Trial:
    """Engines on one window of a scene."""

    def __init__(
        self,
        detector: ChangeDetector,
        state: dict[str, Any],
        device: torch.device,
        precision: str,
        probe: np.ndarray,
        threshold: float,
        threads: int,
    ) -> None:
        self.detector, self.state, self.device, self.precision = detector, state, device, precision
        self.probe, self.threshold, self.threads = probe, threshold, threads
        self.known = known_core(probe, detector.halo)
        self._runners: dict[str, Runner] = {}

    def runner(self, name: str) -> Runner:
        if name not in self._runners:
            self._runners[name] = runner_of(
                name, self.detector, self.state, self.device, self.precision, self.threads
            )
        return self._runners[name]

    def compared(self, name: str) -> dict[str, Any]:
        """The differences from float32 in torch, and whether they are small enough to take the engine."""
        run = self.runner(name)
        eager = TorchRunner(self.detector, self.state, self.device, "fp32")
        halo, multiple = self.detector.halo, self.detector.multiple
        try:
            run(self.probe)
        except (TerralapseError, MemoryError):
            raise
        except Exception as error:  # compilers fail in their own ways, for want of a C++ compiler or so
            lines = str(error).strip().splitlines() or [""]
            raise ModelInputError(
                self.detector.card.slug,
                f"does not run in the engine {name} ({type(error).__name__}: {lines[0][:160]})",
                "Leave --engine out, or give --engine torch.",
            ) from error
        if not self.known.any():
            return {"agrees": False}
        full = eager(self.probe)[0]
        measured = difference(full, run, self.probe, self.known, halo, multiple, self.threshold)
        # A network that sees a whole tile depends on it in torch too.
        own = 0.0 if self.detector.exact else dependence(eager, self.probe, full, self.known, halo, multiple)
        steady = measured["dependence_on_tiles"] <= own + INVARIANT
        return {**measured, "agrees": agrees(measured) and steady}

    def seconds(self, name: str) -> float:
        """The shortest time for the window; the first run, which prepares, does not count."""
        run = self.runner(name)
        run(self.probe)
        best, spent = float("inf"), 0.0
        while spent < TIMING:
            since = time.perf_counter()
            run(self.probe)
            took = time.perf_counter() - since
            best, spent = min(best, took), spent + took
        return best
