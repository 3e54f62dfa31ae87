"""Everything that the products are made from, worked out once from a run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import geopandas as gpd
import numpy as np
import pandas as pd

from terralapse.grid.areas import PixelArea
from terralapse.grid.scene import SceneInfo, Source
from terralapse.grid.sources import hash_sources
from terralapse.grid.vectorise import vectorise
from terralapse.products.alignment import AlignmentView, view
from terralapse.products.imagery import Pictures, picture
from terralapse.products.polygons import area_unit, describe, minimum_mapping_unit, settings_for
from terralapse.products.run import ChangeRun
from terralapse.products.stats import statistics
from terralapse.products.tally import PROB_STEPS, Tally, tally
from terralapse.products.zones import Zones, load_zones, regular_cells

_PREVIEW = 2048  # pixels on the longer side
_CALIBRATION = ("ece", "expected calibration error")  # names of a card's figure
_NEAR = 0.15  # a probability this close to the threshold is called uncertain


@dataclass
class Findings:
    """`unit` is `m2` or `px` (no CRS); `pixel_m` the side of a pixel in metres (1 without a CRS);
    `polygons` as `polygons.describe` returns them; `stats` as `stats.statistics` does; `sources` are the
    files behind the two dates with their hashes."""

    run: ChangeRun
    tally: Tally
    zones: Zones
    polygons: gpd.GeoDataFrame
    stats: pd.DataFrame
    alignment: AlignmentView
    pictures: Pictures
    unit: str
    pixel_m: float
    mmu: float
    sources: tuple[list[Source], list[Source]]

    @property
    def areas(self) -> np.ndarray:
        """Area of each polygon, largest first as they are numbered."""
        return self.polygons[f"area_{self.unit}"].to_numpy()

    @property
    def length_unit(self) -> str:
        """`m`, or `px` without a CRS."""
        return "px" if self.unit == "px" else "m"

    @property
    def calibration(self) -> float | None:
        """The expected calibration error that the card states, or None: then probabilities are scores."""
        for figure in self.run.card.figures:
            if figure.metric.lower() in _CALIBRATION:
                return figure.value
        return None

    @property
    def uncertain_share(self) -> float:
        """Share of the compared area whose probability is within 0.15 of the threshold."""
        p = np.arange(PROB_STEPS + 1) / PROB_STEPS
        near = np.abs(p - self.run.threshold) < _NEAR
        observed = self.tally.histogram.sum()
        return float(self.tally.histogram[near].sum() / observed) if observed else float("nan")


def find(
    run: ChangeRun, progress: Callable[[float], None] | None = None, pictures: Pictures | None = None
) -> Findings:
    """Reads the rasters of the run twice (sums; polygons), and the files behind it once (hashes).

    Args:
        run: its folder holds the rasters.
        progress: called with the share done.
        pictures: of both dates, as `pictures_of` makes them; made here where None.

    Raises:
        TerralapseError: of `zones.load_zones`, when the file of the zones cannot be used.
    """
    tell = progress or (lambda _share: None)
    geobox = run.pair.geobox
    pixel_m = float(np.sqrt(PixelArea(geobox).mean))
    zones = load_zones(run.zones, geobox) if run.zones else regular_cells(geobox, pixel_m)
    pictures = pictures or pictures_of(run)
    tell(0.1)
    with ThreadPoolExecutor(1, thread_name_prefix="tally") as pool:  # numpy leaves the second core free
        counted = pool.submit(tally, run.folder, geobox, pictures.geobox, zones)
        hashed = [pool.submit(sources_of, info) for info in (run.pair.before, run.pair.after)]
        raw = vectorise(
            run.folder / "change.tif",
            run.folder / "prob.tif",
            geobox,
            settings_for(run),
            lambda s: tell(0.1 + 0.9 * s),
        )
        sums = counted.result()
        before, after = (future.result() for future in hashed)
    polygons = describe(raw, run)
    unit = area_unit(geobox)
    return Findings(
        run=run,
        tally=sums,
        zones=zones,
        polygons=polygons,
        stats=statistics(sums, zones, polygons, unit),
        alignment=view(run.alignment, run.pair.shape),
        pictures=pictures,
        unit=unit,
        pixel_m=pixel_m,
        mmu=minimum_mapping_unit(run),
        sources=(before, after),
    )


def pictures_of(run: ChangeRun) -> Pictures:
    """Both dates as the report and the map show them."""
    return picture(run.pair, _PREVIEW)


def sources_of(info: SceneInfo) -> list[Source]:
    """The files behind a scene with size and hash; those of a scene in memory are as they were given."""
    return info.sources if info.uri.startswith("memory:") else hash_sources(info)
