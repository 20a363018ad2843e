"""Integer matrix products, and linear layers made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int, check_out
from lowbit.affine import check_moments, round_with_feedback
from lowbit.config import Config, Int8, Uniform
from lowbit.types import RowCodes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
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

#: The greatest K whose sums are sure to fit int32: 255 · 128 · K and 128 · 128 · K below 2^31.
MAX_K_UINT8 = 65_793
MAX_K_INT8 = 131_071
#: The longest block of a rotation.
MAX_ROTATION = 4096

_FLOATS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, eq=False)
class _Tiled:
    """Bytes in an order that kernels read, checked."""

    tiled: NDArray[np.uint8]
    k: int
    n: int

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.k, self.n

    def __post_init__(self) -> None:
        for name in ("k", "n"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), 0, 2**63 - 1))
        tiled = as_array("tiled", self.tiled, ("uint8",))
        if tiled.ndim != 1:
            raise ValueError(f"tiled: expected 1-D, got shape {tiled.shape}")
        object.__setattr__(self, "tiled", tiled)
        sizes = self._sizes()
        if tiled.size not in sizes:
            takes = " or ".join(map(str, sizes))
            raise ValueError(f"tiled: {self.k} by {self.n} takes {takes} bytes, got {tiled.size}")

    def _sizes(self) -> tuple[int, ...]:
        raise NotImplementedError


class TiledMatrix(_Tiled):
    """An int8 matrix (K, N) in the order that the kernels read.

    ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled int8": the same
    bytes on every machine.
    """

    def _sizes(self) -> tuple[int, ...]:
        return (_core.tiled_len(self.k, self.n),)


@dataclass(frozen=True, eq=False)
class QuantizedWeight(TiledMatrix):
    """A layer's weight (N, K) in int8 with one scale for each output row.

    It is tiled as its transpose, a :class:`TiledMatrix` (K, N) that carries the
    scales, followed by K float32 if it is equalized (:class:`lowbit.Int8`).
    """

    config: Config = Int8()

    def codes(self) -> NDArray[np.int8]:
        """The codes in row order, int8 (N, K)."""
        return self._untile()[0]

    def scale(self) -> NDArray[np.float32]:
        """The rows' scales, float32 (N,)."""
        return self._untile()[1]

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rounded, float32 (K,); None for no such thing."""
        plain = _core.tiled_len(self.k, self.n)
        return None if self.tiled.size == plain else np.frombuffer(self.tiled[plain:].tobytes(), "<f4")

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that this stands for: ``codes() * scale()[:, None] * equalizer()``, float32 (N, K)."""
        weight = np.empty((self.n, self.k), np.float32)
        _core.lookup(None, self.tiled, self.k, self.n, weight)
        return weight

    def _sizes(self) -> tuple[int, ...]:
        return _core.tiled_len(self.k, self.n), _core.weight_len(self.k, self.n, True)

    def _untile(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes = np.empty((self.n, self.k), np.int8)
        scale = np.empty(self.n, np.float32)
        _core.untile(self.tiled, self.k, self.n, codes, scale)
        return codes, scale


@dataclass(frozen=True, eq=False)
class GroupedWeight(_Tiled):
    """A layer's weight (N, K) of 2 to 8 bits in groups (:class:`lowbit.Uniform`).

    ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled groups": the same
    bytes on every machine.
    """

    config: Uniform

    def __post_init__(self) -> None:
        if not isinstance(self.config, Uniform):
            raise TypeError(f"config: expected lowbit.Uniform(...), got {self.config!r}")
        super().__post_init__()
        block, told = rotation_of(self.config, self.k), int.from_bytes(self.tiled[24:28].tobytes(), "little")
        if told != block:
            raise ValueError(f"tiled: expected blocks of {block} rotated by {self.config}, got {told}")

    def _sizes(self) -> tuple[int, ...]:
        return (_core.groups_len(self.k, self.n, *_form(self.config, self.k)),)

    def codes(self) -> NDArray[np.uint8]:
        """The codes in row order, uint8 (N, K)."""
        return self._untile()[0]

    def scale(self) -> NDArray[np.float32]:
        """The groups' scales, float32 (N, groups): multipliers times the rows' scales."""
        _, multipliers, _, scale = self._untile()
        return multipliers * scale[:, None]

    def zero_point(self) -> NDArray[np.uint8]:
        """The groups' zero points, uint8 (N, groups)."""
        return self._untile()[2]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that this stands for, float32 (N, K): ``(code - zero point) *
        multiplier``, an integer, times the row's scale, rotated back, times the equalizer."""
        weight = np.empty((self.n, self.k), np.float32)
        _core.lookup(None, self.tiled, self.k, self.n, weight)
        return weight

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rotated and rounded, float32
        (K,); None for no such thing."""
        if not (self.config.equalize or rotation_of(self.config, self.k)):
            return None
        return np.frombuffer(self.tiled[self.tiled.size - 4 * self.k :].tobytes(), "<f4")

    def _untile(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
        groups = -(-self.k // self.config.group_size)
        codes = np.empty((self.n, self.k), np.uint8)
        multipliers, zeros = np.empty((self.n, groups), np.uint8), np.empty((self.n, groups), np.uint8)
        scale = np.empty(self.n, np.float32)
        _core.untile_groups(self.tiled, self.k, self.n, codes, multipliers, zeros, scale)
        return codes, multipliers, zeros, scale


Weight = QuantizedWeight | GroupedWeight


def rotation_of(config: Config, k: int) -> int:
    """Inputs of each block that is rotated; 0 where none are."""
    block = min(k & -k, MAX_ROTATION)
    return block if isinstance(config, Uniform) and config.rotate is not None and block >= 8 else 0


def _form(config: Uniform, k: int) -> tuple[tuple[int, int, bool, int, str | None], bool]:
    """A weight's form as the core knows it, and whether it is equalized."""
    rotation = rotation_of(config, k)
    return (config.nbits, config.group_size, config.symmetric, rotation, config.activation), config.equalize


def _rotated(x: NDArray[Any], block: int) -> NDArray[Any]:
    """Each block of the last axis times the Walsh-Hadamard matrix, as the core adds."""
    for stride in (2**i for i in range(block.bit_length() - 1)):
        pairs = x.reshape(-1, 2, stride)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(x.shape)
    return x


def _aligned(size: int) -> NDArray[np.uint8]:
    """Uninitialised bytes that start at a cache line, as the kernels like best."""
    raw = np.empty(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]


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
    tiled = _aligned(_core.tiled_len(k, n))
    _core.tile_matrix(b, k, n, tiled)
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
        out = np.empty((m, n), dtype)
    else:
        check_out("out", out, (m, n), dtype, given, a, b.tiled)
    _core.matmul(a, m, b.tiled, k, n, out, isa)
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
    """Quantizes and tiles a layer's weight.

    Parameters
    ----------
    w : array_like of float32, bfloat16, float16 or float64, (N, K)
        N outputs, K inputs, as `torch.nn.Linear` has it; at least one input.
    config : Config, optional
        How: :class:`lowbit.Int8` by default, or :class:`lowbit.Uniform`.
    importance : array_like of floats, (K,), optional
        How much the squared error of each input's weights counts where scales are
        searched (Uniform): the inputs' mean squares, say.
    second_moments : array_like of floats, (K, K), optional
        ``x.T @ x`` of inputs (rows, K), in place of an importance: scales are searched
        with its diagonal, and the codes chosen by :func:`lowbit.round_with_feedback`.
    order : {"activation", "index"}
        As there.
    isa : str, optional

    Returns
    -------
    QuantizedWeight, or GroupedWeight for Uniform

    Raises
    ------
    TypeError, ValueError
        Another dtype or rank, NaN or infinities, a config that is no weight's.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> w = lowbit.quantize_weight(np.array([[-1.27, 0.5]], np.float32), lowbit.Int8(equalize=False))
    >>> w.codes()
    array([[-127,   50]], dtype=int8)
    >>> config = lowbit.Uniform(4, 16, equalize=False)
    >>> lowbit.quantize_weight(np.arange(16, dtype=np.float32)[None], config).codes()
    array([[ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15]],
          dtype=uint8)
    """
    config = Int8() if config is None else config
    if not isinstance(config, (Int8, Uniform)):
        raise TypeError(f"config: expected lowbit.Int8() or lowbit.Uniform(...), got {config!r}")
    w = as_array("w", w, _FLOATS, min_ndim=2)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"w: expected 2-D (N, K) with K of at least 1, got shape {w.shape}")
    n, k = w.shape
    w = w.astype(np.float32, copy=False)
    if isinstance(config, Uniform):
        moments = equalizer = None
        block = rotation_of(config, k)
        form, equalized = _form(config, k)
        if second_moments is not None:
            if importance is not None:
                raise ValueError("importance: expected None beside second_moments, whose diagonal it is")
            moments = check_moments(second_moments, k)
            if block:
                equalizer = np.empty(k, np.float32)
                _core.groups_equalizer(w, n, k, form, equalized, moments.diagonal().copy(), equalizer)
                moments = _of_quantized(moments, equalizer, block)
            importance = moments.diagonal().astype(np.float32)
        elif importance is not None:
            importance = _vector("importance", importance, k)
        tiled = _aligned(_core.groups_len(k, n, form, equalized))
        searched = config.scale == "mse"
        _core.quantize_weight_groups(w, n, k, form, equalized, searched, importance, equalizer, tiled, isa)
        weight = GroupedWeight(tiled, k, n, config if block else replace(config, rotate=None))
        if moments is not None:
            _feed_back(w, weight, moments, order, isa)
        return weight
    for name, given in (("importance", importance), ("second_moments", second_moments)):
        if given is not None:
            raise ValueError(f"{name}: expected None with Int8, whose scales are not searched")
    tiled = _aligned(_core.weight_len(k, n, config.equalize))
    _core.quantize_weight(w, n, k, config.equalize, tiled, isa)
    return QuantizedWeight(tiled, k, n, config)


def _of_quantized(moments: NDArray[np.float64], equalizer: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    """The second moments of inputs as they are quantized; what rounding leaves below 0 is 0."""
    moments = moments * np.outer(equalizer, equalizer).astype(np.float64)
    if block:
        moments = _rotated(_rotated(moments, block).T, block)
        np.fill_diagonal(moments, np.maximum(moments.diagonal(), 0))
    return moments


def _feed_back(w: Any, weight: GroupedWeight, moments: Any, order: Any, isa: str | None) -> None:
    """Chooses the codes of a weight again, its scales and zero points as they are;
    where it is rotated, ``moments`` are of rotated inputs."""
    codes, multipliers, zeros, scale = weight._untile()
    block = rotation_of(weight.config, weight.k)
    if (equalizer := weight.equalizer()) is not None:
        if block:
            w = _rotated(w / (equalizer * np.float32(block)), block)
        else:
            w, moments = w / equalizer, _of_quantized(moments, equalizer, 0)
    form, _ = _form(weight.config, weight.k)
    steps = (np.arange(2**weight.config.nbits) - zeros[..., None].astype(np.int32)) * multipliers[..., None]
    levels = steps.astype(np.float32) * scale[:, None, None]
    codes = round_with_feedback(w, levels, moments, group_size=weight.config.group_size, order=order, isa=isa)
    size = weight.tiled.size - (0 if equalizer is None else 4 * weight.k)
    parts = codes, multipliers, zeros, scale
    _core.tile_groups(parts, weight.n, weight.k, form, weight.tiled[:size])


def _kernel_floats(x: NDArray[Any]) -> NDArray[Any]:
    """float32, or bfloat16 as the uint16 that the core knows it by."""
    if x.dtype == np.float32:
        return x
    return x.view(np.uint16) if x.dtype.name == "bfloat16" else x.astype(np.float32)


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
    x = as_array("x", x, _FLOATS)
    if x.shape[-1] != k:
        raise ValueError(f"x, weight: expected (..., {k}), got {x.shape}")
    return _kernel_floats(x), x.shape[:-1], x.dtype


def _bias(name: str, bias: ArrayLike | None, n: int) -> NDArray[np.float32] | None:
    return None if bias is None else _vector(name, bias, n)


def _vector(name: str, values: ArrayLike, n: int) -> NDArray[np.float32]:
    values = as_array(name, values, _FLOATS)
    if values.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), got {values.shape}")
    return values.astype(np.float32, copy=False)


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
    if not isinstance(weight, (QuantizedWeight, GroupedWeight)):
        raise TypeError(f"{name}: expected a QuantizedWeight or a GroupedWeight, got {type(weight).__name__}")
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
    result = np.empty(shape, dtype) if out is None else check_out("out", out, shape, dtype, *inputs)
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

    Parameters
    ----------
    x : array_like of float32, bfloat16, float16 or float64, (..., K), or RowCodes
    weight : QuantizedWeight or GroupedWeight, (N, K)
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
        _core.linear(rows, m, weight.tiled, weight.k, n, bias, act, None, None, parts, 0, False, isa)
        sums = answer.codes.sum(-1, dtype=np.int32, keepdims=True)
        return RowCodes(*parts, sums)
    norm = _norm(norm, n)
    result, written, residual = _floats_out(shape, dtype, residual, out, (x, weight.tiled))
    _core.linear(rows, m, weight.tiled, weight.k, n, bias, act, residual, norm, written, 0, False, isa)
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
    up, down : QuantizedWeight or GroupedWeight, (H, K) and (N, H)
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
        rows, m, up.k, up.tiled, up_bias, inner, act, down.tiled, down_bias, n, residual, norm, written, 0, False, isa
    )
    if result.dtype != written.dtype and dtype.name != "bfloat16":
        result[...] = written
    return result
