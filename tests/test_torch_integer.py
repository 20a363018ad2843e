"""lowbit.torch.to_integer: what is read, how ranges are chosen, and how near the integers come."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from lowbit.models.resnet import ResNet  # noqa: E402
from lowbit.reference.integer import run  # noqa: E402
from lowbit.torch import allocate_bits, to_integer  # noqa: E402
from lowbit.torch.histogram import BINS, Histogram  # noqa: E402
from lowbit.torch.integer import IntegerLayer, IntegerReport  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Of(nn.Module):
    """Layers by name, and a function of them and the input."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *xs):
        return self.function(self, *xs)


def settled(model: nn.Module, *shapes: tuple[int, ...]) -> nn.Module:
    """With BatchNorms that have seen data, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(*(torch.randn(32, *shape) for shape in shapes))
    return model.eval()


def kinds(found) -> list[str]:
    return [type(op).__name__ for op in found.graph.operations]


def check(model: nn.Module, *shapes: tuple[int, ...], least: float = 0.999, **how):
    """The network in integers, once it was found near the model, in the interpreter and as a module."""
    model = settled(model, *shapes)
    found = to_integer(model, [tuple(torch.randn(32, *shape) for shape in shapes) for _ in range(3)], **how)
    xs = [torch.randn(16, *shape) for shape in shapes]
    with torch.no_grad():
        expected = model(*xs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    arrays = [(x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().numpy() for x in xs]
    got = run(found.graph, *arrays)
    module = found.as_module()(*xs)
    module = module if isinstance(module, tuple) else (module,)
    assert len(got) == len(expected) == len(module)
    for y, z, want in zip(got, module, expected, strict=True):
        y = torch.from_numpy(np.moveaxis(y, -1, 1) if y.ndim == 4 else y)
        assert torch.equal(y, z)
        assert y.shape == want.shape
        assert functional.cosine_similarity(y.flatten(), want.flatten(), dim=0) > least
    return found


# ------------------------------------------------------------------ operations

MAP = (6, 8, 8)


def conv(before: int = 6, after: int = 6, kernel: int = 3, **how) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, **{"padding": kernel // 2, **how})


torch.manual_seed(0)
NETWORKS = {
    "conv": nn.Sequential(conv(6, 4)),
    "strides, gaps, no bias": nn.Sequential(conv(6, 4, stride=2, bias=False), nn.ReLU(), conv(4, 5, dilation=2)),
    "groups": nn.Sequential(conv(6, 12, groups=3), nn.ReLU(), conv(12, 12, groups=12), nn.ReLU(), conv(12, 4, 1)),
    "same": nn.Sequential(conv(6, 4, 4, padding="same"), nn.ReLU(), conv(4, 4, 3, padding="valid")),
    "oblong": nn.Sequential(nn.Conv2d(6, 4, (1, 3), (1, 2), (0, 2)), nn.ReLU6(), nn.Conv2d(4, 4, (3, 1))),
    "batchnorm": nn.Sequential(conv(bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(), nn.BatchNorm2d(6)),
    "batchnorm first": nn.Sequential(nn.BatchNorm2d(6), conv(), nn.ReLU(), nn.BatchNorm2d(6), conv()),
    "linear batchnorm": nn.Sequential(nn.Flatten(), nn.Linear(384, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 9)),
    "clamps": nn.Sequential(conv(), nn.ReLU6(), conv(), nn.Hardtanh(-0.5, 0.25), conv(), nn.ReLU(inplace=True), conv()),
    "max": nn.Sequential(conv(), nn.MaxPool2d(3, 2, 1), nn.ReLU(), conv(), nn.MaxPool2d(3, 2, ceil_mode=True)),
    "average": nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1), nn.ReLU(), conv(), nn.AvgPool2d(3, 2, ceil_mode=True), conv()),
    "average 2": nn.Sequential(conv(), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d(2), conv()),
    "whole": nn.Sequential(conv(6, 20), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(20, 9)),
    "flattened map": nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(384, 9)),
    "flattened function": nn.Sequential(conv(), nn.Flatten(), nn.Tanh(), nn.Linear(384, 9), nn.Identity()),
    "zeros": nn.Sequential(nn.ZeroPad2d((1, 2, 3, 0)), conv(), nn.ReLU()),
    "softmax": nn.Sequential(nn.Flatten(), nn.Linear(384, 9), nn.Softmax(1)),
    "numbers": Of(lambda m, x: m.a((x * 2 + 1) / 3 - 0.5), a=conv()),
    "channels": Of(lambda m, x: m.a((x - torch.arange(6.0)[:, None, None]) / torch.full((1, 6, 1, 1), 2.0)), a=conv()),
    "vectors": Of(lambda m, x: m.a(x.mean((2, 3))) + m.b(x.mean((-1, -2))), a=nn.Linear(6, 7), b=nn.Linear(6, 7)),
    "residual": Of(lambda m, x: functional.relu(x + m.b(functional.relu(m.a(x)))), a=conv(), b=conv()),
    "both branches": Of(lambda m, x: functional.relu(m.a(x) + m.b(x)), a=conv(), b=conv()),
    "option A": Of(
        lambda m, x: functional.relu(functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)) + m.a(x)),
        a=conv(6, 12, stride=2),
    ),
    "slices": Of(lambda m, x: m.a(x[:, 1:5, 2:, -5:-1]), a=conv(4, 4)),
    "used twice": Of(lambda m, x: m.a(functional.relu(m.a(x))), a=conv()),
    "seen before and after": Of(lambda m, x: (y := m.a(x), functional.relu(y)), a=conv()),
    "in place": Of(lambda m, x: m.b(m.a(x).mul_(0.5).add_(1).relu_()), a=conv(), b=conv()),
    "join": Of(lambda m, x: m.c(torch.cat([functional.relu(m.a(x)), m.b(x)], 1)), a=conv(), b=conv(6, 3), c=conv(9, 4)),
    "join rows": Of(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)), a=conv(), b=conv(), c=conv()),
    "join columns": Of(lambda m, x: m.c(torch.cat([x, m.a(x)], -1)), a=conv(), c=conv()),
    "join pools": Of(
        lambda m, x: m.c(torch.cat([functional.max_pool2d(m.a(x), 2), functional.avg_pool2d(x, 2)], 1)),
        a=conv(), c=conv(12, 4),
    ),
    "join joined": Of(
        lambda m, x: (y := torch.cat([x, m.a(x)], 1), m.c(torch.cat([torch.cat([m.a(x), m.b(x)], 1), y, y], 1)))[1],
        a=conv(), b=conv(), c=conv(36, 4),
    ),
    "join one with itself": Of(lambda m, x: (y := m.a(x), m.c(torch.cat([y, y, x, x], 1)))[1], a=conv(), c=conv(24, 4)),
    "join vectors": Of(lambda m, x: m.c(torch.cat([x.mean((2, 3)), m.a(x).flatten(1)], 1)), a=conv(), c=nn.Linear(390, 9)),
    "dense": Of(
        lambda m, x: m.c(m.n(torch.cat([x, y := m.a(x), m.b(torch.cat([x, y], 1))], 1)).relu()),
        a=conv(), b=conv(12), c=conv(18, 4), n=nn.BatchNorm2d(18),
    ),
    "gate": Of(
        lambda m, x: (y := m.a(x), m.c(y * torch.sigmoid(m.b(y.mean((2, 3), keepdim=True)))))[1],
        a=conv(), b=conv(6, 6, 1), c=conv(),
    ),
    "gate of a vector": Of(
        lambda m, x: functional.relu6(functional.hardsigmoid(m.b(m.a(x).mean((2, 3))))[:, :, None, None] * m.a(x)),
        a=conv(), b=nn.Linear(6, 6),
    ),
    "products": Of(lambda m, x: m.c(functional.relu(m.a(x) * m.b(x))), a=conv(), b=conv(), c=conv()),
    "products of vectors": Of(lambda m, x: m.a(x.mean((2, 3))) * m.b(x.mean((2, 3))), a=nn.Linear(6, 7), b=nn.Linear(6, 7)),
    "mean with an activation": nn.Sequential(conv(), nn.AvgPool2d(2), nn.ReLU(), conv()),
    "view": Of(lambda m, x: m.a(functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)), a=nn.Linear(6, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_come_near(name):
    check(copy.deepcopy(NETWORKS[name]), MAP)


@pytest.mark.parametrize(
    "function",
    [
        torch.sigmoid, torch.tanh, functional.gelu, functional.hardswish, functional.silu, functional.hardsigmoid,
        functional.elu, functional.mish, functional.leaky_relu, functional.softplus, torch.abs, functional.logsigmoid,
        lambda x: x * torch.sigmoid(x), lambda x: x * functional.relu6(x + 3) / 6, lambda x: x * x, lambda x: x + torch.sin(x),
    ],
)  # fmt: skip
def test_any_function_of_one_value_is_one_table(function):
    found = check(Of(lambda m, x: m.b(function(m.a(x))), a=conv(), b=conv()), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "Table", "Conv2d"]


def test_a_prelu_of_one_slope_is_a_table():
    assert "Table" in kinds(check(nn.Sequential(conv(), nn.PReLU(), conv()), MAP))


def test_activations_and_batchnorms_become_part_of_layers():
    found = check(copy.deepcopy(NETWORKS["clamps"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "Conv2d", "Conv2d", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["batchnorm"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["max"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Dequantize"]


def test_means_have_a_scale_of_their_own_and_clamp():
    found = check(copy.deepcopy(NETWORKS["mean with an activation"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "AveragePool2d", "Conv2d"]
    mean = found.graph.operations[2]
    before, after = (found.graph.tensors[name] for name in (mean.input, mean.output))
    assert after.scale < before.scale
    assert after.zero_point == 0


def test_parts_get_one_scale_where_they_are_made_and_by_a_table_if_they_are_read_elsewhere():
    found = check(copy.deepcopy(NETWORKS["join"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "Conv2d", "Concatenate", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["join pools"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "MaxPool2d", "AveragePool2d", "Concatenate", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["join columns"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "Table", "Concatenate", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["join joined"]), MAP)
    assert kinds(found).count("Concatenate") == 3
    for op in found.graph.operations:
        if type(op).__name__ == "Concatenate":
            tensors = [found.graph.tensors[name] for name in (*op.parts, op.output)]
            assert len({(tensor.scale, tensor.zero_point) for tensor in tensors}) == 1


def test_gates_are_products():
    found = check(copy.deepcopy(NETWORKS["gate"]), MAP)
    assert kinds(found) == ["Quantize", "Conv2d", "AveragePool2d", "Conv2d", "Table", "Multiply", "Conv2d"]
    found = check(copy.deepcopy(NETWORKS["gate of a vector"]), MAP)
    assert kinds(found)[-2:] == ["Multiply", "Dequantize"]


def test_several_inputs_and_outputs():
    model = Of(
        lambda m, x, y: (m.a(x), m.b(y), m.c(torch.relu(m.b(y)))), a=conv(), b=nn.Linear(5, 4), c=nn.Linear(4, 3)
    )
    found = check(model, MAP, (5,), least=0.99)
    assert len(found.graph.inputs) == 2


def test_codes_are_symmetric_and_activations_after_relu_start_at_zero():
    found = check(copy.deepcopy(NETWORKS["groups"]), MAP)
    for constant in found.graph.constants.values():
        if constant.data.dtype == np.int8:
            assert np.abs(constant.data).max() <= 127
    relu = next(op.output for op in found.graph.operations if type(op).__name__ == "Conv2d")
    assert (found.graph.tensors[relu].dtype, found.graph.tensors[relu].zero_point) == ("uint8", 0)


def test_a_channel_of_almost_no_weight_keeps_its_bias():
    model = nn.Sequential(conv(), nn.ReLU(), conv())
    with torch.no_grad():
        model[0].weight[0] = 1e-12
        model[0].weight[1] = 0
        model[0].bias[:2] = 3
    check(model, MAP)


@pytest.mark.parametrize("factor", [0, 1e-5, 1e-3])
@pytest.mark.parametrize("scale", [1, 1e-3])
def test_branches_of_any_size_can_be_added(factor, scale):
    check(Of(lambda m, x: m.b(torch.relu(scale * x + factor * m.a(x))), a=conv(), b=conv()), MAP)
    check(Of(lambda m, x: m.b(scale * torch.relu(x) + factor * m.a(x)), a=conv(), b=conv()), MAP)


def test_dead_inputs_are_no_obstacle():
    model = nn.Sequential(conv(), nn.ReLU(), conv())
    with torch.no_grad():
        model[0].bias[:] = -100
    check(model, MAP)


# ------------------------------------------------------------------ names


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Named(nn.Module):
    """Modules, among them one that is called twice and some that are called as other things in the graph are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(6)
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), conv(), nn.GELU(), nn.Dropout())
        self.x, self.x_codes, self.add = conv(), conv(), conv()
        self.swish, self.pool, self.mean = Swish(), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(1)
        self.flat, self.head = nn.Flatten(), nn.ModuleDict({"linear_float": nn.Linear(6, 4)})

    def forward(self, x):
        x = self.first(x)
        x = torch.tanh(x + self.block(x))
        x = self.swish(self.x(self.x(x)))
        x = self.pool(self.add(self.x_codes(x)))
        return self.head["linear_float"](self.flat(self.mean(functional.max_pool2d(x, 2))))


def test_operations_have_the_names_of_modules_and_else_those_of_the_trace():
    found = check(Named(), MAP, least=0.99)
    outputs = [op.output for op in found.graph.operations]
    assert outputs == [
        "x#3_codes", "first", "block.0", "block.3", "block.4", "add#2", "tanh", "x", "x#2", "swish", "x_codes", "add",
        "pool_pad", "pool", "max_pool2d", "mean", "flat", "head.linear_float",
    ]  # fmt: skip
    assert found.graph.inputs == ("x#3",)
    assert found.graph.outputs == ("head.linear_float",)
    layers = [op.output for op in found.graph.operations if type(op).__name__ in ("Conv2d", "FullyConnected")]
    assert layers == [layer.name for layer in found.report.layers]
    assert all(op.weight == f"{op.output}.weight" for op in found.graph.operations if hasattr(op, "weight"))
    timed = [step.output for step in found.graph.plan().profile(np.zeros((1, 8, 8, 6), np.float32), rounds=1)]
    assert set(timed) < set(outputs)
    assert {"first", "block.0", "x", "x#2", "pool", "head.linear_float"} < set(timed)


def test_floats_and_codes_of_outputs_have_names_of_their_own():
    model = Of(lambda m, x: (y := torch.tanh(m.a(x)), m.b(y), y), a=conv(), b=conv())
    found = check(model, MAP, least=0.99)
    assert [op.output for op in found.graph.operations] == ["xs_0_codes", "a", "tanh", "b", "tanh_float"]
    assert found.graph.outputs == ("tanh_float", "b", "tanh_float")
    model = Of(lambda m, x: (torch.tanh(m.tanh_float(x)), m.tanh_float(x)), tanh_float=conv())
    found = check(model, MAP, least=0.99)
    assert found.graph.outputs == ("tanh_float#3", "tanh_float#2")


# ------------------------------------------------------------------ what is chosen


@pytest.mark.parametrize("calibration", ["mse", "minmax", "percentile"])
def test_ranges(calibration):
    found = check(copy.deepcopy(NETWORKS["residual"]), MAP, calibration=calibration)
    assert found.graph.notes["calibration"] == calibration


def test_rules_choose_bits_and_the_report_tells_them():
    model = Of(lambda m, x: m.last(torch.relu(m.mid(torch.relu(m.first(x))))), first=conv(), mid=conv(), last=conv())
    rules = [("first|last", lowbit.Int8())]
    found = check(model, MAP, least=0.99, config=lowbit.Uniform(4), rules=rules)
    assert [(x.name, x.nbits) for x in found.report.layers] == [("first", 8), ("mid", 4), ("last", 8)]
    assert found.graph.constants["mid.weight"].nbits == 4
    assert np.abs(found.graph.constants["mid.weight"].data).max() <= 7
    assert found.report.layers[1].error > found.report.layers[0].error
    assert found.report.samples == 96
    assert found.report.measures[-1].decibels > 20
    assert "biases put right" in str(found.report)
    assert json.loads(found.report.to_json())["samples"] == 96


def test_the_report_tells_the_size_of_small_models_in_kilobytes():
    layers = IntegerLayer("a", "conv", 8, 2_000_000, 999_990, 0.0), IntegerLayer("b", "linear", 8, 528, 10, 0.0)
    for chosen, told in (
        (layers, "2.00 MB -> 1.00 MB"),
        (layers[:1], "2.00 MB -> 999.99 kB"),
        (layers[1:], "0.53 kB -> 0.01 kB"),
    ):
        assert str(IntegerReport(chosen, 256, ())).splitlines()[-1] == f"{told}; calibrated with 256 samples"


def test_the_repr_is_one_line_that_agrees_with_the_report():
    found = check(nn.Sequential(conv(), nn.ReLU(), conv(6, 4)), MAP, least=0.99, config=lowbit.Uniform(4))
    n_bytes = sum(layer.bytes_after for layer in found.report.layers)
    graph = f"Graph(3 operations, 4 tensors, {n_bytes} bytes of parameters)"
    assert repr(found.graph) == graph
    assert repr(found) == f"IntegerModel({graph}, {found.report.measures[-1].decibels:.1f} dB on 96 samples)"


def test_error_feedback_and_biases_lessen_the_error_of_four_bits():
    model = settled(nn.Sequential(conv(6, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 4)), MAP)
    found = to_integer(model, [torch.randn(64, *MAP)], config=lowbit.Uniform(4))
    first, *_, last = (m.decibels for m in found.report.measures)
    assert last > first + 3


def mobile() -> nn.Sequential:
    """Depthwise convolutions, each followed by one of single pixels."""
    layers = [conv(6, 8), nn.BatchNorm2d(8), nn.ReLU()]
    for before, after in ((8, 16), (16, 16), (16, 32)):
        layers += [conv(before, before, groups=before, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
        layers += [conv(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 9))


def unbalanced(model: nn.Sequential) -> nn.Sequential:
    """The same function by channels that differ in size by up to 2^4."""
    model = copy.deepcopy(model)
    layers = [i for i, layer in enumerate(model) if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for i, j in itertools.pairwise(layers):
            factor = 2.0 ** torch.randint(0, 5, (model[i].out_channels,))
            model[i + 1].weight *= factor
            model[i + 1].bias *= factor
            model[j].weight /= factor.reshape((-1, 1, 1, 1) if model[j].groups > 1 else (1, -1, 1, 1))
    return model


@pytest.mark.parametrize("config", [lowbit.Int8(), lowbit.Uniform(4)])
def test_channels_of_very_different_size_cost_nothing(config):
    model = settled(mobile(), MAP)
    x, other = torch.randn(64, *MAP), unbalanced(model)
    with torch.no_grad():
        assert torch.allclose(model(x), other(x), atol=1e-4)
    before, after = (to_integer(m, [x], config=config).report.measures for m in (model, other))
    assert [m.what for m in after][-2:] == ["channels made even", "error feedback"]
    assert after[-2].decibels > after[-3].decibels + 3
    assert after[-1].decibels > before[-1].decibels - 1


def test_channels_that_would_not_gain_stay_as_they_are():
    model = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv(6, 4))
    found = to_integer(model, [torch.randn(64, *MAP)])
    assert "channels made even" not in str(found.report)
    assert found.report.layers[0].error < 0.01


def test_allocated_bits_are_rules():
    # The branch counts little.
    layers = {"first": conv(), "branch": conv(6, 6, 5), "last": conv(6, 4)}
    model = Of(lambda m, x: m.last((y := torch.relu(m.first(x))) + 0.01 * m.branch(y)), **layers)
    data = [torch.randn(64, *MAP)]
    rules = allocate_bits(model, data, 4, integer=True)
    found = to_integer(model, data, rules=rules)
    bits = {layer.name: layer.nbits for layer in found.report.layers}
    weights = {name: layer.weight.numel() for name, layer in layers.items()}
    assert sum(bits[name] * count for name, count in weights.items()) <= 4 * sum(weights.values())
    assert bits["branch"] < 4 < min(bits["first"], bits["last"])
    uniform = to_integer(model, data, config=lowbit.Uniform(4))
    assert found.report.measures[-1].decibels > uniform.report.measures[-1].decibels + 6


def test_bits_of_a_residual_network():
    model = settled(ResNet(1), (3, 8, 8))
    data, told = [torch.randn(16, 3, 8, 8)] * 3, []
    rules = allocate_bits(model, data, 3, integer=True, progress=lambda *t: told.append(t))
    found = to_integer(model, data, rules=rules)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    counts = [layer.weight.numel() for layer in layers]
    assert len(rules) == len(found.report.layers) == len(layers) == len(told) - 1
    assert sum(x.nbits * n for x, n in zip(found.report.layers, counts, strict=True)) <= 3 * sum(counts)
    with pytest.raises(ValueError, match=r"budget: expected at least 2\.000 bits"):
        allocate_bits(model, data, 1, integer=True)
    with pytest.raises(ValueError, match=r"configs\[0\]: expected no rotation"):
        allocate_bits(model, data, 4, integer=True, configs=[lowbit.Uniform(4, rotate="hadamard")])
    with pytest.raises(TypeError, match="integer: expected a bool"):
        allocate_bits(model, data, 4, integer=1)


def test_the_model_stays_as_it_is():
    model = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), conv())
    model[1].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    to_integer(model, [torch.randn(4, *MAP)])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_data_go_through_once_and_batches_do_not_count():
    model, x = settled(copy.deepcopy(NETWORKS["residual"]), MAP), torch.randn(48, *MAP)
    one = to_integer(model, [x]).graph
    many = to_integer(model, (part for part in x.split(7))).graph
    assert one.to_json() == many.to_json()
    assert all(np.array_equal(a, b) for a, b in zip(one.arrays(), many.arrays(), strict=True))


def test_progress():
    told = []
    to_integer(copy.deepcopy(NETWORKS["max"]), [torch.randn(4, *MAP)] * 3, progress=lambda *t: told.append(t))
    assert [t[0] for t in told] == sorted(t[0] for t in told)
    assert told[-1] == (5, 5, "")
    assert [t[2] for t in told[:-1]] == ["data"] * 3 + ["0", "3"]


def test_the_module_can_be_copied_and_pickled():
    found = check(nn.Sequential(conv()), MAP)
    x, module = torch.randn(2, *MAP), found.as_module()
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)


# ------------------------------------------------------------------ what is refused


def test_all_that_cannot_be_taken_is_told_at_once():
    def forward(m, x):
        y = m.a(x) - x
        z = m.up(x) * m.a(x)
        return (
            m.norm(x),
            y,
            z,
            functional.pad(x, (1, 1, 1, 1), mode="reflect"),
            x.permute(0, 2, 3, 1),
            torch.sort(x).values,
        )

    model = Of(forward, a=conv(), up=nn.ConvTranspose2d(6, 6, 1), norm=nn.GroupNorm(2, 6))
    seen = []
    data = (seen.append(1) or torch.randn(2, *MAP) for _ in range(3))
    with pytest.raises(ValueError, match="6 things have no integer form; nothing was done") as error:
        to_integer(model, data)
    assert len(seen) == 1
    text = str(error.value)
    for words in (
        "(sub): a difference of two activations",
        "(conv_transpose2d in up): a transposed convolution",
        "(group_norm in norm): its mean and variance are those of each sample; BatchNorm",
        "other values than 0; padding_mode='zeros'",
        "(permute): axes in another order",
        "(sort): no integer operation",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Of(lambda m, x: x * m.a(x)[:, :1], a=conv()), "a product of .6, 8, 8. and .1, 8, 8.; of one shape, or with"),
        (Of(lambda m, x: x / m.a(x), a=conv()), "a quotient of two activations; a table of the reciprocal"),
        (Of(lambda m, x: x @ m.a(x), a=conv()), "a product of matrices that are no parameters"),
        (Of(lambda m, x: torch.maximum(x, m.a(x)), a=conv()), "a function of two activations; sums and products"),
        (Of(lambda m, x: torch.cat([x, torch.ones(2, 1, 8, 8)], 1)), "constants among its parts"),
        (Of(lambda m, x: torch.cat([x, m.a(x)], 0), a=conv()), "no batch as axis 0"),
        (Of(lambda m, x: x - m.a(x), a=conv()), "a difference of two activations"),
        (nn.Sequential(conv(), nn.Flatten()), "a flattened map is an output"),
        (nn.Sequential(conv(), nn.BatchNorm2d(6, track_running_stats=False)), "BatchNorm with running statistics"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3)), "windows of several sizes; avg_pool2d"),
        (nn.Sequential(nn.MaxPool2d(2, dilation=2)), "a dilation of 1"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(384)), "a flattened map|channels of an input"),
        (nn.Sequential(nn.Linear(8, 8)), "a linear layer of each position; a Conv2d with a kernel of 1"),
        (nn.Sequential(conv(), nn.PReLU(6)), "a function of several tensors"),
        (Of(lambda m, x: x.sum(0, keepdim=True)), "no integer operation|no batch as axis 0"),
        (Of(lambda m, x: m.a(x[:1]), a=conv()), "no batch as axis 0"),
        (Of(lambda m, x: (m.a(x), torch.ones(3)), a=conv()), "depends on no input"),
        (Of(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv()), "torch.export cannot trace it"),
    ],
)
def test_refused(model, words):
    with pytest.raises(ValueError, match=words):
        to_integer(model.eval(), [torch.randn(4, *MAP)])


def test_wrong_arguments():
    model, x = nn.Sequential(conv()).eval(), torch.randn(4, *MAP)
    nan = x.clone()
    nan[0, 0, 0, 0] = torch.nan
    for error, words, data, how in (
        (TypeError, "data: expected an iterable of batches, got Tensor", x, {}),
        (ValueError, "data: expected at least one batch", [], {}),
        (ValueError, "data: expected samples in the first batch", [x[:0]], {}),
        (TypeError, "data: expected tensors", [x.numpy()], {}),
        (ValueError, "data: expected samples of shape", [x, x[:, :, 1:]], {}),
        (ValueError, "data: values of input: expected finite values", [nan], {}),
        (TypeError, "config: expected lowbit.Int8", [x], {"config": None}),
        (TypeError, "rules\\[0\\]: expected lowbit.Int8.*every layer is of integers", [x], {"rules": [("0", None)]}),
        (ValueError, "rules\\[0\\]: 'head' matches no layer", [x], {"rules": [("head", lowbit.Int8())]}),
        (ValueError, "config: expected no rotation", [x], {"config": lowbit.Uniform(4, rotate="hadamard")}),
        (ValueError, "calibration: expected", [x], {"calibration": "entropy"}),
    ):
        with pytest.raises(error, match=words):
            to_integer(model, data, **how)
    with pytest.raises(TypeError, match="model: expected"):
        to_integer(None, [x])
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="its weight holds NaN or an infinity"):
        to_integer(model, [x])


def test_what_depends_on_a_refused_operation_stays_hidden_until_that_one_is_replaced():
    def told(model) -> str:
        with pytest.raises(ValueError, match="1 thing has no integer form") as error:
            to_integer(model, [torch.randn(4, *MAP)])
        return str(error.value)

    assert "sort" not in told(Of(lambda m, x: torch.sort(m.norm(x)).values, norm=nn.GroupNorm(2, 6)))
    assert "sort" in told(Of(lambda m, x: torch.sort(m.norm(x)).values, norm=nn.BatchNorm2d(6)).eval())


class Counted(nn.Module):
    """Takes one argument or two, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = conv(), 0

    def forward(self, x, y=None):
        self.calls += 1
        return self.a(x) if y is None else self.a(x) + y


class Pair(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (
            nn.Sequential(conv()),
            (0, torch.zeros(4)),
            r"takes 1 argument and the batch holds 2; yield x alone.*\(x for x,",
        ),
        (nn.Sequential(conv()), [0, [1, 2, 3, 4]], r"takes 1 argument and the batch holds 2; yield x alone"),
        (nn.Sequential(conv()), (), r"takes 1 argument and the batch holds 0; one tensor for each, in a tuple"),
        (Pair(), 0, r"takes 2 arguments and the batch holds 1; one tensor for each, in a tuple"),
        (
            Pair(),
            (0, 0, torch.zeros(4)),
            r"takes 2 arguments and the batch holds 3; yield the arguments alone, without",
        ),
        (Counted(), (0, 0, torch.zeros(4)), r"takes 1 to 2 arguments and the batch holds 3; yield the arguments alone"),
    ],
)
def test_labels_in_a_batch_are_told_before_any_work(model, batch, words):
    x, told = torch.randn(4, *MAP), []
    batch = x if batch == 0 else type(batch)(x if isinstance(part, int) else part for part in batch)
    with pytest.raises(TypeError, match=f"data: the model {words}"):
        to_integer(model, [batch], progress=lambda *t: told.append(t))
    with pytest.raises(TypeError, match=f"data: the model {words}"):
        allocate_bits(model, [batch], 4, integer=True, progress=lambda *t: told.append(t))
    assert not told
    assert getattr(model, "calls", 0) == 0


def test_arguments_that_may_be_left_out():
    x = torch.randn(4, *MAP)
    for batch, n in ((x, 1), ((x,), 1), ((x, x), 2)):
        assert len(to_integer(Counted(), [batch]).graph.inputs) == n


# ------------------------------------------------------------------ histograms

PARTS = st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), max_size=20), min_size=1, max_size=5)


def counted(values: list[float]) -> Histogram:
    found = Histogram()
    found.add(torch.tensor(values))
    return found


def same(a: Histogram, b: Histogram) -> bool:
    return (a.exponent, a.low, a.high) == (b.exponent, b.low, b.high) and np.array_equal(a.counts, b.counts)


@settings(deadline=None)
@given(PARTS)
def test_a_merged_histogram_is_that_of_all(parts):
    whole, added, merged = counted([value for part in parts for value in part]), Histogram(), Histogram()
    for part in parts:
        added.add(torch.tensor(part))
    for part in reversed(parts):
        merged.merge(counted(part))
    assert same(whole, added)
    assert same(whole, merged)
    assert whole.counts.sum() == sum(map(len, parts))
    assert len(whole.counts) == BINS


@settings(deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=50),
    st.sampled_from(["mse", "percentile"]),
)
def test_ranges_hold_zero_and_lie_within_the_values(values, method):
    histogram = counted(values)
    low, high = histogram.range(method)
    least, most = histogram.range("minmax")
    assert (least, most) == (min(0, histogram.low), max(0, histogram.high))
    assert least <= low <= 0 <= high <= most
    assert (low < high) == (least < most)


def test_least_squares_cut_off_what_is_rare():
    histogram = counted([40.0])
    for _ in range(10):
        histogram.add(torch.randn(200_000).abs())
    low, high = histogram.range("mse")
    assert low == 0
    assert 4 < high < 15
    assert histogram.range("percentile")[1] < 10
    with pytest.raises(ValueError, match="expected finite values"):
        counted([1.0, float("nan")])


# ------------------------------------------------------------------ a real network


@pytest.fixture(scope="module")
def resnet20():
    folder = Path(os.environ.get("LOWBIT_DATA", ""))
    if not (folder / "resnet_cifar10/resnet20.safetensors").is_file():
        pytest.skip("no data: LOWBIT_DATA=FOLDER, with resnet_cifar10 and cifar10 in it")
    from lowbit.models.resnet import load_resnet, normalized

    def images(name: str, n: int):
        with np.load(folder / "cifar10" / name) as file:
            return normalized(torch.from_numpy(file["x"][:n])), torch.from_numpy(file["y"][:n]).long()

    model = load_resnet(folder / "resnet_cifar10/resnet20.safetensors")
    calibration, _ = images("train_calib2000_jpeg.npz", 200)
    x, y = images("test_first5000_jpeg.npz", 5000)
    with torch.no_grad():
        expected = torch.cat([model(part) for part in x.split(500)])
    return model, calibration, x, y, expected


@pytest.mark.parametrize(("bits", "agree"), [("8", 0.986), ("4", 0.95), ("4 on average", 0.95)])
def test_resnet20_decides_as_it_did(resnet20, bits, agree):
    model, calibration, x, y, expected = resnet20
    data = calibration.split(50)
    rules = allocate_bits(model, data, 4, integer=True) if bits == "4 on average" else None
    found = to_integer(model, data, config=lowbit.Uniform(4) if bits == "4" else lowbit.Int8(), rules=rules)
    module = found.as_module()
    got = torch.cat([module(part) for part in x.split(500)])
    assert (got.argmax(1) == expected.argmax(1)).double().mean() >= agree
    drop = ((expected.argmax(1) == y).double().mean() - (got.argmax(1) == y).double().mean()).item()
    assert drop <= (0.003 if bits == "8" else 0.01)
    maps = x[:4].permute(0, 2, 3, 1).contiguous().numpy()
    assert np.array_equal(run(found.graph, maps)[0], got[:4].numpy())
