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
from hoplon.comparison.rerunning import Rerun, rerun
from hoplon.errors import StoreError
from hoplon.report.document import plain, write_document
from hoplon.report.text import interval, signed_points
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import resolve_data


def command(
    run: Annotated[Path, Argument(help="The run directory of hoplon inject, or of a campaign in Python.")],
    *,
    model: Annotated[str, Option(help=f"The other model. {MODEL_HELP}")],
    data: Annotated[str | None, Option(help="Data (default: that of the run, as value faults need).")] = None,
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
    known = read_raw(run / SETTINGS) if (run / SETTINGS).exists() else {}
    source = data or known.get("data")
    if source is None:
        raise StoreError(f"expected {SETTINGS} with the data in {run}, got none; say with --data what the run was on")
    start = known.get("seed", 0)
    judged = criterion or known.get("criterion")
    settings = Settings.read(known) if known.get("protection") else None
    with torch_threads(threads or manifest["threads"]):
        loaded = resolve_data(source)
        samples = loaded.held_out.sample(inputs or known.get("inputs"), seed=start)
        status = f"hoplon replay: the faults of {run} in {model}, on {source}"
        _, program = load_program(model, seed=start if seed is None else seed, status=status)
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
