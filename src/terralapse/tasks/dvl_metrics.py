"""The scores of DVL-Bench as its released scripts compute them: choices, judged texts, masks of change.

Source: Xuan et al. 2025 (arXiv:2505.21076) and the released scripts, oddities included where `released` is
True."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from terralapse.tasks.metrics import confusion_matrix, image_accuracy, semantic_scores

CLASSES = 26  # no change, and 5 x 5 changes
_EPSILON = 1e-5  # of the union of one sample


# --- choices ---------------------------------------------------------------------------------------------
def right_choice(response: str, truth: str, multiple: bool) -> bool:
    """Whether letters are those of the truth.

    One letter: equal without dots at the ends, blanks and case. Several: split at commas, and only pieces
    that stand in the alphabet in one go are kept ("ab" does, and so does an empty piece), sorted, equal
    lists; there is no part of a point."""
    said, right = (t.strip(".").strip().lower() for t in (response, truth))
    if not multiple:
        return said == right
    pieces = [p.strip().strip(".") for p in said.split(",")]
    kept = sorted(p for p in pieces if p in string.ascii_lowercase)
    return kept == sorted(p.strip().strip(".") for p in right.split(","))


# --- judged texts ----------------------------------------------------------------------------------------
def parse_grades(reply: str | None, criteria: Sequence[str], *, released: bool = True) -> dict[str, int]:
    """The grades in a judge's reply, `<criterion>4</criterion>` each; what cannot be read is 0.

    Where only one of the two tags stands, the character beside it is taken.

    Args:
        released: keep grades outside of 0..5, as the released script does; else they are brought to the
            nearer end.
    """
    found: dict[str, int] = {}
    for name in criteria:
        grade = _grade(reply or "", f"<{name}>", f"</{name}>")
        found[name] = grade if released else min(max(grade, 0), 5)
    return found


def _grade(reply: str, start: str, end: str) -> int:
    if start in reply:
        after = reply.split(start)[1]
        said = after.split(end)[0] if end in reply else after[:1]
    elif end in reply:
        said = reply.split(end)[0][-1:]
    else:
        return 0
    try:
        return int(said.strip())
    except ValueError:
        return 0


def judged_scores(grades: Sequence[Mapping[str, int]]) -> dict[str, float]:
    """The mean of each criterion, and `score`, the mean of these; empty without grades."""
    if not grades:
        return {}
    means = {name: float(np.mean([g[name] for g in grades])) for name in grades[0]}
    return {**means, "score": float(np.mean(list(means.values())))}


# --- masks -----------------------------------------------------------------------------------------------
def mask_scores(truth: Sequence[ArrayLike], answers: Sequence[ArrayLike]) -> dict[str, Any]:
    """`giou`, the mean IoU of the samples (I / (U + 1e-5), 1 where both masks are empty), `ciou`, all
    intersections over all unions, and `per_sample`."""
    overlaps, unions = [], []
    for t, a in zip(truth, answers, strict=True):
        one, other = np.asarray(t, bool), np.asarray(a, bool)
        overlaps.append(int((one & other).sum()))
        unions.append(int((one | other).sum()))
    if not unions:
        return {"giou": math.nan, "ciou": math.nan, "per_sample": []}
    each = [o / (u + _EPSILON) if u else 1.0 for o, u in zip(overlaps, unions, strict=True)]
    return {
        "giou": float(np.mean(each)),
        "ciou": sum(overlaps) / (sum(unions) + 1e-10),
        "per_sample": each,
    }


def mask_change_scores(
    truth: Sequence[ArrayLike],
    answers: Sequence[ArrayLike],
    changes: Sequence[int],
    *,
    released: bool = False,
) -> dict[str, float]:
    """Scores of masks as maps of change, both multiplied by the number of the change that was asked for.

    Args:
        changes: 1..25 for each sample, (source - 1) 5 + target.
        released: give the recall of the released script, which divides by what was predicted and so is its
            precision.

    Returns:
        `kappa_n0`, `IoU_mean`, `IoU_fg`, `Sek`, `Acc` (the mean of the accuracies of the images),
        `Precision`, `Recall`.
    """
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    right: list[float] = []
    for t, a, change in zip(truth, answers, changes, strict=True):
        label, said = (np.asarray(m, bool) * change for m in (t, a))
        right.append(image_accuracy(label, said, ignore=None))
        matrix += confusion_matrix(label, said, CLASSES, ignore=None)
    scores = semantic_scores(matrix)
    return {
        "kappa_n0": scores.kappa_n0,
        "IoU_mean": scores.miou,
        "IoU_fg": scores.iou_change,
        "Sek": scores.sek,
        "Acc": float(np.mean(right)) if right else math.nan,
        "Precision": scores.precision,
        "Recall": scores.precision if released else scores.recall,
    }
