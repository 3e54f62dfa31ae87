"""`/api/results/ID/samples`: samples drawn, their points labelled one by one, and the areas that follow."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from terralapse.products.area_report import AreaReport, report
from terralapse.products.area_sample import MAPS, UNSURE, Plan, Sample, draw, points_table
from terralapse.serve.chips import chip
from terralapse.serve.library import Library, NotThereError
from terralapse.serve.notebook import ConflictError, Notebook, TooMuchError
from terralapse.serve.review_api import run_of
from terralapse.serve.shelf import Result
from terralapse.serve.writing import Who, conflict, too_much

MOST_POINTS = 2000  # that a person labels in a browser
_ACCURACY = Annotated[float, Field(ge=0, le=1)]


class NewSample(BaseModel):
    """Where points are drawn from, and how many: `size`, or what `standard_error` needs."""

    model_config = ConfigDict(extra="forbid")
    by: Who
    map: Literal["change", "classes_before", "classes_after", "damage"] = "change"
    size: Annotated[int | None, Field(ge=4, le=MOST_POINTS)] = None
    standard_error: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    expected: Annotated[dict[str, _ACCURACY], Field(max_length=50)] = {}
    allocation: Literal["rare", "proportional", "equal", "neyman"] = "rare"
    least: Annotated[int, Field(ge=2, le=MOST_POINTS)] = 50
    buffer: Annotated[int, Field(ge=0, le=100)] = 0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


class Label(BaseModel):
    """What somebody sees at a point: a class, `unsure`, or nothing to take a label back. `version` is the one
    that they have seen, 0 where there is none."""

    model_config = ConfigDict(extra="forbid")
    by: Who
    version: Annotated[int, Field(ge=0, le=10**6)]
    label: Annotated[str, Field(max_length=60)]


def router(library: Library, notebook: Notebook) -> APIRouter:
    """The routes over a library and what is kept of it."""
    routes = APIRouter(prefix="/api/results/{result_id}/samples", tags=["samples"])
    drawing = threading.Lock()  # one at a time: a draw reads a whole raster twice

    def found_of(result_id: str, identity: str) -> tuple[Result, Sample]:
        result = library.result(result_id)
        kept = notebook.sample(run_of(result), identity)
        if kept is None:
            raise NotThereError
        return result, Sample.from_dict(kept["design"])

    @routes.get("")
    def every(result_id: str) -> dict[str, Any]:
        """The samples of a result, the newest first, and what more may be drawn from."""
        result = library.result(result_id)
        told = [
            {"id": s["id"], "at": s["at"], "by": s["by"], "map": s["design"]["map"]}
            | {"points": len(s["design"]["points"]), "labelled": _labelled(notebook.marks(s["id"]))}
            for s in notebook.samples(run_of(result))
        ]
        files = result.files()
        maps = [m for m in MAPS if f"{m}.tif" in files] if result.kind == "change" else []
        return {"samples": told, "maps": maps}

    @routes.post("", status_code=201)
    def new(result_id: str, asked: NewSample) -> dict[str, Any]:
        """Draws a sample and keeps it."""
        result = library.result(result_id)
        if result.file(f"{asked.map}.tif") is None or result.kind != "change":
            raise NotThereError
        plan = Plan(asked.size, asked.standard_error, asked.expected, asked.allocation, asked.least)
        with drawing:
            sample = draw(result.folder, plan, name=asked.map, seed=asked.seed, buffer=asked.buffer)
        if len(sample.points) > MOST_POINTS:
            said = f"size: {len(sample.points)} points are too many; ask for a larger error."
            raise HTTPException(422, said)
        try:
            identity = notebook.keep(run_of(result), asked.by, sample.as_dict())
        except TooMuchError as error:
            raise too_much("samples of this result") from error
        return one(result_id, identity)

    @routes.get("/{identity}")
    def one(result_id: str, identity: str) -> dict[str, Any]:
        """The points in their order and their labels. Which stratum a point is of is not told, so that nobody
        is told what the map says."""
        result, sample = found_of(result_id, identity)
        marks = notebook.marks(identity)
        places = library.polygons(result).degrees(np.array([(p.x, p.y) for p in sample.points])).tolist()
        rows = []
        for p, place in zip(sample.points, places, strict=True):
            row = {"id": p.id, "row": p.row, "col": p.col, "place": place}
            mark = marks.get(p.id, {"version": 0, "label": "", "by": ""})
            rows.append(row | {k: mark[k] for k in ("version", "label", "by")})
        strata = [{"title": s.title, "points": s.points} for s in sample.strata]
        told = {"id": identity, "map": sample.map, "seed": sample.seed, "buffer": sample.buffer}
        chips = {d: result.file(f"{d}.tif") is not None for d in ("before", "after")}
        return told | {"classes": sample.classes, "strata": strata, "points": rows, "chips": chips}

    @routes.get("/{identity}/areas")
    def areas(result_id: str, identity: str) -> dict[str, Any]:
        """Areas and accuracies with 95 % intervals, from the points that are labelled."""
        return _report(found_of(result_id, identity)[1], identity).as_dict()

    @routes.get("/{identity}/areas.csv", response_class=Response)
    def areas_csv(result_id: str, identity: str) -> Response:
        """The same as a table."""
        return _csv(_report(found_of(result_id, identity)[1], identity).as_csv(), "areas.csv")

    @routes.get("/{identity}/points.csv", response_class=Response)
    def points_csv(result_id: str, identity: str) -> Response:
        """The points with their labels, as `terralapse area` writes and reads them."""
        _, sample = found_of(result_id, identity)
        labels = {k: m["label"] for k, m in notebook.marks(identity).items()}
        return _csv(points_table(sample, labels).to_csv(index=False, lineterminator="\n"), "points.csv")

    @routes.get("/{identity}/sample.json")
    def design(result_id: str, identity: str) -> JSONResponse:
        """The design with the strata, as `terralapse area` writes and reads it."""
        _, sample = found_of(result_id, identity)
        named = {"content-disposition": 'attachment; filename="sample.json"'}
        return JSONResponse(sample.as_dict(), headers=named)

    @routes.get("/{identity}/points/{number}/{date}.webp", response_class=Response)
    def picture(
        result_id: str,
        identity: str,
        number: int,
        date: Literal["before", "after"],
        across: Annotated[int, Query(ge=9, le=513, description="Pixels of the map that it shows.")] = 65,
    ) -> Response:
        """What one of the dates shows around a point, which is in the middle."""
        result, sample = found_of(result_id, identity)
        path = result.file(f"{date}.tif")
        point = next((p for p in sample.points if p.id == number), None)
        if path is None or point is None:
            raise NotThereError
        shape = int(result.run["grid"]["height"]), int(result.run["grid"]["width"])
        kept = {"cache-control": "private, max-age=86400"}
        return Response(
            chip(path, shape, point.row, point.col, across), media_type="image/webp", headers=kept
        )

    @routes.post("/{identity}/points/{number}", response_model=None)
    def label(result_id: str, identity: str, number: int, said: Label) -> dict[str, Any] | JSONResponse:
        """Labels a point; 409 with what somebody else has said since the version that was seen."""
        _, sample = found_of(result_id, identity)
        if not any(p.id == number for p in sample.points):
            raise NotThereError
        if said.label not in (*sample.classes, UNSURE, ""):
            raise HTTPException(422, f"label: choose one of {', '.join(sample.classes)}, or {UNSURE}.")
        try:
            return notebook.mark(identity, number, said.version, said.by, said.label)
        except ConflictError as error:
            return conflict(error.current)
        except TooMuchError as error:
            raise too_much("labels of this point") from error

    def _report(sample: Sample, identity: str) -> AreaReport:
        marks = notebook.marks(identity)
        return report(sample, {k: m["label"] for k, m in marks.items() if m["label"] in sample.classes})

    return routes


def _labelled(marks: dict[int, dict[str, Any]]) -> int:
    return sum(bool(m["label"]) for m in marks.values())


def _csv(text: str, name: str) -> Response:
    named = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=named)
