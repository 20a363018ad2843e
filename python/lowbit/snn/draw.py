"""Pictures of spikes: rasters and rates. Needs matplotlib."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["draw_raster", "draw_rates"]

INK, GREY, DOT = "#2b303b", "#6b7280", "#0b7a5c"
#: Spikes of a layer that are drawn, at most: more are one patch of colour.
MOST = 200_000


def draw_raster(
    records: Mapping[str, ArrayLike], path: str | os.PathLike[str], *, stream: int = 0, title: str = ""
) -> Path:
    """Draws when each neuron spiked: a panel for each layer, time to the right.

    Parameters
    ----------
    records : mapping of str to array_like, (T, N, ...)
        Of `Run.records`, or any spikes.
    path : path_like
        Ends in .png, .svg or .pdf. A file there is replaced.
    stream : int
        Which of the N.
    title : str

    Returns
    -------
    Path
        That of the file.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        No records, or no such stream.
    OSError
        The file cannot be written.
    """
    trains = _trains(records, stream)
    figure = _figure()
    for axes, name, train in _panels(figure, trains):
        t, neuron = np.nonzero(train)
        if len(t) > MOST:
            kept = np.linspace(0, len(t) - 1, MOST).astype(np.int64)
            t, neuron = t[kept], neuron[kept]
        axes.scatter(t, neuron, s=max(0.3, min(6.0, 900 / max(1, train.shape[1]))), c=DOT, marker="|", linewidths=0.7)
        axes.set_xlim(-0.5, len(train) - 0.5)
        axes.set_ylim(-0.5, train.shape[1] - 0.5)
        _label(axes, name, f"{int(train.sum()):,} spikes of {train.shape[1]:,} neurons")
    return _save(figure, axes, path, title)


def draw_rates(
    records: Mapping[str, ArrayLike], path: str | os.PathLike[str], *, stream: int = 0, title: str = ""
) -> Path:
    """Draws what share of each layer's neurons spiked at each step. As `draw_raster`."""
    trains = _trains(records, stream)
    figure = _figure()
    for axes, name, train in _panels(figure, trains):
        rate = train.mean(1)
        axes.fill_between(np.arange(len(rate)), 100 * rate, step="mid", color=DOT, alpha=0.25, linewidth=0)
        axes.step(np.arange(len(rate)), 100 * rate, where="mid", color=DOT, linewidth=1.0)
        axes.set_ylim(bottom=0)
        _label(axes, name, f"{100 * rate.mean():.2f} % of {train.shape[1]:,} neurons a step")
    return _save(figure, axes, path, title)


def _trains(records: Mapping[str, ArrayLike], stream: int) -> dict[str, NDArray[Any]]:
    trains = {}
    for name, record in records.items():
        array = np.asarray(record)
        if array.ndim < 2 or not -array.shape[1] <= stream < array.shape[1]:
            raise ValueError(f"records[{name!r}]: expected (T, N, ...) with a stream {stream}, got {array.shape}")
        trains[name] = array[:, stream].reshape(len(array), -1)
    if not trains:
        raise ValueError("records: expected at least one layer; name some with run(record=...)")
    return trains


def _panels(figure: Any, trains: dict[str, NDArray[Any]]) -> Iterator[tuple[Any, str, NDArray[Any]]]:
    figure.set_size_inches(7.2, 0.9 + 1.5 * len(trains))
    axes = figure.subplots(len(trains), 1, sharex=True, squeeze=False)[:, 0]
    for one, (name, train) in zip(axes, trains.items(), strict=True):
        yield one, name, train


def _figure() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'lowbit[plots]'") from None
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _label(axes: Any, name: str, told: str) -> None:
    axes.set_title(name, fontsize=9, loc="left", color=INK)
    axes.set_title(told, fontsize=8, loc="right", color=GREY)
    axes.tick_params(labelsize=7.5, colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cfd5de")


def _save(figure: Any, last: Any, path: str | os.PathLike[str], title: str) -> Path:
    last.set_xlabel("step", fontsize=8.5, color=GREY)
    if title:
        figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise ValueError(f"path: expected one that ends in .png, .svg or .pdf, got {target.name}")
    figure.savefig(target, dpi=150, format=kind)
    return target
