"""How units are run and kept, and how uniform faults go on until a precision is reached."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from hoplon.campaign._peak_memory import peak_memory_bytes
from hoplon.campaign.design import Design
from hoplon.campaign.executors import Executor
from hoplon.campaign.results import Results, held_results, stored_results
from hoplon.campaign.store import RunDirectory
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.faults.table import FaultTable
from hoplon.stats.two_stage import TwoStagePlan

Progress = Callable[[int, int | None], None]
Unit = tuple[FaultTable, pl.DataFrame]

MOST_FAULTS = 10_000_000
_SLACK = 1.05  # more than a pilot makes it seem, so that the first look is nearly always the last one
_PLANNED_PARTS = (0.2, 0.7, 0.9, 1.0)  # how far to go before the number of faults is planned again


def looks(count: int | None, size: int) -> Iterator[int]:
    """After how many units the results are looked at: once for a count, after 1, 2, 4, ... for a forecast."""
    if count is not None:
        yield -(-count // size)
        return
    units = 1
    while units * size <= MOST_FAULTS:
        yield units
        units *= 2


class ProgressCallback:
    """Counts finished faults for the caller's progress display; ``done`` were before."""

    def __init__(self, progress: Progress | None, total: int | None, *, done: int = 0) -> None:
        self._progress, self._total, self._done = progress, total, done
        if done:
            self(0)

    def __call__(self, faults: int) -> None:
        """So many more are finished."""
        self._done += faults
        if self._progress is not None:
            self._progress(self._done, self._total)


class UnitStore:
    """Holds finished units, on disk or in memory, and runs only those that are missing."""

    def __init__(self, directory: RunDirectory | None, manifest: dict[str, Any]) -> None:
        self._directory, self._manifest = directory, manifest
        self._held: dict[int, Unit] = {}

    def run(self, executor: Executor, planned: Mapping[int, Any], advance: ProgressCallback | None) -> None:
        """Run the units that are missing; ``advance`` is told of each, where the units cannot tell."""
        done = set(self._held) if self._directory is None else self._directory.finished()
        items = {unit: item for unit, item in planned.items() if unit not in done}
        for unit, (faults, runs) in executor.run(items):
            if advance is not None:
                advance(len(faults))
            self.add(unit, (faults, runs))

    def add(self, unit: int, found: Unit) -> None:
        """Keep a unit; one that is there already stays."""
        if self._directory is None:
            self._held[unit] = found
        elif unit not in self._directory.finished():
            self._directory.write(unit, *found)

    def split(self) -> TwoStagePlan | None:
        """The split that was recorded; None where there is none."""
        return None if self._directory is None else self._directory.split()

    def keep_split(self, split: TwoStagePlan) -> None:
        """Record a split, so that a resumed run goes on with it."""
        if self._directory is not None and self._directory.split() is None:
            self._directory.keep_split(split)

    def results(self, units: int, design: Design) -> Results:
        """What the first units give."""
        if self._directory is not None:
            self._directory.keep_design(design)
            return stored_results(self._directory, self._manifest, units, level=design.level, design=design)
        held = [self._held[unit] for unit in range(units)]
        return held_results(self._manifest, held, level=design.level, design=design)


def run_uniform(
    keep: UnitStore, executor: Executor, tell: ProgressCallback | None, course: SequentialSchedule, size: int
) -> Results:
    """All faults count alike: a unit tells roughly how many it takes, a part of these tells it well, then one look."""
    units, look, parts, begun = 1, 0, iter(_PLANNED_PARTS), time.perf_counter()
    design = Design((), (), (), 0, course.confidence)
    while True:
        keep.run(executor, {unit: unit for unit in range(units)}, tell)
        design = replace(design, level=1 - sum(course.tails(look)))
        rate = keep.results(units, design).summary()[0]
        wanted = math.ceil(_SLACK * units * (rate.failure.half_width / course.half_width) ** 2)
        part = next(parts, None)
        if part is not None:  # no look, however precise it is
            design = replace(design, expected=amounts(rate.n_runs, begun, factor=max(wanted / units, 1.0)))
            units = max(units, min(math.ceil(part * wanted), MOST_FAULTS // size))
            continue
        if rate.failure.half_width <= course.half_width or units * size >= MOST_FAULTS:
            return keep.results(units, replace(design, spent=amounts(rate.n_runs, begun)))
        look, units = look + 1, min(max(wanted, units + 1), MOST_FAULTS // size)


def amounts(runs: float, begun: float, *, factor: float = 1.0) -> dict[str, float]:
    """So many runs took so long since a point of the clock, times a factor; and the memory of this process so far."""
    found = {"runs": runs * factor, "seconds": (time.perf_counter() - begun) * factor}
    memory = peak_memory_bytes()
    return found if memory is None else {**found, "memory_bytes": float(memory)}
