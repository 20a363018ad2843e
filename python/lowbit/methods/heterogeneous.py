"""Heterogeneous quantization of spiking networks: each layer its own kind of levels and its own bits.

After B. Xu, Y. Song, P. Li, "Trimming down large spiking vision transformers via heterogeneous
quantization search" (SpikeHQ, 2024). `search` finds an assignment by gradients: every layer is a
mixture of its candidates, whose weights are learned against the loss plus a cost of the hardware.
`knapsack` finds one without training: the candidates' errors, and the exact choice among them.
Either ends in rules for `quantize_`; `finetune_` is the quantization-aware training after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowbit.config import Spiking

__all__ = ["CANDIDATES", "Assignment", "Costs", "assign", "finetune_", "knapsack", "layers", "search"]

#: What a layer may get. Powers of two stop gaining at 4 bits, so wider ones are no candidates.
CANDIDATES = (
    Spiking(2),
    Spiking(3),
    Spiking(3, "power_of_two"),
    Spiking(4),
    Spiking(4, "power_of_two"),
    Spiking(5),
    Spiking(6),
    Spiking(8),
)


@dataclass(frozen=True)
class Costs:
    """What an operation costs, in picojoules: 45 nm, 0.9 V.

    Adders and multipliers of 8 and 32 bits and memory are those of M. Horowitz, "Computing's
    energy problem", ISSCC 2014, as tables after it have them; an adder's energy is taken to grow
    with its width in proportion, a multiplier's with the product of its operands' widths.

    Parameters
    ----------
    add, multiply : float
        Of 32 bits, and of 8 times 8.
    shift : float
        Of 32 bits: what a power of two costs where a spike counts more than once.
    read : float
        Of one bit from on-chip memory.
    accumulator : int
        Bits of a sum.
    """

    add: float = 0.1
    multiply: float = 0.2
    shift: float = 0.13
    read: float = 5 / 32
    accumulator: int = 24

    def accumulate(self) -> float:
        """Of adding a weight to a sum."""
        return self.add * self.accumulator / 32

    def product(self, nbits: int, input_bits: int) -> float:
        """Of a weight times an input of several bits, and its sum."""
        return self.multiply * nbits * input_bits / 64 + self.accumulate()
