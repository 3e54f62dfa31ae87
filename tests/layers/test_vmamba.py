from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.errors import WeightsMismatchError
from terralapse.layers.drop_path import DropPath
from terralapse.layers.scan import LowRank, cross_paths, diagonal_paths, path_scan
from terralapse.layers.vmamba import SS2D, VSSBlock, VSSEncoder, load_imagenet, official_names

FORMS = {
    "v3noz": {},
    "four states": {"state": 4, "ratio": 1.0},
    "gated": {"state": 16, "conv_bias": True, "gated": True},
    "diagonal": {"paths": diagonal_paths},
}
SMALL = {"dims": (8, 16), "depths": (1, 2)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights in evaluation that are far from their start, so that every part matters."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return module.eval()


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def by_hand(m: SS2D, x: Tensor) -> Tensor:
    """SS2D as the paper tells it: four copies of the sequence, scanned one step at a time, in double."""
    m = copy.deepcopy(m).double()
    batch, height, width, _ = x.shape
    x = m.in_proj(x.double())
    x, z = x.chunk(2, dim=-1) if m.gated else (x, None)
    x = F.silu(m.conv2d(x.permute(0, 3, 1, 2)))
    rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
    y = torch.zeros_like(rows)
    for k, u in enumerate([rows, columns, rows.flip(2), columns.flip(2)]):
        inner = u.shape[1]
        needed = torch.einsum("cd,bdl->bcl", m.x_proj_weight[k], u)
        dt, b, c = needed.split([m.rank, m.state, m.state], dim=1)
        dt = F.softplus(torch.einsum("dr,brl->bdl", m.dt_projs_weight[k], dt) + m.dt_projs_bias[k][:, None])
        a = -m.A_logs[k * inner : (k + 1) * inner].exp()
        h, out = u.new_zeros(batch, inner, m.state), []
        for t in range(height * width):
            h = (dt[:, :, t, None] * a).exp() * h + dt[:, :, t, None] * b[:, None, :, t] * u[:, :, t, None]
            out.append((h * c[:, None, :, t]).sum(-1) + m.Ds[k * inner : (k + 1) * inner] * u[:, :, t])
        path = torch.stack(out, dim=2)
        path = path.flip(2) if k >= 2 else path
        y += path if k % 2 == 0 else path.unflatten(2, (width, height)).transpose(2, 3).flatten(2)
    y = m.out_norm(y.transpose(1, 2)).unflatten(1, (height, width))
    return m.out_proj(y if z is None else y * F.silu(z))


# --- the core ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["v3noz", "four states", "gated"])
@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (4, 1)])
def test_it_is_the_four_scans_of_the_paper(form: str, size: tuple[int, int]) -> None:
    block = lively(SS2D(16, **FORMS[form]))
    x = normal(2, *size, 16)
    with torch.no_grad():
        assert relative(block(x), by_hand(block, x)) < 1e-5


def test_four_paths_come_back_to_where_they_began() -> None:
    """With B = 0 and D = 1 each path returns its input: the sum is four times it, exactly."""
    u = normal(2, 3, 35)
    zero, b = torch.zeros(2, 4, 1, 35), torch.zeros(2, 4, 1, 35)
    dt = LowRank(zero, torch.zeros(4, 3, 1))
    a, d, bias = -torch.ones(12, 1), torch.ones(12), torch.zeros(12)
    y = path_scan(u, dt, a, b, normal(2, 4, 1, 35), d, bias, True, paths=cross_paths(5, 7))
    assert torch.equal(y, 4 * u)


def test_a_half_turn_exchanges_the_directions() -> None:
    """With the same weights in all directions, turning the input turns the output, once the kernel of the
    depthwise convolution is turned too."""
    block = lively(SS2D(8, state=2))
    turned = copy.deepcopy(block)
    with torch.no_grad():
        for m in (block, turned):
            for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
                p = getattr(m, name)
                p.copy_(p[:1].expand_as(p))
            for name in ("A_logs", "Ds"):
                p = getattr(m, name)
                p.copy_(p[: len(p) // 4].repeat(4, *(1,) * (p.ndim - 1)))
        turned.conv2d.weight.copy_(block.conv2d.weight.flip(2, 3))
        x = normal(1, 5, 6, 8)
        assert relative(turned(x.flip(1, 2)), block(x).flip(1, 2)) < 1e-5
        assert relative(block(x.flip(1, 2)), block(x).flip(1, 2)) > 1e-3  # the kernel alone can tell


def test_untied_directions_are_not_exchangeable() -> None:
    torch.manual_seed(0)
    block = lively(SS2D(8))
    with torch.no_grad():
        block.conv2d.weight.copy_((block.conv2d.weight + block.conv2d.weight.flip(2, 3)) / 2)
        x = normal(1, 5, 6, 8)
        assert relative(block(x.flip(1, 2)), block(x).flip(1, 2)) > 1e-2


def test_a_state_that_forgets_at_once_sees_single_pixels() -> None:
    block = lively(SS2D(8))
    with torch.no_grad():
        block.A_logs.fill_(12.0)
        block.dt_projs_bias.fill_(1.0)
        block.dt_projs_weight.mul_(0.1)
        block.conv2d.weight.zero_()
        block.conv2d.weight[:, :, 1, 1] = 1.0
        x = normal(1, 4, 6, 8)
        shuffled = x.flatten(1, 2)[:, torch.randperm(24)].unflatten(1, (4, 6))
        alone = block(x.view(24, 1, 1, 8)).view(1, 4, 6, 8)
        assert relative(block(x), alone) < 1e-5
        assert block(x).sum(dim=(1, 2)).allclose(block(shuffled).sum(dim=(1, 2)), atol=1e-3)


def test_directions_do_not_cost_parameters_by_their_kind() -> None:
    counts = {name: sum(p.numel() for p in SS2D(32, **f).parameters()) for name, f in FORMS.items()}
    assert counts["diagonal"] == counts["v3noz"]
    # 32 to 64, R = 2, K = 4: maps 2 x 2048, x_proj 4 x 4 x 64, dt 4 x 64 x 2 + 256, A and D 256 each,
    # convolution 576, norm 128.
    assert counts["v3noz"] == 4096 + 1024 + 512 + 256 + 512 + 576 + 128


def test_the_start_is_that_of_mamba() -> None:
    torch.manual_seed(0)
    block = SS2D(64, state=4)
    dt = F.softplus(block.dt_projs_bias.detach())
    assert dt.min() >= 0.99e-3
    assert dt.max() <= 0.101
    assert torch.log(dt).mean().item() == pytest.approx(math.log(1e-2), abs=0.15)  # log-uniform
    assert torch.allclose(block.A_logs[17].detach().exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert (block.Ds == 1).all()
    assert block.dt_projs_weight.abs().max() <= 0.5  # R = 4


# --- types ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cast", [nn.Module.bfloat16, nn.Module.half, lambda m: m.to(torch.bfloat16)])
def test_decay_rates_stay_float32(cast) -> None:
    block = VSSBlock(16, state=4)
    with torch.no_grad():
        block.op.A_logs.add_(1e-4)  # a value that bfloat16 rounds away
    block.op.A_logs.grad = torch.ones_like(block.op.A_logs)
    kept = block.op.A_logs.detach().clone()
    cast(block)
    assert block.op.A_logs.dtype == block.op.Ds.dtype == block.op.A_logs.grad.dtype == torch.float32
    assert torch.equal(block.op.A_logs, kept)
    assert block.op.x_proj_weight.dtype == block.norm.weight.dtype != torch.float32
    assert block.double().op.A_logs.dtype == torch.float64


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_is_close_to_float32(form: str) -> None:
    block = lively(VSSBlock(16, **FORMS[form]))
    x = normal(2, 6, 5, 16)
    with torch.no_grad():
        wanted = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative(block(x), wanted) < 0.03
        y = block.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert relative(y, wanted) < 0.03


# --- the block and the encoder -------------------------------------------------------------------------
def test_a_block_without_mlp() -> None:
    block = lively(VSSBlock(8, mlp_ratio=0.0))
    x = normal(1, 3, 4, 8)
    assert not any("mlp" in k or "norm2" in k for k in block.state_dict())
    with torch.no_grad():
        assert torch.allclose(block(x), x + block.op(block.norm(x)))


def test_the_encoder_of_the_tiny_size() -> None:
    encoder = VSSEncoder((96, 192, 384, 768), (2, 2, 4, 2), 0.2).eval()
    assert sum(p.numel() for p in encoder.parameters()) == 27_993_984
    rates = [b.drop_path.rate for stage in encoder.layers for b in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 9 for i in range(10)])
    with torch.no_grad():
        shapes = [tuple(f.shape[1:]) for f in encoder(normal(1, 3, 64, 64))]
    assert shapes == [(96, 16, 16), (192, 8, 8), (384, 4, 4), (768, 2, 2)]


def test_each_map_is_normalised_before_the_downsampling() -> None:
    encoder = VSSEncoder(**SMALL).eval()
    with torch.no_grad():
        maps = encoder(normal(2, 3, 20, 28))
    for m in maps:  # the norms stand at their start
        assert m.mean(dim=1).abs().max() < 1e-5
        assert torch.allclose(m.var(dim=1, unbiased=False), torch.ones(1), atol=1e-2)
    assert [tuple(m.shape[2:]) for m in maps] == [(5, 7), (3, 4)]


def test_checkpointing_gives_the_same_gradients() -> None:
    encoder = VSSEncoder(**SMALL, drop_path_rate=0.4).train()
    x = normal(4, 3, 16, 16)
    found = []
    for on in (False, True):
        encoder.checkpointing = on
        assert encoder.checkpointing is on
        encoder.zero_grad()
        torch.manual_seed(7)
        sum(m.square().mean() for m in encoder(x)).backward()
        found.append({n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == len(list(encoder.parameters()))
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-5, atol=1e-7), name


def test_one_pass_in_inference_mode_does_not_spoil_training() -> None:
    block = SS2D(8)
    with torch.inference_mode():
        block(normal(1, 9, 13, 8))
    block(normal(1, 9, 13, 8)).sum().backward()
    assert torch.isfinite(block.A_logs.grad).all()


# --- traced ----------------------------------------------------------------------------------------------
def test_export_and_compile_leave_eager_alone() -> None:
    block = lively(VSSBlock(8))
    x = normal(2, 3, 5, 8)
    batch = torch.export.Dim("batch", min=1, max=8)
    exported = torch.export.export(block, (x,), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(block, backend="aot_eager")
    with torch.no_grad():
        after = block(x)
        assert type(after) is Tensor
        assert type(cross_paths(3, 5).order) is Tensor
        three = normal(3, 3, 5, 8, seed=1)
        assert relative(exported(three), block(three)) < 1e-5
        assert relative(compiled(x), after) < 1e-5


# --- published files -------------------------------------------------------------------------------------
def published(encoder: VSSEncoder) -> dict[str, Tensor]:
    """As VMamba's ImageNet files are: no output norms, a classifier."""
    body = {k: v + 1.0 for k, v in encoder.state_dict().items() if not k.startswith("outnorm")}
    return body | {"classifier.norm.weight": torch.ones(16), "classifier.head.weight": torch.ones(5, 16)}


def test_the_encoder_starts_from_a_classifier() -> None:
    encoder = VSSEncoder(**SMALL)
    file = published(encoder)
    file["layers.0.blocks.0.mlp.fc1.weight"] = file["layers.0.blocks.0.mlp.fc1.weight"][:, :, None, None]
    load_imagenet(encoder, file)
    own = encoder.state_dict()
    assert all(torch.equal(own[k], v.view_as(own[k])) for k, v in file.items() if k in own)
    assert (own["outnorm1.weight"] == 1).all()


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_nothing_else_may_differ(fault: str) -> None:
    encoder = VSSEncoder(**SMALL)
    file = published(encoder)
    match fault:
        case "missing":
            del file["layers.1.blocks.1.op.Ds"]
        case "unknown":
            file["layers.1.blocks.2.op.Ds"] = torch.ones(64)
        case _:
            file["patch_embed.0.bias"] = torch.ones(5)
    with pytest.raises(WeightsMismatchError, match="published VMamba"):
        load_imagenet(encoder, file)


def test_official_names_lose_their_wrapper_only_as_a_whole() -> None:
    assert official_names({"module.a": torch.ones(1), "module.b": torch.ones(1)}).keys() == {"a", "b"}
    assert official_names({"module.a": torch.ones(1), "b": torch.ones(1)}).keys() == {"module.a", "b"}
    kept = official_names(
        {"x.conv2d.weight": torch.ones(4, 1, 3, 3), "in_proj.weight": torch.ones(4, 2, 1, 1)}
    )
    assert kept["x.conv2d.weight"].ndim == 4
    assert kept["in_proj.weight"].shape == (4, 2)


# --- stochastic depth ------------------------------------------------------------------------------------
def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    y = drop(torch.ones(4000, 2, 3))
    flat = y.flatten(1)
    assert (flat == flat[:, :1]).all()
    assert flat.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(y), y)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_refuses_what_is_no_rate(rate: float) -> None:
    with pytest.raises(ValueError, match="drop rate"):
        DropPath(rate)
