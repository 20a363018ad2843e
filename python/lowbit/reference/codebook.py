"""Levels by dynamic programming over every cut of the sorted numbers; Lloyd's iterations, the nearest
codewords and look-up, distance by distance in float64.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.types import ConvergenceWarning, KMeans, KMeans1D

__all__ = ["assign", "kmeans", "kmeans_1d", "kmeans_1d_rows", "lookup"]


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
    codebook = codebook.astype(np.float64 if wide else np.float32)
    return KMeans1D(codebook, codes.astype(_code_dtype(k)).reshape(x.shape), inertia, len(values))


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


def kmeans(
    x: ArrayLike,
    k: int,
    *,
    init: ArrayLike | Literal["k-means++", "random"] = "k-means++",
    n_init: int = 1,
    max_iter: int = 100,
    tol: float = 1e-4,
    sample_weight: ArrayLike | None = None,
    seed: int = 0,
    isa: str | None = None,
) -> KMeans:
    """`lowbit.kmeans`, with NumPy's random numbers: from an array it is the same
    codebook up to the rounding of sums, from a drawn start another one.

    Examples
    --------
    >>> from lowbit import reference
    >>> fit = reference.kmeans([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]], 2, init=[[0, 0], [9, 9]])
    >>> fit.codebook.tolist(), fit.codes.tolist(), fit.inertia
    ([[0.0, 1.0], [9.0, 1.0]], [0, 0, 1, 1], 4.0)
    """
    points = np.asarray(x)
    dtype = np.float32 if points.dtype.itemsize <= 2 or points.dtype == np.float32 else np.float64
    points = points.astype(np.float64) + 0.0
    n = len(points)
    weight = np.ones(n) if sample_weight is None else np.asarray(sample_weight, np.float64)
    distinct, codes = np.unique(points, axis=0, return_inverse=True)
    if len(distinct) <= k:
        if len(distinct) < k:
            warnings.warn(f"x: {len(distinct)} different points for {k} codewords", ConvergenceWarning, stacklevel=2)
        codebook = distinct[np.minimum(np.arange(k), len(distinct) - 1)].astype(dtype)
        return KMeans(codebook, codes.reshape(n).astype(_code_dtype(k)), 0.0, 0, len(distinct))
    rng = np.random.default_rng(seed)
    best: KMeans | None = None
    for _ in range(n_init if isinstance(init, str) else 1):
        if not isinstance(init, str):
            start = np.array(init, dtype)
        elif init == "random":
            start = points[rng.choice(n, k, replace=False, p=(weight > 0) / np.count_nonzero(weight))].astype(dtype)
        else:
            start = _plus_plus(points, weight, k, rng).astype(dtype)
        fit = _lloyd(points, weight, start, max_iter, tol * points.var(axis=0).mean())
        if best is None or fit.inertia < best.inertia:
            best = fit
    assert best is not None
    return best


def assign(
    x: ArrayLike, codebook: ArrayLike, *, top: int = 1, isa: str | None = None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """`lowbit.assign`: all distances, sorted.

    Examples
    --------
    >>> from lowbit import reference
    >>> codes, distances = reference.assign([[1, 0], [2, 0]], [[0, 0], [4, 0]])
    >>> codes.tolist(), distances.tolist()
    ([0, 0], [1.0, 4.0])
    """
    x, codebook = np.asarray(x), np.asarray(codebook)
    distances = _distances(x, codebook)
    codes = np.argsort(distances, axis=1, kind="stable")[:, :top]  # ties to the lower index
    distances = np.take_along_axis(distances, codes, axis=1).astype(np.float32)
    shape = (len(x),) if top == 1 else (len(x), top)
    return codes.reshape(shape).astype(_code_dtype(len(codebook))), distances.reshape(shape)


def lookup(codes: ArrayLike, codebook: ArrayLike) -> NDArray[Any]:
    """`lowbit.lookup`: one index.

    Raises
    ------
    ValueError
        A code of k or more.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.lookup([1, 0], [[0, 0], [4, 2]]).tolist()
    [[4, 2], [0, 0]]
    """
    codes, codebook = np.asarray(codes), np.asarray(codebook)
    if codes.size and (codes.max() >= len(codebook) or codes.min() < 0):
        raise ValueError(f"codes: expected codes below {len(codebook)}, got {codes.max()}")
    return codebook[codes]


def _distances(x: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """(n, k), each the sum of squared differences from the first column to the last."""
    sums = np.zeros((len(x), len(codebook)))
    for column, values in zip(x.T.astype(np.float64), codebook.T.astype(np.float64), strict=True):
        sums += (column[:, None] - values) ** 2
    return sums


def _lloyd(x: np.ndarray, weight: np.ndarray, codebook: np.ndarray, max_iter: int, tol: float) -> KMeans:
    k = len(codebook)
    codes: np.ndarray | None = None
    n_iter = 0
    while n_iter < max_iter:
        n_iter += 1
        distances = _distances(x, codebook)
        before, codes = codes, distances.argmin(axis=1)
        filled = _fill_empty(x, weight, codes, distances[np.arange(len(x)), codes], k)
        counts = np.bincount(codes, weight, k)
        old, codebook = codebook, codebook.copy()
        for j in range(x.shape[1]):
            sums = np.bincount(codes, weight * x[:, j], k)
            codebook[counts > 0, j] = sums[counts > 0] / counts[counts > 0]
        if before is not None and not filled and (before == codes).all():
            break
        if 0 < tol >= ((codebook.astype(np.float64) - old) ** 2).sum():
            break
    distances = _distances(x, codebook)
    codes = distances.argmin(axis=1)
    inertia = float(weight @ distances[np.arange(len(x)), codes])
    return KMeans(codebook, codes.astype(_code_dtype(k)), inertia, n_iter, k)


def _fill_empty(x: np.ndarray, weight: np.ndarray, codes: np.ndarray, distances: np.ndarray, k: int) -> bool:
    """Codewords without points take the farthest ones, each from where others stay."""
    members = np.bincount(codes[weight > 0], minlength=k)
    far = iter(np.argsort(-distances, kind="stable"))
    taken: set[bytes] = set()
    filled = False
    for empty in np.flatnonzero(members == 0):
        for i in far:
            if weight[i] > 0 and distances[i] > 0 and members[codes[i]] > 1 and x[i].tobytes() not in taken:
                taken.add(x[i].tobytes())
                members[codes[i]] -= 1
                codes[i] = empty
                filled = True
                break
    return filled


def _plus_plus(x: np.ndarray, weight: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    nearest = np.ones(len(x))
    chosen: list[int] = []
    for _ in range(k):
        share = weight * nearest
        chosen.append(int(rng.choice(len(x), p=share / share.sum() if share.any() else None)))
        distance = _distances(x, x[chosen[-1:]])[:, 0]
        nearest = distance if len(chosen) == 1 else np.minimum(nearest, distance)
    return x[chosen]


def _code_dtype(k: int) -> type[np.unsignedinteger[Any]]:
    return np.uint8 if k <= 1 << 8 else np.uint16 if k <= 1 << 16 else np.uint32
