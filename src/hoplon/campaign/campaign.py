"""Campaigns: a frozen plan of faults, run unit by unit until a count or a precision is reached."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from hoplon.campaign.executors import Executor, Processes, Serial, torch_threads, workers_that_fit
from hoplon.campaign.manifest import EXECUTION, FORMAT, protected_by, provenance
from hoplon.campaign.pilot import Pilot
from hoplon.campaign.results import Results, site_kinds
from hoplon.campaign.reweighting import reweighted
from hoplon.campaign.runner import Progress, ProgressCallback, UnitRunner, UnitStore, UnitWork
from hoplon.campaign.stopping import DesignName, StoppingRule, stopping_rule
from hoplon.campaign.store import RunDirectory
from hoplon.campaign.stratified.preview import Observer
from hoplon.campaign.stratified.strata import Strata
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import as_criterion
from hoplon.errors import Count, HoplonError, HoplonWarning, Seed, Share, checked
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Population, Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.sampling.plans import Exhaustive
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.golden_run import GoldenRun, KeptPasses, replay_of
from hoplon.injection.injector import Injector
from hoplon.injection.memory_budget import Budget
from hoplon.injection.packing import Kernels, packed, proof
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.program.decoding.program import DecodingProgram
from hoplon.program.inputs import as_inputs
from hoplon.program.program import Program
from hoplon.program.sites import GuardMemory, Memory, Site, Values, ValueSite
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.stats.intervals import Interval

# With fewer faults for a map of a batch than one to so many, keeping it costs more than making it again.
_FEW = 4


@checked
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
        kernels: what computes the runs: "exact", the model's own operators, bit for bit; or "packed", for value faults,
            convolutions whose weights are packed once, for golden and faulty runs alike, up to twice as fast. Outcomes
            are exact among themselves; outputs equal the model's within a tolerance, which is proven on a batch
            before any fault and recorded.
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
    kernels: Kernels = field(default="exact", kw_only=True)
    batch: Count | None = field(default=None, kw_only=True)
    memory_budget: Count | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", as_inputs(self.data))
        object.__setattr__(self, "criterion", as_criterion(self.criterion))
        if self.kernels == "packed" and self.target != "values":
            raise HoplonError("expected kernels='exact' for faults in memory, which packed weights would not meet")

    @property
    def target(self) -> str:
        """ "values" or "memory"."""
        return self.sites.target

    def run(
        self,
        *,
        count: Count | None = None,
        half_width: Share | None = None,
        confidence: Share = 0.95,
        design: DesignName | None = None,
        strata: Sequence[Strata] | Strata | None = None,
        seed: Seed = 0,
        store: str | os.PathLike[str] | None = None,
        resume: bool = False,
        workers: Count = 1,
        threads: Count | None = None,
        progress: Progress | None = None,
    ) -> Results:
        """Draw faults, run them, classify every run.

        One seed gives one table of faults and, at equal batch and threads, one table of outcomes.

        Args:
            count: how many faults; None with a sampling that lists its faults: all of them; or
            half_width: run until the failure probability is known to this half-width (of the first column of the
                criterion). A first stage decides how many faults that takes, then one look is nearly always enough.
            confidence: of all intervals, whenever the campaign stops.
            design: how a half-width is reached. "two-phase" (the default; "stratified" means the same): very many
                faults are drawn and looked at before they propagate, few are run, most where the outcome is uncertain;
                see docs/statistics.md. The faults then have weights, and memory faults meet random batches of the
                inputs, as many as a pilot finds cheapest (``results.split``). "uniform": all faults that are drawn are
                run and count alike, memory faults on all inputs.
            strata: what tells faults apart in "two-phase"; by deviation, and by first-order change of the logit gap
                where the model allows, by default.
            seed: decides the faults.
            store: a folder for the run directory; in memory by default.
            resume: go on with the run that is in ``store``; a unit that ended the process is run in another one, in
                halves, until the fault that ended it is alone and has its outcome, a crash. Damaged units are run
                again, with a warning.
            workers: processes that share the work units, as many as there are cores at most; they change no record. A
                fault that ends one is a crash.
            threads: of torch in each process; those in force by default. Recorded: bits may depend on them.
            progress: told finished and total faults (None: open); those of a resumed run count as finished.
        Raises:
            HoplonError: neither or both of ``count`` and ``half_width``, or out of range.
            DataError, SiteError, StoreError: see the parts.
        """
        with torch_threads(threads, workers=workers) as held:
            runner, rule = self.prepare(
                count=count, half_width=half_width, confidence=confidence, design=design, strata=strata, seed=seed
            )
            manifest = self._manifest(runner, rule)
            directory = None if store is None else RunDirectory.create(store, manifest, resume=resume)
            manifest = manifest if directory is None else directory.manifest()  # of the process that began the run
            with ExitStack() as stack:
                if directory is not None:
                    stack.enter_context(directory.writing())
                finished = directory.finished() if directory is not None and rule.numbered else ()
                done = sum(runner.size(unit, rule.count) for unit in finished)
                report_progress = ProgressCallback(progress, rule.count, done=done)
                work = UnitWork(runner, rule.count, report_progress)
                executor = stack.enter_context(_executor(work, directory, stack, workers=workers, threads=held))
                here = isinstance(executor, Serial)  # processes tell no progress before a unit is done
                if not here and (kept := runner.injector.reference.kept) is not None:
                    kept.batches.clear()  # they keep their own
                return rule.run(runner, UnitStore(directory, manifest, executor, None if here else report_progress))

    def prepare(
        self,
        *,
        count: Count | None = None,
        half_width: Share | None = None,
        confidence: Share = 0.95,
        design: DesignName | None = None,
        strata: Sequence[Strata] | Strata | None = None,
        seed: Seed = 0,
    ) -> tuple[UnitRunner, StoppingRule]:
        """Run the model without faults, check the plan and draw one fault, but strike none; arguments as in `run`.

        Raises:
            HoplonError, DataError, SiteError: what ``run`` refuses is refused here.
        """
        runner = self._runner(seed, count)
        rule = stopping_rule(
            runner, count=count, half_width=half_width, confidence=confidence, design=design, strata=strata
        )
        runner.draw(0, 1)  # refuses a fault model that does not fit before there is a run directory
        watched = self.program.has_graph or isinstance(self.program, DecodingProgram)
        if self.target != "values" or self.protections or not watched:
            runner.injector.rehearse(runner.sites)  # the golden run has not gone this way
        return runner, rule

    def _runner(self, seed: int, count: int | None = None) -> UnitRunner:
        """Run the model without faults, and prepare to draw and run units; ``count`` faults, where that is known."""
        over = overlay(self.program, self.protections)
        sites, copies = _sites_of(self, over)
        budget = Budget(self.memory_budget)
        program = packed(self.program) if self.kernels == "packed" else self.program
        values = [site for site in sites if isinstance(site, ValueSite)]

        def keep(batch: int) -> KeptPasses:
            batches = -(-len(self.data) // batch)
            few = count is not None and count * _FEW < batches * len(values)  # most maps would never be struck
            room = 0 if few else budget.golden / batches
            replay = replay_of(program, over, batch, values, self.placement, room=room)
            return KeptPasses(replay, budget.golden)

        keeps = keep if values and not over.values else None  # what faults will need of the same passes
        reference = GoldenRun.run(program, self.data, self.criterion, batch=self.batch, keep=keeps)
        injector = Injector(reference, over, self.placement, self.arrival, budget)
        eligible = reference.eligible if self.target == "values" else None
        population = Population(sites, self.fault_model, eligible, Observer(injector, sites, copies))
        return UnitRunner(injector, sites, population, self.sampling, seed)

    def _manifest(self, runner: UnitRunner, rule: StoppingRule) -> dict[str, Any]:
        """Collect what decides the records, for the run directory."""
        reference, listed = runner.injector.reference, self.sampling.size(runner.population)
        return {
            **provenance(reference, placement=self.placement, confidence=rule.confidence),
            **protected_by(self.protections),
            **rule.manifest(runner),
            "format": FORMAT,
            "target": self.target,
            "sites": repr(self.sites),
            "kinds": site_kinds(runner.sites),
            "fault_model": self.fault_model.name,
            "sampling": repr(self.sampling),
            "arrival": self.arrival,
            **({"kernels": proof(self.program, reference)} if self.kernels == "packed" else {}),
            "unit_faults": runner.unit_size,
            "population": listed if isinstance(self.sampling, Exhaustive) else None,
            "seed": runner.seed,
            EXECUTION: runner.injector.execution(runner.sites),
        }

    def draw(self, *, count: Count | None = None, seed: Seed = 0) -> FaultTable:
        """The faults that ``run(count=count, seed=seed)`` strikes, without striking them: nothing observed yet.

        Raises:
            HoplonError: a count below 1; DataError, SiteError: see the parts.
        """
        runner = self._runner(seed)
        rule = stopping_rule(runner, count=count)
        assert rule.count is not None
        units = range(runner.units(rule.count))
        return FaultTable.concat([runner.draw(unit, runner.size(unit, rule.count)) for unit in units])

    def pilot(
        self,
        *,
        count: Count | None = None,
        half_width: Share | None = None,
        design: DesignName | None = None,
        seed: Seed = 0,
        threads: Count | None = None,
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
            runner, rule = self.prepare(count=count, half_width=half_width, design=design, seed=seed)
            started = time.perf_counter()
            faults, spent, split = rule.pilot(runner, seconds=seconds)
            reference = runner.injector.reference
            return Pilot(
                set_up_seconds=started - begun,
                seconds=spent,
                faults=faults,
                total=rule.count,
                inputs=1 if self.target == "values" else len(reference.eligible),
                input_batches=reference.input_batches,
                batch=reference.batch,
                unit_faults=runner.unit_size,
                split=split,
                execution=runner.injector.execution(runner.sites),
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


def _executor(
    work: UnitWork, directory: RunDirectory | None, stack: ExitStack, *, workers: int, threads: int
) -> Executor:
    """Where units run: in this process, unless several are asked for, or a unit ended this one the last time."""
    if workers > 1:
        used = workers_that_fit(workers, threads=threads)
        return Processes(replace(work, advance=None), workers=used, threads=threads)
    if directory is not None and directory.ended_a_process:
        try:
            return Processes(replace(work, advance=None), workers=1, threads=threads)
        except HoplonError as error:
            message = f"a process ended in the middle of this run, and what ended it cannot be kept apart: {error}"
            warnings.warn(message, HoplonWarning, stacklevel=4)
    if directory is not None:
        stack.enter_context(directory.in_this_process())
    return Serial(work)


def _sites_of(campaign: Campaign, over: Overlay) -> tuple[tuple[Site, ...], Mapping[str, Tensor]]:
    """The selected sites; and, where they are guards' memory, what it holds."""
    if not isinstance(campaign.sites, GuardMemory):
        return campaign.sites.select(campaign.program), {}
    armed = ArmedMemory(campaign.program, over)
    return campaign.sites.select(armed), armed.copies
