"""Networks from and to the Neuromorphic Intermediate Representation, by the package ``nir``.

NIR's neurons are differential equations; a step of ``dt`` is taken by Euler's rule, as snnTorch, norse
and spikingjelly take it: ``v += (v_leak - v + r x) dt / tau``, ``v += r x dt`` of an IF.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit.neurons import ALIF, IF, LIF, CubaLIF
from lowbit.snn import layers
from lowbit.snn.network import INPUT, Network

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["from_nir", "to_nir"]

Shape = tuple[int, ...]


def _nir() -> Any:
    try:
        import nir
    except ImportError:
        raise ImportError("NIR graphs need the package nir: pip install 'lowbit[snn]'") from None
    return nir


def from_nir(
    graph: Any,
    *,
    dt: float = 1.0,
    reset: Literal["hard", "soft"] = "hard",
    strict: bool = True,
) -> Network:
    """Reads a network from a NIR graph or its file.

    Parameters
    ----------
    graph : nir.NIRGraph or path_like
        Of Input, Output, Affine, Linear, Conv2d, SumPool2d, AvgPool2d, Flatten, Scale, Threshold, IF,
        LIF, CubaLIF, and the integrators I, LI and CubaLI, whose potentials are then numbers. Edges
        that meet in one node add up. Cycles are recurrence, see `Network`.
    dt : float
        The length of a step in the graph's unit of time: many files mean 1e-4 s, and a file whose
        neurons have ``r = 1`` and no time constant means steps.
    reset : {"hard", "soft"}
        What a spike does. NIR says that ``v`` becomes ``v_reset``. Files of frameworks whose neurons
        subtract the threshold (sinabs, snnTorch's default) do not say so, and need "soft".
    strict : bool
        NIR fires above the threshold and not at it. False for frameworks that fire at it too
        (sinabs, spikingjelly).

    Returns
    -------
    Network
        Channels last: an input of NIR's (C, H, W) is (H, W, C). The rows of weights behind a Flatten
        are put in that order, where only Affine and Linear read it; else the Flatten keeps NIR's order.

    Raises
    ------
    ImportError
        The package nir is not installed.
    OSError, FileFormatError
        The file cannot be read, or is none of NIR's.
    ValueError
        A node that is not listed above, what it asks for (dilation, groups), shapes that are missing
        and follow from nothing, a time constant below ``dt``: the node is named.

    Examples
    --------
    >>> import nir, numpy as np
    >>> from lowbit.snn import from_nir
    >>> w, one = np.ones((3, 2), np.float32), np.ones(3)
    >>> graph = nir.NIRGraph.from_list(nir.Linear(w), nir.LIF(tau=2 * one, r=one, v_leak=0 * one, v_threshold=one))
    >>> from_nir(graph)
    Network(2 nodes, (2,) to (3,), 6 parameters)
    """
    nir = _nir()
    dt = float(dt)
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt: expected more than 0, got {dt}")
    if reset not in ("hard", "soft"):
        raise ValueError(f"reset: expected 'hard' or 'soft', got {reset!r}")
    if isinstance(graph, (str, os.PathLike)):
        graph = _read(nir, Path(graph))
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph: expected a nir.NIRGraph or the path of a file, got {type(graph).__name__}")
    return _Reader(nir, graph, dt, reset, strict).network()


def _read(nir: Any, path: Path) -> Any:
    from lowbit.types import FileFormatError

    if path.exists() and not path.is_file():  # opening a pipe would wait
        raise FileFormatError(f"{path}: expected a regular file")
    with open(path, "rb") as file:
        if not file.read(8).startswith(b"\x89HDF"):
            raise FileFormatError(f"{path}: expected a NIR graph, which is an HDF5 file")
    try:
        return nir.read(path)
    except MemoryError:
        raise
    except Exception as error:
        raise FileFormatError(f"{path}: not a NIR graph: {error}") from error


class _Reader:
    def __init__(self, nir: Any, graph: Any, dt: float, reset: Any, strict: bool) -> None:
        self.nir, self.graph, self.dt, self.reset, self.strict = nir, graph, dt, reset, strict
        self.nodes: dict[str, Any] = dict(graph.nodes)
        self.reads: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.read_by: dict[str, list[str]] = {name: [] for name in self.nodes}
        for source, target in dict.fromkeys((str(a), str(b)) for a, b in graph.edges):
            for name in (source, target):
                if name not in self.nodes:
                    raise ValueError(f"an edge from {source!r} to {target!r}: there is no node {name!r}")
            self.reads[target].append(source)
            self.read_by[source].append(target)
        self.shapes: dict[str, Shape] = {}

    def network(self) -> Network:
        ins = self._ends(self.nir.Input)
        outs = self._ends(self.nir.Output)
        if len(ins) != 1:
            raise ValueError(f"expected one Input, got {len(ins)}: {', '.join(ins)}")
        if not outs:
            raise ValueError("expected an Output, got none")
        self._infer(ins[0])
        made: dict[str, layers.Node] = {}
        reads: dict[str, tuple[str, ...]] = {}
        for name, node in self.nodes.items():
            if name in ins or name in outs:
                continue
            if not self.reads[name]:
                raise ValueError(f"node {name!r} ({type(node).__name__}): nothing reaches it")
            new = self._name(name)
            try:
                made[new] = self._node(name, node)
            except (ValueError, TypeError) as error:
                raise ValueError(f"node {name!r} ({type(node).__name__}): {error}") from None
            sources = tuple(INPUT if source in ins else self._name(source) for source in self.reads[name])
            if len(sources) > 1:
                made[f"{new}.sum"], reads[f"{new}.sum"] = layers.Add(), sources
                sources = (f"{new}.sum",)
            reads[new] = sources
        outputs = []
        for out in outs:
            if len(self.reads[out]) != 1 or self.reads[out][0] in ins:
                raise ValueError(f"node {out!r} (Output): expected one node before it, got {self.reads[out]}")
            outputs.append(self._name(self.reads[out][0]))
        network = Network(made, reads, shape=_last(self.shapes[ins[0]]), outputs=outputs)
        network.nodes = {name: made[name] for name in network.order}
        return network

    def _ends(self, kind: Any) -> list[str]:
        return [name for name, node in self.nodes.items() if isinstance(node, kind)]

    def _name(self, name: str) -> str:
        """Nodes keep their names, but for one that would be the input's."""
        return f"{name}_" if name == INPUT else name

    # ------------------------------------------------------------------ shapes, channels first

    def _infer(self, start: str) -> None:
        """The shape that each node gives, from the input on."""
        self.shapes[start] = self._given(start, self.nodes[start].input_type["input"])
        changed = True
        while changed:
            changed = False
            for name, node in self.nodes.items():
                known = [self.shapes[source] for source in self.reads[name] if source in self.shapes]
                if name in self.shapes or not known:
                    continue
                try:
                    self.shapes[name] = self._output(name, node, known[0])
                except ValueError as error:
                    raise ValueError(f"node {name!r} ({type(node).__name__}): {error}") from None
                changed = True
        for name in self.nodes:
            if name not in self.shapes:
                raise ValueError(f"node {name!r} ({type(self.nodes[name]).__name__}): its shape follows from nothing")
            for source in self.reads[name]:
                expected = self._expected(self.nodes[name])
                if expected is not None and self.shapes[source] != expected:
                    what = f"node {name!r} ({type(self.nodes[name]).__name__})"
                    raise ValueError(f"{what}: expected {expected}, got {self.shapes[source]} from {source!r}")

    def _given(self, name: str, shape: Any) -> Shape:
        sizes = np.atleast_1d(np.asarray(shape))
        if sizes.dtype.kind not in "iu" or sizes.ndim != 1 or not sizes.size or sizes.min() < 1:
            raise ValueError(f"node {name!r} (Input): expected a shape, got {shape}")
        return tuple(sizes.tolist())

    def _expected(self, node: Any) -> Shape | None:
        nir = self.nir
        for field in ("v_threshold", "r", "scale", "threshold"):
            if not isinstance(node, (nir.Input, nir.Output)) and hasattr(node, field):
                return np.shape(getattr(node, field))
        if isinstance(node, nir.Output) and (shape := node.output_type["output"]) is not None:
            return tuple(int(size) for size in np.atleast_1d(shape))
        return None

    def _output(self, name: str, node: Any, given: Shape) -> Shape:
        nir = self.nir
        if isinstance(node, (nir.Affine, nir.Linear)):
            if node.weight.ndim != 2:
                raise ValueError(f"weight: expected (outputs, inputs), got {node.weight.shape}")
            if not given or given[-1] != node.weight.shape[1]:
                raise ValueError(f"expected (..., {node.weight.shape[1]}), got {given}")
            return (*given[:-1], node.weight.shape[0])
        if isinstance(node, nir.Flatten):
            return self._flattened(name, node, given)
        if isinstance(node, (nir.Conv2d, nir.SumPool2d, nir.AvgPool2d)):
            if len(given) != 3:
                raise ValueError(f"expected (C, H, W), got {given}")
            made = self._conv(node) if isinstance(node, nir.Conv2d) else self._pool(node)
            h, w, c = made.shape(_last(given))
            return (c, h, w)
        return given

    # ------------------------------------------------------------------ nodes

    def _node(self, name: str, node: Any) -> layers.Node:
        nir = self.nir
        given = self.shapes[self.reads[name][0]]
        if isinstance(node, (nir.Affine, nir.Linear)):
            weight = np.asarray(node.weight, np.float32)
            source = self.nodes[self.reads[name][0]]
            if isinstance(source, nir.Flatten) and self._reorders(self.reads[name][0]):
                c, h, w = self.shapes[self.reads[self.reads[name][0]][0]]
                weight = weight.reshape(-1, c, h, w).transpose(0, 2, 3, 1).reshape(weight.shape)
            elif len(given) != 1:
                raise ValueError(f"expected an input of one axis, got {given}")
            return layers.Linear(np.ascontiguousarray(weight.T), _bias(getattr(node, "bias", None)))
        if isinstance(node, nir.Conv2d):
            return self._conv(node)
        if isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
            return self._pool(node)
        if isinstance(node, nir.Flatten):
            if len(self.shapes[name]) != 1:
                raise ValueError(f"expected to flatten all of {given}, got axes {node.start_dim} to {node.end_dim}")
            return layers.Flatten(channels_first=len(given) == 3 and not self._reorders(name))
        if isinstance(node, nir.Scale):
            return layers.Scale(_value(node.scale))
        if isinstance(node, nir.Threshold):
            options: dict[str, Any] = {"v_threshold": _value(node.threshold), "strict": self.strict}
            return layers.Neurons(LIF(tau=1.0, decay_input=False, reset="none", **options))
        neuron = self._neuron(node)
        return layers.Potentials(neuron) if isinstance(node, (nir.I, nir.LI, nir.CubaLI)) else layers.Neurons(neuron)

    def _flattened(self, name: str, node: Any, given: Shape) -> Shape:
        rank = len(given)
        first, last = int(node.start_dim) % rank, int(node.end_dim) % rank
        readers = [self.nodes[reader] for reader in self.read_by[name]]
        whole = all(isinstance(reader, (self.nir.Affine, self.nir.Linear)) for reader in readers)
        if readers and whole and all(reader.weight.shape[-1] == math.prod(given) for reader in readers):
            # Many files count a batch axis that their shapes do not have; what reads it tells.
            first = 0 if first == 1 and last == rank - 1 else first
        if first > last:
            raise ValueError(f"expected axes in order, got {node.start_dim} to {node.end_dim} of {given}")
        return (*given[:first], math.prod(given[first : last + 1]), *given[last + 1 :])

    def _reorders(self, flatten: str) -> bool:
        """Whether the weights behind a Flatten of an image can be put in its order."""
        sources = [self.shapes[source] for source in self.reads[flatten]]
        readers = [self.nodes[name] for name in self.read_by[flatten]]
        lone = all(len(self.reads[name]) == 1 for name in self.read_by[flatten])
        of_one = all(isinstance(reader, (self.nir.Affine, self.nir.Linear)) for reader in readers)
        return bool(readers) and lone and of_one and len(sources) == 1 and len(sources[0]) == 3

    def _conv(self, node: Any) -> layers.Conv2d:
        if np.any(np.asarray(node.dilation) != 1) or np.any(np.asarray(node.groups) != 1):
            raise ValueError(f"expected dilation 1 and 1 group, got {node.dilation} and {node.groups}")
        weight = np.ascontiguousarray(np.asarray(node.weight, np.float32).transpose(2, 3, 1, 0))
        stride = _pair(node.stride)
        if isinstance(node.padding, (str, bytes)):
            padding = node.padding if isinstance(node.padding, str) else node.padding.decode()
            if padding not in ("same", "valid") or (padding == "same" and stride != (1, 1)):
                raise ValueError(f"padding: expected numbers, 'valid', or 'same' with a stride of 1, got {padding!r}")
            around = [((k - 1) // 2, k // 2) if padding == "same" else (0, 0) for k in weight.shape[:2]]
        else:
            around = [(p, p) for p in _pair(node.padding)]
        return layers.Conv2d(weight, _bias(node.bias), stride, (around[0], around[1]))

    def _pool(self, node: Any) -> layers.SumPool2d | layers.AvgPool2d:
        kind = layers.SumPool2d if isinstance(node, self.nir.SumPool2d) else layers.AvgPool2d
        (top, left) = _pair(node.padding)
        return kind(_pair(node.kernel_size), _pair(node.stride), ((top, top), (left, left)))

    def _neuron(self, node: Any) -> IF:
        """One Euler step of ``dt``; what would multiply the input is in ``decay_input`` or ``w_in``, else refused."""
        nir, dt = self.nir, self.dt
        r = np.asarray(node.r, np.float64) if hasattr(node, "r") else None
        if r is None:
            known = "Affine, Linear, Conv2d, SumPool2d, AvgPool2d, Flatten, Scale, Threshold"
            raise ValueError(f"there is no such node here; there are {known}, IF, LIF, CubaLIF, I, LI, CubaLI")
        options: dict[str, Any] = {"strict": self.strict, "reset": self.reset}
        if isinstance(node, (nir.I, nir.LI, nir.CubaLI)):
            options = {"reset": "none"}
        else:
            options["v_threshold"] = _value(node.v_threshold)
            if self.reset == "hard":
                options["v_reset"] = _value(node.v_reset)
        if isinstance(node, (nir.CubaLIF, nir.CubaLI)):
            tau, tau_syn = self._steps("tau_mem", node.tau_mem), self._steps("tau_syn", node.tau_syn)
            # i is only ever seen times r / tau: so that goes to what the input is multiplied by.
            gain = np.asarray(node.w_in, np.float64) / tau_syn * r / tau
            near = np.abs(gain - 1) < 1e-6
            options |= {"tau": _value(tau), "tau_syn": _value(tau_syn), "v_leak": _value(node.v_leak)}
            return CubaLIF(decay_input=False, w_in=_value(np.where(near, 1.0, gain)), **options)
        if isinstance(node, (nir.LIF, nir.LI)):
            tau = self._steps("tau", node.tau)
            options |= {"tau": _value(tau), "v_leak": _value(node.v_leak)}
            if np.allclose(r, 1, rtol=1e-6):
                return LIF(decay_input=True, **options)
            if np.allclose(r, tau, rtol=1e-6):
                return LIF(decay_input=False, **options)
            # A synapse that keeps nothing is a gain.
            return CubaLIF(decay_input=False, alpha=0.0, w_in=_value(r / tau), **options)
        if isinstance(node, (nir.IF, nir.I)):
            if np.allclose(r * dt, 1, rtol=1e-6):
                return IF(**options)
            return CubaLIF(decay_input=False, alpha=0.0, beta=1.0, w_in=_value(r * dt), **options)
        raise ValueError("there is no such neuron here; there are IF, LIF, CubaLIF, I, LI, CubaLI")

    def _steps(self, name: str, tau: Any) -> NDArray[np.float64]:
        steps = np.asarray(tau, np.float64) / self.dt
        if not np.isfinite(steps).all() or (steps < 1 - 1e-6).any():
            raise ValueError(f"{name}: expected at least dt = {self.dt}, got {np.min(np.asarray(tau))}")
        return np.maximum(steps, 1.0)


def _last(shape: Shape) -> Shape:
    """Channels last."""
    return (*shape[1:], shape[0]) if len(shape) == 3 else shape


def _value(values: Any) -> Any:
    """One number where all are the same, one for each channel where those are; channels last."""
    array = np.asarray(values, np.float64)
    if array.size and (array == array.flat[0]).all():
        return float(array.flat[0])
    if array.ndim == 3:
        array = np.moveaxis(array, 0, -1)
        if (array == array[0, 0]).all():
            return np.ascontiguousarray(array[0, 0])
    return np.ascontiguousarray(array)


def _bias(bias: Any) -> NDArray[np.float32] | None:
    return None if bias is None else np.ascontiguousarray(bias, np.float32)


def _pair(value: Any) -> tuple[int, int]:
    both = np.broadcast_to(np.asarray(value), (2,)).tolist()
    return int(both[0]), int(both[1])


# ------------------------------------------------------------------ and back


def to_nir(network: Network, *, dt: float = 1.0) -> Any:
    """A network as a NIR graph: what `from_nir` with the same ``dt`` reads.

    Weights of codes become floats. NIR has no word for soft resets and firing at the threshold: hand
    ``reset`` and ``strict`` to `from_nir` again.

    Parameters
    ----------
    network : Network
    dt : float
        The length of a step in the unit of time that the graph is to have.

    Returns
    -------
    nir.NIRGraph

    Raises
    ------
    ImportError
        The package nir is not installed.
    ValueError
        What NIR has not: neurons that adapt, are refractory, biased, of integers, or reset
        late or not at all; attention, tokens, maxima, sums and means. The node is named.
    """
    nir = _nir()
    writer = _Writer(nir, network, float(dt))
    return writer.graph()


class _Writer:
    def __init__(self, nir: Any, network: Network, dt: float) -> None:
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt: expected more than 0, got {dt}")
        self.nir, self.network, self.dt = nir, network, dt

    def graph(self) -> Any:
        nir, network = self.nir, self.network
        nodes = {INPUT: nir.Input(np.array(_first(network.shape)))}
        edges: list[tuple[str, str]] = []
        for name, node in network.nodes.items():
            if isinstance(node, layers.Add):
                continue
            try:
                nodes[name] = self._node(name, node)
            except ValueError as error:
                raise ValueError(f"node {name!r} ({type(node).__name__}): {error}") from None
            edges += [(source, name) for source in self._sources(network.reads[name])]
        for i, name in enumerate(network.outputs):
            out = "output" if i == 0 else f"output{i}"
            nodes[out] = nir.Output(np.array(_first(network.shapes[name])))
            edges += [(source, out) for source in self._sources((name,))]
        if len(set(edges)) != len(edges):
            raise ValueError("a node that adds another twice has no NIR graph")
        return nir.NIRGraph(nodes=nodes, edges=edges, type_check=False)

    def _sources(self, names: Iterable[str]) -> list[str]:
        """What is behind additions, which are edges there."""
        found = []
        for name in names:
            added = isinstance(self.network.nodes.get(name), layers.Add)
            found += self._sources(self.network.reads[name]) if added else [name]
        return found

    def _node(self, name: str, node: layers.Node) -> Any:
        nir, shape = self.nir, self.network.shapes[name]
        given = self.network.shapes[self.network.reads[name][0]]
        if isinstance(node, layers.Linear):
            weight = np.asarray(node.weight.untile(), np.float32).T
            source = self.network.nodes.get(self.network.reads[name][0])
            if isinstance(source, layers.Flatten) and not source.channels_first:
                before = self.network.shapes[self.network.reads[self.network.reads[name][0]][0]]
                if len(before) == 3:
                    weight = weight.reshape(-1, *before).transpose(0, 3, 1, 2).reshape(weight.shape)
            weight = np.ascontiguousarray(weight)
            return nir.Linear(weight) if node.bias is None else nir.Affine(weight, node.bias.astype(np.float32))
        if isinstance(node, layers.Conv2d):
            padding = self._padding(node.padding)
            weight = np.ascontiguousarray(np.asarray(node.weight.untile(), np.float32).transpose(3, 2, 0, 1))
            bias = np.zeros(node.weight.n, np.float32) if node.bias is None else node.bias.astype(np.float32)
            return nir.Conv2d(given[:2], weight, node.stride, padding, (1, 1), 1, bias)
        if isinstance(node, (layers.SumPool2d, layers.AvgPool2d)):
            kind = nir.SumPool2d if isinstance(node, layers.SumPool2d) else nir.AvgPool2d
            return kind(*(np.array(pair) for pair in (node.kernel, node.stride, self._padding(node.padding))))
        if isinstance(node, layers.Flatten):
            readers = [n for n, sources in self.network.reads.items() if name in sources]
            lone = all(isinstance(self.network.nodes[n], layers.Linear) for n in readers)
            if (
                len(given) == 3
                and not node.channels_first
                and not (readers and lone and name not in self.network.outputs)
            ):
                raise ValueError("NIR flattens channels first: Flatten(channels_first=True)")
            return nir.Flatten({"input": np.array(_first(given))}, 0, -1)
        if isinstance(node, layers.Scale):
            return nir.Scale(self._full(node.scale, shape).astype(np.float32))
        if isinstance(node, layers.Neurons):
            return self._neuron(node, shape)
        raise ValueError("NIR has no such node")

    def _neuron(self, node: layers.Neurons, shape: Shape) -> Any:
        nir, neuron, dt = self.nir, node.neuron, self.dt
        silent = isinstance(node, layers.Potentials)
        wrong = {
            "adaptation": isinstance(neuron, ALIF),
            "refractory steps": neuron.refractory > 0,
            "a bias": bool(np.any(np.asarray(neuron.bias))),
            "integers": neuron.fraction > 0,
            "a late reset": neuron.reset_delay,
            "no reset": neuron.reset == "none" and not silent,
            "a reset of what does not spike": neuron.reset != "none" and silent,
        }
        if lacks := [what for what, has in wrong.items() if has]:
            raise ValueError(f"NIR's neurons have not: {lacks[0]}")

        def full(value: Any) -> NDArray[np.float64]:
            return self._full(value, shape)

        levels: dict[str, Any] = {}
        if not silent:
            # A soft reset reads none.
            levels = {"v_threshold": full(neuron.v_threshold)}
            levels["v_reset"] = full(neuron.v_reset if neuron.reset == "hard" else 0.0)
        if not isinstance(neuron, LIF):
            return nir.I(full(1 / dt)) if silent else nir.IF(full(1 / dt), **levels)
        levels["v_leak"] = full(neuron.v_leak)
        tau = full(neuron.tau)
        if not isinstance(neuron, CubaLIF):
            if not np.isfinite(tau).all():
                raise ValueError("NIR's LIF has a finite tau")
            r = np.ones_like(tau) if neuron.decay_input else tau
            return (nir.LI if silent else nir.LIF)(tau=tau * dt, r=r, **levels)
        tau_syn, w_in = full(neuron.tau_syn), full(neuron.w_in)
        if not np.isfinite(tau).all() and (tau_syn == 1).all() and not np.any(levels["v_leak"]):
            del levels["v_leak"]
            return nir.I(w_in / dt) if silent else nir.IF(w_in / dt, **levels)
        if not (np.isfinite(tau).all() and np.isfinite(tau_syn).all()):
            raise ValueError("NIR's CubaLIF has finite time constants")
        r = np.ones_like(tau) if neuron.decay_input else tau
        levels["w_in"] = w_in * tau_syn
        return (nir.CubaLI if silent else nir.CubaLIF)(tau_syn=tau_syn * dt, tau_mem=tau * dt, r=r, **levels)

    def _full(self, value: Any, shape: Shape) -> NDArray[np.float64]:
        """One for each neuron, channels first."""
        full = np.broadcast_to(np.asarray(value, np.float64), shape)
        return np.array(np.moveaxis(full, -1, 0) if len(shape) == 3 else full, order="C")

    def _padding(self, padding: Any) -> tuple[int, int]:
        (top, bottom), (left, right) = padding
        if top != bottom or left != right:
            raise ValueError(f"NIR pads both sides alike, got {padding}")
        return top, left


def _first(shape: Shape) -> Shape:
    """Channels first."""
    return (shape[-1], *shape[:-1]) if len(shape) == 3 else shape
