"""Runs of the engine in processes of their own, to be killed, starved of disk, or measured.

`python scene_job.py JOB ARGUMENTS` imports everything once and then runs each attempt in a forked child, so
that a test with ten attempts pays for one start. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import rasterio  # noqa: F401 - imported before the fork, as everything that takes time
import torch

from stand_ins import Attention, Convolutions, FirstBand, Slow, WavePair
from terralapse.engine import plan
from terralapse.engine.output import OutputFolder
from terralapse.engine.scene import predict_scene
from terralapse.errors import TerralapseError
from terralapse.grid.scene import Window

SCENE = WavePair(1100, 900, hole=Window(300, 200, 400, 260))


class SlowAttention(Attention):
    def predict(self, images: Any, valid: Any, state: Any) -> Any:
        time.sleep(0.01)
        return super().predict(images, valid, state)


def held(chosen: Any, parts: Path, wanted: int) -> Any:
    """The detector, but it waits long before each further batch once so many parts are there: a signal meets
    it at work however busy the machine is."""
    predict = chosen.predict

    def waiting(*given: Any) -> Any:
        if stored(parts) >= wanted:
            time.sleep(1)
        return predict(*given)

    chosen.predict = waiting
    return chosen


def stored(parts: Path) -> int:
    """How many parts of a run are whole."""
    return len(list(parts.glob("part-??????")))


def say(**record: Any) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def forked(work: Callable[[], Any]) -> int:
    """Runs `work` in a child; returns its process id. Exit code 0, 2 for a user's error, 130 for Ctrl-C."""
    child = os.fork()
    if child:
        return child
    code = 1
    # A shell starts what runs in its background with Ctrl-C ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        work()
        code = 0
    except TerralapseError as error:
        say(error=type(error).__name__, text=str(error))
        code = 2
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def outcome(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def detector(seams: str) -> Any:
    return Slow(0.01, halo=6) if seams == "exact" else SlowAttention(halo=6)


def run(out: Path, chosen: Any, *, resume: bool = False) -> None:
    """One run of `SCENE` in three parts."""
    with mock.patch.object(plan, "SMALL_PART", 1), OutputFolder(out, resume=resume) as folder:
        predict_scene(chosen, SCENE, folder.staging, tile=64, batch=1, resume=resume)
        folder.publish()


def kill(out: str, seams: str, seed: str) -> None:
    """Kills runs at random times after the first part, the second, and twice after the third, when rasters
    are written; lets the last one finish. Prints which parts there were when each was killed."""
    chance = random.Random(int(seed))
    parts = Path(out + ".part") / ".work" / "parts"
    killed = []
    for wanted in (1, 2, 3, 3):
        child = forked(lambda: run(Path(out), held(detector(seams), parts, wanted), resume=True))  # noqa: B023
        while stored(parts) < wanted and not Path(out).exists():
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        if outcome(child) == -signal.SIGKILL:
            assert not Path(out).exists()
            killed.append(stored(parts))
        else:
            shutil.rmtree(out)
    say(killed=killed, code=outcome(forked(lambda: run(Path(out), detector(seams), resume=True))))


def interrupt(out: str, resume: str) -> None:
    """Sends Ctrl-C in the middle of a run, as soon as there is something that could be kept."""
    parts = Path(out + ".part") / ".work" / "parts"
    child = forked(lambda: run(Path(out), held(detector("exact"), parts, 1), resume=resume == "resume"))
    while not stored(parts):
        time.sleep(0.002)
    os.kill(child, signal.SIGINT)
    say(code=outcome(child))


def starve(out: str, *limits: str) -> None:
    """Runs that may write no file longer than `limit` bytes: what a full disk looks like to a process."""
    for limit in map(int, limits):

        def work(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            # Small parts, so that a raster is larger than any of them.
            with mock.patch.object(plan, "SMALL_PART", 1), OutputFolder(Path(out)) as folder:
                predict_scene(Convolutions(halo=5), SCENE, folder.staging, tile=128, precision="fp32")
                folder.publish()

        say(code=outcome(forked(work)))


def fill(out: str) -> None:
    """A run on whatever disk `out` is on."""
    say(code=outcome(forked(lambda: run(Path(out), detector("exact")))))


def memory(out: str, *sides: str) -> None:
    """Peak memory of a run on scenes of these sides, each in a process of its own, in bytes."""
    peaks = []
    for side in map(int, sides):

        def work(side: int = side) -> None:
            folder = Path(out) / str(side)
            folder.mkdir(parents=True)
            hole = Window(side // 2, side // 2, side // 5, side // 5)
            detector = Convolutions(halo=8, depth=1, width=4, multiple=4)
            predict_scene(detector, WavePair(side, side, hole), folder, precision="fp32")

        child = forked(work)
        _, status, usage = os.wait4(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        peaks.append(usage.ru_maxrss * 1024)
    say(peaks=peaks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    JOBS = {f.__name__: f for f in (kill, interrupt, starve, fill, memory)}
    FirstBand().predict(torch.zeros(1, 2, 1, 8, 8), torch.ones(1, 2, 8, 8, dtype=torch.bool), {})
    JOBS[sys.argv[1]](*sys.argv[2:])
