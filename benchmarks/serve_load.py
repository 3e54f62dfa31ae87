"""What the map server bears: tiles for 1, 8 and 32 clients beside titiler, and pages that follow an analysis.

    python benchmarks/serve_load.py [--titiler PYTHON] [--tiles 160] [--json FILE]

Both servers are one process each with plain uvicorn, over the same COGs, and are asked for the same tiles of
256 pixels by the same client, one after the other in one run, in turns of which comes first. `cold` is the
first time that a tile is asked for, `warm` the times after it. titiler lives in a Python of its own: that of
`--titiler`, else one is made with uv in a temporary folder. Ends with code 1 when an aim is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil

SIDE = 6144
CLIENTS = (1, 8, 32)
WARM = 3  # times that each tile is asked for again
AIMS = {"p95": 1.0, "cold": 1.5, "warm": 5.0}
STREAMS = 50

SERVER = """
import sys
from pathlib import Path
from terralapse.serve import jobs
from terralapse.serve.attempts import Here
from terralapse.serve.options import Limits, Options
from terralapse.serve.run import serve
results, work, inputs, tick = map(Path, sys.argv[1:])
jobs.Here = lambda _command: Here((sys.executable, str(tick)))  # an analysis that only says how far it is
free = Limits(rate=1e9, burst=10**9)
options = Options((results,), port=0, workspace=work, inputs=(inputs,), limits=free)
serve(options, lambda line: print(line, flush=True))
"""
TICK = """
import json, os, sys, threading, time
sys.stdin.readline()
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(75)), daemon=True).start()
while True:
    print(json.dumps({"stage": f"{time.time():.3f}", "share": 0.5}), flush=True)
    time.sleep(0.25)
"""
TITILER = """
import sys, uvicorn
from titiler.application.main import app
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""
# What titiler's documentation recommends for reading COGs.
TITILER_GDAL = {
    "GDAL_CACHEMAX": "200",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "5000000",
}


@dataclass(frozen=True)
class Server:
    """One that listens: its port and, by layer, what comes before and after `z/x/y` in a path."""

    name: str
    port: int
    process: psutil.Process
    paths: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Found:
    """What one pass has shown: seconds of each answer in order of size, of the whole pass, and of CPU
    in the server."""

    seconds: list[float]
    wall: float
    cpu: float
    bytes: int

    def quantile(self, share: float) -> float:
        """Milliseconds below which that share of the answers stayed."""
        return 1000 * self.seconds[min(len(self.seconds) - 1, math.ceil(share * len(self.seconds)) - 1)]

    def row(self) -> dict[str, float]:
        """Numbers for the table."""
        return {
            "p50_ms": round(self.quantile(0.5), 2),
            "p95_ms": round(self.quantile(0.95), 2),
            "per_s": round(len(self.seconds) / self.wall, 1),
            "cpu_ms": round(1000 * self.cpu / len(self.seconds), 2),
            "bytes": round(self.bytes / len(self.seconds)),
        }


# --- what is served ----------------------------------------------------------------------------------
def make(folder: Path) -> Path:
    """A products folder with a picture and a map of probabilities, of ground that never was."""
    import rasterio
    from rasterio.transform import from_origin

    result = folder / "results" / "load"
    result.mkdir(parents=True)
    rng = np.random.default_rng(0)
    small = [rng.normal(size=(SIDE // s, SIDE // s)).astype(np.float32) for s in (64, 8)]
    ground = sum(
        np.kron(a, np.ones((s, s), np.float32)) * w for a, s, w in zip(small, (64, 8), (28, 14), strict=True)
    )
    noise = rng.integers(-5, 6, (SIDE, SIDE), np.int8)
    picture = np.stack([np.clip(ground * g + noise + 110, 0, 255).astype(np.uint8) for g in (0.9, 1.0, 0.7)])
    probability = np.clip(ground * 1.5 + 60, 0, 200).astype(np.uint8)
    place = from_origin(380_000, 4_110_000, 1, 1)
    common = {"driver": "COG", "width": SIDE, "height": SIDE, "dtype": "uint8", "crs": "EPSG:32615"}
    common |= {
        "transform": place,
        "compress": "deflate",
        "level": 1,
        "blocksize": 512,
        "num_threads": "all_cpus",
    }
    with rasterio.open(result / "before.tif", "w", count=3, photometric="rgb", **common) as file:
        file.write(picture)
    with rasterio.open(result / "prob.tif", "w", count=1, nodata=255, **common) as file:
        file.write(probability, 1)
    grid = {"transform": list(place), "crs": "EPSG:32615", "width": SIDE, "height": SIDE}
    record = {"run_id": "0" * 12, "grid": grid, "summary": {"summary": "A load."}, "settings": {}}
    (result / "run.json").write_text(json.dumps(record))
    return result


def tiles(picture: Path, count: int) -> list[tuple[int, int, int]]:
    """Tiles that lie on the picture, at its own zoom and the two above, always in the same order."""
    import rasterio
    from rasterio.warp import transform_bounds

    with rasterio.open(picture) as file:
        west, south, east, north = transform_bounds(file.crs, "EPSG:3857", *file.bounds)
    world = 2 * math.pi * 6378137
    zoom = round(math.log2(world / 256 / ((east - west) / SIDE)))
    found = []
    for z in (zoom, zoom - 1, zoom - 2):
        step = world / 2**z
        columns = range(int((west + world / 2) / step), int((east + world / 2) / step) + 1)
        rows = range(int((world / 2 - north) / step), int((world / 2 - south) / step) + 1)
        found += [(z, x, y) for x in columns[1:-1] for y in rows[1:-1]]
    random.Random(0).shuffle(found)
    if len(found) < count:
        raise SystemExit(f"There are only {len(found)} tiles.")
    return found[:count]


# --- the two servers ---------------------------------------------------------------------------------
@contextmanager
def started(command: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended at the end."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def ours(folder: Path, result: Path) -> Iterator[Server]:
    """`terralapse serve` without a limit on the rate, with an analysis that only ticks."""
    for name in ("work", "inputs"):
        (folder / name).mkdir()
    for name in ("a.tif", "b.tif"):
        shutil.copy(result / "prob.tif", folder / "inputs" / name)
    (folder / "tick.py").write_text(TICK)
    words = [str(p) for p in (result.parent, folder / "work", folder / "inputs", folder / "tick.py")]
    with started([sys.executable, "-c", SERVER, *words]) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        paths = {
            "picture": ("/tiles/load-00000000/before/", ".png"),
            "probability": ("/tiles/load-00000000/probability/", ".png"),
        }
        yield Server("terralapse", port, psutil.Process(process.pid), paths)


@contextmanager
def theirs(python: str, result: Path) -> Iterator[Server]:
    """titiler as its own application."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with started([python, "-c", TITILER, str(port)], **TITILER_GDAL) as process:
        until = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > until:
                raise SystemExit("titiler did not start.")
            time.sleep(0.2)
        base = "/cog/tiles/WebMercatorQuad/"
        picture, probability = (quote(str(result / n), safe="") for n in ("before.tif", "prob.tif"))
        soft = "resampling=bilinear&reproject=bilinear"
        paths = {
            "picture": (base, f".png?url={picture}&{soft}"),
            "probability": (base, f".png?url={probability}&rescale=0,200&colormap_name=viridis"),
        }
        yield Server("titiler", port, psutil.Process(process.pid), paths)


def rival(given: str | None, folder: Path) -> str:
    """A Python in which titiler is."""
    if given is not None:
        return given
    python = folder / "rival" / "bin" / "python"
    for words in (
        ["venv", "-q", str(folder / "rival")],
        ["pip", "install", "-q", "--python", str(python), "titiler.application", "uvicorn"],
    ):
        subprocess.run(["uv", *words], check=True)
    return str(python)


# --- the clients -------------------------------------------------------------------------------------
async def ask(server: Server, paths: list[str], clients: int) -> Found:
    """Each path once, over as many connections as there are clients, each waiting for its answer."""
    left = iter(paths)
    seconds: list[float] = []
    size = 0

    async def client() -> None:
        nonlocal size
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for path in left:
            since = time.perf_counter()
            writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            if not head.startswith("http/1.1 200"):
                raise SystemExit(f"{server.name} {path}: {head.splitlines()[0]}")
            length = int(head.partition("content-length: ")[2].partition("\r")[0])
            size += len(await reader.readexactly(length))
            seconds.append(time.perf_counter() - since)
        writer.close()

    began, used = time.perf_counter(), sum(server.process.cpu_times()[:2])
    await asyncio.gather(*(client() for _ in range(clients)))
    used = sum(server.process.cpu_times()[:2]) - used
    return Found(sorted(seconds), time.perf_counter() - began, used, size)


def of(server: Server, layer: str, wanted: list[tuple[int, int, int]]) -> list[str]:
    head, tail = server.paths[layer]
    return [f"{head}{z}/{x}/{y}{tail}" for z, x, y in wanted]


async def compare(
    servers: list[Server], layer: str, count: int, every: list[tuple[int, int, int]]
) -> dict[str, Any]:
    """By clients, then cold and warm, then server: a row; ratios are above 1 where terralapse is better."""
    found: dict[str, Any] = {}
    for turn, clients in enumerate(CLIENTS):
        wanted = every[turn * count : (turn + 1) * count]
        rows: dict[str, dict[str, dict[str, float]]] = {"cold": {}, "warm": {}}
        for server in servers if turn % 2 else servers[::-1]:
            paths = of(server, layer, wanted)
            rows["cold"][server.name] = (await ask(server, paths, clients)).row()
            rows["warm"][server.name] = (await ask(server, paths * WARM, clients)).row()
        for name, row in rows.items():
            mine, their = row["terralapse"], row["titiler"]
            lower = ("p50_ms", "p95_ms", "cpu_ms")
            ratios = {k: round(their[k] / max(mine[k], 0.01), 2) for k in lower}
            found.setdefault(str(clients), {})[name] = row | {
                "ratio": ratios | {"per_s": round(mine["per_s"] / their["per_s"], 2)}
            }
    return found


async def follow(server: Server, cold: list[str]) -> dict[str, Any]:
    """Tiles of 8 clients without and with `STREAMS` open streams of events, and how late the news is."""
    body = json.dumps({"before": "inputs/a.tif", "after": "inputs/b.tif", "model": "difference"})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    kind = "Content-Type: application/json\r\nConnection: close"
    head = f"POST /api/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write((head + body).encode())
    said = (await reader.read()).partition(b"\r\n")[0]
    if b"201" not in said:
        raise SystemExit(f"The analysis was not taken: {said.decode()}")
    half = len(cold) // 2
    without = await ask(server, cold[:half], 8)
    late: list[list[float]] = [[] for _ in range(STREAMS)]
    ready = asyncio.Semaphore(0)

    async def stream(mine: list[float]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /api/jobs/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        ready.release()
        while True:
            line = await reader.readline()
            if not line.startswith(b"data: "):
                continue
            stage = json.loads(line[6:])["jobs"][0]["stage"]
            if stage:
                mine.append(time.time() - float(stage))

    streams = [asyncio.create_task(stream(mine)) for mine in late]
    for _ in streams:
        await ready.acquire()
    await asyncio.sleep(2)
    for mine in late:
        mine.clear()  # the first news of each is what had happened before
    since = time.perf_counter()
    cold_with = await ask(server, cold[half:], 8)
    warm_with = await ask(server, cold[half:] * WARM * 4, 8)
    left = 3 - (time.perf_counter() - since)
    await asyncio.sleep(max(0.0, left))
    lasted = time.perf_counter() - since
    for task in streams:
        task.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    every = sorted(x for mine in late for x in mine)
    return {
        "streams": STREAMS,
        "events_per_stream_per_s": round(statistics.mean(len(m) for m in late) / lasted, 2),
        "fewest_events_of_a_stream": min(len(m) for m in late),
        "late_ms": {
            "p50": round(1000 * every[len(every) // 2]),
            "p95": round(1000 * every[int(len(every) * 0.95)]),
        },
        "cold_without_streams": without.row(),
        "cold_with_streams": cold_with.row(),
        "warm_with_streams": warm_with.row(),
    }


# --- the table ---------------------------------------------------------------------------------------
def table(found: dict[str, Any]) -> str:
    """Markdown, as in docs/benchmarks.md."""
    lines = [
        "| layer | clients | cache | terralapse p50 / p95 (ms), tiles/s | titiler p50 / p95 (ms), tiles/s "
        "| p95 | throughput | CPU a tile |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for layer, by_clients in found["tiles"].items():
        for clients, rows in by_clients.items():
            for cache, row in rows.items():
                said = [
                    f"{row[n]['p50_ms']:.1f} / {row[n]['p95_ms']:.1f}, {row[n]['per_s']:.0f}"
                    for n in ("terralapse", "titiler")
                ]
                ratio = row["ratio"]
                lines.append(
                    f"| {layer} | {clients} | {cache} | {said[0]} | {said[1]} | {ratio['p95_ms']:.2f} x "
                    f"| {ratio['per_s']:.2f} x | {ratio['cpu_ms']:.2f} x |"
                )
    return "\n".join(lines)


def missed(found: dict[str, Any]) -> list[str]:
    """What stays below its aim."""
    said = []
    for layer, by_clients in found["tiles"].items():
        for clients, rows in by_clients.items():
            for cache, row in rows.items():
                for name, aim in (("p95_ms", AIMS["p95"]), ("per_s", AIMS[cache])):
                    if row["ratio"][name] < aim:
                        said.append(
                            f"{layer}, {clients} clients, {cache}: {name} {row['ratio'][name]} x, aim {aim} x"
                        )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--titiler", metavar="PYTHON", help="of a place where titiler.application is installed"
    )
    parser.add_argument("--tiles", type=int, default=160, help="for each number of clients")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    chosen = parser.parse_args()
    began = time.time()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="terralapse-load-")))
        python = rival(chosen.titiler, folder)
        result = make(folder)
        every = tiles(result / "before.tif", chosen.tiles * len(CLIENTS))
        servers = [held.enter_context(ours(folder, result)), held.enter_context(theirs(python, result))]
        found: dict[str, Any] = {"side": SIDE, "tiles_per_pass": chosen.tiles, "tiles": {}}
        for server in servers:  # open files and compiled code are not what is compared
            for layer in server.paths:
                asyncio.run(ask(server, of(server, layer, every[:1]), 1))
        for layer in ("picture", "probability"):
            found["tiles"][layer] = asyncio.run(compare(servers, layer, chosen.tiles, every[1:] + every[:1]))
        webp = of(servers[0], "picture", every[: chosen.tiles])
        webp = [p.removesuffix(".png") + ".webp" for p in webp]
        found["picture_webp_8_clients"] = asyncio.run(ask(servers[0], webp, 8)).row()
        codes = [p + "?style=codes" for p in of(servers[0], "probability", every[: chosen.tiles])]
        found["streams"] = asyncio.run(follow(servers[0], codes))
        names = ("titiler.core", "rio-tiler", "uvicorn")
        asked = f"import importlib.metadata as m; print(*map(m.version, {names}))"
        done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
        found["titiler, rio-tiler, uvicorn"] = done.stdout.strip()
    found["load_of_the_machine_1_min"] = round(os.getloadavg()[0], 1)
    found["seconds"] = round(time.time() - began)
    print(table(found))
    print(json.dumps({k: v for k, v in found.items() if k != "tiles"}, indent=1))
    short = missed(found)
    print("\n".join(f"missed: {s}" for s in short) or "All aims are met.")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
