"""How long the package takes to be there: `import terralapse`, and `terralapse --help`.

    python benchmarks/startup.py [--runs 5]

Each run is a fresh process; the bare interpreter is measured beside them. Prints the median and the range,
and ends with code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python": (["-c", "pass"], None),
    "import terralapse": (["-c", "import terralapse"], 0.3),
    "terralapse --help": (["-m", "terralapse", "--help"], 0.7),
}


def measure(arguments: list[str], runs: int) -> list[float]:
    """Seconds on the clock of `runs` fresh processes; one more comes first, to fill the caches."""
    seconds = []
    for _ in range(runs + 1):
        since = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - since)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    missed = False
    for name, (arguments, target) in COMMANDS.items():
        seconds = measure(arguments, runs)
        median = statistics.median(seconds)
        aim = "" if target is None else f"  target {target:.1f} s"
        missed |= target is not None and median > target
        print(f"{name:20} {median:.3f} s  ({min(seconds):.3f} to {max(seconds):.3f}){aim}")
    sys.exit(missed)


if __name__ == "__main__":
    main()
