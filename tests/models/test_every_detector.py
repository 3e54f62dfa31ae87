"""What every detector of change must do, whatever it is: one suite over all that run, from the index."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from terralapse import registry
from terralapse.cards import Card, DateOrder, Status, Task
from terralapse.engine.evaluate import predict_whole
from terralapse.errors import NoValidDataError, SystemNotReadyError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.mapped import MapDetector
from terralapse.tasks.network import NetworkDetector

CARDS = [
    c
    for c in registry.cards()
    if c.task is Task.CHANGE and c.status in (Status.RUNS, Status.REPRODUCED) and c.inputs.dates == 2
]
# Networks that come without weights are tried with random ones, in the sizes that are quick enough: what they
# find means nothing, but the contract holds for them too.
QUICK = ("nano",)


def bare(card: Card) -> bool:
    """Whether it is a network that comes without weights."""
    return card.parameters is not None and not card.weights


def build(card: Card) -> ChangeDetector:
    """With its weights, or with random ones that are the same each time."""
    if not bare(card):
        return registry.build(card.slug)
    torch.manual_seed(0)
    return registry.build(card.slug, untrained=True)


@cache
def detector(slug: str) -> ChangeDetector:
    return build(registry.card(slug))


@pytest.fixture(params=CARDS, ids=[c.slug for c in CARDS])
def card(request: pytest.FixtureRequest) -> Card:
    found: Card = request.param
    if bare(found) and not found.slug.endswith(QUICK):
        pytest.skip(f"{found.slug} comes without weights, and is too heavy to be tried with random ones")
    try:
        detector(found.slug)
    except SystemNotReadyError as missing:
        pytest.skip(str(missing))
    return found


@pytest.fixture
def trained(card: Card) -> Card:
    """A card whose detector knows what change is."""
    if bare(card):
        pytest.skip("what a network with random weights finds means nothing")
    return card


@pytest.fixture
def exact(card: Card) -> Card:
    """A card whose detector depends on nothing beyond its halo."""
    if not detector(card.slug).exact:
        pytest.skip("it sees a whole tile, and says so")
    return card


def names_of(card: Card, bands: int | None = None) -> tuple[str, ...]:
    """Band names that the card takes: its own, or any three; and a map of the earlier date for those that
    take one."""
    own = card.inputs.bands or tuple(f"b{i + 1}" for i in range(bands or max(3, card.inputs.min_bands)))
    return (*own, "map") if isinstance(detector(card.slug), MapDetector) else own


def scene(
    card: Card, height: int = 72, width: int = 90, bands: int | None = None, seed: int = 0
) -> np.ndarray:
    """Two dates of smooth ground with noise, another exposure on the second date, and one new bright
    square; in the range of the card's unit."""
    rng = np.random.default_rng(seed)
    number = len(names_of(card, bands))
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([np.sin(x / (7 + 3 * b) + b) + np.cos(y / (9 + 2 * b)) for b in range(number)])
    dates = np.stack([ground, 0.9 * ground + 0.1]) + rng.normal(0, 0.12, (2, number, height, width))
    dates[1, :, height // 4 : height // 4 + 20, width // 3 : width // 3 + 20] += 4.0
    low, high = (0, 255) if Unit.RGB255 in card.inputs.units else (0, 1)
    scaled = (dates + 3) / 10
    if names_of(card, bands)[-1] == "map":  # three classes in blobs
        scaled[:, -1] = (3 * scaled[:, -1]).clip(0, 2).round() / high
    return (low + (high - low) * scaled).astype(np.float32)


def pair_of(card: Card, images: np.ndarray, bands: int | None = None) -> ArrayPair:
    unit = card.inputs.units[0] if card.inputs.units else Unit.RAW
    gsd = card.inputs.gsd_range[0] if card.inputs.gsd_range else 10.0
    return ArrayPair(images, bands=names_of(card, bands), unit=unit, gsd=gsd)


def predicted(card: Card, images: np.ndarray, state: dict[str, Any] | None = None) -> np.ndarray:
    pair = pair_of(card, images)
    found = detector(card.slug)
    return predict_whole(found, pair, found.fit(pair.sample()) if state is None else state)[0]


def must_find(card: Card) -> bool:
    """Whether the new square has to be flagged. A trained network knows buildings, not bright squares on
    waves: what it finds is scored on data."""
    return not isinstance(detector(card.slug), NetworkDetector)


# --- what it returns -------------------------------------------------------------------------------
def test_it_returns_what_the_contract_says(card: Card) -> None:
    images = scene(card)
    probability = predicted(card, images)
    assert probability.dtype == np.float32
    assert probability.shape == images.shape[2:]
    assert np.isfinite(probability).all()
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert detector(card.slug).halo == card.inputs.halo
    assert detector(card.slug).multiple == card.inputs.size_multiple


def test_a_new_object_stands_out(card: Card) -> None:
    if not must_find(card):
        pytest.skip("what a network finds is scored on data")
    probability = predicted(card, scene(card))
    inside = np.zeros(probability.shape, bool)
    inside[18 + 4 : 38 - 4, 30 + 4 : 50 - 4] = True
    outside = np.ones(probability.shape, bool)
    outside[8:48, 20:60] = False
    assert probability[inside].mean() > 0.5
    assert probability[inside].mean() > 5 * probability[outside].mean()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (7, 5), (33, 65), (50, 31)])
def test_odd_sizes(card: Card, height: int, width: int) -> None:
    state = detector(card.slug).fit(pair_of(card, scene(card)).sample())
    images = scene(card)[:, :, :height, :width]
    probability = predicted(card, images, state)
    assert probability.shape == (height, width)
    assert np.isfinite(probability).all()


@pytest.mark.parametrize("bands", [1, 2, 4, 13])
def test_any_number_of_bands_where_the_card_says_any(card: Card, bands: int) -> None:
    if card.inputs.bands is not None or bands < card.inputs.min_bands:
        pytest.skip(f"{card.slug} takes {card.inputs.bands or card.inputs.min_bands}")
    pair = pair_of(card, scene(card, bands=bands), bands)
    found = detector(card.slug)
    probability, _ = predict_whole(found, pair, found.fit(pair.sample()))
    inside = probability[22:34, 34:46]
    assert inside.mean() > 0.5


# --- that it can be relied on ----------------------------------------------------------------------
def test_the_same_input_gives_the_same_numbers(card: Card) -> None:
    images = scene(card)
    pair, found = pair_of(card, images), detector(card.slug)
    first, second = found.fit(pair.sample()), build(card).fit(pair_of(card, images).sample())
    assert first == second
    assert np.array_equal(predicted(card, images, first), predicted(card, images, second))


def test_the_state_survives_json(card: Card) -> None:
    images = scene(card)
    state = detector(card.slug).fit(pair_of(card, images).sample())
    stored = json.loads(json.dumps(state, allow_nan=False))
    assert stored == state
    assert np.array_equal(predicted(card, images, stored), predicted(card, images, state))


def test_a_tile_with_its_halo_says_what_the_whole_says(exact: Card) -> None:
    card = exact
    images = scene(card, 150, 170)
    images[0, :, 60:70, 80:95] = np.nan
    pair, found = pair_of(card, images), detector(card.slug)
    state = found.fit(pair.sample())
    whole, known = predict_whole(found, pair, state)
    multiple = found.multiple
    worst = 0.0
    for row in range(0, 150, 64):
        for col in range(0, 170, 64):
            core = Window(row, col, 64, 64).clip(150, 170)
            read = core.pad(found.halo)
            grown = Window(
                read.row,
                read.col,
                -(-read.height // multiple) * multiple,
                -(-read.width // multiple) * multiple,
            )
            tile = torch.from_numpy(pair.read(grown).images)[None]
            with torch.inference_mode():
                said = found.predict(tile, torch.isfinite(tile).all(dim=2), state)[0].numpy()
            h = found.halo
            difference = np.abs(said[h : h + core.height, h : h + core.width] - whole[core.slices])
            worst = max(worst, float(difference[known[core.slices]].max(initial=0)))
    assert worst < 1e-4


def test_a_batch_says_what_its_tiles_say(card: Card) -> None:
    one, other = scene(card, 64, 64), scene(card, 64, 64, seed=1)
    found = detector(card.slug)
    state = found.fit(pair_of(card, one).sample())
    images = torch.from_numpy(np.stack([one, other]))
    valid = torch.ones(2, 2, 64, 64, dtype=torch.bool)
    with torch.inference_mode():
        together = found.predict(images, valid, state)
        apart = [found.predict(images[i : i + 1], valid[i : i + 1], state)[0] for i in range(2)]
    assert torch.allclose(together, torch.stack(apart), atol=1e-5)


# --- what is missing -------------------------------------------------------------------------------
def test_a_missing_pixel_makes_no_other_one_missing(card: Card) -> None:
    images = scene(card, 60, 70)
    state = detector(card.slug).fit(pair_of(card, images).sample())
    images[1, 0, 25, 35] = np.nan  # one band of one date
    probability = predicted(card, images, state)
    here = np.ones(probability.shape, bool)
    here[25, 35] = False
    assert np.isfinite(probability[here]).all()


def test_a_missing_pixel_reaches_no_farther_than_the_halo(exact: Card) -> None:
    card = exact
    images = scene(card, 150, 170)
    found = detector(card.slug)
    state = found.fit(pair_of(card, images).sample())
    clean = predicted(card, images, state)
    holed = images.copy()
    holed[1, 0, 75, 85] = np.nan  # one band of one date
    probability = predicted(card, holed, state)
    here = np.ones(clean.shape, bool)
    here[75, 85] = False
    reach = found.halo
    here[max(0, 75 - reach) : 75 + reach + 1, max(0, 85 - reach) : 85 + reach + 1] = False
    assert here.any()
    assert np.abs(probability - clean)[here].max() < 1e-4


def test_fitting_ignores_what_is_missing(card: Card) -> None:
    images = scene(card)
    masked = images.copy()
    masked[1, :, 60:, :] = np.nan
    found = detector(card.slug)
    state = found.fit(pair_of(card, masked).sample())
    assert "NaN" not in json.dumps(state)
    probability, known = predict_whole(found, pair_of(card, masked), state)
    assert np.isfinite(probability[known]).all()
    if must_find(card):
        assert probability[known].max() > 0.5


def test_nothing_usable_is_an_error_that_says_so(card: Card) -> None:
    """A network that needs to know nothing of the scene may go on: the engine skips what is not valid."""
    pair = pair_of(card, np.full_like(scene(card), np.nan))
    if isinstance(detector(card.slug), NetworkDetector):
        try:
            state = detector(card.slug).fit(pair.sample())
        except NoValidDataError:
            return
        assert np.isfinite(predict_whole(detector(card.slug), pair, state)[0]).all()
    else:
        with pytest.raises(NoValidDataError, match="usable"):
            detector(card.slug).fit(pair.sample())


# --- nothing to find -------------------------------------------------------------------------------
def threshold_of(card: Card, state: dict[str, Any]) -> float:
    stated = state.get("threshold", card.threshold)
    return 0.5 if stated is None else stated


def test_identical_dates_show_no_change(trained: Card) -> None:
    card = trained
    images = scene(card)
    images[1] = images[0]
    pair, found = pair_of(card, images), detector(card.slug)
    state = found.fit(pair.sample())
    json.dumps(state, allow_nan=False)
    probability, _ = predict_whole(found, pair, state)
    assert np.isfinite(probability).all()
    assert probability.max() < min(0.5, threshold_of(card, state))


@pytest.mark.parametrize("same", [True, False], ids=["same", "two constants"])
def test_constant_dates_show_no_change(trained: Card, same: bool) -> None:
    card = trained
    images = np.full_like(scene(card), 0.4 if Unit.RGB255 not in card.inputs.units else 100.0)
    if not same:
        images[1] *= 1.01
    pair, found = pair_of(card, images), detector(card.slug)
    state = found.fit(pair.sample())
    probability, _ = predict_whole(found, pair, state)
    assert np.isfinite(probability).all()
    assert (probability >= threshold_of(card, state)).mean() == 0


def test_a_constant_band_is_no_reason_to_fail(card: Card) -> None:
    images = scene(card)
    images[:, 0] = images[0, 0, 0, 0]
    probability = predicted(card, images)
    assert np.isfinite(probability).all()
    if must_find(card):
        assert probability[22:34, 34:46].mean() > 0.5


def test_identical_but_for_one_object(trained: Card) -> None:
    card = trained
    images = scene(card)
    images[1] = images[0]
    images[1, :, 18:38, 30:50] += images.max() - images.min()
    probability = predicted(card, images)
    if must_find(card):
        assert probability[23:33, 35:45].mean() > 0.5
    away = np.ones(probability.shape, bool)
    away[13:43, 25:55] = False
    assert probability[away].max() < 0.5


# --- which date came first -------------------------------------------------------------------------
def test_swapped_dates(card: Card) -> None:
    images = scene(card)
    swapped = np.ascontiguousarray(images[::-1])
    forth, back = predicted(card, images), predicted(card, swapped)
    if card.date_order is DateOrder.SYMMETRIC:
        assert np.abs(forth - back).max() < 2e-3
    else:
        assert card.date_order is DateOrder.ORDERED
        assert np.abs(forth - back).max() > 1e-4


def test_fitting_takes_blocks_in_any_cut(card: Card) -> None:
    """A sample of four blocks and one of the whole describe the same scene."""
    images = scene(card, 80, 96)
    pair, found = pair_of(card, images), detector(card.slug)
    windows = [Window(r, c, 40, 48) for r in (0, 40) for c in (0, 48)]
    in_four = predicted(card, images, found.fit(PairSample(pair, windows, 1.0)))
    in_one = predicted(card, images, found.fit(pair.sample()))
    assert ((in_four > 0.5) != (in_one > 0.5)).mean() < 0.02
