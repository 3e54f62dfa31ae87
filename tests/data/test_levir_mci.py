"""LEVIR-MCI and LEVIR-CC as released, and from captions to the tensors of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_trees import BUILT, STILL, levir_mci, save
from terralapse.cards import Task
from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import DATASETS, open_dataset
from terralapse.data.levir_mci import CAPTIONS, LevirMci, read_captions
from terralapse.data.samples import CaptionedPair
from terralapse.data.training import TrainingSet, batch_of
from terralapse.data.words import START, Vocabulary, encode_all
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.sensors import Unit

AS_IT_IS = AugmentRecipe(hflip=0, vflip=0, turn=0)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return levir_mci(tmp_path, {"train": 4, "val": 2})


def in_ids(pair: CaptionedPair) -> CaptionedPair:
    return replace(pair, tokens=encode_all(Vocabulary.own(), pair.captions, 41))


class InIds:
    """A data set whose captions are in the own vocabulary."""

    def __init__(self, dataset: LevirMci) -> None:
        self.dataset, self.title, self.scheme = dataset, dataset.title, dataset.scheme

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> CaptionedPair:
        return in_ids(self.dataset[index])


# --- the reader --------------------------------------------------------------------------------------------
def test_pairs_in_the_order_of_the_list(tree: Path) -> None:
    found = open_dataset("levir-mci", tree, "train")
    assert found.names == [f"train_{n:06d}" for n in (1, 4, 7, 10)]
    assert (found.title, found.scheme.slug) == ("LEVIR-MCI train", "levir-mci")
    assert DATASETS["levir-mci"].task is Task.LANGUAGE
    built, still = found[0], found[1]
    assert built.images.shape == (2, 3, 32, 32)
    assert built.images[1, :, 3, 3].tolist() == [230, 230, 230]
    assert (built.unit, built.gsd, built.bands) == (Unit.RGB255, 0.5, ("red", "green", "blue"))
    assert [int(v) for v in np.unique(built.label)] == [0, 1, 2]
    assert built.label[14, 5] == 1  # a road is stored as 128
    assert built.label[3, 3] == 2  # a building as 255
    assert (built.captions, built.changed) == (BUILT, True)
    assert (still.captions, still.changed) == (STILL, False)
    assert not still.label.any()
    assert [p.name for p in open_dataset("levir-mci", tree, "val")] == ["val_000001", "val_000004"]


def test_levir_cc_has_no_masks(tmp_path: Path) -> None:
    levir_mci(tmp_path, {"test": 1}, masks=False)
    pair = open_dataset("levir-cc", tmp_path, "test")[0]
    assert pair.label is None
    assert pair.captions == BUILT
    with pytest.raises(FileMissingError, match="read it as levir-cc"):
        open_dataset("levir-mci", tmp_path, "test")


def test_a_file_of_captions_without_a_split_has_its_folder(tree: Path) -> None:
    stated = json.loads((tree / CAPTIONS).read_text())
    for entry in stated["images"]:
        del entry["split"]
    (tree / CAPTIONS).write_text(json.dumps(stated))
    assert set(read_captions(tree / CAPTIONS)) == {
        *(("train", f"train_{n:06d}.png") for n in (1, 4, 7, 10)),
        *(("val", f"val_{n:06d}.png") for n in (1, 4)),
    }


def test_what_is_missing_is_named(tree: Path) -> None:
    with pytest.raises(SettingError, match=r"split=test.*has no pair.*train, val"):
        LevirMci(tree, "test")
    (tree / "images/train/B/train_000007.png").unlink()
    with pytest.raises(FileMissingError, match=r"B/train_000007\.png.*not there"):
        LevirMci(tree, "train")
    with pytest.raises(FileMissingError, match="LevirCCcaptions"):
        LevirMci(tree / "images", "train")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[", "no list of captions"),
        ('{"images": [{"filename": "a.png", "sentences": []}]}', "no list of captions"),
        ('{"images": [{"split": "train", "filename": "a.png", "sentences": []}]}', "no sentence"),
        ('{"images": [{"split": "train", "filename": "a.png", "sentences": [{"raw": " "}]}]}', "empty one"),
    ],
)
def test_another_file_is_no_list_of_captions(tree: Path, text: str, fault: str) -> None:
    (tree / CAPTIONS).write_text(text)
    with pytest.raises(UnreadableFileError, match=fault):
        LevirMci(tree, "train")


def test_a_mask_that_was_resampled_is_refused(tree: Path) -> None:
    save(tree / "images/train/label/train_000001.png", np.full((32, 32, 3), 127, np.uint8))
    with pytest.raises(UnreadableFileError, match=r"train_000001\.png.*holds 127.*128"):
        LevirMci(tree, "train")[0]
    save(tree / "images/train/label/train_000001.png", np.zeros((16, 32, 3), np.uint8))
    with pytest.raises(UnreadableFileError, match="same height"):
        LevirMci(tree, "train")[0]


# --- batches -----------------------------------------------------------------------------------------------
def test_a_batch_holds_every_caption(tree: Path) -> None:
    pairs = [in_ids(p) for p in LevirMci(tree, "val")]
    fewer = replace(pairs[1], captions=pairs[1].captions[:2], tokens=pairs[1].tokens[:2])
    batch = batch_of([pairs[0], fewer])
    assert batch["captions"].shape == (2, 5, 41)
    assert batch["changed"].tolist() == [True, False]
    assert (batch["captions"][:, :, 0] == START).sum(dim=1).tolist() == [5, 2]
    assert batch["label"].shape == (2, 32, 32)
    assert Vocabulary.own().decode(batch["captions"][0, 2].tolist()) == (
        "two houses appear at the edge of the scene"
    )
    without = batch_of(list(LevirMci(tree, "val")))
    assert not {"captions", "changed"} & without.keys()


def test_training_draws_a_caption_and_keeps_the_one_of_no_change(tree: Path) -> None:
    drawn = TrainingSet(InIds(LevirMci(tree, "train")), AS_IT_IS, 32, seed=1)
    own = Vocabulary.own()
    said = [own.decode(drawn[i]["tokens"].tolist()) for i in range(80)]
    still = [s for s in said if s.startswith("the scene")]
    assert set(still) == {"the scene is the same as before"}
    assert len(still) == 40
    assert len(set(said)) == 6  # that one, and all five about houses
    again = TrainingSet(InIds(LevirMci(tree, "train")), AS_IT_IS, 32, seed=1)
    assert torch.equal(drawn[7]["tokens"], again[7]["tokens"])
    assert torch.equal(drawn[7]["images"], again[7]["images"])


def test_what_captions_describe_is_not_moved_or_cut(tree: Path) -> None:
    pairs = InIds(LevirMci(tree, "train"))
    for name in ("hflip", "vflip", "turn", "swap"):
        with pytest.raises(SettingError, match=rf"augment_{name}.*by its place"):
            TrainingSet(pairs, replace(AS_IT_IS, **{name: 0.5}), 32)[0]
    with pytest.raises(SettingError, match="size=16: cuts images of 32 x 32"):
        TrainingSet(pairs, AS_IT_IS, 16)[0]
    with pytest.raises(SettingError, match="cuts images"):
        TrainingSet(pairs, replace(AS_IT_IS, area_low=0.5), 32)[0]
