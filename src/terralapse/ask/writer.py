"""A language model that writes from what it is given, and uses no tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from terralapse.ask.agent import own_cache
from terralapse.ask.endpoint import Endpoint
from terralapse.errors import SettingError


class Writer:
    """Calls an OpenAI-compatible endpoint: messages in, text out.

    Args:
        base_url, api_key: of the endpoint; else OPENAI_BASE_URL and OPENAI_API_KEY.
        llm: the name of the model.
        timeout: seconds for one request.
        tokens: of a reply, at most.
        cache: the folder of replies; `default` takes the user's own cache, None keeps none.

    Raises:
        SettingError: no address or no model.
    """

    def __init__(
        self,
        base_url: str | None = None,
        llm: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        tokens: int = 1200,
        cache: Path | str | None = "default",
    ) -> None:
        if not llm:
            raise SettingError(
                "llm", "is not given, and --base-url needs the name of a model", "Give --llm NAME."
            )
        self.llm, self.tokens, self._timeout = llm, tokens, timeout
        folder = own_cache() if cache == "default" else None if cache is None else Path(cache)
        self.endpoint = Endpoint(base_url, api_key, timeout, folder)

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        """The text of the reply; empty where the model says nothing.

        Raises:
            EndpointError: the endpoint cannot be reached or does not answer as one.
        """
        body = {"model": self.llm, "messages": messages, "temperature": 0, "max_tokens": self.tokens}
        reply = self.endpoint.chat(body, self._timeout)
        return (reply["choices"][0]["message"].get("content") or "").strip()
