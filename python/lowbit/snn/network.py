"""A spiking network: a graph of named nodes, taken through time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit._check import check_int
from lowbit.snn.layers import DTYPES, Kind, Neurons, Node, _Weighted
from lowbit.snn.running import INPUT, ByNode, Plan, Source, State, Whole, cut, joined

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit.snn.events import Events

__all__ = ["INPUT", "Network", "Run", "State"]


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
        #: Nodes in the order that they run, those of a cycle together.
        self.groups = _components(self.nodes, self.reads)
        #: The nodes in cycles.
        self.cyclic = {name for group in self.groups if group.cyclic for name in group.names}
        self._planned: dict[Kind, Plan] = {}
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
        for group in self.groups:
            for _ in range(len(group.names) if group.cyclic else 0):
                for name in group.names:
                    some = [known[source] for source in self.reads[name] if source in known]
                    if name not in known and some and (self.nodes[name].ports is None or len(self.reads[name]) == 1):
                        known[name] = self.tell(name, of, some)
            for name in group.names:
                missing = [source for source in self.reads[name] if source not in known]
                if missing:
                    raise ValueError(f"node {name!r}: the {what} of {missing[0]!r} follows from nothing")
                told = self.tell(name, of, [known[source] for source in self.reads[name]])
                if known.setdefault(name, told) != told:
                    raise ValueError(f"node {name!r}: its {what} would be both {known[name]} and {told}")
        return known

    def tell(self, name: str, of: Callable[[str, list[Any]], Any], known: list[Any]) -> Any:
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
        for _ in range(1 + len(self.cyclic)):
            for group in self.groups:
                for name in group.names:
                    if all(source in known for source in self.reads[name]):
                        kinds = [known[source] for source in self.reads[name]]
                        known[name] = self.tell(name, lambda name, known: self.nodes[name].kind(*known), kinds)
            if len(known) > len(self.nodes):
                return known
        raise ValueError(f"the kinds of {', '.join(sorted(set(self.nodes) - set(known)))} follow from nothing")

    @property
    def core(self) -> bool:
        """Whether it runs as a whole in the core on spikes."""
        return self._plan("spikes").core is not None

    @property
    def order(self) -> tuple[str, ...]:
        """The nodes' names in the order that they run."""
        return tuple(name for group in self.groups for name in group.names)

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
        source = Source(x, self.shape, n_steps)
        plan = self._plan(source.kind)
        record = (record,) if isinstance(record, str) else tuple(record)
        if unknown := [name for name in record if name not in self.shapes]:
            raise ValueError(f"record: there is no node {unknown[0]!r}; there are {', '.join(self.nodes)}")
        if state is not None:
            self._check_state(state, source.n_streams)
        kept = dict.fromkeys((*self.outputs, *record))
        full = {
            name: np.empty((source.n_steps, source.n_streams, *self.shapes[name]), DTYPES[plan.kinds[name]])
            for name in kept
        }
        runner = (ByNode if plan.core is None else Whole)(self, plan, source, return_state)
        states, done = [], 0
        for first in range(0, source.n_streams, runner.streams):
            last = min(first + runner.streams, source.n_streams)
            runner.start(cut(state, first, last), first, last)
            for begin in range(0, source.n_steps, runner.steps):
                end = min(begin + runner.steps, source.n_steps)
                runner.run(begin, end, full)
                done += (end - begin) * (last - first)
                if progress is not None:
                    progress(done, source.n_steps * source.n_streams)
            if return_state:
                states.append(runner.state())
        return Run(
            outputs={name: full[name] for name in self.outputs},
            spikes=runner.spikes,
            operations=runner.operations,
            records={name: full[name] for name in record},
            n_steps=source.n_steps,
            n_streams=source.n_streams,
            input_kind=source.kind,
            state=joined(states) if return_state else None,
        )

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: the core's networks are made again."""
        return self.__dict__ | {"_planned": {}}

    def _plan(self, input_kind: Kind) -> Plan:
        """What is known of runs on such an input."""
        if input_kind not in self._planned:
            self._planned[input_kind] = Plan(self, input_kind)
        return self._planned[input_kind]

    def _check_state(self, state: State, n_streams: int) -> None:
        if not isinstance(state, State):
            raise TypeError(f"state: expected a State of an earlier run, got {type(state).__name__}")
        names = {name for name, node in self.nodes.items() if isinstance(node, Neurons)}
        if set(state.neurons) != names or set(state.last) != names & self.cyclic:
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
class Group:
    """A node, or the nodes of a cycle in the order that they run in a step."""

    names: tuple[str, ...]
    cyclic: bool


def _components(nodes: Mapping[str, Node], reads: Mapping[str, tuple[str, ...]]) -> list[Group]:
    """Strongly connected nodes, each group after all that it reads (Tarjan, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    groups: list[Group] = []
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
                    groups.append(Group(_within(members, nodes, reads) if cyclic else (name,), cyclic))
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
