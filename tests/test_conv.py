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


# ------------------------------------------------------------------ images rounded with feedback


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """Images (N, H, W, C) whose values change little from pixel to pixel."""
    noise = np.random.default_rng(seed).normal(size=shape).cumsum(1).cumsum(2)
    return (noise - noise.mean((1, 2, 3), keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("nbits", [2, 6, 8])
@pytest.mark.parametrize("kernel", [(1, 1, 2), (1, 3, 1), (3, 2, 3)], ids=str)
def test_feedback_equals_the_reference(kernel, nbits, isa, ran):
    rng = np.random.default_rng(3)
    x = smooth(3, 5, 19, kernel[2])
    x[1] = np.abs(x[1])  # another zero point
    x[2, 1, 1] = np.nan
    coefficients = lowbit.feedback_coefficients(rng.normal(size=(4, *kernel)))
    coefficients[:, -1, kernel[1] :] = 9  # what comes later is not looked at
    got = lowbit.quantize_images(x, coefficients, nbits=nbits, isa=isa)
    expected = reference.quantize_images(x, coefficients, nbits=nbits)
    for name in ("codes", "scale", "zero_point", "group_sums"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    rows = lowbit.quantize_rows(x.reshape(3, -1), nbits=nbits)
    np.testing.assert_array_equal(got.scale, rows.scale)
    nothing = lowbit.quantize_images(x, np.zeros_like(coefficients), nbits=nbits, isa=isa)
    np.testing.assert_array_equal(nothing.codes, rows.codes)
    ran(isa)


def test_coefficients_are_those_of_the_outputs_squares():
    """By another way: H = Lᵀ D L, of a piece of image, from every output that it reaches."""
    rng = np.random.default_rng(1)
    filters = rng.normal(size=(3, 2, 3, 2))
    rows, columns, channels = 8, 12, 2
    size = rows * columns * channels
    images = np.eye(size).reshape(size, rows, columns, channels)
    padded = np.pad(images, ((0, 0), (1, 1), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), axis=(1, 2))
    outputs = np.einsum("nyxcij,oijc->nyxo", windows, filters).reshape(size, -1)
    h = outputs @ outputs.T
    h += 0.05 * h.diagonal().mean() * np.eye(size)
    upper = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    lower = (upper / upper.diagonal()).T
    pixel = (4 * columns + 6) * channels
    got = lowbit.feedback_coefficients(filters, damping=0.05)
    for channel in range(channels):
        row = lower[pixel + channel].reshape(rows, columns, channels).copy()
        row.reshape(-1)[pixel + channel] = 0
        np.testing.assert_allclose(got[channel], row[3:5, 4:9], atol=1e-6)
    gain = np.array([2.0, 0.5, 3.0])
    weighed = lowbit.feedback_coefficients(filters, importance=gain)
    np.testing.assert_array_equal(weighed, lowbit.feedback_coefficients(filters * gain[:, None, None, None]))


def test_feedback_keeps_what_the_filters_see():
    x = smooth(4, 24, 24, 3)
    blur = np.outer([1, 2, 1], [1, 2, 1])[None, :, :, None]  # as first layers have it, more or less
    filters = blur + np.random.default_rng(2).normal(size=(8, 3, 3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    exact = np.einsum("nyxcij,oijc->nyxo", windows, filters)

    def off(rows) -> float:
        codes = rows.codes.astype(np.float64) - rows.zero_point[:, None]
        values = (codes * rows.scale[:, None]).reshape(x.shape)
        windows = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(1, 2))
        return float(np.square(np.einsum("nyxcij,oijc->nyxo", windows, filters) - exact).mean())

    for nbits in (4, 6):
        fed = off(lowbit.quantize_images(x, lowbit.feedback_coefficients(filters), nbits=nbits))
        assert fed < 0.5 * off(lowbit.quantize_rows(x.reshape(4, -1), nbits=nbits))


def test_feedback_that_cannot_be_is_refused():
    x, coefficients = smooth(1, 4, 4, 2), np.zeros((2, 1, 3, 2), np.float32)
    for error, words, args in (
        (ValueError, "x: expected 4-D or more|x: expected", (x[0], coefficients)),
        (ValueError, "x: expected", (x[:0], coefficients)),
        (ValueError, "at most 8421504 values", (np.broadcast_to(np.float32(0), (1, 2100, 2100, 2)), coefficients)),
        (TypeError, "feedback: ", (x, coefficients.astype(np.float64))),
        (ValueError, r"feedback: expected \(2, rows, columns, 2\)", (x, np.zeros((1, 1, 3, 1), np.float32))),
        (ValueError, "odd number of columns", (x, np.zeros((2, 1, 2, 2), np.float32))),
        (ValueError, "at least one row", (x, np.zeros((2, 0, 3, 2), np.float32))),
        (ValueError, "between -65536 and 65536", (x, np.full((2, 1, 3, 2), np.nan, np.float32))),
    ):
        with pytest.raises(error, match=words):
            lowbit.quantize_images(*args)
    with pytest.raises(ValueError, match="nbits: "):
        lowbit.quantize_images(x, coefficients, nbits=9)
    for error, words, weight, how in (
        (ValueError, "weight: expected", np.zeros((3, 3)), {}),
        (ValueError, "at most 196 values", np.zeros((1, 8, 8, 4)), {}),
        (ValueError, "finite values", np.full((1, 1, 1, 1), np.inf), {}),
        (ValueError, "damping: ", np.ones((1, 1, 1, 1)), {"damping": 0}),
        (TypeError, "damping: ", np.ones((1, 1, 1, 1)), {"damping": "some"}),
        (ValueError, "importance: ", np.ones((1, 1, 1, 1)), {"importance": np.ones(2)}),
        (TypeError, "weight: ", np.ones((1, 1, 1, 1), int), {}),
    ):
        with pytest.raises(error, match=words):
            lowbit.feedback_coefficients(weight, **how)
    assert not lowbit.feedback_coefficients(np.zeros((1, 3, 3, 2))).any()
