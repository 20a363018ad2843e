"""Threads and instruction sets of this process."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lowbit import _core

__all__ = ["available_isas", "get_num_threads", "isa", "set_num_threads", "threads"]


def isa() -> str:
    """The instruction set that calls use unless ``isa=`` says otherwise.

    ``LOWBIT_ISA`` where it is set, else the best that this CPU has: of ``scalar``,
    ``avx2``, ``avxvnni``, ``avx512``, ``avx512vbmi``, ``amx`` on x86-64, of ``scalar``, ``neon``,
    ``neondot`` on AArch64.

    Raises
    ------
    ValueError
        ``LOWBIT_ISA`` names none, or one that this CPU lacks.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.isa() in lowbit.available_isas()
    True
    """
    return _core.isa()


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU can run, the best one last.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.available_isas()[0]
    'scalar'
    """
    return tuple(_core.available_isas())


def get_num_threads() -> int:
    """How many threads a parallel call uses.

    Unless :func:`set_num_threads` chose: ``LOWBIT_NUM_THREADS``, else
    ``RAYON_NUM_THREADS``, else the cores that affinity and cgroup allow, at
    most ``OMP_NUM_THREADS`` where it is set.
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Chooses how many threads parallel calls use.

    Parameters
    ----------
    n : int
        A count; 0 goes back to the default; -1 means all cores. More than four
        times the cores is cut to that, with a warning.

    Raises
    ------
    TypeError, ValueError
        ``n`` is no int, or below -1.
    """
    if isinstance(n, bool):
        raise TypeError(f"n: expected an int, got {n!r}")
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"n: expected an int, got {type(n).__name__}") from None
    if n < -1:
        raise ValueError(f"n: expected -1, 0 or a count of threads, got {n}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n > 4 * cores:
        warnings.warn(f"n: {n} threads on {cores} cores; using {4 * cores}", RuntimeWarning, stacklevel=2)
        n = 4 * cores
    _core.set_num_threads(cores if n == -1 else n)


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Runs the block with ``n`` threads, for the whole process.

    Examples
    --------
    >>> import lowbit
    >>> with lowbit.threads(1):
    ...     lowbit.get_num_threads()
    1
    """
    before = _core.get_num_threads()
    set_num_threads(n)
    try:
        yield
    finally:
        _core.set_num_threads(before)


# Variables that cannot be read as they stand are told once, where lowbit is imported.
if any(name in os.environ for name in ("LOWBIT_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS")):
    for _complaint in _core.thread_complaints():
        warnings.warn(_complaint, RuntimeWarning, stacklevel=2)
