"""Arms of protection on one program, one fault table each for values and memory, and what every arm costs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from hoplon.campaign.manifest import provenance
from hoplon.campaign.rates import Rate, rate_of
from hoplon.campaign.results import Results
from hoplon.comparison.arms import ArmRuns, ArmStore, slug
from hoplon.comparison.costs.latency import LatencyRatio, measure
from hoplon.comparison.exposure import Exposure, GuardFaults, exposure_of, exposure_table, strike_guards
from hoplon.comparison.pairing import paired, turned
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.outcome import Outcome, classify
from hoplon.errors import Count, HoplonError, Natural, Seed, Share, checked
from hoplon.faults.table import FaultTable
from hoplon.injection.golden_run import GoldenRun, accuracy, golden_outputs
from hoplon.injection.injector import Injector
from hoplon.injection.replay.golden import Arrival, Placement
from hoplon.injection.working_memory import WorkingMemory
from hoplon.program.inputs import Inputs, as_inputs
from hoplon.program.program import Program
from hoplon.protections.base import Overlay, Protection, overlay
from hoplon.protections.runtime.lowering import lower
from hoplon.protections.runtime.schedule import When
from hoplon.report.document import plain, with_limits
from hoplon.report.text import crashed, interval, percent, points
from hoplon.report.text_table import TextTable
from hoplon.stats.intervals import Interval, Ratio

Progress = Callable[[str, int, int], None]
"""Told the arm or stage at work, and how much of it is done: ``progress("ranger", 512, 8192)``."""

_MOST_TURNED = 10
MEANT_FOR = {"values": "wrong values in flight", "memory": "corrupted weights in memory"}


@dataclass(frozen=True)
class Cost:
    """The costs of an arm without any fault.

    ``accuracy``: on all inputs; ``latency``: against the same lowering without protection; ``extra_bytes``: bounds,
    copies and indices beside the model's memory.
    """

    accuracy: float
    latency: LatencyRatio | None
    extra_bytes: int


@dataclass(frozen=True, eq=False)
class Arm:
    """One arm under one fault table.

    ``faults``: the name of that table; ``target``: "values" or "memory". ``difference``: failure probability of this
    arm minus the unprotected one's, on the same faults; ``p_value``: exact McNemar test (value faults only).
    ``reduction``: how many times more often the unprotected one fails (value faults only). ``wrong_fault_free``:
    eligible inputs that the arm gets wrong without a fault. ``exposure``: bits at risk, under memory faults only.
    ``turned``: where the arm is worse beyond chance, runs that fail in it alone, by site, most first.
    """

    name: str
    faults: str
    target: str
    results: Results = field(repr=False)
    rate: Rate
    cost: Cost
    difference: Interval | None
    p_value: float | None
    wrong_fault_free: int
    detected: float
    corrected: float
    acts_on_target: bool
    reduction: Ratio | None = None
    exposure: Exposure | None = None
    turned: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The arm as plain values; None for what was not measured."""
        latency = self.cost.latency
        row: dict[str, Any] = {
            "name": self.name,
            "faults": self.faults,
            "target": self.target,
            **self.rate.as_row(),
            **with_limits("sdc", self.rate.sdc),
            **with_limits("nonfinite", self.rate.nonfinite),
            "outcomes": dict(self.rate.counts),
            "causes": dict(self.rate.causes),
            "detected": self.detected,
            "corrected": self.corrected,
            "acts_on_target": self.acts_on_target,
            **with_limits("difference", self.difference),
            "p_value": self.p_value,
            **with_limits("reduction", self.reduction),
            "accuracy": self.cost.accuracy,
            "wrong_fault_free": self.wrong_fault_free,
            "latency_ratio": None if latency is None else latency.ratio,
            "latency_low": None if latency is None else latency.low,
            "latency_high": None if latency is None else latency.high,
            "latency_ms": None if latency is None else latency.median_ms,
            "extra_bytes": self.cost.extra_bytes,
            **({"turned": dict(itertools.islice(self.turned.items(), _MOST_TURNED))} if self.turned else {}),
            **({} if self.exposure is None else self.exposure.to_dict()),
        }
        return {key: plain(value) for key, value in row.items()}


@checked
@dataclass(frozen=True, eq=False)
class Comparison:
    """All arms under all fault tables, and what the figures rest on."""

    arms: tuple[Arm, ...]
    caption: Mapping[str, Any]

    def __getitem__(self, key: tuple[str, str]) -> Arm:
        """The arm of this name under the fault table of this name."""
        for arm in self.arms:
            if (arm.name, arm.faults) == key:
                return arm
        raise HoplonError(f"expected one of {[(arm.name, arm.faults) for arm in self.arms]}, got {key!r}")

    @property
    def faults(self) -> tuple[str, ...]:
        """The names of the fault tables, in their order: by default "values", "memory" or both."""
        return tuple(dict.fromkeys(arm.faults for arm in self.arms))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values: arms, by layer, by bit, caption."""
        groups = {
            f"by_{key}": {
                faults: {
                    arm.name: plain(arm.results.by(key, criterion=arm.rate.criterion).to_dicts())
                    for arm in self._under(faults)
                }
                for faults in self.faults
            }
            for key in ("layer", "bit")
        }
        pairs = {faults: self._pairs(faults) for faults in self.faults}
        return {"arms": [arm.to_dict() for arm in self.arms], **groups, "pairs": pairs, **self.caption}

    def _under(self, faults: str) -> list[Arm]:
        return [arm for arm in self.arms if arm.faults == faults]

    def _pairs(self, faults: str) -> list[dict[str, Any]]:
        """For every two arms that act on what is struck, the difference in failure on the same faults."""
        acting = [arm for arm in self._under(faults) if arm.acts_on_target]
        pairs = []
        for arm, other in itertools.permutations(acting, 2):
            options: dict[str, Any] = {"target": arm.target, "confidence": self.caption["confidence"]}
            runs = (arm.results.lazy_runs, other.results.lazy_runs)
            pair = paired(*runs, arm.rate.criterion, **options)
            pairs.append({"name": arm.name, "over": other.name, **with_limits("difference", pair.difference)})
        return pairs

    def tables(self) -> list[TextTable]:
        """Tabulate the arms under each fault table, and the bits at risk where memory faults were run."""
        exposed = {
            faults: {arm.name: arm.exposure for arm in self._under(faults) if arm.exposure is not None}
            for faults in self.faults
        }
        at_risk = [
            exposure_table(arms, "" if faults == "memory" else faults) for faults, arms in exposed.items() if arms
        ]
        return [*map(self._table, self.faults), *at_risk]

    def _table(self, faults: str) -> TextTable:
        arms = self._under(faults)
        first, target = arms[0].rate, arms[0].target
        which = "" if faults == target else f", {faults}"
        title = (
            f"{'Value' if target == 'values' else 'Memory'} faults ({MEANT_FOR[target]}{which}): "
            f"{first.n_faults} faults, {first.n_inputs} inputs, {first.n_runs} runs; {first.criterion}, "
            f"{first.failure.method} {100 * self.caption['confidence']:g} %"
        )
        note = "· this arm has no protection against this kind of fault; its runs are those of the unprotected model"
        notes = [f"{arm.name}: {crashes}" for arm in arms if (crashes := arm.results.only_crashes())]
        notes += [note] if any(map(_idle, arms)) else []
        rows = [_cells(arm) for arm in arms]
        known = [number for number in range(len(_COLUMNS)) if any(row[number] for row in rows)]  # what was not measured
        columns, rows = [_COLUMNS[number] for number in known], [[row[number] for number in known] for row in rows]
        return TextTable(title, columns, rows, "\n".join(notes) or None)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))


_COLUMNS = ("arm", "failure", "sdc", "nonfinite", "crash", "against none", "accuracy", "latency", "extra bytes")


def _cells(arm: Arm) -> list[str]:
    row, latency = arm.to_dict(), arm.cost.latency
    return [
        arm.name + (" ·" if _idle(arm) else ""),
        interval(row),
        percent(row["sdc"]),
        percent(row["nonfinite"]),
        crashed(row),
        points(row),
        "" if row["accuracy"] is None else percent(row["accuracy"]),
        "" if latency is None else f"x {latency.ratio:.2f} [{latency.low:.2f}, {latency.high:.2f}]",
        f"{arm.cost.extra_bytes:,}",
    ]


def _idle(arm: Arm) -> bool:
    """Tell whether the arm protects, but nothing of this kind."""
    return not arm.acts_on_target and arm.difference is not None


@checked
def compare(
    program: Program,
    data: Any,
    *,
    arms: Mapping[str, Sequence[Protection]],
    faults: FaultTable | Sequence[FaultTable] | Mapping[str, FaultTable],
    criterion: Criterion | Sequence[Criterion] | None = None,
    placement: Placement = "before",
    arrival: Arrival = "before",
    schedules: Mapping[str, When] | None = None,
    guard_faults: Natural = 0,
    seed: Seed = 0,
    batch: Count | None = None,
    confidence: Share = 0.95,
    latency: bool = True,
    held_out: Any | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run the same faults in every arm and put failure, accuracy, latency and memory side by side.

    All arms share sites, fault table and eligible inputs; "failure" is judged against the unprotected golden run. The
    first arm without protections is the one that differences refer to; without any such arm there are no differences.

    Args:
        data: the inputs that faults meet.
        arms: protections by arm name.
        faults: one table, one for values and one for memory, or any number by name.
        criterion: one or several; top-1 against the golden class by default. The first column is compared.
        placement: a value fault strikes before or after the protection of its own site.
        arrival: a memory fault strikes before the guards' check or after it.
        schedules: by arm, when its guards check, as far as latency goes; before each forward pass by default. Memory
            faults meet a check in any case: what runs on one before its check comes is for the schedule's ``latency``.
        guard_faults: with memory faults, how many more single-bit flips strike what an arm's guards hold: copies are
            memory too. They make `Exposure.failing_bits` known.
        seed: of these.
        latency: measure it (seconds per arm); False leaves it out, and so does a program in eager form, of which no
            module can be made.
        held_out: labelled inputs for the fault-free accuracy, where ``data`` is only a part of them.
        store: a folder for one run directory per table and arm.
        resume: take finished arms from ``store``; costs are measured again.
        progress: told the arm at work, finished and all faults.
    Raises:
        HoplonError: no arm, no table, a table of no faults, or several of one target without names;
            DataError: faults on inputs that are not eligible;
            StoreError: an arm in ``store`` and no ``resume``, or one of another comparison.
    """
    tables = _named(faults)
    if not arms or not tables or not all(map(len, tables.values())):
        raise HoplonError(f"expected at least one arm and one fault, got {len(arms)} arms and {len(tables)} tables")
    chosen = TopK() if criterion is None else criterion
    inputs = as_inputs(data)
    reference = GoldenRun.run(program, inputs, chosen, batch=batch)
    overlays = {name: overlay(program, protections, label=name) for name, protections in arms.items()}
    whole = inputs if held_out is None else as_inputs(held_out)
    costs = _costs(reference, overlays, whole, latency=latency, schedules=schedules or {})
    in_memory = [name for name, table in tables.items() if table.target == "memory"]
    total = (sum(map(len, tables.values())) + (guard_faults if in_memory else 0)) * len(arms)
    done = 0

    def advance(arm: str, faults: int) -> None:
        nonlocal done
        done += faults
        if progress is not None:
            progress(arm, done, total)

    compared: list[Arm] = []
    struck: dict[str, GuardFaults] = {}
    for label, table in tables.items():
        arm_store = None if store is None else ArmStore(Path(store) / slug(label), resume)
        runner = ArmRuns(reference, table, placement, arrival, confidence, arm_store)
        by_name = {name: runner.run(over, partial(advance, name)) for name, over in overlays.items()}
        baseline = next((name for name, over in overlays.items() if not over.protections), None)
        for name, results in by_name.items():
            base = by_name[baseline] if baseline not in (None, name) else None
            arm = _arm(label, results, base, overlays[name], costs[name], reference)
            if table.target == "memory":
                injector = Injector(reference, overlays[name], placement, arrival)
                if name not in struck:
                    options: dict[str, Any] = {
                        "seed": seed,
                        "confidence": confidence,
                        "advance": partial(advance, name),
                    }
                    struck[name] = strike_guards(injector, guard_faults, **options)
                arm = replace(arm, exposure=exposure_of(injector, table, arm.rate, struck[name]))
            compared.append(arm)
    caption = {**_caption(reference, tables, placement, confidence), "arrival": arrival, "guard_faults": guard_faults}
    return Comparison(tuple(compared), {**caption, "accuracy_inputs": len(whole)})


def _named(faults: FaultTable | Sequence[FaultTable] | Mapping[str, FaultTable]) -> dict[str, FaultTable]:
    """The tables by name: by default that of their target."""
    if isinstance(faults, Mapping):
        return dict(faults)
    tables = [faults] if isinstance(faults, FaultTable) else list(faults)
    named: dict[str, FaultTable] = {table.target: table for table in tables}
    if len(named) != len(tables):
        raise HoplonError(f"expected names for {len(tables)} fault tables, got none; give a mapping of name to table")
    return named


def _latencies(
    reference: GoldenRun, overlays: Mapping[str, Overlay], schedules: Mapping[str, When]
) -> dict[str, LatencyRatio]:
    """Time the arms on one batch, against the same lowering without protection; not those modelled in hardware."""
    unprotected = "no protection"
    timed = {unprotected: Overlay(), **{name: over for name, over in overlays.items() if not over.is_hardware}}
    leaves = reference.program.leaves(reference.data, torch.arange(min(reference.batch, len(reference.data))))
    args, kwargs = reference.program.signature.call(leaves)
    modules = {name: lower(reference.program, over, when=schedules.get(name)) for name, over in timed.items()}
    calls = {name: (lambda x, module=module: module(*args, **kwargs)) for name, module in modules.items()}
    return {arm.name: arm for arm in measure(calls, leaves[0], baseline=unprotected).arms}


def _costs(
    reference: GoldenRun,
    overlays: Mapping[str, Overlay],
    held_out: Inputs,
    *,
    latency: bool,
    schedules: Mapping[str, When],
) -> dict[str, Cost]:
    timed = latency and reference.program.has_graph
    latencies = _latencies(reference, overlays, schedules) if timed else {}
    costs = {}
    known: list[tuple[Overlay, float]] = []  # guards change nothing without a fault: equal bounds, equal accuracy
    for name, over in overlays.items():
        share = next((share for other, share in known if dict(over.values) == dict(other.values)), None)
        if share is None:
            outputs = golden_outputs(reference.program, over, held_out, reference.criterion, batch=reference.batch)
            share = accuracy(reference.criterion, outputs, held_out.y)
            known.append((over, share))
        memory = WorkingMemory(reference.program).tensors
        guards = sum(guard.extra_bytes for guard in over.guards(memory))
        bounds = sum(effect.extra_bytes for effect in over.values.values())
        costs[name] = Cost(share, latencies.get(name), guards + bounds)
    return costs


def _arm(faults: str, results: Results, base: Results | None, over: Overlay, cost: Cost, reference: GoldenRun) -> Arm:
    criterion = results.criteria[0]
    options: dict[str, Any] = {"target": results.target, "confidence": results.confidence}
    rate = rate_of(results.lazy_runs, criterion, **options)
    pair = None if base is None else paired(results.lazy_runs, base.lazy_runs, criterion, **options)
    runs = results.runs
    fault_free = golden_outputs(reference.program, over, reference.data, reference.criterion, batch=reference.batch)
    return Arm(
        name=over.label,
        faults=faults,
        target=results.target,
        results=results,
        rate=rate,
        cost=cost,
        difference=None if pair is None else pair.difference,
        p_value=None if pair is None else pair.p_value,
        wrong_fault_free=_wrong_fault_free(reference, fault_free),
        detected=float(runs["detected"].cast(pl.Float64).mean() or 0.0),  # type: ignore[arg-type]
        corrected=float(runs["corrected"].cast(pl.Float64).mean() or 0.0),  # type: ignore[arg-type]
        acts_on_target=bool(over.values) if results.target == "values" else bool(over.protections),
        reduction=None if pair is None else pair.reduction,
        turned={} if pair is None or base is None or pair.difference.low <= 0 else _turned(results, base, criterion),
    )


def _turned(results: Results, base: Results, criterion: str) -> dict[str, int]:
    return turned(results.lazy_runs, base.lazy_runs, results.lazy_faults, criterion)


def _wrong_fault_free(reference: GoldenRun, outputs: Sequence[Any]) -> int:
    """Count eligible inputs that fail in an arm without any fault, under the first column."""
    outcomes = classify(
        reference.criterion, reference=reference.outputs, golden=outputs, faulty=outputs, labels=reference.data.y
    )
    return int(np.isin(outcomes[reference.eligible, 0].cpu(), [Outcome.SDC, Outcome.NONFINITE]).sum())


def _caption(
    reference: GoldenRun, tables: Mapping[str, FaultTable], placement: Placement, confidence: float
) -> dict[str, Any]:
    found = provenance(reference, placement=placement, confidence=confidence)
    program, data = found.pop("program"), found.pop("data")
    return {
        **found,
        "model": program["name"],
        "fingerprint": program["fingerprint"],
        "data": data["name"],
        "inputs": data["inputs"],
        "criterion": reference.criterion.names[0],
        "faults": {name: {"count": len(table), "digest": table.plan().digest()} for name, table in tables.items()},
    }
