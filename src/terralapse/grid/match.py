"""Which band of one date is which band of the other, and in which unit they can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from terralapse.errors import BandError
from terralapse.grid.scene import Note, SceneInfo
from terralapse.sensors import Band, Unit


@dataclass(frozen=True)
class BandMatch:
    """Bands of a pair: `bands` as they are called from here on, and their names in each scene."""

    bands: tuple[Band, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


def match_bands(before: SceneInfo, after: SceneInfo, wanted: Sequence[str] | None = None) -> BandMatch:
    """Finds the bands that both dates have.

    Args:
        before, after: the two scenes.
        wanted: common names, provider ids (of either scene) or 1-based numbers, in the order wanted; None for
            all that are called the same in both. Bands that neither file names are matched by position,
            when both dates have equally many.

    Raises:
        BandError: nothing matches, or a wanted band is missing in one date.
    """
    if wanted is not None and not len(wanted):
        raise BandError("bands", "the list is empty", "Name at least one band, or leave --bands out.")
    found = _wanted(before, after, wanted) if wanted is not None else _shared(before, after)
    names = [b.name for b, _, _ in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BandError("bands", f"{', '.join(twice)} is asked for twice", "Name each band once.")
    return BandMatch(
        tuple(b for b, _, _ in found), tuple(one for _, one, _ in found), tuple(two for _, _, two in found)
    )


def _wanted(before: SceneInfo, after: SceneInfo, wanted: Sequence[str]) -> list[tuple[Band, str, str]]:
    found = []
    for name in wanted:
        one, two = find_band(before, name), find_band(after, name)
        if one is None and two is not None:
            one = find_band(before, two.name)
        if two is None and one is not None:
            two = find_band(after, one.name)
        for band, scene in ((one, before), (two, after)):
            if band is None:
                raise BandError(
                    scene.uri,
                    f"has no band {name!r}",
                    f"Its bands are: {_listed(scene)}. Choose with --bands names or 1-based numbers.",
                )
        if one is not None and two is not None:
            found.append((two if is_unnamed(one) else one, one.name, two.name))
    return found


def _shared(before: SceneInfo, after: SceneInfo) -> list[tuple[Band, str, str]]:
    names = {b.name for b in after.bands}
    unnamed = all(is_unnamed(b) for b in (*before.bands, *after.bands))
    found = [(b, b.name, b.name) for b in before.bands if b.name in names]
    if not found or (unnamed and len(before.bands) != len(after.bands)):
        raise BandError(
            f"{before.uri} and {after.uri}",
            f"have no bands that are known to be the same: {len(before.bands)} in the image before "
            f"({_listed(before)}), {len(after.bands)} in the image after ({_listed(after)})",
            "Give both dates the same bands, or say which to compare by number: --bands 1,2,3.",
        )
    return found


def find_band(scene: SceneInfo, name: str) -> Band | None:
    """A band by common name, then provider id, then 1-based number."""
    wanted = str(name).strip().lower()
    for key in ("name", "id"):
        for band in scene.bands:
            if getattr(band, key).lower() == wanted:
                return band
    if wanted.isdigit() and 1 <= int(wanted) <= len(scene.bands):
        return scene.bands[int(wanted) - 1]
    return None


def is_unnamed(band: Band) -> bool:
    """Whether a band is known by its position only."""
    return re.fullmatch(r"b\d+", band.name) is not None


def _listed(scene: SceneInfo) -> str:
    return ", ".join(b.name for b in scene.bands) or "none"


def common_unit(before: SceneInfo, after: SceneInfo) -> tuple[Unit, list[Note]]:
    """The unit of the pair: that of both dates; decibels when one date is power; else that of the first, and
    a note that the second must be fitted to it."""
    if before.unit == after.unit:
        return before.unit, []
    if {before.unit, after.unit} == {Unit.DB, Unit.POWER}:
        text = "One date is in decibels and one in linear power; both are compared in decibels."
        return Unit.DB, [Note("info", "power-to-db", text)]
    text = (
        f"The dates are in different units ({before.unit} before, {after.unit} after). The image after is "
        "fitted to the image before band by band, over pixels that did not change."
    )
    return before.unit, [Note("warning", "units-differ", text)]
