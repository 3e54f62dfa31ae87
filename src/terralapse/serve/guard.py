"""What every request passes before anything looks at it, and what every answer carries.

The order is: the host that was called, the size and kind of the request, the rate, the token. A refusal says
no more than it must; without the token, what is there and what is not look the same.
"""

from __future__ import annotations

import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from terralapse.serve import writing
from terralapse.serve.options import Options

COOKIE = "terralapse_token"
_READING = ("GET", "HEAD")
_WRITING = {"/api/jobs": ("POST", "DELETE"), "/api/uploads": ("POST", "PATCH", "DELETE")}
_PIECES = "application/offset+octet-stream"
_BODY = 64 * 1024  # of what describes an analysis
_MOST_CLIENTS = 4096
_LOCAL = ("localhost", "127.0.0.1", "::1")
_TOKEN_NEEDED = (
    "This map needs the token that its operator was shown when the server started. Open the whole address "
    "that was printed there; if the token has been changed since, ask for the new one."
)


def policy(basemap_origin: str | None) -> str:
    """The content security policy: scripts and styles are files of this server, and no host but this one is
    reached, except the operator's own background map."""
    foreign = f" {basemap_origin}" if basemap_origin else ""
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "worker-src 'self'",
            "style-src 'self'",
            f"img-src 'self' data:{foreign}",
            f"connect-src 'self'{foreign}",
            "manifest-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


class Buckets:
    """A bucket of tokens for each address; `rate` a second flow in, up to `burst`."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> float:
        """0 when the request may pass, else the seconds to wait."""
        now = self._clock()
        level, since = self._levels.pop(client, (float(self._burst), now))
        level = min(self._burst, level + (now - since) * self._rate)
        passed = level >= 1
        self._levels[client] = (level - 1 if passed else level, now)
        while len(self._levels) > _MOST_CLIENTS:
            self._levels.popitem(last=False)
        return 0.0 if passed else (1 - level) / self._rate


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, options: Options) -> None:
        self._app, self._options = app, options
        self._buckets = Buckets(options.limits.rate, options.limits.burst)
        self._headers = {
            "content-security-policy": policy(options.basemap_origin),
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["cache-control"] = "no-cache"
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None:
            refusal = self._token(scope, headers)
        if refusal is None:
            await self._app(scope, receive, sealed)
        else:
            await _answer(sealed, scope, *refusal)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        if self._options.loopback and _host(headers.get("host", "")) not in _LOCAL:
            # A page of another site may point its own name at this machine.
            return 421, "This server answers only to the name of this machine.", {}
        body = headers.get("content-length", "0")
        if self._may_write(scope):
            if not _same_site(headers):
                return 403, "Only the page of this server may do this.", {}
            patch = scope["method"] == "PATCH"
            most, kind = (self._options.limits.upload, _PIECES) if patch else (_BODY, "application/json")
            length = int(body) if body.isdecimal() and len(body) < 20 else most + 1
            if length > most or "transfer-encoding" in headers:
                return 413, "The request is too large, or does not say how large.", {"connection": "close"}
            if length and headers.get("content-type", "").partition(";")[0].strip() != kind:
                return 415, f"Send {kind if patch else 'JSON'}.", {}
        elif scope["method"] not in _READING:
            return 405, "This can only be read.", {"allow": ", ".join(_READING)}
        elif body != "0" or "transfer-encoding" in headers:
            return 413, "A request here has no body.", {"connection": "close"}
        if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > self._options.limits.url:
            return 414, "The address is too long.", {}
        client = scope["client"][0] if scope.get("client") else ""
        wait = self._buckets.take(client)
        if wait:
            seconds = str(max(1, round(wait)))
            return 429, f"Too many requests; wait {seconds} s.", {"retry-after": seconds}
        return None

    def _may_write(self, scope: Scope) -> bool:
        """Only analyses can be started and cancelled and images be sent, where the operator allows it; and
        what `writing` names."""
        if writing.accepted(scope["method"], scope["path"], self._options):
            return True
        allowed = {"/api/jobs": self._options.workspace is not None, "/api/uploads": self._options.uploads}
        return any(
            allowed[root] and scope["method"] in methods
            for root, methods in _WRITING.items()
            if scope["path"] == root or scope["path"].startswith(f"{root}/")
        )

    def _token(self, scope: Scope, headers: Headers) -> tuple[int, str, dict[str, str]] | None:
        token = self._options.token
        if token is None:
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = [value for name, value in query if name == "token"]
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        given = [*asked, *([bearer.strip()] if scheme.lower() == "bearer" else [])]
        given += [cookie] if cookie else []
        if not any(hmac.compare_digest(g.encode(), token.encode()) for g in given):
            return 401, _TOKEN_NEEDED, {"www-authenticate": "Bearer"}
        if asked and scope["path"] == "/":
            # The page remembers the token where no script sees it, and the address bar forgets it.
            rest = urlencode([(n, v) for n, v in query if n != "token"])
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            return (
                303,
                "",
                {
                    "location": "/" + (f"?{rest}" if rest else ""),
                    "set-cookie": f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/{secure}",
                    "cache-control": "no-store",
                },
            )
        return None


def _same_site(headers: Headers) -> bool:
    """Whether no page of another site sent this; a browser says where a page is from."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower()


async def _answer(send: Send, scope: Scope, status: int, text: str, headers: dict[str, str]) -> None:
    """JSON for programs; for a person who opens the page, the same sentence as plain text."""
    if scope["path"] == "/":
        body, kind = text.encode(), "text/plain; charset=utf-8"
    else:
        body, kind = json.dumps({"detail": text}).encode(), "application/json"
    sent = {"content-type": kind, "content-length": str(len(body))} | headers
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in sent.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
