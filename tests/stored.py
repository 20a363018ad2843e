"""Networks stored as JSON and NPZ, with outputs of LiteRT, in the folder LOWBIT_DATA.

Written from the stored format's description alone, so that it and
`lowbit.integer.tflite` check each other.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from lowbit.integer import graph as g
from tflite_file import Operator, Tensor, made

TINY, MOBILENET = "mlperf_tiny", "mobilenet_v1_imagenet_quant"
OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "RESHAPE": "ReshapeOptions",
    "SOFTMAX": "SoftmaxOptions",
}
INT8 = ("resnet8_int8", "dscnn_kws_int8", "mobilenetv1_vww_int8", "autoencoder_ad_int8", "streaming_wakeword_int8")


def find(*parts: str) -> Path:
    """A file of the folder; the test is skipped where it is not."""
    path = Path(os.environ.get("LOWBIT_DATA", ""), *parts)
    if "LOWBIT_DATA" not in os.environ or not path.is_file():
        pytest.skip(f"no data: LOWBIT_DATA=FOLDER, with {'/'.join(parts)} in it")
    return path


def network(folder: str, name: str) -> g.Graph:
    """The graph of FOLDER/name.json and name.npz."""
    described = json.loads(find(folder, f"{name}.json").read_text(encoding="utf-8"))
    with np.load(find(folder, f"{name}.npz")) as archive:
        arrays = dict(archive)
    stored = {t["idx"]: t for t in described["tensors"]}
    tensors, constants = {}, {}

    def tensor(index: int) -> g.Tensor:
        t = stored[index]
        return tensors.setdefault(
            t["name"], g.Tensor(t["name"], tuple(t["shape"][1:]), t["dtype"], t["scale"], t["zero_point"])
        )

    def constant(index: int, change=lambda data: data) -> str | None:
        if index < 0:
            return None
        t, data = stored[index], change(arrays[f"t{index}"])
        if data.dtype == np.int32:
            scale, zero_point = None, 0
        elif t["n_scales"] == 1:
            scale, zero_point = np.array([t["scale"]], np.float32), t["zero_point"]
        else:
            scale, zero_point = arrays[f"q{index}_scale"], 0
            assert not arrays[f"q{index}_zp"].any()
        constants[t["name"]] = g.Constant(t["name"], data, scale, zero_point)
        return t["name"]

    def operation(op: dict) -> g.Operation:
        kind, attrs, out = op["op"], op["attrs"], tensor(op["outputs"][0])
        x = tensor(op["inputs"][0])
        clamp = dict(zip(("qmin", "qmax"), activation(attrs.get("act", "NONE"), out), strict=True))
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            depthwise = kind.startswith("DEPTHWISE")
            weight = constant(op["inputs"][1], by_output if depthwise else lambda data: data)
            kernel = constants[weight].data.shape[1:3]
            bias = constant(op["inputs"][2])
            where = dict(stride=tuple(attrs["stride"]), padding=padding(attrs, kernel, x, out), **clamp)
            groups = x.shape[2] if depthwise else 1
            return g.Conv2d(x.name, weight, bias, out.name, groups=groups, **where)
        if kind == "FULLY_CONNECTED":
            weight, bias = (constant(index) for index in op["inputs"][1:])
            return g.FullyConnected(x.name, weight, bias, out.name, **clamp)
        if kind == "ADD":
            return g.Add(x.name, tensor(op["inputs"][1]).name, out.name, **clamp)
        if kind == "AVERAGE_POOL_2D":
            kernel, stride = tuple(attrs["filter"]), tuple(attrs["stride"])
            return g.AveragePool2d(x.name, out.name, kernel, stride, padding(attrs, kernel, x, out), **clamp)
        return {"SOFTMAX": g.Softmax, "RESHAPE": g.Reshape}[kind](x.name, out.name)

    inputs = tuple(tensor(index).name for index in described["inputs"])
    operations = tuple(operation(op) for op in described["ops"])
    outputs = tuple(tensor(index).name for index in described["outputs"])
    return g.Graph(tensors, constants, operations, inputs, outputs)


def file(folder: str, name: str) -> bytes:
    """The same network as a .tflite file: the stored one, or one that is written from the description."""
    if folder == TINY:
        return find(folder, f"{name}.tflite").read_bytes()
    described = json.loads(find(folder, f"{name}.json").read_text(encoding="utf-8"))
    with np.load(find(folder, f"{name}.npz")) as archive:
        arrays = dict(archive)
    tensors, at = [], {}
    for i, t in enumerate(described["tensors"]):
        at[t["idx"]] = i
        scale, zero_point = (t["scale"], t["zero_point"]) if t["n_scales"] == 1 else ((), ())
        data = arrays[f"t{t['idx']}"] if t["const"] else None
        tensors.append(Tensor(tuple(t["shape"]), t["dtype"], scale, zero_point, data, t["quant_dim"], t["name"]))
    operators = []
    for op in described["ops"]:
        kind, attrs = op["op"], op["attrs"]
        options = dict(zip(("StrideH", "StrideW"), attrs.get("stride", ()), strict=False))
        options |= dict(zip(("FilterHeight", "FilterWidth"), attrs.get("filter", ()), strict=False))
        if "padding" in attrs:
            options["Padding"] = ("SAME", "VALID").index(attrs["padding"])
            options["FusedActivationFunction"] = {"NONE": 0, "RELU": 1, "RELU6": 3}[attrs["act"]]
        if "mult" in attrs:
            options["DepthMultiplier"] = attrs["mult"]
        if kind == "SOFTMAX":
            options["Beta"] = 1.0
        operators.append(
            Operator(kind, [at[i] for i in op["inputs"]], [at[i] for i in op["outputs"]], OPTIONS[kind], options)
        )
    return made(tensors, operators, *([at[i] for i in described[ends]] for ends in ("inputs", "outputs")))


def by_output(depthwise: np.ndarray) -> np.ndarray:
    """(1, KH, KW, O) to (O, KH, KW, 1)."""
    return np.moveaxis(depthwise, 3, 0).reshape(depthwise.shape[3], *depthwise.shape[1:3], 1)


def padding(attrs: dict, kernel, x: g.Tensor, out: g.Tensor):
    """What is missing for the output's size: the odd one after."""
    if attrs["padding"] == "VALID":
        return ((0, 0), (0, 0))
    sizes = zip(out.shape, x.shape, kernel, attrs["stride"], strict=False)
    missing = [max((o - 1) * step + k - i, 0) for o, i, k, step in sizes]
    return tuple((m // 2, m - m // 2) for m in missing)


def activation(name: str, out: g.Tensor):
    if name == "NONE":
        return None, None
    greatest = {"RELU": math.inf, "RELU6": 6.0}[name]
    info = np.iinfo(out.dtype)
    qmax = out.zero_point + np.rint(min(np.float32(greatest) / np.float32(out.scale), 1000))
    return max(out.zero_point, info.min), int(min(qmax, info.max))
