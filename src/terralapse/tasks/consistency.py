"""Learning change from few labels: what an unlabelled pair can be asked to agree with, as pure functions.

FixMatch (Sohn et al. 2020, arXiv:2001.07685) as UniMatch has it for maps: what the network says of a weakly
augmented pair, where it is sure, is the label of the same pair strongly augmented. SemiCD-VL (Li et al. 2024,
arXiv:2405.04788) adds labels of a model that was trained on something else, for change and for the buildings
of each date, and a contrast of the features of the two dates.

Maps of labels are [B, H, W] of 0, 1 and `IGNORE`; logits [B, 2, H, W]; all sums are taken in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.network import NetworkDetector

SURE = 0.95  # confidence from which a pseudo label counts
MARGIN = 2.0  # distance of features beyond which a changed pixel costs nothing
CONTRAST = 0.1  # weight of the contrast of features
GUIDANCE = 0.1  # weight of the labels of another model at the first step


@dataclass
class GuidedOutput(ChangeOutput):
    """Change, and what only training looks at; all but `logits` and `classes` are None in evaluation.

    `guided` [B, 2, H, W]: logits of change from the head that learns from another model's labels; `first`
    and `second` [B, 2, H, W]: logits of ground and building at each date; `distance` [B, H, W]: of the
    features of the two dates.
    """

    guided: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    distance: Tensor | None = None


class GuidedDetector(NetworkDetector):
    """A detector that in training gives all of a `GuidedOutput`, or where `guided` is False change alone."""

    guided: bool = True


# --- labels that the network gives itself ----------------------------------------------------------------
def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likelier class int64 [B, H, W] and its probability [B, H, W], without a gradient."""
    confidence, label = logits.detach().float().softmax(dim=1).max(dim=1)
    return label, confidence


def change_probability(logits: Tensor) -> Tensor:
    """Of class 1 [B, H, W], without a gradient."""
    return logits.detach().float().softmax(dim=1)[:, 1]


def with_agreement(
    label: Tensor, confidence: Tensor, chance: Tensor, told: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """A pseudo label and its confidence where another model has a say: the class that it names counts, with
    confidence 1, where the network gives that class a probability of at least `least`.

    Args:
        label, confidence: from `pseudo_label`.
        chance: [B, H, W], the network's probability of change.
        told: [B, H, W], the other model's label.
        least: 0 to 1.
    """
    changed, same = (told == 1) & (chance >= least), (told == 0) & (1 - chance >= least)
    label = label.masked_fill(changed, 1).masked_fill(same, 0)
    return label, confidence.masked_fill(changed | same, 1.0)


def sure_mean(cost: Tensor, confidence: Tensor, counts: Tensor, least: float = SURE) -> Tensor:
    """The sum of `cost` over the pixels that count and are sure, over the number of all that count.

    Args:
        cost, confidence: [B, H, W].
        counts: bool [B, H, W].
        least: confidence from which a pixel is sure.
    """
    taken = counts & (confidence >= least)
    return (cost * taken).sum() / counts.sum().clamp(min=1)


def pixel_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """-log p(label) of each pixel, 0 where the label is `IGNORE`."""
    return F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="none")


def all_mean(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy summed over the pixels that have a label, over the number of all pixels: an image of
    which the other model knows little weighs little."""
    return pixel_entropy(logits, label).mean()


# --- the contrast of two dates ---------------------------------------------------------------------------
def feature_distance(before: Tensor, after: Tensor, size: tuple[int, int], faithful: bool = False) -> Tensor:
    """Euclidean distance over the channels of features [B, C, h, w] of two dates, enlarged to [B, *size].

    With `faithful` it is what the released code computes: the distance over the width, laid out as a map of
    one row a channel and one column a row of the features.
    """
    if faithful:
        apart = F.pairwise_distance(before.float(), after.float(), keepdim=True).permute(0, 3, 1, 2)
    else:
        moved = [f.float().permute(0, 2, 3, 1) for f in (before, after)]
        apart = F.pairwise_distance(moved[0], moved[1]).unsqueeze(1)
    return F.interpolate(apart, size=size, mode="bilinear", align_corners=False).squeeze(1)


def contrast_pixels(distance: Tensor, label: Tensor, margin: float = MARGIN) -> Tensor:
    """D^2 where nothing changed, max(margin - D, 0)^2 where something did, 0 where the label is `IGNORE`."""
    near, far = distance.square(), (margin - distance).clamp(min=0).square()
    return near * (label == 0) + far * (label == 1)


def contrast(distance: Tensor, label: Tensor, margin: float = MARGIN) -> Tensor:
    """The sum of the means of `contrast_pixels` over unchanged and over changed pixels, so that the few
    changed ones weigh as much as all others (batch-balanced contrastive loss, Chen and Shi 2020)."""
    cost = contrast_pixels(distance, label, margin)
    parts = [(cost * (label == k)).sum() / (label == k).sum().clamp(min=1) for k in (0, 1)]
    return parts[0] + parts[1]


# --- CutMix ----------------------------------------------------------------------------------------------
def cut_mix(x: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """`x` with `partner` inside of `box` bool [B, H, W]: images [B, ..., H, W] and maps [B, H, W] alike."""
    return torch.where(box.view(len(box), *(1,) * (x.ndim - 3), *box.shape[1:]), partner, x)


# --- sums of them ----------------------------------------------------------------------------------------
def guidance_weight(done: float, start: float = GUIDANCE) -> float:
    """The weight of the other model's labels when `done` (0 to 1) of the training is over: linear to 0."""
    return start * (1.0 - min(max(done, 0.0), 1.0))


def supervised_losses(output: GuidedOutput, label: Tensor, weight: float = CONTRAST) -> dict[str, Tensor]:
    """Cross-entropy, and the weighted contrast where the output has a distance."""
    assert output.classes is not None
    entropy = cross_entropy(output.classes, label)
    if output.distance is None:
        return {"total": entropy, "cross_entropy": entropy}
    apart = contrast(output.distance, label)
    return {"total": entropy + weight * apart, "cross_entropy": entropy, "contrast": apart}


@dataclass(frozen=True)
class Guide:
    """Labels of another model for a batch: change, and buildings at each date."""

    change: Tensor
    first: Tensor
    second: Tensor

    def mixed(self, partner: Guide, box: Tensor) -> Guide:
        """With `partner` inside of the box."""
        pairs = zip(self.maps(), partner.maps(), strict=True)
        return Guide(*(cut_mix(own, other, box) for own, other in pairs))

    def maps(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.change, self.first, self.second


def guidance_losses(
    labelled: tuple[GuidedOutput, Guide], weak: tuple[GuidedOutput, Guide], strong: tuple[GuidedOutput, Guide]
) -> Tensor:
    """The sixth part of x_vl + s_vl + w_vl + (x_A + x_B + s_A + s_B + w_A + w_B) / 2, before its weight.

    Those of labelled pairs are means over the pixels that have a label, the others over all pixels.
    """
    total = labelled[1].change.new_zeros((), dtype=torch.float32)
    for (output, guide), mean in ((labelled, cross_entropy), (weak, all_mean), (strong, all_mean)):
        assert output.guided is not None and output.first is not None and output.second is not None  # noqa: PT018
        buildings = mean(output.first, guide.first) + mean(output.second, guide.second)
        total = total + mean(output.guided, guide.change) + 0.5 * buildings
    return total / 6
