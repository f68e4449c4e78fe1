"""How the runs of a two-phase campaign stand for all faults: strata, their shares, and which runs count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import polars as pl
from pydantic import ConfigDict

from hoplon.errors import StoreError
from hoplon.stats.intervals import Floats, Ints
from hoplon.stats.two_stage import TwoStagePlan


@final
@dataclass(frozen=True)
class Design:
    """Strata of a campaign in two phases, and the look after which it stopped.

    ``labels``, ``shares``: of the strata; shares are those of ``candidates`` drawn and looked at, not run. Every
    stratum has two halves: see `hoplon.campaign.stratified.schedule.SequentialSchedule`. ``known``: the failure
    probability of strata that needed no run, None for the others. ``draws``: how many draws of all faults each share
    counts as, see ``strata_estimates.limits``; ``candidates`` where it is empty. A campaign of uniform faults
    has no strata. ``level``: confidence of the intervals then. ``looks``: how many there were. ``planned``: faults from
    this number on were added since a look was not precise enough; that look saw those before (None: all of them).
    ``expected``: the "runs", "seconds" and "memory_bytes" (of the process that plans, where the platform tells) that
    the pilot led to expect; ``spent``: what it came to. Times and memory are no records. ``split``: of memory faults,
    how many batches of inputs each meets. ``units``, ``manifest``: in a run directory, how many units it stands
    for, and the digest of the manifest beside it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    labels: tuple[str, ...]
    shares: tuple[float, ...]
    known: tuple[float | None, ...]
    candidates: int
    level: float
    draws: tuple[float, ...] = ()
    looks: int | None = None
    planned: int | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    split: TwoStagePlan | None = None
    units: int | None = field(default=None, compare=False)
    manifest: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        strata = len(self.labels)
        if {len(self.shares), len(self.known), len(self.draws) or strata} != {strata}:
            raise ValueError(f"expected a share for each of {strata} strata, got {len(self.shares)}")
        if not all(0 <= share <= 1 for share in (*self.shares, *(known for known in self.known if known is not None))):
            raise ValueError("expected shares and known probabilities in [0, 1]")
        if not 0 < self.level < 1 or min((self.candidates, *self.draws)) < 0:
            raise ValueError("expected a level in (0, 1), and numbers of draws of at least 0")
        if any(amounts and not {"runs", "seconds"} <= amounts.keys() for amounts in (self.expected, self.spent)):
            raise ValueError("expected runs and seconds, got one of them")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a run directory."""
        return asdict(self)

    @property
    def prediction(self) -> str | None:
        """Expected and actual effort in one line; None of a campaign that planned nothing."""
        if not self.expected or not self.spent:
            return None
        looks = "" if self.looks is None else f", {self.looks} look{'s' * (self.looks > 1)}"
        return f"planned from the pilot: {_amounts(self.expected)}; it took {_amounts(self.spent)}{looks}"

    def weighted(self, runs: pl.LazyFrame) -> pl.LazyFrame:
        """The runs with columns ``weight``, the share of all faults that a run's fault stands for, and ``candidates``,
        how many draws that is counted from.

        Half the share of its stratum is parted equally among the faults of each half. Of a run that was stopped before
        every half had one, what is missing is parted among the others.

        Faults that were added after a look have the weight 0: that there are any depends on how many of the others
        fail, so an estimate to which they count is biased. They narrow the limits of the whole; there each counts as
        the column ``pooled`` says, which is `weight` where nothing was added.
        """
        if not self.shares:
            return runs
        fault = pl.col("fault")
        added = fault.is_null() if self.planned is None else fault >= self.planned
        tally = runs.group_by("cell").agg(faults=fault.n_unique(), first=fault.filter(~added).n_unique())
        counted = tally.collect(engine="streaming")
        known = runs.select(~pl.col("proven").is_null().any()).collect(engine="streaming").item()
        if not known or not counted["cell"].is_between(0, 2 * len(self.shares) - 1).fill_null(value=False).all():
            raise StoreError(f"expected runs in {len(self.shares)} strata, got others; run the campaign again")
        faults, first = np.zeros((2, 2 * len(self.shares)), dtype=np.int64)
        faults[counted["cell"].to_numpy()] = counted["faults"].to_numpy()
        first[counted["cell"].to_numpy()] = counted["first"].to_numpy()
        first = np.where(first > 0, first, faults)  # a kind that was not known at the first look: all of it counts
        weights, pooled = self._weights(first), self._weights(faults)
        cells = list(range(len(faults)))
        draws = np.repeat(np.array(self.draws or (self.candidates,) * len(self.shares)), 2).astype(np.int64)

        def by_cell(values: list[float] | list[int], dtype: type[pl.DataType]) -> pl.Expr:
            return pl.col("cell").replace_strict(cells, values, return_dtype=dtype)

        late = by_cell((first < faults).tolist(), pl.Boolean) & added
        weight = pl.when(late).then(0.0).otherwise(by_cell(weights.tolist(), pl.Float64))
        found = runs.with_columns(weight.alias("weight"), by_cell(draws.tolist(), pl.Int64).alias("candidates"))
        if (first < faults).any():
            found = found.with_columns(by_cell(pooled.tolist(), pl.Float64).alias("pooled"))
        return found

    def _weights(self, faults: Ints) -> Floats:
        """Weight of each fault of a cell, of which there are so many."""
        shares = np.repeat(np.array(self.shares) / 2, 2)
        open_ = np.repeat(np.array([value is None for value in self.known]), 2)
        weights = np.divide(shares, faults, out=np.zeros_like(shares), where=faults > 0)
        reached = float(shares[open_ & (faults > 0)].sum())
        if reached > 0:
            weights[open_] *= float(shares[open_].sum()) / reached
        return weights


def _amounts(found: Mapping[str, float]) -> str:
    """Such as "8,306 runs, 15.1 s, 1.2 GB"."""
    parts = [f"{found['runs']:,.0f} runs", f"{found['seconds']:,.1f} s"]
    if "memory_bytes" in found:
        parts.append(f"{found['memory_bytes'] / 1e9:.2f} GB")
    return ", ".join(parts)
