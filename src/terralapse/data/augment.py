"""What two visits to one place differ in when nothing happened there: geometry and radiometry.

Geometry moves both dates and the label together, plus a little misregistration of one date. Radiometry
draws everything independently for each date: light, colour cast, gamma, haze, season, sharpness, noise,
compression. In numpy and torch only.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from terralapse.data.change_pairs import IGNORE, Pair, Rng


@dataclass(frozen=True)
class Geometry:
    """Ranges of the geometric augmentation.

    `zoom` is the range of magnification (above one: finer pixels); `shift` the largest misregistration in
    pixels, `turn` that in degrees, both drawn for half of the samples. A share `native` of the samples keeps
    the pixels as they are, only flipped and turned by right angles: interpolation blurs, and what the network
    will see is not blurred. Of the others a share `free_turn` is rotated by any angle.
    """

    size: int
    zoom: tuple[float, float] = (0.75, 1.5)
    shift: float = 2.0
    turn: float = 1.0
    native: float = 0.5
    free_turn: float = 0.5


@dataclass(frozen=True)
class Radiometry:
    """Strength of the radiometric augmentation on the 0..255 scale; 1.0 is what RGB was trained with."""

    strength: float = 1.0
    jpeg: float = 0.3
    blur: float = 0.5
    swap: float = 0.5


def warp(pair: Pair, centre: tuple[float, float], geometry: Geometry, rng: Rng) -> tuple[Tensor, Tensor]:
    """A square crop around `centre` (row, column, from the corner of the pair), zoomed, turned and flipped.

    Returns float32 [2, C, size, size] and the label, uint8 [size, size]. Beyond the edge of the pair the
    image is mirrored and the label is IGNORE.
    """
    size = geometry.size
    height, width = pair.label.shape
    zoom, angle = 1.0, math.pi / 2 * int(rng.integers(4))
    if rng.random() >= geometry.native:
        zoom = math.exp(rng.uniform(math.log(geometry.zoom[0]), math.log(geometry.zoom[1])))
        if rng.random() < geometry.free_turn:
            angle = rng.uniform(0, 2 * math.pi)
    flip = 1.0 if rng.random() < 0.5 else -1.0
    linear = _rotation(angle) @ np.diag([flip, 1.0]) / zoom
    # Whole pixels from the corner: an even crop then falls on the pixels themselves.
    offset = np.round([centre[1], centre[0]]) - 0.5
    grids = [_grid(size, linear, offset, height, width)] * 2
    if rng.random() < 0.5:
        turn = math.radians(rng.uniform(-geometry.turn, geometry.turn))
        moved_offset = offset + rng.uniform(-geometry.shift, geometry.shift, 2) / math.sqrt(2)
        grids[1] = _grid(size, linear @ _rotation(turn), moved_offset, height, width)
    images = torch.from_numpy(pair.images).float()
    moved = F.grid_sample(
        images, torch.stack(grids), mode="bilinear", padding_mode="reflection", align_corners=False
    )
    label = torch.from_numpy(pair.label)[None, None].float()
    inside = F.grid_sample(
        label - IGNORE, grids[0][None], mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, (inside[0, 0] + IGNORE).to(torch.uint8)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _grid(size: int, linear: np.ndarray, offset: np.ndarray, height: int, width: int) -> Tensor:
    """Sampling positions [size, size, 2] in the -1..1 coordinates of `grid_sample`."""
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    position = np.stack([x, y], axis=-1) @ linear.T + offset
    scaled = (2 * position + 1) / np.array([width, height]) - 1
    return torch.from_numpy(scaled.astype(np.float32))


def recolour(images: Tensor, radiometry: Radiometry, rng: Rng) -> Tensor:
    """Draws light, colour and sharpness anew for each date: [2, C, H, W] on the 0..255 scale, any bands.

    The result is clipped to 0..255. Order of dates is swapped with probability `swap`.
    """
    dates = [_one_date(date, radiometry, rng) for date in images]
    if rng.random() < radiometry.swap:
        dates.reverse()
    return torch.stack(dates).clamp_(0, 255)


def _one_date(image: Tensor, radiometry: Radiometry, rng: Rng) -> Tensor:
    k, channels = radiometry.strength, image.shape[0]
    if rng.random() < 0.5:
        image = _season(image, k, rng)
    gamma = math.exp(rng.normal(0, 0.22 * k))
    image = 255 * (image.clamp(0, 255) / 255) ** gamma
    mixing = np.eye(channels) + rng.normal(0, 0.04 * k, (channels, channels))
    grey = rng.uniform(0, 0.35 * k) if rng.random() < 0.4 else rng.uniform(-0.3 * k, 0)
    mixing = (1 - grey) * mixing + grey / channels
    gain = np.exp(rng.normal(0, 0.18 * k) + rng.normal(0, 0.10 * k, channels))
    offset = rng.normal(0, 10 * k) + rng.normal(0, 6 * k, channels)
    matrix = torch.from_numpy((gain[:, None] * mixing).astype(np.float32))
    image = (
        torch.einsum("oc,chw->ohw", matrix, image)
        + torch.from_numpy(offset.astype(np.float32))[:, None, None]
    )
    if rng.random() < 0.3:
        image = image + 14 * k * _smooth(image.shape, rng, per_channel=True)
    if rng.random() < radiometry.blur:
        image = _unsharp_or_blur(image, rng)
    if rng.random() < 0.5:
        image = image + float(rng.uniform(0, 6 * k)) * torch.randn(image.shape, generator=_torch(rng))
    if channels == 3 and rng.random() < radiometry.jpeg:
        image = _jpeg(image, int(rng.integers(35, 95)))
    return image


def _season(image: Tensor, k: float, rng: Rng) -> Tensor:
    """Shifts the colour of what is green (or dark), as leaves and crops do between seasons."""
    green = image[1] * 2 - image[0] - image[2] if image.shape[0] >= 3 else image[0] - image.mean()
    sign = 1.0 if rng.random() < 0.7 else -1.0
    weight = torch.sigmoid(sign * (green - float(rng.uniform(0, 25))) / 12)
    if rng.random() < 0.5:
        weight = weight * (0.5 + 0.5 * _smooth(image.shape, rng, per_channel=False)).clamp(0, 1)
    shift = torch.from_numpy(rng.normal(0, 24 * k, image.shape[0]).astype(np.float32))
    scale = float(math.exp(rng.normal(0, 0.2 * k)))
    return image * (1 + weight * (scale - 1)) + weight * shift[:, None, None]


def _smooth(shape: torch.Size, rng: Rng, per_channel: bool) -> Tensor:
    """A smooth random field of about unit variance, [C or 1, H, W]."""
    cells = int(rng.integers(2, 7))
    coarse = torch.randn((1, shape[0] if per_channel else 1, cells, cells), generator=_torch(rng))
    return F.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=False)[0]


def _unsharp_or_blur(image: Tensor, rng: Rng) -> Tensor:
    """Blurs, or sharpens, with a Gaussian of a third of a pixel to 1.3 pixels."""
    sigma = float(rng.uniform(0.35, 1.3))
    axis = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (axis / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(image[:, None], (3, 3, 3, 3), mode="reflect")
    blurred = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, 7)), kernel.view(1, 1, 7, 1))[:, 0]
    return blurred if rng.random() < 0.7 else image + float(rng.uniform(0.2, 0.8)) * (image - blurred)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """The image after JPEG compression."""
    buffer = io.BytesIO()
    pixels = image.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()).permute(2, 0, 1).float()


def _torch(rng: Rng) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))
