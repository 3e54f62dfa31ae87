"""The small captioner that comes along: what it says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from terralapse import registry
from terralapse.ask.agent import OWN_CAPTIONER, _kit
from terralapse.data.building_talk import BuildingCaptions, said_in
from terralapse.engine.captioning import describer_of
from terralapse.errors import ModelInputError

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 15_000_000


def pictures(images: np.ndarray) -> list[np.ndarray]:
    """Both dates as uint8 [h, w, 3]."""
    return [np.ascontiguousarray(p.transpose(1, 2, 0)).astype(np.uint8) for p in images]


def test_it_comes_along_and_is_small() -> None:
    card = registry.card("change-agent/nano")
    assert (ROOT / "weights" / card.weights[0].file).stat().st_size < MOST_BYTES
    assert card.inputs.gsd_range == (2.5, 2.5)
    assert all(f.source == "here" and f.interval is not None for f in card.figures)
    assert any("one Chinese city" in limit for limit in card.limits)


def test_sentences_are_those_that_were_scored(shared_data: Path) -> None:
    stored = json.loads((ROOT / "benchmarks/results/captioner_val.json").read_text(encoding="utf-8"))
    describe, pairs = describer_of("change-agent/nano"), BuildingCaptions(shared_data / "cd_mshs_bcd", "val")
    for index in (0, 10, 20):
        said = describe(*pictures(pairs[index].images))  # pyright: ignore[reportCallIssue]
        assert said == stored["written"][pairs[index].name]
        assert all(said_in(said)), "it states a number, a size and a place"


def test_the_agent_has_it_without_any_file() -> None:
    describe = _kit(None, OWN_CAPTIONER, None, None, "cpu").describer
    assert describe is not None
    before, after = np.random.default_rng(0).integers(0, 255, (2, 96, 96, 3), dtype=np.uint8)
    said = describe(before, after)
    assert said == describer_of("change-agent/nano")(before, after)
    assert said_in(said) != ("", "", "")


def test_a_system_without_sentences_describes_nothing() -> None:
    with pytest.raises(ModelInputError, match="writes no sentences"):
        describer_of("lapsenet/rgb")
