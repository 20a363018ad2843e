"""to_integer: a PyTorch network as a graph of integers."""

from __future__ import annotations

import inspect
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import lowbit
from lowbit.config import Config, Int8, Uniform
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
from lowbit.torch.calibrate import RIDGE
from lowbit.torch.histogram import Histogram, Method
from lowbit.torch.quantize import Progress, Rule, _check_rules, _decide, _teller
from lowbit.torch.trace import MOVES, Step, channels_last, product, read

__all__ = ["IntegerLayer", "IntegerModel", "IntegerReport", "Measure", "to_integer"]

#: At most so many samples are kept, and so many values of each tensor: what corrections are learned from.
SAMPLES, VALUES = 256, 1 << 24
#: And of these so many values of all tensors together, where widths are compared.
TOTAL = 1 << 26
#: Decibels that rescaled channels must win, for less may be chance.
WORTH = 0.5
#: Positions of a layer whose inputs' moments are taken, at most about so many, and values of them at a time.
POSITIONS, CHUNK = 1 << 16, 1 << 24


# ------------------------------------------------------------------ rounding


@dataclass(eq=False)
class _Rounded:
    """A layer in integers: ``codes`` times ``scale`` (one for each output) is its weight; ``bias`` is float64."""

    codes: torch.Tensor
    scale: np.ndarray
    bias: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        return (self.codes * _by_output(self.scale, self.codes)).float()


@dataclass(frozen=True)
class _How:
    """What is done against the error of rounding: feedback in the codes, the biases put right."""

    method: Method
    feedback: bool
    correct: bool


class _Quantizer:
    """A network in floats on its way to integers."""

    def __init__(self, steps: list[Step], outputs: list[Step]) -> None:
        self.steps, self.outputs = steps, outputs
        self.layers = [step for step in steps if step.weight is not None]
        self.bits: dict[str, Config] = {}
        self.readers = {step: [r for r in steps if step in r.inputs] for step in steps}
        #: Tensors of codes with a scale of their own, which data choose.
        self.free = [s for s in steps if s.kind not in (*MOVES, "softmax") and not self.sums(s)]
        #: Whose scale a part has: that of all parts together.
        self.whole: dict[Step, Step] = {}
        for step in reversed(steps):
            for part in step.inputs if step.kind == "cat" else ():
                while part.kind in MOVES:
                    (part,) = part.inputs
                self.whole[part] = self.whole.get(step, step)
        self.histograms = {step: Histogram() for step in self.free if step not in self.whole}
        self._seen = {add: x for add in steps if (x := self._cut(add)) is not None}
        self._dropped = _dropped(steps, outputs)
        self.samples = 0
        self.kept: list[list[torch.Tensor]] = []

    def sums(self, step: Step) -> bool:
        """Whether a layer gives the network's floats, straight from its sums."""
        return step.weight is not None and step.clamp is None and step in self.outputs and not self.readers[step]

    def _cut(self, step: Step) -> Step | None:
        """What is added and not seen elsewhere, so that only as much of it counts as the sum's activation leaves."""
        if step.kind != "add" or step.clamp is None or step.inputs[0] is step.inputs[1]:
            return None
        alone = (x for x in step.inputs if x in self.free and len(self.readers[x]) == 1 and x not in self.outputs)
        return next(alone, None)

    def walk(
        self, start: Sequence[Any], make: Callable[[Step, list[Any]], Any]
    ) -> Iterator[tuple[Step, dict[Step, Any]]]:
        """Each step in turn, with the values so far, but those that no step needs any more."""
        values: dict[Step, Any] = {}
        inputs = iter(start)
        for step in self.steps:
            values[step] = make(step, [values[x] for x in step.inputs] if step.inputs else [next(inputs)])
            yield step, values
            for x in self._dropped[step]:
                del values[x]

    def see(self, batch: Sequence[torch.Tensor]) -> None:
        """Counts the values that a batch makes of every tensor; keeps some of its samples."""
        later = set(self._seen.values())
        for step, values in self.walk(batch, lambda step, xs: step.apply(*xs)):
            try:
                if step in self.histograms and step not in later:
                    self.histograms[step].add(values[step])
                if (x := self._seen.get(step)) is not None:
                    (other,) = (values[y] for y in step.inputs if y is not x)
                    low, high = step.clamp
                    self.histograms[x].add(values[x].clamp(low - other, high - other))
            except ValueError as error:
                raise ValueError(f"data: values of {step.layer or step.name}: {error}") from None
        self.samples += len(batch[0])
        self.keep(batch)

    def keep(self, batch: Sequence[torch.Tensor]) -> bool:
        """Keeps as many of a batch's samples as are wanted; whether more are."""
        most = min(SAMPLES, max(1, VALUES // max(math.prod(s.shape) for s in self.steps)))
        left = most - sum(len(inputs[0]) for inputs in self.kept)
        if left > 0 and len(batch[0]):
            self.kept.append([x[:left].clone() for x in batch])
        return left > len(batch[0])

    def start(self) -> list[torch.Tensor]:
        """The samples that were kept."""
        return [torch.cat(parts) for parts in zip(*self.kept, strict=True)]

    def uneven(self) -> dict[Step, torch.Tensor]:
        """Layers whose channels differ in size where each could have any, and powers of two that make them even.

        That is so where a ReLU or nothing lies between them and the layers that read them (M. Nagel et al.).
        Channels that one filter sums meet the unevenness of its weights half way.
        """
        found = {}
        for step, values in self.walk(self.start(), lambda step, xs: step.apply(*xs)):
            readers = self.readers[step]
            if step.weight is None or step.clamp not in (None, (0.0, math.inf)) or step in self.outputs:
                continue
            own = all(x.kind == "conv" and x.how["groups"] == len(step.weight) for x in readers)
            if not all(x.weight is not None and (own or x.how.get("groups", 1) == 1) for x in readers):
                continue
            sizes = _evened(values[step].transpose(0, 1).flatten(1).abs().amax(1))
            if not own:
                weights = [x.weight.transpose(0, 1).flatten(1).abs().amax(1) for x in readers]
                sizes = (sizes / _evened(torch.stack(weights).amax(0))).sqrt()
            factors = torch.exp2((sizes.log2().mean() - sizes.log2()).round())
            if bool((factors != 1).any()):
                found[step] = factors
        return found

    def rescale(self, factors: Mapping[Step, torch.Tensor]) -> None:
        """Multiplies the channels of layers, and divides the weights that meet them."""
        for step, factor in factors.items():
            step.weight, step.bias = step.weight * _by_output(factor, step.weight), step.bias * factor
            for x in self.readers[step]:
                if x.how.get("groups", 1) == 1:
                    x.weight = x.weight / factor.reshape(-1, *(1,) * (x.weight.ndim - 2))
                else:
                    x.weight = x.weight / _by_output(factor.repeat_interleave(len(x.weight) // len(factor)), x.weight)
        self.histograms = {step: Histogram() if step in factors else h for step, h in self.histograms.items()}
        for step, values in self.walk(self.start(), lambda step, xs: step.apply(*xs)):
            if step in factors:
                self.histograms[step].add(values[step])

    def losses(self, configs: Sequence[Config], tell: Callable[[str], None]) -> dict[str, list[float]]:
        """By layer, of each config the share of the outputs that is lost if the layer alone is rounded."""
        samples = max(1, TOTAL // sum(math.prod(step.shape) for step in self.steps))
        inputs = iter(self.start())
        exact: dict[Step, torch.Tensor] = {}
        for step in self.steps:
            exact[step] = step.apply(*(exact[x] for x in step.inputs)) if step.inputs else next(inputs)[:samples]
        signal = sum(float(exact[x].double().square().sum()) for x in self.outputs) or 1.0
        found = {step.layer: [0.0] * len(configs) for step in self.layers}
        for step in self.layers:
            tell(step.layer)
            x = exact[step.inputs[0]]
            sums = product(step, x, step.weight.float())
            moments = _moments(step, x, None)
            for i, config in enumerate(configs):
                layer = _Rounded(*_round(step, config, moments), step.bias)
                got = product(step, x, layer.weight)
                bias = step.bias + (sums - got).transpose(0, 1).flatten(1).double().mean(1)
                values = {step: step.finish(got, bias)}
                for later in self.steps[self.steps.index(step) + 1 :]:
                    if any(y in values for y in later.inputs):
                        values[later] = later.apply(*(values.get(y, exact[y]) for y in later.inputs))
                lost = (values[y] - exact[y] for y in self.outputs if y in values)
                found[step.layer][i] += sum(float(y.double().square().sum()) for y in lost) / signal
        return found

    def affine(self, method: Method) -> dict[Step, tuple[float, int]]:
        """Scale and zero point of every tensor with a scale of its own."""
        found = {step: _affine_of(histogram, method) for step, histogram in self.histograms.items()}
        # A sum takes scales of 2^-10 to 2^8 times its own.
        for step in (step for step in self.steps if step.kind == "add"):
            y, *terms = (self._owner(x) for x in (step, *step.inputs))
            terms = [x for x in terms if x in found]
            least = max((found[x][0] for x in terms if self.histograms[x].filled), default=0.0) * 2.0**-7
            own = found[y][0] if self.histograms[y].filled else 0.0
            found[y] = (max(own, least) or 1.0, found[y][1])
            for x in terms:
                scale = found[x][0] if self.histograms[x].filled else found[y][0]
                found[x] = (max(scale, found[y][0] * 2.0**-9), found[x][1])
        return found | {part: found[whole] for part, whole in self.whole.items()}

    def _owner(self, step: Step) -> Step:
        """The tensor whose scale this one has."""
        while step.kind in MOVES:
            (step,) = step.inputs
        return self.whole.get(step, step)

    def rounded(self, how: _How, tell: Callable[[str], None] = lambda name: None) -> _Integers:
        """The network in integers, layer by layer, each fitted to what the layers before it give."""
        done = _Integers({}, self.affine(how.method), [], [])

        def make(step: Step, pairs: list[Any]) -> Any:
            if not step.inputs:
                x = y = pairs[0]
            elif step.weight is None:
                x, y = (step.apply(*given) for given in zip(*pairs, strict=True))
            else:
                ((x, y),) = pairs
                tell(step.layer)
                config = self.bits[step.layer]
                moments = _moments(step, y, x if bits_of(config) < 8 else None) if how.feedback else None
                codes, scale = _round(step, config, moments)
                layer = done.layers[step] = _Rounded(codes, scale, step.bias)
                x, y = product(step, x, step.weight.float()), product(step, y, layer.weight)
                if how.correct:
                    layer.bias = layer.bias + (x - y).transpose(0, 1).flatten(1).double().mean(1)
                x, y = step.finish(x, step.bias), step.finish(y, layer.bias)
            return x, _as_codes(y, *done.affine[step]) if step in done.affine else y

        for step, values in self.walk(self.start(), make):
            if step in self.outputs:
                x, y = values[step]
                done.exact.append(x.flatten(1))
                done.got.append(y.flatten(1))
        return done


def _dropped(steps: list[Step], outputs: list[Step]) -> dict[Step, list[Step]]:
    """Whose values are not needed after a step."""
    last = {x: step for step in steps for x in (*step.inputs, step)}
    return {step: [x for x in last if last[x] is step] for step in steps}


@dataclass(eq=False)
class _Integers:
    """What was chosen: layers, and scale and zero point of tensors; what the kept samples gave before and now."""

    layers: dict[Step, _Rounded]
    affine: dict[Step, tuple[float, int]]
    exact: list[torch.Tensor]
    got: list[torch.Tensor]

    def measured(self, what: str) -> Measure:
        signal = sum(float(x.double().square().sum()) for x in self.exact)
        noise = sum(float((y.double() - x).square().sum()) for x, y in zip(self.exact, self.got, strict=True))
        decibels = 10 * math.log10(signal / noise) if signal and noise else math.inf
        same = [x.argmax(1) == y.argmax(1) for x, y in zip(self.exact, self.got, strict=True)]
        return Measure(what, decibels, float(torch.cat(same).double().mean()))


def _affine_of(histogram: Histogram, method: Method) -> tuple[float, int]:
    low, high = histogram.range(method)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return scale, round(-low / scale)


def _evened(sizes: torch.Tensor) -> torch.Tensor:
    """Sizes of channels without such as hardly count."""
    largest = float(sizes.max()) or 1.0
    return sizes.double().clamp_min(largest / 1024)


def _as_codes(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """What the codes of these values stand for."""
    return ((x / scale).round_().add_(zero_point).clamp_(0, 255).sub_(zero_point)).mul_(scale)


def _by_output(scale: Any, weight: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(scale, dtype=torch.float64).reshape(-1, *(1,) * (weight.ndim - 1))


def _round(
    step: Step, config: Config, moments: tuple[torch.Tensor, torch.Tensor | None] | None
) -> tuple[torch.Tensor, np.ndarray]:
    """Codes and scales of a layer: to nearest, or by `_moments`."""
    nbits = bits_of(config)
    most = 2 ** (nbits - 1) - 1
    weight = step.weight.flatten(1)
    if moments is not None and moments[1] is not None:
        weight = _fitted(weight, *moments)
    rows = weight.float().numpy()
    method = "mse" if isinstance(config, Uniform) and config.scale == "mse" and nbits < 8 else "absmax"
    scale = lowbit.choose_qparams(rows, nbits, granularity=lowbit.PerAxis(0), method=method).scale
    if moments is not None:
        own = moments[0]
        levels = scale[:, None, None] * np.arange(-most, most + 1, dtype=np.float32)
        parts = zip(np.split(rows, len(own)), np.split(levels, len(own)), own.numpy(), strict=True)
        found = np.concatenate([lowbit.round_with_feedback(w, table, second) for w, table, second in parts])
        codes = torch.from_numpy(found.astype(np.float64) - most)
    else:
        codes = torch.from_numpy(np.clip(np.rint(rows / scale[:, None]), -most, most).astype(np.float64))
    return codes.reshape(step.weight.shape), scale


def bits_of(config: Config) -> int:
    """Of a weight's codes."""
    return config.nbits if isinstance(config, Uniform) else 8


def _moments(step: Step, y: torch.Tensor, x: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """yᵀ y of a position's inputs, and xᵀ y of what they were to be, for each group of channels: (groups, K, K)."""
    groups, k = step.how.get("groups", 1), step.weight[0].numel()
    own, cross = (torch.zeros(groups, k, k, dtype=torch.float64) for _ in range(2))
    positions = math.prod(step.shape[1:])
    every = max(1, len(y) * positions // POSITIONS)
    size = max(1, CHUNK // (positions * k * groups))
    for i in range(0, len(y), size):
        after = _columns(step, y[i : i + size], every)
        own += after @ after.transpose(1, 2)
        if x is not None:
            cross += _columns(step, x[i : i + size], every) @ after.transpose(1, 2)
    # Where nothing but zeros came, all weights count alike.
    own[~own.flatten(1).any(1)] = torch.eye(k, dtype=torch.float64)
    return own, None if x is None else cross


def _columns(step: Step, x: torch.Tensor, every: int) -> torch.Tensor:
    """The inputs of one position in so many: (groups, K, positions)."""
    groups = step.how.get("groups", 1)
    if step.kind == "linear":
        return x[::every].T[None]
    (top, bottom), (left, right) = step.how["padding"]
    padded = functional.pad(x, (left, right, top, bottom))
    kernel, dilation = step.weight.shape[2:], step.how["dilation"]
    columns = functional.unfold(padded, kernel, dilation, stride=step.how["stride"])[..., ::every]
    return columns.transpose(0, 1).reshape(groups, -1, columns.shape[0] * columns.shape[2])


def _fitted(weight: torch.Tensor, own: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    """The weight V of least ``‖x Wᵀ - y Vᵀ‖² + λ ‖V - W‖²``, each group's for itself."""
    damped = own.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean(1, keepdim=True)
    rows = weight.reshape(len(own), -1, weight.shape[1]).transpose(1, 2)
    change = torch.linalg.solve(damped, (cross - own).transpose(1, 2) @ rows)
    return (rows + change).transpose(1, 2).reshape(weight.shape)


# ------------------------------------------------------------------ writing


class _Writer:
    """The graph of a network in integers."""

    def __init__(self, network: _Quantizer, done: _Integers, notes: Mapping[str, str]) -> None:
        self.network, self.done = network, done
        self.tensors: dict[str, Tensor] = {}
        self.constants: dict[str, Constant] = {}
        self.operations: list[Operation] = []
        #: What each step is called: layers first, for rules and the report have their names.
        self.taken: set[str] = set()
        ordered = (*network.layers, *(step for step in network.steps if step.weight is None))
        self.called = {step: self._name(step.name) for step in ordered}
        #: The tensors of their outputs' codes, and of the floats that these stand for.
        self.names: dict[Step, str] = {}
        self.floats: dict[Step, str] = {}
        for step in network.steps:
            self.names[step] = self._write(step)
        outputs = tuple(self._floats(step) for step in network.outputs)
        inputs = tuple(self.called[step] for step in network.steps if step.kind == "input")
        self.graph = Graph(self.tensors, self.constants, tuple(self.operations), inputs, outputs, notes)

    def _name(self, name: str) -> str:
        name = _unused(name, self.taken)
        self.taken.add(name)
        return name

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str, scale: Any = None, zero_point: int = 0) -> str:
        self.tensors[name] = Tensor(name, channels_last(shape), dtype, scale, zero_point)
        return name

    def _constant(self, name: str, data: np.ndarray, **how: Any) -> str:
        name = _unused(name, self.constants)
        self.constants[name] = Constant(name, np.ascontiguousarray(data), **how)
        return name

    def _write(self, step: Step) -> str:
        read = [self.tensors[self.names[x]] for x in step.inputs]
        x, name = read[0].name if read else "", self.called[step]
        if self.network.sums(step):
            out = self._tensor(name, step.shape, "float32")
        elif step.kind == "input":
            x = self._tensor(name, step.shape, "float32")
            out = self._tensor(self._name(f"{name}_codes"), step.shape, "uint8", *self.done.affine[step])
        elif step.kind == "softmax":
            out = self._tensor(name, step.shape, "uint8", 1 / 256, 0)
        else:
            affine = self.done.affine.get(step) or (read[0].scale, read[0].zero_point)
            out = self._tensor(name, step.shape, "uint8", *affine)
        self.operations.append(self._operation(step, x, out))
        return out

    def _operation(self, step: Step, x: str, out: str) -> Operation:
        how = step.how
        match step.kind:
            case "input":
                return Quantize(x, out)
            case "conv":
                how = {name: how[name] for name in ("stride", "padding", "dilation", "groups")}
                return Conv2d(x, *self._weights(step), out, **how, **self._clamp(step, out))
            case "linear":
                return FullyConnected(x, *self._weights(step), out, **self._clamp(step, out))
            case "add":
                return Add(x, self.names[step.inputs[1]], out, **self._clamp(step, out))
            case "average":
                return AveragePool2d(x, out, how["kernel"], how["stride"], how["padding"], **self._clamp(step, out))
            case "multiply":
                return Multiply(x, self.names[step.inputs[1]], out, **self._clamp(step, out))
            case "cat":
                return Concatenate(tuple(self.names[part] for part in step.inputs), out, how["axis"])
            case "max":
                return MaxPool2d(x, out, how["kernel"], how["stride"], how["padding"])
            case "pad":
                return Pad(x, out, how["padding"])
            case "slice":
                return Slice(x, out, how["begin"], how["step"])
            case "reshape":
                return Reshape(x, out)
            case "softmax":
                return Softmax(x, out)
            case _:
                return Table(x, self._constant(f"{self.called[step]}.table", self._table(step, x, out)), out)

    def _weights(self, step: Step) -> tuple[str, str]:
        layer, name = self.done.layers[step], self.called[step]
        x = self.tensors[self.names[step.inputs[0]]]
        nbits = bits_of(self.network.bits[step.layer])
        # As large as the bias needs, in 31 bits.
        least = np.abs(layer.bias.numpy()) / (x.scale * 2.0**30)
        scale = np.maximum(layer.scale, least).astype(np.float32)
        codes = layer.codes.numpy() * (layer.scale / scale).reshape(-1, *(1,) * (layer.codes.ndim - 1))
        codes = np.rint(codes).astype(np.int8)
        codes = codes.transpose(0, 2, 3, 1) if step.kind == "conv" else codes
        if step.inputs[0].order is not None:
            codes = codes[:, step.inputs[0].order]
        bias = np.rint(layer.bias.numpy() / (x.scale * scale.astype(np.float64))).astype(np.int32)
        weight = self._constant(f"{name}.weight", codes, scale=scale, nbits=nbits)
        return weight, self._constant(f"{name}.bias", bias)

    def _clamp(self, step: Step, out: str) -> dict[str, int]:
        """The codes that an activation leaves, where these are not all."""
        tensor = self.tensors[out]
        if step.clamp is None or tensor.scale is None:
            return {}
        low, high = (b if math.isinf(b) else round(b / tensor.scale) + tensor.zero_point for b in step.clamp)
        found = {"qmin": int(min(max(low, 0), 255)), "qmax": int(max(min(high, 255), 0))}
        return {name: code for name, code in found.items() if code != {"qmin": 0, "qmax": 255}[name]}

    def _table(self, step: Step, x: str, out: str) -> np.ndarray:
        before, after = self.tensors[x], self.tensors[out]
        values = (torch.arange(256, dtype=torch.float32) - before.zero_point) * before.scale
        codes = np.rint(step.run(values).double().numpy() / after.scale) + after.zero_point
        return np.clip(np.nan_to_num(codes), 0, 255).astype(np.uint8)

    def _floats(self, step: Step) -> str:
        name = self.names[step]
        if self.tensors[name].dtype == "float32":
            return name
        if step not in self.floats:
            self.floats[step] = self._tensor(self._name(f"{name}_float"), step.shape, "float32")
            self.operations.append(Dequantize(name, self.floats[step]))
        return self.floats[step]


def _unused(name: str, taken: Collection[str]) -> str:
    names = itertools.chain([name], (f"{name}#{i}" for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


# ------------------------------------------------------------------ the call


@dataclass(frozen=True)
class IntegerLayer:
    """What became of one layer, in bytes of weight and bias; ``error`` is ‖W - Ŵ‖ / ‖W‖.

    ``name`` is the module's, and that of the tensor that the layer writes; one that is called again is ``name#2``.
    """

    name: str
    kind: str
    nbits: int
    bytes_before: int
    bytes_after: int
    error: float


@dataclass(frozen=True)
class Measure:
    """The outputs of samples that were kept, beside the model's: signal to noise, and the share whose largest
    output is the same."""

    what: str
    decibels: float
    agreement: float


@dataclass(frozen=True)
class IntegerReport:
    """What `to_integer` did: print it, or read its fields.

    Each of ``measures`` is of one thing more against the error; the last is the network. They are of the
    samples that calibrated it, up to 256.
    """

    layers: tuple[IntegerLayer, ...]
    samples: int
    measures: tuple[Measure, ...]

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers) if self.layers else 5
        lines = [f"{'layer':<{width}}  kind    bits {'before':>11} {'after':>11}    error"]
        for layer in self.layers:
            sizes = f"{layer.bytes_before:>11,} {layer.bytes_after:>11,}"
            lines.append(f"{layer.name:<{width}}  {layer.kind:<6} {layer.nbits:>5} {sizes}  {layer.error:>7.4f}")
        lines += [f"{m.what}: {m.decibels:.1f} dB, {m.agreement:.1%} agree" for m in self.measures]
        before, after = (sum(getattr(x, at) for x in self.layers) for at in ("bytes_before", "bytes_after"))
        lines.append(f"{_size(before)} -> {_size(after)}; calibrated with {self.samples} samples")
        return "\n".join(lines)


def _size(count: int) -> str:
    """Bytes with their unit, such that a small model is not 0."""
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.2f} kB"


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A network of integers and how it came to be."""

    graph: Graph
    report: IntegerReport

    def __repr__(self) -> str:
        """The graph's size and how near its outputs come; the report has the rest."""
        decibels = self.report.measures[-1].decibels
        return f"IntegerModel({self.graph!r}, {decibels:.1f} dB on {self.report.samples} samples)"

    def as_module(self) -> nn.Module:
        """The network as a torch module: the inputs and outputs that the model had, on lowbit's kernels.

        It has no parameters, and no gradients go through it.
        """
        return _Module(self.graph)


class _Module(nn.Module):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._network: Any = None

    def forward(self, *inputs: torch.Tensor) -> Any:
        if self._network is None:
            self._network = self.graph.plan()
        outputs = self._network(*(_channels_last(x) for x in inputs))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        tensors = tuple(torch.from_numpy(y) for y in outputs)
        tensors = tuple(y.permute(0, 3, 1, 2) if y.ndim == 4 else y for y in tensors)
        return tensors[0] if len(tensors) == 1 else tensors

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_network": None}


def _channels_last(x: torch.Tensor) -> np.ndarray:
    x = x.detach().float()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().numpy()


def to_integer(
    model: nn.Module,
    data: Iterable[Any],
    *,
    config: Config = Int8(),
    rules: Sequence[Rule] | None = None,
    calibration: Method = "mse",
    progress: bool | Progress | None = None,
) -> IntegerModel:
    """A model as a network of integers: activations of 8 bits, weights of 2 to 8, sums of 32.

    The model is traced (`torch.export`) in evaluation mode and stays as it is. BatchNorm is
    folded, ReLU and other clamps become part of the layer before them, every other function of
    one value a table of 256. The data go through once: a histogram of every tensor chooses its
    scale and zero point, and up to 256 samples are kept, on which the layers are rounded
    one after the other, each with error feedback (:func:`lowbit.round_with_feedback`) by the
    inputs that the rounded layers before it give, and its bias takes up what is left of the mean.
    Channels that differ in size between layers are first made even where that is found to help.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU, its tensors have samples as axis 0, and maps channels as axis 1.
    data : iterable of batches
        A tensor is the model's argument, a tuple or list its arguments, without labels. Some 200 samples are enough.
    config : Int8 or Uniform
        Of the weights. Whichever it is, a weight has one scale for each output and no zero point,
        so of `Uniform` only ``nbits`` and ``scale`` count.
    rules : sequence of (pattern, Int8 or Uniform), optional
        The first pattern found (`re.search`) in a layer's dotted name decides: the first and the
        last layer may want 8 bits where the others have 4. `allocate_bits` with ``integer=True`` finds
        rules by which the bits are so many on average.
    calibration : {"mse", "minmax", "percentile"}
        What the codes of a tensor span: the range of least squared error, all values, or 99.99 % of them.
    progress : bool or callable, optional
        True draws a line on a terminal; a callable gets (done, total, name).

    Returns
    -------
    IntegerModel
        ``graph``, ``report``, and ``as_module()``, which runs it in torch. The graph's maps have channels last.

    Raises
    ------
    TypeError, ValueError
        What has no integer form, with reasons and the nearest thing that has, before any data are run (what
        depends on a refused operation stays hidden until that one is replaced); a batch of more or fewer
        tensors than the model has arguments; a rule that matches no layer; no batches; values that are not
        finite.

    References
    ----------
    Integer arithmetic and folding: B. Jacob et al., "Quantization and training of neural networks for
    efficient integer-arithmetic-only inference", CVPR 2018. Biases that take up the mean, channels made even:
    M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import to_integer
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4))
    >>> found = to_integer(model, [torch.randn(64, 3, 8, 8)])
    >>> [type(step).__name__ for step in found.graph.operations]
    ['Quantize', 'Conv2d', 'Reshape', 'FullyConnected']
    >>> found.as_module()(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 4])
    """
    check_config("config", config)
    checked = _check_rules(rules, check_config)
    if calibration not in ("mse", "minmax", "percentile"):
        raise ValueError(f"calibration: expected 'mse', 'minmax' or 'percentile', got {calibration!r}")

    network, batches = begin(model, data)
    layers = network.layers
    network.bits = _decide(dict.fromkeys(step.layer for step in layers), config, checked, "layer")
    tell = _teller(progress, "to_integer")
    total = len(layers) + (len(data) if isinstance(data, Sized) else 1)
    with torch.no_grad():
        for done, batch in enumerate(batches):
            tell(done, max(total, done + 1 + len(layers)), "data")
            network.see(batch)
        done += 1
        total = done + len(layers)

        def told(name: str) -> None:
            nonlocal done
            tell(done, total, name)
            done += 1

        measures = [
            network.rounded(_How("minmax", False, False)).measured("all of a tensor's values, rounded to nearest"),
            network.rounded(_How(calibration, False, False)).measured(f"ranges by {calibration}"),
            network.rounded(_How(calibration, False, True)).measured("biases put right"),
        ]
        if factors := network.uneven():
            histograms = network.histograms
            network.rescale(factors)
            even = network.rounded(_How(calibration, False, True)).measured("channels made even")
            if even.decibels > measures[-1].decibels + WORTH:
                measures.append(even)
            else:
                network.rescale({step: 1 / factor for step, factor in factors.items()})
                network.histograms = histograms
        integers = network.rounded(_How(calibration, True, True), told)
        measures.append(integers.measured("error feedback"))
        tell(total, total, "")
        notes = {"reader": "torch.export", "calibration": calibration, "samples": str(network.samples)}
        written = _Writer(network, integers, notes)
    reports = tuple(
        _layer_report(written.called[step], step, integers.layers[step], network.bits[step.layer]) for step in layers
    )
    return IntegerModel(written.graph, IntegerReport(reports, network.samples, tuple(measures)))


def begin(model: nn.Module, data: Any) -> tuple[_Quantizer, Iterator[list[torch.Tensor]]]:
    """The network, as traced with the first batch, and all batches."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(data, (torch.Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise TypeError(f"data: expected an iterable of batches, got {type(data).__name__}; one batch is [batch]")
    batches = iter(data)
    first = next(batches, None)
    if first is None:
        raise ValueError("data: expected at least one batch, got none")
    _check_count(model, first)
    reader = read(model, _batch(first))
    return _Quantizer(reader.steps, reader.outputs), (
        _batch(b, reader.steps) for b in itertools.chain([first], batches)
    )


def _check_count(model: nn.Module, batch: Any) -> None:
    """Refuses a batch with labels in it, which torch.export would take for arguments of the model."""
    given = len(batch) if isinstance(batch, (tuple, list)) else 1
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # what has no signature is left to torch.export
        return
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    named = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    least, most = sum(p.default is p.empty for p in named), len(named)
    if least <= given <= most:
        return
    takes = f"{most} argument{'' if most == 1 else 's'}" if least == most else f"{least} to {most} arguments"
    remedy = "one tensor for each, in a tuple"
    if given > most == 1:
        remedy = "yield x alone, without labels: for pairs of x and label, (x for x, label in data)"
    elif given > most:
        remedy = "yield the arguments alone, without labels"
    raise TypeError(f"data: the model takes {takes} and the batch holds {given}; {remedy}")


def _layer_report(name: str, step: Step, layer: _Rounded, config: Config) -> IntegerLayer:
    nbits = bits_of(config)
    count, outputs = step.weight.numel(), len(step.weight)
    norm = float(step.weight.norm())
    error = float((layer.weight.double() - step.weight).norm()) / norm if norm else 0.0
    # Codes, and for each output a scale and a bias.
    after = -(-count * nbits // 8) + 8 * outputs
    return IntegerLayer(name, step.kind, nbits, 4 * (count + outputs), after, error)


def check_config(name: str, config: Any) -> None:
    if not isinstance(config, (Int8, Uniform)):
        hint = "; every layer is of integers, Int8() is the nearest" if config is None else ""
        raise TypeError(f"{name}: expected lowbit.Int8() or Uniform(...), got {config!r}{hint}")
    if isinstance(config, Uniform) and config.rotate is not None:
        raise ValueError(f"{name}: expected no rotation, which integer networks do not have, got {config.rotate!r}")


def _batch(batch: Any, steps: Sequence[Step] = ()) -> list[torch.Tensor]:
    """A batch's tensors, checked, once these are known, against the network's inputs."""
    tensors = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    for x in tensors:
        if not isinstance(x, torch.Tensor) or not x.ndim:
            raise TypeError(f"data: expected tensors, or tuples of them, got {type(x).__name__}")
    if len({len(x) for x in tensors}) != 1:
        raise ValueError(f"data: expected as many samples of each input, got {[len(x) for x in tensors]}")
    inputs = [step for step in steps if step.kind == "input"]
    if inputs and [tuple(x.shape[1:]) for x in tensors] != [step.shape for step in inputs]:
        got, expected = [tuple(x.shape[1:]) for x in tensors], [step.shape for step in inputs]
        raise ValueError(f"data: expected samples of shape {expected}, as in the first batch, got {got}")
    return [x.detach() for x in tensors]
