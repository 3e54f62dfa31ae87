"""CVMH-UNet: the counts of its skeleton, what each flag changes, and what training needs of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_export import largest_gap
from terralapse import registry
from terralapse.cards import Status
from terralapse.errors import SystemNotReadyError, WeightsMismatchError
from terralapse.layers.scan import cross_paths, selective_scan
from terralapse.models.segmentation import cvmh_unet as m

SMALL = m.Design(
    dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), state=2, drop_path=0.0
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(classes: int = 3, seed: int = 0, **changes: object) -> m.CVMHUNet:
    torch.manual_seed(seed)
    return m.CVMHUNet(classes, 3, replace(SMALL, **changes))


def system(**changes: object) -> m.CVMHUNetSystem:
    return m.CVMHUNetSystem(m.NANO_CARD, small(2, **changes).eval())


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# --- counts --------------------------------------------------------------------------------------------
def test_the_skeleton_has_the_counts_of_vm_unet() -> None:
    deeper = replace(m.VM_UNET, depths=(2, 2, 9, 2), decoder_depths=(2, 9, 2, 2))
    with torch.device("meta"):
        assert count(m.CVMHUNet(6, design=m.VM_UNET)) == 27_427_686
        assert count(m.CVMHUNet(6, design=deeper)) == 44_273_958


def test_cards_state_their_counts() -> None:
    with torch.device("meta"):
        for card in (m.VAIHINGEN, m.GID15, m.NANO_CARD):
            design = m.NANO if card is m.NANO_CARD else m.BASE
            network = m.CVMHUNet(m.CLASSES[card.slug], len(card.inputs.bands or ()), design)
            assert count(network) == card.parameters


def test_other_orders_of_the_scan_cost_nothing_and_eight_cost_more() -> None:
    counts = {scan: count(small(scan=scan)) for scan in m.SCANS}
    assert counts["ss2d"] == counts["cross"] == counts["diag"] < counts["full"]


def test_no_score_of_the_paper_is_claimed() -> None:
    for card in (m.CARD, m.POTSDAM, m.VAIHINGEN, m.GID15):
        assert card.status is Status.RUNS
        assert not card.figures
        assert "none of the paper's scores" in card.limits[0]


# --- blocks --------------------------------------------------------------------------------------------
def scanned_by_hand(core: m.SS2D, x: Tensor) -> Tensor:
    """VMamba v0 on [B, H, W, C], direction by direction with permuted copies."""
    batch, height, width, _ = x.shape
    u, z = core.in_proj(x).chunk(2, dim=-1)
    u = F.silu(core.conv2d(u.permute(0, 3, 1, 2))).flatten(2)  # [B, D, L]
    total = torch.zeros_like(u)
    for k, order in enumerate(cross_paths(height, width).order):
        along = u[:, :, order]
        needed = torch.einsum("bdl,cd->bcl", along, core.x_proj_weight[k])
        dt, b, c = needed.split([core.rank, core.state, core.state], dim=1)
        inner = u.shape[1]
        rows = slice(k * inner, (k + 1) * inner)
        y = selective_scan(
            along,
            torch.einsum("brl,dr->bdl", dt, core.dt_projs_weight[k]),
            -core.A_logs[rows].exp(),
            b[:, None],
            c[:, None],
            core.Ds[rows],
            core.dt_projs_bias[k],
            delta_softplus=True,
        )
        assert isinstance(y, Tensor)
        total[:, :, order] += y
    normal = core.out_norm(total.transpose(1, 2)).view(batch, height, width, -1)
    return core.out_proj(normal * F.silu(z))


def test_without_its_additions_the_block_is_that_of_vm_unet() -> None:
    block = m.HybridBlock(8, 0.0, replace(SMALL, scan="ss2d", local=False)).eval()
    x = noise(2, 5, 4, 8)
    with torch.no_grad():
        expected = x + scanned_by_hand(block.self_attention, block.ln_1(x))
        assert torch.allclose(block(x), expected, atol=1e-5)


def test_local_branch_and_residual_are_what_they_say() -> None:
    x = noise(2, 5, 4, 8)
    with torch.no_grad():
        torch.manual_seed(3)
        both = m.HybridBlock(8, 0.0, SMALL).eval()
        bare = m.HybridBlock(8, 0.0, replace(SMALL, residual=False)).eval()
        bare.load_state_dict(both.state_dict())
        assert torch.allclose(both(x) - x, bare(x), atol=1e-6)
        normal = bare.ln_1(x)
        assert torch.allclose(bare(x), bare.self_attention(normal) + bare.local(normal), atol=1e-6)


@pytest.mark.parametrize("gate", ["conv", "linear"])
@pytest.mark.parametrize("split", [True, False])
def test_a_skip_keeps_the_shape_and_sees_the_sum(gate: str, split: bool) -> None:
    torch.manual_seed(0)
    skip = m.FrequencySkip(32, replace(SMALL, gate=gate, split=split)).eval()
    a, b = noise(2, 5, 9, 32), noise(2, 5, 9, 32, seed=1)
    assert skip(a, b).shape == a.shape
    assert torch.allclose(skip(a, b), skip(b, a), atol=1e-6)
    assert torch.allclose(skip(a, b), skip(a + b, torch.zeros_like(a)), atol=1e-5)


def test_a_skip_has_its_two_gates_before_it_joins_them() -> None:
    torch.manual_seed(0)
    skip = m.FrequencySkip(16, SMALL).eval()
    seen: list[Tensor] = []
    skip.join.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    a, b = noise(1, 7, 7, 16), noise(1, 7, 7, 16, seed=1)
    skip(a, b)
    both = (a + b).permute(0, 3, 1, 2)
    by_channel, by_position = seen[0].chunk(2, dim=1)
    ratio = by_channel / both
    assert torch.allclose(ratio, ratio[:, :, :1, :1].expand_as(ratio), atol=1e-4)
    assert torch.allclose(by_position, both * skip.local(both).sigmoid())


def test_merging_and_expanding_keep_places() -> None:
    x = torch.arange(4 * 6).float().view(1, 4, 6, 1)
    merge = m.PatchMerge(1)
    merge.norm = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    merge.reduction = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    assert merge(x)[0, 1, 2].tolist() == [16.0, 22.0, 17.0, 23.0]
    expand = m.PatchExpand(8, 2)
    expand.norm = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    expand.expand = torch.nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    spread = expand(torch.arange(16.0).view(1, 1, 1, 16))
    assert spread[0, :, :, 0].tolist() == [[0.0, 4.0], [8.0, 12.0]]


# --- as a system ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 20), (64, 32)])
def test_any_size_comes_back(height: int, width: int) -> None:
    output = system().forward(noise(2, 1, 3, height, width))
    assert output.logits.shape == (2, 2, height, width)
    assert torch.isfinite(output.logits).all()


def test_what_is_added_to_an_image_does_not_touch_the_next() -> None:
    images = noise(2, 1, 3, 32, 32)
    found = system()
    with torch.inference_mode():
        assert torch.allclose(found.forward(images).logits[1:], found.forward(images[1:]).logits, atol=1e-4)


def test_the_loss_is_cross_entropy_and_dice_and_every_weight_learns() -> None:
    network = small(2).train()
    found = m.CVMHUNetSystem(m.NANO_CARD, network)
    label = torch.randint(0, 2, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    label[0, :9] = 255
    parts = found.loss(found.forward(noise(2, 1, 3, 64, 64)), {"label": label})
    assert torch.allclose(parts["total"], parts["cross_entropy"] + parts["dice"])
    parts["total"].backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.slow
def test_four_crops_can_be_learned_by_heart() -> None:
    """Bright squares on noise: the loss falls and nearly every pixel is right."""
    torch.manual_seed(0)
    label = torch.zeros(4, 64, 64, dtype=torch.int64)
    for i in range(4):
        label[i, 4 + 3 * i : 32 + 3 * i, 6:32] = 1
    images = 0.3 * noise(4, 1, 3, 64, 64) + 2.0 * label[:, None, None].float()
    found = m.CVMHUNetSystem(m.NANO_CARD, m.CVMHUNet(2, design=replace(m.NANO, drop_path=0.0)).train())
    optimiser = torch.optim.AdamW(found.network.parameters(), lr=2e-3)
    for _ in range(25):
        optimiser.zero_grad()
        found.loss(found.forward(images), {"label": label})["total"].backward()
        optimiser.step()
    assert (found.forward(images).map() == label).float().mean() > 0.97


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    results = []
    for on in (False, True):
        network = small().train()
        network.checkpointing = on
        assert network.checkpointing is on
        network(noise(2, 3, 64, 64)).square().mean().backward()
        results.append(
            [p.grad for p in network.parameters()] + [b for b in network.buffers() if b.is_floating_point()]
        )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))


def test_half_precision_is_near() -> None:
    images = noise(1, 1, 3, 64, 64)
    found = system()
    with torch.inference_mode():
        exact = found.forward(images).logits
        with torch.autocast("cpu", torch.bfloat16):
            mixed = found.forward(images).logits
        found.network.bfloat16()
        cast = found.forward(images.bfloat16()).logits
    for half in (mixed, cast):
        assert torch.isfinite(half).all()
        assert (half.float() - exact).norm() < 0.1 * exact.norm()


class BlockAndSkip(torch.nn.Module):
    """What is this system's own: a hybrid block and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.skip = m.HybridBlock(8, 0.0, SMALL), m.FrequencySkip(8, SMALL)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x, self.block(x))


def test_a_traced_block_gives_the_same() -> None:
    torch._dynamo.reset()
    module, x = BlockAndSkip().eval(), noise(1, 3, 2, 8)
    traced = torch.compile(module, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(traced(x), module(x), atol=1e-5)


@pytest.mark.slow
def test_an_exported_block_gives_the_same(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, x = BlockAndSkip().eval(), noise(1, 3, 2, 8)
    program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(tmp_path / "part.onnx")
    session = runtime.InferenceSession(tmp_path / "part.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), module(x), atol=1e-4)


@pytest.mark.slow
def test_all_of_it_runs_in_onnx(tmp_path: Path) -> None:
    assert (
        largest_gap(system().network, [noise(1, 3, 32, 32)], [noise(1, 3, 32, 32, seed=1)], tmp_path) < 1e-4
    )


# --- files ---------------------------------------------------------------------------------------------
def test_without_a_file_it_says_so_and_untrained_it_runs() -> None:
    with pytest.raises(SystemNotReadyError, match="no weights come with it"):
        registry.build("cvmh-unet/buildings-nano")
    found = registry.build("cvmh-unet/gid15", untrained=True, design=m.NANO)
    assert found.forward(noise(1, 1, 4, 32, 32)).logits.shape == (1, 16, 32, 32)


def test_files_load_whole_or_not_at_all(tmp_path: Path) -> None:
    found = registry.build("cvmh-unet/buildings-nano", untrained=True, design=SMALL)
    tensors = {f"vmunet.{k}": v for k, v in found.network.state_dict().items()}
    torch.save(tensors, tmp_path / "a.pth")
    other = registry.build("cvmh-unet/buildings-nano", weights=tmp_path / "a.pth", design=SMALL)
    assert all(torch.equal(v, tensors[f"vmunet.{k}"]) for k, v in other.network.state_dict().items())
    del tensors["vmunet.final_conv.bias"]
    torch.save(tensors, tmp_path / "b.pth")
    with pytest.raises(WeightsMismatchError, match=r"1 missing: final_conv\.bias"):
        registry.build("cvmh-unet/buildings-nano", weights=tmp_path / "b.pth", design=SMALL)


def test_scans_start_from_a_published_encoder() -> None:
    found, source = system(), small(2, seed=5, scan="ss2d", local=False, skip="sum")
    published = source.state_dict()
    before = found.network.state_dict()["final_conv.weight"].clone()
    found.start_encoder(published)
    own = found.network.state_dict()
    assert torch.equal(
        own["layers.3.blocks.0.self_attention.A_logs"], published["layers.3.blocks.0.self_attention.A_logs"]
    )
    assert torch.equal(own["final_conv.weight"], before)
    del published["layers.1.downsample.norm.bias"]
    with pytest.raises(WeightsMismatchError, match="1 missing"):
        found.start_encoder(published)
