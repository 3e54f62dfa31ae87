"""Makes the questions that the classifier learns from, and its weights.

    python -m terralapse.ask.training

The questions are those of `languages/<code>.questions.json`: patterns with alternatives, of which every
combination is made, with typos and polite words by a fixed seed. The weights depend on that file and on this
one alone.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
import re
from importlib import resources
from pathlib import Path

import numpy as np

from terralapse.ask.classifier import BUCKETS, features

_MOST = 260  # questions an intent
_TYPOS = 0.25  # share of the questions that get one
_POLITE = ("please", "can you tell me", "i want to know", "tell me", "so", "do you know", "could you say")
_STEPS, _RATE, _DECAY = 600, 0.05, 2e-5
_CHOICE = re.compile(r"\(([^()]*)\)")


def expand(pattern: str) -> list[str]:
    """Every combination of the alternatives of a pattern."""
    parts = _CHOICE.split(pattern)
    options = [p.split("|") if i % 2 else [p] for i, p in enumerate(parts)]
    return [" ".join("".join(c).split()) for c in itertools.product(*options)]


def questions(code: str = "en") -> list[tuple[str, str]]:
    """(intent, masked question), the same ones at each call."""
    path = resources.files("terralapse.ask") / "languages" / f"{code}.questions.json"
    rng = random.Random(7)
    made: list[tuple[str, str]] = []
    for intent, patterns in json.loads(path.read_text(encoding="utf-8")).items():
        share = max(_MOST // len(patterns), 1)
        for pattern in patterns:
            every = expand(pattern)
            chosen = every if len(every) <= share else rng.sample(every, share)
            for text in chosen:
                made.append((intent, text))
                made.append((intent, f"{rng.choice(_POLITE)} {text}"))
                if rng.random() < _TYPOS:
                    made.append((intent, _typo(text, rng)))
    return made


def _typo(text: str, rng: random.Random) -> str:
    """One letter of one word left out or swapped with the next."""
    words = text.split()
    long = [i for i, w in enumerate(words) if len(w) > 4 and w[0] != "<"]
    if not long:
        return text
    i = rng.choice(long)
    k = rng.randrange(1, len(words[i]) - 1)
    word = words[i]
    words[i] = rng.choice([word[:k] + word[k + 1 :], word[:k] + word[k + 1] + word[k] + word[k + 2 :]])
    return " ".join(words)


def words(code: str = "en") -> str:
    """The words of the patterns, without those of the questions about other things."""
    path = resources.files("terralapse.ask") / "languages" / f"{code}.questions.json"
    patterns = json.loads(path.read_text(encoding="utf-8"))
    found = " ".join(p for intent, ps in patterns.items() if intent != "other" for p in ps)
    return " ".join(sorted(set(re.findall(r"(?<![<\w])[a-z]+(?![\w>])", found))))


def digest(made: list[tuple[str, str]]) -> str:
    """A name of the questions, kept with the weights."""
    return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]


def fit(made: list[tuple[str, str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Intents, weights [buckets, intents] and biases of a logistic regression, by Adam on all questions."""
    intents = sorted({intent for intent, _ in made})
    index = {intent: k for k, intent in enumerate(intents)}
    target = np.array([index[i] for i, _ in made])
    of_class = np.bincount(target, minlength=len(intents))
    weight = (1 / of_class[target] / len(intents))[:, None]
    rows, columns, values = [], [], []
    for r, (_, text) in enumerate(made):
        found = features(text)
        rows += [r] * len(found)
        columns += found
        values += [1 / np.sqrt(len(found))] * len(found)
    from scipy.sparse import csr_matrix

    x = csr_matrix((values, (rows, columns)), shape=(len(made), BUCKETS))
    w, b = np.zeros((BUCKETS, len(intents))), np.zeros(len(intents))
    moments = [np.zeros_like(w), np.zeros_like(w), np.zeros_like(b), np.zeros_like(b)]
    for step in range(1, _STEPS + 1):
        scores = x @ w + b
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = powers / powers.sum(axis=1, keepdims=True)
        error[np.arange(len(made)), target] -= 1
        error *= weight
        for k, (parameter, slope) in enumerate(((w, x.T @ error + _DECAY * w), (b, error.sum(axis=0)))):
            first, second = moments[2 * k], moments[2 * k + 1]
            first += 0.1 * (slope - first)
            second += 0.01 * (slope**2 - second)
            fast, slow = 1 - 0.9**step, 1 - 0.99**step
            parameter -= _RATE * (first / fast) / (np.sqrt(second / slow) + 1e-8)
    return intents, w, b


def write(code: str = "en") -> Path:
    """Trains and writes the weights of a language."""
    made = questions(code)
    intents, w, b = fit(made)
    scale = float(np.abs(w).max() / 127)
    stored = {
        "intents": intents,
        "data": digest(made),
        "words": words(code),
        "scale": round(scale, 8),
        "bias": [round(float(v), 5) for v in b],
        "weights": base64.b64encode(np.rint(w / scale).astype(np.int8).tobytes()).decode(),
    }
    path = Path(__file__).parent / "weights" / f"{code}.json"
    path.write_text(json.dumps(stored) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    import sys

    sys.stdout.write(f"{write()}\n")
