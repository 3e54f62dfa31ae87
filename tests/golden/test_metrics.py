"""The scorers against the figures that published scorers return (`<golden-root>/metrics/*.json`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terralapse.tasks import metrics as m

SCORERS: dict[str, Callable[[dict[str, Any]], None]] = {}
LATER = {
    "captions": "corpus caption metrics",
    "vqa": "answers to questions",
    "retrieval": "retrieval figures",
    "pansharpening": "pan-sharpening figures",
    "star-sgg-recall": "scene graph recall",
    "hop-nds": "the nuScenes detection score",
    "cate-rate": "treatment effect priorities",
    "search-tta": "search figures",
    "denguenet": "forecast errors",
}
EXACT = {"rel": 1e-9, "abs": 1e-12}
# The published scorer of the overall accuracy adds 1e-10 to its denominators.
NEAR = {"rel": 1e-7, "abs": 1e-9}


def scorer(name: str) -> Callable[[Callable[[dict[str, Any]], None]], Callable[[dict[str, Any]], None]]:
    def add(function: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        SCORERS[name] = function
        return function

    return add


def draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@scorer("binary_change")
def check_binary_change(case: dict[str, Any]) -> None:
    label = (draws(case["seed"]).random(case["shape"]) < case["change_probability"]).astype(int)
    flipped = draws(case["seed"] + 1).random(case["shape"]) < case["flip_probability"]
    counts = m.confusion_matrix(label, np.where(flipped, 1 - label, label), 2)
    assert counts.tolist() == case["confusion_matrix_rows_truth"]
    s = m.binary_scores(counts)
    stated = {
        "precision": s.precision,
        "recall": s.recall,
        "F1": s.f1,
        "IoU": s.iou,
        "OA": s.oa,
        "kappa": s.kappa,
        "mean_IoU": s.miou,
    }
    assert stated == pytest.approx({k: case[k] for k in stated}, **EXACT)


@scorer("semantic_change_second")
def check_semantic_change(case: dict[str, Any]) -> None:
    labels, guesses = semantic_maps(case)
    pairs = list(zip(labels, guesses, strict=True))
    per_date = [[m.image_accuracy(a[i], b[i]) for a, b in pairs] for i in range(len(labels[0]))]
    truth, guess = m.from_to(*labels), m.from_to(*guesses)
    found = {
        "classes_7": (m.per_date_matrix(labels, guesses), np.mean(per_date)),
        "classes_37": (
            m.from_to_matrix(labels, guesses),
            np.mean([m.image_accuracy(a, b) for a, b in zip(truth, guess, strict=True)]),
        ),
    }
    for protocol, (counts, accuracy) in found.items():
        s = m.semantic_scores(counts)
        stated = {"mIoU": s.miou, "SeK": s.sek, "F_scd": s.f_scd, "kappa_n0": s.kappa_n0}
        assert stated == pytest.approx({k: case[protocol][k] for k in stated}, **EXACT), protocol
        assert accuracy == pytest.approx(case[protocol]["OA"], **NEAR), protocol


def semantic_maps(case: dict[str, Any]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The two labels and the two predictions of a case, rebuilt from its recipe."""
    seed, shape = case["seed"], case["shape"]
    changed = draws(seed).random(shape) < case["change_probability"]
    before, after = draws(seed + 1).integers(1, 7, shape), draws(seed + 2).integers(1, 7, shape)
    if not case["same_class_allowed"]:
        after = np.where(after == before, after % 6 + 1, after)
    predicted = changed ^ (draws(seed + 3).random(shape) < case["change_flip"])
    guesses = [
        np.where(
            draws(seed + s).random(shape) < case["semantic_noise"],
            draws(seed + s + 1).integers(1, 7, shape),
            v,
        )
        for s, v in ((4, before), (6, after))
    ]
    return [v * changed for v in (before, after)], [g * predicted for g in guesses]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a file of figures, named `metrics/<file>`."""
    if "figures" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden-root")
    root = Path(metafunc.config.invocation_params.dir) / given if given else Path(__file__).parent / "cases"
    files = sorted((root / "metrics").glob("*.json"))
    metafunc.parametrize("figures", files, ids=[f"metrics/{f.stem}" for f in files])


def test_the_figures_kept_here_are_all_scored() -> None:
    kept = {p.stem for p in (Path(__file__).parent / "cases/metrics").glob("*.json")}
    assert kept == SCORERS.keys()


def test_figures(figures: Path) -> None:
    if figures.stem in LATER:
        pytest.skip(f"comes with a later issue: {LATER[figures.stem]}")
    if figures.stem not in SCORERS:
        pytest.skip(f"no scorer here reads {figures.name}")
    cases = json.loads(figures.read_text(encoding="utf-8"))["cases"]
    assert cases
    for case in cases:
        SCORERS[figures.stem](case)
