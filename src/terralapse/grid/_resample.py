"""Resampling kernels: values of a block of source pixels at arbitrary positions.

Three things set these apart from a general image warp. All bands share one set of positions, weights and
one mask, so that a four-band image costs little more than its arithmetic. A masked pixel never lends weight
to its neighbours, and its reason is handed on. And a value depends on the position only, not on the block
that was read to get it, so that two windows agree where they overlap.

Positions are (x, y) in pixels of the block with the origin at the outer corner of its first pixel: the
centre of the first pixel is (0.5, 0.5). A position that is not finite lies outside of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from terralapse.grid.scene import Block
from terralapse.labels import SceneMask

_CHUNK = 16384  # positions at a time: their temporaries stay in the second-level cache
WHOLE = 0.999  # share of a kernel's weight that must lie on usable pixels
_VALID, _OUTSIDE = int(SceneMask.VALID), int(SceneMask.OUTSIDE)
_SNAP = float(2**20)  # positions are rounded to 2^-20 pixel, so that ties fall the same way in every window


class Kernel(StrEnum):
    """How a value is made of source pixels."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    CUBIC = "cubic"
    AVERAGE = "average"

    @property
    def halo(self) -> int:
        """Source pixels needed on each side of a position (average: of the edge of its box)."""
        return {"nearest": 0, "bilinear": 1, "cubic": 2, "average": 1}[self.value]


def snap(x: np.ndarray) -> np.ndarray:
    """Rounds positions in place to 2^-20 pixel."""
    x *= _SNAP
    np.rint(x, out=x)
    x /= _SNAP
    return x


def resample(
    block: Block,
    x: np.ndarray,
    y: np.ndarray,
    kernel: Kernel,
    size: tuple[np.ndarray, np.ndarray] | None = None,
    share: float = WHOLE,
) -> Block:
    """Values and mask at positions.

    Args:
        block: source pixels [C, h, w], NaN where masked.
        x, y: positions, float64 [H, W].
        kernel: the rule. Pixels outside of the image are left out of its weights.
        size: for `AVERAGE`: width and height in source pixels of the box to average over, each [H, W].
        share: of the kernel's weight that must fall on usable pixels; a value with less is masked.

    Returns:
        [C, H, W] and its mask. The code of a masked value is that of most of the kernel's masked weight.
    """
    data, mask = block.data, block.mask
    h, w = mask.shape
    out = np.full((len(data), *x.shape), np.nan, np.float32)
    codes = np.full(x.shape, _OUTSIDE, np.uint8)
    if h == 0 or w == 0:
        return Block(out, codes)
    reasons = [code for code in range(_OUTSIDE + 1, len(SceneMask)) if (mask == code).any()]
    clean = not mask.any()
    flat = np.ascontiguousarray(data, dtype=np.float32).reshape(len(data), -1)
    for rows in _row_chunks(x.shape):
        here = (x[rows] >= 0) & (x[rows] < w) & (y[rows] >= 0) & (y[rows] < h)  # False for NaN
        at = _At(
            np.where(here, x[rows], 0.0),
            np.where(here, y[rows], 0.0),
            (h, w),
            kernel,
            None if size is None else (size[0][rows], size[1][rows]),
        )
        code = np.where(here, _VALID if clean else mask.reshape(-1)[at.nearest()], _OUTSIDE).astype(np.uint8)
        values = at.values(flat)
        if kernel is not Kernel.NEAREST and not clean:
            _mend(flat, mask, reasons, values, code, at, share)
        bad = code != _VALID
        if bad.any():
            values[:, bad] = np.nan
        out[:, rows], codes[rows] = values, code
    return Block(out, codes)


def _row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


@dataclass(frozen=True)
class _At:
    """Positions inside a block of `shape` (h, w), and what a kernel makes of the pixels around them."""

    x: np.ndarray
    y: np.ndarray
    shape: tuple[int, int]
    kernel: Kernel
    size: tuple[np.ndarray, np.ndarray] | None = None

    def __getitem__(self, at: tuple[np.ndarray, ...]) -> _At:
        size = None if self.size is None else (self.size[0][at], self.size[1][at])
        return _At(self.x[at], self.y[at], self.shape, self.kernel, size)

    def nearest(self) -> np.ndarray:
        """Flat index of the pixel that each position lies in."""
        return self.y.astype(np.intp) * self.shape[1] + self.x.astype(np.intp)

    def values(self, flat: np.ndarray) -> np.ndarray:
        """float32 [C, ...] of pixels [C, h * w]; NaN where a pixel that the kernel touches is NaN."""
        if self.kernel is Kernel.NEAREST:
            return flat.take(self.nearest(), axis=1)
        if self.kernel is Kernel.BILINEAR:
            return self._bilinear(flat)
        return self._sums(flat)

    def taps(self) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Rows, columns and their weights of the pixels that the kernel touches; indices stay inside."""
        h, w = self.shape
        if self.kernel is Kernel.AVERAGE:
            if self.size is None:
                raise ValueError("an average needs the size of its box")
            cols, wx = _box(self.x, self.size[0], w)
            rows, wy = _box(self.y, self.size[1], h)
            return rows, cols, wy, wx
        col, row = np.floor(self.x - 0.5), np.floor(self.y - 0.5)
        fx, fy = self.x - 0.5 - col, self.y - 0.5 - row
        if self.kernel is Kernel.BILINEAR:
            first, wx, wy = 0, [1 - fx, fx], [1 - fy, fy]
        else:
            first, wx, wy = -1, _cubic_weights(fx), _cubic_weights(fy)
        cols = [np.clip(col + first + i, 0, w - 1).astype(np.intp) for i in range(len(wx))]
        rows = [np.clip(row + first + i, 0, h - 1).astype(np.intp) for i in range(len(wy))]
        return rows, cols, wy, wx

    def _bilinear(self, flat: np.ndarray) -> np.ndarray:
        """Weights of the four pixels around a position; the first and last half pixel repeat the edge."""
        h, w = self.shape
        x, y = np.clip(self.x - 0.5, 0, w - 1), np.clip(self.y - 0.5, 0, h - 1)
        col, row = np.minimum(x.astype(np.intp), max(w - 2, 0)), np.minimum(y.astype(np.intp), max(h - 2, 0))
        fx, fy = (x - col).astype(np.float32), (y - row).astype(np.float32)
        right, down = (1 if w > 1 else 0), (w if h > 1 else 0)
        k = row * w + col
        k_right, k_down = k + right, k + down
        k_both = k_down + right
        out = np.empty((len(flat), *x.shape), np.float32)
        for i, pixels in enumerate(flat):
            upper, lower = pixels.take(k, mode="wrap"), pixels.take(k_down, mode="wrap")
            step = pixels.take(k_right, mode="wrap")
            step -= upper
            step *= fx
            upper += step
            step = pixels.take(k_both, mode="wrap")
            step -= lower
            step *= fx
            lower += step
            lower -= upper
            lower *= fy
            upper += lower
            out[i] = upper
        return out

    def _sums(self, flat: np.ndarray) -> np.ndarray:
        """Weighted sums over all taps. Cubic values are kept within the range of their sixteen pixels, so
        that they do not overshoot at edges."""
        rows, cols, wy, wx = self.taps()
        wx32, wy32 = [v.astype(np.float32) for v in wx], [v.astype(np.float32) for v in wy]
        index = [[row * self.shape[1] + col for col in cols] for row in rows]
        bounded = self.kernel is Kernel.CUBIC
        out = np.zeros((len(flat), *self.x.shape), np.float32)
        for i, pixels in enumerate(flat):
            low = high = None
            for of_row, weight_y in zip(index, wy32, strict=True):
                line = np.zeros(self.x.shape, np.float32)
                for k, weight_x in zip(of_row, wx32, strict=True):
                    value = pixels.take(k, mode="wrap")
                    if bounded:
                        low = value.copy() if low is None else np.minimum(low, value, out=low)
                        high = value.copy() if high is None else np.maximum(high, value, out=high)
                    value *= weight_x
                    line += value
                line *= weight_y
                out[i] += line
            if bounded:
                np.clip(out[i], low, high, out=out[i])
        return out


def _cubic_weights(f: np.ndarray) -> list[np.ndarray]:
    """Keys' cubic convolution with a = -0.5 at distances 1+f, f, 1-f and 2-f."""
    f2, f3 = f * f, f * f * f
    return [
        -0.5 * f3 + f2 - 0.5 * f,
        1.5 * f3 - 2.5 * f2 + 1.0,
        -1.5 * f3 + 2.0 * f2 + 0.5 * f,
        0.5 * f3 - 0.5 * f2,
    ]


def _box(centre: np.ndarray, size: np.ndarray, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pixels along one axis that a box covers, and the share of the box in each. A box is never narrower
    than a pixel, where its mean is the linear interpolation."""
    half = np.maximum(size, 1.0) / 2
    start, end = np.clip(centre - half, 0, count), np.clip(centre + half, 0, count)
    first = np.floor(start)
    length = end - start
    pixels, weights = [], []
    for i in range(int(np.ceil((end - first).max()))):
        share = np.clip(np.minimum(end, first + i + 1) - np.maximum(start, first + i), 0, None)
        weights.append(share / length)
        pixels.append(np.clip(first + i, 0, count - 1).astype(np.intp))
    return pixels, weights


def _mend(
    flat: np.ndarray,
    mask: np.ndarray,
    reasons: list[int],
    values: np.ndarray,
    code: np.ndarray,
    at: _At,
    share: float,
) -> None:
    """Recomputes, in place, the values whose kernel touched a masked pixel (they are NaN by
    arithmetic). `reasons` are the codes that occur in the mask."""
    broken = np.isnan(values[0])
    broken &= code != _OUTSIDE
    if not broken.any():
        return
    where = np.nonzero(broken)
    rows, cols, wy, wx = at[where].taps()
    flat_mask, width = mask.reshape(-1), mask.shape[1]
    total = np.zeros((len(flat), len(where[0])))
    usable, known, scale = (np.zeros(len(where[0])) for _ in range(3))
    masked = {c: np.zeros(len(where[0])) for c in reasons}
    for row, weight_y in zip(rows, wy, strict=True):
        for col, weight_x in zip(cols, wx, strict=True):
            k, weight = row * width + col, weight_y * weight_x
            why = flat_mask.take(k)
            good = why == _VALID
            scale += np.where(good, weight, 0)
            usable += np.where(good, np.abs(weight), 0)
            known += np.where(why != _OUTSIDE, np.abs(weight), 0)
            total += np.where(good, flat.take(k, axis=1), 0) * weight
            for c, of_code in masked.items():
                of_code += np.where(why == c, np.abs(weight), 0)
    whole = (usable > share * known) & (scale > 0)
    values[:, where[0], where[1]] = np.where(whole, total / np.where(whole, scale, 1), np.nan)
    kinds = np.array([*masked, int(SceneMask.NODATA)], np.uint8)
    # Rounded, so that of equal shares the lower code wins whatever the last bits say.
    shares = np.round(np.stack([*masked.values(), np.zeros(len(whole))]), 3)
    shares[-1] = 1e-6
    code[where] = np.where(whole, _VALID, kinds[shares.argmax(axis=0)])
