"""Earth observation over time: two images of a place in, a checked change map with numbers out.

>>> import terralapse
>>> result = terralapse.change("before.tif", "after.tif", "out")  # doctest: +SKIP
>>> result.summary  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from terralapse._version import __version__

if TYPE_CHECKING:
    from terralapse.grid.inspect import inspect
    from terralapse.grid.open import open_scene
    from terralapse.products.result import ChangeResult
    from terralapse.registry import systems
    from terralapse.workflows.change import change

# Where each public name lives. Importing the package must not import torch, rasterio or geopandas.
_LAZY = {
    "change": "terralapse.workflows.change",
    "inspect": "terralapse.grid.inspect",
    "open_scene": "terralapse.grid.open",
    "systems": "terralapse.registry",
    "ChangeResult": "terralapse.products.result",
}

__all__ = ["ChangeResult", "__version__", "change", "inspect", "open_scene", "systems"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'terralapse' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
