"""Convolutions of codes, exact, and images rounded for them; whole networks are `lowbit.integer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import FLOATS, as_array, check_int
from lowbit.types import RowCodes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["conv2d", "feedback_coefficients", "quantize_images"]

Pair = tuple[int, int]

_CODES = ("int8", "uint8")
#: The most values that a window may have: the equations grow with the third power.
_WINDOW = 4 * 49
#: Codes whose sum int32 holds in any case.
_SUMMED = (2**31 - 1) // 255


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    x_zero_point: int = 0,
    weight_zero_point: int = 0,
    isa: str | None = None,
) -> NDArray[np.int32]:
    """Sums of products of codes less their zero points; padding is the real number 0.

    Parameters
    ----------
    x : array_like of int8 or uint8, shape (N, H, W, C)
        The batch, channels last.
    weight : array_like of int8 or uint8, shape (O, KH, KW, C / groups)
        Output o reads the inputs of group ``o // (O / groups)``.
    bias : array_like of int32, shape (O,), optional
        Where the sums start.
    stride, dilation : pair of int
        Along H and W.
    padding : pair of pairs of int
        Before and after H, before and after W.
    groups : int
        C for a depthwise convolution.
    x_zero_point, weight_zero_point : int
        The codes of 0.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    sums : ndarray of int32, shape (N, OH, OW, O)
        The same on every instruction set and any number of threads.

    Raises
    ------
    TypeError
        Another dtype, or no int where one is expected.
    ValueError
        Sizes that do not fit together, more than 32,768 products a sum, a bias that could carry a sum
        beyond int32, a zero point that is no code.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x = np.array([1, 2, 3, 4], np.int8).reshape(1, 2, 2, 1)
    >>> lowbit.conv2d(x, np.ones((1, 2, 2, 1), np.int8), np.array([100], np.int32)).ravel()
    array([110], dtype=int32)
    """
    images, kernels = _four("x", x), _four("weight", weight)
    steps = (
        _pair("stride", stride, 1),
        _pair("dilation", dilation, 1),
        _pairs(padding),
        check_int("groups", groups, 1),
    )
    n, _, _, channels = images.shape
    filters, _, _, depth = kernels.shape
    if depth * steps[3] != channels:
        raise ValueError(f"weight: expected {channels} channels in {groups} groups, got {depth} in each")
    if bias is None:
        start = np.zeros(filters, np.int32)
    else:
        start = as_array("bias", bias, ("int32",))
        if start.shape != (filters,):
            raise ValueError(f"bias: expected shape ({filters},), got {start.shape}")
    zero_points = (
        check_int("x_zero_point", x_zero_point, -128, 255),
        check_int("weight_zero_point", weight_zero_point, -128, 255),
    )
    out = np.empty((n, *_core.conv2d_size(images.shape, kernels.shape, steps), filters), np.int32)
    _core.conv2d(images, kernels, start, steps, zero_points, out, isa)
    return out


def feedback_coefficients(
    weight: ArrayLike, *, importance: ArrayLike | None = None, damping: float = 0.01
) -> NDArray[np.float32]:
    """How much of each code's error the codes after it are to make good, for a convolution's outputs.

    A convolution of stride 1, without dilation, mixes an image's values, and what rounding moves one value by can be undone,
    in the outputs, by moving its neighbours. Of all the errors e together the outputs are off by eᵀ H e,
    where H is what the filters' correlations say. Values are rounded row by row; once those up to the k-th are,
    and the others still make good what they can, there are left ``S_kk (e_k + Σ S_kj / S_kk e_j)²`` and terms without e_k,
    S being H without what is to come (its Schur complement). The quotients are the coefficients: no data is needed.

    Parameters
    ----------
    weight : array_like of float, shape (O, KH, KW, C)
        The filters, of stride 1, dilation 1 and one group. At most 196 values each (7 × 7 of 4 channels).
    importance : array_like of float, shape (O,), optional
        What an error in each output weighs, as a factor of the output: the gain of the normalization behind it. None: 1.
    damping : float
        Of H's mean diagonal, added to the diagonal: how much less than the outputs the values themselves count. Above 0.

    Returns
    -------
    coefficients : ndarray of float32, shape (C, KH, 2 KW - 1, C)
        Of each channel of a pixel: of the KH - 1 rows above and its own, of the columns around it, of each channel. 0 for
        what comes later.

    Raises
    ------
    TypeError
        Another dtype, a damping that is no number.
    ValueError
        Another shape, NaN or infinities, filters that are too large.

    References
    ----------
    Ours. It is GPTQ's rule (E. Frantar et al., 2022), which rounds weights by what inputs say, the other way round.

    Examples
    --------
    A filter that adds neighbours up: a value is to undo most of what the one before it is off by.

    >>> import numpy as np, lowbit
    >>> lowbit.feedback_coefficients(np.ones((1, 1, 2, 1), np.float32)).ravel().round(2)
    array([0.78, 0.  , 0.  ], dtype=float32)
    """
    filters = as_array("weight", weight, FLOATS, min_ndim=4).astype(np.float64)
    if filters.ndim != 4 or filters.size == 0:
        raise ValueError(f"weight: expected (O, KH, KW, C), not empty, got shape {filters.shape}")
    outputs, kh, kw, channels = filters.shape
    if kh * kw * channels > _WINDOW:
        raise ValueError(f"weight: expected filters of at most {_WINDOW} values, got {kh} x {kw} x {channels}")
    if isinstance(damping, bool) or not isinstance(damping, (int, float, np.floating)):
        raise TypeError(f"damping: expected a number, got {damping!r}")
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping: expected a finite number above 0, got {damping}")
    if importance is not None:
        gain = as_array("importance", importance, FLOATS).astype(np.float64)
        if gain.shape != (outputs,):
            raise ValueError(f"importance: expected shape ({outputs},), got {gain.shape}")
        filters = filters * gain[:, None, None, None]
    if not np.isfinite(filters).all():
        raise ValueError("weight, importance: expected finite values")
    out = np.zeros((channels, kh, 2 * kw - 1, channels))
    greatest = np.abs(filters).max()
    if greatest > 0:
        _fill(out, filters / greatest, damping)
    return out.astype(np.float32)


def _fill(out: NDArray[np.float64], filters: NDArray[np.float64], damping: float) -> None:
    """The coefficients of a pixel amid a piece of image that holds all that it hears of, and as much to come."""
    _, kh, kw, channels = filters.shape
    # correlations[dy, dx, c, d]: of channel c at some pixel and channel d so many rows and columns further.
    padded = np.pad(filters, ((0, 0), (kh - 1, kh - 1), (kw - 1, kw - 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kh, kw), axis=(1, 2))
    correlations = np.einsum("oijc,oyxdij->yxcd", filters, windows)
    rows, columns = 4 * kh, 4 * kw
    y, x = (axis.ravel() for axis in np.indices((rows, columns)))
    dy, dx = y - y[:, None] + kh - 1, x - x[:, None] + kw - 1
    near = (dy >= 0) & (dy < 2 * kh - 1) & (dx >= 0) & (dx < 2 * kw - 1)
    blocks = correlations[np.where(near, dy, 0), np.where(near, dx, 0)] * near[:, :, None, None]
    h = blocks.transpose(0, 2, 1, 3).reshape(rows * columns * channels, -1)
    h[np.diag_indices_from(h)] += damping * h.diagonal().mean()
    middle = 2 * kh * columns + 2 * kw
    for channel in range(channels):
        k = middle * channels + channel
        # Row k of H less what the values after k make good.
        row = h[k, : k + 1] - np.linalg.solve(h[k + 1 :, k + 1 :], h[k + 1 :, k]) @ h[k + 1 :, : k + 1]
        row = np.append(row[:-1] / row[-1], np.zeros(len(h) - k)).reshape(rows, columns, channels)
        out[channel] = row[kh + 1 : 2 * kh + 1, kw + 1 : 3 * kw]


def quantize_images(x: ArrayLike, feedback: ArrayLike, *, nbits: int = 8, isa: str | None = None) -> RowCodes:
    """Quantizes images for a convolution, each code making good what those before it moved the outputs by.

    Each image has one scale and zero point, those of `quantize_rows` of its float32 values. These are rounded row by row,
    column by column, channel by channel. In steps of the scale, with v a value and e the errors of codes before it,
    a code less the zero point is ``rint(v - Σ coefficient · e)``, clamped, and its error what that is more than v. Images of
    few bits keep what the filters see: flat regions have no bands.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16, shape (N, H, W, C)
        The images, channels last, rounded to float32 first: float64 beyond it is an infinity.
    feedback : array_like of float32, shape (C, rows, columns, C)
        `feedback_coefficients` of the filters. Any number of rows, the pixel's own the last; an odd number of columns, the
        pixel's own in the middle. What comes after a value is not looked at.
    nbits : int
        Bits per code, 2 to 8.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    rows : RowCodes
        A row for each image: ``codes`` uint8 (N, H W C), ``scale`` float32 (N,), ``zero_point`` uint8 (N,), ``group_sums``
        int32 (N, 1). An image with NaN or an infinity has scale NaN. The same on every instruction set.

    Raises
    ------
    TypeError
        Another dtype.
    ValueError
        No values, more than 8,421,504 an image (their sum), shapes that do not fit, coefficients that are NaN or not
        between -65,536 and 65,536.

    Examples
    --------
    A flat region between two codes is made of both, and not of one:

    >>> import numpy as np, lowbit
    >>> image = np.full((1, 1, 8, 1), 0.4, np.float32)
    >>> image[0, 0, 0] = 3
    >>> feedback = lowbit.feedback_coefficients(np.ones((1, 1, 2, 1), np.float32))
    >>> lowbit.quantize_images(image, feedback, nbits=2).codes
    array([[3, 0, 1, 0, 1, 0, 1, 0]], dtype=uint8)
    """
    given = as_array("x", x, FLOATS, min_ndim=4)
    with np.errstate(over="ignore"):
        images = given.astype(np.float32, copy=False)
    if images.ndim != 4 or images.size == 0:
        raise ValueError(f"x: expected (N, H, W, C), not empty, got shape {images.shape}")
    if images[0].size > _SUMMED:
        raise ValueError(f"x: expected at most {_SUMMED} values an image, whose sum int32 holds, got {images[0].size}")
    coefficients = as_array("feedback", feedback, ("float32",), min_ndim=4)
    nbits = check_int("nbits", nbits, 2, 8)
    codes = np.empty(images.shape, np.uint8)
    scale, zero_point = np.empty(len(images), np.float32), np.empty(len(images), np.uint8)
    _core.quantize_images(images, nbits, coefficients, codes, scale, zero_point, isa)
    flat = codes.reshape(len(images), -1)
    return RowCodes(flat, scale, zero_point, flat.sum(1, dtype=np.int32, keepdims=True))


def _four(name: str, x: ArrayLike) -> NDArray[Any]:
    array = as_array(name, x, _CODES, min_ndim=4)
    if array.ndim != 4:
        raise ValueError(f"{name}: expected 4-D, got {array.ndim}-D of shape {array.shape}")
    return array


def _pair(name: str, pair: Any, low: int) -> Pair:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: expected a pair of ints, got {pair!r}")
    return check_int(name, pair[0], low, 2**32 - 1), check_int(name, pair[1], low, 2**32 - 1)


def _pairs(padding: Any) -> tuple[Pair, Pair]:
    if not isinstance(padding, (tuple, list)) or len(padding) != 2:
        raise TypeError(f"padding: expected ((top, bottom), (left, right)), got {padding!r}")
    return _pair("padding", padding[0], 0), _pair("padding", padding[1], 0)
