"""Scores the small captioner, and an answerer where there is one, against rules, constants and the questions.

On the tiles of one split of MS-HS-BCD, with the sentences and questions that rules make from their masks
(`terralapse.data.building_talk`). Writes one JSON file and the tables of `docs/captioner.md`, and with
`--ship` puts the weights of runs into `weights/` and their figures into the cards.

    python benchmarks/captioner.py ../shared/data/cd_mshs_bcd val results.json
    python benchmarks/captioner.py DATA test results.json --ship --captioner runs/a --answerer runs/b
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from terralapse import registry
from terralapse.data.building_talk import (
    BUILDING,
    KINDS,
    BuildingCaptions,
    BuildingFacts,
    BuildingQuestions,
    answer,
    said_in,
    sentences_of,
)
from terralapse.data.samples import CaptionedPair
from terralapse.data.words import says_change, tokens_of
from terralapse.engine.captioning import describer_of
from terralapse.layers.weights import check_hash
from terralapse.tasks.caption_metrics import caption_scores
from terralapse.tasks.metrics import bootstrap_interval
from terralapse.tasks.vqa import QuestionOnly, answer_scores, normal_answer

ROOT = Path(__file__).resolve().parents[1]
CAPTIONER, ANSWERER, DETECTOR = "change-agent/nano", "tcssm/buildings-small", "lapsenet/rgb"
STATED = ("number", "size", "place")
TIMES = 5  # that one caption is timed
PROTOCOL = (
    "sentences and questions by rules from the masks of whole tiles of 256 pixels, epoch chosen on val; "
    "interval by bootstrap over tiles"
)
WEIGHTS_LICENCE = "Apache-2.0 as far as it is ours to give; the training data states no licence: for research"
DATA_LICENCE = "MS-HS-BCD: no licence stated, public research data of Gaofen-1"


# --- maps ------------------------------------------------------------------------------------------------
def maps_of(slug: str, pairs: Sequence[CaptionedPair], weights: Path | None = None) -> list[np.ndarray]:
    """The map of change bool [H, W] of each pair, at the threshold of the card."""
    system = registry.build(slug, **({} if weights is None else {"weights": weights}))
    found = []
    for pair in pairs:
        batch = {"images": torch.from_numpy(pair.images)[None]}
        with torch.inference_mode():
            change = system.respond(batch, {}).change().probability(system.card.temperature)
        found.append((change[0] >= system.card.threshold).numpy())
    return found


def f1(maps: Sequence[np.ndarray], pairs: Sequence[CaptionedPair]) -> float:
    """Of the pixels of all maps together."""
    truth = [pair.label == BUILDING for pair in pairs]
    both = sum(int((m & t).sum()) for m, t in zip(maps, truth, strict=True))
    return 2 * both / max(1, sum(int(m.sum() + t.sum()) for m, t in zip(maps, truth, strict=True)))


# --- sentences -------------------------------------------------------------------------------------------
def scored_sentences(said: Sequence[str], pairs: Sequence[CaptionedPair]) -> dict[str, Any]:
    """Likeness to the references, and the shares of sentences whose statements are right."""
    words = [tokens_of(s) for s in said]
    references = [[tokens_of(r) for r in pair.captions] for pair in pairs]
    rows = []
    for sentence, pair in zip(said, pairs, strict=True):
        truth = BuildingFacts.of(pair.label == BUILDING).said
        right = [a == b for a, b in zip(said_in(sentence), truth, strict=True)]
        rows.append([*right, all(right), 1])
    counts = np.array(rows, np.int64)
    found: dict[str, Any] = {**caption_scores(words, references).as_dict()}
    for column, name in enumerate((*STATED, "all_right")):
        found[name] = float(counts[:, column].mean())
        low, high = bootstrap_interval(counts, lambda total, c=column: total[c] / total[-1])
        found[f"{name}_interval"] = [round(low, 3), round(high, 3)]
    return found


def commonest_sentence(train: BuildingCaptions) -> str:
    """The first sentence that most training tiles have."""
    counts = Counter(train[i].captions[0] for i in range(len(train)))
    return min(counts, key=lambda s: (-counts[s], s))


# --- answers ---------------------------------------------------------------------------------------------
def scored_answers(says: Sequence[str], questions: BuildingQuestions) -> dict[str, Any]:
    """Exact accuracy over all questions with its interval, the mean of the types, and each type."""
    place = {name: i for i, name in enumerate(dict.fromkeys(questions.names))}
    right = np.zeros((len(place), len(KINDS)), np.int64)
    asked = np.zeros_like(right)
    for name, said, (one, _) in zip(questions.names, says, questions.asked, strict=True):
        cell = place[name], KINDS.index(one.kind)
        asked[cell] += 1
        right[cell] += normal_answer(said) == normal_answer(one.answer)
    sums = np.stack([right.sum(axis=1), asked.sum(axis=1)], axis=1)
    low, high = bootstrap_interval(sums, lambda total: total[0] / total[1])
    found: dict[str, Any] = answer_scores(right.sum(axis=0), asked.sum(axis=0), KINDS)
    return {**found, "oa_interval": [round(low, 3), round(high, 3)]}


def trained_answers(questions: BuildingQuestions, weights: Path | None) -> list[str]:
    """What the network says, pair by pair."""
    system = registry.build(ANSWERER, **({} if weights is None else {"weights": weights}))
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(questions.names):
        by_name.setdefault(name, []).append(index)
    found = [""] * len(questions)
    for indices in by_name.values():
        images = questions[indices[0]].images
        asked = [questions.asked[i][0].question for i in indices]
        for index, said in zip(indices, system.ask(images, asked), strict=True):
            found[index] = said.text
    return found


def rules_answers(questions: BuildingQuestions, maps: dict[str, np.ndarray]) -> list[str]:
    """What the rules say of predicted maps."""
    facts = {name: BuildingFacts.of(one) for name, one in maps.items()}
    return [
        answer(facts[name], asked.kind, **fill)
        for name, (asked, fill) in zip(questions.names, questions.asked, strict=True)
    ]


# --- all of it -------------------------------------------------------------------------------------------
def seconds_of(describe: Callable[[np.ndarray, np.ndarray], str], pair: CaptionedPair) -> dict[str, float]:
    """Median seconds of one caption of a pair, after a first one: by the clock on two threads (which says
    little on a machine that does other work), and of the processor on one thread."""
    before, after = _pictures(pair)
    threads = torch.get_num_threads()
    found = {}
    for name, clock, number in (("clock", time.perf_counter, 2), ("processor", time.process_time, 1)):
        torch.set_num_threads(number)
        describe(before, after)
        taken = []
        for _ in range(TIMES):
            started = clock()
            describe(before, after)
            taken.append(clock() - started)
        found[name] = statistics.median(taken)
    torch.set_num_threads(threads)
    return found


def _pictures(pair: CaptionedPair) -> list[np.ndarray]:
    """Both dates as uint8 [h, w, 3]."""
    return [np.ascontiguousarray(p.transpose(1, 2, 0)).astype(np.uint8) for p in pair.images]


def scores(data: Path, split: str, captioner: Path | None, answerer: Path | None) -> dict[str, Any]:
    """Everything that is measured on a split."""
    pairs = list(BuildingCaptions(data, split))
    questions = BuildingQuestions(data, split)
    train = BuildingQuestions(data, "train")
    describe = describer_of(CAPTIONER, captioner)
    written = [describe(*_pictures(pair)) for pair in pairs]
    maps = {
        slug: maps_of(slug, pairs, captioner if slug == CAPTIONER else None) for slug in (DETECTOR, CAPTIONER)
    }
    said = {
        CAPTIONER: written,
        **{
            f"rules on {s}": [sentences_of(BuildingFacts.of(m))[0] for m in found]
            for s, found in maps.items()
        },
        "commonest": [commonest_sentence(BuildingCaptions(data, "train"))] * len(pairs),
    }
    guess = QuestionOnly(asked for asked, _ in train.asked)
    by_kind = {
        k: Counter(a.answer for a, _ in train.asked if a.kind == k).most_common(1)[0][0] for k in KINDS
    }
    named = {slug: {p.name: m for p, m in zip(pairs, found, strict=True)} for slug, found in maps.items()}
    known = answerer is not None or bool(registry.card(ANSWERER).weights)
    answers = {
        **({ANSWERER: trained_answers(questions, answerer)} if known else {}),
        **{f"rules on {slug}": rules_answers(questions, found) for slug, found in named.items()},
        "constant": [by_kind[asked.kind] for asked, _ in questions.asked],
        "question only": [guess.answer(asked) for asked, _ in questions.asked],
    }
    return {
        "split": split,
        "tiles": len(pairs),
        "questions": len(questions),
        "map_f1": {slug: f1(found, pairs) for slug, found in maps.items()},
        "captions": {who: scored_sentences(s, pairs) for who, s in said.items()},
        "answers": {who: scored_answers(s, questions) for who, s in answers.items()},
        "same_called_unchanged": sum(not says_change(describe(b, b)) for b, _ in map(_pictures, pairs)),
        "seconds": seconds_of(describe, pairs[0]),
        "written": dict(zip([p.name for p in pairs], written, strict=True)),
    }


# --- the page --------------------------------------------------------------------------------------------
NAMES = {
    CAPTIONER: f"**`{CAPTIONER}`, its sentence**",
    ANSWERER: f"**`{ANSWERER}`**",
    f"rules on {DETECTOR}": f"rules on the map of `{DETECTOR}`",
    f"rules on {CAPTIONER}": f"rules on the mask of `{CAPTIONER}`",
    "commonest": "the commonest sentence of training",
    "constant": "the commonest answer to each type",
    "question only": "the commonest answer to each text (question only)",
}
COLUMNS = {
    "number": "number right",
    "size": "size right",
    "place": "place right",
    "all_right": "all three",
    "bleu4": "BLEU-4",
    "meteor_exact": "METEOR, exact",
    "rouge_l": "ROUGE-L",
    "cider_d": "CIDEr-D",
}


def tables(result: dict[str, Any]) -> str:
    """The two tables of a split in Markdown."""
    parts = [_table("sentence", result["captions"], COLUMNS, ("all_right",))]
    kinds = {"oa": "all", **{kind: kind.replace("_", " ") for kind in KINDS}}
    parts.append(_table("answers", result["answers"], kinds, ("oa",)))
    same, tiles = result["same_called_unchanged"], result["tiles"]
    parts.append(f"Of {tiles} pairs of one date twice `{CAPTIONER}` calls {same} unchanged.\n")
    f1s = " and ".join(f"{100 * v:.1f} % for `{slug}`" for slug, v in result["map_f1"].items())
    parts.append(f"F1 of the maps on these tiles: {f1s}.\n")
    return "\n".join(parts)


def _table(
    first: str, rows: dict[str, dict[str, Any]], columns: dict[str, str], bounded: Sequence[str]
) -> str:
    lines = [f"| {first} | {' | '.join(columns.values())} |", f"| --- |{' --- |' * len(columns)}"]
    for who, row in rows.items():
        cells = []
        for name in columns:
            plain = name == "cider_d"  # 0 to 10, no share
            text = f"{row[name]:.2f}" if plain else f"{100 * row[name]:.1f}"
            if name in bounded:
                low, high = row[f"{name}_interval"]
                text += f" ({100 * low:.0f} to {100 * high:.0f})"
            cells.append(text)
        lines.append(f"| {NAMES[who]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renew(page: Path, result: dict[str, Any]) -> None:
    """Puts the tables of a split into the page, between its marks."""
    begin, end = (
        f"<!-- {result['split']}: {word} (benchmarks/captioner.py) -->\n" for word in ("begin", "end")
    )
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n{tables(result)}\n{end}{after}", encoding="utf-8")


# --- shipping --------------------------------------------------------------------------------------------
def ship(runs: dict[str, Path], result: dict[str, Any]) -> None:
    """Puts the weights into `weights/` and what their cards say of them into `_trained.json`."""
    path = ROOT / "src/terralapse/_trained.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    on = f"MS-HS-BCD {result['split']}, {result['tiles']} tiles, rules-made"
    captions, answers = result["captions"][CAPTIONER], result["answers"].get(ANSWERER, {})
    figures = {}
    if CAPTIONER in runs:
        figures[CAPTIONER] = [
            _figure(f"{n} stated right", captions[n], f"{on} sentences", captions[f"{n}_interval"])
            for n in STATED
        ]
    if ANSWERER in runs:
        figures[ANSWERER] = [
            _figure("exact answers", answers["oa"], f"{on} questions", answers["oa_interval"])
        ]
    for slug, run in runs.items():
        name = f"{slug.replace('/', '-')}.safetensors"
        made = json.loads((run / "result.json").read_text(encoding="utf-8"))
        check_hash(run / "weights.safetensors", made["sha256"])
        shutil.copy(run / "weights.safetensors", ROOT / "weights" / name)
        known[slug] = {
            "weights": [{"file": name, "sha256": made["sha256"]}],
            "temperature": 1.0,
            "threshold": 0.5 if slug == CAPTIONER else None,
            "gsd_range": [2.5, 2.5],
            "licence": {"weights": WEIGHTS_LICENCE, "data": DATA_LICENCE},
            "limits": LIMITS[slug],
            "figures": figures[slug],
        }
    text = json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _figure(metric: str, value: float, dataset: str, interval: list[float]) -> dict[str, Any]:
    return {
        "metric": metric,
        "value": round(value, 3),
        "dataset": dataset,
        "protocol": PROTOCOL,
        "source": "here",
        "interval": interval,
    }


_KNOWS = (
    "Its weights know changed buildings only, of one Chinese city and two dates at 2.5 m, from 453 tiles: a "
    "start for training and a measure of what so little data gives, no reader to rely on."
)
LIMITS = {
    CAPTIONER: [
        _KNOWS,
        "It states one of few, several or many, of small, medium or large, and a ninth of the image, in one "
        "of five forms of sentence; the ninth is mostly wrong.",
        "It met ten tiles without a change, and calls two images that are the same changed.",
    ],
    ANSWERER: [
        _KNOWS,
        "It knows seven kinds of questions in two wordings each.",
    ],
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("split", choices=("val", "test"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--captioner", type=Path, help="a run whose weights to score, not the shipped ones")
    parser.add_argument("--answerer", type=Path, help="the same, of the answerer")
    parser.add_argument("--ship", action="store_true", help="put the weights of these runs into the cards")
    given = parser.parse_args()
    stated = {CAPTIONER: given.captioner, ANSWERER: given.answerer}
    runs: dict[str, Path] = {slug: run for slug, run in stated.items() if run is not None}
    weights = {slug: run / "weights.safetensors" for slug, run in runs.items()}
    result = scores(given.data, given.split, weights.get(CAPTIONER), weights.get(ANSWERER))
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    renew(ROOT / "docs/captioner.md", result)
    if given.ship:
        ship(runs, result)


if __name__ == "__main__":
    main()
