"""Integer products and layers, with NumPy's own matrix product.

Codes are multiplied as float64: every sum of products of 8-bit codes is an
integer far below 2^53, so the product is exact, and NumPy is quick at it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.config import Codebook, Config, Int8, Uniform
from lowbit.reference.affine import of_mean_1, quantize_rows, round_with_feedback, sums_of_squares
from lowbit.types import RowCodes

__all__ = [
    "CodebookWeight",
    "GroupedWeight",
    "QuantizedWeight",
    "TiledMatrix",
    "linear",
    "matmul_int8",
    "mlp",
    "quantize_weight",
    "tile_matrix",
]

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

#: Columns of a panel, and what its columns are padded to (FORMATS.md, "Tiled int8").
PANEL, STEP = 64, 16
GREATEST = np.finfo(np.float32).max


@dataclass(frozen=True, eq=False)
class TiledMatrix:
    """`lowbit.TiledMatrix`: the same bytes."""

    tiled: NDArray[np.uint8]
    k: int
    n: int


@dataclass(frozen=True, eq=False)
class QuantizedWeight(TiledMatrix):
    """`lowbit.QuantizedWeight`: the same bytes, a weight (N, K) tiled as its transpose."""

    config: Config = Int8()

    def codes(self) -> NDArray[np.int8]:
        """The codes in row order, int8 (N, K)."""
        return _untile(self)[0].T.copy()

    def scale(self) -> NDArray[np.float32]:
        """The rows' scales, float32 (N,)."""
        return _untile(self)[1]

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rounded, float32 (K,), or None."""
        return _equalizer(self)

    def dequantize(self) -> NDArray[np.float32]:
        """``codes() * scale()[:, None] * equalizer()``, float32 (N, K)."""
        return _equalized(self.codes() * self.scale()[:, None], self.equalizer())


@dataclass(frozen=True, eq=False)
class _Grouped:
    tiled: NDArray[np.uint8]
    k: int
    n: int
    config: Any

    def codes(self) -> NDArray[np.uint8]:
        """The codes in row order, uint8 (N, K)."""
        return _untile_groups(self)[0]

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rounded, float32 (K,), or None."""
        return _equalizer(self)

    def dequantize(self) -> NDArray[np.float32]:
        """What codes stand for times the row's scale, rotated back, times the equalizer."""
        (values, scale), equalizer = _values(self), self.equalizer()
        w = values.astype(np.float32) * scale[:, None]
        if self.config.rotate is not None and equalizer is not None:
            block = _block(self.k)
            w, equalizer = _rotated(w / np.float32(block), block), equalizer * np.float32(block)
        return _equalized(w, equalizer)


@dataclass(frozen=True, eq=False)
class GroupedWeight(_Grouped):
    """`lowbit.GroupedWeight`: the same bytes."""

    config: Uniform

    def scale(self) -> NDArray[np.float32]:
        """The groups' scales, float32 (N, groups)."""
        _, multipliers, _, scale = _untile_groups(self)
        return multipliers * scale[:, None]

    def zero_point(self) -> NDArray[np.uint8]:
        """The groups' zero points, uint8 (N, groups)."""
        return _untile_groups(self)[2]


@dataclass(frozen=True, eq=False)
class CodebookWeight(_Grouped):
    """`lowbit.CodebookWeight`: the same bytes and tables. Here it is taken apart and
    multiplied; how tables are learned, `lowbit.quantize_weight` alone knows."""

    config: Codebook
    codebook: NDArray[Any]


def tile_matrix(b: ArrayLike) -> TiledMatrix:
    """`lowbit.tile_matrix`: int8 (K, N) in panels of 64 columns.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> reference.tile_matrix(np.array([[1], [2]], np.int8)).tiled[:4]
    array([3, 0, 0, 0], dtype=uint8)
    """
    b = np.asarray(b)
    k, n = b.shape
    return TiledMatrix(_tile(b, np.ones(n, np.float32)), k, n)


def _tile(b: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each panel: its columns' sums, their scales, then four rows at a time."""
    (k, n), parts = b.shape, []
    for first in range(0, n, PANEL):
        cols = min(PANEL, n - first)
        width = -(-cols // STEP) * STEP
        codes = np.zeros((-(-k // 4) * 4, width), np.int8)
        codes[:k, :cols] = b[:, first : first + cols]
        scales = np.zeros(width, "<f4")
        scales[:cols] = scale[first : first + cols]
        quads = codes.reshape(-1, 4, width).transpose(0, 2, 1)
        parts += [codes.sum(0, dtype="<i4"), scales, quads]
    return np.frombuffer(b"".join(part.tobytes() for part in parts), np.uint8)


def _untile(b: Any) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The codes (K, N) and scales (N,) of a tiled matrix."""
    codes, scale = np.empty((b.k, b.n), np.int8), np.empty(b.n, np.float32)
    depth, at = -(-b.k // 4) * 4, 0
    for first in range(0, b.n, PANEL):
        cols = min(PANEL, b.n - first)
        width = -(-cols // STEP) * STEP
        panel = np.asarray(b.tiled)[at : at + (depth + 8) * width]
        scale[first : first + cols] = panel[4 * width : 8 * width].view("<f4")[:cols]
        quads = panel[8 * width :].view(np.int8).reshape(-1, width, 4)
        codes[:, first : first + cols] = quads.transpose(0, 2, 1).reshape(depth, width)[: b.k, :cols]
        at += panel.size
    return codes, scale


def _equalizer(weight: Any) -> NDArray[np.float32] | None:
    """The K floats after the panels, if they are there."""
    if isinstance(weight.config, (Uniform, Codebook)):
        return (
            np.frombuffer(np.asarray(weight.tiled)[-4 * weight.k :].tobytes(), "<f4")
            if weight.config.equalize or weight.config.rotate is not None
            else None
        )
    panels = (-(-weight.k // 4) + 2) * 4 * -(-weight.n // STEP) * STEP
    tail = np.asarray(weight.tiled)[panels:]
    return np.frombuffer(tail.tobytes(), "<f4") if tail.size else None


def _equalized(w: NDArray[np.float32], equalizer: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Columns times the equalizer, kept within float32."""
    if equalizer is None:
        return w
    with np.errstate(over="ignore"):
        return np.clip(w * equalizer, -GREATEST, GREATEST)


def matmul_int8(
    a: ArrayLike,
    b: ArrayLike | TiledMatrix,
    *,
    out: NDArray[np.int32] | NDArray[np.int64] | None = None,
    isa: str | None = None,
) -> NDArray[np.int32] | NDArray[np.int64]:
    """`lowbit.matmul_int8`: exact; int64 where an int32 sum could overflow.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> reference.matmul_int8(np.array([[1, -2]], np.int8), np.array([[3], [4]], np.int8))
    array([[-5]], dtype=int32)
    """
    a = np.asarray(a)
    b = _untile(b)[0] if hasattr(b, "tiled") else np.asarray(b)
    limit = 65_793 if a.dtype == np.uint8 else 131_071
    dtype = np.int64 if a.shape[1] > limit else np.int32
    c: NDArray[Any] = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)
    if out is None:
        return c
    out[...] = c
    return out


def quantize_weight(
    w: ArrayLike,
    config: Config | None = None,
    *,
    importance: ArrayLike | None = None,
    second_moments: ArrayLike | None = None,
    order: Literal["activation", "index"] = "activation",
    isa: str | None = None,
) -> QuantizedWeight | GroupedWeight:
    """`lowbit.quantize_weight` of (N, K): int8, or groups of 2 to 8 bits.

    Raises
    ------
    ValueError
        NaN or infinities.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import Int8, Uniform, reference
    >>> reference.quantize_weight(np.array([[-1.27, 0.5]], np.float32), Int8(equalize=False)).codes()
    array([[-127,   50]], dtype=int8)
    >>> reference.quantize_weight(np.arange(8, dtype=np.float32)[None], Uniform(3, 8, equalize=False)).codes()
    array([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=uint8)
    """
    floats: NDArray[Any] = np.asarray(w).astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError("w: expected finite values")
    config = config or Int8()
    assert isinstance(config, (Int8, Uniform))
    if isinstance(config, Uniform) and floats.shape[1] % 8:
        config = replace(config, rotate=None)
    block = _block(floats.shape[1]) if isinstance(config, Uniform) and config.rotate is not None else 0
    tail = np.empty(0, np.uint8)
    moments = None if second_moments is None else of_mean_1(second_moments)
    if moments is not None:
        importance = moments.diagonal()
    counts = np.ones(floats.shape[1], np.float32) if importance is None else np.asarray(importance).astype(np.float32)
    if config.equalize or block:
        equalizer = np.ones(floats.shape[1], np.float32)
        if config.equalize:
            equalizer = _made_alike(floats, 4 if isinstance(config, Uniform) else 1, block > 0, moments)
        if block:
            equalizer *= _signs(floats.shape[1])
        # Only ratios count: with the greatest between 1/2 and 1 none overflows.
        counts = np.ldexp(counts, -np.frexp(counts.max(initial=0))[1]) * (equalizer * equalizer)
        floats = floats / equalizer
        moments = None if moments is None else moments * np.outer(equalizer, equalizer).astype(np.float64)
        if block:
            floats, equalizer = _rotated(floats, block), equalizer / np.float32(block)
            counts = np.repeat(_rotated(counts, block)[::block] / np.float32(block), block)
        tail = equalizer.astype("<f4").view(np.uint8)
    if moments is not None and block:
        moments = _rotated(_rotated(moments / block**2, block).T, block)
        np.fill_diagonal(moments, np.maximum(moments.diagonal(), 0))
        counts = moments.diagonal().astype(np.float32)
        counts = np.ldexp(counts, -np.frexp(counts.max(initial=0))[1])
    if isinstance(config, Uniform):
        chosen, multipliers, zeros, scale = _grouped(floats, config, counts)
        if moments is not None:
            steps = (np.arange(2**config.nbits) - zeros[..., None].astype(int)) * multipliers[..., None]
            levels = steps.astype(np.float32) * scale[:, None, None]
            chosen = round_with_feedback(floats, levels, moments, group_size=config.group_size, order=order)
        tiled = np.concatenate([_tile_groups(chosen, multipliers, zeros, scale, config), tail])
        return GroupedWeight(tiled, floats.shape[1], floats.shape[0], config)
    rows = _rows(floats, symmetric=True)
    codes = (rows.codes ^ 0x80).view(np.int8)  # stored codes are 128 higher
    tiled = np.concatenate([_tile(codes.T, rows.scale), tail])
    return QuantizedWeight(tiled, floats.shape[1], floats.shape[0], config)


def _made_alike(
    w: NDArray[np.float32], fine: int, rotated: bool, moments: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """The power of 2^(1/fine) nearest to a power of each column's root mean square
    over their mean: to its square root for int8, to its 3/4 for groups; where they are
    rotated and inputs are known, to the fourth root of its cube over the input's."""
    rms = np.sqrt(np.mean(w.astype(np.float64) ** 2, axis=0))
    size = rms / rms.mean() if rms.any() else np.ones_like(rms)
    steps = np.arange(-5 * fine, 5 * fine)
    # c² for int8, c⁸ for groups: the next power of 2^(2 / fine) is past the middle.
    squared = size if fine == 1 else size**6
    if rotated and moments is not None:
        squared = squared / np.maximum(moments.diagonal(), 2**-10)
    power = np.searchsorted(2.0 ** (2 * steps + 1), squared, side="right") - 5 * fine
    quarters = np.array([1, 2**0.25, 2**0.5, 2**0.75], np.float32)[power % fine * (4 // fine)]
    return (quarters * 2.0 ** (power // fine)).astype(np.float32)


#: Bits of the planes in which codes of a width are stored.
PLANES = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (4, 4)}


def _group_size(config: Any, k: int) -> int:
    """Codes of a group: all of a row where the config names no number."""
    return -(-k // 16) * 16 if config.group_size is None else int(config.group_size)


def _symmetric(config: Any) -> bool:
    """Whether zero points are not stored."""
    return isinstance(config, Codebook) or bool(config.symmetric)


def _block(k: int) -> int:
    """Inputs that are rotated together: the largest power of two that divides K."""
    return min(k & -k, 4096)


def _signs(k: int) -> NDArray[np.float32]:
    """-1 where the highest bit of splitmix64's number is set, else 1."""
    z = np.arange(1, k + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return np.where((z ^ z >> np.uint64(31)) >> np.uint64(63), np.float32(-1), np.float32(1))


def _rotated(x: NDArray[Any], block: int) -> NDArray[Any]:
    """Each block of the last axis times the Walsh-Hadamard matrix: for each stride,
    elements i and i + stride become their sum and their difference."""
    stride = 1
    while stride < block:
        pairs = x.reshape(-1, 2, stride)
        with np.errstate(over="ignore", invalid="ignore"):
            both = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        x, stride = np.stack(both, 1).reshape(x.shape), 2 * stride
    return x


Parts = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]


def _grouped(w: NDArray[np.float32], config: Uniform, counts: NDArray[np.float32]) -> Parts:
    """Codes (N, K), multipliers and zero points (N, groups), scales (N,): every
    multiplier and zero point that FORMATS.md names is tried on all groups at once."""
    (n, k), g = w.shape, min(config.group_size, w.shape[1])
    qmax, middle = np.float32(2**config.nbits - 1), 2 ** (config.nbits - 1)
    pad = [(0, 0), (0, -k % g)]
    x = np.pad(w, pad).reshape(n, -1, g)  # zeros have no error
    counts = np.pad(counts[None], pad).reshape(1, -1, g)
    low, high = np.minimum(x.min(-1), 0), np.maximum(x.max(-1), 0)
    step = np.maximum(high, -low) / np.float32(middle - 1) if config.symmetric else high / qmax - low / qmax
    most = 63 if config.nbits == 8 else 255
    scale = np.maximum(step.max(1) / np.float32(most), np.float32(2.0**-126))
    whole = np.clip(np.ceil(step / scale[:, None]), 1, most).astype(int)

    error, m, z = np.full(whole.shape, np.inf), np.zeros_like(whole), np.full(whole.shape, middle)

    def try_all(multiplier: NDArray[Any], zero: NDArray[Any] | int, allowed: NDArray[np.bool_]) -> None:
        nonlocal error, m, z
        zero = np.broadcast_to(zero, whole.shape)
        below = zero[..., None].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows has no finite error
            by = (multiplier.astype(np.float32) * scale[:, None])[..., None]
            off = x - np.clip(np.rint(x * (1 / by)), -below, qmax - below) * by
            squares = counts * (off.astype(np.float64) * off)
            found = sums_of_squares(squares.reshape(-1, g)).reshape(whole.shape)
        better = allowed & (found < error)
        error, m, z = np.where(better, found, error), np.where(better, multiplier, m), np.where(better, zero, z)

    for i in range(1 if config.nbits == 8 or config.scale == "absmax" else 16):
        multiplier = whole - i * whole // 32
        by = multiplier.astype(np.float32) * scale[:, None]
        ends = np.minimum(np.rint(-low / by), qmax), np.maximum(qmax - np.rint(high / by), 0)
        if config.scale == "absmax":
            m, z = multiplier, np.full(whole.shape, middle) if config.symmetric else ends[0].astype(int)
            break
        for zero in [middle] if config.symmetric else range(int(qmax) + 1):
            inside = (zero >= np.minimum(*ends)) & (zero <= np.maximum(*ends))
            try_all(multiplier, zero, inside | config.symmetric)
    best_m, best_z, apart = m, z, whole // 32 * (config.scale == "mse")
    for d in range(-apart.max(initial=0), apart.max(initial=0) + 1):
        multiplier = best_m + d
        near = (abs(d) <= apart) & (multiplier >= 1) & (multiplier <= most)
        for zero in [best_z] if config.symmetric else [best_z - 1, best_z, best_z + 1]:
            try_all(np.maximum(multiplier, 1), zero, near & (zero >= 0) & (zero <= qmax))
    m, z = np.where(low == high, 0, m), np.where(low == high, middle, z)
    below = z[..., None].astype(np.float32)
    inv_scale = 1 / (np.maximum(m, 1).astype(np.float32) * scale[:, None])[..., None]
    codes = np.clip(np.rint(x * inv_scale), -below, qmax - below) + below
    return codes.reshape(n, -1)[:, :k].astype(np.uint8), m.astype(np.uint8), z.astype(np.uint8), scale


def _tile_groups(
    codes: NDArray[np.uint8],
    multipliers: NDArray[np.uint8],
    zeros: NDArray[np.uint8],
    scale: NDArray[np.float32],
    config: Uniform,
) -> NDArray[np.uint8]:
    """A header; and each panel: its columns' scales and sums, the groups' multipliers
    and zero points, and the codes, 32 rows at a time, in :data:`PLANES`."""
    n, k = codes.shape
    values = _integers(codes, multipliers, zeros, config.group_size)
    reach = max(int(np.maximum(sign * values, 0).sum(1).max(initial=0)) for sign in (1, -1))
    reach = min(reach, 2**32 - 1)
    inputs = ("int8", "int8_group", None).index(config.activation)
    block = _block(k) if config.rotate is not None else 0
    header = np.array([config.nbits, config.group_size, config.symmetric, reach, block, inputs], "<u4")
    parts = [b"lowbit g", header.tobytes(), bytes(32)]
    for first in range(0, n, PANEL):
        rows = slice(first, min(first + PANEL, n))
        width = -(-(rows.stop - first) // STEP) * STEP
        pad = [(0, width - (rows.stop - first)), (0, 0)]
        parts += [np.pad(scale[rows], pad[0]).astype("<f4").tobytes()]
        parts += [np.pad(values[rows].sum(1), pad[0]).astype("<i4").tobytes()]
        parts += [np.pad(multipliers[rows], pad).T.tobytes()]
        if not config.symmetric:
            bits = np.pad(zeros[rows], pad).T[..., None] >> np.arange(config.nbits) & 1
            parts += [np.packbits(bits.reshape(len(bits), -1), axis=1, bitorder="little").tobytes()]
        quads = np.pad(codes[rows], [pad[0], (0, -k % 32)]).T.reshape(-1, 8, 4, width).swapaxes(2, 3)
        planes, up = [], 0
        for size in PLANES[config.nbits]:
            shifts = size * np.arange(8 // size)[:, None, None]
            part = (quads >> up & (1 << size) - 1).reshape(len(quads), size, 8 // size, width, 4)
            planes.append((part << shifts).sum(2).astype(np.uint8))
            up += size
        parts += [np.concatenate(planes, 1).tobytes()]
    return np.frombuffer(b"".join(parts), np.uint8)


def _untile_groups(weight: Any) -> Parts:
    """Codes (N, K), multipliers and zero points (N, groups), scales (N,)."""
    n, k, nbits = weight.n, weight.k, weight.config.nbits
    groups = -(-k // _group_size(weight.config, k))
    codes, scale = np.empty((n, k), np.uint8), np.empty(n, np.float32)
    multipliers, zeros = np.full((2, n, groups), 2 ** (nbits - 1), np.uint8)
    tiled, at = np.asarray(weight.tiled), 64

    def take(size: int) -> NDArray[np.uint8]:
        nonlocal at
        at += size
        return tiled[at - size : at]

    for first in range(0, n, PANEL):
        cols = min(PANEL, n - first)
        rows, width = slice(first, first + cols), -(-cols // STEP) * STEP
        scale[rows] = take(4 * width).view("<f4")[:cols]
        take(4 * width)
        multipliers[rows] = take(groups * width).reshape(groups, width).T[:cols]
        if not _symmetric(weight.config):
            bits = np.unpackbits(take(groups * width * nbits // 8).reshape(groups, -1), axis=1, bitorder="little")
            zeros[rows] = (bits.reshape(groups, width, nbits) << np.arange(nbits)).sum(2).T[:cols]
        planes = take(-(-k // 32) * 4 * width * nbits).reshape(-1, nbits, 1, width, 4)
        quads, vector, up = np.zeros((len(planes), 8, width, 4), np.uint8), 0, 0
        for size in PLANES[nbits]:
            shifts = size * np.arange(8 // size)[:, None, None]
            part = planes[:, vector : vector + size] >> shifts & (1 << size) - 1
            quads |= (part << up).astype(np.uint8).reshape(quads.shape)
            vector, up = vector + size, up + size
        codes[rows] = quads.swapaxes(2, 3).reshape(-1, width)[:k, :cols].T
    return codes, multipliers, zeros, scale


def _integers(codes: Any, multipliers: Any, zeros: Any, group_size: int) -> NDArray[np.int64]:
    """(code - zero point) * multiplier, (N, K)."""
    k = codes.shape[1]
    m, z = (np.repeat(part.astype(np.int64), group_size, axis=1)[:, :k] for part in (multipliers, zeros))
    return m * (codes - z)


def _looked_up(weight: Any) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """What codes stand for, (N, K), in units of the rows' scales (N,): an entry of the group's
    table times its multiplier; integers where entries are."""
    config, k = weight.config, weight.k
    codes, multipliers, _, scale = _untile_groups(weight)
    size, row = _group_size(config, k), np.arange(weight.n)[:, None]
    group = np.arange(k) // size
    table = {"tensor": 0, "channel": row, "group": row * multipliers.shape[1] + group}[config.granularity]
    entries = np.asarray(weight.codebook)[table, codes, 0]
    m = multipliers[:, group].astype(np.int64) - 128
    if entries.dtype == np.int8:
        return (entries * m + 64) >> 7, scale
    return entries.astype(np.float32) * m.astype(np.float32), scale


def _values(weight: Any) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """A layer's weight (N, K) as integers, or floats for inputs that are not rounded, and
    what they are multiplied with (N,)."""
    if isinstance(weight.config, Codebook):
        return _looked_up(weight)
    if isinstance(weight.config, Uniform):
        codes, multipliers, zeros, scale = _untile_groups(weight)
        return _integers(codes, multipliers, zeros, weight.config.group_size), scale
    int8, scale = _untile(weight)
    return int8.T.astype(np.int64), scale


def _rows(x: NDArray[np.float32], *, symmetric: bool = False) -> RowCodes:
    """`quantize_rows` of (M, K), of no rows too."""
    if len(x):
        return quantize_rows(x, symmetric=symmetric)
    sums = np.empty((0, 1), np.int32)
    return RowCodes(np.empty(x.shape, np.uint8), np.empty(0, np.float32), np.empty(0, np.uint8), sums)


def _centred(codes: Any, zero: Any, w: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows of codes less their zero points times integers, exact, then rounded."""
    return ((codes.astype(np.float64) - zero[:, None]) @ w.T.astype(np.float64)).astype(np.float32)


def _products(x: NDArray[np.float32], w: NDArray[np.int64], config: Config) -> tuple[Any, Any]:
    """Rows of floats, taken as the config says, times integers; and the rows' scales."""
    inputs = getattr(config, "activation", "int8")
    ones = np.ones(len(x), np.float32)
    if inputs == "int8":
        rows = _rows(x)
        return _centred(rows.codes, rows.zero_point, w), rows.scale
    if inputs is None:
        y = (x.astype(np.float64) @ w.T.astype(np.float64)).astype(np.float32)
        return y, np.where(np.isfinite(x).all(1), ones, np.float32(np.nan))
    total = np.zeros((len(x), len(w)), np.float32)
    for at in range(0, x.shape[1], 32):
        rows = _rows(x[:, at : at + 32])
        total += _centred(rows.codes, rows.zero_point, w[:, at : at + 32]) * rows.scale[:, None]
    return total, ones


def _activate(y: NDArray[np.float32], name: Activation | None) -> NDArray[np.float32]:
    """Exactly where it can be, else by float64."""
    if name is None:
        return y
    if name == "relu":
        return np.where(y < 0, np.float32(0), y)
    z = y.astype(np.float64)
    if name == "gelu":
        z = z * 0.5 * (1 + _erf(z / math.sqrt(2)))
    else:
        s = z if name == "silu" else 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
        z = z / (1 + np.exp(-np.clip(s, -700, 700)))
    return z.astype(np.float32)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normalize(y: NDArray[np.float32], norm: tuple[ArrayLike, ArrayLike, float]) -> NDArray[np.float32]:
    """Layer normalization of each row of (M, N)."""
    gamma, beta = (np.asarray(part).astype(np.float32) for part in norm[:2])
    n = np.float32(y.shape[1])
    centred = y - (_sum(y) / n)[:, None]
    rstd = 1 / np.sqrt(_sum(centred * centred) / n + np.float32(norm[2]))
    return centred * rstd[:, None] * gamma + beta


def _sum(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each row's sum: element i goes to partial sum i % 16, and those are added pairwise."""
    m, n = x.shape
    padded = np.zeros((m, -(-n // 16) * 16), np.float32)
    padded[:, :n] = x
    sums = np.zeros((m, 16), np.float32)
    for first in range(0, n, 16):
        sums += padded[:, first : first + 16]
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0]


def linear(
    x: ArrayLike | RowCodes,
    weight: QuantizedWeight | GroupedWeight | CodebookWeight,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    norm: tuple[ArrayLike, ArrayLike, float] | None = None,
    out: NDArray[Any] | None = None,
    as_rows: bool = False,
    isa: str | None = None,
) -> NDArray[Any] | RowCodes:
    """`lowbit.linear`: ``norm(activation(x Wᵀ + bias) + residual)`` on codes.

    The kernels' bits where the activation is None or "relu"; theirs to within
    5e-7 · max(1, |y|) for the others. With a config of activation None the product is exact and rounded once, the kernels' is within
    K · 2^-24 · |x| |W|ᵀ of it.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> w = reference.quantize_weight(np.array([[1.0, 2.0], [0.5, -1.0]], np.float32))
    >>> reference.linear(np.array([[1.0, 1.0]], np.float32), w, activation="relu").round(1)
    array([[3., 0.]], dtype=float32)
    """
    w, w_scale = _values(weight)
    if isinstance(x, RowCodes):
        lead, dtype = x.codes.shape[:-1], np.dtype(np.float32)
        codes, scale, zero = x.codes.reshape(-1, weight.k), x.scale.reshape(-1), x.zero_point.reshape(-1)
        sums = _centred(codes, zero, w)
    else:
        x = np.asarray(x)
        lead, dtype = x.shape[:-1], x.dtype
        floats, equalizer = x.reshape(-1, weight.k).astype(np.float32), _equalizer(weight)
        if equalizer is not None:
            floats = floats * equalizer
        if getattr(weight.config, "rotate", None) is not None:
            floats = _rotated(floats, _block(weight.k))
        sums, scale = _products(floats, w, weight.config)
    y = sums * (scale[:, None] * w_scale)
    if bias is not None:
        y = y + np.asarray(bias).astype(np.float32)
    y = _activate(y, activation)
    if as_rows:
        rows = _rows(y)
        return RowCodes(
            rows.codes.reshape(*lead, weight.n),
            rows.scale.reshape(lead),
            rows.zero_point.reshape(lead),
            rows.group_sums.reshape(*lead, rows.group_sums.shape[-1]),
        )
    if residual is not None:
        y = y + np.asarray(residual).reshape(y.shape).astype(np.float32)
    if norm is not None:
        y = _normalize(y, norm)
    y = y.reshape(*lead, weight.n).astype(dtype)
    if out is None:
        return y
    out[...] = y
    return out


def mlp(
    x: ArrayLike,
    up: QuantizedWeight | GroupedWeight | CodebookWeight,
    up_bias: ArrayLike | None,
    down: QuantizedWeight | GroupedWeight | CodebookWeight,
    down_bias: ArrayLike | None = None,
    *,
    activation: Activation | None,
    residual: ArrayLike | None = None,
    norm: tuple[ArrayLike, ArrayLike, float] | None = None,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """`lowbit.mlp`: two layers, with what lies between rounded to 8 bits per row.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> eye = reference.quantize_weight(np.eye(2, dtype=np.float32))
    >>> reference.mlp(np.array([[3.0, 3.0]], np.float32), eye, None, eye, activation="relu")
    array([[3., 3.]], dtype=float32)
    """
    x = np.asarray(x)
    hidden: Any = linear(x.astype(np.float32), up, up_bias, activation=activation)
    y: Any = linear(hidden, down, down_bias, residual=residual, norm=norm)
    y = y.astype(x.dtype)
    if out is None:
        return y
    out[...] = y
    return out
