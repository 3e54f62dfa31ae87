"""Sentences about images: what a network that writes them returns, how it writes, and how it is taught."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.cards import Card
from terralapse.data.words import END, NULL, START, Vocabulary, plain, says_change
from terralapse.errors import SettingError
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.network import Target

Step = Callable[[Tensor], Tensor]


@dataclass
class CaptionOutput:
    """`words` float [B, L, V]: the logits of the word that follows each place of sentences that were given,
    in training. `ids` int64 [B, L]: sentences that were written, from `START` on, `NULL` after their end.
    `unchanged` bool [B]: whether a written sentence is one that says that nothing changed. What was not
    asked for is None."""

    words: Tensor | None = None
    ids: Tensor | None = None
    unchanged: Tensor | None = None


@dataclass
class MaskedCaptionOutput(CaptionOutput):
    """`mask` float [B, K, H, W]: logits of what changed, class 0 being that nothing did."""

    mask: Tensor | None = None

    def change(self) -> ChangeOutput:
        """The log-odds of a change of any class."""
        assert self.mask is not None
        return ChangeOutput(self.mask[:, 1:].float().logsumexp(dim=1) - self.mask[:, 0].float())


class Captioner(ABC):
    """What a system that writes sentences has beside its network; comes before `NetworkSystem` in the bases.

    The vocabulary may be None: then it knows ids, and no words.
    """

    card: Card
    vocabulary: Vocabulary | None
    longest: int  # tokens of a sentence, start and end included

    @abstractmethod
    def write(self, images: Tensor, beam: int = 1) -> Tensor:
        """Sentences int64 [B, L] about normalised images [B, T, C, H, W]; `beam` 1 is greedy."""

    def need_vocabulary(self) -> Vocabulary:
        """The vocabulary.

        Raises:
            SettingError: there is none.
        """
        if self.vocabulary is None:
            raise SettingError(
                f"{self.card.slug}: vocabulary",
                "is not known, and without it there are no words",
                "Give the file that belongs to the weights: vocabulary=vocab.json.",
            )
        return self.vocabulary

    def sentences(self, ids: Tensor) -> list[str]:
        """Written sentences in words.

        Raises:
            SettingError: there is no vocabulary.
        """
        vocabulary = self.need_vocabulary()
        return [vocabulary.decode(row) for row in ids.tolist()]

    def written(self, output: Any, images: Tensor) -> Any:
        """`output` with the sentences that the network writes about normalised images."""
        output.ids = self.write(images)
        output.unchanged = torch.tensor([not says_change(s) for s in self.sentences(output.ids)])
        return output


def caption_loss(words: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy of the tokens after `START`, up to and with `END`: the mean over all of a batch.

    Args:
        words: logits float [B, L, V] of what follows each place.
        tokens: int64 [B, L], `NULL` after the end.
    """
    target = tokens[:, 1:]
    total = F.cross_entropy(
        words[:, :-1].flatten(0, 1).float(), target.flatten(), ignore_index=NULL, reduction="sum"
    )
    return total / (target != NULL).sum().clamp(min=1)


def balanced(*losses: Tensor) -> Tensor:
    """The sum of losses each divided by its own value, which is not derived: every term is 1, and weighs as
    much in the gradient as the others, however large it is. Source: Change-Agent (Liu et al. 2024)."""
    return torch.stack([loss / loss.detach().clamp(min=1e-12) for loss in losses]).sum()


# --- writing ---------------------------------------------------------------------------------------------
def greedy(step: Step, batch: int, length: int, device: torch.device) -> Tensor:
    """The likeliest word after each word: int64 [batch, L] from `START`, L at most `length` + 1.

    Args:
        step: of ids [batch, n], logits [batch, V] of the word that follows.
        length: words that are written at most.
    """
    ids = torch.full((batch, 1), START, dtype=torch.int64, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    for _ in range(length):
        following = step(ids).argmax(dim=1).masked_fill(ended, NULL)
        ids = torch.cat([ids, following[:, None]], dim=1)
        ended = ended | (following == END)
        if ended.all():
            break
    return ids


def beam_search(step: Step, width: int, length: int, device: torch.device) -> Tensor:
    """The likeliest sentence that a beam of `width` finds: int64 [L] from `START`.

    A sentence that ends leaves the beam, which is then narrower by one. The score is the sum of the log
    probabilities, whatever the length; where no sentence ends, the best of those that did not.

    Args:
        step: of ids [n, L] of sentences of one image, logits [n, V] of the word that follows.
        width: sentences that are followed.
        length: words that are written at most.
    """
    ids = torch.full((1, 1), START, dtype=torch.int64, device=device)
    scores = torch.zeros(1, device=device)
    ended: list[tuple[float, Tensor]] = []
    for _ in range(length):
        total = scores[:, None] + step(ids).float().log_softmax(dim=1)  # [n, V]
        scores, place = total.flatten().topk(min(width - len(ended), total.numel()))
        sentence, word = place // total.shape[1], place % total.shape[1]
        ids = torch.cat([ids[sentence], word[:, None]], dim=1)
        done = word == END
        ended += [(float(s), row) for s, row in zip(scores[done], ids[done], strict=True)]
        ids, scores = ids[~done], scores[~done]
        if not len(ids):
            break
    if not ended:
        return ids[int(scores.argmax())]
    return max(ended, key=lambda one: one[0])[1]


def padded_rows(rows: list[Tensor]) -> Tensor:
    """Sentences of several lengths as int64 [B, L], `NULL` after their end."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NULL)


# --- counting --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Described:
    """A sentence that was written about an image, its references, as ids without start, end and padding, and
    whether the two tell of a change."""

    said: list[int]
    references: list[list[int]]
    says_change: bool
    changed: bool


def counted_sentences(output: CaptionOutput, target: Target) -> Iterator[list[int]]:
    """For each image of a batch all that is counted of it, as one row of numbers that `read_sentences` reads:
    the two truths, then every sentence, the written one first, each after its length."""
    assert output.ids is not None
    assert output.unchanged is not None
    for said, silent, references, changed in zip(
        output.ids.tolist(),
        output.unchanged.tolist(),
        target["captions"].tolist(),
        target["changed"].tolist(),
        strict=True,
    ):
        rows = [plain(said), *(plain(r) for r in references if START in r)]
        yield [int(not silent), int(changed), len(rows), *(n for r in rows for n in (len(r), *r))]


def read_sentences(numbers: Sequence[int]) -> list[Described]:
    """The images whose rows, one after the other, are `numbers`."""
    left = iter(numbers)
    found = []
    for tells in left:
        changed, count = next(left), next(left)
        said, *references = [[next(left) for _ in range(next(left))] for _ in range(count)]
        found.append(Described(said, references, bool(tells), bool(changed)))
    return found
