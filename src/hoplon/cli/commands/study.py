"""``hoplon study NAME``: a paper's evaluation, every table and figure beside what is found here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from hoplon.campaign.executors import torch_threads
from hoplon.cli.console import interruptible, print_status, progress_bars, report_training, show
from hoplon.cli.output_folder import require_writable
from hoplon.errors import HoplonError, no_match
from hoplon.report.text_table import TextTable
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.resolve import resolve_data, resolve_model

_DATA = "HOPLON_DATA"
_COLUMNS = ("where", "what", "model", "data", "paper", "here [95 %]", "n")


class RunsStudy(Protocol):
    """A study of an installed package: a function that its entry point in ``hoplon.studies`` names."""

    def __call__(
        self,
        out: Path,
        *,
        profile: str,
        seed: int,
        own: Callable[[], tuple[ZooModel, ZooData]] | None,
        command: Sequence[str],
        only: Sequence[str],
        again: Sequence[str],
        tell: Callable[[str, int, int | None], None],
        say: Callable[[str], None],
    ) -> tuple[dict[str, Any], Sequence[Sequence[str]], Sequence[Path]]:
        """Run the parts in ``only``, or all that have not finished, and write the study's pages into ``out``.

        Args:
            own: gives the user's model and data; None where there are none.
            tell: told a stage, what is done of it, and all there is to do.
        Returns:
            The page as JSON, its rows as text under ``_COLUMNS``, and the files: page, JSON, figures.
        """


def command(
    name: Annotated[str, typer.Argument(help="Whose evaluation; see hoplon ls studies.")],
    *,
    profile: Annotated[
        str,
        typer.Option(help="quick (minutes), standard (an hour), paper (its counts), networks (trains more of them)."),
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
    run = _study_named(name)
    require_writable(out)

    def own() -> tuple[ZooModel, ZooData]:
        assert model is not None
        return resolve_model(model[0], seed=seed, progress=report_training), resolve_data(model[1])

    with _data_in(data), torch_threads(thread_count):
        command = ["hoplon", "study", name, "--profile", profile, "--seed", str(seed), "--out", str(out)]
        command += ["--model", *model] if model is not None else []
        command += ["--threads", str(thread_count)] if thread_count is not None else []
        saved = "finished parts. The same command resumes the study."
        with interruptible(lambda: saved), progress_bars() as report_progress:
            document, rows, files = run(
                out,
                profile=profile,
                seed=seed,
                own=None if model is None else own,
                command=command,
                only=part or (),
                again=again or (),
                tell=report_progress,
                say=print_status,
            )
    unfinished = [f"{part}: --part {part} runs it" for part in document["unfinished"]]
    paragraphs = [("Not run yet", unfinished)] if unfinished else []
    show(document, [_table(document, rows)], paragraphs, as_json=as_json)
    print_status(f"wrote {files[0]}, {files[1]} and {len(files) - 2} figures")


def study_names() -> tuple[str, ...]:
    """Return the names of the studies of installed packages, in alphabetical order."""
    return tuple(sorted(entry_points(group="hoplon.studies").names))


def _study_named(name: str) -> RunsStudy:
    if name not in study_names():
        raise no_match("study", name, study_names())
    run: RunsStudy = entry_points(group="hoplon.studies")[name].load()
    return run


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
    before = {_DATA: os.environ[_DATA]} if _DATA in os.environ else {}
    os.environ[_DATA] = str(folder)
    try:
        yield
    finally:
        del os.environ[_DATA]
        os.environ.update(before)


def _table(document: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> TextTable:
    title = f"{document['title']}; profile {document['profile']}, seed {document['seed']}"
    return TextTable(title, _COLUMNS, rows, left=_COLUMNS[:4])
