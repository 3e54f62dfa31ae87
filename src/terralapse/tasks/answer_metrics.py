"""Scores of answers to questions about images: closed answers, multiple choice, counts, places, masks.

Whether a caption tells of a change is said by `terralapse.data.words.says_change`.
Every function is pure and takes plain sequences or arrays; ratios without anything to divide by are NaN.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

GRID = tuple(
    f"{row}-{column}" for row in ("top", "center", "bottom") for column in ("left", "center", "right")
)
NO_COUNTS = ("there are no changes in roads or buildings", "no new roads or buildings")


# --- closed answers --------------------------------------------------------------------------------------
def normal_answer(answer: str, table: Mapping[str, str] | None = None) -> str:
    """An answer without case and blanks at its ends, and as `table` spells it where it does."""
    plain = answer.strip().lower()
    return plain if table is None else table.get(plain, plain)


def closed_scores(
    kinds: Sequence[Any], truth: Sequence[Any], answers: Sequence[Any], table: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Exact match of closed answers (texts are compared by `normal_answer`), as RSVQA and CDVQA score it.

    Returns:
        `per_type`: accuracy by kind of question; `counts_per_type`; `aa`: their plain mean; `oa`: the share
        of all questions.

    Raises:
        ValueError: lists of several lengths.
    """
    totals: dict[Any, list[int]] = {}
    for kind, right, said in zip(kinds, truth, answers, strict=True):
        if isinstance(right, str):
            right, said = normal_answer(right, table), normal_answer(str(said), table)
        tally = totals.setdefault(kind, [0, 0])
        tally[0] += int(right == said)
        tally[1] += 1
    per_type = {kind: hits / all_ for kind, (hits, all_) in sorted(totals.items(), key=lambda t: str(t[0]))}
    hits, asked = (sum(column) for column in zip(*totals.values(), strict=True)) if totals else (0, 0)
    return {
        "per_type": per_type,
        "counts_per_type": {kind: totals[kind][1] for kind in per_type},
        "aa": float(np.mean(list(per_type.values()))) if per_type else math.nan,
        "oa": hits / asked if asked else math.nan,
    }


def parse_choice(text: str, letters: str = "ABCDEFGH", strict: bool = False) -> frozenset[str] | None:
    """The letters that an answer to a multiple choice names, or None where it names none.

    Taken are `B`, `B.`, `(B)`, `Answer: B` and lists such as `A, C`; letters inside of words are not.

    Args:
        letters: that can be chosen.
        strict: take nothing but the letter itself, for parity with papers.
    """
    plain = text.strip()
    if strict:
        return frozenset(plain) if len(plain) == 1 and plain in letters else None
    plain = re.sub(r"(?i)^(the\s+)?(correct\s+)?(answers?|options?)(\s+(is|are))?\s*[:=]?\s*", "", plain)
    one = rf"\(?([{letters}{letters.lower()}])\)?[.:]?"
    if (match := re.match(rf"{one}(?=\s|$|,|;|&)", plain)) is None:
        return None
    chosen = {match[1].upper()}
    rest = plain[match.end() :]
    while more := re.match(rf"\s*(?:,|;|&|and\b)\s*{one}(?=\s|$|,|;|&)", rest):
        chosen.add(more[1].upper())
        rest = rest[more.end() :]
    # "A road" begins with an article, not with a choice.
    if match[0] in ("A", "a") and re.match(r"\s+[a-z]", rest):
        return None
    return frozenset(chosen)


def choice_scores(
    truth: Sequence[Collection[str]], answers: Sequence[Collection[str] | None], options: int = 0
) -> dict[str, float]:
    """`accuracy` by exact sets of letters, and `failures`: the share of answers that could not be parsed
    (None), which count as wrong. `chance` is that of one letter among `options`, where these are given."""
    right = [a is not None and set(a) == set(t) for t, a in zip(truth, answers, strict=True)]
    found = {
        "accuracy": float(np.mean(right)) if right else math.nan,
        "failures": float(np.mean([a is None for a in answers])) if right else math.nan,
    }
    return found | ({"chance": 1 / options} if options else {})


# --- counts ----------------------------------------------------------------------------------------------
def parse_counts(text: str) -> dict[str, int]:
    """The numbers of new roads and buildings that a sentence states, as the released script of DeltaVLM reads
    them: cut at the word "new", roads before the first cut's end, buildings after; a part with the letters
    "no" is 0, else its first whole number, and 0 where it has none."""
    if any(phrase in text for phrase in NO_COUNTS):
        return {"road": 0, "building": 0}
    parts = [*text.split("new"), "", ""]
    return {"road": _first_number(parts[0]), "building": _first_number(parts[1])}


def _first_number(text: str) -> int:
    found = re.search(r"\d+", text)
    return 0 if "no" in text or found is None else int(found.group())


def count_scores(truth: ArrayLike, answers: ArrayLike) -> dict[str, float]:
    """`mae`, `rmse`, and the shares of answers that are `exact` and `within_one`."""
    off = np.abs(np.asarray(answers, np.float64) - np.asarray(truth, np.float64))
    if not off.size:
        return dict.fromkeys(("mae", "rmse", "exact", "within_one"), math.nan)
    return {
        "mae": float(off.mean()),
        "rmse": float(np.sqrt((off**2).mean())),
        "exact": float((off == 0).mean()),
        "within_one": float((off <= 1).mean()),
    }


# --- places ----------------------------------------------------------------------------------------------
def parse_places(text: str) -> dict[str, list[str]]:
    """The cells of the 3 x 3 grid that stand after "roads" and after "buildings", in their order."""
    found: dict[str, list[str]] = {}
    for kind in ("road", "building"):
        match = re.search(rf"{kind}s?\s*\[([^\]]*)\]", text)
        named = re.findall(r"[a-z]+-[a-z]+", match[1]) if match else []
        found[kind] = [cell for cell in named if cell in GRID]
    return found


def place_scores(truth: Sequence[Collection[str]], answers: Sequence[Collection[str]]) -> dict[str, float]:
    """Scores of sets of cells of `GRID`.

    `hamming` is the share of cells that are wrong; precision, recall and F1 are of all cells together;
    `subset_accuracy` the share of exact sets. `jaccard_samples` takes two empty sets for 0, as scikit-learn
    does; `jaccard_samples_empty_equals_one` for 1, which is what a right answer deserves.
    """
    t, a = (np.array([[c in s for c in GRID] for s in sets], bool) for sets in (truth, answers))
    if t.shape != a.shape or not len(t):
        raise ValueError(f"{len(truth)} truths and {len(answers)} answers cannot be scored")
    hits, named, there = (t & a).sum(), a.sum(), t.sum()
    both, either = (t & a).sum(axis=1), (t | a).sum(axis=1)
    jaccard = both / np.maximum(either, 1)
    return {
        "hamming": float((t != a).mean()),
        "precision_micro": float(hits / named) if named else 0.0,
        "recall_micro": float(hits / there) if there else 0.0,
        "f1_micro": float(2 * hits / (named + there)) if named + there else 0.0,
        "jaccard_samples": float(jaccard.mean()),
        "jaccard_samples_empty_equals_one": float(np.where(either == 0, 1.0, jaccard).mean()),
        "subset_accuracy": float((t == a).all(axis=1).mean()),
    }


# --- masks that a phrase refers to -----------------------------------------------------------------------
def referring_scores(truth: Sequence[ArrayLike], answers: Sequence[ArrayLike]) -> dict[str, float]:
    """`giou` (also printed as mIoU): the mean IoU of the samples, 1 where both masks are empty; `ciou`: all
    intersections over all unions, 1 where all masks are empty."""
    overlaps, unions = [], []
    for t, a in zip(truth, answers, strict=True):
        one, other = np.asarray(t, bool), np.asarray(a, bool)
        overlaps.append(int((one & other).sum()))
        unions.append(int((one | other).sum()))
    if not unions:
        return {"giou": math.nan, "ciou": math.nan}
    each = [o / u if u else 1.0 for o, u in zip(overlaps, unions, strict=True)]
    total = sum(unions)
    return {"giou": float(np.mean(each)), "ciou": sum(overlaps) / total if total else 1.0}
