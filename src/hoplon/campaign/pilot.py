"""The beginning of a campaign, timed; nothing of it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from hoplon.campaign.stratified.input_batches import SecondStage
from hoplon.faults.table import FaultTable
from hoplon.injection.injector import Execution, Injector
from hoplon.stats.intervals import Floats
from hoplon.stats.two_stage import TwoStagePlan


@final
@dataclass(frozen=True)
class Pilot:
    """The beginning of a campaign, timed.

    ``faults`` were finished in ``seconds``, after ``set_up_seconds`` of fault-free runs; ``total``: the faults of the
    campaign, None where it goes on until a precision is reached; ``inputs``: how many a fault can meet;
    ``unit_faults``: faults of a work unit; ``execution``: how faults are run. ``split``: where memory faults meet
    random batches of the inputs, ``split.pilot`` of them here, how many the outcomes make cheapest from then on; None
    where they meet all.
    """

    set_up_seconds: float
    seconds: float
    faults: int
    total: int | None
    inputs: int
    input_batches: int
    batch: int
    unit_faults: int
    execution: Execution
    split: TwoStagePlan | None = None

    @property
    def inputs_each(self) -> float:
        """Inputs that a fault of the campaign is going to meet, on average."""
        share = 1.0 if self.split is None else max(self.split.batches) / self.split.of
        return self.inputs * share

    @property
    def seconds_each(self) -> float:
        """Seconds that a fault of the campaign is going to take: other numbers of batches by their costs."""
        each = self.seconds / max(self.faults, 1)
        if self.split is None:
            return each
        split = self.split
        timed, coming = (split.fault_cost + met * split.batch_cost for met in (split.pilot, max(split.batches)))
        return each * coming / timed


class TimeIsUp(Exception):  # noqa: N818 -- says what is the case
    """Ends a pilot."""


class Stopwatch:
    """Counts finished faults until a point in time, but at least some."""

    def __init__(self, end: float) -> None:
        self._end, self.done = end, 0

    def __call__(self, faults: int) -> None:
        """Count so many more as finished.

        Raises:
            TimeIsUp: time is up.
        """
        self.done += faults
        if self.done and time.perf_counter() >= self._end:
            raise TimeIsUp


def time_two_levels(
    injector: Injector, draw: Callable[[int, int], FaultTable], *, most: int, seed: int, seconds: float
) -> tuple[int, float, TwoStagePlan]:
    """Run memory faults on random batches of inputs, in parts of 1, 2, 4, ... faults, until time is up.

    Args:
        draw: the faults of this number, and so many from there on.
        most: faults in all.
        seconds: after which no further part begins.
    Returns:
        The faults of the last part, what they took, and the split that all outcomes make cheapest.
    """
    levels = SecondStage(injector, seed)
    shares: list[Floats] = []
    begun, part = time.perf_counter(), 0
    while True:
        left = most - len(shares)
        size = 2**part if 2 * 2**part <= left else left
        started = time.perf_counter()
        shares += levels.try_out(draw(len(shares), size), unit=part)
        ended, part = time.perf_counter(), part + 1
        if ended - begun >= seconds or len(shares) >= most:
            break
    whole = np.array([share.mean() for share in shares])
    levels.choose([(whole, shares)] * 2, np.ones(1))
    assert levels.split is not None, "just chosen"
    return size, ended - started, levels.split
