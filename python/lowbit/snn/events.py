"""Streams of events, which become frames a piece at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit._check import as_array, check_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Events"]

_INTEGERS = ("int64", "uint8", "int8", "uint16", "int16", "int32", "uint32")


@dataclass(frozen=True, eq=False, repr=False)
class Events:
    """Events of one or more streams, such as those of a sensor.

    Parameters
    ----------
    t : array_like of int, (E,)
        The step of each event, in any order.
    index : sequence of array_like of int, (E,)
        Where in a frame: an array for each of its axes.
    shape : tuple of int
        Of a frame, channels last.
    stream : array_like of int, (E,), optional
        To which stream each belongs; one stream by default.
    n_steps, n_streams : int, optional
        As many as the events ask for by default.

    Raises
    ------
    TypeError, ValueError
        Arrays that are not of one length, or of integers; an event outside; more
        than 255 of them in one place of a frame.

    Examples
    --------
    >>> from lowbit.snn import Events
    >>> events = Events([0, 2, 2], ([1, 0, 0],), (2,))
    >>> events
    Events(3 events, 3 steps, 1 stream of (2,))
    >>> events.frames(0, 3, 0, 1)[:, 0]
    array([[0, 1],
           [0, 0],
           [2, 0]], dtype=uint8)
    """

    t: ArrayLike
    index: tuple[ArrayLike, ...]
    shape: tuple[int, ...]
    stream: ArrayLike | None = None
    n_steps: int | None = None
    n_streams: int | None = None
    #: Places in the order of streams, then steps, and how many events each has.
    _keys: NDArray[np.int64] = field(init=False)
    _counts: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        shape = tuple(check_int("shape", size, 1) for size in self.shape)
        t = _column("t", self.t)
        if not isinstance(self.index, (tuple, list)) or len(self.index) != len(shape):
            raise ValueError(f"index: expected {len(shape)} arrays, one for each axis of {shape}, got {self.index!r}")
        n_steps = _extent("t", t, self.n_steps, "n_steps")
        stream = np.zeros_like(t) if self.stream is None else _column("stream", self.stream, len(t))
        n_streams = _extent("stream", stream, self.n_streams, "n_streams")
        size = math.prod(shape)
        if n_steps * n_streams * size >= 2**62:
            raise ValueError(f"t, stream, shape: {n_steps} steps of {n_streams} streams of {shape} are too many")
        keys = stream * n_steps + t
        for axis, (extent, values) in enumerate(zip(shape, self.index, strict=True)):
            column = _column(f"index[{axis}]", values, len(t))
            _extent(f"index[{axis}]", column, extent, f"shape[{axis}]")
            keys = keys * extent + column
        places, counts = np.unique(keys, return_counts=True)
        if len(counts) and counts.max() > 255:
            raise ValueError(f"t, index: expected at most 255 events in one place of a frame, got {counts.max()}")
        for name, value in {"shape": shape, "n_steps": n_steps, "n_streams": n_streams, "t": t}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_keys", places)
        object.__setattr__(self, "_counts", counts.astype(np.uint8))

    @property
    def most(self) -> int:
        """The greatest number of events in one place of a frame."""
        return int(self._counts.max(initial=0))

    @property
    def sorted(self) -> tuple[NDArray[np.int64], NDArray[np.uint8], int]:
        """Places, ``(stream * n_steps + step) * size + place`` in ascending order, how many events each has, and ``n_steps``."""
        return self._keys, self._counts, self.n_steps or 0

    def frames(self, begin: int, end: int, first: int, last: int) -> NDArray[np.uint8]:
        """Counts of events: steps ``begin`` to ``end`` of streams ``first`` to ``last``, both without the last.

        Returns
        -------
        ndarray of uint8, (end - begin, last - first, *shape)
        """
        assert self.n_steps is not None
        size = math.prod(self.shape)
        frames = np.zeros((end - begin, last - first, size), np.uint8)
        for n in range(first, last):
            base = n * self.n_steps
            low, high = np.searchsorted(self._keys, ((base + begin) * size, (base + end) * size))
            step, place = np.divmod(self._keys[low:high] - (base + begin) * size, size)
            frames[step, n - first, place] = self._counts[low:high]
        return frames.reshape(end - begin, last - first, *self.shape)

    def __len__(self) -> int:
        return len(np.asarray(self.t))

    def __repr__(self) -> str:
        streams = f"{self.n_streams} stream{'' if self.n_streams == 1 else 's'}"
        return f"Events({len(self):,} events, {self.n_steps} steps, {streams} of {self.shape})"


def _column(name: str, values: Any, length: int | None = None) -> NDArray[np.int64]:
    array = as_array(name, values, _INTEGERS)
    if array.ndim != 1 or (length is not None and len(array) != length):
        expected = "(E,)" if length is None else f"({length},)"
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}")
    return array.astype(np.int64, copy=False)


def _extent(name: str, column: NDArray[np.int64], extent: int | None, what: str) -> int:
    """How far it goes, checked."""
    least = int(column.max(initial=0)) + 1
    extent = least if extent is None else check_int(what, extent, 1)
    if len(column) and (column.min() < 0 or least > extent):
        wrong = column[(column < 0) | (column >= extent)][0]
        raise ValueError(f"{name}: expected 0 to {extent - 1}, got {wrong}")
    return extent
