"""Questions on a pair of dates, answered with one of a list of answers.

Keys of a batch (`terralapse.data.questions.QuestionTensors`): `images`, `question` int64 [B, L] (0 fills up),
`description` float32 [B, D], `sar` bool [B], `domain`, `kind` and `answer` int64 [B], where `OUTSIDE` is an
answer that the vocabulary does not have: it trains nothing and counts as wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card
from terralapse.data.questions import OUTSIDE, Asked, Encoding, normal_answer, resized
from terralapse.errors import ModelInputError
from terralapse.tasks.measures import Measure, Scores
from terralapse.tasks.network import NetworkSystem, Target


@dataclass
class VqaOutput:
    """`logits` float [B, K] over the answers. `embedding` float [B, D], what was made of the images for the
    question, and `text` float [B, D], of the description in the same space, where a system has them."""

    logits: Tensor
    embedding: Tensor | None = None
    text: Tensor | None = None

    def probability(self, temperature: float = 1.0) -> Tensor:
        """Probabilities [B, K] that sum to one."""
        return (self.logits.float() / temperature).softmax(dim=1)


@dataclass(frozen=True)
class Answer:
    """The likeliest answer, its probability, and that of each answer."""

    text: str
    confidence: float
    probabilities: dict[str, float]


# --- losses ------------------------------------------------------------------------------------------------
def answer_loss(logits: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy over the questions whose answer is in the vocabulary; 0 where none is."""
    known = answer != OUTSIDE
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known].float(), answer[known])


def alignment_loss(embedding: Tensor, text: Tensor, domain: Tensor, scale: float = 10.0) -> Tensor:
    """Contrast of what was seen with the texts of the domains: each sample is asked for the text of its own
    domain among those of the batch, by cosine times `scale`. 0 with one domain.

    Args:
        embedding, text: float [B, D]; domain: int64 [B].
    """
    domains, own = domain.unique(return_inverse=True)
    if len(domains) < 2:
        return embedding.sum() * 0
    first = torch.stack([(own == i).nonzero()[0, 0] for i in range(len(domains))])
    cosine = F.normalize(embedding.float(), dim=1) @ F.normalize(text[first].float(), dim=1).t()
    return F.cross_entropy(scale * cosine, own)


def coral_loss(embedding: Tensor, domain: Tensor) -> Tensor:
    """Deep CORAL over the domains of a batch: the mean over their pairs of the squared distance of their
    covariances, over 4 D^2. Domains with one sample have none; 0 with fewer than two domains.

    Source: Sun and Saenko, Deep CORAL: correlation alignment for deep domain adaptation, 2016.
    """
    values = embedding.float()
    parts = [values[domain == d] for d in domain.unique()]
    every = [p.t().cov() for p in parts if len(p) > 1]
    if len(every) < 2:
        return values.sum() * 0
    gaps = [(a - b).square().sum() for i, a in enumerate(every) for b in every[i + 1 :]]
    return torch.stack(gaps).mean() / (4 * values.shape[1] ** 2)


# --- systems -----------------------------------------------------------------------------------------------
class QuestionSystem(NetworkSystem):
    """A network that answers questions. `forward` gets normalised images and, by keyword, `question`,
    `description` and `sar` of the batch; it returns a `VqaOutput`.

    `encoding` says how questions become numbers, and names the answers in the order of the logits.
    """

    extras = ("question", "description", "sar")

    def __init__(self, card: Card, network: nn.Module, encoding: Encoding) -> None:
        super().__init__(card, network)
        self.encoding = encoding

    @property
    def answers(self) -> Sequence[str]:
        """In the order of the logits."""
        return self.encoding.answers

    def loss(self, output: VqaOutput, target: Target) -> dict[str, Tensor]:
        """The cross-entropy of the answers."""
        return {"total": answer_loss(output.logits, target["answer"])}

    def ask(
        self, images: np.ndarray, questions: Sequence[str], description: str = "", sar: bool = False
    ) -> list[Answer]:
        """Answers to questions on one pair.

        Args:
            images: float32 [2, C, H, W] in the unit and the bands of the card.
            description: a text on the place and the event.
            sar: the later date is radar.

        Raises:
            ModelInputError: images of another shape, values that are no numbers, or no question.
        """
        if images.ndim != 4 or images.shape[:2] != (2, len(self.bands)):
            raise ModelInputError(
                self.card.slug,
                f"takes images [2, {len(self.bands)}, H, W], and these are {list(images.shape)}",
                f"Give both dates with the bands {', '.join(self.bands)}.",
            )
        if not np.isfinite(images).all() or not questions:
            raise ModelInputError(
                self.card.slug, "needs a question, and images without gaps", "Cut out a part without nodata."
            )
        device = next(self.network.parameters()).device
        one = torch.from_numpy(resized(images.astype(np.float32), self.encoding.side))
        numbers = torch.from_numpy(np.stack([self.encoding.words.numbers(q) for q in questions]))
        text = torch.from_numpy(self.encoding.describe(description))
        batch = {
            "images": one.expand(len(questions), *one.shape).to(device),
            "question": numbers.to(device),
            "description": text.expand(len(questions), -1).to(device),
            "sar": torch.full((len(questions),), sar, device=device),
        }
        with torch.inference_mode():
            probability = self.respond(batch, {}).probability(self.card.temperature).cpu()
        return [
            Answer(
                self.answers[int(p.argmax())],
                float(p.max()),
                dict(zip(self.answers, p.tolist(), strict=True)),
            )
            for p in probability
        ]


# --- scores ------------------------------------------------------------------------------------------------
def answer_scores(right: np.ndarray, asked: np.ndarray, kinds: Sequence[str]) -> dict[str, float]:
    """Accuracies from counts [T] by type: `oa` over all questions, `aa` the mean over the types that were
    asked, and each type by its name (NaN where none was asked)."""
    by_kind = np.divide(right, asked, out=np.full(len(kinds), np.nan), where=asked > 0)
    total = asked.sum()
    return {
        "oa": float(right.sum() / total) if total else float("nan"),
        "aa": float(np.nanmean(by_kind)) if total else float("nan"),
        **{kind: float(value) for kind, value in zip(kinds, by_kind, strict=True)},
    }


class VqaMeasure(Measure):
    """Accuracy of answers, over all questions and by type; see `answer_scores`."""

    monitor = "vqa.oa"
    right: Tensor
    asked: Tensor

    def __init__(self, kinds: Sequence[str]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.add_counts("right", len(self.kinds))
        self.add_counts("asked", len(self.kinds))

    def update(self, output: VqaOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch."""
        kind, hit = target["kind"], output.logits.argmax(dim=1) == target["answer"]
        self.asked += torch.bincount(kind, minlength=len(self.kinds))
        self.right += torch.bincount(kind[hit], minlength=len(self.kinds))

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        return {"vqa": answer_scores(counts["right"], counts["asked"], self.kinds)}


class QuestionOnly:
    """What the questions give away: the most frequent answer to each text in training; to a text that
    training does not have, that of its type; to a type that it does not have, that of all. It sees no
    image."""

    def __init__(self, training: Iterable[Asked]) -> None:
        counts: dict[tuple[str, str], Counter[str]] = {}
        for asked in training:
            for key in (("question", asked.question), ("kind", asked.kind), ("all", "")):
                counts.setdefault(key, Counter())[normal_answer(asked.answer)] += 1
        # Ties go to the answer that comes first by the alphabet, whatever the order of training.
        self._best = {k: min(c, key=lambda a: (-c[a], a)) for k, c in counts.items()}

    def answer(self, asked: Asked) -> str:
        """The guess; nothing of `asked` but its text and type is used."""
        keys = (("question", asked.question), ("kind", asked.kind), ("all", ""))
        return next((self._best[k] for k in keys if k in self._best), "")

    def scores(self, questions: Iterable[Asked], kinds: Sequence[str]) -> dict[str, float]:
        """As `answer_scores`."""
        return scores_of(((q, self.answer(q)) for q in questions), kinds)


def scores_of(answered: Iterable[tuple[Asked, str]], kinds: Sequence[str]) -> dict[str, float]:
    """`answer_scores` of questions with the answers that somebody gave, compared as `normal_answer`."""
    place = {k: i for i, k in enumerate(kinds)}
    right, asked = np.zeros(len(place), np.int64), np.zeros(len(place), np.int64)
    for question, says in answered:
        asked[place[question.kind]] += 1
        right[place[question.kind]] += normal_answer(says) == normal_answer(question.answer)
    return answer_scores(right, asked, kinds)
