"""One arm of a campaign: the protections that runs meet, and how faults reach them."""

from __future__ import annotations

from dataclasses import dataclass

from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.memory_budget import USUAL, Budget
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.protections.base import Overlay


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm: every run of it meets the same protections.

    ``reference``: the golden run that outcomes are judged against; ``overlay``: the protections; ``placement`` and
    ``arrival``: of faults in values before or after a value's protection, of faults in memory before or after the
    guards' check; ``budget``: memory for golden values and runs.
    """

    reference: GoldenRun
    overlay: Overlay
    placement: Placement = "before"
    arrival: Arrival = "before"
    budget: Budget = USUAL
