"""Patterns over classes, for those who do not tell their colours apart.

They are drawn in pixels of the tile and repeat every `PERIOD` of them, which divides the side of a tile, so
that they run on from tile to tile.
"""

from __future__ import annotations

import numpy as np

PERIOD = 16
PATTERNS = (
    "plain", "rising", "dots", "falling", "level", "upright", "crossed", "squares", "rings", "waves",
    "dashes", "grid",
)  # fmt: skip
_LIGHT, _DARK = 0.62, 0.4  # towards white on dark colours, towards black on light ones


def _masks() -> np.ndarray:
    """bool [patterns, PERIOD, PERIOD]: where each is drawn."""
    y, x = np.indices((PERIOD, PERIOD))
    half = PERIOD // 2
    middle = np.hypot(x % half - 3.5, y % half - 3.5)
    wide = np.hypot(x - 7.5, y - 7.5)
    rising, falling = (x + y) % half < 2, (x - y) % half < 2
    level, upright = y % half < 2, x % half < 2
    wave = (y + np.rint(2 * np.sin(2 * np.pi * x / PERIOD)).astype(int)) % half < 2
    found = (
        np.zeros_like(rising),
        rising,
        middle < 2,
        falling,
        level,
        upright,
        rising | falling,
        (abs(x % half - 3.5) < 2) & (abs(y % half - 3.5) < 2),
        abs(wide - 5) < 1,
        wave,
        level & ((x + half * (y // half % 2)) % PERIOD < half),
        level | upright,
    )
    return np.stack(found)


_MASKS = _masks()


def rows_of(pattern: int) -> list[int]:
    """A pattern as one number a row, whose bit x is pixel x: what a page needs to draw the same one."""
    return (_MASKS[pattern] @ (1 << np.arange(PERIOD))).tolist()


def ink(colour: np.ndarray) -> np.ndarray:
    """The colour [..., 3] of a pattern on a ground of a colour: darker on light, lighter on dark."""
    light = (colour @ np.array([0.299, 0.587, 0.114], np.float32) > 128)[..., None]
    return np.where(light, colour * _DARK, colour + (255 - colour) * _LIGHT)


def hatch(drawn: np.ndarray, classes: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """Draws the patterns of classes into a picture.

    Args:
        drawn: uint8 [h, w, 4], the colours.
        classes: uint8 [h, w].
        patterns: uint8 [256], the number of the pattern of each class.

    Returns:
        a new picture; what is transparent stays so.
    """
    y, x = (np.arange(n) % PERIOD for n in classes.shape)
    here = _MASKS[patterns[classes], y[:, None], x[None]]
    colour = drawn[..., :3].astype(np.float32)
    made = drawn.copy()
    made[..., :3] = np.where(here[..., None] & (drawn[..., 3:] > 0), ink(colour).round(), colour)
    return made
