"""The shift between two blocks of pixels, from the directions of their edges.

Each block becomes a complex field: the squared gradient (so that an edge counts the same whichever side is
bright), divided by its length (so that its weight is linear in contrast), zero where masked. Fields have no
mean to remove and masked pixels no value to invent. They are tapered with a Hann window and correlated; the
peak is found on the half-whitened correlation, where it is sharp, and placed on the plain one, where it is
unbiased, with the correlation evaluated exactly between pixels by a matrix Fourier transform.

Orientation correlation is due to Fitch et al. (BMVC 2002); peaks by matrix transform to Guizar-Sicairos et
al. (Optics Letters 33, 2008). The thresholds come from pairs of unrelated aerial images, whose peaks stand at
most 11 standard deviations above their correlation surface; pairs of one place two to four years apart
stand at 25 to 50.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.ndimage import binary_erosion, gaussian_filter1d

_SMOOTH = 1.0  # pixels: squaring a gradient doubles its frequencies; this keeps them below the sampling limit
_REACH = 4  # pixels of the gradient filter's support
_NEAR = 5  # pixels around the peak that belong to it
MIN_VALID = 0.3  # share of a block that must be usable in both dates
SIGNIFICANT = 14.0  # standard deviations, for a peak anywhere
_UNIQUE = 1.4  # times the second peak
_EXPECTED = 8.5  # standard deviations, for a peak close to where it is expected
_EXPECTED_PX = 4


@dataclass(frozen=True)
class Peak:
    """The best match of two blocks.

    `dy`, `dx`: the content of the second lies this much further down and right, in pixels. `score`: height of
    the peak in standard deviations of the surface; `ratio`: to the second highest peak; `correlation`: of the
    two fields at the peak, 0..1; `valid`: share of pixels usable in both. `expected`: it is the highest one
    near no shift, and not the highest of all or not certain as such.
    """

    dy: float
    dx: float
    score: float
    ratio: float
    correlation: float
    valid: float
    expected: bool = False

    @property
    def size(self) -> float:
        """Length of the shift in pixels."""
        return float(np.hypot(self.dy, self.dx))

    @property
    def reliable(self) -> bool:
        """Whether the peak stands out from what unrelated images give."""
        if self.expected:
            return self.score >= _EXPECTED
        return self.score >= SIGNIFICANT and self.ratio >= _UNIQUE


def edge_field(image: np.ndarray, valid: np.ndarray, smooth: float = _SMOOTH) -> np.ndarray:
    """Squared gradient over its length, complex64 [h, w], scaled to unit energy per pixel."""
    filled = np.where(valid, image, image[valid].mean() if valid.any() else 0).astype(np.float32)
    across, down = (
        gaussian_filter1d(
            gaussian_filter1d(filled, smooth, axis=other, truncate=_REACH),
            smooth,
            axis,
            order=1,
            truncate=_REACH,
        )
        for axis, other in ((1, 0), (0, 1))
    )
    gradient = across + 1j * down
    length = np.abs(gradient)
    field = gradient * gradient / np.maximum(length, np.finfo(np.float32).tiny)
    if not valid.all():
        field *= binary_erosion(valid, iterations=int(np.ceil(_REACH * smooth)), border_value=1)
    energy = float(np.mean(np.abs(field) ** 2))
    return (field / energy**0.5 if energy > 0 else field).astype(np.complex64)


def taper(shape: tuple[int, int]) -> np.ndarray:
    """A Hann window, float32 [h, w], zero at no pixel."""
    down, across = (np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in shape)
    return np.outer(down, across).astype(np.float32)


def cross_spectrum(
    one: np.ndarray, two: np.ndarray, smooth: float = _SMOOTH
) -> tuple[np.ndarray, float, float] | None:
    """The cross-power spectrum of two blocks, the product of their norms, and the share of usable pixels.

    None when too few pixels are usable or one of the blocks has no edges.
    """
    good = np.isfinite(one), np.isfinite(two)
    share = float((good[0] & good[1]).mean())
    if share < MIN_VALID:
        return None
    window = taper(one.shape)
    fields = (edge_field(b, g, smooth) * window for b, g in zip((one, two), good, strict=True))
    spectra = [np.asarray(fft.fft2(f)) for f in fields]
    norm = float(np.prod([np.linalg.norm(s) for s in spectra]))
    if norm <= 0 or not np.isfinite(norm):
        return None
    return np.conj(spectra[0]) * spectra[1], norm, share


def whitened_surface(cross: np.ndarray) -> np.ndarray:
    """Correlation of half-whitened fields in standard deviations, float32 [h, w], zero shift at (0, 0)."""
    level = np.sqrt(np.abs(cross))
    surface = np.asarray(fft.ifft2(cross / np.maximum(level, level.max() * 1e-6)))
    surface = np.ascontiguousarray(surface.view(np.float32)[:, ::2])
    return (surface - surface.mean()) / max(float(surface.std()), 1e-30)


def highest(surface: np.ndarray) -> tuple[int, int, float, float]:
    """Row and column of the peak as signed shifts, its height, and its ratio to the next one."""
    h, w = surface.shape
    row, col = np.unravel_index(int(surface.argmax()), surface.shape)
    height = float(surface[row, col])
    rest = np.roll(surface, (h // 2 - row, w // 2 - col), (0, 1))
    top, left = max(h // 2 - _NEAR, 0), max(w // 2 - _NEAR, 0)
    rest[top : h // 2 + _NEAR + 1, left : w // 2 + _NEAR + 1] = -np.inf
    second = float(rest.max())
    ratio = height / second if second > 0 else np.inf
    return int(row - h if row > h // 2 else row), int(col - w if col > w // 2 else col), height, ratio


def measure(one: np.ndarray, two: np.ndarray, smooth: float = _SMOOTH) -> tuple[Peak, np.ndarray] | None:
    """The shift between two blocks [h, w] in which NaN is masked, and the correlation surface.

    A peak anywhere counts when it is certain by itself; otherwise the summit within four pixels of no
    shift is given. None when there is nothing to compare.
    """
    found = cross_spectrum(one, two, smooth)
    if found is None:
        return None
    cross, norm, share = found
    surface = whitened_surface(cross)
    row, col, score, ratio = highest(surface)
    near = None if score >= SIGNIFICANT and ratio >= _UNIQUE else _near_zero(surface)
    if near is not None:
        row, col, score = near
    dy, dx, height = refine(cross, (row, col))
    return Peak(dy, dx, score, ratio, max(0.0, height / norm), share, near is not None), surface


def _near_zero(surface: np.ndarray) -> tuple[int, int, float] | None:
    """The summit close to no shift (row, col, height); None when the surface only slopes up to another."""
    reach = min(_EXPECTED_PX, min(surface.shape) // 2 - 1)
    near = np.roll(surface, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    i, j = (int(v) for v in np.unravel_index(int(near.argmax()), near.shape))
    if {i, j} & {0, 2 * reach}:
        return None
    return i - reach, j - reach, float(near[i, j])


def refine(cross: np.ndarray, start: tuple[int, int]) -> tuple[float, float, float]:
    """The maximum of the plain correlation near a whole-pixel shift: (dy, dx, height).

    The correlation is the inverse transform of `cross`, evaluated on ever finer grids of fractional shifts;
    a parabola through the last one gives the rest.
    """
    h, w = cross.shape
    frequency_y, frequency_x = 2j * np.pi * fft.fftfreq(h), 2j * np.pi * fft.fftfreq(w)
    at = np.array(start, dtype=float)
    best, parabola = -np.inf, np.zeros(2)
    for reach, step in ((1.0, 0.25), (0.25, 0.05)):
        offsets = np.arange(-reach, reach + step / 2, step)
        rows = np.exp((at[0] + offsets)[:, None] * frequency_y)
        cols = np.exp(frequency_x[:, None] * (at[1] + offsets))
        # Small products; einsum keeps the threads of a BLAS out of what runs in parallel already.
        values = np.einsum("rw,wc->rc", np.einsum("rh,hw->rw", rows, cross), cols).real
        i, j = np.unravel_index(int(values.argmax()), values.shape)
        best = float(values[i, j])
        at += (offsets[i], offsets[j])
        parabola = step * np.array([_vertex(values[:, j], int(i)), _vertex(values[i], int(j))])
    at += parabola
    return float(at[0]), float(at[1]), best


def _vertex(values: np.ndarray, peak: int) -> float:
    """Offset, in steps, of the maximum of the parabola through three values around a peak."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, top, after = values[peak - 1 : peak + 2]
    bend = before - 2 * top + after
    return float(0.5 * (before - after) / bend) if bend < 0 else 0.0
