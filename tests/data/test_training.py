"""Samples of each task as the tensors that its networks take, and samples without end for training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.samples import ClassifiedImage, DamagePair, LabelledImage, SemanticPair
from terralapse.data.training import TrainingSet, batch_of
from terralapse.errors import SettingError
from terralapse.labels import BINARY_CHANGE
from terralapse.sensors import Unit

REST = (1.0, ("red", "green", "blue"), Unit.RGB255)
PLAIN = AugmentRecipe(hflip=0, vflip=0, turn=0)


def one(value: float, dates: int = 2) -> np.ndarray:
    shape = (dates, 3, 4, 4) if dates > 1 else (3, 4, 4)
    return np.full(shape, value, np.float32)


def plane(value: int) -> np.ndarray:
    return np.full((4, 4), value, np.uint8)


class Numbers:
    """Pairs whose pixels are their number."""

    title, scheme = "numbers", BINARY_CHANGE

    def __init__(self, number: int, size: int = 8) -> None:
        self.number, self.size = number, size

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> LabelledPair:
        images = np.full((2, 3, self.size, self.size), index, np.float32)
        images[:, 1] = np.arange(self.size * self.size).reshape(self.size, self.size)
        return LabelledPair(str(index), images, np.zeros((self.size, self.size), np.uint8), *REST)

    def __iter__(self) -> Iterator[LabelledPair]:
        return (self[i] for i in range(self.number))


@pytest.mark.parametrize(
    ("samples", "dates", "keys"),
    [
        ([LabelledPair("a", one(i), plane(1), *REST) for i in range(2)], 2, ["label"]),
        ([SemanticPair("a", one(i), plane(1), plane(2), *REST) for i in range(2)], 2, ["before", "after"]),
        ([DamagePair("a", one(i), plane(1), plane(4), *REST) for i in range(2)], 2, ["building", "damage"]),
        ([LabelledImage("a", one(i, 1), plane(3), *REST) for i in range(2)], 1, ["label"]),
    ],
    ids=["change", "semantic", "damage", "segmentation"],
)
def test_batches_of_maps(samples: list[Any], dates: int, keys: list[str]) -> None:
    batch = batch_of(samples)
    assert list(batch) == ["images", *keys]
    assert batch["images"].shape == (2, dates, 3, 4, 4)
    assert batch["images"].dtype == torch.float32
    assert batch["images"][:, 0, 0, 0, 0].tolist() == [0, 1]
    for key in keys:
        assert batch[key].shape == (2, 4, 4)
        assert batch[key].dtype == torch.int64
        assert (batch[key] == int(getattr(samples[0], key)[0, 0])).all()


def test_batches_of_classes() -> None:
    batch = batch_of([ClassifiedImage("a", one(i, 1), label, *REST) for i, label in enumerate((7, 2))])
    assert batch["images"].shape == (2, 1, 3, 4, 4)
    assert batch["label"].tolist() == [7, 2]
    assert batch["label"].dtype == torch.int64


def test_no_data_reaches_no_network_and_no_loss() -> None:
    images = one(5)
    images[1, 2, 0, 3] = np.nan
    batch = batch_of([LabelledPair("a", images, plane(1), *REST)])
    assert not batch["images"].isnan().any()
    assert batch["images"][0, 1, 2, 0, 3] == 0
    assert batch["label"][0, 0, 3] == IGNORE
    assert (batch["label"] == IGNORE).sum() == 1
    assert np.isnan(images).sum() == 1, "the sample is as it was"


def test_batches_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one"):
        batch_of([])
    wide = ClassifiedImage("a", np.zeros((3, 4, 5), np.float32), 0, *REST)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\), \(1, 3, 4, 5\)"):
        batch_of([wide, ClassifiedImage("a", one(0, 1), 0, *REST)])


def test_each_epoch_goes_through_all_in_another_order() -> None:
    drawn = TrainingSet(Numbers(12), PLAIN, size=4, seed=1)
    orders = [[int(drawn[e * 12 + i]["images"][0, 0, 0, 0]) for i in range(12)] for e in range(3)]
    assert all(sorted(o) == list(range(12)) for o in orders)
    assert len({tuple(o) for o in orders}) == 3


def test_a_number_is_a_sample_whatever_came_before() -> None:
    recipe = AugmentRecipe(light=0.5, brightness=5)
    one, two = (TrainingSet(Numbers(5), recipe, size=4, seed=3) for _ in range(2))
    later = [one[i]["images"] for i in range(17)][16]
    assert torch.equal(later, two[16]["images"])
    other = TrainingSet(Numbers(5), recipe, size=4, seed=4)
    assert not all(torch.equal(one[i]["images"], other[i]["images"]) for i in range(5))
    crops = {tuple(one[5 * e + i]["images"][0, 1].ravel().tolist()) for e in range(6) for i in range(5)}
    assert len(crops) > 20, "augmentation is drawn anew in every epoch"


def test_samples_stack_in_a_loader() -> None:
    loader = DataLoader(TrainingSet(Numbers(4), AugmentRecipe(), size=6), batch_size=2)
    batch = next(iter(loader))
    assert batch["images"].shape == (2, 2, 3, 6, 6)
    assert batch["label"].shape == (2, 6, 6)


def test_beyond_a_small_image_nothing_is_learned() -> None:
    drawn = TrainingSet(Numbers(1, size=4), PLAIN, size=6)[0]
    assert (drawn["label"] == IGNORE).sum() == 36 - 16
    assert (drawn["label"] == 0).sum() == 16


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingError, match="holds no sample"):
        TrainingSet(Numbers(0), PLAIN)

    class Damages(Numbers):
        def __getitem__(self, index: int) -> Any:
            return DamagePair("a", one(0), plane(1), plane(1), *REST)

    with pytest.raises(SettingError, match="exchanges before and after"):
        TrainingSet(Damages(1), AugmentRecipe(swap=0.5))[0]
