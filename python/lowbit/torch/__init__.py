"""PyTorch models on lowbit's kernels.

>>> import torch, lowbit
>>> from lowbit.torch import quantize_
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 8))
>>> report = quantize_(model, lowbit.Int8())
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError("lowbit.torch needs PyTorch: pip install 'lowbit[torch]'") from error

from lowbit.config import Int8, Series, Uniform
from lowbit.torch.allocate import allocate_bits
from lowbit.torch.calibrate import calibrate_
from lowbit.torch.integer import IntegerModel, IntegerReport, to_integer
from lowbit.torch.modules import QuantEmbedding, QuantLinear
from lowbit.torch.quantize import LayerReport, Report, dequantize_, quantize_
from lowbit.torch.series import SeriesConv2d, SeriesLinear

__all__ = [
    "Int8",
    "IntegerModel",
    "IntegerReport",
    "LayerReport",
    "QuantEmbedding",
    "QuantLinear",
    "Report",
    "Series",
    "SeriesConv2d",
    "SeriesLinear",
    "Uniform",
    "allocate_bits",
    "calibrate_",
    "dequantize_",
    "quantize_",
    "to_integer",
]

del _torch
