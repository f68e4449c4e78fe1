"""Figures 4 and 17 on whole data sets: run time of a network with weights, from initialisation to the last batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from hoplon.comparison.costs.guard_latency import armed
from hoplon.comparison.costs.latency import median_interval, timed
from hoplon.program.inputs import Inputs
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.protections.ranges.profiling import profile_ranges
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.aspis.overheads import RANGER, TIMES, protections
from hoplon_studies.aspis.subjects import Subject, of_each
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_BATCH = 256
_NAMES = ("tmr", "tmr-sparse", "published-1%", "aspis-100%", "aspis-10%", "aspis-1%", RANGER)


def whole_data(context: Context) -> Iterator[Finding]:
    """Run time over a data set with each protection, in repeats whose order is drawn anew."""
    yield from of_each(context, _of, lambda subject: [subject.row("Fig. 17", "run time over a data set")])
    repeats = context.profile.aspis.repeats
    yield context.source(
        "run times over whole data sets",
        fault_model=f"none; batches of {_BATCH}, every guard armed and checked before each batch within the time; "
        f"{repeats} repeats, arms in an order drawn anew; ratios within a repeat, limits of their median",
        seed=context.seed,
    )


def _of(subject: Subject, context: Context) -> Iterator[Row]:
    counts = context.profile.aspis
    data = subject.held_out.sample(counts.whole_inputs, seed=context.seed)
    make = partial(measured, subject, data, counts.repeats, context.seed)
    seconds = context.timed(subject.name, make, stage=f"whole data, {subject.label}")
    plain = seconds["none"]
    known = {"n": len(plain), "seed": context.seed, "setting": f"run time over {len(data):,} images"}

    def row(where: str, what: str, unit: str, values: Sequence[float], **more: Any) -> Row:
        low, high = median_interval(values)
        return subject.row(where, what, unit, here=median(values), low=low, high=high, **known, **more)

    yield row("Fig. 4", "without protection", "s", plain)
    for name in _NAMES:
        ratios = [100 * (one / base - 1) for one, base in zip(seconds[name], plain, strict=True)]
        paper = context.published.get(TIMES.get(name, "")) if subject.stands_for else None
        yield row("Fig. 17", "added", "%", ratios, paper=paper, arm=name)


def measured(subject: Subject, data: Inputs, repeats: int, seed: int) -> dict[str, list[float]]:
    """Seconds of each repeat by arm; "none" is the network as lowered, without protection."""
    plain = lower(subject.program, Overlay(), copy=False)
    bounds = overlay(subject.program, [Ranger(profile_ranges(subject.program, subject.known))])
    bounded = lower(subject.program, bounds, copy=False)
    scores = subject.scores()
    memory = {name: tensor for name, tensor in subject.program.memory().items() if name in scores.values}
    guards = {name: one for name, one in protections(scores).items() if name in _NAMES}
    x = data.tensors[0]
    batches = [x[at : at + _BATCH] for at in range(0, len(data), _BATCH)]
    runs = {"none": partial(_run, plain, batches), RANGER: partial(_run, bounded, batches)}
    runs |= {name: partial(_run, plain, batches, one, memory) for name, one in guards.items()}
    order, generator = list(runs), random.Random(seed)
    runs["none"]()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        generator.shuffle(order)
        for name in order:
            seconds[name].append(timed(runs[name], subject.program.device))
    return seconds


def _run(
    module: nn.Module,
    batches: Sequence[Tensor],
    protection: Protection | None = None,
    memory: Mapping[str, Tensor] | None = None,
) -> None:
    guard = armed(protection, memory or {}).guard if protection is not None else None
    with torch.inference_mode():
        for batch in batches:
            if guard is not None:
                guard.check()
            module(batch)
