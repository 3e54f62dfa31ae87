"""The scorers against the figures that published scorers return (`<golden-root>/metrics/*.json`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terralapse.data.words import says_change
from terralapse.tasks import answer_metrics as answers
from terralapse.tasks import caption_metrics as captions
from terralapse.tasks import metrics as m
from terralapse.tasks import retrieval_metrics as retrieval

SCORERS: dict[str, Callable[[dict[str, Any]], None]] = {}
LATER = {
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


CAPTION_NAMES = {
    "BLEU-1": "bleu1",
    "BLEU-2": "bleu2",
    "BLEU-3": "bleu3",
    "BLEU-4": "bleu4",
    "ROUGE_L": "rouge_l",
    "CIDEr-D": "cider_d",
}


@scorer("captions")
def check_captions(case: dict[str, Any]) -> None:
    """All but METEOR of words, which needs its tables of synonyms and paraphrases; where it is compared, see
    `meteor_exact`. rouge-score is another scorer."""
    every = [captions.words(i["hypothesis"]) for i in case["items"]]
    known = [[captions.words(r) for r in i["references"]] for i in case["items"]]

    def same(stated: dict[str, Any], hypotheses: list[Any], references: list[Any]) -> None:
        found = captions.caption_scores(hypotheses, references).as_dict()
        compared = {k: found[name] for k, name in CAPTION_NAMES.items()}
        assert compared == pytest.approx({k: stated[k] for k in compared}, **EXACT)

    same(case["corpus"], every, known)
    vocabulary = sorted({w for s in [*every, *(r for rs in known for r in rs)] for w in s})
    ids = {word: str(4 + rank) for rank, word in enumerate(vocabulary)}
    as_ids = [[ids[w] for w in s] for s in every], [[[ids[w] for w in r] for r in rs] for rs in known]
    same(case["corpus_on_ids"]["scores"], *as_ids)
    some = case["subset"]["indices"]
    same(case["subset"]["scores"], [every[i] for i in some], [known[i] for i in some])
    same(case["first_item_alone"], every[:1], known[:1])
    same(
        case["first_reference_as_hypothesis_against_the_others"],
        [rs[0] for rs in known],
        [rs[1:] for rs in known],
    )
    cider = captions.cider_d_each(every, known)
    for item, hypothesis, references, value in zip(case["items"], every, known, cider, strict=True):
        stated = item["scores"]
        assert captions.bleu([hypothesis], [references]) == pytest.approx(stated["BLEU"], **EXACT)
        assert captions.rouge_l([hypothesis], [references]) == pytest.approx(stated["ROUGE_L"], **EXACT)
        assert value == pytest.approx(stated["CIDEr-D"], **EXACT)
        if hypothesis in references:
            assert captions.meteor_exact([hypothesis], [references]) == stated["METEOR"] == 1.0


@scorer("vqa")
def check_answers(case: dict[str, Any]) -> None:
    closed = case["closed_answers"]
    r = draws(971)
    kinds, truth, flip = r.integers(0, 8, 300), r.integers(0, 19, 300), r.integers(0, 3, 300)
    said = np.where(flip == 0, (truth + 1) % 19, truth)
    found = answers.closed_scores(kinds.tolist(), truth.tolist(), said.tolist())
    assert {str(k): v for k, v in found["per_type"].items()} == pytest.approx(closed["per_type"], **EXACT)
    assert {str(k): v for k, v in found["counts_per_type"].items()} == closed["counts_per_type"]
    assert [found["aa"], found["oa"]] == pytest.approx([closed["AA"], closed["OA"]], **EXACT)
    counting, places = case["counting"], case["localisation"]
    counts = [answers.parse_counts(i["text"]) for i in counting["items"]]
    assert counts == counting["parsed"]
    cells = [answers.parse_places(i["text"]) for i in places["items"]]
    assert cells == places["parsed"]
    assert list(answers.GRID) == places["labels"]
    for kind in ("road", "building"):
        scores = answers.count_scores(
            [i["truth"][kind] for i in counting["items"]], [c[kind] for c in counts]
        )
        assert {"MAE": scores["mae"], "RMSE": scores["rmse"]} == pytest.approx(counting[kind], **EXACT)
        found = answers.place_scores([i["truth"][kind] for i in places["items"]], [c[kind] for c in cells])
        assert found == pytest.approx(places[kind], **EXACT)
    told = case["change_or_not_from_caption"]
    guesses = [int(says_change(i["caption"])) for i in told["items"]]
    assert guesses == told["predictions"]
    s = m.binary_scores(
        m.confusion_matrix(np.array([i["changed"] for i in told["items"]]), np.array(guesses), 2)
    )
    f_half = 1.25 * s.precision * s.recall / (0.25 * s.precision + s.recall)
    stated = {"accuracy": s.oa, "precision": s.precision, "recall": s.recall, "F1": s.f1, "F0.5": f_half}
    assert stated == pytest.approx({k: told[k] for k in stated}, **EXACT)


@scorer("retrieval")
def check_retrieval(case: dict[str, Any]) -> None:
    paired = case["paired"]
    scores = draws(981).standard_normal((20, 100)).astype(np.float32)
    belongs = np.zeros((20, 100))
    for i in range(20):
        scores[i, 5 * i : 5 * (i + 1)] += 1
        belongs[i, 5 * i : 5 * (i + 1)] = 1
    for stated, s, b in (
        (paired["image_to_text"], scores, belongs),
        (paired["text_to_image"], scores.T, belongs.T),
    ):
        assert {k: retrieval.hit_rate(s, b, int(k)) for k in stated} == pytest.approx(stated, **EXACT)
    mean = retrieval.mean_recall(scores, belongs)
    assert mean == pytest.approx(paired["mR_1_5_10_both_directions"], **EXACT)
    assert retrieval.median_rank(scores, belongs) == paired["median_rank_image_to_text"]
    unique = case["unique_items"]
    r = draws(984)
    texts, images = r.integers(0, 9, 24), r.integers(0, 11, 24)
    rows, columns = np.unique(images), np.unique(texts)
    assert (len(rows), len(columns)) == (unique["images"], unique["texts"])
    table = r.standard_normal((len(rows), len(columns)))
    there = np.zeros(table.shape)
    there[np.searchsorted(rows, images), np.searchsorted(columns, texts)] = 1
    table += 0.7 * there
    for name, s, b in (("img2text", table, there), ("text2img", table.T, there.T)):
        stated = unique["recall"][name]
        assert {k: retrieval.hit_rate(s, b, int(k)) for k in stated} == pytest.approx(stated, **EXACT), name
    r = draws(983)
    q = r.standard_normal((8, 40))
    g = r.integers(0, 4, q.shape) * (r.integers(0, 5, q.shape) == 0)
    g[0] = 0
    q = q + 0.4 * g
    graded = case["relevance"]
    assert retrieval.ndcg_each(q, g).size == graded["queries_used"]
    for at, stated in graded["at_k"].items():
        k = int(at)
        found = {
            "ndcg_binary": retrieval.ndcg(q, g, k, "binary"),
            "ndcg_exponential_gain": retrieval.ndcg(q, g, k),
            "ndcg_linear_gain": retrieval.ndcg(q, g, k, "linear"),
            "map_min_k_R": retrieval.mean_average_precision(q, g, k),
            "map_R": retrieval.mean_average_precision(q, g, k, over_all=True),
            "hit_rate": retrieval.hit_rate(q, g, k),
            "recall_share_of_relevant": retrieval.recall(q, g, k),
        }
        assert found == pytest.approx({n: stated[n] for n in found}, **EXACT), at
        each = retrieval.ndcg_each(q, g, k, "binary")
        assert each == pytest.approx(stated["per_query_ndcg_binary"], **EXACT), at
    assert retrieval.mean_average_precision(q, g) == pytest.approx(graded["map_full"], **EXACT)


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
    found = json.loads(figures.read_text(encoding="utf-8"))
    cases = found.get("cases", [found])  # a file of one case is the case itself
    assert cases
    for case in cases:
        SCORERS[figures.stem](case)
