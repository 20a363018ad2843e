"""FP=xINT: a model as a sum of low-bit models, in one process or in many, and as much of it as is needed.

B. Zhang et al., "FP=xINT: a low-bit series expansion algorithm for post-training quantization",
arXiv 2412.06865, 2024; near it E. Yvinec et al., "REx", arXiv 2203.14645, 2023. Written from the
method's summary: its figures are not reproduced here.

Layers are those of :class:`lowbit.Series`; here are whole models of them. A nonlinear function of a sum is no
sum of functions, so the terms' integers are added up after every layer, before what follows: exactly,
in any order. ``n`` terms of ``X`` bits have the numerics of one code of ``nX`` bits, no better.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import fx, nn

from lowbit.torch import fusion
from lowbit.torch.series import SeriesLayer

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Answers",
    "Anytime",
    "Shares",
    "abelian_add",
    "abelian_mul",
    "basis_models",
    "certain_bound",
    "distribute_",
    "first_terms",
    "measure_margins",
]

Pair = tuple[int, int]


def series_layers(model: nn.Module) -> dict[str, SeriesLayer]:
    """A model's layers on series, by name.

    Raises
    ------
    TypeError, ValueError
        No module, none of them.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SeriesLayer)}
    if not layers:
        raise ValueError("model: expected layers on series; quantize_(model, lowbit.Series(...)) first")
    return layers


def _twin(model: nn.Module) -> nn.Module:
    """A copy that shares all tensors."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


# ------------------------------------------------------------------ terms as models


def basis_models(model: nn.Module) -> dict[Pair, nn.Module]:
    """The models that a model on series is the sum of: one for each product of terms.

    ``(i, j)`` has in every layer term i of the weight and term j of the activations, both from
    0, or with i = -1 what of the weight is saturated. What is no layer on series (biases,
    normalizations) all of them share. They share the model's tensors.

    Raises
    ------
    TypeError, ValueError
        No layers on series, or of different configs: their terms are no common ones.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.methods.series import abelian_add, abelian_mul, basis_models
    >>> from lowbit.torch import quantize_
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
    >>> _ = quantize_(model, lowbit.Series(4, 2, 4, 2))
    >>> terms = basis_models(model)
    >>> sorted(terms)
    [(0, 0), (0, 1), (1, 0), (1, 1)]
    >>> whole = abelian_mul(terms[0, 0], 256)
    >>> for pair, coefficient in [((0, 1), 16), ((1, 0), 16), ((1, 1), 1)]:
    ...     whole = abelian_add(whole, abelian_mul(terms[pair], coefficient))
    >>> x = torch.randn(3, 8)
    >>> torch.equal(whole(x), model(x))
    True
    """
    layers = series_layers(model)
    configs = {layer.config for layer in layers.values()}
    if len(configs) > 1:
        raise ValueError(f"model: expected layers of one config, got {len(configs)}: {', '.join(map(str, configs))}")
    pairs = [pair for layer in layers.values() for pair in layer.all_coefficients()]
    return {pair: _with_coefficients(model, lambda _, pair=pair: {pair: 1}) for pair in dict.fromkeys(pairs)}


def abelian_add(a: nn.Module, b: nn.Module) -> nn.Module:
    """The model whose layers' integers are the sums of two models': commutative and associative, bit for bit.

    Both are isomorphic: terms of one model (`basis_models`), or sums and multiples of such.

    Raises
    ------
    TypeError, ValueError
        No layers on series, or not those of one model.
    """
    ours, theirs = series_layers(a), series_layers(b)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise ValueError(f"a, b: expected terms of one model, got layers that only one has: {', '.join(odd[:5])}")
    for name, layer in ours.items():
        other = theirs[name]
        if layer.config != other.config or not _same(layer, other):
            raise ValueError(f"a, b: expected terms of one model, but {name} differs in config or tensors")

    def added(name: str) -> dict[Pair, int]:
        total = dict(_coefficients(ours[name]))
        for pair, coefficient in _coefficients(theirs[name]).items():
            total[pair] = total.get(pair, 0) + coefficient
        if _most(ours[name], total) >= 1 << 63:
            raise ValueError(f"a, b: their sums of {name} may be beyond int64")
        return {pair: c for pair, c in sorted(total.items()) if c}

    return _with_coefficients(a, added)


def abelian_mul(model: nn.Module, coefficient: int) -> nn.Module:
    """The model whose layers' integers are a multiple of a model's; by 0 the neutral one, by -1 the inverse.

    Raises
    ------
    TypeError, ValueError
        No layers on series, no int, or one with which sums may be beyond int64.
    """
    layers = series_layers(model)
    if isinstance(coefficient, bool) or not isinstance(coefficient, int):
        raise TypeError(f"coefficient: expected an int, got {coefficient!r}")

    def multiplied(name: str) -> dict[Pair, int]:
        product = {p: coefficient * c for p, c in sorted(_coefficients(layers[name]).items()) if coefficient}
        if _most(layers[name], product) >= 1 << 63:
            raise ValueError(f"coefficient: {coefficient} makes sums of {name} that int64 may not hold")
        return product

    return _with_coefficients(model, multiplied)


def _coefficients(layer: SeriesLayer) -> dict[Pair, int]:
    return layer.all_coefficients() if layer.coefficients is None else layer.coefficients


def _with_coefficients(model: nn.Module, of: Callable[[str], dict[Pair, int]]) -> nn.Module:
    twin = _twin(model)
    fusion.unfuse_(twin)
    for name, layer in series_layers(twin).items():
        layer.coefficients = of(name)
    return twin


def _same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two layers have the same tensors, or equal ones."""
    ours, theirs = dict(a.named_buffers()), dict(b.named_buffers())
    return ours.keys() == theirs.keys() and all(x is theirs[n] or torch.equal(x, theirs[n]) for n, x in ours.items())


# ------------------------------------------------------------------ terms in processes


@dataclass
class Shares:
    """What a process of a distributed model computes, and what it waited for.

    ``terms``: of each layer, the products of terms that are this process's. ``seconds``
    spent in AllReduce so far, and its ``calls``; what else a forward pass took is computing.
    """

    rank: int
    ranks: int
    terms: dict[str, tuple[Pair, ...]]
    seconds: float = 0.0
    calls: int = 0
    bytes: int = field(default=0)


def distribute_(model: nn.Module, group: ProcessGroup | None = None, *, order: int | None = None) -> Shares:
    """Makes this process compute its share of every layer's terms, in place.

    Each layer's products of terms are dealt to the processes in turn. A process sums its own,
    as integers, and an AllReduce sums those of all before anything nonlinear: every process
    goes on with the same bits, which are those of the model in one process, for any
    number of processes and any order. All call the model on the same inputs.

    Parameters
    ----------
    model : torch.nn.Module
        With layers on series, the same on every process.
    group : torch.distributed.ProcessGroup, optional
        None: the default one. Its backend has to sum CPU tensors of int32 and int64, as gloo does. A
        process that ends makes the others' next AllReduce fail at once, within half a second; one that hangs, after
        the group's timeout, which `torch.distributed.init_process_group` takes.
    order : int, optional
        A seed, the same on every process: deal and sum the terms in a random order.

    Returns
    -------
    Shares

    Raises
    ------
    TypeError, ValueError
        No layers on series, a model that is distributed already, other layers or another order on another process,
        a group that this process is not in.
    RuntimeError
        torch.distributed is not initialised. From the model, when it is called: a process ended, or took
        longer than the timeout.
    """
    import torch.distributed as dist

    layers = series_layers(model)
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError("group: torch.distributed.init_process_group('gloo', ...) has to be called first")
    again = [name for name, layer in layers.items() if layer.reduce is not None]
    if again:
        raise ValueError(f"model: expected one that is not distributed yet; {again[0]} is")
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError("group: expected one that this process is in")
    _check_same(layers, order, group, ranks)
    fusion.unfuse_(model)
    rng = None if order is None else np.random.default_rng(order)
    shares = Shares(rank, ranks, {})
    turn = 0
    for name, layer in layers.items():
        dealt = list(_coefficients(layer).items())
        if rng is not None:
            dealt = [dealt[i] for i in rng.permutation(len(dealt))]
        # The first process after the one that the layer before ended with, so that none has always more.
        mine = [term for at, term in enumerate(dealt) if (at + turn) % ranks == rank]
        turn = (turn + len(dealt)) % ranks
        dtype = np.int32 if _most(layer, dict(dealt)) < 1 << 31 else np.int64
        layer.coefficients = dict(mine)
        layer.reduce = _all_reduce(name, group, shares, dtype)
        shares.terms[name] = tuple(pair for pair, _ in mine)
    return shares


def _check_same(layers: dict[str, SeriesLayer], order: int | None, group: Any, ranks: int) -> None:
    """Whether all processes have these layers: what they add up would otherwise be nobody's."""
    import torch.distributed as dist

    told = crc32(str(order).encode())
    for name, layer in layers.items():
        told = crc32(f"{name} {layer.config} {layer.coefficients}".encode(), told)
        for buffer in layer.buffers(recurse=False):
            told = crc32(np.ascontiguousarray(buffer.detach().numpy()), told)
    mine = torch.tensor([told])
    every = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(every, mine, group=group)
    other = [rank for rank, one in enumerate(every) if int(one) != told]
    if other:
        raise ValueError(f"model, order: expected the same on every process, but rank {other[0]} has others")


def _most(layer: SeriesLayer, coefficients: dict[Pair, int]) -> int:
    """What no partial sum exceeds."""
    digits, config = layer.digits(), layer.config
    each = [np.abs(d.astype(np.int64)).reshape(len(d), -1).sum(1).max() for d in digits]
    sparse = int(np.abs(layer.saturation()).reshape(digits.shape[1], -1).sum(1).max()) if config.clip is not None else 0
    most = (1 << config.activation_bits) - 1
    return sum(abs(c) * most * (sparse if i < 0 else int(each[i])) for (i, _), c in coefficients.items())


#: How often a process that waits looks whether another has given up.
LOOK = timedelta(seconds=0.2)


def _summed(total: torch.Tensor, group: Any) -> None:
    """AllReduce. Only a lost process's neighbours notice that it ended: they tell the others, through the store."""
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    store = c10d._get_default_store()
    key = f"lowbit/{(group or c10d._get_default_group()).group_name}/failed"
    work = dist.all_reduce(total, group=group, async_op=True)
    while True:
        try:
            work.wait(LOOK)
            return
        except RuntimeError:
            if work.is_completed():
                with contextlib.suppress(RuntimeError):  # who keeps the store may be who is lost
                    store.set(key, "1")
                raise
        if store.check([key]):
            raise RuntimeError("another process was told so")


def _all_reduce(name: str, group: Any, shares: Shares, dtype: Any) -> Callable[[np.ndarray], np.ndarray]:

    def reduce(sums: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        total = torch.from_numpy(np.ascontiguousarray(sums, dtype))
        try:
            _summed(total, group)
        except (RuntimeError, ValueError) as error:  # ValueError: the group is gone
            raise RuntimeError(
                f"the AllReduce of layer {name} failed on rank {shares.rank} of {shares.ranks}: "
                f"another process ended, or took longer than the timeout ({error})"
            ) from error
        shares.seconds += time.perf_counter() - start
        shares.calls += 1
        shares.bytes += total.nbytes
        return total.numpy().astype(np.int64)

    return reduce


# ------------------------------------------------------------------ as many terms as are needed


def first_terms(model: nn.Module, weight_terms: int, activation_terms: int) -> nn.Module:
    """A model's leading terms as a model: weights are the first digits of its own, inputs are rounded coarser.

    Layers with fewer terms keep those they have.

    Raises
    ------
    TypeError, ValueError
        No layers on series, some terms of a model instead of all, less than one term.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.methods.series import first_terms
    >>> from lowbit.torch import quantize_
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
    >>> x, exact = torch.randn(8, 64), model[0].weight.detach().clone()
    >>> _ = quantize_(model, lowbit.Series(4, 2, 4, 2))
    >>> [f"{(first_terms(model, n, n)[0].dequantize() - exact).abs().max():.2g}" for n in (1, 2)] # doctest: +SKIP
    ['0.0094', '0.00053']
    """
    for name, terms in (("weight_terms", weight_terms), ("activation_terms", activation_terms)):
        if isinstance(terms, bool) or not isinstance(terms, int):
            raise TypeError(f"{name}: expected an int, got {terms!r}")
        if terms < 1:
            raise ValueError(f"{name}: expected at least 1, got {terms}")
    series_layers(model)
    twin = _twin(model)
    fusion.unfuse_(twin)
    done: dict[int, nn.Module] = {}
    for name, layer in list(twin.named_modules(remove_duplicate=False)):
        if not isinstance(layer, SeriesLayer):
            continue
        if id(layer) not in done:
            config = layer.config
            terms = min(weight_terms, config.weight_terms), min(activation_terms, config.activation_terms)
            done[id(layer)] = layer.first_terms(*terms).train(layer.training)
        parent, _, child = name.rpartition(".")
        setattr(twin.get_submodule(parent), child, done[id(layer)])
    fusion.fuse_(twin)
    return twin


@dataclass(frozen=True, eq=False)
class Answers:
    """What :class:`Anytime` answers: ``logits`` (N, classes) and the stage that each sample stopped at, (N,)."""

    logits: torch.Tensor
    stage: torch.Tensor


class Anytime:
    """A classifier that stops at the first terms that are sure.

    Each sample runs through the first stage; where its first choice leads the second by more than the
    stage's margin it stops, the others go on to the next. A later stage starts anew: a nonlinear model's
    later terms are no correction of what the first ones gave.

    Parameters
    ----------
    model : torch.nn.Module
        On series.
    stages : sequence of (weight terms, activation terms)
        Ascending; the last are all of the model's.
    margins : sequence of float
        For each stage but the last, as `measure_margins` found them.

    Attributes
    ----------
    products : tuple of float
        Integer matrix products a layer, on average, of a sample that stops at a stage, those of the stages before it with
        them.
    """

    def __init__(self, model: nn.Module, stages: Sequence[Pair], margins: Sequence[float]) -> None:
        self.stages = _check_stages(model, stages)
        if len(margins) != len(self.stages) - 1:
            raise ValueError(f"margins: expected {len(self.stages) - 1} for {len(stages)} stages, got {len(margins)}")
        self.margins = tuple(map(float, margins))
        self.models = _models_of(model, self.stages)
        each = [_products(one) for one in self.models]
        self.products = tuple(sum(each[: i + 1]) for i in range(len(each)))

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> Answers:
        """Of samples (N, ...)."""
        left = torch.arange(len(x))
        logits: torch.Tensor | None = None
        stage = torch.zeros(len(x), dtype=torch.int64)
        for at, model in enumerate(self.models):
            y = model(x[left])
            logits = y.new_empty((len(x), *y.shape[1:])) if logits is None else logits
            logits[left], stage[left] = y, at
            if at + 1 < len(self.models):
                left = left[_lead(y) <= self.margins[at]]
            if not len(left):  # without samples the first stage alone runs
                break
        assert logits is not None
        return Answers(logits, stage)


def _check_stages(model: nn.Module, stages: Sequence[Pair]) -> tuple[Pair, ...]:
    layers = series_layers(model).values()
    most = tuple(max(getattr(layer.config, f"{w}_terms") for layer in layers) for w in ("weight", "activation"))
    checked = []
    for stage in stages:
        pair = tuple(stage) if isinstance(stage, (tuple, list)) else ()
        if len(pair) != 2 or not all(isinstance(t, int) and not isinstance(t, bool) and t > 0 for t in pair):
            raise TypeError(f"stages: expected pairs of (weight terms, activation terms), got {stage!r}")
        checked.append(pair)
    rising = all(a != b and a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(checked))
    if not checked or not rising or checked[-1] != most:
        raise ValueError(f"stages: expected ascending ones of which the last is the model's {most}, got {checked}")
    return tuple(checked)


def _products(model: nn.Module) -> float:
    """Integer matrix products of a layer, on average."""
    layers = series_layers(model).values()
    return sum(layer.config.products for layer in layers) / len(layers)


def _models_of(model: nn.Module, stages: Sequence[Pair]) -> list[nn.Module]:
    return [*(first_terms(model, *stage) for stage in stages[:-1]), model]


def _lead(logits: torch.Tensor) -> torch.Tensor:
    """By how much each sample's first choice leads."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"model: expected outputs (N, classes) of at least 2 classes, got {tuple(logits.shape)}")
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return first - second


def measure_margins(
    model: nn.Module, stages: Sequence[Pair], data: Iterable[torch.Tensor], *, risk: float = 0.0
) -> list[float]:
    """Margins beyond which a stage's first choice was that of all terms, for the samples of ``data``.

    A measured bound, not a certain one: of other samples more than ``risk`` may differ.

    Parameters
    ----------
    model : torch.nn.Module
        On series.
    stages : sequence of (weight terms, activation terms)
    data : iterable of torch.Tensor
        Batches of inputs; no labels.
    risk : float
        The share of all samples that may stop at a stage with another first choice, 0 to below 1.

    Returns
    -------
    list of float
        One for each stage but the last.
    """
    if isinstance(risk, bool) or not isinstance(risk, (int, float)):
        raise TypeError(f"risk: expected a number, got {risk!r}")
    if not 0 <= risk < 1:
        raise ValueError(f"risk: expected 0 to below 1, got {risk}")
    return [margin(*each, risk) for each in leads(model, stages, data)]


@torch.no_grad()
def leads(
    model: nn.Module, stages: Sequence[Pair], data: Iterable[torch.Tensor]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each stage but the last: by how much first choices lead, and whether they are not those of all terms."""
    models = _models_of(model, _check_stages(model, stages))
    if isinstance(data, torch.Tensor):
        raise TypeError("data: expected batches, got a tensor; x.split(100), say")
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in models[:-1]]
    for batch in data:
        if not isinstance(batch, torch.Tensor):
            raise TypeError(f"data: expected batches of inputs alone, tensors, got a {type(batch).__name__}")
        choice = models[-1](batch).argmax(1)
        for few, each in zip(models, found, strict=False):
            logits = few(batch)
            each.append((_lead(logits), logits.argmax(1) != choice))
    if not all(found):
        raise ValueError("data: expected at least one batch")
    return [(torch.cat([a for a, _ in each]), torch.cat([b for _, b in each])) for each in found]


def margin(lead: torch.Tensor, differs: torch.Tensor, risk: float) -> float:
    """The margin of a stage, from what :func:`leads` gives of it."""
    worst = lead[differs].sort(descending=True).values
    allowed = int(risk * len(lead))
    return float(worst[allowed]) if len(worst) > allowed else 0.0


# ------------------------------------------------------------------ what is certain


@torch.no_grad()
def certain_bound(few: nn.Module, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of a model's first terms, and what those of all its terms differ from them at most.

    By interval arithmetic, layer by layer: certain, and so wide after a few layers that it seldom tells
    anything. It costs more than the rest of the terms.

    Parameters
    ----------
    few : torch.nn.Module
        `first_terms` of ``model``.
    model : torch.nn.Module
        On series; its code has to be traceable by `torch.fx`, its steps those of CNNs: normalizations, ReLU,
        additions, means, pooling, padding, reshaping.
    x : torch.Tensor

    Returns
    -------
    outputs, radius : torch.Tensor
        ``abs(model(x) - outputs) <= radius``, elementwise.

    Raises
    ------
    NotImplementedError
        A step that intervals are not known for; inputs that are rounded with feedback behind another layer.
    """
    ours, theirs = series_layers(few), series_layers(model)
    for name, layer in ours.items():
        other = theirs.get(name)
        if other is None or layer.config.weight_terms > other.config.weight_terms:
            raise ValueError(f"few, model: expected the first terms of a model and that model, but {name} is not so")
    twin = _twin(few)
    fusion.unfuse_(twin)
    graph = _Tracer().trace(twin)
    return _Intervals(fx.GraphModule(twin, graph), theirs).run(x)  # type: ignore[no-any-return]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        return isinstance(m, SeriesLayer) or super().is_leaf_module(m, qualname)


#: Steps that change no distance, and act on the radius as on the value.
_LINEAR = {
    "flatten", "view", "reshape", "permute", "transpose", "mean", "getitem", "pad", "contiguous", "adaptive_avg_pool2d",
    "avg_pool2d", "unsqueeze", "squeeze",
}  # fmt: skip
#: Of ReLU and max pooling no difference is larger than the largest of their inputs'.
_POOLS = {"max_pool2d"}
#: For what float32 rounds.
_SLACK = 1e-5


class _Intervals(fx.Interpreter):
    """Values of the first terms, and radii within which those of all terms lie."""

    def __init__(self, graph: fx.GraphModule, whole: dict[str, SeriesLayer]) -> None:
        super().__init__(graph)
        self.whole = whole

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr", "output"):
            value = super().run_node(n)
            return (value, torch.zeros_like(value)) if n.op == "placeholder" else value
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            return self._module(str(n.target), *args)
        name = str(getattr(n.target, "__name__", n.target)).rstrip("_")
        if any(map(_interval, kwargs.values())) or (name in ("add", "iadd") and kwargs):
            raise NotImplementedError(f"certain_bound: no interval is known for {name} with {', '.join(kwargs)}")
        values = [a[0] if _interval(a) else a for a in args]
        radii = [a[1] if _interval(a) else a for a in args]

        def call(these: list[Any]) -> Any:
            return (
                getattr(these[0], str(n.target))(*these[1:], **kwargs)
                if n.op == "call_method"
                else n.target(*these, **kwargs)
            )  # type: ignore[operator]

        if name in ("relu", "dropout"):
            return call(values), radii[0]
        if name in ("add", "iadd") and len(args) == 2 and all(map(_interval, args)):
            y = values[0] + values[1]
            return y, _wider(radii[0] + radii[1], y)
        if name in _LINEAR | _POOLS:
            y = call(values)
            return y, _kept(call(radii), y) if isinstance(y, torch.Tensor) else y
        raise NotImplementedError(f"certain_bound: no interval is known for {n.op} {name}")

    def _module(self, name: str, x: tuple[torch.Tensor, torch.Tensor]) -> Any:
        module, (value, radius) = self.fetch_attr(name), x
        if isinstance(module, SeriesLayer):
            return self._layer(name, module, self.whole[name], value, radius)
        y = module(value)
        if isinstance(module, nn.BatchNorm2d):
            if module.running_var is None:
                raise NotImplementedError(f"certain_bound: {name} normalizes by the batch")
            gain = (module.running_var + module.eps).rsqrt()
            gain = gain if module.weight is None else gain * module.weight.abs()
            return y, _wider(radius * gain[:, None, None], y)
        if isinstance(module, (nn.ReLU, nn.Identity, nn.Dropout)):
            return y, radius
        if isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)):
            return y, _wider(module(radius), y)
        raise NotImplementedError(f"certain_bound: no interval is known for {name}, a {type(module).__name__}")

    def _layer(self, name: str, few: SeriesLayer, whole: SeriesLayer, x: torch.Tensor, radius: torch.Tensor) -> Any:
        y = few(x)
        axes = few.spans(x)
        # The whole model rounds inputs that lie within the radius, by a step that their range sets.
        low, high = (x - radius).amin(axes, keepdim=True), (x + radius).amax(axes, keepdim=True)
        config = whole.config
        steps = (1 << config.activation_bits * config.activation_terms) - 1
        step = (high.clamp(min=0) - low.clamp(max=0)) / steps
        seen = few.seen(x)
        if getattr(whole, "feedback", None) is None:
            apart = radius + (x - seen).abs() + step * (0.5 + _SLACK)
        elif radius.any():
            raise NotImplementedError(
                f"certain_bound: {name} rounds with feedback, and its inputs are not known exactly"
            )
        else:
            apart = (whole.seen(x) - seen).abs()
        full = whole.dequantize().to(x.dtype)
        rest = full - few.dequantize().to(x.dtype)
        drift = few.convolve(seen, rest).abs() + few.convolve(apart, full.abs())
        return y, _wider(drift, y)


def _interval(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, torch.Tensor) for part in x)


def _kept(radius: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """What one step makes of both: of equal values the same."""
    return _wider(radius, y) if radius.any() else radius


def _wider(radius: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # Beyond float32 it is infinite, and so is 0 times infinity.
    return (radius * (1 + _SLACK) + y.abs() * _SLACK).nan_to_num(nan=math.inf, posinf=math.inf)
