"""A layer's histogram, and where each method of `lowbit.fit_levels` puts its levels."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lowbit

__all__ = ["Layer", "Row", "lines", "read", "rows"]

METHODS = ("optimal", "lloyd_max", "laplace", "gauss", "uniform", "quantile", "apot", "pot")

#: Columns of the histogram and of the levels under it.
WIDTH = 64
HEIGHT = 5


@dataclass(frozen=True)
class Layer:
    """A tensor of a file, flat."""

    name: str
    numbers: np.ndarray


@dataclass(frozen=True)
class Row:
    """A method's levels for a layer: ``mse`` the mean squared error, ``error`` that over the variance."""

    method: str
    mse: float
    error: float
    clip: float | None
    levels: list[float]


def read(path: Path, name: str) -> Layer:
    """The tensor ``name``, or the weight of the layer of that name.

    Raises
    ------
    ValueError
        No safetensors file, no such tensor, or none of numbers.
    OSError
        The file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            found = next((n for n in (name, f"{name}.weight") if n in names), None)
            if found is None:
                near = difflib.get_close_matches(name, names, 3, 0.3) or names[:3]
                raise ValueError(f"--layer: there is no '{name}' in {path}; it has {', '.join(near)} …")
            tensor = file.get_tensor(found)
    except (SafetensorError, IsADirectoryError) as error:
        raise ValueError(f"{path}: no safetensors file: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:  # a dtype that numpy lacks
        raise ValueError(f"--layer: '{name}' cannot be read as numbers: {error}") from None
    return Layer(found, np.asarray(tensor).reshape(-1))


def rows(layer: Layer, nbits: int) -> Iterator[Row]:
    """Every method's levels, then the integers that `lowbit.choose_qparams` gives up to the greatest magnitude.

    Raises
    ------
    TypeError, ValueError
        What is no numbers, or not finite.
    """
    x = layer.numbers
    variance = float(np.var(x, dtype=np.float64)) or math.nan
    for method in METHODS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
            found = lowbit.fit_levels(x, 1 << nbits, method=method)  # type: ignore[arg-type]
        mse, clip = float(found.mse), float(found.clip)
        yield Row(method, mse, mse / variance, None if math.isnan(clip) else clip, found.levels.tolist())
    qparams = lowbit.choose_qparams(x.astype(np.float32), nbits)
    codes = np.arange(qparams.qmin, qparams.qmax + 1)
    levels = (codes - int(qparams.zero_point)) * float(qparams.scale)
    mse = float(np.mean((x - levels[lowbit.encode(x, levels)]) ** 2, dtype=np.float64))
    yield Row("absmax", mse, mse / variance, float(np.abs(x).max()), levels.tolist())


def lines(layer: Layer, nbits: int, told: Iterator[Row]) -> Iterator[str]:
    """The histogram, then each method as soon as it is there: its levels under the histogram, its error."""
    x = layer.numbers.astype(np.float64)
    least, greatest = float(x.min()), float(x.max())
    yield (
        f"{layer.name}: {x.size:,} numbers from {least:.4g} to {greatest:.4g},"
        f" mean {x.mean():.4g}, deviation {x.std():.4g}"
    )
    counts, _ = histogram(layer)
    # Tails are seen where heights are in proportion to the roots of counts.
    heights = np.sqrt(counts / max(counts.max(), 1)) * HEIGHT * 8
    for row in range(HEIGHT - 1, -1, -1):
        eighths = np.clip(np.ceil(heights - 8 * row), 0, 8).astype(int)
        yield " " * 11 + "".join(" ▁▂▃▄▅▆▇█"[e] for e in eighths).rstrip()
    yield f"{'method':<10} {f'{1 << nbits} levels':<{WIDTH}} error/variance  × optimal"
    best = None
    for row in told:
        best = row.mse if best is None else best
        marks = [" "] * WIDTH
        for level in row.levels:
            at = (level - least) / ((greatest - least) or 1.0)
            if 0 <= at <= 1:
                marks[min(int(at * WIDTH), WIDTH - 1)] = "|"
        times = f"{row.mse / best:.3f}" if best else "–"
        yield f"{row.method:<10} {''.join(marks)} {row.error:>14.4g} {times:>10}"


def histogram(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges."""
    return np.histogram(layer.numbers.astype(np.float64), WIDTH)


def as_dict(layer: Layer, nbits: int, told: list[Row]) -> dict[str, Any]:
    """All of it for JSON."""
    x = layer.numbers.astype(np.float64)
    counts, edges = histogram(layer)
    return {
        "layer": layer.name,
        "numbers": x.size,
        "mean": x.mean(),
        "deviation": x.std(),
        "nbits": nbits,
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "methods": [vars(row) for row in told],
    }
