"""``hoplon replay RUN --model OTHER``: the faults of a run once more, in another model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from hoplon.campaign.executors import torch_threads
from hoplon.campaign.manifest import Manifest
from hoplon.campaign.store import RunDirectory
from hoplon.cli.console import interruptible, print_status, progress_bars, show
from hoplon.cli.loading import load_program
from hoplon.cli.options import components as parts
from hoplon.cli.options.campaign_file import SETTINGS, Settings, read_raw
from hoplon.cli.options.command_line import MODEL_HELP, AsJson
from hoplon.cli.options.schema import check_values
from hoplon.comparison.rerunning import Rerun, rerun
from hoplon.errors import HoplonError, StoreError
from hoplon.registry import fields_of
from hoplon.report.document import plain, write_document
from hoplon.report.text import interval, signed_points
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import is_factory, resolve_data

_KNOWN = {name: entry for name, entry in fields_of(Settings).items() if name in ("data", "seed", "inputs")}


def command(
    run: Annotated[Path, Argument(help="The run directory of hoplon inject, or of a campaign in Python.")],
    *,
    model: Annotated[str, Option(help=f"The other model. {MODEL_HELP}")],
    data: Annotated[
        str | None, Option(help="Data (default: that of the run, as value faults need; code is to be named here).")
    ] = None,
    inputs: Annotated[int | None, Option(help="Number of held-out inputs (default: that of the run).")] = None,
    criterion: Annotated[list[str] | None, Option(help="What counts as harm (default: that of the run).")] = None,
    seed: Annotated[int | None, Option(help="Seed of new weights (default: that of the run).")] = None,
    batch: Annotated[int | None, Option(help="Samples per forward pass (default: that of the run).")] = None,
    threads: Annotated[int | None, Option(help="CPU threads (default: that of the run).")] = None,
    out: Annotated[Path | None, Option(help="Run directory for the other model (default: not kept).")] = None,
    resume: Annotated[bool, Option("--resume", help="Resume the replay in --out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Strike the identical faults of a run in another model, and report the paired differences."""
    manifest = RunDirectory(run).manifest(Manifest)
    raw = read_raw(run / SETTINGS) if (run / SETTINGS).exists() else {}
    known = _known(run, raw, data)
    source = known["data"]
    start = known.get("seed", 0)
    judged = criterion or raw.get("criterion")
    settings = Settings.read(raw) if raw.get("protection") else None
    with torch_threads(threads or manifest["threads"]):
        loaded = resolve_data(source)
        samples = loaded.held_out.sample(inputs or known.get("inputs"), seed=start)
        status = f"hoplon replay: the faults of {run} in {model}, on {source}"
        _, program = load_program(model, seed=start if seed is None else seed, status=status, data=samples)
        protections = settings.built(settings.learned(program, loaded)) if settings is not None else ()
        kept = f"finished units in {out}. Resume with --resume." if out else "nothing; --out keeps finished units."
        with interruptible(lambda: kept), progress_bars() as report_progress:
            found = rerun(
                run,
                program,
                samples,
                criterion=None if judged is None else parts.criterion(judged),
                protections=protections,
                batch=batch,
                store=out,
                resume=resume,
                progress=partial(report_progress, "faults"),
            )
    document = plain(found.to_dict())
    if out is not None:
        write_document(out / "results.json", document)
        print_status(f"wrote {out / 'results.json'} and the run in {out}")
    paragraphs = [("Paired", str(found).splitlines()), *_notes(found)]
    show(document, [_table(document)], paragraphs, as_json=as_json)


def _known(run: Path, raw: Mapping[str, Any], data: str | None) -> dict[str, Any]:
    """What the settings of a run say of its data, under the ``--data`` of the command line, checked.

    Raises:
        StoreError: no data, or code as data that only the run names: it may come from elsewhere.
    """
    try:
        known = check_values({name: raw[name] for name in _KNOWN if name in raw}, _KNOWN)
    except HoplonError as error:
        raise HoplonError(f"{run / SETTINGS}: {error}") from error
    source = data or known.get("data")
    if source is None:
        raise StoreError(f"expected {SETTINGS} with the data in {run}, got none; say with --data what the run was on")
    if data is None and is_factory("data", source):
        raise StoreError(
            f"expected --data, since what {run / SETTINGS} names is code, got {source!r} in it; --data {source!r}, "
            "if it is yours"
        )
    return {**known, "data": source}


def _table(document: Mapping[str, Any]) -> TextTable:
    original, other = (document[side]["name"] for side in ("original", "other"))
    rows = []
    for name, row in document["criteria"].items():
        limits = [row[key] for key in ("difference", "difference_low", "difference_high")]
        points = "not measured" if None in limits else signed_points(*limits)
        rows.append((name, interval(row["original"]), interval(row["other"]), points))
    title = f"The same faults in {original} (original) and {other} (other)"
    return TextTable(title, ("criterion", "failure, original", "failure, other", "difference, points"), rows)


def _notes(found: Rerun) -> list[tuple[str, list[str]]]:
    notes = []
    if found.left_out:
        notes.append(
            f"{found.left_out:,} runs of the original are left out: the other model gets their input wrong anyway."
        )
    if not found.same_inputs:
        notes.append("The two met different inputs: the difference is that of model and data together.")
    return [("Notes", notes)] if notes else []
