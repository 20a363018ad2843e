"""allocate_bits: which layer gets how many bits, within a budget."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from lowbit import knapsack
from lowbit.config import Config, Int8, Uniform
from lowbit.torch.calibrate import _batches, _evaluating, _inputs, _Moments, _order
from lowbit.torch.integer import begin, bits_of, check_config
from lowbit.torch.quantize import (
    Progress,
    Rule,
    _check_fitted,
    _check_model,
    _layers,
    _least,
    _of_rows,
    _plan,
    _squares,
    _teller,
)

__all__ = ["allocate_bits"]

CONFIGS = (Uniform(2, 64), Uniform(3, 64), Uniform(4, 64), Uniform(5, 64), Uniform(6, 64), Int8())


def allocate_bits(
    model: nn.Module,
    data: Iterable[Any],
    budget: float,
    *,
    configs: Sequence[Config] = CONFIGS,
    integer: bool = False,
    progress: bool | Progress | None = None,
) -> list[Rule]:
    """Chooses each layer's config so that the errors sum to the least that the budget allows.

    A layer's error is ‖x (W - Ŵ)ᵀ‖² / ‖x Wᵀ‖² over the inputs x that the data give it,
    an embedding's, or that of a layer that the data do not reach, ‖W - Ŵ‖² / ‖W‖².
    Every config is tried on every layer; the choice among them is exact
    (:func:`lowbit.knapsack.choose`).

    For `to_integer` a layer's error is the share of the network's outputs that is lost
    if this layer alone is rounded, on up to 256 samples.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU; it is not changed.
    data : iterable of batches
        As in `calibrate_`.
    budget : float
        Bits a weight, on average over all layers that can be quantized, and all that
        is stored of a weight counted; with ``integer`` the codes alone, for the rest is
        the same whatever the bits.
    configs : sequence of Config
        What a layer may get.
    integer : bool
        Rules for `to_integer`: convolutions are layers too, and a weight has one scale
        for each output.
    progress : bool or callable, optional
        As in `quantize_`.

    Returns
    -------
    list of (pattern, Config)
        Rules for `quantize_` and `calibrate_`, or for `to_integer`, one for each layer.

    Raises
    ------
    TypeError, ValueError
        As `calibrate_` or `to_integer`; a budget below the smallest configs.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch import allocate_bits, quantize_
    >>> model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256)).eval()
    >>> rules = allocate_bits(model, [torch.randn(64, 256)], 4.5)
    >>> [pattern for pattern, config in rules]
    ['^0$', '^2$']
    >>> report = quantize_(model, None, rules=rules)

    >>> from lowbit.torch import to_integer
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
    >>> data = [torch.randn(64, 3, 8, 8)]
    >>> found = to_integer(model, data, rules=allocate_bits(model, data, 4, integer=True))
    >>> sum(layer.nbits * weights for layer, weights in zip(found.report.layers, (216, 576))) <= 4 * (216 + 576)
    True
    """
    if not isinstance(integer, bool):
        raise TypeError(f"integer: expected a bool, got {integer!r}")
    if not integer:
        _check_model(model)
    configs = list(configs)
    if not configs:
        raise ValueError("configs: expected at least one")
    for i, config in enumerate(configs):
        if config is None:
            raise TypeError(f"configs[{i}]: expected lowbit.Int8() or lowbit.Uniform(...), got None")
        (check_config if integer else _check_fitted)(f"configs[{i}]", config)
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < float("inf"):
        raise ValueError(f"budget: expected a number of bits above 0, got {budget!r}")
    tell = _teller(progress, "allocate_bits")
    if integer:
        return _for_integers(model, data, budget, configs, tell)
    batches = _batches(data)
    _, todo, _ = _plan(model, {name: configs[0] for name, _ in _layers(model)})
    if not todo:
        raise ValueError("model: it has no linear layer or embedding that can be quantized")

    modules = {id(module): (name, module) for name, module in reversed(todo)}
    linear = [(name, module) for name, module in modules.values() if isinstance(module, nn.Linear)]
    errors: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(configs))
    sizes: dict[int, list[int]] = {}
    done = 0

    def measure(module: Any, second: torch.Tensor | None) -> None:
        nonlocal done
        weight = module.weight.detach().double()
        key = id(module.weight)
        whole = _squares(weight, second)
        sizes.setdefault(key, [])
        for i, config in enumerate(configs):
            if isinstance(module, nn.Embedding):
                config = _of_rows(config)
            quantized = _least(module.weight, config, second, **_importance(config, second))
            off = torch.from_numpy(quantized.dequantize()).double() - weight
            errors[key][i] += _squares(off, second) / whole if whole else 0.0
            if len(sizes[key]) < len(configs):
                sizes[key].append(8 * quantized.tiled.nbytes)
        done += 1

    with _evaluating(model), torch.no_grad():
        runs = _order(model, batches[0], linear)
        reached = {name for layers, _ in runs for name, _ in layers}
        for name, module in modules.values():
            if name not in reached:
                tell(done, len(modules), name)
                measure(module, None)
        for layers, calls in runs:
            name = layers[0][0]
            tell(done, len(modules), name)
            seen = _Moments(layers[0][1].in_features)
            for batch in batches:
                for rows in _inputs(model, name, batch, calls):
                    seen.add(rows, rows)
            seen.check(name)
            for _, module in layers:
                measure(module, seen.own if seen.rows else None)
    tell(len(modules), len(modules), "")

    weights = {id(module.weight): module.weight for _, module in modules.values()}
    count = sum(weight.numel() for weight in weights.values())
    keys = list(weights)
    chosen = _within(budget, count, [sizes[key] for key in keys], [errors[key] for key in keys])
    by_weight = {key: configs[i] for key, i in zip(keys, chosen, strict=True)}
    return [(f"^{re.escape(name)}$", by_weight[id(module.weight)]) for name, module in todo]


def _for_integers(model: nn.Module, data: Any, budget: float, configs: list[Config], tell: Progress) -> list[Rule]:
    network, batches = begin(model, data)
    with torch.no_grad():
        for batch in batches:
            if not network.keep(batch):
                break
        weights = {step.layer: step.weight.numel() for step in network.layers}
        told = itertools.count()
        errors = network.losses(configs, lambda name: tell(next(told), len(network.layers), name))
    tell(len(network.layers), len(network.layers), "")
    sizes = [[bits_of(config) * count for config in configs] for count in weights.values()]
    chosen = _within(budget, sum(weights.values()), sizes, [errors[name] for name in weights])
    return [(f"^{re.escape(name)}$", configs[i]) for name, i in zip(weights, chosen, strict=True)]


def _within(budget: float, count: int, sizes: list[list[int]], errors: list[list[float]]) -> list[int]:
    least = sum(map(min, sizes))
    if least > budget * count:
        raise ValueError(f"budget: expected at least {least / count:.3f} bits, the smallest configs, got {budget}")
    return knapsack.choose(sizes, errors, int(budget * count))


def _importance(config: Config, second: torch.Tensor | None) -> dict[str, Any]:
    if second is None or isinstance(config, Int8) or not bool(second.diagonal().any()):
        return {}
    diagonal = second.diagonal()
    return {"importance": (diagonal / diagonal.max()).numpy()}
