"""`/api`: results, facts, numbers, polygons and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from terralapse._version import __version__
from terralapse.products.polygons import LAYER
from terralapse.serve.library import Library, NotThereError
from terralapse.serve.options import MOST_FEATURES
from terralapse.serve.shelf import Result
from terralapse.serve.vectors import Box

_GEOJSON = "application/geo+json"
_CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"
_CONFORMS = [
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/core",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/oas30",
    "http://www.opengis.net/spec/ogcapi-features-1/1.0/conf/geojson",
]
_TYPES = {".tif": "image/tiff", ".gpkg": "application/geopackage+sqlite3", ".qml": "application/xml"}


class GeoJSONResponse(JSONResponse):
    """JSON with the media type of GeoJSON."""

    media_type = _GEOJSON


def router(library: Library) -> APIRouter:
    """The routes over a library."""
    routes = APIRouter(prefix="/api")

    @routes.get("/results", tags=["results"])
    def results() -> dict[str, Any]:
        """The results that there are, and what is wrong with those that cannot be shown."""
        found, problems = library.shelf.results()
        return {
            "version": __version__,
            "basemap": library.options.basemap,
            "jobs": library.options.workspace is not None,
            "reviews": library.options.kept is not None,
            "results": [library.brief(r) for r in found.values()],
            "problems": problems,
        }

    @routes.get("/results/{result_id}", tags=["results"])
    def result(result_id: str) -> dict[str, Any]:
        """One result: its summary, numbers, layers with their legends, files and links."""
        return library.describe(library.result(result_id))

    @routes.get("/results/{result_id}/run", tags=["results"])
    def run(result_id: str) -> dict[str, Any]:
        """The record of the run, as in `run.json`."""
        return library.result(result_id).run

    @routes.get("/results/{result_id}/alignment", tags=["results"])
    def alignment(result_id: str) -> dict[str, Any]:
        """How the dates were aligned: the verdict, its level (`good`, `warning`, `unknown`), the numbers as a
        table, and the whole content of `alignment.json` as `report`."""
        return library.alignment(library.result(result_id))

    @routes.get("/results/{result_id}/stats", tags=["results"])
    def stats(result_id: str) -> dict[str, Any]:
        """The rows of `stats.csv`."""
        return {"rows": library.table(library.result(result_id))}

    @routes.get("/results/{result_id}/histogram", tags=["results"])
    def histogram(result_id: str) -> dict[str, Any]:
        """Compared pixels and area by probability of change, in 201 steps; the sum from a step on is what a
        threshold there would mark as changed."""
        return library.histogram(library.result(result_id))

    @routes.get("/results/{result_id}/breaks", tags=["results"])
    def breaks(result_id: str) -> dict[str, Any]:
        """Of a series: the area that broke on each day since 1970-01-01."""
        return library.breaks(library.result(result_id))

    @routes.get("/results/{result_id}/facts", tags=["facts"])
    def facts(
        result_id: str,
        polygon: Annotated[
            int | None, Query(ge=1, description="Only facts that this polygon is evidence of.")
        ] = None,
    ) -> dict[str, Any]:
        """The facts, each with value, unit, uncertainty, evidence and sentence."""
        found = library.result(result_id).facts
        if polygon is None:
            return found
        return found | {"facts": [f for f in found.get("facts", []) if _rests_on(f, polygon)]}

    @routes.get("/results/{result_id}/facts/{fact_id}", tags=["facts"])
    def fact(result_id: str, fact_id: str) -> dict[str, Any]:
        """One fact by its id."""
        every = library.result(result_id).facts.get("facts", [])
        return _or_missing(next((f for f in every if f.get("id") == fact_id), None))

    @routes.get("/results/{result_id}/files", tags=["files"])
    def files(result_id: str) -> dict[str, Any]:
        """The products with their sizes."""
        return {"files": library.describe(library.result(result_id))["files"]}

    @routes.get("/results/{result_id}/files/{name:path}", tags=["files"], response_class=FileResponse)
    def file(result_id: str, name: str) -> FileResponse:
        """A product as it was written; ranges are answered, so COGs can be read in place."""
        path = library.result(result_id).file(name)
        if path is None:
            raise NotThereError
        return _download(path)

    @routes.get("/results/{result_id}/polygons.geojson", tags=["files"], response_class=GeoJSONResponse)
    def geojson(result_id: str) -> StreamingResponse:
        """All polygons as one GeoJSON file."""
        found = library.result(result_id)
        limits = library.options.limits
        pieces = library.polygons(found).stream(MOST_FEATURES, limits.vertices)
        named = {"content-disposition": f'attachment; filename="{found.id}.geojson"'}
        return StreamingResponse(pieces, media_type=_GEOJSON, headers=named)

    _add_features(routes, library)
    return routes


def _add_features(routes: APIRouter, library: Library) -> None:
    """OGC API - Features, part 1, with one collection a result."""
    root = "/results/{result_id}/features"
    limits = library.options.limits

    def at(request: Request, found: Result, tail: str = "") -> str:
        return f"{str(request.base_url).rstrip('/')}/api/results/{found.id}/features{tail}"

    def link(href: str, rel: str, kind: str = "application/json") -> dict[str, str]:
        return {"href": href, "rel": rel, "type": kind}

    def collection_of(request: Request, found: Result) -> dict[str, Any]:
        layers = library.describe(found)
        here = f"/collections/{LAYER}"
        return {
            "id": LAYER,
            "title": f"Change polygons of {found.folder.name}",
            "description": found.run["summary"]["summary"],
            "itemType": "feature",
            "crs": [_CRS84],
            "extent": {"spatial": {"bbox": [layers["bounds"]], "crs": _CRS84}},
            "links": [
                link(at(request, found, here), "self"),
                link(at(request, found, f"{here}/items"), "items", _GEOJSON),
            ],
        }

    @routes.get(root, tags=["features"])
    def landing(request: Request, result_id: str) -> dict[str, Any]:
        """Where a client of OGC API - Features starts, QGIS for one."""
        found = library.result(result_id)
        library.polygons(found)
        return {
            "title": found.folder.name,
            "description": found.run["summary"]["summary"],
            "links": [
                link(at(request, found), "self"),
                link(f"{request.base_url}openapi.json", "service-desc", "application/vnd.oai.openapi+json"),
                link(at(request, found, "/conformance"), "conformance"),
                link(at(request, found, "/collections"), "data"),
            ],
        }

    @routes.get(root + "/conformance", tags=["features"])
    def conformance(result_id: str) -> dict[str, Any]:
        """The classes of requirements that are met."""
        library.result(result_id)
        return {"conformsTo": _CONFORMS}

    @routes.get(root + "/collections", tags=["features"])
    def collections(request: Request, result_id: str) -> dict[str, Any]:
        """The one collection of a result."""
        found = library.result(result_id)
        library.polygons(found)
        links = [link(at(request, found, "/collections"), "self")]
        return {"links": links, "collections": [collection_of(request, found)]}

    @routes.get(root + "/collections/change", tags=["features"])
    def collection(request: Request, result_id: str) -> dict[str, Any]:
        """What the collection is and where it lies."""
        found = library.result(result_id)
        library.polygons(found)
        return collection_of(request, found)

    @routes.get(root + "/collections/change/items", tags=["features"], response_class=GeoJSONResponse)
    def items(
        request: Request,
        result_id: str,
        bbox: Annotated[
            str | None, Query(description="west,south,east,north in degrees.", max_length=200)
        ] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_FEATURES)] = 100,
        offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
    ) -> GeoJSONResponse:
        """A page of polygons, the largest first. A page with very many vertices ends early; the link `next`
        goes on where it ended."""
        found = library.result(result_id)
        page = library.polygons(found).page(boxes_of(bbox), limit, offset, limits.vertices)
        here = request.url.remove_query_params("token")
        links = [link(str(here), "self", _GEOJSON)]
        if page.next_offset is not None:
            later = here.include_query_params(offset=page.next_offset, limit=limit)
            links.append(link(str(later), "next", _GEOJSON))
        return GeoJSONResponse(
            {
                "type": "FeatureCollection",
                "numberMatched": page.matched,
                "numberReturned": len(page.features),
                "links": links,
                "features": page.features,
            }
        )

    @routes.get(
        root + "/collections/change/items/{number}", tags=["features"], response_class=GeoJSONResponse
    )
    def item(result_id: str, number: int) -> GeoJSONResponse:
        """One polygon by its id."""
        found = library.result(result_id)
        return GeoJSONResponse(_or_missing(library.polygons(found).one(number)))


def boxes_of(text: str | None) -> list[Box]:
    """The box of a query in degrees; two boxes where it crosses the antimeridian.

    Raises:
        HTTPException: 400, no box.
    """
    if text is None:
        return []
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError as error:
        raise HTTPException(400, "bbox: write it as west,south,east,north in degrees.") from error
    known = all(math.isfinite(v) for v in (west, south, east, north))
    if not known or abs(west) > 180 or abs(east) > 180 or not -90 <= south <= north <= 90:
        raise HTTPException(400, "bbox: south may not exceed north, nor any number its range in degrees.")
    if west <= east:
        return [(west, south, east, north)]
    return [(west, south, 180.0, north), (-180.0, south, east, north)]


def _rests_on(fact: dict[str, Any], polygon: int) -> bool:
    named = fact.get("evidence", {}).get("polygons")
    return isinstance(named, list) and polygon in named


def _or_missing(found: dict[str, Any] | None) -> dict[str, Any]:
    if not found:
        raise NotThereError
    return found


def _download(path: Path) -> FileResponse:
    """As an attachment: a product may hold scripts (the report does) and never runs in this origin."""
    return FileResponse(path, filename=path.name, media_type=_TYPES.get(path.suffix))
