"""Spiking networks on CPUs: layers by name, event streams or arrays in, exact counts out.

For networks of layers at a fixed step. ``from_nir`` and ``to_nir`` exchange them, ``report`` tells what a
run did, ``draw_raster`` and ``draw_rates`` show it.
"""

from lowbit.snn.draw import draw_raster, draw_rates
from lowbit.snn.energy import Costs
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
from lowbit.snn.nir import from_nir, to_nir
from lowbit.snn.report import Layer, Report, report

__all__ = [
    "Add",
    "Attention",
    "AvgPool2d",
    "Conv2d",
    "Costs",
    "Events",
    "Flatten",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Mean",
    "Network",
    "Neurons",
    "Node",
    "Potentials",
    "Report",
    "Run",
    "Scale",
    "State",
    "Sum",
    "SumPool2d",
    "Tokens",
    "draw_raster",
    "draw_rates",
    "from_nir",
    "report",
    "to_nir",
]
