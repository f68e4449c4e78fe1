"""``hoplon fit RUN``: failures in time of each arm of a run, against a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from annotated_types import Ge, Gt, Le
from typer import Argument, Option

from hoplon.assurance.failures_in_time import FailureRate, Use, dominating, failure_rate
from hoplon.assurance.raw_rate import RawRate, Unit, known_rate
from hoplon.assurance.stored_runs import stored_upsets
from hoplon.cli.console import print_status, show
from hoplon.cli.options.command_line import RUN, AsJson, command_of
from hoplon.cli.output_folder import require_file
from hoplon.errors import HoplonError, no_match
from hoplon.report.document import plain, write_document
from hoplon.report.evidence import Row
from hoplon.report.text import listed
from hoplon.report.text_table import TextTable

RATE, USE, BUDGET = "How often bits are upset", "How the device uses the network", "What is asked for"
EXIT = {"pass": 0, "fail": 1, "undecided": 3}


def command(
    context: typer.Context,
    runs: Annotated[
        list[Path], Argument(help="Run directories of inject, folders of compare or demo.", metavar="RUN...")
    ],
    *,
    rate: Annotated[
        str, Option(help="Raw rate of the memory: a number, or a name of hoplon ls rates.", rich_help_panel=RATE)
    ],
    unit: Annotated[
        Literal["FIT/Mbit", "1/bit/h"], Option(help="Of the raw rate; 1 Mbit is 10^6 bits.", rich_help_panel=RATE)
    ] = "FIT/Mbit",
    rate_low: Annotated[float | None, Option(help="Lower end of its range.", rich_help_panel=RATE)] = None,
    rate_high: Annotated[float | None, Option(help="Upper end of its range.", rich_help_panel=RATE)] = None,
    source: Annotated[str, Option(help="Where the number comes from.", rich_help_panel=RATE)] = "the user's own",
    shares: Annotated[
        str, Option(help="Shares of upsets that change 1, 2 and 3 bits of a word.", rich_help_panel=RATE)
    ] = "1,0,0",
    ecc: Annotated[
        str | None,
        Option(help="Bits of a word that a code corrects and detects, such as 1:2 (SEC-DED).", rich_help_panel=RATE),
    ] = None,
    factor: Annotated[
        list[str] | None,
        Option(
            help="NAME=NUMBER that the rate is multiplied with, such as altitude=5; repeatable.", rich_help_panel=RATE
        ),
    ] = None,
    exposure: Annotated[
        float, Ge(1), Option(help="Inferences from one writing of the memory to the next.", rich_help_panel=USE)
    ] = 1,
    check_every: Annotated[
        float, Ge(1), Option(help="Inferences from one check of the guards to the next.", rich_help_panel=USE)
    ] = 1,
    inputs: Annotated[
        Literal["drawn", "given"],
        Option(
            help="drawn: inputs of the run are a sample of what the device meets; given: it meets just these.",
            rich_help_panel=USE,
        ),
    ] = "drawn",
    duty: Annotated[
        float, Gt(0), Le(1), Option(help="Share of the time in which inferences run.", rich_help_panel=USE)
    ] = 1.0,
    budget: Annotated[
        float | None, Gt(0), Option(help="Failures in 10^9 hours to stay below.", rich_help_panel=BUDGET)
    ] = None,
    arm: Annotated[
        str | None, Option(help="The arm to judge (default: the best of all).", rich_help_panel=BUDGET)
    ] = None,
    criterion: Annotated[
        str | None, Option(help="What counts as harm (default: the first.)", rich_help_panel=BUDGET)
    ] = None,
    crash: Annotated[
        Literal["count", "separate"], Option(help="Crashes count as failures, or not.", rich_help_panel=BUDGET)
    ] = "count",
    confidence: Annotated[float, Gt(0), Option(help="Of the limits.", rich_help_panel=BUDGET)] = 0.95,
    out: Annotated[Path | None, Option(help="File for the figures as JSON.", rich_help_panel=RUN)] = None,
    as_json: AsJson = False,
) -> None:
    """Tell failures in 10^9 hours (FIT) of each arm of a run, with all assumptions; and whether a budget is met."""
    raw = _rate(rate, unit, rate_low, rate_high, source, shares, ecc, factor or ())
    counts = {"inferences_per_reload": round(exposure), "inferences_per_check": round(check_every)}
    use = Use(**counts, inputs_are=inputs, duty=duty)
    if out is not None:
        require_file(out, b'"fit_low_of_rate"')
    arms = stored_upsets(runs, criterion=criterion, count_crashes=crash == "count")
    if arm is not None and arm not in arms:
        raise no_match("arm", arm, list(arms))
    chosen = arms if arm is None else {arm: arms[arm]}
    found = [failure_rate(upsets, raw, use=use, confidence=confidence, name=name) for name, upsets in chosen.items()]
    document = {
        "format": 1,
        "command": command_of(context),
        "runs": [str(run) for run in runs],
        "raw_rate": raw.to_dict(),
        "use": plain(vars(use)),
        "budget_fit": budget,
        "arms": [plain(one.to_dict(budget)) for one in found],
        "evidence": [_evidence(one, budget) for one in found],
        "assumptions": list(dict.fromkeys(text for one in found for text in one.assumptions)),
    }
    if out is not None:
        write_document(out, document)
        print_status(f"wrote {out}")
    show(document, [_table(found, budget)], _paragraphs(found, budget), as_json=as_json)
    if budget is not None:
        best = min((EXIT[one.verdict(budget)] for one in found), key=(0, 3, 1).index)
        raise typer.Exit(best)


def _rate(
    rate: str,
    unit: Unit,
    low: float | None,
    high: float | None,
    source: str,
    shares: str,
    ecc: str | None,
    factors: Sequence[str],
) -> RawRate:
    """The raw rate that the options describe.

    Raises:
        HoplonError: a text that is no number, or numbers that do not fit together.
    """
    sizes = tuple(_number("--shares", part) for part in shares.split(","))
    try:
        number = float(rate)
    except ValueError:
        found = replace(known_rate(rate), shares=sizes)
        if low is not None or high is not None:
            raise HoplonError(f"expected no range beside the rate {rate}, which has its own, got one") from None
    else:
        found = RawRate.of(number, unit=unit, low=low, high=high, source=source, shares=sizes)
    for text in factors:
        name, equals, value = text.rpartition("=")
        if not equals or not name:
            raise HoplonError(f"--factor: expected NAME=NUMBER, got {text!r}")
        found = found.times(name, _number("--factor", value))
    if ecc is not None:
        corrects, colon, detects = ecc.partition(":")
        if not colon or not corrects.isdecimal() or not detects.isdecimal():
            raise HoplonError(f"--ecc: expected bits corrected and detected, such as 1:2, got {ecc!r}")
        found = found.behind_ecc(corrects=int(corrects), detects=int(detects))
    return found


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise HoplonError(f"{option}: expected a number, got {text!r}") from None


def _table(found: Sequence[FailureRate], budget: float | None) -> TextTable:
    columns = ["arm", "FIT", "raw FIT", "stopped FIT", "faults", "from"]
    if budget is not None:
        columns[5:] = ["of budget", "verdict", "more faults", "from"]
    rows = [_cells(one, budget) for one in found]
    title = "Failures in 10^9 hours (FIT)" + ("" if budget is None else f"; budget {budget:g} FIT")
    caption = "stopped: upsets that a guard reported and could not undo, which are no failures"
    if any(one.at_least for one in found):
        caption += "\n>= the exposure is longer than the inputs of the run: the estimate is a lower bound"
    return TextTable(title, columns, rows, caption, left=("arm", "verdict", "from"))


def _cells(one: FailureRate, budget: float | None) -> list[str]:
    cells = [
        one.name,
        _with_limits(one),
        _short(one.raw_fit),
        _short(one.stopped_fit),
        f"{one.n_faults:,}",
    ]
    if budget is not None:
        more = one.faults_to_decide(budget)
        cells += [
            f"{100 * one.fit / budget:.3g} % [{100 * one.fit_low / budget:.3g}, {100 * one.fit_high / budget:.3g}]",
            one.verdict(budget),
            "no number decides" if more is None else f"{more:,}" if more else "",
        ]
    return [*cells, dominating(one)]


def _evidence(one: FailureRate, budget: float | None) -> Row:
    """The row of a page of evidence."""
    asked = "no budget was given" if budget is None else f"at most {budget:g} failures in 10^9 hours (FIT)"
    structures = listed([part.name for part in one.structures])
    return {
        "requirement": f"{one.name}: {asked}",
        "test": f"{one.n_faults:,} faults in {structures}, {_short(one.raw_fit)} upsets in 10^9 hours",
        "figure": f"{_with_limits(one)} FIT",
        "value": one.fit,
        "low": one.fit_low,
        "high": one.fit_high,
        "unit": "FIT",
        "verdict": "none" if budget is None else one.verdict(budget),
    }


def _with_limits(one: FailureRate) -> str:
    return f"{'>= ' if one.at_least else ''}{_short(one.fit)} [{_short(one.fit_low)}, {_short(one.fit_high)}]"


def _short(fit: float) -> str:
    return f"{fit:,.3g}" if fit < 1000 else f"{float(f'{fit:.3g}'):,.0f}"


def _paragraphs(found: Sequence[FailureRate], budget: float | None) -> list[tuple[str, Sequence[str]]]:
    """Every assumption once, with the arms it belongs to where these differ; then where the width comes from."""
    said: dict[str, list[str]] = {}
    for one in found:
        for text in one.assumptions:
            said.setdefault(text, []).append(one.name)
    lines = [text if len(names) == len(found) else f"{', '.join(names)}: {text}" for text, names in said.items()]
    width = [
        f"{one.name}: from the campaign [{_short(one.fit_low_of_campaign)}, {_short(one.fit_high_of_campaign)}], from "
        f"the range of the raw rate [{_short(one.fit_low_of_rate)}, {_short(one.fit_high_of_rate)}]"
        for one in found
    ]
    return [("Assumptions", lines), ("Where the limits come from, in FIT", width)]
