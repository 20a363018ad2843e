"""`kmeans`, `assign`, `lookup` against the reference, scikit-learn and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import lowbit
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowbit import reference

ISAS = lowbit.available_isas()


def some(n: int, d: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(dtype)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_fit(a: lowbit.KMeans, b: lowbit.KMeans) -> bool:
    numbers = (a.inertia, a.n_iter, a.n_distinct) == (b.inertia, b.n_iter, b.n_distinct)
    return numbers and same(a.codebook, b.codebook) and same(a.codes, b.codes)


# ------------------------------------------------------------------ what it does


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [1, 2, 7, 8, 9, 63, 64, 65, 256, 257, 600])
@pytest.mark.parametrize("d", [1, 2, 3, 4, 8, 16, 33])
def test_assign_is_the_reference(d, k, dtype, isa, ran):
    x, codebook = some(67, d, 1, dtype), some(k, d, 2, dtype)
    for top in {1, min(k, 5), min(k, 40)}:
        codes, distances = lowbit.assign(x, codebook, top=top, isa=isa)
        want = reference.assign(x, codebook, top=top)
        assert same(codes, want[0])
        assert same(distances, want[1])
        ran(isa)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(1, 9), st.integers(0, 3), st.integers(0, 2**32))
def test_ties_go_to_the_lower_index(n, k, d, spread, seed):  # row 16
    rng = np.random.default_rng(seed)
    x, codebook = (rng.integers(-spread, spread + 1, (m, d)).astype(np.float32) for m in (n, k))
    x /= 2
    want = reference.assign(x, codebook, top=min(k, 3))
    for isa in ISAS:
        for threads in (1, 7):
            with lowbit.threads(threads):
                codes, distances = lowbit.assign(x, codebook, top=min(k, 3), isa=isa)
            assert same(codes, want[0])
            assert same(distances, want[1])


@pytest.mark.parametrize("k", [255, 256, 257, 65_535, 65_536, 65_537])
def test_codes_have_the_smallest_dtype(k):  # row 10
    codebook = np.arange(k, dtype=np.float32)[:, None]
    codes, _ = lowbit.assign(codebook[[0, k // 2, k - 1]], codebook)
    assert codes.tolist() == [0, k // 2, k - 1]
    assert codes.dtype == (np.uint8 if k <= 256 else np.uint16 if k <= 65_536 else np.uint32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(500, 1, 5), (2000, 2, 16), (2000, 8, 65), (900, 5, 33), (3000, 2, 530)])
def test_kmeans_is_the_reference(n, d, k, dtype, isa, ran):
    # Sums of multiples of 2^-10 are exact in any order, so codebooks are equal bit for bit.
    x = np.round(some(n, d, 3) * 1024).astype(dtype) / 1024
    for tol in (0, 1e-3):
        got = lowbit.kmeans(x, k, init=x[:k], max_iter=15, tol=tol, isa=isa)
        want = reference.kmeans(x, k, init=x[:k], max_iter=15, tol=tol)
        assert same(got.codebook, want.codebook)
        assert same(got.codes, want.codes)
        assert (got.n_iter, got.n_distinct) == (want.n_iter, k)
        assert got.inertia == pytest.approx(want.inertia, rel=1e-12)
        ran(isa)


def test_weights_count_as_repeats(isa):
    x, weight = some(400, 3, 4, np.float64), np.arange(400) % 4
    got = lowbit.kmeans(x, 12, init=x[1:13], sample_weight=weight.astype(np.float64), tol=0, isa=isa)
    want = lowbit.kmeans(np.repeat(x, weight, axis=0), 12, init=x[1:13], tol=0, isa=isa)
    np.testing.assert_allclose(got.codebook, want.codebook, rtol=1e-12)
    assert got.inertia == pytest.approx(want.inertia, rel=1e-12)
    assert lowbit.kmeans(x, 12, sample_weight=weight.astype(np.float32), isa=isa).inertia < 2 * want.inertia


@pytest.mark.parametrize("init", ["k-means++", "random", "array"])
@pytest.mark.parametrize("k", [3, 64, 700])
def test_threads_and_instruction_sets_change_nothing(k, init):
    x = some(20_000, 8, 5)
    how = {"init": x[:k] if init == "array" else init, "max_iter": 6, "seed": 9}
    want = lowbit.kmeans(x, k, isa="scalar", **how)
    for isa in ISAS:
        for threads in (1, 2, 7):
            with lowbit.threads(threads):
                assert same_fit(lowbit.kmeans(x, k, isa=isa, **how), want)
                codes, distances = lowbit.assign(x, want.codebook, isa=isa)
            assert same(codes, want.codes)
            assert float(distances.sum(dtype=np.float64)) == pytest.approx(want.inertia, rel=1e-6)


def test_seeds_and_starts():
    x = some(3000, 4)
    one = lowbit.kmeans(x, 20, seed=1)
    assert same_fit(one, lowbit.kmeans(x, 20, seed=1))
    assert not same(one.codebook, lowbit.kmeans(x, 20, seed=2).codebook)
    assert lowbit.kmeans(x, 20, seed=1, n_init=5).inertia <= one.inertia
    again = lowbit.kmeans(x, 20, init=one.codebook, n_init=3)
    assert again.inertia <= one.inertia


@pytest.mark.parametrize("k", [8, 256])
def test_inertia_is_that_of_scikit_learn(k):
    cluster = pytest.importorskip("sklearn.cluster")
    x = some(20_000, 8, 6)
    got = lowbit.kmeans(x, k, init=x[:k], max_iter=20, tol=0)
    want = cluster.KMeans(k, init=x[:k], n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(x)
    assert got.inertia == pytest.approx(want.inertia_, rel=1e-3)


def test_kmeans_plus_plus_finds_clusters_that_are_apart():
    centres = 100 * some(50, 6, 7)
    x = np.repeat(centres, 2000, axis=0) + some(100_000, 6, 8)  # more than it draws among
    fits = [lowbit.kmeans(x, 50, seed=seed, n_init=3) for seed in range(2)]
    assert min(fit.inertia for fit in fits) < 3 * 6 * len(x)


def test_empty_clusters_take_the_farthest(isa):
    x = np.array([[0], [1], [2], [3], [50], [100]], np.float32)
    fit = lowbit.kmeans(x, 3, init=[[0.0], [1000.0], [2000.0]], isa=isa)
    assert fit.codebook.tolist() == [[1.5], [100.0], [50.0]]
    assert fit.codes.tolist() == [0, 0, 0, 0, 2, 1]
    assert same(fit.codebook, reference.kmeans(x, 3, init=[[0.0], [1000.0], [2000.0]]).codebook)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize("table", ["float32", "float64", "float16", "int16", ml_dtypes.bfloat16])
def test_lookup_is_the_reference(table, dtype):
    codebook = (some(200, 5) * 100).astype(table)
    for shape in [(7,), (3, 4), (2, 3, 5), (0,), (2, 0), (100_000,)]:
        codes = np.random.default_rng(1).integers(0, 200, shape, dtype=dtype)
        assert same(lowbit.lookup(codes, codebook), reference.lookup(codes, codebook))


# ------------------------------------------------------------------ inputs


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])  # rows 1, 2
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_values_that_are_not_finite(value, dtype):
    x = some(50, 3, dtype=dtype)
    x[7, 2] = x[9, 0] = value
    kind = {"nan": "NaN", "inf": r"\+Inf", "-inf": "-Inf"}[str(value)]
    message = rf"x: .* 2 that are not .*first {kind} at flat index 23"
    with pytest.raises(ValueError, match=message):
        lowbit.kmeans(x, 4)
    with pytest.raises(ValueError, match=message):
        lowbit.assign(x, some(5, 3))
    with pytest.raises(ValueError, match=message.replace("x:", "codebook:", 1)):
        lowbit.assign(some(5, 3), x)
    with pytest.raises(ValueError, match=message.replace("x:", "init:", 1)):
        lowbit.kmeans(some(80, 3), 50, init=x)


@pytest.mark.parametrize(
    "weight", [[np.nan, 1, 1], [np.inf, 1, 1], [-1, 1, 1], [0, 0, 0], [1, 1], [[1, 1, 1]]]
)  # row 3
def test_weights_that_are_none(weight):
    with pytest.raises(ValueError, match="sample_weight"):
        lowbit.kmeans([[0.0], [1.0], [2.0]], 2, sample_weight=np.array(weight, np.float64))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,), (), (2, 2, 2)])  # rows 4, 26, 27
def test_shapes(shape):
    bad = np.zeros(shape, np.float32)
    fine = some(5, 3)
    for call in [
        lambda: lowbit.kmeans(bad, 1),
        lambda: lowbit.assign(bad, fine),
        lambda: lowbit.assign(fine, bad),
        lambda: lowbit.lookup([0], bad),
    ]:
        with pytest.raises(ValueError, match=r"x: |codebook: "):
            call()


def test_widths_that_differ():  # row 27
    with pytest.raises(ValueError, match=r"codebook: expected 3 columns .*\(5, 3\).*\(4, 2\)"):
        lowbit.assign(some(5, 3), some(4, 2))
    with pytest.raises(ValueError, match=r"init: expected shape \(2, 3\), got \(3, 3\)"):
        lowbit.kmeans(some(5, 3), 2, init=some(3, 3))


def test_one_of_each(isa):  # row 5
    fit = lowbit.kmeans([[3.0]], 1, isa=isa)
    assert (fit.codebook.tolist(), fit.codes.tolist(), fit.inertia, fit.n_distinct) == ([[3.0]], [0], 0.0, 1)
    codes, distances = lowbit.assign([[3.0]], [[5.0]], isa=isa)
    assert (codes.tolist(), distances.tolist()) == ([0], [4.0])


@pytest.mark.parametrize("k", [4, 9, 300])  # rows 6, 7, 8, 14
def test_fewer_different_points_than_codewords(k, isa):
    x = np.array([[1, 0], [-0.0, 5], [0.0, 5], [1, -0.0], [1, 0], [7, 7]], np.float32)
    with pytest.warns(lowbit.ConvergenceWarning, match=f"3 different points for {k}"):
        fit = lowbit.kmeans(x, k, isa=isa)
    assert fit.codebook.tolist() == [[0, 5], [1, 0]] + [[7, 7]] * (k - 2)
    assert fit.codes.tolist() == [1, 0, 0, 1, 1, 2]
    assert (fit.inertia, fit.n_distinct) == (0.0, 3)
    assert issubclass(lowbit.ConvergenceWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lowbit.kmeans(x, 3, isa=isa).n_distinct == 3


@pytest.mark.parametrize(  # rows 9, 72
    ("argument", "value", "error"),
    [
        ("k", 0, ValueError),
        ("k", -1, ValueError),
        ("k", 2**31, ValueError),
        ("k", 2.0, TypeError),
        ("k", True, TypeError),
        ("k", "2", TypeError),
        ("n_init", 0, ValueError),
        ("n_init", 1.0, TypeError),
        ("max_iter", 0, ValueError),
        ("max_iter", None, TypeError),
        ("tol", -1e-9, ValueError),
        ("tol", np.nan, ValueError),
        ("tol", "0", TypeError),
        ("seed", -1, ValueError),
        ("seed", 2**64, ValueError),
        ("seed", 0.5, TypeError),
        ("init", "kmeans++", ValueError),
        ("isa", "mmx", ValueError),
    ],
)
def test_arguments(argument, value, error):
    with pytest.raises(error, match=argument):
        lowbit.kmeans(**{"x": some(9, 2), "k": 2, argument: value})


@pytest.mark.parametrize(("top", "error"), [(0, ValueError), (5, ValueError), (1.0, TypeError), (True, TypeError)])
def test_top(top, error):
    with pytest.raises(error, match="top"):
        lowbit.assign(some(9, 2), some(4, 2), top=top)


def test_numpy_ints_are_ints():  # row 9
    assert lowbit.kmeans(some(9, 2), np.int64(2), seed=np.uint8(3)).codebook.shape == (2, 2)


@pytest.mark.parametrize("offset", [1e8, -3e11])  # row 11
def test_a_large_common_offset(offset, isa):
    x = some(300, 4, 9, np.float64) + offset
    codebook = x[:60] + 1e-3
    codes, distances = lowbit.assign(x, codebook, isa=isa)
    want = reference.assign(x, codebook)
    assert same(codes, want[0])
    assert same(distances, want[1])
    moved = lowbit.kmeans(x, 7, init=x[:7], isa=isa)
    np.testing.assert_allclose(moved.codebook - offset, reference.kmeans(x, 7, init=x[:7]).codebook - offset, atol=1e-3)


def test_huge_and_tiny_magnitudes(isa):  # row 12
    for scale in (1e-200, 1e-30, 1e30, 1e140):
        x = some(200, 3, 10, np.float64) * scale
        fit = lowbit.kmeans(x, 5, init=x[:5], isa=isa)
        assert (
            fit.codes.tolist() == lowbit.kmeans(x / scale, 5, init=x[:5] / scale, isa=isa).codes.tolist()
            or scale < 1e-150
        )
    big = np.array([[3e38], [-3e38], [2e38], [0]], np.float32)
    assert sorted(lowbit.kmeans(big, 3, init=big[[0, 1, 3]], isa=isa).codes.tolist()) == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="exceed float32"):
        lowbit.assign(big, -big[:1], isa=isa)
    with pytest.raises(ValueError, match="exceeds float64"):
        lowbit.kmeans(some(50, 2, 11, np.float64) * 1e200, 2, isa=isa)


def test_layouts(isa):  # rows 18 to 22, 24, 25
    x = some(64, 4, 12)
    codebook = some(9, 4, 13)
    want = lowbit.assign(x, codebook, isa=isa)
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    wide = np.zeros((128, 8), np.float32)
    wide[::2, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (np.asfortranarray(x), raw, wide[::2, ::2], x[::-1].copy()[::-1], x.astype(">f4"), frozen):
        got = lowbit.assign(other, codebook, isa=isa)
        assert same(got[0], want[0])
        assert same(got[1], want[1])
        assert same_fit(lowbit.kmeans(other, 5, isa=isa), lowbit.kmeans(x, 5, isa=isa))
    ones = np.broadcast_to(np.float32(1), (10, 4))
    assert lowbit.assign(ones, ones[:2], isa=isa)[0].tolist() == [0] * 10


@pytest.mark.parametrize(  # rows 28, 29
    "dtype", ["float16", "int8", "uint8", "int16", "uint16", "int32", "int64", "uint32", "float64", ml_dtypes.bfloat16]
)
def test_dtypes(dtype, isa):
    x = (some(100, 3, 14) * 20 + 60).astype(dtype)
    wide = np.dtype(dtype).itemsize >= 4
    fit = lowbit.kmeans(x, 6, init=x[:6], isa=isa)
    assert fit.codebook.dtype == (np.float64 if wide else np.float32)
    codes, distances = lowbit.assign(x, fit.codebook, isa=isa)
    assert same(codes, fit.codes)
    assert same(distances, reference.assign(x.astype(np.float64), fit.codebook)[1])


def test_float64_is_not_cut():  # row 28
    x = np.array([[1.0], [1.0 + 1e-12], [1.0 + 3e-12]])
    assert lowbit.assign(x, x[::-1])[0].tolist() == [2, 1, 0]
    assert lowbit.kmeans(x, 3).codebook.ravel().tolist() == x.ravel().tolist()
    # A float32 codebook and float64 points meet in float64.
    assert lowbit.assign(x, np.array([[1.0], [2.0]], np.float32))[1][1] == np.float32((x[1, 0] - 1.0) ** 2)


@pytest.mark.parametrize("dtype", ["complex64", "bool", "object", "datetime64[s]", "S1", "U1"])  # row 29
def test_dtypes_that_are_refused(dtype):
    bad = np.zeros((3, 2), dtype)
    for call in [
        lambda: lowbit.kmeans(bad, 1),
        lambda: lowbit.assign(bad, some(2, 2)),
        lambda: lowbit.lookup([0], bad),
    ]:
        with pytest.raises(TypeError, match=r"x: |codebook: "):
            call()
    with pytest.raises(TypeError, match="x: "):
        lowbit.kmeans(np.ma.masked_array(some(3, 2)), 1)
    for codes in (np.zeros(3, np.int64), np.zeros(3, np.float32), np.zeros(3, bool)):
        with pytest.raises(TypeError, match="codes: "):
            lowbit.lookup(codes, some(3, 2))


def test_other_containers():  # rows 30, 31
    x, codebook = some(9, 2), some(3, 2)
    want = lowbit.assign(x, codebook)[0]
    for other in (x.tolist(), torch.from_numpy(x), pd.DataFrame(x)):
        assert same(lowbit.assign(other, codebook)[0], want)
    with pytest.raises(TypeError, match="detach"):
        lowbit.assign(torch.from_numpy(x).requires_grad_(), codebook)
    with pytest.raises(ValueError, match="x: "):
        lowbit.assign([[1.0, 2.0], [1.0]], codebook)
    with pytest.raises(TypeError, match="x: "):
        lowbit.assign((row for row in x), codebook)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])  # row 43
def test_codes_beyond_the_codebook(dtype):
    codes = np.zeros(200_000, dtype)
    codes[[150_000, 199_999]] = (7, 100)
    for threads in (1, 7):
        with lowbit.threads(threads), pytest.raises(ValueError, match=r"below 7, .* got 7 at flat index 150000"):
            lowbit.lookup(codes, some(7, 3))


def test_codes_that_another_thread_changes():  # row 60
    codes, codebook = np.zeros(200_000, np.uint32), some(5, 4)
    end = threading.Event()

    def change():
        while not end.is_set():
            codes[::7] = 2**32 - 1
            codes[::7] = 1

    with ThreadPoolExecutor(1) as pool:
        pool.submit(change)
        for _ in range(30):
            try:
                assert np.isin(lowbit.lookup(codes, codebook)[:, 0], codebook[:, 0]).all()
            except ValueError as error:
                assert "codes: " in str(error)  # noqa: PT017
        end.set()


def test_calls_from_many_threads():  # row 59
    x = some(5000, 8)
    want = lowbit.kmeans(x, 40, max_iter=5)
    with ThreadPoolExecutor(6) as pool:
        fits = list(pool.map(lambda _: lowbit.kmeans(x, 40, max_iter=5), range(12)))
    assert all(same_fit(fit, want) for fit in fits)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("k", [256, 5000])
def test_ctrl_c(k, threads):  # row 61
    x = some(400_000, 8)
    lowbit.kmeans(x[:1000], 10)
    sent = []

    def send():
        time.sleep(0.5)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    with lowbit.threads(threads):
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            lowbit.kmeans(x, k, max_iter=10_000, tol=0)
        took = time.monotonic() - sent[0]
    thread.join()
    assert took < 1  # 0.2 s, and what a busy machine adds


def test_more_memory_than_there_is():  # rows 33, 34
    with pytest.raises((MemoryError, ValueError)):
        lowbit.kmeans(np.broadcast_to(np.arange(3, dtype=np.float32)[:, None], (3, 2000)), 2**31 - 1)


def test_results_are_plain_values():  # row 70
    fit = lowbit.kmeans(some(50, 2), 3)
    for other in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        assert same_fit(fit, other)
    assert repr(fit).startswith("KMeans(k=3, d=2, n=50, inertia=")


# ------------------------------------------------------------------ scikit-learn


def estimator():
    pytest.importorskip("sklearn")
    from lowbit.sklearn import KMeans

    return KMeans


def test_the_estimator_passes_scikit_learns_checks():
    KMeans = estimator()
    from sklearn.utils.estimator_checks import check_estimator

    random = "a weight of 2 and a repeated sample draw other starts"
    results = check_estimator(
        KMeans(),
        expected_failed_checks={"check_sample_weight_equivalence_on_dense_data": random},
        on_skip=None,
    )
    assert len(results) > 40


def test_the_estimator_is_kmeans():
    KMeans = estimator()
    x = some(500, 4)
    model = KMeans(9, init=x[:9], tol=0).fit(x)
    want = lowbit.kmeans(x, 9, init=x[:9], tol=0)
    assert same(model.cluster_centers_, want.codebook)
    assert model.labels_.tolist() == want.codes.tolist() == model.predict(x).tolist()
    assert (model.inertia_, model.n_iter_) == (want.inertia, want.n_iter)
    assert model.score(x) == pytest.approx(-want.inertia, rel=1e-6)
    assert model.transform(x).argmin(axis=1).tolist() == want.codes.tolist()
    assert model.get_feature_names_out()[0] == "kmeans0"
    assert same(pickle.loads(pickle.dumps(model)).cluster_centers_, want.codebook)
    assert model.set_params(init="random").fit(some(50, 2)).cluster_centers_.shape == (9, 2)  # row 73: other columns


@pytest.mark.parametrize(("state", "error"), [(-1, ValueError), (2**32, ValueError), (0.5, ValueError)])  # row 71
def test_random_states(state, error):
    KMeans, x = estimator(), some(50, 2)
    with pytest.raises(error):
        KMeans(3, random_state=state).fit(x)
    for fine in (None, 3, np.random.RandomState(3)):
        KMeans(3, random_state=fine).fit(x)
    assert same(*(KMeans(3, random_state=5).fit(x).cluster_centers_ for _ in range(2)))
