"""Whether two dates relate their places to each other alike: losses on the self-similarity of features.

Wu, Dong and Meng 2025, "CFNet: Optimizing Remote Sensing Change Detection through Content-Aware Enhancement",
arXiv:2503.08505, section on the content-aware strategy; as released, and in a form of our own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from terralapse.data.pairs import IGNORE


def structure_gap(first: Tensor, second: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """How differently the dates relate places to each other: |cos(a_i, a_j) - cos(b_i, b_j)|, [B, n].

    Args:
        first, second: content [B, C, h, w] of the dates.
        i, j: flat positions, integers [n] for all images, or [B, n].
    """
    return (_related(first, i, j) - _related(second, i, j)).abs()


def _related(content: Tensor, i: Tensor, j: Tensor) -> Tensor:
    flat = content.flatten(2)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    here, there = (
        flat.gather(2, k.expand(len(flat), -1)[:, None].expand(-1, flat.shape[1], -1)) for k in (i, j)
    )
    return F.cosine_similarity(here, there, dim=1)


def official_content(first: Tensor, second: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
    """The released content losses of one scale, of what changed and of what did not.

    Random pairs of places, as many as the map has rows, drawn anew for each of the two. A cosine does not
    see the length of its vectors, so both measure the same quantity, with opposite signs: what is expected
    of their sum is 1, and of its gradient 0.
    """
    rows, cells = first.shape[2], first.shape[2] * first.shape[3]

    def gap(weight: Tensor) -> Tensor:
        i, j = torch.randint(cells, (2, rows), device=first.device)
        return structure_gap(first * weight, second * weight, i, j).mean()

    changed = focus[:, None]
    return 1.0 - gap(changed), gap(1.0 - changed)


def labelled_content(first: Tensor, second: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Content losses of one scale that do what the paper's mean to, with places chosen by the label (ours).

    Two places that did not change shall relate to each other alike at both dates; a place that did not and
    one that did shall not. As many pairs of each kind in each image as the map has rows; a kind that an image
    has no pair of counts nowhere.

    Args:
        first, second: content [B, C, h, w] of the dates.
        label: [B, H, W] of 0, 1, 255. A cell has changed where half of it did, and has not where all of it
            is known not to have.
    """
    rows, stride = first.shape[2], -(-label.shape[1] // first.shape[2])
    label = F.pad(
        label, (0, first.shape[3] * stride - label.shape[2], 0, rows * stride - label.shape[1]), value=IGNORE
    )
    changed, stayed = (F.avg_pool2d((label == k).float(), stride).flatten(1) for k in (1, 0))
    changed, stayed = (changed >= 0.5).float(), (stayed == 1.0).float()
    i, j, k = (_drawn(cells, rows) for cells in (stayed, stayed, changed))
    some = stayed.amax(dim=1)
    both = some * changed.amax(dim=1)
    apart = (1.0 - structure_gap(first, second, i, k)).mean(dim=1)
    alike = structure_gap(first, second, i, j).mean(dim=1)
    return (apart * both).sum() / both.sum().clamp(min=1.0), (alike * some).sum() / some.sum().clamp(min=1.0)


def _drawn(cells: Tensor, number: int) -> Tensor:
    """`number` positions of each row [B, n] of 0 and 1 where it is 1; of a row of zeros, any."""
    none = cells.amax(dim=1, keepdim=True) == 0
    return torch.multinomial(cells + none.float(), number, replacement=True)
