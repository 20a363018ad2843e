"""calibrate_: quantize_ with data, so that each layer's outputs change least."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from lowbit.config import Codebook, Config, Uniform
from lowbit.torch import fusion
from lowbit.torch.modules import QuantLinear
from lowbit.torch.quantize import (
    Progress,
    Report,
    Rule,
    _check_fitted,
    _check_model,
    _check_rules,
    _decide,
    _inherit,
    _kept,
    _layers,
    _least,
    _replace,
    _state_bytes,
    _Swaps,
    _teller,
)

__all__ = ["calibrate_"]

#: Of the mean square of a layer's inputs: how much a weight that is fitted is held to what it was.
RIDGE = 1.0


def calibrate_(
    model: nn.Module,
    data: Iterable[Any],
    config: Config | None,
    *,
    rules: Sequence[Rule] | None = None,
    order: Literal["activation", "index"] = "activation",
    fuse: bool = True,
    progress: bool | Progress | None = None,
) -> Report:
    """Quantizes a model's linear layers and embeddings in place, linear layers of
    :class:`lowbit.Uniform` and :class:`lowbit.Codebook` by what their inputs are.

    Layer by layer, in the order in which they run, the data go through the model
    before and through the model as far as it is quantized. The layer's weight is
    then fitted so that it turns the second one's inputs into the first one's
    outputs (ridge regression), its scales are searched with those inputs' moments,
    its codes chosen with error feedback (:func:`lowbit.round_with_feedback`), and
    its bias takes up what is left of the mean. With ``rotate="hadamard"`` that is done
    with and without the rotation, and kept is what turns those inputs into the nearer
    outputs. Everything else is quantized as
    `quantize_` does it: embeddings, `Int8`, layers that the data do not reach or
    that share their weight.

    A call that fails or is interrupted leaves the model as it was. The peak is
    twice the model, the data, and two (K, K) matrices of float64.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU. It runs in evaluation mode; its modes are put back.
    data : iterable of batches
        A tensor is the model's argument, a tuple or list its arguments, a mapping
        its keywords (or its argument, where it takes no such keywords). Of a mapping
        with an ``attention_mask``, inputs where that is 0 are left out. A hundred
        texts are enough for a sentence encoder.
    config, rules, fuse, progress
        As in `quantize_`.
    order : {"activation", "index"}
        Which inputs' weights are rounded first.

    Returns
    -------
    Report
        ``error`` is the weight's, larger than without data: it is the outputs'
        that is smaller.

    Raises
    ------
    TypeError, ValueError
        As `quantize_`; no batches; inputs of a layer that are not finite.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch import calibrate_
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).eval()
    >>> report = calibrate_(model, [torch.randn(100, 64)], lowbit.Uniform(3))
    >>> [(layer.name, layer.config) for layer in report.quantized]
    [('0', 'Uniform'), ('2', 'Uniform')]
    """
    _check_model(model)
    _check_fitted("config", config)
    if order not in ("activation", "index"):
        raise ValueError(f"order: expected 'activation' or 'index', got {order!r}")
    batches = _batches(data)
    names = [name for name, _ in _layers(model)]
    decided = _decide(names, config, _check_rules(rules, _check_fitted))
    before = _state_bytes(model)
    tell = _teller(progress, "calibrate_")

    student = copy.deepcopy(model).eval()
    with _evaluating(model), torch.no_grad():
        reports = _calibrated(model, student, batches, decided, order, tell)
    for name, report in reports.items():
        if report.reason is None:
            old, new = model.get_submodule(name), student.get_submodule(name)
            if old is not new:
                _inherit(new, old)
                _replace(model, name, new)
    fused = tuple(fusion.fuse_(model)) if fuse else ()
    return Report(tuple(reports[name] for name in names), before, _state_bytes(model), fused)


def _batches(data: Iterable[Any]) -> list[Any]:
    if isinstance(data, (torch.Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise TypeError(f"data: expected an iterable of batches, got {type(data).__name__}; one batch is [batch]")
    batches = list(data)
    if not batches:
        raise ValueError("data: expected at least one batch, got none")
    return batches


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, each module's own put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _calibrated(
    teacher: nn.Module,
    student: nn.Module,
    batches: list[Any],
    decided: dict[str, Config | None],
    order: Any,
    tell: Progress,
) -> dict[str, Any]:
    """Quantizes ``student``; the reports by name."""
    swaps = _Swaps(student, decided)
    todo, total, done = swaps.todo, len(swaps.todo), 0

    def swap(name: str, module: nn.Module) -> QuantLinear:
        nonlocal done
        tell(done, total, name)
        done += 1
        return swaps.swap(name, module)  # type: ignore[return-value]

    modules = {id(module): module for _, module in todo}
    owners = Counter(id(module.weight) for module in modules.values())
    places = Counter(id(module) for _, module in todo)
    first = [
        (name, module)
        for name, module in todo
        if isinstance(module, nn.Linear)
        and isinstance(decided[name], (Uniform, Codebook))
        and owners[id(module.weight)] == places[id(module)] == 1
    ]
    runs = _order(student, batches[0], first)
    reached = {name for layers, _ in runs for name, _ in layers}
    for name, module in todo:
        if name not in reached:
            swap(name, module)
    for layers, calls in runs:
        name = layers[0][0]
        tell(done, total, name)
        seen = _Moments(layers[0][1].in_features)
        for batch in batches:
            pair = [_inputs(model, name, batch, calls) for model in (teacher, student)]
            if any(a.shape != b.shape for a, b in zip(*pair, strict=True)):
                raise ValueError(f"data: {name} gets inputs of other shapes once layers before it are quantized")
            for a, b in zip(*pair, strict=True):
                seen.add(a, b)
        seen.check(name)
        for name, module in layers:
            config = decided[name]
            assert isinstance(config, (Uniform, Codebook))
            if seen.rows == 0 or not bool(seen.own.diagonal().any()):  # nothing to learn from
                swap(name, module)
                continue
            fitted = seen.fitted(module.weight.double())
            weight = _least(fitted, config, seen.own, second_moments=seen.own.numpy(), order=order)
            swaps.made[id(module.weight), config] = _kept(weight)
            new = swap(name, module)
            if new.bias is not None:
                want = module.weight.double() @ (seen.before / seen.rows)
                new.bias += (want - new.dequantize().double() @ (seen.after / seen.rows)).float()
    tell(total, total, "")
    return swaps.reports


class _Moments:
    """Of a layer's inputs before (x) and after (y) the layers before it are quantized."""

    def __init__(self, k: int) -> None:
        #: yᵀ y and xᵀ y.
        self.own, self.cross = (torch.zeros((k, k), dtype=torch.float64) for _ in range(2))
        self.before, self.after = (torch.zeros(k, dtype=torch.float64) for _ in range(2))
        self.rows = 0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.own += (y.T @ y).double()
        self.cross += (x.T @ y).double()
        self.before += x.sum(0, dtype=torch.float64)
        self.after += y.sum(0, dtype=torch.float64)
        self.rows += len(x)

    def check(self, name: str) -> None:
        if not bool(torch.isfinite(self.own).all() & torch.isfinite(self.cross).all()):
            raise ValueError(f"data: the inputs of {name} hold NaN or infinities, or overflow")

    def fitted(self, weight: torch.Tensor) -> torch.Tensor:
        """V of least ``‖x Wᵀ - y Vᵀ‖² + λ ‖V - W‖²``."""
        damped = self.own.clone()
        damped.diagonal().add_(RIDGE * damped.diagonal().mean())
        change = torch.linalg.solve(damped, (self.cross - self.own).T @ weight.T)
        return (weight + change.T).float()


class _Enough(BaseException):
    """Ends a run once a layer's inputs are known."""


Layers = list[tuple[str, nn.Linear]]


def _order(model: nn.Module, batch: Any, layers: Layers) -> list[tuple[Layers, int]]:
    """The layers that run, in order, those together that get the same tensor in turn;
    and how often each is called."""
    names = {id(module): name for name, module in layers}
    calls: Counter[int] = Counter()
    found: list[list[nn.Linear]] = []
    last: Any = None

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        nonlocal last
        x = _argument(args, kwargs)
        calls[id(module)] += 1
        if calls[id(module)] == 1:
            if x is last:
                found[-1].append(module)  # type: ignore[arg-type]
            else:
                found.append([module])  # type: ignore[list-item]
        last = x

    hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for _, module in layers]
    try:
        _run(model, batch)
    finally:
        for handle in hooks:
            handle.remove()
    runs: list[tuple[Layers, int]] = []
    for group in found:
        once = [(names[id(module)], module) for module in group if calls[id(module)] == 1]
        often = [([(names[id(module)], module)], calls[id(module)]) for module in group if calls[id(module)] > 1]
        runs += ([(once, 1)] if once else []) + often
    return runs


def _inputs(model: nn.Module, name: str, batch: Any, calls: int) -> list[torch.Tensor]:
    """The rows, float32, that a layer gets in its first ``calls`` calls."""
    rows: list[torch.Tensor] = []
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = _argument(args, kwargs)
        if x.shape[-1] != module.in_features:
            raise ValueError(f"data: {name} expects {module.in_features} inputs, got {x.shape[-1]}")
        kept = isinstance(mask, torch.Tensor) and mask.shape == x.shape[:-1]
        rows.append((x[mask.bool()] if kept else x.reshape(-1, x.shape[-1])).float())  # type: ignore[union-attr]
        if len(rows) == calls:
            raise _Enough

    handle = model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        _run(model, batch)
    except _Enough:
        pass
    finally:
        handle.remove()
    return rows


def _argument(args: Any, kwargs: Any) -> torch.Tensor:
    return args[0] if args else kwargs["input"]


def _run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        try:
            inspect.signature(model.forward).bind(**batch)
        except TypeError:
            model(batch)
        else:
            model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)
