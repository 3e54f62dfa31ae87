"""Questions of DVL-Bench made from maps of land cover: what its answers follow from, in sentences of fixed
form.

All questions follow from a stack of maps [T, H, W] of the five classes. Shares of a basic change are of the
whole scene; the speed of a change is that of the area of buildings, from each date to the next, relative to
the earlier one. Wrong choices are the right number less or more by 20 and 40 per cent. `solve` reads a
question and works its answer out from the maps again: what a reader of pixels that makes no mistake would
say.

Source: the construction of Xuan et al. 2025 (arXiv:2505.21076); the wordings are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse.data.dvl import LAND_COVER, MULTIPLE, SINGLE, TASKS
from terralapse.errors import SettingError

BUILDING = LAND_COVER.index("building") + 1
OFF = (-0.4, -0.2, 0.2, 0.4)  # of wrong choices
LEAST = 0.01  # a share of the scene from which on a transition is told, and a rate that is a change
CELLS = tuple(f"{r}-{c}" for r in ("top", "center", "bottom") for c in ("left", "center", "right"))
COLOURS = ((63, 125, 63), (196, 178, 140), (52, 96, 160), (190, 80, 70), (220, 150, 190))
_YEARS = r"(\d{4}) to (\d{4})"
_CLASS = f"({'|'.join(LAND_COVER)})"


@dataclass(frozen=True)
class Scene:
    """Maps uint8 [T, H, W] of 1..5, their years (ascending), and `<city>/<region>`."""

    place: str
    years: tuple[int, ...]
    maps: np.ndarray

    def __post_init__(self) -> None:
        if len(self.years) < 2 or len(self.years) != len(self.maps) or sorted(self.years) != list(self.years):
            raise SettingError(self.place, "needs a year for each of two or more maps", "Give them in order.")

    def at(self, year: int) -> np.ndarray:
        """The map of a year."""
        return self.maps[self.years.index(year)]

    def share(self, source: int, target: int, start: int, end: int) -> float:
        """The share of the scene that went from a class to another between two years."""
        return float(((self.at(start) == source) & (self.at(end) == target)).mean())

    def speed(self, start: int, end: int) -> float:
        """Growth of the area of buildings between two years, relative to the earlier one; infinite where
        there was none before."""
        before, after = (int((self.at(y) == BUILDING).sum()) for y in (start, end))
        return (after - before) / before if before else (0.0 if after == 0 else float("inf"))

    @property
    def periods(self) -> list[tuple[int, int]]:
        """From each date to the next."""
        return list(zip(self.years, self.years[1:], strict=False))


def made_scene(place: str, years: Sequence[int], rng: np.random.Generator, side: int = 48) -> Scene:
    """A scene of vegetation with a lake, a bare field and houses; in some periods houses are built on
    vegetation or bare ground, in some they are pulled down."""
    land = np.ones((side, side), np.uint8)
    land[: side // 3, side // 2 :] = 2
    land[2 * side // 3 :, : side // 4] = 3
    land[side // 3 : side // 3 + side // 4, 1 : side // 4] = BUILDING
    land[-side // 5 :, -side // 5 :] = 5
    maps = [land]
    for _ in years[1:]:
        land = maps[-1].copy()
        kind = rng.choice(3, p=(0.25, 0.55, 0.2))
        if kind:
            size = side // int(rng.integers(5, 8))
            row, column = (int(v) for v in rng.integers(0, side - size, 2))
            block = land[row : row + size, column : column + size]
            if kind == 1:
                block[np.isin(block, (1, 2))] = BUILDING
            else:
                block[block == BUILDING] = 2
        maps.append(land)
    return Scene(place, tuple(years), np.stack(maps))


# --- questions -------------------------------------------------------------------------------------------
def ask_basic(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """BCA-QA: the share of each transition of the whole period that is told, and which transitions there
    were."""
    start, end = scene.years[0], scene.years[-1]
    told = transitions(scene, start, end)
    records = []
    for source, target, share in told:
        a, b = LAND_COVER[source - 1], LAND_COVER[target - 1]
        ask = f"What share of the area changed from {a} to {b} from {start} to {end}?"
        records.append(_single(scene, ask, share, rng))
    pairs = [(a, b) for a in range(1, 6) for b in range(1, 6) if a != b]
    there = [(a, b) for a, b, _ in told]
    never = [p for p in pairs if scene.share(*p, start, end) == 0]
    rng.shuffle(never)
    chosen = sorted([*there[:3], *map(tuple, never[: 5 - min(len(there), 3)])], key=lambda _: rng.random())
    options = [f"{LAND_COVER[a - 1]} to {LAND_COVER[b - 1]}" for a, b in chosen]
    if there:
        right = [p in there for p in chosen]
        ask = f"Which of these transitions took place from {start} to {end}?"
        records.append(_record(scene, ask, options, right, MULTIPLE))
    return records


def ask_speed(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """CSE-QA: by how much the area of buildings grew or shrank in a period, and in which periods it grew."""
    records = []
    for start, end in scene.periods:
        rate = scene.speed(start, end)
        if abs(rate) < LEAST or not np.isfinite(rate):
            continue
        way = "grow" if rate > 0 else "shrink"
        ask = f"By how much did the area of buildings {way} from {start} to {end}?"
        records.append(_single(scene, ask, abs(rate), rng))
    right = [scene.speed(*p) >= LEAST for p in scene.periods]
    if any(right):
        options = [f"{a} to {b}" for a, b in scene.periods]
        ask = "In which periods did the area of buildings grow?"
        records.append(_record(scene, ask, options, right, MULTIPLE))
    return records


def _single(scene: Scene, ask: str, value: float, rng: np.random.Generator) -> dict[str, Any]:
    values = [value, *(value * (1 + off) for off in OFF)]
    order = rng.permutation(len(values))
    options = [f"{100 * values[k]:.2f}%" for k in order]
    return _record(scene, ask, options, [k == 0 for k in order], SINGLE)


def _record(
    scene: Scene, ask: str, options: Sequence[str], right: Sequence[bool], choice: str
) -> dict[str, Any]:
    letters = [chr(ord("A") + k) for k in range(len(options))]
    return {
        "task_type": choice,
        "prompts": ask,
        "options_str": "\n".join(f"{letter}. {o}" for letter, o in zip(letters, options, strict=True)),
        **_shown(scene),
        "ground_truth_option": ", ".join(letter for letter, r in zip(letters, right, strict=True) if r),
    }


def _shown(scene: Scene) -> dict[str, Any]:
    return {
        "image_list": [f"images/{scene.place}/{y}.tif" for y in scene.years],
        "time_stamps": [f"{y}-07-01" for y in scene.years],
    }


# --- texts -----------------------------------------------------------------------------------------------
def transitions(scene: Scene, start: int, end: int) -> list[tuple[int, int, float]]:
    """Source, target and share of the changes of a period that are told, the largest first."""
    found = [(a, b, scene.share(a, b, start, end)) for a in range(1, 6) for b in range(1, 6) if a != b]
    return sorted((f for f in found if f[2] >= LEAST), key=lambda f: (-f[2], f))


def report_basic(scene: Scene) -> str:
    """BCA-Report: the period, the transitions, and the share of the scene of each."""
    start, end = scene.years[0], scene.years[-1]
    told = [
        f"{100 * share:.1f}% of the area changed from {LAND_COVER[a - 1]} to {LAND_COVER[b - 1]}"
        for a, b, share in transitions(scene, start, end)
    ]
    return f"Over the {start}-{end} period, {', '.join(told) if told else 'no land cover changed'}."


def report_speed(scene: Scene) -> str:
    """CSE-Report: the growth of the area of buildings in each period, see `parse_speed`."""
    told = []
    for start, end in scene.periods:
        rate = scene.speed(start, end)
        if abs(rate) < LEAST or not np.isfinite(rate):
            told.append(f"no significant change from {start} to {end}")
        else:
            way = "expansion" if rate > 0 else "shrinkage"
            told.append(f"{abs(100 * rate):.2f}% {way} from {start} to {end}")
    return f"The changes were as follows: {', '.join(told)}."


def describe(scene: Scene, box: tuple[int, int, int, int] | None = None) -> str:
    """DTC, or with a box (row, column, height, width) RCC: a sentence a period, with the cell of the image
    (or of the box) in which most of each change lies."""
    r, c, h, w = box or (0, 0, *scene.maps.shape[1:])
    inside = Scene(scene.place, scene.years, scene.maps[:, r : r + h, c : c + w])
    start, end = scene.years[0], scene.years[-1]
    first = transitions(inside, start, end)
    trend = (
        f"mainly from {LAND_COVER[first[0][0] - 1]} to {LAND_COVER[first[0][1] - 1]}"
        if first
        else "very little"
    )
    said = [f"From {start} to {end} this place changed {trend}."]
    for a, b in inside.periods:
        told = [
            f"{LAND_COVER[s - 1]} became {LAND_COVER[t - 1]} in the {_cell(inside, s, t, a, b)}"
            for s, t, _ in transitions(inside, a, b)
        ]
        said.append(f"{a}-{b}: {' and '.join(told) if told else 'nothing changed'}.")
    return " ".join(said)


def _cell(scene: Scene, source: int, target: int, start: int, end: int) -> str:
    changed = (scene.at(start) == source) & (scene.at(end) == target)
    rows, columns = (np.minimum(np.arange(n) * 3 // n, 2) for n in changed.shape)
    cells = rows[:, None] * 3 + columns[None]
    return CELLS[int(np.bincount(cells[changed], minlength=9).argmax())]


# --- a reader of pixels that makes no mistake ------------------------------------------------------------
def solve(prompt: str, options: str, scene: Scene) -> str:
    """The letters that answer a question of `ask_basic` or `ask_speed`, from the maps.

    Raises:
        SettingError: a question of another form.
    """
    listed = [tuple(line.split(". ", 1)) for line in options.splitlines()]
    if match := re.search(rf"from {_CLASS} to {_CLASS} from {_YEARS}", prompt):
        value = scene.share(
            *(LAND_COVER.index(n) + 1 for n in match.groups()[:2]), *map(int, match.groups()[2:])
        )
    elif match := re.search(rf"buildings (?:grow|shrink) from {_YEARS}", prompt):
        value = abs(scene.speed(int(match[1]), int(match[2])))
    elif match := re.search(rf"transitions took place from {_YEARS}", prompt):
        start, end = int(match[1]), int(match[2])
        there = {f"{LAND_COVER[a - 1]} to {LAND_COVER[b - 1]}" for a, b, _ in transitions(scene, start, end)}
        return ", ".join(letter for letter, text in listed if text in there)
    elif "buildings grow" in prompt:
        grew = {f"{a} to {b}" for a, b in scene.periods if scene.speed(a, b) >= LEAST}
        return ", ".join(letter for letter, text in listed if text in grew)
    else:
        raise SettingError(prompt, "is no question that is made here", "Ask about maps of your own.")
    return min(listed, key=lambda o: abs(float(o[1].rstrip("%")) - 100 * value))[0]


# --- a tree as released ----------------------------------------------------------------------------------
def write_made(root: Path | str, scenes: Sequence[Scene], split: str = "test", seed: int = 0) -> None:
    """Writes scenes and all their questions in the layout of the release, images in the colours of the
    classes.

    EA asks what covers most of the last image; RCD for the largest transition between the first and the
    last date."""
    folder, rng = Path(root) / split, np.random.default_rng(seed)
    made: dict[str, list[dict[str, Any]]] = {code: [] for code in TASKS}
    for scene in scenes:
        for year, land in zip(scene.years, scene.maps, strict=True):
            _save(folder / f"images/{scene.place}/{year}.tif", np.array(COLOURS, np.uint8)[land - 1])
        shown = _shown(scene)
        made["BCA-QA"] += ask_basic(scene, rng)
        made["CSE-QA"] += ask_speed(scene, rng)
        made["BCA-Report"].append({**shown, "ground_truth": report_basic(scene)})
        made["CSE-Report"].append({**shown, "ground_truth": report_speed(scene)})
        made["DTC"].append({**shown, "ground_truth": describe(scene)})
        made["EA"].append(_environment(scene))
        made["RCC"].append(_boxed(folder, scene))
        made["RCD"] += _referring(folder, scene)
    for code, records in made.items():
        path = folder / f"{TASKS[code].file}.json"
        path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _environment(scene: Scene) -> dict[str, Any]:
    counts = np.bincount(scene.maps[-1].ravel(), minlength=6)[1:]
    record = _record(
        scene,
        "What covers most of this place?",
        LAND_COVER,
        [k == int(counts.argmax()) for k in range(5)],
        SINGLE,
    )
    shown = {"image_path": record.pop("image_list")[-1], "time_stamps": record.pop("time_stamps")[-1:]}
    return {**record, **shown}


def _boxed(folder: Path, scene: Scene) -> dict[str, Any]:
    """RCC: the box of all that changed, drawn in red into copies of the images."""
    changed = np.argwhere((scene.maps != scene.maps[0]).any(axis=0))
    height, width = scene.maps.shape[1:]
    low = changed.min(axis=0) if len(changed) else np.zeros(2, int)
    high = changed.max(axis=0) + 1 if len(changed) else np.array([height, width])
    (r, c), (h, w) = (int(v) for v in low), (int(v) for v in high - low)
    files = []
    for year, land in zip(scene.years, scene.maps, strict=True):
        pixels = np.array(COLOURS, np.uint8)[land - 1]
        for line in (
            np.s_[r, c : c + w],
            np.s_[r + h - 1, c : c + w],
            np.s_[r : r + h, c],
            np.s_[r : r + h, c + w - 1],
        ):
            pixels[line] = (255, 0, 0)
        files.append(f"regional_caption/{scene.place}/{year}.tif")
        _save(folder / files[-1], pixels)
    return {**_shown(scene), "image_list": files, "ground_truth": describe(scene, (r, c, h, w))}


def _referring(folder: Path, scene: Scene) -> list[dict[str, Any]]:
    start, end = scene.years[0], scene.years[-1]
    records = []
    for source, target, _ in transitions(scene, start, end)[:1]:
        a, b = LAND_COVER[source - 1], LAND_COVER[target - 1]
        name = f"cd_refer_seg_masks/{scene.place}/{start}_{end}_{a}2{b}.png"
        changed = (scene.at(start) == source) & (scene.at(end) == target)
        _save(folder / name, changed.astype(np.uint8) * 255)
        ask = f"Segment where {a} became {b}"
        years = [str(start), str(end)]
        records.append({**_shown(scene), "prompts": ask, "cd_years": years, "ground_truth": name})
    return records
