"""Instructions through the engine: a language model that is made here, training before it, and scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_trees import levir_mci
from terralapse import registry
from terralapse.data.catalogue import open_dataset
from terralapse.data.changechat import MadeChangeChat, write_records
from terralapse.engine.fit import fit
from terralapse.engine.recipe import Recipe
from terralapse.engine.score import score_split
from terralapse.engine.small_language import SmallLanguage, make_language_model, texts_of
from terralapse.errors import ModelInputError, OutputExistsError, SettingError
from terralapse.tasks.chat import ChatMeasure, ChatOutput

pytest.importorskip("transformers")
SMALL = SmallLanguage(width=32, layers=1, tokens=400, steps=30, batch=8)
RECIPE = Recipe(
    model="deltavlm/nano",
    data="levir-chat",
    epochs=1,
    samples=8,
    batch=4,
    val_batch=8,
    size=112,
    lr=1e-3,
    warmup=1,
    ema=0.9,
    precision="32-true",
    accelerator="cpu",
    augment={"hflip": 0.0, "vflip": 0.0, "turn": 0.0},
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    return levir_mci(root / "data", {"train": 2, "val": 2}).parent


@pytest.fixture(scope="module")
def spoken(world: Path) -> Path:
    texts = texts_of(MadeChangeChat(world / "data", "train"))
    assert len(texts) == 22
    make_language_model(texts, world / "language", SMALL)
    return world / "language"


def test_a_language_model_of_ones_own(world: Path, spoken: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError):
        make_language_model([("a", "b")], spoken)
    with pytest.raises(SettingError, match="are none"):
        make_language_model([], tmp_path / "none")
    texts = [
        ("q what", "roads ['top-left', 'top-center'] buildings []"),
        ("q how many", "there are 3 new roads"),
    ]
    made = make_language_model(texts, tmp_path / "lm", replace(SMALL, steps=120, lr=1e-2))
    ids = made.tokenizer.encode(texts[0][1], add_special_tokens=False)
    assert made.tokenizer.decode(ids, skip_special_tokens=True).strip() == texts[0][1], (
        "any text can be spelled"
    )
    batch = made.taught([q for q, _ in texts], [a for _, a in texts])
    torch.manual_seed(0)
    assert float(made.loss(0.02 * torch.randn(2, 4, 32), batch)) < 1.0, "it knows how answers go"
    assert (tmp_path / "lm/model.safetensors").is_file()


def test_training_and_scoring(world: Path, spoken: Path, tmp_path: Path) -> None:
    build = {"language": str(spoken), "repetition_penalty": 1.0, "longest": 12}
    weights = fit(replace(RECIPE, build=build), world / "data", tmp_path / "run")
    logged = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert logged["loss"] == logged["loss_answer"] > 0
    result = json.loads(weights.with_name("result.json").read_text())["validation"]
    report = score_split(RECIPE.model, "levir-chat", world / "data", "val", build=build, weights=weights)
    mode = report.modes["whole"]
    assert list(report.modes) == ["whole"]
    assert (mode.samples, mode.main, mode.interval) == (14, "chat.selection", None)
    assert {"caption", "binary", "count", "place", "talk_binary", "talk_count", "talk_caption"} <= set(
        mode.scores
    )
    assert mode.scores["chat"]["selection"] == pytest.approx(result["chat"]["selection"], abs=1e-9)
    json.dumps(report.as_dict(), allow_nan=False)

    # The counts are the answers, which the system gives by itself too.
    held = open_dataset("levir-chat", world / "data", "val")
    said = ChatMeasure(held).said(torch.tensor(mode.counts["stream"]).numpy())
    system = registry.build(RECIPE.model, weights=weights, **build)
    assert said[3].text == system.ask(held[3].images, [held.turn(3).instruction])[0]
    assert [s.kind for s in said[:2]] == ["caption", "binary"]


@pytest.mark.slow
def test_a_cpu_trains_the_small_size(tmp_path: Path) -> None:
    """On pairs of which every second one has changed, it tells new ones apart; guessing is right for half."""
    data, captions = tmp_path / "data", tmp_path / "data/LevirCCcaptions.json"
    taught = json.loads(levir_mci(data, {"train": 24}).joinpath(captions.name).read_text())["images"]
    levir_mci(data, {"val": 8}, size=40)  # of another size, and so other images
    held = json.loads(captions.read_text())["images"]
    captions.write_text(json.dumps({"images": taught + held}))
    how = SmallLanguage(width=64, layers=2, tokens=400, steps=250, batch=16)
    make_language_model(texts_of(MadeChangeChat(data, "train")), tmp_path / "language", how)
    build = {"language": str(tmp_path / "language"), "repetition_penalty": 1.0, "longest": 60}
    recipe = replace(
        RECIPE, build=build, reader={"prefix": True}, epochs=6, samples=240, batch=12, warmup=20, lr=2e-3
    )
    fit(recipe, data, tmp_path / "run")
    found = json.loads((tmp_path / "run/result.json").read_text())["validation"]
    assert found["binary"]["accuracy"] >= 0.9
    assert found["binary_of_captions"]["accuracy"] >= 0.9
    assert found["count"]["building_exact"] >= 0.9
    assert found["place"]["building_jaccard_samples_empty_equals_one"] >= 0.9


def test_masks_are_taught_and_scored(world: Path, spoken: Path, tmp_path: Path) -> None:
    build = {"language": str(spoken), "masks": True, "goal": "masks"}
    recipe = replace(RECIPE, build=build, samples=2, batch=2, ema=0.0)
    weights = fit(recipe, world / "data", tmp_path / "run")
    logged = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert logged["loss"] == logged["loss_mask"] > 0
    found = json.loads(weights.with_name("result.json").read_text())["validation"]
    assert 0 <= found["binary"]["f1"] <= 1
    assert found["chat"]["turns"] == 0


def test_answers_are_counted_without_loss(world: Path) -> None:
    held = open_dataset("levir-chat", world / "data", "val")
    measure = ChatMeasure(held)
    right = [held.turn(i).answers[0] for i in range(7)]
    measure.update(ChatOutput(texts=right[:3]), {"sample": torch.tensor([0, 1, 2])})
    measure.update(ChatOutput(texts=right[3:]), {"sample": torch.tensor([3, 4, 5, 6])})
    scores = measure.compute()
    assert scores["chat"] == {"turns": 7, "selection": pytest.approx(1.0, abs=1e-6)}
    parts = [ChatMeasure(held), ChatMeasure(held)]
    for number, part in enumerate(parts):
        part.update(ChatOutput(texts=["ü?"]), {"sample": torch.tensor([number])})
    both = parts[0].said(parts[0].joined([p.counts() for p in parts])["stream"])
    assert [(s.kind, s.text) for s in both] == [("caption", "ü?"), ("binary", "ü?")]


def test_systems_and_data_that_do_not_belong_together(world: Path, spoken: Path, tmp_path: Path) -> None:
    build = {"language": str(spoken), "untrained": True}
    with pytest.raises(SettingError, match=r"has no instructions.*levir-chat"):
        score_split(RECIPE.model, "levir-mci", world / "data", "val", build=build)
    with pytest.raises(ModelInputError, match="answers no instructions"):
        score_split("change-agent/nano", "levir-chat", world / "data", "val", build={"untrained": True})
    with pytest.raises(SettingError, match="mixup"):
        fit(replace(RECIPE, mixup=0.5, build={"language": str(spoken)}), world / "data", tmp_path / "run")
    write_records(MadeChangeChat(world / "data", "val"), world / "data/changechat_105k_test.json")
    with pytest.raises(SettingError, match="has no masks"):
        score_split(
            RECIPE.model,
            "changechat",
            world / "data",
            "test",
            build={**build, "masks": True, "goal": "both"},
        )
