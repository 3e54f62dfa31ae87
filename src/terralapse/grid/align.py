"""Two dates on one grid: bands matched, shift corrected, radiometry fitted, masks combined."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.grid._positions import Target, compose
from terralapse.grid._resample import WHOLE, Kernel
from terralapse.grid._shiftmodel import Correction
from terralapse.grid.aoi import Area
from terralapse.grid.areas import has_place
from terralapse.grid.common import GridChoice, choose_grid, ground_size
from terralapse.grid.coregister import Coregistration, coregister_dates
from terralapse.grid.match import BandMatch, common_unit, match_bands
from terralapse.grid.median import MedianScene
from terralapse.grid.pair import REMOTE_READERS, Pair, PairBlock
from terralapse.grid.radiometry import Radiometry, fit_radiometry
from terralapse.grid.scene import Block, Note, Scene, SceneInfo, Window, as_path
from terralapse.grid.warp import AVERAGE_FROM, layers, warp
from terralapse.labels import Reason, SceneMask, pair_reason
from terralapse.sensors import Unit

_DATES = ("before", "after")
_OWN_STEP = 4  # pixels, up to which a preview is decimated by what it needs
_PREVIEW_SHARE = 0.25  # of a preview pixel that must be usable: a picture shows what there is
_USABLE = 255  # above all reasons, so that the lower of two codes is what keeps a pixel from being compared
_REASONS = np.array([[int(pair_reason(m, date)) for m in SceneMask] for date in (0, 1)], np.uint8)
_REASONS[_REASONS == Reason.VALID] = _USABLE


@dataclass
class AlignmentReport:
    """What alignment decided and measured; `as_dict` is the content of `alignment.json`."""

    choice: GridChoice
    scenes: tuple[dict[str, Any], dict[str, Any]]
    bands: list[dict[str, str]]
    unit: Unit
    coregistration: Coregistration
    moved: str
    radiometry: Radiometry | None = None
    aoi: dict[str, Any] | None = None
    notes: list[Note] = field(default_factory=list)

    @property
    def resolution_m(self) -> float | None:
        """Pixel size of the common grid on the ground in metres."""
        return self.choice.resolution_m

    @property
    def verdict(self) -> str:
        """One sentence for people: how well the dates lie on each other."""
        return self.coregistration.verdict

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; lengths in metres are None where the images have no place."""
        size = self.choice.resolution_m if has_place(self.choice.geobox) else None
        return {
            "verdict": self.verdict,
            "rule": self.choice.rule,
            "grid": describe_grid(self.choice.geobox),
            "before": self.scenes[0],
            "after": self.scenes[1],
            "bands": self.bands,
            "unit": str(self.unit),
            "aoi": self.aoi,
            "coregistration": self.coregistration.as_dict(size) | {"moved": self.moved},
            "radiometry": None if self.radiometry is None else self.radiometry.as_dict(),
            "notes": [{"level": n.level, "code": n.code, "text": n.text} for n in self.notes],
        }


def align(
    before: Scene,
    after: Scene,
    *,
    grid: str | float = "coarser",
    bands: Sequence[str] | None = None,
    aoi: Path | None = None,
    coregister: bool = True,
    normalise: bool = False,
) -> AlignedPair:
    """Brings two scenes to one grid. Reads nothing but the sample that the shift is measured on.

    Args:
        before, after: the dates; not closed by the pair.
        grid: see `terralapse.grid.common.choose_grid`.
        bands: see `terralapse.grid.match.match_bands`.
        aoi: a vector file; pixels outside of its polygons are masked.
        coregister: measure the shift between the dates, and correct it where it is certain.
        normalise: fit the radiometry of the second date to the first over pixels that did not change.

    Raises:
        NoOverlapError, NoGeoreferenceError, BandError, SettingError, FileMissingError: with the next step.
    """
    match = match_bands(before.info, after.info, bands)
    unit, notes = common_unit(before.info, after.info)
    area = Area(aoi) if aoi is not None else None
    choice = choose_grid(before, after, grid, area)
    pair = AlignedPair((before, after), choice, match, unit, area)
    pair.notes += [*notes, *_date_notes(before.info, after.info), *_same_notes(before.info, after.info)]
    if coregister:
        pair.correct_shift()
    if normalise or any(n.code == "units-differ" for n in notes):
        pair.fit_radiometry()
    return pair


class AlignedPair(Pair):
    """Two scenes read through one grid. See `align`."""

    def __init__(
        self,
        scenes: tuple[Scene, Scene],
        choice: GridChoice,
        match: BandMatch,
        unit: Unit,
        area: Area | None = None,
    ) -> None:
        self.geobox, self.bands, self.unit = choice.geobox, match.bands, unit
        self.before, self.after = scenes[0].info, scenes[1].info
        self.notes = []
        self._scenes, self._match, self._area = scenes, match, area
        self._correction = Correction()
        self._radiometry: Radiometry | None = None
        # The date that already lies on the grid is left as it is; the other one is moved onto it.
        native = [self._on_grid(scene) for scene in scenes]
        self._moved = 0 if native[1] and not native[0] else 1
        self.report = AlignmentReport(
            choice,
            (self._describe(0), self._describe(1)),
            [
                {"name": b.name, "before": one, "after": two}
                for b, one, two in zip(match.bands, match.before, match.after, strict=True)
            ],
            unit,
            Coregistration.skipped(),
            _DATES[self._moved],
            aoi=None if area is None else {"path": str(area.path), "sha256": area.digest()},
            notes=self.notes,
        )

    # --- reading -----------------------------------------------------------------------------------
    def read(self, window: Window) -> PairBlock:
        """Pixels of a window of the common grid, which may reach beyond it; thread-safe."""
        inside = window.clip(*self.shape)
        blank = Reason.OUTSIDE_BEFORE if self._area is None else Reason.OUTSIDE_AOI
        if inside == window:
            return self._block(self._window_affine(window), (window.height, window.width))
        images = np.full((2, len(self.bands), window.height, window.width), np.nan, np.float32)
        reason = np.full((window.height, window.width), int(blank), np.uint8)
        if inside.height and inside.width:
            block = self._block(self._window_affine(inside), (inside.height, inside.width))
            here = Window(
                inside.row - window.row, inside.col - window.col, inside.height, inside.width
            ).slices
            images[:, :, here[0], here[1]] = block.images
            reason[here] = block.reason
        return PairBlock(images, reason)

    def preview(self, max_size: int, bands: Sequence[str] | None = None) -> tuple[PairBlock, GeoBox]:
        """The whole pair decimated, from overviews where the scenes have them."""
        height, width = self.shape
        step = max(1, -(-max(height, width) // max_size))
        if step > _OWN_STEP:
            step = 1 << (step - 1).bit_length()  # overviews halve: any other step is read from a finer one
        shape = (-(-height // step), -(-width // step))
        names = None if bands is None else (self._named(0, bands), self._named(1, bands))
        block = self._block(Affine.scale(step), shape, names, _PREVIEW_SHARE)
        return block, GeoBox(shape, compose(self.geobox.affine, Affine.scale(step)), self.geobox.crs)

    def _named(self, date: int, bands: Sequence[str]) -> list[str]:
        """Scene names of bands given by their name in the pair or in the scene."""
        own = dict(
            zip((b.name for b in self.bands), (self._match.before, self._match.after)[date], strict=True)
        )
        names = [own.get(b, b) for b in bands]
        self._scenes[date].band_indices(names)
        return names

    def _block(
        self,
        to_grid: Affine,
        shape: tuple[int, int],
        names: tuple[list[str], list[str]] | None = None,
        share: float = WHOLE,
    ) -> PairBlock:
        """Both dates on pixels that `to_grid` maps to those of the common grid."""
        dates = self._both(
            lambda d: self.read_date(d, to_grid, shape, None if names is None else names[d], share=share)
        )
        if self._radiometry is not None and names is None:
            dates[1].data = self._radiometry.apply(dates[1].data)
        both = np.minimum(*[_REASONS[d].take(block.mask) for d, block in enumerate(dates)])
        self._mark_misregistered(both, to_grid)
        if self._area is not None:
            outside = self._area.outside(compose(self.geobox.affine, to_grid), self.geobox.crs, shape)
            both[outside] = Reason.OUTSIDE_AOI
        both[both == _USABLE] = Reason.VALID
        return PairBlock(np.stack([dates[0].data, dates[1].data]), both)

    def _both(self, read: Callable[[int], Block]) -> tuple[Block, Block]:
        """Both dates, at the same time where that saves waiting for a server."""
        if not self.remote:
            return read(0), read(1)
        with ThreadPoolExecutor(1, thread_name_prefix="date") as other:
            after = other.submit(read, 1)
            return read(0), after.result()

    def read_date(
        self,
        date: int,
        to_grid: Affine,
        shape: tuple[int, int],
        names: Sequence[str] | None = None,
        correction: Correction | None = None,
        share: float = WHOLE,
    ) -> Block:
        """One date (0 or 1) on pixels that `to_grid` maps to those of the common grid, in the pair's unit."""
        scene = self._scenes[date]
        names = (self._match.before, self._match.after)[date] if names is None else names
        target = self._target_of(date, to_grid, shape, correction or self._correction)
        block = warp(scene, target, names, share=share)
        if self.unit is Unit.DB and scene.info.unit is Unit.POWER:
            with np.errstate(invalid="ignore", divide="ignore"):
                block.data = 10 * np.log10(block.data)
            empty = ~np.isfinite(block.data).all(axis=0) & (block.mask == SceneMask.VALID)
            block.mask[empty] = SceneMask.NODATA
            block.data[:, block.mask != SceneMask.VALID] = np.nan
        return block

    def _target_of(self, date: int, to_grid: Affine, shape: tuple[int, int], move: Correction) -> Target:
        affine, shifted = compose(self.geobox.affine, to_grid), None
        if date == self._moved:
            affine, shifted = compose(self.geobox.affine, compose(move.affine, to_grid)), move.field
        return Target(affine, self.geobox.crs, shape, shifted, to_grid)

    @property
    def has_looks(self) -> bool:
        """Whether a date is a median, so that the number of clear looks behind a pixel says something."""
        return any(isinstance(scene, MedianScene) for scene in self._scenes)

    def looks(self, window: Window) -> np.ndarray:
        """uint8 [2, h, w]: the clear looks behind each pixel of a window inside the grid, for both dates. A
        date that is one image has one where it can be used."""
        found, shape = [], (window.height, window.width)
        for date, scene in enumerate(self._scenes):
            to_grid = self._window_affine(window)
            if isinstance(scene, MedianScene):
                counts = scene.counts((self._match.before, self._match.after)[date])
                target = self._target_of(date, to_grid, shape, self._correction)
                found.append(np.nan_to_num(warp(counts, target, kernel=Kernel.NEAREST).data[0]))
            else:
                found.append(self.read_date(date, to_grid, shape).mask == SceneMask.VALID)
        return np.stack(found).astype(np.uint8)

    def _window_affine(self, window: Window) -> Affine:
        return Affine.translation(window.col, window.row)

    def _mark_misregistered(self, reason: np.ndarray, to_grid: Affine) -> None:
        """Codes the cells where the dates are known not to align, in place, where nothing worse is known."""
        to_pixel = ~to_grid
        h, w = reason.shape
        for cell in self.report.coregistration.misregistered:
            left, top = to_pixel.a * cell.col + to_pixel.c, to_pixel.e * cell.row + to_pixel.f
            right, bottom = left + to_pixel.a * cell.width, top + to_pixel.e * cell.height
            rows = slice(max(0, round(top)), max(0, min(h, round(bottom))))
            cols = slice(max(0, round(left)), max(0, min(w, round(right))))
            np.minimum(reason[rows, cols], int(Reason.MISREGISTERED), out=reason[rows, cols])

    # --- measuring ---------------------------------------------------------------------------------
    def correct_shift(self) -> None:
        """Measures the shift between the dates, corrects it if it is certain, and measures what is left."""
        at = _clearest([b.name for b in self.bands])
        names = ([self._match.before[at]], [self._match.after[at]])
        speckled = self.before.sensor.sar or self.after.sensor.sar

        def read(to_grid: Affine, shape: tuple[int, int], correction: Correction) -> tuple[Block, Block]:
            return self._both(lambda d: self.read_date(d, to_grid, shape, names[d], correction))

        smooth = 2.0 if speckled else 1.0
        threads = REMOTE_READERS if self.remote else None
        result = coregister_dates(read, self.shape, moved=self._moved, smooth=smooth, threads=threads)
        self._correction = result.correction
        self.report.coregistration = result
        self.notes += result.notes()

    def fit_radiometry(self) -> None:
        """Fits the second date to the first; says why not where too few pixels stayed the same."""
        self._radiometry = None
        result = fit_radiometry(self)
        self.report.radiometry = result
        self._radiometry = result if result.applied else None
        self.notes += result.notes()

    # --- the record --------------------------------------------------------------------------------
    def fingerprint(self) -> dict[str, Any]:
        medians = [s.least if isinstance(s, MedianScene) else None for s in self._scenes]
        return {
            **({"medians": medians} if self.has_looks else {}),
            "sources": [
                [{"path": s.path, "bytes": s.bytes, "sha256": s.sha256} for s in scene.info.sources]
                or [{"path": scene.info.uri}]
                for scene in self._scenes
            ],
            "grid": describe_grid(self.geobox),
            "bands": self.report.bands,
            "unit": str(self.unit),
            "aoi": None if self._area is None else self._area.digest(),
            "correction": self._correction.as_dict(),
            "radiometry": None if self._radiometry is None else self._radiometry.as_dict(),
        }

    def _on_grid(self, scene: Scene) -> bool:
        return all(layer.copy is not None for layer in layers(scene, self._target()))

    def _target(self) -> Target:
        return Target(self.geobox.affine, self.geobox.crs, self.shape)

    def _describe(self, date: int) -> dict[str, Any]:
        scene = self._scenes[date]
        info = scene.info
        kernels = {
            _kernel_name(layer.copy is not None, layer.ratio) for layer in layers(scene, self._target())
        }
        return {
            "name": info.name,
            "uri": info.uri,
            "sensor": info.sensor.slug,
            "time": None if info.time is None else info.time.isoformat(),
            "unit": str(info.unit),
            "parts": len(scene.parts()),
            "grid": describe_grid(info.geobox),
            "resampling": ", ".join(sorted(kernels)),
        }


def _clearest(bands: Sequence[str]) -> int:
    """The band whose edges change least with season and haze."""
    for name in ("red", "nir", "green", "nir08", "swir16", "vv"):
        if name in bands:
            return bands.index(name)
    return 0


def _kernel_name(copied: bool, ratio: float) -> str:
    if copied:
        return "none (pixels as they are)"
    return "average" if ratio >= AVERAGE_FROM else "bilinear"


def describe_grid(grid: GeoBox) -> dict[str, Any]:
    """A grid as JSON-ready values: transform as (a, b, c, d, e, f), size as [height, width]."""
    return {
        "crs": None if grid.crs is None else str(grid.crs),
        "epsg": None if grid.crs is None else grid.crs.epsg,
        "transform": [float(v) for v in grid.affine[:6]],
        "size": [int(grid.shape.y), int(grid.shape.x)],
        "resolution_m": ground_size(grid) if has_place(grid) else None,
    }


def _date_notes(before: SceneInfo, after: SceneInfo) -> list[Note]:
    if before.time is None or after.time is None:
        unknown = [s.name for s in (before, after) if s.time is None]
        text = f"The date of {' and '.join(unknown)} is not known; the order given is taken as it is."
        return [Note("warning", "dates-unknown", text)]
    if before.time > after.time:
        days = f"({before.time:%Y-%m-%d}) is younger than the image after ({after.time:%Y-%m-%d})"
        text = f"The image before {days}."
        return [Note("warning", "dates-swapped", text)]
    if before.time == after.time:
        text = f"Both images have the same date ({before.time:%Y-%m-%d})."
        return [Note("warning", "dates-equal", text)]
    return []


def _same_notes(before: SceneInfo, after: SceneInfo) -> list[Note]:
    """Whether both dates are the same bytes. Files of different sizes are told apart without reading them."""
    one, two = before.sources, after.sources
    if not one or len(one) != len(two) or any(a.bytes != b.bytes for a, b in zip(one, two, strict=True)):
        return []
    if not all(a.path == b.path or _same_bytes(a.path, b.path) for a, b in zip(one, two, strict=True)):
        return []
    if before.time != after.time and [s.path for s in one] == [s.path for s in two]:
        return []  # two dates of one cube
    return [Note("warning", "identical-inputs", "Both dates are the same files; nothing can have changed.")]


def _same_bytes(one: str, two: str) -> bool:
    a, b = as_path(one), as_path(two)
    if a is None or b is None or not (a.is_file() and b.is_file()):
        return False
    return filecmp.cmp(a, b, shallow=False)
