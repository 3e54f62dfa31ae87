"""Numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from terralapse.products import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.6, "1,230"), (0.012345, "0.0123"), (99.96, "100"), (10, "10"), (5_000_000, "5,000,000")],
)
def test_three_digits_and_no_exponent(value, text):
    assert units.number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.34, "m2", "12.3 m²"),
        (9999, "m2", "10,000 m²"),
        (12_345, "m2", "1.23 ha"),
        (2_500_000, "m2", "2.5 km²"),
        (120_564_000_00, "m2", "12,100 km²"),
        (1234, "px", "1,230 px"),
    ],
)
def test_areas_take_the_unit_that_fits(value, unit, text):
    assert units.area(value, unit) == text


def test_a_trace_is_not_nothing_and_nearly_all_is_not_all():
    assert units.percent(0) == "0 %"
    assert units.percent(0.00001) == "< 0.01 %"
    assert units.percent(0.99999) == "> 99.99 %"
    assert units.percent(1) == "100 %"
    assert units.percent(float("nan")) == "not known"


def test_dates_and_intervals():
    a = datetime(2023, 5, 10, tzinfo=UTC)
    b = datetime(2024, 6, 2, 10, 30, tzinfo=UTC)
    assert units.date(a) == "10 May 2023"
    assert units.date(b) == "2 June 2024, 10:30 UTC"
    assert units.date(None) == "date not stated"
    assert units.interval(a, b) == "13 months"
    assert units.interval(a, datetime(2023, 5, 11, tzinfo=UTC)) == "1 day"
    assert units.interval(a, datetime(2026, 5, 10, tzinfo=UTC)) == "3 years"
    assert units.interval(None, b) == ""


def test_coordinates_name_the_half_of_the_world():
    assert units.coordinates(-94.5, 37.06) == "37.06000° N, 94.50000° W"
    assert units.coordinates(178.2, -17.1) == "17.10000° S, 178.20000° E"
    assert units.coordinates(float("nan"), float("nan")) == ""
