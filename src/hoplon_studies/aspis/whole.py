"""Figures 4 and 17 on whole data sets: run time of a network with weights, from initialisation to the last batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from hoplon_studies.aspis.subjects import Absent, Subject, each_subject
from hoplon_studies.framework.findings import Findings
from hoplon_studies.framework.rows import Row
from hoplon_studies.framework.study import Context

_BATCH = 256
_NAMES = {
    "tmr": "TMR",
    "tmr-sparse": "TMR-sparse, the paper's Aspis-100%",
    "published-1%": "Aspis-1% in sparse tensors, as published",
    "aspis-100%": "Aspis-100% with a flat index",
    "aspis-10%": "Aspis-10% with a flat index",
    "aspis-1%": "Aspis-1% with a flat index",
    RANGER: "Ranger",
}


def whole_data(context: Context) -> Findings:
    """Run time over a data set with each protection, in repeats whose order is drawn anew."""
    counts = context.profile.aspis
    rows: list[Row] = []
    for subject in each_subject(context):
        if isinstance(subject, Absent):
            rows.append(subject.row("Fig. 17", "run time over a data set"))
            continue
        data = subject.held_out.sample(counts.whole_inputs, seed=context.seed)
        make = partial(measured, subject, data, counts.repeats, context.seed)
        context.tell(f"whole data, {subject.label}", 0, 1)
        seconds = context.kept(subject.name, make)
        context.tell(f"whole data, {subject.label}", 1, 1)
        rows += _rows(subject, len(data), seconds, context)
    source = context.source(
        "run times over whole data sets",
        fault_model=f"none; batches of {_BATCH}, every guard armed and checked before each batch within the time; "
        f"{counts.repeats} repeats, arms in an order drawn anew; ratios within a repeat, limits of their median",
        seed=context.seed,
    )
    return Findings(rows=tuple(rows), sources=(source,))


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
    runs: dict[str, Callable[[], object]] = {
        "none": partial(_run, plain, batches),
        RANGER: partial(_run, bounded, batches),
    }
    runs |= {name: partial(_guarded, plain, batches, one, memory) for name, one in guards.items()}
    return _repeated(runs, repeats, seed, subject.program.device)


def _run(module: nn.Module, batches: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for batch in batches:
            module(batch)


def _guarded(
    module: nn.Module, batches: Sequence[Tensor], protection: Protection, memory: Mapping[str, Tensor]
) -> None:
    guard = armed(protection, memory).guard
    with torch.inference_mode():
        for batch in batches:
            guard.check()
            module(batch)


def _repeated(
    runs: Mapping[str, Callable[[], object]], repeats: int, seed: int, device: torch.device
) -> dict[str, list[float]]:
    order, generator = list(runs), random.Random(seed)
    runs["none"]()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        generator.shuffle(order)
        for name in order:
            seconds[name].append(timed(runs[name], device))
    return seconds


def _rows(subject: Subject, count: int, seconds: Mapping[str, Any], context: Context) -> Iterator[Row]:
    plain = seconds["none"]
    low, high = median_interval(plain)
    what = f"run time over {count:,} images without protection"
    n, seed = len(plain), context.seed
    why = "a smaller network and data set on another machine" if subject.stands_for else ""
    hours = context.published.get(f"fig17/hours/{subject.stands_for}")
    yield Row("Fig. 4", subject.label, subject.data, what, "s", hours, median(plain), low, high, n, seed, why)
    for name, text in _NAMES.items():
        ratios = [100 * (one / base - 1) for one, base in zip(seconds[name], plain, strict=True)]
        low, high = median_interval(ratios)
        paper = context.published.get(TIMES.get(name, "")) if subject.stands_for else None
        what = f"{text}: run time over {count:,} images, added"
        yield Row("Fig. 17", subject.label, subject.data, what, "%", paper, median(ratios), low, high, n, seed, why)
