"""Facts of classes: what the ground was and became, and how badly buildings are damaged.

The maps of classes lie on the grid of the run. They are read once, strip by strip; only pixels that could be
compared count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from odc.geo.geobox import GeoBox
from rasterio.windows import Window as RioWindow

from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import Window
from terralapse.grid.vectorise import VectoriseSettings, vectorise
from terralapse.labels import DAMAGE, NOT_COUNTED, ClassScheme, LabelClass, Reason
from terralapse.products import units
from terralapse.products.facts import Fact
from terralapse.products.ninths import NINTHS, PARTS, Ninths
from terralapse.products.polygons import area_unit
from terralapse.products.zones import Zones

BEFORE, AFTER, DAMAGED = "classes_before.tif", "classes_after.tif", "damage.tif"
_STRIP = 512


@dataclass(frozen=True)
class ClassMaps:
    """Which maps of classes stand in the folder of a run.

    `scheme` is that of `classes_before.tif` and `classes_after.tif`, None without them. `damage` says that
    there is a `damage.tif` in the scheme `DAMAGE`.
    """

    scheme: ClassScheme | None = None
    damage: bool = False

    @property
    def classes(self) -> tuple[LabelClass, ...]:
        """Those that say something."""
        return () if self.scheme is None else tuple(c for c in self.scheme.classes if not _mute(c))

    @property
    def rasters(self) -> dict[str, tuple[ClassScheme, str]]:
        """Scheme and title of each map, by the name of its file."""
        found: dict[str, tuple[ClassScheme, str]] = {}
        if self.scheme is not None:
            found = {BEFORE: (self.scheme, "Classes before"), AFTER: (self.scheme, "Classes after")}
        return found | ({DAMAGED: (DAMAGE, "Damage of buildings")} if self.damage else {})

    @property
    def whole(self) -> bool:
        """Whether the maps hold the class of every pixel, not only of those that changed."""
        return self.scheme is not None and not any(c.name == "unchanged" for c in self.scheme.classes)


def silent(scheme: ClassScheme) -> tuple[int, ...]:
    """The values that a map shows as nothing: places without a class, or without a building."""
    return tuple(c.value for c in scheme.classes if c.value == 0 and (_mute(c) or c.name == "background"))


def _mute(c: LabelClass) -> bool:
    return c.name in NOT_COUNTED


@dataclass
class ClassTally:
    """Areas (m2 or pixels). `pairs` [n, n]: from class (row) to class (column), in the order of
    `ClassMaps.classes`; `ninths` [9, n, 2] and `zones` [z, n, 2]: lost and gained area."""

    observed: float
    pairs: np.ndarray
    ninths: np.ndarray
    zones: np.ndarray


def tally_classes(folder: Path, geobox: GeoBox, maps: ClassMaps, zones: Zones | None) -> ClassTally:
    """One pass over the two maps of classes and `valid.tif`."""
    n = len(maps.classes)
    index = np.full(256, n)
    for i, c in enumerate(maps.classes):
        index[c.value] = i
    named = zones if zones is not None and zones.kind == "zone" else None
    found = ClassTally(0.0, np.zeros((n, n)), np.zeros((9, n, 2)), np.zeros((len(named or ()), n, 2)))
    ninths, pixel_area = Ninths(geobox, _STRIP), PixelArea(geobox)
    height, width = geobox.shape.y, geobox.shape.x
    with (
        rasterio.open(folder / BEFORE) as before,
        rasterio.open(folder / AFTER) as after,
        rasterio.open(folder / "valid.tif") as valid,
    ):
        for start in range(0, height, _STRIP):
            rows = min(_STRIP, height - start)
            box = RioWindow(0, start, width, rows)  # type: ignore[call-arg]
            compared = valid.read(1, window=box) == Reason.VALID
            area = np.broadcast_to(pixel_area.block(Window(start, 0, rows, width)), compared.shape)
            found.observed += float(area[compared].sum())
            was, now = index[before.read(1, window=box)], index[after.read(1, window=box)]
            told = compared & (was < n) & (now < n)
            at = np.flatnonzero(told)
            if not len(at):
                continue
            was, now, own = was.ravel()[at], now.ravel()[at], area.ravel()[at]
            found.pairs += np.bincount(was * n + now, own, minlength=n * n).reshape(n, n)
            moved = was != now
            at, was, now, own = at[moved], was[moved], now[moved], own[moved]
            code = ninths.codes(start, rows).ravel()[at].astype(np.intp)
            for side, classes in enumerate((was, now)):
                found.ninths[:, :, side] += np.bincount(code * n + classes, own, minlength=9 * n).reshape(
                    9, n
                )
            if named is not None:
                _add_zones(found.zones, named, (start, rows, width), at, (was, now), own)
    return found


def _add_zones(
    total: np.ndarray,
    zones: Zones,
    strip: tuple[int, int, int],
    at: np.ndarray,
    classes: tuple[np.ndarray, np.ndarray],
    own: np.ndarray,
) -> None:
    """Adds the lost and gained areas of a strip to the zones that cover it."""
    n = total.shape[1]
    share_of = np.zeros(strip[1] * strip[2])
    for zone, pixels, share in zones.cover(*strip):
        share_of[pixels] = share
        inside = own * share_of[at]
        for side, c in enumerate(classes):
            total[zone, :, side] += np.bincount(c, inside, minlength=n)
        share_of[pixels] = 0


def class_facts(
    folder: Path, geobox: GeoBox, maps: ClassMaps, zones: Zones | None, mmu: float
) -> Iterator[Fact]:
    """The facts of the maps of classes and of damage of a run.

    Args:
        folder: of the run, with the maps and `valid.tif`.
        geobox: their grid.
        maps: which there are.
        zones: polygons of the user to count by; cells are not counted by.
        mmu: the smallest object, m2 (pixels without a CRS).
    """
    make = _Make(area_unit(geobox), (geobox.shape.y, geobox.shape.x))
    if maps.scheme is not None:
        yield from _classes(tally_classes(folder, geobox, maps, zones), maps, zones, make)
        yield from _gained_objects(folder, geobox, maps, mmu, make)
    if maps.damage:
        yield from _damage(folder, geobox, mmu, make)


class _Make:
    def __init__(self, unit: str, shape: tuple[int, int]) -> None:
        self.unit, self.shape = unit, shape

    def raster(self, name: str) -> dict[str, Any]:
        return {"raster": name, "window": [0, 0, *self.shape]}

    def area(self, key: str, value: float, where: dict[str, Any], said: str, **more: Any) -> Fact:
        value = float(value)
        return Fact(key, "area", value, self.unit, units.area(value, self.unit), where, said, **more)

    @staticmethod
    def share(key: str, value: float, where: dict[str, Any], said: str) -> Fact:
        return Fact(key, "share", float(value), "1", units.percent(value), where, said)

    @staticmethod
    def count(key: str, value: int, where: dict[str, Any], said: str, one: str = "object") -> Fact:
        many = one.replace("patch", "patches") if "patch" in one else None
        return Fact(key, "count", value, "objects", units.count(value, one, many), where, said)

    @staticmethod
    def text(key: str, value: Any, display: str, where: dict[str, Any], said: str) -> Fact:
        return Fact(key, "text", value, "", display, where, said)


def _classes(t: ClassTally, maps: ClassMaps, zones: Zones | None, make: _Make) -> Iterator[Fact]:
    names = [(c.name, c.title.lower()) for c in maps.classes]
    before, after = make.raster(BEFORE), make.raster(AFTER)
    listed = [{"name": c.name, "title": c.title} for c in maps.classes]
    assert maps.scheme is not None
    value = {"scheme": maps.scheme.slug, "whole": maps.whole, "classes": listed}
    titles = ", ".join(title for _, title in names)
    yield make.text("classes", value, titles, after, "The classes are: {classes}.")
    off = t.pairs * (1 - np.eye(len(names)))
    moved = off.sum()
    yield make.area("class.changed", moved, after, "{class.changed} went from one class to another.")
    for i, (name, title) in enumerate(names):
        key, lost, gained = f"class.{name}", off[i].sum(), off[:, i].sum()
        if maps.whole:
            for which, total, where in (
                ("before", t.pairs[i].sum(), before),
                ("after", t.pairs[:, i].sum(), after),
            ):
                said = (
                    f"{title.capitalize()} {which}: {{{key}.{which}}}, {{{key}.{which}.share}} of the area."
                )
                yield make.area(f"{key}.{which}", total, where, said)
                share = total / t.observed if t.observed else np.nan
                yield make.share(f"{key}.{which}.share", share, where, said)
        for what, total, where, verb in (
            ("lost", lost, before, "became something else"),
            ("gained", gained, after, "is new"),
        ):
            said = f"{{{key}.{what}}} of {title} {verb}, {{{key}.{what}.share}} of what was compared."
            yield make.area(f"{key}.{what}", total, where, said)
            yield make.share(f"{key}.{what}.share", total / t.observed if t.observed else np.nan, where, said)
        said = f"The balance of {title} is {{{key}.net}}."
        yield make.area(f"{key}.net", gained - lost, after, said)
        if lost > 0:
            to = int(np.argmax(off[i]))
            said = f"What was {title} mainly became {{{key}.became}}."
            yield make.text(f"{key}.became", names[to][0], names[to][1], after, said)
        if gained > 0:
            of = int(np.argmax(off[:, i]))
            said = f"What is now {title} was mainly {{{key}.came}}."
            yield make.text(f"{key}.came", names[of][0], names[of][1], before, said)
    for i, j in np.argwhere(off > 0):
        key = f"transition.{names[i][0]}.{names[j][0]}"
        said = f"{{{key}}} went from {names[i][1]} to {names[j][1]}."
        yield make.area(key, float(off[i, j]), after, said)
        said = f"{{{key}.share}} of the change of classes is from {names[i][1]} to {names[j][1]}."
        yield make.share(f"{key}.share", float(off[i, j] / moved), after, said)
    places = [(f"ninth.{name}", f"the {name}", t.ninths[k]) for k, name in enumerate(NINTHS)]
    for part, members in PARTS.items():
        total = sum(t.ninths[NINTHS.index(m)] for m in members)
        places.append((f"part.{part}", f"the {part}ern third", np.asarray(total, dtype=np.float64)))
    if zones is not None and len(t.zones):
        for k, (zone, name) in enumerate(zip(zones.ids, zones.names, strict=True)):
            safe = str(name).replace("{", "(").replace("}", ")")
            places.append((f"zone.{str(zone).lower()}", f"zone {safe}", t.zones[k]))
    for place, where, sums in places:
        for (name, title), (lost, gained) in zip(names, sums, strict=True):
            for what, total in (("lost", lost), ("gained", gained)):
                key = f"{place}.class.{name}.{what}"
                said = f"In {where}, {{{key}}} of {title} was {what}."
                yield make.area(key, float(total), before if what == "lost" else after, said)


def _gained_objects(folder: Path, geobox: GeoBox, maps: ClassMaps, mmu: float, make: _Make) -> Iterator[Fact]:
    """How many patches of each class are new."""
    values = {c.value: c for c in maps.classes}
    numbers = dict.fromkeys(values, 0)
    with (
        rasterio.open(folder / BEFORE) as before,
        rasterio.open(folder / AFTER) as after,
        rasterio.open(folder / "valid.tif") as valid,
        rasterio.MemoryFile() as memory,
    ):
        profile = after.profile | {
            "driver": "GTiff", "dtype": "uint8", "nodata": 255, "compress": "deflate",
            "tiled": True, "blockxsize": 512, "blockysize": 512,
        }  # fmt: skip
        with memory.open(**profile) as became:
            for start in range(0, after.height, _STRIP):
                box = RioWindow(0, start, after.width, min(_STRIP, after.height - start))  # type: ignore[call-arg]
                was, now = before.read(1, window=box), after.read(1, window=box)
                new = (valid.read(1, window=box) == Reason.VALID) & (was != now)
                new &= np.isin(was, list(values)) & np.isin(now, list(values))
                became.write(np.where(new, now, 255), 1, window=box)
        settings = VectoriseSettings(classes=tuple(values), min_area_m2=mmu, connectivity=8, simplify=False)
        frame = vectorise(Path(memory.name), None, geobox, settings)
    for value, number in zip(*np.unique(frame["class_value"], return_counts=True), strict=True):
        numbers[int(value)] = int(number)
    for value, number in numbers.items():
        key, title = f"class.{values[value].name}.objects", values[value].title.lower()
        yield make.count(key, number, make.raster(AFTER), f"New patches of {title}: {{{key}}}.", "new patch")


def _damage(folder: Path, geobox: GeoBox, mmu: float, make: _Make) -> Iterator[Fact]:
    """Buildings by grade: pixels of one grade that touch are one building."""
    grades = [c for c in DAMAGE.classes if c.value]
    settings = VectoriseSettings(
        classes=tuple(c.value for c in grades), min_area_m2=mmu, connectivity=4, simplify=False
    )
    frame = vectorise(folder / DAMAGED, None, geobox, settings)
    where = make.raster(DAMAGED)
    value, area = frame["class_value"].to_numpy(), frame["area_m2"].to_numpy()
    total = len(frame)
    said = "{damage.buildings} of {object.minimum} or more were graded."
    yield make.count("damage.buildings", total, where, said, "building")
    for c in grades:
        key, own = f"damage.{c.name}", value == c.value
        title = c.title.lower()
        said = f"{title.capitalize()}: {{{key}.count}}, {{{key}.share}} of the buildings, {{{key}.area}}."
        yield make.count(f"{key}.count", int(own.sum()), where, said, "building")
        yield make.share(f"{key}.share", own.mean() if total else np.nan, where, said)
        yield make.area(f"{key}.area", float(area[own].sum()), where, said)
    hurt = value > 1
    said = "{damage.any.count} are damaged in some grade, {damage.any.share} of those that were graded."
    yield make.count("damage.any.count", int(hurt.sum()), where, said, "building")
    yield make.share("damage.any.share", hurt.mean() if total else np.nan, where, said)
