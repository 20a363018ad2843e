"""Layers of spiking neurons that learn, and the neurons of other frameworks on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from lowbit import _core
from lowbit.config import Spiking
from lowbit.neurons import ALIF, IF, LIF, CubaLIF
from lowbit.spiking import kernel_levels
from lowbit.torch import _bridge

__all__ = [
    "Arctan",
    "FastSigmoid",
    "Neurons",
    "QuantSpikingLayer",
    "Sigmoid",
    "SpikingLayer",
    "Surrogate",
    "Triangle",
    "best_step",
]


@dataclass(frozen=True)
class Arctan:
    """The slope ``alpha/2 / (1 + (pi/2 alpha u)^2)`` at the distance ``u`` from the threshold."""

    alpha: float = 2.0
    _name = "arctan"


@dataclass(frozen=True)
class Sigmoid:
    """The slope ``alpha s (1 - s)``, ``s`` being the logistic function of ``alpha u``."""

    alpha: float = 4.0
    _name = "sigmoid"


@dataclass(frozen=True)
class Triangle:
    """The slope ``max(0, alpha - alpha^2 |u|)``."""

    alpha: float = 1.0
    _name = "triangle"


@dataclass(frozen=True)
class FastSigmoid:
    """The slope ``1 / (1 + alpha |u|)^2``."""

    alpha: float = 25.0
    _name = "fast sigmoid"


Surrogate = Arctan | Sigmoid | Triangle | FastSigmoid


_ONE = np.ones(1, np.float32)


class _Fire(torch.autograd.Function):
    """All steps in one kernel, forwards and back; the backward pass makes the potentials again.

    ``exact``: the neurons on integers, which the inputs then are; ``sharpness``: the size
    of their unit, by which the distance to the threshold is told.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        v: torch.Tensor,
        leak: torch.Tensor | None,
        levels: dict[str, Any],
        surrogate: Surrogate,
        detach_reset: bool,
        exact: dict[str, Any] | None = None,
        sharpness: np.ndarray = _ONE,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, v, *(() if leak is None else (leak,)))
        ctx.rest = levels, exact, (surrogate._name, surrogate.alpha, sharpness), detach_reset
        spikes, after = torch.empty_like(x), v.clone()
        _core.spiking_forward(
            _bridge.view(x), levels if exact is None else exact, exact is not None, _bridge.view(after),
            _bridge.view(spikes), _bridge.count(), _bridge.openmp, None,
        )  # fmt: skip
        return spikes, after

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, v, *leak = ctx.saved_tensors
        levels, exact, surrogate, detach_reset = ctx.rest
        incoming = tuple(_bridge.view(grad.contiguous()) for grad in grads)
        grad_x, grad_v = torch.empty_like(x), torch.empty_like(v)
        grad_leak = torch.empty_like(v) if leak and ctx.needs_input_grad[2] else None
        outgoing = (_bridge.view(grad_x), _bridge.view(grad_v), None if grad_leak is None else _bridge.view(grad_leak))
        _core.spiking_backward(
            (_bridge.view(x), _bridge.view(v)), levels, exact, surrogate, detach_reset,
            incoming, outgoing, _bridge.count(), _bridge.openmp, None,
        )  # fmt: skip
        if grad_leak is not None:
            grad_leak = grad_leak.reshape(-1, leak[0].numel()).sum(0).reshape(leak[0].shape)
        return grad_x, grad_v, grad_leak, None, None, None, None, None


class Neurons(torch.nn.Module):
    """A layer of spiking neurons: ``(T, N, ...)`` of inputs to spikes of the same shape.

    Both passes go through all steps in one kernel. Every call begins anew, from
    ``neuron.v_leak``, unless it is given the potentials that an earlier one left.

    Parameters
    ----------
    neuron : IF or LIF
        What the neurons are: without ``refractory`` and ``reset_delay``. Arrays in
        it are of the last axes' shape.
    surrogate : Arctan, Sigmoid, Triangle or FastSigmoid
        The slope that stands for the step function's in the backward pass.
    detach_reset : bool
        Spikes are constants to the reset, as spikingjelly's option of that name.
    learn_tau : bool
        ``tau`` becomes a parameter: ``1/tau`` is the logistic function of ``w``
        (a parametric LIF).

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch.spiking import Neurons
    >>> layer = Neurons(lowbit.LIF(tau=2.0))
    >>> x_seq = torch.full((4, 1, 2), 1.5, requires_grad=True)
    >>> spikes = layer(x_seq)
    >>> spikes[:, 0, 0]
    tensor([0., 1., 0., 1.], grad_fn=<SelectBackward0>)
    >>> spikes.sum().backward()
    """

    def __init__(
        self,
        neuron: IF | LIF,
        surrogate: Surrogate = Arctan(),  # frozen
        *,
        detach_reset: bool = False,
        learn_tau: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(neuron, IF) or isinstance(neuron, (CubaLIF, ALIF)):
            raise TypeError(f"neuron: expected an IF or a LIF, got {neuron!r}")
        if neuron.refractory or neuron.reset_delay:
            raise ValueError("neuron: training has neither refractory steps nor delayed resets")
        if not isinstance(surrogate, Surrogate):
            raise TypeError(f"surrogate: expected an Arctan, Sigmoid, Triangle or FastSigmoid, got {surrogate!r}")
        self.neuron, self.surrogate, self.detach_reset = neuron, surrogate, detach_reset
        self.w: torch.nn.Parameter | None = None
        if learn_tau:
            if not isinstance(neuron, LIF):
                raise TypeError(f"learn_tau: expected a LIF, got {type(neuron).__name__}")
            rate = 1.0 / torch.tensor(np.array(neuron.tau), dtype=torch.float32)
            if not bool((rate < 1).all()):
                raise ValueError(f"learn_tau: expected a tau above 1, got {neuron.tau}")
            self.w = torch.nn.Parameter(torch.logit(rate))

    def extra_repr(self) -> str:
        kind = type(self.neuron).__name__
        tau = f"tau={self.neuron.tau}, " if isinstance(self.neuron, LIF) and self.w is None else ""
        return f"{kind}, {tau}reset={self.neuron.reset!r}, {self.surrogate}"

    def learned(self) -> IF | LIF:
        """The neuron with the ``tau`` learned so far."""
        if self.w is None:
            return self.neuron
        tau = (1.0 / torch.sigmoid(self.w.detach().double())).numpy()
        return replace(self.neuron, tau=float(tau) if tau.ndim == 0 else tau, beta=None)  # type: ignore[call-arg]

    def forward(
        self, x_seq: torch.Tensor, v: torch.Tensor | None = None, *, return_v: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Spikes of 0 and 1; with ``return_v`` the last potentials too.

        Parameters
        ----------
        x_seq : Tensor of float32, shape (T, N, ...)
            On the CPU.
        v : Tensor of float32, shape (N, ...), optional
            The potentials to begin with.
        return_v : bool
            Also return the potentials after the last step.
        """
        if x_seq.dtype != torch.float32 or x_seq.device.type != "cpu" or x_seq.dim() < 2:
            got = f"{x_seq.dtype} on {x_seq.device} of shape {tuple(x_seq.shape)}"
            raise TypeError(f"x_seq: expected float32 on the CPU of shape (T, N, ...), got {got}")
        shape = tuple(x_seq.shape[1:])
        neuron, leak = self.neuron, None
        if self.w is None:
            levels = kernel_levels(neuron, shape, np.dtype(np.float32))
        else:
            rate = torch.sigmoid(self.w)
            assert isinstance(neuron, LIF)
            leak = rate if neuron.decay_input else 1.0 - rate
            levels = kernel_levels(neuron, shape, np.dtype(np.float32)) | {"beta": leak.detach().reshape(-1).numpy()}
            if not neuron.decay_input and np.any(neuron.v_leak):
                raise ValueError("learn_tau: expected decay_input where v_leak is not 0")
        if v is None:
            start = getattr(neuron, "v_leak", 0.0)
            v = (
                torch.zeros(shape)
                if not np.any(start)
                else torch.tensor(np.array(start)).float().expand(shape).contiguous()
            )
        elif v.shape != shape or v.dtype != torch.float32:
            raise ValueError(f"v: expected float32 of shape {shape}, got {v.dtype} of shape {tuple(v.shape)}")
        spikes, after = _Fire.apply(x_seq.contiguous(), v.contiguous(), leak, levels, self.surrogate, self.detach_reset)
        return (spikes, after) if return_v else spikes


class SpikingLayer(torch.nn.Module):
    """A linear layer or a convolution, its batch norm, and the neurons that its sums drive.

    The unit that is folded, quantized and run in integers: neurons compare, so the
    scale of a layer's sums is the scale of its neurons' threshold.

    Parameters
    ----------
    weight : Linear or Conv2d
        Of inputs ``(T, N, ..., K)`` or images ``(T, N, C, H, W)``.
    norm : BatchNorm1d or BatchNorm2d, optional
        Over the outputs.
    neurons : Neurons, optional
        Without them the outputs are the sums: a network's last layer.
    most : int
        The greatest input: 1 for spikes, more for counts of them or pixels.
    unit : float
        What an input of 1 stands for: inputs are integers up to ``most`` times this.

    Examples
    --------
    >>> import torch, lowbit
    >>> from lowbit.torch.spiking import Neurons, SpikingLayer
    >>> layer = SpikingLayer(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4), Neurons(lowbit.LIF()))
    >>> layer(torch.ones(5, 2, 8)).shape
    torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        weight: torch.nn.Linear | torch.nn.Conv2d,
        norm: torch.nn.Module | None = None,
        neurons: Neurons | None = None,
        *,
        most: int = 1,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.norm = torch.nn.Identity() if norm is None else norm
        self.neurons = neurons
        self.most, self.unit = most, unit

    def extra_repr(self) -> str:
        return f"most={self.most}, unit={self.unit:.4g}" if self.most != 1 else ""

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """What the neurons get: of the shape of their spikes."""
        if isinstance(self.weight, torch.nn.Conv2d):
            return self.norm(self.weight(x.flatten(0, 1))).unflatten(0, (x.shape[0], -1))
        y = self.weight(x)
        if isinstance(self.norm, torch.nn.Identity):
            return y
        return self.norm(y.flatten(0, -2)).reshape(y.shape)

    def fire(self, sums: torch.Tensor) -> torch.Tensor:
        """The spikes of these sums."""
        return sums if self.neurons is None else self.neurons(sums)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fire(self.sums(x))

    def fold_(self) -> SpikingLayer:
        """The norm becomes part of the weight and the bias: the outputs of ``eval()`` stay, to rounding."""
        norm, layer = self.norm, self.weight
        if not isinstance(norm, torch.nn.Identity):
            fuse = fuse_conv_bn_weights if isinstance(layer, torch.nn.Conv2d) else fuse_linear_bn_weights
            layer.weight, layer.bias = fuse(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            self.norm = torch.nn.Identity()
        return self


class QuantSpikingLayer(torch.nn.Module):
    """A `SpikingLayer` on weights of few levels, in the arithmetic of its integers.

    Forwards, everything is an integer that a float holds: codes, sums, thresholds,
    potentials, as `lowbit.simulate` has them for int32. Backwards, roundings are
    passed over (a straight-through estimator). So what is trained is what runs.

    Parameters
    ----------
    layer : SpikingLayer
        Folded here if it was not.
    config : Spiking
        The levels.

    Attributes
    ----------
    weight, bias : Parameter of float32
        What is trained: ``weight ~ step * codes``.
    step : Tensor of float32, shape (outputs,)
        Of the least squared error with the weights that it was made of.
    fraction : int
        Bits of potentials, thresholds and biases below the unit of the sums.
    """

    def __init__(self, layer: SpikingLayer, config: Spiking) -> None:
        super().__init__()
        layer.fold_()
        self.config, self.most, self.unit, self.surrogate = config, layer.most, layer.unit, None
        self.geometry: dict[str, Any] | None = None
        if isinstance(layer.weight, torch.nn.Conv2d):
            conv = layer.weight
            self.geometry = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
        weight, bias = layer.weight.weight.detach(), layer.weight.bias
        self.weight = torch.nn.Parameter(weight.clone())
        self.bias = torch.nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.register_buffer("levels", torch.from_numpy(config.codes()).float())
        self.register_buffer("step", best_step(weight.flatten(1), self.levels))
        self.neuron: IF | None = None
        if layer.neurons is not None:
            self.neuron, self.surrogate = layer.neurons.learned(), layer.neurons.surrogate
            self.detach_reset = layer.neurons.detach_reset
            _check_integral(self.neuron)
        largest = weight[0].numel() * int(self.levels.abs().max()) * self.most
        # Sums, at their greatest, with room for their bias.
        self.fraction = max(0, min(8, 22 - largest.bit_length()))

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        return f"{shape}, {self.config.nbits} bits, {self.config.levels}, fraction={self.fraction}"

    def codes(self) -> np.ndarray:
        """The weights' levels as int8, of the weight's shape."""
        with torch.no_grad():
            return self._codes().to(torch.int8).numpy()

    def integer_neuron(self) -> IF:
        """The neuron in the unit of the sums of codes, and their bias: what `lowbit.simulate` takes."""
        assert self.neuron is not None
        values = {name: x.numpy().astype(np.int64) for name, x in self._thresholds().items()}
        with torch.no_grad():
            values["bias"] = self._bias().numpy().astype(np.int64)
        return _integral(self.neuron, values, self.fraction)

    def _codes(self) -> torch.Tensor:
        step = self.step.view(-1, *(1,) * (self.weight.dim() - 1))
        return Nearest.apply(self.weight / step, self.levels)

    def _bias(self) -> torch.Tensor:
        return _Round.apply(self._drive() / (self.step * self.unit) * 2**self.fraction)

    def _drive(self) -> torch.Tensor:
        """The bias, and what pulls potentials to their rest."""
        neuron, bias = self.neuron, self.bias
        if neuron is None:
            return bias
        shift = np.asarray(neuron.bias, np.float64)
        if isinstance(neuron, LIF):
            shift = shift + np.asarray(neuron.v_leak) * (1.0 if neuron.decay_input else 1.0 - np.asarray(neuron.beta))
        return bias + torch.from_numpy(np.asarray(shift, np.float32)) if shift.any() else bias

    def _thresholds(self) -> dict[str, torch.Tensor]:
        """Threshold and reset level in the potential's unit, one for each output."""
        unit = self._sharpness()
        levels = {name: getattr(self.neuron, name) for name in ("v_threshold", "v_reset")}
        whole = {name: torch.round(torch.from_numpy(np.array(x, np.float32)) / unit) for name, x in levels.items()}
        most = 2.0**23 - 1
        return {
            "v_threshold": whole["v_threshold"].clamp(1, most),
            "v_reset": whole["v_reset"].clamp(-most, most),
        }

    def _sharpness(self) -> torch.Tensor:
        """What a unit of an integer potential stands for."""
        # An input that leaks counts 1/tau: potentials are held times tau.
        tau = self.neuron.tau if isinstance(self.neuron, LIF) and self.neuron.decay_input else 1.0
        return self.step * self.unit / 2**self.fraction / torch.from_numpy(np.array(tau, np.float32))

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """What the neurons get, in the unit of their potentials; the real sums where there are none."""
        x = torch.round(x / self.unit) if self.unit != 1.0 else x
        codes = self._codes()
        if self.geometry is None:
            y = torch.nn.functional.linear(x, codes)
        else:
            y = torch.nn.functional.conv2d(x.flatten(0, 1), codes, **self.geometry).unflatten(0, (x.shape[0], -1))
        across = (-1, 1, 1) if self.geometry is not None else (-1,)
        if self.neuron is None:
            return y * (self.step * self.unit).view(across) + self.bias.view(across)
        return y * 2.0**self.fraction + self._bias().view(across)

    def fire(self, sums: torch.Tensor) -> torch.Tensor:
        """The spikes of these sums."""
        if self.neuron is None:
            return sums
        levels = self._thresholds()

        def across(x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 1, 1).expand(sums.shape[2:]) if self.geometry is not None else x

        values = {name: across(x).numpy() for name, x in levels.items()}
        sharpness = across(self._sharpness()).contiguous().numpy().reshape(-1)
        neuron = _integral(self.neuron, values, 0)
        shape = tuple(sums.shape[1:])
        exact = kernel_levels(neuron, shape, np.dtype(np.int32))
        floats = kernel_levels(neuron, shape, np.dtype(np.float32))
        spikes, _ = _Fire.apply(
            sums.contiguous(), torch.zeros(shape), None, floats, self.surrogate, self.detach_reset, exact, sharpness
        )
        return spikes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fire(self.sums(x))

    def packed_bytes(self) -> int:
        """Of the codes, dense, and of each output's threshold and bias as int32."""
        rows = len(self.weight)
        return rows * -(-self.weight[0].numel() * self.config.nbits // 8) + rows * (4 if self.neuron is None else 8)


def _integral(neuron: IF, values: dict[str, Any], fraction: int) -> IF:
    """The neuron on integers: its input leaks not, its rest is 0."""
    options = {"reset": neuron.reset, "strict": neuron.strict, "fraction": fraction, **values}
    return LIF(beta=neuron.beta, decay_input=False, **options) if isinstance(neuron, LIF) else IF(**options)


def _check_integral(neuron: IF) -> None:
    if isinstance(neuron, LIF) and np.any(np.asarray(neuron.beta) * 256 % 1):
        raise ValueError(
            f"neuron: integers take a tau whose 1 - 1/tau is a multiple of 1/256, such as 2, 4 or 8, got {neuron.tau}"
        )


def best_step(weight: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Of each row the step of the least squared error to ``step * levels``.

    Parameters
    ----------
    weight : Tensor of float32, shape (rows, n)
    levels : Tensor of float32, ascending

    Returns
    -------
    Tensor of float32, shape (rows,)
        The best of 64 between a quarter of the range and all of it; 1 for rows of zeros.
    """
    top = weight.abs().amax(1) / levels.max()
    best, error = top.clone(), torch.full_like(top, torch.inf)
    for share in torch.linspace(0.25, 1.0, 64):
        step = torch.where(top > 0, top * share, 1.0)
        codes = _nearest(weight / step[:, None], levels)
        off = (codes * step[:, None] - weight).square().sum(1)
        best, error = torch.where(off < error, step, best), torch.minimum(off, error)
    return best


def _nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The nearest level of each, half-way ones to the lower, but to even between integers without gaps."""
    if len(levels) == int(levels[-1] - levels[0]) + 1:
        return torch.round(x).clamp(levels[0], levels[-1])
    return levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]


class Nearest(torch.autograd.Function):
    """To the nearest level; the gradient passes where x is within them."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x.abs() <= levels[-1])
        return _nearest(x, levels)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class _Round(torch.autograd.Function):
    """To the nearest integer; the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0]
