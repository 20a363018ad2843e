"""Integer matrix products, and linear layers made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit import _core
from lowbit._check import FLOATS, aligned, as_array, check_out, core_view, new_out
from lowbit.types import RowCodes
from lowbit.weights import CodebookWeight, GroupedWeight, QuantizedWeight, TiledMatrix, Weight, vector

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["linear", "matmul_int8", "mlp", "tile_matrix"]

Activation = Literal["relu", "gelu", "gelu_tanh", "silu"]

#: The greatest K whose sums are sure to fit int32: 255 · 128 · K and 128 · 128 · K below 2^31.
MAX_K_UINT8 = 65_793
MAX_K_INT8 = 131_071


def tile_matrix(b: ArrayLike) -> TiledMatrix:
    """Tiles a matrix once, for many products.

    Parameters
    ----------
    b : array_like of int8, (K, N)

    Raises
    ------
    TypeError, ValueError
        Another dtype, or not two-dimensional.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> b = lowbit.tile_matrix(np.eye(3, dtype=np.int8))
    >>> lowbit.matmul_int8(np.arange(3, dtype=np.int8)[None], b)
    array([[0, 1, 2]], dtype=int32)
    """
    b = as_array("b", b, ("int8",), min_ndim=2)
    if b.ndim != 2:
        raise ValueError(f"b: expected 2-D (K, N), got shape {b.shape}")
    k, n = b.shape
    tiled = aligned(_core.tiled_len(k, n))
    _core.tile_matrix(b, k, n, None, tiled)
    return TiledMatrix(tiled, k, n)


def matmul_int8(
    a: ArrayLike,
    b: ArrayLike | TiledMatrix,
    *,
    out: NDArray[np.int32] | NDArray[np.int64] | None = None,
    isa: str | None = None,
) -> NDArray[np.int32] | NDArray[np.int64]:
    """The exact product of two integer matrices.

    Parameters
    ----------
    a : array_like of int8 or uint8, (M, K)
    b : array_like of int8, (K, N), or TiledMatrix
        Tile a matrix that is used again (:func:`tile_matrix`).
    out : ndarray of the result's dtype, (M, N), optional
    isa : str, optional
        The instruction set, one of :func:`lowbit.available_isas`.

    Returns
    -------
    ndarray of int32, (M, N)
        int64 where K is so large that an int32 sum could overflow: past 65,793
        with uint8, 131,071 with int8. The shape decides, never the values.

    Raises
    ------
    TypeError, ValueError
        Other dtypes, shapes that do not fit, an ``out`` that does not.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.matmul_int8(np.array([[1, -2]], np.int8), np.array([[3], [4]], np.int8))
    array([[-5]], dtype=int32)
    """
    given = a
    a = as_array("a", a, ("int8", "uint8"), min_ndim=2)
    if not isinstance(b, TiledMatrix):
        b = tile_matrix(b)
    if a.ndim != 2 or a.shape[1] != b.k:
        raise ValueError(f"a, b: expected (M, K) and (K, N), got {a.shape} and {b.shape}")
    (m, k), n = a.shape, b.n
    wide = k > (MAX_K_UINT8 if a.dtype == np.uint8 else MAX_K_INT8)
    dtype = np.dtype(np.int64 if wide else np.int32)
    if out is None:
        out = new_out((m, n), dtype)
    else:
        check_out("out", out, (m, n), dtype, given, a, b.tiled)
    _core.matmul(a, m, b.tiled, k, n, out, isa)
    return out


def _kernel_floats(x: NDArray[Any]) -> NDArray[Any]:
    """float32, or bfloat16 as the core takes it."""
    if x.dtype == np.float32:
        return x
    return core_view(x) if x.dtype.name == "bfloat16" else x.astype(np.float32)


def _rows_in(x: ArrayLike | RowCodes, weight: Weight) -> tuple[Any, tuple[int, ...], np.dtype]:
    """What the core takes, the leading shape, and the dtype to answer in."""
    k = weight.k
    if isinstance(x, RowCodes):
        if x.codes.shape[-1] != k:
            raise ValueError(f"x, weight: expected (..., {k}), got {x.codes.shape}")
        if getattr(weight.config, "activation", "int8") != "int8":
            raise ValueError("x: expected floats with a weight whose activation is not 'int8', got RowCodes")
        if weight.equalizer() is not None:
            raise ValueError(
                "x: expected floats with an equalized weight, got RowCodes; use equalize=False, rotate=None in its config"
            )
        parts = x.codes, x.scale, x.zero_point
        return tuple(np.ascontiguousarray(p) for p in parts), x.codes.shape[:-1], np.dtype(np.float32)
    x = as_array("x", x, FLOATS)
    if x.shape[-1] != k:
        raise ValueError(f"x, weight: expected (..., {k}), got {x.shape}")
    return _kernel_floats(x), x.shape[:-1], x.dtype


def _bias(name: str, bias: ArrayLike | None, n: int) -> NDArray[np.float32] | None:
    return None if bias is None else vector(name, bias, n)


def _activation(name: Activation | None) -> str:
    if name not in (None, "relu", "gelu", "gelu_tanh", "silu"):
        raise ValueError(f"activation: expected None, 'relu', 'gelu', 'gelu_tanh' or 'silu', got {name!r}")
    return name or ""


def _norm(
    norm: tuple[ArrayLike, ArrayLike, float] | None, n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], float] | None:
    if norm is None:
        return None
    try:
        gamma, beta, eps = norm
    except (TypeError, ValueError):
        raise TypeError(f"norm: expected (gamma, beta, eps), got {type(norm).__name__}") from None
    weight, bias = _bias("norm: gamma", gamma, n), _bias("norm: beta", beta, n)
    if weight is None or bias is None:
        raise TypeError("norm: expected arrays for gamma and beta, got None")
    return weight, bias, float(eps)


def _weight(name: str, weight: Weight) -> Weight:
    if not isinstance(weight, (QuantizedWeight, GroupedWeight, CodebookWeight)):
        raise TypeError(f"{name}: expected a weight of lowbit.quantize_weight, got {type(weight).__name__}")
    return weight


def _floats_out(
    shape: tuple[int, ...],
    dtype: np.dtype,
    residual: ArrayLike | None,
    out: NDArray[Any] | None,
    inputs: tuple[Any, ...],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """The result, the array that the core writes (the same where it can), and the residual as it reads it."""
    if residual is not None:
        inputs = (*inputs, residual)
        residual = as_array("residual", residual, (dtype.name,))
        if residual.shape != shape:
            raise ValueError(f"residual: expected shape {shape}, got {residual.shape}")
    result = new_out(shape, dtype) if out is None else check_out("out", out, shape, dtype, *inputs)
    if dtype.name in ("float32", "bfloat16"):
        written = _kernel_floats(result)
    else:
        written = np.empty(shape, np.float32)
    return result, written, None if residual is None else _kernel_floats(residual)


def linear(
    x: ArrayLike | RowCodes,
    weight: Weight,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    residual: ArrayLike | None = None,
    norm: tuple[ArrayLike, ArrayLike, float] | None = None,
    out: NDArray[Any] | None = None,
    as_rows: bool = False,
    isa: str | None = None,
) -> NDArray[Any] | RowCodes:
    """``norm(activation(x Wᵀ + bias) + residual)`` on integers.

    Each row of ``x`` is rounded to 8 bits with a zero point within the call
    (:func:`lowbit.quantize_rows`); the product of codes is exact; scales, bias,
    activation and residual follow in float32 while the sums are in cache. A
    row's result does not depend on the other rows, and is the same bits on
    every instruction set and thread count.

    Where a weight's config takes inputs as they are (``activation=None``), the product is
    of floats, its error at most (K + 4) · 2⁻²³ of what its terms' magnitudes sum to. It is
    the same bits too, except that ``amx`` adds in an order of its own where each channel
    or group has a table of bfloat16 values, as those that lowbit makes are.

    Parameters
    ----------
    x : array_like of float32, bfloat16, float16 or float64, (..., K), or RowCodes
    weight : QuantizedWeight, GroupedWeight or CodebookWeight, (N, K)
    bias : array_like of floats, (N,), optional
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
        GELU exact or by tanh. Error: 5e-7 · max(1, |input|).
    residual : array_like of x's dtype, (..., N), optional
    norm : (gamma, beta, eps), optional
        Layer normalization of each row of outputs, after the residual: gamma
        and beta of shape (N,).
    out : ndarray of x's dtype, (..., N), optional
        float32 where ``x`` is RowCodes.
    as_rows : bool
        Answer in RowCodes, rounded to 8 bits for the next layer, instead of
        floats; then without ``residual``, ``norm`` and ``out``.
    isa : str, optional

    Returns
    -------
    ndarray of x's dtype, (..., N), or RowCodes
        A row of ``x`` with NaN or an infinity gives a row of NaN, and no error.

    Raises
    ------
    TypeError, ValueError
        Other dtypes, shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> w = lowbit.quantize_weight(np.array([[1.0, 2.0], [0.5, -1.0]], np.float32))
    >>> lowbit.linear(np.array([[1.0, 1.0]], np.float32), w, activation="relu").round(1)
    array([[3., 0.]], dtype=float32)
    """
    n = _weight("weight", weight).n
    rows, lead, dtype = _rows_in(x, weight)
    m, shape = math.prod(lead), (*lead, n)
    bias, act = _bias("bias", bias, n), _activation(activation)
    if as_rows:
        if residual is not None or norm is not None or out is not None:
            raise ValueError("as_rows: expected neither residual, norm nor out with it")
        answer = RowCodes(
            np.empty(shape, np.uint8), np.empty(lead, np.float32), np.empty(lead, np.uint8), np.empty(0, np.int32)
        )
        parts = answer.codes, answer.scale, answer.zero_point
        _core.linear(rows, m, weight._weight, weight.k, n, bias, act, None, None, parts, 0, False, isa)
        sums = answer.codes.sum(-1, dtype=np.int32, keepdims=True)
        return RowCodes(*parts, sums)
    norm = _norm(norm, n)
    result, written, residual = _floats_out(shape, dtype, residual, out, (x, weight.tiled))
    _core.linear(rows, m, weight._weight, weight.k, n, bias, act, residual, norm, written, 0, False, isa)
    if result.dtype != written.dtype and dtype.name != "bfloat16":
        result[...] = written
    return result


def mlp(
    x: ArrayLike,
    up: Weight,
    up_bias: ArrayLike | None,
    down: Weight,
    down_bias: ArrayLike | None = None,
    *,
    activation: Activation | None,
    residual: ArrayLike | None = None,
    norm: tuple[ArrayLike, ArrayLike, float] | None = None,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """Two layers as one: ``linear(linear(x, up, activation), down) + residual``.

    What lies between is rounded to 8 bits per row as :func:`linear` would do
    it and never leaves the cache: for float32 the bits are those of two calls.

    Parameters
    ----------
    x : array_like of float32, bfloat16, float16 or float64, (..., K)
    up, down : QuantizedWeight, GroupedWeight or CodebookWeight, (H, K) and (N, H)
    up_bias, down_bias : array_like of floats, (H,) and (N,), optional
    activation : {"relu", "gelu", "gelu_tanh", "silu"} or None
    residual, norm, out : optional
        As in :func:`linear`.
    isa : str, optional

    Raises
    ------
    TypeError, ValueError
        Other dtypes, shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> eye = lowbit.quantize_weight(np.eye(2, dtype=np.float32))
    >>> lowbit.mlp(np.array([[3.0, 3.0]], np.float32), eye, None, eye, activation="relu")
    array([[3., 3.]], dtype=float32)
    """
    inner, n = _weight("up", up).n, _weight("down", down).n
    if isinstance(x, RowCodes):
        raise TypeError("x: expected floats, got RowCodes")
    rows, lead, dtype = _rows_in(x, up)
    if down.k != inner:
        raise ValueError(f"up, down: expected (H, K) and (N, H), got {up.shape[::-1]} and {down.shape[::-1]}")
    m, act = math.prod(lead), _activation(activation)
    up_bias, down_bias = _bias("up_bias", up_bias, inner), _bias("down_bias", down_bias, n)
    norm = _norm(norm, n)
    result, written, residual = _floats_out((*lead, n), dtype, residual, out, (x, up.tiled, down.tiled))
    _core.mlp(
        rows, m, up.k, up._weight, up_bias, inner, act, down._weight, down_bias, n,
        residual, norm, written, 0, False, isa,
    )  # fmt: skip
    if result.dtype != written.dtype and dtype.name != "bfloat16":
        result[...] = written
    return result
