"""The reader of DisasterM3, the sheet of damage, and the benchmark made from maps."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from disaster_pairs import block_maps, made_pair
from terralapse.data.disaster_made import count_options, write_made
from terralapse.data.disaster_sheet import DamageSheet, read_maps
from terralapse.data.disaster_words import MOST_WORDS, NO_RECOVERY, caption_of, recovery_of
from terralapse.data.disasterm3 import OPTICAL, SAR, UNSTATED, DisasterM3, read_options, read_picture
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError


def records(folder, subset, *given):
    (folder / f"{subset}.json").write_text(json.dumps(list(given)), encoding="utf-8")
    return DisasterM3(folder, subset)


@pytest.mark.parametrize(
    ("truth", "options"),
    [
        (0, (0, 1, 2, 3, 4)),
        (1, (0, 1, 2, 3, 4)),
        (3, (1, 2, 3, 4, 5)),
        (10, (6, 8, 10, 12, 14)),
        (57, (34, 46, 57, 68, 80)),
    ],
)
def test_options_of_a_count_are_20_and_40_per_cent_off(truth, options) -> None:
    assert count_options(truth) == options


def test_options_always_differ_and_hold_the_truth() -> None:
    for truth in range(300):
        found = count_options(truth)
        assert len(set(found)) == 5
        assert truth in found
        assert min(found) >= 0


def test_options_are_read_from_one_line_or_several() -> None:
    assert read_options("A. bridge B. road C. dam") == {"A": "bridge", "B": "road", "C": "dam"}
    assert read_options("(A) 12\n(B) 15") == {"A": "12", "B": "15"}
    assert read_options("A. plan B is bad, B. road") == {"A": "plan B is bad", "B": "road"}
    assert read_options("bridge, road") == {}


def test_each_subset_shows_its_own_images(tmp_path) -> None:
    base = {"prompts": "Q?", "options_str": "A. a B. b", "ground_truth_option": "A", "post_image_type": "SAR"}
    pair = base | {"pre_image_path": "pre\\a.png", "post_image_path": "post/b.png"}
    one = records(tmp_path, "landuse", pair)[0]
    assert one.images == (tmp_path / "images/pre/a.png",)
    two = records(tmp_path, "bearing_body", pair, pair)[1]
    assert two.images == (tmp_path / "images/pre/a.png", tmp_path / "images/post/b.png")
    assert (two.id, two.sensor, two.letters) == ("bearing_body_1", SAR, "AB")
    del base["options_str"]
    marked = base | {"image_path": "marked\\c.png", "option_str": "A. x", "post_image_type": ""}
    three = records(tmp_path, "relational_reasoning_qa", marked)[0]
    assert (three.images, three.options_text) == ((tmp_path / "marked/c.png",), "A. x")
    assert three.sensor == UNSTATED


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "C:\\x.png", "a/../../b.png"])
def test_a_record_cannot_lead_out_of_the_folder(tmp_path, path) -> None:
    bad = {"prompts": "", "options_str": "A. a", "ground_truth_option": "A", "pre_image_path": path}
    with pytest.raises(UnreadableFileError, match="leads out"):
        records(tmp_path, "landuse", bad)[0]


def test_what_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(SettingError, match="no_such"):
        DisasterM3(tmp_path, "no_such")
    with pytest.raises(FileMissingError, match=r"caption\.json"):
        DisasterM3(tmp_path, "caption")
    (tmp_path / "caption.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(UnreadableFileError, match="no list"):
        DisasterM3(tmp_path, "caption")
    with pytest.raises(UnreadableFileError, match="record 0 has no options_str"):
        records(tmp_path, "landuse", {"prompts": "Q"})[0]


def test_radar_becomes_three_equal_channels(tmp_path) -> None:
    path = tmp_path / "sar.png"
    deep = np.exp(np.random.default_rng(1).normal(6, 1, (40, 40))).astype(np.uint16)
    Image.fromarray(deep).save(path)
    picture = read_picture(path)
    assert picture.shape == (40, 40, 3)
    assert (picture[..., 0] == picture[..., 2]).all()
    order = np.argsort(deep.ravel(), kind="stable")
    assert (np.diff(picture[..., 0].ravel()[order].astype(int)) >= 0).all()
    assert 0.01 < (picture[..., 0] == 0).mean() < 0.04  # the 2 % below the stretch, and ties
    Image.fromarray(np.full((4, 4), 37, np.uint8)).save(path)
    assert (read_picture(path) == 37).all()  # 8 bits are stretched already
    assert read_picture(path, 9).shape == (9, 9, 3)


def test_the_sheet_counts_instances_and_not_pixels() -> None:
    damage, roads = block_maps(5, 3, 2, flooded=2, debris=1)
    damage[0:4, 0:4] = 0
    damage[40:48, 4:24] = 1  # one large building for the one that is gone
    damage[63, 0] = 4  # a speck
    sheet = DamageSheet.of(damage, roads)
    assert sheet.buildings == {"intact": 5, "damaged": 3, "destroyed": 2}
    assert sheet.roads == {"intact": 1, "flooded": 2, "debris": 1}
    assert sheet.building_share["intact"] == (4 * 16 + 160) / damage.size
    assert sheet.to_bad_road["intact"] == 58 - 47
    assert DamageSheet.of(*block_maps(3, 0, 1)).to_bad_road["intact"] is None


def test_words_hold_the_counts_and_keep_to_the_form() -> None:
    sheet = DamageSheet.of(*block_maps(4, 1, 2, 1, 1))
    caption = caption_of(sheet).splitlines()
    assert caption[1] == "BUILDING: 4 intact buildings, 1 damaged building, 2 destroyed buildings."
    assert [line.partition(":")[0] for line in caption][::6] == ["DISASTER", "CONCLUSION"]
    for line in recovery_of(sheet).splitlines():
        assert len(line.split()) - 1 <= MOST_WORDS
    assert recovery_of(DamageSheet.of(*block_maps(4, 0, 0))) == NO_RECOVERY


def test_a_made_benchmark_reads_back(tmp_path) -> None:
    maps = write_made(tmp_path, [made_pair("one", 4, 3, 10, 1, 1), made_pair("two", 2, 0, 0, sar=True)])
    counts = DisasterM3(tmp_path, "building_damage_counting")
    assert len(counts) == 6
    third = counts[2]
    assert third.question == "How many destroyed buildings are there?"
    assert third.options[third.truth] == "10"
    assert sorted(map(int, third.options.values())) == [6, 8, 10, 12, 14]
    assert (third.sensor, counts[5].sensor) == (OPTICAL, SAR)
    assert [counts[i].truth for i in range(6)] == [
        DisasterM3(tmp_path, counts.subset.name)[i].truth for i in range(6)
    ]
    damage, roads = read_maps(maps, third.images[-1])
    assert (damage == made_pair("one", 4, 3, 10, 1, 1).damage).all()
    assert set(np.unique(roads)) == {0, 1, 2, 3}
    (maps / "damage/one.png").unlink()
    with pytest.raises(FileMissingError, match="map of damage"):
        read_maps(maps, third.images[-1])
