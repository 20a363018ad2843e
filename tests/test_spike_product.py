"""Products and convolutions of spikes against FORMATS.md, the reference and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lowbit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import reference

ISAS = lowbit.available_isas()
TEXT = (Path(__file__).parents[1] / "FORMATS.md").read_text(encoding="utf-8")
FORMS = (8, 4, 2, None)
"""Bits of codes; None for floats."""


def weight_of(shape, nbits: int | None, rng: np.random.Generator) -> tuple[np.ndarray, lowbit.SpikeWeight]:
    """A matrix, and it tiled."""
    if nbits is None:
        w = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(np.float32)
    else:
        half = 1 << (nbits - 1)
        w = rng.integers(-half, half, shape).astype(np.int8)
        w[rng.random(shape) < 0.2] = -half
    return w, lowbit.tile_spike_weight(w, nbits)


def inputs(shape, density: float, most: int, rng: np.random.Generator) -> np.ndarray:
    return ((rng.random(shape) < density) * rng.integers(1, most + 1, shape)).astype(np.uint8)


def bias_of(weight: lowbit.SpikeWeight, rng: np.random.Generator) -> np.ndarray:
    if weight.nbits == 32:
        return rng.standard_normal(weight.n).astype(np.float32)
    return rng.integers(-(2**30), 2**30, weight.n).astype(np.int32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ------------------------------------------------------------------ the layout


def table(heading: str) -> list[list[str]]:
    lines = next(s for s in TEXT.split("\n## ") if s.startswith("Tiled spike weights")).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_example_of_formats_md():
    w = np.array([row[1].split() for row in table("input")], np.int8)
    expected = bytearray(320)
    for at, data, _ in table("at byte"):
        expected[int(at) : int(at) + 4] = bytes.fromhex(data)
    assert lowbit.tile_spike_weight(w, 4).tiled.tobytes() == bytes(expected)
    assert reference.tile_spike_weight(w, 4).tiled.tobytes() == bytes(expected)


@pytest.mark.parametrize("nbits", FORMS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 0), (0, 3), (7, 8), (5, 31), (9, 64), (4, 65), (2, 130), (2, 3, 5, 70)])
def test_the_layout_is_the_references_and_comes_back(shape, nbits):
    w, weight = weight_of(shape, nbits, np.random.default_rng(1))
    other = reference.tile_spike_weight(w, nbits)
    assert same(weight.tiled, other.tiled)
    assert (weight.shape, weight.nbits) == (other.shape, other.nbits) == (shape, nbits or 32)
    assert same(weight.untile(), w)
    assert same(other.untile(), w)
    assert weight.tiled.size == 0 or weight.tiled.ctypes.data % 64 == 0


def test_a_weight_is_frozen_told_in_a_line_and_copied():
    w, weight = weight_of((5, 3), 4, np.random.default_rng(2))
    assert repr(weight) == "SpikeWeight(shape=(5, 3), 4 bits, 416 bytes)"
    assert weight.dtype == np.int8
    with pytest.raises(AttributeError):
        weight.nbits = 8
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):  # row 70
        assert (other.shape, other.nbits) == (weight.shape, weight.nbits)
        assert same(other.untile(), w)
        assert same(lowbit.spike_matmul(np.ones(5, np.uint8), other), w.sum(0, dtype=np.int32))
    buffer = np.frombuffer(bytes(3) + weight.tiled.tobytes(), np.uint8)[3:]
    assert same(lowbit.SpikeWeight(buffer, (5, 3), 4).untile(), w)


# ------------------------------------------------------------------ products


def check_product(shape, nbits, density, most, isa, seed=0):
    rng = np.random.default_rng(seed)
    *lead, k, n = shape
    x = inputs((*lead, k), density, most, rng)
    w, weight = weight_of((k, n), nbits, rng)
    exact = x.astype(np.int64) @ w.astype(np.int64) if nbits else None
    for bias in (None, bias_of(weight, rng)):
        want = reference.spike_matmul(x, weight, bias, counts=True)
        if exact is not None:
            assert (want == (exact if bias is None else exact + bias)).all()
        assert same(lowbit.spike_matmul(x, weight, bias, counts=True, isa=isa), want)
        if most == 1:
            assert same(lowbit.spike_matmul(x, weight, bias, isa=isa), want)
            assert same(lowbit.spike_matmul(x.astype(bool), weight, bias, isa=isa), want)
            bits = lowbit.pack_codes(x, 1)
            assert same(lowbit.spike_matmul(bits, weight, bias, packed=True, isa=isa), want)
            assert same(reference.spike_matmul(bits, weight, bias, packed=True), want)


@pytest.mark.parametrize("nbits", FORMS)
def test_products_of_odd_sizes(nbits, isa, ran):  # rows 5, 39
    for i, n in enumerate([1, 7, 8, 31, 33, 63, 64, 65, 129]):
        for k in [0, 1, 7, 8, 9, 63, 65, 200]:
            check_product((3, k, n), nbits, 0.4, 1, isa, i)
            ran(isa)
    for lead in [(), (0,), (1,), (2, 0, 3), (2, 3)]:
        check_product((*lead, 20, 10), nbits, 0.5, 1, isa)
        ran(isa)


@pytest.mark.parametrize("nbits", FORMS)
@pytest.mark.parametrize("most", [1, 2, 4, 255])
def test_products_of_every_density(nbits, most, isa, ran):
    for density in [0, 0.01, 0.1, 0.45, 0.55, 0.9, 1]:
        check_product((40, 700, 70), nbits, density, most, isa)
        ran(isa)


@pytest.mark.parametrize("nbits", FORMS)
def test_more_inputs_than_16_bits_number(nbits, isa, ran):
    check_product((2, 70_001, 20), nbits, 0.3, 1, isa)
    ran(isa)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(0, 30), st.integers(0, 200), st.integers(0, 150)),
    nbits=st.sampled_from(FORMS),
    density=st.floats(0, 1),
    most=st.sampled_from([1, 1, 3, 255]),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32),
)
def test_any_product(shape, nbits, density, most, isa, seed):
    check_product(shape, nbits, density, most, isa, seed)


def test_floats_are_added_in_ascending_order(isa, ran):
    w = np.array([[1e8], [1.0], [-1e8], [1.0]], np.float32)
    weight = lowbit.tile_spike_weight(w)
    ones = np.ones(4, np.uint8)
    assert lowbit.spike_matmul(ones, weight, isa=isa) == 1.0
    assert lowbit.spike_matmul(ones, weight, [-1e8], isa=isa) == -1e8 + 1.0 + 8 - 9 + 1.0
    assert lowbit.spike_matmul([3, 0, 3, 0], weight, counts=True, isa=isa) == 0.0
    third = lowbit.tile_spike_weight(np.float32([[1 / 3], [1e-8]]))
    assert lowbit.spike_matmul([7, 1], third, counts=True, isa=isa) == np.float32(7) * np.float32(1 / 3) + np.float32(
        1e-8
    )
    ran(isa)


def test_a_row_does_not_depend_on_the_others(isa, ran):
    rng = np.random.default_rng(5)
    for nbits in FORMS:
        _, weight = weight_of((300, 150), nbits, rng)
        x = inputs((64, 300), 0.3, 1, rng)
        x[::7] = 1
        whole = lowbit.spike_matmul(x, weight, isa=isa)
        assert all(same(lowbit.spike_matmul(x[i : i + 1], weight, isa=isa), whole[i : i + 1]) for i in range(64))
        ran(isa)


def test_threads_give_the_same_bits(isa, ran):
    rng = np.random.default_rng(6)
    for nbits in FORMS:
        for m, k, n in [(1, 4000, 1500), (300, 500, 300), (3000, 90, 40)]:
            _, weight = weight_of((k, n), nbits, rng)
            x = inputs((m, k), 0.2, 1, rng)
            got = []
            for threads in (1, 2, 7):
                with lowbit.threads(threads):
                    got.append(lowbit.spike_matmul(x, weight, isa=isa))
            assert same(got[0], got[1])
            assert same(got[0], got[2])
            ran(isa)


def test_many_python_threads():  # row 59
    rng = np.random.default_rng(7)
    cases = []
    for nbits in FORMS:
        _, weight = weight_of((300, 200), nbits, rng)
        x = inputs((200, 300), 0.2, 1, rng)
        cases.append((x, weight, reference.spike_matmul(x, weight)))
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(lowbit.spike_matmul, *case[:2]) for case in cases * 10]
        assert all(same(job.result(), case[2]) for job, case in zip(jobs, cases * 10, strict=True))


def test_input_changed_meanwhile():  # row 60: other sums at worst, or a refusal
    x = np.zeros((2000, 500), np.uint8)
    _, weight = weight_of((500, 200), 8, np.random.default_rng(8))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [x.fill(i % 2) for i in range(200)])
        while not job.done():
            assert lowbit.spike_matmul(x, weight).shape == (2000, 200)
        job.result()
    images = np.zeros((20, 30, 30, 16), np.uint8)
    _, weight = weight_of((3, 3, 16, 40), 8, np.random.default_rng(8))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [images.fill(i % 2) for i in range(400)])
        while not job.done():
            assert lowbit.spike_conv2d(images, weight).shape == (20, 28, 28, 40)
        job.result()


def test_out_is_written_and_returned(isa, ran):
    rng = np.random.default_rng(9)
    _, weight = weight_of((50, 70), 8, rng)
    x = inputs((4, 50), 0.3, 1, rng)
    out = np.full((4, 70), 99, np.int32)
    assert lowbit.spike_matmul(x, weight, out=out, isa=isa) is out
    assert same(out, reference.spike_matmul(x, weight))
    ran(isa)


def test_views_and_lists():  # rows 18 to 24
    rng = np.random.default_rng(10)
    w, weight = weight_of((40, 9), 8, rng)
    x = inputs((10, 80), 0.3, 1, rng)
    for view in (x[:, ::2], x[::-1, 40:], np.asfortranarray(x[:, :40]), np.broadcast_to(x[0, :40], (3, 40))):
        assert same(lowbit.spike_matmul(view, weight), reference.spike_matmul(view, weight))
    assert same(lowbit.spike_matmul(x[0, :40].tolist(), weight), reference.spike_matmul(x[0, :40], weight))
    assert same(lowbit.tile_spike_weight(np.asfortranarray(w)).tiled, weight.tiled)
    x.flags.writeable = False
    assert lowbit.spike_matmul(x[:, :40], weight).shape == (10, 9)


def test_the_bound_of_int32(isa, ran):  # row 35
    weight = lowbit.tile_spike_weight(np.full((3, 1), 127, np.int8))
    limit = np.array([2**31 - 1 - 3 * 128], np.int32)
    assert lowbit.spike_matmul([1, 1, 1], weight, limit, isa=isa) == limit + 381
    with pytest.raises(ValueError, match="int32 is sure to hold sums of up to 2 spikes here, row 0 has more"):
        lowbit.spike_matmul([1, 1, 1], weight, limit + np.int32(1), isa=isa)
    for code in (-128, 127):
        k = 65_793
        weight = lowbit.tile_spike_weight(np.full((k, 1), code, np.int8))
        x = np.full(k, 255, np.uint8)
        assert lowbit.spike_matmul(x, weight, counts=True, isa=isa) == code * 255 * k
    ran(isa)


# ------------------------------------------------------------------ convolutions


def check_conv(lead, input, kernel, filters, stride, padding, nbits, density, most, isa, seed=0):
    rng = np.random.default_rng(seed)
    x = inputs((*lead, *input), density, most, rng)
    w, weight = weight_of((*kernel, input[2], filters), nbits, rng)
    steps = {"stride": stride, "padding": padding}
    for bias in (None, bias_of(weight, rng)):
        want = reference.spike_conv2d(x, weight, bias, counts=True, **steps)
        assert same(lowbit.spike_conv2d(x, weight, bias, counts=True, isa=isa, **steps), want)
        if most == 1:
            assert same(lowbit.spike_conv2d(x, weight, bias, isa=isa, **steps), want)
    assert lowbit.spike_operations(x, weight, **steps) == reference.spike_operations(x, weight, **steps)
    if nbits == 8 and len(lead) == 1 and x.size and filters and most == 1:
        filter = np.ascontiguousarray(w.transpose(3, 0, 1, 2))
        assert same(lowbit.spike_conv2d(x, weight, isa=isa, **steps), lowbit.conv2d(x, filter, **steps))


@pytest.mark.parametrize("nbits", FORMS)
@pytest.mark.parametrize("most", [1, 4])
def test_convolutions(nbits, most, isa, ran):
    for kernel, stride, padding in [
        ((3, 3), (1, 1), ((1, 1), (1, 1))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((1, 1), (2, 3), ((0, 0), (0, 0))),
        ((5, 2), (1, 2), ((2, 0), (0, 4))),
        ((6, 7), (1, 1), ((0, 0), (0, 0))),
        ((1, 3), (3, 1), ((3, 3), (5, 5))),
    ]:
        for density in (0, 0.1, 0.7, 1):
            check_conv((2,), (6, 7, 19), kernel, 35, stride, padding, nbits, density, most, isa)
            ran(isa)


@settings(deadline=None, max_examples=60)
@given(
    lead=st.sampled_from([(), (0,), (1,), (3,), (2, 2)]),
    input=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    filters=st.integers(0, 70),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*2 * [st.tuples(st.integers(1, 3), st.integers(1, 3))]),
    nbits=st.sampled_from(FORMS),
    density=st.floats(0, 1),
    most=st.sampled_from([1, 255]),
    isa=st.sampled_from(ISAS),
    seed=st.integers(0, 2**32),
)
def test_any_convolution(lead, input, kernel, filters, stride, padding, nbits, density, most, isa, seed):
    check_conv(lead, input, kernel, filters, stride, padding, nbits, density, most, isa, seed)


def test_threads_give_the_same_convolution(isa, ran):
    rng = np.random.default_rng(11)
    for nbits in FORMS:
        _, weight = weight_of((3, 3, 40, 100), nbits, rng)
        x = inputs((5, 20, 20, 40), 0.2, 1, rng)
        got = []
        for threads in (1, 2, 7):
            with lowbit.threads(threads):
                got.append(lowbit.spike_conv2d(x, weight, padding=((1, 1), (1, 1)), isa=isa))
        assert same(got[0], got[1])
        assert same(got[0], got[2])
        ran(isa)


# ------------------------------------------------------------------ operations


def test_operations_of_products():
    rng = np.random.default_rng(12)
    _, weight = weight_of((77, 13), 8, rng)
    x = inputs((5, 4, 77), 0.3, 3, rng)
    assert lowbit.spike_operations(x, weight) == np.count_nonzero(x) * 13
    bits = lowbit.pack_codes((x != 0).view(np.uint8), 1)
    assert lowbit.spike_operations(bits, weight, packed=True) == np.count_nonzero(x) * 13
    assert lowbit.spike_operations(x[:0], weight) == 0


# ------------------------------------------------------------------ misuse

V, T = ValueError, TypeError
W8 = lowbit.tile_spike_weight(np.ones((10, 3), np.int8))
WF = lowbit.tile_spike_weight(np.ones((10, 3), np.float32))
W4D = lowbit.tile_spike_weight(np.ones((3, 3, 2, 5), np.int8))
X = np.zeros((4, 10), np.uint8)
IMAGE = np.zeros((1, 5, 5, 2), np.uint8)


def matmul(spikes=X, weight=W8, *args, **kwargs):
    return lambda: lowbit.spike_matmul(spikes, weight, *args, **kwargs)


def conv(spikes=IMAGE, weight=W4D, *args, **kwargs):
    return lambda: lowbit.spike_conv2d(spikes, weight, *args, **kwargs)


def tile(*args, **kwargs):
    return lambda: lowbit.tile_spike_weight(*args, **kwargs)


def operations(*args, **kwargs):
    return lambda: lowbit.spike_operations(*args, **kwargs)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


REFUSED = [
    (1, tile(np.array([[1, np.nan]], np.float32)), V, r"w: expected finite values, got NaN at flat index 1 \(1 such"),
    (2, tile(np.array([[np.inf, 0]], np.float32)), V, "got inf at flat index 0"),
    (22, matmul(out=read_only(np.zeros((4, 3), np.int32))), V, "out: expected a writeable array"),
    (23, matmul(out=W8.tiled[:48].view(np.int32).reshape(4, 3)), V, "out: expected memory of its own"),
    (26, matmul(np.uint8(1)), V, "spikes: expected at least 1-D, got 0-D"),
    (27, matmul(X[:, :9]), V, r"spikes, weight: expected \(..., 10\) and \(10, 3\), got \(4, 9\)"),
    (27, matmul(X[:, :2]), V, r"got \(4, 2\); packed bits are told by packed=True"),
    (27, matmul(X, W8, np.zeros(4, np.int32)), V, r"bias: expected shape \(3,\), got \(4,\)"),
    (27, matmul(out=np.zeros((3, 4), np.int32)), V, r"out: expected shape \(4, 3\), got \(3, 4\)"),
    (27, matmul(X, W4D), V, r"weight: expected shape \(K, N\), got \(3, 3, 2, 5\)"),
    (27, tile(np.zeros((1, 2, 3), np.int8)), V, r"w: expected \(K, N\) or \(KH, KW, C, O\), got shape \(1, 2, 3\)"),
    (27, conv(IMAGE[0, 0]), V, "spikes: expected at least 3-D, got 2-D"),
    (27, conv(IMAGE[..., :1]), V, r"spikes, weight: expected \(..., H, W, 2\), got \(1, 5, 5, 1\)"),
    (27, conv(IMAGE, W8), V, r"weight: expected shape \(KH, KW, C, O\), got \(10, 3\)"),
    (27, conv(IMAGE[:, :2]), V, "a kernel of 3 does not fit into 2"),
    (29, matmul(X.astype(np.int8)), T, "spikes: expected dtype uint8 or bool, got int8"),
    (29, matmul(X.astype(np.float32)), T, "spikes: expected dtype uint8 or bool, got float32"),
    (29, matmul(X.astype(bool), counts=True), T, "spikes: expected dtype uint8, got bool"),
    (29, matmul(X, W8, np.zeros(3, np.float32)), T, "bias: expected dtype int32, got float32"),
    (29, matmul(X, WF, np.zeros(3, np.int32)), T, "bias: expected dtype float32, got int32"),
    (29, matmul(X, WF, out=np.zeros((4, 3), np.int32)), T, "out: expected dtype float32, got int32"),
    (29, matmul(X, np.ones((10, 3), np.int8)), T, "weight: expected a SpikeWeight of .*, got ndarray"),
    (29, tile(np.zeros((2, 2), np.uint8)), T, "w: expected dtype int8 or float32, got uint8"),
    (29, tile(np.zeros((2, 2))), T, "w: expected dtype int8 or float32, got float64"),
    (31, matmul(i for i in range(3)), T, "spikes: expected an array of uint8 or bool, got generator"),
    (41, tile(np.zeros((2, 2), np.int8), 3), V, "nbits: expected 2, 4 or 8, got 3"),
    (41, tile(np.zeros((2, 2), np.int8), 1.5), T, r"nbits: expected an int, got 1.5 \(float\)"),
    (41, tile(np.zeros((2, 2), np.float32), 8), V, "nbits: expected None with float32, got 8"),
    (42, matmul(np.zeros((4, 3), np.uint8), packed=True), V, r"rows of 2 bytes \(10 bits\), got 3"),
    (42, matmul([[0, 0], [0, 4]], packed=True), V, "a set bit at the end of row 1"),
    (42, operations([[0, 0], [0, 4]], W8, packed=True), V, "a set bit at the end of row 1"),
    (42, lambda: lowbit.SpikeWeight(np.zeros(3, np.uint8), (10, 3), 8), V, r"tiled: expected 448 bytes, got shape"),
    (42, lambda: lowbit.SpikeWeight(np.zeros(3, np.uint8), (10, 3), 5), V, "nbits: expected 2, 4 or 8, got 5"),
    (42, lambda: lowbit.SpikeWeight(np.zeros(3, np.uint8), (10,), 8), V, r"shape: expected \(K, N\) or"),
    (43, tile(np.array([[0, 8]], np.int8), 4), V, r"codes of -8 to 7 \(4 bits\), got 8 at flat index 1"),
    (43, tile(np.array([[-3]], np.int8), 2), V, r"codes of -2 to 1 \(2 bits\), got -3 at flat index 0"),
    (67, matmul(isa="mmx"), V, "isa: expected one of scalar, .* got 'mmx'"),
    (79, matmul([0, 0, 0, 0, 0, 2, 0, 0, 1, 9]), V, "spikes: expected 0 or 1, got 2 at flat index 5; counts"),
    (79, conv(np.full((5, 5, 2), 3, np.uint8)), V, "spikes: expected 0 or 1, got 3 at flat index 0"),
    (0, matmul(packed=True, counts=True), V, "packed, counts: expected at most one of them"),
    (0, conv(stride=(0, 1)), V, "stride: expected 1 to"),
    (0, conv(stride=2), T, "stride: expected a pair of ints, got 2"),
    (0, conv(padding=(1, 1)), T, "padding: expected a pair of ints, got 1"),
    (0, conv(padding=1), T, r"padding: expected \(\(top, bottom\), \(left, right\)\), got 1"),
    (0, conv(padding=((0, -1), (0, 0))), V, "padding: expected 0 to"),
    (0, operations(X, W8, stride=(2, 2)), V, r"stride, padding: expected a weight \(KH, KW, C, O\) with them"),
    (0, operations(IMAGE, W4D, packed=True), V, "packed: expected False with a convolution's weight"),
    (0, operations(IMAGE[0, 0], W4D), V, "spikes: expected at least 3-D"),
    (0, operations(X[:, :9], W8), V, r"expected \(..., 10\)"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [pytest.param(*c[1:], id=f"{c[0]}-{i}") for i, c in enumerate(REFUSED)]
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("at", [0, 1, 63, 64, 5000, 399_999])
def test_the_first_wrong_input_is_named(at, isa, ran):
    x = np.zeros((1000, 400), np.uint8)
    x.flat[[at, -1]] = 7
    weight = lowbit.tile_spike_weight(np.ones((400, 70), np.int8))
    for threads in (1, 2, 7):
        with lowbit.threads(threads), pytest.raises(ValueError, match=f"got 7 at flat index {at};"):
            lowbit.spike_matmul(x, weight, isa=isa)
        ran(isa)
