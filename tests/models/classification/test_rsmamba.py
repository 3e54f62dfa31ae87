"""RSMamba: counts of the paper's table, the three orders and their gate, files of the authors, training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnx_export import largest_gap
from terralapse import registry
from terralapse.errors import FileMissingError, SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.mamba import PathType
from terralapse.models.classification.rsmamba import (
    SIZES,
    RSMamba,
    RSMambaSystem,
    Size,
    class_names,
    from_official,
)

TINY = Size(depth=2, width=16, image=32, patch=8, stride=4)
SMALLEST = Size(depth=1, width=16, image=16, patch=8, stride=4)


def tiny(path: PathType = PathType.SHUFFLE_GATE, classes: int = 5, **options: Any) -> RSMamba:
    torch.manual_seed(0)
    network = RSMamba(TINY, classes, path, **options).eval()
    for gate in network.backbone.gate_layers:  # weights that tell the orders apart
        nn.init.normal_(gate[0].weight)  # type: ignore[index]
    return network


def images(number: int = 2, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(seed))


def system(**options: Any) -> RSMambaSystem:
    return registry.build("rsmamba/eurosat-nano", untrained=True, **options)


# --- what the sheet says -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "backbone", "whole"),
    [
        ("s", 4_351_104, 4_356_894),
        ("b", 6_377_088, 6_382_878),
        ("l", 16_241_152, 16_248_862),
        ("h", 33_046_400, 33_056_030),
    ],
)
def test_parameters_are_those_of_the_table(size: str, backbone: int, whole: int) -> None:
    with torch.device("meta"):
        network = RSMamba(SIZES[size], 30)
    assert sum(p.numel() for p in network.backbone.parameters()) == backbone
    assert (
        sum(p.numel() for p in network.parameters()) == whole == registry.card(f"rsmamba/{size}").parameters
    )
    assert registry.card("rsmamba").parameters == 6_382_878


def test_784_tokens_at_224_pixels_and_2304_at_384() -> None:
    with torch.device("meta"):
        backbone = RSMamba(SIZES["b"], 30).backbone
        assert backbone.patch_embed(torch.empty(1, 3, 224, 224)).shape == (1, 784, 192)
        larger = RSMamba(replace(SIZES["b"], image=384), 30).backbone
    assert larger.pos_embed is not None
    assert larger.pos_embed.shape == (1, 2304, 192)


def test_zeros_are_added_at_the_right_and_the_bottom_only() -> None:
    embed = tiny().backbone.patch_embed
    tokens = embed(images()).view(2, 8, 8, 16)
    alone = nn.functional.conv2d(images(), embed.projection.weight, stride=4).permute(0, 2, 3, 1)  # 7 x 7
    assert torch.allclose(tokens[:, :7, :7], alone, atol=1e-5)


# --- orders and gate -----------------------------------------------------------------------------------
def test_a_gate_of_zeros_is_the_mean() -> None:
    for gated, mean in (
        (PathType.SHUFFLE_GATE, PathType.SHUFFLE_MEAN),
        (PathType.REVERSE_GATE, PathType.REVERSE_MEAN),
    ):
        network = tiny(gated)
        for gate in network.backbone.gate_layers:
            nn.init.zeros_(gate[0].weight)  # type: ignore[index]
        first = network(images())[0]
        network.backbone.path = mean
        assert torch.allclose(first, network(images())[0], atol=1e-6)


def test_one_norm_is_shared_by_all_blocks() -> None:
    names = [n for n, _ in tiny().backbone.named_parameters() if "norm" in n]
    assert names == ["pre_norm.weight", "pre_norm.bias"]


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    first, again, other = (tiny(shuffle_seed=s)(images())[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-6)


def test_without_a_seed_or_in_training_orders_are_drawn_anew() -> None:
    official = tiny(shuffle_seed=None)
    assert not torch.equal(official(images())[0], official(images())[0])
    trained = tiny().train()
    torch.manual_seed(1)
    first = trained(images())[0]
    second = trained(images())[0]
    torch.manual_seed(1)
    assert torch.equal(first, trained(images())[0])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("path", list(PathType))
def test_images_of_a_batch_do_not_see_each_other(path: PathType) -> None:
    network = tiny(path)
    both = network(images())[0]
    alone = torch.cat([network(images()[i : i + 1])[0] for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-5)


# --- files ---------------------------------------------------------------------------------------------
def test_a_checkpoint_of_mmengine_loads_strictly(tmp_path: Path) -> None:
    source = registry.build("rsmamba/eurosat-nano", untrained=True, classes=7)
    tensors = source.network.state_dict()
    stray = {"data_preprocessor.mean": torch.zeros(3, 1, 1)}
    torch.save({"meta": {"epoch": 500}, "state_dict": {**tensors, **stray}}, tmp_path / "official.pth")
    loaded = registry.build("rsmamba/eurosat-nano", weights=tmp_path / "official.pth", classes=7)
    x = images(1, 64)[:, None]
    assert torch.equal(source.forward(x).logits, loaded.forward(x).logits)
    with pytest.raises(WeightsMismatchError, match=r"head\.fc"):
        registry.build("rsmamba/eurosat-nano", weights=tmp_path / "official.pth", classes=8)


def test_a_position_table_is_resized_for_another_size_of_image(tmp_path: Path) -> None:
    source = system()
    torch.save(source.network.state_dict(), tmp_path / "w.pth")
    larger = registry.build("rsmamba/eurosat-nano", weights=tmp_path / "w.pth", image_size=96)
    table = larger.network.backbone.pos_embed
    assert table.shape == (1, 12 * 12, 96)
    spread = [float(t.detach().std()) for t in (table, source.network.backbone.pos_embed)]
    assert spread[0] == pytest.approx(spread[1], rel=0.25)
    assert larger.forward(images(1, 96)[:, None]).logits.shape == (1, 10)
    same = from_official(source.network.state_dict(), 8)["backbone.pos_embed"]
    assert torch.equal(same, source.network.backbone.pos_embed)


def test_no_weights_come_with_the_official_sizes() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build("rsmamba/s")


def test_the_data_set_sets_scaling_and_number_of_classes() -> None:
    nwpu = registry.build("rsmamba/s", untrained=True, data="nwpu")
    assert nwpu.network.head.fc.out_features == 45
    assert nwpu.card.inputs.normalisation.mean[0] == 93.847266
    with pytest.raises(SettingError, match="data=whu"):
        registry.build("rsmamba/s", untrained=True, data="whu")
    with pytest.raises(SettingError, match="path=zigzag"):
        registry.build("rsmamba/s", untrained=True, path="zigzag")


def test_names_of_classes_are_numbered_given_or_read(tmp_path: Path) -> None:
    assert class_names(3) == ("class_0", "class_1", "class_2")
    (tmp_path / "cls_names.txt").write_text("Port\nSquare\nRiver")  # the last line does not end
    assert class_names(tmp_path / "cls_names.txt") == ("Port", "Square", "River")
    assert class_names(["a", "b"]) == ("a", "b")
    assert len(system().classes) == 10
    with pytest.raises(FileMissingError, match="nowhere"):
        class_names(tmp_path / "nowhere.txt")
    with pytest.raises(SettingError, match="different"):
        class_names(["a", "a"])


# --- behind its task -----------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(64, 64), (1, 1), (1, 40), (37, 90), (200, 130)])
def test_images_of_any_size_get_one_label(shape: tuple[int, int]) -> None:
    output = system().forward(torch.randn(2, 1, 3, *shape))
    assert output.logits.shape == (2, 10)
    assert output.embedding is not None
    assert output.embedding.shape == (2, 96)
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize("shape", [(600, 600), (256, 256), (300, 700), (1, 5)])
def test_the_official_pipeline_keeps_the_centre(shape: tuple[int, int]) -> None:
    built = registry.build("rsmamba/s", untrained=True)
    ramp = torch.linspace(-1, 1, shape[1]).expand(1, 3, *shape)
    prepared = built.prepare(ramp)
    assert prepared.shape == (1, 3, 224, 224)
    assert float(prepared.mean()) == pytest.approx(0.0, abs=3e-3)
    if shape[0] == shape[1]:  # a cut of 224 of 256
        assert float(prepared.max()) == pytest.approx(224 / 256, abs=0.01)


def test_a_mixed_label_costs_its_shares() -> None:
    built = system()
    output = built.forward(torch.randn(2, 1, 3, 64, 64))
    hard = [built.loss(output, {"label": torch.full((2,), k)})["total"].item() for k in (1, 4)]
    shares = torch.zeros(2, 10)
    shares[:, 1], shares[:, 4] = 0.3, 0.7
    mixed = built.loss(output, {"label": shares})["total"]
    assert mixed.item() == pytest.approx(0.3 * hard[0] + 0.7 * hard[1], rel=1e-5)


def test_the_scaling_of_the_small_one_is_that_of_the_training_tiles(shared_data: Path) -> None:
    import zipfile

    from PIL import Image

    with zipfile.ZipFile(shared_data / "scene_eurosat_rgb/train.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))[::50]
        tiles = np.stack([np.asarray(Image.open(archive.open(n)).convert("RGB")) for n in names])
    scaling = registry.card("rsmamba/eurosat-nano").inputs.normalisation
    assert scaling is not None
    assert tiles.mean(axis=(0, 1, 2)) == pytest.approx(scaling.mean, rel=0.15)


# --- training and export -------------------------------------------------------------------------------
def test_it_learns_a_few_images_by_heart() -> None:
    torch.manual_seed(0)
    network = RSMamba(SMALLEST, 4)
    x, y = images(8, 16, seed=5), torch.arange(8) % 4
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(25):
        loss = nn.functional.cross_entropy(network(x)[0], y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    assert (network(x)[0].argmax(dim=1) == y).all()


def test_checkpointing_changes_memory_only() -> None:
    gradients = []
    for checkpointing in (False, True):
        network = tiny()
        network.checkpointing = checkpointing
        network.train()
        torch.manual_seed(2)  # the order drawn in training
        network(images())[0].square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(g is not None for g in gradients[0])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_half_precision() -> None:
    network = tiny()
    exact = network(images())[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(images())[0]
    half = network.bfloat16()(images().bfloat16())[0]
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert float((found.float() - exact).norm() / exact.norm()) < 0.1


def test_it_compiles() -> None:
    network, x = RSMamba(SMALLEST, 5).eval(), images(2, 16)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=False)
    with torch.no_grad():
        assert torch.allclose(compiled(x)[0], network(x)[0], atol=1e-5)


@pytest.mark.slow
def test_the_small_network_runs_in_onnx(tmp_path: Path) -> None:
    network = registry.build("rsmamba/eurosat-nano").network
    assert largest_gap(network, [images(1, 64)], [images(1, 64, seed=1)], tmp_path) < 1e-4


@pytest.mark.slow
def test_onnx_says_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    network, x = RSMamba(SMALLEST, 5).eval(), images(2, 16)
    torch.onnx.export(network, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "m.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert found[0] == pytest.approx(network(x)[0].detach().numpy(), abs=1e-5)
