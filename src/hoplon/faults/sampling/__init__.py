"""Sampling measures: which faults a campaign draws, and with which probability."""

from __future__ import annotations

from hoplon.faults.sampling.base import Drawn, Measure, Population, Sampling, draw_faults, unit_generator
from hoplon.faults.sampling.measures import (
    Among,
    BitUniform,
    BottomScore,
    ElementUniform,
    LayerUniform,
    OpUniform,
    TopScore,
)
from hoplon.faults.sampling.plans import Exhaustive, Explicit, Stratified

__all__ = [
    "Among",
    "BitUniform",
    "BottomScore",
    "Drawn",
    "ElementUniform",
    "Exhaustive",
    "Explicit",
    "LayerUniform",
    "Measure",
    "OpUniform",
    "Population",
    "Sampling",
    "Stratified",
    "TopScore",
    "draw_faults",
    "unit_generator",
]
