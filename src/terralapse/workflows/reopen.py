"""The images of a finished run, opened and aligned again the way that it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.errors import BandError, NoValidDataError, UnreadableFileError
from terralapse.workflows.change import ChangeSettings

if TYPE_CHECKING:
    from terralapse.grid.align import AlignedPair

_SIDE = 1024  # pixels that means are taken over, at most, on the longer side


@contextmanager
def reopened(folder: Path, bands: Sequence[str] | None = None) -> Iterator[AlignedPair]:
    """The pair of a run.

    Args:
        folder: of the run.
        bands: common names; those of the run where None.

    Raises:
        FileMissingError: the images are no longer where they were.
        UnreadableFileError: a run of many dates, or the images are others now.
        BandError: they have no such bands.
    """
    from terralapse.grid._gdal import gdal_env
    from terralapse.grid.align import align
    from terralapse.grid.open import open_scene
    from terralapse.products.result import ChangeResult

    run = ChangeResult(folder).run
    stored = run.get("settings", {})
    if run.get("kind") == "series" or not {"before", "after"} <= set(stored):
        raise UnreadableFileError(folder, "is no run of two dates", "Give a folder of `terralapse change`.")
    known = {f.name for f in fields(ChangeSettings)}
    settings = ChangeSettings(**{k: v for k, v in stored.items() if k in known})
    with ExitStack() as stack, gdal_env():
        first, second = (
            stack.enter_context(
                open_scene(
                    stored[date],
                    assume_crs=settings.assume_crs,
                    time=time,
                    pixel_grid=settings.pixel_grid,
                    s2_offset=settings.s2_offset,
                )
            )
            for date, time in (("before", settings.date_before), ("after", settings.date_after))
        )
        pair = align(
            first,
            second,
            grid=settings.grid,
            bands=bands or list(run["grid"]["bands"]),
            aoi=settings.aoi,
            coregister=settings.coregister,
            normalise=settings.normalise,
        )
        if pair.shape != (run["grid"]["height"], run["grid"]["width"]):
            raise UnreadableFileError(
                folder, "was made from images that are others now", "Run `terralapse change` again."
            )
        yield pair


@dataclass(frozen=True)
class Means:
    """Means over the pixels of a place that both dates can be compared at: of each of `names`, before and
    after, in the unit of the pair."""

    names: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    pixels: int
    unit: str


def means(folder: Path, index: str | None = None, place: str | None = None) -> Means:
    """Of a spectral index, or of the bands of the run, in all or in a ninth or third (`ninth.north`).

    They are taken on a grid of at most 1024 pixels a side, so that any scene takes bounded time and memory.

    Raises:
        BandError, SettingError: the images lack the bands, or there is no such index or place.
        NoValidDataError: no pixel of the place can be compared.
        And what `reopened` raises.
    """
    import numpy as np

    from terralapse.grid.indices import parse_index
    from terralapse.products.look import place_mask

    found = parse_index(index) if index is not None else None
    with reopened(folder, None if found is None else found.bands) as pair:
        block, box = pair.preview(_SIDE)
        images, valid = block.images, block.valid
        names: tuple[Any, ...] = tuple(b.name for b in pair.bands)
        if found is not None:
            if len(names) < len(found.bands):
                raise BandError(
                    f"index {found.name}", f"needs {' and '.join(found.bands)}", "Ask for another."
                )
            images, names = found.compute(images)[:, None], (found.name,)
        unit = "" if found is not None else str(pair.unit)
    where = valid & np.isfinite(images).all(axis=(0, 1))
    if place is not None:
        where &= place_mask(box, place)
    if not where.any():
        raise NoValidDataError(
            place or "the scene", "has no pixel that both dates show", "Ask about another place."
        )
    both = images[:, :, where].astype(np.float64).mean(axis=2)
    return Means(names, tuple(both[0].tolist()), tuple(both[1].tolist()), int(where.sum()), unit)
