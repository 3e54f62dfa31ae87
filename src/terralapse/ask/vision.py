"""A vision-language model behind an OpenAI-compatible endpoint: a message of texts and images in, its text
out."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terralapse.ask.endpoint import Endpoint
from terralapse.data.dvl import Part
from terralapse.errors import SettingError

_LONGEST = 4096  # tokens of an answer


class Vision:
    """A model that is shown messages of `terralapse.data.dvl.message`; also a judge, by `judge`.

    Args:
        base_url, api_key: of the endpoint; else OPENAI_BASE_URL and OPENAI_API_KEY.
        llm: the name of the model.
        timeout: seconds for one request.
        side: pixels of a side that images are resized to; None sends them as they are.
        cache: the folder of replies; None keeps none.

    Raises:
        SettingError: no address or no model.
    """

    def __init__(
        self,
        base_url: str | None = None,
        llm: str | None = None,
        api_key: str | None = None,
        timeout: float = 300.0,
        side: int | None = None,
        cache: Path | None = None,
    ) -> None:
        if not llm:
            raise SettingError("llm", "is not given, and the name of a model is needed", "Give --llm NAME.")
        self.llm, self.side = llm, side
        self.endpoint = Endpoint(base_url, api_key, timeout, cache)

    def __call__(self, parts: Sequence[Part]) -> str:
        """The answer to a message.

        Raises:
            EndpointError: the model cannot be reached or does not answer as one.
            UnreadableFileError: an image is none.
        """
        content: list[dict[str, Any]] = []
        for part in parts:
            if part.text:
                content.append({"type": "text", "text": part.text})
            for path in part.images:
                content.append({"type": "image_url", "image_url": {"url": self._encoded(path)}})
        return self._said(content)

    def judge(self, prompt: str) -> str:
        """The reply to a text alone; errors as in a call."""
        return self._said(prompt)

    def _said(self, content: Any) -> str:
        body = {
            "model": self.llm,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": _LONGEST,
        }
        reply = self.endpoint.chat(body, self.endpoint.timeout)
        return (reply["choices"][0]["message"].get("content") or "").strip()

    def _encoded(self, path: Path) -> str:
        from PIL import Image

        from terralapse.data.pictures import read_rgb

        image = Image.fromarray(read_rgb(path).transpose(1, 2, 0).astype("uint8"))
        if self.side is not None:
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        held = io.BytesIO()
        image.save(held, "PNG")
        return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
