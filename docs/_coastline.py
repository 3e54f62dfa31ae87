"""Makes the coastline that the map of `terralapse serve` has as its ground, from countries of Natural Earth.

pip download geopandas==0.14.4 --no-deps -d DIR
unzip DIR/geopandas-0.14.4-py3-none-any.whl 'geopandas/datasets/naturalearth_lowres/*' -d DIR
python docs/_coastline.py DIR/geopandas/datasets/naturalearth_lowres/naturalearth_lowres.shp
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyogrio
import shapely

TARGET = Path(__file__).parents[1] / "src/terralapse/serve/static/vendor/natural-earth-110m/coastline.json"
STEP = 0.01  # degrees: about a kilometre, a tenth of what the lines leave out
LEAST = 0.01  # square degrees: smaller rings are slits between countries that do not quite meet


def coast(countries: np.ndarray) -> list[list[list[float]]]:
    """Lines of longitude and latitude: the edges of all land, without those that only the map has."""
    land = shapely.union_all(shapely.set_precision(countries, STEP), grid_size=STEP)
    lines = []
    for ring in shapely.get_rings(shapely.get_parts(land)):
        if shapely.Polygon(ring).area < LEAST:
            continue
        lines += [line.tolist() for line in cut(shapely.get_coordinates(ring).round(2))]
    return lines


def cut(points: np.ndarray) -> list[np.ndarray]:
    """A closed ring without its edges along the antimeridian and the south pole."""
    drawn = ~(_both(np.abs(points[:, 0]) >= 180) | _both(points[:, 1] <= -90))
    if drawn.all():
        return [points]
    start = int(np.argmin(drawn))  # the ring is turned so that it begins at an edge that is left out
    points = np.vstack([points[start:-1], points[: start + 1]])
    drawn = np.roll(drawn, -start)
    return [piece for piece in np.split(points, np.flatnonzero(~drawn) + 1) if len(piece) > 1]


def _both(ends: np.ndarray) -> np.ndarray:
    return ends[:-1] & ends[1:]


def main(source: Path) -> None:
    countries = pyogrio.read_dataframe(source).geometry.to_numpy()
    geometry = {"type": "MultiLineString", "coordinates": coast(countries)}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(geometry, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
