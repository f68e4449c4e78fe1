"""``hoplon evidence DOCUMENT...``: requirement, test and figure on one page, from what fit and gate wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from hoplon.cli.console import print_status, show
from hoplon.cli.options.command_line import RUN, AsJson
from hoplon.cli.output_folder import require_writable
from hoplon.errors import StoreError
from hoplon.files import read_json
from hoplon.report.document import write_document
from hoplon.report.evidence import evidence_of, write_evidence
from hoplon.report.text_table import TextTable


def command(
    documents: Annotated[
        list[Path], Argument(help="JSON files that hoplon fit and hoplon gate wrote with --out.", metavar="DOCUMENT...")
    ],
    *,
    title: Annotated[str, Option(help="Title of the page.")] = "Soft errors: evidence",
    out: Annotated[Path, Option(help="Folder for evidence.html and evidence.json.", rich_help_panel=RUN)] = Path(
        "hoplon-evidence"
    ),
    as_json: AsJson = False,
) -> None:
    """Write a page of requirements, tests and figures, with what fault injection in software cannot show."""
    require_writable(out)
    tested = {}
    for file in documents:
        try:
            tested[str(file)] = read_json(file)
        except (OSError, ValueError) as error:
            raise StoreError(
                f"expected a document of hoplon fit or hoplon gate at {file}, got {error}; --out writes one"
            ) from error
    document = evidence_of(title, tested)
    page = write_evidence(out / "evidence.html", document)
    write_document(out / "evidence.json", document)
    rows = [(row["requirement"], row["figure"], row["verdict"]) for row in document["rows"]]
    columns = ("requirement", "figure", "verdict")
    show(document, [TextTable(title, columns, rows, left=columns)], as_json=as_json)
    print_status(f"wrote {page} and {out / 'evidence.json'}")
