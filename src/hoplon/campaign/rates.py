"""Failure probabilities of runs: counted, clustered by fault, or weighted, over all runs or in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hoplon.criteria.outcome import CAUSES, OUTCOME_NAMES
from hoplon.faults.table import Target
from hoplon.stats.intervals import Floats, Interval, Ints, clustered, effective, weighted, wilson
from hoplon.stats.strata_estimates import ABOVE, CERTAIN, stratified

FAILURES = ("sdc", "nonfinite")
HARMFUL = (*FAILURES, "crash")
"""What a decision counts: failures, and runs without an output."""

Strata = tuple[Floats, Floats, Floats, Floats | None]
_WEIGHT, _DRAWS, _POOLED = "weight", "candidates", "pooled"
_KINDS = [_WEIGHT, _DRAWS, "proven", _POOLED]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rate:
    """Failure probability of runs under one criterion.

    ``failure`` = ``sdc`` + ``nonfinite``; beside it stands ``crash``, the share of runs without an output. Each is a
    probability with its interval, of all runs. ``counts``: runs by outcome; ``causes``: crashes by cause. Where faults
    do not count alike (``failure.method`` says so), the probabilities are no ratios of counts.
    """

    criterion: str
    failure: Interval
    sdc: Interval
    nonfinite: Interval
    crash: Interval
    counts: Mapping[str, int]
    n_faults: int
    n_inputs: int
    n_runs: int
    causes: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        failures = sum(self.counts[name] for name in FAILURES)
        return (
            f"P(failure | fault), {self.criterion}: {self.failure} ({failures} of {self.n_runs} runs, {self.n_faults} "
            f"faults, {self.n_inputs} inputs; {self.failure.method} {100 * self.failure.confidence:g} %); "
            f"sdc {self.sdc}, nonfinite {self.nonfinite}, crash {self.crash}{_listed(self.causes)}"
        )

    def as_row(self) -> dict[str, float | int]:
        """One row of a table."""
        return {
            "failure": self.failure.estimate,
            "failure_low": self.failure.low,
            "failure_high": self.failure.high,
            "sdc": self.sdc.estimate,
            "nonfinite": self.nonfinite.estimate,
            "crash": self.crash.estimate,
            "crash_low": self.crash.low,
            "crash_high": self.crash.high,
            "n_faults": self.n_faults,
            "n_inputs": self.n_inputs,
            "n_runs": self.n_runs,
        }


def rate_of(
    runs: pl.LazyFrame,
    criterion: str,
    *,
    target: Target,
    confidence: float,
    complete: bool = False,
) -> Rate:
    """Estimate the failure probability from runs.

    Value faults: plain counts, Wilson intervals. Memory faults: the mean over faults of the share of inputs that
    fail, intervals clustered by fault. Runs with a column ``weight``: the stratified estimate, strata being faults of
    equal weight; a column ``candidates`` says from how many first-phase draws each was counted. Rows with ``proven``
    set are faults that are known to be masked: no run was spent on them. A column ``pooled``: weights for the limits,
    where those of the estimate leave faults out (see `hoplon.campaign.design.Design.weighted`).

    Args:
        runs: one row per run, with the columns ``fault``, ``input`` and the criterion's.
        complete: these are all the faults there are, so nothing is left open.
    """
    options: dict[str, Any] = {"target": target, "confidence": confidence}
    interval: _Limits = partial(_plain, complete=complete, **options)
    if _WEIGHT in runs.collect_schema().names():
        interval = partial(_of_strata, **options)
    groups = _tallies(runs.with_columns(pl.lit(0).alias("all")), ("all",), criterion, target)
    for _, tally, n_inputs in groups:
        return _rate(criterion, tally, n_inputs, interval)
    return _rate(criterion, _NO_RUNS, 0, partial(_plain, **options))


def rates_by(
    runs: pl.LazyFrame,
    keys: Sequence[str],
    criterion: str,
    *,
    target: Target,
    confidence: float,
    complete: bool = False,
) -> list[tuple[tuple[Any, ...], Rate]]:
    """The rate in every group of runs that agree in ``keys``, in the order of the keys, null last.

    With a column ``weight``, a group is a domain whose own size is estimated along: see
    `hoplon.stats.intervals.weighted`. The largest weight of all runs is that of a failure not yet seen in the group.
    """
    interval: _Limits = partial(_plain, target=target, confidence=confidence, complete=complete)
    if _WEIGHT in runs.collect_schema().names():
        run, weight = _proven(runs).not_(), pl.col(_WEIGHT)
        largest = runs.select(run=weight.filter(run).max(), any=weight.max()).collect()
        heaviest = largest.select(pl.coalesce("run", "any")).item()  # nothing had to be run: that of what was proven
        interval = partial(_of_domain, target=target, confidence=confidence, heaviest=heaviest)
    groups = _tallies(runs, keys, criterion, target)
    return [(group, _rate(criterion, tally, n_inputs, interval)) for group, tally, n_inputs in groups]


def _tallies(
    runs: pl.LazyFrame, keys: Sequence[str], criterion: str, target: Target
) -> list[tuple[tuple[Any, ...], pl.DataFrame, int]]:
    """Group, runs by outcome of its clusters, and how many inputs it has.

    A cluster (a row) is a memory fault; of value faults, all that count alike are one.
    """
    outcome, columns = pl.col(criterion).cast(pl.String), runs.collect_schema().names()
    tally = [pl.len().cast(pl.Int64).alias("runs")]
    tally += [(outcome == name).sum().cast(pl.Int64).alias(name) for name in OUTCOME_NAMES]
    cause = pl.col("cause").cast(pl.String) if "cause" in columns else pl.lit(None, dtype=pl.String)
    tally += [(cause == name).sum().cast(pl.Int64).alias(name) for name in CAUSES]
    within = [] if target == "values" else ["fault"]
    if _WEIGHT in columns:
        within = [*_KINDS, *within]
        draws = _DRAWS if _DRAWS in columns else pl.lit(None, dtype=pl.Int64)
        pooled = pl.col(_POOLED if _POOLED in columns else _WEIGHT)
        runs = runs.with_columns(proven=_proven(runs), candidates=draws, pooled=pooled)
    counted = runs.group_by(*keys, *within).agg(*tally, faults=pl.col("fault").n_unique())
    counted = counted.sort(*keys, *within, nulls_last=True)
    inputs = runs.group_by(keys).agg(n_inputs=pl.col("input").n_unique()).sort(keys, nulls_last=True)
    sizes = inputs.collect(engine="streaming")["n_inputs"].to_list()
    groups = zip(counted.collect(engine="streaming").group_by(keys, maintain_order=True), sizes, strict=True)
    return [(group, part, n_inputs) for (group, part), n_inputs in groups]


_NO_RUNS = pl.DataFrame({name: pl.Series([], dtype=pl.Int64) for name in ("runs", "faults", *OUTCOME_NAMES, *CAUSES)})

# Runs of an outcome in the clusters of a group; the clusters, where they do not count alike with the columns `_KINDS`.
_Limits = Callable[[Ints, pl.DataFrame], Interval]


def _proven(runs: pl.LazyFrame) -> pl.Expr:
    return pl.col("proven") if "proven" in runs.collect_schema().names() else pl.lit(False)


def _rate(criterion: str, tally: pl.DataFrame, n_inputs: int, interval: _Limits) -> Rate:
    sdc, nonfinite, crash = (tally[name].to_numpy() for name in (*FAILURES, "crash"))
    failure, of_sdc, of_nonfinite, of_crash = (
        interval(found, tally) for found in (sdc + nonfinite, sdc, nonfinite, crash)
    )
    spent = tally.filter(~pl.col("proven")) if _WEIGHT in tally.columns else tally
    counts, causes = ({name: int(spent[name].sum()) for name in names} for names in (OUTCOME_NAMES, CAUSES))
    n_faults, n_runs = int(spent["faults"].sum()), int(spent["runs"].sum())
    return Rate(criterion, failure, of_sdc, of_nonfinite, of_crash, counts, n_faults, n_inputs, n_runs, causes)


def _listed(causes: Mapping[str, int]) -> str:
    """Such as " (exception 290, hang 2)"; nothing where nothing crashed."""
    found = [f"{name} {count}" for name, count in causes.items() if count]
    return f" ({', '.join(found)})" if found else ""


def _plain(
    failures: Ints, clusters: pl.DataFrame, *, target: Target, confidence: float, complete: bool = False
) -> Interval:
    runs = clusters["runs"].to_numpy()
    if complete and len(runs):
        mean = float((failures / runs).mean()) if target == "memory" else float(failures.sum() / runs.sum())
        return Interval(mean, mean, mean, confidence, "all faults")
    if target == "values":
        return wilson(int(failures.sum()), int(runs.sum()), confidence=confidence)
    return clustered(failures / runs, runs, confidence=confidence)


def _of_strata(failures: Ints, clusters: pl.DataFrame, *, target: Target, confidence: float) -> Interval:
    """Runs or faults that count alike are a stratum; its share is what they stand for together.

    What the weights leave of a sum of 1 was proven to be masked where the faults were drawn.
    """
    shares, failed, met, counted = strata_of(failures, clusters, target=target)
    found = stratified(shares / shares.sum(), failed, met, candidates=counted, confidence=confidence, above=ABOVE)
    weights, runs, counts = (clusters[name].to_numpy() for name in (_POOLED, "runs", _WEIGHT))
    if np.array_equal(counts, weights):
        return found
    mean = float((counts * (failures if target == "values" else failures / runs)).sum())
    return replace(found, estimate=min(max(mean, found.low), found.high))  # it may be what later runs have ruled out


def strata_of(failures: NDArray[Any], clusters: pl.DataFrame, *, target: Target) -> Strata:
    """Strata of runs that do not count alike, as `hoplon.stats.strata_estimates.limits` takes them.

    Args:
        failures: shape ``(clusters,)``, failing runs of each; of memory faults, fractions are allowed.
        clusters: one row each with the columns "weight", "pooled", "candidates" (null: weights are known), "proven" and
            "runs".
    Returns:
        Shares, failures, runs, and draws that the shares are counted from, each of shape ``(strata,)``; None for the
        last where shares are known.
    """
    columns = clusters.select(_POOLED, pl.col(_DRAWS).cast(pl.Float64), "proven", "runs")
    weights, draws, proven, runs = (column.to_numpy() for column in columns)
    keys = np.nan_to_num(np.stack([weights, draws, proven]), nan=-1)  # NaN: weights that are known
    strata, first, which = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    if target == "values":
        failed, met = (np.bincount(which, weights=column).astype(np.float64) for column in (failures, runs))
        shares = strata[0] * met
    else:
        shares = np.bincount(which, weights=weights).astype(np.float64)
        cells = [effective((failures / runs)[which == cell], runs[which == cell]) for cell in range(strata.shape[1])]
        failed, met = (np.array(column) for column in zip(*cells, strict=True))
    draws, proven = draws[first], proven[first]
    met = np.where(proven, CERTAIN, met)
    rest = 1 - float(shares.sum())
    if rest > _ROUNDING:
        shares, failed, met = np.append(shares, rest), np.append(failed, 0.0), np.append(met, CERTAIN)
        draws = np.append(draws, draws.min())
    return shares, failed, met, None if np.isnan(draws).any() else draws


def _of_domain(
    failures: Ints, clusters: pl.DataFrame, *, target: Target, confidence: float, heaviest: float
) -> Interval:
    weights, runs = clusters[_WEIGHT].to_numpy(), clusters["runs"].to_numpy()
    if target == "values":  # a row is many faults of one run each
        shares = np.repeat([1.0, 0.0] * len(runs), np.stack([failures, runs - failures], 1).ravel())
        weights = np.repeat(weights, runs)
    else:
        shares = failures / runs
    shares, weights = shares[weights > 0], weights[weights > 0]  # what was added after a look counts in the whole alone
    return weighted(shares, weights, confidence=confidence, heaviest=heaviest)
