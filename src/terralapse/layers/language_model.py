"""A causal language model of `transformers` that stays as it is: read safely, spoken to in vectors, never
trained.

It is the user's own: a folder, or a name of the Hugging Face hub at a pinned commit, in safetensors alone
and without code of its own. What is given to it before a text are vectors of the width of its embeddings
("soft tokens").
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.layers.chat_models import library, read_model

IGNORED = -100  # a place whose token is not taught
INSTRUCTION, ANSWER = 128, 256  # tokens, the first and the last of all included

Start = Literal["end", "own"]


@dataclass(frozen=True)
class Writing:
    """How answers are written: by a beam of `beams` (1 is greedy), or drawn with `sample` from the likeliest
    words that make up `top_p`; `longest` and `least` count the tokens of an answer. The penalty of
    repetition is that of CTRL, over what the answer has said so far."""

    beams: int = 1
    longest: int = ANSWER
    least: int = 1
    repetition_penalty: float = 1.5
    length_penalty: float = 1.0
    sample: bool = False
    top_p: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1 or not 1 <= self.least <= self.longest or self.repetition_penalty <= 0:
            raise SettingError(
                f"beams={self.beams}, least={self.least}, longest={self.longest}, "
                f"repetition_penalty={self.repetition_penalty:g}",
                "write nothing",
                "Give beams of 1 or more, 1 <= least <= longest, and a penalty above 0.",
            )


class Tokenizer(Protocol):
    """What is needed of a tokenizer of `transformers`."""

    bos_token_id: Any
    eos_token_id: Any

    def __len__(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> Any: ...


@dataclass(frozen=True)
class Taught:
    """A batch of texts: `ids` int64 [B, L], `mask` int64 [B, L] of what is text, and `labels` int64 [B, L],
    which are `IGNORED` but for the tokens of the answers."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


class LanguageModel:
    """A model with its tokenizer. Its weights get no gradients and it is always in evaluation; gradients go
    through it to the soft tokens.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, which names the token of the end.
        start: what a text begins with: `end`, the token of the end, as in the released code of DeltaVLM,
            whose tokenizer takes one token for both; or `own`, that of the tokenizer, or none where it has
            none.

    Raises:
        SettingError: no such start, or the tokenizer has no token for the end.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, start: Start = "end") -> None:
        if start not in ("end", "own"):
            raise SettingError(f"start={start}", "begins no text", "Choose end or own.")
        if tokenizer.eos_token_id is None:
            raise SettingError("the tokenizer", "has no token for the end", "Set its eos_token.")
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.end = int(tokenizer.eos_token_id)
        own = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
        self.start = [self.end] if start == "end" else own

    @property
    def width(self) -> int:
        """Of its embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def to(self, device: torch.device | str) -> LanguageModel:
        """Moves the model."""
        self.model.to(device)
        return self

    # --- texts ---------------------------------------------------------------------------------------------
    def instruction(self, text: str, longest: int | None = INSTRUCTION) -> list[int]:
        """The tokens of an instruction, with the start; of a longer one the end is kept."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if longest is not None and len(ids) > longest - len(self.start):
            ids = ids[len(ids) - (longest - len(self.start)) :]
        return [*self.start, *ids]

    def answer(self, text: str, longest: int = ANSWER) -> list[int]:
        """The tokens of an answer, with the end; of a longer one the beginning is kept, and it has no end.
        The start, which an answer does not have, counts."""
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end]
        return ids[: longest - len(self.start)]

    def taught(self, instructions: Sequence[str], answers: Sequence[str]) -> Taught:
        """Each answer right behind its instruction, and what fills up behind both."""
        return self.joined(
            [(self.instruction(q), self.answer(a)) for q, a in zip(instructions, answers, strict=True)]
        )

    def joined(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Taught:
        """The same of ids: of an instruction with its start, and of an answer with its end."""
        length = max(len(q) + len(a) for q, a in rows)
        ids = torch.full((len(rows), length), self.end)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, (question, answer) in enumerate(rows):
            whole = len(question) + len(answer)
            ids[row, :whole] = torch.tensor([*question, *answer])
            mask[row, :whole] = 1
            labels[row, len(question) : whole] = torch.tensor(answer)
        return Taught(ids, mask, labels)

    # --- speaking ------------------------------------------------------------------------------------------
    def loss(self, soft: Tensor, texts: Taught) -> Tensor:
        """Cross-entropy of the tokens of the answers, the mean over all of a batch.

        Args:
            soft: [B, Q, D], before the texts, and before their start.
        """
        ids, mask, labels = (x.to(soft.device) for x in (texts.ids, texts.mask, texts.labels))
        words = self.model.get_input_embeddings()(ids)
        given = torch.cat([soft.to(words.dtype), words], dim=1)
        seen = torch.cat([mask.new_ones(soft.shape[:2]), mask], dim=1)
        logits = self.model(inputs_embeds=given, attention_mask=seen, use_cache=False).logits
        follows = logits[:, soft.shape[1] - 1 : -1]  # what is said of each token of the texts
        return F.cross_entropy(follows.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)

    @torch.inference_mode()
    def write(self, soft: Tensor, instructions: Sequence[str], how: Writing | None = None) -> list[str]:
        """Answers to instructions behind soft tokens [B, Q, D]."""
        how = how or Writing()
        rows = [self.instruction(q, None) for q in instructions]
        length = max(len(r) for r in rows)
        # Filled up before the soft tokens, so that each text ends where the answer begins.
        ids = torch.tensor([[self.end] * (length - len(r)) + r for r in rows], device=soft.device)
        places = torch.arange(length, device=soft.device)
        short = torch.tensor([length - len(r) for r in rows], device=soft.device)[:, None]
        words = self.model.get_input_embeddings()(ids)
        given = torch.stack(
            [
                torch.cat([w[:s], v, w[s:]])
                for w, v, s in zip(words, soft.to(words.dtype), short.flatten().tolist(), strict=True)
            ]
        )
        seen = torch.cat([(places >= short).long(), short.new_ones(soft.shape[:2])], dim=1)
        config = library().GenerationConfig(
            num_beams=how.beams,
            max_new_tokens=how.longest,
            min_new_tokens=how.least,
            repetition_penalty=how.repetition_penalty,
            length_penalty=how.length_penalty,
            do_sample=how.sample,
            eos_token_id=self.end,
            pad_token_id=self.end,
            **({"top_p": how.top_p, "temperature": how.temperature} if how.sample else {}),
        )
        with warnings.catch_warnings():  # that the penalty leaves the prompt out, which is what is wanted
            warnings.filterwarnings("ignore", message=".*repetition_penalty.*")
            said = self.model.generate(inputs_embeds=given, attention_mask=seen, generation_config=config)
        return [str(self.tokenizer.decode(row, skip_special_tokens=True)).strip() for row in said.tolist()]


# --- from files --------------------------------------------------------------------------------------------
def load_language_model(source: Path | str, start: Start = "end", dtype: str = "auto") -> LanguageModel:
    """A language model from a folder or from the hub.

    Args:
        source: a folder as `save_pretrained` writes it, with its tokenizer; or `owner/name@commit` of the
            hub.
        start: see `LanguageModel`.
        dtype: `auto` for that of the file, or `float32`, `float16` or `bfloat16`.

    Raises:
        SettingError: no such type.
        others: those of `terralapse.layers.chat_models.read_model`.
    """
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise SettingError(f"dtype={dtype}", "no such type", "Choose auto, float32, float16 or bfloat16.")
    _, model, tokenizer = read_model(source, dtype=dtype if dtype == "auto" else getattr(torch, dtype))
    return LanguageModel(model, tokenizer, start)


# --- what the instruction is to the network that asks the images -------------------------------------------
class Instructions(Protocol):
    """From an instruction to the numbers of its tokens, of `size` that there are."""

    size: int

    def ids(self, text: str) -> list[int]: ...


class OwnTokens:
    """The tokens of a language model, without its start and end; of a longer text the end is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self.size = tokenizer, len(tokenizer)

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)[-INSTRUCTION:]


class BertTokens:
    """Word pieces of BERT in lower case, between [CLS] and [SEP], with one token more than the vocabulary,
    as BLIP-2 adds it; of a longer text the end is kept.

    Args:
        vocabulary: `vocab.txt` of bert-base-uncased, or the folder that it is in.

    Raises:
        MissingExtraError: `transformers` is not installed.
        FileMissingError, UnreadableFileError: no such file, or it has no [CLS] and [SEP].
    """

    def __init__(self, vocabulary: Path | str) -> None:
        path = Path(vocabulary)
        path = path / "vocab.txt" if path.is_dir() else path
        if not path.is_file():
            raise FileMissingError(path, "is not there", "Give vocab.txt of bert-base-uncased.")
        library()  # whose dependency `tokenizers` is
        pieces = importlib.import_module("tokenizers")
        self._pieces: Any = pieces.BertWordPieceTokenizer(str(path), lowercase=True)
        self._first, self._last = (self._pieces.token_to_id(t) for t in ("[CLS]", "[SEP]"))
        if self._first is None or self._last is None:
            raise UnreadableFileError(path, "has no [CLS] and [SEP]", "Give vocab.txt of bert-base-uncased.")
        self.size = self._pieces.get_vocab_size() + 1

    def ids(self, text: str) -> list[int]:
        found = self._pieces.encode(text, add_special_tokens=False).ids
        return [self._first, *found[-(INSTRUCTION - 2) :], self._last]


def filled(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Rows of numbers as int64 [B, L], 0 after their ends, and bool [B, L] of what they hold."""
    length = max((len(r) for r in rows), default=0)
    ids = torch.tensor([[*r, *[0] * (length - len(r))] for r in rows], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(r) for r in rows], device=device)
    return ids, torch.arange(length, device=device) < lengths[:, None]


def subwords(path: Path | str) -> Any:
    """From a text to the pieces that a `tokenizer.json` cuts it into.

    Raises:
        MissingExtraError: `transformers` is not installed.
        FileMissingError, UnreadableFileError: there is no such file, or it is no tokenizer.
    """
    library()
    if not Path(path).is_file():
        raise FileMissingError(path, "is not there", "Give the file tokenizer.json.")
    try:
        tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(path))
    except Exception as error:  # what the library raises has no class of its own
        raise UnreadableFileError(path, "is no tokenizer", "Give the file tokenizer.json.") from error
    return lambda text: tokenizer.encode(text, add_special_tokens=False).tokens
