"""quantize_: a PyTorch model onto low-bit layers, in place, in one call."""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

import lowbit
from lowbit.config import Codebook, Config, Int8, Series, Spiking, Uniform
from lowbit.gemm import MAX_K_UINT8
from lowbit.torch import fusion
from lowbit.torch.correction import NORMS, input_moments
from lowbit.torch.modules import QuantEmbedding, QuantLinear
from lowbit.torch.series import SeriesConv2d, SeriesLayer, SeriesLinear, takes_feedback
from lowbit.torch.spiking import QuantSpikingLayer, SpikingLayer
from lowbit.weights import Weight

#: Products of a convolution's sums, at most.
MAX_PRODUCTS = 1 << 15

__all__ = ["LayerReport", "Report", "dequantize_", "quantize_"]

Rule = tuple[str, Config | None]
#: A weight's id, and a config: layers that have both share their buffers.
Shared = tuple[int, Config]
#: Those buffers, and the config that they got.
Made = tuple[dict[str, torch.Tensor], Config]
Progress = Callable[[int, int, str], Any]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer, in bytes of weight and bias.

    ``error`` is ‖W - Ŵ‖ / ‖W‖. ``reason`` says why a layer was left alone.
    """

    name: str
    kind: str
    config: str | None
    bytes_before: int
    bytes_after: int
    error: float | None = None
    kernel: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """What `quantize_` did: print it, or read its fields.

    ``bytes_before`` and ``bytes_after`` count the whole ``state_dict``, a
    tensor that several names share once.
    """

    layers: tuple[LayerReport, ...]
    bytes_before: int
    bytes_after: int
    fused: tuple[str, ...] = field(default=())

    @property
    def quantized(self) -> tuple[LayerReport, ...]:
        """The layers that now run on codes."""
        return tuple(layer for layer in self.layers if layer.reason is None)

    def to_json(self) -> str:
        """All of it as a JSON object."""
        return json.dumps(asdict(self))

    def __str__(self) -> str:
        width = max([len(layer.name) for layer in self.layers] + [5])
        lines = [f"{'layer':<{width}}  {'config':<8} {'before':>11} {'after':>11}  {'error':>7}  kernel"]
        for layer in self.layers:
            sizes = f"{layer.bytes_before:>11,} {layer.bytes_after:>11,}"
            if layer.reason is not None:
                lines.append(f"{layer.name:<{width}}  {'-':<8} {sizes}  {'':>7}  left alone: {layer.reason}")
            else:
                lines.append(f"{layer.name:<{width}}  {layer.config:<8} {sizes}  {layer.error:>7.4f}  {layer.kernel}")
        ratio = self.bytes_before / max(1, self.bytes_after)
        lines.append(
            f"{len(self.quantized)} of {len(self.layers)} layers quantized, {len(self.fused)} fused; "
            f"model {self.bytes_before / 1e6:.1f} MB -> {self.bytes_after / 1e6:.1f} MB, {ratio:.2f}x smaller"
        )
        return "\n".join(lines)


def quantize_(
    model: nn.Module,
    config: Config | None,
    *,
    rules: Sequence[Rule] | None = None,
    fuse: bool = True,
    progress: bool | Progress | None = None,
) -> Report:
    """Quantizes a model's linear layers and embeddings in place; with :class:`lowbit.Series` convolutions too.

    Layers are swapped one by one, so the peak is the model plus one layer. An
    interrupted call leaves a model that works, part of it quantized; a second
    call goes on.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU; a SentenceTransformer works as it is. Tied weights stay tied.
    config : Config or None
        For every layer that no rule names; None: only what the rules name.
    rules : sequence of (pattern, Config or None), optional
        The first pattern found (`re.search`) in a layer's dotted name decides;
        None leaves the layer alone.
    fuse : bool
        Run linear layer, activation, linear layer as one operator where the
        model's graph shows that nothing else sees what lies between, and a
        residual with its layer normalization as part of the layer before. An
        activation that is a function call is fused where a submodule is just
        these three.
    progress : bool or callable, optional
        True draws a line on a terminal; a callable gets (done, total, name).

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        A rule that matches no layer (with near names), a pattern that is no
        regular expression, NaN or infinities in a weight (the model is then
        untouched), a lazy layer, a model that is itself a layer.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch import quantize_
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8)).eval()
    >>> report = quantize_(model, lowbit.Int8())
    >>> [layer.name for layer in report.quantized], len(report.fused)
    (['0', '2'], 1)
    >>> model(torch.randn(2, 64)).shape
    torch.Size([2, 8])
    """
    _check_model(model)
    _check_config("config", config)
    checked = _check_rules(rules)
    kinds = _kinds_of([config, *(c for _, c in checked)])
    names = [name for name, _ in _layers(model, kinds)]
    decided = _decide(
        names, config, checked, "linear layer, convolution or embedding" if len(kinds) > len(_KINDS) else _WHAT
    )
    swaps = _Swaps(model, decided)
    before = _state_bytes(model)
    tell = _teller(progress)

    todo = swaps.todo
    todo.reverse()
    total = len(todo)
    while todo:
        name, module = todo.pop()
        tell(total - len(todo) - 1, total, name)
        swaps.swap(name, module)
        del module  # its weight goes before the next layer's codes come
    tell(total, total, "")

    fused = tuple(fusion.fuse_(model)) if fuse else ()
    return Report(tuple(swaps.reports[name] for name in names), before, _state_bytes(model), fused)


def dequantize_(model: nn.Module) -> nn.Module:
    """Puts ordinary torch layers back, with the weights that the codes stand for.

    Returns
    -------
    torch.nn.Module
        ``model``, changed in place; its outputs differ from the quantized
        model's by the rounding of activations alone.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch import dequantize_, quantize_
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> _ = quantize_(model, lowbit.Int8())
    >>> dequantize_(model)
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
    )
    """
    fusion.unfuse_(model)
    done: dict[int, nn.Module] = {}
    weights: dict[int, nn.Parameter] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, (QuantLinear, QuantEmbedding, SeriesConv2d)):
            continue
        if isinstance(module, SeriesLayer) and module.coefficients is not None:
            raise ValueError(f"model: {name} has some terms of a weight alone; no torch layer computes the same")
        if id(module) not in done:
            key = id(module._buffers.get("tiled", module._buffers.get("codes")))
            if key not in weights:
                weights[key] = nn.Parameter(module.dequantize())
            done[id(module)] = _dequantized(module, weights[key])
            _inherit(done[id(module)], module)
        _replace(model, name, done[id(module)])
    return model


def _dequantized(module: QuantLinear | QuantEmbedding | SeriesConv2d, weight: nn.Parameter) -> nn.Module:
    if isinstance(module, SeriesConv2d):
        conv = nn.Conv2d(
            module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding,
            module.dilation, module.groups, module.bias is not None, device="meta",
        )  # fmt: skip
        conv.weight = weight
        if module.bias is not None:
            conv.bias = nn.Parameter(module.bias.to(module.dtype))
        return conv
    if isinstance(module, QuantEmbedding):
        n, d = module.num_embeddings, module.embedding_dim
        embedding = nn.Embedding(n, d, module.padding_idx, device="meta")
        embedding.weight = weight
        return embedding
    linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
    linear.weight = weight
    if module.bias is not None:
        linear.bias = nn.Parameter(module.bias.to(module.dtype))
    return linear


# ------------------------------------------------------------------ deciding


_WHAT = "linear layer or embedding"
_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding, QuantLinear, QuantEmbedding)


def _kinds_of(configs: Iterable[Config | None]) -> tuple[type[nn.Module], ...]:
    """The layers that these configs are for: convolutions where one is a series, spiking layers alone
    where one is of those."""
    configs = list(configs)
    if any(isinstance(config, Spiking) for config in configs):
        return SpikingLayer, QuantSpikingLayer
    series = any(isinstance(config, Series) for config in configs)
    return (*_KINDS, nn.Conv2d, SeriesConv2d) if series else _KINDS


def _layers(model: nn.Module, kinds: tuple[type[nn.Module], ...] = _KINDS) -> Iterator[tuple[str, nn.Module]]:
    """Every layer of these kinds, quantized ones included, under every name."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, kinds):
            yield name, module


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.Linear, nn.Embedding, nn.Conv2d)):
        raise ValueError(f"model: a bare {type(model).__name__} cannot be swapped in place; wrap it in nn.Sequential")


def _check_config(name: str, config: Any) -> None:
    if config is not None and not isinstance(config, (Int8, Uniform, Codebook, Series, Spiking)):
        expected = "lowbit.Int8(), Uniform(...), Codebook(...), Series(...), Spiking(...) or None"
        raise TypeError(f"{name}: expected {expected}, got {config!r}")


def _check_fitted(name: str, config: Any) -> None:
    """A config whose weights data can fit."""
    _check_config(name, config)
    if isinstance(config, Spiking):
        raise ValueError(f"{name}: of spiking layers, which are trained; quantize_(model, {config})")
    if isinstance(config, Series):
        raise ValueError(f"{name}: a series takes no data; quantize_(model, {config})")


def _check_rules(
    rules: Sequence[Any] | None, check: Callable[[str, Any], None] = _check_config
) -> list[tuple[re.Pattern[str], Any]]:
    checked = []
    for i, rule in enumerate(rules or ()):
        if not (isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)):
            raise TypeError(f"rules[{i}]: expected (pattern, config or None), got {rule!r}")
        check(f"rules[{i}]", rule[1])
        try:
            checked.append((re.compile(rule[0]), rule[1]))
        except re.error as error:
            raise ValueError(f"rules[{i}]: {rule[0]!r} is no regular expression: {error}") from None
    return checked


def _decide(
    names: Iterable[str],
    config: Any,
    rules: list[tuple[re.Pattern[str], Any]],
    what: str = _WHAT,
) -> dict[str, Any]:
    names = list(names)
    for i, (pattern, _) in enumerate(rules):
        if not any(pattern.search(name) for name in names):
            near = difflib.get_close_matches(pattern.pattern, names, n=3, cutoff=0.3)
            hint = f"; near it: {', '.join(near)}" if near else f"; layers: {', '.join(names[:5]) or 'none'}"
            raise ValueError(f"rules[{i}]: {pattern.pattern!r} matches no {what}{hint}")
    return {name: next((c for p, c in rules if p.search(name)), config) for name in names}


def _reason(
    module: nn.Module, config: Any, kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding)
) -> str | None:
    """Why a layer is left alone; None where it is to be quantized."""
    if isinstance(module, (QuantLinear, QuantEmbedding, SeriesConv2d, QuantSpikingLayer)):
        return "already quantized"
    if config is None:
        return "no config for it"
    if isinstance(module, SpikingLayer):
        if not isinstance(config, Spiking):
            return f"{type(config).__name__} is for no spiking layer; Spiking(...)"
        return _reason(module.weight, config, (nn.Linear, nn.Conv2d))
    if isinstance(config, Series):
        if isinstance(module, nn.Embedding):
            return "an embedding multiplies nothing; Int8() or Uniform(...) in a rule for it"
        kinds = (nn.Linear, nn.Conv2d)
    elif isinstance(module, nn.Conv2d) and nn.Conv2d not in kinds:
        return (
            f"{type(config).__name__} is for no convolution; Series(...), or lowbit.torch.to_integer for all of a model"
        )
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        raise ValueError("model: a lazy layer has no weights yet; run one batch through the model first")
    if type(module) not in kinds:
        if hasattr(module, "parametrizations"):
            return "parametrized; torch.nn.utils.parametrize.remove_parametrizations first"
        return f"a subclass ({type(module).__module__}.{type(module).__name__}) may compute something else"
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if weight.device.type != "cpu":
        return f"on {weight.device}; lowbit runs on the CPU, so .cpu() first"
    if type(weight) not in (nn.Parameter, torch.Tensor) or weight.layout != torch.strided:
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    if weight.dtype not in _DTYPES:
        return f"its weight is {weight.dtype}"
    if weight.numel() == 0:
        return "empty"
    if isinstance(module, nn.Linear) and module.in_features > MAX_K_UINT8:
        return f"more than {MAX_K_UINT8} inputs"
    if isinstance(config, Series) and isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r}; it pads with zeros alone"
        if weight[0].numel() > MAX_PRODUCTS:
            return f"more than {MAX_PRODUCTS} products a sum"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm changes its weight as it runs"
    return None


def _check_finite(name: str, module: nn.Module) -> None:
    for what in ("weight", "bias"):
        values = getattr(module, what, None)
        if values is not None and not all(bool(torch.isfinite(v)) for v in torch.aminmax(values.detach())):
            raise ValueError(f"model: {name}.{what} holds NaN or an infinity; nothing was changed")


def _plan(
    model: nn.Module, decided: dict[str, Config | None]
) -> tuple[dict[str, LayerReport], list[tuple[str, nn.Module]], dict[Shared, set[type[nn.Module]]]]:
    """The reports of layers that are left alone, the others, and the kinds of layer
    that share a weight and a config."""
    reports, todo = {}, []
    kinds: dict[Shared, set[type[nn.Module]]] = {}
    for name, module in _layers(model, _kinds_of(decided.values())):
        config = decided[name]
        reason = _reason(module, config)
        if config is None or reason is not None:
            size = _tensor_bytes(module.weight if isinstance(module, SpikingLayer) else module)
            reports[name] = LayerReport(name, type(module).__name__, None, size, size, reason=reason)
        else:
            _check_finite(name, module.weight if isinstance(module, SpikingLayer) else module)
            todo.append((name, module))
            kinds.setdefault((id(module.weight), config), set()).add(type(module))
    return reports, todo, kinds


# ------------------------------------------------------------------ swapping


class _Swaps:
    """A model's layers on their way to being quantized."""

    def __init__(self, model: nn.Module, decided: dict[str, Config | None]) -> None:
        self.model, self.decided = model, decided
        #: Of each name, and the layers that are to be quantized.
        self.reports, self.todo, self._kinds = _plan(model, decided)
        #: The buffers of weights that are quantized already.
        self.made: dict[Shared, Made] = {}
        #: The layers on series, by kind, weight and config: those that share a weight share its codes.
        self.series: dict[tuple[type[nn.Module], int, Config], SeriesLayer] = {}
        wanted = any(isinstance(c, Series) and (c.bias_correction or c.feedback) for c in decided.values())
        #: What is known of layers' inputs, where it is wanted.
        self._inputs = input_moments(model) if wanted else {}
        self._swapped: dict[int, nn.Module] = {}

    def swap(self, name: str, module: nn.Module) -> nn.Module:
        """Puts the quantized layer in its place, and reports it."""
        config = self.decided[name]
        assert config is not None
        if id(module) not in self._swapped:
            if isinstance(config, Series):
                self._swapped[id(module)] = self._expanded(name, module, config)
            elif isinstance(config, Spiking):
                assert isinstance(module, SpikingLayer)
                self._swapped[id(module)] = QuantSpikingLayer(copy.deepcopy(module), config)
            else:
                self._swapped[id(module)] = _quantized(module, config, self._kinds, self.made)
            _inherit(self._swapped[id(module)], module)
        new = self._swapped[id(module)]
        self.reports[name] = _report(name, module, new)
        _replace(self.model, name, new)
        return new

    def _expanded(self, name: str, module: nn.Module, config: Series) -> SeriesLayer:
        assert isinstance(module, (nn.Linear, nn.Conv2d))
        key = type(module), id(module.weight), config
        tied = self.series.get(key)
        new: SeriesLayer
        if isinstance(module, nn.Conv2d):
            gain = self._gain(name) if config.feedback and takes_feedback(module) else None
            new = SeriesConv2d.of(module, config, tied, gain)
        else:
            new = SeriesLinear.of(module, config, tied)
        if config.bias_correction and name in self._inputs:
            new.mean = self._inputs[name].mean
            new.correct_(module.weight.detach())
        return self.series.setdefault(key, new) if tied is None else new

    def _gain(self, name: str) -> torch.Tensor | None:
        """What the normalization behind a layer multiplies its outputs with, where one does and it is finite."""
        norm = self._inputs[name].norm if name in self._inputs else None
        if norm is None:
            return None
        module = self.model.get_submodule(norm)
        assert isinstance(module, NORMS)
        assert module.running_var is not None
        gain = (module.running_var.double() + module.eps).rsqrt()
        gain = gain if module.weight is None else gain * module.weight.detach().double()
        return gain if bool(gain.isfinite().all()) else None


def _quantized(
    module: nn.Module,
    config: Config,
    kinds: dict[Shared, set[type[nn.Module]]],
    made: dict[Shared, Made],
) -> nn.Module:
    """The layer that takes the place of ``module``; ``made``: the buffers that others have."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    (n, k), shared = weight.shape, (id(weight), config)
    if shared not in made:
        made[shared] = _made(weight, config, rows=nn.Linear not in kinds[shared])
    buffers, config = made[shared]
    if isinstance(module, nn.Embedding):
        return QuantEmbedding(n, k, buffers, config, weight.dtype, module.padding_idx)
    bias = module.bias
    if bias is not None:
        bias = bias.detach().float().clone()
    return QuantLinear(k, n, buffers["tiled"], bias, config, weight.dtype, buffers.get("codebook"))


def _made(weight: torch.Tensor, config: Config, *, rows: bool) -> Made:
    """A weight's codes: int8 in row order if only rows of it are read, else tiled."""
    if rows and isinstance(config, Int8):
        codes = lowbit.quantize_rows(_numpy_floats(weight), symmetric=True)
        return {"codes": torch.from_numpy(codes.codes), "scale": torch.from_numpy(codes.scale)}, config
    return _kept(_least(weight, _of_rows(config) if rows else config))


def _of_rows(config: Config) -> Config:
    """The config of a weight that is only looked up: there is no input to rotate."""
    return replace(config, rotate=None) if isinstance(config, (Uniform, Codebook)) else config


def _least(weight: torch.Tensor, config: Config, second: torch.Tensor | None = None, **how: Any) -> Weight:
    """The weight, quantized; rotated, where the config asks for it, if that lessens the
    error in the outputs of inputs with these second moments, or in the weight."""
    floats = _numpy_floats(weight)
    if not isinstance(config, (Uniform, Codebook)) or config.rotate is None:
        return lowbit.quantize_weight(floats, config, **how)
    tried = [lowbit.quantize_weight(floats, form, **how) for form in (replace(config, rotate=None), config)]
    exact = weight.detach().double()
    return min(tried, key=lambda quantized: _squares(torch.from_numpy(quantized.dequantize()) - exact, second))


def _squares(weight: torch.Tensor, second: torch.Tensor | None) -> float:
    """‖x Wᵀ‖² by the second moments of x, or ‖W‖²."""
    return float(((weight if second is None else weight @ second) * weight).sum())


def _kept(quantized: Weight) -> Made:
    # torch's memory starts at a cache line and can be resized and shared.
    tiled = torch.empty(quantized.tiled.size, dtype=torch.uint8, device="cpu")
    tiled.numpy()[:] = quantized.tiled
    if isinstance(quantized, lowbit.CodebookWeight):
        return {"tiled": tiled, "codebook": _entries(quantized.codebook)}, quantized.config
    return {"tiled": tiled}, quantized.config


def _entries(codebook: Any) -> torch.Tensor:
    """Tables as a layer has them: bfloat16 where that holds them, as it does all that lowbit makes."""
    entries = torch.from_numpy(codebook)
    if entries.dtype == torch.int8:
        return entries
    short = entries.bfloat16()
    return short if torch.equal(short.float(), entries) else entries


def _numpy_floats(weight: torch.Tensor) -> Any:
    weight = weight.detach()
    return (weight if weight.dtype in (torch.float32, torch.float64) else weight.float()).contiguous().numpy()


_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def _inherit(new: nn.Module, old: nn.Module) -> None:
    """Mode and hooks stay with the place in the model."""
    new.train(old.training)
    for hooks in _HOOKS:
        getattr(new, hooks).update(getattr(old, hooks))


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)


# ------------------------------------------------------------------ reporting


def _tensor_bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(t.numel() * t.element_size() for t in tensors if not isinstance(t, nn.UninitializedParameter))


def _state_bytes(model: nn.Module) -> int:
    seen = {}
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            seen[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())


def _report(name: str, old: nn.Module, new: nn.Module) -> LayerReport:
    if isinstance(new, QuantSpikingLayer):
        assert isinstance(old, SpikingLayer)
        weight = new.weight.detach().flatten(1)
        off = torch.from_numpy(new.codes()).float().flatten(1) * new.step[:, None] - weight
        error = float(off.norm() / weight.norm()) if weight.any() else 0.0
        kind = f"{new.config.nbits}-bit {new.config.levels.replace('_', ' ')}, sums of spikes"
        return LayerReport(
            name, type(old.weight).__name__, "Spiking", _tensor_bytes(old.weight), new.packed_bytes(), error, kind
        )
    weight = old.weight
    assert isinstance(weight, torch.Tensor)
    assert isinstance(new, (QuantLinear, QuantEmbedding, SeriesConv2d))
    norm = error = 0.0
    size = max(1, (1 << 18) // weight[0].numel())
    for rows, part in zip(torch.arange(weight.shape[0]).split(size), weight.detach().split(size), strict=True):
        part = part.float().flatten(1)
        norm += float(part.square().sum(dtype=torch.float64))
        error += float((new.rows(rows) - part).square().sum(dtype=torch.float64))
    error = math.sqrt(error / norm) if norm else 0.0
    bits, isa, config = "int8", lowbit.isa(), new.config
    if isinstance(config, Uniform):
        bits = f"{config.nbits}-bit"
    if isinstance(config, Codebook):
        bits = f"{config.nbits}-bit codebook"
    if getattr(config, "rotate", None) is not None:
        bits += " rotated"
    what = "look-up"
    if isinstance(config, Series):
        bits = f"{config.weight_terms}x{config.weight_bits} by {config.activation_terms}x{config.activation_bits} bits"
    if isinstance(new, SeriesConv2d):
        what = "conv2d" if new.feedback is None else "conv2d with feedback"
    elif isinstance(new, QuantLinear):
        what = "gemm" + {None: " of floats", "int8_group": " of spans"}.get(getattr(config, "activation", "int8"), "")
    kernel = f"{bits} {what}, {isa}"
    return LayerReport(
        name, type(old).__name__, type(config).__name__, _tensor_bytes(old), _tensor_bytes(new), error, kernel
    )


def _teller(progress: bool | Progress | None, doing: str = "quantize_") -> Progress:
    if callable(progress):
        return progress
    if not progress or not sys.stderr.isatty():
        return lambda *_: None

    def draw(done: int, total: int, name: str) -> None:
        end = "\n" if done == total else ""
        sys.stderr.write(f"\r\033[K{doing} {done}/{total} {name}{end}")
        sys.stderr.flush()

    return draw
