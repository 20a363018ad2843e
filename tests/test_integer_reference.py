"""The reference of integer networks against naive definitions, stored outputs and LiteRT itself."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import stored
from hypothesis import given
from hypothesis import strategies as st
from lowbit.integer import graph as g
from lowbit.integer.tflite import from_tflite
from lowbit.reference import conv
from lowbit.reference.integer import run
from tflite_file import Operator, Tensor, made

TYPES = (np.int8, np.uint8)


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def codes(rng: np.random.Generator, shape, dtype) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape, dtype=dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def batched(graph: g.Graph, x: np.ndarray, n: int = 100) -> np.ndarray:
    return np.concatenate([run(graph, x[at : at + n])[0] for at in range(0, len(x), n)])


# ------------------------------------------------------------------ sums


def naive_conv2d(x, weight, bias, stride, padding, dilation, groups, zero_points):
    """The sum over a window that is written as such."""
    (n, height, width, _), (outs, kh, kw, depth) = x.shape, weight.shape
    high = (height + sum(padding[0]) - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    wide = (width + sum(padding[1]) - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    sums = np.zeros((n, high, wide, outs), np.int32)
    for at in np.ndindex(sums.shape):
        sample, row, col, o = at
        total = int(bias[o])
        for i, j, c in np.ndindex(kh, kw, depth):
            y = row * stride[0] - padding[0][0] + i * dilation[0]
            z = col * stride[1] - padding[1][0] + j * dilation[1]
            if 0 <= y < height and 0 <= z < width:
                code = int(x[sample, y, z, o // (outs // groups) * depth + c])
                total += (code - zero_points[0]) * (int(weight[o, i, j, c]) - zero_points[1])
        sums[at] = total
    return sums


small = st.integers(1, 3)
pads = st.tuples(st.integers(0, 2), st.integers(0, 2))


@given(
    seed=st.integers(0, 2**32 - 1),
    kernel=st.tuples(small, small),
    stride=st.tuples(small, small),
    dilation=st.tuples(small, small),
    padding=st.tuples(pads, pads),
    groups=small,
    depth=small,
    each=small,
    dtypes=st.tuples(st.sampled_from(TYPES), st.sampled_from(TYPES)),
)
def test_conv2d_is_its_definition(seed, kernel, stride, dilation, padding, groups, depth, each, dtypes):
    rng = rng_of(seed)
    size = [(k - 1) * d + 1 + rng.integers(3) for k, d in zip(kernel, dilation, strict=True)]
    x = codes(rng, (2, *size, groups * depth), dtypes[0])
    weight = codes(rng, (groups * each, *kernel, depth), dtypes[1])
    bias = rng.integers(-(2**20), 2**20, groups * each, dtype=np.int32)
    zero_points = [int(codes(rng, (), dtype)) for dtype in dtypes]
    how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    got = conv.conv2d(x, weight, bias, **how, x_zero_point=zero_points[0], weight_zero_point=zero_points[1])
    assert same(got, naive_conv2d(x, weight, bias, stride, padding, dilation, groups, zero_points))


def test_fully_connected_is_a_convolution_of_one_point():
    rng = rng_of(0)
    x, weight = codes(rng, (5, 3, 7), np.uint8), codes(rng, (4, 21), np.int8)
    bias = rng.integers(-1000, 1000, 4, dtype=np.int32)
    want = conv.conv2d(x.reshape(5, 1, 1, 21), weight.reshape(4, 1, 1, 21), bias, x_zero_point=7)
    assert same(conv.fully_connected(x, weight, bias, x_zero_point=7), want.reshape(5, 4))


def test_sums_wrap_as_int32_does():
    x, weight = np.full((1, 1), 127, np.int8), np.full((1, 1), 127, np.int8)
    bias = np.array([2**31 - 1], np.int32)
    assert conv.fully_connected(x, weight, bias)[0, 0] == -(2**31) + 127 * 127 - 1


# ------------------------------------------------------------------ roundings

SUMS = np.concatenate(
    [np.arange(-3000, 3000), rng_of(1).integers(-(2**31), 2**31, 3000), [-(2**31), 2**31 - 1, 0]]
).astype(np.int32)


def half_away(x: Fraction) -> int:
    return int(math.copysign(math.floor(abs(x) + Fraction(1, 2)), x))


@pytest.mark.parametrize("zero_point", [-128, 0, 127])
@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1 / 3, 0.0123, 3e-7, 2.0])
def test_requantize_one_by_one(multiplier, zero_point):
    multiplier = np.float32(multiplier)
    got = conv.requantize(SUMS, multiplier, zero_point, -100, 90, np.int8)
    for total, code in zip(SUMS, got, strict=True):
        real = float(np.float32(np.float32(total) * multiplier))
        assert code == round(min(max(real, -100 - zero_point), 90 - zero_point)) + zero_point  # round: to even


@pytest.mark.parametrize("multiplier", [0.5, 0.25, 1 / 3, 0.0123, 3e-7, 2.0, 5.7, 2.0**-33, 1 - 2.0**-40])
def test_requantize_fixed_point_one_by_one(multiplier):
    (m,), (shift,) = (a.tolist() for a in conv.fixed_point(np.array([multiplier])))
    assert m == 0 if multiplier < 2**-32 else 2**30 <= m < 2**31
    assert abs(Fraction(m) * Fraction(2) ** (shift - 31) - Fraction(multiplier)) <= Fraction(2) ** (shift - 32)
    got = conv.requantize_fixed_point(SUMS, np.int32(m), np.int32(shift), 3, -128, 127, np.int8)
    for total, code in zip(SUMS.tolist(), got, strict=True):
        first = min(max(total << max(shift, 0), -(2**31)), 2**31 - 1)
        high = math.floor(Fraction(first * m, 2**31) + Fraction(1, 2))
        assert code == min(max(half_away(Fraction(high, 2 ** max(-shift, 0))) + 3, -128), 127)


@pytest.mark.parametrize("shift", [-100, -41, -31, -8, -1, 0, 1, 7, 31, 100])
def test_requantize_power_of_two_one_by_one(shift):
    got = conv.requantize_power_of_two(SUMS, np.int32(shift), -3, -128, 127, np.int8)
    for total, code in zip(SUMS.tolist(), got, strict=True):
        exact = math.floor(total * Fraction(2) ** shift + Fraction(1, 2))
        assert code == min(max(exact - 3, -128), 127)


def test_power_of_two_of_what_is_none():
    with pytest.raises(ValueError, match=r"multiplier: expected powers of two, got 0\.3"):
        conv.power_of_two(np.array([0.5, 0.3]))


# ------------------------------------------------------------------ codes to codes


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("scales", "shift"), [((0.5, 0.5, 1), 21), ((0.013, 0.07, 0.041), 20), ((1, 9, 0.05), 13)])
def test_add_one_by_one(scales, shift, dtype):
    rng = rng_of(2)
    a, b = codes(rng, 2000, dtype), codes(rng, 2000, dtype)
    za, zb, zero_point = (int(z) for z in codes(rng, 3, dtype))
    qmin, qmax = np.iinfo(dtype).min + 9, np.iinfo(dtype).max - 9
    got = conv.add(a, b, scales=scales, zero_points=(za, zb, zero_point), qmin=qmin, qmax=qmax)
    ma, mb = (round(float(np.float32(s) / np.float32(scales[2])) * 2**shift) for s in scales[:2])
    assert 2**20 <= max(ma, mb) <= 2**21
    for i in range(len(a)):
        total = (int(a[i]) - za) * ma + (int(b[i]) - zb) * mb
        code = math.floor(Fraction(total, 2**shift) + Fraction(1, 2)) + zero_point
        assert got[i] == min(max(code, qmin), qmax)


@given(
    seed=st.integers(0, 2**32 - 1),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    stride=st.tuples(small, small),
    padding=st.tuples(st.tuples(st.integers(0, 1), st.integers(0, 1)), st.tuples(st.integers(0, 1), st.just(1))),
    dtype=st.sampled_from(TYPES),
)
def test_pools_are_their_definitions(seed, kernel, stride, padding, dtype):
    rng = rng_of(seed)
    size = [k + int(rng.integers(4)) for k in kernel]
    x, limits = codes(rng, (2, *size, 3), dtype), np.iinfo(dtype)
    qmin, qmax = limits.min + 20, limits.max - 20
    mean = conv.average_pool2d(x, kernel, stride, padding, qmin=qmin, qmax=qmax)
    most = conv.max_pool2d(x, kernel, stride, padding, qmin=qmin, qmax=qmax)
    shape = tuple((n + sum(p) - k) // s + 1 for n, p, k, s in zip(size, padding, kernel, stride, strict=True))
    assert mean.shape == most.shape == (2, *shape, 3)
    for n, i, j, c in np.ndindex(mean.shape):
        top, left = i * stride[0] - padding[0][0], j * stride[1] - padding[1][0]
        seen = x[n, max(top, 0) : top + kernel[0], max(left, 0) : left + kernel[1], c].astype(int)
        assert mean[n, i, j, c] == min(max(half_away(Fraction(int(seen.sum()), seen.size)), qmin), qmax)
        assert most[n, i, j, c] == min(max(seen.max(), qmin), qmax)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [0.001, 0.11, 3.0])
def test_softmax_one_by_one(scale, dtype):
    x, least = codes(rng_of(3), (20, 2, 37), dtype), np.iinfo(dtype).min
    got = conv.softmax(x, scale)
    for at in np.ndindex(20, 2):
        row = x[at].astype(int)
        e = [np.float32(math.exp(np.float32(-scale) * np.float32(row.max() - code))) for code in row]
        total = np.float32(0)
        for value in e:
            total = np.float32(total + value)
        inverse = np.float32(1) / np.float32(total / np.float32(256))
        want = [min(math.floor(np.float32(value * inverse) + np.float32(0.5)), 255) + least for value in e]
        assert got[at].tolist() == want


@pytest.mark.parametrize("dtype", TYPES)
def test_quantize_and_dequantize_every_code(dtype):
    limits, scale = np.iinfo(dtype), 0.0173
    every = np.arange(limits.min, limits.max + 1).astype(dtype)
    zero_point = limits.min + 100
    assert same(conv.quantize_codes(conv.dequantize_codes(every, scale, zero_point), scale, zero_point, dtype), every)
    assert conv.quantize_codes(np.array([3e38, -3e38], np.float32), scale, 0, dtype).tolist() == [
        limits.max,
        limits.min,
    ]


# ------------------------------------------------------------------ graphs

X = g.Tensor("x", (2, 3, 4), "int8", 0.5, -3)


def graph_of(op: g.Operation, out: g.Tensor, *constants: g.Constant, x: g.Tensor = X) -> g.Graph:
    return g.Graph({"x": x, "y": out}, {c.name: c for c in constants}, (op,), ("x",), ("y",))


def some(n: int = 5) -> np.ndarray:
    return codes(rng_of(4), (n, *X.shape), np.int8)


def weight_of(*shape: int, scale=(0.25,)) -> g.Constant:
    return g.Constant("w", codes(rng_of(5), shape, np.int8), np.array(scale, np.float32))


def test_sums_and_floats_as_outputs():
    w = weight_of(3, 24, scale=(0.25, 0.1, 0.7))
    linear = g.FullyConnected("x", "w", None, "y")
    (sums,) = run(graph_of(linear, g.Tensor("y", (3,), "int32"), w), some())
    assert same(sums, conv.fully_connected(some(), w.data, None, x_zero_point=-3))
    (floats,) = run(graph_of(linear, g.Tensor("y", (3,), "float32"), w), some())
    assert same(floats, sums.astype(np.float32) * (np.float32(0.5) * w.scale))


def test_each_requantization():
    w, out = weight_of(3, 1, 1, 4), g.Tensor("y", (2, 3, 3), "uint8", 64.0, 100)
    sums = conv.conv2d(some(), w.data, None, x_zero_point=-3)
    m = 0.5 * 0.25 / 64.0
    want = {
        "float32": conv.requantize(sums, np.float32(m), 100, 9, 255, np.uint8),
        "fixed_point": conv.requantize_fixed_point(sums, *conv.fixed_point(np.array([m])), 100, 9, 255, np.uint8),
        "power_of_two": conv.requantize_power_of_two(sums, np.int32([-9]), 100, 9, 255, np.uint8),
    }
    for name, codes_ in want.items():
        op = g.Conv2d("x", "w", None, "y", qmin=9, requantize=name)
        assert same(run(graph_of(op, out, w), some())[0], codes_)


def test_moves():
    x = some()
    table = g.Constant("t", codes(rng_of(6), 256, np.uint8))
    looked_up = graph_of(g.Table("x", "t", "y"), g.Tensor("y", X.shape, "uint8", 1.0, 0), table)
    assert same(run(looked_up, x)[0], table.data[x.astype(int) + 128])
    reshaped = graph_of(g.Reshape("x", "y"), g.Tensor("y", (24,), "int8", 0.5, -3))
    assert same(run(reshaped, x)[0], x.reshape(5, 24))
    padded = graph_of(g.Pad("x", "y", ((0, 1), (2, 0), (1, 1))), g.Tensor("y", (3, 5, 6), "int8", 0.5, -3))
    (got,) = run(padded, x)
    assert same(np.ascontiguousarray(got[:, :2, 2:, 1:5]), x)
    assert np.count_nonzero(got != -3) == np.count_nonzero(x != -3)
    sliced = graph_of(g.Slice("x", "y", (1, 0, 1), (1, 2, 2)), g.Tensor("y", (1, 2, 2), "int8", 0.5, -3))
    assert same(np.ascontiguousarray(run(sliced, x)[0]), np.ascontiguousarray(x[:, 1:, ::2, 1::2]))


def test_several_inputs_and_outputs():
    y, z = g.Tensor("y", X.shape, "int8", 0.5, -3), g.Tensor("z", X.shape, "int8", 1.0, 0)
    net = g.Graph({"x": X, "y": y, "z": z}, {}, (g.Add("x", "y", "z"),), ("x", "y"), ("z", "x"))
    a, b = some(), some()[::-1]
    total, back = run(net, a, b)
    assert same(back, a)
    assert np.abs(total - ((a + 3.0) * 0.5 + (b + 3.0) * 0.5)).max() <= 0.5


def test_an_empty_batch():
    out = g.Tensor("y", (3,), "int8", 8.0, 0)
    assert run(graph_of(g.FullyConnected("x", "w", None, "y"), out, weight_of(3, 24)), some(0))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        ((), ValueError, "inputs: expected 1, got 0"),
        ((some(), some()), ValueError, "inputs: expected 1, got 2"),
        ((some().view(np.uint8),), TypeError, "x: expected dtype int8, got uint8"),
        ((some()[0],), ValueError, r"x: expected shape \(2, 2, 3, 4\), got \(2, 3, 4\)"),
        ((np.int8(3),), ValueError, r"x: expected shape \('N', 2, 3, 4\), got \(\)"),
    ],
)
def test_inputs_that_do_not_fit(inputs, error, words):
    net = graph_of(g.Reshape("x", "y"), g.Tensor("y", (24,), "int8", 0.5, -3))
    with pytest.raises(error, match=words):
        run(net, *inputs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite(value):
    net = graph_of(g.Quantize("x", "y"), g.Tensor("y", (4,), "int8", 0.5), x=g.Tensor("x", (4,), "float32"))
    x = np.zeros((2, 4), np.float32)
    x[1, 2] = value
    with pytest.raises(ValueError, match=f"x: expected finite values, got {value} at flat index 6"):
        run(net, x)


# ------------------------------------------------------------------ stored outputs


def as_int8(pixels: np.ndarray) -> np.ndarray:
    return (pixels ^ 0x80).view(np.int8)


def outputs_of(*parts: str) -> dict[str, np.ndarray]:
    with np.load(stored.find(*parts)) as archive:
        return dict(archive)


def test_stored_resnet8():
    outputs, net = outputs_of(stored.TINY, "resnet8_litert_out.npz"), stored.network(stored.TINY, "resnet8_int8")
    for images, name, n in (
        ("test_first5000_jpeg.npz", "jpeg_first5000_int8", 500),
        ("test_first100_lossless.npz", "lossless100_int8", 100),
    ):
        x = as_int8(outputs_of("cifar10", images)["x"][:n])
        assert same(batched(net, x), outputs[name][:n])


def test_stored_keyword_spotting():
    vectors = outputs_of(stored.TINY, "kws01_first500.npz")
    assert same(batched(stored.network(stored.TINY, "dscnn_kws_int8"), vectors["x"]), vectors["litert_int8_out"])


def test_stored_visual_wake_words():
    golden = outputs_of(stored.TINY, "mobilenetv1_vww_golden.npz")
    net = stored.network(stored.TINY, "mobilenetv1_vww_int8")
    assert same(batched(net, as_int8(golden["x"])), golden["litert_int8_out"])


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "mobilenet_v1_0.5_160_quant"])
def test_stored_mobilenet(name):
    golden = outputs_of(stored.MOBILENET, f"{name}_golden.npz")
    assert same(batched(stored.network(stored.MOBILENET, name), golden["x"], 5), golden["litert_out"])


# ------------------------------------------------------------------ LiteRT itself


def litert(model: bytes, inputs: dict[str, np.ndarray], resolver: str = "AUTO") -> np.ndarray:
    """What LiteRT makes of a batch, one sample at a time; AUTO is with XNNPACK."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    kind = getattr(interpreter.OpResolverType, resolver)
    net = interpreter.Interpreter(model_content=model, num_threads=1, experimental_op_resolver_type=kind)
    net.allocate_tensors()
    at = {about["name"]: about["index"] for about in net.get_input_details()}
    out, outputs = net.get_output_details()[0]["index"], []
    for samples in zip(*inputs.values(), strict=True):
        for name, sample in zip(inputs, samples, strict=True):
            net.set_tensor(at[name], sample[None])
        net.invoke()
        outputs.append(net.get_tensor(out)[0])
    return np.array(outputs)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *((stored.TINY, name) for name in stored.INT8),
        *((stored.MOBILENET, f"mobilenet_v1_{size}_quant") for size in ("0.25_128", "0.5_160")),
    ],
)
def test_networks_beside_litert(folder, name, tmp_path):
    """1,000 random inputs as they are planned, and some by the definition."""
    pytest.importorskip("tflite", reason="tflite is not installed")
    path = tmp_path / f"{name}.tflite"
    path.write_bytes(stored.file(folder, name))
    net = from_tflite(path)
    (entry,) = (net.tensors[name] for name in net.inputs)
    x = codes(rng_of(7), (1000, *entry.shape), np.dtype(entry.dtype))
    expected = litert(path.read_bytes(), {entry.name: x})
    assert same(net.plan()(x), expected)
    n = 50 if folder == stored.TINY else 5
    assert same(batched(net, x[:n], 5), expected[:n])


def codes_of(dtype: str, code: int) -> int:
    """A code counted from the dtype's least."""
    return int(np.iinfo(dtype).min) + code


def conv_case(dtype, kernel, stride, dilation, padding, act, *, channels=4, outs=8, each=0, groups=1):
    """A convolution, depthwise where each channel gives `each` outputs."""
    rng, size = rng_of(8), (9, 8)
    outs, groups = (channels * each, channels) if each else (outs, groups)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    less = [0 if padding == 0 else r - 1 for r in reach]
    shape = [-(-(n - m) // s) for n, m, s in zip(size, less, stride, strict=True)]
    weight = codes(rng, (1, *kernel, outs) if each else (outs, *kernel, channels // groups), dtype)
    one = dtype == "uint8"
    scale = np.float32(0.005) if one else rng.uniform(0.001, 0.01, outs).astype(np.float32)
    bias = rng.integers(-5000, 5000, outs, dtype=np.int32)
    tensors = [
        Tensor((1, *size, channels), dtype, 0.03, codes_of(dtype, 120)),
        Tensor(weight.shape, dtype, scale, 119 if one else (), weight, 3 if each and not one else 0),
        Tensor((outs,), "int32", np.float32(0.03) * scale, (), bias),
        Tensor((1, *shape, outs), dtype, 0.05 * math.sqrt(weight.size / outs), codes_of(dtype, 131)),
    ]
    options = {"Padding": padding, "FusedActivationFunction": act}
    for axis, step, apart in zip("HW", stride, dilation, strict=True):
        options |= {f"Stride{axis}": step, f"Dilation{axis}Factor": apart}
    kind, cls = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if each else ("CONV_2D", "Conv2DOptions")
    options |= {"DepthMultiplier": each} if each else {}
    return tensors, Operator(kind, [0, 1, 2], [3], cls, options)


def pool_case(dtype, kind, padding, act):
    shape = (5, 4) if padding == 0 else (4, 4)
    ends = [Tensor((1, *size, 3), dtype, 0.05, codes_of(dtype, 100)) for size in ((9, 8), shape)]
    options = {"Padding": padding, "FusedActivationFunction": act, "StrideH": 2, "StrideW": 2}
    return ends, Operator(kind, [0], [1], "Pool2DOptions", options | {"FilterHeight": 3, "FilterWidth": 2})


def simple_case(dtype, kind):
    low, high = codes_of(dtype, 100), codes_of(dtype, 140)
    x = Tensor((1, 3, 4, 5), dtype, 0.11, low)
    if kind == "FULLY_CONNECTED":
        weight = codes(rng_of(9), (6, 60), dtype)
        w = Tensor((6, 60), dtype, 0.07, 0 if dtype == "int8" else 77, weight)
        options = {"FusedActivationFunction": 1}
        return [x, w, Tensor((1, 6), dtype, 3.0, high)], Operator(
            kind, [0, 1, -1], [2], "FullyConnectedOptions", options
        )
    if kind == "SOFTMAX":
        return [x, Tensor(x.shape, dtype, 1 / 256, codes_of(dtype, 0))], Operator(
            kind, [0], [1], "SoftmaxOptions", {"Beta": 1.0}
        )
    if kind == "PAD":
        pads = Tensor((4, 2), "int32", data=np.array([[0, 0], [1, 2], [0, 3], [1, 0]], np.int32))
        return [x, pads, Tensor((1, 6, 7, 6), dtype, 0.11, low)], Operator(kind, [0, 1], [2], "PadOptions")
    if kind == "RESHAPE":
        shape = Tensor((2,), "int32", data=np.array([1, 60], np.int32))
        return [x, shape, Tensor((1, 60), dtype, 0.11, low)], Operator(kind, [0, 1], [2], "ReshapeOptions")
    floats = Tensor(x.shape, "float32")
    if kind == "DEQUANTIZE":
        return [x, floats], Operator(kind, [0], [1], "DequantizeOptions")
    other = {"int8": "uint8", "uint8": "int8"}[dtype]
    source = floats if kind == "QUANTIZE" else Tensor(x.shape, other, 0.11, codes_of(other, 100))
    return [source, x], Operator("QUANTIZE", [0], [1], "QuantizeOptions")


def add_case(dtype, act):
    ends = zip((0.013, 0.07, 0.041), (100, 20, 140), strict=True)
    tensors = [Tensor((1, 5, 7), dtype, scale, codes_of(dtype, zero)) for scale, zero in ends]
    return tensors, Operator("ADD", [0, 1], [2], "AddOptions", {"FusedActivationFunction": act})


def multiply_case(dtype, act, a=(1, 5, 7), b=(1, 5, 7)):
    ends = zip((a, b, max(a, b, key=math.prod)), (0.013, 0.07, 0.041), (100, 20, 140), strict=True)
    tensors = [Tensor(shape, dtype, scale, codes_of(dtype, zero)) for shape, scale, zero in ends]
    return tensors, Operator("MUL", [0, 1], [2], "MulOptions", {"FusedActivationFunction": act})


def concatenate_case(dtype, axis, n, scales=0.05, zeros=100):
    scales, zeros = (np.broadcast_to(values, n + 1) for values in (scales, zeros))
    shapes = [[1, 3, 4, 2] for _ in range(n + 1)]
    for i in range(n):
        shapes[i][axis] = i + 1
    shapes[n][axis] = n * (n + 1) // 2
    tensors = [
        Tensor(tuple(shape), dtype, scale, codes_of(dtype, int(zero)))
        for shape, scale, zero in zip(shapes, scales, zeros, strict=True)
    ]
    return tensors, Operator("CONCATENATION", [*range(n)], [n], "ConcatenationOptions", {"Axis": axis})


def joined(dtype):
    """Name and case of products and concatenations; XNNPACK takes up to five parts, and none to rescale."""
    for act in range(4):
        yield f"MUL-{act}", multiply_case(dtype, act)
    for name, shapes in {
        "channels": ((1, 3, 4, 5), (1, 1, 1, 5)),
        "channels first": ((1, 1, 1, 5), (1, 3, 4, 5)),
        "vector": ((1, 3, 4, 5), (1, 5)),
        "one channel": ((1, 3, 4, 1), (1, 1, 1, 1)),
    }.items():
        yield f"MUL-{name}", multiply_case(dtype, 0, *shapes)
    for axis, n in ((3, 2), (-1, 5), (1, 3), (-2, 8), (2, 1)):
        yield f"CONCATENATION-{axis}-{n}", concatenate_case(dtype, axis, n)
    if dtype == "uint8":
        scales, zeros = (0.05, 0.031, 0.05, 0.2, 0.05), (100, 100, 3, 255, 100)
        yield "CONCATENATION-rescaled", concatenate_case(dtype, 3, 4, scales, zeros)
        yield "CONCATENATION-halves", concatenate_case(dtype, 3, 1, (0.05, 0.1), (7, 100))


def convolutions(dtype):
    """Name and case of each convolution; padding 0 is SAME, activations are NONE, RELU, RELU_N1_TO_1, RELU6."""
    one = (1, 1)
    yield "conv", conv_case(dtype, (3, 3), one, one, 0, 1, channels=3, outs=5)
    yield "oblong", conv_case(dtype, (3, 2), (2, 1), one, 0, 3)
    yield "dilated", conv_case(dtype, (3, 3), one, (2, 2), 1, 0)
    yield "dilated_same", conv_case(dtype, (3, 3), one, (2, 1), 0, 2)
    yield "point", conv_case(dtype, one, (2, 2), one, 0, 0)
    yield "groups", conv_case(dtype, (3, 3), one, one, 0, 0, groups=2)
    yield "depthwise", conv_case(dtype, (3, 3), (2, 2), one, 0, 3, each=1)
    yield "multiplier", conv_case(dtype, (3, 3), one, one, 1, 0, each=2)
    yield "one_channel", conv_case(dtype, (5, 1), one, one, 0, 1, channels=1, each=8)
    yield "depthwise_dilated", conv_case(dtype, (3, 3), one, (2, 2), 0, 0, each=1)


def cases():
    for dtype in ("int8", "uint8"):
        for name, case in convolutions(dtype):
            yield pytest.param(*case, id=f"{name}-{dtype}")
        for kind, padding, act in itertools.product(("AVERAGE_POOL_2D", "MAX_POOL_2D"), (0, 1), (0, 3)):
            yield pytest.param(*pool_case(dtype, kind, padding, act), id=f"{kind}-{padding}-{act}-{dtype}")
        for act in range(4):
            yield pytest.param(*add_case(dtype, act), id=f"ADD-{act}-{dtype}")
        for name, case in joined(dtype):
            yield pytest.param(*case, id=f"{name}-{dtype}")
        for kind in ("FULLY_CONNECTED", "SOFTMAX", "PAD", "RESHAPE", "QUANTIZE", "DEQUANTIZE", "other"):
            yield pytest.param(*simple_case(dtype, kind), id=f"{kind}-{dtype}")


def one_operator(tensors, op, tmp_path) -> tuple[bytes, g.Graph, dict[str, np.ndarray]]:
    """A file of one operator, its graph, and inputs."""
    pytest.importorskip("tflite", reason="tflite is not installed")
    read = [i for i in op.inputs if i >= 0 and tensors[i].data is None]
    data = made(tensors, [op], read, op.outputs)
    (tmp_path / "one.tflite").write_bytes(data)
    rng, inputs = rng_of(10), {}
    for i in read:
        shape, dtype = (200, *tensors[i].shape[1:]), tensors[i].dtype
        floats = dtype == "float32"
        inputs[f"t{i}"] = rng.normal(0, 9, shape).astype(dtype) if floats else codes(rng, shape, dtype)
    return data, from_tflite(tmp_path / "one.tflite"), inputs


@pytest.mark.parametrize(("tensors", "op"), list(cases()))
def test_operators_beside_litert(tensors, op, tmp_path):
    data, net, inputs = one_operator(tensors, op, tmp_path)
    assert same(run(net, *inputs.values())[0], litert(data, inputs))


def half_case(kind, dtype, act, scale, zero):
    """An operator whose fused activation ends half way between two codes."""
    tensors = [Tensor((1, 4, 4, 2), dtype, 0.1, codes_of(dtype, 128))]
    tensors.append(replace(tensors[0], scale=scale, zero_point=codes_of(dtype, zero)))
    step = {"FusedActivationFunction": act, "StrideH": 1, "StrideW": 1, "Padding": 0}
    if kind in ("ADD", "MUL"):
        tensors.insert(1, tensors[0])
        return tensors, Operator(kind, [0, 1], [2], f"{kind.title()}Options", {"FusedActivationFunction": act})
    if kind == "CONV_2D":
        weight = np.full((2, 1, 1, 2), 100).astype(dtype)
        tensors.append(Tensor(weight.shape, dtype, 0.1, 0, weight))
        tensors.append(Tensor((2,), "int32", 0.01, 0, np.zeros(2, np.int32)))
        step |= {"DilationHFactor": 1, "DilationWFactor": 1}
        return tensors, Operator(kind, [0, 2, 3], [1], "Conv2DOptions", step)
    return [tensors[1]] * 2, Operator(kind, [0], [1], "Pool2DOptions", step | {"FilterHeight": 1, "FilterWidth": 1})


@pytest.mark.parametrize("kind", ["ADD", "MUL", "CONV_2D", "AVERAGE_POOL_2D", "MAX_POOL_2D"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_activations_that_end_between_two_codes_beside_litert(dtype, kind, tmp_path):
    for (act, scale), zero in itertools.product(
        ((2, 0.08), (2, 0.4), (2, 2 / 9), (3, 0.48), (3, 12 / 27)), (57, 58, 100)
    ):
        data, net, inputs = one_operator(*half_case(kind, dtype, act, scale, zero), tmp_path)
        assert same(run(net, *inputs.values())[0], litert(data, inputs))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_all_products_of_codes_beside_litert(dtype, tmp_path):
    pytest.importorskip("tflite", reason="tflite is not installed")
    limits, rng = np.iinfo(dtype), rng_of(12)
    every = np.arange(limits.min, limits.max + 1).astype(dtype)
    a, b = (np.broadcast_to(x, (1, 256, 256)) for x in (every[:, None], every))
    for at in range(30):
        # How much larger than a product its code is; XNNPACK takes 2^-16 to 2^8.
        factor = (2.0**-16, 255.99, 0.5)[at] if at < 3 else 2.0 ** rng.uniform(-12, 4)
        scales = rng.uniform(0.001, 1, 2)
        ends = zip((*scales, np.float32(scales[0]) * np.float32(scales[1]) / factor), codes(rng, 3, dtype), strict=True)
        tensors = [Tensor((1, 256, 256), dtype, scale, int(zero)) for scale, zero in ends]
        options = {"FusedActivationFunction": at % 4}
        data = made(tensors, [Operator("MUL", [0, 1], [2], "MulOptions", options)], [0, 1], [2])
        (tmp_path / "one.tflite").write_bytes(data)
        net, want = from_tflite(tmp_path / "one.tflite"), litert(data, {"t0": a, "t1": b})
        assert same(run(net, a, b)[0], want)
        assert same(net.plan()(a, b), want)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_network_of_products_and_concatenations_beside_litert(dtype, tmp_path):
    pytest.importorskip("tflite", reason="tflite is not installed")
    none, zero = {"FusedActivationFunction": 0}, codes_of(dtype, 128)
    window = none | {"Padding": 1, "StrideH": 8, "StrideW": 8, "FilterHeight": 8, "FilterWidth": 8}
    point = none | {"StrideH": 1, "StrideW": 1, "DilationHFactor": 1, "DilationWFactor": 1}

    def maps(channels: int, scale: float, size: int = 8) -> Tensor:
        return Tensor((1, size, size, channels), dtype, scale, zero)

    def weight(outs: int, channels: int) -> Tensor:
        shape, own = (outs, 3, 3, channels), 128 if dtype == "uint8" else 0
        return Tensor(shape, dtype, 0.005, own, codes(rng_of(outs, channels), shape, dtype))

    tensors = [
        maps(4, 0.03),
        weight(6, 4),
        maps(6, 0.05),
        maps(6, 0.02),
        maps(6, 0.05, 1),
        maps(6, 0.05),
        maps(6, 0.05),
    ]
    tensors += [maps(18, 0.05), weight(5, 18), maps(5, 0.2)]
    # XNNPACK leaves a convolution whose bias has no scale to another kernel.
    biases = ((6, 0.03 * 0.005), (5, 0.05 * 0.005))
    tensors += [Tensor((n,), "int32", scale, (), np.arange(n, dtype=np.int32)) for n, scale in biases]
    operators = [
        Operator("CONV_2D", [0, 1, 10], [2], "Conv2DOptions", point),
        Operator("MUL", [2, 2], [3], "MulOptions", none),
        Operator("AVERAGE_POOL_2D", [2], [4], "Pool2DOptions", window),
        Operator("MUL", [4, 3], [5], "MulOptions", {"FusedActivationFunction": 1}),
        Operator("MUL", [5, 3], [6], "MulOptions", none),
        Operator("CONCATENATION", [2, 5, 6], [7], "ConcatenationOptions", {"Axis": 3}),
        Operator("CONV_2D", [7, 8, 11], [9], "Conv2DOptions", point),
    ]
    data = made(tensors, operators, [0], [9])
    (tmp_path / "net.tflite").write_bytes(data)
    net, x = from_tflite(tmp_path / "net.tflite"), codes(rng_of(14), (200, 8, 8, 4), dtype)
    want = litert(data, {"t0": x})
    assert len(np.unique(want)) > 100
    assert same(run(net, x)[0], want)
    assert same(net.plan()(x), want)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_all_squares_of_codes_beside_litert(dtype, tmp_path):
    pytest.importorskip("tflite", reason="tflite is not installed")
    limits, rng = np.iinfo(dtype), rng_of(15)
    every = np.arange(limits.min, limits.max + 1).astype(dtype)[None]
    for at in range(100):
        # Scales by which products lie half way between codes, or as near as float32 comes.
        scale = round(rng.uniform(0.01, 1), 2)
        ends = zip((scale, scale * scale / rng.choice([0.125, 0.5, 0.2, 2.5])), codes(rng, 2, dtype), strict=True)
        tensors = [Tensor((1, 256), dtype, scale, int(zero)) for scale, zero in ends]
        data = made(
            tensors, [Operator("MUL", [0, 0], [1], "MulOptions", {"FusedActivationFunction": at % 4})], [0], [1]
        )
        (tmp_path / "one.tflite").write_bytes(data)
        net, want = from_tflite(tmp_path / "one.tflite"), litert(data, {"t0": every})
        assert same(run(net, every)[0], want)
        assert same(net.plan()(every), want)


def test_tables_of_parts_with_other_scales_beside_litert(tmp_path):
    pytest.importorskip("tflite", reason="tflite is not installed")
    every, rng = np.arange(256, dtype=np.uint8)[None], rng_of(13)
    for _ in range(200):
        scale = rng.uniform(0.001, 1)
        scales = (scale, scale * 2.0 ** rng.uniform(-4, 4), scale * 2.0 ** rng.integers(-3, 4), scale)
        ends = zip(scales, rng.integers(0, 256, 4), (256, 256, 256, 768), strict=True)
        tensors = [Tensor((1, n), "uint8", scale, int(zero)) for scale, zero, n in ends]
        concatenation = Operator("CONCATENATION", [0, 1, 2], [3], "ConcatenationOptions", {"Axis": 1})
        data = made(tensors, [concatenation], [0, 1, 2], [3])
        (tmp_path / "one.tflite").write_bytes(data)
        net, want = from_tflite(tmp_path / "one.tflite"), litert(data, {"t0": every, "t1": every, "t2": every})
        assert same(run(net, every, every, every)[0], want)
        assert same(net.plan()(every, every, every), want)


@pytest.mark.parametrize(("tensors", "op"), [pytest.param(*case, id=name) for name, case in convolutions("int8")])
def test_fixed_point_beside_litert_without_xnnpack(tensors, op, tmp_path):
    data, net, inputs = one_operator(tensors, op, tmp_path)
    net = replace(net, operations=(replace(net.operations[0], requantize="fixed_point"),))
    assert same(run(net, *inputs.values())[0], litert(data, inputs, "BUILTIN_REF"))
