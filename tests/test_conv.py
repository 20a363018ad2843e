"""`lowbit.conv2d` on every instruction set equals the reference, and refuses what does not fit.

The kernels' own tests (rust/kernels/src/conv/tests.rs) try shapes by the thousand.
"""

from __future__ import annotations

import lowbit
import numpy as np
import pytest
from lowbit import reference


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    rng = np.random.default_rng(seed)
    depthwise = seed % 4 == 0
    groups, depth, each = int(rng.integers(1, 4)), int(rng.integers(1, 30)), int(rng.integers(1, 30))
    if depthwise:
        groups, depth, each = int(rng.integers(1, 70)), 1, 1
    kernel = (3, 3) if seed % 2 else rng.integers(1, 6, 2)
    dilation = (1, 1) if seed % 2 else rng.integers(1, 3, 2)
    size = [int((k - 1) * d + 1 + rng.integers(0, 20)) for k, d in zip(kernel, dilation, strict=True)]
    dtypes = [np.dtype(("int8", "uint8")[i]) for i in rng.integers(0, 2, 2)]
    x, weight = (
        rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        for dtype, shape in zip(dtypes, [(2, *size, groups * depth), (groups * each, *kernel, depth)], strict=True)
    )
    bias = rng.integers(-9999, 9999, groups * each).astype(np.int32)
    how = {
        "stride": (1, 1) if seed % 2 else tuple(rng.integers(1, 3, 2).tolist()),
        "padding": tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist())),
        "dilation": tuple(int(d) for d in dilation),
        "groups": groups,
        "x_zero_point": int(rng.integers(0, 128)),
        "weight_zero_point": int(rng.integers(0, 128)),
    }
    return x, weight, bias, how


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_reference(seed, isa, ran):
    x, weight, bias, how = case(seed)
    got = lowbit.conv2d(x, weight, bias, isa=isa, **how)
    expected = reference.conv2d(x, weight, bias, **how)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    ran(isa)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_change_nothing(threads):
    x, weight, bias, how = case(5)
    x = np.concatenate([x] * 10)
    with lowbit.threads(threads):
        got = lowbit.conv2d(x, weight, bias, **how)
    np.testing.assert_array_equal(got, np.concatenate([reference.conv2d(x[:2], weight, bias, **how)] * 10))


def test_no_images():
    assert lowbit.conv2d(np.zeros((0, 3, 3, 1), np.int8), np.zeros((2, 3, 3, 1), np.int8)).shape == (0, 1, 1, 2)


X, W = np.zeros((1, 4, 4, 2), np.int8), np.zeros((3, 3, 3, 2), np.int8)


@pytest.mark.parametrize(
    ("x", "weight", "how", "error", "words"),
    [
        (X.astype(np.int16), W, {}, TypeError, "x: expected dtype int8 or uint8, got int16"),
        (X[0], W, {}, ValueError, "x: expected at least 4-D"),
        (X[None], W, {}, ValueError, "x: expected 4-D"),
        (X, W[..., :1], {}, ValueError, "weight: expected 2 channels in 1 groups"),
        (X, W, {"groups": 0}, ValueError, "groups: expected at least 1"),
        (X, W, {"stride": 2}, TypeError, "stride: expected a pair"),
        (X, W, {"stride": (0, 1)}, ValueError, "stride: expected 1 to"),
        (X, W, {"padding": (1, 1)}, TypeError, "padding: expected a pair"),
        (X, W, {"padding": ((-1, 0), (0, 0))}, ValueError, "padding: expected 0 to"),
        (X, W, {"padding": ((2**32 - 1, 2**32 - 1), (0, 0))}, ValueError, "padding"),
        (X, W, {"dilation": (3, 1)}, ValueError, "padding: expected a kernel within the padded input"),
        (X, W, {"bias": np.zeros(2, np.int32)}, ValueError, "bias: expected shape"),
        (X, W, {"bias": np.full(3, 2**31 - 1, np.int32)}, ValueError, "bias: expected at most"),
        (X, W, {"x_zero_point": 200}, ValueError, "input: expected a zero point of -128 to 127"),
        (X, W, {"isa": "mmx"}, ValueError, "isa"),
    ],
)
def test_what_does_not_fit_is_named(x, weight, how, error, words):
    with pytest.raises(error, match=words):
        lowbit.conv2d(x, weight, **how)
