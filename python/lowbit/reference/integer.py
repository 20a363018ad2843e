"""Integer networks, one operation after the other: what every other executor must equal bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.integer import graph as g
from lowbit.reference import conv

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["run"]


def run(graph: g.Graph, *inputs: ArrayLike) -> tuple[NDArray[Any], ...]:
    """The outputs of a batch, or of a stream's samples from its first on.

    Parameters
    ----------
    graph : Graph
        The network.
    *inputs : array_like, shape (N, ...)
        One for each of the graph's inputs, of its dtype: N samples of its shape.

    Returns
    -------
    outputs : tuple of ndarray, shape (N, ...)
        One for each of the graph's outputs.

    Raises
    ------
    TypeError
        An input of another dtype.
    ValueError
        Another number of inputs, another shape, NaN or infinities.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.integer.graph import Graph, Quantize, Tensor
    >>> from lowbit.reference.integer import run
    >>> x, y = Tensor("x", (2,), "float32"), Tensor("y", (2,), "int8", 0.5)
    >>> net = Graph({"x": x, "y": y}, {}, (Quantize("x", "y"),), ("x",), ("y",))
    >>> run(net, np.array([[1, 2], [3, 4]], np.float32))
    (array([[2, 4],
           [6, 8]], dtype=int8),)
    """
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"inputs: expected {len(graph.inputs)}, got {len(inputs)}")
    values: dict[str, NDArray[Any]] = {}
    n = 0
    for name, given in zip(graph.inputs, inputs, strict=True):
        tensor, x = graph.tensors[name], np.asarray(given)
        n = len(next(iter(values.values()), x)) if x.ndim else 0
        if x.dtype != tensor.dtype:
            raise TypeError(f"{name}: expected dtype {tensor.dtype}, got {x.dtype}")
        if x.shape != (n, *tensor.shape):
            raise ValueError(f"{name}: expected shape {(n or 'N', *tensor.shape)}, got {x.shape}")
        if (wrong := ~np.isfinite(x).ravel()).any():
            at = int(wrong.argmax())
            raise ValueError(f"{name}: expected finite values, got {x.flat[at]} at flat index {at}")
        values[name] = x
    if not graph.states:
        return _outputs(graph, values)
    # Sample after sample, with what the one before left.
    kept = {}
    for read, _ in graph.states:
        tensor = graph.tensors[read]
        kept[read] = np.full((1, *tensor.shape), tensor.zero_point, tensor.dtype)
    parts = []
    for at in range(n):
        sample = {name: x[at : at + 1] for name, x in values.items()} | kept
        parts.append(_outputs(graph, sample))
        kept = {read: sample[write] for read, write in graph.states}
    empty = tuple(np.empty((0, *graph.tensors[name].shape), graph.tensors[name].dtype) for name in graph.outputs)
    return tuple(np.concatenate(part) for part in zip(empty, *parts, strict=True))


def _outputs(graph: g.Graph, values: dict[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """The outputs, and in ``values`` all other tensors."""
    for op in graph.operations:
        values[op.output] = _run(graph, op, *(values[name] for name in op.inputs))  # type: ignore[attr-defined]
    return tuple(values[name] for name in graph.outputs)


def _run(graph: g.Graph, op: g.Operation, *inputs: NDArray[Any]) -> NDArray[Any]:
    """The operation's output."""
    x, a = inputs[0], graph.tensors[op.inputs[0]]
    out: g.Tensor = graph.tensors[op.output]  # type: ignore[attr-defined]
    match op:
        case g.Conv2d() | g.FullyConnected():
            return _product(graph, op, x)
        case g.Add():
            if op.requantize != "shift20":
                raise ValueError(f"requantize: expected 'shift20', got {op.requantize!r}")
            b = graph.tensors[op.b]
            scales = _scale(a), _scale(b), _scale(out)
            zero_points = a.zero_point, b.zero_point, out.zero_point
            qmin, qmax = _limits(op, out)
            return conv.add(*inputs, scales=scales, zero_points=zero_points, qmin=qmin, qmax=qmax)
        case g.Multiply():
            if op.requantize != "float32":
                raise ValueError(f"requantize: expected 'float32', got {op.requantize!r}")
            b = graph.tensors[op.b]
            scales = _scale(a), _scale(b), _scale(out)
            zero_points = a.zero_point, b.zero_point, out.zero_point
            y = inputs[1].reshape(len(x), *(1,) * (x.ndim - 2), -1) if b.shape != a.shape else inputs[1]
            qmin, qmax = _limits(op, out)
            return conv.multiply(x, y, scales=scales, zero_points=zero_points, qmin=qmin, qmax=qmax, dtype=out.dtype)
        case g.Concatenate():
            return np.concatenate(inputs, 1 + op.axis)
        case g.AveragePool2d():
            of_both: Any = {"scales": (_scale(a), _scale(out)), "zero_points": (a.zero_point, out.zero_point)}
            qmin, qmax = _limits(op, out)
            return conv.average_pool2d(x, op.kernel, op.stride, op.padding, qmin=qmin, qmax=qmax, **of_both)
        case g.MaxPool2d():
            qmin, qmax = _limits(op, out)
            return conv.max_pool2d(x, op.kernel, op.stride, op.padding, qmin=qmin, qmax=qmax)
        case g.Softmax():
            return conv.softmax(x, _scale(a))
        case g.Table():
            return graph.constants[op.table].data[x.astype(np.int64) - np.iinfo(x.dtype).min]
        case g.Reshape():
            return x.reshape(len(x), *out.shape)
        case g.Pad():
            return np.pad(x, ((0, 0), *op.padding), constant_values=a.zero_point)
        case g.Slice():
            steps = zip(op.begin, op.step, out.shape, strict=True)
            return x[(slice(None), *(slice(at, at + step * n, step) for at, step, n in steps))]
        case g.Quantize():
            return conv.quantize_codes(x, _scale(out), out.zero_point, out.dtype)
        case g.Dequantize():
            return conv.dequantize_codes(x, _scale(a), a.zero_point)
    raise ValueError(f"operation: expected one that graph.py defines, got {type(op).__name__}")


def _product(graph: g.Graph, op: g.Conv2d | g.FullyConnected, x: NDArray[Any]) -> NDArray[Any]:
    """A convolution or linear layer, and its sums as the output's dtype has them."""
    a, out, weight = graph.tensors[op.input], graph.tensors[op.output], graph.constants[op.weight]
    bias = None if op.bias is None else graph.constants[op.bias].data
    how: dict[str, Any] = {"x_zero_point": a.zero_point, "weight_zero_point": weight.zero_point}
    if isinstance(op, g.Conv2d):
        how |= {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
        sums = conv.conv2d(x, weight.data, bias, **how)
    else:
        sums = conv.fully_connected(x, weight.data, bias, **how)
    if out.dtype == "int32":
        return sums
    if weight.scale is None:
        raise ValueError(f"{weight.name}: expected a scale, got None")
    if out.dtype == "float32":
        return sums.astype(np.float32) * (np.float32(_scale(a)) * weight.scale)
    target: Any = out.zero_point, *_limits(op, out), out.dtype
    exact = np.float64(_scale(a)) * weight.scale.astype(np.float64) / np.float64(_scale(out))
    match op.requantize:
        case "float32":
            return conv.requantize(sums, conv.multiplier(_scale(a), weight.scale, _scale(out)), *target)
        case "fixed_point":
            return conv.requantize_fixed_point(sums, *conv.fixed_point(exact), *target)
        case "power_of_two":
            return conv.requantize_power_of_two(sums, conv.power_of_two(exact), *target)
    raise ValueError(f"requantize: expected float32, fixed_point or power_of_two, got {op.requantize!r}")


def _scale(tensor: g.Tensor) -> float:
    if tensor.scale is None:
        raise ValueError(f"{tensor.name}: expected a scale, got None")
    return tensor.scale


def _limits(op: Any, out: g.Tensor) -> tuple[int, int]:
    """The clamp of the output's codes."""
    limits = np.iinfo(out.dtype)
    return (
        limits.min if op.qmin is None else op.qmin,
        limits.max if op.qmax is None else op.qmax,
    )
