"""``hoplon inject MODEL DATA``: one campaign, from options or from a TOML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from typer import Argument, Option

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import torch_threads
from hoplon.campaign.forecasting import Forecast, forecast
from hoplon.campaign.results import Results
from hoplon.campaign.store import RunDirectory
from hoplon.cli.console import duration, interruptible, print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options.campaign_file import SETTINGS, Settings, merged, read_raw
from hoplon.cli.options.command_line import DATA_HELP, MODEL_HELP, AsJson, Batch, Threads
from hoplon.cli.tables import document, tables_of
from hoplon.errors import HoplonError, StoreError
from hoplon.report.document import write_document
from hoplon.zoo.resolve import resolve_data

Text: TypeAlias = str | None
Texts: TypeAlias = list[str] | None
Number: TypeAlias = float | None
_HALF_WIDTH_HELP = (
    "Stop when the half-width of the confidence interval of the failure probability is below this value, e.g. 0.005."
)
_PLAIN = (
    *("model", "data", "target", "dtype", "buffers", "placement", "inputs", "count", "half_width", "confidence"),
    *("seed", "batch", "threads", "workers", "out"),
)
_DESIGN = ("count", "half_width", "confidence", "seed", "workers", "threads")
_LISTS = ("sites", "kind", "criterion")
_FAULT = {"fault": "name", "flips": "count", "stuck_value": "value"} | {
    name: name for name in ("field", "low", "high", "rate", "format", "elements", "words", "bytes", "lane")
}
_SAMPLING = {"sampling": "name"} | {name: name for name in ("drop_last", "by", "scores", "fraction")}


def command(
    context: typer.Context,
    model: Annotated[Text, Argument(help=MODEL_HELP)] = None,
    data: Annotated[Text, Argument(help=DATA_HELP)] = None,
    *,
    config: Annotated[Path | None, Option(help="TOML file with these settings; options override it.")] = None,
    target: Annotated[Text, Option(help="values (operator outputs, the default) or memory (weights, buffers).")] = None,
    sites: Annotated[Texts, Option(help="Pattern of site names, such as 'layer1.*'; repeatable.")] = None,
    kind: Annotated[Texts, Option(help="Kind of operator, such as conv (memory: that reads it); repeatable.")] = None,
    dtype: Annotated[Text, Option(help="Dtype of the sites (default: floating point).")] = None,
    buffers: Annotated[bool | None, Option("--buffers/--no-buffers", help="With --target memory: buffers too.")] = None,
    fault: Annotated[Text, Option(help="bitflip, stuck-at, adjacent-bits, random-value, zero or bit-rate.")] = None,
    flips: Annotated[int | None, Option(help="Number of bits flipped per word.")] = None,
    bits: Annotated[Text, Option(help="Bit positions to draw from: 30, or 30,31, or 23-30.")] = None,
    field: Annotated[Text, Option(help="Field to draw bits from: sign, exponent or mantissa.")] = None,
    stuck_value: Annotated[int | None, Option(help="With --fault stuck-at: 0 or 1.")] = None,
    low: Annotated[Number, Option(help="With --fault random-value: lower end (default: random bits).")] = None,
    high: Annotated[Number, Option(help="With --fault random-value: upper end.")] = None,
    rate: Annotated[Number, Option(help="With --fault bit-rate: flip probability per bit.")] = None,
    format: Annotated[Text, Option(help="Number format whose bits are struck, such as 'fixed(21,10)'.")] = None,
    elements: Annotated[int | None, Option(help="Number of elements of a tensor struck at once.")] = None,
    words: Annotated[int | None, Option(help="Number of consecutive words struck at once.")] = None,
    bytes: Annotated[int | None, Option(help="Size in bytes of an aligned line that is struck at once.")] = None,
    lane: Annotated[bool | None, Option("--lane", help="With --words or --bytes: same bits in all words.")] = None,
    criterion: Annotated[Texts, Option(help="Harm: top-1, top-5, top-1-label, steering, ...; repeatable.")] = None,
    sampling: Annotated[Text, Option(help="element, op, layer, stratified, exhaustive, top-score, ...")] = None,
    drop_last: Annotated[int | None, Option(help="With --sampling op: exclude the last N operators.")] = None,
    by: Annotated[Text, Option(help="With --sampling stratified: site, layer or bit.")] = None,
    scores: Annotated[Text, Option(help="With --sampling top-score or bottom-score: file of scores.")] = None,
    fraction: Annotated[Number, Option(help="With --sampling top-score or bottom-score: share of all weights.")] = None,
    placement: Annotated[Text, Option(help="Faults strike before or after the protection of their site.")] = None,
    inputs: Annotated[int | None, Option(help="Number of held-out inputs (default: all).")] = None,
    count: Annotated[int | None, Option(help="Number of faults to inject.")] = None,
    half_width: Annotated[Number, Option(help=_HALF_WIDTH_HELP)] = None,
    confidence: Annotated[Number, Option(help="Confidence of all intervals (default: 0.95).")] = None,
    seed: Annotated[int | None, Option(help="Seed of faults, inputs and new weights (default: 0).")] = None,
    batch: Batch = None,
    threads: Threads = None,
    workers: Annotated[int | None, Option(help="Number of processes that share the work (default: 1).")] = None,
    out: Annotated[Text, Option(help="Run directory (default: hoplon-run).")] = None,
    resume: Annotated[bool, Option("--resume", help="Resume the run in --out with its stored settings.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Forecast runs, time and memory; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Inject faults into a model and estimate how often it fails: over all, by layer, by bit."""
    settings = settings_of(context.params)
    folder = Path(settings.out)
    if not dry_run:
        _require_free(folder, resume=resume)
    with torch_threads(settings.threads):
        held_out = resolve_data(settings.data).held_out
        status = f"hoplon inject: {settings.model} on {settings.data}, seed {settings.seed}"
        campaign = settings.campaign(load_program(settings.model, seed=settings.seed, status=status)[1], held_out)
        if dry_run:
            _predict(campaign, settings, as_json=as_json)
        else:
            _run(campaign, settings, folder, resume=resume, as_json=as_json)


def settings_of(given: Mapping[str, Any]) -> Settings:
    """The settings that the options of ``inject`` describe, those of a file or of a stopped run among them.

    Raises:
        HoplonError: settings that do not fit; names the key.
    """
    source = given["config"]
    known = Path(given["out"] or "hoplon-run") / SETTINGS
    if source is None and given["resume"] and given["model"] is None and known.exists():
        source = known
    options = {key: given[key] for key in _PLAIN} | {key: one_or_several(given[key]) for key in _LISTS}
    fault = {name: given[key] for key, name in _FAULT.items()} | {"bits": positions(given["bits"])}
    choice = {name: given[key] for key, name in _SAMPLING.items()}
    raw = merged({} if source is None else read_raw(source), options, {"fault": fault, "sampling": choice})
    return Settings.read(raw, source="" if source is None else str(source))


def one_or_several(given: list[str] | None) -> Any:
    """What was given once as it is, repeated options as a list, None for none."""
    return (given[0] if len(given) == 1 else list(given)) if given else None


def positions(text: str | None) -> list[int] | None:
    """Bit positions as written on the command line.

    Example:
        >>> positions("0,23-25")
        [0, 23, 24, 25]
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise HoplonError(f"fault.bits: expected positions such as 30 or 30,31 or 23-30, got {text!r}")
        found.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


def _require_free(folder: Path, *, resume: bool) -> None:
    """Refuse a folder with a run in it before any work."""
    if (folder / "manifest.json").exists() and not resume:
        raise StoreError(
            f"expected a new run directory, got {folder} with a run in it; --resume it or choose another --out"
        )


def _design(settings: Settings) -> dict[str, Any]:
    """How many faults are drawn, and who runs them: what a campaign and its forecast are told alike."""
    return {name: getattr(settings, name) for name in _DESIGN}


def _run(campaign: Campaign, settings: Settings, folder: Path, *, resume: bool, as_json: bool) -> None:
    if not (folder / "manifest.json").exists():
        settings.keep(folder)  # also proves that the folder can be written

    def saved() -> str:
        units = len(RunDirectory(folder).finished())
        return f"{units} finished units in {folder}. Resume with `hoplon inject --resume --out {folder}`."

    with interruptible(saved), progress_bars() as report_progress:
        progress = partial(report_progress, "faults")
        results: Results = campaign.run(**_design(settings), store=folder, resume=resume, progress=progress)
    found = document(results)
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
    ]
    if found.pilot.split is not None:
        lines.insert(1, f"as the pilot suggests, {found.pilot.split}")
    for probability, faults in found.faults_at.items():
        number = "more than any campaign runs" if faults is None else f"{faults:,} faults"
        lines.append(f"if {100 * probability:g} % of the faults fail: {number}")
    paragraphs = [("Dry run: forecast only, nothing was written", lines)]
    show({"format": 1, **found.to_dict()}, [], paragraphs, as_json=as_json)
