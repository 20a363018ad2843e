"""How a network is taken through time: as a whole in the core, or node by node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int
from lowbit.neurons import NeuronState
from lowbit.snn.events import Events
from lowbit.snn.layers import DTYPES, Kind, Neurons, NotPlanned, Potentials, Shape, _Weighted
from lowbit.spiking import simulate, start_state

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.snn.network import Group, Network

__all__ = ["INPUT", "ByNode", "Plan", "Source", "State", "Whole", "cut", "joined"]

#: What nodes call the network's input.
INPUT = "input"

#: Bytes of the widest value of a piece of a run node by node: small for the caches, large beside what a call costs.
PIECE = 8 << 20

#: Bytes of the input of a piece that the core runs, which keeps all else in the caches itself.
FRAMES = 4 << 20


@dataclass(frozen=True, eq=False, repr=False)
class State:
    """What a network remembers between calls.

    Attributes
    ----------
    neurons : dict of str to NeuronState
        Of each layer of neurons.
    last : dict of str to ndarray, (N, ...)
        What layers of neurons in cycles gave at the last step.
    """

    neurons: Mapping[str, NeuronState]
    last: Mapping[str, NDArray[Any]]

    def __repr__(self) -> str:
        return f"State({', '.join(self.neurons)})"


# ------------------------------------------------------------------ what goes in


class Source:
    """The input, a piece at a time."""

    def __init__(self, x: Any, shape: Shape, n_steps: int | None) -> None:
        if n_steps is not None:
            check_int("n_steps", n_steps, 1)
        self._events = x if isinstance(x, Events) else None
        if self._events is not None:
            if self._events.shape != shape:
                raise ValueError(f"x: expected events of {shape}, got {self._events.shape}")
            own, self.n_streams = self._events.n_steps or 0, self._events.n_streams or 0
            if n_steps is not None and len(np.asarray(self._events.t)) and int(np.max(self._events.t)) >= n_steps:
                raise ValueError(f"n_steps: expected more than the last event's step, got {n_steps} for {x!r}")
            self.n_steps = n_steps or own
            self.kind: Kind = "spikes" if self._events.most <= 1 else "counts"
            return
        array = as_array("x", x, ("float32", "uint8", "bool", "int32"))
        if n_steps is not None and array.shape[1:] == shape:
            array = np.broadcast_to(array, (n_steps, *array.shape))
        if array.ndim != len(shape) + 2 or array.shape[2:] != shape:
            hint = "; n_steps shows one input at every step" if array.shape[1:] == shape else ""
            raise ValueError(f"x: expected (T, N, {', '.join(map(str, shape))}), got {array.shape}{hint}")
        if n_steps is not None and len(array) != n_steps:
            raise ValueError(f"n_steps: expected {len(array)}, the steps of x, got {n_steps}")
        self.n_steps, self.n_streams = array.shape[:2]
        if not self.n_steps or not self.n_streams:
            raise ValueError(f"x: expected at least one step of one stream, got {array.shape}")
        if array.dtype == np.float32:
            if not np.isfinite(array[0] if array.strides[0] == 0 else array).all():
                raise ValueError("x: expected finite numbers")
            self.kind = "numbers"
        elif array.dtype == np.int32:
            self.kind = "sums"
        else:
            array = array.view(np.uint8) if array.dtype == np.bool_ else array
            self.kind = "spikes" if array.max() <= 1 else "counts"
        self._array = array

    @property
    def events(self) -> tuple[NDArray[np.int64], NDArray[np.uint8], int] | None:
        """As the core reads them."""
        return self._events.sorted if self._events is not None else None

    @property
    def still(self) -> bool:
        """One input is shown at every step."""
        return self._events is None and self._array.strides[0] == 0

    def frames(self, begin: int, end: int, first: int, last: int) -> NDArray[Any]:
        if self._events is not None:
            stop = min(end, self._events.n_steps or 0)
            frames = self._events.frames(min(begin, stop), stop, first, last)
            after = np.zeros((end - begin - len(frames), *frames.shape[1:]), np.uint8)
            return np.concatenate([frames, after]) if len(after) else frames
        return np.ascontiguousarray(self._array[begin:end, first:last])


# ------------------------------------------------------------------ as a whole


class Plan:
    """The kinds of all values for an input of one kind, and the core's network, or None."""

    def __init__(self, network: Network, input_kind: Kind) -> None:
        self.kinds = network.kinds(input_kind)
        #: The numbers of values there, and the layers of neurons and with weights in the core's order.
        self.value = {INPUT: 0}
        self.neurons: list[str] = []
        self.weighted: list[str] = []
        self.core = self._core(network, input_kind)

    def _core(self, network: Network, input_kind: Kind) -> Any:
        if network.cyclic:
            return None
        core = _core.SpikingNetwork(input_kind, math.prod(network.shape))
        for name in network.order:
            node, sources = network.nodes[name], network.reads[name]
            kinds, shapes = [self.kinds[s] for s in sources], [network.shapes[s] for s in sources]
            label, reads = f"node {name!r} ({type(node).__name__})", [self.value[s] for s in sources]
            try:
                value = node.plan(core, label, kinds, shapes, reads)
            except NotPlanned:
                return None
            except ValueError as error:
                text = str(error).removeprefix(f"{label}: ")
                raise ValueError(f"{label}: {text}") from None
            self.value[name] = value
            if isinstance(node, Neurons):
                self.neurons.append(name)
            if isinstance(node, _Weighted):
                self.weighted.append(name)
        return core


class Whole:
    """A run in the core."""

    def __init__(self, network: Network, plan: Plan, source: Source, keeps: bool) -> None:
        self.network, self.plan, self.source = network, plan, source
        # Events need no room.
        room = 16 * FRAMES if source.events else FRAMES
        frames = max(1, room // (math.prod(network.shape) * DTYPES[source.kind].itemsize))
        self.steps = source.n_steps if source.still else _even(source.n_steps, frames)
        self.streams = _even(source.n_streams, max(1, frames // (1 if source.still else self.steps)))
        #: Whether potentials outlive a piece.
        self.keeps = keeps or self.steps < source.n_steps
        self._spikes = np.zeros((len(plan.neurons), source.n_streams), np.int64)
        self._operations = np.zeros(len(plan.weighted), np.int64)

    def start(self, state: State | None, first: int, last: int) -> None:
        """Streams that begin, where they are told to."""
        self.first, self.last = first, last
        self.memory: Any = self.plan.core.memory(last - first) if self.keeps or state else None
        if state is None or self.memory is None:
            return
        for layer, name in enumerate(self.plan.neurons):
            node, kind = self.network.nodes[name], self.plan.kinds[self.network.reads[name][0]]
            assert isinstance(node, Neurons)
            shape = (last - first, *self.network.shapes[name])
            given = [node.neuron, state.neurons[name], shape, DTYPES["sums" if kind == "sums" else "numbers"]]
            part = self.network.tell(name, lambda _, known: start_state(*known), given)
            self.memory.set(layer, [None if x is None else x.ravel() for x in (part.v, part.i, part.a, part.left)])

    def run(self, begin: int, end: int, full: dict[str, NDArray[Any]]) -> None:
        """These streams' next steps."""
        source, first, last = self.source, self.first, self.last
        frames = None if source.events else source.frames(begin, begin + 1 if source.still else end, first, last)
        wanted = [(self.plan.value[name], out) for name, out in full.items()]
        sizes, at = [end - begin, last - first], [begin, first]
        spikes, operations = self.plan.core.run(
            frames, source.still, source.events, sizes, self.memory, wanted, at, source.n_streams, None
        )
        self._spikes[:, first:last] += spikes.reshape(-1, last - first).view(np.int64)
        self._operations += operations.view(np.int64)

    def state(self) -> State:
        """A copy of what these streams remember."""
        parts = {}
        for layer, name in enumerate(self.plan.neurons):
            shape = (self.last - self.first, *self.network.shapes[name])
            v, *rest = self.memory.get(layer)
            parts[name] = NeuronState(v.reshape(shape), *(None if x is None else x.reshape(shape) for x in rest))
        return State(parts, {})

    @property
    def spikes(self) -> dict[str, NDArray[np.int64]]:
        """Of each layer of neurons and stream."""
        layers = zip(self.plan.neurons, self._spikes, strict=True)
        return {name: counts for name, counts in layers if type(self.network.nodes[name]) is Neurons}

    @property
    def operations(self) -> dict[str, int]:
        """Of each layer with weights."""
        return dict(zip(self.plan.weighted, self._operations.tolist(), strict=True))


# ------------------------------------------------------------------ node by node


class ByNode:
    """A run layer by layer, and step by step in cycles."""

    def __init__(self, network: Network, plan: Plan, source: Source, keeps: bool) -> None:
        self.network, self.kinds, self.source = network, plan.kinds, source
        self.tally = _Tally(network, plan.kinds, source.n_streams)
        widest = max(math.prod(shape) * DTYPES[plan.kinds[name]].itemsize for name, shape in network.shapes.items())
        room = max(1, PIECE // widest)
        if network.cyclic:
            # A step costs a call, whatever it does: as many streams as there are.
            self.streams = min(source.n_streams, max(1, 16 * room))
            self.steps = _even(source.n_steps, min(255, max(1, 64 * room // self.streams)))
        else:
            # Counts of spikes stay within a byte.
            self.steps = _even(source.n_steps, min(255, room))
            self.streams = _even(source.n_streams, max(1, room // self.steps))

    def start(self, state: State | None, first: int, last: int) -> None:
        """Streams that begin, where they are told to."""
        self.first, self.last = first, last
        self.memory = _Memory(self.network, self.kinds, state, last - first)

    def run(self, begin: int, end: int, full: dict[str, NDArray[Any]]) -> None:
        """These streams' next steps."""
        frames = self.source.frames(begin, end, self.first, self.last)
        pass_ = _Pass(self.network, self.kinds, frames, self.memory, self.tally, self.first)
        for name, value in pass_.values(set(full)):
            full[name][begin:end, self.first : self.last] = value

    def state(self) -> State:
        """What these streams remember."""
        return self.memory.state()

    @property
    def spikes(self) -> dict[str, NDArray[np.int64]]:
        """Of each layer of neurons and stream."""
        return self.tally.spikes

    @property
    def operations(self) -> dict[str, int]:
        """Of each layer with weights."""
        return self.tally.operations(self.source)


class _Memory:
    """The state of some streams on their way through time."""

    def __init__(self, network: Network, kinds: dict[str, Kind], state: State | None, streams: int) -> None:
        self.neurons: dict[str, NeuronState | None] = {}
        self.last: dict[str, NDArray[Any]] = {}
        for name, node in network.nodes.items():
            if not isinstance(node, Neurons):
                continue
            self.neurons[name] = state.neurons[name] if state else None
            if name in network.cyclic:
                zeros = np.zeros((streams, *network.shapes[name]), DTYPES[kinds[name]])
                self.last[name] = state.last[name] if state else zeros

    def state(self) -> State:
        return State({name: part for name, part in self.neurons.items() if part is not None}, dict(self.last))


class _Tally:
    """Counts of spikes and of what they met."""

    def __init__(self, network: Network, kinds: dict[str, Kind], streams: int) -> None:
        self.network, self.kinds = network, kinds
        self.spikes = {
            name: np.zeros(streams, np.int64) for name, node in network.nodes.items() if type(node) is Neurons
        }
        weighted = [name for name, node in network.nodes.items() if isinstance(node, _Weighted)]
        self.read = {name: network.reads[name][0] for name in weighted}
        self.hits = {
            source: np.zeros(network.shapes[source], np.int64)
            for source in self.read.values()
            if kinds[source] in ("spikes", "counts")
        }

    def add(self, name: str, value: NDArray[Any], first: int) -> None:
        """A value's spikes; at most 255 steps."""
        if name not in self.spikes and name not in self.hits:
            return
        if self.kinds[name] == "counts":
            value = (value != 0).view(np.uint8)
        per_place = np.add.reduce(value, axis=0, dtype=np.uint8)
        if name in self.spikes:
            n = len(per_place)
            self.spikes[name][first : first + n] += per_place.reshape(n, -1).sum(1, dtype=np.int64)
        if name in self.hits:
            self.hits[name] += per_place.sum(0, dtype=np.int64)

    def operations(self, source: Source) -> dict[str, int]:
        told = {}
        for name, read in self.read.items():
            node = self.network.nodes[name]
            assert isinstance(node, _Weighted)
            dense = source.n_steps * source.n_streams * node.products(self.network.shapes[read])
            told[name] = node.operations(self.hits[read]) if read in self.hits else dense
        return told


@dataclass(frozen=True, eq=False)
class _Pass:
    """All nodes for some steps of some streams."""

    network: Network
    kinds: dict[str, Kind]
    frames: NDArray[Any]
    memory: _Memory
    tally: _Tally
    first: int

    def values(self, wanted: set[str]) -> Iterator[tuple[str, NDArray[Any]]]:
        """The values that are wanted; all others are let go after their last reader."""
        network, known = self.network, {INPUT: self.frames}
        left = dict.fromkeys(network.shapes, 0)
        for sources in network.reads.values():
            for source in sources:
                left[source] += 1
        if INPUT in wanted:
            yield INPUT, self.frames
        self.tally.add(INPUT, self.frames, self.first)
        for group in network.groups:
            if group.cyclic:
                found = self._cycle(group, known, wanted)
            else:
                found = {name: self._node(name, [known[s] for s in network.reads[name]]) for name in group.names}
            for name, value in found.items():
                self.tally.add(name, value, self.first)
                if name in wanted:
                    yield name, value
            known |= found
            for name in group.names:
                for source in network.reads[name]:
                    left[source] -= 1
                    if not left[source]:
                        known.pop(source, None)

    def _node(self, name: str, values: list[NDArray[Any]]) -> NDArray[Any]:
        network = self.network
        node, kinds = network.nodes[name], tuple(self.kinds[source] for source in network.reads[name])
        if not isinstance(node, Neurons):
            return network.tell(name, lambda _, known: node.run(kinds, *known), values)
        x = values[0].astype(np.float32) if values[0].dtype == np.uint8 else values[0]
        reads_v = isinstance(node, Potentials)
        spikes = network.tell(
            name, lambda _, known: simulate(known[0], node.neuron, self.memory.neurons[name], return_v=reads_v), [x]
        )
        self.memory.neurons[name] = spikes.state
        return spikes.v_seq if reads_v else spikes.spike_seq

    def _cycle(self, group: Group, known: dict[str, NDArray[Any]], wanted: set[str]) -> dict[str, NDArray[Any]]:
        """The nodes of a cycle, step by step."""
        network, last = self.network, self.memory.last
        n_steps, n_streams = self.frames.shape[:2]
        inside = set(group.names)
        read = {source for name, sources in network.reads.items() if name not in inside for source in sources}
        counted = self.tally.hits.keys() | self.tally.spikes.keys()
        full = {
            name: np.empty((n_steps, n_streams, *network.shapes[name]), DTYPES[self.kinds[name]])
            for name in group.names
            if name in read | wanted | counted
        }
        for t in range(n_steps):
            now: dict[str, NDArray[Any]] = {}
            for name in group.names:
                values = []
                for source in network.reads[name]:
                    if source not in inside:
                        values.append(known[source][t : t + 1])
                    elif source in last:
                        values.append(last[source][None])
                    else:
                        values.append(now[source])
                now[name] = self._node(name, values)
                if name in full:
                    full[name][t] = now[name][0]
            for name in group.names:
                if name in last:
                    last[name] = now[name][0]
        return full


def cut(state: State | None, first: int, last: int) -> State | None:
    """The state of some of the streams."""
    if state is None:
        return None
    neurons = {name: _parts(part, lambda a: a[first:last]) for name, part in state.neurons.items()}
    return State(neurons, {name: array[first:last] for name, array in state.last.items()})


def joined(states: list[State]) -> State:
    neurons = {}
    for name, one in states[0].neurons.items():
        parts: dict[str, Any] = {
            f.name: None
            if getattr(one, f.name) is None
            else np.concatenate([getattr(s.neurons[name], f.name) for s in states])
            for f in fields(NeuronState)
        }
        neurons[name] = NeuronState(**parts)
    return State(neurons, {name: np.concatenate([s.last[name] for s in states]) for name in states[0].last})


def _parts(state: NeuronState, of: Callable[[NDArray[Any]], NDArray[Any]]) -> NeuronState:
    found = {f.name: getattr(state, f.name) for f in fields(NeuronState)}
    parts: dict[str, Any] = {name: None if array is None else of(array) for name, array in found.items()}
    return NeuronState(**parts)


def _even(total: int, most: int) -> int:
    """The size of pieces of at most ``most``, all about the same."""
    pieces = -(-total // max(1, most))
    return -(-total // pieces)
