"""Training and scoring of systems that answer instructions in free text."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.data import DataLoader

from terralapse.data.augment_pairs import AugmentRecipe
from terralapse.data.chat import Chats, ChatTensors, ChatTraining, is_chat
from terralapse.engine.recipe import Recipe
from terralapse.errors import BandError, ModelInputError, SettingError
from terralapse.tasks.chat import ChatMeasure, ChatSystem

SCORE_BATCH = 8


def chat_system(system: Any) -> ChatSystem:
    """`system`, which has to answer instructions.

    Raises:
        ModelInputError: it does not.
    """
    if not isinstance(system, ChatSystem):
        raise ModelInputError(
            system.card.slug, "answers no instructions", "Choose a data set of its own, such as levir-mci."
        )
    return system


def chats(system: ChatSystem, dataset: Any) -> Chats:
    """`dataset`, which has to be one of instructions on images that the system takes.

    Raises:
        SettingError, BandError, ModelInputError: it is not.
    """
    if not is_chat(dataset):
        raise SettingError(
            f"{system.card.slug} on {dataset.title}",
            "the data set has no instructions",
            "Choose changechat, or levir-chat, which makes them from LEVIR-MCI.",
        )
    if len(dataset):
        first = dataset[0]
        if first.bands != system.bands:
            raise BandError(
                first.name,
                f"has {', '.join(first.bands)}, and {system.card.slug} takes {', '.join(system.bands)}",
                "Choose another data set.",
            )
        if first.unit not in system.card.inputs.units:
            raise ModelInputError(
                system.card.slug,
                f"takes {' or '.join(system.card.inputs.units)}, and {first.name} is in {first.unit}",
                "Convert the images.",
            )
    return dataset


def training_sets(
    recipe: Recipe, train: Any, val: Any, system: ChatSystem, augmentation: AugmentRecipe
) -> tuple[ChatTraining, ChatTensors, ChatMeasure]:
    """What a run reads of its two splits, and what it counts.

    Raises:
        SettingError: the settings of the recipe do not fit instructions.
        And those of `chats`.
    """
    if recipe.method or recipe.mixup or recipe.cutmix:
        raise SettingError("method, mixup, cutmix", "do not fit instructions", "Leave them out.")
    masks = system.goal != "answers"
    told, held = chats(system, train), chats(system, val)
    drawn = ChatTraining(told, system.encoding, augmentation, recipe.seed, masks)
    return drawn, ChatTensors(held, system.encoding, masks), ChatMeasure(held, system.goal)


def score_chat(system: Any, dataset: Any, device: str) -> dict[str, Any]:
    """The fields of `terralapse.engine.score.ModeScores`. There is no interval: sentences are scored as a
    corpus. The counts hold every answer, as `terralapse.tasks.chat.ChatMeasure` writes them.

    Raises:
        ModelInputError, SettingError, BandError: the system answers no instructions, or none of these.
    """
    answering = chat_system(system)
    told = chats(answering, dataset)
    answering.to(device)
    answering.network.eval()
    measure = ChatMeasure(told, answering.goal).to(device)
    tensors = ChatTensors(told, answering.encoding, answering.goal != "answers")
    seconds, pixels = 0.0, 0
    for batch in DataLoader(tensors, batch_size=SCORE_BATCH):
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        started = time.perf_counter()
        with torch.inference_mode():
            output = answering.respond(moved, {})
        seconds += time.perf_counter() - started
        pixels += batch["images"].shape[0] * batch["images"].shape[-2] * batch["images"].shape[-1]
        measure.update(output, moved)
    counts = measure.counts()
    return {
        "samples": len(told),
        "scores": measure.scores(counts),
        "main": measure.monitor,
        "interval": None,
        "counts": {name: value.tolist() for name, value in counts.items()},
        "megapixels_a_second": pixels / 1e6 / max(seconds, 1e-9),
    }
