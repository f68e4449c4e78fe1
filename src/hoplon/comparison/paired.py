"""The same faults met twice: how much more often one side fails than the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import polars as pl

from hoplon.faults.table import Target
from hoplon.stats.intervals import Interval, Ratio, mcnemar, paired_clustered, paired_difference, paired_ratio
from hoplon.stats.stratified import paired_weighted


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
    sides = [
        side.select("fault", "input", *weight, failed=pl.col(criterion).cast(pl.String).is_in(["sdc", "nonfinite"]))
        for side in (first, second)
    ]
    here_failed, there_failed = pl.col("failed"), pl.col("failed_right")
    tally = (
        sides[0]
        .join(sides[1], on=["fault", "input"], how="inner")
        .group_by("fault")
        .agg(
            *[column.first() for column in weight],
            only_first=(here_failed & ~there_failed).sum(),
            only_second=(~here_failed & there_failed).sum(),
            both=(here_failed & there_failed).sum(),
            runs=pl.len(),
        )
        .sort("fault")
        .collect(engine="streaming")
    )
    here, there, runs = (int(tally[name].sum()) for name in ("only_first", "only_second", "runs"))
    if weights:
        one, other = (tally[name].to_numpy() / tally["runs"].to_numpy() for name in ("only_first", "only_second"))
        draws = tally["candidates"].to_numpy() if counted else None
        interval = paired_weighted(one, other, tally["weight"].to_numpy(), candidates=draws, confidence=confidence)
        return Paired(interval, None, here, there, runs, tally.height)
    if target == "values":
        interval = paired_difference(here, there, runs, confidence=confidence)
        reduction = paired_ratio(int(tally["both"].sum()), there, here, confidence=confidence)
        return Paired(interval, mcnemar(here, there), here, there, runs, tally.height, reduction)
    shares = (tally["only_first"].cast(pl.Int64) - tally["only_second"].cast(pl.Int64)).to_numpy() / tally[
        "runs"
    ].to_numpy()
    interval = paired_clustered(shares, confidence=confidence)
    return Paired(interval, None, here, there, runs, tally.height)
