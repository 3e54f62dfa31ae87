"""Scores of rankings: how soon the right items come when a query is compared with all items.

Scores are [Q, N], higher first; `relevance` [Q, N] is 0 for what does not belong to a query. Equal scores
keep the order of the items.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Gain = Literal["binary", "linear", "exponential"]


def ranked(scores: ArrayLike, relevance: ArrayLike) -> NDArray[np.float64]:
    """The relevance [Q, N] of the items of each query in the order of their scores.

    Raises:
        ValueError: the two are not of one shape [Q, N].
    """
    table, belongs = np.asarray(scores), np.asarray(relevance, np.float64)
    if table.ndim != 2 or table.shape != belongs.shape or not table.size:
        raise ValueError(f"scores {table.shape} and relevance {belongs.shape} are no two tables of one shape")
    order = np.argsort(-table, axis=1, kind="stable")
    return np.take_along_axis(belongs, order, axis=1)


def _asked(scores: ArrayLike, relevance: ArrayLike) -> NDArray[np.float64]:
    """`ranked` for the queries that have a relevant item."""
    found = ranked(scores, relevance)
    found = found[(found > 0).any(axis=1)]
    if not len(found):
        raise ValueError("no query has a relevant item")
    return found


def hit_rate(scores: ArrayLike, relevance: ArrayLike, k: int) -> float:
    """The share of queries with a relevant item among the first k: R@k of papers on CLIP. Queries without a
    relevant item are left out.

    Raises:
        ValueError: as `ranked`, or no query has a relevant item.
    """
    return float((_asked(scores, relevance)[:, :k] > 0).any(axis=1).mean())


def recall(scores: ArrayLike, relevance: ArrayLike, k: int) -> float:
    """The mean share of a query's relevant items that are among the first k; raises as `hit_rate`."""
    found = _asked(scores, relevance) > 0
    return float((found[:, :k].sum(axis=1) / found.sum(axis=1)).mean())


def median_rank(scores: ArrayLike, relevance: ArrayLike) -> float:
    """The median over queries of the place, from 1, of the first relevant item; raises as `hit_rate`."""
    return float(np.median((_asked(scores, relevance) > 0).argmax(axis=1) + 1))


def mean_recall(scores: ArrayLike, relevance: ArrayLike, ks: tuple[int, ...] = (1, 5, 10)) -> float:
    """mR: the mean of `hit_rate` at `ks` over both directions, rows to columns and columns to rows."""
    table, belongs = np.asarray(scores), np.asarray(relevance)
    both = [hit_rate(s, r, k) for s, r in ((table, belongs), (table.T, belongs.T)) for k in ks]
    return float(np.mean(both))


def ndcg_each(
    scores: ArrayLike, relevance: ArrayLike, k: int | None = None, gain: Gain = "exponential"
) -> NDArray[np.float64]:
    """nDCG of the first k for each query that has a relevant item.

    Args:
        k: None takes all items.
        gain: 2^r - 1, r itself, or 1 for anything relevant.

    Raises:
        ValueError: as `hit_rate`.
    """
    found = _asked(scores, relevance)
    gains = {"exponential": lambda r: 2.0**r - 1, "linear": lambda r: r, "binary": lambda r: (r > 0) * 1.0}
    worth = gains[gain](found)
    best = -np.sort(-worth, axis=1)
    discount = 1 / np.log2(np.arange(worth.shape[1]) + 2)
    return (worth * discount)[:, :k].sum(axis=1) / (best * discount)[:, :k].sum(axis=1)


def ndcg(scores: ArrayLike, relevance: ArrayLike, k: int | None = None, gain: Gain = "exponential") -> float:
    """The mean of `ndcg_each`."""
    return float(ndcg_each(scores, relevance, k, gain).mean())


def mean_average_precision(
    scores: ArrayLike, relevance: ArrayLike, k: int | None = None, *, over_all: bool = False
) -> float:
    """mAP of the first k: the precision at each relevant item among them, summed, over min(k, R) of a query's
    R relevant items; over R with `over_all`. Queries without a relevant item are left out.

    Raises:
        ValueError: as `hit_rate`.
    """
    found = _asked(scores, relevance) > 0
    depth = found.shape[1] if k is None else k
    precision = found.cumsum(axis=1) / np.arange(1, found.shape[1] + 1)
    relevant = found.sum(axis=1)
    below = relevant if over_all else np.minimum(relevant, depth)
    return float(((precision * found)[:, :depth].sum(axis=1) / below).mean())
