"""Two-phase (double) sampling: candidates by the million are looked at, few of them are run (Cochran, chapter 12).

Two-*stage* sampling, of memory faults and then of the inputs that each meets, is `input_batches`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hoplon.campaign.design import Design
from hoplon.campaign.rates import FAILURES
from hoplon.campaign.runner import Planned, UnitRunner, UnitStore, amounts, in_cells
from hoplon.campaign.stratified.candidates import Candidates
from hoplon.campaign.stratified.input_batches import SecondStage
from hoplon.campaign.stratified.masking import LocalPropagation
from hoplon.campaign.stratified.preview import LogitGradients
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.campaign.stratified.strata import ByAnswer, ByDeviation, ByFirstOrder, BySensitivity, Strata
from hoplon.criteria.outcome import Outcome
from hoplon.errors import HoplonError
from hoplon.faults.sampling.base import Population
from hoplon.faults.table import FaultTable
from hoplon.injection.golden_run import GoldenRun, golden_outputs
from hoplon.injection.injector import Injector
from hoplon.injection.run_table import blank, run_frame
from hoplon.stats.intervals import Floats, Ints

_UNIT_FAULTS = {"values": 4096, "memory": 64}
_MOST_UNIT_FAULTS = 4096
_MOST_RUNS = 10_000_000
_MOST_PROVEN = 2**14
_RUNS_PER_PASS = 2.0  # of one input, by its time


def default_strata(injector: Injector, population: Population) -> tuple[Strata, ...]:
    """By how far the two largest outputs move, where there are logits and gradients, by large deviations, in case a
    gradient is blind, and by the golden class where the fault drowns it; else by deviation alone.
    """
    try:
        LogitGradients(injector, population.sites)
    except HoplonError:
        return (ByDeviation(),)
    return BySensitivity(), ByDeviation((1.0, 3.0), signs=False), ByAnswer()


class TwoPhaseRun:
    """Runs the stages of one campaign.

    Args:
        runner: of the campaign.
        strata: what tells faults apart.
        schedule: when to stop.
        store: runs planned units that are missing, and stores them.
    """

    def __init__(
        self, runner: UnitRunner, strata: Sequence[Strata], schedule: SequentialSchedule, store: UnitStore
    ) -> None:
        injector, population, seed = runner.injector, runner.population, runner.seed
        self._injector, self._store = injector, store
        again = looking_again(strata, injector.reference)
        self._schedule = dataclasses.replace(schedule, again=again)
        slope, arrive = None, None
        if any(part.needs_slope for part in strata):
            slope = LogitGradients(injector, population.sites, each_input=_directed(strata))
        self._levels: SecondStage | None = None
        if population.inputs is not None:
            arrive = LocalPropagation(injector, population.sites)  # type: ignore[arg-type]
        else:
            before = store.design()
            self._levels = SecondStage(injector, seed, recorded=None if before is None else before.split)
        self._candidates = Candidates(
            population,
            runner.sampling,
            strata,
            seed=seed,
            arrive=arrive,
            slope=slope,
            wrong=wrong_without_fault(injector),
        )
        self._units = self._faults = self._runs = 0
        self._planned = np.zeros((0, 2), dtype=np.int64)
        self._at_first_look: int | None = None

    def finish(self) -> tuple[int, Design]:
        """Run until the precision is reached; return the number of units and the design."""
        # Invariants, which make the estimate at the first look unbiased and the interval honest:
        # - which candidates are run, and in which order, is fixed by the seed before any of them is;
        # - how long one half of a stratum becomes is planned from the outcomes of its other half alone;
        # - strata are those of the first candidates, and only their shares are counted anew when more are drawn;
        # - each look spends a part of the probability to miss, and all parts together make 1 - confidence;
        # - that more is run after the first look depends on outcomes, so what is added counts in no estimate.
        schedule, drawn, begun = self._schedule, self._candidates, time.perf_counter()
        drawn.extend(schedule.candidates([band.part for band in drawn.bands]))
        self._planned = np.zeros((len(drawn.labels), 2), dtype=np.int64)
        first_phase_s = time.perf_counter() - begun
        expected = self._pilot_and_main_stage(first_phase_s)
        look, self._at_first_look = 0, self._faults
        while True:
            design, before = self._design(1 - sum(schedule.tails(look))), (len(drawn), self._planned.sum())
            design = dataclasses.replace(design, looks=look + 1)
            interval = self._store.results(self._units, design).summary()[0].failure
            if interval.half_width <= schedule.half_width or self._planned.sum() >= _MOST_RUNS:
                break
            failures = self._failures(schedule.confidence)
            counts, wanted = schedule.next_allocation(
                drawn.first_phase, failures, self._planned, look=look + 1, effects=self._effects()
            )
            drawn.extend(wanted)
            self._stage(schedule.with_new_strata(drawn.first_phase, counts))
            if (len(drawn), self._planned.sum()) == before:  # nothing is open, and no more candidates are to be had
                break
            look += 1
        spent = amounts(float(self._runs), time.perf_counter() - begun, first_phase_seconds=first_phase_s)
        return self._units, dataclasses.replace(design, expected=expected, spent=spent)

    def _pilot_and_main_stage(self, first_phase_s: float) -> dict[str, float]:
        """Run the pilot and what is planned from it; return what the pilot led to expect of the whole campaign."""
        schedule, drawn, begun = self._schedule, self._candidates, time.perf_counter()
        self._stage(schedule.pilot(drawn.first_phase))
        pilot, pilot_s = self._runs, time.perf_counter() - begun
        failures, effects = self._failures(schedule.confidence), self._choose()
        counts, wanted = schedule.main_stage(drawn.first_phase, failures, self._planned, effects=effects)
        runs = max(float(pilot + self._to_come(counts)), float(pilot))
        grown = float(np.maximum(wanted, drawn.first_phase.drawn).sum()) / len(drawn)
        seconds = first_phase_s * grown + runs * pilot_s / max(pilot, 1)
        # the pilot has met every batch of inputs, so memory is not going to rise much above its peak
        expected = amounts(runs, seconds, first_phase_seconds=first_phase_s)
        drawn.extend(wanted)
        self._stage(schedule.with_new_strata(drawn.first_phase, counts))
        self._prove()  # before the looks, which so know in which bands it lies
        return expected

    def _design(self, level: float) -> Design:
        drawn, first = self._candidates, self._candidates.first_phase
        known = tuple(None if np.isnan(value) else float(value) for value in first.known)
        split = None if self._levels is None else self._levels.known
        shares, draws = tuple(first.shares.tolist()), tuple(first.draws.tolist())
        planned = self._at_first_look
        return Design(drawn.labels, shares, known, len(drawn), level, draws=draws, planned=planned, split=split)

    def _failures(self, level: float) -> Ints:
        """Failures so far in each half of each stratum; of a memory fault, the share of its inputs."""
        if not self._units:
            return np.zeros_like(self._planned)
        results = self._store.results(self._units, self._design(level))
        failed = pl.col(results.criteria[0]).cast(pl.String).is_in(FAILURES).mean()
        shares = results.lazy_runs.group_by("cell", "fault").agg(failed=failed)
        tally = shares.group_by("cell").agg(pl.col("failed").sum()).collect()
        found = np.zeros(2 * len(self._candidates.labels))
        found[tally["cell"].to_numpy()] = tally["failed"].to_numpy()
        return found.reshape(-1, 2)  # type: ignore[return-value]

    def _choose(self) -> Floats | None:
        """After the pilot: how many inputs memory faults meet from here on; what that means for the plan."""
        if self._levels is None or not self._units:
            return None
        results = self._store.results(self._units, self._design(self._schedule.confidence))
        shares = self._candidates.first_phase.shares
        self._levels.choose(self._levels.tally(results, len(shares)), shares)
        return self._effects()

    def _effects(self) -> Floats | None:
        """See `SequentialSchedule.main_stage`; None of value faults, and where a pilot had nothing to run."""
        if self._levels is None or self._levels.split is None:
            return None
        results = self._store.results(self._units, self._design(self._schedule.confidence))
        return self._levels.effects(self._levels.tally(results, len(self._candidates.labels)))

    def _to_come(self, counts: Ints) -> float:
        """Runs of the faults that are planned and not yet run."""
        left = (counts - self._planned).clip(0).sum(0)
        return float(left.sum()) if self._levels is None else float((left * self._levels.inputs_each).sum())

    def _stage(self, counts: Ints) -> None:
        """Run so many faults of each half, less those that were run before."""
        rows, cells = [], []
        for stratum in np.flatnonzero((counts > self._planned).any(1)).tolist():
            members = np.flatnonzero(self._candidates.stratum == stratum)
            for half in (0, 1):
                mine = members[half::2][self._planned[stratum, half] : counts[stratum, half]]
                self._planned[stratum, half] += len(mine)
                rows.append(mine)
                cells.append(np.full(len(mine), 2 * stratum + half, dtype=np.int32))
        if sum(map(len, rows)):
            self._spend(np.concatenate(rows), np.concatenate(cells))

    def _spend(self, rows: Ints, cells: Ints) -> None:
        table = self._candidates.table(rows)
        order = _even_order(table, self._injector.reference)
        size = _UNIT_FAULTS[table.target]
        planned: dict[int, Planned] = {}
        if self._levels is not None:  # units of as many passes: each needs the fault-free values of all batches
            size = min(max(size, _MOST_UNIT_FAULTS), size * self._levels.parts)
        for start in range(0, len(order), size):
            mine = order[start : start + size]
            part, cell = self._numbered(table, mine, cells[mine])
            groups = None if self._levels is None else self._levels.groups(part, cell, self._units)
            planned[self._units] = part, cell, groups
            self._runs += len(mine) if self._levels is None or groups is None else self._levels.runs(groups)
            self._units, self._faults = self._units + 1, self._faults + len(mine)
        self._store.run(planned)

    def _numbered(self, table: FaultTable, mine: Ints, cells: Ints) -> tuple[FaultTable, pl.DataFrame]:
        """Some faults of a table, numbered on from those of earlier units, and the cell of each."""
        number = np.arange(len(mine)) + self._faults
        place = pl.DataFrame({"fault": mine, "number": number})
        frame = table.frame.join(place, on="fault", how="inner").drop("fault").rename({"number": "fault"})
        return FaultTable(table.target, frame), pl.DataFrame({"fault": number, "cell": cells.astype(np.int32)})

    def _prove(self) -> None:
        """Records of faults that are proven to be masked: they stand for their share in groups and in other arms."""
        drawn, spent = self._candidates, self._planned.sum() or self._schedule.pilot_runs
        first, rows, cells = drawn.first_phase, [], []
        for stratum in np.flatnonzero(first.known == 0).tolist():
            share = float(first.shares[stratum])
            members = np.flatnonzero(drawn.stratum == stratum)
            count = int(min(len(members), max(2.0, spent * share / max(1 - share, share / _MOST_PROVEN)), _MOST_PROVEN))
            rows.append(members[: count // 2 * 2])
            cells.append(2 * stratum + np.arange(len(rows[-1])) % 2)
        chosen = np.concatenate(rows)
        if not len(chosen):
            return
        table, cell = self._numbered(drawn.table(chosen), np.arange(len(chosen)), np.concatenate(cells))
        table = drawn.observed(table)
        self._store.store(self._units, (table, in_cells(_recorded(self._injector.reference, table), cell, proven=True)))
        self._units, self._faults = self._units + 1, self._faults + len(chosen)


def looking_again(strata: Sequence[Strata], reference: GoldenRun) -> float:
    """Fixed cost of enlarging the first phase, in equivalent runs, independent of the number of candidates.

    One forward pass over all inputs; where strata need gradients of each, also two backward passes and their forward.
    """
    passes = 1 + 3 * _directed(strata)  # gradients of two outputs, and their forward
    return _RUNS_PER_PASS * passes * len(reference.eligible)


def _directed(strata: Sequence[Strata]) -> bool:
    """True if strata read the slope, which differs from input to input."""
    return any(isinstance(part, ByFirstOrder) for part in strata)


def wrong_without_fault(injector: Injector) -> Tensor:
    """The eligible inputs that fail in this arm without any fault: int64."""
    reference = injector.reference
    if not injector.overlay.values:
        return torch.zeros(0, dtype=torch.int64)
    outputs = golden_outputs(
        reference.program,
        injector.overlay,
        reference.data,
        reference.criterion,
        batch=reference.batch,
        rows=reference.eligible,
    )
    every = slice(len(reference.eligible))
    outcomes, _ = reference.judge(torch.arange(len(reference.eligible)), every, golden=outputs, faulty=outputs)
    failed = np.isin(outcomes, [int(Outcome.SDC), int(Outcome.NONFINITE)]).any(1)
    return reference.eligible[torch.from_numpy(failed)]


def _recorded(reference: GoldenRun, table: FaultTable) -> pl.DataFrame:
    """The rows of runs that need not be made: nothing changes."""
    faults = table.frame["fault"].unique(maintain_order=True).to_numpy()
    if table.target == "values":
        inputs = table.frame.unique("fault", maintain_order=True)["input"].to_numpy()
    else:
        inputs = np.tile(reference.eligible.numpy(), len(faults))
        faults = np.repeat(faults, len(reference.eligible))
    outcomes, measures = blank(reference.criterion, len(faults))
    outcomes[:] = int(Outcome.IDENTICAL)
    measures[:] = 0.0
    before, after = table.frame["before"], table.frame["after"]
    changed = table.frame.with_columns(changed=(before != after)).group_by("fault").agg(pl.col("changed").any())
    reached = changed.sort("fault")["changed"].fill_null(False).to_numpy()
    none = np.zeros(len(faults), dtype=bool)
    reached = reached if table.target == "values" else none
    return run_frame(faults, inputs, reference.criterion, outcomes, measures, (none, none, reached))


def _even_order(table: FaultTable, reference: GoldenRun) -> Ints:
    """Fault numbers batch by batch of the inputs, so that a unit needs the fault-free values of few.

    Within a batch any stretch meets the inputs evenly, as a pass takes one fault of each.
    """
    if table.target == "memory":
        return np.arange(len(table))
    faults = table.frame.unique("fault", maintain_order=True)
    columns = faults.select("input", turn=pl.int_range(pl.len()).over("input"))
    given, turn = (column.to_numpy() for column in columns)
    batch = np.searchsorted(reference.eligible.numpy(), given) // reference.batch
    return np.lexsort((given, turn, batch))
