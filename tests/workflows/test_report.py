"""The disaster report of a finished run."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rasterio.transform import from_origin

from fixtures_eo import write_tif
from terralapse import change
from terralapse.errors import FileMissingError, SettingError
from terralapse.labels import SCHEMES
from terralapse.products.disaster import disaster_report
from terralapse.products.disaster_facts import covers_of
from terralapse.products.disaster_rules import RULES
from terralapse.products.facts import Facts
from terralapse.products.facts_file import read_facts
from terralapse.workflows.facts import add_classes
from terralapse.workflows.report import report

HERE = from_origin(699000.0, 5200000.0, 2.0, 2.0)
SHAPE = (120, 160)


def raster(path: Path, data: np.ndarray, **more) -> Path:
    write_tif(path, data, crs="EPSG:32632", transform=HERE, **more)
    return path


def run_of(folder: Path, before: np.ndarray, after: np.ndarray, names: tuple[str, ...], **more) -> Path:
    for name, data in (("a_20200101.tif", before), ("b_20210101.tif", after)):
        raster(folder / name, data, descriptions=names)
    out = folder / "out"
    settings = {"model": "cva", "pictures": False, "coregister": False} | more
    change(folder / "a_20200101.tif", folder / "b_20210101.tif", out, **settings)
    return out


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Eight bits of red, green and blue; a square became bright."""
    folder = tmp_path_factory.mktemp("plain")
    first = np.random.default_rng(2).uniform(60, 90, (3, *SHAPE))
    second = first.copy()
    second[:, 80:110, 20:60] = 230
    return run_of(
        folder, first.astype("uint8"), second.astype("uint8"), ("red", "green", "blue"), pictures=True
    )


@pytest.fixture(scope="module")
def reflectance(tmp_path_factory) -> Path:
    """Vegetation everywhere; in the north-west 40 x 50 pixels became water, in the east 20 x 30 bare."""
    folder = tmp_path_factory.mktemp("bands")
    noise = np.random.default_rng(3).normal(0, 0.002, (4, *SHAPE))
    colours = {
        "green": (0.08, 0.06, 0.2),
        "red": (0.05, 0.03, 0.25),
        "blue": (0.04, 0.05, 0.15),
        "nir": (0.4, 0.01, 0.3),
    }
    first = np.array([np.full(SHAPE, c[0]) for c in colours.values()]) + noise
    second = first.copy()
    for i, c in enumerate(colours.values()):
        second[i, :40, :50] = c[1]
        second[i, 50:70, 120:150] = c[2]
    stored = [d.clip(0.001).astype("float32") for d in (first, second)]
    return run_of(folder, *stored, ("B03", "B04", "B02", "B08"))


def grades(folder: Path) -> Path:
    """Three buildings destroyed and one of minor damage in the south-west, one major in the north-east, four
    whole."""
    data = np.zeros(SHAPE, "uint8")
    for i, (row, col, grade) in enumerate(
        [
            (90, 10, 4),
            (90, 20, 4),
            (90, 30, 4),
            (100, 10, 2),
            (10, 130, 3),
            (10, 10, 1),
            (10, 20, 1),
            (10, 30, 1),
            (10, 40, 1),
        ]
    ):
        data[row : row + 5, col : col + 5 + i % 2] = grade
    return raster(folder / "grades.tif", data[None], nodata=255)


def texts(content: dict, *keys: str) -> str:
    return " ".join(s["text"] for k in keys for s in content[k])


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def every(content: dict) -> list[dict]:
    inside = [s for part in content["sections"] for s in (*part["statements"], part["unknown"]) if s]
    return [*content["short"], *inside, *content["immediate"], *content["long_term"], *content["cannot_tell"]]


@pytest.fixture(scope="module")
def told(plain) -> dict:
    """The report on it."""
    return report(plain, event="Test {storm} <b>")


def test_without_grades_it_says_what_changed_and_what_it_cannot_tell(plain, told) -> None:
    content = told
    assert "no grades of damage" in texts(content, "short")
    assert {s["rule"] for s in content["immediate"]} == {"verify-change"}
    assert "destroyed" not in texts(content, "short", "immediate", "long_term")
    unknown = {part["id"]: part["unknown"]["text"] for part in content["sections"] if part["unknown"]}
    assert set(unknown) == {"damage", "roads", "water", "vegetation"}
    assert "near infrared is missing" in unknown["water"]
    assert "How many people" in texts(content, "cannot_tell")
    assert "kind of disaster" not in texts(content, "cannot_tell"), "the user has said it"
    page = (plain / "disaster.html").read_text(encoding="utf-8")
    assert "Test {storm} &lt;b&gt;" in page
    assert json.loads((plain / "disaster.json").read_text(encoding="utf-8")) == content


def test_every_number_of_a_statement_stands_in_a_fact_that_it_cites(told) -> None:
    content = told
    facts = {f["id"]: f for f in content["facts"]}
    for said in every(content):
        assert set(said["facts"]) <= set(facts)
        shown = " ".join(facts[k]["display"] for k in said["facts"])
        for number in re.findall(r"\d[\d.,]*\d|\d", said["text"]):
            assert number in shown, (number, said)
    advice = content["immediate"] + content["long_term"]
    assert {s["rule"] for s in advice} == {r["id"] for r in content["rules"]}


@pytest.mark.usefixtures("told")
def test_the_page_loads_nothing_and_its_citations_lead_somewhere(plain) -> None:
    text = (plain / "disaster.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<script" not in text
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset"):
            value = attributes.get(name) or ""
            assert not re.match(r"(https?:)?//", value), (tag, value[:60])
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for t, a in page.tags if t == "a" and (a.get("href") or "").startswith("#")]
    assert set(links) <= set(ids)
    assert sum(k.startswith("fact-") for k in links) > 8
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    files = {a["href"] for t, a in page.tags if t == "a" and not (a.get("href") or "").startswith("#")}
    assert all((plain / f).is_file() for f in files)


@pytest.mark.usefixtures("told")
def test_the_folder_stays_whole_and_the_report_can_be_made_again(plain) -> None:
    record = json.loads((plain / "run.json").read_text(encoding="utf-8"))
    listed = {p["file"] for p in record["products"]}
    assert {"disaster.html", "disaster.json", "disaster.png", "disaster.pdf", "change.tif"} <= listed
    assert "disaster.html" in record["summary"]["files"]
    first = {n: (plain / n).read_bytes() for n in ("disaster.html", "disaster.json", "disaster.png")}
    report(plain, event="Test {storm} <b>")
    assert all((plain / n).read_bytes() == data for n, data in first.items())
    assert not list(plain.parent.glob(".out.*"))


def test_grades_lead_to_needs_by_rule(reflectance, tmp_path) -> None:
    add_classes(reflectance, damage=grades(tmp_path))
    content = report(reflectance)
    facts = {f["id"]: f for f in content["facts"]}
    assert facts["damage.destroyed.count"]["value"] == 3
    assert facts["homes.unfit"]["value"] == 4
    assert (facts["priority.place"]["value"], facts["priority.damaged"]["value"]) == ("south-west", 4)
    rules = [s["rule"] for s in content["immediate"]]
    assert rules == ["search", "start", "shore", "shelter", "water"]
    assert (
        content["immediate"][1]["text"]
        == "Start in the south-west: 4 buildings there are damaged in some grade."
    )
    assert [s["rule"] for s in content["long_term"]] == ["replan", "repair", "drainage", "replant"]
    assert "5 buildings were damaged in some grade, 55.6 % of the 9 buildings" in content["short"][0]["text"]


def test_indices_measure_water_and_vegetation(reflectance) -> None:
    facts = {f["id"]: f for f in report(reflectance)["facts"]}
    pixel = facts["cover.water.gained"]["value"] / (40 * 50)
    assert pixel == pytest.approx(4, rel=5e-3)
    assert facts["cover.water.before"]["value"] == 0
    assert facts["cover.vegetation.lost"]["value"] == pytest.approx((40 * 50 + 20 * 30) * pixel)
    assert facts["water.gained.share"]["value"] == pytest.approx(2000 / (SHAPE[0] * SHAPE[1]), rel=1e-4)
    assert "NDWI over 0" in facts["cover.water.gained"]["sentence"]
    assert "cover.burnt.gained" not in facts, "there is no band at 2.2 µm"


def test_images_that_are_not_those_of_the_run_are_not_measured(tmp_path, reflectance) -> None:
    import shutil

    folder = tmp_path / "out"
    shutil.copytree(reflectance, folder)
    record = json.loads((folder / "run.json").read_text())
    record["inputs"]["after"]["sources"][0]["sha256"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(record))
    said: list[str] = []
    content = report(folder, say=said.append)
    assert "not the one that the run has read" in said[0]
    assert "not the one that the run has read" in texts(content, "cannot_tell")
    record["settings"]["after"] = str(tmp_path / "gone.tif")
    (folder / "run.json").write_text(json.dumps(record))
    assert "cannot be read again" in texts(report(folder), "cannot_tell")


def test_maps_of_classes_go_before_indices_and_moves_inside_a_group_are_no_loss(
    reflectance, tmp_path
) -> None:
    value = {c.name: c.value for c in SCHEMES["loveda"].classes}
    before, after = np.full((2, *SHAPE), value["forest"], "uint8")
    after[:30, :50] = value["water"]
    after[60:80] = value["agriculture"]  # still vegetation
    before[100:104] = after[100:104] = value["road"]
    after[100:104, 40:80] = value["building"]
    paths = [raster(tmp_path / f"{n}.tif", d[None], nodata=255) for n, d in (("x", before), ("y", after))]
    add_classes(reflectance, before=paths[0], after=paths[1], scheme="loveda")
    content = report(reflectance)
    facts = {f["id"]: f for f in content["facts"]}
    area = facts["vegetation.lost"]["value"] / (30 * 50)
    assert area == pytest.approx(4, rel=5e-3)
    assert facts["water.gained"]["value"] == pytest.approx(30 * 50 * area)
    assert facts["roads.lost"]["value"] == pytest.approx(4 * 40 * area, rel=1e-3)
    assert {"roads", "water"} <= {s["rule"] for s in content["immediate"]}
    assert "driven on" in texts(content, "cannot_tell")


def test_a_run_without_change_calls_for_nothing(plain) -> None:
    facts = Facts.from_dict(read_facts(plain / "facts.json"))
    from dataclasses import replace

    for key in ("object.count", "area.changed", "share.changed"):
        facts.facts[key] = replace(facts[key], value=0)
    facts.facts["object.count"] = replace(facts["object.count"], display="0 objects")
    made = disaster_report(facts)
    assert [s.rule for s in made.immediate] == ["nothing"]
    assert made.long_term == []
    assert "0 objects of change" in made.immediate[0].text


def test_rules_have_names_of_their_own_and_say_when_they_hold() -> None:
    assert len({r.id for r in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.when.endswith(".")
        assert set(re.findall(r"\{([^}]+)\}", rule.text)) <= set(rule.needs), rule.id


def test_indices_need_their_bands() -> None:
    assert covers_of({"red", "green", "blue"}) == {}
    full = covers_of({"green", "red", "nir", "swir16", "swir22"})
    assert {k: c.index for k, c in full.items()} == {"vegetation": "ndvi", "water": "mndwi", "burnt": "nbr"}
    assert covers_of({"green", "red", "nir08"})["water"].index == "ndwi"


def test_bad_requests_are_told(tmp_path, plain) -> None:
    with pytest.raises(SettingError, match="flood"):
        report(plain, "flood")
    with pytest.raises(SettingError, match="one line"):
        report(plain, event="two\nlines")
    with pytest.raises(FileMissingError, match=r"run\.json"):
        report(tmp_path)


def test_the_command(plain, monkeypatch, capsys) -> None:
    from terralapse import cli

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["terralapse", "report", str(plain), *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0)

    assert call("--kind", "disaster", "--event", "Storm") == 0
    shown = capsys.readouterr().out
    assert "Immediate needs\n- Have somebody grade the changes" in shown
    assert "What this run cannot tell" in shown
    assert call("--kind", "poem") == 2
