"""The graph of an integer network: data only, one frozen dataclass per thing.

Channels come last and there is no batch axis: a shape is that of one sample.
A graph is checked when it is made, by the same Rust code that later plans it;
FORMATS.md, "Integer networks", has the exact meaning of every operation.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lowbit import _core

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from lowbit.integer.network import Network

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
    "Operation",
    "Pad",
    "Quantize",
    "Reshape",
    "Slice",
    "Softmax",
    "Table",
    "Tensor",
]

Pair = tuple[int, int]

#: Characters of a name in tables.
NAME = 40

#: What a file's graph says of itself; raised when the meaning of a field changes.
VERSION = 1


@dataclass(frozen=True)
class Tensor:
    """What flows between operations.

    Codes are int8 or uint8 and stand for ``(code - zero_point) * scale``; sums
    are int32; numbers are float32. ``scale`` is None for the last two.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True, eq=False)
class Constant:
    """Weights, biases, tables.

    ``data`` is int8 or uint8 codes, or int32 biases. ``scale`` is float32 of
    shape (1,) or one per index of axis 0, or None. ``nbits`` is what the codes
    take in a file.
    """

    name: str
    data: NDArray[Any]
    scale: NDArray[np.float32] | None = None
    zero_point: int = 0
    nbits: int = 8


@dataclass(frozen=True)
class Operation:
    """One step. Fields that name tensors are strings, or tuples of them."""

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Operation]]] = {}
    _tensors: ClassVar[tuple[str, ...]] = ("input",)
    _constants: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Operation._kinds[cls.kind] = cls

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors read, constants not among them."""
        return tuple(getattr(self, name) for name in self._tensors)

    @property
    def constants(self) -> tuple[str, ...]:
        """The constants read."""
        return tuple(name for at in self._constants if (name := getattr(self, at)) is not None)


@dataclass(frozen=True)
class Conv2d(Operation):
    """Convolution. Input (H, W, C), weight (O, KH, KW, C / groups), bias (O,), output (OH, OW, O).

    ``padding`` is ((top, bottom), (left, right)) and stands for the real number
    0. ``qmin`` and ``qmax`` clamp the output's codes, as a fused activation
    does. An output of int32 is the sums; one of float32 the sums times
    input scale times weight scale.
    """

    kind: ClassVar[str] = "conv2d"
    _constants: ClassVar[tuple[str, ...]] = ("weight", "bias")
    input: str
    weight: str
    bias: str | None
    output: str
    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    qmin: int | None = None
    qmax: int | None = None
    requantize: str = "float32"


@dataclass(frozen=True)
class FullyConnected(Operation):
    """A linear layer of all that the input holds. Weight (O, K), bias (O,), output (O,); see `Conv2d`."""

    kind: ClassVar[str] = "fully_connected"
    _constants: ClassVar[tuple[str, ...]] = ("weight", "bias")
    input: str
    weight: str
    bias: str | None
    output: str
    qmin: int | None = None
    qmax: int | None = None
    requantize: str = "float32"


@dataclass(frozen=True)
class Add(Operation):
    """The sum of two tensors of one shape, each with a scale of its own."""

    kind: ClassVar[str] = "add"
    _tensors: ClassVar[tuple[str, ...]] = ("a", "b")
    a: str
    b: str
    output: str
    qmin: int | None = None
    qmax: int | None = None
    requantize: str = "shift20"


@dataclass(frozen=True)
class Multiply(Operation):
    """The product of two tensors of one shape, or of b's channels with each pixel of a."""

    kind: ClassVar[str] = "multiply"
    _tensors: ClassVar[tuple[str, ...]] = ("a", "b")
    a: str
    b: str
    output: str
    qmin: int | None = None
    qmax: int | None = None
    requantize: str = "float32"


@dataclass(frozen=True)
class Concatenate(Operation):
    """Tensors of one scale and zero point one after the other along an axis."""

    kind: ClassVar[str] = "concatenate"
    parts: tuple[str, ...]
    output: str
    axis: int

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors read."""
        return self.parts


@dataclass(frozen=True)
class AveragePool2d(Operation):
    """Means of windows. Padding is not counted. Where the output has a scale or zero point of its own, FORMATS.md
    has another rounding.
    """

    kind: ClassVar[str] = "average_pool2d"
    input: str
    output: str
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    qmin: int | None = None
    qmax: int | None = None


@dataclass(frozen=True)
class MaxPool2d(Operation):
    """Largest codes of windows. Padding is not looked at. Input and output have one scale and zero point."""

    kind: ClassVar[str] = "max_pool2d"
    input: str
    output: str
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
    qmin: int | None = None
    qmax: int | None = None


@dataclass(frozen=True)
class Softmax(Operation):
    """Softmax along the last axis. The output's scale is 1/256, its zero point the least code."""

    kind: ClassVar[str] = "softmax"
    input: str
    output: str


@dataclass(frozen=True)
class Table(Operation):
    """Any function of one code: ``table[code]``, for int8 ``table[code + 128]``."""

    kind: ClassVar[str] = "table"
    _constants: ClassVar[tuple[str, ...]] = ("table",)
    input: str
    table: str
    output: str


@dataclass(frozen=True)
class Reshape(Operation):
    """The same codes in another shape."""

    kind: ClassVar[str] = "reshape"
    input: str
    output: str


@dataclass(frozen=True)
class Pad(Operation):
    """The input between zeros (codes: the zero point); (before, after) for each axis."""

    kind: ClassVar[str] = "pad"
    input: str
    output: str
    padding: tuple[Pair, ...]


@dataclass(frozen=True)
class Slice(Operation):
    """``input[begin::step]`` along each axis, as much of it as the output holds."""

    kind: ClassVar[str] = "slice"
    input: str
    output: str
    begin: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True)
class Quantize(Operation):
    """float32 to codes: ``clamp(rint(x / scale) + zero_point)``, 1 / scale rounded to float32 first."""

    kind: ClassVar[str] = "quantize"
    input: str
    output: str


@dataclass(frozen=True)
class Dequantize(Operation):
    """Codes to float32."""

    kind: ClassVar[str] = "dequantize"
    input: str
    output: str


@dataclass(frozen=True, eq=False)
class Graph:
    """An integer network: operations in the order they run.

    Raises
    ------
    ValueError
        Something does not fit: what is named, with what was expected.
    """

    tensors: Mapping[str, Tensor]
    constants: Mapping[str, Constant]
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: What readers and calibration say of the network, for people.
    notes: Mapping[str, str] = field(default_factory=dict)
    #: Pairs of tensors: the first is what the sample before wrote to the second, and 0 for the first
    #: sample. No operation writes it. A network that has states runs as a stream.
    states: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        _core.check_graph(self.to_json())

    def to_json(self) -> str:
        """All but the constants' data: what a file's metadata hold and the Rust side reads."""
        return json.dumps(
            {
                "version": VERSION,
                "tensors": [asdict(t) for t in self.tensors.values()],
                "constants": [_described(c) for c in self.constants.values()],
                "operations": [{"op": op.kind, **asdict(op)} for op in self.operations],
                "inputs": self.inputs,
                "outputs": self.outputs,
                "states": [{"read": read, "write": write} for read, write in self.states],
            },
            allow_nan=False,
        )

    def plan(self, *, isa: str | None = None) -> Network:
        """This network made ready to run; see `Network`."""
        from lowbit.integer.network import Network

        return Network(self, isa=isa)

    def __repr__(self) -> str:
        """How much of everything there is: the table, which `str` gives, would flood a prompt."""
        n_bytes = sum(map(_bytes, self.constants.values()))
        return f"Graph({len(self.operations)} operations, {len(self.tensors)} tensors, {n_bytes:,} bytes of parameters)"

    def __str__(self) -> str:
        """A table: a row for each operation."""
        rows = [("operation", "output", "shape", "dtype", "scale", "weight", "bits")]
        for op in self.operations:
            out = self.tensors[op.output]  # type: ignore[attr-defined]  # each kind has one
            scale = "" if out.scale is None else f"{out.scale:.4g}"
            used = [self.constants[name] for name in op.constants[:1]]
            weight = "".join(str(c.data.shape) for c in used)
            bits = "".join(str(c.nbits) for c in used)
            name = out.name if len(out.name) <= NAME else out.name[: NAME - 1] + "…"
            rows.append((op.kind, name, str(out.shape), out.dtype, scale, weight, bits))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)

    def arrays(self) -> Iterator[NDArray[Any]]:
        """The constants' data, in their order."""
        return (c.data for c in self.constants.values())


def _bytes(c: Constant) -> int:
    """Of its codes, packed as in a file, and its scales."""
    data = -(-c.data.size * c.nbits // 8) if c.data.itemsize == 1 else c.data.nbytes
    return data + (0 if c.scale is None else 4 * c.scale.size)


def _described(c: Constant) -> dict[str, Any]:
    scale = None if c.scale is None else [float(s) for s in c.scale]
    shape, dtype = list(c.data.shape), str(c.data.dtype)
    return {
        "name": c.name,
        "shape": shape,
        "dtype": dtype,
        "scale": scale,
        "zero_point": c.zero_point,
        "nbits": c.nbits,
    }


def operation_from(described: Mapping[str, Any]) -> Operation:
    """The operation that `Graph.to_json` described."""
    rest = dict(described)
    cls = Operation._kinds.get(rest.pop("op", None))
    if cls is None:
        raise ValueError(f"op: expected one of {', '.join(Operation._kinds)}, got {described.get('op')!r}")
    known = {f.name for f in fields(cls)}
    if unknown := set(rest) - known:
        raise ValueError(f"{cls.kind}: unknown field {sorted(unknown)[0]!r}")
    return cls(**{name: _tuples(value) for name, value in rest.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
