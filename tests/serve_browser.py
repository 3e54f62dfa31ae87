"""A server and a browser for tests of the page, and what they do and look at there."""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from PIL import Image

from serve_clients import living
from terralapse.serve.options import Limits, Options

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")

# No name can be looked up, so that a page that needs another host fails; WebGL is drawn by the processor.
FLAGS = (
    "--no-sandbox",
    "--enable-unsafe-swiftshader",
    "--use-angle=swiftshader",
    "--ignore-gpu-blocklist",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WAIT = 60_000  # ms; a machine that does much else draws slowly
MAP = "#map canvas"


@contextmanager
def served(*results: Path, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    limits = options.pop("limits", Limits(rate=1e6, burst=10**6))
    looker = options.pop("looker", None)
    with living(Options(results, limits=limits, **options), looker) as address:
        yield address


def settled(page: Any) -> None:
    """Waits until the map has drawn everything."""
    page.evaluate(
        "() => new Promise((done) => { const { map } = window.terralapse; map.once('idle', done); "
        "map.triggerRepaint(); })"
    )


def becomes(page: Any, selector: str, start: str) -> None:
    """Waits until a text starts so."""
    from playwright.sync_api import expect

    wanted = re.compile("^" + re.escape(start))
    expect(page.locator(selector)).to_have_text(wanted, timeout=WAIT)


def colour(page: Any, lng: float, lat: float) -> np.ndarray:
    """The colour of a place on the map, as it is on the screen; the middle of 5 x 5 pixels."""
    settled(page)
    point = page.evaluate(f"() => window.terralapse.map.project([{lng}, {lat}])")
    box = page.locator("#map").bounding_box()
    clip = {"x": box["x"] + point["x"] - 2, "y": box["y"] + point["y"] - 2, "width": 5, "height": 5}
    picture = np.asarray(Image.open(BytesIO(page.screenshot(clip=clip))).convert("RGB")).astype(int)
    return np.median(picture.reshape(-1, 3), axis=0)


def inside(feature: dict[str, Any]) -> tuple[float, float]:
    return feature["properties"]["lon"], feature["properties"]["lat"]


def keep(page: Any, name: str) -> None:
    """For people to look at, where TERRALAPSE_SCREENSHOTS names a folder."""
    folder = os.environ.get("TERRALAPSE_SCREENSHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


def wait_for(address: str, seconds: float = 60) -> None:
    """Until a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


def serious(page: Any) -> list[str]:
    """What axe finds on a page that keeps people out."""
    from axe_playwright_python import sync_playwright as axe

    found = axe.Axe().run(page).response["violations"]
    return [v["id"] for v in found if v["impact"] in ("serious", "critical")]


def tab(page: Any, name: str) -> None:
    """Opens one of the tabs beside the map."""
    page.click(f"#tab-{name}")
    page.wait_for_selector(f"#tab-{name}[aria-selected=true]")


def outline(top: float, left: float, bottom: float, right: float) -> dict[str, Any]:
    """Rows and columns of `Blobs` as a polygon in degrees."""
    ring = shapely.get_coordinates(shapely.box(left, top, right, bottom))
    x, y = 400000 + 2 * ring[:, 0], 4100000 - 2 * ring[:, 1]
    lon, lat = pyproj.Transformer.from_crs(32615, 4326, always_xy=True).transform(x, y)
    return {"type": "Polygon", "coordinates": [np.column_stack([lon, lat]).round(7).tolist()]}
