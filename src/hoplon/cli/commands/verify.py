"""``hoplon verify RUN``: whether stored records are as they were written; nothing is changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument

from hoplon.campaign.verification import Record, verify
from hoplon.cli.console import show
from hoplon.cli.options.command_line import AsJson
from hoplon.errors import StoreError
from hoplon.report.text_table import TextTable

_COLUMNS = ("unit or file", "state", "found", "what to do")


def command(
    run: Annotated[
        Path,
        Argument(
            help="A run directory, a folder of compare, demo or study, a bundle, or a document, ranges or scores."
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Check every file against its digest and its schema, name all that is damaged or missing; change nothing."""
    records = verify(run)
    counts = Counter(record.state for record in records)
    title = f"{run}: " + ", ".join(f"{count} {state}" for state, count in counts.items())
    rows = [(record.name, record.state, record.found, record.way_out) for record in records]
    document = {"format": 1, "path": str(run), "counts": dict(counts), "records": [asdict(one) for one in records]}
    show(document, [TextTable(title, _COLUMNS, rows, left=_COLUMNS)], as_json=as_json)
    if wrong := [record for record in records if record.wrong]:
        raise StoreError(f"expected records as they were written in {run}, got {_listed(wrong)}; {wrong[0].way_out}")


def _listed(records: list[Record]) -> str:
    return ", ".join(f"{record.name} ({record.state})" for record in records)
