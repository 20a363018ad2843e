"""The functions of `lowbit` in plain NumPy: same names, same signatures.

The oracle of the tests, and what a user would write without lowbit. ``isa`` is
accepted and ignored.
"""

from lowbit.reference.affine import choose_qparams, dequantize, quantize, quantize_rows
from lowbit.reference.packing import pack_codes, unpack_codes

__all__ = [
    "choose_qparams",
    "dequantize",
    "pack_codes",
    "quantize",
    "quantize_rows",
    "unpack_codes",
]
