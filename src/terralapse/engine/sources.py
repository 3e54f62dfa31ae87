"""From a recipe to what it trains on: samples by number, whole validation samples, and what the card's
stretch needs to know of the scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from terralapse.cards import Stretch, Task
from terralapse.data.change_mix import ChangeMix, Pools
from terralapse.data.change_pairs import Pair, read_building_masks, read_images, read_revisits
from terralapse.data.chat import is_chat
from terralapse.data.mshs_bcd import MshsBcd
from terralapse.data.samples import CaptionedImage, CaptionedPair
from terralapse.data.words import encode_all
from terralapse.engine.recipe import Recipe
from terralapse.errors import BandError, SettingError
from terralapse.labels import NOT_COUNTED, scheme
from terralapse.tasks.captions import Captioner
from terralapse.tasks.chat import ChatSystem
from terralapse.tasks.image_captions import ImageCaptioner, ImageCaptionMeasure
from terralapse.tasks.measures import Measure
from terralapse.tasks.network import NetworkSystem
from terralapse.tasks.retrieval import TextImageSystem

Batch = dict[str, Tensor]
Step = Callable[[NetworkSystem, Batch, Mapping[str, Any], float], dict[str, Tensor]]


@dataclass
class Sources:
    """`train[n]` is sample number n, of any n: images float32 [T, C, size, size] and the keys of the target;
    `length` samples are an epoch. `val` holds whole samples. `classes` counts the labels (of semantic change
    without 0). `state` is what `normalise` wants. `step`, where there is one, gives the losses of a
    batch in place of the system's own: it takes the system, the batch, the state, and how much of the
    training (0 to 1) is done. `measure`, where there is one, counts in place of that of the task."""

    train: Dataset[Batch]
    length: int
    val: Dataset[Batch]
    classes: int
    state: dict[str, Any]
    step: Step | None = None
    measure: Measure | None = None


class _Val(Dataset[Batch]):
    """Whole samples as tensors, in order."""

    def __init__(self, samples: Any, system: NetworkSystem) -> None:
        self.samples, self.system = samples, system

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Batch:
        from terralapse.data.training import batch_of

        return {k: v[0] for k, v in batch_of([pick_bands(self.samples[index], self.system)]).items()}


def pick_bands(sample: Any, system: NetworkSystem) -> Any:
    """A sample whose images have the bands of the system's card, in its order, and whose captions are in the
    vocabulary of a system that writes some.

    Raises:
        BandError: the data lack a band.
        SettingError: the system's vocabulary is not known.
    """
    sample = _in_ids(sample, system)
    if sample.bands == system.bands:
        return sample
    missing = [b for b in system.bands if b not in sample.bands]
    if missing:
        raise BandError(
            f"{sample.name}",
            f"has the bands {', '.join(sample.bands)}, and {system.card.slug} needs {', '.join(missing)} too",
            "Choose another data set or another system.",
        )
    picked = [sample.bands.index(b) for b in system.bands]
    if hasattr(sample, "images"):
        return replace(sample, images=sample.images[:, picked], bands=system.bands)
    return replace(sample, image=sample.image[picked], bands=system.bands)


def _in_ids(sample: Any, system: NetworkSystem) -> Any:
    """A sample with its captions in the ids of a system that writes or reads some; any other as it is."""
    if isinstance(sample, CaptionedImage) and isinstance(system, TextImageSystem | ImageCaptioner):
        return replace(sample, tokens=system.tokens_of(sample.captions))
    if not (isinstance(sample, CaptionedPair) and isinstance(system, Captioner)):
        return sample
    return replace(sample, tokens=encode_all(system.need_vocabulary(), sample.captions, system.longest))


def sources(recipe: Recipe, root: Path, system: NetworkSystem) -> Sources:
    """Everything that a run reads.

    Raises:
        FileMissingError, SettingError, BandError: from the readers; they name what is missing.
    """
    if recipe.data == "change-mix":
        if recipe.method:
            raise SettingError(f"method={recipe.method}", "takes no made pairs", "Name a data set.")
        return _change_mix(recipe, root)
    from terralapse.data.augment_pairs import AugmentRecipe
    from terralapse.data.catalogue import open_dataset
    from terralapse.data.training import TrainingSet

    options: dict[str, Any] = reader_options(recipe.reader)
    if recipe.holdout:
        options["holdout"] = recipe.holdout
    train = open_dataset(recipe.data, root, recipe.train_split or None, **options)
    val = open_dataset(recipe.data, root, recipe.val_split or None, **options)
    known = {f.name for f in fields(AugmentRecipe)}
    if unknown := sorted(set(recipe.augment) - known):
        raise SettingError(
            f"augment_{unknown[0]}", "no such augmentation", f"Choose from {', '.join(sorted(known))}."
        )
    augment = AugmentRecipe(**recipe.augment)
    if system.card.task is Task.VQA:
        from terralapse.engine.questions import question_system, training_sets

        asked, held, measure = training_sets(recipe, train, val, question_system(system), augment)
        return Sources(asked, len(asked), held, len(train.scheme.classes), {}, measure=measure)
    if isinstance(system, ChatSystem) or is_chat(train):
        from terralapse.engine.chat import chat_system
        from terralapse.engine.chat import training_sets as chat_sets

        spoken, held, measure = chat_sets(recipe, train, val, chat_system(system), augment)
        return Sources(spoken, len(spoken), held, len(train.scheme.classes), {}, measure=measure)
    state = _stretch(train, system)
    classes = sum(c.name not in NOT_COUNTED for c in train.scheme.classes)
    if recipe.method:
        from terralapse.engine.semi import SemiStep, semi_set

        if system.card.task is not Task.CHANGE:
            raise SettingError(f"method={recipe.method}", "trains binary change", "Leave it out.")
        some = semi_set(_Picked(train, system), train.names, recipe, system, augment)
        return Sources(some, len(some), _Val(val, system), classes, state, SemiStep.of(recipe))
    drawn = TrainingSet(_Picked(train, system), augment, recipe.size, recipe.seed)  # pyright: ignore
    measure = ImageCaptionMeasure() if isinstance(system, ImageCaptioner) else None
    return Sources(drawn, len(train), _Val(val, system), classes, state, measure=measure)


def reader_options(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a reader as they stand in a recipe; a scheme is named by its slug."""
    options = dict(stated)
    if isinstance(slug := options.get("scheme"), str):
        try:
            options["scheme"] = scheme(slug)
        except KeyError as error:
            raise SettingError(f"scheme={slug}", "no such class scheme", "See terralapse.labels.") from error
    return options


class _Picked:
    """A data set with the bands of a system."""

    def __init__(self, samples: Any, system: NetworkSystem) -> None:
        self.samples, self.system = samples, system
        self.title, self.scheme = samples.title, samples.scheme

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return pick_bands(self.samples[index], self.system)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def _stretch(train: Any, system: NetworkSystem, most: int = 200) -> dict[str, Any]:
    """The percentiles of the training images where the card wants a stretch of the scene."""
    normalisation = system.card.inputs.normalisation
    if normalisation is None or normalisation.stretch is not Stretch.SCENE_PERCENTILE:
        return {}
    step = max(1, len(train) // most)
    values = []
    for index in range(0, len(train), step):
        sample = pick_bands(train[index], system)
        images = sample.images if hasattr(sample, "images") else sample.image[None]
        values.append(images.swapaxes(0, 1).reshape(images.shape[1], -1)[:, ::16])
    low, high = np.nanpercentile(np.concatenate(values, axis=1), (2.0, 98.0), axis=1)
    return {"stretch": {"low": low.tolist(), "high": high.tolist()}}


# --- real and made pairs ---------------------------------------------------------------------------
class _AsTarget(Dataset[Batch]):
    def __init__(self, mix: ChangeMix) -> None:
        self.mix = mix

    def __getitem__(self, index: int) -> Batch:
        images, label = self.mix[index]
        return {"images": images, "label": label}


class _Tiles(Dataset[Batch]):
    def __init__(self, tiles: MshsBcd) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Batch:
        tile = self.tiles[index]
        return {"images": torch.from_numpy(tile.images).float(), "label": torch.from_numpy(tile.label)}


KINDS = ("real", "unrelated", "remove", "destroy", "revisit")
MIX_DEFAULTS: Mapping[str, float] = {
    "real": 1.0,
    "on_change": 0.5,
    "paste": 0.4,
    "zoom_low": 0.75,
    "zoom_high": 1.5,
    "shift": 2.0,
    "strength_low": 0.1,
    "strength_high": 0.9,
    "blur": 0.4,
    "jpeg": 0.3,
    "untouched": 0.4,
}


def _change_mix(recipe: Recipe, root: Path) -> Sources:
    """Pairs of MS-HS-BCD and, by the shares in `mix_<kind>`, pairs made from other images."""
    known = {*KINDS, *MIX_DEFAULTS}
    if unknown := sorted(set(recipe.mix) - known):
        raise SettingError(f"mix_{unknown[0]}", "no such setting", f"Choose from {', '.join(sorted(known))}.")
    mix = {**MIX_DEFAULTS, **recipe.mix}
    shares = {kind: float(mix[kind]) for kind in KINDS if mix.get(kind, 0) > 0}
    train = MshsBcd(root / "cd_mshs_bcd", recipe.train_split, recipe.sensor)
    pools = Pools(real=[Pair(t.images, t.label, t.gsd) for t in train])
    if set(shares) - {"real"}:
        pools.masked = read_building_masks(root / "seg_buildings_multi")
        pools.revisits = read_revisits(root / "trees_naip_multiyear" / "train.zip")
        pools.plain = read_images(root / "det_estonia_20cm" / "images", gsd=0.2)
    drawn = ChangeMix(
        pools,
        shares,
        recipe.size,
        recipe.seed,
        mix["on_change"],
        mix["paste"],
        (mix["zoom_low"], mix["zoom_high"]),
        mix["shift"],
        (mix["strength_low"], mix["strength_high"]),
        mix["jpeg"],
        mix["blur"],
        mix["untouched"],
    )
    val = _Tiles(MshsBcd(root / "cd_mshs_bcd", recipe.val_split, recipe.sensor))
    state: dict[str, Any] = {}
    if recipe.sensor == "s2":
        low, high = train.percentiles()
        state = {"stretch": {"low": low.tolist(), "high": high.tolist()}}
    return Sources(_AsTarget(drawn), len(train), val, 2, state)
