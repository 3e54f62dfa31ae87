"""FUSU: counts and layout of the published network, the series, and what its release does wrong."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import Stretch, Task
from terralapse.data.pairs import IGNORE
from terralapse.errors import ModelInputError, SystemNotReadyError, WeightsMismatchError
from terralapse.models.semantic_change import fusu as m
from terralapse.tasks.semantic_change import FullMapsOutput

SHEET = {  # with 15 bands of the series, without the U-TAE that never runs
    "psp-w18": 12_564_397 - 1_237_020,
    "fcn-w18": 11_092_877,
    "psp-w18-light": 12_140_197 - 1_237_020,
    "fcn-w18-light": 10_809_377,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def nano(faithful: bool = False) -> m.FusuDetector:
    """The same system each time."""
    return built(faithful)


@cache
def built(faithful: bool) -> m.FusuDetector:
    """With random weights, and norms that are no identities, as after training."""
    torch.manual_seed(0)
    system = m.build(m.NANO, untrained=True, series_bands=5, faithful=faithful)
    assert isinstance(system, m.FusuDetector)
    draw = torch.Generator().manual_seed(1)
    for name, buffer in system.network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=draw))
        elif name.endswith("running_var"):
            buffer.copy_(0.8 + 0.4 * torch.rand(buffer.shape, generator=draw))
    return system


def pair(number: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    return noise(number, 2, 3, side, side, seed=seed)


def dates(number: int = 2, count: int = 3, side: int = 32, seed: int = 5) -> Tensor:
    return noise(number, count, 5, side, side, seed=seed)


@torch.inference_mode()
def found(images: Tensor, series: Tensor | None = None, faithful: bool = False) -> FullMapsOutput:
    return nano(faithful).forward(images, series)


def close(a: Tensor | None, b: Tensor | None, bound: float = 1e-4) -> bool:
    assert a is not None
    assert b is not None
    return bool((a - b).norm() <= bound * b.norm())


# --- the published layout --------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "expected"), SHEET.items())
def test_counts_are_those_of_the_published_code(name: str, expected: int) -> None:
    whole = m.FusuNet(m.SIZES[name], series_bands=15)
    assert count(whole) == expected
    assert whole.fusion.in_conv.conv.conv[0].weight.shape == (64, 15, 3, 3)
    assert card_of(name).parameters == expected - 64 * 9, "with the 14 bands of the data set"
    parts = ("backbone", "fusion", "fm_utae_featmap_cropped", "fm_utae_featmap_collapsed")
    assert [count(whole.get_submodule(p)) for p in parts] == [9_562_260, 1_090_140, 13_134, 100_231]


def card_of(name: str) -> Any:
    return next(c for c in m.VARIANTS if c.slug == f"fusu/{name}")


def test_counts_of_ours() -> None:
    assert count(m.FusuNet(m.SIZES["nano"])) == m.NANO.parameters
    assert count(m.FusuChange(m.SIZES["change-nano"])) == m.CHANGE_NANO.parameters
    assert m.NANO.parameters is not None
    assert m.NANO.parameters < 1_500_000


def test_names_and_shapes_are_those_of_the_published_checkpoint(shared: Path) -> None:
    path = shared / "golden/fusu/pspnet-w18/keys.json"
    if not path.is_file():
        pytest.skip("needs the golden case fusu/pspnet-w18")
    published = {
        f"module.{k}": torch.empty(v["shape"], device="meta") for k, v in json.loads(path.read_text()).items()
    }
    own = m.FusuNet(m.SIZES["psp-w18"], series_bands=15).state_dict()
    kept = m.official_names(published)
    assert {k: v.shape for k, v in kept.items()} == {k: v.shape for k, v in own.items()}
    assert len(published) - len(kept) == 158


@pytest.mark.parametrize("count", [1, 3])
def test_sizes_of_the_maps(count: int) -> None:
    output = found(pair(1, 512), dates(1, count, 128))
    assert output.series is not None
    assert output.change().logits.shape == (1, 512, 512)
    assert output.before.shape == output.after.shape == output.series.shape == (1, 17, 512, 512)


def test_sizes_of_the_published_series() -> None:
    with torch.inference_mode():
        maps, attention = m.FusuNet(m.SIZES["fcn-w18-light"]).eval().fusion(noise(1, 2, 14, 128, 128))
    assert [tuple(x.shape[1:]) for x in maps] == [(128, 16, 16), (64, 32, 32), (32, 64, 64), (32, 128, 128)]
    assert attention.shape == (16, 1, 2, 16, 16)


# --- two dates -------------------------------------------------------------------------------------------
def test_exchanged_dates_exchange_their_classes_and_keep_the_change() -> None:
    images, series = pair(), dates()
    forth, back = found(images, series), found(images.flip(1), series)
    assert close(back.before, forth.after)
    assert close(back.after, forth.before)
    assert close(back.classes, forth.classes)
    assert not close(forth.before, forth.after, 1e-2)


def test_the_series_reaches_the_classes_and_not_the_change() -> None:
    images = pair()
    without, one, other = found(images), found(images, dates()), found(images, dates(seed=6))
    assert torch.equal(one.classes, without.classes)
    assert torch.equal(other.classes, without.classes)
    assert not close(one.before, without.before, 1e-3)
    assert not close(one.before, other.before, 1e-3)
    assert without.series is None


def test_maps_are_classes_where_something_changed() -> None:
    output = found(pair())
    before, after = output.full_maps()
    assert int(before.min()) >= 1
    assert int(before.max()) <= 17
    changed = output.classes.argmax(dim=1) == 1
    for whole, part in zip((before, after), output.maps(), strict=True):
        assert torch.equal(part, torch.where(changed, whole, 0))


# --- the series ------------------------------------------------------------------------------------------
def test_dates_that_fill_up_change_nothing() -> None:
    images, series = pair(), dates()
    longer = torch.cat([series, torch.zeros(2, 4, 5, 32, 32)], dim=1)
    alone, filled = found(images, series), found(images, longer)
    assert close(filled.before, alone.before, 1e-5)
    assert close(filled.series, alone.series, 1e-5)
    as_published = [found(images, s, faithful=True).series for s in (series, longer)]
    assert not close(*as_published, bound=1e-4)


def test_samples_of_different_length_share_a_batch() -> None:
    images, series = pair(), dates()
    series[1, 1:] = 0
    both = found(images, series).before
    assert close(both[1:], found(images[1:], series[1:, :1]).before, 1e-5)


def test_a_sample_without_a_date_is_one_without_a_series() -> None:
    images, series = pair(), dates()
    series[1] = 0
    both = found(images, series)
    assert torch.equal(both.before[1], found(images).before[1])
    assert not torch.equal(both.before[0], found(images).before[0])


def test_dates_are_a_set() -> None:
    images, series = pair(), dates(count=4)
    order = [2, 0, 3, 1]
    assert close(found(images, series[:, order]).series, found(images, series).series, 1e-5)


def test_each_sample_has_the_mean_of_its_own_series() -> None:
    """The release gives all samples of a batch that of the first."""
    images, series = pair(), dates()
    together = found(images, series)
    for i in (0, 1):
        assert close(together.series[i : i + 1], found(images[i : i + 1], series[i : i + 1]).series)  # type: ignore[index]


def test_the_middle_of_the_series_is_taken() -> None:
    network = nano().network
    series = dates(side=64)
    seen: list[tuple[int, ...]] = []
    hook = network.fm_utae_featmap_cropped.conv_list[0].register_forward_pre_hook(
        lambda _module, inputs: seen.append(tuple(inputs[0].shape[-2:]))
    )
    found(pair(), series)
    found(pair(), dates(side=19))
    hook.remove()
    assert seen == [(26, 26), (19, 19)]


def test_a_series_that_cannot_be() -> None:
    for wrong in (noise(2, 3, 4, 32, 32), noise(2, 5, 32, 32), noise(2, 3, 5, 8, 32)):
        with pytest.raises(ModelInputError, match="takes a series"):
            nano().forward(pair(), wrong)


# --- losses ----------------------------------------------------------------------------------------------
def output_of(logits: Tensor, change: Tensor | None = None, series: Tensor | None = None) -> FullMapsOutput:
    change = torch.zeros_like(logits[:, :2]) if change is None else change
    return FullMapsOutput(change, logits, logits, series)


def full_target(value: int, side: int = 4) -> dict[str, Tensor]:
    plane = torch.full((1, side, side), value)
    return {"before": plane, "after": plane, "label": torch.zeros_like(plane)}


def test_background_teaches_no_class() -> None:
    logits = noise(1, 17, 4, 4).requires_grad_()
    parts = nano().loss(output_of(logits, series=logits), full_target(0))
    (parts["semantic"] + parts["series"]).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) == 0


@pytest.mark.parametrize("value", [1, 17])
def test_the_first_class_has_the_first_logit(value: int) -> None:
    logits = torch.zeros(1, 17, 4, 4)
    logits[:, value - 1] = 40.0
    assert float(nano().loss(output_of(logits), full_target(value))["semantic"]) < 1e-5


def test_logits_are_not_clamped() -> None:
    """Clamped to 0..1, a sure map would cost at least log(1 + 16 / e) at each date."""
    logits = torch.full((1, 17, 4, 4), -30.0)
    logits[:, 4] = 30.0
    assert float(nano().loss(output_of(logits), full_target(5))["semantic"]) < 1e-5


def test_the_series_learns_from_both_dates() -> None:
    target = full_target(3) | {"after": torch.full((1, 4, 4), 9)}
    logits = noise(1, 17, 4, 4)
    swapped = target | {"before": target["after"], "after": target["before"]}
    ours, theirs = nano(), nano(faithful=True)
    one, other = (float(ours.loss(output_of(logits, series=logits), t)["series"]) for t in (target, swapped))
    assert one == pytest.approx(other)
    first = float(theirs.loss(output_of(logits, series=logits), target)["series"])
    assert first != pytest.approx(one, rel=1e-3)


def test_changed_pixels_count_twice() -> None:
    logits = noise(2, 6, 6)
    label = (noise(2, 6, 6, seed=1) > 0).long()
    label[0, 0] = IGNORE
    known = label != IGNORE
    truth = label[known].float()
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], truth, reduction="none")
    expected = float((each * (1 + truth)).mean())
    assert float(m.binary_entropy(logits, label, changed=2.0)) == pytest.approx(expected, rel=1e-5)
    nothing = torch.full_like(label, IGNORE)
    assert float(m.binary_entropy(logits, nothing)) == float(m.binary_dice(logits.sigmoid(), nothing)) == 0


def test_the_name_alone_is_the_network_of_the_paper() -> None:
    assert registry.card("fusu").task is Task.SEMANTIC_CHANGE
    built = registry.build("fusu", untrained=True)
    assert sum(p.numel() for p in built.network.parameters()) == registry.card("fusu").parameters


def test_a_binary_label_alone_teaches_the_change_alone() -> None:
    output = found(pair())
    parts = nano().loss(output, {"label": torch.zeros(2, 64, 64, dtype=torch.long)})
    assert set(parts) == {"total", "change", "dice"}
    assert float(parts["total"]) == pytest.approx(float(parts["change"] + parts["dice"]), rel=1e-6)


def test_change_from_two_full_maps() -> None:
    target = {"before": torch.tensor([[[1, 1, 0, 255]]]), "after": torch.tensor([[[1, 2, 2, 2]]])}
    assert m.changed(target).tolist() == [[[0, 1, IGNORE, IGNORE]]]


@pytest.mark.slow
def test_it_learns_a_patch() -> None:
    torch.manual_seed(0)
    system = m.build(m.NANO, untrained=True, series_bands=5)
    assert isinstance(system, m.FusuDetector)
    images, series = pair(side=32), dates(side=16)
    before = torch.randint(1, 4, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    after = before.clone()
    after[:, :16, :16] = 7
    images[:, 1] = images[:, 0]
    for place, plane in ((0, before), (1, after)):
        images[:, place] += plane[:, None]
    target = {"before": before, "after": after, "label": (before != after).long()}
    system.network.train()
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        parts = system.loss(system.forward(images, series), target)
        optimiser.zero_grad()
        parts["total"].backward()
        optimiser.step()
        losses.append(float(parts["total"].detach()))
    assert losses[-1] < 0.3 * losses[0]


# --- sizes, bands, files ---------------------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 50), (64, 31)])
def test_any_size(height: int, width: int) -> None:
    output = found(noise(1, 2, 3, height, width), dates(1))
    assert output.change().logits.shape == (1, height, width)
    assert output.before.shape == output.after.shape == (1, 17, height, width)


def test_what_was_padded_does_not_move_the_series() -> None:
    """The middle of the series lies over the image, not over the image and its padding."""
    network = nano().network
    asked: list[tuple[int, int]] = []
    hook = network.fm_utae_featmap_cropped.register_forward_pre_hook(
        lambda _module, inputs: asked.append(tuple(inputs[2]))
    )
    found(noise(1, 2, 3, 40, 64), dates(1))
    hook.remove()
    assert asked == [(10, 16)]


@pytest.mark.parametrize("card", [m.NANO, m.CHANGE_NANO], ids=lambda c: c.slug)
@pytest.mark.parametrize("number", [4, 13])
def test_other_bands(card: Any, number: int) -> None:
    names = ("blue", "green", "red", *(f"b{i}" for i in range(number - 3)))
    system = m.build(card, untrained=True, bands=names)
    assert system.card.inputs.bands == names
    assert system.card.inputs.normalisation is not None
    assert system.card.inputs.normalisation.stretch is Stretch.SCENE_PERCENTILE
    with torch.inference_mode():
        assert system.forward(noise(1, 2, number, 32, 32)).change().logits.shape == (1, 32, 32)


def test_an_encoder_of_imagenet() -> None:
    torch.manual_seed(3)
    rgb = m.build(m.CHANGE_NANO, untrained=True)
    published = {k: v.clone() for k, v in rgb.network.backbone.state_dict().items()}
    whole = published | {
        "classifier.weight": torch.zeros(3),
        "incre_modules.0.0.conv1.weight": torch.zeros(3),
    }
    system = m.build(m.CHANGE_NANO, untrained=True, bands=("red", "green", "blue", "nir"))
    system.start_encoder(whole)
    stem = system.network.backbone.conv1.weight
    old = published["conv1.weight"]
    assert torch.allclose(stem[:, :3], 0.75 * old)
    assert torch.allclose(stem[:, 3], 0.75 * old.mean(dim=1))
    deep = "stage4.0.branches.3.0.conv2.weight"
    assert torch.equal(system.network.backbone.state_dict()[deep], published[deep])
    with pytest.raises(WeightsMismatchError):
        system.start_encoder({k: v for k, v in whole.items() if "stage3" not in k})


def test_no_weights_come_with_it(tmp_path: Path) -> None:
    with pytest.raises(SystemNotReadyError):
        m.build(m.NANO)
    path = tmp_path / "x.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in nano().network.state_dict().items()}}, path)
    again = m.build(m.NANO, path, series_bands=5)
    assert torch.equal(again.forward(pair()).classes, found(pair()).classes)


def test_the_start_and_the_shift_of_the_change() -> None:
    system = m.build(m.CHANGE_NANO, untrained=True)
    assert system.card.task is Task.CHANGE
    with torch.inference_mode():
        first = system.forward(pair()).change()
        system.shift_logits(0.5)
        second = system.forward(pair()).change()
    assert float(first.probability().mean()) < 0.2
    assert torch.allclose(second.logits, first.logits + 0.5, atol=1e-5)


def test_half_precision() -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        output = nano().forward(pair(), dates())
    assert torch.isfinite(output.change().probability()).all()
    exact = found(pair(), dates())
    assert float((output.before.float() - exact.before).norm() / exact.before.norm()) < 0.1


@pytest.mark.slow
def test_the_whole_runs_in_onnx(tmp_path: Path) -> None:
    inputs, fresh = ([*pair(1, seed=s).unbind(1), dates(1, side=16, seed=s)] for s in (0, 8))
    assert largest_gap(nano().network, inputs, fresh, tmp_path) < 1e-4


@pytest.mark.slow
def test_the_change_alone_runs_in_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = m.build(m.CHANGE_NANO, untrained=True).network
    inputs, fresh = (list(pair(1, seed=s).unbind(1)) for s in (0, 8))
    assert largest_gap(network, inputs, fresh, tmp_path) < 1e-4
