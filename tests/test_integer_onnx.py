"""`to_onnx`: what onnxruntime makes of the files is what the interpreter makes of the graphs, but for rounding."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import stored
from lowbit.integer import (
    Add,
    AveragePool2d,
    Concatenate,
    Constant,
    Conv2d,
    Dequantize,
    FullyConnected,
    Graph,
    MaxPool2d,
    Multiply,
    Operation,
    Pad,
    Quantize,
    Reshape,
    Slice,
    Softmax,
    Table,
    Tensor,
    from_tflite,
    to_onnx,
)
from lowbit.reference.integer import run
from test_integer import Random

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

#: Operations that no rounding of float32 touches; means with a scale of their own are not among them.
EXACT = (Concatenate, Dequantize, MaxPool2d, Pad, Reshape, Slice, Table)


@pytest.fixture(params=["as written", "optimized"])
def outputs_of(request, tmp_path):
    """``outputs_of(graph, x, ...)``: onnxruntime's outputs of the checked file, its patterns fused or not."""

    def outputs(graph: Graph, *inputs: np.ndarray, **how) -> list[np.ndarray]:
        to_onnx(graph, path := tmp_path / "network.onnx", **how)
        onnx.checker.check_model(str(path), full_check=True)
        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        optimized = request.param == "optimized"
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
        # Its products of uint8 with int8 saturate on CPUs without VNNI: it is told to take uint8 alone.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return session.run(None, dict(zip(graph.inputs, inputs, strict=True)))

    return outputs


def largest_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """In codes; of float32, where 1e-5 of the largest is one."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    differences = np.abs(got.astype(np.float64) - expected).max(initial=0)
    if got.dtype == np.float32:
        return differences / max(1e-5 * np.abs(expected).max(initial=0), 1e-30)
    return differences


def check(outputs_of, graph: Graph, *inputs: np.ndarray, most: int = 1, **how) -> None:
    for got, expected in zip(outputs_of(graph, *inputs, **how), run(graph, *inputs), strict=True):
        assert largest_difference(got, expected) <= most


def codes(shape, dtype="int8", seed=0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def graph_of(operation: Operation, *tensors: Tensor, constants: tuple[Constant, ...] = ()) -> Graph:
    """One operation from the first tensors to the last."""
    names = [t.name for t in tensors]
    by_name = {t.name: t for t in tensors}
    return Graph(by_name, {c.name: c for c in constants}, (operation,), tuple(names[:-1]), (names[-1],))


# ------------------------------------------------------------------ random networks


def check_steps(outputs_of, network: Random, n: int = 3, **how) -> None:
    """Every operation, from the inputs that onnxruntime's operations before it made."""
    x, steps = network.samples(n), network.graph.operations
    whole = replace(network.graph, outputs=tuple(op.output for op in steps))
    values = dict(zip(whole.outputs, outputs_of(whole, x, **how), strict=True)) | {network.input.name: x}
    for op in steps:
        reads = tuple(dict.fromkeys(op.inputs))
        alone = replace(whole, operations=(op,), inputs=reads, outputs=(op.output,))
        (expected,) = run(alone, *(values[name] for name in reads))
        difference = largest_difference(values[op.output], expected)
        assert difference <= (0 if isinstance(op, EXACT) else 1), op


@pytest.mark.parametrize("seeds", range(0, 200, 25))
def test_each_step_of_random_networks(seeds, outputs_of):
    for seed in range(seeds, seeds + 25):
        check_steps(outputs_of, Random(seed))


def test_random_networks_whole(outputs_of):
    """Steps after one that rounds otherwise can make anything of it, random tables above all: few codes differ."""
    equal, shapes = [], set()
    for seed in range(60):
        network = Random(seed)
        x = network.samples(3)
        for got, expected in zip(outputs_of(network.graph, x), run(network.graph, x), strict=True):
            shapes.add(got.shape == expected.shape and got.dtype == expected.dtype)
            equal.append(np.isclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()).mean())
    assert shapes == {True}
    assert np.mean(equal) > 0.95


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_opsets(opset, outputs_of):
    for seed in range(5):
        check_steps(outputs_of, Random(seed), opset=opset)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_any_number_of_samples(n, outputs_of):
    for seed in range(5):
        check_steps(outputs_of, Random(seed), n)


# ------------------------------------------------------------------ what random networks lack


def product(x_dtype: str, weight_dtype: str, out: Tensor, kind: type, *, bias: bool, extreme: bool = False) -> Graph:
    """A grouped and dilated convolution, or a layer that reads an image."""
    x = Tensor("x", (7, 6, 4), x_dtype, 0.5, 3)
    shape = (6, 3, 2, 2) if kind is Conv2d else (6, 7 * 6 * 4)
    limits = np.iinfo(weight_dtype)
    data = np.where(codes(shape, "int8") > 0, limits.max, limits.min).astype(weight_dtype)
    scale = np.arange(1, 7, dtype=np.float32) / 2048
    constants = [Constant("w", data if extreme else codes(shape, weight_dtype), scale, 5)]
    if bias:
        constants.append(Constant("b", np.arange(-3, 3, dtype=np.int32) * 1000))
    how = {"padding": ((2, 1), (0, 3)), "dilation": (2, 1), "groups": 2, "stride": (1, 2)} if kind is Conv2d else {}
    return graph_of(kind("x", "w", "b" if bias else None, "y", **how), x, out, constants=tuple(constants))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weight_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
@pytest.mark.parametrize("kind", [Conv2d, FullyConnected])
def test_products(kind, x_dtype, weight_dtype, bias, outputs_of):
    shape = (6, 4, 6) if kind is Conv2d else (6,)
    x = codes((3, 7, 6, 4), x_dtype)
    sums = product(x_dtype, weight_dtype, Tensor("y", shape, "int32"), kind, bias=bias, extreme=True)
    limits = np.iinfo(x_dtype)
    for given in (x, np.where(x > 0, limits.max, limits.min).astype(x_dtype)):
        check(outputs_of, sums, given, most=0)
    for dtype, scale in (("float32", None), ("int8", 0.7), ("uint8", 0.7)):
        check(outputs_of, product(x_dtype, weight_dtype, Tensor("y", shape, dtype, scale), kind, bias=bias), x)


@pytest.mark.parametrize("requantize", ["float32", "fixed_point", "power_of_two"])
def test_halves_differ_by_one_code_at_most(requantize, outputs_of):
    x, y = Tensor("x", (512,), "int8", 0.5), Tensor("y", (512,), "int8", 1.0)
    weight = Constant("w", np.eye(512, dtype=np.int8), np.array([0.5], np.float32))
    bias = Constant("b", np.arange(-256, 256, dtype=np.int32))
    layer = FullyConnected("x", "w", "b", "y", requantize=requantize)
    check(outputs_of, graph_of(layer, x, y, constants=(weight, bias)), np.zeros((1, 512), np.int8))


@pytest.mark.parametrize(
    ("a", "b"), [((3, 4, 5), (5,)), ((3, 4, 5), (1, 1, 5)), ((4, 5), (5,)), ((4, 5), (1, 1, 5)), ((5,), (5,)), ((), ())]
)
def test_additions_and_multiplications(a, b, outputs_of):
    tensors = Tensor("a", a, "uint8", 0.5, 7), Tensor("b", b, "int8", 0.25, -5), Tensor("y", a, "int8", 8.0, 9)
    values = codes((4, *a), "uint8"), codes((4, *b), seed=1)
    check(outputs_of, graph_of(Multiply("a", "b", "y", qmin=-20, qmax=20), *tensors), *values)
    both = Tensor("a", a, "int8", 0.5), Tensor("b", a, "int8", 0.5, 1), Tensor("y", a, "int8", 1.0)
    check(outputs_of, graph_of(Add("a", "b", "y", qmin=-20), *both), *(codes((4, *a), seed=s) for s in (0, 1)))


@pytest.mark.parametrize("shape", [(40,), (3, 9), (3, 4, 7), (2, 2, 3, 5)])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_softmax_of_any_shape(shape, dtype, outputs_of):
    y = Tensor("y", shape, dtype, 1 / 256, np.iinfo(dtype).min)
    check(outputs_of, graph_of(Softmax("x", "y"), Tensor("x", shape, dtype, 0.1), y), codes((3, *shape), dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("kernel", [(1, 2), (3, 3), (8, 8), (32, 64)])
def test_means_of_codes_are_exact(kernel, dtype, outputs_of):
    pads = tuple((k // 2, k // 3) for k in kernel)
    size = (40, 70, 3)
    out = (*((n + sum(p) - k) // 2 + 1 for n, p, k in zip(size, pads, kernel, strict=False)), 3)
    x, y = (Tensor(name, shape, dtype, 0.1, 17) for name, shape in (("x", size), ("y", out)))
    means = AveragePool2d("x", "y", kernel, (2, 2), pads)
    check(outputs_of, graph_of(means, x, y), codes((2, *size), dtype), most=0)


@pytest.mark.parametrize(
    ("shape", "to"),
    [((3, 4, 5), (60,)), ((60,), (3, 4, 5)), ((3, 4, 5), (5, 4, 3)), ((1, 1, 6), (6, 1, 1)), ((), (1,))],
)
@pytest.mark.parametrize("dtype", ["int8", "int32", "float32"])
def test_what_moves_elements(shape, to, dtype, outputs_of):
    """Reshape, Pad, Slice and Concatenate one after the other."""
    how = {"scale": 0.5, "zero_point": -3} if dtype == "int8" else {}
    tensors = {name: Tensor(name, size, dtype, **how) for name, size in (("x", shape), ("r", to))}
    padded = tuple(n + 3 for n in to)
    tensors |= {"p": Tensor("p", padded, dtype, **how), "s": Tensor("s", to, dtype, **how)}
    axis = len(to) - 1
    tensors["y"] = Tensor("y", (*to[:-1], to[-1] * 2), dtype, **how)
    steps = (
        Reshape("x", "r"),
        Pad("r", "p", ((1, 2),) * len(to)),
        Slice("p", "s", (1,) * len(to), (1,) * len(to)),
        Concatenate(("s", "r"), "y", axis),
    )
    graph = Graph(tensors, {}, steps, ("x",), ("x", "r", "p", "y"))
    check(outputs_of, graph, codes((2, *shape)).astype(dtype), most=0)


def test_numbers_at_both_ends(outputs_of):
    x, y, z = (
        Tensor("x", (2, 3, 4), "float32"),
        Tensor("y", (2, 3, 4), "uint8", 0.03, 100),
        Tensor("z", (2, 3, 4), "float32"),
    )
    graph = Graph({"x": x, "y": y, "z": z}, {}, (Quantize("x", "y"), Dequantize("y", "z")), ("x",), ("y", "z"))
    values = np.random.default_rng(0).normal(0, 3, (5, 2, 3, 4)).astype(np.float32)
    got = outputs_of(graph, values)
    assert largest_difference(got[0], run(graph, values)[0]) <= 1
    np.testing.assert_array_equal(got[1], (got[0].astype(np.float32) - 100) * np.float32(0.03))


# ------------------------------------------------------------------ trained networks


@dataclass(frozen=True)
class Trained:
    """What a network's outputs may differ by: codes, and the share of those that are equal.

    A sum of float32 next to a half rounds the other way once in some 10^5; the
    layers after it spread that. ResNet8's softmax makes as much as 256 * 0.172 / 4
    = 11 codes of one code of a logit, and moves between two of them.
    """

    name: str
    images: tuple[str, ...]
    largest: int
    equal: float


TRAINED = (
    Trained("resnet8_int8", ("cifar10", "test_first5000_jpeg.npz"), 22, 0.98),
    Trained("mobilenetv1_vww_int8", (stored.TINY, "mobilenetv1_vww_golden.npz"), 1, 0.9),
)


@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_trained_networks(case, outputs_of):
    pytest.importorskip("tflite", reason="the extra tflite is not installed")
    graph = from_tflite(stored.find(stored.TINY, f"{case.name}.tflite"))
    with np.load(stored.find(*case.images)) as archive:
        x = (archive["x"][:500] ^ 0x80).view(np.int8)
    (got,), expected = outputs_of(graph, x), graph.plan()(x)
    differences = np.abs(got.astype(int) - expected)
    assert differences.max() <= case.largest
    assert (differences == 0).mean() >= case.equal
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.99


# ------------------------------------------------------------------ the file

X, Y = Tensor("x", (4, 3, 2), "int8", 0.5), Tensor("y", (4, 3, 2), "int8", 0.5)
POOL = MaxPool2d("x", "y", (1, 1), (1, 1))


def small(**changed) -> Graph:
    return replace(graph_of(POOL, X, Y), **changed)


def test_the_boundary_is_the_graphs(tmp_path):
    graph = small(notes={"source": "a test"})
    to_onnx(graph, tmp_path / "n.onnx")
    model = onnx.load(tmp_path / "n.onnx")
    for value, tensor in zip((*model.graph.input, *model.graph.output), (X, Y), strict=True):
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert (value.name, dims) == (tensor.name, ["N", *tensor.shape])
        assert value.type.tensor_type.elem_type == onnx.TensorProto.INT8
    assert [node.op_type for node in model.graph.node] == ["Transpose", "MaxPool", "Transpose"]
    assert [(p.key, p.value) for p in model.metadata_props] == [("source", "a test")]
    assert model.opset_import[0].version == 13


def test_weights_and_biases_stay_integers(tmp_path):
    graph = product("int8", "int8", Tensor("y", (6,), "int8", 0.7), FullyConnected, bias=True)
    to_onnx(graph, tmp_path / "n.onnx")
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "n.onnx").graph.initializer}
    assert held["w"].dtype == np.int8
    assert held["w"].nbytes == graph.constants["w"].data.nbytes
    np.testing.assert_array_equal(held["b"], graph.constants["b"].data)
    np.testing.assert_array_equal(held["b/scale"], np.float32(0.5) * graph.constants["w"].scale)


def test_names_that_meet(outputs_of):
    """A file has one space of names, a graph two."""
    name = "t/nchw"
    tensors = {n: Tensor(n, (3, 3, 2), "int8", 0.5) for n in ("t", name, "t/nchw#1", "out")}
    table = Constant("t", codes(256))
    steps = Table("t", "t", name), MaxPool2d(name, "t/nchw#1", (1, 1), (1, 1)), Add("t/nchw#1", "t", "out")
    check(outputs_of, Graph(tensors, {"t": table}, steps, ("t",), ("out", name)), codes((2, 3, 3, 2)), most=0)


def test_a_file_is_replaced_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "n.onnx"
    path.write_bytes(b"before")
    to_onnx(small(), path)
    whole = path.read_bytes()
    assert whole != b"before"
    with pytest.raises(OSError, match="no_such"):
        to_onnx(small(), tmp_path / "no_such" / "n.onnx")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        to_onnx(small(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["n.onnx"]
    assert path.read_bytes() == whole


# ------------------------------------------------------------------ what is refused


class Strange:
    kind = "strange"


def test_all_that_onnx_cannot_express_is_listed(tmp_path):
    tensors = {"x": X, "y": Y, "": replace(X, name=""), "old": replace(Y, name="old")}
    graph = Graph(tensors, {}, (POOL,), ("x",), ("y", "y"), states=(("old", "y"),))
    # What the check of a graph would not let through.
    object.__setattr__(graph, "operations", (*graph.operations, Strange()))
    with pytest.raises(ValueError, match="graph: ONNX cannot express") as error:
        to_onnx(graph, tmp_path / "n.onnx")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "tensors: expected names, got ''",
        "outputs: expected names that differ, got 'y' 2 times",
        "states: expected none, got 'old'; make each an input, and what it becomes an output",
        "operation 1 (strange): expected an operation of graph.py, got Strange",
    ]
    assert not list(tmp_path.iterdir())


def test_constants_beyond_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.integer.onnx.TOO_LARGE", 100)
    graph = product("int8", "int8", Tensor("y", (6,), "int8", 0.7), FullyConnected, bias=False)
    with pytest.raises(ValueError, match=r"constants: expected less than 100 bytes, .* got 1,008"):
        to_onnx(graph, tmp_path / "n.onnx")


@pytest.mark.parametrize(
    ("opset", "error", "words"),
    [
        (12, ValueError, r"opset: expected 13 to \d+, got 12"),
        (10**6, ValueError, "opset: expected 13 to"),
        (13.0, TypeError, "opset: expected an int, got 13.0"),
    ],
)
def test_opsets_that_are_none(opset, error, words, tmp_path):
    with pytest.raises(error, match=words):
        to_onnx(small(), tmp_path / "n.onnx", opset=opset)


def test_something_else_than_a_graph(tmp_path):
    with pytest.raises(TypeError, match="graph: expected a Graph, got str"):
        to_onnx("graph", tmp_path / "n.onnx")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"lowbit\[onnx\]"):
        to_onnx(small(), tmp_path / "n.onnx")
