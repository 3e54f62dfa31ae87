"""The record of one change run: what the products are written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.cards import Card
from terralapse.grid.pair import Pair
from terralapse.grid.scene import Note

if TYPE_CHECKING:
    from terralapse.products.class_facts import ClassMaps


@dataclass
class ChangeRun:
    """Everything that is known when the rasters are written and the products are not.

    `folder` holds `change.tif`, `prob.tif` and `valid.tif` (see `terralapse.engine.scene`). `state` is what
    the detector's `fit` returned; `alignment` is the content of `alignment.json`; `scene` holds the engine's
    own record (tile, batch, precision, pixels, seconds). `warnings` are the notes of level `warning` that a
    reader of the report must see; `notes` all others. `classes` says which maps of classes or damage lie
    beside the rasters, if any.
    """

    run_id: str
    folder: Path
    pair: Pair
    card: Card
    state: dict[str, Any]
    threshold: float
    alignment: dict[str, Any]
    scene: dict[str, Any]
    settings: dict[str, Any]
    started: datetime
    zones: Path | None = None
    aoi: Path | None = None
    min_area_m2: float | None = None
    classes: ClassMaps | None = None
    warnings: list[Note] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
