"""Several images of one period as one: the first that is clear at each pixel, or the median of all that are.

For `first` images come the clearest first, so that this is the least-cloud composite by pixel. The list is a
small file, so that a run can be done again from its own record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from terralapse.errors import UnreadableFileError
from terralapse.grid.common import grid_of_cell
from terralapse.grid.median import LEAST, MedianScene, open_all
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.scene import Scene

_KIND = "terralapse-composite"
RULES = ("first", "median")


@dataclass(frozen=True)
class CompositeList:
    """The images of a composite and how they become one.

    Attributes:
        sources: as `terralapse.grid.open.open_scene` takes them; for `first` in order of precedence.
        rule: `first` takes the first that is clear at a pixel, `median` the median of all that are.
        grid: for `median`: what they are put on, as `terralapse.grid.common.cell_text` writes it.
        least: for `median`: the clear looks that a pixel needs.
    """

    sources: tuple[str, ...]
    rule: str = "first"
    grid: str = ""
    least: int = LEAST

    def write(self, path: Path) -> Path:
        """Writes the list."""
        record: dict[str, object] = {"type": _KIND, "rule": self.rule, "sources": list(self.sources)}
        if self.rule == "median":
            record |= {"grid": self.grid, "least": self.least}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        return path

    @staticmethod
    def read(path: Path, text: str) -> CompositeList:
        """The list that a file holds.

        Raises:
            UnreadableFileError: it names no images, or no rule that is known.
        """
        tree = json.loads(text)
        sources = tree.get("sources")
        if not (isinstance(sources, list) and sources and all(isinstance(s, str) for s in sources)):
            raise UnreadableFileError(path, "names no images of a composite", "List them under `sources`.")
        rule = tree.get("rule", "first")
        if rule not in RULES:
            raise UnreadableFileError(path, f"has the rule {rule!r}", f"Choose one of: {', '.join(RULES)}.")
        grid, least = tree.get("grid", ""), tree.get("least", LEAST)
        if rule == "median" and not (isinstance(grid, str) and grid and type(least) is int):
            raise UnreadableFileError(
                path, "is a median without its `grid` or with a `least` that is no number",
                "Write grid: cell:CRS:LEFT:TOP:PIXEL:HEIGHTxWIDTH and least: 3.",
            )  # fmt: skip
        return CompositeList(tuple(sources), rule, grid, least)

    def open(self, path: Path, opening: Callable[[str], Scene]) -> Scene:
        """One scene from all, each opened by `opening`.

        Raises:
            TerralapseError: what opening raises, and what `MosaicScene` and `MedianScene` do.
        """
        scenes = open_all(self.sources, opening)
        try:
            if self.rule == "median":
                return MedianScene(scenes, grid_of_cell(self.grid), self.least, path)
            return MosaicScene(scenes, path.stem, str(path), several_dates=True)
        except BaseException:
            for scene in scenes:
                scene.close()
            raise


def is_composite(text: str) -> bool:
    """Whether a JSON text is the list of a composite."""
    try:
        tree = json.loads(text)
    except ValueError:
        return False
    return isinstance(tree, dict) and tree.get("type") == _KIND
