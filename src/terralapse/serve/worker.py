"""One analysis in a process of its own, `python -m terralapse.serve.worker`.

The first line of standard input is a JSON object; then the pipe stays open. When it closes, whoever asked has
gone, and so does this process: what it has done is kept beside the output for the next time. It answers with
one JSON object a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from terralapse.errors import OutputLockedError, TerralapseError
from terralapse.serve.drivers import restrict
from terralapse.serve.looks import shut

ABANDONED = 75  # EX_TEMPFAIL


def main() -> int:
    """Runs the analysis; 0 done, 2 an error that the user can mend, `ABANDONED` worth another attempt."""
    task = json.loads(sys.stdin.readline())
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_watch, daemon=True).start()
    restrict(side_files=True)
    shut(task.get("fetch"))
    from terralapse.workflows.change import change

    said: list[str] = []
    try:
        change(
            task["before"],
            task["after"],
            Path(task["output"]),
            resume=True,
            progress=lambda stage, done, total: _tell(stage=stage, share=done / total if total else 0.0),
            say=said.append,
            **task["settings"],
        )
    except OutputLockedError:
        return ABANDONED  # whoever had the job before has not quite ended
    except TerralapseError as error:
        _tell(error=f"{Path(error.what).name}: {error.fault}. {error.hint}")
        return 2
    return 0


def _tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _watch() -> None:
    sys.stdin.read()
    os._exit(ABANDONED)


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
