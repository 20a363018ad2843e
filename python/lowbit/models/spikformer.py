"""Spikformer (Z. Zhou et al., "Spikformer: when spiking neural network meets transformer", ICLR 2023), at any size.

Images or event frames become tokens by spiking convolutions; blocks of spiking
self-attention, which has no softmax, and of perceptrons follow; the mean over
steps and tokens is classified.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from lowbit.neurons import LIF
from lowbit.torch.spiking import Arctan, Neurons, SpikingLayer, Surrogate

__all__ = ["Spikformer"]


class Spikformer(nn.Module):
    """A spiking vision transformer.

    Parameters
    ----------
    channels : int
        Of the images.
    classes : int
    width : int
        Of a token, a multiple of 4 and of ``heads``.
    depth : int
        Blocks.
    heads : int
    ratio : int
        Of a perceptron's inner width to ``width``.
    n_steps : int
        Times that a still image is shown; event frames bring their own number.
    halvings : int
        Of the image's sides on the way to tokens, 0 to 3.
    tau : float
        Of all neurons, in steps.
    shortcut : {"spike", "membrane"}
        What a block adds to its input: the spikes that its last neurons fire, so
        that layers see counts; or their input, so that layers see spikes alone
        (C. Zhou et al., "Spikingformer", 2023).
    unit : float
        What a pixel is a multiple of, up to 255 times; 1 for counts of events.
    surrogate : Surrogate, optional
        Of all neurons; `Arctan` by default.

    Examples
    --------
    >>> import torch
    >>> from lowbit.models.spikformer import Spikformer
    >>> model = Spikformer(width=16, depth=1, heads=2).eval()
    >>> model(torch.zeros(2, 1, 28, 28)).shape, model(torch.zeros(6, 2, 1, 28, 28)).shape
    (torch.Size([2, 10]), torch.Size([2, 10]))
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 10,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        ratio: int = 4,
        n_steps: int = 4,
        halvings: int = 2,
        tau: float = 2.0,
        shortcut: Literal["spike", "membrane"] = "spike",
        unit: float = 1 / 255,
        surrogate: Surrogate | None = None,
    ) -> None:
        super().__init__()
        if shortcut not in ("spike", "membrane"):
            raise ValueError(f"shortcut: expected 'spike' or 'membrane', got {shortcut!r}")
        if width % 4 or width % heads:
            raise ValueError(f"width: expected a multiple of 4 and of {heads} heads, got {width}")
        if not 0 <= halvings <= 3:
            raise ValueError(f"halvings: expected 0 to 3, got {halvings}")
        self.n_steps, self.shortcut = n_steps, shortcut

        def neurons(v_threshold: float = 1.0) -> Neurons:
            return Neurons(LIF(tau=tau, v_threshold=v_threshold), surrogate or Arctan(), detach_reset=True)

        spikes = shortcut == "spike"
        widths = [channels, width // 4, width // 2, width]
        first = {"most": 255, "unit": unit}
        self.patch = nn.ModuleList(
            SpikingLayer(_conv3x3(before, after), nn.BatchNorm2d(after), neurons(), **({} if i else first))
            for i, (before, after) in enumerate(itertools.pairwise(widths))
        )
        position = neurons() if spikes else None
        self.position = SpikingLayer(_conv3x3(width, width), nn.BatchNorm2d(width), position)
        self.blocks = nn.ModuleList(
            Block(width, heads, ratio, neurons, most=2 + 2 * i if spikes else None) for i in range(depth)
        )
        self.fire = nn.Identity() if spikes else neurons()
        self.head = SpikingLayer(nn.Linear(width, classes), most=2 + 2 * depth if spikes else 1)
        self.halvings = halvings

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` of images, or ``(T, N, C, H, W)`` of event frames, to ``(N, classes)``."""
        first = self.patch[0]
        sums = first.sums(x[None]).expand(self.n_steps, -1, -1, -1, -1) if x.dim() == 4 else first.sums(x)
        for i, layer in enumerate(self.patch):
            x = layer.fire(sums) if i == 0 else layer(x)
            if i < self.halvings:
                # Any spike in a square of four is one.
                x = functional.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (x.shape[0], -1))
        x = (x + self.position(x)).flatten(3).transpose(2, 3)
        for block in self.blocks:
            x = block(x)
        # Steps and tokens are averaged behind the last layer, which is linear.
        return self.head(self.fire(x)).mean((0, 2))

    def fold_(self) -> Spikformer:
        """Batch norms become part of the layers before them; the outputs of ``eval()`` stay, to rounding."""
        for layer in self.modules():
            if isinstance(layer, SpikingLayer):
                layer.fold_()
        return self


class Block(nn.Module):
    """Self-attention of spikes, then a perceptron, each beside a shortcut."""

    def __init__(self, width: int, heads: int, ratio: int, neurons: Callable[..., Neurons], most: int | None) -> None:
        super().__init__()
        self.heads = heads
        spikes = most is not None

        def layer(before: int, after: int, fires: bool = True, most: int = 1) -> SpikingLayer:
            linear = nn.Linear(before, after, bias=False)
            return SpikingLayer(linear, nn.BatchNorm1d(after), neurons() if fires else None, most=most)

        self.fire_in = nn.Identity() if spikes else neurons()
        self.fire_mlp = nn.Identity() if spikes else neurons()
        first, second = (most, most + 1) if most is not None else (1, 1)
        self.query, self.key, self.value = (layer(width, width, most=first) for _ in range(3))
        self.mix = neurons(0.5)
        self.project = layer(width, width, spikes)
        self.up = layer(width, ratio * width, most=second)
        self.down = layer(ratio * width, width, spikes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.fire_in(x)
        query, key, value = (self._heads(layer(s)) for layer in (self.query, self.key, self.value))
        # Counts of coincident spikes: keys with values first, since tokens are many.
        mixed = query @ (key.transpose(-1, -2) @ value) * 0.125
        x = x + self.project(self.mix(mixed.transpose(-2, -3).flatten(-2)))
        return x + self.down(self.up(self.fire_mlp(x)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``(T, N, tokens, width)`` to ``(T, N, heads, tokens, width of a head)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def _conv3x3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)
