"""The page in a real browser: what is seen, what it does, and that it needs nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image

from bad_inputs import image
from job_machines import free_port
from serve_browser import (
    MAP,
    WAIT,
    becomes,
    colour,
    inside,
    keep,
    needs_chromium,
    serious,
    settled,
    wait_for,
)
from serve_clients import TOKEN
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits
from terralapse.workflows.demo import demo

pytestmark = needs_chromium
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.fixture(scope="module")
def first(client: Any, ids: dict[str, str]) -> dict[str, Any]:
    """The largest polygon of `Blobs`."""
    return client.get(f"/api/results/{ids['Blobs']}/features/collections/change/items/1").json()


# --- opening -----------------------------------------------------------------------------------------
def test_it_opens_on_the_first_result_and_says_what_its_files_say(open_page, address, shelf, ids):
    page = open_page(address)
    run = json.loads((shelf / "Blobs/run.json").read_text())
    assert page.input_value("#results") == ids["Blobs"]
    said = page.locator(".sentence p").all_inner_texts()
    assert run["summary"]["summary"] == " ".join(re.sub(r"\s+\d+ facts?$", "", s) for s in said)
    assert run["summary"]["warnings"][0] in page.inner_text(".warnings")
    assert page.inner_text("#tag-before") == "Before: 10 May 2023"
    assert page.locator("#notice").is_hidden()
    keep(page, "desktop")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(open_page, address, theme):
    page = open_page(address, 390, 844, color_scheme=theme, has_touch=True)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    assert page.locator("#layers").is_hidden()
    page.click("#layers-toggle")
    assert page.locator("#layers").is_visible()
    for control in page.locator("button:visible, input[type=range]:visible").all():
        box = control.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 391
    keep(page, f"phone-{theme}")


def test_light_and_dark_follow_the_system_and_the_button(open_page, address):
    page = open_page(address, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.inner_text("#theme") == "Theme: light"
    light = page.evaluate(ground)
    assert sum(map(int, re.findall(r"\d+", light))) > 600 > 200 > sum(map(int, re.findall(r"\d+", dark)))
    page.reload()
    page.wait_for_selector("html[data-ready=true]", state="attached")
    assert page.evaluate(ground) == light


# --- the map -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stored(shelf: Path) -> dict[str, np.ndarray]:
    """What the previews hold at the middle of the largest polygon, which is even there."""
    found = {}
    for date in ("before", "after"):
        with rasterio.open(shelf / f"Blobs/{date}.tif") as file:
            found[date] = file.read()[:, 60, 220].astype(int)
    return found


def test_the_divider_shows_before_on_its_left_and_after_on_its_right(open_page, address, first, stored):
    page = open_page(f"{address}#l=before:100,after:100&s=0")
    lng, lat = inside(first)
    after = colour(page, lng, lat)
    assert np.abs(after - stored["after"]).max() <= 12
    page.focus("#swipe")
    page.keyboard.press("End")
    assert page.get_attribute("#swipe", "aria-valuenow") == "100"
    before = colour(page, lng, lat)
    assert np.abs(before - after).max() > 20
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 300)
    page.mouse.down()
    page.mouse.move(box["x"] + 3, box["y"] + 300, steps=4)
    page.mouse.up()
    assert np.abs(colour(page, lng, lat) - after).max() <= 2
    page.keyboard.press("End")
    page.keyboard.press("s")  # without a divider the later date covers all
    assert page.locator("#swipe").is_hidden()
    assert np.abs(colour(page, lng, lat) - after).max() <= 2


def test_opacity_mixes_the_dates(open_page, address, first):
    page = open_page(f"{address}#l=before:100,after:100&s=0")
    lng, lat = inside(first)
    after = colour(page, lng, lat)
    page.get_by_label("Opacity: Image after").fill("0")
    assert np.abs(colour(page, lng, lat) - after).max() > 20


def test_the_threshold_recolours_and_recounts(open_page, address, client, ids, first):
    page = open_page(f"{address}#l=after:100,change:100&s=off")
    counts = client.get(f"/api/results/{ids['Blobs']}/histogram").json()
    lng, lat = inside(first)
    start = page.inner_text("#level-count")
    shown = colour(page, lng, lat)
    assert shown[0] > shown[1] + 60  # magenta over grey
    assert f"{sum(counts['pixels'][100:]):,} pixels" in page.inner_text(".level-more")
    page.locator("#level").fill("190")  # over every probability there is
    becomes(page, "#level-count", "0 m²")
    assert page.inner_text("#level-count") != start
    assert np.ptp(colour(page, lng, lat)) <= 12  # the image alone
    page.locator("#level").fill("10")
    becomes(page, ".level-more", f"{sum(counts['pixels'][10:]):,} pixels")
    shown = colour(page, lng, lat)
    assert shown[0] > shown[1] + 60
    page.click("text=Back to the threshold of the run")
    assert page.inner_text("#level-count") == start


def test_a_click_on_a_polygon_shows_its_facts(open_page, address, client, ids, first):
    page = open_page(address)
    point = page.evaluate(f"() => window.terralapse.map.project({list(inside(first))})")
    page.mouse.move(5, 500)
    page.locator(MAP).click(position=point)
    page.wait_for_selector("#picked [data-fact='object.1.area']")
    facts = client.get(f"/api/results/{ids['Blobs']}/facts", params={"polygon": 1}).json()["facts"]
    text = page.inner_text("#picked")
    assert text.startswith("Object 1")
    for fact in facts:
        if fact["evidence"]["polygons"] == [1]:
            assert fact["sentence"] in text
    assert "p=1" in page.evaluate("new Promise((d) => setTimeout(() => d(location.hash), 400))")
    page.keyboard.press("Escape")
    assert page.locator("#picked").is_hidden()


def test_the_largest_are_listed_and_flown_to(open_page, address, first):
    page = open_page(address)
    page.click("#tab-largest")
    page.click("[data-polygon='2']")
    page.wait_for_selector("#picked [data-fact='object.2.area']")
    settled(page)
    where = page.evaluate("window.terralapse.map.getCenter().toArray()")
    page.keyboard.press("p")
    page.wait_for_selector("#picked [data-fact='object.1.area']")
    settled(page)
    west, south, east, north = first["bbox"]
    lng, lat = page.evaluate("window.terralapse.map.getCenter().toArray()")
    assert [lng, lat] != where
    assert west < lng < east
    assert south < lat < north


def test_a_link_shows_the_same_again(open_page, address, first):
    page = open_page(address)
    page.locator("#level").fill("120")
    page.keyboard.press("2")  # the change layer off
    page.focus("#swipe")
    page.keyboard.press("PageUp")
    page.keyboard.press("n")
    page.wait_for_selector("#picked [data-fact]")
    settled(page)
    page.wait_for_timeout(500)
    link = page.url
    other = open_page(link)
    other.wait_for_selector("#picked [data-fact='object.1.area']")
    assert other.input_value("#level") == "120"
    assert other.get_attribute("#swipe", "aria-valuenow") == "60"
    assert not other.is_checked("#layer-change")
    views = [p.evaluate("window.terralapse.map.getZoom()") for p in (page, other)]
    assert views[0] == pytest.approx(views[1], abs=0.02)


def test_a_distance_is_measured_on_the_ground(open_page, address):
    page = open_page(address)
    page.keyboard.press("m")
    box = page.locator(MAP).bounding_box()
    ends = [(box["width"] / 2 - 100, 450), (box["width"] / 2 + 100, 450)]
    for x, y in ends:
        page.locator(MAP).click(position={"x": x, "y": y})
    lngs, lats = zip(
        *[page.evaluate(f"window.terralapse.map.unproject([{x}, {y}]).toArray()") for x, y in ends],
        strict=True,
    )
    expected = 6371008.8 * np.cos(np.radians(lats[0])) * np.radians(lngs[1] - lngs[0])
    said = page.inner_text("#readout")
    assert float(re.match(r"([\d.,]+) m", said)[1].replace(",", "")) == pytest.approx(expected, rel=0.01)
    page.keyboard.press("Escape")
    assert page.get_attribute("#measure", "aria-pressed") == "false"


def test_keys_are_explained(open_page, address):
    page = open_page(address)
    page.keyboard.press("?")
    assert "Measure distances" in page.inner_text("#keys")
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()


# --- other results -----------------------------------------------------------------------------------
def test_a_series_has_a_slider_of_time(open_page, address, client, ids):
    page = open_page(f"{address}#r={ids['clearing']}")
    breaks = client.get(f"/api/results/{ids['clearing']}/breaks").json()
    last = page.locator("#level").get_attribute("max")
    assert page.input_value("#level") == last
    assert "100 % of all that broke" in page.inner_text(".level-more")
    page.locator("#level").fill("10")
    becomes(page, "#level-count", "0 m²")
    assert min(breaks["days"]) > 17500
    assert "2019" in page.inner_text(".bars")
    keep(page, "series")


def test_images_without_a_place_say_so(open_page, address, ids):
    page = open_page(f"{address}#r={ids['pixels']}")
    assert "areas are in pixels" in page.inner_text(".warning")
    assert " px changed" in page.inner_text("#level-count")
    box = page.locator("#map").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 40, box["y"] + box["height"] / 2)
    assert re.fullmatch(r"column \d+, row \d+", page.inner_text("#readout"))
    keep(page, "pixels")


HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


def test_text_of_files_is_never_markup(open_page, server, shelf, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(shelf / "Blobs", folder)
    for name in ("run.json", "facts.json"):
        content = json.loads((folder / name).read_text())
        _poison(content)
        (folder / name).write_text(json.dumps(content))
    table = (folder / "stats.csv").read_text().replace("A1,A1", f'A1,"{HOSTILE}"')
    (folder / "stats.csv").write_text(table)
    (folder / HOSTILE.replace("/", "_")).write_text("x")
    address = server(tmp_path)
    page = open_page(address)
    assert HOSTILE in page.inner_text(".sentences")
    for tab in ("largest", "quality", "run", "files"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(200)
    page.keyboard.press("n")
    page.wait_for_selector("#picked [data-fact]")
    assert HOSTILE in page.inner_text("#picked")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0


def _poison(value: Any) -> None:
    """Adds markup to every sentence and name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and key in (
                "text",
                "sentence",
                "summary",
                "name",
                "display",
                "command",
            ):
                value[key] = f"{inner} {HOSTILE}"
            _poison(inner)
    elif isinstance(value, list):
        for inner in value:
            _poison(inner)


def test_an_empty_workspace_says_how_to_fill_it(open_page, server, tmp_path):
    address = server(tmp_path)
    page = open_page(address, ready=False)
    page.wait_for_selector("text=There is no result here yet")


def test_a_link_to_what_is_not_here_and_a_damaged_result_are_said(open_page, server, shelf, tmp_path):
    shutil.copytree(shelf / "Blobs", tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text("{")
    address = server(tmp_path)
    page = open_page(f"{address}#r=gone-12345678")
    said = page.inner_text("#notice")
    assert "The result of this link is not here" in said
    assert "bad: is missing or damaged" in said


def test_the_token_is_asked_for_and_forgotten_by_the_address(open_page, server, shelf):
    address = server(shelf, token=TOKEN)
    page = open_page(address, ready=False)
    assert "needs the token" in page.inner_text("body")
    page.goto(f"{address}?token={TOKEN}")
    page.wait_for_selector("html[data-ready=true]", state="attached")
    assert TOKEN not in page.url
    open_page.troubles[:] = [t for t in open_page.troubles if "401" not in t]


@pytest.fixture(scope="module")
def joplin_result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the shipped pair; TERRALAPSE_DEMO may name one that is there."""
    ready = os.environ.get("TERRALAPSE_DEMO")
    return Path(ready) if ready else demo(tmp_path_factory.mktemp("demo") / "joplin").folder


@pytest.mark.slow
def test_the_shipped_pair_shows_its_change_soon(open_page, joplin_result, record_property):
    """Of `terralapse serve` as a process of its own: to a browser that has just been started, to one that is
    there already as the first visitor of a new server, and to later ones. The times are told, not judged:
    they are those of the machine and of what else runs on it."""

    def visits(count: int) -> list[dict[str, float]]:
        """Seconds until what is named, of so many visits to a new server."""
        port = free_port()
        command = [sys.executable, "-m", "terralapse", "serve", str(joplin_result), "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                wait_for(f"http://127.0.0.1:{port}/")
                return [visit(f"http://127.0.0.1:{port}/") for _ in range(count)]
            finally:
                process.terminate()

    def visit(address: str) -> dict[str, float]:
        page = open_page(address)
        marks = page.evaluate("performance.getEntriesByType('mark').map((m) => [m.name, m.startTime])")
        said.append(page.inner_text(".level-more"))
        keep(page, "joplin")
        page.close()
        return {name.removeprefix("terralapse-"): round(at / 1000, 2) for name, at in marks}

    said: list[str] = []
    (cold,), (first, *later) = visits(1), visits(4)
    found = {"new browser and server": cold, "new server": first}
    found["later"] = {name: median(v[name] for v in later) for name in first}
    record_property("seconds", found)
    print(f"\n{found}")  # noqa: T201
    run = json.loads((joplin_result / "run.json").read_text())
    changed = run["engine"]["changed_pixels"]
    assert all(s.startswith(f"{changed:,} pixels") for s in said)


@pytest.mark.parametrize("name", ["Blobs", "clearing", "pixels"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, address, ids, name, scheme):
    page = open_page(f"{address}#r={ids[name]}", color_scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (v["id"], [n["html"][:120] for n in v["nodes"]])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


# --- new analyses ------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path, looker: Looker) -> dict[str, Any]:
    """A workspace and two images to compare."""
    (tmp_path / "work").mkdir()
    (tmp_path / "images").mkdir()
    image(tmp_path / "images", "first.tif", seed=1)
    image(tmp_path / "images", "second.tif", seed=2)
    return {"workspace": tmp_path / "work", "inputs": (tmp_path / "images",), "looker": looker}


def test_an_analysis_is_started_followed_and_shown(open_page, server, place):
    page = open_page(server(**place))
    assert page.input_value("#job-before") == "images/first.tif"
    assert page.input_value("#job-after") == "images/second.tif"
    page.select_option("#job-after", "images/first.tif")
    page.click("text=Start")
    page.wait_for_selector("text=choose two different images")
    assert page.locator("[data-job]").count() == 0
    page.select_option("#job-after", "images/second.tif")
    page.select_option("#job-model", "difference")
    page.click("text=Start")
    page.wait_for_selector("[data-state=running] progress")
    page.wait_for_selector("[data-state=done]", timeout=3 * WAIT)
    page.click("[data-state=done] >> text=Show")
    page.wait_for_selector(".sentence")
    assert page.input_value("#results").startswith("second-")
    page.click("#tab-new")
    page.wait_for_selector("[data-state=done]")
    keep(page, "job")
    open_page.troubles[:] = [t for t in open_page.troubles if "422" not in t]


def test_an_analysis_that_waits_or_runs_can_be_cancelled(open_page, server, place):
    for name, seed in (("first.tif", 1), ("second.tif", 2)):
        image(place["inputs"][0], name, seed=seed, size=2048)  # works for a while
    page = open_page(server(**place))
    for _ in range(2):
        page.click("text=Start")
    page.wait_for_selector("[data-state=running]")
    for state in ("queued", "running"):
        page.locator(f"[data-state={state}]").get_by_role("button", name="Cancel").click()
        playwright.expect(page.locator(f"[data-state={state}]")).to_have_count(0, timeout=WAIT)
    assert page.locator("[data-state=cancelled]").count() == 2
    page.wait_for_timeout(500)
    assert not list(place["workspace"].glob("second-*"))


def test_the_form_is_accessible(open_page, server, place):
    page = open_page(server(**place), 390, 844)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    found = axe.Axe().run(page).response["violations"]
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


# --- images that are sent ----------------------------------------------------------------------------
@pytest.fixture
def sending(tmp_path: Path, looker: Looker) -> dict[str, Any]:
    """A workspace that takes uploads."""
    (tmp_path / "work").mkdir()
    return {"workspace": tmp_path / "work", "uploads": True, "looker": looker}


def drop(page: Any, *files: Path) -> None:
    """Drops files on the page, as a hand would."""
    sent = [[f.name, base64.b64encode(f.read_bytes()).decode()] for f in files]
    held = page.evaluate_handle(
        "(files) => { const held = new DataTransfer(); for (const [name, text] of files) { const bytes = "
        "Uint8Array.from(atob(text), (c) => c.charCodeAt(0)); held.items.add(new File([bytes], name)); } "
        "return held; }",
        sent,
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("body", event, {"dataTransfer": held})


def test_two_files_are_dropped_an_area_is_drawn_and_the_change_is_shown(open_page, server, sending, tmp_path):
    names = ("town_20200305.tif", "town_20190710.tif")
    files = [Path(image(tmp_path, n, seed=i, size=200)) for i, n in enumerate(names)]
    page = open_page(server(**sending))
    page.wait_for_selector("#choose")
    drop(page, *files)
    page.wait_for_selector("[data-about=before] >> text=10 July 2019")  # in the order of their dates
    page.wait_for_selector("[data-about=after] >> text=5 March 2020")
    text = page.inner_text("[data-about=before]")
    for part in ("200 × 200 pixels", "3 bands (red, green, blue)", "UTM zone 33N (EPSG:32633)", "RGB image"):
        assert part in text
    settled(page)
    page.wait_for_function("window.terralapse.map.getZoom() > 12")
    lines = page.evaluate(
        "window.terralapse.map.queryRenderedFeatures({ layers: ['new-before', 'new-after'] })"
        ".map((f) => f.properties.which)"
    )
    assert set(lines) == {"before", "after"}
    page.get_by_role("button", name="Rectangle").click()
    box = page.locator(MAP).bounding_box()
    middle = box["width"] / 2, box["height"] / 2
    for dx, dy in ((-100, -90), (60, 80)):
        page.locator(MAP).click(position={"x": middle[0] + dx, "y": middle[1] + dy})
    page.wait_for_selector("text=Only this area is compared.")
    west, south, east, north = map(float, page.input_value("#job-area").split(","))
    assert west < east
    assert south < north
    keep(page, "drop")
    assert serious(page) == []
    page.select_option("#job-model", "difference")
    page.click("text=Start")
    page.wait_for_selector("[data-state=running] progress")
    page.wait_for_selector("[data-state=done]", timeout=6 * WAIT)
    page.click("[data-state=done] >> text=Show")
    page.wait_for_selector(".sentence")
    made = next(p for p in (tmp_path / "work").iterdir() if p.name.startswith("town-20200305"))
    grid = json.loads((made / "run.json").read_text())["grid"]
    assert max(grid["width"], grid["height"]) < 200
    assert page.evaluate("window.terralapse.map.getLayer('new-area')") is None
    keep(page, "dropped")


def test_what_cannot_be_taken_is_said_in_the_page(open_page, server, sending, tmp_path):
    (tmp_path / "letter.tif").write_text("dear reader, " * 40)
    (tmp_path / "big.tif").write_bytes(b"x" * 3_000_000)
    limits = Limits(rate=1e6, burst=10**6, upload=2_500_000)
    page = open_page(server(**sending, limits=limits))
    page.wait_for_selector("#choose")
    drop(page, tmp_path / "big.tif", tmp_path / "letter.tif")
    page.wait_for_selector("text=big.tif has 3 MB; this server takes at most 2.5 MB")
    page.wait_for_selector("text=letter.tif: holds text, not an image. Give a GeoTIFF")
    assert page.locator("#job-before").is_hidden()
    page.click("text=Remove")
    playwright.expect(page.locator("[data-sending]")).to_have_count(0)
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 1000, 100_003):
        data = bytes(i * 7 % 251 for i in range(size))
        script = (
            "async ([size]) => { const { Sha256 } = await import('/static/js/sha256.js'); const h = new "
            "Sha256(); const b = Uint8Array.from({ length: size }, (_, i) => (i * 7) % 251); "
            "for (let at = 0; at < size; at += 777) h.add(b.subarray(at, at + 777)); return h.end(); }"
        )
        assert page.evaluate(script, [size]) == hashlib.sha256(data).hexdigest()
    open_page.troubles[:] = [t for t in open_page.troubles if "422" not in t]


def test_images_without_a_place_are_a_pair_in_pixels(open_page, server, sending, tmp_path):
    rng = np.random.default_rng(0)
    files = []
    for name in ("one.png", "two.png"):
        files.append(tmp_path / name)
        Image.fromarray(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(files[-1])
    page = open_page(server(**sending), 390, 844)
    page.wait_for_selector("#choose")
    page.set_input_files("#files", files)
    page.wait_for_selector("[data-about=after] >> text=no place on the earth")
    page.wait_for_selector("text=areas are in pixels")
    assert page.is_checked("#job-pixels")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
    page.fill("#job-area", "300, 300, 400, 400")
    page.keyboard.press("Enter")
    page.select_option("#job-model", "difference")
    page.click("text=Start")
    page.wait_for_selector("text=lies outside of the image before: it is columns 300 to 400, rows 300 to 400")
    page.fill("#job-area", "10, 20, 110, 100")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Only this area is compared.")
    page.locator("#job-area").scroll_into_view_if_needed()
    keep(page, "drop-phone")
    assert serious(page) == []
    page.click("text=Start")
    page.wait_for_selector("[data-state=done]", timeout=6 * WAIT)
    page.click("[data-state=done] >> text=Show")
    page.wait_for_selector(".sentence")
    assert "areas are in pixels" in page.inner_text(".warning")
    metres = re.compile(r"\d (?:m|km|ha)\b|m²|°")
    for name in ("summary", "quality", "run", "files"):
        page.click(f"#tab-{name}")
        page.wait_for_selector(f"#tab-{name}[aria-selected=true]")
        page.wait_for_timeout(200)
        assert metres.search(page.inner_text("#panel")) is None, name
    page.click("#measure")
    for x, y in ((60, 120), (150, 160), (90, 220)):
        page.locator(MAP).click(position={"x": x, "y": y})
    assert re.fullmatch(r"[\d,.]+ px, [\d,.]+ px enclosed", page.inner_text("#readout"))
    made = next(p for p in (tmp_path / "work").iterdir() if p.name.startswith("two-"))
    grid = json.loads((made / "run.json").read_text())["grid"]
    assert (grid["width"], grid["height"]) == (100, 80)
    open_page.troubles[:] = [t for t in open_page.troubles if "422" not in t]
