from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from terralapse.tasks.losses import cross_entropy, lovasz_softmax, similarity


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def confident(label: Tensor, classes: int, by: float = 60.0) -> Tensor:
    """Logits that say exactly what the label says."""
    return by * torch.nn.functional.one_hot(label, classes).movedim(-1, 1).float()


def jaccard_of(wrong: Tensor, label: Tensor, class_: int) -> float:
    """1 - IoU of a class when the pixels of a set are wrong about it, from its definition."""
    members = {i for i, x in enumerate(label.tolist()) if x == class_}
    mistaken = set(torch.nonzero(wrong).flatten().tolist())
    return len(mistaken) / len(members | mistaken) if members | mistaken else 0.0


# --- cross-entropy -----------------------------------------------------------------------------------
def test_cross_entropy_of_equal_logits_is_the_logarithm_of_the_number_of_classes() -> None:
    label = torch.randint(0, 5, (2, 4, 3))
    assert cross_entropy(torch.zeros(2, 5, 4, 3), label).item() == pytest.approx(np.log(5), rel=1e-6)


def test_cross_entropy_is_the_mean_over_the_pixels_that_count() -> None:
    logits, label = normal(1, 2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    holed = label.clone()
    holed[0, :2] = 255
    counted = torch.ones(2, 4, 5, dtype=torch.bool)
    counted[0, :2] = False
    every = -logits.log_softmax(dim=1).gather(1, label[:, None])[:, 0]
    assert cross_entropy(logits, holed).item() == pytest.approx(every[counted].mean().item(), rel=1e-6)


# --- Lovász ------------------------------------------------------------------------------------------
def test_lovasz_of_a_perfect_map_is_zero() -> None:
    label = torch.randint(0, 4, (2, 6, 5), generator=torch.Generator().manual_seed(3))
    assert lovasz_softmax(confident(label, 4), label).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_lovasz_of_a_certain_map_is_one_minus_the_mean_iou(seed: int) -> None:
    """At the corners of the cube the extension is the function that it extends."""
    draw = torch.Generator().manual_seed(seed)
    label, guess = (torch.randint(0, 3, (2, 5, 7), generator=draw) for _ in range(2))
    gaps = []
    for c in label.unique().tolist():
        union = ((label == c) | (guess == c)).sum()
        gaps.append(1 - (((label == c) & (guess == c)).sum() / union).item())
    assert lovasz_softmax(confident(guess, 3), label).item() == pytest.approx(np.mean(gaps), rel=1e-5)


def test_lovasz_is_the_extension_of_the_jaccard_set_function() -> None:
    """sum_i e_(i) (J(first i + 1 pixels wrong) - J(first i wrong)), pixels in order of their error."""
    logits, label = normal(5, 1, 3, 3, 4), torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 1, 2, 0, 0])
    share = logits.softmax(dim=1)[0].flatten(1)
    total = 0.0
    for c in range(3):
        errors = ((label == c).float() - share[c]).abs()
        wrong, before = torch.zeros(12, dtype=torch.bool), 0.0
        for i in errors.argsort(descending=True).tolist():
            wrong[i] = True
            after = jaccard_of(wrong, label, c)
            total += errors[i].item() * (after - before)
            before = after
    assert lovasz_softmax(logits, label.view(1, 3, 4)).item() == pytest.approx(total / 3, rel=1e-5)


def test_lovasz_counts_only_classes_that_are_there() -> None:
    """A fourth class that never occurs, and that nobody predicts, changes nothing."""
    logits, label = normal(6, 1, 3, 6, 6), torch.randint(0, 3, (1, 6, 6))
    more = torch.cat([logits, torch.full((1, 1, 6, 6), -80.0)], dim=1)
    assert lovasz_softmax(more, label).item() == pytest.approx(lovasz_softmax(logits, label).item(), rel=1e-6)


def test_lovasz_takes_the_batch_as_one_image() -> None:
    logits, label = normal(7, 2, 3, 4, 6), torch.randint(0, 3, (2, 4, 6))
    one = logits.transpose(0, 1).reshape(1, 3, 8, 6)
    assert lovasz_softmax(logits, label).item() == pytest.approx(
        lovasz_softmax(one, label.view(1, 8, 6)).item(), rel=1e-6
    )


def test_lovasz_has_the_gradient_of_its_differences() -> None:
    logits = normal(8, 1, 3, 2, 3).double()
    label = torch.tensor([[[0, 1, 2], [2, 255, 0]]])
    assert torch.autograd.gradcheck(
        lambda x: lovasz_softmax(x, label).double(), logits.requires_grad_(), eps=1e-3, atol=2e-3
    )


# --- both --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
def test_ignored_pixels_do_not_count(loss) -> None:
    logits, label = normal(9, 2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    label[:, 3:] = 255
    other = logits.clone()
    other[:, :, 3:] = 100 * normal(10, 2, 4, 2, 5)
    assert loss(logits, label).item() == pytest.approx(loss(other, label).item(), rel=1e-6)
    assert loss(logits, label).item() == pytest.approx(loss(logits[:, :, :3], label[:, :3]).item(), rel=1e-6)


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_nothing_that_counts_gives_zero(loss, dtype: torch.dtype) -> None:
    logits = normal(11, 1, 3, 4, 4).requires_grad_()
    value = loss(logits, torch.full((1, 4, 4), 255, dtype=dtype))
    value.backward()
    assert value.item() == 0.0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("loss", [cross_entropy, lovasz_softmax])
def test_half_precision_is_computed_in_float32(loss) -> None:
    logits, label = normal(12, 1, 3, 8, 8).bfloat16(), torch.randint(0, 3, (1, 8, 8))
    value = loss(logits, label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(logits.float(), label).item(), rel=1e-6)


# --- similarity --------------------------------------------------------------------------------------
def test_similarity_of_opposite_certainties() -> None:
    """Two classes, sure and different at three of eight pixels that should agree: 2 * 3 / (8 * 2)."""
    first, second = torch.zeros(1, 2, 4, dtype=torch.long), torch.zeros(1, 2, 4, dtype=torch.long)
    second[0, 0, :3] = 1
    second[0, 1, 0] = 1  # differs where something changed: does not count
    unchanged = torch.ones(1, 2, 4, dtype=torch.bool)
    unchanged[0, 1, 0] = False
    value = similarity(confident(first, 2), confident(second, 2), unchanged)
    assert value.item() == pytest.approx(3 / 8, rel=1e-6)


# --- what the published code computes ----------------------------------------------------------------
def test_the_values_of_the_published_code(shared: Path) -> None:
    case = shared / "golden/changemamba/bcd_tiny/case.json"
    if not case.is_file():
        pytest.skip(f"needs {case}")
    losses = json.loads(case.read_text(encoding="utf-8"))["losses"]
    seeds = [int(s) for s in re.findall(r"seed (\d+)", " ".join(losses["recipe"].values()))]
    assert seeds == [100, 101, 102]
    draw = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
    logits = torch.from_numpy((2 * draw[0].standard_normal((2, 2, 12, 10))).astype("float32"))
    label = torch.from_numpy(draw[1].integers(0, 2, (2, 12, 10)))
    label[torch.from_numpy(draw[2].integers(0, 10, (2, 12, 10))) == 0] = 255
    assert cross_entropy(logits, label).item() == pytest.approx(losses["cross_entropy"], rel=1e-6)
    assert lovasz_softmax(logits, label).item() == pytest.approx(losses["lovasz"], rel=1e-6)
