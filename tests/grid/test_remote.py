"""Files behind http(s): what is fetched, how often, at the same time, and what happens when it goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio

from file_server import FileServer, serve_files
from fixtures_eo import write_jp2, write_tif
from terralapse.errors import FileMissingError, TerralapseError, TruncatedFileError, UnreadableFileError
from terralapse.grid import _gdal, _http, _ranges
from terralapse.grid._ranges import CHUNK, HEAD, RemoteFile
from terralapse.grid.inspect import inspect
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Window

SIDE, TILE = 768, 128


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing kept from the test before, and no long waits between attempts."""
    monkeypatch.setattr(_http, "BACKOFF_S", 0.001)
    _ranges._STORE.clear()
    yield
    _ranges._STORE.clear()


@pytest.fixture
def cog(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).integers(1, 255, (3, SIDE, SIDE)).astype(np.uint8)
    path = tmp_path / "a_20210601.tif"
    return write_tif(path, data, driver="COG", blocksize=TILE, compress="deflate", overviews="none")


@pytest.fixture
def random_bytes(tmp_path: Path) -> bytes:
    raw = np.random.default_rng(1).bytes(60 * CHUNK + 17)
    (tmp_path / "raw.bin").write_bytes(raw)
    return raw


def window_of(path: Path, window: Window) -> np.ndarray:
    with rasterio.open(path) as source:
        return source.read(window=((window.row, window.row + window.height), window_cols(window)))


def window_cols(window: Window) -> tuple[int, int]:
    return window.col, window.col + window.width


# --- what is fetched -------------------------------------------------------------------------------
def test_a_window_costs_its_blocks_once_and_all_at_the_same_time(cog: Path) -> None:
    window = Window(TILE + 5, 2 * TILE + 7, 3 * TILE - 20, 2 * TILE - 20)  # 3 x 2 blocks
    per_block = cog.stat().st_size / (SIDE // TILE) ** 2
    with serve_files(cog.parent, delay=0.02) as server, open_scene(f"{server.address}/{cog.name}") as scene:
        before, server.most_open = server.sent, 0
        block = scene.read(window)
        fetched, asked = server.sent - before, len(server.asks)
        assert (block.data == window_of(cog, window)).all()
        assert 0.9 * 6 * per_block < fetched <= 1.3 * 6 * per_block
        assert server.most_open > 1
        assert (scene.read(window).data == block.data).all()
        assert len(server.asks) == asked  # all of it is still there
    ranges = [(a.start, a.end) for a in server.asks if a.start]
    assert len(ranges) == len(set(ranges))


def test_all_of_a_file_from_many_threads_is_fetched_once(cog: Path) -> None:
    windows = [Window(r, c, 150, 150) for r in range(0, SIDE, 150) for c in range(0, SIDE, 150)]
    with (
        serve_files(cog.parent, delay=0.005) as server,
        open_scene(f"{server.address}/{cog.name}") as scene,
        open_scene(cog) as local,
        ThreadPoolExecutor(6) as pool,
    ):
        for found, window in zip(pool.map(scene.read, windows), windows, strict=True):
            wanted = local.read(window)
            assert np.array_equal(found.data, wanted.data, equal_nan=True)
            assert (found.mask == wanted.mask).all()
        assert server.sent <= 1.1 * cog.stat().st_size
        assert server.most_open > 1


def test_opening_a_cog_costs_one_request_for_its_header(cog: Path) -> None:
    with serve_files(cog.parent) as server:
        raw = write_tif(cog.with_name("f.tif"), np.ones((1, 64, 64), np.float32), driver="COG")
        with open_scene(f"{server.address}/{raw.name}"):
            assert len(server.asks) == 1
        assert server.asks[0].sent <= HEAD


@pytest.mark.parametrize("layout", ["strips", "bands", "overviews", "mask", "jp2", "sparse"])
def test_every_layout_reads_as_the_local_file(tmp_path: Path, layout: str) -> None:
    data = np.random.default_rng(2).integers(1, 4000, (3, 300, 280)).astype(np.uint16)
    path = tmp_path / "a.tif"
    if layout == "strips":
        write_tif(path, data, compress="lzw")
    elif layout == "bands":
        write_tif(path, data, tiled=True, blockxsize=64, blockysize=64, interleave="band", compress="zstd")
    elif layout == "overviews":
        write_tif(path, data, driver="COG", blocksize=128)
    elif layout == "jp2":
        path = tmp_path / "a.jp2"
        write_jp2(path, data, 10)
    elif layout == "sparse":
        write_tif(path, data[:, :60], height=300, tiled=True, blockxsize=64, blockysize=64, sparse_ok=True)
    else:
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_tif(path, data, tiled=True, blockxsize=128, blockysize=128)
            with rasterio.open(path, "r+") as written:
                written.write_mask(np.arange(300)[:, None] > np.arange(280))
    with serve_files(tmp_path) as server, open_scene(path) as local:
        with open_scene(f"{server.address}/{path.name}") as scene:
            for decimation in (1, 2, 4):
                for window in (Window(0, 0, 300, 280), Window(64, 128, 96, 64)):
                    found, wanted = (s.read(window, decimation=decimation) for s in (scene, local))
                    assert np.array_equal(found.data, wanted.data, equal_nan=True)
                    assert (found.mask == wanted.mask).all()
        assert server.sent <= 1.3 * path.stat().st_size + 3 * HEAD


def test_the_bytes_that_are_kept_are_bounded(
    tmp_path: Path, random_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ranges, "BUDGET", 10 * CHUNK)
    with serve_files(tmp_path) as server:
        file = RemoteFile(f"{server.address}/raw.bin")
        with file.held([(20 * CHUNK, 50 * CHUNK)]):  # more than the budget, for as long as it is needed
            asked = len(server.asks)
            assert file.at(20 * CHUNK, 30 * CHUNK) == random_bytes[20 * CHUNK : 50 * CHUNK]
            assert len(server.asks) == asked
            assert _ranges._STORE.size <= 10 * CHUNK
        assert file.at(20 * CHUNK, 5) == random_bytes[20 * CHUNK : 20 * CHUNK + 5]
        assert len(server.asks) == asked + 1
        assert file.at(len(random_bytes) - 3, 100) == random_bytes[-3:]
        assert file.at(len(random_bytes), 1) == b""


def test_threads_that_want_the_same_bytes_share_a_request(tmp_path: Path, random_bytes: bytes) -> None:
    with serve_files(tmp_path, delay=0.05) as server:
        file = RemoteFile(f"{server.address}/raw.bin")
        ready = threading.Barrier(5)

        def read(_: int) -> bytes:
            ready.wait()
            return file.at(30 * CHUNK, 2 * CHUNK)

        with ThreadPoolExecutor(5) as pool:
            assert set(pool.map(read, range(5))) == {random_bytes[30 * CHUNK : 32 * CHUNK]}
        assert len([a for a in server.asks if a.start]) == 1


def test_long_runs_are_several_requests_at_once(
    tmp_path: Path, random_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ranges, "RUN", 8 * CHUNK)
    with serve_files(tmp_path, delay=0.02) as server:
        file = RemoteFile(f"{server.address}/raw.bin")
        assert file.at(0, 10**9) == random_bytes
        assert 2 < server.most_open <= _http.CONNECTIONS
        assert server.sent == len(random_bytes)  # the first bytes came when it was opened


# --- faults ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("fault", [500, 503, 429, "cut"])
def test_what_passes_is_tried_again(cog: Path, fault: int | str) -> None:
    with serve_files(cog.parent) as server, open_scene(f"{server.address}/{cog.name}") as scene:
        server.faults.extend([fault, fault])
        window = Window(300, 300, 20, 20)
        assert (scene.read(window).data == window_of(cog, window)).all()
        assert not server.faults


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (500, UnreadableFileError, "500 Internal Server Error, 5 times"),
        (403, UnreadableFileError, "403 Forbidden"),
        (404, FileMissingError, "does not exist"),
        ("cut", UnreadableFileError, "the connection broke"),
    ],
)
def test_what_stays_is_one_error_that_names_the_address(
    cog: Path, fault: int | str, error: type[TerralapseError], says: str
) -> None:
    with serve_files(cog.parent) as server, open_scene(f"{server.address}/{cog.name}") as scene:
        server.faults.extend([fault] * 500)
        with pytest.raises(error, match=says) as raised:
            scene.read(Window(300, 300, 20, 20))
        assert raised.value.what == f"{server.address}/{cog.name}"
        server.faults.clear()
        window = Window(300, 300, 20, 20)
        assert (scene.read(window).data == window_of(cog, window)).all()  # a failure is not kept


def test_a_file_that_changes_is_noticed(cog: Path) -> None:
    with serve_files(cog.parent) as server, open_scene(f"{server.address}/{cog.name}") as scene:
        server.etag = '"another"'
        with pytest.raises(UnreadableFileError, match="changed on the server while it was read"):
            scene.read(Window(0, 0, 700, 700))
        with open_scene(f"{server.address}/{cog.name}") as again:  # opened anew, it is simply that file
            assert again.read(Window(0, 0, 700, 700)).data.any()
        with pytest.raises(UnreadableFileError, match="changed on the server"):
            scene.read(Window(0, 0, 700, 700))


def test_a_server_without_ranges(cog: Path) -> None:
    with serve_files(cog.parent, ranged=False) as server:
        with pytest.raises(UnreadableFileError, match=r"gives only the whole file.*Download"):
            open_scene(f"{server.address}/{cog.name}")
        assert server.sent < cog.stat().st_size / 2 or server.asks[0].status == 200


def test_a_server_without_tags_is_read_all_the_same(cog: Path) -> None:
    with serve_files(cog.parent, etag=None) as server:
        for value in (7, 9):  # the same size: nothing says that it is another file
            path = write_tif(cog.with_name("b.tif"), np.full((1, 256, 256), value, np.uint8))
            with open_scene(f"{server.address}/{path.name}") as scene:
                assert (scene.read(Window(0, 0, 256, 256)).data == value).all()


def test_a_block_beyond_the_end_is_named_when_the_file_is_opened(cog: Path) -> None:
    whole = cog.read_bytes()
    cog.write_bytes(whole[: len(whole) * 2 // 3])
    with serve_files(cog.parent) as server:
        with pytest.raises(TruncatedFileError, match=r"ends before band 1, block") as raised:
            open_scene(f"{server.address}/{cog.name}")
        assert raised.value.what == f"{server.address}/{cog.name}"


def test_a_block_that_cannot_be_decoded_names_the_address(cog: Path) -> None:
    whole = bytearray(cog.read_bytes())
    whole[-60_000:-20_000] = b"\xff" * 40_000
    cog.write_bytes(whole)
    with serve_files(cog.parent) as server:
        with pytest.raises(TruncatedFileError, match=r"band \d, block \(5, 5\) cannot be decoded") as raised:
            open_scene(f"{server.address}/{cog.name}")  # its corners are looked at
        assert raised.value.what == f"{server.address}/{cog.name}"
        assert not _gdal._REMOTE_OPEN
        assert "terralapse-remote-file" not in str(raised.value)
        assert "vsi" not in str(raised.value)


def test_handles_of_threads_that_ended_serve_the_next(cog: Path) -> None:
    with serve_files(cog.parent) as server:
        with open_scene(f"{server.address}/{cog.name}") as scene:
            for _ in range(5):
                with ThreadPoolExecutor(1) as pool:
                    pool.submit(scene.read, Window(0, 0, 10, 10)).result()
            assert len(_gdal._REMOTE_OPEN) == 2  # of this thread and of the others, one after another
        assert not _gdal._REMOTE_OPEN


def test_inspecting_an_address(cog: Path) -> None:
    with serve_files(cog.parent) as server:
        assert inspect(f"{server.address}/{cog.name}").layout == f"COG, tiles of {TILE} x {TILE}"


def test_the_server_that_tests_use_counts(cog: Path) -> None:
    server: FileServer
    with serve_files(cog.parent) as server:
        answer = _http.get(f"{server.address}/{cog.name}", 10, 30, most=20)
    assert answer.body == cog.read_bytes()[10:30]
    assert [(a.start, a.end, a.status, a.sent) for a in server.asks] == [(10, 30, 206, 20)]
