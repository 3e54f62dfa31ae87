"""Every backend against the recurrence in float64, forwards and backwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terralapse.layers.scan import LowRank, cross_paths, diagonal_paths, full_paths, path_scan, selective_scan

FAST = ["cpu", "portable"]


def inputs(
    batch: int, channels: int, groups: int, states: int, length: int, *, seed: int = 0, last: bool = False
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def wide() -> Tensor:
        shape = (batch, length, channels) if last else (batch, channels, length)
        return normal(*shape).transpose(1, 2) if last else normal(*shape)

    return {
        "u": wide(),
        "delta": wide(),
        "A": -torch.rand(channels, states, generator=g) * 2,
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(channels),
        "delta_bias": normal(channels),
        "z": wide(),
    }


def double(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().double() for k, v in tensors.items()}


def close(found: Tensor, expected: Tensor, tolerance: float = 3e-6) -> None:
    assert found.shape == expected.shape
    scale = max(1e-6, expected.abs().max().item()) if expected.numel() else 1.0
    assert (found.double() - expected).abs().max().item() <= tolerance * scale


def by_numpy(t: dict[str, Tensor], soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence written once more, element by element in float64."""
    a = {k: v.double().numpy() for k, v in t.items()}
    batch, channels, length = a["u"].shape
    states, share = a["A"].shape[1], channels // a["B"].shape[1]
    y, h = np.zeros_like(a["u"]), np.zeros((batch, channels, states))
    for i, d, step in np.ndindex(batch, channels, length):
        raw = a["delta"][i, d, step] + (a["delta_bias"][d] if "delta_bias" in a else 0.0)
        dt = np.logaddexp(0, raw) if soft else raw
        x = a["u"][i, d, step]
        h[i, d] = np.exp(dt * a["A"][d]) * h[i, d] + dt * a["B"][i, d // share, :, step] * x
        y[i, d, step] = a["C"][i, d // share, :, step] @ h[i, d] + (a["D"][d] * x if "D" in a else 0.0)
        if "z" in a:
            z = a["z"][i, d, step]
            y[i, d, step] *= z / (1 + np.exp(-z))
    return y, h


@pytest.mark.parametrize("backend", ["reference", *FAST])
@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("delta_bias",), ("D", "delta_bias", "z")])
def test_equals_the_recurrence_written_out(backend: str, left_out: tuple[str, ...]) -> None:
    t = {k: v for k, v in inputs(2, 4, 2, 3, 19).items() if k not in left_out}
    expected, state = by_numpy(t, True)
    y, last = selective_scan(**t, delta_softplus=True, return_last_state=True, backend=backend)
    close(y, torch.from_numpy(expected))
    close(last, torch.from_numpy(state))
    assert last.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_closed_form(backend: str) -> None:
    """A = -1, dt = c, B = C = 1, D = 0: y_t = e^-c y_(t-1) + c u_t."""
    c, length = 0.25, 40
    u = torch.randn(1, 1, length, generator=torch.Generator().manual_seed(1))
    one = torch.ones(1, 1, 1, length)
    y = selective_scan(u, torch.full_like(u, c), -torch.ones(1, 1), one, one, backend=backend)
    expected, before = [], 0.0
    for value in u.flatten().tolist():
        before = math.exp(-c) * before + c * value
        expected.append(before)
    close(y.flatten(), torch.tensor(expected, dtype=torch.float64), 1e-6)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_the_reference_at_any_size(backend: str, data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 3]))
    channels = groups * data.draw(st.sampled_from([1, 2, 5, 17, 40]))
    length = data.draw(st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 127, 131, 256, 300]))
    t = inputs(
        data.draw(st.integers(1, 3)),
        channels,
        groups,
        data.draw(st.sampled_from([1, 2, 7, 16])),
        length,
        seed=data.draw(st.integers(0, 99)),
        last=data.draw(st.booleans()),
    )
    for name in data.draw(st.sets(st.sampled_from(["D", "z", "delta_bias"]))):
        del t[name]
    y, last = selective_scan(**t, delta_softplus=True, return_last_state=True, backend=backend)
    expected, state = selective_scan(
        **double(t), delta_softplus=True, return_last_state=True, backend="reference"
    )
    close(y, expected, 1e-5)  # of the largest, though what came before it may have been larger
    close(last, state, 1e-5)


def gradients(t: dict[str, Tensor], backend: str, soft: bool) -> dict[str, Tensor]:
    leaves = {k: v.detach().clone().requires_grad_() for k, v in t.items()}
    y, last = selective_scan(**leaves, delta_softplus=soft, return_last_state=True, backend=backend)
    g = torch.Generator().manual_seed(7)
    weights = [torch.randn(x.shape, generator=g).to(x.dtype) for x in (y, last)]
    found = torch.autograd.grad([y, last], list(leaves.values()), weights)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("shape", "soft", "left_out"),
    [
        ((1, 1, 1, 1, 1), True, ()),
        ((2, 6, 3, 2, 70), True, ()),
        ((2, 6, 1, 3, 64), True, ("z", "D")),
        ((1, 131, 1, 1, 130), True, ("delta_bias",)),
        ((1, 20, 2, 16, 65), True, ("z",)),
    ],
)
def test_gradients_equal_those_of_the_reference(
    shape: tuple[int, int, int, int, int], soft: bool, left_out: tuple[str, ...], last: bool
) -> None:
    t = {k: v for k, v in inputs(*shape, last=last).items() if k not in left_out}
    expected = gradients(double(t), "reference", soft)
    for backend in FAST:
        for name, found in gradients(t, backend, soft).items():
            assert found.dtype == torch.float32
            close(found, expected[name], 1e-5)
    for name, found in gradients(double(t), "portable", soft).items():
        close(found, expected[name], 1e-11)


@pytest.mark.parametrize("backend", FAST)
def test_step_sizes_without_softplus(backend: str) -> None:
    t = inputs(2, 5, 1, 2, 70)
    t["delta"], t["delta_bias"] = t["delta"].abs(), t["delta_bias"].abs()
    expected = gradients(double(t), "reference", False)
    for name, found in gradients(t, backend, False).items():
        close(found, expected[name], 1e-5)


def test_gradcheck_of_the_portable_backend() -> None:
    t = double(inputs(1, 2, 2, 2, 18))
    names = list(t)
    leaves = [v.requires_grad_() for v in t.values()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        found = selective_scan(
            **dict(zip(names, tensors, strict=True)),
            delta_softplus=True,
            return_last_state=True,
            backend="portable",
        )
        assert isinstance(found, tuple)
        return found

    assert torch.autograd.gradcheck(run, leaves)


def path_inputs(
    batch: int, channels: int, paths: int, states: int, length: int, rank: int
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(3)
    wide = paths * channels
    shapes = {
        "u": (batch, channels, length),
        "value": (batch, paths, rank, length),
        "weight": (paths, channels, rank),
        "A": (wide, states),
        "B": (batch, paths, states, length),
        "C": (batch, paths, states, length),
        "D": (wide,),
        "delta_bias": (wide,),
    }
    found = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    found["A"] = -found["A"].abs()
    return found


def scan_paths(t: dict[str, Tensor], paths: object, backend: str, dense: bool) -> Tensor:
    rest = {k: v for k, v in t.items() if k not in ("value", "weight")}
    if dense:
        delta = torch.einsum("bkrl,kdr->bkdl", t["value"], t["weight"]).flatten(1, 2)
    else:
        delta = LowRank(t["value"], t["weight"])
    return path_scan(**rest, delta=delta, paths=paths, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("table", [cross_paths, diagonal_paths, full_paths])
@pytest.mark.parametrize(
    ("height", "width", "channels", "rank"), [(5, 9, 3, 1), (1, 7, 20, 5), (12, 6, 70, 4)]
)
def test_paths_equal_gathering(
    table: object, height: int, width: int, channels: int, rank: int, dense: bool
) -> None:
    paths = table(height, width)  # type: ignore[operator]
    t = path_inputs(2, channels, paths.order.shape[0], 2, height * width, rank)
    leaves = {k: v.double().requires_grad_() for k, v in t.items()}
    expected = scan_paths(leaves, paths, "reference", dense)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)).double()
    wanted = torch.autograd.grad(expected, list(leaves.values()), weight)
    for backend in FAST:
        leaves = {k: v.clone().requires_grad_() for k, v in t.items()}
        y = scan_paths(leaves, paths, backend, dense)
        close(y, expected.detach(), 1e-5)
        for found, one in zip(
            torch.autograd.grad(y, list(leaves.values()), weight.float()), wanted, strict=True
        ):
            close(found, one, 2e-5)
