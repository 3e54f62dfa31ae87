"""A system by its slug, to a file that other runtimes read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from terralapse import registry
from terralapse.grid.scene import Window
from terralapse.workflows.demo import PAIR, example

if TYPE_CHECKING:
    from terralapse.engine.export import Check
    from terralapse.tasks.mapped import MapDetector
    from terralapse.tasks.network import NetworkDetector

SIDE = 256  # pixels, about, of the tiles that a file is checked on


def export_system(
    slug: str,
    path: str | Path,
    *,
    kind: str = "auto",
    weights: Path | None = None,
    overwrite: bool = False,
) -> tuple[dict[str, Any], Check]:
    """Writes the detector `slug` to `path`, checked on tiles of the pair that comes with the library.

    Args:
        slug: a network for change.
        path: ends with `.onnx`, `.xml` or `.pt2`.
        kind: `auto`, `onnx`, `openvino`, `torch`.
        weights: in place of the system's own.
        overwrite: replace a file that is there.

    Returns:
        The card in the file, and how it differs from float32 in torch.

    Raises:
        TerralapseError: see `terralapse.engine.export.export`.
    """
    from terralapse.engine.export import export, exportable
    from terralapse.engine.exported import format_of

    format_of(Path(path), kind)  # before anything is built
    network = exportable(registry.build(slug, **({} if weights is None else {"weights": weights})))
    return export(network, Path(path), check_tiles(network), kind=kind, overwrite=overwrite)


def check_tiles(detector: NetworkDetector) -> list[np.ndarray]:
    """`real_tiles` in the form that this detector takes, see `with_map`."""
    from terralapse.tasks.mapped import MapDetector

    tiles = real_tiles(detector.bands, detector.multiple)
    return [with_map(t, detector) for t in tiles] if isinstance(detector, MapDetector) else tiles


def real_tiles(bands: tuple[str, ...], multiple: int) -> list[np.ndarray]:
    """Two batches of tiles of the Joplin pair, float32 [B, 2, C, h, w] of 0..255, of two shapes; the second
    with a hole in one date. A band that the aerial images have not stands in for its red one: the check is of
    arithmetic, for which the values only have to be those of an image."""
    from terralapse.grid.align import align
    from terralapse.grid.open import open_scene

    folder = example(PAIR)
    colours = ("red", "green", "blue")
    with open_scene(folder / "before") as before, open_scene(folder / "after") as after:
        pair = align(before, after, bands=colours, coregister=False)
        height, width = pair.shape
        side = -(-SIDE // multiple) * multiple
        row, col = height // 2, width // 2
        wide = pair.read(Window(row, col - side, side, 2 * side)).images
        tall = pair.read(Window(row - side, col, side + multiple, side)).images
    order = [colours.index(b) if b in colours else 0 for b in bands]
    tall[1, :, side // 3 : side // 2, side // 4 : side // 2] = np.nan
    pictures = [np.ascontiguousarray(image[:, order]) for image in (wide, tall)]
    return [np.stack([pictures[0], pictures[0][::-1]]), pictures[1][None]]


def with_map(tile: np.ndarray, detector: MapDetector) -> np.ndarray:
    """A tile [B, 2, C, H, W] with one more band: class ids of a map of the earlier date by fixed rules,
    brought to as many classes as the map of the detector has; the check is of arithmetic."""
    from terralapse.data.pairs import IGNORE
    from terralapse.data.rule_map import rule_map

    order = [detector.bands.index(c) if c in detector.bands else 0 for c in ("red", "green", "blue")]
    ids = np.stack([rule_map(image) for image in tile[:, 0, order]]).astype(np.float32)
    ids = np.where(ids == IGNORE, ids, ids % len(detector.map_scheme.classes))
    plane = np.broadcast_to(ids[:, None, None], (*tile.shape[:2], 1, *tile.shape[-2:]))
    return np.concatenate([tile, plane], axis=2)
