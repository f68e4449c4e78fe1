"""Failures in time: raw rates, exposure and the outcomes of a campaign joined to FIT with limits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import polars as pl

from hoplon.assurance.raw_rate import RawRate
from hoplon.assurance.upsets import Upsets
from hoplon.errors import Fraction, HoplonError, NonNegative, Share, checked
from hoplon.stats.intervals import Floats
from hoplon.stats.lifetimes import Exposure, InputsAre, any_failure
from hoplon.stats.sequential import Verdict, decided
from hoplon.stats.strata_estimates import CERTAIN, limits

_MOST_TIMES = 1e6  # as many faults, beyond which no campaign goes
_STEPS = 40
_SITES_NAMED = 3


@final
@checked
@dataclass(frozen=True, kw_only=True)
class Use:
    """How a device uses the network, as far as upsets are concerned.

    Args:
        inferences_per_reload: from one writing of the memory to the next (reload, scrubbing, a repair of all of it).
        inferences_per_check: from one check of the guards to the next.
        inputs_are: "drawn": the inputs of the run are a sample of what the device meets, independent of each other;
            "given": the device meets those very inputs, in random order.
        duty: the share of time in which inferences run; values are at risk only then.
    """

    inferences_per_reload: Exposure
    inferences_per_check: Exposure = 1
    inputs_are: InputsAre = "drawn"
    duty: Fraction = 1.0


@final
@dataclass(frozen=True)
class FitPart:
    """What one structure or site adds: failures in 10^9 hours, and upsets there in that time."""

    name: str
    fit: float
    raw_fit: float


@final
@dataclass(frozen=True, eq=False)
class FailureRate:
    """Failures in 10^9 device hours (FIT) of one arm, with limits that hold for the campaign and the raw rate together.

    ``fit``: estimate; ``fit_low``, ``fit_high``: limits. ``fit_low_of_rate``, ``fit_high_of_rate``: of the raw
    rate's range alone, the campaign's estimate being right; ``fit_low_of_campaign``, ``fit_high_of_campaign``: the
    other way round. ``raw_fit``: upsets in 10^9 hours of all that is counted. ``stopped_fit``: of upsets that a guard
    reported and could not undo, which are no failures. ``at_least``: the exposure is longer than the inputs of the
    run, so that the estimate is a lower bound. ``structures``, ``sites``: parts of the estimate, largest first.
    """

    name: str
    fit: float
    fit_low: float
    fit_high: float
    fit_low_of_rate: float
    fit_high_of_rate: float
    fit_low_of_campaign: float
    fit_high_of_campaign: float
    raw_fit: float
    stopped_fit: float
    confidence: float
    n_faults: int
    at_least: bool
    structures: tuple[FitPart, ...]
    sites: tuple[FitPart, ...]
    assumptions: tuple[str, ...]
    _at: Callable[[float], tuple[float, float]]

    def verdict(self, budget_fit: float) -> Verdict:
        """Tell whether the limits, never the estimate, meet a budget in FIT."""
        return decided(self.fit_low, self.fit_high, budget_fit)

    @checked
    def faults_to_decide(self, budget_fit: NonNegative) -> int | None:
        """How many more faults would decide about a budget, were their outcomes like those so far.

        Returns:
            0 where it is decided; None where no number does: the raw rate's range, or what the inputs of the run leave
            open, reaches over the budget.
        """
        if self.verdict(budget_fit) != "undecided":
            return 0
        low, high = 1.0, _MOST_TIMES
        if decided(*self._at(high), budget_fit) == "undecided":
            return None
        for _ in range(_STEPS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if decided(*self._at(middle), budget_fit) == "undecided" else (low, middle)
        return math.ceil(self.n_faults * (high - 1))

    def to_dict(self, budget_fit: float | None = None) -> dict[str, Any]:
        """The rate as plain values; with a budget, what it says about that."""
        hidden = ("_at", "structures", "sites", "assumptions")
        found = {key: value for key, value in vars(self).items() if key not in hidden}
        found |= {"assumptions": list(self.assumptions)}
        found |= {key: [vars(part) for part in getattr(self, key)] for key in ("structures", "sites")}
        if budget_fit is not None:
            shares = {f"share_of_budget{end}": getattr(self, f"fit{end}") / budget_fit for end in ("", "_low", "_high")}
            verdict = {"verdict": self.verdict(budget_fit), "faults_to_decide": self.faults_to_decide(budget_fit)}
            found |= {"budget_fit": budget_fit, **shares, **verdict}
        return found


@checked
def failure_rate(
    upsets: Sequence[Upsets], rate: RawRate, *, use: Use, confidence: Share = 0.95, name: str = ""
) -> FailureRate:
    """Join outcomes of faults, bits, live times, exposure and a raw rate to failures in 10^9 device hours.

    A memory upset stays until the memory is written again: FIT = rate x bits x E over faults [P(at least one failing
    inference while the fault lives)], see `hoplon.stats.lifetimes.any_failure`. An upset of a value: rate x bits x
    share of the time that the value is live x P(failure). All upsets are strata of one sum, whose limits are those of
    `hoplon.stats.strata_estimates.limits`, multiplied with the ends of the raw rate's range.

    Args:
        upsets: of everything that counts, each structure and each size of upset once; see `upsets_of`.
        rate: of the memory that holds all of it; behind ECC, of what passes it.
        use: exposure, checks, duty.
        confidence: of the limits, as far as the campaign goes.
        name: of the arm.
    Raises:
        HoplonError: no upsets, or none of a size that the raw rate has a share of.
    """
    if not upsets:
        raise HoplonError("expected outcomes of upsets in some structure, got none")
    parts = [_part(one, rate, use) for one in upsets]
    _require_all_sizes(upsets, rate)
    level = max([confidence, *(one.level for one in upsets)])
    limits_at = partial(_joint_limits, parts, level)
    low, high = limits_at(1.0)
    estimate = min(max(sum(part.scale_fit * part.upsets.mean(part.estimate) for part in parts), low), high)
    ends = [end / rate.fit_per_mbit if rate.fit_per_mbit else 1.0 for end in rate.range_fit_per_mbit]

    def at(times: float) -> tuple[float, float]:
        below, above = limits_at(times)
        return below * ends[0], above * ends[1]

    stopped = [part.scale_fit * one.mean(_stopped(one)) for part, one in zip(parts, upsets, strict=True)]
    return FailureRate(
        name=name,
        fit=estimate,
        fit_low=low * ends[0],
        fit_high=high * ends[1],
        fit_low_of_rate=estimate * ends[0],
        fit_high_of_rate=estimate * ends[1],
        fit_low_of_campaign=low,
        fit_high_of_campaign=high,
        raw_fit=sum(part.raw_fit for part in parts),
        stopped_fit=sum(stopped),
        confidence=confidence,
        n_faults=sum(one.faults.height for one in upsets),
        at_least=any(not part.exact for part in parts),
        structures=_contributions(parts, "structure"),
        sites=_contributions(parts, "site"),
        assumptions=tuple(_assumptions(upsets, rate, use, confidence)),
        _at=at,
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """Upsets in numbers: FIT were all to fail, by fault what it counts with, and bounds for what is not known."""

    upsets: Upsets
    scale_fit: float
    raw_fit: float
    estimate: Floats
    above: Floats
    reach: float
    worst: Floats
    exact: bool


def _part(upsets: Upsets, rate: RawRate, use: Use) -> _Part:
    size = sum(rate.shares) if upsets.name == "guard memory" else rate.shares[upsets.bits_each - 1]
    duty = use.duty if upsets.target == "values" else 1.0
    scale, raw = (rate.upsets_fit(bits) * size * duty for bits in (upsets.scale_bits, upsets.bits))
    share = upsets.faults["share"].to_numpy()
    columns = ("failing", "inputs", "acted", "present")
    failing, inputs, acted, present = (upsets.faults[name].to_numpy() for name in columns)
    if upsets.target == "values":
        value = share * failing / inputs
        return _Part(upsets, scale, raw, value, value, 1.0, value, exact=True)
    inputs_are: InputsAre = use.inputs_are if upsets.over_all_inputs else "drawn"
    lives = any_failure(failing, inputs, exposure=use.inferences_per_reload, inputs_are=inputs_are)
    late = failing if upsets.arrival == "after" else upsets.faults["late"].fill_null(0).to_numpy()
    checked_after = min(use.inferences_per_check, use.inferences_per_reload)
    until = any_failure(late, inputs, exposure=checked_after, inputs_are=inputs_are)
    ended = acted if upsets.arrival == "after" else acted & (failing == 0)
    certain = acted & ~ended  # a guard acted, and the fault still fails: before its check or after it
    estimate, above, worst = (
        share * np.where(certain, 1.0, np.where(ended, short, whole))
        for short, whole in ((until.estimate, lives.estimate), (until.above, lives.above), (until.above, present))
    )
    reach = max(lives.reach, until.reach)
    exact = lives.exact and (until.exact or not ended.any())
    return _Part(upsets, scale, raw, estimate, above, reach, worst, exact=exact)


def _stopped(upsets: Upsets) -> Floats:
    """By fault, the share of runs that a guard stopped."""
    if "stopped" not in upsets.faults.columns:
        return np.zeros(upsets.faults.height)
    found: Floats = upsets.faults["stopped"].to_numpy() / upsets.faults["inputs"].to_numpy()
    return found


def _require_all_sizes(upsets: Sequence[Upsets], rate: RawRate) -> None:
    for target in {one.target for one in upsets if one.name != "guard memory"}:
        known = {one.bits_each for one in upsets if one.target == target}
        missing = [bits for bits, share in enumerate(rate.shares, 1) if share > 0 and bits not in known]
        if missing:
            raise HoplonError(
                f"expected outcomes of {missing[0]}-bit upsets in {target}, which are "
                f"{rate.shares[missing[0] - 1]:.2%} of all, got none; run bitflip(count={missing[0]}) as well"
            )


def _joint_limits(parts: Sequence[_Part], level: float, times: float) -> tuple[float, float]:
    """Limits of the sum in FIT, with so many times the faults that were run."""
    tail = (1 - level) / 2
    low = _limit(parts, [part.estimate for part in parts], 1.0, times, tail)[0]
    bounded = [part for part in parts if not part.exact]
    whole = sum(part.scale_fit for part in parts)
    reaches = [part.reach for part in parts]
    tail = tail / 2 if bounded else tail  # either of two upper bounds holds, and the lower one is taken
    high = _limit(parts, [part.above for part in parts], reaches, times, tail)[1]
    if bounded:
        high = min(high, _limit(parts, [part.worst for part in parts], 1.0, times, tail)[1])
    return low, min(high, whole)


def _limit(
    parts: Sequence[_Part], values: Sequence[Floats], reach: float | Sequence[float], times: float, tail: float
) -> tuple[float, float]:
    """Lower and upper limit of the sum over parts of scale x mean of values, these in [0, reach]."""
    reaches = [reach] * len(parts) if isinstance(reach, float) else list(reach)
    scales = [part.scale_fit * most for part, most in zip(parts, reaches, strict=True)]
    total = sum(scales)
    if total == 0:
        return 0.0, 0.0
    columns: list[list[Floats]] = [[], [], [], []]
    counted = False
    for part, value, most, scale in zip(parts, values, reaches, scales, strict=True):
        shares, failed, runs, draws = part.upsets.strata(value / most)
        counted = counted or draws is not None
        weight = scale / total
        drawn = np.full(len(shares), CERTAIN) if draws is None else draws / max(weight, 1 / CERTAIN)
        new = (shares * weight / shares.sum(), times * failed, times * runs, times * drawn)
        for column, one in zip(columns, new, strict=True):
            column.append(one)
    share, failed, run, drawn = (np.concatenate(column) for column in columns)
    _, low, high = limits(share, failed, run, candidates=drawn if counted else None, low_tail=tail, high_tail=tail)
    return float(low) * total, float(high) * total


def _contributions(parts: Sequence[_Part], by: str) -> tuple[FitPart, ...]:
    """The estimate by structure or by site, largest first."""
    frames = []
    for part in parts:
        faults = part.upsets.faults
        weight = pl.col("weight") if "weight" in faults.columns else pl.lit(1 / faults.height)
        added = faults.with_columns(
            fit=weight * pl.Series(part.estimate) * part.scale_fit, raw_fit=weight * part.raw_fit
        )
        frames.append(added.group_by(by).agg(pl.col("fit", "raw_fit").sum()))
    summed = pl.concat(frames).group_by(by).agg(pl.col("fit", "raw_fit").sum())
    ordered = summed.sort("fit", by, descending=[True, False])
    return tuple(FitPart(str(row[by]), row["fit"], row["raw_fit"]) for row in ordered.iter_rows(named=True))


def _assumptions(upsets: Sequence[Upsets], rate: RawRate, use: Use, confidence: float) -> list[str]:
    """Every assumption, in sentences."""
    memory = [one for one in upsets if one.target == "memory"]
    values = [one for one in upsets if one.target == "values"]
    found = [
        f"Raw rate: {rate}; 1 Mbit is 10^6 bits, FIT are events in 10^9 hours of one device.",
        f"The limits hold at {100 * confidence:g} % for the campaign, wherever in its range the raw rate lies.",
        "Upsets come one at a time, independently, evenly over all bits and time; nothing else in the device fails.",
        "A failure is an upset after which at least one output is wrong, non-finite or missing (crash), by the "
        "criterion of the run; further wrong outputs of the same upset are not counted again.",
    ]
    if len([share for share in rate.shares if share]) == 1 and rate.shares[0] == 1:
        found.append("Every upset changes one bit; the raw rate gives no share of larger ones.")
    if memory:
        found.append(
            f"Memory is written again every {use.inferences_per_reload:,} inferences; an upset comes at any time "
            "between, and stays until then."
        )
        found.append(_of_inputs(memory, use))
    if any(one.faults["acted"].any() for one in memory):
        found.append(_of_checks(memory, use))
    if any(one.name == "guard memory" for one in memory):
        found.append("Flips in guards' memory: one that harms any input of the run counts as if it failed all of them.")
    if values:
        found.append(
            f"Values are at risk while inferences run ({100 * use.duty:g} % of the time), one sample at a time, from "
            "the start of the operator that computes them to the end of their last reader, as operators follow in the "
            "graph; an upset counts as if it came before the first reader."
        )
    return found


def _of_inputs(memory: Sequence[Upsets], use: Use) -> str:
    inputs = min(int(one.faults["inputs"].min()) for one in memory)  # type: ignore[arg-type]
    if use.inputs_are == "given" and all(one.over_all_inputs for one in memory):
        return (
            f"The device meets the {inputs:,} inputs of the run again and again, each equally likely, in random order."
        )
    text = (
        f"The inputs of the run ({inputs:,} for a fault) are independent draws of what the device meets, in any order."
    )
    if use.inferences_per_reload > inputs:
        text += (
            f" Memory is written again after more inferences than that: the estimate is what {inputs:,} inferences "
            "show, a lower bound; the upper limit holds for all, and is wide unless guards repair."
        )
    return text


def _of_checks(memory: Sequence[Upsets], use: Use) -> str:
    text = f"Guards check every {use.inferences_per_check:,} inferences; what they repair or report lives until then"
    known = all(one.arrival == "after" or one.faults["late"].null_count() == 0 for one in memory if _acts(one))
    if known:
        return f"{text}, and fails until then as often as in the model without protections."
    return f"{text}; what it does until then is not known here and is left out: give a run with arrival after."


def _acts(upsets: Upsets) -> bool:
    return bool(upsets.faults["acted"].any())


def dominating(rate: FailureRate) -> str:
    """Say in one line what the estimate comes from."""
    parts = [part for part in rate.sites[:_SITES_NAMED] if part.fit > 0]
    if not parts or not rate.fit:
        return "nothing failed"
    total = sum(part.fit for part in rate.sites)
    structure = rate.structures[0]
    named = ", ".join(f"{part.name} {part.fit / total:.0%}" for part in parts)
    return f"{structure.name} {structure.fit / total:.0%}; {named}"
