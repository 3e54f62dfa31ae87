"""The implementations against the published ones, number by number."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from golden.case import Case, CaseError, NotCoveredError
from terralapse import registry
from terralapse.cards import Status

ADAPTERS = Path(__file__).parent / "adapters"


def golden_case(case: Case, config: pytest.Config) -> None:
    """Runs one case through its system's adapter (`conftest.py` makes a test of each case).

    A system that is not implemented yet is skipped with its status; so is, while its status is not
    `reproduced`, a case of a part that it does not have yet.
    """
    folder = Path(config.getoption("--golden-adapters") or ADAPTERS)
    path = folder / f"{case.system.replace('-', '_')}.py"
    adapter = _load(path) if path.is_file() else None
    system = next((s for s in registry.systems() if s.slug == case.system), None)
    if system is None:
        raise CaseError(f"no card is named {case.system}")
    if system.status is Status.PLANNED:
        pytest.skip(f"{case.system} is not implemented yet (status: planned)")
    if adapter is None:
        raise CaseError(f"{case.system} is `{system.status}` but has no adapter {path.name}")
    try:
        result = adapter.run(case)
    except NotCoveredError as gap:
        if system.status is Status.REPRODUCED:
            raise CaseError(f"{case.system} says `reproduced` but does not cover this case") from gap
        pytest.skip(f"{case.system} does not cover this case yet: {gap}")
    case.check(result)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_adapter_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
