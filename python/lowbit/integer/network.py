"""A graph made ready for one instruction set, and run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import as_array

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from lowbit.integer.graph import Graph

__all__ = ["Network", "Stream", "Timed"]


@dataclass(frozen=True)
class Timed:
    """A step of a network and the time that one sample took in it."""

    kind: str
    #: The tensor that it writes.
    output: str
    #: Products of one sample.
    products: int
    seconds: float


class Stream:
    """A network on samples that follow one another; see :meth:`Network.stream`."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.reset()

    def reset(self) -> None:
        """The next sample is the first: states are 0."""
        self._core = self.network._stream()

    def __call__(self, *inputs: ArrayLike) -> Any:
        """Runs the next n samples: arrays of shape (n, *shape), in order. See `Network`."""
        arrays = self.network._arrays(inputs)
        outputs = self.network._empty(len(arrays[0]))
        self._core.run(arrays, outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class Network(_core.Network):
    """An integer network that runs: weights in the order that an instruction set reads, a place for every tensor.

    Made by :meth:`Graph.plan`. It is never saved; the graph is. Additions are
    done by the layer before them where nothing else reads what that writes.

    Parameters
    ----------
    graph : Graph
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Notes
    -----
    ``network(*inputs, threads=None)`` runs a batch: an array of shape (n, *shape) for each of the graph's
    inputs, of its dtype. The samples are shared out among at most ``threads`` threads, `lowbit.get_num_threads`
    by default. It returns the graph's output, of shape (n, *shape), or a tuple of its outputs: the same
    bits on every instruction set and any number of threads. Another dtype or another number of inputs is a
    TypeError, another shape a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.integer import Constant, FullyConnected, Graph, Tensor
    >>> x = Tensor("x", (2,), "int8", scale=0.5)
    >>> y = Tensor("y", (1,), "int8", scale=1.0)
    >>> w = Constant("w", np.array([[3, 4]], np.int8), np.array([0.5], np.float32))
    >>> layer = FullyConnected("x", "w", None, "y")
    >>> network = Graph({"x": x, "y": y}, {"w": w}, (layer,), ("x",), ("y",)).plan()
    >>> network(np.array([[10, 20], [1, 2]], np.int8))
    array([[28],
           [ 3]], dtype=int8)
    """

    def __new__(cls, graph: Graph, *, isa: str | None = None) -> Self:
        return super().__new__(cls, graph.to_json(), [np.ascontiguousarray(array) for array in graph.arrays()], isa)

    def __init__(self, graph: Graph, *, isa: str | None = None) -> None:
        self.graph = graph
        self._inputs = [(name, np.dtype(graph.tensors[name].dtype)) for name in graph.inputs]
        self._outputs = [(np.dtype(graph.tensors[name].dtype), graph.tensors[name].shape) for name in graph.outputs]

    def _run_any(self, inputs: tuple[ArrayLike, ...], threads: int | None) -> Any:
        """A call, of anything that can be made arrays of."""
        arrays = self._arrays(inputs)
        outputs = self._empty(len(arrays[0]))
        self._run(arrays, outputs, threads)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def stream(self) -> Stream:
        """Runs the network on samples that follow one another, with what its states keep from each to the next.

        Examples
        --------
        A window of the last three codes, of which a new one comes at a time:

        >>> import numpy as np
        >>> from lowbit.integer import Concatenate, Graph, Slice, Tensor
        >>> new, old, window = (Tensor(n, (k,), "int8", 1.0) for n, k in (("new", 1), ("old", 2), ("window", 3)))
        >>> steps = Concatenate(("old", "new"), "window", 0), Slice("window", "kept", (1,), (1,))
        >>> tensors = {t.name: t for t in (new, old, window, Tensor("kept", (2,), "int8", 1.0))}
        >>> graph = Graph(tensors, {}, steps, ("new",), ("window",), states=(("old", "kept"),))
        >>> stream = graph.plan().stream()
        >>> stream(np.array([[1], [2]], np.int8))
        array([[0, 0, 1],
               [0, 1, 2]], dtype=int8)
        >>> stream(np.array([[3]], np.int8))
        array([[1, 2, 3]], dtype=int8)
        """
        return Stream(self)

    def _empty(self, n: int) -> list[NDArray[Any]]:
        return [np.empty((n, *shape), dtype) for dtype, shape in self._outputs]

    def _arrays(self, inputs: tuple[ArrayLike, ...]) -> tuple[NDArray[Any], ...]:
        if len(inputs) != len(self._inputs):
            raise TypeError(f"expected {len(self._inputs)} inputs, got {len(inputs)}")
        pairs = zip(self._inputs, inputs, strict=True)
        return tuple(as_array(name, x, (dtype.name,)) for (name, dtype), x in pairs)

    def profile(self, *inputs: ArrayLike, rounds: int = 20) -> list[Timed]:
        """The time of each step for the first sample of a batch: the least of ``rounds``."""
        first = [x[:1] for x in self._arrays(inputs)]
        return [Timed(kind, output, n, ns * 1e-9) for kind, output, n, ns in self._profile(first, rounds)]

    def __repr__(self) -> str:
        """What it takes."""
        tensors, weights = self.memory
        steps, count = len(self.graph.operations), len(self.graph.tensors)
        return f"Network({steps} operations, {count} tensors in {tensors:,} bytes, {weights:,} of weights, {self.isa})"
