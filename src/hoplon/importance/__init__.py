"""How much each weight matters: one file per score."""

from __future__ import annotations

from hoplon.importance.analysis import by_layer, heat_map, magnitudes, overlap
from hoplon.importance.expected_damage import expected_damage
from hoplon.importance.fisher import fisher
from hoplon.importance.gradient import gradient
from hoplon.importance.layerwise import layerwise
from hoplon.importance.magnitude import magnitude
from hoplon.importance.nisp import nisp
from hoplon.importance.random import random
from hoplon.importance.scores import Scores
from hoplon.importance.taylor import taylor

__all__ = [
    "Scores",
    "by_layer",
    "expected_damage",
    "fisher",
    "gradient",
    "heat_map",
    "layerwise",
    "magnitude",
    "magnitudes",
    "nisp",
    "overlap",
    "random",
    "taylor",
]
