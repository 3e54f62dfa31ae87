"""Several images of one period as one: at each pixel the first of them that can be used there.

Images come the clearest first, so that this is the least-cloud composite by pixel. The list is a small file,
so that a run can be done again from its own record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from terralapse.errors import UnreadableFileError
from terralapse.grid.mosaic import MosaicScene
from terralapse.grid.scene import Scene

_KIND = "terralapse-composite"


def write_composite(path: Path, sources: Sequence[str]) -> Path:
    """Writes the list of the images of a composite, the clearest first."""
    record = {"type": _KIND, "sources": list(sources)}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def is_composite(text: str) -> bool:
    """Whether a JSON text is the list of a composite."""
    try:
        tree = json.loads(text)
    except ValueError:
        return False
    return isinstance(tree, dict) and tree.get("type") == _KIND


def sources_of_composite(path: Path, text: str) -> list[str]:
    """The images that a list names.

    Raises:
        UnreadableFileError: it names none.
    """
    sources = json.loads(text).get("sources")
    if not (isinstance(sources, list) and sources and all(isinstance(s, str) for s in sources)):
        raise UnreadableFileError(path, "names no images of a composite", "List them under `sources`.")
    return sources


def composite(scenes: Sequence[Scene], path: Path) -> MosaicScene:
    """One scene from several of the same place and period, in their order."""
    return MosaicScene(scenes, path.stem, str(path), several_dates=True)
