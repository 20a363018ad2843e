"""Levels: where the few values lie that stand for many, and numbers to codes and back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit import _core
from lowbit._check import REALS, as_array, as_numbers, as_rows, as_weights, check_int, code_dtype, exact_floats
from lowbit.types import ConvergenceWarning, Levels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["boundaries", "decode", "density_levels", "encode", "fit_levels", "fit_levels_rows"]

_Method = Literal["optimal", "lloyd_max", "uniform", "laplace", "gauss", "quantile", "pot", "apot"]

_MOST = 1 << 16
_F32, _F64 = np.dtype(np.float32), np.dtype(np.float64)


def fit_levels(
    x: ArrayLike,
    n_levels: int,
    *,
    method: _Method,
    pin_zero: bool = False,
    sample_weight: ArrayLike | None = None,
) -> Levels:
    """Levels for numbers, by formula with the clip searched over the true error, by iteration, or the optimum.

    ========== =================================================================================
    method     levels
    ========== =================================================================================
    optimal    of the least squared error that there is: those of `kmeans_1d`
    lloyd_max  each the mean of the numbers nearest to it, from the best of the methods below
    laplace    the Laplace distribution's compander about the median, its b the mean distance
    gauss      the normal distribution's compander about the mean
    uniform    even steps about the mean: mid-rise for an even ``n_levels``, mid-tread for an odd
    quantile   the numbers at the shares (i + 1/2) / n_levels: as many numbers to each level
    pot        powers of two, both signs, times the clip: 1, 1/2, 1/4, …; 0 of an odd ``n_levels``
    apot       sums of powers of two, both signs, and 0, times the clip; ``n_levels`` 2^b or 2^b - 1
    ========== =================================================================================

    "laplace", "gauss", "uniform", "pot" and "apot" have one free parameter, the clip. It is the one
    of least error among 24 in proportion and 26 more by golden sections about the best of these, each
    judged by the true error of all numbers; of many numbers this takes less time than their sort. The
    result is the same bytes on every machine, whatever the order of the numbers and the number of threads.

    Parameters
    ----------
    x : array_like of real numbers, any shape with at least one axis and one element
        float32 and float64 as they are; float16, bfloat16 and integers of up
        to 16 bits as float32, wider ones as float64, which must hold them
        exactly. Lists of Python numbers are float64. Not to be changed by another
        thread meanwhile.
    n_levels : int
        1 to 65,536; "pot" has at most 256, "apot" 2^b or 2^b - 1 of b from 2 to 8, of which the
        last of 2^b repeats the greatest.
    method : str
        See above.
    pin_zero : bool
        One level is exactly 0, and the others lie about 0. Of an even ``n_levels``
        the side with one level more is the one of less error.
    sample_weight : array_like of floats, the shape of ``x``, optional
        What each number's squared distance counts, at least 0, not all 0.

    Returns
    -------
    Levels
        ``levels`` (n_levels,) ascending, ``mse``, ``clip``.

    Raises
    ------
    TypeError
        Another dtype, a masked array, an ``n_levels`` that is no int.
    ValueError
        No numbers or more than 2**32 - 2; NaN or infinite ones; weights of another shape,
        negative, not finite or all 0; an int64 that float64 does not hold; squares
        beyond float64; ``n_levels`` that the method does not make; an unknown ``method``.

    Warns
    -----
    ConvergenceWarning
        Fewer distinct numbers than ``n_levels``. "optimal", "lloyd_max" and "quantile" take
        these, as every method does where all numbers are the same, and the greatest fills the rest.

    See Also
    --------
    fit_levels_rows : Many rows at a time, each with levels of its own.
    density_levels : Levels from a distribution alone.
    encode, decode : What to do with them.

    Notes
    -----
    Levels that lie evenly after compression by ∫ f^(1/3) are the best of high resolution (Panter and
    Dite, 1951). With few levels the clip of that model is worse than even steps; the one searched is
    within 0.5 % of Lloyd-Max for numbers of the compander's own distribution, and farther off for
    others: trained layers have heavier tails. "lloyd_max" is a local optimum (Lloyd, 1982; Max, 1960)
    that is no worse than any method but "optimal". "apot" is that of Li, Dong and Wang (ICLR 2020).

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x = np.random.default_rng(0).laplace(size=10_000).astype(np.float32)
    >>> found = lowbit.fit_levels(x, 4, method="laplace")
    >>> found.levels.round(2)
    array([-2.58, -0.64,  0.64,  2.58], dtype=float32)
    >>> for method in ("optimal", "lloyd_max", "laplace", "uniform", "quantile"):
    ...     print(f"{method:9} {lowbit.fit_levels(x, 4, method=method).mse:.3f}")
    optimal   0.363
    lloyd_max 0.363
    laplace   0.366
    uniform   0.404
    quantile  0.573
    """
    array, exact = as_numbers(x)
    n = check_int("n_levels", n_levels, 1, _MOST)
    levels, told = _fit(exact, 1, as_weights(sample_weight, (array.shape,)), n, method, pin_zero)
    ((mse, clip, n_distinct),) = told
    if n_distinct < n:
        warnings.warn(f"x: {n_distinct} distinct values for {n} levels", ConvergenceWarning, stacklevel=2)
    return Levels(levels, mse, clip)


def fit_levels_rows(
    x: ArrayLike,
    n_levels: int,
    *,
    method: _Method,
    pin_zero: bool = False,
    sample_weight: ArrayLike | None = None,
) -> Levels:
    """`fit_levels` of every row by itself, on all threads.

    Parameters
    ----------
    x : array_like of real numbers, shape (rows, n)
        As for `fit_levels`: a weight's channels, or its groups.
    n_levels, method, pin_zero
        As for `fit_levels`.
    sample_weight : array_like of floats, shape (n,) or (rows, n), optional
        Weights that all rows share, or each row's own. A row whose weights are
        all 0 is taken as unweighted, with a warning.

    Returns
    -------
    Levels
        ``levels`` (rows, n_levels), ``mse`` and ``clip`` (rows,) float64. The same
        bytes as row by row, on any number of threads.

    Raises
    ------
    TypeError, ValueError
        As `fit_levels`, and ``x`` without two axes.

    Warns
    -----
    ConvergenceWarning
        A row has fewer distinct values than ``n_levels``.
    RuntimeWarning
        A row's weights are all 0.

    Examples
    --------
    >>> import lowbit
    >>> found = lowbit.fit_levels_rows([[0.0, 1.0, 8.0], [5.0, 5.0, 7.0]], 2, method="optimal")
    >>> found.levels
    array([[0.5, 8. ],
           [5. , 7. ]])
    """
    _, exact, weight = as_rows(x, sample_weight)
    n = check_int("n_levels", n_levels, 1, _MOST)
    levels, told = _fit(exact, len(exact), weight, n, method, pin_zero)
    mse, clip, n_distinct = (np.array(column) for column in zip(*told, strict=True))
    if few := int((n_distinct < n).sum()):
        text = f"x: fewer distinct values than {n} levels in {few} of {len(told)} rows"
        warnings.warn(text, ConvergenceWarning, stacklevel=2)
    return Levels(levels.reshape(-1, n), mse, clip)


def density_levels(
    density: Literal["gauss", "laplace"],
    n_levels: int,
    *,
    method: _Method = "lloyd_max",
    clip: Literal["search", "model"] = "search",
) -> Levels:
    """Levels for a distribution, without data: a weight's are these times its standard deviation, plus its mean.

    Errors are integrals in closed form, so that ``mse`` is exact to about ten digits.

    Parameters
    ----------
    density : {"gauss", "laplace"}
        Of mean 0 and variance 1.
    n_levels : int
        1 to 4,096. An odd number has a level at 0.
    method : str
        As for `fit_levels`. "lloyd_max" is the optimum of these densities, so there is no "optimal".
    clip : {"search", "model"}
        "search" is the clip of least error. "model" is the clip of least sum of the error outside it and the
        noise of high resolution inside, as published: ACIQ's for "uniform" (Banner et al., NeurIPS 2019), and
        that of the density's own compander, 3 b ln(1 + n_levels / √4.5) for Laplace. For comparison.

    Returns
    -------
    Levels
        ``levels`` (n_levels,) float64, ``mse``, ``clip``.

    Raises
    ------
    TypeError
        An ``n_levels`` that is no int.
    ValueError
        Unknown names, ``n_levels`` that the method does not make, a ``method`` without a model.

    See Also
    --------
    fit_levels : Levels for numbers.

    Examples
    --------
    >>> import lowbit
    >>> found = lowbit.density_levels("gauss", 4)
    >>> found.levels.round(4), round(found.mse, 6)
    (array([-1.5104, -0.4528,  0.4528,  1.5104]), 0.117482)
    >>> round(lowbit.density_levels("laplace", 16, method="laplace", clip="model").clip, 3)
    4.55
    """
    n = check_int("n_levels", n_levels, 1, _MOST)
    levels = np.empty(n, _F64)
    mse, at = _core.density_levels(density, n, method, clip, levels)
    return Levels(levels, mse, at)


def boundaries(levels: ArrayLike) -> NDArray[Any]:
    """Where the nearest level changes: halfway between levels.

    Parameters
    ----------
    levels : array_like of real numbers, shape (k,)
        At least one, finite, in any order: they are sorted first.

    Returns
    -------
    ndarray of float32 or float64, shape (k - 1,)
        float64 for float64 and wide integers, each middle rounded down, so that
        ``np.searchsorted(boundaries(levels), x)`` is ``encode(x, levels)`` for ascending
        levels and ``x`` of the same dtype.

    Raises
    ------
    TypeError
        Another dtype, a masked array.
    ValueError
        No levels, not 1-D, NaN or infinite ones.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.boundaries([0.0, 1.0, 4.0])
    array([0.5, 2.5])
    """
    table = _table(levels)
    if table.ndim != 1:
        raise ValueError(f"levels: expected shape (k,), got {table.shape}")
    if not np.isfinite(table).all():
        at = int((~np.isfinite(table)).argmax())
        raise ValueError(f"levels: expected finite values, got {table[at]} at flat index {at}")
    table = np.sort(table)
    wide = table.astype(_F64)
    middles = wide[:-1] / 2 + wide[1:] / 2
    middles = np.where(middles < wide[1:], middles, wide[:-1])
    near = middles.astype(table.dtype)
    return np.where(near > middles, np.nextafter(near, table.dtype.type(-np.inf)), near)


def encode(x: ArrayLike, levels: ArrayLike, *, isa: str | None = None) -> NDArray[Any]:
    """Each number's code: the index of its nearest level.

    Parameters
    ----------
    x : array_like of real numbers, shape (...)
        As for `fit_levels`; may be empty.
    levels : array_like of real numbers, shape (k,) or (rows, k)
        At least one, finite, in any order; codes are indices into them as they are given.
        With two axes each row of ``x`` (rows, n) has its own.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    ndarray of uint8 or uint16, of the shape of ``x``
        uint8 of up to 256 levels. A number halfway between two levels gets the lower one; of levels that
        are equal, the first. The same on every instruction set; no rounding comes before
        the comparison, whatever the dtypes.

    Raises
    ------
    TypeError
        Another dtype, a masked array.
    ValueError
        NaN or infinite numbers or levels, with their count and the first flat index; no
        levels or more than 65,536; shapes that do not fit; an unknown ``isa``.

    See Also
    --------
    decode : The way back.
    pack_codes : Codes as dense bytes.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.encode([0.4, 0.5, 0.6, 9.0], [0.0, 1.0, 4.0])
    array([0, 0, 1, 2], dtype=uint8)
    >>> x = np.random.default_rng(0).standard_normal((3, 1000))
    >>> found = lowbit.fit_levels_rows(x, 16, method="lloyd_max")
    >>> back = lowbit.decode(lowbit.encode(x, found.levels), found.levels)
    >>> bool(((x - back) ** 2).mean() < 0.01)
    True
    """
    array = as_array("x", x, REALS)
    exact = exact_floats("x", array)
    table = _table(levels)
    codes = np.empty(array.shape, code_dtype(table.shape[-1]))
    rows = _rows("x", array, table)
    if rows:
        _core.encode(exact, rows, table.astype(_F64, copy=False), codes, isa)
    return codes


def decode(codes: ArrayLike, levels: ArrayLike) -> NDArray[Any]:
    """The levels that codes stand for.

    Parameters
    ----------
    codes : array_like of uint8 or uint16, shape (...)
        Below k; lists of ints become uint16. Copied once if not C-contiguous and aligned.
    levels : array_like of real numbers, shape (k,) or (rows, k)
        As for `encode`.

    Returns
    -------
    ndarray of float32 or float64, of the shape of ``codes``
        float64 where the levels are float64 or integers of 32 bits or more.

    Raises
    ------
    TypeError
        Another dtype, a masked array.
    ValueError
        A code of k or more, with the first flat index; no levels or more than 65,536; shapes that do
        not fit. Each code is read once, so this holds even while another thread writes to ``codes``.

    See Also
    --------
    encode : The inverse, up to the distances.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.decode([2, 0], [0.0, 1.0, 4.0])
    array([4., 0.])
    """
    index = as_array("codes", codes, ("uint16", "uint8"))
    table = _table(levels)
    out = np.empty(index.shape, table.dtype)
    rows = _rows("codes", index, table)
    if rows:
        bits = np.uint32 if table.dtype == _F32 else np.uint64
        _core.decode(index, rows, table.view(bits), out.view(bits))
    return out


def _fit(
    x: NDArray[Any], rows: int, weight: NDArray[np.float64] | None, n: int, method: str, pin_zero: bool
) -> tuple[NDArray[Any], list[tuple[float, float, int]]]:
    levels = np.empty(rows * n, _F64)
    told = _core.fit_levels(x, rows, weight, n, method, pin_zero, levels)
    return levels.astype(x.dtype, copy=False), told


def _table(levels: ArrayLike) -> NDArray[Any]:
    """Levels as float32 or float64, 1-D or 2-D."""
    array = as_array("levels", levels, REALS)
    if array.ndim > 2:
        raise ValueError(f"levels: expected shape (k,) or (rows, k), got {array.shape}")
    if not 1 <= array.shape[-1] <= _MOST:
        raise ValueError(f"levels: expected 1 to {_MOST}, got shape {array.shape}")
    return exact_floats("levels", array)


def _rows(name: str, array: NDArray[Any], table: NDArray[Any]) -> int:
    if table.ndim == 1:
        return 1
    if array.ndim != 2 or len(array) != len(table):
        raise ValueError(f"{name}: expected shape ({len(table)}, n) for levels of {table.shape}, got {array.shape}")
    return len(table)
