"""What is known of the results that are shown, worked out once for each state of their files."""

from __future__ import annotations

import csv
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError

from terralapse.errors import TerralapseError, UnreadableFileError
from terralapse.grid.areas import is_pixel_grid
from terralapse.products.alignment import view
from terralapse.products.histogram import break_days, histogram
from terralapse.serve.composites import Composite, composites_of
from terralapse.serve.layers import Layer, layers_of
from terralapse.serve.options import Options
from terralapse.serve.shelf import Result, Shelf
from terralapse.serve.tiles import Tiler
from terralapse.serve.vectors import Polygons

_MOST_KEPT = 256
_MOST_ROWS = 10_000
_TITLES = {
    "report.html": "Report, one file that works offline",
    "map.pdf": "Map sheet, PDF",
    "map.png": "Map sheet, picture",
    "change.gpkg": "Polygons, GeoPackage with style",
    "change.geojson": "Polygons, GeoJSON",
    "stats.csv": "Areas by zone, CSV",
    "facts.json": "Facts with their evidence",
    "alignment.json": "How the dates were aligned",
    "run.json": "Record of the run",
    "item.json": "STAC item",
    "change.tif": "Change, raster",
    "prob.tif": "Probability, raster",
    "valid.tif": "Why a pixel was not compared, raster",
    "before.tif": "Preview before",
    "after.tif": "Preview after",
}


class NotThereError(Exception):
    """What a client asked for is not there, or not for it; the two are never told apart."""


class Library:
    """The results with their layers, polygons and numbers; safe to use from several threads."""

    def __init__(self, options: Options) -> None:
        self.shelf = Shelf(options.shown)
        self.tiler = Tiler(options.limits.cache, options.limits.underzoom, options.limits.overzoom)
        self.options = options
        self._kept: OrderedDict[tuple[str, str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def result(self, result_id: str) -> Result:
        """By id, or NotThereError."""
        found = self.shelf.get(result_id)
        if found is None:
            raise NotThereError
        return found

    def grid(self, result: Result) -> Affine:
        """The transform of the run's grid."""
        try:
            return Affine(*(float(v) for v in result.run["grid"]["transform"][:6]))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableFileError(
                result.folder / "run.json", "says nothing of the grid", "Run the command again."
            ) from error

    def layers(self, result: Result) -> dict[str, Layer]:
        """By name, the lowest first."""
        return self._once(result, "layers", lambda: layers_of(result))

    def layer(self, result: Result, name: str) -> Layer:
        """By name, or NotThereError."""
        found = self.layers(result).get(name)
        if found is None:
            found = next((c.layer for c in self.composites(result) if c.layer.name == name), None)
        if found is None or not found.path.is_file() or found.path.is_symlink():
            raise NotThereError
        return found

    def composites(self, result: Result) -> list[Composite]:
        """Of a series, in time."""
        return self._once(result, "composites", lambda: composites_of(result))

    def polygons(self, result: Result) -> Polygons:
        """Of a change result, or NotThereError."""
        path = result.file("change.gpkg")
        if path is None:
            raise NotThereError
        return self._once(result, "polygons", lambda: Polygons(path, self.grid(result)))

    def histogram(self, result: Result) -> dict[str, Any]:
        """Compared pixels and area by probability in 201 steps, and the threshold of the run."""
        files = result.files()
        if not {"prob.tif", "valid.tif"} <= files.keys():
            raise NotThereError

        def count() -> dict[str, Any]:
            found = histogram(result.folder)
            return {
                "step": 1 / (len(found.pixels) - 1),
                "threshold": result.run["threshold"],
                "area_unit": result.run["summary"]["area_unit"],
                "pixels": found.pixels.tolist(),
                "area": [round(float(a), 3) for a in found.area],
            }

        return self._once(result, "histogram", count)

    def breaks(self, result: Result) -> dict[str, Any]:
        """Area that broke by day, of a series."""
        if "break_days.tif" not in result.files():
            raise NotThereError

        def count() -> dict[str, Any]:
            found = break_days(result.folder)
            unit = result.run["summary"]["area_unit"]
            area = [round(float(a), 3) for a in found.area]
            return {"area_unit": unit, "days": found.days.tolist(), "area": area}

        return self._once(result, "breaks", count)

    def alignment(self, result: Result) -> dict[str, Any]:
        """What the report says of the alignment, and the whole record."""
        report = result.alignment
        if not report:
            raise NotThereError
        try:
            seen = view(report, (int(result.run["grid"]["height"]), int(result.run["grid"]["width"])))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableFileError(
                result.folder / "alignment.json", "is of another form", "Run the command again."
            ) from error
        rows = [{"name": name, "text": text} for name, text in seen.rows]
        return {"level": seen.level, "verdict": seen.verdict, "rows": rows, "report": report}

    def table(self, result: Result) -> list[dict[str, str]]:
        """The rows of `stats.csv` as they are written."""
        path = result.file("stats.csv")
        if path is None:
            raise NotThereError
        return self._once(result, "table", lambda: _rows(path))

    def _once(self, result: Result, what: str, make: Callable[[], Any]) -> Any:
        key = (result.id, result.stamp, what)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return made

    # --- descriptions ----------------------------------------------------------------------------------
    def brief(self, result: Result) -> dict[str, Any]:
        """A line of the list of results."""
        return {
            "id": result.id,
            "title": result.folder.name,
            "kind": result.kind,
            "finished": result.run.get("finished"),
            "summary": result.run["summary"]["summary"],
            "href": f"/api/results/{result.id}",
        }

    def describe(self, result: Result) -> dict[str, Any]:
        """Everything that a page needs to show a result."""
        run, said = result.run, result.run["summary"]
        base = f"/api/results/{result.id}"
        layers = [self.describe_layer(result, layer) for layer in self.layers(result).values()]
        composites = self._describe_composites(result)
        boxes = [layer["bounds"] for layer in [*layers, *composites["periods"]]]
        sides = (min, min, max, max)
        numbers = {k: v for k, v in said.items() if isinstance(v, int | float)}
        files = result.files()
        links = {"facts": f"{base}/facts", "run": f"{base}/run", "ogc": f"{base}/features"}
        links |= {"wmts": f"/tiles/{result.id}/WMTSCapabilities.xml"}
        links |= {"alignment": f"{base}/alignment"} if "alignment.json" in files else {}
        links |= {"stats": f"{base}/stats"} if "stats.csv" in files else {}
        if "break_days.tif" in files:
            links |= {"breaks": f"{base}/breaks"}
        if result.kind == "change":
            links |= {"histogram": f"{base}/histogram"} if "prob.tif" in files else {}
            if "change.gpkg" in files:
                links |= {"polygons": f"{base}/features/collections/change/items"}
                links |= {"geojson": f"{base}/polygons.geojson"}
        return self.brief(result) | {
            "run_id": run.get("run_id"),
            "sentences": result.facts.get("summary", []),
            "warnings": said.get("warnings", []),
            "area_unit": said.get("area_unit", "m2"),
            "threshold": run.get("threshold"),
            "numbers": numbers,
            "dates": _dates(result),
            "crs": None if _on_pixels(run) else run["grid"].get("crs"),
            "bounds": [side(b[i] for b in boxes) for i, side in enumerate(sides)] if boxes else None,
            "layers": layers,
            "composites": composites,
            "files": [_file(base, name, path) for name, path in files.items()],
            "links": links,
        }

    def _describe_composites(self, result: Result) -> dict[str, Any]:
        """The periods in time, each with its dates and its layer, and the bands that are shown."""
        found = self.composites(result)
        looks = [c.layer.look for c in found[:1]]
        return {
            "shown": looks[0].text if looks and looks[0] else None,
            "periods": [
                self.describe_layer(result, c.layer) | {"period": c.name, "dates": list(c.dates)}
                for c in found
            ],
        }

    def describe_layer(self, result: Result, layer: Layer) -> dict[str, Any]:
        """Where its tiles are, what its values mean, and its legend."""
        grid = self.grid(result)
        extent, (low, high) = self.tiler.extent(layer, grid), self.tiler.zooms(layer, grid)
        url = f"/tiles/{result.id}/{layer.name}/{{z}}/{{x}}/{{y}}"
        form = "webp" if layer.kind == "picture" else "png"
        codes = None if layer.scale is None else f"{url}@2x.png?style=codes&v={layer.stamp}"
        count = 0 if layer.table is None else len(layer.table)
        return {
            "name": layer.name,
            "title": layer.title,
            "kind": layer.kind,
            "bounds": list(extent.bounds),
            "minzoom": low,
            "maxzoom": high,
            "native_zoom": extent.maxzoom,
            "tiles": f"{url}@2x.{form}?v={layer.stamp}",
            "codes": codes,
            "tilejson": f"/tiles/{result.id}/{layer.name}/tilejson.json",
            "scale": None if layer.scale is None else asdict(layer.scale) | {"codes": count},
            "legend": layer.legend,
        }


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row, _ in zip(csv.DictReader(file), range(_MOST_ROWS), strict=False)]
    except (OSError, ValueError, csv.Error) as error:
        raise UnreadableFileError(path, "is damaged", "Run the command again.") from error


def _dates(result: Result) -> dict[str, Any]:
    inputs = result.run.get("inputs", {})
    if result.kind == "series":
        return {"series": sorted(str(i["time"])[:10] for i in inputs if i.get("time"))}
    return {which: inputs.get(which, {}).get("time") for which in ("before", "after")}


def _on_pixels(run: dict[str, Any]) -> bool:
    """Whether a run put images without a place on a grid of one metre a pixel."""
    try:
        return is_pixel_grid(CRS.from_user_input(run["grid"].get("crs")))
    except CRSError:
        return False


def _file(base: str, name: str, path: Path) -> dict[str, Any]:
    return {
        "name": name,
        "title": _TITLES.get(name, name),
        "bytes": path.stat().st_size,
        "href": f"{base}/files/{name}",
    }


def said_of(error: TerralapseError) -> str:
    """A message for a client: the name of a file, never where it lies."""
    return f"{Path(error.what).name}: {error.fault}. {error.hint}"
