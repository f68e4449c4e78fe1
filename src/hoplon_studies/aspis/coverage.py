"""Table V on one network with weights: memory, time, and what each guard does about each class of faults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, cast

import polars as pl
import torch

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.results import Results
from hoplon.comparison.comparison import Comparison, compare
from hoplon.comparison.costs.guard_latency import armed, interleaved
from hoplon.faults.model import FaultModel
from hoplon.faults.multi_word import Burst
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import ElementUniform
from hoplon.faults.single_word import BitFlip, RandomValue, StuckAt
from hoplon.faults.table import FaultTable
from hoplon.importance.scores import Scores
from hoplon.protections.base import Protection
from hoplon.protections.guards.baselines.secded import SecDedMemory
from hoplon.stats.intervals import Interval, wilson
from hoplon_studies.aspis.attacks import CHANGES, WORST, ordered, struck
from hoplon_studies.aspis.overheads import OF_WEIGHTS, protections
from hoplon_studies.aspis.subjects import CONVOLUTIONS, Subject, each_subject
from hoplon_studies.framework.digits import cell
from hoplon_studies.framework.findings import Finding, Table
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

WHERE = "Table V"
SEC_DED = "sec-ded"
_IMAGES, _NONE = 16, "none"
ONE_BIT, TWO_BITS, LINE, STUCK, PAGE, ATTACK = CLASSES = (
    "1 bit",
    "2 bits of a word",
    "line of 64 bytes",
    "stuck word",
    "row of 8 KiB",
    "attack",
)
_MODELS: Mapping[str, FaultModel] = {
    ONE_BIT: BitFlip(),
    TWO_BITS: BitFlip(2),
    LINE: Burst(RandomValue(), bytes=64),
    STUCK: StuckAt(1, count=32),
    PAGE: Burst(BitFlip(), bytes=8192),
    ATTACK: CHANGES[WORST],
}
RIGHT, NOTICED, LEFT = "every word right again", "noticed", "images misclassified"
MEMORY, TIME = OF_WEIGHTS, "time of a check"


def covered(context: Context) -> Iterator[Finding]:
    """What every guard of Table V costs on the first network that is here, and covers of each class of faults."""
    for subject in each_subject(context):
        if isinstance(subject, Subject):
            yield from _of(subject, context)
            return


def _of(subject: Subject, context: Context) -> Iterator[Finding]:
    counts, scores = context.profile.aspis, subject.scores()
    arms = protections(scores) | {SEC_DED: SecDedMemory()}
    tables = {name: _faults(name, subject, scores, context) for name in CLASSES}
    compared = compare(
        subject.program,
        subject.met.sample(_IMAGES, seed=context.seed),
        arms={_NONE: [], **{name: [one] for name, one in arms.items()}},
        faults=tables,
        latency=False,
        store=context.runs / subject.name,
        resume=True,
        progress=lambda arm, done, total: context.tell(f"coverage, {arm}", done, total),
    )
    make = partial(_times, subject, arms, counts.whole_inputs, counts.repeats, context.seed)
    times = context.timed(subject.name, make, stage=f"checks of {subject.label}")
    rows = list(_rows(subject, compared, times, context))
    yield from rows
    yield _table(subject, rows, counts.covered_faults)
    yield context.source(
        f"Table V on {subject.title}",
        fault_model=f"{counts.covered_faults} faults of each class in float32 convolution weights, uniform but for the "
        f"attack, which is {WORST} of one of the {counts.important} most important weights; they come before one check "
        f"and meet all eligible ones of {_IMAGES} held-out images; a line or row ends with its tensor. Times: "
        f"{counts.repeats} blocks of a pass of {counts.whole_inputs} images and each check with a pass after it",
        runs=[subject.name],
        seed=context.seed,
    )


def _faults(name: str, subject: Subject, scores: Scores, context: Context) -> FaultTable:
    counts, sampling = context.profile.aspis, cast("Sampling", ElementUniform())
    count = counts.covered_faults
    if name == ATTACK:
        places = ordered(scores, counts.important, seed=context.seed)[:count]
        sampling, count = struck(WORST, places, seed=context.seed), len(places)
    plan = Campaign(subject.program, subject.met, sites=CONVOLUTIONS, fault_model=_MODELS[name], sampling=sampling)
    return plan.draw(count=count, seed=context.seed)


def _times(subject: Subject, arms: Mapping[str, Protection], images: int, blocks: int, seed: int) -> dict[str, Any]:
    """By guard the median, low and high of its check over a forward pass; none of what is hardware."""
    x, memory = subject.held_out.sample(images, seed=seed).tensors[0], subject.program.memory()
    checks = {name: armed(one, memory).check for name, one in arms.items() if name != SEC_DED}
    forward = torch.inference_mode()(partial(subject.module, x))
    times = interleaved(forward, checks, blocks=blocks, seed=seed, device=subject.program.device)
    return {name: times.cost(name).over_forward for name in checks}


def _rows(subject: Subject, compared: Comparison, times: Mapping[str, Any], context: Context) -> Iterator[Row]:
    weights = sum(tensor.nbytes for tensor in subject.program.memory().values())
    known: dict[str, Any] = {"setting": f"guards on {subject.title}", "detail": True}
    for name in dict.fromkeys(arm.name for arm in compared.arms):
        cost = compared[name, ONE_BIT].cost
        yield subject.row(WHERE, MEMORY, arm=name, here=100 * cost.extra_bytes / weights, **known)
        if name in times:
            here, low, high = (100 * value for value in times[name])
            yield subject.row(WHERE, TIME, arm=name, here=here, low=low, high=high, seed=context.seed, **known)
        for faults in CLASSES:
            arm = compared[name, faults]
            found = {RIGHT: _share(arm.results, ~pl.col("reached")), NOTICED: _share(arm.results, pl.col("detected"))}
            for what, share in (found | {LEFT: arm.rate.failure}).items():
                row = subject.row(WHERE, f"{faults}: {what}", arm=name, failure=what == LEFT, **known)
                yield row.found(share, n=arm.rate.n_faults, seed=context.seed)


def _share(results: Results, told: pl.Expr) -> Interval:
    """The share of faults in all of whose runs this holds."""
    held = results.runs.group_by("fault").agg(told.all().alias("held"))["held"]
    return wilson(int(held.sum()), len(held))


def _table(subject: Subject, rows: list[Row], count: int) -> Table:
    found = {(row.arm, row.what): row.here for row in rows}
    lines = []
    for arm in dict.fromkeys(row.arm for row in rows if row.arm != _NONE):
        costs = (None if (here := found.get((arm, what))) is None else _digits(here) for what in (MEMORY, TIME))
        shares = (" / ".join(_digits(found[arm, f"{name}: {what}"]) for what in (RIGHT, NOTICED)) for name in CLASSES)
        lines.append((arm, *costs, *shares))
    return Table(
        f"Table V on {subject.title}, in %: memory of all weights, time of a pass, faults after which every word is "
        f"right again / that are noticed; of {count} per class",
        ("guard", "memory", "time", *CLASSES),
        tuple(lines),
        _NOTE,
    )


def _digits(value: Any) -> str:
    return cell(float(f"{float(value):.3g}"))


_NOTE = (
    "Of faults in convolution weights, before one check. published-x %: Aspis in sparse tensors, which repairs by "
    "subtraction; aspis-x %: with a flat index. Of the other guards hoplon's form is measured: Structural Coding in "
    "exact arithmetic, RADAR on float32 (it sets groups to zero, so no word comes back), SEC-DED as a model of memory "
    "(no software, no time)."
)
