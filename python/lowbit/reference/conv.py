"""The arithmetic of integer networks on batches, channels last.

Sums of products are taken as float64, in which they are exact; each rounding
is written as FORMATS.md, "Integer networks", defines it. float32 and float64
below are IEEE 754's: the same bits on every platform.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.reference.affine import quantize_rows
from lowbit.types import RowCodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

__all__ = [
    "add",
    "average_pool2d",
    "conv2d",
    "dequantize_codes",
    "fixed_point",
    "fully_connected",
    "max_pool2d",
    "multiplier",
    "power_of_two",
    "quantize_codes",
    "quantize_images",
    "requantize",
    "requantize_fixed_point",
    "requantize_power_of_two",
    "softmax",
]

Pair = tuple[int, int]
NO_PADDING = ((0, 0), (0, 0))
INT32 = np.iinfo(np.int32)


def conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[np.int32] | None = None,
    *,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = NO_PADDING,
    dilation: Pair = (1, 1),
    groups: int = 1,
    x_zero_point: int = 0,
    weight_zero_point: int = 0,
    isa: str | None = None,
) -> NDArray[np.int32]:
    """Sums of products of codes less their zero points; padding is the real number 0.

    Parameters
    ----------
    x : ndarray of int8 or uint8, shape (N, H, W, C)
        The batch.
    weight : ndarray of int8 or uint8, shape (O, KH, KW, C / groups)
        Output o reads the inputs of group ``o // (O / groups)``.
    bias : ndarray of int32, shape (O,), or None
        Where the sums start.
    stride, dilation : pair of int
        Along H and W.
    padding : pair of pairs of int
        Before and after H, before and after W.
    groups : int
        C for a depthwise convolution.
    x_zero_point, weight_zero_point : int
        The codes of 0.

    Returns
    -------
    sums : ndarray of int32, shape (N, OH, OW, O)
        Modulo 2^32, if any should not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import conv2d
    >>> x = np.array([1, 2, 3, 4], np.int8).reshape(1, 2, 2, 1)
    >>> conv2d(x, np.ones((1, 2, 2, 1), np.int8), np.array([100], np.int32)).ravel()
    array([110], dtype=int32)
    """
    n_out, height, width, depth = weight.shape
    centred = np.pad(x.astype(np.float64) - x_zero_point, ((0, 0), *padding, (0, 0)))
    taps = (weight.astype(np.float64) - weight_zero_point).reshape(groups, -1, height, width, depth)
    sums: Any = 0.0
    for (i, j), seen in _windows(centred, (height, width), stride, dilation):
        if groups == 1:
            sums = sums + seen @ taps[0, :, i, j].T
        else:
            grouped = seen.reshape(*seen.shape[:3], groups, depth)
            part = np.einsum("nhwgc,goc->nhwgo", grouped, taps[:, :, i, j])
            sums = sums + part.reshape(*seen.shape[:3], n_out)
    return _with_bias(sums, bias)


def quantize_images(
    x: NDArray[Any], feedback: NDArray[np.float32], *, nbits: int = 8, isa: str | None = None
) -> RowCodes:
    """`lowbit.quantize_images`: images (N, H, W, C), each code making good the errors before it.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import reference
    >>> image = np.array([3, 0.4, 0.4, 0.4], np.float32).reshape(1, 1, 4, 1)
    >>> reference.quantize_images(image, np.float32([0.5, 0, 0]).reshape(1, 1, 3, 1), nbits=2).codes
    array([[3, 0, 1, 0]], dtype=uint8)
    """
    n, height, width, channels = x.shape
    rows = quantize_rows(x.reshape(n, -1).astype(np.float32), nbits=nbits)
    above, beside = feedback.shape[1] - 1, feedback.shape[2] // 2
    inverse, zero_point = np.float32(1) / rows.scale, rows.zero_point.astype(np.float32)
    errors = np.zeros((n, above + height, width + 2 * beside, channels), np.float32)
    codes = np.zeros(x.shape, np.uint8)
    for i, y, column, channel in np.ndindex(n, height, width, channels):
        if np.isnan(rows.scale[i]):
            continue
        # Later codes have no errors yet.
        window = errors[i, y : y + above + 1, column : column + 2 * beside + 1]
        total = np.float32(0)
        for error, coefficient in zip(window.ravel(), feedback[channel].ravel(), strict=True):
            total += coefficient * error
        value = np.float32(x[i, y, column, channel]) * inverse[i]
        steps = np.clip(np.rint(value - total), -zero_point[i], np.float32(2**nbits - 1) - zero_point[i])
        errors[i, y + above, column + beside, channel] = steps - value
        codes[i, y, column, channel] = steps + zero_point[i]
    flat = codes.reshape(n, -1)
    return RowCodes(flat, rows.scale, rows.zero_point, flat.sum(1, dtype=np.int32, keepdims=True))


def fully_connected(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[np.int32] | None,
    *,
    x_zero_point: int = 0,
    weight_zero_point: int = 0,
) -> NDArray[np.int32]:
    """`conv2d` of one point: x (N, ...) of K codes each, weight (O, K), sums (N, O).

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import fully_connected
    >>> fully_connected(np.array([[1, 2]], np.int8), np.array([[3, 4]], np.int8), None)
    array([[11]], dtype=int32)
    """
    centred = x.reshape(len(x), weight.shape[1]).astype(np.float64) - x_zero_point
    return _with_bias(centred @ (weight.astype(np.float64) - weight_zero_point).T, bias)


def _with_bias(sums: NDArray[np.float64], bias: NDArray[np.int32] | None) -> NDArray[np.int32]:
    whole = sums.astype(np.int64)
    return (whole if bias is None else whole + bias).astype(np.int32)


def _windows(
    x: NDArray[Any], kernel: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> Iterator[tuple[Pair, NDArray[Any]]]:
    """Each place of the kernel and what it sees of (N, H, W, C): a view (N, OH, OW, C)."""
    high, wide = (
        (length - (size - 1) * apart - 1) // step + 1
        for length, size, step, apart in zip(x.shape[1:3], kernel, stride, dilation, strict=True)
    )
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            yield (i, j), x[:, top :: stride[0], left :: stride[1]][:, :high, :wide]


# ------------------------------------------------------------------ sums to codes


def multiplier(input_scale: float, weight_scale: NDArray[np.float32], output_scale: float) -> NDArray[np.float32]:
    """What `requantize` takes: ``input_scale * weight_scale / output_scale``, float32 after each step.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import multiplier
    >>> multiplier(0.5, np.array([0.25, 0.5], np.float32), 0.125)
    array([1., 2.], dtype=float32)
    """
    return np.float32(input_scale) * np.asarray(weight_scale, np.float32) / np.float32(output_scale)


def requantize(
    sums: NDArray[np.int32],
    multiplier: NDArray[np.float32],
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """``rint(clamp(float32(sums) * multiplier, qmin - zero_point, qmax - zero_point)) + zero_point``.

    The sums are rounded to float32, the product again, and `rint` takes halves
    to the even code. ``multiplier`` has one value, or one per index of the last axis.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import requantize
    >>> requantize(np.array([1, 3, 999], np.int32), np.array([0.5], np.float32), 0, -128, 127, np.int8)
    array([  0,   2, 127], dtype=int8)
    """
    return _rounded(sums.astype(np.float32) * multiplier, zero_point, qmin, qmax, dtype)


def _rounded(scaled: NDArray[np.float32], zero_point: int, qmin: int, qmax: int, dtype: DTypeLike) -> NDArray[Any]:
    clamped = np.clip(scaled, np.float32(qmin - zero_point), np.float32(qmax - zero_point))
    return (np.rint(clamped) + np.float32(zero_point)).astype(dtype)


def fixed_point(multiplier: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Positive multipliers as ``m * 2^(shift - 31)``, m of 31 bits to the nearest.

    Halves go up; below 2^-32 both are 0.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import fixed_point
    >>> m, shift = fixed_point(np.array([0.75, 3.0]))
    >>> m / 2**31, shift
    (array([0.75, 0.75]), array([0, 2], dtype=int32))
    """
    fraction, shift = np.frexp(np.asarray(multiplier, np.float64))
    m = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    over = m == 2**31
    m, shift = np.where(over, 2**30, m), shift + over
    small = shift < -31
    return np.where(small, 0, m).astype(np.int32), np.where(small, 0, shift).astype(np.int32)


def requantize_fixed_point(
    sums: NDArray[np.int32],
    multiplier: NDArray[np.int32],
    shift: NDArray[np.int32],
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """The two roundings of LiteRT's reference convolutions; ``multiplier`` and ``shift`` are of `fixed_point`.

    ``high = floor(sums * 2^max(shift, 0) * multiplier / 2^31 + 1/2)``, the first
    product kept within int32; then ``high / 2^max(-shift, 0)``, halves away from
    zero; then the zero point and the clamp.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import fixed_point, requantize_fixed_point
    >>> sums = np.array([-3, -1, 1, 3], np.int32)
    >>> requantize_fixed_point(sums, *fixed_point(np.array([0.5])), 0, -128, 127, np.int8)
    array([-1,  0,  1,  2], dtype=int8)
    """
    left, right = np.maximum(shift, 0).astype(np.int64), np.maximum(-shift, 0).astype(np.int64)
    wide = np.clip(sums.astype(np.int64) << left, INT32.min, INT32.max)
    high = (wide * np.asarray(multiplier, np.int64) + 2**30) >> 31
    half = (np.int64(1) << right) >> 1
    codes = np.sign(high) * ((np.abs(high) + half) >> right)
    return np.clip(codes + zero_point, qmin, qmax).astype(dtype)


def power_of_two(multiplier: NDArray[np.float64]) -> NDArray[np.int32]:
    """The shifts of multipliers that are powers of two.

    Raises
    ------
    ValueError
        One is not.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import power_of_two
    >>> power_of_two(np.array([4.0, 0.25]))
    array([ 2, -2], dtype=int32)
    """
    fraction, exponent = np.frexp(np.asarray(multiplier, np.float64))
    if (wrong := fraction != 0.5).any():
        raise ValueError(f"multiplier: expected powers of two, got {np.asarray(multiplier)[wrong][0]}")
    return (exponent - 1).astype(np.int32)


def requantize_power_of_two(
    sums: NDArray[np.int32],
    shift: NDArray[np.int32],
    zero_point: int,
    qmin: int,
    qmax: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """``clamp(floor(sums * 2^shift + 1/2) + zero_point)``, exactly.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import requantize_power_of_two
    >>> requantize_power_of_two(np.array([-3, -1, 1, 3], np.int32), np.int32(-1), 0, -128, 127, np.int8)
    array([-1,  0,  1,  2], dtype=int8)
    """
    # Any int32 but 0 is past every code at 2^31, and 0 at 2^-40.
    left, right = np.clip(shift, 0, 31).astype(np.int64), np.clip(-shift, 0, 40).astype(np.int64)
    half = (np.int64(1) << right) >> 1
    codes = ((sums.astype(np.int64) << left) + half) >> right
    return np.clip(codes + zero_point, qmin, qmax).astype(dtype)


# ------------------------------------------------------------------ codes to codes


def add(
    a: NDArray[Any],
    b: NDArray[Any],
    *,
    scales: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    qmin: int,
    qmax: int,
) -> NDArray[Any]:
    """The sum of two tensors, with scales and zero points of a, b and the output.

    ``r = scale / output scale`` in float32, ``shift = 20 - floor(log2(max r))``,
    ``m = rint(r * 2^shift)``; then, in integers, ``((a - za) * ma + (b - zb) * mb
    + 2^(shift - 1)) >> shift``, plus the output's zero point, clamped.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import add
    >>> a = np.array([100, 3, 5, -3], np.int8)
    >>> add(a, a, scales=(1, 1, 4), zero_points=(0, 0, 0), qmin=-128, qmax=127)
    array([50,  2,  3, -1], dtype=int8)
    """
    ratios = [np.float32(scale) / np.float32(scales[2]) for scale in scales[:2]]
    shift = 21 - math.frexp(max(ratios))[1]  # frexp counts from 1/2
    ma, mb = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    za, zb, zero_point = zero_points
    sums = (a.astype(np.int64) - za) * ma + (b.astype(np.int64) - zb) * mb
    codes = ((sums + (1 << shift >> 1)) >> shift) + zero_point
    return np.clip(codes, qmin, qmax).astype(a.dtype)


def multiply(
    a: NDArray[Any],
    b: NDArray[Any],
    *,
    scales: tuple[float, float, float],
    zero_points: tuple[int, int, int],
    qmin: int,
    qmax: int,
    dtype: DTypeLike,
) -> NDArray[Any]:
    """The product of two tensors, with scales and zero points of a, b and the output.

    ``rint(clamp(float32((a - za) * (b - zb)) * m))`` plus the output's zero point;
    ``m = float32(float32(sa * sb) / sy)``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import multiply
    >>> a = np.array([10, -3, 100], np.int8)
    >>> multiply(a, a, scales=(1, 1, 2), zero_points=(0, 0, 0), qmin=-128, qmax=127, dtype=np.int8)
    array([ 50,   4, 127], dtype=int8)
    """
    za, zb, zero_point = zero_points
    sa, sb, sy = (np.float32(scale) for scale in scales)
    products = (a.astype(np.int32) - za) * (b.astype(np.int32) - zb)
    return _rounded(products.astype(np.float32) * (sa * sb / sy), zero_point, qmin, qmax, dtype)


def average_pool2d(
    x: NDArray[Any],
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair] = NO_PADDING,
    *,
    qmin: int,
    qmax: int,
    scales: tuple[float, float] = (1.0, 1.0),
    zero_points: tuple[int, int] = (0, 0),
) -> NDArray[Any]:
    """Means of the codes of each window, zero point and all, halves away from the code 0, clamped.

    Where scales or zero points of input and output differ it is ``rint(clamp(float32(sum of
    code - zero point) * (float32(sx / sy) / float32(count))))`` plus the output's zero point.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import average_pool2d
    >>> x = np.array([-1, -2, 1, 2], np.int8).reshape(1, 2, 2, 1)
    >>> average_pool2d(x, (1, 2), (1, 1), qmin=-128, qmax=127).ravel()
    array([-2,  2], dtype=int8)
    """
    wide = np.pad(x.astype(np.int64), ((0, 0), *padding, (0, 0)))
    ones = np.pad(np.ones((1, *x.shape[1:3], 1), np.int64), ((0, 0), *padding, (0, 0)))
    sums = sum(seen for _, seen in _windows(wide, kernel, stride))
    counts = sum(seen for _, seen in _windows(ones, kernel, stride))
    if scales[0] != scales[1] or zero_points[0] != zero_points[1]:
        ratio = np.float32(scales[0]) / np.float32(scales[1])
        values = np.asarray(sums - counts * zero_points[0]).astype(np.float32)
        means = values * (ratio / np.asarray(counts).astype(np.float32))
        return _rounded(means, zero_points[1], qmin, qmax, x.dtype)
    means = np.sign(sums) * ((np.abs(sums) + counts // 2) // counts)
    return np.clip(means, qmin, qmax).astype(x.dtype)


def max_pool2d(
    x: NDArray[Any],
    kernel: Pair,
    stride: Pair,
    padding: tuple[Pair, Pair] = NO_PADDING,
    *,
    qmin: int,
    qmax: int,
) -> NDArray[Any]:
    """The largest code of each window, clamped.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import max_pool2d
    >>> x = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    >>> max_pool2d(x, (2, 2), (1, 1), qmin=0, qmax=7).ravel()
    array([4, 5, 7, 7], dtype=uint8)
    """
    least = np.iinfo(x.dtype).min
    wide = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=least)
    largest = np.full((1, 1, 1, 1), least, x.dtype)
    for _, seen in _windows(wide, kernel, stride):
        largest = np.maximum(largest, seen)
    return np.clip(largest, qmin, qmax)


def softmax(x: NDArray[Any], scale: float) -> NDArray[Any]:
    """Softmax along the last axis; the codes of 0 and 255/256 are the dtype's least and greatest.

    ``e[d] = exp(-d * scale)`` for d of 0 to 255 below the row's greatest code:
    the product in float32, the exponential to the nearest float32. All else is
    float32 in this order: the row's e are summed from first to last, ``inv = 1 /
    (sum / 256)``, and the code is ``floor(e * inv + 1/2)`` above the least.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import softmax
    >>> softmax(np.array([[0, 0, 10]], np.int8), 0.1)
    array([[-74, -74,  19]], dtype=int8)
    """
    exponents = np.float32(-scale) * np.arange(256, dtype=np.float32)
    table = np.exp(exponents.astype(np.float64)).astype(np.float32)
    e = table[x.max(-1, keepdims=True).astype(np.int64) - x]
    total = np.cumsum(e, -1, dtype=np.float32)[..., -1:]  # in order, unlike np.sum
    inverse = np.float32(1) / (total / np.float32(256))
    codes = np.minimum(np.floor(e * inverse + np.float32(0.5)), 255)
    return (codes.astype(np.int64) + np.iinfo(x.dtype).min).astype(x.dtype)


# ------------------------------------------------------------------ numbers and codes


def quantize_codes(x: NDArray[np.float32], scale: float, zero_point: int, dtype: DTypeLike) -> NDArray[Any]:
    """``clamp(rint(x * inv_scale) + zero_point)``; ``inv_scale = 1 / scale`` and the product are float32.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import quantize_codes
    >>> quantize_codes(np.array([-1, 0.25, 0.75, 99], np.float32), 0.5, 3, np.uint8)
    array([  1,   3,   5, 201], dtype=uint8)
    """
    limits, inv_scale = np.iinfo(np.dtype(dtype)), np.float32(1) / np.float32(scale)
    with np.errstate(over="ignore"):  # infinities are clamped like the rest
        scaled = x * inv_scale
    return _rounded(scaled, zero_point, limits.min, limits.max, dtype)


def dequantize_codes(codes: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    """``float32(codes - zero_point) * scale``.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.reference.conv import dequantize_codes
    >>> dequantize_codes(np.array([1, 3], np.uint8), 0.5, 3)
    array([-1.,  0.], dtype=float32)
    """
    return (codes.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)
