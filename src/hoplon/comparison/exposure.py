"""Bits at risk: a guard's copies are memory too, so an arm is judged by failures per bit flip rate, not per fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from hoplon.campaign.rates import HARMFUL, Rate, rate_of
from hoplon.comparison.costs.live_time import live_shares
from hoplon.faults.model import FaultModel
from hoplon.faults.sampling.base import Population, Sampling, draw_faults, unit_generator
from hoplon.faults.sampling.measures import BitUniform
from hoplon.faults.single_word import BitFlip
from hoplon.faults.table import FaultTable
from hoplon.injection.armed_memory import ArmedMemory
from hoplon.injection.injector import Injector
from hoplon.program.program import Program
from hoplon.program.sites import Site, ValueSite
from hoplon.report.document import with_limits
from hoplon.report.text import failing_bits, percent
from hoplon.report.text_table import TextTable
from hoplon.stats.intervals import Interval

_COUNTS = (
    *("bits_at_risk", "model_bits", "guard_bits", "hardware_bits"),
    *("guard_faults", "guard_harmful", "guard_present"),
)


@dataclass(frozen=True)
class Exposure:
    """Bits of an arm's memory that can be hit, and how many of them make the model fail.

    Were every bit to flip at a rate of q per hour, the arm would fail at ``q * failing_bits`` per hour, as long as
    flips are rare. ``guard_faults`` single-bit flips, bit-uniform over ``guard_bits``, gave ``guard_failure``; None
    where an arm has no guard, or none were struck. Of them ``guard_harmful`` made at least one input fail or crash, and
    ``guard_present`` left memory changed after the check. ``failing_bits``: estimate, lower and upper limit.

    ``model_bits`` are those that the fault table was drawn from; ``hardware_bits`` check bits that are never struck;
    ``uncorrectable``: of runs under faults in the model's memory, the share that a guard stopped.
    """

    model_bits: int
    guard_bits: int
    hardware_bits: int
    guard_faults: int
    guard_failure: Interval | None
    guard_harmful: int
    guard_present: int
    failing_bits: tuple[float, float, float] | None
    uncorrectable: float

    @property
    def bits_at_risk(self) -> int:
        """Bits of the model and of its guards."""
        return self.model_bits + self.guard_bits

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None for what was not measured."""
        failing = self.failing_bits or (None,) * 3
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            **with_limits("guard_failure", self.guard_failure),
            **dict(zip(("failing_bits", "failing_bits_low", "failing_bits_high"), failing, strict=True)),
            "uncorrectable": self.uncorrectable,
        }


@dataclass(frozen=True)
class GuardFaults:
    """Single-bit flips in what the guards of an arm hold: how many bits there are, how many struck, what failed.

    Fields as in `Exposure`.
    """

    guard_bits: int
    hardware_bits: int
    guard_faults: int
    guard_failure: Interval | None
    guard_harmful: int = 0
    guard_present: int = 0


def strike_guards(
    evaluator: Injector, guard_faults: int, *, seed: int, confidence: float, advance: Callable[[int], None]
) -> GuardFaults:
    """Strike what the guards of an arm hold with so many single-bit flips, none where they hold nothing."""
    armed = ArmedMemory(evaluator.reference.program, evaluator.overlay)
    guard_bits = sum(map(_bits, armed.guard_sites))
    hardware = sum(8 * guard.extra_bytes for guard in armed.guards.values()) - guard_bits
    struck = guard_faults if guard_bits else 0
    advance(guard_faults - struck)
    failure, harmful, present = None, 0, 0
    if struck:
        population = Population(armed.guard_sites, BitFlip())
        drawn = draw_faults(population, struck, sampling=BitUniform(), generator=unit_generator(seed, 0))
        runs, _ = evaluator.runs(drawn, advance=advance)
        criterion = evaluator.reference.criterion.names[0]
        failure = rate_of(runs.lazy(), criterion, target="memory", confidence=confidence).failure
        harm = pl.col(criterion).cast(pl.String).is_in(HARMFUL)
        harmful, present = (runs.filter(one)["fault"].n_unique() for one in (harm, pl.col("reached")))
    return GuardFaults(guard_bits, hardware, struck, failure, harmful, present)


def exposure_of(evaluator: Injector, table: FaultTable, rate: Rate, guards: GuardFaults) -> Exposure:
    """Estimate the exposure of an arm under memory faults.

    Args:
        table: of the memory faults; its sites are all that they were drawn from.
        rate: failures of the arm under them.
        guards: failures under faults in its guards.
    """
    program = evaluator.reference.program
    model_bits = sum(_bits(program.memory_site(name)) for name in _drawn_from(table))
    failure = guards.guard_failure
    parts = [(model_bits, rate.failure)] + ([(guards.guard_bits, failure)] if failure is not None else [])
    return Exposure(
        model_bits=model_bits,
        **vars(guards),
        failing_bits=None if guards.guard_bits and failure is None else _summed(parts),
        uncorrectable=rate.counts["uncorrectable"] / rate.n_runs,
    )


def exposure_table(arms: Mapping[str, Exposure], faults: str = "") -> TextTable:
    """Tabulate by arm the runs that a guard stopped, bits at risk, and how many of them fail the model."""
    rows = []
    for name, exposure in arms.items():
        failing = failing_bits(exposure.to_dict()).partition(" of ")[0]
        bits = (f"{exposure.bits_at_risk:,}", f"{exposure.guard_bits:,}")
        rows.append((name, percent(exposure.uncorrectable), *bits, failing))
    return TextTable(
        "Memory at risk: struck layers, and what the guards of an arm hold" + (f"; {faults}" if faults else ""),
        ("arm", "stopped", "bits at risk", "of guards", "failing bits"),
        rows,
        caption="failing bits = Σ bits × failure probability, over model and guard memory",
    )


def at_risk(program: Program, sites: Sequence[Site], fault_model: FaultModel, sampling: Sampling) -> dict[str, Any]:
    """Say what a rate of failures has to be multiplied with to be one per hour, as plain values for a document.

    Returns:
        ``fault_model``, ``sampling``, and by site its ``structure`` ("values", "weights" or "buffers"), ``bits`` (of
        one sample, for values), ``word_bits``, and ``live_share`` of a forward pass, 1 for memory.
    """
    of_values = any(isinstance(site, ValueSite) for site in sites)
    live = live_shares(program) if of_values else {}
    return {
        "fault_model": fault_model.name,
        "sampling": repr(sampling),
        "sites": {
            site.name: {
                "structure": structure_of(site),
                "bits": _bits(site),
                "word_bits": 8 * site.dtype.itemsize,
                "live_share": live.get(site.name, 1.0),
            }
            for site in sites
        },
    }


def structure_of(site: Site) -> str:
    """What of a device a site stands for: "values", "weights" or "buffers"."""
    return "values" if isinstance(site, ValueSite) else "buffers" if site.is_buffer else "weights"


def _summed(parts: Sequence[tuple[int, Interval]]) -> tuple[float, float, float]:
    """Sum bits times probability; the limits too, which is wider than need be."""
    estimate, low, high = (
        sum(bits * getattr(part, end) for bits, part in parts) for end in ("estimate", "low", "high")
    )
    return estimate, low, high


def _drawn_from(table: FaultTable) -> list[str]:
    """The names of all sites that a table's faults may be in, also of those that none hit."""
    names = table.frame["site"].dtype
    assert isinstance(names, pl.Enum)
    return names.categories.to_list()


def _bits(site: Site) -> int:
    return 8 * site.numel * site.dtype.itemsize
