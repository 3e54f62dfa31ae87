from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import DateOrder, Status
from terralapse.errors import ModelInputError, SystemNotReadyError, WeightsMismatchError
from terralapse.labels import SCHEMES
from terralapse.layers.seaformer import LARGE, SeaFormer, Stage
from terralapse.layers.stem import inflate_stem
from terralapse.models.change import cdmaskformer
from terralapse.models.change.cdmaskformer import (
    HEAD,
    NANO,
    SIZES,
    STEM,
    CDMaskFormer,
    ChangeExtractor,
    change_score,
    official_names,
    stretched,
)
from terralapse.tasks.metrics import binary_scores, confusion_matrix

STATE = {"bands": [0, 1, 2], "temperature": 1.0}
STAGES = tuple(Stage(((3, 1, c, 2),), depth, 4, 2) for c, depth in ((8, 0), (12, 0), (16, 1), (24, 1)))
MINI = replace(SIZES["nano"], stages=STAGES, stem=8, encoder_heads=2, width=16, heads=2, hidden=16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(network: nn.Module, seed: int = 0) -> Any:
    """In evaluation, with normalisations that have seen something: at the start it is nearly linear."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "norm" in name or "bn" in name or name.endswith("bias"):
                p.add_(0.2 * torch.randn(p.shape, generator=draw))
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3, generator=draw)  # pyright: ignore[reportOptionalMemberAccess]
                module.running_var.uniform_(0.5, 1.5, generator=draw)  # pyright: ignore[reportOptionalMemberAccess]
    return network.eval()


def detector(slug: str = "cdmaskformer/nano", **options: Any) -> Any:
    torch.manual_seed(0)
    found = registry.build(slug, untrained=True, **options)
    lively(found.network)
    return found


def mini(**options: Any) -> Any:
    torch.manual_seed(0)
    return lively(CDMaskFormer(MINI, **options))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


# --- what it is ------------------------------------------------------------------------------------------
def test_the_numbers_of_parameters() -> None:
    with torch.device("meta"):
        network, nano, whole = CDMaskFormer(SIZES[""]), CDMaskFormer(SIZES["nano"]), SeaFormer(LARGE)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(network) == HEAD.parameters == 25_736_788
    assert count(nano) == NANO.parameters
    assert count(nano) < 1_500_000
    levels = [count(network.get_submodule(f"tff{i}")) for i in range(1, 5)]
    assert levels == [30_146, 111_490, 244_034, 427_778]
    assert count(network.pixel_decoder) == 3_780_224
    assert count(network.predictor) == 14_883_596
    classifier = 320 * 1000 + 1000
    unused = count(whole) + classifier - count(network.encoder)
    assert unused == 7_786_984
    assert count(network) + unused == 33_523_772


def test_the_cards() -> None:
    assert (HEAD.status, NANO.status) == (Status.REPRODUCED, Status.RUNS)
    for card in (HEAD, NANO):
        assert card.date_order is DateOrder.ORDERED
        assert any("order" in limit for limit in card.limits)
        assert card.classes in SCHEMES
        assert card.inputs.size_multiple == 32
    assert any("faithful" in quirk for quirk in HEAD.quirks)
    assert "our own" in NANO.title


def test_the_shapes_of_the_published_size() -> None:
    with torch.device("meta"):
        network = CDMaskFormer(SIZES[""])
        logits, masks = network(torch.empty(2, 3, 256, 256), torch.empty(2, 3, 256, 256))
        score = change_score(logits[-1], masks[-1], torch.Size((256, 256)))
    assert logits.shape == (14, 2, 5, 2)  # the start and 13 layers
    assert masks.shape == (14, 2, 5, 64, 64)
    assert score.shape == (2, 256, 256)


def test_the_extractor_weighs_each_date_by_what_differs() -> None:
    torch.manual_seed(0)
    level = lively(ChangeExtractor(64))
    before, after = normal(1, 64, 4, 5), normal(1, 64, 4, 5, seed=1)
    with torch.no_grad():
        gate = level.senetv2(before - after)
        assert gate.shape == (1, 64, 1, 1)
        first = torch.sigmoid(level.convA(level.catconvA(torch.cat([before - after, before], 1))))
        second = torch.sigmoid(level.convB(level.catconvB(torch.cat([before - after, after], 1))))
        wanted = level.catconv(torch.cat([first * before * gate, second * after * gate], 1))
        assert torch.allclose(level(before, after), wanted, atol=1e-6)
        assert level.senetv2.fc1[0].weight.shape == (2, 64)


# --- the score of change ---------------------------------------------------------------------------------
def test_the_score_is_the_sum_over_queries() -> None:
    logits, masks = normal(2, 3, 2), normal(2, 3, 2, 2, seed=1)
    found = change_score(logits, masks, torch.Size((2, 2)))
    share = logits.softmax(-1)[..., 1]
    wanted = sum(share[:, q, None, None] * masks[:, q].sigmoid() for q in range(3))
    assert torch.allclose(found, torch.as_tensor(wanted), atol=1e-6)


def test_an_image_is_stretched_to_its_own_range() -> None:
    score = torch.stack([normal(4, 5).abs(), torch.full((4, 5), 0.3)])
    found = stretched(score)
    assert found[0].min() == 0
    assert found[0].max() == 1
    assert not found[1].any()


def test_the_score_is_stretched_only_when_asked() -> None:
    """An image in which nothing stands out has no pixel of change, but for the released code's way."""
    plain, faithful = detector(), detector(faithful=True)
    with torch.no_grad():
        for found in (plain, faithful):
            found.network.predictor.class_embed.bias.copy_(torch.tensor([9.0, -9.0]))
        images = normal(2, 2, 3, 64, 64)
        first, second = plain.forward(images), faithful.forward(images)
    assert torch.equal(first.score, second.score)
    assert first.probability().max() < 0.01
    assert torch.allclose(first.probability(), first.score.clamp(1e-6, 1 - 1e-6), rtol=1e-3)
    for image in second.probability():
        assert image.max() == pytest.approx(1.0, abs=1e-5)
        assert image.min() == pytest.approx(0.0, abs=1e-5)


def test_a_score_above_one_is_cut() -> None:
    found = detector()
    with torch.no_grad():
        found.network.predictor.class_embed.bias.copy_(torch.tensor([-9.0, 9.0]))
        output = found.forward(normal(1, 2, 3, 32, 32))
    assert output.score.max() > 1
    assert torch.isfinite(output.logits).all()
    assert output.probability().max() <= 1


# --- as a system -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 7), (33, 70)])
def test_sides_of_any_size(size: tuple[int, int]) -> None:
    found = detector()
    with torch.no_grad():
        output = found.forward(normal(1, 2, 3, *size))
    assert output.logits.shape == output.score.shape == (1, *size)
    assert torch.isfinite(output.logits).all()
    label = torch.ones(1, *size, dtype=torch.uint8)
    assert torch.isfinite(found.loss(output, {"label": label})["total"])


def test_the_order_of_the_dates_matters() -> None:
    network = mini()
    before, after = normal(1, 3, 32, 32), normal(1, 3, 32, 32, seed=1)
    with torch.no_grad():
        assert relative(network(before, after)[1][-1], network(after, before)[1][-1]) > 0.005


def test_a_pair_does_not_see_the_others_of_its_batch() -> None:
    network = mini()
    before, after = normal(3, 3, 32, 64), normal(3, 3, 32, 64, seed=1)
    with torch.no_grad():
        logits, masks = network(before, after)
        alone = network(before[1:2], after[1:2])
    assert torch.allclose(logits[:, 1:2], alone[0], atol=1e-5)
    assert torch.allclose(masks[:, 1:2], alone[1], atol=1e-4)


def test_dates_one_after_the_other_differ_in_training_alone() -> None:
    together, apart = mini(), mini(apart=True)
    dates = normal(2, 3, 64, 64), 3 + normal(2, 3, 64, 64, seed=1)
    with torch.no_grad():
        wanted = together.encoder(torch.cat(dates))[0].chunk(2)
        assert relative(apart.pyramids(*dates)[1][0], wanted[1]) < 1e-5
        together.train()
        apart.train()
        assert relative(apart.pyramids(*dates)[1][0], together.pyramids(*dates)[1][0]) > 0.05


@pytest.mark.parametrize("bands", [("nir", "red", "green", "blue"), tuple(f"b{i}" for i in range(13))])
def test_other_bands(bands: tuple[str, ...]) -> None:
    found = detector(bands=bands)
    assert found.card.inputs.bands == bands
    with torch.no_grad():
        assert found.forward(normal(1, 2, len(bands), 32, 40)).logits.shape == (1, 32, 40)


def test_missing_pixels_stay_where_they_are() -> None:
    found = detector()
    images = 127 + 60 * normal(1, 2, 3, 40, 50)
    images[0, 1, 2, 11:14, 20] = float("nan")
    valid = ~images.isnan().any(dim=2)
    assert torch.isfinite(found.predict(images, valid, STATE)).all()


def test_calibration_shifts_the_log_odds() -> None:
    found, images = detector(), normal(1, 2, 3, 32, 32)
    with torch.no_grad():
        before = found.forward(images).logits
        found.shift_logits(0.75)
        assert torch.allclose(found.forward(images).logits, before + 0.75, atol=1e-5)
    assert found.network.state_dict()["offset"].item() == 0.75


def test_bfloat16_is_close_to_float32() -> None:
    network = mini()
    dates = normal(1, 3, 64, 32), normal(1, 3, 64, 32, seed=1)
    with torch.no_grad():
        wanted = network(*dates)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(*dates)
    assert relative(found[1][0], wanted[1][0]) < 0.1  # before the masks, whose threshold may tip
    found = detector()
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[0, :8] = 1
    with torch.autocast("cpu", torch.bfloat16):
        output = found.forward(normal(1, 2, 3, 32, 32))
        found.loss(output, {"label": label})["total"].backward()
    assert output.logits.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in found.network.parameters() if p.grad is not None)


@pytest.mark.slow
def test_it_compiles() -> None:
    network = mini()
    dates = normal(1, 3, 32, 64), normal(1, 3, 32, 64, seed=1)
    with torch.no_grad():
        wanted, found = network(*dates), torch.compile(network, backend="aot_eager")(*dates)
    assert relative(found[0], wanted[0]) < 1e-4
    assert relative(found[1], wanted[1]) < 1e-4


@pytest.mark.slow
def test_it_runs_in_onnx(tmp_path: Path) -> None:
    dates = normal(1, 3, 64, 64), normal(1, 3, 64, 64, seed=1)
    fresh = [normal(1, 3, 64, 64, seed=s) for s in (5, 6)]
    assert largest_gap(detector().network, dates, fresh, tmp_path) < 1e-4


# --- training --------------------------------------------------------------------------------------------
def test_an_image_that_is_all_change_is_trained() -> None:
    """The released code takes the first label that occurs for the background, whatever it is."""
    found = detector()
    parts = found.loss(found.forward(normal(1, 2, 3, 32, 32)), {"label": torch.ones(1, 32, 32)})
    assert parts["mask"].item() > 0
    assert parts["dice"].item() > 0


def test_padding_is_not_trained() -> None:
    """What the network draws below and right of the image costs nothing."""
    found = detector()
    output = found.forward(normal(1, 2, 3, 20, 28))
    label = torch.zeros(1, 20, 28, dtype=torch.uint8)
    label[0, 4:12, 4:12] = 1
    wanted = found.loss(output, {"label": label})["total"]
    masks = output.query_masks.clone()
    masks[..., 5:, :], masks[..., 7:] = 50.0, 50.0
    assert torch.allclose(found.loss(replace(output, query_masks=masks), {"label": label})["total"], wanted)


def test_two_pairs_can_be_learned_by_heart() -> None:
    torch.manual_seed(0)
    network = CDMaskFormer(MINI).train()
    found = cdmaskformer.CDMaskFormerDetector(NANO, network, mask_stride=4)
    images, label = normal(2, 2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.uint8)
    images[:, 1] = images[:, 0] + 0.1 * images[:, 1]
    for image, (row, col) in enumerate([(8, 24), (32, 12)]):
        images[image, 1, :, row : row + 24, col : col + 24] += 2.0
        label[image, row : row + 24, col : col + 24] = 1
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    f1 = 0.0
    for step in range(120):
        output = found.forward(images)
        optimiser.zero_grad()
        found.loss(output, {"label": label})["total"].backward()
        optimiser.step()
        if step % 10 == 9:
            guess = (output.logits > 0).long().numpy()
            f1 = binary_scores(confusion_matrix(label.numpy(), guess, 2)).f1
            if f1 > 0.85:
                break
    assert f1 > 0.85


# --- files of weights ------------------------------------------------------------------------------------
OURS_TO_THEIRS = (
    ("encoder.", "backbone.backbone."),
    ("pixel_decoder.layers.", "decoderhead.sem_seg_head.pixel_decoder.transformer.encoder.layers."),
    ("pixel_decoder.level_embed", "decoderhead.sem_seg_head.pixel_decoder.transformer.level_embed"),
    ("pixel_decoder.", "decoderhead.sem_seg_head.pixel_decoder."),
    ("predictor.", "decoderhead.sem_seg_head.predictor."),
    ("tff", "decoderhead.tff"),
)


def released(network: nn.Module) -> dict[str, Tensor]:
    """Tensors as in the checkpoint of the authors' training, with what nothing uses."""
    found = {
        "net.backbone.backbone.smb5.layer1.conv.0.c.weight": torch.ones(4),
        "net.backbone.backbone.trans3.transformer_blocks.0.attn.to_q.c.weight": torch.ones(4),
        "net.backbone.backbone.linear.bias": torch.ones(4),
        "loss.criterion.empty_weight": torch.ones(2),
    }
    for name, tensor in network.state_dict().items():
        if name != "offset":
            ours, theirs = next(pair for pair in OURS_TO_THEIRS if name.startswith(pair[0]))
            found["net." + theirs + name.removeprefix(ours)] = tensor.clone()
    return found


def test_the_authors_checkpoint_is_read(tmp_path: Path) -> None:
    network = detector().network
    torch.save({"state_dict": released(network)}, tmp_path / "last.ckpt")
    found = cdmaskformer.build(NANO, tmp_path / "last.ckpt").network
    assert not found.training
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in found.state_dict().items())


def test_our_own_file_comes_back(tmp_path: Path) -> None:
    network = detector().network
    network.offset += 0.5
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    found = cdmaskformer.build(NANO, tmp_path / "own.safetensors").network
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in found.state_dict().items())


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = released(detector().network)
    del tensors["net.decoderhead.tff2.convA.bias"]
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(WeightsMismatchError, match=r"tff2\.convA\.bias"):
        cdmaskformer.build(NANO, tmp_path / "a.pth")


def test_without_a_file_it_is_not_ready() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build("cdmaskformer")


def test_a_band_twice_is_refused() -> None:
    with pytest.raises(ModelInputError, match="cannot take the bands"):
        detector(bands=("red", "red"))


def test_the_encoder_starts_from_imagenet() -> None:
    found, other = detector(), detector()
    body = {k: v + 1 for k, v in other.network.encoder.state_dict().items()}
    found.start_encoder(body | {"linear.weight": torch.ones(1000, 320), "smb5.layer1.x": torch.ones(1)})
    own = found.network.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in body.items())
    found.start_encoder(other.network.state_dict())  # of another CDMaskFormer
    own = found.network.encoder.state_dict()
    assert all(torch.equal(own[k], v) for k, v in other.network.encoder.state_dict().items())
    four = detector(bands=("nir", "red", "green", "blue"))
    four.start_encoder(body)
    wanted = inflate_stem(body[STEM], ("nir", "red", "green", "blue"))
    assert torch.equal(four.network.encoder.state_dict()[STEM], wanted)
    del body["smb3.layer1.conv.0.bn.bias"]
    with pytest.raises(WeightsMismatchError, match=r"smb3\.layer1"):
        found.start_encoder(body)


def test_names_of_the_released_code() -> None:
    name = "net.decoderhead.sem_seg_head.pixel_decoder.transformer.encoder.layers.1.norm1.bias"
    assert set(official_names({name: torch.ones(1)})) == {"offset", "pixel_decoder.layers.1.norm1.bias"}
