"""Work units of a campaign: drawn, run, stored, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.campaign.design import Design
from hoplon.campaign.executors import Executor, peak_memory_bytes
from hoplon.campaign.results import Results, held_results, stored_results
from hoplon.campaign.store import RunDirectory
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.table import FaultTable, Target
from hoplon.injection.injector import Injector
from hoplon.program.sites import Site

Progress = Callable[[int, int | None], None]
Unit = tuple[FaultTable, pl.DataFrame]
Groups = NDArray[np.bool_]
# Faults that were chosen for a unit; for each, the half of the stratum that it belongs to, None where all count alike;
# the batches of inputs that each memory fault meets, None for all.
Planned = tuple[FaultTable, pl.DataFrame | None, Groups | None]

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
    _drawn: dict[int, FaultTable] = field(default_factory=dict, init=False, repr=False)

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
        table, cells, groups = self.planned(item, count=count)
        runs, observed = self.injector.runs(table, advance=advance, groups=groups)
        return observed, in_cells(runs, cells, proven=False)

    def run_together(
        self,
        items: Sequence[int | Planned],
        *,
        count: int | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[Unit]:
        """Run units of value faults in the same passes; arguments as in `run`, and so are the results."""
        planned = [self.planned(item, count=count) for item in items]
        tables = [table for table, _, _ in planned]
        runs, observed = self.injector.runs(FaultTable.concat(tables), advance=advance)
        units, row, fault = [], 0, 0
        for table, cells, _ in planned:
            own, count_own = table.frame["fault"], len(table)
            names = {name: kind for name, kind in table.frame.schema.items() if kind == pl.Enum}
            as_drawn = [pl.col(name).cast(pl.String).cast(kind) for name, kind in names.items()]
            words = observed.frame.slice(row, len(own)).with_columns(own, *as_drawn)
            outcomes = runs.slice(fault, count_own).with_columns(own.unique().sort())
            units.append((FaultTable(table.target, words), in_cells(outcomes, cells, proven=False)))
            row, fault = row + len(own), fault + count_own
        return units

    def planned(self, item: int | Planned, *, count: int | None = None) -> Planned:
        """The faults of one unit, numbered as in the campaign; arguments as in `run`."""
        if not isinstance(item, int):
            return item
        table = self.draw(item, self.size(item, count))
        first = pl.col("fault") + item * self.unit_size
        return FaultTable(table.target, table.frame.with_columns(first)), None, None

    def draw(self, unit: int, count: int) -> FaultTable:
        """Draw the first faults of one unit, numbered from 0: a short unit is the beginning of the whole one."""
        whole = self.unit_size
        listed = self.sampling.size(self.population)
        if unit not in self._drawn:
            self._drawn.clear()  # one is looked at before it is run
            self._drawn[unit] = draw_faults(
                self.population,
                whole if listed is None else min(whole, listed - unit * whole),
                sampling=self.sampling,
                generator=unit_generator(self.seed, unit),
                first=unit * whole,
            )
        table = self._drawn[unit]
        return FaultTable(table.target, table.frame.filter(pl.col("fault") < count))

    def draw_some(self, first: int, count: int) -> FaultTable:
        """Draw so many faults of the first unit, from this number on."""
        table = self.draw(0, first + count)
        return FaultTable(table.target, table.frame.filter(pl.col("fault") >= first))


@dataclass(frozen=True, eq=False)
class UnitWork:
    """Work units as executors run them: whole, or in halves where one ends its process (see `isolation.Work`).

    ``count``: as in `UnitRunner.run`.
    """

    runner: UnitRunner
    count: int | None
    advance: Callable[[int], None] | None = None

    def __call__(self, item: int | Planned) -> Unit:
        """Run one unit."""
        return self.runner.run(item, count=self.count, advance=self.advance)

    def together(self, items: Sequence[int | Planned]) -> list[Unit]:
        """Run several units at once: those of value faults in the same passes, for which there are ever more runs."""
        if len(items) == 1 or self.runner.target == "memory":
            return [self(item) for item in items]
        return self.runner.run_together(items, count=self.count, advance=self.advance)

    def halves(self, item: int | Planned) -> tuple[Planned, ...]:
        """Half of the faults, or of the batches of inputs that one memory fault meets; nothing of one run."""
        table, cells, groups = self.runner.planned(item, count=self.count)
        faults = table.frame["fault"].unique(maintain_order=True)
        if groups is None:
            batches = self.runner.injector.reference.input_batches if table.target == "memory" else 1
            groups = np.ones((len(faults), batches), dtype=np.bool_)
        if (middle := len(faults) // 2) > 0:
            rows = (slice(middle), slice(middle, None))
            return tuple((table.only(faults[part]), cells, self._met(table, groups[part])) for part in rows)
        met = np.flatnonzero(groups[0])
        first = np.arange(groups.shape[1]) < met[len(met) // 2]
        return () if len(met) == 1 else tuple((table, cells, groups & side) for side in (first, ~first))

    @staticmethod
    def _met(table: FaultTable, groups: Groups) -> Groups | None:
        return groups if table.target == "memory" else None

    def joined(self, results: Sequence[Unit]) -> Unit:
        """Both halves as one unit."""
        (faults, runs), (others, more) = results
        same = faults.frame["fault"][0] == others.frame["fault"][0]  # which met other inputs
        frame = faults.frame if same else pl.concat([faults.frame, others.frame])
        joined = pl.concat([runs, more]).sort("fault", "input", maintain_order=True)
        return FaultTable(faults.target, frame), joined

    def unchanged(self, item: int | Planned) -> Planned:
        """The unit with faults that change nothing."""
        table, cells, groups = self.runner.planned(item, count=self.count)
        return table.unchanged(), cells, groups

    def lost(self, item: int | Planned, cause: str) -> Unit:
        """A unit that ended its process."""
        table, cells, groups = self.runner.planned(item, count=self.count)
        runs, observed = self.runner.injector.lost(table, cause, groups=groups)
        return observed, in_cells(runs, cells, proven=False)


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
        elif not self._directory.has(unit):
            self._directory.write(unit, *content)

    def design(self) -> Design | None:
        """Return the design that a run before recorded; None where there is none."""
        return None if self._directory is None else self._directory.design()

    def results(self, units: int, design: Design) -> Results:
        """Return the results of the first units under a design, which is recorded."""
        if self._directory is not None:
            self._directory.record_design(design, units)
            return stored_results(self._directory, self._manifest, units, design=design)
        held = [self._held[unit] for unit in range(units)]
        return held_results(self._manifest, held, design=design)


def in_cells(runs: pl.DataFrame, cells: pl.DataFrame | None, *, proven: bool) -> pl.DataFrame:
    """Add the columns ``cell`` and ``proven`` to runs: the half of a stratum, and whether nothing had to be run.

    Runs of faults that count alike (no cells) stay as they are.
    """
    if cells is None:
        return runs
    columns = cells.with_columns(proven=pl.lit(proven))
    return runs.join(columns, on="fault", how="left", maintain_order="left")


def amounts(runs: float, seconds: float, **more: float) -> dict[str, float]:
    """Collect expected or spent effort for a design: with the peak memory of this process so far, in bytes."""
    found = {"runs": runs, "seconds": seconds, **more}
    memory = peak_memory_bytes()
    return found if memory is None else {**found, "memory_bytes": float(memory)}
