from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import DateOrder, Status, Stretch
from terralapse.errors import SystemNotReadyError, WeightsMismatchError
from terralapse.layers.stem import inflate_stem
from terralapse.layers.weights import read_tensors
from terralapse.models.change import fsg_net
from terralapse.models.change.fsg_net import DAWIM, HEAD, LGFU, SIZES, VARIANTS, FSGNet, Size
from terralapse.tasks.metrics import binary_scores, confusion_matrix

CARDS = {c.slug.partition("/")[2]: c for c in VARIANTS}
FOUR = ("blue", "green", "red", "nir")
THIRTEEN = tuple(f"b{i}" for i in range(13))
TINY = Size("resnet18", (("layers", (1, 1, 1, 1)), ("channels", (8, 8, 16, 16))), (8, 8, 16, 16))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with nothing left at zero: at the start parts of it are the identity."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "bn" in name or name.endswith(("bias", "gamma")) or "frequency" in name:
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def detector(**options: Any) -> Any:
    torch.manual_seed(0)
    found = fsg_net.build(CARDS["nano"], untrained=True, **options)
    lively(found.network)
    return found


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- what it is ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_parameters(size: str) -> None:
    with torch.device("meta"):
        network = FSGNet(SIZES[size])
    assert sum(p.numel() for p in network.parameters()) == CARDS[size].parameters


def test_the_cards() -> None:
    assert HEAD.parameters == CARDS["resnet18"].parameters
    for card in (HEAD, *VARIANTS):
        assert card.status is Status.RUNS
        assert card.date_order is DateOrder.ORDERED
        assert any("reconstruction" in limit for limit in card.limits)
        assert not card.figures
        assert not card.weights
    assert "our own" in CARDS["nano"].title


def test_the_attention_stands_at_the_deep_levels() -> None:
    network = FSGNet(TINY)
    assert set(network.space) == {"3", "4"}
    seen: list[tuple[int, ...]] = []
    for module in network.space.values():
        module.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    network.eval()(normal(1, 3, 64, 96), normal(1, 3, 64, 96, seed=1))
    assert seen == [(4, 6), (2, 3)]


# --- the reconstructed modules ---------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)])
def test_the_wavelet_interaction_starts_as_the_identity(size: tuple[int, int]) -> None:
    module = DAWIM(4)
    first, second = normal(2, 4, *size), normal(2, 4, *size, seed=1)
    one, two = module(first, second)
    assert torch.equal(one, first)
    assert torch.equal(two, second)


def test_the_wavelet_interaction_exchanges_the_dates() -> None:
    module = DAWIM(4)
    for p in module.parameters():
        nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(p.numel()))
    first, second = normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    with torch.no_grad():
        assert relative(module(first, second)[0], first) > 0.1
    # |h1 - h2| and the gate are the same either way, but the factor sees h1 and h2 in their order.
    nn.init.zeros_(module.weigh.weight)
    with torch.no_grad():
        one, two = module(first, second)
        back, forth = module(second, first)
    assert torch.allclose(one, forth, atol=1e-6)
    assert torch.allclose(two, back, atol=1e-6)


def test_the_high_bands_of_a_channel_are_weighed_by_its_own() -> None:
    module = DAWIM(3)
    nn.init.normal_(module.weigh.weight, generator=torch.Generator().manual_seed(0))
    first, second = normal(1, 3, 8, 8), normal(1, 3, 8, 8, seed=1)
    moved = first.clone()
    moved[:, 1] += normal(8, 8, seed=2)
    with torch.no_grad():
        apart = (module(moved, second)[1] - module(first, second)[1]).abs().amax(dim=(0, 2, 3))
    assert apart[0] == apart[2] == 0
    assert apart[1] > 0.01


def test_deep_maps_gate_shallow_ones() -> None:
    module = LGFU(8, 4).eval()
    deep, shallow = normal(1, 8, 3, 3), normal(1, 4, 6, 6, seed=1)
    with torch.no_grad():
        assert module(deep, shallow).shape == shallow.shape
        assert module.gate.bias is not None
        module.gate.bias.fill_(-1e4)
        assert torch.equal(module(deep, shallow), module(deep, 2 * shallow))


# --- as a system -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 7), (33, 70)])
def test_sides_of_any_size(size: tuple[int, int]) -> None:
    found = detector()
    with torch.no_grad():
        output = found.forward(normal(1, 2, 3, *size))
    assert output.probability().shape == (1, *size)
    assert torch.isfinite(output.logits).all()


def test_the_order_of_the_dates_matters() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert relative(found.forward(images.flip(1)).logits, found.forward(images).logits) > 0.02


def test_new_weights_expect_little_change() -> None:
    torch.manual_seed(0)
    network = FSGNet(TINY)
    assert torch.softmax(network.bias.detach(), 0)[1].item() == pytest.approx(fsg_net.PRIOR)


def test_new_weights_see_the_difference_of_the_dates() -> None:
    for lateral, width in zip(FSGNet(TINY).laterals, TINY.widths, strict=True):
        x = normal(1, width, 4, 4)
        assert lateral.get_submodule("conv")(torch.cat([x, x], dim=1)).abs().max() < 1e-5


def test_calibration_shifts_the_log_odds() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images).logits, before + 0.75, atol=1e-5)


def test_losses_and_pixels_that_are_ignored() -> None:
    found = detector()
    label = torch.zeros(1, 40, 40, dtype=torch.long)
    label[0, 2:9, 3:12] = 1
    label[0, 30:] = 255
    output = found.forward(normal(1, 2, 3, 40, 40))
    parts = found.loss(output, {"label": label})
    assert parts["total"].item() == pytest.approx(parts["cross_entropy"].item() + parts["dice"].item())
    (gradient,) = torch.autograd.grad(parts["total"], output.logits)
    assert (gradient[0, 30:] == 0).all()
    assert (gradient[0, :30] != 0).any()
    nothing = found.loss(found.forward(normal(1, 2, 3, 32, 32)), {"label": torch.full((1, 32, 32), 255)})
    assert nothing["total"].item() == 0.0


def test_two_pairs_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    network = FSGNet(TINY).train()
    system = fsg_net.FSGNetDetector(CARDS["nano"], network)
    before = normal(2, 3, 64, 64)
    after, label = before + 0.1 * normal(2, 3, 64, 64, seed=1), torch.zeros(2, 64, 64, dtype=torch.long)
    for image, (row, col) in enumerate([(8, 16), (32, 24)]):
        after[image, :, row : row + 24, col : col + 24] += 2.0
        label[image, row : row + 24, col : col + 24] = 1
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    f1 = 0.0
    for step in range(80):
        optimiser.zero_grad()
        output = system.forward(torch.stack([before, after], dim=1))
        system.loss(output, {"label": label})["total"].backward()
        optimiser.step()
        if step >= 20 and step % 5 == 0:
            f1 = binary_scores(confusion_matrix(label.numpy(), (output.logits > 0).long().numpy(), 2)).f1
            if f1 > 0.9:
                break
    assert f1 > 0.9


# --- other bands, and starts -----------------------------------------------------------------------------
@pytest.mark.parametrize("bands", [FOUR, THIRTEEN], ids=["4 bands", "13 bands"])
def test_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    assert found.card.inputs.bands == bands
    assert found.card.inputs.normalisation.stretch is Stretch.SCENE_PERCENTILE
    with torch.no_grad():
        assert found.forward(normal(1, 2, len(bands), 40, 33)).logits.shape == (1, 40, 33)


def published(size: Size = SIZES["resnet18"]) -> dict[str, Tensor]:
    """A ResNet as torchvision publishes it: with a classifier, and in older files without counts."""
    torch.manual_seed(1)
    body = FSGNet(size).encoder.state_dict()
    kept = {k: v.clone() for k, v in body.items() if not k.endswith("num_batches_tracked")}
    return kept | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}


def test_the_encoder_starts_from_imagenet() -> None:
    found, tensors = fsg_net.build(HEAD, untrained=True), published()
    found.start_encoder(tensors)
    own = found.network.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in tensors.items() if not k.startswith("fc."))
    wide = fsg_net.build(HEAD, untrained=True, bands=FOUR)
    wide.start_encoder(tensors)
    stem = wide.network.encoder.state_dict()["conv1.weight"]
    assert torch.equal(stem, inflate_stem(tensors["conv1.weight"], FOUR))
    other = fsg_net.build(HEAD, untrained=True)
    other.start_encoder(found.network.state_dict())
    assert all(torch.equal(v, own[k]) for k, v in other.network.encoder.state_dict().items())
    del tensors["layer2.0.conv1.weight"]
    with pytest.raises(WeightsMismatchError, match=r"layer2\.0\.conv1"):
        found.start_encoder(tensors)


def test_files_of_weights(tmp_path: Path) -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        fsg_net.build(CARDS["nano"])
    wanted = detector().network.state_dict()
    save_file({f"module.{k}": v for k, v in wanted.items()}, tmp_path / "a.safetensors")
    found = fsg_net.build(CARDS["nano"], tmp_path / "a.safetensors").network
    assert not found.training
    assert all(torch.equal(v, wanted[k]) for k, v in found.state_dict().items())
    save_file({k: v for k, v in wanted.items() if k != "head.1.bias"}, tmp_path / "b.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"head\.1\.bias"):
        fsg_net.build(CARDS["nano"], tmp_path / "b.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")["module.drop.passes"].item() == 0


def test_it_is_in_the_index() -> None:
    assert registry.card("fsg-net/nano").parameters == CARDS["nano"].parameters


# --- types and exports -----------------------------------------------------------------------------------
def test_bfloat16_is_close_to_float32() -> None:
    network = lively(FSGNet(TINY))
    dates = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(network(*dates), wanted) < 0.05
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        network(*dates).float().square().mean().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.slow
def test_it_compiles() -> None:
    network = lively(FSGNet(TINY))
    dates = normal(1, 3, 32, 64), normal(1, 3, 32, 64, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        assert relative(torch.compile(network, backend="aot_eager")(*dates), wanted) < 1e-5


@pytest.mark.slow
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    dates, fresh = ([normal(1, 3, 64, 64, seed=s) for s in seeds] for seeds in ((0, 1), (5, 6)))
    assert largest_gap(detector().network, dates, fresh, tmp_path) < 1e-4
