"""``hoplon inject MODEL DATA``: one campaign, from options or from a TOML file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer
from typer import Argument, Option

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import torch_threads
from hoplon.campaign.forecasting import Forecast, forecast
from hoplon.campaign.results import Results
from hoplon.campaign.store import RunDirectory
from hoplon.cli.console import duration, interruptible, print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.campaign_file import SETTINGS, Settings, merged, own_options, plain_options, read_raw
from hoplon.cli.options.command_line import (
    DATA_HELP,
    FAULTS,
    MODEL_HELP,
    RUN,
    SITES,
    AsJson,
    component_options,
    settings_options,
    takes,
)
from hoplon.cli.output_folder import require_folder
from hoplon.cli.tables import document, tables_of
from hoplon.comparison.exposure import at_risk
from hoplon.errors import HoplonError, StoreError
from hoplon.registry import fields_of
from hoplon.report.document import write_document
from hoplon.report.text import executed
from hoplon.zoo.resolve import is_factory, resolve_data

Text: TypeAlias = str | None
_DESIGN = ("count", "half_width", "confidence", "seed", "workers", "threads")
_SETTINGS = fields_of(Settings)
_CODE: tuple[Literal["model", "data"], ...] = ("model", "data")


@takes(
    settings_options(_SETTINGS),
    component_options("fault", own_options("fault"), FAULTS),
    component_options("sampling", own_options("sampling"), SITES),
)
def command(
    context: typer.Context,
    model: Annotated[Text, Argument(help=MODEL_HELP)] = None,
    data: Annotated[Text, Argument(help=DATA_HELP)] = None,
    *,
    config: Annotated[
        Path | None, Option(help="TOML file with these settings; options override it.", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        bool,
        Option(
            "--resume",
            help="Resume the run in --out with its stored settings; name factories again.",
            rich_help_panel=RUN,
        ),
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Forecast runs, time and memory; write nothing.", rich_help_panel=RUN)
    ] = False,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Inject faults into a model and estimate how often it fails: over all, by layer, by bit."""
    settings = settings_of(context.params)
    settings.require_goal()
    folder = Path(settings.out)
    if not dry_run:
        _require_free(folder, resume=resume)
    with torch_threads(settings.threads):
        loaded = resolve_data(settings.data)
        status = f"hoplon inject: {settings.model} on {settings.data}, seed {settings.seed}"
        _, program = load_program(
            settings.model,
            seed=settings.seed,
            status=status,
            data=loaded.held_out,
            new_tokens=settings.new_tokens,
            prompt_tokens=settings.prompt_tokens,
        )
        campaign = settings.campaign(program, loaded)
        if dry_run:
            _predict(campaign, settings, as_json=as_json)
        else:
            _run(campaign, settings, folder, resume=resume, as_json=as_json)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings that the options of ``inject`` describe, those of a file or of a stopped run among them.

    A run may come from elsewhere: code that it names is imported only where the command line names it too.

    Raises:
        HoplonError: settings that do not fit; names the key.
        StoreError: code that only a run names.
    """
    source = given["config"]
    out = plain_options(given, ["out"]).get("out")
    folder = Path(out if isinstance(out, str) else "hoplon-run")
    resumed = source is None and given["resume"] and (folder / SETTINGS).exists()
    source = folder / SETTINGS if resumed else source
    raw = merged({} if source is None else read_raw(source), given) | ({"out": str(folder)} if resumed else {})
    settings = Settings.read(raw, source="" if source is None else str(source))
    for what in _CODE if resumed else ():
        if given[what] is None and is_factory(what, getattr(settings, what)):
            raise StoreError(
                f"expected MODEL and DATA on the command line, since what {source} names is code, got "
                f"{getattr(settings, what)!r} as {what} in it; hoplon inject MODEL DATA --resume --out {folder}"
            )
    return settings


def _require_free(folder: Path, *, resume: bool) -> None:
    """Refuse a file, and a folder with a run in it, before any work."""
    require_folder(folder)
    if (folder / "manifest.json").exists() and not resume:
        raise StoreError(
            f"expected a new run directory, got {folder} with a run in it; --resume it or choose another --out"
        )
    if not (folder / "manifest.json").exists():
        RunDirectory(folder).require_free()
        if (folder / SETTINGS).exists():  # of a run that was stopped before its manifest, or another program's
            try:
                Settings.read(read_raw(folder / SETTINGS))
            except HoplonError as error:
                raise StoreError(
                    f"expected a new run directory, got {folder} with another {SETTINGS} in it; choose another --out"
                ) from error


def _design(settings: Settings) -> dict[str, Any]:
    """How many faults are drawn, and who runs them: what a campaign and its forecast are told alike."""
    return {name: getattr(settings, name) for name in _DESIGN}


def _run(campaign: Campaign, settings: Settings, folder: Path, *, resume: bool, as_json: bool) -> None:
    if not (folder / "manifest.json").exists():
        settings.keep(folder)  # also proves that the folder can be written

    def saved() -> str:
        units = len(RunDirectory(folder).finished())
        code = any(is_factory(what, getattr(settings, what)) for what in _CODE)
        again = f"{shlex.join([settings.model, settings.data])} " if code else ""
        return f"{units} finished units in {folder}. Resume with `hoplon inject {again}--resume --out {folder}`."

    with interruptible(saved), progress_bars() as report_progress:
        progress = partial(report_progress, "faults")
        results: Results = campaign.run(**_design(settings), store=folder, resume=resume, progress=progress)
        sites = settings.selection().select(campaign.program)
        risk = at_risk(campaign.program, sites, campaign.fault_model, campaign.sampling)
        found = {**document(results), "at_risk": risk}
        write_document(folder / "results.json", found)
    show(found, tables_of(found), as_json=as_json)
    print_status(f"wrote {folder / 'results.json'} and the run in {folder}")


def _predict(campaign: Campaign, settings: Settings, *, as_json: bool) -> None:
    found: Forecast = forecast(campaign, **_design(settings))
    at_most = "at most " if settings.half_width is not None else ""
    memory = "not known here" if found.memory_bytes is None else f"at most about {found.memory_bytes / 1e9:.1f} GB"
    lines = [
        f"{at_most}{found.faults:,} faults, {found.runs:,} runs",
        f"{at_most}about {duration(found.seconds)} on {found.workers} {'worker' if found.workers == 1 else 'workers'}",
        f"(pilot: {found.pilot.faults:,} faults in {duration(found.pilot.seconds)}, after "
        f"{duration(found.pilot.set_up_seconds)} without faults)",
        f"memory: {memory}",
        executed(found.pilot.execution),
    ]
    if found.pilot.split is not None:
        lines.insert(1, f"as the pilot suggests, {found.pilot.split}")
    for probability, faults in found.faults_at.items():
        number = "more than any campaign runs" if faults is None else f"{faults:,} faults"
        lines.append(f"if {100 * probability:g} % of the faults fail: {number}")
    paragraphs = [("Dry run: forecast only, nothing was written", lines)]
    show({"format": 1, **found.to_dict()}, [], paragraphs, as_json=as_json)
