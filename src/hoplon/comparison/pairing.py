"""Two sides compared on the same faults: how much more often one fails than the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import polars as pl

from hoplon.faults.table import Target
from hoplon.stats.intervals import Interval, Ratio, mcnemar, paired_clustered, paired_difference, paired_ratio
from hoplon.stats.strata_estimates import paired_weighted


@final
@dataclass(frozen=True)
class Paired:
    """Two sides on the same runs.

    ``difference``: failure probability of the first minus that of the second. ``p_value``: exact McNemar test, for
    value faults that count alike, since runs of one memory fault fail together. ``only_first``, ``only_second``: runs
    that fail on one side alone. ``n_runs``: pairs of runs; ``n_faults``: faults in them. ``reduction``: how many times
    more often the second fails than the first, likewise.
    """

    difference: Interval
    p_value: float | None
    only_first: int
    only_second: int
    n_runs: int
    n_faults: int
    reduction: Ratio | None = None


def paired(
    first: pl.LazyFrame,
    second: pl.LazyFrame,
    criterion: str,
    *,
    target: Target,
    confidence: float,
) -> Paired:
    """Compare two sides on the runs (fault and input) that both have.

    Args:
        first: runs, as ``Results.lazy_runs``.
        second: likewise.
        criterion: the outcome column.
        confidence: of the interval.
    """
    both = set(first.collect_schema().names()) & set(second.collect_schema().names())
    weights, counted = "weight" in both, "candidates" in both
    weight = [pl.col(name) for name in ("weight", "candidates") if name in both]
    sides = [side.select("fault", "input", *weight, failed=_failed(criterion)) for side in (first, second)]
    first_failed, second_failed = pl.col("failed"), pl.col("failed_right")
    tally = (
        sides[0]
        .join(sides[1], on=["fault", "input"], how="inner")
        .group_by("fault")
        .agg(
            *[column.first() for column in weight],
            only_first=(first_failed & ~second_failed).sum().cast(pl.Int64),
            only_second=(~first_failed & second_failed).sum().cast(pl.Int64),
            both=(first_failed & second_failed).sum(),
            runs=pl.len(),
        )
        .sort("fault")
        .collect(engine="streaming")
    )
    only_first, only_second, both_fail, runs = (
        int(tally[name].sum()) for name in ("only_first", "only_second", "both", "runs")
    )
    counts = (only_first, only_second, runs, tally.height)
    if target == "values" and not weights:
        interval = paired_difference(only_first, only_second, runs, confidence=confidence)
        reduction = paired_ratio(both_fail, only_second, only_first, confidence=confidence)
        return Paired(interval, mcnemar(only_first, only_second), *counts, reduction)
    ours, theirs, sizes = (tally[name].to_numpy() for name in ("only_first", "only_second", "runs"))
    if weights:
        draws, weight_of = tally["candidates"].to_numpy() if counted else None, tally["weight"].to_numpy()
        interval = paired_weighted(ours / sizes, theirs / sizes, weight_of, candidates=draws, confidence=confidence)
    else:
        interval = paired_clustered((ours - theirs) / sizes, confidence=confidence)
    return Paired(interval, None, *counts)


def turned(first: pl.LazyFrame, second: pl.LazyFrame, faults: pl.LazyFrame, criterion: str) -> dict[str, int]:
    """Count the runs that fail on the first side alone, by the site that the fault strikes first, most first.

    Args:
        first, second: runs, as ``Results.lazy_runs``.
        faults: as ``Results.lazy_faults``.
        criterion: the outcome column.
    """
    only_first = first.filter(_failed(criterion)).join(
        second.filter(_failed(criterion)), on=["fault", "input"], how="anti"
    )
    sites = faults.group_by("fault").agg(pl.col("site").cast(pl.String).first())
    counted = only_first.select("fault").join(sites, on="fault").group_by("site").len()
    return dict(counted.sort("len", "site", descending=[True, False]).collect().iter_rows())


def _failed(criterion: str) -> pl.Expr:
    return pl.col(criterion).cast(pl.String).is_in(["sdc", "nonfinite"])
