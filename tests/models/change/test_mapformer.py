from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse.cards import Status
from terralapse.errors import ModelInputError, SystemNotReadyError, WeightsMismatchError
from terralapse.grid.pair import ArrayPair
from terralapse.labels import DYNAMICEARTHNET, RULES
from terralapse.models.change import mapformer
from terralapse.models.change.mapformer import MODELS, NANO, VARIANTS, MapFormer, official_names
from terralapse.sensors import Unit
from terralapse.tasks.metrics import binary_scores


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int, classes: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something."""
    draw = torch.Generator().manual_seed(seed)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=draw)
            m.running_var.uniform_(0.5, 1.5, generator=draw)
    for name, p in network.named_parameters():
        if ".norm" in name or "layer1" in name:
            p.data.add_(0.3 * torch.randn(p.shape, generator=draw))
    return network.eval()


def detector(**options: Any) -> Any:
    torch.manual_seed(0)
    card = next(c for c in MODELS if c.slug == "mapformer/nano")
    found = mapformer.build(card, untrained=True, **options)
    lively(found.network)
    return found


def small(dates: int = 2) -> Any:
    torch.manual_seed(0)
    return lively(MapFormer(NANO, 5, dates))


# --- what it is --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_the_number_of_parameters(variant: mapformer.Variant) -> None:
    with torch.device("meta"):
        network = MapFormer(variant.size, len(variant.classes.classes), variant.dates)
    assert sum(p.numel() for p in network.parameters()) == variant.parameters


def test_the_parts_of_the_published_head() -> None:
    with torch.device("meta"):
        head = MapFormer(mapformer.PAPER, 6).head
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in head.named_children()}
    assert counted == {
        "map_encoder": 51_584,
        "temporal_fusion_modules": 8_232_960,
        "attention_weights": 337_920,
        "fusion_conv": 262_656,
        "dropout": 0,
        "conv_seg": 514,
        "contrastive_img_forward": 535_072,
    }


def test_the_cards() -> None:
    assert {c.slug for c in MODELS} == {"mapformer", *(f"mapformer/{v}" for v in VARIANTS)}
    for card in MODELS:
        golden = card.slug in ("mapformer", "mapformer/dynamicearthnet")
        assert card.status is (Status.REPRODUCED if golden else Status.RUNS)
        assert any("map of the earlier date" in limit for limit in card.limits)
        assert card.classes == "binary-change"


def test_files_of_the_published_code_load_by_name(tmp_path: Path) -> None:
    wanted = detector()
    theirs = {
        k.replace("backbone.", "backbone.backbone.", 1).replace("head.", "decode_head.bc_head.", 1)
        if k.startswith(("backbone.", "head."))
        else k: v
        for k, v in wanted.network.state_dict().items()
    }
    torch.save({"meta": {}, "state_dict": theirs, "optimizer": {}}, tmp_path / "latest.pth")
    card = next(c for c in MODELS if c.slug == "mapformer/nano")
    found = mapformer.build(card, weights=tmp_path / "latest.pth")
    own = found.network.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in wanted.network.state_dict().items())
    assert official_names(own).keys() == own.keys()
    assert not official_names({"decode_head.sem_head.bias": torch.zeros(1)})
    save_file({k: v for k, v in own.items() if k != "head.conv_seg.bias"}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"head\.conv_seg\.bias"):
        mapformer.build(card, weights=tmp_path / "part.safetensors")
    with pytest.raises(SystemNotReadyError, match="no weights"):
        mapformer.build(card)


# --- what it looks at --------------------------------------------------------------------------------------
def test_the_map_decides_together_with_both_images() -> None:
    network = small()
    before, after, known = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1), ids(1, 64, 64)
    with torch.no_grad():
        wanted = network(before, after, known)
        others = (
            network(after, before, known),
            network(before, after, ids(1, 64, 64, seed=3)),
            network(before, after, torch.full_like(known, 255)),
        )
    assert wanted.shape == (1, 2, 64, 64)
    for other in others:
        assert torch.isfinite(other).all()
        assert ((other - wanted).norm() / (wanted - wanted.mean(dim=(2, 3), keepdim=True)).norm()) > 0.02


def test_the_cross_modal_variant_looks_at_the_later_image_alone() -> None:
    network = small(dates=1)
    after, known = normal(1, 3, 32, 32, seed=1), ids(1, 32, 32)
    with torch.no_grad():
        found = [network(normal(1, 3, 32, 32, seed=s), after, known) for s in (2, 3)]
        swapped = network(after, normal(1, 3, 32, 32, seed=2), known)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], swapped, atol=1e-4)


def test_a_pair_does_not_see_the_others_of_its_batch() -> None:
    network = small()
    before, after, known = normal(3, 3, 32, 32), normal(3, 3, 32, 32, seed=1), ids(3, 32, 32)
    with torch.no_grad():
        together = network(before, after, known)
        assert torch.allclose(together[1:2], network(before[1:2], after[1:2], known[1:2]), atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (33, 70)])
def test_sides_of_any_size(size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = detector().forward(normal(1, 2, 3, *size), map=ids(1, *size))
    assert output.logits.shape == (1, *size)
    assert torch.isfinite(output.logits).all()
    assert output.contrast is None


@pytest.mark.parametrize("bands", [("blue", "green", "red", "nir"), tuple(f"b{i}" for i in range(13))])
def test_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    with torch.no_grad():
        assert found.forward(normal(1, 2, len(bands), 32, 32), map=ids(1, 32, 32)).logits.shape == (1, 32, 32)
    assert found.card.inputs.bands == bands


def test_an_encoder_of_red_green_and_blue_starts_one_of_four_bands() -> None:
    published = {k.removeprefix("backbone."): v for k, v in small().state_dict().items() if "backbone" in k}
    found = detector(bands=("red", "green", "blue", "nir"))
    found.start_encoder({**published, "head.weight": torch.zeros(1)})
    theirs = published["patch_embed1.proj.weight"]
    assert torch.allclose(found.network.backbone.patch_embed1.proj.weight[:, :3], 0.75 * theirs)


def test_maps_of_other_classes() -> None:
    found = detector(map_scheme="dynamicearthnet")
    assert found.map_scheme is DYNAMICEARTHNET
    assert found.network.head.map_encoder.classes == 6
    assert detector().map_scheme is RULES


# --- as a detector -----------------------------------------------------------------------------------------
def scene(with_map: bool = True, unit: Unit = Unit.RGB255) -> ArrayPair:
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, (2, 3, 40, 50)).astype(np.float32)
    bands: tuple[str, ...] = ("red", "green", "blue")
    if with_map:
        images = np.concatenate([np.repeat(rng.integers(0, 5, (1, 1, 40, 50)), 2, 0), images], axis=1)
        bands = ("map", *bands)
    return ArrayPair(images, bands=bands, unit=unit)


def test_the_map_is_a_band_that_is_not_stretched() -> None:
    found, pair = detector(), scene(unit=Unit.RAW)
    state = found.fit(pair.sample())
    assert state["map"] == 0
    assert state["bands"] == [1, 2, 3]
    assert len(state["stretch"]["low"]) == 3
    images = torch.from_numpy(pair.sample().pair.read(pair.sample().windows[0]).images)[None]
    known = found.extras_of(images, state)["map"]
    assert torch.equal(known, images[:, 0, 0].long())
    valid = torch.ones(1, 2, 40, 50, dtype=torch.bool)
    with torch.no_grad():
        wanted = found.forward(found.normalise(images[:, :, 1:], None, state), map=known).probability()
    assert torch.allclose(found.predict(images, valid, state), wanted, atol=1e-6)
    images[:, 1, 0] = 99.0  # what the band says at the later date is not read
    assert torch.allclose(found.predict(images, valid, state), wanted, atol=1e-6)


def test_without_a_map_the_error_says_how_to_give_one() -> None:
    found = detector()
    with pytest.raises(ModelInputError, match=r"map of the earlier date.*0 vegetation.*--before-map"):
        found.fit(scene(with_map=False).sample())
    with pytest.raises(ModelInputError, match="--before-map"):
        found.respond({"images": normal(1, 2, 3, 32, 32)}, {})


def test_calibration_shifts_the_log_odds() -> None:
    found, images, known = detector(), normal(1, 2, 3, 32, 32), ids(1, 32, 32)
    with torch.no_grad():
        before = found.forward(images, map=known).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images, map=known).logits, before + 0.75, atol=1e-5)


# --- losses and training -----------------------------------------------------------------------------------
def batch(size: int = 40) -> dict[str, Tensor]:
    label = torch.zeros(2, size, size, dtype=torch.long)
    label[:, 4:16, 4:16] = 1
    label[:, -3:] = 255
    images = 127 + 50 * normal(2, 2, 3, size, size)
    images[:, 1, :, 4:16, 4:16] += 100
    return {"images": images, "label": label, "map": ids(2, size, size)}


def test_a_training_step_reaches_every_parameter() -> None:
    found = detector()
    found.network.train()
    parts = found.loss(found.respond(batch(), {}), batch())
    assert set(parts) == {"total", "cross_entropy", "before_alike", "after_alike", "after_unlike"}
    assert parts["total"].item() == pytest.approx(
        sum(v.item() for k, v in parts.items() if k != "total"), abs=1e-5
    )
    parts["total"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in found.network.parameters())


def test_ignored_pixels_of_the_change_train_nothing() -> None:
    found = detector()
    given = {**batch(), "label": torch.full((2, 40, 40), 255)}
    parts = found.loss(found.respond(given, {}), given)
    assert parts["total"].item() == 0.0


def test_faithful_losses_divide_by_all_pixels() -> None:
    plain, faithful = detector(), detector(faithful=True)
    output = plain.respond(batch(), {})
    ratio = faithful.loss(output, batch())["total"] / plain.loss(output, batch())["total"]
    assert ratio.item() == pytest.approx(37 / 40, abs=1e-4)


def test_it_starts_from_rare_change() -> None:
    torch.manual_seed(0)
    card = next(c for c in MODELS if c.slug == "mapformer/nano")
    found = mapformer.build(card, untrained=True)
    with torch.no_grad():
        assert found.respond(batch(), {}).probability().mean().item() == pytest.approx(0.05, abs=0.03)


def test_it_learns_two_pairs() -> None:
    torch.manual_seed(0)
    found = mapformer.build(next(c for c in MODELS if c.slug == "mapformer/nano"), untrained=True)
    network = found.network.train()
    step = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(40):
        parts = found.loss(found.respond(batch(64), {}), batch(64))
        step.zero_grad()
        parts["total"].backward()
        step.step()
    network.eval()
    with torch.no_grad():
        said, label = found.respond(batch(64), {}).logits > 0, batch(64)["label"]
    both, either = ((said & (label == 1)).sum(), ((said | (label == 1)) & (label != 255)).sum())
    assert (both / either).item() > 0.6


def test_the_score_of_the_paper() -> None:
    """BC is the IoU of change: 3 found, 1 too many, 1 missed."""
    assert binary_scores(np.array([[10, 1], [1, 3]])).iou == pytest.approx(0.6)


# --- elsewhere ---------------------------------------------------------------------------------------------
def test_bfloat16_is_close_to_float32() -> None:
    network = small()
    given = normal(1, 3, 32, 64), normal(1, 3, 32, 64, seed=1), ids(1, 32, 64)
    with torch.no_grad():
        wanted = network(*given)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(*given)
    assert ((mixed.float() - wanted).norm() / wanted.norm()).item() < 0.05


@pytest.mark.slow
def test_it_compiles() -> None:
    network = small()
    given = normal(1, 3, 32, 32), normal(1, 3, 32, 32, seed=1), ids(1, 32, 32)
    with torch.no_grad():
        wanted = network(*given)
        found = torch.compile(network, backend="aot_eager")(*given)
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.slow
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    """The whole small network at its smallest size."""
    given = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1), ids(1, 64, 64)
    fresh = normal(1, 3, 64, 64, seed=5), normal(1, 3, 64, 64, seed=6), ids(1, 64, 64, seed=7)
    assert largest_gap(small(), given, fresh, tmp_path) < 1e-4
