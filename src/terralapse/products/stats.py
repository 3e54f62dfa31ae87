"""The table of areas by zone or by square of a regular grid."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd

from terralapse.labels import VALIDITY, Reason
from terralapse.products.tally import CHANGED, EXPECTED, Tally
from terralapse.products.zones import Zones


def statistics(tally: Tally, zones: Zones, polygons: gpd.GeoDataFrame, unit: str = "m2") -> pd.DataFrame:
    """One row a zone, in the order of the zones.

    Args:
        tally: the sums of the run.
        zones: what they were counted by; pixels on a border count by the share that lies inside.
        polygons: with `row`, `col`, `height`, `width` (pixels); a polygon belongs to the zone that holds
            the middle of its box.
        unit: `m2`, or `px` without a CRS; it ends the names of the columns.

    Returns:
        `kind`, `id`, `name`, `observed`, `changed`, `changed_percent` (of the observed; empty where nothing
        was observed), `expected_changed` (sum of probability x area: an estimate by the model, not by a
        sample), `mean_probability`, `polygons`, `masked`, and one column for each reason of masking.
    """
    sums = tally.zones
    observed, changed, expected = sums[:, Reason.VALID], sums[:, CHANGED], sums[:, EXPECTED]
    with np.errstate(invalid="ignore", divide="ignore"):
        percent = np.where(observed > 0, 100 * changed / observed, np.nan)
        mean = np.where(observed > 0, expected / observed, np.nan)
    middle_col = polygons["col"].to_numpy() + polygons["width"].to_numpy() / 2
    middle_row = polygons["row"].to_numpy() + polygons["height"].to_numpy() / 2
    zone = zones.locate(middle_col, middle_row)
    table = {
        "kind": zones.kind,
        "id": zones.ids,
        "name": zones.names,
        f"observed_{unit}": observed.round(2),
        f"changed_{unit}": changed.round(2),
        "changed_percent": percent.round(4),
        f"expected_changed_{unit}": expected.round(2),
        "mean_probability": mean.round(4),
        "polygons": np.bincount(zone[zone >= 0], minlength=len(zones)),
        f"masked_{unit}": sums[:, Reason.OUTSIDE_AOI + 1 : len(Reason)].sum(axis=1).round(2),
    }
    for reason in Reason:
        if reason is not Reason.VALID:
            table[f"{VALIDITY.by_value(reason).name}_{unit}"] = sums[:, reason].round(2)
    return pd.DataFrame(table)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """UTF-8, comma, point, one line a row; missing values are empty."""
    table.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")
