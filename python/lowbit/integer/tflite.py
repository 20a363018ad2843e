"""Integer networks from TFLite files (LiteRT's): needs the package ``tflite``.

A file is read in two steps. The first takes from it what the second needs; it
trusts no count and no offset, and what a malformed file makes the flatbuffers
package raise becomes a ValueError. The second makes the graph, or lists
everything that stands in its way.
"""

from __future__ import annotations

import math
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.integer import graph as g
from lowbit.types import FileFormatError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["from_tflite"]

#: A table of a file can be named many times over, so the file's size does not bound these.
MOST_OPERATORS, MOST_TENSORS = 4096, 8192
#: Inputs of one concatenation, of all operators together, and tables that are made for them.
MOST_PARTS, MOST_INPUTS, MOST_RESCALED = 64, 4 * MOST_OPERATORS, 1024
#: Bytes of one name, and of all names.
NAME, NAMES = 1000, 2**19

DTYPES = {"FLOAT32": "float32", "INT32": "int32", "UINT8": "uint8", "INT64": "int64", "INT8": "int8"}
CODES = ("int8", "uint8")
ACTIVATIONS = {"NONE": (-math.inf, math.inf), "RELU": (0.0, math.inf), "RELU_N1_TO_1": (-1.0, 1.0), "RELU6": (0.0, 6.0)}

#: The class of each operator's options, and the fields read: those that a graph can express or must refuse.
WINDOW = ("Padding", "StrideH", "StrideW", "FusedActivationFunction")
OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "CONV_2D": ("Conv2DOptions", (*WINDOW, "DilationHFactor", "DilationWFactor")),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2DOptions", (*WINDOW, "DilationHFactor", "DilationWFactor")),
    "FULLY_CONNECTED": ("FullyConnectedOptions", ("FusedActivationFunction", "WeightsFormat")),
    "ADD": ("AddOptions", ("FusedActivationFunction",)),
    "MUL": ("MulOptions", ("FusedActivationFunction",)),
    "CONCATENATION": ("ConcatenationOptions", ("Axis", "FusedActivationFunction")),
    "AVERAGE_POOL_2D": ("Pool2DOptions", (*WINDOW, "FilterHeight", "FilterWidth")),
    "MAX_POOL_2D": ("Pool2DOptions", (*WINDOW, "FilterHeight", "FilterWidth")),
    "SOFTMAX": ("SoftmaxOptions", ("Beta",)),
    "RESHAPE": ("", ()),
    "PAD": ("", ()),
    "QUANTIZE": ("", ()),
    "DEQUANTIZE": ("", ()),
}
NEAREST = {
    "RELU": "a fused activation",
    "RELU6": "a fused activation",
    "MEAN": "AVERAGE_POOL_2D of the whole window",
    "SUM": "AVERAGE_POOL_2D",
    "PADV2": "PAD",
    "MIRROR_PAD": "PAD",
    "SUB": "ADD",
    "SQUEEZE": "RESHAPE",
    "EXPAND_DIMS": "RESHAPE",
    "BATCH_MATMUL": "FULLY_CONNECTED",
    "TRANSPOSE_CONV": "CONV_2D",
    "LOG_SOFTMAX": "SOFTMAX",
}
CONVERT = "convert the network with full integer quantization and a representative data set"


def from_tflite(path: str | os.PathLike[str]) -> g.Graph:
    """Reads a fully quantized network of int8 or uint8.

    Taken are CONV_2D, DEPTHWISE_CONV_2D, FULLY_CONNECTED, ADD, MUL of one shape or
    with a number for each channel, CONCATENATION, AVERAGE_POOL_2D, MAX_POOL_2D,
    SOFTMAX, RESHAPE and PAD of codes, fused activations, QUANTIZE of float32 or from
    int8 to uint8 and back, and DEQUANTIZE. The batch axis, which has to be 1, is left
    out. Results are those of LiteRT with XNNPACK.

    Parameters
    ----------
    path : str or path
        The file. Constants are views of what is read of it.

    Returns
    -------
    graph : Graph
        With the file's names of tensors.

    Raises
    ------
    ImportError
        ``tflite`` is not installed.
    OSError
        No such file.
    FileFormatError
        No TFLite file, or a malformed one.
    ValueError
        A network that cannot be taken: every operator and tensor in the way, those of
        floats in one line, and what would do instead.
    """
    try:
        import tflite
    except ImportError as error:
        raise ImportError("from_tflite: needs the package tflite: pip install 'lowbit[tflite]'") from error
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"path: expected a regular file, got {path}")
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise FileFormatError(f"{path}: expected a TFLite file, with 'TFL3' at byte 4, got {data[4:8]!r}")
    try:
        model = _Model(tflite, data)
    except (struct.error, TypeError, IndexError, OverflowError, ValueError) as error:
        raise FileFormatError(f"{path}: malformed: {error}") from error
    return _Reader(model, str(path)).graph()


# ------------------------------------------------------------------ what the file says


@dataclass
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int
    data: NDArray[Any] | None
    #: Why it cannot be taken, if so.
    wrong: str = ""


@dataclass
class _Operator:
    kind: str
    inputs: list[int]
    outputs: list[int]
    options: dict[str, Any]


class _Model:
    """The tensors and operators of the first subgraph.

    Raises
    ------
    ValueError, TypeError, struct.error
        What the file says is not in it.
    """

    def __init__(self, tflite: Any, data: bytes) -> None:
        self._tflite, self._data = tflite, data
        self._types = {value: name for name, value in vars(tflite.TensorType).items() if isinstance(value, int)}
        self._taken = self._named = 0
        model = tflite.Model.GetRootAs(data, 0)
        self._model, self.version = model, model.Version()
        self.n_subgraphs = model.SubgraphsLength()
        self.tensors: dict[int, _Tensor] = {}
        self.operators: list[_Operator] = []
        self.inputs: list[int] = []
        self.outputs: list[int] = []
        if self.n_subgraphs != 1 or self.version != 3:
            return
        n_codes = _count("operator codes", model.OperatorCodesLength(), MOST_OPERATORS)
        codes = [self._kind(model.OperatorCodes(i)) for i in range(n_codes)]
        subgraph = model.Subgraphs(0)
        n_tensors = subgraph.TensorsLength()
        self.inputs = _indices("inputs", subgraph.InputsAsNumpy(), n_tensors)
        self.outputs = _indices("outputs", subgraph.OutputsAsNumpy(), n_tensors)
        for i in range(_count("operators", subgraph.OperatorsLength(), MOST_OPERATORS)):
            self.operators.append(self._operator(subgraph.Operators(i), codes, n_tensors, f"operator {i}"))
        _count("inputs of all operators", sum(len(op.inputs) for op in self.operators), MOST_INPUTS)
        used = {*self.inputs, *self.outputs}.union(*(op.inputs + op.outputs for op in self.operators)) - {-1}
        _count("tensors in use", len(used), MOST_TENSORS)
        names: set[str] = set()
        for i in sorted(used):
            tensor = self._tensor(subgraph.Tensors(i), f"tensor {i}")
            while not tensor.name or tensor.name in names:
                tensor.name += f"#{i}"
            names.add(tensor.name)
            self.tensors[i] = tensor

    def _kind(self, code: Any) -> str:
        # Files before schema 3a have the code in the deprecated field alone.
        value = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if value == self._tflite.BuiltinOperator.CUSTOM:
            return f"CUSTOM {_short(self._text(code, 6))}"
        return str(self._tflite.BUILTIN_OPCODE2NAME.get(value, f"operator of code {value}"))

    def _text(self, table: Any, slot: int) -> str:
        """A string of a table, cut: it can be shared, and its length be anything."""
        at = table._tab.Offset(slot)
        if at == 0:
            return ""
        start, n = table._tab.Vector(at), min(table._tab.VectorLen(at), NAME, NAMES - self._named)
        self._named += n
        return bytes(self._data[start : start + n]).decode("utf-8", "replace")

    def _operator(self, op: Any, codes: list[str], n_tensors: int, where: str) -> _Operator:
        if op.OpcodeIndex() >= len(codes):
            raise ValueError(f"{where}: expected a code below {len(codes)}, got {op.OpcodeIndex()}")
        kind = codes[op.OpcodeIndex()]
        if kind not in OPTIONS:
            return _Operator(kind, [], [], {})
        most = MOST_PARTS if kind == "CONCATENATION" else 4
        inputs = _indices(f"{where}: inputs", op.InputsAsNumpy(), n_tensors, -1, most)
        outputs = _indices(f"{where}: outputs", op.OutputsAsNumpy(), n_tensors)
        cls, names = OPTIONS[kind]
        options = {}
        if names:
            given, table = getattr(self._tflite, cls)(), op.BuiltinOptions()
            if table is None or op.BuiltinOptionsType() != getattr(self._tflite.BuiltinOptions, cls):
                raise ValueError(f"{where}: expected {cls}, got another kind of options")
            given.Init(table.Bytes, table.Pos)
            options = {name: getattr(given, name)() for name in names}
        return _Operator(kind, inputs, outputs, options)

    def _tensor(self, tensor: Any, where: str) -> _Tensor:
        shape, params = _array(tensor.ShapeAsNumpy()), tensor.Quantization()
        if len(shape) > 8 or (shape < 0).any():
            raise ValueError(f"{where}: expected at most 8 axes of 0 or more, got {len(shape)}")
        kind = self._types.get(tensor.Type(), f"type {tensor.Type()}")
        scale = np.empty(0, "<f4") if params is None else _array(params.ScaleAsNumpy(), "<f4")
        zero_point = np.empty(0, "<i8") if params is None else _array(params.ZeroPointAsNumpy(), "<i8")
        axis = 0 if params is None else params.QuantizedDimension()
        name, dtype = self._text(tensor, 10), DTYPES.get(kind, kind.lower())
        made = _Tensor(name, tuple(shape.tolist()), dtype, scale, zero_point, axis, None)
        if tensor.IsVariable():
            made.wrong = "keeps a state between calls"
        elif tensor.Sparsity() is not None:
            made.wrong = "is sparse"
        elif len(zero_point) not in (0, len(scale)):
            raise ValueError(f"{where}: expected as many zero points as scales, got {len(zero_point)} and {len(scale)}")
        else:
            made.data = self._constant(tensor.Buffer(), made, where)
        return made

    def _constant(self, index: int, tensor: _Tensor, where: str) -> NDArray[Any] | None:
        if index >= self._model.BuffersLength():
            raise ValueError(f"{where}: expected a buffer below {self._model.BuffersLength()}, got {index}")
        buffer = self._model.Buffers(index)
        if buffer.Offset() > 1:
            tensor.wrong = "has its data after the flatbuffer, as files above 2 GB do"
            return None
        octets = _array(buffer.DataAsNumpy(), "u1")
        if len(octets) == 0 or tensor.dtype not in DTYPES.values():
            return None
        dtype = np.dtype(tensor.dtype)
        expected = math.prod(tensor.shape) * dtype.itemsize
        if len(octets) != expected:
            raise ValueError(f"{where}: expected {expected} bytes of data, got {len(octets)}")
        # Tensors may share a buffer: what is made of them later must not outgrow the file.
        self._taken += len(octets)
        if self._taken > len(self._data):
            raise ValueError(f"{where}: expected constants of no more bytes than the file's, got {self._taken}")
        return np.require(octets.view(dtype).reshape(tensor.shape), requirements="A")


def _array(vector: Any, dtype: str = "<i4") -> NDArray[Any]:
    """What flatbuffers made of a vector: the number 0 where there is none."""
    return np.empty(0, dtype) if isinstance(vector, int) else vector.astype(dtype, copy=False)


def _count(what: str, n: int, most: int) -> int:
    if n > most:
        raise ValueError(f"{what}: expected at most {most}, got {n}")
    return n


def _indices(what: str, vector: Any, end: int, least: int = 0, most: int = 64) -> list[int]:
    found = _array(vector)
    _count(what, len(found), most)
    if ((found < least) | (found >= end)).any():
        raise ValueError(f"{what}: expected tensors of {least} to {end - 1}, got {found.tolist()}")
    return found.tolist()


def _short(name: str) -> str:
    """A name for a message."""
    return repr(name if len(name) <= 60 else f"{name[:60]}…")


# ------------------------------------------------------------------ what becomes of it


class _CannotTake(Exception):
    """Why an operator or tensor cannot be taken."""


class _Floats(_CannotTake):
    """An operator computes with floats: a reason that is told once for all of them."""


@dataclass
class _Reader:
    model: _Model
    path: str
    tensors: dict[str, g.Tensor] = field(default_factory=dict)
    constants: dict[str, g.Constant] = field(default_factory=dict)
    operations: list[g.Operation] = field(default_factory=list)
    #: By tensor, scale and zero point: the tensor of that scale and zero point that was made of it.
    rescaled: dict[tuple[str, float | None, int], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.taken = {t.name for t in self.model.tensors.values()}

    def graph(self) -> g.Graph:
        """The graph, or all reasons why there is none."""
        model = self.model
        problems: list[str] = []
        floats: dict[int, str] = {}
        inputs: tuple[str, ...] = ()
        outputs: tuple[str, ...] = ()
        if model.version != 3:
            problems.append(f"expected version 3 of the schema, got {model.version}")
        elif model.n_subgraphs != 1:
            problems.append(f"expected one subgraph, got {model.n_subgraphs}; export one signature alone")
        else:
            inputs, known = self._boundary(model.inputs, problems), set(model.inputs)
            for i, op in enumerate(model.operators):
                try:
                    if not problems and not floats:  # else what is missing may be what an operator refused makes
                        self._in_order(op, known)
                    self.operations.append(self._operation(op))
                except _Floats:
                    floats[i] = op.kind
                except _CannotTake as reason:
                    problems.append(f"operator {i}, {op.kind}: {reason}")
                known.update(op.outputs)
            outputs = self._boundary(model.outputs, problems)
            if floats:
                kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(floats.values()).most_common())
                which = f"{len(floats)} of {len(model.operators)} operators ({kinds}; the first is {min(floats)})"
                problems.insert(0, f"{which}: expected codes of int8 or uint8, got floats; {CONVERT}")
            if not problems and (missing := set(model.outputs) - known):
                problems.append(f"output {_short(model.tensors[min(missing)].name)} is never written")
        if problems:
            raise ValueError("\n  ".join([f"{self.path}: cannot take", *problems]))
        try:
            return g.Graph(self.tensors, self.constants, tuple(self.operations), inputs, outputs, {"source": "TFLite"})
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _boundary(self, indices: list[int], problems: list[str]) -> tuple[str, ...]:
        names = []
        for index in indices:
            try:
                names.append(self._tensor(index).name)
            except _CannotTake as reason:
                problems.append(f"input or output: {reason}")
        return tuple(names)

    def _in_order(self, op: _Operator, known: set[int]) -> None:
        """What is read is constant or was written before; what is written was not."""
        tensors = self.model.tensors
        for t in (tensors[index] for index in op.inputs if index >= 0 and index not in known):
            if t.data is None and not t.wrong:
                raise _CannotTake(f"reads {_short(t.name)} before it is written")
        for index in op.outputs:
            if index in known or tensors[index].data is not None:
                raise _CannotTake(f"writes {_short(tensors[index].name)} again")

    def _operation(self, op: _Operator) -> g.Operation:
        make: dict[str, Callable[[_Operator], g.Operation]] = {
            "CONV_2D": self._conv2d,
            "DEPTHWISE_CONV_2D": self._conv2d,
            "FULLY_CONNECTED": self._fully_connected,
            "ADD": self._add,
            "MUL": self._multiply,
            "CONCATENATION": self._concatenate,
            "AVERAGE_POOL_2D": self._pool,
            "MAX_POOL_2D": self._pool,
            "SOFTMAX": self._softmax,
            "RESHAPE": self._reshape,
            "PAD": self._pad,
            "QUANTIZE": self._quantize,
            "DEQUANTIZE": self._dequantize,
        }
        if op.kind not in make:
            nearest = f"; nearest is {NEAREST[op.kind]}" if op.kind in NEAREST else ""
            raise _CannotTake(f"not among {', '.join(make)}{nearest}")
        return make[op.kind](op)

    # What several operators need

    def _tensor(self, index: int, dtypes: tuple[str, ...] = (*CODES, "float32")) -> g.Tensor:
        """What flows, without the batch axis."""
        if index < 0:
            raise _CannotTake("expected a tensor, got none")
        t = self.model.tensors[index]
        if t.wrong:
            raise _CannotTake(f"{_short(t.name)} {t.wrong}")
        if t.data is not None:
            raise _CannotTake(f"expected {_short(t.name)} to be computed, got a constant")
        if t.dtype not in dtypes:
            reason = _Floats if t.dtype in ("float16", "bfloat16", "float32", "float64") else _CannotTake
            raise reason(f"expected {_short(t.name)} of {' or '.join(dtypes)}, got {t.dtype}")
        if t.shape[:1] != (1,):
            raise _CannotTake(
                f"expected {_short(t.name)} with a batch of 1 on axis 0, got shape {t.shape}; export it so"
            )
        scale, zero_point = None, 0
        if t.dtype != "float32":
            if len(t.scale) != 1:
                raise _CannotTake(f"expected {_short(t.name)} with one scale, got {len(t.scale)}; {CONVERT}")
            scale, zero_point = float(_checked(t)[0]), _zero_point(t)
        made = g.Tensor(t.name, t.shape[1:], t.dtype, scale, zero_point)
        return self.tensors.setdefault(t.name, made)

    def _ends(self, op: _Operator, n_inputs: int = 1, dtypes: tuple[str, ...] = CODES) -> tuple[g.Tensor, g.Tensor]:
        """The first input and the output."""
        if not n_inputs <= len(op.inputs) <= 3 or len(op.outputs) != 1 or op.inputs[0] < 0:
            raise _CannotTake(f"expected {n_inputs} inputs and 1 output, got {len(op.inputs)} and {len(op.outputs)}")
        x, out = self._tensor(op.inputs[0], dtypes), self._tensor(op.outputs[0], dtypes)
        if x.dtype != out.dtype and dtypes == CODES:
            raise _CannotTake(f"expected one dtype for input and output, got {x.dtype} and {out.dtype}")
        return x, out

    def _planes(self, op: _Operator) -> tuple[g.Tensor, g.Tensor]:
        x, out = self._ends(op)
        if len(x.shape) != 3 or len(out.shape) != 3:
            raise _CannotTake(
                f"expected an input and output of 4 axes, got {len(x.shape) + 1} and {len(out.shape) + 1}"
            )
        return x, out

    def _weight(self, index: int, x: g.Tensor, n_axes: int, axis: int = 0) -> g.Constant:
        """The weight with its outputs first."""
        t = self.model.tensors.get(index)
        if t is None or t.data is None:
            raise _CannotTake("expected a constant weight, got a computed one" if t and not t.wrong else _why(t))
        if t.dtype != x.dtype:
            raise _CannotTake(f"expected weight {_short(t.name)} of {x.dtype}, as the input is, got {t.dtype}")
        if len(t.shape) != n_axes or 0 in t.shape or (axis and t.shape[0] != 1):
            raise _CannotTake(f"expected weight {_short(t.name)} of {n_axes} axes, got shape {t.shape}")
        if len(t.scale) not in (1, t.shape[axis]) or (len(t.scale) > 1 and t.axis != axis):
            raise _CannotTake(
                f"expected one scale or one per output of {_short(t.name)}, got {len(t.scale)} on axis {t.axis}"
            )
        # A depthwise weight is (1, KH, KW, O).
        data = np.moveaxis(t.data, axis, 0).reshape(t.shape[axis], *t.shape[1:axis], 1) if axis else t.data
        return self._constant(g.Constant(t.name, data, _checked(t), _zero_point(t)))

    def _bias(self, op: _Operator, n: int) -> str | None:
        t = self.model.tensors.get(op.inputs[2]) if len(op.inputs) == 3 else None
        if t is None:
            return None
        if t.data is None or t.dtype != "int32" or t.shape != (n,):
            raise _CannotTake(f"expected a constant int32 bias of shape ({n},), got {t.dtype} of {t.shape}")
        return self._constant(g.Constant(t.name, t.data)).name

    def _constant(self, made: g.Constant) -> g.Constant:
        kept = self.constants.setdefault(made.name, made)
        if kept.data.shape != made.data.shape:
            raise _CannotTake(
                f"{_short(made.name)} is read as {kept.data.shape} elsewhere and here as {made.data.shape}"
            )
        return kept

    def _clamp(self, op: _Operator, out: g.Tensor) -> dict[str, Any]:
        """A fused activation as the output's codes. XNNPACK adds the zero point and rounds, halves to even; means
        are left to a kernel that rounds first, halves away from 0.
        """
        names = {0: "NONE", 1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6"}
        name = names.get(op.options["FusedActivationFunction"])
        if name is None:
            raise _CannotTake(
                f"expected a fused {', '.join(names.values())}, got {op.options['FusedActivationFunction']}"
            )
        if name == "NONE":
            return {"qmin": None, "qmax": None}
        limits = np.iinfo(out.dtype)
        with np.errstate(over="ignore"):
            reals = np.array(ACTIVATIONS[name], np.float32) / np.float32(out.scale)
        if op.kind == "AVERAGE_POOL_2D":
            reals = np.trunc(reals.astype(np.float64) + np.copysign(0.5, reals))
        qmin, qmax = np.rint(np.clip(reals + np.float32(out.zero_point), limits.min, limits.max))
        return {"qmin": int(qmin), "qmax": int(qmax)}

    def _window(self, op: _Operator, x: g.Tensor, out: g.Tensor, kernel: tuple[int, int]) -> dict[str, Any]:
        """Stride, dilation and padding; SAME keeps ``ceil(size / stride)``, the odd zero after."""
        stride = op.options["StrideH"], op.options["StrideW"]
        dilation = op.options.get("DilationHFactor", 1), op.options.get("DilationWFactor", 1)
        if min(*stride, *dilation, *kernel) < 1:
            raise _CannotTake(f"expected positive sizes, got kernel {kernel}, stride {stride}, dilation {dilation}")
        pads, sizes = [], []
        for size, k, step, apart in zip(x.shape, kernel, stride, dilation, strict=False):
            reach = (k - 1) * apart + 1
            same = op.options["Padding"] == 0
            missing = max((-(-size // step) - 1) * step + reach - size, 0) if same else 0
            pads.append((missing // 2, missing - missing // 2))
            sizes.append((size + missing - reach) // step + 1)
        if out.shape[:2] != tuple(sizes):
            raise _CannotTake(f"expected an output of {sizes[0]} x {sizes[1]}, got {out.shape[0]} x {out.shape[1]}")
        found = {"stride": stride, "padding": tuple(pads)}
        return found | ({"dilation": dilation} if "DilationHFactor" in op.options else {})

    # The operators

    def _conv2d(self, op: _Operator) -> g.Conv2d:
        x, out = self._planes(op)
        depthwise = op.kind == "DEPTHWISE_CONV_2D"
        weight = self._weight(op.inputs[1] if len(op.inputs) > 1 else -1, x, 4, 3 if depthwise else 0)
        n, *kernel, depth = weight.data.shape
        if x.shape[2] % depth or x.shape[2] == 0 or n % (x.shape[2] // depth) or out.shape[2] != n:
            raise _CannotTake(
                f"expected channels that fit, got {x.shape[2]} to {out.shape[2]} of weight {weight.data.shape}"
            )
        where = self._window(op, x, out, (kernel[0], kernel[1])) | self._clamp(op, out)
        return g.Conv2d(x.name, weight.name, self._bias(op, n), out.name, groups=x.shape[2] // depth, **where)

    def _fully_connected(self, op: _Operator) -> g.FullyConnected:
        x, out = self._ends(op)
        weight = self._weight(op.inputs[1] if len(op.inputs) > 1 else -1, x, 2)
        n, k = weight.data.shape
        if op.options["WeightsFormat"] != 0:
            raise _CannotTake("expected weights in the default order, got shuffled ones")
        if math.prod(x.shape) != k or out.shape != (n,):
            raise _CannotTake(f"expected {k} inputs and (1, {n}) outputs, got {x.shape} and {(1, *out.shape)}")
        return g.FullyConnected(x.name, weight.name, self._bias(op, n), out.name, **self._clamp(op, out))

    def _add(self, op: _Operator) -> g.Add:
        a, out = self._ends(op, 2)
        b = self._tensor(op.inputs[1], CODES)
        if not a.shape == b.shape == out.shape:
            raise _CannotTake(f"expected one shape, got {a.shape}, {b.shape} and {out.shape}; nothing is broadcast")
        return g.Add(a.name, b.name, out.name, **self._clamp(op, out))

    def _multiply(self, op: _Operator) -> g.Operation:
        a, out = self._ends(op, 2)
        b = self._tensor(op.inputs[1], CODES)
        if b.dtype != out.dtype:
            raise _CannotTake(f"expected one dtype for inputs and output, got {a.dtype} and {b.dtype}")
        if a.shape != out.shape:
            a, b = b, a
        channels = a.shape[-1:] or (1,)
        each = b.shape[-1:] == channels and math.prod(b.shape) == channels[0]
        if a.shape != out.shape or not (b.shape == a.shape or each):
            raise _CannotTake(
                f"expected one shape, or a number for each channel, got {a.shape}, {b.shape} and {out.shape}"
            )
        with np.errstate(all="ignore"):
            factor = np.float32(a.scale) * np.float32(b.scale) / np.float32(out.scale)
        if not 2.0**-16 <= factor < 2.0**8:  # XNNPACK leaves others to a kernel that rounds in another way
            raise _CannotTake(
                f"expected the product of both scales to be 2^-16 to 2^8 times the output's, got {factor} times"
            )
        clamp = self._clamp(op, out)
        return self._square(a, out, **clamp) if a is b else g.Multiply(a.name, b.name, out.name, **clamp)

    def _square(self, x: g.Tensor, out: g.Tensor, qmin: int | None, qmax: int | None) -> g.Table:
        """The product of a tensor with itself: XNNPACK makes a table of it, and rounds otherwise than products."""
        limits = np.iinfo(out.dtype)
        with np.errstate(over="ignore"):
            inverse = np.float32(1) / np.float32(out.scale)
        if np.isinf(inverse):
            raise _CannotTake(f"expected {_short(out.name)} of a scale whose inverse is finite, got {out.scale}")
        every = np.arange(limits.min, limits.max + 1)
        numbers = (every - x.zero_point).astype(np.float32) * np.float32(x.scale)
        # Each step in float32, the zero point added before it is rounded.
        codes = np.rint(numbers * numbers * inverse + np.float32(out.zero_point))
        codes = np.clip(codes, limits.min if qmin is None else qmin, limits.max if qmax is None else qmax)
        table = self._constant(g.Constant(f"{out.name}#table", codes.astype(out.dtype)))
        return g.Table(x.name, table.name, out.name)

    def _concatenate(self, op: _Operator) -> g.Concatenate:
        if not op.inputs or len(op.outputs) != 1:
            raise _CannotTake(f"expected inputs and 1 output, got {len(op.inputs)} and {len(op.outputs)}")
        parts, out = [self._tensor(index, CODES) for index in op.inputs], self._tensor(op.outputs[0], CODES)
        if dtypes := {part.dtype for part in parts} - {out.dtype}:
            raise _CannotTake(f"expected one dtype for inputs and output, got {min(dtypes)} and {out.dtype}")
        if op.options["FusedActivationFunction"] != 0:
            raise _CannotTake(f"expected no fused activation, got {op.options['FusedActivationFunction']}")
        n_axes, axis = len(out.shape) + 1, op.options["Axis"]
        if axis % n_axes == 0 or not -n_axes <= axis < n_axes:
            raise _CannotTake(f"expected one of {n_axes} axes, and not that of the batch, got axis {axis}")
        names = tuple(self._rescaled(part, out) for part in parts)
        return g.Concatenate(names, out.name, axis % n_axes - 1)

    def _rescaled(self, x: g.Tensor, out: g.Tensor) -> str:
        """What has the scale and zero point of ``out``: of uint8 by a table, as LiteRT computes it; int8 it refuses."""
        if (x.scale, x.zero_point) == (out.scale, out.zero_point):
            return x.name
        key = x.name, out.scale, out.zero_point
        if key in self.rescaled:
            return self.rescaled[key]
        if x.dtype != "uint8":
            wanted, got = (f"scale {t.scale} and zero point {t.zero_point}" for t in (out, x))
            raise _CannotTake(f"expected {_short(x.name)} with {wanted}, as the output, got {got}")
        with np.errstate(all="ignore"):
            factor = np.float32(x.scale) * (np.float32(1) / np.float32(out.scale))
        if not factor < 2.0**20:
            raise _CannotTake(f"expected {_short(x.name)} of a scale below 2^20 times the output's, got {factor} times")
        if len(self.rescaled) >= MOST_RESCALED:
            raise _CannotTake(f"expected at most {MOST_RESCALED} parts with other scales than their output's")
        # Each step in float32; halves away from 0.
        values = np.arange(256, dtype=np.float32) * factor + np.float32(-x.zero_point) * factor
        whole = np.trunc(values.astype(np.float64) + np.copysign(0.5, values)) + out.zero_point
        name = f"{x.name}#rescaled"
        while name in self.taken:
            name += "#"
        self.taken.add(name)
        self.rescaled[key] = name
        self.tensors[name] = g.Tensor(name, x.shape, "uint8", out.scale, out.zero_point)
        table = self._constant(g.Constant(f"{name}#table", np.clip(whole, 0, 255).astype(np.uint8)))
        self.operations.append(g.Table(x.name, table.name, name))
        return name

    def _pool(self, op: _Operator) -> g.AveragePool2d | g.MaxPool2d:
        x, out = self._planes(op)
        kernel = op.options["FilterHeight"], op.options["FilterWidth"]
        where = self._window(op, x, out, kernel) | self._clamp(op, out)
        cls = g.AveragePool2d if op.kind == "AVERAGE_POOL_2D" else g.MaxPool2d
        return cls(x.name, out.name, kernel, **where)

    def _softmax(self, op: _Operator) -> g.Softmax:
        x, out = self._ends(op)
        if op.options["Beta"] != 1:
            raise _CannotTake(f"expected beta 1, got {op.options['Beta']}")
        return g.Softmax(x.name, out.name)

    def _reshape(self, op: _Operator) -> g.Reshape:
        x, out = self._ends(op)
        return g.Reshape(x.name, out.name)

    def _pad(self, op: _Operator) -> g.Pad:
        x, out = self._ends(op, 2)
        t = self.model.tensors.get(op.inputs[1])
        if t is None or t.data is None or t.dtype not in ("int32", "int64") or t.shape != (len(x.shape) + 1, 2):
            raise _CannotTake("expected constant padding, two integers per axis")
        pads = [(int(before), int(after)) for before, after in t.data.tolist()]
        if pads[0] != (0, 0) or min(map(min, pads)) < 0:
            raise _CannotTake(f"expected padding of 0 or more, and none of the batch, got {pads}")
        return g.Pad(x.name, out.name, tuple(pads[1:]))

    def _quantize(self, op: _Operator) -> g.Operation:
        x, out = self._ends(op, dtypes=(*CODES, "float32"))
        if out.dtype == "float32":
            raise _CannotTake("expected codes as output, got float32")
        if x.dtype == "float32":
            return g.Quantize(x.name, out.name)
        limits, less = np.iinfo(out.dtype), np.iinfo(x.dtype).min
        if x.scale != out.scale or x.zero_point - less != out.zero_point - limits.min:
            raise _CannotTake("expected float32, or int8 and uint8 with the same meaning, got codes to rescale")
        table = g.Constant(f"{out.name}#table", np.arange(limits.min, limits.max + 1).astype(out.dtype))
        return g.Table(x.name, self._constant(table).name, out.name)

    def _dequantize(self, op: _Operator) -> g.Dequantize:
        x, out = self._ends(op, dtypes=(*CODES, "float32"))
        if x.dtype == "float32" or out.dtype != "float32":
            raise _CannotTake(f"expected codes to float32, got {x.dtype} to {out.dtype}")
        return g.Dequantize(x.name, out.name)


def _checked(t: _Tensor) -> NDArray[np.float32]:
    if not (np.isfinite(t.scale) & (t.scale > 0)).all():
        raise _CannotTake(f"expected finite, positive scales of {_short(t.name)}, got {t.scale.min()}")
    return t.scale


def _zero_point(t: _Tensor) -> int:
    limits, found = np.iinfo(t.dtype), t.zero_point
    if len(found) == 0:
        return 0
    if (found != found[0]).any() or not limits.min <= found[0] <= limits.max:
        raise _CannotTake(
            f"expected one zero point of {limits.min} to {limits.max} for {_short(t.name)}, got {found[0]}"
        )
    return int(found[0])


def _why(t: _Tensor | None) -> str:
    return "expected a weight, got none" if t is None else f"weight {_short(t.name)} {t.wrong}"
