"""ChangeChat: its texts, its talks, the released layout, and its rules on masks with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_trees import BUILT, levir_mci, picture, save
from terralapse.cards import Task
from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import DATASETS, open_dataset
from terralapse.data.changechat import (
    KINDS,
    PROMPTS,
    TALK_PROMPTS,
    ChangeChat,
    MadeChangeChat,
    MaskFacts,
    count_answer,
    kind_of,
    made_records,
    place_answer,
    talk_count_answer,
    write_records,
)
from terralapse.data.chat import (
    ChatEncoding,
    ChatTensors,
    ChatTraining,
    is_chat,
    plain_text,
    squared,
    with_history,
)
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

AS_IT_IS = AugmentRecipe(hflip=0, vflip=0, turn=0)
ENCODING = ChatEncoding(16)


# --- texts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Roads: ['top-left'] buildings: []", "roads ['top-left'] buildings []"),
        ('He said "No!" (twice); so~ *what* #1...', "he said no twice so what 1"),
        ("  Yes.\n", "yes"),
        ("A,  B - C?", "a, b - c?"),
    ],
)
def test_texts_are_prepared_as_those_of_blip(text: str, plain: str) -> None:
    assert plain_text(text) == plain


def test_texts_are_cut_after_fifty_words() -> None:
    long = " ".join(f"w{i}" for i in range(60))
    assert plain_text(long).split() == [f"w{i}" for i in range(50)]
    assert len(plain_text(long, None).split()) == 60
    talk = with_history(
        [(TALK_PROMPTS["binary"], "Yes"), (TALK_PROMPTS["count"], "x " * 10)], TALK_PROMPTS["caption"]
    )
    assert plain_text(talk, None).endswith("these two images in detail")
    assert not plain_text(talk).endswith("in detail"), "the third question loses its end, as released"


def test_what_was_said_before_is_told() -> None:
    turns = [("Q1", "A1"), ("Q2", "A2")]
    assert with_history(turns, "Q3") == "q: Q1 a: A1 q: Q2 a: A2  q: Q3"
    assert with_history(turns[:1], "Q2", prefix=False) == "q: Q1 a: A1  q: Q2"
    assert (with_history([], "Q1"), with_history([], "Q1", prefix=False)) == ("q: Q1", "Q1")
    assert plain_text(with_history(turns, "Q3")) == "q q1 a a1 q q2 a a2 q q3"


def test_types_are_told_by_their_prompts() -> None:
    assert (
        {kind_of(text) for text in PROMPTS.values()}
        == set(PROMPTS)
        == set(KINDS) - {"open"} - {k for k in KINDS if k.startswith("talk_")}
    )
    assert [kind_of(text, talk=True) for text in TALK_PROMPTS.values()] == [
        "talk_binary",
        "talk_count",
        "talk_caption",
    ]
    assert (kind_of("What colour is the new roof?"), kind_of("Why?", talk=True)) == ("open", "talk_open")
    assert kind_of("please determine how many roads and buildings have changed") == "count"


# --- the released layout -----------------------------------------------------------------------------------
def human(*said: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]


TALK = human(
    f"<image> <image> {TALK_PROMPTS['binary']}",
    "No",
    TALK_PROMPTS["count"],
    "No roads has changed, and no buildings has changed.",
    TALK_PROMPTS["caption"],
    "No change has occurred.",
)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for date in "AB":
            save(tmp_path / f"images/{split}/{date}/{split}_000001.png", picture(ord(date), (24, 24)))
    files = [f"{{}}/{d}/{{}}_000001.png" for d in "AB"]
    train, test = ([f.format(s, s) for f in files] for s in ("train", "test"))
    caption = human(f"<image> <image> {PROMPTS['caption']}", "A road is built .")
    written = {
        "train": [
            {"id": 0, "image": train, "changeflag": 1, "conversations": caption},
            {"id": 9, "image": train, "changeflag": 0, "conversations": TALK},
        ],
        "test": [{"image_A": test[0], "image_B": test[1], "captions": list(BUILT), "changeflag": 1}],
        "test_open": [
            {"id": 1, "image": test, "conversations": human("<image>Where is the pond?", "Nowhere.")}
        ],
        "test_dialog": [{"id": 2, "image": test, "changeflag": 0, "conversations": TALK}],
    }
    for name, records in written.items():
        (tmp_path / f"changechat_105k_{name}.json").write_text(json.dumps(records))
    return tmp_path


def test_a_talk_of_three_turns_is_three_turns(released: Path) -> None:
    found = open_dataset("changechat", released, "train")
    assert is_chat(found)
    assert DATASETS["changechat"].task is Task.LANGUAGE
    assert len(found) == len(found.names) == 4
    turns = [found.turn(i) for i in range(4)]
    assert [t.kind for t in turns] == ["caption", "talk_binary", "talk_count", "talk_caption"]
    assert [t.changed for t in turns] == [True, False, False, False]
    assert turns[0].instruction == f"q: {PROMPTS['caption']}"
    assert turns[0].answers == ("A road is built .",)
    one, two = TALK_PROMPTS["binary"], TALK_PROMPTS["count"]
    assert turns[1].instruction == f"q: {one}"
    assert turns[2].instruction == f"q: {one} a: No  q: {two}"
    assert turns[3].instruction == (
        f"q: {one} a: No q: {two} a: No roads has changed, and no buildings has changed."
        f"  q: {TALK_PROMPTS['caption']}"
    )
    assert [t.number for t in turns] == [0, 0, 1, 2]
    pair = found[3]
    assert pair.images.shape == (2, 3, 24, 24)
    assert pair.images[0, :, 0, 0].tolist() == [10, 20, 30]


def test_files_of_test(released: Path) -> None:
    captions, asked, talk = (ChangeChat(released, s) for s in ("test", "test_open", "test_dialog"))
    assert captions.turn(0).answers == BUILT
    assert captions.turn(0).instruction == PROMPTS["caption"], "no q: where single turns are tested"
    assert ChangeChat(released, "test", prefix=True).turn(0).instruction == f"q: {PROMPTS['caption']}"
    assert (asked.turn(0).kind, asked.turn(0).instruction) == ("open", "Where is the pond?")
    assert asked.turn(0).changed is None
    assert talk.turn(0).instruction.startswith("q: ")
    assert (captions.title, captions.names) == ("ChangeChat-105k test", ["test/A/test_000001"])


def test_pairs_are_held_out_as_a_whole(released: Path) -> None:
    records = [
        {"id": i, "image": [f"train/A/{i}.png", f"train/B/{i}.png"], "conversations": TALK} for i in range(30)
    ]
    for i in range(30):
        for date in "AB":
            save(released / f"images/train/{date}/{i}.png", picture(i, (4, 4)))
    (released / "changechat_105k_train.json").write_text(json.dumps(records))
    rest, held = (open_dataset("changechat", released, s, holdout=0.3) for s in ("train-rest", "train-held"))
    assert len(rest) + len(held) == 90
    assert len(held) % 3 == 0
    assert not set(rest.names) & set(held.names)
    assert is_chat(held)
    assert [held.turn(i).kind for i in range(3)] == ["talk_binary", "talk_count", "talk_caption"]
    assert held[1].name == held.names[1]


def test_what_is_missing_is_named(released: Path) -> None:
    (released / "images/train/B/train_000001.png").unlink()
    with pytest.raises(
        FileMissingError, match=r"train_000001\.png.*changechat_105k_train\.json.*images=FOLDER"
    ):
        ChangeChat(released, "train")
    with pytest.raises(FileMissingError, match=r"nowhere.*like 1 more"):
        ChangeChat(released, "test", images=released / "nowhere")
    with pytest.raises(FileMissingError, match="changechat_105k_test_loc"):
        ChangeChat(released, "test_loc")
    with pytest.raises(SettingError, match="names no file"):
        ChangeChat(released)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is no JSON"),
        ('{"a": 1}', "no list of records"),
        ("[]", "no list of records"),
        ('[{"id": 1}]', "record 0 lacks 'image_A'"),
        ('[{"image": ["a", "b"]}]', "record 0 lacks 'conversations'"),
        ('[{"image": ["a", "b"], "conversations": [{"from": "gpt", "value": "x"}]}]', "does not alternate"),
        (json.dumps([{"image": ["a", "b"], "conversations": human("<image>", "x")}]), "empty turn"),
        ('[{"image_A": "a", "image_B": "b", "captions": []}]', "has no caption"),
    ],
)
def test_other_files_are_no_records(released: Path, text: str, fault: str) -> None:
    (released / "changechat_105k_train.json").write_text(text)
    with pytest.raises(UnreadableFileError, match=fault):
        ChangeChat(released, "train")


# --- the rules ---------------------------------------------------------------------------------------------
def mask() -> np.ndarray:
    """Of 30 x 30: two roads that touch at a corner and so are one, a speck, and three buildings."""
    found = np.zeros((30, 30), np.uint8)
    found[0, 0:6] = 1
    found[1:8, 6] = 1
    found[20, 20:25] = 1  # five pixels: too small
    found[12:16, 12:16] = 2
    found[22:25, 1:4] = 2
    found[22:25, 26:30] = 2
    return found


def test_counts_and_places_of_a_mask() -> None:
    facts = MaskFacts.of(mask())
    assert (facts.roads, facts.buildings) == (1, 3)
    assert facts.road_cells == ("top-left",)
    assert facts.building_cells == ("center-center", "bottom-left", "bottom-right")
    assert count_answer(facts) == "There are 1 new roads and 3 new buildings."
    assert talk_count_answer(facts) == "1 roads has changed, and 3 buildings has changed."
    assert place_answer(facts) == (
        "roads: ['top-left'] buildings: ['center-center', 'bottom-left', 'bottom-right']"
    )
    nothing = MaskFacts.of(np.zeros((30, 30), np.uint8))
    assert count_answer(nothing) == "There are no changes in roads or buildings."
    assert talk_count_answer(nothing) == "No roads has changed, and no buildings has changed."
    assert place_answer(nothing) == "roads: [] buildings: []"
    assert count_answer(MaskFacts(0, 2, (), ())) == "There are no new roads and 2 new buildings."


def test_a_part_across_cells_names_those_that_hold_enough() -> None:
    found = np.zeros((30, 30), np.uint8)
    found[14, 4:25] = 1  # six pixels in the left cell, ten and five in the others
    assert MaskFacts.of(found).road_cells == ("center-left", "center-center")
    assert MaskFacts.of(found).roads == 1


def test_records_of_a_pair() -> None:
    files = ("train/A/x.png", "train/B/x.png")
    found = made_records("x", files, mask(), BUILT)
    assert len(found) == 5 + 1 + 1 + 1 + 1
    assert [r["conversations"][1]["value"] for r in found[:5]] == list(BUILT)
    assert found[5]["conversations"] == human(f"<image> <image> {PROMPTS['binary']}", "Yes")
    assert found[6]["conversations"][1]["value"] == "There are 1 new roads and 3 new buildings."
    assert [t["value"] for t in found[8]["conversations"][1::2]][:2] == [
        "Yes",
        "1 roads has changed, and 3 buildings has changed.",
    ]
    assert found[8]["conversations"][5]["value"].rstrip(".").lower() in {
        b.rstrip(" .").lower() for b in BUILT
    }
    assert all(r["image"] == list(files) and r["changeflag"] == 1 for r in found)
    assert found == made_records("x", files, mask(), BUILT), "the same each time"
    ends = {
        made_records("x", files, mask(), BUILT, seed)[8]["conversations"][5]["value"] for seed in range(20)
    }
    assert len(ends) > 1
    tested = made_records("x", files, mask(), BUILT, test=True)
    assert len(tested) == 5
    assert tested[0]["captions"] == list(BUILT)
    still = made_records("y", files, np.zeros((9, 9), np.uint8), ["there is no difference ."])
    assert still[1]["conversations"][1]["value"] == "No"
    assert still[-1]["conversations"][5]["value"] == "There is no difference."


def test_made_and_written_records_are_the_same(tmp_path: Path) -> None:
    levir_mci(tmp_path, {"train": 2, "val": 2})
    made = open_dataset("levir-chat", tmp_path, "train")
    assert isinstance(made, MadeChangeChat)
    assert len(made) == 2 * 11
    assert write_records(made, tmp_path / "changechat_105k_train.json") == 18
    read = ChangeChat(tmp_path, "train")
    assert [read.turn(i) for i in range(22)] == [made.turn(i) for i in range(22)]
    assert np.array_equal(read[3].images, made[3].images)
    val = open_dataset("levir-chat", tmp_path, "val")
    assert [val.turn(i).kind for i in range(7)] == [
        "caption", "binary", "count", "place", "talk_binary", "talk_count", "talk_caption"
    ]  # fmt: skip
    assert val.turn(0).instruction == PROMPTS["caption"]
    assert val.turn(4).instruction.startswith("q: ")
    assert made[0].label is not None
    assert set(np.unique(made[0].label())) == {0, 1, 2}


# --- tensors -----------------------------------------------------------------------------------------------
def test_images_are_shrunk_as_pillow_does() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 20, 30)).astype(np.float32)
    found = squared(images, 8)
    theirs = Image.fromarray(images[1].transpose(1, 2, 0).astype(np.uint8)).resize(
        (8, 8), Image.Resampling.BICUBIC
    )
    assert np.array_equal(found[1].transpose(1, 2, 0), np.asarray(theirs))
    assert np.array_equal(squared(images[..., :20], 20), images[..., :20])


def test_turns_as_tensors(tmp_path: Path) -> None:
    levir_mci(tmp_path, {"train": 2})
    made = MadeChangeChat(tmp_path, "train")
    one = ChatTensors(made, ENCODING)[7]
    assert one["images"].shape == (2, 3, 16, 16)
    assert one["instruction"].startswith("q please indicate the locations")
    assert int(one["sample"]) == 7
    drawn = ChatTraining(made, ENCODING, AS_IT_IS, seed=3, mask=True)
    first = [drawn[i] for i in range(22)]
    assert sorted(int(d["sample"]) for d in first) == list(range(22))
    again = ChatTraining(made, ENCODING, AS_IT_IS, seed=3, mask=True)
    for given in first[:4]:
        turn = made.turn(int(given["sample"]))
        assert given["answer"] == plain_text(turn.answers[0])
        assert given["label"].max() <= 1
    assert again[30]["answer"] == drawn[30]["answer"]
    assert torch.equal(again[30]["images"], drawn[30]["images"])
    several = ChatTraining(ChangeChatOfTest(made), ENCODING, AS_IT_IS)
    assert {several[i]["answer"] for i in range(60)} == {"one", "two", "three"}


class ChangeChatOfTest:
    """One turn with three answers."""

    def __init__(self, made: MadeChangeChat) -> None:
        from terralapse.data.chat import Turn

        self.made, self.kinds, self.scheme, self.title = made, made.kinds, made.scheme, made.title
        self.names, self._turn = made.names[:1], Turn("caption", "what", ("one", "two", "three"))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        return self.made[index]

    def turn(self, index: int):
        return self._turn


def test_what_answers_name_by_its_place_is_not_moved(tmp_path: Path) -> None:
    levir_mci(tmp_path, {"train": 1})
    made = MadeChangeChat(tmp_path, "train")
    with pytest.raises(SettingError, match=r"augment_hflip=0\.5.*by its place"):
        ChatTraining(made, ENCODING, AugmentRecipe())
    with pytest.raises(SettingError, match="area_low"):
        ChatTraining(made, ENCODING, AugmentRecipe(hflip=0, vflip=0, turn=0, area_low=0.5))
    write_records(made, tmp_path / "changechat_105k_train.json")
    with pytest.raises(SettingError, match="has no masks"):
        ChatTraining(ChangeChat(tmp_path, "train"), ENCODING, AS_IT_IS, mask=True)
