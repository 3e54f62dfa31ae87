"""Finished runs to ask about: real and made, with all that is known of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ask_runs import Truth, classes_run, empty_run, joplin_run, masked_run, series_run, zones_run


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Truth]:
    """By name. Not to be changed."""
    folder = tmp_path_factory.mktemp("ask")
    made = (joplin_run, zones_run, classes_run, empty_run, masked_run, series_run)
    return {m.__name__.removesuffix("_run"): m(folder) for m in made}


@pytest.fixture
def zones(runs: dict[str, Truth]) -> Path:
    """The folder of the run with zones."""
    return runs["zones"].folder


@pytest.fixture
def classes(runs: dict[str, Truth]) -> Path:
    """The folder of the run with classes and damage."""
    return runs["classes"].folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same ones each time."""
    return np.random.default_rng(11)
