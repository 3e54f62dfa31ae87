"""Which kind of question a masked text is: a linear model over hashed n-grams, in plain Python.

The weights are int8 with one scale, so that they load in a moment and the package stays small.
`terralapse.ask.training` makes them.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from functools import cache
from importlib import resources
from itertools import pairwise

BUCKETS = 4096


def features(text: str) -> list[int]:
    """Buckets of the words, the pairs of words and the trigrams of letters of a text, each once."""
    words = ["^", *text.split(), "$"]
    found = {f"1 {w}" for w in words[1:-1]}
    found |= {f"2 {a} {b}" for a, b in pairwise(words)}
    for word in words[1:-1]:
        if word[0] != "<":
            padded = f"_{word}_"
            found |= {f"3 {padded[i : i + 3]}" for i in range(len(padded) - 2)}
    return sorted({zlib.crc32(f.encode()) % BUCKETS for f in found})


class Classifier:
    """Weights of a language: `weights/<code>.json`."""

    def __init__(self, code: str) -> None:
        path = resources.files("terralapse.ask") / "weights" / f"{code}.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        self.intents: list[str] = stored["intents"]
        self.data: str = stored["data"]
        self.words = frozenset(stored["words"].split())
        self._scale: float = stored["scale"]
        self._bias: list[float] = stored["bias"]
        self._rows = memoryview(base64.b64decode(stored["weights"])).cast("b")

    def __call__(self, text: str) -> list[tuple[str, float]]:
        """Intents with their probabilities, the likeliest first."""
        n, buckets = len(self.intents), features(text)
        norm = self._scale / math.sqrt(max(len(buckets), 1))
        scores = list(self._bias)
        for bucket in buckets:
            row = self._rows[bucket * n : bucket * n + n]
            for k in range(n):
                scores[k] += norm * row[k]
        top = max(scores)
        powers = [math.exp(s - top) for s in scores]
        total = sum(powers)
        return sorted(
            ((i, p / total) for i, p in zip(self.intents, powers, strict=True)), key=lambda x: -x[1]
        )


@cache
def classifier(code: str) -> Classifier:
    """The classifier of a language; loaded once."""
    return Classifier(code)
