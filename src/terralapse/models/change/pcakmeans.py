"""Principal components of the neighbourhood and k-means with two clusters.

Celik, Unsupervised change detection in satellite images using principal component analysis and k-means
clustering, IEEE GRSL 6(4), 2009. The difference image is cut into blocks of h x h pixels; the eigenvectors
of the blocks are the filters that describe the neighbourhood of every pixel, and k-means with k = 2 splits
the descriptions. The filters run as one convolution, so any scene is streamed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from terralapse.cards import Card, DateOrder, Inputs, Licences, Status, Task
from terralapse.grid.pair import PairSample
from terralapse.layers.unsupervised import match_dates, otsu, scale_dates, usable, valid_pixels
from terralapse.registry import register
from terralapse.tasks.change import ChangeDetector

BLOCK = 5  # h, odd, so that a neighbourhood has a middle
ENERGY = 0.9  # share of the variance of the blocks that the kept eigenvectors hold
CLUSTERED = 200_000  # at most this many pixels are clustered
ROUNDS = 100

CARD = Card(
    slug="pca-kmeans",
    title="PCA of neighbourhoods and k-means",
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    seed=False,
    summary="Describes the 5 x 5 neighbourhood of every pixel of the difference image by principal "
    "components and splits the descriptions in two clusters.",
    year=2009,
    paper="Celik, Unsupervised change detection in satellite images using principal component analysis and "
    "k-means clustering, IEEE GRSL 6(4), 2009",
    inputs=Inputs(dates=2, halo=BLOCK // 2),
    classes="binary-change",
    licences=Licences(code="Apache-2.0"),
    limits=(
        "Two clusters are always found unless the dates are identical, however little has changed.",
        "K-means prefers clusters of like extent: rare change is drowned by common differences.",
        "Edges of changes are blurred by half a block.",
        "The probability is a ratio of distances, not a calibrated frequency.",
    ),
)


class PCAKMeans(ChangeDetector):
    """v(p) = E' (block(p) - mean); change where v is nearer to the centre of the larger differences."""

    def __init__(self, card: Card = CARD, block: int = BLOCK, energy: float = ENERGY) -> None:
        if block % 2 == 0:
            raise ValueError(f"a block of {block} pixels has no middle: give an odd number")
        self.card = card
        self.block = block
        self.energy = energy
        self.halo = block // 2

    def fit(self, sample: PairSample) -> dict[str, Any]:
        state = match_dates(valid_pixels(sample))
        images, known = zip(*(as_tensors(block) for block in sample), strict=True)
        magnitude = [difference_image(i, k, state) for i, k in zip(images, known, strict=True)]
        values = torch.cat([m[k] for m, k in zip(magnitude, known, strict=True)]).double()
        state["mean"] = float(values.mean())
        if float(values.max()) < 1e-3:
            return state | {"filters": None, "centres": None}
        cells = [blocks(m - state["mean"], k, self.block) for m, k in zip(magnitude, known, strict=True)]
        state["filters"] = eigenvectors(torch.cat(cells).double().numpy(), self.energy).tolist()
        features = torch.cat(
            [
                describe(m, k, state)[0].flatten(1)[:, k.flatten()].T
                for m, k in zip(magnitude, known, strict=True)
            ]
        )
        step = max(1, -(-len(features) // CLUSTERED))
        centres = two_means(features[::step].double().numpy(), values[::step].numpy())
        state["centres"] = None if centres is None else centres.tolist()
        return state

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        known = usable(images, valid)
        magnitude = difference_image(images, known, state)
        if state["centres"] is None:
            return torch.zeros_like(magnitude)
        features = describe(magnitude, known, state)  # [B, S, H, W]
        centres = torch.tensor(state["centres"], dtype=features.dtype, device=features.device)
        unchanged, changed = ((features - c[None, :, None, None]).square().sum(dim=1) for c in centres)
        return (unchanged / (unchanged + changed).clamp_min(1e-12)).where(known, 0.0)


def as_tensors(block: Any) -> tuple[Tensor, Tensor]:
    """Images [1, 2, C, h, w] and the usable pixels [1, h, w] of a block of the sample."""
    images = torch.from_numpy(block.images)[None]
    return images, usable(images, torch.from_numpy(block.valid)[None, None].expand(1, 2, -1, -1))


def difference_image(images: Tensor, known: Tensor, state: dict[str, Any]) -> Tensor:
    """Length of the change vector on matched dates, float [B, H, W]; zero where not known."""
    scaled = scale_dates(images, state)
    return (scaled[:, 1] - scaled[:, 0]).square().sum(dim=1).sqrt().where(known, 0.0)


def blocks(centred: Tensor, known: Tensor, h: int) -> Tensor:
    """Non-overlapping blocks [n, h * h] of a difference image [1, H, W] about its mean; unknown pixels count
    as average, blocks without a known pixel are left out, and the rim is filled up."""
    filled = centred.where(known, 0.0)
    rim = (0, -filled.shape[-1] % h, 0, -filled.shape[-2] % h)
    cells = F.unfold(F.pad(filled, rim)[:, None], h, stride=h)[0].T
    seen = F.unfold(F.pad(known.to(filled.dtype), rim)[:, None], h, stride=h)[0].T
    return cells[seen.sum(dim=1) > 0]


def eigenvectors(cells: np.ndarray, energy: float) -> np.ndarray:
    """The leading eigenvectors [S, h * h] of the blocks that hold `energy` of their variance. The sign is
    fixed (the sum is not negative), so that a state is the same on every machine."""
    values, vectors = np.linalg.eigh(np.cov(cells, rowvar=False, bias=True))
    values, vectors = np.clip(values[::-1], 0, None), vectors[:, ::-1]
    if values.sum() <= 0:  # every block is the same: the mean of the neighbourhood says all there is
        return np.full((1, cells.shape[1]), cells.shape[1] ** -0.5)
    kept = 1 + int(np.searchsorted(np.cumsum(values) / values.sum(), energy))
    chosen = vectors[:, :kept].T
    return chosen * np.where(chosen.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)


def describe(magnitude: Tensor, known: Tensor, state: dict[str, Any]) -> Tensor:
    """v [B, S, H, W]: the neighbourhood of each pixel in the basis of the filters; unknown pixels and those
    beyond the tile count as average."""
    filters = torch.tensor(state["filters"], dtype=magnitude.dtype, device=magnitude.device)
    side = int(filters.shape[1] ** 0.5)
    centred = (magnitude - state["mean"]).where(known, 0.0)
    return F.conv2d(centred[:, None], filters.view(-1, 1, side, side), padding=side // 2)


def two_means(features: np.ndarray, difference: np.ndarray) -> np.ndarray | None:
    """Centres [2, S] by Lloyd's iterations: first of the unchanged, then of the changed cluster, which is the
    one with the larger mean difference. They start from the two sides of Otsu's threshold; None when there is
    nothing to split."""
    cut = otsu(difference)
    if cut is None:
        return None
    changed, centres = difference > cut, np.zeros((2, features.shape[1]))
    for _ in range(ROUNDS):
        centres = np.stack([features[~changed].mean(axis=0), features[changed].mean(axis=0)])
        distance = ((features[:, None] - centres) ** 2).sum(axis=2)
        moved = distance[:, 1] < distance[:, 0]
        if moved.all() or not moved.any() or np.array_equal(moved, changed):
            break
        changed = moved
    return centres if difference[changed].mean() >= difference[~changed].mean() else centres[::-1]


@register(CARD)
def build(card: Card, *, block: int = BLOCK, energy: float = ENERGY) -> PCAKMeans:
    """The detector with blocks of `block` pixels; it has no weights."""
    return PCAKMeans(card, block, energy)
