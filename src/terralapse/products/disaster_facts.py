"""Facts that the disaster report needs beyond those of a run: where damaged buildings stand, and what
spectral indices say of vegetation, water and burnt ground.

An index needs reflectance and its bands; the thresholds are fixed and stand in the sentence of each fact, so
that nothing is tuned to a scene.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.engine.composites import blocks
from terralapse.grid.areas import Compass, PixelArea
from terralapse.grid.indices import Index, parse_index
from terralapse.grid.pair import Pair
from terralapse.grid.vectorise import VectoriseSettings, vectorise
from terralapse.labels import Reason
from terralapse.products import units
from terralapse.products.class_facts import DAMAGED
from terralapse.products.facts import Fact
from terralapse.products.ninths import NINTHS
from terralapse.products.polygons import area_unit
from terralapse.sensors import Unit

_BLOCK = 1024
_HURT = (2, 3, 4)  # the grades of `DAMAGE` from minor damage on
DESTROYED = 4


@dataclass(frozen=True)
class Cover:
    """A cover that an index tells: present from `threshold` on. `drop` says that it is told by how far the
    index fell between the dates instead."""

    name: str
    title: str
    index: str
    threshold: float
    drop: bool = False


# Vegetation from 0.3 on: sparse grass and shrubs lie at 0.2 to 0.5. Water where the index is positive:
# McFeeters 1996, Xu 2006. Burnt where the burn ratio fell by 0.27: from moderate-low severity on (Key and
# Benson 2006).
COVERS = (
    Cover("vegetation", "vegetation", "ndvi", 0.3),
    Cover("water", "open water", "mndwi", 0.0),
    Cover("water", "open water", "ndwi", 0.0),
    Cover("burnt", "burnt ground", "nbr", 0.27, drop=True),
)


def covers_of(names: set[str]) -> dict[str, Cover]:
    """The covers that bands of these common names can tell, by name; the first index of a name that fits."""
    found: dict[str, Cover] = {}
    for cover in COVERS:
        if all(b in names or (b == "nir" and "nir08" in names) for b in parse_index(cover.index).bands):
            found.setdefault(cover.name, cover)
    return found


def index_facts(pair: Pair, folder: Path) -> Iterator[Fact]:
    """Areas of each cover before and after, lost and gained, over the pixels that the run could compare.

    Args:
        pair: on the grid of the run, with the bands of the indices; its values are reflectance.
        folder: of the run, with `valid.tif`.

    Raises:
        ValueError: the values are no reflectance, to which the thresholds belong.
    """
    if pair.unit is not Unit.REFLECTANCE:
        raise ValueError(f"thresholds of indices are for reflectance, and this pair is in {pair.unit}")
    names = [b.name for b in pair.bands]
    covers = covers_of(set(names))
    sums = {name: np.zeros(4) for name in covers}  # before, after, lost, gained
    area, observed = PixelArea(pair.geobox), 0.0
    with rasterio.open(folder / "valid.tif") as valid:
        for window in blocks(pair.shape, _BLOCK):
            box = RioWindow(window.col, window.row, window.width, window.height)  # type: ignore[call-arg]
            seen = pair.read(window)
            ok = seen.valid & (valid.read(1, window=box) == Reason.VALID)
            own = np.broadcast_to(area.block(window), ok.shape)
            observed += float(own[ok].sum())
            for name, cover in covers.items():
                was, now = _present(cover, seen.images, names)
                layers = (was, now, was & ~now, ~was & now)
                sums[name] += [float(own[ok & layer].sum()) for layer in layers]
    unit = area_unit(pair.geobox)
    evidence = {"raster": "valid.tif", "window": [0, 0, *pair.shape]}
    for name, cover in covers.items():
        yield from _cover_facts(cover, sums[name], observed, unit, evidence)


def _present(cover: Cover, images: np.ndarray, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool [h, w] of both dates. What an index cannot tell (no light in its bands) counts as absent."""
    index = parse_index(cover.index)
    at = [names.index(b if b in names else "nir08") for b in index.bands]
    values = Index.compute(index, images[:, at])
    if cover.drop:
        fell = values[0] - values[1] >= cover.threshold
        return np.zeros_like(fell), fell
    above = values > cover.threshold if cover.threshold == 0 else values >= cover.threshold
    return above[0], above[1]


def _cover_facts(
    cover: Cover, sums: np.ndarray, observed: float, unit: str, evidence: dict[str, Any]
) -> Iterator[Fact]:
    index, key = cover.index.upper(), f"cover.{cover.name}"

    def area(what: str, value: float, said: str) -> Fact:
        value = float(value)
        return Fact(f"{key}.{what}", "area", value, unit, units.area(value, unit), evidence, said)

    def share(what: str, value: float, whole: float, said: str) -> Fact:
        part = float(value / whole) if whole else float("nan")
        return Fact(f"{key}.{what}.share", "share", part, "1", units.percent(part), evidence, said)

    if cover.drop:
        rule = f"the {index} fell by {cover.threshold:g} or more"
        said = f"Burnt ground: {{{key}.gained}}, {{{key}.gained.share}} of what was compared ({rule})."
        yield area("gained", sums[3], said)
        yield share("gained", sums[3], observed, said)
        return
    rule = f"{index} {'over' if cover.threshold == 0 else 'from'} {cover.threshold:g}"
    for what, value in (("before", sums[0]), ("after", sums[1])):
        yield area(what, value, f"{cover.title.capitalize()} {what}: {{{key}.{what}}} ({rule}).")
    said = f"{{{key}.lost}} of {cover.title} is gone, {{{key}.lost.share}} of what was compared ({rule})."
    yield area("lost", sums[2], said)
    yield share("lost", sums[2], observed, said)
    said = f"{{{key}.gained}} of {cover.title} is new, {{{key}.gained.share}} of what was compared ({rule})."
    yield area("gained", sums[3], said)
    yield share("gained", sums[3], observed, said)


def damage_places(folder: Path, geobox: GeoBox, facts: Mapping[str, Fact]) -> Iterator[Fact]:
    """Damaged and destroyed buildings by ninth of the grid, counted as `class_facts` counts them; only ninths
    with some."""
    settings = VectoriseSettings(
        classes=(1, *_HURT), min_area_m2=facts["object.minimum"].value, connectivity=4, simplify=False
    )
    frame = vectorise(folder / DAMAGED, None, geobox, settings)
    grade = frame["class_value"].to_numpy()
    hurt = grade > 1
    if not hurt.any():
        return
    points = frame.geometry.representative_point()
    names = np.array(Compass(geobox).names(points.x.to_numpy()[hurt], points.y.to_numpy()[hurt]))
    grade = grade[hurt]
    where = {"raster": DAMAGED, "window": [0, 0, geobox.shape.y, geobox.shape.x]}
    for ninth in NINTHS:
        own = names == ninth
        if not own.any():
            continue
        for what, hit in (("any", own), ("destroyed", own & (grade == DESTROYED))):
            key, value = f"ninth.{ninth}.damage.{what}", int(hit.sum())
            verb = "damaged in some grade" if what == "any" else "destroyed"
            said = f"In the {ninth}, {{{key}}} {'is' if value == 1 else 'are'} {verb}."
            yield Fact(key, "count", value, "objects", units.count(value, "building"), where, said)
