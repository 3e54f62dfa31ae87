"""Mamba-FCS against its paper: counts, the frequency branch, the gates, and what training needs of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onnx_export import largest_gap
from terralapse import registry
from terralapse.errors import SystemNotReadyError, WeightsMismatchError
from terralapse.layers.vmamba import official_names
from terralapse.layers.weights import load_weights
from terralapse.models.semantic_change import mamba_fcs as m
from terralapse.tasks.semantic_change import SemanticChangeOutput

DIMS, DEPTHS = (16, 16, 32, 32), (1, 1, 1, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(classes: int = 7, seed: int = 0) -> m.MambaFCS:
    torch.manual_seed(seed)
    return m.MambaFCS(classes, DIMS, DEPTHS, drop_path_rate=0.0)


def system(classes: int = 7) -> m.MambaFCSDetector:
    return m.MambaFCSDetector(m.SECOND, small(classes).eval())


def target(seed: int = 0, side: int = 32, classes: int = 7) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    changed = torch.rand(2, side, side, generator=draw) < 0.4
    return {
        date: torch.randint(1, classes, changed.shape, generator=draw) * changed
        for date in ("before", "after")
    }


# --- the published layout ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def base() -> m.MambaFCS:
    with torch.device("meta"):
        return m.MambaFCS()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts_are_those_of_the_published_code(base: m.MambaFCS) -> None:
    assert count(base) == m.SECOND.parameters == 206_148_071
    parts = ("encoder", "decoder_bcd", "decoder_T1", "decoder_T2", "main_clf_cd", "aux_clf")
    expected = (87_534_592, 49_558_181, 34_517_137, 34_517_137, 6_543, 14_481)
    assert tuple(count(base.get_submodule(p)) for p in parts) == expected
    assert count(m.PyramidFusion(128, 5)) == 11_262
    assert m.LANDSAT.parameters == 206_148_071 - 14_481 + 11_262 == 206_144_852
    unused = [x for x in base.modules() if isinstance(x, m.UnusedAttention)]
    assert sum(map(count, unused)) == 5_578_240


def test_names_and_shapes_are_those_of_the_published_checkpoint(base: m.MambaFCS, shared: Path) -> None:
    path = shared / "golden/mamba-fcs/second/keys.json"
    if not path.is_file():
        pytest.skip("needs the golden case mamba-fcs/second")
    published = {k: tuple(v["shape"]) for k, v in json.loads(path.read_text()).items()}
    assert {k: tuple(v.shape) for k, v in base.state_dict().items()} == published


def test_the_encoder_has_four_strides() -> None:
    features = small().encoder(noise(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(16, 16, 24), (16, 8, 12), (32, 4, 6), (32, 2, 3)]


# --- frequencies ---------------------------------------------------------------------------------------
def test_a_constant_map_has_one_amplitude() -> None:
    amplitude = m.log_amplitude(torch.full((1, 1, 6, 8), -3.0)).expm1()
    assert float(amplitude[0, 0, 0, 0]) == pytest.approx(3 * math.sqrt(48), rel=1e-5)
    assert float(amplitude.flatten()[1:].max()) < 1e-5


def test_amplitudes_do_not_see_where_things_are_but_do_see_the_size() -> None:
    x = noise(2, 3, 12, 10)
    shifted = m.log_amplitude(x.roll((3, -4), dims=(2, 3)))
    assert torch.allclose(shifted, m.log_amplitude(x), atol=1e-5)
    larger = m.log_amplitude(x.repeat(1, 1, 2, 2))
    assert not torch.allclose(larger[..., :12, :10], m.log_amplitude(x), atol=0.5)


def test_the_exported_transform_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(1, 3, 13, 20)
    expected = m.log_amplitude(x)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert torch.allclose(m.log_amplitude(x), expected, atol=1e-5)


def test_half_precision_is_transformed_in_float() -> None:
    x = noise(1, 2, 6, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(m.log_amplitude(x), m.log_amplitude(x.float()))


def test_a_gradient_through_an_amplitude_of_zero_is_a_number() -> None:
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    m.log_amplitude(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


# --- fusion and gates ----------------------------------------------------------------------------------
def test_five_maps_in_their_order_and_no_difference_of_equal_dates() -> None:
    fusion = m.JointFusion(16).eval()
    seen: list[Tensor] = []
    fusion.reduce_conv.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    x, y = noise(1, 16, 5, 6), noise(1, 16, 5, 6, seed=1)
    fusion(x, x)
    fusion(x, y)
    assert torch.equal(seen[0][:, 64:], torch.zeros(1, 16, 5, 6))
    before, freq_before, after, freq_after, difference = seen[1].chunk(5, dim=1)
    assert torch.equal(before, x)
    assert torch.equal(freq_before, fusion.fft_pre(x))
    assert torch.equal(after, y)
    assert torch.equal(freq_after, fusion.fft_post(y))
    assert torch.equal(difference, (x - y).abs())


def test_heads_have_the_published_gate_of_width_zero() -> None:
    head = m.PyramidFusion(128, 5)
    assert head.channel_att.fc[0].weight.shape == (0, 15)
    assert head.channel_att.fc[2].weight.shape == (15, 0)
    assert m.PyramidFusion(128, 7).channel_att.fc[0].weight.shape == (1, 21)
    x = noise(2, 15, 3, 4)
    with torch.no_grad():
        head.channel_att.fc[2].bias.copy_(noise(15, seed=2))
    expected = x * 2 * head.channel_att.fc(x.mean(dim=(2, 3)))[:, :, None, None]
    assert torch.allclose(head.channel_att(x), expected, atol=1e-6)


def test_the_two_gates_are_added_after_their_sigmoids() -> None:
    gate = m.ChannelGate(32)
    x = noise(2, 32, 4, 5)
    first, second = gate.fc(x.mean(dim=(2, 3))), gate.fc(x.amax(dim=(2, 3)))
    assert torch.allclose(gate(x), x * (first + second)[:, :, None, None])


@pytest.mark.parametrize("maximum_first", [True, False])
def test_spatial_gates_differ_in_their_order(maximum_first: bool) -> None:
    gate = m.SpatialGate(maximum_first, bias=False)
    with torch.no_grad():
        gate.conv.weight.zero_()[0, 0, 3, 3] = 1.0
    x = noise(1, 4, 5, 5)
    summary = x.amax(dim=1, keepdim=True) if maximum_first else x.mean(dim=1, keepdim=True)
    assert torch.allclose(gate(x), x * summary.sigmoid())


def test_guidance_is_a_plain_product() -> None:
    feature = noise(1, 3, 4, 4)
    assert torch.equal(m.guided(feature, torch.full_like(feature, math.inf)), feature)
    assert not m.guided(feature, torch.full_like(feature, -math.inf)).any()
    assert torch.equal(m.guided(feature, torch.zeros_like(feature)), feature / 2)


def test_a_width_without_a_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        m.MambaFCS(7, (8, 16, 32, 64), DEPTHS)


# --- as a system ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 20), (32, 64)])
def test_any_size_comes_back(height: int, width: int) -> None:
    output = system(5).forward(noise(1, 2, 3, height, width))
    assert output.classes.shape == (1, 2, height, width)
    assert output.before.shape == output.after.shape == (1, 5, height, width)
    assert all(torch.isfinite(x).all() for x in (output.classes, output.before, output.after))


def test_the_order_of_the_dates_matters_and_the_batch_does_not() -> None:
    images = noise(2, 2, 3, 32, 32)
    found = system()
    with torch.inference_mode():
        both, swapped = found.forward(images), found.forward(images.flip(1))
        alone = found.forward(images[1:])
    assert not torch.allclose(both.classes, swapped.classes, atol=1e-2)
    assert not torch.allclose(both.before, swapped.after, atol=1e-2)
    assert torch.allclose(both.before[1:], alone.before, atol=1e-5)


def test_class_zero_wins_only_where_it_is_asked_for() -> None:
    logits = torch.zeros(1, 3, 1, 1)
    logits[0, :, 0, 0] = torch.tensor([2.0, 0.0, 1.0])
    output = SemanticChangeOutput(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), logits, logits)
    assert output.maps()[0].item() == 2
    assert output.maps(argmax_over_zero=True)[0].item() == 0


def test_the_loss_is_the_published_sum() -> None:
    found = system()
    output = SemanticChangeOutput(noise(2, 2, 32, 32), noise(2, 7, 32, 32), noise(2, 7, 32, 32, seed=4))
    parts = found.loss(output, target())
    expected = (
        parts["change"]
        + 0.5 * (parts["semantic"] + parts["lovasz"] + parts["sek"])
        + 0.05 * parts["similarity"]
    )
    assert torch.allclose(parts["total"], expected)
    found.sek_weight = 0.0
    assert torch.allclose(found.loss(output, target())["total"], expected - 0.5 * parts["sek"])


def test_what_is_ignored_on_one_date_teaches_nothing_there() -> None:
    found, labels = system(), target()
    labels["before"][:, :8] = 255
    output = SemanticChangeOutput(noise(2, 2, 32, 32), noise(2, 7, 32, 32), noise(2, 7, 32, 32, seed=4))
    expected = found.loss(output, labels)
    output.before[:, :, :8] += 3 * noise(2, 7, 8, 32, seed=5)
    output.classes[:, :, :8] += 3 * noise(2, 2, 8, 32, seed=6)
    assert torch.allclose(found.loss(output, labels)["total"], expected["total"])


def test_the_classes_teach_the_change_decoder_and_every_used_weight_learns() -> None:
    network = small().train()
    found = m.MambaFCSDetector(m.SECOND, network)
    output = found.forward(noise(2, 2, 3, 32, 32))
    output.before.sum().backward(retain_graph=True)
    reached = network.decoder_bcd.fuse_layer_1.reduce_conv.weight.grad
    assert reached is not None
    assert reached.abs().sum() > 0
    found.loss(output, target())["total"].backward()
    silent = {k for k, p in network.named_parameters() if p.grad is None and p.numel() > 0}
    assert silent
    assert all("cross_attn" in k or k.startswith("main_clf_cd.channel_att.fc.0") for k in silent)
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        network = small().eval()
        network.checkpointing = on
        assert network.checkpointing is on
        change, before, _ = network(noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1))
        (change.square().mean() + before.square().mean()).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


def test_half_precision_is_near() -> None:
    images = noise(1, 2, 3, 32, 32)
    found = system()
    with torch.inference_mode():
        exact = found.forward(images).classes
        with torch.autocast("cpu", torch.bfloat16):
            mixed = found.forward(images).classes
        found.network.bfloat16()
        cast = found.forward(images.bfloat16()).classes
    for half in (mixed, cast):
        assert torch.isfinite(half).all()
        assert (half.float() - exact).norm() < 0.1 * exact.norm()


class FusionAndHead(torch.nn.Module):
    """What is this system's own: the frequency fusion, and a head whose gate has no width."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion, self.head = m.JointFusion(16), m.PyramidFusion(16, 2)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return self.head(self.fusion(before, after))


def test_a_traced_fusion_gives_the_same() -> None:
    torch._dynamo.reset()
    module, maps = FusionAndHead().eval(), (noise(1, 16, 8, 12), noise(1, 16, 8, 12, seed=1))
    traced = torch.compile(module, backend="aot_eager")
    assert torch.allclose(traced(*maps), module(*maps), atol=1e-5)


def test_an_exported_fusion_gives_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, maps = FusionAndHead().eval(), (noise(1, 16, 8, 12), noise(1, 16, 8, 12, seed=1))
    program = torch.onnx.export(module, maps, dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "part.onnx")
    session = runtime.InferenceSession(tmp_path / "part.onnx", providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy() for x in maps), strict=True)))
    assert torch.allclose(torch.from_numpy(found), module(*maps), atol=1e-4)


@pytest.mark.slow
def test_all_of_it_runs_in_onnx(tmp_path: Path) -> None:
    dates, fresh = ([noise(1, 3, 32, 32, seed=s) for s in seeds] for seeds in ((0, 1), (2, 3)))
    assert largest_gap(small().eval(), dates, fresh, tmp_path) < 1e-4


# --- files ---------------------------------------------------------------------------------------------
def test_without_a_file_it_says_so() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights come with it"):
        registry.build("mamba-fcs/second")


def test_files_load_whole_or_not_at_all(tmp_path: Path) -> None:
    network, other = small(5, seed=1), small(5, seed=2)
    tensors = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save(tensors, tmp_path / "published.pth")
    load_weights(other, m.LANDSAT, tmp_path / "published.pth", official_names)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in other.state_dict().items())
    del tensors["module.decoder_bcd.fuse_layer_1.cross_attn.qkv.weight"]
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(WeightsMismatchError, match=r"1 missing: decoder_bcd\.fuse_layer_1\.cross_attn"):
        load_weights(other, m.LANDSAT, tmp_path / "short.pth", official_names)
    with pytest.raises(WeightsMismatchError, match="of another shape: aux_clf"):
        load_weights(small(7), m.SECOND, tmp_path / "published.pth", official_names)


def test_the_encoder_starts_from_a_published_vmamba() -> None:
    found, source = system(), small(seed=9).encoder
    published = {k: v for k, v in source.state_dict().items() if not k.startswith("outnorm")}
    published["classifier.head.weight"] = noise(10, 32)
    found.start_encoder(published)
    key = "layers.2.blocks.0.mlp.fc1.weight"
    assert torch.equal(found.network.encoder.state_dict()[key], source.state_dict()[key])
    del published[key]
    with pytest.raises(WeightsMismatchError, match="1 missing"):
        found.start_encoder(published)
