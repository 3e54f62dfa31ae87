"""Answers to questions through the engine: training, scores, and events that are left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from data_trees import save
from terralapse import registry
from terralapse.data.catalogue import open_dataset
from terralapse.data.damage_questions import KINDS
from terralapse.engine.fit import fit
from terralapse.engine.questions import count_answers, leave_one_event_out, question_system
from terralapse.engine.recipe import Recipe
from terralapse.engine.score import score_split
from terralapse.errors import ModelInputError, OutputExistsError, SettingError
from terralapse.tasks.vqa import QuestionOnly

# One colour cast for each event; a destroyed building is white afterwards.
CASTS = {"palu-tsunami": (0, 20, 50), "socal-fire": (50, 20, 0), "joplin-tornado": (20, 40, 10)}
RECIPE = Recipe(
    model="tcssm/damage-nano",
    data="damage-vqa",
    epochs=1,
    samples=16,
    batch=8,
    size=64,
    lr=2e-3,
    warmup=2,
    ema=0.0,
    precision="32-true",
    accelerator="cpu",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles in the layout of xBD with one large building, intact or destroyed, at a random place."""
    root = tmp_path_factory.mktemp("world")
    for e, (event, cast) in enumerate(CASTS.items()):
        rng = np.random.default_rng(e)
        for i in range(12):
            ground = (90 + np.array(cast) + rng.normal(0, 4, (64, 64, 3))).clip(0, 255)
            row, col = rng.integers(0, 32, 2)
            damage = np.zeros((64, 64), np.uint8)
            damage[row : row + 32, col : col + 32] = 4 if i % 2 else 1
            after = np.where((damage == 4)[..., None], 250, ground)
            name = f"{event}_{i:08d}"
            for date, image, mask in (("pre", ground, damage > 0), ("post", after, damage)):
                save(root / f"images/{name}_{date}_disaster.png", image.astype(np.uint8))
                save(root / f"masks/{name}_{date}_disaster.png", mask.astype(np.uint8))
    return root


def test_training_and_scoring(world: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, reader={"leave": "socal-fire", "share": 0.3})
    weights = fit(recipe, world, tmp_path / "run")
    logged = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert logged["loss"] == pytest.approx(logged["loss_answer"] + logged["loss_align"], abs=1e-4)
    result = json.loads(weights.with_name("result.json").read_text())["validation"]["vqa"]
    options = {"leave": "socal-fire", "share": 0.3}
    report = score_split(
        RECIPE.model, "damage-vqa", world, "val", options=options, weights=weights, samples=50
    )
    mode = report.modes["whole"]
    assert list(report.modes) == ["whole"]
    assert mode.scores["vqa"]["oa"] == pytest.approx(result["oa"], abs=1e-9)
    assert mode.samples == sum(mode.counts["asked"])
    assert mode.interval is not None
    assert mode.interval[0] <= mode.scores["vqa"]["oa"] <= mode.interval[1]
    json.dumps(report.as_dict(), allow_nan=False)

    # The same counts, question by question.
    system = registry.build(RECIPE.model, weights=weights)
    held = open_dataset("damage-vqa", world, "val", **options)
    right = [
        system.ask(q.images, [q.asked.question], q.description)[0].text == q.asked.answer
        for q in list(held)[:20]
    ]
    counted, _, _, _ = count_answers(system, _First(held, 20), "cpu")
    assert counted.sum() == sum(right)


class _First:
    def __init__(self, dataset, number: int) -> None:
        self.dataset, self.number = dataset, number
        self.kinds, self.names = dataset.kinds, dataset.names[:number]
        self.scheme, self.title = dataset.scheme, dataset.title

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int):
        return self.dataset[index]


def test_each_event_is_left_out_once(world: Path, tmp_path: Path) -> None:
    events = ["joplin-tornado", "socal-fire"]
    found = leave_one_event_out(RECIPE, world, tmp_path / "out", events)
    assert list(found["events"]) == events
    assert json.loads((tmp_path / "out/domains.json").read_text()) == found
    for event in events:
        kept = json.loads((tmp_path / f"out/{event}/recipe.json").read_text())
        assert (kept["train_split"], kept["val_split"], kept["reader"]["leave"]) == ("train", "val", event)
        train, test = (open_dataset("damage-vqa", world, p, leave=event) for p in ("train", "test"))
        guess = QuestionOnly(q.asked for q in train).scores((q.asked for q in test), KINDS)
        assert found["events"][event]["question_only"] == guess
        assert found["events"][event]["questions"] == len(test)
    accuracies = [found["events"][e]["system"]["oa"] for e in events]
    assert found["mean"]["system"]["oa"] == pytest.approx(np.mean(accuracies))
    assert found["worst"]["system"]["oa"] == min(accuracies)
    with pytest.raises(OutputExistsError):
        leave_one_event_out(RECIPE, world, tmp_path / "out")


def test_what_cannot_be_left_out(world: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"has no event mars.*palu-tsunami"):
        leave_one_event_out(RECIPE, world, tmp_path / "a", ["mars"])
    with pytest.raises(SettingError, match="no event is asked for"):
        leave_one_event_out(RECIPE, world, tmp_path / "a", [])
    with pytest.raises(SettingError, match=r"no events to leave out.*damage-vqa"):
        leave_one_event_out(replace(RECIPE, data="cdvqa"), world, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_does_not_fit_questions(world: Path, tmp_path: Path) -> None:
    options = {"leave": "socal-fire"}
    with pytest.raises(SettingError, match="do not fit questions"):
        fit(replace(RECIPE, reader=options, mixup=0.2), world, tmp_path / "a")
    with pytest.raises(SettingError, match=r"task of the system is change, that of the data set vqa"):
        score_split("difference", "damage-vqa", world, "test", options=options)
    other = _any(tmp_path)
    with pytest.raises(SettingError, match="the classes of the system are cdvqa-answers"):
        score_split("tcssm/cdvqa-nano", "damage-vqa", world, "test", options=options, weights=other)
    with pytest.raises(ModelInputError, match="answers no questions"):
        question_system(registry.build("lapsenet/rgb"))


def _any(folder: Path) -> Path:
    system = registry.build("tcssm/cdvqa-nano", untrained=True)
    save_file(system.network.state_dict(), folder / "any.safetensors")
    return folder / "any.safetensors"


@pytest.mark.slow
def test_an_unseen_event_is_answered_better_than_by_guessing(world: Path, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=12, samples=256, batch=16, ema=0.9, reader={"share": 0.2})
    found = leave_one_event_out(recipe, world, tmp_path / "out", ["joplin-tornado"])
    system, guess = (found["mean"][who]["oa"] for who in ("system", "question_only"))
    assert system > guess + 0.1
