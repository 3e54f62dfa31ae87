"""The STAC collection of a job: one item a unit, their files where the units wrote them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.products import stac
from terralapse.products.record import write_json

if TYPE_CHECKING:
    from terralapse.products.merge import Part

FILE = "collection.json"
_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".vrt": "application/x-gdal-vrt",
    ".gpkg": "application/geopackage+sqlite3",
    ".parquet": "application/vnd.apache.parquet",
    ".pmtiles": "application/vnd.pmtiles",
}
_WORLD = [-180.0, -90.0, 180.0, 90.0]


def write_collection(folder: Path, parts: Sequence[Part], name: str, files: Sequence[str]) -> list[str]:
    """Writes `collection.json` and `items/ID.json`.

    Args:
        folder: of the merged products; the units lie in `../units`.
        parts: finished units; one without a CRS, or whose images state no date, has no item.
        name: of the job; the collection's id.
        files: names of the merged files, its assets.

    Returns:
        The names of the files written.
    """
    (folder / "items").mkdir()
    made, boxes, times = [], [], []
    for part in parts:
        source = part.folder / stac.FILE
        if not source.is_file():
            continue
        item = json.loads(source.read_text(encoding="utf-8"))
        if not item["properties"].get("start_datetime"):
            continue  # its images state no date, and the time of computing is none of the ground
        _as_member(item, part, name)
        write_json(item, folder / "items" / f"{part.id}.json")
        made.append(f"items/{part.id}.json")
        boxes.append(item["bbox"])
        times += [t for k in ("start_datetime", "end_datetime") if (t := item["properties"].get(k))]
    collection = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": name,
        "title": name,
        "description": f"Change found by terralapse in {len(made)} windows.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [_around(boxes)]},
            "temporal": {"interval": [[min(times), max(times)] if times else [None, None]]},
        },
        "links": [
            {"rel": "root", "href": "./collection.json", "type": "application/json"},
            *({"rel": "item", "href": f"./{m}", "type": "application/geo+json"} for m in made),
        ],
        "assets": {
            f.replace(".", "_"): {"href": f"./{f}", "type": _TYPES[Path(f).suffix], "roles": ["data"]}
            for f in files
        },
    }
    write_json(collection, folder / FILE)
    return [*made, FILE]


def _as_member(item: dict[str, Any], part: Part, name: str) -> None:
    """Makes the item of a run one of a collection, in place; files are where the unit wrote them."""
    item["id"] = part.id
    item["collection"] = name
    properties = item["properties"]
    for name_of in ("created", "terralapse:run_id"):  # when, and with how many threads
        properties.pop(name_of, None)
    properties["title"] = part.name
    item["links"] = [
        {"rel": "root", "href": "../collection.json", "type": "application/json"},
        {"rel": "collection", "href": "../collection.json", "type": "application/json"},
        {"rel": "parent", "href": "../collection.json", "type": "application/json"},
    ]
    for asset in item["assets"].values():
        asset["href"] = f"../../units/{part.id}/{asset['href'].removeprefix('./')}"


def _around(boxes: Sequence[Sequence[float]]) -> list[float]:
    """West, south, east, north of all; the whole world where one crosses the antimeridian."""
    if not boxes or any(b[0] > b[2] for b in boxes):
        return _WORLD
    return [
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    ]
