"""Affine quantization, real numbers to codes and back: FORMATS.md, "Rounding and scales"."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit import _core
from lowbit._check import FLOATS, as_array, check_int, check_out
from lowbit.types import Expansion, Granularity, PerAxis, PerGroup, PerTensor, QParams, RowCodes, half_of_ones

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = [
    "choose_qparams",
    "dequantize",
    "expand",
    "quantize",
    "quantize_rows",
    "reconstruct",
    "round_with_feedback",
]

#: Of the second moments' mean diagonal, added to the diagonal; what calibration has too few rows for counts less.
DAMPING = 0.1
#: Rounds of coordinate descent.
SWEEPS = 2

_U8, _F32, _I32 = np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.int32)
_KERNELS: dict[np.dtype[Any], str] = {np.dtype(name): name for name in ("float32", "float64", "float16")}


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
    """Chooses the scales and zero points by which `quantize` makes codes.

    Symmetric codes lie about a zero point of ``2**(nbits - 1)``, and the scale
    is the greatest magnitude over ``2**(nbits - 1) - 1``. Asymmetric codes span
    the range of the values, widened to hold 0. In every method a group of zeros
    has scale 1, and a group of one repeated value c has scale ``|c|`` and code
    ``zero_point + sign(c)``, which is exact. No scale is below ``2**-126``.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., K)
        What is to be quantized, at least 1-D with at least one value; lists of
        numbers become float32. Copied once if not C-contiguous and aligned. Not
        to be changed by another thread meanwhile.
    nbits : int
        Bits per code, 2 to 8.
    granularity : PerTensor, PerAxis or PerGroup
        Which values share a scale. A group longer than K is K long.
    symmetric : bool
        Whether the zero point is fixed in the middle.
    full_range : bool
        Symmetric codes that reach one further below zero: the scale is the
        greatest magnitude over ``(2**nbits - 1) / 2``. Asymmetric codes use
        their full range anyway.
    method : {"absmax", "percentile", "mse"}
        What the codes are to span. "absmax": all values. "percentile": this
        percentage of them, half of the rest being cut off at either end
        (symmetric: of their magnitudes), or all where that leaves nothing but
        zeros. "mse": all values or the range scaled down, by the least sum of
        squared errors over the ratios that FORMATS.md lists.
    percentile : float
        Above 0, at most 100. The value with that many at or below it; there is
        no interpolation.
    sample_weight : array_like of float32 or float64, broadcastable to x, optional
        The importance of each value to "percentile" and "mse", as float32, at
        least 0. Written out to the shape of ``x``. A group whose weights are all
        0 counts as unweighted, with one warning.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    qparams : QParams
        ``scale`` float32 and ``zero_point`` int32, of shape () for PerTensor,
        (x.shape[axis],) for PerAxis, (..., ceil(K / group_size)) for PerGroup.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, an
        argument of another type.
    ValueError
        NaN or Inf in ``x``, no values, a float64 range whose scale float32
        cannot hold, NaN, infinite, negative or only zero weights, weights for
        "absmax", an ``nbits``, axis, ``percentile`` or ``method`` out of range,
        an unknown ``isa``.

    See Also
    --------
    quantize, dequantize : What the result is for.

    References
    ----------
    The search over clipped ranges is that of R. Banner, Y. Nahshan, D. Soudry,
    "Post training 4-bit quantization of convolutional networks for
    rapid-deployment", NeurIPS 2019, by grid instead of a fitted distribution.

    Examples
    --------
    >>> import lowbit
    >>> q = lowbit.choose_qparams([[-2.54, 1.0], [0.0, 0.0]], granularity=lowbit.PerAxis(0))
    >>> q.scale, q.zero_point
    (array([0.02, 1.  ], dtype=float32), array([128, 128], dtype=int32))
    >>> q = lowbit.choose_qparams([-1.0, 2.0], 4, symmetric=False)
    >>> float(q.scale), int(q.zero_point)
    (0.20000000298023224, 5)
    """
    nbits = check_int("nbits", nbits, 2, 8)
    symmetric, full_range = _check_bool("symmetric", symmetric), _check_bool("full_range", full_range)
    if not isinstance(method, str):
        raise TypeError(f"method: expected a str, got {method!r}")
    if isinstance(percentile, (bool, np.bool_)) or not isinstance(percentile, (int, float, np.number)):
        raise TypeError(f"percentile: expected a number, got {percentile!r}")
    array, name = _real("x", x)
    layout, shape = _shapes("x", array.shape, granularity)
    weight = None if sample_weight is None else _weight(sample_weight, array.shape)
    scale, zero_point = np.empty(shape, _F32), np.empty(shape, _I32)
    unweighted = _core.choose_qparams(
        array,
        name,
        layout,
        (nbits, symmetric, full_range),
        method,
        float(percentile),
        weight,
        scale,
        zero_point,
        isa,
    )
    if unweighted:
        warnings.warn(
            f"sample_weight: {unweighted} of {scale.size} groups have only zero weights, count as unweighted",
            UserWarning,
            stacklevel=2,
        )
    qmin = 1 if symmetric and not full_range else 0
    return QParams(scale, zero_point, nbits, qmin, 2**nbits - 1, granularity, symmetric)


def quantize(
    x: ArrayLike, qparams: QParams, *, out: NDArray[np.uint8] | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """Rounds real numbers to codes.

    ``code = clamp(rint(x * inv_scale), qmin - zp, qmax - zp) + zp`` with
    ``inv_scale = float32(1) / scale``, half to even; float64 is multiplied in
    float64, the others in float32.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., K)
        Finite values, at least one. Copied once if not C-contiguous and
        aligned. Not to be changed by another thread meanwhile.
    qparams : QParams
        Its granularity has to give its scales' shape for the shape of ``x``.
    out : ndarray of uint8, shape (..., K), optional
        Receives the result. C-contiguous, and overlaps no input. What it holds
        after an error is undefined.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    codes : ndarray of uint8, shape (..., K)
        In ``qmin..=qmax``; ``out`` if given.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain,
        something else than QParams.
    ValueError
        NaN or Inf in ``x``, with their count and the first flat index; no
        values; qparams that do not fit ``x``, a scale that is not finite or
        below ``2**-126``, a zero point outside ``qmin..=qmax``; an ``out`` that
        does not fit; an unknown ``isa``.

    See Also
    --------
    choose_qparams : Where scales come from.
    dequantize : The way back.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x = np.array([-1.0, 0.0, 0.2, 2.0], np.float32)
    >>> q = lowbit.choose_qparams(x, 4, symmetric=False)
    >>> lowbit.quantize(x, q)
    array([ 0,  5,  6, 15], dtype=uint8)
    """
    array, name = _real("x", x)
    layout, scale, zero_point = _parts("x", array.shape, qparams)
    if out is None:
        out = np.empty(array.shape, _U8)
    else:
        check_out("out", out, array.shape, _U8, x, array, scale, zero_point)
    _core.quantize(array, name, layout, (qparams.qmin, qparams.qmax), scale, zero_point, out, isa)
    return out


def dequantize(
    codes: ArrayLike,
    qparams: QParams,
    *,
    dtype: DTypeLike = np.float32,
    out: NDArray[Any] | None = None,
    isa: str | None = None,
) -> NDArray[Any]:
    """The real numbers that codes stand for: ``(code - zero_point) * scale``.

    The product is rounded once to float32, then to float16 or bfloat16; for
    float64 it is exact. None exceeds the greatest finite number of its type.

    Parameters
    ----------
    codes : array_like of uint8, shape (..., K)
        Codes below ``2**nbits``, at least one. Copied once if not C-contiguous.
        Not to be changed by another thread meanwhile.
    qparams : QParams
        What `quantize` was given.
    dtype : dtype
        float32, float64, float16, or bfloat16 as ml_dtypes has it.
    out : ndarray of dtype, shape (..., K), optional
        Receives the result; without ``dtype`` said otherwise it has to be
        float32. C-contiguous, aligned, and overlaps no input. What it holds
        after an error is undefined.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    x : ndarray of dtype, shape (..., K)
        ``out`` if given.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain,
        something else than QParams.
    ValueError
        A code of ``2**nbits`` or more, no codes, qparams that do not fit, an
        ``out`` that does not fit, an unknown ``isa``.

    See Also
    --------
    quantize : The inverse, up to rounding.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> q = lowbit.choose_qparams([-1.0, 2.0], 2, symmetric=False)
    >>> lowbit.dequantize(np.array([0, 1, 2, 3], np.uint8), q)
    array([-1.,  0.,  1.,  2.], dtype=float32)
    """
    array = as_array("codes", codes, ("uint8",))
    layout, scale, zero_point = _parts("codes", array.shape, qparams)
    dtype = np.dtype(dtype)
    name = _KERNELS.get(dtype) or (dtype.name if dtype.isnative else str(dtype))
    if name not in FLOATS:
        raise TypeError(f"dtype: expected {' or '.join(FLOATS)}, got {dtype}")
    if out is None:
        out = np.empty(array.shape, dtype)
    else:
        check_out("out", out, array.shape, dtype, codes, array, scale, zero_point)
    _core.dequantize(array, layout, 2**qparams.nbits - 1, scale, zero_point, _bits(out, name), name, isa)
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
    """Writes an array as a sum of terms of few bits: a series, each term ``2**bits`` times finer.

    The terms are the digits of one code of ``bits * terms`` bits, in balanced form: every
    digit fits in its signed bits, which what residuals leave does not, and the largest
    error falls by ``2**bits`` a term. Each digit is taken from the code by itself, in any
    order.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., K)
        Finite values, at least one.
    bits : int
        Of a digit, 2 to 8.
    terms : int
        At least 1; ``bits * terms`` at most 32.
    granularity : PerTensor, PerAxis or PerGroup
        Which values share scales.
    symmetric : bool
        Digits lie about 0. Otherwise the range, widened to hold 0, is used whole, and a
        term of ones shifts it by ``bias``; 0 itself stays exact.
    clip : float, optional
        Above 0. What lies beyond so many times the root mean square of the values that
        share a scale is no reason to widen the steps: what the digits do not reach of it
        goes to the sparse term, as a multiple of the last scale.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    Expansion

    Raises
    ------
    TypeError
        Another dtype, an argument of another type.
    ValueError
        NaN or Inf in ``x``, no values, a range whose scale float32 cannot hold, bits, terms, axis or
        clip out of range, an unknown ``isa``.

    See Also
    --------
    reconstruct : The way back.

    References
    ----------
    B. Zhang et al., "FP=xINT: a low-bit series expansion algorithm for post-training quantization",
    2024; the digits are balanced here, since the paper's residuals, rounded, do not fit in their
    bits. E. Yvinec et al., "REx: data-free residual quantization error expansion", 2023, is near.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> series = lowbit.expand(np.array([-1.0, 0.3, 0.77]), 4, 2)
    >>> series.digits()
    array([[-7,  2,  6],
           [-7,  4, -4]], dtype=int16)
    >>> lowbit.reconstruct(series, terms=1).round(2), lowbit.reconstruct(series).round(3)
    (array([-0.94,  0.27,  0.81], dtype=float32), array([-1.   ,  0.303,  0.773], dtype=float32))
    >>> series.bound(terms=1).round(3), series.bound().round(4)
    (np.float64(0.071), np.float64(0.0042))
    """
    bits = check_int("bits", bits, 2, 8)
    terms = check_int("terms", terms, 1, 32 // bits)
    symmetric = _check_bool("symmetric", symmetric)
    if clip is not None:
        if isinstance(clip, (bool, np.bool_)) or not isinstance(clip, (int, float, np.number)):
            raise TypeError(f"clip: expected a number or None, got {clip!r}")
        if not 0 < clip < math.inf:
            raise ValueError(f"clip: expected above 0 and finite, got {clip}")
    array, name = _real("x", x)
    layout, shape = _shapes("x", array.shape, granularity)
    wide = as_array("x", x, FLOATS).astype(np.float64)
    if not np.isfinite(wide).all():
        raise ValueError(f"x: expected finite values, got {int((~np.isfinite(wide)).sum())} that are not")
    rows, counts = _rows(wide, granularity)
    low, high = rows.min(1), rows.max(1)
    if clip is not None:
        # Added up one after the other: NumPy's own order depends on the CPU.
        reach = clip * np.sqrt(np.add.accumulate(rows * rows, axis=1)[:, -1] / counts)
        low, high = np.maximum(low, -reach), np.minimum(high, reach)
    scale, zero_point = _series_scale(low, high, bits, terms, symmetric)
    scale, zero_point = np.asarray(scale).reshape(shape), np.asarray(zero_point).reshape(shape)
    codes = np.empty((terms, *array.shape), _U8)
    _core.expand(array, name, layout, (bits, terms), scale, zero_point, codes, isa)
    positions = steps = np.empty(0, np.int64)
    if clip is not None:
        size, zero = (_each(v, array.shape, granularity).astype(np.float64) for v in (scale, zero_point))
        whole = np.rint(wide / size)
        left = whole - np.clip(whole, -zero, 2.0 ** (bits * terms) - 1 - zero)
        if np.abs(left).max() > 2.0**53:
            raise ValueError(f"clip: {clip} leaves values of more than 2**53 steps")
        positions = np.flatnonzero(left)
        steps = left.reshape(-1)[positions].astype(np.int64)
    return Expansion(codes, scale, zero_point, bits, granularity, positions, steps)


def reconstruct(expansion: Expansion, *, terms: int | None = None, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """The array that the first terms of a series stand for, with what is saturated.

    Parameters
    ----------
    expansion : Expansion
    terms : int, optional
        How many; None: all.
    dtype : dtype
        float32 or float64: of the result, to which a float64 sum is rounded.

    Returns
    -------
    ndarray of dtype, of the shape of the array that was expanded

    Raises
    ------
    TypeError, ValueError
        No expansion, more terms than it has, another dtype.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.reconstruct(lowbit.expand([0.0, 3.0, 1.0], 2, 3, symmetric=False))
    array([0., 3., 1.], dtype=float32)
    """
    if not isinstance(expansion, Expansion):
        raise TypeError(f"expansion: expected an Expansion, got {type(expansion).__name__}")
    count = expansion.terms if terms is None else check_int("terms", terms, 0, expansion.terms)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {np.dtype(dtype)}")
    shape, bits = expansion.codes.shape[1:], expansion.bits
    scale, zero = (_each(v, shape, expansion.granularity) for v in (expansion.scale, expansion.zero_point))
    left = bits * (expansion.terms - count)
    # The digits that are left out are 0, which is half of ones.
    total = (expansion.code() >> left << left) + half_of_ones(bits, left // bits) - zero.astype(np.int64)
    total.reshape(-1)[expansion.positions] += expansion.steps
    most = np.finfo(dtype).max
    return np.clip(total * scale.astype(np.float64), -most, most).astype(dtype)  # type: ignore[no-any-return]


def _rows(x: NDArray[np.float64], granularity: Granularity) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """A row for the values that share a scale, those of a shorter group ending in zeros; and how many there are."""
    if isinstance(granularity, PerGroup):
        k = x.shape[-1]
        size = min(granularity.group_size, k)
        rows = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -k % size)]).reshape(-1, size)
        counts = np.minimum(size, k - np.arange(0, k, size))
        return rows, np.tile(counts, len(rows) // len(counts))
    axis = granularity.axis if isinstance(granularity, PerAxis) else None
    rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return rows, np.full(len(rows), rows.shape[1])


def _series_scale(
    low: NDArray[np.float64], high: NDArray[np.float64], bits: int, terms: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.uint32]]:
    """The last scale, rounded up so that the range fits, and the code of 0."""
    most, half = 2 ** (bits * terms) - 1, half_of_ones(bits, terms)
    top = most - half  # of the balanced digits
    if symmetric:
        exact = np.maximum(high, -low) / top
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        exact = high / most - low / most  # their difference may overflow
    with np.errstate(over="ignore"):
        scale = exact.astype(np.float32)
        scale = np.where(scale < exact, np.nextafter(scale, np.float32(np.inf)), scale)
    if np.isinf(scale).any():
        raise ValueError("x: expected a range whose scale float32 can hold")
    scale = np.where(exact == 0, np.float32(1), np.maximum(scale, np.float32(2.0**-126))).astype(np.float32)
    if symmetric:
        return scale, np.full(scale.shape, half, np.uint32)
    return scale, np.clip(np.rint(-low / scale.astype(np.float64)), 0, most).astype(np.uint32)


def _each(values: NDArray[Any], shape: tuple[int, ...], granularity: Granularity) -> NDArray[Any]:
    """Scales or zero points as they broadcast to the array's shape."""
    if isinstance(granularity, PerGroup):
        return np.repeat(values, min(granularity.group_size, shape[-1]), axis=-1)[..., : shape[-1]]
    if isinstance(granularity, PerAxis):
        return values.reshape([-1 if i == granularity.axis % len(shape) else 1 for i in range(len(shape))])
    return values


def quantize_rows(
    x: ArrayLike,
    *,
    nbits: int = 8,
    symmetric: bool = False,
    group_size: int | None = None,
    isa: str | None = None,
) -> RowCodes:
    """Quantizes rows of activations to 8 bits or fewer, each with a scale of its own.

    One pass that finds each row's range, rounds it as `quantize` would with
    "absmax", and sums its codes, which a product needs where there are zero
    points. A row's result does not depend on the others.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (..., K)
        At least one value. Copied once if not C-contiguous and aligned. Not to
        be changed by another thread meanwhile.
    nbits : int
        Bits per code, 2 to 8.
    symmetric : bool
        Whether the zero point is fixed at ``2**(nbits - 1)``; the code 0 is then not used.
    group_size : int, optional
        Codes of one sum; the last group of a row may be shorter. None, or more
        than K: one sum for each row.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    rows : RowCodes
        ``codes`` uint8 (..., K), ``scale`` float32 (...), ``zero_point`` uint8
        (...), ``group_sums`` int32 (..., G) with G = ceil(K / group_size). A row
        with NaN or Inf, or of float64 beyond what a float32 scale holds, has
        scale NaN and leaves the others alone.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain.
    ValueError
        No values, a ``group_size`` below 1, groups of more than 8,421,504
        codes, whose sum int32 may not hold, an unknown ``isa``.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> rows = lowbit.quantize_rows(np.array([[0.0, 1.0, 255.0], [-1.0, 0.0, 0.0]], np.float32))
    >>> rows.codes
    array([[  0,   1, 255],
           [  0, 255, 255]], dtype=uint8)
    >>> rows.zero_point, rows.group_sums
    (array([  0, 255], dtype=uint8), array([[256],
           [510]], dtype=int32))
    """
    nbits, symmetric = check_int("nbits", nbits, 2, 8), _check_bool("symmetric", symmetric)
    array, name = _real("x", x)
    _some("x", array.shape)
    *outer, k = array.shape
    group = k if group_size is None else min(check_int("group_size", group_size, 1), k)
    codes = np.empty(array.shape, _U8)
    scale, zero_point = np.empty(outer, _F32), np.empty(outer, _U8)
    sums = np.empty((*outer, -(-k // group)), _I32)
    _core.quantize_rows(array, name, k, (nbits, symmetric), group, codes, scale, zero_point, sums, isa)
    return RowCodes(codes, scale, zero_point, sums)


def _real(name: str, x: Any) -> tuple[np.ndarray, str]:
    """``x`` as a kernel takes it, and the name of its dtype."""
    array = as_array(name, x, FLOATS)
    kernel = _KERNELS.get(array.dtype, "bfloat16")
    return _bits(array, kernel), kernel


def _bits(array: np.ndarray, name: str) -> np.ndarray:
    return array if name in ("float32", "float64") else array.view(np.uint16)


def _check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return bool(value)


def _some(name: str, shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise ValueError(f"{name}: need at least 1 value, got shape {shape}")


def _shapes(
    name: str, shape: tuple[int, ...], granularity: Granularity
) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
    """The layout (outer, channels, inner, group size) and the scales' shape."""
    _some(name, shape)
    n = math.prod(shape)
    if isinstance(granularity, PerTensor):
        return (1, 1, n, n), ()
    if isinstance(granularity, PerGroup):
        k = shape[-1]
        group = min(granularity.group_size, k)
        return (1, n // k, k, group), (*shape[:-1], -(-k // group))
    if isinstance(granularity, PerAxis):
        ndim = len(shape)
        axis = check_int("axis", granularity.axis, -ndim, ndim - 1) % ndim
        inner = math.prod(shape[axis + 1 :])
        return (math.prod(shape[:axis]), shape[axis], inner, inner), (shape[axis],)
    raise TypeError(f"granularity: expected PerTensor(), PerAxis(axis) or PerGroup(group_size), got {granularity!r}")


def _parts(
    name: str, shape: tuple[int, ...], qparams: QParams
) -> tuple[tuple[int, int, int, int], np.ndarray, np.ndarray]:
    """The layout for an array of this shape, scales and zero points."""
    if not isinstance(qparams, QParams):
        raise TypeError(f"qparams: expected QParams, got {type(qparams).__name__}")
    layout, expected = _shapes(name, shape, qparams.granularity)
    check_int("qparams.nbits", qparams.nbits, 2, 8)
    check_int("qparams.qmax", qparams.qmax, 1, 2**qparams.nbits - 1)
    check_int("qparams.qmin", qparams.qmin, 0, qparams.qmax - 1)
    scale = as_array("qparams.scale", qparams.scale, ("float32",), min_ndim=0)
    zero_point = as_array("qparams.zero_point", qparams.zero_point, ("int32",), min_ndim=0)
    for field, array in (("scale", scale), ("zero_point", zero_point)):
        if array.shape != expected:
            raise ValueError(
                f"qparams.{field}: expected shape {expected} for {qparams.granularity} "
                f"and {name} of shape {shape}, got {array.shape}"
            )
    return layout, scale, zero_point


def _weight(weight: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = as_array("sample_weight", weight, ("float32", "float64"))
    if array.dtype != _F32:
        with np.errstate(over="ignore"):  # an infinity is refused
            array = array.astype(_F32)
    if array.shape == shape:
        return array
    try:
        return np.array(np.broadcast_to(array, shape), order="C")
    except ValueError:
        raise ValueError(f"sample_weight: expected a shape that broadcasts to {shape}, got {array.shape}") from None


def round_with_feedback(
    w: ArrayLike,
    levels: ArrayLike,
    second_moments: ArrayLike,
    *,
    group_size: int | None = None,
    order: Literal["activation", "index"] = "activation",
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """Rounds a weight to given levels so that its products change least.

    Column by column, each error is carried into the columns still to come through
    the second moments of the inputs (GPTQ, Frantar et al. 2022), which are damped by
    a tenth of their mean diagonal. Then every code is chosen twice more, the others
    as they are (coordinate descent).

    Parameters
    ----------
    w : array_like of float32, (N, K)
    levels : array_like of float32, (N, groups, L)
        For each row and group 1 to 256 levels, ascending.
    second_moments : array_like of float64 or float32, (K, K)
        ``x.T @ x`` of inputs x (rows, K), or any multiple of it.
    group_size : int, optional
        Columns of a group; None: all.
    order : {"activation", "index"}
        Which columns come first: those with the greatest moments, or the first.
    isa : str, optional

    Returns
    -------
    numpy.ndarray of uint8, (N, K)
        Which level each weight has.

    Raises
    ------
    TypeError, ValueError
        Shapes that do not fit, values that are not finite, levels that descend,
        moments of no inputs (not positive semidefinite).

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> w, levels = np.full((1, 4), 0.4, np.float32), np.array([[[0, 1]]], np.float32)
    >>> lowbit.round_with_feedback(w, levels, np.eye(4))
    array([[0, 0, 0, 0]], dtype=uint8)
    >>> lowbit.round_with_feedback(w, levels, np.ones((4, 4))).sum()
    np.uint64(2)
    """
    floats, tables, group = _tables(w, levels, group_size)
    n, k = floats.shape
    positions, first, again = _coefficients(check_moments(second_moments, k), order)
    codes, in_order = np.empty((n, k), np.uint8), np.empty((n, k), np.uint8)
    moved, sizes = np.ascontiguousarray(floats[:, positions]), tables.shape[1:]
    _core.round_with_feedback(moved, k, first, tables, sizes, group[positions], in_order, True, isa)
    codes[:, positions] = in_order
    for _ in range(SWEEPS):
        _core.round_with_feedback(floats, k, again, tables, sizes, group, codes, False, isa)
    return codes


def descend(
    w: ArrayLike,
    codes: NDArray[np.uint8],
    levels: ArrayLike,
    second_moments: ArrayLike,
    *,
    group_size: int | None = None,
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """Every code chosen once more, the others as they are: the last step of `round_with_feedback`."""
    floats, tables, group = _tables(w, levels, group_size)
    k = floats.shape[1]
    _, _, again = _coefficients(check_moments(second_moments, k), "index")
    codes = codes.copy()
    _core.round_with_feedback(floats, k, again, tables, tables.shape[1:], group, codes, False, isa)
    return codes


def _tables(w: Any, levels: Any, group_size: int | None) -> tuple[Any, Any, NDArray[np.uint32]]:
    """A weight and levels that are checked, and the group of each column."""
    w = as_array("w", w, FLOATS, min_ndim=2).astype(np.float32, copy=False)
    levels = as_array("levels", levels, FLOATS, min_ndim=3).astype(np.float32, copy=False)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"w: expected 2-D (N, K) with K of at least 1, got shape {w.shape}")
    n, k = w.shape
    size = k if group_size is None else check_int("group_size", group_size, 1)
    groups = -(-k // size)
    if levels.shape[:2] != (n, groups) or levels.ndim != 3 or not 1 <= levels.shape[2] <= 256:
        raise ValueError(f"levels: expected shape ({n}, {groups}, 1 to 256), got {levels.shape}")
    if not (np.isfinite(w).all() and np.isfinite(levels).all()):
        raise ValueError("w, levels: expected finite values")
    if (levels[..., 1:] < levels[..., :-1]).any():
        raise ValueError("levels: expected ascending levels in each table")
    return w, levels, (np.arange(k) // size).astype(np.uint32)


def check_moments(second_moments: ArrayLike, k: int) -> NDArray[np.float64]:
    """Second moments as float64 of mean diagonal 1; the identity where all are 0."""
    moments = as_array("second_moments", second_moments, ("float64", "float32"), min_ndim=2).astype(np.float64)
    if moments.shape != (k, k):
        raise ValueError(f"second_moments: expected shape ({k}, {k}), got {moments.shape}")
    diagonal = moments.diagonal()
    if not np.isfinite(moments).all() or (diagonal < 0).any():
        raise ValueError("second_moments: expected finite values, and none below 0 on the diagonal")
    greatest = diagonal.max()
    if greatest == 0:
        return np.eye(k)
    moments = moments / greatest  # their mean might overflow
    return moments / moments.diagonal().mean()


def _coefficients(
    moments: NDArray[np.float64], order: str
) -> tuple[NDArray[np.intp], NDArray[np.float32], NDArray[np.float32]]:
    """The columns' order, and what is carried on: to those still to come, in that
    order; to every column, in their own.

    With M = U D Uᵀ, U unit upper triangular, GPTQ's step by the inverse of M carries
    of column i's error U[i, j] into column j: no inverse is needed.
    """
    if order not in ("activation", "index"):
        raise ValueError(f"order: expected 'activation' or 'index', got {order!r}")
    damped = moments + DAMPING * np.eye(len(moments))
    diagonal = damped.diagonal()
    positions = np.argsort(-diagonal, kind="stable") if order == "activation" else np.arange(len(moments))
    try:
        lower = np.linalg.cholesky(damped[np.ix_(positions[::-1], positions[::-1])])
    except np.linalg.LinAlgError:
        raise ValueError("second_moments: expected a positive semidefinite matrix") from None
    upper = lower[::-1, ::-1]
    first = np.ascontiguousarray((upper / upper.diagonal()).T, np.float32)
    return positions, first, np.ascontiguousarray(damped.T / diagonal[:, None], np.float32)
