"""Scores of free answers as EarthDial's evaluation counts them: none is the usual score of its name.

Its accuracy is a recall of words, its ROUGE is a mean over references, and its METEOR is the one of NLTK.
They serve to compare with its own table; for captions there is `terralapse.tasks.caption_metrics`, for closed
answers `terralapse.tasks.answer_metrics`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from terralapse.tasks.caption_metrics import common_length
from terralapse.tasks.porter import stem

KINDS = ("comp", "presence", "rural_urban")  # of RSVQA, over which its accuracies are given

# The rules of the Penn Treebank for one sentence, in their order.
_RULES = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r'^\s*"', " `` "),
        (r'([ (\[{<])("|\'{2})', r"\1 `` "),
        (r"([:,])([^\d])", r" \1 \2"),
        (r"([:,])\s*$", r" \1 "),
        (r"\.{2,}", r" \g<0> "),
        (r"[;@#$%&]", r" \g<0> "),
        (r"([^\.])(\.)([\])}>\"']*)\s*$", r"\1 \2 \3 "),
        (r"[?!*]", r" \g<0> "),
        (r"([^'])' ", r"\1 ' "),
        (r"[\[\](){}<>]", r" \g<0> "),
        (r"--", r" -- "),
        (r"''|\"", " '' "),
        (r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
        (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
        (r"(?i)\b(can)(not)\b", r"\1 \2"),
        (r"(?i)\b(gon|wan)(na)\b|\b(got)(ta)\b", lambda m: " ".join(filter(None, m.groups()))),
    )
)


def treebank(text: str) -> list[str]:
    """The words and marks of one sentence."""
    text = f" {text} "  # some rules look for a space after a word
    for pattern, to in _RULES:
        text = pattern.sub(to, text)
    return text.split()


# --- accuracy that is recall -----------------------------------------------------------------------------
def word_recall(answer: str, reference: str) -> float:
    """Distinct words that both have, over the words of the reference with repeats; without spaces and in
    lower case, so that `dense residential` is one word."""
    said, true = (treebank(re.sub(r"\s", "", t.lower())) for t in (answer, reference))
    return len(set(said) & set(true)) / len(true) if true else 0.0


def mean_recall(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean of `word_recall`; 0 of nothing."""
    each = [word_recall(a, r) for a, r in zip(answers, references, strict=True)]
    return sum(each) / len(each) if each else 0.0


def recall_by_kind(
    answers: Sequence[str], references: Sequence[str], kinds: Sequence[str], counted: Sequence[str] = KINDS
) -> dict[str, float]:
    """`mean_recall` for each of the kinds that are counted and there; others are left out."""
    found = {}
    for kind in counted:
        rows = [(a, r) for a, r, k in zip(answers, references, kinds, strict=True) if k == kind]
        if rows:
            found[kind] = mean_recall(*zip(*rows, strict=True))
    return found


# --- ROUGE of the package rouge-score --------------------------------------------------------------------
def _rouge_words(text: str) -> list[str]:
    words = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
    return [stem(w) if len(w) > 3 else w for w in words]


def rouge_f(answer: str, reference: str) -> dict[str, float]:
    """F of `rouge1` and `rougeL` of stems, 0 to 1."""
    said, true = _rouge_words(answer), _rouge_words(reference)
    common = {
        "rouge1": sum((Counter(said) & Counter(true)).values()),
        "rougeL": common_length(said, true),
    }
    return {k: 2 * n / (len(said) + len(true)) if n else 0.0 for k, n in common.items()}


# --- METEOR of NLTK --------------------------------------------------------------------------------------
def meteor_nltk(answer: str, references: Sequence[str]) -> float:
    """METEOR as NLTK computes it (alpha 0.9, beta 3, gamma 0.5), by exact words and stems, best of the
    references. Its third stage, synonyms of WordNet, is a download and is left out: the figure has the name
    `meteor_nltk_without_wordnet`."""
    said = [w.lower() for w in treebank(answer)]
    return max((_meteor(said, [w.lower() for w in treebank(r)]) for r in references), default=0.0)


def _meteor(said: list[str], true: list[str]) -> float:
    left, right = list(enumerate(said)), list(enumerate(true))
    pairs = [*_matches(left, right, str), *_matches(left, right, stem)]
    if not pairs:
        return 0.0
    pairs.sort()
    chunks = 1 + sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in pairwise(pairs))
    precision, recall = len(pairs) / len(said), len(pairs) / len(true)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / len(pairs)) ** 3)


def _matches(
    left: list[tuple[int, str]], right: list[tuple[int, str]], form: Callable[[str], str]
) -> list[tuple[int, int]]:
    """Words of one form, from the ends of both sentences; those that are matched leave the lists."""
    found = []
    for i in range(len(left) - 1, -1, -1):
        for j in range(len(right) - 1, -1, -1):
            if form(left[i][1]) == form(right[j][1]):
                found.append((left.pop(i)[0], right.pop(j)[0]))
                break
    return found


def description_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Mapping[str, float]:
    """Means over images: `rouge1_f` and `rougeL_f` averaged over the references of each, and
    `meteor_nltk_without_wordnet`."""
    rows = list(zip(answers, references, strict=True))
    rouge = {
        k: sum(sum(rouge_f(a, r)[k] for r in refs) / len(refs) for a, refs in rows) / len(rows)
        for k in ("rouge1", "rougeL")
    }
    meteor = sum(meteor_nltk(a, refs) for a, refs in rows) / len(rows)
    return {
        "rouge1_f": rouge["rouge1"],
        "rougeL_f": rouge["rougeL"],
        "meteor_nltk_without_wordnet": meteor,
    }


def without_boxes(text: str) -> str:
    """The words of a grounded description: without its tags and the boxes between brackets."""
    return re.sub(r"\[\[.*?\]\]|</?(ref|box|quad|mb)>", "", text).strip()
