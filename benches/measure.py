"""How benchmarks take time: the candidates in turn in one process, medians of
the rounds, and ratios taken within each round, for machines are shared and
noisy and an absolute time means nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles
from time import perf_counter

__all__ = ["Spread", "Timing", "interleave"]


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


def interleave(fs: Mapping[str, Callable[[], object]], rounds: int = 15, *, at_least: float = 1e-3) -> Timing:
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

    Examples
    --------
    >>> timing = interleave({"short": lambda: sum(range(10)), "long": lambda: sum(range(10_000))}, 5)
    >>> timing.ratio("short", "long").median > 1
    True
    """
    repeats = {}
    for name, f in fs.items():
        f()
        start = perf_counter()
        f()
        repeats[name] = max(1, round(at_least / max(perf_counter() - start, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in fs}
    for _ in range(rounds):
        for name, f in fs.items():
            start = perf_counter()
            for _ in range(repeats[name]):
                f()
            times[name].append((perf_counter() - start) / repeats[name])
    return Timing(times)
