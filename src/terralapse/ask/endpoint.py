"""One request to an OpenAI-compatible endpoint, with what can go wrong told as what it is."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from terralapse.errors import EndpointError, SettingError

_LARGEST = 2_000_000  # bytes of a reply
_REFUSED = {
    401: "refuses the key",
    403: "refuses the key",
    404: "has no such path or model",
    429: "is over its limit",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_args: Any, **_more: Any) -> None:
        return None


class Endpoint:
    """An endpoint of the chat-completions protocol.

    Args:
        base_url: like `http://localhost:11434/v1`; None takes OPENAI_BASE_URL.
        api_key: None takes OPENAI_API_KEY; without one none is sent.
        timeout: seconds for one request, from the first byte sent to the last one read.
        cache: the folder of replies; None for none.

    Raises:
        SettingError: no address, or one that is not http or https.
    """

    def __init__(
        self,
        base_url: str | None,
        api_key: str | None = None,
        timeout: float = 30.0,
        cache: Path | None = None,
    ) -> None:
        url = base_url or os.environ.get("OPENAI_BASE_URL", "")
        if not url:
            raise SettingError(
                "base-url",
                "is not given, and the agent needs a language model",
                "Give --base-url or OPENAI_BASE_URL.",
            )
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(
                f"base-url {url}", "is no address of http or https", "Write http://HOST:PORT/v1."
            )
        if parts.username or parts.password:
            raise SettingError("base-url", "holds a name or a password", "Give the key as OPENAI_API_KEY.")
        self.url = url.rstrip("/") + "/chat/completions"
        self.host = parts.netloc
        self._key = api_key or os.environ.get("OPENAI_API_KEY")
        self.timeout, self.cache = timeout, cache
        self._opener = urllib.request.build_opener(_NoRedirect())

    def chat(self, body: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a request, from the cache where the same one was made before.

        Args:
            body: of the request.
            seconds: that are left for it.

        Raises:
            EndpointError: down, slow, refusing, too large, or no reply of the protocol.
        """
        text = json.dumps(body, sort_keys=True)
        kept = None
        if self.cache is not None:
            name = hashlib.sha256(f"{self.url}\n{text}".encode()).hexdigest()
            kept = self.cache / f"{name}.json"
            if kept.is_file():
                try:
                    return self._checked(json.loads(kept.read_text(encoding="utf-8")))
                except (ValueError, EndpointError):
                    kept.unlink(missing_ok=True)  # damaged: it is asked again
        reply = self._checked(self._parsed(self._send(text.encode(), min(self.timeout, seconds))))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(f".{os.getpid()}.part")
            part.write_text(json.dumps(reply), encoding="utf-8")
            part.replace(kept)
        return reply

    def _send(self, data: bytes, seconds: float) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data, headers, method="POST")
        end = time.monotonic() + seconds
        try:
            with self._opener.open(request, timeout=max(seconds, 0.001)) as reply:
                found = b""
                while chunk := reply.read1(65536):
                    found += chunk
                    if len(found) > _LARGEST:
                        raise self._error(
                            "sends more than an answer can be", "Check that it is a language model."
                        )
                    if time.monotonic() > end:
                        raise TimeoutError
                return found
        except urllib.error.HTTPError as error:
            with error:
                said = _REFUSED.get(error.code, "refuses")
            raise self._error(
                f"{said} (HTTP {error.code})", "Check --base-url, --llm and OPENAI_API_KEY."
            ) from error
        except TimeoutError as error:
            raise self._slow(seconds) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._slow(seconds) from error
            raise self._error(
                f"cannot be reached ({error.reason})", "Start it, or check --base-url."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"broke off ({type(error).__name__})", "Try again.") from error

    def _slow(self, seconds: float) -> EndpointError:
        return self._error(f"did not answer in {seconds:.0f} seconds", "Try again, or use --answerer rules.")

    def _error(self, fault: str, hint: str) -> EndpointError:
        return EndpointError(f"the endpoint {self.host}", fault, hint)

    def _parsed(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._error(
                "does not answer in JSON", "Check that it speaks the OpenAI protocol."
            ) from error

    def _checked(self, reply: Any) -> dict[str, Any]:
        """The reply, when it has the form of one."""
        message = None
        if isinstance(reply, dict) and isinstance(reply.get("choices"), list) and reply["choices"]:
            first = reply["choices"][0]
            message = first.get("message") if isinstance(first, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if (
            not isinstance(message, dict)
            or not isinstance(content, str | None)
            or not isinstance(calls, list | None)
        ):
            raise self._error(
                "answers in JSON, but not as a language model does",
                "Check that it speaks the OpenAI protocol.",
            )
        return reply
