"""Layers on series: weights and activations as sums of terms of few bits (`lowbit.Series`).

By definition a layer is the sum of integer products of terms, ``sum_ij c_ij W_i (A_j - z_j)``
with powers of two ``c_ij``, and a float scale at the end. ``A_j`` are fields of the activations'
codes and ``z_j`` those of their zero point, so that 0, and with it padding, is exact term by
term. Unless terms are to be seen apart, neighbouring terms run as one product of 8 bits: the same
integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import lowbit
from lowbit import _core
from lowbit.config import Series
from lowbit.gemm import linear
from lowbit.torch import _bridge
from lowbit.torch.correction import moved_mean
from lowbit.torch.modules import QuantLinear
from lowbit.types import half_of_ones
from lowbit.weights import QuantizedWeight, TiledMatrix

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SATURATION", "SeriesConv2d", "SeriesLayer", "SeriesLinear", "Sums"]

#: The sparse term's place among those of a weight.
SATURATION = -1
#: What a layer keeps: the order in which kernels read its weights, for sizes of images, and its terms.
KEPT = 6
#: Convolutions of up to so many input channels, and windows of up to so many rows and columns, round with feedback.
CHANNELS, WINDOW = 4, 7

#: From a layer's name for itself, and its partial sums, to their total.
Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Codes:
    """Activations rounded: codes of ``bits`` bits (rows, ...), each row's scale and zero point.

    A row that holds NaN or an infinity has scale NaN.
    """

    codes: NDArray[np.uint16]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.uint16]
    bits: int

    def fields(self, width: int) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], int]]:
        """Fields of the codes and of the zero points, and how far each is shifted; the finest last."""
        count = -(-self.bits // width)
        for shift in (width * i for i in reversed(range(count))):
            mask = (1 << width) - 1
            zero = (self.zero_point >> shift & mask).astype(np.int64)
            yield (self.codes >> shift & mask).astype(np.uint8), zero, shift


@dataclass(frozen=True, eq=False)
class Sums:
    """A layer's integers, int64 (rows, ..., outputs), and each row's scale."""

    sums: NDArray[np.int64]
    scale: NDArray[np.float32]


def round_rows(x: NDArray[np.float32], config: Series) -> Codes:
    """Rows (M, K) as codes, each by its own range, which holds 0."""
    bits = config.activation_bits * config.activation_terms
    if bits <= 8:
        rows = lowbit.quantize_rows(x, nbits=bits)
        return Codes(rows.codes.astype(np.uint16), rows.scale, rows.zero_point.astype(np.uint16), bits)
    broken = ~np.isfinite(x).all(1)
    if broken.any():
        x = np.where(broken[:, None], np.float32(0), x)
    series = lowbit.expand(
        x, config.activation_bits, config.activation_terms, granularity=lowbit.PerAxis(0), symmetric=False
    )
    codes = series.code().astype(np.uint16)
    scale = np.where(broken, np.float32(np.nan), series.scale)
    return Codes(codes, scale, series.zero_point.astype(np.uint16), bits)


def _codes_of(weight: NDArray[Any], config: Series) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """A weight (N, ...) as integers, what is saturated with them, and each row's scale."""
    flat = weight.reshape(len(weight), -1)
    series = lowbit.expand(
        flat, config.weight_bits, config.weight_terms, granularity=lowbit.PerAxis(0), clip=config.clip
    )
    total = series.code() - half_of_ones(config.weight_bits, config.weight_terms)
    total.reshape(-1)[series.positions] += series.steps
    return total.reshape(weight.shape), series.scale


def _bytes_of(codes: NDArray[np.int64], config: Series) -> list[NDArray[np.int8]]:
    """Integers as int8, each part 256 times the one before: as many as the terms need, more where that is saturated."""
    parts: list[NDArray[np.int8]] = []
    least = -(-config.weight_bits * config.weight_terms // 8)
    while np.abs(codes).max(initial=0) > 127 or len(parts) + 1 < least:
        low = (codes + 128 & 255) - 128
        parts.append(low.astype(np.int8))
        codes = codes - low >> 8
    return [*parts, codes.astype(np.int8)]


class SeriesLayer(nn.Module):
    """What linear layers and convolutions on series have in common.

    ``coefficients`` (None: all of the config's, merged) names the products of terms that
    the layer sums and what it multiplies them with; ``reduce`` adds up the sums of several
    processes. Both are set by `lowbit.methods.series`.
    """

    config: Series
    bias: torch.Tensor | None

    def _series(self, parts: int) -> None:
        self.coefficients: dict[tuple[int, int], int] | None = None
        self.reduce: Reduce | None = None
        bits = self.config.activation_bits * self.config.activation_terms
        # Terms that merge into one product of 8 bits.
        self._single = parts == 1 and bits <= 8 and not self.config.triangular
        self._kept: dict[Any, Any] = {}
        #: The mean of the inputs' channels, where it is known: for other weights' biases.
        self.mean: torch.Tensor | None = None

    def correct_(self, before: torch.Tensor) -> None:
        """Lets the bias take up what the weight, another than before, moves the mean of outputs by."""
        if self.mean is not None:
            moved = moved_mean(self, before, self.dequantize(), self.mean).float()
            self.bias = -moved if self.bias is None else self.bias - moved

    def _keep(self, what: Any, make: Callable[[], Any]) -> Any:
        """What is made from the buffers, until they change. It is never saved."""
        state = tuple(_version(buffer) for buffer in self._buffers.values() if buffer is not None)
        if self._kept.get("of") != state:
            self._kept = {"of": state}
        if what not in self._kept:
            while len(self._kept) > KEPT:
                del self._kept[list(self._kept)[1]]
            self._kept[what] = make()
        return self._kept[what]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    # ---- what each kind of layer does in its way

    def with_codes(self, codes: NDArray[np.int64], scale: NDArray[np.float32], config: Series) -> SeriesLayer:
        """The same layer with these integers for a weight."""
        raise NotImplementedError

    def integers(self) -> NDArray[np.int64]:
        """The weight's codes, int64 (N, ...), what is saturated with them."""
        raise NotImplementedError

    def _parts(self) -> list[Any]:
        """The integers as int8, as :meth:`_product` takes them, each part 256 times the one before."""
        raise NotImplementedError

    def _part(self, codes: NDArray[np.int8]) -> Any:
        """Codes of the weight's shape as :meth:`_product` takes them."""
        raise NotImplementedError

    def _row_scale(self) -> NDArray[np.float32]:
        raise NotImplementedError

    def _rows(self, x: torch.Tensor) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """Inputs as rows that have one scale each, and what shape a row has."""
        raise NotImplementedError

    def _product(self, part: Any, x: NDArray[np.uint8], zero: NDArray[np.int64]) -> NDArray[np.int64]:
        raise NotImplementedError

    def _exact_product(self, weight: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        raise NotImplementedError

    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The layer in floats, by another weight and without a bias."""
        raise NotImplementedError

    def seen(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs as the layer sees them: rounded."""
        rows, shape = self._rows(x)
        codes = self._rounded(rows, shape)
        steps = codes.codes.astype(np.float32) - codes.zero_point[:, None]
        return self._unrolled(torch.from_numpy(steps * codes.scale[:, None]), x, shape)

    def _rounded(self, rows: NDArray[np.float32], shape: tuple[int, ...]) -> Codes:
        """Rows as :meth:`_rows` gives them, in codes."""
        return round_rows(rows, self.config)

    def spans(self, x: torch.Tensor) -> tuple[int, ...]:
        """The axes of inputs that have one scale together."""
        raise NotImplementedError

    def _unrolled(self, rows: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Rows as :meth:`_rows` gave them, in the inputs' shape."""
        raise NotImplementedError

    # ---- terms

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for."""
        raise NotImplementedError

    def digits(self) -> NDArray[np.int8]:
        """The weight's digits, int8 (terms, N, ...), without what is saturated."""
        bits, terms = self.config.weight_bits, self.config.weight_terms
        half = half_of_ones(bits, terms)
        codes = np.clip(self.integers() + half, 0, (1 << bits * terms) - 1)
        fields = [codes >> bits * i & (1 << bits) - 1 for i in reversed(range(terms))]
        return (np.stack(fields) - (1 << bits - 1)).astype(np.int8)

    def saturation(self) -> NDArray[np.int64]:
        """What the digits do not reach, int64 (N, ...): mostly 0."""
        bits, terms = self.config.weight_bits, self.config.weight_terms
        half, codes = half_of_ones(bits, terms), self.integers()
        return codes - np.clip(codes, -half, (1 << bits * terms) - 1 - half)

    def all_coefficients(self) -> dict[tuple[int, int], int]:
        """Of each product of a weight's and an activation's term that the config asks for."""
        config = self.config
        pairs = list(config.pairs)
        if config.clip is not None:
            pairs += [(SATURATION, j) for j in range(config.activation_terms)]
        return {pair: 1 << self._shift(*pair) for pair in pairs}

    def first_terms(self, weight_terms: int, activation_terms: int) -> SeriesLayer:
        """The same layer with the first terms of its weight, and inputs of so many terms.

        Inputs are rounded anew, by the coarser step: terms cut off would leave twice the error.
        """
        if self.coefficients is not None:
            raise ValueError("model: expected one of all its terms, got a basis model, a sum of such or a share of one")
        config = replace(self.config, weight_terms=weight_terms, activation_terms=activation_terms)
        left = self.config.weight_terms - weight_terms
        shift = self.config.weight_bits * left
        # Digits that are cut off are about 0, so cutting rounds.
        codes = self.integers() + half_of_ones(self.config.weight_bits, left) >> shift
        few = self.with_codes(codes, np.ldexp(self._row_scale(), shift), config)
        few.mean = self.mean
        few.correct_(self.dequantize())
        return few

    def _shift(self, i: int, j: int) -> int:
        config = self.config
        weight = 0 if i == SATURATION else config.weight_bits * (config.weight_terms - 1 - i)
        return weight + config.activation_bits * (config.activation_terms - 1 - j)

    def sums(self, x: torch.Tensor, *, merged: bool = True) -> Sums:
        """The layer's integers: by merged products, or term by term.

        Both are the same unless ``coefficients`` or a triangular config leave products out,
        which are then summed term by term in any case.
        """
        rows, shape = self._rows(x)
        codes = self._rounded(rows, shape)
        codes = Codes(codes.codes.reshape(-1, *shape), codes.scale, codes.zero_point, codes.bits)
        merged = merged and self.coefficients is None and not self.config.triangular
        total = self._merged(codes) if merged else self._apart(codes)
        return Sums(total if self.reduce is None else self.reduce(total), codes.scale)

    def _merged(self, codes: Codes) -> NDArray[np.int64]:
        total: Any = 0
        for field, zero, shift in codes.fields(8):
            for i, part in enumerate(self._keep("parts", self._parts)):
                total = total + (self._product(part, field, zero) << (8 * i + shift))
        return total  # type: ignore[no-any-return]

    def _apart(self, codes: Codes) -> NDArray[np.int64]:
        coefficients = self.all_coefficients() if self.coefficients is None else self.coefficients
        fields = list(codes.fields(self.config.activation_bits))
        terms = self._keep("terms", lambda: [self._part(digit) for digit in self.digits()])
        total: Any = 0
        for (i, j), coefficient in coefficients.items():
            field, zero, _ = fields[j]
            if i == SATURATION:
                each = field.astype(np.int64) - zero.reshape(-1, *(1,) * (field.ndim - 1))
                product = self._exact_product(self._keep("saturation", self.saturation), each)
            else:
                product = self._product(terms[i], field, zero)
            total = total + coefficient * product
        if not coefficients:  # a share of nothing has the sums' shape
            field, zero, _ = fields[0]
            total = 0 * self._product(terms[0], field, zero)
        return total  # type: ignore[no-any-return]

    def _finished(self, sums: Sums) -> NDArray[np.float32]:
        scale = sums.scale.reshape(-1, *(1,) * (sums.sums.ndim - 1)) * self._row_scale()
        y = sums.sums.astype(np.float32) * scale
        if self.bias is not None:
            y = y + _bridge.view(self.bias)
        return y  # type: ignore[no-any-return]

    def _of_terms(self) -> str:
        return "" if self.coefficients is None else f", terms {self.coefficients}"

    @property
    def plain(self) -> bool:
        """Whether the layer is one product of 8 bits or fewer."""
        return self._single and self.coefficients is None and self.reduce is None


def _version(buffer: torch.Tensor) -> tuple[int, int]:
    """What tells that a tensor's values have changed; those made in inference mode count no versions."""
    return buffer.data_ptr(), crc32(_bridge.view(buffer.contiguous())) if buffer.is_inference() else buffer._version


class Part:
    """A matrix of int8 (K, N), tiled, and the sums of its columns, int64 (N,)."""

    def __init__(self, matrix: TiledMatrix) -> None:
        self.matrix = matrix
        self.sums = lowbit.matmul_int8(np.ones((1, matrix.k), np.uint8), matrix)[0].astype(np.int64)


class SeriesLinear(QuantLinear, SeriesLayer):
    """A linear layer on series (:class:`lowbit.Series`).

    Buffers as in :class:`QuantLinear`: ``tiled`` are the merged codes of the weight over its equalizer. Codes
    beyond int8 go on, 256 times coarser each, in ``tiled_1``, ``tiled_2``.
    """

    config: Series

    def __init__(
        self,
        in_features: int,
        out_features: int,
        parts: list[torch.Tensor],
        bias: torch.Tensor | None,
        config: Series,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features, parts[0], bias, config, dtype)
        for i, part in enumerate(parts[1:], 1):
            self.register_buffer(f"tiled_{i}", part)
        self._names = ["tiled", *(f"tiled_{i}" for i in range(1, len(parts)))]
        self._series(len(parts))
        self._eight = config.activation_bits * config.activation_terms == 8

    @property
    def fusible(self) -> bool:
        """Whether :class:`QuantLinear`'s operator computes the same."""
        return self._eight and self.plain

    def _weights(self) -> list[QuantizedWeight]:
        """The parts, without the equalizer."""
        k, n = self.in_features, self.out_features
        size = _core.tiled_len(k, n)
        return [QuantizedWeight(_bridge.view(self.get_buffer(name))[:size], k, n, self.config) for name in self._names]

    def equalizer(self) -> NDArray[np.float32] | None:
        """What each input is multiplied with before it is rounded, float32 (K,); None for no such thing."""
        return QuantizedWeight(_bridge.view(self.tiled), self.in_features, self.out_features, self.config).equalizer()

    def _parts(self) -> list[Part]:
        return [Part(weight) for weight in self._weights()]

    def _part(self, codes: NDArray[np.int8]) -> Part:
        return Part(lowbit.tile_matrix(np.ascontiguousarray(codes.T)))

    def integers(self) -> NDArray[np.int64]:
        parts = (weight.codes().astype(np.int64) for weight in self._weights())
        return sum(part << 8 * i for i, part in enumerate(parts))  # type: ignore[return-value]

    def _row_scale(self) -> NDArray[np.float32]:
        return self._keep("scale", lambda: self._weights()[0].scale())  # type: ignore[no-any-return]

    def dequantize(self) -> torch.Tensor:
        values = self.integers() * self._row_scale().astype(np.float64)[:, None]
        equalizer = self.equalizer()
        if equalizer is not None:
            values *= equalizer
        return torch.from_numpy(values.astype(np.float32)).to(self.dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        return self.dequantize().float()[indices]

    def _rows(self, x: torch.Tensor) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        rows = _bridge.view(x.float().reshape(-1, self.in_features).contiguous())
        equalizer = self.equalizer()
        return rows if equalizer is None else rows * equalizer, (self.in_features,)

    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, weight)

    def spans(self, x: torch.Tensor) -> tuple[int, ...]:
        return (x.ndim - 1,)

    def _unrolled(self, rows: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        equalizer = self.equalizer()
        return (rows if equalizer is None else rows / torch.from_numpy(equalizer.copy())).reshape(x.shape)

    def _product(self, part: Part, x: NDArray[np.uint8], zero: NDArray[np.int64]) -> NDArray[np.int64]:
        return lowbit.matmul_int8(x, part.matrix).astype(np.int64) - zero[:, None] * part.sums

    def _exact_product(self, weight: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        columns = np.flatnonzero(weight.any(0))  # few
        # Below 2^53 each, and so exact in float64.
        return (x[:, columns].astype(np.float64) @ weight[:, columns].T.astype(np.float64)).astype(np.int64)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return super().extra_repr() + self._of_terms()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fusible or (self._deferred and not self.training):
            return super().forward(x)
        if x.shape[-1] != self.in_features:
            raise ValueError(f"x: expected (..., {self.in_features}), got {tuple(x.shape)}")
        return self._slow(x)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _slow(self, x: torch.Tensor) -> torch.Tensor:
        if not x.numel():
            return x.new_zeros((*x.shape[:-1], self.out_features))
        if self.plain:
            rows, _ = self._rows(x)
            codes = lowbit.quantize_rows(rows, nbits=self.config.activation_bits * self.config.activation_terms)
            y = linear(codes, self._weights()[0], None if self.bias is None else _bridge.view(self.bias))
        else:
            y = self._finished(self.sums(x))
        return torch.from_numpy(y).reshape(*x.shape[:-1], self.out_features).to(x.dtype)

    @staticmethod
    def of(module: nn.Linear, config: Series, tied: SeriesLayer | None = None) -> SeriesLinear:
        """The layer in series, with the buffers of one that it is tied to."""
        if isinstance(tied, SeriesLinear):
            bias = None if module.bias is None else module.bias.detach().float().clone()
            parts = [tied.get_buffer(name) for name in tied._names]
            return SeriesLinear(tied.in_features, tied.out_features, parts, bias, config, tied.dtype)
        bias, weight, equalizer = module.bias, module.weight.detach(), None
        if config.equalize:
            equalizer = lowbit.quantize_weight(weight.float().numpy(), lowbit.Int8()).equalizer()
            assert equalizer is not None
            weight = weight / torch.from_numpy(equalizer.copy()).to(weight.dtype)  # exact: powers of two
        bias = None if bias is None else bias.detach().float().clone()
        return SeriesLinear._made(*_quantized(weight, config), equalizer, bias, config, module.weight.dtype)

    def with_codes(self, codes: NDArray[np.int64], scale: NDArray[np.float32], config: Series) -> SeriesLinear:
        return SeriesLinear._made(codes, scale, self.equalizer(), self.bias, config, self.dtype)

    @staticmethod
    def _made(
        codes: NDArray[np.int64],
        scale: NDArray[np.float32],
        equalizer: NDArray[np.float32] | None,
        bias: torch.Tensor | None,
        config: Series,
        dtype: torch.dtype,
    ) -> SeriesLinear:
        tiled, (n, k), parts = [], codes.shape, _bytes_of(codes, config)
        for i, part in enumerate(parts):
            raw = np.empty(_core.tiled_len(k, n), np.uint8)
            scales = np.ascontiguousarray(scale * np.float32(256**i))
            _core.tile_matrix(np.ascontiguousarray(part.T), k, n, scales, raw)
            if i == 0 and equalizer is not None:
                raw = np.concatenate([raw, np.frombuffer(equalizer.astype("<f4").tobytes(), np.uint8)])
            # torch's memory starts at a cache line.
            buffer = torch.empty(raw.size, dtype=torch.uint8)
            buffer.numpy()[:] = raw
            tiled.append(buffer)
        return SeriesLinear(k, n, tiled, bias, config, dtype)


class SeriesConv2d(SeriesLayer):
    """A convolution on series (:class:`lowbit.Series`): each sample is rounded by its own range.

    Buffers: ``codes``, int8 (parts, O, KH · KW · C / groups), each part 256 times coarser than the
    one before; ``scale``, float32 (O,); ``bias``, float32 (O,), or None; ``feedback``, float32
    (C, KH, 2 KW - 1, C), or None where inputs are rounded one by one. The order in which kernels
    read the weights is made for each size of image when it is first seen, and not saved.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    feedback: torch.Tensor | None
    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: str | tuple[int, ...]
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        module: nn.Conv2d | SeriesConv2d,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        feedback: torch.Tensor | None,
        config: Series,
    ) -> None:
        """``module`` says all but these."""
        super().__init__()
        self.in_channels, self.out_channels = module.in_channels, module.out_channels
        self.kernel_size, self.stride, self.dilation = module.kernel_size, module.stride, module.dilation
        self.padding, self.groups = module.padding, module.groups
        self.config = config
        self.dtype = module.weight.dtype
        self._reversed_padding_repeated_twice = module._reversed_padding_repeated_twice
        left, right, top, bottom = module._reversed_padding_repeated_twice
        sides = ((top, bottom), (left, right))
        #: As the kernels take them.
        self._steps = (_pair(self.stride), _pair(self.dilation), sides, self.groups)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.register_buffer("feedback", feedback)
        self._series(len(codes))

    @property
    def weight(self) -> torch.Tensor:
        """Shape and dtype of the weight before, on the meta device: no data."""
        kh, kw = self.kernel_size
        return torch.empty(
            (self.out_channels, self.in_channels // self.groups, kh, kw), dtype=self.dtype, device="meta"
        )

    def _parts(self) -> list[NDArray[np.int8]]:
        # Three axes in the buffer, for torch lays those of four out as channels_last asks.
        shape = (-1, self.out_channels, *self.kernel_size, self.in_channels // self.groups)
        return list(_bridge.view(self.codes.contiguous()).reshape(shape))

    def _part(self, codes: NDArray[np.int8]) -> NDArray[np.int8]:
        return np.ascontiguousarray(codes)

    def integers(self) -> NDArray[np.int64]:
        return sum(part.astype(np.int64) << 8 * i for i, part in enumerate(self._parts()))  # type: ignore[return-value]

    def _row_scale(self) -> NDArray[np.float32]:
        return _bridge.view(self.scale)

    def dequantize(self) -> torch.Tensor:
        """The weight that the codes stand for, (O, C / groups, KH, KW)."""
        values = self.integers() * self._row_scale().astype(np.float64)[:, None, None, None]
        return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2).contiguous().to(self.dtype)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Filters of that weight, flat, float32."""
        return self.dequantize().float().flatten(1)[indices]

    def _images(self, x: torch.Tensor) -> NDArray[np.float32]:
        """Channels last."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"x: expected (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if x.ndim == 3 or x.dtype is not torch.float32:
            x = x.float().reshape(-1, *x.shape[-3:])
        return _bridge.view(x.permute(0, 2, 3, 1).contiguous())

    def _rows(self, x: torch.Tensor) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        images = self._images(x)
        return images.reshape(len(images), -1), images.shape[1:]

    def _rounded(self, rows: NDArray[np.float32], shape: tuple[int, ...]) -> Codes:
        feedback = self._coefficients()
        if feedback is None or not len(rows):
            return super()._rounded(rows, shape)
        bits = self.config.activation_bits * self.config.activation_terms
        images = lowbit.quantize_images(rows.reshape(-1, *shape), feedback, nbits=bits)
        return Codes(images.codes.astype(np.uint16), images.scale, images.zero_point.astype(np.uint16), bits)

    def _coefficients(self) -> NDArray[np.float32] | None:
        """As kernels take them: torch lays four axes out as channels_last asks."""
        return None if self.feedback is None else _bridge.view(self.feedback.contiguous())

    def convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = functional.pad(x, list(self._reversed_padding_repeated_twice))
        return functional.conv2d(x, weight, None, self.stride, 0, self.dilation, self.groups)  # type: ignore[arg-type]

    def spans(self, x: torch.Tensor) -> tuple[int, ...]:
        return tuple(range(x.ndim - 3, x.ndim))

    def _unrolled(self, rows: torch.Tensor, x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return rows.reshape(-1, *shape).permute(0, 3, 1, 2).reshape(x.shape)

    def _product(self, part: NDArray[np.int8], x: NDArray[np.uint8], zero: NDArray[np.int64]) -> NDArray[np.int64]:
        stride, dilation, padding, groups = self._steps
        steps: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
        total: Any = None
        several = np.unique(zero)  # samples without negatives all have 0
        if len(several) == 1:
            return lowbit.conv2d(x, part, x_zero_point=int(several[0]), **steps).astype(np.int64)
        for one in several:
            these = zero == one
            sums = lowbit.conv2d(x[these], part, x_zero_point=int(one), **steps)
            total = np.empty((len(x), *sums.shape[1:]), np.int64) if total is None else total
            total[these] = sums
        return total  # type: ignore[no-any-return]

    def _exact_product(self, weight: NDArray[np.int64], x: NDArray[np.int64]) -> NDArray[np.int64]:
        # Below 2^53 each, and so exact in float64.
        images = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2)
        y = self.convolve(images, torch.from_numpy(weight.astype(np.float64)).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).round().to(torch.int64).numpy()  # type: ignore[no-any-return]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = self._images(x)
        # No images have a shape too.
        if not (self.plain or not len(images)):
            y = torch.from_numpy(self._finished(self.sums(x))).permute(0, 3, 1, 2)
        else:
            plan, size, scale, bias, bits = self._keep(
                (images.shape[1:], lowbit.isa()), lambda: self._plan(images.shape)
            )
            y = torch.empty((len(images), *size), dtype=torch.float32)
            plan.run(images, bits, scale, bias, y.numpy(), _bridge.count(), _bridge.openmp)
            y = y.permute(0, 3, 1, 2)
        if x.ndim == 4 and x.dtype is torch.float32:
            return y
        return y.reshape(*x.shape[:-3], *y.shape[1:]).to(x.dtype)

    def _plan(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        """The convolution for images of one size, the size of what it makes, and what ends it."""
        part = self._parts()[0]
        size = (*_core.conv2d_size(shape, part.shape, self._steps), self.out_channels)
        plan = _core.RoundedConv2d(part, shape[1:], self._steps, self._coefficients(), None)  # type: ignore[arg-type]
        scale = _bridge.view(self.scale).copy()
        bias = np.zeros(self.out_channels, np.float32) if self.bias is None else _bridge.view(self.bias).copy()
        bits = min(8, self.config.activation_bits * self.config.activation_terms)  # more where there are no images
        return plan, size, scale, bias, bits

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, {self.config}{self._of_terms()}"
        )

    @staticmethod
    def of(
        module: nn.Conv2d, config: Series, tied: SeriesLayer | None = None, gain: torch.Tensor | None = None
    ) -> SeriesConv2d:
        """The convolution in series, with the buffers of one that it is tied to; ``gain`` is the normalization's behind it."""
        bias = None if module.bias is None else module.bias.detach().float().clone()
        feedback = _feedback(module, gain) if config.feedback and takes_feedback(module) else None
        if isinstance(tied, SeriesConv2d):
            return SeriesConv2d(module, tied.codes, tied.scale, bias, feedback, config)
        codes, scale = _quantized(module.weight.permute(0, 2, 3, 1), config)
        return SeriesConv2d(module, _stacked(codes, config), torch.from_numpy(scale), bias, feedback, config)

    def with_codes(self, codes: NDArray[np.int64], scale: NDArray[np.float32], config: Series) -> SeriesConv2d:
        stacked = _stacked(codes, config)
        return SeriesConv2d(self, stacked, torch.from_numpy(scale), self.bias, self.feedback, config)


def takes_feedback(module: nn.Conv2d) -> bool:
    """Whether a convolution's inputs are rounded with feedback where the config asks for it."""
    few = module.in_channels <= CHANNELS and max(module.kernel_size) <= WINDOW
    return few and _pair(module.stride) == _pair(module.dilation) == (1, 1) and module.groups == 1


def _feedback(module: nn.Conv2d, gain: torch.Tensor | None) -> torch.Tensor:
    weight = module.weight.detach().float().permute(0, 2, 3, 1).contiguous().numpy()
    importance = None if gain is None else gain.detach().float().numpy()
    return torch.from_numpy(lowbit.feedback_coefficients(weight, importance=importance))


def _quantized(weight: torch.Tensor, config: Series) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    floats = weight.detach()
    floats = floats if floats.dtype in (torch.float32, torch.float64) else floats.float()
    return _codes_of(floats.contiguous().numpy(), config)


def _stacked(codes: NDArray[np.int64], config: Series) -> torch.Tensor:
    parts = np.stack(_bytes_of(codes, config))
    return torch.from_numpy(parts.reshape(*parts.shape[:2], -1))


def _pair(value: Any) -> tuple[int, int]:
    return int(value[0]), int(value[1])
