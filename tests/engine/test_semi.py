from __future__ import annotations

import csv
import dataclasses
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from terralapse import registry
from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import open_dataset
from terralapse.data.pairs import LabelledPair
from terralapse.data.pseudo_labels import PseudoLabels, write_pseudo_labels
from terralapse.engine import guides, semi
from terralapse.engine.fit import fit
from terralapse.engine.guides import joint_evidence, segmenter_labeller
from terralapse.engine.recipe import Recipe
from terralapse.engine.semi import SemiSet, SemiStep, labelled_names, mixed_labels
from terralapse.errors import FileMissingError, SettingError
from terralapse.sensors import Unit
from terralapse.tasks.consistency import GuidedOutput

NAMES = [f"{i}_{j}" for i in range(8) for j in range(5)]


def encoded(array: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set in the layout of MS-HS-BCD in which white squares appear, and guides that know them."""
    root = tmp_path_factory.mktemp("data") / "cd_mshs_bcd"
    root.mkdir()
    for split, count in (("train", 6), ("val", 1)):
        rng = np.random.default_rng(count)
        names = [f"{i}_0" for i in range(count)]
        with (root / f"{split}_tiles.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["tile"], *([n] for n in names)])
        with zipfile.ZipFile(root / f"{split}_gf1_rgb.zip", "w") as archive:
            for name in names:
                before = rng.normal(90, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
                after, label = before.copy(), np.zeros((256, 256), bool)
                for row, col in rng.integers(0, 48, (5, 2)) * 4:
                    after[row : row + 48, col : col + 48] = 230
                    label[row : row + 48, col : col + 48] = True
                for date, image in (("A", before), ("B", after)):
                    archive.writestr(f"{date}/{name}.jpg", encoded(image, "JPEG"))
                archive.writestr(f"label/{name}.png", encoded(label, "PNG"))
    train = open_dataset("mshs-bcd", root, "train")
    write_pseudo_labels(train, None, root / "guides", "train", "evidence", lambda p: p.label)  # pyright: ignore
    return root


@pytest.fixture
def recipe(data: Path) -> Recipe:
    return Recipe(
        model="semicd-vl/nano",
        data="mshs-bcd",
        method="semicd-vl",
        labelled="0.34",
        guides=str(data / "guides"),
        epochs=2,
        samples=6,
        batch=2,
        size=64,
        warmup=2,
        ema=0.5,
        precision="32-true",
    )


# --- who is labelled -----------------------------------------------------------------------------------
def test_a_share_is_drawn_by_seed_and_grows_by_adding() -> None:
    few, more = (labelled_names(NAMES, share, 0) for share in ("0.1", "0.2"))
    assert len(few) == 4
    assert len(more) == 8
    assert set(few) < set(more)
    assert few == labelled_names(list(NAMES), "0.1", 0)
    assert few != labelled_names(NAMES, "0.1", 1)
    assert sorted(labelled_names(NAMES[::-1], "0.1", 0)) == sorted(few)


def test_a_list_names_the_labelled(tmp_path: Path) -> None:
    path = tmp_path / "labeled.txt"
    path.write_text("train/A/3_1.png train/B/3_1.png\n0_0\n\n")
    assert labelled_names(NAMES, str(path), 0) == ["0_0", "3_1"]
    path.write_text("nowhere\n")
    with pytest.raises(SettingError, match="nowhere"):
        labelled_names(NAMES, str(path), 0)
    path.write_text("\n")
    with pytest.raises(SettingError, match="no sample"):
        labelled_names(NAMES, str(path), 0)
    with pytest.raises(FileMissingError):
        labelled_names(NAMES, "no.txt", 0)
    with pytest.raises(SettingError, match="share"):
        labelled_names(NAMES, "1.5", 0)


# --- samples ---------------------------------------------------------------------------------------------
class Secret:
    """Pairs whose labels are all 1; the first two are labelled."""

    def __getitem__(self, index: int) -> LabelledPair:
        images = np.full((2, 3, 80, 80), 100 + index, np.float32)
        return LabelledPair(
            str(index), images, np.ones((80, 80), np.uint8), 1.0, ("r", "g", "b"), Unit.RGB255
        )


def made(**options: Any) -> SemiSet:
    return SemiSet(Secret(), [0, 1], [2, 3, 4], 64, AugmentRecipe(), **options)


def test_a_sample_depends_on_its_number_alone() -> None:
    first, second = made(), made()
    for _ in range(2):
        second[7]
    assert {k: v.tolist() for k, v in first[3].items()} == {k: v.tolist() for k, v in second[3].items()}


def test_labelled_and_unlabelled_stay_apart() -> None:
    drawn = made()
    for index in range(6):
        sample = drawn[index]
        assert 99.9 < sample["images"].max() <= 101.1
        for view in ("weak", "partner"):
            assert 102 <= sample[view].max() <= 104
        assert (sample["label"] != 0).all()  # 1, or not known
    assert len(drawn) == 3


def test_the_label_of_an_unlabelled_pair_is_never_seen() -> None:
    """Nothing but where the image is comes from it."""
    drawn = made()
    for index in range(4):
        assert {
            "images",
            "label",
            "weak",
            "weak_inside",
            "partner",
            "partner_inside",
            "strong",
            "box",
        } == set(drawn[index])
        images, maps, colours = drawn._weak(drawn.unlabelled, index, 1)
        assert set(np.unique(maps["label"])) <= {0, 255}
        assert images.shape == (2, 3, 64, 64)
        assert colours


def test_supervised_training_sees_the_same_labelled_views() -> None:
    alone, all_ = made(alone=True), made()
    for index in range(3):
        assert set(alone[index]) == {"images", "label"}
        assert torch.equal(alone[index]["images"], all_[index]["images"])


def test_the_box_holds_the_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi, "strong_view", lambda images, rng, colours: images)
    drawn = made()
    boxes = 0
    for index in range(12):
        sample = drawn[index]
        box = sample["box"]
        boxes += int(box.any())
        assert torch.equal(sample["strong"][:, :, box], sample["partner"][:, :, box])
        assert torch.equal(sample["strong"][:, :, ~box], sample["weak"][:, :, ~box])
    assert 0 < boxes < 12


def test_pseudo_labels_are_mixed_with_the_box() -> None:
    sure = torch.zeros(1, 2, 4, 4)
    sure[:, 1] = 5.0
    other = -sure
    box = torch.zeros(1, 4, 4, dtype=torch.bool)
    box[:, :2] = True
    inside, beyond = torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    label, confidence, counts = mixed_labels(
        sure, other, {"box": box, "weak_inside": inside, "partner_inside": beyond}
    )
    assert torch.equal(label, (~box).long())
    assert (confidence > 0.99).all()
    assert torch.equal(counts, ~box)


# --- a step ------------------------------------------------------------------------------------------------
def batch_of(recipe: Recipe, data: Path) -> dict[str, torch.Tensor]:
    train = open_dataset("mshs-bcd", data, "train")
    guides = PseudoLabels(recipe.guides, "train")
    drawn = SemiSet(train, [0, 1], [2, 3, 4, 5], 64, AugmentRecipe(), guides=guides)
    return torch.utils.data.default_collate([drawn[i] for i in range(2)])


def test_the_total_is_the_weighted_sum_of_its_parts(recipe: Recipe, data: Path) -> None:
    torch.manual_seed(0)
    system = registry.build("semicd-vl/nano", untrained=True)
    system.network.train()
    batch = batch_of(recipe, data)
    for done in (0.0, 0.5, 1.0):
        parts = SemiStep("semicd-vl", sure=0.5)(system, batch, {}, done)
        wanted = (parts["labelled"] + parts["consistency"]) / 2 + 0.1 * parts["contrast"]
        wanted = wanted + 0.1 * (1 - done) * parts["guidance"]
        assert parts["total"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert system.network.training
    parts["total"].backward()
    assert system.network.decode_head.conv_seg.weight.grad.abs().sum() > 0


def test_another_model_lowers_the_bar(recipe: Recipe, data: Path) -> None:
    torch.manual_seed(0)
    system = registry.build("semicd-vl/nano", untrained=True)
    system.network.train()
    batch = batch_of(recipe, data)
    alone, both = (SemiStep("semicd-vl", agree=a)(system, batch, {}, 0.5) for a in (0.0, 1e-6))
    told = torch.where(batch["box"], batch["partner_change"], batch["weak_change"]) == 1
    inside = torch.where(batch["box"], batch["partner_inside"], batch["weak_inside"])
    assert told.any()
    assert alone["sure_changed"] == 0  # an untrained network is sure of nothing
    assert both["sure_changed"].item() == pytest.approx(((told & inside).sum() / inside.sum()).item())
    assert both["consistency"] > alone["consistency"]


def test_fixmatch_is_without_guides_and_contrast(recipe: Recipe, data: Path) -> None:
    system = registry.build("semicd-vl/nano", untrained=True)
    system.guided = False
    system.network.train()
    batch = {k: v for k, v in batch_of(recipe, data).items() if not k.endswith(("change", "first", "second"))}
    parts = SemiStep("fixmatch")(system, batch, {}, 0.5)
    assert parts["total"].item() == pytest.approx((parts["labelled"] + parts["consistency"]).item() / 2)
    alone = SemiStep("supervised", dice=1.0)(system, {k: batch[k] for k in ("images", "label")}, {}, 0.0)
    assert alone["total"] is alone["labelled"]
    assert isinstance(system.forward(batch["images"]), GuidedOutput)


def test_one_logit_trains_as_the_two_classes_it_stands_for(recipe: Recipe, data: Path) -> None:
    torch.manual_seed(0)
    system = registry.build("lapsenet/rgb", untrained=True)
    system.network.eval()  # so that one forward pass is like another
    batch = batch_of(recipe, data)
    logits = system.forward(system.normalise(batch["images"], None, {})).logits
    loss = SemiStep("supervised")(system, {k: batch[k] for k in ("images", "label")}, {}, 0.0)["total"]
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, (batch["label"] == 1).float())
    assert (batch["label"] <= 1).all()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


# --- whole runs --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("method", "parts"),
    [("supervised", {"loss_labelled"}), ("fixmatch", {"loss_labelled", "loss_consistency", "loss_sure"})],
)
def test_a_tiny_run(recipe: Recipe, data: Path, tmp_path: Path, method: str, parts: set[str]) -> None:
    path = fit(dataclasses.replace(recipe, method=method, epochs=1), data, tmp_path)
    (line,) = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert parts <= set(line)
    assert not any("guidance" in key for key in line)
    assert registry.build(recipe.model, weights=path).card.slug == recipe.model


def test_a_run_that_was_cut_off_ends_with_the_same_weights(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    from terralapse.engine import _lightning

    whole = fit(recipe, data, tmp_path / "whole")
    began = _lightning.Training.on_train_epoch_start

    def cut(self: Any) -> None:
        if self.current_epoch == 1:
            raise RuntimeError("power")
        began(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lightning.Training, "on_train_epoch_start", cut)
        with pytest.raises(RuntimeError, match="power"):
            fit(recipe, data, tmp_path / "parts")
    resumed = fit(recipe, data, tmp_path / "parts", resume=True)
    first, second = load_file(whole), load_file(resumed)
    assert all(torch.equal(first[k], second[k]) for k in first)
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    kept = [[{k: v for k, v in json.loads(e).items() if k != "seconds"} for e in log] for log in logs]
    assert kept[0] == kept[1]
    assert {"loss_guidance", "loss_contrast"} <= set(kept[0][0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "magic"}, "magic"),
        ({"labelled": ""}, "labelled"),
        ({"labelled": "0.999"}, "unlabelled"),
        ({"guides": ""}, "guides"),
        ({"model": "changemamba/bcd-nano"}, "no place"),
        ({"data": "change-mix"}, "made pairs"),
        ({"semi": {"magic": 1}}, "semi_magic"),
        ({"semi": {"sure": "much"}}, "semi_sure"),
    ],
)
def test_a_wrong_recipe_is_an_error(
    recipe: Recipe, data: Path, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    with pytest.raises(SettingError, match=match):
        fit(dataclasses.replace(recipe, **change), data, tmp_path / "out")


def test_a_recipe_says_the_share_as_a_number(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: semicd-vl/nano\nlabelled: 0.05\nsemi_sure: 0.9\n")
    found = Recipe.read(path, ["method=fixmatch"])
    assert (found.labelled, found.method, found.semi) == ("0.05", "fixmatch", {"sure": 0.9})
    assert SemiStep.of(found) == SemiStep("fixmatch", sure=0.9)


# --- labels of other models --------------------------------------------------------------------------------
def test_detectors_agree_on_what_appeared(data: Path) -> None:
    pair = open_dataset("mshs-bcd", data, "train")[0]
    found = joint_evidence([registry.build("ir-mad"), registry.build("rcva")], 0.2, 0.5, smooth=1.0)(pair)
    assert set(np.unique(found)) <= {0, 1, 255}
    known = found != 255
    assert (found[known] == pair.label[known]).mean() > 0.9
    with pytest.raises(SettingError, match="range"):
        joint_evidence([], 0.2, 0.5)
    with pytest.raises(SettingError, match="quarter turns"):
        joint_evidence([registry.build("ir-mad")], 0.2, 0.5, turns=5)
    with pytest.raises(SettingError, match="segment"):
        segmenter_labeller("ir-mad")


def test_quarter_turns_are_of_the_whole_pair_and_turned_back(data: Path, monkeypatch) -> None:
    pair = open_dataset("mshs-bcd", data, "train")[0]
    seen = []

    def predict(_detector, scene, _state):
        seen.append(scene)
        bright = np.where(scene.images[1, 0] > np.quantile(scene.images[1, 0], 0.9), 1.0, 0.0)
        return bright.astype(np.float32), np.ones(bright.shape, bool)

    class Scene:
        def __init__(self, given: LabelledPair) -> None:
            assert (given.label == 255).all()  # nobody sees the label
            self.images = given.images

        def sample(self) -> None:
            return None

    monkeypatch.setattr(guides, "array_pair", lambda given, _: Scene(given))
    monkeypatch.setattr(guides, "predict_whole", predict)
    found = joint_evidence([SimpleNamespace(fit=lambda _: {})], 0.5, 0.5, smooth=0.0, turns=3)(pair)  # type: ignore[list-item]
    assert len(seen) == 3
    assert np.array_equal(seen[1].images, np.rot90(pair.images, 1, axes=(2, 3)))
    assert np.array_equal(found == 1, pair.images[1, 0] > np.quantile(pair.images[1, 0], 0.9))
