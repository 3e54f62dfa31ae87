"""Scores of the nine tasks of DisasterM3: exact sets of letters, masks, judged reports.

The average is over tasks and never over samples, so that a task with many questions does not outweigh the
others. Source: Wang et al., arXiv:2505.21089; its repository has no scorer, so these follow the definitions
in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terralapse.tasks.answer_metrics import choice_scores, parse_choice

CRITERIA: dict[str, tuple[str, ...]] = {"caption": ("DAP", "DDR", "FC"), "advice": ("RN", "SC", "APP")}
"""The criteria of judged reports, each 0 to 5: precision and recall of damage and factual correctness of a
caption; need of recovery, completeness of the strategy and priority of the actions of advice."""
HIGHEST = 5


@dataclass(frozen=True)
class Choice:
    """An answered question: the task, the letters that are right, those that were read from the answer (None
    where none could be), and how many options there were (0: not known)."""

    task: str
    truth: frozenset[str]
    said: frozenset[str] | None
    options: int = 0


def letters_of(truth: str) -> frozenset[str]:
    """The letters of a right answer, as `C` or `C, D, H`."""
    return frozenset(c.strip().upper() for c in truth.split(",") if c.strip())


def read_letters(response: str, letters: str) -> frozenset[str] | None:
    """Letters that a response names, or None. A model that thinks aloud is read from its last line too, and a
    tag such as `<answer>B</answer>` is looked into; letters that are no options count, and are wrong."""
    wide = letters if len(letters) >= len("ABCDEFGHIJKLM") else "ABCDEFGHIJKLM"
    plain = response.strip()
    for text in (plain, plain.rsplit("</think>", 1)[-1], plain.rsplit("\n", 1)[-1]):
        text = text.replace("**", "").replace("<answer>", "").replace("</answer>", "").strip()
        if (found := parse_choice(text, wide)) is not None:
            return found
    return None


def choice_table(choices: Iterable[Choice], tasks: Sequence[str]) -> dict[str, Any]:
    """Accuracy by exact sets.

    Returns:
        `tasks`: for each task with questions `accuracy`, `failures` (share of answers without a letter),
        `questions`, and `chance` where all of its questions have one right letter among a known number of
        options; `average`: the plain mean of the tasks, None where one of `tasks` has no question;
        `average_of_asked`: that over the tasks with questions.
    """
    grouped: dict[str, list[Choice]] = {}
    for one in choices:
        grouped.setdefault(one.task, []).append(one)
    found: dict[str, Any] = {}
    for task in [t for t in tasks if t in grouped]:
        own = grouped[task]
        truth: list[Collection[str]] = [c.truth for c in own]
        found[task] = {**choice_scores(truth, [c.said for c in own]), "questions": len(own)}
        if all(c.options and len(c.truth) == 1 for c in own) and task in _SINGLE:
            found[task]["chance"] = float(np.mean([1 / c.options for c in own]))
    values = [f["accuracy"] for f in found.values()]
    mean = float(np.mean(values)) if values else None
    return {
        "tasks": found,
        "average": mean if len(found) == len(tasks) else None,
        "average_of_asked": mean,
    }


_SINGLE = ("DTR", "BDC", "DRE", "ORR")


@dataclass(frozen=True)
class MaskTally:
    """Pixels of one referring mask: in both, in either."""

    both: int
    either: int

    @classmethod
    def of(cls, truth: np.ndarray, said: np.ndarray) -> MaskTally:
        """From bool [H, W] each.

        Raises:
            ValueError: of two sizes.
        """
        if truth.shape != said.shape:
            raise ValueError(f"a mask of {said.shape} cannot be compared with one of {truth.shape}")
        return cls(int((truth & said).sum()), int((truth | said).sum()))

    @property
    def iou(self) -> float:
        """1 where both are empty."""
        return self.both / self.either if self.either else 1.0


def mask_scores(tallies: Sequence[MaskTally]) -> dict[str, float]:
    """`miou`: the mean of the IoU of the samples; `ciou`: all intersections over all unions (1 where all
    masks are empty). As `answer_metrics.referring_scores`, from counts, so that no mask is kept."""
    if not tallies:
        return {"miou": math.nan, "ciou": math.nan}
    union = sum(t.either for t in tallies)
    return {
        "miou": float(np.mean([t.iou for t in tallies])),
        "ciou": sum(t.both for t in tallies) / union if union else 1.0,
    }


def judged_scores(marks: Sequence[Mapping[str, float | None]], criteria: Sequence[str]) -> dict[str, Any]:
    """Means of the marks by criterion and the mean of these. A mark that the judge did not give (None) counts
    as 0 and is counted in `missing`; marks are cut at 0 and 5."""
    missing = sum(m.get(c) is None for m in marks for c in criteria)
    means = {
        c: float(np.mean([min(max(m.get(c) or 0.0, 0.0), HIGHEST) for m in marks])) if marks else math.nan
        for c in criteria
    }
    return {
        **means,
        "average": float(np.mean(list(means.values()))),
        "reports": len(marks),
        "missing": int(missing),
    }
