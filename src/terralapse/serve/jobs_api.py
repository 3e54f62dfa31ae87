"""`/api/jobs`: starting analyses, following them, cancelling them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from terralapse.cards import Status, Task
from terralapse.errors import HostileFileError, NoOverlapError, SettingError
from terralapse.registry import systems
from terralapse.serve.areas import Drawn, area_of
from terralapse.serve.jobs import Jobs, QueueFullError
from terralapse.serve.library import NotThereError
from terralapse.serve.sources import Sources

_OFTEN = 0.4  # seconds between two looks
_BREATH = 15.0  # seconds after which a quiet stream says that it is alive
_MOST_STREAMS = 100


class NewJob(BaseModel):
    """Two inputs by the names that `/api/inputs` gives or, where the operator allows them, by public https
    addresses; and how to compare them."""

    model_config = ConfigDict(extra="forbid")
    before: Annotated[str, Field(max_length=2000)]
    after: Annotated[str, Field(max_length=2000)]
    model: Annotated[str, Field(max_length=100)] = "auto"
    threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    date_before: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    date_after: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    pixel_grid: bool = False
    coregister: bool = True
    normalise: bool = False
    min_area: Annotated[float | None, Field(ge=0, le=1e12, allow_inf_nan=False)] = None
    rectangles: bool = False
    geojson: bool = False
    area: Drawn | None = None


def models() -> list[dict[str, str]]:
    """Systems that find change and run."""
    ready = [s for s in systems() if s.task == Task.CHANGE and s.status != Status.PLANNED]
    return [{"slug": s.slug, "title": s.title} for s in ready]


def router(jobs: Jobs, sources: Sources) -> APIRouter:
    """The routes over a queue and what may be put into it."""
    routes = APIRouter(prefix="/api", tags=["jobs"])
    streams = 0

    def find(name: str) -> Path | str | None:
        try:
            return sources.find(name)
        except HostileFileError as error:
            raise HTTPException(422, str(error)) from error

    @routes.get("/inputs")
    def allowed() -> dict[str, Any]:
        """What may be compared, by which models, and what else may be given: uploads with their limits,
        addresses."""
        return {"inputs": sources.describe(), "models": models(), **sources.allowed()}

    @routes.get("/look")
    def look(name: Annotated[str, Query(max_length=2000)]) -> dict[str, Any]:
        """What an input is: size, bands, sensor, date, and its `footprint` in degrees (None: no place)."""
        find(name)
        return sources.look(name)

    @routes.get("/jobs")
    def every() -> dict[str, Any]:
        """The analyses, the newest first."""
        return {"jobs": jobs.all()}

    @routes.post("/jobs", status_code=201)
    def add(new: NewJob) -> dict[str, Any]:
        """Queues an analysis."""
        known = {name: find(name) for name in (new.before, new.after)}
        if None in known.values():
            raise HTTPException(422, "before, after: choose both from the images that are offered.")
        if new.before == new.after:
            raise HTTPException(422, "before, after: choose two different images.")
        if new.model != "auto" and new.model not in {m["slug"] for m in models()}:
            raise HTTPException(422, "model: choose one of those that are offered.")
        settings = new.model_dump(exclude={"before", "after", "area"}, exclude_none=True)
        if new.area is not None:
            images = {"before": sources.look(new.before), "after": sources.look(new.after)}
            try:
                settings["area"] = area_of(new.area, images)
            except (SettingError, NoOverlapError) as error:
                raise HTTPException(422, str(error)) from error
        pair = [(name, known[name] or "") for name in (new.before, new.after)]
        try:
            return jobs.add(pair[0], pair[1], settings)
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
            seen, quiet = "", 0.0
            try:
                while not jobs.closed:
                    listed = jobs.fresh() or await asyncio.to_thread(jobs.listing)
                    if listed != seen:
                        seen, quiet = listed, 0.0
                        yield f"data: {listed}\n\n"
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
