"""lowbit chooses the levels, packs the codes and runs the integers.

The kernels on numpy arrays are here; ``lowbit.reference`` has the same
functions in plain NumPy; ``lowbit.torch`` quantizes PyTorch models.
"""

from lowbit._core import InternalError, __version__
from lowbit.affine import (
    choose_qparams,
    dequantize,
    expand,
    quantize,
    quantize_rows,
    reconstruct,
    round_with_feedback,
)
from lowbit.codebook import assign, kmeans, kmeans_1d, kmeans_1d_rows, lookup
from lowbit.config import Codebook, Int8, Series, Spiking, Uniform
from lowbit.conv import conv2d, feedback_coefficients, quantize_images
from lowbit.gemm import linear, matmul_int8, mlp, tile_matrix
from lowbit.levels import boundaries, decode, density_levels, encode, fit_levels, fit_levels_rows
from lowbit.neurons import ALIF, IF, LIF, CubaLIF, NeuronState, Spikes
from lowbit.packing import pack_codes, unpack_codes
from lowbit.spike_product import SpikeWeight, spike_conv2d, spike_matmul, spike_operations, tile_spike_weight
from lowbit.spiking import simulate
from lowbit.system import available_isas, get_num_threads, isa, set_num_threads, threads
from lowbit.types import (
    ConvergenceWarning,
    Expansion,
    FileFormatError,
    KMeans,
    KMeans1D,
    Levels,
    PerAxis,
    PerGroup,
    PerTensor,
    QParams,
    RowCodes,
)
from lowbit.weights import CodebookWeight, GroupedWeight, QuantizedWeight, TiledMatrix, quantize_weight

__all__ = [
    "ALIF",
    "IF",
    "LIF",
    "Codebook",
    "CodebookWeight",
    "ConvergenceWarning",
    "CubaLIF",
    "Expansion",
    "FileFormatError",
    "GroupedWeight",
    "Int8",
    "InternalError",
    "KMeans",
    "KMeans1D",
    "Levels",
    "NeuronState",
    "PerAxis",
    "PerGroup",
    "PerTensor",
    "QParams",
    "QuantizedWeight",
    "RowCodes",
    "Series",
    "SpikeWeight",
    "Spikes",
    "Spiking",
    "TiledMatrix",
    "Uniform",
    "__version__",
    "assign",
    "available_isas",
    "boundaries",
    "choose_qparams",
    "conv2d",
    "decode",
    "density_levels",
    "dequantize",
    "encode",
    "expand",
    "feedback_coefficients",
    "fit_levels",
    "fit_levels_rows",
    "get_num_threads",
    "isa",
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
    "set_num_threads",
    "simulate",
    "spike_conv2d",
    "spike_matmul",
    "spike_operations",
    "threads",
    "tile_matrix",
    "tile_spike_weight",
    "unpack_codes",
]
