"""From samples of any task to the tensors that a network is trained and scored with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from terralapse.data.augment_pairs import AugmentRecipe, augment_all
from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.samples import (
    CaptionedImage,
    CaptionedPair,
    ClassifiedImage,
    DamagePair,
    DataSet,
    LabelledImage,
    SemanticPair,
)
from terralapse.data.words import SAME, tokens_of
from terralapse.errors import SettingError

AnySample = (
    LabelledPair
    | SemanticPair
    | DamagePair
    | LabelledImage
    | ClassifiedImage
    | CaptionedImage
    | CaptionedPair
)


def parts_of(sample: AnySample) -> tuple[np.ndarray, dict[str, np.ndarray], int | None]:
    """A sample as images [T, C, H, W], its label maps [H, W] by the keys of a target, and its class."""
    if isinstance(sample, ClassifiedImage):
        return sample.image[None], {}, sample.label
    if isinstance(sample, CaptionedImage):
        return sample.image[None], {}, None
    if isinstance(sample, LabelledImage):
        return sample.image[None], {"label": sample.label}, None
    if isinstance(sample, DamagePair):
        return sample.images, {"building": sample.building, "damage": sample.damage}, None
    if isinstance(sample, CaptionedPair):
        return sample.images, {} if sample.label is None else {"label": sample.label}, None
    known = {} if sample.map is None else {"map": sample.map}
    if isinstance(sample, SemanticPair):
        if sample.change is not None:
            known["label"] = sample.change
        return sample.images, {"before": sample.before, "after": sample.after, **known}, None
    return sample.images, {"label": sample.label, **known}, None


def series_of(sample: AnySample) -> np.ndarray | None:
    """The series [T, C, h, w] of a sample that has one."""
    return sample.series if isinstance(sample, SemanticPair) else None


def batch_of(samples: Sequence[AnySample]) -> dict[str, Tensor]:
    """Samples of one task and one size as a batch.

    Returns:
        `images` float32 [B, T, C, H, W] in physical units, 0 where there is no data, and the target of the
        task as `terralapse.tasks.network` lists it: maps int64 [B, H, W] (`IGNORE` also where there is no
        data), or `label` int64 [B] for classification. Where any sample has a series, `series` float32
        [B, T, C, h, w] of the longest, 0 where there is no data: at missing dates, and all over for a sample
        that has none. Captions that are tokenised come as `captions` int64 [B, R, L], 0 after their end and
        where a sample has fewer, with `changed` bool [B].

    Raises:
        ValueError: no sample, or images or series of several sizes.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    tensors = [_tensors(*parts_of(s)) for s in samples]
    sizes = {tuple(t["images"].shape) for t in tensors}
    if len(sizes) > 1:
        raise ValueError(f"one batch cannot hold images of {', '.join(map(str, sorted(sizes)))}")
    batch = {key: torch.stack([t[key] for t in tensors]) for key in tensors[0]}
    return batch | _batch_of_series([series_of(s) for s in samples]) | _batch_of_captions(samples)


def _batch_of_captions(samples: Sequence[AnySample]) -> dict[str, Tensor]:
    """`captions`, and of pairs `changed`; or nothing where no sample has tokens."""
    given = [s for s in samples if isinstance(s, CaptionedPair | CaptionedImage) and s.tokens is not None]
    rows = [s.tokens for s in given if s.tokens is not None]
    if not rows:
        return {}
    captions = torch.zeros(len(rows), max(map(len, rows)), rows[0].shape[1], dtype=torch.int64)
    for place, tokens in zip(captions, rows, strict=True):
        place[: len(tokens)] = torch.from_numpy(tokens)
    changed = [s.changed for s in given if isinstance(s, CaptionedPair)]
    return {"captions": captions} | ({"changed": torch.tensor(changed)} if changed else {})


def caption_of(sample: CaptionedPair | CaptionedImage, rng: np.random.Generator) -> Tensor:
    """The sentence that a sample teaches this time, int64 [L]: one at random, but always the same one where
    nothing changed, as the authors of LEVIR-MCI do it."""
    assert sample.tokens is not None
    same: list[int] = []
    if isinstance(sample, CaptionedPair):
        same = [i for i, s in enumerate(sample.captions) if " ".join(tokens_of(s)) == SAME]
    return torch.from_numpy(sample.tokens[same[0] if same else int(rng.integers(len(sample.captions)))])


def _check_described(images: np.ndarray, recipe: AugmentRecipe, size: int | None) -> None:
    """Sentences say what is left of what, and what all of the image shows."""
    moved = [n for n in ("hflip", "vflip", "turn", "swap") if getattr(recipe, n) > 0]
    if moved:
        raise SettingError(
            f"augment_{moved[0]}={getattr(recipe, moved[0]):g}",
            "moves what the captions name by its place",
            "Set hflip, vflip, turn and swap to 0.",
        )
    if size is not None and (images.shape[-2:] != (size, size) or recipe.area_low < 1):
        raise SettingError(
            f"size={size}",
            f"cuts images of {images.shape[-2]} x {images.shape[-1]} pixels that are described as a whole",
            "Train on whole images: their own size, area_low and area_high of 1.",
        )


def _batch_of_series(every: list[np.ndarray | None]) -> dict[str, Tensor]:
    """`series`, or nothing where no sample has one."""
    given = [s for s in every if s is not None]
    if not given:
        return {}
    sizes = {s.shape[1:] for s in given}
    if len(sizes) > 1:
        raise ValueError(f"one batch cannot hold series of {', '.join(map(str, sorted(sizes)))}")
    batch = torch.zeros(len(every), max(len(s) for s in given), *given[0].shape[1:])
    for place, series in zip(batch, every, strict=True):
        if series is not None:
            place[: len(series)] = _series_tensor(series)
    return {"series": batch}


def _series_tensor(series: np.ndarray) -> Tensor:
    """In numbers alone; a date without any data becomes one that only fills up."""
    return torch.from_numpy(np.nan_to_num(series, nan=0.0).astype(np.float32))


def _tensors(images: np.ndarray, maps: dict[str, np.ndarray], label: int | None) -> dict[str, Tensor]:
    missing = np.isnan(images)
    found = {"images": torch.from_numpy(np.where(missing, np.float32(0), images).astype(np.float32))}
    nowhere = missing.any(axis=(0, 1))
    for key, plane in maps.items():
        found[key] = torch.from_numpy(np.where(nowhere, IGNORE, plane).astype(np.int64))
    if label is not None:
        found["label"] = torch.tensor(label)
    return found


class TrainingSet(Dataset[dict[str, Tensor]]):
    """Augmented samples without end: sample number n depends on n, the seed and the data set, and on nothing
    else, so that a run that was cut off goes on with what it would have seen.

    Numbers 0 to N - 1 go through the N samples of the data set in one random order, N to 2 N - 1 in another,
    and so on. What is returned is one element of `batch_of`, which the default collation of torch stacks; for
    that, series of one data set need the same number of dates (readers fill them up).

    A series is flipped and turned as the images are. It belongs to the whole of them, about their middle:
    with one, nothing is cut out.

    Args:
        dataset: what to draw from.
        recipe: the augmentation.
        size: height and width of what is returned; None keeps whole images.
        seed: of order and augmentation.

    Raises:
        SettingError: the data set is empty, or (when a sample is drawn) the recipe exchanges before and after
            of a disaster, cuts out a part of images that have a series, or moves or cuts what captions
            describe.
    """

    def __init__(
        self, dataset: DataSet[Any], recipe: AugmentRecipe, size: int | None = None, seed: int = 0
    ) -> None:
        if len(dataset) == 0:
            raise SettingError(dataset.title, "holds no sample", "Check the split and its folder.")
        self.dataset, self.recipe, self.size, self.seed = dataset, recipe, size, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, len(self.dataset))
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.dataset))
            self._epoch = epoch
        sample = self.dataset[int(self._order[place])]
        (images, maps, label), series = parts_of(sample), series_of(sample)
        if "damage" in maps and self.recipe.swap > 0:
            raise SettingError(
                f"swap={self.recipe.swap:g}", "exchanges before and after the disaster", "Leave it out."
            )
        if "map" in maps and self.recipe.swap > 0:
            raise SettingError(
                f"swap={self.recipe.swap:g}", "the map shows the earlier date, not the later", "Leave it out."
            )
        if isinstance(sample, CaptionedPair | CaptionedImage):
            _check_described(images, self.recipe, self.size)
        rng = np.random.default_rng([self.seed, 1, index])
        images, maps, series = augment_all(images, maps, series, self.recipe, rng, self.size)
        given = {} if series is None else {"series": _series_tensor(series)}
        if isinstance(sample, CaptionedPair | CaptionedImage) and sample.tokens is not None:
            given["tokens"] = caption_of(sample, rng)
        return _tensors(images, maps, label) | given
