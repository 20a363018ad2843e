"""Codes to bits and bits to bytes, each with NumPy's own bit routines."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["pack_codes", "unpack_codes"]


def pack_codes(
    codes: ArrayLike, nbits: int, *, out: NDArray[np.uint8] | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """`lowbit.pack_codes`: (..., n) codes to (..., ceil(n * nbits / 8)) bytes.

    Raises
    ------
    ValueError
        A code of ``2**nbits`` or more.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.pack_codes([1, 2, 3, 4, 5], 3)
    array([209,  88], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.size and codes.max() >> nbits:
        raise ValueError(f"codes: expected values below 2^{nbits}, got {codes.max()}")
    *outer, n = codes.shape
    octets = codes.astype("<u2" if nbits > 8 else "u1")[..., None].view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, count=nbits, bitorder="little")
    packed = np.packbits(bits.reshape(*outer, n * nbits), axis=-1, bitorder="little")
    if out is None:
        return packed
    out[...] = packed
    return out


def unpack_codes(
    packed: ArrayLike,
    nbits: int,
    n: int,
    *,
    out: NDArray[np.uint8] | NDArray[np.uint16] | None = None,
    isa: str | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """`lowbit.unpack_codes`: (..., ceil(n * nbits / 8)) bytes to (..., n) codes.

    Raises
    ------
    ValueError
        Rows of another length, or a set bit after the last code of a row.

    Examples
    --------
    >>> from lowbit import reference
    >>> reference.unpack_codes([209, 88], 3, 5)
    array([1, 2, 3, 4, 5], dtype=uint8)
    """
    packed = np.asarray(packed, np.uint8)
    *outer, length = packed.shape
    if length != -(-n * nbits // 8):
        raise ValueError(f"packed: expected rows of {-(-n * nbits // 8)} bytes, got {length}")
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    if bits[..., n * nbits :].any():
        raise ValueError("packed: expected zeros after the last code of each row")
    bits = bits[..., : n * nbits].reshape(*outer, n, nbits)
    octets = np.packbits(bits, axis=-1, bitorder="little")
    codes: np.ndarray = octets.view("<u2")[..., 0].astype(np.uint16) if nbits > 8 else octets[..., 0]
    if out is None:
        return np.ascontiguousarray(codes)
    out[...] = codes
    return out
