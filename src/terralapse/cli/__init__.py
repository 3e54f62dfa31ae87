"""Thin commands over the library. Exit codes: 0 done, 2 something that the user can mend,
3 a job of which some units were given up, 130 interrupted."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from terralapse.errors import TerralapseError

INTERRUPTED = 130


def main() -> NoReturn:
    """Entry point of the `terralapse` command."""
    from terralapse.cli.app import app

    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        # Typer turns an interrupt into a returned exit code here.
        code = app(standalone_mode=False) or 0
    except TerralapseError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:  # one that came where Typer does not look
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone, which is its right; nothing may be flushed to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        # Typer carries its own copy of click; its usage errors are known by what they can do.
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        sys.exit(code)
    if code == INTERRUPTED:
        _complain("interrupted; nothing was written to the output folder.")
    sys.exit(code)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A polite kill cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    sys.stderr.write(f"terralapse: {message}\n")
