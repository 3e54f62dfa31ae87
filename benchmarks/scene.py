"""Scene prediction from files to files: how near it comes to the bare network, and in how much memory.

    python benchmarks/scene.py full  [--side 10980] [--threads N] [--work FOLDER] [--model lapsenet/s2]
                                     [--part align|engine|bare] [--engine auto]
    python benchmarks/scene.py peers [--side 4096]  [--geoai PYTHON] ...

`full` makes a pair of four-band uint16 COGs of one place in two UTM zones, the second displaced by half a
pixel, aligns it, and runs the model from the two files to the three rasters. It prints millions of pixels of
the scene per second; the rate of the bare network on tiles that are already in memory (the same tiles, halos
counted as if they were wanted; the same engine, threads and precision; one tile on all threads, and as many
side by side as the run had); the ratio of the two; and the peak memory of the whole process. Seconds are on
the clock and of the processor, phase by phase: the latter compare on a machine that has other work.

With `--part`, one part by itself: `align` alone, `engine` (which leaves its plan under `--work`), or `bare`,
on the plan that `engine` left.

`peers` gives the same weights, tiles and precision to a plain loop over rasterio windows that keeps
whole-scene arrays, and to geoai's tiled change routine (`ChangeStarDetection.predict` with this network put
in) where a Python that has `geoai-py` and `odc-geo` is named. Both dates are RGB on one grid there, because
neither peer reprojects. The seam error is the largest difference from one pass over the middle of the image.

Every measurement is a process of its own. Files are made once and kept under `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terralapse.grid.scene import Window

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

CELL = 2048  # the noise repeats
SHIFT = (0.4, -0.3)  # pixels by which the second date is displaced, where it is on another grid
MIDDLE = 1024  # side of the part that is compared with one pass


# --- the pair --------------------------------------------------------------------------------------
def make_pair(work: Path, side: int, bands: tuple[str, ...], *, zones: tuple[int, int]) -> tuple[Path, Path]:
    """Two images of one place: smooth noise, repeated, with squares that changed in the second."""
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer
    from rasterio.transform import Affine

    work.mkdir(parents=True, exist_ok=True)
    x0, y0 = 600_000, 5_000_000
    crs = tuple(f"EPSG:326{zone}" for zone in zones)
    x, y = Transformer.from_crs(*crs, always_xy=True).transform(x0 + side * 5, y0 - side * 5)
    origins = (x0, y0), (round(x - side * 5, -1), round(y + side * 5, -1))
    names = ("before", "after")
    paths = tuple(work / f"{n}-{len(bands)}x{side}-{z}-cog.tif" for n, z in zip(names, zones, strict=True))
    grids = [
        GeoBox((side, side), Affine(10, 0, x, 0, -10, y), name)
        for (x, y), name in zip(origins, crs, strict=True)
    ]
    if not paths[0].exists():
        _write_image(paths[0], grids[0], bands, _ground(len(bands), date=0))
    if not paths[1].exists():
        ground = _ground(len(bands), date=1)
        if zones[0] == zones[1]:
            _write_image(paths[1], grids[1], bands, ground)
        else:  # the same place on the other grid: resampled from an image that reaches beyond it
            margin = side // 8
            whole = work / f"ground-{side}.tif"
            _write_image(whole, grids[0].pad(margin), bands, np.roll(ground, (margin, margin), (1, 2)))
            _write_warped(paths[1], grids[1], bands, whole)
            whole.unlink()
    return paths[0], paths[1]


def _ground(bands: int, date: int) -> np.ndarray:
    """A cell of the ground [bands, CELL, CELL] that repeats; on the second date with squares that changed."""
    from scipy.ndimage import gaussian_filter

    top = 255 if bands == 3 else 10_000
    rng = np.random.default_rng(7)
    cell = np.empty((bands, CELL, CELL), np.uint8 if top == 255 else np.uint16)
    for band in range(bands):
        rough = rng.normal(size=(CELL, CELL))
        smooth = sum(s * gaussian_filter(rough, s, mode="wrap") for s in (1.5, 6, 24))
        cell[band] = (top * (0.3 + 0.08 * smooth / smooth.std())).clip(1, top)
    squares = np.random.default_rng(8)
    for row, col in squares.integers(0, CELL - 40, (60, 2)) if date else ():
        level = squares.integers(top // 10, top * 7 // 10, (bands, 1, 1))
        cell[:, row : row + 40, col : col + 40] = level
    return cell


def _write_image(path: Path, grid: GeoBox, bands: tuple[str, ...], cell: np.ndarray) -> None:
    def strips() -> Iterator[tuple[Window, np.ndarray]]:
        height, width = grid.shape.y, grid.shape.x
        across = np.arange(width) % CELL
        for row in range(0, height, 512):
            down = np.arange(row, min(row + 512, height)) % CELL
            yield Window(row, 0, len(down), width), cell[:, down][:, :, across]

    _write(path, grid, bands, strips(), str(cell.dtype))


def _write_warped(path: Path, grid: GeoBox, bands: tuple[str, ...], source: Path) -> None:
    from terralapse.grid.open import open_scene
    from terralapse.grid.warp import read_onto
    from terralapse.sensors import Unit

    scene = open_scene(source)
    if scene.info.unit is not Unit.RAW:
        raise SystemExit(f"{source} was made to be read as it is, and is read as {scene.info.unit}")

    def strips() -> Iterator[tuple[Window, np.ndarray]]:
        height, width = grid.shape.y, grid.shape.x
        for row in range(0, height, 512):
            rows = min(512, height - row)
            data = read_onto(scene, grid[row : row + rows, :], bands, shift=SHIFT).data
            yield Window(row, 0, rows, width), np.nan_to_num(data).round().astype(np.uint16)

    _write(path, grid, bands, strips(), "uint16")
    scene.close()


def _write(path: Path, grid: GeoBox, bands: tuple[str, ...], strips: Any, dtype: str) -> None:
    from terralapse.grid.cog import write_cog

    options = {"geobox": grid, "dtype": dtype, "bands": len(bands), "nodata": 0}
    write_cog(strips, path, kind="continuous", descriptions=bands, **options)


# --- what is measured, each in a process of its own ------------------------------------------------
def build(model: str) -> Any:
    from terralapse import registry

    return registry.build(model)


def aligned(paths: tuple[Path, Path], detector: Any, *, coregister: bool) -> Any:
    from terralapse.grid.align import align
    from terralapse.grid.open import open_scene

    scenes = [open_scene(path) for path in paths]
    return align(*scenes, bands=detector.card.inputs.bands, coregister=coregister)


class Clock:
    """Seconds on the clock and of the processor, by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self._phase, self._since = "start", self._now()

    def enter(self, phase: str) -> None:
        if phase != self._phase:
            now = self._now()
            spent = self.phases.setdefault(self._phase, [0.0, 0.0])
            for i in range(2):
                spent[i] += now[i] - self._since[i]
            self._phase, self._since = phase, now

    @staticmethod
    def _now() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), usage.ru_utime + usage.ru_stime


def alignment(job: dict[str, Any]) -> dict[str, Any]:
    """Alignment alone."""
    from terralapse.grid._gdal import gdal_env

    detector, clock = build(job["model"]), Clock()
    clock.enter("align")
    with gdal_env():
        found = aligned(job["paths"], detector, coregister=True).report
    clock.enter("end")
    return {"verdict": found.verdict, "phases": clock.phases}


def engine(job: dict[str, Any]) -> dict[str, Any]:
    """From two files to three rasters; libraries and the network are loaded before the clock starts, as they
    are for the others."""
    from terralapse.engine.scene import predict_scene
    from terralapse.grid import align, open  # noqa: F401
    from terralapse.grid._gdal import gdal_env

    detector = build(job["model"])
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    clock = Clock()
    with gdal_env(), tempfile.TemporaryDirectory(dir=job["work"]) as folder:
        clock.enter("align")
        pair = aligned(job["paths"], detector, coregister=job["coregister"])
        clock.enter("fit")
        sink = None
        if "keep" in job:  # probabilities before they are rounded for storage
            kept = np.lib.format.open_memmap(job["keep"], "w+", np.float32, pair.shape)

            def sink(piece: Any) -> None:
                kept[piece.window.slices] = piece.prob

        options = {name: job[name] for name in ("threads", "precision", "engine")}
        options |= {"sink": sink, "progress": lambda phase, _done, _total: clock.enter(phase)}
        result = predict_scene(detector, pair, Path(folder), **options)
        clock.enter("end")
    pixels, seconds = pair.shape[0] * pair.shape[1], sum(wall for wall, _ in clock.phases.values())
    return {
        "shape": pair.shape,
        "seconds": seconds,
        "imported_gb": imported,
        "phases": clock.phases,
        "verdict": pair.report.verdict,
        "mpix_s": pixels / seconds / 1e6,
        "valid_share": result.valid_pixels / pixels,
        "precision": result.precision["name"],
        "engine": result.engine["name"],
        "workers": result.workers,
        "stages": result.seconds,
        "plan": result.plan,
        "state": result.state,
    }


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """The network alone, on tiles of the run's size that lie in memory."""
    import torch

    from terralapse.engine import memory
    from terralapse.engine.crew import Crew
    from terralapse.engine.plan import ScenePlan
    from terralapse.engine.runner import torch_settings
    from terralapse.engine.runtimes import runner_of

    detector, workers = build(job["model"]), job["workers"]
    read = ScenePlan.from_dict(job["plan"]).tile(0, 0).read
    images = aligned(job["paths"], detector, coregister=False).read(read).images[None]
    ways = {"one tile, as torch is": (1, nullcontext), "one tile, memory kept": (1, memory.big_blocks_stay)}
    if workers > 1:
        ways[f"{workers} tiles side by side"] = (workers, memory.big_blocks_stay)
    rates = {}
    for name, (tiles, setting) in ways.items():
        with torch_settings(job["threads"]), setting():
            run = runner_of(
                job["engine"], detector, job["state"], torch.device("cpu"), job["precision"], job["threads"]
            )
            torch.set_num_threads(max(1, job["threads"] // tiles))
            spent: list[tuple[float, float]] = []
            with Crew(tiles) as crew:

                def together(crew: Crew = crew, tiles: int = tiles, run: Any = run) -> None:
                    for future in [crew.submit(lambda: run(images)) for _ in range(4 * tiles)]:
                        future.result()

                together()
                while sum(s for s, _ in spent) < job["patience"] or len(spent) < 3:
                    since, cpu = time.perf_counter(), time.process_time()
                    together()
                    spent.append((time.perf_counter() - since, time.process_time() - cpu))
        mpix = 4 * tiles * read.height * read.width / 1e6
        rates[name] = [mpix / float(np.median(column)) for column in zip(*spent, strict=True)]
    return {"rates": rates}


def loop(job: dict[str, Any]) -> dict[str, Any]:
    """The way of most scripts: whole-scene arrays from rasterio, one tile after another."""
    import rasterio

    detector, core, halo = build(job["model"]), job["core"], job["halo"]
    clock = time.perf_counter()
    dates = []
    for path in job["paths"]:
        with rasterio.open(path) as opened:
            dates.append(opened.read().astype(np.float32))
            profile = opened.profile
    scene = np.stack(dates)
    height, width = scene.shape[-2:]
    scene = np.pad(scene, ((0, 0), (0, 0), (halo, core + halo), (halo, core + halo)), mode="reflect")
    prob = np.zeros((height, width), np.float32)
    for row in range(0, height, core):
        for col in range(0, width, core):
            tile = scene[:, :, row : row + core + 2 * halo, col : col + core + 2 * halo]
            found = _call(detector, np.ascontiguousarray(tile), job)
            rows, cols = min(core, height - row), min(core, width - col)
            prob[row : row + rows, col : col + cols] = found[halo : halo + rows, halo : halo + cols]
    profile.update(count=1, dtype="float32", nodata=None, predictor=3)
    with tempfile.TemporaryDirectory(dir=job["work"]) as folder:
        with rasterio.open(Path(folder) / "prob.tif", "w", **profile) as opened:
            opened.write(prob, 1)
        seconds = time.perf_counter() - clock
    np.save(job["keep"], prob)
    return {"seconds": seconds, "mpix_s": height * width / seconds / 1e6}


def geoai(job: dict[str, Any]) -> dict[str, Any]:
    """geoai's own reading, tiling, averaging and writing; only the network is put in."""
    from geoai.change_detection import ChangeStarDetection

    detector = build(job["model"])

    class Routine(ChangeStarDetection):
        def _init_model(self) -> None:
            self.model = detector

        def _predict_tile(self, img1: np.ndarray, img2: np.ndarray) -> dict[str, Any]:
            images = np.stack([img1, img2]).transpose(0, 3, 1, 2).astype(np.float32)
            prob = _call(detector, images, job)
            other = np.zeros_like(prob)  # its routine always merges two semantic maps as well
            return {"change_prob": prob, "t1_semantic_prob": other, "t2_semantic_prob": other}

    before, after = map(str, job["paths"])
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=job["work"]) as folder:
        size, overlap = job["core"] + 2 * job["halo"], 2 * job["halo"]
        written = str(Path(folder) / "change.tif")
        prob = Routine().predict(before, after, written, tile_size=size, overlap=overlap)["change_prob"]
        seconds = time.perf_counter() - clock
    np.save(job["keep"], prob)
    return {"seconds": seconds, "mpix_s": prob.size / seconds / 1e6}


def _call(detector: Any, images: np.ndarray, job: dict[str, Any]) -> np.ndarray:
    """The network as a script calls it, on one tile [2, C, h, w]."""
    import torch

    torch.set_num_threads(job["threads"])
    tensor = torch.from_numpy(images)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=job["precision"] == "bf16"):
        return detector.predict(tensor, ~tensor.isnan().any(dim=2), job["state"])[0].float().numpy()


def once(job: dict[str, Any]) -> dict[str, Any]:
    """One pass over the middle of the image: what tiles are compared with."""
    detector, halo = build(job["model"]), job["halo"]
    pair = aligned(job["paths"], detector, coregister=False)
    start = (pair.shape[0] - MIDDLE) // 2 - halo
    start -= start % detector.multiple  # the phase of the network's strides
    side = MIDDLE + 2 * halo
    prob = _call(detector, pair.read(Window(start, start, side, side)).images, job)
    np.save(job["keep"], prob[halo : halo + MIDDLE, halo : halo + MIDDLE])
    return {"start": start + halo}


JOBS = {f.__name__: f for f in (alignment, engine, bare, loop, geoai, once)}


def measure(name: str, python: str = sys.executable, **job: Any) -> dict[str, Any]:
    """Runs one of `JOBS` in a process of its own; adds its peak memory and CPU seconds."""
    package = str(Path(__file__).resolve().parents[1] / "src")
    environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"]), "PYTHONPATH": package}
    child = subprocess.Popen(
        [python, __file__, "--child", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(job, default=str))
    child.stdin.close()
    said = child.stdout.read()
    if child.wait() != 0:
        raise SystemExit(f"{name} failed")
    return json.loads(said.splitlines()[-1])


def _child(name: str) -> None:
    job = json.loads(sys.stdin.read())
    job["paths"] = tuple(Path(p) for p in job.get("paths", ()))
    found = JOBS[name](job)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found["peak_gb"] = usage.ru_maxrss * 1024 / 1e9
    found["cpu_s"] = usage.ru_utime + usage.ru_stime
    print(json.dumps(found))


# --- the two reports -------------------------------------------------------------------------------
def full(options: argparse.Namespace) -> None:
    bands = ("blue", "green", "red", "nir")
    paths = make_pair(options.work, options.side, bands, zones=(32, 33))
    common = _common(options, paths)
    if options.part == "align":
        ran = measure("alignment", **common)
        print(f"alignment      {ran['verdict']}")
        _print_phases(ran["phases"])
        return
    kept = options.work / f"run-{options.side}-{options.model.replace('/', '-')}-{options.threads}.json"
    if options.part != "bare":
        ran = measure("engine", coregister=True, **common)
        kept.write_text(json.dumps(ran))
        _print_run(ran, options)
    if options.part != "engine":
        ran = json.loads(kept.read_text())
        asked = {name: ran[name] for name in ("precision", "engine", "workers", "plan", "state")}
        _print_bare(ran, measure("bare", **{**common, **asked}, patience=15))


def _print_run(ran: dict[str, Any], options: argparse.Namespace) -> None:
    (height, width), plan = ran["shape"], ran["plan"]
    print(f"scene          {height} x {width} pixels, {ran['valid_share']:.0%} valid, {options.model}")
    print(f"alignment      {ran['verdict']}")
    print(f"tiles          {plan['core_height']} x {plan['core_width']}, halo {plan['halo']}, ", end="")
    print(f"{_computed(ran) / (height * width):.2f} pixels computed for each of the scene")
    print(
        f"computing      {ran['engine']}, {options.threads} threads, {ran['workers']} tiles side by side, ",
        end="",
    )
    print(f"{ran['precision']}; load {os.getloadavg()[0]:.1f}")
    print(f"end to end     {ran['mpix_s']:.3f} MPix/s in {ran['seconds']:.0f} s ({ran['cpu_s']:.0f} CPU s)")
    peak, before = (ran[key] / 1.073741824 for key in ("peak_gb", "imported_gb"))
    print(f"peak memory    {peak:.2f} GiB, of which {before:.2f} GiB when everything was imported")
    _print_phases(ran["phases"])
    print("busy seconds   " + ", ".join(f"{k} {ran['stages'][k]:.0f}" for k in ("read", "network", "store")))


def _print_phases(phases: dict[str, list[float]]) -> None:
    print(
        "seconds        " + ", ".join(f"{k} {wall:.1f} ({cpu:.1f} CPU)" for k, (wall, cpu) in phases.items())
    )


def _print_bare(ran: dict[str, Any], alone: dict[str, Any]) -> None:
    fastest, thriftiest = (max(column) for column in zip(*alone["rates"].values(), strict=True))
    per_cpu = ran["shape"][0] * ran["shape"][1] / 1e6 / ran["cpu_s"]
    for name, (rate, rate_cpu) in alone["rates"].items():
        print(f"bare network   {rate:.3f} MPix/s, {rate_cpu:.3f} MPix/CPU s, {name}")
    print(f"ratio          {ran['mpix_s'] / fastest:.2f} of the clock (target 0.80), ", end="")
    print(f"{per_cpu / thriftiest:.2f} of CPU seconds, which other work on the machine changes less")


def _computed(ran: dict[str, Any]) -> int:
    from terralapse.engine.plan import ScenePlan

    return ScenePlan.from_dict(ran["plan"]).computed_pixels()


def peers(options: argparse.Namespace) -> None:
    paths = make_pair(options.work, options.side, ("red", "green", "blue"), zones=(32, 32))
    common = _common(options, paths)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:

        def run(title: str, name: str, **more: Any) -> dict[str, Any]:
            keep = str(Path(folder) / f"{name}.npy")
            found = measure(name, keep=keep, **{**common, **more})
            return rows.setdefault(title, found | {"prob": np.load(keep)})

        ours = run("terralapse", "engine", coregister=False)
        plan = ours["plan"]
        common |= {"precision": ours["precision"], "state": ours["state"]}
        common |= {"core": min(plan["core_height"], plan["core_width"]), "halo": plan["halo"]}
        run("plain loop", "loop")
        if options.geoai is not None:
            run("geoai, tiled", "geoai", python=options.geoai)
        single = run("once", "once")
    del rows["once"]
    part = slice(single["start"], single["start"] + MIDDLE)
    print(f"{options.side} x {options.side} pixels, {options.model}, {ours['precision']}, ", end="")
    print(f"{options.threads} threads; load {os.getloadavg()[0]:.1f}")
    print(f"{'':14}{'MPix/s':>8}{'ratio':>7}{'peak GB':>9}{'ratio':>7}{'CPU s':>7}{'seam error':>12}")
    for title, row in rows.items():
        error = np.abs(row["prob"][part, part] - single["prob"]).max()
        speed, memory = row["mpix_s"] / ours["mpix_s"], row["peak_gb"] / ours["peak_gb"]
        print(f"{title:14}{row['mpix_s']:8.3f}{speed:7.2f}{row['peak_gb']:9.2f}{memory:7.2f}", end="")
        print(f"{row['cpu_s']:7.0f}{error:12.1e}")


def _common(options: argparse.Namespace, paths: tuple[Path, Path]) -> dict[str, Any]:
    keys = ("model", "threads", "precision", "engine", "work")
    return {key: getattr(options, key) for key in keys} | {"paths": paths}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", choices=["full", "peers"])
    parser.add_argument("--side", type=int)
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--part", choices=["align", "engine", "bare"], help="of `full`, by itself")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "terralapse-benchmark")
    parser.add_argument("--geoai", help="a Python with geoai-py and odc-geo")
    options = parser.parse_args()
    is_full = options.report == "full"
    options.side = options.side or (10_980 if is_full else 4096)
    options.model = options.model or ("lapsenet/s2" if is_full else "lapsenet/rgb")
    (full if is_full else peers)(options)


if __name__ == "__main__":
    main()
