from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse.cards import DateOrder, Status
from terralapse.errors import ModelInputError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.dilated_resnet import dilated_resnet, pyramid
from terralapse.layers.stem import RGB, inflate_stem
from terralapse.models.change.semicd_vl import (
    HEAD,
    OURS,
    RARE,
    SIZES,
    VARIANTS,
    SemiCDVL,
    SemiCDVLDetector,
    Size,
    build,
    from_official,
)

CARDS = {c.slug.partition("/")[2]: c for c in VARIANTS}
FOUR = ("blue", "green", "red", "nir")
THIRTEEN = tuple(f"b{i}" for i in range(10)) + RGB
DEEPLAB = Size((1, 1, 1, 1), (8, 8, 8, 8), stem=8, head="deeplab", width=16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=draw)
                module.bias.normal_(0, 0.2, generator=draw)
                module.running_mean.normal_(0, 0.3, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def detector(**options: Any) -> SemiCDVLDetector:
    torch.manual_seed(0)
    found = build(CARDS["nano"], untrained=True, **options)
    lively(found.network)
    return found


# --- what it is ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SIZES)
def test_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = SemiCDVL(SIZES[name])
    assert sum(p.numel() for p in network.parameters()) == CARDS[name].parameters


def test_the_number_of_parameters_of_the_parts_and_of_the_official_entries() -> None:
    with torch.device("meta"):
        network = SemiCDVL(SIZES["lighthead-r50"])
    counts = [
        sum(p.numel() for p in part.parameters())
        for part in (network.backbone, network.decode_head, network.auxiliary_seg_head)
    ]
    assert counts == [23_631_808, 1_248_772, 1_248_258]
    assert len(network.state_dict()) == 396


def test_the_features_of_the_published_encoder() -> None:
    with torch.device("meta"):
        levels = pyramid(dilated_resnet((3, 4, 6, 3)), torch.empty(1, 3, 256, 256))
    assert [tuple(x.shape[1:]) for x in levels] == [
        (256, 64, 64),
        (512, 32, 32),
        (1024, 16, 16),
        (2048, 16, 16),
    ]


def test_the_cards() -> None:
    for card in (HEAD, *VARIANTS):
        assert card.date_order is DateOrder.SYMMETRIC
        assert not card.weights
        assert card.checkpoints == "none"
    assert HEAD.parameters == CARDS["lighthead-r50"].parameters
    golden = {name for name, card in CARDS.items() if card.status is Status.REPRODUCED}
    assert golden == {"lighthead-r50"}
    with pytest.raises(SystemNotReadyError):
        build(CARDS["nano"])


# --- both dates --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [Size((1, 1, 1, 1), (8, 8, 8, 8), 8), DEEPLAB], ids=["light", "deeplab"])
def test_exchanged_dates_give_the_same_change_and_exchanged_buildings(size: Size) -> None:
    torch.manual_seed(0)
    network = lively(SemiCDVL(size))
    before, after = normal(2, 3, 40, 56), normal(2, 3, 40, 56, seed=1)
    with torch.no_grad():
        forth, back = network.everything(before, after), network.everything(after, before)
        assert torch.equal(network(before, after), network(after, before))
    assert torch.equal(forth.classes, back.classes)
    assert torch.equal(forth.guided, back.guided)
    assert torch.equal(forth.first, back.second)
    assert torch.equal(forth.second, back.first)
    assert torch.allclose(forth.distance, back.distance, atol=1e-4)  # its floor of 1e-6 is added to one side
    assert (forth.first - forth.second).abs().max() > 1e-3


def test_identical_dates_give_one_answer_everywhere() -> None:
    network, image = detector().network, normal(1, 3, 48, 64)
    with torch.no_grad():
        found = network(image, image)
    assert (found - found[..., :1, :1]).abs().max() < 1e-5


def test_training_sees_more_than_evaluation() -> None:
    found, images = detector(), normal(2, 2, 3, 33, 47)
    with torch.no_grad():
        bare = found.forward(images)
        assert (bare.guided, bare.first, bare.second, bare.distance) == (None,) * 4
        found.network.train()
        whole = found.forward(images)
        assert whole.guided is not None
        assert whole.guided.shape == (2, 2, 33, 47)
        assert whole.distance is not None
        assert whole.distance.shape == (2, 33, 47)
        found.guided = False
        assert found.forward(images).guided is None


def test_two_projections_read_one_feature_and_deeplab_has_convolutions_for_each() -> None:
    network = detector().network
    own, other = network.decode_head([normal(1, w, 8, 8) for w in SIZES["nano"].widths])
    assert own is other
    head = lively(SemiCDVL(DEEPLAB)).decode_head.train()
    own, other = head([normal(2, 32, 8, 8)] * 4)
    assert not torch.equal(own, other)


def test_an_untrained_network_expects_little_change() -> None:
    network = SemiCDVL(SIZES["nano"]).eval()
    with torch.no_grad():
        blank = network.decode_head.conv_seg(torch.zeros(1, 32, 1, 1)).softmax(dim=1)[0, 1, 0, 0]
    assert blank.item() == pytest.approx(RARE, rel=1e-5)


@pytest.mark.parametrize("size", OURS)
def test_it_learns_a_pair(size: str) -> None:
    torch.manual_seed(0)
    found = build(CARDS[size], untrained=True)
    found.network.train()
    images, label = 0.3 * normal(4, 2, 3, 64, 64), torch.zeros(4, 64, 64, dtype=torch.long)
    images[:, 1, :, 16:40, 24:48] += 2.0
    label[:, 16:40, 24:48] = 1
    optimiser = torch.optim.AdamW(found.network.parameters(), lr=1e-3)
    costs = []
    for _ in range(25):
        parts = found.loss(found.forward(images), {"label": label})
        optimiser.zero_grad()
        parts["total"].backward()
        optimiser.step()
        costs.append(parts["total"].item())
    assert costs[-1] < 0.2 * costs[0]


# --- bands, weights, types ----------------------------------------------------------------------------------
@pytest.mark.parametrize("bands", [FOUR, THIRTEEN], ids=["4", "13"])
def test_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    with torch.no_grad():
        assert found.forward(normal(1, 2, len(bands), 20, 35)).logits.shape == (1, 20, 35)
    rgb = detector().network.backbone.state_dict()
    found.start_encoder(
        {f"module.backbone.{k}": v for k, v in rgb.items()} | {"module.fc.weight": torch.ones(1)}
    )
    own = found.network.backbone.state_dict()
    assert torch.equal(own["conv1.0.weight"], inflate_stem(rgb["conv1.0.weight"], bands))
    assert torch.equal(own["layer4.0.conv1.weight"], rgb["layer4.0.conv1.weight"])


def test_an_encoder_of_another_shape_is_refused() -> None:
    with pytest.raises(WeightsMismatchError):
        detector().start_encoder(dilated_resnet((1, 1, 1, 1), (8, 8, 8, 8), 8).state_dict())
    with pytest.raises(ModelInputError):
        build(CARDS["nano"], untrained=True, bands=("red", "red"))


def test_a_checkpoint_of_several_devices(tmp_path: Path) -> None:
    wanted = detector()
    path = tmp_path / "best.safetensors"
    save_file({f"module.{k}": v for k, v in wanted.network.state_dict().items()}, path)
    found = build(CARDS["nano"], weights=path)
    images = normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found.forward(images).logits, wanted.forward(images).logits)
    assert set(from_official({"module.a": torch.ones(1), "b": torch.ones(1)})) == {"a", "b"}


def test_the_maps_of_lite0_are_of_strides_2_4_and_8_and_dates_can_be_exchanged() -> None:
    network = lively(build(CARDS["lite0"], untrained=True).network)
    before, after = normal(2, 3, 40, 56), normal(2, 3, 40, 56, seed=1)
    with torch.no_grad():
        first, second = network.pyramids(before, after)
        assert [tuple(m.shape) for m in first] == [(2, 16, 20, 28), (2, 24, 10, 14), (2, 80, 5, 7)]
        assert [m.shape for m in first] == [m.shape for m in second]
        one, other = network.everything(before, after), network.everything(after, before)
    assert torch.allclose(one.logits, other.logits, atol=1e-5)
    assert torch.allclose(one.first, other.second, atol=1e-5)
    assert one.logits.std() > 0.005


def test_calibration_shifts_the_log_odds() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images).logits, before + 0.75, atol=1e-5)


def test_bfloat16_is_close_to_float32() -> None:
    network = detector().network
    dates = normal(1, 3, 32, 32), normal(1, 3, 32, 32, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*dates)
    assert ((found.float() - wanted).norm() / wanted.norm()).item() < 0.05


@pytest.mark.slow
def test_it_compiles_and_runs_in_onnx(tmp_path: Path) -> None:
    network = detector().network
    dates = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        compiled = torch.compile(network, backend="aot_eager")(*dates)
    assert torch.allclose(compiled, wanted, atol=1e-4)
    fresh = [normal(1, 3, 64, 64, seed=s) for s in (5, 6)]
    assert largest_gap(network, dates, fresh, tmp_path) < 1e-4
