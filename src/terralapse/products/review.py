"""What people said of the polygons of a run: as a GeoPackage, and as labels to train with."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.features import rasterize
from rasterio.windows import Window as RioWindow

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.grid._gdal import gdal_env
from terralapse.grid.areas import crs_of, geodesic_measures, has_place
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Window
from terralapse.labels import BINARY_CHANGE, DAMAGE, ClassScheme, Reason
from terralapse.products.area_sample import grid_of
from terralapse.products.polygons import LAYER, area_unit, whereabouts
from terralapse.products.record import write_json

VERDICTS = ("accepted", "rejected")
ADDED, REMOVED = "added", "removed"  # of objects that people have drawn where the run has none
GRADES = ("none", "minor", "major", "destroyed")
IGNORE = 255  # as in the data sets: pixels that nobody has annotated
Background = Literal["ignore", "unchanged"]
_STRIP = 512
_Shapes = list[tuple[shapely.Geometry, int]]


@dataclass(frozen=True)
class Reviewed:
    """What was last said of a polygon. `verdict` and `grade` are None where nobody has given one; `geometry`,
    in the CRS of the run, is there when it was drawn anew. `at` is in ISO 8601.

    A polygon below 0 is no polygon of the run: somebody has added it. Its verdict is `ADDED`, or `REMOVED`
    when it was taken back; `class_after` is what it became, a class of the run's scheme.
    """

    polygon: int
    verdict: str | None
    grade: str | None
    comment: str
    by: str
    at: str
    version: int
    geometry: shapely.Geometry | None = field(default=None, compare=False)
    class_after: str | None = None

    @property
    def stands(self) -> bool:
        """Whether it is an object that was added and not taken back."""
        return self.polygon < 0 and self.verdict == ADDED


# --- as polygons -------------------------------------------------------------------------------------
def polygons_of(folder: Path) -> gpd.GeoDataFrame:
    """The polygons of a run, by id.

    Raises:
        FileMissingError, UnreadableFileError: `change.gpkg` is missing or damaged.
    """
    path = folder / "change.gpkg"
    if not path.is_file():
        raise FileMissingError(path, "is missing, so there is nothing to review", "Run `terralapse change`.")
    try:
        return pyogrio.read_dataframe(path, layer=LAYER).set_index("id", drop=False)
    except (DataSourceError, DataLayerError) as error:
        raise UnreadableFileError(path, "is damaged", "Run `terralapse change` again.") from error


def write_reviewed(
    folder: Path, reviews: Sequence[Reviewed], history: Iterable[Mapping[str, Any]], target: Path
) -> None:
    """A GeoPackage with the layer `reviewed`, a feature for each polygon that somebody has looked at or
    added, and the table `history` with every edit.

    A polygon that was drawn anew has its new outline and the area of that; `redrawn` says so. One that was
    added has an id below 0, `added`, no probability, and its class in `class_after`.

    Args:
        folder: of the run.
        reviews: the last word on each polygon.
        history: every edit, the oldest first, as rows of plain values.
        target: the file; replaced when it exists.
    """
    box, frame = grid_of(folder), polygons_of(folder)
    known = [r for r in reviews if r.polygon in frame.index]
    known += [r for r in reviews if r.stands]
    made = _with_added(frame, [r for r in known if r.stands], box).loc[[r.polygon for r in known]].copy()
    for column in ("verdict", "grade", "class_after", "comment", "by", "at"):
        name = {"by": "reviewer", "at": "reviewed_at"}.get(column, column)
        made[name] = pd.Series([getattr(r, column) or "" for r in known], index=made.index, dtype="str")
    made["edits"] = np.array([r.version for r in known], np.int64)
    made["redrawn"] = np.array([r.geometry is not None and not r.stands for r in known], bool)
    made["added"] = np.array([r.stands for r in known], bool)
    shapes = made.geometry.to_numpy().copy()
    for i, r in enumerate(known):
        if r.geometry is not None:
            shapes[i] = r.geometry
    made = made.set_geometry(gpd.GeoSeries(shapes, index=made.index, crs=frame.crs))
    drawn = np.array([r.geometry is not None for r in known], bool)
    if drawn.any():
        step = 64 * abs(box.affine.a)
        sizes, lengths = geodesic_measures(np.asarray(shapes[drawn]), crs_of(box), step)
        made.loc[drawn, f"area_{area_unit(box)}"] = sizes.round(2)
        made.loc[drawn, f"perimeter_{'m' if has_place(box) else 'px'}"] = lengths.round(2)
    target.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")
        pyogrio.write_dataframe(
            made, target, layer="reviewed", driver="GPKG", geometry_type="MultiPolygon", promote_to_multi=True
        )
    rows = pd.DataFrame([dict(h) for h in history])
    if len(rows):
        pyogrio.write_dataframe(rows, target, layer="history", driver="GPKG", append=True)


def _with_added(frame: gpd.GeoDataFrame, added: Sequence[Reviewed], box: GeoBox) -> gpd.GeoDataFrame:
    """The polygons of a run and those that were added, with what can be told of these from their outlines."""
    if not added:
        return frame
    shapes = np.array([r.geometry for r in added], dtype=object)
    drawn = shapely.transform(shapes, _to_pixels(box))
    left, top, right, bottom = np.rint(shapely.bounds(drawn)).astype(np.int64).T
    numbers = np.array([r.polygon for r in added], np.int64)
    rows = gpd.GeoDataFrame(
        {
            "id": numbers,
            "class": pd.Series(["change"] * len(added), dtype="str"),
            "pixels": np.rint(shapely.area(drawn)).astype(np.int64),
            "shape": pd.Series(["drawn"] * len(added), dtype="str"),
            "row": top, "col": left, "height": bottom - top, "width": right - left,
            "mean_prob": np.full(len(added), np.nan),
            "max_prob": np.full(len(added), np.nan),
        },
        geometry=shapes,
        crs=frame.crs,
    )  # fmt: skip
    for name, values in whereabouts(rows, box).items():
        rows[name] = values
    rows = rows.set_index("id", drop=False)
    kept = [c for c in frame.columns if c in rows]
    if not len(frame):
        return gpd.GeoDataFrame(rows[kept], geometry="geometry", crs=frame.crs)
    return gpd.GeoDataFrame(pd.concat([frame, rows[kept]]), geometry="geometry", crs=frame.crs)


# --- as labels ---------------------------------------------------------------------------------------
def write_labels(
    folder: Path,
    reviews: Sequence[Reviewed],
    target: Path,
    *,
    name: str = "scene",
    background: Background = "ignore",
) -> dict[str, Any]:
    """A folder that `terralapse.data.folders.BiTemporal` reads: `before/NAME.png`, `after/NAME.png` and
    `label/NAME.tif`, with `record.json` that says what was decided by whom.

    An accepted polygon, and one that was added, is 1; a rejected one, and what lies outside of one that was
    drawn anew, is 0; all else is `IGNORE`. With `background` `unchanged`, pixels that the map shows as
    unchanged are 0 too: only a person who has looked at all of the map can say so. Pixels that were not
    compared are always `IGNORE`.

    A result holds pictures of both dates, not its inputs. Where they are smaller than its grid the labels are
    made on their grid, and `full/label.tif` has those of the run's. Where damage was graded,
    `damage/NAME.tif` holds grades of `terralapse.labels.DAMAGE`.

    Returns:
        the record.

    Raises:
        FileMissingError: the run has no pictures or no polygons.
        SettingError: no accepted or added polygon covers a pixel, so that the readers would take 255 for
            change.
    """
    box = grid_of(folder)
    for date in ("before", "after"):
        if not (folder / f"{date}.tif").is_file():
            raise FileMissingError(
                folder / f"{date}.tif", "is missing, so there is no image to label", "Run it with pictures."
            )
    change, damage = _shapes(folder, reviews)
    height, width = _pictures(folder, target, name)
    small = GeoBox(
        (height, width), box.affine * Affine.scale(box.shape.x / width, box.shape.y / height), box.crs
    )
    label = np.concatenate([b for _, b in _burn(folder, change, small, background)])
    if not (label == 1).any():
        raise SettingError(
            "labels",
            "would hold no changed pixel: no polygon has been accepted or added that covers one",
            "Accept or add a polygon first.",
        )
    _write(label, target / f"label/{name}.tif", small, BINARY_CHANGE)
    files = [f"before/{name}.png", f"after/{name}.png", f"label/{name}.tif"]
    if (height, width) != tuple(box.shape):
        _write(_burn(folder, change, box, background), target / "full/label.tif", box, BINARY_CHANGE)
        files.append("full/label.tif")
    if damage:
        grades = np.concatenate([b for _, b in _burn(folder, damage, small, "ignore")])
        _write(grades, target / f"damage/{name}.tif", small, DAMAGE)
        files.append(f"damage/{name}.tif")
    found = _record(folder, reviews, box, label, background, files)
    write_json(found, target / "record.json")
    return found


def _record(
    folder: Path,
    reviews: Sequence[Reviewed],
    box: GeoBox,
    label: np.ndarray,
    background: Background,
    files: list[str],
) -> dict[str, Any]:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    counts = {str(v): int((label == v).sum()) for v in (0, 1, IGNORE)}
    told = [
        {
            k: getattr(r, k)
            for k in ("polygon", "verdict", "grade", "class_after", "comment", "by", "at", "version")
        }
        | {"redrawn": r.geometry is not None and r.polygon > 0}
        for r in reviews
    ]
    dates = {d: (run.get("inputs", {}).get(d) or {}).get("time") for d in ("before", "after")}
    return {
        "schema": "terralapse-labels",
        "version": 1,
        "run_id": run.get("run_id"),
        "reader": "terralapse.data.folders.BiTemporal",
        "values": {"0": "no change", "1": "change", str(IGNORE): "not annotated"},
        "background": background,
        "pixels": counts,
        "grid": {"height": box.shape.y, "width": box.shape.x, "crs": box.crs and str(box.crs)},
        "label_grid": {"height": label.shape[0], "width": label.shape[1]},
        "dates": dates,
        "files": files,
        "reviews": told,
    }


def _shapes(folder: Path, reviews: Sequence[Reviewed]) -> tuple[_Shapes, _Shapes]:
    """What is burnt for change and for damage, in this order, so that what people accepted is on top."""
    frame, said = polygons_of(folder), {r.polygon: r for r in reviews}
    unknown, refused, accepted, graded = [], [], [], []
    for number, shape in zip(frame["id"], frame.geometry, strict=True):
        r = said.get(int(number))
        if r is None or r.verdict is None:
            unknown.append((shape, IGNORE))
            continue
        if r.verdict == "rejected":
            refused.append((shape, 0))
            continue
        if r.geometry is not None:
            refused.append((shape, 0))
        accepted.append((r.geometry or shape, 1))
        if r.grade is not None:
            graded.append((r.geometry or shape, 1 + GRADES.index(r.grade)))
    for r in reviews:
        if r.stands and r.geometry is not None:
            accepted.append((r.geometry, 1))
            if r.grade is not None:
                graded.append((r.geometry, 1 + GRADES.index(r.grade)))
    return [*refused, *unknown, *accepted], graded


def _burn(
    folder: Path, shapes: _Shapes, box: GeoBox, background: Background
) -> Iterator[tuple[Window, np.ndarray]]:
    """Strips of the label on a grid of the run's extent, from the top down."""
    height, width = box.shape.y, box.shape.x
    outlines = np.array([s for s, _ in shapes], dtype=object)
    edges = shapely.bounds(shapely.transform(outlines, _to_pixels(box))) if len(shapes) else np.empty((0, 4))
    with (
        gdal_env(),
        rasterio.open(folder / "change.tif", driver="GTiff") as change,
        rasterio.open(folder / "valid.tif", driver="GTiff") as valid,
    ):
        tall, wide = change.height / height, change.width / width
        for top in range(0, height, _STRIP):
            rows = min(_STRIP, height - top)
            source = RioWindow(0, top * tall, width * wide, rows * tall)  # type: ignore[call-arg]
            reason = valid.read(1, window=source, out_shape=(rows, width))
            made = np.full((rows, width), IGNORE, np.uint8)
            if background == "unchanged":
                made[change.read(1, window=source, out_shape=(rows, width)) == 0] = 0
            here = [
                s for s, e in zip(shapes, edges, strict=True) if e[3] >= top - 1 and e[1] <= top + rows + 1
            ]
            if here:
                move = box.affine * Affine.translation(0, top)
                rasterize(here, out=made, transform=move)
            made[reason != Reason.VALID] = IGNORE
            yield Window(top, 0, rows, width), made


def _to_pixels(box: GeoBox) -> Any:
    back = ~box.affine

    def move(xy: np.ndarray) -> np.ndarray:
        return np.column_stack(
            [
                back.a * xy[:, 0] + back.b * xy[:, 1] + back.c,
                back.d * xy[:, 0] + back.e * xy[:, 1] + back.f,
            ]
        )

    return move


def _write(
    pixels: np.ndarray | Iterable[tuple[Window, np.ndarray]], path: Path, box: GeoBox, scheme: ClassScheme
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cog(pixels, path, geobox=box, kind="class", dtype="uint8", nodata=IGNORE, scheme=scheme)


def _pictures(folder: Path, target: Path, name: str) -> tuple[int, int]:
    """Both dates as PNG; their height and width."""
    size = (0, 0)
    for date in ("before", "after"):
        with gdal_env(), rasterio.open(folder / f"{date}.tif", driver="GTiff") as file:
            picture = np.moveaxis(file.read([1, 2, 3]), 0, -1)
        (target / date).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target / f"{date}/{name}.png")
        size = picture.shape[:2]
    return size
