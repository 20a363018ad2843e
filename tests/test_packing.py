"""`pack_codes` and `unpack_codes` against FORMATS.md, the reference and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hypothesis.extra.numpy as hnp
import lowbit
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import reference

ISAS = lowbit.available_isas()
WIDTHS = range(1, 17)
BIG = 300_000  # codes: enough for several tasks and all threads


def dtype(nbits: int) -> type:
    return np.uint8 if nbits <= 8 else np.uint16


def some(shape, nbits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << nbits, shape, dtype=dtype(nbits))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ------------------------------------------------------------------ what it does


def examples():
    text = (Path(__file__).parents[1] / "FORMATS.md").read_text(encoding="utf-8")
    section = next(s for s in text.split("\n## ") if s.startswith("Packed codes"))
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[0].isdigit():
            nbits = int(cells[0])
            codes = np.array([row.split() for row in cells[1].split("/")], dtype(nbits))
            packed = np.array([list(bytes.fromhex(row)) for row in cells[2].split("/")], np.uint8)
            yield pytest.param(nbits, codes, packed, id=f"{nbits}-{cells[2]}")


@pytest.mark.parametrize(("nbits", "codes", "packed"), list(examples()))
def test_the_examples_of_formats_md(nbits, codes, packed, isa, ran):
    n = codes.shape[-1]
    assert same(lowbit.pack_codes(codes, nbits, isa=isa), packed)
    assert same(lowbit.unpack_codes(packed, nbits, n, isa=isa), codes)
    assert same(reference.pack_codes(codes, nbits), packed)
    assert same(reference.unpack_codes(packed, nbits, n), codes)
    ran(isa)


def test_every_width_has_an_example():
    assert {p.values[0] for p in examples()} == set(WIDTHS)


@pytest.mark.parametrize("nbits", WIDTHS)
def test_sizes_straddle_every_vector(nbits, isa, ran):  # row 5, 39, 41
    for n in [*range(1, 140), 191, 192, 193, 255, 256, 257, 1023, 1025, 2049]:
        codes = some((2, n), nbits, n)
        packed = lowbit.pack_codes(codes, nbits, isa=isa)
        assert same(packed, reference.pack_codes(codes, nbits)), n
        assert same(lowbit.unpack_codes(packed, nbits, n, isa=isa), codes), n
        ran(isa)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("nbits", WIDTHS)
def test_threads_change_nothing(nbits, threads, isa, ran):
    for shape in [(BIG,), (3, BIG // 3 + 1), (BIG // 7, 7)]:
        codes = some(shape, nbits)
        with lowbit.threads(threads):
            packed = lowbit.pack_codes(codes, nbits, isa=isa)
            back = lowbit.unpack_codes(packed, nbits, shape[-1], isa=isa)
        assert same(packed, reference.pack_codes(codes, nbits))
        assert same(back, codes)
        ran(isa)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_array(data):
    nbits = data.draw(st.integers(1, 16), "nbits")
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=40), "shape")
    codes = data.draw(hnp.arrays(dtype(nbits), shape, elements=st.integers(0, 2**nbits - 1)), "codes")
    want = reference.pack_codes(codes, nbits)
    for isa in ISAS:
        packed = lowbit.pack_codes(codes, nbits, isa=isa)
        assert same(packed, want)
        assert same(lowbit.unpack_codes(packed, nbits, shape[-1], isa=isa), codes)


@pytest.mark.parametrize("nbits", [3, 8, 11])
def test_out_is_filled_and_returned(nbits, isa):
    codes = some((5, 77), nbits)
    want = lowbit.pack_codes(codes, nbits, isa=isa)
    packed = np.full_like(want, 255)
    assert lowbit.pack_codes(codes, nbits, out=packed, isa=isa) is packed
    assert same(packed, want)
    back = np.full_like(codes, 255)
    assert lowbit.unpack_codes(packed, nbits, 77, out=back, isa=isa) is back
    assert same(back, codes)


def test_lowbit_isa_chooses_the_path():
    code = "import lowbit; print(lowbit.isa(), lowbit.pack_codes([*range(8)], 3))"
    for isa in ISAS:
        env = {**os.environ, "LOWBIT_ISA": isa}
        told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert told.stdout == f"{isa} [136 198 250]\n"


# ------------------------------------------------------------------ forms of input


def forms(codes: np.ndarray):
    """The same codes, (6, 90), in other memory."""
    wide = np.zeros((12, 180), codes.dtype)
    wide[::2, ::2] = codes
    raw = np.zeros(codes.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(codes.tobytes(), np.uint8)
    frozen = codes.copy()
    frozen.flags.writeable = False
    yield pytest.param(wide[::2, ::2], id="18 strided")
    yield pytest.param(np.asfortranarray(codes), id="19 Fortran")
    yield pytest.param(codes.T.copy().T, id="19 transposed")
    yield pytest.param(codes[:, ::-1].copy()[:, ::-1], id="20 negative stride")
    yield pytest.param(frozen, id="22 read-only")
    yield pytest.param(raw[1:].view(codes.dtype).reshape(codes.shape), id="24 misaligned")
    yield pytest.param(codes.astype(codes.dtype.newbyteorder()), id="25 byte-swapped")
    yield pytest.param(codes.view(type("Sub", (np.ndarray,), {})), id="subclass")
    yield pytest.param(codes.tolist(), id="31 lists")
    yield pytest.param(tuple(map(tuple, codes.tolist())), id="31 tuples")
    yield pytest.param(list(codes), id="31 list of arrays")


@pytest.mark.parametrize("form", list(forms(some((6, 90), 5))))
def test_forms_of_uint8(form):
    assert same(lowbit.pack_codes(form, 5), reference.pack_codes(some((6, 90), 5), 5))


@pytest.mark.parametrize("form", list(forms(some((6, 90), 11))))
def test_forms_of_uint16(form):
    assert same(lowbit.pack_codes(form, 11), reference.pack_codes(some((6, 90), 11), 11))


@pytest.mark.parametrize("form", list(forms(some((6, 90), 8))))
def test_forms_of_packed(form):
    assert same(lowbit.unpack_codes(form, 6, 120), reference.unpack_codes(some((6, 90), 8), 6, 120))


def test_zero_stride_is_written_out():  # row 21
    row = some((90,), 5)
    codes = np.broadcast_to(row, (6, 90))
    assert same(lowbit.pack_codes(codes, 5), reference.pack_codes(codes, 5))


def test_memory_map(tmp_path):  # row 22
    path = tmp_path / "codes.npy"
    np.save(path, some((6, 90), 5))
    assert same(lowbit.pack_codes(np.load(path, mmap_mode="r"), 5), reference.pack_codes(some((6, 90), 5), 5))


def test_torch_tensors_on_the_cpu():  # row 30
    torch = pytest.importorskip("torch")
    codes = some((6, 90), 5)
    assert same(lowbit.pack_codes(torch.from_numpy(codes), 5), reference.pack_codes(codes, 5))
    assert same(lowbit.pack_codes(torch.from_numpy(codes.T.copy()).T, 5), reference.pack_codes(codes, 5))
    with pytest.raises(ValueError, match="overlaps"):
        lowbit.pack_codes(torch.from_numpy(codes), 8, out=codes)


def test_anything_with_array():  # row 31: a DataFrame is one such
    class Frame:
        def __array__(self, dtype=None, copy=None):
            return some((6, 90), 5)

    assert same(lowbit.pack_codes(Frame(), 5), reference.pack_codes(some((6, 90), 5), 5))
    assert same(lowbit.pack_codes(memoryview(some((90,), 5)), 5), reference.pack_codes(some((90,), 5), 5))


def test_data_frame():  # row 31
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(some((6, 90), 5))
    assert same(lowbit.pack_codes(frame, 5), reference.pack_codes(some((6, 90), 5), 5))


@pytest.mark.parametrize("flag", [[], ["-O"]])
def test_empty(flag):  # row 4
    code = (
        "import lowbit, numpy as np\n"
        "def shape(a): print(a.shape, a.dtype, end=' ')\n"
        "for n in (0, 5):\n"
        "    shape(lowbit.pack_codes(np.empty((0, n), np.uint8), 3))\n"
        "    shape(lowbit.unpack_codes(np.empty((0, (3 * n + 7) // 8), np.uint8), 3, n))\n"
        "shape(lowbit.pack_codes([], 3))\n"
        "shape(lowbit.unpack_codes([[], []], 12, 0))\n"
    )
    told = subprocess.run([sys.executable, *flag, "-c", code], capture_output=True, text=True, check=True)
    want = "(0, 0) uint8 (0, 0) uint8 (0, 2) uint8 (0, 5) uint8 (0,) uint8 (2, 0) uint16 "
    assert told.stdout == want


# ------------------------------------------------------------------ what is refused

V, T = ValueError, TypeError
U8 = some((6, 90), 5)
PACKED = reference.pack_codes(U8, 5)


def pack(codes=U8, nbits=5, **kwargs):
    return lambda: lowbit.pack_codes(codes, nbits, **kwargs)


def unpack(packed=PACKED, nbits=5, n=90, **kwargs):
    return lambda: lowbit.unpack_codes(packed, nbits, n, **kwargs)


def frozen(a):
    a.flags.writeable = False
    return a


def misaligned(shape, dtype):
    raw = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 1, np.uint8)
    return raw[1:].view(dtype).reshape(shape)


SHARED = np.zeros(4096, np.uint8)

REFUSED = [
    # row, the call, the exception, words of its message
    (9, pack(nbits=2**40), V, "nbits: expected 1 to 16, got 1099511627776"),
    (9, pack(nbits=True), T, r"nbits: expected an int, got True \(bool\)"),
    (9, pack(nbits=np.True_), T, "nbits: expected an int"),
    (9, pack(nbits="5"), T, r"nbits: expected an int, got '5' \(str\)"),
    (9, pack(nbits=None), T, "nbits: expected an int"),
    (9, unpack(n=True), T, "n: expected an int, got True"),
    (9, unpack(n=90.0), T, r"n: expected an int, got 90.0 \(float\)"),
    (9, unpack(n=-1), V, "n: expected at least 0, got -1"),
    (22, pack(out=frozen(np.empty((6, 57), np.uint8))), V, "out: expected a writeable array"),
    (22, unpack(out=frozen(np.empty((6, 90), np.uint8))), V, "out: expected a writeable array"),
    (23, pack(SHARED[:64], 8, out=SHARED[:64]), V, "out: .* overlaps an input"),
    (23, pack(SHARED[:64], 4, out=SHARED[63:95]), V, "out: .* overlaps an input"),
    (23, pack(SHARED[:128:2], 4, out=SHARED[10:42]), V, "out: .* overlaps an input"),
    (23, unpack(SHARED[:32], 4, 64, out=SHARED[:64]), V, "out: .* overlaps an input"),
    (24, unpack(np.zeros(12, np.uint8), 12, 8, out=misaligned((8,), np.uint16)), V, "out: .* aligned"),
    (
        25,
        unpack(np.zeros(12, np.uint8), 12, 8, out=np.empty(8, ">u2")),
        T,
        "out: expected dtype uint16, got >u2",
    ),
    (26, pack(np.array(3, np.uint8)), V, "codes: expected at least 1-D, got 0-D"),
    (26, pack(np.uint8(3)), V, "codes: expected at least 1-D, got 0-D"),
    (26, pack(3), V, "codes: expected at least 1-D, got 0-D"),
    (26, unpack(np.array(3, np.uint8)), V, "packed: expected at least 1-D, got 0-D"),
    (27, pack(out=np.empty((6, 58), np.uint8)), V, r"out: expected shape \(6, 57\), got \(6, 58\)"),
    (27, pack(out=np.empty(342, np.uint8)), V, r"out: expected shape \(6, 57\), got \(342,\)"),
    (27, unpack(out=np.empty((1, 6, 90), np.uint8)), V, r"out: expected shape \(6, 90\)"),
    (27, pack(out=np.empty((57, 6), np.uint8).T), V, "out: expected a C-contiguous"),
    (27, pack(out=np.empty((12, 57), np.uint8)[::2]), V, "out: expected a C-contiguous"),
    (27, pack(out=np.empty((6, 57), np.int8)), T, "out: expected dtype uint8, got int8"),
    (27, unpack(np.zeros(12, np.uint8), 12, 8, out=np.empty(8, np.uint8)), T, "out: expected dtype uint16"),
    (27, pack(out=[0] * 57), T, "out: expected a numpy.ndarray, got list"),
    (
        29,
        pack(U8.astype(np.int8)),
        T,
        r"codes: expected dtype uint8, got int8; store signed codes as code \+",
    ),
    (29, pack(U8 > 3, 1), T, r"codes: expected dtype uint8, got bool; convert with .view\(np.uint8\)"),
    (29, pack([True, False], 1), T, "codes: expected numbers that fit uint8, got bool"),
    (29, pack(U8.astype(np.int64)), T, "codes: expected dtype uint8, got int64"),
    (29, pack(U8.astype(np.uint16)), T, "codes: expected dtype uint8, got uint16"),
    (29, pack(U8, 9), T, "codes: expected dtype uint16, got uint8"),
    (28, pack(U8.astype(np.float16)), T, "codes: expected dtype uint8, got float16"),
    (28, pack(U8.astype(np.float32)), T, "codes: expected dtype uint8, got float32"),
    (28, pack([1.0, 2.0]), T, "codes: expected numbers that fit uint8, got float64"),
    (29, pack(U8.astype(complex)), T, "got complex128"),
    (29, pack(U8.astype(object)), T, "got object"),
    (29, pack(np.array(["1", "2"])), T, "got <U1"),
    (29, pack("12"), T, "codes: expected an array of uint8, got str"),
    (29, pack(b"12"), T, "codes: expected an array of uint8, got bytes"),
    (29, pack(None), T, "codes: expected an array of uint8, got NoneType"),
    (29, pack(np.array(["2020-01-01"], "M8[D]")), T, "got datetime64"),
    (29, pack(np.zeros(4, [("a", "u1")])), T, r"codes: expected dtype uint8, got \[\('a'"),
    (29, pack(np.ma.masked_array(U8, U8 == 3)), T, "codes: .* masked array; use .filled"),
    (29, pack(out=np.ma.masked_array(np.empty((6, 57), np.uint8))), T, "out: expected a numpy.ndarray"),
    (29, unpack(PACKED.astype(np.int8)), T, "packed: expected dtype uint8, got int8"),
    (31, pack([[1, 2], [3]]), V, "codes: expected an array, got a ragged list"),
    (31, pack(i for i in range(3)), T, "codes: expected an array of uint8, got generator"),
    (31, pack({1, 2}), T, "codes: expected an array of uint8, got set"),
    (31, pack([1, 256]), V, "codes: expected values of 0 to 255, got 256 at flat index 1"),
    (31, pack([1, -1]), V, "codes: expected values of 0 to 255, got -1 at flat index 1"),
    (31, pack([1, 2**80]), T, "codes: expected numbers that fit uint8, got object"),
    (33, unpack(nbits=16, n=2**62), V, "packed: expected rows of"),
    (33, unpack(n=2**70), V, "packed: expected rows of"),
    (33, unpack(np.empty((0, 2**61), np.uint8), 1, 2**64), V, "dimension exceeded"),
    (34, pack(np.broadcast_to(np.uint8(1), (2**50,))), MemoryError, "allocate 1.00 PiB"),
    (41, pack(nbits=0), V, "nbits: expected 1 to 16, got 0"),
    (41, pack(nbits=17), V, "nbits: expected 1 to 16, got 17"),
    (41, pack(nbits=-3), V, "nbits: expected 1 to 16, got -3"),
    (41, pack(nbits=1.5), T, r"nbits: expected an int, got 1.5 \(float\)"),
    (41, unpack(nbits=0), V, "nbits: expected 1 to 16, got 0"),
    (41, unpack(nbits=17), V, "nbits: expected 1 to 16, got 17"),
    (42, unpack(PACKED[:, :-1]), V, r"packed: expected rows of 57 bytes \(90 codes of 5 bits\), got 56"),
    (42, unpack(n=93), V, "packed: expected rows of 59 bytes"),
    (42, unpack([[0, 0], [0, 128]], 3, 5), V, "packed: expected zeros .* at the end of row 1"),
    (42, unpack([0, 0, 0, 0, 0, 0, 0, 16], 6, 10), V, "packed: expected zeros .* row 0"),
    (43, pack([1, 2, 8, 9], 3), V, r"codes: expected values below 2\^3 = 8, got 8 at flat index 2"),
    (43, pack(np.full((6, 90), 1 << 11, np.uint16), 11), V, "got 2048 at flat index 0"),
    (67, pack(isa="mmx"), V, "isa: expected one of scalar, .* got 'mmx'"),
    (67, pack(isa=5), T, "isa"),
]


@pytest.mark.parametrize(
    ("call", "error", "words"), [pytest.param(*c[1:], id=f"{c[0]}-{i}") for i, c in enumerate(REFUSED)]
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def torch_tensors():
    torch = pytest.importorskip("torch")
    yield torch.empty(8, dtype=torch.uint8, device="meta"), "meta device"
    yield torch.zeros(8, dtype=torch.uint8).to_sparse(), r"use .to_dense\(\)"
    yield torch.zeros(8, requires_grad=True), r"use .detach\(\)"
    yield torch.zeros(8, dtype=torch.bfloat16), "bfloat16 that numpy cannot hold"
    yield torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.quint8), r"use .int_repr\(\)"
    if torch.cuda.is_available():
        yield torch.zeros(8, dtype=torch.uint8, device="cuda"), r"use .detach\(\).cpu\(\)"


@pytest.mark.filterwarnings("ignore:.*quantize_per_tensor:UserWarning")
def test_torch_tensors_that_are_not_plain():  # row 30
    for tensor, words in torch_tensors():
        with pytest.raises(TypeError, match=words):
            lowbit.pack_codes(tensor, 5)


def test_disjoint_columns_do_not_overlap():  # row 23
    both = np.zeros((1, 64), np.uint8)
    assert same(lowbit.pack_codes(both[:, :32], 8, out=both[:, 32:]), np.zeros((1, 32), np.uint8))


@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 4097, BIG - 1])
@pytest.mark.parametrize("nbits", [1, 3, 7, 9, 15])
def test_the_first_wide_code_is_named(nbits, at, isa, ran):  # row 43
    codes = some((BIG,), nbits)
    codes[at] = codes[-1] = 1 << nbits
    for threads in [1, 2, 7]:
        with lowbit.threads(threads), pytest.raises(ValueError, match=f" {1 << nbits} at flat index {at}$"):
            lowbit.pack_codes(codes, nbits, isa=isa)
        ran(isa)


def test_more_than_2_31_codes():  # row 32: zeros, so that the input takes no memory
    n = 2**31 + 100
    codes = np.zeros(n, np.uint8)
    codes[[0, -1]] = 1
    packed = lowbit.pack_codes(codes, 1)
    assert packed.shape == (2**28 + 13,)
    assert packed[0] == 1
    assert packed[-1] == 1 << (n - 1) % 8
    assert np.count_nonzero(packed) == 2
    codes[-2] = 2
    with pytest.raises(ValueError, match=f"at flat index {n - 2}$"):
        lowbit.pack_codes(codes, 1, out=packed)


# ------------------------------------------------------------------ processes and threads


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_after_a_parallel_call():  # row 57
    codes = some((BIG,), 3)
    want = reference.pack_codes(codes, 3)
    with lowbit.threads(2):
        assert same(lowbit.pack_codes(codes, 3), want)
        child = os.fork()
        if child == 0:
            os._exit(0 if same(lowbit.pack_codes(codes, 3), want) else 3)
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
    cases = [(nbits, some((BIG if nbits % 2 else 100,), nbits, nbits)) for nbits in WIDTHS]
    want = [reference.pack_codes(codes, nbits) for nbits, codes in cases]

    def work(i: int) -> bool:
        nbits, codes = cases[i % len(cases)]
        packed = lowbit.pack_codes(codes, nbits)
        back = lowbit.unpack_codes(packed, nbits, codes.size)
        return same(packed, want[i % len(cases)]) and same(back, codes)

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(10 * len(cases))))


def test_input_changed_meanwhile():  # row 60: torn values at worst
    codes = some((4 * BIG,), 3)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(lambda: [codes.fill(i % 8) for i in range(300)])
        while not job.done():
            assert lowbit.pack_codes(codes, 3).shape == (codes.size * 3 // 8,)
        job.result()
