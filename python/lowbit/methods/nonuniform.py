"""Post-training non-uniform quantization: levels where the weights are, without data.

A. Luqman, K. Qazi and I. Khan, "Post-training non-uniform quantization for convolutional neural
networks", arXiv 2412.07391, 2024: for each weight a density is assumed, and clip and levels
follow from it. Written from the paper's summary and the theory it rests on (Panter and Dite, 1951;
Lloyd, 1982); none of its figures are reproduced here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

import lowbit
from lowbit.config import METHODS, Codebook, Int8
from lowbit.torch.correction import CONVOLUTIONS, Correction, correct_bias_, input_moments
from lowbit.torch.modules import QuantEmbedding, QuantLinear
from lowbit.torch.quantize import (
    LayerReport,
    Progress,
    Report,
    _check_finite,
    _check_model,
    _check_rules,
    _decide,
    _numpy_floats,
    _reason,
    _state_bytes,
    _teller,
    _tensor_bytes,
    quantize_,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Coded", "NonUniformReport", "Width", "nonuniform_", "nonuniform_weight"]

#: A layer's codes: so many bits and tables of levels; symmetric int8; None leaves the layer alone.
Width = int | Int8 | None

#: Bits of codes that the kernels of linear layers look up.
_KERNELS = (2, 3, 4, 8)
#: Rounds of choosing scales and codes in turn, at most.
ROUNDS = 3
_LEAST = 2.0**-126
_FLOATING = "dequantized to float: no integer convolution yet"


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight by codes and tables, and what it takes.

    ``levels`` (tables, 2**nbits) float32 are int8 entries times a scale for each table, as they are
    stored; ``codes`` (N, K) uint8; ``density`` names each table's where the method chooses one.
    """

    levels: NDArray[np.float32]
    codes: NDArray[np.uint8]
    nbits: int
    density: tuple[str, ...] | None

    @property
    def nbytes(self) -> int:
        """Packed codes, whose rows start on a byte, int8 entries and float32 scales."""
        n, k = self.codes.shape
        return n * -(-k * self.nbits // 8) + self.levels.size + 4 * len(self.levels)

    def values(self) -> NDArray[np.float32]:
        """The weight that this stands for, float32 (N, K)."""
        shape = self.codes.reshape(len(self.levels), -1)
        return lowbit.decode(shape, self.levels).reshape(self.codes.shape)


@dataclass(frozen=True)
class NonUniformReport(Report):
    """What `nonuniform_` did: a :class:`lowbit.torch.Report`, and what the codes take.

    A convolution's ``bytes_after`` are those of its codes, tables and scales, though the model holds
    the floats that they stand for: ``bytes_after`` of the whole is the ``state_dict`` as it is,
    ``bytes_stored`` what it takes with codes in the place of these floats.
    """

    bytes_stored: int = 0
    corrections: tuple[Correction, ...] = ()

    def __str__(self) -> str:
        ratio = self.bytes_before / max(1, self.bytes_stored)
        lines = [super().__str__()]
        lines.append(f"with codes in the place of floats {self.bytes_stored / 1e6:.3f} MB, {ratio:.2f}x smaller")
        done = [correction for correction in self.corrections if correction.reason is None]
        if self.corrections:
            lines.append(f"{len(done)} of {len(self.corrections)} layers' outputs corrected")
        lines += [f"not corrected: {c.name}: {c.reason}" for c in self.corrections if c.reason is not None]
        return "\n".join(lines)


def nonuniform_(
    model: nn.Module,
    nbits: int,
    *,
    granularity: Literal["tensor", "channel"] = "channel",
    method: str = "optimal",
    first_last: Width = Int8(),
    bias_correction: bool = True,
    rules: Sequence[tuple[str, Width]] | None = None,
    progress: bool | Progress | None = None,
) -> NonUniformReport:
    """Quantizes a model's convolutions, linear layers and embeddings in place to levels of their own.

    Linear layers and embeddings are `quantize_`'s with :class:`lowbit.Codebook`: they run on codes.
    A convolution gets the floats that its codes stand for, until there is an integer convolution.
    Weights alone are quantized there, inputs stay as they are.

    Parameters
    ----------
    model : torch.nn.Module
        On the CPU, its batch normalizations not folded into convolutions yet.
    nbits : int
        2 to 8; of linear layers and embeddings 2, 3, 4 or 8.
    granularity : {"tensor", "channel"}
        Whether a weight has one table or each of its output channels.
    method : str
        "analytic": as published, the compander of that density, Laplace's or the normal one, whose
        error is less for these weights, its clip the best; or one of `lowbit.fit_levels`, of which
        "optimal" has the least error that there is.
    first_last : int, Int8 or None
        Of the model's first and last layer, in the order of its modules.
    bias_correction : bool
        Put right the mean and the variance of outputs (:func:`lowbit.torch.correction.correct_bias_`)
        where a BatchNorm tells what the inputs are; the report says where not, and why.
    rules : sequence of (pattern, int, Int8 or None), optional
        As in `quantize_`; they come before ``first_last``.
    progress : bool or callable, optional
        As in `quantize_`.

    Returns
    -------
    NonUniformReport

    Raises
    ------
    TypeError, ValueError
        As `quantize_`; a width that a linear layer's kernels lack.

    Examples
    --------
    >>> import torch
    >>> from lowbit.methods.nonuniform import nonuniform_
    >>> from torch.nn import BatchNorm2d, Conv2d, ReLU, Sequential
    >>> model = Sequential(Conv2d(3, 8, 3), BatchNorm2d(8), ReLU(), Conv2d(8, 8, 3), BatchNorm2d(8)).eval()
    >>> report = nonuniform_(model, 3, first_last=3)
    >>> report.layers[1].kernel
    '3-bit codebook, dequantized to float: no integer convolution yet'
    >>> for correction in report.corrections:
    ...     print(correction.name, correction.what or correction.reason)
    0 it gets the model's input, of which nothing is known
    3 mean and variance
    """
    _check_model(model)
    _check_width("nbits", nbits, least=True)
    _check_width("first_last", first_last)
    if granularity not in ("tensor", "channel"):
        raise ValueError(f"granularity: expected 'tensor' or 'channel', got {granularity!r}")
    if method not in ("analytic", *METHODS):
        raise ValueError(f"method: expected one of analytic, {', '.join(METHODS)}, got {method!r}")
    if not isinstance(bias_correction, bool):
        raise TypeError(f"bias_correction: expected a bool, got {bias_correction!r}")

    kinds = (*CONVOLUTIONS, nn.Linear, nn.Embedding, QuantLinear, QuantEmbedding)
    layers = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}
    ends = [name for name, module in layers.items() if not isinstance(module, (nn.Embedding, QuantEmbedding))]
    checked = _check_rules(rules, _check_width)
    widths = _decide(layers, nbits, checked, "layer")
    for name in {*ends[:1], *ends[-1:]}:
        if not any(pattern.search(name) for pattern, _ in checked):
            widths[name] = first_last
    convolutions = {name: module for name, module in layers.items() if isinstance(module, CONVOLUTIONS)}
    reasons = {name: _reason(module, widths[name], CONVOLUTIONS) for name, module in convolutions.items()}
    todo = {name: module for name, module in convolutions.items() if reasons[name] is None}
    for name, module in todo.items():
        _check_finite(name, module)
    configs = [
        (f"^{re.escape(name)}$", _config(name, module, widths[name], granularity, method))
        for name, module in layers.items()
        if not isinstance(module, CONVOLUTIONS)
    ]

    before = _state_bytes(model)
    inputs = input_moments(model) if bias_correction else {}
    tell, count = _teller(progress, "nonuniform_"), len(todo)
    kept = {n: m.weight.detach().clone() for n, m in layers.items() if n in inputs and n not in convolutions}
    report = quantize_(model, None, rules=configs, progress=lambda done, total, name: tell(done, total + count, name))
    reports = {layer.name: layer for layer in report.layers}
    linear = {n: w for n, w in kept.items() if n in reports and reports[n].reason is None}
    corrections = list(correct_bias_(model, linear, inputs))

    saved, done = 0, len(report.quantized)
    made: dict[int, tuple[torch.Tensor, Coded | Int8Rows]] = {}
    for name, module in convolutions.items():
        if reasons[name] is not None:
            size = _tensor_bytes(module)
            reports[name] = LayerReport(name, type(module).__name__, None, size, size, reason=reasons[name])
            continue
        tell(done, len(report.quantized) + count, name)
        done += 1
        if id(module.weight) not in made:  # tied ones get the first one's levels
            weight = module.weight.detach().clone()
            coded = _coded(weight, widths[name], granularity, method)
            made[id(module.weight)] = weight, coded
            saved += weight.nbytes - coded.nbytes
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(coded.values()).view_as(weight))
        weight, coded = made[id(module.weight)]
        reports[name] = _report(name, module, weight, coded)
        if name in inputs:
            corrections += correct_bias_(model, {name: weight}, inputs)
    tell(done, done, "")
    after = _state_bytes(model)
    order = {name: i for i, name in enumerate(layers)}
    corrections.sort(key=lambda correction: order[correction.name])
    named = tuple(reports[name] for name in layers)
    return NonUniformReport(named, before, after, report.fused, after - saved, tuple(corrections))


def nonuniform_weight(
    w: NDArray[Any],
    nbits: int,
    *,
    granularity: Literal["tensor", "channel"] = "channel",
    method: str = "optimal",
    sample_weight: NDArray[Any] | None = None,
) -> Coded:
    """Levels for a weight (N, K), as they are stored, and each weight's nearest.

    Parameters
    ----------
    w : ndarray of float32 or float64, (N, K)
    nbits, granularity, method
        As in `nonuniform_`.
    sample_weight : ndarray, (N, K), optional
        As in :func:`lowbit.fit_levels`.

    Returns
    -------
    Coded

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit.methods.nonuniform import nonuniform_weight
    >>> coded = nonuniform_weight(np.array([[-1.0, 0.5, 0.48, 0.1, 1.27]]), 2)
    >>> coded.values().round(2), coded.codes
    (array([[-1.  ,  0.49,  0.49,  0.1 ,  1.27]], dtype=float32), array([[0, 2, 2, 1, 3]], dtype=uint8))
    >>> coded.nbytes, nonuniform_weight(np.random.default_rng(0).laplace(size=(2, 99)), 2, method="analytic").density
    (10, ('laplace', 'laplace'))
    """
    rows = w.reshape(1, -1) if granularity == "tensor" else w
    counts = None if sample_weight is None else sample_weight.reshape(rows.shape)
    with warnings.catch_warnings():  # a row may have fewer weights than levels
        warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
        tried = [
            lowbit.fit_levels_rows(rows, 1 << nbits, method=name, sample_weight=counts)  # type: ignore[arg-type]
            for name in (("laplace", "gauss") if method == "analytic" else (method,))
        ]
    density, levels = None, np.asarray(tried[0].levels, np.float64)
    if method == "analytic":
        laplace, gauss = tried
        normal = gauss.mse < laplace.mse
        levels = np.where(normal[:, None], np.asarray(gauss.levels, np.float64), levels)
        density = tuple("gauss" if each else "laplace" for each in normal)
    return Coded(*_stored(rows, levels, counts, w.shape), nbits, density)


def _stored(
    rows: NDArray[Any], levels: NDArray[np.float64], counts: NDArray[Any] | None, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Levels as int8 entries times a scale for each row, and codes: the scale is that of least squares
    once codes are chosen, and they are chosen again, as long as a row's error falls."""
    most = np.abs(levels).max(1, keepdims=True)
    scale = np.where(most == 0, 1, most / 127).clip(_LEAST)
    entries = np.rint(levels / scale)
    counts = np.ones(rows.shape) if counts is None else counts

    def tried(scale: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float64]]:
        stored = entries.astype(np.float32) * scale.astype(np.float32)
        codes = lowbit.encode(rows, stored)
        return stored, codes, (counts * (rows - lowbit.decode(codes, stored).astype(np.float64)) ** 2).sum(1)

    stored, codes, errors = tried(scale)
    for _ in range(ROUNDS):
        units = lowbit.decode(codes, entries)
        up, down = ((counts * units * other).sum(1, keepdims=True) for other in (rows, units))
        scale = np.where((down > 0) & (up > 0), up / np.where(down > 0, down, 1), scale).clip(_LEAST)
        better = tried(scale)
        less = better[2] < errors
        if not less.any():
            break
        for kept, new in zip((stored, codes, errors), better, strict=True):
            kept[less] = new[less]
    return stored, codes.reshape(shape)


@dataclass(frozen=True, eq=False)
class Int8Rows:
    """A weight (N, K) in symmetric int8 with a float32 scale for each row."""

    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Codes and scales."""
        return self.codes.nbytes + self.scale.nbytes

    def values(self) -> NDArray[np.float32]:
        """The weight that this stands for, float32 (N, K)."""
        return (self.codes.astype(np.float32) - 128) * self.scale[:, None]


def _check_width(name: str, width: Any, *, least: bool = False) -> None:
    if isinstance(width, bool) or not isinstance(width, int if least else (int, Int8, type(None))):
        raise TypeError(f"{name}: expected an int{'' if least else ', Int8() or None'}, got {width!r}")
    if isinstance(width, int) and not 2 <= width <= 8:
        raise ValueError(f"{name}: expected 2 to 8, got {width}")


def _config(name: str, module: nn.Module, width: Width, granularity: Any, method: str) -> Int8 | Codebook | None:
    """How `quantize_` gets a linear layer or an embedding."""
    if not isinstance(width, int):
        return width
    if width not in _KERNELS:
        raise ValueError(f"nbits: {name} is a {type(module).__name__}, which takes 2, 3, 4 or 8, got {width}")
    if method == "analytic":  # the config has one density for all tables
        method = "laplace"
        if _reason(module, Int8()) is None:
            _check_finite(name, module)
            w = _numpy_floats(module.weight)
            errors = {m: np.sum(lowbit.fit_levels_rows(w, 1 << width, method=m).mse) for m in ("laplace", "gauss")}
            method = min(errors, key=lambda m: errors[m])
    return Codebook(width, granularity, None, method)


def _coded(weight: torch.Tensor, width: Width, granularity: Any, method: str) -> Coded | Int8Rows:
    w = _numpy_floats(weight).reshape(len(weight), -1)
    if isinstance(width, int):
        return nonuniform_weight(w, width, granularity=granularity, method=method)
    rows = lowbit.quantize_rows(w.astype(np.float32), symmetric=True)
    return Int8Rows(rows.codes, rows.scale)


def _report(name: str, module: nn.Module, before: torch.Tensor, coded: Coded | Int8Rows) -> LayerReport:
    size, norm = _tensor_bytes(module), before.double().norm()
    error = float((module.weight.detach().double() - before.double()).norm() / norm) if norm else 0.0
    config, what = "Int8", "int8"
    if isinstance(coded, Coded):
        config, what = "Codebook", f"{coded.nbits}-bit codebook"
        if coded.density is not None:
            counts = {d: coded.density.count(d) for d in ("laplace", "gauss")}
            what += " by " + ", ".join(f"{d} {count}" for d, count in counts.items() if count)
    stored = size - before.nbytes + coded.nbytes
    return LayerReport(name, type(module).__name__, config, size, stored, error, f"{what}, {_FLOATING}")
