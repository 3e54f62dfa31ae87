"""How fast the selective scan is here, for every backend that can run.

    python benchmarks/scan.py [--threads N] [--repeats N]

Cases: a plain scan of 192 channels, 16 states, 4096 steps; and the scan of a first-stage ChangeMamba block,
192 channels along four directions of 256 x 256 positions at one state, once with the step sizes of rank 6
that the network has and once with all of them given. Times are minima over the repeats, on the clock and in
CPU time of the process (on a busy machine the clock says little). `x traffic` is the CPU time a thread over
the CPU time of copying as many bytes as the inputs and the output have, by one thread, in the same run.
`memory` is the most that a fresh process grew during a call, over the bytes of the inputs.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psutil
import torch
from torch import Tensor

from terralapse.layers.scan import LowRank, available, cross_paths, path_scan, selective_scan


class Case(NamedTuple):
    name: str
    inputs: list[Tensor]
    run: Callable[[list[Tensor], str], Tensor]


def tensors(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=g) for shape in shapes]


def plain(last: bool) -> Case:
    channels, states, length = 192, 16, 4096
    wide = (1, length, channels) if last else (1, channels, length)
    u, delta, A, B, C = tensors([wide, wide, (channels, states), *[(1, 1, states, length)] * 2])
    if last:
        u, delta = u.transpose(1, 2), delta.transpose(1, 2)

    def run(x: list[Tensor], backend: str) -> Tensor:
        y = selective_scan(*x, delta_softplus=True, backend=backend)
        assert isinstance(y, Tensor)
        return y

    layout = "channels last" if last else "channels first"
    return Case(f"192 x 4096, N = 16, {layout}", [u, delta, -A.abs(), B, C], run)


def crossed(dense: bool) -> Case:
    channels, side, paths, rank = 192, 256, 4, 6
    length, wide = side * side, paths * channels
    u, value, weight, A, B, C = tensors(
        [(1, length, channels), (1, paths, rank, length), (paths, channels, rank), (wide, 1)]
        + [(1, paths, 1, length)] * 2
    )
    table = cross_paths(side, side)
    inputs = [u.transpose(1, 2), -A.abs(), B, C, torch.ones(wide), torch.full((wide,), -3.0)]
    if dense:
        inputs.append(torch.einsum("bkrl,kdr->blkd", value, weight * 0.3).flatten(2).transpose(1, 2))
    else:
        inputs += [value, weight * 0.3]

    def run(x: list[Tensor], backend: str) -> Tensor:
        step = x[6] if dense else LowRank(x[6], x[7])
        return path_scan(x[0], step, *x[1:6], True, paths=table, backend=backend)

    return Case(f"192 x 256 x 256, 4 paths, N = 1, {'dense' if dense else 'rank 6'}", inputs, run)


def fastest(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least seconds on the clock and least CPU seconds."""
    wall = cpu = float("inf")
    for _ in range(repeats):
        since, used = time.perf_counter(), time.process_time()
        run()
        wall, cpu = min(wall, time.perf_counter() - since), min(cpu, time.process_time() - used)
    return wall, cpu


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes by which the process grows, looked at every millisecond."""
    process, found, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not done.wait(0.001):
            found[0] = max(found[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        found[0] = max(found[0], process.memory_info().rss - before)
        done.set()
        watcher.join()


def bandwidth(repeats: int) -> float:
    """Bytes read and written a CPU second by a copy of 200 MB."""
    source = torch.randn(50_000_000)
    target = torch.empty_like(source)
    _, cpu = fastest(lambda: target.copy_(source), repeats * 2)
    return 2 * source.nbytes / cpu


def train(case: Case, backend: str) -> None:
    leaves = [x.detach().requires_grad_() for x in case.inputs]
    y = case.run(leaves, backend)
    torch.autograd.grad(y, leaves, torch.ones_like(y))


CASES = (lambda: plain(False), lambda: plain(True), lambda: crossed(False), lambda: crossed(True))


def growth_here(index: int, backend: str) -> float:
    """Of this process, which should be fresh, during one call; the code is loaded and compiled before."""
    case, small = CASES[index](), tensors([(1, 4, 16), (4, 1), (1, 1, 1, 16)])
    with torch.no_grad():
        selective_scan(small[0], small[0], -small[1].abs(), small[2], small[2], backend=backend)
        with peak() as grown:
            kept = case.run(case.inputs, backend)
        del kept
    return grown[0] / sum(x.nbytes for x in case.inputs)


def growth(index: int, backend: str) -> float:
    """`growth_here` of a process of its own."""
    command = [sys.executable, __file__, "--threads", str(torch.get_num_threads())]
    command += ["--memory", str(index), backend]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(index: int, backend: str, repeats: int, rate: float, truth: Tensor, reference: float) -> str:
    case = CASES[index]()
    with torch.no_grad():
        y = case.run(case.inputs, backend)
        error = ((y.double() - truth).abs().max() / truth.abs().max()).item()
        del y
        wall, cpu = fastest(lambda: case.run(case.inputs, backend), repeats)
    train(case, backend)
    both, both_cpu = fastest(lambda: train(case, backend), max(1, repeats // 2))
    given = sum(x.nbytes for x in case.inputs)
    least = (given + case.inputs[0].nbytes) / rate
    ratio = f"{reference / cpu:.1f}" if reference else "-"
    traffic = cpu / torch.get_num_threads() / least
    times = " | ".join(f"{seconds * 1e3:.1f}" for seconds in (wall, cpu, both, both_cpu))
    rest = f"{traffic:.1f} | {error:.1e} | {growth(index, backend):.2f}"
    return f"| {case.name} | {backend} | {times} | {ratio} | {rest} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "BACKEND"), help="only the growth of one case")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        print(growth_here(int(options.memory[0]), options.memory[1]))
        return
    rate = bandwidth(options.repeats)
    print(f"{platform.machine()}, {psutil.cpu_count()} cores, {options.threads} threads")
    print(f"load {psutil.getloadavg()[0]:.1f}, torch {torch.__version__}, Python {sys.version.split()[0]}")
    print(f"copy: {rate / 1e9:.1f} GB/s, read and written\n")
    for name, fault in available().items():
        print(f"{name}: {fault or 'runs'}")
    print()
    columns = ("ms", "CPU ms", "train ms", "train CPU ms", "x reference", "x traffic", "error", "memory")
    print("| case | backend |", " | ".join(columns), "|")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for index, make in enumerate(CASES):
        case = make()
        small = case.inputs[0].shape[2] <= 4096
        with torch.no_grad():
            backend = "reference" if small else "portable"
            truth = case.run([x.double() for x in case.inputs], backend)
            reference = 0.0
            if small:
                _, reference = fastest(lambda c=case: c.run(c.inputs, "reference"), 2)
        for name in ("cpu", "portable"):
            if not available()[name]:
                repeats = options.repeats if name == "cpu" else 2
                print(measure(index, name, repeats, rate, truth, reference), flush=True)


if __name__ == "__main__":
    main()
