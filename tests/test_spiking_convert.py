"""Whole models of other frameworks keep their spikes on lowbit's neurons."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from lowbit.torch.spiking import Arctan, Neurons  # noqa: E402
from lowbit.torch.spiking_convert import Simulated, convert, neuron_of  # noqa: E402

STEPS = 12


def images(*shape):
    return torch.rand(STEPS, 4, *shape, generator=torch.Generator().manual_seed(0))


def test_spikingjelly():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    torch.manual_seed(0)
    for node in [
        lambda: neuron.IFNode(),
        lambda: neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True),
        lambda: neuron.LIFNode(tau=3.0, v_reset=None, decay_input=False),
        lambda: neuron.ParametricLIFNode(init_tau=2.5),
    ]:
        model = torch.nn.Sequential(
            layer.Conv2d(2, 8, 3, padding=1),
            node(),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(8 * 16, 10),
            node(),
        )
        with torch.no_grad():
            model[0].weight *= 4
            model[4].weight *= 6
        functional.set_step_mode(model, "m")
        x = images(2, 8, 8)
        converted = convert(model)
        with torch.no_grad():
            want = model(x)
            functional.reset_net(model)
            got = converted(x)
        assert 0.01 < want.mean() < 0.9
        assert torch.equal(got, want)
        assert isinstance(converted[1], Neurons)
        assert not isinstance(model[1], Neurons)
    assert convert(model)[5].w is not None
    with pytest.raises(ValueError, match="step_mode 'm'"):
        convert(torch.nn.Sequential(neuron.LIFNode()))
    with pytest.raises(ValueError, match="QIFNode is no neuron that lowbit has"):
        convert(torch.nn.Sequential(neuron.QIFNode(step_mode="m")))


@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("synaptic", [False, True])
def test_snntorch(mechanism, synaptic):
    snn = pytest.importorskip("snntorch")
    from snntorch import utils

    torch.manual_seed(0)
    options = {"beta": 0.8, "init_hidden": True, "reset_mechanism": mechanism, "threshold": 0.5}
    make = (lambda: snn.Synaptic(alpha=0.5, **options)) if synaptic else (lambda: snn.Leaky(**options))
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), make(), torch.nn.Linear(30, 10), make())
    x = images(20)
    converted = convert(model)
    with torch.no_grad():
        utils.reset(model)
        want = torch.stack([model(step) for step in x])
        got = converted(x)
    assert 0.01 < want.mean() < 1
    assert torch.equal(got, want)
    trains = (not synaptic and mechanism == "zero") or (mechanism == "none" and not synaptic)
    assert isinstance(converted[1], Neurons if trains else Simulated)


def test_snntorch_options():
    snn = pytest.importorskip("snntorch")
    with pytest.raises(ValueError, match="reset_delay=True"):
        neuron_of(snn.Leaky(beta=0.9, reset_delay=False))
    with pytest.raises(ValueError, match="graded"):
        neuron_of(snn.Leaky(beta=0.9, graded_spikes_factor=2.0))
    assert neuron_of(snn.Leaky(beta=0.9, reset_delay=False, reset_mechanism="zero"))[0].beta == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["LIFBoxCell", "LIFCell"])
def test_norse(kind):
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(0)
    cell = getattr(norse, kind)
    if kind == "LIFBoxCell":
        p = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(250.0), v_th=torch.tensor(0.1))
    else:
        p = norse.LIFParameters(
            tau_mem_inv=torch.tensor(250.0), tau_syn_inv=torch.tensor(500.0), v_th=torch.tensor(0.1)
        )
    model = norse.SequentialState(torch.nn.Linear(20, 30), cell(p), torch.nn.Linear(30, 10), cell(p))
    x, state, want = images(20), None, []
    with torch.no_grad():
        for step in x:
            out, state = model(step, state)
            want.append(out)
        got = convert(model)(x)
    want = torch.stack(want)
    assert 0.01 < want.mean() < 1
    assert torch.equal(got, want)


def test_what_is_no_model_of_theirs():
    with pytest.raises(ValueError, match="found none"):
        convert(torch.nn.Sequential(torch.nn.Linear(2, 2), Neurons(neuron_of_lif(), Arctan())))


def neuron_of_lif():
    import lowbit

    return lowbit.LIF()
