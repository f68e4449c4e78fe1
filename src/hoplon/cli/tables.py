"""Results of one campaign as tables for a terminal and as one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results
from hoplon.report.document import plain, with_limits
from hoplon.report.text import crashed, interval, only_crashes, packed_kernels, percent
from hoplon.report.text_table import TextTable

_MOST_ROWS = 40
_NOT_COUNTED = (
    "Critical faults are not counted here: with --half-width each fault meets a sample of the inputs. Use --count."
)


def document(results: Results) -> dict[str, Any]:
    """Everything a campaign found, as plain values; what was not measured is None."""

    def by_criterion(view: Callable[..., pl.DataFrame], *arguments: str) -> dict[str, Any]:
        return {name: plain(view(*arguments, criterion=name).to_dicts()) for name in results.criteria}

    found: dict[str, Any] = {
        "format": 1,
        "target": results.target,
        "confidence": results.confidence,
        "level": results.level,
        "summary": [_rate_row(rate) for rate in results.summary()],
        "prediction": results.prediction,
        "split": None if results.split is None else str(results.split),
        "by_layer": by_criterion(results.by, "layer"),
        "by_bit": by_criterion(results.by, "bit"),
    }
    if results.target == "memory" and not (results.split is not None and results.split.partial):
        found["critical_share"] = by_criterion(results.critical_share)
        found["distribution"] = by_criterion(results.distribution)
    if results.decoding:
        found |= {"by_operator": by_criterion(results.by, "operator"), "by_step": by_criterion(results.by, "step")}
    return {**found, "digest": results.digest(), "manifest": dict(results.manifest)}


def _rate_row(rate: Rate) -> dict[str, Any]:
    shares = with_limits("sdc", rate.sdc) | with_limits("nonfinite", rate.nonfinite)
    counts = {"outcomes": dict(rate.counts), "causes": dict(rate.causes)}
    row = {"criterion": rate.criterion, **rate.as_row(), **shares, **counts}
    return {key: plain(value) for key, value in row.items()} | {"method": rate.failure.method}


def tables_of(found: Mapping[str, Any]) -> list[TextTable]:
    """Tables of a document: the summary, then by layer and by bit, and for memory faults the critical share.

    Values of decoding loops go by operator and by step instead of by layer.
    """
    first = found["summary"][0]
    title = (
        f"{'Value' if found['target'] == 'values' else 'Memory'} faults: {first['n_faults']:,} faults, "
        f"{first['n_inputs']:,} inputs, {first['n_runs']:,} runs; {first['method']} {100 * found['confidence']:g} %"
    )
    notes = [found[key] for key in ("split", "prediction") if found.get(key)]
    if found.get("split") and "critical_share" not in found:
        notes.insert(1, _NOT_COUNTED)
    if (kernels := packed_kernels(found["manifest"])) is not None:
        notes.append(kernels)
    shown = [_rates(title, "criterion", found["summary"], "\n".join(notes))]
    for name in found["by_layer"]:
        place = "operator" if "by_operator" in found else "layer"  # a site of a decoding loop has few faults
        worst = sorted(found[f"by_{place}"][name], key=lambda row: -(row["failure"] or 0))
        crashes = only_crashes(found["by_layer"][name]) or ""
        shown.append(_rates(f"By {place}, worst first; {name}", place, worst, crashes))
        if "by_step" in found:
            shown.append(_rates(f"By decoding step, 0 the prefill; {name}", "step", found["by_step"][name]))
        shown.append(_rates(f"By bit; {name}", "bit", found["by_bit"][name]))
        if "critical_share" in found:
            shown.append(_critical(name, found["critical_share"][name]))
    return shown


def _rates(title: str, key: str, rates: Sequence[Mapping[str, Any]], caption: str = "") -> TextTable:
    rows = [
        [
            "several" if row[key] is None else str(row[key]),
            interval(row),
            percent(row["sdc"]),
            percent(row["nonfinite"]),
            crashed(row),
            f"{row['n_faults']:,}",
            f"{row['n_runs']:,}",
        ]
        for row in rates[:_MOST_ROWS]
    ]
    if len(rates) > _MOST_ROWS:
        caption = f"{caption}\n{len(rates) - _MOST_ROWS} more rows in results.json and in --json".strip()
    return TextTable(title, (key, "failure", "sdc", "nonfinite", "crash", "faults", "runs"), rows, caption or None)


def _critical(name: str, shares: Sequence[Mapping[str, Any]]) -> TextTable:
    return TextTable(
        f"Critical share: faults that fail more than a share of the inputs; {name}",
        ("fail more than", "share of faults", "faults"),
        [
            [f"{100 * row['threshold']:g} %", interval(row, "share"), f"{row['count']:,} of {row['n_faults']:,}"]
            for row in shares
        ],
    )
