"""WMTS capabilities: that the document says what the tiles are, and that a reader of WMTS shows them."""

from __future__ import annotations

import warnings
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio

from serve_clients import TOKEN, living
from terralapse.serve.options import Limits, Options

NAMES = {
    "w": "http://www.opengis.net/wmts/1.0",
    "ows": "http://www.opengis.net/ows/1.1",
    "xlink": "http://www.w3.org/1999/xlink",
}


def capabilities(client, identity: str, **query: str) -> ET.Element:
    answer = client.get(f"/tiles/{identity}/WMTSCapabilities.xml", params=query)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/xml")
    return ET.fromstring(answer.content)


@pytest.mark.parametrize("name", ["Blobs", "pixels", "clearing"])
def test_every_layer_is_there_with_tiles_that_are_answered(client, ids, name):
    found = client.get(f"/api/results/{ids[name]}").json()
    root = capabilities(client, ids[name])
    assert found["links"]["wmts"] == f"/tiles/{ids[name]}/WMTSCapabilities.xml"
    layers = root.findall("w:Contents/w:Layer", NAMES)
    titles = [layer.findtext("ows:Title", None, NAMES) for layer in layers]
    assert titles == [x["title"] for x in reversed(found["layers"])]
    matrices = {
        m.findtext("ows:Identifier", None, NAMES): m
        for m in root.iterfind(".//w:TileMatrixSet/w:TileMatrix", NAMES)
    }
    for layer in layers:
        link = layer.find("w:TileMatrixSetLink", NAMES)
        assert link.findtext("w:TileMatrixSet", None, NAMES) == "GoogleMapsCompatible"
        limits = link.findall("w:TileMatrixSetLimits/w:TileMatrixLimits", NAMES)
        last = limits[-1]
        zoom = last.findtext("w:TileMatrix", None, NAMES)
        assert zoom in matrices
        ends = {
            n: [int(last.findtext(f"w:{e}Tile{n}", None, NAMES)) for e in ("Min", "Max")]
            for n in ("Row", "Col")
        }
        row, column = (sum(ends[n]) // 2 for n in ("Row", "Col"))  # a corner may lie beyond a turned grid
        template = layer.find("w:ResourceURL", NAMES).get("template")
        place = (
            template.replace("{TileMatrix}", zoom)
            .replace("{TileCol}", str(column))
            .replace("{TileRow}", str(row))
        )
        assert client.get(place).status_code == 200


def test_scales_are_those_of_the_standard(client, ids):
    """The denominator of level 0 of GoogleMapsCompatible. Source: OGC 07-057r7, annex E.4."""
    root = capabilities(client, ids["Blobs"])
    for matrix in root.iterfind(".//w:TileMatrixSet/w:TileMatrix", NAMES):
        zoom = int(matrix.findtext("ows:Identifier", None, NAMES))
        scale = float(matrix.findtext("w:ScaleDenominator", None, NAMES))
        assert scale == pytest.approx(559082264.0287178 / 2**zoom, rel=1e-9)
        assert matrix.findtext("w:MatrixWidth", None, NAMES) == str(2**zoom)


def test_the_token_of_the_address_is_that_of_the_tiles(serve, ids):
    client = serve(host="0.0.0.0", token=TOKEN)
    root = capabilities(client, ids["Blobs"], token=TOKEN)
    template = root.find(".//w:ResourceURL", NAMES).get("template")
    assert template.endswith(f".png?token={TOKEN}")
    client.headers["authorization"] = f"Bearer {TOKEN}"
    assert TOKEN not in ET.tostring(capabilities(client, ids["Blobs"]), encoding="unicode")
    assert client.get("/tiles/none/WMTSCapabilities.xml").status_code == 404


def test_gdal_reads_the_layers(shelf, ids):
    """The reader of another project: it finds the layers, their place, and the colour of the change."""
    with rasterio.Env() as env:
        if "WMTS" not in env.drivers():
            pytest.skip("this GDAL reads no WMTS")
    with (
        # All tiles of the finest zoom at once are more than a page asks for, and than the usual rate.
        living(Options((shelf,), limits=Limits(rate=1e5, burst=100_000))) as address,
        warnings.catch_warnings(),
        rasterio.Env(GDAL_ENABLE_WMS_CACHE="NO"),
    ):
        warnings.simplefilter("ignore")
        place = f"WMTS:{address}tiles/{ids['Blobs']}/WMTSCapabilities.xml,layer=change"
        with rasterio.open(place) as file:
            assert file.crs.to_epsg() == 3857
            small = max(1, max(file.shape) // 400)
            drawn = file.read(out_shape=(file.count, file.height // small, file.width // small))
    shown = drawn[3] > 0
    assert 0.005 < shown.mean() < 0.5
    assert np.median(drawn[0][shown].astype(int) - drawn[1][shown]) > 60  # magenta
