"""How much each weight matters: one file per score."""

from __future__ import annotations

from hoplon.importance._fisher import fisher
from hoplon.importance._gradient import gradient
from hoplon.importance._layerwise import layerwise
from hoplon.importance._magnitude import magnitude
from hoplon.importance._nisp import nisp
from hoplon.importance._random import random
from hoplon.importance._taylor import taylor
from hoplon.importance.analysis import by_layer, heat_map, magnitudes, overlap
from hoplon.importance.damage.score import expected_damage
from hoplon.importance.scores import Scores

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
