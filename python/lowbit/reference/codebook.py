"""Levels by dynamic programming over every cut of the sorted numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.types import KMeans1D

__all__ = ["kmeans_1d", "kmeans_1d_rows"]


def kmeans_1d(
    x: ArrayLike,
    k: int,
    *,
    sample_weight: ArrayLike | None = None,
    pin_zero: bool = False,
    method: str = "exact",
    isa: str | None = None,
) -> KMeans1D:
    """`lowbit.kmeans_1d`, the optimum by either ``method``: (n,) numbers, (k,) levels; memory for n² floats.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.kmeans_1d([1.0, 2.0, 9.0, 10.0, 11.0], 2).codebook
    array([ 1.5, 10. ])
    """
    x = np.asarray(x)
    numbers = x.astype(np.float64).ravel()
    weight = np.ones(numbers.size) if sample_weight is None else np.asarray(sample_weight, np.float64).ravel()
    values, index = np.unique(numbers[weight > 0], return_inverse=True)
    weights = np.bincount(index, weight[weight > 0]).astype(np.float64)
    found = _levels(values, weights, k, pin_zero)
    codebook = np.append(found, np.full(k - len(found), found[-1]))
    codes = np.searchsorted((found[1:] + found[:-1]) / 2, numbers)
    inertia = float((weight * (numbers - found[codes]) ** 2).sum())
    wide = x.dtype == np.float64 or (x.dtype.kind in "iu" and x.dtype.itemsize >= 4)
    kind = np.uint8 if k <= 1 << 8 else np.uint16 if k <= 1 << 16 else np.uint32
    codebook = codebook.astype(np.float64 if wide else np.float32)
    return KMeans1D(codebook, codes.astype(kind).reshape(x.shape), inertia, len(values))


def _levels(values: NDArray[np.float64], weights: NDArray[np.float64], k: int, pin_zero: bool) -> NDArray[np.float64]:
    """At most ``k`` levels of ascending distinct values."""
    n = len(values)
    # cost[i, j]: the squares of values i to j - 1 about their mean, sums taken from the first of them.
    cost = np.full((n, n + 1), np.inf)
    for i in range(n):
        d, w = values[i:] - values[i], weights[i:]
        cost[i, i + 1 :] = np.cumsum(w * d * d) - np.cumsum(w * d) ** 2 / np.cumsum(w)
    zero = np.append(0.0, np.cumsum(weights * values**2))
    # best[z][j]: the first j values with the levels so far, z: one of them at zero, which may have no values.
    best = [np.append(0.0, np.full(n, np.inf)), np.full(n + 1, np.inf)]
    choices: list[list[NDArray[Any]]] = []
    for _ in range(min(k, n + (pin_zero and 0.0 not in values))):
        free = [(b[:-1, None] + cost) for b in best]
        none = best[0][:, None] + np.where(np.tri(n + 1, dtype=bool).T, zero[None] - zero[:, None], np.inf)
        choices.append([free[0].argmin(0), free[1].argmin(0), none.argmin(0), none.min(0) <= free[1].min(0)])
        best = [free[0].min(0), np.minimum(free[1].min(0), none.min(0))]
        best[0][0] = np.inf
    levels, end, pinned = [], n, pin_zero
    for first, after, at_zero, is_zero in reversed(choices):
        if pinned and is_zero[end]:
            levels.append(0.0)
            end, pinned = int(at_zero[end]), False
        else:
            begin = int((after if pinned else first)[end])
            levels.append(np.average(values[begin:end], weights=weights[begin:end]))
            end = begin
    return np.array(levels[::-1])


def kmeans_1d_rows(x: ArrayLike, k: int, *, sample_weight: ArrayLike | None = None, isa: str | None = None) -> KMeans1D:
    """`lowbit.kmeans_1d_rows`: `kmeans_1d` row by row.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.kmeans_1d_rows([[0.0, 1.0, 8.0], [5.0, 5.0, 7.0]], 2).codebook
    array([[0.5, 8. ],
           [5. , 7. ]])
    """
    rows = np.asarray(x)
    weights = None if sample_weight is None else np.broadcast_to(np.asarray(sample_weight), rows.shape)
    found = [kmeans_1d(row, k, sample_weight=None if weights is None else weights[i]) for i, row in enumerate(rows)]
    return KMeans1D(
        np.stack([f.codebook for f in found]),
        np.stack([f.codes for f in found]),
        np.array([f.inertia for f in found]),
        np.array([f.n_distinct for f in found]),
    )
