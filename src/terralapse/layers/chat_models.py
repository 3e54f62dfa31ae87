"""Language and vision-language models of `transformers` that a user has: found, checked, and asked to write.

A model is a folder as `save_pretrained` writes it, or a name of the hub with the full hash of a commit. Only
safetensors are read, and code that comes with a model is never run. `transformers` and torch are imported
when a model is loaded and not before.
"""

from __future__ import annotations

import importlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terralapse.errors import (
    FileMissingError,
    MissingExtraError,
    ModelInputError,
    SettingError,
    UnreadableFileError,
    UnsafeWeightsError,
)

PINNED = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class Written:
    """What a model wrote: `text`, the tokens `read` and `written`, and whether its time ran out (`late`)."""

    text: str
    read: int
    written: int
    late: bool


def library() -> Any:
    """The module `transformers`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "a language model here",
            "needs transformers, which is not installed",
            "pip install 'terralapse[language]'",
        ) from error


def model_folder(name: str | Path) -> Path:
    """The folder of a model, fetched from the hub where its name is pinned: `owner/name@COMMIT`.

    Raises:
        FileMissingError: no such folder, no model in it, or the hub does not give it.
        SettingError: a name of the hub without a commit.
        UnsafeWeightsError: its weights are not safetensors.
        UnreadableFileError: its `config.json` is none.
    """
    path = Path(name)
    pinned = PINNED.fullmatch(str(name))
    if not path.is_dir() and pinned:
        path = _fetched(pinned["hub"], pinned["revision"])
    if not path.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+(@.*)?", str(name)) and not path.is_absolute():
            raise SettingError(
                f"model {name}",
                "is no folder here, and as a name of the hub it pins no commit",
                "Write it like owner/name@ and the 40 hexadecimal digits of a commit, or give a folder.",
            )
        raise FileMissingError(path, "is not there", "Give the folder of a model.")
    config = path / "config.json"
    if not config.is_file():
        raise FileMissingError(config, "is missing, so this is no model", "Give the folder of a model.")
    read_config(config)
    if not any(path.glob("*.safetensors")):
        raise UnsafeWeightsError(
            path,
            "holds no safetensors, and weights in other files could run code",
            "Save the model again with `save_pretrained`.",
        )
    return path


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnreadableFileError: it is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableFileError(path, "is damaged", "Get the model again.") from error
    if not isinstance(found, dict):
        raise UnreadableFileError(path, "holds no object", "Get the model again.")
    return found


def _fetched(hub: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, revision=revision, allow_patterns=list(FILES)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileMissingError(
            f"{hub}@{revision[:12]}",
            f"could not be had from the hub ({type(error).__name__})",
            "Check the connection, or give the folder of a copy.",
        ) from error


def read_model(
    name: str | Path,
    kind: str = "AutoModelForCausalLM",
    reader: str | None = "AutoTokenizer",
    dtype: Any = "auto",
    whole: bool = False,
) -> tuple[Path, Any, Any]:
    """The folder of a model, the model, and its tokenizer or processor (None where none is wanted).

    Args:
        name: see `model_folder`.
        kind, reader: classes of `transformers`.
        dtype: of the weights; `auto` keeps half precision where the file has it, because that is what fits
            the memory of its users.
        whole: refuse files that lack weights, which would be random numbers.

    Raises:
        MissingExtraError, and what `model_folder` raises.
        UnsafeWeightsError: it would run code of its own.
        UnreadableFileError: its files do not belong together, or are of a kind that is not known.
    """
    known = library()
    folder = model_folder(name)
    known.utils.logging.disable_progress_bar()
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, info = getattr(known, kind).from_pretrained(
            folder, use_safetensors=True, dtype=dtype, output_loading_info=True, **safe
        )
        read = getattr(known, reader).from_pretrained(folder, **safe) if reader else None
    except Exception as error:  # whatever a foreign folder makes transformers stumble over
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise UnsafeWeightsError(
                folder, "needs code of its own, which is not run", "Use a model that transformers knows."
            ) from error
        said = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            folder, f"cannot be loaded ({said})", "Check that the folder is whole, or renew transformers."
        ) from error
    if whole and (missing := sorted(info["missing_keys"])):
        fault = f"lacks {len(missing)} tensors, {missing[0]} for one"
        raise UnreadableFileError(folder, fault, "Get the model again.")
    return folder, model, read


class ChatModel:
    """A model that is talked to.

    Args:
        name: see `model_folder`.
        sees: it takes pictures.
        device: `auto`, or one of torch.

    Raises:
        what `read_model` raises.
        SettingError: it has no template for a talk.
    """

    def __init__(self, name: str | Path, *, sees: bool = False, device: str = "auto") -> None:
        self.sees = sees
        kinds = (
            ("AutoModelForImageTextToText", "AutoProcessor")
            if sees
            else ("AutoModelForCausalLM", "AutoTokenizer")
        )
        self.folder, model, processor = read_model(name, *kinds)
        self._start(model, processor, device)

    @classmethod
    def of(cls, model: Any, processor: Any, *, sees: bool = False, device: str = "cpu") -> ChatModel:
        """One that is loaded already."""
        made = cls.__new__(cls)
        made.folder, made.sees = Path(type(model).__name__), sees
        made._start(model, processor, device)
        return made

    def _start(self, model: Any, processor: Any, device: str) -> None:
        import torch

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model, self._processor = model.to(device).eval(), processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        if not (getattr(processor, "chat_template", None) or getattr(self._tokenizer, "chat_template", None)):
            raise SettingError(
                f"model {self.name}",
                "has no template for a talk",
                "Use a model tuned to follow instructions.",
            )

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._model.device)

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Any] = (),
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokens: int = 400,
        seconds: float = 60.0,
    ) -> Written:
        """The likeliest text that follows a talk.

        Args:
            messages: `role` and `content`; the content a text, or parts of `type` text and image.
            pictures: PIL images, in the order of the parts.
            tools: as the chat-completions protocol lists them, for templates that show them.
            tokens: that are written at most.
            seconds: after which nothing more is written.

        Raises:
            ModelInputError: the talk is longer than the model can read, or it takes no such input.
        """
        import torch
        from torch import Tensor

        end = time.monotonic() + seconds
        try:
            given = self._inputs(messages, pictures, tools)
        except Exception as error:  # a template that refuses, or pictures of no use to the processor
            said = " ".join(str(error).split())[:200]
            raise ModelInputError(
                self.name, f"cannot read this talk ({said})", "Use another model or input builder."
            ) from error
        read = int(given["input_ids"].shape[1])
        most = self._longest()
        if most is not None and read + tokens > most:
            raise ModelInputError(
                self.name,
                f"reads and writes {most} tokens, and the talk has {read} with {tokens} to come",
                "Use a model with a longer context, or ask less at once.",
            )
        known = library()

        class Clock(known.StoppingCriteria):
            def __call__(self, ids: Tensor, _scores: Tensor, **_more: Any) -> Tensor:
                late = time.monotonic() > end
                return torch.full((len(ids),), late, dtype=torch.bool, device=ids.device)

        moved = {
            k: v.to(self._model.device, self._model.dtype if v.is_floating_point() else None)
            for k, v in given.items()
            if isinstance(v, Tensor)
        }
        pad = self._tokenizer.pad_token_id
        with torch.inference_mode():
            ids = self._model.generate(
                **moved,
                do_sample=False,
                max_new_tokens=tokens,
                stopping_criteria=known.StoppingCriteriaList([Clock()]),
                pad_token_id=self._tokenizer.eos_token_id if pad is None else pad,
            )[0, read:]
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return Written(text, read, len(ids), time.monotonic() > end)

    def _inputs(
        self,
        messages: Sequence[Mapping[str, Any]],
        pictures: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> Mapping[str, Any]:
        more = {"tools": list(tools)} if tools else {}
        text = self._processor.apply_chat_template(
            [dict(m) for m in messages], add_generation_prompt=True, tokenize=False, **more
        )
        # The template has written the marks of its beginning itself.
        if self.sees:
            images = {"images": list(pictures)} if pictures else {}
            return self._processor(text=[text], add_special_tokens=False, return_tensors="pt", **images)
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")

    def _longest(self) -> int | None:
        config = self._model.config
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        return getattr(text, "max_position_embeddings", None)
