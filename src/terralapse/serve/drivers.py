"""Takes from GDAL, in this process and before its first use, every driver that a server has no need of.

A file is opened with the one driver that its content asks for in any case; this is the second lock. What is
gone cannot be reached by a crafted file either: no driver that speaks to the network is left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

# VRT, MEM and Memory open no file here: rasterio warps by a VRT, and traces polygons in memory.
ALLOWED = frozenset({"GTiff", "COG", "PNG", "JPEG", "JP2OpenJPEG", "GPKG", "GeoJSON", "VRT", "MEM", "Memory"})
# rasterio and pyogrio carry a GDAL of their own each, with other drivers.
_PACKAGES = ("rasterio", "pyogrio")
_ASK = """
import json, sys
from terralapse.serve.drivers import loaded
print(json.dumps({package: sorted(loaded(package)) for package in sys.argv[1:]}))
"""
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
_SETTINGS = {
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_VRT_ENABLE_RAWRASTERBAND": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "none-is-allowed",
    "GDAL_HTTP_PROXY": "http://127.0.0.1:9",  # nobody serves the discard port
}


def restrict(*, packages: tuple[str, ...] = _PACKAGES, side_files: bool = False) -> None:
    """Unloads all drivers but `ALLOWED` from the GDAL of rasterio and of pyogrio, for this whole process.

    Args:
        packages: one of the two, in a process that never imports the other.
        side_files: read what lies beside an image (world files, masks), as the command line does. What is
            shown is what was written, without.

    Raises:
        RuntimeError: GDAL was used before, so that it cannot be restricted any more.
    """
    os.environ.update(_SETTINGS | ({} if side_files else _ALONE))
    known = _known(packages)
    for package in packages:
        os.environ["GDAL_SKIP"] = ",".join(sorted(set(known[package]) - ALLOWED))
        left = loaded(package)
        if left - ALLOWED:
            raise RuntimeError(f"{package} keeps the drivers {', '.join(sorted(left - ALLOWED))}")
    del os.environ["GDAL_SKIP"]


def loaded(package: str) -> set[str]:
    """The drivers that the GDAL of `rasterio` or `pyogrio` has in this process."""
    if package == "rasterio":
        import rasterio

        with rasterio.Env() as env:
            return set(env.drivers())
    import pyogrio

    return set(pyogrio.list_drivers())


def _known(packages: tuple[str, ...]) -> dict[str, list[str]]:
    """Asked of another process, because asking loads them."""
    clean = {k: v for k, v in os.environ.items() if k != "GDAL_SKIP"}
    done = subprocess.run([sys.executable, "-c", _ASK, *packages], capture_output=True, check=True, env=clean)
    return json.loads(done.stdout)
