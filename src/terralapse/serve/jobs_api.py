"""`/api/jobs`: starting analyses, following them, cancelling them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from terralapse.cards import Status, Task
from terralapse.registry import systems
from terralapse.serve.inputs import Inputs
from terralapse.serve.jobs import Jobs, QueueFullError
from terralapse.serve.library import NotThereError

_OFTEN = 0.4  # seconds between two looks
_BREATH = 15.0  # seconds after which a quiet stream says that it is alive
_MOST_STREAMS = 100


class NewJob(BaseModel):
    """Two inputs by the names that `/api/inputs` gives, and how to compare them."""

    model_config = ConfigDict(extra="forbid")
    before: Annotated[str, Field(max_length=500)]
    after: Annotated[str, Field(max_length=500)]
    model: Annotated[str, Field(max_length=100)] = "auto"
    threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    date_before: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    date_after: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    pixel_grid: bool = False


def models() -> list[dict[str, str]]:
    """Systems that find change and run."""
    ready = [s for s in systems() if s.task == Task.CHANGE and s.status != Status.PLANNED]
    return [{"slug": s.slug, "title": s.title} for s in ready]


def router(jobs: Jobs, inputs: Inputs) -> APIRouter:
    """The routes over a queue and what may be put into it."""
    routes = APIRouter(prefix="/api", tags=["jobs"])
    streams = 0

    @routes.get("/inputs")
    def allowed() -> dict[str, Any]:
        """What may be compared, and by which models."""
        return {"inputs": inputs.describe(), "models": models()}

    @routes.get("/jobs")
    def every() -> dict[str, Any]:
        """The analyses, the newest first."""
        return {"jobs": jobs.all()}

    @routes.post("/jobs", status_code=201)
    def add(new: NewJob) -> dict[str, Any]:
        """Queues an analysis."""
        known = inputs.all()
        if new.before not in known or new.after not in known:
            raise HTTPException(422, "before, after: choose both from the images that are offered.")
        if new.before == new.after:
            raise HTTPException(422, "before, after: choose two different images.")
        if new.model != "auto" and new.model not in {m["slug"] for m in models()}:
            raise HTTPException(422, "model: choose one of those that are offered.")
        settings = new.model_dump(exclude={"before", "after"}, exclude_none=True)
        try:
            return jobs.add((new.before, known[new.before]), (new.after, known[new.after]), settings)
        except QueueFullError as error:
            raise HTTPException(
                429, "Too many analyses are waiting; cancel some or come back later."
            ) from error

    @routes.get("/jobs/events", response_class=StreamingResponse)
    async def events() -> StreamingResponse:
        """Server-sent events: the list of analyses whenever something in it changes."""
        nonlocal streams
        if streams >= _MOST_STREAMS:
            raise HTTPException(503, "Too many pages follow the analyses.")

        async def follow() -> AsyncIterator[str]:
            nonlocal streams
            streams += 1
            seen, quiet = -1, 0.0
            try:
                while not jobs.closed:
                    if jobs.version != seen:
                        seen, quiet = jobs.version, 0.0
                        listed = await asyncio.to_thread(jobs.all)
                        yield f"data: {json.dumps({'jobs': listed})}\n\n"
                    elif quiet >= _BREATH:
                        quiet = 0.0
                        yield ": still here\n\n"
                    await asyncio.sleep(_OFTEN)
                    quiet += _OFTEN
            finally:
                streams -= 1

        return StreamingResponse(follow(), media_type="text/event-stream")

    @routes.get("/jobs/{identity}")
    def one(identity: str) -> dict[str, Any]:
        """One analysis."""
        found = jobs.get(identity)
        if found is None:
            raise NotThereError
        return found

    @routes.delete("/jobs/{identity}")
    def cancel(identity: str) -> dict[str, Any]:
        """Cancels one that waits or runs."""
        if not jobs.cancel(identity):
            raise NotThereError
        return one(identity)

    return routes
