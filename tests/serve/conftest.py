"""Results of every kind on one shelf, and clients of a server over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from fastapi.testclient import TestClient
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

import serve_browser
from fixtures_eo import write_tif
from product_runs import build_run
from terralapse.labels import Reason
from terralapse.products.write import write_products
from terralapse.serve.app import create_app
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits, Options
from terralapse.workflows.series import series

BASE = "http://127.0.0.1:8800"


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Blobs` (a change), `pixels` (a change without a CRS) and `clearing` (a series). Not to be changed."""
    folder = tmp_path_factory.mktemp("shelf")
    reason = np.zeros((240, 320), np.uint8)
    reason[:, :20] = Reason.NODATA_BEFORE
    write_products(build_run(folder / "Blobs", reason=reason, settings={"geojson": True}))
    bare = GeoBox((240, 320), Affine.identity(), None)
    write_products(build_run(folder / "pixels", box=bare, run_id="fedcba987654"))
    stack = tmp_path_factory.mktemp("stack")
    rng = np.random.default_rng(0)
    for i in range(30):
        day = np.datetime64("2018-01-03") + i * 33
        ndvi = 0.6 + rng.normal(0, 0.015, (48, 48))
        if i >= 18:
            ndvi[10:30, 10:40] -= 0.4
        red = np.full((48, 48), 0.08)
        data = np.stack([red, red * (1 + ndvi) / (1 - ndvi)]).astype(np.float32)
        name = f"scene_{str(day).replace('-', '')}.tif"
        place = from_origin(500000, 5000000, 10, 10)
        write_tif(stack / name, data, descriptions=("red", "nir"), nodata=np.nan, transform=place)
    series(stack, folder / "clearing", threads=1)
    return folder


Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def serve(shelf: Path) -> Serve:
    """A client of a new server over the shelf, or over what is given."""

    def make(*results: Path, **options: object) -> TestClient:
        limits = options.pop("limits", Limits(rate=1e6, burst=10**6))
        chosen = Options(results or (shelf,), limits=limits, **options)  # type: ignore[arg-type]
        return TestClient(create_app(chosen), base_url=BASE)

    return make


@pytest.fixture(scope="session")
def client(serve: Serve) -> TestClient:
    """A client of a server on the loopback."""
    return serve()


@pytest.fixture(scope="session")
def ids(client: TestClient) -> dict[str, str]:
    """Ids by the names of the folders."""
    return {r["title"]: r["id"] for r in client.get("/api/results").json()["results"]}


@pytest.fixture(scope="session")
def looker() -> Iterator[Looker]:
    """One process that looks at images, for all servers of the tests."""
    limits = Limits()
    made = Looker(limits.look, limits.look_memory, limits.pixels, None)
    yield made
    made.close()


@pytest.fixture
def desk(tmp_path: Path, looker: Looker) -> Iterator[TestClient]:
    """A client of a server that takes uploads into `work` of the test's folder."""
    (tmp_path / "work").mkdir()
    options = Options(workspace=tmp_path / "work", uploads=True, limits=Limits(rate=1e6, burst=10**6))
    with TestClient(create_app(options, looker), base_url=BASE) as found:
        yield found


@pytest.fixture
def kept(tmp_path: Path, serve: Serve, shelf: Path) -> Iterator[TestClient]:
    """A client of a server that keeps what people say, in the folder of the test."""
    with serve(shelf, reviews=tmp_path) as client:
        yield client


@pytest.fixture
def review(ids: dict[str, str]) -> str:
    """Where what is said of `Blobs` goes."""
    return f"/api/results/{ids['Blobs']}/review"


# --- a browser --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def kept_address(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a server over the shelf that keeps what people say."""
    with serve_browser.served(shelf, reviews=tmp_path_factory.mktemp("kept")) as found:
        yield found


@pytest.fixture(scope="module")
def address(shelf: Path) -> Iterator[str]:
    with serve_browser.served(shelf) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=serve_browser.CHROMIUM, args=list(serve_browser.FLAGS)
        )
        yield launched
        launched.close()


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Starts servers of a test's own, which end after its pages do."""
    with ExitStack() as stack:
        yield lambda *results, **options: stack.enter_context(serve_browser.served(*results, **options))


@pytest.fixture
def open_page(browser: Any, server: object) -> Iterator[Callable[..., Any]]:
    """Opens an address and waits until everything is drawn. At the end no page may have complained, and none
    may have asked another host for anything."""
    contexts: list[Any] = []
    troubles: list[str] = []
    hosts: set[str] = set()

    def make(url: str, width: int = 1440, height: int = 900, ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(serve_browser.WAIT)
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: troubles.append(str(e)))
        page.on("request", lambda r: hosts.add(r.url.split("/")[2]))
        page.goto(url)
        if ready:
            page.wait_for_selector("html[data-ready=true]", state="attached")
        return page

    make.troubles = troubles  # type: ignore[attr-defined]
    yield make
    for context in contexts:
        context.close()
    assert troubles == []
    assert {h.partition(":")[0] for h in hosts} <= {"127.0.0.1"}
