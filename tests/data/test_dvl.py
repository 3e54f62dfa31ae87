"""DVL-Bench as released: the reader, the messages, the coding of masks, and questions made from maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from terralapse.data.dvl import (
    IMAGE,
    LAND_COVER,
    MULTIPLE,
    SINGLE,
    TASKS,
    DvlSuite,
    change_of,
    from_stored,
    message,
    to_stored,
)
from terralapse.data.dvl_made import (
    BUILDING,
    Scene,
    ask_basic,
    ask_speed,
    describe,
    made_scene,
    report_basic,
    report_speed,
    solve,
    write_made,
)
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

YEARS = (2005, 2008, 2010, 2015, 2020)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(4)
    return [made_scene(f"austin/r{k}", YEARS, rng) for k in range(3)]


@pytest.fixture(scope="module")
def tree(scenes: list[Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvl")
    write_made(root, scenes)
    return root


def small() -> Scene:
    """10 x 10: of 10 pixels of building 5 more by the second date and 3 fewer by the third."""
    land = np.ones((3, 10, 10), np.uint8)
    land[:, 0] = BUILDING
    land[1:, 1, :5] = BUILDING
    land[2, 0, :3] = 3
    return Scene("city/region", (2010, 2012, 2016), land)


# --- the reader ------------------------------------------------------------------------------------------
def test_all_eight_files_are_read_in_their_order(tree: Path, scenes: list[Scene]) -> None:
    found = DvlSuite(tree)
    codes = [q.task.code for q in found]
    assert set(codes) == set(TASKS)
    assert codes == sorted(codes, key=list(TASKS).index)
    first = found[0]
    assert first.id == "basic_change_choice_qa_0"
    assert (first.choice, first.years, first.place) == (SINGLE, YEARS, "austin/r0")
    assert first.read_images()[0].shape == (3, 48, 48)
    report = next(q for q in found if q.task.code == "CSE-Report")
    assert report.truth == report_speed(scenes[0]) == report.answer


def test_a_mask_is_asked_of_its_two_dates(tree: Path, scenes: list[Scene]) -> None:
    question = DvlSuite(tree, tasks=("RCD",))[0]
    assert question.years == (2005, 2020)
    assert [p.stem for p in question.images] == ["2005", "2020"]
    before, after = scenes[0].at(2005), scenes[0].at(2020)
    wanted = (before == question.source) & (after == question.target)
    assert wanted.any()
    assert (question.read_mask() == wanted).all()
    assert question.answer == "[SEG]."
    assert question.change == (question.source - 1) * 5 + question.target


def test_dates_are_shown_one_after_the_other_each_with_its_year(tree: Path) -> None:
    question = DvlSuite(tree, tasks=("BCA-QA",))[0]
    parts = message(question)
    shown = [(p.year, p.images[0].name) for p in parts if p.images]
    assert shown == [(y, f"{y}.tif") for y in YEARS]
    assert [p.text for p in parts if p.text.startswith("\nyear")] == [f"\nyear {y}:" for y in YEARS]
    assert question.options in parts[-1].text
    assert "ONLY the capital letter" in parts[-1].text
    video = message(question, video=True)
    assert [len(p.images) for p in video] == [0, 0, 5, 0]
    assert "2005, 2008, 2010, 2015, 2020" in video[1].text


def test_of_a_pair_the_images_stand_where_the_text_has_them(tree: Path) -> None:
    parts = message(DvlSuite(tree, tasks=("RCD",))[0])
    assert [bool(p.images) for p in parts] == [False, True, False, True, False]
    assert parts[-1].text.endswith("Please output segmentation mask.")
    one = message(DvlSuite(tree, tasks=("EA",))[0])
    assert [bool(p.images) for p in one] == [True, False]


def test_other_wordings_are_taken_and_checked(tree: Path) -> None:
    question = DvlSuite(tree, tasks=("DTC",))[0]
    parts = message(question, {"dense_temporal_caption": f"Before {IMAGE} after"})
    assert (parts[0].text, parts[-1].text) == ("Before ", " after")
    with pytest.raises(SettingError, match="0 times"):
        message(question, {"dense_temporal_caption": "no place"})


def test_what_is_missing_or_strange_is_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="holds no file of questions"):
        DvlSuite(tmp_path)
    with pytest.raises(SettingError, match="none of DVL-Bench"):
        DvlSuite(tree, tasks=("XYZ",))
    folder = tmp_path / "test"
    folder.mkdir()
    record = json.loads((tree / "test/dense_temporal_caption.json").read_text())[0]
    path = folder / "dense_temporal_caption.json"
    path.write_text(json.dumps([record]))
    with pytest.raises(FileMissingError, match="dense_temporal_caption_0"):
        DvlSuite(tmp_path)
    assert (len(DvlSuite(tmp_path, partial=True)), DvlSuite(tmp_path, partial=True).missing) == (0, 1)
    path.write_text(json.dumps([{**record, "time_stamps": ["2005"]}]))
    with pytest.raises(UnreadableFileError, match="5 images and 1 time stamps"):
        DvlSuite(tmp_path)


# --- masks of change -------------------------------------------------------------------------------------
def test_codes_of_all_pairs_there_and_back() -> None:
    stored = np.array([[0, 255]] + [[10 * s + t, 0] for s in range(1, 6) for t in range(1, 6)], np.uint8)
    classes = from_stored(stored)
    assert (to_stored(classes) == stored).all()
    assert classes[1:, 0].tolist() == [6 * s + t for s in range(1, 6) for t in range(1, 6)]
    with pytest.raises(ValueError, match="no code"):
        from_stored(np.array([[16]]))


def test_a_change_in_the_name_of_a_file() -> None:
    assert change_of("a_2005_non vegetated surface2building.png") == (2, 4)
    with pytest.raises(UnreadableFileError, match="two classes"):
        change_of("a_roof2sky.png")


# --- made questions --------------------------------------------------------------------------------------
def test_speed_is_of_the_buildings_before_and_share_of_the_scene() -> None:
    scene = small()
    assert scene.speed(2010, 2012) == pytest.approx(0.5)
    assert scene.speed(2012, 2016) == pytest.approx(-3 / 15)
    assert scene.share(1, BUILDING, 2010, 2016) == pytest.approx(0.05)
    assert report_speed(scene) == (
        "The changes were as follows: 50.00% expansion from 2010 to 2012, 20.00% shrinkage from 2012 to 2016."
    )
    assert report_basic(scene) == (
        "Over the 2010-2016 period, 5.0% of the area changed from vegetation to building, "
        "3.0% of the area changed from building to water."
    )
    assert "2012-2016: building became water in the top-left." in describe(scene)


def test_wrong_choices_are_off_by_a_fifth_and_two_fifths() -> None:
    record = ask_speed(small(), np.random.default_rng(0))[0]
    values = sorted(float(line[3:-1]) for line in record["options_str"].splitlines())
    assert values == [30, 40, 50, 60, 70]


def test_a_reader_of_pixels_without_mistakes_answers_every_made_question(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    kinds = set()
    for scene in [*scenes, small()]:
        for record in ask_basic(scene, rng) + ask_speed(scene, rng):
            assert solve(record["prompts"], record["options_str"], scene) == record["ground_truth_option"], (
                record
            )
            kinds.add((record["task_type"], "buildings" in record["prompts"]))
    assert len(kinds) == 4
    assert {MULTIPLE, SINGLE} == {k for k, _ in kinds}
    with pytest.raises(SettingError, match="no question"):
        solve("What is love?", "A. x", scenes[0])
    assert len(LAND_COVER) == 5
