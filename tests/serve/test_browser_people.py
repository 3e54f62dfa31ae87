"""What people say in the browser: questions and citations, reviews and files, samples and areas."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pyogrio
import pytest
import rasterio

from serve_browser import becomes, keep, needs_chromium, serious, settled, tab
from terralapse.data.folders import BiTemporal

pytestmark = needs_chromium
playwright = pytest.importorskip("playwright.sync_api")


BOX_OF_ONE = """(() => {
  const drawn = window.terralapse.map.querySourceFeatures("r:polygons");
  const all = drawn.filter((f) => f.properties.id === 1).flatMap((f) => f.geometry.coordinates.flat(3));
  const of = (i) => all.filter((_, k) => k % 2 === i);
  return [Math.min(...of(0)), Math.min(...of(1)), Math.max(...of(0)), Math.max(...of(1))];
})()"""


# --- questions ---------------------------------------------------------------------------------------
def test_a_citation_highlights_its_polygon_and_flies_there(open_page, kept_address):
    page = open_page(kept_address)
    tab(page, "ask")
    page.fill("#question", "What is the largest change?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn [data-fact='object.1.area']")
    assert "The largest object covers" in page.inner_text(".said")
    start = page.evaluate("window.terralapse.map.getZoom()")
    page.click(".cites [data-fact='object.1.area']")
    page.wait_for_selector("#picked [data-fact='object.1.area']", state="attached")
    settled(page)
    assert page.evaluate("window.terralapse.map.getZoom()") > start + 0.5
    assert page.evaluate("window.terralapse.map.getFilter('r:picked-line')") == [
        "in", ["get", "id"], ["literal", [1]],
    ]  # fmt: skip
    page.fill("#question", "How sure are you of it?")
    page.click("text=Ask >> nth=-1")
    page.wait_for_selector(".turn:nth-child(2) .evidence")
    assert "mean probability of object 1" in page.inner_text(".turn:nth-child(2)")
    page.reload()
    page.wait_for_selector("html[data-ready=true]", state="attached")
    tab(page, "ask")
    page.wait_for_selector(".turn:nth-child(2)")
    page.click("text=Forget this talk")
    page.wait_for_selector(".hints button")
    keep(page, "ask")


def test_what_nobody_knows_and_what_is_markup_are_said_as_such(open_page, kept_address):
    page = open_page(kept_address)
    tab(page, "ask")
    page.fill("#question", "Were any <img src=x onerror='window.hacked=1'> buildings destroyed?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".badge")
    assert page.inner_text(".badge") == "Cannot tell"
    assert page.evaluate("window.hacked") is None
    assert page.locator(".turn img").count() == 0
    assert serious(page) == []
    page.click("text=Forget this talk")


# --- reviews -----------------------------------------------------------------------------------------
def test_from_a_review_to_its_files(open_page, kept_address, tmp_path):
    page = open_page(kept_address)
    tab(page, "review")
    page.fill("#review-by", "Ada")
    page.click("text=Next open object")
    page.wait_for_selector("form[data-polygon='1']")
    page.click("text=Redraw outline")
    # An outline over the upper half, clicked on the map.
    settled(page)
    west, south, east, north = page.evaluate(BOX_OF_ONE)
    middle = (south + north) / 2
    for lng, lat in ((west, middle), (east, middle), (east, north), (west, north)):
        point = page.evaluate(f"() => window.terralapse.map.project([{lng}, {lat}])")
        page.locator("#map canvas").click(position={"x": point["x"], "y": point["y"]}, force=True)
    becomes(page, ".review-form .small", "4 points")
    page.click("text=Finish")
    becomes(page, ".review-form .small", "The outline was drawn anew")
    page.click(".choice:has-text('Accept')")
    page.select_option("#review-grade", "destroyed")
    page.fill("#review-comment", "<b>roof</b>")
    page.click("text=Save")
    page.wait_for_selector("text=What was said")
    assert "<b>roof</b>" in page.inner_text(".review-one .plain")
    becomes(page, ".review-count", "1 accepted, 0 rejected of")
    page.click("text=Next open object")
    page.wait_for_selector("form[data-polygon='2']")
    page.locator("#tab-review").focus()
    page.keyboard.press("r")
    becomes(page, ".review-count", "1 accepted, 1 rejected of")
    assert serious(page) == []
    keep(page, "review")
    with page.expect_download() as saved:
        page.click("#review-gpkg")
    saved.value.save_as(tmp_path / "r.gpkg")
    frame = pyogrio.read_dataframe(tmp_path / "r.gpkg", layer="reviewed")
    assert frame["verdict"].tolist() == ["accepted", "rejected"]
    assert frame["reviewer"].tolist() == ["Ada", "Ada"]
    assert frame["grade"].tolist()[0] == "destroyed"
    assert frame["area_m2"].tolist()[0] == pytest.approx(4800, rel=0.08)
    with page.expect_download() as saved:
        page.click("#review-labels")
    saved.value.save_as(tmp_path / "labels.zip")
    with zipfile.ZipFile(tmp_path / "labels.zip") as archive:
        archive.extractall(tmp_path / "labels")
    (pair,) = BiTemporal(tmp_path / "labels")
    assert set(np.unique(pair.label)) == {0, 1, 255}
    assert json.loads((tmp_path / "labels/record.json").read_text())["reviews"][0]["by"] == "Ada"


def test_two_reviewers_meet(open_page, kept_address):
    ada, bob = open_page(f"{kept_address}#p=1"), open_page(f"{kept_address}#p=1")
    for page, name in ((ada, "Ada"), (bob, "Bob")):
        page.wait_for_selector("#picked [data-fact]", state="attached")
        tab(page, "review")
        page.fill("#review-by", name)
        page.wait_for_selector("form[data-polygon='1']")
    ada.fill("#review-comment", "first")
    ada.click("text=Save")
    ada.wait_for_selector("text=first")
    bob.fill("#review-comment", "second")
    bob.click("text=Save")
    bob.wait_for_selector(".review-form .trouble >> text=Ada says")
    bob.click("text=Show theirs")
    playwright.expect(bob.locator("#review-comment")).to_have_value("first")
    open_page.troubles[:] = [t for t in open_page.troubles if "409" not in t]


# --- samples -----------------------------------------------------------------------------------------
def test_from_a_sample_to_areas(open_page, kept_address, shelf):
    page = open_page(kept_address)
    tab(page, "areas")
    page.fill("#sample-by", "Ada")
    page.fill("#sample-size", "8")
    page.click(".new-sample button[type=submit]")
    page.wait_for_selector(".chip img")
    assert not page.is_checked("#layer-change")  # nobody is told what the map says
    said = page.request.get(f"{kept_address}api/results").json()["results"]
    base = f"{kept_address}api/results/{said[0]['id']}/samples"
    sample = page.request.get(base).json()["samples"][0]["id"]
    points = page.request.get(f"{base}/{sample}").json()["points"]
    with rasterio.open(shelf / "Blobs/change.tif") as file:
        change = file.read(1)
    for number, p in enumerate(points, start=1):
        becomes(page, ".point-head", f"Point {number} of 8, {number - 1} labelled")
        assert page.evaluate("document.querySelector('.chip img').decode().then(() => true)")
        page.keyboard.press("2" if change[p["row"], p["col"]] else "1")
    page.wait_for_selector(".estimates")
    becomes(page, ".point-head", "Point 8 of 8, 8 labelled")
    row = page.inner_text(".estimates tbody tr:nth-child(3)")
    assert row.startswith("Change")
    assert "± 0 m²" in row
    assert "100 % ± 0 %" in row
    assert page.locator(".warnings li").count() == 2  # eight points without an error prove little
    assert serious(page) == []
    keep(page, "areas")
    page.click("text=All samples")
    page.wait_for_selector("text=8 of 8")
    assert page.is_checked("#layer-change")


@pytest.mark.parametrize("name", ["ask", "review", "areas"])
def test_on_a_phone_nothing_is_cut_off(open_page, kept_address, name):
    page = open_page(f"{kept_address}#p=1", 390, 844, color_scheme="dark", has_touch=True)
    tab(page, name)
    page.wait_for_selector(
        {"ask": "#question", "review": "form[data-polygon]", "areas": "#sample-size"}[name]
    )
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    for control in page.locator("#panel button:visible, #panel input:visible, #panel select:visible").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 391
    assert serious(page) == []
    keep(page, f"phone-{name}")


def test_without_a_folder_only_questions_are_offered(open_page, server, shelf):
    page = open_page(server(shelf))
    assert page.locator("#tab-ask").count() == 1
    assert page.locator("#tab-review, #tab-areas").count() == 0
