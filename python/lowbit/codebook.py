"""Codebooks: few values, or few points, that stand for many."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from lowbit import _core
from lowbit._check import REALS, as_array, as_numbers, as_rows, as_weights, check_int, code_dtype, exact_floats
from lowbit.types import ConvergenceWarning, KMeans, KMeans1D

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import ArrayLike, NDArray

__all__ = ["assign", "kmeans", "kmeans_1d", "kmeans_1d_rows", "lookup"]

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
    array, exact = as_numbers(x)
    k = check_int("k", k, 1, _MOST)
    weight = as_weights(sample_weight, (array.shape,))
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
    array, exact, weight = as_rows(x, sample_weight)
    k = check_int("k", k, 1, _MOST)
    codes, codebook, told = _fit(exact, len(exact), weight, k, False, "exact", isa)
    n_distinct = np.array([n for _, n in told], np.int64)
    if few := int((n_distinct < k).sum()):
        _warn(f"fewer distinct values than k = {k} in {few} of {len(told)} rows")
    codebook = codebook.reshape(-1, k).astype(exact.dtype, copy=False)
    return KMeans1D(codebook, codes.reshape(array.shape), np.array([i for i, _ in told]), n_distinct)


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
    """Finds k codewords with a small sum of squared distances from the points.

    Lloyd's iterations: every point to its nearest codeword, every codeword to
    the (weighted) mean of its points. A codeword that is left without points
    takes the one farthest from its own. The result is the same bytes on any
    instruction set and number of threads.

    Up to 2,048 codewords, what an iteration ruled out for a point is remembered
    for the next: 0.27 bytes for each codeword of a point, where that is at most
    512 MiB in all. Beside that and the result it takes 4 bytes a value and 8 a point.

    Parameters
    ----------
    x : array_like, shape (n, d)
        float32, float64, float16, bfloat16 or integers, finite, at least one
        point; lists of numbers become float64. float64 and integers of 32 and 64
        bits, which float64 must hold exactly, are computed in float64: float32 only rules out codewords that
        cannot be nearest, within bounds on its errors. Copied once if not
        C-contiguous and aligned. Not to be changed by another thread meanwhile.
    k : int
        Codewords.
    init : {"k-means++", "random"} or array_like, shape (k, d)
        The start. "k-means++" draws points by squared distance from those drawn
        before; where there are more than 16 k + 16,384, among as many drawn at
        random. "random" draws them evenly (by weight above 0, not in proportion
        to it).
    n_init : int
        Starts to try; the least inertia wins. An array is one start.
    max_iter : int
        The most iterations of a start.
    tol : float
        A start ends when the sum of the squared shifts of the codewords is at
        most ``tol`` times the mean variance of the columns, or when no point
        changes its codeword, which alone counts with 0.
    sample_weight : array_like of floats, shape (n,), optional
        Finite, at least 0 and not all 0.
    seed : int
        0 to 2**64 - 1; the same seed gives the same result.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    fit : KMeans
        ``codebook`` (k, d), float64 where ``x`` is computed in float64, else
        float32; ``codes`` (n,), what `assign` gives for it; ``inertia``;
        ``n_iter``; ``n_distinct``. With at most k different points these are the
        codewords, in lexicographic order, and the last fills the rest.

    Warns
    -----
    ConvergenceWarning
        Fewer different points than k.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, an
        argument of another type.
    ValueError
        NaN or Inf, with their count and the first flat index; no points, or not
        2-D; an argument out of range; a sum of squares beyond float64.

    See Also
    --------
    assign, lookup : Coding other points with the codebook.

    References
    ----------
    S. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28
    (1982). D. Arthur, S. Vassilvitskii, "k-means++: the advantages of careful
    seeding", SODA 2007.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x = np.array([[0, 0], [0, 2], [9, 0], [9, 2]], np.float32)
    >>> fit = lowbit.kmeans(x, 2, init=[[0, 0], [9, 9]])
    >>> fit.codebook
    array([[0., 1.],
           [9., 1.]], dtype=float32)
    >>> fit.codes, fit.inertia
    (array([0, 0, 1, 1], dtype=uint8), 4.0)

    A product codebook has one for each part of the columns:

    >>> x = np.random.default_rng(0).standard_normal((1000, 8)).astype(np.float32)
    >>> parts = [lowbit.kmeans(part, 16) for part in np.split(x, 4, axis=1)]
    >>> codes = np.stack([part.codes for part in parts], axis=1)
    >>> back = np.hstack([lowbit.lookup(c, p.codebook) for c, p in zip(codes.T, parts)])
    >>> codes.shape, codes.dtype, bool(((x - back) ** 2).mean() < 0.15)
    ((1000, 4), dtype('uint8'), True)
    """
    k = check_int("k", k, 1, 2**31 - 1)
    n_init = check_int("n_init", n_init, 1, 2**31 - 1)
    max_iter = check_int("max_iter", max_iter, 1, 2**31 - 1)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    tol = _tolerance(tol)
    array = _points("x", x)
    n, d = array.shape
    start, how = None, init
    if not isinstance(init, str):
        how = "array"
        start = _points("init", init)
        if start.shape != (k, d):
            raise ValueError(f"init: expected shape {(k, d)}, got {start.shape}")
    elif init not in ("k-means++", "random"):
        raise ValueError(f"init: expected 'k-means++', 'random' or an array, got {init!r}")
    weight = as_weights(sample_weight, ((n,),))
    if start is not None and start.dtype != array.dtype:
        start = start.astype(array.dtype)
    run = _core.kmeans_f64 if array.dtype == _F64 else _core.kmeans_f32
    codebook, codes, inertia, n_iter, n_distinct = run(
        array, d, k, str(how), start, (n_init, max_iter, tol, seed), weight, isa
    )
    if n_distinct < k:
        warnings.warn(
            f"x: {n_distinct} different points for {k} codewords; the last fills the rest",
            ConvergenceWarning,
            stacklevel=2,
        )
    return KMeans(codebook.reshape(k, d), codes.astype(code_dtype(k)), inertia, n_iter, n_distinct)


def assign(
    x: ArrayLike, codebook: ArrayLike, *, top: int = 1, isa: str | None = None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The nearest codewords of each point.

    A squared distance is the sum of squared differences from the first column to
    the last, each step rounded to float64. Of equally near codewords the one of
    lower index comes first. The result is the same bytes on any instruction set
    and number of threads.

    Parameters
    ----------
    x : array_like, shape (n, d)
        float32, float64, float16, bfloat16 or integers, finite, at least one
        point; lists of numbers become float64. Copied once if not C-contiguous
        and aligned. Not to be changed by another thread meanwhile.
    codebook : array_like, shape (k, d)
        The same dtypes; neither is rounded to the other's. At least one codeword.
    top : int
        Codewords for each point, 1 to k.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    codes : ndarray of uint8, uint16 or uint32, shape (n,), or (n, top) for top above 1
        Nearest first, in the smallest dtype that holds k - 1.
    distances : ndarray of float32, of the same shape
        Squared, rounded from float64.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, a
        ``top`` that is no int.
    ValueError
        NaN or Inf, with their count and the first flat index; not 2-D, empty, or
        of unequal d; ``top`` out of range; a squared distance beyond float32; an
        unknown ``isa``.

    See Also
    --------
    kmeans : Where codebooks come from.
    lookup : The way back.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> codebook = np.array([[0, 0], [4, 0], [4, 4]], np.float32)
    >>> lowbit.assign([[1, 0], [2, 0], [5, 5]], codebook)
    (array([0, 0, 2], dtype=uint8), array([1., 4., 2.], dtype=float32))
    >>> lowbit.assign([[3, 1]], codebook, top=2)
    (array([[1, 0]], dtype=uint8), array([[ 2., 10.]], dtype=float32))

    A residual codebook codes what the one before it leaves:

    >>> x = np.random.default_rng(0).standard_normal((1000, 4)).astype(np.float32)
    >>> rest, codes = x, []
    >>> for stage in range(3):
    ...     codebook = lowbit.kmeans(rest, 16).codebook
    ...     codes.append(lowbit.assign(rest, codebook)[0])
    ...     rest = rest - lowbit.lookup(codes[-1], codebook)
    >>> bool((rest**2).mean() < 0.1)
    True
    """
    array, table = _points("x", x), _points("codebook", codebook)
    (n, d), (k, columns) = array.shape, table.shape
    if columns != d:
        raise ValueError(f"codebook: expected {d} columns as x of shape {array.shape}, got shape {table.shape}")
    top = check_int("top", top, 1)
    if top > k:
        raise ValueError(f"top: expected 1 to {k}, the size of the codebook, got {top}")
    if array.dtype != table.dtype:
        array, table = array.astype(_F64, copy=False), table.astype(_F64, copy=False)
    shape = (n,) if top == 1 else (n, top)
    codes, distances = np.empty(shape, np.uint32), np.empty(shape, _F32)
    run = _core.assign_f64 if array.dtype == _F64 else _core.assign_f32
    run(array, table, d, top, codes, distances, isa)
    return codes.astype(code_dtype(k), copy=False), distances


def lookup(codes: ArrayLike, codebook: ArrayLike) -> NDArray[Any]:
    """The codewords that codes stand for.

    Parameters
    ----------
    codes : array_like of uint8, uint16 or uint32, shape (...)
        Codes below k, of one axis or more; lists of ints become uint32. Copied
        once if not C-contiguous and aligned.
    codebook : array_like, shape (k, d)
        float32, float64, float16, bfloat16 or integers; lists of numbers become
        float64.

    Returns
    -------
    x : ndarray of the codebook's dtype, shape (..., d)
        Empty where ``codes`` is.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain.
    ValueError
        A code of k or more, with the first flat index; a ``codebook`` that is
        empty or not 2-D. Each code is read once, so this holds even while
        another thread writes to ``codes``.

    See Also
    --------
    assign : The inverse, up to the distances.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.lookup(np.array([1, 0, 1], np.uint8), np.array([[0, 0], [4, 2]], np.float32))
    array([[4., 2.],
           [0., 0.],
           [4., 2.]], dtype=float32)
    """
    index = as_array("codes", codes, ("uint32", "uint8", "uint16"))
    table = _matrix("codebook", codebook)
    d = table.shape[1]
    out = np.empty((*index.shape, d), table.dtype)
    if index.size:
        run: Any = {1: _core.lookup_u8, 2: _core.lookup_u16, 4: _core.lookup_u32}[index.dtype.itemsize]
        run(index, table.reshape(-1).view(np.uint8), d * table.itemsize, out.reshape(-1).view(np.uint8))
    return out


def _fit(
    x: NDArray[Any],
    rows: int,
    weight: NDArray[np.float64] | None,
    k: int,
    pin_zero: bool,
    method: str,
    isa: str | None,
) -> tuple[NDArray[Any], NDArray[np.float64], list[tuple[float, int]]]:
    codes = np.empty(x.size, code_dtype(k))
    codebook = np.empty(rows * k, _F64)
    told = _core.kmeans_1d(x, rows, weight, k, pin_zero, method, codes, codebook, isa)
    return codes, codebook, told


def _warn(text: str) -> None:
    warnings.warn(f"{text}: the greatest level fills the rest", ConvergenceWarning, stacklevel=3)


def _matrix(name: str, x: Any) -> np.ndarray:
    """``x`` as a 2-D array that is not empty."""
    array = as_array(name, x, REALS)
    if array.ndim != 2:
        raise ValueError(f"{name}: expected 2-D, (points, dimensions), got {array.ndim}-D of shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name}: need at least 1 value, got shape {array.shape}")
    return array


def _points(name: str, x: Any) -> np.ndarray:
    """``x`` as a 2-D array of float32 or float64, whichever holds its values."""
    return exact_floats(name, _matrix(name, x))


def _tolerance(tol: Any) -> float:
    if isinstance(tol, (bool, np.bool_)) or not isinstance(tol, (int, float, np.number)):
        raise TypeError(f"tol: expected a number, got {tol!r}")
    tol = float(tol)
    if math.isnan(tol) or tol < 0:
        raise ValueError(f"tol: expected at least 0, got {tol}")
    return tol
