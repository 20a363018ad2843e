"""Spiking neurons in plain NumPy: one step after the other, each operation by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowbit.neurons import ALIF, IF, LIF, CubaLIF, NeuronState, Spikes
from lowbit.reference.packing import pack_codes

__all__ = ["simulate"]

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
    """As `lowbit.simulate`; ``isa`` is ignored.

    Examples
    --------
    >>> import numpy as np
    >>> from lowbit import LIF, reference
    >>> reference.simulate(np.full((3, 1), 1.5, np.float32), LIF(tau=2.0)).spike_seq.ravel()
    array([0, 1, 0], dtype=uint8)
    """
    x_seq = np.asarray(x_seq)
    step = _integers if x_seq.dtype == np.int32 else _floats
    kind = x_seq.dtype.type
    memory: dict[str, Any] = {"v": np.full(x_seq.shape[1:], getattr(neuron, "v_leak", 0), kind)}
    if isinstance(neuron, CubaLIF):
        memory["i"] = np.zeros(x_seq.shape[1:], np.float32)
    if isinstance(neuron, ALIF):
        memory["a"] = np.zeros(x_seq.shape[1:], np.float32)
    if neuron.refractory:
        memory["left"] = np.zeros(x_seq.shape[1:], np.uint16)
    if state is not None:
        memory |= {name: getattr(state, name).copy() for name in memory}
    spike_seq = np.empty(x_seq.shape, np.uint8)
    v_seq = np.empty_like(x_seq)
    for t, x in enumerate(x_seq):
        spike_seq[t] = step(x, neuron, memory)
        v_seq[t] = memory["v"]
    if packed:
        spike_seq = pack_codes(spike_seq, 1)
    if out is not None:
        out[...] = spike_seq
        spike_seq = out
    return Spikes(spike_seq, NeuronState(**memory), v_seq if return_v else None)


def _drive(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """A drive that adds nothing where it is 0, not even to the sign of a 0."""
    return np.where(x == 0, np.float32(-0.0), x)


def _floats(x: NDArray[np.float32], neuron: IF, memory: dict[str, Any]) -> NDArray[np.bool_]:
    """One step; ``memory`` becomes what it leaves."""
    f32 = np.float32
    fires = np.greater if neuron.strict else np.greater_equal
    v, threshold = memory["v"], np.asarray(neuron.v_threshold, f32)
    if isinstance(neuron, CubaLIF):
        memory["i"] = x = np.asarray(neuron.alpha, f32) * memory["i"] + np.asarray(neuron.w_in, f32) * x

    bias = np.asarray(neuron.bias, np.float64)
    if not isinstance(neuron, LIF):
        h = (v + _drive(bias.astype(f32))) + x
    elif neuron.decay_input:
        rate = (1.0 / np.asarray(neuron.tau, np.float64)).astype(f32)
        h = v + (x - (v - (np.asarray(neuron.v_leak, np.float64) + bias).astype(f32))) * rate
    else:
        beta = np.asarray(neuron.beta, np.float64)
        drive = (np.asarray(neuron.v_leak, np.float64) * (1.0 - beta) + bias).astype(f32)
        h = (beta.astype(f32) * v + _drive(drive)) + x
    if neuron.reset_delay and neuron.reset != "none":
        late = h - threshold if neuron.reset == "soft" else np.asarray(neuron.v_reset, f32)
        h = np.where(fires(v, threshold), late, h)

    if isinstance(neuron, ALIF):
        rho = 1.0 - 1.0 / np.asarray(neuron.tau_adapt, np.float64)
        memory["a"] = memory["a"] * rho.astype(f32)
        threshold = threshold + memory["a"]
    spike = fires(h, threshold)
    if neuron.refractory:
        waits = memory["left"] > 0
        spike, h = spike & ~waits, np.where(waits, v, h)
        memory["left"] = np.where(spike, neuron.refractory, memory["left"] - waits).astype(np.uint16)
    memory["v"] = h
    if not neuron.reset_delay and neuron.reset != "none":
        after = h - threshold if neuron.reset == "soft" else np.asarray(neuron.v_reset, f32)
        memory["v"] = np.where(spike, after, h)
    if isinstance(neuron, ALIF):
        memory["a"] = memory["a"] + np.where(spike, np.asarray(neuron.jump, f32), f32(0))
    return spike


def _integers(x: NDArray[np.int32], neuron: IF, memory: dict[str, Any]) -> NDArray[np.bool_]:
    """One step of integers within 2**23 - 1."""
    beta = np.rint(np.asarray(neuron.beta) * 256).astype(np.int64) if isinstance(neuron, LIF) else 256
    kept = (memory["v"].astype(np.int64) * beta + 128) >> 8
    # Inputs beyond 2**30 wrap.
    x = (x.astype(np.int64) << neuron.fraction) + np.asarray(neuron.bias, np.int64)
    h = np.clip((kept + x).astype(np.int32), -_MOST, _MOST)
    threshold = np.asarray(neuron.v_threshold, np.int32)
    spike = h > threshold if neuron.strict else h >= threshold
    after = {"soft": h - threshold, "hard": np.asarray(neuron.v_reset, np.int32), "none": h}[neuron.reset]
    memory["v"] = np.where(spike, after, h).astype(np.int32)
    return spike
