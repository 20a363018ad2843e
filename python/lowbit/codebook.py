"""Codebooks: few values that stand for many."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int
from lowbit.types import ConvergenceWarning, KMeans1D

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import ArrayLike, NDArray

__all__ = ["kmeans_1d", "kmeans_1d_rows"]

# The first is what lists of numbers become.
_REALS = ("float64", "float32", "float16", "bfloat16", "int8", "uint8", "int16", "uint16", "int32", "int64")
_WEIGHTS = ("float64", "float32", "float16", "bfloat16")
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)
_MOST = (1 << 32) - 2


def kmeans_1d(
    x: ArrayLike,
    k: int,
    *,
    sample_weight: ArrayLike | None = None,
    pin_zero: bool = False,
    method: Literal["exact", "lloyd"] = "exact",
    isa: str | None = None,
) -> KMeans1D:
    """The k levels that are nearest to numbers, in squares: k-means in one dimension, solved exactly.

    No start, no seed, no iterations to choose: the sum of squared distances is within 1e-9 of
    the least that any k levels have, also with outliers and offsets of any size. It takes about
    two sorts of the numbers for 16 levels, three or four for 255.

    Parameters
    ----------
    x : array_like of real numbers, any shape with at least one axis and one element
        float32 and float64 as they are; float16, bfloat16 and integers of up
        to 16 bits as float32, wider ones as float64, which must hold them
        exactly. Lists of Python numbers are float64. Not to be changed by another
        thread meanwhile.
    k : int
        Levels, at least 1.
    sample_weight : array_like of floats, the shape of ``x``, optional
        What each number's squared distance counts, at least 0, not all 0.
    pin_zero : bool
        One level is exactly 0, and the others are the best beside it.
    method : {"exact", "lloyd"}
        "lloyd" starts from the optimum of some thousand bins and iterates to a local
        optimum, mostly within 1e-4 of the least sum, within 2e-3 with long tails.
        ``pin_zero`` is always exact.
    isa : str, optional
        One of `lowbit.available_isas`; the same arithmetic on each.

    Returns
    -------
    KMeans1D
        ``codebook`` (k,), ``codes`` of the shape of ``x``, ``inertia``, ``n_distinct``.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a ``k`` that is no int.
    ValueError
        No numbers or more than 2**32 - 2; NaN or infinite ones; weights of another shape,
        negative, not finite or all 0; an int64 that float64 does not hold; squares
        beyond float64; ``k`` below 1; an unknown ``method`` or ``isa``.

    Warns
    -----
    ConvergenceWarning
        Fewer distinct values than ``k``: they are the levels, and the greatest fills the rest.

    See Also
    --------
    kmeans_1d_rows : Many rows at a time, each with levels of its own.

    Notes
    -----
    A fee on every level turns the problem into a least-weight subsequence, which a queue of
    candidates solves in a few steps a number (Galil and Park, 1990; Wu, 1991); the fee
    at which the answer has k levels proves it the optimum of k, by duality.

    Examples
    --------
    >>> import lowbit
    >>> found = lowbit.kmeans_1d([1.0, 2.0, 9.0, 10.0, 11.0], 2)
    >>> found.codebook
    array([ 1.5, 10. ])
    >>> found.codes
    array([0, 0, 1, 1, 1], dtype=uint8)
    >>> found.inertia
    2.5
    """
    array, exact = _numbers(x)
    k = check_int("k", k, 1, _MOST)
    weight = _weights(sample_weight, (array.shape,))
    codes, codebook, ((inertia, n_distinct),) = _fit(exact, 1, weight, k, pin_zero, method, isa)
    if k > n_distinct + (pin_zero and not (exact == 0).any()):
        _warn(f"{n_distinct} distinct values for k = {k}")
    return KMeans1D(codebook.astype(exact.dtype, copy=False), codes.reshape(array.shape), inertia, n_distinct)


def kmeans_1d_rows(x: ArrayLike, k: int, *, sample_weight: ArrayLike | None = None, isa: str | None = None) -> KMeans1D:
    """`kmeans_1d` of every row by itself, on all threads.

    Parameters
    ----------
    x : array_like of real numbers, shape (rows, n)
        As for `kmeans_1d`.
    k : int
        Levels of a row, at least 1.
    sample_weight : array_like of floats, shape (n,) or (rows, n), optional
        Weights that all rows share, or each row's own. A row whose weights are
        all 0 is taken as unweighted, with a warning.
    isa : str, optional
        As for `kmeans_1d`.

    Returns
    -------
    KMeans1D
        ``codebook`` (rows, k), ``codes`` (rows, n), ``inertia`` (rows,) float64, ``n_distinct``
        (rows,) int64. The same bytes as row by row, on any number of threads.

    Raises
    ------
    TypeError, ValueError
        As `kmeans_1d`, and ``x`` without two axes.

    Warns
    -----
    ConvergenceWarning
        A row has fewer distinct values than ``k``.
    RuntimeWarning
        A row's weights are all 0.

    Examples
    --------
    >>> import lowbit
    >>> found = lowbit.kmeans_1d_rows([[0.0, 1.0, 8.0], [5.0, 5.0, 7.0]], 2)
    >>> found.codebook
    array([[0.5, 8. ],
           [5. , 7. ]])
    >>> found.codes
    array([[0, 0, 1],
           [0, 0, 1]], dtype=uint8)
    """
    array, exact = _numbers(x)
    if array.ndim != 2:
        raise ValueError(f"x: expected shape (rows, n), got {array.shape}")
    k = check_int("k", k, 1, _MOST)
    weight = _weights(sample_weight, (array.shape[1:], array.shape))
    if weight is not None and weight.ndim == 2:
        unused = np.flatnonzero((weight == 0).all(axis=1))
        if unused.size:
            text = f"sample_weight: all 0 in {unused.size} of {len(weight)} rows, which are taken as unweighted"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            weight = weight.copy()
            weight[unused] = 1.0
    codes, codebook, told = _fit(exact, len(exact), weight, k, False, "exact", isa)
    n_distinct = np.array([n for _, n in told], np.int64)
    if few := int((n_distinct < k).sum()):
        _warn(f"fewer distinct values than k = {k} in {few} of {len(told)} rows")
    codebook = codebook.reshape(-1, k).astype(exact.dtype, copy=False)
    return KMeans1D(codebook, codes.reshape(array.shape), np.array([i for i, _ in told]), n_distinct)


def _numbers(x: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """``x`` as it came, and as float32 or float64 that holds it exactly."""
    array = as_array("x", x, _REALS)
    if array.size == 0:
        raise ValueError(f"x: expected at least one value, got shape {array.shape}")
    if array.dtype == _F32 or array.dtype == _F64:
        return array, array
    exact = array.astype(_F64 if array.dtype.itemsize >= 4 else _F32)
    if array.dtype == np.int64 and (wrong := (np.abs(exact) > 2.0**53).ravel()).any():
        at = int(wrong.argmax())
        raise ValueError(f"x: expected integers that float64 holds, got {array.flat[at]} at flat index {at}")
    return array, exact


def _weights(sample_weight: ArrayLike | None, shapes: tuple[tuple[int, ...], ...]) -> NDArray[np.float64] | None:
    if sample_weight is None:
        return None
    weight = as_array("sample_weight", sample_weight, _WEIGHTS)
    if weight.shape not in shapes:
        raise ValueError(f"sample_weight: expected shape {' or '.join(map(str, shapes))}, got {weight.shape}")
    return weight.astype(_F64, copy=False)


def _fit(
    x: NDArray[Any],
    rows: int,
    weight: NDArray[np.float64] | None,
    k: int,
    pin_zero: bool,
    method: str,
    isa: str | None,
) -> tuple[NDArray[Any], NDArray[np.float64], list[tuple[float, int]]]:
    codes = np.empty(x.size, np.uint8 if k <= 1 << 8 else np.uint16 if k <= 1 << 16 else np.uint32)
    codebook = np.empty(rows * k, _F64)
    told = _core.kmeans_1d(x, rows, weight, k, pin_zero, method, codes, codebook, isa)
    return codes, codebook, told


def _warn(text: str) -> None:
    warnings.warn(f"{text}: the greatest level fills the rest", ConvergenceWarning, stacklevel=3)
