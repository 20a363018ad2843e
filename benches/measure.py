"""How benchmarks take time: the candidates in turn in one process, medians of
the rounds, and ratios taken within each round, for machines are shared and
noisy and an absolute time means nothing.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from time import perf_counter, process_time

import numpy as np

__all__ = [
    "Shape",
    "Spread",
    "Timing",
    "clock_for",
    "cpu_name",
    "interleave",
    "lines",
    "pin",
    "settle",
    "shapes",
    "table",
]


@dataclass(frozen=True)
class Spread:
    """The quartiles of some rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The quartiles of at least two values."""
        return cls(*quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f} {self.high:.2f}]"


@dataclass(frozen=True)
class Timing:
    """What `interleave` measured, by the callables' names."""

    rounds: dict[str, list[float]]
    """Seconds of one call, round by round."""

    def seconds(self, name: str) -> Spread:
        """Seconds of one call of ``name``."""
        return Spread.of(self.rounds[name])

    def ratio(self, name: str, base: str) -> Spread:
        """How many times as fast as ``base`` ``name`` is: the quartiles of each
        round's time of ``base`` by that of ``name``."""
        pairs = zip(self.rounds[base], self.rounds[name], strict=True)
        return Spread.of([b / a for b, a in pairs])

    def share(self, name: str, limits: Iterable[str], times: int = 1) -> Spread:
        """The share of its limit that ``name`` reaches: in each round the longest
        of the limits' times by its own. ``times``: how often the limits did its work."""
        bounds = zip(*(self.rounds[limit] for limit in limits), strict=True)
        return Spread.of([max(b) / times / a for b, a in zip(bounds, self.rounds[name], strict=True)])


def clock_for(threads: int) -> Callable[[], float]:
    """The clock to compare candidates by.

    On one thread the time that the process had the core: on a shared machine
    others take it away for milliseconds, which a wall clock charges to whoever
    takes longer than that, and so tilts ratios. On more threads waiting is part
    of the work, and the clock is on the wall.
    """
    return process_time if threads == 1 else perf_counter


def interleave(
    fs: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    *,
    at_least: float = 1e-3,
    clock: Callable[[], float] = perf_counter,
    warm: bool = False,
) -> Timing:
    """Runs callables in turn and times them.

    Parameters
    ----------
    fs : mapping of str to callable
        What to time. Each is called once before the first round.
    rounds : int
        How often each has its turn.
    at_least : float
        Seconds that a turn is to last: faster callables are called several
        times in a row, and their time divided.
    clock : callable
        Seconds, from any start; see `clock_for`.
    warm : bool
        Begin each turn with a call that is not timed, so that every candidate
        finds its weights and its output in the caches: what a loop over one
        product sees, whoever had the turn before.

    Examples
    --------
    >>> timing = interleave({"short": lambda: sum(range(10)), "long": lambda: sum(range(10_000))}, 5)
    >>> timing.ratio("short", "long").median > 1
    True
    """
    repeats = {}
    for name, f in fs.items():
        f()
        start = clock()
        f()
        repeats[name] = max(1, round(at_least / max(clock() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in fs}
    for _ in range(rounds):
        for name, f in fs.items():
            if warm:
                f()
            start = clock()
            for _ in range(repeats[name]):
                f()
            times[name].append((clock() - start) / repeats[name])
    return Timing(times)


@dataclass(frozen=True)
class Shape:
    """A product: (M, K) by (K, N)."""

    m: int
    n: int
    k: int
    name: str

    @property
    def ops(self) -> int:
        """Its operations: a multiplication and an addition are two."""
        return 2 * self.m * self.n * self.k

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.name}"


def shapes(model: str) -> list[Shape]:
    """The products in ``shapes/<model>.txt``: lines of "M N K name"."""
    lines = (Path(__file__).parent / "shapes" / f"{model}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [Shape(int(m), int(n), int(k), name) for m, n, k, name in rows]


def lines(shape: tuple[int, ...], dtype: type = np.int32) -> np.ndarray:
    """Zeros that start at a cache line, as every library's own tensors do."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def pin(threads: int) -> None:
    """Keeps this process, and what it starts, on as many cores: the last ones that it may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-threads:])


def settle(threads: int, *, avx2: bool = False) -> None:
    """Starts this script again under an environment fit to measure in.

    One thread stays on one core. Every library's threads are set before it
    loads. ``OPENBLAS_CORETYPE`` and ``OPENBLAS_L2_SIZE``, which some machines
    set for old builds and which slow a current NumPy down, are removed.
    ``avx2`` holds lowbit, torch, MKL and oneDNN to AVX2.
    """
    wanted = dict(os.environ)
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        wanted.pop(name, None)
    for name in ("OMP", "MKL", "OPENBLAS", "RAYON", "RTEN", "LOWBIT"):
        wanted[f"{name}_NUM_THREADS"] = str(threads)
    if avx2:
        wanted["LOWBIT_ISA"] = "avx2"
        wanted["ATEN_CPU_CAPABILITY"] = "avx2"
        wanted["MKL_ENABLE_INSTRUCTIONS"] = wanted["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    pin(threads)
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def cpu_name() -> str:
    """The CPU as it names itself, with family and model where a virtual machine's name says little."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines()))
    name = fields.get("model name") or platform.machine()
    known = {"family": "cpu family", "model": "model"}
    parts = [f"{word} {fields[key]}" for word, key in known.items() if key in fields]
    return f"{name} ({', '.join(parts)})" if parts else name


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(map(str, row)) for row in rows]
    head = list(head)
    lines = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
