"""`choose_qparams`, `quantize`, `dequantize`, `quantize_rows` against FORMATS.md, the
reference and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.extra.numpy as hnp
import lowbit
import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lowbit import PerAxis, PerGroup, PerTensor, QParams, reference

ISAS = lowbit.available_isas()
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BF16]
SCHEMES = [(True, False), (True, True), (False, False)]  # symmetric, full_range
METHODS = ["absmax", "percentile", "mse"]
F32_MAX = float(np.finfo(np.float32).max)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def some(shape, dtype=np.float32, seed: int = 0) -> np.ndarray:
    """Values with outliers."""
    return np.random.default_rng(seed).standard_t(3, shape).astype(dtype)


def check(x, isas, ran=None, *, nbits=8, **kwargs) -> None:
    """All four steps equal the reference's, bit for bit."""
    want = reference.choose_qparams(x, nbits, **kwargs)
    codes = reference.quantize(x, want)
    back = reference.dequantize(codes, want, dtype=np.asarray(x).dtype)
    for isa in isas:
        got = lowbit.choose_qparams(x, nbits, **kwargs, isa=isa)
        assert same(got.scale, want.scale), (isa, got.scale, want.scale)
        assert same(got.zero_point, want.zero_point), isa
        assert (got.qmin, got.qmax, got.nbits) == (want.qmin, want.qmax, want.nbits)
        assert same(lowbit.quantize(x, want, isa=isa), codes), isa
        assert same(lowbit.dequantize(codes, want, dtype=np.asarray(x).dtype, isa=isa), back), isa
        if ran:
            ran(isa)


# ------------------------------------------------------------------ what it does


def examples():
    text = (Path(__file__).parents[1] / "FORMATS.md").read_text(encoding="utf-8")
    section = next(s for s in text.split("\n## ") if s.startswith("Rounding and scales"))
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[0].isdigit():
            yield pytest.param(*cells, id="-".join(cells[:5]))


@pytest.mark.parametrize(
    ("nbits", "scheme", "method", "dtype", "values", "scale", "zero_point", "codes"), list(examples())
)
def test_the_examples_of_formats_md(nbits, scheme, method, dtype, values, scale, zero_point, codes, isa, ran):
    x = np.array(values.split(), np.float64).astype(dtype)
    method, _, percentile = method.partition(" ")
    kwargs = dict(
        symmetric=scheme != "asymmetric",
        full_range=scheme == "full",
        method=method,
        percentile=float(percentile or 50),
    )
    for library in (lowbit, reference):
        q = library.choose_qparams(x, int(nbits), **kwargs, isa=isa)
        assert same(q.scale, np.float32(scale))
        assert q.zero_point == int(zero_point)
        assert same(library.quantize(x, q, isa=isa), np.array(codes.split(), np.uint8))
    ran(isa)


def test_every_method_and_scheme_has_an_example():
    rows = [p.values for p in examples()]
    assert {r[2].split()[0] for r in rows} == set(METHODS)
    assert {r[1] for r in rows} == {"symmetric", "full", "asymmetric"}


granularities = st.one_of(
    st.just(PerTensor()),
    st.integers(-3, 2).map(PerAxis),
    st.integers(1, 70).map(PerGroup),
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_array(data):
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=70), "shape")
    granularity = data.draw(granularities, "granularity")
    if isinstance(granularity, PerAxis):
        assume(-len(shape) <= granularity.axis < len(shape))
    width = 64 if dtype == np.float64 else 32
    limit = {"float16": 65504.0, "bfloat16": 3.38e38}.get(dtype.name, 1e38)
    limit = float(np.float32(limit)) if width == 32 else limit
    values = st.one_of(
        st.floats(-4, 4, width=width),
        st.floats(-limit, limit, width=width, allow_subnormal=True),
        st.sampled_from([0.0, -0.0, 1e-40, 0.5, -1.5, 2.5, 127.0]),
    )
    x = data.draw(hnp.arrays(np.float64, shape, elements=values), "x").astype(dtype)
    method = data.draw(st.sampled_from(METHODS), "method")
    symmetric, full_range = data.draw(st.sampled_from(SCHEMES), "scheme")
    weight = None
    if method != "absmax" and data.draw(st.booleans(), "weighted"):
        weights = st.sampled_from([0.0, 0.5, 1.0, 3.0, 1e-30, 1e30])
        weight = data.draw(hnp.arrays(np.float32, shape, elements=weights), "weight")
        assume(weight.any())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check(
            x,
            ISAS,
            nbits=data.draw(st.integers(2, 8), "nbits"),
            granularity=granularity,
            symmetric=symmetric,
            full_range=full_range,
            method=method,
            percentile=data.draw(st.sampled_from([100, 99.99, 90.0, 50, 1e-9]), "percentile"),
            sample_weight=weight,
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
def test_sizes_straddle_every_vector(dtype, symmetric, ran):  # rows 5, 28, 39
    for n in [*range(1, 140), 511, 512, 513, 1023, 1024, 1025, 2049]:
        x = some((2, n), dtype, n)
        for granularity in [PerAxis(0), PerAxis(-1), PerGroup(33)]:
            check(x, ISAS, ran, nbits=4, granularity=granularity, symmetric=symmetric)
        if n < 36 or n > 500:
            check(x, ISAS, ran, nbits=3, granularity=PerAxis(0), symmetric=symmetric, method="mse")


@pytest.mark.parametrize("group_size", [1, 7, 64, 100, 10**9, 2**70])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_may_be_ragged_or_longer_than_a_row(group_size, dtype, ran):  # row 40
    x = some((3, 2, 100), dtype)
    for method in METHODS:
        check(x, ISAS, ran, nbits=5, granularity=PerGroup(group_size), method=method, percentile=80)
    q = lowbit.choose_qparams(x, granularity=PerGroup(group_size))
    assert q.scale.shape == (3, 2, -(-100 // group_size))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_the_axis_that_is_kept(axis, ran):
    x = some((5, 6, 7))
    for method in METHODS:
        check(x, ISAS, ran, granularity=PerAxis(axis), method=method, percentile=80, symmetric=False)
    q = lowbit.choose_qparams(x, granularity=PerAxis(axis))
    assert q.scale.shape == (x.shape[axis],)
    amax = np.abs(np.moveaxis(x, axis, 0)).reshape(x.shape[axis], -1).max(axis=1)
    assert same(q.scale, amax / np.float32(127))


LONG = [
    ((3, 70_001), PerAxis(0)),
    ((70_001, 3), PerAxis(1)),
    ((2, 100_000), PerGroup(70_000)),
    ((200_003,), PerTensor()),
    ((64, 3000), PerGroup(64)),
    ((3000, 64), PerAxis(-1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "granularity"), LONG)
def test_threads_change_nothing(shape, granularity, dtype, ran):
    x, weight = some(shape, dtype), np.random.default_rng(1).random(shape).astype(np.float32)
    for method, symmetric, w in [
        ("absmax", False, None),
        ("percentile", True, None),
        ("percentile", False, weight),
        ("mse", False, None),
        ("mse", True, weight),
    ]:
        kwargs = dict(granularity=granularity, method=method, symmetric=symmetric, percentile=99)
        want = reference.choose_qparams(x, 4, sample_weight=w, **kwargs)
        codes = reference.quantize(x, want)
        back = reference.dequantize(codes, want, dtype=dtype)
        for threads in [1, 2, 7]:
            with lowbit.threads(threads):
                for isa in ISAS:
                    got = lowbit.choose_qparams(x, 4, sample_weight=w, **kwargs, isa=isa)
                    assert same(got.scale, want.scale), (isa, threads)
                    assert same(got.zero_point, want.zero_point), (isa, threads)
                    assert same(lowbit.quantize(x, want, isa=isa), codes), (isa, threads)
                    assert same(lowbit.dequantize(codes, want, dtype=dtype, isa=isa), back), (isa, threads)
                    ran(isa)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 1, 32, 1000])
def test_rows(dtype, symmetric, group_size, isa, ran):
    for shape in [(1,), (3, 1), (2, 3, 100), (700, 129), (0 + 2, 2049)]:
        x = some(shape, dtype)
        x.reshape(-1, shape[-1])[0] = 2.5
        want = reference.quantize_rows(x, symmetric=symmetric, group_size=group_size)
        for threads in [1, 2, 7]:
            with lowbit.threads(threads):
                got = lowbit.quantize_rows(x, symmetric=symmetric, group_size=group_size, isa=isa)
            for field in dataclasses.fields(want):
                assert same(getattr(got, field.name), getattr(want, field.name)), field.name
            ran(isa)


def test_rows_are_what_quantize_makes_of_each(isa):
    x = some((9, 77))
    for symmetric in [True, False]:
        rows = lowbit.quantize_rows(x, symmetric=symmetric, isa=isa)
        q = lowbit.choose_qparams(x, granularity=PerAxis(0), symmetric=symmetric, isa=isa)
        assert same(rows.codes, lowbit.quantize(x, q, isa=isa))
        assert same(rows.scale, q.scale)
        assert same(rows.zero_point.astype(np.int32), q.zero_point)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_that_is_not_finite_leaves_the_others_alone(dtype, isa):
    x = some((4, 50), dtype)
    want = lowbit.quantize_rows(x, isa=isa)
    for value in [np.nan, np.inf, -np.inf]:
        for at in [0, 31, 49]:
            bad = x.copy()
            bad[2, at] = value
            got = lowbit.quantize_rows(bad, isa=isa)
            assert np.isnan(got.scale[2])
            for row in [0, 1, 3]:
                assert same(got.codes[row], want.codes[row])
                assert got.scale[row] == want.scale[row]


def test_every_mse_is_at_most_that_of_absmax(isa):
    x = some((50, 300))
    for nbits in range(2, 9):
        for symmetric, full_range in SCHEMES:
            error = {}
            for method in METHODS:
                kwargs = dict(granularity=PerAxis(0), symmetric=symmetric, full_range=full_range)
                q = lowbit.choose_qparams(x, nbits, method=method, percentile=99, **kwargs, isa=isa)
                back = lowbit.dequantize(lowbit.quantize(x, q, isa=isa), q, isa=isa)
                error[method] = ((x - back).astype(float) ** 2).sum(axis=1)
            assert (error["mse"] <= error["absmax"]).all()
            if nbits < 5:
                assert error["mse"].sum() < 0.9 * error["absmax"].sum()


def test_weights_draw_the_scale_to_what_matters(isa):
    x = np.array([0.1, -0.2, 0.3, 8.0] * 8, np.float32)
    light = lowbit.choose_qparams(x, 3, method="mse", sample_weight=[1.0, 1.0, 1.0, 1e-6] * 8, isa=isa)
    heavy = lowbit.choose_qparams(x, 3, method="mse", sample_weight=[1.0, 1.0, 1.0, 1e6] * 8, isa=isa)
    assert light.scale < heavy.scale / 5


def test_weights_broadcast(isa):
    x, columns = some((6, 40)), np.random.default_rng(1).random(40).astype(np.float32)
    full = np.ascontiguousarray(np.broadcast_to(columns, x.shape))
    for weight in [columns, columns.astype(np.float64), columns[None], full]:
        q = lowbit.choose_qparams(x, 3, method="mse", sample_weight=weight, isa=isa)
        assert same(q.scale, reference.choose_qparams(x, 3, method="mse", sample_weight=full).scale)


def test_out_is_filled_and_returned(isa):
    x = some((5, 77))
    q = lowbit.choose_qparams(x, granularity=PerGroup(32))
    codes = np.empty(x.shape, np.uint8)
    assert lowbit.quantize(x, q, out=codes, isa=isa) is codes
    assert same(codes, reference.quantize(x, q))
    for dtype in DTYPES:
        out = np.empty(x.shape, dtype)
        assert lowbit.dequantize(codes, q, dtype=dtype, out=out, isa=isa) is out
        assert same(out, reference.dequantize(codes, q, dtype=dtype))


def test_scales_given_by_hand(isa):
    q = QParams(0.5, 3, 4, 0, 15, PerTensor(), symmetric=False)
    assert same(lowbit.quantize([-1.0, 0.25, 0.75, 100.0], q, isa=isa), np.array([1, 3, 5, 15], np.uint8))
    narrow = dataclasses.replace(q, qmin=2, qmax=9)
    assert same(lowbit.quantize([-1.0, 100.0], narrow, isa=isa), np.array([2, 9], np.uint8))


# ------------------------------------------------------------------ values that are hard


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("symmetric", "full_range"), SCHEMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants_are_exact(dtype, symmetric, full_range, method, isa, ran):  # row 6
    for c in [0.0, -0.0, 1.0, -2.5, 3e-5, -60000.0, 1 / 3]:
        for n in [1, 5, 64, 100]:
            x = np.full((2, n), c, dtype)
            q = lowbit.choose_qparams(
                x,
                3,
                granularity=PerAxis(0),
                symmetric=symmetric,
                full_range=full_range,
                method=method,
                isa=isa,
            )
            codes = lowbit.quantize(x, q, isa=isa)
            value = np.float32(x[0, 0])
            assert (q.scale == (np.abs(value) if value else 1)).all()
            assert (codes.astype(int) - q.zero_point[:, None] == np.sign(value)).all()
            if dtype != np.float64:
                assert (lowbit.dequantize(codes, q, dtype=dtype, isa=isa) == x).all()
            ran(isa)


@pytest.mark.parametrize("method", METHODS)
def test_huge_magnitudes(method, ran):  # row 12
    for x in [
        np.array([F32_MAX, -F32_MAX, 1.0, 0.0, F32_MAX / 3] * 9, np.float32),
        np.array([1e39, -3e38, 1.0, 0.0] * 9),
        np.array([3.38e38, -3.38e38, 1e30, 0.0] * 9, BF16),
        np.array([65504, -65504, 1, 0] * 9, np.float16),
    ]:
        for symmetric, full_range in SCHEMES:
            for nbits in [3, 4, 8]:
                kwargs = dict(symmetric=symmetric, full_range=full_range, method=method)
                check(x, ISAS, ran, nbits=nbits, **kwargs)
                q = lowbit.choose_qparams(x, nbits, **kwargs)
                for dtype in DTYPES:
                    back = lowbit.dequantize(lowbit.quantize(x, q), q, dtype=dtype)
                    assert np.isfinite(back.astype(np.float64)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_magnitudes(dtype, method, ran):  # row 13: no scale below 2**-126
    least = {"float16": 6e-8, "float64": 5e-324}.get(dtype.name, 1e-40)
    for x in [np.array([least, -least * 3, 0]), np.array([least] * 3), np.array([1e-36, 1e-38, -least])]:
        for symmetric in [True, False]:
            check(x.astype(dtype), ISAS, ran, symmetric=symmetric, method=method)
            assert lowbit.choose_qparams(x.astype(dtype), symmetric=symmetric).scale >= 2.0**-126


def test_float64_is_not_cut_to_float32(isa):  # rows 11, 28
    x = np.array([127, 63.49999999999999, 2.5000000000000004])
    q = lowbit.choose_qparams(x, isa=isa)
    assert lowbit.quantize(x, q, isa=isa).tolist() == [255, 191, 131]
    assert lowbit.quantize(x.astype(np.float32), q, isa=isa).tolist() == [255, 192, 130]
    near = 1e8 + np.array([0.0, 1e-3, 2e-3])
    check(near, ISAS, symmetric=False)
    tiny = np.array([1e-200, -2e-200])
    assert lowbit.quantize(tiny, lowbit.choose_qparams(tiny, isa=isa), isa=isa).tolist() == [128, 128]


def test_both_zeros_are_equal(isa):  # row 14
    x = some((3, 40))
    x[:, ::3] = 0.0
    y = x.copy()
    y[:, ::3] = -0.0
    for method in METHODS:
        for symmetric in [True, False]:
            a = lowbit.choose_qparams(x, symmetric=symmetric, method=method, percentile=30, isa=isa)
            b = lowbit.choose_qparams(y, symmetric=symmetric, method=method, percentile=30, isa=isa)
            assert same(a.scale, b.scale)
            assert same(lowbit.quantize(x, a, isa=isa), lowbit.quantize(y, b, isa=isa))


@pytest.mark.parametrize("nbits", range(2, 9))
def test_ranges_without_zero(nbits, isa):  # row 15
    for x, zero_point in [([-3.0, -1.0], 2**nbits - 1), ([1.0, 3.0], 0)]:
        q = lowbit.choose_qparams(x, nbits, symmetric=False, isa=isa)
        assert q.zero_point == zero_point
        assert 0 in lowbit.dequantize(lowbit.quantize([0.0, *x], q, isa=isa), q, isa=isa)
        check(np.float32(x), [isa], nbits=nbits, symmetric=True)


def test_ties_go_to_even(isa):  # row 16
    q = QParams(1.0, 128, 8, 0, 255, PerTensor())
    x = np.arange(-130, 130) + 0.5
    for dtype in [np.float32, np.float64]:
        codes = lowbit.quantize(x.astype(dtype), q, isa=isa)
        assert codes.tolist() == np.clip(np.rint(x) + 128, 0, 255).tolist()


def test_the_least_code(isa):  # row 37
    q = QParams(0.5, 128, 8, 1, 255, PerTensor())
    assert lowbit.dequantize(np.array([0, 1], np.uint8), q, isa=isa).tolist() == [-64.0, -63.5]


def test_all_codes_of_each_width(isa):
    for nbits in range(2, 9):
        q = QParams(0.5, 2, nbits, 0, 2**nbits - 1, PerTensor(), symmetric=False)
        codes = np.arange(2**nbits, dtype=np.uint8)
        for dtype in DTYPES:
            x = lowbit.dequantize(codes, q, dtype=dtype, isa=isa)
            assert same(lowbit.quantize(x, q, isa=isa), codes)


# ------------------------------------------------------------------ forms of input


def forms(x: np.ndarray):
    """The same values, (6, 90), in other memory."""
    wide = np.zeros((12, 180), x.dtype)
    wide[::2, ::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield pytest.param(wide[::2, ::2], id="18 strided")
    yield pytest.param(np.asfortranarray(x), id="19 Fortran")
    yield pytest.param(x.T.copy().T, id="19 transposed")
    yield pytest.param(x[:, ::-1].copy()[:, ::-1], id="20 negative stride")
    yield pytest.param(frozen, id="22 read-only")
    yield pytest.param(raw[1:].view(x.dtype).reshape(x.shape), id="24 misaligned")
    yield pytest.param(x.view(type("Sub", (np.ndarray,), {})), id="subclass")
    if x.dtype != BF16:
        yield pytest.param(x.astype(x.dtype.newbyteorder()), id="25 byte-swapped")
    if x.dtype == np.float32:
        yield pytest.param(x.tolist(), id="31 lists")
        yield pytest.param(list(x), id="31 list of arrays")


@pytest.mark.parametrize("form", [f for dtype in DTYPES for f in forms(some((6, 90), dtype))])
def test_forms_of_x(form):
    dtype = np.asarray(form).dtype
    dtype = np.dtype(np.float32) if isinstance(form, list) else dtype.newbyteorder("=")
    x = some((6, 90), dtype)
    want = reference.choose_qparams(x, 6, granularity=PerGroup(32))
    q = lowbit.choose_qparams(form, 6, granularity=PerGroup(32))
    assert same(q.scale, want.scale)
    assert same(lowbit.quantize(form, q), reference.quantize(x, want))
    assert same(lowbit.quantize_rows(form).codes, reference.quantize_rows(x).codes)


CODES = reference.quantize(some((6, 90)), reference.choose_qparams(some((6, 90))))


@pytest.mark.parametrize("form", [CODES[:, ::-1].copy()[:, ::-1], np.asfortranarray(CODES), CODES.tolist()])
def test_forms_of_codes(form):
    q = lowbit.choose_qparams(some((6, 90)))
    assert same(lowbit.dequantize(form, q), reference.dequantize(CODES, q))


def test_zero_stride_is_written_out():  # row 21
    x = np.broadcast_to(some((90,)), (6, 90))
    check(np.ascontiguousarray(x), ISAS, granularity=PerAxis(1))
    assert same(lowbit.quantize_rows(x).codes, reference.quantize_rows(x).codes)


def test_memory_map(tmp_path):  # row 22
    np.save(tmp_path / "x.npy", some((6, 90)))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert same(lowbit.choose_qparams(x).scale, reference.choose_qparams(some((6, 90))).scale)


def test_torch_tensors_on_the_cpu():  # row 30
    torch = pytest.importorskip("torch")
    x = some((6, 90))
    q = lowbit.choose_qparams(torch.from_numpy(x))
    assert same(lowbit.quantize(torch.from_numpy(x), q), reference.quantize(x, q))


def test_anything_with_array():  # row 31: a DataFrame is one such
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return some((6, 90))

    q = lowbit.choose_qparams(Frame())
    assert same(lowbit.quantize(Frame(), q), reference.quantize(some((6, 90)), q))


def test_one_value():  # row 5
    for shape in [(1,), (1, 1), (1, 5), (5, 1)]:
        for granularity in [PerTensor(), PerAxis(0), PerAxis(-1), PerGroup(3)]:
            check(some(shape), ISAS, granularity=granularity, method="mse")


# ------------------------------------------------------------------ what is refused

V, T = ValueError, TypeError
X = some((6, 90))
Q = reference.choose_qparams(X)
PER_ROW = reference.choose_qparams(X, granularity=PerAxis(0))


def choose(x=X, nbits=8, **kwargs):
    return lambda: lowbit.choose_qparams(x, nbits, **kwargs)


def quant(x=X, q=Q, **kwargs):
    return lambda: lowbit.quantize(x, q, **kwargs)


def dequant(codes=CODES, q=Q, **kwargs):
    return lambda: lowbit.dequantize(codes, q, **kwargs)


def rows(x=X, **kwargs):
    return lambda: lowbit.quantize_rows(x, **kwargs)


def other(q=Q, **kwargs):
    return dataclasses.replace(q, **kwargs)


def weighted(weight, method="mse", **kwargs):
    return choose(method=method, sample_weight=weight, **kwargs)


def put(value, at, x=X):
    x = x.copy()
    x.flat[at] = value
    return x


def frozen(a):
    a.flags.writeable = False
    return a


SHARED = np.zeros(4096, np.float32)
EMPTY = np.empty((3, 0), np.float32)

REFUSED = [
    # row, the call, the exception, words of its message
    (
        1,
        choose(put(np.nan, 7)),
        V,
        r"x: .* 1 that are not \(1 NaN, 0 \+Inf, 0 -Inf\), the first NaN at flat index 7",
    ),
    (1, choose(put(np.nan, 539), method="mse"), V, "the first NaN at flat index 539"),
    (1, choose(put(np.nan, 7), granularity=PerAxis(1), method="percentile"), V, "NaN at flat index 7"),
    (1, quant(put(np.nan, 7)), V, "the first NaN at flat index 7"),
    (1, quant(put(np.nan, 7).astype(np.float16)), V, "the first NaN at flat index 7"),
    (1, quant(put(np.nan, 7).astype(BF16), PER_ROW), V, "the first NaN at flat index 7"),
    (1, quant(put(np.nan, 7).astype(np.float64)), V, "the first NaN at flat index 7"),
    (
        2,
        choose(put(-np.inf, 100)),
        V,
        r"1 that are not \(0 NaN, 0 \+Inf, 1 -Inf\), the first -Inf at flat index 100",
    ),
    (
        2,
        choose(put([np.inf, -np.inf, np.nan], [5, 6, 7])),
        V,
        r"3 .*\(1 NaN, 1 \+Inf, 1 -Inf\), the first \+Inf .* 5",
    ),
    (2, quant(put(np.inf, 0)), V, r"the first \+Inf at flat index 0"),
    (2, quant(put(-np.inf, 539).astype(np.float64)), V, "the first -Inf at flat index 539"),
    (
        3,
        weighted(put(np.nan, 9, np.abs(X))),
        V,
        "sample_weight: .* 1 that are not, the first NaN at flat index 9",
    ),
    (3, weighted(put(np.inf, 9, np.abs(X))), V, "sample_weight: .* the first inf at flat index 9"),
    (3, weighted(put(-1, 9, np.abs(X)), "percentile"), V, "sample_weight: .* the first -1 at flat index 9"),
    (3, weighted(put(-1, 9, np.abs(X)), granularity=PerGroup(7)), V, "the first -1 at flat index 9"),
    (3, weighted(np.full(90, 1e300)), V, "sample_weight: .* the first inf"),
    (3, weighted(np.zeros_like(X)), V, "sample_weight: expected a weight above 0, got zeros alone"),
    (3, weighted(np.zeros_like(X), granularity=PerGroup(32)), V, "got zeros alone"),
    (3, weighted(np.ones_like(X), "absmax"), V, "sample_weight: method 'absmax' takes none"),
    (3, weighted(np.ones(7, np.float32)), V, r"sample_weight: .* broadcasts to \(6, 90\), got \(7,\)"),
    (3, weighted(np.ones((6, 90, 1), np.float32)), V, "sample_weight: .* broadcasts"),
    (3, weighted(np.ones(90, np.int64)), T, "sample_weight: expected dtype float32 or float64, got int64"),
    (4, choose(EMPTY), V, r"x: need at least 1 value, got shape \(3, 0\)"),
    (4, choose([]), V, r"x: need at least 1 value, got shape \(0,\)"),
    (4, quant(EMPTY), V, "x: need at least 1 value"),
    (4, dequant(EMPTY.astype(np.uint8)), V, "codes: need at least 1 value"),
    (4, rows(EMPTY), V, "x: need at least 1 value"),
    (4, rows(EMPTY.T.copy()), V, "x: need at least 1 value"),
    (9, choose(nbits=True), T, r"nbits: expected an int, got True \(bool\)"),
    (9, choose(nbits="8"), T, "nbits: expected an int, got '8'"),
    (9, choose(nbits=-1), V, "nbits: expected 2 to 8, got -1"),
    (9, choose(nbits=2**40), V, "nbits: expected 2 to 8"),
    (9, rows(group_size=True), T, "group_size: expected an int, got True"),
    (9, rows(group_size=2.0), T, "group_size: expected an int, got 2.0"),
    (12, choose(X.astype(np.float64) * 1e200), V, "x: the scale of group 0 exceeds float32"),
    (12, choose(X.astype(np.float64) * 1e200, granularity=PerAxis(0), method="mse"), V, "exceeds float32"),
    (12, choose(np.full(3, 1e200)), V, "exceeds float32"),
    (13, quant(q=other(scale=np.float32(1e-40))), V, r"qparams.scale: .* at least 2\*\*-126, got 1e-40"),
    (13, quant(q=other(scale=np.float32(0))), V, "qparams.scale: .* got 0e0 at flat index 0"),
    (13, quant(q=other(scale=np.float32(-1))), V, "qparams.scale: .* got -1e0"),
    (13, quant(q=other(scale=np.float32(np.nan))), V, "qparams.scale: .* got NaN"),
    (13, dequant(q=other(scale=np.float32(np.inf))), V, "qparams.scale: .* got inf"),
    (
        17,
        quant(q=other(PER_ROW, scale=put(np.nan, 4, PER_ROW.scale))),
        V,
        "qparams.scale: .* at flat index 4",
    ),
    (22, quant(out=frozen(np.empty((6, 90), np.uint8))), V, "out: expected a writeable array"),
    (22, dequant(out=frozen(np.empty((6, 90), np.float32))), V, "out: expected a writeable array"),
    (23, quant(SHARED[:64], out=SHARED.view(np.uint8)[:64]), V, "out: .* overlaps an input"),
    (23, dequant(SHARED.view(np.uint8)[:64], out=SHARED[:64]), V, "out: .* overlaps an input"),
    (
        23,
        quant(SHARED[:64], other(scale=SHARED[70:71].reshape(())), out=SHARED.view(np.uint8)[256:320]),
        V,
        "overlaps",
    ),
    (24, dequant(out=np.empty(2161, np.uint8)[1:].view(np.float32).reshape(6, 90)), V, "out: .* aligned"),
    (25, dequant(dtype=">f4"), T, "dtype: expected float32 or .*, got >f4"),
    (25, dequant(out=np.empty((6, 90), ">f4")), T, "out: expected dtype float32, got >f4"),
    (26, choose(np.float32(3)), V, "x: expected at least 1-D, got 0-D"),
    (26, choose(3.0), V, "x: expected at least 1-D, got 0-D"),
    (26, quant(np.array(3.0)), V, "x: expected at least 1-D, got 0-D"),
    (26, dequant(np.uint8(3)), V, "codes: expected at least 1-D"),
    (26, rows(np.array(3.0)), V, "x: expected at least 1-D, got 0-D"),
    (
        27,
        quant(q=PER_ROW, x=X[:5]),
        V,
        r"qparams.scale: expected shape \(5,\) for PerAxis.* \(5, 90\), got \(6,\)",
    ),
    (27, quant(q=other(granularity=PerGroup(32))), V, r"qparams.scale: expected shape \(6, 3\)"),
    (27, quant(q=other(zero_point=np.zeros(3, np.int32))), V, r"qparams.zero_point: expected shape \(\)"),
    (27, quant(out=np.empty((90, 6), np.uint8)), V, r"out: expected shape \(6, 90\), got \(90, 6\)"),
    (27, quant(out=np.empty((6, 90), np.int8)), T, "out: expected dtype uint8, got int8"),
    (27, quant(out=np.empty((12, 90), np.uint8)[::2]), V, "out: expected a C-contiguous"),
    (27, dequant(out=np.empty((6, 90))), T, "out: expected dtype float32, got float64"),
    (27, choose(granularity=PerAxis(2)), V, "axis: expected -2 to 1, got 2"),
    (27, choose(granularity=PerAxis(-3)), V, "axis: expected -2 to 1, got -3"),
    (27, quant(X[0], PER_ROW), V, "qparams.scale: expected shape"),
    (29, choose(granularity=PerAxis(True)), T, "axis: expected an int, got True"),
    (29, choose(granularity="tensor"), T, r"granularity: expected PerTensor\(\), .* got 'tensor'"),
    (29, choose(symmetric=1), T, "symmetric: expected a bool, got 1"),
    (29, choose(full_range="no"), T, "full_range: expected a bool"),
    (29, choose(percentile="99"), T, "percentile: expected a number, got '99'"),
    (29, choose(method=None), T, "method: expected a str, got None"),
    (29, quant(q=None), T, "qparams: expected QParams, got NoneType"),
    (29, rows(symmetric=None), T, "symmetric: expected a bool"),
    (
        29,
        choose(X.astype(np.int32)),
        T,
        "x: expected dtype float32 or float64 or float16 or bfloat16, got int32",
    ),
    (29, choose(X > 0), T, "got bool"),
    (29, choose(X.astype(complex)), T, "got complex64|got complex128"),
    (29, choose(X.astype(object)), T, "got object"),
    (29, choose(X.view(np.uint16)), T, "got uint16"),
    (29, choose(np.array(["1"])), T, "got <U1"),
    (29, choose("12"), T, "x: expected an array of float32 .*, got str"),
    (29, choose(np.array(["2020-01-01"], "M8[D]")), T, "got datetime64"),
    (29, choose(np.zeros(4, [("a", "f4")])), T, r"got \[\('a'"),
    (29, choose(np.ma.masked_array(X, X > 1)), T, "x: .* masked array; use .filled"),
    (29, dequant(X), T, "codes: expected dtype uint8, got float32"),
    (29, dequant(CODES.view(np.int8)), T, "codes: expected dtype uint8, got int8; store signed codes as"),
    (29, dequant(dtype=np.int32), T, "dtype: expected float32 or .*, got int32"),
    (29, dequant(dtype="nonsense"), T, "nonsense"),
    (29, quant(q=other(scale=np.float64(1))), T, "qparams.scale: expected dtype float32, got float64"),
    (29, quant(q=other(zero_point=np.int64(1))), T, "qparams.zero_point: expected dtype int32, got int64"),
    (31, choose([[1.0, 2.0], [3.0]]), V, "x: expected an array, got a ragged list"),
    (31, choose(i for i in range(3)), T, "x: expected an array of float32 .*, got generator"),
    (31, quant({1.0}), T, "x: expected an array of float32 .*, got set"),
    (34, choose(np.broadcast_to(np.float32(1), (2**48,))), MemoryError, "allocate 1.00 PiB"),
    (
        38,
        quant(q=other(zero_point=np.int32(256))),
        V,
        "qparams.zero_point: expected 1 to 255, got 256 at flat index 0",
    ),
    (38, quant(q=other(zero_point=np.int32(-1))), V, "qparams.zero_point: expected 1 to 255, got -1"),
    (38, dequant(q=other(zero_point=np.int32(256))), V, "qparams.zero_point: expected 0 to 255, got 256"),
    (38, quant(q=other(nbits=4, qmax=15)), V, "qparams.zero_point: expected 1 to 15, got 128"),
    (40, lambda: PerGroup(0), V, "group_size: expected at least 1, got 0"),
    (40, lambda: PerGroup(2.0), T, "group_size: expected an int, got 2.0"),
    (40, rows(group_size=0), V, "group_size: expected at least 1, got 0"),
    (41, choose(nbits=0), V, "nbits: expected 2 to 8, got 0"),
    (41, choose(nbits=1), V, "nbits: expected 2 to 8, got 1"),
    (41, choose(nbits=9), V, "nbits: expected 2 to 8, got 9"),
    (41, choose(nbits=17), V, "nbits: expected 2 to 8, got 17"),
    (41, choose(nbits=1.5), T, r"nbits: expected an int, got 1.5 \(float\)"),
    (41, quant(q=other(nbits=9)), V, "qparams.nbits: expected 2 to 8, got 9"),
    (41, quant(q=other(qmax=256)), V, "qparams.qmax: expected 1 to 255, got 256"),
    (41, quant(q=other(qmin=255)), V, "qparams.qmin: expected 0 to 254, got 255"),
    (
        43,
        dequant(np.array([3, 16], np.uint8), other(nbits=4, qmax=15, zero_point=np.int32(8))),
        V,
        "codes: expected codes of at most 15, got 16 at flat index 1",
    ),
    (67, choose(isa="mmx"), V, "isa: expected one of scalar, .* got 'mmx'"),
    (67, quant(isa="mmx"), V, "isa: expected one of scalar"),
    (0, choose(method="minmax"), V, "method: expected 'absmax', 'percentile' or 'mse', got 'minmax'"),
    (0, choose(method="percentile", percentile=0), V, "percentile: expected above 0 and at most 100, got 0"),
    (0, choose(method="percentile", percentile=100.1), V, "percentile: .* got 100.1"),
    (0, choose(method="percentile", percentile=np.nan), V, "percentile: .* got NaN"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [pytest.param(*c[1:], id=f"{c[0]}-{i}") for i, c in enumerate(REFUSED)]
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("flag", [[], ["-O"]])
def test_empty_without_asserts(flag):  # row 4
    code = (
        "import lowbit, numpy as np\n"
        "try: lowbit.choose_qparams(np.empty((0, 3), np.float32))\n"
        "except ValueError as error: print(error)"
    )
    told = subprocess.run([sys.executable, *flag, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "x: need at least 1 value, got shape (0, 3)\n"


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_groups_without_weight_count_as_unweighted(method, isa):  # row 3
    for shape, granularity in [((6, 90), PerAxis(0)), ((6, 90), PerGroup(32)), ((2, 70_000), PerAxis(0))]:
        x = some(shape)
        weight = np.abs(some(shape, seed=1))
        weight[1] = 0
        kwargs = dict(granularity=granularity, method=method, percentile=90, isa=isa)
        with pytest.warns(UserWarning, match="only zero weights") as told:
            q = lowbit.choose_qparams(x, 4, sample_weight=weight, **kwargs)
        assert len(told) == 1
        assert same(q.scale[1], lowbit.choose_qparams(x, 4, **kwargs).scale[1])
        with pytest.warns(UserWarning, match="count as unweighted"):
            want = reference.choose_qparams(x, 4, sample_weight=weight, **kwargs)
        assert same(q.scale, want.scale)


@pytest.mark.parametrize("at", [0, 63, 65, 4097, 65_535, 65_536, 299_999])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_value_that_is_not_finite_is_named(dtype, at, isa, ran):  # rows 1, 2
    x = some((300_000,), dtype)
    x[at] = x[-1] = np.nan
    count = 1 + (at != 299_999)
    for threads in [1, 7]:
        with lowbit.threads(threads):
            for call in [lambda: lowbit.quantize(x, Q, isa=isa), lambda: lowbit.choose_qparams(x, isa=isa)]:
                with pytest.raises(ValueError, match=f"{count} that are not .* the first NaN at flat index {at}$"):
                    call()
        ran(isa)


def torch_tensors():
    torch = pytest.importorskip("torch")
    yield torch.empty(8, device="meta"), "meta device"
    yield torch.zeros(8).to_sparse(), r"use .to_dense\(\)"
    yield torch.zeros(8, requires_grad=True), r"use .detach\(\)"
    yield torch.zeros(8, dtype=torch.bfloat16), "bfloat16 that numpy cannot hold"
    yield torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.quint8), r"use .int_repr\(\)"


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_torch_tensors_that_are_not_plain():  # row 30
    for tensor, words in torch_tensors():
        for call in [lowbit.choose_qparams, lowbit.quantize_rows]:
            with pytest.raises(TypeError, match=words):
                call(tensor)


def test_groups_whose_sums_exceed_int32():  # row 33
    x = np.zeros(8_421_505, np.float16)
    with pytest.raises(ValueError, match="group_size: sums of 8421505 codes exceed int32; expected at most 8421504"):
        lowbit.quantize_rows(x)
    x[:] = 1
    x[0] = 0
    assert lowbit.quantize_rows(x[:-1]).group_sums[0] == 8_421_503 * 255
    assert lowbit.quantize_rows(x, group_size=8_421_504).group_sums.tolist() == [8_421_503 * 255, 255]


def test_more_than_2_31_values():  # row 32
    n = 2**31 + 100
    x = np.zeros(n, np.float16)  # most of it is never touched by a write
    x[-1] = -2.54
    q = lowbit.choose_qparams(x, symmetric=False)
    assert q.zero_point == 255
    codes = lowbit.quantize(x, q)
    assert codes[-1] == 0
    assert codes[-2] == 255
    x[-2] = np.nan
    with pytest.raises(ValueError, match=f"the first NaN at flat index {n - 2}$"):
        lowbit.quantize(x, q, out=codes)


# ------------------------------------------------------------------ processes and threads


def test_ctrl_c_ends_a_long_search():  # row 61
    x = np.linspace(-1, 1, 1 << 24, dtype=np.float32)
    waits = []
    for _ in range(5):  # a busy machine may hold the process back
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with lowbit.threads(1):
            start = time.perf_counter()
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                lowbit.choose_qparams(x, 4, granularity=PerGroup(16), method="mse", isa="scalar")
            waits.append(time.perf_counter() - start - 0.1)
        if waits[-1] < 0.2:
            return
    pytest.fail(f"stopped after {min(waits):.2f} s")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_a_parallel_call():  # row 57
    x = some((300_000,))
    want = reference.quantize(x, Q)
    with lowbit.threads(2):
        assert same(lowbit.quantize(x, Q), want)
        child = os.fork()
        if child == 0:
            os._exit(0 if same(lowbit.quantize(x, Q), want) else 3)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) == 0
                return
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")


def test_many_python_threads():  # row 59
    cases = [some((n,), seed=n) for n in (10, 1000, 200_000)]
    want = [reference.quantize(x, reference.choose_qparams(x)) for x in cases]

    def work(i: int) -> bool:
        x = cases[i % 3]
        return same(lowbit.quantize(x, lowbit.choose_qparams(x)), want[i % 3])

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(120)))


def test_input_changed_meanwhile():  # row 60: torn values at worst
    x = some((1_000_000,))
    q = lowbit.choose_qparams(x)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [x.fill(i) for i in range(300)])
        while not job.done():
            assert lowbit.quantize(x, q).shape == x.shape
            lowbit.choose_qparams(x, method="percentile")
        job.result()


# ------------------------------------------------------------------ feedback


def moments(rng, k, rows=None):
    x = rng.normal(size=(rows or 3 * k, k)) @ rng.normal(size=(k, k))
    return x.T @ x


@pytest.mark.parametrize("order", ["activation", "index"])
@pytest.mark.parametrize(
    ("n", "k", "group_size", "size"),
    [(1, 1, None, 1), (5, 7, 3, 4), (40, 33, 8, 16), (33, 66, 16, 7), (64, 40, None, 256), (0, 9, 4, 2)],
)
def test_feedback_is_the_references(n, k, group_size, size, order, isa, ran):
    rng = np.random.default_rng(n + k)
    w, second = rng.normal(size=(n, k)).astype(np.float32), moments(rng, k)
    groups = 1 if group_size is None else -(-k // group_size)
    levels = np.sort(rng.normal(size=(n, groups, size)), -1).astype(np.float32)
    given = {"group_size": group_size, "order": order}
    want = reference.round_with_feedback(w, levels, second, **given)
    for threads in (1, 2, 7):
        with lowbit.threads(threads):
            got = lowbit.round_with_feedback(w, levels, second, isa=isa, **given)
        np.testing.assert_array_equal(got, want)
        ran(isa)
    np.testing.assert_array_equal(lowbit.round_with_feedback(w, levels, second * 1e300, isa=isa, **given), want)


def test_feedback_lessens_the_products_error():
    rng = np.random.default_rng(3)
    w, second = rng.normal(size=(64, 96)).astype(np.float32), moments(rng, 96)
    levels = np.broadcast_to(np.linspace(-2, 2, 8, dtype=np.float32), (64, 1, 8))

    def error(codes):
        off = np.take_along_axis(levels[:, 0], codes.astype(np.intp), 1) - w
        return float(((off @ second) * off).sum())

    nearest = np.abs(w[..., None] - levels[:, :1]).argmin(-1)
    found = {
        order: error(lowbit.round_with_feedback(w, levels, second, order=order)) for order in ("activation", "index")
    }
    assert max(found.values()) < 0.6 * error(nearest)
    np.testing.assert_array_equal(lowbit.round_with_feedback(w, levels, np.zeros((96, 96))), nearest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.ones(3, np.float32)}, "w: expected at least 2-D"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "finite"),
        ({"levels": np.zeros((2, 2, 4), np.float32)}, r"levels: expected shape \(2, 1, 1 to 256\)"),
        ({"levels": np.zeros((2, 1, 0), np.float32)}, "levels: expected shape"),
        ({"levels": np.array([[[1, 0]]] * 2, np.float32)}, "levels: expected ascending"),
        ({"second_moments": np.eye(4)}, r"second_moments: expected shape \(3, 3\)"),
        ({"second_moments": -np.eye(3)}, "second_moments: .* below 0"),
        ({"second_moments": np.full((3, 3), np.inf)}, "second_moments: expected finite"),
        ({"second_moments": np.eye(3) - 2}, "second_moments"),
        ({"second_moments": np.eye(3) + 5 * np.eye(3)[::-1]}, "second_moments: expected a positive semidefinite"),
        ({"order": "size"}, "order: expected 'activation' or 'index', got 'size'"),
        ({"group_size": 0}, "group_size: expected at least 1, got 0"),
    ],
)
def test_feedback_names_what_does_not_fit(change, message):
    given = {"w": np.ones((2, 3), np.float32), "levels": np.zeros((2, 1, 4), np.float32), "second_moments": np.eye(3)}
    with pytest.raises(ValueError, match=message):
        lowbit.round_with_feedback(**{**given, **change})
