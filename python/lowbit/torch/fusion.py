"""Finds layers that can run as one operator, by tracing the model's own code.

A chain is Linear, activation module, Linear, where each output has the next one
as its only reader. The last layer then runs all three; the first two hand their
input on. A module that does nothing but ``norm(dropout(linear(x)) + residual)``
becomes one operator too, joined to the chain that ends in its linear layer; and
so does one that is such a chain with the activation written as a function.

Only what `torch.fx` shows is fused. A module whose code cannot be traced is
looked at through its children, and through its order if it is a Sequential.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from lowbit.torch.modules import FeedForward, PassThrough, QuantEmbedding, QuantLinear, ResidualNorm, Whole
from lowbit.torch.series import SeriesLayer

_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    functional.gelu: "gelu",
    functional.silu: "silu",
}


def fuse_(model: nn.Module) -> list[str]:
    """Fuses what can be fused; says what, in the names of the last layers."""
    graphs = _Graphs(model)
    done = []
    for parent, graph in graphs:
        done += [_join(*chain) for chain in _chains(model, parent, graph)]
    names = {id(m): name for name, m in model.named_modules()}
    fused = [names[id(last)] for last in done if last is not None]
    for name, module in list(model.named_modules()):
        traced = graphs.of(module)
        if traced is None or not name:
            continue
        found = _residual_norm(module, traced) or _feed_forward(module, traced)
        if found is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, found)
            fused.append(name)
    return fused


def unfuse_(model: nn.Module) -> None:
    """Takes back what :func:`fuse_` did."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        parent, _, child = name.rpartition(".")
        if isinstance(module, QuantLinear):
            module._up, module._deferred = None, False
        elif isinstance(module, PassThrough):
            setattr(model.get_submodule(parent), child, module.activation)
        elif isinstance(module, Whole):
            setattr(model.get_submodule(parent), child, module.restored())


class _Tracer(fx.Tracer):
    def __init__(self, opaque: set[int]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, qualname: str) -> bool:
        known = isinstance(m, (QuantLinear, QuantEmbedding, SeriesLayer, PassThrough, Whole))
        return known or id(m) in self.opaque or super().is_leaf_module(m, qualname)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        # The module's own code, below decorators that spell *args: its required
        # arguments are what flows, the others keep their defaults.
        forward = inspect.unwrap(root_fn)
        names = [p.name for p in inspect.signature(forward).parameters.values() if _required(p)]
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in names[1:]]
        return (lambda root, *inputs: forward(root, *inputs)), [self.root, *inputs]


def _required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)


class _Graphs:
    """The graph of each module above a quantized layer, parents first."""

    def __init__(self, model: nn.Module) -> None:
        self.graphs: dict[int, tuple[nn.Module, fx.Graph]] = {}
        opaque: set[int] = set()
        modules = [m for m in model.modules() if not isinstance(m, (QuantLinear, QuantEmbedding))]
        for module in reversed(modules):  # children first
            if not any(isinstance(m, QuantLinear) for m in module.modules()):
                continue
            try:
                self.graphs[id(module)] = module, _Tracer(opaque).trace(module)
            except Exception:  # whatever a model's own code raises on a proxy
                opaque.add(id(module))

    def __iter__(self) -> Iterator[tuple[nn.Module, fx.Graph]]:
        return reversed(self.graphs.values())

    def of(self, module: nn.Module) -> fx.Graph | None:
        return self.graphs.get(id(module), (None, None))[1]


def _plain(*modules: nn.Module | None) -> bool:
    """Whether these run their own forward and nothing around it."""
    return all(
        m is None
        or (
            getattr(m, "fusible", True)
            and inspect.unwrap(type(m).forward) is type(m).forward
            and not (m._forward_hooks or m._forward_pre_hooks)
        )
        for m in modules
    )


Chain = tuple[QuantLinear, nn.Module, str, nn.Module, str, QuantLinear]


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(parent: nn.Module, node: fx.Node | None) -> nn.Module | None:
    return parent.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None


def _chains(model: nn.Module, parent: nn.Module, graph: fx.Graph) -> Iterator[Chain]:
    calls: dict[int, int] = {}
    for node in graph.nodes:
        called = _module(parent, node)
        if called is not None:
            calls[id(called)] = calls.get(id(called), 0) + 1
    for node in graph.nodes:
        first = _module(parent, node)
        if not isinstance(first, QuantLinear) or first._deferred or len(node.args) != 1:
            continue
        then = _only_reader(node)
        found = _activation(parent, then)
        if then is None or found is None:
            continue
        owner, child, activation, name = found
        after = _only_reader(then)
        while isinstance(_module(parent, after), nn.Dropout):
            assert after is not None
            after = _only_reader(after)
        last = _module(parent, after)
        if not isinstance(last, QuantLinear) or last._up is not None or last is first:
            continue
        # A layer that runs in two places cannot defer in one of them.
        once = calls[id(first)] == 1 and calls[id(last)] == 1
        if once and _plain(first, activation, last) and last.in_features == first.out_features:
            yield first, owner, child, activation, name, last


def _activation(parent: nn.Module, node: fx.Node | None) -> tuple[nn.Module, str, nn.Module, str] | None:
    """The module that is just this activation: its parent, its name there, itself, the kernels' name."""
    if node is None:
        return None
    path = str(node.target)
    if node.op != "call_module":
        # Written as a function: the innermost module whose whole code it is.
        name = _function(node)
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if name is None or not stack:
            return None
        path = str(stack[-1][0])
        if not path or _alone(parent.get_submodule(path)) != name:
            return None
    holder, _, child = path.rpartition(".")
    owner, module = parent.get_submodule(holder), parent.get_submodule(path)
    known = _kind(module) if node.op == "call_module" else _function(node)
    return None if known is None else (owner, child, module, known)


def _kind(module: nn.Module) -> str | None:
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return {nn.ReLU: "relu", nn.SiLU: "silu"}.get(type(module))


def _function(node: fx.Node) -> str | None:
    if node.op == "call_method" and node.target == "relu":
        return "relu"
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    if name == "gelu" and node.kwargs.get("approximate", "none") == "tanh":
        return "gelu_tanh"
    return name


def _alone(module: nn.Module) -> str | None:
    """The activation that is all a module does."""
    if _kind(module) is not None:
        return _kind(module)
    try:
        nodes = list(_Tracer(set()).trace(module).nodes)
    except Exception:  # as above
        return None
    if [n.op for n in nodes[::2]] != ["placeholder", "output"] or len(nodes) != 3 or nodes[2].args != (nodes[1],):
        return None
    if nodes[1].op == "call_module":
        return _kind(module.get_submodule(str(nodes[1].target)))
    return _function(nodes[1])


def _join(
    first: QuantLinear, owner: nn.Module, child: str, activation: nn.Module, name: str, last: QuantLinear
) -> QuantLinear | None:
    if first._deferred or last._up is not None:
        return None
    first._deferred = True
    last._up = (first, name)
    if not isinstance(activation, PassThrough):
        setattr(owner, child, PassThrough(activation, first))
    return last


def _residual_norm(module: nn.Module, graph: fx.Graph) -> ResidualNorm | None:
    """`module` as a ResidualNorm, if it is nothing but one."""
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.users]
    rest = [n for n in graph.nodes if n.op != "placeholder"]
    children = [_module(module, n) for n in rest]
    linear = next((n for n, m in zip(rest, children, strict=True) if isinstance(m, QuantLinear)), None)
    if linear is None or len(inputs) != 2 or len(linear.args) != 1 or linear.args[0] not in inputs:
        return None
    step, dropout = _only_reader(linear), None
    if step is not None and isinstance(_module(module, step), nn.Dropout):
        step, dropout = _only_reader(step), str(step.target)
    x = linear.args[0]
    residual = inputs[1] if x is inputs[0] else inputs[0]
    made = linear if dropout is None else next(iter(linear.users))
    adds = step is not None and step.op == "call_function" and getattr(step.target, "__name__", "") == "add"
    if step is None or not adds or set(step.args) != {made, residual} or step.kwargs:
        return None
    last = _only_reader(step)
    norm, dense = _module(module, last), _module(module, linear)
    if (
        not _plain(module, norm, dense)
        or type(norm) is not nn.LayerNorm
        or norm.bias is None
        or norm.weight is None
        or last is None
    ):
        return None
    if norm.normalized_shape != (dense.out_features,) or len(rest) != 4 + (dropout is not None):
        return None
    end = _only_reader(last)
    if end is None or end.op != "output" or end.args != (last,):
        return None
    if x is not inputs[0] or any("." in str(n.target) for n in (linear, last)):
        return None
    return ResidualNorm(module, str(linear.target), str(last.target), dropout, (str(x.target), str(residual.target)))


def _feed_forward(module: nn.Module, graph: fx.Graph) -> FeedForward | None:
    """`module` as a FeedForward, if it is nothing but one."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    if len(inputs) != 1:
        return None
    line = [inputs[0]]  # each the only reader of the one before
    while (after := _only_reader(line[-1])) is not None:
        line.append(after)
    steps = [n for n in line[1:-1] if not _idle(module, n)]
    if len(line) != len(graph.nodes) or line[-1].args != (line[-2],) or len(steps) != 3:
        return None
    up, then, down = steps
    first, activation, last = _module(module, up), _function(then), _module(module, down)
    if not isinstance(first, QuantLinear) or activation is None or not isinstance(last, QuantLinear):
        return None
    apart = first is not last and not any("." in str(n.target) for n in (up, down))
    if not apart or not _plain(module, first, last) or last.in_features != first.out_features:
        return None
    return FeedForward(module, str(up.target), activation, str(down.target))


def _idle(parent: nn.Module, node: fx.Node) -> bool:
    """Whether this is a dropout that does nothing outside training."""
    if node.op == "call_function" and node.target is functional.dropout:
        return node.kwargs.get("training") is False
    return isinstance(_module(parent, node), nn.Dropout)
