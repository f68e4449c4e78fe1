"""The whole question in one call: how often faults make a network fail, what protections change, what they cost."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import peak_memory_bytes
from hoplon.campaign.results import site_kinds
from hoplon.comparison.comparison import Comparison, Progress, compare
from hoplon.comparison.exposure import at_risk
from hoplon.comparison.learned import Learned
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.errors import Count, HoplonError, Natural, Seed, checked
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.injection.golden_run import default_batch, golden_outputs
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.program.inputs import Inputs, Stream, as_inputs
from hoplon.program.program import Program
from hoplon.program.sites import GuardMemory, Memory, Site, Values
from hoplon.protections.base import Overlay, Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.runtime.schedule import When
from hoplon.protections.values.ranger import Ranger, Where
from hoplon.registry import components
from hoplon.report.document import plain

VALUES = Values(kind=("conv", "linear"))
MEMORY = Memory("*.weight", kind=("conv", "linear"))
MakeSampling = Callable[[Learned], Sampling]


@dataclass(frozen=True)
class ArmPlan:
    """What is in an arm, once ranges and scores can be learned, and when its guards check (latency alone)."""

    make: Callable[[Learned], tuple[Protection, ...]]
    when: When | None = None


@checked
@dataclass(frozen=True, kw_only=True)
class AssessmentPlan:
    """The size of an assessment, and how harm is judged.

    Args:
        value_faults: faults in operator outputs, one input each; 0 leaves this kind out.
        memory_faults: faults in weights, each met by all inputs; 0 leaves this kind out.
        guard_faults: single-bit flips in what the guards of an arm hold, met by all inputs as well; 0 leaves them out.
        values, memory: the sites of both kinds; convolutions, linear layers and their weights by default. Scores are
            those of the struck weights.
        fault_models: by a name that tells them apart; each is a table of its own, under every sampling.
        samplings: likewise, each made once scores can be learned.
        inputs: how many held-out inputs faults meet, drawn by ``seed``; None for all. Accuracy is always that of all.
        calibration: how many calibration samples ranges and scores are computed on, drawn by ``seed``; None for all.
        criterion: what counts as harm.
        placement: a fault strikes before or after the protection of its own site.
        arrival: a memory fault strikes before the guards' check or after it.
        batch: samples per replay pass; chosen from the model's size by default.
        latency: measure what the arms cost in time; seconds per arm.
        seed: decides faults and samples.
    Raises:
        HoplonError: a number out of range, or no fault at all.
    """

    value_faults: Natural = 8192
    memory_faults: Natural = 1024
    guard_faults: Natural = 256
    values: Values = VALUES
    memory: Memory = MEMORY
    fault_models: Mapping[str, FaultModel] = field(default_factory=lambda: {"": BitFlip()})
    samplings: Mapping[str, MakeSampling] = field(default_factory=lambda: {"": lambda learned: ElementUniform()})
    inputs: Count | None = None
    calibration: Count | None = None
    criterion: Criterion = field(default_factory=TopK)
    placement: Placement = "before"
    arrival: Arrival = "before"
    batch: Count | None = None
    latency: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.value_faults + self.memory_faults:
            raise HoplonError(
                f"expected value or memory faults to run, got {self.value_faults} and {self.memory_faults}"
            )


@dataclass(frozen=True, eq=False)
class Assessment:
    """A comparison and all that its figures rest on.

    ``population``: by fault table, what faults were drawn from; ``sampling``: how, by name, ``sampling_text`` in
    sentences; ``schedules``: by arm, when its guards check; ``protections``: by arm, the labels of what is in it;
    ``guarantees``: by label, what a guard repairs for certain, detects and misses;
    ``model_bytes``: of all parameters and buffers, what extra bytes compare with; ``prediction``: what the faults of
    all arms were going to take, from a timed beginning without protections, beside what they took; None of a resumed
    one.
    """

    comparison: Comparison
    plan: AssessmentPlan
    population: Mapping[str, Mapping[str, Any]]
    sampling: str
    sampling_text: tuple[str, ...]
    schedules: Mapping[str, str]
    protections: Mapping[str, tuple[str, ...]]
    guarantees: Mapping[str, str]
    calibration: Mapping[str, Any]
    model_bytes: int
    prediction: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON: figures, captions, provenance."""
        return {
            "format": 1,
            **self.comparison.to_dict(),
            "seed": self.plan.seed,
            "fault_model": "; ".join(model.name for model in self.plan.fault_models.values()),
            **{name: plain(getattr(self, name)) for name in _STORED},
        }


_STORED = (
    "population",
    "sampling",
    "sampling_text",
    "protections",
    "schedules",
    "guarantees",
    "calibration",
    "model_bytes",
    "prediction",
)
_OF_RUNS = ("criterion", "placement", "arrival", "guard_faults", "seed", "batch", "latency")
_PILOT_SECONDS = 0.3  # of each kind of fault


def standard_arms(*, where: Where = "algorithm1") -> dict[str, ArmPlan]:
    """Return the arms that every assessment compares, by name; "none" is what differences refer to.

    Args:
        where: which operators :class:`Ranger` bounds.
    """

    def ranger(learned: Learned) -> Ranger:
        return Ranger(learned.ranges(where=where), where=where)

    return {
        "none": ArmPlan(lambda learned: ()),
        "ranger": ArmPlan(lambda learned: (ranger(learned),)),
        "aspis-1%": ArmPlan(lambda learned: (Aspis(learned.scores(), 0.01),)),
        "aspis-10%": ArmPlan(lambda learned: (Aspis(learned.scores(), 0.1),)),
        "tmr": ArmPlan(lambda learned: (TMR(),)),
        "ranger+aspis-1%": ArmPlan(lambda learned: (ranger(learned), Aspis(learned.scores(), 0.01))),
    }


@checked
def assess(
    program: Program,
    *,
    calibration: Stream,
    held_out: Stream,
    plan: AssessmentPlan,
    arms: Mapping[str, ArmPlan] | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Assessment:
    """Learn ranges and scores as far as arms need them, draw faults, and run them in every arm.

    Args:
        calibration: what protections learn from, labelled where scores need a loss; best of the training data.
        held_out: labelled, what faults meet and accuracy is measured on.
        arms: by name; the standard ones by default. The first without protections is what differences refer to.
        store: a folder for the ranges, the scores and one run directory per fault table and arm.
        resume: take the arms that are finished in ``store``; ranges, scores and costs are computed again.
        progress: told what is at work.
    Raises:
        DataError: data without labels, or that does not fit the model or its classes.
        SiteError: no site to strike, or no activation to bound.
        StoreError: ``store`` cannot be written, or has a run in it and ``resume`` was not asked for, or another run.
    """
    report_progress = progress or (lambda stage, done, total: None)
    known = as_inputs(calibration).sample(plan.calibration, seed=plan.seed)
    whole = as_inputs(held_out)
    inputs = whole.sample(plan.inputs, seed=plan.seed)
    _check_calibration(program, known, plan)
    struck = plan.memory if plan.memory_faults and plan.memory != MEMORY else None
    learned = Learned(program, known, weights=struck, seed=plan.seed, progress=report_progress)
    of_struck = learned if struck else Learned(program, known, weights=plan.memory, seed=plan.seed)
    campaigns = _campaigns(program, inputs, plan, of_struck)
    tables = {name: campaign.draw(count=count, seed=plan.seed) for name, (count, campaign) in campaigns.items()}
    plans = arms or standard_arms()
    made = {name: arm.make(learned) for name, arm in plans.items()}
    schedules = {name: arm.when for name, arm in plans.items() if arm.when is not None}
    expected = _expected(list(campaigns.values()), plan, arms=len(made))
    times: list[float] = []
    report_progress("costs without faults", 0, 1)
    comparison = compare(
        program,
        inputs,
        arms=made,
        faults=tables,
        held_out=whole,
        schedules=schedules,
        store=store,
        resume=resume,
        progress=_stages(tables, len(made), report_progress, times),
        **{name: getattr(plan, name) for name in _OF_RUNS},
    )
    if store is not None:
        _keep(learned, Path(store))
    samplings = [campaign.sampling for _, campaign in campaigns.values()]
    return Assessment(
        comparison=comparison,
        plan=plan,
        population={name: _population(campaign, tables[name]) for name, (_, campaign) in campaigns.items()},
        sampling=", ".join(dict.fromkeys(_described(one)[0] for one in samplings)),
        sampling_text=tuple(dict.fromkeys(_described(one)[1] for one in samplings)),
        schedules={name: when.text for name, when in schedules.items()},
        protections={name: tuple(protection.label for protection in arm) for name, arm in made.items()},
        guarantees={one.label: one.guarantee for arm in made.values() for one in arm if one.guarantee},
        calibration={"data": known.name, "inputs": len(known), **_scored(learned)},
        model_bytes=sum(tensor.nbytes for tensor in program.memory().values()),
        prediction=None if resume else f"{expected} expected; it took {_took(times[-1] - times[0])}",
    )


def _stages(
    tables: Mapping[str, FaultTable], arms: int, report_progress: Progress, times: list[float]
) -> Callable[[str, int, int], None]:
    """What is told while arms run: stage by stage; the moments at which drawn faults were done go to ``times``."""
    of_values = arms * sum(len(table) for table in tables.values() if table.target == "values")
    drawn = arms * sum(map(len, tables.values()))

    def faults_run(arm: str, done: int, total: int) -> None:
        report_progress("costs without faults", 1, 1)
        if done <= drawn:
            times.append(time.perf_counter())
        if done <= of_values:
            report_progress(f"value faults, {arm}", done, of_values)
        else:
            report_progress(f"memory faults, {arm}", done - of_values, total - of_values)

    return faults_run


def _keep(learned: Learned, folder: Path) -> None:
    """Leave what was learned beside the runs."""
    for number, ranges in enumerate(learned.all_ranges):
        ranges.save(folder / f"ranges{number or ''}.json")
    for number, scores in enumerate(learned.all_scores):
        scores.save(folder / f"scores{number or ''}.safetensors")


def _scored(learned: Learned) -> dict[str, Any]:
    scores = learned.all_scores
    return {"score": ", ".join(one.score for one in scores), "score_batch": scores[0].batch} if scores else {}


def announcement(program: Program, held_out: Inputs, plan: AssessmentPlan, *, arms: int) -> str:
    """Describe in one paragraph the runs that :func:`assess` is going to make.

    Raises:
        SiteError: as :func:`assess`.
    """
    inputs = min(plan.inputs or len(held_out), len(held_out))
    tables = len(plan.fault_models) * len(plan.samplings)
    times = f" in each of {tables} tables" if tables > 1 else ""
    parts = []
    if plan.value_faults:
        sites = plan.values.select(program)
        parts.append(
            f"{plan.value_faults:,} value faults{times} in {_elements(sites):,} values of {len(sites)} layers "
            "(one input each)"
        )
    if plan.memory_faults:
        memory = plan.memory.select(program)
        parts.append(
            f"{plan.memory_faults:,} memory faults{times} in {_elements(memory):,} weights of {len(memory)} layers "
            f"(each met by up to {inputs:,} inputs: {plan.memory_faults * inputs * tables:,} runs)"
        )
        if plan.guard_faults:
            parts.append(f"{plan.guard_faults:,} faults in what the guards of an arm hold")
    return f"{program.name}: {', '.join(parts)}; in {arms} {'arm' if arms == 1 else 'arms'} of protection"


def _campaigns(
    program: Program, inputs: Inputs, plan: AssessmentPlan, learned: Learned
) -> dict[str, tuple[int, Campaign]]:
    """Number of faults and campaign by name of the table: every kind of site, fault model and sampling."""
    selections: list[tuple[int, Values | Memory]] = [
        (plan.value_faults, plan.values),
        (plan.memory_faults, plan.memory),
    ]
    found = {}
    for (count, sites), model, sampling in itertools.product(selections, plan.fault_models, plan.samplings):
        if count:
            campaign = Campaign(
                program,
                inputs,
                sites=sites,
                fault_model=plan.fault_models[model],
                sampling=plan.samplings[sampling](learned),
                criterion=plan.criterion,
                batch=plan.batch,
            )
            found[", ".join(filter(None, (sites.target, model, sampling)))] = (count, campaign)
    return found


def _expected(campaigns: Sequence[tuple[int, Campaign]], plan: AssessmentPlan, *, arms: int) -> str:
    """What the faults of all arms are going to take, if each arm takes as long as none."""
    runs = seconds = 0.0
    for count, campaign in campaigns:
        pilot = campaign.pilot(count=count, seed=plan.seed, seconds=_PILOT_SECONDS)
        runs += arms * count * pilot.inputs
        seconds += arms * count * pilot.seconds_each
    return f"{runs:,.0f} runs, {_took(seconds)}"


def _took(seconds: float) -> str:
    """Such as "12.3 s, 0.81 GB": a time, and the most memory that this process has held so far."""
    memory = peak_memory_bytes()
    return f"{seconds:,.1f} s" + ("" if memory is None else f", {memory / 1e9:.2f} GB")


def _check_calibration(program: Program, calibration: Inputs, plan: AssessmentPlan) -> None:
    """Refuse labels that are no classes of the model, before any work."""
    if calibration.y is None or not isinstance(plan.criterion, TopK):
        return
    size = min(plan.batch or default_batch(program), len(calibration))
    classes = TopK()
    classes.check(classes.judged(golden_outputs(program, Overlay(), calibration, classes, batch=size)), calibration.y)


def _population(campaign: Campaign, table: FaultTable) -> dict[str, Any]:
    """What the faults of a table were drawn from; in words where it is not the default."""
    selection = campaign.sites
    assert not isinstance(selection, GuardMemory)
    sites: Sequence[Site] = selection.select(campaign.program)
    found: dict[str, Any] = {
        "kinds": sorted(set(site_kinds(sites).values())),
        "layers": [site.name for site in sites],
        "elements": _elements(sites),
        "at_risk": at_risk(campaign.program, sites, campaign.fault_model, campaign.sampling),
        "formats": table.frame["format"].unique(maintain_order=True).cast(pl.String).sort().to_list(),
    }
    if campaign.fault_model != BitFlip():
        found["fault"] = f"One fault ({campaign.fault_model.name})"
    if selection not in (VALUES, MEMORY):
        what = "the output of one of {} operators" if table.target == "values" else "a word of one of {} tensors"
        found["struck"] = what.format(len(sites))
    if campaign.sampling != ElementUniform():
        found["sampling"] = f"by {campaign.sampling!r}"
    return found


def _described(sampling: Sampling) -> tuple[str, str]:
    """Name and sentence of a sampling."""
    for name, component in components("sampling").items():
        if component.defined is type(sampling):
            return name, component.sentence
    return repr(sampling), ""


def _elements(sites: Sequence[Site]) -> int:
    return sum(site.numel for site in sites)
