"""Integer networks as ONNX files in the QDQ form: needs the package ``onnx``.

What calculates stands in float32 between DequantizeLinear and QuantizeLinear,
a pattern that runtimes know and run in integers. What moves or compares codes
takes the codes themselves, and clamps follow the rounding: all that is exact.
Images have their channels first inside and last at the boundaries.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit._check import check_int
from lowbit.integer import graph as g

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["to_onnx"]

#: The first opset with a scale for each channel.
LEAST_OPSET = 13
#: What protobuf cannot hold in one file.
TOO_LARGE = 1 << 31

FIRST, LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def to_onnx(graph: g.Graph, path: str | os.PathLike[str], *, opset: int = LEAST_OPSET) -> None:
    """Writes a network to one ONNX file, which is complete or not there.

    Inputs and outputs keep their names, dtypes and shapes, channels last, after
    a batch axis ``N`` of any size. Weights stay int8 or uint8 with their scales,
    biases int32; int32 outputs are sums of integers, as exact as here. The rest is
    rounded by QuantizeLinear, halves to even, whatever ``requantize`` says: a
    code of one operation differs by at most 1 from ``graph.plan()``'s.

    Parameters
    ----------
    graph : Graph
        The network. Its notes become the file's metadata.
    path : path_like
        A file there is replaced.
    opset : int
        13 to the newest that the installed ``onnx`` knows.

    Raises
    ------
    ImportError
        ``onnx`` is not installed.
    TypeError
        Another ``graph``, or an ``opset`` that is no int.
    ValueError
        An ``opset`` out of range, or a network that ONNX cannot express: all
        that stands in the way.
    OSError
        The file cannot be written.

    Notes
    -----
    On CPUs without VNNI, onnxruntime's products of uint8 with int8 saturate and
    codes differ by anything, unless its sessions are told otherwise:
    ``options.add_session_config_entry("session.x64quantprecision", "1")``.

    Examples
    --------
    >>> import numpy as np, tempfile, pathlib
    >>> from importlib.util import find_spec
    >>> from lowbit.integer import Constant, FullyConnected, Graph, Tensor, to_onnx
    >>> x, y = Tensor("x", (2,), "int8", scale=0.5), Tensor("y", (1,), "int8", scale=1.0)
    >>> w = Constant("w", np.array([[3, 4]], np.int8), np.array([0.5], np.float32))
    >>> graph = Graph({"x": x, "y": y}, {"w": w}, (FullyConnected("x", "w", None, "y"),), ("x",), ("y",))
    >>> path = pathlib.Path(tempfile.mkdtemp(), "network.onnx")
    >>> if find_spec("onnx"):
    ...     to_onnx(graph, path)
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("to_onnx: needs the package onnx: pip install 'lowbit[onnx]'") from error
    if not isinstance(graph, g.Graph):
        raise TypeError(f"graph: expected a Graph, got {type(graph).__name__}")
    opset = check_int("opset", opset, LEAST_OPSET, onnx.defs.onnx_opset_version())
    if problems := list(_problems(graph)):
        raise ValueError("\n  ".join(["graph: ONNX cannot express", *problems]))
    data = _Writer(onnx, graph).model(opset).SerializeToString()
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _problems(graph: g.Graph) -> Iterator[str]:
    """What stands in the way."""
    if "" in graph.tensors:
        yield "tensors: expected names, got ''"
    for name, count in Counter(graph.outputs).items():
        if count > 1:
            yield f"outputs: expected names that differ, got {name!r} {count} times"
    if graph.states:
        names = ", ".join(repr(read) for read, _ in graph.states)
        yield f"states: expected none, got {names}; make each an input, and what it becomes an output"
    for i, op in enumerate(graph.operations):
        if type(op) not in _WRITERS:
            yield f"operation {i} ({op.kind}): expected an operation of graph.py, got {type(op).__name__}"
    if (size := sum(data.nbytes for data in graph.arrays())) >= TOO_LARGE:
        yield f"constants: expected less than {TOO_LARGE:,} bytes, which is all that one file takes, got {size:,}"


class _Writer:
    """The nodes of a graph.

    A tensor whose channels come last has its own name in the file. That of an
    image whose channels come first is in ``first``; each is made of the other
    where something asks for it.
    """

    def __init__(self, onnx: Any, graph: g.Graph) -> None:
        self.onnx, self.graph = onnx, graph
        self.nodes: list[Any] = []
        self.initializers: dict[Any, Any] = {}
        self.taken = set(graph.tensors)
        self.last, self.first = set(graph.inputs), dict[str, str]()

    def model(self, opset: int) -> Any:
        """The whole model."""
        helper = self.onnx.helper
        for op in self.graph.operations:
            _WRITERS[type(op)](self, op)
        for name in self.graph.outputs:
            self.channels_last(name)
        inputs, outputs = (
            [self.described(name) for name in names] for names in (self.graph.inputs, self.graph.outputs)
        )
        graph = helper.make_graph(self.nodes, "lowbit", inputs, outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", opset)]
        # The newest IR version, make_model's own choice, is more than runtimes read.
        version = helper.find_min_ir_version_for(opsets)
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="lowbit")
        helper.set_model_props(model, dict(self.graph.notes))
        return model

    def described(self, name: str) -> Any:
        """An input or output."""
        tensor = self.graph.tensors[name]
        dtype = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        return self.onnx.helper.make_tensor_value_info(name, dtype, ["N", *tensor.shape])

    # Values

    def fresh(self, hint: str) -> str:
        """A name that nothing has."""
        name, count = hint, 1
        while name in self.taken:
            name, count = f"{hint}#{count}", count + 1
        self.taken.add(name)
        return name

    def node(self, kind: str, inputs: Sequence[str], out: str, **attributes: Any) -> str:
        self.nodes.append(
            self.onnx.helper.make_node(kind, inputs, [out], name=self.fresh(f"{out}/{kind}"), **attributes)
        )
        return out

    def constant(self, hint: str, data: Any) -> str:
        """An array of the file, once for all that ask for it."""
        data = np.asarray(data)
        key = hint, data.dtype.str, data.shape, data.tobytes()
        if key not in self.initializers:
            self.initializers[key] = self.onnx.numpy_helper.from_array(data, self.fresh(hint))
        return self.initializers[key].name

    def whole(self, hint: str, *values: int) -> str:
        return self.constant(hint, np.array(values, np.int64))

    def channels_last(self, name: str) -> str:
        """A tensor as the graph has it."""
        if name not in self.last:
            self.last.add(self.node("Transpose", [self.first[name]], name, perm=LAST))
        return name

    def channels_first(self, name: str) -> str:
        """The same, (N, C, H, W) if it is an image: what most operations take."""
        if not self.is_image(name):
            return name
        if name not in self.first:
            self.first[name] = self.node("Transpose", [name], self.fresh(f"{name}/nchw"), perm=FIRST)
        return self.first[name]

    def in_order(self, name: str) -> str:
        """A tensor whose elements have the graph's order, in whichever of the two shapes is there already."""
        one_order = name in self.first and self.has_one_order(name)
        return self.first[name] if one_order else self.channels_last(name)

    def output(self, name: str) -> str:
        """Where an operation writes: an image with its channels first."""
        if self.is_image(name):
            return self.first.setdefault(name, self.fresh(f"{name}/nchw"))
        self.last.add(name)
        return name

    def is_image(self, name: str) -> bool:
        return len(self.graph.tensors[name].shape) == 3

    def has_one_order(self, name: str) -> bool:
        """Whether an image's elements lie alike with channels first and last."""
        height, width, channels = self.graph.tensors[name].shape
        return channels == 1 or height * width == 1

    def axes(self, name: str) -> list[int]:
        """Where the axes of a tensor are in the file."""
        return [2, 3, 1] if self.is_image(name) else [1 + axis for axis in range(len(self.graph.tensors[name].shape))]

    # Codes and numbers

    def scale(self, name: str) -> list[str]:
        """What QuantizeLinear and DequantizeLinear want to know of a tensor."""
        tensor = self.graph.tensors[name]
        scale, zero_point = np.array(tensor.scale, np.float32), np.array(tensor.zero_point, tensor.dtype)
        return [self.constant(f"{name}/scale", scale), self.constant(f"{name}/zero_point", zero_point)]

    def numbers(self, name: str, codes: str | None = None) -> str:
        """A tensor's numbers: made for each that asks, as the runtimes' patterns have it."""
        codes = self.channels_first(name) if codes is None else codes
        return self.node("DequantizeLinear", [codes, *self.scale(name)], self.fresh(f"{name}/numbers"))

    def dequantized(self, name: str, data: NDArray[Any], **how: Any) -> str:
        """A constant's numbers, with a scale for each index of the first axis if it has more than one."""
        constants = [self.constant(name, data), *(self.constant(f"{name}/{key}", value) for key, value in how.items())]
        return self.node("DequantizeLinear", constants, self.fresh(f"{name}/numbers"), axis=0)

    def codes(self, op: Any, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        """A node that makes an operation's output, and the clamp where it is narrower than the dtype."""
        limits, out = np.iinfo(self.graph.tensors[op.output].dtype), self.output(op.output)
        clamp = {"qmin": limits.min, "qmax": limits.max}
        narrower = {end: code for end in clamp if (code := getattr(op, end, None)) is not None}
        if clamp | narrower == clamp:
            self.node(kind, inputs, out, **attributes)
            return
        codes = self.node(kind, inputs, self.fresh(f"{op.output}/unclamped"), **attributes)
        ends = [
            self.constant(f"{op.output}/{end}", np.array(code, limits.dtype))
            for end, code in (clamp | narrower).items()
        ]
        self.node("Clip", [codes, *ends], out)

    def quantized(self, op: Any, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        """A node of numbers, and what makes them the codes of an operation's output."""
        numbers = self.node(kind, inputs, self.fresh(f"{op.output}/exact"), **attributes)
        self.codes(op, "QuantizeLinear", [numbers, *self.scale(op.output)])

    # The operations

    def product(self, op: g.Conv2d | g.FullyConnected) -> None:
        x, out, weight = self.graph.tensors[op.input], self.graph.tensors[op.output], self.graph.constants[op.weight]
        codes, data = self.channels_first(op.input), weight.data
        attributes: dict[str, Any] = {}
        if isinstance(op, g.Conv2d):
            data = data.transpose(FIRST)
            attributes = {"group": op.groups, "dilations": op.dilation} | _window(op, data.shape[2:])
        elif len(x.shape) != 1:
            if self.is_image(op.input):
                data = data.reshape(-1, *x.shape).transpose(FIRST).reshape(data.shape)
            shape = self.whole("row", 0, data.shape[1])
            codes = self.node("Reshape", [codes, shape], self.fresh(f"{op.input}/row"))
        if out.dtype == "int32":
            self.sums(op, codes, data, attributes)
            return
        scale = np.asarray(weight.scale, np.float32)
        scale = scale.reshape(-1 if scale.size > 1 else ())
        zero_points = np.full(scale.shape, weight.zero_point, data.dtype)
        inputs = [
            self.numbers(op.input, codes),
            self.dequantized(op.weight, data, scale=scale, zero_point=zero_points),
        ]
        if op.bias is not None:
            bias = self.graph.constants[op.bias].data
            inputs.append(self.dequantized(op.bias, bias, scale=np.float32(x.scale) * scale))
        kind, attributes = ("Conv", attributes) if isinstance(op, g.Conv2d) else ("Gemm", {"transB": 1})
        if out.dtype == "float32":
            self.node(kind, inputs, self.output(op.output), **attributes)
        else:
            self.quantized(op, kind, inputs, **attributes)

    def sums(self, op: g.Conv2d | g.FullyConnected, codes: str, data: NDArray[Any], attributes: dict[str, Any]) -> None:
        """A product whose output is the sums themselves.

        Both operands are made uint8: of mixed ones onnxruntime 1.32 saturates
        in products without VNNI and gets convolutions wrong.
        """
        x, weight = self.graph.tensors[op.input], self.graph.constants[op.weight]
        x_zero_point, zero_point = x.zero_point, weight.zero_point
        if x.dtype == "int8":
            x_zero_point += 128
            scale, shifted = self.scale(op.input)[0], self.constant("shifted", np.uint8(x_zero_point))
            codes = self.node(
                "QuantizeLinear", [self.numbers(op.input, codes), scale, shifted], self.fresh(f"{op.input}/uint8")
            )
        if data.dtype == np.int8:
            data, zero_point = (data.astype(np.int16) + 128).astype(np.uint8), zero_point + 128
        kind, row = "ConvInteger", (*weight.data.shape[:1], 1, 1)
        if isinstance(op, g.FullyConnected):
            kind, row, data = "MatMulInteger", weight.data.shape[:1], data.T
        zero_points = [self.constant("zero_point", np.uint8(code)) for code in (x_zero_point, zero_point)]
        inputs = [codes, self.constant(f"{op.weight}/uint8", data), *zero_points]
        if op.bias is None:
            self.node(kind, inputs, self.output(op.output), **attributes)
            return
        sums = self.node(kind, inputs, self.fresh(f"{op.output}/products"), **attributes)
        bias = self.constant(f"{op.bias}/sums", self.graph.constants[op.bias].data.reshape(row))
        self.node("Add", [sums, bias], self.output(op.output))

    def add(self, op: g.Add) -> None:
        self.quantized(op, "Add", [self.numbers(op.a), self.numbers(op.b)])

    def multiply(self, op: g.Multiply) -> None:
        a, b, codes = self.graph.tensors[op.a].shape, self.graph.tensors[op.b].shape, self.channels_first(op.b)
        if len(a) != len(b):
            shape = (b[-1], 1, 1) if self.is_image(op.a) else (*(1,) * (len(a) - 1), b[-1])
            inputs = [self.in_order(op.b), self.whole("channels", 0, *shape)]
            codes = self.node("Reshape", inputs, self.fresh(f"{op.b}/channels"))
        self.quantized(op, "Mul", [self.numbers(op.a), self.numbers(op.b, codes)])

    def average_pool2d(self, op: g.AveragePool2d) -> None:
        x, out = self.graph.tensors[op.input], self.graph.tensors[op.output]
        how = {"count_include_pad": 0} | _window(op, op.kernel)
        if (x.scale, x.zero_point) != (out.scale, out.zero_point):
            self.quantized(op, "AveragePool", [self.numbers(op.input)], **how)
            return
        # Means of the codes themselves; a scale just below 1 takes halves away from 0 and nothing else
        # past a half, of windows of up to 2^11.
        scales = [
            self.constant(f"codes/{name}", np.float32(scale)) for name, scale in (("one", 1), ("less", 1 - 2**-20))
        ]
        zero = self.constant(f"codes/{x.dtype}", np.array(0, x.dtype))
        codes = self.node(
            "DequantizeLinear", [self.channels_first(op.input), scales[0], zero], self.fresh(f"{op.input}/codes")
        )
        means = self.node("AveragePool", [codes], self.fresh(f"{op.output}/exact"), **how)
        self.codes(op, "QuantizeLinear", [means, scales[1], zero])

    def max_pool2d(self, op: g.MaxPool2d) -> None:
        self.codes(op, "MaxPool", [self.channels_first(op.input)], **_window(op, op.kernel))

    def softmax(self, op: g.Softmax) -> None:
        self.quantized(op, "Softmax", [self.numbers(op.input)], axis=self.axes(op.input)[-1])

    def table(self, op: g.Table) -> None:
        table = self.graph.constants[op.table].data
        if self.graph.tensors[op.input].dtype == "int8":
            table = np.roll(table, 128)  # Gather counts negative codes from the end
        codes = [self.channels_first(op.input)]
        index = self.node("Cast", codes, self.fresh(f"{op.input}/index"), to=self.onnx.TensorProto.INT32)
        self.node("Gather", [self.constant(op.table, table), index], self.output(op.output), axis=0)

    def concatenate(self, op: g.Concatenate) -> None:
        parts = [self.channels_first(name) for name in op.parts]
        self.node("Concat", parts, self.output(op.output), axis=self.axes(op.output)[op.axis])

    def reshape(self, op: g.Reshape) -> None:
        shape, out = self.graph.tensors[op.output].shape, op.output
        if self.is_image(out) and self.has_one_order(out):
            shape, out = (shape[2], *shape[:2]), self.output(out)
        else:
            self.last.add(out)
        self.node("Reshape", [self.in_order(op.input), self.whole("shape", 0, *shape)], out)

    def pad(self, op: g.Pad) -> None:
        x = self.graph.tensors[op.input]
        pads = np.zeros((2, 1 + len(x.shape)), np.int64)
        pads[:, self.axes(op.input)] = np.transpose(op.padding)
        zero = self.constant(f"{op.input}/zero_point", np.array(x.zero_point, x.dtype))
        inputs = [self.channels_first(op.input), self.whole("pads", *pads.ravel()), zero]
        self.node("Pad", inputs, self.output(op.output))

    def slice(self, op: g.Slice) -> None:
        sizes = self.graph.tensors[op.output].shape
        ends = [at + step * (n - 1) + 1 for at, step, n in zip(op.begin, op.step, sizes, strict=True)]
        how = {"begin": op.begin, "end": ends, "axes": self.axes(op.input), "step": op.step}
        inputs = [self.channels_first(op.input), *(self.whole(name, *values) for name, values in how.items())]
        self.node("Slice", inputs, self.output(op.output))

    def quantize(self, op: g.Quantize) -> None:
        self.codes(op, "QuantizeLinear", [self.channels_first(op.input), *self.scale(op.output)])

    def dequantize(self, op: g.Dequantize) -> None:
        codes = self.channels_first(op.input)
        self.node("DequantizeLinear", [codes, *self.scale(op.input)], self.output(op.output))


def _window(op: g.Conv2d | g.AveragePool2d | g.MaxPool2d, kernel: Sequence[int]) -> dict[str, Any]:
    (top, bottom), (left, right) = op.padding
    return {"kernel_shape": kernel, "strides": op.stride, "pads": (top, left, bottom, right)}


_WRITERS: dict[type[g.Operation], Callable[[_Writer, Any], None]] = {
    g.Add: _Writer.add,
    g.AveragePool2d: _Writer.average_pool2d,
    g.Concatenate: _Writer.concatenate,
    g.Conv2d: _Writer.product,
    g.Dequantize: _Writer.dequantize,
    g.FullyConnected: _Writer.product,
    g.MaxPool2d: _Writer.max_pool2d,
    g.Multiply: _Writer.multiply,
    g.Pad: _Writer.pad,
    g.Quantize: _Writer.quantize,
    g.Reshape: _Writer.reshape,
    g.Slice: _Writer.slice,
    g.Softmax: _Writer.softmax,
    g.Table: _Writer.table,
}
