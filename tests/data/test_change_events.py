from __future__ import annotations

import numpy as np
import pytest

from terralapse.data.change_events import (
    Instance,
    building_map,
    instance_events,
    instances_of,
    mixed_events,
    run_length_mask,
)
from terralapse.errors import UnreadableFileError


def square(row: int, col: int, side: int = 2, prompt: int = 1) -> Instance:
    mask = np.zeros((8, 8), bool)
    mask[row : row + side, col : col + side] = True
    return Instance(mask, prompt)


def test_a_prompt_has_to_beat_the_plane_of_doubt() -> None:
    scores = np.zeros((6, 1, 5), np.float32)
    scores[0, 0, 0], scores[1, 0, 1], scores[5, 0, 2], scores[1, 0, 3], scores[2, 0, 4] = (
        0.9,
        0.9,
        0.9,
        0.79,
        0.8,
    )
    assert building_map(scores).tolist() == [[1, 1, 0, 255, 0]]  # on a tie the prompt, which comes first


def test_an_instance_without_any_overlap_changed() -> None:
    before = [square(0, 0), square(4, 4)]
    after = [square(1, 1), square(0, 6), square(6, 0, prompt=4)]  # touches one pixel; new; a tree
    changed = instance_events(before, after, (8, 8))
    wanted = square(4, 4).mask | square(0, 6).mask
    assert np.array_equal(changed, wanted)
    assert np.array_equal(changed, instance_events(after, before, (8, 8)))


def test_where_one_date_has_none_all_of_the_other_changed() -> None:
    assert np.array_equal(instance_events([], [square(2, 2)], (8, 8)), square(2, 2).mask)
    assert not instance_events([], [], (8, 8)).any()
    trees = [square(2, 2, prompt=4)]
    assert np.array_equal(instance_events(trees, [square(2, 2)], (8, 8)), square(2, 2).mask)


def test_mixed_events_are_differences_inside_of_instances() -> None:
    before = np.array([[0, 0, 1, 255, 0]], np.uint8)
    after = np.array([[1, 1, 1, 1, 255]], np.uint8)
    inside = np.array([[True, False, True, True, True]])
    assert mixed_events(before, after, inside).tolist() == [[1, 0, 0, 255, 255]]
    assert mixed_events(after, before, inside).tolist() == [[1, 0, 0, 255, 255]]


# --- masks as COCO keeps them --------------------------------------------------------------------------
def packed(runs: list[int]) -> str:
    """The text of COCO's API, from its definition."""
    text = ""
    for i, run in enumerate(runs):
        value = run - (runs[i - 2] if i > 2 else 0)
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


def runs_of(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.T.ravel().astype(int)])
    edges = np.flatnonzero(np.diff(np.concatenate([flat, [1 - flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).tolist()


def test_run_lengths_go_down_the_columns() -> None:
    mask = run_length_mask({"size": [2, 3], "counts": [1, 3, 2]})
    assert mask.tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize("seed", range(4))
def test_packed_run_lengths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 29)) < 0.3
    mask[:, 10:20] = seed % 2 == 0  # long runs, so that differences are of both signs
    runs = runs_of(mask)
    for counts in (runs, packed(runs), packed(runs).encode()):
        assert np.array_equal(run_length_mask({"size": [37, 29], "counts": counts}), mask)


def test_instances_of_a_result() -> None:
    entry = {"segmentation": {"size": [2, 2], "counts": packed([1, 2, 1])}, "category_id": 1, "score": 0.5}
    (found,) = instances_of([entry])
    assert (found.prompt, found.score, found.mask.tolist()) == (1, 0.5, [[False, True], [True, False]])


@pytest.mark.parametrize(
    "segmentation", [{"size": [2, 2], "counts": [1, 2]}, {"size": [2, 2]}, {"size": [2, 2], "counts": "P"}]
)
def test_what_is_no_instance_is_an_error(segmentation: dict[str, object]) -> None:
    with pytest.raises(UnreadableFileError, match="instance"):
        instances_of([{"segmentation": segmentation, "category_id": 1}], "labels.json")
