"""What clients may send beside new analyses: questions, reviews, samples and labels of their points."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, StringConstraints

from terralapse.serve.options import Options

_RESULT = r"/api/results/[^/]+"
_ASKING = re.compile(rf"{_RESULT}/talk")
_KEPT = re.compile(rf"{_RESULT}/(review(?:/-?\d+)?|samples|samples/[^/]+/points/\d+)")


def accepted(method: str, path: str, options: Options) -> bool:
    """Whether a request with a body may be looked at. Questions leave nothing behind; the rest needs a folder
    in which the operator wants it kept."""
    if _ASKING.fullmatch(path):
        return method in ("POST", "DELETE")
    return method == "POST" and options.kept is not None and bool(_KEPT.fullmatch(path))


def _plain(text: str) -> str:
    """On one line, without what cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _named(text: str) -> str:
    found = _plain(text)
    if not found:
        raise ValueError("say who you are")
    return found


Who = Annotated[str, StringConstraints(max_length=80), AfterValidator(_named)]
Words = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_plain)]


def conflict(current: dict[str, Any]) -> JSONResponse:
    """409: somebody else was quicker; what they said goes with it."""
    said = "Somebody else has edited this meanwhile; look at what they said."
    return JSONResponse({"detail": said, "current": current}, 409)


def too_much(what: str) -> HTTPException:
    """More than is kept."""
    return HTTPException(429, f"There are too many {what}; nothing more is kept.")
