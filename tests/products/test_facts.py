"""Facts: typed, evidenced, and the only thing that sentences are made of."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import resources

import jsonschema
import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from terralapse.grid.scene import Note
from terralapse.labels import Reason
from terralapse.products.facts import collect, write_facts
from terralapse.products.findings import find


def schema():
    text = resources.files("terralapse.products").joinpath("facts.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


def facts_of(run):
    return collect(find(run))


def cases(make_run):
    box = GeoBox((240, 320), Affine(1, 0, 0, 0, -1, 0), None)
    one = np.zeros((240, 320), bool)
    one[100:120, 100:120] = True
    yield "plain", make_run()
    yield "nothing", make_run(change=np.zeros((240, 320), bool))
    yield "one", make_run(change=one)
    yield "pixels", make_run(box=box)
    yield "uncalibrated", make_run(card=replace(make_run().card, figures=()))


def test_every_case_meets_the_schema(make_run, tmp_path):
    for name, run in cases(make_run):
        path = tmp_path / f"{name}.json"
        write_facts(facts_of(run), path)
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
        jsonschema.validate(content, schema())


def test_every_number_of_a_sentence_is_a_value_of_a_fact_that_it_cites(make_run):
    for _, run in cases(make_run):
        facts = facts_of(run)
        said = [(s["text"], s["facts"]) for s in facts.summary]
        said += [(f.sentence, f.cites) for f in facts.facts.values()]
        for text, cites in said:
            displays = " ".join(facts[c].display for c in cites)
            template = re.sub(r"Object \d+|object \d+|within 0\.15|Square \w+", "", text)
            for number in re.findall(r"\d[\d,.]*\d|\d", template):
                assert number in displays, (text, displays)


def test_the_values_are_those_of_the_rasters(make_run):
    facts = facts_of(make_run())
    assert facts["object.count"].value == 3
    assert facts["area.changed"].value == pytest.approx(4 * (2400 + 600 + 60 + 1), rel=2e-3)
    assert facts["share.changed"].value == pytest.approx(3061 / (240 * 320), rel=1e-3)
    assert facts["object.1.area"].evidence == {"polygons": [1]}
    assert facts["object.1.place"].value["window"] == [30, 200, 60, 40]
    assert facts["object.half"].value == 1
    assert facts["area.changed"].evidence == {"raster": "change.tif", "window": [0, 0, 240, 320]}
    assert facts["date.interval"].value == pytest.approx(389.4375)
    assert facts["location.main"].value == "north-east"
    # the middles of the two blocks: (60, 220) and (160, 55), 2 m a pixel
    assert facts["object.1.nearest"].value == pytest.approx(2 * np.hypot(100, 165), rel=0.05)


def test_what_was_masked_is_told_by_reason(make_run):
    reason = np.zeros((240, 320), np.uint8)
    reason[:60] = Reason.CLOUD_AFTER
    facts = facts_of(make_run(reason=reason))
    assert facts["share.masked"].value == pytest.approx(0.25, rel=1e-3)
    assert facts["masked.cloud_after"].sentence.endswith("could not be compared: cloud after.")
    assert "masked.cloud_before" not in facts
    assert "25 % of the area could not be compared." in facts.text


def test_uncertainty_is_told_only_where_it_can_be(make_run):
    calibrated = facts_of(make_run())
    told = calibrated["area.changed"].uncertainty
    assert told["kind"] == "model-based"
    assert told["value"] == calibrated["area.expected"].value
    assert calibrated["confidence.false"].value == pytest.approx(0.1)
    plain = facts_of(make_run(card=replace(make_run().card, figures=())))
    assert plain["area.changed"].uncertainty is None
    assert "area.expected" not in plain
    assert "no chance of being right" in plain.text


def test_nothing_found_says_so(make_run):
    facts = facts_of(make_run(change=np.zeros((240, 320), bool)))
    assert "no change was found in the" in facts.text
    assert facts["object.count"].value == 0


def test_warnings_are_facts_and_braces_in_names_are_harmless(make_run):
    run = make_run(warnings=[Note("warning", "odd", "A {brace} in a name.")])
    facts = facts_of(run)
    assert facts["warning.1"].sentence == "A {brace} in a name."


def test_the_alignment_is_told_as_it_was_measured(make_run):
    facts = facts_of(make_run())
    assert facts["alignment.residual"].value == 0.09
    assert facts["alignment.verdict"].value == "good"
    assert facts.summary[-1]["text"] == "The dates are aligned within 0.2 px after correcting 1.4 px."
    skipped = facts_of(make_run(alignment={"verdict": "The shift was not measured."}))
    assert skipped["alignment.verdict"].value == "unknown"
    assert "alignment.residual" not in skipped
