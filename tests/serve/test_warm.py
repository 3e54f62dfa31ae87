"""What the first visitor asks for is there before, and a tile is drawn once however many ask for it."""

from __future__ import annotations

import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from terralapse.errors import UnreadableFileError
from terralapse.serve import tiles as drawing
from terralapse.serve.app import STATIC
from terralapse.serve.library import Library
from terralapse.serve.options import Options
from terralapse.serve.tiles import Extent, Tiler, Wanted
from terralapse.serve.warm import Warmth, first_tiles


@pytest.fixture
def library(shelf: Path) -> Library:
    return Library(Options((shelf,)))


def named(library: Library, title: str):
    return next(r for r in library.shelf.results()[0].values() if r.folder.name == title)


@pytest.mark.parametrize(
    ("title", "names"),
    [
        ("Blobs", ("probability", "after", "before")),
        ("pixels", ("probability", "after", "before")),
        ("clearing", ("break_date",)),
    ],
)
def test_the_first_tiles_of_every_result_are_drawn_before_they_are_asked_for(
    library, monkeypatch, title, names
):
    assert Warmth(library).start(60)
    result = named(library, title)
    asked = [
        (library.layer(result, name), first_tiles(library, result, library.layer(result, name)))
        for name in names
    ]
    assert all(len(wanted) >= 1 for _, wanted in asked)

    def read(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(Tiler, "_read", read)
    for layer, wanted in asked:
        for tile in wanted:
            assert library.tiler.tile(layer, library.grid(result), tile)


@pytest.mark.parametrize(
    ("east", "zooms"),
    [(0.0219, [15, 14]), (0.0005, [18]), (90.0, [3, 2]), (359.9, [1, 0])],
    ids=["a town", "a house", "a continent", "the earth"],
)
def test_the_zooms_are_those_of_a_large_screen_and_of_a_phone(east, zooms):
    extent = Extent((0.0 if east < 180 else -179.9, -0.001, east if east < 180 else 180.0, 0.001), 0, 18)
    tiler = SimpleNamespace(extent=lambda *_: extent, zooms=lambda *_: (0, 20))
    library = SimpleNamespace(grid=lambda _: None, tiler=tiler)
    wanted = first_tiles(library, None, SimpleNamespace(kind="picture", scale=None))
    assert list(dict.fromkeys(w.z for w in wanted)) == zooms
    for zoom in zooms:
        tiles = {(w.x, w.y) for w in wanted if w.z == zoom}
        columns = range(
            int((extent.bounds[0] + 180) / 360 * 2**zoom),
            min(int((extent.bounds[2] + 180) / 360 * 2**zoom), 2**zoom - 1) + 1,
        )
        rows = {2 ** (zoom - 1) - 1, 2 ** (zoom - 1)} if zoom else {0}  # both sides of the equator
        assert tiles == {(x, y) for x in columns for y in rows}
    assert {(w.scale, w.form, w.style) for w in wanted} == {(2, "webp", "drawn")}


def test_a_damaged_result_does_not_keep_a_server_from_starting(shelf, tmp_path):
    shutil.copytree(shelf / "Blobs", tmp_path / "Blobs")
    (tmp_path / "Blobs/before.tif").write_bytes(b"no image")
    (tmp_path / "Blobs/change.gpkg").write_bytes(b"no database")
    run = json.loads((tmp_path / "Blobs/run.json").read_text())
    del run["threshold"]
    (tmp_path / "Blobs/run.json").write_text(json.dumps(run))
    library = Library(Options((tmp_path,)))
    assert Warmth(library).start(60)
    result = named(library, "Blobs")
    after = library.layer(result, "after")
    assert library.tiler.kept_bytes > 0
    assert library.tiler.tile(after, library.grid(result), first_tiles(library, result, after)[0])
    with pytest.raises(UnreadableFileError):
        library.tiler.tile(library.layer(result, "before"), library.grid(result), Wanted(16, 0, 0))


def test_it_ends_when_the_server_does(library, monkeypatch):
    begun, may = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        may.wait(30)
        return b"a tile"

    monkeypatch.setattr(Tiler, "tile", slow)
    warmth = Warmth(library)
    assert not warmth.start(0)
    assert begun.wait(30)
    threading.Timer(0.1, may.set).start()
    warmth.stop()
    assert not warmth._thread.is_alive()
    Warmth(library).stop()  # one that never began


def test_a_tile_that_many_ask_for_at_once_is_drawn_once(library, monkeypatch):
    result = named(library, "Blobs")
    layer, grid = library.layer(result, "before"), library.grid(result)
    wanted = first_tiles(library, result, layer)[0]
    counted, gate, read = [], threading.Barrier(4), Tiler._read

    def slow(self, *given):
        counted.append(given)
        threading.Event().wait(0.2)
        return read(self, *given)

    monkeypatch.setattr(Tiler, "_read", slow)

    def ask(_):
        gate.wait(30)
        return library.tiler.tile(layer, grid, wanted)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(ask, range(4)))) == 1
    assert len(counted) == 1


def test_who_waits_for_a_tile_that_cannot_be_drawn_hears_why_and_the_next_tries_again(library, monkeypatch):
    result = named(library, "Blobs")
    layer, grid = library.layer(result, "before"), library.grid(result)
    wanted = first_tiles(library, result, layer)[0]
    gate = threading.Barrier(3)

    def fail(*_):
        threading.Event().wait(0.2)
        raise UnreadableFileError("before.tif", "is away", "Wait.")

    with monkeypatch.context() as away:
        away.setattr(drawing.Tiler, "_read", fail)

        def ask(_):
            gate.wait(30)
            with pytest.raises(UnreadableFileError, match="is away"):
                library.tiler.tile(layer, grid, wanted)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(ask, range(3)))
    assert library.tiler.tile(layer, grid, wanted)


def test_the_page_names_all_its_scripts_so_that_none_is_found_late():
    page = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:href|src)="/static/js/([a-z0-9]+\.js)"', page)
    assert sorted(named) == sorted(p.name for p in (STATIC / "js").glob("*.js"))


def test_files_of_the_page_are_asked_for_again_and_vendored_ones_are_kept(client):
    ours, vendored = (
        client.get("/static/js/main.js"),
        client.get("/static/vendor/natural-earth-110m/coastline.json"),
    )
    assert ours.headers["content-type"].startswith("text/javascript")
    assert ours.headers["cache-control"] == "no-cache"
    assert "immutable" in vendored.headers["cache-control"]
    again = client.get("/static/js/main.js", headers={"if-none-match": ours.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/static/js/none.js").status_code == 404
    assert client.get("/static/").status_code == 404
