"""Cards, index and look-up: what is listed is true, complete, fresh, and read without heavy imports."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from terralapse import registry
from terralapse.cards import (
    Card,
    Figure,
    Inputs,
    Licences,
    Normalisation,
    Status,
    Stretch,
    Task,
    Weights,
    trained_card,
)
from terralapse.errors import SystemNotReadyError, UnknownSystemError
from terralapse.sensors import SENSORS, Unit

ROOT = Path(__file__).resolve().parents[1]
FULL_CARD = Card(
    slug="a-b/c",
    title="A title",
    task=Task.CHANGE,
    status=Status.RUNS,
    summary="One sentence.",
    year=2025,
    paper="arXiv:2501.00001",
    inputs=Inputs(
        dates=2,
        bands=("red", "nir"),
        units=(Unit.REFLECTANCE, Unit.DB),
        gsd_range=(0.5, 1.0),
        sensors=("rgb",),
        normalisation=Normalisation((0.1, 0.2), (1.0, 2.0), Stretch.SCENE_PERCENTILE),
    ),
    licences=Licences("MIT", "CC0", "CC0"),
    weights=(Weights("w.safetensors", "0" * 64),),
    figures=(
        Figure("f1", 0.5, "d", "p", "here", (0.4, 0.6)),
        Figure("f1", 0.5, "d", "p", "paper"),
    ),
    quirks=("q",),
    limits=("l",),
)


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of one test that no other test sees."""
    monkeypatch.setattr(registry, "_CARDS", dict(registry._CARDS))
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


def test_the_index_is_fresh() -> None:
    stored = (ROOT / "src/terralapse/_index.json").read_text(encoding="utf-8")
    assert stored == registry.generate_index(), "run `python -m terralapse.registry`"


def test_the_57_systems_are_there_under_their_own_titles(shared: Path) -> None:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+?) \| (.+?) \|", (shared / "specs/INDEX.md").read_text(), re.M)
    sheets = {slug: (title, int(listed[-4:])) for slug, title, listed in rows if slug != "slug"}
    ours = {s.slug: (s.title, s.head.year) for s in registry.systems() if s.seed}
    assert len(sheets) == 57
    assert ours == sheets


def test_seed_systems_are_57_without_the_sheets_too() -> None:
    assert len([s for s in registry.systems() if s.seed]) == 57


@pytest.mark.parametrize("card", registry.cards(), ids=lambda c: c.slug)
def test_a_card_says_what_it_must(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(/[a-z0-9]+([.-][a-z0-9]+)*)?", card.slug)
    assert card.summary.endswith("."), "a card has a summary of one sentence"
    assert card.repository == "" or card.repository.startswith("https://github.com/")
    assert set(card.inputs.sensors) <= set(SENSORS)
    assert card.threshold is None or 0 < card.threshold < 1
    if card.inputs.gsd_range is not None:
        assert 0 < card.inputs.gsd_range[0] <= card.inputs.gsd_range[1]
    if (norm := card.inputs.normalisation) is not None:
        assert card.inputs.bands is not None
        assert len(norm.mean) == len(norm.std) == len(card.inputs.bands)
        assert min(norm.std) > 0
    if card.seed:
        assert card.year is not None
    if card.status is Status.PLANNED:
        assert not card.weights
        assert not card.figures, "a planned system has earned no figures"
        assert card.default_rank is None
    for weights in card.weights:
        assert re.fullmatch(r"[0-9a-f]{64}", weights.sha256)
    for figure in card.figures:
        assert figure.source in ("paper", "golden", "here")
        assert figure.protocol


@pytest.mark.parametrize("card", registry.cards(), ids=lambda c: c.slug)
def test_a_status_is_earned(card: Card) -> None:
    """What runs has a builder; `reproduced` names the published or golden number that it meets."""
    module = registry.index()[card.slug]["module"]
    if card.status in (Status.RUNS, Status.REPRODUCED):
        __import__(module)
        assert card.slug in registry._BUILDERS
        assert not module.startswith("terralapse.models.planned")
    if card.status is Status.REPRODUCED:
        assert any(f.source in ("paper", "golden") for f in card.figures)


@pytest.mark.parametrize("card", [*registry.cards(), FULL_CARD], ids=lambda c: c.slug)
def test_a_card_survives_json(card: Card) -> None:
    assert Card.from_dict(json.loads(json.dumps(card.as_dict()))) == card


RECORD = {
    "weights": [{"file": "w.safetensors", "sha256": "1" * 64}],
    "temperature": 1.5,
    "threshold": 0.3,
    "gsd_range": [0.5, 5.0],
    "licence": {"weights": "for research", "data": "none stated"},
    "limits": ["Knows buildings only."],
    "figures": [
        {
            "metric": "change F1",
            "value": 0.4,
            "dataset": "d",
            "protocol": "p",
            "source": "here",
            "interval": [0.3, 0.5],
        }
    ],
}


def test_a_record_of_training_completes_a_card() -> None:
    before = replace(FULL_CARD, weights=(), figures=())
    card = trained_card(before, RECORD)
    assert card.weights == (Weights("w.safetensors", "1" * 64, licence="for research"),)
    assert (card.temperature, card.threshold, card.inputs.gsd_range) == (1.5, 0.3, (0.5, 5.0))
    assert card.figures[0].interval == (0.3, 0.5)
    assert card.limits == (*before.limits, "Knows buildings only.")
    assert (card.licences.code, card.licences.weights) == (before.licences.code, "for research")
    assert Card.from_dict(json.loads(json.dumps(card.as_dict()))) == card
    with pytest.raises(ValueError, match="of its own"):
        trained_card(card, RECORD)


def test_every_record_of_training_is_of_a_system_and_of_a_file_that_is_there() -> None:
    records = registry._trained()
    assert len(records) >= 7
    for slug, record in records.items():
        card = registry.card(slug)
        assert card.weights[0].sha256 == record["weights"][0]["sha256"]
        path = ROOT / "weights" / record["weights"][0]["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == record["weights"][0]["sha256"]


def test_from_dict_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="surprise"):
        Card.from_dict({**FULL_CARD.as_dict(), "surprise": 1})


def test_an_unknown_slug_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownSystemError, match="changemamba") as caught:
        registry.card("changemanba")
    assert caught.value.what == "changemanba"


@pytest.mark.parametrize(
    "slug", ["os.system", "__import__('os')", "../../etc/passwd", "terralapse.models", ""]
)
def test_a_slug_is_looked_up_and_never_imported_or_evaluated(slug: str) -> None:
    with pytest.raises(UnknownSystemError):
        registry.build(slug)


def test_a_planned_system_says_so() -> None:
    planned = next(c for c in registry.cards() if c.status is Status.PLANNED)
    with pytest.raises(SystemNotReadyError, match="planned"):
        registry.build(planned.slug)


@pytest.mark.usefixtures("empty_registry")
def test_a_model_in_a_file_of_ones_own_is_found_and_built() -> None:
    mine = replace(FULL_CARD, slug="mine")

    @registry.register(mine)
    def build(card: Card, *, gain: float = 1.0) -> tuple[str, float]:
        return card.slug, gain

    assert registry.card("mine") is mine
    assert registry.build("mine", gain=2.0) == ("mine", 2.0)
    assert "mine" in {s.slug for s in registry.systems()}


@pytest.mark.usefixtures("empty_registry")
def test_two_cards_of_one_slug_are_refused() -> None:
    registry.register(replace(FULL_CARD, slug="twice"))(lambda card: card)
    with pytest.raises(ValueError, match="twice"):
        registry.register(replace(FULL_CARD, slug="twice"))(lambda card: card)


@pytest.mark.usefixtures("empty_registry")
def test_a_planned_card_cannot_have_a_builder() -> None:
    with pytest.raises(ValueError, match="planned"):
        registry.register(replace(FULL_CARD, slug="later", status=Status.PLANNED))(lambda card: card)


@pytest.mark.usefixtures("empty_registry")
def test_variants_are_grouped_and_the_furthest_counts() -> None:
    for slug, status in (("zoo/b", Status.RUNS), ("zoo/a", Status.REPRODUCED), ("zoo", Status.READER_ONLY)):
        registry.register(replace(FULL_CARD, slug=slug, status=status))(lambda card: card)
    zoo = next(s for s in registry.systems() if s.slug == "zoo")
    assert [c.slug for c in zoo.cards] == ["zoo", "zoo/a", "zoo/b"]
    assert [c.slug for c in zoo.variants] == ["zoo/a", "zoo/b"]
    assert zoo.status is Status.REPRODUCED
    assert json.loads(json.dumps(zoo.as_dict()))["status"] == "reproduced"
    assert [v["slug"] for v in zoo.as_dict()["variants"]] == ["zoo/a", "zoo/b"]


@pytest.mark.usefixtures("empty_registry")
def test_a_system_known_only_by_its_variants_names_them() -> None:
    registry.register(replace(FULL_CARD, slug="zoo/b"))(lambda card: card)
    with pytest.raises(UnknownSystemError, match="zoo/b"):
        registry.card("zoo")


def test_generating_the_index_refuses_a_card_in_two_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from terralapse.models.planned import change, imagery

    monkeypatch.setitem(imagery.CARDS, "changen2", change.CARDS["changen2"])
    with pytest.raises(ValueError, match="changen2"):
        registry.generate_index()


def test_every_system_for_pairs_states_what_swapping_the_dates_does() -> None:
    ready = (Status.RUNS, Status.REPRODUCED)
    silent = [
        c.slug for c in registry.cards() if c.inputs.dates == 2 and c.status in ready and c.date_order is None
    ]
    assert not silent, f"date_order is missing on {', '.join(silent)}"
