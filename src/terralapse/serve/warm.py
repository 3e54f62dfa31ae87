"""What a page asks for first, made before anybody opens it.

A page begins with the whole result, so that its first numbers and tiles are known as soon as a server is.
They are in memory when the first visitor comes, who else would wait for the slowest of them.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from terralapse.serve.layers import Layer
from terralapse.serve.library import Library
from terralapse.serve.shelf import Result
from terralapse.serve.tiles import Wanted

# Tiles of 512 pixels on the longer side of a result that a page shows whole: a phone has less than one, a
# large screen three.
_LEAST, _MOST = 0.75, 3.2
_RESULTS = 4  # the first ones; others are drawn when somebody chooses them
_POLYGONS = 1000  # of the page's first request
_FIRST = {"change": ("probability", "after", "before"), "series": ("break_date",)}


class Warmth:
    """Makes the first answers of a library in threads of its own, once."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="terralapse-warm", daemon=True)

    def start(self, seconds: float) -> bool:
        """Begins, and waits for so long; whether all is made by then. What is left goes on."""
        self._thread.start()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ends after what is being made just now, if it has begun."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        results = list(self._library.shelf.results()[0].values())[:_RESULTS]
        with ThreadPoolExecutor(min(2, os.cpu_count() or 1), "terralapse-warm") as pool:
            for result in results:
                list(pool.map(self._one, self._first(result)))

    def _one(self, make: Callable[[], object]) -> None:
        with suppress(Exception):  # what is missing or damaged is said to whoever asks for it
            if not self._over.is_set():
                make()

    def _first(self, result: Result) -> Iterator[Callable[[], object]]:
        library = self._library
        yield partial(library.describe, result)
        yield partial(library.histogram if result.kind == "change" else library.breaks, result)
        if result.kind == "change":
            most = library.options.limits.vertices
            yield lambda: library.polygons(result).page([], _POLYGONS, 0, most)
        yield lambda: (result.facts, library.table(result))
        layers: dict[str, Layer] = {}
        self._one(lambda: layers.update(library.layers(result)))
        composites = []
        self._one(lambda: composites.extend(library.composites(result)[-1:]))
        chosen = [layers[name] for name in _FIRST[result.kind] if name in layers]
        wanted: list[tuple[Layer, Wanted]] = []
        for layer in chosen + [c.layer for c in composites]:
            self._one(partial(self._add, wanted, result, layer))
        # The larger zooms first, which are those of a large screen.
        for layer, tile in sorted(wanted, key=lambda found: -found[1].z):
            yield partial(library.tiler.tile, layer, library.grid(result), tile)

    def _add(self, wanted: list[tuple[Layer, Wanted]], result: Result, layer: Layer) -> None:
        wanted.extend((layer, tile) for tile in first_tiles(self._library, result, layer))


def first_tiles(library: Library, result: Result, layer: Layer) -> list[Wanted]:
    """The tiles that a page which shows a whole layer may ask for, the nearest zoom first.

    Raises:
        TerralapseError: the layer cannot be read.
    """
    grid = library.grid(result)
    extent, (low, high) = library.tiler.extent(layer, grid), library.tiler.zooms(layer, grid)
    west, south, east, north = extent.bounds
    left, right = ((lon + 180) / 360 for lon in (west, east))
    top, bottom = (_down(lat) for lat in (north, south))
    span = max(right - left, bottom - top, 2.0**-24)
    form = "webp" if layer.kind == "picture" else "png"
    style = "drawn" if layer.scale is None else "codes"
    found = []
    nearest = min(high, extent.maxzoom)  # closer up, a page enlarges its tiles
    for z in range(nearest, low - 1, -1):
        side = 2**z
        if span * side > _MOST or (span * side < _LEAST and z < nearest):
            continue
        columns, rows = (
            range(max(0, math.floor(a * side)), min(side - 1, math.floor(b * side)) + 1)
            for a, b in ((left, right), (top, bottom))
        )
        found += [Wanted(z, x, y, 2, form, style) for y in rows for x in columns]
    return found


def _down(lat: float) -> float:
    """From the north, as a share of the square of Web Mercator."""
    lat = math.radians(min(max(lat, -85.0511), 85.0511))
    return (1 - math.asinh(math.tan(lat)) / math.pi) / 2
