"""`from_tflite`: what it takes is what is stored, what it cannot take is named, and no file harms it.

That results are LiteRT's, test_integer_reference.py shows. "Row" numbers are
those of the project's table of bad inputs.
"""

from __future__ import annotations

import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import stored
from lowbit.integer.tflite import from_tflite
from tflite_file import Operator, Tensor, made

pytest.importorskip("tflite", reason="tflite is not installed")


@pytest.mark.parametrize("name", stored.INT8)
def test_reads_what_is_stored(name):
    got, want = from_tflite(stored.find(stored.TINY, f"{name}.tflite")), stored.network(stored.TINY, name)
    assert got.operations == want.operations
    assert got.tensors == want.tensors
    assert (got.inputs, got.outputs) == (want.inputs, want.outputs)
    assert set(got.constants) == set(want.constants)
    for key, a in got.constants.items():
        b = want.constants[key]
        assert (a.zero_point, a.nbits, a.data.dtype) == (b.zero_point, b.nbits, b.data.dtype)
        np.testing.assert_array_equal(a.data, b.data)
        assert (a.scale is None) == (b.scale is None)
        assert a.scale is None or np.array_equal(a.scale, b.scale)


# ------------------------------------------------------------------ what is refused

ACT = {"FusedActivationFunction": 0}


def x(**changed) -> Tensor:
    return Tensor(**{"shape": (1, 6), "scale": 0.5, "zero_point": 3} | changed)


def weight(**changed) -> Tensor:
    return Tensor(**{"shape": (4, 6), "scale": 0.25, "data": np.ones((4, 6), np.int8)} | changed)


def linear(inputs=(0, 1, 2), outputs=(3,), **options) -> Operator:
    return Operator("FULLY_CONNECTED", list(inputs), list(outputs), "FullyConnectedOptions", ACT | options)


def product(inputs=(0, 0)) -> Operator:
    return Operator("MUL", list(inputs), [3], "MulOptions", ACT)


def joined(inputs=(0, 0), **options) -> Operator:
    return Operator("CONCATENATION", list(inputs), [3], "ConcatenationOptions", options)


def bias(**changed) -> Tensor:
    return Tensor(**{"shape": (4,), "dtype": "int32", "scale": 0.125, "data": np.zeros(4, np.int32)} | changed)


def tensors(**changed) -> list[Tensor]:
    made = {"x": x(), "weight": weight(), "bias": bias(), "y": x(shape=(1, 4))} | changed
    return list(made.values())


def file_of(ops=None, inputs=(0,), outputs=(3,), about=None, **changed) -> bytes:
    return made(tensors(**changed), [linear()] if ops is None else ops, inputs, outputs, **(about or {}))


def read(data: bytes, tmp_path):
    (tmp_path / "net.tflite").write_bytes(data)
    return from_tflite(tmp_path / "net.tflite")


def test_the_file_that_the_others_are_made_of(tmp_path):
    assert read(file_of(), tmp_path).inputs == ("t0",)


REFUSED = {
    "float": (
        {"x": Tensor((1, 6), "float32"), "y": Tensor((1, 4), "float32")},
        r"1 of 1 operators \(1 FULLY_CONNECTED; the first is 0\): .*got floats; convert the network with full integer",
    ),
    "half": (
        {"ops": [Operator("DEQUANTIZE", [0], [3])], "x": Tensor((1, 6), "float16"), "y": Tensor((1, 6), "float32")},
        r"1 of 1 operators \(1 DEQUANTIZE; the first is 0\): .*got floats; convert",
    ),
    "int32": ({"x": x(dtype="int32")}, "expected 't0' of int8 or uint8, got int32"),
    "batch": ({"x": x(shape=(2, 6))}, r"'t0' with a batch of 1 on axis 0, got shape \(2, 6\)"),
    "scalar": ({"x": x(shape=())}, r"batch of 1 on axis 0, got shape \(\)"),
    "state": ({"x": x(variable=True)}, "'t0' keeps a state between calls"),
    "two dtypes": ({"y": x(shape=(1, 4), dtype="uint8")}, "one dtype for input and output, got int8 and uint8"),
    "no scale": ({"x": x(scale=(), zero_point=())}, "'t0' with one scale, got 0; convert"),
    "scale of 0": ({"x": x(scale=0.0)}, "finite, positive scales of 't0', got 0.0"),
    "NaN scale": ({"weight": weight(scale=np.nan)}, "finite, positive scales of 't1', got nan"),
    "zero point": ({"x": x(zero_point=200)}, "zero point of -128 to 127 for 't0', got 200"),
    "zero points": (
        {"weight": weight(scale=[1, 1, 1, 1], zero_point=[0, 1, 0, 0])},
        "expected one zero point of -128 to 127 for 't1'",
    ),
    "scales": ({"weight": weight(scale=[1, 1])}, "one scale or one per output of 't1', got 2 on axis 0"),
    "axis": ({"weight": weight(scale=[1] * 4, axis=1)}, "one per output of 't1', got 4 on axis 1"),
    "weight dtype": ({"weight": weight(dtype="uint8")}, "weight 't1' of int8, as the input is, got uint8"),
    "weight shape": ({"weight": weight(shape=(4, 3, 2))}, r"of 2 axes, got shape \(4, 3, 2\)"),
    "computed weight": ({"weight": weight(data=None), "inputs": (0, 1)}, "a constant weight, got a computed one"),
    "no weight": ({"ops": [linear((0, -1, 2))]}, "expected a weight, got none"),
    "depth": ({"x": x(shape=(1, 5))}, r"expected 6 inputs and \(1, 4\) outputs, got \(5,\)"),
    "bias": (
        {"bias": bias(shape=(2,), data=np.zeros(2, np.int32))},
        r"int32 bias of shape \(4,\), got int32 of \(2,\)",
    ),
    "shuffled": ({"ops": [linear(WeightsFormat=1)]}, "weights in the default order, got shuffled"),
    "activation": ({"ops": [linear(FusedActivationFunction=4)]}, "expected a fused NONE, RELU, .* got 4"),
    "no inputs": ({"ops": [linear(())]}, "expected 1 inputs and 1 output, got 0 and 1"),
    "constant input": ({"ops": [linear((1, 1))]}, "expected 't1' to be computed, got a constant"),
    "cycle": ({"ops": [linear((3, 1))]}, "operator 0, FULLY_CONNECTED: reads 't3' before it is written"),
    "written twice": ({"ops": [linear(), linear()]}, "operator 1, FULLY_CONNECTED: writes 't3' again"),
    "input written": ({"ops": [linear(outputs=(0,))]}, "writes 't0' again"),
    "output not written": ({"ops": []}, "output 't3' is never written"),
    "subgraphs": ({"about": {"subgraphs": 2}}, "expected one subgraph, got 2"),
    "no subgraph": ({"about": {"subgraphs": 0}}, "expected one subgraph, got 0"),
    "version": ({"about": {"version": 2}}, "version 3 of the schema, got 2"),
    "other operator": ({"ops": [Operator("MEAN", [0], [3])]}, "0, MEAN: not among .*; nearest is AVERAGE_POOL_2D"),
    "custom operator": ({"ops": [Operator("CUSTOM", [0], [3])]}, "operator 0, CUSTOM '': not among CONV_2D"),
    "beta": ({"ops": [Operator("SOFTMAX", [0], [3], "SoftmaxOptions", {"Beta": 2.0})]}, "expected beta 1, got 2.0"),
    "rescale": ({"ops": [Operator("QUANTIZE", [0], [3])], "y": x(scale=0.7)}, "got codes to rescale"),
    "broadcast": ({"ops": [Operator("ADD", [0, 0], [3], "AddOptions", ACT)]}, "nothing is broadcast"),
    "no addend": ({"ops": [Operator("ADD", [0, -1], [3], "AddOptions", ACT)]}, "expected a tensor, got none"),
    "factor's shape": (
        {"ops": [product()]},
        r"one shape, or a number for each channel, got \(6,\), \(6,\) and \(4,\)",
    ),
    "constant factor": ({"ops": [product((0, 1))]}, "expected 't1' to be computed, got a constant"),
    "factor's dtype": (
        {"ops": [product((0, 4))], "y": x(), "z": x(dtype="uint8"), "inputs": (0, 4)},
        "one dtype for inputs and output, got int8 and uint8",
    ),
    "small product": (
        {"ops": [product()], "y": x(scale=2.0**15)},
        "2.-16 to 2.8 times the output's, got 7.6.*e-06 times",
    ),
    "large product": ({"ops": [product()], "y": x(scale=2.0**-10)}, "2.-16 to 2.8 times the output's, got 256.0 times"),
    "endless product": ({"ops": [product()], "x": x(scale=1e30), "y": x()}, "2.-16 to 2.8 times .* got inf times"),
    "endless square": (
        {"ops": [product()], "x": x(scale=1e-20), "y": x(scale=1e-39)},
        "'t3' of a scale whose inverse is finite, got 1.*e-39",
    ),
    "axis of the batch": ({"ops": [joined(Axis=0)]}, "one of 2 axes, and not that of the batch, got axis 0"),
    "last axis": ({"ops": [joined(Axis=2)]}, "one of 2 axes, and not that of the batch, got axis 2"),
    "first axis": ({"ops": [joined(Axis=-3)]}, "one of 2 axes, and not that of the batch, got axis -3"),
    "joined activation": ({"ops": [joined(Axis=1, FusedActivationFunction=1)]}, "expected no fused activation, got 1"),
    "no parts": ({"ops": [joined([], Axis=1)]}, "expected inputs and 1 output, got 0 and 1"),
    "no part": ({"ops": [joined([0, -1], Axis=1)]}, "expected a tensor, got none"),
    "constant part": ({"ops": [joined([0, 1], Axis=1)]}, "expected 't1' to be computed, got a constant"),
    "dtypes of parts": ({"ops": [joined(Axis=1)], "x": x(dtype="uint8")}, "one dtype .*, got uint8 and int8"),
    "scale of a part": (
        {"ops": [joined(Axis=1)], "y": x(shape=(1, 12), scale=0.25)},
        "'t0' with scale 0.25 and zero point 3, as the output, got scale 0.5 and zero point 3",
    ),
    "larger part": (
        {"ops": [joined(Axis=1)], "x": x(dtype="uint8", scale=2.0**20), "y": x(dtype="uint8", scale=1.0)},
        "'t0' of a scale below 2.20 times the output's, got 1048576.0 times",
    ),
    "pad": ({"ops": [Operator("PAD", [0, 2], [3])]}, "constant padding, two integers per axis"),
    "window": (
        {"ops": [Operator("MAX_POOL_2D", [0], [3], "Pool2DOptions", ACT)]},
        "input and output of 4 axes, got 2 and 2",
    ),
    "stride": (
        {
            "x": x(shape=(1, 4, 4, 1)),
            "y": x(shape=(1, 4, 4, 1)),
            "ops": [Operator("MAX_POOL_2D", [0], [3], "Pool2DOptions", ACT | {"FilterHeight": 1, "FilterWidth": 1})],
        },
        r"positive sizes, got kernel \(1, 1\), stride \(0, 0\)",
    ),
    "size": (
        {
            "x": x(shape=(1, 4, 4, 1)),
            "y": x(shape=(1, 4, 4, 1)),
            "ops": [
                Operator(
                    "MAX_POOL_2D",
                    [0],
                    [3],
                    "Pool2DOptions",
                    ACT | {"FilterHeight": 2, "FilterWidth": 2, "StrideH": 1, "StrideW": 1, "Padding": 1},
                )
            ],
        },
        "expected an output of 3 x 3, got 4 x 4",
    ),
}


@pytest.mark.parametrize(("changed", "words"), REFUSED.values(), ids=REFUSED)
def test_refused(changed, words, tmp_path):
    with pytest.raises(ValueError, match=f"(?s)net.tflite: cannot take\n.*{words}"):
        read(file_of(**changed), tmp_path)


def test_everything_in_the_way_is_listed(tmp_path):
    ops = [Operator("MEAN", [0], [3]), linear((0, -1)), linear(WeightsFormat=1), linear()]
    with pytest.raises(ValueError, match="cannot take") as told:
        read(file_of(ops), tmp_path)
    assert [line.split(":")[0] for line in str(told.value).splitlines()[1:]] == [
        "  operator 0, MEAN",
        "  operator 1, FULLY_CONNECTED",
        "  operator 2, FULLY_CONNECTED",
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("resnet8_float", "16 of 16 operators (9 CONV_2D, 3 ADD, 1 AVERAGE_POOL_2D, 1 RESHAPE, 1 FULLY_CONNECTED, 1 SOFTMAX"),
        ("autoencoder_ad_float", "10 of 10 operators (10 FULLY_CONNECTED"),
        ("dscnn_kws_dynamic_range", "13 of 13 operators (5 CONV_2D, 4 DEPTHWISE_CONV_2D, 1 AVERAGE_POOL_2D, 1 RESHAPE, "
                                    "1 FULLY_CONNECTED, 1 SOFTMAX"),
    ],
)  # fmt: skip
def test_stored_networks_of_floats_are_told_in_one_line(name, told):
    with pytest.raises(ValueError, match="cannot take") as error:
        from_tflite(stored.find(stored.TINY, f"{name}.tflite"))
    (line,) = str(error.value).splitlines()[1:]
    why = "expected codes of int8 or uint8, got floats; convert the network with full integer quantization"
    assert line == f"  {told}; the first is 0): {why} and a representative data set"


def test_floats_among_other_things_in_the_way(tmp_path):
    ops = [linear(), Operator("SOFTMAX", [4], [5], "SoftmaxOptions", {"Beta": 1.0}), Operator("MEAN", [0], [3])]
    floats = [Tensor((1, 4), "float32"), Tensor((1, 4), "float32")]
    with pytest.raises(ValueError, match="cannot take") as told:
        read(made([*tensors(), *floats], ops, [0, 4], [3]), tmp_path)
    lines = str(told.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [
        "  1 of 3 operators (1 SOFTMAX; the first is 1)",
        "  operator 2, MEAN",
    ]


def test_without_the_package(tmp_path, monkeypatch):  # row 77
    data = file_of()
    monkeypatch.setitem(sys.modules, "tflite", None)
    with pytest.raises(ImportError, match=r"pip install 'lowbit\[tflite\]'"):
        read(data, tmp_path)


def test_names_that_are_missing_or_the_same(tmp_path):  # row 49
    got = read(
        file_of(x=x(name=""), weight=weight(name="a/../b\0"), bias=bias(name="y"), y=x(shape=(1, 4), name="y")),
        tmp_path,
    )
    assert list(got.tensors) == ["#0", "y#3"]
    assert list(got.constants) == ["a/../b\0", "y"]
    got = read(file_of(x=x(name="y#3"), bias=bias(name="y"), y=x(shape=(1, 4), name="y")), tmp_path)
    assert list(got.tensors) == ["y#3", "y#3#3"]


# ------------------------------------------------------------------ files that are none


def survives(data: bytes, path) -> bool:
    """Whether the bytes are refused with ValueError or read, in memory that the file's size bounds."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        from_tflite(path)
        return True
    except ValueError:
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(data) + 2**24


def source(name: str) -> bytes:
    return file_of() if name == "made" else stored.find(stored.TINY, f"{name}.tflite").read_bytes()


@pytest.mark.parametrize("name", ["made", "dscnn_kws_int8"])
def test_truncated(name, tmp_path):  # row 44
    data = source(name)
    for n in range(0, len(data), 1 if name == "made" else 64):
        survives(data[:n], tmp_path / "net.tflite")
    for n in range(9):
        assert not survives(data[:n], tmp_path / "net.tflite")


@pytest.mark.parametrize("name", ["made", "dscnn_kws_int8"])
def test_bytes_that_changed(name, tmp_path):
    data, rng = source(name), np.random.default_rng(11)
    for round_ in range(1000 if name == "made" else 60):
        changed = bytearray(data)
        for at in rng.integers(8, len(data), 1 + round_ % 20):
            changed[at] = rng.integers(256)
        survives(bytes(changed), tmp_path / "net.tflite")


@pytest.mark.parametrize("value", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF0])
def test_every_word_of_a_file(value, tmp_path):  # rows 45, 48: offsets, counts, sizes, types
    data = source("made")
    for at in range(0, len(data) - 3, 4):
        if at != 4:
            survives(data[:at] + struct.pack("<I", value) + data[at + 4 :], tmp_path / "net.tflite")


def test_random_bytes(tmp_path):
    rng = np.random.default_rng(12)
    for n in rng.integers(0, 4000, 300):
        assert not survives(b"\x1c\0\0\0TFL3" + rng.bytes(n), tmp_path / "net.tflite")


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0" * 100, b"PK\3\4" * 9, b"\x1c\0\0\0TFL2" * 9])
def test_another_format(data, tmp_path):
    with pytest.raises(ValueError, match=r"net\.tflite: expected a TFLite file, with 'TFL3' at byte 4"):
        read(data, tmp_path)


def test_too_much_of_everything(tmp_path):
    many = [linear()] * 5000
    with pytest.raises(ValueError, match="operators: expected at most 4096, got 5000"):
        read(file_of(many), tmp_path)
    with pytest.raises(ValueError, match="inputs: expected at most 64, got 65"):
        read(file_of(inputs=[0] * 65), tmp_path)
    with pytest.raises(ValueError, match=r"tensors of 0 to 3, got \[9\]"):
        read(file_of(inputs=[9]), tmp_path)

    with pytest.raises(ValueError, match="operator 0: inputs: expected at most 64, got 65"):
        read(file_of([joined([0] * 65, Axis=1)]), tmp_path)
    with pytest.raises(ValueError, match="inputs of all operators: expected at most 16384, got 16448"):
        read(file_of([joined([0] * 64, Axis=1)] * 257), tmp_path)
    many = [x(dtype="uint8", scale=1 + i) for i in range(1100)]
    ops = [Operator("CONCATENATION", [0], [i], "ConcatenationOptions", {"Axis": 1}) for i in range(1, 1100)]
    with pytest.raises(ValueError, match="expected at most 1024 parts with other scales than their output's"):
        read(made(many, ops, [0], [1]), tmp_path)


def test_parts_with_other_scales_become_tables_once_each_under_names_of_their_own(tmp_path):
    about = [("x", 0.5), ("x#rescaled", 0.25), ("y", 0.25), ("z", 0.25)]
    parts = [x(name=name, dtype="uint8", scale=scale) for name, scale in about]
    parts[2].shape, parts[3].shape = (1, 18), (1, 12)
    ops = [
        Operator("CONCATENATION", [0, 1, 0], [2], "ConcatenationOptions", {"Axis": -1}),
        Operator("CONCATENATION", [1, 0], [3], "ConcatenationOptions", {"Axis": 1}),
    ]
    got = read(made(parts, ops, [0, 1], [2, 3]), tmp_path)
    assert [op.kind for op in got.operations] == ["table", "concatenate", "concatenate"]
    assert got.operations[1].parts == ("x#rescaled#", "x#rescaled", "x#rescaled#")
    assert got.operations[2].parts == ("x#rescaled", "x#rescaled#")
    assert got.operations[1].axis == 0
    table = got.constants[got.operations[0].table].data
    np.testing.assert_array_equal(table, np.clip((np.arange(256) - 3) * 2 + 3, 0, 255))


def test_memory_that_a_small_file_takes(tmp_path):
    named = [x(name=f"{i:05}" * 300) for i in range(4090)]
    ops = [Operator("RESHAPE", [i], [i + 1]) for i in range(4089)]
    assert survives(made(named, ops, [0], [4089]), tmp_path / "net.tflite")
    named = [x(name=f"{i:05}" * 300, dtype="uint8", scale=1 + i) for i in range(1200)]
    ops = [Operator("CONCATENATION", [0] * 13, [i], "ConcatenationOptions", {"Axis": 1}) for i in range(1, 1200)]
    assert not survives(made(named, ops, [0], [1]), tmp_path / "net.tflite")


def test_paths_that_are_no_files(tmp_path):  # row 50
    with pytest.raises(FileNotFoundError):
        from_tflite(tmp_path / "none")
    with pytest.raises(ValueError, match="path: expected a regular file"):
        from_tflite(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(ValueError, match="path: expected a regular file"):
            from_tflite(str(tmp_path / "fifo"))
