"""A PyTorch model as the steps of a network in floats that integers can do."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from lowbit.torch.calibrate import _evaluating

__all__ = ["MOVES", "Reader", "Step", "channels_last", "product", "read"]


@dataclass(eq=False, repr=False)
class Step:
    """One step of the network in floats, of batches in torch's order of axes.

    ``shape`` is one sample's. ``run`` makes the output of the inputs; a layer's is by its
    ``weight`` and ``bias``, float64. ``clamp`` is what an activation that is part of the
    step leaves. ``name`` is that of the module that does nothing else, or else the trace's; steps
    may share one. ``order`` says which places of a flattened map its values have where the
    graph, channels last, has them in another order.
    """

    kind: str
    name: str
    inputs: tuple[Step, ...]
    shape: tuple[int, ...]
    run: Callable[..., torch.Tensor] | None = None
    how: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    clamp: tuple[float, float] | None = None
    order: np.ndarray | None = None

    def apply(self, *xs: torch.Tensor) -> torch.Tensor:
        """The outputs."""
        if self.run is None:
            return self.finish(product(self, xs[0], self.weight.to(xs[0].dtype)), self.bias)
        y = self.run(*xs)
        return y if self.clamp is None else y.clamp(*self.clamp)

    def finish(self, sums: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """A layer's outputs by its sums without bias."""
        y = sums + bias.to(sums.dtype).reshape(-1, *(1,) * (sums.ndim - 2))
        return y if self.clamp is None else y.clamp_(*self.clamp)


#: What takes its input's codes, with their scale, to its output.
MOVES = ("max", "pad", "slice", "reshape")

#: What can clamp its output.
CLAMPED = ("conv", "linear", "add", "multiply", "average")


def product(step: Step, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if step.kind == "linear":
        return functional.linear(x, weight)
    (top, bottom), (left, right) = step.how["padding"]
    if (top, left) == (bottom, right):
        padding = (top, left)
    else:
        x, padding = functional.pad(x, (left, right, top, bottom)), (0, 0)
    return functional.conv2d(x, weight, None, step.how["stride"], padding, step.how["dilation"], step.how["groups"])


class _No(Exception):
    """Why a node cannot be taken, and the nearest thing that can."""


_NO_PRODUCT = "a product of matrices that are no parameters; products of each value with one other, or a Linear"
_NEAREST = {
    "div": "a quotient of two activations; a table of the reciprocal, and their product",
    "matmul": _NO_PRODUCT,
    "bmm": _NO_PRODUCT,
    "scaled_dot_product_attention": _NO_PRODUCT,
    "sub": "a difference of two activations; let the layer before learn the sign, and add",
    "conv1d": "one axis of positions; a Conv2d with a height of 1",
    "conv3d": "three axes of positions; Conv2d",
    "conv_transpose2d": "a transposed convolution; leave it outside of the network",
    "layer_norm": "its mean and variance are those of each sample; BatchNorm folds into the layer before",
    "group_norm": "its mean and variance are those of each sample; BatchNorm folds into the layer before",
    "instance_norm": "its mean and variance are those of each sample; BatchNorm folds into the layer before",
    "log_softmax": "logarithms of probabilities; softmax, or the outputs before it, whose order is the same",
    "permute": "axes in another order; reshape or flatten",
    "transpose": "axes in another order; reshape or flatten",
    "upsample_nearest2d": "a resized map; leave it outside of the network",
    "upsample_bilinear2d": "a resized map; leave it outside of the network",
    "embedding": "a look-up by numbers; lowbit.torch.quantize_ takes it",
    "amax": "a maximum over axes; max_pool2d over the whole map",
    "adaptive_max_pool2d": "windows of several sizes; max_pool2d with a kernel",
}  # fmt: skip
_SAME = ("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "detach", "alias", "lift_fresh_copy",
         "to", "_to_copy", "_assert_tensor_metadata")  # fmt: skip
_NORMS = ("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
_SHAPES = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "_unsafe_view")
#: Of one value each, though torch does not tag them so.
_POINTWISE = ("hardswish", "log_sigmoid", "prelu", "relu6", "clip", "square", "softsign", "hardshrink", "softshrink")


class Reader:
    """An exported program's nodes as steps; what cannot be taken is collected in ``problems``."""

    def __init__(self, program: Any, batch: int, modules: Collection[str] = ()) -> None:
        self.batch, self.problems = batch, []
        #: The names of modules that hold no others: their operations are called as they are.
        self.modules = modules
        self.steps: list[Step] = []
        self.outputs: list[Step] = []
        signature, state = program.graph_signature, {**program.state_dict, **program.constants}
        self._targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self._targets |= signature.inputs_to_lifted_tensor_constants
        # None: a problem that has been told.
        values: dict[fx.Node, Step | torch.Tensor | None] = {}
        inputs = set(signature.user_inputs)
        nodes = {node.name: node for node in program.graph.nodes}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in self._targets:
                values[node] = state[self._targets[node.name]].detach()
            elif node.op == "placeholder":
                values[node] = self._input(node) if node.name in inputs else None
            elif node.op == "call_function":
                values[node] = self._value(node, values)
        for name in signature.user_outputs:
            step = values.get(nodes.get(name))
            if isinstance(step, Step) and step.order is not None:
                self.problems.append(f"{step.name}: a flattened map is an output; give the map itself")
            elif isinstance(step, Step):
                self.outputs.append(step)
            elif not isinstance(name, str) or isinstance(step, torch.Tensor):
                self.problems.append(f"output {name}: depends on no input; leave it outside of the network")
        if not self.problems:
            self._fuse()

    def _input(self, node: fx.Node) -> Step | None:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            self.problems.append(f"{node.name}: expected inputs of float32, got {got}; convert them before")
            return None
        return self._add(Step("input", node.name, (), tuple(value.shape[1:]), lambda x: x))

    def _add(self, step: Step) -> Step:
        self.steps.append(step)
        return step

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        op = _op(node)
        given = [values[n] for n in node.all_input_nodes]
        if any(v is None for v in given):
            return None
        if not any(isinstance(v, Step) for v in given):
            return _constant(node, values)
        try:
            return self._step(op, node, _Arguments(node, values))
        except _No as reason:
            where = _module(node)
            at = f" in {where}" if where else ""
            self.problems.append(f"{node.name} ({op}{at}): {reason}")
            return None

    # Each of these raises `_No`, or gives the node's step.

    def _step(self, op: str, node: fx.Node, args: _Arguments) -> Step:
        x = args.first
        if op == "getitem":
            if args.plain[1] != 0 or x.kind != "affine":
                raise _No("one of several outputs; nothing near it")
            return x
        if op in _SAME:
            if op in ("to", "_to_copy") and node.meta["val"].dtype != torch.float32:
                raise _No(f"a conversion to {node.meta['val'].dtype}; float32 throughout")
            if args.get("train"):
                raise _No("drops values at random; dropout that depends on self.training")
            return x
        shape = self._shape(node)
        layer, module = args.layer(self._targets), _module(node)
        name = module if module in self.modules else node.name
        if op in ("conv2d", "linear"):
            return self._add(self._product(op, layer or name, args, x, shape, layer))
        if op in _NORMS:
            return self._norm(layer or name, args, x, layer)
        if op in _SHAPES:
            return self._reshape(name, x, shape)
        if op == "cat":
            return self._cat(name, args, shape)
        pools = {
            "mean": self._mean,
            "adaptive_avg_pool2d": self._adaptive,
            "avg_pool2d": self._average,
            "max_pool2d": self._max,
        }
        if op in pools:
            _maps(op, x)
            return pools[op](name, args, x, shape)
        if op in ("pad", "constant_pad_nd"):
            return self._pad(name, args, x, shape)
        if op == "slice":
            return self._slice(name, args, x, shape)
        if op == "softmax" or op == "_softmax":
            if x.order is not None or len(shape) != 1 or args["dim"] not in (1, -1):
                raise _No("softmax over positions; over the last axis of a vector")
            return self._add(Step("softmax", name, (x,), shape, lambda t: t.softmax(-1)))
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or op in _POINTWISE:
            return self._pointwise(op, name, node, args, shape)
        raise _No(_NEAREST.get(op, "no integer operation; leave it outside of the network"))

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        value = node.meta["val"]
        if isinstance(value, (tuple, list)):
            value = value[0]
        if not value.ndim or value.shape[0] != self.batch:
            raise _No(f"its outputs, {tuple(value.shape)}, have no batch as axis 0; keep samples apart")
        return tuple(value.shape[1:])

    def _product(self, op: str, name: str, args: _Arguments, x: Step, shape: Any, layer: str) -> Step:
        weight, bias = args["weight"], args["bias"]
        if not isinstance(weight, torch.Tensor) or not (bias is None or isinstance(bias, torch.Tensor)):
            raise _No(_NO_PRODUCT)
        weight = weight.double()
        bias = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
        for what, values in (("weight", weight), ("bias", bias)):
            if not bool(torch.isfinite(values).all()):
                raise _No(f"its {what} holds NaN or an infinity")
        if op == "linear":
            if len(shape) != 1:
                raise _No("a linear layer of each position; a Conv2d with a kernel of 1")
            return Step("linear", name, (x,), shape, layer=layer, weight=weight, bias=bias)
        if x.order is not None or len(x.shape) != 3:
            raise _No(f"its input has the shape {x.shape}; maps of (channels, height, width)")
        stride, padding, dilation = (args[what] for what in ("stride", "padding", "dilation"))
        dilation = _pair(dilation)
        if padding == "same":
            wanted = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            pads = tuple((p // 2, p - p // 2) for p in wanted)
        else:
            pads = tuple((p, p) for p in _pair(0 if padding == "valid" else padding))
        how = {"stride": _pair(stride), "padding": pads, "dilation": dilation, "groups": args["groups"]}
        return Step("conv", name, (x,), shape, how=how, layer=layer, weight=weight, bias=bias)

    def _norm(self, name: str, args: _Arguments, x: Step, layer: str) -> Step:
        mean, var = args.get("running_mean"), args.get("running_var")
        if args.get("training") or mean is None or var is None:
            raise _No("it takes each batch's mean and variance; BatchNorm with running statistics")
        gain = 1 / (var.double() + args["eps"]).sqrt()
        if args["weight"] is not None:
            gain = gain * args["weight"].double()
        shift = -mean.double() * gain
        if args["bias"] is not None:
            shift = shift + args["bias"].double()
        return self._affine(name, x, gain, shift, layer)

    def _affine(self, name: str, x: Step, gain: torch.Tensor, shift: torch.Tensor, layer: str) -> Step:
        """A factor and an addend for each channel."""
        if x.order is not None or len(x.shape) not in (1, 3):
            raise _No(f"channels of an input of shape {x.shape}; maps or vectors")
        if not bool(torch.isfinite(gain).all() and torch.isfinite(shift).all()):
            raise _No("its numbers are not finite")
        step = Step("affine", name, (x,), x.shape, how={"gain": gain, "shift": shift}, layer=layer)
        return self._add(step)

    def _reshape(self, name: str, x: Step, shape: tuple[int, ...]) -> Step:
        if x.shape == shape:
            return x
        if x.order is not None or (len(shape) > 1 and not (_plain(x.shape) and _plain(shape))):
            raise _No(f"{x.shape} as {shape}: other neighbours where channels come last; flatten right before a Linear")
        order = None if _plain(x.shape) else np.arange(math.prod(shape)).reshape(x.shape).transpose(1, 2, 0).ravel()
        return self._add(Step("reshape", name, (x,), shape, lambda t: t.reshape(-1, *shape), order=order))

    def _mean(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        dims = args["dim"]
        if dims is None or {d % 4 for d in dims} != {2, 3}:
            raise _No("a mean over other axes than height and width; over these")
        whole = x.shape[1:]
        pooled = self._pool("average", name, x, (x.shape[0], 1, 1), whole, whole, (0, 0))
        return self._reshape(f"{name}_flat", pooled, shape)

    def _adaptive(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        if any(n % out for n, out in zip(x.shape[1:], shape[1:], strict=True)):
            raise _No(f"{x.shape[1:]} positions in {shape[1:]} windows of several sizes; avg_pool2d with a kernel")
        kernel = tuple(n // out for n, out in zip(x.shape[1:], shape[1:], strict=True))
        return self._pool("average", name, x, shape, kernel, kernel, (0, 0))

    def _average(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        kernel, padding = _pair(args["kernel_size"]), _pair(args["padding"])
        if args["divisor_override"] is not None:
            raise _No("a divisor of its own; means")
        if any(padding) and args["count_include_pad"]:
            if args["ceil_mode"]:
                raise _No("ceil_mode with padding that counts; count_include_pad=False")
            (h, w), c = padding, x.shape[0]
            padded = (c, x.shape[1] + 2 * h, x.shape[2] + 2 * w)
            run = lambda t: functional.pad(t, (w, w, h, h))  # noqa: E731
            pads = ((h, h), (w, w), (0, 0))
            x, padding = self._add(Step("pad", f"{name}_pad", (x,), padded, run, {"padding": pads})), (0, 0)
        return self._pool("average", name, x, shape, kernel, _pair(args["stride"] or kernel), padding)

    def _max(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        if _pair(args["dilation"]) != (1, 1):
            raise _No("windows with gaps; a dilation of 1")
        kernel = _pair(args["kernel_size"])
        return self._pool("max", name, x, shape, kernel, _pair(args["stride"] or kernel), _pair(args["padding"]))

    def _pool(self, kind: str, name: str, x: Step, shape: Any, kernel: Any, stride: Any, padding: Any) -> Step:
        if tuple(kernel) == (1, 1) and x.shape == tuple(shape):
            return x
        # With ceil_mode the last windows reach past the end.
        needed = [(o - 1) * s + k - n for o, s, k, n in zip(shape[1:], stride, kernel, x.shape[1:], strict=True)]
        pads = tuple((p, max(p, n - p)) for p, n in zip(padding, needed, strict=True))
        more = any(after > before for before, after in pads)
        if kind == "max":
            run = lambda t: functional.max_pool2d(t, kernel, stride, padding, ceil_mode=more)  # noqa: E731
        else:
            run = lambda t: functional.avg_pool2d(t, kernel, stride, padding, more, False)  # noqa: E731
        how = {"kernel": tuple(kernel), "stride": tuple(stride), "padding": pads}
        return self._add(Step(kind, name, (x,), tuple(shape), run, how))

    def _pad(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        pads, value = list(args["pad"]), args["value"]
        if args.get("mode", "constant") != "constant" or value:
            raise _No("padding with other values than 0; padding_mode='zeros'")
        if any(p < 0 for p in pads) or x.order is not None or any(pads[2 * len(x.shape) :]):
            raise _No("negative padding, or of other axes than a map's or vector's; a slice, or zeros around it")
        pairs = [(0, 0)] * len(x.shape)
        for i in range(min(len(pads) // 2, len(x.shape))):
            pairs[-1 - i] = (pads[2 * i], pads[2 * i + 1])
        run = lambda t: functional.pad(t, pads)  # noqa: E731
        return self._add(Step("pad", name, (x,), shape, run, {"padding": channels_last(pairs)}))

    def _slice(self, name: str, args: _Arguments, x: Step, shape: tuple[int, ...]) -> Step:
        axis = args["dim"] % (len(x.shape) + 1)
        size = self.batch if axis == 0 else x.shape[axis - 1]
        begin, _, step = slice(args["start"], args["end"], args["step"]).indices(size)
        if x.shape == shape and (begin, step) == (0, 1):
            return x
        if axis == 0 or x.order is not None:
            raise _No("some of the samples, or of a flattened map; slice the map")
        begins, steps = [0] * len(x.shape), [1] * len(x.shape)
        begins[axis - 1], steps[axis - 1] = begin, step
        end = begin + (shape[axis - 1] - 1) * step + 1
        index = (slice(None),) * axis + (slice(begin, end, step),)
        return self._add(
            Step(
                "slice",
                name,
                (x,),
                shape,
                lambda t: t[index],
                {"begin": channels_last(begins), "step": channels_last(steps)},
            )
        )

    def _cat(self, name: str, args: _Arguments, shape: tuple[int, ...]) -> Step:
        parts = tuple(args.tensors)
        if len(parts) != len(args["tensors"]) or not all(isinstance(x, Step) for x in parts):
            raise _No("constants among its parts; padding with zeros")
        axis = args["dim"] % (len(shape) + 1)
        if axis == 0:
            raise _No("samples one after the other; keep them apart")
        order = None
        if any(x.order is not None for x in parts):
            orders = [np.arange(x.shape[0]) if x.order is None else x.order for x in parts]
            starts = np.cumsum([0, *map(len, orders[:-1])])
            order = np.concatenate([start + places for start, places in zip(starts, orders, strict=True)])
        last = channels_last(range(len(shape))).index(axis - 1)
        run = lambda *ts: torch.cat(ts, axis)  # noqa: E731
        return self._add(Step("cat", name, parts, shape, run, {"axis": last}, order=order))

    def _pointwise(self, op: str, name: str, node: fx.Node, args: _Arguments, shape: tuple[int, ...]) -> Step:
        steps = [v for v in args.tensors if isinstance(v, Step)]
        constants = [v for v in args.tensors if isinstance(v, torch.Tensor)]
        base = _common(steps)
        if base is not None and all(v.numel() == 1 for v in constants) and base.shape == shape:
            bounds = _bounds(op, args) if len(steps) == 1 else None
            run = _closed(node, args, base)
            kind = "table" if bounds is None else "clamp"
            return self._add(Step(kind, name, (base,), shape, run, {"bounds": bounds}, order=base.order))
        if len(steps) == 2 and not constants:
            a, b = steps
            if op == "mul":
                return self._multiply(name, a, b, shape)
            if op != "add":
                raise _No(_NEAREST.get(op, "a function of two activations; sums and products are taken"))
            if args["alpha"] != 1 or a.shape != b.shape or (a.order is None) != (b.order is None):
                raise _No(f"a sum of {a.shape} and {b.shape}, alpha {args['alpha']}; one shape, alpha 1")
            return self._add(Step("add", name, (a, b), shape, torch.add, order=a.order))
        if len(steps) == 1 and len(constants) == 1 and op in ("add", "sub", "mul", "div"):
            return self._with_channels(op, name, args, steps[0], constants[0].double())
        raise _No("a function of several tensors; a function of one becomes a table, and sums and products are taken")

    def _multiply(self, name: str, a: Step, b: Step, shape: tuple[int, ...]) -> Step:
        a, b = (a, b) if a.shape == shape else (b, a)
        each = a.shape == b.shape and (a.order is None) == (b.order is None)
        if a.shape != shape or not (each or (len(shape) == 3 and b.shape == (shape[0], 1, 1))):
            raise _No(f"a product of {a.shape} and {b.shape}; of one shape, or with a number for each channel")
        return self._add(Step("multiply", name, (a, b), shape, torch.mul, order=a.order))

    def _with_channels(self, op: str, name: str, args: _Arguments, x: Step, constant: torch.Tensor) -> Step:
        """Arithmetic with a number for each channel."""
        c, first = x.shape[0], args.tensors[0]
        want = (c,) + (1,) * (len(x.shape) - 1)
        shape = tuple(constant.shape)
        if shape not in (want, (1, *want)) or args.get("alpha", 1) != 1 or (op == "div" and first is not x):
            raise _No(f"arithmetic with a constant of shape {shape}; a number, or one for each of {c} channels")
        constant = constant.flatten()
        one, none = torch.ones_like(constant), torch.zeros_like(constant)
        minus = first is not x and op == "sub"
        gain, shift = {
            "add": (one, constant),
            "sub": (-one, constant) if minus else (one, -constant),
            "mul": (constant, none),
            "div": (1 / constant, none),
        }[op]
        return self._affine(name, x, gain, shift, name)

    # -------------------------------------------------------------- fusing

    def _fuse(self) -> None:
        """Folds what is affine into layers, makes activations part of what they follow, and drops
        what nothing reads."""
        self._drop()
        for step in list(self.steps):
            (x,) = step.inputs if len(step.inputs) == 1 else (None,)
            if step.kind == "affine":
                if self._alone(x) and x.kind in ("conv", "linear") and x.clamp is None:
                    _fold(x, step.how["gain"], step.how["shift"])
                    self._replace(step, x)
                elif len(step.shape) == 3:
                    self._replace(step, self._depthwise(step))
                else:
                    self.problems.append(f"{step.name}: follows no Linear alone; Linear, then BatchNorm1d")
            elif step.kind == "clamp":
                into = x
                while into.kind == "max" and self._alone(into):  # the greatest comes first or last alike
                    into = into.inputs[0]
                if into.kind in CLAMPED and self._alone(into) and self._alone(x):
                    low, high = step.how["bounds"]
                    before = into.clamp or (-math.inf, math.inf)
                    into.clamp = tuple(min(max(b, low), high) for b in before)
                    self._replace(step, x)
                else:
                    step.kind = "table"
            if step.kind == "table" and x.kind == "table" and self._alone(x):
                step.run, step.inputs = _after(x.run, step.run), x.inputs
            if step.kind == "cat":
                parts = enumerate(step.inputs)
                step.inputs = tuple(x if self._free(x) else self._copy(step, i) for i, x in parts)
        self._drop()

    def _free(self, part: Step) -> bool:
        """Whether a part's codes may take the scale of what it is a part of, for nothing else sees them."""
        while part.kind in MOVES and self._private(part):
            (part,) = part.inputs
        return part.kind not in (*MOVES, "softmax") and self._private(part)

    def _private(self, step: Step) -> bool:
        """Whether one step reads it, no matter how often, and it is no output."""
        return sum(step in other.inputs for other in self.steps) + (step in self.outputs) == 1

    def _copy(self, step: Step, i: int) -> Step:
        """An input's values, which may have another scale."""
        x = step.inputs[i]
        copy = Step("table", f"{step.name}_part{i}", (x,), x.shape, torch.clone, order=x.order)
        self.steps.insert(self.steps.index(step), copy)
        return copy

    def _drop(self) -> None:
        read = set(self.outputs)
        for step in reversed(self.steps):
            if step in read:
                read.update(step.inputs)
        self.steps = [step for step in self.steps if step in read or step.kind == "input"]

    def _alone(self, step: Step) -> bool:
        """Whether one step reads it, and it is no output."""
        return sum(other.inputs.count(step) for other in self.steps) + self.outputs.count(step) == 1

    def _replace(self, old: Step, new: Step) -> None:
        if new not in self.steps:
            self.steps.insert(self.steps.index(old), new)
        self.steps.remove(old)
        for step in self.steps:
            step.inputs = tuple(new if x is old else x for x in step.inputs)
        self.outputs = [new if x is old else x for x in self.outputs]

    def _depthwise(self, step: Step) -> Step:
        gain, shift = step.how["gain"], step.how["shift"]
        how = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": len(gain)}
        weight = gain.reshape(-1, 1, 1, 1).clone()
        return Step("conv", step.name, step.inputs, step.shape, how=how, layer=step.layer, weight=weight, bias=shift)


class _Arguments:
    """A node's arguments by their names, nodes as their values."""

    def __init__(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        self.plain = tuple(values[a] if isinstance(a, fx.Node) else a for a in node.args)
        self.kwargs = {k: values[a] if isinstance(a, fx.Node) else a for k, a in node.kwargs.items()}
        schema = getattr(node.target, "_schema", None)
        expected = () if schema is None else schema.arguments
        self._named = {a.name: a.default_value for a in expected}
        self._named |= dict(zip(self._named, self.plain, strict=False)) | self.kwargs
        #: Steps and constants, as they come.
        self.tensors = [v for v in (*self.plain, *self.kwargs.values()) if isinstance(v, (Step, torch.Tensor))]
        for value in (*self.plain, *self.kwargs.values()):
            if isinstance(value, (tuple, list)):
                self.tensors += [values[v] for v in value if isinstance(v, fx.Node)]
        self._nodes = node.all_input_nodes

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self._named.get(name, default)

    @property
    def first(self) -> Step:
        return next(v for v in self.tensors if isinstance(v, Step))

    def layer(self, targets: Mapping[str, str]) -> str:
        """The dotted name of the module whose parameters these are."""
        names = [targets[n.name] for n in self._nodes if n.name in targets]
        name = next((n for n in names if n.endswith("weight")), names[0] if names else "")
        return name.removesuffix("weight").removesuffix(".") or name


def _module(node: fx.Node) -> str:
    """The dotted name of the innermost module that the node is of; none is the model itself."""
    return next(reversed(node.meta.get("nn_module_stack", {}).values()), ("",))[0]


def _op(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    return schema.name.partition("::")[2]


def _constant(node: fx.Node, values: Mapping[fx.Node, Any]) -> torch.Tensor:
    """What a node computes of constants alone."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    return node.target(*args, **kwargs)


def _pair(value: Any) -> tuple[int, int]:
    a = (value,) if isinstance(value, int) else tuple(value)
    return (a[0], a[-1])


def channels_last(axes: Sequence[Any]) -> tuple[Any, ...]:
    """Of a sample's axes, channels last."""
    return (*axes[1:], axes[0]) if len(axes) == 3 else tuple(axes)


def _plain(shape: tuple[int, ...]) -> bool:
    """Whether values have one order, channels first or last."""
    return len(shape) != 3 or shape[0] == 1 or shape[1] * shape[2] == 1


def _maps(op: str, x: Step) -> None:
    if len(x.shape) != 3 or x.order is not None:
        raise _No(f"{op} of an input of shape {x.shape}; of maps, (channels, height, width)")


def _chain(step: Step) -> list[Step]:
    """The step, and what it is a function of, value by value."""
    chain = [step]
    while chain[-1].kind in ("table", "clamp"):
        chain.append(chain[-1].inputs[0])
    return chain


def _common(steps: Sequence[Step]) -> Step | None:
    """The nearest step of which all of these are functions, value by value."""
    rest = [_chain(step) for step in steps[1:]]
    return next((step for step in _chain(steps[0]) if all(step in chain for chain in rest)), None)


def _after(first: Any, then: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: then(first(x))


def _closed(node: fx.Node, args: _Arguments, base: Step) -> Callable[[torch.Tensor], torch.Tensor]:
    """A node as a function of the values of ``base`` alone."""

    def of(value: Any) -> Callable[[torch.Tensor], Any]:
        if not isinstance(value, Step):
            return lambda x: value
        path = _chain(value)
        functions = [step.run for step in reversed(path[: path.index(base)])]

        def run(x: torch.Tensor) -> torch.Tensor:
            for function in functions:
                x = function(x)
            return x

        return run

    inputs = [of(a) for a in args.plain]
    kwargs = {k: of(a) for k, a in args.kwargs.items()}
    return lambda x: node.target(*(f(x) for f in inputs), **{k: f(x) for k, f in kwargs.items()})


def _bounds(op: str, args: _Arguments) -> tuple[float, float] | None:
    """What an activation clamps to, if that is what it does."""
    low, high = {
        "relu": (0.0, None),
        "relu6": (0.0, 6.0),
        "hardtanh": (args.get("min_val"), args.get("max_val")),
        "clamp": (args.get("min"), args.get("max")),
        "clip": (args.get("min"), args.get("max")),
        "clamp_min": (args.get("min"), None),
        "clamp_max": (None, args.get("max")),
    }.get(op, (None, None))
    if any(isinstance(v, torch.Tensor) for v in (low, high)) or (low is None and high is None):
        return None
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _fold(step: Step, gain: torch.Tensor, shift: torch.Tensor) -> None:
    step.weight = step.weight * gain.reshape(-1, *(1,) * (step.weight.ndim - 1))
    step.bias = step.bias * gain + shift


def read(model: nn.Module, batch: list[torch.Tensor]) -> Reader:
    if not len(batch[0]):
        raise ValueError("data: expected samples in the first batch, got none")
    # Two samples: an axis of length 1 would pass for one of the map.
    sample = tuple(torch.cat([x[:1], x[:1]]) for x in batch)
    with _evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(model, sample).run_decompositions({})
        except Exception as error:  # whatever a model's own code raises
            told = (str(error).strip().splitlines() or [""])[0]
            raise ValueError(f"model: torch.export cannot trace it: {type(error).__name__}: {told}") from error
        modules = {name for name, module in model.named_modules(remove_duplicate=False) if not any(module.children())}
        reader = Reader(program, len(sample[0]), modules - {""})
    if reader.problems:
        listed = "".join(f"\n  {problem}" for problem in reader.problems)
        count = "1 thing has" if len(reader.problems) == 1 else f"{len(reader.problems)} things have"
        raise ValueError(f"model: {count} no integer form; nothing was done:{listed}")
    return reader
