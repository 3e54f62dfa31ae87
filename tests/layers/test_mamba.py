"""The mixer against a loop over tokens in double precision, and the orders against what they must undo."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from terralapse.layers.mamba import (
    MambaMixer,
    PathType,
    RMSNorm,
    path_gate,
    path_order,
    run_paths,
    seeded_shuffle,
)


def token_by_token(m: MambaMixer, x: Tensor) -> Tensor:
    """The recurrence of one image, written without any of the mixer's tensor tricks."""
    length, inner = x.shape[0], len(m.D)
    taps = m.conv1d.weight.shape[-1]
    both = x @ m.in_proj.weight.T
    u, z = both[:, :inner], both[:, inner:]
    h = torch.zeros(inner, m.state, dtype=x.dtype)
    rows = []
    for t in range(length):
        assert m.conv1d.bias is not None
        v = m.conv1d.bias.clone()
        for k in range(taps):
            if (at := t - (taps - 1) + k) >= 0:
                v = v + m.conv1d.weight[:, 0, k] * u[at]
        v = F.silu(v)
        parts = m.x_proj.weight @ v
        dt = F.softplus(m.dt_proj.weight @ parts[: m.rank] + m.dt_proj.bias)
        b, c = parts[m.rank : m.rank + m.state], parts[m.rank + m.state :]
        h = torch.exp(-dt[:, None] * m.A_log.exp()) * h + (dt * v)[:, None] * b
        rows.append(m.out_proj.weight @ ((h @ c + m.D * v) * F.silu(z[t])))
    return torch.stack(rows)


@pytest.mark.parametrize(("kind", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_mixer_is_the_recurrence(kind: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(24).to(kind)
    x = torch.randn(2, 9, 24, dtype=kind)
    expected = torch.stack([token_by_token(mixer, one) for one in x])
    assert float((mixer(x) - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize(("width", "count"), [(192, 251_520), (256, 437_760), (320, 675_200)])
def test_counts_of_a_mixer(width: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in MambaMixer(width).parameters()) == count


def test_a_token_sees_nothing_after_it() -> None:
    torch.manual_seed(0)
    mixer, x = MambaMixer(16), torch.randn(1, 10, 16)
    other = x.clone()
    other[:, 6:] = 0
    first, second = mixer(x), mixer(other)
    assert torch.equal(first[:, :6], second[:, :6])
    assert not torch.allclose(first[:, 6:], second[:, 6:])


def test_steps_start_between_a_thousandth_and_a_tenth() -> None:
    steps = F.softplus(MambaMixer(64).dt_proj.bias)
    assert float(steps.min()) >= 0.99e-3
    assert float(steps.max()) <= 0.101


def test_rms_norm_closed_form() -> None:
    norm = RMSNorm(4, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 1.0, 1.0, 2.0]))
    y = norm(torch.tensor([[1.0, -1.0, 1.0, 3.0]]))  # mean square 3
    assert y[0].tolist() == pytest.approx([3**-0.5, -(3**-0.5), 3**-0.5, 2 * 3**0.5])
    assert norm(torch.full((1, 4), 300.0, dtype=torch.float16)).isfinite().all()


# --- orders --------------------------------------------------------------------------------------------
@settings(max_examples=30, deadline=None)
@given(length=st.integers(1, 40), seed=st.integers(0, 2**32), path=st.sampled_from(list(PathType)))
def test_with_a_mixer_that_does_nothing_every_order_gives_the_tokens_back(
    length: int, seed: int, path: PathType
) -> None:
    x = torch.randn(2, length, 3)
    shuffle = seeded_shuffle(length, seed)
    assert shuffle.sort().values.tolist() == list(range(length))
    gate = path_gate(3, path) if path.gated else None
    assert torch.allclose(run_paths(nn.Identity(), x, path, gate, shuffle), x, atol=1e-5)
    order = path_order(path, length, shuffle, x.device)
    assert order.shape == (path.orders, length)


class Sum(nn.Module):
    """Each token becomes the sum of those before it and itself: depends on the order and is easy to say."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1)


def test_orders_by_hand() -> None:
    x = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1)
    shuffle = torch.tensor([2, 0, 1])  # 100, 101, 111 at the places 2, 0, 1
    run = {p: run_paths(Sum(), x, p, shuffle=shuffle).flatten().tolist() for p in PathType if not p.gated}
    assert run[PathType.FORWARD] == [1, 11, 111]
    assert run[PathType.REVERSE_MEAN] == [56, 60.5, 105.5]  # with 111, 110, 100
    assert run[PathType.SHUFFLE_MEAN] == pytest.approx([213 / 3, 232 / 3, 311 / 3])


def test_the_gate_weighs_by_the_means_of_the_outputs() -> None:
    x = torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1)
    gate = path_gate(1, PathType.REVERSE_GATE)
    with torch.no_grad():
        gate[0].weight.copy_(torch.tensor([[0.01, 0.0], [0.0, 0.01]]))  # type: ignore[union-attr,operator]
    forward, back = torch.tensor([1.0, 11, 111]), torch.tensor([111.0, 110, 100])
    weight = torch.softmax(torch.stack([forward.mean(), back.mean()]) / 100, dim=0)
    found = run_paths(Sum(), x, PathType.REVERSE_GATE, gate).flatten()
    assert torch.allclose(found, weight[0] * forward + weight[1] * back)


def test_reversed_tokens_exchange_the_two_orders() -> None:
    torch.manual_seed(0)
    mixer, gate, x = MambaMixer(16), path_gate(16, PathType.REVERSE_GATE), torch.randn(2, 7, 16)
    swapped = path_gate(16, PathType.REVERSE_GATE)
    with torch.no_grad():  # rows and the halves of the columns
        swapped[0].weight.copy_(gate[0].weight.flip(0).roll(16, dims=1))  # type: ignore[union-attr,operator]
    first = run_paths(mixer, x, PathType.REVERSE_GATE, gate)
    second = run_paths(mixer, x.flip(1), PathType.REVERSE_GATE, swapped).flip(1)
    assert torch.allclose(first, second, atol=1e-6)


def test_what_is_missing_is_said() -> None:
    x = torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match="permutation of 4 tokens"):
        run_paths(nn.Identity(), x, PathType.SHUFFLE_MEAN)
    with pytest.raises(ValueError, match="needs a gate"):
        run_paths(nn.Identity(), x, PathType.REVERSE_GATE)
