"""Integer products and layers, with NumPy's own matrix product.

Codes are multiplied as float64: every sum of products of 8-bit codes is an
integer far below 2^53, so the product is exact, and NumPy is quick at it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.config import Config, Int8
from lowbit.reference.affine import quantize_rows
from lowbit.types import RowCodes

__all__ = ["QuantizedWeight", "TiledMatrix", "linear", "matmul_int8", "mlp", "quantize_weight", "tile_matrix"]

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

#: Columns of a panel, and what its columns are padded to (FORMATS.md, "Tiled int8").
PANEL, STEP = 64, 16


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
        equalizer = self.equalizer()
        return self.codes() * self.scale()[:, None] * (1 if equalizer is None else equalizer)


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
    panels = (-(-weight.k // 4) + 2) * 4 * -(-weight.n // STEP) * STEP
    tail = np.asarray(weight.tiled)[panels:]
    return np.frombuffer(tail.tobytes(), "<f4") if tail.size else None


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


def quantize_weight(w: ArrayLike, config: Config | None = None, *, isa: str | None = None) -> QuantizedWeight:
    """`lowbit.quantize_weight`: int8, one symmetric scale for each row of (N, K).

    Raises
    ------
    ValueError
        NaN or infinities.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import Int8, reference
    >>> reference.quantize_weight(np.array([[-1.27, 0.5]], np.float32), Int8(equalize=False)).codes()
    array([[-127,   50]], dtype=int8)
    """
    floats: NDArray[Any] = np.asarray(w).astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError("w: expected finite values")
    config = config or Int8()
    assert isinstance(config, Int8)
    tail = np.empty(0, np.uint8)
    if config.equalize:
        # The power of two nearest to √(a column's root mean square / their mean).
        rms = np.sqrt(np.mean(floats.astype(np.float64) ** 2, axis=0))
        steps = rms.mean() * 2.0 ** (2 * np.arange(-5, 5) + 1)
        equalizer = 2.0 ** (np.searchsorted(steps, rms, side="right") - 5).astype(np.float32)
        floats = floats / equalizer
        tail = equalizer.astype("<f4").view(np.uint8)
    rows = _rows(floats, symmetric=True)
    codes = (rows.codes ^ 0x80).view(np.int8)  # stored codes are 128 higher
    tiled = np.concatenate([_tile(codes.T, rows.scale), tail])
    return QuantizedWeight(tiled, floats.shape[1], floats.shape[0], config)


def _rows(x: NDArray[np.float32], *, symmetric: bool = False) -> RowCodes:
    """`quantize_rows` of (M, K), of no rows too."""
    if len(x):
        return quantize_rows(x, symmetric=symmetric)
    sums = np.empty((0, 1), np.int32)
    return RowCodes(np.empty(x.shape, np.uint8), np.empty(0, np.float32), np.empty(0, np.uint8), sums)


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
    weight: QuantizedWeight,
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
    5e-7 · max(1, |y|) for the others.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> w = reference.quantize_weight(np.array([[1.0, 2.0], [0.5, -1.0]], np.float32))
    >>> reference.linear(np.array([[1.0, 1.0]], np.float32), w, activation="relu").round(1)
    array([[3., 0.]], dtype=float32)
    """
    if isinstance(x, RowCodes):
        lead, dtype = x.codes.shape[:-1], np.dtype(np.float32)
        codes, scale, zero = x.codes.reshape(-1, weight.k), x.scale.reshape(-1), x.zero_point.reshape(-1)
    else:
        x = np.asarray(x)
        lead, dtype = x.shape[:-1], x.dtype
        floats, equalizer = x.reshape(-1, weight.k).astype(np.float32), _equalizer(weight)
        rows = _rows(floats if equalizer is None else floats * equalizer)
        codes, scale, zero = rows.codes, rows.scale, rows.zero_point
    w, w_scale = _untile(weight)
    centred = codes.astype(np.float64) - zero[:, None]
    y = (centred @ w.astype(np.float64)).astype(np.float32) * (scale[:, None] * w_scale)
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
    up: QuantizedWeight,
    up_bias: ArrayLike | None,
    down: QuantizedWeight,
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
