"""k-means in one dimension: the optimum, every dtype, and misuse."""

from __future__ import annotations

import subprocess
import sys
import warnings

import lowbit
import ml_dtypes
import numpy as np
import pytest
from lowbit import reference

FAMILIES = ("normal", "laplace", "cauchy", "lognormal", "integers", "clusters", "offset", "outlier")


def numbers(family: str, n: int, rng: np.random.Generator) -> np.ndarray:
    match family:
        case "normal":
            return rng.standard_normal(n)
        case "laplace":
            return rng.laplace(size=n)
        case "cauchy":
            return rng.standard_cauchy(n)
        case "lognormal":
            return rng.lognormal(0, 2, n)
        case "integers":
            return rng.integers(0, 20, n).astype(float)
        case "clusters":
            return rng.integers(-1, 2, n) * 10.0 ** rng.integers(0, 9) + rng.standard_normal(n)
        case "offset":
            return 1e8 + rng.standard_normal(n)
        case _:
            x = rng.standard_normal(n)
            x[rng.integers(n)] = rng.choice([-1, 1]) * 10.0 ** rng.integers(3, 30)
            return x


def inertia(x: np.ndarray, codes: np.ndarray, weight: np.ndarray | None = None, zero: int | None = None) -> float:
    """The squares of a partition about its exact means, each sum about one of its own values."""
    total = 0.0
    for code in np.unique(codes):
        own = codes == code
        d, w = x[own] - x[own][0], np.ones(own.sum()) if weight is None else weight[own]
        if w.sum() > 0:
            mean = 0.0 - x[own][0] if code == zero else (w * d).sum() / w.sum()
            total += float((w * (d - mean) ** 2).sum())
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_optimum(family, isa, ran):
    rng = np.random.default_rng(len(family))
    for _ in range(40):
        x = numbers(family, int(rng.integers(1, 60)), rng)
        k = int(rng.integers(1, 12))
        weight = rng.choice([0.0, 0.3, 1.0, 7.0], x.size) if rng.random() < 0.5 else None
        if weight is not None:
            weight[0] = 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
            ours = lowbit.kmeans_1d(x, k, sample_weight=weight, isa=isa)
        theirs = reference.kmeans_1d(x, k, sample_weight=weight)
        best = inertia(x, theirs.codes, weight)
        assert inertia(x, ours.codes, weight) <= best * (1 + 1e-9)
        assert ours.inertia == pytest.approx(inertia(x, ours.codes, weight), rel=1e-9, abs=1e-300)
        assert ours.n_distinct == theirs.n_distinct
        assert ours.codebook.shape == (k,)
        assert (np.diff(ours.codebook) >= 0).all()
        ran(isa)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_level_at_zero(family):
    rng = np.random.default_rng(7)
    for _ in range(20):
        x = numbers(family, int(rng.integers(1, 40)), rng)
        x -= rng.choice([0.0, np.median(x)])
        k = int(rng.integers(1, 9))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
            ours = lowbit.kmeans_1d(x, k, pin_zero=True)
        assert (ours.codebook == 0).any()
        theirs = reference.kmeans_1d(x, k, pin_zero=True)
        zero = [int(np.flatnonzero(found.codebook == 0)[0]) for found in (ours, theirs)]
        floor = 1e-25 * np.abs(x).max() ** 2  # what float64 leaves of the squares of an outlier
        best = inertia(x, theirs.codes, zero=zero[1])
        assert inertia(x, ours.codes, zero=zero[0]) <= best * (1 + 1e-9) + floor


def test_against_ckmeans():
    ckmeans = pytest.importorskip("ckmeans", reason="ckmeans is not installed")
    rng = np.random.default_rng(11)
    for case in range(100):
        family = FAMILIES[case % (len(FAMILIES) - 1)]  # not "outlier", which it loses much beside
        x = numbers(family, int(rng.integers(3000, 20_000)), rng)
        k = int(rng.integers(2, 40)) if family != "integers" else int(rng.integers(2, 20))
        values = ckmeans.ckmeans(x, k)
        best = sum(inertia(np.asarray(v, np.float64), np.zeros(len(v), int)) for v in values)
        ours = lowbit.kmeans_1d(x, k)
        assert inertia(x, ours.codes) <= best * (1 + 1e-9), family


def test_every_number_has_its_nearest_level_and_ties_go_to_the_lower():
    x = np.random.default_rng(0).standard_normal(100_000)
    found = lowbit.kmeans_1d(x, 300)
    middles = (found.codebook[1:] + found.codebook[:-1]) / 2
    np.testing.assert_array_equal(found.codes, np.searchsorted(middles, x))
    assert found.codes.dtype == np.uint16
    # -1 and 1 weigh nothing, and 0 lies between the levels.
    found = lowbit.kmeans_1d([-2.0, 0.0, 2.0], 2, sample_weight=[1.0, 0.0, 1.0])
    assert found.codes.tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "int8", "uint8", "int16", "uint16"])
def test_narrow_numbers_are_float32(dtype):
    x = (
        (np.random.default_rng(1).standard_normal((30, 20)) * 9).astype(dtype)
        if dtype not in ("uint8", "uint16")
        else (np.random.default_rng(1).integers(0, 200, (30, 20)).astype(dtype))
    )
    found = lowbit.kmeans_1d(x, 6)
    expected = lowbit.kmeans_1d(x.astype(np.float64), 6)
    assert found.codebook.dtype == np.float32
    assert found.codes.shape == x.shape
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.codebook, expected.codebook.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64"])
def test_wide_numbers_are_float64(dtype):
    x = (1e9 + np.arange(12) % 5 * 3).astype(dtype)
    found = lowbit.kmeans_1d(x, 3)
    assert found.codebook.dtype == np.float64
    assert found.inertia == pytest.approx(reference.kmeans_1d(x, 3).inertia, rel=1e-12)


def test_an_int64_that_float64_cannot_hold():
    with pytest.raises(
        ValueError, match="x: expected integers that float64 holds, got 9007199254740995 at flat index 1"
    ):
        lowbit.kmeans_1d(np.array([1, 2**53 + 3]), 1)


def test_rows():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((9, 500)).astype(np.float32)
    for weight in (None, rng.random(500), rng.random((9, 500))):
        found = lowbit.kmeans_1d_rows(x, 7, sample_weight=weight)
        assert found.codebook.shape == (9, 7)
        for i, row in enumerate(x):
            own = lowbit.kmeans_1d(row, 7, sample_weight=weight if weight is None or weight.ndim == 1 else weight[i])
            np.testing.assert_array_equal(found.codebook[i], own.codebook)
            np.testing.assert_array_equal(found.codes[i], own.codes)
            assert (found.inertia[i], found.n_distinct[i]) == (own.inertia, own.n_distinct)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_change_nothing(threads):
    rng = np.random.default_rng(3)
    x, rows = rng.laplace(size=200_000).astype(np.float32), rng.standard_normal((100, 300))
    with lowbit.threads(1):
        expected = lowbit.kmeans_1d(x, 200), lowbit.kmeans_1d_rows(rows, 16)
    with lowbit.threads(threads):
        found = lowbit.kmeans_1d(x, 200), lowbit.kmeans_1d_rows(rows, 16)
    for a, b in zip(found, expected, strict=True):
        assert a.codebook.tobytes() == b.codebook.tobytes()
        assert a.codes.tobytes() == b.codes.tobytes()


def test_lloyd_is_near_the_optimum_and_no_better():
    x = np.random.default_rng(4).laplace(size=100_000).astype(np.float32)
    for k in (4, 16, 255):
        exact, lloyd = lowbit.kmeans_1d(x, k), lowbit.kmeans_1d(x, k, method="lloyd")
        assert exact.inertia * (1 - 1e-9) <= lloyd.inertia <= exact.inertia * 1.001


# ------------------------------------------------------- what others get wrong


def test_fewer_distinct_values_than_levels_invent_none():
    with pytest.warns(lowbit.ConvergenceWarning, match="2 distinct values for k = 4"):
        found = lowbit.kmeans_1d(np.array([5, 5, 7, 5], np.float32), 4)
    assert found.codebook.tolist() == [5, 7, 7, 7]
    assert found.codes.tolist() == [0, 0, 1, 0]
    assert (found.inertia, found.n_distinct) == (0.0, 2)
    with pytest.warns(lowbit.ConvergenceWarning, match="in 1 of 2 rows"):
        lowbit.kmeans_1d_rows([[1.0, 1.0], [1.0, 2.0]], 2)


def test_outliers_and_clusters_far_apart():
    rng = np.random.default_rng(5)
    for far in (1e6, -1e6, 1e8, -1e8, 1e30):
        x = rng.standard_normal(300)
        x[17] = far
        best = inertia(x, reference.kmeans_1d(x, 9).codes)
        assert inertia(x, lowbit.kmeans_1d(x, 9).codes) <= best * (1 + 1e-9)
    x = np.concatenate([-1e8 + rng.standard_normal(150), 1e8 + rng.standard_normal(150)])
    for k in (2, 3, 8):
        best = inertia(x, reference.kmeans_1d(x, k).codes)
        assert inertia(x, lowbit.kmeans_1d(x, k).codes) <= best * (1 + 1e-9)


def test_squares_beyond_float64():
    found = lowbit.kmeans_1d([1e153, 2e153, 8e153, 9.5e153], 3)
    assert found.codes.tolist() == [0, 0, 1, 2]
    assert lowbit.kmeans_1d([1e300, 2e300, -1e300], 3).inertia == 0
    assert lowbit.kmeans_1d([1e-200, 2e-200, 9e-200], 2).codes.tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match="more than float64 holds"):
        lowbit.kmeans_1d([1e300, -1e300, 0.0], 1)


@pytest.mark.parametrize(
    ("x", "got"),
    [
        ([1.0, np.nan, 2.0, np.nan], "NaN at index 1; 2 in all"),
        ([np.inf], "inf at index 0"),
        ([-np.inf, 1.0], "-inf at index 0"),
    ],
)
def test_numbers_that_are_not_finite(x, got):
    with pytest.raises(ValueError, match=f"x: expected finite values, got {got}"):
        lowbit.kmeans_1d(np.array(x), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"x": np.empty(0)}, ValueError, r"x: expected at least one value, got shape \(0,\)"),
        ({"x": 3.0}, ValueError, "x: expected at least 1-D"),
        ({"x": np.array([1 + 2j])}, TypeError, "x: expected dtype"),
        ({"x": np.array(["a"])}, TypeError, "x: expected dtype"),
        ({"x": np.array([True])}, TypeError, "x: expected dtype"),
        ({"x": np.ma.masked_array([1.0, 2.0], [0, 1])}, TypeError, "masked"),
        ({"x": [[1.0], [1.0, 2.0]]}, ValueError, "ragged"),
        ({"x": (i for i in range(3))}, TypeError, "x: expected an array"),
        ({"k": 0}, ValueError, "k: expected 1 to"),
        ({"k": -1}, ValueError, "k: expected 1 to"),
        ({"k": 2.0}, TypeError, "k: expected an int"),
        ({"k": True}, TypeError, "k: expected an int"),
        ({"k": 1 << 40}, ValueError, "k: expected 1 to"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight: expected shape \(3,\), got \(1,\)"),
        ({"sample_weight": [1.0, np.nan, 1.0]}, ValueError, "sample_weight: expected finite"),
        (
            {"sample_weight": [1.0, -1.0, 1.0]},
            ValueError,
            "sample_weight: expected no negative weight, got -1 at index 1",
        ),
        ({"sample_weight": [0.0, 0.0, 0.0]}, ValueError, "zeros alone"),
        ({"method": "best"}, ValueError, "method: expected 'exact' or 'lloyd', got 'best'"),
        ({"isa": "mmx"}, ValueError, "isa"),
    ],
)
def test_misuse(arguments, error, told):
    with pytest.raises(error, match=told):
        lowbit.kmeans_1d(**{"x": [1.0, 2.0, 3.0], "k": 2} | arguments)


def test_rows_of_weights_that_are_all_zero():
    with pytest.warns(RuntimeWarning, match="all 0 in 1 of 2 rows"):
        found = lowbit.kmeans_1d_rows([[0.0, 1.0, 9.0], [0.0, 1.0, 9.0]], 2, sample_weight=[[0.0, 0, 0], [1, 1, 1]])
    assert found.codes.tolist() == [[0, 0, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match=r"x: expected shape \(rows, n\)"):
        lowbit.kmeans_1d_rows([1.0, 2.0], 2)


def test_layouts_that_are_not_plain():
    x = np.random.default_rng(6).standard_normal((6, 8))
    expected = lowbit.kmeans_1d(x.copy(), 3)
    read_only = x.copy()
    read_only.flags.writeable = False
    for view in (np.asfortranarray(x), x[::-1][::-1], x.astype(">f8"), read_only, x.tolist()):
        np.testing.assert_array_equal(lowbit.kmeans_1d(view, 3).codes, expected.codes)
    reverse = lowbit.kmeans_1d(x[::-1, ::-1], 3)
    np.testing.assert_array_equal(reverse.codes, expected.codes[::-1, ::-1])
    assert lowbit.kmeans_1d(np.broadcast_to(1.5, 4), 1).codebook.tolist() == [1.5]
    assert lowbit.kmeans_1d([-0.0, 0.0], 1).codebook.tolist() == [0.0]


def test_ctrl_c_ends_a_long_fit():
    code = """
import _thread, threading, time
import numpy as np, lowbit
x = np.random.default_rng(0).standard_normal(20_000_000).astype(np.float32)
sent = []
def send():
    sent.append(time.perf_counter())
    _thread.interrupt_main()
threading.Timer(0.5, send).start()
try:
    lowbit.kmeans_1d(x, 200)
except KeyboardInterrupt:
    print("stopped", time.perf_counter() - sent[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    stopped, _, seconds = done.stdout.partition(" ")
    assert stopped == "stopped", done.stderr
    assert float(seconds) < 2, "0.2 s on a machine that does nothing else"
