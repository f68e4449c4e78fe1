"""Work units of a campaign: drawn, run, stored, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.campaign._peak_memory import peak_memory_bytes
from hoplon.campaign.design import Design
from hoplon.campaign.executors import Executor
from hoplon.campaign.results import Results, held_results, stored_results
from hoplon.campaign.store import RunDirectory
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.table import FaultTable, Target
from hoplon.injection.injector import Injector
from hoplon.program.sites import Site

Progress = Callable[[int, int | None], None]
Unit = tuple[FaultTable, pl.DataFrame]
Groups = NDArray[np.bool_]
# Faults that were chosen for a unit; for each, the half of the stratum that it belongs to; the batches of inputs that
# each memory fault meets.
Planned = tuple[FaultTable, pl.DataFrame, Groups | None]

MOST_FAULTS = 10_000_000
_UNIT_FAULTS = {"values": 1024, "memory": 64}


class ProgressCallback:
    """Counts finished faults for the caller's progress display; ``done`` were before."""

    def __init__(self, progress: Progress | None, total: int | None, *, done: int = 0) -> None:
        self._progress, self._total, self._done = progress, total, done
        if done:
            self(0)

    def __call__(self, faults: int) -> None:
        """Count so many more as finished."""
        self._done += faults
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass(frozen=True, eq=False)
class UnitRunner:
    """Draws and runs work units; a unit of uniform faults is a function of seed and number alone.

    ``sites``: those selected. ``population``: what faults are drawn from; without ``inputs`` they strike memory.
    """

    injector: Injector
    sites: tuple[Site, ...]
    population: Population
    sampling: Sampling
    seed: int

    @property
    def target(self) -> Target:
        """ "values" or "memory"."""
        return "memory" if self.population.inputs is None else "values"

    @property
    def unit_size(self) -> int:
        """Faults of a unit of uniform faults."""
        return _UNIT_FAULTS[self.target]

    def size(self, unit: int, count: int | None) -> int:
        """Faults of one unit; the last one of a count may be short."""
        return self.unit_size if count is None else max(0, min(self.unit_size, count - unit * self.unit_size))

    def units(self, count: int) -> int:
        """Units that so many faults make."""
        return -(-count // self.unit_size)

    def run(
        self, item: int | Planned, *, count: int | None = None, advance: Callable[[int], None] | None = None
    ) -> Unit:
        """Run one unit: of uniform faults by its number, or the faults that were chosen for it.

        Args:
            count: uniform faults of all units; None: open.
        """
        if not isinstance(item, int):
            table, cells, groups = item
            runs, observed = self.injector.runs(table, advance=advance, groups=groups)
            return observed, in_cells(runs, cells, proven=False)
        runs, observed = self.injector.runs(self.draw(item, self.size(item, count)), advance=advance)
        first = pl.col("fault") + item * self.unit_size
        return FaultTable(observed.target, observed.frame.with_columns(first)), runs.with_columns(first)

    def draw(self, unit: int, count: int) -> FaultTable:
        """Draw the first faults of one unit, numbered from 0: a short unit is the beginning of the whole one."""
        whole = self.unit_size
        listed = self.sampling.size(self.population)
        table = draw_faults(
            self.population,
            whole if listed is None else min(whole, listed - unit * whole),
            sampling=self.sampling,
            generator=unit_generator(self.seed, unit),
            first=unit * whole,
        )
        return FaultTable(table.target, table.frame.filter(pl.col("fault") < count))

    def draw_some(self, first: int, count: int) -> FaultTable:
        """Draw so many faults of the first unit, from this number on."""
        table = self.draw(0, first + count)
        return FaultTable(table.target, table.frame.filter(pl.col("fault") >= first))


class UnitStore:
    """Holds finished units, on disk or in memory, and runs only those that are missing.

    Args:
        directory: of the run; None: in memory.
        manifest: of the run.
        executor: runs units.
        report_progress: told of each finished unit, where the units cannot tell themselves.
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        manifest: dict[str, Any],
        executor: Executor,
        report_progress: ProgressCallback | None = None,
    ) -> None:
        self._directory, self._manifest, self._executor = directory, manifest, executor
        self._report_progress = report_progress
        self._held: dict[int, Unit] = {}

    def run(self, planned: Mapping[int, int | Planned]) -> None:
        """Run and store the units that are missing."""
        done = set(self._held) if self._directory is None else self._directory.finished()
        items = {unit: item for unit, item in planned.items() if unit not in done}
        for unit, (faults, runs) in self._executor.run(items):
            if self._report_progress is not None:
                self._report_progress(len(faults))
            self.store(unit, (faults, runs))

    def store(self, unit: int, content: Unit) -> None:
        """Store a unit; one that is there already stays."""
        if self._directory is None:
            self._held[unit] = content
        elif unit not in self._directory.finished():
            self._directory.write(unit, *content)

    def design(self) -> Design | None:
        """Return the design that a run before recorded; None where there is none."""
        return None if self._directory is None else self._directory.design()

    def results(self, units: int, design: Design) -> Results:
        """Return the results of the first units under a design, which is recorded."""
        if self._directory is not None:
            self._directory.record_design(design)
            return stored_results(self._directory, self._manifest, units, design=design)
        held = [self._held[unit] for unit in range(units)]
        return held_results(self._manifest, held, design=design)


def in_cells(runs: pl.DataFrame, cells: pl.DataFrame, *, proven: bool) -> pl.DataFrame:
    """Add the columns ``cell`` and ``proven`` to runs: the half of a stratum, and whether nothing had to be run."""
    columns = cells.with_columns(proven=pl.lit(proven))
    return runs.join(columns, on="fault", how="left", maintain_order="left")


def amounts(runs: float, seconds: float, **more: float) -> dict[str, float]:
    """Collect expected or spent effort for a design: with the peak memory of this process so far, in bytes."""
    found = {"runs": runs, "seconds": seconds, **more}
    memory = peak_memory_bytes()
    return found if memory is None else {**found, "memory_bytes": float(memory)}
