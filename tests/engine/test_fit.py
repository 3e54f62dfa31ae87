import csv
import dataclasses
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from terralapse import registry
from terralapse.cards import Task
from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import DATASETS
from terralapse.engine.fit import encoder_weights, fit
from terralapse.engine.recipe import Recipe
from terralapse.errors import FileMissingError, MissingExtraError, OutputExistsError, SettingError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set in the layout of MS-HS-BCD in which white squares appear: learnable in seconds."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "cd_mshs_bcd"
    folder.mkdir()
    for split, count in (("train", 6), ("val", 2)):
        rng = np.random.default_rng(len(split))
        names = [f"{i}_0" for i in range(count)]
        with (folder / f"{split}_tiles.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["tile"], *([n] for n in names)])
        ten = np.zeros((count, 2, 64, 64, 4), np.uint8)
        with zipfile.ZipFile(folder / f"{split}_gf1_rgb.zip", "w") as archive:
            for i, name in enumerate(names):
                before = rng.normal(90, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
                after, label = before.copy(), np.zeros((256, 256), bool)
                for row, col in rng.integers(0, 48, (5, 2)) * 4:
                    after[row : row + 48, col : col + 48] = 230
                    label[row : row + 48, col : col + 48] = True
                for date, image in (("A", before), ("B", after)):
                    archive.writestr(f"{date}/{name}.jpg", encoded(image, "JPEG"))
                    ten[i, "AB".index(date)] = image[::4, ::4].mean(-1, keepdims=True)
                archive.writestr(f"label/{name}.png", encoded(label, "PNG"))
        twenty = ten[:, :, ::2, ::2][..., [0, 1, 2, 3, 0, 1]]
        np.savez(folder / f"{split}_s2.npz", names=np.array(names), s2_10m=ten, s2_20m=twenty)
    return root


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


SMALL = Recipe(
    model="lapsenet/rgb",
    data="change-mix",
    epochs=2,
    samples=8,
    batch=4,
    size=64,
    lr=3e-3,
    warmup=2,
    ema=0.5,
    precision="32-true",
)


@pytest.mark.parametrize("model", ["lapsenet/rgb", "lapsenet/s2"])
def test_a_tiny_run_learns_and_its_weights_are_usable(data, tmp_path, model):
    sensor = "s2" if model.endswith("s2") else "gf1"
    recipe = dataclasses.replace(SMALL, model=model, sensor=sensor, epochs=4, samples=24)
    path = fit(recipe, data, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(4))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    found = json.loads((tmp_path / "result.json").read_text())
    scores, calibration = found["validation"]["binary"], found["calibration"]
    assert scores["f1"] > 0.6  # the share of change is about 0.15: calling all of it change gives 0.3
    assert scores["threshold_chosen"] == "best of these data"
    assert calibration["mean_probability_after"] == pytest.approx(calibration["changed"], abs=0.02)
    assert calibration["ece_after"] <= calibration["ece"]
    assert scores["f1"] == pytest.approx(max(line["binary.f1"] for line in lines), abs=0.02)
    assert json.loads((tmp_path / "recipe.json").read_text())["model"] == model
    assert list(tmp_path.glob("logs/**/metrics.csv"))
    assert list(tmp_path.glob("logs/**/events.out.tfevents.*"))
    assert {v.dtype for v in load_file(path).values() if v.is_floating_point()} == {torch.float16}
    detector = registry.build(model, weights=path)
    assert not detector.network.training


def test_a_run_that_was_cut_off_ends_where_it_would_have(data, tmp_path, monkeypatch):
    whole = fit(SMALL, data, tmp_path / "whole")
    from terralapse.engine import _lightning

    first = _lightning.Training.on_train_epoch_start

    def cut(self):
        if self.current_epoch == 1:
            raise RuntimeError("the power went")
        first(self)

    with monkeypatch.context() as patch:
        patch.setattr(_lightning.Training, "on_train_epoch_start", cut)
        with pytest.raises(RuntimeError, match="power"):
            fit(SMALL, data, tmp_path / "parts")
    with pytest.raises(OutputExistsError, match="resume"):
        fit(SMALL, data, tmp_path / "parts")
    resumed = fit(SMALL, data, tmp_path / "parts", resume=True)
    one, two = load_file(whole), load_file(resumed)
    assert all(torch.equal(one[k], two[k]) for k in one)
    logs = [(tmp_path / n / "log.jsonl").read_text().splitlines() for n in ("whole", "parts")]
    kept = [[(e["epoch"], e["loss"], e["scores"]) for e in map(json.loads, log)] for log in logs]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_two_processes_see_each_sample_once_and_agree(data, tmp_path):
    """Through the command line, which Lightning starts again for the second process."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "model: lapsenet/rgb\ndata: change-mix\nepochs: 2\nsamples: 16\nbatch: 4\nsize: 64\nwarmup: 2\n"
        "ema: 0.5\nprecision: 32-true\naccelerator: cpu\ndevices: 2\n"
    )
    command = [sys.executable, "-m", "terralapse", "train", str(recipe), "--data", str(data)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), "--json"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2
    counted = json.loads(lines[0])["scores"]["binary"]
    assert sum(counted[k] for k in ("tp", "fp", "fn", "tn")) == 2 * 256 * 256  # both tiles, once
    assert json.loads(done.stdout)["validation"]["binary"]["f1"] >= 0


def test_samples_of_several_processes_are_those_of_one():
    from terralapse.engine._lightning import EpochSampler

    parts = [EpochSampler(10, rank, 3) for rank in range(3)]
    for part in parts:
        part.set_epoch(2)
    assert sorted(n for part in parts for n in part) == list(range(20, 29))
    assert {len(part) for part in parts} == {3}


def test_training_without_the_extra_says_what_to_install(data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "terralapse.engine._lightning", raising=False)
    with pytest.raises(MissingExtraError, match=r"terralapse\[train\]"):
        fit(SMALL, data, tmp_path)


# --- recipes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: a\nepoch: 3\n", "epoch: no such field"),
        ("model: a\nepochs: many\n", "is not a int"),
        ("model: a\nlr: fast\n", "is not a float"),
        ("epochs: 3\n", "model: is missing"),
        ("model: a\nepochs: true\n", "is not a int"),
        ("model: a\nbatch: 0\n", "batch=0: is not positive"),
        ("model: a\nschedule: linear\n", "schedule: no such schedule"),
        ("- a\n- b\n", "holds no fields"),
        ("model: [a\n", "is no YAML"),
    ],
)
def test_a_wrong_recipe_names_the_field(tmp_path, text, said):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SettingError, match=said):
        Recipe.read(tmp_path / "r.yaml")


def test_settings_of_the_command_line_win(tmp_path):
    (tmp_path / "r.yaml").write_text("model: a\nlr: 1e-3\naugment_flip: 0.5\n")
    recipe = Recipe.read(tmp_path / "r.yaml", ["lr=2e-4", "epochs=7", "augment_swap=1.0", "model=b/c"])
    assert (recipe.lr, recipe.epochs, recipe.model) == (2e-4, 7, "b/c")
    assert recipe.augment == {"flip": 0.5, "swap": 1.0}
    for text, said in (("lr", "is no setting"), ("lr=fast", "is not a float"), ("x=1", "no such field")):
        with pytest.raises(SettingError, match=said):
            Recipe.read(tmp_path / "r.yaml", [text])


def test_whole_numbers_do_for_floats(tmp_path):
    (tmp_path / "r.yaml").write_text("model: a\nlr: 1\n")
    assert Recipe.read(tmp_path / "r.yaml").lr == 1
    with pytest.raises(FileMissingError):
        Recipe.read(tmp_path / "none.yaml")


def test_shipped_recipes_are_valid(root):
    paths = sorted((root / "recipes").glob("*.yaml"))
    assert len(paths) >= 15
    for path in paths:
        recipe = Recipe.read(path)
        card = registry.card(recipe.model)
        AugmentRecipe(**recipe.augment)
        captions = recipe.data == "image-text"  # teach to find images, and to describe them
        made = recipe.data == "change-mix"
        fits = (Task.RETRIEVAL, Task.LANGUAGE) if captions else () if made else (DATASETS[recipe.data].task,)
        assert made or card.task in fits, path.name
        published = recipe.data != "change-mix" and DATASETS[recipe.data].splits  # a folder may have any
        if published and not recipe.holdout:
            assert {recipe.train_split, recipe.val_split} <= set(DATASETS[recipe.data].splits), path.name


def test_encoder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileMissingError, match="no package no_such_package"):
        encoder_weights("no_such_package:weights.pth")
    with pytest.raises(FileMissingError):
        encoder_weights(str(tmp_path / "w.pth"))


def test_encoder_is_read_from_a_path(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    assert torch.equal(encoder_weights(str(tmp_path / "w.pth"))["a"], torch.ones(2))
