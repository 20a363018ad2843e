"""Products and convolutions of spikes with weights, at a cost proportional to the spikes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import aligned, as_array, check_int, check_out, new_out

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SpikeWeight", "spike_conv2d", "spike_matmul", "spike_operations", "tile_spike_weight"]

Pair = tuple[int, int]

_U8, _I8, _I32, _F32 = (np.dtype(name) for name in ("uint8", "int8", "int32", "float32"))
#: What the core knows float32 by.
_FLOATS = 32
_INPUTS = ("uint8", "bool")


@dataclass(frozen=True, eq=False, repr=False)
class SpikeWeight:
    """A weight in the order in which products of spikes read it.

    :func:`tile_spike_weight` makes one. ``tiled`` is uint8, laid out as FORMATS.md says under "Tiled
    spike weights": the same bytes on every machine.

    Attributes
    ----------
    tiled : ndarray of uint8
    shape : tuple of int
        (K, N): K inputs, N outputs; or (KH, KW, C, O), a convolution's.
    nbits : int
        Bits of a signed code, 2, 4 or 8; 32 for float32.
    """

    tiled: NDArray[np.uint8]
    shape: tuple[int, ...]
    nbits: int

    def __post_init__(self) -> None:
        shape = tuple(check_int("shape", size, 0) for size in self.shape)
        if len(shape) not in (2, 4):
            raise ValueError(f"shape: expected (K, N) or (KH, KW, C, O), got {shape}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "nbits", check_int("nbits", self.nbits, 2, 32))
        tiled = as_array("tiled", self.tiled, ("uint8",))
        expected = _core.spike_weight_len(self.k, self.n, self.nbits)
        if tiled.shape != (expected,):
            raise ValueError(f"tiled: expected {expected} bytes, got shape {tiled.shape}")
        if tiled.ctypes.data % 64:  # as from a file or a pickle
            tiled, given = aligned(expected), tiled
            tiled[:] = given
        object.__setattr__(self, "tiled", tiled)

    @property
    def k(self) -> int:
        """Inputs of an output: K, or KH · KW · C."""
        return math.prod(self.shape[:-1])

    @property
    def n(self) -> int:
        """Outputs."""
        return self.shape[-1]

    @property
    def dtype(self) -> np.dtype:
        """Of the weight's values: int8 or float32."""
        return _F32 if self.nbits == _FLOATS else _I8

    @property
    def sums(self) -> np.dtype:
        """Of the products' sums: int32 or float32."""
        return _F32 if self.nbits == _FLOATS else _I32

    def untile(self) -> NDArray[Any]:
        """The weight as it came, of :attr:`shape` and :attr:`dtype`."""
        out = np.empty(self.shape, self.dtype)
        _core.untile_spike_weight(self.tiled, self.k, self.n, self.nbits, out)
        return out

    def __repr__(self) -> str:
        what = "float32" if self.nbits == _FLOATS else f"{self.nbits} bits"
        return f"SpikeWeight(shape={self.shape}, {what}, {self.tiled.nbytes} bytes)"


def tile_spike_weight(w: ArrayLike, nbits: int | None = None) -> SpikeWeight:
    """Tiles a weight once, for many products.

    Parameters
    ----------
    w : array_like of int8 or float32, (K, N) or (KH, KW, C, O)
        Signed codes, or finite floats. Of a layer's weight (outputs, inputs) the transpose; of
        torch's convolution weight ``w.transpose(2, 3, 1, 0)``.
    nbits : int, optional
        Bits of a code, 8 (the default), 4 or 2: codes of -8 to 7 and -2 to 1 are stored packed.
        Not with floats.

    Returns
    -------
    SpikeWeight

    Raises
    ------
    TypeError
        Another dtype, or an ``nbits`` that is no int.
    ValueError
        Neither 2-D nor 4-D, another ``nbits``, a code that takes more bits, NaN or an infinity, more
        than 16,777,215 inputs.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.tile_spike_weight(np.ones((784, 100), np.int8))
    SpikeWeight(shape=(784, 100), 8 bits, 100864 bytes)
    >>> lowbit.tile_spike_weight(np.ones((3, 3, 16, 32), np.int8), 4)
    SpikeWeight(shape=(3, 3, 16, 32), 4 bits, 4864 bytes)
    """
    w = as_array("w", w, ("int8", "float32"), min_ndim=2)
    if w.ndim not in (2, 4):
        raise ValueError(f"w: expected (K, N) or (KH, KW, C, O), got shape {w.shape}")
    if w.dtype == _F32:
        if nbits is not None:
            raise ValueError(f"nbits: expected None with float32, got {nbits}")
        nbits = _FLOATS
    elif nbits is None:
        nbits = 8
    elif check_int("nbits", nbits, 2, 8) not in (2, 4, 8):
        raise ValueError(f"nbits: expected 2, 4 or 8, got {nbits}")
    nbits = int(nbits)
    k, n = math.prod(w.shape[:-1]), w.shape[-1]
    tiled = aligned(_core.spike_weight_len(k, n, nbits))
    _core.tile_spike_weight(w, k, n, nbits, tiled)
    return SpikeWeight(tiled, w.shape, nbits)


def spike_matmul(
    spikes: ArrayLike,
    weight: SpikeWeight,
    bias: ArrayLike | None = None,
    *,
    packed: bool = False,
    counts: bool = False,
    out: NDArray[np.int32] | NDArray[np.float32] | None = None,
    isa: str | None = None,
) -> NDArray[np.int32] | NDArray[np.float32]:
    """``bias + spikes @ weight``: the weight's rows at the inputs that spiked, added up.

    With codes the sums are exact. With floats they go from the bias on by ascending input, each
    product and each sum rounded to float32. Either way the same bits on every instruction set and
    any number of threads.

    Parameters
    ----------
    spikes : array_like of uint8 or bool, (..., K), or of uint8, (..., ceil(K / 8))
        0 and 1. With ``packed``, bits as ``pack_codes(spikes, 1)`` packs them. With ``counts``,
        numbers of spikes, 0 to 255: an input counts so many times.
    weight : SpikeWeight, (K, N)
        Of :func:`tile_spike_weight`.
    bias : array_like of int32, or float32 with a weight of floats, (N,), optional
        Where the sums start; 0 by default.
    packed, counts : bool
        What ``spikes`` holds; at most one of them.
    out : ndarray of int32, or float32 with a weight of floats, (..., N), optional
        Receives the sums. C-contiguous, and overlaps no input. What it holds after an error is
        undefined.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    ndarray of int32, or float32 with a weight of floats, (..., N)

    Raises
    ------
    TypeError
        Another dtype, or no SpikeWeight.
    ValueError
        Shapes that do not fit, an input that is neither 0 nor 1, a bit after a row's last one, counts
        and a bias so large that an int32 sum could overflow.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> weight = lowbit.tile_spike_weight(np.array([[1, -2], [3, 4], [5, 6]], np.int8))
    >>> spikes = np.array([[1, 0, 1], [0, 0, 0]], np.uint8)
    >>> lowbit.spike_matmul(spikes, weight)
    array([[6, 4],
           [0, 0]], dtype=int32)
    >>> lowbit.spike_matmul(lowbit.pack_codes(spikes, 1), weight, [10, 20], packed=True)
    array([[16, 24],
           [10, 20]], dtype=int32)
    >>> lowbit.spike_matmul([0, 3, 1], weight, counts=True)
    array([14, 18], dtype=int32)
    """
    k, n = _weight(weight, 2)
    if packed and counts:
        raise ValueError("packed, counts: expected at most one of them, got both")
    given, spikes = spikes, _inputs(spikes, ("uint8",) if packed or counts else _INPUTS, 1)
    if packed:
        _check_packed(spikes, k)
    elif spikes.shape[-1] != k:
        hint = "; packed bits are told by packed=True" if spikes.shape[-1] == (k + 7) // 8 else ""
        raise ValueError(f"spikes, weight: expected (..., {k}) and {weight.shape}, got {spikes.shape}{hint}")
    lead = spikes.shape[:-1]
    start = _bias(bias, weight)
    result = _out(out, (*lead, n), weight, given, spikes, bias, start)
    kind = "packed" if packed else "counts" if counts else "spikes"
    m = math.prod(lead)
    _core.spike_matmul(spikes, kind, m, weight.tiled, k, n, weight.nbits, start, result, isa)
    return result


def spike_conv2d(
    spikes: ArrayLike,
    weight: SpikeWeight,
    bias: ArrayLike | None = None,
    *,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    counts: bool = False,
    out: NDArray[np.int32] | NDArray[np.float32] | None = None,
    isa: str | None = None,
) -> NDArray[np.int32] | NDArray[np.float32]:
    """A convolution of spikes, channels last; nothing spikes in the padding.

    An output is a sum as in :func:`spike_matmul`, its inputs in the order (KH, KW, C).

    Parameters
    ----------
    spikes : array_like of uint8 or bool, (..., H, W, C)
        0 and 1, or with ``counts`` numbers of spikes, 0 to 255.
    weight : SpikeWeight, (KH, KW, C, O)
        Of :func:`tile_spike_weight`.
    bias : array_like of int32, or float32 with a weight of floats, (O,), optional
        Where the sums start; 0 by default.
    stride : pair of int
        Along H and W.
    padding : pair of pairs of int
        Before and after H, before and after W.
    counts : bool
        What ``spikes`` holds.
    out : ndarray of int32, or float32 with a weight of floats, (..., OH, OW, O), optional
        As of :func:`spike_matmul`.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    ndarray of int32, or float32 with a weight of floats, (..., OH, OW, O)

    Raises
    ------
    TypeError
        Another dtype, no SpikeWeight, or no int where one is expected.
    ValueError
        As :func:`spike_matmul`; a kernel larger than the padded image.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> weight = lowbit.tile_spike_weight(np.arange(9, dtype=np.int8).reshape(3, 3, 1, 1))
    >>> spikes = np.zeros((4, 4, 1), np.uint8)
    >>> spikes[1, 1] = 1
    >>> lowbit.spike_conv2d(spikes, weight)[..., 0]
    array([[4, 3],
           [1, 0]], dtype=int32)
    """
    _weight(weight, 4)
    given, spikes = spikes, _inputs(spikes, ("uint8",) if counts else _INPUTS, 3)
    sizes, images = _sizes(spikes, weight, stride, padding)
    start = _bias(bias, weight)
    shape = (*spikes.shape[:-3], *_core.spike_conv2d_size(sizes), weight.n)
    result = _out(out, shape, weight, given, spikes, bias, start)
    kind = "counts" if counts else "spikes"
    _core.spike_conv2d(spikes, kind, images, sizes, weight.tiled, weight.n, weight.nbits, start, result, isa)
    return result


def spike_operations(
    spikes: ArrayLike,
    weight: SpikeWeight,
    *,
    packed: bool = False,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
) -> int:
    """How many pairs of a spike and a synapse a product or a convolution has.

    The synaptic operations of the literature, exactly: for a weight (K, N) each input that is not 0
    has N; for one (KH, KW, C, O), O for each output place that it reaches, borders and strides counted
    as they are. An input with a count is one, whatever the count.

    Parameters
    ----------
    spikes : array_like of uint8 or bool, (..., K), (..., H, W, C), or with ``packed`` (..., ceil(K / 8))
    weight : SpikeWeight
        Its shape tells a product from a convolution.
    packed : bool
        Whether ``spikes`` are bits, for a product.
    stride, padding
        A convolution's, as in :func:`spike_conv2d`.

    Returns
    -------
    int

    Raises
    ------
    TypeError, ValueError
        As :func:`spike_matmul` and :func:`spike_conv2d`.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> lowbit.spike_operations([[1, 0, 1], [0, 1, 0]], lowbit.tile_spike_weight(np.ones((3, 5), np.int8)))
    15
    >>> weight = lowbit.tile_spike_weight(np.ones((3, 3, 1, 8), np.int8))
    >>> one = np.zeros((4, 4, 1), np.uint8)
    >>> one[0, 1] = 1
    >>> lowbit.spike_operations(one, weight), lowbit.spike_operations(one, weight, padding=((1, 1), (1, 1)))
    (16, 48)
    """
    _weight(weight, 0)
    spikes = _inputs(spikes, ("uint8",) if packed else _INPUTS, 1)
    if len(weight.shape) == 4:
        if packed:
            raise ValueError("packed: expected False with a convolution's weight, got True")
        if spikes.ndim < 3:
            raise ValueError(f"spikes: expected at least 3-D, got {spikes.ndim}-D of shape {spikes.shape}")
        sizes, images = _sizes(spikes, weight, stride, padding)
        return _core.spike_conv2d_pairs(spikes, images, sizes) * weight.n
    if (stride, padding) != ((1, 1), ((0, 0), (0, 0))):
        raise ValueError(f"stride, padding: expected a weight (KH, KW, C, O) with them, got {weight.shape}")
    if packed:
        _check_packed(spikes, weight.k)
        unused = weight.k % 8
        if unused and (wrong := (spikes[..., -1] >> unused != 0).ravel()).any():
            text = "spikes: expected zeros after the last bit of each row, got a set bit at the end of row"
            raise ValueError(f"{text} {int(wrong.argmax())}")
        return int(np.bitwise_count(spikes).sum(dtype=np.int64)) * weight.n
    if spikes.shape[-1] != weight.k:
        raise ValueError(f"spikes, weight: expected (..., {weight.k}) and {weight.shape}, got {spikes.shape}")
    return int(np.count_nonzero(spikes)) * weight.n


def _weight(weight: SpikeWeight, ndim: int) -> tuple[int, int]:
    """K and N of a weight of so many axes, 0 for any."""
    if not isinstance(weight, SpikeWeight):
        raise TypeError(f"weight: expected a SpikeWeight of lowbit.tile_spike_weight, got {type(weight).__name__}")
    if ndim and len(weight.shape) != ndim:
        expected = "(K, N)" if ndim == 2 else "(KH, KW, C, O)"
        raise ValueError(f"weight: expected shape {expected}, got {weight.shape}")
    return weight.k, weight.n


def _inputs(spikes: ArrayLike, dtypes: tuple[str, ...], ndim: int) -> NDArray[np.uint8]:
    array = as_array("spikes", spikes, dtypes, min_ndim=ndim)
    return array if array.dtype == _U8 else array.view(_U8)


def _check_packed(spikes: NDArray[np.uint8], k: int) -> None:
    expected = (k + 7) // 8
    if spikes.shape[-1] != expected:
        raise ValueError(f"spikes: expected rows of {expected} bytes ({k} bits), got {spikes.shape[-1]}")


def _bias(bias: ArrayLike | None, weight: SpikeWeight) -> NDArray[Any] | None:
    if bias is None:
        return None
    start = as_array("bias", bias, (weight.sums.name,))
    if start.shape != (weight.n,):
        raise ValueError(f"bias: expected shape ({weight.n},), got {start.shape}")
    return start


def _out(out: Any, shape: tuple[int, ...], weight: SpikeWeight, *inputs: Any) -> NDArray[Any]:
    if out is None:
        return new_out(shape, weight.sums)
    return check_out("out", out, shape, weight.sums, weight.tiled, *inputs)


def _pair(name: str, pair: Any, low: int) -> Pair:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"{name}: expected a pair of ints, got {pair!r}")
    return check_int(name, pair[0], low, 2**31 - 1), check_int(name, pair[1], low, 2**31 - 1)


def _sizes(spikes: NDArray[np.uint8], weight: SpikeWeight, stride: Any, padding: Any) -> tuple[Any, int]:
    """A convolution as the core knows it, and the number of images."""
    h, w, c = spikes.shape[-3:]
    if c != weight.shape[2]:
        raise ValueError(f"spikes, weight: expected (..., H, W, {weight.shape[2]}), got {spikes.shape}")
    if not isinstance(padding, (tuple, list)) or len(padding) != 2:
        raise TypeError(f"padding: expected ((top, bottom), (left, right)), got {padding!r}")
    pads = _pair("padding", padding[0], 0), _pair("padding", padding[1], 0)
    sizes = (h, w, c), weight.shape[:2], _pair("stride", stride, 1), pads
    return sizes, math.prod(spikes.shape[:-3])
