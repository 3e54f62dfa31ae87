"""Kernels of the scan for CUDA, compiled by the Triton that comes with torch.

One program owns one batch item and one block of channels of one group, along all of its paths, and walks the
steps one after the other; no two programs write to the same place. Wide tensors come channels last
[batch, L, channels], narrow ones [batch, rows, L, N]; the state is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    log = 2.0 * s * (1.0 + q * (((0.13433787 * q + 0.14116976) * q + 0.20003836) * q + 0.3333332))
    return tl.where(x > 0, x, 0.0) + log


@triton.jit
def _logistic(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x > 0, 1.0, e) / (1.0 + e)


@triton.jit
def _raw_step(
    delta,
    item,
    k,
    at,
    d,
    inside,
    w,
    bias,
    r,
    length,
    channels,
    K: tl.constexpr,
    R: tl.constexpr,
):
    """delta + bias at one position; `w` [BLOCK, RP] is the weight of a low-rank delta."""
    if R > 0:
        value = tl.load(delta + ((item * K + k) * length + at) * R + r, mask=r < R, other=0.0).to(tl.float32)
        return tl.sum(w * value[None, :], axis=1) + bias
    else:
        row = (item * length + at) * K * channels + k * channels
        return tl.load(delta + row + d, mask=inside, other=0.0).to(tl.float32) + bias


@triton.jit
def forward_kernel(
    u,
    delta,
    weight,
    A,
    B,
    C,
    D,
    bias,
    z,
    order,
    y,
    last,
    marks,
    length,
    channels,
    groups,
    pieces,
    K: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,
    SOFT: tl.constexpr,
    GATED: tl.constexpr,
    KEEP: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    group, piece = tl.program_id(1) // pieces, tl.program_id(1) % pieces
    share = channels // groups
    local = piece * BLOCK + tl.arange(0, BLOCK)
    inside = local < share
    d = group * share + local
    n, r = tl.arange(0, NP), tl.arange(0, RP)
    both = inside[:, None] & (n < N)[None, :]
    tiles = (length + STEPS - 1) // STEPS
    for k in range(K):
        v = k * channels + d
        a = tl.load(A + v[:, None] * N + n[None, :], mask=both, other=0.0)
        skip = tl.load(D + v, mask=inside, other=0.0)
        shift = tl.load(bias + v, mask=inside, other=0.0)
        w = tl.load(weight + v[:, None] * R + r[None, :], mask=inside[:, None] & (r < R)[None, :], other=0.0)
        h = tl.zeros([BLOCK, NP], tl.float32)
        narrow = (item * K * groups + k * groups + group) * length
        for t in range(length):
            if KEEP:  # noqa: SIM102  # a constant: the inner test exists only where it is true
                if t % STEPS == 0:  # pyright: ignore[reportOperatorIssue]
                    row = ((item * K + k) * tiles + t // STEPS) * N
                    tl.store(marks + (row + n)[None, :] * channels + d[:, None], h, mask=both)
            at = tl.load(order + k * length + t)
            x = tl.load(u + (item * length + at) * channels + d, mask=inside, other=0.0).to(tl.float32)
            dt = _raw_step(delta, item, k, at, d, inside, w, shift, r, length, channels, K, R)
            if SOFT:
                dt = _softplus(dt)
            b = tl.load(B + (narrow + at) * N + n, mask=n < N, other=0.0).to(tl.float32)
            c = tl.load(C + (narrow + at) * N + n, mask=n < N, other=0.0).to(tl.float32)
            h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
            out = tl.sum(h * c[None, :], axis=1) + skip * x
            if GATED:
                gate = tl.load(z + (item * length + at) * channels + d, mask=inside, other=0.0).to(tl.float32)
                out = out * gate * _logistic(gate)
            target = y + (item * length + at) * channels + d
            if k > 0:
                out += tl.load(target, mask=inside, other=0.0)
            tl.store(target, out, mask=inside)
        tl.store(last + (item * K * channels + v)[:, None] * N + n[None, :], h, mask=both)
        tl.debug_barrier()


@triton.jit
def backward_kernel(
    u,
    delta,
    weight,
    A,
    B,
    C,
    D,
    bias,
    z,
    order,
    marks,
    gy,
    glast,
    scratch,
    gu,
    gdelta,
    gvalue,
    gweight,
    gA,
    gB,
    gC,
    gD,
    gbias,
    gz,
    batch,
    length,
    channels,
    groups,
    pieces,
    K: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    R: tl.constexpr,
    RP: tl.constexpr,
    SOFT: tl.constexpr,
    GATED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    item = tl.program_id(0).to(tl.int64)
    group, piece = tl.program_id(1) // pieces, tl.program_id(1) % pieces
    share = channels // groups
    local = piece * BLOCK + tl.arange(0, BLOCK)
    inside = local < share
    d = group * share + local
    n, r = tl.arange(0, NP), tl.arange(0, RP)
    both = inside[:, None] & (n < N)[None, :]
    ranked = inside[:, None] & (r < R)[None, :]
    tiles = (length + STEPS - 1) // STEPS
    # States of one tile, written and read by the same program.
    program = item * groups * pieces + tl.program_id(1)
    held = scratch + program * STEPS * NP * BLOCK + tl.arange(0, BLOCK)[:, None] * NP + n[None, :]
    for k in range(K):
        v = k * channels + d
        a = tl.load(A + v[:, None] * N + n[None, :], mask=both, other=0.0)
        skip = tl.load(D + v, mask=inside, other=0.0)
        shift = tl.load(bias + v, mask=inside, other=0.0)
        w = tl.load(weight + v[:, None] * R + r[None, :], mask=ranked, other=0.0)
        g = tl.load(glast + (item * K * channels + v)[:, None] * N + n[None, :], mask=both, other=0.0)
        ga = tl.zeros([BLOCK, NP], tl.float32)
        gw = tl.zeros([BLOCK, RP], tl.float32)
        gskip = tl.zeros([BLOCK], tl.float32)
        gshift = tl.zeros([BLOCK], tl.float32)
        row = item * K * groups + k * groups + group
        narrow = row * length
        partial = (piece * batch * K * groups + row) * length
        for back in range(tiles):
            tile = tiles - 1 - back
            first = tile * STEPS
            steps = tl.minimum(STEPS, length - first)
            mark = ((item * K + k) * tiles + tile) * N
            h = tl.load(marks + (mark + n)[None, :] * channels + d[:, None], mask=both, other=0.0)
            for t in range(steps):
                tl.store(held + t * NP * BLOCK, h)
                at = tl.load(order + k * length + first + t)
                x = tl.load(u + (item * length + at) * channels + d, mask=inside, other=0.0).to(tl.float32)
                dt = _raw_step(delta, item, k, at, d, inside, w, shift, r, length, channels, K, R)
                if SOFT:
                    dt = _softplus(dt)
                b = tl.load(B + (narrow + at) * N + n, mask=n < N, other=0.0).to(tl.float32)
                h = tl.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None, :]
            tl.debug_barrier()
            for reverse in range(steps):
                t = steps - 1 - reverse
                at = tl.load(order + k * length + first + t)
                wide = (item * length + at) * channels + d
                x = tl.load(u + wide, mask=inside, other=0.0).to(tl.float32)
                raw = _raw_step(delta, item, k, at, d, inside, w, shift, r, length, channels, K, R)
                dt = raw
                if SOFT:
                    dt = _softplus(raw)
                b = tl.load(B + (narrow + at) * N + n, mask=n < N, other=0.0).to(tl.float32)
                c = tl.load(C + (narrow + at) * N + n, mask=n < N, other=0.0).to(tl.float32)
                before = tl.load(held + t * NP * BLOCK)
                decay = tl.exp(dt[:, None] * a)
                h = decay * before + (dt * x)[:, None] * b[None, :]
                out = tl.load(gy + wide, mask=inside, other=0.0).to(tl.float32)
                if GATED:
                    gate = tl.load(z + wide, mask=inside, other=0.0).to(tl.float32)
                    open_ = _logistic(gate)
                    plain = tl.sum(h * c[None, :], axis=1) + skip * x
                    slope = open_ * (1.0 + gate * (1.0 - open_))
                    tl.store(gz + wide, out * plain * slope, mask=inside)
                    out = out * gate * open_
                gskip += out * x
                q = g + out[:, None] * c[None, :]
                gx = tl.sum(q * b[None, :], axis=1)
                tl.store(gB + (partial + at) * N + n, tl.sum(q * (dt * x)[:, None], axis=0), mask=n < N)
                tl.store(gC + (partial + at) * N + n, tl.sum(h * out[:, None], axis=0), mask=n < N)
                g = q * decay
                through = g * before
                ga += through * dt[:, None]
                gdt = tl.sum(through * a, axis=1) + gx * x
                if SOFT:
                    gdt = gdt * _logistic(raw)
                gshift += gdt
                gin = gx * dt + skip * out
                if k > 0:
                    gin += tl.load(gu + wide, mask=inside, other=0.0)
                tl.store(gu + wide, gin, mask=inside)
                if R > 0:
                    place = ((item * K + k) * length + at) * R + r
                    value = tl.load(delta + place, mask=r < R, other=0.0).to(tl.float32)
                    gw += gdt[:, None] * value[None, :]
                    own = tl.program_id(1).to(tl.int64) * batch * K * length * R
                    tl.store(gvalue + own + place, tl.sum(gdt[:, None] * w, axis=0), mask=r < R)
                else:
                    tl.store(
                        gdelta + (item * length + at) * K * channels + k * channels + d, gdt, mask=inside
                    )
            tl.debug_barrier()
        tl.store(gA + (item * K * channels + v)[:, None] * N + n[None, :], ga, mask=both)
        tl.store(gweight + (item * K * channels + v)[:, None] * R + r[None, :], gw, mask=ranked)
        tl.store(gD + item * K * channels + v, gskip, mask=inside)
        tl.store(gbias + item * K * channels + v, gshift, mask=inside)
