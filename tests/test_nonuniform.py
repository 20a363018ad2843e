"""Non-uniform post-training quantization: levels, reports, what BatchNorms tell, and the bars on ResNet-20.

"Row" numbers are those of the project's table of bad inputs.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import lowbit
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra torch is not installed")

from lowbit.cli import nonuniform as tables  # noqa: E402
from lowbit.methods.nonuniform import nonuniform_, nonuniform_weight  # noqa: E402
from lowbit.models.resnet import ResNet, load_resnet  # noqa: E402
from lowbit.torch import QuantLinear, dequantize_  # noqa: E402
from lowbit.torch.correction import correct_bias_, input_moments  # noqa: E402
from torch import nn  # noqa: E402

torch.manual_seed(0)


def network(seed: int = 0, n: int = 16) -> nn.Sequential:
    """Convolutions with BatchNorms that were trained to nothing, but whose statistics are right."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, n, 3, padding=1, bias=False),
        nn.BatchNorm2d(n),
        nn.ReLU(),
        nn.Conv2d(n, n, 3, bias=False),
        nn.BatchNorm2d(n),
        nn.ReLU(),
        nn.Conv2d(n, n, 3, groups=2),
        nn.BatchNorm2d(n),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(n, 5),
    )
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0.3, 0.3)
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(64, 3, 16, 16))
    return model.eval()


# ------------------------------------------------------------------ levels


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("nbits", range(2, 9))
def test_levels_are_int8_entries_times_a_scale(nbits, granularity):
    w = np.random.default_rng(nbits).laplace(size=(7, 45)).astype(np.float32)
    for method in ("optimal", "lloyd_max", "analytic", "uniform", "apot"):
        coded = nonuniform_weight(w, nbits, granularity=granularity, method=method)
        tables = 1 if granularity == "tensor" else 7
        assert coded.levels.shape == (tables, 1 << nbits)
        assert coded.nbytes == 7 * math.ceil(45 * nbits / 8) + tables * ((1 << nbits) + 4)
        steps = coded.levels / (np.abs(coded.levels).max(1, keepdims=True) / 127)
        # The greatest entry is 127 but of a table whose greatest level got no weight.
        assert np.abs(steps - np.rint(steps)).max() < 1e-4
        values = coded.values()
        assert values.shape == w.shape
        nearest = np.abs(w.reshape(tables, -1)[..., None] - coded.levels[:, None]).min(2)
        np.testing.assert_allclose(np.abs(values - w).reshape(tables, -1), nearest, atol=1e-6)


def test_the_order_of_errors():
    rng = np.random.default_rng(0)
    for w in (rng.normal(size=(8, 576)), rng.laplace(size=(8, 576)), rng.standard_t(3, size=(8, 576))):
        for nbits in (2, 3, 4):
            errors = {
                m: float(((nonuniform_weight(w, nbits, method=m).values() - w) ** 2).sum())
                for m in ("optimal", "lloyd_max", "analytic", "laplace", "gauss", "uniform", "quantile", "pot")
            }
            # Rounding to int8 entries moves each by a little.
            assert errors["optimal"] <= errors["lloyd_max"] * 1.002
            assert all(errors["lloyd_max"] <= error * 1.002 for error in errors.values() if error != errors["optimal"])
            assert errors["analytic"] <= min(errors["laplace"], errors["gauss"]) * 1.002


def test_the_density_is_that_of_the_numbers():
    rng = np.random.default_rng(1)
    w = np.concatenate([rng.normal(size=(4, 4000)), rng.laplace(size=(4, 4000))])
    assert nonuniform_weight(w, 4, method="analytic").density == ("gauss",) * 4 + ("laplace",) * 4
    assert nonuniform_weight(w, 4).density is None


def test_rows_of_zeros_and_of_one_number():  # row 6
    w = np.zeros((3, 20), np.float32)
    w[1], w[2, 3] = 0.7, 1e-40
    for method in ("optimal", "analytic", "quantile"):
        values = nonuniform_weight(w, 3, method=method).values()
        np.testing.assert_allclose(values, w, rtol=1e-6, atol=1e-37)


# ------------------------------------------------------------------ models


def test_the_report():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    report = nonuniform_(model, 3, first_last=lowbit.Int8())
    layers = {layer.name: layer for layer in report.layers}
    assert [layer.name for layer in report.layers] == ["0", "3", "6", "11"]
    assert layers["0"].kernel == "int8, dequantized to float: no integer convolution yet"
    assert layers["3"].kernel == "3-bit codebook, dequantized to float: no integer convolution yet"
    assert "int8 gemm" in layers["11"].kernel
    assert isinstance(model[11], QuantLinear)
    for name in ("3", "6"):
        weight = model.get_submodule(name).weight
        assert all(len(row.unique()) <= 8 for row in weight.flatten(1))
        error = (weight.detach() - before[f"{name}.weight"]).norm() / before[f"{name}.weight"].norm()
        assert layers[name].error == pytest.approx(float(error), rel=1e-5)
    # 144 codes of 3 bits a row, eight entries and a scale; the bias stays.
    assert (layers["3"].bytes_before, layers["3"].bytes_after) == (16 * 144 * 4, 16 * (54 + 8 + 4))
    assert layers["6"].bytes_after == 16 * (27 + 8 + 4) + 64
    state = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    saved = sum(layers[n].bytes_before - layers[n].bytes_after for n in ("0", "3", "6"))
    assert (report.bytes_after, report.bytes_stored) == (state, state - saved)
    text = str(report)
    assert "no integer convolution yet" in text
    assert "3 of 4 layers' outputs corrected" in text
    assert "not corrected: 0: it gets the model's input, of which nothing is known" in text
    assert json.loads(report.to_json())["corrections"][1]["what"] == "mean and variance"


def test_the_analytic_report_counts_densities():
    model = network()
    report = nonuniform_(model, 4, method="analytic", first_last=4)
    assert all(" by " in layer.kernel and layer.config == "Codebook" for layer in report.layers[:3])
    assert model[11].config.method in ("laplace", "gauss")


def test_rules_come_first_and_none_leaves_alone():
    model = network()
    before = model[0].weight.detach().clone()
    report = nonuniform_(model, 6, rules=[("^0$", None), ("^11$", 4)], bias_correction=False)
    assert report.layers[0].reason == "no config for it"
    assert torch.equal(model[0].weight, before)
    assert report.layers[3].kernel.startswith("4-bit codebook gemm")
    assert report.corrections == ()


def test_weights_stay_tied_and_progress_is_told():  # row 74
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, bias=False) for _ in range(4)))
    model[2].weight = model[1].weight
    told = []
    report = nonuniform_(model, 2, progress=lambda *args: told.append(args))
    assert report.layers[1].error == report.layers[2].error > 0.1
    assert model[2].weight is model[1].weight
    assert told[-1] == (4, 4, "")
    assert all(len(row.unique()) <= 4 for row in model[1].weight.flatten(1))


def test_a_second_call_finds_layers_on_codes():
    model = network()
    nonuniform_(model, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = nonuniform_(model, 3)
    assert report.layers[3].reason == "already quantized"
    assert max(layer.error for layer in report.layers[:3]) < 0.02  # its levels are found again
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor.float(), before[name].float(), rtol=0.05, atol=0.02), name


class Twice(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def test_what_is_left_alone_says_why():
    model = nn.Sequential(Twice(3, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3))
    report = nonuniform_(model, 4)
    assert "may compute something else" in report.layers[0].reason
    assert "parametrized" in report.layers[1].reason
    assert report.layers[2].reason is None


def wrong(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = math.nan
    return model


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: nonuniform_(3, 4), TypeError, "model: expected a torch.nn.Module, got int"),
        (lambda m: nonuniform_(m, 1), ValueError, "nbits: expected 2 to 8, got 1"),
        (lambda m: nonuniform_(m, True), TypeError, "nbits: expected an int, got True"),
        (lambda m: nonuniform_(m, None), TypeError, "nbits: expected an int, got None"),
        (lambda m: nonuniform_(m, 4, first_last="8"), TypeError, "first_last: expected an int, Int8"),
        (lambda m: nonuniform_(m, 4, granularity="group"), ValueError, "granularity: expected 'tensor' or 'channel'"),
        (lambda m: nonuniform_(m, 4, method="best"), ValueError, "method: expected one of analytic, optimal"),
        (lambda m: nonuniform_(m, 4, bias_correction=1), TypeError, "bias_correction: expected a bool"),
        (lambda m: nonuniform_(m, 4, rules=[("(", 4)]), ValueError, "no regular expression"),
        (lambda m: nonuniform_(m, 4, rules=[("conv", 4)]), ValueError, "matches no layer"),
        (lambda m: nonuniform_(m, 4, rules=[("0", 9)]), ValueError, r"rules\[0\]: expected 2 to 8, got 9"),
        (lambda m: nonuniform_(m, 5, first_last=5), ValueError, "11 is a Linear, which takes 2, 3, 4 or 8, got 5"),
        (lambda m: nonuniform_(wrong(m), 4), ValueError, "3.weight holds NaN or an infinity; nothing was changed"),
    ],
)
def test_misuse(call, error, words):  # rows 1, 75
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error, match=words):
        call(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()) or name == "3.weight"


# ------------------------------------------------------------------ what BatchNorms tell


def measured(model: nn.Module, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of a layer's input by channel."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    handle.remove()
    channels = seen[0].transpose(0, 1).flatten(1).double()
    return channels.mean(1), channels.var(1)


def test_moments_are_those_of_the_inputs():
    model, x = network(), torch.randn(256, 3, 16, 16)
    told = input_moments(model)
    for name in ("3", "6"):
        mean, variance = measured(model, name, x)
        assert (told[name].mean - mean).abs().max() < 0.06
        assert (told[name].variance / variance - 1).abs().max() < 0.25
    assert (told["3"].norm, told["6"].norm, told["11"].norm) == ("4", "7", None)
    assert (told["11"].mean - measured(model, "11", x)[0]).abs().max() < 0.06
    assert told["11"].variance is None


def test_a_resnet_is_walked_from_end_to_end():
    told = input_moments(ResNet(2).eval())
    assert len(told) == 14
    assert [name for name, inputs in told.items() if inputs.mean is None] == ["conv1"]
    assert told["layer2.0.conv2"].norm == "layer2.0.bn2"
    assert told["layer2.1.conv1"].mean.shape == (32,)
    # Channels of zeros come in at the shortcut: what is added to them is BatchNorm's alone.
    density = 1 / math.sqrt(2 * math.pi)
    assert told["layer2.1.conv1"].mean[0] == pytest.approx(density, abs=1e-6)
    assert told["layer2.1.conv1"].mean[16] > density


class Odd(nn.Module):
    """What each layer is given, in turn, of which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.act = nn.BatchNorm2d(4), nn.GELU()
        self.a, self.b, self.c, self.d, self.e, self.f = (nn.Conv2d(4, 4, 1) for _ in range(6))

    def forward(self, x):
        x = self.a(self.act(self.bn(x)))
        x = self.b(x)
        x = self.c(self.bn(x) + 1)
        x = self.d(torch.nn.functional.pad(self.bn(x), (1, 1)))
        x = self.e(self.e(self.bn(x)))
        return x


def test_reasons():
    told = {name: inputs.reason for name, inputs in input_moments(Odd()).items()}
    assert told == {
        "a": "it gets the outputs of act (GELU), of whose moments nothing is known",
        "b": "it gets the outputs of a, after which there is no BatchNorm",
        "c": "it gets a sum with a constant",
        "d": "it gets a padded tensor",
        "e": "it is called more than once",
        "f": "it is not called in the model's graph",
    }


def test_a_graph_that_cannot_be_traced():
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    model = Branching()
    (correction,) = nonuniform_(model, 4, first_last=4).corrections
    assert correction.reason.startswith("the model's graph cannot be traced: TraceError: ")
    assert model(torch.ones(1, 3, 8, 8)).shape == (1, 8, 6, 6)


@pytest.mark.parametrize("nbits", [2, 3])
def test_corrected_outputs_are_nearer(nbits):
    x = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        exact = network()(x)
    means, whole = {}, {}
    for corrected in (False, True):
        model = network()
        nonuniform_(model, nbits, bias_correction=corrected)
        with torch.no_grad():
            off = model(x) - exact
        means[corrected], whole[corrected] = float(off.mean(0).norm()), float(off.norm())
    assert means[True] < 0.5 * means[False]
    assert whole[True] < whole[False]


def test_a_mean_goes_into_the_bias_where_there_is_no_norm():
    torch.manual_seed(3)
    model = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)).eval()
    x = torch.randn(20_000, 64)
    with torch.no_grad():
        exact = model(x)
    for kind in ("codes", "floats"):
        copy = nn.Sequential(nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32)).eval()
        copy.load_state_dict(model.state_dict())
        inputs, before = input_moments(copy), {"2": copy[2].weight.detach().clone()}
        if kind == "codes":
            (told,) = nonuniform_(copy, 2, first_last=2).corrections
        else:
            with torch.no_grad():
                copy[2].weight.mul_(0.7)
            (told,) = correct_bias_(copy, before, inputs)
        assert (told.what, told.into) == ("mean", "2")
        with torch.no_grad():
            assert (copy(x) - exact).mean(0).abs().max() < 0.01


def test_a_layer_that_takes_no_correction_says_so():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, bias=False))
    (told,) = nonuniform_(model, 4).corrections
    assert told.reason == "no BatchNorm takes its outputs alone, and it has no bias"


# ------------------------------------------------------------------ a trained network


@pytest.fixture(scope="module")
def resnet20():
    """What makes ResNet-20, images, labels, and which of them it has right."""
    try:
        make, images, labels = tables.resnet(None)
    except tables.Missing as reason:
        pytest.skip(str(reason))
    return make, images, labels


def top1(resnet20, nbits: int, corrected: bool, method: str = "optimum") -> float:
    make, images, labels = resnet20
    model, _ = tables.quantized(make(), method, nbits, "channel", corrected)
    return 100 * tables.right(model, images, labels).mean()


# Intervals are ±1.1: what differs by less is a tie. The bars are the project's.
@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("nbits", "corrected", "least"), [(4, False, 80.0), (3, False, 75.0), (3, True, 76.5), (4, True, 80.0)]
)
def test_resnet20_keeps_its_accuracy(resnet20, nbits, corrected, least):
    got = top1(resnet20, nbits, corrected)
    print(f"{nbits} bits, corrected {corrected}: {got:.2f} %")
    assert got >= least


def test_resnet20_is_reported(resnet20):
    report = nonuniform_(resnet20[0](), 3)
    assert len(report.quantized) == 20
    assert [c.name for c in report.corrections if c.reason is not None] == ["conv1"]
    weights = 268_336
    bits = 8 * (sum(layer.bytes_after for layer in report.layers) - 40) / weights
    assert 3.2 < bits < 3.35


def test_the_order_on_every_layer_of_resnet20(resnet20):
    weights = {n: p.numpy().reshape(-1) for n, p in resnet20[0]().named_parameters() if p.ndim > 1}
    for nbits in (2, 3, 4):
        for row, checks in tables.layers(weights, nbits):
            assert [c.text for c in checks if c.kind == "bound" and not c.holds] == []
            assert row["fit"]["laplace"]["distance"] < 0.2


def test_a_file_that_is_no_resnet(tmp_path):
    from safetensors.torch import save_file

    path = Path(tmp_path, "other.safetensors")
    save_file({"layer1.0.conv1.weight": torch.zeros(16, 16, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"no ResNet of CIFAR-10: conv1\.weight is missing"):
        load_resnet(path)
    model = ResNet(1)
    save_file({f"module.{n}": t for n, t in model.state_dict().items() if "tracked" not in n}, path)
    loaded = load_resnet(path)
    assert torch.equal(loaded.layer3[0].conv2.weight, model.layer3[0].conv2.weight)


# ------------------------------------------------------------------ tables


def test_densities_hold():
    told, checks = tables.densities()
    assert [check.text for check in checks if not check.holds] == []
    assert {check.kind for check in checks} == {"identity", "bound", "trend"}
    products = {(row["density"], row["nbits"]): row["product"] for row in told["high_resolution"]}
    assert products["gauss", 4] == pytest.approx(2.43, abs=0.005)
    assert products["laplace", 5] == pytest.approx(4.20, abs=0.005)
    fixed = {(row["density"], row["nbits"]): row["fixed_point"] for row in told["lloyd"]}
    assert fixed["gauss", 2] == pytest.approx(0.117482, abs=1e-6)
    assert fixed["laplace", 4] == pytest.approx(0.015373, abs=1e-6)


@pytest.mark.parametrize("rival", list(tables.RIVALS))
def test_rivals_make_weights(rival):
    rng = np.random.default_rng(0)
    w = rng.laplace(size=(16, 144)).astype(np.float32)
    inputs = input_moments(network())["3"]
    values, size = tables.RIVALS[rival](w, 4, "channel", inputs)
    assert values.shape == w.shape
    assert np.square(values - w).mean() < 0.05 * np.square(w).mean()
    assert w.size / 2 < size < w.size


def test_dequantized_models_run_in_floats():
    model = network()
    nonuniform_(model, 4)
    assert type(dequantize_(model)[11]) is nn.Linear
