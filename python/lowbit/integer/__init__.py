"""Integer networks: a graph that is data only, its readers, and what runs it.

``from_tflite`` reads a file and `lowbit.torch.to_integer` a PyTorch model;
``graph.plan()`` makes a graph ready to run.
"""

from lowbit.integer.draw import draw
from lowbit.integer.file import load, save
from lowbit.integer.graph import (
    Add,
    AveragePool2d,
    Concatenate,
    Constant,
    Conv2d,
    Dequantize,
    FullyConnected,
    Graph,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Softmax,
    Table,
    Tensor,
)
from lowbit.integer.network import Network, Stream, Timed
from lowbit.integer.onnx import to_onnx
from lowbit.integer.tflite import from_tflite

__all__ = [
    "Add",
    "AveragePool2d",
    "Concatenate",
    "Constant",
    "Conv2d",
    "Dequantize",
    "FullyConnected",
    "Graph",
    "MaxPool2d",
    "Multiply",
    "Network",
    "Operation",
    "Pad",
    "Quantize",
    "Reshape",
    "Slice",
    "Softmax",
    "Stream",
    "Table",
    "Tensor",
    "Timed",
    "draw",
    "from_tflite",
    "load",
    "save",
    "to_onnx",
]
