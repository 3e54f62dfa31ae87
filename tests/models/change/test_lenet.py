from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import DateOrder, Status, Stretch
from terralapse.errors import SystemNotReadyError, WeightsMismatchError
from terralapse.layers.decoding import up_to
from terralapse.layers.stem import inflate_stem
from terralapse.layers.swin_v2 import SwinV2
from terralapse.layers.weights import read_tensors
from terralapse.models.change import lenet
from terralapse.models.change.lenet import BASE, HEAD, NANO, SMALL, LENet, change_losses, official_names
from terralapse.tasks.losses import cross_entropy

# As the published size, with windows of 4 in images of 128 pixels: its last stage is one whole window too.
FIXED = replace(
    NANO, dim=4, heads=(1, 1, 1, 1), width=8, decoder_heads=(1, 1, 1, 1), side=128, stride=85, mlp_ratio=1.0
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something: at the start the blocks say nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "norm" in name or "bn" in name or name.endswith("bias"):
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
            if "conv_seg" in name:
                p.add_(0.5 * torch.randn(p.shape, generator=draw))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def detector(**options: Any) -> Any:
    torch.manual_seed(0)
    found = registry.build("lenet/nano", untrained=True, **options)
    lively(found.network)
    return found


def fixed() -> Any:
    """The published size in everything but its widths."""
    torch.manual_seed(0)
    return lenet.LENetDetector(HEAD, lively(LENet(FIXED)))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- what it is ----------------------------------------------------------------------------------------
def test_the_number_of_parameters_of_each_block() -> None:
    with torch.device("meta"):
        network = LENet(BASE)
    assert count(network) == HEAD.parameters == 168_063_726
    assert count(network.encoder) == 86_891_768
    assert count(network.fpnA) == count(network.fpnB) == 2_852_864
    assert count(network.decode_layersA) == count(network.decode_layersB) == 6_389_880
    assert count(network.channelA) == count(network.channelB) == 659_584
    assert [count(network.get_submodule(f"re_weight{i}")) for i in (1, 2, 3)] == [2_361_344] * 3
    assert [count(m) for m in network.rwe] == [590_848, 590_848, 2_361_344, 9_441_280, 37_756_928]
    assert [count(m) for m in (network.decode_head, *network.auxiliary_head)] == [1_180_674] * 3
    heads = [k for k in network.state_dict() if "_head" in k]
    assert len(network.state_dict()) - len(heads) == 997


def test_the_small_size() -> None:
    assert count(detector().network) == SMALL.parameters
    assert SMALL.parameters is not None
    assert SMALL.parameters <= 1_500_000


def test_the_cards() -> None:
    assert HEAD.status is Status.REPRODUCED
    assert SMALL.status is Status.RUNS
    for card in (HEAD, SMALL):
        assert card.date_order is DateOrder.ORDERED
        assert any("order" in limit for limit in card.limits)
    assert any("256 x 256" in limit for limit in HEAD.limits)


def test_maps_and_heads_of_the_published_side() -> None:
    network = fixed().network
    dates = normal(1, 3, 128, 128), normal(1, 3, 128, 128, seed=1)
    with torch.no_grad():
        pairs = network.weighted(*dates)
        maps = network.change_maps(*dates)
        logits = network.heads(maps)
        found = network(*dates)
    assert [tuple(a.shape) for a, _ in pairs] == [
        (1, 4, 32, 32),
        (1, 4, 32, 32),
        (1, 8, 16, 16),
        (1, 16, 8, 8),
        (1, 32, 4, 4),
    ]
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 16), (1, 16, 32, 32), (1, 16, 32, 32)]
    assert [tuple(x.shape) for x in logits] == [(1, 2, 32, 32), (1, 2, 16, 16), (1, 2, 32, 32)]
    assert torch.allclose(found, up_to(logits[0], (128, 128)))


# --- how the dates meet ----------------------------------------------------------------------------------
def test_features_of_a_date_depend_on_the_other() -> None:
    network = detector().network
    before, after, other = (normal(1, 3, 32, 32, seed=s) for s in range(3))
    with torch.no_grad():
        first, again = network.weighted(before, after), network.weighted(before, other)
    assert all(relative(a[0], b[0]) > 1e-3 for a, b in zip(first, again, strict=True))


def test_exchanged_dates_with_exchanged_weights_give_exchanged_maps() -> None:
    network = detector().network
    before, after = normal(1, 3, 64, 32), normal(1, 3, 64, 32, seed=1)
    with torch.no_grad():
        forth = network.change_maps(before, after)
        same = network.change_maps(after, before)
        turned = {}
        for name, value in network.state_dict().items():
            for stream in ("fpn", "conv", "decode_layers", "channel"):
                name = name.replace(f"{stream}A.", "?").replace(f"{stream}B.", f"{stream}A.")
                name = name.replace("?", f"{stream}B.")
            turned[name] = value.clone()
        network.load_state_dict(turned)
        back = network.change_maps(after, before)
    for one, other, plain in zip(forth, back, same, strict=True):
        a, b = other.chunk(2, dim=1)
        assert torch.allclose(one, torch.cat([b, a], dim=1), atol=1e-5)
        assert relative(one, torch.cat(plain.chunk(2, dim=1)[::-1], dim=1)) > 0.01


def test_the_order_of_the_dates_matters() -> None:
    network = detector().network
    before, after = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        assert relative(network(before, after), network(after, before)) > 0.01


def test_pyramids_see_the_exchanged_levels() -> None:
    """What date A has at strides 8 and 32 stays with it; at strides 4 and 16 it goes to pyramid B."""
    network = detector().network
    maps = [normal(1, 12 * 2**i, 8 // 2**i, 8 // 2**i, seed=i) for i in range(4)]
    zeros = [torch.zeros_like(m) for m in maps]
    with torch.no_grad():
        first, second = network.pyramids(maps, zeros)
        wanted_first = network.fpnA([zeros[0], maps[1], zeros[2], maps[3]])
        wanted_second = network.fpnB([maps[0], zeros[1], maps[2], zeros[3]])
    assert all(torch.equal(a, b) for a, b in zip(first + second, wanted_first + wanted_second, strict=True))


# --- as a system -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 7), (33, 70), (96, 32)])
def test_sides_of_any_size(size: tuple[int, int]) -> None:
    found = detector()
    with torch.no_grad():
        output = found.forward(normal(2, 2, 3, *size))
    assert output.change().probability().shape == (2, *size)
    assert torch.isfinite(output.logits).all()
    assert output.auxiliary == ()


@pytest.mark.parametrize("size", [(40, 128), (150, 214)])
def test_a_fixed_size_slides_over_any_other(size: tuple[int, int]) -> None:
    found = fixed()
    images = normal(1, 2, 3, *size)
    rows = [0] if size[0] <= 128 else [0, 22]
    columns = [0] if size[1] <= 128 else [0, 85, 86]
    whole = F.pad(images.flatten(0, 1), (0, 0, 0, max(0, 128 - size[0])), mode="replicate")[None]
    sums, times = torch.zeros(1, 2, *whole.shape[-2:]), torch.zeros(whole.shape[-2:])
    with torch.no_grad():
        for y in rows:
            for x in columns:
                tile = whole[..., y : y + 128, x : x + 128]
                sums[..., y : y + 128, x : x + 128] += found.network(tile[:, 0], tile[:, 1])
                times[y : y + 128, x : x + 128] += 1
        output = found.forward(images)
    assert times.min() == 1
    assert torch.allclose(output.classes, (sums / times)[..., : size[0], : size[1]], atol=1e-5)


def test_missing_pixels_stay_where_they_are() -> None:
    found = detector()
    images = 127 + 60 * normal(1, 2, 3, 40, 50)
    images[0, 1, 2, 11:14, 20] = float("nan")
    valid = ~images.isnan().any(dim=2)
    state = {"bands": [0, 1, 2], "temperature": 1.0}
    assert torch.isfinite(found.predict(images, valid, state)).all()


def test_calibration_shifts_the_log_odds() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images).logits, before + 0.75, atol=1e-5)


@pytest.mark.parametrize("bands", [("red", "green", "blue", "nir"), tuple(f"b{i}" for i in range(13))])
def test_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    assert found.card.inputs.bands == bands
    assert found.card.inputs.normalisation.stretch is Stretch.SCENE_PERCENTILE
    with torch.no_grad():
        assert found.forward(normal(1, 2, len(bands), 32, 40)).logits.shape == (1, 32, 40)


# --- types and other runtimes ------------------------------------------------------------------------------
def test_bfloat16_is_close_to_float32() -> None:
    network = detector().network
    dates = normal(1, 3, 64, 32), normal(1, 3, 64, 32, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = network(*dates)
    assert relative(mixed, wanted) < 0.05


def test_checkpointing_is_passed_on() -> None:
    network = detector().network
    assert not network.checkpointing
    network.checkpointing = True
    assert network.checkpointing
    assert all(b.checkpointing for b in (network.encoder, *network.decode_layersB.values()))


@pytest.mark.slow
def test_it_compiles() -> None:
    network = detector().network
    dates = normal(1, 3, 64, 32), normal(1, 3, 64, 32, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        assert relative(torch.compile(network, backend="aot_eager")(*dates), wanted) < 1e-5


@pytest.mark.slow
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    dates = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    fresh = [normal(1, 3, 64, 64, seed=s) for s in (5, 6)]
    assert largest_gap(detector().network, dates, fresh, tmp_path) < 1e-4


# --- losses ------------------------------------------------------------------------------------------------
def test_the_loss_is_the_weighted_sum_over_the_heads() -> None:
    label = torch.randint(0, 2, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    label[0, :4] = 255
    logits = [normal(2, 2, s, s, seed=s) for s in (8, 4, 8)]
    parts = change_losses(logits[0], logits[1:], label)
    wanted = [cross_entropy(up_to(x, (16, 16)), label) for x in logits]
    assert torch.allclose(parts["total"], wanted[0] + 0.3 * (wanted[1] + wanted[2]))
    assert parts.keys() == {"total", "main", "aux0", "aux1"}
    published = change_losses(logits[0], logits[1:], label, over_all=True)
    known = (label != 255).float().mean()
    assert torch.allclose(published["total"], parts["total"] * known)


@pytest.mark.parametrize("faithful", [False, True])
def test_a_training_step_trains_everything(faithful: bool) -> None:
    found = detector(faithful=faithful)
    found.network.train()
    label = torch.zeros(2, 64, 64, dtype=torch.uint8)
    label[:, 10:20, 30:40] = 1
    label[:, 60:] = 255
    output = found.forward(normal(2, 2, 3, 64, 64))
    parts = found.loss(output, {"label": label})
    parts["total"].backward()
    assert len(output.auxiliary) == 2
    assert all(torch.isfinite(p) and p.ndim == 0 for p in parts.values())
    still = [n for n, p in found.network.named_parameters() if p.grad is None]
    assert still == []


def test_the_fixed_size_trains_on_larger_tiles() -> None:
    found = fixed()
    found.network.train()
    output = found.forward(normal(1, 2, 3, 130, 128))
    found.loss(output, {"label": torch.zeros(1, 130, 128, dtype=torch.uint8)})["total"].backward()
    assert [x.shape for x in output.auxiliary] == [(1, 2, 130, 128)] * 2
    assert found.network.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


def test_training_starts_at_a_low_rate_of_change() -> None:
    torch.manual_seed(0)
    found = lenet.build(SMALL, untrained=True)
    with torch.no_grad():
        rate = found.forward(normal(1, 2, 3, 64, 64)).probability().mean().item()
    assert 0.02 < rate < 0.1
    plain = lenet.build(SMALL, untrained=True, faithful=True)
    assert plain.network.decode_head.conv_seg.bias.abs().max() == 0  # pyright: ignore[reportOptionalMemberAccess]


# --- files of weights --------------------------------------------------------------------------------------
def as_published(network: LENet) -> dict[str, Tensor]:
    """The layout of the released code, with its dead Swin-T."""
    found = {}
    for name, value in network.state_dict().items():
        if name.startswith("encoder."):
            name = f"model.model.{name.removeprefix('encoder.')}"
        elif not name.startswith(("decode_head", "auxiliary_head")):
            name = f"model.{name}"
        found[name] = value.clone()
    return found | {"backbone.patch_embed.projection.weight": torch.ones(96, 3, 4, 4)}


def test_without_a_file_it_is_not_ready() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build("lenet")


@pytest.mark.parametrize("layout", ["own", "published", "distributed"])
def test_a_file_of_weights_comes_back(tmp_path: Path, layout: str) -> None:
    network = detector().network
    wanted = network.state_dict()
    tensors = {k: v.clone() for k, v in wanted.items()} if layout == "own" else as_published(network)
    if layout == "own":
        save_file(tensors, tmp_path / "a.safetensors")
    else:
        prefix = "module." if layout == "distributed" else ""
        torch.save({"state_dict": {prefix + k: v for k, v in tensors.items()}}, tmp_path / "a.pth")
    found = lenet.build(SMALL, next(tmp_path.iterdir())).network
    assert not found.training
    assert all(torch.equal(v, wanted[k]) for k, v in found.state_dict().items())


@pytest.mark.parametrize("fault", ["extra", "missing", "shape"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    tensors = as_published(detector().network)
    match fault:
        case "extra":
            tensors["model.rwe.5.convA.conv1.weight"] = torch.ones(3)
        case "missing":
            del tensors["auxiliary_head.1.conv_seg.bias"]
        case _:
            tensors["model.rwe.0.convA.conv1.weight"] = torch.ones(128, 128, 3, 3)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(WeightsMismatchError):
        lenet.build(SMALL, tmp_path / "a.pth")


def imagenet(encoder: SwinV2) -> dict[str, Tensor]:
    """A file of timm for classification, with the encoder's shapes."""
    tensors = {
        k.replace("layers_", "layers."): normal(*v.shape, seed=i)
        for i, (k, v) in enumerate(encoder.state_dict().items())
    }
    return tensors | {"norm.weight": torch.ones(96), "head.fc.weight": torch.ones(10, 96)}


def test_the_encoder_starts_from_imagenet(tmp_path: Path) -> None:
    found = detector()
    theirs = imagenet(found.network.encoder)
    save_file(theirs, tmp_path / "swin.safetensors")
    found.start_encoder(read_tensors(tmp_path / "swin.safetensors"))
    own = found.network.encoder.state_dict()
    assert all(torch.equal(v, theirs[k.replace("layers_", "layers.")]) for k, v in own.items())
    del theirs["layers.2.blocks.1.attn.qkv.weight"]
    with pytest.raises(WeightsMismatchError, match=r"attn\.qkv"):
        found.start_encoder(theirs)


def test_the_encoder_starts_from_another_lenet() -> None:
    first, second, third = (lenet.build(SMALL, untrained=True) for _ in range(3))
    first.start_encoder(second.network.state_dict())
    assert_same_encoder(first.network, second.network)
    first.start_encoder(as_published(third.network))
    assert_same_encoder(first.network, third.network)
    assert official_names(as_published(third.network)).keys() == third.network.state_dict().keys()


def assert_same_encoder(one: LENet, other: LENet) -> None:
    theirs = other.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in one.encoder.state_dict().items())


@pytest.mark.parametrize("bands", [("blue", "green", "red"), ("red", "green", "blue", "nir")])
def test_a_start_from_imagenet_is_spread_over_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    theirs = imagenet(detector().network.encoder)
    found.start_encoder(theirs)
    wanted = inflate_stem(theirs["patch_embed.proj.weight"], bands)
    assert torch.equal(found.network.encoder.patch_embed.proj.weight, wanted)
