"""One arm of a campaign: the protections that runs meet, and how faults reach them."""

from __future__ import annotations

from dataclasses import dataclass

from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.memory_budget import USUAL, Budget
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.protections.base import Overlay


@dataclass(frozen=True, eq=False)
class Arm:
    """What the runs of one arm share."""

    reference: GoldenRun
    overlay: Overlay
    placement: Placement = "before"
    arrival: Arrival = "before"
    budget: Budget = USUAL
