"""Faults of a run directory, injected again into another model, and the difference that the model makes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import polars as pl

from hoplon.campaign.manifest import FORMAT, protected_by, provenance
from hoplon.campaign.rates import Rate, rate_of
from hoplon.campaign.results import Results, held_results, load_results, stored_results
from hoplon.campaign.runner import Progress
from hoplon.campaign.store import RunDirectory
from hoplon.comparison.pairing import Paired, paired
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import as_criterion
from hoplon.errors import Count, DataError, HoplonError, Share, SiteError, StoreError, checked
from hoplon.faults.table import FaultTable
from hoplon.formats.dtypes import Native
from hoplon.formats.named import format_named
from hoplon.injection.golden_run import GoldenRun
from hoplon.injection.injector import Injector
from hoplon.injection.replay.golden import Placement
from hoplon.program.inputs import as_inputs
from hoplon.program.program import Program
from hoplon.program.sites import MemorySite, Site
from hoplon.protections.base import Protection, overlay
from hoplon.report.document import with_limits
from hoplon.report.text import signed_points


@final
@dataclass(frozen=True, eq=False)
class Rerun:
    """A run and the same faults in another model.

    ``original``: the stored results; ``results``: those of the other model. ``rates``: by criterion, those of the
    original and of the other model, on the runs that both have; ``paired``: by criterion, the other model against the
    original. ``left_out``: runs of the original that the other model has no counterpart of, since it gets the input
    wrong without a fault. ``same_inputs``: True if both met the same data.
    """

    original: Results
    results: Results
    rates: Mapping[str, tuple[Rate, Rate]]
    paired: Mapping[str, Paired]
    left_out: int
    same_inputs: bool

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        criteria = {}
        for name, pair in self.paired.items():
            before, after = self.rates[name]
            criteria[name] = {
                "original": before.as_row() | {"outcomes": dict(before.counts)},
                "other": after.as_row() | {"outcomes": dict(after.counts)},
                **with_limits("difference", pair.difference),
                "method": pair.difference.method,
                "p_value": pair.p_value,
                "only_other_fails": pair.only_first,
                "only_original_fails": pair.only_second,
                "n_runs": pair.n_runs,
                "n_faults": pair.n_faults,
            }
        return {
            "format": 1,
            "target": self.results.target,
            "original": dict(self.original.manifest["program"]),
            "other": dict(self.results.manifest["program"]),
            "criteria": criteria,
            "left_out": self.left_out,
            "same_inputs": self.same_inputs,
            "confidence": self.results.confidence,
            "digest": self.results.digest(),
            "manifest": dict(self.results.manifest),
        }

    def __str__(self) -> str:
        lines = []
        for name, pair in self.paired.items():
            before, after = self.rates[name]
            test = "" if pair.p_value is None else f"; McNemar p = {pair.p_value:.2g}"
            gap = pair.difference
            names = [side.manifest["program"]["name"] for side in (self.original, self.results)]
            lines.append(
                f"{name}: failure {before.failure}, crash {before.crash} in the original ({names[0]}); {after.failure} "
                f"and {after.crash} in the other ({names[1]}), on the same {pair.n_faults} faults "
                f"({pair.n_runs} runs); difference "
                f"{signed_points(gap.estimate, gap.low, gap.high)} points ({gap.method}, "
                f"{100 * self.results.confidence:g} %); only the original fails in {pair.only_second} runs, only "
                f"the other in {pair.only_first}{test}"
            )
        return "\n".join(lines)


@checked
def rerun(
    run: str | os.PathLike[str],
    program: Program,
    data: Any,
    *,
    criterion: Criterion | Sequence[Criterion] | None = None,
    protections: Sequence[Protection] = (),
    placement: Placement | None = None,
    batch: Count | None = None,
    confidence: Share | None = None,
    store: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Rerun:
    """Inject the faults of a run directory into another model and compare with the stored outcomes, fault by fault.

    Element, format, bits and (for value faults) input of every fault are those of the run. At equal batch and threads
    the model of the run gives its records again, bit for bit.

    Args:
        run: the run directory; of a stopped run, the units that are finished.
        program: the other model.
        data: for value faults that of the run; for memory faults preferably.
        criterion: that of the run; found by itself where it is top-k.
        protections: what is in place in the other model.
        placement, batch, confidence: those of the run by default.
        store: a folder for the run directory of the other model; in memory by default.
        resume: resume the run in ``store``.
        progress: told finished and total faults.
    Raises:
        SiteError: sites that the model lacks, or where a fault does not fit; all are listed.
        DataError: value faults and other data. HoplonError: another criterion than the run's.
        StoreError: no run, a damaged one, or a folder that cannot be written.
    """
    source, original = RunDirectory(Path(run)), load_results(run)
    manifest, inputs = original.manifest, as_inputs(data)
    _require_sites(original, program, source.path)
    same_inputs = manifest["data"]["digest"] == inputs.digest()
    if original.target == "values" and not same_inputs:
        raise DataError(
            f"expected the data of the run, {manifest['data']['name']!r} with {manifest['data']['inputs']} inputs, got "
            f"{inputs.name!r} with {len(inputs)}; value faults are tied to their inputs, so give the same samples"
        )
    chosen = as_criterion(criterion) if criterion is not None else _top_k(manifest)
    if repr(chosen) != manifest["criterion"]:
        raise HoplonError(f"expected the criterion of the run, {manifest['criterion']}, got {chosen!r}; give that one")
    size = program.signature.fixed_batch or batch or manifest["batch"]
    reference = GoldenRun.run(program, inputs, chosen, batch=size)
    where = placement or manifest["placement"]
    evaluator = Injector(reference, overlay(program, protections), where, manifest.get("arrival", "before"))
    level = confidence or original.confidence
    own = _manifest(original, reference, tuple(protections), where, level)
    directory = None if store is None else RunDirectory.create(store, own, resume=resume)
    units, design = source.finished_from_start(), source.design()
    with directory.writing() if directory else nullcontext():
        shards = _rerun(source, units, evaluator, directory, progress, len(original.faults))
    if directory is None:
        return _compared(original, held_results(own, shards, design=design), same_inputs=same_inputs)
    if design is not None:
        directory.record_design(design, units)
    results = stored_results(directory, own, units, design=design)
    return _compared(original, results, same_inputs=same_inputs)


def _rerun(
    source: RunDirectory,
    units: int,
    evaluator: Injector,
    directory: RunDirectory | None,
    progress: Progress | None,
    total: int,
) -> list[tuple[FaultTable, pl.DataFrame]]:
    """Run the units one after the other; those that a resumed run has already are not run again."""
    shards: list[tuple[FaultTable, pl.DataFrame]] = []
    target = source.manifest()["target"]
    eligible = evaluator.reference.eligible.tolist()
    finished, done = 0, set() if directory is None else directory.finished()

    def advance(faults: int) -> None:
        nonlocal finished
        finished += faults
        if progress is not None:
            progress(finished, total)

    for unit in range(units):
        struck, before = source.unit(unit, target)
        table = struck.plan()
        count = len(table)
        if target == "values":
            table = FaultTable(target, table.frame.filter(pl.col("input").is_in(eligible)))
        advance(count - len(table))
        if unit in done:
            advance(len(table))
            continue
        runs, observed = evaluator.runs(table, advance=advance)
        if "cell" in before.columns:  # what a fault stands for does not depend on the model that meets it
            cells = before.select("fault", "cell", "proven").unique("fault")
            runs = runs.join(cells, on="fault", how="left", maintain_order="left")
        if directory is None:
            shards.append((observed, runs))
        else:
            directory.write(unit, observed, runs)
    return shards


def _compared(original: Results, results: Results, *, same_inputs: bool) -> Rerun:
    sides = (original.lazy_runs, results.lazy_runs)
    common = [a.join(b, on=["fault", "input"], how="semi") for a, b in (sides, sides[::-1])]
    rates, pairs = {}, {}
    options: dict[str, Any] = {"target": results.target, "confidence": results.confidence}
    for name in results.criteria:
        before, after = (rate_of(runs, name, **options) for runs in common)
        rates[name] = (before, after)
        pairs[name] = paired(sides[1], sides[0], name, **options)
    n_runs = int(sides[0].select(pl.len()).collect().item())
    left_out = n_runs - next(iter(pairs.values())).n_runs
    return Rerun(original, results, rates, pairs, left_out, same_inputs)


def _manifest(
    original: Results, reference: GoldenRun, protections: tuple[Protection, ...], placement: Placement, level: float
) -> dict[str, Any]:
    """As that of a campaign, with the records of the original in the place of a plan."""
    return {
        **provenance(reference, placement=placement, confidence=level),
        **protected_by(protections),
        "format": FORMAT,
        "target": original.target,
        "replayed": {"digest": original.digest(), "program": original.manifest["program"]},
        "kinds": original.manifest.get("kinds", {}),
    }


def _top_k(manifest: Mapping[str, Any]) -> Criterion:
    """Return the criterion of the run, where its names say all about it."""
    known = [criterion for name in manifest["criteria"] if (criterion := TopK.named(name)) is not None]
    if len(known) == len(manifest["criteria"]) > 0:
        chosen = as_criterion(known if len(known) > 1 else known[0])
        if repr(chosen) == manifest["criterion"]:
            return chosen
    raise HoplonError(f"expected the criterion of the run, {manifest['criterion']}, got none; give it")


def _require_sites(original: Results, program: Program, run: Path) -> None:
    """Refuse a model in which some fault has no place, naming every site that is to blame."""
    struck = (
        original.lazy_faults.with_columns(pl.col("site", "format").cast(pl.String))
        .group_by("site", "format", maintain_order=True)
        .agg(pl.col("element").max())
        .collect()
    )
    if sum(struck.null_count().row(0)):
        raise StoreError(f"expected faults in {run} with a site and an element each, got some without; run it again")
    sites: dict[str, Site] = {site.name: site for site in (*program.value_sites, *program.input_sites)}
    if original.target == "memory":
        sites = {name: site for site in program.memory_sites for name in (site.name, *site.aliases)}
    lacking = [
        f"{row['site']}{problem}"
        for row in struck.iter_rows(named=True)
        if (problem := _problem(sites.get(row["site"]), row["format"], row["element"])) is not None
    ]
    if lacking:
        raise SiteError(
            f"expected the sites struck in {run} in {program.name}, got {len(lacking)} of {struck.height} that it "
            f"lacks or that do not fit: {', '.join(lacking)}; replay a run whose sites the model has"
        )


def _problem(site: Site | None, form: str, element: int) -> str | None:
    """Say why faults in this format up to this element do not fit a site; an empty text where there is none."""
    if site is None:
        return ""
    if element >= site.numel:
        what = "a storage" if isinstance(site, MemorySite) else "an output"
        return f" ({what} of {site.numel} elements, struck at {element})"
    number_format = format_named(form)
    if isinstance(number_format, Native) and number_format.dtype != site.dtype:
        return f" ({str(site.dtype).removeprefix('torch.')}, struck as {form})"
    return None
