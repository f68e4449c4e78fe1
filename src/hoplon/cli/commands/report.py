"""``hoplon report RUN``: the page once more, from the results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hoplon.cli.console import print_status, show
from hoplon.cli.output_folder import require_writable
from hoplon.report.document import read_document
from hoplon.report.page import write_page
from hoplon.report.verdicts import verdict


def command(
    run: Annotated[Path, Argument(help="The folder of a demo or compare run, or its results.json.")],
    *,
    out: Annotated[Path | None, Option(help="Folder for report.html (default: that of the run).")] = None,
    as_json: Annotated[bool, Option("--json", help="The results as one JSON object on stdout.")] = False,
) -> None:
    """Write report.html from results that are there already; nothing is run."""
    stored = read_document(run)
    folder = out or (run if run.is_dir() else run.parent)
    require_writable(folder)
    page = folder / "report.html"
    document = {**stored, "report": str(page)}
    write_page(page, document)
    show(document, [], [(part.title, part.sentences) for part in verdict(document)], as_json=as_json)
    print_status(f"wrote {page}")
