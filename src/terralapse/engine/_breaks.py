"""The kernel of break detection: one pixel after another, compiled by numba at the first call.

`terralapse.engine.breaks` says what is computed and after whom. Every pixel is computed by itself, in double
precision and in a fixed order, so that a result depends neither on the block nor on the thread it fell into.
"""

from __future__ import annotations

import numpy as np
from numba import njit

MOST = 8  # coefficients: intercept, trend, three harmonics
PER_COEFFICIENT = 3  # observations that a coefficient needs
MODELLED, BY_RESIDUALS, UNCONFIRMED, NO_OBSERVATION, TOO_FEW, UNSTABLE = 0, 1, 2, 10, 11, 12
LARGEST, FIRST, LAST = 0, 1, 2

_BISQUARE = 4.685  # Tukey's constant: 95 % efficiency under a normal distribution
_NORMAL_MAD = 0.6745
_ROUNDS = 6
_STABLE = 3.0  # standard errors
_MOST_DROPPED = 0.25  # of a window

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _invert(a, p):
    """The inverse of a positive definite p x p matrix in place, by Cholesky; False when it is none."""
    for j in range(p):
        for i in range(j, p):
            total = a[i, j]
            for m in range(j):
                total -= a[i, m] * a[j, m]
            if i == j:
                if not total > 1e-12 * max(a[j, j], 1e-300):
                    return False
                a[j, j] = np.sqrt(total)
            else:
                a[i, j] = total / a[j, j]
    for j in range(p):
        a[j, j] = 1.0 / a[j, j]
        for i in range(j + 1, p):
            total = 0.0
            for m in range(j, i):
                total -= a[i, m] * a[m, j]
            a[i, j] = total / a[i, i]
    for i in range(p):
        for j in range(i + 1):
            total = 0.0
            for m in range(i, p):
                total += a[m, i] * a[m, j]
            a[i, j] = total
    for i in range(p):
        for j in range(i + 1, p):
            a[i, j] = a[j, i]
    return True


@_compiled
def _predict(x, row, b, p):
    total = 0.0
    for j in range(p):
        total += x[row, j] * b[j]
    return total


@_compiled
def _least_squares(x, y, rows, weights, count, p, b, inverse):
    """Weighted fit of the rows named; fills `b` and the inverse of the normal matrix; returns the sum of
    squares, or -1 where the rows do not determine the coefficients."""
    moment = np.zeros(p)
    for i in range(p):
        for j in range(p):
            inverse[i, j] = 0.0
    for m in range(count):
        w = weights[m]
        if w > 0.0:
            r = rows[m]
            for i in range(p):
                moment[i] += w * x[r, i] * y[r]
                for j in range(i + 1):
                    inverse[i, j] += w * x[r, i] * x[r, j]
    if not _invert(inverse, p):
        return -1.0
    for i in range(p):
        total = 0.0
        for j in range(p):
            total += inverse[i, j] * moment[j]
        b[i] = total
    squares = 0.0
    for m in range(count):
        if weights[m] > 0.0:
            e = y[rows[m]] - _predict(x, rows[m], b, p)
            squares += weights[m] * e * e
    return squares


@_compiled
def _innovation(x, y, row, b, inverse, p, gain):
    """The recursive residual of a new row, (y - x'b) / sqrt(1 + x'Px); fills `gain` with Px and returns the
    residual and the 1 + x'Px."""
    spread = 1.0
    for i in range(p):
        total = 0.0
        for j in range(p):
            total += inverse[i, j] * x[row, j]
        gain[i] = total
        spread += x[row, i] * total
    return (y[row] - _predict(x, row, b, p)) / np.sqrt(spread), spread


@_compiled
def _take_in(x, y, row, b, inverse, p, gain):
    """Updates a fit by one row; returns what it adds to the sum of squares."""
    w, spread = _innovation(x, y, row, b, inverse, p, gain)
    error = w * np.sqrt(spread)
    for i in range(p):
        b[i] += gain[i] * error / spread
        for j in range(p):
            inverse[i, j] -= gain[i] * gain[j] / spread
    return w * w


@_compiled
def _screen(x, y, rows, weights, count, p, b, inverse, floor):
    """Robust fit of a window: weights become 1 for what is kept and 0 for outliers. False: no fit."""
    errors, ordered = np.empty(count), np.empty(count)
    for m in range(count):
        weights[m] = 1.0
    scale = floor
    for _ in range(_ROUNDS):
        if _least_squares(x, y, rows, weights, count, p, b, inverse) < 0.0:
            return False
        for m in range(count):
            errors[m] = y[rows[m]] - _predict(x, rows[m], b, p)
            ordered[m] = abs(errors[m])
        ordered.sort()
        # As many residuals as there are coefficients can be made zero, so the smallest ones are left out.
        at = p + (count - p) // 2
        middle = ordered[at] if (count - p) % 2 else 0.5 * (ordered[at - 1] + ordered[at])
        scale = max(middle / _NORMAL_MAD, floor)
        for m in range(count):
            u = errors[m] / (_BISQUARE * scale)
            weights[m] = (1.0 - u * u) ** 2 if abs(u) < 1.0 else 0.0
    for m in range(count):
        weights[m] = 1.0 if abs(errors[m]) < _BISQUARE * scale else 0.0
    return True


@_compiled
def _deviation(squares, count, p, floor):
    """The residual standard error; never below the floor."""
    return max(np.sqrt(max(squares, 0.0) / (count - p)), floor)


@_compiled
def _start(t, x, y, obs, n, begin, p, span, floor, rows, weights, b, inverse):
    """The first stable window of obs[begin:n]: (its first position, the position after its last, number of
    rows kept, sum of squares); first position -1 where there is none. `rows[:kept]` are what was kept."""
    need = PER_COEFFICIENT * p
    s = begin
    while s + need <= n:
        e = s + need
        while e <= n:
            if t[obs[e - 1]] - t[obs[s]] < span:
                e += 1
                continue
            count = e - s
            for m in range(count):
                rows[m] = obs[s + m]
            if not _screen(x, y, rows, weights, count, p, b, inverse, floor):
                e += 1
                continue
            kept = 0
            for m in range(count):
                kept += weights[m] > 0.0
            if count - kept > max(1.0, _MOST_DROPPED * count):
                break
            if kept < need:
                e += 1
                continue
            end = e
            while weights[end - 1 - s] == 0.0:  # the latest outliers may be a break: they are looked at again
                end -= 1
            squares = _least_squares(x, y, rows, weights, count, p, b, inverse)
            if squares < 0.0:
                e += 1
                continue
            first = 0
            while weights[first] == 0.0:
                first += 1
            low, high = rows[first], rows[end - 1 - s]
            limit = _STABLE * _deviation(squares, kept, p, floor)
            at = 0
            for m in range(count):
                if weights[m] > 0.0:
                    rows[at] = rows[m]
                    at += 1
            drift = abs(b[1] * (x[high, 1] - x[low, 1]))
            ends = max(abs(y[low] - _predict(x, low, b, p)), abs(y[high] - _predict(x, high, b, p)))
            if drift > limit or ends > limit:
                break
            return s, end, kept, squares
        if e > n:
            return -1, n, 0, 0.0
        s += 1
    return -1, n, 0, 0.0


@_compiled
def _median(values, count):
    part = np.sort(values[:count])
    half = count // 2
    return part[half] if count % 2 else 0.5 * (part[half - 1] + part[half])


@_compiled
def _exceeds(x, y, row, b, inverse, p, gain, deviation, limit):
    """+1 or -1 where the standardised residual of a row leaves the limit upwards or downwards, else 0."""
    w, _ = _innovation(x, y, row, b, inverse, p, gain)
    return (1 if w > 0 else -1) if abs(w) > limit * deviation else 0


@_compiled
def _chow(x, y, rows, count, b, inverse, p, squares, kept, floor):
    """Chow's F of `count` rows against a fit, which is left as it was."""
    own, spread, gain = b.copy(), inverse.copy(), np.empty(p)
    added = 0.0
    for m in range(count):
        added += _take_in(x, y, rows[m], own, spread, p, gain)
    return added / count / _deviation(squares, kept, p, floor) ** 2


@_compiled
def detect(y_all, t, x, limits, least, most, k, span, floor, since, pick, ints, reals):
    """Breaks of many pixels.

    Args:
        y_all: float32 [n, T], NaN where there is no observation.
        t, x: float64 [T] days and [T, 8] design, ascending in time.
        limits: float64 [T + 1], of the absolute standardised residual, by degrees of freedom.
        least, most: coefficients of the first and of the fullest model (2, 4, 6 or 8).
        k: exceedances in a row that make a break.
        span: days that the first window of a model must cover.
        floor: smallest standard error, in the unit of y.
        since: day before which breaks are not reported.
        pick: LARGEST, FIRST or LAST.
        ints: int32 [n, 7], filled: day, number of breaks, code, observations, degrees of freedom, looks,
            observations set aside as outliers.
        reals: float64 [n, 3], filled: magnitude, Chow's F, residual standard error of the last model.
    """
    dates = len(t)
    y = np.empty(dates)
    obs, rows = np.empty(dates, np.int64), np.empty(dates, np.int64)
    weights, gain = np.empty(dates), np.empty(MOST)
    b, old, residuals = np.empty(MOST), np.empty(MOST), np.empty(k)
    inverse, run_rows = np.empty((MOST, MOST)), np.empty(k, np.int64)
    for pixel in range(len(y_all)):
        n = 0
        for i in range(dates):
            y[i] = y_all[pixel, i]
            if np.isfinite(y[i]):
                obs[n] = i
                n += 1
        found, day, code, looks, dof, aside = 0, 0, MODELLED, 0, 0, 0
        size, best_f, error = 0.0, 0.0, np.nan
        # The break that waits for the model after it.
        waiting, break_row, old_p, by_residual, break_f, break_dof = False, 0, 0, 0.0, 0.0, 0
        tail, begin, fitted = False, 0, False
        if n < PER_COEFFICIENT * least + k:
            code = NO_OBSERVATION if n == 0 else TOO_FEW
            n = 0
        while begin < n or waiting:
            p = least
            s, i, kept, squares = -1, n, 0, 0.0
            if begin < n:
                s, i, kept, squares = _start(
                    t, x, y, obs, n, begin, p, span, floor, rows, weights, b, inverse
                )
            broke = False
            if s >= 0:
                aside += i - s - kept
                if not fitted and s > 0:
                    # Looks back from the first model to what lies before it.
                    j, run = s - 1, 0
                    while j >= 0:
                        deviation = _deviation(squares, kept, p, floor)
                        looks += 1
                        way = _exceeds(x, y, obs[j], b, inverse, p, gain, deviation, limits[kept - p])
                        if way == 0:
                            squares += _take_in(x, y, obs[j], b, inverse, p, gain)
                            rows[kept] = obs[j]
                            kept += 1
                            j -= 1
                            continue
                        run = 1
                        while run < k and j - run >= 0:
                            row = obs[j - run]
                            if way != _exceeds(x, y, row, b, inverse, p, gain, deviation, limits[kept - p]):
                                break
                            run += 1
                        if run == k:
                            for m in range(k):
                                run_rows[m] = obs[j - m]
                                residuals[m] = _predict(x, run_rows[m], b, p) - y[run_rows[m]]
                            edge = obs[j + 1]
                            if t[edge] >= since:
                                found, day, code = 1, np.int64(np.floor(t[edge])), BY_RESIDUALS
                                size, dof = _median(residuals, k), kept - p
                                best_f = _chow(x, y, run_rows, k, b, inverse, p, squares, kept, floor)
                            break
                        aside += 1
                        j -= 1
                fitted = True
                while i < n:
                    if p < most and kept >= PER_COEFFICIENT * (p + 2):
                        for m in range(kept):
                            weights[m] = 1.0
                        fuller = _least_squares(x, y, rows, weights, kept, p + 2, b, inverse)
                        if fuller >= 0.0:
                            p, squares = p + 2, fuller
                        else:  # these dates cannot tell the next harmonic
                            squares = _least_squares(x, y, rows, weights, kept, p, b, inverse)
                    deviation, limit = _deviation(squares, kept, p, floor), limits[kept - p]
                    looks += 1
                    way = _exceeds(x, y, obs[i], b, inverse, p, gain, deviation, limit)
                    if way == 0:
                        squares += _take_in(x, y, obs[i], b, inverse, p, gain)
                        rows[kept] = obs[i]
                        kept += 1
                        i += 1
                        continue
                    run = 1
                    while run < k and i + run < n:
                        if way != _exceeds(x, y, obs[i + run], b, inverse, p, gain, deviation, limit):
                            break
                        run += 1
                    if run == k:
                        broke = True
                        break
                    if i + run == n:
                        tail = True
                        break
                    aside += 1
                    i += 1
                error = _deviation(squares, kept, p, floor)
            if waiting:
                # The model after a break counts when it holds from the break on.
                own = s == begin
                change = by_residual
                if own:
                    change = _predict(x, break_row, b, p) - _predict(x, break_row, old, old_p)
                if t[break_row] >= since:
                    found += 1
                    better = pick == LAST or found == 1 or (pick == LARGEST and abs(change) > abs(size))
                    if better:
                        day, size = np.int64(np.floor(t[break_row])), change
                        best_f, dof = break_f, break_dof
                        code = MODELLED if own else BY_RESIDUALS
                waiting = False
            if not broke:
                break
            for m in range(k):
                run_rows[m] = obs[i + m]
                residuals[m] = y[run_rows[m]] - _predict(x, run_rows[m], b, p)
            by_residual = _median(residuals, k)
            break_f = _chow(x, y, run_rows, k, b, inverse, p, squares, kept, floor)
            break_row, break_dof, old_p = obs[i], kept - p, p
            for j in range(p):
                old[j] = b[j]
            waiting, begin = True, i
        if n and not fitted:
            code = UNSTABLE
        elif tail and code == MODELLED:
            code = UNCONFIRMED
        total = 0
        for i in range(dates):
            total += np.isfinite(y[i])
        ints[pixel, 0], ints[pixel, 1], ints[pixel, 2], ints[pixel, 3] = day, found, code, total
        ints[pixel, 4], ints[pixel, 5], ints[pixel, 6] = dof, looks, aside
        reals[pixel, 0], reals[pixel, 1], reals[pixel, 2] = size, best_f, error
