"""Figures 4 and 17 on whole data sets: run time of a network with weights, from initialisation to the last batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from hoplon.comparison.costs.guard_latency import Armed, armed
from hoplon.comparison.costs.latency import median_interval, timed
from hoplon.program.inputs import Inputs
from hoplon.protections.base import Overlay, overlay
from hoplon.protections.ranges.profiling import profile_ranges
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.values.ranger import Ranger
from hoplon_studies.aspis.overhead_charts import IMAGES
from hoplon_studies.aspis.overheads import RANGER, TIMES, protections
from hoplon_studies.aspis.paper_batch import at_the_papers_batch
from hoplon_studies.aspis.subjects import Subject, of_each
from hoplon_studies.framework.findings import Finding
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_BATCH = 256
_NAMES = (*TIMES, "aspis-100%", "aspis-10%", "aspis-1%")
PER_DATA_SET = f"added to passes of {IMAGES:,} images"

Seconds = dict[str, list[list[float]]]
"""By arm, for each repeat: seconds of initialisation with a first check, of checks, and of forward passes."""


def whole_data(context: Context) -> Iterator[Finding]:
    """Run time over a data set with each protection: arms alternate batch by batch."""
    yield from of_each(context, _of, lambda subject: [subject.row("Fig. 17", "run time over a data set")])
    repeats = context.profile.aspis.whole_repeats
    yield context.source(
        "run times over whole data sets",
        fault_model=f"none; {repeats} repeats, in which every guard is armed once and each batch of {_BATCH} meets all "
        "arms in an order drawn anew, each guard checked before its pass. Initialisation counts once per data set of "
        f"{IMAGES:,} images; shares are of the mean of all passes without bounds in the same repeat, limits of their "
        "median",
        seed=context.seed,
    )
    yield from at_the_papers_batch(context)


def _of(subject: Subject, context: Context) -> Iterator[Row]:
    counts = context.profile.aspis
    data = subject.held_out.sample(counts.whole_inputs, seed=context.seed)
    make = partial(measured, subject, data, counts.whole_repeats, context.seed)
    seconds: Seconds = context.timed(subject.name, make, stage=f"whole data, {subject.label}")
    repeats = range(counts.whole_repeats)
    plain = [mean(one[at][-1] for name, one in seconds.items() if name != RANGER) for at in repeats]
    known = {"n": len(plain), "seed": context.seed, "setting": f"run time over {len(data):,} images"}

    def row(where: str, what: str, unit: str, values: Sequence[float], **more: Any) -> Row:
        low, high = median_interval(values)
        return subject.row(where, what, unit, here=median(values), low=low, high=high, **known, **more)

    yield row("Fig. 4", "without protection", "s", plain)
    for name in _NAMES:
        pairs = zip(seconds[name], plain, strict=True)
        if name == RANGER:
            added = [100 * (one[-1] / base - 1) for one, base in pairs]
        else:
            added = [100 * (one[0] * len(data) / IMAGES + one[1]) / base for one, base in pairs]
        paper = context.published.get(TIMES.get(name, "")) if subject.stands_for else None
        yield row("Fig. 17", PER_DATA_SET, "%", added, paper=paper, arm=name)


def measured(subject: Subject, data: Inputs, repeats: int, seed: int) -> Seconds:
    """Seconds by arm; "none" is the network as lowered, without protection."""
    program, device = subject.program, subject.program.device
    plain = lower(program, Overlay(), copy=False)
    bounds = overlay(program, [Ranger(profile_ranges(program, subject.known))])
    scores = subject.scores()
    memory = {name: tensor for name, tensor in program.memory().items() if name in scores.values}
    chosen = {name: one for name, one in protections(scores).items() if name in _NAMES}
    modules = {"none": plain, RANGER: lower(program, bounds, copy=False), **dict.fromkeys(chosen, plain)}
    x = data.tensors[0]
    batches = [x[at : at + _BATCH] for at in range(0, len(data), _BATCH)]
    for module in (plain, modules[RANGER]):
        timed(partial(_passed, module, batches[0]), device)  # warm-up
    generator = random.Random(seed)
    seconds: Seconds = {name: [] for name in modules}
    for _ in range(repeats):
        guards = {name: armed(one, memory) for name, one in chosen.items()}
        for name, one in _repeat(modules, guards, batches, generator).items():
            seconds[name].append(one)
    return seconds


def _repeat(
    modules: Mapping[str, nn.Module], guards: Mapping[str, Armed], batches: Sequence[Tensor], generator: random.Random
) -> dict[str, list[float]]:
    """Seconds of one repeat by arm: initialisation, checks, forward passes."""
    order, device = list(modules), batches[0].device
    times = {name: [0.0, 0.0, 0.0] for name in order}
    for name, guard in guards.items():
        times[name][0] = guard.set_up_ms / 1e3 + timed(guard.check, device)
    for batch in batches:
        generator.shuffle(order)
        for name in order:
            if name in guards:
                times[name][1] += timed(guards[name].check, device)
            times[name][2] += timed(partial(_passed, modules[name], batch), device)
    return times


def _passed(module: nn.Module, batch: Tensor) -> None:
    with torch.inference_mode():
        module(batch)
