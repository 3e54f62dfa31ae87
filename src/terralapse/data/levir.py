"""LEVIR-CD and sets released in its layout: folders `A` (before), `B` (after) and `label`, RGB at 0.5 m.

`<root>/[<split>/]{A,B,label}/<name>.png`; A and B may also be JPEG; a label is 1 where a building appeared or
vanished. Official LEVIR-CD has 637 pairs of 1024 x 1024 pixels in `train` (445), `val` (64) and `test` (128);
the samples that the literature ships are tiles of 256 x 256 of it. LEVIR-CD+ has the same layout with 637
pairs in `train` and 348 in `test`.

Source: Chen and Shi, A spatial-temporal attention-based method and a new dataset for remote sensing image
change detection, Remote Sensing 12(10), 2020 (academic use; Google Earth imagery).
"""

from __future__ import annotations

from pathlib import Path

from terralapse.data.folders import BiTemporal


class Levir(BiTemporal):
    """Pairs of A, B and label; see `BiTemporal` for arguments and errors."""

    def __init__(
        self, root: Path | str, split: str | None = None, gsd: float = 0.5, title: str = "LEVIR-CD"
    ) -> None:
        super().__init__(root, split, gsd, title)
