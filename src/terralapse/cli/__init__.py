"""Thin commands over the library. Exit codes: 0 done, 2 something that the user can mend, 130 interrupted."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

from terralapse.errors import TerralapseError


def main() -> NoReturn:
    """Entry point of the `terralapse` command."""
    from terralapse.cli.app import app

    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        app(standalone_mode=False)
    except TerralapseError as error:
        _complain(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _complain("Interrupted: nothing was written to the output folder.")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        # Typer carries its own copy of click; its usage errors and exits are known by their exit code.
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        show = getattr(error, "show", None)
        if show is not None:
            show()
        sys.exit(code)
    sys.exit(0)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """A polite kill cleans up as Ctrl-C does."""
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    sys.stderr.write(f"terralapse: {message}\n")
