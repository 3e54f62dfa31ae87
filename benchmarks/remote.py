"""`terralapse change` from addresses beside the same files on disk, over a server whose answers come late.

    python benchmarks/remote.py [--side 2048] [--delays 0 20 50 100] [--repeats 1]

A pair of three-band 8-bit files of 512-pixel blocks is made once. The default model runs without pictures,
once for nothing and then from disk and from each server. The server is a process of its own on this machine:
it waits so long before each answer, and once more for each new connection, and its bandwidth has no limit.
The seconds are those of `run.json`, from the opening of the files to the last product. Nothing that was
fetched is kept from run to run. Writes `benchmarks/results/remote.json` and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(sources: list[str]) -> dict[str, Any]:
    """One change run: seconds by stage, and what it found."""
    import terralapse

    with tempfile.TemporaryDirectory() as folder:
        terralapse.change(*sources, Path(folder) / "out", pictures=False)
        record = json.loads((Path(folder) / "out/run.json").read_text())
    return {
        "seconds": round(sum(record["seconds"].values()), 2),
        "stages": record["seconds"],
        "model": record["model"]["slug"],
        "changed_pixels": record["engine"]["changed_pixels"],
    }


def over_http(paths: list[Path], delay_ms: float) -> dict[str, Any]:
    """The same from a server that waits so many milliseconds; adds what the server saw."""
    from terralapse.grid import _ranges

    server = subprocess.Popen(
        [sys.executable, ROOT / "tests/file_server.py", paths[0].parent, "--delay", str(delay_ms / 1000)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    _ranges._STORE.clear()
    try:
        address = server.stdout.readline().strip()
        found = run([f"{address}/{path.name}" for path in paths])
    finally:
        seen = server.communicate("\n")[0].split()
    requests, sent, most_open = (int(n) for n in seen)
    stored = sum(path.stat().st_size for path in paths)
    return found | {"requests": requests, "share": round(sent / stored, 3), "most_open": most_open}


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run of the median time."""
    wanted = statistics.median_low([r["seconds"] for r in runs])
    return next(r for r in runs if r["seconds"] == wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--delays", type=float, nargs="*", default=[0, 20, 50, 100])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "terralapse-benchmark")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/remote.json")
    options = parser.parse_args()
    from scene import make_pair

    paths = list(make_pair(options.work, options.side, ("red", "green", "blue"), zones=(32, 32)))
    run([str(p) for p in paths])  # compiles and imports
    local = middle([run([str(p) for p in paths]) for _ in range(options.repeats)])
    rows = []
    print("| latency (ms) | seconds | of local | requests | bytes fetched, of the files |")
    print("| --- | --- | --- | --- | --- |")
    print(f"| local | {local['seconds']} | 1 | | |", flush=True)
    for delay in options.delays:
        row = middle([over_http(paths, delay) for _ in range(options.repeats)])
        if row["changed_pixels"] != local["changed_pixels"]:
            raise SystemExit(f"at {delay:g} ms another result came out")
        row |= {"delay_ms": delay, "ratio": round(row["seconds"] / local["seconds"], 2)}
        rows.append(row)
        print(f"| {delay:g} | {row['seconds']} | {row['ratio']} | {row['requests']} | ", end="")
        print(f"{row['share']:.2f} |", flush=True)
    record = {
        "side": options.side,
        "file_bytes": [path.stat().st_size for path in paths],
        "load": round(os.getloadavg()[0], 1),
        "local": local,
        "remote": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
