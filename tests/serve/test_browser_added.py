"""Objects that the run has missed, in the browser: drawn, saved, taken back, and in the files."""

from __future__ import annotations

import zipfile
from typing import Any

import numpy as np
import pyogrio
import pytest

from product_runs import BOX
from serve_browser import becomes, keep, needs_chromium, outline, serious, settled, tab
from terralapse.data.folders import BiTemporal

pytestmark = needs_chromium
playwright = pytest.importorskip("playwright.sync_api")

TOP, LEFT, BOTTOM, RIGHT = 180, 200, 220, 260  # rows and columns of `Blobs` where the run found nothing
DRAWN = "window.terralapse.map.queryRenderedFeatures({ layers: ['r:added'] }).length"


def draw(page: Any, top: float, left: float, bottom: float, right: float) -> None:
    """Clicks the corners on the map, which shows all of the result."""
    settled(page)
    for lng, lat in outline(top, left, bottom, right)["coordinates"][0][:4]:
        point = page.evaluate(f"() => window.terralapse.map.project([{lng}, {lat}])")
        page.locator("#map canvas").click(position={"x": point["x"], "y": point["y"]}, force=True)


def drawn(open_page: Any, address: str) -> Any:
    """A page on which Ada has drawn an object and is asked what it is."""
    page = open_page(f"{address}#s=off")
    tab(page, "review")
    page.click("#layers-toggle")
    page.fill("#review-by", "Ada")
    page.click("#add-object")
    draw(page, TOP, LEFT, BOTTOM, RIGHT)
    becomes(page, ".review-form .small", "4 points")
    page.click("text=Finish")
    page.select_option("#added-grade", "destroyed")
    return page


def test_from_a_missed_object_to_the_files(open_page, kept_address, tmp_path):
    page = drawn(open_page, kept_address)
    assert page.locator("#added-class").count() == 0  # this run has no classes
    page.fill("#added-comment", "<i>shed</i>")
    keep(page, "added-form")
    page.click("text=Save object")
    page.wait_for_selector("[data-added='1']")
    said = page.inner_text("[data-added='1']")
    assert said.startswith("Added 1 by Ada, 20")
    assert "Destroyed, <i>shed</i>" in said
    becomes(page, ".review-count", "0 accepted, 0 rejected of 3 objects; 1 added")
    settled(page)
    assert page.evaluate(DRAWN) > 0
    dashes = "window.terralapse.map.getPaintProperty('r:added', 'line-dasharray')"
    assert page.evaluate(dashes) != page.evaluate(dashes.replace("r:added", "r:rejected"))
    assert serious(page) == []
    keep(page, "added")
    with page.expect_download() as saved:
        page.click("#review-gpkg")
    saved.value.save_as(tmp_path / "r.gpkg")
    frame = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="reviewed")
    assert frame["id"].tolist() == [-1]
    assert frame["area_m2"].tolist() == pytest.approx([40 * 60 * abs(BOX.affine.determinant)], rel=0.08)
    with page.expect_download() as saved:
        page.click("#review-labels")
    saved.value.save_as(tmp_path / "labels.zip")
    with zipfile.ZipFile(tmp_path / "labels.zip") as archive:
        archive.extractall(tmp_path / "labels")
    (pair,) = BiTemporal(tmp_path / "labels")
    assert (pair.label[TOP + 2 : BOTTOM - 2, LEFT + 2 : RIGHT - 2] == 1).all()
    page.click("[data-added='1'] >> text=Remove")
    becomes(page, "[data-added='1']", "Added 1, removed by Ada")
    settled(page)
    assert page.evaluate(DRAWN) == 0
    page.reload()  # it is the server that knows
    page.wait_for_selector("html[data-ready=true]", state="attached")
    tab(page, "review")
    page.click("[data-added='1'] >> text=Put back")
    becomes(page, ".review-count", "0 accepted, 0 rejected of 3 objects; 1 added")
    settled(page)
    assert page.evaluate(DRAWN) > 0


def test_what_an_object_is_and_where_it_lies_can_be_changed(open_page, kept_address):
    page = drawn(open_page, kept_address)
    page.fill("#added-comment", "a shed")
    page.click("text=Save object")
    newest = page.locator("[data-added]").last
    playwright.expect(newest).to_contain_text("Destroyed, a shed")
    row = f"[data-added='{newest.get_attribute('data-added')}']"
    page.fill("#review-by", "Bob")
    page.click(f"{row} >> text=Change")
    assert page.input_value("#added-grade") == "destroyed"
    assert page.input_value("#added-comment") == "a shed"
    assert page.locator("#add-object").is_hidden()
    page.select_option("#added-grade", "minor")
    page.click("text=Save object")
    playwright.expect(page.locator(row)).to_contain_text("by Bob")
    playwright.expect(page.locator(row)).to_contain_text("Minor damage, a shed")
    page.click(f"{row} >> text=Change")
    page.click("text=Draw it again")
    draw(page, TOP, LEFT, TOP + 10, LEFT + 10)
    page.click("text=Finish")
    assert page.input_value("#added-grade") == "minor"
    page.click("text=Save object")
    page.wait_for_selector("#added-form", state="detached")
    address = f"/api/results/{page.input_value('#results')}/review"
    found = page.evaluate(f"async () => (await (await fetch('{address}')).json()).reviews")
    (now,) = [r for r in found if r["polygon"] == -int(newest.get_attribute("data-added"))]
    assert (now["version"], now["by"], now["grade"]) == (3, "Bob", "minor")
    corners = np.array(now["geometry"]["coordinates"][0])
    wanted = np.array(outline(TOP, LEFT, TOP + 10, LEFT + 10)["coordinates"][0])
    assert np.abs(np.sort(corners, 0) - np.sort(wanted, 0)).max() < 5e-5  # clicks fall on whole pixels
    page.click(f"{row} >> text=Change")
    page.click("text=Cancel")
    assert page.locator("#add-object").is_visible()


def test_with_the_keys_alone_and_outside_of_the_images(open_page, kept_address):
    page = open_page(f"{kept_address}#s=off")
    tab(page, "review")
    page.locator("#review-by").fill("")
    page.locator("#add-object").focus()
    page.keyboard.press("Enter")
    playwright.expect(page.locator("text=Add middle of the map")).to_be_focused()
    middle = page.evaluate("window.terralapse.map.getCenter().toArray()")
    for east, north in ((0, 0), (0.1, 0), (0.1, 0.1)):
        page.evaluate(
            f"window.terralapse.map.jumpTo({{ center: [{middle[0] + east}, {middle[1] + north}] }})"
        )
        page.keyboard.press("Enter")
    becomes(page, ".review-form .small", "3 points")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#added-grade")).to_be_focused()
    page.click("text=Save object")
    page.wait_for_selector(".trouble >> text=Say who you are first")
    playwright.expect(page.locator("#review-by")).to_be_focused()
    page.keyboard.type("Bob")
    page.click("text=Save object")
    page.wait_for_selector(".trouble >> text=lies outside of the images")
    page.locator("#added-form >> text=Cancel").click()
    playwright.expect(page.locator("#add-object")).to_be_focused()
    assert page.evaluate("window.terralapse.map.getLayer('added-draft') === undefined")
    open_page.troubles[:] = [t for t in open_page.troubles if "422" not in t]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_nothing_of_it_is_cut_off(open_page, kept_address, theme):
    page = open_page(kept_address, 390, 844, color_scheme=theme, has_touch=True)
    tab(page, "review")
    page.click("#add-object")
    keep(page, f"phone-drawing-{theme}")
    for _ in range(3):
        page.click("text=Add middle of the map")
        page.evaluate("window.terralapse.map.panBy([20, 30 * Math.random()], { duration: 0 })")
    page.click("text=Finish")
    page.wait_for_selector("#added-form")
    page.locator("#added-form").scroll_into_view_if_needed()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    for control in page.locator(
        "#panel button:visible, #panel select:visible, #panel textarea:visible"
    ).all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 391
    assert serious(page) == []
    keep(page, f"phone-added-{theme}")
