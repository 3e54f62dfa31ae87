"""All networks for change of the library, trained alike on one real data set and scored under one protocol.

    python benchmarks/compare_change.py train --data ../shared/data/cd_mshs_bcd   # one after another
    python benchmarks/compare_change.py train --data ... --only lenet/nano        # one, beside another
    python benchmarks/compare_change.py score --data ... --splits val,test
    python benchmarks/compare_change.py page --data ...                           # from what was scored

`train` follows recipes/compare-change.yaml and goes on where it was cut off. `score` runs
`terralapse bench change` once for each split with thresholds from the held-out part of the training split,
puts the counts into benchmarks/results and writes docs/compare.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from terralapse.data.catalogue import open_dataset
from terralapse.engine.fit import fit
from terralapse.engine.recipe import Recipe
from terralapse.products.bench_page import markdown
from terralapse.workflows.bench import bench_change

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes/compare-change.yaml"
RESULTS = ROOT / "benchmarks/results"
NETWORKS = {  # what else a network needs in its recipe
    "lapsenet/rgb": (),
    "changemamba/bcd-nano": (),
    "lenet/nano": (),
    "cfnet/nano": (),
    "cdmaskformer/nano": (),
    "fsg-net/nano": (),
    "mapformer/nano": ("reader_map=rules",),
    "semicd-vl/nano": (),
    "fusu/change-nano": (),
}
WITHOUT_WEIGHTS = ("ir-mad", "cva", "rcva", "pca-kmeans", "difference")
DRAWINGS = ("f1", "robustness")
WITH_OTHERS = ("lapsenet/rgb", "changemamba/bcd-nano")  # come with weights that were trained longer
MADE_FROM = "Apache-2.0 as far as it is ours to give; the training data states no licence: for research"
OF_DATA = "MS-HS-BCD: no licence stated, public research data of Gaofen-1"
LIMITS = [
    "Its weights know buildings only, of one Chinese city and two dates, at about 2.5 m, after twelve epochs "
    "from random weights: a fair comparison of structures and a start for training, no detector to rely on.",
]
SPLITS = {
    "val": "the official validation split: 30 tiles that no run has seen",
    "test": "the official test split: the 10 of its 30 tiles that are at hand",
}

HEAD = """# All change detectors, compared

Made by `python benchmarks/compare_change.py`; do not edit, run it again. Data: MS-HS-BCD, Gaofen-1 RGB of
2.5 m, new and vanished buildings on about 2.3 % of the pixels, dates in different seasons (a sample of it;
its licence is not stated: research use).

**Trained alike.** Each network saw {samples:,} crops of {size} x {size} pixels ({epochs} epochs of the same
{tiles} tiles in the same order, batch {batch}, one rate of learning), from random weights, on a CPU:
`recipes/compare-change.yaml`. {held} tiles of the training split were held out to choose the epoch and the
threshold; val and test judge only. Networks are in their small sizes where a CPU demands it (`nano`: the
structure of the paper, narrower), so that the table compares *structures with little training*, not the
papers' results: with the papers' sizes, encoders trained on ImageNet and hundreds of epochs the order can
be another. `lapsenet/rgb` and `changemamba/bcd-nano` are here retrained like the others; the weights that
come with the library are of other runs: those of `lapsenet/rgb` saw more data ([Scores](scores.md)). The
weights of all others come with the library as they are here (folder `weights`). `mapformer/nano` gets a
map made by fixed rules from the earlier image (`--before-map rules`), no map of the land; `semicd-vl/nano`
is trained with all labels, so without what it is for ([few labels](semi-supervised.md)); `fusu/change-nano`
is the change head of FUSU alone. Not in the table: DynamicVis and Mamba-FCS, which have no size that two
CPU cores can train; the methods without weights need no training and flag every difference.

"""


def folder(runs: Path, slug: str) -> Path:
    """Of one run."""
    return runs / slug.replace("/", "-")


def train(data: Path, runs: Path, only: list[str]) -> None:
    """Trains what is not trained yet."""
    for slug, more in NETWORKS.items():
        out = folder(runs, slug)
        if (only and slug not in only) or (out / "result.json").exists():
            continue
        recipe = Recipe.read(RECIPE, [f"model={slug}", *more])
        fit(recipe, data, out, resume=(out / "last.ckpt").exists())
        print(slug, json.loads((out / "result.json").read_text())["validation"]["binary"]["f1"], flush=True)


def score(data: Path, runs: Path, splits: list[str]) -> None:
    """Runs the benchmark on each split and writes the page."""
    trained = [s for s in NETWORKS if (folder(runs, s) / "weights.safetensors").exists()]
    models = [f"{s}={folder(runs, s) / 'weights.safetensors'}" for s in trained] + list(WITHOUT_WEIGHTS)
    results: dict[str, dict[str, Any]] = {}
    for split in splits:
        out = runs / f"bench-{split}"
        results[split] = bench_change(
            out,
            overwrite=True,
            say=print,
            data="mshs-bcd",
            root=data,
            models=tuple(models),
            split=split,
            threshold="val",
            val_split="train-held",
            options={"holdout": Recipe.read(RECIPE).holdout, "map": "rules"},
        )
        for name in ("bench.json", "log.jsonl"):
            shutil.copy(out / name, RESULTS / f"compare_{split}.{name.partition('.')[2]}")
        for drawing in DRAWINGS:
            shutil.copy(out / f"{drawing}.svg", ROOT / "docs/img" / f"compare-{split}-{drawing}.svg")
    (ROOT / "docs/compare.md").write_text(page(results, data), encoding="utf-8")
    ship(runs, trained, results)


def pages(runs: Path, data: Path, splits: list[str]) -> None:
    """Writes page and cards again from what was scored."""
    trained = [s for s in NETWORKS if (folder(runs, s) / "weights.safetensors").exists()]
    results = {s: json.loads((RESULTS / f"compare_{s}.json").read_text()) for s in splits}
    (ROOT / "docs/compare.md").write_text(page(results, data), encoding="utf-8")
    ship(runs, trained, results)


def ship(runs: Path, trained: list[str], results: dict[str, dict[str, Any]]) -> None:
    """Puts the weights of the systems that come with none into the folder `weights`, and what their cards say
    of them into `_trained.json`."""
    path = ROOT / "src/terralapse/_trained.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    for slug in trained:
        if slug in WITH_OTHERS:
            continue
        source, name = folder(runs, slug), f"{slug.replace('/', '-')}.safetensors"
        record = json.loads((source / "result.json").read_text())
        shutil.copy(source / "weights.safetensors", ROOT / "weights" / name)
        found[slug] = {
            "weights": [{"file": name, "sha256": record["sha256"]}],
            "temperature": record["calibration"]["temperature"],
            "threshold": record["validation"]["binary"]["threshold"],
            "gsd_range": [0.5, 5.0],
            "licence": {"weights": MADE_FROM, "data": OF_DATA},
            "limits": LIMITS,
            "figures": [figure(slug, split, result) for split, result in results.items()],
        }
    text = json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def figure(slug: str, split: str, result: dict[str, Any]) -> dict[str, Any]:
    """The score of one split as a card states it."""
    model = next(m for m in result["models"] if m["slug"] == slug)
    whole = model["whole"]
    return {
        "metric": "change F1",
        "value": round(whole["micro"]["f1"], 3),
        "dataset": f"MS-HS-BCD {split}, Gaofen-1 RGB 2.5 m",
        "protocol": "`terralapse bench change`: whole tiles, counts summed over the set, the threshold from "
        "held-out training tiles, interval by bootstrap over tiles",
        "source": "here",
        "interval": [round(x, 3) for x in whole["f1_interval_95"]],
    }


def page(results: dict[str, dict[str, Any]], data: Path) -> str:
    """docs/compare.md."""
    recipe = Recipe.read(RECIPE)
    tiles, held = (
        len(open_dataset("mshs-bcd", data, part, holdout=recipe.holdout))
        for part in ("train-rest", "train-held")
    )
    text = HEAD.format(
        samples=recipe.epochs * (tiles // recipe.batch) * recipe.batch,
        size=recipe.size,
        epochs=recipe.epochs,
        tiles=tiles,
        batch=recipe.batch,
        held=held,
    )
    for split, result in results.items():
        body = re.sub(r"^(#+) ", r"#\1 ", markdown(result), flags=re.M).replace("=weights.safetensors", "")
        others = "|".join(WITHOUT_WEIGHTS)  # of the 91 pairs the page keeps those of two networks
        body = re.sub(rf"^\| (\S+ \| ({others})|({others}) \| \S+) \| [+−].*\n", "", body, flags=re.M)
        text += f"## On {SPLITS[split]}\n\n"
        text += f"![F1 and its interval](img/compare-{split}-f1.svg)\n\n"
        text += body.partition("\n")[2].strip() + "\n\n"
        text += f"![Loss under perturbations](img/compare-{split}-robustness.svg)\n\n"
    return text.rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["train", "score", "page"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"))
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--splits", default=",".join(SPLITS))
    given = parser.parse_args()
    if given.what == "train":
        train(given.data, given.runs, given.only)
    elif given.what == "page":
        pages(given.runs, given.data, given.splits.split(","))
    else:
        score(given.data, given.runs, given.splits.split(","))


if __name__ == "__main__":
    main()
