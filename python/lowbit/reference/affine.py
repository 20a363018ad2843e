"""Scales, zero points and codes, one float operation after the other."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from lowbit.types import Expansion, Granularity, PerAxis, PerGroup, PerTensor, QParams, RowCodes

__all__ = [
    "choose_qparams",
    "dequantize",
    "expand",
    "quantize",
    "quantize_rows",
    "reconstruct",
    "round_with_feedback",
]

MIN_SCALE = np.float32(2.0**-126)
CHUNK = 1 << 16  # values of a group whose squared errors are summed by themselves
GREATEST = {"float32": 2.0**128 - 2.0**104, "bfloat16": 2.0**128 - 2.0**120, "float16": 65504.0}


def choose_qparams(
    x: ArrayLike,
    nbits: int = 8,
    *,
    granularity: Granularity = PerTensor(),  # noqa: B008 - frozen
    symmetric: bool = True,
    full_range: bool = False,
    method: Literal["absmax", "percentile", "mse"] = "absmax",
    percentile: float = 99.99,
    sample_weight: ArrayLike | None = None,
    isa: str | None = None,
) -> QParams:
    """`lowbit.choose_qparams`: scale float32 and zero point int32 of each group of x (..., K).

    Raises
    ------
    ValueError
        No values, NaN or Inf, a scale beyond float32, weights that cannot be.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.choose_qparams([-2.54, 1.0]).scale
    array(0.02, dtype=float32)
    """
    x = _real(x)
    if not np.isfinite(x).all() or x.size == 0:
        raise ValueError("x: expected at least 1 value, all of them finite")
    levels = _Levels(nbits, symmetric, full_range)
    groups, valid = _groups(x, granularity)
    low = np.where(valid, groups, np.inf).astype(x.dtype).min(axis=1)
    high = np.where(valid, groups, -np.inf).astype(x.dtype).max(axis=1)
    weights = None
    if sample_weight is not None:
        weights = _weights(sample_weight, x.shape, granularity)

    whole = levels.fit(low, high)
    if method == "absmax":
        scale, zero_point = whole
    elif method == "percentile":
        clip = np.array(
            [
                _percentile(group[ok], percentile, symmetric, None if weights is None else weights[i][ok])
                for i, (group, ok) in enumerate(zip(groups, valid, strict=True))
            ]
        )
        nothing = ~clip.any(axis=1)
        clip_low, clip_high = np.where(nothing, low, clip[:, 0]), np.where(nothing, high, clip[:, 1])
        scale, zero_point = levels.range(clip_low, clip_high)
    elif method == "mse":
        if np.isinf(whole[0]).any():
            raise ValueError("x: too large for a float32 scale")
        scale, zero_point = levels.range(*_least_squares(groups, low, high, levels, weights))
    else:
        raise ValueError(f"method: got {method!r}")
    scale, zero_point = (np.where(low == high, *pair) for pair in zip(whole, (scale, zero_point), strict=True))
    if np.isinf(scale).any():
        raise ValueError("x: too large for a float32 scale")
    shape = _scale_shape(x.shape, granularity)
    scale, zero_point = scale.reshape(shape), zero_point.astype(np.int32).reshape(shape)
    return QParams(scale, zero_point, nbits, levels.qmin, levels.qmax, granularity, symmetric)


def quantize(
    x: ArrayLike, qparams: QParams, *, out: NDArray[np.uint8] | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """`lowbit.quantize`: x (..., K) to uint8 codes (..., K).

    Raises
    ------
    ValueError
        No values, NaN or Inf.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.quantize([-2.54, 1.0], reference.choose_qparams([-2.54, 1.0]))
    array([  1, 178], dtype=uint8)
    """
    x = _real(x)
    if not np.isfinite(x).all() or x.size == 0:
        raise ValueError("x: expected at least 1 value, all of them finite")
    scale = _spread(qparams.scale, x.shape, qparams.granularity)
    zp = _spread(qparams.zero_point, x.shape, qparams.granularity).astype(x.dtype)
    steps = _steps(x, scale, qparams.qmin - zp, qparams.qmax - zp)
    codes = (steps + zp).astype(np.uint8)
    if out is None:
        return codes
    out[...] = codes
    return out


def dequantize(
    codes: ArrayLike,
    qparams: QParams,
    *,
    dtype: DTypeLike = np.float32,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """`lowbit.dequantize`: uint8 codes (..., K) to real numbers (..., K).

    Raises
    ------
    ValueError
        No codes, or a code of ``2**nbits`` or more.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.dequantize([1, 178], reference.choose_qparams([-2.54, 1.0]))
    array([-2.54,  1.  ], dtype=float32)
    """
    codes, dtype = np.asarray(codes), np.dtype(dtype)
    if codes.size == 0 or codes.max() >> qparams.nbits:
        raise ValueError(f"codes: expected at least 1 code, all below 2^{qparams.nbits}")
    scale = _spread(qparams.scale, codes.shape, qparams.granularity)
    steps = codes.astype(np.int32) - _spread(qparams.zero_point, codes.shape, qparams.granularity)
    if dtype == np.float64:
        x = steps.astype(np.float64) * scale
    else:
        greatest = np.float32(GREATEST[dtype.name])
        with np.errstate(over="ignore"):
            x = np.clip(steps.astype(np.float32) * scale, -greatest, greatest).astype(dtype)
    if out is None:
        return x
    out[...] = x
    return out


def expand(
    x: ArrayLike,
    bits: int,
    terms: int,
    *,
    granularity: Granularity = PerTensor(),  # noqa: B008 - frozen
    symmetric: bool = True,
    clip: float | None = None,
    isa: str | None = None,
) -> Expansion:
    """`lowbit.expand`: x (..., K) as terms of few bits, the finest digit taken off first.

    Raises
    ------
    ValueError
        No values, NaN or Inf, a scale beyond float32.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.expand([-1.0, 0.25], 4, 2).codes - 8.0
    array([[-7.,  2.],
           [-7., -2.]])
    """
    x = _real(x).astype(np.float64)
    if not np.isfinite(x).all() or x.size == 0:
        raise ValueError("x: expected at least 1 value, all of them finite")
    base, most = 2**bits, 2 ** (bits * terms) - 1
    half = (base // 2) * (most // (base - 1))  # the code of which every digit is 0
    groups, valid = _groups(x, granularity)
    low = np.where(valid, groups, np.inf).min(axis=1)
    high = np.where(valid, groups, -np.inf).max(axis=1)
    if clip is not None:
        squares = [sum(float(x) ** 2 for x in g[v]) / v.sum() for g, v in zip(groups, valid, strict=True)]
        reach = clip * np.sqrt(np.array(squares))
        low, high = np.maximum(low, -reach), np.minimum(high, reach)
    if symmetric:
        exact = np.maximum(high, -low) / (most - half)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        exact = high / most - low / most
    scale = exact.astype(np.float32)
    scale = np.where(scale < exact, np.nextafter(scale, np.float32(np.inf)), scale)
    if np.isinf(scale).any():
        raise ValueError("x: too large for a float32 scale")
    scale = np.where(exact == 0, np.float32(1), np.maximum(scale, MIN_SCALE))
    zero = np.full(scale.shape, half) if symmetric else np.clip(np.rint(-low / scale.astype(np.float64)), 0, most)
    shape = _scale_shape(x.shape, granularity)
    scale, zero = scale.astype(np.float32).reshape(shape), zero.astype(np.uint32).reshape(shape)

    zeros = _spread(zero, x.shape, granularity).astype(np.float64)
    whole = np.rint(x / _spread(scale, x.shape, granularity).astype(np.float64)) + zeros
    code = np.clip(whole, 0, most)
    left = (whole - code).reshape(-1).astype(np.int64) * (clip is not None)
    digits: list[np.ndarray] = []
    rest = code.astype(np.int64) - half
    for _ in range(terms):
        digit = (rest + base // 2) % base - base // 2
        digits.insert(0, digit)
        rest = (rest - digit) // base
    codes = (np.stack(digits) + base // 2).astype(np.uint8)
    return Expansion(codes, scale, zero, bits, granularity, np.flatnonzero(left), left[np.flatnonzero(left)])


def reconstruct(expansion: Expansion, *, terms: int | None = None, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """`lowbit.reconstruct`: the terms' sum, with what is saturated.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.reconstruct(reference.expand([-1.0, 0.25], 4, 2)).round(3)
    array([-1.   ,  0.252], dtype=float32)
    """
    shape, count = expansion.codes.shape[1:], expansion.terms if terms is None else terms
    scale = _spread(expansion.scale, shape, expansion.granularity).astype(np.float64)
    total = np.broadcast_to(_spread(expansion.bias, shape, expansion.granularity) / scale, shape)
    for i, digit in enumerate(expansion.digits()[:count]):
        total = total + digit * 2.0 ** (expansion.bits * (expansion.terms - 1 - i))
    total = total.reshape(-1).copy()
    total[expansion.positions] += expansion.steps
    return (total.reshape(shape) * scale).astype(dtype)


def quantize_rows(
    x: ArrayLike, *, nbits: int = 8, symmetric: bool = False, group_size: int | None = None, isa: str | None = None
) -> RowCodes:
    """`lowbit.quantize_rows`: rows (..., K) to uint8 codes, scales, zero points and sums.

    Raises
    ------
    ValueError
        No values.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.quantize_rows([[0.0, 1.0, 255.0]]).codes
    array([[  0,   1, 255]], dtype=uint8)
    """
    x = _real(x)
    if x.size == 0:
        raise ValueError("x: expected at least 1 value")
    levels = _Levels(nbits, symmetric, False)
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        scale, zp = levels.fit(low, high)
        bad = ~np.isfinite(low) | ~np.isfinite(high) | np.isinf(scale)
        steps = _steps(x, scale, levels.qmin - zp.astype(x.dtype), levels.qmax - zp.astype(x.dtype))
        codes = np.where(bad, 0, steps + zp).astype(np.uint8)
    scale = np.where(bad, np.float32(np.nan), scale)[..., 0]
    zero_point = np.where(bad, 0, zp)[..., 0].astype(np.uint8)
    k = x.shape[-1]
    group = k if group_size is None else min(group_size, k)
    padded = np.pad(codes, [(0, 0)] * (x.ndim - 1) + [(0, -k % group)])
    sums = padded.reshape(*x.shape[:-1], -1, group).sum(axis=-1, dtype=np.int32)
    return RowCodes(codes, scale, zero_point, sums)


class _Levels:
    """The codes, and the scale and zero point that fit a range to them."""

    def __init__(self, nbits: int, symmetric: bool, full_range: bool) -> None:
        self.symmetric = symmetric
        self.qmin, self.qmax = int(symmetric and not full_range), 2**nbits - 1
        self.middle = 2 ** (nbits - 1) if symmetric else 0
        self.steps = 2 ** (nbits - 1) - 1 if symmetric and not full_range else self.qmax / 2

    def fit(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For all of a group's values; a repeated value is one step from zero."""
        scale, zero_point = self.range(low, high)
        with np.errstate(over="ignore"):
            one = np.where(low == 0, np.float32(1), np.maximum(np.abs(low).astype(np.float32), MIN_SCALE))
        below = (low < 0) & (not self.symmetric)
        return np.where(low == high, one, scale), np.where(low == high, self.middle + below, zero_point)

    def range(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For a range, in its own precision until the scale is rounded."""
        with np.errstate(over="ignore"):
            if self.symmetric:
                scale = (np.maximum(high, -low) / self.steps).astype(np.float32)
                return np.maximum(scale, MIN_SCALE), np.full(low.shape, self.middle)
            low, high = np.minimum(low, 0), np.maximum(high, 0)
            scale = ((0.5 * high - 0.5 * low) / self.steps).astype(np.float32)
            scale = np.maximum(scale, MIN_SCALE)
            zero_point = np.rint(-low * (np.float32(1) / scale))
        return scale, np.clip(zero_point, 0, self.qmax)


def _steps(x: np.ndarray, scale: np.ndarray, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Codes less their zero point, as floats."""
    with np.errstate(over="ignore"):
        return np.clip(np.rint(x * (np.float32(1) / scale)), least, most)


def _least_squares(
    x: np.ndarray, low: np.ndarray, high: np.ndarray, levels: _Levels, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The clipped range of each group of x (groups, n) with the least error.

    A ratio that is `step` fine steps below 1 is the float32 with 6 bits of
    mantissa that many places below 1.
    """

    def ratio(step: np.ndarray) -> np.ndarray:
        return (np.float32(1).view(np.int32) - (step.astype(np.int32) << 17)).view(np.float32)

    def offer(step: np.ndarray) -> None:
        r = ratio(step).astype(x.dtype)
        scale, zp = levels.range(low * r, high * r)
        zp = zp.astype(x.dtype)[:, None]
        steps = _steps(x, scale[:, None], levels.qmin - zp, levels.qmax - zp)
        with np.errstate(over="ignore"):
            value = steps * scale[:, None].astype(x.dtype)
        if x.dtype == np.float32:
            value = np.clip(value, -np.float32(GREATEST["float32"]), np.float32(GREATEST["float32"]))
        off = (x - value).astype(np.float64)
        squares = off * off if weights is None else weights * (off * off)
        error = sums_of_squares(squares)
        better = (error < best_error) | ((error == best_error) & (step < best))
        best[better], best_error[better] = step[better], error[better]

    best, best_error = np.zeros(len(x), np.int64), np.full(len(x), np.inf)
    for coarse in range(0, 384, 8):
        offer(np.full(len(x), coarse))
    around = best.copy()
    for fine in [*range(-7, 0), *range(1, 8)]:
        offer(np.maximum(around + fine, 1))
    r = ratio(best).astype(x.dtype)
    return low * r, high * r


def sums_of_squares(squares: np.ndarray) -> np.ndarray:
    """Row sums of (groups, n): of each chunk 16 sums of every 16th element,
    added in halves; then of the chunks in order. NumPy adds along an axis that
    is not the last in order."""
    groups, n = squares.shape
    total = np.zeros(groups)
    for at in range(0, n, CHUNK):
        chunk = squares[:, at : at + CHUNK]
        chunk = np.pad(chunk, [(0, 0), (0, -chunk.shape[1] % 16)])
        sums = chunk.reshape(groups, -1, 16).sum(axis=1)
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        total += sums[:, 0]
    return total


def _percentile(
    x: np.ndarray, p: float, symmetric: bool, weights: np.ndarray | None
) -> tuple[np.floating, np.floating]:
    """The range of x (n) that is left, without interpolation."""
    if symmetric:
        amax = _least_above(np.abs(x), p, weights)
        return -amax, amax
    p = (100.0 + p) / 2.0
    return -_least_above(-x, p, weights), _least_above(x, p, weights)


def _least_above(x: np.ndarray, p: float, weights: np.ndarray | None) -> np.floating:
    """The least value with p percent of all values, or their weight, up to it."""
    order = np.argsort(x, kind="stable")
    if weights is None:
        rank = min(max(int(np.ceil(len(x) * p / 100.0)), 1), len(x))
        return x[order[rank - 1]]
    sums = np.cumsum(weights[order])
    return x[order[np.searchsorted(sums, sums[-1] * p / 100.0)]]


def _real(x: ArrayLike) -> np.ndarray:
    """float64 as it is; float32, float16 and bfloat16, or numbers, as float32."""
    dtype = getattr(x, "dtype", None)
    return np.array(x, np.float64 if dtype == np.float64 else np.float32, order="C", ndmin=1)


def _groups(x: np.ndarray, granularity: Granularity) -> tuple[np.ndarray, np.ndarray]:
    """x as (groups, n), a short group ending in zeros; and which values are x's."""
    if isinstance(granularity, PerTensor):
        groups = x.reshape(1, -1)
    elif isinstance(granularity, PerAxis):
        groups = np.moveaxis(x, granularity.axis, 0).reshape(x.shape[granularity.axis], -1)
    else:
        k = x.shape[-1]
        n = min(granularity.group_size, k)
        missing = [(0, 0)] * (x.ndim - 1) + [(0, -k % n)]
        valid = np.pad(np.ones(x.shape, bool), missing)
        return np.pad(x, missing).reshape(-1, n), valid.reshape(-1, n)
    return groups, np.ones(groups.shape, bool)


def _weights(weight: ArrayLike, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """Weights as float64 (groups, n); a group of zeros counts as unweighted."""
    weight = np.broadcast_to(np.asarray(weight, np.float32), shape)
    if not (np.isfinite(weight) & (weight >= 0)).all() or not weight.any():
        raise ValueError("sample_weight: expected finite weights of at least 0, and one above")
    groups = _groups(weight, granularity)[0].astype(np.float64)
    unweighted = np.asarray(~groups.any(axis=1))
    if unweighted.any():
        warnings.warn(f"sample_weight: {unweighted.sum()} groups count as unweighted", UserWarning, stacklevel=3)
    return np.where(unweighted[:, None], 1.0, groups)


def _scale_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    if isinstance(granularity, PerTensor):
        return ()
    if isinstance(granularity, PerAxis):
        return (shape[granularity.axis],)
    return (*shape[:-1], -(-shape[-1] // granularity.group_size))


def _spread(values: np.ndarray, shape: tuple[int, ...], granularity: Granularity) -> np.ndarray:
    """Each group's value at each of its elements, broadcastable to shape."""
    if isinstance(granularity, PerGroup):
        return np.repeat(values, min(granularity.group_size, shape[-1]), axis=-1)[..., : shape[-1]]
    if isinstance(granularity, PerAxis):
        after = len(shape) - 1 - granularity.axis % len(shape)
        return values.reshape(-1, *[1] * after)
    return values


def round_with_feedback(
    w: ArrayLike,
    levels: ArrayLike,
    second_moments: ArrayLike,
    *,
    group_size: int | None = None,
    order: Literal["activation", "index"] = "activation",
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """`lowbit.round_with_feedback`: which of the levels (N, groups, L) each weight has.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> w, levels = np.full((1, 4), 0.4, np.float32), np.array([[[0, 1]]], np.float32)
    >>> reference.round_with_feedback(w, levels, np.ones((4, 4))).sum()
    np.uint64(2)
    """
    w, levels = np.asarray(w, np.float32), np.asarray(levels, np.float32)
    (n, k), group_size = w.shape, group_size or w.shape[1]
    moments = of_mean_1(second_moments) + 0.1 * np.eye(k)
    positions = np.argsort(-moments.diagonal(), kind="stable") if order == "activation" else np.arange(k)
    backwards = positions[::-1]
    upper = np.linalg.cholesky(moments[np.ix_(backwards, backwards)])[::-1, ::-1]
    carried = (upper / upper.diagonal()).T.astype(np.float32)
    again = (moments.T / moments.diagonal()[:, None]).astype(np.float32)
    codes, errors = np.zeros((n, k), np.uint8), np.zeros((n, k), np.float32)

    def take(column: int, total: NDArray[np.float32]) -> None:
        """Of two as near the lower, and the first of equals."""
        table = levels[:, column // group_size]
        above = (table < total[:, None]).sum(1)
        low, high = np.maximum(above - 1, 0), np.minimum(above, table.shape[1] - 1)
        below, over = (
            np.take_along_axis(table, low[:, None], 1)[:, 0],
            np.take_along_axis(table, high[:, None], 1)[:, 0],
        )
        nearer = (above > 0) & ((above == table.shape[1]) | (total - below <= over - total))
        codes[:, column] = np.where(nearer, low, high)
        errors[:, column] = w[:, column] - np.where(nearer, below, over)

    for j, column in enumerate(positions):
        total = w[:, column].copy()
        for i in range(j):
            total += errors[:, positions[i]] * carried[j, i]
        take(column, total)
    for _ in range(2):
        for j in range(k):
            total = w[:, j].copy()
            four = range(j // 4 * 4, min(j // 4 * 4 + 4, k))  # the order in which the kernel adds
            for i in [*range(four.start), *range(four.stop, k), *four]:
                if i != j:
                    total += errors[:, i] * again[j, i]
            take(j, total)
    return codes


def of_mean_1(second_moments: ArrayLike) -> NDArray[np.float64]:
    """Second moments of mean diagonal 1; the identity where all are 0."""
    moments = np.asarray(second_moments, np.float64)
    if not moments.diagonal().any():
        return np.eye(len(moments))
    moments = moments / moments.diagonal().max()
    return moments / moments.diagonal().mean()
