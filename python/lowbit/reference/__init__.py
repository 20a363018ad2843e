"""The functions of `lowbit` in plain NumPy: same names, same signatures.

The oracle of the tests, and what a user would write without lowbit. ``isa`` is
accepted and ignored.
"""

from lowbit.reference.gemm import (
    QuantizedWeight,
    TiledMatrix,
    linear,
    matmul_int8,
    mlp,
    quantize_weight,
    tile_matrix,
)
from lowbit.reference.packing import pack_codes, unpack_codes

__all__ = [
    "QuantizedWeight",
    "TiledMatrix",
    "linear",
    "matmul_int8",
    "mlp",
    "pack_codes",
    "quantize_weight",
    "tile_matrix",
    "unpack_codes",
]
