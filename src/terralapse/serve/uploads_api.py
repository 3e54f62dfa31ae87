"""`/api/uploads`: sending an image in pieces, after the manner of tus.

`POST /api/uploads` announces a name and a number of bytes. `PATCH /api/uploads/ID` adds bytes at
`Upload-Offset`; when the connection breaks, `HEAD` says from where to go on. `POST /api/uploads/ID/finish`
gives the SHA-256, and what the image is comes back. Nothing of a body is held in memory but a mebibyte.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import ClientDisconnect

from terralapse.serve.options import Limits
from terralapse.serve.uploads import RefusedError, Sink, Uploads

KIND = "application/offset+octet-stream"
_AT_ONCE = 2**20
_BODY = {
    "requestBody": {"required": True, "content": {KIND: {"schema": {"type": "string", "format": "binary"}}}}
}


class NewUpload(BaseModel):
    """A file that will be sent. With a `key` the half of it that is there already is found again."""

    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(min_length=1, max_length=255)]
    bytes: Annotated[int, Field(ge=0, lt=2**53)]
    key: Annotated[str, Field(max_length=200)] = ""


class Finish(BaseModel):
    """The hash of the whole file."""

    model_config = ConfigDict(extra="forbid")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


def refusal(error: RefusedError) -> HTTPException:
    """As the answer to a request; where bytes are wanted from another offset, it says from which."""
    headers = None if error.offset is None else {"upload-offset": str(error.offset)}
    return HTTPException(error.status, error.text, headers)


def router(uploads: Uploads, limits: Limits) -> APIRouter:
    """The routes over the uploads."""
    routes = APIRouter(prefix="/api/uploads", tags=["uploads"])

    @routes.post("", status_code=201)
    def create(new: NewUpload, response: Response) -> dict[str, Any]:
        """Announces a file; the answer says how much of it is there already."""
        try:
            made = uploads.create(new.name, new.bytes, new.key)
        except RefusedError as error:
            raise refusal(error) from error
        said = uploads.describe(made)
        response.headers["location"] = f"/api/uploads/{made.id}"
        response.headers["upload-offset"] = str(said["offset"])
        return said

    @routes.get("/{identity}")
    def one(identity: str) -> dict[str, Any]:
        """What is there of an upload."""
        return uploads.describe(uploads.get(identity))

    @routes.head("/{identity}", response_class=Response)
    def where(identity: str) -> Response:
        """From where to go on: `Upload-Offset` of `Upload-Length`."""
        said = uploads.describe(uploads.get(identity))
        headers = {"upload-offset": str(said["offset"]), "upload-length": str(said["bytes"])}
        return Response(headers=headers | {"cache-control": "no-store"})

    @routes.patch("/{identity}", openapi_extra=_BODY)
    async def append(
        request: Request,
        identity: str,
        upload_offset: Annotated[int, Header(ge=0, lt=2**53)],
    ) -> dict[str, Any]:
        """Adds bytes. However it ends, what came is kept."""
        upload = uploads.get(identity)
        try:
            with uploads.writing(upload, upload_offset) as sink:
                await _pour(request, sink, limits.upload_wait)
        except RefusedError as error:
            raise refusal(error) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "The connection broke; go on from the offset.") from error
        except TimeoutError as error:
            text = f"{upload.name}: nothing came for {limits.upload_wait:g} s; go on from the offset."
            raise HTTPException(408, text, {"connection": "close"}) from error
        return {"offset": sink.offset}

    @routes.post("/{identity}/finish")
    def finish(identity: str, told: Finish) -> dict[str, Any]:
        """Ends an upload: its hash is checked, and what the image is is said. What fails is removed."""
        try:
            return uploads.describe(uploads.finish(uploads.get(identity), told.sha256))
        except RefusedError as error:
            raise refusal(error) from error

    @routes.delete("/{identity}")
    def remove(identity: str) -> dict[str, Any]:
        """Removes an upload."""
        try:
            uploads.remove(uploads.get(identity))
        except RefusedError as error:
            raise refusal(error) from error
        return {}

    return routes


async def _pour(request: Request, sink: Sink, patience: float) -> None:
    """The body into the file, a mebibyte at a time; what came before a break is written too."""
    held = bytearray()
    body = request.stream()
    try:
        while True:
            try:
                piece = await asyncio.wait_for(anext(body), patience)
            except StopAsyncIteration:
                return
            held += piece
            if len(held) >= _AT_ONCE:
                full, held = held, bytearray()
                await run_sync(sink.write, full)
    finally:
        if held:
            await run_sync(sink.write, held)
