"""EarthDial: encoder, connector and pooling of bands; its tiling; the scores of its evaluation."""

from __future__ import annotations

from typing import Any

import torch

from golden.case import Case, NotCoveredError, Result
from terralapse.data.tiling import plan_tiles
from terralapse.layers.intern_vit import pixel_shuffle
from terralapse.models.language import earthdial as m
from terralapse.tasks.rotated_boxes import Matched, match_boxes, parse_boxes, rotated_iou, vertices
from terralapse.tasks.word_scores import (
    description_scores,
    mean_recall,
    recall_by_kind,
    without_boxes,
    word_recall,
)


def run(case: Case) -> Result:
    if "rotated_iou" in case.spec:
        return _metrics(case.spec)
    if "cases" in case.spec:
        return _tiling(case.spec)
    if "vision" in case.config:
        with torch.inference_mode():
            return _connector(case)
    raise NotCoveredError(f"a case with {', '.join(case.spec)}")


def _connector(case: Case) -> Result:
    c = case.config
    config = {
        "vision_config": c["vision"],
        "llm_config": {"hidden_size": c["llm_width"]},
        "downsample_ratio": c["downsample_ratio"],
        "ps_version": c["ps_version"],
        "select_layer": c["select_layer"],
    }
    network = m.Vision(m.read_size(config)).eval()
    network.load_state_dict(case.state_dict(), strict=True)
    image, square = (torch.from_numpy(case.input(n)) for n in ("image", "shuffle_input"))
    outputs: dict[str, Any] = {
        "vit_tokens": network.vision_model(image),
        "visual_tokens": network(image),
        "pixel_shuffle_v2": pixel_shuffle(square),
        "pixel_shuffle_v1": pixel_shuffle(square, transposed=True),
    }
    for name in case.stored:
        if name.startswith("bands"):
            bands, _, pooling = name.partition("_")
            outputs[name] = network.pool(torch.from_numpy(case.input(bands)), pooling)  # pyright: ignore
    parts = {
        "vision_model": _count(network.vision_model),
        "mlp1": _count(network.mlp1),
        "total": _count(network),
    }
    return Result(outputs=outputs, values={("parameters",): parts})


def _count(part: torch.nn.Module) -> int:
    return sum(p.numel() for p in part.parameters())


def _tiling(spec: dict[str, Any]) -> Result:
    values: dict[Any, Any] = {}
    for i, row in enumerate(spec["cases"]):
        o = row["options"]
        plan = plan_tiles(
            row["width"], row["height"], o["image_size"], o["min_num"], o["max_num"], o["use_thumbnail"]
        )
        values |= {
            ("cases", i, "resized_to"): list(plan.canvas),
            ("cases", i, "boxes"): [list(b) for b in plan.boxes],
            ("cases", i, "thumbnail"): [plan.size] * 2 if plan.thumbnail else None,
            ("cases", i, "tiles"): plan.tiles,
        }
    return Result(values=values)


def _metrics(spec: dict[str, Any]) -> Result:
    closed = spec["classification"]["items"]
    answers, references = [i["answer"] for i in closed], [i["reference"] for i in closed]
    values: dict[Any, Any] = {
        ("classification", "accuracy"): mean_recall(answers, references),
        ("vqa", "per_type"): recall_by_kind(
            [i[1] for i in spec["vqa"]["items"]],
            [i[0] for i in spec["vqa"]["items"]],
            [i[2] for i in spec["vqa"]["items"]],
        ),
    }
    for i, row in enumerate(closed):
        values["classification", "items", i, "score"] = word_recall(row["answer"], row["reference"]) or 0
    captions = spec["caption"]["items"]
    scores = description_scores([i["answer"] for i in captions], [i["references"] for i in captions])
    values |= {("caption", k): v for k, v in scores.items()}
    values |= _detection(spec["detection"]["items"])
    rows = spec["change_detection"]["items"]
    changed = match_boxes([i[0] for i in rows], [i[1] for i in rows], 0.25, upright=True)
    values["change_detection", "precision"] = changed.precision
    grounded = spec["grounding"]["items"]
    for threshold in (0.25, 0.5):
        found = match_boxes([i[0] for i in grounded], [i[1] for i in grounded], threshold)
        values["grounding", f"precision_at_{threshold}"] = found.precision
    texts = [without_boxes(i[0]) for i in grounded]
    values["grounding", "description_texts"] = texts
    described = description_scores(texts, [[without_boxes(i[2])] for i in grounded])
    values |= {("grounding", k): v for k, v in described.items()}
    for i, row in enumerate(spec["rotated_iou"]):
        values["rotated_iou", i, "iou"] = rotated_iou(row["a"], row["b"])
        values["rotated_iou", i, "vertices_a"] = vertices(row["a"]).tolist()
    for i, row in enumerate(spec["box_parsing"]):
        values["box_parsing", i, "boxes"] = parse_boxes(row["text"])
    return Result(values=values)


def _detection(rows: list[list[str]]) -> dict[Any, Any]:
    """By size group, and by whether an image has one true box or several."""
    groups = {name: [r for r in rows if r[2] == name] for name in ("small", "medium", "large")}
    groups["single"] = [r for r in rows if len(parse_boxes(r[1])) == 1]
    groups["multiple"] = [r for r in rows if len(parse_boxes(r[1])) > 1]
    found: dict[str, Matched] = {
        k: match_boxes([r[0] for r in v], [r[1] for r in v]) for k, v in groups.items()
    }
    return {
        ("detection", "precision"): {k: v.precision for k, v in found.items()},
        ("detection", "predictions"): {k: v.predicted for k, v in found.items()},
    }
