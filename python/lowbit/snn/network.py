"""A spiking network: a graph of named nodes, taken through time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_int
from lowbit.neurons import NeuronState
from lowbit.snn.events import Events
from lowbit.snn.layers import DTYPES, Kind, Neurons, Node, NotPlanned, Pair, Potentials, Shape, _Weighted
from lowbit.spiking import simulate, start_state

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["INPUT", "Network", "Run", "State"]

#: What nodes call the network's input.
INPUT = "input"

#: Bytes of the widest value of a piece of a run: small for the caches, large beside what a call costs.
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


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What came of a run. "Exact" means counted, not sampled.

    Attributes
    ----------
    outputs : dict of str to ndarray, (T, N, ...)
        By the names of the network's outputs.
    spikes : dict of str to ndarray of int64, (N,)
        How often each layer of neurons spiked in each stream, exact.
    operations : dict of str to int
        Pairs of a spike and a synapse in each layer with weights, exact, as
        `lowbit.spike_operations`; of inputs that are numbers, the products.
    records : dict of str to ndarray, (T, N, ...)
        Of the nodes that were to be recorded.
    n_steps, n_streams : int
    input_kind : str
        What the input was: spikes, counts, sums or numbers.
    state : State or None
        After the last step, if asked for.
    """

    outputs: dict[str, NDArray[Any]]
    spikes: dict[str, NDArray[np.int64]]
    operations: dict[str, int]
    records: dict[str, NDArray[Any]]
    n_steps: int
    n_streams: int
    input_kind: Kind
    state: State | None = None

    @property
    def output(self) -> NDArray[Any]:
        """Of a network with one output."""
        if len(self.outputs) != 1:
            raise ValueError(f"output: expected one of {', '.join(self.outputs)} by name, in outputs")
        return next(iter(self.outputs.values()))

    def __repr__(self) -> str:
        spikes = sum(int(n.sum()) for n in self.spikes.values())
        return f"Run({self.n_steps} steps, {self.n_streams} streams, {spikes:,} spikes)"


class Network:
    """Nodes of `lowbit.snn` by name, and what each reads.

    A network without cycles whose layers take spikes and counts runs as a whole in the
    core (`core`). Others run node by node, in the same bits: layer by layer over many
    steps at a time, and nodes in a cycle step by step. There, what neurons give reaches
    the other nodes of the cycle one step later, and is 0 before the first step.

    Parameters
    ----------
    nodes : mapping of str to Node
    reads : mapping of str to str or sequence of str
        What each node reads, in the order of its ``ports``: names of nodes, or
        "input", the network's own.
    shape : tuple of int
        Of the input for one step of one stream, channels last.
    outputs : str or sequence of str, optional
        Which nodes' values a run returns; those that no other reads by default.

    Raises
    ------
    TypeError, ValueError
        Something does not fit: the node is named. A cycle without neurons.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> from lowbit.snn import Add, Linear, Network, Neurons
    >>> w, back = np.array([[1.0, 0.5]], np.float32), np.array([[0, 1], [-1, 0]], np.float32)
    >>> network = Network(
    ...     {"in": Linear(w), "sum": Add(), "cells": Neurons(lowbit.IF()), "back": Linear(back)},
    ...     {"in": "input", "sum": ("in", "back"), "cells": "sum", "back": "cells"},
    ...     shape=(1,), outputs="cells",
    ... )
    >>> run = network.run(np.ones((4, 1, 1), np.uint8))
    >>> run.output[:, 0]
    array([[1, 0],
           [1, 1],
           [0, 1],
           [0, 0]], dtype=uint8)
    >>> run.spikes, run.operations
    ({'cells': array([4])}, {'in': 8, 'back': 8})
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        reads: Mapping[str, str | Sequence[str]],
        *,
        shape: tuple[int, ...],
        outputs: str | Sequence[str] | None = None,
    ) -> None:
        self.nodes = dict(nodes)
        self.shape = tuple(check_int("shape", size, 1) for size in shape)
        self.reads = {name: (read,) if isinstance(read, str) else tuple(read) for name, read in reads.items()}
        self._check_names()
        read_by_any = {source for sources in self.reads.values() for source in sources}
        if outputs is None:
            outputs = [name for name in self.nodes if name not in read_by_any]
            if not outputs:
                raise ValueError("outputs: every node is read by another; name one")
        self.outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        for name in self.outputs:
            if name not in self.nodes:
                raise ValueError(f"outputs: there is no node {name!r}; there are {', '.join(self.nodes)}")
        self._groups = _components(self.nodes, self.reads)
        self._cyclic = {name for group in self._groups if group.cyclic for name in group.names}
        self._planned: dict[Kind, _Plan] = {}
        #: Shapes of all values by name, the input's too.
        self.shapes = self._fixpoint(self.shape, "shape", lambda name, known: self.nodes[name].shape(*known))

    @classmethod
    def sequential(cls, shape: tuple[int, ...], *nodes: Node | tuple[str, Node]) -> Network:
        """Nodes that read one another in turn, named by their kind and place or as a pair tells.

        Examples
        --------
        >>> import numpy as np, lowbit
        >>> from lowbit.snn import Flatten, Linear, Network, Neurons
        >>> w = np.ones((4, 2), np.int8)
        >>> Network.sequential((2, 2, 1), Flatten(), Linear(w), ("out", Neurons(lowbit.IF(v_threshold=3))))
        Network(3 nodes, (2, 2, 1) to (2,), 8 parameters)
        """
        named: dict[str, Node] = {}
        for place, node in enumerate(nodes):
            name, node = node if isinstance(node, tuple) else (f"{type(node).__name__.lower()}{place}", node)
            if name in named:
                raise ValueError(f"nodes: two of the name {name!r}")
            named[name] = node
        names = list(named)
        reads = dict(zip(names, [INPUT, *names[:-1]], strict=True))
        return cls(named, reads, shape=shape, outputs=names[-1:] or None)

    # ------------------------------------------------------------------ checks

    def _check_names(self) -> None:
        for name, node in self.nodes.items():
            if not isinstance(node, Node):
                raise TypeError(f"nodes: expected nodes of lowbit.snn, got {name!r}: {type(node).__name__}")
            if name == INPUT:
                raise ValueError(f"nodes: {INPUT!r} is the network's input, and no node's name")
            sources = self.reads.get(name, ())
            if not sources or (node.ports is not None and len(sources) != len(node.ports)):
                expected = "at least one name" if node.ports is None else f"one name for each of {node.ports}"
                raise ValueError(f"reads[{name!r}]: expected {expected}, got {sources}")
            for source in sources:
                if source != INPUT and source not in self.nodes:
                    raise ValueError(f"reads[{name!r}]: there is no node {source!r}")
        if unknown := set(self.reads) - set(self.nodes):
            raise ValueError(f"reads: there is no node {sorted(unknown)[0]!r}")

    def _fixpoint(self, first: Any, what: str, of: Callable[[str, list[Any]], Any]) -> dict[str, Any]:
        """Something of every value that follows from that of what its node reads.

        In a cycle it may follow from a part of that; all is checked at the end.
        """
        known = {INPUT: first}
        for group in self._groups:
            for _ in range(len(group.names) if group.cyclic else 0):
                for name in group.names:
                    some = [known[source] for source in self.reads[name] if source in known]
                    if name not in known and some and (self.nodes[name].ports is None or len(self.reads[name]) == 1):
                        known[name] = self._tell(name, of, some)
            for name in group.names:
                missing = [source for source in self.reads[name] if source not in known]
                if missing:
                    raise ValueError(f"node {name!r}: the {what} of {missing[0]!r} follows from nothing")
                told = self._tell(name, of, [known[source] for source in self.reads[name]])
                if known.setdefault(name, told) != told:
                    raise ValueError(f"node {name!r}: its {what} would be both {known[name]} and {told}")
        return known

    def _tell(self, name: str, of: Callable[[str, list[Any]], Any], known: list[Any]) -> Any:
        try:
            return of(name, known)
        except ValueError as error:
            raise ValueError(f"node {name!r} ({type(self.nodes[name]).__name__}): {error}") from None

    def kinds(self, input_kind: Kind) -> dict[str, Kind]:
        """The kind of every value by name, for an input of spikes, counts, sums or numbers."""
        if input_kind not in DTYPES:
            raise ValueError(f"input_kind: expected one of {', '.join(DTYPES)}, got {input_kind!r}")
        # Of what neurons give the kind is known; a sum of unlike ones is told when all are.
        known: dict[str, Any] = {INPUT: input_kind}
        spiking = {n for n, node in self.nodes.items() if type(node) is Neurons}
        known |= dict.fromkeys(spiking, "spikes")
        for _ in range(1 + len(self._cyclic)):
            for group in self._groups:
                for name in group.names:
                    if all(source in known for source in self.reads[name]):
                        kinds = [known[source] for source in self.reads[name]]
                        known[name] = self._tell(name, lambda name, known: self.nodes[name].kind(*known), kinds)
            if len(known) > len(self.nodes):
                return known
        raise ValueError(f"the kinds of {', '.join(sorted(set(self.nodes) - set(known)))} follow from nothing")

    @property
    def core(self) -> bool:
        """Whether it runs as a whole in the core on spikes or counts."""
        return self._plan("counts").core is not None

    @property
    def order(self) -> tuple[str, ...]:
        """The nodes' names in the order that they run."""
        return tuple(name for group in self._groups for name in group.names)

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(node.parameters for node in self.nodes.values() if isinstance(node, _Weighted))

    # ------------------------------------------------------------------ running

    def run(
        self,
        x: ArrayLike | Events,
        *,
        n_steps: int | None = None,
        state: State | None = None,
        return_state: bool = False,
        record: Sequence[str] = (),
        progress: Callable[[int, int], object] | None = None,
    ) -> Run:
        """Takes streams through time.

        Parameters
        ----------
        x : Events, or array_like of uint8, bool, int32 or float32, (T, N, *shape)
            What the network sees. bytes are spikes if none exceeds 1, else counts.
        n_steps : int, optional
            With it ``x`` may be (N, *shape), which is then shown at every step.
        state : State, optional
            What an earlier call returned. Streams that are cut in pieces give what the
            whole gives, bit for bit.
        return_state : bool
        record : sequence of str
            Names of nodes whose values are to be kept for all steps.
        progress : callable, optional
            Called with the steps of all streams that are done, and of all.

        Returns
        -------
        Run
            The same bits on every instruction set and any number of threads.

        Raises
        ------
        TypeError, ValueError
            Another dtype or shape; no step; a state or a name of something else.
        """
        source = _Source(x, self.shape, n_steps)
        plan = self._plan(source.kind)
        kinds = plan.kinds
        record = (record,) if isinstance(record, str) else tuple(record)
        if unknown := [name for name in record if name not in self.shapes]:
            raise ValueError(f"record: there is no node {unknown[0]!r}; there are {', '.join(self.nodes)}")
        if state is not None:
            self._check_state(state, source.n_streams)
        kept = dict.fromkeys((*self.outputs, *record))
        full = {
            name: np.empty((source.n_steps, source.n_streams, *self.shapes[name]), DTYPES[kinds[name]]) for name in kept
        }
        whole = plan.core is not None
        tally = _Counts(plan, self, source.n_streams) if whole else _Tally(self, kinds, source.n_streams)
        states, done = [], 0
        steps, streams = self._piece(source, kinds, whole)
        for first in range(0, source.n_streams, streams):
            last = min(first + streams, source.n_streams)
            part = _cut(state, first, last)
            memory: Any = None
            if not whole:
                memory = _Memory(self, kinds, part, last - first)
            elif return_state or part is not None or steps < source.n_steps:
                memory = plan.memory(self, part, last - first)
            for begin in range(0, source.n_steps, steps):
                end = min(begin + steps, source.n_steps)
                if whole:
                    plan.run(source, (begin, end), (first, last), memory, full, tally)
                else:
                    pass_ = _Pass(self, kinds, source.frames(begin, end, first, last), memory, tally, first)
                    for name, value in pass_.values(set(full)):
                        full[name][begin:end, first:last] = value
                done += (end - begin) * (last - first)
                if progress is not None:
                    progress(done, source.n_steps * source.n_streams)
            if return_state:
                states.append(plan.state(self, memory, last - first) if whole else memory.state())
        return Run(
            outputs={name: full[name] for name in self.outputs},
            spikes=tally.spikes,
            operations=tally.operations(source),
            records={name: full[name] for name in record},
            n_steps=source.n_steps,
            n_streams=source.n_streams,
            input_kind=source.kind,
            state=_joined(states) if return_state else None,
        )

    def _plan(self, input_kind: Kind) -> _Plan:
        """What is known of runs on such an input."""
        if input_kind not in self._planned:
            self._planned[input_kind] = _Plan(self, input_kind)
        return self._planned[input_kind]

    def _piece(self, source: _Source, kinds: dict[str, Kind], whole: bool) -> tuple[int, int]:
        """Steps and streams that are run at a time: node by node, counts of spikes stay within a byte."""
        if whole:
            # Events need no room.
            most = 16 * FRAMES if source.events else FRAMES
            room = max(1, most // (math.prod(self.shape) * DTYPES[source.kind].itemsize))
            steps = source.n_steps if source.still else _even(source.n_steps, room)
            return steps, _even(source.n_streams, max(1, room // (1 if source.still else steps)))
        widest = max(math.prod(shape) * DTYPES[kinds[name]].itemsize for name, shape in self.shapes.items())
        room = max(1, PIECE // widest)
        if self._cyclic:
            # A step costs a call, whatever it does: as many streams as there are.
            streams = min(source.n_streams, max(1, 16 * room))
            return _even(source.n_steps, min(255, max(1, 64 * room // streams))), streams
        steps = _even(source.n_steps, min(255, room))
        return steps, _even(source.n_streams, max(1, room // steps))

    def _check_state(self, state: State, n_streams: int) -> None:
        if not isinstance(state, State):
            raise TypeError(f"state: expected a State of an earlier run, got {type(state).__name__}")
        names = {name for name, node in self.nodes.items() if isinstance(node, Neurons)}
        if set(state.neurons) != names or set(state.last) != names & self._cyclic:
            raise ValueError(f"state: expected that of {', '.join(sorted(names))}, got {', '.join(state.neurons)}")
        for name in names:
            expected = (n_streams, *self.shapes[name])
            if state.neurons[name].v.shape != expected:
                raise ValueError(f"state: expected {expected} of {name!r}, got {state.neurons[name].v.shape}")

    def __repr__(self) -> str:
        shapes = ", ".join(str(self.shapes[name]) for name in self.outputs)
        return f"Network({len(self.nodes)} nodes, {self.shape} to {shapes}, {self.parameters:,} parameters)"

    def __str__(self) -> str:
        """A table: a row for each node."""
        rows = [("node", "kind", "reads", "shape", "weight")]
        for name, node in self.nodes.items():
            what = type(node.neuron).__name__ if type(node) is Neurons else type(node).__name__
            weight = str(node.weight.shape) if isinstance(node, _Weighted) else ""
            rows.append((name, what, ", ".join(self.reads[name]), str(self.shapes[name]), weight))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)


# ------------------------------------------------------------------ the order


@dataclass(frozen=True)
class _Group:
    """A node, or the nodes of a cycle in the order that they run in a step."""

    names: tuple[str, ...]
    cyclic: bool


def _components(nodes: Mapping[str, Node], reads: Mapping[str, tuple[str, ...]]) -> list[_Group]:
    """Strongly connected nodes, each group after all that it reads (Tarjan, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    groups: list[_Group] = []
    for root in nodes:
        if root in index:
            continue
        work: list[tuple[str, Iterator[str]]] = []

        def enter(name: str, work: list[tuple[str, Iterator[str]]] = work) -> None:
            index[name] = low[name] = len(index)
            stack.append(name)
            on_stack.add(name)
            work.append((name, iter([source for source in reads[name] if source != INPUT])))

        enter(root)
        while work:
            name, sources = work[-1]
            for source in sources:
                if source not in index:
                    enter(source)
                    break
                if source in on_stack:
                    low[name] = min(low[name], index[source])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    members: list[str] = []
                    while not members or members[-1] != name:
                        members.append(stack.pop())
                        on_stack.discard(members[-1])
                    cyclic = len(members) > 1 or name in reads[name]
                    groups.append(_Group(_within(members, nodes, reads) if cyclic else (name,), cyclic))
    return groups


def _within(members: list[str], nodes: Mapping[str, Node], reads: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A cycle's nodes in the order of a step, in which neurons give what they gave before."""
    left, order = sorted(members, key=list(nodes).index), list[str]()
    while left:
        for name in left:
            now = [s for s in reads[name] if s in left and not isinstance(nodes[s], Neurons)]
            if not now:
                break
        else:
            raise ValueError(f"a cycle without neurons: {' -> '.join(left)}")
        left.remove(name)
        order.append(name)
    return tuple(order)


def _even(total: int, most: int) -> int:
    """The size of pieces of at most ``most``, all about the same."""
    pieces = -(-total // max(1, most))
    return -(-total // pieces)


# ------------------------------------------------------------------ one piece


class _Source:
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


class _Plan:
    """The kinds of all values for an input of one kind, and the core's network, or None."""

    def __init__(self, network: Network, input_kind: Kind) -> None:
        self.kinds = network.kinds(input_kind)
        #: The numbers of values there, and the layers of neurons and with weights in the core's order.
        self.value = {INPUT: 0}
        self.neurons: list[str] = []
        self.weighted: list[str] = []
        self.core = self._core(network, input_kind)

    def _core(self, network: Network, input_kind: Kind) -> Any:
        if network._cyclic:
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
                text = str(error)
                raise ValueError(text if text.startswith(label) else f"{label}: {text}") from None
            self.value[name] = value
            if isinstance(node, Neurons):
                self.neurons.append(name)
            if isinstance(node, _Weighted):
                self.weighted.append(name)
        return core

    def memory(self, network: Network, state: State | None, streams: int) -> Any:
        """What layers of neurons remember: from the start, or as told."""
        memory = self.core.memory(streams)
        for layer, name in enumerate(self.neurons if state else ()):
            assert state is not None
            neuron, kind = network.nodes[name].neuron, self.kinds[network.reads[name][0]]
            dtype = DTYPES["sums" if kind == "sums" else "numbers"]
            shape = (streams, *network.shapes[name])
            part = network._tell(name, lambda _, known: start_state(*known), [neuron, state.neurons[name], shape, dtype])
            memory.set(layer, [None if x is None else x.ravel() for x in (part.v, part.i, part.a, part.left)])
        return memory

    def state(self, network: Network, memory: Any, streams: int) -> State:
        """A copy of what layers of neurons remember."""
        parts = {}
        for layer, name in enumerate(self.neurons):
            shape = (streams, *network.shapes[name])
            parts[name] = NeuronState(*(None if x is None else x.reshape(shape) for x in memory.get(layer)))
        return State(parts, {})

    def run(
        self,
        source: _Source,
        steps: Pair,
        streams: Pair,
        memory: Any,
        full: dict[str, NDArray[Any]],
        counts: _Counts,
    ) -> None:
        (begin, end), (first, last) = steps, streams
        events, still = source.events, source.still
        frames = None if events else source.frames(begin, begin + 1 if still else end, first, last)
        wanted = [(self.value[name], out) for name, out in full.items()]
        sizes, at = [end - begin, last - first], [begin, first]
        spikes, operations = self.core.run(frames, still, events, sizes, memory, wanted, at, source.n_streams, None)
        counts.per_layer[:, first:last] += spikes.reshape(-1, last - first).view(np.int64)
        counts.met += operations.view(np.int64)


class _Counts:
    """Spikes and operations that the core counted."""

    def __init__(self, plan: _Plan, network: Network, streams: int) -> None:
        self.per_layer = np.zeros((len(plan.neurons), streams), np.int64)
        self.met = np.zeros(len(plan.weighted), np.int64)
        self._plan, self._network = plan, network

    @property
    def spikes(self) -> dict[str, NDArray[np.int64]]:
        layers = zip(self._plan.neurons, self.per_layer, strict=True)
        return {name: counts for name, counts in layers if type(self._network.nodes[name]) is Neurons}

    def operations(self, source: _Source) -> dict[str, int]:
        return dict(zip(self._plan.weighted, self.met.tolist(), strict=True))


class _Memory:
    """The state of some streams on their way through time."""

    def __init__(self, network: Network, kinds: dict[str, Kind], state: State | None, streams: int) -> None:
        self.neurons: dict[str, NeuronState | None] = {}
        self.last: dict[str, NDArray[Any]] = {}
        for name, node in network.nodes.items():
            if not isinstance(node, Neurons):
                continue
            self.neurons[name] = state.neurons[name] if state else None
            if name in network._cyclic:
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

    def operations(self, source: _Source) -> dict[str, int]:
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
    #: How many of a value's readers are still to come.
    uses: dict[str, int] = field(default_factory=dict)

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
        for group in network._groups:
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
            return network._tell(name, lambda _, known: node.run(kinds, *known), values)
        x = values[0].astype(np.float32) if values[0].dtype == np.uint8 else values[0]
        reads_v = isinstance(node, Potentials)
        spikes = network._tell(
            name, lambda _, known: simulate(known[0], node.neuron, self.memory.neurons[name], return_v=reads_v), [x]
        )
        self.memory.neurons[name] = spikes.state
        return spikes.v_seq if reads_v else spikes.spike_seq

    def _cycle(self, group: _Group, known: dict[str, NDArray[Any]], wanted: set[str]) -> dict[str, NDArray[Any]]:
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


def _cut(state: State | None, first: int, last: int) -> State | None:
    """The state of some of the streams."""
    if state is None:
        return None
    neurons = {name: _parts(part, lambda a: a[first:last]) for name, part in state.neurons.items()}
    return State(neurons, {name: array[first:last] for name, array in state.last.items()})


def _joined(states: list[State]) -> State:
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
