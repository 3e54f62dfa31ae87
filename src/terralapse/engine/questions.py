"""Training and scoring of systems that answer questions, and the protocol that leaves one event out.

Leave one event out: for each event, train on all others, choose the epoch on a held-back part of those
others, and score on the event that was left out. It needs a data set with the option `leave` (`damage-vqa`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from terralapse import registry
from terralapse.cards import Task
from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.catalogue import DATASETS, open_dataset
from terralapse.data.questions import QuestionTensors, QuestionTraining
from terralapse.engine.recipe import Recipe
from terralapse.errors import ModelInputError, OutputExistsError, SettingError
from terralapse.tasks.metrics import bootstrap_interval
from terralapse.tasks.vqa import QuestionOnly, QuestionSystem, VqaMeasure, answer_scores

SCORE_BATCH = 16


def question_system(system: Any) -> QuestionSystem:
    """`system`, which has to answer questions.

    Raises:
        ModelInputError: it does not.
    """
    if not isinstance(system, QuestionSystem):
        raise ModelInputError(
            system.card.slug, "answers no questions", "See `terralapse systems --task vqa`."
        )
    return system


def training_sets(
    recipe: Recipe, train: Any, val: Any, system: QuestionSystem, augmentation: AugmentRecipe
) -> tuple[QuestionTraining, QuestionTensors, VqaMeasure]:
    """What a run reads of its two splits, and what it counts.

    Raises:
        SettingError: the settings of the recipe do not fit questions, or the splits have other answers than
            the system.
    """
    if recipe.method or recipe.mixup or recipe.cutmix:
        raise SettingError("method, mixup, cutmix", "do not fit questions", "Leave them out.")
    for split in (train, val):
        _same_answers(system, split)
    drawn = QuestionTraining(train, system.encoding, augmentation, recipe.seed)
    return drawn, QuestionTensors(val, system.encoding), VqaMeasure(val.kinds)


def _same_answers(system: QuestionSystem, dataset: Any) -> None:
    """Answers are compared by their texts, so their order may differ; a system that knows none of them is
    not the one that was meant."""
    theirs = {c.name for c in dataset.scheme.classes}
    if not theirs & set(system.answers):
        raise SettingError(
            f"{system.card.slug} on {dataset.title}",
            f"the system knows none of the answers {dataset.scheme.slug}",
            f"Build it with answers={dataset.scheme.slug}.",
        )


# --- scores ------------------------------------------------------------------------------------------------
def count_answers(
    system: QuestionSystem, dataset: Any, device: str
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Right answers and questions by pair and type, int [P, T] each, the seconds of the network, and the
    pixels that were read."""
    system.to(device)
    system.network.eval()
    place = {name: i for i, name in enumerate(dict.fromkeys(dataset.names))}
    right = np.zeros((len(place), len(dataset.kinds)), np.int64)
    asked = np.zeros_like(right)
    seconds, pixels, number = 0.0, 0, 0
    for batch in DataLoader(QuestionTensors(dataset, system.encoding), batch_size=SCORE_BATCH):  # pyright: ignore
        moved = {k: v.to(device) for k, v in batch.items()}
        started = time.perf_counter()
        with torch.inference_mode():
            hit = (system.respond(moved, {}).logits.argmax(dim=1) == moved["answer"]).cpu().numpy()
        seconds += time.perf_counter() - started
        pixels += batch["images"].shape[0] * batch["images"].shape[-2] * batch["images"].shape[-1]
        pairs = [place[n] for n in dataset.names[number : number + len(hit)]]
        np.add.at(asked, (pairs, batch["kind"].numpy()), 1)
        np.add.at(right, (pairs, batch["kind"].numpy()), hit.astype(np.int64))
        number += len(hit)
    return right, asked, seconds, pixels


def score_questions(system: Any, dataset: Any, device: str, samples: int) -> dict[str, Any]:
    """The fields of `terralapse.engine.score.ModeScores`; the interval is over pairs drawn again, since the
    questions of a pair hang together.

    Raises:
        ModelInputError, SettingError: the system answers no questions, or none of these.
    """
    answering = question_system(system)
    _same_answers(answering, dataset)
    right, asked, seconds, pixels = count_answers(answering, dataset, device)
    kinds = dataset.kinds
    flat = np.concatenate([right, asked], axis=1)

    def overall(total: np.ndarray) -> float:
        return answer_scores(total[: len(kinds)], total[len(kinds) :], kinds)["oa"]

    return {
        "samples": len(dataset),
        "scores": {"vqa": answer_scores(right.sum(axis=0), asked.sum(axis=0), kinds)},
        "main": "vqa.oa",
        "interval": bootstrap_interval(flat, overall, samples) if len(flat) > 1 else None,
        "counts": {"right": right.sum(axis=0).tolist(), "asked": asked.sum(axis=0).tolist()},
        "megapixels_a_second": pixels / 1e6 / max(seconds, 1e-9),
    }


# --- leave one event out -----------------------------------------------------------------------------------
def leave_one_event_out(
    recipe: Recipe, data: Path | str, out: Path | str, events: Sequence[str] | None = None
) -> dict[str, Any]:
    """Trains and scores once for each event; writes `domains.json` into `out` beside a folder for each run.

    Args:
        recipe: its `data` has the option `leave`; its splits and `reader_leave` are set here.
        data: the folder of the data set.
        out: a folder that is not there yet, or is empty.
        events: some of the data set's; all where None.

    Returns:
        `events`: for each the scores of the system and of `QuestionOnly` fitted on the same training part;
        `mean` and `worst` over the events, of both, by `oa` and `aa`; and the `protocol` in a sentence.

    Raises:
        SettingError: the data set has no events to leave out, fewer than two, or not these.
        OutputExistsError: there is something in `out`.
        And whatever `fit` raises.
    """
    from terralapse.engine.fit import fit

    entry = DATASETS.get(recipe.data)
    if entry is None or entry.task is not Task.VQA or "leave" not in entry.options:
        able = sorted(n for n, e in DATASETS.items() if "leave" in e.options)
        raise SettingError(
            f"data={recipe.data}", "has no events to leave out", f"Choose from {', '.join(able)}."
        )
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise OutputExistsError(out, "is not empty", "Name another folder.")
    given = {k: v for k, v in recipe.reader.items() if k != "leave"}
    known: list[str] = open_dataset(recipe.data, data, None, **given).events  # pyright: ignore
    chosen = list(known) if events is None else list(events)
    if len(known) < 2:
        raise SettingError(str(data), f"holds one event, {known[0]}", "Leaving one out needs two or more.")
    strange = sorted(set(chosen) - set(known))
    if not chosen or strange:
        fault = f"has no event {', '.join(strange)}" if chosen else "no event is asked for"
        raise SettingError(str(data), fault, f"It has {', '.join(known)}.")
    found: dict[str, Any] = {}
    for event in chosen:
        one = replace(recipe, train_split="train", val_split="val", reader={**given, "leave": event})
        weights = fit(one, data, out / event)
        train, test = (open_dataset(recipe.data, data, part, **one.reader) for part in ("train", "test"))
        system = registry.build(recipe.model, weights=weights, **recipe.build)
        kinds = test.kinds  # pyright: ignore[reportAttributeAccessIssue]
        right, asked, _, _ = count_answers(question_system(system), test, "cpu")
        guess = QuestionOnly(s.asked for s in train)
        found[event] = {
            "questions": len(test),
            "system": _plain(answer_scores(right.sum(axis=0), asked.sum(axis=0), kinds)),
            "question_only": _plain(guess.scores((s.asked for s in test), kinds)),
        }
    result = {
        "model": recipe.model,
        "build": dict(recipe.build),
        "data": recipe.data,
        "protocol": (
            "trained on all events but one, the epoch chosen on a held-back part of those, scored on the "
            "one; the question-only guess is fitted on the same training part"
        ),
        "events": found,
        **_over_events(found),
    }
    (out / "domains.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def _plain(scores: Mapping[str, float]) -> dict[str, float | None]:
    """JSON-ready: a type that was not asked has no accuracy."""
    return {name: None if value != value else value for name, value in scores.items()}


def _over_events(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and worst of the accuracies over the events."""
    values = {
        (who, name): [event[who][name] for event in found.values()]
        for who in ("system", "question_only")
        for name in ("oa", "aa")
    }
    return {
        what: {
            who: {name: float(take(values[who, name])) for name in ("oa", "aa")}
            for who in ("system", "question_only")
        }
        for what, take in (("mean", np.mean), ("worst", np.min))
    }
