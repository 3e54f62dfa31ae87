"""Scores of systems on splits: against the same counts taken by hand, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from terralapse import registry
from terralapse.data.catalogue import open_dataset
from terralapse.data.training import batch_of
from terralapse.engine.score import cut_sample, score_split
from terralapse.errors import SettingError, SystemNotReadyError
from terralapse.tasks.metrics import binary_scores, confusion_matrix


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Three pairs of 96 x 80 pixels in which bright squares appear; one label pixel in ten is nobody's."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        before = rng.integers(60, 120, (96, 80, 3)).astype(np.uint8)
        after, label = before.copy(), np.zeros((96, 80), np.uint8)
        row, col = rng.integers(0, 50, 2)
        after[row : row + 24, col : col + 24] = 240
        label[row : row + 24, col : col + 24] = 255
        for folder, image in (("A", before), ("B", after), ("label", label)):
            (root / "test" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "test" / folder / f"{name}.png")
    return root


def test_change_whole_and_in_tiles(pairs):
    report = score_split("difference", "folder", pairs, "test", tile=48, threshold=0.5, samples=200)
    whole, tiles = report.modes["whole"], report.modes["tile48"]
    assert (whole.samples, tiles.samples) == (3, 12)
    assert np.sum(whole.counts["decided"]) == np.sum(tiles.counts["decided"]) == 3 * 96 * 80
    found = whole.scores["binary"]
    assert found["threshold"] == 0.5
    assert found["f1"] == binary_scores(np.array(whole.counts["decided"])).f1
    assert found["f1"] > 0.9  # nothing but the squares differs
    low, high = whole.interval
    assert low <= found["f1"] <= high
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert again["modes"]["whole"]["scores"]["binary"]["f1"] == found["f1"]
    assert again["split"] == "test"


def test_small_images_are_scored_once(pairs):
    report = score_split("difference", "folder", pairs, "test", tile=256, samples=50)
    assert list(report.modes) == ["whole"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    rng = np.random.default_rng(1)
    for name in ("Forest", "River"):
        (root / name).mkdir()
        for number in range(3):
            image = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"{name}_{number}.jpg")
    return root


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Weights of a network that learned nothing."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    network = registry.build("rsmamba/eurosat-nano", untrained=True).network
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
    return path


def test_classification_is_the_argmax_of_each_image(scenes, untrained):
    report = score_split("rsmamba/eurosat-nano", "eurosat", scenes, None, weights=untrained, samples=50)
    assert list(report.modes) == ["whole"]
    system = registry.build("rsmamba/eurosat-nano", weights=untrained)
    expected = np.zeros((10, 10), np.int64)
    for sample in open_dataset("eurosat", scenes, None):
        with torch.inference_mode():
            output = system.forward(system.normalise(batch_of([sample])["images"], None, {}))
        expected[sample.label, int(output.logits.argmax())] += 1
    assert report.modes["whole"].counts["matrix"] == expected.tolist()
    assert report.modes["whole"].scores["macro"]["oa"] == np.trace(expected) / 6
    assert report.classes == "eurosat"


@pytest.mark.parametrize(
    ("slug", "data", "options", "said"),
    [
        (
            "difference",
            "eurosat",
            {},
            "the task of the system is change, that of the data set classification",
        ),
        ("difference", "nothing", {}, "no such data set"),
        ("difference", "folder", {"tile": 4}, "too small"),
        ("difference", "folder", {"options": {"depth": 1}}, "is no option of folder"),
        ("difference", "folder", {"options": {"scheme": "no-such"}}, "no such class scheme"),
    ],
)
def test_what_does_not_go_together_is_said(pairs, slug, data, options, said):
    with pytest.raises(SettingError, match=said):
        score_split(slug, data, pairs, "test", **options)


def test_classes_in_another_order_are_refused(tmp_path, monkeypatch):
    """SECOND has two orders of ids; a checkpoint of one must not be scored on the other."""
    for folder in ("A", "B", "label1", "label2"):
        (tmp_path / "test" / folder).mkdir(parents=True)
        image = np.zeros((32, 32) if "label" in folder else (32, 32, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "test" / folder / "x.png")
    built = registry.build("changemamba/scd-tiny", untrained=True)
    monkeypatch.setattr(registry, "build", lambda slug, **_: built)
    with pytest.raises(SettingError, match="are second-mamba, those of the labels second-scannet"):
        score_split("changemamba/scd-tiny", "second", tmp_path, "test", options={"scheme": "second-scannet"})


def test_a_system_without_weights_says_where_they_are(scenes):
    with pytest.raises(SystemNotReadyError, match="Give a file of weights"):
        score_split("rsmamba/b", "eurosat", scenes, None)


def test_a_cut_takes_images_and_maps_at_the_same_place(pairs):
    sample = open_dataset("folder", pairs, "test")[0]
    part = cut_sample(sample, 40, 30, 24)
    assert part.images.shape == (2, 3, 24, 24)
    assert np.array_equal(part.label, sample.label[40:64, 30:54])
    assert np.array_equal(part.images[1, 2], sample.images[1, 2, 40:64, 30:54])
    assert confusion_matrix(part.label, part.label, 2).sum() == 24 * 24
