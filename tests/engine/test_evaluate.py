"""The score of a detector that knows the answer is perfect, and the report can be recomputed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from terralapse.cards import Card, Status, Task
from terralapse.data.pairs import LabelledPair
from terralapse.engine.evaluate import predict_whole, score
from terralapse.errors import SettingError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.metrics import binary_scores


class Tiles:
    """Dark tiles in which a square lights up; the square is the label."""

    title = "squares"

    def __init__(self, number: int = 6, size: tuple[int, int] = (33, 41), level: float = 100.0) -> None:
        self.pairs = []
        rng = np.random.default_rng(5)
        for i in range(number):
            images = rng.normal(20, 1, (2, 2, *size)).astype(np.float32)
            label = np.zeros(size, np.uint8)
            label[4 + i : 14 + i, 5:20] = 1
            images[1][:, label == 1] += level
            self.pairs.append(LabelledPair(f"t{i}", images, label, 10.0, ("red", "nir"), Unit.RAW))

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[LabelledPair]:
        return iter(self.pairs)


class Brighter(ChangeDetector):
    """Change where the mean of the bands rose by more than half of the largest rise that it was fitted on."""

    card = Card("brighter", "Brighter", Task.CHANGE, Status.RUNS, threshold=0.5)
    halo = 3
    multiple = 8

    def __init__(self, stated: float | None = None) -> None:
        self.stated = stated
        self.seen: list[tuple[int, ...]] = []

    def fit(self, sample: PairSample) -> dict[str, Any]:
        rises = [(b.images[1] - b.images[0]).mean(axis=0)[b.valid].max() for b in sample]
        state = {"top": float(max(rises)), "blocks": len(rises)}
        return state if self.stated is None else state | {"threshold": self.stated}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        self.seen.append(tuple(images.shape))
        return ((images[:, 1] - images[:, 0]).mean(dim=1) / state["top"]).clamp(0, 1).nan_to_num(1.0)


def test_a_detector_that_is_right_scores_one_and_its_counts_say_so() -> None:
    tiles = Tiles()
    report = score(Brighter(), tiles)
    assert report.scores.f1 == 1
    assert report.scores.tp == 6 * 150
    assert report.counts.sum() == 6 * 33 * 41
    assert report.interval == (1.0, 1.0)
    assert report.boundary_f1 == 1
    assert report.objects[2].tolist() == [6, 6]
    assert report.megapixels_a_second > 0
    assert "6 whole tiles" in report.protocol
    assert "each tile by itself" in report.protocol


def test_tiles_are_padded_as_the_engine_pads_them() -> None:
    detector = Brighter()
    score(detector, Tiles(2))
    assert set(detector.seen) == {(1, 2, 2, 40, 48)}  # 33 + 6 and 41 + 6, rounded up to 8


def test_fitting_on_the_set_sees_every_tile_once() -> None:
    states = []

    class Keeps(Brighter):
        def fit(self, sample: PairSample) -> dict[str, Any]:
            states.append(super().fit(sample))
            return states[-1]

    tiles = Tiles(3)
    tiles.pairs[1].images[1] += 400.0  # one tile far brighter: a shared scale loses the others
    assert score(Keeps(), tiles, fit="set").fit == "set"
    assert [s["blocks"] for s in states] == [3]
    together, apart = score(Brighter(), tiles, fit="set"), score(Brighter(), tiles, fit="tile")
    assert together.counts[0, 1, 1] == 0
    assert apart.counts[0, 1, 1] == 150
    assert "all tiles together" in together.protocol


def test_whose_threshold_counts() -> None:
    assert score(Brighter(), Tiles(2)).threshold == 0.5
    assert score(Brighter(stated=0.25), Tiles(2)).threshold == 0.25
    given = score(Brighter(stated=0.25), Tiles(2), threshold=2.0)
    assert given.threshold == 2.0
    assert given.scores.recall == 0


def test_what_is_not_annotated_or_missing_is_not_counted() -> None:
    tiles = Tiles(2)
    tiles.pairs[0].label[0] = 255
    tiles.pairs[1].images[1, 0, :, 0] = np.nan
    report = score(Brighter(), tiles)
    assert report.counts[0].sum() == 32 * 41
    assert report.counts[1].sum() == 33 * 40
    assert report.masked == 33
    assert report.scores.fp == 0


def test_one_scene_is_cut_into_blocks_for_its_interval() -> None:
    one = Tiles(1)
    assert score(Brighter(), one).interval is None
    blocks = score(Brighter(), one, block=10)
    assert len(blocks.parts) == 4 * 5
    assert blocks.counts.sum(axis=0).tolist() == score(Brighter(), one).counts[0].tolist()
    assert blocks.interval is not None
    assert "blocks of 10 pixels" in blocks.protocol


def test_the_report_is_json_and_its_scores_follow_from_its_counts() -> None:
    tiles = Tiles(3)
    tiles.pairs[2].label[:] = 0  # a tile whose change nobody labelled: false alarms
    stored = json.loads(json.dumps(score(Brighter(), tiles).as_dict(), allow_nan=False))
    total = np.sum([np.reshape(v, (2, 2)) for v in stored["parts"].values()], axis=0)
    again = binary_scores(total)
    assert stored["scores"]["f1"] == pytest.approx(again.f1)
    assert again.fp == 150
    low, high = stored["f1_interval_95"]
    assert low < stored["scores"]["f1"] <= high
    assert sum(stored["reliability"]["pixels"]) == 3 * 33 * 41


def test_nothing_to_find_is_null_and_not_zero() -> None:
    tiles = Tiles(2)
    for pair in tiles.pairs:
        pair.label[:] = 0
    report = score(Brighter(), tiles, threshold=2.0).as_dict()
    assert report["scores"]["f1"] is None
    assert report["scores"]["oa"] == 1


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(SettingError, match="no labelled pairs"):
        score(Brighter(), Tiles(0))
    with pytest.raises(SettingError, match="block=0"):
        score(Brighter(), Tiles(1), block=0)


def test_a_whole_prediction_has_the_shape_of_the_pair() -> None:
    images = np.zeros((2, 2, 9, 13), np.float32)
    images[:, :, 0, 0] = np.nan
    probability, known = predict_whole(Brighter(), ArrayPair(images), {"top": 1.0})
    assert probability.shape == known.shape == (9, 13)
    assert not known[0, 0]
    assert known.sum() == 9 * 13 - 1
    assert torch.from_numpy(probability).dtype == torch.float32
