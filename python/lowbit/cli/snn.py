"""Spiking networks from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.snn import Events, Network, Report, Run, draw_raster, from_nir, report

__all__ = ["as_dict", "inputs", "lines", "plot", "read", "report", "run"]


def read(path: Path, dt: float, reset: str, strict: bool) -> Network:
    """The network of a NIR file."""
    return from_nir(path, dt=dt, reset=reset, strict=strict)


def inputs(network: Network, events: Path | None, array: Path | None, steps: int | None) -> tuple[Any, str]:
    """What the network sees, and how that is told.

    Raises
    ------
    ValueError
        A file that holds something else.
    """
    if array is not None:
        try:
            x = np.load(array, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{array}: not an array of numpy.save: {error}") from None
        if not isinstance(x, np.ndarray):
            raise ValueError(f"{array}: expected one array (.npy), got several")
        return x, f"{array.name} {x.shape}"
    if events is not None:
        return _events(network, events, steps), events.name
    rng = np.random.default_rng(0)
    x = (rng.random((steps or 100, 1, *network.shape)) < 0.1).astype(np.uint8)
    return x, f"random spikes, 10 %, seed 0, {len(x)} steps"


def _events(network: Network, path: Path, steps: int | None) -> Events:
    axes = ("y", "x", "p") if len(network.shape) == 3 else tuple(f"i{axis}" for axis in range(len(network.shape)))
    try:
        with np.load(path, allow_pickle=False) as file:
            data = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, AttributeError) as error:
        raise ValueError(f"{path}: not arrays of numpy.savez: {error}") from None
    if lacking := [name for name in ("t", *axes) if name not in data]:
        raise ValueError(f"{path}: expected arrays t, {', '.join(axes)} and perhaps stream, found no {lacking[0]}")
    index = tuple(data[name] for name in axes)
    return Events(data["t"], index, network.shape, data.get("stream"), n_steps=steps)


def run(network: Network, x: Any, steps: int | None, record: bool, progress: Callable[[int, int], object]) -> Run:
    """The network on them, with the trains of all layers if they are to be drawn."""
    names = [name for name in network.shapes if type(network.nodes.get(name)).__name__ == "Neurons"] if record else []
    given = steps if isinstance(x, Events) or x.ndim == len(network.shape) + 1 else None
    return network.run(x, n_steps=given, record=names, progress=progress)


def lines(network: Network, told: Report, done: Run, what: str) -> list[str]:
    """The table, and what came out."""
    rows = [f"{network!r}", f"input: {what}", "", str(told)]
    for name, output in done.outputs.items():
        totals = output.reshape(*output.shape[:2], -1)[:, :8].sum(0, dtype=np.float64)
        if totals.shape[1] <= 16:
            rows += ["", f"output {name}, summed over steps:"]
            rows += [f"  stream {n}: " + " ".join(f"{x:g}" for x in row) for n, row in enumerate(totals)]
            if output.shape[1] > len(totals):
                rows.append(f"  and {output.shape[1] - len(totals)} more; --json has all")
    return rows


def as_dict(told: Report, done: Run, what: str) -> dict[str, Any]:
    """The same for programs."""
    import json

    outputs = {name: output.sum(0, dtype=np.float64).tolist() for name, output in done.outputs.items()}
    spikes = {name: counts.tolist() for name, counts in done.spikes.items()}
    return {"input": what, **json.loads(told.to_json()), "outputs": outputs, "spikes": spikes}


def plot(done: Run, path: Path, title: str) -> None:
    """The raster of the first stream."""
    draw_raster(done.records, path, title=title)
