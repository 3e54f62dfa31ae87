"""Labels of change and of buildings that no person made, on disk in the layout that SemiCD-VL came with.

    <folder>/gen_cd_label/<set>/<name>.png        change
    <folder>/gen_seg_label/<set>/A/<name>.png     buildings of the first date
    <folder>/gen_seg_label/<set>/B/<name>.png     buildings of the second

All hold 0, 1 and 255 (unknown). The authors offer such folders for LEVIR-CD and WHU-CD on a file-sharing
page; what is written here has the same form and can be read in their place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from terralapse.data.change_events import building_map, instance_events, mixed_events
from terralapse.data.labellers import Labeller, both_dates
from terralapse.data.pairs import IGNORE, LabelledPair
from terralapse.data.pictures import read_values
from terralapse.errors import FileMissingError, OutputExistsError, SettingError, UnreadableFileError

Rule = Literal["mixed", "instance", "evidence"]
Evidence = Callable[[LabelledPair], np.ndarray]
ABOUT = "labels.json"


@dataclass(frozen=True)
class GuideMaps:
    """For one pair, each uint8 [H, W] of 0, 1 and `IGNORE`: change, and buildings of both dates."""

    change: np.ndarray
    first: np.ndarray
    second: np.ndarray


def guide_maps(
    pair: LabelledPair,
    labeller: Labeller | None = None,
    rule: Rule = "mixed",
    evidence: Evidence | None = None,
) -> GuideMaps:
    """What is made of a pair, whose label is not looked at.

    Args:
        pair: `images` are used and, for labellers that look things up, `name` (as `A/<name>`, `B/<name>`).
        labeller: of single images; None leaves the buildings of both dates unknown.
        rule: `instance` takes changed instances whole, `mixed` what the maps of both dates differ in there,
            `evidence` the evidence alone.
        evidence: gives uint8 [H, W] of 0, 1 and `IGNORE` for a pair, what another method such as ir-mad sees.
            Under the other rules there is change only where it is 1.

    Raises:
        SettingError: the rule needs what is not given.
    """
    if (evidence if rule == "evidence" else labeller) is None:
        needed = "evidence" if rule == "evidence" else "a labeller"
        raise SettingError(f"rule={rule}", f"needs {needed}", "Give it, or choose another rule.")
    shape = pair.images.shape[2:]
    seen = None if evidence is None else evidence(pair)
    if labeller is None:
        assert seen is not None
        return GuideMaps(seen, *(np.full(shape, IGNORE, np.uint8) for _ in range(2)))
    before, after = both_dates(labeller, pair.images, (f"A/{pair.name}", f"B/{pair.name}"))
    first, second = building_map(before.scores), building_map(after.scores)
    if rule == "evidence":
        assert seen is not None
        return GuideMaps(seen, first, second)
    changed = instance_events(before.instances, after.instances, first.shape)
    if seen is not None:
        changed &= seen == 1
    change = mixed_events(first, second, changed) if rule == "mixed" else changed.astype(np.uint8)
    return GuideMaps(change, first, second)


def write_pseudo_labels(
    pairs: Iterable[LabelledPair],
    labeller: Labeller | None,
    folder: Path | str,
    name: str,
    rule: Rule = "mixed",
    evidence: Evidence | None = None,
    about: dict[str, Any] | None = None,
) -> int:
    """Labels all pairs; those that are there already are left as they are. Returns how many were written.

    Args:
        pairs: of one set.
        labeller, rule, evidence: see `guide_maps`.
        folder: gets `gen_cd_label` and `gen_seg_label`.
        name: of the set, such as `train`.
        about: JSON-ready words on the labeller; kept beside the labels, so that labels of another labeller
            are not mistaken for them.

    Raises:
        OutputExistsError: the folder holds labels of which something else is said.
    """
    folder = Path(folder)
    said = {"rule": rule, **(about or {})}
    note = folder / "gen_cd_label" / name / ABOUT
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != said:
        raise OutputExistsError(folder, "holds labels of another labeller", "Name another folder.")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    written = 0
    for pair in pairs:
        paths = _paths(folder, name, pair.name)
        if all(p.exists() for p in paths):
            continue
        maps = asdict(guide_maps(pair, labeller, rule, evidence))
        for path, plane in zip(paths, maps.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            Image.fromarray(plane).save(part, format="PNG")
            part.replace(path)
        written += 1
    return written


class PseudoLabels:
    """The labels of one set.

    Args:
        folder: holds `gen_cd_label` and `gen_seg_label`.
        name: of the set.

    Raises:
        FileMissingError: the folders are not there.
    """

    def __init__(self, folder: Path | str, name: str) -> None:
        self.folder, self.name = Path(folder), name
        for place in ("gen_cd_label", "gen_seg_label"):
            if not (self.folder / place / name).is_dir():
                raise FileMissingError(
                    self.folder / place / name,
                    "is not there",
                    "Make the labels first, or correct the folder.",
                )

    def __getitem__(self, sample: str) -> GuideMaps:
        """The labels of a sample.

        Raises:
            FileMissingError, UnreadableFileError: a file is missing, or holds other values than 0, 1, 255.
        """
        planes = []
        for path in _paths(self.folder, self.name, sample):
            if not path.is_file():
                raise FileMissingError(path, "is not there", "Make the labels of all samples.")
            plane = read_values(path)
            if not np.isin(plane, (0, 1, IGNORE)).all():
                raise UnreadableFileError(path, "holds other values than 0, 1 and 255", "Make it again.")
            planes.append(plane.astype(np.uint8))
        return GuideMaps(*planes)


def _paths(folder: Path, name: str, sample: str) -> tuple[Path, Path, Path]:
    buildings = folder / "gen_seg_label" / name
    return (
        folder / "gen_cd_label" / name / f"{sample}.png",
        buildings / "A" / f"{sample}.png",
        buildings / "B" / f"{sample}.png",
    )


def agreement(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """How far labels of change agree with true ones.

    Args:
        pairs: made and true labels [H, W] of 0, 1 and `IGNORE`.

    Returns:
        `precision`, `recall` and `f1` of change over the pixels that both know (0 where nothing is there to
        be divided by), and `unknown`, the share of the truly labelled pixels that the made ones ignore.
    """
    hits = false = missed = unknown = total = 0
    for made, true in pairs:
        known = true != IGNORE
        total += int(known.sum())
        unknown += int((known & (made == IGNORE)).sum())
        both = known & (made != IGNORE)
        hits += int((both & (made == 1) & (true == 1)).sum())
        false += int((both & (made == 1) & (true == 0)).sum())
        missed += int((both & (made == 0) & (true == 1)).sum())
    return {
        "precision": hits / max(1, hits + false),
        "recall": hits / max(1, hits + missed),
        "f1": 2 * hits / max(1, 2 * hits + false + missed),
        "unknown": unknown / max(1, total),
    }
