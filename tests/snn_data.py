"""The stored spiking networks and event streams, for tests and benchmarks: `LOWBIT_DATA` is their folder.

A network is ``<name>.safetensors`` with tensors ``<node>.<parameter>`` and ``<name>.json`` with the nodes'
types and the edges; here it becomes a NIR graph.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

#: Steps of the event streams: their last event is at 298.
STEPS = 299
#: The N-MNIST network's layers of neurons, in the order of the golden counts.
SPIKING = ("1", "3", "6", "10", "12")


def folder(given: str | None = None) -> Path | None:
    """Where the networks are, if they are there."""
    root = given or os.environ.get("LOWBIT_DATA")
    path = Path(root, "snn_nir") if root else None
    return path if path and path.is_dir() else None


def graph(path: Path, name: str) -> Any:
    """The NIR graph of a stored network."""
    import nir
    from safetensors.numpy import load_file

    described = json.loads((path / f"{name}.json").read_text())
    values: dict[str, dict[str, Any]] = {node: {} for node in described["types"]}
    for key, array in load_file(path / f"{name}.safetensors").items():
        node, _, parameter = key.rpartition(".")
        values[node][parameter] = array
    nodes = {}
    for node, kind in described["types"].items():
        given = values[node]
        if kind in ("Input", "Output"):
            nodes[node] = getattr(nir, kind)(given["shape"])
            continue
        if kind == "Conv2d":
            pairs = ("stride", "padding", "dilation", "input_shape")
            given |= {n: tuple(int(x) for x in given[n]) for n in pairs} | {"groups": int(given["groups"][0])}
        if kind == "Flatten":
            axes = {n: int(given[n][0]) for n in ("start_dim", "end_dim")}
            given = {"input_type": {"input": given["input_type"]}} | axes
        nodes[node] = getattr(nir, kind)(**given)
    return nir.NIRGraph(nodes=nodes, edges=[tuple(edge) for edge in described["edges"]], type_check=False)


def streams(path: Path, count: int = 300) -> tuple[Any, dict[str, np.ndarray]]:
    """The first event streams, and the labels and golden counts of all."""
    from lowbit.snn import Events

    with np.load(path / "mnist_saccade_events_0_299.npz") as file:
        data = dict(file)
    of = np.repeat(np.arange(300), np.diff(data["offsets"]))
    few = of < count
    index = (data["y_pix"][few], data["x_pix"][few], data["p"][few])
    events = Events(data["t"][few], index, (34, 34, 2), of[few], n_steps=STEPS, n_streams=count)
    return events, {name: data[name][:count] for name in ("label", "out_spikes", "layer_spikes")}
