"""What operations cost, by a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["Costs"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Energy of operations in picojoules, at 45 nm and 0.9 V unless you say otherwise.

    The table that papers on spiking networks use, which goes back to M. Horowitz, "Computing's energy
    problem (and what we can do about it)", ISSCC 2014. It is no measurement of any chip that runs your
    network, and of a CPU least of all.

    Parameters
    ----------
    multiply_float32, add_float32 : float
        3.7 and 0.9: their sum is the 4.6 of a multiply-accumulate in common tables.
    multiply_int32, add_int32 : float
        3.1 and 0.1, from common tables.
    multiply_int8, add_int8 : float
        0.2 and 0.03; recalled, not looked up.
    weight_read : float
        Of 32 bits of weights at each operation, fewer bits in proportion. 0 by default: papers leave
        memory out. Common tables have 5 for SRAM and 640 for DRAM.
    neuron_updates : bool
        Whether neurons cost an addition a step, and a multiplication more where they leak. Papers leave
        that out; it is counted by default.

    Examples
    --------
    >>> from lowbit.snn import Costs
    >>> round(Costs().product(32), 3), Costs().addition(32), Costs().addition(8)
    (4.6, 0.9, 0.1)
    """

    multiply_float32: float = 3.7
    add_float32: float = 0.9
    multiply_int32: float = 3.1
    add_int32: float = 0.1
    multiply_int8: float = 0.2
    add_int8: float = 0.03
    weight_read: float = 0.0
    neuron_updates: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "neuron_updates" and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name}: expected 0 or more picojoules, got {value}")

    def addition(self, bits: int) -> float:
        """A weight of so many bits (32: float32) added to a sum: what a spike at a synapse costs.

        Sums of codes are of 32 bits.
        """
        return (self.add_float32 if bits == 32 else self.add_int32) + self.weight_read * bits / 32

    def product(self, bits: int) -> float:
        """A weight times an input that is no spike, added to a sum. Codes are multiplied as 8 bits."""
        return (self.multiply_float32 if bits == 32 else self.multiply_int8) + self.addition(bits)

    def update(self, *, floats: bool, leaks: bool) -> float:
        """A neuron's step."""
        if not self.neuron_updates:
            return 0.0
        add, multiply = (self.add_float32, self.multiply_float32) if floats else (self.add_int32, self.multiply_int32)
        return add + (multiply if leaks else 0.0)

    def assumptions(self) -> list[str]:
        """What is to be said below a table."""
        told = [
            f"45 nm table, pJ: float32 add {self.add_float32:g}, multiply {self.multiply_float32:g}; "
            f"int32 add {self.add_int32:g}, multiply {self.multiply_int32:g}; int8 multiply {self.multiply_int8:g}",
            "a spike at a synapse is an addition; an input that is a count or a number is a multiplication and an "
            "addition, at every synapse for numbers, where it is not 0 for counts",
        ]
        told.append(
            f"reading 32 bits of weights: {self.weight_read:g} pJ"
            if self.weight_read
            else "memory is not counted (weight_read=5 for SRAM)"
        )
        told.append(
            "neurons: an addition a step, and a multiplication where they leak"
            if self.neuron_updates
            else "updates of neurons are not counted"
        )
        return told
