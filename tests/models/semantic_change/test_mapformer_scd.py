from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from terralapse.cards import Status
from terralapse.labels import SCHEMES
from terralapse.layers.mix_transformer import MixSize
from terralapse.models.semantic_change import mapformer_scd
from terralapse.models.semantic_change.mapformer_scd import (
    MODELS,
    VARIANTS,
    JointMapFormer,
    MapFormerSemantic,
    SplitMapFormer,
)

SMALL = MixSize((8, 16, 24, 32), (1, 1, 1, 1), (1, 2, 3, 4), mlp=2, drop_path_rate=0.0)
KINDS = {"f": JointMapFormer, "f2": SplitMapFormer}
CLASSES = 6


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, shape, generator=torch.Generator().manual_seed(seed))


def system(kind: str) -> Any:
    torch.manual_seed(0)
    variant = VARIANTS[f"scd-{kind}-dynamicearthnet"]
    card = next(c for c in MODELS if c.slug.endswith(variant.slug))
    network = KINDS[kind](CLASSES, SMALL, width=16, k=3, map_width=8)
    return MapFormerSemantic(card, network.eval(), variant.classes)


def batch() -> dict[str, Tensor]:
    """A square that became another class; a border that nobody labelled."""
    known, after = ids(2, 40, 40), torch.zeros(2, 40, 40, dtype=torch.long)
    before = torch.zeros_like(after)
    square = (slice(None), slice(4, 16), slice(4, 16))
    before[square] = known[square] + 1
    after[square] = (known[square] + 1) % CLASSES + 1
    before[:, -3:], after[:, -3:] = 255, 255
    return {"images": 127 + 50 * normal(2, 2, 3, 40, 40), "before": before, "after": after, "map": known}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_number_of_parameters(variant: mapformer_scd.Variant) -> None:
    with torch.device("meta"):
        network = KINDS[variant.kind](len(variant.classes.classes))
    assert sum(p.numel() for p in network.parameters()) == variant.parameters


def test_the_cards() -> None:
    for card in MODELS:
        assert card.classes in SCHEMES
        golden = card.slug == "mapformer/scd-f-dynamicearthnet"
        assert card.status is (Status.REPRODUCED if golden else Status.RUNS)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_both_dates_where_something_changed(kind: str) -> None:
    found = system(kind)
    given = batch()
    with torch.no_grad():
        output = found.respond(given, {})
    assert output.classes.shape == (2, 2, 40, 40)
    assert output.before.shape == output.after.shape == (2, CLASSES + 1, 40, 40)
    first, second = output.maps()
    changed = output.change().logits > 0
    assert ((first > 0) == changed).all()
    assert ((second > 0) == changed).all()
    if kind == "f":  # the classes before are those of the map
        assert torch.equal(first[changed], given["map"][changed] + 1)


def test_the_map_may_be_unknown_in_places() -> None:
    found, given = system("f"), batch()
    given["map"][:, :10] = 255
    with torch.no_grad():
        assert torch.isfinite(found.respond(given, {}).after).all()


def test_f2_names_the_classes_of_each_image_by_itself() -> None:
    network = system("f2").network
    images = [normal(1, 3, 32, 32, seed=s) for s in range(3)]
    with torch.no_grad():
        one = network.decide(network.pyramids(images[0], images[1]), ids(1, 32, 32))
        two = network.decide(network.pyramids(images[2], images[1]), ids(1, 32, 32, seed=1))
    assert torch.allclose(one[1], two[1], atol=1e-5)
    assert not torch.allclose(one[2], two[2], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_reaches_every_parameter(kind: str) -> None:
    found = system(kind)
    found.network.train()
    parts = found.loss(found.respond(batch(), {}), batch())
    named = {"classes_after"} if kind == "f" else {"classes_after", "classes_before"}
    assert set(parts) == {"total", "change", "before_alike", "after_alike", "after_unlike", *named}
    parts["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in found.network.parameters())


def test_what_did_not_change_is_what_the_map_says() -> None:
    found, given = system("f"), batch()
    output = found.respond(given, {})
    truth = torch.where(given["after"] == 0, given["map"], given["after"] - 1).clamp(0, CLASSES - 1)
    sure = 50 * torch.nn.functional.one_hot(truth, CLASSES).permute(0, 3, 1, 2).float()
    output.after = torch.cat([torch.full_like(sure[:, :1], -1e4), sure], dim=1)
    assert found.loss(output, given)["classes_after"].item() == pytest.approx(0.0, abs=1e-5)


def test_names_of_the_published_files() -> None:
    own = set(system("f2").network.state_dict())
    theirs = {
        k.replace("backbone.", "backbone.backbone.", 1)
        .replace("head.", "decode_head.bc_head.", 1)
        .replace("semantic.", "decode_head.sem_head.", 1)
        for k in own
    }
    assert set(mapformer_scd.official_names(dict.fromkeys(theirs, torch.zeros(1)))) == own
