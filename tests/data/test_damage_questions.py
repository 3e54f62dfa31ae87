"""Questions from maps of damage: rules, the positions that matter, and events that do not leak."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_trees import picture, save
from terralapse.data import damage_questions as m
from terralapse.data.bright import Bright
from terralapse.data.catalogue import open_dataset
from terralapse.data.pairs import IGNORE
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError


def blocks(*placed: tuple[int, int, int, int], side: int = 20) -> np.ndarray:
    """A map with squares of (row, column, side, value)."""
    found = np.zeros((side, side), np.uint8)
    for row, column, size, value in placed:
        found[row : row + size, column : column + size] = value
    return found


# 16 pixels intact and 4 destroyed in the upper left, 9 minor and 4 major in the lower right, a remnant.
MAP = blocks((0, 0, 4, 1), (6, 6, 2, 4), (12, 12, 3, 2), (16, 16, 2, 3), (0, 19, 1, 4), (19, 0, 1, IGNORE))


def xbd(root: Path, events: tuple[str, ...] = ("palu-tsunami", "socal-fire"), number: int = 6) -> Path:
    for e, event in enumerate(events):
        for i in range(number):
            name = f"{event}_{i:08d}"
            for date in ("pre", "post"):
                save(root / f"images/{name}_{date}_disaster.png", picture(100 * e + i, (20, 20)))
            damage = blocks((2 * (i % 4), 3, 3, 1 + (i + e) % 4), (12, 2 * e, 5, 1 + i % 4))
            save(root / f"masks/{name}_pre_disaster.png", (damage > 0).astype(np.uint8))
            save(root / f"masks/{name}_post_disaster.png", damage)
    return root


def test_areas_and_numbers() -> None:
    found = m.DamageAreas.of(MAP)
    assert found.areas.tolist() == [16, 13, 5]
    assert found.numbers.tolist() == [1, 2, 1], "one pixel is no building"
    assert found.quarters.tolist() == [[16, 0, 4], [0, 0, 1], [0, 0, 0], [0, 13, 0]]


def test_buildings_that_touch_by_a_corner_are_one() -> None:
    assert m.DamageAreas.of(blocks((0, 0, 2, 1), (2, 2, 2, 1), (6, 6, 2, 1))).numbers[0] == 2


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "none"),
        (1, "1_to_5"),
        (5, "1_to_5"),
        (6, "6_to_20"),
        (20, "6_to_20"),
        (50, "21_to_50"),
        (51, "more_than_50"),
    ],
)
def test_bins_of_numbers(number: int, name: str) -> None:
    assert m.count_bin(number) == name


def test_answers() -> None:
    found: dict[str, str] = {}
    for seed in range(60):
        asked = m.ask_all(m.DamageAreas.of(MAP), np.random.default_rng(seed))
        assert all(a.positional == (a.kind == "damage_where") for a in asked)
        for a in asked:
            assert found.setdefault(a.question, a.answer) == a.answer, "one text has one answer"
    assert found["How many damaged buildings are there?"] == "1_to_5"
    assert found["Are there any destroyed buildings?"] == "yes"
    assert found["How much of the area of buildings is intact?"] == "40_to_50"  # 16 of 34
    assert found["What is the percentage of destroyed buildings by area?"] == "10_to_20"  # 5 of 34
    assert found["Which state covers the largest area of buildings?"] == "intact"
    where = "Are there more {} buildings by area in the {} than in the {}?"
    assert found[where.format("intact", "upper left", "lower right")] == "yes"
    assert found[where.format("damaged", "upper left", "lower right")] == "no"
    assert where.format("damaged", "upper left", "lower left") not in found, "none on either side"


def test_no_building_and_a_tie() -> None:
    empty = m.ask_all(m.DamageAreas.of(blocks()), np.random.default_rng(0))
    assert Counter(a.kind for a in empty) == {"damage_or_not": 3, "damage_count": 3}
    assert {a.answer for a in empty} == {"no", "none"}
    tied = m.ask_all(m.DamageAreas.of(blocks((0, 0, 3, 1), (10, 10, 3, 4))), np.random.default_rng(0))
    assert "largest_damage" not in {a.kind for a in tied}


def test_all_words_are_known() -> None:
    words = m.words()
    for seed in range(30):
        for a in m.ask_all(m.DamageAreas.of(MAP), np.random.default_rng(seed)):
            numbers = words.numbers(a.question)
            assert 1 not in numbers
            assert a.answer in [c.name for c in m.DamageQuestions.scheme.classes]


def test_the_event_that_is_left_out_is_nowhere_else(tmp_path: Path) -> None:
    xbd(tmp_path)
    parts = {p: open_dataset("damage-vqa", tmp_path, p, leave="socal-fire") for p in m.PARTS}
    names = {p: set(d.names) for p, d in parts.items()}
    assert all(n.startswith("socal-fire") for n in names["test"])
    assert all(n.startswith("palu-tsunami") for n in names["train"] | names["val"])
    assert not names["train"] & names["val"]
    assert len(names["test"]) == 6
    assert len(names["train"] | names["val"]) == 6
    assert names["val"], "the held-back part is not empty"
    texts = {p: {q.description for q in d} for p, d in parts.items()}
    assert texts["train"] == texts["val"] == {m.event_text("palu-tsunami")}
    assert "fire" not in next(iter(texts["train"]))
    assert {q.domain for q in parts["test"]} == {"socal-fire"}


def test_tiles_of_one_scene_stay_together() -> None:
    parts = {m.part_of(f"a_00000003_{r}_{c}", "a", "b", 0.5) for r in range(4) for c in range(4)}
    assert len(parts) == 1
    share = np.mean([m.part_of(f"a_{i:08d}", "a", "b", 0.2) == "val" for i in range(500)])
    assert share == pytest.approx(0.2, abs=0.05)


def test_texts_of_events(tmp_path: Path) -> None:
    assert "tsunami" in m.event_text("palu-tsunami")
    assert "the sea" in m.event_text("palu-tsunami")
    assert m.event_text("somewhere") == "somewhere."
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps({"palu-tsunami": "A bay of Sulawesi."}))
    found = m.DamageQuestions(xbd(tmp_path / "xbd"), texts=texts)
    assert {q.description for q in found if q.domain == "palu-tsunami"} == {"A bay of Sulawesi."}
    texts.write_text('["a"]')
    with pytest.raises(UnreadableFileError, match="no object of texts"):
        m.read_texts(texts)
    with pytest.raises(FileMissingError, match="JSON"):
        m.read_texts(tmp_path / "none.json")
    prompt = m.text_prompt("Mountains.", "An earthquake.")
    assert "<geography>\nMountains.\n</geography>" in prompt
    assert "incorrect" in prompt


@pytest.mark.parametrize(
    ("split", "options", "match"),
    [
        ("test", {}, "leave=none: do not belong together"),
        (None, {"leave": "socal-fire"}, "do not belong together"),
        ("test", {"leave": "joplin-tornado"}, "There are palu-tsunami, socal-fire"),
        ("train", {"leave": "socal-fire", "share": 1.0}, "is no share"),
        (None, {"source": "ida"}, "xbd or bright"),
        (None, {"source": "bright", "folders": "train"}, "for xBD alone"),
    ],
)
def test_settings_that_make_no_sense(
    tmp_path: Path, split: str | None, options: dict[str, str], match: str
) -> None:
    xbd(tmp_path, number=2)
    with pytest.raises(SettingError, match=match):
        m.DamageQuestions(tmp_path, split, **options)  # pyright: ignore[reportArgumentType]


def test_names_without_an_event() -> None:
    assert m.event_of("la_palma-volcano_00000012_0_1") == "la_palma-volcano"
    with pytest.raises(SettingError, match="names no event"):
        m.event_of("tile_3")


# --- BRIGHT ----------------------------------------------------------------------------------------------
def bright(root: Path) -> Path:
    for event in ("noto-earthquake", "libya-flood"):
        name = f"{event}_00000001"
        save(root / f"pre-event/{name}_pre_disaster.tif", picture(1, (20, 20)))
        save(root / f"post-event/{name}_post_disaster.tif", picture(2, (20, 20))[..., 0])
        save(
            root / f"target/{name}_building_damage.tif",
            blocks((0, 0, 4, 1), (8, 8, 4, 2), (14, 14, 4, 3)),
        )
    (root / "val_set.txt").write_text("libya-flood_00000001\n")
    return root


def test_bright_as_released(tmp_path: Path) -> None:
    found = Bright(bright(tmp_path))
    assert found.names == ["libya-flood_00000001", "noto-earthquake_00000001"]
    pair = found[0]
    assert set(np.unique(pair.damage)) == {0, 1, 3, 4}
    assert (pair.images[1, 0] == pair.images[1, 2]).all(), "radar is repeated"
    assert (pair.images[0, 0] != pair.images[0, 2]).any()
    assert Bright(tmp_path, "val").names == ["libya-flood_00000001"]
    asked = m.DamageQuestions(tmp_path, source="bright")
    assert asked.events == ["libya-flood", "noto-earthquake"]
    assert all(q.sar for q in asked)
    counts = {q.asked.answer for q in asked if q.asked.kind == "damage_count"}
    assert counts == {"1_to_5"}


def test_bright_with_faults(tmp_path: Path) -> None:
    bright(tmp_path)
    path = tmp_path / "target/noto-earthquake_00000001_building_damage.tif"
    Image.fromarray(blocks((0, 0, 4, 7))).save(path)
    with pytest.raises(UnreadableFileError, match="holds 7"):
        Bright(tmp_path)[1]
    path.unlink()
    with pytest.raises(FileMissingError, match="noto-earthquake_00000001_building_damage"):
        Bright(tmp_path)
    (tmp_path / "val_set.txt").unlink()
    with pytest.raises(FileMissingError, match="val_set"):
        Bright(tmp_path, "val")
