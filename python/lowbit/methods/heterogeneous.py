"""Heterogeneous quantization of spiking networks: each layer its own kind of levels and its own bits.

After B. Xu, Y. Song, P. Li, "Trimming down large spiking vision transformers via heterogeneous
quantization search" (SpikeHQ, 2024). `search` finds an assignment by gradients: every layer is a
mixture of its candidates, whose weights are learned against the loss plus a cost of the hardware.
`choose` finds one without training: each candidate's error, and the exact choice among them.
Either ends in rules for `quantize_`; `finetune_` is the quantization-aware training after it.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lowbit import knapsack
from lowbit.config import Spiking
from lowbit.torch.quantize import Rule, _replace, quantize_
from lowbit.torch.spiking import Nearest, QuantSpikingLayer, SpikingLayer, best_step

__all__ = [
    "CANDIDATES",
    "Assignment",
    "Found",
    "bits",
    "choose",
    "evaluate",
    "finetune_",
    "mean_bits",
    "measure",
    "quantized",
    "rules_of",
    "search",
    "spiking_layers",
]

#: What a layer may get. Powers of two gain nothing from 4 bits on, so wider ones are no candidates.
CANDIDATES = (
    Spiking(2),
    Spiking(3),
    Spiking(3, "power_of_two"),
    Spiking(4),
    Spiking(4, "power_of_two"),
    Spiking(5),
    Spiking(6),
    Spiking(8),
)

#: Of each layer, by name, its config.
Assignment = dict[str, Spiking]
#: What a layer's weights cost on a config: a number to be summed over the layers.
Cost = Callable[[nn.Module, Spiking], float]


def spiking_layers(model: nn.Module) -> dict[str, SpikingLayer]:
    """The layers that can be quantized, by name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SpikingLayer)}


def rules_of(assignment: Mapping[str, Spiking]) -> list[Rule]:
    """Rules for `quantize_`: one for each layer.

    Examples
    --------
    >>> import lowbit
    >>> from lowbit.methods.heterogeneous import rules_of
    >>> rules_of({"blocks.0.query": lowbit.Spiking(3)})
    [('^blocks\\\\.0\\\\.query$', Spiking(nbits=3, levels='uniform'))]
    """
    return [(f"^{re.escape(name)}$", config) for name, config in assignment.items()]


def bits(layer: nn.Module, config: Spiking) -> float:
    """What is stored of a layer, in bits: its codes, and a threshold and a bias of 16 bits for each output."""
    weight = layer.weight if isinstance(layer, QuantSpikingLayer) else layer.weight.weight
    return float(weight.numel() * config.nbits + 32 * weight.shape[0])


def mean_bits(model: nn.Module, assignment: Mapping[str, Spiking]) -> float:
    """Bits a weight on average, thresholds and biases counted (see `bits`)."""
    layers = spiking_layers(model)
    return sum(bits(layers[name], config) for name, config in assignment.items()) / _weights(layers.values())


def _weights(layers: Any) -> int:
    return sum(layer.weight.weight.numel() for layer in layers)


# ------------------------------------------------------------------ by gradients


class _Mixture(nn.Module):
    """A spiking layer on all candidates at once, by their weights; forwards the one that was drawn."""

    def __init__(self, layer: SpikingLayer, candidates: Sequence[Spiking], cost: Cost) -> None:
        super().__init__()
        layer.fold_()
        self.layer, self.candidates = layer, candidates
        self.logits = nn.Parameter(torch.zeros(len(candidates)))
        weight = layer.weight.weight.detach().flatten(1)
        self.levels = [torch.from_numpy(config.codes()).float() for config in candidates]
        self.steps = [best_step(weight, levels) for levels in self.levels]
        costs = torch.tensor([cost(layer, config) for config in candidates])
        self.register_buffer("costs", costs, persistent=False)
        self.noise, self.temperature = torch.zeros(len(candidates)), 1.0

    def shares(self) -> torch.Tensor:
        return torch.softmax((self.logits + self.noise) / self.temperature, 0)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """What the neurons get."""
        weight, shares = self.layer.weight.weight, self.shares()
        across = (-1, *(1,) * (weight.dim() - 1))
        # The drawn one forwards, so that no mixture looks finer than its candidates; all backwards.
        drawn = torch.zeros_like(shares).scatter(0, shares.argmax(0, keepdim=True), 1.0)
        shares = drawn + shares - shares.detach()
        mixed = torch.zeros_like(weight)
        for share, step, levels in zip(shares, self.steps, self.levels, strict=True):
            step = step.view(across)
            mixed = mixed + share * (Nearest.apply(weight / step, levels) * step)
        bias = self.layer.weight.bias
        if isinstance(self.layer.weight, nn.Conv2d):
            conv = self.layer.weight
            y = functional.conv2d(x.flatten(0, 1), mixed, bias, conv.stride, conv.padding, conv.dilation)
            return y.unflatten(0, (x.shape[0], -1))
        return functional.linear(x, mixed, bias)

    def fire(self, sums: torch.Tensor) -> torch.Tensor:
        """The spikes of these sums."""
        return self.layer.fire(sums)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fire(self.sums(x))


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    assignment : dict of str to Spiking
        Of each layer the candidate with the greatest weight: for `rules_of`.
    logits : dict of str to list of float
        The candidates' weights, before the softmax.
    history : list of dict
        Of each epoch the loss and the mean cost.
    """

    assignment: Assignment
    logits: dict[str, list[float]]
    history: list[dict[str, float]]


def search(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    weight: float,
    candidates: Sequence[Spiking] = CANDIDATES,
    cost: Cost = bits,
    epochs: int = 2,
    batch: int = 50,
    lr: float = 5e-4,
    logits_lr: float = 0.1,
    temperature: tuple[float, float] = (5.0, 0.1),
    seed: int = 0,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    journal: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Found:
    """Each layer's levels and bits, by gradients.

    A step of the weights on one half of the data is followed by a step of the candidates' logits on
    the other, against cross-entropy plus ``weight`` times the cost of a weight on average. What a
    layer forwards is one candidate, drawn by the Gumbel-softmax; the gradient goes to all.

    Parameters
    ----------
    model : Module
        Trained, with spiking layers. It is not changed.
    x, y : Tensor
        Inputs of the model and classes. Of event frames ``x`` is ``(N, T, ...)`` and the model is
        given ``(T, N, ...)``.
    weight : float
        Of the cost: the more, the fewer bits.
    candidates : sequence of Spiking
    cost : callable
        Of a layer on a config: `bits`, or energy or time by a table of one's own.
    epochs, batch, lr, logits_lr
        Of the search: Adam for both.
    temperature : pair of float
        Of the softmax at the first and the last step, in between by equal factors.
    seed : int
        Of order, noise and augmentation: the same seed, data and thread count, the same result.
    augment : callable, optional
        Of a batch and a generator to what is trained on.
    journal : path, optional
        A safetensors file that the search keeps its state in after each epoch; it goes on from there
        if it finds one, and ends as if it had never stopped.
    progress : callable, optional
        Told the steps done, all steps and a word.

    Raises
    ------
    ValueError
        No spiking layers, or a journal of another search.

    Examples
    --------
    >>> import torch
    >>> from lowbit.methods.heterogeneous import search
    >>> from lowbit.models.spikformer import Spikformer
    >>> model = Spikformer(width=8, depth=1, heads=2, n_steps=2)
    >>> x, y = torch.rand(8, 1, 28, 28), torch.arange(8)
    >>> found = search(model, x, y, weight=0.1, epochs=1, batch=4)
    >>> sorted(found.assignment)[:2]
    ['blocks.0.down', 'blocks.0.key']
    """
    model = copy.deepcopy(model).eval()
    layers = spiking_layers(model)
    if not layers:
        raise ValueError("model: expected spiking layers (lowbit.torch.spiking.SpikingLayer), found none")
    n_weights = _weights(layers.values())
    mixtures = {name: _Mixture(layer, candidates, cost) for name, layer in layers.items()}
    for name, mixture in mixtures.items():
        _replace(model, name, mixture)
    logits = [mixture.logits for mixture in mixtures.values()]
    chosen = {id(p) for p in logits}
    weights = [p for p in model.parameters() if id(p) not in chosen]
    of_weights, of_logits = torch.optim.Adam(weights, lr), torch.optim.Adam(logits, logits_lr, betas=(0.5, 0.999))

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    halves = order[: len(x) // 2], order[len(x) // 2 :]
    per_epoch = max(1, len(halves[0]) // batch)
    total, first = epochs * per_epoch, 0
    history: list[dict[str, float]] = []
    key = json.dumps(
        [seed, epochs, batch, weight, lr, logits_lr, list(temperature), [repr(c) for c in candidates], len(x)]
    )
    state = _Journal(journal, key, model, (of_weights, of_logits), generator)
    if (kept := state.load()) is not None:
        first, history = kept

    for epoch in range(first, epochs):
        draws = [half[torch.randperm(len(half), generator=generator)] for half in halves]
        loss_sum = cost_sum = 0.0
        for i in range(per_epoch):
            done = epoch * per_epoch + i
            share = done / max(1, total - 1)
            tau = temperature[0] * (temperature[1] / temperature[0]) ** share
            for draw, optimizer in zip(draws, (of_weights, of_logits), strict=True):
                for mixture in mixtures.values():
                    uniform = torch.rand(len(candidates), generator=generator).clamp(1e-9, 1 - 1e-7)
                    mixture.noise, mixture.temperature = -torch.log(-torch.log(uniform)), tau
                part = draw[i * batch : (i + 1) * batch]
                loss = _loss(model, x[part], y[part], augment, generator)
                spent = torch.stack([(m.shares() * m.costs).sum() for m in mixtures.values()]).sum() / n_weights
                of_weights.zero_grad()
                of_logits.zero_grad()
                (loss + weight * spent).backward()
                optimizer.step()
            loss_sum, cost_sum = loss_sum + float(loss.detach()), cost_sum + float(spent.detach())
            if progress is not None:
                progress(done + 1, total, f"loss {float(loss.detach()):.3f}, cost {float(spent.detach()):.2f}")
        history.append({"loss": loss_sum / per_epoch, "cost": cost_sum / per_epoch})
        state.save(epoch + 1, history)
    found = {name: mixture.logits.detach().tolist() for name, mixture in mixtures.items()}
    assignment = {name: candidates[int(np.argmax(values))] for name, values in found.items()}
    return Found(assignment, found, history)


def _inputs(x: torch.Tensor) -> torch.Tensor:
    """A batch as the model takes it: of frames the steps first."""
    return x.transpose(0, 1).contiguous() if x.dim() == 5 else x


def _loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor, augment: Any, generator: torch.Generator) -> torch.Tensor:
    return functional.cross_entropy(model(_inputs(x if augment is None else augment(x, generator))), y)


class _Journal:
    """The state of a search in a file that is whole at any moment."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        key: str,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        generator: torch.Generator,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.key, self.model, self.optimizers, self.generator = key, model, optimizers, generator

    def _moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for i, optimizer in enumerate(self.optimizers):
            for j, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                yield f"optimizer.{i}.{j}", optimizer.state.setdefault(parameter, {})

    def save(self, epochs: int, history: list[dict[str, float]]) -> None:
        if self.path is None:
            return
        from safetensors.torch import save_file

        tensors = {f"model.{name}": x.contiguous().clone() for name, x in self.model.state_dict().items()}
        for name, state in self._moments():
            tensors |= {f"{name}.{key}": torch.as_tensor(x).clone() for key, x in state.items()}
        tensors["generator"] = self.generator.get_state()
        about = {"kind": "lowbit search", "key": self.key, "epochs": str(epochs), "history": json.dumps(history)}
        part = self.path.with_name(self.path.name + ".part")
        save_file(tensors, part, metadata=about)
        part.replace(self.path)

    def load(self) -> tuple[int, list[dict[str, float]]] | None:
        """The epochs done and their history; None where there is no file."""
        if self.path is None or not self.path.exists():
            return None
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            about = file.metadata() or {}
            if about.get("kind") != "lowbit search" or about.get("key") != self.key:
                raise ValueError(f"journal: {self.path} is of another search; remove it or name another file")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.model.load_state_dict(
            {name.removeprefix("model."): x for name, x in tensors.items() if name.startswith("model.")}
        )
        for name, state in self._moments():
            keys = [key for key in tensors if key.startswith(f"{name}.")]
            state |= {key.removeprefix(f"{name}."): tensors[key] for key in keys}
        self.generator.set_state(tensors["generator"])
        return int(about["epochs"]), json.loads(about["history"])


# ------------------------------------------------------------------ without training


def choose(
    model: nn.Module,
    x: torch.Tensor,
    budget: float,
    *,
    candidates: Sequence[Spiking] = CANDIDATES,
    metric: str = "outputs",
    executor: Executor | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> Assignment:
    """Each layer's levels and bits without training: the errors sum to the least that the budget allows.

    Every layer is tried on every candidate with the others in float; the choice among them is the
    exact knapsack (`lowbit.knapsack.choose`).

    Parameters
    ----------
    model : Module
        Trained, with spiking layers. It is not changed.
    x : Tensor
        Inputs, as `search` takes them.
    budget : float
        Mean bits (`mean_bits`).
    metric : {"outputs", "drift"}
        The divergence of the network's classes from its own in float (Kullback and Leibler's), or how
        far the layer's sums drift, in parts of their square.
    executor : Executor, optional
        Of `concurrent.futures`, or a Dask client's ``get_executor()``: layers are tried there, with the
        same result. Here if None.

    Examples
    --------
    >>> import torch
    >>> from lowbit.methods.heterogeneous import choose, mean_bits
    >>> from lowbit.models.spikformer import Spikformer
    >>> model = Spikformer(width=8, depth=1, heads=2, n_steps=2).eval()
    >>> assignment = choose(model, torch.rand(4, 1, 28, 28), 9.0)
    >>> mean_bits(model, assignment) <= 9.0
    True
    """
    errors = measure(model, x, candidates, metric=metric, executor=executor, progress=progress)
    layers = spiking_layers(model)
    costs = [[int(bits(layers[name], config)) for config in candidates] for name in errors]
    most = int(budget * _weights(layers.values()))
    picked = knapsack.choose(costs, list(errors.values()), most)
    return {name: candidates[i] for name, i in zip(errors, picked, strict=True)}


def measure(
    model: nn.Module,
    x: torch.Tensor,
    candidates: Sequence[Spiking] = CANDIDATES,
    *,
    metric: str = "outputs",
    executor: Executor | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> dict[str, list[float]]:
    """Of each layer the error of each candidate, alone in a network of floats (see `choose`)."""
    if metric not in ("outputs", "drift"):
        raise ValueError(f"metric: expected 'outputs' or 'drift', got {metric!r}")
    model = copy.deepcopy(model).eval()
    for layer in spiking_layers(model).values():
        layer.fold_()
    names = list(spiking_layers(model))
    if not names:
        raise ValueError("model: expected spiking layers (lowbit.torch.spiking.SpikingLayer), found none")
    run = map if executor is None else executor.map
    n = len(names)
    found: dict[str, list[float]] = {}
    for name, errors in zip(
        names, run(_errors, [model] * n, [x] * n, names, [list(candidates)] * n, [metric] * n), strict=True
    ):
        found[name] = errors
        if progress is not None:
            progress(len(found), n, name)
    return found


def _errors(model: nn.Module, x: torch.Tensor, name: str, candidates: list[Spiking], metric: str) -> list[float]:
    """One layer's errors: the same on any machine, so on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _of_layer(model, _inputs(x), name, candidates, metric)
    finally:
        torch.set_num_threads(threads)


def _of_layer(model: nn.Module, inputs: torch.Tensor, name: str, candidates: list[Spiking], metric: str) -> list[float]:
    layer = model.get_submodule(name)
    assert isinstance(layer, SpikingLayer)
    given: list[torch.Tensor] = []

    def classes() -> torch.Tensor:
        return torch.log_softmax(model(inputs).double(), 1)

    hook = layer.weight.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        plain = classes()
    finally:
        hook.remove()
    errors = []
    for config in candidates:
        quantized = QuantSpikingLayer(copy.deepcopy(layer), config).eval()
        if metric == "drift":
            # Steps and samples are one axis to a convolution.
            x = given[0][None] if quantized.geometry is not None else given[0]
            errors.append(_drift(layer.sums(x), quantized, x))
            continue
        _replace(model, name, quantized)
        try:
            errors.append(float((plain.exp() * (plain - classes())).sum(1).mean()))
        finally:
            _replace(model, name, layer)
    return errors


def _drift(sums: torch.Tensor, quantized: QuantSpikingLayer, given: torch.Tensor) -> float:
    """How far the sums are from these, in parts of their square."""
    got, unit = quantized.sums(given).double(), torch.ones(1)
    if quantized.neuron is not None:
        unit = (quantized.step * quantized.unit / 2**quantized.fraction).double()
        unit = unit.view((-1, 1, 1) if quantized.geometry is not None else (-1,))
    whole = float(sums.double().square().sum())
    return float((got * unit - sums.double()).square().sum()) / whole if whole else 0.0


# ------------------------------------------------------------------ training on the levels


def finetune_(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    teacher: nn.Module | None = None,
    epochs: int = 3,
    batch: int = 50,
    lr: float = 1e-3,
    smoothing: float = 0.0,
    seed: int = 0,
    augment: Callable[[torch.Tensor, torch.Generator], torch.Tensor] | None = None,
    progress: Callable[[int, int, str], Any] | None = None,
) -> list[float]:
    """Trains a model, on its levels where it has any: Adam with decoupled decay, one cycle of the rate.

    Parameters
    ----------
    model : Module
        As `quantize_` leaves it, or in float.
    x, y : Tensor
        As `search` takes them.
    teacher : Module, optional
        The loss is the divergence from its classes rather than from the labels.
    epochs, batch, lr
        Of the training; ``lr`` is the greatest rate.
    smoothing : float
        Of the labels.
    seed, augment, progress
        As of `search`.

    Returns
    -------
    list of float
        The mean loss of each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = max(1, len(x) // batch)
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.0 if teacher is not None else 0.02)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(2, epochs * steps), pct_start=0.15)
    losses = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        total = 0.0
        for i in range(steps):
            part = order[i * batch : (i + 1) * batch]
            inputs = _inputs(x[part] if augment is None else augment(x[part], generator))
            out = model(inputs)
            if teacher is None:
                loss = functional.cross_entropy(out, y[part], label_smoothing=smoothing)
            else:
                with torch.no_grad():
                    wanted = torch.log_softmax(teacher(inputs), 1)
                got = torch.log_softmax(out, 1)
                loss = functional.kl_div(got, wanted, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            total += float(loss.detach())
            if progress is not None:
                progress(epoch * steps + i + 1, epochs * steps, f"loss {float(loss.detach()):.3f}")
        losses.append(total / steps)
    model.eval()
    return losses


def quantized(model: nn.Module, assignment: Mapping[str, Spiking]) -> nn.Module:
    """A copy of the model on these levels."""
    model = copy.deepcopy(model).eval()
    quantize_(model, None, rules=rules_of(assignment))
    return model


def evaluate(model: nn.Module, x: torch.Tensor, batch: int = 100) -> torch.Tensor:
    """The model's outputs, ``(N, classes)``."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(_inputs(x[i : i + batch])) for i in range(0, len(x), batch)])
