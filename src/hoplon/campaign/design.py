"""How the runs of a two-phase campaign stand for all faults: strata, their shares, and which runs count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self, final

import numpy as np
import polars as pl

from hoplon.errors import StoreError
from hoplon.stats.two_stage import TwoStagePlan


@final
@dataclass(frozen=True)
class Design:
    """Strata of a campaign in two phases, and the look after which it stopped.

    ``labels``, ``shares``: of the strata; shares are those of ``candidates`` drawn and looked at, not run. Every
    stratum has two halves: see `hoplon.campaign.stratified.schedule.SequentialSchedule`. ``known``: the failure
    probability of strata that needed no run, None for the others. ``draws``: how many draws of all faults each share
    counts as, see ``strata_estimates.limits``; ``candidates`` where it is empty. A campaign of uniform faults
    has no strata. ``level``: confidence of the intervals then. ``expected``: the "runs", "seconds" and "memory_bytes"
    (of the process that plans, where the platform tells) that the pilot led to expect; ``spent``: what it came to.
    Times
    and
    memory are no records. ``split``: of memory faults, how many batches of inputs each meets.
    """

    labels: tuple[str, ...]
    shares: tuple[float, ...]
    known: tuple[float | None, ...]
    candidates: int
    level: float
    draws: tuple[float, ...] = ()
    expected: Mapping[str, float] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    split: TwoStagePlan | None = None

    def to_json(self) -> str:
        """Write as JSON, for a run directory."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @property
    def prediction(self) -> str | None:
        """Expected and actual effort in one line; None of a campaign that planned nothing."""
        if not self.expected or not self.spent:
            return None
        return f"planned from the pilot: {_amounts(self.expected)}; it took {_amounts(self.spent)}"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            StoreError: something else.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            found |= {name: tuple(found[name]) for name in ("labels", "shares", "known", "draws") if name in found}
            found["split"] = None if found.get("split") is None else TwoStagePlan.from_dict(found["split"])
            return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"expected a design as hoplon writes it, got {error}; delete design.json and resume the run"
            ) from error

    def weighted(self, runs: pl.LazyFrame) -> pl.LazyFrame:
        """The runs with columns ``weight``, the share of all faults that a run's fault stands for, and ``candidates``,
        how many draws that is counted from.

        Half the share of its stratum is parted equally among the faults of each half. Of a run that was stopped before
        every half had one, what is missing is parted among the others.
        """
        if not self.shares:
            return runs
        counted = runs.group_by("cell").agg(faults=pl.col("fault").n_unique()).collect(engine="streaming")
        faults = np.zeros(2 * len(self.shares))
        faults[counted["cell"].to_numpy()] = counted["faults"].to_numpy()
        shares = np.repeat(np.array(self.shares) / 2, 2)
        open_ = np.repeat(np.array([value is None for value in self.known]), 2)
        weights = np.divide(shares, faults, out=np.zeros_like(shares), where=faults > 0)
        reached = float(shares[open_ & (faults > 0)].sum())
        if reached > 0:
            weights[open_] *= float(shares[open_].sum()) / reached
        cells = list(range(len(weights)))
        draws = np.repeat(np.array(self.draws or (self.candidates,) * len(self.shares)), 2).astype(np.int64)
        weight = pl.col("cell").replace_strict(cells, weights.tolist(), return_dtype=pl.Float64)
        counted_from = pl.col("cell").replace_strict(cells, draws.tolist(), return_dtype=pl.Int64)
        return runs.with_columns(weight.alias("weight"), counted_from.alias("candidates"))


def _amounts(found: Mapping[str, float]) -> str:
    """Such as "8,306 runs, 15.1 s, 1.2 GB"."""
    parts = [f"{found['runs']:,.0f} runs", f"{found['seconds']:,.1f} s"]
    if "memory_bytes" in found:
        parts.append(f"{found['memory_bytes'] / 1e9:.2f} GB")
    return ", ".join(parts)
