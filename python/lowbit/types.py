"""What the families pass around: granularities and the results of quantizing."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "ConvergenceWarning",
    "Expansion",
    "FileFormatError",
    "Granularity",
    "KMeans",
    "KMeans1D",
    "Levels",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "QParams",
    "RowCodes",
]


class FileFormatError(ValueError):
    """A file that is not what it should be: damaged, of another kind, or of a later version."""


class ConvergenceWarning(UserWarning):
    """A fit that is not what was asked for, such as fewer distinct values than levels, or points than codewords."""


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole array: x of any shape, scale of shape ()."""


@dataclass(frozen=True)
class PerAxis:
    """One scale for each index of ``axis``, the axis that keeps its own scale.

    x of shape (N, K) with ``PerAxis(0)``: scale of shape (N,).
    """

    axis: int = 0


@dataclass(frozen=True)
class PerGroup:
    """One scale for each ``group_size`` values along the last axis.

    x of shape (..., K): scale of shape (..., ceil(K / group_size)); the last
    group of a row is shorter where ``group_size`` does not divide K.
    """

    group_size: int

    def __post_init__(self) -> None:
        if isinstance(self.group_size, bool):
            raise TypeError(f"group_size: expected an int, got {self.group_size!r}")
        try:
            operator.index(self.group_size)
        except TypeError:
            raise TypeError(f"group_size: expected an int, got {self.group_size!r}") from None
        if self.group_size < 1:
            raise ValueError(f"group_size: expected at least 1, got {self.group_size}")


Granularity = PerTensor | PerAxis | PerGroup


@dataclass(frozen=True, eq=False)
class QParams:
    """How real numbers become codes: ``x ~ (code - zero_point) * scale``.

    ``scale`` is float32 and ``zero_point`` int32, both of the shape that
    ``granularity`` gives. Codes are unsigned, in ``qmin..=qmax``; a signed code
    is stored with 2**(nbits - 1) added, and its zero point in the same domain.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    nbits: int
    qmin: int
    qmax: int
    granularity: Granularity
    symmetric: bool = True


@dataclass(frozen=True, eq=False)
class Expansion:
    """An array as a sum of terms of few bits, as `lowbit.expand` made it.

    ``x ~ scales[0] * digits[0] + ... + scales[n-1] * digits[n-1] + bias``, and what
    saturation adds. A term's scale is ``2**bits`` times the next one's; a digit is a signed
    integer of ``bits`` bits.

    ``codes`` uint8 (terms, *x.shape) are the digits plus ``2**(bits - 1)``, the most
    significant first: fields of one code of ``bits * terms`` bits, whose ``zero_point``,
    uint32, and last ``scale``, float32, have the shape that ``granularity`` gives.
    ``positions`` and ``steps``, int64 (s,), are the sparse term: at these flat indices so
    many of the last scale are to be added.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint32]
    bits: int
    granularity: Granularity
    positions: NDArray[np.int64]
    steps: NDArray[np.int64]

    @property
    def terms(self) -> int:
        """How many there are."""
        return len(self.codes)

    def code(self) -> NDArray[np.int64]:
        """The code that the terms are fields of, int64 of x's shape."""
        total = np.zeros(self.codes.shape[1:], np.int64)
        for codes in self.codes:
            total = (total << self.bits) | codes
        return total

    def digits(self) -> NDArray[np.int16]:
        """The digits, int16 (terms, *x.shape), from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``."""
        return self.codes.astype(np.int16) - np.int16(1 << (self.bits - 1))

    def scales(self) -> NDArray[np.float64]:
        """Each term's scale, float64 (terms, *scale.shape)."""
        last = self.scale.astype(np.float64)
        return np.stack([last * 2.0 ** (self.bits * i) for i in reversed(range(self.terms))])

    @property
    def bias(self) -> NDArray[np.float64]:
        """What the term of ones is multiplied with, float64: 0 for a symmetric expansion."""
        return self.scale * (half_of_ones(self.bits, self.terms) - self.zero_point.astype(np.float64))

    def bound(self, terms: int | None = None) -> NDArray[np.float64]:
        """What the error of the first terms (None: of all) never exceeds, float64 of the scales' shape.

        Half of the last scale; and what the terms after them can hold. A float32 result is
        rounded once more.
        """
        count = self.terms if terms is None else operator.index(terms)
        if not 0 <= count <= self.terms:
            raise ValueError(f"terms: expected 0 to {self.terms}, got {count}")
        dropped = half_of_ones(self.bits, self.terms - count)
        return self.scale * np.float64(0.5 + 2.0**-19 + dropped)

    def __repr__(self) -> str:
        shape = self.codes.shape[1:]
        return f"Expansion(shape={shape}, bits={self.bits}, terms={self.terms}, saturated={len(self.positions)})"


def half_of_ones(bits: int, terms: int) -> int:
    """The code whose digits are all 0: ``2**(bits - 1)`` in each of so many fields."""
    return sum(1 << (bits * i + bits - 1) for i in range(terms))


@dataclass(frozen=True, eq=False)
class RowCodes:
    """Rows of activations in 8 bits, each with its own scale.

    ``codes`` uint8 (..., K), ``scale`` float32 (...), ``zero_point`` uint8
    (...), ``group_sums`` int32 (..., G): the sums of each group's codes, G = 1
    where there are no groups. A row that held NaN or Inf has scale NaN.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint8]
    group_sums: NDArray[np.int32]

    def __repr__(self) -> str:
        return f"RowCodes(shape={self.codes.shape}, groups={self.group_sums.shape[-1]})"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("RowCodes is codes with scales: use .codes, or lowbit.dequantize_rows")


@dataclass(frozen=True, eq=False)
class KMeans1D:
    """Levels for numbers: of `lowbit.kmeans_1d` and, with a leading axis of rows, of `lowbit.kmeans_1d_rows`.

    ``codebook`` (k,) ascending, float64 for float64 and wide integers, else
    float32: the exact means, rounded once. ``codes`` of the numbers' shape, uint8,
    uint16 or uint32 as ``k`` asks: each number's nearest mean, the lower of two
    that are as near. ``inertia``: the weighted sum of squared distances to the
    exact means. ``n_distinct``: distinct values of positive weight; where they are
    fewer than ``k``, the last of them fills the rest of ``codebook``.
    """

    codebook: NDArray[Any]
    codes: NDArray[Any]
    inertia: float | NDArray[np.float64]
    n_distinct: int | NDArray[np.int64]

    def __repr__(self) -> str:
        return f"KMeans1D(k={self.codebook.shape[-1]}, codes={self.codes.shape}, inertia={self.inertia!r})"


@dataclass(frozen=True, eq=False)
class KMeans:
    """A codebook for points, as `lowbit.kmeans` found it.

    ``codebook`` (k, d), float64 for float64 points, else float32; ``codes``
    (n,), the nearest codeword of each point, uint8, uint16 or uint32 as k needs;
    ``inertia``, the sum of (weighted) squared distances, ``n_iter`` the
    iterations it took, ``n_distinct`` how many codewords differ by reason of the
    points: below k where there are fewer different points.
    """

    codebook: NDArray[Any]
    codes: NDArray[Any]
    inertia: float
    n_iter: int
    n_distinct: int

    def __repr__(self) -> str:
        k, d = self.codebook.shape
        return f"KMeans(k={k}, d={d}, n={self.codes.size}, inertia={self.inertia:.6g}, n_iter={self.n_iter})"


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels as `lowbit.fit_levels` found them and, with a leading axis of rows, `lowbit.fit_levels_rows`.

    ``levels`` (k,) ascending, float64 for float64 and wide integers, else float32: rounded once.
    ``mse``: the (weighted) mean of squared distances to the nearest level before that
    rounding. ``clip``: how far from the centre the method cuts off, the parameter that it
    searched; NaN where it has none.
    """

    levels: NDArray[Any]
    mse: float | NDArray[np.float64]
    clip: float | NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Levels(levels={self.levels.shape}, mse={self.mse!r}, clip={self.clip!r})"
