"""A language model on this machine as the brain of the agent: the tool protocol of an endpoint, in texts.

The model is told its tools and how to call one: a line of JSON. What it writes is read strictly: a call that
is not exactly of that form is no call, and the model is told so.
"""

from __future__ import annotations

import json
from typing import Any

from terralapse.errors import EndpointError
from terralapse.layers.chat_models import ChatModel

_TOKENS = 400  # of one reply
_LONGEST = 8000  # characters of a reply that are read
_MOST = 6  # calls in one reply
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_HOW = (
    "Your tools, one a line, each with the JSON schema of its arguments:\n{tools}\n"
    'To call one, write a line of JSON and nothing else: {{"name": NAME, "arguments": {{...}}}}. You are '
    "then given what it returns. When you have the facts, answer in plain sentences without JSON."
)


class LocalBrain:
    """A `ChatModel` that answers as `terralapse.ask.endpoint.Endpoint` does."""

    def __init__(self, model: ChatModel, tokens: int = _TOKENS) -> None:
        self._model, self._tokens = model, tokens

    def chat(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a request of the chat-completions protocol.

        Args:
            body: of the request: `messages`, `tools`, and `max_tokens`.
            seconds: that are left for it.

        Raises:
            EndpointError: it did not come to an end in time.
            ModelInputError: the talk is longer than the model can read.
        """
        most = min(self._tokens, int(body.get("max_tokens", self._tokens)))
        talk = as_text(body["messages"], body.get("tools") or [])
        wrote = self._model.write(talk, tokens=most, seconds=seconds)
        if wrote.late:
            raise EndpointError(
                f"the model {self._model.name}",
                f"did not answer in {seconds:.0f} seconds on {self._model.device}",
                "Use a smaller model or a faster device, or use --answerer rules.",
            )
        text, calls = read_reply(wrote.text)
        message: dict[str, Any] = {"role": "assistant", "content": text or None}
        if calls:
            message["tool_calls"] = calls
        return {
            "choices": [{"index": 0, "message": message}],
            "usage": {"total_tokens": wrote.read + wrote.written},
        }


def as_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A talk with calls of tools as one of texts alone, in turns of user and assistant, which every template
    knows; what stands before the first user (the system's rules and the tools) is put into its text."""
    listed = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in tools)
    found: list[dict[str, str]] = []
    for message in messages:
        text = message.get("content") or ""
        match message["role"]:
            case "system":
                role, text = "user", f"{text}\n\n{_HOW.format(tools=listed)}" if tools else text
            case "tool":
                role, text = "user", f"The tool returned: {text}"
            case "assistant":
                role = "assistant"
                calls = [_line(c) for c in message.get("tool_calls") or ()]
                text = "\n".join(filter(None, [text, *calls]))
            case _:
                role = "user"
        if found and found[-1]["role"] == role:
            found[-1]["content"] += f"\n\n{text}"
        else:
            found.append({"role": role, "content": text})
    return found


def _line(call: dict[str, Any]) -> str:
    given = call["function"]["arguments"] or "{}"
    return f'{{"name": {json.dumps(call["function"]["name"])}, "arguments": {given}}}'


def read_reply(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of a reply and its calls as the protocol has them; one that is none is an empty object, of
    which the agent tells the model that it was no call."""
    text = text.rpartition("</think>")[2].strip()[:_LONGEST]
    said: list[str] = []
    calls: list[dict[str, Any]] = []
    for line in _pieces(text):
        bare = line.strip().removeprefix(_OPEN).removesuffix(_CLOSE).strip()
        if bare.startswith("{") or line.strip().startswith(_OPEN):
            calls.append(_call(bare, len(calls)))
        else:
            said.append(line)
    return "\n".join(said).strip(), calls[:_MOST]


def _pieces(text: str) -> list[str]:
    """Its lines; marked calls, fenced ones and a whole that is one object may go over several."""
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").removeprefix("json").strip()
    if text.startswith("{") and text.endswith("}") and _object(text) is not None:
        return [text]
    found: list[str] = []
    while _OPEN in text:
        before, _, rest = text.partition(_OPEN)
        inside, close, text = rest.partition(_CLOSE)
        found += before.splitlines()
        found.append(_OPEN + inside + close)
    return [p for p in (*found, *text.splitlines()) if p.strip()]


def _object(text: str) -> dict[str, Any] | None:
    """A JSON object without doubled names and without numbers that JSON has not; None of anything else."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({k for k, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _call(text: str, number: int) -> dict[str, Any]:
    found = _object(text)
    if (
        found is None
        or set(found) != {"name", "arguments"}
        or not isinstance(found["name"], str)
        or not isinstance(found["arguments"], dict)
    ):
        return {}
    function = {"name": found["name"], "arguments": json.dumps(found["arguments"])}
    return {"id": f"call_{number}", "type": "function", "function": function}
