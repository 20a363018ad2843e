"""Histograms of tensors' values, and the ranges that codes are to span."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch

__all__ = ["Histogram", "Method"]

Method = Literal["mse", "minmax", "percentile"]

#: Of a histogram: they are numbered from -BINS / 2, times its width, to BINS / 2.
BINS = 8192
#: What "percentile" keeps of a tensor's values, in percent.
PERCENTILE = 99.99


class Histogram:
    """Counts of values in bins of one width, a power of two that doubles as values ask for it.

    Bins are merged in pairs, so the counts depend on the values alone, not on how they
    come in parts: a merged histogram is that of all.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.histogram import Histogram
    >>> a, b, both = Histogram(), Histogram(), Histogram()
    >>> a.add(torch.tensor([0.5, 1.0]))
    >>> b.add(torch.tensor([-300.0]))
    >>> both.add(torch.tensor([-300.0, 0.5, 1.0]))
    >>> a.merge(b)
    >>> a.exponent == both.exponent, bool((a.counts == both.counts).all())
    (True, True)
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        #: A bin is ``2**exponent`` wide.
        self.exponent = -126
        self.low, self.high = math.inf, -math.inf

    def add(self, x: torch.Tensor) -> None:
        """Counts the values of a tensor, which must be finite."""
        if not x.numel():
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not math.isfinite(low) or not math.isfinite(high):
            raise ValueError("expected finite values, got NaN or an infinity")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if low or high:
            self._widen(math.frexp(max(-low, high))[1] - BINS.bit_length() + 2)
        bins = torch.floor(x.detach().double().flatten() * 2.0**-self.exponent).long() + BINS // 2
        self.counts += torch.bincount(bins, minlength=BINS).numpy()

    @property
    def filled(self) -> bool:
        """Whether it has counted anything but zeros."""
        return self.low < 0 or self.high > 0

    def merge(self, other: Histogram) -> None:
        """Counts what the other one counted."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent

    def range(self, method: Method, levels: int = 256) -> tuple[float, float]:
        """Between which values codes are to lie; 0 is among them."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or low == high:
            return low, high
        filled = np.flatnonzero(self.counts)
        counts, middles = self.counts[filled], (filled - BINS // 2 + 0.5) * 2.0**self.exponent
        if method == "percentile":
            share = (1 - PERCENTILE / 100) / 2 * counts.sum()
            below, above = np.cumsum(counts), np.cumsum(counts[::-1])
            least = middles[np.searchsorted(below, share, "right")]
            most = middles[::-1][np.searchsorted(above, share, "right")]
            return max(low, min(least, 0.0)), min(high, max(most, 0.0))
        return _least_squares(counts, np.clip(middles, self.low, self.high), low, high, levels)


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The counts of bins that are ``2**doublings`` as wide."""
    if not doublings:
        return counts.copy()
    at = np.flatnonzero(counts)
    # Past 63 doublings every bin is one of the two beside 0, as it is after that.
    to = ((at - BINS // 2) >> min(doublings, 63)) + BINS // 2
    return np.bincount(to, counts[at], minlength=BINS).astype(np.int64)


def _least_squares(
    counts: np.ndarray, middles: np.ndarray, low: float, high: float, levels: int
) -> tuple[float, float]:
    """The range within (low, high) whose rounding has the least squared error: first both ends
    by one factor, then each on its own."""

    def error(lo: float, hi: float) -> float:
        scale = (hi - lo) / (levels - 1)
        zero = np.rint(-lo / scale)
        rounded = (np.clip(np.rint(middles / scale) + zero, 0, levels - 1) - zero) * scale
        return float(counts @ np.square(rounded - middles))

    ratios = np.linspace(0.1, 1, 91)
    both = min(ratios, key=lambda r: (error(low * r, high * r), -r))
    lo, hi = low * both, high * both
    for _ in range(2 if low < 0 < high else 0):
        lo = min((low * r for r in ratios), key=lambda end: error(end, hi))
        hi = min((high * r for r in ratios), key=lambda end: error(lo, end))
    return lo, hi
