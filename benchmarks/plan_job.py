"""How long a country and the land surface take, from the time of one unit: a simulation, not a measurement.

python benchmarks/plan_job.py SECONDS [--spread S] [--stragglers SHARE] [--faults SHARE]

SECONDS is what `terralapse plan` measures for a unit of 2048 x 2048 pixels on a quiet machine.
"""

from __future__ import annotations

import argparse
import math

from terralapse.engine.jobs.simulate import Rates, makespan

CELL_KM2 = (2048 * 0.010) ** 2
AREAS_KM2 = {"Austria": 83_900, "France, in Europe": 551_700, "the land surface": 148_900_000}
WORKERS = (1, 10, 100, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--spread", type=float, default=0.3)
    parser.add_argument("--stragglers", type=float, default=0.01)
    parser.add_argument("--faults", type=float, default=0.01)
    told = parser.parse_args()
    rates = Rates(told.seconds, told.spread, told.stragglers, faults=told.faults)
    print("| area | units | " + " | ".join(f"hours on {w}" for w in WORKERS) + " |")
    print("| --- |" + " --- |" * (len(WORKERS) + 1))
    for name, km2 in AREAS_KM2.items():
        units = math.ceil(km2 / CELL_KM2)
        hours = [f"{makespan(units, w, rates) / 3600:,.1f}" for w in WORKERS]
        print(f"| {name} | {units:,} | " + " | ".join(hours) + " |")


if __name__ == "__main__":
    main()
