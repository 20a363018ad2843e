"""Where the time of an integer network goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lowbit.integer import Graph, Network, Timed, from_tflite, load

__all__ = ["as_dict", "lines", "measured", "read"]


def read(path: Path) -> Graph:
    """The network of a .tflite file, or of one that `lowbit.integer.save` wrote.

    Raises
    ------
    ValueError
        Neither, or one that cannot be taken.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    return from_tflite(path) if head[4:] == b"TFL3" else load(path)


def measured(network: Network, rounds: int) -> list[Timed]:
    """Each step for one sample of random codes, or of normal numbers."""
    rng = np.random.default_rng(0)
    inputs = []
    for name in network.graph.inputs:
        tensor = network.graph.tensors[name]
        if tensor.dtype == "float32":
            inputs.append(rng.standard_normal((1, *tensor.shape), np.float32))
        else:
            dtype = np.dtype(tensor.dtype)
            inputs.append(
                rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (1, *tensor.shape), dtype, endpoint=True)
            )
    return network.profile(*inputs, rounds=rounds)


def lines(network: Network, steps: list[Timed]) -> list[str]:
    """A line for each step, and one for all."""
    total, tensors, weights = sum(step.seconds for step in steps), *network.memory
    rows = [f"{'us':>9} {'share':>6} {'GOP/s':>7}  operation        output"]
    for step in steps:
        speed = f"{2e-9 * step.products / step.seconds:7.1f}" if step.products and step.seconds else " " * 7
        share = step.seconds / total if total else 0.0
        name = step.output if len(step.output) <= 60 else step.output[:59] + "…"
        rows.append(f"{1e6 * step.seconds:9.2f} {share:6.1%} {speed}  {step.kind:16} {name}")
    products = sum(step.products for step in steps)
    rows.append(
        f"{1e6 * total:9.2f} {1:6.0%} {2e-9 * products / total if total else 0:7.1f}  "
        f"{products:,} products; {tensors:,} bytes of tensors, {weights:,} of weights; {network.isa}, one thread"
    )
    return rows


def as_dict(network: Network, steps: list[Timed]) -> dict[str, Any]:
    """The same for programs, times in seconds."""
    tensors, weights = network.memory
    told = [{"kind": s.kind, "output": s.output, "products": s.products, "seconds": s.seconds} for s in steps]
    return {"isa": network.isa, "threads": 1, "tensor_bytes": tensors, "weight_bytes": weights, "steps": told}
