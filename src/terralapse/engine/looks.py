"""How many clear looks stand behind each pixel of a pair of which a date is a median."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from terralapse.engine.composites import blocks
from terralapse.engine.plan import BLOCK
from terralapse.grid.align import AlignedPair
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window

FILE = "looks.tif"


def write_looks(pair: AlignedPair, folder: Path) -> Path | None:
    """Writes `looks.tif`: uint8, a band a date, 0 where a date was not seen. None where no date is a median.

    The counts are those that the medians were made of; nothing is read again.
    """
    if not pair.has_looks:
        return None

    def pixels() -> Iterator[tuple[Window, np.ndarray]]:
        for window in blocks(pair.shape, BLOCK):
            yield window, pair.looks(window)

    path = folder / FILE
    write_cog(
        pixels(),
        path,
        geobox=pair.geobox,
        kind="class",
        dtype="uint8",
        bands=2,
        descriptions=["clear looks before", "clear looks after"],
        threads=1,
    )
    return path
