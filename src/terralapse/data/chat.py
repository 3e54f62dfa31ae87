"""Instructions about pairs of dates and what is answered: turns of a talk, their texts, and tensors of both.

A data set of instructions has `title`, `scheme`, `kinds` (the types of turns), `names` (of the pair that
each turn is about), and `turn(number)`, which gives a turn without reading its images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from terralapse.data.augment_pairs import AugmentRecipe, augment
from terralapse.errors import SettingError
from terralapse.labels import ClassScheme
from terralapse.sensors import Unit

WORDS = 50  # of a text, after which it is cut
CACHE_BYTES = 512 * 2**20  # of resized images that are kept
_DROPPED = re.compile(r"[.!\"()*#:;~]")


def plain_text(text: str, words: int | None = WORDS) -> str:
    """A text as BLIP's captions are prepared: lower case, a blank in place of each of . ! " ( ) * # : ; ~,
    single blanks, and no more than `words` words (None for all).

    Both instructions and answers go through it, so that answers lose their colons, and a long talk its end.
    """
    found = _DROPPED.sub(" ", text.lower()).split()
    return " ".join(found if words is None else found[:words])


@dataclass(frozen=True)
class Turn:
    """An instruction, with all that was said before, and its right answers, of which one is taught.

    `kind` is its type. `changed` says whether the pair has changed, where the data set knows it. `said` is
    what this turn itself asks, and `number` its place in the talk, from 0 on.
    """

    kind: str
    instruction: str
    answers: tuple[str, ...]
    changed: bool | None = None
    said: str = ""
    number: int = 0


def with_history(turns: Sequence[tuple[str, str]], instruction: str, prefix: bool = True) -> str:
    """What a network is told: earlier questions with their answers, then the instruction.

    `q: Q1 a: A1 q: Q2 a: A2  q: Q3`, where the last `q:` stands behind two blanks, as in the released code.
    The first turn has a `q:` only with `prefix`.
    """
    before = " ".join(f"q: {q} a: {a}" for q, a in turns)
    if not before:
        return f"q: {instruction}" if prefix else instruction
    return f"{before}  q: {instruction}"


@dataclass(frozen=True)
class ChatPair:
    """A turn on two dates. `read` gives the images float32 [2, 3, H, W] in `unit`; `images` are those.
    `label` reads the mask of changes uint8 [H, W], where the data set has one."""

    name: str
    read: Callable[[], np.ndarray]
    turn: Turn
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    label: Callable[[], np.ndarray] | None = None

    @cached_property
    def images(self) -> np.ndarray:
        return self.read()


class Chats(Protocol):
    """A split of a data set of instructions."""

    title: str
    scheme: ClassScheme
    kinds: tuple[str, ...]
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ChatPair: ...

    def turn(self, index: int, /) -> Turn: ...


def is_chat(dataset: Any) -> TypeGuard[Chats]:
    """Whether a data set is one of instructions."""
    return callable(getattr(dataset, "turn", None)) and hasattr(dataset, "kinds")


# --- tensors -----------------------------------------------------------------------------------------------
def squared(images: np.ndarray, side: int) -> np.ndarray:
    """Images [T, 3, H, W] of 0 to 255 as float32 [T, 3, side, side] of whole numbers, by the bicubic filter
    of Pillow, which the published networks saw their images through."""
    if images.shape[-2:] == (side, side):
        return images.astype(np.float32)
    bytes_ = np.round(images).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    small = [Image.fromarray(i).resize((side, side), Image.Resampling.BICUBIC) for i in bytes_]
    return np.stack([np.asarray(i) for i in small]).transpose(0, 3, 1, 2).astype(np.float32)


@dataclass(frozen=True)
class ChatEncoding:
    """How a system wants its data: the `side` of its images in pixels, and after how many `words` texts are
    cut (None for never)."""

    side: int
    words: int | None = WORDS


class ChatTensors(Dataset[dict[str, Any]]):
    """Turns as what a system answers, in order; what the default collation of torch brings together.

    Keys: `images` float32 [2, 3, S, S] of 0 to 255; `instruction`, a text; `sample` int64, the number of the
    turn; with `mask` also `label` int64 [H, W], at its own size: 1 where anything changed. Resized images
    are kept, up to `CACHE_BYTES`.

    Raises:
        SettingError: masks are asked for, and there are none.
    """

    def __init__(self, dataset: Chats, encoding: ChatEncoding, mask: bool = False) -> None:
        if mask and len(dataset) and dataset[0].label is None:
            raise SettingError(dataset.title, "has no masks", "Teach and score answers alone: goal=answers.")
        self.dataset, self.encoding, self.mask = dataset, encoding, mask
        self._kept: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, index: int) -> np.ndarray:
        """The images of a turn, resized."""
        name = self.dataset.names[index]
        found = self._kept.get(name)
        if found is None:
            found = squared(self.dataset[index].images, self.encoding.side)
            if (len(self._kept) + 1) * found.nbytes <= CACHE_BYTES:
                self._kept[name] = found
        return found

    def told(self, index: int) -> str:
        """The text of an instruction."""
        return plain_text(self.dataset.turn(index).instruction, self.encoding.words)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.tensors(index, self.images(index))

    def tensors(self, index: int, images: np.ndarray) -> dict[str, Any]:
        """A turn with images that take the place of its own."""
        found: dict[str, Any] = {
            "images": torch.from_numpy(np.ascontiguousarray(images, np.float32)),
            "instruction": self.told(index),
            "sample": torch.tensor(index),
        }
        label = self.dataset[index].label if self.mask else None
        return (
            found if label is None else {**found, "label": torch.from_numpy((label() > 0).astype(np.int64))}
        )


class ChatTraining(Dataset[dict[str, Any]]):
    """Turns without end, with the key `answer` beside those of `ChatTensors`, in the order and with the
    promise of `terralapse.data.training.TrainingSet`. Of several answers one is drawn.

    Raises:
        SettingError: the data set is empty, masks are asked for and there are none, or the recipe moves,
            cuts or exchanges what the answers speak of.
    """

    def __init__(
        self,
        dataset: Chats,
        encoding: ChatEncoding,
        recipe: AugmentRecipe,
        seed: int = 0,
        mask: bool = False,
    ) -> None:
        if len(dataset) == 0:
            raise SettingError(dataset.title, "holds no turn", "Check the split and its folder.")
        for name in ("hflip", "vflip", "turn", "swap"):
            if getattr(recipe, name) > 0:
                raise SettingError(
                    f"augment_{name}={getattr(recipe, name):g}",
                    "moves what the answers name by its place",
                    "Set hflip, vflip, turn and swap to 0.",
                )
        if recipe.area_low < 1:
            raise SettingError(
                "augment_area_low", "cuts images that are spoken of as a whole", "Set it to 1."
            )
        self.tensors = ChatTensors(dataset, encoding, mask)
        self.recipe, self.seed = recipe, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self))
            self._epoch = epoch
        number = int(self._order[place])
        rng = np.random.default_rng([self.seed, 1, index])
        images, _ = augment(self.tensors.images(number), {}, self.recipe, rng)
        answers = self.tensors.dataset.turn(number).answers
        answer = answers[0] if len(answers) == 1 else answers[int(rng.integers(len(answers)))]
        taught = plain_text(answer, self.tensors.encoding.words)
        return {**self.tensors.tensors(number, images), "answer": taught}
