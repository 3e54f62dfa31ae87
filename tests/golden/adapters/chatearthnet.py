"""ChatEarthNet: both procedures on the maps of the case, the sizes, the cut shares, the decoded colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from golden import fill
from golden.case import Case, Result
from terralapse.models.language import chatearthnet as c


def _label(entry: dict[str, Any]) -> np.ndarray:
    shape, recipe = tuple(entry["shape"]), entry["recipe"]
    if recipe.startswith("u = fill.image("):
        seed = int(recipe.split("fill.image(")[1].split(",")[0])
        probs = [float(p) for p in recipe.split("probs = [")[1].rstrip("]").split(",")]
        cum = np.cumsum(probs)
        cum[-1] = 1.1
        u = fill.image(seed, shape, 0.0, 1.0).astype(np.float64)
        return np.searchsorted(cum, u, side="right").astype(np.uint8)
    if recipe.startswith("all 3; rows"):
        label = np.full(shape, 3, np.uint8)
        label[:64, 200:] = 1
        label[0, :19] = 2
        label[200, 100:120] = 7
        return label
    assert recipe == "all 0", recipe
    return np.zeros(shape, np.uint8)


def run(case: Case) -> Result:
    values: dict[tuple[str | int, ...], Any] = {
        ("class_ids", "3.5"): list(c.NAMES_35),
        ("class_ids", "4v"): list(c.NAMES_4V),
        ("colors",): [list(v[:3]) for v in c.CHATEARTHNET.palette().values()],
        ("bands",): [[p, c.band(p)] for p, _ in case.spec["bands"]],
        ("truncation",): [[s, c.percent(s)] for s, _ in case.spec["truncation"]],
    }
    for number, entry in enumerate(case.spec["maps"]):
        label = _label(entry)
        values["maps", number, "pixel_counts"] = {str(v): int((label == v).sum()) for v in np.unique(label)}
        values["maps", number, "variant_3.5"] = _variant_35(label)
        table = c.class_table(label)
        values["maps", number, "variant_4v"] = {
            "class_by_region_percent": {p: {str(v): s for v, s in row.items()} for p, row in table.items()},
            "class_order": c.first_seen(label),
            "region_table": c.region_table(label),
        }
    decoding = case.spec["color_decoding"]
    rng = np.random.Generator(np.random.Philox(key=703))
    rgb = np.array(case.spec["colors"], np.uint8)[rng.integers(0, 12, (6, 7))]
    rgb[0, 0], rgb[2, 3] = (1, 2, 3), (0, 191, 0)
    assert "key=703" in decoding["recipe"]
    values["color_decoding", "labels"] = c.decode_colours(rgb).tolist()
    values["color_decoding", "downsampled_by_2_rgb"] = c.halved(rgb).tolist()
    return Result(values=values)


def _variant_35(label: np.ndarray) -> dict[str, Any]:
    parts = {}
    for region, part in c.regions(label).items():
        shares, kept = c.region_shares(part), c.kept(part)
        whole = [c.percent(shares[v]) for v in kept]
        parts[region] = {
            "kept_classes": kept,
            "percent": whole,
            "band": [c.band(p) for p in whole],
            "shares": {str(v): s for v, s in shares.items()},
        }
    return {
        "overall_order": [c.NAMES_35[v] for v in c.overall(label)],
        "regions": parts,
        "noun_index_0_text_length": len(c.text_35(label)),
    }
