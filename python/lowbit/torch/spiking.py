"""Layers of spiking neurons that learn, and the neurons of other frameworks on them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lowbit import _core
from lowbit.neurons import ALIF, IF, LIF, CubaLIF
from lowbit.spiking import kernel_levels
from lowbit.torch import _bridge

__all__ = ["Arctan", "FastSigmoid", "Neurons", "Sigmoid", "Surrogate", "Triangle"]


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


class _Fire(torch.autograd.Function):
    """All steps in one kernel, forwards and back; the backward pass makes the potentials again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        v: torch.Tensor,
        leak: torch.Tensor | None,
        levels: dict[str, Any],
        surrogate: Surrogate,
        detach_reset: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(x, v, *(() if leak is None else (leak,)))
        ctx.rest = levels, surrogate, detach_reset
        spikes, after = torch.empty_like(x), v.clone()
        threads = _bridge.count()
        _core.spiking_forward(
            _bridge.view(x), levels, _bridge.view(after), _bridge.view(spikes), threads, _bridge.openmp, None
        )
        return spikes, after

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, v, *leak = ctx.saved_tensors
        levels, surrogate, detach_reset = ctx.rest
        incoming = tuple(_bridge.view(grad.contiguous()) for grad in grads)
        grad_x, grad_v = torch.empty_like(x), torch.empty_like(v)
        grad_leak = torch.empty_like(v) if leak and ctx.needs_input_grad[2] else None
        outgoing = (_bridge.view(grad_x), _bridge.view(grad_v), None if grad_leak is None else _bridge.view(grad_leak))
        _core.spiking_backward(
            (_bridge.view(x), _bridge.view(v)), levels, (surrogate._name, surrogate.alpha), detach_reset,
            incoming, outgoing, _bridge.count(), _bridge.openmp, None,
        )  # fmt: skip
        if grad_leak is not None:
            grad_leak = grad_leak.reshape(-1, leak[0].numel()).sum(0).reshape(leak[0].shape)
        return grad_x, grad_v, grad_leak, None, None, None


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
        surrogate: Surrogate = Arctan(),  # noqa: B008  # frozen
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
            rate = 1.0 / torch.as_tensor(np.asarray(neuron.tau), dtype=torch.float32)
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
            leak = rate if neuron.decay_input else 1.0 - rate
            levels = kernel_levels(neuron, shape, np.dtype(np.float32)) | {"beta": leak.detach().reshape(-1).numpy()}
            if not neuron.decay_input and np.any(neuron.v_leak):
                raise ValueError("learn_tau: expected decay_input where v_leak is not 0")
        if v is None:
            start = getattr(neuron, "v_leak", 0.0)
            v = torch.zeros(shape) if not np.any(start) else torch.as_tensor(start).float().expand(shape).contiguous()
        elif v.shape != shape or v.dtype != torch.float32:
            raise ValueError(f"v: expected float32 of shape {shape}, got {v.dtype} of shape {tuple(v.shape)}")
        spikes, after = _Fire.apply(
            x_seq.contiguous(), v.contiguous(), leak, levels, self.surrogate, self.detach_reset
        )
        return (spikes, after) if return_v else spikes
