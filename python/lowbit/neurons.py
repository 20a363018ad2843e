"""What a layer of spiking neurons is, what it remembers and what it returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowbit._check import check_int

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ALIF", "IF", "LIF", "CubaLIF", "NeuronState", "Spikes"]

#: One number for all neurons, or an array of the last axes' shape.
Value = Any
ResetKind = Literal["hard", "soft", "none"]


@dataclass(frozen=True, eq=False, kw_only=True)
class IF:
    """Integrate and fire: ``h = v + x``.

    A neuron fires where ``h`` reaches ``v_threshold``, and is reset in the same
    step. Every number may be an array of the last axes' shape, such as one for
    each channel.

    Parameters
    ----------
    v_threshold : float or array
        The level at which it fires.
    reset : {"hard", "soft", "none"}
        What a spike does: ``v = v_reset``, ``v = h - v_threshold``, nothing.
    v_reset : float or array
        Read by a hard reset alone.
    strict : bool
        Fires above the threshold and not at it, as NIR, norse and snnTorch do;
        spikingjelly fires at it.
    refractory : int
        Steps after a spike in which ``v`` is held and the neuron is silent,
        0 to 65,535.
    reset_delay : bool
        The reset comes one step later, after the leak: snnTorch's default.
        ``v`` is then the potential that fired. A hard reset drops that step's
        input.
    bias : float or array
        A constant that is added to every input.
    fraction : int
        Of integers: their potentials have so many bits below the unit of the
        inputs, 0 to 22; ``v_threshold``, ``v_reset`` and ``bias`` are in the
        potential's unit.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x_seq = np.full((4, 1), 0.6, np.float32)
    >>> lowbit.simulate(x_seq, lowbit.IF(reset="soft")).spike_seq.ravel()
    array([0, 1, 0, 1], dtype=uint8)
    """

    v_threshold: Value = 1.0
    reset: ResetKind = "hard"
    v_reset: Value = 0.0
    strict: bool = False
    refractory: int = 0
    reset_delay: bool = False
    bias: Value = 0.0
    fraction: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.ndarray):
                value = value.copy()
                value.flags.writeable = False  # what kernels read of it is made once
                object.__setattr__(self, field.name, value)
        if self.reset not in ("hard", "soft", "none"):
            raise ValueError(f"reset: expected 'hard', 'soft' or 'none', got {self.reset!r}")
        for name in ("strict", "reset_delay"):
            if not isinstance(value := getattr(self, name), (bool, np.bool_)):
                raise TypeError(f"{name}: expected a bool, got {value!r} ({type(value).__name__})")
        check_int("refractory", self.refractory, 0, 65535)
        _finite("v_threshold", self.v_threshold)
        _finite("v_reset", self.v_reset)
        _finite("bias", self.bias)
        check_int("fraction", self.fraction, 0, 22)
        if self.reset == "soft" and np.any(np.asarray(self.v_threshold) <= 0):
            raise ValueError(f"v_threshold: expected more than 0 for a soft reset, got {self.v_threshold}")


@dataclass(frozen=True, eq=False, kw_only=True)
class LIF(IF):
    """Leaky integrate and fire: ``v`` decays towards ``v_leak``.

    With ``decay_input``, ``h = v + (x - (v - v_leak)) / tau``; without,
    ``h = (1 - 1/tau) v + v_leak / tau + x``. A parametric LIF is one with a
    learned ``tau``; an array has one for each channel.

    Parameters
    ----------
    tau : float or array
        The membrane's time constant in steps, at least 1. Default: 2.
    beta : float or array, optional
        ``1 - 1/tau``, in place of ``tau``: what a step keeps of ``v``.
    decay_input : bool
        Whether the input is divided by ``tau``.
    v_leak : float or array
        The level that ``v`` decays to, and starts from.
    v_threshold, reset, v_reset, strict, refractory, reset_delay, bias, fraction
        As of `IF`.

    Notes
    -----
    ``1/tau`` is rounded once to float32 and multiplied by, where spikingjelly
    divides: the same bits for a ``tau`` that is a power of two, else ``v`` differs
    by less than 1e-6 of its size.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x_seq = np.array([[0.5], [2.0], [0.5]], np.float32)
    >>> lowbit.simulate(x_seq, lowbit.LIF(), return_v=True).v_seq.ravel()
    array([0.25, 0.  , 0.25], dtype=float32)
    """

    tau: Value = None
    beta: Value = None
    decay_input: bool = True
    v_leak: Value = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decay_input, (bool, np.bool_)):
            raise TypeError(
                f"decay_input: expected a bool, got {self.decay_input!r} ({type(self.decay_input).__name__})"
            )
        _finite("v_leak", self.v_leak)
        tau, beta = _constant("tau", self.tau, "beta", self.beta, 2.0)
        object.__setattr__(self, "tau", tau)
        object.__setattr__(self, "beta", beta)


@dataclass(frozen=True, eq=False, kw_only=True)
class CubaLIF(LIF):
    """A `LIF` behind a synapse whose current decays: ``i = (1 - 1/tau_syn) i + w_in x``.

    The potential takes ``i`` of the same step for its input.

    Parameters
    ----------
    tau_syn : float or array
        The synapse's time constant in steps, at least 1. Default: 2.
    alpha : float or array, optional
        ``1 - 1/tau_syn``, in its place.
    w_in : float or array
        What an input adds to the current.
    tau, beta, decay_input, v_leak, v_threshold, reset, v_reset, strict, refractory, reset_delay, bias, fraction
        As of `LIF`.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x_seq = np.array([[1.0], [0.0], [0.0]], np.float32)
    >>> neuron = lowbit.CubaLIF(tau_syn=2.0, decay_input=False, v_threshold=10.0)
    >>> lowbit.simulate(x_seq, neuron, return_v=True).v_seq.ravel()
    array([1.  , 1.  , 0.75], dtype=float32)
    """

    tau_syn: Value = None
    alpha: Value = None
    w_in: Value = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite("w_in", self.w_in)
        tau, alpha = _constant("tau_syn", self.tau_syn, "alpha", self.alpha, 2.0)
        object.__setattr__(self, "tau_syn", tau)
        object.__setattr__(self, "alpha", alpha)


@dataclass(frozen=True, eq=False, kw_only=True)
class ALIF(LIF):
    """A `LIF` whose threshold rises by ``jump`` with each spike and decays back.

    ``a = (1 - 1/tau_adapt) a``, then it fires at ``v_threshold + a``, then
    ``a += jump`` with a spike. A soft reset subtracts ``v_threshold + a``.

    Parameters
    ----------
    tau_adapt : float or array
        The adaptation's time constant in steps, at least 1.
    jump : float or array
        What a spike adds to the threshold.
    tau, beta, decay_input, v_leak, v_threshold, reset, v_reset, strict, refractory, reset_delay, bias, fraction
        As of `LIF`.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x_seq = np.full((6, 1), 1.5, np.float32)
    >>> neuron = lowbit.ALIF(tau_adapt=10.0, jump=1.0, decay_input=False)
    >>> lowbit.simulate(x_seq, neuron).spike_seq.ravel()
    array([1, 0, 1, 0, 0, 1], dtype=uint8)
    """

    tau_adapt: Value = 100.0
    jump: Value = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite("jump", self.jump)
        _constant("tau_adapt", self.tau_adapt, "rho", None, 100.0)
        if self.reset_delay:
            raise ValueError("reset_delay: not of neurons whose threshold adapts")


def _finite(name: str, value: Value) -> None:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.size == 0:
        raise TypeError(f"{name}: expected a number or an array of them, got {value!r}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {value}")


def _constant(name: str, tau: Value, share_name: str, share: Value, default: float) -> tuple[Value, Value]:
    """A time constant in steps and what a step keeps."""
    if tau is not None and share is not None:
        raise ValueError(f"{name}: expected {name} or {share_name}, got both")
    if share is not None:
        _finite(share_name, share)
        kept = np.asarray(share, np.float64)
        if (kept < 0).any() or (kept > 1).any():
            raise ValueError(f"{share_name}: expected 0 to 1, got {share}")
        with np.errstate(divide="ignore"):
            steps = 1.0 / (1.0 - kept)
        return (float(steps) if steps.ndim == 0 else steps), share
    tau = default if tau is None else tau
    if not (isinstance(tau, float) and tau == math.inf):
        _finite(name, tau)
    steps = np.asarray(tau, np.float64)
    if (steps < 1).any():
        raise ValueError(f"{name}: expected at least 1 (steps; adapters divide seconds by dt), got {tau}")
    kept = 1.0 - 1.0 / steps
    return tau, float(kept) if kept.ndim == 0 else kept


@dataclass(frozen=True, eq=False)
class NeuronState:
    """What a layer of neurons remembers between steps: hand it to the next call.

    Attributes
    ----------
    v : ndarray of float32 or int32, shape (N, ...)
        The potential after the reset.
    i : ndarray of float32, same shape, or None
        The synaptic current of a `CubaLIF`.
    a : ndarray of float32, same shape, or None
        What the threshold of an `ALIF` has risen by.
    left : ndarray of uint16, same shape, or None
        Refractory steps left.
    """

    v: NDArray[Any]
    i: NDArray[np.float32] | None = None
    a: NDArray[np.float32] | None = None
    left: NDArray[np.uint16] | None = None


@dataclass(frozen=True, eq=False)
class Spikes:
    """What `simulate` returns.

    Attributes
    ----------
    spike_seq : ndarray of uint8, shape (T, N, ...)
        1 where a neuron fires; packed along the last axis if so asked.
    state : NeuronState
        After the last step.
    v_seq : ndarray of float32 or int32, shape (T, N, ...), or None
        The potential after each step.
    """

    spike_seq: NDArray[np.uint8]
    state: NeuronState
    v_seq: NDArray[Any] | None = None
