"""`report.html`: one file that works offline and loads nothing from anywhere.

The page is the template with autoescaping on; what is marked safe is the style sheet and the script of this
package and the drawings of `charts`. A content security policy allows that one script by its hash and no
connection at all, so that text from file names, tags or models cannot act even if it got through.
"""

from __future__ import annotations

import base64
import hashlib
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from terralapse._version import __version__
from terralapse.grid.areas import Compass, has_place, on_ground
from terralapse.grid.scene import Window
from terralapse.labels import VALIDITY, Reason
from terralapse.products import charts, imagery, units
from terralapse.products.class_view import class_views
from terralapse.products.facts import Facts
from terralapse.products.findings import Findings
from terralapse.products.graticule import metres_per_pixel
from terralapse.products.mapsheet import outlines
from terralapse.products.record import command, software

_LARGEST = 12
_THUMB = 184
_OUTLINES_WITH_ID = 500
_LATTICE = 9
_BARS = 16
_DOWNLOADS = (
    ("change.gpkg", "Change polygons", "GeoPackage, styled for QGIS"),
    ("change.tif", "Change", "Cloud-optimised GeoTIFF, 0 no change, 1 change"),
    ("prob.tif", "Probability of change", "Cloud-optimised GeoTIFF, 0 to 1"),
    ("valid.tif", "Why a pixel is masked", "Cloud-optimised GeoTIFF, coded"),
    ("stats.csv", "Areas by zone", "CSV"),
    ("facts.json", "Facts with their evidence", "JSON with a schema"),
    ("alignment.json", "How the dates align", "JSON"),
    ("run.json", "Record of the run", "JSON"),
    ("map.pdf", "Map sheet for print", "PDF, A4"),
    ("map.png", "Map sheet", "PNG, 200 dpi"),
)


def write_report(findings: Findings, facts: Facts, path: Path) -> None:
    """Writes the report; its links are relative to the folder that it lies in."""
    environment = Environment(
        loader=PackageLoader("terralapse.products", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("report.html").render(
        **_context(findings, facts), css=Markup(_asset("report.css")), js=Markup(script), js_hash=digest
    )
    path.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return resources.files("terralapse.products").joinpath("templates", name).read_text(encoding="utf-8")


def _context(f: Findings, facts: Facts) -> dict[str, Any]:
    run = f.run
    return {
        "version": __version__,
        "run_id": run.run_id,
        "made": units.date(run.started),
        "before": _date_card(f, 0),
        "after": _date_card(f, 1),
        "interval": facts["date.interval"].display if "date.interval" in facts else "",
        "facts": facts,
        "summary": facts.summary,
        "cited": {fact_id: i for i, fact_id in enumerate(_order(facts), start=1)},
        "tiles": _tiles(f, facts),
        "warnings": [n.text for n in run.warnings],
        "viewer": _viewer(f),
        "ramp": imagery.RAMP,
        "change_colour": imagery.CHANGE_COLOUR,
        "largest": _largest(f),
        "polygons": len(f.polygons),
        "charts": _charts(f),
        "zones": _zones(f),
        "zone_kind": f.zones.kind,
        "alignment": f.alignment,
        "shifts": charts.shifts(f.alignment, run.pair.shape) if f.alignment.arrows else None,
        "sure": [
            facts[k].sentence for k in facts.facts if k.startswith("confidence.") or k == "area.expected"
        ],
        "calibrated": f.calibration is not None,
        "masks": _masks(f),
        "card": run.card,
        "method": _method(f, facts),
        "settings": _settings(run.settings),
        "software": software(),
        "timings": run.timings,
        "command": command(run),
        "downloads": _downloads(f),
        "georeferenced": f.unit != "px",
        "units": units,
    }


# --- words and numbers -----------------------------------------------------------------------------
def _date_card(f: Findings, date: int) -> dict[str, Any]:
    info = (f.run.pair.before, f.run.pair.after)[date]
    return {
        "word": ("Before", "After")[date],
        "date": units.date(info.time),
        "name": info.name,
        "uri": info.uri,
        "sensor": info.sensor.title,
        "bands": ", ".join(b.name for b in info.bands),
        "crs": str(info.geobox.crs) if has_place(info.geobox) else "none",
        "size": f"{info.geobox.shape.x:,} × {info.geobox.shape.y:,} px",
        "nodata": info.nodata,
        "clouds": info.cloud_mask,
        "level": info.level,
        "notes": [n.text for n in info.notes],
        "sources": f.sources[date],
    }


def _order(facts: Facts) -> list[str]:
    """All facts, those that the summary cites first, in the order of citation."""
    cited = [fact_id for sentence in facts.summary for fact_id in sentence["facts"]]
    return list(dict.fromkeys([*cited, *facts.facts]))


def _tiles(f: Findings, facts: Facts) -> list[tuple[str, str, str, str]]:
    """Label, value, remark, fact that it shows."""
    found = f.alignment.residual_px
    tiles = [
        (
            "Changed",
            facts["area.changed"].display,
            f"{facts['share.changed'].display} of what was compared",
            "area.changed",
        ),
        ("Objects", f"{len(f.polygons):,}", f"of {facts['object.minimum'].display} or more", "object.count"),
        (
            "Compared",
            facts["area.observed"].display,
            f"of {facts['area.considered'].display}",
            "area.observed",
        ),
        ("Masked", facts["share.masked"].display, "could not be compared", "share.masked"),
        (
            "Alignment",
            "not known" if found is None else f"{units.number(found, 2)} px",
            "between the dates, as compared",
            "alignment.residual" if found is not None else "alignment.verdict",
        ),
    ]
    if len(f.polygons):
        row = f.polygons.iloc[0]
        tiles.insert(
            2, ("Largest", facts["object.1.area"].display, f"in the {row['location']}", "object.1.area")
        )
    return tiles


def _masks(f: Findings) -> list[dict[str, Any]]:
    """Compared and masked areas, each with its share of the area of interest."""
    total = f.tally.considered_area
    rows = []
    for reason in Reason:
        area = float(f.tally.area[reason])
        if reason is Reason.OUTSIDE_AOI or (area <= 0 and reason is not Reason.VALID):
            continue
        c = VALIDITY.by_value(reason)
        rows.append(
            {
                "title": c.title,
                "colour": c.colour,
                "valid": reason is Reason.VALID,
                "area": units.area(area, f.unit),
                "share": area / total if total else 0.0,
                "percent": units.percent(area / total if total else math.nan),
            }
        )
    return rows


def _zones(f: Findings) -> list[dict[str, Any]]:
    """Rows for the table of the zones; of squares only the most changed."""
    table = f.stats
    if f.zones.kind == "cell":
        table = table.sort_values(f"changed_{f.unit}", ascending=False, kind="stable").head(_BARS)
    return [
        {
            "name": str(row["name"]),
            "observed": units.area(row[f"observed_{f.unit}"], f.unit),
            "changed": units.area(row[f"changed_{f.unit}"], f.unit),
            "percent": units.percent(row["changed_percent"] / 100),
            "polygons": f"{row['polygons']:,}",
            "masked": units.area(row[f"masked_{f.unit}"], f.unit),
        }
        for row in table.to_dict("records")
    ]


def _method(f: Findings, facts: Facts) -> list[tuple[str, str]]:
    run = f.run
    engine = [
        f"{k} {v}" for k, v in run.scene.items() if isinstance(v, int | float | str) and k != "threshold"
    ]
    bands = ", ".join(b.name for b in run.pair.bands)
    return [
        ("Model", f"{run.card.slug}: {run.card.title}"),
        ("Why this one", str(run.settings.get("choice", ""))),
        ("Bands compared", bands),
        ("Common grid", f"{facts['grid.crs'].display}, {facts['grid.resolution'].display} a pixel"),
        ("Threshold", f"probability {run.threshold:.2f}"),
        ("Smallest object", facts["object.minimum"].display),
        ("Engine", ", ".join(engine)),
    ]


def _downloads(f: Findings) -> list[tuple[str, str, str]]:
    """File, title, kind; the maps of classes after those of change."""
    maps = {} if f.run.classes is None else f.run.classes.rasters
    more = [(name, title, "Cloud-optimised GeoTIFF, class ids") for name, (_, title) in maps.items()]
    return [*_DOWNLOADS[:4], *more, *_DOWNLOADS[4:]]


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(k, str(v)) for k, v in settings.items() if v is not None and k != "choice"]


# --- drawings --------------------------------------------------------------------------------------
def _charts(f: Findings) -> dict[str, Any]:
    percent = f.stats["changed_percent"].to_numpy()
    if f.zones.kind == "cell":
        where = charts.squares(percent, f.zones.cells, f.zones.names)
    else:
        ranked = f.stats.sort_values("changed_percent", ascending=False, kind="stable").head(_BARS)
        most = max(float(np.nan_to_num(percent).max()), 1e-9)
        where = charts.bars(
            [
                (
                    str(row["name"]),
                    float(np.nan_to_num(row["changed_percent"])) / most,
                    units.percent(row["changed_percent"] / 100),
                    units.area(row[f"changed_{f.unit}"], f.unit),
                )
                for row in ranked.to_dict("records")
            ],
            "Share that changed, by zone",
        )
    sums: dict[str, float] = {}
    for name, area in zip(f.polygons["location"], f.areas, strict=True):
        sums[name] = sums.get(name, 0.0) + float(area)
    whole = sum(sums.values()) or 1.0
    return {
        "sizes": charts.sizes(f.areas, f.unit) if len(f.areas) else None,
        "probabilities": charts.probabilities(f.tally.histogram, f.run.threshold),
        "where": where,
        "rose": charts.rose({k: v / whole for k, v in sums.items()}) if sums else None,
    }


# --- pictures --------------------------------------------------------------------------------------
def _viewer(f: Findings) -> dict[str, Any]:
    pictures, layers = f.pictures, f.tally.layers
    height, width = pictures.before.shape[:2]
    masked = imagery.mask_layer(layers.reason)
    across, _ = metres_per_pixel(f.run.pair.geobox)
    step = f.run.pair.shape[1] / width
    paths, rest = _paths(f, step)
    return {
        "width": width,
        "height": height,
        "before": _picture(pictures.before, pictures.before_alpha),
        "after": _picture(pictures.after, pictures.after_alpha),
        "change": imagery.data_uri(imagery.change_layer(layers.changed), quality=None),
        "probability": imagery.data_uri(imagery.probability_layer(layers.probability), quality=60),
        "masked": imagery.data_uri(masked, quality=None) if masked[..., 3].any() else None,
        "classes": _classes(f),
        "paths": paths,
        "rest": rest,
        "look": pictures.look.text,
        "data": {
            "width": width,
            "height": height,
            "metres": across * step,
            "unit": f.length_unit,
            "north": round(Compass(f.run.pair.geobox).picture_north(), 2),
            "lattice": _lattice(f),
        },
    }


def _classes(f: Findings) -> list[dict[str, Any]]:
    """The maps of classes as layers, each with the classes that occur in it."""
    run = f.run
    if run.classes is None:
        return []
    return [
        {
            "name": view.name,
            "title": view.title,
            "picture": imagery.data_uri(view.picture, quality=None),
            "legend": view.legend,
        }
        for view in class_views(run.folder, run.classes, run.pair.geobox, f.pictures.geobox)
    ]


def _picture(picture: np.ndarray, alpha: np.ndarray) -> str:
    return imagery.data_uri(picture if alpha.all() else np.dstack([picture, alpha]), quality=78)


def _paths(f: Findings, step: float) -> tuple[list[tuple[int, str]], str]:
    """Outlines in preview pixels: one path each for the largest, one for all others together."""
    shapes = shapely.transform(outlines(f), lambda c: c / step)
    shapes = shapely.simplify(shapes, 0.25, preserve_topology=True)
    texts = [_path(shape) for shape in shapes]
    ids = f.polygons["id"].to_numpy()
    own = [(int(ids[i]), t) for i, t in enumerate(texts[:_OUTLINES_WITH_ID])]
    return own, "".join(texts[_OUTLINES_WITH_ID:])


def _path(shape: shapely.Geometry) -> str:
    text = ""
    for ring in shapely.get_rings(np.array([shape], dtype=object)):
        points = shapely.get_coordinates(ring)[:-1].round(1)
        text += "M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z"
    return text


def _lattice(f: Findings) -> list[list[list[float]]] | None:
    """Longitude and latitude at 9 x 9 places of the picture, for the reading under the pointer."""
    if f.unit == "px":
        return None
    height, width = f.run.pair.shape
    cols, rows = np.meshgrid(np.linspace(0, width, _LATTICE), np.linspace(0, height, _LATTICE))
    lon, lat = Compass(f.run.pair.geobox).lonlat(*on_ground(f.run.pair.geobox.affine, cols, rows))
    lon = np.degrees(np.unwrap(np.unwrap(np.radians(lon), axis=0), axis=1))
    return np.stack([lon, lat], axis=-1).round(7).tolist()


def _largest(f: Findings) -> list[dict[str, Any]]:
    step = f.run.pair.shape[1] / f.pictures.geobox.shape.x
    drawn = outlines(f)
    rows = []
    for i, row in enumerate(f.polygons.head(_LARGEST).to_dict("records")):
        window = _around(row)
        before, after = imagery.thumbnails(f.run.pair, f.pictures, window, _THUMB)
        scale = _THUMB / window.width
        local = shapely.transform(drawn[i], lambda c, w=window, s=scale: (c - (w.col, w.row)) * s)
        rows.append(
            {
                "id": int(row["id"]),
                "area": units.area(float(f.areas[i]), f.unit),
                "probability": float(row["mean_prob"]),
                "location": row["location"],
                "where": units.coordinates(row["lon"], row["lat"]),
                "before": imagery.data_uri(before, quality=72),
                "after": imagery.data_uri(after, quality=72),
                "path": _path(local),
                "box": [round(v / step, 1) for v in (window.col, window.row, window.width, window.height)],
            }
        )
    return rows


def _around(row: dict[Any, Any]) -> Window:
    """A square around an object that shows what is next to it."""
    side = max(int(max(row["height"], row["width"]) * 1.7), 48)
    centre_row, centre_col = row["row"] + row["height"] // 2, row["col"] + row["width"] // 2
    return Window(int(centre_row - side // 2), int(centre_col - side // 2), side, side)
