"""Every engine on every network for change that comes with the library: how fast, and what it costs in F1.

    python benchmarks/engines.py [--data ../shared/data] [--models A,B] [--engines A,B] [--no-speed]

For each model and engine: the F1 of change on the validation tiles of MS-HS-BCD, its difference to float32
in torch as it is (eager), the largest difference of a probability and the share of pixels that change sides,
and, unless `--no-speed`, the rate on tiles in memory as a ratio to eager. Rates are the best of rounds in
which the engines take turns, so that what else the machine does falls on all of them. Writes a table to
standard output and `benchmarks/results/engines.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse import __version__, registry
from terralapse.data.mshs_bcd import MshsPairs
from terralapse.engine.evaluate import array_pair, threshold_of
from terralapse.engine.runner import Runner, TorchRunner, has_bf16, torch_settings
from terralapse.engine.runtimes import GraphRunner, open_graph, runner_of
from terralapse.errors import TerralapseError
from terralapse.grid.scene import Window
from terralapse.tasks.metrics import binary_scores, confusion_matrix
from terralapse.tasks.network import NetworkDetector

MODELS = ("lapsenet/rgb", "lapsenet/s2", "changemamba/bcd-nano")
ENGINES = ("torch", "torch-bf16", "compile", "openvino", "onnx")
RESULTS = Path(__file__).parent / "results" / "engines.json"
CPU = torch.device("cpu")
SIDE, BATCH, ROUNDS = 512, 2, 5


class Maker:
    """Runners of one detector in one engine; a graph is opened once, whatever the state."""

    def __init__(self, detector: NetworkDetector, engine: str, threads: int) -> None:
        self.detector, self.engine, self.threads = detector, engine, threads
        self._calls: dict[bool, Any] = {}

    def __call__(self, state: dict[str, Any]) -> Runner:
        if self.engine in ("torch", "torch-bf16"):
            return TorchRunner(self.detector, state, CPU, "bf16" if self.engine == "torch-bf16" else "fp32")
        if self.engine == "compile":
            return runner_of("compile", self.detector, state, CPU, "fp32", self.threads)
        stretched = "stretch" in state
        if stretched not in self._calls:
            self._calls[stretched] = open_graph(self.engine, self.detector, stretched, self.threads)
        return GraphRunner(self.detector, state, self._calls[stretched])


def maps(make: Maker, tiles: MshsPairs) -> tuple[list[np.ndarray], float, np.ndarray]:
    """Probability of each tile within its halo, the threshold, and the confusion matrix over all tiles."""
    detector = make.detector
    found: list[np.ndarray] = []
    counts = np.zeros((2, 2), np.int64)
    threshold, run = 0.5, None
    for labelled in tiles:
        pair = array_pair(labelled, detector)
        state = detector.fit(pair.sample())
        threshold = threshold_of(detector, state)
        if run is None or "stretch" in state or make.engine != "compile":
            run = make(state)
        height, width = pair.shape
        halo, multiple = detector.halo, detector.multiple
        sides = (-(-(side + 2 * halo) // multiple) * multiple for side in (height, width))
        probability = run(pair.read(Window(-halo, -halo, *sides)).images[None])[0]
        found.append(probability[halo : halo + height, halo : halo + width])
        counts += confusion_matrix(labelled.label, (found[-1] >= threshold).astype(np.uint8), 2)
    return found, threshold, counts


def rates(makers: dict[str, Maker]) -> dict[str, float]:
    """Millions of pixels a second of each engine on the same tiles, in turns."""
    detector = next(iter(makers.values())).detector
    bands = len(detector.bands)
    images = np.random.default_rng(0).random((BATCH, 2, bands, SIDE, SIDE), dtype=np.float32) * 255
    state: dict[str, Any] = {"bands": list(range(bands)), "temperature": detector.card.temperature}
    if detector.always_stretches:
        state["stretch"] = {"low": [0.0] * bands, "high": [255.0] * bands}
    runners = {name: make(state) for name, make in makers.items()}
    best = dict.fromkeys(runners, float("inf"))
    for run in runners.values():
        run(images)
    for _ in range(ROUNDS):
        for name, run in runners.items():
            since = time.perf_counter()
            run(images)
            best[name] = min(best[name], time.perf_counter() - since)
    return {name: BATCH * SIDE * SIDE / 1e6 / seconds for name, seconds in best.items()}


def measure(
    slug: str, engines: tuple[str, ...], data: Path, threads: int, speed: bool
) -> list[dict[str, Any]]:
    """One row an engine; an engine that cannot run the model has a `fault`."""
    detector = registry.build(slug)
    sensor = "s2" if "nir" in detector.bands else "gf1"
    tiles = MshsPairs(data / "cd_mshs_bcd", "val", sensor, detector.bands)
    reference, threshold, counts = maps(Maker(detector, "torch", threads), tiles)
    f1 = binary_scores(counts).f1
    rows: list[dict[str, Any]] = []
    makers: dict[str, Maker] = {}
    for engine in engines:
        row: dict[str, Any] = {"model": slug, "engine": engine, "tiles": len(tiles), "f1_torch": f1}
        rows.append(row)
        try:
            make = Maker(detector, engine, threads)
            found, _, counts = (reference, threshold, counts) if engine == "torch" else maps(make, tiles)
        except TerralapseError as error:
            row["fault"] = str(error)
            continue
        makers[engine] = make
        apart = [np.abs(a - b) for a, b in zip(found, reference, strict=True)]
        sides = [(a >= threshold) != (b >= threshold) for a, b in zip(found, reference, strict=True)]
        row |= {
            "f1": binary_scores(counts).f1,
            "f1_difference": binary_scores(counts).f1 - f1,
            "max_difference": max(float(a.max()) for a in apart),
            "share_flipped": float(np.mean([s.mean() for s in sides])),
        }
    if speed:
        measured = rates({"torch": Maker(detector, "torch", threads), **makers})
        for row in rows:
            if row["engine"] in measured:
                row["ratio_to_torch"] = measured[row["engine"]] / measured["torch"]
                row["megapixels_a_second"] = measured[row["engine"]]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-speed", action="store_true")
    asked = parser.parse_args()
    engines = tuple(e for e in asked.engines.split(",") if e != "torch-bf16" or has_bf16(CPU))
    rows: list[dict[str, Any]] = []
    with torch_settings(asked.threads) as threads:
        print("| model | engine | F1 | difference in F1 | largest difference | change sides | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for slug in asked.models.split(","):
            for row in measure(slug, engines, asked.data, threads, not asked.no_speed):
                rows.append(row)
                print(f"| `{row['model']}` | {row['engine']} | {_cells(row)} |", flush=True)
    versions = {"terralapse": __version__, "torch": torch.__version__, "threads": threads}
    RESULTS.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def _cells(row: dict[str, Any]) -> str:
    if "fault" in row:
        return f"{row['fault']} | | | |"
    ratio = f"{row['ratio_to_torch']:.2f}" if "ratio_to_torch" in row else ""
    return (
        f"{row['f1']:.4f} | {row['f1_difference']:+.5f} | {row['max_difference']:.1e} | "
        f"{row['share_flipped']:.4%} | {ratio}"
    )


if __name__ == "__main__":
    main()
