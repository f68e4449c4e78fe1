"""``hoplon replay RUN --model OTHER``: the faults of a run once more, in another model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hoplon.campaign.executors import torch_threads
from hoplon.campaign.store import RunDirectory
from hoplon.cli.commands.inject import one_or_several
from hoplon.cli.console import progress_bars, say, show, show_json, told_training
from hoplon.cli.options import components as parts
from hoplon.cli.options.campaign_file import SETTINGS, read_raw
from hoplon.comparison.rerunning import Rerun, rerun
from hoplon.errors import StoreError
from hoplon.program.capturing import capture
from hoplon.report.document import plain, write_document
from hoplon.report.text import interval, signed_points
from hoplon.report.text_table import TextTable
from hoplon.zoo.resolve import resolve_data, resolve_model


def replay(
    run: Annotated[Path, typer.Argument(help="The run directory of hoplon inject, or of a campaign in Python.")],
    *,
    model: Annotated[
        str, typer.Option(help="The other model: zoo name, torchvision:NAME, module:factory, file.py:factory.")
    ],
    data: Annotated[str | None, typer.Option(help="That of the run by default; value faults need the same.")] = None,
    inputs: Annotated[int | None, typer.Option(help="As for inject; that of the run by default.")] = None,
    criterion: Annotated[list[str] | None, typer.Option(help="That of the run by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights drawn or trained here; that of the run.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per pass; that of the run by default.")] = None,
    threads: Annotated[int | None, typer.Option(help="That of the run by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="A run directory for the other model; not kept by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the replay in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")] = False,
) -> None:
    """Strike the identical faults of a run in another model, and report the paired differences."""
    manifest = RunDirectory(run).manifest()
    known = read_raw(run / SETTINGS) if (run / SETTINGS).exists() else {}
    source = data or known.get("data")
    if source is None:
        raise StoreError(f"expected {SETTINGS} with the data in {run}, got none; say with --data what the run was on")
    start = known.get("seed", 0)
    judged = one_or_several(criterion) or known.get("criterion")
    protections = parts.protections(known.get("protection", []))
    with torch_threads(threads or manifest["threads"]):
        samples = resolve_data(source).held_out.sample(inputs or known.get("inputs"), seed=start)
        chosen = resolve_model(model, seed=start if seed is None else seed, progress=told_training)
        say(f"hoplon replay: the faults of {run} in {model}, on {source}")
        try:
            with progress_bars() as tell:
                found = rerun(
                    run,
                    capture(chosen.module, chosen.example, name=chosen.name),
                    samples,
                    criterion=None if judged is None else parts.criterion(judged),
                    protections=protections,
                    batch=batch,
                    store=out,
                    resume=resume,
                    progress=lambda done, total: tell("faults", done, total),
                )
        except KeyboardInterrupt:
            kept = f"the finished units in {out}; go on with --resume" if out else "nothing; give --out to keep units"
            say(f"hoplon: interrupted; kept: {kept}")
            raise
    document = plain(found.to_dict())
    if out is not None:
        write_document(out / "results.json", document)
        say(f"wrote {out / 'results.json'} and the run in {out}")
    if as_json:
        show_json(document)
    else:
        show([_table(document)], [("Paired", str(found).splitlines()), *_notes(found)])


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
