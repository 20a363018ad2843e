"""The functions of `lowbit` in plain NumPy: same names, same signatures.

The oracle of the tests, and what a user would write without lowbit. ``isa`` is
accepted and ignored.
"""

from lowbit.reference.affine import (
    choose_qparams,
    dequantize,
    expand,
    quantize,
    quantize_rows,
    reconstruct,
    round_with_feedback,
)
from lowbit.reference.codebook import assign, kmeans, kmeans_1d, kmeans_1d_rows, lookup
from lowbit.reference.conv import conv2d, quantize_images
from lowbit.reference.gemm import (
    CodebookWeight,
    GroupedWeight,
    QuantizedWeight,
    TiledMatrix,
    linear,
    matmul_int8,
    mlp,
    quantize_weight,
    tile_matrix,
)
from lowbit.reference.levels import boundaries, decode, density_levels, encode, fit_levels, fit_levels_rows
from lowbit.reference.packing import pack_codes, unpack_codes
from lowbit.reference.spike_product import (
    SpikeWeight,
    spike_conv2d,
    spike_matmul,
    spike_operations,
    tile_spike_weight,
)
from lowbit.reference.spiking import simulate

__all__ = [
    "CodebookWeight",
    "GroupedWeight",
    "QuantizedWeight",
    "SpikeWeight",
    "TiledMatrix",
    "assign",
    "boundaries",
    "choose_qparams",
    "conv2d",
    "decode",
    "density_levels",
    "dequantize",
    "encode",
    "expand",
    "fit_levels",
    "fit_levels_rows",
    "kmeans",
    "kmeans_1d",
    "kmeans_1d_rows",
    "linear",
    "lookup",
    "matmul_int8",
    "mlp",
    "pack_codes",
    "quantize",
    "quantize_images",
    "quantize_rows",
    "quantize_weight",
    "reconstruct",
    "round_with_feedback",
    "simulate",
    "spike_conv2d",
    "spike_matmul",
    "spike_operations",
    "tile_matrix",
    "tile_spike_weight",
    "unpack_codes",
]
