"""Sentences as ids of a vocabulary, by the rules that the published captions of change were made with."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

NULL, UNKNOWN, START, END = range(4)
SPECIAL = ("<NULL>", "<UNK>", "<START>", "<END>")
SAME = "the scene is the same as before"
UNCHANGED = (  # the sentences with which LEVIR-CC and its kin say that nothing changed
    SAME,
    "there is no difference",
    "the two scenes seem identical",
    "no change has occurred",
    "almost nothing has changed",
)
LEAST = 6  # times that a word occurs in the captions before it has an id of its own


def tokens_of(sentence: str) -> list[str]:
    """The words of a caption: a blank before ';' and ',', no '?' and no '.', cut at blanks. Case stays."""
    return re.sub(r"([;,])", r" \1", re.sub(r"[?.]", "", sentence)).split()


def says_change(sentence: str) -> bool:
    """Whether a sentence tells of a change: it is none of `UNCHANGED`, but for case and a full stop."""
    return sentence.strip().lower().rstrip(" .") not in UNCHANGED


@dataclass(frozen=True)
class Vocabulary:
    """The words that a system knows; a word's place is its id. The first four are `SPECIAL`."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[: len(SPECIAL)] != SPECIAL or len(set(self.words)) < len(self.words):
            raise SettingError(
                "vocabulary",
                f"does not begin with {', '.join(SPECIAL)}, or holds a word twice",
                "Give a vocabulary that was made for captions of change.",
            )

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word to id."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, sentence: str, length: int) -> np.ndarray:
        """A caption as int64 [length]: start, its words, end, and nothing after; unknown words as such.

        A longer caption is cut, and ends at the last place.
        """
        found = [self.ids.get(word, UNKNOWN) for word in tokens_of(sentence)][: length - 2]
        row = np.full(length, NULL, np.int64)
        row[: len(found) + 2] = [START, *found, END]
        return row

    def decode(self, ids: Iterable[int]) -> str:
        """The words of ids up to the first end; start and padding say nothing."""
        return " ".join(self.words[i] for i in plain(ids))

    @classmethod
    def of(cls, sentences: Iterable[str], least: int = LEAST) -> Vocabulary:
        """Of all words that occur `least` times or more, in alphabetical order."""
        counts = Counter(word for sentence in sentences for word in tokens_of(sentence))
        return cls((*SPECIAL, *sorted(w for w, n in counts.items() if n >= least)))

    @classmethod
    def read(cls, path: Path | str) -> Vocabulary:
        """From `vocab.json` as released with checkpoints (word to id), a list in JSON, or one word a line.

        Raises:
            FileMissingError, UnreadableFileError: no such file, or something else is in it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileMissingError(
                path, "is not there", "Give the file of the vocabulary, such as vocab.json."
            )
        try:
            text = path.read_text(encoding="utf-8")
            stated = json.loads(text) if path.suffix == ".json" else text.split("\n")
        except ValueError as error:
            raise UnreadableFileError(path, f"is no vocabulary ({error})", "Get the file again.") from error
        if isinstance(stated, dict):
            stated = stated.get("word_to_idx", stated)
            places = sorted(stated.items(), key=lambda item: str(item[1]).zfill(9))
            if [place for _, place in places] != list(range(len(places))):
                raise UnreadableFileError(path, "does not number its words from 0 on", "Get the file again.")
            stated = [word for word, _ in places]
        if not isinstance(stated, list) or not all(isinstance(word, str) for word in stated):
            raise UnreadableFileError(path, "is no list of words", "Give the vocabulary of the checkpoint.")
        return cls(tuple(word for word in stated if word))

    @classmethod
    def own(cls) -> Vocabulary:
        """That of the training and validation captions of LEVIR-MCI, 431 entries, which comes with the
        library (`vocabulary_levir.txt`)."""
        text = resources.files("terralapse.data").joinpath("vocabulary_levir.txt").read_text(encoding="utf-8")
        return cls(tuple(text.split("\n")[:-1]))


def plain(ids: Iterable[int]) -> list[int]:
    """Ids without start and padding, up to the first end."""
    found = []
    for i in ids:
        if i == END:
            break
        if i not in (START, NULL):
            found.append(int(i))
    return found


def encode_all(vocabulary: Vocabulary, sentences: Sequence[str], length: int) -> np.ndarray:
    """Captions as int64 [R, length]."""
    return np.stack([vocabulary.encode(sentence, length) for sentence in sentences])
