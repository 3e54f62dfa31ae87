"""What a benchmark says, in plain sentences that follow from its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ALPHA = 0.05
FEW = 30  # images: below, intervals by bootstrap are too narrow
CLOSE = 0.03  # of F1: what somebody in a hurry may give away


def ranked(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The models by F1 of whole images, best first; without one last."""
    return sorted(result["models"], key=lambda m: -1.0 if (f := f1(m)) is None else f, reverse=True)


def f1(model: dict[str, Any]) -> float | None:
    """F1 of change on whole images."""
    return model["whole"]["micro"]["f1"]


def tested(result: dict[str, Any], first: str, second: str) -> dict[str, Any] | None:
    """The paired test of two models, whichever way round it was made."""
    for test in result["tests"]:
        if {test["first"], test["second"]} == {first, second}:
            return test
    return None


def peers(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The model of the highest F1, and those that the test cannot tell from it (Holm p of 0.05 or more)."""
    order = ranked(result)
    best = order[0]
    same = [best]
    for other in order[1:]:
        test = tested(result, best["name"], other["name"])
        if f1(other) is not None and (test is None or test["p_holm"] is None or test["p_holm"] >= ALPHA):
            same.append(other)
    return same


def advice(result: dict[str, Any]) -> list[str]:
    """What to choose and why: sentences for somebody who has to decide."""
    order = [m for m in ranked(result) if f1(m) is not None]
    if not order:
        return ["Nothing was labelled as change and nothing found: these images cannot rank the models."]
    best, said = order[0], []
    said.append(f"{best['name']} has the highest F1: {_f1(best)}.")
    if len(order) > 1:
        said.append(_told_apart(result, order, peers(result)))
        close = [m for m in order if (f1(best) or 0.0) - (f1(m) or 0.0) <= CLOSE]
        quick = max(close, key=lambda m: m["megapixels_a_second"])
        if quick is not best:
            times = quick["megapixels_a_second"] / max(best["megapixels_a_second"], 1e-9)
            said.append(
                f"Within {100 * CLOSE:g} points of it, {quick['name']} is the fastest ({times:.1f} times as "
                "fast): take it where time matters."
            )
    said += _precision(order)
    said += _steadiest(result, order)
    said += _calibrated(order)
    return said


def _told_apart(
    result: dict[str, Any], order: Sequence[dict[str, Any]], same: Sequence[dict[str, Any]]
) -> str:
    others = [m["name"] for m in same[1:]]
    if not others:
        return (
            f"It is better than each of the others by the paired test (p below {ALPHA:g} after correction)."
        )
    images = result["data"]["images"]
    number = len(others) == len(order) - 1
    whom = "any of the others" if number and len(others) > 1 else listed(others, "or")
    least = 2 / 2**images * max(len(result["tests"]), 1)
    few = images <= 12 and least >= ALPHA
    why = (
        f" With {images} images and {len(result['tests'])} comparisons no difference, however large, could "
        "pass the test."
        if few
        else " The ranking among them may be chance."
    )
    return f"These {images} images do not tell it from {whom} (p of {ALPHA:g} or more after correction).{why}"


def _precision(order: Sequence[dict[str, Any]]) -> list[str]:
    def most(ratio: str) -> dict[str, Any]:
        return max(order, key=lambda m: m["whole"]["micro"][ratio] or 0.0)

    exact, complete = most("precision"), most("recall")
    return [
        f"Fewest false alarms among what it marks: {exact['name']} (precision "
        f"{percent(exact['whole']['micro']['precision'])}). Fewest misses: {complete['name']} (recall "
        f"{percent(complete['whole']['micro']['recall'])}, at a precision of "
        f"{percent(complete['whole']['micro']['precision'])})."
    ]


def _steadiest(result: dict[str, Any], order: Sequence[dict[str, Any]]) -> list[str]:
    """The worst fall of the best model, and what a shift of two pixels does."""
    slugs = [p["slug"] for p in result["perturbations"]]
    titles = {p["slug"]: p["title"] for p in result["perturbations"]}
    said = []
    best = order[0]
    falls = [r for r in best["robustness"] if r["drop"] is not None]
    if falls:
        worst = max(falls, key=lambda r: r["drop"])
        if worst["drop"] > 0:
            said.append(
                f'What hurts {best["name"]} most is "{titles[worst["perturbation"]]}": '
                f"{100 * worst['drop']:.1f} points of F1."
            )
    if "shift-2" in slugs:
        at = slugs.index("shift-2")
        left = [(m["robustness"][at]["f1"], m) for m in order if m["robustness"][at]["f1"] is not None]
        if left:
            value, model = max(left, key=lambda pair: pair[0])
            said.append(
                f"If the dates may be misaligned by two pixels, {model['name']} keeps the highest F1 "
                f"({percent(value)})."
            )
    return said


def _calibrated(order: Sequence[dict[str, Any]]) -> list[str]:
    known = [m for m in order if m["whole"]["ece"] is not None]
    if not known:
        return []
    best = min(known, key=lambda m: m["whole"]["ece"])
    return [
        f"The probabilities nearest to frequencies are those of {best['name']} (calibration error "
        f"{100 * best['whole']['ece']:.1f} points)."
    ]


def cautions(result: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers."""
    data, said = result["data"], []
    if data["limited"]:
        said.append(
            f"A quick look: only {data['images']} of {data['available']} images were scored. Do not cite it."
        )
    if data["images"] < FEW:
        said.append(
            f"Only {data['images']} images: intervals are too narrow with so few, and tests see only large "
            "differences."
        )
    said.append(openings(result["opened_before"]))
    if result["protocol"]["threshold"] == "card":
        said.append(
            "Thresholds are those of the cards; they were not chosen for these data (see --threshold val)."
        )
    for m in result["models"]:
        low, high = m["gsd_range"] or (0.0, float("inf"))
        if data["gsd"] is not None and not low <= data["gsd"] <= high:
            said.append(
                f"{m['name']} was made for pixels of {low:g} to {high:g} m, and these have {data['gsd']:g} m."
            )
    if any(r["f1"] is None for m in result["models"] for r in m["robustness"] if m["takes_map"]):
        said.append("Models that take a map of the earlier date were not run with exchanged dates.")
    return said


def openings(before: int) -> str:
    """How often the test split had been opened, in words."""
    if before == 0:
        return "On this machine no other run of this benchmark has opened this test split before."
    times = "once" if before == 1 else "twice" if before == 2 else f"{before} times"
    return (
        f"On this machine this test split was opened {times} before this run. Whatever was changed since "
        "then may have been chosen on it, and its scores are then too good."
    )


def modes(result: dict[str, Any]) -> str:
    """How the images were fed, and whether tiles made a difference."""
    tile = result["protocol"]["tile"]
    if result["protocol"]["whole_and_tiles_coincide"]:
        return (
            f"No image is larger than a tile of {tile} pixels: the scores of whole images and of tiles are "
            "the same."
        )
    return (
        f"Tiles of {tile} pixels without overlap were cut from each image, predicted by themselves and put "
        "together again."
    )


def listed(names: Sequence[str], word: str = "and") -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def percent(value: float | None) -> str:
    """A ratio as per cent; a dash for 0/0."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _f1(model: dict[str, Any]) -> str:
    ends = model["whole"]["f1_interval_95"]
    between = "" if ends is None else f" (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return f"{percent(f1(model))}{between}"
