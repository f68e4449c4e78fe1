"""What a campaign is pinned by: a digest of its faults and outcomes under their old names, counts and rates."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import polars as pl

import hoplon as hp
from tests.pins.renames import COLUMNS, FORMATS, KINDS, LABELS, OUTCOMES, pinned_name, renamed

Record = dict[str, Any]

_FAULT_COLUMNS = ("fault", "site", "element", "input", "format", "keep", "flip", "before", "after", "probability")
_WEIGHT_COLUMNS = ("weight", "candidates")  # where faults do not count alike
_RUN_COLUMNS = ("fault", "input", "detected", "corrected")
_VALUE_SITE = re.compile(r"(?P<owner>[^:]*):(?P<kind>[^.#]+)(?:\.(?P<call>\d+))?(?:#(?P<output>\d+))?")


def record(results: hp.Results) -> Record:
    """The digest of a campaign, what it is made of column by column, and the figures that explain a mismatch."""
    faults, runs = _fault_rows(results), _run_rows(results)
    columns = {f"faults/{name}": _digest(values) for name, values in faults.items()}
    columns |= {f"runs/{name}": _digest(values) for name, values in runs.items()}
    return {
        "digest": _digest([f"{name} {digest}" for name, digest in sorted(columns.items())]),
        "columns": {name: digest[:8] for name, digest in columns.items()},
        "faults": len(results.faults),
        "runs": results.runs.height,
        "summary": {pinned_name(COLUMNS, rate.criterion): _rate(rate) for rate in results.summary()},
    }


def _rate(rate: hp.campaign.Rate) -> Record:
    """One rate in plain figures."""
    found = {"failure": rate.failure, "sdc": rate.sdc, "nonfinite": rate.nonfinite}
    figures: Record = {
        name: [float(_text(limit)) for limit in (interval.low, interval.estimate, interval.high)]
        for name, interval in found.items()
    }
    counts = {pinned_name(OUTCOMES, outcome): count for outcome, count in rate.counts.items()}
    return {**figures, "counts": dict(sorted(counts.items()))}


def _fault_rows(results: hp.Results) -> dict[str, list[str]]:
    """Columns of the fault table as texts, by their old names, in an order of their own."""
    frame = results.faults.frame
    there = [name for name in (*_FAULT_COLUMNS, *_WEIGHT_COLUMNS) if renamed(COLUMNS, name) in frame.columns]
    found = frame.select(pl.col(renamed(COLUMNS, name)).alias(name) for name in there)
    found = found.with_columns(pl.col("site").cast(pl.String), pl.col("format").cast(pl.String))
    found = found.sort("fault", "site", "element", maintain_order=True)
    rows = {name: [_text(value) for value in found[name]] for name in there if name != "site"}
    rows["format"] = [pinned_name(FORMATS, name) for name in rows["format"]]
    places = [_place(site) for site in found["site"]]
    for number, name in enumerate(("owner", "kind", "call", "output")):
        rows[name] = [place[number] for place in places]
    return rows


def _run_rows(results: hp.Results) -> dict[str, list[str]]:
    """Columns of the runs as texts, by their old names, in the order of faults and inputs."""
    runs = results.runs.sort(renamed(COLUMNS, "fault"), renamed(COLUMNS, "input"))
    rows = {name: [_text(value) for value in runs[renamed(COLUMNS, name)]] for name in _RUN_COLUMNS}
    for criterion in results.criteria:
        outcomes = runs[criterion].cast(pl.String)
        rows[pinned_name(COLUMNS, criterion)] = [pinned_name(OUTCOMES, outcome) for outcome in outcomes]
    return rows


def _place(site: str) -> tuple[str, str, str, str]:
    """Owner, kind, call and output of a value site; of a memory site its name alone."""
    match = _VALUE_SITE.fullmatch(site)
    if match is None:
        label, slash, name = site.partition("/")
        return (f"{pinned_name(LABELS, label)}{slash}{name}", "", "", "")
    return match["owner"], pinned_name(KINDS, match["kind"]), match["call"] or "0", match["output"] or "0"


def _text(value: Any) -> str:
    """A value as text; floats to nine digits, so that the last bits of a sum do not matter."""
    return f"{value:.8e}" if isinstance(value, float) else str(value)


def _digest(lines: list[str]) -> str:
    """SHA-256 of texts, line by line."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
