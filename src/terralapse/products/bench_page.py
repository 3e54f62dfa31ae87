"""The files of a benchmark that people read: `index.html`, `bench.md` and plots, all from `bench.json`."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from terralapse.products import bench_charts, bench_words
from terralapse.products.bench_words import percent


def write_bench(result: dict[str, Any], folder: Path) -> None:
    """Writes everything but `bench.json` and `log.jsonl` from the content of the former."""
    plots = drawings(result)
    for name, drawing in plots.items():
        (folder / f"{name}.svg").write_text(str(drawing) + "\n", encoding="utf-8")
    (folder / "bench.md").write_text(markdown(result), encoding="utf-8")
    (folder / "index.html").write_text(page(result, plots), encoding="utf-8")


def drawings(result: dict[str, Any]) -> dict[str, Markup]:
    """Name of the file to the drawing."""
    order, disturbed = bench_words.ranked(result), result["perturbations"]
    found = {
        "f1": bench_charts.f1_chart(order),
        "speed": bench_charts.speed_chart(order),
        "objects": bench_charts.sizes_chart(order),
    }
    if disturbed:
        found["robustness"] = bench_charts.drops_chart(order, disturbed)
    if (shifts := bench_charts.shift_chart(order, disturbed)) is not None:
        found["misregistration"] = shifts
    return found


def page(result: dict[str, Any], plots: dict[str, Markup]) -> str:
    """One page that loads nothing: its one script is allowed by its hash, and no connection is."""
    environment = Environment(
        loader=PackageLoader("terralapse.products", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = _asset("bench.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("bench.html").render(
        result=result,
        css=Markup(_asset("report.css") + _asset("bench.css")),
        js=Markup(script),
        js_hash=digest,
        plots=plots,
        **_words(result),
    )


def _asset(name: str) -> str:
    return resources.files("terralapse.products").joinpath("templates", name).read_text(encoding="utf-8")


def _words(result: dict[str, Any]) -> dict[str, Any]:
    """What both the page and the Markdown say."""
    return {
        "advice": bench_words.advice(result),
        "cautions": bench_words.cautions(result),
        "modes": bench_words.modes(result),
        "scores": scores(result),
        "costs": costs(result),
        "tests": tests(result),
        "fell": fell(result),
        "objects": objects(result),
        "means": means(result),
        "selections": selections(result),
        "protocol": protocol(result),
        "licences": licences(result),
    }


# --- tables: a head, and rows of (text, sort key) ---------------------------------------------------
Table = dict[str, Any]


def _table(head: list[str], rows: list[list[tuple[str, float | str]]]) -> Table:
    return {"head": head, "rows": rows}


def _of(value: float | None, digits: int = 1, scale: float = 100.0) -> tuple[str, float]:
    return ("–", float("-inf")) if value is None else (f"{scale * value:.{digits}f}", value)


def _between(ends: list[float] | None) -> tuple[str, float]:
    return ("–", float("-inf")) if ends is None else (f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}", ends[0])


def scores(result: dict[str, Any]) -> Table:
    """Scores of whole images, and the F1 of tiles where it can differ."""
    tiled = not result["protocol"]["whole_and_tiles_coincide"]
    head = ["model", "F1", "95 % interval", "IoU", "precision", "recall", "OA", "kappa", "boundary F1", "ECE"]
    head += [f"F1 in tiles of {result['protocol']['tile']}", "95 % interval"] if tiled else []
    rows = []
    for m in bench_words.ranked(result):
        whole, micro = m["whole"], m["whole"]["micro"]
        row: list[tuple[str, float | str]] = [(m["name"], m["name"])]
        row += [_of(micro["f1"]), _between(whole["f1_interval_95"])]
        row += [_of(micro[r]) for r in ("iou", "precision", "recall", "oa", "kappa")]
        row += [_of(whole["boundary_f1"]), _of(whole["ece"], 2)]
        if tiled:
            row += [_of(m["tiled"]["micro"]["f1"]), _between(m["tiled"]["f1_interval_95"])]
        rows.append(row)
    return _table(head, rows)


def means(result: dict[str, Any]) -> Table:
    """Means over images."""
    ratios = ("f1", "iou", "precision", "recall", "oa", "kappa")
    head = [
        "model",
        "mean F1",
        "images",
        "mean IoU",
        "mean precision",
        "mean recall",
        "mean OA",
        "mean kappa",
    ]
    rows = []
    for m in bench_words.ranked(result):
        mean = m["whole"]["mean_per_image"]
        row: list[tuple[str, float | str]] = [(m["name"], m["name"])]
        row += [_of(mean[r]) for r in ratios]
        row.insert(2, (str(mean["f1_images"]), mean["f1_images"]))
        rows.append(row)
    return _table(head, rows)


def costs(result: dict[str, Any]) -> Table:
    """Speed and size."""
    head = [
        "model", "MPix/s", "s an image to fit", "parameters", "GMAC a pair", "GFLOP a pair", "peak MB a pair",
    ]  # fmt: skip
    rows = []
    for m in bench_words.ranked(result):
        cost = m["cost"]
        row: list[tuple[str, float | str]] = [(m["name"], m["name"])]
        row += [(f"{m['megapixels_a_second']:.3g}", m["megapixels_a_second"])]
        row += [(f"{m['fit_seconds_an_image']:.3f}", m["fit_seconds_an_image"])]
        row += [(f"{cost['parameters']:,}" if cost["parameters"] else "none", cost["parameters"])]
        row += [_of(cost["macs"], 2, 1e-9), _of(cost["flops"], 2, 1e-9), _of(cost["peak_bytes"], 0, 1e-6)]
        rows.append(row)
    return _table(head, rows)


def fell(result: dict[str, Any]) -> Table:
    """F1 under each perturbation, with the points that it lost."""
    head = ["model", "undisturbed", *(p["title"] for p in result["perturbations"])]
    rows = []
    for m in bench_words.ranked(result):
        row: list[tuple[str, float | str]] = [(m["name"], m["name"]), _of(m["whole"]["micro"]["f1"])]
        for r in m["robustness"]:
            if r["f1"] is None:
                row.append(("–", float("-inf")))
                continue
            lost = "" if r["drop"] is None else f" ({-100 * r['drop']:+.1f})".replace("-", "−")
            row.append((f"{100 * r['f1']:.1f}{lost}", r["f1"]))
        rows.append(row)
    return _table(head, rows)


def objects(result: dict[str, Any]) -> Table:
    """Labelled objects found, by size."""
    sizes = result["models"][0]["whole"]["objects"]
    head = ["model", *(bench_charts.size_class(sizes, i) for i in range(len(sizes)))]
    rows = []
    for m in bench_words.ranked(result):
        row: list[tuple[str, float | str]] = [(m["name"], m["name"])]
        for o in m["whole"]["objects"]:
            row.append(
                ("–", float("-inf"))
                if o["recall"] is None
                else (f"{percent(o['recall'])} ({o['found']} of {o['all']})", o["recall"])
            )
        rows.append(row)
    return _table(head, rows)


def tests(result: dict[str, Any]) -> Table:
    """Every pair of models."""
    head = ["first", "second", "F1 of first minus second", "95 % interval", "p", "p, corrected", "in words"]
    rows = []
    for t in result["tests"]:
        p, corrected = t["p"], t["p_holm"]
        if corrected is None:
            words = "cannot be tested"
        elif corrected >= bench_words.ALPHA:
            words = "not told apart"
        else:
            words = f"{t['first'] if t['difference'] > 0 else t['second']} is better"
        ends = t["interval_95"]
        rows.append(
            [
                (t["first"], t["first"]),
                (t["second"], t["second"]),
                ("–", float("-inf"))
                if t["difference"] is None
                else (f"{100 * t['difference']:+.1f}".replace("-", "−"), t["difference"]),
                ("–", float("-inf"))
                if ends is None
                else (f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}".replace("-", "−"), ends[0]),
                ("–", 2.0) if p is None else (f"{p:.4f}", p),
                ("–", 2.0) if corrected is None else (f"{corrected:.4f}", corrected),
                (words, words),
            ]
        )
    return _table(head, rows)


def selections(result: dict[str, Any]) -> Table:
    """What was frozen before the test split was opened."""
    head = ["model", "weights", "digest of the tensors", "threshold", "chosen", "temperature", "date order"]
    rows = []
    for m in bench_words.ranked(result):
        own = m["threshold"] is None
        words = {
            "card": "by its card",
            "training": "by its training",
            "val": "on the validation split",
            "each image": "in each image",
        }
        rows.append(
            [
                (m["name"], m["name"]),
                (m["weights"], m["weights"]),
                (m["weights_sha256"][:16] or "–", m["weights_sha256"]),
                ("its own" if own else f"{m['threshold']:.2f}", -1.0 if own else m["threshold"]),
                (words[m["threshold_from"]], m["threshold_from"]),
                (f"{m['temperature']:.3g}", m["temperature"]),
                (m["date_order"] or "–", m["date_order"] or ""),
            ]
        )
    return _table(head, rows)


def licences(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Of the data, and of the weights of each model that has some."""
    rows = [(result["data"]["title"], result["data"]["licence"])]
    return rows + [
        (m["name"], m["licences"]["weights"] or "not stated") for m in result["models"] if m["learned"]
    ]


def protocol(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The protocol, item by item."""
    data, how = result["data"], result["protocol"]
    chosen = (
        "that of each card; a model without weights finds its own in each image"
        if how["threshold"] == "card"
        else f"the best F1 on the split {how['threshold_split']}, in steps of 0.005, for every model"
    )
    gsd = "not known" if data["gsd"] is None else f"{data['gsd']:g} m"
    share = data["changed_pixels"] / max(data["pixels"], 1)
    data_text = (
        f"{data['title']}: {data['images']} of {data['available']} images, pixel {gsd}, "
        f"{', '.join(data['bands'])}; {percent(share)} of the pixels changed. {data['notes']}"
    )
    return [
        ("Data", data_text),
        (
            "Fed",
            "Each image by itself, as `terralapse change` feeds a scene of that size. "
            + bench_words.modes(result),
        ),
        ("Threshold", f"{chosen}."),
        (
            "Scores",
            "Counts of the change class are summed over the images before any ratio is taken; pixels without "
            "a label, or without data at one date, are left out. Means per image stand in a table of their "
            "own. What is 0/0 is shown as a dash.",
        ),
        (
            "Boundary F1",
            f"Outline pixels with a partner within {how['outline_tolerance_pixels']:g} pixels.",
        ),
        ("Objects", "8-connected patches of labelled change; found when at least half of one is marked."),
        (
            "ECE",
            "Mean distance between probability and share that changed, in 15 bins; where change is rare, a "
            "model that always says no has a low one.",
        ),
        (
            "Intervals",
            f"95 % of {how['bootstrap_samples']} bootstrap draws of images, seed {how['seed']}; the same "
            "draws for all models.",
        ),
        (
            "Tests",
            "F1 of two models on the same images: the interval of the paired bootstrap, and a two-sided p by "
            "exchanging the two on whole images (all exchanges up to 12 images, else 10,000 at random), "
            "corrected by Holm over all pairs.",
        ),
        (
            "Perturbations",
            "Of the later date alone, on whole images, with the thresholds of the undisturbed run; the label "
            "stays. Values are 0..255; in other units the 2nd and 98th percentile of the pair stand for 0 "
            "and 255.",
        ),
        (
            "Costs",
            "Of one pair of 256 × 256 pixels. MACs are multiply-adds of convolutions and matrix products, "
            "FLOPs twice that; scans, interpolation and normalisation are not counted. Peak is the most that "
            "tensors hold at one time, without weights. MPix/s is the median over images of prediction "
            f"alone, {how['threads']} thread{'s' if how['threads'] > 1 else ''}, {how['device']}.",
        ),
        (
            "Opened once",
            "Models, weights, thresholds and temperatures were written to the log before the test split was "
            "opened; each sample was then read once and given to every model. The log (log.jsonl) is chained "
            "by hashes: `terralapse bench verify` checks it. "
            + bench_words.openings(result["opened_before"]),
        ),
    ]


# --- Markdown --------------------------------------------------------------------------------------
def markdown(result: dict[str, Any]) -> str:
    """The same content as the page, without the drawings."""
    words = _words(result)
    mark = " (quick look)" if result["data"]["limited"] else ""
    parts = [
        f"# Change detectors on {result['data']['title']}{mark}",
        f"Run {result['run']}, {result['started'][:10]}, terralapse {result['terralapse']}.",
        "## What to choose",
        "\n".join(f"- {s}" for s in words["advice"]),
        "## Read this first",
        "\n".join(f"- {s}" for s in words["cautions"]),
        "## Scores, per cent",
        words["modes"],
        _md(words["scores"]),
        "## Paired tests",
        _md(words["tests"]),
        "## Under perturbations: F1 (change)",
        _md(words["fell"]),
        "\n".join(f"- {p['title']}: {p['definition']}" for p in result["perturbations"]),
        "## Objects found, by size",
        _md(words["objects"]),
        "## Means per image, per cent",
        _md(words["means"]),
        "## Costs",
        _md(words["costs"]),
        "## Frozen before the test split was opened",
        _md(words["selections"]),
        "## Protocol",
        "\n".join(f"- **{name}.** {text}" for name, text in words["protocol"]),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _md(table: Table) -> str:
    lines = [table["head"], ["---"] * len(table["head"])]
    lines += [[text for text, _ in row] for row in table["rows"]]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines)
