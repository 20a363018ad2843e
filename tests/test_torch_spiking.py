"""Spiking layers that learn: gradients against autograd, quantized layers against their integers."""

from __future__ import annotations

import itertools
import math

import lowbit
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lowbit import IF, LIF, Spiking  # noqa: E402
from lowbit.torch import quantize_  # noqa: E402
from lowbit.torch.spiking import (  # noqa: E402
    Arctan,
    FastSigmoid,
    Neurons,
    QuantSpikingLayer,
    Sigmoid,
    SpikingLayer,
    Triangle,
)

SURROGATES = [Arctan(2.0), Sigmoid(4.0), Triangle(1.0), FastSigmoid(5.0)]


def slope(surrogate, u):
    a = surrogate.alpha
    if isinstance(surrogate, Arctan):
        return a / 2 / (1 + (math.pi / 2 * a * u) ** 2)
    if isinstance(surrogate, Sigmoid):
        return a * torch.sigmoid(a * u) * (1 - torch.sigmoid(a * u))
    if isinstance(surrogate, Triangle):
        return (a - a * a * u.abs()).clamp(min=0)
    return 1 / (1 + a * u.abs()) ** 2


def primitive(surrogate, u):
    """What has that slope."""
    a = surrogate.alpha
    if isinstance(surrogate, Arctan):
        return torch.atan(math.pi / 2 * a * u) / math.pi + 0.5
    if isinstance(surrogate, Sigmoid):
        return torch.sigmoid(a * u)
    if isinstance(surrogate, Triangle):
        near = u.clamp(-1 / a, 1 / a)
        return 0.5 + a * near - a * a * near * near.abs() / 2
    return u / (1 + a * u.abs())


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, surrogate):
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * slope(ctx.surrogate, ctx.saved_tensors[0]), None


def by_autograd(x_seq, v, neuron, surrogate, detach, tau=None, fire=Step.apply):
    """One operation after the other; ``fire`` is the step function or what is smooth."""
    spikes = []
    for x in x_seq:
        if isinstance(neuron, LIF):
            tau = neuron.tau if tau is None else tau
            h = v + (x - (v - neuron.v_leak)) / tau if neuron.decay_input else v * (1 - 1 / tau) + x
        else:
            h = v + x
        spike = fire(h - neuron.v_threshold, surrogate)
        gone = spike.detach() if detach else spike
        v = {"hard": h * (1 - gone) + gone * neuron.v_reset, "soft": h - gone * neuron.v_threshold, "none": h}[
            neuron.reset
        ]
        spikes.append(spike)
    return torch.stack(spikes), v


NEURONS = [
    IF(),
    IF(reset="soft"),
    LIF(tau=2.0),
    LIF(tau=2.0, v_reset=-0.25, v_leak=-0.25),
    LIF(tau=4.0, decay_input=False, reset="soft"),
    LIF(tau=2.0, reset="none"),
]


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_are_those_of_autograd(surrogate, detach):
    generator = torch.Generator().manual_seed(0)
    for neuron, (steps, n) in itertools.product(NEURONS, [(1, 5), (5, 1300), (40, 70)]):
        x = torch.randn(steps, 3, n, generator=generator) * 0.9 + 0.4
        v = torch.randn(3, n, generator=generator) * 0.3
        grads = torch.randn(steps, 3, n, generator=generator), torch.randn(3, n, generator=generator)
        ours, theirs = [], []
        for call, out in (
            (lambda x, v, k=neuron: Neurons(k, surrogate, detach_reset=detach)(x, v, return_v=True), ours),
            (lambda x, v, k=neuron: by_autograd(x, v, k, surrogate, detach), theirs),
        ):
            inputs = x.clone().requires_grad_(), v.clone().requires_grad_()
            outputs = call(*inputs)
            torch.autograd.backward(outputs, grads)
            out.extend([outputs[0].detach(), outputs[1].detach(), inputs[0].grad, inputs[1].grad])
        assert torch.equal(ours[0], theirs[0])
        for got, want in zip(ours[1:], theirs[1:], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_that_autograd_is_right(surrogate):
    """The chain of steps, with spikes that are smooth, against differences."""
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for neuron in NEURONS:
        smooth = lambda x, k=neuron: by_autograd(  # noqa: E731
            x, torch.zeros(3, dtype=torch.float64), k, surrogate, False, fire=lambda u, s: primitive(s, u)
        )[0]
        assert torch.autograd.gradcheck(smooth, x)


def test_a_learned_tau():
    torch.manual_seed(0)
    x, grads = torch.randn(6, 4, 50) + 0.5, torch.randn(6, 4, 50)
    layer = Neurons(LIF(tau=2.5), learn_tau=True)
    (layer(x) * grads).sum().backward()
    w = layer.w.detach().clone().requires_grad_()
    spikes, _ = by_autograd(x, torch.zeros(4, 50), LIF(tau=2.5), Arctan(), False, tau=1 / torch.sigmoid(w))
    (spikes * grads).sum().backward()
    torch.testing.assert_close(layer.w.grad, w.grad, rtol=1e-4, atol=1e-5)
    assert layer.learned().tau == pytest.approx(2.5)
    channels = Neurons(LIF(tau=np.linspace(1.5, 4, 50)), learn_tau=True)
    (channels(x) * grads).sum().backward()
    assert channels.w.grad.shape == (50,)


@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.parametrize("detach", [True, False])
def test_spikingjelly_gradients(v_reset, detach):
    sj = pytest.importorskip("spikingjelly.activation_based")
    from spikingjelly.activation_based import neuron, surrogate

    assert sj
    for ours, theirs in [(Arctan(), surrogate.ATan()), (Sigmoid(), surrogate.Sigmoid())]:
        torch.manual_seed(0)
        x, grads = torch.randn(8, 4, 200), torch.randn(8, 4, 200)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        options = {"reset": "soft"} if v_reset is None else {}
        one = Neurons(LIF(tau=2.0, **options), ours, detach_reset=detach)(a)
        node = neuron.LIFNode(tau=2.0, v_reset=v_reset, surrogate_function=theirs, detach_reset=detach, step_mode="m")
        two = node(b)
        assert torch.equal(one, two)
        (one * grads).sum().backward()
        (two * grads).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-5)


def test_threads_and_cuts_give_the_same():
    torch.manual_seed(0)
    layer, x = Neurons(LIF(tau=3.0)), torch.randn(6, 3, 20_001)
    grads = torch.randn_like(x)
    results = []
    for threads in (1, 2):
        with lowbit.threads(threads):
            a = x.clone().requires_grad_()
            spikes = layer(a)
            (spikes * grads).sum().backward()
            results.append((spikes, a.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    head, v = layer(x[:2], return_v=True)
    assert torch.equal(torch.cat([head, layer(x[2:], v)]), results[0][0])


def test_bad_layers():
    with pytest.raises(TypeError, match="neuron: expected an IF or a LIF"):
        Neurons(lowbit.CubaLIF())
    with pytest.raises(ValueError, match="neither refractory"):
        Neurons(LIF(refractory=1))
    with pytest.raises(TypeError, match="surrogate: expected"):
        Neurons(LIF(), "atan")
    with pytest.raises(ValueError, match="learn_tau: expected a tau above 1"):
        Neurons(LIF(tau=1.0), learn_tau=True)
    layer = Neurons(LIF())
    with pytest.raises(TypeError, match="x_seq: expected float32"):
        layer(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="v: expected float32 of shape"):
        layer(torch.zeros(2, 3), torch.zeros(4))


# ------------------------------------------------------------------ quantized


def layer_of(conv: bool, neuron, most=1, unit=1.0):
    torch.manual_seed(3)
    weight = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2) if conv else torch.nn.Linear(20, 8)
    norm = (torch.nn.BatchNorm2d if conv else torch.nn.BatchNorm1d)(8)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    torch.nn.init.uniform_(norm.weight, 0.5, 4)
    return SpikingLayer(weight, norm, None if neuron is None else Neurons(neuron), most=most, unit=unit).eval()


CONFIGS = [Spiking(2), Spiking(3), Spiking(8), Spiking(3, "power_of_two"), Spiking(4, "power_of_two")] + [
    Spiking(n, "additive") for n in (3, 4, 5)
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.nbits}-{c.levels}")
@pytest.mark.parametrize("conv", [False, True])
def test_a_quantized_layer_is_its_integers(conv, config):
    for neuron, most, unit in [
        (LIF(tau=2.0, v_threshold=0.7), 1, 1.0),
        (LIF(tau=4.0, decay_input=False, reset="soft"), 3, 1.0),
        (LIF(tau=2.0, v_leak=0.3, v_reset=0.1, strict=True), 255, 1 / 255),
        (IF(reset="soft", bias=0.05), 1, 1.0),
    ]:
        layer = layer_of(conv, neuron, most, unit)
        quantized = QuantSpikingLayer(layer, config)
        rng = np.random.default_rng(0)
        shape = (7, 5, 3, 9, 9) if conv else (7, 5, 20)
        counts = rng.integers(0, most + 1, shape).astype(np.uint8)
        spikes = quantized(torch.from_numpy(counts).float() * unit).detach().numpy()
        assert 0.001 < spikes.mean() < 0.999

        codes = quantized.codes()
        assert set(np.unique(codes)) <= set(config.codes().tolist())
        if conv:
            images = counts.transpose(0, 1, 3, 4, 2).reshape(35, 9, 9, 3)
            sums = lowbit.conv2d(images, codes.transpose(0, 2, 3, 1), stride=(2, 2), padding=((1, 1), (1, 1)))
            sums = sums.reshape(7, 5, *sums.shape[1:])
            spikes = spikes.transpose(0, 1, 3, 4, 2)
        else:
            sums = lowbit.matmul_int8(counts.reshape(35, 20), np.ascontiguousarray(codes.T)).reshape(7, 5, 8)
        run = lowbit.simulate(sums, quantized.integer_neuron())
        np.testing.assert_array_equal(run.spike_seq, spikes)


def test_eight_bits_are_close_to_floats():
    layer = layer_of(False, LIF())
    x = (torch.rand(4, 200, 20) < 0.3).float()
    quantized = QuantSpikingLayer(layer, Spiking(8))
    assert (layer(x) == quantized(x)).float().mean() > 0.99


def test_gradients_pass_roundings():
    layer = layer_of(True, LIF(tau=2.0))
    quantized = QuantSpikingLayer(layer, Spiking(8))
    x, grads = (torch.rand(4, 2, 3, 9, 9) < 0.5).float(), torch.randn(4, 2, 8, 5, 5)
    layer.neurons.detach_reset = quantized.detach_reset = True
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    (layer(a) * grads).sum().backward()
    (quantized(b) * grads).sum().backward()
    for got, want in [
        (b.grad, a.grad),
        (quantized.weight.grad, layer.weight.weight.grad),
        (quantized.bias.grad, layer.weight.bias.grad),
    ]:
        cosine = torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0)
        assert cosine > 0.98
        assert 0.9 < float(got.norm() / want.norm()) < 1.1


def test_quantize_takes_spiking_layers():
    model = torch.nn.Sequential(layer_of(False, LIF()), SpikingLayer(torch.nn.Linear(8, 4))).eval()
    x = (torch.rand(4, 6, 20) < 0.5).float()
    before = model(x)
    report = quantize_(model, Spiking(4), rules=[("^1$", Spiking(8))])
    assert [layer.name for layer in report.quantized] == ["0", "1"]
    assert [model[0].config.nbits, model[1].config.nbits] == [4, 8]
    assert "sums of spikes" in str(report)
    assert report.layers[0].bytes_after == 8 * 10 + 8 * 8
    assert model(x).shape == before.shape
    again = quantize_(model, Spiking(2))
    assert {layer.reason for layer in again.layers} == {"already quantized"}


def test_what_cannot_be_quantized():
    with pytest.raises(ValueError, match="multiple of 1/256"):
        QuantSpikingLayer(layer_of(False, LIF(tau=3.0)), Spiking(4))
    for make, says in [
        (lambda: Spiking(1), "nbits: expected 2 to 8"),
        (lambda: Spiking(5, "power_of_two"), "nbits: expected 2 to 4"),
        (lambda: Spiking(2, "additive"), "nbits: expected 3 to 5"),
        (lambda: Spiking(4, "pot"), "levels: expected"),
    ]:
        with pytest.raises(ValueError, match=says):
            make()
    with pytest.raises(TypeError, match="nbits: expected an int"):
        Spiking(4.0)
    model = torch.nn.Sequential(layer_of(False, LIF()), SpikingLayer(torch.nn.Linear(8, 4)))
    report = quantize_(model, Spiking(4), rules=[("^1$", lowbit.Int8())])
    assert report.layers[1].reason == "Int8 is for no spiking layer; Spiking(...)"


def test_powers_of_two_gain_nothing_from_four_bits_on():
    """0.038 of a normal weight's variance, whatever the bits; at two bits they are the ternary levels."""
    from lowbit.torch.spiking import best_step

    w = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(0))

    def error(levels):
        step = best_step(w, levels)
        codes = levels[torch.bucketize(w / step[:, None], (levels[1:] + levels[:-1]) / 2)]
        return float((codes * step[:, None] - w).square().mean() / w.square().mean())

    powers = lambda n: torch.tensor(sorted({0.0} | {s * 2.0**k for k in range(2 ** (n - 1) - 1) for s in (-1, 1)}))  # noqa: E731
    found = {n: error(powers(n)) for n in (2, 3, 4, 5, 6)}
    assert found[2] == pytest.approx(0.190, abs=0.003)
    assert found[3] == pytest.approx(0.0476, abs=0.001)
    for n in (4, 5, 6):
        assert found[n] == pytest.approx(0.038, abs=0.001)
    assert error(torch.arange(-7.0, 8)) < found[6] / 2
    assert Spiking(2, "power_of_two").codes().tolist() == Spiking(2).codes().tolist()
