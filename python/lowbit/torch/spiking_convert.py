"""Models of spikingjelly, snnTorch and norse on lowbit's neurons; none of them is imported."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from lowbit.neurons import IF, LIF, CubaLIF
from lowbit.spiking import simulate
from lowbit.torch import _bridge
from lowbit.torch.spiking import Arctan, FastSigmoid, Neurons, Sigmoid, Surrogate, Triangle

__all__ = ["OverTime", "Simulated", "convert", "neuron_of"]


def convert(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model with lowbit's neurons in place of a framework's, of inputs ``(T, N, ...)``.

    Spikes stay what they were; potentials to rounding. Every call begins anew: what
    a loop over steps did is one call.

    - spikingjelly: neurons in multi-step mode are replaced where they are.
    - snnTorch: a `torch.nn.Sequential` of layers and neurons with ``init_hidden``.
    - norse: a ``SequentialState`` of layers and cells.

    Parameters
    ----------
    model : Module
        It is not changed.

    Returns
    -------
    Module
        A `Neurons` for what can be trained (the surrogate is kept where lowbit has
        it, else `Arctan` stands for it), a `Simulated` for the other neurons.

    Raises
    ------
    ValueError
        A neuron that lowbit has not, or an option of one; no neurons at all.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.spiking_convert import convert
    >>> convert(torch.nn.Sequential(torch.nn.Linear(2, 3)))
    Traceback (most recent call last):
    ValueError: model: expected neurons of spikingjelly, snntorch or norse, found none
    """
    framework = next((f for m in model.modules() if (f := _framework(m)) and _is_neuron(m)), None)
    if framework is None:
        raise ValueError("model: expected neurons of spikingjelly, snntorch or norse, found none")
    if framework == "spikingjelly":
        model = copy.deepcopy(model)
        for name, module in list(model.named_modules()):
            if _is_neuron(module):
                parent, _, child = name.rpartition(".")
                if not name:
                    return _placed(module)
                setattr(model.get_submodule(parent), child, _placed(module))
        return model
    if _is_neuron(model):
        return _placed(model)
    if not isinstance(model, torch.nn.Sequential):
        raise ValueError(
            f"model: expected a Sequential, whose order is known without its loop over steps, got {type(model).__name__}"
        )
    parts = [_placed(m) if _is_neuron(m) else OverTime(copy.deepcopy(m)) for m in model]
    return torch.nn.Sequential(*parts)


class OverTime(torch.nn.Module):
    """A layer without memory on all steps at once."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        return self.module(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2])


class Simulated(torch.nn.Module):
    """Neurons with currents, refractory steps or delayed resets: all that `lowbit.simulate` has, without gradients."""

    def __init__(self, neuron: IF) -> None:
        super().__init__()
        self.neuron = neuron

    def extra_repr(self) -> str:
        return repr(self.neuron)

    def forward(self, x_seq: torch.Tensor) -> torch.Tensor:
        spikes = simulate(_bridge.view(x_seq.contiguous()), self.neuron).spike_seq
        return torch.from_numpy(spikes).to(x_seq.dtype)


def _framework(module: torch.nn.Module) -> str:
    package = type(module).__module__.partition(".")[0]
    return package if package in ("spikingjelly", "snntorch", "norse") else ""


#: By framework: the module that its neurons are of, and those that lowbit has.
_NEURONS = {
    "spikingjelly": (".neuron.", ("IFNode", "LIFNode", "ParametricLIFNode")),
    "snntorch": ("._neurons.", ("Leaky", "Synaptic")),
    "norse": (".module.", ("LIFBoxCell", "LIFBox", "LIFCell", "LIF")),
}


def _is_neuron(module: torch.nn.Module) -> bool:
    framework = _framework(module)
    if not framework or isinstance(module, torch.nn.Sequential):
        return False
    where = type(module).__module__
    return _NEURONS[framework][0] in where + "." and "Sequential" not in type(module).__name__


def _placed(module: torch.nn.Module) -> Neurons | Simulated:
    neuron, surrogate, detach = neuron_of(module)
    if isinstance(neuron, CubaLIF) or neuron.reset_delay or neuron.refractory:
        return Simulated(neuron)
    learned = type(module).__name__ == "ParametricLIFNode"
    return Neurons(neuron, surrogate, detach_reset=detach, learn_tau=learned)


def neuron_of(module: torch.nn.Module) -> tuple[IF, Surrogate, bool]:
    """A framework's neuron as lowbit's, its surrogate, and whether its reset is detached.

    Raises
    ------
    ValueError
        One that lowbit has not, or an option of it.
    """
    framework, kind = _framework(module), type(module).__name__
    if not framework or kind not in _NEURONS[framework][1]:
        known = "; ".join(f"{name}: {', '.join(kinds)}" for name, (_, kinds) in _NEURONS.items())
        raise ValueError(f"model: {kind} is no neuron that lowbit has ({known})")
    return {"spikingjelly": _spikingjelly, "snntorch": _snntorch, "norse": _norse}[framework](module, kind)


def _spikingjelly(node: Any, kind: str) -> tuple[IF, Surrogate, bool]:
    if node.step_mode != "m":
        raise ValueError(f"model: expected {kind} in step_mode 'm', got {node.step_mode!r}")
    soft = node.v_reset is None
    options: dict[str, Any] = {"v_threshold": node.v_threshold, "reset": "soft" if soft else "hard"}
    options |= {} if soft else {"v_reset": node.v_reset}
    surrogates: dict[str, Any] = {"ATan": Arctan, "Sigmoid": Sigmoid, "PiecewiseQuadratic": Triangle}
    function = node.surrogate_function
    found = surrogates.get(type(function).__name__)
    surrogate: Surrogate = found(float(function.alpha)) if found is not None else Arctan()
    if kind == "IFNode":
        if not soft and node.v_reset != 0:
            raise ValueError(f"model: an IFNode begins at its v_reset; expected 0 or None, got {node.v_reset}")
        return IF(**options), surrogate, node.detach_reset
    tau = 1.0 / float(torch.sigmoid(node.w.detach())) if kind == "ParametricLIFNode" else float(node.tau)
    leak = 0.0 if soft else node.v_reset
    return LIF(tau=tau, decay_input=node.decay_input, v_leak=leak, **options), surrogate, node.detach_reset


def _snntorch(neuron: Any, kind: str) -> tuple[IF, Surrogate, bool]:
    for name in ("inhibition", "state_quant"):
        if getattr(neuron, name, False):
            raise ValueError(f"model: lowbit has no {name} of {kind}")
    if float(torch.as_tensor(neuron.graded_spikes_factor).max()) != 1.0:
        raise ValueError(f"model: lowbit's spikes are 0 and 1, got graded_spikes_factor {neuron.graded_spikes_factor}")
    reset = {"subtract": "soft", "zero": "hard", "none": "none"}[neuron.reset_mechanism]
    delay = bool(neuron.reset_delay)
    if reset == "soft" and not delay:
        raise ValueError(
            "model: snntorch's reset_delay=False with 'subtract' takes the next reset off before it compares where "
            "the last left more than the threshold; expected reset_delay=True"
        )
    options = {"v_threshold": _number(neuron.threshold), "reset": reset, "strict": True, "decay_input": False}
    beta = np.clip(_number(neuron.beta), 0, 1)
    if kind == "Leaky":
        # Zeroed one step late before the leak: the same spikes as in the same step.
        return LIF(beta=beta, reset_delay=delay and reset == "soft", **options), FastSigmoid(), True
    return (
        CubaLIF(alpha=np.clip(_number(neuron.alpha), 0, 1), beta=beta, reset_delay=delay, **options),
        FastSigmoid(),
        True,
    )


def _norse(cell: Any, kind: str) -> tuple[IF, Surrogate, bool]:
    p, dt = cell.p, cell.dt
    soft = getattr(getattr(p, "reset_method", None), "__name__", "") == "reset_subtract"
    options: dict[str, Any] = {
        "tau": 1.0 / (dt * _number(p.tau_mem_inv)),
        "v_leak": _number(p.v_leak),
        "v_threshold": _number(p.v_th),
        "reset": "soft" if soft else "hard",
        "v_reset": _number(p.v_reset),
        "strict": True,
    }
    if kind.startswith("LIFBox"):
        return LIF(**options), Arctan(), False
    return CubaLIF(tau_syn=1.0 / (dt * _number(p.tau_syn_inv)), **options), Arctan(), False


def _number(x: Any) -> Any:
    array = torch.as_tensor(x).detach().double().numpy()
    return float(array) if array.size == 1 else array
