"""``hoplon study NAME``: a paper's evaluation, every table and figure beside what is found here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hoplon.cli.commands.assess import threads as computing_on
from hoplon.cli.console import progress_bars, say, show, show_json, told_training
from hoplon.cli.output_folder import OutputFolder
from hoplon.errors import HoplonError
from hoplon.zoo.resolve import resolve_data, resolve_model
from hoplon_studies.framework.page import as_document, cell, here, write_pages
from hoplon_studies.framework.profiles import profile_named
from hoplon_studies.framework.study import StudyResult, run_study
from hoplon_studies.registry import study_named

_DATA = "HOPLON_DATA"


def study(
    name: Annotated[str, typer.Argument(help="ranger, aspis or driving: whose evaluation.")],
    *,
    profile: Annotated[
        str, typer.Option(help="How much is run: quick (minutes), standard (an hour), paper (its counts).")
    ] = "standard",
    out: Annotated[Path, typer.Option(help="Folder for NAME.md, NAME.json, figures and runs.")] = Path("hoplon-runs"),
    seed: Annotated[int, typer.Option(help="Decides faults, samples and the order of measurements.")] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Folder with data and weights; that of HOPLON_DATA by default.")
    ] = None,
    model: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="MODEL DATA", help="Your own model and data, in the same study."),
    ] = None,
    part: Annotated[list[str] | None, typer.Option(help="Only this part; may be repeated.")] = None,
    again: Annotated[
        list[str] | None, typer.Option(help="Find this part anew, with its finished runs; may be repeated.")
    ] = None,
    thread_count: Annotated[int | None, typer.Option("--threads", help="Threads; torch's default by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The page's JSON on stdout instead of a table.")] = False,
) -> None:
    """Run the tables and figures of a paper, go on where an earlier run stopped, and write the page."""
    chosen, counts = study_named(name), profile_named(profile)
    folder = OutputFolder.prepare(out)
    with _data_in(data), computing_on(thread_count):
        own = (
            None
            if model is None
            else (resolve_model(model[0], seed=seed, progress=told_training), resolve_data(model[1]))
        )
        command = ["hoplon", "study", name, "--profile", profile, "--seed", str(seed), "--out", str(out)]
        command += ["--model", *model] if model is not None else []
        command += ["--threads", str(thread_count)] if thread_count is not None else []
        try:
            with progress_bars() as tell:
                result = run_study(
                    chosen,
                    out=folder.path,
                    profile=counts,
                    seed=seed,
                    own=own,
                    command=command,
                    only=part or (),
                    again=again or (),
                    tell=tell,
                    say=say,
                )
        except KeyboardInterrupt:
            say("hoplon: interrupted; finished parts are kept, the same command goes on")
            raise
        pages = write_pages(folder.path, result)
    if as_json:
        show_json(as_document(result))
    else:
        open_ends = [("Not run yet", [f"{one}: --part {one} runs it" for one in result.unfinished])]
        show([_table(result)], open_ends if result.unfinished else [])
    say(f"wrote {pages.markdown}, {pages.document} and {len(pages.figures)} figures")


@contextmanager
def _data_in(folder: Path | None) -> Iterator[None]:
    """A scope in which data and weights are looked for in a folder; None leaves HOPLON_DATA as it is.

    Raises:
        HoplonError: no such folder.
    """
    if folder is None:
        yield
        return
    if not folder.is_dir():
        raise HoplonError(f"expected a folder for --data, got {folder}, which is none; see the README on {_DATA}")
    before = os.environ.get(_DATA)
    os.environ[_DATA] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DATA]
        else:
            os.environ[_DATA] = before


def _table(result: StudyResult) -> Table:
    identity: dict[str, Any] = result.manifest["identity"]
    title = f"{result.study.title}; profile {identity['profile']}, seed {identity['seed']}"
    table = Table(title=title, title_justify="left")
    for name in ("where", "what", "model", "data", "paper", "here [95 %]", "n"):
        table.add_column(name, justify="right" if name in ("paper", "here [95 %]", "n") else "left")
    for findings in result.findings.values():
        for row in findings.rows:
            found = here(row) if row.here is not None else row.why
            table.add_row(row.where, row.what, row.model, row.data, cell(row.paper), found, cell(row.n))
    return table
