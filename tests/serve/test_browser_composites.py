"""The slider over the composites of a series in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve.test_composites import stack
from serve_browser import WAIT, becomes, colour, keep, needs_chromium, serious, served, settled
from terralapse.workflows.series import series

pytestmark = needs_chromium
playwright = pytest.importorskip("playwright.sync_api")

COUNT = 26  # dates, one each 30 days from 2018-01-10 on
BREAK = 16  # from this one on all is redder: 2019-05-05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`breaks` with composites by month; `images` with composites alone."""
    made = tmp_path_factory.mktemp("series")
    days = [np.datetime64("2018-01-10") + 30 * i for i in range(COUNT)]
    names = tuple(str(d).replace("-", "") for d in days)
    noise = np.random.default_rng(0).normal(0, 0.002, COUNT)
    steps = tuple(float(n + (0.3 if i >= BREAK else 0)) for i, n in enumerate(noise))
    images = stack(made / "stack", names, steps, size=24)
    shelf = made / "shelf"
    shelf.mkdir()
    series(images, shelf / "breaks", index="red", period="monthly", threads=1)
    series(images, shelf / "images", index="red", period="yearly", breaks=False, threads=1)
    return shelf


@pytest.fixture(scope="module")
def kept(folder: Path) -> Iterator[str]:
    with served(folder) as found:
        yield found


def test_the_slider_steps_through_the_composites(open_page, kept):
    page = open_page(kept)
    assert page.inner_text("#results option:checked") == "breaks"
    becomes(page, "#composite-card .level-value", "2020-01")
    assert page.is_disabled("#composite-later")
    page.uncheck("#layer-break_date")
    lng, lat = page.evaluate("window.terralapse.map.getCenter().toArray()")
    late = colour(page, lng, lat)
    page.locator("#composite").fill("0")
    becomes(page, "#composite-card .level-value", "2018-01")
    becomes(page, "#composite-dates", "One date: 10 January 2018")
    early = colour(page, lng, lat)
    assert late[0] > early[0] + 60
    page.focus("#composite-later")
    page.keyboard.press("Enter")
    becomes(page, "#composite-card .level-value", "2018-02")
    page.wait_for_function("() => location.hash.includes('c=2018-02')")
    assert serious(page) == []
    other = open_page(page.url)
    becomes(other, "#composite-card .level-value", "2018-02")
    settled(page)
    keep(page, "composites")


def test_it_follows_the_slider_of_the_breaks(open_page, kept):
    page = open_page(kept)
    page.locator("#level").fill("0")
    becomes(page, "#composite-card .level-value", "2018-01")
    page.locator("#level").fill(str(30 * BREAK + 2))
    becomes(page, "#composite-card .level-value", "2019-05")
    page.keyboard.press("1")  # the layers from the top of the list
    playwright.expect(page.locator("#layer-break_date")).not_to_be_checked()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_composites_alone_on_a_phone(open_page, kept, theme):
    page = open_page(kept, 390, 844, color_scheme=theme, has_touch=True)
    page.select_option("#results", label="images")
    playwright.expect(page.locator("#composite-card .level-value")).to_have_text("2020", timeout=WAIT)
    assert page.locator("#slider-card").is_hidden()
    assert "not known" not in page.inner_text(".tiles")
    page.click("#composite-earlier")
    becomes(page, "#composite-card .level-value", "2019")
    becomes(page, "#composite-dates", "13 dates, from 5 January 2019 to 31 December 2019")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    settled(page)
    keep(page, f"phone-composites-{theme}")
    page.click("#tab-files")
    page.wait_for_selector("text=XYZ, Composite of 2018")
