"""Results of a campaign: outcome counts, failure probabilities with intervals, in groups and fault by fault."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hoplon.criteria import OUTCOME_NAMES
from hoplon.errors import HoplonError, StoreError
from hoplon.faults import FaultTable, Target
from hoplon.formats import Field, format_named
from hoplon.sites import Site, ValueSite
from hoplon.stats import Interval, clustered, look_confidence, wilson
from hoplon.store import RunDirectory, readable

_KEYS = ("layer", "kind", "bit", "field", "direction", "input")
_FIELDS: tuple[Field, ...] = ("sign", "exponent", "mantissa")
_FAILURES = ("sdc", "nonfinite")
_DIGEST_FAULTS = {"values": 2**18, "memory": 2**12}


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
    rates = _rates(runs.with_columns(pl.lit(0).alias("all")), ("all",), criterion, target=target, confidence=confidence)
    return next((rate for _, rate in rates), _rate(criterion, _NO_RUNS, 0, target=target, confidence=confidence))


_NO_RUNS = pl.DataFrame({name: pl.Series([], dtype=pl.Int64) for name in ("runs", *OUTCOME_NAMES)})


def _rates(
    runs: pl.LazyFrame, keys: Sequence[str], criterion: str, *, target: Target, confidence: float
) -> list[tuple[tuple[Any, ...], Rate]]:
    """The rate in every group of runs that agree in ``keys``, in the order of the keys, null last."""
    outcome = pl.col(criterion).cast(pl.String)
    tally = [pl.len().alias("runs"), *((outcome == name).sum().alias(name) for name in OUTCOME_NAMES)]
    clusters = keys if target == "values" else (*keys, "fault")
    counted = runs.group_by(clusters).agg(tally).sort(clusters, nulls_last=True).collect(engine="streaming")
    inputs = runs.group_by(keys).agg(n_inputs=pl.col("input").n_unique()).sort(keys, nulls_last=True)
    sizes = inputs.collect(engine="streaming")["n_inputs"].to_list()
    groups = zip(counted.group_by(keys, maintain_order=True), sizes, strict=True)
    return [
        (group, _rate(criterion, part, n_inputs, target=target, confidence=confidence))
        for (group, part), n_inputs in groups
    ]


def _rate(criterion: str, tally: pl.DataFrame, n_inputs: int, *, target: Target, confidence: float) -> Rate:
    """The rate from counts of runs by outcome: all in one row for value faults, a row per fault for memory faults."""
    counts = {name: int(tally[name].sum()) for name in OUTCOME_NAMES}
    n_runs = int(tally["runs"].sum())
    if target == "values":
        intervals = {name: wilson(counts[name], n_runs, confidence=confidence) for name in _FAILURES}
        failure = wilson(sum(counts[name] for name in _FAILURES), n_runs, confidence=confidence)
        return Rate(criterion, failure, intervals["sdc"], intervals["nonfinite"], counts, n_runs, n_inputs, n_runs)
    sizes = tally["runs"].to_numpy()
    shares = {name: tally[name].to_numpy() / sizes for name in _FAILURES}
    intervals = {name: clustered(share, sizes, confidence=confidence) for name, share in shares.items()}
    failed = (tally["sdc"] + tally["nonfinite"]).to_numpy()
    failure = clustered(failed / sizes, sizes, confidence=confidence)
    return Rate(criterion, failure, intervals["sdc"], intervals["nonfinite"], counts, tally.height, n_inputs, n_runs)


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
        with readable(self.path):
            return FaultTable(self.target, self.lazy_faults.collect())

    @property
    def runs(self) -> pl.DataFrame:
        """One row per run: fault, input, an outcome per criterion, its measures, detected, corrected, reached."""
        with readable(self.path):
            return self.lazy_runs.collect()

    def digest(self) -> str:
        """SHA-256 of all records, faults and runs in their order, 64 hexadecimal digits.

        Equal for equal records, whatever the order in which units finished, the number of workers, and how often the
        campaign was stopped and resumed. Times are no records.
        """
        digest = hashlib.sha256(repr((self.target, self.criteria)).encode())
        chunk = _DIGEST_FAULTS[self.target]
        with readable(self.path):
            last = self.lazy_faults.select(pl.col("fault").max()).collect().item()
            for first in range(0, -1 if last is None else last + 1, chunk):
                mine = pl.col("fault").is_between(first, first + chunk - 1)
                faults = FaultTable(self.target, self.lazy_faults.filter(mine).collect())
                digest.update(faults.digest().encode())
                for column in self.lazy_runs.filter(mine).collect().sort("fault", "input"):
                    digest.update(f"\n{column.name}\n".encode())
                    words = (column.to_physical() if column.dtype == pl.Enum else column).to_numpy()
                    digest.update(words.astype(words.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def summary(self) -> tuple[Rate, ...]:
        """The rate under each criterion, over all runs."""
        with readable(self.path):
            return tuple(
                rate_of(self.lazy_runs, name, target=self.target, confidence=self.level) for name in self.criteria
            )

    def by(self, *keys: str, criterion: str | None = None) -> pl.DataFrame:
        """Rates in groups: ``by("layer")``, or jointly, ``by("layer", "bit")``.

        Keys: "layer", the site; "kind", the operator, or for memory the operators that read it ("conv+linear"); "bit",
        the one bit that can change; "field" of the number format that can change ("sign", "exponent", "mantissa");
        "direction" in which bits changed ("0->1", "1->0"); "input". A fault in several words belongs to the site of
        its first; where bits or words differ, "field" and "direction" are "several" and "bit" is null. Formats without
        fields have none, and faults that changed nothing no direction (null).

        Args:
            criterion: a name out of ``criteria``; the first by default.
        Returns:
            One row per group: the keys, failure with its limits, sdc, nonfinite, n_faults, n_inputs, n_runs.
        Raises:
            HoplonError: no key, an unknown one or one given twice, or an unknown criterion.
        """
        if not keys or not set(keys) <= set(_KEYS) or len(set(keys)) < len(keys):
            raise HoplonError(f"expected keys out of {', '.join(_KEYS)}, each once, got {', '.join(map(repr, keys))}")
        runs = self._outcomes(criterion)
        if keys != ("input",):
            runs = runs.join(self._groups().lazy(), on="fault", how="left")
        with readable(self.path):
            rates = _rates(runs, keys, "outcome", target=self.target, confidence=self.level)
        rows = [{**dict(zip(keys, group, strict=True)), **rate.as_row()} for group, rate in rates]
        return pl.DataFrame(rows, infer_schema_length=None)

    def per_fault(self, *, criterion: str | None = None) -> pl.DataFrame:
        """How much each memory fault does: the share of inputs that fail.

        Returns:
            One row per fault: ``fault``; ``site`` and ``element`` of its first word, ``words`` (how many), ``bit`` (the
            one that can change, or null); ``failure``, ``sdc`` and ``nonfinite``, shares of its ``n_inputs`` inputs.
        Raises:
            HoplonError: a campaign of value faults, which meet one input each; an unknown criterion.
        """
        if self.target != "memory":
            raise HoplonError("expected memory faults, which meet many inputs, got value faults; use by() or runs")
        outcome = pl.col("outcome").cast(pl.String)
        shares = [(outcome == name).sum().alias(name) / pl.len() for name in _FAILURES]
        failed = outcome.is_in(_FAILURES).sum() / pl.len()
        counted = self._outcomes(criterion).group_by("fault").agg(failed.alias("failure"), *shares, n_inputs=pl.len())
        with readable(self.path):
            found = counted.collect(engine="streaming")
        words = self.faults.frame.with_columns(self.faults.bits)
        places = words.group_by("fault", maintain_order=True).agg(
            pl.col("site", "element").first(), words=pl.len(), bit=_agreed("bit", None)
        )
        return places.join(found, on="fault", how="inner").sort("fault")

    def distribution(self, bins: int | Sequence[float] = 10, *, criterion: str | None = None) -> pl.DataFrame:
        """How many memory faults make how large a share of the inputs fail.

        Args:
            bins: how many of equal width, or their edges, rising from 0 to 1. A fault on an edge belongs to the bin
                below, one that fails no input to the first; so faults in bins above an edge are those of
                `critical_share` at that threshold.
        Returns:
            One row per bin: ``above``, ``up_to`` (the edges), ``count``, ``n_faults``, ``share`` of the faults with
            its Wilson limits ``share_low`` and ``share_high``.
        Raises:
            HoplonError: bins that do not part 0 to 1; see `per_fault`.
        Source:
            Aspis, figures 6 and 13.
        """
        edges = np.arange(bins + 1) / bins if isinstance(bins, int) and bins > 0 else np.array(bins, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not (np.diff(edges) > 0).all():
            raise HoplonError(f"expected a number of bins or edges that rise from 0 to 1, got {bins}")
        shares = self.per_fault(criterion=criterion)["failure"].to_numpy()
        counts = np.bincount(np.searchsorted(edges, shares).clip(min=1) - 1, minlength=len(edges) - 1)
        rows = [
            {"above": float(low), "up_to": float(high), **self._share(int(count), len(shares))}
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ]
        return pl.DataFrame(rows)

    def critical_share(
        self, thresholds: Sequence[float] = (0.0, 0.01, 0.05, 0.5, 0.9), *, criterion: str | None = None
    ) -> pl.DataFrame:
        """The share of memory faults that are critical: that make more than a threshold of the inputs fail.

        Returns:
            One row per threshold: ``threshold``, ``count``, ``n_faults``, ``share`` with its Wilson limits
            ``share_low`` and ``share_high``.
        Raises:
            HoplonError: a threshold outside of [0, 1); see `per_fault`.
        Source:
            Aspis, section V, which counts critical weights and leaves the threshold open.
        """
        for threshold in thresholds:
            if not 0 <= threshold < 1:
                raise HoplonError(f"expected thresholds in [0, 1), as shares of the inputs, got {threshold}")
        shares = self.per_fault(criterion=criterion)["failure"].to_numpy()
        rows = [{"threshold": float(t), **self._share(int((shares > t).sum()), len(shares))} for t in thresholds]
        return pl.DataFrame(rows)

    def _share(self, count: int, n_faults: int) -> dict[str, float | int]:
        interval = wilson(count, n_faults, confidence=self.level)
        return {
            "count": count,
            "n_faults": n_faults,
            "share": interval.estimate,
            "share_low": interval.low,
            "share_high": interval.high,
        }

    def _outcomes(self, criterion: str | None) -> pl.LazyFrame:
        """Fault, input and outcome of every run under one criterion."""
        chosen = self.criteria[0] if criterion is None else criterion
        if chosen not in self.criteria:
            raise HoplonError(f"expected a criterion of {', '.join(self.criteria)}, got {chosen!r}")
        return self.lazy_runs.select("fault", "input", pl.col(chosen).alias("outcome"))

    def _groups(self) -> pl.DataFrame:
        """What `by` groups faults on: one row per fault."""
        table = self.faults
        kinds = {str(name): str(kind) for name, kind in self.manifest.get("kinds", {}).items()}
        kind = pl.col("site").cast(pl.String).replace_strict(kinds, default=None, return_dtype=pl.String)
        words = table.frame.with_columns(table.bits, _fields(table), _directions(table))
        return words.group_by("fault").agg(
            pl.col("site").first().alias("layer"),
            kind.first().alias("kind"),
            bit=_agreed("bit", None),
            field=_agreed("field", "several"),
            direction=_agreed("direction", "several"),
        )

    def __str__(self) -> str:
        return "\n".join(map(str, self.summary()))


def load_results(path: str | os.PathLike[str]) -> Results:
    """The results in a run directory.

    Of a run that was stopped, those of its units from the first on, up to the first that is missing.

    Raises:
        StoreError: no run there, a damaged shard, or no finished unit yet.
    """
    directory = RunDirectory(Path(path))
    manifest = directory.manifest()
    units = directory.finished_from_start()
    if not units:
        raise StoreError(f"expected at least one finished unit in {path}, got none; resume the run")
    level = float(manifest["confidence"])
    if manifest.get("half_width") is not None:  # looked at after 1, 2, 4, ... units
        level = look_confidence((units - 1).bit_length(), confidence=level)
    return stored_results(directory, manifest, units, level=level)


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


def site_kinds(sites: Iterable[Site]) -> dict[str, str]:
    """For a manifest: the operator of each site by its name; for memory the operators that read it, joined by "+"."""
    return {site.name: site.kind if isinstance(site, ValueSite) else "+".join(sorted(site.kinds)) for site in sites}


def _agreed(column: str, otherwise: str | None) -> pl.Expr:
    """The value in which all words of a fault agree."""
    return pl.when(pl.col(column).n_unique() == 1).then(pl.col(column).first()).otherwise(pl.lit(otherwise))


def _fields(table: FaultTable) -> pl.Series:
    """Column `field`: what part of the word the change can touch, per row; null for formats without fields."""
    found = pl.lit(None, dtype=pl.String)
    for name in table.frame["format"].cast(pl.String).unique():
        form = format_named(name)
        try:
            masks = {part: sum(1 << bit for bit in form.field(part)) for part in _FIELDS}
        except HoplonError:
            continue
        touched = (pl.col("keep") ^ pl.lit(2**form.bits - 1, dtype=pl.UInt64)) | pl.col("flip")
        inside = pl.lit("several")
        for part, mask in masks.items():
            inside = pl.when((touched & ~pl.lit(mask, dtype=pl.UInt64)) == 0).then(pl.lit(part)).otherwise(inside)
        inside = pl.when(touched != 0).then(inside)
        found = pl.when(pl.col("format") == name).then(inside).otherwise(found)
    return table.frame.with_columns(found.alias("field"))["field"]


def _directions(table: FaultTable) -> pl.Series:
    """Column `direction`: which way bits changed, per row; null where none did."""
    rises, falls = ((pl.col(a) & ~pl.col(b)) != 0 for a, b in (("after", "before"), ("before", "after")))
    found = pl.when(rises & falls).then(pl.lit("several")).when(rises).then(pl.lit("0->1"))
    return table.frame.with_columns(found.when(falls).then(pl.lit("1->0")).otherwise(None).alias("direction"))[
        "direction"
    ]
