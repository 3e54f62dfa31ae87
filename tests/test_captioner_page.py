"""The tables of docs/captioner.md are those of the stored results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("captioner", ROOT / "benchmarks/captioner.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("split", "tiles"), [("val", 30), ("test", 10)])
def test_tables_are_of_the_results(split: str, tiles: int, tmp_path: Path) -> None:
    text = (ROOT / f"benchmarks/results/captioner_{split}.json").read_text(encoding="utf-8")
    result = json.loads(text)
    assert (result["split"], result["tiles"], result["questions"]) == (split, tiles, 11 * tiles)
    page = (ROOT / "docs/captioner.md").read_text(encoding="utf-8")
    assert benchmark().tables(result) in page
    copy = tmp_path / "page.md"
    copy.write_text(page, encoding="utf-8")
    benchmark().renew(copy, result)
    assert copy.read_text(encoding="utf-8") == page
