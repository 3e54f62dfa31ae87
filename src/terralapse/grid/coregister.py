"""How far two dates lie apart, block by block, and the correction that the blocks agree on.

`coregister_dates` measures a systematic sample of blocks, finds a shift that is common to them (all
correlation surfaces are added, so that blocks too weak alone still count), reads the blocks again with it,
and fits the simplest of three models: one shift, an affine map, or an affine map with a smooth local field.
A richer model must predict blocks that it has not seen clearly better. Then everything is measured again
with the correction applied, and that residual is what the report states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from os import cpu_count
from typing import Any

import numpy as np
from affine import Affine

from terralapse.grid._phase import SIGNIFICANT, Peak, highest, measure
from terralapse.grid._positions import compose
from terralapse.grid._shiftmodel import Correction, ShiftModel, fit_model
from terralapse.grid.scene import Block, Note, Window

WARN_PX = 0.5  # shifts and residuals above this are warned about
MISREGISTERED_PX = 1.0  # a block that is off by more than this after correction is not compared
_NEGLIGIBLE_PX = 0.15  # below this resampling costs more than it mends
_MAX_BLOCKS = 64
_MIN_SIDE = 32
_COARSE = 1024  # pixels along the longer side of the decimated look at the whole
_MIN_AGREE = 3  # blocks that must say the same; two when all together say it as well
_ENOUGH = 6  # reliable blocks, for larger blocks to be preferred
_ROUNDS = 3  # times that a model is applied, measured and fitted again
_SETTLED_PX = 0.05
_GAIN = 0.9  # share of the median shift that a correction may leave at most
_FULL_WEIGHT = 30.0  # standard deviations, from which a block could not be any better

ReadDates = Callable[[Affine, tuple[int, int], Correction], tuple[Block, Block]]
"""Both dates on `shape` pixels that an affine maps to those of the common grid, one band each."""


@dataclass(frozen=True)
class BlockShift:
    """One block: where it is, what was found there before correction, what is left after."""

    window: Window
    peak: Peak | None
    found: tuple[float, float] | None = None  # (dy, dx) of the second date against the first, uncorrected
    residual: tuple[float, float] | None = None

    @property
    def state(self) -> str:
        """`reliable`, or `unknown`: too little texture or too little in common to tell."""
        return "reliable" if self.peak is not None and self.peak.reliable else "unknown"


@dataclass
class Coregistration:
    """What was measured and done. Shifts are (dy, dx) in pixels of the common grid: how far the content of
    the second date lies below and to the right of that of the first."""

    status: str  # "skipped", "unknown", "aligned", "corrected", "inconsistent"
    verdict: str
    correction: Correction = field(default_factory=Correction)
    model: str = "none"
    shift: tuple[float, float] | None = None
    standard_error: float | None = None
    residual_median: float | None = None
    residual_p90: float | None = None
    before_median: float | None = None
    blocks: list[BlockShift] = field(default_factory=list)
    block_size: int = 0
    misregistered: list[Window] = field(default_factory=list)

    @staticmethod
    def skipped() -> Coregistration:
        """Nothing was measured, because nobody asked."""
        return Coregistration("skipped", "The shift between the dates was not measured.")

    @property
    def unreliable_share(self) -> float | None:
        """Share of the blocks that could not be told."""
        if not self.blocks:
            return None
        return sum(b.state != "reliable" for b in self.blocks) / len(self.blocks)

    def notes(self) -> list[Note]:
        """What a reader of the report must know."""
        notes = []
        if self.status in ("unknown", "inconsistent"):
            notes.append(Note("warning", f"shift-{self.status}", self.verdict))
        if self.before_median is not None and self.before_median > WARN_PX:
            text = f"The dates were {self.before_median:.2g} px apart as delivered. {self.verdict}"
            notes.append(Note("warning", "shift-found", text))
        if self.residual_median is not None and self.residual_median > WARN_PX:
            text = (
                f"The dates are still {self.residual_median:.2g} px apart; thin changes along the edges of "
                "objects are not to be trusted."
            )
            notes.append(Note("warning", "shift-remains", text))
        if self.misregistered:
            one = len(self.misregistered) == 1
            where = "one place" if one else f"{len(self.misregistered)} places"
            they = "it is" if one else "they are"
            text = f"In {where} the dates do not align and could not be aligned; {they} masked."
            notes.append(Note("warning", "misregistered", text))
        return notes

    def as_dict(self, pixel_m: float | None) -> dict[str, Any]:
        """JSON-ready; metres are given where the pixel size is known."""

        def metres(pixels: float | None) -> float | None:
            return None if pixels is None or pixel_m is None else round(pixels * pixel_m, 4)

        size = None if self.shift is None else float(np.hypot(*self.shift))
        return {
            "status": self.status,
            "verdict": self.verdict,
            "model": self.model,
            "applied": self.correction.as_dict(),
            "shift_px": None if self.shift is None else {"dy": _r(self.shift[0]), "dx": _r(self.shift[1])},
            "shift_size_px": _r(size),
            "shift_size_m": metres(size),
            "standard_error_px": _r(self.standard_error),
            "median_before_px": _r(self.before_median),
            "residual_median_px": _r(self.residual_median),
            "residual_median_m": metres(self.residual_median),
            "residual_p90_px": _r(self.residual_p90),
            "block_size_px": self.block_size,
            "blocks_measured": len(self.blocks),
            "blocks_reliable": sum(b.state == "reliable" for b in self.blocks),
            "unreliable_share": _r(self.unreliable_share),
            "misregistered": [[w.row, w.col, w.height, w.width] for w in self.misregistered],
            "blocks": [_row(b) for b in self.blocks],
        }


def _r(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _row(block: BlockShift) -> dict[str, Any]:
    w, p = block.window, block.peak
    return {
        "window": [w.row, w.col, w.height, w.width],
        "state": block.state,
        "shift_px": None if block.found is None else [_r(v) for v in block.found],
        "residual_px": None if block.residual is None else [_r(v) for v in block.residual],
        "score": None if p is None else round(p.score, 1),
        "peak_ratio": None if p is None else round(min(p.ratio, 999.0), 2),
        "correlation": None if p is None else _r(p.correlation),
        "valid_share": None if p is None else _r(p.valid),
    }


def coregister_dates(
    read: ReadDates,
    shape: tuple[int, int],
    moved: int = 1,
    smooth: float = 1.0,
    threads: int | None = None,
) -> Coregistration:
    """Measures the shift between two dates and decides on a correction.

    Args:
        read: gives one band of both dates; the correction is applied to the date `moved`.
        shape: height and width of the common grid.
        moved: 0 or 1, the date that the correction moves.
        smooth: pixels of smoothing before edges are taken; 2 for speckled images.
        threads: blocks at once; None for as many as there are processors, at most four.
    """
    if min(shape) < _MIN_SIDE:
        return _unknown([], 0, "the images share too few pixels")
    sampler = _Sampler(read, shape, moved, smooth, threads or min(4, cpu_count() or 1))
    best: Coregistration | None = None
    for size in _block_sizes(shape):
        found = _with_blocks(sampler, size)
        if best is None or _is_better(found, best):
            best = found
        if best.residual_median is not None and best.residual_median <= WARN_PX:
            break
    return best or _unknown([], 0, "the images share too few pixels")


def _with_blocks(sampler: _Sampler, size: int) -> Coregistration:
    """What blocks of one size say."""
    sampler.block = size
    totals = sampler.first_look(list(_sample(sampler.shape, size)))
    model = fit_model(*_points(totals), sampler.shape, min_agree=sampler.must_agree(totals))
    if model is None:
        enough = len(_points(totals)[0]) >= _MIN_AGREE
        why = "the blocks contradict each other" if enough else "too few blocks show the same things"
        return _unknown(totals, size, why, "inconsistent" if enough else "unknown")
    return _settle(sampler, model, totals)


def _is_better(found: Coregistration, than: Coregistration) -> bool:
    """Whether larger blocks brought the dates closer; they must not do so by leaving places out."""
    if found.residual_median is None or than.residual_median is None:
        return found.residual_median is not None
    few = sum(b.state == "reliable" for b in found.blocks) < _ENOUGH
    return not few and found.residual_median < than.residual_median


def _settle(sampler: _Sampler, model: ShiftModel, totals: list[BlockShift]) -> Coregistration:
    """Applies a model if it is worth it, measures what is left, and repeats until nothing moves any more."""
    windows = [b.window for b in totals]
    correction, left = Correction(), totals
    for turn in range(_ROUNDS):
        if model.largest() <= _NEGLIGIBLE_PX:
            correction, left = (
                Correction(),
                totals if correction.is_none else sampler.measure(windows, Correction()),
            )
            break
        correction = model.correction(sampler.moved)
        left = sampler.measure(windows, correction)
        totals = [_plus(b, *model.at(np.array([_centre(b.window)]))) for b in left]
        again = fit_model(*_points(totals), sampler.shape, min_agree=sampler.must_agree(totals))
        settled = again is None or (again.kind == model.kind and again.distance(model) < _SETTLED_PX)
        if again is None or settled or turn == _ROUNDS - 1:
            break
        model = again
    raw = np.array([np.hypot(*b.found) for b in totals if b.state == "reliable" and b.found is not None])
    residual = np.array([b.peak.size for b in left if b.peak is not None and b.peak.reliable])
    if not len(residual) or (not correction.is_none and np.median(residual) > _GAIN * np.median(raw)):
        return _unknown(totals, sampler.block, "a correction does not bring them closer", "inconsistent")
    blocks = [
        replace(b, found=t.found, residual=None if b.peak is None else (b.peak.dy, b.peak.dx))
        for b, t in zip(left, totals, strict=True)
    ]
    return Coregistration(
        "aligned" if correction.is_none else "corrected",
        _verdict(residual, raw, correction),
        correction,
        "none" if correction.is_none else model.kind,
        model.at_centre(),
        model.standard_error,
        float(np.median(residual)),
        float(np.quantile(residual, 0.9)),
        float(np.median(raw)),
        blocks,
        sampler.block,
        sampler.misregistered(blocks, correction),
    )


def _verdict(residual: np.ndarray, raw: np.ndarray, correction: Correction) -> str:
    within, most = (max(0.05, float(v)) for v in (np.median(residual), np.quantile(residual, 0.9)))
    spread = "" if len(residual) < 10 else f" (90 % of {len(residual)} places within {most:.2g} px)"
    done = (
        "as delivered; nothing had to be corrected"
        if correction.is_none
        else f"after correcting {float(np.median(raw)):.2g} px"
    )
    return f"The dates are aligned within {within:.2g} px{spread} {done}."


def _unknown(blocks: list[BlockShift], size: int, why: str, status: str = "unknown") -> Coregistration:
    verdict = f"The shift between the dates could not be measured ({why}); nothing was corrected."
    return Coregistration(status, verdict, blocks=blocks, block_size=size)


# --- the sample ------------------------------------------------------------------------------------
def _block_sizes(shape: tuple[int, int]) -> Sequence[int]:
    """Block sides to try, until one brings the dates close enough: small ones localise, large ones see more
    where there is little in common."""
    side = min(shape)
    if side >= 1024:
        return 256, 512
    if side >= 768:
        return (256,)
    return (128, 2 * side // 3) if side >= 192 else (side,)


def _sample(shape: tuple[int, int], block: int) -> Iterator[Window]:
    """Windows on an even grid over the scene, at most about 64, overlapping by about half at most."""
    spacing = max(block / 2, (shape[0] * shape[1] / _MAX_BLOCKS) ** 0.5)
    counts = [max(1, round((n - block) / spacing) + 1) for n in shape]
    rows, cols = (
        np.linspace(0, n - block, c).round().astype(int) if c > 1 else np.array([(n - block) // 2])
        for n, c in zip(shape, counts, strict=True)
    )
    for row in rows:
        for col in cols:
            yield Window(int(row), int(col), block, block)


def _centre(window: Window) -> tuple[float, float]:
    return window.row + window.height / 2, window.col + window.width / 2


def _points(blocks: Sequence[BlockShift]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (row, col) [n, 2], shifts (dy, dx) [n, 2] and weights [n] of the reliable blocks."""
    good = [
        (b, b.peak) for b in blocks if b.state == "reliable" and b.found is not None and b.peak is not None
    ]
    centres = np.array([_centre(b.window) for b, _ in good]).reshape(-1, 2)
    shifts = np.array([b.found for b, _ in good]).reshape(-1, 2)
    return centres, shifts, np.array([min(p.score, _FULL_WEIGHT) ** 2 for _, p in good])


def _plus(block: BlockShift, shift: Sequence[float] | np.ndarray) -> BlockShift:
    """A block measured under a shift, with what that makes in total."""
    if block.peak is None:
        return block
    return replace(block, found=(block.peak.dy + float(shift[0]), block.peak.dx + float(shift[1])))


class _Sampler:
    """Reads blocks of both dates and measures them, several at a time."""

    def __init__(
        self, read: ReadDates, shape: tuple[int, int], moved: int, smooth: float, threads: int
    ) -> None:
        self.read, self.shape, self.moved, self.smooth = read, shape, moved, smooth
        self.threads = threads
        self.block = 0
        self.in_common = False  # whether all blocks together showed a shift
        self._coarse: list[tuple[int, int] | None] = []  # the coarse shift, once it was looked for

    def must_agree(self, blocks: Sequence[BlockShift]) -> int:
        """How many blocks must lie on a model."""
        return min(_MIN_AGREE - int(self.in_common), len(blocks))

    def _images(self, window: Window, correction: Correction) -> tuple[np.ndarray, np.ndarray]:
        to_grid = Affine.translation(window.col, window.row)
        one, two = self.read(to_grid, (window.height, window.width), correction)
        return one.data[0], two.data[0]

    def measure(self, windows: Sequence[Window], correction: Correction) -> list[BlockShift]:
        """Each block under a correction, in order."""

        return [block for block, _ in _parallel(lambda w: self._look(w, correction), windows, self.threads)]

    def _look(self, window: Window, correction: Correction) -> tuple[BlockShift, np.ndarray | None]:
        found = measure(*self._images(window, correction), self.smooth)
        if found is None:
            return BlockShift(window, None), None
        return BlockShift(window, found[0]), found[1]

    def first_look(self, windows: Sequence[Window]) -> list[BlockShift]:
        """Each block's shift as delivered. Where all blocks together show a shift, they are read again with
        its whole pixels undone, so that both dates of a block show the same ground."""
        looks = _parallel(lambda w: self._look(w, Correction()), windows, self.threads)
        surfaces = [s for _, s in looks if s is not None]
        common = highest(np.sum(surfaces, axis=0) / len(surfaces) ** 0.5) if surfaces else (0, 0, 0.0, 0.0)
        self.in_common = common[2] >= SIGNIFICANT
        start = common[:2] if self.in_common else self._coarse_shift()
        if start is None:  # nothing in common to be seen: only blocks that are certain by themselves count
            return [_plus(_certain(block), (0, 0)) for block, _ in looks]
        if start == (0, 0):
            return [_plus(block, start) for block, _ in looks]
        return [_plus(block, start) for block in self.measure(windows, Correction.shift(start, self.moved))]

    def _coarse_shift(self) -> tuple[int, int] | None:
        """The shift of a decimated look at the whole, for dates that lie farther apart than a block. Looked
        for once, whatever the size of the blocks: a file without overviews is read whole for it."""
        if not self._coarse:
            self._coarse.append(self._look_at_the_whole())
        return self._coarse[0]

    def _look_at_the_whole(self) -> tuple[int, int] | None:
        step = max(1, -(-max(self.shape) // _COARSE))
        height, width = self.shape[0] // step, self.shape[1] // step
        if min(height, width) < _MIN_SIDE:
            return None
        rows = -(-height // (2 * self.threads))

        def strip(window: Window) -> tuple[np.ndarray, np.ndarray]:
            to_grid = compose(Affine.scale(step), Affine.translation(0, window.row))
            one, two = self.read(to_grid, (window.height, window.width), Correction())
            return one.data[0], two.data[0]

        windows = [Window(row, 0, min(rows, height - row), width) for row in range(0, height, rows)]
        one, two = (
            np.concatenate(date) for date in zip(*_parallel(strip, windows, self.threads), strict=True)
        )
        found = measure(one, two, self.smooth)
        if found is None or found[0].expected or not found[0].reliable:
            return None
        return round(found[0].dy * step), round(found[0].dx * step)

    def misregistered(self, blocks: Sequence[BlockShift], correction: Correction) -> list[Window]:
        """Blocks that are off by more than a pixel, each confirmed by another one beside it or by its own
        quarters, and what lies between them and their neighbours in the sample."""
        off = [b for b in blocks if _off(b.peak)]
        rows, cols = (sorted({getattr(b.window, k) for b in blocks}) for k in ("row", "col"))
        found: list[Window] = []
        for block in off:
            if not _has_ally(block, off) and not self._confirmed(block, correction):
                continue
            found.append(block.window)
            for window in _around(block.window, rows, cols, self.shape):
                if _off(self._look(window, correction)[0].peak):
                    found.append(window)
        return list(dict.fromkeys(found))

    def _confirmed(self, block: BlockShift, correction: Correction) -> bool:
        """Whether at least two quarters of a block show the same shift as the whole."""
        if block.peak is None:
            return False
        h, w = block.window.height // 2, block.window.width // 2
        votes = 0
        for row in (0, h):
            for col in (0, w):
                quarter = Window(block.window.row + row, block.window.col + col, h, w)
                peak = self._look(quarter, correction)[0].peak
                if peak is not None and peak.reliable:
                    votes += bool(np.hypot(peak.dy - block.peak.dy, peak.dx - block.peak.dx) < 1.0)
        return votes >= 2


def _certain(block: BlockShift) -> BlockShift:
    """A block without its peak, when that rests on an expectation."""
    return replace(block, peak=None) if block.peak is not None and block.peak.expected else block


def _off(peak: Peak | None) -> bool:
    """Whether a block is certainly more than a pixel away."""
    return peak is not None and peak.reliable and not peak.expected and peak.size > MISREGISTERED_PX


def _has_ally(block: BlockShift, off: Sequence[BlockShift]) -> bool:
    """Whether a block that is off has another one near it that is off by the same."""
    for other in off:
        apart = np.subtract(_centre(block.window), _centre(other.window))
        if other is block or np.abs(apart).max() > 2 * block.window.width or not (block.peak and other.peak):
            continue
        if np.hypot(block.peak.dy - other.peak.dy, block.peak.dx - other.peak.dx) < MISREGISTERED_PX / 2:
            return True
    return False


def _around(window: Window, rows: list[int], cols: list[int], shape: tuple[int, int]) -> Iterator[Window]:
    """Blocks between a sampled one and half-way to its neighbours, where the sample leaves gaps."""
    steps = [
        (b - a)
        if (b := next((v for v in at if v > a), None)) is not None
        else (at[-1] - at[-2] if len(at) > 1 else 0)
        for at, a in ((rows, window.row), (cols, window.col))
    ]
    reach = [
        max(0, round((step / 2 - size / 2) / size))
        for step, size in zip(steps, (window.height, window.width), strict=True)
    ]
    for i in range(-reach[0], reach[0] + 1):
        for j in range(-reach[1], reach[1] + 1):
            moved = Window(
                window.row + i * window.height, window.col + j * window.width, window.height, window.width
            )
            if (i or j) and moved.clip(*shape) == moved:
                yield moved


def _parallel(job: Callable[[Window], Any], windows: Sequence[Window], threads: int) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(job, windows))
