"""When a campaign stops: after a count of faults, or once the failure probability is known precisely enough."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, final, get_args

from typing_extensions import override

from hoplon.campaign.design import Design
from hoplon.campaign.pilot import Stopwatch, TimeIsUp, time_two_levels
from hoplon.campaign.results import Results
from hoplon.campaign.runner import MOST_FAULTS, UnitRunner, UnitStore, amounts
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.campaign.stratified.strata import Strata
from hoplon.campaign.stratified.two_phase import TwoPhaseRun, default_strata
from hoplon.errors import HoplonError
from hoplon.program.decoding.program import DecodingProgram
from hoplon.stats.two_stage import TwoStagePlan

# "stratified" is what stored manifests call "two-phase".
DesignName = Literal["uniform", "stratified", "two-phase"]

_SLACK = 1.05  # more than a pilot makes it seem, so that the first look is nearly always the last one
_PLANNED_PARTS = (0.2, 0.7, 0.9, 1.0)  # how far to go before the number of faults is planned again


@dataclass(frozen=True)
class StoppingRule(ABC):
    """Decides how many faults are run, and whether they count alike. Final: `Fixed`, `Uniform`, `TwoPhase`.

    ``count``: faults to run; None: as many as the half-width takes. ``half_width``: of the interval to reach, as a
    probability; None: whatever the count gives.
    """

    confidence: float
    count: int | None = None
    half_width: float | None = None
    design: ClassVar[str] = "uniform"
    numbered: ClassVar[bool] = True  # a unit is a function of seed and number alone

    @property
    def schedule(self) -> SequentialSchedule:
        """The looks at the results until the half-width is reached, and the confidence of each."""
        assert self.half_width is not None
        return SequentialSchedule(self.half_width, self.confidence)

    def manifest(self, runner: UnitRunner) -> dict[str, Any]:
        """Entries of a manifest: what decides where the run stops."""
        return {"count": self.count, "half_width": self.half_width, "design": self.design, "strata": []}

    @abstractmethod
    def run(self, runner: UnitRunner, store: UnitStore) -> Results:
        """Run units, through the store, until the rule is satisfied."""

    def pilot(self, runner: UnitRunner, *, seconds: float) -> tuple[int, float, TwoStagePlan | None]:
        """Run the beginning for so many seconds and keep nothing.

        Returns:
            Faults, the seconds they took, and the plan of input batches that they suggest (None: all inputs).
        """
        started = time.perf_counter()
        stopwatch = Stopwatch(started + seconds)
        with suppress(TimeIsUp):
            runner.run(0, count=self.count, advance=stopwatch)
        return stopwatch.done, time.perf_counter() - started, None


@final
class Fixed(StoppingRule):
    """Stop after ``count`` faults, which count alike."""

    @override
    def run(self, runner: UnitRunner, store: UnitStore) -> Results:
        assert self.count is not None
        units = runner.units(self.count)
        store.run({unit: unit for unit in range(units)})
        return store.results(units, Design((), (), (), 0, self.confidence))


@final
class Uniform(StoppingRule):
    """Stop at a half-width; all faults that are drawn are run and count alike.

    One unit tells roughly how many faults that takes, a part of these tells it well, then one look is nearly always
    enough.
    """

    @override
    def run(self, runner: UnitRunner, store: UnitStore) -> Results:
        schedule, most = self.schedule, MOST_FAULTS // runner.unit_size
        units, look, parts, begun = 1, 0, iter(_PLANNED_PARTS), time.perf_counter()
        design = Design((), (), (), 0, schedule.confidence)
        while True:
            store.run({unit: unit for unit in range(units)})
            design = replace(design, level=1 - sum(schedule.tails(look)), looks=look + 1)
            rate = store.results(units, design).summary()[0]
            wanted = math.ceil(_SLACK * units * (rate.failure.half_width / schedule.half_width) ** 2)
            part = next(parts, None)
            if part is not None:  # no look, however precise it is
                factor = max(wanted / units, 1.0)
                design = replace(design, expected=amounts(rate.n_runs * factor, (time.perf_counter() - begun) * factor))
                units = max(units, min(math.ceil(part * wanted), most))
                continue
            if rate.failure.half_width <= schedule.half_width or units * runner.unit_size >= MOST_FAULTS:
                return store.results(units, replace(design, spent=amounts(rate.n_runs, time.perf_counter() - begun)))
            look, units = look + 1, min(max(wanted, units + 1), most)


@final
@dataclass(frozen=True)
class TwoPhase(StoppingRule):
    """Stop at a half-width; very many faults are drawn and looked at, few are run: see `TwoPhaseRun`."""

    strata: tuple[Strata, ...] = ()
    design: ClassVar[str] = "stratified"
    numbered: ClassVar[bool] = False

    @override
    def manifest(self, runner: UnitRunner) -> dict[str, Any]:
        # candidates, inputs_per_fault: so that a run on other candidates, or on all inputs, is not resumed
        found = {"strata": [repr(part) for part in self.strata], "candidates": "by bands of bits"}
        inputs = {"inputs_per_fault": "random batches"} if runner.target == "memory" else {}
        return super().manifest(runner) | found | inputs

    @override
    def run(self, runner: UnitRunner, store: UnitStore) -> Results:
        return store.results(*TwoPhaseRun(runner, self.strata, self.schedule, store).finish())

    @override
    def pilot(self, runner: UnitRunner, *, seconds: float) -> tuple[int, float, TwoStagePlan | None]:
        if runner.target == "values":
            return super().pilot(runner, seconds=seconds)
        most = runner.unit_size
        return time_two_levels(runner.injector, runner.draw_some, most=most, seed=runner.seed, seconds=seconds)


def stopping_rule(
    runner: UnitRunner,
    *,
    count: int | None = None,
    half_width: float | None = None,
    confidence: float = 0.95,
    design: DesignName | None = None,
    strata: Sequence[Strata] | Strata | None = None,
) -> StoppingRule:
    """Choose the rule that was asked for; all listed faults where the sampling lists them and nothing was asked for.

    Raises:
        HoplonError: neither or both of ``count`` and ``half_width``, numbers out of range, or options that do not fit.
    """
    listed = runner.sampling.size(runner.population)
    if listed is not None and half_width is not None:
        raise HoplonError(
            f"expected no half-width for {listed} listed faults, got {half_width}; give a count or nothing"
        )
    count = listed if count is None else count
    _check_goal(count, half_width, listed)
    if design is not None and design not in get_args(DesignName):
        raise HoplonError(f"expected design 'uniform' or 'two-phase', got {design!r}")
    if half_width is None and (design not in (None, "uniform") or strata is not None):
        raise HoplonError(
            "expected a half-width for strata, which decides how many runs each gets, got a count; "
            "give half_width, or the sampling Stratified"
        )
    if design == "uniform" and strata is not None:
        raise HoplonError("expected no strata for design='uniform', got some; leave them out")
    if half_width is None:
        return Fixed(confidence, count)
    if isinstance(runner.injector.reference.program, DecodingProgram):
        if design not in (None, "uniform") or strata is not None:
            raise HoplonError("expected design='uniform' for a decoding loop, whose words are not looked at beforehand")
        design = "uniform"
    if design == "uniform":
        return Uniform(confidence, None, half_width)
    if strata is None:
        strata = default_strata(runner.injector, runner.population)
    return TwoPhase(confidence, None, half_width, (strata,) if isinstance(strata, Strata) else tuple(strata))


def _check_goal(count: int | None, half_width: float | None, listed: int | None) -> None:
    if (count is None) == (half_width is None):
        raise HoplonError("expected exactly one of count and half_width, got both or neither")
    if count is not None and count < 1:
        raise HoplonError(f"expected a count of at least 1 fault, got {count}")
    if half_width is not None and not 0 < half_width < 0.5:
        raise HoplonError(f"expected a half-width in (0, 0.5), as a probability, got {half_width}")
    if listed is not None and count is not None and count > listed:
        raise HoplonError(f"expected a count of at most {listed}, all the faults there are, got {count}")
