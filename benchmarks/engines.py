"""Every engine on every network for change that comes with the library: how fast, and what it costs in F1.

    python benchmarks/engines.py [--data ../shared/data] [--models A,B] [--engines A,B] [--no-speed]
    python benchmarks/engines.py --files [--data ../shared/data] [--models A,B] [--weights weights]

For each model and engine: the F1 of change on the validation tiles of MS-HS-BCD, its difference to float32
in torch as it is (eager), the largest difference of a probability and the share of pixels that change sides,
and, unless `--no-speed`, the rate on tiles in memory as a ratio to eager. Rates are the best of rounds in
which the engines take turns, so that what else the machine does falls on all of them. Writes a table to
standard output and `benchmarks/results/engines.json`.

With `--files` it exports instead: each network in each format, and for each file the largest difference of a
probability to torch and the share of pixels that change sides, on tiles of the pair that comes with the
library and on the first validation tiles of MS-HS-BCD. Nothing is timed. Writes
`benchmarks/results/exports.json`, in which systems that were not asked for stay, and renews the table in
`docs/engines.md`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse import __version__, registry
from terralapse.data.mshs_bcd import MshsPairs
from terralapse.engine.evaluate import array_pair, threshold_of
from terralapse.engine.export import compare, exportable, trace, write_graph
from terralapse.engine.runner import Runner, TorchRunner, has_bf16, torch_settings
from terralapse.engine.runtimes import GraphRunner, open_graph, runner_of
from terralapse.errors import TerralapseError
from terralapse.grid.scene import Window
from terralapse.tasks.mapped import MapDetector
from terralapse.tasks.metrics import binary_scores, confusion_matrix
from terralapse.tasks.network import NetworkDetector
from terralapse.workflows.export import check_tiles, with_map

MODELS = ("lapsenet/rgb", "lapsenet/s2", "changemamba/bcd-nano")
EXPORTED = (
    *("lapsenet/rgb", "lapsenet/s2", "cdmaskformer/nano", "cfnet/nano", "changemamba/bcd-nano"),
    *("changemamba/bda-nano", "fsg-net/nano", "fusu/change-nano", "lenet/nano", "mapformer/nano"),
    "semicd-vl/nano",
)
FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TILES = 8  # of MS-HS-BCD, for each file
ENGINES = ("torch", "torch-bf16", "compile", "openvino", "onnx")
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "engines.json"
EXPORTS = RESULTS.with_name("exports.json")
PAGE, BEGIN, END = ROOT / "docs" / "engines.md", "<!-- files: begin -->", "<!-- files: end -->"
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


def files(slug: str, weights: Path, data: Path) -> dict[str, Any]:
    """What each format of a network differs by; `fault` where there is no such file."""
    path = weights / f"{slug.replace('/', '-')}.safetensors"
    own = bool(registry.card(slug).weights)
    detector = exportable(registry.build(slug, **({} if own else {"weights": path})))
    tiles = check_tiles(detector)
    sensor = "s2" if "nir" in detector.bands else "gf1"
    labelled = MshsPairs(data / "cd_mshs_bcd", "val", sensor, detector.bands)
    for number in range(TILES):
        image = np.ascontiguousarray(labelled[number].images[None], np.float32)
        tiles.append(with_map(image, detector) if isinstance(detector, MapDetector) else image)
    row: dict[str, Any] = {"system": slug, "formats": {}}
    stretched = detector.always_stretches
    try:
        program = trace(detector, stretched)
    except TerralapseError as error:
        return row | {"fault": str(error)}
    for kind, suffix in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"network{suffix}"
            try:
                write_graph(detector, file, kind, stretched, program)
                row["formats"][kind] = compare(detector, file, tiles, stretched).as_dict()
            except TerralapseError as error:
                row["formats"][kind] = {"fault": str(error)}
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `files` as Markdown; a cell is the largest difference and the share that changes sides."""
    lines = ["| system | ONNX | OpenVINO | torch.export |", "| --- | --- | --- | --- |"]
    for row in rows:
        found = [row["formats"].get(kind, {"fault": row.get("fault", "")}) for kind in FORMATS]
        cells = [
            "no" if "fault" in c else f"{c['max_difference']:.1e}, {c['share_flipped']:.4%}" for c in found
        ]
        lines.append(f"| `{row['system']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def export_all(slugs: tuple[str, ...], weights: Path, data: Path) -> None:
    """Runs `files` for each, and renews its results and its table after each."""
    kept = json.loads(EXPORTS.read_text(encoding="utf-8"))["rows"] if EXPORTS.is_file() else []
    rows = {row["system"]: row for row in kept}
    for slug in slugs:
        rows[slug] = files(slug, weights, data)
        print(table([rows[slug]]).splitlines()[-1], flush=True)
        ordered = [rows[s] for s in EXPORTED if s in rows]
        names = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino")
        versions = {"terralapse": __version__} | {n: metadata.version(n) for n in names}
        EXPORTS.write_text(
            json.dumps({"versions": versions, "rows": ordered}, indent=1) + "\n", encoding="utf-8"
        )
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{table(ordered)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", default=None)
    parser.add_argument("--files", action="store_true", help="export and compare; nothing is timed")
    parser.add_argument(
        "--weights", type=Path, default=ROOT / "weights", help="of systems whose card has none"
    )
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-speed", action="store_true")
    asked = parser.parse_args()
    if asked.files:
        slugs = asked.models.split(",") if asked.models else EXPORTED
        export_all(tuple(slugs), asked.weights, asked.data)
        return
    engines = tuple(e for e in asked.engines.split(",") if e != "torch-bf16" or has_bf16(CPU))
    rows: list[dict[str, Any]] = []
    with torch_settings(asked.threads) as threads:
        print("| model | engine | F1 | difference in F1 | largest difference | change sides | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for slug in asked.models.split(",") if asked.models else MODELS:
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
