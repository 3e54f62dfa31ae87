"""`/api/results/ID/review`: what people say of polygons, and the reviewed set as files."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import shapely
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from terralapse.products.review import Reviewed, write_labels, write_reviewed
from terralapse.serve.library import Library, NotThereError
from terralapse.serve.notebook import ConflictError, Notebook, TooMuchError
from terralapse.serve.shelf import Result
from terralapse.serve.writing import Who, Words, conflict, too_much

_MOST_POINTS = 2000  # of an outline
_MOST_POLYGONS = 2**31 - 1
_SLACK = 0.5  # pixels that an outline may reach beyond the images: degrees are rounded, and hands shake

Place = tuple[
    Annotated[float, Field(ge=-180, le=180, allow_inf_nan=False)],
    Annotated[float, Field(ge=-90, le=90, allow_inf_nan=False)],
]


class Outline(BaseModel):
    """A GeoJSON polygon in degrees."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["Polygon"]
    coordinates: Annotated[
        list[Annotated[list[Place], Field(min_length=4, max_length=_MOST_POINTS)]],
        Field(min_length=1, max_length=100),
    ]


Grade = Literal["none", "minor", "major", "destroyed"]


class Said(BaseModel):
    """What somebody says of a polygon. `version` is the one that they have seen, 0 where there is none.

    Of a polygon of the run the verdict is `accepted`, `rejected` or none. Of one that somebody has added it
    is `added`, or `removed` when it is taken back, and without a geometry the outline stays.
    """

    model_config = ConfigDict(extra="forbid")
    by: Who
    version: Annotated[int, Field(ge=0, le=10**6)]
    verdict: Literal["accepted", "rejected", "added", "removed"] | None = None
    grade: Grade | None = None
    comment: Words = ""
    geometry: Outline | None = None
    class_after: str | None = None


class Missed(BaseModel):
    """An object that the run has missed. `class_after` is one of its classes, where it has a map of them."""

    model_config = ConfigDict(extra="forbid")
    by: Who
    geometry: Outline
    grade: Grade | None = None
    class_after: str | None = None
    comment: Words = ""


def run_of(result: Result) -> str:
    """What edits are kept under: the run, so that they stay with it when its folder is moved."""
    return str(result.run.get("run_id") or result.id)


def router(library: Library, notebook: Notebook) -> APIRouter:
    """The routes over a library and what is kept of it."""
    routes = APIRouter(prefix="/api/results/{result_id}/review", tags=["review"])

    @routes.get("")
    def every(result_id: str) -> dict[str, Any]:
        """The last word on each polygon that somebody has looked at or added."""
        return {"reviews": notebook.reviews(run_of(library.result(result_id)))}

    @routes.post("", status_code=201, response_model=None)
    def add(result_id: str, missed: Missed) -> dict[str, Any] | JSONResponse:
        """Adds an object that the run has missed; its number is below 0."""
        found = library.result(result_id)
        _inside(library, found, missed.geometry)
        _class_of(library, found, missed.class_after)
        try:
            return notebook.add(run_of(found), verdict="added", **missed.model_dump())
        except ConflictError as error:
            return conflict(error.current)
        except TooMuchError as error:
            raise too_much("objects added to this result") from error

    @routes.get(".gpkg", response_class=FileResponse)
    def as_geopackage(result_id: str) -> FileResponse:
        """The reviewed polygons, and every edit as the table `history`."""
        found = library.result(result_id)
        run = run_of(found)
        rows = [h | {"geometry": json.dumps(h["geometry"])} for h in notebook.history(run)]

        def make(folder: Path) -> Path:
            path = folder / "reviewed.gpkg"
            write_reviewed(found.folder, _reviewed(library, found, notebook), rows, path)
            return path

        return _made(make, f"{found.id}-reviewed.gpkg", "application/geopackage+sqlite3")

    @routes.get("-labels.zip", response_class=FileResponse)
    def as_labels(
        result_id: str,
        background: Annotated[
            Literal["ignore", "unchanged"],
            Query(description="`unchanged`: somebody has looked at all of the map, not only at polygons."),
        ] = "ignore",
    ) -> FileResponse:
        """Images of both dates, the label raster and the record, as the readers of data sets take them."""
        found = library.result(result_id)

        def make(folder: Path) -> Path:
            said = _reviewed(library, found, notebook)
            write_labels(found.folder, said, folder / "labels", name=found.id, background=background)
            path = folder / "labels.zip"
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for file in sorted(p for p in (folder / "labels").rglob("*") if p.is_file()):
                    archive.write(file, file.relative_to(folder / "labels"))
            return path

        return _made(make, f"{found.id}-labels.zip", "application/zip")

    @routes.get("/{polygon}")
    def one(result_id: str, polygon: int) -> dict[str, Any]:
        """Every edit of a polygon, the oldest first."""
        found = library.result(result_id)
        return {"polygon": polygon, "history": notebook.history(run_of(found), polygon)}

    @routes.post("/{polygon}", response_model=None)
    def say(result_id: str, polygon: int, said: Said) -> dict[str, Any] | JSONResponse:
        """Adds an edit; 409 with what somebody else has said since the version that was seen."""
        found = library.result(result_id)
        values = said.model_dump(exclude={"version"})
        if polygon < 0:
            values["geometry"] = _of_added(library, found, notebook, polygon, said)
        else:
            _of_run(library, found, polygon, said)
        try:
            return notebook.say(run_of(found), polygon, said.version, **values)
        except ConflictError as error:
            return conflict(error.current)
        except TooMuchError as error:
            raise too_much("edits of this polygon") from error

    return routes


def _of_run(library: Library, found: Result, polygon: int, said: Said) -> None:
    """Whether this can be said of a polygon of the run.

    Raises:
        NotThereError: there is no such polygon.
        HTTPException: 422, it cannot.
    """
    if not 1 <= polygon <= _MOST_POLYGONS or library.polygons(found).one(polygon) is None:
        raise NotThereError
    if said.verdict not in (None, "accepted", "rejected"):
        raise HTTPException(422, "verdict: a polygon of the run is accepted or rejected.")
    if said.class_after is not None:
        raise HTTPException(422, "class_after: is said of objects that are added only.")
    if said.geometry is not None:
        shape = _polygon(said.geometry)
        bounds = library.describe(found)["bounds"]
        if bounds is None or not shapely.intersects(shapely.box(*bounds), shape):
            raise HTTPException(422, "geometry: lies outside of this result.")


def _of_added(
    library: Library, found: Result, notebook: Notebook, polygon: int, said: Said
) -> dict[str, Any]:
    """The outline of an object that somebody has added, after what is said of it now.

    Raises:
        NotThereError: nobody has added such an object.
        HTTPException: 422, this cannot be said of it.
    """
    history = notebook.history(run_of(found), polygon) if polygon >= -_MOST_POLYGONS else []
    if not history:
        raise NotThereError
    if said.verdict not in ("added", "removed"):
        raise HTTPException(422, "verdict: an object that was added is added or removed.")
    _class_of(library, found, said.class_after)
    if said.geometry is None:
        return history[-1]["geometry"]
    _inside(library, found, said.geometry)
    return said.geometry.model_dump()


def _class_of(library: Library, found: Result, name: str | None) -> None:
    """Whether a class is one of the run's.

    Raises:
        HTTPException: 422, it is not.
    """
    if name is None:
        return
    layer = library.layers(found).get("classes_after")
    known = [] if layer is None else [c["name"] for c in layer.legend]
    if name not in known:
        said = f"is none of {', '.join(known)}" if known else "has no meaning, as this result has no classes"
        raise HTTPException(422, f"class_after: {said}.")


def _inside(library: Library, found: Result, outline: Outline) -> None:
    """Whether an outline lies within the images.

    Raises:
        NotThereError: a result that has no polygons.
        HTTPException: 422, it does not.
    """
    drawn = shapely.transform(_polygon(outline), library.polygons(found).place)
    grid = library.grid(found)
    height, width = (int(found.run["grid"][side]) for side in ("height", "width"))
    corners = [grid * corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    edge = shapely.Polygon(corners).buffer(_SLACK * max(abs(grid.a), abs(grid.b)))
    if not shapely.is_valid(drawn) or not edge.covers(drawn):
        raise HTTPException(422, "geometry: lies outside of the images, in whole or in part; draw it inside.")


def _polygon(outline: Outline) -> shapely.Polygon:
    """A polygon in degrees.

    Raises:
        HTTPException: 422, it is none.
    """
    if any(ring[0] != ring[-1] for ring in outline.coordinates):
        raise HTTPException(422, "geometry: a ring has to end where it starts.")
    try:
        shape = shapely.Polygon(outline.coordinates[0], outline.coordinates[1:])
    except (ValueError, shapely.errors.ShapelyError) as error:
        raise HTTPException(422, "geometry: is no polygon.") from error
    if not shape.is_valid or shape.area == 0:
        raise HTTPException(422, "geometry: crosses itself or encloses nothing; draw it again.")
    return shape


def _reviewed(library: Library, found: Result, notebook: Notebook) -> list[Reviewed]:
    """With outlines in the CRS of the run."""
    place = library.polygons(found).place
    said = []
    for row in notebook.reviews(run_of(found)):
        shape = row.pop("geometry")
        drawn = None if shape is None else shapely.transform(shapely.geometry.shape(shape), place)
        said.append(Reviewed(**row, geometry=drawn))
    return said


def _made(make: Callable[[Path], Path], name: str, kind: str) -> FileResponse:
    """A file that is made for one answer and removed after it."""
    folder = Path(tempfile.mkdtemp(prefix="terralapse-"))
    try:
        path = make(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    done = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(path, filename=name, media_type=kind, background=done)
