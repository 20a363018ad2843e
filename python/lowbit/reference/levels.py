"""Levels by their formulas, a search of the clip over the true error, and Lloyd's iterations, each
error summed over every number or, for a density, over every cell in closed form.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.reference.codebook import kmeans_1d
from lowbit.types import ConvergenceWarning, Levels

__all__ = ["boundaries", "decode", "density_levels", "encode", "fit_levels", "fit_levels_rows"]

Floats = NDArray[np.float64]

# Where the companders are flat: their levels do not change any more, in units of b and of σ.
_FAR = {"laplace": 40.0, "gauss": 12.0}


def fit_levels(
    x: ArrayLike, n_levels: int, *, method: str, pin_zero: bool = False, sample_weight: ArrayLike | None = None
) -> Levels:
    """`lowbit.fit_levels`: every clip is judged by the error of every number.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.fit_levels([-3.0, -1.0, 1.0, 3.0], 4, method="uniform").levels.round(6)
    array([-3., -1.,  1.,  3.])
    """
    x = np.asarray(x)
    wide = x.dtype == np.float64 or (x.dtype.kind in "iu" and x.dtype.itemsize >= 4)
    found = _fit(_Numbers(x, sample_weight), n_levels, method, pin_zero)
    return Levels(found.levels.astype(np.float64 if wide else np.float32), found.mse, found.clip)


def fit_levels_rows(
    x: ArrayLike, n_levels: int, *, method: str, pin_zero: bool = False, sample_weight: ArrayLike | None = None
) -> Levels:
    """`lowbit.fit_levels_rows`: `fit_levels` row by row.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.fit_levels_rows([[0.0, 1.0, 8.0], [5.0, 5.0, 7.0]], 2, method="optimal").levels
    array([[0.5, 8. ],
           [5. , 7. ]])
    """
    rows = np.asarray(x)
    weight = np.broadcast_to(1.0 if sample_weight is None else np.asarray(sample_weight), rows.shape)
    found = [
        fit_levels(row, n_levels, method=method, pin_zero=pin_zero, sample_weight=w)
        for row, w in zip(rows, weight, strict=True)
    ]
    return Levels(
        np.stack([f.levels for f in found]), np.array([f.mse for f in found]), np.array([f.clip for f in found])
    )


def density_levels(density: str, n_levels: int, *, method: str, clip: str = "search") -> Levels:
    """`lowbit.density_levels`, by plain iterations.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.density_levels("gauss", 4, method="lloyd_max").levels.round(4)
    array([-1.5104, -0.4528,  0.4528,  1.5104])
    """
    source = _Density(density)
    if clip == "model":
        alpha = _model_clip(density if method == "uniform" else method, n_levels, uniform=method == "uniform")
        levels = _compander(method, source.scale(method, 0.0), _fractions(n_levels, 0), alpha)
        return Levels(levels, source.error(levels), alpha)
    return _fit(source, n_levels, method, False)


def boundaries(levels: ArrayLike) -> NDArray[Any]:
    """`lowbit.boundaries`.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.boundaries([0.0, 1.0, 4.0])
    array([0.5, 2.5])
    """
    levels = np.sort(np.asarray(levels))
    return _at_most(_middles(levels.astype(np.float64)), levels.dtype)


def encode(x: ArrayLike, levels: ArrayLike, *, isa: str | None = None) -> NDArray[Any]:
    """`lowbit.encode`: a search among the middles, in float64.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.encode([0.4, 0.5, 0.6], [0.0, 1.0])
    array([0, 0, 1], dtype=uint8)
    """
    x, levels = np.asarray(x, np.float64), np.asarray(levels, np.float64)
    if levels.ndim == 2:
        return np.stack([encode(row, own) for row, own in zip(x, levels, strict=True)])
    distinct, first = np.unique(levels, return_index=True)
    codes = first[np.searchsorted(_middles(distinct), x)]
    return codes.astype(np.uint8 if levels.size <= 256 else np.uint16)


def decode(codes: ArrayLike, levels: ArrayLike) -> NDArray[Any]:
    """`lowbit.decode`: one index.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.decode([1, 0], [0.0, 1.0])
    array([1., 0.])
    """
    codes, levels = np.asarray(codes), np.asarray(levels)
    if codes.size and codes.max() >= levels.shape[-1]:
        raise ValueError(f"codes: expected codes below {levels.shape[-1]}, got {codes.max()}")
    return levels[codes] if levels.ndim == 1 else np.take_along_axis(levels, codes.astype(np.intp), axis=1)


# ------------------------------------------------------------------ what levels are for


class _Source(Protocol):
    """Numbers with weights, or a density."""

    reach: float

    def centre(self, method: str) -> float: ...
    def scale(self, method: str, centre: float) -> float: ...
    def quantile(self, p: float) -> float: ...
    def error(self, levels: Floats) -> float: ...
    def means(self, levels: Floats) -> Floats: ...


class _Numbers:
    def __init__(self, x: ArrayLike, weight: ArrayLike | None) -> None:
        numbers = np.asarray(x, np.float64).ravel()
        w = np.ones(numbers.size) if weight is None else np.asarray(weight, np.float64).ravel()
        self.x, index = np.unique(numbers[w > 0], return_inverse=True)
        self.w = np.bincount(index, w[w > 0])
        self.reach = float(np.abs(self.x).max())

    def centre(self, method: str) -> float:
        return self.quantile(0.5) if method == "laplace" else float(np.average(self.x, weights=self.w))

    def scale(self, method: str, centre: float) -> float:
        """The Laplace distribution's b, or σ."""
        away = np.abs(self.x - centre)
        if method == "gauss":
            return math.sqrt(np.average(away**2, weights=self.w))
        return float(np.average(away, weights=self.w))

    def quantile(self, p: float) -> float:
        """The least number with a share of at least ``p`` up to it."""
        return float(self.x[np.searchsorted(np.cumsum(self.w), p * self.w.sum())])

    def error(self, levels: Floats) -> float:
        codes = np.searchsorted(_middles(levels), self.x)
        return float(np.average((self.x - levels[codes]) ** 2, weights=self.w))

    def means(self, levels: Floats) -> Floats:
        codes = np.searchsorted(_middles(levels), self.x)
        weight = np.bincount(codes, self.w, len(levels))
        shift = np.bincount(codes, self.w * (self.x - levels[codes]), len(levels))
        return levels + np.divide(shift, weight, out=np.zeros(len(levels)), where=weight > 0)


class _Density:
    """Of mean 0 and variance 1."""

    reach = math.inf

    def __init__(self, name: str) -> None:
        self.name = name

    def centre(self, method: str) -> float:
        return 0.0

    def scale(self, method: str, centre: float) -> float:
        if method == "gauss":
            return 1.0
        return math.sqrt(0.5) if self.name == "laplace" else math.sqrt(2 / math.pi)

    def quantile(self, p: float) -> float:
        if self.name == "gauss":
            return NormalDist().inv_cdf(p)
        return math.copysign(math.log(2 * min(p, 1 - p)) / math.sqrt(2), p - 0.5) if p != 0.5 else 0.0

    def above(self, t: float) -> Floats:
        """Mass, mean times mass and square of what is above ``t``."""
        if t < 0:
            mass, first, second = self.above(-t)
            return np.array([1 - mass, first, 1 - second])
        if t == math.inf:
            return np.zeros(3)
        if self.name == "gauss":
            mass, at = math.erfc(t / math.sqrt(2)) / 2, math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
            return np.array([mass, at, mass + t * at])
        b = math.sqrt(0.5)
        mass = math.exp(-t / b) / 2
        return mass * np.array([1, t + b, t * t + 2 * b * t + 2 * b * b])

    def cells(self, levels: Floats) -> Floats:
        """The same of each level's cell."""
        return -np.diff([self.above(t) for t in (-math.inf, *_middles(levels), math.inf)], axis=0)

    def error(self, levels: Floats) -> float:
        mass, first, second = self.cells(levels).T
        return float((second - 2 * levels * first + levels**2 * mass).sum())

    def means(self, levels: Floats) -> Floats:
        mass, first, _ = self.cells(levels).T
        return first / mass


# ------------------------------------------------------------------ the methods


def _fit(source: _Source, n: int, method: str, pin_zero: bool) -> Levels:
    if isinstance(source, _Numbers):
        found = _distinct(source, n, pin_zero)
        if found is not None and (len(source.x) == 1 or method in ("optimal", "lloyd_max", "quantile")):
            return Levels(found, 0.0, math.nan)
        if method == "optimal":
            levels = kmeans_1d(source.x, n, sample_weight=source.w, pin_zero=pin_zero).codebook
            return Levels(levels, source.error(levels), math.nan)
    if method == "quantile":
        levels = np.array([source.quantile((2 * i + 1) / (2 * n)) for i in range(n)])
        if pin_zero:
            levels[np.abs(levels).argmin()] = 0.0
        return Levels(levels, source.error(levels), math.nan)
    if method == "lloyd_max":
        others = ["uniform", "laplace", "gauss", "quantile"]
        others += ["pot"] * (n <= 256) + ["apot"] * (n in _APOT)
        start = min((_fit(source, n, other, pin_zero) for other in others), key=lambda found: found.mse)
        return _lloyd(source, start.levels, pin_zero)
    about_zero = pin_zero or method in ("pot", "apot")
    centre = 0.0 if about_zero else source.centre(method)
    return min(
        (_best_clip(source, n, method, shape, centre) for shape in _shapes(method, n, pin_zero)),
        key=lambda found: found.mse,
    )


def _distinct(source: _Numbers, n: int, pin_zero: bool) -> Floats | None:
    """The distinct numbers where they are no more than the levels, the greatest again for the rest."""
    found = np.union1d(source.x, [0.0]) if pin_zero else source.x
    if len(source.x) < n:
        warnings.warn(f"{len(source.x)} distinct values for {n} levels", ConvergenceWarning, stacklevel=4)
    return np.append(found, np.full(n - len(found), found[-1])) if len(found) <= n else None


def _best_clip(source: _Source, n: int, method: str, shape: Floats, centre: float) -> Levels:
    most = float(np.abs(shape).max())
    if most == 0:
        return Levels(np.full(n, centre), source.error(np.full(n, centre)), math.nan)
    scale = source.scale(method, centre)
    if method in _FAR:
        high = _FAR[method] * scale
    elif isinstance(source, _Numbers):
        high = float(np.abs(source.x - centre).max()) / most
    else:
        high = _FAR[source.name] * source.scale(source.name, 0.0) / most  # type: ignore[attr-defined]

    def error(clip: float) -> float:
        return source.error(centre + _compander(method, scale, shape, clip))

    clip, mse = _search(error, source.scale("laplace", centre) / 2, high)
    return Levels(centre + _compander(method, scale, shape, clip), mse, clip)


def _search(error: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """The least error over 24 clips in proportion, then by golden sections between the neighbours of the best."""
    grid = low * (high / low) ** (np.arange(24) / 23)
    errors = [error(clip) for clip in grid]
    at = int(np.argmin(errors))
    found = [(errors[at], float(grid[at]))]
    a, b = grid[max(at - 1, 0)], grid[min(at + 1, 23)]
    golden = (math.sqrt(5) - 1) / 2
    left, right = b - golden * (b - a), a + golden * (b - a)
    at_left, at_right = error(left), error(right)
    for _ in range(24):
        if at_left <= at_right:
            b, right, at_right = right, left, at_left
            left = b - golden * (b - a)
            at_left = error(left)
        else:
            a, left, at_left = left, right, at_right
            right = a + golden * (b - a)
            at_right = error(right)
    found += [(at_left, float(left)), (at_right, float(right))]
    mse, clip = min(found, key=lambda pair: pair[0])
    return clip, mse


def _lloyd(source: _Source, levels: Floats, pin_zero: bool) -> Levels:
    """Every level to the mean of its cell, until that gains nothing."""
    numbers = isinstance(source, _Numbers)
    mse = source.error(levels)
    for _ in range(500 if numbers else 100_000):
        moved = source.means(levels)
        if pin_zero:
            moved[np.flatnonzero(levels == 0)[0]] = 0.0
        before, mse = mse, source.error(moved)
        if mse > before:
            return Levels(levels, before, math.nan)
        still = np.abs(moved - levels).max() < 1e-12
        levels = moved
        if (numbers and before - mse <= 1e-9 * before) or still:
            break
    return Levels(levels, mse, math.nan)


# ------------------------------------------------------------------ shapes of levels, the outermost at most 1


def _shapes(method: str, n: int, pin_zero: bool) -> list[Floats]:
    """Where levels are for a clip of 1: two where one side has a level more, else one."""
    if method == "apot":
        positive = _apot(_APOT[n])
        found = np.concatenate([-positive[:0:-1], positive])
        return [np.append(found, np.full(n - len(found), 1.0))]
    one_more = pin_zero and n % 2 == 0
    if method == "pot":
        zero = [0.0] if pin_zero or n % 2 else []
        sides = [(n // 2, n // 2 - 1), (n // 2 - 1, n // 2)] if one_more else [(n // 2, n // 2)]
        powers = 0.5 ** np.arange(n)
        return [np.concatenate([-powers[:below], zero, powers[:above][::-1]]) for below, above in sides]
    return [_fractions(n, -1), _fractions(n, 1)] if one_more else [_fractions(n, 0)]


def _fractions(n: int, shift: int) -> Floats:
    """The middles of n equal steps from -1 to 1, or half a step beside them."""
    return (2 * np.arange(n) + 1 - n + shift) / n


_APOT = {2**bits - less: bits for bits in range(2, 9) for less in (0, 1)}


def _apot(bits: int) -> Floats:
    """Sums of one of {0, 2^-i, …} from each of several terms, over the greatest sum (Li et al., 2020): 2**(bits - 1)
    values. A term of two bits has three powers beside 0; where bits - 1 is odd, the last term has one.
    """
    pairs, single = divmod(bits - 1, 2)
    terms: list[list[float]] = [[0.0] for _ in range(pairs)]
    exponent = itertools.count(1)
    for i in range(3):
        if i == 2 and single:
            terms.append([0.0, 0.5 ** next(exponent)])
        for term in terms[:pairs]:
            term.append(0.5 ** next(exponent))
    if not pairs:
        terms = [[0.0, 1.0]]
    sums = np.array(sorted(sum(powers) for powers in itertools.product(*terms)))
    return sums / sums[-1]


def _compander(method: str, scale: float, shape: Floats, clip: float) -> Floats:
    """Even steps of the compressed range [-clip, clip], expanded; without a compander, those of the range itself."""
    v = np.abs(shape)
    if method == "laplace":
        levels = -3 * scale * np.log1p(v * np.expm1(-clip / (3 * scale)))
    elif method == "gauss":
        edge = math.erf(clip / (math.sqrt(6) * scale))
        levels = np.array([math.sqrt(6) * scale * _erfinv(p * edge) if p < 1 else clip for p in v])
    else:
        levels = v * clip
    return np.copysign(levels, shape)


def _erfinv(p: float) -> float:
    return NormalDist().inv_cdf((1 + p) / 2) / math.sqrt(2)


def _model_clip(density: str, n: int, *, uniform: bool) -> float:
    """Where the noise outside the clip and inside it, as high resolution has it, sum to least."""
    b = math.sqrt(0.5)
    if density == "laplace" and not uniform:
        return 3 * b * math.log1p(n / math.sqrt(4.5))

    def noise(a: float) -> float:
        if density == "laplace":
            return 2 * b * b * math.exp(-a / b) + a * a / (3 * n * n)
        outside = (1 + a * a) * math.erfc(a / math.sqrt(2)) - math.sqrt(2 / math.pi) * a * math.exp(-a * a / 2)
        if uniform:
            return outside + a * a / (3 * n * n)
        return outside + math.sqrt(3) * math.pi * math.erf(a / math.sqrt(6)) ** 3 / (2 * n * n)

    return _search(noise, 0.1, 40.0)[0]


def _middles(levels: Floats) -> Floats:
    middles = levels[:-1] / 2 + levels[1:] / 2
    return np.where(middles < levels[1:], middles, levels[:-1])


def _at_most(x: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The greatest of ``dtype`` that is at most ``x``."""
    near = x.astype(dtype)
    return np.where(near.astype(np.float64) > x, np.nextafter(near, np.array(-np.inf, dtype)), near)
