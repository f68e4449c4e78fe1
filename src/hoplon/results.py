"""Results of a campaign: outcome counts, failure probabilities with intervals, by layer and by bit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hoplon.criteria import OUTCOME_NAMES
from hoplon.errors import HoplonError, StoreError
from hoplon.faults import FaultTable, Target
from hoplon.stats import Interval, clustered, wilson
from hoplon.store import RunDirectory

_KEYS = ("layer", "bit", "input")
_FAILURES = ("sdc", "nonfinite")


@dataclass(frozen=True)
class Rate:
    """How often runs fail, under one criterion.

    ``failure`` = ``sdc`` + ``nonfinite``; each a probability with its interval. ``counts``: runs by outcome.
    """

    criterion: str
    failure: Interval
    sdc: Interval
    nonfinite: Interval
    counts: Mapping[str, int]
    n_faults: int
    n_inputs: int
    n_runs: int

    def __str__(self) -> str:
        failures = sum(self.counts[name] for name in _FAILURES)
        return (
            f"P(failure | fault), {self.criterion}: {self.failure} ({failures} of {self.n_runs} runs, {self.n_faults} "
            f"faults, {self.n_inputs} inputs; {self.failure.method} {100 * self.failure.confidence:g} %); "
            f"sdc {self.sdc}, nonfinite {self.nonfinite}"
        )

    def as_row(self) -> dict[str, float | int]:
        """One row of a table."""
        return {
            "failure": self.failure.estimate,
            "failure_low": self.failure.low,
            "failure_high": self.failure.high,
            "sdc": self.sdc.estimate,
            "nonfinite": self.nonfinite.estimate,
            "n_faults": self.n_faults,
            "n_inputs": self.n_inputs,
            "n_runs": self.n_runs,
        }


def rate_of(runs: pl.LazyFrame, criterion: str, *, target: Target, confidence: float) -> Rate:
    """Estimate the failure probability from runs.

    Value faults: plain counts, Wilson intervals. Memory faults: the mean over faults of the share of inputs that
    fail, intervals clustered by fault.

    Args:
        runs: one row per run, with the columns ``fault``, ``input`` and the criterion's.
    """
    outcome = pl.col(criterion).cast(pl.String)
    kinds = [(outcome == name).sum().alias(name) for name in OUTCOME_NAMES]
    per_fault = runs.group_by("fault").agg(pl.len().alias("runs"), *kinds)
    if target == "values":
        totals = per_fault.sum().with_columns(pl.lit(0).alias("unused")).collect(engine="streaming")
        counts = {name: int(totals[name][0] or 0) for name in OUTCOME_NAMES}
        n_runs = n_faults = int(totals["runs"][0] or 0)
        intervals = {name: wilson(counts[name], n_runs, confidence=confidence) for name in _FAILURES}
        failure = wilson(sum(counts[name] for name in _FAILURES), n_runs, confidence=confidence)
    else:
        faults = per_fault.sort("fault").collect(engine="streaming")
        counts = {name: int(faults[name].sum()) for name in OUTCOME_NAMES}
        n_runs, n_faults = int(faults["runs"].sum()), faults.height
        sizes = faults["runs"].to_numpy()
        shares = {name: faults[name].to_numpy() / sizes for name in _FAILURES}
        intervals = {name: clustered(share, sizes, confidence=confidence) for name, share in shares.items()}
        failure = clustered(np.add(shares["sdc"], shares["nonfinite"]), sizes, confidence=confidence)
    n_inputs = int(runs.select(pl.col("input").n_unique()).collect(engine="streaming").item())
    return Rate(criterion, failure, intervals["sdc"], intervals["nonfinite"], counts, n_faults, n_inputs, n_runs)


@dataclass(frozen=True, eq=False)
class Results:
    """What a campaign found: columnar, read lazily from disk where a run directory holds it.

    ``confidence`` is what the intervals carry; ``level`` is what each is computed at (higher after sequential
    stopping, so that they cover at ``confidence`` whenever the campaign stopped).
    """

    target: Target
    criteria: tuple[str, ...]
    confidence: float
    level: float
    lazy_runs: pl.LazyFrame = field(repr=False)
    lazy_faults: pl.LazyFrame = field(repr=False)
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path | None = None

    @property
    def faults(self) -> FaultTable:
        """The fault table, with the words that the faults met."""
        return FaultTable(self.target, self.lazy_faults.collect())

    @property
    def runs(self) -> pl.DataFrame:
        """One row per run: fault, input, an outcome per criterion, detected, corrected, reached."""
        return self.lazy_runs.collect()

    def summary(self) -> tuple[Rate, ...]:
        """The rate under each criterion, over all runs."""
        return tuple(rate_of(self.lazy_runs, name, target=self.target, confidence=self.level) for name in self.criteria)

    def by(self, key: str, *, criterion: str | None = None) -> pl.DataFrame:
        """Rates by "layer" (site), "bit" (of single-bit faults; null for others) or "input".

        Args:
            criterion: a name out of ``criteria``; the first by default.
        Returns:
            One row per group: the key, failure with its limits, sdc, nonfinite, n_faults, n_inputs, n_runs.
        Raises:
            HoplonError: an unknown key or criterion.
        """
        chosen = criterion or self.criteria[0]
        if key not in _KEYS or chosen not in self.criteria:
            raise HoplonError(
                f"expected a key of {', '.join(_KEYS)} and a criterion of {', '.join(self.criteria)}, "
                f"got {key!r} and {chosen!r}"
            )
        runs = self.lazy_runs.collect()
        if key != "input":
            table = self.faults
            groups = table.frame.select("fault", pl.col("site").alias("layer")).with_columns(table.bits)
            runs = runs.join(groups.unique("fault", keep="first"), on="fault", how="left", maintain_order="left")
        rows = []
        for (group,), part in runs.sort(key, nulls_last=True).group_by(key, maintain_order=True):
            rate = rate_of(part.lazy(), chosen, target=self.target, confidence=self.level)
            rows.append({key: str(group) if key == "layer" else group, **rate.as_row()})
        return pl.DataFrame(rows)

    def __str__(self) -> str:
        return "\n".join(map(str, self.summary()))


def load_results(path: str | os.PathLike[str]) -> Results:
    """The results in a run directory.

    Raises:
        StoreError: no run there, or no finished unit yet.
    """
    directory = RunDirectory(Path(path))
    manifest = directory.manifest()
    units = len(directory.finished())
    if not units:
        raise StoreError(f"expected at least one finished unit in {path}, got none; resume the run")
    return stored_results(directory, manifest, units, level=float(manifest["confidence"]))


def stored_results(directory: RunDirectory, manifest: Mapping[str, Any], units: int, *, level: float) -> Results:
    """Results over the first units of a run directory."""
    return Results(
        target=manifest["target"],
        criteria=tuple(manifest["criteria"]),
        confidence=float(manifest["confidence"]),
        level=level,
        lazy_runs=directory.read("runs", units),
        lazy_faults=directory.read("faults", units),
        manifest=manifest,
        path=directory.path,
    )


def held_results(
    manifest: Mapping[str, Any], units: Sequence[tuple[FaultTable, pl.DataFrame]], *, level: float
) -> Results:
    """Results over units held in memory."""
    return Results(
        target=manifest["target"],
        criteria=tuple(manifest["criteria"]),
        confidence=float(manifest["confidence"]),
        level=level,
        lazy_runs=pl.concat([runs for _, runs in units]).lazy(),
        lazy_faults=pl.concat([faults.frame for faults, _ in units]).lazy(),
        manifest=manifest,
    )
