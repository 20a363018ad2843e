"""Spikformer (Z. Zhou et al., "Spikformer: when spiking neural network meets transformer", ICLR 2023), at any size.

Images or event frames become tokens by spiking convolutions; blocks of spiking
self-attention, which has no softmax, and of perceptrons follow; the mean over
steps and tokens is classified.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lowbit import snn
from lowbit.neurons import LIF
from lowbit.snn import Conv2d, Linear, Network, Node, Run
from lowbit.spike_product import tile_spike_weight
from lowbit.torch.spiking import Arctan, Neurons, QuantSpikingLayer, SpikingLayer, Surrogate

__all__ = ["IntegerSpikformer", "Spikformer", "to_integers"]


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
        mixed = query @ (key.transpose(-1, -2) @ value) * _SCALE
        x = x + self.project(self.mix(mixed.transpose(-2, -3).flatten(-2)))
        return x + self.down(self.up(self.fire_mlp(x)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """``(T, N, tokens, width)`` to ``(T, N, heads, tokens, width of a head)``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-2, -3)


def _conv3x3(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


@dataclass(frozen=True, eq=False)
class IntegerSpikformer:
    """A quantized `Spikformer` in integers, on kernels, without torch.

    Attributes
    ----------
    network : Network
        Of pixels or counts of events, ``(T, N, H, W, C)`` of uint8, to the sums of the
        last layer over all tokens.
    scale, bias : ndarray of float32, shape (classes,)
        What makes classes of the mean of these sums.
    n_steps : int
        Times that a still image is shown.
    """

    network: Network
    scale: np.ndarray
    bias: np.ndarray
    n_steps: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """``(N, H, W, C)`` of images, or ``(T, N, H, W, C)`` of event frames, as uint8, to ``(N, classes)``."""
        return self.classes(self.run(x).output)

    def run(self, x: np.ndarray, **options: Any) -> Run:
        """As `lowbit.snn.Network.run`, with its counts."""
        if x.ndim == 4:
            return self.network.run(x[None], n_steps=self.n_steps, **options)
        return self.network.run(x, **options)

    def classes(self, sums: np.ndarray) -> np.ndarray:
        """Of the network's output."""
        return sums.sum(0, dtype=np.int64) * (self.scale / len(sums)) + self.bias


def to_integers(model: Spikformer, image: tuple[int, int]) -> IntegerSpikformer:
    """A model that `quantize_` has put on levels, in integers: the same spikes.

    Parameters
    ----------
    model : Spikformer
        Every layer quantized; with ``shortcut="spike"``.
    image : pair of int
        Height and width of its inputs.

    Raises
    ------
    ValueError
        A layer in floats, another shortcut, or attention whose potentials would have to
        be rounded: more than 12 steps at ``tau`` 2.

    Examples
    --------
    >>> import lowbit, numpy as np
    >>> from lowbit.models.spikformer import Spikformer, to_integers
    >>> from lowbit.torch import quantize_
    >>> model = Spikformer(width=16, depth=1, heads=2).eval()
    >>> report = quantize_(model, lowbit.Spiking(4))
    >>> to_integers(model, (28, 28))(np.zeros((3, 28, 28, 1), np.uint8)).shape
    (3, 10)
    """
    if model.shortcut != "spike":
        raise ValueError(f"model: expected shortcut 'spike', got {model.shortcut!r}")
    floats = [name for name, module in model.named_modules() if isinstance(module, SpikingLayer)]
    if floats:
        raise ValueError(f"model: expected every layer quantized, {floats[0]} is not")
    nodes: dict[str, Node] = {}
    reads: dict[str, str | tuple[str, ...]] = {}

    def put(name: str, node: Node, *inputs: str) -> str:
        nodes[name], reads[name] = node, inputs
        return name

    def layer(name: str, module: nn.Module, before: str) -> str:
        assert isinstance(module, QuantSpikingLayer)
        codes = module.codes()
        nbits = next(n for n in (2, 4, 8) if -(1 << (n - 1)) <= codes.min() and codes.max() < 1 << (n - 1))
        if codes.ndim == 4:
            weight = tile_spike_weight(np.ascontiguousarray(codes.transpose(2, 3, 1, 0)), nbits)
            top, left = module.geometry["padding"]
            last = put(name, Conv2d(weight, padding=((top, top), (left, left))), before)
        else:
            last = put(name, Linear(tile_spike_weight(np.ascontiguousarray(codes.T), nbits)), before)
        return put(f"{name}.neurons", snn.Neurons(module.integer_neuron()), last) if module.neuron is not None else last

    x = "input"
    for i, module in enumerate(model.patch):
        x = layer(f"patch.{i}", module, x)
        if i < model.halvings:
            x = put(f"patch.{i}.pool", snn.MaxPool2d((2, 2)), x)
    x = put("counts", snn.Add(), x, layer("position", model.position, x))
    x = put("tokens", snn.Tokens(), x)
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        parts = [layer(f"{name}.{part}", getattr(block, part), x) for part in ("query", "key", "value")]
        mixed = put(f"{name}.attention", snn.Attention(block.heads), *parts)
        mixed = put(f"{name}.mix", snn.Neurons(_mixing(block.mix.neuron, model.n_steps)), mixed)
        x = put(f"{name}.first", snn.Add(), x, layer(f"{name}.project", block.project, mixed))
        up = layer(f"{name}.up", block.up, x)
        x = put(f"{name}.second", snn.Add(), x, layer(f"{name}.down", block.down, up))
    last = layer("head", model.head, x)
    put("sums", snn.Sum((0,)), last)
    channels = model.patch[0].weight.shape[1]
    network = Network(nodes, reads, shape=(*image, channels), outputs="sums")
    sides = [size >> model.halvings for size in image]
    scale = (model.head.step * model.head.unit).numpy() / np.float32(sides[0] * sides[1])
    return IntegerSpikformer(network, scale, model.head.bias.detach().numpy().copy(), model.n_steps)


#: Bits of the attention's potentials below the unit of its sums, and what its sums count for.
_FRACTION, _SCALE = 12, 0.125


def _mixing(neuron: LIF, n_steps: int) -> LIF:
    """The attention's neurons on its sums, exact as floats have them."""
    if neuron.tau != 2.0 or n_steps > _FRACTION:
        raise ValueError(
            f"model: attention in integers is exact for tau 2 and up to {_FRACTION} steps, got {neuron.tau} and {n_steps}"
        )
    level = neuron.v_threshold * neuron.tau / _SCALE * 2**_FRACTION
    return LIF(beta=neuron.beta, decay_input=False, v_threshold=round(level), fraction=_FRACTION)
