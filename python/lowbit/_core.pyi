"""The signatures of the compiled module: `lowbit.*` is its one caller.

Arrays are C-contiguous and of the dtypes named; bfloat16 comes as uint16.
Lengths are checked again in the core. `make lint` holds this file against the
built module.
"""

from collections.abc import Sequence
from typing import Any, Self, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import disjoint_base

#: float32, or bfloat16 seen as uint16.
_Floats: TypeAlias = NDArray[np.float32] | NDArray[np.uint16] | NDArray[Any]
#: The one of the two that `nbits` asks for.
_Codes: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
#: A layer norm's weight, bias and epsilon.
_Norm: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32], float]
#: Outer, channels, inner, group size.
_Shape: TypeAlias = tuple[int, int, int, int]
#: Codes, scale and zero point of rows.
_Rows: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]

__version__: str

class InternalError(RuntimeError): ...

# affine: `dtype` names what `x` and `out` hold, float16 and bfloat16 as uint16
def choose_qparams(
    x: NDArray[Any],
    dtype: str,
    shape: _Shape,
    levels: tuple[int, bool, bool],
    method: str,
    percentile: float,
    sample_weight: NDArray[Any] | None,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    isa: str | None,
) -> int: ...
def quantize(
    x: NDArray[Any],
    dtype: str,
    shape: _Shape,
    bounds: tuple[int, int],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    codes: NDArray[np.uint8],
    isa: str | None,
) -> None: ...
def dequantize(
    codes: NDArray[np.uint8],
    shape: _Shape,
    qmax: int,
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    out: NDArray[Any],
    dtype: str,
    isa: str | None,
) -> None: ...
def expand(
    x: NDArray[Any],
    dtype: str,
    shape: tuple[int, int, int, int],
    digits: tuple[int, int],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint32],
    codes: NDArray[np.uint8],
    isa: str | None,
) -> None: ...
def quantize_rows(
    x: NDArray[Any],
    dtype: str,
    k: int,
    levels: tuple[int, bool],
    group_size: int,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8],
    group_sums: NDArray[np.int32],
    isa: str | None,
) -> None: ...
def round_with_feedback(
    w: NDArray[np.float32],
    k: int,
    coefficients: NDArray[np.float32],
    levels: NDArray[np.float32],
    tables: tuple[int, int],
    group: NDArray[np.uint32],
    codes: NDArray[np.uint8],
    fresh: bool,
    isa: str | None,
) -> None: ...

# codebook
def kmeans_1d(
    x: NDArray[Any],
    rows: int,
    sample_weight: NDArray[np.float64] | None,
    k: int,
    pin_zero: bool,
    method: str,
    codes: NDArray[Any],
    levels: NDArray[np.float64],
    isa: str | None,
) -> list[tuple[float, int]]: ...

# codebook, codes, inertia, iterations, different points
_Fit: TypeAlias = tuple[NDArray[Any], NDArray[np.uint32], float, int, int]

def assign_f32(
    x: NDArray[np.float32],
    codebook: NDArray[np.float32],
    d: int,
    top: int,
    codes: NDArray[np.uint32],
    distances: NDArray[np.float32],
    isa: str | None,
) -> None: ...
def assign_f64(
    x: NDArray[np.float64],
    codebook: NDArray[np.float64],
    d: int,
    top: int,
    codes: NDArray[np.uint32],
    distances: NDArray[np.float32],
    isa: str | None,
) -> None: ...
def kmeans_f32(
    x: NDArray[np.float32],
    d: int,
    k: int,
    init: str,
    start: NDArray[np.float32] | None,
    options: tuple[int, int, float, int],
    weight: NDArray[np.float64] | None,
    isa: str | None,
) -> _Fit: ...
def kmeans_f64(
    x: NDArray[np.float64],
    d: int,
    k: int,
    init: str,
    start: NDArray[np.float64] | None,
    options: tuple[int, int, float, int],
    weight: NDArray[np.float64] | None,
    isa: str | None,
) -> _Fit: ...
def lookup_u8(codes: NDArray[np.uint8], codebook: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None: ...
def lookup_u16(codes: NDArray[np.uint16], codebook: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None: ...
def lookup_u32(codes: NDArray[np.uint32], codebook: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None: ...

# levels
def fit_levels(
    x: NDArray[Any],
    rows: int,
    sample_weight: NDArray[np.float64] | None,
    n_levels: int,
    method: str,
    pin_zero: bool,
    levels: NDArray[np.float64],
) -> list[tuple[float, float, int]]: ...
def density_levels(
    density: str, n_levels: int, method: str, clip: str, levels: NDArray[np.float64]
) -> tuple[float, float]: ...
def encode(x: NDArray[Any], rows: int, levels: NDArray[np.float64], codes: NDArray[Any], isa: str | None) -> None: ...
def decode(codes: NDArray[Any], rows: int, levels: NDArray[Any], out: NDArray[Any]) -> None: ...

# packing
def pack_u8(codes: NDArray[np.uint8], nbits: int, out: NDArray[np.uint8], isa: str | None) -> None: ...
def pack_u16(codes: NDArray[np.uint16], nbits: int, out: NDArray[np.uint8], isa: str | None) -> None: ...
def unpack_u8(packed: NDArray[np.uint8], nbits: int, out: _Codes, isa: str | None) -> None: ...
def unpack_u16(packed: NDArray[np.uint8], nbits: int, out: _Codes, isa: str | None) -> None: ...

# gemm
def tiled_len(k: int, n: int) -> int: ...
def tile_matrix(
    b: NDArray[np.int8], k: int, n: int, scale: NDArray[np.float32] | None, out: NDArray[np.uint8]
) -> None: ...
def weight_len(k: int, n: int, equalized: bool) -> int: ...
def quantize_weight(
    w: NDArray[np.float32], n: int, k: int, equalized: bool, out: NDArray[np.uint8], isa: str | None
) -> None: ...

_Form = tuple[int, int, bool, int, str | None, str | None]
# Codes, multipliers, zero points, scales.
_Parts = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]
# A weight's bytes, and the tables that they look up.
_Weight = tuple[NDArray[np.uint8], NDArray[Any] | None]

def groups_len(k: int, n: int, form: _Form, equalized: bool) -> int: ...
def groups_equalizer(
    w: NDArray[np.float32],
    n: int,
    k: int,
    form: _Form,
    equalized: bool,
    squares: NDArray[np.float64] | None,
    out: NDArray[np.float32],
) -> None: ...
def quantize_weight_groups(
    w: NDArray[np.float32],
    n: int,
    k: int,
    form: _Form,
    equalized: bool,
    searched: bool,
    importance: NDArray[np.float32] | None,
    equalizer: NDArray[np.float32] | None,
    out: NDArray[np.uint8],
    isa: str | None,
) -> None: ...
def tile_groups(
    parts: _Parts,
    n: int,
    k: int,
    form: _Form,
    codebook: NDArray[Any] | None,
    out: NDArray[np.uint8],
) -> None: ...
def fit_groups(
    w: NDArray[np.float32],
    n: int,
    k: int,
    form: _Form,
    codebook: NDArray[Any],
    importance: NDArray[np.float32] | None,
    parts: _Parts,
    isa: str | None,
) -> None: ...
def settle_groups(parts: _Parts, n: int, k: int, form: _Form, codebook: NDArray[np.int8]) -> int: ...
def untile_groups(weight: _Weight, k: int, n: int, parts: _Parts) -> None: ...
def untile(weight: NDArray[np.uint8], k: int, n: int, codes: NDArray[np.int8], scale: NDArray[np.float32]) -> None: ...
def lookup(indices: NDArray[np.int64] | None, weight: _Weight, k: int, n: int, out: NDArray[np.float32]) -> None: ...
def lookup_rows(
    indices: NDArray[np.int64], codes: NDArray[np.uint8], scale: NDArray[np.float32], out: NDArray[np.float32]
) -> None: ...
def matmul(
    a: NDArray[np.int8] | NDArray[np.uint8],
    m: int,
    tiled: NDArray[np.uint8],
    k: int,
    n: int,
    out: NDArray[np.int32] | NDArray[np.int64],
    isa: str | None,
) -> None: ...
def linear(
    x: _Floats | _Rows,
    m: int,
    weight: _Weight,
    k: int,
    n: int,
    bias: NDArray[np.float32] | None,
    act: str,
    residual: _Floats | None,
    norm: _Norm | None,
    out: _Floats | _Rows,
    count: int,
    openmp: bool,
    isa: str | None,
) -> None: ...
def mlp(
    x: _Floats,
    m: int,
    k: int,
    up: _Weight,
    up_bias: NDArray[np.float32] | None,
    inner: int,
    act: str,
    down: _Weight,
    down_bias: NDArray[np.float32] | None,
    n: int,
    residual: _Floats | None,
    norm: _Norm | None,
    out: _Floats,
    count: int,
    openmp: bool,
    isa: str | None,
) -> None: ...

# threads and instruction sets
def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def thread_complaints() -> list[str]: ...
def use_openmp(path: str) -> bool: ...
def _panic(text: str, work: int) -> None: ...

# spike_product: `nbits` is 32 for float32; sums are int32 or float32 with it
#: Input's H, W, C; kernel; stride; padding.
_Sizes: TypeAlias = tuple[
    tuple[int, int, int], tuple[int, int], tuple[int, int], tuple[tuple[int, int], tuple[int, int]]
]

def spike_weight_len(k: int, n: int, nbits: int) -> int: ...
def tile_spike_weight(w: NDArray[Any], k: int, n: int, nbits: int, out: NDArray[np.uint8]) -> None: ...
def untile_spike_weight(tiled: NDArray[np.uint8], k: int, n: int, nbits: int, out: NDArray[Any]) -> None: ...
def spike_matmul(
    spikes: NDArray[np.uint8],
    kind: str,
    m: int,
    tiled: NDArray[np.uint8],
    k: int,
    n: int,
    nbits: int,
    bias: NDArray[Any] | None,
    out: NDArray[Any],
    isa: str | None,
) -> None: ...
def spike_conv2d_size(sizes: _Sizes) -> list[int]: ...
def spike_conv2d(
    spikes: NDArray[np.uint8],
    kind: str,
    images: int,
    sizes: _Sizes,
    tiled: NDArray[np.uint8],
    n: int,
    nbits: int,
    bias: NDArray[Any] | None,
    out: NDArray[Any],
    isa: str | None,
) -> None: ...
def spike_conv2d_pairs(spikes: NDArray[np.uint8], images: int, sizes: _Sizes) -> int: ...

# snn: values have numbers, the input's is 0; each method that appends a node gives that of its value
@final
class SpikingNetwork:
    def __new__(cls, kind: str, len: int) -> SpikingNetwork: ...
    def product(
        self,
        label: str,
        source: int,
        tiled: NDArray[np.uint8],
        k: int,
        n: int,
        nbits: int,
        bias: NDArray[Any] | None,
        conv: _Sizes | None,
    ) -> int: ...
    def neurons(
        self,
        label: str,
        source: int,
        neuron: dict[str, Any],
        exact: bool,
        readout: bool,
    ) -> int: ...
    def pool(self, label: str, source: int, sizes: _Sizes, sums: bool) -> int: ...
    def channels_first(self, label: str, source: int, sizes: tuple[int, int, int]) -> int: ...
    def add(self, label: str, sources: list[int]) -> int: ...
    def attention(self, label: str, sources: list[int], width: int, heads: int) -> int: ...
    def total(self, label: str, source: int, sizes: tuple[int, int, int]) -> int: ...
    def memory(self, streams: int) -> SpikingMemory: ...
    def run(
        self,
        frames: NDArray[Any] | None,
        still: bool,
        events: tuple[NDArray[np.int64], NDArray[np.uint8], int] | None,
        sizes: list[int],
        memory: SpikingMemory | None,
        wanted: list[tuple[int, NDArray[Any]]],
        first: list[int],
        streams: int,
        isa: str | None,
    ) -> list[NDArray[np.uint64]]: ...

@final
class SpikingMemory:
    def get(self, layer: int) -> list[NDArray[Any] | None]: ...
    def set(self, layer: int, arrays: list[NDArray[Any] | None]) -> None: ...

# conv: stride, dilation, padding, groups
_Steps: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[tuple[int, int], tuple[int, int]], int]

def conv2d_size(x: tuple[int, ...], weight: tuple[int, ...], steps: _Steps) -> list[int]: ...
def conv2d(
    x: NDArray[Any],
    weight: NDArray[Any],
    bias: NDArray[np.int32],
    steps: _Steps,
    zero_points: tuple[int, int],
    out: NDArray[np.int32],
    isa: str | None,
) -> None: ...
def quantize_images(
    x: NDArray[np.float32],
    nbits: int,
    feedback: NDArray[np.float32],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.uint8],
    isa: str | None,
) -> None: ...

@final
class RoundedConv2d:
    def __new__(
        cls,
        weight: NDArray[np.int8],
        image: tuple[int, int, int],
        steps: _Steps,
        feedback: NDArray[np.float32] | None,
        isa: str | None,
    ) -> RoundedConv2d: ...
    def run(
        self,
        x: NDArray[np.float32],
        nbits: int,
        scale: NDArray[np.float32],
        bias: NDArray[np.float32],
        out: NDArray[np.float32],
        threads: int,
        openmp: bool,
    ) -> None: ...

# spiking: v, i, a and refractory steps left; parameters of one element are for all neurons
_NeuronState: TypeAlias = tuple[
    NDArray[Any], NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.uint16] | None
]

def simulate(
    x: NDArray[np.float32] | NDArray[np.int32],
    neuron: dict[str, Any],
    exact: bool,
    state: _NeuronState,
    fresh: bool,
    spikes: NDArray[np.uint8],
    row: int | None,
    trace: NDArray[Any] | None,
    isa: str | None,
) -> None: ...
def spiking_forward(
    x: NDArray[np.float32],
    neuron: dict[str, Any],
    exact: bool,
    v: NDArray[np.float32],
    spikes: NDArray[np.float32],
    threads: int | None,
    openmp: bool,
    isa: str | None,
) -> None: ...
def spiking_backward(
    inputs: tuple[NDArray[np.float32], NDArray[np.float32]],
    neuron: dict[str, Any],
    exact: dict[str, Any] | None,
    surrogate: tuple[str, float, NDArray[np.float32]],
    detach_reset: bool,
    incoming: tuple[NDArray[np.float32], NDArray[np.float32]],
    outgoing: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None],
    threads: int | None,
    openmp: bool,
    isa: str | None,
) -> None: ...

# integer: the graph is JSON, constants and inputs are of the dtypes that it says
@disjoint_base
class Network:
    def __new__(cls, graph: str, constants: Sequence[NDArray[Any]], isa: str | None = None) -> Self: ...
    def __call__(self, *inputs: ArrayLike, threads: int | None = None) -> Any: ...
    def _run(
        self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], threads: int | None = None
    ) -> None: ...
    def _stream(self) -> Stream: ...
    def _profile(self, inputs: Sequence[NDArray[Any]], rounds: int) -> list[tuple[str, str, int, int]]: ...
    @property
    def memory(self) -> tuple[int, int]: ...
    @property
    def isa(self) -> str: ...

@final
class Stream:
    def run(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> None: ...

def check_graph(graph: str) -> None: ...
