"""What is counted while a system of some task runs over labelled data, and the scores that follow from it.

A measure is a torchmetrics metric: integer counts that are summed over batches and processes, and ratios of
the sums. It serves validation during training and `terralapse score` alike. Every score stands under the
name of its protocol (`scd_p7` and `scd_p37` cannot be compared, nor can the two scorers of damage).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from terralapse.cards import Task
from terralapse.data.pairs import IGNORE
from terralapse.errors import SystemNotReadyError
from terralapse.tasks.caption_metrics import caption_scores
from terralapse.tasks.captions import MaskedCaptionOutput, counted_sentences, read_sentences
from terralapse.tasks.change import ChangeOutput
from terralapse.tasks.classification import ClassificationOutput
from terralapse.tasks.confusion import confusion_counts
from terralapse.tasks.damage import GRADES, DamageOutput
from terralapse.tasks.metrics import (
    binary_scores,
    damage_scores,
    expected_calibration_error,
    macro_scores,
    segmentation_scores,
    semantic_scores,
)
from terralapse.tasks.retrieval import RetrievalOutput
from terralapse.tasks.retrieval_metrics import hit_rate, mean_recall, median_rank
from terralapse.tasks.segmentation import SegmentationOutput
from terralapse.tasks.semantic_change import FullMapsOutput, SemanticChangeOutput, semantic_target

Scores = dict[str, dict[str, Any]]
BINS = 200  # of a probability: thresholds are steps of 0.005, as `prob.tif` stores it
ECE_BINS = 50  # of those, 4 each


class Measure(Metric):
    """Counts over outputs and targets of one task. `monitor` names what training maximises, as
    `<protocol>.<score>`; `sums` says whether counts of images add up, number by number."""

    full_state_update = False
    monitor: str
    sums = True

    def add_counts(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """A state of zeros that is summed over processes."""
        self.add_state(name, torch.zeros(*shape, dtype=dtype), dist_reduce_fx="sum")

    def counts(self) -> dict[str, np.ndarray]:
        """The states as arrays; `joined` brings those of images together, and `scores` takes them."""
        return {name: getattr(self, name).cpu().numpy() for name in self._defaults}

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The counts of several images together."""
        return {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}

    @abstractmethod
    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        """Protocol to its scores, from counts."""

    def compute(self) -> Scores:
        """The scores of everything counted so far."""
        return self.scores(self.counts())

    def main_score(self, scores: Scores) -> float:
        """What training maximises; -1 where it is not defined."""
        protocol, _, name = self.monitor.partition(".")
        value = scores[protocol][name]
        return -1.0 if value is None or value != value else float(value)


class ChangeMeasure(Measure):
    """Binary change. `binary` holds the scores at `threshold`, or at the best threshold of these very data
    when it is None: right on a validation split, an oracle anywhere else, and the result says which."""

    monitor = "binary.f1"
    histogram: Tensor

    def __init__(self, threshold: float | None = None, temperature: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.threshold, self.temperature = threshold, temperature
        self.add_counts("histogram", 2, BINS)
        self.add_counts("probability", 2, BINS, dtype=torch.float64)
        self.add_counts("decided", 2, 2)

    def update(self, output: Any, target: Mapping[str, Tensor]) -> None:
        """Counts a batch of outputs that can be asked for their change."""
        found: ChangeOutput = output.change()
        p = found.probability(self.temperature)
        known = target["label"] != IGNORE
        label, p = target["label"][known].long(), p[known]
        place = label * BINS + (p * BINS).long().clamp(0, BINS - 1)
        self.histogram += torch.bincount(place, minlength=2 * BINS).view(2, BINS)
        self.probability += torch.bincount(place, p.double(), minlength=2 * BINS).view(2, BINS)  # pyright: ignore
        if self.threshold is not None:
            self.decided += confusion_counts(label, p >= self.threshold, 2)  # pyright: ignore[reportOperatorIssue]

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        still, changed = counts["histogram"]
        if self.threshold is None:
            # Entry i: calls and hits when everything from the lower edge of bin i on counts as change.
            hits, false = (row[::-1].cumsum()[::-1] for row in (changed, still))
            f1 = 2 * hits / np.maximum(2 * hits + false + (changed.sum() - hits), 1)
            at = int(f1[1:].argmax()) + 1
            threshold, chosen = at / BINS, "best of these data"
            matrix = np.array(
                [[still.sum() - false[at], false[at]], [changed.sum() - hits[at], hits[at]]], np.int64
            )
        else:
            threshold, chosen, matrix = self.threshold, "given", counts["decided"]
        table = np.stack([still + changed, counts["probability"].sum(axis=0), changed]).astype(np.float64)
        table = table.reshape(3, ECE_BINS, -1).sum(axis=2)
        return {
            "binary": {
                **binary_scores(matrix).as_dict(),
                "threshold": threshold,
                "threshold_chosen": chosen,
                "ece": expected_calibration_error(table),
            }
        }


def fusu_release_scores(matrix: np.ndarray) -> dict[str, Any]:
    """The score that comes with FUSU, of an int [K + 1, K + 1] matrix of the full maps of both dates.

    It is a score of segmentation: unchanged places count like others, and class 0 is "not labelled".
    `miou_binary` is that of labelled or not, `sek` the kappa without the pixels that are neither in the label
    nor in the prediction, times its exponent; `score` their mean. `iou` and its mean `miou` are of 1..K among
    the pixels that are labelled.
    """
    both = semantic_scores(matrix)
    classes = segmentation_scores(matrix[1:, 1:])
    return {
        "score": 0.5 * both.miou + 0.5 * both.sek,
        "miou_binary": both.miou,
        "sek": both.sek,
        "miou": classes.miou,
        "iou": classes.iou,
    }


class SemanticChangeMeasure(Measure):
    """Semantic change by both protocols, and its binary part. `oa` is the mean over images of the pixel
    accuracy, as the published scorers take it.

    Where the target holds full maps (`label` beside `before` and `after`), both sides are zero where they say
    "unchanged" before these protocols count them, and `fusu_release` scores the full maps.
    """

    monitor = "scd_p7.sek"

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes  # without "unchanged"
        self.add_counts("per_date", classes + 1, classes + 1)
        self.add_counts("from_to", classes**2 + 1, classes**2 + 1)
        self.add_counts("binary", 2, 2)
        self.add_counts("accuracy", 3, dtype=torch.float64)  # per date, from-to, images
        self.add_counts("full", classes + 1, classes + 1)

    def update(self, output: SemanticChangeOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch; a pixel that either date ignores is left out of everything."""
        labels = target["before"].long(), target["after"].long()
        guesses = output.maps()
        changed = semantic_target(*labels)
        if "label" in target:
            if isinstance(output, FullMapsOutput):
                self._count_full(output, labels)
            changed = torch.where(changed == IGNORE, IGNORE, target["label"].long())
            labels = labels[0] * (changed == 1), labels[1] * (changed == 1)
        for image in range(len(changed)):
            known = changed[image] != IGNORE
            truth = [x[image][known] for x in labels]
            guess = [x[image][known] for x in guesses]
            k = self.classes
            for t, g in zip(truth, guess, strict=True):
                self.per_date += confusion_counts(t, g, k + 1)  # pyright: ignore[reportOperatorIssue]
            joint = [
                torch.where((a > 0) & (b > 0), (a - 1) * k + b, torch.zeros_like(a))
                for a, b in (truth, guess)
            ]
            self.from_to += confusion_counts(joint[0], joint[1], k * k + 1)  # pyright: ignore
            self.binary += confusion_counts(changed[image][known], guess[0] > 0, 2)  # pyright: ignore
            if known.any():
                right = [float((t == g).double().mean()) for t, g in zip(truth, guess, strict=True)]
                one = [sum(right) / 2, float((joint[0] == joint[1]).double().mean()), 1.0]
                self.accuracy += torch.tensor(one, dtype=torch.float64, device=self.device)  # pyright: ignore

    def _count_full(self, output: FullMapsOutput, labels: tuple[Tensor, Tensor]) -> None:
        for truth, guess in zip(labels, output.full_maps(), strict=True):
            known = truth != IGNORE
            self.full += confusion_counts(truth[known], guess[known], self.classes + 1)  # pyright: ignore

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        per_date, joint, images = counts["accuracy"]
        oa = [float(x / images) if images else float("nan") for x in (per_date, joint)]
        full = {"fusu_release": fusu_release_scores(counts["full"])} if counts["full"].any() else {}
        return {
            "scd_p7": {**semantic_scores(counts["per_date"]).as_dict(), "oa": oa[0]},
            "scd_p37": {**semantic_scores(counts["from_to"]).as_dict(), "oa": oa[1]},
            "binary": binary_scores(counts["binary"]).as_dict(),
            **full,
        }


class DamageMeasure(Measure):
    """Building damage by the official scorer of xView2 and by the evaluation of ChangeMamba."""

    monitor = "xview2_official.f1"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_counts("located", 2, 2)
        self.add_counts("official", 5, 5)
        self.add_counts("unmasked", 5, 5)

    def update(self, output: DamageOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch; damage only where its label is a building."""
        building, damage = output.maps()
        known = target["building"] != IGNORE
        self.located += confusion_counts(target["building"][known], building[known], 2)  # pyright: ignore
        graded = (target["damage"] > 0) & (target["damage"] != IGNORE)
        truth, guess, standing = target["damage"][graded], damage[graded], building[graded]
        self.official += confusion_counts(truth, guess * standing, 5)  # pyright: ignore[reportOperatorIssue]
        self.unmasked += confusion_counts(truth, guess, 5)  # pyright: ignore[reportOperatorIssue]

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        located = counts["located"]
        both = {
            "xview2_official": damage_scores(located, counts["official"], "xview2"),
            "changemamba_damage": damage_scores(located, counts["unmasked"], "changemamba"),
        }
        found: Scores = {}
        for name, scores in both.items():
            by_class = dict(zip(GRADES, scores.pop("f1_by_class"), strict=True))
            found[name] = {**scores, **{f"f1_{grade}": f1 for grade, f1 in by_class.items()}}
        return found


class SegmentationMeasure(Measure):
    """One class for each pixel; `excluded` class ids are left out of the means (clutter, for example)."""

    monitor = "segmentation.miou"

    def __init__(self, classes: int, excluded: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(**options)
        self.classes, self.excluded = classes, excluded
        self.add_counts("matrix", classes, classes)

    def update(self, output: SegmentationOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch."""
        known = target["label"] != IGNORE
        self.matrix += confusion_counts(target["label"][known], output.map()[known], self.classes)  # pyright: ignore

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        return {"segmentation": segmentation_scores(counts["matrix"], self.excluded).as_dict()}


class ClassificationMeasure(Measure):
    """One class for each image: accuracy, and macro means over the classes."""

    monitor = "macro.f1"

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.add_counts("matrix", classes, classes)

    def update(self, output: ClassificationOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch; a target of shares counts as its largest class."""
        label = target["label"]
        label = label if label.ndim == 1 else label.argmax(dim=1)
        self.matrix += confusion_counts(label, output.logits.argmax(dim=1), self.classes)  # pyright: ignore

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        return {"macro": macro_scores(counts["matrix"]).as_dict()}


class CaptionMeasure(Measure):
    """Sentences about pairs of dates, and the mask beside them where there is one.

    `captions` holds every score of the whole corpus, with its tokens as ids of the vocabulary; `changed` and
    `unchanged` those of its two parts, by what the first reference says; `segmentation` those of the mask.
    `change_or_not` is the share of sentences that are right about whether anything changed. Training
    maximises `captions.selection`: BLEU-4, plus the mean IoU where there are masks. CIDEr-D weighs words by
    the whole corpus: counts are the sentences themselves, in one row of numbers.
    """

    monitor = "captions.selection"
    sums = False
    stream: list[Tensor]
    matrix: Tensor

    def __init__(self, classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.add_state("stream", [], dist_reduce_fx="cat")
        self.add_counts("matrix", classes, classes)

    def update(self, output: MaskedCaptionOutput, target: Mapping[str, Tensor]) -> None:
        """Counts a batch of written sentences, and of masks where both sides have them."""
        for row in counted_sentences(output, target):
            self.stream.append(torch.tensor(row, dtype=torch.int64, device=self.device))
        mask = getattr(output, "mask", None)
        if mask is not None and "label" in target:
            known = target["label"] != IGNORE
            self.matrix += confusion_counts(target["label"][known], mask.argmax(dim=1)[known], self.classes)  # pyright: ignore

    def counts(self) -> dict[str, np.ndarray]:
        stream: Any = self.stream  # one tensor once processes were brought together
        rows = stream if isinstance(stream, list) else [stream]
        numbers = torch.cat(rows).cpu().numpy() if rows else np.empty(0, np.int64)
        return {"stream": numbers, "matrix": self.matrix.cpu().numpy()}

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {
            "stream": np.concatenate([p["stream"] for p in parts]),
            "matrix": np.sum([p["matrix"] for p in parts], axis=0),
        }

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        images = read_sentences(counts["stream"].tolist())
        found: Scores = {}
        for name, part in (
            ("captions", images),
            ("changed", [i for i in images if i.changed]),
            ("unchanged", [i for i in images if not i.changed]),
        ):
            if part:
                found[name] = caption_scores([i.said for i in part], [i.references for i in part]).as_dict()
                right = float(np.mean([i.says_change == i.changed for i in part]))
                found[name] |= {"images": len(part), "change_or_not": right}
        selection = found["captions"]["bleu4"] if images else float("nan")
        if counts["matrix"].any():
            found["segmentation"] = segmentation_scores(counts["matrix"]).as_dict()
            selection += found["segmentation"]["miou"]
        found.setdefault("captions", {})["selection"] = selection
        return found


class RetrievalMeasure(Measure):
    """Images and captions that find each other among all of the split.

    `image_to_text` asks with an image: R@k is the share of those with one of their captions, or one of the
    same words, among the first k. `text_to_image` asks with each caption for an image that it belongs to.
    Counts are the embeddings themselves. Training maximises `both.mean_recall`.
    """

    monitor = "both.mean_recall"
    sums = False
    images: list[Tensor]
    texts: list[Tensor]
    numbers: list[Tensor]
    words: list[Tensor]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("images", "texts", "numbers", "words"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, output: RetrievalOutput, target: Mapping[str, Tensor]) -> None:
        """Keeps the embeddings of a batch."""
        self.images.append(output.images.float())
        self.texts.append(output.texts.float())
        self.words.append(output.words)
        self.numbers.append(torch.bincount(output.owner, minlength=len(output.images)))

    def counts(self) -> dict[str, np.ndarray]:
        found = {}
        for name in self._defaults:
            rows: Any = getattr(self, name)  # one tensor once processes were brought together
            found[name] = torch.cat(rows if isinstance(rows, list) else [rows]).cpu().numpy()
        return found

    def joined(self, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def scores(self, counts: Mapping[str, np.ndarray]) -> Scores:
        cosines = counts["images"] @ counts["texts"].T
        owner = np.repeat(np.arange(len(counts["numbers"])), counts["numbers"])
        belongs = owner[None] == np.arange(len(counts["images"]))[:, None]
        same = np.unique(counts["words"], return_inverse=True)[1]
        said = np.zeros((len(belongs), same.max() + 1), bool)
        said[owner, same] = True
        belongs = said[:, same]
        found: Scores = {}
        for name, s, r in (("image_to_text", cosines, belongs), ("text_to_image", cosines.T, belongs.T)):
            found[name] = {f"r{k}": hit_rate(s, r, k) for k in (1, 5, 10)} | {
                "median_rank": int(median_rank(s, r))
            }
        found["both"] = {
            "mean_recall": mean_recall(cosines, belongs),
            "images": len(cosines),
            "texts": cosines.shape[1],
            "different_texts": int(same.max() + 1),
        }
        return found


def measure_for(
    task: Task,
    classes: int,
    threshold: float | None = None,
    temperature: float = 1.0,
    excluded: tuple[int, ...] = (),
) -> Measure:
    """The measure of a task.

    Args:
        task: of the system's card.
        classes: of the labels; for semantic change without "unchanged", for captions of the masks.
        threshold, temperature: for binary change.
        excluded: for segmentation.

    Raises:
        SystemNotReadyError: nothing of this task can be scored yet.
    """
    match task:
        case Task.CHANGE:
            return ChangeMeasure(threshold, temperature)
        case Task.SEMANTIC_CHANGE:
            return SemanticChangeMeasure(classes)
        case Task.DAMAGE:
            return DamageMeasure()
        case Task.SEGMENTATION:
            return SegmentationMeasure(classes, excluded)
        case Task.CLASSIFICATION:
            return ClassificationMeasure(classes)
        case Task.LANGUAGE:
            return CaptionMeasure(classes)
        case Task.RETRIEVAL:
            return RetrievalMeasure()
        case _:
            raise SystemNotReadyError(
                str(task), "systems of this task cannot be scored", "See `terralapse systems --task change`."
            )
