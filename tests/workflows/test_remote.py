"""A run over http(s): the result of the local files, fetched about once, or one error and nothing left."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

import terralapse
from file_server import serve_files
from fixtures_eo import write_tif
from terralapse.errors import TerralapseError, UnreadableFileError
from terralapse.grid import _http, _ranges

SIDE = 512


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two dates of four bands, fields with one that changed, as cloud-optimised files of small blocks."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(5)
    first = rng.uniform(600, 3200, (4, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    first += rng.normal(0, 60, first.shape)
    second = first + rng.normal(0, 30, first.shape)
    second[:, 200:260, 300:380] = 4200
    paths = []
    for name, data in (("S2_20210601.tif", first), ("S2_20230601.tif", second)):
        path = write_tif(
            folder / name,
            data.astype(np.uint16),
            driver="COG",
            blocksize=128,
            crs="EPSG:32632",
            transform=from_origin(600000, 5200000, 10, 10),
            nodata=0,
            descriptions=("blue", "green", "red", "nir"),
        )
        paths.append(path)
    return paths[0], paths[1]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "BACKOFF_S", 0.001)
    _ranges._STORE.clear()


def rasters(folder: Path) -> dict[str, np.ndarray]:
    out = {}
    for name in ("prob", "valid", "change"):
        with rasterio.open(folder / f"{name}.tif") as source:
            out[name] = source.read()
    return out


def test_a_run_over_http_gives_what_the_local_files_give(pair: tuple[Path, Path], tmp_path: Path) -> None:
    terralapse.change(*pair, tmp_path / "local", pictures=False, tile=128)
    with serve_files(pair[0].parent, delay=0.005) as server:
        addresses = [f"{server.address}/{path.name}" for path in pair]
        terralapse.change(*addresses, tmp_path / "remote", pictures=False, tile=128)
    local, remote = rasters(tmp_path / "local"), rasters(tmp_path / "remote")
    for name, values in local.items():
        assert values.tobytes() == remote[name].tobytes()
    assert (local["change"] == 1).sum() > 1000
    one, two = (json.loads((tmp_path / n / "alignment.json").read_text()) for n in ("local", "remote"))
    assert one["coregistration"] == two["coregistration"]
    # Alignment, sample, prediction and products read the scene four times; the server gives it about once.
    assert server.sent <= 1.3 * sum(path.stat().st_size for path in pair)
    assert server.most_open > 1
    ranges = [(a.path, a.start) for a in server.asks if a.method == "GET"]
    assert len(ranges) == len(set(ranges))


@pytest.mark.parametrize("fault", [500, "cut", 404])
def test_a_server_that_fails_leaves_one_error_and_nothing_else(
    pair: tuple[Path, Path], tmp_path: Path, fault: int | str
) -> None:
    with serve_files(pair[0].parent) as server:
        server.faults.extend(["ok"] * 6 + [fault] * 10_000)
        addresses = [f"{server.address}/{path.name}" for path in pair]
        with pytest.raises(TerralapseError) as raised:
            terralapse.change(*addresses, tmp_path / "out", pictures=False)
    assert raised.value.what in addresses
    assert not list(tmp_path.iterdir())


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.tif"
    with pytest.raises(UnreadableFileError, match="cannot be reached") as raised:
        terralapse.change(address, address, tmp_path / "out")
    assert raised.value.what == address
    assert not list(tmp_path.iterdir())
