"""Results of a campaign: outcome counts, failure probabilities with intervals, in groups and fault by fault."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import polars.selectors as cs
from annotated_types import Ge, Le
from numpy.typing import NDArray

from hoplon.campaign.design import Design
from hoplon.campaign.manifest import Manifest
from hoplon.campaign.rates import FAILURES, Rate, rate_of, rates_by
from hoplon.campaign.store import RunDirectory, readable
from hoplon.errors import HoplonError, StoreError, checked
from hoplon.faults.table import FaultTable, Target, dtypes_of
from hoplon.formats.base import Field
from hoplon.formats.named import format_named
from hoplon.program.decoding.sites import MOMENT, PREFILL
from hoplon.program.sites import Site, ValueSite
from hoplon.report.text import only_crashes, packed_kernels
from hoplon.stats.intervals import wilson
from hoplon.stats.two_stage import TwoStagePlan

_KEYS = ("layer", "kind", "bit", "field", "direction", "input", "operator", "step")
_FIELDS: tuple[Field, ...] = ("sign", "exponent", "mantissa")
_DIGEST_FAULTS = {"values": 2**18, "memory": 2**12}

Bins = Annotated[int, Ge(1), Le(10**6)]


@checked
@dataclass(frozen=True, eq=False)
class Results:
    """Records of a campaign and the figures they give: columnar, read lazily from disk where a run directory holds it.

    ``confidence`` is what the intervals carry; ``level`` is what each is computed at (higher after sequential
    stopping, so that they cover at ``confidence`` whenever the campaign stopped). ``design``: of a campaign in two
    phases, whose faults do not count alike; its runs have the columns ``cell``, ``weight`` and
    ``proven`` (the fault is known to be masked, and no run was spent on it). ``prediction``: of a campaign that went on
    to a precision, the runs, seconds and memory that its pilot led to expect, and what it came to.
    """

    target: Target
    criteria: tuple[str, ...]
    confidence: float
    level: float
    lazy_runs: pl.LazyFrame = field(repr=False)
    lazy_faults: pl.LazyFrame = field(repr=False)
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    path: Path | None = None
    design: Design | None = None
    prediction: str | None = None

    @property
    def split(self) -> TwoStagePlan | None:
        """Plan of the batches of inputs that each memory fault met; None where that was not chosen: all."""
        return None if self.design is None else self.design.split

    @property
    def decoding(self) -> bool:
        """Tell whether the faults struck values of a decoding loop, so that sites have steps."""
        replay = self.manifest.get("execution", {}).get("replay")
        return self.target == "values" and replay == "along golden tokens"

    @property
    def faults(self) -> FaultTable:
        """The fault table, with the words that the faults met; of a campaign in two phases, with weights."""
        with readable(self.path):
            frame = self.lazy_faults.collect()
            if self.design is not None:
                runs = self.lazy_runs.select("fault", "weight", "candidates", cs.by_name("pooled", require_all=False))
                weights = runs.unique("fault").collect()
                frame = frame.join(weights, on="fault", how="left", maintain_order="left")
            return FaultTable(self.target, frame)

    @property
    def runs(self) -> pl.DataFrame:
        """One row per run: fault, input, outcome by criterion, its measures, detected, corrected, reached, cause.

        The cause is of a crash ("exception", "hang", "death"), null of all other runs.
        """
        with readable(self.path):
            return self.lazy_runs.collect()

    @property
    def candidates(self) -> int | None:
        """The fewest first-phase draws that the weight of a fault is counted from; None: they are known, or all alike.

        Faults of a campaign in two phases bring it along into other arms.
        """
        if "candidates" not in self.lazy_runs.collect_schema().names():
            return None
        found: int | None = self.lazy_runs.select(pl.col("candidates").min()).collect().item()
        return found

    def digest(self) -> str:
        """SHA-256 of all records, faults and runs in their order, 64 hexadecimal digits.

        Equal for equal records, whatever the order in which units finished, the number of workers, and how often the
        campaign was stopped and resumed. Times are no records, nor are the causes of crashes.
        """
        digest = hashlib.sha256(repr((self.target, self.criteria)).encode())
        chunk = _DIGEST_FAULTS[self.target]
        with readable(self.path):
            last = self.lazy_faults.select(pl.col("fault").max()).collect().item()
            for first in range(0, -1 if last is None else last + 1, chunk):
                mine = pl.col("fault").is_between(first, first + chunk - 1)
                faults = FaultTable(self.target, self.lazy_faults.filter(mine).collect())
                digest.update(faults.digest().encode())
                for column in self.lazy_runs.filter(mine).drop("cause", strict=False).collect().sort("fault", "input"):
                    digest.update(f"\n{column.name}\n".encode())
                    words = (column.to_physical() if column.dtype == pl.Enum else column).to_numpy()
                    digest.update(words.astype(words.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def summary(self) -> tuple[Rate, ...]:
        """The rate under each criterion, over all runs."""
        with readable(self.path):
            return tuple(rate_of(self.lazy_runs, name, **self._options) for name in self.criteria)

    def by(self, *keys: str, criterion: str | None = None) -> pl.DataFrame:
        """Rates in groups: ``by("layer")``, or jointly, ``by("layer", "bit")``.

        Keys: "layer", the site; "operator" and "step", of a decoding loop, the site without its step, and the step (0:
        the prefill; null elsewhere); "kind", the operator, or for memory the operators that read it ("conv+linear");
        "bit", the one bit that can change; "field" of the format that can change ("sign", "exponent", "mantissa");
        "direction" in which bits changed ("0->1", "1->0"); "input". A fault in several words belongs to the site of
        its first; where bits or words differ, "field" and "direction" are "several" and "bit" is null. Formats without
        fields have none, and faults that changed nothing no direction (null).

        Args:
            criterion: a name out of ``criteria``; the first by default.
        Returns:
            One row per group: the keys, failure with its limits, sdc, nonfinite, crash with its limits, n_faults,
            n_inputs, n_runs.
        Raises:
            HoplonError: no key, an unknown one or one given twice, or an unknown criterion.
        """
        if not keys or not set(keys) <= set(_KEYS) or len(set(keys)) < len(keys):
            raise HoplonError(f"expected keys out of {', '.join(_KEYS)}, each once, got {', '.join(map(repr, keys))}")
        runs = self._outcomes(criterion)
        if keys != ("input",):
            runs = runs.join(self._groups().lazy(), on="fault", how="left")
        with readable(self.path):
            rates = rates_by(runs, keys, "outcome", **self._options)
        rows = [{**dict(zip(keys, group, strict=True)), **rate.as_row()} for group, rate in rates]
        return pl.DataFrame(rows, infer_schema_length=None)

    def per_fault(self, *, criterion: str | None = None) -> pl.DataFrame:
        """Damage of each memory fault: the share of inputs that fail.

        Where a fault met a part of the inputs only (``n_inputs``; see `split`), its share is an estimate.

        Returns:
            One row per fault: ``fault``; ``site`` and ``element`` of its first word, ``words`` (how many), ``bit`` (the
            one that can change, or null); ``failure``, ``sdc``, ``nonfinite`` and ``crash``, shares of its ``n_inputs``
            inputs.
        Raises:
            HoplonError: a campaign of value faults, which meet one input each; an unknown criterion.
        """
        if self.target != "memory":
            raise HoplonError("expected memory faults, which meet many inputs, got value faults; use by() or runs")
        outcome = pl.col("outcome").cast(pl.String)
        shares = [(outcome == name).sum().alias(name) / pl.len() for name in (*FAILURES, "crash")]
        failed = outcome.is_in(FAILURES).sum() / pl.len()
        counted = self._outcomes(criterion).group_by("fault").agg(failed.alias("failure"), *shares, n_inputs=pl.len())
        with readable(self.path):
            found = counted.collect(engine="streaming")
        words = self.faults.frame.with_columns(self.faults.bits)
        places = words.group_by("fault", maintain_order=True).agg(
            pl.col("site", "element").first(), words=pl.len(), bit=_agreed("bit", None)
        )
        return places.join(found, on="fault", how="inner").sort("fault")

    def distribution(
        self, bins: Annotated[int, Ge(1), Le(10**6)] | Sequence[float] = 10, *, criterion: str | None = None
    ) -> pl.DataFrame:
        """Histogram of memory faults by the share of inputs that they make fail.

        Args:
            bins: how many of equal width, or their edges, rising from 0 to 1. A fault on an edge belongs to the bin
                below, one that fails no input to the first; so faults in bins above an edge are those of
                `critical_share` at that threshold.
        Returns:
            One row per bin: ``above``, ``up_to`` (the edges), ``count``, ``n_faults``, ``share`` of the faults with
            its Wilson limits ``share_low`` and ``share_high``.
        Raises:
            HoplonError: bins that do not part 0 to 1; faults that met a part of the inputs; see `per_fault`.
        Source:
            Aspis, figures 6 and 13.
        """
        edges = np.arange(bins + 1) / bins if isinstance(bins, int) else np.array(bins, dtype=np.float64)
        if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not (np.diff(edges) > 0).all():
            raise HoplonError(f"expected a number of bins or edges that rise from 0 to 1, got {bins}")
        shares = self._whole_shares(criterion)
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
            HoplonError: a threshold outside of [0, 1); faults that met a part of the inputs; see `per_fault`.
        Source:
            Aspis, section IV-A, which counts critical weights and leaves the threshold open.
        """
        for threshold in thresholds:
            if not 0 <= threshold < 1:
                raise HoplonError(f"expected thresholds in [0, 1), as shares of the inputs, got {threshold}")
        shares = self._whole_shares(criterion)
        rows = [{"threshold": float(t), **self._share(int((shares > t).sum()), len(shares))} for t in thresholds]
        return pl.DataFrame(rows)

    def _whole_shares(self, criterion: str | None) -> np.ndarray:
        """By fault, the share of all inputs that fail; a part of them does not tell what is above a threshold."""
        if self.split is not None and self.split.partial:
            raise HoplonError(
                f"expected faults that met all inputs, got a campaign in which {self.split}; "
                "run(count=...), whose faults meet all of them"
            )
        return self.per_fault(criterion=criterion)["failure"].to_numpy()

    def _share(self, count: int, n_faults: int) -> dict[str, float | int]:
        interval = wilson(count, n_faults, confidence=self.level)
        return {
            "count": count,
            "n_faults": n_faults,
            "share": interval.estimate,
            "share_low": interval.low,
            "share_high": interval.high,
        }

    def failing_shares(self, criterion: str | None = None) -> NDArray[np.float64]:
        """By fault, in the order of their numbers, the share of its runs that fail: float64, shape ``(faults,)``.

        Raises:
            HoplonError: an unknown criterion.
        """
        failed = pl.col("outcome").cast(pl.String).is_in(FAILURES).mean()
        return self._outcomes(criterion).group_by("fault").agg(failed).sort("fault").collect()["outcome"].to_numpy()

    def _outcomes(self, criterion: str | None) -> pl.LazyFrame:
        """Fault, input and outcome of every run under one criterion."""
        chosen = self.criteria[0] if criterion is None else criterion
        if chosen not in self.criteria:
            raise HoplonError(f"expected a criterion of {', '.join(self.criteria)}, got {chosen!r}")
        more = ["cause"] if self.design is None else ["cause", "weight", "proven"]
        there = [name for name in more if name in self.lazy_runs.collect_schema()]
        return self.lazy_runs.select("fault", "input", pl.col(chosen).alias("outcome"), *there)

    @property
    def is_complete(self) -> bool:
        """True if all the faults there are have been run, so that nothing is left to chance."""
        return self.manifest.get("population") is not None and self.manifest["population"] == self.manifest["count"]

    @property
    def _options(self) -> dict[str, Any]:
        return {"target": self.target, "confidence": self.level, "complete": self.is_complete}

    def _groups(self) -> pl.DataFrame:
        """Keys that `by` groups faults on: one row per fault."""
        table = self.faults
        kinds = {str(name): str(kind) for name, kind in self.manifest.get("kinds", {}).items()}
        kind = pl.col("site").cast(pl.String).replace_strict(kinds, default=None, return_dtype=pl.String)
        words = table.frame.with_columns(table.bits, _field(table), _direction(), *_moment())
        return words.group_by("fault").agg(
            pl.col("site").first().alias("layer"),
            pl.col("operator", "step").first(),
            kind.first().alias("kind"),
            bit=_agreed("bit", None),
            field=_agreed("field", "several"),
            direction=_agreed("direction", "several"),
        )

    def __str__(self) -> str:
        split = [] if self.split is None else [str(self.split)]
        told = [line for line in (self.only_crashes(), self.prediction, packed_kernels(self.manifest)) if line]
        return "\n".join([*map(str, self.summary()), *split, *told])

    def only_crashes(self, *, criterion: str | None = None) -> str | None:
        """A line about the layers at which every run crashed; None where there are none.

        Args:
            criterion: a name out of ``criteria``; the first by default.
        """
        with readable(self.path):
            crashed = self._outcomes(criterion).select((pl.col("outcome") == "crash").any()).collect().item()
        return only_crashes(self.by("layer", criterion=criterion).to_dicts()) if crashed else None


_RUNS: Mapping[str, type[pl.DataType]] = {
    "fault": pl.Int64,
    "input": pl.Int64,
    "detected": pl.Boolean,
    "corrected": pl.Boolean,
    "reached": pl.Boolean,
    "cause": pl.Enum,
}
_OF_STRATA: Mapping[str, type[pl.DataType]] = {"cell": pl.Int32, "proven": pl.Boolean}


@checked
def load_results(path: str | os.PathLike[str]) -> Results:
    """The results in a run directory.

    Of a run that was stopped, those of its units from the first on, up to the first that is missing.

    Raises:
        StoreError: no run there, a damaged one, or no finished unit yet.
    """
    directory = RunDirectory(Path(path))
    manifest = directory.manifest(Manifest)
    units = directory.finished_from_start()
    if not units:
        raise StoreError(f"expected at least one finished unit in {path}, got none; resume the run")
    design = directory.design()
    if design is not None and design.shares and units < (design.units or 0):
        raise StoreError(f"expected {design.units} units in {path}, got {units}; resume the run, which runs the others")
    if design is None and manifest.get("half_width") is not None:
        raise StoreError(f"expected a design of the runs in {path}, got none; resume the run, which makes it again")
    return stored_results(directory, manifest, units, design=design)


def stored_results(
    directory: RunDirectory, manifest: Mapping[str, Any], units: int, *, design: Design | None = None
) -> Results:
    """Results over the first units of a run directory."""
    strata = design is not None and bool(design.shares)
    with readable(directory.path):
        faults, runs = (directory.read(folder, units) for folder in ("faults", "runs"))
        _require_columns(directory.path, "faults", faults, dtypes_of(manifest["target"]))
        outcomes = dict.fromkeys(manifest["criteria"], pl.Enum)
        _require_columns(directory.path, "runs", runs, {**_RUNS, **outcomes, **(_OF_STRATA if strata else {})})
        return _results(manifest, design, faults, runs, directory.path)


def _require_columns(path: Path, what: str, there: pl.LazyFrame, wanted: Mapping[str, type[pl.DataType]]) -> None:
    """Refuse shards that lack a column or have it in another dtype."""
    schema = there.collect_schema()
    if wrong := [name for name, dtype in wanted.items() if schema.get(name, pl.Null()).base_type() is not dtype]:
        raise StoreError(
            f"expected {what} in {path} with the columns that hoplon writes, got others for {', '.join(wrong)}; "
            "run the campaign again"
        )


def held_results(
    manifest: Mapping[str, Any], units: Sequence[tuple[FaultTable, pl.DataFrame]], *, design: Design | None = None
) -> Results:
    """Results over units held in memory."""
    faults, runs = (pl.concat(part).lazy() for part in zip(*((table.frame, run) for table, run in units), strict=True))
    return _results(manifest, design, faults, runs, None)


def _results(
    manifest: Mapping[str, Any], design: Design | None, faults: pl.LazyFrame, runs: pl.LazyFrame, path: Path | None
) -> Results:
    confidence = float(manifest["confidence"])
    strata = design if design is not None and design.shares else None
    if strata is not None:
        runs = strata.weighted(runs) if path is not None else strata.weighted(runs).collect().lazy()
    return Results(
        target=manifest["target"],
        criteria=tuple(manifest["criteria"]),
        confidence=confidence,
        level=confidence if design is None else design.level,
        lazy_runs=runs,
        lazy_faults=faults,
        manifest=manifest,
        path=path,
        design=strata,
        prediction=None if design is None else design.prediction,
    )


def site_kinds(sites: Iterable[Site]) -> dict[str, str]:
    """For a manifest: the operator of each site by its name; for memory the operators that read it, joined by "+"."""
    return {site.name: site.kind if isinstance(site, ValueSite) else "+".join(sorted(site.kinds)) for site in sites}


def _agreed(column: str, otherwise: str | None) -> pl.Expr:
    """The value in which all words of a fault agree."""
    return pl.when(pl.col(column).n_unique() == 1).then(pl.col(column).first()).otherwise(pl.lit(otherwise))


def _field(table: FaultTable) -> pl.Expr:
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
    return found.alias("field")


def _moment() -> tuple[pl.Expr, pl.Expr]:
    """The site without its decoding step, and the step."""
    site = pl.col("site").cast(pl.String)
    later = site.str.extract(MOMENT, 1).cast(pl.Int64)
    step = pl.when(site.str.ends_with(PREFILL)).then(pl.lit(0, dtype=pl.Int64)).otherwise(later)
    return site.str.replace(MOMENT, "").alias("operator"), step.alias("step")


def _direction() -> pl.Expr:
    """Column `direction`: which way bits changed, per row; null where none did."""
    rises, falls = ((pl.col(a) & ~pl.col(b)) != 0 for a, b in (("after", "before"), ("before", "after")))
    found = pl.when(rises & falls).then(pl.lit("several")).when(rises).then(pl.lit("0->1"))
    return found.when(falls).then(pl.lit("1->0")).otherwise(None).alias("direction")
