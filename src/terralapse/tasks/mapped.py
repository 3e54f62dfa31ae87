"""Change given a map of the earlier date: detectors that take one, and what trains them.

Source of the losses: Bernhard, Strauss and Schubert, "MapFormer", ICCV 2023, section 3.3, and its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.cards import Card
from terralapse.data.pairs import IGNORE
from terralapse.errors import ModelInputError
from terralapse.grid.pair import PairSample
from terralapse.labels import ClassScheme
from terralapse.layers.padding import pad_to_multiple
from terralapse.tasks.network import NetworkDetector

MAP = "map"  # the band of a pair, and the key of a batch


class MapDetector(NetworkDetector):
    """A network on two dates and a map of the earlier one, whose classes are those of `map_scheme`.

    On a scene the map is one more band of the pair, named `map`, that holds class ids and 255 where nothing
    is known (see `terralapse.grid.map_before`). It is neither stretched nor normalised.
    """

    extras = (MAP,)

    def __init__(self, card: Card, network: nn.Module, map_scheme: ClassScheme) -> None:
        super().__init__(card, network)
        self.map_scheme = map_scheme

    def fit(self, sample: PairSample) -> dict[str, Any]:
        """As any network, and where the map is.

        Raises:
            ModelInputError: the pair lacks a band, or has no map.
            NoValidDataError: there is no pixel to take percentiles of.
        """
        names = [b.name for b in sample.pair.bands]
        if MAP not in names:
            raise self.mapless()
        return {**super().fit(sample), MAP: names.index(MAP)}

    def extras_of(self, images: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
        plane = images[:, 0, state[MAP]].nan_to_num(nan=float(IGNORE))
        return {MAP: plane.round().long()}

    def padded_map(self, known: Tensor | None) -> Tensor:
        """Class ids int64 [B, H, W] with sides that the network takes, as `padded` has them for images.

        Raises:
            ModelInputError: there is no map.
        """
        if known is None:
            raise self.mapless()
        return pad_to_multiple(known[:, None].float(), self.multiple)[:, 0].long()

    def check_scheme(self, given: ClassScheme, source: str) -> None:
        """Whether a map in the classes of `given` is one that this network was made for.

        Raises:
            ModelInputError: it is not; names `source`.
        """
        if given.slug != self.map_scheme.slug:
            raise ModelInputError(
                source,
                f"has the classes of {given.slug}, and {self.card.slug} those of {self.map_scheme.slug}",
                f"Give a map with the classes {_listed(self.map_scheme)}.",
            )

    def mapless(self) -> ModelInputError:
        """The error of a run that gives no map."""
        return ModelInputError(
            self.card.slug,
            f"needs a map of the earlier date, and none was given (classes: {_listed(self.map_scheme)})",
            "Give one with --before-map FILE, or --before-map rules for one made from the image; of a data "
            "set without maps, with the reader option map=rules.",
        )


def _listed(scheme: ClassScheme) -> str:
    return ", ".join(f"{c.value} {c.name}" for c in scheme.classes)


# --- losses ------------------------------------------------------------------------------------------------
@dataclass
class MapContrast:
    """Features of the map [B, C, h, w], and embeddings of the images of the same size; `before` is None
    where the earlier image is not used."""

    about: Tensor
    before: Tensor | None
    after: Tensor


def map_contrast(
    parts: MapContrast, label: Tensor, *, balanced: bool = True, faithful: bool = False
) -> dict[str, Tensor]:
    """Images should look like the map says, but for places of the later one that changed.

    With c the cosine between the features of the map, which this does not train, and an embedding: the mean
    of -c before, of -c after where nothing changed, and of max(c, 0) after where something did.

    Args:
        parts: of a batch.
        label: change [B, H, W] of 0, 1, 255, brought to h x w by nearest neighbour.
        balanced: divide what is alike and what is not by their own numbers of pixels, else both by that of
            all.
        faithful: take pixels that are ignored for unchanged, as the published code does.

    Returns:
        `before_alike`, `after_alike`, `after_unlike`: scalars whose sum is to be minimised.
    """
    size = parts.about.shape[-2:]
    small = F.interpolate(label[:, None].float(), size=size, mode="nearest")[:, 0]
    changed = small == 1
    counted = torch.ones_like(changed) if faithful else small != IGNORE
    dates = 1 if parts.before is None else 2
    total, negatives = dates * counted.sum(), changed.sum()
    alike = (total - negatives if balanced else total).clamp(min=1)
    unlike = (negatives if balanced else total).clamp(min=1)
    after = _cosine(parts.about, parts.after)
    found = {
        "after_alike": -(after * (counted & ~changed)).sum() / alike,
        "after_unlike": (after.clamp(min=0) * changed).sum() / unlike,
    }
    if parts.before is not None:
        found["before_alike"] = -(_cosine(parts.about, parts.before) * counted).sum() / alike
    return found


def padded_label(label: Tensor, multiple: int) -> Tensor:
    """A label [B, H, W] on the sides that the images were padded to; nothing is known of the padding."""
    down, right = -label.shape[-2] % multiple, -label.shape[-1] % multiple
    return F.pad(label, (0, right, 0, down), value=IGNORE)


def _cosine(about: Tensor, embedding: Tensor) -> Tensor:
    """[B, h, w]; no gradient for the map, in float32."""
    return F.cosine_similarity(about.detach().float(), embedding.float(), dim=1)
