"""The selective scan of state-space networks, on any device, with or without a compiled fast path.

`selective_scan` is Mamba's own function by name, argument and meaning; `path_scan` runs it along several
orders of the same positions (the four directions of an image, for example) without permuting anything.
"""

from terralapse.layers.scan.paths import (
    LowRank,
    Paths,
    cross_paths,
    cs2d_paths,
    diagonal_paths,
    full_paths,
    path_scan,
)
from terralapse.layers.scan.reference import selective_scan_reference as selective_scan

__all__ = [
    "LowRank",
    "Paths",
    "cross_paths",
    "cs2d_paths",
    "diagonal_paths",
    "full_paths",
    "path_scan",
    "selective_scan",
]
