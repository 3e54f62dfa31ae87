"""Asking a run: one question, or a conversation in which questions go on from each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.ask.answer import Answer
from terralapse.ask.book import Book
from terralapse.ask.parse import Before
from terralapse.ask.rules import answer as by_rules
from terralapse.ask.verify import verified
from terralapse.errors import SettingError

if TYPE_CHECKING:
    from terralapse.ask.agent import Agent

ANSWERERS = ("rules", "agent")
_VLM = "vlm"


class Conversation:
    """A talk about one run; every answer is verified against its facts.

    Args:
        folder: of a run of `terralapse change` or `terralapse series`.
        answerer: `rules` (offline), or `agent` (a language model behind an endpoint that you name).
        agent: for `agent`, its settings: `base_url`, `llm`, `api_key`, and the limits of
            `terralapse.ask.agent.Agent`.

    Raises:
        SettingError: an answerer that there is not, or settings that it does not take.
        FileMissingError, UnreadableFileError: no finished run, or damaged facts.
    """

    def __init__(self, folder: str | Path, answerer: str = "rules", **agent: Any) -> None:
        if answerer == _VLM:
            raise SettingError(
                "answerer vlm",
                "is not part of this version: nothing here reads pixels yet",
                "Use rules or agent.",
            )
        if answerer not in ANSWERERS:
            raise SettingError(f"answerer {answerer}", "is not known", f"Use {' or '.join(ANSWERERS)}.")
        if answerer == "rules" and any(v is not None for v in agent.values()):
            raise SettingError(
                ", ".join(k for k, v in agent.items() if v is not None),
                "are settings of the agent",
                "Add --answerer agent.",
            )
        self.book = Book.open(folder)
        self.answerer = answerer
        self.history: list[tuple[str, Answer]] = []
        self._last: Before | None = None
        self._agent: Agent | None = None
        if answerer == "agent":
            from terralapse.ask.agent import Agent

            self._agent = Agent(**{k: v for k, v in agent.items() if v is not None})

    def ask(self, question: str, told: Callable[[str], None] | None = None) -> Answer:
        """The answer to the next question.

        Args:
            question: in English.
            told: called with the name of each tool that a language model calls on the way.

        Raises:
            EndpointError: the language model cannot be reached or does not answer as one.
        """
        if self._agent is None:
            answer, self._last = by_rules(question, self.book, self._last)
            answer = verified(answer, self.book, question)
        else:
            answer = self._agent.answer(question, self.book, self.history, told)
        self.history.append((question, answer))
        return answer


def ask(folder: str | Path, question: str, answerer: str = "rules", **agent: Any) -> Answer:
    """One question about a run; see `Conversation`."""
    return Conversation(folder, answerer, **agent).ask(question)
