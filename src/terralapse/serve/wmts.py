"""`/tiles/RESULT/WMTSCapabilities.xml`: the layers of a result as OGC WMTS 1.0.0, for QGIS and the like.

Only the RESTful binding: the document names the address of every tile, which is that of the XYZ tiles.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pyproj import Transformer

from terralapse.serve.library import Library
from terralapse.serve.tiles import TILE

_WMTS, _OWS, _XLINK = (
    "http://www.opengis.net/wmts/1.0",
    "http://www.opengis.net/ows/1.1",
    "http://www.w3.org/1999/xlink",
)
_SET = "GoogleMapsCompatible"
_HALF = 20037508.342789244  # of the square of Web Mercator, in metres
_PIXEL = 0.00028  # metres of a pixel of OGC, which its scale denominators are for


def router(library: Library) -> APIRouter:
    """The one route over a library."""
    routes = APIRouter(prefix="/tiles", tags=["tiles"])

    @routes.get(
        "/{result_id}/WMTSCapabilities.xml",
        response_class=Response,
        responses={200: {"content": {"text/xml": {}}}},
    )
    def capabilities(request: Request, result_id: str) -> Response:
        """WMTS capabilities; asked for with a token in its address, it names tiles with the token too."""
        found = library.result(result_id)
        shown = [*(c.layer for c in library.composites(found)), *library.layers(found).values()]
        layers = [library.describe_layer(found, layer) for layer in shown]
        token = request.query_params.get("token") if library.options.token else None
        tail = f"?token={token}" if token else ""
        base = f"{request.base_url}tiles/{found.id}"
        body = document(found.folder.name, base, layers, tail)
        headers = {"cache-control": "private, no-store"} if token else {}
        return Response(body, media_type="text/xml", headers=headers)

    return routes


def document(title: str, base: str, layers: list[dict[str, Any]], tail: str) -> bytes:
    """The capabilities of layers as `Library.describe_layer` gives them, the lowest first."""
    for prefix, name in (("", _WMTS), ("ows", _OWS), ("xlink", _XLINK)):
        ET.register_namespace(prefix, name)
    root = ET.Element(_w("Capabilities"), {"version": "1.0.0"})
    service = ET.SubElement(root, _o("ServiceIdentification"))
    _texts(service, {_o("Title"): title, _o("ServiceType"): "OGC WMTS", _o("ServiceTypeVersion"): "1.0.0"})
    contents = ET.SubElement(root, _w("Contents"))
    zooms = sorted({z for x in layers for z in range(x["minzoom"], x["maxzoom"] + 1)})
    for layer in reversed(layers):  # a list of layers is read from the top
        contents.append(_layer(base, layer, tail))
    contents.append(_matrices(zooms))
    metadata = {f"{{{_XLINK}}}href": f"{base}/WMTSCapabilities.xml{tail}"}
    ET.SubElement(root, _w("ServiceMetadataURL"), metadata)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True)


def _layer(base: str, layer: dict[str, Any], tail: str) -> ET.Element:
    node = ET.Element(_w("Layer"))
    _texts(node, {_o("Title"): layer["title"]})
    west, south, east, north = layer["bounds"]
    if west > east:
        west, east = -180.0, 180.0
    box = ET.SubElement(node, _o("WGS84BoundingBox"))
    _texts(box, {_o("LowerCorner"): f"{west} {south}", _o("UpperCorner"): f"{east} {north}"})
    _texts(node, {_o("Identifier"): layer["name"]})
    style = ET.SubElement(node, _w("Style"), {"isDefault": "true"})
    _texts(style, {_o("Identifier"): "default"})
    _texts(node, {_w("Format"): "image/png"})
    link = ET.SubElement(node, _w("TileMatrixSetLink"))
    _texts(link, {_w("TileMatrixSet"): _SET})
    limits = ET.SubElement(link, _w("TileMatrixSetLimits"))
    for zoom in range(layer["minzoom"], layer["maxzoom"] + 1):
        first, last = _tile(zoom, west, north), _tile(zoom, east, south)
        at = ET.SubElement(limits, _w("TileMatrixLimits"))
        rows = {"MinTileRow": first[1], "MaxTileRow": last[1], "MinTileCol": first[0], "MaxTileCol": last[0]}
        _texts(at, {_w("TileMatrix"): zoom} | {_w(name): value for name, value in rows.items()})
    template = f"{base}/{layer['name']}/{{TileMatrix}}/{{TileCol}}/{{TileRow}}.png{tail}"
    address = {"format": "image/png", "resourceType": "tile", "template": template}
    ET.SubElement(node, _w("ResourceURL"), address)
    return node


def _matrices(zooms: list[int]) -> ET.Element:
    """The tiling that XYZ tiles have, at the zooms that any layer has."""
    node = ET.Element(_w("TileMatrixSet"))
    _texts(
        node,
        {
            _o("Identifier"): _SET,
            _o("SupportedCRS"): "urn:ogc:def:crs:EPSG::3857",
            _w("WellKnownScaleSet"): f"urn:ogc:def:wkss:OGC:1.0:{_SET}",
        },
    )
    for zoom in zooms:
        side = 2**zoom
        matrix = ET.SubElement(node, _w("TileMatrix"))
        values = {
            _o("Identifier"): zoom,
            _w("ScaleDenominator"): repr(2 * _HALF / TILE / side / _PIXEL),
            _w("TopLeftCorner"): f"{-_HALF} {_HALF}",
            _w("TileWidth"): TILE,
            _w("TileHeight"): TILE,
            _w("MatrixWidth"): side,
            _w("MatrixHeight"): side,
        }
        _texts(matrix, values)
    return node


def _tile(zoom: int, lon: float, lat: float) -> tuple[int, int]:
    """Column and row of the tile that holds a place."""
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, max(-85.05, min(85.05, lat)))
    side = 2**zoom
    column, row = ((x + _HALF) / (2 * _HALF) * side, (_HALF - y) / (2 * _HALF) * side)
    return min(side - 1, max(0, int(column))), min(side - 1, max(0, int(row)))


def _texts(node: ET.Element, values: dict[str, Any]) -> None:
    for name, value in values.items():
        ET.SubElement(node, name).text = str(value)


def _w(name: str) -> str:
    return f"{{{_WMTS}}}{name}"


def _o(name: str) -> str:
    return f"{{{_OWS}}}{name}"
