"""DynamicVis in its tasks: counts, files, what each system returns and learns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from terralapse import registry
from terralapse.errors import SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.mask_rcnn import MaskRCNN
from terralapse.layers.upernet import UPerHead
from terralapse.models.pretraining import dynamicvis as d
from terralapse.models.pretraining.dynamicvis import Size

TINY = Size((8, 8, 16, 16), (1, 1, 1, 1))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sizes are tiny, and the heavier heads narrow."""
    monkeypatch.setattr(d, "SIZES", {"b": TINY, "l": TINY})
    monkeypatch.setattr(d, "UPerHead", partial(UPerHead, channels=32))
    monkeypatch.setattr(d, "MaskRCNN", partial(MaskRCNN, width=32, samples=6, proposals=6))
    torch.manual_seed(0)


def build(slug: str, **options: Any) -> Any:
    return registry.build(f"dynamicvis/{slug}", **{"untrained": True, "size": 64, **options})


CARDS = [c for c in registry.cards() if c.system == "dynamicvis"]


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_parameters_are_those_of_the_card(card: registry.Card) -> None:
    kind, _, size = ("-" + (card.slug.partition("/")[2] or "b")).rpartition("-")
    kind = kind.removeprefix("-")
    side = 512 if kind in ("", "cls") else 1024
    with torch.device("meta"):
        network = d._system(card, kind, d.SIZES[size], side, d.Routing(), None).network
    assert sum(p.numel() for p in network.parameters()) == card.parameters
    assert card.parameters


def test_parts_of_the_pretraining_network_at_64_pixels() -> None:
    with torch.device("meta"):
        network = d.Pretraining(d.SIZES["b"], 64)
    parts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in (
            ("backbone", network.backbone),
            ("pyramid", network.pre_neck),
            ("head", network.head),
            ("all", network),
        )
    }
    assert parts == {"backbone": 35_197_248, "pyramid": 2_729_984, "head": 32_320, "all": 39_856_513}


@pytest.mark.parametrize("slug", [c.slug for c in CARDS])
def test_no_weights_come_with_it(slug: str) -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build(slug)


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="size=16"):
        build("b", size=16)
    with pytest.raises(SettingError, match="routing=some"):
        build("b", routing="some")


# --- what each system returns --------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (33, 70)])
def test_images_of_any_size(shape: tuple[int, int]) -> None:
    images = torch.randn(2, 1, 3, *shape)
    features = build("b").forward(images)
    assert features.embedding.shape == (2, 16)
    assert [m.shape[1] for m in features.maps] == [8, 8, 16, 16]
    assert build("cls-b", classes=4).forward(images).logits.shape == (2, 4)
    segmented = build("seg-b", classes=3).forward(images)
    assert segmented.logits.shape == (2, 3, *shape)
    assert segmented.auxiliary[0].shape == (2, 3, *shape)
    changed = build("cd-b").forward(torch.randn(2, 2, 3, *shape))
    assert changed.logits.shape == (2, *shape)
    assert all(x.isfinite().all() for x in (features.embedding, segmented.logits, changed.logits))


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("slug", ["det-b", "ins-b"])
def test_objects_on_images_of_any_size(slug: str) -> None:
    system = build(slug, classes=2)
    images = torch.randn(2, 1, 3, 33, 40)
    output = system.forward(images)
    with torch.no_grad():
        found = output.detections()
    assert len(found) == 2
    for one in found:
        assert one.boxes.shape == (len(one.scores), 4)
        assert bool((one.boxes[:, 0::2] <= 40).all())
        assert bool((one.boxes[:, 1::2] <= 33).all())
        assert (one.masks is None) == (slug == "det-b")
    target = {
        "boxes": torch.tensor([[0, 2, 2, 20, 25], [1, 10, 5, 39, 30.0]]),
        "label": torch.tensor([0, 1]),
        "masks": torch.ones(2, 33, 40, dtype=torch.bool),
    }
    losses = system.loss(output, target)
    losses["total"].backward()
    assert all(v.isfinite() for v in losses.values())
    parts = sum(v for k, v in losses.items() if k != "total")
    assert losses["total"].item() == pytest.approx(parts.item(), rel=1e-5)


@pytest.mark.usefixtures("tiny")
def test_the_order_of_the_dates_matters() -> None:
    system, pair = build("cd-b"), torch.randn(1, 2, 3, 64, 64)
    assert not torch.allclose(system.forward(pair).logits, system.forward(pair.flip(1)).logits, atol=1e-4)
    assert any("order" in limit for limit in registry.card("dynamicvis/cd-b").limits)


@pytest.mark.usefixtures("tiny")
def test_the_ablation_without_a_choice_of_tokens_keeps_its_gates() -> None:
    network = build("b", routing="all-tokens").network
    names = [n for n, _ in network.named_parameters() if "spatial_gate" in n]
    assert len(names) == 4
    seen: list[torch.Tensor] = []
    block = network.backbone.layers[0][1][0]
    block.spatial_mamba_mixer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    network(torch.randn(1, 3, 64, 64))
    assert seen[0].shape == (1, 256, 8)  # all tokens, none put before them


# --- what they learn -----------------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
def test_pretraining_learns_regions_by_heart() -> None:
    system = build("b", classes=3)
    system.network.train()
    images = torch.randn(2, 1, 3, 64, 64)
    target = {
        "boxes": torch.tensor([[0, 4, 4, 30, 30], [0, 30, 8, 60, 60], [1, 0, 0, 64, 64.0]]),
        "label": torch.tensor([0, 1, 2]),
    }
    first = {k: v.item() for k, v in system.loss(system.forward(images), target).items()}
    assert first["total"] == pytest.approx(first["classification"] + first["contrast"])
    assert first["contrast"] == pytest.approx(0.25 * (first["region_to_class"] + first["class_to_region"]))
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=3e-4)
    for _ in range(6):
        loss = system.loss(system.forward(images), target)
        optimiser.zero_grad()
        loss["total"].backward()
        optimiser.step()
    assert loss["classification"].item() < 0.9 * first["classification"]
    empty = {"boxes": torch.zeros(0, 5), "label": torch.zeros(0, dtype=torch.int64)}
    assert float(system.loss(system.forward(images), empty)["total"]) == 0


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("slug", ["seg-b", "cd-b"])
def test_maps_are_learned_by_heart(slug: str) -> None:
    torch.manual_seed(0)
    system = build(slug)
    system.network.train()
    images = torch.randn(2, 1 if slug == "seg-b" else 2, 3, 32, 32)
    images[:, -1, :, 8:24, 8:24] += 4.0
    label = torch.zeros(2, 32, 32, dtype=torch.uint8)
    label[:, 8:24, 8:24] = 1
    label[:, :4] = 255
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=1e-3)
    losses = []
    for _ in range(16):
        loss = system.loss(system.forward(images), {"label": label})["total"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


# --- files ---------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
def test_a_checkpoint_of_mmengine_loads_strictly_and_its_table_is_resized(tmp_path: Path) -> None:
    source = build("b")
    nn.init.normal_(source.network.backbone.pos_embed)
    tensors = {f"module.{k}": v for k, v in source.network.state_dict().items()}
    stray = {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    torch.save({"meta": {"epoch": 200}, "state_dict": {**tensors, **stray}}, tmp_path / "pretrain.pth")
    images = torch.randn(1, 1, 3, 64, 64)
    loaded = build("b", untrained=False, weights=tmp_path / "pretrain.pth")
    assert torch.equal(loaded.forward(images).embedding, source.forward(images).embedding)
    larger = build("b", untrained=False, weights=tmp_path / "pretrain.pth", size=96)
    assert larger.network.backbone.pos_embed.shape == (1, 24 * 24, 8)
    with pytest.raises(WeightsMismatchError, match=r"head\.fc"):
        build("b", untrained=False, weights=tmp_path / "pretrain.pth", classes=5)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("slug", ["b", "cls-b", "seg-b", "cd-b", "det-b", "ins-b"])
def test_networks_start_from_a_pretraining(slug: str) -> None:
    source = build("b").network.state_dict()
    started = build(slug, size=96, classes=4) if slug != "cd-b" else build(slug, size=96)
    head = {k: v.clone() for k, v in started.network.state_dict().items() if "head" in k}
    started.start_encoder(source)
    found = started.network.state_dict()
    name = "backbone.layers.2.1.0.spatial_mamba_mixer.mamba_layer.in_proj.weight"
    assert torch.equal(found[name], source[name])
    assert all(torch.equal(found[k], v) for k, v in head.items())
    if slug not in ("b", "cls-b"):
        ours, theirs = (f"{n}.fpn_convs.3.conv.weight" for n in ("neck", "pre_neck"))
        assert torch.equal(found[ours], source[theirs])
    with pytest.raises(WeightsMismatchError, match="missing"):
        started.start_encoder({k: v for k, v in source.items() if k != name})


# --- precision, compiler -------------------------------------------------------------------------------
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("slug", ["b", "cls-b", "seg-b", "cd-b"])
def test_half_precision(slug: str) -> None:
    system = build(slug)
    images = torch.randn(1, 2 if slug == "cd-b" else 1, 3, 64, 64)

    def said() -> torch.Tensor:
        output = system.forward(images)
        return (output.embedding if slug == "b" else output.logits).detach()

    exact = said()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = said()
    system.network.bfloat16()
    images = images.bfloat16()
    half = said()
    for found in (mixed, half):
        assert found.isfinite().all()
        # Another token may be chosen where two scores are close, so this is loose.
        assert float((found.float() - exact).norm() / exact.norm()) < 0.3


@pytest.mark.usefixtures("tiny")
def test_it_compiles() -> None:
    network = build("b", size=32).network
    compiled = torch.compile(network.backbone, backend="aot_eager", fullgraph=False)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(compiled(x), network.backbone(x), strict=True):
            assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_onnx_says_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, x = build("cls-b", size=32, classes=4).network, torch.randn(1, 3, 32, 32)
    torch.onnx.export(network, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert found[0] == pytest.approx(network(x)[0].detach().numpy(), abs=1e-4)
