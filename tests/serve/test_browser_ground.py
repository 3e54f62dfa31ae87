"""What lies below the images in a browser: lines of latitude and longitude, and the coast."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from serve_browser import keep, needs_chromium, settled
from terralapse.serve.app import STATIC

pytestmark = needs_chromium

FILE = "vendor/natural-earth-110m/coastline.json"
ADRIATIC = "v=5.5/45.0/14.5"  # `clearing` lies by it, at 45.15 north and 15 east
ON_THE_SCREEN = "window.terralapse.map.queryRenderedFeatures({ layers: ['coast'] })"


def shore(page: Any) -> np.ndarray:
    """Points of the lines of the coast that the map has drawn, longitude and latitude [n, 2]."""
    settled(page)
    points = page.evaluate(f"{ON_THE_SCREEN}.flatMap((f) => f.geometry.coordinates.flat(3))")
    return np.array(points, float).reshape(-1, 2)


def test_the_file_of_the_coast_is_small_and_has_no_edges_of_the_map():
    path = STATIC / FILE
    assert path.stat().st_size < 200_000
    found = json.loads(path.read_text())
    assert found["type"] == "MultiLineString"
    for line in map(np.array, found["coordinates"]):
        assert (abs(line) <= (180, 90)).all()
        beyond = (abs(line[:, 0]) >= 180) | (line[:, 1] <= -90)
        assert not (beyond[:-1] & beyond[1:]).any()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_result_by_a_coast_shows_it_from_afar(open_page, address, ids, theme):
    page = open_page(f"{address}#r={ids['clearing']}&{ADRIATIC}", color_scheme=theme)
    points = shore(page)
    assert page.evaluate("window.terralapse.map.isSourceLoaded('coast')")
    trieste = np.hypot(*(points - (13.5, 45.6)).T)
    assert trieste.min() < 0.5
    token = "getComputedStyle(document.documentElement).getPropertyValue('--coast').trim()"
    assert page.evaluate("window.terralapse.map.getPaintProperty('coast', 'line-color')") == page.evaluate(
        token
    )
    order = page.evaluate("window.terralapse.map.getStyle().layers.map((l) => l.id)")
    assert order.index("coast") < min(order.index(i) for i in order if i.startswith("r:"))
    keep(page, f"coast-{theme}")


def test_it_is_drawn_on_a_phone(open_page, address, ids):
    page = open_page(f"{address}#r={ids['clearing']}&{ADRIATIC}", 390, 844, has_touch=True)
    assert len(shore(page))
    keep(page, "coast-phone")


def test_near_a_result_it_is_not_there_and_not_asked_for(open_page, address, ids):
    page = open_page(f"{address}#r={ids['clearing']}")
    assert len(shore(page)) == 0
    assert page.evaluate("window.terralapse.map.getSource('coast').serialize().data.features") == []
    page.evaluate("window.terralapse.map.setZoom(5)")
    page.wait_for_function(f"() => {ON_THE_SCREEN}.length > 0")


def test_images_without_a_place_have_no_coast(open_page, address, ids):
    page = open_page(f"{address}#r={ids['pixels']}&v=3/0/0")
    assert len(shore(page)) == 0
    page.select_option("#results", ids["clearing"])
    page.wait_for_selector("#layer-break_date")
    page.evaluate("window.terralapse.map.jumpTo({ zoom: 3, center: [0, 0] })")
    page.wait_for_function(f"() => {ON_THE_SCREEN}.length > 0")


def test_a_ground_of_the_operator_has_no_coast(open_page, server, shelf):
    page = open_page(server(shelf, basemap="http://127.0.0.1:9999/{z}/{x}/{y}.png"), ready=False)
    page.wait_for_selector(".sentence")
    assert page.evaluate("window.terralapse.map.getLayer('coast') === undefined")
    page.close()
    open_page.troubles.clear()  # there are no such tiles
