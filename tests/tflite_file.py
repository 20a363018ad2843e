"""Writes TFLite files for the tests, well-formed ones and others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

DTYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int8": 9}


@dataclass
class Tensor:
    shape: tuple[int, ...]
    dtype: str = "int8"
    scale: Any = ()
    zero_point: Any = ()
    data: np.ndarray | None = None
    axis: int = 0
    name: str | None = None
    variable: bool = False


@dataclass
class Operator:
    kind: str
    inputs: list[int]
    outputs: list[int]
    #: The options' class and what is set in it.
    options: str = ""
    set: dict[str, Any] = field(default_factory=dict)


def made(tensors: list[Tensor], operators: list[Operator], inputs, outputs, *, subgraphs: int = 1, version: int = 3):
    """The bytes of a file."""
    import flatbuffers
    import tflite

    b = flatbuffers.Builder(0)

    def tables(offsets) -> int:
        b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            b.PrependUOffsetTRelative(offset)
        return b.EndVector()

    def table(cls: str, **fields) -> int:
        module = getattr(tflite, cls)
        start = getattr(tflite, f"{cls}Start")
        assert module is not None
        start(b)
        for name, value in fields.items():
            if value is not None:
                getattr(tflite, f"{cls}Add{name}")(b, value)
        return getattr(tflite, f"{cls}End")(b)

    def vector(values, dtype: str) -> int:
        return b.CreateNumpyVector(np.asarray(values, dtype).ravel())

    kinds = sorted({op.kind for op in operators})
    codes = []
    for kind in kinds:
        code = getattr(tflite.BuiltinOperator, kind)
        codes.append(table("OperatorCode", BuiltinCode=code, DeprecatedBuiltinCode=min(code, 127), Version=1))
    buffers, made_tensors = [table("Buffer")], []
    for i, t in enumerate(tensors):
        if t.data is not None:
            data = vector(np.frombuffer(np.ascontiguousarray(t.data).tobytes(), np.uint8), "u1")
            buffers.append(table("Buffer", Data=data))
        scale, zero_point = np.atleast_1d(t.scale), np.atleast_1d(t.zero_point)
        params = None
        if scale.size:
            zeros = zero_point if zero_point.size else np.zeros(scale.size)
            vectors = {"Scale": vector(scale, "<f4"), "ZeroPoint": vector(zeros, "<i8")}
            params = table("QuantizationParameters", **vectors, QuantizedDimension=t.axis)
        name, shape = b.CreateString(f"t{i}" if t.name is None else t.name), vector(t.shape, "<i4")
        buffer = 0 if t.data is None else len(buffers) - 1
        about = {"Shape": shape, "Type": DTYPES[t.dtype], "Buffer": buffer, "Name": name, "Quantization": params}
        made_tensors.append(table("Tensor", **about, IsVariable=t.variable))
    made_operators = []
    for op in operators:
        options = table(op.options, **op.set) if op.options else None
        kind = getattr(tflite.BuiltinOptions, op.options) if op.options else None
        ends = {"Inputs": vector(op.inputs, "<i4"), "Outputs": vector(op.outputs, "<i4")}
        index = kinds.index(op.kind)
        made_operators.append(
            table("Operator", OpcodeIndex=index, **ends, BuiltinOptionsType=kind, BuiltinOptions=options)
        )
    ends = {"Inputs": vector(inputs, "<i4"), "Outputs": vector(outputs, "<i4")}
    lists = {"Tensors": tables(made_tensors), "Operators": tables(made_operators)}
    subgraph = table("SubGraph", **ends, **lists)
    parts = {"OperatorCodes": tables(codes), "Subgraphs": tables([subgraph] * subgraphs), "Buffers": tables(buffers)}
    b.Finish(table("Model", Version=version, **parts), b"TFL3")
    return bytes(b.Output())
