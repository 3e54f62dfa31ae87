"""The selective scan of state-space networks, on any device, with or without a compiled fast path.

`selective_scan` is Mamba's own function by name, argument and meaning; `path_scan` runs it along several
orders of the same positions (the four directions of an image, for example) without permuting anything.
`available` says which backends can run here.
"""

from terralapse.layers.scan.backends import available
from terralapse.layers.scan.paths import (
    LowRank,
    Paths,
    cross_paths,
    cs2d_paths,
    diagonal_paths,
    full_paths,
    path_scan,
)
from terralapse.layers.scan.selective import selective_scan

__all__ = [
    "LowRank",
    "Paths",
    "available",
    "cross_paths",
    "cs2d_paths",
    "diagonal_paths",
    "full_paths",
    "path_scan",
    "selective_scan",
]
