"""Classes keep their names when their numbers differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terralapse.labels import (
    AID,
    BUILDINGS,
    DAMAGE,
    ISPRS,
    LANDSAT_SCD,
    LOVEDA,
    SCHEMES,
    SECOND_MAMBA,
    SECOND_SCANNET,
    crosswalk,
    numbered,
    scheme,
)

SECOND_VALUES = st.lists(st.sampled_from([*range(7), 255]), min_size=1, max_size=40)


@pytest.mark.parametrize("slug", sorted(SCHEMES))
def test_every_scheme_tells_its_classes_apart(slug: str) -> None:
    found = scheme(slug)
    for part in ("value", "name", "colour"):
        assert len({getattr(c, part) for c in found.classes}) == len(found.classes)
    assert found.nodata not in [c.value for c in found.classes]


def test_numbers_of_classes_are_those_of_the_data_sets() -> None:
    sizes = {s: len(scheme(s).classes) for s in ("eurosat", "ucmerced", "aid", "resisc45")}
    assert sizes == {"eurosat": 10, "ucmerced": 21, "aid": 30, "resisc45": 45}
    assert [len(s.classes) for s in (SECOND_MAMBA, LANDSAT_SCD, DAMAGE, ISPRS, LOVEDA)] == [7, 5, 5, 6, 7]
    names = [c.name for c in AID.classes]
    assert names == sorted(names)


@pytest.mark.parametrize("slug", ["ucmerced", "aid", "resisc45"])
def test_the_order_of_rsmamba_has_the_same_classes(slug: str) -> None:
    one, other = scheme(slug), scheme(f"{slug}-rsmamba")
    values = np.array([c.value for c in one.classes])
    assert sorted(crosswalk(values, one, other).tolist()) == values.tolist()
    assert [c.name for c in one.classes] != [c.name for c in other.classes]
    assert [c.name for c in scheme("aid-rsmamba").classes][:3] == ["port", "square", "river"]


def test_an_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(KeyError, match="second-scannet"):
        scheme("second")


def test_the_two_orders_of_second() -> None:
    mamba = np.array([[0, 1, 2, 3], [4, 5, 6, 255]], np.uint8)
    scannet = crosswalk(mamba, SECOND_MAMBA, SECOND_SCANNET)
    assert scannet.tolist() == [[0, 3, 2, 4], [1, 5, 6, 255]]
    assert scannet.dtype == np.uint8


@given(SECOND_VALUES)
def test_there_and_back_is_where_it_began(values: list[int]) -> None:
    start = np.array(values, np.uint8)
    there = crosswalk(start, SECOND_MAMBA, SECOND_SCANNET)
    assert crosswalk(there, SECOND_SCANNET, SECOND_MAMBA).tolist() == values
    for a, b in zip(values, there.tolist(), strict=True):
        if a == 255:
            assert b == 255
        else:
            assert SECOND_MAMBA.by_value(a).colour == SECOND_SCANNET.by_value(b).colour


def test_a_class_that_has_no_counterpart_is_an_error() -> None:
    assert crosswalk(np.array([0, 1]), BUILDINGS, BUILDINGS).tolist() == [0, 1]
    with pytest.raises(ValueError, match="7"):
        crosswalk(np.array([7]), SECOND_MAMBA, SECOND_SCANNET)
    with pytest.raises(ValueError, match="desert"):
        crosswalk(np.array([0, 2]), LANDSAT_SCD, SECOND_MAMBA)
    assert crosswalk(np.array([0, 4, 3]), LANDSAT_SCD, SECOND_MAMBA).tolist() == [0, 4, 5]


def test_numbered_follows_the_order_given() -> None:
    made = numbered("x", "X", "port square")
    assert [(c.value, c.name, c.title) for c in made.classes] == [
        (0, "port", "Port"),
        (1, "square", "Square"),
    ]
