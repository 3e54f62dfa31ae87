"""Two dates of a made place that a job can be run over, its plan, and what the job promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rasterio.transform import from_origin
from scipy.ndimage import gaussian_filter

from fixtures_eo import write_tif

CRS, PIXEL, LEFT, TOP = "EPSG:32632", 10.0, 600_320.0, 5_199_360.0
NAMES = ("blue", "green", "red", "nir")


def make_dates(folder: Path, rows: int = 128, cols: int = 128, seed: int = 7) -> tuple[Path, Path]:
    """Before and after on a grid whose corner is a corner of cells of 64 pixels; a square of 20 x 30 pixels
    over the middle of the image changes, and lies in four cells when the image is two by two of them."""
    rng = np.random.default_rng(seed)
    fields = rng.uniform(600, 3200, (4, rows // 8, cols // 8)).repeat(8, 1).repeat(8, 2)
    first = gaussian_filter(fields, (0, 1, 1)) + rng.normal(0, 60, fields.shape)
    second = first + rng.normal(0, 20, first.shape)
    r, c = rows // 2, cols // 2
    second[:, r - 10 : r + 10, c - 15 : c + 15] = np.array([6200, 6000, 5900, 6100])[:, None, None]
    where = {"crs": CRS, "transform": from_origin(LEFT, TOP, PIXEL, PIXEL), "nodata": 0}
    paths = []
    for day, values in (("20210601", first), ("20230601", second)):
        path = folder / f"S2_{day}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tif(path, values.clip(1).astype("uint16"), descriptions=NAMES, **where)
        paths.append(path)
    return paths[0], paths[1]


def write_plan(path: Path, source: str, **more: str) -> Path:
    """A plan on a grid of cells of 64 pixels with the plainest detector."""
    keys = {
        "name": "valley",
        "source": source,
        "grid": f'{{crs: "{CRS}", resolution: {PIXEL:g}, cell: 64, margin: 8}}',
        "settings": "{model: cva, coregister: false, device: cpu}",
        "retry": "{attempts: 3, base_s: 0.01, most_s: 0.05}",
    } | more
    path.write_text("".join(f"{k}: {v}\n" for k, v in keys.items() if v), encoding="utf-8")
    return path


def results(folder: Path) -> dict[str, bytes]:
    """The bytes that a job promises: the rasters of its units, and everything merged."""
    kept = [p for p in folder.glob("units/*/*.tif") if p.stem in ("change", "prob", "valid")]
    kept += [p for p in (folder / "merged").rglob("*") if p.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in kept}
