"""The talks of the page: for each visitor and result one, kept in memory and bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from terralapse.ask.answer import Answer
from terralapse.ask.talk import Conversation
from terralapse.ask.verify import sentences
from terralapse.serve.shelf import Result

MOST_TALKS = 200
MOST_TURNS = 40  # of one talk; the oldest are forgotten first
_MOST_POLYGONS = 500  # that a citation shows on the map


class BusyError(Exception):
    """A question of this talk is being answered."""


class Talk:
    """What one visitor has asked about one result. Answerers may change from question to question; each knows
    of those before."""

    def __init__(self, result: Result, agent: dict[str, Any]) -> None:
        self._result, self._agent = result, agent
        self._busy = threading.Lock()
        self._by: dict[str, Conversation] = {}
        self.turns: list[tuple[str, Answer]] = []

    def ask(self, question: str, answerer: str, told: Callable[[str], None]) -> Answer:
        """The answer; `told` hears what a language model looks up on the way.

        Raises:
            BusyError: the question before has no answer yet.
            TerralapseError: the facts are damaged, or the language model does not answer.
        """
        if not self._busy.acquire(blocking=False):
            raise BusyError
        try:
            if answerer not in self._by:
                settings = self._agent if answerer == "agent" else {}
                self._by[answerer] = Conversation(self._result.folder, answerer, **settings)
                self._by[answerer].history = self.turns
            answer = self._by[answerer].ask(question, told)
            del self.turns[:-MOST_TURNS]
            return answer
        finally:
            self._busy.release()


class Talks:
    """All of them; the one that was longest not used is forgotten when there are too many.

    Args:
        llm, base_url: the language model that the operator allows, if any.

    Raises:
        SettingError: a model without an endpoint.
    """

    def __init__(self, llm: str | None, base_url: str | None) -> None:
        self.answerers = ("rules",) if llm is None else ("rules", "agent")
        self.llm = llm
        self._agent = {"llm": llm, "base_url": base_url}
        if llm is not None:
            from terralapse.ask.agent import Agent

            Agent(base_url, llm)  # what is wrong with the settings is said at the start
        self._kept: OrderedDict[tuple[str, str, str], Talk] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, session: str, result: Result) -> Talk:
        """The talk of a visitor about a result in its present state."""
        key = (session, result.id, result.stamp)
        with self._lock:
            talk = self._kept.pop(key, None) or Talk(result, self._agent)
            self._kept[key] = talk
            while len(self._kept) > MOST_TALKS:
                self._kept.popitem(last=False)
            return talk

    def known(self, session: str, result: Result) -> Talk | None:
        """The same, where there is one already."""
        with self._lock:
            return self._kept.get((session, result.id, result.stamp))

    def forget(self, session: str, result: Result) -> None:
        """Ends a talk."""
        with self._lock:
            self._kept.pop((session, result.id, result.stamp), None)


def told_of(answer: Answer) -> dict[str, Any]:
    """An answer for a page: sentences, and the facts that they rest on with what these show."""
    facts = []
    for fact in answer.facts:
        ids = fact["evidence"].get("polygons")
        shown = ids if isinstance(ids, list) and 0 < len(ids) <= _MOST_POLYGONS else None
        kept = {k: fact[k] for k in ("id", "display", "sentence")}
        facts.append(kept | {"polygons": shown})
    return {
        "sentences": sentences(answer.text),
        "facts": facts,
        "confidence": answer.confidence,
        "answerer": answer.answerer,
        "answered": answer.answered,
        "reason": answer.reason,
    }
