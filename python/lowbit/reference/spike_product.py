"""Products and convolutions of spikes in plain NumPy.

Sums of codes are taken in float64, in which they are exact. Sums of floats are taken input by input,
which fixes their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SpikeWeight", "spike_conv2d", "spike_matmul", "spike_operations", "tile_spike_weight"]

Pair = tuple[int, int]
NO_PADDING = ((0, 0), (0, 0))


@dataclass(frozen=True, eq=False)
class SpikeWeight:
    """`lowbit.SpikeWeight`: the same bytes."""

    tiled: NDArray[np.uint8]
    shape: tuple[int, ...]
    nbits: int

    @property
    def k(self) -> int:
        """Inputs of an output: K, or KH · KW · C."""
        return math.prod(self.shape[:-1])

    @property
    def n(self) -> int:
        """Outputs."""
        return self.shape[-1]

    def untile(self) -> NDArray[Any]:
        """The weight as it came."""
        if self.nbits == 32:
            return _untile_floats(self).reshape(self.shape)
        out = np.empty((self.k, self.n), np.int8)
        at = 0
        for first in range(0, self.n, 64):
            width, cols = _width(self, first), min(64, self.n - first)
            row_bytes = width * self.nbits // 8
            rows = self.tiled[at + 4 * width :][: self.k * row_bytes].reshape(self.k, row_bytes)
            parts = [rows >> shift & (2**self.nbits - 1) for shift in range(0, 8, self.nbits)]
            stored = np.concatenate(parts, axis=1)[:, _places(width)].astype(np.int16)
            out[:, first : first + cols] = (stored - 2 ** (self.nbits - 1))[:, :cols]
            at += 4 * width + rows.size
        return out.reshape(self.shape)


def _width(weight: SpikeWeight, first: int) -> int:
    """Columns of the panel that begins at ``first``, with padding."""
    step = {8: 32, 32: 8}.get(weight.nbits, 64)
    return -(-min(64, weight.n - first) // step) * step


def _places(width: int) -> NDArray[np.intp]:
    """In which byte of a row, one code each, a panel's columns are."""
    c = np.arange(width)
    return c // 32 * 32 + c % 8 * 4 + c % 32 // 8


def _untile_floats(weight: SpikeWeight) -> NDArray[np.float32]:
    out = np.empty((weight.k, weight.n), np.float32)
    at = 0
    for first in range(0, weight.n, 64):
        width, cols = _width(weight, first), min(64, weight.n - first)
        rows = weight.tiled[at:][: 4 * weight.k * width].view("<f4").reshape(weight.k, width)
        out[:, first : first + cols] = rows[:, :cols]
        at += 4 * rows.size
    return out


def tile_spike_weight(w: ArrayLike, nbits: int | None = None) -> SpikeWeight:
    """`lowbit.tile_spike_weight`: FORMATS.md, "Tiled spike weights".

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> reference.tile_spike_weight(np.eye(3, dtype=np.int8), 4).untile()[0]
    array([1, 0, 0], dtype=int8)
    """
    w = np.asarray(w)
    floats = w.dtype == np.float32
    weight = SpikeWeight(np.empty(0, np.uint8), w.shape, 32 if floats else nbits or 8)
    matrix = w.reshape(weight.k, weight.n)
    panels = [np.empty(0, np.uint8)]
    for first in range(0, weight.n, 64):
        width, columns = _width(weight, first), matrix[:, first : first + 64]
        cols = columns.shape[1]
        if floats:
            rows = np.zeros((weight.k, width), "<f4")
            rows[:, :cols] = columns
            panels.append(rows.view(np.uint8).ravel())
            continue
        sums = np.zeros(width, "<i4")
        sums[:cols] = columns.sum(0, dtype=np.int64)
        row_bytes = width * weight.nbits // 8
        stored = np.zeros((weight.k, 8 // weight.nbits, row_bytes), np.uint8)
        stored.reshape(weight.k, width)[:, _places(width)[:cols]] = columns.astype(np.int16) + 2 ** (weight.nbits - 1)
        shifts = np.arange(0, 8, weight.nbits, dtype=np.uint8)[:, None]
        panels += [sums.view(np.uint8), np.bitwise_or.reduce(stored << shifts, axis=1).ravel()]
    return SpikeWeight(np.concatenate(panels), weight.shape, weight.nbits)


def _product(x: NDArray[np.uint8], w: NDArray[Any], bias: ArrayLike | None) -> NDArray[Any]:
    """Rows (M, K) times (K, N)."""
    dtype = np.float32 if w.dtype == np.float32 else np.int32
    start = np.zeros(w.shape[1], dtype) if bias is None else np.asarray(bias, dtype)
    if dtype == np.int32:
        return (x.astype(np.float64) @ w.astype(np.float64) + start).astype(np.int32)
    sums = np.tile(start, (len(x), 1))
    for k, row in enumerate(w):
        at = np.flatnonzero(x[:, k])
        sums[at] += x[at, k, None].astype(np.float32) * row
    return sums


def _answer(sums: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None:
        return sums
    out[...] = sums
    return out


def spike_matmul(
    spikes: ArrayLike,
    weight: Any,
    bias: ArrayLike | None = None,
    *,
    packed: bool = False,
    counts: bool = False,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """`lowbit.spike_matmul`: ``bias + spikes @ weight``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> reference.spike_matmul([[1, 0, 1]], reference.tile_spike_weight(np.eye(3, dtype=np.int8)))
    array([[1, 0, 1]], dtype=int32)
    """
    x = np.asarray(spikes).astype(np.uint8)
    if packed:
        x = np.unpackbits(x, axis=-1, count=weight.k, bitorder="little")
    if not counts and x.size and x.max() > 1:
        raise ValueError(f"spikes: expected 0 or 1, got {x.max()}")
    sums = _product(x.reshape(math.prod(x.shape[:-1]), weight.k), weight.untile(), bias)
    return _answer(sums.reshape(*x.shape[:-1], weight.n), out)


def spike_conv2d(
    spikes: ArrayLike,
    weight: Any,
    bias: ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = NO_PADDING,
    counts: bool = False,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """`lowbit.spike_conv2d`: each place's window, times the weight.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> weight = reference.tile_spike_weight(np.ones((2, 2, 1, 1), np.int8))
    >>> reference.spike_conv2d(np.ones((2, 3, 1), np.uint8), weight).ravel()
    array([4, 4], dtype=int32)
    """
    x = np.asarray(spikes).astype(np.uint8)
    if not counts and x.size and x.max() > 1:
        raise ValueError(f"spikes: expected 0 or 1, got {x.max()}")
    windows = _windows(x, weight, stride, padding)
    rows = windows.reshape(math.prod(windows.shape[:3]), weight.k)
    sums = _product(rows, weight.untile().reshape(weight.k, weight.n), bias)
    return _answer(sums.reshape(*x.shape[:-3], *windows.shape[1:3], weight.n), out)


def _windows(x: NDArray[np.uint8], weight: Any, stride: Pair, padding: tuple[Pair, Pair]) -> NDArray[np.uint8]:
    """The windows of images, (N, OH, OW, KH, KW, C)."""
    images = np.pad(x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:]), ((0, 0), *padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(images, weight.shape[:2], axis=(1, 2))
    return windows[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)


def spike_operations(
    spikes: ArrayLike,
    weight: Any,
    *,
    packed: bool = False,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = NO_PADDING,
) -> int:
    """`lowbit.spike_operations`: the inputs that are not 0, in each window, times the outputs.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> reference.spike_operations([[1, 0, 1]], reference.tile_spike_weight(np.ones((3, 5), np.int8)))
    10
    """
    x = np.asarray(spikes).astype(np.uint8)
    if packed:
        x = np.unpackbits(x, axis=-1, count=weight.k, bitorder="little")
    if len(weight.shape) == 4:
        x = _windows(x, weight, stride, padding)
    return int(np.count_nonzero(x)) * weight.n
