"""Codes of 1 to 16 bits to dense bytes and back; FORMATS.md, "Packed codes"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int, check_out

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["pack_codes", "unpack_codes"]

_U8, _U16 = np.dtype(np.uint8), np.dtype(np.uint16)
_BYTES, _WORDS = ("uint8",), ("uint16",)


def pack_codes(
    codes: ArrayLike, nbits: int, *, out: NDArray[np.uint8] | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """Packs codes densely along the last axis.

    Code i of a row fills the bits ``i * nbits`` to ``(i + 1) * nbits - 1``,
    counted from the lowest bit of the row's first byte. Each row starts on a
    byte; the bits after its last code are zero.

    Parameters
    ----------
    codes : array_like of uint8 or uint16, shape (..., n)
        Codes below ``2**nbits``: uint8 for 1 to 8 bits, uint16 for 9 to 16.
        Nothing else is accepted, bool and signed integers included; lists of
        Python ints are. Copied once if not C-contiguous and aligned. Not to be
        changed by another thread meanwhile.
    nbits : int
        Bits per code, 1 to 16.
    out : ndarray of uint8, shape (..., ceil(n * nbits / 8)), optional
        Receives the result. C-contiguous, and overlaps no input. What it holds
        after an error is undefined.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    packed : ndarray of uint8, shape (..., ceil(n * nbits / 8))
        ``out`` if given. Empty where ``codes`` is.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, or an
        ``nbits`` that is no int.
    ValueError
        A code of ``2**nbits`` or more, 0-dimensional or ragged ``codes``, an
        ``nbits`` out of range, an ``out`` that does not fit, an unknown ``isa``.

    See Also
    --------
    unpack_codes : The inverse.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.pack_codes(np.array([1, 2, 3, 4, 5], np.uint8), 3)
    array([209,  88], dtype=uint8)
    >>> lowbit.pack_codes([[1, 0, 1], [0, 1, 1]], 1)
    array([[5],
           [6]], dtype=uint8)
    """
    nbits = check_int("nbits", nbits, 1, 16)
    array = as_array("codes", codes, _BYTES if nbits <= 8 else _WORDS)
    *outer, n = array.shape
    shape = (*outer, (n * nbits + 7) // 8)
    if out is None:
        out = np.empty(shape, _U8)
    else:
        check_out("out", out, shape, _U8, codes, array)
    (_core.pack_u8 if nbits <= 8 else _core.pack_u16)(array, nbits, out, isa)
    return out


def unpack_codes(
    packed: ArrayLike,
    nbits: int,
    n: int,
    *,
    out: NDArray[np.uint8] | NDArray[np.uint16] | None = None,
    isa: str | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Unpacks what `pack_codes` packed.

    Parameters
    ----------
    packed : array_like of uint8, shape (..., ceil(n * nbits / 8))
        Rows of packed codes. Copied once if not C-contiguous. Not to be changed
        by another thread meanwhile.
    nbits : int
        Bits per code, 1 to 16.
    n : int
        Codes in a row.
    out : ndarray of uint8 or uint16, shape (..., n), optional
        Receives the result. C-contiguous, aligned, and overlaps no input. What
        it holds after an error is undefined.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    codes : ndarray, shape (..., n)
        uint8 for 1 to 8 bits, uint16 for 9 to 16; ``out`` if given.

    Raises
    ------
    TypeError
        Another dtype, a masked array, a torch tensor that is not plain, or an
        ``nbits`` or ``n`` that is no int.
    ValueError
        Rows longer or shorter than ``n`` codes take, a set bit after the last
        code of a row, 0-dimensional ``packed``, an ``nbits`` out of range, an
        ``out`` that does not fit, an unknown ``isa``.

    See Also
    --------
    pack_codes : The inverse.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.unpack_codes(np.array([209, 88], np.uint8), 3, 5)
    array([1, 2, 3, 4, 5], dtype=uint8)
    """
    nbits = check_int("nbits", nbits, 1, 16)
    n = check_int("n", n, 0)
    array = as_array("packed", packed, _BYTES)
    *outer, length = array.shape
    expected = (n * nbits + 7) // 8
    if length != expected:
        what = f"rows of {expected} bytes ({n} codes of {nbits} bits)"
        raise ValueError(f"packed: expected {what}, got {length}")
    dtype = _U8 if nbits <= 8 else _U16
    shape = (*outer, n)
    if out is None:
        out = np.empty(shape, dtype)
    else:
        check_out("out", out, shape, dtype, packed, array)
    (_core.unpack_u8 if nbits <= 8 else _core.unpack_u16)(array, nbits, out, isa)
    return out
