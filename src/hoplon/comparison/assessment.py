"""The whole question in one call: how often faults make a network fail, what protections change, what they cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from hoplon.campaign._peak_memory import peak_memory_bytes
from hoplon.campaign.campaign import Campaign
from hoplon.comparison.comparison import Comparison, Progress, compare
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.errors import DataError, HoplonError
from hoplon.faults.model import FaultModel
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.importance._taylor import taylor
from hoplon.importance.scores import Scores
from hoplon.injection.golden_run import default_batch, golden_outputs
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.program.inputs import Inputs
from hoplon.program.program import Program
from hoplon.program.sites import Memory, Site, Values
from hoplon.protections.base import Overlay, Protection
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.ranges.profiling import profile_ranges
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.ranger import Ranger
from hoplon.report.document import plain

VALUES = Values(kind=("conv", "linear"))
MEMORY = Memory("*.weight", kind=("conv", "linear"))


@dataclass(frozen=True, kw_only=True)
class AssessmentPlan:
    """The size of an assessment, and how harm is judged.

    Args:
        value_faults: faults in operator outputs, one input each; 0 leaves this kind out.
        memory_faults: faults in weights, each met by all inputs; 0 leaves this kind out.
        guard_faults: single-bit flips in what the guards of an arm hold, met by all inputs as well; 0 leaves them out.
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

    value_faults: int = 8192
    memory_faults: int = 512
    guard_faults: int = 256
    inputs: int | None = None
    calibration: int | None = None
    criterion: Criterion = field(default_factory=TopK)
    placement: Placement = "before"
    arrival: Arrival = "before"
    batch: int | None = None
    latency: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.value_faults, self.memory_faults) < 0 or not self.value_faults + self.memory_faults:
            raise HoplonError(
                f"expected value or memory faults to run, got {self.value_faults} and {self.memory_faults}"
            )
        lowest = {"inputs": 1, "calibration": 1, "batch": 1, "guard_faults": 0, "seed": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                what = "a seed" if name == "seed" else name
                raise HoplonError(f"expected {what} of at least {least}, got {value}")


@dataclass(frozen=True, eq=False)
class Assessment:
    """A comparison and all that its figures rest on.

    ``population``: by target, what faults were drawn from; ``protections``: by arm, the labels of what is in it;
    ``guarantees``: by label, what a guard repairs for certain, detects and misses;
    ``model_bytes``: of all parameters and buffers, what extra bytes compare with; ``prediction``: what the faults of
    all arms were going to take, from a timed beginning without protections, beside what they took; None of a resumed
    one.
    """

    comparison: Comparison
    plan: AssessmentPlan
    population: Mapping[str, Mapping[str, Any]]
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
            "fault_model": FAULT_MODEL.name,
            "sampling": "element-uniform",
            **{name: plain(getattr(self, name)) for name in _STORED},
        }


FAULT_MODEL: FaultModel = BitFlip()
_STORED = ("population", "protections", "guarantees", "calibration", "model_bytes", "prediction")
_OF_RUNS = ("criterion", "placement", "arrival", "guard_faults", "seed", "batch", "latency")
_PILOT_SECONDS = 0.3  # of each kind of fault
MakeArm = Callable[[Ranges, Scores], tuple[Protection, ...]]


def standard_arms(ranges: Ranges, scores: Scores) -> dict[str, tuple[Protection, ...]]:
    """Return the arms that every assessment compares, by name; "none" is what differences refer to."""
    return {
        "none": (),
        "ranger": (Ranger(ranges),),
        "aspis-1%": (Aspis(scores, 0.01),),
        "aspis-10%": (Aspis(scores, 0.1),),
        "tmr": (TMR(),),
        "ranger+aspis-1%": (Ranger(ranges), Aspis(scores, 0.01)),
    }


def assess(
    program: Program,
    *,
    calibration: Inputs,
    held_out: Inputs,
    plan: AssessmentPlan,
    more_arms: Mapping[str, MakeArm] | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Assessment:
    """Profile ranges, score weights, draw faults, and run them in every standard arm.

    Faults are single-bit flips, element-uniform over the outputs of convolutions and linear layers (value faults) and
    over their weights (memory faults).

    Args:
        calibration: labelled, what protections learn from; best of the training data.
        held_out: labelled, what faults meet and accuracy is measured on.
        more_arms: further arms by name, each made from the ranges and the scores.
        store: a folder for the ranges, the scores and one run directory per target and arm.
        resume: take the arms that are finished in ``store``; ranges, scores and costs are computed again.
        progress: told what is at work.
    Raises:
        DataError: data without labels, or that does not fit the model or its classes.
        SiteError: no convolution or linear layer, or no activation.
        StoreError: ``store`` cannot be written, or has a run in it and ``resume`` was not asked for, or another run.
    """
    report_progress = progress or (lambda stage, done, total: None)
    known = calibration.sample(plan.calibration, seed=plan.seed)
    inputs = held_out.sample(plan.inputs, seed=plan.seed)
    campaigns = _campaigns(program, inputs, plan)
    tables = [campaign.draw(count=count, seed=plan.seed) for count, campaign in campaigns]
    _check_calibration(program, known, plan)
    ranges = profile_ranges(program, known, progress=partial(report_progress, "activation ranges"))
    scores = taylor(program, known, loss=F.cross_entropy, progress=partial(report_progress, "scores of weights"))
    arms = standard_arms(ranges, scores) | {name: make(ranges, scores) for name, make in (more_arms or {}).items()}
    values_total = plan.value_faults * len(arms)
    expected = _expected(campaigns, plan, arms=len(arms))
    times: list[float] = []

    def faults_run(arm: str, done: int, total: int) -> None:
        report_progress("costs without faults", 1, 1)
        if done <= (plan.value_faults + plan.memory_faults) * len(arms):
            times.append(time.perf_counter())
        if done <= values_total:
            report_progress(f"value faults, {arm}", done, values_total)
        else:
            report_progress(f"memory faults, {arm}", done - values_total, total - values_total)

    report_progress("costs without faults", 0, 1)
    comparison = compare(
        program,
        inputs,
        arms=arms,
        faults=tables,
        held_out=held_out,
        store=store,
        resume=resume,
        progress=faults_run,
        **{name: getattr(plan, name) for name in _OF_RUNS},
    )
    if store is not None:
        ranges.save(Path(store) / "ranges.json")
        scores.save(Path(store) / "scores.safetensors")
    return Assessment(
        comparison=comparison,
        plan=plan,
        population={table.target: _population(program, table) for table in tables},
        protections={name: tuple(protection.label for protection in arm) for name, arm in arms.items()},
        guarantees={one.label: one.guarantee for arm in arms.values() for one in arm if one.guarantee},
        calibration={"data": known.name, "inputs": len(known), "score": scores.score, "score_batch": scores.batch},
        model_bytes=sum(tensor.nbytes for tensor in program.memory().values()),
        prediction=None if resume else f"{expected} expected; it took {_took(times[-1] - times[0])}",
    )


def announcement(program: Program, held_out: Inputs, plan: AssessmentPlan, *, more_arms: int = 0) -> str:
    """Describe in one paragraph the runs that :func:`assess` is going to make.

    Raises:
        SiteError: as :func:`assess`.
    """
    inputs = min(plan.inputs or len(held_out), len(held_out))
    parts = []
    if plan.value_faults:
        sites = VALUES.select(program)
        parts.append(
            f"{plan.value_faults:,} value faults in {_elements(sites):,} values of {len(sites)} layers (one input each)"
        )
    if plan.memory_faults:
        memory = MEMORY.select(program)
        parts.append(
            f"{plan.memory_faults:,} memory faults in {_elements(memory):,} weights of {len(memory)} layers "
            f"(each met by up to {inputs:,} inputs: {plan.memory_faults * inputs:,} runs)"
        )
        if plan.guard_faults:
            parts.append(f"{plan.guard_faults:,} faults in what the guards of an arm hold")
    return f"{program.name}: {', '.join(parts)}; in {6 + more_arms} arms of protection"


def _campaigns(program: Program, inputs: Inputs, plan: AssessmentPlan) -> list[tuple[int, Campaign]]:
    selections: list[tuple[int, Values | Memory]] = [(plan.value_faults, VALUES), (plan.memory_faults, MEMORY)]
    options: dict[str, Any] = {"fault_model": FAULT_MODEL, "criterion": plan.criterion, "batch": plan.batch}
    return [(count, Campaign(program, inputs, sites=sites, **options)) for count, sites in selections if count]


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
    if calibration.y is None:
        raise DataError(f"expected labels in the calibration data {calibration.name!r}, got none; scores need a loss")
    size = min(plan.batch or default_batch(program), len(calibration))
    classes = TopK()
    classes.check(classes.judged(golden_outputs(program, Overlay(), calibration, classes, batch=size)), calibration.y)


def _population(program: Program, table: FaultTable) -> dict[str, Any]:
    sites: Sequence[Site] = (VALUES if table.target == "values" else MEMORY).select(program)
    return {
        "kinds": ["conv", "linear"],
        "layers": [site.name for site in sites],
        "elements": _elements(sites),
        "formats": sorted({str(site.dtype).removeprefix("torch.") for site in sites}),
    }


def _elements(sites: Sequence[Site]) -> int:
    return sum(site.numel for site in sites)
