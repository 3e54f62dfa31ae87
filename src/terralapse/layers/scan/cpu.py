"""The scan on a CPU: hands tensors to the kernels of `_numba`, one task a thread at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from terralapse.layers.scan.arguments import Arguments, Sums, gradients, saved_states

STEPS = 64
"""Steps between two saved states: `_numba.STEPS`, which this file must not import before it is needed."""

_WIDE, _NARROW, _VECTOR = 192, 32, 32
"""Channels of the widest and the narrowest block; blocks are multiples of the last."""

_BLOCKS_BACK = 4
"""The number of threads that the blocks of the backward pass are made for."""


@lru_cache(maxsize=1)
def kernels() -> Any:
    """The kernels. Importing them loads numba; the first call of one compiles it, or loads it from disk."""
    from terralapse.layers.scan import _numba

    assert _numba.STEPS == STEPS
    return _numba


@lru_cache(maxsize=4)
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="scan")


def _each(count: int, run: Callable[[int], None]) -> None:
    """Runs the tasks 0 to count - 1 on as many threads as torch uses; which does which is left open."""
    threads = min(torch.get_num_threads(), count)
    tasks = itertools.count()

    def work() -> None:
        while (task := next(tasks)) < count:
            run(task)

    others = [_pool(os.getpid(), threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


def block_of(share: int, items: int, threads: int) -> int:
    """Channels of a block, from those of a group: as wide as leaves every thread an equal number of blocks.

    `items` is the number of batch items times groups.
    """
    pieces = -(-share // _WIDE)
    while items * pieces % threads and share // (pieces + 1) >= _NARROW:
        pieces += 1
    return -(-share // (_VECTOR * pieces)) * _VECTOR


def channels_last(x: Tensor) -> bool:
    """Whether neighbours in [B, D, L] memory are channels."""
    return x.shape[1] > 1 and x.stride(1) == 1


def empty_like_layout(batch: int, channels: int, length: int, last: bool, like: Tensor) -> Tensor:
    """An empty float32 [B, D, L], in memory [B, L, D] if `last`."""
    shape = (batch, length, channels) if last else (batch, channels, length)
    x = torch.empty(shape, dtype=torch.float32, device=like.device)
    return x.transpose(1, 2) if last else x


def _flat(x: Tensor) -> np.ndarray[Any, Any]:
    """The memory that a tensor spans, as a flat array."""
    if x.numel() == 0:
        return np.zeros(0, np.float32)
    span = 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.detach().as_strided((span,), (1,)).numpy()


@lru_cache(maxsize=16)
def _natural(length: int) -> Tensor:
    return torch.arange(length)[None]


class _Call(NamedTuple):
    """What both passes hand to a kernel, in the order of its arguments."""

    tasks: int
    pieces: int
    sizes: tuple[Any, ...]
    inputs: tuple[Any, ...]
    z: tuple[Any, ...]
    along: bool


def _prepare(
    given: Arguments,
    threads: int,
) -> _Call:
    u, delta, weight, A, B, C, D, bias, z, order, soft = given
    batch, channels, length = u.shape
    paths, rank = given.paths, given.rank
    groups, states = B.shape[1] // paths, A.shape[1]
    block = block_of(channels // groups, batch * groups, threads)
    pieces = -(-(channels // groups) // block)
    u, delta, B, C = u.float(), delta.float(), B.float(), C.float()
    if order is not None and not channels_last(u):
        u = u.transpose(1, 2).contiguous().transpose(1, 2)
    if weight is None:
        if order is not None and not channels_last(delta):
            delta = delta.transpose(1, 2).contiguous().transpose(1, 2)
        delta_at = (delta.stride(0), 0, delta.stride(1), delta.stride(2))
    else:
        delta_at = delta.stride()

    def vector(x: Tensor | None) -> np.ndarray[Any, Any]:
        return (
            np.zeros(paths * channels, np.float32) if x is None else x.detach().float().contiguous().numpy()
        )

    factor = (
        np.zeros((0, 0, 0), np.float32) if weight is None else weight.detach().float().contiguous().numpy()
    )
    index = (_natural(length) if order is None else order).contiguous().numpy()
    gate = torch.empty(0, 0, 0) if z is None else z.float()
    return _Call(
        batch * groups * pieces,
        pieces,
        (block, paths, groups, channels, states, rank, soft, index),
        (
            *(_flat(u), u.stride(), _flat(delta), delta_at, factor),
            A.detach().float().contiguous().numpy(),
            *(_flat(B), B.stride(), _flat(C), C.stride()),
            *(vector(D), vector(bias)),
        ),
        (_flat(gate), gate.stride()),
        order is not None or channels_last(u),
    )


def forward(
    given: Arguments,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, D, L], the last state [B, K * D, N] and, if `keep`, states [B, K, tiles, N, D] for `backward`."""
    threads = torch.get_num_threads()
    call, u = _prepare(given, threads), given.u
    batch, channels, length = u.shape
    y = empty_like_layout(batch, channels, length, call.along, u)
    last = torch.zeros(batch, given.paths * channels, given.A.shape[1])
    marks = torch.empty(saved_states(given, STEPS, keep))
    outputs = (_flat(y), y.stride(), last.numpy(), marks.numpy())
    if y.numel():
        kernel = kernels().forward
        _each(call.tasks, lambda task: kernel(task, *call.sizes, *call.inputs, *call.z, *outputs))
    return y.to(u.dtype), last, marks


def backward(
    given: Arguments,
    marks: Tensor,
    gy: Tensor,
    glast: Tensor,
) -> list[Tensor]:
    """Gradients of `given.learned`; an empty tensor for what is absent."""
    # Sums over channels follow the blocks, so here these must not depend on the number of threads.
    call = _prepare(given, _BLOCKS_BACK)
    u, z, order = given.u, given.z, given.order
    batch, channels, length = u.shape
    _, paths, groups, _, states, rank, *_ = call.sizes
    gy = gy.float()
    if order is not None and not channels_last(gy):
        gy = gy.transpose(1, 2).contiguous().transpose(1, 2)
    wide = paths * channels
    gu = empty_like_layout(batch, channels, length, call.along, u)
    dense = empty_like_layout(batch, wide if rank == 0 else 0, length, call.along, u)
    gvalue = torch.zeros(groups * call.pieces, batch, paths, length, rank)
    gweight, gA = torch.zeros(batch, paths, channels, rank), torch.zeros(batch, wide, states)
    gB = torch.zeros(call.pieces, batch, paths * groups, length, states)
    gC, gD, gbias = torch.zeros_like(gB), torch.zeros(batch, wide), torch.zeros(batch, wide)
    gz = empty_like_layout(batch, 0 if z is None else channels, length, call.along, u)
    outputs = (
        *(_flat(gy), gy.stride(), glast.float().contiguous().numpy()),
        *(_flat(gu), gu.stride(), _flat(dense), dense.stride()),
        *(x.numpy() for x in (gvalue, gweight, gA, gB, gC, gD, gbias)),
        *(_flat(gz), gz.stride()),
    )
    if u.numel():
        kernel = kernels().backward
        _each(call.tasks, lambda t: kernel(t, *call.sizes, *call.inputs, *call.z, marks.numpy(), *outputs))
    return gradients(given, Sums(gu, dense, gvalue, gweight, gA, gB, gC, gD, gbias, gz))
