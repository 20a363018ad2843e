"""Layers of spiking neurons, taken through time; networks of them are `lowbit.snn`."""

from __future__ import annotations

import weakref
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core
from lowbit._check import as_array, check_out
from lowbit.neurons import ALIF, IF, LIF, CubaLIF, NeuronState, Spikes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

__all__ = ["simulate"]

_F32, _I32, _U8, _U16 = (np.dtype(name) for name in ("float32", "int32", "uint8", "uint16"))

#: The greatest integer potential: float32 holds all of them.
_MOST = 2**23 - 1


def simulate(
    x_seq: ArrayLike,
    neuron: IF,
    state: NeuronState | None = None,
    *,
    packed: bool = False,
    return_v: bool = False,
    out: NDArray[np.uint8] | None = None,
    isa: str | None = None,
) -> Spikes:
    """Takes a layer of neurons through time.

    Parameters
    ----------
    x_seq : array_like of float32 or int32, shape (T, N, ...)
        The input to each neuron at each step, time first. float32 for potentials
        in float32. int32 for integers: of an `IF` or a `LIF` without
        ``decay_input`` whose numbers are integers, whose ``beta`` is a multiple of
        1/256 (``tau`` a power of two up to 256, among others) and which has no
        ``v_leak``, ``refractory`` or ``reset_delay``.
    neuron : IF, LIF, CubaLIF or ALIF
        What the neurons are.
    state : NeuronState, optional
        What an earlier call returned; by default every potential is at
        ``v_leak``, currents and adaptation at 0. It is not changed. A stream cut
        in pieces gives what the whole gives.
    packed : bool
        Spikes as bits, of which `unpack_codes` with 1 bit is the inverse.
    return_v : bool
        Also return the potential after each step.
    out : ndarray of uint8, shape of the spikes, optional
        Receives the spikes. C-contiguous, and overlaps no input.
    isa : str, optional
        The instruction set to run on, one of `lowbit.available_isas`.

    Returns
    -------
    Spikes
        The same bits on every instruction set and any number of threads. A
        potential that an input made NaN stays so, and never fires.

    Raises
    ------
    TypeError
        Another dtype, something that is no neuron or no state.
    ValueError
        A parameter or a state whose shape does not fit, integers that are asked
        for what floats alone have.

    Notes
    -----
    Each operation is rounded to float32 by itself. Integers: ``beta`` times ``v``
    is rounded half up, potentials saturate at 2**23 - 1 either way, inputs that
    are beyond 2**30 with ``fraction`` and ``bias`` wrap.

    Examples
    --------
    >>> import numpy as np, lowbit
    >>> x_seq = np.ones((3, 1, 4), np.float32) * np.array([0.5, 1, 2, 4], np.float32)
    >>> run = lowbit.simulate(x_seq, lowbit.LIF(tau=2.0))
    >>> run.spike_seq[:, 0]
    array([[0, 0, 1, 1],
           [0, 0, 1, 1],
           [0, 0, 1, 1]], dtype=uint8)
    >>> run.state.v
    array([[0.4375, 0.875 , 0.    , 0.    ]], dtype=float32)
    """
    x = as_array("x_seq", x_seq, ("float32", "int32"), min_ndim=2)
    if not isinstance(neuron, IF):
        raise TypeError(f"neuron: expected an IF, LIF, CubaLIF or ALIF, got {neuron!r}")
    shape = x.shape[1:]
    levels = kernel_levels(neuron, shape, x.dtype)
    fresh = state is None
    # The kernel writes potentials as it begins: they are not written twice.
    state = _nothing(neuron, shape, x.dtype, np.empty) if state is None else start_state(neuron, state, shape, x.dtype)
    row = shape[-1] if packed and shape[-1] else None
    spike_shape = (*x.shape[:-1], (x.shape[-1] + 7) // 8) if packed else x.shape
    if out is None:
        out = np.empty(spike_shape, _U8)
    else:
        check_out("out", out, spike_shape, _U8, x_seq, x)
    v_seq = np.empty(x.shape, x.dtype) if return_v else None
    parts = (state.v, state.i, state.a, state.left)
    _core.simulate(x, levels, x.dtype == _I32, parts, fresh, out, row, v_seq, isa)
    return Spikes(out, state, v_seq)


#: What kernels read of each neuron, by dtype, and by shape where it has arrays.
_KNOWN: weakref.WeakKeyDictionary[IF, dict[Any, dict[str, Any]]] = weakref.WeakKeyDictionary()


def kernel_levels(neuron: IF, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """The kernel's parameters: arrays of one value, or of one for each channel. Not to be changed."""
    known = _KNOWN.setdefault(neuron, {})
    for key in (dtype, (dtype, shape)):
        if key in known:
            return known[key]
    levels = _levels(neuron, shape, dtype)
    each = any(isinstance(x, np.ndarray) and x.size > 1 for x in levels.values())
    known[(dtype, shape) if each else dtype] = levels
    return levels


def _levels(neuron: IF, shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:

    def values(name: str, value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
        array = np.asarray(value, np.float64)
        if array.size == 1:
            array = array.reshape(1)
        elif array.shape != shape[len(shape) - array.ndim :]:
            raise ValueError(f"{name}: expected one number, or an array of the last axes of {shape}, got {array.shape}")
        if dtype == _I32 and (array != np.rint(array)).any():
            raise ValueError(f"{name}: expected integers for inputs of int32, got {value}")
        if dtype == _I32 and (np.abs(array) > _MOST).any():
            raise ValueError(f"{name}: expected integers within {_MOST}, got {value}")
        return np.ascontiguousarray(array.ravel(), dtype)

    later = neuron.reset_delay and neuron.reset != "none"
    levels: dict[str, Any] = {
        "leak": "none",
        "reset": f"{neuron.reset} later" if later else neuron.reset,
        "strict": bool(neuron.strict),
        "refractory": neuron.refractory,
        "fraction": neuron.fraction,
        "threshold": values("v_threshold", neuron.v_threshold, dtype),
        "to": values("v_reset", neuron.v_reset, dtype),
    }
    if dtype == _I32:
        _check_integers(neuron)
    elif neuron.fraction:
        raise ValueError(f"fraction: of inputs of int32 alone, got {neuron.fraction} for float32")
    levels["start"] = values("v_leak", getattr(neuron, "v_leak", 0.0), dtype)
    bias = np.asarray(neuron.bias, np.float64)
    if isinstance(neuron, LIF) and neuron.decay_input:
        # An input is drawn to the level that v is drawn to.
        rest = np.asarray(neuron.v_leak, np.float64) + bias
        levels |= {"leak": "toward", "beta": values("tau", 1.0 / np.asarray(neuron.tau), dtype)}
        levels["drive"] = values("v_leak", rest, dtype)
    elif isinstance(neuron, LIF) or bias.any():
        beta = np.asarray(neuron.beta if isinstance(neuron, LIF) else 1.0, np.float64)
        rest = np.asarray(getattr(neuron, "v_leak", 0.0), np.float64) * (1.0 - beta)
        levels |= {"leak": "keep", "beta": values("beta (in 256ths)", beta * 256 if dtype == _I32 else beta, dtype)}
        levels["drive"] = values("bias", rest + bias, dtype)
    if isinstance(neuron, CubaLIF):
        levels |= {"alpha": values("alpha", neuron.alpha, _F32), "gain": values("w_in", neuron.w_in, _F32)}
    if isinstance(neuron, ALIF):
        rho = 1.0 - 1.0 / np.asarray(neuron.tau_adapt, np.float64)
        levels |= {"rho": values("tau_adapt", rho, _F32), "jump": values("jump", neuron.jump, _F32)}
    return levels


def _check_integers(neuron: IF) -> None:
    wrong = [
        name
        for name, has in [
            (type(neuron).__name__, type(neuron) not in (IF, LIF)),
            ("decay_input", isinstance(neuron, LIF) and neuron.decay_input),
            ("v_leak", isinstance(neuron, LIF) and np.any(np.asarray(neuron.v_leak))),
            ("refractory", neuron.refractory > 0),
            ("reset_delay", neuron.reset_delay),
        ]
        if has
    ]
    if wrong:
        raise ValueError(f"neuron: inputs of int32 have no {wrong[0]}; float32 has")


def _nothing(neuron: IF, shape: tuple[int, ...], dtype: np.dtype[Any], potentials: Callable[..., Any]) -> NeuronState:
    """The first state of neurons: nothing flows, nobody is tired or waits. ``potentials`` makes v, of anything."""
    i = np.zeros(shape, _F32) if isinstance(neuron, CubaLIF) else None
    a = np.zeros(shape, _F32) if isinstance(neuron, ALIF) else None
    return NeuronState(potentials(shape, dtype), i, a, np.zeros(shape, _U16) if neuron.refractory else None)


def start_state(neuron: IF, state: NeuronState | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NeuronState:
    """A copy of the state that the kernel may change, or the first one."""
    if state is None:
        state = _nothing(neuron, shape, dtype, np.zeros)
        if isinstance(neuron, LIF):
            leak = neuron.v_leak
            if np.any(leak) if isinstance(leak, np.ndarray) else leak:  # a number is told at once
                state.v[...] = leak
        return state
    parts = {
        "v": (True, dtype),
        "i": (isinstance(neuron, CubaLIF), _F32),
        "a": (isinstance(neuron, ALIF), _F32),
        "left": (neuron.refractory > 0, _U16),
    }
    if not isinstance(state, NeuronState):
        raise TypeError(f"state: expected a NeuronState, got {type(state).__name__}")
    copies: dict[str, Any] = {}
    for field in fields(NeuronState):
        (has, kind), array = parts[field.name], getattr(state, field.name)
        if has != (array is not None):
            raise ValueError(
                f"state.{field.name}: expected {'an array' if has else 'None'} for {type(neuron).__name__}"
            )
        if array is None:
            continue
        array = as_array(f"state.{field.name}", array, (kind.name,), min_ndim=0)
        if array.shape != shape:
            raise ValueError(f"state.{field.name}: expected shape {shape}, got {array.shape}")
        if kind == _I32 and array.size and np.abs(array.astype(np.int64)).max() > _MOST:
            raise ValueError(f"state.v: expected integers within {_MOST}, got {array[np.abs(array) > _MOST].flat[0]}")
        copies[field.name] = array.copy()
    return NeuronState(**copies)
