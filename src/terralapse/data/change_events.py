"""What changed between two dates, from what a model of single images says of each, without labels of change.

Change events as in SemiCD-VL (Li et al. 2024, arXiv:2405.04788): scores of several prompts become a map of
buildings with a class for doubt; an instance that meets none of the other date appeared or disappeared; and
the mixed rule keeps of these instances what the two maps disagree about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terralapse.data.pairs import IGNORE
from terralapse.errors import UnreadableFileError

PROMPTS = ("house", "building", "road", "grass", "tree", "water")
BUILDING = (0, 1)  # which of the prompts mean one
DOUBT = 0.8  # the score that the best prompt has to beat


@dataclass(frozen=True)
class Instance:
    """One object: `mask` bool [H, W], `prompt` an index of `PROMPTS`, `score` of 0 to 1."""

    mask: np.ndarray
    prompt: int
    score: float = 1.0


def building_map(scores: np.ndarray, doubt: float = DOUBT) -> np.ndarray:
    """Buildings uint8 [H, W] of 0, 1 and `IGNORE`, from scores [6, H, W] of the prompts.

    The prompt with the largest score wins, unless that is below `doubt`, which stands for a class of its own:
    where it wins nothing is said. On a tie the prompt wins.
    """
    best = scores.argmax(axis=0)
    label = np.isin(best, BUILDING).astype(np.uint8)
    return np.where(scores.max(axis=0) < doubt, np.uint8(IGNORE), label)


def instance_events(
    before: Sequence[Instance], after: Sequence[Instance], shape: tuple[int, int]
) -> np.ndarray:
    """Where buildings appeared or disappeared: bool [H, W].

    An instance changed when it shares no pixel with any building of the other date (the sum of its overlaps
    is 0); one that shares a single pixel did not.
    """
    changed = np.zeros(shape, bool)
    for own, other in ((before, after), (after, before)):
        covered = np.zeros(shape, bool)
        for instance in other:
            if instance.prompt in BUILDING:
                covered |= instance.mask
        for instance in own:
            if instance.prompt in BUILDING and not (instance.mask & covered).any():
                changed |= instance.mask
    return changed


def mixed_events(before: np.ndarray, after: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Change uint8 [H, W] of 0, 1 and `IGNORE`: where two maps of buildings differ in changed instances.

    Args:
        before, after: from `building_map`; where either ignores a pixel, so does the result.
        instances: bool [H, W], from `instance_events`.
    """
    unknown = (before == IGNORE) | (after == IGNORE)
    changed = (before != after) & instances
    return np.where(unknown, np.uint8(IGNORE), changed.astype(np.uint8))


# --- masks as COCO keeps them ------------------------------------------------------------------------------
def instances_of(entries: Sequence[Mapping[str, Any]], source: str = "instances") -> list[Instance]:
    """Instances of a COCO result: a list of `segmentation` (`size`, `counts`), `category_id` and `score`.

    Raises:
        UnreadableFileError: an entry has no such fields, or counts that do not fill its size.
    """
    try:
        return [
            Instance(run_length_mask(e["segmentation"]), int(e["category_id"]), float(e.get("score", 1.0)))
            for e in entries
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UnreadableFileError(
            source,
            f"holds an entry that is no instance ({error})",
            "Write it as a COCO result with RLE masks.",
        ) from error


def run_length_mask(segmentation: Mapping[str, Any]) -> np.ndarray:
    """The mask bool [H, W] of run lengths, column by column from unset: a list, or the text of COCO's API.

    Raises:
        ValueError: the runs do not fill the mask.
    """
    height, width = segmentation["size"]
    counts = segmentation["counts"]
    runs = _unpacked(counts) if isinstance(counts, str | bytes) else list(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"runs of {sum(runs)} pixels for {height} x {width}")
    set_ = np.arange(len(runs)) % 2 == 1
    return np.repeat(set_, runs).reshape(width, height).T


def _unpacked(text: str | bytes) -> list[int]:
    """COCO's text: groups of 5 bits, lowest first, from character 48 on; bit 6 says that more follow, and bit
    5 of the last is the sign; from the fourth run on it is the difference to the run two before."""
    codes = text if isinstance(text, bytes) else text.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("run lengths end within a number")
    return runs
