"""Spiking networks on CPUs: layers by name, event streams or arrays in, exact counts out."""

from lowbit.snn.events import Events
from lowbit.snn.layers import (
    Add,
    Attention,
    AvgPool2d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    Mean,
    Neurons,
    Node,
    Potentials,
    Scale,
    Sum,
    SumPool2d,
    Tokens,
)
from lowbit.snn.network import Network, Run, State
