"""``hoplon gate MODEL DATA``: whether a build keeps to its limits; ``--record`` makes the baseline of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge, Gt
from typer import Option

from hoplon.assurance.baseline import Baseline
from hoplon.assurance.ci_reports import write_junit, write_summary
from hoplon.assurance.gate import Gate, Judgement, record
from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import torch_threads
from hoplon.cli.commands.fit import EXIT
from hoplon.cli.console import interruptible, print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.campaign_file import Settings, merged, own_options
from hoplon.cli.options.command_line import (
    FAULTS,
    RUN,
    SIZE,
    AsJson,
    Data,
    Model,
    command_of,
    component_options,
    settings_options,
    takes,
)
from hoplon.cli.options.schema import ValuesError, from_text
from hoplon.cli.output_folder import require_file
from hoplon.errors import Fraction, HoplonError, fits
from hoplon.registry import fields_of
from hoplon.report.document import write_document
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import resolve_data

ASKED = "What is asked for"
_SETTINGS = fields_of(Settings)
_TAKEN = (
    *("target", "sites", "kind", "dtype", "buffers", "fault", "criterion", "protection", "placement", "arrival"),
    *("inputs", "calibration", "seed", "batch", "threads"),
)
_NEEDS = "give --max-failure, --max-increase with --baseline, or --record"


@takes(settings_options(_SETTINGS, _TAKEN), component_options("fault", own_options("fault"), FAULTS))
def command(
    context: typer.Context,
    model: Model,
    data: Data,
    *,
    baseline: Annotated[
        Path | None, Option(help="The recorded build; with --record, where to write it.", rich_help_panel=ASKED)
    ] = None,
    max_failure: Annotated[
        str | None, Option(help="Most failures of a fault, such as 0.1%.", rich_help_panel=ASKED)
    ] = None,
    max_increase: Annotated[
        str | None, Option(help="Most that may be more than in the baseline, such as 0.05%.", rich_help_panel=ASKED)
    ] = None,
    confidence: Annotated[
        float, Gt(0), Option(help="1 minus the probability of a wrong decision, over all looks.", rich_help_panel=ASKED)
    ] = 0.95,
    record_baseline: Annotated[
        bool, Option("--record", help="Record this build as the baseline; nothing is judged.", rich_help_panel=ASKED)
    ] = False,
    most: Annotated[
        int | None,
        Ge(1),
        Option(help="Faults at most (default: 100000 of values, 4096 of memory).", rich_help_panel=SIZE),
    ] = None,
    junit: Annotated[Path | None, Option(help="File for the verdict as JUnit XML.", rich_help_panel=RUN)] = None,
    summary: Annotated[
        Path | None, Option(help="Markdown file that the verdict is added to.", rich_help_panel=RUN)
    ] = None,
    out: Annotated[Path | None, Option(help="File for the verdict as JSON.", rich_help_panel=RUN)] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Judge a build by fault injection: exit status 0 if it keeps to its limits, 1 if not, 3 if that is undecided."""
    settings = Settings.read(
        merged({}, {name: context.params.get(name) for name in (*_TAKEN, "model", "data")} | options)
    )
    gate = None if record_baseline else _gate(max_failure, max_increase, confidence, most)
    if record_baseline and baseline is None:
        raise HoplonError("expected --baseline FILE to record, got none; give it")
    if max_increase is not None and baseline is None:
        raise HoplonError("expected --baseline FILE for --max-increase, got none; hoplon gate --record makes one")
    written = [(junit, b"<testsuite"), (out, b'"claims"')]
    for file, mark in [*written, *([(baseline, b"hoplon gate baseline")] if record_baseline else [])]:
        if file is not None:
            require_file(file, mark)
    with torch_threads(settings.threads):
        known = Baseline.load(baseline) if baseline is not None and gate is not None else None
        loaded = resolve_data(settings.data)
        status = f"hoplon gate: {settings.model} on {settings.data}"
        _, program = load_program(settings.model, seed=settings.seed, status=status, data=loaded.held_out)
        campaign = settings.campaign(program, loaded)
        with interruptible(lambda: "nothing; give the same command again."), progress_bars() as report:
            progress = partial(report, "faults")
            if gate is None:
                assert baseline is not None
                _record(campaign, baseline, most, settings.seed, progress, as_json=as_json)
                return
            found = gate.judge(campaign, baseline=known, seed=settings.seed, progress=progress)
    document = {**found.to_dict(), "command": command_of(context)}
    if out is not None:
        write_document(out, document)
    if junit is not None:
        write_junit(junit, found, name=f"hoplon gate {model} {data}")
    if summary is not None:
        write_summary(summary, found)
    show(document, [_table(found)], as_json=as_json)
    raise typer.Exit(EXIT[found.verdict])


def _gate(max_failure: str | None, max_increase: str | None, confidence: float, most: int | None) -> Gate:
    given = {"max_failure": max_failure, "max_increase": max_increase}
    if not any(given.values()):
        raise HoplonError(f"expected something to judge by, got nothing; {_NEEDS}")
    limits = {name: None if text is None else from_text(Fraction, text) for name, text in given.items()}
    problems = [
        (f"--{name.replace('_', '-')}", f"expected a share above 0 and of at most 1, such as 0.1%, got {given[name]!r}")
        for name, limit in limits.items()
        if limit is not None and not fits(Fraction, limit)
    ]
    if problems:
        raise ValuesError(problems)
    return Gate(**limits, confidence=confidence, most=most)


def _record(campaign: Campaign, file: Path, most: int | None, seed: int, progress: Any, *, as_json: bool) -> None:
    made = record(campaign, faults=most, seed=seed, progress=progress)
    made.save(file)
    failure = float(made.shares().mean())
    document = {"format": 1, "baseline": str(file), "faults": made.faults, "failure": failure}
    rows = [(f"{made.faults:,}", f"{100 * failure:.3f} %")]
    show(document, [TextTable(f"Recorded {file}", ("faults", "failure"), rows)], as_json=as_json)
    print_status(f"wrote {file}")


def _table(found: Judgement) -> TextTable:
    rows = []
    for claim in found.claims:
        more = "" if claim.verdict != "undecided" else f"{claim.more_faults:,}" if claim.more_faults else "no number"
        rows.append((claim.verdict, claim.requirement, claim.figure, more))
    caption = (
        f"{found.description}\n{found.same_faults:,} faults are the baseline's; {found.left_out:,} on inputs that one "
        "build gets wrong are left out"
    )
    if found.fresh_sites:
        caption += f"\nfresh faults in sites that the baseline has not, or in another form: {len(found.fresh_sites)}"
    title = f"{found.verdict}: {found.faults:,} faults, {found.looks} of at most {found.most_looks} looks"
    return TextTable(
        title, ("verdict", "requirement", "found", "more faults"), rows, caption, left=("verdict", "requirement")
    )
