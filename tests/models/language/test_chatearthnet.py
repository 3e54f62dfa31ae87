"""ChatEarthNet: the published statistics, captions by rules that can be read back, and what refuses a lie."""

from __future__ import annotations

import numpy as np
import pytest

from terralapse import registry
from terralapse.errors import SettingError
from terralapse.labels import CHATEARTHNET, LOVEDA, WORLDCOVER
from terralapse.models.language import chatearthnet as c
from terralapse.tasks.made_text import Item, faults


def halves() -> np.ndarray:
    label = np.full((256, 256), 3, np.uint8)
    label[:, 128:] = 6
    return label


def made(label: np.ndarray, scheme=CHATEARTHNET):
    maker = registry.build("chatearthnet")
    statistics = maker.statistics(Item("a", None, label, scheme))
    return maker, statistics


def test_halves_of_tree_and_crop() -> None:
    text = c.text_35(halves())
    assert text.startswith("tree; crop; \n")
    assert "The top left mainly contains" in text
    assert text.split("\n")[1].endswith("content: tree (extra large fraction).")
    assert text.split("\n")[5].endswith("tree (large fraction) and crop (large fraction).")


@pytest.mark.parametrize(("pixels", "told"), [(19, False), (20, True)])
def test_twenty_pixels_are_told_and_nineteen_are_not(pixels: int, told: bool) -> None:
    label = halves()
    label[0, :pixels] = 1
    maker, statistics = made(label)
    assert ("water" in c.text_35(label)) is told
    assert ("water" in maker.write(statistics, 0)[0]) is told


def test_nothing_but_background_is_nothing_to_say() -> None:
    assert made(np.zeros((256, 256), np.uint8))[1] is None
    assert c.text_35(np.zeros((8, 8), np.uint8)).count("content:\n") == 5


def test_shares_are_of_what_is_mapped_and_the_middle_overlaps() -> None:
    label = np.zeros((256, 256), np.uint8)
    label[:10, :10] = 1
    label[64:74, 64:74] = 5
    assert c.region_shares(c.regions(label)["top left"]) == {1: 0.5, 5: 0.5}
    assert c.kept(c.regions(label)["middle"]) == [5]


def test_codes_of_worldcover() -> None:
    codes = np.array([[10, 20, 30, 40, 50, 60], [70, 80, 90, 95, 100, 0]], np.uint8)
    assert c.from_worldcover(codes).tolist() == [[3, 4, 5, 6, 2, 7], [8, 1, 9, 10, 11, 0]]
    maker, statistics = made(np.where(halves() == 3, 10, 40).astype(np.uint8), WORLDCOVER)
    assert statistics["overall"] == ["tree", "crop"]
    assert not faults(maker.write(statistics, 1)[0], maker.sheet(statistics))


def test_colours_go_there_and_back() -> None:
    palette = np.array([v[:3] for v in CHATEARTHNET.palette().values()], np.uint8)
    assert c.decode_colours(palette[None])[0].tolist() == list(range(12))
    assert c.decode_colours(np.array([[[1, 2, 3]]], np.uint8)).tolist() == [[0]]


@pytest.mark.parametrize("seed", range(12))
def test_a_caption_by_rules_says_its_statistics_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = rng.choice([0, 1, 2, 3, 6, 7], (8, 8), p=[0.2, 0.1, 0.1, 0.3, 0.2, 0.1])
    label = np.kron(blocks, np.ones((16, 16), int)).astype(np.uint8)
    maker, statistics = made(label)
    caption = maker.write(statistics, seed)[0]
    told = {r: [(n, size) for n, _, size in p["told"]] for r, p in statistics["regions"].items()}
    assert c.parse(caption) == told
    assert faults(caption, maker.sheet(statistics)) == []
    assert caption == maker.write(statistics, seed)[0]
    for part in told.values():
        assert not part or part[0][0] in caption


def test_little_that_is_mapped_is_said_to_be_little() -> None:
    label = np.zeros((100, 100), np.uint8)
    label[:20] = 1
    maker, statistics = made(label)
    caption = maker.write(statistics, 0)[0]
    assert caption.startswith("Of the 20% of this place that is mapped, most is water.")
    assert faults(caption, maker.sheet(statistics)) == []


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("Wetland lies in the middle.", "class"),
        ("Crop is found in the top left.", "place"),
        ("Crop dominates the top left and the bottom left.", "order"),
        ("Tree takes up a small part of the top left.", "size"),
        ("Tree covers 70% of the middle.", "number"),
        ("There is no crop.", "class"),
        ("A river runs through the middle.", "thing"),
        ("Tree fills the top left near Munich.", "name"),
        ("Tree possibly fills the top left.", "banned"),
        ("It shows 7 land cover types.", "number"),
    ],
)
def test_what_is_not_in_the_map_is_found(sentence: str, kind: str) -> None:
    maker, statistics = made(halves())
    assert kind in {f.kind for f in faults(sentence, maker.sheet(statistics))}


@pytest.mark.parametrize(
    "sentence",
    [
        "Forest dominates the top left and the bottom left.",
        "About half of the middle is cropland.",
        "Tree covers 50% of the place, and no water is seen.",
        "Crop takes up an extra large portion of the top right.",
        "It shows two land cover types.",
    ],
)
def test_what_is_in_the_map_holds(sentence: str) -> None:
    maker, statistics = made(halves())
    assert faults(sentence, maker.sheet(statistics)) == []


def test_any_scheme_is_described_by_its_titles() -> None:
    maker, statistics = made(np.full((64, 64), 6, np.uint8), LOVEDA)
    assert statistics["overall"] == ["agriculture"]
    assert "agriculture" in maker.write(statistics, 0)[0]


def test_the_request_of_4v_has_the_maps_and_then_both_tables() -> None:
    content = c.messages_4v([halves(), halves()])[1]["content"]
    assert [p["type"] for p in content] == ["image_url", "image_url", "text"]
    assert "tree: top left part 100.00%, top right part 0.00%" in content[-1]["text"]
    assert "middle|tree: 0.50; crop: 0.50;" in content[-1]["text"]
    with pytest.raises(SettingError, match="one to four"):
        c.messages_4v([])
    with pytest.raises(SettingError, match=r"3\.5 or 4v"):
        registry.build("chatearthnet", variant="5")
