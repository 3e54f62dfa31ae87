"""Training with few labelled pairs and many without a label: the data of a step, and the losses on them.

`method` in a recipe chooses between the labelled pairs alone (`supervised`), consistency of views of the
unlabelled ones (`fixmatch`), and both with the labels of another model beside (`semicd-vl`). All three see
the same labelled views in the same order, and an epoch has as many samples for each.

Source: Li et al. 2024, SemiCD-VL, arXiv:2405.04788, and UniMatch, on whose code it stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from terralapse.data.augment_pairs import AugmentRecipe, augment
from terralapse.data.pairs import IGNORE
from terralapse.data.pseudo_labels import PseudoLabels
from terralapse.data.views import cut_box, scaled_crop, strong_view
from terralapse.engine.recipe import Recipe
from terralapse.errors import FileMissingError, SettingError
from terralapse.sensors import Unit
from terralapse.tasks.consistency import (
    CONTRAST,
    GUIDANCE,
    SURE,
    Guide,
    GuidedDetector,
    change_probability,
    contrast,
    contrast_pixels,
    cut_mix,
    guidance_losses,
    guidance_weight,
    pixel_entropy,
    pseudo_label,
    sure_mean,
    with_agreement,
)
from terralapse.tasks.dice import dice_loss
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkSystem

METHODS = ("supervised", "fixmatch", "semicd-vl")
Batch = dict[str, Tensor]
GUIDES = ("change", "first", "second")


# --- who is labelled -------------------------------------------------------------------------------------
def labelled_names(names: Sequence[str], labelled: str, seed: int) -> list[str]:
    """The names of the samples whose labels are used, in the order of `names`.

    Args:
        names: of all samples.
        labelled: a share of them, as text, such as `0.05`; or a file with one name a line (what follows a
            blank, folders and endings are left out).
        seed: of the draw. A share s of n samples is the round(s n), at least 1, whose SHA-256 of
            `<seed>:<name>` is lowest: the same on every machine, and a larger share holds every smaller one.

    Raises:
        SettingError: no share between 0 and 1, or the file names a sample that is not there, or none.
        FileMissingError: no such file.
    """
    try:
        share = float(labelled)
    except ValueError:
        return _listed(names, Path(labelled))
    if not 0 < share < 1:
        raise SettingError(f"labelled={labelled}", "is no share", "Give a number between 0 and 1, or a file.")
    ranked = sorted(names, key=lambda n: hashlib.sha256(f"{seed}:{n}".encode()).digest())
    chosen = set(ranked[: max(1, round(share * len(names)))])
    return [n for n in names if n in chosen]


def _listed(names: Sequence[str], path: Path) -> list[str]:
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Correct `labelled` in the recipe.")
    lines = path.read_text(encoding="utf-8").split("\n")
    wanted = {Path(line.split()[0]).stem for line in lines if line.strip()}
    if unknown := sorted(wanted - {Path(n).stem for n in names}):
        raise SettingError(path, f"names {unknown[0]}, which is not in the set", "Correct the list.")
    if not wanted:
        raise SettingError(path, "names no sample", "Write one name a line.")
    return [n for n in names if Path(n).stem in wanted]


# --- samples ---------------------------------------------------------------------------------------------
class SemiSet(Dataset[Batch]):
    """Views of labelled and unlabelled pairs without end: what number n gives depends on n, the seed and the
    set alone, so that a run that was cut off goes on with what it would have seen.

    Each sample holds `images` and `label` of a labelled pair; for the methods that use them also, of two
    unlabelled pairs, the weak views `weak` and `partner` with `weak_inside` and `partner_inside` (where the
    image is), the strong view `strong`, into whose `box` that of the partner is already pasted; and with
    guides, `<view>_<map>` of the views images, weak and partner and of the maps change, first and second.

    Args:
        dataset: all pairs, with `names`.
        labelled, unlabelled: indices into it.
        size: of the views.
        recipe: flips and turns after the crop of `scaled_crop`.
        seed: of everything.
        guides: labels of another model by the names of the pairs, or None.
        alone: whether the labelled view is all that is wanted.
    """

    def __init__(
        self,
        dataset: Any,
        labelled: Sequence[int],
        unlabelled: Sequence[int],
        size: int,
        recipe: AugmentRecipe,
        seed: int = 0,
        guides: PseudoLabels | None = None,
        alone: bool = False,
    ) -> None:
        self.dataset, self.size, self.recipe, self.seed = dataset, size, recipe, seed
        self.labelled, self.unlabelled = list(labelled), list(unlabelled)
        self.guides, self.alone = guides, alone

    def __len__(self) -> int:
        return len(self.unlabelled)

    def __getitem__(self, index: int) -> Batch:
        images, maps, _ = self._weak(self.labelled, index, stream=0)
        found = {"images": images, "label": maps.pop("label"), **_named("images", maps)}
        if not self.alone:
            weak, weak_maps, colours = self._weak(self.unlabelled, index, stream=1)
            partner, partner_maps, _ = self._weak(self.unlabelled, index, stream=2)
            rng = self._rng(index, 3)
            strong, other = (strong_view(x, rng, colours) for x in (weak, partner))
            box = cut_box(self.size, rng)
            for name, view, maps in (("weak", weak, weak_maps), ("partner", partner, partner_maps)):
                found |= {name: view, f"{name}_inside": maps.pop("label") != IGNORE, **_named(name, maps)}
            found |= {"strong": np.where(box, other, strong), "box": box}
        return {
            k: torch.from_numpy(v.astype(np.int64) if v.dtype == np.uint8 else v) for k, v in found.items()
        }

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, stream, index])

    def _weak(
        self, chosen: list[int], index: int, stream: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray], bool]:
        """A weak view of the pair whose turn it is: a random order for each pass over the chosen ones. The
        label of an unlabelled pair is replaced by zeros before anything looks at it."""
        turn, place = divmod(index, len(chosen))
        order = np.random.default_rng([self.seed, 10 + stream, turn]).permutation(len(chosen))
        pair = self.dataset[chosen[int(order[place])]]
        label = pair.label if stream == 0 else np.zeros_like(pair.label)
        maps = {"label": np.where(np.isnan(pair.images).any(axis=(0, 1)), np.uint8(IGNORE), label)}
        if self.guides is not None:
            maps |= vars(self.guides[pair.name])
        rng = self._rng(index, stream)
        images, maps = scaled_crop(np.nan_to_num(pair.images), maps, self.size, rng)
        images, maps = augment(images, maps, self.recipe, rng)
        return images, maps, pair.unit is Unit.RGB255 and images.shape[1] == 3


def _named(view: str, maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{view}_{k}": v for k, v in maps.items() if k in GUIDES}


def semi_set(
    train: Any, names: Sequence[str], recipe: Recipe, system: NetworkSystem, augmentation: AugmentRecipe
) -> SemiSet:
    """The training set of a recipe with a `method`.

    Args:
        train: all pairs of the training split, with the bands of the system.
        names: theirs.
        recipe, augmentation: what to do.
        system: told whether its training looks at guides.

    Raises:
        SettingError: no such method, no `labelled`, or a network that has no place for guides.
        FileMissingError: the guides are not there.
    """
    if recipe.method not in METHODS:
        raise SettingError(f"method={recipe.method}", "no such method", f"Choose from {', '.join(METHODS)}.")
    if not recipe.labelled:
        raise SettingError("labelled", "is missing", "Give a share, such as 0.05, or a file of names.")
    guided = recipe.method == "semicd-vl"
    if isinstance(system, GuidedDetector):
        system.guided = guided
    elif guided:
        raise SettingError(
            f"model={recipe.model}", "has no place for labels of another model", "Train it with fixmatch."
        )
    chosen = set(labelled_names(names, recipe.labelled, recipe.seed))
    inside = [i for i, n in enumerate(names) if n in chosen]
    outside = [i for i, n in enumerate(names) if n not in chosen]
    if not outside:
        raise SettingError(f"labelled={recipe.labelled}", "leaves nothing unlabelled", "Label fewer.")
    if guided and not recipe.guides:
        raise SettingError("guides", "is missing", "Give the folder of the labels of another model.")
    guides = PseudoLabels(recipe.guides, recipe.train_split) if guided else None
    alone = recipe.method == "supervised"
    return SemiSet(train, inside, outside, recipe.size, augmentation, recipe.seed, guides, alone)


# --- a step ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SemiStep:
    """The losses of a batch of `SemiSet`. All but the method are set by `semi_*` in a recipe.

    `sure`: confidence from which the network's own label counts; `contrast`: weight of the contrast;
    `guidance`: weight of the other model's labels at the first step, from where it falls to 0; `dice`: weight
    of a Dice loss beside the cross-entropy of labelled pairs (0 in the paper); `agree`: probability
    from which the class counts that the other model names, however unsure the network is (0 in the paper,
    where the network decides alone). Change is rare, so that a network with few labels is hardly ever sure of
    it, and its own labels would teach background alone.
    """

    method: str
    sure: float = SURE
    contrast: float = CONTRAST
    guidance: float = GUIDANCE
    dice: float = 0.0
    agree: float = 0.0

    @staticmethod
    def of(recipe: Recipe) -> SemiStep:
        """Of a recipe.

        Raises:
            SettingError: a setting that there is not, or that is no number.
        """
        known = [f.name for f in fields(SemiStep) if f.name != "method"]
        for name, value in recipe.semi.items():
            if name not in known:
                raise SettingError(f"semi_{name}", "no such setting", f"Choose from {', '.join(known)}.")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SettingError(f"semi_{name}={value!r}", "is no number", "Correct the recipe.")
        return SemiStep(recipe.method, **recipe.semi)

    def __call__(
        self, system: NetworkSystem, batch: Batch, state: Mapping[str, Any], done: float
    ) -> dict[str, Tensor]:
        """`total` and its parts; `done` of the training (0 to 1) lies behind."""
        if self.method == "supervised":
            labelled = self._labelled(self._respond(system, batch["images"], state), batch["label"])
            return {"total": labelled, "labelled": labelled}
        system.network.eval()
        with torch.no_grad():
            other = self._respond(system, batch["partner"], state).classes
        system.network.train()
        both = self._respond(system, torch.cat([batch["images"], batch["weak"]]), state)
        own, weak = halves(both)
        strong = self._respond(system, batch["strong"], state)
        label, confidence, counts = mixed_labels(weak.classes, other, batch)
        guides = {}
        if self.method == "semicd-vl":
            guides = {view: Guide(*(batch[f"{view}_{k}"] for k in GUIDES)) for view in _GUIDED}
            guides["strong"] = guides["weak"].mixed(guides["partner"], batch["box"])
            if self.agree:
                chance = cut_mix(change_probability(weak.classes), change_probability(other), batch["box"])
                label, confidence = with_agreement(
                    label, confidence, chance, guides["strong"].change, self.agree
                )
        labelled = self._labelled(own, batch["label"])
        agreed = sure_mean(pixel_entropy(strong.classes, label), confidence, counts, self.sure)
        parts = {"labelled": labelled, "consistency": agreed}
        total = (labelled + agreed) / 2
        if self.method == "semicd-vl":
            apart = contrast(own.distance, batch["label"])
            apart_strong = sure_mean(contrast_pixels(strong.distance, label), confidence, counts, self.sure)
            told = guidance_losses(
                (own, guides["images"]), (weak, guides["weak"]), (strong, guides["strong"])
            )
            parts |= {"contrast": (apart + apart_strong) / 2, "guidance": told}
            total = total + self.contrast * parts["contrast"] + guidance_weight(done, self.guidance) * told
        sure = (counts & (confidence >= self.sure)).sum() / counts.sum().clamp(min=1)
        changed = (counts & (confidence >= self.sure) & (label == 1)).sum() / counts.sum().clamp(min=1)
        return {"total": total, **parts, "sure": sure, "sure_changed": changed}

    def _labelled(self, output: Any, label: Tensor) -> Tensor:
        entropy = cross_entropy(output.classes, label)
        return entropy + self.dice * dice_loss(output.classes, label) if self.dice else entropy

    @staticmethod
    def _respond(system: NetworkSystem, images: Tensor, state: Mapping[str, Any]) -> Any:
        output = system.forward(system.normalise(images, None, state))
        if output.classes is None:  # one logit, whose sigmoid is the softmax of itself and 0
            output = replace(output, classes=torch.stack([torch.zeros_like(output.logits), output.logits], 1))
        return output


_GUIDED = ("images", "weak", "partner")


def halves(output: Any) -> tuple[Any, Any]:
    """The outputs of the first and of the second half of a batch."""
    parts: list[dict[str, Tensor | None]] = [{}, {}]
    for name, value in vars(output).items():
        pieces = (None, None) if value is None else value.chunk(2)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece
    return replace(output, **parts[0]), replace(output, **parts[1])


def mixed_labels(weak: Tensor, partner: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The network's own labels of the strong view, how sure it is of them, and which pixels count: those of
    the weak view, and of the partner inside of the box."""
    own, other = pseudo_label(weak), pseudo_label(partner)
    label, confidence = (cut_mix(a, b, batch["box"]) for a, b in zip(own, other, strict=True))
    return label, confidence, cut_mix(batch["weak_inside"], batch["partner_inside"], batch["box"])
