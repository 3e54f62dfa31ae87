"""Runs for the tests of questions, and the truth about them, worked out from arrays and pyproj alone: none of
the code that makes facts or answers has a part in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Geod, Transformer
from scipy import ndimage
from shapely.geometry import box as rectangle

from fixtures_eo import write_tif
from product_runs import build_run
from terralapse.grid.cog import write_cog
from terralapse.labels import DAMAGE, SECOND_MAMBA, Reason
from terralapse.products.class_facts import ClassMaps
from terralapse.products.write import write_products

ROWS, COLS = ("north", "", "south"), ("west", "", "east")
NINTHS = ["-".join(filter(None, (r, c))) or "centre" for r in ROWS for c in COLS]
CLASSES = {c.value: c.name for c in SECOND_MAMBA.classes if c.value}
GRADES = {c.value: c.name for c in DAMAGE.classes if c.value}


@dataclass
class Truth:
    """A run: its folder, the changed and compared pixels, the area of a pixel (m2, or 1), the number of the
    ninth of each pixel in the order of NINTHS, and whatever else a run has."""

    folder: Path
    changed: np.ndarray
    compared: np.ndarray
    pixel: float
    ninth: np.ndarray
    more: dict[str, Any] = field(default_factory=dict)

    def area(self, mask: np.ndarray) -> float:
        return float(mask.sum()) * self.pixel

    def inside(self, place: str) -> np.ndarray:
        """Pixels of a ninth (`north-west`) or of a third (`northern third`)."""
        if place.endswith(" third"):
            stem = place.removesuffix("ern third")
            members = [i for i, n in enumerate(NINTHS) if stem in n.split("-")]
            return np.isin(self.ninth, members)
        return self.ninth == NINTHS.index(place)


def flat_ninths(shape: tuple[int, int]) -> np.ndarray:
    """Of a grid whose rows run west to east and whose columns run north to south."""
    rows, cols = (np.floor((np.arange(n) + 0.5) * 3 / n).astype(int) for n in shape)
    return rows[:, None] * 3 + cols[None]


def ground(shape: tuple[int, int], transform: Affine, crs: str) -> tuple[np.ndarray, float]:
    """The ninth of each pixel by azimuth and distance from the middle, and the area of the middle pixel."""
    height, width = shape
    geod, to = Geod(ellps="GRS80"), Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    centre = to.transform(*(transform @ (width / 2, height / 2)))

    def offsets(cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = transform.a * cols + transform.b * rows + transform.c
        y = transform.d * cols + transform.e * rows + transform.f
        lon, lat = to.transform(x, y)
        azimuth, _, length = geod.inv(np.full_like(lon, centre[0]), np.full_like(lat, centre[1]), lon, lat)
        return length * np.sin(np.radians(azimuth)), length * np.cos(np.radians(azimuth))

    edge = np.array([(c, r) for r in (0, height / 2, height) for c in (0, width / 2, width)], float)
    east, north = offsets(edge[:, 0], edge[:, 1])
    half = np.abs(east).max(), np.abs(north).max()
    rows, cols = np.indices(shape) + 0.5
    east, north = offsets(cols.ravel(), rows.ravel())
    across = np.clip(np.floor((east / half[0] + 1) * 1.5), 0, 2).astype(int)
    down = 2 - np.clip(np.floor((north / half[1] + 1) * 1.5), 0, 2).astype(int)
    c, r = width // 2, height // 2
    corners = [transform @ p for p in ((c, r), (c + 1, r), (c + 1, r + 1), (c, r + 1))]
    lon, lat = to.transform(*zip(*corners, strict=True))
    return (down * 3 + across).reshape(shape), abs(geod.polygon_area_perimeter(lon, lat)[0])


def objects(changed: np.ndarray, least_px: float) -> list[np.ndarray]:
    """Masks of the connected patches (over edges) from a size on, the largest first."""
    labels, n = ndimage.label(changed)
    masks = [labels == i for i in range(1, n + 1)]
    return sorted((m for m in masks if m.sum() >= least_px), key=lambda m: -int(m.sum()))


# --- the runs --------------------------------------------------------------------------------------
def joplin_run(folder: Path) -> Truth:
    """The shipped pair at 3 m, by change-vector analysis: real images, real alignment."""
    from terralapse import change

    pair = Path(__file__).resolve().parents[1] / "examples/joplin"
    out = folder / "joplin"
    change(pair / "before", pair / "after", out, model="cva", grid=3.0, pictures=False)
    with rasterio.open(out / "change.tif") as file:
        data, transform, crs = file.read(1), file.transform, str(file.crs)
    ninth, pixel = ground(data.shape, transform, crs)
    return Truth(out, data == 1, data != 255, pixel, ninth)


def zones_run(folder: Path) -> Truth:
    """Blocks of change in UTM with a calibrated model, clouds, and three zones."""
    box = GeoBox((240, 330), Affine(10.0, 0, 400000, 0, -10.0, 4100000), "EPSG:32615")
    changed = np.zeros((240, 330), bool)
    for top, left, height, width in (
        (20, 200, 60, 40),
        (150, 40, 24, 30),
        (200, 300, 12, 12),
        (100, 20, 8, 10),
        (10, 10, 6, 6),
        (120, 160, 30, 20),
        (210, 150, 10, 10),
        (60, 300, 9, 9),
    ):
        changed[top : top + height, left : left + width] = True
    reason = np.zeros(changed.shape, np.uint8)
    reason[:, 320:] = Reason.CLOUD_AFTER
    reason[235:, :] = Reason.NODATA_BEFORE
    edges = {"Harbour": (0, 110), "Old Town": (110, 220), "Mill": (220, 330)}
    shapes = [rectangle(400000 + 10 * a, 4097600, 400000 + 10 * b, 4100000) for a, b in edges.values()]
    path = folder / "zones.gpkg"
    gpd.GeoDataFrame({"name": list(edges)}, geometry=shapes, crs=box.crs).to_file(path)
    settings = {"before": "a.tif", "after": "b.tif", "zones": str(path), "pictures": False}
    run = build_run(folder / "zones", changed, reason=reason, box=box, zones=path, settings=settings)
    write_products(run)
    ninth, pixel = ground(changed.shape, box.affine, "EPSG:32615")
    compared = reason == 0
    return Truth(run.folder, changed & compared, compared, pixel, ninth, {"zones": edges, "reason": reason})


def classes_run(folder: Path) -> Truth:
    """Classes of SECOND in random blocks without a CRS (areas are whole pixels), and graded buildings."""
    rng = np.random.default_rng(5)
    shape = (120, 150)
    before, after, damage = (np.zeros(shape, np.uint8) for _ in range(3))
    for _ in range(40):
        r, c = int(rng.integers(0, 110)), int(rng.integers(0, 140))
        a, b = rng.choice([1, 2, 3, 4, 5], 2, replace=False)  # no playground
        before[r : r + 10, c : c + 10], after[r : r + 10, c : c + 10] = a, b
    for k, (r, c) in enumerate((r, c) for r in range(4, 116, 14) for c in range(4, 140, 17)):
        damage[r : r + 6, c : c + 7] = (1, 1, 2, 4, 3, 1, 4)[k % 7]
    changed = before > 0
    box = GeoBox(shape, Affine(1, 0, 0, 0, -1, 0), None)
    settings = {"before": "a.tif", "after": "b.tif", "pictures": False}
    run = build_run(
        folder / "classes", changed, box=box, classes=ClassMaps(SECOND_MAMBA, damage=True), settings=settings
    )
    for name, layer, scheme in (
        ("classes_before", before, SECOND_MAMBA),
        ("classes_after", after, SECOND_MAMBA),
        ("damage", damage, DAMAGE),
    ):
        write_cog(layer, run.folder / f"{name}.tif", geobox=box, kind="class", nodata=255, scheme=scheme)
    write_products(run)
    every = np.ones(shape, bool)
    more = {"before": before, "after": after, "damage": damage}
    return Truth(run.folder, changed, every, 1.0, flat_ninths(shape), more)


def empty_run(folder: Path) -> Truth:
    """Nothing changed, and no date is known of the second image."""
    run = build_run(folder / "empty", np.zeros((240, 320), bool), settings={"pictures": False})
    write_products(run)
    nothing = np.zeros((240, 320), bool)
    return Truth(run.folder, nothing, ~nothing, 4.0, flat_ninths((240, 320)))


def masked_run(folder: Path) -> Truth:
    """No pixel could be compared."""
    reason = np.full((240, 320), Reason.CLOUD_AFTER, np.uint8)
    run = build_run(
        folder / "masked", np.zeros((240, 320), bool), reason=reason, settings={"pictures": False}
    )
    write_products(run)
    nothing = np.zeros((240, 320), bool)
    return Truth(run.folder, nothing, nothing, 4.0, flat_ninths((240, 320)))


def series_run(folder: Path) -> Truth:
    """NDVI of 40 dates; a block falls in the middle of the series."""
    from terralapse.workflows.series import series

    rng, size = np.random.default_rng(0), 48
    start = np.datetime64("2018-01-03")
    block = (slice(10, 26), slice(12, 40))
    stack = folder / "stack"
    stack.mkdir()
    for i in range(40):
        day = start + np.timedelta64(33 * i, "D")
        phase = 2 * np.pi * 33 * i / 365.25
        ndvi = 0.6 + 0.1 * np.cos(phase) + rng.normal(0, 0.012, (size, size))
        if i >= 24:
            ndvi[block] -= 0.4
        data = np.stack([np.full((size, size), 0.08), 0.08 * (1 + ndvi) / (1 - ndvi)]).astype(np.float32)
        name = f"scene_{str(day).replace('-', '')}.tif"
        here = Affine(10, 0, 500000, 0, -10, 5000000)
        write_tif(stack / name, data, descriptions=("red", "nir"), nodata=np.nan, transform=here)
    out = folder / "series"
    series(stack, out, threads=1)
    with rasterio.open(out / "break_date.tif") as file:
        dates = file.read(1)
    with rasterio.open(out / "magnitude.tif") as file:
        size_of = file.read(1)
    ninth, pixel = ground(dates.shape, Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32632")
    more = {"years": dates // 10000, "magnitude": size_of}
    return Truth(out, dates > 0, np.ones(dates.shape, bool), pixel, ninth, more)


# --- checks ----------------------------------------------------------------------------------------
Check = Callable[[Any], bool]
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


def said(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(n.replace(",", "")) for n in _NUMBER.findall(text)]


def number(wanted: float, rel: float = 1e-3, shown: float | None = None) -> Check:
    """The answer's value is a number, and the text shows it (as `shown`, by default in the same unit)."""

    def check(answer: Any) -> bool:
        value = answer.value
        if not answer.answered or isinstance(value, bool) or not isinstance(value, int | float):
            return False
        near = abs(value - wanted) <= max(rel * abs(wanted), 1e-9)
        target = wanted if shown is None else shown
        told = any(abs(n - target) <= max((rel + 5e-3) * abs(target), 1e-9) for n in said(answer.text))
        return near and (told or wanted == 0)

    return check


def area(wanted: float, rel: float = 1e-3) -> Check:
    """An area in m2 that the text shows in the unit that suits it."""
    scale = 1e6 if wanted >= 1e6 else 1e4 if wanted >= 1e4 else 1.0
    return number(wanted, rel, wanted / scale)


def share(wanted: float, rel: float = 1e-3) -> Check:
    """A share 0..1 that the text shows in percent."""
    return number(wanted, rel, 100 * wanted)


def is_(wanted: Any) -> Check:
    """The answer's value is this; a truth value is told by the first word too."""

    def check(answer: Any) -> bool:
        good = answer.answered and type(answer.value) is type(wanted) and answer.value == wanted
        if isinstance(wanted, bool):
            good = good and answer.text.startswith("Yes" if wanted else "No")
        return good

    return check


def names(wanted: set[str]) -> Check:
    """The answer's value is this set of names, all of them in the text."""
    return lambda a: a.answered and set(a.value) == wanted and all(n in a.text for n in wanted)


def cannot(reason: str) -> Check:
    """ "I cannot tell", for this reason, without a value or a fact."""
    return lambda a: (
        not a.answered
        and a.reason == reason
        and a.value is None
        and a.text.startswith("I cannot tell from this")
    )


def contains(*parts: str) -> Check:
    """An answer whose text holds all of these."""
    return lambda a: a.answered and all(p in a.text for p in parts)
