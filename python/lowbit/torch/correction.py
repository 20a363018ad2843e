"""What batch normalizations tell of layers' inputs, and outputs put right with it: no data."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from lowbit.torch.modules import QuantEmbedding, QuantLinear

__all__ = ["Correction", "Inputs", "correct_bias_", "input_moments"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of a layer's inputs without data.

    ``mean`` and ``variance``, float64, are of the input's channels; ``reason`` says why they
    are not known. Of a mean over positions the variance is not known. ``norm`` is the
    normalization that takes the layer's outputs and is all that does.
    """

    mean: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    norm: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Correction:
    """What became of a layer's outputs: ``what`` was put right ``into`` which module, or the ``reason`` why not."""

    name: str
    what: str | None = None
    into: str | None = None
    reason: str | None = None


def input_moments(model: nn.Module) -> dict[str, Inputs]:
    """Mean and variance of the inputs of every convolution and linear layer, by BatchNorms alone.

    A batch normalization's outputs are taken as normal, of mean β and variance γ²: so are sums,
    whose terms are taken as independent, and what a ReLU makes of them is a rectified normal
    distribution. The model's graph (`torch.fx`) is walked from normalization to layer over ReLU,
    sums, dropout, subsampling, channels padded with zeros, means over positions and flattening.
    Zeros around an image are not counted.

    Parameters
    ----------
    model : torch.nn.Module
        It is not changed and does not run.

    Returns
    -------
    dict of str to Inputs
        By layer's name; where nothing is known, with the reason.

    References
    ----------
    M. Nagel et al., "Data-free quantization through weight equalization and bias correction",
    ICCV 2019, whose analytical correction this is, carried over sums.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.correction import input_moments
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> input_moments(model)["2"].mean.numpy().round(4)  # 1 / sqrt(2 pi)
    array([0.3989, 0.3989, 0.3989, 0.3989])
    """
    layers = {id(m): name for name, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))}
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        reason = f"the model's graph cannot be traced: {type(error).__name__}: {first}"
        return {name: Inputs(reason=reason) for name in layers.values()}
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[node.target]) for node in graph.nodes if node.op == "call_module")
    found = {name: Inputs(reason="it is not called in the model's graph") for name in layers.values()}
    values: dict[fx.Node, _Value] = {}
    for node in graph.nodes:
        module = modules[node.target] if node.op == "call_module" else None
        values[node] = _value(node, module, values)
        if module is None or id(module) not in layers:
            continue
        if calls[id(module)] > 1:
            found[layers[id(module)]] = Inputs(reason="it is called more than once")
        else:
            norm = _norm_after(node, modules, calls)
            found[layers[id(module)]] = replace(_inputs(module, _first(node, values)), norm=norm)
    return found


def correct_bias_(
    model: nn.Module, before: Mapping[str, torch.Tensor], inputs: Mapping[str, Inputs]
) -> tuple[Correction, ...]:
    """Puts right, in place, what changed weights change in the mean and the spread of outputs.

    Where a BatchNorm takes the outputs, its running mean takes up the change of the mean,
    Σ (ŵ - w) E[x], and its running variance that of the variance, by Σ ŵ² Var[x] / Σ w² Var[x];
    else the layer's bias takes up the mean. Inputs are taken as uncorrelated.

    Parameters
    ----------
    model : torch.nn.Module
    before : mapping of str to Tensor
        The weights before, by layer's name.
    inputs : mapping of str to Inputs
        `input_moments` of the model before.

    Returns
    -------
    tuple of Correction
        In the order of ``before``.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.correction import correct_bias_, input_moments
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> inputs, before = input_moments(model), {"2": model[2].weight.detach().clone()}
    >>> with torch.no_grad():
    ...     _ = model[2].weight.mul_(0.5)
    >>> correct_bias_(model, before, inputs)
    (Correction(name='2', what='mean', into='2', reason=None),)
    """
    return tuple(_corrected(model, name, weight, inputs[name]) for name, weight in before.items())


@torch.no_grad()
def moved_mean(layer: nn.Module, before: torch.Tensor, after: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """What another weight moves the mean of each output by, float64; ``mean`` is of the inputs' channels."""
    old, new = before.double().flatten(1), after.double().flatten(1)
    return ((new - old) * _by_weight(layer, mean, old)).sum(1)


@torch.no_grad()
def _corrected(model: nn.Module, name: str, before: torch.Tensor, inputs: Inputs) -> Correction:
    if inputs.mean is None:
        return Correction(name, reason=inputs.reason)
    layer = model.get_submodule(name)
    after = layer.dequantize() if isinstance(layer, QuantLinear) else layer.weight
    old, new = before.double().flatten(1), after.double().flatten(1)
    moved = moved_mean(layer, before, after, inputs.mean)
    if inputs.norm is None:
        if layer.bias is None:
            return Correction(name, reason="no BatchNorm takes its outputs alone, and it has no bias")
        layer.bias.sub_(moved.to(layer.bias.dtype))
        return Correction(name, "mean", name)
    norm = model.get_submodule(inputs.norm)
    norm.running_mean.add_(moved.to(norm.running_mean.dtype))
    if inputs.variance is None:
        return Correction(name, "mean", inputs.norm)
    variance = _by_weight(layer, inputs.variance, old)
    was, now = (old.square() * variance).sum(1), (new.square() * variance).sum(1)
    share = torch.where((was > 0) & (now > 0), now / was, 1.0)
    wanted = (norm.running_var.double() + norm.eps) * share - norm.eps
    norm.running_var.copy_(wanted.clamp_min(0))
    return Correction(name, "mean and variance", inputs.norm)


def _by_weight(layer: nn.Module, channels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """What the inputs' channels have, of each of a weight's columns: (1, K), or (N, K) of several groups."""
    groups = getattr(layer, "groups", 1)
    rows = channels.reshape(groups, -1)
    rows = rows.repeat_interleave(weight.shape[1] // rows.shape[1], 1)
    return rows.repeat_interleave(weight.shape[0] // groups, 0) if groups > 1 else rows


# ------------------------------------------------------------------ the walk


class _Tracer(fx.Tracer):
    """Layers on codes are leaves too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (QuantLinear, QuantEmbedding)) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True, eq=False)
class _Known:
    """A tensor's mean and variance by channel; ``last``: channels are its last axis, not the second."""

    mean: torch.Tensor
    variance: torch.Tensor | None
    last: bool


#: What is known of a node's output, or why nothing is.
_Value = _Known | str

_RELU = (functional.relu, torch.relu, torch.relu_, "relu", "relu_")
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_SAME = (functional.dropout, "contiguous", "detach", "clone")
_FLATTEN = (torch.flatten, "flatten")
_POOL = (
    functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d, functional.adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d,
)  # fmt: skip
_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
_SAMES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def _value(node: fx.Node, module: nn.Module | None, values: dict[fx.Node, _Value]) -> _Value:
    """What is known of a node's output."""
    if node.op == "placeholder":
        return "it gets the model's input, of which nothing is known"
    first, kind = _first(node, values), type(module)
    target = node.target if node.op in ("call_function", "call_method") else None  # a module may be called "relu"
    if isinstance(module, NORMS):
        return _of_norm(module, node)
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return f"it gets the outputs of {node.target}, after which there is no BatchNorm"
    if target in _ADD:
        return _sum(node, values)
    if target is None and module is None:
        return "it gets a parameter"
    same = kind in _SAMES or target in _SAME
    relu = kind is nn.ReLU or target in _RELU
    pool = kind in _POOLS or target in _POOL
    flat = kind is nn.Flatten or target in _FLATTEN
    mean = target in (torch.mean, "mean")
    moved = target in ("view", "reshape") or target in (functional.pad, operator.getitem)
    if not (same or relu or pool or flat or mean or moved):
        what = f"{node.target} ({kind.__name__})" if module is not None else _title(target)
        return f"it gets the outputs of {what}, of whose moments nothing is known"
    if isinstance(first, str) or same:
        return first
    if relu:
        if first.variance is None:
            return "it gets a ReLU of means, whose spread is not known"
        return _Known(*_rectified(first.mean, first.variance), first.last)
    if pool:
        return replace(first, variance=None)
    if flat or target in ("view", "reshape"):
        given = (module.start_dim, module.end_dim) if kind is nn.Flatten else (*node.args[1:], *node.kwargs.values())
        plain = given in ((1,), (1, -1)) if flat else len(given) == 2 and given[1] == -1
        return replace(first, last=True) if plain else "it gets a tensor in another shape"
    if mean:
        over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        over = over if isinstance(over, (tuple, list)) else (over,)
        if first.last or not over or any(not isinstance(d, int) or d in (0, 1) for d in over):
            return "it gets means over more than positions"
        return _Known(first.mean, None, not kept)
    return _picked(node, first)


def _first(node: fx.Node, values: dict[fx.Node, _Value]) -> _Value:
    given = node.args[0] if node.args else node.kwargs.get("input")
    return values.get(given, "it gets a constant") if isinstance(given, fx.Node) else "it gets a constant"


def _of_norm(norm: nn.Module, node: fx.Node) -> _Value:
    """β and γ²; after a linear layer channels are the last axis."""
    n = norm.num_features
    shift = torch.zeros(n) if norm.bias is None else norm.bias.detach()
    slope = torch.ones(n) if norm.weight is None else norm.weight.detach()
    if not bool(torch.isfinite(shift).all() and torch.isfinite(slope).all()):
        return f"it gets the outputs of {node.target}, whose parameters are not finite"
    return _Known(shift.double(), slope.double().square(), isinstance(norm, nn.BatchNorm1d))


def _sum(node: fx.Node, values: dict[fx.Node, _Value]) -> _Value:
    terms = [values.get(term, "it gets a constant") for term in node.args if isinstance(term, fx.Node)]
    unknown = [term for term in terms if isinstance(term, str)]
    if unknown:
        return unknown[0]
    if len(terms) != 2 or len(node.args) != 2 or node.kwargs:
        return "it gets a sum with a constant"
    a, b = terms
    if a.mean.shape != b.mean.shape or a.last != b.last:
        return "it gets a sum of tensors of different shapes"
    variance = None if a.variance is None or b.variance is None else a.variance + b.variance
    return _Known(a.mean + b.mean, variance, a.last)


def _picked(node: fx.Node, first: _Known) -> _Value:
    """Some positions of every channel, or channels of zeros beside those that there are."""
    if node.target is operator.getitem:
        index = node.args[1]
        every = slice(None)
        if (
            not first.last
            and isinstance(index, tuple)
            and index[:2] == (every, every)
            and all(isinstance(i, slice) for i in index)
        ):
            return first
        return "it gets some of the channels or items"
    pads = node.args[1]
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
    if first.last or mode != "constant" or value or len(pads) != 6 or any(pads[:4]) or any(p < 0 for p in pads):
        return "it gets a padded tensor"
    before, after = pads[4:]
    mean, variance = (x if x is None else functional.pad(x, (before, after)) for x in (first.mean, first.variance))
    return _Known(mean, variance, first.last)


def _rectified(mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of max(x, 0), x normal."""
    deviation = variance.clamp_min(1e-24).sqrt()
    at = mean / deviation
    density = torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
    share = torch.special.ndtr(at)
    first = mean * share + deviation * density
    second = (mean.square() + variance) * share + mean * deviation * density
    return first.clamp_min(0), (second - first.square()).clamp_min(0)


def _norm_after(node: fx.Node, modules: dict[str, nn.Module], calls: Counter[int]) -> str | None:
    if len(node.users) != 1:
        return None
    (user,) = node.users
    norm = modules[user.target] if user.op == "call_module" else None
    kept = isinstance(norm, NORMS) and norm.running_mean is not None and calls[id(norm)] == 1
    return str(user.target) if kept else None


def _inputs(layer: nn.Module, value: Any) -> Inputs:
    if not isinstance(value, _Known):
        return Inputs(reason=value or "it gets a constant")
    linear = isinstance(layer, nn.Linear)
    k, n = layer.in_features if linear else layer.in_channels, value.mean.numel()
    if value.last is not linear and not (isinstance(layer, nn.Conv1d) and n == k):
        return Inputs(reason="it gets a tensor whose channels are another axis than its inputs")
    # Flattened positions are each channel's in turn.
    if k % n or (k != n and not linear):
        return Inputs(reason=f"it gets {k} inputs of {n} channels")
    mean, variance = (x if x is None else x.repeat_interleave(k // n) for x in (value.mean, value.variance))
    return Inputs(mean, variance)


def _title(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))
