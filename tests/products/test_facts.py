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

from terralapse.errors import UnreadableFileError
from terralapse.grid.areas import Compass, on_ground
from terralapse.grid.cog import write_cog
from terralapse.grid.scene import Note
from terralapse.labels import DAMAGE, SECOND_MAMBA, Reason
from terralapse.products.class_facts import ClassMaps
from terralapse.products.facts import Facts, collect, write_facts
from terralapse.products.facts_file import read_facts
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
            template = re.sub(r"Objects \d+ and \d+|Object \d+|object \d+|within 0\.15|Square \w+", "", text)
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


def test_the_ninths_are_those_of_each_pixel_and_add_up(make_run):
    box = GeoBox((100, 150), Affine(30.0, 4, 400000, 3, -30.0, 6900000), "EPSG:32615")
    change = np.random.default_rng(3).random((100, 150)) < 0.3
    facts = facts_of(make_run(change=change, box=box))
    rows, cols = np.indices((100, 150)) + 0.5
    names = np.array(Compass(box).names(*on_ground(box.affine, cols.ravel(), rows.ravel())))
    pixel = facts["area.observed"].value / change.size
    for name in set(names):
        inside = (names == name).reshape(change.shape)
        assert facts[f"ninth.{name}.observed"].value == pytest.approx(inside.sum() * pixel, rel=1e-4)
        assert facts[f"ninth.{name}.changed"].value == pytest.approx(
            (inside & change).sum() * pixel, rel=1e-4
        )
    total = sum(facts[f"ninth.{name}.changed"].value for name in set(names))
    assert total == pytest.approx(facts["area.changed"].value)
    thirds = ("north-west", "north", "north-east")
    assert facts["part.north.changed"].value == pytest.approx(
        sum(facts[f"ninth.{n}.changed"].value for n in thirds)
    )
    assert facts["part.north.changed"].uncertainty["kind"] == "model-based"


def test_distances_and_boxes_of_the_largest(make_run):
    facts = facts_of(make_run())
    assert facts["distance.1.2"].value == pytest.approx(2 * np.hypot(100, 165), rel=0.02)
    west, south, east, north = facts["object.1.place"].value["box"]
    place = facts["object.1.place"].value
    assert west < place["lon"] < east
    assert south < place["lat"] < north


def class_run(make_run):
    """Trees became buildings (40 px in two patches), water became trees (20 px); two buildings damaged."""
    box = GeoBox((60, 90), Affine(1, 0, 0, 0, -1, 0), None)
    before, after, damage = (np.zeros((60, 90), np.uint8) for _ in range(3))
    before[5:10, 5:9], after[5:10, 5:9] = 3, 5
    before[40:45, 70:74], after[40:45, 70:74] = 3, 5
    before[50:54, 10:15], after[50:54, 10:15] = 4, 3
    damage[5:10, 5:9], damage[20:25, 20:25], damage[40:45, 70:74] = 4, 1, 4
    reason = np.zeros((60, 90), np.uint8)
    run = make_run(change=after > 0, box=box, reason=reason, classes=ClassMaps(SECOND_MAMBA, damage=True))
    for name, layer, scheme in (
        ("classes_before", before, SECOND_MAMBA), ("classes_after", after, SECOND_MAMBA),
        ("damage", damage, DAMAGE),
    ):  # fmt: skip
        write_cog(layer, run.folder / f"{name}.tif", geobox=box, kind="class", nodata=255, scheme=scheme)
    return run


def test_classes_transitions_and_damage(make_run, tmp_path):
    facts = facts_of(class_run(make_run))
    assert facts["transition.tree.building"].value == 40
    assert facts["transition.water.tree"].value == 20
    assert "transition.building.tree" not in facts
    assert facts["class.tree.lost"].value == 40
    assert facts["class.tree.gained"].value == 20
    assert facts["class.tree.net"].value == -20
    assert facts["class.water.became"].value == "tree"
    assert facts["class.building.objects"].value == 2
    assert facts["class.building.gained.share"].value == pytest.approx(40 / 5400)
    assert facts["ninth.north-west.class.building.gained"].value == 20
    assert facts["part.east.class.tree.lost"].value == 20
    assert facts["damage.buildings"].value == 3
    assert facts["damage.destroyed.count"].value == 2
    assert facts["damage.any.share"].value == pytest.approx(2 / 3)
    assert "class.tree.before" not in facts  # SECOND tells classes only where something changed
    path = tmp_path / "facts.json"
    write_facts(facts, path)
    jsonschema.validate(json.loads(path.read_text()), schema())
    again = Facts.from_dict(read_facts(path))
    assert again.as_dict() == facts.as_dict()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "damaged"),
        ("[]", "no record of facts"),
        ('{"schema": "terralapse-facts", "version": 9, "facts": [], "summary": []}', "version 9"),
        (
            '{"schema": "terralapse-facts", "version": 2, "facts": [{"id": "a"}], "summary": []}',
            "lacks facts",
        ),
    ],
)
def test_what_is_no_record_of_facts_is_refused(tmp_path, text, fault):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(UnreadableFileError, match=fault):
        read_facts(path)


def test_facts_of_version_1_still_read(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text('{"schema": "terralapse-facts", "version": 1, "facts": [], "summary": []}')
    assert read_facts(path)["version"] == 1
