"""Scores of sentences against reference sentences, as the published scorers of captions compute them.

All functions take a corpus: one hypothesis and one or more references for each image, as sequences of tokens.
Tokens are anything that can be compared: words, or ids of a vocabulary. Published captions of change are
scored on ids, which matters for METEOR alone (ids have no stems and no synonyms). Nothing here needs Java.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

Tokens = Sequence[Hashable]
Hypotheses = Sequence[Tokens]
References = Sequence[Sequence[Tokens]]
Grams = Counter[tuple[Hashable, ...]]

ORDERS = 4  # the longest n-gram of BLEU and CIDEr-D
BEAM = 40  # alignments that METEOR keeps while it goes through a sentence


def words(text: str) -> list[str]:
    """The tokens of a sentence that is tokenised already: split at blanks, as the scorers of COCO do it."""
    return text.split()


def ngrams(tokens: Tokens, n: int) -> Grams:
    """How often each n-gram occurs."""
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _check(hypotheses: Hypotheses, references: References) -> None:
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"{len(hypotheses)} hypotheses and {len(references)} sets of references: every image needs one "
            "hypothesis and at least one reference"
        )


# --- BLEU ------------------------------------------------------------------------------------------------
def bleu(hypotheses: Hypotheses, references: References) -> list[float]:
    """BLEU-1 to BLEU-4 of a corpus.

    Counts are summed over the corpus; the reference that is closest in length (the shorter of two) counts for
    the brevity penalty. Source: Papineni et al. 2002, with the small constants of the scorer of COCO.

    Raises:
        ValueError: an image without a hypothesis or a reference.
    """
    _check(hypotheses, references)
    right, guessed = [0] * ORDERS, [0] * ORDERS
    length = reference_length = 0
    for hypothesis, several in zip(hypotheses, references, strict=True):
        length += len(hypothesis)
        reference_length += min((abs(len(r) - len(hypothesis)), len(r)) for r in several)[1]
        for n in range(1, ORDERS + 1):
            most: Grams = Counter()
            for reference in several:
                most |= ngrams(reference, n)
            right[n - 1] += (ngrams(hypothesis, n) & most).total()
            guessed[n - 1] += max(0, len(hypothesis) - n + 1)
    tiny, small = 1e-15, 1e-9
    ratio = (length + tiny) / (reference_length + small)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    found, product = [], 1.0
    for n in range(ORDERS):
        product *= (right[n] + tiny) / (guessed[n] + small)
        found.append(product ** (1 / (n + 1)) * brevity)
    return found


# --- ROUGE-L ---------------------------------------------------------------------------------------------
def common_length(one: Tokens, other: Tokens) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for token in one:
        corner = 0
        for i, theirs in enumerate(other, start=1):
            above = row[i]
            row[i] = corner + 1 if token == theirs else max(above, row[i - 1])
            corner = above
    return row[-1]


def rouge_l_each(hypotheses: Hypotheses, references: References, beta: float = 1.2) -> list[float]:
    """ROUGE-L of each image, as the scorer of COCO has it: the best precision and the best recall over the
    references, each taken by itself.

    Raises:
        ValueError: as for `bleu`.
    """
    _check(hypotheses, references)
    found = []
    for hypothesis, several in zip(hypotheses, references, strict=True):
        shared = [common_length(hypothesis, r) for r in several]
        precision = max(shared) / len(hypothesis) if hypothesis else 0.0
        recall = max(s / len(r) if r else 0.0 for s, r in zip(shared, several, strict=True))
        below = recall + beta**2 * precision
        found.append((1 + beta**2) * precision * recall / below if precision and recall else 0.0)
    return found


def rouge_l(hypotheses: Hypotheses, references: References) -> float:
    """The mean of `rouge_l_each`. The package rouge-score computes something else under this name."""
    return float(np.mean(rouge_l_each(hypotheses, references)))


# --- CIDEr-D ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Weighted:
    """The n-grams of a sentence, weighed by how rare they are: for each n a table and its norm."""

    tables: list[dict[tuple[Hashable, ...], float]]
    norms: list[float]
    bigrams: int


def cider_d_each(hypotheses: Hypotheses, references: References, sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each image, 0 to 10; what the tools of COCO call CIDEr.

    How rare an n-gram is is counted over the references of this very corpus, so that a score of a part of a
    corpus is another number: never compute it batch by batch. Source: Vedantam et al. 2015; the length in
    its penalty is the number of bigrams, as in the published code.

    Raises:
        ValueError: as for `bleu`.
    """
    _check(hypotheses, references)
    images: Grams = Counter()
    for several in references:
        images.update({g for r in several for n in range(1, ORDERS + 1) for g in ngrams(r, n)})
    every = math.log(len(references)) if len(references) > 1 else 1.0

    def weigh(tokens: Tokens) -> _Weighted:
        counts = [ngrams(tokens, n) for n in range(1, ORDERS + 1)]
        tables = [{g: c * (every - math.log(max(1, images[g]))) for g, c in t.items()} for t in counts]
        return _Weighted(tables, [math.hypot(*t.values()) for t in tables], counts[1].total())

    found = []
    for hypothesis, several in zip(hypotheses, references, strict=True):
        ours = weigh(hypothesis)
        alike = [_alike(ours, weigh(r), sigma) for r in several]
        found.append(10 * float(np.mean(alike)))
    return found


def _alike(ours: _Weighted, theirs: _Weighted, sigma: float) -> float:
    penalty = math.exp(-((ours.bigrams - theirs.bigrams) ** 2) / (2 * sigma**2))
    total = 0.0
    for n in range(ORDERS):
        table = theirs.tables[n]
        shared = sum(min(w, table[g]) * table[g] for g, w in ours.tables[n].items() if g in table)
        below = ours.norms[n] * theirs.norms[n]
        total += penalty * (shared / below if below else shared)
    return total / ORDERS


def cider_d(hypotheses: Hypotheses, references: References) -> float:
    """The mean of `cider_d_each`. Some papers print it times 100."""
    return float(np.mean(cider_d_each(hypotheses, references)))


# --- METEOR ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MeteorCounts:
    """What METEOR counts for a hypothesis and its best reference; sums of these score a corpus. `chunks` is 0
    where both sentences are the same: nothing is out of order."""

    matches: int
    hypothesis: int
    reference: int
    chunks: int

    @property
    def score(self) -> float:
        """0 to 1, with the parameters of METEOR 1.5 for English: alpha 0.85, beta 0.2, gamma 0.6."""
        if not self.matches:
            return 0.0
        precision, recall = self.matches / self.hypothesis, self.matches / self.reference
        mean = precision * recall / (0.85 * precision + 0.15 * recall)
        return mean * (1 - 0.6 * (self.chunks / self.matches) ** 0.2)


def meteor_exact_each(hypotheses: Hypotheses, references: References) -> list[MeteorCounts]:
    """The counts of METEOR 1.5 with its module `exact` alone, for each image and its best reference.

    Raises:
        ValueError: as for `bleu`.
    """
    _check(hypotheses, references)
    return [
        max((_meteor(h, r) for r in several), key=lambda c: c.score)
        for h, several in zip(hypotheses, references, strict=True)
    ]


def meteor_exact(hypotheses: Hypotheses, references: References) -> float:
    """METEOR 1.5 of a corpus, with its module `exact` alone and without a list of function words.

    METEOR 1.5 also matches stems, synonyms and paraphrases. On ids of a vocabulary, which is what papers on
    captions of change print, nearly nothing but exact matches is left: each sentence scores the same, but for
    numerals that its tables relate to each other. On words the two must not be compared, so this one has its
    own name. Source: Denkowski and Lavie 2014.
    """
    each = meteor_exact_each(hypotheses, references)
    return MeteorCounts(
        sum(c.matches for c in each),
        sum(c.hypothesis for c in each),
        sum(c.reference for c in each),
        sum(c.chunks for c in each),
    ).score


def _meteor(hypothesis: Tokens, reference: Tokens) -> MeteorCounts:
    """The alignment with most matches, of these with fewest chunks, of these with the shortest ways; by a
    beam, as METEOR searches it."""
    places: dict[Hashable, list[int]] = {}
    for i, token in enumerate(reference):
        places.setdefault(token, []).append(i)
    # matches (negative), chunks that are closed, sum of distances, place after the last match, taken places
    paths: list[tuple[int, int, int, int, frozenset[int]]] = [(0, 0, 0, -1, frozenset())]
    spare = Counter(hypothesis)  # a token that the reference has often enough is never left out
    for at, token in enumerate(hypothesis):
        ahead = []
        for matches, chunks, way, after, taken in sorted(paths, key=lambda p: p[:3])[:BEAM]:
            for place in places.get(token, ()):
                if place not in taken:
                    closed = chunks + (after not in (-1, place))
                    ahead.append((matches - 1, closed, way + abs(at - place), place + 1, taken | {place}))
            if spare[token] > len(places.get(token, ())):
                ahead.append((matches, chunks + (after != -1), way, -1, taken))
        paths = ahead
    ended = [(m, chunks + (after != -1), way) for m, chunks, way, after, _ in paths]
    matches, chunks, _ = min(ended)
    if chunks == 1 and -matches == len(hypothesis) == len(reference):
        chunks = 0
    return MeteorCounts(-matches, len(hypothesis), len(reference), chunks)


# --- together --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class CaptionScores:
    """Of a corpus. `s_m` is the mean of BLEU-4, METEOR, ROUGE-L and CIDEr-D, written S*m in papers; here with
    `meteor_exact`."""

    bleu1: float
    bleu2: float
    bleu3: float
    bleu4: float
    meteor_exact: float
    rouge_l: float
    cider_d: float
    s_m: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def caption_scores(hypotheses: Hypotheses, references: References) -> CaptionScores:
    """Every score of a corpus.

    Raises:
        ValueError: as for `bleu`.
    """
    one, two, three, four = bleu(hypotheses, references)
    meteor, rouge = meteor_exact(hypotheses, references), rouge_l(hypotheses, references)
    cider = cider_d(hypotheses, references)
    return CaptionScores(one, two, three, four, meteor, rouge, cider, (four + meteor + rouge + cider) / 4)
