"""The nodes of a spiking network: what each takes, gives and does.

A value is an array (T, N, ...), channels last, of one of four kinds: ``spikes``
(uint8, 0 and 1), ``counts`` (uint8, sums of spikes), ``sums`` (int32) and
``numbers`` (float32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lowbit._check import as_array, check_int
from lowbit.neurons import IF
from lowbit.spike_product import SpikeWeight, spike_conv2d, spike_matmul, tile_spike_weight
from lowbit.spiking import kernel_levels

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Add",
    "Attention",
    "AvgPool2d",
    "Conv2d",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "Mean",
    "Neurons",
    "Node",
    "Potentials",
    "Scale",
    "Sum",
    "SumPool2d",
    "Tokens",
]

Kind = Literal["spikes", "counts", "sums", "numbers"]
Shape = tuple[int, ...]
Pair = tuple[int, int]
Array = Any

DTYPES: dict[str, np.dtype[Any]] = {
    "spikes": np.dtype(np.uint8),
    "counts": np.dtype(np.uint8),
    "sums": np.dtype(np.int32),
    "numbers": np.dtype(np.float32),
}
NO_PADDING = ((0, 0), (0, 0))
BYTES = ("spikes", "counts")


class NotPlanned(Exception):
    """A node that runs by itself."""


@dataclass(frozen=True, eq=False)
class Node:
    """What all of them have. A network knows them by name and gives each what it reads."""

    #: The names of its inputs, in their order; None for any number of them.
    ports: ClassVar[tuple[str, ...] | None] = ("input",)

    def shape(self, *shapes: Shape) -> Shape:
        """Of its output for one step of one stream.

        Raises
        ------
        ValueError
            The inputs do not fit.
        """
        raise NotImplementedError

    def kind(self, *kinds: Kind) -> Kind:
        """Of its output.

        Raises
        ------
        ValueError
            It does not take these.
        """
        raise NotImplementedError

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        """Its output, (T, N, ...)."""
        raise NotImplementedError

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        """Appends it to a network of the core: the number of its value there.

        Raises
        ------
        NotPlanned
            The core has no such node, or not for these kinds.
        """
        raise NotPlanned


@dataclass(frozen=True, eq=False)
class _Weighted(Node):
    """A weight (a `SpikeWeight`, or an array to be tiled) and where its sums start."""

    weight: Any
    bias: Any = None

    axes: ClassVar[int] = 2

    def __post_init__(self) -> None:
        weight = self.weight if isinstance(self.weight, SpikeWeight) else tile_spike_weight(self.weight)
        if len(weight.shape) != self.axes:
            expected = "(K, N)" if self.axes == 2 else "(KH, KW, C, O)"
            raise ValueError(f"weight: expected shape {expected}, got {weight.shape}")
        object.__setattr__(self, "weight", weight)
        if self.bias is not None:
            bias = as_array("bias", self.bias, (weight.sums.name,))
            if bias.shape != (weight.n,):
                raise ValueError(f"bias: expected shape ({weight.n},), got {bias.shape}")
            object.__setattr__(self, "bias", bias)

    def kind(self, *kinds: Kind) -> Kind:
        if self.weight.dtype == np.float32:
            if kinds[0] == "sums":
                raise ValueError("a weight of floats takes spikes, counts or numbers, not int32 sums")
            return "numbers"
        if kinds[0] in ("sums", "numbers"):
            raise ValueError(f"a weight of {self.weight.nbits} bits takes spikes or counts, not {kinds[0]}")
        return "sums"

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        if kinds[0] not in BYTES:
            raise NotPlanned
        w = self.weight
        return core.product(label, reads[0], w.tiled, w.k, w.n, w.nbits, self.bias, self._sizes(shapes[0]))

    def _sizes(self, shape: Shape) -> Any:
        """Of a convolution, as the core knows them."""
        return None

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.weight.k * self.weight.n + (0 if self.bias is None else self.weight.n)

    def products(self, shape: Shape) -> int:
        """Of a dense input of this shape, one step."""
        raise NotImplementedError

    def operations(self, hits: NDArray[np.int64]) -> int:
        """Pairs of an input that is not 0 and a synapse, from how often each input was so."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Linear(_Weighted):
    """``bias + x @ weight`` along the last axis.

    Parameters
    ----------
    weight : SpikeWeight, or array_like of int8 or float32, (K, N)
        Codes give int32 sums, of spikes and counts alone.
    bias : array_like of int32, or float32 with a weight of floats, (N,), optional
        As of `lowbit.spike_matmul`.

    Notes
    -----
    Sums of floats go by ascending input, whatever the input's kind.
    """

    def shape(self, *shapes: Shape) -> Shape:
        if not shapes[0] or shapes[0][-1] != self.weight.k:
            raise ValueError(f"expected (..., {self.weight.k}), got {shapes[0]}")
        return (*shapes[0][:-1], self.weight.n)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        if kinds[0] == "numbers":
            return _ordered_product(values[0], self.weight.untile(), self.bias)
        return spike_matmul(values[0], self.weight, self.bias, counts=kinds[0] == "counts")

    def products(self, shape: Shape) -> int:
        return math.prod(shape) * self.weight.n

    def operations(self, hits: NDArray[np.int64]) -> int:
        return int(hits.sum()) * self.weight.n


@dataclass(frozen=True, eq=False)
class Conv2d(_Weighted):
    """A convolution of (H, W, C).

    Parameters
    ----------
    weight : SpikeWeight, or array_like of int8 or float32, (KH, KW, C, O)
    bias : array_like of int32, or float32 with a weight of floats, (O,), optional
    stride : pair of int
    padding : pair of pairs of int
        Before and after H, before and after W.
    """

    stride: Pair = (1, 1)
    padding: tuple[Pair, Pair] = NO_PADDING

    axes: ClassVar[int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        _set_window(self)

    def shape(self, *shapes: Shape) -> Shape:
        kh, kw, c, o = self.weight.shape
        if len(shapes[0]) != 3 or shapes[0][2] != c:
            raise ValueError(f"expected (H, W, {c}), got {shapes[0]}")
        return (*_windows(shapes[0], (kh, kw), self.stride, self.padding), o)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        if kinds[0] != "numbers":
            counts = kinds[0] == "counts"
            options: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "counts": counts}
            return spike_conv2d(values[0], self.weight, self.bias, **options)
        kh, kw, c, o = self.weight.shape
        x, (sy, sx) = _padded(values[0], self.padding), self.stride
        oh, ow = _windows(values[0].shape[-3:], (kh, kw), self.stride, self.padding)
        w = self.weight.untile()
        out = np.zeros((*x.shape[:-3], oh, ow, o), np.float32)
        out += 0 if self.bias is None else self.bias
        for i in range(kh):
            for j in range(kw):
                part = x[..., i : i + sy * (oh - 1) + 1 : sy, j : j + sx * (ow - 1) + 1 : sx, :]
                for channel in range(c):
                    out += part[..., channel, None] * w[i, j, channel]
        return out

    def products(self, shape: Shape) -> int:
        c, o = self.weight.shape[2:]
        ones = np.ones(shape[:2], np.int64)
        return int(self._reach(ones).sum()) * c * o

    def operations(self, hits: NDArray[np.int64]) -> int:
        return int(self._reach(hits.sum(-1)).sum()) * self.weight.n

    def _sizes(self, shape: Shape) -> Any:
        return shape, self.weight.shape[:2], self.stride, self.padding

    def _reach(self, hits: NDArray[np.int64]) -> NDArray[np.int64]:
        """Times the output places that each pixel reaches."""
        sizes = _windows((*hits.shape, 0), self.weight.shape[:2], self.stride, self.padding)
        for axis in (0, 1):
            reached = np.zeros(hits.shape[axis], np.int64)
            for tap in range(self.weight.shape[axis]):
                at = np.arange(sizes[axis]) * self.stride[axis] + tap - self.padding[axis][0]
                np.add.at(reached, at[(at >= 0) & (at < len(reached))], 1)
            hits = hits * (reached[:, None] if axis == 0 else reached)
        return hits


@dataclass(frozen=True, eq=False)
class Neurons(Node):
    """Spiking neurons, one for each number of the input: their spikes.

    Parameters
    ----------
    neuron : IF, LIF, CubaLIF or ALIF
        int32 sums are taken by those that `lowbit.simulate` takes them for; spikes and
        counts become float32.
    """

    neuron: IF

    def __post_init__(self) -> None:
        if not isinstance(self.neuron, IF):
            raise TypeError(f"neuron: expected an IF, LIF, CubaLIF or ALIF, got {self.neuron!r}")

    def shape(self, *shapes: Shape) -> Shape:
        if not shapes[0]:
            raise ValueError("expected at least one axis, got ()")
        for name in ("v_threshold", "v_reset", "bias", "tau", "beta", "v_leak", "tau_syn", "alpha", "w_in"):
            value = np.shape(getattr(self.neuron, name, 0.0))
            if math.prod(value) != 1 and value != shapes[0][len(shapes[0]) - len(value) :]:
                raise ValueError(f"{name}: expected one number, or the last axes of {shapes[0]}, got {value}")
        return shapes[0]

    def kind(self, *kinds: Kind) -> Kind:
        return "spikes"

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        dtype = DTYPES["sums" if kinds[0] == "sums" else "numbers"]
        levels = kernel_levels(self.neuron, (1, *shapes[0]), dtype)
        return core.neurons(label, reads[0], levels, kinds[0] == "sums", isinstance(self, Potentials))


@dataclass(frozen=True, eq=False)
class Potentials(Neurons):
    """The neurons' potentials after each step, for a readout; with ``reset="none"`` a leaky integrator."""

    def kind(self, *kinds: Kind) -> Kind:
        return "sums" if kinds[0] == "sums" else "numbers"


@dataclass(frozen=True, eq=False)
class _Pool(Node):
    kernel: Pair
    stride: Any = None
    padding: tuple[Pair, Pair] = NO_PADDING

    def __post_init__(self) -> None:
        object.__setattr__(self, "kernel", _pair("kernel", self.kernel, 1))
        if self.stride is None:
            object.__setattr__(self, "stride", self.kernel)
        _set_window(self)

    def shape(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != 3:
            raise ValueError(f"expected (H, W, C), got {shapes[0]}")
        return (*_windows(shapes[0], self.kernel, self.stride, self.padding), shapes[0][2])

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        if kinds[0] not in BYTES or isinstance(self, AvgPool2d):
            raise NotPlanned
        sizes = shapes[0], self.kernel, self.stride, self.padding
        return core.pool(label, reads[0], sizes, isinstance(self, SumPool2d))

    def _pooled(self, x: Array, ufunc: np.ufunc) -> Array:
        """Windows of ``x`` by ``ufunc``, along W then along H."""
        oh, ow = _windows(x.shape[-3:], self.kernel, self.stride, self.padding)
        x = _padded(x, self.padding)
        (kh, kw), (sy, sx) = self.kernel, self.stride
        first = x[..., : sy * (oh - 1) + 1 : sy, :, :]
        rows = first if kh == 1 else ufunc(first, x[..., 1 : sy * (oh - 1) + 2 : sy, :, :])
        for i in range(2, kh):
            ufunc(rows, x[..., i : i + sy * (oh - 1) + 1 : sy, :, :], out=rows)
        # Long loops over pixels are faster than short ones over channels.
        c = x.shape[-1]
        words = x.dtype == np.uint8 and c % 8 == 0 and ufunc in (np.add, np.bitwise_or) and rows.flags.c_contiguous
        rows = rows.view(np.uint64) if words else rows
        out = np.empty((*rows.shape[:-2], ow, rows.shape[-1]), rows.dtype)
        for channel in range(rows.shape[-1]) if rows.shape[-1] < 16 else (slice(None),):
            wide, put = rows[..., channel], out[..., channel]
            taken = [wide[..., j : j + sx * (ow - 1) + 1 : sx] for j in range(kw)]
            if isinstance(channel, slice):
                taken = [rows[..., j : j + sx * (ow - 1) + 1 : sx, :] for j in range(kw)]
            if kw == 1:
                put[...] = taken[0]
            else:
                ufunc(taken[0], taken[1], out=put)
            for more in taken[2:]:
                ufunc(put, more, out=put)
        return out.view(x.dtype) if words else out

    def _sums(self, kind: Kind, x: Array) -> Array:
        """Sums of windows: uint8 where they fit by their number, else wider."""
        most = math.prod(self.kernel)
        if kind == "counts":
            most *= int(x.max(initial=0))
        return self._pooled(x if kind in ("sums", "numbers") or most <= 255 else x.astype(np.int32), np.add)


@dataclass(frozen=True, eq=False)
class SumPool2d(_Pool):
    """Sums of windows of (H, W, C): counts of spikes.

    Parameters
    ----------
    kernel : pair of int
    stride : pair of int, optional
        That of ``kernel`` by default.
    padding : pair of pairs of int
        Zeros before and after H, before and after W.
    """

    def kind(self, *kinds: Kind) -> Kind:
        return "counts" if kinds[0] == "spikes" else kinds[0]

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        out = self._sums(kinds[0], values[0])
        return _as_counts(out) if kinds[0] in ("spikes", "counts") else out


@dataclass(frozen=True, eq=False)
class AvgPool2d(_Pool):
    """Means of windows of (H, W, C), padding counted: numbers. Takes what `SumPool2d` takes."""

    def kind(self, *kinds: Kind) -> Kind:
        return "numbers"

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        return self._sums(kinds[0], values[0]).astype(np.float32) / np.float32(math.prod(self.kernel))


@dataclass(frozen=True, eq=False)
class MaxPool2d(_Pool):
    """The largest of each window of (H, W, C): of spikes, whether any. Takes what `SumPool2d` takes.

    Padding is not looked at.
    """

    def kind(self, *kinds: Kind) -> Kind:
        return kinds[0]

    def shape(self, *shapes: Shape) -> Shape:
        for (before, after), size in zip(self.padding, self.kernel, strict=True):
            if max(before, after) >= size:
                raise ValueError(f"padding: expected less than the kernel {self.kernel}, got {self.padding}")
        return super().shape(*shapes)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        if kinds[0] == "spikes":
            return self._pooled(values[0], np.bitwise_or)
        x, dtype = values[0], values[0].dtype
        if self.padding != NO_PADDING:
            low = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
            around = ((0, 0),) * (x.ndim - 3)
            x = np.pad(x, (*around, *self.padding, (0, 0)), constant_values=low)
            return MaxPool2d(self.kernel, self.stride)._pooled(x, np.maximum)
        return self._pooled(x, np.maximum)


@dataclass(frozen=True, eq=False)
class Flatten(Node):
    """All axes of a step become one.

    Parameters
    ----------
    channels_first : bool
        In the order (C, H, W), as other frameworks flatten images. What `from_nir`
        reads has the weights behind in the order (H, W, C) instead, where it can.
    """

    channels_first: bool = False

    def shape(self, *shapes: Shape) -> Shape:
        return (math.prod(shapes[0]),)

    def kind(self, *kinds: Kind) -> Kind:
        return kinds[0]

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        if not self.channels_first or len(shapes[0]) == 1:
            return reads[0]
        if kinds[0] not in BYTES:
            raise NotPlanned
        return core.channels_first(label, reads[0], (math.prod(shapes[0][:-1]), 1, shapes[0][-1]))

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        x = np.moveaxis(values[0], -1, 2) if self.channels_first else values[0]
        return np.ascontiguousarray(x).reshape(*x.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class Tokens(Node):
    """(H, W, C) to (H · W, C)."""

    def shape(self, *shapes: Shape) -> Shape:
        if len(shapes[0]) != 3:
            raise ValueError(f"expected (H, W, C), got {shapes[0]}")
        return (shapes[0][0] * shapes[0][1], shapes[0][2])

    def kind(self, *kinds: Kind) -> Kind:
        return kinds[0]

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        return reads[0]

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        return values[0].reshape(*values[0].shape[:2], -1, values[0].shape[-1])


@dataclass(frozen=True, eq=False)
class Add(Node):
    """The sum of its inputs: of spikes and counts, counts of at most 255."""

    ports: ClassVar[None] = None

    def shape(self, *shapes: Shape) -> Shape:
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(f"expected inputs of one shape, got {', '.join(map(str, shapes))}")
        return shapes[0]

    def kind(self, *kinds: Kind) -> Kind:
        if "numbers" in kinds and "sums" in kinds:
            raise ValueError("expected float32 numbers or int32 sums to add, got both")
        if len(kinds) == 1:
            return kinds[0]
        return "numbers" if "numbers" in kinds else "sums" if "sums" in kinds else "counts"

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        if len(reads) == 1:
            return reads[0]
        if any(kind not in BYTES for kind in kinds):
            raise NotPlanned
        return core.add(label, reads)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        kind = self.kind(*kinds)
        if kind == "counts":
            total = values[0].astype(np.uint16)
            for x in values[1:]:
                total += x
            return _as_counts(total)
        total = values[0].astype(DTYPES[kind])
        for x in values[1:]:
            total += x
        return total


@dataclass(frozen=True, eq=False)
class Scale(Node):
    """Numbers times a constant, one or an array of the last axes' shape, in float32."""

    scale: Any

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        if not np.isfinite(scale).all():
            raise ValueError("scale: expected finite numbers")
        object.__setattr__(self, "scale", scale)

    def shape(self, *shapes: Shape) -> Shape:
        own = self.scale.shape
        if self.scale.size != 1 and own != shapes[0][len(shapes[0]) - len(own) :]:
            raise ValueError(f"scale: expected one number, or the last axes of {shapes[0]}, got {own}")
        return shapes[0]

    def kind(self, *kinds: Kind) -> Kind:
        return "numbers"

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        return values[0].astype(np.float32) * self.scale


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """Attention of spikes without softmax: ``query (keyᵀ value)`` in each head, exact int32 sums.

    Query, key and value are spikes (tokens, width); a head has ``width / heads``
    neighbouring channels.

    Parameters
    ----------
    heads : int

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.snn import Attention
    >>> q = k = v = np.array([[1, 1], [0, 1]], np.uint8)[None, None]
    >>> Attention(1).run(("spikes",) * 3, q, k, v)[0, 0]
    array([[2, 3],
           [1, 2]], dtype=int32)
    """

    heads: int = 1

    ports: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", check_int("heads", self.heads, 1))

    def shape(self, *shapes: Shape) -> Shape:
        query, key, value = shapes
        if any(len(shape) != 2 for shape in shapes) or key != value or query[1] != key[1]:
            raise ValueError(f"expected query, key and value of (tokens, width), got {query}, {key}, {value}")
        if query[1] % self.heads:
            raise ValueError(f"heads: expected a divisor of the width {query[1]}, got {self.heads}")
        if query[1] // self.heads * key[0] >= 2**31:
            raise ValueError(f"expected sums that int32 holds, got {key[0]} tokens of {query[1]}")
        return query

    def kind(self, *kinds: Kind) -> Kind:
        if any(kind != "spikes" for kind in kinds):
            raise ValueError(f"expected spikes, got {', '.join(kinds)}")
        return "sums"

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        return core.attention(label, reads, shapes[0][-1], self.heads)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        query, key, _ = values
        steps, streams, tokens, width = query.shape
        # Every partial sum is an integer below this, which the float holds.
        exact = np.float32 if width // self.heads * key.shape[2] < 2**24 else np.float64
        q, k, v = (x.reshape(steps, streams, x.shape[2], self.heads, -1).swapaxes(2, 3).astype(exact) for x in values)
        out = q @ (k.swapaxes(-1, -2) @ v)
        return np.ascontiguousarray(out.swapaxes(2, 3).reshape(steps, streams, tokens, width), np.int32)


@dataclass(frozen=True, eq=False)
class _Reduction(Node):
    #: Of one step: 0 is the first behind T and N. All by default.
    axes: Any = None

    def _axes(self, shape: Shape) -> tuple[int, ...]:
        axes = range(len(shape)) if self.axes is None else np.atleast_1d(self.axes).tolist()
        for axis in axes:
            if not -len(shape) <= axis < len(shape):
                raise ValueError(f"axes: expected axes of {shape}, got {self.axes}")
        return tuple(sorted({axis % len(shape) for axis in axes}))

    def shape(self, *shapes: Shape) -> Shape:
        axes = self._axes(shapes[0])
        return tuple(size for axis, size in enumerate(shapes[0]) if axis not in axes) or (1,)

    def _total(self, x: Array) -> Array:
        """Integers in int64; floats one after the other."""
        axes = self._axes(x.shape[2:])
        kept = self.shape(x.shape[2:])
        if x.dtype.kind != "f":
            return x.sum(tuple(axis + 2 for axis in axes), dtype=np.int64).reshape(*x.shape[:2], *kept)
        front = np.moveaxis(x, [axis + 2 for axis in axes], range(len(axes)))
        front = front.reshape(-1, *front.shape[len(axes) :])
        total = front[0].copy()
        for part in front[1:]:
            total += part
        return total.reshape(*x.shape[:2], *kept)


@dataclass(frozen=True, eq=False)
class Sum(_Reduction):
    """Sums over axes of each step, all by default: of integers int32.

    Parameters
    ----------
    axes : int or sequence of int, optional
        0 is the first axis behind T and N.
    """

    def kind(self, *kinds: Kind) -> Kind:
        return "numbers" if kinds[0] == "numbers" else "sums"

    def plan(self, core: Any, label: str, kinds: Sequence[Kind], shapes: Sequence[Shape], reads: list[int]) -> int:
        axes = self._axes(shapes[0])
        if kinds[0] != "sums" or axes != tuple(range(axes[0], axes[-1] + 1)):
            raise NotPlanned
        before, after = shapes[0][: axes[0]], shapes[0][axes[-1] + 1 :]
        sizes = math.prod(before), math.prod(shapes[0][axis] for axis in axes), math.prod(after)
        return core.total(label, reads[0], sizes)

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        total = self._total(values[0])
        if total.dtype.kind != "f" and total.size and np.abs(total).max() >= 2**31:
            raise ValueError("Sum: expected sums that int32 holds, got more")
        return total.astype(DTYPES[self.kind(*kinds)])


@dataclass(frozen=True, eq=False)
class Mean(_Reduction):
    """Means over axes of each step, all by default. Takes what `Sum` takes."""

    def kind(self, *kinds: Kind) -> Kind:
        return "numbers"

    def run(self, kinds: tuple[Kind, ...], *values: Array) -> Array:
        shape = values[0].shape[2:]
        count = math.prod(shape[axis] for axis in self._axes(shape))
        return self._total(values[0]).astype(np.float32) / np.float32(count)


def _ordered_product(x: Array, w: NDArray[np.float32], bias: ArrayLike | None) -> NDArray[np.float32]:
    """Products and sums each rounded, from the bias on by ascending input."""
    out = np.zeros((*x.shape[:-1], w.shape[1]), np.float32)
    out += 0 if bias is None else bias
    for k, row in enumerate(w):
        out += x[..., k, None] * row
    return out


def _as_counts(total: Array) -> NDArray[np.uint8]:
    if total.dtype == np.uint8:
        return total
    if total.size and (most := total.max()) > 255:
        raise ValueError(f"expected counts of at most 255 spikes, got {most}")
    return total.astype(np.uint8)


def _pair(name: str, pair: Any, low: int) -> Pair:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: expected a pair of ints, got {pair!r}")
    return check_int(name, pair[0], low), check_int(name, pair[1], low)


def _set_window(node: Any) -> None:
    """Checks a node's stride and padding."""
    object.__setattr__(node, "stride", _pair("stride", node.stride, 1))
    if not isinstance(node.padding, (tuple, list)) or len(node.padding) != 2:
        raise TypeError(f"padding: expected ((top, bottom), (left, right)), got {node.padding!r}")
    object.__setattr__(node, "padding", tuple(_pair("padding", sides, 0) for sides in node.padding))


def _windows(shape: Shape, kernel: Shape, stride: Pair, padding: tuple[Pair, Pair]) -> Pair:
    """How many windows fit along H and W."""
    sizes = []
    for size, k, step, (before, after) in zip(shape[:2], kernel, stride, padding, strict=True):
        if size + before + after < k:
            raise ValueError(f"expected an image that holds the kernel {kernel}, got {shape[:2]} with {padding}")
        sizes.append((size + before + after - k) // step + 1)
    return sizes[0], sizes[1]


def _padded(x: Array, padding: tuple[Pair, Pair]) -> Array:
    return x if padding == NO_PADDING else np.pad(x, (*((0, 0),) * (x.ndim - 3), *padding, (0, 0)))
