"""Asking a run: one question, or a conversation in which questions go on from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.ask.answer import Answer
from terralapse.ask.book import Book
from terralapse.ask.choices import choose, divide
from terralapse.ask.parse import Before
from terralapse.ask.rules import answer as by_rules
from terralapse.ask.verify import verified
from terralapse.errors import SettingError

if TYPE_CHECKING:
    from terralapse.ask.agent import Agent
    from terralapse.ask.vlm import Vlm

ANSWERERS = ("rules", "agent", "vlm")
# Settings of one answerer that the other does not take.
_ONLY = {
    "base_url": "agent", "llm": "agent", "api_key": "agent", "llm_folder": "agent", "brain": "agent",
    "steps": "agent", "timeout": "agent", "cache": "agent", "caption_weights": "agent",
    "caption_vocabulary": "agent", "maps": "agent", "kit": "agent", "inputs": "vlm", "parser": "vlm",
    "model": "vlm",
}  # fmt: skip


class Conversation:
    """A talk about one run; every answer is verified against its facts.

    Args:
        folder: of a run of `terralapse change` or `terralapse series`.
        answerer: `rules` (offline), `agent` (a language model behind an endpoint that you name, or on this
            machine) or `vlm` (a vision-language model on this machine, which sees the images).
        settings: those of `terralapse.ask.agent.Agent` or of `terralapse.ask.vlm.Vlm`.

    Raises:
        SettingError: an answerer that there is not, or settings that it does not take.
        FileMissingError, UnreadableFileError: no finished run, or damaged facts.
    """

    def __init__(self, folder: str | Path, answerer: str = "rules", **settings: Any) -> None:
        if answerer not in ANSWERERS:
            raise SettingError(f"answerer {answerer}", "is not known", f"Use {', '.join(ANSWERERS)}.")
        given: dict[str, Any] = {k: v for k, v in settings.items() if v is not None or k == "cache"}
        strange = [k for k in given if _ONLY.get(k, answerer) != answerer or answerer == "rules"]
        strange = [k for k in strange if given[k] is not None]
        if strange:
            whose = _ONLY.get(strange[0], "agent or vlm")
            raise SettingError(
                ", ".join(strange), f"are settings of the {whose}", f"Add --answerer {whose.split()[0]}."
            )
        self.book = Book.open(folder)
        self.answerer = answerer
        self.history: list[tuple[str, Answer]] = []
        self._last: Before | None = None
        self._model: Agent | Vlm | None = None
        if answerer == "agent":
            from terralapse.ask.agent import Agent

            self._model = Agent(**given)
        if answerer == "vlm":
            from terralapse.ask.vlm import Vlm

            self._model = Vlm(**given)

    def ask(self, question: str, told: Callable[[str], None] | None = None) -> Answer:
        """The answer to the next question.

        Args:
            question: in English.
            told: called with the name of each tool that a language model calls on the way.

        Raises:
            EndpointError: the language model cannot be reached or does not answer as one.
            ModelInputError: a model on this machine cannot read so long a talk.
        """
        if self._model is None:
            choice = divide(question)
            asked = question if choice is None else choice.stem
            answer, self._last = by_rules(asked, self.book, self._last)
            answer = verified(answer, self.book, asked)
            if choice is not None:
                answer = choose(choice, answer, self.book)
        else:
            heard: Any = {"told": told} if self.answerer == "agent" else {}
            answer = self._model.answer(question, self.book, self.history, **heard)
        self.history.append((question, answer))
        return answer


def ask(folder: str | Path, question: str, answerer: str = "rules", **settings: Any) -> Answer:
    """One question about a run; see `Conversation`."""
    return Conversation(folder, answerer, **settings).ask(question)
