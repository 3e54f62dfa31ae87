"""Runs to write products from: small ones in memory, with rasters made the way the engine makes them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_run import build_run
from terralapse.labels import Reason
from terralapse.products.run import ChangeRun

MakeRun = Callable[..., ChangeRun]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes runs, each in a folder of its own."""
    numbers = count()
    return lambda *args, **fields: build_run(tmp_path / f"run{next(numbers)}", *args, **fields)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChangeRun, dict[str, Any], list[Any]]:
    """One run with all its products, the summary, and the steps that were told. Not to be changed."""
    from terralapse.products.write import write_products

    reason = np.zeros((240, 320), np.uint8)
    reason[:, :20] = Reason.NODATA_BEFORE
    run = build_run(tmp_path_factory.mktemp("products") / "run", reason=reason)
    steps: list[Any] = []
    return run, write_products(run, lambda *step: steps.append(step)), steps
