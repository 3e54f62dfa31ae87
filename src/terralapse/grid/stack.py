"""Single-band files of one scene (`..._B02.tif`, `..._B03.tif`) as one scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from terralapse.errors import BandError
from terralapse.grid._stack import StackScene
from terralapse.grid.scene import Note
from terralapse.sensors import UNKNOWN


def open_bands(scenes: Sequence[StackScene], name: str, uri: str) -> StackScene:
    """Stacks scenes of one band each on the finest of their grids; coarser ones are replicated.

    Raises:
        BandError: their grids do not nest, or they are of different sensors or units.
    """
    finest = min(scenes, key=lambda s: abs(s.info.geobox.affine.a))
    sensors = {s.info.sensor.slug for s in scenes if s.info.sensor is not UNKNOWN}
    if len(sensors) > 1 or len({s.info.unit for s in scenes}) > 1:
        hint = "Give the bands of one scene in one folder."
        raise BandError(uri, "holds bands of different sensors or units", hint)
    order = {b.name: i for i, b in enumerate(finest.info.sensor.bands)}
    ordered = sorted(scenes, key=lambda s: order.get(s.info.bands[0].name, len(order)))
    layers, masks, coarser = [], [], []
    for s in ordered:
        factor = _factor(s, finest)
        layers.append(replace(s.layers[0], factor=factor))
        masks += [replace(m, factor=factor) for m in s.masks if hasattr(m, "factor")]
        if factor > 1:
            coarser.append(s.info.bands[0].name)
    notes = list(dict.fromkeys(n for s in ordered for n in s.info.notes))
    if coarser:
        notes.append(
            Note(
                "info",
                "replicated",
                f"Brought to the finest grid by nearest replication: {', '.join(coarser)}.",
            )
        )
    info = replace(
        finest.info,
        name=name,
        uri=uri,
        bands=tuple(s.info.bands[0] for s in ordered),
        notes=notes,
        sources=[x for s in ordered for x in s.info.sources],
        nodata=", ".join(dict.fromkeys(s.info.nodata for s in ordered)),
    )
    return StackScene(info, layers, masks)


def _factor(scene: StackScene, finest: StackScene) -> int:
    a, b = scene.info.geobox, finest.info.geobox
    factor = max(1, round(abs(a.affine.a / b.affine.a)))
    shift = max(abs(a.affine.c - b.affine.c), abs(a.affine.f - b.affine.f))
    if (
        a.crs != b.crs
        or (a.shape.y * factor, a.shape.x * factor) != tuple(b.shape)
        or shift > 0.01 * abs(b.affine.a)
    ):
        hint = "Give bands of one scene that share a grid, or resample them first."
        raise BandError(scene.info.name, f"does not lie on the grid of {finest.info.name}", hint)
    return factor
