"""The real pair that ships with the library, run as a user would run it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from terralapse.errors import FileMissingError, OutputExistsError
from terralapse.workflows.change import change

if TYPE_CHECKING:
    from terralapse.products.result import ChangeResult

# The files state no dates and their origin gives none, so none are made up here: the report says before and
# after. (The tornado struck on 22 May 2011.)
PAIR = "joplin"


def example(name: str) -> Path:
    """The folder of a shipped example, in an installed package or in a checkout.

    Raises:
        FileMissingError: the examples were not installed.
    """
    installed = Path(str(resources.files("terralapse"))) / "_examples" / name
    checkout = Path(str(resources.files("terralapse"))).parents[1] / "examples" / name
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise FileMissingError(
        installed, "the example pair is not installed", "Reinstall terralapse, or run it from a checkout."
    )


def demo(
    output: Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> ChangeResult:
    """Runs `change` on the Joplin tornado pair; an earlier demo in `output` is replaced.

    Raises:
        OutputExistsError: `output` holds something that no demo wrote.
    """
    pair = example(PAIR)
    earlier = output / "run.json"
    if output.exists() and any(output.iterdir()) and not (earlier.is_file() and PAIR in earlier.read_text()):
        raise OutputExistsError(output, "holds files that no demo wrote", "Choose another folder with -o.")
    return change(pair / "before", pair / "after", output, overwrite=True, progress=progress, say=say)
