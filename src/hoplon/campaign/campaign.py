"""Campaigns: a frozen plan of faults, run unit by unit until a count or a precision is reached."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import polars as pl
import torch
from torch import Tensor

from hoplon.campaign.design import Design
from hoplon.campaign.executors import Executor, Processes, Serial
from hoplon.campaign.manifest import versions
from hoplon.campaign.pilot import Pilot, Stopwatch, TimeIsUp, time_two_levels
from hoplon.campaign.results import Results, site_kinds
from hoplon.campaign.reweighting import reweighted
from hoplon.campaign.runner import Progress, ProgressCallback, Unit, UnitStore, looks, run_uniform
from hoplon.campaign.store import RunDirectory
from hoplon.campaign.stratified.preview import Observer
from hoplon.campaign.stratified.schedule import SequentialSchedule
from hoplon.campaign.stratified.strata import Strata
from hoplon.campaign.stratified.two_phase import Groups, TwoPhase, default_strata, strike
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import as_criterion
from hoplon.errors import HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.sampling.plans import Exhaustive
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.formats.digest import content_digest
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.memory_budget import Budget
from hoplon.injection.memory_faults import Arrival
from hoplon.injection.replay.golden import Placement
from hoplon.program.inputs import Inputs, as_inputs
from hoplon.program.program import Program
from hoplon.program.sites import GuardMemory, Memory, Site, Values
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.stats.intervals import Interval

_UNIT_FAULTS = {"values": 1024, "memory": 64}

Way = Literal["uniform", "stratified"]


@dataclass(frozen=True, eq=False)
class Campaign:
    """A plan: program x data x sites x fault model x criterion x sampling.

    Args:
        program: from :func:`hoplon.capture`.
        data: :class:`hoplon.Inputs`, a map-style data set, a tensor or a pair (x, y).
        sites: :class:`hoplon.Values` (one fault meets one input), :class:`hoplon.Memory` (one fault meets all, or with
            a half-width as many as pay), or :class:`hoplon.GuardMemory` (the same, in what the guards among the
            protections hold).
        fault_model: how a struck word changes.
        criterion: what counts as harm; of several, in a sequence, each gets its own columns.
        sampling: which faults are drawn; element-uniform by default.
        protections: what is in place while faults strike; nothing by default.
        placement: whether a fault strikes before or after the protection of its own site.
        arrival: whether a memory fault strikes before the guards' check, or after it and meets one forward pass over
            all inputs until the next: its rate is that of faults which come too late.
        memory_budget: bytes that may be held for faults beside what one pass takes: half of it for fault-free values,
            half for what faults side by side carry, so it bounds how many go side by side; changes no record. By
            default 2 GiB of fault-free values, and as many faults as usually take some GiB.
        batch: samples per replay pass; chosen from the model's size by default. Recorded: bitwise claims hold at
            equal batch and threads.
    """

    program: Program
    data: Any
    sites: Values | Memory | GuardMemory = field(kw_only=True)
    fault_model: FaultModel = field(default_factory=BitFlip, kw_only=True)
    criterion: Criterion | Sequence[Criterion] = field(default_factory=TopK, kw_only=True)
    sampling: Sampling = field(default_factory=ElementUniform, kw_only=True)
    protections: tuple[Protection, ...] = field(default=(), kw_only=True)
    placement: Placement = field(default="before", kw_only=True)
    arrival: Arrival = field(default="before", kw_only=True)
    batch: int | None = field(default=None, kw_only=True)
    memory_budget: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_inputs(self.data))
        object.__setattr__(self, "protections", tuple(self.protections))
        object.__setattr__(self, "criterion", as_criterion(self.criterion))
        if self.batch is not None and self.batch < 1:
            raise HoplonError(f"expected a batch of at least 1, got {self.batch}")
        if self.memory_budget is not None and self.memory_budget < 1:
            raise HoplonError(f"expected a memory budget of at least 1 byte, got {self.memory_budget}")
        if self.placement not in ("before", "after"):
            raise HoplonError(f"expected placement 'before' or 'after', got {self.placement!r}")
        if self.arrival not in ("before", "after"):
            raise HoplonError(f"expected arrival 'before' or 'after', got {self.arrival!r}")

    @property
    def target(self) -> str:
        """ "values" or "memory"."""
        return self.sites.target

    def run(
        self,
        *,
        count: int | None = None,
        half_width: float | None = None,
        confidence: float = 0.95,
        design: Way | None = None,
        strata: Sequence[Strata] | Strata | None = None,
        seed: int = 0,
        store: str | os.PathLike[str] | None = None,
        resume: bool = False,
        workers: int = 1,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Results:
        """Draw faults, run them, classify every run.

        One seed gives one table of faults and, at equal batch and threads, one table of outcomes.

        Args:
            count: how many faults; None with a sampling that lists its faults: all of them; or
            half_width: run until the failure probability is known to this half-width (of the first column of the
                criterion). A first stage decides how many faults that takes, then one look is nearly always enough.
            confidence: of all intervals, whenever the campaign stops.
            design: how a half-width is reached. "stratified" (the default): very many faults are drawn and looked at
                before they propagate, few are run, most where the outcome is uncertain; see docs/statistics.md. The
                faults then have weights, and memory faults meet random batches of the inputs, as many as a pilot finds
                cheapest (``results.split``). "uniform": all faults that are drawn are run and count alike, memory
                faults on all inputs.
            strata: what tells faults apart in "stratified"; by deviation, and by first-order change of the logit gap
                where the model allows, by default.
            seed: decides the faults.
            store: a folder for the run directory; in memory by default.
            resume: go on with the run that is in ``store``.
            workers: processes that share the work units; they change no record.
            threads: of torch in each process; those in force by default. Recorded: bits may depend on them.
            progress: told finished and total faults (None: open); those of a resumed run count as finished.
        Raises:
            HoplonError: neither or both of ``count`` and ``half_width``, or out of range.
            DataError, SiteError, StoreError: see the parts.
        """
        if confidence <= 0 or confidence >= 1:
            raise HoplonError(f"expected confidence in (0, 1), got {confidence}")
        with torch_threads(threads, workers=workers) as held:
            work = _Work(self, seed)
            count = work.goal(count, half_width)
            way = _way(design, strata, half_width)
            chosen = work.strata(strata) if way == "stratified" else ()
            manifest = work.manifest(count=count, half_width=half_width, confidence=confidence)
            manifest |= {"design": way, "strata": [repr(part) for part in chosen]}
            if way == "stratified":
                manifest["candidates"] = "by bands of bits"  # so that one on other candidates is not gone on with
            if way == "stratified" and self.target == "memory":
                manifest["inputs_per_fault"] = "random batches"  # so that one on all inputs is not gone on with
            work.table(0, 1)  # refuses a fault model that does not fit before there is a run directory
            directory = None if store is None else RunDirectory.create(store, manifest, resume=resume)
            keep = UnitStore(directory, manifest)
            done = set() if directory is None or way == "stratified" else directory.finished()
            advance = ProgressCallback(progress, count, done=sum(work.size(unit, count) for unit in done))
            unit = _Units(work, count)
            if workers == 1:
                executor: Executor = Serial(lambda item: unit(item, advance=advance))
            else:
                executor = Processes(unit, workers=workers, threads=held)
            tell = advance if workers > 1 else None
            with executor, directory.writing() if directory else nullcontext():
                if half_width is None:
                    keep.run(executor, {unit: unit for unit in range(next(looks(count, work.unit_size)))}, tell)
                    return keep.results(next(looks(count, work.unit_size)), Design((), (), (), 0, confidence))
                if way == "stratified":
                    return self._stratified(
                        work, keep, executor, tell, chosen, SequentialSchedule(half_width, confidence)
                    )
                return run_uniform(keep, executor, tell, SequentialSchedule(half_width, confidence), work.unit_size)

    def _stratified(
        self,
        work: _Work,
        keep: UnitStore,
        executor: Executor,
        tell: ProgressCallback | None,
        strata: Sequence[Strata],
        course: SequentialSchedule,
    ) -> Results:
        phases = TwoPhase(
            work.evaluator,
            work.population,
            self.sampling,
            strata,
            course,
            work.seed,
            run=lambda planned: keep.run(executor, planned, tell),
            keep=keep.add,
            results=keep.results,
            recall=keep.split,
            record=keep.keep_split,
        )
        return keep.results(*phases.finish())

    def draw(self, *, count: int | None = None, seed: int = 0) -> FaultTable:
        """The faults that ``run(count=count, seed=seed)`` strikes, without striking them: nothing observed yet.

        Raises:
            HoplonError: a count below 1; DataError, SiteError: see the parts.
        """
        work, size = _Work(self, seed), _UNIT_FAULTS[self.target]
        total = work.goal(count, None)
        assert total is not None
        units = range(next(looks(total, size)))
        return FaultTable.concat([work.table(unit, min(size, total - unit * size)) for unit in units])

    def pilot(
        self,
        *,
        count: int | None = None,
        half_width: float | None = None,
        design: Way | None = None,
        seed: int = 0,
        threads: int | None = None,
        seconds: float = 2.0,
    ) -> Pilot:
        """Run the beginning of ``run(...)`` for so many seconds, keep nothing, and say how fast it went.

        Args:
            seconds: after which no further pass begins; all other arguments as in :meth:`run`.
        Raises:
            HoplonError, DataError, SiteError: what ``run`` refuses is refused here.
        """
        with torch_threads(threads):
            begun = time.perf_counter()
            work = _Work(self, seed)
            total = work.goal(count, half_width)
            partly = _way(design, None, half_width) == "stratified" and self.target == "memory"
            started, split = time.perf_counter(), None
            if partly:
                faults, spent, split = time_two_levels(
                    work.evaluator, work.some, most=work.unit_size, seed=seed, seconds=seconds
                )
            else:
                stopwatch = Stopwatch(started + seconds)
                with suppress(TimeIsUp):
                    work.unit(0, count=total, advance=ProgressCallback(stopwatch, None))
                faults, spent = stopwatch.done, time.perf_counter() - started
            reference = work.reference
            return Pilot(
                set_up_seconds=started - begun,
                seconds=spent,
                faults=faults,
                total=total,
                inputs=1 if self.target == "values" else len(reference.eligible),
                input_batches=reference.input_batches,
                batch=reference.batch,
                unit_faults=_UNIT_FAULTS[self.target],
                split=split,
            )

    def reweighted(self, results: Results, *, to: Sampling, criterion: str | None = None) -> Interval:
        """The failure probability under another sampling, from the results of this campaign.

        Args:
            results: of this campaign.
            to: the sampling that the estimate is for, e.g. ``ElementUniform()`` after an operator-uniform campaign.
            criterion: a name out of ``results.criteria``; the first by default.
        Raises:
            HoplonError: faults that were chosen, not drawn, or a sampling that reaches elements this one never draws.
        """
        sites, _ = _sites_of(self, overlay(self.program, self.protections))
        population = Population(sites, self.fault_model)
        return reweighted(results, population, drawn=self.sampling, to=to, criterion=criterion)


def _sites_of(campaign: Campaign, over: Overlay) -> tuple[tuple[Site, ...], Mapping[str, Tensor]]:
    """The selected sites; and, where they are guards' memory, what it holds."""
    if not isinstance(campaign.sites, GuardMemory):
        return campaign.sites.select(campaign.program), {}
    armed = ArmedMemory(campaign.program, over)
    return campaign.sites.select(armed), armed.copies


def _check_goal(count: int | None, half_width: float | None) -> None:
    if (count is None) == (half_width is None):
        raise HoplonError("expected exactly one of count and half_width, got both or neither")
    if count is not None and count < 1:
        raise HoplonError(f"expected a count of at least 1 fault, got {count}")
    if half_width is not None and not 0 < half_width < 0.5:
        raise HoplonError(f"expected a half-width in (0, 0.5), as a probability, got {half_width}")


class _Work:
    """Runs units: everything they need, made once."""

    def __init__(self, campaign: Campaign, seed: int) -> None:
        self.campaign, self.seed = campaign, seed
        over = overlay(campaign.program, campaign.protections)
        self.sites, copies = _sites_of(campaign, over)
        data: Inputs = campaign.data
        self.reference = GoldenRun.run(campaign.program, data, campaign.criterion, batch=campaign.batch)
        self.evaluator = Injector(
            self.reference, over, campaign.placement, campaign.arrival, Budget(campaign.memory_budget)
        )
        self.population = Population(
            self.sites,
            campaign.fault_model,
            self.reference.eligible if campaign.target == "values" else None,
            Observer(self.evaluator, self.sites, copies),
        )

    @property
    def unit_size(self) -> int:
        """Faults of a unit of uniform faults."""
        return _UNIT_FAULTS[self.campaign.target]

    def strata(self, given: Sequence[Strata] | Strata | None) -> tuple[Strata, ...]:
        """What tells faults apart: as asked for, or what the model allows."""
        if given is None:
            return default_strata(self.evaluator, self.population)
        return (given,) if isinstance(given, Strata) else tuple(given)

    def goal(self, count: int | None, half_width: float | None) -> int | None:
        """The count to reach, checked; all faults there are where the sampling lists them and nothing was asked for."""
        size = self.campaign.sampling.size(self.population)
        if size is not None and half_width is not None:
            raise HoplonError(
                f"expected no half-width for {size} listed faults, got {half_width}; give a count or nothing"
            )
        if size is not None and count is None:
            count = size
        _check_goal(count, half_width)
        if size is not None and count is not None and count > size:
            raise HoplonError(f"expected a count of at most {size}, all the faults there are, got {count}")
        return count

    def unit(self, unit: int, *, count: int | None, advance: ProgressCallback | None = None) -> Unit:
        """Draw and run one unit; a function of seed and number alone."""
        size = _UNIT_FAULTS[self.campaign.target]
        table = self.table(unit, self.size(unit, count))
        runs, observed = self.evaluator.runs(table, advance=advance)
        first = pl.col("fault") + unit * size
        return FaultTable(observed.target, observed.frame.with_columns(first)), runs.with_columns(first)

    def size(self, unit: int, count: int | None) -> int:
        """How many faults a unit has; the last one of a count may be short."""
        size = _UNIT_FAULTS[self.campaign.target]
        return size if count is None else max(0, min(size, count - unit * size))

    def table(self, unit: int, count: int) -> FaultTable:
        """The first faults of one unit, numbered from 0: a short unit is the beginning of the whole one."""
        whole = _UNIT_FAULTS[self.campaign.target]
        listed = self.campaign.sampling.size(self.population)
        table = draw_faults(
            self.population,
            whole if listed is None else min(whole, listed - unit * whole),
            sampling=self.campaign.sampling,
            generator=unit_generator(self.seed, unit),
            first=unit * whole,
        )
        return FaultTable(table.target, table.frame.filter(pl.col("fault") < count))

    def some(self, first: int, count: int) -> FaultTable:
        """So many faults of the first unit, from this number on."""
        table = self.table(0, first + count)
        return FaultTable(table.target, table.frame.filter(pl.col("fault") >= first))

    def _population_size(self) -> int | None:
        """How many faults there are, where a sampling lists them all."""
        sampling = self.campaign.sampling
        return sampling.size(self.population) if isinstance(sampling, Exhaustive) else None

    def manifest(self, *, count: int | None, half_width: float | None, confidence: float) -> dict[str, Any]:
        """What decides the records, for the run directory."""
        campaign, data = self.campaign, self.reference.data
        return {
            "format": 1,
            "target": campaign.target,
            "criteria": list(self.reference.criterion.names),
            "criterion": repr(self.reference.criterion),
            "sites": repr(campaign.sites),
            "kinds": site_kinds(self.sites),
            "fault_model": campaign.fault_model.name,
            "sampling": repr(campaign.sampling),
            "placement": campaign.placement,
            "arrival": campaign.arrival,
            "protections": [protection.label for protection in campaign.protections],
            "protections_digest": content_digest(campaign.protections),
            "program": {"name": campaign.program.name, "fingerprint": campaign.program.fingerprint()},
            "data": {"name": data.name, "digest": data.digest(), "inputs": len(data)},
            "eligible_inputs": len(self.reference.eligible),
            "batch": self.reference.batch,
            "threads": torch.get_num_threads(),
            "device": str(campaign.program.device),
            "unit_faults": _UNIT_FAULTS[campaign.target],
            "count": count,
            "population": campaign.sampling.size(self.population)
            if isinstance(campaign.sampling, Exhaustive)
            else None,
            "half_width": half_width,
            "confidence": confidence,
            "seed": self.seed,
            "versions": versions(),
        }


@dataclass(frozen=True)
class _Units:
    """The units of a campaign, here or in another process: by number, or with the faults that were chosen for them."""

    work: _Work
    count: int | None

    def __call__(
        self, item: int | tuple[FaultTable, pl.DataFrame, Groups | None], *, advance: ProgressCallback | None = None
    ) -> Unit:
        """One unit; from another process its progress is not seen until it is done."""
        if isinstance(item, int):
            return self.work.unit(item, count=self.count, advance=advance)
        return strike(self.work.evaluator, *item, advance=advance)


def _way(design: Way | None, strata: object, half_width: float | None) -> Way:
    """The design that was asked for, or that fits."""
    if design is not None and design not in get_args(Way):
        raise HoplonError(f"expected design 'uniform' or 'stratified', got {design!r}")
    if half_width is None and (design == "stratified" or strata is not None):
        raise HoplonError(
            "expected a half-width for strata, which decides how many runs each gets, got a count; "
            "give half_width, or the sampling Stratified"
        )
    if design == "uniform" and strata is not None:
        raise HoplonError("expected no strata for design='uniform', got some; leave them out")
    return design or ("uniform" if half_width is None else "stratified")


@contextmanager
def torch_threads(threads: int | None, *, workers: int = 1) -> Iterator[int]:
    """Run with so many threads of torch (None: as many as now); afterwards the number is what it was."""
    before = torch.get_num_threads()
    wanted = before if threads is None else threads
    if wanted < 1 or workers < 1:
        raise HoplonError(f"expected at least 1 worker and 1 thread, got {workers} and {wanted}")
    torch.set_num_threads(wanted)
    try:
        yield wanted
    finally:
        torch.set_num_threads(before)
