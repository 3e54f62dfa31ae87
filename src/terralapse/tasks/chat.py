"""Instructions about two dates, answered in free text: outputs, systems, and what is counted.

Keys of a batch (`terralapse.data.chat`): `images`, `instruction` (a list of texts), `sample` int64 [B]; in
training `answer` (texts); with masks `label` int64 [B, H, W].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from terralapse.cards import Card
from terralapse.data.chat import ChatEncoding, Chats, plain_text, squared, with_history
from terralapse.errors import ModelInputError
from terralapse.layers.language_model import Writing
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.chat_metrics import Said, chat_scores, selection
from terralapse.tasks.confusion import confusion_counts
from terralapse.tasks.measures import Measure, Scores
from terralapse.tasks.metrics import binary_scores
from terralapse.tasks.network import NetworkSystem

GOALS = ("answers", "masks", "both")


@dataclass
class ChatOutput:
    """`loss`: of answers that were given, in training. `texts`: answers that were written. `mask` float [B,
    1, h, w]: log-odds of change, of systems that have a branch for masks. What was not asked for is None."""

    loss: Tensor | None = None
    texts: list[str] | None = None
    mask: Tensor | None = None

    def change(self) -> ChangeOutput:
        """The log-odds of a change."""
        assert self.mask is not None
        return ChangeOutput(self.mask[:, 0].float())


class ChatSystem(NetworkSystem):
    """A network that answers instructions. `forward` gets normalised images of the side that `encoding`
    says, and by keyword `instruction` and in training `answer`; it returns a `ChatOutput`.

    `writing` is how answers are written; `goal` is what training teaches: `answers`, `masks` or `both`.
    """

    extras = ("instruction", "answer")
    writing: Writing = Writing()
    goal: str = "answers"

    def __init__(self, card: Card, network: nn.Module, encoding: ChatEncoding) -> None:
        super().__init__(card, network)
        self.encoding = encoding

    @abstractmethod
    def forward(
        self, images: Tensor, instruction: Sequence[str] | None = None, answer: Sequence[str] | None = None
    ) -> ChatOutput: ...

    def squared(self, images: Tensor) -> Tensor:
        """Images [B, 2, 3, H, W] of 0 to 255 at the side that the network takes."""
        small = [squared(pair.cpu().numpy(), self.encoding.side) for pair in images]
        return torch.from_numpy(np.stack(small)).to(images.device)

    def ask(self, images: np.ndarray, instructions: Sequence[str]) -> list[str]:
        """Answers to instructions on one pair, each by itself.

        Args:
            images: float32 [2, 3, H, W] of 0 to 255.

        Raises:
            ModelInputError: images of another shape, values that are no numbers, or no instruction.
        """
        if images.ndim != 4 or images.shape[:2] != (2, len(self.bands)):
            raise ModelInputError(
                self.card.slug,
                f"takes images [2, {len(self.bands)}, H, W], and these are {list(images.shape)}",
                f"Give both dates with the bands {', '.join(self.bands)}.",
            )
        told = [plain_text(i, self.encoding.words) for i in instructions]
        if not np.isfinite(images).all() or not told or not all(told):
            raise ModelInputError(
                self.card.slug,
                "needs an instruction, and images without gaps",
                "Cut out a part without nodata.",
            )
        device = next(self.network.parameters()).device
        one = torch.from_numpy(squared(images, self.encoding.side)).to(device)
        batch: dict[str, Any] = {"images": one.expand(len(told), *one.shape), "instruction": told}
        with torch.inference_mode():
            texts = self.respond(batch, {}).texts
        assert texts is not None
        return texts

    def converse(self, images: np.ndarray, instructions: Sequence[str]) -> list[str]:
        """Answers to the instructions of one talk on one pair: each is told with all that was asked and
        answered before it. Raises as `ask`."""
        turns: list[tuple[str, str]] = []
        for instruction in instructions:
            answer = self.ask(images, [with_history(turns, instruction)])[0]
            turns.append((instruction, answer))
        return [answer for _, answer in turns]


class ChatMeasure(Measure):
    """Answers to the turns of a data set, by their type (see `chat_scores`), and masks (`binary`, at a
    probability of one half) where there are any. Training maximises `chat.selection`, or `binary.f1` where
    masks alone are taught.

    Counts are the answers themselves, in one row of numbers: that of the turn, the length, the characters.
    """

    sums = False
    stream: list[Tensor]
    decided: Tensor

    def __init__(self, dataset: Chats, goal: str = "answers", **options: Any) -> None:
        super().__init__(**options)
        self.dataset = dataset
        self.monitor = "binary.f1" if goal == "masks" else "chat.selection"
        self.add_state("stream", [], dist_reduce_fx="cat")
        self.add_counts("decided", 2, 2)

    def update(self, output: ChatOutput, target: Mapping[str, Any]) -> None:
        """Counts a batch of answers that were written, and of masks where both sides have them."""
        for sample, text in zip(target["sample"].tolist(), output.texts or (), strict=bool(output.texts)):
            row = [sample, len(text), *map(ord, text)]
            self.stream.append(torch.tensor(row, dtype=torch.int64, device=self.device))
        if output.mask is not None and "label" in target:
            label = target["label"]
            odds = nn.functional.interpolate(
                output.mask.float(), label.shape[-2:], mode="bilinear", align_corners=False
            )
            said = (odds[:, 0] > 0).flatten()
            self.decided += confusion_counts(label.flatten(), said, 2)  # pyright: ignore

    def counts(self) -> dict[str, np.ndarray]:
        stream: Any = self.stream  # one tensor once processes were brought together
        rows = stream if isinstance(stream, list) else [stream]
        numbers = torch.cat(rows).cpu().numpy() if rows else np.empty(0, np.int64)
        return {"stream": numbers, "decided": self.decided.cpu().numpy()}

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            "stream": np.concatenate([p["stream"] for p in parts]),
            "decided": np.sum([p["decided"] for p in parts], axis=0),
        }

    def said(self, stream: np.ndarray) -> list[Said]:
        """Turns with their answers, from a row of numbers."""
        left, found = iter(stream.tolist()), []
        for sample in left:
            text = "".join(chr(next(left)) for _ in range(next(left)))
            turn = self.dataset.turn(sample)
            found.append(Said(turn.kind, text, turn.answers, turn.changed))
        return found

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        said = self.said(counts["stream"])
        found: Scores = {**chat_scores(said), "chat": {"turns": len(said), "selection": selection(said)}}
        if counts["decided"].any():
            found["binary"] = binary_scores(counts["decided"]).as_dict()
        return found
