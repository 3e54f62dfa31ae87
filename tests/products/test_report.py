"""The report: one file, nothing from outside, nothing that can act, readable by all."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from terralapse.grid.scene import Note, Source
from terralapse.labels import Reason
from terralapse.products.facts import collect
from terralapse.products.findings import find
from terralapse.products.report import write_report

ATTACK = "\"><img src=x onerror=alert(1)></script><script>alert('{{7*7}}')</script>&amp;"


def page_of(run):
    findings = find(run)
    path = run.folder / "report.html"
    write_report(findings, collect(findings), path)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with attributes, ids, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.visible = ""
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("script", "style") else self._in

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)
        elif self._in != "style":
            self.visible += data


@pytest.fixture
def page(make_run):
    reason = np.zeros((240, 320), np.uint8)
    reason[:, :20] = Reason.CLOUD_AFTER
    return Page(page_of(make_run(reason=reason)))


def test_nothing_is_loaded_from_anywhere(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value[:80])
            if name == "src" and name in attributes:
                assert value.startswith("data:image/webp;base64,")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_policy_allows_this_script_and_no_other(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    _, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_text_from_outside_cannot_act(make_run, tmp_path):
    import geopandas as gpd
    import shapely

    zones = tmp_path / "z.gpkg"
    shape = [shapely.box(400000, 4099520, 400640, 4100000)]
    gpd.GeoDataFrame({"name": [ATTACK]}, geometry=shape, crs="EPSG:32615").to_file(zones)
    run = make_run(
        zones=zones,
        warnings=[Note("warning", "odd", ATTACK)],
        settings={"before": ATTACK, "after": ATTACK, "choice": ATTACK},
        state={"note": ATTACK},
    )
    for info in (run.pair.before, run.pair.after):
        info.name = info.nodata = info.level = ATTACK
        info.notes = [Note("info", "x", ATTACK)]
        info.sources = [Source(ATTACK, 1, "0" * 64)]
    run.alignment = run.alignment | {"verdict": ATTACK, "rule": ATTACK}
    text = page_of(run)
    page = Page(text)
    assert "<img src=x" not in text
    assert len(page.scripts) == 2
    assert "alert(1)" in page.visible  # shown as text
    assert "{{7*7}}" in page.visible
    assert "49" not in re.findall(r"alert\('(.*?)'\)", page.visible)


def test_citations_lead_to_facts_that_are_there(page):
    ids = {a["id"] for _, a in page.tags if "id" in a}
    targets = [a["href"][1:] for t, a in page.tags if t == "a" and (a.get("href") or "").startswith("#")]
    assert len(targets) > 20
    assert set(targets) <= ids
    assert "fact-area.changed" in targets
    assert len(ids) == len([a for _, a in page.tags if "id" in a]), "an id is used twice"


def test_it_can_be_used_without_a_mouse_and_without_eyes(page):
    tags = [t for t, _ in page.tags]
    assert {"header", "main", "nav", "footer", "h1", "figure", "figcaption"} <= set(tags)
    assert tags.count("h1") == 1
    assert dict(page.tags)["html"]["lang"] == "en"
    for tag, attributes in page.tags:
        if tag == "img":
            assert "alt" in attributes
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")
    swipe = next(a for t, a in page.tags if a.get("id") == "swipe")
    assert swipe["type"] == "range"
    assert swipe["aria-label"]
    view = next(a for t, a in page.tags if a.get("id") == "view")
    assert view["tabindex"] == "0"


def test_it_says_what_must_not_be_missed(page):
    for text in (
        "Automatic, not field validated",
        "The pixels are larger than those of training.",
        "Cloud after",
        "10 May 2023",
        "testnet/rgb",
        "The dates are aligned within 0.2 px after correcting 1.4 px.",
        "terralapse change before.tif after.tif -o OUT",
        "0123456789ab",
        "Has seen nothing but blobs.",
    ):
        assert text in page.visible, text


def test_links_go_to_files_beside_it(page):
    downloads = [a["href"] for t, a in page.tags if t == "a" and "download" in a]
    assert {"change.gpkg", "change.tif", "stats.csv", "facts.json", "map.pdf"} <= set(downloads)
    assert not any("/" in name for name in downloads)


def contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_the_contrast_of_aa_in_light_and_dark(page):
    from importlib import resources

    css = resources.files("terralapse.products").joinpath("templates/report.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        for ink in ("ink", "quiet", "accent", "bar", "good", "warn"):
            for ground in ("paper", "ground"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground, colours[ink])
        assert contrast(colours["ink"], colours["notice"]) >= 7


def test_the_two_dates_get_the_same_stretch(make_run):
    run = make_run()
    pictures = find(run).pictures
    apart = ~np.repeat((run.pair._images[0] != run.pair._images[1]).any(axis=0)[..., None], 3, axis=2)
    assert (pictures.before[apart] == pictures.after[apart]).all()
    assert (pictures.before != pictures.after).any()


def test_no_objects_no_gallery(make_run):
    page = Page(page_of(make_run(change=np.zeros((240, 320), bool))))
    assert "The largest changes" not in page.visible
    assert "no change was found" in page.visible
