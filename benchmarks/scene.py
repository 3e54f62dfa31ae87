"""Scene prediction from files to files: how near it comes to the bare network, and in how much memory.

    python benchmarks/scene.py full  [--side 10980] [--threads N] [--work FOLDER] [--model lapsenet/s2]
    python benchmarks/scene.py peers [--side 4096]  [--geoai PYTHON] ...

`full` makes a pair of four-band uint16 images of one place in two UTM zones, aligns it, and runs the model
from the two files to the three rasters. It prints millions of pixels of the scene per second, the rate of the
bare network on tiles that are already in memory (the same tiles, halos counted as if they were wanted; the
same threads and precision), the ratio of the two, and the peak memory of the whole process.

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
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

CELL = 2048  # the noise repeats
MIDDLE = 1024  # side of the part that is compared with one pass


# --- the pair --------------------------------------------------------------------------------------
def make_pair(work: Path, side: int, bands: tuple[str, ...], *, zones: tuple[int, int]) -> tuple[Path, Path]:
    """Two images of one place: smooth noise, repeated, with squares that changed in the second."""
    from pyproj import Transformer

    work.mkdir(parents=True, exist_ok=True)
    x0, y0 = 600_000, 5_000_000
    crs = tuple(f"EPSG:326{zone}" for zone in zones)
    x, y = Transformer.from_crs(*crs, always_xy=True).transform(x0 + side * 5, y0 - side * 5)
    origins = (x0, y0), (round(x - side * 5, -1), round(y + side * 5, -1))
    names = ("before", "after")
    paths = tuple(work / f"{n}-{len(bands)}x{side}-{z}.tif" for n, z in zip(names, zones, strict=True))
    for date in (0, 1):
        if not paths[date].exists():
            _write_image(paths[date], side, bands, crs[date], origins[date], date)
    return paths[0], paths[1]


def _write_image(
    path: Path, side: int, bands: tuple[str, ...], crs: str, origin: tuple[float, float], date: int
) -> None:
    import rasterio
    from rasterio.transform import Affine
    from scipy.ndimage import gaussian_filter

    top = 255 if len(bands) == 3 else 10_000
    rng = np.random.default_rng(7)
    cell = np.empty((len(bands), CELL, CELL), np.uint8 if top == 255 else np.uint16)
    for band in range(len(bands)):
        rough = rng.normal(size=(CELL, CELL))
        smooth = sum(s * gaussian_filter(rough, s, mode="wrap") for s in (1.5, 6, 24))
        cell[band] = (top * (0.3 + 0.08 * smooth / smooth.std())).clip(1, top)
    squares = np.random.default_rng(8)
    for row, col in squares.integers(0, CELL - 40, (60, 2)) if date else ():
        level = squares.integers(top // 10, top * 7 // 10, (len(bands), 1, 1))
        cell[:, row : row + 40, col : col + 40] = level
    profile = {"driver": "GTiff", "height": side, "width": side, "count": len(bands), "dtype": cell.dtype}
    profile |= {"crs": crs, "transform": Affine(10, 0, origin[0], 0, -10, origin[1]), "nodata": 0}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    draft = path.with_suffix(".part")
    with rasterio.open(draft, "w", **profile) as opened:
        opened.descriptions = bands
        across = np.arange(side) % CELL
        for row in range(0, side, 512):
            down = np.arange(row, min(row + 512, side)) % CELL
            opened.write(cell[:, down][:, :, across], window=((row, row + len(down)), (0, side)))
    draft.replace(path)


# --- what is measured, each in a process of its own ------------------------------------------------
def build(model: str) -> Any:
    from terralapse import registry

    return registry.build(model)


def aligned(paths: tuple[Path, Path], detector: Any, *, coregister: bool) -> Any:
    from terralapse.grid.align import align
    from terralapse.grid.open import open_scene

    scenes = [open_scene(path) for path in paths]
    return align(*scenes, bands=detector.card.inputs.bands, coregister=coregister)


def engine(job: dict[str, Any]) -> dict[str, Any]:
    """From two files to three rasters."""
    from terralapse.engine.scene import predict_scene
    from terralapse.grid._gdal import gdal_env

    clock = time.perf_counter()
    detector = build(job["model"])
    with gdal_env(), tempfile.TemporaryDirectory(dir=job["work"]) as folder:
        pair = aligned(job["paths"], detector, coregister=job["coregister"])
        aligned_s = time.perf_counter() - clock
        sink = None
        if "keep" in job:  # probabilities before they are rounded for storage
            kept = np.lib.format.open_memmap(job["keep"], "w+", np.float32, pair.shape)

            def sink(piece: Any) -> None:
                kept[piece.window.slices] = piece.prob

        options = {"threads": job["threads"], "precision": job["precision"], "sink": sink}
        result = predict_scene(detector, pair, Path(folder), **options)
        seconds = time.perf_counter() - clock
    pixels = pair.shape[0] * pair.shape[1]
    return {
        "shape": pair.shape,
        "seconds": seconds,
        "align_s": aligned_s,
        "mpix_s": pixels / seconds / 1e6,
        "valid_share": result.valid_pixels / pixels,
        "precision": result.precision["name"],
        "stages": result.seconds,
        "plan": result.plan,
        "state": result.state,
    }


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """The network alone, on tiles of the engine's size that lie in memory."""
    import torch

    from terralapse.engine import memory
    from terralapse.engine.plan import ScenePlan
    from terralapse.engine.runner import TorchRunner, torch_settings

    detector = build(job["model"])
    read = ScenePlan.from_dict(job["plan"]).tile(0, 0).read
    block = aligned(job["paths"], detector, coregister=False).read(read)
    rates = {}
    for name, setting in (("as torch is", nullcontext), ("memory kept", memory.big_blocks_stay)):
        with torch_settings(job["threads"]), setting():
            run = TorchRunner(detector, job["state"], torch.device("cpu"), job["precision"])
            images = block.images[None]
            run(images)
            spent: list[tuple[float, float]] = []
            while sum(s for s, _ in spent) < job["patience"] or len(spent) < 5:
                since, cpu = time.perf_counter(), time.process_time()
                run(images)
                spent.append((time.perf_counter() - since, time.process_time() - cpu))
        mpix = read.height * read.width / 1e6
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
    from terralapse.grid.scene import Window

    detector, halo = build(job["model"]), job["halo"]
    pair = aligned(job["paths"], detector, coregister=False)
    start = (pair.shape[0] - MIDDLE) // 2 - halo
    start -= start % detector.multiple  # the phase of the network's strides
    side = MIDDLE + 2 * halo
    prob = _call(detector, pair.read(Window(start, start, side, side)).images, job)
    np.save(job["keep"], prob[halo : halo + MIDDLE, halo : halo + MIDDLE])
    return {"start": start + halo}


JOBS = {f.__name__: f for f in (engine, bare, loop, geoai, once)}


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
    ran = measure("engine", coregister=True, **common)
    common |= {"precision": ran["precision"]}
    alone = measure("bare", plan=ran["plan"], state=ran["state"], patience=15, **common)
    fastest, thriftiest = (max(column) for column in zip(*alone["rates"].values(), strict=True))
    per_cpu = ran["shape"][0] * ran["shape"][1] / 1e6 / ran["cpu_s"]
    (height, width), plan = ran["shape"], ran["plan"]
    print(f"scene          {height} x {width} pixels, {ran['valid_share']:.0%} valid, {options.model}")
    print(f"tiles          {plan['core_height']} x {plan['core_width']}, halo {plan['halo']}")
    print(f"computing      {options.threads} threads, {ran['precision']}; load {os.getloadavg()[0]:.1f}")
    print(f"end to end     {ran['mpix_s']:.3f} MPix/s in {ran['seconds']:.0f} s ({ran['cpu_s']:.0f} CPU s)")
    for name, (rate, rate_cpu) in alone["rates"].items():
        print(f"bare network   {rate:.3f} MPix/s, {rate_cpu:.3f} MPix/CPU s, {name}")
    print(f"ratio          {ran['mpix_s'] / fastest:.2f} of the clock (target 0.60), ", end="")
    print(f"{per_cpu / thriftiest:.2f} of CPU seconds, which other work on the machine does not change")
    print(f"peak memory    {ran['peak_gb'] / 1.073741824:.2f} GiB (target 2)")
    stages = {"align": ran["align_s"], **ran["stages"]}
    print("seconds        " + ", ".join(f"{name} {value:.0f}" for name, value in stages.items()))


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
    keys = ("model", "threads", "precision", "work")
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
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "terralapse-benchmark")
    parser.add_argument("--geoai", help="a Python with geoai-py and odc-geo")
    options = parser.parse_args()
    is_full = options.report == "full"
    options.side = options.side or (10_980 if is_full else 4096)
    options.model = options.model or ("lapsenet/s2" if is_full else "lapsenet/rgb")
    (full if is_full else peers)(options)


if __name__ == "__main__":
    main()
