"""Pairs for learning change when labelled pairs are few: real pairs, and pairs that are made.

Three ways of making a pair are here, each from real images only:

* two unrelated images with object masks; what changed is the exclusive or of the masks (single-temporal
  supervision, Zheng et al. 2021, "Change is Everywhere", arXiv:2108.07002);
* one image or one unchanged pair into which objects of another image are pasted, or from which objects
  are taken away by covering them with ground of the same image;
* one image in which objects and what surrounds them are broken into rubble.

All of them work on uint8 arrays [2, C, H, W] (before, after) with a label uint8 [H, W]: 0, 1, or `IGNORE`.
The augmentation of both dates is in `terralapse.data.augment`.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from terralapse.data.buildings import BUILDING_SETS
from terralapse.errors import FileMissingError

IGNORE = 255
Rng = np.random.Generator


@dataclass(frozen=True)
class Pair:
    """Two dates and what changed: `images` uint8 [2, C, H, W]; `label` uint8 [H, W] of 0, 1, IGNORE;
    `gsd` in metres."""

    images: np.ndarray
    label: np.ndarray
    gsd: float


@dataclass(frozen=True)
class Masked:
    """One image with the mask of its objects: `image` uint8 [C, H, W]; `objects` bool [H, W]."""

    image: np.ndarray
    objects: np.ndarray
    gsd: float


# --- readers ---------------------------------------------------------------------------------------
def read_building_masks(root: Path | str, sets: dict[str, float] | None = None) -> list[Masked]:
    """RGB images with building masks: `<root>/<set>/images/*.jpg` and `<root>/<set>/masks/*.png`."""
    found = []
    for name, gsd in (sets or BUILDING_SETS).items():
        folder = Path(root) / name
        if not (folder / "images").is_dir():
            raise FileMissingError(folder, "holds no folder `images`", "Give the root of the building sets.")
        for path in sorted((folder / "images").glob("*.jpg")):
            mask = np.asarray(Image.open(folder / "masks" / f"{path.stem}.png")) > 0
            found.append(Masked(_chw(Image.open(path)), mask, gsd))
    return found


def read_images(folder: Path | str, gsd: float) -> list[Masked]:
    """RGB images without any mask (`objects` is empty): ground for pasted objects."""
    found = []
    for path in sorted(Path(folder).glob("*.jpg")):
        image = _chw(Image.open(path))
        found.append(Masked(image, np.zeros(image.shape[1:], bool), gsd))
    if not found:
        raise FileMissingError(folder, "holds no .jpg", "Give the folder of the images.")
    return found


def read_revisits(archive: Path | str, gsd: float = 0.6) -> list[list[np.ndarray]]:
    """Repeated images of the same places, from a zip of `images/<city>_<year>_<place>.tif`.

    Returns for each place its images in order of year, uint8 [3, H, W] (red, green, blue). These are
    registered and hardly changed: pairs of them teach what season, sun and camera do.
    """
    path = Path(archive)
    if not path.exists():
        raise FileMissingError(path, "is not there", "Give the zip of repeated images.")
    places: dict[tuple[str, str], list[tuple[str, np.ndarray]]] = {}
    with zipfile.ZipFile(path) as archive_file:
        for member in sorted(archive_file.namelist()):
            if not member.endswith(".tif"):
                continue
            city, year, place = Path(member).stem.rsplit("_", 2)
            image = Image.open(io.BytesIO(archive_file.read(member)))
            pixels = np.asarray(image)[..., :3].transpose(2, 0, 1)
            places.setdefault((city, place), []).append((year, np.ascontiguousarray(pixels)))
    return [[image for _, image in sorted(years, key=lambda y: y[0])] for years in places.values()]


def _chw(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))


# --- making pairs ----------------------------------------------------------------------------------
def unrelated(first: Masked, second: Masked) -> Pair:
    """Two images of different places as if they were dates; change is where exactly one has an object."""
    label = (first.objects != second.objects).astype(np.uint8)
    return Pair(np.stack([first.image, second.image]), label, first.gsd)


def objects_of(mask: np.ndarray, rng: Rng, share: float, min_pixels: int = 12) -> np.ndarray:
    """A random share of the connected objects of a mask, those that are not too small: bool [H, W]."""
    parts = np.zeros(mask.shape, np.int32)
    count = int(ndimage.label(mask, output=parts))  # pyright: ignore[reportArgumentType]
    big = np.bincount(parts.ravel(), minlength=count + 1) >= min_pixels
    keep = big & (rng.random(count + 1) < share)
    keep[0] = False
    return keep[parts]


def _soft(mask: np.ndarray, sigma: float) -> np.ndarray:
    """An alpha in 0..1, one inside the mask, falling off outside of it over about 2 sigma."""
    grown = ndimage.binary_dilation(mask, iterations=max(1, round(sigma)))
    return np.maximum(ndimage.gaussian_filter(grown.astype(np.float32), sigma), mask.astype(np.float32))


def _blend(base: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.clip(base + alpha * (over.astype(np.float32) - base) + 0.5, 0, 255).astype(np.uint8)


def paste(pair: Pair, donor: np.ndarray, mask: np.ndarray, rng: Rng, date: int) -> Pair:
    """Pastes the pixels of `donor` [C, H, W] under `mask` into one date; they become change.

    The edge is feathered by about a pixel. Where the label was IGNORE it stays so.
    """
    alpha = _soft(mask, float(rng.uniform(0.5, 1.2)))
    images = pair.images.copy()
    images[date] = _blend(images[date], donor, alpha)
    label = np.where(mask & (pair.label != IGNORE), 1, pair.label).astype(np.uint8)
    return Pair(images, label, pair.gsd)


def _ground(image: np.ndarray, avoid: np.ndarray, rng: Rng) -> np.ndarray:
    """The image turned, flipped and shifted so that what comes to lie on `avoid` is mostly something else."""
    best, best_overlap = image, np.inf
    for _ in range(6):
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        shift = (int(rng.integers(avoid.shape[0])), int(rng.integers(avoid.shape[1])))
        moved = [_move(x, turns, flip, shift) for x in (image, avoid)]
        overlap = float((moved[1] & avoid).sum())
        if overlap < best_overlap:
            best, best_overlap = moved[0], overlap
    return best


def _move(x: np.ndarray, turns: int, flip: bool, shift: tuple[int, int]) -> np.ndarray:
    moved = np.rot90(x, turns, axes=(-2, -1))
    return np.roll(moved[..., ::-1] if flip else moved, shift, axis=(-2, -1))


def remove(image: Masked, other: np.ndarray, rng: Rng, share: float = 0.4) -> Pair:
    """Covers a share of the objects with ground of the same place: the before date of a construction.

    `other` [C, H, W] is the same place at another time, or the same image again; square images only.
    """
    gone = objects_of(image.objects, rng, share)
    covered = _blend(other, _ground(other, image.objects, rng), _soft(gone, float(rng.uniform(1.0, 2.5))))
    return Pair(np.stack([covered, image.image]), gone.astype(np.uint8), image.gsd)


def blobs(shape: tuple[int, int], rng: Rng, share: float, size: float) -> np.ndarray:
    """Smooth random blobs of about `size` pixels that cover about `share` of the image: bool [H, W]."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), size, mode="wrap")
    return field > np.quantile(field, 1.0 - share)


def rubble(image: np.ndarray, sources: np.ndarray, rng: Rng) -> np.ndarray:
    """A field of debris made of an image's own colours: uint8 [C, H, W].

    Colours are drawn from the pixels under `sources` (roofs, walls) and from everywhere, piece by piece of
    a few pixels, at two sizes; short bright and dark sticks lie on top. Fine-grained and without order,
    which is what tells debris from roofs, streets and lawns.
    """
    channels, height, width = image.shape
    flat = image.reshape(channels, -1)
    roofs = np.flatnonzero(sources)
    everywhere = rng.integers(flat.shape[1], size=4096)
    palette = flat[:, np.concatenate([everywhere, rng.choice(roofs, 4096)]) if roofs.size else everywhere]
    palette = palette.astype(np.float32)
    ground = palette.mean(axis=1)[:, None, None] * rng.uniform(0.75, 1.1)
    layers = []
    for grain in (float(rng.uniform(0.7, 1.4)), float(rng.uniform(1.5, 3.8))):
        rows, cols = round(height / grain) + 1, round(width / grain) + 1
        pieces = torch.from_numpy(palette[:, rng.integers(palette.shape[1], size=(rows, cols))])
        layers.append(F.interpolate(pieces[None], (height, width), mode="bilinear", align_corners=False)[0])
    field = torch.stack(layers).mean(dim=0).numpy()
    field = ground + float(rng.uniform(0.8, 1.5)) * (field - field.mean(axis=(1, 2), keepdims=True))
    sticks = rng.random((height, width)) > 0.985
    angle = [np.ones((1, 5), bool), np.ones((5, 1), bool), np.eye(5, dtype=bool), np.eye(5, dtype=bool)[::-1]]
    lying = ndimage.binary_dilation(sticks, angle[int(rng.integers(4))])
    field += np.where(lying, rng.normal(25, 25, (height, width)), 0).astype(np.float32)
    return np.clip(field, 0, 255).astype(np.uint8)


def destroy(image: Masked, other: np.ndarray, rng: Rng) -> Pair:
    """Breaks objects and what surrounds them into rubble, in the after date.

    `other` [C, H, W] is the same place at another time, or the same image again. Objects that are swept
    over change; so does the ground that the debris covers. A part of the swept objects is left standing
    and becomes IGNORE, since damage has no sharp edge.
    """
    height, width = image.objects.shape
    path = blobs((height, width), rng, float(rng.uniform(0.15, 0.7)), float(rng.uniform(15, 45)))
    holes = blobs((height, width), rng, float(rng.uniform(0.3, 0.7)), float(rng.uniform(3, 8)))
    near = ndimage.binary_dilation(image.objects, iterations=int(rng.integers(2, 12)))
    debris = path & (near | holes) if image.objects.any() else path & holes
    swept = path & image.objects
    debris |= swept
    texture = rubble(other, image.objects, rng)
    opacity = float(rng.uniform(0.75, 1.0))
    after = _blend(other, texture, opacity * _soft(debris, 0.7))
    inner = np.asarray(ndimage.binary_erosion(debris), dtype=bool)
    edge = np.asarray(ndimage.binary_dilation(debris, iterations=2)) & ~inner
    label = np.where(edge & ~swept, IGNORE, debris.astype(np.uint8)).astype(np.uint8)
    return Pair(np.stack([image.image, after]), label, image.gsd)
