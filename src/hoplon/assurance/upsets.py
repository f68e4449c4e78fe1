"""Fault tables with their outcomes, in the form that failure rates are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import polars as pl

from hoplon.campaign.rates import HARMFUL, Strata, strata_of
from hoplon.campaign.results import Results
from hoplon.errors import Count, HoplonError, checked
from hoplon.stats.intervals import Floats, effective
from hoplon.stats.strata_estimates import CERTAIN

Structure = Literal["values", "weights", "buffers", "guard memory", "KV cache"]
"""What of a device an upset hits; "KV cache" is reserved: no campaign strikes the caches of decoders by name yet."""

_FLIPS = {"BitFlip()": 1, "AdjacentBits()": 2} | {
    f"{model}(count={bits})": bits for model in ("BitFlip", "AdjacentBits") for bits in (1, 2, 3)
}
_EVENLY = {
    "ElementUniform()": "element",
    "BitUniform()": "bit",
    "Exhaustive()": "bit",
}  # over which every draw is alike


@final
@dataclass(frozen=True, eq=False)
class Upsets:
    """Upsets of one size in some memory, drawn as often as the device meets them, and what became of them.

    ``name``: of the fault table; ``bits_each``: that an upset changes; ``bits``: of all sites; ``scale_bits``: what
    the mean over faults of their ``share`` is multiplied with; ``faults``: one row per fault: ``site``;
    ``structure``; ``failing``, ``late`` (before the guards' check; null where that is not known) and ``inputs``,
    numbers of inputs; ``present`` (the word differs while inputs run), ``acted`` (a guard repaired or reported it);
    ``share``, in [0, 1], that its failures count with; and of faults that do not count alike their weights.
    ``arrival``: of the faults; ``level``: of intervals, higher where looks were taken; ``complete``: these are all the
    faults there are.
    """

    name: str
    target: Literal["values", "memory"]
    bits_each: int
    bits: int
    scale_bits: float
    faults: pl.DataFrame
    arrival: Literal["before", "after"] = "before"
    level: float = 0.0
    complete: bool = False

    @property
    def over_all_inputs(self) -> bool:
        """True if every memory fault met equally many inputs: all of them."""
        return self.faults["inputs"].n_unique() == 1

    def mean(self, values: Floats) -> float:
        """The mean over faults of values in [0, 1], shape ``(faults,)``, under their weights."""
        if "weight" in self.faults.columns:
            return float((self.faults["weight"].to_numpy() * values).sum())
        return float(values.mean())

    def strata(self, values: Floats) -> Strata:
        """Strata in which such values are failures, for `hoplon.stats.strata_estimates.limits`."""
        if "weight" in self.faults.columns:
            return strata_of(values, self.faults.with_columns(runs=pl.lit(1)), target="memory")
        if self.complete:
            return np.ones(1), np.array([CERTAIN * values.mean()]), np.array([CERTAIN]), None
        failed, runs = effective(values, np.ones(len(values)))
        return np.ones(1), np.array([failed]), np.array([runs]), None


@checked
def upsets_of(
    results: Results,
    at_risk: Mapping[str, Any],
    *,
    name: str = "",
    late: Results | None = None,
    criterion: str | None = None,
    count_crashes: bool = True,
) -> Upsets:
    """Tabulate the faults of a campaign, or of an arm of a comparison, as upsets of a device.

    Args:
        results: with all their runs.
        at_risk: bits and live times, as `hoplon.comparison.exposure.at_risk` gives and documents keep.
        name: of the fault table.
        late: the same memory faults without guards: what they do until the first check.
        criterion: a name out of ``results.criteria``; the first by default.
        count_crashes: a run without an output fails.
    Raises:
        HoplonError: faults that are no flips of 1 to 3 bits anywhere in a word, that were not drawn evenly, or of sites
            that ``at_risk`` lacks.
    """
    sites = at_risk["sites"]
    bits_each, evenly = _FLIPS.get(at_risk["fault_model"]), _EVENLY.get(at_risk["sampling"])
    if bits_each is None or evenly is None:
        raise HoplonError(
            "expected flips of 1, 2 or 3 bits anywhere in a word, drawn evenly over elements or bits, as upsets come, "
            f"got {at_risk['fault_model']} drawn by {at_risk['sampling']}; run bitflip with the sampling element"
        )
    faults = _per_fault(results, criterion, count_crashes=count_crashes)
    if late is not None and results.target == "memory":
        others = _per_fault(late, criterion, count_crashes=count_crashes).select("fault", late=pl.col("failing"))
        faults = faults.drop("late").join(others, on="fault", how="left", maintain_order="left")
    lacking = sorted(set(faults["site"].unique()) - set(sites))
    if lacking:
        raise HoplonError(f"expected the bits of {', '.join(lacking[:3])} in what is at risk, got none; run again")
    widest = max(site["word_bits"] for site in sites.values())
    counted = pl.DataFrame(
        {
            "site": list(sites),
            "structure": [site["structure"] for site in sites.values()],
            "share": [
                site["live_share"] * (1.0 if evenly == "bit" else site["word_bits"] / widest) for site in sites.values()
            ],
        }
    )
    bits = sum(site["bits"] for site in sites.values())
    elements = sum(site["bits"] / site["word_bits"] for site in sites.values())
    return Upsets(
        name=name or results.target,
        target=results.target,
        bits_each=bits_each,
        bits=bits,
        scale_bits=bits if evenly == "bit" else elements * widest,
        faults=faults.join(counted, on="site", how="left", maintain_order="left"),
        arrival=results.manifest.get("arrival", "before"),
        level=results.level,
        complete=results.is_complete,
    )


@checked
def guard_upsets(*, guard_bits: Count, faults: Count, harmful: int, present: int, inputs: Count) -> Upsets:
    """Tabulate single-bit flips in what guards hold, of which only is known how many did some harm.

    Args:
        guard_bits: that the guards hold.
        faults: that were struck there.
        harmful: faults that made at least one input fail; each is taken to fail all inputs.
        present: faults that left memory changed after the check.
        inputs: that each fault met.
    """
    numbers = np.arange(faults)
    frame = pl.DataFrame(
        {
            "fault": numbers,
            "site": "guard memory",
            "structure": "guard memory",
            "failing": np.where(numbers < harmful, inputs, 0),
            "inputs": inputs,
            "late": pl.Series([None] * faults, dtype=pl.Int64),
            "present": numbers < max(harmful, present),
            "acted": False,
            "share": 1.0,
        }
    )
    return Upsets("guard memory", "memory", 1, guard_bits, float(guard_bits), frame)


_WEIGHTS = ("weight", "pooled", "candidates", "proven")


def _per_fault(results: Results, criterion: str | None, *, count_crashes: bool) -> pl.DataFrame:
    chosen = results.criteria[0] if criterion is None else criterion
    if chosen not in results.criteria:
        raise HoplonError(f"expected a criterion of {', '.join(results.criteria)}, got {chosen!r}")
    names = results.lazy_runs.collect_schema().names()
    outcome = pl.col(chosen).cast(pl.String)
    harm = HARMFUL if count_crashes else HARMFUL[:-1]
    kept = [pl.col(name).first() for name in _WEIGHTS if name in names]
    counted = results.lazy_runs.group_by("fault").agg(
        *kept,
        failing=outcome.is_in(harm).sum().cast(pl.Int64),
        stopped=(outcome == "uncorrectable").sum().cast(pl.Int64),
        inputs=pl.len().cast(pl.Int64),
        present=pl.col("reached").any(),
        acted=(pl.col("corrected") | pl.col("detected")).any(),
        late=pl.lit(None, dtype=pl.Int64),
    )
    if kept and "pooled" not in names:
        counted = counted.with_columns(pooled=pl.col("weight"))
    if kept and "candidates" not in names:
        counted = counted.with_columns(candidates=pl.lit(None, dtype=pl.Int64))
    if kept and "proven" not in names:
        counted = counted.with_columns(proven=pl.lit(False))
    places = results.lazy_faults.group_by("fault").agg(pl.col("site").cast(pl.String).first())
    return counted.join(places, on="fault").sort("fault").collect(engine="streaming")
