"""Campaigns: a frozen plan of faults, run unit by unit until a count or a precision is reached."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import torch
from torch import Tensor

from hoplon.criteria import Criterion, TopK, as_criterion
from hoplon.data import Inputs, as_inputs
from hoplon.errors import HoplonError
from hoplon.evaluation import ArmedMemory, Arrival, Evaluator, Reference
from hoplon.executors import Executor, Processes, Serial
from hoplon.faults import BitFlip, FaultModel, FaultTable
from hoplon.observation import Observer
from hoplon.overlay import Overlay, Protection, overlay
from hoplon.program import Program
from hoplon.replay import Placement
from hoplon.results import Results, held_results, site_kinds, stored_results
from hoplon.reweighting import reweighted
from hoplon.sampling import ElementUniform, Population, Sampling, draw_faults, unit_generator
from hoplon.sites import GuardMemory, Memory, Site, Values
from hoplon.stats import Interval, look_confidence
from hoplon.store import RunDirectory, content_digest, versions

Progress = Callable[[int, int | None], None]
Unit = tuple[FaultTable, pl.DataFrame]

_UNIT_FAULTS = {"values": 1024, "memory": 64}
_MOST_FAULTS = 10_000_000


@dataclass(frozen=True, eq=False)
class Campaign:
    """A plan: program x data x sites x fault model x criterion x sampling.

    Args:
        program: from :func:`hoplon.capture`.
        data: :class:`hoplon.Inputs`, a map-style data set, a tensor or a pair (x, y).
        sites: :class:`hoplon.Values` (one fault meets one input), :class:`hoplon.Memory` (one fault meets all), or
            :class:`hoplon.GuardMemory` (the same, in what the guards among the protections hold).
        fault_model: how a struck word changes.
        criterion: what counts as harm; of several, in a sequence, each gets its own columns.
        sampling: which faults are drawn; element-uniform by default.
        protections: what is in place while faults strike; nothing by default.
        placement: whether a fault strikes before or after the protection of its own site.
        arrival: whether a memory fault strikes before the guards' check, or after it and meets one forward pass over
            all inputs until the next: its rate is that of faults which come too late.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_inputs(self.data))
        object.__setattr__(self, "protections", tuple(self.protections))
        object.__setattr__(self, "criterion", as_criterion(self.criterion))
        if self.batch is not None and self.batch < 1:
            raise HoplonError(f"expected a batch of at least 1, got {self.batch}")
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
                criterion). Checked after 1, 2, 4, ... units, each at a confidence that keeps the whole valid.
            confidence: of all intervals.
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
        with torch_threads(threads, workers=workers) as held:
            work = _Work(self, seed)
            count = work.goal(count, half_width)
            manifest = work.manifest(count=count, half_width=half_width, confidence=confidence)
            work.table(0, 1)  # refuses a fault model that does not fit before there is a run directory
            directory = None if store is None else RunDirectory.create(store, manifest, resume=resume)
            keep = _Keeper(directory, manifest)
            done = set() if directory is None else directory.finished()
            advance = _Advance(progress, count, done=sum(work.size(unit, count) for unit in done))
            if workers == 1:
                executor: Executor = Serial(lambda unit: work.unit(unit, count=count, advance=advance))
            else:
                executor = Processes(_RemoteUnits(work, count), workers=workers, threads=held)
            with executor, directory.writing() if directory else nullcontext():
                return self._run(keep, executor, advance if workers > 1 else None, count, half_width, confidence)

    def _run(
        self,
        keep: _Keeper,
        executor: Executor,
        advance: _Advance | None,
        count: int | None,
        half_width: float | None,
        confidence: float,
    ) -> Results:
        for look, units in enumerate(looks(count, _UNIT_FAULTS[self.target])):
            keep.run(executor, units, advance)
            level = confidence if count is not None else look_confidence(look, confidence=confidence)
            results = keep.results(units, level)
            if half_width is not None and results.summary()[0].failure.half_width <= half_width:
                break
        return results

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
            started = time.perf_counter()
            stopwatch = _Stopwatch(started + seconds)
            with suppress(_TimeIsUp):
                work.unit(0, count=total, advance=_Advance(stopwatch, None))
            reference = work.reference
            return Pilot(
                set_up_seconds=started - begun,
                seconds=time.perf_counter() - started,
                faults=stopwatch.done,
                total=total,
                inputs=1 if self.target == "values" else len(reference.eligible),
                input_batches=reference.input_batches,
                batch=reference.batch,
                unit_faults=_UNIT_FAULTS[self.target],
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


@dataclass(frozen=True)
class Pilot:
    """The beginning of a campaign, timed.

    ``faults`` were finished in ``seconds``, after ``set_up_seconds`` of fault-free runs; ``total``: the faults of the
    campaign, None where it goes on until a precision is reached; ``inputs``: how many a fault meets; ``unit_faults``:
    faults of a work unit.
    """

    set_up_seconds: float
    seconds: float
    faults: int
    total: int | None
    inputs: int
    input_batches: int
    batch: int
    unit_faults: int


class _TimeIsUp(Exception):  # noqa: N818 -- says what is the case
    """Ends a pilot."""


class _Stopwatch:
    """Takes progress until a point in time, but at least once."""

    def __init__(self, end: float) -> None:
        self._end, self.done = end, 0

    def __call__(self, done: int, total: int | None) -> None:
        self.done = done
        if done and time.perf_counter() >= self._end:
            raise _TimeIsUp


def _check_goal(count: int | None, half_width: float | None) -> None:
    if (count is None) == (half_width is None):
        raise HoplonError("expected exactly one of count and half_width, got both or neither")
    if count is not None and count < 1:
        raise HoplonError(f"expected a count of at least 1 fault, got {count}")
    if half_width is not None and not 0 < half_width < 0.5:
        raise HoplonError(f"expected a half-width in (0, 0.5), as a probability, got {half_width}")


def looks(count: int | None, size: int) -> Iterator[int]:
    """After how many units the results are looked at: once for a count, after 1, 2, 4, ... for a precision."""
    if count is not None:
        yield -(-count // size)
        return
    units = 1
    while units * size <= _MOST_FAULTS:
        yield units
        units *= 2


class _Advance:
    """Counts finished faults for the caller's progress display; ``done`` were before."""

    def __init__(self, progress: Progress | None, total: int | None, *, done: int = 0) -> None:
        self._progress, self._total, self._done = progress, total, done
        if done:
            self(0)

    def __call__(self, faults: int) -> None:
        self._done += faults
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Work:
    """Runs units: everything they need, made once."""

    def __init__(self, campaign: Campaign, seed: int) -> None:
        self.campaign, self.seed = campaign, seed
        over = overlay(campaign.program, campaign.protections)
        self.sites, copies = _sites_of(campaign, over)
        data: Inputs = campaign.data
        self.reference = Reference.run(campaign.program, data, campaign.criterion, batch=campaign.batch)
        self.evaluator = Evaluator(self.reference, over, campaign.placement, campaign.arrival)
        self.population = Population(
            self.sites,
            campaign.fault_model,
            self.reference.eligible if campaign.target == "values" else None,
            Observer(self.evaluator, self.sites, copies),
        )

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

    def unit(self, unit: int, *, count: int | None, advance: _Advance | None = None) -> Unit:
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
            "half_width": half_width,
            "confidence": confidence,
            "seed": self.seed,
            "versions": versions(),
        }


@dataclass(frozen=True)
class _RemoteUnits:
    """The units of a campaign as another process runs them."""

    work: _Work
    count: int | None

    def __call__(self, unit: int) -> Unit:
        """One unit; its progress is not seen until it is done."""
        return self.work.unit(unit, count=self.count)


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


class _Keeper:
    """Holds finished units, on disk or in memory, and runs only those that are missing."""

    def __init__(self, directory: RunDirectory | None, manifest: dict[str, Any]) -> None:
        self._directory, self._manifest = directory, manifest
        self._held: dict[int, Unit] = {}

    def run(self, executor: Executor, units: int, advance: _Advance | None) -> None:
        """Run what is missing of the first units; ``advance`` is told of each, where the units cannot tell."""
        done = set(self._held) if self._directory is None else self._directory.finished()
        for unit, (faults, runs) in executor.run([unit for unit in range(units) if unit not in done]):
            if advance is not None:
                advance(len(faults))
            if self._directory is None:
                self._held[unit] = (faults, runs)
            else:
                self._directory.write(unit, faults, runs)

    def results(self, units: int, level: float) -> Results:
        if self._directory is not None:
            return stored_results(self._directory, self._manifest, units, level=level)
        return held_results(self._manifest, [self._held[unit] for unit in range(units)], level=level)
