"""Memory of the workers of a job: whether it grows with the number of units that they have done.

    python benchmarks/job_memory.py BEFORE AFTER --crs EPSG:32632 [--cell 1024] [--model lapsenet/s2]

Runs `terralapse run` over the pair, cut into cells, on a Dask cluster of two worker processes, and looks ten
times a second at the resident memory of each. Printed is the largest of either over each tenth of the units:
flat is good.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

TENTHS = 10
MIB = 1 << 20


def watch(pids: list[int], journal: Path, stop: threading.Event, seen: list[tuple[int, int]]) -> None:
    """Appends (units done, resident bytes of the largest worker) until told to stop."""
    import psutil

    workers = [psutil.Process(pid) for pid in pids]
    while not stop.wait(0.1):
        done = 0
        if journal.is_file():
            done = sum('"done"' in line for line in journal.read_text(encoding="utf-8").splitlines())
        seen.append((done, max(worker.memory_info().rss for worker in workers)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--crs", required=True)
    parser.add_argument("--resolution", type=float, default=10)
    parser.add_argument("--cell", type=int, default=1024)
    parser.add_argument("--model", default="lapsenet/s2")
    told = parser.parse_args()
    from distributed import Client, LocalCluster

    pair = {"name": "all", "before": str(told.before.resolve()), "after": str(told.after.resolve())}
    plan = {
        "name": "memory",
        "source": {"pairs": [pair]},
        "grid": {"crs": told.crs, "resolution": told.resolution, "cell": told.cell, "margin": 64},
        "settings": {"model": told.model},
        "products": ["raster"],
    }
    options: dict[str, Any] = {"dashboard_address": None, "host": "127.0.0.1", "silence_logs": 50}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.yaml").write_text(json.dumps(plan), encoding="utf-8")
        local: Any = LocalCluster(n_workers=2, threads_per_worker=1, **options)
        with local as cluster, Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
            stop, seen = threading.Event(), list[tuple[int, int]]()
            looking = threading.Thread(
                target=watch, args=(pids, folder / "job/journal.jsonl", stop, seen), daemon=True
            )
            looking.start()
            command = (sys.executable, "-m", "terralapse", "run", str(folder / "plan.yaml"))
            command = (*command, "-o", str(folder / "job"), "--cluster", cluster.scheduler_address, "--json")
            code = subprocess.run(command, check=False).returncode
            stop.set()
            looking.join()
    units = max(done for done, _ in seen)
    print(f"exit code {code}, {units} units on two workers of one thread")
    print("| units done | most memory of a worker (MiB) |\n| --- | --- |")
    for tenth in range(TENTHS):
        low, high = units * tenth // TENTHS, units * (tenth + 1) // TENTHS
        found = [memory for done, memory in seen if low <= done < high]
        if found:
            print(f"| {low} to {high} | {max(found) / MIB:,.0f} |")


if __name__ == "__main__":
    main()
