"""Kernels of the scan for CPUs, compiled by numba at the first call and cached on disk.

Everything works on tiles of STEPS steps x a block of channels, channels innermost and padded with zeros to
whole vectors, so that a channel's result does not depend on the block it fell into. A call handles one task:
one batch item and one block of channels, along all of its paths. No two tasks write to the same place.
Tensors come in as flat arrays with strides (batch, channel, position), so any layout is read where it lies.

The compiler may contract multiply-adds and nothing else, except in the sums over channels of the backward
pass: NaN and infinity keep their meaning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic as _typed_intrinsic

STEPS = 64
LANES = 32

_LOG2E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: added to a float, it leaves the nearest integer in the low bits
_HIGH = np.float32(89.0)
_LOW = np.float32(-87.33)
_TINY = np.float32(1e-12)
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
# exp(r) on |r| <= ln(2) / 2: the minimax polynomial of the Cephes library's expf.
_E2, _E3, _E4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_E5, _E6, _E7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
# (atanh(s) / s - 1) / s^2 on s^2 <= 1/9: a Chebyshev fit, relative error 1.6e-8 in atanh(s) / s.
_L1, _L2, _L3, _L4 = (
    np.float32(0.3333332),
    np.float32(0.20003836),
    np.float32(0.14116976),
    np.float32(0.13433787),
)

_intrinsic: Any = _typed_intrinsic  # its stubs miss that the typing context is not an argument of the call
_tile = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
_sums = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@_intrinsic
def _power_of_two(typing: Any, shifted: Any) -> Any:
    """2^(n - 1) of a float that is _ROUND + n, for n from -126 (which gives 0) to 128."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.add(builder.bitcast(args[0], word), ir.Constant(word, 126))
        return builder.bitcast(builder.shl(bits, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.float32), code


@_intrinsic
def _minus_magnitude(typing: Any, x: Any) -> Any:
    """-|x|, by setting the sign bit: a comparison here would keep the loop from becoming vectors."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.or_(builder.bitcast(args[0], word), ir.Constant(word, -0x80000000))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.float32), code


@_intrinsic
def _positive_part(typing: Any, x: Any) -> Any:
    """max(x, 0), by the sign bit."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.bitcast(args[0], word)
        keep = builder.not_(builder.ashr(bits, ir.Constant(word, 31)))
        return builder.bitcast(builder.and_(bits, keep), ir.FloatType())

    return types.float32(types.float32), code


@_tile
def exp(x):
    """e^x in float32, within 2 units of the last place; 0 below -87, infinite above 88.8."""
    x = _HIGH if x > _HIGH else x
    x = _LOW if x < _LOW else x
    shifted = x * _LOG2E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = ((((_E7 * r + _E6) * r + _E5) * r + _E4) * r + _E3) * r + _E2
    return ((p * r * r + r) + _ONE) * _power_of_two(shifted) * _TWO


@_tile
def softplus(x):
    """log(1 + e^x)."""
    e = exp(_minus_magnitude(x))
    s = e / (_TWO + e)
    q = (s + _TINY) * (s + _TINY)  # without _TINY the square would be a denormal number: exact, and slow
    log = _TWO * s * (_ONE + q * (((_L4 * q + _L3) * q + _L2) * q + _L1))
    return _positive_part(x) + log


@_tile
def logistic(x):
    """1 / (1 + e^-x)."""
    e = exp(_minus_magnitude(x))
    return (_ONE if x > _ZERO else e) / (_ONE + e)


@_tile
def _load(tile, flat, start, by_channel, by_position, order, first, steps, width):
    """tile[t, d] = the value of channel d at position order[first + t]."""
    if by_channel == 1:
        for t in range(steps):
            at = start + order[first + t] * by_position
            row = flat[at : at + width]
            for d in range(width):
                tile[t, d] = row[d]
    else:
        for d in range(width):
            at = start + d * by_channel
            for t in range(steps):
                tile[t, d] = flat[at + order[first + t] * by_position]


@_tile
def _store(tile, flat, start, by_channel, by_position, order, first, steps, width, add):
    """The opposite of `_load`; `add` adds to what is there."""
    if by_channel == 1:
        for t in range(steps):
            at = start + order[first + t] * by_position
            row = flat[at : at + width]
            if add:
                for d in range(width):
                    row[d] += tile[t, d]
            else:
                for d in range(width):
                    row[d] = tile[t, d]
    else:
        for d in range(width):
            at = start + d * by_channel
            for t in range(steps):
                if add:
                    flat[at + order[first + t] * by_position] += tile[t, d]
                else:
                    flat[at + order[first + t] * by_position] = tile[t, d]


@_tile
def _load_narrow(tile, flat, start, by_row, by_position, order, first, steps, rows):
    """tile[t, n] = the value of row n at position order[first + t]."""
    for n in range(rows):
        at = start + n * by_row
        for t in range(steps):
            tile[t, n] = flat[at + order[first + t] * by_position]


@_tile
def _product(raw, value, weight, bias, steps):
    """raw[t, d] = bias[d] + sum_r weight[r, d] value[t, r]; R is filled up to a multiple of 4."""
    padded = raw.shape[1]
    for t in range(steps):
        v0, v1, v2, v3 = value[t, 0], value[t, 1], value[t, 2], value[t, 3]
        for d in range(padded):
            raw[t, d] = bias[d] + (
                weight[0, d] * v0 + weight[1, d] * v1 + weight[2, d] * v2 + weight[3, d] * v3
            )
        for r in range(4, weight.shape[0], 4):
            v0, v1, v2, v3 = value[t, r], value[t, r + 1], value[t, r + 2], value[t, r + 3]
            for d in range(padded):
                raw[t, d] += (
                    weight[r, d] * v0 + weight[r + 1, d] * v1 + weight[r + 2, d] * v2 + weight[r + 3, d] * v3
                )


@_tile
def _add_bias(raw, bias, steps):
    for t in range(steps):
        for d in range(raw.shape[1]):
            raw[t, d] += bias[d]


@_tile
def _step_sizes(raw, dt, soft, steps):
    """dt = softplus(raw), or raw."""
    count = steps * raw.shape[1]
    source, target = raw.reshape(raw.size), dt.reshape(dt.size)
    if soft:
        for i in range(count):
            target[i] = softplus(source[i])
    else:
        for i in range(count):
            target[i] = source[i]


@_tile
def _recur(dt, u, x, a, b, c, skip, h, y, steps):
    """The recurrence over one tile; h goes in and out, y is written, x is room for dt * u."""
    padded, states = dt.shape[1], a.shape[0]
    for t in range(steps):
        bt, ct = b[t, 0], c[t, 0]
        for d in range(padded):
            v = dt[t, d] * u[t, d]
            s = exp(dt[t, d] * a[0, d]) * h[0, d] + v * bt
            h[0, d] = s
            x[t, d] = v
            y[t, d] = skip[d] * u[t, d] + ct * s
        for n in range(1, states):
            bt, ct = b[t, n], c[t, n]
            for d in range(padded):
                s = exp(dt[t, d] * a[n, d]) * h[n, d] + x[t, d] * bt
                h[n, d] = s
                y[t, d] += ct * s


@_tile
def _gate(y, z, steps):
    """y = y * silu(z)."""
    for t in range(steps):
        for d in range(y.shape[1]):
            y[t, d] *= z[t, d] * logistic(z[t, d])


@_tile
def _zeros(rows, columns):
    return np.zeros((rows, columns), np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def forward(
    task, block, paths, groups, channels, states, rank, soft, order,
    u, u_at, delta, delta_at, weight, A, B, B_at, C, C_at, D, bias, z, z_at, y, y_at, last, marks,
):  # fmt: skip
    """One task of the forward pass.

    `order` [K, L]; `weight` [K, D, R] if rank > 0, and `delta` is then the value of the product; A
    [K * D, N]; D and bias [K * D]; z of length 0 if absent; `last` [batch, K * D, N]; `marks` [batch, K,
    tiles, N, D], which receives the state at the start of every tile, unless it is of length 0. *_at: strides
    of batch, channel and position; for B, C and delta of batch, path, row (or channel) and position.
    """
    length = order.shape[1]
    share = channels // groups
    blocks = (share + block - 1) // block
    item, rest = divmod(task, groups * blocks)
    group, piece = divmod(rest, blocks)
    first = group * share + piece * block
    width = min(block, share - piece * block)
    padded = (width + LANES - 1) // LANES * LANES
    ut, raw, dt = _zeros(STEPS, padded), _zeros(STEPS, padded), _zeros(STEPS, padded)
    x, yt, zt = _zeros(STEPS, padded), _zeros(STEPS, padded), _zeros(STEPS, padded)
    bt, ct = _zeros(STEPS, states), _zeros(STEPS, states)
    value, w = _zeros(STEPS, (rank + 3) // 4 * 4), _zeros((rank + 3) // 4 * 4, padded)
    a, h = _zeros(states, padded), _zeros(states, padded)
    skip, shift = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    for k in range(paths):
        for d in range(width):
            v = k * channels + first + d
            skip[d], shift[d] = D[v], bias[v]
            for n in range(states):
                a[n, d], h[n, d] = A[v, n], _ZERO
            for r in range(rank):
                w[r, d] = weight[k, first + d, r]
        line = order[k]
        narrow = k * groups + group
        for t0 in range(0, length, STEPS):
            steps = min(STEPS, length - t0)
            _load(ut, u, item * u_at[0] + first * u_at[1], u_at[1], u_at[2], line, t0, steps, width)
            if rank > 0:
                start = item * delta_at[0] + k * delta_at[1]
                _load_narrow(value, delta, start, delta_at[2], delta_at[3], line, t0, steps, rank)
                _product(raw, value, w, shift, steps)
            else:
                start = item * delta_at[0] + (k * channels + first) * delta_at[2]
                _load(raw, delta, start, delta_at[2], delta_at[3], line, t0, steps, width)
                _add_bias(raw, shift, steps)
            _step_sizes(raw, dt, soft, steps)
            _load_narrow(bt, B, item * B_at[0] + narrow * B_at[1], B_at[2], B_at[3], line, t0, steps, states)
            _load_narrow(ct, C, item * C_at[0] + narrow * C_at[1], C_at[2], C_at[3], line, t0, steps, states)
            if marks.shape[0] > 0:
                marks[item, k, t0 // STEPS, :, first : first + width] = h[:, :width]
            _recur(dt, ut, x, a, bt, ct, skip, h, yt, steps)
            if z.shape[0] > 0:
                _load(zt, z, item * z_at[0] + first * z_at[1], z_at[1], z_at[2], line, t0, steps, width)
                _gate(yt, zt, steps)
            start = item * y_at[0] + first * y_at[1]
            _store(yt, y, start, y_at[1], y_at[2], line, t0, steps, width, k > 0)
        for d in range(width):
            for n in range(states):
                last[item, k * channels + first + d, n] = h[n, d]


@_tile
def _states(dt, u, x, a, b, decay, h, steps):
    """h[t + 1] = the state after step t, from h[0]; decay[t] = exp(dt a); x = dt * u."""
    padded, states = dt.shape[1], a.shape[0]
    for t in range(steps):
        for d in range(padded):
            x[t, d] = dt[t, d] * u[t, d]
        for n in range(states):
            bt = b[t, n]
            for d in range(padded):
                e = exp(dt[t, d] * a[n, d])
                decay[t, n, d] = e
                h[t + 1, n, d] = e * h[t, n, d] + x[t, d] * bt


@_tile
def _open_gate(gy, gz, u, skip, c, h, z, steps):
    """gz = gradient of z; gy becomes the gradient before the gate."""
    padded = gy.shape[1]
    for t in range(steps):
        for d in range(padded):
            gz[t, d] = skip[d] * u[t, d]
        for n in range(c.shape[1]):
            ct = c[t, n]
            for d in range(padded):
                gz[t, d] += ct * h[t + 1, n, d]
        for d in range(padded):
            s = logistic(z[t, d])
            gz[t, d] *= gy[t, d] * s * (_ONE + z[t, d] * (_ONE - s))
            gy[t, d] *= z[t, d] * s


@_sums
def _reverse(dt, u, x, a, b, c, skip, gy, decay, h, g, gx, gdt, gu, ga, gb, gc, gskip, steps):
    """The adjoint recurrence over one tile, backwards.

    g carries the gradient of the state across tiles; ga and gskip are added to; gb and gc are the sums over
    the channels of the tile.
    """
    padded, states = dt.shape[1], a.shape[0]
    for back in range(steps):
        t = steps - 1 - back
        for d in range(padded):
            gx[d] = _ZERO
            gdt[t, d] = _ZERO
            gskip[d] += gy[t, d] * u[t, d]
        for n in range(states):
            bt, ct = b[t, n], c[t, n]
            sum_b, sum_c = _ZERO, _ZERO
            for d in range(padded):
                q = g[n, d] + gy[t, d] * ct
                gx[d] += q * bt
                r = q * decay[t, n, d]
                g[n, d] = r
                r *= h[t, n, d]
                gdt[t, d] += r * a[n, d]
                ga[n, d] += r * dt[t, d]
                sum_b += q * x[t, d]
                sum_c += gy[t, d] * h[t + 1, n, d]
            gb[t, n], gc[t, n] = sum_b, sum_c
        for d in range(padded):
            gu[t, d] = gx[d] * dt[t, d] + skip[d] * gy[t, d]
            gdt[t, d] += gx[d] * u[t, d]


@_tile
def _before_step_sizes(gdt, raw, gbias, soft, steps):
    """gdt becomes the gradient of the raw step size; gbias is added to."""
    padded = gdt.shape[1]
    for t in range(steps):
        if soft:
            for d in range(padded):
                gdt[t, d] *= logistic(raw[t, d])
        for d in range(padded):
            gbias[d] += gdt[t, d]


@_sums
def _product_back(graw, value, weight, gvalue, gweight, steps, rank):
    """Gradients of `_product`: of the value over one tile; of the weight, added to."""
    padded = graw.shape[1]
    for t in range(steps):
        for r in range(rank):
            total, v = _ZERO, value[t, r]
            for d in range(padded):
                total += graw[t, d] * weight[r, d]
                gweight[r, d] += graw[t, d] * v
            gvalue[t, r] = total


@njit(nogil=True, cache=True, error_model="numpy")
def backward(
    task, block, paths, groups, channels, states, rank, soft, order,
    u, u_at, delta, delta_at, weight, A, B, B_at, C, C_at, D, bias, z, z_at, marks,
    gy, gy_at, glast, gu, gu_at, gdelta, gdelta_at, gvalue, gweight, gA, gB, gC, gD, gbias, gz, gz_at,
):  # fmt: skip
    """One task of the backward pass; see `forward` for the arguments up to `marks`.

    gy and glast are the gradients of y and of the last state. Sums over tasks are left to the caller: gvalue
    [groups * blocks, batch, K, L, R], gB and gC [blocks, batch, K * G, L, N]; over items only: gweight
    [batch, K, D, R], gA [batch, K * D, N], gD and gbias [batch, K * D].
    """
    length = order.shape[1]
    share = channels // groups
    blocks = (share + block - 1) // block
    item, rest = divmod(task, groups * blocks)
    group, piece = divmod(rest, blocks)
    first = group * share + piece * block
    width = min(block, share - piece * block)
    padded = (width + LANES - 1) // LANES * LANES
    ut, raw, dt = _zeros(STEPS, padded), _zeros(STEPS, padded), _zeros(STEPS, padded)
    x, zt, gyt = _zeros(STEPS, padded), _zeros(STEPS, padded), _zeros(STEPS, padded)
    gut, gdt, gzt = _zeros(STEPS, padded), _zeros(STEPS, padded), _zeros(STEPS, padded)
    bt, ct, gbt, gct = (
        _zeros(STEPS, states),
        _zeros(STEPS, states),
        _zeros(STEPS, states),
        _zeros(STEPS, states),
    )
    filled = (rank + 3) // 4 * 4
    value, w, gv, gw = (
        _zeros(STEPS, filled),
        _zeros(filled, padded),
        _zeros(STEPS, rank),
        _zeros(rank, padded),
    )
    a, g, ga = _zeros(states, padded), _zeros(states, padded), _zeros(states, padded)
    decay = np.zeros((STEPS, states, padded), np.float32)
    h = np.zeros((STEPS + 1, states, padded), np.float32)
    sums = _zeros(5, padded)
    skip, shift, gskip, gshift, gx = sums[0], sums[1], sums[2], sums[3], sums[4]
    tiles = (length + STEPS - 1) // STEPS
    for k in range(paths):
        gskip[:], gshift[:], gw[:, :], ga[:, :] = _ZERO, _ZERO, _ZERO, _ZERO
        for d in range(width):
            v = k * channels + first + d
            skip[d], shift[d] = D[v], bias[v]
            for n in range(states):
                a[n, d], g[n, d] = A[v, n], glast[item, v, n]
            for r in range(rank):
                w[r, d] = weight[k, first + d, r]
        line = order[k]
        narrow = k * groups + group
        for i in range(tiles):
            tile = tiles - 1 - i
            t0 = tile * STEPS
            steps = min(STEPS, length - t0)
            _load(ut, u, item * u_at[0] + first * u_at[1], u_at[1], u_at[2], line, t0, steps, width)
            if rank > 0:
                start = item * delta_at[0] + k * delta_at[1]
                _load_narrow(value, delta, start, delta_at[2], delta_at[3], line, t0, steps, rank)
                _product(raw, value, w, shift, steps)
            else:
                start = item * delta_at[0] + (k * channels + first) * delta_at[2]
                _load(raw, delta, start, delta_at[2], delta_at[3], line, t0, steps, width)
                _add_bias(raw, shift, steps)
            _step_sizes(raw, dt, soft, steps)
            _load_narrow(bt, B, item * B_at[0] + narrow * B_at[1], B_at[2], B_at[3], line, t0, steps, states)
            _load_narrow(ct, C, item * C_at[0] + narrow * C_at[1], C_at[2], C_at[3], line, t0, steps, states)
            _load(gyt, gy, item * gy_at[0] + first * gy_at[1], gy_at[1], gy_at[2], line, t0, steps, width)
            h[0, :, :width] = marks[item, k, tile, :, first : first + width]
            _states(dt, ut, x, a, bt, decay, h, steps)
            if z.shape[0] > 0:
                _load(zt, z, item * z_at[0] + first * z_at[1], z_at[1], z_at[2], line, t0, steps, width)
                _open_gate(gyt, gzt, ut, skip, ct, h, zt, steps)
                start = item * gz_at[0] + first * gz_at[1]
                _store(gzt, gz, start, gz_at[1], gz_at[2], line, t0, steps, width, False)
            _reverse(dt, ut, x, a, bt, ct, skip, gyt, decay, h, g, gx, gdt, gut, ga, gbt, gct, gskip, steps)
            _before_step_sizes(gdt, raw, gshift, soft, steps)
            start = item * gu_at[0] + first * gu_at[1]
            _store(gut, gu, start, gu_at[1], gu_at[2], line, t0, steps, width, k > 0)
            if rank > 0:
                _product_back(gdt, value, w, gv, gw, steps, rank)
                for t in range(steps):
                    gvalue[rest, item, k, line[t0 + t], :] = gv[t]
            else:
                start = item * gdelta_at[0] + (k * channels + first) * gdelta_at[1]
                _store(gdt, gdelta, start, gdelta_at[1], gdelta_at[2], line, t0, steps, width, False)
            for t in range(steps):
                gB[piece, item, narrow, line[t0 + t], :] = gbt[t]
                gC[piece, item, narrow, line[t0 + t], :] = gct[t]
        for d in range(width):
            v = k * channels + first + d
            gD[item, v], gbias[item, v] = gskip[d], gshift[d]
            for n in range(states):
                gA[item, v, n] = ga[n, d]
            for r in range(rank):
                gweight[item, k, first + d, r] = gw[r, d]
