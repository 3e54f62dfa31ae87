"""A small server of the chat-completions protocol for tests: what it says is a script."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = dict[str, Any] | bytes | int | float | tuple[int, dict[str, str]]


def says(text: str | None, *calls: tuple[str, Any]) -> dict[str, Any]:
    """A reply of a model: text, or calls of tools as (name, arguments)."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {
                "id": f"c{k}",
                "type": "function",
                "function": {"name": name, "arguments": args if isinstance(args, str) else json.dumps(args)},
            }
            for k, (name, args) in enumerate(calls)
        ]
    return {"choices": [{"index": 0, "message": message}], "usage": {"total_tokens": 100}}


class Model:
    """What the server does. `script` is called with the body of each request and gives a reply: a dict as
    JSON, bytes as they are, an int as an HTTP error, a float as seconds of silence, (status, headers)."""

    def __init__(self, script: Callable[[dict[str, Any]], Reply]) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""


def lines(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """A script of fixed replies; the last one is repeated."""
    left = list(replies)
    return lambda _body: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serve(script: Callable[[dict[str, Any]], Reply]) -> Iterator[Model]:
    """The server on a free port, while the block runs."""
    model = Model(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model.requests.append(body)
            model.headers.append(dict(self.headers))
            reply = model.script(body)
            if isinstance(reply, float):
                time.sleep(reply)
                reply = says("late")
            status, data, more = 200, b"", {}
            if isinstance(reply, int):
                status = reply
            elif isinstance(reply, tuple):
                status, more = reply
            else:
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            try:
                self.send_response(status)
                for key, value in more.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client has given up, as some tests want it to

        def log_message(self, *_args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    model.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
