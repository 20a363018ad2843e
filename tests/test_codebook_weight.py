"""Weights whose codes stand for entries of tables: every instruction set against the
reference, what is learned, and misuse.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import lowbit
import ml_dtypes
import numpy as np
import pytest
from lowbit import _tables, reference
from lowbit.config import from_json
from lowbit.weights import group_size_of, tables_of

FORMS = [
    lowbit.Codebook(nbits, granularity, group_size, activation=activation, equalize=equalize, rotate=rotate)
    for nbits, granularity, group_size, equalize, rotate in [
        (2, "tensor", 64, True, None),
        (3, "tensor", 48, False, None),
        (4, "tensor", 64, True, "hadamard"),
        (4, "tensor", None, False, None),
        (8, "tensor", 64, True, None),
        (2, "channel", None, False, None),
        (3, "channel", 64, True, None),
        (4, "channel", 32, False, "hadamard"),
        (4, "group", 64, True, None),
        (3, "group", 16, False, None),
        (8, "channel", None, False, None),
    ]
    for activation in ("int8", None)
]
QUIET = pytest.mark.filterwarnings("ignore::lowbit.ConvergenceWarning")  # tables of more entries than weights


def weights(seed: int, n: int, k: int) -> np.ndarray:
    """Of rows and groups of several sizes, not centred, a few large."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k)) * rng.lognormal(0, 0.5, (n, 1)) + 0.2 * rng.normal(size=(n, 1))
    w[rng.random((n, k)) < 0.002] *= 8
    return w.astype(np.float32)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a.astype("f8") - b) / np.linalg.norm(b))


def referenced(weight: lowbit.CodebookWeight) -> reference.CodebookWeight:
    return reference.CodebookWeight(weight.tiled, weight.k, weight.n, weight.config, weight.codebook)


@QUIET
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_layers_equal_the_reference(config, isa, ran):
    for seed, (m, n, k) in enumerate([(1, 64, 64), (3, 5, 130), (7, 130, 96), (33, 70, 200), (200, 17, 520)]):
        rng = np.random.default_rng(seed)
        ours = lowbit.quantize_weight(weights(seed, n, k), config, isa=isa)
        ref = referenced(ours)
        assert np.array_equal(ours.codes(), ref.codes())
        assert np.array_equal(ours.dequantize(), ref.dequantize())
        x, bias = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=n).astype(np.float32)
        got, want = (run(x, w, bias, activation="relu") for run, w in ((lowbit.linear, ours), (reference.linear, ref)))
        got = lowbit.linear(x, ours, bias, activation="relu", isa=isa)
        if config.activation is None:
            size = np.abs(x) @ np.abs(ours.dequantize()).T
            assert (np.abs(got - want) <= 2.0**-22 * k * (size + 1)).all()
        else:
            assert got.tobytes() == want.tobytes()
        for row in (0, m - 1):
            assert (
                lowbit.linear(x[row : row + 1], ours, bias, activation="relu", isa=isa).tobytes() == got[row].tobytes()
            )
        ran(isa)


@QUIET
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_the_bytes_do_not_depend_on_threads_or_instruction_set(config):
    w = weights(7, 90, 200)
    made = []
    for isa in lowbit.available_isas():
        for threads in (1, 2, 7):
            with lowbit.threads(threads):
                ours = lowbit.quantize_weight(w, config, isa=isa)
                made.append((ours.tiled.tobytes(), ours.codebook.tobytes()))
    assert len(set(made)) == 1


@QUIET
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_no_size_that_is_tried_is_better(config, isa, ran):
    """A group's multiplier against ten sizes of either sign; and each code names its nearest level."""
    config = dataclasses.replace(config, equalize=False, rotate=None)
    w, unit = weights(3, 12, 144), np.ones(12, np.float32)
    ours = lowbit.quantize_weight(w, config, isa=isa)
    codes, multipliers, _, scale = ours.untile()
    size, x = group_size_of(config, 144), (w / scale[:, None]).astype("f8")
    largest = np.abs(ours.codebook[..., 0].astype("f8")).max(1) / (128 if config.activation is not None else 1)

    def levels(multipliers):
        return _tables._levels(ours.codebook, (codes, multipliers, None, unit), config).astype("f8")

    chosen = levels(multipliers)
    for group in range(multipliers.shape[1]):
        part = x[:, group * size : (group + 1) * size]
        off = np.abs(part[..., None] - chosen[:, group, None])
        if config.activation is None:  # else codes may have been moved
            named = np.take_along_axis(off, codes[:, group * size : (group + 1) * size, None].astype(int), 2)[..., 0]
            assert (named <= off.min(2) + 1e-5 * np.abs(part).max()).all()
        error = (off.min(2) ** 2).sum(1)
        table = {
            "tensor": np.zeros(12, int),
            "channel": np.arange(12),
            "group": np.arange(12) * multipliers.shape[1] + group,
        }
        step = np.abs(part).max(1) / largest[table[config.granularity]]
        for i in range(10):
            sizes = np.clip(np.rint(step * (17 - i) / 16), 1, 127)
            for sign in (1, -1):
                tried = np.repeat((sign * sizes + 128).astype(np.uint8)[:, None], multipliers.shape[1], 1)
                other = levels(tried)[:, group, None]
                worse = (np.abs(part[..., None] - other).min(2) ** 2).sum(1)
                assert (error <= worse * 1.001 + 1e-6).all(), (group, i, sign)
        ran(isa)


@QUIET
def test_integers_are_the_weight():
    """With levels that int8 holds, nothing is lost."""
    rng = np.random.default_rng(0)
    table = np.array([-127, -60, -40, -21, -10, -5, -2, 0, 3, 6, 9, 20, 33, 58, 90, 127], np.int8)
    codes = rng.integers(0, 16, (32, 128))
    codes[:, ::64] = 15
    w = table[codes].astype(np.float32)
    ours = lowbit.quantize_weight(w, lowbit.Codebook(4, activation=None, equalize=False))
    assert relative(ours.dequantize(), w) < 0.005
    given = lowbit.quantize_weight(
        w, lowbit.Codebook(4, activation=None, equalize=False), codebook=(table / 127).astype(np.float32)[None, :, None]
    )
    assert np.array_equal(given.codes(), codes)


@QUIET
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("nbits", [2, 3, 4, 8])
def test_tables_of_bfloat16_are_those_of_float32(nbits, granularity, isa, ran):
    """The same entries as bfloat16: the same products, rows and codes, bit for bit."""
    for n, k, size in ((35, 200, 64), (16, 96, 32), (70, 130, 48), (2, 700, 128), (49, 576, 192), (33, 300, 64)):
        w = weights(nbits, n, k)
        config = lowbit.Codebook(nbits, granularity, group_size=size, activation=None)
        ours = lowbit.quantize_weight(w, config)
        short = dataclasses.replace(ours, codebook=ours.codebook.astype(ml_dtypes.bfloat16))
        assert np.array_equal(short.codebook.astype(np.float32), ours.codebook)
        assert np.array_equal(short.dequantize(), ours.dequantize())
        for m in (1, 2, 5, 17, 40):
            x = np.random.default_rng(m).standard_normal((m, k), dtype=np.float32)
            expected = lowbit.linear(x, ours, isa=isa)
            assert np.array_equal(lowbit.linear(x, short, isa=isa), expected)
            np.testing.assert_allclose(reference.linear(x, referenced(short)), expected, rtol=1e-4, atol=1e-4)
        given = lowbit.quantize_weight(w, config, codebook=short.codebook)
        assert given.codebook.dtype == ml_dtypes.bfloat16
        assert np.array_equal(given.codes(), lowbit.quantize_weight(w, config, codebook=ours.codebook).codes())
    ran(isa, 20)


@pytest.mark.parametrize("nbits", [2, 3, 4])
@pytest.mark.parametrize("activation", ["int8", None])
def test_tables_of_smaller_parts_are_nearer(nbits, activation):
    w = weights(1, 96, 256)
    forms = [lowbit.Codebook(nbits, g, activation=activation) for g in ("tensor", "channel", "group")]
    errors = [relative(lowbit.quantize_weight(w, form).dequantize(), w) for form in forms]
    assert errors[0] > errors[1] > errors[2]
    uniform = relative(lowbit.quantize_weight(w, lowbit.Uniform(nbits, 64)).dequantize(), w)
    assert errors[0] < uniform


def test_a_table_is_learned_from_important_inputs():
    w, counts = weights(2, 64, 128), np.where(np.arange(128) < 16, 1000.0, 1.0)
    config = lowbit.Codebook(3, equalize=False)
    plain, weighted = (lowbit.quantize_weight(w, config, importance=c).dequantize() for c in (None, counts))
    assert relative(weighted[:, :16], w[:, :16]) < 0.9 * relative(plain[:, :16], w[:, :16])


@pytest.mark.parametrize(
    "config", [lowbit.Codebook(3), lowbit.Codebook(4, "channel"), lowbit.Codebook(3, rotate="hadamard")], ids=str
)
def test_second_moments_lessen_the_error_of_outputs(config, isa, ran):
    rng = np.random.default_rng(4)
    x = rng.normal(size=(600, 128)) @ (rng.normal(size=(128, 128)) * rng.lognormal(0, 1, 128))
    w, second = weights(5, 40, 128), x.T @ x
    fed, plain = (
        lowbit.quantize_weight(w, config, isa=isa, **how)
        for how in ({"second_moments": second}, {"importance": second.diagonal()})
    )
    errors = [float((((q.dequantize() - w) @ second) * (q.dequantize() - w)).sum()) for q in (fed, plain)]
    assert errors[0] < 0.7 * errors[1]
    ran(isa)


@pytest.mark.parametrize("config", [lowbit.Codebook(3), lowbit.Codebook(4, "channel", 32, activation=None)], ids=str)
def test_what_is_refined_never_rises(config):
    """Nor without data, where it is the weight's error. Codes that are moved so that four
    products fit 16 bits may cost a little: none in floats."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(600, 96)) @ (rng.normal(size=(96, 96)) * rng.lognormal(0, 1, 96))
    w, second = weights(5, 60, 96), x.T @ x
    damped = second / np.trace(second) * 96 + 0.1 * np.eye(96)
    config = dataclasses.replace(config, equalize=False)
    for moments, matrix in ((second, damped), (None, np.eye(96))):
        errors = []
        for refine in range(5):
            ours = lowbit.quantize_weight(w, dataclasses.replace(config, refine=refine), second_moments=moments)
            off = ours.dequantize() - w.astype("f8")
            errors.append(float(((off @ matrix) * off).sum()))
        slack = 1e-6 if config.activation is None else 1e-3
        assert all(b <= a * (1 + slack) for a, b in itertools.pairwise(errors)), errors
        if moments is not None:
            assert errors[-1] < 0.995 * errors[0]


def test_inputs_none_of_which_counts():
    w = weights(3, 20, 64)
    counted, plain = (lowbit.quantize_weight(w, lowbit.Codebook(4), importance=c) for c in (np.zeros(64), None))
    assert relative(counted.dequantize(), w) < 1.3 * relative(plain.dequantize(), w)


def test_a_table_serves_several_weights():
    first, second = weights(8, 48, 128), weights(9, 20, 192)
    config = lowbit.Codebook(4)
    own = lowbit.quantize_weight(second, config)
    shared = lowbit.quantize_weight(second, config, codebook=lowbit.quantize_weight(first, config).codebook)
    assert shared.codebook.shape == (1, 16, 1)
    assert (
        relative(own.dequantize(), second)
        <= relative(shared.dequantize(), second)
        < 1.2 * relative(own.dequantize(), second)
    )


def test_four_products_fit_16_bits():
    """The quantizer sees to it; the header says so."""
    for config in (lowbit.Codebook(4), lowbit.Codebook(2, "group")):
        ours = lowbit.quantize_weight(
            np.ones((16, 128), np.float32) * np.linspace(0.5, 1, 128, dtype=np.float32), config
        )
        assert ours.tiled[36] == 4
        x = np.full((200, 128), 3.0, np.float32)
        assert np.array_equal(lowbit.linear(x, ours), reference.linear(x, referenced(ours)))


@QUIET
@pytest.mark.parametrize("nbits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -1e30, 3.4e38, 1e-45])
def test_constant_weights(nbits, granularity, value):
    w = np.full((5, 70), value, np.float32)
    ours = lowbit.quantize_weight(w, lowbit.Codebook(nbits, granularity)).dequantize()
    assert np.allclose(ours, w, rtol=0.02, atol=1e-37)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ["int8", None])
def test_a_bad_row_is_nan_and_no_other(bad, activation, isa, ran):  # row 87
    ours = lowbit.quantize_weight(weights(0, 20, 96), lowbit.Codebook(4, activation=activation))
    clean = np.random.default_rng(1).normal(size=(9, 96)).astype(np.float32)
    x = clean.copy()
    x[4, 17] = bad
    got, want = lowbit.linear(x, ours, isa=isa), lowbit.linear(clean, ours, isa=isa)
    assert np.isnan(got[4]).all()
    assert np.array_equal(np.delete(got, 4, 0), np.delete(want, 4, 0))
    ran(isa)


def test_configs_go_through_json():
    for config in FORMS:
        assert from_json(config.to_json()) == config


W = np.ones((4, 64), np.float32)
C = lowbit.Codebook(4)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: lowbit.Codebook(5), ValueError, "nbits: expected 2, 3, 4 or 8, got 5"),
        (lambda: lowbit.Codebook(4.0), TypeError, "nbits: expected an int"),
        (lambda: lowbit.Codebook(4, "row"), ValueError, "granularity: expected 'tensor', 'channel' or 'group'"),
        (lambda: lowbit.Codebook(4, group_size=24), ValueError, "group_size: expected a multiple of 16"),
        (lambda: lowbit.Codebook(4, refine=-1), ValueError, "refine: expected at least 0, got -1"),
        (lambda: lowbit.Codebook(4, activation="int8_group"), ValueError, "activation: expected 'int8' or None"),
        (lambda: lowbit.Codebook(4, rotate=True), ValueError, "rotate: expected None or 'hadamard'"),
        (lambda: lowbit.quantize_weight(W * np.nan, C), ValueError, "w: expected finite"),
        (lambda: lowbit.quantize_weight(W, lowbit.Uniform(4), codebook=[[[0]]]), ValueError, "codebook: expected None"),
        (
            lambda: lowbit.quantize_weight(W, C, codebook=np.zeros((1, 8, 1), np.int8)),
            ValueError,
            r"codebook: expected shape \(1, 16, 1\), got \(1, 8, 1\)",
        ),
        (lambda: lowbit.quantize_weight(W, C, codebook=np.zeros((1, 16, 1), "f4")), TypeError, "codebook"),
        (
            lambda: lowbit.quantize_weight(W, C, codebook=np.arange(16, 0, -1).astype(np.int8)[None, :, None]),
            ValueError,
            "codebook: expected finite entries, ascending",
        ),
        (
            lambda: lowbit.quantize_weight(
                W, lowbit.Codebook(4, activation=None), codebook=np.full((1, 16, 1), np.nan, np.float32)
            ),
            ValueError,
            "codebook: expected finite entries, ascending",
        ),
        (lambda: lowbit.quantize_weight(W, C, importance=-np.ones(64)), ValueError, "importance: expected 64 finite"),
    ],
)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_bytes_that_are_no_weights_are_refused():  # row 43
    """Whatever the header says, nothing is read past the bytes or the tables."""
    ours = lowbit.quantize_weight(weights(0, 20, 96), lowbit.Codebook(4, "group"))
    x = np.ones((3, 96), np.float32)
    with pytest.raises(ValueError, match="codebook: expected shape"):
        lowbit.CodebookWeight(ours.tiled, 96, 20, ours.config, ours.codebook[:-1])
    for dtype in (np.float32, np.uint16, np.float16):
        with pytest.raises(TypeError, match="codebook"):
            lowbit.CodebookWeight(ours.tiled, 96, 20, ours.config, ours.codebook.astype(dtype))
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = ours.tiled.copy()
        bad[rng.integers(0, 64)] = rng.integers(0, 256)
        try:
            got = lowbit.linear(x, lowbit.CodebookWeight(bad, 96, 20, ours.config, ours.codebook))
        except ValueError:
            continue
        assert got.shape == (3, 20)


def test_tables_of_a_weight_are_counted():
    assert [tables_of(lowbit.Codebook(4, g), 10, 130) for g in ("tensor", "channel", "group")] == [1, 10, 30]
