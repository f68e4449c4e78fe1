"""How units are run and kept, and how uniform faults go on until a precision is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl

from hoplon.course import Course
from hoplon.design import Design
from hoplon.executors import Executor
from hoplon.faults import FaultTable
from hoplon.results import Results, held_results, stored_results
from hoplon.store import RunDirectory

Progress = Callable[[int, int | None], None]
Unit = tuple[FaultTable, pl.DataFrame]

MOST_FAULTS = 10_000_000
_SLACK = 1.05  # more than a pilot makes it seem, so that the first look is nearly always the last one


def looks(count: int | None, size: int) -> Iterator[int]:
    """After how many units the results are looked at: once for a count, after 1, 2, 4, ... for a forecast."""
    if count is not None:
        yield -(-count // size)
        return
    units = 1
    while units * size <= MOST_FAULTS:
        yield units
        units *= 2


class Advance:
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


class Keeper:
    """Holds finished units, on disk or in memory, and runs only those that are missing."""

    def __init__(self, directory: RunDirectory | None, manifest: dict[str, Any]) -> None:
        self._directory, self._manifest = directory, manifest
        self._held: dict[int, Unit] = {}

    def run(self, executor: Executor, planned: Mapping[int, Any], advance: Advance | None) -> None:
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

    def results(self, units: int, design: Design) -> Results:
        """What the first units give."""
        strata = design if design.shares else None
        if self._directory is not None:
            self._directory.keep_design(design)
            return stored_results(self._directory, self._manifest, units, level=design.level, design=strata)
        held = [self._held[unit] for unit in range(units)]
        return held_results(self._manifest, held, level=design.level, design=strata)


def run_uniform(keep: Keeper, executor: Executor, tell: Advance | None, course: Course, size: int) -> Results:
    """All faults count alike: one unit tells how many it takes, and one look is nearly always enough."""
    units, look, planned = 1, 0, False
    while True:
        keep.run(executor, {unit: unit for unit in range(units)}, tell)
        level = 1 - sum(course.tails(look))
        results = keep.results(units, Design((), (), (), 0, level))
        found = results.summary()[0].failure.half_width
        wanted = math.ceil(_SLACK * units * (found / course.half_width) ** 2)
        if wanted > units and not planned:  # the pilot; no look, however precise it is
            units, planned = min(wanted, MOST_FAULTS // size), True
            continue
        if found <= course.half_width or units * size >= MOST_FAULTS:
            return results
        look, units = look + 1, min(max(wanted, units + 1), MOST_FAULTS // size)
