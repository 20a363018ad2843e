"""Products and layers: every instruction set against the reference, and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import lowbit
import ml_dtypes
import numpy as np
import pytest
from lowbit import reference

ISAS = lowbit.available_isas()
#: About every edge of tiles, vectors and blocks of rows.
EDGES = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 31, 33, 47, 48, 49, 63, 64, 65, 95, 96, 97, 127, 129, 200]
FLOATS = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]
BUDGET = 5e-7


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """The same values, whatever bits a NaN has."""
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a.astype("f8"), b.astype("f8"), equal_nan=True)


def int8(rng: np.random.Generator, *shape: int, dtype: type = np.int8) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape, dtype)


def floats(rng: np.random.Generator, *shape: int, dtype: type = np.float32) -> np.ndarray:
    return rng.normal(size=shape).astype(dtype)


def layer(seed: int = 0, n: int = 70, k: int = 50, config: lowbit.Int8 | None = None):
    """A weight by lowbit and by the reference, and a bias."""
    rng = np.random.default_rng(seed)
    w = floats(rng, n, k)
    return lowbit.quantize_weight(w, config), reference.quantize_weight(w, config), floats(rng, n)


# ------------------------------------------------------------------ products


@pytest.mark.parametrize("seed", range(40))
def test_products_of_any_shape(seed, isa, ran):  # rows 5, 39
    rng = np.random.default_rng(seed)
    for _ in range(10):
        m, k, n = rng.choice(EDGES, 3)
        b = int8(rng, k, n)
        tiled = lowbit.tile_matrix(b)
        assert same(tiled.tiled, reference.tile_matrix(b).tiled)
        for dtype in (np.int8, np.uint8):
            a = int8(rng, m, k, dtype=dtype)
            want = reference.matmul_int8(a, b)
            assert want.dtype == np.int32
            assert same(lowbit.matmul_int8(a, tiled, isa=isa), want), (m, k, n)
            assert same(lowbit.matmul_int8(a, b, isa=isa), want), (m, k, n)
            ran(isa)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_change_no_product(threads, isa, ran):
    rng = np.random.default_rng(threads)
    for m, k, n in [(1, 3000, 1000), (1000, 64, 65), (97, 385, 129), (300, 1000, 17), (193, 7, 900)]:
        a, b = int8(rng, m, k, dtype=np.uint8), int8(rng, k, n)
        with lowbit.threads(threads):
            assert same(lowbit.matmul_int8(a, b, isa=isa), reference.matmul_int8(a, b))
        ran(isa)


@pytest.mark.parametrize(("dtype", "limit", "a"), [(np.uint8, 65_793, 255), (np.int8, 131_071, -128)])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_last_k_of_int32(dtype, limit, a, over, isa, ran):  # rows 35, 36, 37
    k = limit + over
    for m, n in [(1, 1), (3, 17)]:
        for b in (-128, 127):
            got = lowbit.matmul_int8(np.full((m, k), a, dtype), np.full((k, n), b, np.int8), isa=isa)
            assert got.dtype == (np.int64 if over > 0 else np.int32)
            assert (got == k * a * b).all()
            ran(isa)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("k", [131_073, 197_377, 1 << 20])
def test_k_past_int32(k, dtype, isa, ran):  # row 35
    rng = np.random.default_rng(k)
    a, b = int8(rng, 13, k, dtype=dtype), int8(rng, k, 18)
    a[0], b[:, 0] = np.iinfo(dtype).max, -128
    for threads in (1, 2):
        with lowbit.threads(threads):
            got = lowbit.matmul_int8(a, b, isa=isa)
        assert same(got, reference.matmul_int8(a, b))
        assert got.dtype == np.int64
        ran(isa)
    assert got[0, 0] == k * np.iinfo(dtype).max * -128


def test_the_extremes_do_not_saturate(isa, ran):  # rows 36, 37
    for a in (np.full((9, 97), 255, np.uint8), np.full((9, 97), -128, np.int8), np.full((9, 97), 127, np.int8)):
        for b in (np.full((97, 33), -128, np.int8), np.full((97, 33), 127, np.int8)):
            assert same(lowbit.matmul_int8(a, b, isa=isa), reference.matmul_int8(a, b))
            ran(isa)


@pytest.mark.parametrize("shape", [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 0)])
def test_empty_products(shape, isa):  # rows 4, 39
    m, k, n = shape
    for dtype in (np.int8, np.uint8):
        got = lowbit.matmul_int8(np.empty((m, k), dtype), np.empty((k, n), np.int8), isa=isa)
        assert same(got, np.zeros((m, n), np.int32))


def test_out_is_filled_and_returned(isa):
    rng = np.random.default_rng(0)
    a, b = int8(rng, 9, 40), int8(rng, 40, 70)
    out = np.full((9, 70), -1, np.int32)
    assert lowbit.matmul_int8(a, b, out=out, isa=isa) is out
    assert same(out, reference.matmul_int8(a, b))


# ------------------------------------------------------------------ weights and layers


def awkward_weights():
    rng = np.random.default_rng(0)
    w = floats(rng, 20, 30)
    w[0], w[1], w[2, 1:], w[3] = 0, 2.5, 0, -1e-45  # row 6, 13: no range, and below the least scale
    yield "mixed", w
    yield "huge", floats(rng, 5, 7) * np.float32(1e38)
    yield "tiny", floats(rng, 5, 7) * np.float32(1e-40)
    yield "ties", np.array([[127, 0.5, 1.5, -0.5, -2.5, 126.5]], np.float32)
    for dtype in FLOATS:
        yield np.dtype(dtype).name, floats(rng, 66, 9, dtype=dtype)


#: Weights whose inputs may be codes already.
PLAIN = lowbit.Int8(equalize=False)


@pytest.mark.parametrize("config", [lowbit.Int8(), PLAIN], ids=["equalized", "plain"])
@pytest.mark.parametrize("w", [pytest.param(w, id=name) for name, w in awkward_weights()])
def test_weights(w, config, isa, ran):
    ours, ref = lowbit.quantize_weight(w, config, isa=isa), reference.quantize_weight(w, config)
    assert same(ours.tiled, ref.tiled)
    assert same(ours.codes(), ref.codes())
    assert same(ours.scale(), ref.scale())
    assert same(ours.dequantize(), ref.dequantize())
    assert ours.codes().min() >= -127
    ran(isa)


@pytest.mark.parametrize("seed", range(30))
def test_layers_of_any_shape(seed, isa, ran):  # rows 5, 28, 39
    rng = np.random.default_rng(seed)
    for _ in range(4):
        (m, k, n), dtype = rng.choice(EDGES, 3), FLOATS[rng.integers(4)]
        w = floats(rng, n, k)
        config = lowbit.Int8(equalize=seed % 2 == 0)
        ours, ref = lowbit.quantize_weight(w, config), reference.quantize_weight(w, config)
        x, r, bias = floats(rng, m, k, dtype=dtype), floats(rng, m, n, dtype=dtype), floats(rng, n)
        norm = (floats(rng, n), floats(rng, n), 1e-5)
        for extra in ({}, {"bias": bias}, {"bias": bias, "residual": r}, {"residual": r, "norm": norm}):
            for activation in (None, "relu"):
                got = lowbit.linear(x, ours, activation=activation, isa=isa, **extra)
                assert alike(got, reference.linear(x, ref, activation=activation, **extra)), (m, k, n)
                ran(isa)
        got, want = lowbit.linear(x, ours, bias, as_rows=True, isa=isa), reference.linear(x, ref, bias, as_rows=True)
        for part in ("codes", "scale", "zero_point", "group_sums"):
            assert same(getattr(got, part), getattr(want, part)), part
        v = w if n == k else w.T.copy()
        assert same(
            lowbit.linear(got, lowbit.quantize_weight(v, PLAIN), isa=isa),
            reference.linear(want, reference.quantize_weight(v, PLAIN)),
        )
        ran(isa, 2)


GROUPS = [
    lowbit.Uniform(nbits, group_size, symmetric, scale, activation, rotate, equalize)
    for nbits, group_size, symmetric, scale, activation, rotate, equalize in [
        (2, 32, False, "mse", "int8", None, True),
        (2, 24, True, "absmax", "int8_group", None, True),
        (3, 32, True, "mse", "int8", None, False),
        (3, 40, False, "mse", "int8", None, True),
        (4, 32, False, "mse", "int8", None, True),
        (4, 32, False, "absmax", "int8_group", None, False),
        (4, 8, False, "mse", "int8", None, False),
        (4, 56, False, "absmax", "int8", None, True),
        (4, 128, True, "mse", "int8", None, True),
        (5, 64, False, "mse", "int8", None, False),
        (5, 1024, True, "mse", "int8_group", None, True),
        (6, 32, False, "mse", "int8", None, True),
        (8, 32, False, "mse", "int8", None, True),
        (8, 72, True, "mse", "int8_group", None, False),
        (8, 16, False, "absmax", "int8", None, True),
        (3, 56, False, "mse", "int8", "hadamard", True),
        (4, 32, True, "mse", "int8_group", "hadamard", False),
    ]
]


@pytest.mark.parametrize("config", GROUPS, ids=str)
@pytest.mark.parametrize("w", [pytest.param(w, id=name) for name, w in awkward_weights()])
def test_weights_in_groups(w, config, isa, ran):
    ours, ref = lowbit.quantize_weight(w, config, isa=isa), reference.quantize_weight(w, config)
    assert same(ours.tiled, ref.tiled)
    for part in ("codes", "scale", "zero_point", "dequantize"):
        assert same(getattr(ours, part)(), getattr(ref, part)()), part
    assert ours.codes().max() < 2**config.nbits
    ran(isa)


@pytest.mark.parametrize("seed", range(30))
def test_layers_in_groups_of_any_shape(seed, isa, ran):  # rows 5, 28, 39
    rng = np.random.default_rng(seed)
    for config in rng.permutation(GROUPS)[:3]:
        (m, k, n), dtype = rng.choice(EDGES, 3), FLOATS[rng.integers(4)]
        w, importance = floats(rng, n, k), rng.random(k, np.float32) if seed % 3 == 0 else None
        ours = lowbit.quantize_weight(w, config, importance=importance)
        ref = reference.quantize_weight(w, config, importance=importance)
        assert same(ours.tiled, ref.tiled)
        x, r, bias = floats(rng, m, k, dtype=dtype), floats(rng, m, n, dtype=dtype), floats(rng, n)
        norm = (floats(rng, n), floats(rng, n), 1e-5)
        for extra in ({}, {"bias": bias, "activation": "relu"}, {"bias": bias, "residual": r}, {"norm": norm}):
            got = lowbit.linear(x, ours, isa=isa, **extra)
            assert alike(got, reference.linear(x, ref, **extra)), (config, m, k, n)
            ran(isa)
        down = reference.quantize_weight(w.T.copy(), lowbit.Int8())
        ours_down = lowbit.quantize_weight(w.T.copy(), lowbit.Int8())
        got = lowbit.mlp(x, ours, bias, ours_down, activation="relu", isa=isa)
        assert alike(got, reference.mlp(x, ref, bias, down, activation="relu"))
        got, want = lowbit.linear(x, ours, bias, as_rows=True, isa=isa), reference.linear(x, ref, bias, as_rows=True)
        assert same(got.codes, want.codes)
        ran(isa, 2)


@pytest.mark.parametrize(
    "config", [config for config in GROUPS if config.scale == "mse" and config.rotate is None], ids=str
)
def test_floats_times_groups_keep_their_budget(config, isa, ran):
    config = dataclasses.replace(config, activation=None)
    rng = np.random.default_rng(config.nbits)
    for m, k, n in [(1, 1, 1), (7, 65, 17), (13, 128, 64), (3, 200, 130)]:
        ours = lowbit.quantize_weight(floats(rng, n, k), config, isa=isa)
        x, bias = floats(rng, m, k), floats(rng, n)
        got, want = lowbit.linear(x, ours, bias, isa=isa), reference.linear(x, ours, bias)
        budget = k * 2**-24 * (np.abs(x) @ np.abs(ours.dequantize()).T) + 2**-23 * (np.abs(want) + np.abs(bias))
        assert (np.abs(got - want) <= budget).all()
        assert same(got, lowbit.linear(x, ours, bias, isa="scalar"))
        up = lowbit.mlp(x, ours, bias, lowbit.quantize_weight(floats(rng, 9, n), config), activation="relu", isa=isa)
        assert up.shape == (m, 9)
        ran(isa, 2)


@pytest.mark.parametrize("activation", ["int8", "int8_group", None])
def test_a_row_that_is_not_finite_is_nan_in_groups(activation, isa):  # row 87
    rng = np.random.default_rng(0)
    ours = lowbit.quantize_weight(floats(rng, 20, 70), lowbit.Uniform(4, activation=activation))
    x = floats(rng, 5, 70)
    whole = lowbit.linear(x, ours, isa=isa)
    for at, bad in [(1, np.nan), (3, np.inf), (4, -np.inf)]:
        x[at, 11 * at] = bad
    got = lowbit.linear(x, ours, isa=isa)
    assert np.isnan(got[[1, 3, 4]]).all()
    assert same(got[[0, 2]], whole[[0, 2]])


def test_finer_inputs_come_closer():
    rng = np.random.default_rng(1)
    x, w = floats(rng, 64, 256) * np.exp(rng.normal(size=256)).astype(np.float32), floats(rng, 64, 256)
    errors = []
    for activation in ("int8", "int8_group", None):
        ours = lowbit.quantize_weight(w, lowbit.Uniform(4, activation=activation, equalize=False))
        errors.append(np.abs(lowbit.linear(x, ours) - x @ ours.dequantize().T).mean())
    assert errors[0] > 1.3 * errors[1] > 100 * errors[2]


def test_threads_and_batches_change_no_layer_in_groups(isa, ran):
    rng = np.random.default_rng(4)
    for config in [*GROUPS, lowbit.Uniform(4, activation=None)]:
        k = 384 + (config.rotate is None)
        ours = lowbit.quantize_weight(floats(rng, 129, k), config)
        x = floats(rng, 200, k)
        whole = lowbit.linear(x, ours, isa=isa)
        for threads in (1, 2, 7):
            with lowbit.threads(threads):
                assert same(lowbit.linear(x, ours, isa=isa), whole)
        for first, last in [(0, 1), (5, 7), (95, 100), (1, 200)]:
            assert same(lowbit.linear(x[first:last], ours, isa=isa), whole[first:last])
        ran(isa, 7)


def test_groups_as_deep_as_a_layer_may_be(isa, ran):  # row 35
    w = np.ones((2, 65_793), np.float32)
    w[1, ::2] = -1
    for config in (lowbit.Uniform(2), lowbit.Uniform(6, 128), lowbit.Uniform(4, 8, symmetric=True)):
        ours, ref = lowbit.quantize_weight(w, config), reference.quantize_weight(w, config)
        x = np.linspace(0, 1, 65_793, dtype=np.float32)[None]
        assert same(lowbit.linear(x, ours, isa=isa), reference.linear(x, ref))
        ran(isa)


def test_a_bad_row_with_groups_is_nan_and_no_other(isa):  # row 87
    rng = np.random.default_rng(5)
    ours, x = lowbit.quantize_weight(floats(rng, 30, 64), lowbit.Uniform(4)), floats(rng, 20, 64)
    clean = lowbit.linear(x, ours, isa=isa)
    x[7, 3] = math.nan
    got = lowbit.linear(x, ours, isa=isa)
    assert np.isnan(got[7]).all()
    assert same(np.delete(got, 7, 0), np.delete(clean, 7, 0))


@pytest.mark.parametrize("nbits", [2, 3, 4, 5, 6])
def test_searched_groups_are_closer_than_ranges(nbits):
    """Though their scales are rounded to 8 bits."""
    w = (np.random.default_rng(6).standard_t(4, (64, 256)) * 0.02).astype(np.float32)
    ours = lowbit.quantize_weight(w, lowbit.Uniform(nbits, equalize=False)).dequantize()
    groups = w.reshape(-1, 32)
    ranges = lowbit.choose_qparams(groups, nbits, granularity=lowbit.PerAxis(0), symmetric=False)
    plain = lowbit.dequantize(lowbit.quantize(groups, ranges), ranges).reshape(w.shape)
    assert np.linalg.norm(ours - w) < np.linalg.norm(plain - w)


@pytest.mark.parametrize("config", GROUPS, ids=str)
def test_groups_with_second_moments(config, isa, ran):
    rng = np.random.default_rng(8)
    x = rng.normal(size=(300, 100)) @ rng.normal(size=(100, 100))
    w, second = floats(rng, 30, 100), x.T @ x
    ours = lowbit.quantize_weight(w, config, second_moments=second, isa=isa)
    assert same(ours.tiled, reference.quantize_weight(w, config, second_moments=second).tiled)
    plain = lowbit.quantize_weight(w, config, importance=second.diagonal(), isa=isa)
    for part in ("scale", "zero_point"):
        assert same(getattr(ours, part)(), getattr(plain, part)())
    errors = [(((q.dequantize() - w) @ second) * (q.dequantize() - w)).sum() for q in (ours, plain)]
    assert errors[0] < 0.8 * errors[1]
    ran(isa)


ROTATED = [
    lowbit.Uniform(nbits, group_size, symmetric, equalize=equalize, rotate="hadamard")
    for nbits, group_size, symmetric, equalize in [
        (2, 32, False, False),
        (3, 56, False, True),
        (4, 32, True, True),
        (5, 1024, False, True),
        (6, 8, True, False),
    ]
]


@pytest.mark.parametrize("config", ROTATED, ids=str)
@pytest.mark.parametrize("k", [8, 16, 24, 40, 64, 96, 128, 384, 4096, 8192])
def test_rotated_layers(k, config, isa, ran):
    rng = np.random.default_rng(k)
    n, m = rng.choice([1, 7, 16, 33, 65]) if k < 300 else 2, rng.choice([1, 5, 13, 97])
    w, importance = floats(rng, n, k), rng.random(k, np.float32) if k % 3 == 0 else None
    ours = lowbit.quantize_weight(w, config, importance=importance, isa=isa)
    ref = reference.quantize_weight(w, config, importance=importance)
    assert same(ours.tiled, ref.tiled)
    assert ours.config == config
    for part in ("codes", "scale", "zero_point", "equalizer", "dequantize"):
        assert same(getattr(ours, part)(), getattr(ref, part)()), part
    dtype = FLOATS[rng.integers(4)]
    x, r, bias = floats(rng, m, k, dtype=dtype), floats(rng, m, n, dtype=dtype), floats(rng, n)
    norm = (floats(rng, n), floats(rng, n), 1e-5)
    for extra in ({}, {"bias": bias, "activation": "relu"}, {"bias": bias, "residual": r}, {"norm": norm}):
        got = lowbit.linear(x, ours, isa=isa, **extra)
        assert alike(got, reference.linear(x, ref, **extra))
        ran(isa)
    got, want = lowbit.linear(x, ours, bias, as_rows=True, isa=isa), reference.linear(x, ref, bias, as_rows=True)
    assert same(got.codes, want.codes)
    x, up = floats(rng, m, 24, dtype=dtype), floats(rng, k, 24)
    form = lowbit.Int8() if k > 300 else lowbit.Uniform(4, rotate="hadamard")
    got = lowbit.mlp(x, lowbit.quantize_weight(up, form), None, ours, activation="relu", isa=isa)
    assert alike(got, reference.mlp(x, reference.quantize_weight(up, form), None, ref, activation="relu"))
    ran(isa, 2)


def test_a_rotated_layer_is_near_its_product(isa):
    rng = np.random.default_rng(10)
    w, x = floats(rng, 50, 384), floats(rng, 20, 384)
    ours = lowbit.quantize_weight(w, lowbit.Uniform(6, rotate="hadamard"), isa=isa)
    assert np.linalg.norm(ours.dequantize() - w) < 0.03 * np.linalg.norm(w)
    got, want = lowbit.linear(x, ours, isa=isa), x.astype("f8") @ ours.dequantize().T.astype("f8")
    assert np.linalg.norm(got - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize("config", ROTATED, ids=str)
def test_rotated_weights_with_second_moments(config, isa, ran):
    rng = np.random.default_rng(11)
    every = rng.normal(size=(300, 96)) @ rng.normal(size=(96, 96))
    for x in (every, every[:3], 0 * every):  # also fewer than columns, and none
        w, second = floats(rng, 20, 96), x.T @ x
        ours = lowbit.quantize_weight(w, config, second_moments=second, isa=isa)
        assert same(ours.tiled, reference.quantize_weight(w, config, second_moments=second).tiled)
        if x is every:
            plain = lowbit.quantize_weight(w, config, importance=second.diagonal(), isa=isa)
            errors = [(((q.dequantize() - w) @ second) * (q.dequantize() - w)).sum() for q in (ours, plain)]
            assert errors[0] < 0.8 * errors[1]
        ran(isa)


def test_a_rotation_lessens_the_error_of_few_large_inputs():
    """And of few large weights, at 3 bits."""
    rng = np.random.default_rng(12)
    w, x = floats(rng, 64, 256), floats(rng, 1000, 256)
    x[:, ::32] *= 30
    w[:, ::25] *= 6
    exact = x.astype("f8") @ w.T.astype("f8")
    second = x.T.astype("f8") @ x
    forms = [lowbit.Uniform(3, 64, rotate=rotate, equalize=False) for rotate in ("hadamard", None)]
    errors = [
        np.linalg.norm(lowbit.linear(x, lowbit.quantize_weight(w, form, second_moments=second)) - exact)
        for form in forms
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("k", [1, 4, 12, 30, 100])
def test_inputs_that_are_no_multiple_of_8_are_not_rotated(k):
    w = floats(np.random.default_rng(k), 5, k)
    ours = lowbit.quantize_weight(w, lowbit.Uniform(4, rotate="hadamard"))
    assert ours.config == lowbit.Uniform(4)
    assert same(ours.tiled, lowbit.quantize_weight(w, lowbit.Uniform(4)).tiled)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_bad_row_with_a_rotation_is_nan_and_no_other(bad, dtype, isa, ran):  # row 87
    rng = np.random.default_rng(13)
    for k in (8, 48, 256):
        ours = lowbit.quantize_weight(floats(rng, 20, k), lowbit.Uniform(4, rotate="hadamard"))
        clean = floats(rng, 9, k, dtype=dtype)
        want = lowbit.linear(clean, ours, isa=isa)
        for row, columns in [(0, [0]), (4, [k - 1]), (8, range(k)), (3, [1, 2])]:
            x = clean.copy()
            x[row, columns] = bad
            got = lowbit.linear(x, ours, isa=isa)
            assert np.isnan(got[row].astype(np.float32)).all()
            assert same(np.delete(got, row, 0), np.delete(want, row, 0))
            ran(isa)


def test_a_rotation_of_finite_inputs_does_not_overflow(isa):
    greatest = np.finfo(np.float32).max
    w = floats(np.random.default_rng(14), 20, 512) * np.float32(1e-6)
    config = lowbit.Uniform(4, rotate="hadamard", equalize=False)
    ours, ref = lowbit.quantize_weight(w, config), reference.quantize_weight(w, config)
    signs = np.sign(ours.equalizer())
    for x in (np.full((1, 512), greatest, np.float32), signs[None] * greatest):
        got = lowbit.linear(x, ours, isa=isa)
        assert np.isfinite(got).all()
        assert same(got, reference.linear(x, ref))


def test_a_weight_too_large_to_rotate_is_refused(isa):
    w = np.full((4, 64), 3e38, np.float32)
    with pytest.raises(ValueError, match=r"weight: row 0 holds .* equalized or rotated"):
        lowbit.quantize_weight(w, lowbit.Uniform(4, rotate="hadamard"), isa=isa)
    w[1:] = 1e36
    w[0] = 0
    ours = lowbit.quantize_weight(w / 64, lowbit.Uniform(4, rotate="hadamard"), isa=isa).dequantize()
    assert np.isfinite(ours).all()


def test_a_rotated_weight_without_rows():  # row 4
    w = lowbit.quantize_weight(np.empty((0, 40), np.float32), lowbit.Uniform(4, rotate="hadamard"))
    assert w.codes().shape == w.dequantize().shape == (0, 40)
    assert lowbit.linear(np.ones((3, 40), np.float32), w).shape == (3, 0)


def test_bytes_of_another_rotation_are_refused():
    config = lowbit.Uniform(4, rotate="hadamard")
    w = lowbit.quantize_weight(np.ones((3, 48), np.float32), config)
    with pytest.raises(ValueError, match="tiled: expected blocks of 0 rotated"):
        lowbit.GroupedWeight(w.tiled, 48, 3, lowbit.Uniform(4))
    for word in (0, 8, 12, 32, 8192, 2**31):
        bad = w.tiled.copy()
        bad[24:28] = np.frombuffer(np.uint32(word).tobytes(), np.uint8)
        with pytest.raises(ValueError, match=f"tiled: expected blocks of 16 rotated by .*, got {word}"):
            lowbit.GroupedWeight(bad, 48, 3, config)
        # What reads bytes alone refuses what cannot be.
        out = np.empty((3, 48), np.float32)
        if word in (0, 8):
            lowbit._core.lookup(None, (bad, None), 48, 3, out)
        else:
            with pytest.raises(ValueError, match="weight: rotat"):
                lowbit._core.lookup(None, (bad, None), 48, 3, out)
    with pytest.raises(ValueError, match="weight: rotated, but without an equalizer"):
        lowbit._core.lookup(None, (w.tiled[: -4 * 48], None), 48, 3, np.empty((3, 48), np.float32))


def test_codes_handed_over_need_a_weight_that_is_not_rotated():
    w = lowbit.quantize_weight(np.ones((3, 48), np.float32), lowbit.Uniform(4, rotate="hadamard", equalize=False))
    with pytest.raises(ValueError, match="rotate=None"):
        lowbit.linear(lowbit.quantize_rows(np.ones((2, 48), np.float32)), w)


def test_importance_lessens_the_error_that_counts():
    rng = np.random.default_rng(7)
    w, importance = floats(rng, 64, 128), np.exp(2 * rng.normal(size=128)).astype(np.float32)
    config = lowbit.Uniform(3)
    errors = [
        float((((lowbit.quantize_weight(w, config, importance=given).dequantize() - w) ** 2) * importance).sum())
        for given in (importance, None)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("equalize", [True, False])
@pytest.mark.parametrize("form", [(2, 8, False), (4, 32, False), (2, 8, True), (6, 32, True)], ids=str)
def test_a_finite_weight_stays_finite(form, equalize, isa):
    greatest = np.finfo(np.float32).max
    config = lowbit.Uniform(*form, equalize=equalize)
    for w in ([[3e38, 1, -3e38, 0]], [[greatest, -greatest] * 20]):
        w = np.array(w, np.float32)
        ours, ref = lowbit.quantize_weight(w, config, isa=isa), reference.quantize_weight(w, config)
        assert same(ours.tiled, ref.tiled)
        assert same(ours.dequantize(), ref.dequantize())
        assert np.isfinite(ours.dequantize()).all()


def test_a_weight_too_large_to_equalize_is_refused(isa):
    w = np.full((40, 40), 1e30, np.float32)
    w[0] = 3e38
    w[1:, 0] = 3e38
    lowbit.quantize_weight(w, lowbit.Uniform(4, equalize=False), isa=isa)
    with pytest.raises(ValueError, match=r"weight: row 0 holds .* overflow where they are equalized"):
        lowbit.quantize_weight(w, lowbit.Uniform(4), isa=isa)


@pytest.mark.parametrize("greatest", [1e38, 3e38, 1.0, 1e-30])
def test_importance_of_any_size(greatest, isa):
    w = np.ones((2, 64), np.float32) + np.arange(64, dtype=np.float32)
    w[:, 0] = 1000
    ratio = np.random.default_rng(0).random(64, np.float32)
    want = lowbit.quantize_weight(w, lowbit.Uniform(4), importance=ratio).tiled
    importance = ratio * np.float32(2.0 ** math.floor(math.log2(greatest)))
    assert same(lowbit.quantize_weight(w, lowbit.Uniform(4), importance=importance, isa=isa).tiled, want)
    assert same(reference.quantize_weight(w, lowbit.Uniform(4), importance=importance).tiled, want)


def test_a_weight_in_groups_without_rows():  # row 4
    w = lowbit.quantize_weight(np.empty((0, 40), np.float32), lowbit.Uniform(4))
    assert w.codes().shape == (0, 40)
    assert w.scale().shape == w.zero_point().shape == (0, 2)
    assert w.dequantize().shape == (0, 40)
    assert lowbit.linear(np.ones((3, 40), np.float32), w).shape == (3, 0)
    for config in (lowbit.Uniform(4, equalize=False), PLAIN):  # row 33
        assert lowbit.quantize_weight(np.empty((0, 1 << 58), np.float32), config).shape == (1 << 58, 0)


def test_bytes_that_are_no_weight_in_groups():
    w = lowbit.quantize_weight(np.ones((3, 40), np.float32), lowbit.Uniform(4))
    with pytest.raises(ValueError, match=r"tiled: 40 by 3 takes .* bytes, got"):
        lowbit.GroupedWeight(w.tiled[:-1], 40, 3, w.config)
    for at, byte, words in [
        (8, 7, "weight: nbits: expected 2 to 6 or 8, got 7"),
        (12, 3, "weight: group_size"),
        (16, 2, "weight: .* symmetric"),
        (28, 3, "weight: expected 0 to 2 for inputs, got 3"),
    ]:
        bad = w.tiled.copy()
        bad[at] = byte
        with pytest.raises(ValueError, match=words):
            lowbit.linear(np.ones((1, 40), np.float32), lowbit.GroupedWeight(bad, 40, 3, w.config))


def test_codes_handed_over_need_a_weight_that_is_not_equalized():
    ours, _, _ = layer()
    with pytest.raises(ValueError, match=r"equalize=False"):
        lowbit.linear(lowbit.quantize_rows(np.ones((2, 50), np.float32)), ours)


def test_an_equalizer_lessens_the_error_of_uneven_columns(isa):
    rng = np.random.default_rng(3)
    w = floats(rng, 128, 256) * np.exp2(rng.integers(-4, 5, 256)).astype(np.float32)
    x = floats(rng, 64, 256)
    exact = x.astype(np.float64) @ w.T.astype(np.float64)
    errors = [
        np.linalg.norm(lowbit.linear(x, lowbit.quantize_weight(w, config), isa=isa) - exact)
        for config in (lowbit.Int8(), PLAIN)
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_activations_keep_their_budget(activation, isa, ran):
    eye = np.eye(2, dtype=np.float32)
    ours, ref = lowbit.quantize_weight(eye), reference.quantize_weight(eye)
    near = np.linspace(-12, 12, 20_001, dtype=np.float32)
    x = np.concatenate([near, np.float32([0, -0.0, 1e-38, -1e-38, 88, -88, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38])])
    x = np.stack([x, x], 1)
    y = reference.linear(x, ref).astype(np.float64)
    got, want = lowbit.linear(x, ours, activation=activation, isa=isa), reference.linear(x, ref, activation=activation)
    error = np.abs(got.astype(np.float64) - want) / np.maximum(1, np.abs(y))
    assert error.max() <= BUDGET
    ran(isa)


def test_activations_on_every_isa_are_the_same_bits():
    ours, _, bias = layer()
    x = floats(np.random.default_rng(1), 100, 50) * 4
    for activation in ("gelu", "gelu_tanh", "silu"):
        told = {lowbit.linear(x, ours, bias, activation=activation, isa=isa).tobytes() for isa in ISAS}
        assert len(told) == 1


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_threads_change_no_layer(threads, dtype, isa, ran):
    rng = np.random.default_rng(threads)
    for m, k, n in [(1, 800, 1000), (500, 64, 130), (97, 385, 129)]:
        w = floats(rng, n, k)
        ours, ref = lowbit.quantize_weight(w), reference.quantize_weight(w)
        x, r = floats(rng, m, k, dtype=dtype), floats(rng, m, n, dtype=dtype)
        with lowbit.threads(threads):
            assert alike(lowbit.linear(x, ours, residual=r, isa=isa), reference.linear(x, ref, residual=r))
        ran(isa)


def test_rows_do_not_depend_on_their_batch(isa, ran):
    ours, _, bias = layer(n=130, k=77)
    x = floats(np.random.default_rng(2), 210, 77)
    whole = lowbit.linear(x, ours, bias, activation="gelu", isa=isa)
    for first, last in [(0, 1), (5, 6), (95, 97), (3, 15), (209, 210), (1, 210)]:
        assert same(lowbit.linear(x[first:last], ours, bias, activation="gelu", isa=isa), whole[first:last])
        ran(isa)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
def test_mlp_is_two_layers(activation, isa, ran):
    rng = np.random.default_rng(3)
    for m, k, h, n in [(1, 5, 7, 3), (50, 64, 130, 64), (97, 33, 200, 65), (200, 16, 16, 16)]:
        w, v = floats(rng, h, k), floats(rng, n, h)
        up, down = lowbit.quantize_weight(w), lowbit.quantize_weight(v)
        a, b, x, r = floats(rng, h), floats(rng, n), floats(rng, m, k), floats(rng, m, n)
        norm = (floats(rng, n), floats(rng, n), 1e-12)
        for extra in ({}, {"residual": r}, {"residual": r, "norm": norm}):
            got = lowbit.mlp(x, up, a, down, b, activation=activation, isa=isa, **extra)
            hidden = lowbit.linear(x, up, a, activation=activation, isa=isa)
            assert same(got, lowbit.linear(hidden, down, b, isa=isa, **extra))
            if activation in (None, "relu"):
                ref = reference.quantize_weight(w), a, reference.quantize_weight(v), b
                assert same(got, reference.mlp(x, *ref, activation=activation, **extra))
            ran(isa)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mlp_of_other_floats(dtype, isa, ran):  # row 28
    rng = np.random.default_rng(4)
    w, v = floats(rng, 40, 30), floats(rng, 30, 40)
    x = floats(rng, 2, 9, 30, dtype=dtype)
    got = lowbit.mlp(
        x, lowbit.quantize_weight(w), None, lowbit.quantize_weight(v), activation="relu", residual=x, isa=isa
    )
    want = reference.mlp(
        x, reference.quantize_weight(w), None, reference.quantize_weight(v), activation="relu", residual=x
    )
    assert alike(got, want)
    ran(isa)


@pytest.mark.parametrize("shape", [(50,), (3, 50), (2, 3, 50), (1, 2, 1, 50), (0, 50), (2, 0, 50)])
def test_leading_axes(shape, isa):  # rows 4, 5
    ours, ref, bias = layer()
    x = floats(np.random.default_rng(5), *shape)
    got = lowbit.linear(x, ours, bias, isa=isa)
    assert got.shape == (*shape[:-1], 70)
    assert same(got, reference.linear(x, ref, bias) if x.size else got)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_bad_row_is_nan_and_no_other(bad, dtype, isa, ran):  # row 87
    ours, _, bias = layer(n=66, k=37)
    clean = floats(np.random.default_rng(6), 9, 37, dtype=dtype)
    for row, column in [(0, 0), (4, 36), (8, 17)]:
        x = clean.copy()
        x[row, column] = bad
        for activation in (None, "relu", "gelu", "gelu_tanh", "silu"):
            want = lowbit.linear(clean, ours, bias, activation=activation, isa=isa)
            got = lowbit.linear(x, ours, bias, activation=activation, isa=isa)
            assert np.isnan(got[row].astype(np.float32)).all()
            others = np.arange(9) != row
            assert same(got[others], want[others])
            ran(isa)
        rows = lowbit.linear(x, ours, as_rows=True, isa=isa)
        assert np.isnan(rows.scale[row])
        assert np.isfinite(rows.scale[np.arange(9) != row]).all()


def test_norm_of_a_bad_row(isa):  # row 87
    ours, _, _ = layer(n=50)
    x = floats(np.random.default_rng(7), 4, 50)
    norm = (np.ones(50), np.zeros(50), 1e-12)
    want = lowbit.linear(x, ours, norm=norm, isa=isa)
    x[2, 3] = np.nan
    got = lowbit.linear(x, ours, norm=norm, isa=isa)
    assert np.isnan(got[2]).all()
    assert same(got[[0, 1, 3]], want[[0, 1, 3]])


def test_a_weight_serves_a_layer_of_row_codes(isa):
    ours, ref, bias = layer(config=PLAIN)
    x = floats(np.random.default_rng(8), 5, 50)
    rows = lowbit.quantize_rows(x)
    assert same(lowbit.linear(rows, ours, bias, isa=isa), lowbit.linear(x, ours, bias, isa=isa))
    assert same(reference.linear(rows, ref, bias), lowbit.linear(x, ours, bias, isa=isa))


# ------------------------------------------------------------------ forms of input


def forms(x: np.ndarray):
    """The same values, (6, 50), in other memory."""
    wide = np.zeros((12, 100), x.dtype)
    wide[::2, ::2] = x
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    frozen_ = x.copy()
    frozen_.flags.writeable = False
    yield "18 strided", wide[::2, ::2]
    yield "19 Fortran", np.asfortranarray(x)
    yield "19 transposed", x.T.copy().T
    yield "20 negative stride", x[:, ::-1].copy()[:, ::-1]
    yield "20 negative rows", x[::-1].copy()[::-1]
    yield "22 read-only", frozen_
    yield "24 misaligned", raw[1:].view(x.dtype).reshape(x.shape)
    if x.dtype.itemsize > 1:
        yield "25 byte-swapped", x.astype(x.dtype.newbyteorder())
    yield "subclass", x.view(type("Sub", (np.ndarray,), {}))
    yield "31 array protocol", SimpleNamespace(__array__=lambda dtype=None, copy=None: x)
    yield "31 list of arrays", list(x)
    yield "31 lists", x.tolist()


RNG = np.random.default_rng(9)
A, B, X = int8(RNG, 6, 50), int8(RNG, 50, 9), floats(RNG, 6, 50)


class Protocol:
    def __init__(self, x):
        self.x = x

    def __array__(self, dtype=None, copy=None):
        return self.x


def cases(x: np.ndarray):
    told = []
    for name, form in forms(x):
        if isinstance(form, SimpleNamespace):
            form = Protocol(x)
        told.append(pytest.param(form, id=name))
    return told


@pytest.mark.parametrize("form", cases(A))
def test_forms_of_a(form):
    assert same(lowbit.matmul_int8(form, B), reference.matmul_int8(A, B))


@pytest.mark.parametrize("form", cases(A))
def test_forms_of_b(form):
    assert same(lowbit.matmul_int8(A[:, :6], form), reference.matmul_int8(A[:, :6], A))


@pytest.mark.parametrize("form", cases(X))
def test_forms_of_x(form):
    ours, ref, bias = layer()
    want = reference.linear(X, ref, bias)
    if isinstance(form, list) and isinstance(form[0], list):
        want = want.astype(np.float64)  # what NumPy makes of Python's floats
    assert same(lowbit.linear(form, ours, bias), want)


@pytest.mark.parametrize("form", cases(X))
def test_forms_of_w(form):
    assert same(lowbit.quantize_weight(form).tiled, reference.quantize_weight(X).tiled)


@pytest.mark.parametrize("form", cases(X))
def test_forms_of_residual(form):
    w = np.eye(50, dtype=np.float32)
    got = lowbit.linear(X, lowbit.quantize_weight(w), residual=form)
    assert same(got, reference.linear(X, reference.quantize_weight(w), residual=X))


def test_zero_strides():  # row 21
    a, x = np.broadcast_to(A[0], (6, 50)), np.broadcast_to(X[0], (6, 50))
    ours, ref, _ = layer()
    assert same(lowbit.matmul_int8(a, B), reference.matmul_int8(a, B))
    assert same(lowbit.linear(x, ours), reference.linear(x, ref))


def test_memory_map(tmp_path):  # row 22
    np.save(tmp_path / "x.npy", X)
    ours, ref, _ = layer()
    assert same(lowbit.linear(np.load(tmp_path / "x.npy", mmap_mode="r"), ours), reference.linear(X, ref))


def test_torch_tensors_on_the_cpu():  # row 30
    torch = pytest.importorskip("torch")
    ours, ref, _ = layer()
    assert same(lowbit.linear(torch.from_numpy(X), ours), reference.linear(X, ref))
    assert same(lowbit.matmul_int8(torch.from_numpy(A), torch.from_numpy(B)), reference.matmul_int8(A, B))


@pytest.mark.parametrize("flag", [[], ["-O"]])
def test_empty_layers(flag):  # row 4
    code = (
        "import lowbit, numpy as np\n"
        "w = lowbit.quantize_weight(np.ones((3, 4), np.float32))\n"
        "print(lowbit.linear(np.empty((0, 4), np.float32), w).shape, end=' ')\n"
        "print(lowbit.mlp(np.empty((0, 4), np.float32), w, None, lowbit.quantize_weight(np.ones((5, 3))), "
        "activation=None).shape, end=' ')\n"
        "print(lowbit.quantize_weight(np.empty((0, 4), np.float32)).shape, end=' ')\n"
        "print(lowbit.matmul_int8(np.empty((2, 0), np.int8), np.empty((0, 3), np.int8)).sum())\n"
    )
    told = subprocess.run([sys.executable, *flag, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "(0, 3) (0, 5) (4, 0) 0\n"


# ------------------------------------------------------------------ what is refused

V, T = ValueError, TypeError
W = lowbit.quantize_weight(np.ones((9, 50), np.float32))


def matmul(a=A, b=B, **kwargs):
    return lambda: lowbit.matmul_int8(a, b, **kwargs)


def linear(x=X, w=W, *args, **kwargs):
    return lambda: lowbit.linear(x, w, *args, **kwargs)


def weight(w, *args, **kwargs):
    return lambda: lowbit.quantize_weight(w, *args, **kwargs)


def mlp(x=X, up=W, down=None, **kwargs):
    down = lowbit.quantize_weight(np.ones((50, 9), np.float32)) if down is None else down
    return lambda: lowbit.mlp(x, up, None, down, activation=None, **kwargs)


def frozen(a):
    a.flags.writeable = False
    return a


def misaligned(shape, dtype):
    raw = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 1, np.uint8)
    return raw[1:].view(dtype).reshape(shape)


SHARED = np.zeros(4096, np.uint8)

FLOAT_INPUTS = lowbit.quantize_weight(np.ones((4, 50), np.float32), lowbit.Uniform(4, activation=None, equalize=False))
REFUSED = [
    # row, the call, the exception, words of its message
    (1, weight(np.array([[1, np.nan]], np.float32)), V, "NaN"),
    (2, weight(np.array([[1, np.inf]], np.float32)), V, "infinit"),
    (2, weight(np.array([[1, -np.inf]], np.float32)), V, "infinit"),
    (4, weight(np.empty((3, 0), np.float32)), V, r"w: expected 2-D \(N, K\) with K of at least 1"),
    (22, matmul(out=frozen(np.empty((6, 9), np.int32))), V, "out: expected a writeable array"),
    (22, linear(out=frozen(np.empty((6, 9), np.float32))), V, "out: expected a writeable array"),
    (22, mlp(out=frozen(np.empty((6, 50), np.float32))), V, "out: expected a writeable array"),
    (
        23,
        matmul(
            SHARED[:64].view(np.int8).reshape(8, 8), np.eye(8, dtype=np.int8), out=SHARED[:256].view("i4").reshape(8, 8)
        ),
        V,
        "out: .* overlaps an input",
    ),
    (
        23,
        linear(X[:, :9], lowbit.quantize_weight(np.eye(9, dtype=np.float32)), out=X.reshape(-1)[:54].reshape(6, 9)),
        V,
        "out: .* overlaps an input",
    ),
    (23, linear(residual=(both := np.zeros((6, 9), np.float32)), out=both), V, "out: .* overlaps an input"),
    (23, mlp(X, out=X), V, "out: .* overlaps an input"),
    (24, matmul(out=misaligned((6, 9), np.int32)), V, "out: .* aligned"),
    (24, linear(out=misaligned((6, 9), np.float32)), V, "out: .* aligned"),
    (25, matmul(out=np.empty((6, 9), ">i4")), T, "out: expected dtype int32, got >i4"),
    (25, linear(out=np.empty((6, 9), ">f4")), T, "out: expected dtype float32, got >f4"),
    (26, matmul(np.int8(1)), V, "a: expected at least 2-D, got 0-D"),
    (26, matmul(1), V, "a: expected at least 2-D, got 0-D"),
    (26, matmul(b=np.int8(1)), V, "b: expected at least 2-D, got 0-D"),
    (26, linear(np.float32(1)), V, "x: expected at least 1-D, got 0-D"),
    (26, weight(np.float32(1)), V, "w: expected at least 2-D, got 0-D"),
    (27, matmul(A[0]), V, r"a: expected at least 2-D, got 1-D of shape \(50,\)"),
    (27, matmul(A[None]), V, r"a, b: expected \(M, K\) and \(K, N\), got \(1, 6, 50\) and \(50, 9\)"),
    (27, matmul(b=B[None]), V, r"b: expected 2-D \(K, N\), got shape \(1, 50, 9\)"),
    (27, matmul(A.T), V, r"got \(50, 6\) and \(50, 9\)"),
    (27, matmul(b=lowbit.tile_matrix(B[:-1])), V, r"got \(6, 50\) and \(49, 9\)"),
    (27, matmul(out=np.empty((9, 6), np.int32)), V, r"out: expected shape \(6, 9\), got \(9, 6\)"),
    (27, matmul(out=np.empty((9, 6), np.int32).T), V, "out: expected a C-contiguous"),
    (27, linear(X[:, 1:]), V, r"x, weight: expected \(..., 50\), got \(6, 49\)"),
    (27, linear(lowbit.quantize_rows(X[:, 1:])), V, r"x, weight: expected \(..., 50\), got \(6, 49\)"),
    (27, linear(X, W, np.zeros(8)), V, r"bias: expected shape \(9,\), got \(8,\)"),
    (27, linear(X, W, np.zeros((1, 9))), V, r"bias: expected shape \(9,\), got \(1, 9\)"),
    (27, linear(residual=np.zeros((1, 9), np.float32)), V, r"residual: expected shape \(6, 9\), got \(1, 9\)"),
    (27, linear(norm=(np.ones(8), np.zeros(9), 1e-5)), V, r"norm: gamma: expected shape \(9,\), got \(8,\)"),
    (27, linear(out=np.empty((6, 1, 9), np.float32)), V, r"out: expected shape \(6, 9\)"),
    (
        27,
        mlp(up=lowbit.quantize_weight(np.ones((8, 50)))),
        V,
        r"up, down: expected \(H, K\) and \(N, H\), got \(8, 50\)",
    ),
    (27, weight(np.ones((2, 3, 4), np.float32)), V, r"w: expected 2-D \(N, K\)"),
    (28, matmul(A.astype(np.float32)), T, "a: expected dtype int8 or uint8, got float32"),
    (28, matmul(b=B.astype(np.float16)), T, "b: expected dtype int8, got float16"),
    (28, linear(residual=np.zeros((6, 9))), T, "residual: expected dtype float32, got float64"),
    (28, linear(out=np.empty((6, 9))), T, "out: expected dtype float32, got float64"),
    (28, linear(X.astype(np.float64), out=np.empty((6, 9), np.float32)), T, "out: expected dtype float64"),
    (29, matmul(A.astype(np.int16)), T, "a: expected dtype int8 or uint8, got int16"),
    (29, matmul(b=B.view(np.uint8)), T, "b: expected dtype int8, got uint8"),
    (29, matmul(A > 0), T, "a: expected dtype int8 or uint8, got bool"),
    (29, matmul(A.astype(complex)), T, "got complex128"),
    (29, matmul(A.astype(object)), T, "got object"),
    (29, matmul(np.array([["1"]])), T, "got <U1"),
    (29, matmul("12"), T, "a: expected an array of int8 or uint8, got str"),
    (29, matmul(None), T, "got NoneType"),
    (29, matmul(np.array([["2020-01-01"]], "M8[D]")), T, "got datetime64"),
    (29, matmul(np.zeros((2, 2), [("a", "i1")])), T, r"got \[\('a'"),
    (29, matmul(np.ma.masked_array(A, A == 3)), T, "a: .* masked array; use .filled"),
    (29, matmul(out=np.ma.masked_array(np.empty((6, 9), np.int32))), T, "out: expected a numpy.ndarray"),
    (29, matmul(out=[0]), T, "out: expected a numpy.ndarray, got list"),
    (29, matmul(out=np.empty((6, 9), np.int64)), T, "out: expected dtype int32, got int64"),
    (29, linear(A), T, "x: expected dtype float32 or .*, got int8"),
    (29, linear(X.astype(np.complex64)), T, "x: .* got complex64"),
    (29, linear(X > 0), T, "x: .* got bool"),
    (29, linear(np.ma.masked_array(X, X > 1)), T, "x: .* masked array"),
    (
        29,
        linear(X, np.ones((9, 50), np.float32)),
        T,
        "weight: expected a weight of lowbit.quantize_weight, got ndarray",
    ),
    (29, linear(X, lowbit.tile_matrix(B)), T, "weight: expected a weight of lowbit.quantize_weight, got TiledMatrix"),
    (29, linear(X, W, "bias"), T, "bias: expected an array"),
    (29, linear(norm=np.ones(9)), T, r"norm: expected \(gamma, beta, eps\), got ndarray"),
    (29, linear(norm=(np.ones(9), None, 1e-5)), T, "norm: expected arrays"),
    (29, linear(activation="tanh"), V, "activation: expected None, 'relu', .* got 'tanh'"),
    (29, linear(as_rows=True, residual=np.zeros((6, 9), np.float32)), V, "as_rows: expected neither"),
    (29, weight(np.ones((2, 2), np.int8)), T, "w: expected dtype float32 or .*, got int8"),
    (29, weight(np.ones((2, 2), np.float32), "int8"), T, r"config: expected lowbit.Int8\(\), .* got 'int8'"),
    (
        29,
        lambda: lowbit.GroupedWeight(np.empty(64, np.uint8), 0, 0, lowbit.Int8()),
        T,
        "config: expected lowbit.Uniform",
    ),
    (29, lambda: lowbit.TiledMatrix(np.empty(64, np.int8), 0, 0), T, "tiled: expected dtype uint8, got int8"),
    (32, lambda: lowbit.TiledMatrix(np.empty((8, 8), np.uint8), 0, 0), V, r"tiled: expected 1-D, got shape \(8, 8\)"),
    (33, lambda: lowbit.TiledMatrix(np.empty(0, np.uint8), -1, 0), V, "k: .* got -1"),
    (29, lambda: lowbit.Uniform(4.0), T, "nbits: expected an int, got 4.0"),
    (29, lambda: lowbit.Uniform(True), T, "nbits: expected an int, got True"),
    (29, lambda: lowbit.Uniform(4, symmetric=1), T, "symmetric: expected a bool, got 1"),
    (33, lambda: lowbit.Uniform(7), V, "nbits: expected 2 to 6 or 8, got 7"),
    (33, lambda: lowbit.Uniform(4, scale="max"), V, "scale: expected 'mse' or 'absmax', got 'max'"),
    (33, lambda: lowbit.Uniform(4, activation="int4"), V, "activation: expected 'int8', 'int8_group' or None"),
    (
        29,
        lambda: lowbit.linear(lowbit.quantize_rows(np.ones((2, 50), np.float32)), FLOAT_INPUTS),
        V,
        "x: expected floats with a weight whose",
    ),
    (29, lambda: lowbit.Uniform(4, rotate="dct"), V, "rotate: expected None or 'hadamard', got 'dct'"),
    (29, lambda: lowbit.Uniform(4, rotate=True), V, "rotate: expected None or 'hadamard', got True"),
    (33, lambda: lowbit.Uniform(4, 12), V, "group_size: expected a multiple of 8 below .*, got 12"),
    (33, lambda: lowbit.Uniform(4, 0), V, "group_size: .* got 0"),
    (33, lambda: lowbit.GroupedWeight(np.empty(0, np.uint8), 2**62, 2**62, lowbit.Uniform(4)), V, "overflow"),
    (1, weight(np.full((2, 9), np.nan, np.float32), lowbit.Uniform(4)), V, "weight: row 0 holds NaN"),
    (29, weight(np.ones((2, 9), np.float32), importance=np.ones(9)), V, "importance: expected None with Int8"),
    (29, weight(np.ones((2, 9), np.float32), lowbit.Uniform(4), importance=np.ones(8)), V, r"importance: .*\(9,\)"),
    (1, weight(np.ones((2, 9), np.float32), lowbit.Uniform(4), importance=-np.ones(9)), V, "importance: expected 9"),
    (29, weight(np.ones((2, 9), np.float32), second_moments=np.eye(9)), V, "second_moments: expected None with Int8"),
    (29, weight(np.ones((2, 9), np.float32), lowbit.Uniform(4), second_moments=np.eye(8)), V, r"shape \(9, 9\)"),
    (29, mlp(lowbit.quantize_rows(X)), T, "x: expected floats, got RowCodes"),
    (31, matmul([[1, 2], [3]]), V, "a: expected an array, got a ragged list"),
    (31, matmul([[1, 300]]), V, "a: expected values of -128 to 127, got 300 at flat index 1"),
    (31, matmul(i for i in range(3)), T, "got generator"),
    (31, linear([[1.0], [1.0, 2.0]]), V, "x: expected an array, got a ragged list"),
    (31, linear(iter(X)), T, "x: expected an array"),
    (33, lambda: lowbit.TiledMatrix(np.empty(0, np.uint8), 2**62, 2**62), V, "overflow"),
    (33, lambda: lowbit.TiledMatrix(np.empty(0, np.uint8), 2**40, 2**10), V, "takes .* bytes, got 0"),
    (34, matmul(np.zeros((2**22, 1), np.int8), np.zeros((1, 2**22), np.int8)), MemoryError, "allocate 64.0 TiB"),
    (34, linear(np.broadcast_to(np.float32(1), (2**45, 50))), MemoryError, "allocate"),
    (67, matmul(isa="mmx"), V, "isa: expected one of scalar, .* got 'mmx'"),
    (67, linear(isa="AVX2"), V, "isa: expected one of scalar, .* got 'AVX2'"),
    (67, matmul(isa=5), T, "isa"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [pytest.param(*c[1:], id=f"{c[0]}-{i}") for i, c in enumerate(REFUSED)]
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_layer_of_too_many_inputs():  # row 35
    w = lowbit.quantize_weight(np.ones((1, 65_794), np.float32))
    with pytest.raises(ValueError, match="1 to 65793 inputs, got 65794"):
        lowbit.linear(np.ones((1, 65_794), np.float32), w)


def torch_tensors():
    torch = pytest.importorskip("torch")
    yield torch.empty(6, 50, device="meta"), "meta device"
    yield torch.zeros(6, 50).to_sparse(), r"use .to_dense\(\)"
    yield torch.zeros(6, 50, requires_grad=True), r"use .detach\(\)"
    yield torch.zeros(6, 50, dtype=torch.bfloat16), "bfloat16 that numpy cannot hold"
    yield torch.quantize_per_tensor(torch.zeros(6, 50), 0.1, 0, torch.quint8), r"use .int_repr\(\)"
    if torch.cuda.is_available():
        yield torch.zeros(6, 50, device="cuda"), r"use .detach\(\).cpu\(\)"


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_torch_tensors_that_are_not_plain():  # row 30
    for tensor, words in torch_tensors():
        with pytest.raises(TypeError, match=words):
            lowbit.linear(tensor, W)


def test_float64_beyond_float32():  # row 28: a value that float32 cannot hold is an infinity, never a wrong number
    x = np.ones((2, 50))
    x[0, 0] = 1e300
    with np.errstate(over="ignore"):
        y = lowbit.linear(x, W)
    assert y.dtype == np.float64
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


# ------------------------------------------------------------------ processes and threads

BIG_A, BIG_B = int8(RNG, 400, 300, dtype=np.uint8), int8(RNG, 300, 500)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_fork_after_a_parallel_call(inside):  # rows 57, 58: after a call, and while another thread is in one
    want = reference.matmul_int8(BIG_A, BIG_B)
    stop = threading.Event()

    def keep_calling():
        while not stop.is_set():
            lowbit.matmul_int8(BIG_A, BIG_B)

    with lowbit.threads(2):
        assert same(lowbit.matmul_int8(BIG_A, BIG_B), want)
        other = threading.Thread(target=keep_calling) if inside else None
        if other:
            other.start()
        try:
            for _ in range(5 if inside else 1):
                _fork_and_wait(want)
        finally:
            stop.set()
            if other:
                other.join()


def _fork_and_wait(want):
    child = os.fork()
    if child == 0:
        os._exit(0 if same(lowbit.matmul_int8(BIG_A, BIG_B), want) else 3)
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
    ours, ref, bias = layer(n=400, k=50)
    x = floats(np.random.default_rng(10), 300, 50)
    product, outputs = reference.matmul_int8(BIG_A, BIG_B), reference.linear(x, ref, bias, activation="relu")

    def work(i: int) -> bool:
        if i % 2:
            return same(lowbit.matmul_int8(BIG_A, BIG_B), product)
        return same(lowbit.linear(x, ours, bias, activation="relu"), outputs)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(200)))


def test_input_changed_meanwhile():  # row 60: torn values at worst
    a = BIG_A.copy()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [a.fill(i % 256) for i in range(500)])
        while not job.done():
            assert lowbit.matmul_int8(a, BIG_B).shape == (400, 500)
        job.result()


STOPPED = """
import time, numpy as np, lowbit
a, b = np.ones((16384, 16384), np.int8), np.ones((16384, 16384), np.int8)
b = lowbit.tile_matrix(b)
out = np.empty((16384, 16384), np.int32)
print("go", flush=True)
try:
    lowbit.matmul_int8(a, b, out=out)
except KeyboardInterrupt:
    print(time.monotonic())
"""


NO_THREADS = """
import os, resource, numpy as np, lowbit
a, b = np.ones((400, 300), np.uint8), np.ones((300, 500), np.int8)
if os.getuid() == 0:
    os.setuid(65534)  # the limit does not bind root
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
with lowbit.threads(4):
    print((lowbit.matmul_int8(a, b) == 300).all())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_NPROC")
def test_no_threads_to_be_had():  # row 65
    told = subprocess.run([sys.executable, "-c", NO_THREADS], capture_output=True, text=True, timeout=60)
    assert told.stdout == "True\n", told.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="one clock for all processes")
def test_ctrl_c_stops_a_long_product():  # row 61
    waits = []
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "go\n"
            time.sleep(0.5)
            asked = time.monotonic()
            child.send_signal(signal.SIGINT)
            told, _ = child.communicate(timeout=60)
        assert child.returncode == 0
        assert told, "the product ended before it was stopped"
        waits.append(float(told) - asked)
        if waits[-1] <= 0.2:
            return
    pytest.fail(f"stopped after {min(waits):.2f} s")


def test_flush_to_zero_changes_nothing():  # row 68
    torch = pytest.importorskip("torch")
    ours, _, bias = layer()
    x = floats(np.random.default_rng(11), 20, 50)
    want = [lowbit.linear(x, ours, bias, activation="gelu", isa=isa) for isa in ISAS]
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        got = [lowbit.linear(x, ours, bias, activation="gelu", isa=isa) for isa in ISAS]
    finally:
        torch.set_flush_denormal(False)
    assert all(same(a, b) for a, b in zip(got, want, strict=True))
