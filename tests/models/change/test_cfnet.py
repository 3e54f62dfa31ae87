from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import DateOrder, Status, Stretch
from terralapse.errors import (
    FileMissingError,
    ModelInputError,
    SettingError,
    SystemNotReadyError,
    WeightsMismatchError,
)
from terralapse.models.change import cfnet
from terralapse.models.change.cfnet import (
    BGR,
    DATES,
    HEAD,
    SIZES,
    VARIANTS,
    CFNet,
    ContentDecoder,
    FuseConv,
    focused,
    log_odds,
    official_names,
    squared_error,
)
from terralapse.tasks.dice import binary_dice
from terralapse.tasks.metrics import binary_scores, confusion_matrix

CARDS = {c.slug.partition("/")[2]: c for c in VARIANTS}
WIDTHS = (128, 64, 40, 24)  # of the published size, from coarse to fine


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.add_(0.2 * torch.randn(module.weight.shape, generator=draw))
                module.bias.add_(0.2 * torch.randn(module.bias.shape, generator=draw))
                module.running_mean.normal_(0, 0.2, generator=draw)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 1.5, generator=draw)  # pyright: ignore[reportOptionalMemberAccess]
    return network.eval()


def detector(slug: str = "nano", **options: Any) -> Any:
    torch.manual_seed(0)
    found = cfnet.build(CARDS[slug], untrained=True, **options)
    lively(found.network)
    return found


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- what it is ----------------------------------------------------------------------------------------
def test_the_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network, nano = CFNet(SIZES["b5"]), CFNet(SIZES["nano"])
    parts = (network.encoder, network.content_decoder_1, network.content_decoder_2, network.change_decoder)
    assert [count(p) for p in parts] == [2_091_568, 447_064, 447_064, 852_867]
    assert count(network.content_decoder_1.cbam) == 3_160
    assert count(network.change_decoder.fuseconv3ds[4]) == 171
    assert count(network) == CARDS["levir-cd"].parameters == HEAD.parameters == 3_838_563
    assert count(nano) == CARDS["nano"].parameters
    assert len(network.state_dict()) == 776 + 1  # and `shift`, which is ours


def test_the_cards() -> None:
    assert set(CARDS) == {"levir-cd", "clcd", "sysu-cd", "nano"}
    for slug, card in CARDS.items():
        ours = slug == "nano"
        assert card.date_order is DateOrder.ORDERED
        assert card.status is (Status.REPRODUCED if slug == "levir-cd" else Status.RUNS)
        assert ("our own" in card.title) == ours
        assert card.inputs.bands == (("red", "green", "blue") if ours else BGR)
        assert [r.file for r in card.released] == ([] if ours else [f"{slug}.pth"])
        assert all(len(r.sha256) == 64 for r in card.released)
    assert CARDS["sysu-cd"].figures[0].value == 0.8289
    assert DATES["clcd"] == DATES["levir-cd"] != DATES["sysu-cd"]


def test_the_shapes_of_the_published_size() -> None:
    with torch.device("meta"):
        network = CFNet(SIZES["b5"]).eval()
        date = torch.zeros(1, 3, 256, 256)
        pyramid = [tuple(x.shape[1:]) for x in network.pyramids(date, date)[0]]
        found = network(date, date)
    assert pyramid == [(24, 128, 128), (40, 64, 64), (64, 32, 32), (128, 16, 16)]
    for content in (found.first, found.second):
        assert [tuple(x.shape[1:]) for x in content] == pyramid[::-1]
    assert [tuple(x.shape) for x in found.focus] == [(1, n, n) for n in (16, 32, 64, 128)]
    assert found.before_tanh.shape == (1, 256, 256)


# --- how the dates meet ----------------------------------------------------------------------------------
def test_the_fusion_is_a_convolution_over_both_dates() -> None:
    torch.manual_seed(0)
    fuse = FuseConv(5).eval()
    before, after = normal(2, 5, 6, 7), normal(2, 5, 6, 7, seed=1)
    volume: Any = fuse.conv[0]
    with torch.no_grad():
        wanted = fuse.conv[1](volume(torch.stack([before, after], dim=2)).squeeze(2)).relu()
        assert torch.allclose(fuse(before, after), wanted, atol=1e-5)


def test_what_is_alike_is_not_focused_on() -> None:
    content, other = normal(2, 8, 5, 6), normal(2, 8, 5, 6, seed=1)
    assert focused(content, content).abs().max() < 1e-6
    assert torch.allclose(focused(content, -content), torch.tensor(2.0).tanh())
    fusion = focused(content, 3 * content)[:, None] * FuseConv(8)(content, content)
    assert fusion.abs().max() < 1e-5
    assert focused(content, other).min() >= -1e-6


def test_the_same_image_twice_is_focused_on_unless_the_decoders_are_the_same() -> None:
    network, date = detector().network, normal(1, 3, 32, 48)
    with torch.no_grad():
        assert min(f.max() for f in network(date, date).focus[1:]) > 0.01
        network.content_decoder_2.load_state_dict(network.content_decoder_1.state_dict())
        found = network(date, date)
    assert max(f.abs().max() for f in found.focus) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(found.first, found.second, strict=True))


def test_the_order_of_the_dates_matters() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert relative(found.forward(images.flip(1)).raw, found.forward(images).raw) > 1e-3


def test_the_attention_is_dropped_or_applied() -> None:
    torch.manual_seed(0)
    decoder = ContentDecoder((32, 16), active=False).eval()
    pyramid = [normal(1, 16, 8, 8), normal(1, 32, 4, 4, seed=1)]
    with torch.no_grad():
        dropped = decoder(pyramid)
        decoder.active = True
        applied = decoder(pyramid)
        assert torch.equal(dropped[0], pyramid[1])
        assert all(torch.equal(m(a), b) for m, a, b in zip(decoder.cbam, dropped, applied, strict=True))
    assert not detector("levir-cd").network.content_decoder_1.active
    assert detector("levir-cd", cbam_active=True).network.content_decoder_1.active
    assert detector().network.content_decoder_2.active


def test_each_date_has_batch_statistics_of_its_own_in_the_training_of_the_published_size() -> None:
    """Another second date leaves the features of the first alone; the small size sees both together."""
    before, after = normal(2, 3, 32, 32), normal(2, 3, 32, 32, seed=1)
    for slug, apart in (("levir-cd", True), ("nano", False)):
        network = detector(slug).network.train()
        for module in network.modules():
            if type(module).__name__ == "StochasticDepth":
                module.eval()
        with torch.no_grad():
            one, other = (network.pyramids(before, x)[0][0] for x in (after, 3 + after))
        assert torch.equal(one, other) == apart


# --- from the regression to the log-odds -----------------------------------------------------------------
def test_from_a_value_that_can_be_trusted_on_the_probability_is_the_regression() -> None:
    raw = torch.tensor([0.05, 0.2, 0.5, 0.9, 0.999])
    assert torch.allclose(torch.sigmoid(log_odds(torch.atanh(raw))), raw, atol=1e-5)
    assert log_odds(torch.tensor([math.atanh(0.5)])).abs().max() < 1e-6


def test_the_log_odds_rise_everywhere_and_stay_finite() -> None:
    x = torch.linspace(-4, 8, 1201).requires_grad_()
    found = log_odds(x)
    assert (found.diff() > 0).all()
    found.sum().backward()
    assert x.grad is not None
    assert 0 < x.grad.min() <= x.grad.max() < 22
    wide = log_odds(torch.tensor([-1e4, -80.0, 80.0, 1e4]))
    assert torch.isfinite(wide).all()
    assert wide.min() > -26
    assert log_odds(torch.tensor([1.0], dtype=torch.bfloat16)).dtype == torch.float32


def test_change_is_where_the_regression_is_over_one_half() -> None:
    found, images = detector(), normal(1, 2, 3, 40, 56)
    with torch.no_grad():
        output = found.forward(images)
    assert output.raw.abs().max() < 1
    assert torch.equal(output.logits > 0, output.raw > 0.5)


def test_calibration_shifts_the_log_odds_and_not_the_regression() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images)
        found.shift_logits(0.75)
        after = found.forward(images)
    assert torch.allclose(after.logits, before.logits + 0.75, atol=1e-5)
    assert torch.equal(after.raw, before.raw)


# --- what goes in ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("slug", DATES)
def test_each_date_is_normalised_by_its_own_constants(slug: str) -> None:
    found = detector(slug)
    mean, std = (torch.tensor(x)[:, :, None, None] for x in DATES[slug])
    images = 255 * (mean + std * normal(2, 2, 3, 5, 6))
    usable = torch.ones(2, 5, 6, dtype=torch.bool)
    usable[0, 2] = False
    normalised = found.normalise(images, usable, {})
    assert torch.allclose(normalised[1], normal(2, 2, 3, 5, 6)[1], atol=1e-4)
    assert (normalised[0, :, :, 2] == 0).all()


def test_ours_has_one_normalisation_and_no_constants_of_a_data_set() -> None:
    images = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1).expand(1, 2, 3, 4, 4)
    assert detector().normalise(images, None, {}).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(5, 7), (33, 70), (48, 16)])
def test_sides_of_any_size(size: tuple[int, int]) -> None:
    with torch.no_grad():
        output = detector().forward(normal(1, 2, 3, *size))
    assert output.logits.shape == output.raw.shape == (1, *size)
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("number", [4, 13])
@pytest.mark.parametrize("slug", ["nano", "levir-cd"])
def test_other_bands(slug: str, number: int) -> None:
    bands = (*BGR, *(f"b{n}" for n in range(number - 3)))
    found = detector(slug, bands=bands)
    norm = found.card.inputs.normalisation
    assert norm.stretch is Stretch.SCENE_PERCENTILE
    assert found.normalise(torch.full((1, 2, number, 4, 4), 0.5), None, {}).abs().max() < 1e-6
    with torch.no_grad():
        assert found.forward(normal(1, 2, number, 20, 36)).logits.shape == (1, 20, 36)


def test_bfloat16_is_close_to_float32() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 48)
    with torch.no_grad():
        wanted = found.forward(images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = found.forward(images)
    assert mixed.logits.dtype == torch.float32
    assert relative(mixed.raw, wanted.raw) < 0.05


# --- losses ----------------------------------------------------------------------------------------------
def test_what_is_ignored_trains_nothing() -> None:
    raw = (0.5 * normal(2, 6, 6)).requires_grad_()
    label = torch.zeros(2, 6, 6, dtype=torch.uint8)
    label[0, :2], label[1] = 1, 255
    (squared_error(raw, label) + binary_dice(raw.clamp(min=0), label)).backward()
    assert raw.grad is not None
    assert (raw.grad[1] == 0).all()
    assert (raw.grad[0] != 0).any()
    assert squared_error(raw, torch.full_like(label, 255)).item() == 0


def test_a_perfect_map_costs_nothing() -> None:
    label = torch.randint(0, 2, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    assert squared_error(label.float(), label).item() == 0
    assert binary_dice(label.float(), label).item() == pytest.approx(0)


def test_the_parts_of_the_loss_and_their_weights() -> None:
    label = torch.zeros(2, 30, 45, dtype=torch.uint8)
    label[:, 8:20, 4:24] = 1
    for content, dice in (("official", False), ("labelled", False), ("labelled", True)):
        found = detector("nano", content=content)
        found.size = cfnet.replace(found.size, dice=dice)
        parts = found.loss(found.forward(normal(2, 2, 3, 30, 45)), {"label": label})
        plain = parts["squares"] + (parts["dice"] if dice else 0)
        wanted = plain + 0.1 * (parts["content_changed"] + parts["content_unchanged"])
        assert parts["total"].item() == pytest.approx(wanted.item(), rel=1e-6)
        parts["total"].backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in found.network.parameters())
    assert detector("clcd").content == "official"
    assert detector().content == "labelled"


def test_a_pair_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    found = cfnet.build(CARDS["nano"], untrained=True)
    found.network.train()
    images = normal(2, 1, 3, 48, 48).repeat(1, 2, 1, 1, 1) + 0.1 * normal(2, 2, 3, 48, 48, seed=1)
    label = torch.zeros(2, 48, 48, dtype=torch.uint8)
    for image, (row, col) in enumerate([(8, 16), (24, 8)]):
        images[image, 1, :, row : row + 14, col : col + 14] += 2.0
        label[image, row : row + 14, col : col + 14] = 1
    optimiser = torch.optim.AdamW(found.network.parameters(), lr=3e-3)
    f1 = 0.0
    for step in range(60):
        output = found.forward(images)
        optimiser.zero_grad()
        found.loss(output, {"label": label})["total"].backward()
        optimiser.step()
        if step >= 10 and step % 5 == 0:
            f1 = binary_scores(confusion_matrix(label.numpy(), (output.raw > 0.5).int().numpy(), 2)).f1
            if f1 > 0.95:
                break
    assert f1 > 0.95


# --- files of weights --------------------------------------------------------------------------------------
def published(network: CFNet, wrapper: str = "") -> dict[str, Tensor]:
    """As the authors' file would hold these weights."""
    return {f"{wrapper}{k}": v.clone() for k, v in network.state_dict().items() if k != "shift"}


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_file_of_the_authors_comes_back(tmp_path: Path, wrapper: str) -> None:
    wanted = detector("levir-cd").network
    torch.save(published(wanted, wrapper), tmp_path / "levir-cd.pth")
    found = cfnet.build(HEAD, tmp_path / "levir-cd.pth").network
    assert not found.training
    assert all(torch.equal(v, found.state_dict()[k]) for k, v in wanted.state_dict().items())


def test_a_file_of_the_authors_for_other_bands() -> None:
    stem = "encoder._backbone.0.0.weight"
    theirs = {stem: normal(8, 3, 3, 3)}
    assert torch.equal(official_names(theirs, BGR)[stem], theirs[stem])
    assert torch.equal(official_names(theirs, ("red", "green", "blue"))[stem], theirs[stem].flip(1))
    assert torch.allclose(official_names(theirs, (*BGR, "nir"))[stem][:, :3], theirs[stem] * 0.75)
    ours = theirs | {"shift": torch.ones(1)}
    assert official_names(ours, ("red", "green", "blue")) == ours


def test_a_file_of_ours_comes_back_with_its_calibration(tmp_path: Path) -> None:
    wanted = detector()
    wanted.shift_logits(-0.5)
    save_file(wanted.network.state_dict(), tmp_path / "a.safetensors")
    found = cfnet.build(CARDS["nano"], tmp_path / "a.safetensors").network.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in wanted.network.state_dict().items())
    assert found["shift"].item() == -0.5


@pytest.mark.parametrize("fault", ["extra", "missing", "shape", "other size"])
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, fault: str) -> None:
    tensors = published(detector().network)
    name = "change_decoder.upconv.0.weight"
    match fault:
        case "extra":
            tensors["change_decoder.upconv.0.bias"] = torch.zeros(1)
        case "missing":
            del tensors[name]
        case "shape":
            tensors[name] = torch.zeros(24, 1, 3, 3)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(WeightsMismatchError):
        cfnet.build(CARDS["clcd" if fault == "other size" else "nano"], tmp_path / "a.pth")


def test_what_cannot_be_built_says_why() -> None:
    with pytest.raises(SystemNotReadyError, match=r"levir-cd\.pth"):
        cfnet.build(HEAD)
    with pytest.raises(FileMissingError, match=r"clcd\.pth"):
        cfnet.build(CARDS["clcd"], "no-such-file.pth")
    with pytest.raises(SettingError, match="content"):
        cfnet.build(HEAD, untrained=True, content="none")  # pyright: ignore[reportArgumentType]
    with pytest.raises(SettingError, match="bands of the authors"):
        cfnet.build(CARDS["nano"], untrained=True, faithful=True)


def test_the_encoder_starts_from_imagenet() -> None:
    """The first layer, which knows red, green, blue, meets blue, green, red; `faithful` leaves it."""
    found = detector("sysu-cd")
    imagenet = {
        k.replace("_backbone.", "features."): v + 1 for k, v in found.network.encoder.state_dict().items()
    }
    imagenet |= {"features.8.0.weight": torch.ones(3), "classifier.1.bias": torch.ones(10)}
    found.start_encoder(imagenet)
    own = found.network.encoder.state_dict()
    stem = imagenet["features.0.0.weight"]
    assert torch.equal(own["_backbone.0.0.weight"], stem.flip(1))
    assert torch.equal(own["_backbone.4.6.block.3.1.bias"], imagenet["features.4.6.block.3.1.bias"])
    as_they_do = detector("sysu-cd", faithful=True)
    as_they_do.start_encoder(imagenet)
    assert torch.equal(as_they_do.network.encoder.state_dict()["_backbone.0.0.weight"], stem)
    wide = detector("sysu-cd", bands=(*BGR, "nir"))
    wide.start_encoder(imagenet)
    wanted = torch.cat([stem.flip(1), stem.mean(1, keepdim=True)], dim=1) * 0.75
    assert torch.allclose(wide.network.encoder.state_dict()["_backbone.0.0.weight"], wanted)
    wide.start_encoder(published(detector("levir-cd").network))
    with pytest.raises(ModelInputError, match="nobody published"):
        detector().start_encoder(imagenet)
    del imagenet["features.3.0.block.0.0.weight"]
    with pytest.raises(WeightsMismatchError, match=r"_backbone\.3\.0"):
        found.start_encoder(imagenet)


# --- elsewhere ---------------------------------------------------------------------------------------------
def test_the_part_of_the_dates_compiles() -> None:
    """The decoder of change with the focus that weighs it; the encoder is torchvision's."""
    decoder = detector().network.change_decoder
    first, second = (
        [normal(1, c, n, n, seed=s + c) for c, n in ((64, 2), (32, 4), (16, 8), (8, 16))] for s in (0, 1)
    )

    def both(first: list[Tensor], second: list[Tensor]) -> Tensor:
        return log_odds(decoder(first, second, [focused(a, b) for a, b in zip(first, second, strict=True)]))

    with torch.no_grad():
        wanted = both(first, second)
        assert relative(torch.compile(both, backend="aot_eager")(first, second), wanted) < 1e-5


@pytest.mark.slow
def test_the_whole_runs_in_onnx(tmp_path: Path) -> None:
    dates = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    fresh = [normal(1, 3, 64, 64, seed=s) for s in (5, 6)]
    assert largest_gap(detector().network, dates, fresh, tmp_path) < 1e-4


def test_the_index_builds_it() -> None:
    torch.manual_seed(0)
    found = registry.build("cfnet/nano", untrained=True)
    assert isinstance(found, cfnet.CFNetDetector)
    assert (found.halo, found.multiple, found.exact) == (64, 16, False)
