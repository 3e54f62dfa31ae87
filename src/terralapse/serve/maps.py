"""`/tiles`: layers as XYZ tiles and TileJSON, for the page, for QGIS and for any other map."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from terralapse.serve.library import Library, NotThereError
from terralapse.serve.pages import holds
from terralapse.serve.tiles import NoTileError, Wanted

_LAST = re.compile(r"(\d{1,8})(@2x)?(?:\.(png|webp))?")
_FOREVER = "private, max-age=31536000, immutable"
_ASK_AGAIN = "private, no-cache"


def router(library: Library) -> APIRouter:
    """The routes over a library."""
    routes = APIRouter(prefix="/tiles", tags=["tiles"])

    @routes.get("/{result_id}/{name}/tilejson.json")
    def tilejson(request: Request, result_id: str, name: str) -> dict[str, Any]:
        """TileJSON 3.0.0 of a layer; its `tiles` are also the XYZ address that QGIS takes."""
        found = library.result(result_id)
        layer = library.describe_layer(found, library.layer(found, name))
        west, south, east, north = layer["bounds"]
        form = "webp" if layer["kind"] == "picture" else "png"
        base = f"{request.base_url}tiles/{found.id}/{name}"
        return {
            "tilejson": "3.0.0",
            "name": f"{found.folder.name}: {layer['title']}",
            "scheme": "xyz",
            "tiles": [f"{base}/{{z}}/{{x}}/{{y}}.{form}"],
            "minzoom": layer["minzoom"],
            "maxzoom": layer["maxzoom"],
            "bounds": layer["bounds"],
            "center": [(west + east) / 2, (south + north) / 2, layer["native_zoom"]],
        }

    @routes.get(
        "/{result_id}/{name}/{z}/{x}/{y}",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}, "image/webp": {}}},
            304: {"description": "The tile that the client holds is still right."},
        },
    )
    def tile(
        request: Request,
        result_id: str,
        name: str,
        z: Annotated[int, Path(ge=0, le=24)],
        x: Annotated[int, Path(ge=0, lt=2**24)],
        y: Annotated[str, Path(pattern=r"^\d{1,8}(@2x)?(\.(png|webp))?$", max_length=20)],
        style: Annotated[
            Literal["drawn", "codes"],
            Query(description="`codes`: the codes of a layer of values as 256 red + green, in PNG."),
        ] = "drawn",
        v: Annotated[
            str | None, Query(max_length=64, description="The state of the file, for caches.")
        ] = None,
    ) -> Response:
        """One tile of 256 pixels (`@2x`: 512) in Web Mercator. A picture is WebP unless `.png` is asked for,
        everything else PNG unless `.webp` is."""
        layer = library.layer(library.result(result_id), name)
        last = _LAST.fullmatch(y)
        if last is None or (style == "codes" and (layer.scale is None or last[3] == "webp")):
            raise NotThereError
        form = last[3] or ("webp" if layer.kind == "picture" else "png")
        wanted = Wanted(z, x, int(last[1]), 2 if last[2] else 1, form, style)  # type: ignore[arg-type]
        etag = library.tiler.etag(layer, wanted)
        headers = {"etag": etag, "cache-control": _FOREVER if v == layer.stamp else _ASK_AGAIN}
        if holds(request, etag):
            return Response(status_code=304, headers=headers)
        try:
            body = library.tiler.tile(layer, library.grid(library.result(result_id)), wanted)
        except NoTileError as error:
            raise NotThereError from error
        return Response(body, media_type=f"image/{form}", headers=headers)

    return routes
