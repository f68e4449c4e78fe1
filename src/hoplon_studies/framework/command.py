"""A study as the command line runs it: ``hoplon study`` finds it by its entry point in ``hoplon.studies``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hoplon_studies.framework.digits import cell, here
from hoplon_studies.framework.page import as_document, write_pages
from hoplon_studies.framework.profiles import profile_named
from hoplon_studies.framework.study import Own, Study, run_study

Document = dict[str, Any]
Cells = tuple[str, ...]


def command_of(study: Study) -> Callable[..., tuple[Document, list[Cells], tuple[Path, ...]]]:
    """Return the function that ``hoplon study NAME`` calls; see :class:`hoplon.cli.commands.study.RunsStudy`."""
    return partial(_run, study)


def _run(
    study: Study, out: Path, *, profile: str, own: Callable[[], Own] | None, **options: Any
) -> tuple[Document, list[Cells], tuple[Path, ...]]:
    counts = profile_named(profile)
    result = run_study(study, out=out, profile=counts, own=None if own is None else own(), **options)
    rows: list[Cells] = [
        (
            row.where,
            ", ".join(part for part in (row.setting, row.arm, row.what) if part),
            row.model,
            row.data,
            cell(row.paper),
            here(row, absent=row.why),
            cell(row.n),
        )
        for findings in result.findings.values()
        for row in findings.rows
    ]
    pages = write_pages(out, result)
    return as_document(result), rows, (pages.markdown, pages.document, *pages.figures)
