"""Progress on a terminal, silence in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

# What the stages of a run are called on screen.
TITLES = {
    "align": "Aligning the two dates",
    "fit": "Sampling the scene",
    "predict": "Finding change",
    "fit-series": "Finding breaks",
    "composites": "Making composites",
    "write": "Writing rasters",
    "products": "Writing products",
    "units": "Units",
    "upload": "Sending the image",
    "download": "Fetching the products",
    "captions": "Making captions",
}
PATIENCE_S = 2.0


@contextmanager
def shown_progress(*, quiet: bool, verbose: int) -> Iterator[tuple[Progress, Say]]:
    """Yields `(progress, say)`: bars for stages that last, and sentences about decisions.

    On a terminal a bar appears once a run has lasted two seconds; in a pipe nothing is drawn, and decisions
    are said on standard error only with `-v`.
    """
    started = time.monotonic()
    on_terminal = sys.stderr.isatty() and not quiet
    talk = not quiet and (on_terminal or verbose > 0)
    if verbose > 1:
        import logging

        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    if not on_terminal:
        yield (lambda _stage, _done, _total: None), (_to_stderr if talk else (lambda _text: None))
        return

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TextColumn("{task.fields[rate]:>12}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    tasks: dict[str, tuple[TaskID, float]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if not bars.live.is_started:
            if now - started < PATIENCE_S:
                return
            bars.start()
        if stage not in tasks:
            tasks[stage] = (bars.add_task(TITLES.get(stage, stage), total=total, rate=""), now)
        task, since = tasks[stage]
        speed = done / (now - since) if now > since else 0.0
        rate = f"{speed / 1e6:.2f} Mpx/s" if stage == "predict" and speed else ""
        bars.update(task, completed=done, total=total, rate=rate)

    try:
        yield progress, (console.print if talk else (lambda _text: None))
    finally:
        if bars.live.is_started:
            bars.stop()


def _to_stderr(text: str) -> None:
    sys.stderr.write(text + "\n")
