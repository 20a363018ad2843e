"""What a run did, layer by layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lowbit.neurons import LIF
from lowbit.snn.energy import Costs
from lowbit.snn.layers import Neurons, Potentials, _Weighted

if TYPE_CHECKING:
    from lowbit.snn.network import Network, Run

__all__ = ["Layer", "Report", "report"]


@dataclass(frozen=True)
class Layer:
    """A row. Counts are exact and of all streams; ``None`` where a layer has no such thing."""

    name: str
    kind: str
    #: Of a weight; 32 is float32.
    bits: int | None
    parameters: int
    #: Of one stream.
    neurons: int | None
    #: Spikes by neuron and step.
    rate: float | None
    spikes: int | None
    #: Pairs of an input that is not 0 and a synapse; of inputs that are numbers, of all.
    operations: int | None
    #: In picojoules.
    energy: float


@dataclass(frozen=True)
class Report:
    """A table of layers, totals that are their sums, and what was assumed.

    ``str`` prints it, `to_json` writes it.
    """

    layers: tuple[Layer, ...]
    n_steps: int
    n_streams: int
    assumptions: tuple[str, ...]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def neurons(self) -> int:
        return sum(layer.neurons or 0 for layer in self.layers)

    @property
    def spikes(self) -> int:
        return sum(layer.spikes or 0 for layer in self.layers)

    @property
    def operations(self) -> int:
        return sum(layer.operations or 0 for layer in self.layers)

    @property
    def energy(self) -> float:
        """Of all streams, in picojoules."""
        return math.fsum(layer.energy for layer in self.layers)

    @property
    def rate(self) -> float:
        """Spikes by neuron and step."""
        return self.spikes / max(1, self.neurons * self.n_steps * self.n_streams)

    def to_json(self) -> str:
        """The same for programs; energies in picojoules of all streams."""
        totals = {
            name: getattr(self, name) for name in ("parameters", "neurons", "rate", "spikes", "operations", "energy")
        }
        told = {
            "n_steps": self.n_steps,
            "n_streams": self.n_streams,
            "layers": [asdict(layer) for layer in self.layers],
            "total": totals,
            "assumptions": list(self.assumptions),
        }
        return json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("layer", "kind", "bits", "parameters", "neurons", "rate", "spikes", "operations", "nJ")
        ]
        n = self.n_streams

        def row(name: str, kind: str, of: Layer | Report, bits: int | None) -> tuple[str, ...]:
            rate = "" if of.rate is None else f"{of.rate:.4f}"
            counts = ("" if x is None else f"{x / n:,.0f}" for x in (of.spikes, of.operations))
            sizes = (f"{x:,}" if x else "" for x in (of.parameters, of.neurons))
            return (name, kind, "" if bits is None else str(bits), *sizes, rate, *counts, f"{of.energy / n / 1e3:,.2f}")

        rows += [row(layer.name, layer.kind, layer, layer.bits) for layer in self.layers]
        rows.append(row("total", "", self, None))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ).rstrip()
            for cells in rows
        ]
        streams = "1 stream" if n == 1 else f"{n:,} streams, spikes, operations and nJ of one on average"
        lines += ["", f"{self.n_steps:,} steps of {streams}", *self.assumptions]
        return "\n".join(lines)


def report(network: Network, run: Run, costs: Costs | None = None) -> Report:
    """A table of what each layer did in a run.

    Parameters
    ----------
    network : Network
    run : Run
        Of that network.
    costs : Costs, optional

    Returns
    -------
    Report

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> from lowbit.snn import Linear, Network, Neurons, report
    >>> network = Network.sequential((3,), Linear(np.ones((3, 2), np.int8)), Neurons(lowbit.IF(v_threshold=2)))
    >>> told = report(network, network.run(np.ones((4, 1, 3), np.uint8)))
    >>> told.spikes, told.operations, round(told.energy, 6)
    (8, 24, 3.2)
    """
    costs = costs or Costs()
    if set(run.spikes) != {name for name, node in network.nodes.items() if type(node) is Neurons}:
        raise ValueError("run: expected a run of this network, got one of another")
    kinds = network.kinds(run.input_kind)
    rows = []
    for name, node in network.nodes.items():
        if isinstance(node, _Weighted):
            bits, operations = node.weight.nbits, run.operations[name]
            each = costs.addition(bits) if kinds[network.reads[name][0]] == "spikes" else costs.product(bits)
            kind = type(node).__name__
            rows.append(Layer(name, kind, bits, node.parameters, None, None, None, operations, operations * each))
        elif isinstance(node, Neurons):
            count = math.prod(network.shapes[name])
            updates = count * run.n_steps * run.n_streams
            leaks = isinstance(node.neuron, LIF)
            energy = updates * costs.update(floats=kinds[network.reads[name][0]] != "sums", leaks=leaks)
            spikes = None if isinstance(node, Potentials) else int(run.spikes[name].sum())
            rate = None if spikes is None else spikes / updates
            rows.append(Layer(name, type(node.neuron).__name__, None, 0, count, rate, spikes, None, energy))
        elif type(node).__name__ == "Attention":
            rows.append(Layer(name, "Attention", None, 0, None, None, None, None, 0.0))
    assumptions = costs.assumptions()
    if any(row.kind == "Attention" for row in rows):
        assumptions.append("products of spikes with spikes in attention are not counted")
    return Report(tuple(rows), run.n_steps, run.n_streams, tuple(assumptions))
