"""Series: `expand` and `reconstruct` against the reference, layers against their definition, whole models."""

from __future__ import annotations

import copy
import functools
import itertools

import lowbit
import numpy as np
import pytest
from lowbit import PerAxis, PerGroup, PerTensor, reference

ISAS = lowbit.available_isas()
FORMS = [(2, 1), (2, 4), (3, 2), (4, 1), (4, 2), (4, 4), (5, 3), (8, 1), (8, 3), (8, 4), (2, 16)]
GRANULARITIES = [PerTensor(), PerAxis(0), PerAxis(-1), PerGroup(7), PerGroup(100)]


def some(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, shape).astype(np.float32)


def spread(values, shape, granularity):
    if isinstance(granularity, PerGroup):
        return np.repeat(values, granularity.group_size, axis=-1)[..., : shape[-1]]
    if isinstance(granularity, PerAxis):
        return np.moveaxis(
            np.broadcast_to(values, (*np.delete(shape, granularity.axis), len(values))), -1, granularity.axis
        )
    return values


# ------------------------------------------------------------------ arrays


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "terms"), FORMS)
def test_expand_equals_the_reference(bits, terms, symmetric, granularity, ran):
    for x in (some(5, 30), some(2, 3, 17).astype(np.float64) * 1e-3 + 1, np.zeros((2, 9), np.float32)):
        want = reference.expand(x, bits, terms, granularity=granularity, symmetric=symmetric)
        for isa in ISAS:
            got = lowbit.expand(x, bits, terms, granularity=granularity, symmetric=symmetric, isa=isa)
            for name in ("codes", "scale", "zero_point", "positions", "steps"):
                a, b = getattr(got, name), getattr(want, name)
                assert a.dtype == b.dtype or name in ("positions", "steps")
                assert np.array_equal(a, b), (name, isa)
            ran(isa)
        for count in range(terms + 1):
            back = lowbit.reconstruct(want, terms=count, dtype=np.float64)
            assert np.allclose(back, reference.reconstruct(want, terms=count, dtype=np.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "terms"), FORMS)
def test_no_error_exceeds_the_bound_and_0_is_exact(bits, terms, symmetric, granularity, clip):
    x = some(6, 211, seed=terms) + np.float32(0.5)
    x[:, 3] = 0
    series = lowbit.expand(x, bits, terms, granularity=granularity, symmetric=symmetric, clip=clip)
    assert (len(series.positions) > 0) == (clip is not None and granularity != PerAxis(-1)) or isinstance(
        granularity, (PerGroup, PerAxis)
    )
    for count in range(1, terms + 1):
        error = np.abs(lowbit.reconstruct(series, terms=count, dtype=np.float64) - x)
        assert (error <= spread(series.bound(count), x.shape, granularity)).all()
    assert not lowbit.reconstruct(series)[:, 3].any()
    digits = series.digits()
    assert digits.min() >= -(2 ** (bits - 1))
    assert digits.max() < 2 ** (bits - 1)


def test_each_term_makes_the_largest_error_2_to_the_bits_smaller():
    x = some(100_000, seed=3)
    for bits, most in ((2, 11), (3, 7), (4, 5), (8, 2)):
        series = [lowbit.expand(x, bits, terms) for terms in range(1, most + 1)]
        errors = [np.abs(lowbit.reconstruct(one, dtype=np.float64) - x).max() for one in series]
        bounds = np.array([one.bound() for one in series])
        assert (errors <= bounds).all()
        assert (errors > 0.98 * bounds).all()  # no less: it tells the error
        # The first terms' scales have divisors that are a little off.
        assert np.allclose(bounds[3:-1] / bounds[4:], 2**bits, rtol=0.01)
        assert (bounds[:-1] / bounds[1:] > 0.98 * 2**bits).all()


def test_terms_and_their_sum_are_what_they_say():
    x = some(4, 50)
    for kwargs in ({}, {"symmetric": False}, {"granularity": PerAxis(0)}):
        series = lowbit.expand(x, 3, 3, **kwargs)
        wide = [s[..., None] if s.ndim else s for s in (*series.scales(), series.bias)]
        total = sum(s * d for s, d in zip(wide, series.digits(), strict=False)) + wide[-1]
        assert np.allclose(total, lowbit.reconstruct(series, dtype=np.float64), rtol=0, atol=1e-12)
    assert repr(series) == "Expansion(shape=(4, 50), bits=3, terms=3, saturated=0)"
    assert not lowbit.expand(x, 3, 3).bias.any()


def test_the_series_is_one_code_of_all_bits():
    x = some(300)
    series = lowbit.expand(x, 4, 2, symmetric=False)
    merged = (series.codes[0].astype(int) << 4) | series.codes[1]
    qparams = lowbit.QParams(series.scale, series.zero_point.astype(np.int32), 8, 0, 255, PerTensor(), False)
    assert np.abs(merged - lowbit.quantize(x, qparams)).max() <= 1  # multiplied there, divided here
    assert np.abs(lowbit.dequantize(merged.astype(np.uint8), qparams) - lowbit.reconstruct(series)).max() < 1e-6


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        (([1.0], 1, 2), ValueError, "bits: expected 2 to 8, got 1"),
        (([1.0], 9, 1), ValueError, "bits"),
        (([1.0], 4, 0), ValueError, "terms: expected 1 to 8"),
        (([1.0], 4, 9), ValueError, "terms: expected 1 to 8, got 9"),
        (([1.0], 4.0, 1), TypeError, "bits"),
        (([np.nan], 4, 2), ValueError, "x: expected finite values, got 1"),
        (([np.inf, 1], 4, 2), ValueError, "x: expected finite"),
        (([], 4, 2), ValueError, "x"),
        (([1], 4, 2), TypeError, "x"),
        (([1e300], 4, 2), ValueError, "x: expected a range whose scale"),
    ],
)
def test_bad_arrays_are_refused(args, error, words):
    x = np.array(args[0], np.int64 if args[0] == [1] else np.float64)
    with pytest.raises(error, match=words):
        lowbit.expand(x, *args[1:])


def test_bad_options_are_refused():
    x = some(3, 4)
    for clip, error in ((0, ValueError), (-1.0, ValueError), (np.inf, ValueError), ("2", TypeError), (True, TypeError)):
        with pytest.raises(error, match="clip"):
            lowbit.expand(x, 4, 2, clip=clip)
    with pytest.raises(TypeError, match="symmetric"):
        lowbit.expand(x, 4, 2, symmetric=1)
    with pytest.raises(ValueError, match="axis"):
        lowbit.expand(x, 4, 2, granularity=PerAxis(2))
    with pytest.raises(ValueError, match="isa"):
        lowbit.expand(x, 4, 2, isa="mmx")
    series = lowbit.expand(x, 4, 2)
    with pytest.raises(ValueError, match="terms"):
        lowbit.reconstruct(series, terms=3)
    with pytest.raises(TypeError, match="expansion"):
        lowbit.reconstruct(x)
    with pytest.raises(TypeError, match="dtype"):
        lowbit.reconstruct(series, dtype=np.int32)


def test_threads_and_layouts_change_nothing():
    x = some(70_000, 7).T
    want = lowbit.expand(np.ascontiguousarray(x), 4, 3, granularity=PerAxis(1))
    for threads in (1, 2, 7):
        with lowbit.threads(threads):
            assert np.array_equal(lowbit.expand(x, 4, 3, granularity=PerAxis(1)).codes, want.codes)


def test_rows_of_few_bits(isa):
    x = some(9, 333)
    for nbits in range(2, 9):
        for symmetric in (False, True):
            want = reference.quantize_rows(x, nbits=nbits, symmetric=symmetric)
            got = lowbit.quantize_rows(x, nbits=nbits, symmetric=symmetric, isa=isa)
            for name in ("codes", "scale", "zero_point", "group_sums"):
                assert np.array_equal(getattr(got, name), getattr(want, name)), (nbits, symmetric, name)
    for nbits in (1, 9):
        with pytest.raises(ValueError, match="nbits"):
            lowbit.quantize_rows(x, nbits=nbits)


# ------------------------------------------------------------------ configs


def test_configs_say_what_they_cost():
    config = lowbit.Series(4, 3, 4, 2)
    assert config.effective_bits == (12, 8)
    assert config.products == 6
    assert lowbit.Series(4, 2, 4, 2, triangular=True).pairs == ((0, 0), (0, 1), (1, 0))
    assert [lowbit.Series(2, t, 2, t, triangular=True).products for t in (1, 2, 3, 4)] == [1, 3, 6, 10]
    from lowbit.config import from_json

    assert from_json(config.to_json()) == config
    for args, words in (
        ((1, 2, 4, 2), "weight_bits"),
        ((4, 2, 9, 1), "activation_bits"),
        ((4, 5, 4, 2), "weight_terms"),
    ):
        with pytest.raises(ValueError, match=words):
            lowbit.Series(*args)
    for kwargs, error in (
        ({"clip": 0.0}, ValueError),
        ({"clip": "a"}, TypeError),
        ({"triangular": 1}, TypeError),
        ({"feedback": 1}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(kwargs))):
            lowbit.Series(4, 2, 4, 2, **kwargs)
    with pytest.raises(ValueError, match="feedback: expected activations of at most 8 bits, got 12"):
        lowbit.Series(4, 2, 4, 3, feedback=True)
    with pytest.raises(TypeError, match="config: expected"):
        lowbit.quantize_weight(np.ones((2, 8), np.float32), config)


# ------------------------------------------------------------------ layers and models

torch = pytest.importorskip("torch")
from lowbit.torch import SeriesConv2d, SeriesLinear, dequantize_, quantize_  # noqa: E402
from torch import nn  # noqa: E402

S = lowbit.Series
CONFIGS = [
    S(4, 1, 4, 1),
    S(4, 2, 4, 2),
    S(3, 2, 3, 2, clip=2.0),
    S(4, 2, 4, 2, clip=1.5, equalize=False),
    S(4, 3, 4, 2),
    S(4, 4, 2, 8),
    S(8, 2, 8, 2, clip=3.0),
    S(2, 4, 5, 1),
    S(4, 2, 4, 2, triangular=True),
    S(2, 3, 2, 3, triangular=True, clip=2.0),
    S(3, 2, 3, 2, clip=2.0, feedback=True),
    S(4, 3, 4, 2, feedback=True),
]


def layer(kind: str, config: S) -> nn.Module:
    """In a model, since a bare layer cannot be swapped; of weights with outliers, and a bias."""
    torch.manual_seed(len(kind))
    made = {
        "linear": lambda: nn.Linear(40, 24),
        "conv": lambda: nn.Conv2d(5, 8, 3, stride=2, padding=(2, 1), dilation=(1, 2)),
        "image": lambda: nn.Conv2d(3, 8, 3, padding=1),
        "wide": lambda: nn.Conv2d(16, 16, 3, padding=1, bias=False),
        "depthwise": lambda: nn.Conv2d(16, 16, 3, padding="same", groups=16),
        "groups": lambda: nn.Conv2d(6, 4, (1, 3), groups=2),
    }[kind]()
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(some(*made.weight.shape, seed=1)))
    model = nn.Sequential(made).eval()
    report = quantize_(model, config)
    assert len(report.quantized) == 1
    assert isinstance(model[0], SeriesLinear if kind == "linear" else SeriesConv2d)
    return model


def inputs(kind: str, batch: int = 3) -> torch.Tensor:
    shape = {"linear": (40,), "conv": (5, 9, 10), "image": (3, 9, 10), "groups": (6, 4, 7)}.get(kind, (16, 8, 7))
    x = torch.from_numpy(some(batch, *shape, seed=2)) + 0.3
    x[1] = x[1].relu()  # without negatives: another zero point
    return x


KINDS = ["linear", "conv", "image", "wide", "depthwise", "groups"]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_separate_products_give_the_same_integers(kind, config):
    model, x = layer(kind, config), inputs(kind)
    one = model[0]
    merged, apart = one.sums(x), one.sums(x, merged=False)
    assert np.array_equal(merged.sums, apart.sums)
    assert np.array_equal(merged.scale, apart.scale)
    got = model(x)
    want = torch.from_numpy(one._finished(apart))
    assert torch.equal(got, want if kind == "linear" else want.permute(0, 3, 1, 2))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_its_rounded_weight_times_rounded_inputs(kind, config):
    """By torch, in float64: borders, zero points, what is saturated."""
    model, x = layer(kind, config), inputs(kind)
    one = model[0]
    seen, weight = one.seen(x).double(), one.dequantize().double()
    want = one.convolve(seen, weight)
    if one.bias is not None:
        want = want + (one.bias if kind == "linear" else one.bias[:, None, None])
    if config.triangular:
        # The last products left out are within what the last terms can hold.
        coefficients = one.all_coefficients()
        full = {
            (i, j): 1 << one._shift(i, j) for i in range(config.weight_terms) for j in range(config.activation_terms)
        }
        left = {p: c for p, c in full.items() if p not in coefficients}
        digits = np.abs(one.digits().astype(np.int64)).reshape(config.weight_terms, len(one.digits()[0]), -1).sum(-1)
        most = sum(c * digits[i] * ((1 << config.activation_bits) - 1) for (i, _), c in left.items())
        bound = torch.from_numpy(most * one._row_scale()).max() * torch.from_numpy(one.sums(x).scale).max()
        assert (model(x) - want).abs().max() <= bound + 1e-4
    else:
        assert torch.allclose(model(x).double(), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_depend_on_its_batch(kind):
    model, x = layer(kind, S(4, 2, 4, 2, feedback=True)), inputs(kind, 4)
    all_of_them = model(x)
    for i in range(4):
        assert torch.equal(model(x[i : i + 1]), all_of_them[i : i + 1])
    for threads in (1, 2):
        with lowbit.threads(threads):
            assert torch.equal(model(x), all_of_them)


@pytest.mark.parametrize("config", [S(4, 2, 4, 2, feedback=True), S(3, 1, 3, 2), S(4, 3, 4, 3)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinities_stay_in_their_sample(kind, config):
    model, x = layer(kind, config), inputs(kind, 4)
    want = model(x)
    for bad in (np.nan, np.inf):
        broken = x.clone()
        broken[2].view(-1)[5] = bad
        got = model(broken)
        assert got[2].isnan().all()
        keep = [0, 1, 3]
        assert torch.equal(got[keep], want[keep])


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_layouts_of_inputs(kind):
    model, x = layer(kind, S(4, 2, 4, 2, feedback=True)), inputs(kind)
    want = model(x)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        got = model(x.to(dtype))
        assert got.dtype == dtype
        assert torch.allclose(got.float(), want, rtol=0.05, atol=0.05 * float(want.abs().max()))
    if kind != "linear":
        assert torch.equal(model(x.to(memory_format=torch.channels_last)), want)
        assert torch.equal(model.to(memory_format=torch.channels_last)(x), want)
        assert torch.equal(model(x[0]), want[0])
        with pytest.raises(ValueError, match=r"x: expected \(N, "):
            model(x[:, :1])
    else:
        assert torch.equal(model(x.reshape(1, 3, 40)), want[None])
        with pytest.raises(ValueError, match=r"x: expected \(\.\.\., 40\)"):
            model(x[:, :39])


def test_the_way_back_and_copies(tmp_path):
    import pickle

    for kind in KINDS:
        config = S(4, 3, 4, 2, clip=2.0, feedback=True)
        model, x = layer(kind, config), inputs(kind)
        want = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), want)
        other = layer(kind, config)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), want)
        weight = model[0].dequantize()
        back = dequantize_(model)
        assert torch.equal(back[0].weight, weight)
        assert (back(x) - want).abs().max() < 0.05 * want.abs().max()


def test_first_layers_hear_their_errors():
    """Where inputs are rounded with feedback, with what coefficients, and to what end."""
    torch.manual_seed(0)
    made = {
        "image": nn.Conv2d(3, 8, 3, padding=1),
        "wide": nn.Conv2d(5, 8, 3),
        "stride": nn.Conv2d(3, 8, 3, stride=2),
        "dilation": nn.Conv2d(3, 8, 3, dilation=2),
        "groups": nn.Conv2d(4, 8, 3, groups=2),
        "large": nn.Conv2d(3, 8, 9),
        "lin": nn.Linear(8, 8),
    }
    model = nn.ModuleDict(made)
    told = {one.name: one.kernel for one in quantize_(model, S(3, 2, 3, 2, feedback=True)).layers}
    assert [name for name, kernel in told.items() if "with feedback" in kernel] == ["image"]
    # The gain of the normalization behind the layer says which outputs matter.
    net = Net().eval()
    with torch.no_grad():
        net.first.weight.add_(torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])))  # they blur
        net.norm.weight.uniform_(0.1, 3)
        net.norm.running_var.uniform_(0.1, 3)
    x = torch.randn(4, 3, 20, 20).cumsum(2).cumsum(3)
    exact = net.norm(net.first(x))
    gain = (net.norm.weight / (net.norm.running_var + net.norm.eps).sqrt()).detach().numpy()
    filters = net.first.weight.detach().permute(0, 2, 3, 1).numpy()
    want = lowbit.feedback_coefficients(filters, importance=gain)
    errors = {}
    for feedback in (False, True):
        twin = copy.deepcopy(net)
        quantize_(twin, S(4, 4, 3, 2, feedback=feedback))
        errors[feedback] = float((twin.norm(twin.first(x)) - exact).detach().square().mean())
    assert errors[True] < 0.5 * errors[False]
    np.testing.assert_allclose(twin.first.feedback.numpy(), want, rtol=1e-5)
    assert list(twin.first.state_dict()) == ["codes", "scale", "feedback"]
    assert twin.second.feedback is None
    # A gain that is no number counts for nothing.
    with torch.no_grad():
        net.norm.running_var[0] = np.nan
    quantize_(net, S(4, 4, 3, 2, feedback=True))
    np.testing.assert_array_equal(net.first.feedback.numpy(), lowbit.feedback_coefficients(filters))
    # One weight, two ways to use it.
    one, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=2)
    other.weight = one.weight
    model = nn.ModuleDict({"one": one, "other": other})
    quantize_(model, S(4, 2, 4, 2, feedback=True))
    assert model["one"].codes is model["other"].codes
    assert model["one"].feedback is not None
    assert model["other"].feedback is None


def test_changed_codes_are_seen():
    """The plan that a convolution keeps is of the codes that it was made from."""
    model, x = layer("wide", S(4, 2, 4, 2)), inputs("wide")
    before = model(x)
    with torch.no_grad():
        model[0].codes.zero_()
    assert before.abs().max() > 0
    assert not model(x).any()
    with torch.inference_mode():
        model = layer("wide", S(4, 2, 4, 2))
        assert torch.equal(model(x), before)
        model[0].codes.zero_()
        assert not model(x).any()
    x = inputs("image")
    plain, model = layer("image", S(4, 2, 4, 2)), layer("image", S(4, 2, 4, 2, feedback=True))
    before = model(x)
    assert not torch.equal(before, plain(x))
    with torch.inference_mode():
        twin = layer("image", S(4, 2, 4, 2, feedback=True)).to(memory_format=torch.channels_last)
        assert torch.equal(twin(x), before)
    model[0].feedback.zero_()
    assert torch.equal(model(x), plain(x))


class Net(nn.Module):
    """A small residual network, as CNNs are written."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.first(x)))
        x = x + self.second(x)
        return self.down(nn.functional.relu(self.up(x.mean((2, 3)))))


def net(config: S, **kwargs) -> nn.Module:
    torch.manual_seed(5)
    model = Net().eval()
    quantize_(model, config, **kwargs)
    return model


def test_layers_that_a_series_is_not_for_say_why():
    model = nn.ModuleDict(
        {
            "emb": nn.Embedding(9, 8),
            "conv": nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            "deep": nn.Conv2d(4096, 1, 3),
            "lin": nn.Linear(8, 8),
        }
    )
    reasons = {one.name: one.reason for one in quantize_(model, S(4, 2, 4, 2)).layers}
    assert "embedding" in reasons["emb"]
    assert "reflect" in reasons["conv"]
    assert "products a sum" in reasons["deep"]
    assert reasons["lin"] is None
    report = quantize_(Net(), lowbit.Int8(), rules=[("second", S(4, 2, 4, 2))])
    told = {one.name: (one.reason, one.kernel) for one in report.layers}
    assert "no convolution" in told["first"][0]
    assert told["second"][1].startswith("2x4 by 2x4 bits conv2d")
    with pytest.raises(ValueError, match="cannot be swapped"):
        quantize_(nn.Conv2d(3, 3, 3), S(4, 2, 4, 2))


def test_more_terms_come_nearer():
    x = torch.from_numpy(some(6, 3, 12, 12))
    torch.manual_seed(5)
    exact = Net().eval()(x)
    errors = [float((net(S(4, n, 4, n))(x) - exact).abs().max()) for n in (1, 2, 3, 4)]
    assert all(after < before / 5 for before, after in itertools.pairwise(errors))
    assert errors[-1] < 1e-5


def test_terms_are_a_group():
    from lowbit.methods.series import abelian_add, abelian_mul, basis_models

    model, x = net(S(4, 2, 4, 2, clip=2.0)), torch.from_numpy(some(2, 3, 8, 8))
    want = model(x)
    terms = basis_models(model)
    assert sorted(terms) == [(-1, 0), (-1, 1), (0, 0), (0, 1), (1, 0), (1, 1)]
    weights = model.first.all_coefficients()
    parts = [abelian_mul(terms[pair], c) for pair, c in weights.items()]
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(6), (10, 1)), axis=1):
        assert torch.equal(functools.reduce(abelian_add, [parts[i] for i in order])(x), want)
    a, b, c = parts[:3]
    assert torch.equal(abelian_add(a, abelian_add(b, c))(x), abelian_add(abelian_add(a, b), c)(x))
    assert torch.equal(abelian_add(a, abelian_mul(b, 0))(x), a(x))
    assert torch.equal(abelian_add(a, abelian_mul(a, -1))(x), abelian_mul(b, 0)(x))
    assert torch.equal(abelian_mul(abelian_mul(a, 3), 5)(x), abelian_mul(a, 15)(x))
    assert torch.equal(abelian_add(abelian_mul(a, 2), abelian_mul(a, 3))(x), abelian_mul(a, 5)(x))
    both = abelian_add(abelian_mul(a, 7), abelian_mul(b, 7))
    assert torch.equal(abelian_mul(abelian_add(a, b), 7)(x), both(x))
    assert torch.equal(abelian_mul(model, 1)(x), want)
    with pytest.raises(ValueError, match="differs in config or tensors"):
        abelian_add(a, net(S(4, 2, 4, 3)))
    with pytest.raises(ValueError, match="only one has"):
        abelian_add(a, layer("linear", S(4, 2, 4, 2)))
    with pytest.raises(TypeError, match="coefficient"):
        abelian_mul(a, 0.5)
    with pytest.raises(ValueError, match="quantize_"):
        basis_models(Net())
    with pytest.raises(ValueError, match="one config"):
        basis_models(net(S(4, 2, 4, 2), rules=[("first", S(8, 1, 8, 1))]))


def test_first_terms_are_the_leading_digits():
    from lowbit.methods.series import first_terms

    config = S(4, 3, 4, 3)
    model = net(config)
    for weight, activation in ((1, 1), (2, 1), (2, 3)):
        few = first_terms(model, weight, activation)
        assert few.second.config == S(4, weight, 4, activation)
        assert np.array_equal(few.second.digits(), model.second.digits()[:weight])
        assert np.array_equal(few.up.digits(), model.up.digits()[:weight])
    assert torch.equal(first_terms(model, 3, 3)(torch.ones(1, 3, 8, 8)), model(torch.ones(1, 3, 8, 8)))
    for terms, error in ((0, ValueError), (1.0, TypeError)):
        with pytest.raises(error, match="weight_terms"):
            first_terms(model, terms, 1)


def test_the_certain_bound_is_never_exceeded():
    from lowbit.methods.series import certain_bound, first_terms

    x = torch.from_numpy(some(5, 3, 10, 10))
    for config in (S(4, 2, 4, 2), S(4, 2, 4, 2, clip=2.0), S(3, 3, 3, 2)):
        model = net(config)
        few = first_terms(model, 1, 1)
        outputs, radius = certain_bound(few, model, x)
        assert torch.equal(outputs, few(x))
        assert ((model(x) - outputs).abs() <= radius).all()
        assert radius.isfinite().all()
    deep = nn.Sequential(*(nn.Linear(64, 64) for _ in range(60))).eval()
    quantize_(deep, S(2, 2, 2, 2), fuse=False)
    with torch.no_grad():
        for one in deep:
            one.bias.fill_(1e3)
    outputs, radius = certain_bound(first_terms(deep, 1, 1), deep, torch.ones(1, 64) * 1e6)
    assert not radius.isnan().any()
    assert ((deep(torch.ones(1, 64) * 1e6) - outputs).abs() <= radius).all()


def test_the_certain_bound_of_inputs_with_feedback():
    from lowbit.methods.series import certain_bound, first_terms

    config = S(4, 2, 4, 2, feedback=True)
    model, x = net(config), torch.randn(3, 3, 8, 8)
    outputs, radius = certain_bound(first_terms(model, 1, 1), model, x)
    assert ((model(x) - outputs).abs() <= radius).all()

    # What only moves values leaves them known.
    class Padded(nn.Sequential):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1, 2, 2)))

    model = Padded(nn.Conv2d(3, 3, 3)).eval()
    quantize_(model, config)
    outputs, radius = certain_bound(first_terms(model, 1, 1), model, x)
    assert ((model(x) - outputs).abs() <= radius).all()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).eval()
    quantize_(model, config)
    with pytest.raises(NotImplementedError, match="1 rounds with feedback"):
        certain_bound(first_terms(model, 1, 1), model, x)


def test_anytime_stops_where_it_may():
    from lowbit.methods.series import Anytime, measure_margins

    torch.manual_seed(5)
    model, x = Net().eval(), torch.from_numpy(some(200, 3, 6, 6, seed=4))
    with torch.no_grad():
        model.down.bias -= model(x).mean(0)  # no class is everyone's first choice
    quantize_(model, S(4, 2, 4, 2))
    stages = [(1, 1), (1, 2), (2, 2)]
    margins = measure_margins(model, stages, x.split(64))
    answers = Anytime(model, stages, margins)(x)
    want = model(x).argmax(1)
    assert torch.equal(answers.logits.argmax(1), want)  # on the very samples that the margins are of
    assert answers.stage.unique().numel() > 1
    assert torch.equal(answers.logits[answers.stage == 2], model(x)[answers.stage == 2])
    assert Anytime(model, stages, margins).products == (1, 3, 7)
    assert measure_margins(model, stages, x.split(64), risk=0.2)[0] <= margins[0]
    never = Anytime(model, stages, [np.inf, np.inf])(x)
    assert (never.stage == 2).all()
    with pytest.raises(ValueError, match="margins: expected 2"):
        Anytime(model, stages, [1.0])
    with pytest.raises(ValueError, match="risk"):
        measure_margins(model, stages, [x], risk=1.0)
    with pytest.raises(ValueError, match="data"):
        measure_margins(model, stages, [])


# ------------------------------------------------------------------ what was once wrong


def test_small_things_of_arrays():
    with pytest.raises(ValueError, match=r"clip: 1e-30 leaves values of more than 2\*\*53 steps"):
        lowbit.expand([1.0, 2.0, 3.0], 4, 2, clip=1e-30)
    series = lowbit.expand(np.array([1e40, -1e40]), 4, 2)
    assert np.isfinite(series.scales()).all()
    with np.errstate(all="raise"):
        assert lowbit.reconstruct(series).tolist() == [np.finfo(np.float32).max, -np.finfo(np.float32).max]
    for terms, error in ((3, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error):
            series.bound(terms)
    one = lowbit.expand(some(2, 3), 4, 2, granularity=PerGroup(10**13), clip=2.0)
    assert lowbit.reconstruct(one).shape == (2, 3)


def test_tied_layers_stay_tied():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.c, self.d = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.b.weight, self.d.weight = self.a.weight, self.c.weight
            self.again = self.a

    model = Tied().eval()
    quantize_(model, S(4, 2, 4, 2))
    assert model.a.tiled is model.b.tiled
    assert model.a.bias is not model.b.bias
    assert model.c.codes is model.d.codes
    assert model.again is model.a
    from lowbit.methods.series import first_terms

    few = first_terms(model, 1, 1)
    assert few.again is few.a
    assert few.again.config.weight_terms == 1


def test_the_number_of_buffers_is_the_config_s():
    zeros = nn.Sequential(nn.Linear(8, 4, bias=False)).eval()
    with torch.no_grad():
        zeros[0].weight.zero_()
    quantize_(zeros, S(4, 3, 4, 2))
    other = nn.Sequential(nn.Linear(8, 4, bias=False)).eval()
    quantize_(other, S(4, 3, 4, 2))
    zeros.load_state_dict(other.state_dict())
    assert torch.equal(zeros(torch.ones(1, 8)), other(torch.ones(1, 8)))


def test_linear_layers_are_fused_beside_convolutions():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.from_numpy(some(3, 3, 4, 4))
    want = model.eval()(x)
    assert len(quantize_(model, S(4, 2, 4, 2)).fused) == 1
    assert torch.allclose(model(x), want, atol=0.05)


def test_some_of_the_terms_are_not_taken_for_all():
    from lowbit.methods.series import abelian_add, abelian_mul, basis_models, first_terms

    model = net(S(4, 2, 4, 2))
    part = basis_models(model)[0, 1]
    assert "terms {(0, 1): 1}" in repr(part)
    with pytest.raises(ValueError, match="some terms of a weight alone"):
        dequantize_(part)
    with pytest.raises(ValueError, match="expected one of all its terms"):
        first_terms(part, 1, 1)
    large = abelian_mul(part, 1 << 45)
    with pytest.raises(ValueError, match="int64"):
        abelian_mul(large, 1 << 20)
    with pytest.raises(ValueError, match="int64"):
        functools.reduce(abelian_add, [abelian_mul(part, 1 << 50)] * 20)


def test_no_samples():
    from lowbit.methods.series import Anytime

    for kind in KINDS:
        for config in (S(4, 2, 4, 2), S(4, 3, 4, 3)):
            model, x = layer(kind, config), inputs(kind)
            assert model(x[:0]).shape == (0, *model(x).shape[1:])
    assert Anytime(net(S(4, 2, 4, 2)), [(1, 1), (2, 2)], [1.0])(torch.zeros(0, 3, 8, 8)).logits.shape == (0, 5)


def test_stages_and_data_that_do_not_fit():
    from lowbit.methods.series import Anytime, measure_margins

    model, x = net(S(4, 2, 4, 2)), torch.from_numpy(some(4, 3, 8, 8))
    for stages, error in (
        ([], ValueError),
        ([(1, 1), (3, 3)], ValueError),
        ([(2, 1), (1, 2), (2, 2)], ValueError),
        ([(1, 1)], ValueError),
        ([(1, 1, 1), (2, 2)], TypeError),
        ([(0, 1), (2, 2)], TypeError),
    ):
        with pytest.raises(error, match="stages: expected"):
            Anytime(model, stages, [0.0] * (len(stages) - 1))
    stages = [(1, 1), (2, 2)]
    for data, words in ((x, "got a tensor"), ([(x, 1)], "inputs alone")):
        with pytest.raises(TypeError, match=words):
            measure_margins(model, stages, data)
    with pytest.raises(TypeError, match="risk"):
        measure_margins(model, stages, [x], risk="a")
    one = nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).eval()
    quantize_(one, S(4, 2, 4, 2))
    with pytest.raises(ValueError, match="at least 2 classes"):
        measure_margins(one, stages, [x])


def test_intervals_know_what_they_do_not_know():
    from lowbit.methods.series import certain_bound, first_terms

    class Scaled(Net):
        def forward(self, x):
            return self.down(self.up(torch.add(self.first(x), self.second(self.first(x)), alpha=100).mean((2, 3))))

    model, x = Scaled().eval(), torch.from_numpy(some(2, 3, 8, 8))
    quantize_(model, S(4, 2, 4, 2))
    with pytest.raises(NotImplementedError, match="add with alpha"):
        certain_bound(first_terms(model, 1, 1), model, x)
    model = net(S(4, 2, 4, 2))
    few = first_terms(model, 1, 1)
    with pytest.raises(ValueError, match="the first terms of a model"):
        certain_bound(model, few, x)
    with pytest.raises(ValueError, match="quantize_"):
        certain_bound(Net().eval(), model, x)
    model.norm.running_var = model.norm.running_mean = None
    few = first_terms(model, 1, 1)
    with pytest.raises(NotImplementedError, match="by the batch"):
        certain_bound(few, model, x)


def test_series_take_no_data():
    from lowbit.torch import calibrate_

    model = nn.Sequential(nn.Linear(8, 4)).eval()
    with pytest.raises(ValueError, match="a series takes no data"):
        calibrate_(model, [torch.ones(2, 8)], S(4, 2, 4, 2))
    with pytest.raises(ValueError, match=r"rules\[0\]: a series takes no data"):
        calibrate_(model, [torch.ones(2, 8)], None, rules=[("0", S(4, 2, 4, 2))])


def test_biases_take_up_what_rounding_moves():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, bias=False)

        def forward(self, x):
            return self.conv(nn.functional.relu(self.norm(x)))

    from lowbit.methods.series import first_terms

    torch.manual_seed(1)
    x = torch.randn(64, 8, 12, 12)
    exact = Normed().eval()
    means = {}
    for correct in (False, True):
        model = copy.deepcopy(exact)
        quantize_(model, S(3, 2, 4, 2, bias_correction=correct))
        assert (model.conv.bias is not None) == correct
        for few, of in ((model, "all"), (first_terms(model, 1, 2), "first")):
            means[correct, of] = (few(x) - exact(x)).mean((0, 2, 3)).abs().max()
    assert means[True, "all"] < means[False, "all"] / 4
    assert means[True, "first"] < means[False, "first"] / 4
