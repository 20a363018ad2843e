"""The quantizers' configs: frozen, torch-free, to and from JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

__all__ = ["Codebook", "Config", "Int8", "Series", "Spiking", "Uniform", "from_json"]


#: How levels are found (:func:`lowbit.fit_levels`).
METHODS = ("optimal", "lloyd_max", "laplace", "gauss", "uniform", "quantile", "pot", "apot")


@dataclass(frozen=True)
class Config:
    """The base of all configs."""

    _kinds: ClassVar[dict[str, type[Config]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Config._kinds[cls.__name__] = cls

    def to_json(self) -> str:
        """This config as a JSON object with its class's name under ``"kind"``.

        Examples
        --------
        >>> import lowbit
        >>> lowbit.Int8().to_json()
        '{"kind": "Int8", "equalize": true}'
        """
        import json  # here, since few need it and `import lowbit` is to be quick

        return json.dumps({"kind": type(self).__name__, **asdict(self)})


@dataclass(frozen=True)
class Int8(Config):
    """Eight bits: symmetric weights with one scale per output row, and
    activations rounded to 8 bits per row, with a zero point, within the call.

    For embeddings: one scale per row.

    Parameters
    ----------
    equalize : bool
        Divide each column of a weight by a power of two near the square root of
        its size, and multiply that input with it before it is rounded: the
        rounding then counts where the weight is large. Without data this is the
        choice that bounds the error best. Inputs that are codes already
        (:class:`lowbit.RowCodes`) need False.
    """

    equalize: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.equalize, bool):
            raise TypeError(f"equalize: expected a bool, got {self.equalize!r}")


@dataclass(frozen=True)
class Uniform(Config):
    """Two to eight bits: weights in groups along each output row.

    A group has an 8-bit scale, a multiple of one float32 per row, and a zero point
    of as many bits as a code. 4 bits in groups of 32 are 4.375 bits a weight.

    Parameters
    ----------
    nbits : int
        2 to 6, or 8.
    group_size : int
        A multiple of 8; the last group of a row may be shorter.
    symmetric : bool
        No zero points: a code of ``2**(nbits - 1)`` is 0.
    scale : {"mse", "absmax"}
        Scale and zero point are searched together for the least squared error, in
        the form in which they are stored; or reach all of a group's range.
    activation : {"int8", "int8_group"} or None
        How a layer takes its inputs: rounded to 8 bits, with a zero point, per row
        or per 32 of a row, within the call; or None, as the floats that they are,
        which costs the speed of integers.
    rotate : {None, "hadamard"}
        Rotate inputs, as they are rounded, and the weight, beforehand, by a
        randomised Hadamard transform, which spreads what is large over many of them.
        It goes over blocks of the largest power of two that divides the inputs, at
        most 4096; a weight whose inputs are no multiple of 8 stays as it is.
        `quantize_` and `calibrate_` keep it for the layers whose error it lessens: by
        what the data measure of the outputs, without data of the weights. Inputs
        cannot be codes already.
    equalize : bool
        As in :class:`Int8`; before the rotation if there is one.

    References
    ----------
    The rotation is that of S. Ashkboos et al., "QuaRot: outlier-free 4-bit inference
    in rotated LLMs", 2024, and A. Tseng et al., "QuIP#: even better LLM quantization
    with Hadamard incoherence and lattice codebooks", 2024.
    """

    nbits: int
    group_size: int = 32
    symmetric: bool = False
    scale: str = "mse"
    activation: str | None = "int8"
    rotate: Literal["hadamard"] | None = None
    equalize: bool = True

    def __post_init__(self) -> None:
        for name, value in (("nbits", self.nbits), ("group_size", self.group_size)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an int, got {value!r}")
        if self.nbits not in (2, 3, 4, 5, 6, 8):
            raise ValueError(f"nbits: expected 2 to 6 or 8, got {self.nbits}")
        if self.group_size < 8 or self.group_size % 8 or self.group_size >= 1 << 32:
            raise ValueError(f"group_size: expected a multiple of 8 below 2**32, got {self.group_size}")
        for name, value in (("symmetric", self.symmetric), ("equalize", self.equalize)):
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected a bool, got {value!r}")
        if self.scale not in ("mse", "absmax"):
            raise ValueError(f"scale: expected 'mse' or 'absmax', got {self.scale!r}")
        if self.activation not in ("int8", "int8_group", None):
            raise ValueError(f"activation: expected 'int8', 'int8_group' or None, got {self.activation!r}")
        if self.rotate not in (None, "hadamard"):
            raise ValueError(f"rotate: expected None or 'hadamard', got {self.rotate!r}")


@dataclass(frozen=True)
class Codebook(Config):
    """Two, three, four or eight bits: weights whose codes stand for entries of a table.

    The table is learned from the weight: its entries lie where the weights are. As in
    :class:`Uniform` each group along an output row has an 8-bit multiple of one float32 per
    row, its scale; the table is of what the weights are without it. 4 bits in groups of
    64 are 4.125 bits a weight, and the table.

    Parameters
    ----------
    nbits : int
        2, 3, 4 or 8.
    granularity : {"tensor", "channel", "group"}
        Which codes share a table: all of a weight's, an output row's, or a group's: with
        4 bits in groups of 64 the tables take half as much as the codes.
    group_size : int or None
        A multiple of 16; None: a row has one scale.
    method : str
        How a table's levels are found, as in :func:`lowbit.fit_levels`.
    refine : int
        So many rounds more, in each of which table, scales and codes are chosen again, one
        after the other, given the others. With the inputs' second moments it is the error
        of the outputs that falls.
    activation : {"int8"} or None
        How a layer takes its inputs: rounded to 8 bits, with a zero point, per row within
        the call, and the table's entries are int8; or as the floats that they are, and the
        entries are values of bfloat16, which layers of torch keep as such.
    rotate : {None, "hadamard"}
        As in :class:`Uniform`.
    equalize : bool
        As in :class:`Uniform`.

    References
    ----------
    Tables that are learned under scales of groups: M. Elhoushi and J. Johnson, "any4: learned
    4-bit numeric representation for LLMs", 2025; S. Kim et al., "SqueezeLLM: dense-and-sparse
    quantization", 2023, by weighted k-means.
    """

    nbits: int
    granularity: Literal["tensor", "channel", "group"] = "tensor"
    group_size: int | None = 64
    method: str = "optimal"
    refine: int = 0
    activation: str | None = "int8"
    rotate: Literal["hadamard"] | None = None
    equalize: bool = True

    def __post_init__(self) -> None:
        for name, value in (("nbits", self.nbits), ("group_size", self.group_size), ("refine", self.refine)):
            if (not isinstance(value, int) or isinstance(value, bool)) and (name, value) != ("group_size", None):
                raise TypeError(f"{name}: expected an int, got {value!r}")
        if self.nbits not in (2, 3, 4, 8):
            raise ValueError(f"nbits: expected 2, 3, 4 or 8, got {self.nbits}")
        if self.granularity not in ("tensor", "channel", "group"):
            raise ValueError(f"granularity: expected 'tensor', 'channel' or 'group', got {self.granularity!r}")
        size = self.group_size
        if size is not None and (size < 16 or size % 16 or size >= 1 << 32):
            raise ValueError(f"group_size: expected a multiple of 16 below 2**32, or None, got {size}")
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.refine < 0:
            raise ValueError(f"refine: expected at least 0, got {self.refine}")
        if not isinstance(self.equalize, bool):
            raise TypeError(f"equalize: expected a bool, got {self.equalize!r}")
        if self.activation not in ("int8", None):
            raise ValueError(f"activation: expected 'int8' or None, got {self.activation!r}")
        if self.rotate not in (None, "hadamard"):
            raise ValueError(f"rotate: expected None or 'hadamard', got {self.rotate!r}")


@dataclass(frozen=True)
class Series(Config):
    """Sums of terms of few bits: weights and activations as series, without data.

    ``n`` terms of ``X`` bits are one code of ``nX`` bits (:attr:`effective_bits`), and a
    layer is :attr:`products` integer matrix products of ``X`` bits, or fewer of 8 bits
    that give the same integers.

    Parameters
    ----------
    weight_bits, weight_terms : int
        Of each output row or filter, symmetric (:func:`lowbit.expand`): 2 to 8 bits, at most
        16 in all terms.
    activation_bits, activation_terms : int
        Of a layer's inputs, within the call, by their own range: each row's of a linear
        layer, each sample's of a convolution. 2 to 8 bits, at most 16 in all terms.
    clip : float or None
        As in :func:`lowbit.expand`, of weights: what lies beyond so many times a row's root
        mean square is a sparse term of its own.
    equalize : bool
        As in :class:`Int8`, of linear layers.
    bias_correction : bool
        Let a layer's bias take up what rounding its weight moves the mean of its outputs by, where BatchNorms
        before it tell the mean of its inputs (:func:`lowbit.torch.correction.input_moments`).
    triangular : bool
        Leave out the products of terms ``i`` and ``j`` with ``i + j`` beyond the greater count
        plus 1: their part is no larger than that of terms which are left out anyway.
    feedback : bool
        Round a sample's inputs one after the other, each code making good what those before it moved the
        outputs by (:func:`lowbit.quantize_images`). Of convolutions of at most four input channels and 7 × 7, with
        stride 1, dilation 1 and one group, as networks of small images begin with; other layers round as ever. No
        input is then sure to be within half a step. At most 8 bits of activations.

    References
    ----------
    B. Zhang et al., "FP=xINT: a low-bit series expansion algorithm for post-training
    quantization", 2024. Triangular sums and feedback are ours; the correction is M. Nagel et al.'s, "Data-free
    quantization through weight equalization and bias correction", 2019.

    Examples
    --------
    >>> import lowbit
    >>> config = lowbit.Series(4, 2, 4, 2)
    >>> config.effective_bits, config.products
    ((8, 8), 4)
    """

    weight_bits: int
    weight_terms: int
    activation_bits: int
    activation_terms: int
    clip: float | None = None
    equalize: bool = True
    bias_correction: bool = True
    triangular: bool = False
    feedback: bool = False

    def __post_init__(self) -> None:
        for what in ("weight", "activation"):
            bits, terms = getattr(self, f"{what}_bits"), getattr(self, f"{what}_terms")
            for name, value in ((f"{what}_bits", bits), (f"{what}_terms", terms)):
                if not isinstance(value, int) or isinstance(value, bool):
                    raise TypeError(f"{name}: expected an int, got {value!r}")
            if not 2 <= bits <= 8:
                raise ValueError(f"{what}_bits: expected 2 to 8, got {bits}")
            if terms < 1 or bits * terms > 16:
                raise ValueError(f"{what}_terms: expected 1 to {16 // bits} of {bits} bits, got {terms}")
        if self.clip is not None:
            if isinstance(self.clip, bool) or not isinstance(self.clip, (int, float)):
                raise TypeError(f"clip: expected a number or None, got {self.clip!r}")
            if not 0 < self.clip < float("inf"):
                raise ValueError(f"clip: expected above 0 and finite, got {self.clip}")
        for name in ("equalize", "bias_correction", "triangular", "feedback"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {getattr(self, name)!r}")
        if self.feedback and self.effective_bits[1] > 8:
            raise ValueError(f"feedback: expected activations of at most 8 bits, got {self.effective_bits[1]}")

    @property
    def effective_bits(self) -> tuple[int, int]:
        """Bits of the codes that the terms of weights and of activations are cut from."""
        return self.weight_bits * self.weight_terms, self.activation_bits * self.activation_terms

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The terms whose products are summed, of weights and of activations, from 0."""
        weight, activation = self.weight_terms, self.activation_terms
        most = max(weight, activation) if self.triangular else weight + activation
        return tuple((i, j) for i in range(weight) for j in range(activation) if i + j < most)

    @property
    def products(self) -> int:
        """Integer matrix products of a layer, by definition."""
        return len(self.pairs)


@dataclass(frozen=True)
class Spiking(Config):
    """Two to eight bits: weights whose inputs are spikes, each output with a step of its own.

    A neuron compares its potential with a threshold, so the step becomes part of the
    threshold and nothing is ever scaled back. Of the layers in `lowbit.torch.spiking`.

    Parameters
    ----------
    nbits : int
        2 to 8; 2 to 4 for powers of two, 3 to 5 for sums of them.
    levels : {"uniform", "power_of_two", "additive"}
        Integers in a row; 0 and powers of two with a sign; sums of two powers of two
        from disjoint sets, with a sign.

    Examples
    --------
    >>> import lowbit
    >>> lowbit.Spiking(3).codes().tolist(), lowbit.Spiking(3, "power_of_two").codes().tolist()
    ([-3, -2, -1, 0, 1, 2, 3], [-4, -2, -1, 0, 1, 2, 4])

    References
    ----------
    Powers of two beside uniform levels, layer by layer, are those of B. Xu et al., "Trimming down
    large spiking vision transformers via heterogeneous quantization search", 2024; sums of powers
    of two those of Y. Li et al., "Additive powers-of-two quantization", ICLR 2020.
    """

    nbits: int
    levels: Literal["uniform", "power_of_two", "additive"] = "uniform"

    def __post_init__(self) -> None:
        if not isinstance(self.nbits, int) or isinstance(self.nbits, bool):
            raise TypeError(f"nbits: expected an int, got {self.nbits!r}")
        ranges = {"uniform": (2, 8), "power_of_two": (2, 4), "additive": (3, 5)}
        if self.levels not in ranges:
            raise ValueError(f"levels: expected 'uniform', 'power_of_two' or 'additive', got {self.levels!r}")
        low, high = ranges[self.levels]
        if not low <= self.nbits <= high:
            raise ValueError(f"nbits: expected {low} to {high} for {self.levels!r}, got {self.nbits}")

    def codes(self) -> np.ndarray:
        """The levels as int8, ascending."""
        if self.levels == "uniform":
            sizes = {*range(2 ** (self.nbits - 1))}
        elif self.levels == "power_of_two":
            sizes = {0, *(2**k for k in range(2 ** (self.nbits - 1) - 1))}
        else:
            sizes = {a + b for a in _ADDENDS[self.nbits][0] for b in _ADDENDS[self.nbits][1]}
        return np.array(sorted({sign * size for sign in (-1, 1) for size in sizes}), np.int8)


#: By bits, sign included: the sets of which an additive level takes one each.
_ADDENDS = {3: ((0, 1, 2, 4), (0,)), 4: ((0, 1, 4, 8), (0, 2)), 5: ((0, 2, 8, 32), (0, 1, 4, 16))}


def from_json(text: str) -> Config:
    """The config that :meth:`Config.to_json` wrote.

    Raises
    ------
    ValueError
        Not JSON, an unknown kind, or a field that the kind does not have.

    Examples
    --------
    >>> from lowbit.config import from_json
    >>> from_json('{"kind": "Int8"}')
    Int8(equalize=True)
    """
    import json

    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"config: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") not in Config._kinds:
        known = ", ".join(sorted(Config._kinds))
        got = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"config: expected an object with kind one of {known}, got {got!r}")
    kind = Config._kinds[data.pop("kind")]
    unknown = sorted(set(data) - {f.name for f in fields(kind)})
    if unknown:
        raise ValueError(f"config: {kind.__name__} has no field {', '.join(unknown)}")
    return kind(**data)
