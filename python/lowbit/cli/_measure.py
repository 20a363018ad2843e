"""Speed, measured in turn: the calls that are compared alternate in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

#: A turn that takes less is repeated within the turn.
LEAST_TURN = 2e-3


def in_turn(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 15, seconds: float = float("inf"), least: int = 3
) -> dict[str, list[float]]:
    """Seconds that each call took, round by round.

    Ends after ``rounds`` rounds, or at ``seconds`` in all once there are
    ``least``. Before each timed turn the call runs once untimed if it is short,
    so that it finds its own data in the caches and the others' threads at rest.
    """
    start = time.perf_counter()
    took = {name: _time(call, 1) for name, call in calls.items()}
    repeats = {name: max(1, round(LEAST_TURN / max(t, 1e-9))) for name, t in took.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for done in range(rounds):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for name, call in calls.items():
            if took[name] < 0.1:
                call()
            times[name].append(_time(call, repeats[name]))
    return times


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median over rounds of how many times as long ``slower`` took."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))
