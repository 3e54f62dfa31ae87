"""A benchmark of the layout of DisasterM3, made from pairs with maps of damage and roads.

The questions are ours; their truth follows from the maps alone, so that an answerer which reads the maps
must answer all of them rightly. Options of counts are the truth and its deviations by 20 and 40 per cent, as
in the paper.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse.data.damage_questions import STATES
from terralapse.data.disaster_sheet import ROADS, DamageSheet, building_states
from terralapse.data.disaster_words import caption_of, recovery_of
from terralapse.data.disasterm3 import SUBSETS

DEVIATIONS = (0.6, 0.8, 1.0, 1.2, 1.4)
LETTERS = "ABCDE"
_ROAD_WORDS = {"intact": "intact", "flooded": "flooded", "debris": "covered with debris"}


@dataclass(frozen=True)
class MadePair:
    """One pair: pictures uint8 [H, W, 3] (the later one [H, W] where it is radar), and maps uint8 [H, W] of
    the grades of xBD and of `ROADS`."""

    name: str
    before: np.ndarray
    after: np.ndarray
    damage: np.ndarray
    roads: np.ndarray
    sar: bool = False


def count_options(truth: int) -> tuple[int, ...]:
    """Five numbers that differ, rising, none below 0, with the truth among them: 60, 80, 100, 120 and 140 per
    cent of it, rounded; where two of these would be the same, the whole numbers around it (from 0 on where it
    is 0 or 1)."""
    found = sorted({int(np.floor(d * truth + 0.5)) for d in DEVIATIONS})
    if len(found) == len(DEVIATIONS):
        return tuple(found)
    first = max(truth - 2, 0)
    return tuple(range(first, first + len(DEVIATIONS)))


def write_made(root: Path, pairs: Iterable[MadePair], seed: int = 0) -> Path:
    """Writes `images/`, `<subset>.json` of counts, reports and referring masks, `masks/`, and `maps/`, the
    folder that the answerer `rules` reads. Returns `maps`.

    Args:
        root: a folder; files in it are replaced.
        seed: of the order of the options.
    """
    rng = np.random.default_rng(seed)
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in _MADE}
    for folder in ("images/pre", "images/post", "masks", "maps/damage", "maps/roads"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        file = f"{pair.name}.png"
        for folder, picture in (
            ("images/pre", pair.before),
            ("images/post", pair.after),
            ("maps/damage", pair.damage),
            ("maps/roads", pair.roads),
        ):
            Image.fromarray(picture).save(root / folder / file)
        base = {
            "pre_image_path": f"pre/{file}",
            "post_image_path": f"post\\{file}",
            "post_image_type": "SAR" if pair.sar else "optical",
        }
        sheet = DamageSheet.of(pair.damage, pair.roads)
        for state in STATES:
            asked = f"How many {state} buildings are there?"
            made["building_damage_counting"].append(base | _count(asked, sheet.buildings[state], rng))
        for state in ROADS[1:]:
            asked = f"How many roads are {_ROAD_WORDS[state]}?"
            made["road_damage_counting"].append(base | _count(asked, sheet.roads[state], rng))
        made["caption"].append(base | {"ground_truth": caption_of(sheet)})
        made["recovery"].append(base | {"ground_truth": recovery_of(sheet)})
        states = building_states(pair.damage)
        for value, state in enumerate(STATES, start=1):
            name = f"{pair.name}_{state}.png"
            Image.fromarray((states == value).astype(np.uint8) * 255).save(root / "masks" / name)
            said = {"prompts": f"Segment the {state} buildings.", "ground_truth": f"masks\\{name}"}
            made["referring_segmentation"].append(base | said)
    for name, records in made.items():
        (root / f"{name}.json").write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return root / "maps"


_MADE = tuple(
    s.name for s in SUBSETS.values() if s.task in ("BDC", "DRE", "caption", "advice", "segmentation")
)


def _count(asked: str, truth: int, rng: np.random.Generator) -> dict[str, Any]:
    options = rng.permutation(count_options(truth)).tolist()
    return {
        "prompts": asked,
        "options_str": " ".join(f"{k}. {n}" for k, n in zip(LETTERS, options, strict=True)),
        "options_list": options,
        "ground_truth_option": LETTERS[options.index(truth)],
    }
