"""The scan inside torch: compiled, exported, in half precision; its errors, and faults kept in place."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from terralapse.layers.scan import LowRank, available, backends, cross_paths, path_scan, selective_scan
from terralapse.layers.scan.cpu import block_of


def tensors(batch: int = 2, channels: int = 6, groups: int = 2, states: int = 3, length: int = 70) -> Any:
    g = torch.Generator().manual_seed(0)
    wide, narrow = (batch, channels, length), (batch, groups, states, length)
    return {
        "u": torch.randn(*wide, generator=g),
        "delta": torch.randn(*wide, generator=g),
        "A": -torch.rand(channels, states, generator=g),
        "B": torch.randn(*narrow, generator=g),
        "C": torch.randn(*narrow, generator=g),
        "D": torch.randn(channels, generator=g),
        "delta_bias": torch.randn(channels, generator=g),
        "z": torch.randn(*wide, generator=g),
    }


class Block(nn.Module):
    """A small SS2D: step sizes of rank 2 along the four directions."""

    def __init__(self, channels: int = 4, rank: int = 2) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.rank = rank
        self.x_proj = nn.Parameter(torch.randn(4, rank + 2, channels, generator=g))
        self.dt_proj = nn.Parameter(torch.randn(4, channels, rank, generator=g))
        self.A_log = nn.Parameter(torch.zeros(4 * channels, 1))
        self.skip = nn.Parameter(torch.ones(4 * channels))
        self.bias = nn.Parameter(torch.zeros(4 * channels))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        flat = x.flatten(2)
        value, b, c = torch.einsum("bdl,krd->bkrl", flat, self.x_proj).split([self.rank, 1, 1], dim=2)
        y = path_scan(
            *(flat, LowRank(value, self.dt_proj), -self.A_log.exp(), b, c, self.skip, self.bias),
            paths=cross_paths(height, width),
        )
        return y.unflatten(2, (height, width))


@pytest.mark.parametrize("last", [False, True])
def test_operator_keeps_its_promises(last: bool) -> None:
    t = tensors(1, 3, 1, 2, 20)
    if last:
        t["u"] = t["u"].transpose(1, 2).contiguous().transpose(1, 2)
    u, delta, a, b, c, d, bias, z = (x.requires_grad_() for x in t.values())
    torch.library.opcheck(torch.ops.terralapse.scan, (u, delta, None, a, b, c, d, bias, z, None, True, True))


def test_operator_along_paths_keeps_its_promises() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = [(1, 3, 12), (1, 4, 2, 12), (4, 3, 2), (12, 1), (1, 4, 1, 12), (1, 4, 1, 12)]
    leaves = [torch.randn(*s, generator=g, requires_grad=True) for s in shapes]
    order = cross_paths(3, 4).order
    torch.library.opcheck(torch.ops.terralapse.scan, (*leaves, None, None, None, order, True, True))


def test_compiles_without_a_break() -> None:
    block, x = Block(), torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    found = torch.autograd.grad(compiled(x).square().sum(), list(block.parameters()))
    expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))


def test_exports_without_operators_of_its_own() -> None:
    block = Block().eval()
    program = torch.export.export(block, (image(3, 5),))
    assert "terralapse" not in str(program.graph)
    torch.testing.assert_close(program.module()(image(3, 5)), block(image(3, 5)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_exports_for_any_image_size(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    block = Block().eval()
    sides = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    program = torch.export.export(block, (image(6, 8),), dynamic_shapes=(sides,))
    exported = torch.onnx.export(block, (image(6, 8),), dynamo=True, dynamic_shapes=(sides,))
    assert exported is not None
    exported.save(str(tmp_path / "scan.onnx"))
    session = runtime.InferenceSession(tmp_path / "scan.onnx")
    for x in (image(6, 8), image(11, 5), image(2, 2), image(17, 32), image(64, 64)):
        expected = block(x).detach()
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-3)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "portable"])
def test_half_precision_computes_in_float32(kind: torch.dtype, backend: str) -> None:
    t = {k: v.to(kind) for k, v in tensors().items()}
    y, last = selective_scan(**t, delta_softplus=True, return_last_state=True, backend=backend)
    expected = selective_scan(
        **{k: v.double() for k, v in t.items()}, delta_softplus=True, backend="reference"
    )
    assert (y.dtype, last.dtype) == (kind, torch.float32)
    assert isinstance(expected, Tensor)
    # No error but the rounding of the result itself.
    assert ((y.double() - expected).abs() <= torch.finfo(kind).eps * expected.abs() + 1e-5).all()


@pytest.mark.parametrize("backend", ["cpu", "portable"])
def test_a_fault_stays_in_its_channel_and_item(backend: str) -> None:
    t = tensors()
    clean = selective_scan(**t, delta_softplus=True, backend=backend)
    t["u"][0, 1, 30] = float("nan")
    y = selective_scan(**t, delta_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    assert isinstance(clean, Tensor)
    assert y[0, 1, 30:].isnan().all()
    y[0, 1, 30:] = clean[0, 1, 30:]
    assert torch.equal(y, clean) if backend == "cpu" else torch.allclose(y, clean, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "portable"])
def test_states_that_forget_and_long_steps_stay_finite(backend: str) -> None:
    t = {k: v for k, v in tensors().items() if k != "z"}
    t["A"] *= 1e6
    y = selective_scan(**t, delta_softplus=True, backend=backend)
    dt = nn.functional.softplus(t["delta"] + t["delta_bias"][:, None])
    product = (t["B"] * t["C"]).sum(2).repeat_interleave(3, dim=1)
    torch.testing.assert_close(y, product * dt * t["u"] + t["D"][:, None] * t["u"], rtol=1e-4, atol=1e-4)
    t["delta"] += 1e4
    leaves = {k: v.requires_grad_() for k, v in t.items()}
    y = selective_scan(**leaves, delta_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), list(leaves.values())))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_a_bit() -> None:
    leaves = {k: v.requires_grad_() for k, v in tensors(1, 200, 1, 2, 150).items()}
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        y = selective_scan(**leaves, delta_softplus=True, backend="cpu")
        assert isinstance(y, Tensor)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(leaves.values()))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_blocks_fill_the_threads() -> None:
    assert block_of(192, 1, 1) == 192
    assert block_of(192, 1, 2) == 96
    assert block_of(768, 1, 4) == 192
    assert block_of(3, 5, 8) == 32


def test_memory_of_inference_is_the_output_and_tiles() -> None:
    """In a process of its own: ten times the tiles, far less than twice the input."""
    script = """
import resource, torch
from terralapse.layers.scan import LowRank, cross_paths, path_scan
torch.set_num_threads(1)
def scan(side):
    g = torch.Generator().manual_seed(0)
    u = torch.randn(1, side * side, 64, generator=g).transpose(1, 2)
    delta = torch.randn(1, side * side, 256, generator=g).transpose(1, 2)
    b = torch.randn(1, 4, 1, side * side, generator=g)
    args = (u, delta, -torch.ones(256, 1), b, b)
    paths = cross_paths(side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        path_scan(*args, paths=paths, backend="cpu")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, (u.nbytes + delta.nbytes) / 1024
scan(8)
grown, given = scan(256)
print(grown / given)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(done.stdout) < 0.5


def test_cross_scan_and_merge_are_four_times_the_image() -> None:
    """With B = 0 only the skip is left, once for every direction."""
    u = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(0))
    zero = torch.zeros(1, 4, 1, 12)
    args = (u, torch.zeros(1, 20, 12), -torch.ones(20, 1), zero, zero, torch.ones(20))
    assert torch.equal(path_scan(*args, paths=cross_paths(3, 4)), 4 * u)


def test_without_numba_the_portable_backend_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    backends._try_numba.cache_clear()
    try:
        t = tensors()
        assert available()["cpu"] == "numba is not installed"
        assert backends.choose("auto", t["u"]) == "portable"
        selective_scan(**t)
        with pytest.raises(ValueError, match="numba is not installed"):
            selective_scan(**t, backend="cpu")
    finally:
        backends._try_numba.cache_clear()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("u", lambda x: x[0], "u is .*expected .B, D, L"),
        ("delta", lambda x: x[..., :-1], "delta is .*L. of u"),
        ("A", lambda x: x[:-1], "A is .*the D of u"),
        ("A", lambda x: x[:, :-1], "B is .*the N of A"),
        ("B", lambda x: x[:, :1].expand(-1, 4, -1, -1), "B is .*divides the 6 channels"),
        ("B", lambda x: x[:, 0], r"B is .*expected \[B, G, N, L\]"),
        ("C", lambda x: x[:, :1], "C is .*as B"),
        ("D", lambda x: x[:-1], "D is "),
        ("delta_bias", lambda x: x[None], "delta_bias is "),
        ("z", lambda x: x[:1], "z is "),
        ("u", lambda x: x.long(), "u is torch.int64; expected a real floating type"),
        ("A", lambda x: x.to("meta"), "A is on meta; expected cpu"),
    ],
)
def test_each_mistake_is_named(name: str, change: Any, words: str) -> None:
    t = tensors()
    t[name] = change(t[name])
    with pytest.raises(ValueError, match=words):
        selective_scan(**t)


def test_backends_that_cannot_run_say_why() -> None:
    t = tensors()
    with pytest.raises(ValueError, match="backend is 'fast'; expected one of auto"):
        selective_scan(**t, backend="fast")
    with pytest.raises(ValueError, match="computes in float32"):
        selective_scan(**{k: v.double() for k, v in t.items()}, backend="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"cannot run here: (no CUDA device|.* not installed)"):
            selective_scan(**t, backend="triton")


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("delta", (1, 5, 12), "delta is .*K . D, L"),
        ("A", (19, 1), "A is .*the K of paths"),
        ("B", (1, 3, 1, 12), "B is "),
        ("D", (5,), "D is "),
        ("u", (1, 5, 11), "paths.order is .*the L of u"),
    ],
)
def test_mistakes_of_paths_are_named(name: str, shape: tuple[int, ...], words: str) -> None:
    args = {
        "u": (1, 5, 12),
        "delta": (1, 20, 12),
        "A": (20, 1),
        "B": (1, 4, 1, 12),
        "C": (1, 4, 1, 12),
        "D": (20,),
    }
    with pytest.raises(ValueError, match=words):
        path_scan(**{k: torch.zeros(v) for k, v in (args | {name: shape}).items()}, paths=cross_paths(3, 4))
