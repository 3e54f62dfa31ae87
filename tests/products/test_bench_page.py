"""The page of a benchmark says what its numbers say, loads nothing, and takes no text of others as markup."""

from __future__ import annotations

import copy
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from terralapse.products import bench_charts, bench_page, bench_words


def mode(tp: int, fp: int, fn: int, **more: Any) -> dict[str, Any]:
    tn = 9000 - tp - fp - fn
    f1 = 2 * tp / (2 * tp + fp + fn)
    micro = {"precision": tp / max(tp + fp, 1), "recall": tp / (tp + fn), "f1": f1, "iou": f1 / (2 - f1)}
    micro |= {"oa": (tp + tn) / 9000, "kappa": 0.5, "tp": tp, "fp": fp, "fn": fn, "tn": tn}
    mean: dict[str, Any] = dict.fromkeys(("f1", "iou", "precision", "recall", "oa", "kappa"), 0.5)
    sizes = [(0, 0, 0), (16, 1, 4), (64, 3, 4)]
    objects = [
        {"from_pixels": s, "from_m2": s * 6.25, "found": f, "all": n, "recall": f / n if n else None}
        for s, f, n in sizes
    ]
    return {
        "micro": micro,
        "f1_interval_95": [f1 - 0.1, f1 + 0.1],
        "iou_interval_95": None,
        "mean_per_image": mean | {f"{k}_images": 9 for k in mean},
        "boundary_f1": None,
        "ece": 0.02,
        "objects": objects,
        "masked_pixels": 0,
        **more,
    }


def model(
    name: str, whole: dict[str, Any], speed: float = 1.0, drop: float = 0.1, **more: Any
) -> dict[str, Any]:
    f1 = whole["micro"]["f1"]
    robustness = [
        {"perturbation": "shift-2", "f1": f1 - drop, "drop": drop, "interval_95": [0, 0.2], "counts": {}},
        {"perturbation": "swapped", "f1": None, "drop": None, "interval_95": None, "counts": None},
    ]
    return {
        "name": name, "slug": name, "weights": "w.safetensors", "weights_sha256": "ab" * 32, "threshold": 0.4,
        "threshold_from": "card", "temperature": 1.0, "classes": "binary-change", "title": name,
        "summary": f"What {name} is.", "learned": True, "takes_map": False, "date_order": "symmetric",
        "gsd_range": None, "licences": {"code": "", "weights": "Apache-2.0", "data": ""},
        "limits": ["It fails at night."],
        "cost": {"parameters": 1000, "macs": 2_000_000_000, "flops": 4_000_000_000, "peak_bytes": 5_000_000},
        "megapixels_a_second": speed, "fit_seconds_an_image": 0.01, "whole": whole, "tiled": whole,
        "robustness": robustness, **more,
    }  # fmt: skip


def result(**data: Any) -> dict[str, Any]:
    """Three models: `good` and `close` that cannot be told apart, and `poor`."""
    models = [
        model("poor", mode(100, 900, 100), speed=50.0),
        model("good", mode(800, 100, 100), speed=0.5),
        model("close", mode(780, 110, 120), speed=2.0, drop=0.0),
    ]
    test = {"interval_95": [-0.1, 0.1], "exact": True, "images": 40}
    return {
        "terralapse": "0.0", "kind": "change", "run": "abc", "started": "2026-01-02T03:04:05+00:00",
        "settings": {}, "opened_before": 0,
        "data": {
            "name": "levir-cd", "split": "test", "title": "Some set test", "licence": "academic use",
            "notes": "Buildings only.", "classes": "binary-change", "images": 40, "available": 40,
            "limited": False, "bands": ["red", "green", "blue"], "unit": "rgb255", "gsd": 2.5,
            "changed_pixels": 200, "pixels": 9000, **data,
        },
        "protocol": {
            "whole_and_tiles_coincide": True, "tile": 256, "outline_tolerance_pixels": 2.0,
            "object_sizes_pixels": [0, 16, 64], "threshold": "card", "threshold_split": None,
            "bootstrap_samples": 2000, "seed": 0, "device": "cpu", "threads": 1, "test_seconds": 1.0,
            "versions": {"torch": "2"},
        },
        "perturbations": [
            {"slug": "shift-2", "title": "shift 2 px", "group": "shift", "amount": 2.0,
             "definition": "moved"},
            {"slug": "swapped", "title": "dates swapped", "group": "order", "amount": 0.0,
             "definition": "swap"},
        ],
        "models": models,
        "tests": [
            {"first": "poor", "second": "good", "difference": -0.7, "p": 0.0002, "p_holm": 0.0006, **test},
            {"first": "poor", "second": "close", "difference": -0.68, "p": 0.0002, "p_holm": 0.0006, **test},
            {"first": "good", "second": "close", "difference": 0.02, "p": 0.4, "p_holm": 0.4, **test},
        ],
    }  # fmt: skip


def test_the_advice_follows_from_the_numbers() -> None:
    said = bench_words.advice(result())
    assert said[0] == "good has the highest F1: 88.9 % (95 % interval 78.9 to 98.9)."
    assert "do not tell it from close (" in said[1]
    assert "close is the fastest (4.0 times as fast)" in said[2]
    assert any("poor" not in s and "false alarms" in s for s in said)
    assert 'What hurts good most is "shift 2 px": 10.0 points of F1.' in said
    assert any("misaligned by two pixels, close keeps" in s for s in said)


def test_a_clear_winner_is_called_one_and_too_few_images_are_said_to_be_too_few() -> None:
    clear = result()
    clear["tests"][2]["p_holm"] = 0.01
    assert "better than each of the others" in bench_words.advice(clear)[1]
    few = result(images=4)
    for test in few["tests"]:
        test["p_holm"] = 0.4
    assert "no difference, however large, could pass" in bench_words.advice(few)[1]


def test_nothing_to_rank_is_said() -> None:
    empty = result()
    for m in empty["models"]:
        m["whole"]["micro"]["f1"] = None
    assert "cannot rank" in bench_words.advice(empty)[0]
    assert "–" in bench_page.markdown(empty)


@pytest.mark.parametrize(("before", "said"), [(0, "no other run"), (1, "once"), (2, "twice"), (7, "7 times")])
def test_openings_are_said_in_words(before: int, said: str) -> None:
    assert said in bench_words.openings(before)
    assert ("too good" in bench_words.openings(before)) is (before > 0)


def test_cautions_name_what_a_reader_must_know() -> None:
    found = result(images=5, limited=True)
    found["models"][0]["gsd_range"] = [8.0, 15.0]
    said = " ".join(bench_words.cautions(found))
    for part in (
        "quick look: only 5 of 40",
        "Only 5 images",
        "poor was made for pixels of 8 to 15 m",
        "cards",
    ):
        assert part in said
    whole = " ".join(bench_words.cautions(result()))
    assert "quick look" not in whole
    assert "Only" not in whole


def test_the_page_loads_nothing_and_its_one_script_is_allowed_by_hash(tmp_path: Path) -> None:
    bench_page.write_bench(result(), tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "index.html", "bench.md", "f1.svg", "speed.svg", "objects.svg", "robustness.svg",
        "misregistration.svg",
    }  # fmt: skip
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert text.count("<script>") == 1
    addresses = [a for a in re.findall(r"https?://[^\"'\s<>)]+", text) if "www.w3.org" not in a]
    assert addresses == []
    for name in re.findall(r'href="([^"#]+)"', text):
        assert name in names | {"bench.json", "log.jsonl"}
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_names_of_others_are_text(tmp_path: Path) -> None:
    evil = result(title="<script>alert(1)</script>")
    evil["models"][1]["name"] = '"><img src=x onerror=alert(1)>'
    for test in evil["tests"]:
        for side in ("first", "second"):
            test[side] = evil["models"][1]["name"] if test[side] == "good" else test[side]
    bench_page.write_bench(evil, tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix in (".html", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert "<script>alert" not in text
            assert "<img src=x" not in text


def test_drawings_are_xml_and_carry_their_numbers() -> None:
    for name, drawing in bench_page.drawings(result()).items():
        root = ET.fromstring(str(drawing))
        words = " ".join(root.itertext())
        assert root.get("aria-label"), name
        assert "good" in words
    assert "88.9" in str(bench_page.drawings(result())["f1"])
    assert ">10.0<" in str(bench_page.drawings(result())["robustness"])


def test_models_have_shapes_and_lines_of_their_own() -> None:
    found = result()
    drawing = str(bench_charts.shift_chart(found["models"], found["perturbations"]))
    lines = re.findall(r"<polyline[^>]*>", drawing)
    assert len({re.sub(r'points="[^"]*"', "", line) for line in lines}) == 3


def test_without_perturbations_there_is_no_drawing_of_them(tmp_path: Path) -> None:
    bare = result()
    bare["perturbations"] = []
    for m in bare["models"]:
        m["robustness"] = []
    bench_page.write_bench(bare, tmp_path)
    assert not (tmp_path / "robustness.svg").exists()
    assert "When the later image" not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_tiles_have_columns_only_where_they_can_differ() -> None:
    apart = copy.deepcopy(result())
    apart["protocol"]["whole_and_tiles_coincide"] = False
    assert "F1 in tiles of 256" in bench_page.scores(apart)["head"]
    assert "F1 in tiles of 256" not in bench_page.scores(result())["head"]
    assert "the same" in bench_words.modes(result())


def test_sizes_are_in_square_metres_or_in_pixels() -> None:
    rows = result()["models"][0]["whole"]["objects"]
    assert [bench_charts.size_class(rows, i) for i in range(3)] == [
        "below 100 m²", "100 to 400 m²", "from 400 m²",
    ]  # fmt: skip
    unknown = [r | {"from_m2": None} for r in rows]
    assert bench_charts.size_class(unknown, 1) == "16 to 64 px"
