"""Levels: published tables, the searches against plain sums, every path of encoding, and misuse."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import lowbit
import ml_dtypes
import numpy as np
import pytest
from lowbit import reference

METHODS = ("optimal", "lloyd_max", "laplace", "gauss", "uniform", "quantile", "pot", "apot")
SEARCHED = ("laplace", "gauss", "uniform", "pot", "apot")


def digits(value: float, expected: str) -> None:
    """``value`` is ``expected`` to the digits that this has."""
    told = f"{value:.{len(expected.partition('.')[2])}f}"
    assert told.removeprefix("0") == expected.removeprefix("0"), value


# ------------------------------------------------------------------ the tables of densities

# Error over variance: the best even steps of 2^b - 1 and of 2^b levels, quantiles, the compander with its
# model's clip, Lloyd-Max. The table's other column, of even steps up to the greatest of 36,864 numbers, is of a sample.
TABLE = """
gauss   2 .1902 .1188 .1449 .1360  .117482
gauss   3 .0469 .0374 .0572 .0390  .034548
gauss   4 .0129 .0115 .0232 .0103  .009501
gauss   5 .0037 .0035 .0096 .00263 .002505
laplace 2 .2642 .1963 .2780 .1942  .176195
laplace 3 .0831 .0717 .1414 .0600  .054476
laplace 4 .0274 .0254 .0713 .0165  .015373
laplace 5 .0091 .0087 .0358 .00428 .004102
"""


@pytest.mark.parametrize("row", TABLE.strip().splitlines())
def test_errors_of_densities(row):
    density, bits, midtread, midrise, quantile, compander, lloyd = row.split()
    n = 2 ** int(bits)
    digits(lowbit.density_levels(density, n - 1, method="uniform").mse, midtread)
    digits(lowbit.density_levels(density, n, method="uniform").mse, midrise)
    digits(lowbit.density_levels(density, n, method="quantile").mse, quantile)
    digits(lowbit.density_levels(density, n, method=density, clip="model").mse, compander)
    digits(lowbit.density_levels(density, n, method="lloyd_max").mse, lloyd)


@pytest.mark.parametrize(
    ("density", "positive"),
    [
        ("gauss", ".4528 1.5104"),
        ("gauss", ".2451 .7560 1.3439 2.1519"),
        ("gauss", ".1284 .3880 .6568 .9423 1.2562 1.6180 2.0690 2.7326"),
        ("laplace", ".4198 1.8340"),
        ("laplace", ".2334 .8330 1.6725 3.0867"),
        ("laplace", ".1240 .4048 .7287 1.1110 1.5778 2.1773 3.0169 4.4311"),
    ],
)
def test_lloyd_max_levels(density, positive):
    expected = positive.split()
    levels = lowbit.density_levels(density, 2 * len(expected)).levels
    for level, told in zip(levels[len(expected) :], expected, strict=True):
        digits(level, told)
    np.testing.assert_array_equal(levels, -levels[::-1])


# By width: the companders' clips in σ; those of ACIQ as its authors' code has them, in σ of the normal, in b of
# the Laplace distribution.
CLIPS = """
2 1.739  2.248 1.71063519 2.83068299
3 2.262  3.315 2.15159277 3.89722946
4 2.784  4.550 2.55913646 5.02864014
5 3.285  5.893 2.93620062 6.20476633
6 3.755  7.296 3.28691474 7.41312622
8 4.606 10.185 3.92403714 9.89675982
"""


@pytest.mark.parametrize("row", CLIPS.strip().splitlines())
def test_clips_of_models(row):
    bits, gauss, laplace, aciq_gauss, aciq_laplace = row.split()
    n = 2 ** int(bits)

    def clip(density: str, method: str) -> float:
        return lowbit.density_levels(density, n, method=method, clip="model").clip

    digits(clip("gauss", "gauss"), gauss)
    digits(clip("laplace", "laplace"), laplace)
    # Theirs is a numerical minimum too: the normal's of 8 bits is 3.9240355.
    assert clip("gauss", "uniform") == pytest.approx(float(aciq_gauss), rel=2e-6)
    assert clip("laplace", "uniform") * math.sqrt(2) == pytest.approx(float(aciq_laplace), rel=2e-6)
    assert clip("laplace", "laplace") == pytest.approx(3 / math.sqrt(2) * math.log(1 + n / math.sqrt(4.5)), rel=1e-6)


def test_searched_clips():
    found = lowbit.density_levels("laplace", 16, method="laplace")
    assert found.mse == pytest.approx(0.015375, abs=1e-8)
    digits(found.clip, "5.78")
    found = lowbit.density_levels("gauss", 16, method="gauss")
    digits(found.mse, ".00950")
    digits(found.clip, "3.32")


@pytest.mark.parametrize("density", ["gauss", "laplace"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_companders_are_within_a_percent_of_lloyd_max(density, bits):
    lloyd = lowbit.density_levels(density, 2**bits).mse
    compander = lowbit.density_levels(density, 2**bits, method=density).mse
    assert lloyd * (1 - 1e-9) <= compander <= 1.005 * lloyd


@pytest.mark.parametrize("density", ["gauss", "laplace"])
def test_error_of_high_resolution(density):
    """N² D comes near Panter and Dite's constant from below."""
    constant = math.sqrt(3) * math.pi / 2 if density == "gauss" else 4.5
    told = [n * n * lowbit.density_levels(density, n).mse for n in (16, 32, 256, 1024)]
    digits(told[0], "2.43" if density == "gauss" else "3.94")
    digits(told[1], "2.565" if density == "gauss" else "4.20")
    assert told == sorted(told)
    assert 0.99 * constant < told[-1] < constant


@pytest.mark.parametrize("density", ["gauss", "laplace"])
@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 31])
def test_densities_as_the_reference_has_them(density, method, n):
    if method == "apot" and n in (1, 2):
        return
    ours, theirs = (lib.density_levels(density, n, method=method) for lib in (lowbit, reference))
    assert ours.mse == pytest.approx(theirs.mse, rel=1e-6)
    np.testing.assert_allclose(ours.levels, theirs.levels, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("n", [1, 2, 3, 64, 257, 4096])
def test_lloyd_max_levels_are_the_means_of_their_cells(n):
    for density in ("gauss", "laplace"):
        levels = lowbit.density_levels(density, n).levels
        assert n == 1 or (np.diff(levels) > 0).all()
        if n <= 257:
            means = reference.levels._Density(density).means(levels)
            np.testing.assert_allclose(levels, means, atol=1e-9)


# ------------------------------------------------------------------ numbers against plain sums

FAMILIES = ("normal", "laplace", "relu", "integers", "offset", "mixture", "outlier", "skewed")


def numbers(family: str, n: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal(n)
    match family:
        case "laplace":
            return rng.laplace(size=n)
        case "relu":
            return np.maximum(x, 0)
        case "integers":
            return rng.integers(-20, 20, n).astype(float)
        case "offset":
            return 1e8 + x
        case "mixture":
            return x * rng.choice([0.1, 1.0, 4.0], n)
        case "outlier":
            x[rng.integers(n)] = rng.choice([-1, 1]) * 10.0 ** rng.integers(2, 12)
            return x
        case "skewed":
            return rng.lognormal(size=n)
        case _:
            return x


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_fits_as_the_reference_has_them(method, family):
    rng = np.random.default_rng(FAMILIES.index(family))
    for case in range(8):
        x = numbers(family, int(rng.integers(20, 400)), rng)
        n = int(rng.choice([3, 4, 7, 8, 15, 16]))
        pin_zero = bool(case % 2)
        weight = rng.choice([0.0, 0.5, 1.0, 3.0], x.size) if case % 4 >= 2 else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lowbit.ConvergenceWarning)
            ours, theirs = (
                lib.fit_levels(x, n, method=method, pin_zero=pin_zero, sample_weight=weight)
                for lib in (lowbit, reference)
            )
        assert ours.levels.shape == (n,)
        assert (np.diff(ours.levels) >= 0).all()
        assert not pin_zero or (ours.levels == 0).any()
        # What is told of the error is true.
        w = np.ones(x.size) if weight is None else weight
        floor = 1e-15 * float(np.abs(x).max()) ** 2
        back = ours.levels[reference.encode(x, ours.levels)]
        assert ours.mse == pytest.approx(np.average((x - back) ** 2, weights=w), rel=1e-8, abs=floor)
        # A search may end in another of the little valleys of few numbers, no worse than by a little.
        slack = 1e-2 if method in (*SEARCHED, "lloyd_max") else 1e-8
        assert ours.mse <= theirs.mse * (1 + slack) + floor


def test_clips_as_the_reference_has_them():
    """Where the error is smooth, the same clip."""
    x = np.random.default_rng(0).laplace(size=20_000)
    for method in SEARCHED:
        ours, theirs = (lib.fit_levels(x, 15, method=method) for lib in (lowbit, reference))
        assert ours.clip == pytest.approx(theirs.clip, rel=1e-4), method
        np.testing.assert_allclose(ours.levels, theirs.levels, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", ["uniform", "pot", "apot"])
@pytest.mark.parametrize("n", [4, 15, 16])
@pytest.mark.parametrize("pin_zero", [False, True])
def test_the_clip_is_the_best_of_a_fine_grid(method, n, pin_zero):
    """These methods' levels are those of one clip times any other."""
    x = np.random.default_rng(n).laplace(size=3000)
    found = lowbit.fit_levels(x, n, method=method, pin_zero=pin_zero)
    centre = x.mean() if method == "uniform" and not pin_zero else 0.0
    for factor in np.linspace(0.25, 4, 301):
        levels = centre + (found.levels - centre) * factor
        error = ((x - levels[reference.encode(x, levels)]) ** 2).mean()
        assert found.mse <= error * (1 + 1e-3)


def test_shapes_of_levels():
    x = np.random.default_rng(1).standard_normal(5000)
    steps = np.diff(lowbit.fit_levels(x, 16, method="uniform").levels)
    np.testing.assert_allclose(steps, steps[0])
    for n in (15, 16):  # mid-tread
        levels = lowbit.fit_levels(x, n, method="uniform", pin_zero=True).levels
        np.testing.assert_allclose(np.diff(levels), levels.max() / np.round(levels.max() / np.diff(levels)[0]))
        assert (levels == 0).sum() == 1
    levels = lowbit.fit_levels(x, 7, method="pot").levels
    np.testing.assert_allclose(levels / levels[-1], [-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    levels = lowbit.fit_levels(x, 4, method="pot").levels
    np.testing.assert_allclose(levels / levels[-1], [-1, -0.5, 0.5, 1])
    # Additive powers of two in 4 bits: {0, 1/2, 1/4, 1/16} + {0, 1/8}, over 5/8.
    levels = lowbit.fit_levels(x, 15, method="apot").levels
    np.testing.assert_allclose(levels[7:] / levels[-1] * 10, [0, 1, 2, 3, 4, 6, 8, 10])
    again = lowbit.fit_levels(x, 16, method="apot").levels
    np.testing.assert_array_equal(again, np.append(levels, levels[-1]))
    # … and in 5: {0, 1/2, 1/8, 1/32} + {0, 1/4, 1/16, 1/64}.
    levels = lowbit.fit_levels(x, 31, method="apot").levels
    sums = [a + b for a in (0, 32, 8, 2) for b in (0, 16, 4, 1)]
    np.testing.assert_allclose(levels[15:] / levels[-1] * 48, sorted(sums))


def test_quantiles_have_as_many_numbers_each():
    x = np.random.default_rng(2).lognormal(size=8000)
    levels = lowbit.fit_levels(x, 8, method="quantile").levels
    np.testing.assert_array_equal(levels, np.quantile(x, (np.arange(8) + 0.5) / 8, method="inverted_cdf"))
    pinned = lowbit.fit_levels(x - 1, 8, method="quantile", pin_zero=True).levels
    assert (pinned == 0).sum() == 1
    assert np.isin(pinned[pinned != 0], x - 1).all()


def in_order(x: np.ndarray, n: int, **options) -> dict[str, float]:
    """The errors of all methods, which are in order."""
    methods = [m for m in METHODS if m != "apot" or n in (3, 4, 7, 8, 15, 16, 31, 32, 63, 64)]
    mse = {m: lowbit.fit_levels(x, n, method=m, **options).mse for m in methods}
    assert mse["optimal"] <= mse["lloyd_max"] * (1 + 1e-9)
    assert all(mse["lloyd_max"] <= other * (1 + 1e-12) for name, other in mse.items() if name != "optimal"), mse
    return mse


@pytest.mark.parametrize("family", ["normal", "laplace", "relu", "mixture", "skewed"])
def test_the_order_of_errors(family):
    x = numbers(family, 4000, np.random.default_rng(3))
    for n in (2, 3, 4, 7, 16, 31, 64):
        for pin_zero in (False, True):
            in_order(x, n, pin_zero=pin_zero)
    in_order(x, 16, sample_weight=np.abs(x) + 0.1)


# ------------------------------------------------------------------ trained layers


def layers() -> dict[str, np.ndarray]:
    """ResNet-20's weights, from LOWBIT_DATA/resnet_cifar10/resnet20.safetensors."""
    path = Path(os.environ.get("LOWBIT_DATA", ""), "resnet_cifar10", "resnet20.safetensors")
    if "LOWBIT_DATA" not in os.environ or not path.is_file():
        pytest.skip("no data: LOWBIT_DATA=FOLDER, with resnet_cifar10/resnet20.safetensors in it")
    from safetensors.numpy import load_file

    return {name: w for name, w in load_file(path).items() if w.ndim > 1}


def test_the_order_of_errors_on_every_layer_of_resnet20():
    weights = layers()
    assert len(weights) >= 20
    for name, w in weights.items():
        for bits in (2, 3, 4, 5, 6):
            for less in (0, 1):
                mse = in_order(w, 2**bits - less, pin_zero=bool(less))
                compander = min(mse["laplace"], mse["gauss"])
                assert compander <= mse["uniform"] * 1.02, (name, bits, mse)


# ------------------------------------------------------------------ encoding


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 15, 16, 17, 32, 33, 64, 255, 256, 257, 3000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16, "int8", "int64"])
def test_codes_on_every_instruction_set(k, dtype, isa, ran):
    rng = np.random.default_rng(k)
    levels = np.sort(rng.integers(-500, 500, k) / 8)
    for n in (0, 1, 7, 31, 32, 33, 1000, 40_000):
        x = (rng.standard_normal(n) * 40).astype(dtype)
        x[: n // 2] = (rng.integers(-500, 500, n // 2) / 16).astype(dtype)  # many on levels and halfway
        codes = lowbit.encode(x, levels, isa=isa)
        expected = reference.encode(x.astype(np.float64), levels)
        np.testing.assert_array_equal(codes, expected)
        assert codes.dtype == expected.dtype == (np.uint8 if k <= 256 else np.uint16)
        np.testing.assert_array_equal(lowbit.decode(codes, levels), levels[codes])
        ran(isa)


def test_float32_numbers_are_compared_with_float64_middles(isa):
    """The middle of these levels is no float32: neither neighbour of it may round onto the other side."""
    levels = np.array([0.1, 0.7])
    middle = np.float32(0.4)
    x = np.array([np.nextafter(middle, np.float32(s)) for s in (0, 1)] + [middle], np.float32)
    np.testing.assert_array_equal(lowbit.encode(x, levels, isa=isa), (x.astype(float) > 0.1 / 2 + 0.7 / 2).astype(int))


def test_ties_go_to_the_lower_level(isa):
    for dtype in (np.float32, np.float64):
        x = np.tile(np.array([-1.5, -0.5, 0.5, 1.5], dtype), 20)
        codes = lowbit.encode(x, [-2.0, -1.0, 0.0, 1.0, 2.0], isa=isa)
        np.testing.assert_array_equal(codes, np.tile([0, 1, 2, 3], 20))


def test_levels_in_any_order(isa):  # row 17
    rng = np.random.default_rng(4)
    x = rng.standard_normal(500)
    for k in (5, 40, 400):
        levels = rng.choice(np.linspace(-2, 2, k), k)  # some twice
        codes = lowbit.encode(x, levels, isa=isa)
        np.testing.assert_array_equal(codes, reference.encode(x, levels))
        np.testing.assert_array_equal(np.abs(x - levels[codes]), np.abs(x[:, None] - levels).min(1))
    assert lowbit.encode([0.1, 5.0], [3.0, 0.0, 3.0, 0.0], isa=isa).tolist() == [1, 0]
    with pytest.raises(ValueError, match="levels: expected finite values, got NaN at flat index 1; 1 in all"):
        lowbit.encode([1.0], [0.0, np.nan], isa=isa)


def test_rows_have_their_own_levels(isa):
    rng = np.random.default_rng(5)
    for k in (3, 16, 300):
        x, levels = rng.standard_normal((7, 333)).astype(np.float32), rng.standard_normal((7, k)).astype(np.float32)
        codes = lowbit.encode(x, levels, isa=isa)
        np.testing.assert_array_equal(codes, np.stack([lowbit.encode(a, b) for a, b in zip(x, levels, strict=True)]))
        np.testing.assert_array_equal(codes, reference.encode(x, levels))
        back = lowbit.decode(codes, levels)
        np.testing.assert_array_equal(back, reference.decode(codes, levels))
        assert back.dtype == np.float32


def test_boundaries_and_a_search_are_encode():
    rng = np.random.default_rng(6)
    for dtype in (np.float32, np.float64):
        levels = rng.standard_normal(50).astype(dtype)
        cuts = lowbit.boundaries(levels)
        assert cuts.dtype == dtype
        np.testing.assert_array_equal(cuts, reference.boundaries(levels))
        x = np.concatenate([rng.standard_normal(1000).astype(dtype), cuts, np.nextafter(cuts, dtype(9))])
        np.testing.assert_array_equal(lowbit.encode(x, np.sort(levels)), np.searchsorted(cuts, x))
    assert lowbit.boundaries([3.0, 1.0]).tolist() == [2.0]
    assert lowbit.boundaries([1.0]).size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("k", [4, 300])
def test_numbers_that_are_not_finite_are_told(value, dtype, k, isa):  # rows 1, 2
    for n in (1, 40, 5000):
        x = np.zeros(n, dtype)
        x[n // 2] = x[-1] = value
        count = len({n // 2, n - 1})
        text = "NaN" if np.isnan(value) else str(value)
        with pytest.raises(
            ValueError, match=f"x: expected finite values, got {text} at flat index {n // 2}; {count} in"
        ):
            lowbit.encode(x, np.arange(k), isa=isa)


# ------------------------------------------------------------------ what others get wrong


@pytest.mark.parametrize("method", METHODS)
def test_equal_numbers(method):  # row 6
    for value in (0.0, 3.0, -0.3):
        for pin_zero in (False, True):
            with pytest.warns(lowbit.ConvergenceWarning, match="1 distinct values for 4 levels"):
                found = lowbit.fit_levels(np.full(50, value), 4, method=method, pin_zero=pin_zero)
            assert found.mse == 0
            assert lowbit.decode(lowbit.encode([value], found.levels), found.levels) == [value]


@pytest.mark.parametrize("method", ["optimal", "lloyd_max", "quantile"])
def test_fewer_distinct_numbers_than_levels(method):  # row 7
    with pytest.warns(lowbit.ConvergenceWarning, match="3 distinct values for 5 levels"):
        found = lowbit.fit_levels([1.0, 2.0, 2.0, 9.0], 5, method=method)
    assert found.levels.tolist() == [1, 2, 9, 9, 9]
    with pytest.warns(lowbit.ConvergenceWarning, match="in 1 of 2 rows"):
        lowbit.fit_levels_rows([[1.0, 1.0], [1.0, 2.0]], 2, method=method)


@pytest.mark.parametrize("method", METHODS)
def test_one_number_and_one_level(method):  # rows 5, 10
    if method != "apot":
        found = lowbit.fit_levels([1.0, 2.0, 6.0], 1, method=method)
        expected = {"pot": 0.0, "quantile": 2.0, "laplace": 2.0}.get(method, 3.0)
        assert found.levels.tolist() == [pytest.approx(expected)]
        assert lowbit.fit_levels([1.0, 2.0], 1, method=method, pin_zero=True).levels.tolist() == [0.0]
    with pytest.warns(lowbit.ConvergenceWarning):
        assert lowbit.fit_levels([5.0], 3, method=method).mse == 0


@pytest.mark.parametrize("method", METHODS)
def test_scale_and_offset(method):  # rows 11 to 13
    x = np.random.default_rng(8).standard_normal(500)
    plain = lowbit.fit_levels(x, 8, method=method)
    for scale in (2.0**600, 2.0**-600, 2.0**-1030):
        if scale > 1:
            with pytest.raises(ValueError, match="more than float64 holds"):
                lowbit.fit_levels(x * scale, 8, method=method)
            continue
        # Squares vanish; levels do not.
        np.testing.assert_allclose(
            lowbit.fit_levels(x * scale, 8, method=method).levels / scale, plain.levels, rtol=1e-3
        )
    scaled = lowbit.fit_levels(x * 2.0**450, 8, method=method)
    np.testing.assert_array_equal(scaled.levels, plain.levels * 2.0**450)
    assert scaled.mse == plain.mse * 2.0**900
    if "pot" not in method:
        moved = lowbit.fit_levels(1e8 + x, 8, method=method)
        assert moved.mse == pytest.approx(plain.mse, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-300, 1e306])
def test_the_scale_of_weights_does_not_matter(method, scale):
    x = np.random.default_rng(14).standard_normal(400) * 1e-9
    weight = np.random.default_rng(15).random(400)
    plain, scaled = (lowbit.fit_levels(x, 7, method=method, sample_weight=w) for w in (weight, weight * scale))
    np.testing.assert_allclose(scaled.levels, plain.levels, rtol=1e-9)
    assert scaled.mse == pytest.approx(plain.mse, rel=1e-9)


def test_outliers_do_not_blind_the_search():
    x = np.random.default_rng(9).standard_normal(3000)
    x[7] = 1e12
    for method in METHODS:
        found = lowbit.fit_levels(x, 16, method=method)
        back = found.levels[lowbit.encode(x, found.levels)]
        assert found.mse == pytest.approx(((x - back) ** 2).mean(), rel=1e-6)
    assert lowbit.fit_levels(x, 16, method="lloyd_max").mse < 1e24 / 3000


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(threads):
    rng = np.random.default_rng(10)
    x, rows = rng.laplace(size=200_000).astype(np.float32), rng.standard_normal((40, 300))
    for method in METHODS:
        with lowbit.threads(1):
            expected = lowbit.fit_levels(x, 16, method=method), lowbit.fit_levels_rows(rows, 16, method=method)
        with lowbit.threads(threads):
            found = lowbit.fit_levels(x, 16, method=method), lowbit.fit_levels_rows(rows, 16, method=method)
            codes = lowbit.encode(x, found[0].levels)
        for a, b in zip(found, expected, strict=True):
            assert a.levels.tobytes() == b.levels.tobytes()
            assert np.asarray(a.mse).tobytes() == np.asarray(b.mse).tobytes()
        np.testing.assert_array_equal(codes, reference.encode(x, found[0].levels))


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_fits_one_by_one(method):
    rng = np.random.default_rng(11)
    x = rng.standard_normal((5, 400)).astype(np.float32)
    for weight in (None, rng.random(400), rng.random((5, 400))):
        for pin_zero in (False, True):
            found = lowbit.fit_levels_rows(x, 8, method=method, pin_zero=pin_zero, sample_weight=weight)
            for i, row in enumerate(x):
                w = weight if weight is None or weight.ndim == 1 else weight[i]
                own = lowbit.fit_levels(row, 8, method=method, pin_zero=pin_zero, sample_weight=w)
                np.testing.assert_array_equal(found.levels[i], own.levels)
                assert found.mse[i] == own.mse
                np.testing.assert_equal(found.clip[i], own.clip)
    weight = np.ones((5, 400))
    weight[2] = 0
    with pytest.warns(RuntimeWarning, match="all 0 in 1 of 5 rows"):
        found = lowbit.fit_levels_rows(x, 8, method=method, sample_weight=weight)
    np.testing.assert_array_equal(found.levels, lowbit.fit_levels_rows(x, 8, method=method).levels)


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16, "int8", "int16", "int32", "float64"])
def test_dtypes(dtype):  # row 28
    x = (np.random.default_rng(12).standard_normal((20, 30)) * 9).astype(dtype)
    wide = x.dtype.itemsize >= 4 and dtype != "float32"
    found, expected = (lowbit.fit_levels(a, 6, method="lloyd_max") for a in (x, x.astype(np.float64)))
    assert found.levels.dtype == (np.float64 if wide else np.float32)
    np.testing.assert_array_equal(found.levels, expected.levels.astype(found.levels.dtype))


def test_layouts_that_are_not_plain():  # rows 18 to 25
    x = np.random.default_rng(13).standard_normal((6, 8))
    expected = lowbit.fit_levels(x.copy(), 3, method="lloyd_max")
    read_only = x.copy()
    read_only.flags.writeable = False
    for view in (np.asfortranarray(x), x[::-1, ::-1], x.astype(">f8"), read_only, x.tolist()):
        np.testing.assert_array_equal(lowbit.fit_levels(view, 3, method="lloyd_max").levels, expected.levels)
        codes = lowbit.encode(view, expected.levels)
        np.testing.assert_array_equal(codes, reference.encode(np.asarray(view), expected.levels))
        np.testing.assert_array_equal(lowbit.decode(codes[::-1], expected.levels), expected.levels[codes[::-1]])
    assert lowbit.encode(np.empty((0, 4)), [1.0]).shape == (0, 4)
    assert lowbit.encode(np.empty((0, 4)), np.empty((0, 2))).shape == (0, 4)
    assert lowbit.encode(np.empty((3, 0)), np.ones((3, 2))).shape == (3, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"x": np.empty(0)}, ValueError, r"x: expected at least one value, got shape \(0,\)"),
        ({"x": 3.0}, ValueError, "x: expected at least 1-D"),
        ({"x": np.array([1 + 2j])}, TypeError, "x: expected dtype"),
        ({"x": np.array([True])}, TypeError, "x: expected dtype"),
        ({"x": np.ma.masked_array([1.0, 2.0], [0, 1])}, TypeError, "masked"),
        ({"x": [1.0, np.nan]}, ValueError, "x: expected finite values, got NaN at index 1; 1 in all"),
        ({"x": [1.0, -np.inf]}, ValueError, "x: expected finite values, got -inf at index 1; 1 in all"),
        ({"n_levels": 0}, ValueError, "n_levels: expected 1 to 65536, got 0"),
        ({"n_levels": 65_537}, ValueError, "n_levels: expected 1 to 65536"),
        ({"n_levels": 2.0}, TypeError, "n_levels: expected an int"),
        ({"n_levels": True}, TypeError, "n_levels: expected an int"),
        ({"n_levels": 300, "method": "pot"}, ValueError, "expected 1 to 256 for method 'pot', got 300"),
        ({"n_levels": 5, "method": "apot"}, ValueError, r"n_levels: expected 2\*\*b or 2\*\*b - 1"),
        ({"method": "best"}, ValueError, "method: expected one of optimal, lloyd_max, .*, got 'best'"),
        ({"sample_weight": [1.0]}, ValueError, r"sample_weight: expected shape \(3,\), got \(1,\)"),
        ({"sample_weight": [1.0, np.nan, 1.0]}, ValueError, "sample_weight: expected finite"),
        ({"sample_weight": [1.0, -1.0, 1.0]}, ValueError, "sample_weight: expected no negative weight"),
        ({"sample_weight": [0.0, 0.0, 0.0]}, ValueError, "zeros alone"),
    ],
)
def test_misuse_of_fits(arguments, error, told):
    with pytest.raises(error, match=told):
        lowbit.fit_levels(**{"x": [1.0, 2.0, 3.0], "n_levels": 2, "method": "uniform"} | arguments)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: lowbit.fit_levels_rows([1.0, 2.0], 2, method="gauss"), ValueError, r"x: expected shape \(rows, n\)"),
        (
            lambda: lowbit.density_levels("cauchy", 4),
            ValueError,
            "density: expected 'gauss' or 'laplace', got 'cauchy'",
        ),
        (lambda: lowbit.density_levels("gauss", 4, clip="no"), ValueError, "clip: expected 'search' or 'model'"),
        (lambda: lowbit.density_levels("gauss", 4, clip="model"), ValueError, "clip: 'model' is for method 'uniform'"),
        (
            lambda: lowbit.density_levels("gauss", 4, method="laplace", clip="model"),
            ValueError,
            "and for the density's own",
        ),
        (lambda: lowbit.density_levels("gauss", 4, method="optimal"), ValueError, "'lloyd_max' is the optimum"),
        (lambda: lowbit.density_levels("gauss", 5000), ValueError, "n_levels: expected 1 to 4096 for a density"),
        (lambda: lowbit.density_levels("gauss", 0), ValueError, "n_levels: expected 1 to 65536, got 0"),
        (lambda: lowbit.encode([1.0], []), ValueError, "levels: expected 1 to 65536"),
        (
            lambda: lowbit.encode([1.0], np.zeros((1, 2, 3))),
            ValueError,
            r"levels: expected shape \(k,\) or \(rows, k\)",
        ),
        (lambda: lowbit.encode([1.0], np.zeros((1, 3))), ValueError, r"x: expected shape \(1, n\) for levels of"),
        (lambda: lowbit.encode([1.0], [1.0], isa="mmx"), ValueError, "isa: expected one of"),
        (lambda: lowbit.encode([[1.0], [1.0, 2.0]], [1.0]), ValueError, "ragged"),
        (lambda: lowbit.encode(["a"], [1.0]), TypeError, "x: expected"),
        (
            lambda: lowbit.decode([0, 3], [1.0, 2.0]),
            ValueError,
            "codes: expected codes below 2, .* got 3 at flat index 1",
        ),
        (
            lambda: lowbit.decode([[0, 1], [1, 2]], [[1.0, 2.0]] * 2),
            ValueError,
            "codes below 2, .* got 2 at flat index 3",
        ),
        (lambda: lowbit.decode([0.5], [1.0]), TypeError, "codes: expected"),
        (lambda: lowbit.decode([-1], [1.0]), ValueError, "codes: expected values of 0 to 65535"),
        (
            lambda: lowbit.boundaries([1.0, np.nan]),
            ValueError,
            "levels: expected finite values, got nan at flat index 1",
        ),
        (lambda: lowbit.boundaries([[1.0]]), ValueError, r"levels: expected shape \(k,\)"),
    ],
)
def test_misuse(call, error, told):
    with pytest.raises(error, match=told):
        call()
