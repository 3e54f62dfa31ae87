"""`run.json`: what is needed to judge a run, and to do it again."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

from terralapse._version import __version__
from terralapse.grid.scene import SceneInfo, Source
from terralapse.products.findings import Findings
from terralapse.products.run import ChangeRun

VERSION = 1
_PACKAGES = ("torch", "numpy", "rasterio", "scipy", "shapely", "pyproj", "geopandas", "odc-geo")
# How each setting is written on the command line; those that are not named here are not its options.
_FLAGS = {
    "model": "--model",
    "bands": "--bands",
    "threshold": "--threshold",
    "grid": "--grid",
    "aoi": "--aoi",
    "zones": "--zones",
    "min_area": "--min-area",
    "date_before": "--date-before",
    "date_after": "--date-after",
    "before_map": "--before-map",
    "assume_crs": "--assume-crs",
    "s2_offset": "--s2-offset",
    "precision": "--precision",
    "engine": "--engine",
}
_DEFAULTS = {"model": "auto", "grid": "coarser", "precision": "auto", "engine": "auto"}


def record(findings: Findings, summary: dict[str, Any], seconds: dict[str, float]) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        findings: of the run.
        summary: what `write.summary` says of it.
        seconds: of the stages of the products, to be added to those of the run.
    """
    run = findings.run
    box = run.pair.geobox
    finished = datetime.now(UTC)
    return plain(
        {
            "version": VERSION,
            "run_id": run.run_id,
            "status": "complete",
            "started": run.started,
            "finished": finished,
            "summary": summary,
            "command": command(run),
            "inputs": {
                "before": _scene(run.pair.before, findings.sources[0]),
                "after": _scene(run.pair.after, findings.sources[1]),
            },
            "grid": {
                "crs": None if box.crs is None else str(box.crs),
                "transform": list(box.affine[:6]),
                "height": box.shape.y,
                "width": box.shape.x,
                "bands": [b.name for b in run.pair.bands],
                "unit": run.pair.unit,
            },
            "model": run.card.as_dict(),
            "state": run.state,
            "threshold": run.threshold,
            "settings": run.settings,
            "engine": run.scene,
            "warnings": [asdict(n) for n in run.warnings],
            "notes": [asdict(n) for n in run.notes],
            "software": software(),
            "seconds": run.timings | seconds,
            "peak_memory_bytes": peak_memory(),
            "products": products_of(run.folder),
        }
    )


def _scene(info: SceneInfo, sources: list[Source]) -> dict[str, Any]:
    return {
        "name": info.name,
        "uri": info.uri,
        "sensor": info.sensor.slug,
        "time": info.time,
        "bands": [asdict(b) for b in info.bands],
        "unit": info.unit,
        "dtype": info.dtype,
        "nodata": info.nodata,
        "cloud_mask": info.cloud_mask,
        "level": info.level,
        "crs": None if info.geobox.crs is None else str(info.geobox.crs),
        "transform": list(info.geobox.affine[:6]),
        "height": info.geobox.shape.y,
        "width": info.geobox.shape.x,
        "sources": [asdict(s) for s in sources],
        "notes": [asdict(n) for n in info.notes],
    }


def command(run: ChangeRun) -> str:
    """The command line that does this run again; the output folder is left to the reader."""
    words = ["terralapse", "change", str(run.settings.get("before", run.pair.before.uri))]
    words.append(str(run.settings.get("after", run.pair.after.uri)))
    for name, flag in _FLAGS.items():
        value = run.settings.get(name)
        if value is None or value == _DEFAULTS.get(name):
            continue
        words += [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    if run.settings.get("coregister") is False:
        words.append("--no-coregister")
    if run.settings.get("normalise"):
        words.append("--normalise")
    if run.settings.get("pixel_grid"):
        words.append("--no-crs")
    for name in ("rectangles", "geojson"):
        if run.settings.get(name):
            words.append(f"--{name}")
    return shlex.join([*words, "-o", "OUT"])


def software() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"terralapse": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {
        "gdal": rasterio.__gdal_version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def peak_memory() -> int:
    """The most memory that this process has held, bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def products_of(folder: Path) -> list[dict[str, Any]]:
    """Name, size and hash of each file written so far, without what is hidden."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"):
        name = path.relative_to(folder).as_posix()
        if name.startswith("."):
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append({"file": name, "bytes": path.stat().st_size, "sha256": digest})
    return found


def plain(value: Any) -> Any:
    """JSON-ready: dates as ISO 8601, paths as text, numpy as Python, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(content: dict[str, Any], path: Path) -> None:
    """UTF-8, two spaces, in the order given."""
    text = json.dumps(plain(content), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
