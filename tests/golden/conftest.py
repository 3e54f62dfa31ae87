"""Collects the golden cases as tests of their own, named `<system>/<case>`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golden.case import Case, find_cases

HERE = Path(__file__).parent


def golden_root_of(config: pytest.Config) -> Path:
    """The folder given by `--golden-root`, or the cases that the repository keeps for itself."""
    given = config.getoption("--golden-root")
    root = Path(given or HERE / "cases")
    if given and not root.is_absolute():
        root = Path(config.invocation_params.dir) / root
    if given and not root.is_dir():
        raise pytest.UsageError(f"--golden-root: {root} is not a folder")
    return root


@pytest.fixture(scope="session")
def golden_root(pytestconfig: pytest.Config) -> Path:
    """The folder of golden cases; scorers' figures lie in its folder `metrics`."""
    return golden_root_of(pytestconfig)


def pytest_pycollect_makeitem(collector: Any, name: str, obj: Any) -> list[pytest.Item] | None:
    """Turns the function `golden_case` into one test a case, so that each test's id ends in its name."""
    if name != "golden_case" or not isinstance(collector, pytest.Module):
        return None

    def bound(case: Case) -> Callable[[], None]:
        return lambda: obj(case, collector.config)

    cases = find_cases(golden_root_of(collector.config))
    return [pytest.Function.from_parent(collector, name=c.id, callobj=bound(c)) for c in cases]
