"""Convolutions of codes, exact; whole networks of them are `lowbit.integer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["conv2d"]

Pair = tuple[int, int]

_CODES = ("int8", "uint8")


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
