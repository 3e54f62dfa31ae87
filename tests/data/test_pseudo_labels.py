from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from terralapse.data import labellers
from terralapse.data.change_events import PROMPTS
from terralapse.data.labellers import (
    LandCoverLabeller,
    SegmenterLabeller,
    ZeroShotLabeller,
    parts,
)
from terralapse.data.pairs import LabelledPair
from terralapse.data.pseudo_labels import PseudoLabels, agreement, guide_maps, write_pseudo_labels
from terralapse.errors import (
    FileMissingError,
    MissingExtraError,
    OutputExistsError,
    SettingError,
    UnreadableFileError,
)
from terralapse.sensors import Unit
from terralapse.tasks.segmentation import SegmentationOutput


class Bright:
    """A segmenter to which a building is what is bright."""

    bands = ("red", "green", "blue")

    def respond(self, batch: Mapping[str, Tensor], state: Mapping[str, Any]) -> SegmentationOutput:
        grey = batch["images"][:, 0].mean(dim=1)
        return SegmentationOutput(torch.stack([torch.zeros_like(grey), (grey - 100) / 10], dim=1))


def pair(name: str = "a") -> LabelledPair:
    """Dark ground with a building at both dates and one that is new."""
    images = np.full((2, 3, 32, 32), 50, np.float32)
    images[:, :, 4:10, 4:10] = 200
    images[1, :, 20:26, 18:28] = 200
    label = np.zeros((32, 32), np.uint8)
    label[20:26, 18:28] = 1
    return LabelledPair(name, images, label, 1.0, ("red", "green", "blue"), Unit.RGB255)


# --- labellers -----------------------------------------------------------------------------------------
def test_a_segmenter_gives_scores_and_instances() -> None:
    found = SegmenterLabeller(Bright())(pair().images[1])
    assert found.scores.shape == (len(PROMPTS), 32, 32)
    assert sorted(int(i.mask.sum()) for i in found.instances) == [36, 60]
    assert found.scores[1, 5, 5] == 1
    assert found.scores[1, 0, 0] == 0
    with pytest.raises(SettingError, match="positive"):
        SegmenterLabeller(Bright(), zoom=0)


def test_an_image_is_enlarged_for_the_segmenter_and_comes_back() -> None:
    found = SegmenterLabeller(Bright(), zoom=2.0)(pair().images[0])
    assert found.scores.shape[1:] == (32, 32)
    assert len(found.instances) == 1


def test_parts_are_connected_and_large_enough() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[0, 1] = mask[1, 0] = mask[2, 2] = True  # touches by a corner
    mask[6, 6] = True
    (found,) = parts(mask, least=2)
    assert found.mask.sum() == 5


def test_land_cover_from_files(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    cover = np.zeros((32, 32), np.uint8)
    cover[4:10, 4:10], cover[20:, :] = 7, 3
    Image.fromarray(cover).save(tmp_path / "A/a.png")
    found = LandCoverLabeller(tmp_path, {7: 1, 3: 4})(pair().images[0], "A/a")
    assert found.scores[1].sum() == 36
    assert found.scores[4, 25, 0] == 1
    assert found.scores[:, 15, 0].max() == 0  # a class that means nothing
    assert len(found.instances) == 1
    with pytest.raises(FileMissingError):
        LandCoverLabeller(tmp_path, {7: 1})(pair().images[0], "B/a")


def test_zero_shot_labels_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(labellers.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match="pip install transformers"):
        ZeroShotLabeller()


def test_a_zero_shot_model_is_asked_for_every_prompt() -> None:
    class Reply:
        logits = torch.full((6, 16, 16), -4.0)

    Reply.logits[0, :8] = 4.0
    asked: dict[str, Any] = {}

    def processor(**inputs: Any) -> dict[str, Tensor]:
        asked.update(inputs)
        return {"pixel_values": torch.zeros(6, 3, 16, 16)}

    found = ZeroShotLabeller(loaded=(processor, lambda **_: Reply()))(pair().images[0])
    assert asked["text"] == list(PROMPTS)
    assert asked["images"][0].shape == (32, 32, 3)
    assert found.scores.shape == (6, 32, 32)
    assert found.scores[0, 0, 0] > 0.9
    assert found.instances[0].mask[:12].all()


# --- labels of pairs -------------------------------------------------------------------------------------
@pytest.mark.parametrize("rule", ["instance", "mixed"])
def test_what_is_new_is_found(rule: Any) -> None:
    maps = guide_maps(pair(), SegmenterLabeller(Bright()), rule)
    assert np.array_equal(maps.change, pair().label)
    assert maps.first.sum() == 36
    nowhere = guide_maps(
        pair(), SegmenterLabeller(Bright()), rule, lambda p: np.zeros(p.label.shape, np.uint8)
    )
    assert nowhere.change.sum() == 0


def test_evidence_alone_leaves_buildings_unknown() -> None:
    maps = guide_maps(pair(), None, "evidence", lambda p: p.label)
    assert np.array_equal(maps.change, pair().label)
    assert (maps.first == 255).all()
    with pytest.raises(SettingError, match="evidence"):
        guide_maps(pair(), SegmenterLabeller(Bright()), "evidence")
    with pytest.raises(SettingError, match="labeller"):
        guide_maps(pair(), None, "mixed")


def test_labels_are_kept_in_the_released_layout(tmp_path: Path) -> None:
    pairs, labeller = [pair("a"), pair("b")], SegmenterLabeller(Bright())
    assert write_pseudo_labels(pairs, labeller, tmp_path, "train") == 2
    assert write_pseudo_labels([*pairs, pair("c")], labeller, tmp_path, "train") == 1
    assert (tmp_path / "gen_cd_label/train/a.png").is_file()
    assert (tmp_path / "gen_seg_label/train/B/c.png").is_file()
    found = PseudoLabels(tmp_path, "train")["a"]
    wanted = guide_maps(pair(), labeller)
    for name in ("change", "first", "second"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))
    with pytest.raises(OutputExistsError, match="another labeller"):
        write_pseudo_labels(pairs, labeller, tmp_path, "train", rule="instance")
    with pytest.raises(FileMissingError):
        PseudoLabels(tmp_path, "val")
    with pytest.raises(FileMissingError):
        PseudoLabels(tmp_path, "train")["z"]
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "gen_cd_label/train/a.png")
    with pytest.raises(UnreadableFileError, match="0, 1 and 255"):
        PseudoLabels(tmp_path, "train")["a"]


def test_agreement_counts_what_both_know() -> None:
    made = np.array([[1, 1, 0, 0, 255, 1]])
    true = np.array([[1, 0, 1, 0, 1, 255]])
    assert agreement([(made, true)]) == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "unknown": 0.2}
    assert agreement([]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "unknown": 0.0}
