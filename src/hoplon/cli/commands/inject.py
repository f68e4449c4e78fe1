"""``hoplon inject MODEL DATA``: one campaign, from options or from a TOML file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hoplon.campaign.campaign import Campaign
from hoplon.campaign.executors import torch_threads
from hoplon.campaign.forecasting import Forecast, forecast
from hoplon.campaign.results import Results
from hoplon.campaign.store import RunDirectory
from hoplon.cli.console import duration, progress_bars, say, show, show_json, told_training
from hoplon.cli.options.campaign_file import SETTINGS, Settings, merged, read_raw
from hoplon.cli.tables import document, tables
from hoplon.errors import HoplonError, StoreError
from hoplon.program.capturing import capture
from hoplon.report.document import write_document
from hoplon.zoo.resolve import resolve_data, resolve_model

_Texts = list[str] | None
_PLAIN = (
    *("model", "data", "target", "dtype", "buffers", "placement", "inputs", "count", "half_width", "confidence"),
    *("seed", "batch", "threads", "workers", "out"),
)
_LISTS = ("sites", "kind", "criterion")
_FAULT = {"fault": "name", "flips": "count", "stuck_value": "value"} | {
    name: name for name in ("field", "low", "high", "rate", "format", "elements", "words", "bytes", "lane")
}
_SAMPLING = {"sampling": "name"} | {name: name for name in ("drop_last", "by", "scores", "fraction")}


def inject(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="Zoo name, torchvision:NAME, module:factory, file.py:factory.")
    ] = None,
    data: Annotated[str | None, typer.Argument(help="A zoo name, an .npz file with x and y, or a factory.")] = None,
    *,
    config: Annotated[Path | None, typer.Option(help="A TOML file with these settings; options override it.")] = None,
    target: Annotated[
        str | None, typer.Option(help="values (operator outputs, default) or memory (weights, buffers).")
    ] = None,
    sites: Annotated[_Texts, typer.Option(help="Pattern on names of sites, such as 'layer1.*'; repeatable.")] = None,
    kind: Annotated[_Texts, typer.Option(help="Operator, such as conv (memory: that reads it); repeatable.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Strike sites of this dtype; floating point by default.")] = None,
    buffers: Annotated[bool | None, typer.Option("--buffers/--no-buffers", help="Strike buffers as well.")] = None,
    fault: Annotated[
        str | None, typer.Option(help="bitflip, stuck-at, adjacent-bits, random-value, zero, bit-rate.")
    ] = None,
    flips: Annotated[int | None, typer.Option(help="Bits struck per word.")] = None,
    bits: Annotated[str | None, typer.Option(help="Positions to choose from: 30 or 30,31 or 23-30.")] = None,
    field: Annotated[str | None, typer.Option(help="Or a field: sign, exponent, mantissa.")] = None,
    stuck_value: Annotated[int | None, typer.Option(help="0 or 1, of stuck-at.")] = None,
    low: Annotated[float | None, typer.Option(help="Of random-value; random bits without.")] = None,
    high: Annotated[float | None, typer.Option(help="Of random-value.")] = None,
    rate: Annotated[float | None, typer.Option(help="Per bit, of bit-rate.")] = None,
    format: Annotated[str | None, typer.Option(help="Bits of this number format, such as 'fixed(21,10)'.")] = None,
    elements: Annotated[int | None, typer.Option(help="Strike so many elements of a tensor at once.")] = None,
    words: Annotated[int | None, typer.Option(help="Strike so many words in a row.")] = None,
    bytes: Annotated[int | None, typer.Option(help="Strike an aligned line of so many bytes.")] = None,
    lane: Annotated[bool | None, typer.Option("--lane", help="The same bits in all words of a burst.")] = None,
    criterion: Annotated[_Texts, typer.Option(help="top-1, top-5, top-1-label, steering, ...; repeatable.")] = None,
    sampling: Annotated[
        str | None, typer.Option(help="element, op, layer, stratified, exhaustive, top-score, ...")
    ] = None,
    drop_last: Annotated[int | None, typer.Option(help="Of op: leave out so many last operators.")] = None,
    by: Annotated[str | None, typer.Option(help="Of stratified: site, layer or bit.")] = None,
    scores: Annotated[str | None, typer.Option(help="Of top-score and bottom-score: a file of scores.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Of top-score and bottom-score.")] = None,
    placement: Annotated[str | None, typer.Option(help="before or after the protection of a site.")] = None,
    inputs: Annotated[int | None, typer.Option(help="Held-out inputs that faults meet; all by default.")] = None,
    count: Annotated[int | None, typer.Option(help="So many faults; or")] = None,
    half_width: Annotated[float | None, typer.Option(help="until failure is known to this, as a probability.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Of all intervals; 0.95 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides faults and inputs; 0 by default.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per pass; chosen from the model by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of each process; torch's default by default.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that share the work; 1 by default.")] = None,
    out: Annotated[str | None, typer.Option(help="The run directory; hoplon-run by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out; its settings are known.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say runs, time and memory; write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
) -> None:
    """Inject faults into a model and estimate how often it fails: over all, by layer, by bit."""
    settings = settings_of(context.params)
    folder = Path(settings.out)
    if not dry_run:
        _require_free(folder, resume=resume)
    with torch_threads(settings.threads):
        chosen, held_out = (
            resolve_model(settings.model, seed=settings.seed, progress=told_training),
            resolve_data(settings.data).held_out,
        )
        say(f"hoplon inject: {settings.model} on {settings.data}, seed {settings.seed}")
        campaign = settings.campaign(capture(chosen.module, chosen.example, name=chosen.name), held_out)
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
            f"expected a new run directory, got {folder} with a run in it; go on with --resume or choose another --out"
        )


def _run(campaign: Campaign, settings: Settings, folder: Path, *, resume: bool, as_json: bool) -> None:
    if not (folder / "manifest.json").exists():
        settings.keep(folder)  # also proves that the folder can be written
    try:
        with progress_bars() as tell:
            results: Results = campaign.run(
                count=settings.count,
                half_width=settings.half_width,
                confidence=settings.confidence,
                seed=settings.seed,
                store=folder,
                resume=resume,
                workers=settings.workers,
                threads=settings.threads,
                progress=lambda done, total: tell("faults", done, total),
            )
    except KeyboardInterrupt:
        units = len(RunDirectory(folder).finished())
        say(f"hoplon: interrupted; kept: {units} finished units in {folder}; go on with --resume --out {folder}")
        raise
    found = document(results)
    write_document(folder / "results.json", found)
    if as_json:
        show_json(found)
    else:
        show(tables(found), [])
    say(f"wrote {folder / 'results.json'} and the run in {folder}")


def _predict(campaign: Campaign, settings: Settings, *, as_json: bool) -> None:
    found: Forecast = forecast(
        campaign,
        count=settings.count,
        half_width=settings.half_width,
        confidence=settings.confidence,
        seed=settings.seed,
        workers=settings.workers,
        threads=settings.threads,
    )
    if as_json:
        show_json({"format": 1, **found.to_dict()})
        return
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
    show([], [("Prediction; nothing was written", lines)])
