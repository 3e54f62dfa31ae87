"""The files of the page, from memory: some forty are asked for whenever it is opened."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_FOREVER = "public, max-age=31536000, immutable"
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript"}  # a system may call them something else


@dataclass(frozen=True)
class _File:
    body: bytes
    headers: dict[str, str]


def holds(request: Request, etag: str) -> bool:
    """Whether a client says that it has this state of what it asks for."""
    held = request.headers.get("if-none-match", "").split(",")
    return etag in [e.strip().removeprefix("W/") for e in held]


class Pages:
    """Answers requests for what lies below a folder; what a client sends never becomes part of a path.

    Vendored files have their version in the path and never change; ours are asked for again each time.

    Args:
        folder: read once, links left out.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, _File] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                name = path.relative_to(folder).as_posix()
                self._files[name] = _file(name, path.read_bytes())

    def file(self, name: str, request: Request) -> Response:
        """The file of a name.

        Raises:
            HTTPException: there is none (404).
        """
        found = self._files.get(name)
        if found is None:
            raise HTTPException(404)
        if holds(request, found.headers["etag"]):
            return Response(status_code=304, headers=found.headers)
        return Response(found.body, headers=found.headers)


def _file(name: str, body: bytes) -> _File:
    suffix = Path(name).suffix
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    if kind.startswith("text/"):
        kind += "; charset=utf-8"
    headers = {"content-type": kind, "etag": f'"{hashlib.sha256(body).hexdigest()[:24]}"'}
    if name.startswith("vendor/"):
        headers["cache-control"] = _FOREVER
    return _File(body, headers)
