"""DisasterM3: what a model is shown, the square resize, and the scores.

Not covered: the choice of frames of a video, which the official runner has for models of videos and no subset
of the benchmark uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from golden.case import Case, Result, ValuePath
from terralapse.ask.disaster.prompts import AFTER, BEFORE, parts_of
from terralapse.data.disasterm3 import CHOICES, SUBSETS, DisasterM3, Item, inside, square
from terralapse.tasks.answer_metrics import referring_scores
from terralapse.tasks.disaster import Choice, MaskTally, choice_table, letters_of, mask_scores, read_letters

QUESTION, OPTIONS = "Which objects are damaged?", "A. bridge B. road C. dam"


def run(case: Case) -> Result:
    values: dict[ValuePath, Any] = {}
    for i, message in enumerate(case.spec["messages"]):
        values |= {("messages", i, k): v for k, v in shown(message["subset"]).items()}
    values["row_id",] = row_id(case.spec["row_id"])
    values |= resized() | scores(case)
    return Result(values=values)


def row_id(pattern: str) -> str:
    """The pattern, where the reader names its records by it."""
    record = {"prompts": QUESTION, "options_str": OPTIONS, "pre_image_path": "a", "ground_truth_option": "A"}
    with TemporaryDirectory() as folder:
        (Path(folder) / "landuse.json").write_text(json.dumps([record] * 3), encoding="utf-8")
        ids = [item.id for item in map(DisasterM3(folder, "landuse").__getitem__, range(3))]
    wanted = [pattern.format(subset="landuse", index=i) for i in range(3)]
    return pattern if ids == wanted else f"{ids}"


def shown(subset: str) -> dict[str, Any]:
    """The turn for a subset, described as the case does."""
    root = Path("data")
    name = {"pre": "pre/a.png", "post": "post/b.png", "image": "x\\y\\c.png"}
    folders = {"pre": root / "images", "post": root / "images", "image": root}
    spec = SUBSETS[subset]
    images = tuple(inside(folders[w], name[w]) for w in spec.images)
    chosen = spec.kind in ("single", "multiple")
    item = Item("x", spec, QUESTION if chosen else "", OPTIONS if chosen else "", {}, images, "A", "")
    parts = []
    for part in parts_of(item):
        if "image" in part:
            parts.append({"image": part["image"]})
            continue
        text = part["text"]
        asked, options = (t in text and bool(t) for t in (item.question, item.options_text))
        last = text.rstrip().splitlines()[-1].strip()
        both = text.index(item.question) < text.index(item.options_text) if asked and options else None
        parts.append(
            {
                "text": {
                    "holds_question": asked,
                    "holds_options": options,
                    "question_before_options": both,
                    "last_line_of_part_is_image_label": last in (BEFORE, AFTER),
                }
            }
        )
    return {"parts": parts, "images": [p["image"] for p in parts if "image" in p], "roles": ["user"]}


def resized() -> dict[ValuePath, Any]:
    pixels = np.random.Generator(np.random.Philox(key=951)).integers(0, 256, [37, 50, 3]).astype(np.uint8)
    found = np.asarray(square(Image.fromarray(pixels), 24)).astype(int)
    return {
        ("square_resize", "sum"): int(found.sum()),
        ("square_resize", "first_row"): found[0].tolist(),
        ("square_resize", "centre"): found[12, 12].tolist(),
    }


def scores(case: Case) -> dict[ValuePath, Any]:
    choices = [
        Choice(task, letters_of(truth), read_letters(said, "ABCDE"))
        for task, truth, said in case.spec["scores"]["choice_items"]
    ]
    table = choice_table(choices, CHOICES)
    rng = np.random.Generator(np.random.Philox(key=952))
    said, truth = rng.integers(0, 2, [4, 8, 9]), rng.integers(0, 2, [4, 8, 9])
    said[0][:4] = truth[0][:4]
    truth[1][:, 2:] = 0
    tallies = [MaskTally.of(t > 0, s > 0) for t, s in zip(truth, said, strict=True)]
    found = mask_scores(tallies)
    assert found == dict(
        zip(("miou", "ciou"), referring_scores(list(truth), list(said)).values(), strict=True)
    )
    return {
        ("scores", "accuracy_per_task"): {t: f["accuracy"] for t, f in table["tasks"].items()},
        ("scores", "average_over_tasks"): table["average"],
        ("scores", "mIoU"): found["miou"],
        ("scores", "cIoU"): found["ciou"],
        ("scores", "per_sample"): [t.iou for t in tallies],
    }
