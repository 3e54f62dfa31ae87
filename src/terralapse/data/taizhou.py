"""Taizhou: Landsat 7 ETM+ of 2000 and 2003, six bands at 30 m, a classic for unsupervised change.

The layout is that of the sample: `taizhou.npz` with `t1`, `t2` (uint8 [H, W, 6]: bands 1, 2, 3, 4, 5, 7) and
`label` (uint8 [H, W]: 0 unchanged, 1 changed, 255 not annotated). Only about 13 % of the pixels are
annotated, and only those can be scored.

Source: Wu, Du and Zhang, Slow feature analysis for change detection in multispectral imagery, IEEE TGRS
52(5), 2014; distributed with ChenHongruixuan/ChangeDetectionRepository (MIT; imagery public domain, USGS).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from terralapse.data.pairs import LabelledPair
from terralapse.errors import FileMissingError
from terralapse.sensors import Unit

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")


class Taizhou:
    """The one scene, as digital numbers.

    Args:
        root: the folder that holds `taizhou.npz`.

    Raises:
        FileMissingError: it does not.
    """

    title = "Taizhou, annotated pixels"
    bands = BANDS
    unit = Unit.RAW
    gsd = 30.0

    def __init__(self, root: Path | str) -> None:
        path = Path(root) / "taizhou.npz"
        if not path.is_file():
            raise FileMissingError(path, "is not there", "Give the folder that holds taizhou.npz.")
        with np.load(path, allow_pickle=False) as stored:
            dates = [stored[d].transpose(2, 0, 1).astype(np.float32) for d in ("t1", "t2")]
            self._pair = LabelledPair(
                "taizhou", np.stack(dates), stored["label"], self.gsd, self.bands, self.unit
            )

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[LabelledPair]:
        yield self._pair
