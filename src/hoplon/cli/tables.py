"""Results of one campaign as tables for a terminal and as one document."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from rich.table import Table

from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results

_MOST_ROWS = 40


def document(results: Results) -> dict[str, Any]:
    """Everything a campaign found, as plain values; what was not measured is None."""
    found: dict[str, Any] = {
        "format": 1,
        "target": results.target,
        "confidence": results.confidence,
        "level": results.level,
        "summary": [_rate_row(rate) for rate in results.summary()],
        "prediction": results.prediction,
        "split": None if results.split is None else str(results.split),
        "by_layer": {name: rows(results.by("layer", criterion=name)) for name in results.criteria},
        "by_bit": {name: rows(results.by("bit", criterion=name)) for name in results.criteria},
    }
    if results.target == "memory" and not (results.split is not None and results.split.partial):
        found["critical_share"] = {name: rows(results.critical_share(criterion=name)) for name in results.criteria}
        found["distribution"] = {name: rows(results.distribution(criterion=name)) for name in results.criteria}
    return {**found, "digest": results.digest(), "manifest": dict(results.manifest)}


def _rate_row(rate: Rate) -> dict[str, Any]:
    parts = {
        f"{name}_{end}": getattr(getattr(rate, name), end) for name in ("sdc", "nonfinite") for end in ("low", "high")
    }
    row = {"criterion": rate.criterion, **rate.as_row(), **parts, "outcomes": dict(rate.counts)}
    return {key: plain(value) for key, value in row.items()} | {"method": rate.failure.method}


def plain(value: Any) -> Any:
    """The value as JSON has it: None for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def rows(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """A frame as a list of plain rows."""
    return [{key: plain(value) for key, value in row.items()} for row in frame.iter_rows(named=True)]


def tables(found: Mapping[str, Any]) -> list[Table]:
    """Tables of a document: the summary, then by layer and by bit, and for memory faults the critical share."""
    first = found["summary"][0]
    what = "Value" if found["target"] == "values" else "Memory"
    title = (
        f"{what} faults: {first['n_faults']:,} faults, {first['n_inputs']:,} inputs, {first['n_runs']:,} runs; "
        f"{first['method']} {100 * found['confidence']:g} %"
    )
    shown = [_table(title, ("criterion",), found["summary"])]
    told = [found[key] for key in ("split", "prediction") if found.get(key)]
    if found.get("split") and "critical_share" not in found:
        told.insert(1, "critical faults are not counted: that takes all inputs of each fault, as with --count")
    shown[0].caption = "\n".join(told) or None
    for name in found["by_layer"]:
        worst = sorted(found["by_layer"][name], key=lambda row: -(row["failure"] or 0))
        shown.append(_table(f"By layer, worst first; {name}", ("layer",), worst))
        shown.append(_table(f"By bit; {name}", ("bit",), found["by_bit"][name]))
        if "critical_share" in found:
            shown.append(_critical(name, found["critical_share"][name]))
    return shown


def _table(title: str, keys: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for key in keys:
        table.add_column(key)
    for column in ("failure", "sdc", "nonfinite", "faults", "runs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in found[:_MOST_ROWS]:
        named = ["several" if row[key] is None else str(row[key]) for key in keys]
        shares = [percent(row[name]) for name in ("sdc", "nonfinite")]
        table.add_row(*named, interval(row, "failure"), *shares, f"{row['n_faults']:,}", f"{row['n_runs']:,}")
    if len(found) > _MOST_ROWS:
        table.caption = f"{len(found) - _MOST_ROWS} more rows in results.json and in --json"
    return table


def _critical(name: str, found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(
        title=f"Critical share: faults that fail more than a share of the inputs; {name}", title_justify="left"
    )
    for column in ("fail more than", "share of faults", "faults"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(
            f"{100 * row['threshold']:g} %", interval(row, "share"), f"{row['count']:,} of {row['n_faults']:,}"
        )
    return table


def interval(row: Mapping[str, Any], name: str) -> str:
    """An estimate with its limits, in percent."""
    return f"{percent(row[name])} [{100 * row[f'{name}_low']:.2f}, {100 * row[f'{name}_high']:.2f}]"


def percent(value: float | None) -> str:
    """A probability in percent."""
    return "not measured" if value is None else f"{100 * value:.2f} %"
