"""Scores of answers to the six types of instructions of ChangeChat, each as its authors compute it.

Everything is counted on texts as the networks write them: lower case, without colons and full stops. Where a
type of a talk is scored (`talk_...`), the answers were written behind the right answers to the earlier turns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terralapse.data.chat import plain_text
from terralapse.data.words import says_change, tokens_of
from terralapse.tasks.answer_metrics import count_scores, parse_counts, parse_places, place_scores
from terralapse.tasks.caption_metrics import caption_scores

Tokenise = Callable[[str], Sequence[Hashable]]
CLASSES = ("road", "building")
TALK = "talk_"


@dataclass(frozen=True)
class Said:
    """What was written in a turn of a `kind`, the right answers, and whether the pair has changed, where
    that is known."""

    kind: str
    text: str
    answers: tuple[str, ...]
    changed: bool | None = None


def words(text: str) -> Sequence[str]:
    """The words of a text without case and stops: what captions are scored on."""
    return tokens_of(plain_text(text, None))


# --- yes or no ---------------------------------------------------------------------------------------------
def yes_or_no(text: str) -> bool | None:
    """What an answer begins with; None where it is neither."""
    first = re.match(r"[a-z]+", plain_text(text, None))
    return {"yes": True, "no": False}.get(first[0]) if first else None


def change_scores(truth: Sequence[bool], answers: Sequence[bool | None]) -> dict[str, float]:
    """`accuracy`, and `precision`, `recall`, `f1` and `f05` (which weighs precision twice) of "changed", 0
    where nothing can be divided; `failures`: the share of answers that are neither (None), which count as
    wrong.

    Raises:
        ValueError: lists of several lengths, or empty ones.
    """
    if len(truth) != len(answers) or not truth:
        raise ValueError(f"{len(truth)} truths and {len(answers)} answers cannot be scored")
    t = np.array(truth, bool)
    a = np.array([(not right) if said is None else said for right, said in zip(truth, answers, strict=True)])
    hits, named, there = int((t & a).sum()), int(a.sum()), int(t.sum())
    precision, recall = hits / named if named else 0.0, hits / there if there else 0.0

    def f(beta: float) -> float:
        below = beta**2 * precision + recall
        return (1 + beta**2) * precision * recall / below if below else 0.0

    return {
        "accuracy": float((t == a).mean()),
        "precision": precision,
        "recall": recall,
        "f1": f(1.0),
        "f05": f(0.5),
        "failures": float(np.mean([said is None for said in answers])),
    }


# --- counts ------------------------------------------------------------------------------------------------
_TALKED = {
    kind: re.compile(rf"\b(no|\d+)\s+(?:\w+\s+)?{kind}s?\b") for kind in CLASSES
}  # "2 roads has changed", "no new buildings"


def talk_counts(text: str) -> dict[str, int]:
    """The numbers of changed roads and buildings in an answer of a talk: the number, or "no", before each; 0
    where there is none."""
    plain, found = plain_text(text, None), {}
    for kind in CLASSES:
        match = _TALKED[kind].search(plain)
        found[kind] = 0 if match is None or match[1] == "no" else int(match[1])
    return found


# --- by type -----------------------------------------------------------------------------------------------
def _sentences(said: Sequence[Said], tokenise: Tokenise) -> dict[str, Any]:
    scores = caption_scores(
        [tokenise(s.text) for s in said], [[tokenise(a) for a in s.answers] for s in said]
    )
    return {"turns": len(said), **scores.as_dict()}


def _yes_no(said: Sequence[Said]) -> dict[str, Any]:
    truth = [s.changed if s.changed is not None else yes_or_no(s.answers[0]) is True for s in said]
    return {"turns": len(said), **change_scores(truth, [yes_or_no(s.text) for s in said])}


def _counts(said: Sequence[Said], parse: Callable[[str], Mapping[str, int]]) -> dict[str, Any]:
    pairs = [(parse(plain_text(s.answers[0], None)), parse(plain_text(s.text, None))) for s in said]
    found: dict[str, Any] = {"turns": len(said)}
    for kind in CLASSES:
        scores = count_scores([t[kind] for t, _ in pairs], [a[kind] for _, a in pairs])
        found |= {f"{kind}_{name}": value for name, value in scores.items()}
    return found


def _places(said: Sequence[Said]) -> dict[str, Any]:
    pairs = [
        (parse_places(plain_text(s.answers[0], None)), parse_places(plain_text(s.text, None))) for s in said
    ]
    found: dict[str, Any] = {"turns": len(said)}
    for kind in CLASSES:
        scores = place_scores([t[kind] for t, _ in pairs], [a[kind] for _, a in pairs])
        found |= {f"{kind}_{name}": value for name, value in scores.items()}
    return found


def chat_scores(
    said: Sequence[Said], tokenise: Tokenise = words, tokens: str = ""
) -> dict[str, dict[str, Any]]:
    """Scores by type, of the types that there are.

    - `caption`, `open`, `talk_caption`, `talk_open`: see `caption_scores`, on words. Captions also by part
      (`caption_changed`, `caption_unchanged`), and `binary_of_captions`: whether anything changed, as the
      caption says it (see `says_change`).
    - `binary`, `talk_binary`: see `change_scores`.
    - `count`, `talk_count`: for roads and buildings the mean absolute and root mean square error, and the
      shares
      that are exact or off by one at most.
    - `place`: for roads and buildings the scores of `place_scores`.

    Args:
        tokenise: what sentences are cut into; by default words.
        tokens: a name that scores of sentences get behind theirs where it is something else.
    """
    parts: dict[str, list[Said]] = {}
    for one in said:
        parts.setdefault(one.kind, []).append(one)
    suffix = f"_{tokens}" if tokens else ""
    found: dict[str, dict[str, Any]] = {}
    for kind, some in sorted(parts.items()):
        match kind.removeprefix(TALK):
            case "caption" | "open":
                found[f"{kind}{suffix}"] = _sentences(some, tokenise)
            case "binary":
                found[kind] = _yes_no(some)
            case "count":
                found[kind] = _counts(some, talk_counts if kind.startswith(TALK) else parse_counts)
            case "place":
                found[kind] = _places(some)
            case _:
                raise ValueError(f"turns of the type {kind} cannot be scored")
    known = [s for s in parts.get("caption", ()) if s.changed is not None]
    for name, flag in (("changed", True), ("unchanged", False)):
        if some := [s for s in known if s.changed is flag]:
            found[f"caption_{name}{suffix}"] = _sentences(some, tokenise)
    if known:
        told = [says_change(" ".join(words(s.text))) for s in known]
        scores = change_scores([bool(s.changed) for s in known], told)
        found["binary_of_captions"] = {"turns": len(known), **scores}
    return found


def selection(said: Sequence[Said]) -> float:
    """One number to choose weights by, 0 to 1: the mean over the types that there are of BLEU-4, accuracy,
    the share of exact counts, and the overlap of places (empty against empty is 1). NaN where nothing was
    said."""
    headlines = []
    for kind, scores in chat_scores(said).items():
        match kind.removeprefix(TALK):
            case "caption" | "open":
                headlines.append(scores["bleu4"])
            case "binary":
                headlines.append(scores["accuracy"])
            case "count":
                headlines.append(np.mean([scores[f"{c}_exact"] for c in CLASSES]))
            case "place":
                name = "jaccard_samples_empty_equals_one"
                headlines.append(np.mean([scores[f"{c}_{name}"] for c in CLASSES]))
    return float(np.mean(headlines)) if headlines else math.nan


def gpt2_tokens(path: Any) -> Tokenise:
    """The tokens of GPT-2, on which one of the released scripts computes its scores of captions. They are no
    words, so BLEU of them is another score: give `chat_scores` a name for it, such as `gpt2`.

    Args:
        path: `tokenizer.json` of GPT-2.

    Raises:
        MissingExtraError: `tokenizers`, which comes with `transformers`, is not installed.
        FileMissingError: there is no such file.
    """
    from terralapse.layers.language_model import subwords

    return subwords(path)
