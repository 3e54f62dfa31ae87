"""Speed of break detection beside a plain numpy loop, and the memory of a whole run.

    python benchmarks/series.py fit [pixels] [dates]
    python benchmarks/series.py memory [side ...]
    python benchmarks/series.py accuracy
    python benchmarks/series.py steps CUBE.nc
    python benchmarks/series.py short

`fit`: the monitor on series of five years with a gap in five and a step in half of the pixels. The numpy loop
does less: it takes each pixel's observations and makes one least-squares fit of the full model
(`numpy.linalg.lstsq`), without start, monitoring or breaks. Both on one thread, compilation left out.

`memory`: `terralapse series` on 24 dates of two float32 bands of the given sides, each in a process of its
own; peak resident memory and seconds by stage, from run.json.

`accuracy`: steps of known size and date in 2,000 series of season, trend, normal noise of 0.03 and gaps.

`steps`: steps put into a real cube of NDVI at 1 January 2017, in which nothing else is known to break.

`short`: `fit` and `accuracy` on so few pixels that a minute is enough: to see that they run, not for figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from terralapse.engine.breaks import BreakSettings, design, find_breaks

START = 16000.0
SIDES = (512, 1024, 2048)


def stack(pixels: int, dates: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    days = np.sort(rng.uniform(START, START + 5 * 365.25, dates))
    phase = rng.uniform(0, 2 * np.pi, pixels)
    y = 0.5 + 0.2 * np.cos(2 * np.pi * days[:, None] / 365.25 + phase)
    y += rng.normal(0, 0.03, y.shape)
    y[dates // 2 :, ::2] -= 0.3
    y[rng.random(y.shape) < 0.2] = np.nan
    return y.astype(np.float32)[:, None], days


def plain(y: np.ndarray, days: np.ndarray) -> np.ndarray:
    x = design(days)
    errors = np.empty(y.shape[2])
    for i in range(y.shape[2]):
        known = np.isfinite(y[:, 0, i])
        found = np.linalg.lstsq(x[known], y[known, 0, i].astype(np.float64), rcond=None)
        errors[i] = np.sqrt(found[1][0] / (known.sum() - 8))
    return errors


def fit(pixels: int, dates: int) -> None:
    y, days = stack(pixels, dates)
    settings = BreakSettings(floor=1e-6)
    find_breaks(y[:, :, :8], days, settings)  # compiles
    print(f"{pixels:,} pixels, {dates} dates, one thread (CPU seconds)")
    for name, job in (
        ("monitor", lambda: find_breaks(y, days, settings)),
        ("numpy loop", lambda: plain(y, days)),
    ):
        seconds = np.inf
        for _ in range(3):
            start = time.process_time()
            job()
            seconds = min(seconds, time.process_time() - start)
        print(f"{name:<12}{pixels / seconds:>12,.0f} pixels/s")


def memory(sides: list[int]) -> None:
    days = np.datetime64("2018-01-03") + (np.arange(24) * 45).astype("timedelta64[D]")
    rng = np.random.default_rng(0)
    for side in sides:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "stack"
            folder.mkdir()
            profile = {"driver": "GTiff", "count": 2, "height": side, "width": side, "dtype": "float32"}
            profile |= {"crs": "EPSG:32633", "transform": from_origin(5e5, 5e6, 10, 10), "tiled": True}
            for day in days:
                name = folder / f"a_{str(day).replace('-', '')}.tif"
                with rasterio.open(name, "w", **profile) as sink:
                    sink.write(rng.uniform(0.05, 0.5, (2, side, side)).astype("float32"))
                    sink.descriptions = ("red", "nir")
            out = Path(scratch) / "out"
            command = [sys.executable, "-m", "terralapse", "series", str(folder), "-o", str(out), "-q"]
            subprocess.run([*command, "--threads", "1"], check=True)
            run = json.loads((out / "run.json").read_text())
            print(f"{side:>6} px  {run['peak_memory_bytes'] / 2**20:>7,.0f} MiB  {run['seconds']}")


def accuracy(pixels: int = 2000) -> None:
    rng = np.random.default_rng(0)
    days = np.sort(rng.uniform(START, START + 5 * 365.25, 120))
    phase = rng.uniform(0, 2 * np.pi, pixels)
    y = 0.5 + 0.2 * np.cos(2 * np.pi * days[:, None] / 365.25 + phase)
    y += 0.01 * (days[:, None] - START) / 365.25 + rng.normal(0, 0.03, y.shape)
    y[rng.random(y.shape) < 0.2] = np.nan
    report(y[:, None], days, 70, (0.0, -0.06, -0.09, -0.12, -0.15, -0.3), BreakSettings(floor=1e-6))


def steps(path: str) -> None:
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf") as cube:
        y, days = cube["ndvi"].values, cube["time"].values.astype("M8[s]").astype(np.float64) / 86400
    at = int(np.searchsorted(days, np.datetime64("2017-01-01").astype("M8[D]").astype(np.float64)))
    report(y, days, at, (0.0, -0.2, -0.3, -0.4, -0.5, -0.6), BreakSettings(floor=0.005))


def report(
    y: np.ndarray, days: np.ndarray, at: int, sizes: tuple[float, ...], settings: BreakSettings
) -> None:
    """One row a size of step: share found, days from the first observation after it, magnitude."""
    known = np.isfinite(y)
    for size in sizes:
        changed = y.copy()
        changed[at:] += size
        found = find_breaks(changed, days, settings)
        hit = (found.count > 0) & known[at:].any(axis=0)
        row = f"step {size:+.2f}  found {hit.mean():.4f}  set aside {found.outliers.sum() / known.sum():.4f}"
        row += f"  error {np.nanmedian(found.error):.4f}"
        if hit.any():
            first = at + known[at:].argmax(axis=0)
            off = np.percentile(found.day[hit] - np.floor(days[first[hit]]), (5, 50, 95))
            low, middle, high = np.nanpercentile(found.magnitude[hit], (5, 50, 95))
            row += f"  days off {off}  magnitude {middle:+.3f} ({low:+.3f} to {high:+.3f})"
        print(row)


def main() -> None:
    mode = (sys.argv[1:2] or ["fit"])[0]
    if mode == "accuracy":
        return accuracy()
    if mode == "short":
        fit(200, 60)
        return accuracy(50)
    if mode == "steps":
        return steps(sys.argv[2])
    numbers = [int(a) for a in sys.argv[2:]]
    if mode == "memory":
        memory(numbers or list(SIDES))
    else:
        fit(numbers[0] if numbers else 20_000, numbers[1] if len(numbers) > 1 else 120)


if __name__ == "__main__":
    main()
