"""Styles that QGIS and SLD readers open by themselves: colours, names and order of the class schemes."""

from __future__ import annotations

import sqlite3
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from terralapse.labels import ClassScheme
from terralapse.products.imagery import CHANGE_COLOUR, RAMP, rgb

_RENDERER = {"band": "1", "opacity": "1", "alphaBand": "-1"}
_HEAD = '<!DOCTYPE qgis PUBLIC "http://mrcc.com/qgis.dtd" "SYSTEM">\n'
_STYLE_TABLE = """
CREATE TABLE layer_styles (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
  f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), update_time DATETIME
)"""


def _text(root: ET.Element) -> str:
    ET.indent(root, " ")
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def _root() -> ET.Element:
    return ET.Element("qgis", version="3.28.0", styleCategories="Symbology")


def class_style(scheme: ClassScheme, clear: tuple[int, ...] = (), *, polygons: bool = False) -> str:
    """QML of a paletted raster; the values in `clear` are drawn transparent.

    With `polygons` it holds the style of the change polygons as well: QGIS looks for `change.qml` both for
    `change.tif` and for `change.gpkg`, and takes from it what suits the layer.
    """
    root = _root()
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", _RENDERER | {"type": "paletted"})
    palette = ET.SubElement(renderer, "colorPalette")
    for c in scheme.classes:
        entry = {"value": str(c.value), "color": c.colour, "label": c.title}
        ET.SubElement(palette, "paletteEntry", entry | {"alpha": "0" if c.value in clear else "255"})
    if polygons:
        root.append(_polygon_renderer())
    return _text(root)


def probability_style(steps: int) -> str:
    """QML of a probability stored as 0..`steps`: the ramp of the report, transparent at nothing."""
    root = _root()
    attributes = {"type": "singlebandpseudocolor", "classificationMin": "0", "classificationMax": str(steps)}
    renderer = ET.SubElement(ET.SubElement(root, "pipe"), "rasterrenderer", _RENDERER | attributes)
    shader = ET.SubElement(ET.SubElement(renderer, "rastershader"), "colorrampshader")
    shader.attrib.update({"colorRampType": "INTERPOLATED", "minimumValue": "0", "maximumValue": str(steps)})
    for i, colour in enumerate(RAMP):
        share = i / (len(RAMP) - 1)
        item = {"value": f"{share * steps:g}", "color": colour, "label": f"{share:.1f}"}
        ET.SubElement(shader, "item", item | {"alpha": "0" if i == 0 else "255"})
    return _text(root)


def polygon_style() -> str:
    """QML of the change polygons: a bright outline over a light halo, with hardly any fill."""
    root = _root()
    root.append(_polygon_renderer())
    return _text(root)


def _polygon_renderer() -> ET.Element:
    red, green, blue = rgb(CHANGE_COLOUR)
    renderer = ET.Element("renderer-v2", type="singleSymbol", enableorderby="0", forceraster="0")
    symbols = ET.SubElement(renderer, "symbols")
    symbol = ET.SubElement(symbols, "symbol", type="fill", name="0", alpha="1", clip_to_extent="1")
    for fill, line, width in (
        ("0,0,0,0", "255,255,255,200", "0.9"),
        (f"{red},{green},{blue},40", f"{red},{green},{blue},255", "0.4"),
    ):
        layer = ET.SubElement(symbol, "layer", attrib={"class": "SimpleFill", "enabled": "1", "pass": "0"})
        options = ET.SubElement(layer, "Option", type="Map")
        for name, value in (
            ("color", fill),
            ("outline_color", line),
            ("outline_style", "solid"),
            ("outline_width", width),
            ("outline_width_unit", "MM"),
            ("style", "solid"),
        ):
            ET.SubElement(options, "Option", type="QString", name=name, value=value)
    return renderer


def polygon_sld(layer: str) -> str:
    """The same for servers and other programs."""
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<StyledLayerDescriptor version="1.0.0" xmlns="http://www.opengis.net/sld"
 xmlns:ogc="http://www.opengis.net/ogc" xmlns:xlink="http://www.w3.org/1999/xlink">
 <NamedLayer><Name>{layer}</Name><UserStyle><Title>Change</Title><FeatureTypeStyle><Rule>
  <PolygonSymbolizer>
   <Fill><CssParameter name="fill">{CHANGE_COLOUR}</CssParameter>
    <CssParameter name="fill-opacity">0.16</CssParameter></Fill>
   <Stroke><CssParameter name="stroke">{CHANGE_COLOUR}</CssParameter>
    <CssParameter name="stroke-width">1.5</CssParameter></Stroke>
  </PolygonSymbolizer>
 </Rule></FeatureTypeStyle></UserStyle></NamedLayer>
</StyledLayerDescriptor>
"""


def store_style(geopackage: Path, layer: str, when: datetime) -> None:
    """Puts the polygon style into the GeoPackage, where QGIS looks for the default of a layer."""
    stamp = f"{when:%Y-%m-%dT%H:%M:%S}.000Z"
    connection = sqlite3.connect(geopackage)
    try:
        with connection:
            connection.execute(_STYLE_TABLE)
            (geometry,) = connection.execute(
                "SELECT column_name FROM gpkg_geometry_columns WHERE table_name = ?", (layer,)
            ).fetchone()
            connection.execute(
                "INSERT INTO layer_styles VALUES (1, '', '', ?, ?, 'terralapse', ?, ?, 1, ?, '', NULL, ?)",
                (layer, geometry, polygon_style(), polygon_sld(layer), "Change polygons", stamp),
            )
            connection.execute(
                "INSERT INTO gpkg_contents"
                " (table_name, data_type, identifier, description, last_change, srs_id)"
                " VALUES ('layer_styles', 'attributes', 'layer_styles', '', ?, 0)",
                (stamp,),
            )
    finally:
        connection.close()
