"""How a weight is fitted to tables: their entries, the groups' multipliers, the codes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lowbit import _core
from lowbit.affine import DAMPING, descend, round_with_feedback
from lowbit.levels import fit_levels, fit_levels_rows
from lowbit.types import ConvergenceWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.config import Codebook

__all__ = ["Parts", "fit"]

#: Codes (N, K), multipliers and zero points (N, groups), scales (N,).
Parts = tuple["NDArray[np.uint8]", "NDArray[np.uint8]", "NDArray[np.uint8]", "NDArray[np.float32]"]

#: Weights from which one table is learned, at most.
SAMPLE = 1 << 18
#: Rounds of choosing table and codes in turn, at most.
ROUNDS = 4


def fit(
    x: NDArray[np.float32],
    config: Codebook,
    form: Any,
    parts: Parts,
    *,
    importance: NDArray[np.float32] | None,
    moments: NDArray[np.float64] | None,
    codebook: NDArray[Any] | None,
    order: Any,
    isa: str | None,
) -> NDArray[Any]:
    """Chooses tables and codes of ``x`` (N, K), as it is to be rounded.

    Fills ``parts`` and returns the tables, (tables, 2**nbits, 1), int8 or float32: those of
    a ``codebook`` that is given.
    """
    if codebook is not None and codebook.dtype != np.int8:
        codebook = codebook.astype(np.float32, copy=False)
    size = form[1]
    # Inputs none of which counts are as if each did.
    counts = np.ones(x.shape[1], np.float32) if importance is None or not importance.any() else importance
    counts = counts / max(counts.max(), np.finfo(np.float32).tiny)

    def chosen(x: NDArray[np.float32], entries: NDArray[Any], parts: Parts) -> float:
        _core.fit_groups(x, len(x), x.shape[1], form, entries, counts, parts, isa)
        off = x - values(entries, parts, config, size)
        return float(np.einsum("nk,nk,k", off, off, counts, dtype=np.float64))

    if codebook is None:
        with warnings.catch_warnings():  # tables may have more entries than there are weights
            warnings.simplefilter("ignore", ConvergenceWarning)
            codebook = _entries(_normalized_levels(x, config, size, counts), config)
        if config.granularity != "group":
            # One table is learned from some of the rows.
            some = slice(None, None, max(1, x.size // SAMPLE) if config.granularity == "tensor" else 1)
            few, taken = np.ascontiguousarray(x[some]), cast(Parts, tuple(part[some].copy() for part in parts))
            least, entries = chosen(few, codebook, taken), codebook
            for _ in range(ROUNDS + config.refine):
                entries = _entries(_means(few, entries, taken, config, size, counts), config)
                error = chosen(few, entries, taken)
                if error >= least:
                    break
                least, codebook = error, entries
    chosen(x, codebook, parts)
    if moments is not None:
        turned = _Turned(codebook, parts, config, size)
        codes = round_with_feedback(x, turned.levels, moments, group_size=size, order=order, isa=isa)
        parts[0][...] = turned.codes(codes)
        damped = moments / moments.diagonal().mean() + DAMPING * np.eye(len(moments))
        for _ in range(config.refine):
            _rescale(x, codebook, parts, config, size, damped)
            turned = _Turned(codebook, parts, config, size)
            codes = descend(x, turned.codes(parts[0]), turned.levels, moments, group_size=size, isa=isa)
            parts[0][...] = turned.codes(codes)
    if config.activation is not None:
        _core.settle_groups(parts, len(x), x.shape[1], form, codebook)
    return codebook


def _grouped(x: NDArray[Any], size: int) -> NDArray[Any]:
    """(N, K) as (N, groups, size), zeros behind the last group."""
    padded = np.pad(x, [(0, 0), (0, -x.shape[1] % size)])
    return padded.reshape(len(x), -1, size)


def _normalized_levels(x: NDArray[Any], config: Codebook, size: int, counts: NDArray[Any]) -> NDArray[np.float64]:
    """The levels of each table, of weights over their group's largest, float64 (tables, levels)."""
    k = 2**config.nbits
    groups = _grouped(x, size)
    most = np.abs(groups).max(2, keepdims=True)
    unit = groups / np.where(most == 0, 1, most)
    # What a weight's error counts; not at all where it pads a group.
    weight = _grouped(np.broadcast_to(counts, x.shape), size) * np.square(most, dtype=np.float64)
    if config.granularity == "tensor":
        step = max(1, unit.size // SAMPLE)
        unit, weight = unit.reshape(-1)[::step], weight.reshape(-1)[::step]
        if not weight.any():
            return np.zeros((1, k))
        found = fit_levels(unit, k, method=cast(Any, config.method), sample_weight=weight / weight.max())
        return np.asarray(found.levels, np.float64)[None]
    rows = len(x) if config.granularity == "channel" else unit.shape[0] * unit.shape[1]
    unit, weight = unit.reshape(rows, -1), weight.reshape(rows, -1)
    largest = weight.max(1, keepdims=True)
    weight = np.where(largest == 0, 1, weight / np.where(largest == 0, 1, largest))
    return np.asarray(
        fit_levels_rows(unit, k, method=cast(Any, config.method), sample_weight=weight).levels, np.float64
    )


def _entries(levels: NDArray[np.float64], config: Codebook) -> NDArray[Any]:
    """Tables as they are stored, whose largest entry is 127, or 1."""
    most = np.abs(levels).max(1, keepdims=True)
    unit = levels / np.where(most == 0, 1, most)
    if config.activation is not None:
        return np.rint(127 * unit).astype(np.int8)[..., None]
    # To the nearest bfloat16, half to even.
    bits = unit.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)[..., None]


def _means(
    x: NDArray[Any], entries: NDArray[Any], parts: Parts, config: Codebook, size: int, counts: NDArray[Any]
) -> NDArray[np.float64]:
    """The levels for which the error is least, codes and multipliers as they are."""
    codes, multipliers, _, scale = parts
    tables, k = entries.shape[:2]
    # x ~ unit · entry, the entry over its greatest size
    unit = _of_weights((multipliers.astype(np.float64) - 128) * scale[:, None], size, x.shape[1])
    if config.activation is not None:
        unit *= 127 / 128
    at = codes + k * np.arange(len(x))[:, None] if tables > 1 else codes.astype(np.intp)
    weighted = counts * unit
    up = np.bincount(at.reshape(-1), (weighted * x).reshape(-1), tables * k)
    down = np.bincount(at.reshape(-1), (weighted * unit).reshape(-1), tables * k)
    # Where nothing has an entry it stays.
    old = entries.reshape(-1) / (127 if config.activation is not None else 1)
    levels = np.where(down > 0, up / np.where(down > 0, down, 1), old)
    return np.sort(levels.reshape(tables, k), axis=1)


def _levels(entries: NDArray[Any], parts: Parts, config: Codebook) -> NDArray[np.float32]:
    """What each group's codes stand for, float32 (N, groups, levels)."""
    _, multipliers, _, scale = parts
    n, groups = multipliers.shape
    shape = {"tensor": (1, 1), "channel": (n, 1), "group": (n, groups)}[config.granularity]
    return folded(entries[..., 0].reshape(*shape, -1), multipliers[..., None]) * scale[:, None, None]


class _Turned:
    """Each group's levels, ascending: those of negative multipliers are turned about, and
    so are their codes."""

    def __init__(self, entries: NDArray[Any], parts: Parts, config: Codebook, size: int) -> None:
        self.levels, self._down = _levels(entries, parts, config), parts[1] < 128
        self.levels[self._down] = self.levels[self._down][:, ::-1]
        self._size, self._last = size, 2**config.nbits - 1

    def codes(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Codes of ascending levels from those of the tables, or back."""
        return np.where(_of_weights(self._down, self._size, codes.shape[1]), self._last - codes, codes).astype(np.uint8)


def _rescale(
    x: NDArray[np.float32],
    entries: NDArray[Any],
    parts: Parts,
    config: Codebook,
    size: int,
    damped: NDArray[np.float64],
) -> None:
    """Chooses each row's multipliers again, codes as they are, where that lessens
    ``(x - x̂) H (x - x̂)ᵀ``: by its normal equations, rounded."""
    codes, multipliers, zeros, scale = parts
    n, groups = multipliers.shape
    one = (codes, np.full_like(multipliers, 129), zeros, scale)
    unit = values(entries.astype(np.float32) / (128 if entries.dtype == np.int8 else 1), one, config, size)
    unit, starts = unit.astype(np.float64), np.arange(groups) * size
    pairs = np.empty((n, groups, groups))
    for group, start in enumerate(starts):
        part = unit[:, start : start + size] @ damped[start : start + size]
        pairs[:, group] = np.add.reduceat(part * unit, starts, 1)
    right = np.add.reduceat(unit * (x.astype(np.float64) @ damped), starts, 1)
    diagonal = np.einsum("ngg->ng", pairs)
    diagonal += 1e-9 * diagonal.mean(1, keepdims=True) + np.finfo(np.float64).tiny
    best = np.clip(np.rint(np.linalg.solve(pairs, right[..., None])[..., 0]), -127, 127) + 128
    tried = (codes, best.astype(np.uint8), zeros, scale)
    errors = []
    for form in (parts, tried):
        off = x.astype(np.float64) - values(entries, form, config, size)
        errors.append(((off @ damped) * off).sum(1))
    better = errors[1] < errors[0]
    multipliers[better] = tried[1][better]


def _of_weights(groups: NDArray[Any], size: int, k: int) -> NDArray[Any]:
    """What groups have, of each of their weights, (N, K)."""
    return np.repeat(groups, size, axis=1)[:, :k]


def folded(entries: NDArray[Any], multipliers: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Entries times multipliers; of int8 entries over 128, to the nearest integer, halves up."""
    m = multipliers.astype(np.int32) - 128
    if entries.dtype == np.int8:
        return ((entries * m + 64) >> 7).astype(np.float32)
    return entries * m.astype(np.float32)


def values(entries: NDArray[Any], parts: Parts, config: Codebook, size: int) -> NDArray[np.float32]:
    """What codes stand for, float32 (N, K)."""
    codes, multipliers, _, scale = parts
    row, group = np.arange(len(codes))[:, None], np.arange(codes.shape[1]) // size
    table = {"tensor": 0, "channel": row, "group": row * multipliers.shape[1] + group}[config.granularity]
    return folded(entries[table, codes, 0], _of_weights(multipliers, size, codes.shape[1])) * scale[:, None]
