"""Layers' weights as the kernels read them, and how they are quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit import _core, _tables
from lowbit._check import FLOATS, aligned, as_array, check_int, core_view, new_out
from lowbit._tables import Parts
from lowbit.affine import check_moments, round_with_feedback
from lowbit.config import Codebook, Config, Int8, Uniform

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CodebookWeight",
    "GroupedWeight",
    "QuantizedWeight",
    "TiledMatrix",
    "Weight",
    "quantize_weight",
]

#: The longest block of a rotation.
MAX_ROTATION = 4096


@dataclass(frozen=True, eq=False)
class _Tiled:
    """Bytes in an order that kernels read, checked."""

    tiled: NDArray[np.uint8]
    k: int
    n: int

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return self.k, self.n

    def __post_init__(self) -> None:
        for name in ("k", "n"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), 0, 2**63 - 1))
        tiled = as_array("tiled", self.tiled, ("uint8",))
        if tiled.ndim != 1:
            raise ValueError(f"tiled: expected 1-D, got shape {tiled.shape}")
        object.__setattr__(self, "tiled", tiled)
        sizes = self._sizes()
        if tiled.size not in sizes:
            takes = " or ".join(map(str, sizes))
            raise ValueError(f"tiled: {self.k} by {self.n} takes {takes} bytes, got {tiled.size}")

    def _sizes(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def _weight(self) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
        """What the core takes for a weight: the bytes, and what they look up."""
        return self.tiled, None


class TiledMatrix(_Tiled):
    """An int8 matrix (K, N) in the order that the kernels read.

    ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled int8": the same
    bytes on every machine.
    """

    def _sizes(self) -> tuple[int, ...]:
        return (_core.tiled_len(self.k, self.n),)


@dataclass(frozen=True, eq=False)
class QuantizedWeight(TiledMatrix):
    """A layer's weight (N, K) in int8 with one scale for each output row.

    It is tiled as its transpose, a :class:`TiledMatrix` (K, N) that carries the
    scales, followed by K float32 if it is equalized (:class:`lowbit.Int8`).
    """

    config: Config = Int8()

    def codes(self) -> NDArray[np.int8]:
        """The codes in row order, int8 (N, K)."""
        return self._untile()[0]

    def scale(self) -> NDArray[np.float32]:
        """The rows' scales, float32 (N,)."""
        return self._untile()[1]

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rounded, float32 (K,); None for no such thing."""
        plain = _core.tiled_len(self.k, self.n)
        return None if self.tiled.size == plain else np.frombuffer(self.tiled[plain:].tobytes(), "<f4")

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that this stands for: ``codes() * scale()[:, None] * equalizer()``, float32 (N, K)."""
        weight = np.empty((self.n, self.k), np.float32)
        _core.lookup(None, self._weight, self.k, self.n, weight)
        return weight

    def _sizes(self) -> tuple[int, ...]:
        return _core.tiled_len(self.k, self.n), _core.weight_len(self.k, self.n, True)

    def _untile(self) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes = np.empty((self.n, self.k), np.int8)
        scale = np.empty(self.n, np.float32)
        _core.untile(self.tiled, self.k, self.n, codes, scale)
        return codes, scale


@dataclass(frozen=True, eq=False)
class _Grouped(_Tiled):
    """Tiled groups."""

    config: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        block, told = rotation_of(self.config, self.k), int.from_bytes(self.tiled[24:28].tobytes(), "little")
        if told != block:
            raise ValueError(f"tiled: expected blocks of {block} rotated by {self.config}, got {told}")

    def _sizes(self) -> tuple[int, ...]:
        return (_core.groups_len(self.k, self.n, *form_of(self.config, self.k)),)

    def codes(self) -> NDArray[np.uint8]:
        """The codes in row order, uint8 (N, K)."""
        return self.untile()[0]

    def dequantize(self) -> NDArray[np.float32]:
        """The weight that this stands for, float32 (N, K): integers, or entries times
        multipliers, times the row's scale, rotated back, times the equalizer."""
        weight = np.empty((self.n, self.k), np.float32)
        _core.lookup(None, self._weight, self.k, self.n, weight)
        return weight

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rotated and rounded, float32
        (K,); None for no such thing."""
        if not (self.config.equalize or rotation_of(self.config, self.k)):
            return None
        return np.frombuffer(self.tiled[self.tiled.size - 4 * self.k :].tobytes(), "<f4")

    def untile(self) -> Parts:
        """Codes (N, K), multipliers and zero points (N, groups), and scales (N,)."""
        parts = empty_parts(self.n, self.k, self.config)
        _core.untile_groups(self._weight, self.k, self.n, parts)
        return parts


@dataclass(frozen=True, eq=False)
class GroupedWeight(_Grouped):
    """A layer's weight (N, K) of 2 to 8 bits in groups (:class:`lowbit.Uniform`).

    ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled groups": the same
    bytes on every machine.
    """

    config: Uniform

    def __post_init__(self) -> None:
        if not isinstance(self.config, Uniform):
            raise TypeError(f"config: expected lowbit.Uniform(...), got {self.config!r}")
        super().__post_init__()

    def scale(self) -> NDArray[np.float32]:
        """The groups' scales, float32 (N, groups): multipliers times the rows' scales."""
        _, multipliers, _, scale = self.untile()
        return multipliers * scale[:, None]

    def zero_point(self) -> NDArray[np.uint8]:
        """The groups' zero points, uint8 (N, groups)."""
        return self.untile()[2]


@dataclass(frozen=True, eq=False)
class CodebookWeight(_Grouped):
    """A layer's weight (N, K) whose codes stand for entries of tables (:class:`lowbit.Codebook`).

    ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled groups": the same bytes on
    every machine. ``codebook`` (tables, 2**nbits, 1) is int8, or float32 or bfloat16 where the
    config's activation is None; one table, or one of each row, or of each row's groups one
    after the other. It is a tensor of its own: several weights may have the same one. Float
    tables that lowbit makes are float32 of bfloat16 values, so that ``.astype(bfloat16)`` of
    ml_dtypes loses nothing: half the bytes, and the same bits of products.
    """

    config: Codebook
    codebook: NDArray[Any]

    def __post_init__(self) -> None:
        if not isinstance(self.config, Codebook):
            raise TypeError(f"config: expected lowbit.Codebook(...), got {self.config!r}")
        super().__post_init__()
        object.__setattr__(self, "codebook", _codebook(self.codebook, self.config, self.n, self.k))

    @property
    def _weight(self) -> tuple[NDArray[np.uint8], NDArray[Any] | None]:
        return self.tiled, core_view(self.codebook)


Weight = QuantizedWeight | GroupedWeight | CodebookWeight

#: A weight's form as the core knows it.
Form = tuple[int, int, bool, int, "str | None", "str | None"]


def rotation_of(config: Config, k: int) -> int:
    """Inputs of each block that is rotated; 0 where none are."""
    block = min(k & -k, MAX_ROTATION)
    return block if isinstance(config, (Uniform, Codebook)) and config.rotate is not None and block >= 8 else 0


def group_size_of(config: Uniform | Codebook, k: int) -> int:
    """Codes of a group."""
    return -(-k // 16) * 16 if config.group_size is None else config.group_size


def tables_of(config: Codebook, n: int, k: int) -> int:
    """Tables of a weight (N, K)."""
    return {"tensor": 1, "channel": n, "group": n * -(-k // group_size_of(config, k))}[config.granularity]


def form_of(config: Uniform | Codebook, k: int) -> tuple[Form, bool]:
    """A weight's form as the core knows it, and whether it is equalized."""
    tables = config.granularity if isinstance(config, Codebook) else None
    symmetric = config.symmetric if isinstance(config, Uniform) else True
    rotation = rotation_of(config, k)
    return (config.nbits, group_size_of(config, k), symmetric, rotation, config.activation, tables), config.equalize


def empty_parts(n: int, k: int, config: Uniform | Codebook) -> Parts:
    """Room for a weight that is taken apart."""
    groups = -(-k // group_size_of(config, k))
    multipliers, zeros = (np.full((n, groups), 2 ** (config.nbits - 1), np.uint8) for _ in range(2))
    return np.empty((n, k), np.uint8), multipliers, zeros, np.empty(n, np.float32)


def rotated(x: NDArray[Any], block: int) -> NDArray[Any]:
    """Each block of the last axis times the Walsh-Hadamard matrix, as the core adds."""
    for stride in (2**i for i in range(block.bit_length() - 1)):
        pairs = x.reshape(-1, 2, stride)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1).reshape(x.shape)
    return x


def quantize_weight(
    w: ArrayLike,
    config: Config | None = None,
    *,
    importance: ArrayLike | None = None,
    second_moments: ArrayLike | None = None,
    order: Literal["activation", "index"] = "activation",
    codebook: ArrayLike | None = None,
    isa: str | None = None,
) -> Weight:
    """Quantizes and tiles a layer's weight.

    Parameters
    ----------
    w : array_like of float32, bfloat16, float16 or float64, (N, K)
        N outputs, K inputs, as `torch.nn.Linear` has it; at least one input.
    config : Config, optional
        How: :class:`lowbit.Int8` by default, :class:`lowbit.Uniform` or :class:`lowbit.Codebook`.
    importance : array_like of floats, (K,), optional
        How much the squared error of each input's weights counts where scales are
        searched (Uniform): the inputs' mean squares, say.
    second_moments : array_like of floats, (K, K), optional
        ``x.T @ x`` of inputs (rows, K), in place of an importance: scales are searched
        with its diagonal, and the codes chosen by :func:`lowbit.round_with_feedback`.
    order : {"activation", "index"}
        As there.
    codebook : array_like of int8, float32 or bfloat16, (tables, 2**nbits, 1), optional
        Tables that are used as they are, entries ascending, in the place of learned ones
        (Codebook): those of another :class:`CodebookWeight`, say.
    isa : str, optional

    Returns
    -------
    QuantizedWeight, GroupedWeight for Uniform, or CodebookWeight for Codebook

    Raises
    ------
    TypeError, ValueError
        Another dtype or rank, NaN or infinities, a config that is no weight's.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> w = lowbit.quantize_weight(np.array([[-1.27, 0.5]], np.float32), lowbit.Int8(equalize=False))
    >>> w.codes()
    array([[-127,   50]], dtype=int8)
    >>> config = lowbit.Uniform(4, 16, equalize=False)
    >>> lowbit.quantize_weight(np.arange(16, dtype=np.float32)[None], config).codes()
    array([[ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15]],
          dtype=uint8)
    """
    config = Int8() if config is None else config
    if not isinstance(config, (Int8, Uniform, Codebook)):
        raise TypeError(f"config: expected lowbit.Int8(), Uniform(...) or Codebook(...), got {config!r}")
    if codebook is not None and not isinstance(config, Codebook):
        raise ValueError(f"codebook: expected None with {type(config).__name__}, got {type(codebook).__name__}")
    w = as_array("w", w, FLOATS, min_ndim=2)
    if w.ndim != 2 or w.shape[1] == 0:
        raise ValueError(f"w: expected 2-D (N, K) with K of at least 1, got shape {w.shape}")
    n, k = w.shape
    w = w.astype(np.float32, copy=False)
    if isinstance(config, Int8):
        for name, given in (("importance", importance), ("second_moments", second_moments)):
            if given is not None:
                raise ValueError(f"{name}: expected None with Int8, whose scales are not searched")
        tiled = aligned(_core.weight_len(k, n, config.equalize))
        _core.quantize_weight(w, n, k, config.equalize, tiled, isa)
        return QuantizedWeight(tiled, k, n, config)
    moments = None
    if second_moments is not None:
        if importance is not None:
            raise ValueError("importance: expected None beside second_moments, whose diagonal it is")
        moments = check_moments(second_moments, k)
    elif importance is not None:
        importance = vector("importance", importance, k)
        if not (np.isfinite(importance).all() and (importance >= 0).all()):
            raise ValueError(f"importance: expected {k} finite values of at least 0")
    if isinstance(config, Uniform):
        return _uniform(w, config, importance, moments, order, isa)
    return _coded(w, config, importance, moments, codebook, order, isa)


def _uniform(
    w: NDArray[np.float32], config: Uniform, importance: Any, moments: Any, order: Any, isa: str | None
) -> GroupedWeight:
    (n, k), equalizer = w.shape, None
    block = rotation_of(config, k)
    form, equalized = form_of(config, k)
    if moments is not None:
        if block:
            equalizer = _equalizer(w, form, equalized, moments)
            moments = _of_quantized(moments, equalizer, block)
        importance = moments.diagonal().astype(np.float32)
    tiled = aligned(_core.groups_len(k, n, form, equalized))
    searched = config.scale == "mse"
    _core.quantize_weight_groups(w, n, k, form, equalized, searched, importance, equalizer, tiled, isa)
    weight = GroupedWeight(tiled, k, n, config if block else replace(config, rotate=None))
    if moments is not None:
        _feed_back(w, weight, moments, order, isa)
    return weight


def _coded(
    w: NDArray[np.float32],
    config: Codebook,
    importance: Any,
    moments: Any,
    codebook: Any,
    order: Any,
    isa: str | None,
) -> CodebookWeight:
    n, k = w.shape
    if not np.isfinite(w).all():
        raise ValueError("w: expected finite weights, got NaN or an infinity")
    block = rotation_of(config, k)
    config = config if block else replace(config, rotate=None)
    form, equalized = form_of(config, k)
    tiled = aligned(_core.groups_len(k, n, form, equalized))
    size = tiled.size
    if equalized or block:
        equalizer = _equalizer(w, form, equalized, moments if block else None)
        size -= equalizer.nbytes
        tiled[size:] = equalizer.view(np.uint8)
        w = _as_quantized(w, equalizer, block)
        if moments is not None:
            moments = _of_quantized(moments, equalizer, block)
        else:
            importance = _importance(np.ones(k, np.float32) if importance is None else importance, equalizer, block)
    if moments is not None:
        importance = moments.diagonal().astype(np.float32)
    if codebook is not None:
        codebook = _codebook(codebook, config, n, k)
    parts = empty_parts(n, k, config)
    used = _tables.fit(
        w, config, form, parts, importance=importance, moments=moments, codebook=codebook, order=order, isa=isa
    )
    if codebook is None:
        codebook = new_out(used.shape, used.dtype)
        codebook[...] = used
    _core.tile_groups(parts, n, k, form, core_view(codebook), tiled[:size])
    return CodebookWeight(tiled, k, n, config, codebook)


def _codebook(codebook: ArrayLike, config: Codebook, n: int, k: int) -> NDArray[Any]:
    """The tables of a weight (N, K), checked."""
    dtypes = ("float32", "bfloat16") if config.activation is None else ("int8",)
    array = as_array("codebook", codebook, dtypes, min_ndim=3)
    expected = tables_of(config, n, k), 2**config.nbits, 1
    if array.shape != expected:
        raise ValueError(f"codebook: expected shape {expected}, got {array.shape}")
    return array


def _equalizer(w: NDArray[np.float32], form: Form, equalized: bool, moments: Any) -> NDArray[np.float32]:
    """What each input is multiplied with before it is rotated and rounded."""
    equalizer = np.empty(w.shape[1], np.float32)
    squares = None if moments is None else moments.diagonal().copy()
    _core.groups_equalizer(w, len(w), w.shape[1], form, equalized, squares, equalizer)
    return equalizer


def _as_quantized(w: NDArray[np.float32], equalizer: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """A weight as it is rounded."""
    return rotated(w / (equalizer * np.float32(block)), block) if block else w / equalizer


def _importance(counts: NDArray[np.float32], equalizer: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """What an error of each input's weights counts once they are as they are rounded."""
    counts = counts / max(counts.max(), np.finfo(np.float32).tiny) * (equalizer * np.float32(max(block, 1))) ** 2
    # Every rotated input has a part of all of its block.
    return np.repeat(counts.reshape(-1, block).mean(1), block).astype(np.float32) if block else counts


def _of_quantized(moments: NDArray[np.float64], equalizer: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    """The second moments of inputs as they are quantized; what rounding leaves below 0 is 0."""
    moments = moments * np.outer(equalizer, equalizer).astype(np.float64)
    if block:
        moments = rotated(rotated(moments, block).T, block)
        np.fill_diagonal(moments, np.maximum(moments.diagonal(), 0))
    return moments


def _feed_back(w: Any, weight: GroupedWeight, moments: Any, order: Any, isa: str | None) -> None:
    """Chooses the codes of a weight again, its scales and zero points as they are;
    where it is rotated, ``moments`` are of rotated inputs."""
    codes, multipliers, zeros, scale = weight.untile()
    block = rotation_of(weight.config, weight.k)
    if (equalizer := weight.equalizer()) is not None:
        w = _as_quantized(w, equalizer, block)
        if not block:
            moments = _of_quantized(moments, equalizer, 0)
    form, _ = form_of(weight.config, weight.k)
    steps = (np.arange(2**weight.config.nbits) - zeros[..., None].astype(np.int32)) * multipliers[..., None]
    levels = steps.astype(np.float32) * scale[:, None, None]
    codes = round_with_feedback(w, levels, moments, group_size=weight.config.group_size, order=order, isa=isa)
    size = weight.tiled.size - (0 if equalizer is None else 4 * weight.k)
    parts = codes, multipliers, zeros, scale
    _core.tile_groups(parts, weight.n, weight.k, form, None, weight.tiled[:size])


def vector(name: str, values: ArrayLike, n: int) -> NDArray[np.float32]:
    """float32 (n,) of floats."""
    array = as_array(name, values, FLOATS)
    if array.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), got {array.shape}")
    return array.astype(np.float32, copy=False)
