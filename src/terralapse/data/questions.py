"""Questions on pairs of dates: the form of a sample, texts as numbers, and what a network is trained with.

A data set of questions has `title`, `scheme` (the answers, in the order of the logits), `kinds` (the types
of questions) and `names` (of the pair that each question is about). Questions of one pair share its name, so
that no part of a pair is held out alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from terralapse.data.augment_pairs import AugmentRecipe, augment
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import ClassScheme
from terralapse.sensors import Unit

PADDING, UNKNOWN = "<padding>", "<unknown>"
LONGEST = 32  # words of a question
CACHE_BYTES = 512 * 2**20  # of resized images that are kept
OUTSIDE = -1  # an answer that is not in the vocabulary
_WORD = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")


@dataclass(frozen=True)
class Asked:
    """One question and its answer. `kind` is its type; with `positional` the answer holds for the images as
    they lie only, not when they are flipped or turned."""

    kind: str
    question: str
    answer: str
    positional: bool = False


@dataclass(frozen=True)
class QuestionPair:
    """A question on two dates. `read` gives the images float32 [2, 3, H, W] in `unit`; `images` are those.

    `domain` is the region or event that the pair is from, `description` a text on it, both empty where there
    is none. `sar` says that the later date is an image of radar (one channel, repeated).
    """

    name: str
    read: Callable[[], np.ndarray]
    asked: Asked
    gsd: float
    bands: tuple[str, ...]
    unit: Unit
    domain: str = ""
    description: str = ""
    sar: bool = False

    @cached_property
    def images(self) -> np.ndarray:
        return self.read()


class Questions(Protocol):
    """A split of a data set of questions."""

    title: str
    scheme: ClassScheme
    kinds: tuple[str, ...]
    names: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> QuestionPair: ...


# --- texts as numbers ------------------------------------------------------------------------------------
def words_in(text: str) -> list[str]:
    """The words of a text in lower case; `pre-event` is one."""
    return _WORD.findall(text.lower())


class Words:
    """A vocabulary: number 0 fills up, 1 stands for any word that is not in it.

    Raises:
        SettingError: a word twice, or none at all.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = (PADDING, UNKNOWN, *words)
        self._numbers = {w: i for i, w in enumerate(self.words)}
        if len(self._numbers) < len(self.words) or len(self.words) == 2:
            raise SettingError("words", "holds a word twice, or none", "Give each word once.")

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def of(texts: Iterable[str]) -> Words:
        """All words of some texts, by the alphabet."""
        return Words(sorted({w for t in texts for w in words_in(t)}))

    @staticmethod
    def read(path: Path | str) -> Words:
        """From a file with one word a line.

        Raises:
            FileMissingError: there is no such file.
        """
        if not Path(path).is_file():
            raise FileMissingError(path, "is not there", "Give a file with one word a line.")
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        return Words(line.strip() for line in lines if line.strip())

    def numbers(self, text: str, longest: int = LONGEST) -> np.ndarray:
        """int64 [longest]: the numbers of the words, then 0; what is longer is cut."""
        found = np.zeros(longest, np.int64)
        numbers = [self._numbers.get(w, 1) for w in words_in(text)[:longest]]
        found[: len(numbers)] = numbers
        return found


def hashed_text(text: str, width: int = 512) -> np.ndarray:
    """A text as float32 [width] of unit length: words and pairs of neighbours, each counted as 1 + log(n) at
    the place and with the sign of its hash; zeros for a text without words.

    Nothing is learned from any corpus, so no text of a test event can leak through it.
    """
    words = words_in(text)
    counts: dict[str, int] = {}
    for term in [*words, *(f"{a} {b}" for a, b in pairwise(words))]:
        counts[term] = counts.get(term, 0) + 1
    found = np.zeros(width, np.float32)
    for term, count in counts.items():
        number = zlib.crc32(term.encode())
        found[number % width] += (1 if number >> 31 else -1) * (1 + np.log(count))
    length = float(np.linalg.norm(found))
    return found / length if length > 0 else found


# --- tensors -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Encoding:
    """How a system wants its questions: `words`, `answers` by number, the `side` of its images in pixels
    (None for as they are), and `describe`, a text to float32 [D]."""

    words: Words
    answers: Sequence[str]
    side: int | None
    describe: Callable[[str], np.ndarray]


def normal_answer(answer: str) -> str:
    """An answer as answers are compared: lower case, blanks at its ends gone and inside of it single."""
    return " ".join(answer.lower().split())


def resized(images: np.ndarray, side: int | None) -> np.ndarray:
    """Images [T, C, H, W] as [T, C, side, side] by means over areas, which keep shares of the area."""
    if side is None or images.shape[-2:] == (side, side):
        return images
    return F.interpolate(torch.from_numpy(images), (side, side), mode="area").numpy()


class QuestionTensors(Dataset[dict[str, Tensor]]):
    """Questions as tensors; what the default collation of torch stacks.

    Keys: `images` float32 [2, 3, S, S] in physical units; `question` int64 [LONGEST]; `description` float32
    [D]; `sar` bool; `domain`, `kind` and `answer` int64: a number that stands for the name of the domain,
    that of the type among `kinds`, and that of the answer, `OUTSIDE` where the vocabulary does not have it.

    Resized images are kept, up to `CACHE_BYTES`.
    """

    def __init__(self, dataset: Questions, encoding: Encoding) -> None:
        self.dataset, self.encoding = dataset, encoding
        self._kinds = {k: i for i, k in enumerate(dataset.kinds)}
        self._answers = {normal_answer(a): i for i, a in enumerate(encoding.answers)}
        self._kept: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def images(self, sample: QuestionPair) -> np.ndarray:
        """The images of a sample, resized."""
        found = self._kept.get(sample.name)
        if found is None:
            found = resized(sample.images, self.encoding.side)
            if (len(self._kept) + 1) * found.nbytes <= CACHE_BYTES:
                self._kept[sample.name] = found
        return found

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self.dataset[index]
        return self.tensors(sample, self.images(sample))

    def tensors(self, sample: QuestionPair, images: np.ndarray) -> dict[str, Tensor]:
        """A sample with images that take the place of its own."""
        asked = sample.asked
        answer = self._answers.get(normal_answer(asked.answer), OUTSIDE)
        return {
            "images": torch.from_numpy(np.ascontiguousarray(images, np.float32)),
            "question": torch.from_numpy(self.encoding.words.numbers(asked.question)),
            "description": torch.from_numpy(self.encoding.describe(sample.description)),
            "sar": torch.tensor(sample.sar),
            "domain": torch.tensor(zlib.crc32(sample.domain.encode())),  # the same in every process
            "kind": torch.tensor(self._kinds[asked.kind]),
            "answer": torch.tensor(answer),
        }


class QuestionTraining(Dataset[dict[str, Tensor]]):
    """Questions without end, in the order and with the promise of `terralapse.data.training.TrainingSet`.

    The images of a question whose answer depends on where things lie are neither flipped nor turned, and no
    image is cut: a part of it would have other answers. Light is left alone where the later date is radar.

    Raises:
        SettingError: the data set is empty, or the recipe cuts or exchanges the dates.
    """

    def __init__(self, dataset: Questions, encoding: Encoding, recipe: AugmentRecipe, seed: int = 0) -> None:
        if len(dataset) == 0:
            raise SettingError(dataset.title, "holds no question", "Check the split and its folder.")
        if recipe.swap > 0 or recipe.area_low < 1:
            raise SettingError(
                "augment_swap, augment_area_low",
                "would change the answers",
                "Leave them out for questions.",
            )
        self.tensors = QuestionTensors(dataset, encoding)
        self.recipe, self.seed = recipe, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self))
            self._epoch = epoch
        sample = self.tensors.dataset[int(self._order[place])]
        recipe = drawn_for(sample, self.recipe)
        images, _ = augment(
            self.tensors.images(sample), {}, recipe, np.random.default_rng([self.seed, 1, index])
        )
        return self.tensors.tensors(sample, images)


def drawn_for(sample: QuestionPair, recipe: AugmentRecipe) -> AugmentRecipe:
    """The part of a recipe that leaves the answer of a sample as it is."""
    kept: Mapping[str, Any] = vars(recipe)
    if sample.asked.positional:
        kept = {**kept, "hflip": 0.0, "vflip": 0.0, "turn": 0.0}
    if sample.sar:
        kept = {**kept, "light": 0.0}
    return AugmentRecipe(**kept)
