"""A study's page: Markdown with its figures beside it, and the same as JSON, both made from the findings alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.files import read_json, write_atomically, write_json
from hoplon_studies.framework.findings import Findings
from hoplon_studies.framework.rows import Row, Value
from hoplon_studies.framework.study import StudyResult

FORMAT = 1
_DIGITS = 4


class _Part(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    figures: list[str]


class _Document(TypedDict):
    """What tells the JSON of a page from other documents."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    parts: list[_Part]


@final
@dataclass(frozen=True)
class Pages:
    """The files of one study."""

    markdown: Path
    document: Path
    figures: tuple[Path, ...]


def write_pages(out: Path, result: StudyResult) -> Pages:
    """Write ``NAME.md``, ``NAME.json`` and ``NAME/PART-FIGURE.svg``, each whole or not at all.

    Raises:
        StoreError: the folder is not writable.
    """
    name = result.study.name
    figures = []
    for part, findings in result.findings.items():
        for figure in findings.figures:
            file = out / name / f"{part}-{figure.name}.{figure.suffix}"
            write_atomically(file, figure.content)
            figures.append(file)
    markdown, document = out / f"{name}.md", out / f"{name}.json"
    for old in _figures_of(document, name):
        if old not in figures and old.is_file() and not old.is_symlink():
            old.unlink()
    write_json(document, as_document(result))
    write_atomically(markdown, as_markdown(result))
    return Pages(markdown, document, tuple(figures))


def _figures_of(document: Path, name: str) -> list[Path]:
    """Figures of an earlier page: the files that its document, if it is one of ours, names beside it."""
    try:
        named = [figure for part in read_json(document, _Document)["parts"] for figure in part["figures"]]
    except (OSError, ValueError):
        return []
    return [document.parent / one for one in named if re.fullmatch(rf"{re.escape(name)}/[a-z0-9-]+\.(svg|png)", one)]


def as_document(result: StudyResult) -> dict[str, Any]:
    """The study as plain values: ``rows`` with the keys of :data:`KEYS` of ``rows``, and what they rest on."""
    identity, findings = result.manifest["identity"], result.findings
    return {
        "format": FORMAT,
        "study": result.study.name,
        "title": result.study.title,
        **{key: identity[key] for key in ("profile", "counts", "seed", "model", "data", "threads", "versions")},
        **{key: result.manifest[key] for key in ("begun", "command", "machine")},
        "unfinished": list(result.unfinished),
        "rows": [row.as_json() for part in findings.values() for row in part.rows],
        "parts": [
            {
                "name": part.name,
                "title": part.title,
                "rows": len(findings[part.name].rows),
                "tables": [asdict(table) for table in findings[part.name].tables],
                "figures": [
                    f"{result.study.name}/{part.name}-{one.name}.{one.suffix}" for one in findings[part.name].figures
                ],
                "sources": [asdict(source) for source in findings[part.name].sources],
            }
            for part in result.study.parts
            if part.name in findings
        ],
    }


def as_markdown(result: StudyResult) -> str:
    """The study as a page of the documentation."""
    environment = Environment(
        loader=PackageLoader("hoplon_studies.framework", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": cell, "here": here, "tables": _by_place}
    template = environment.get_template("page.md.j2")
    sections = [(part, result.findings[part.name]) for part in result.study.parts if part.name in result.findings]
    return template.render(
        study=result.study,
        manifest=result.manifest,
        identity=result.manifest["identity"],
        sections=sections,
        unfinished=result.unfinished,
    )


def _by_place(findings: Findings) -> Mapping[str, list[Row]]:
    """Rows by their place in the paper, in order."""
    found: dict[str, list[Row]] = {}
    for row in findings.rows:
        found.setdefault(row.where, []).append(row)
    return found


def here(row: Row, *, absent: str = "–") -> str:
    """The value found, with its limits and unit; ``absent`` where there is none.

    Example:
        >>> here(Row("Fig. 6", "a", "b", "share", "%", here=1.23456, low=0.5, high=3))
        '1.235 [0.5, 3] %'
    """
    if row.here is None:
        return absent
    limits = "" if row.low is None or row.high is None else f" [{_number(row.low)}, {_number(row.high)}]"
    return f"{cell(row.here)}{limits} {row.unit}".rstrip()


def cell(value: Value) -> str:
    """A value as a cell of a Markdown table.

    Example:
        >>> cell(20018880), cell(0.000123456), cell("a|b"), cell(None)
        ('20,018,880', '0.0001235', 'a\\\\|b', '')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    return _number(value)


def _number(value: float) -> str:
    if isinstance(value, int) or (value == int(value) and abs(value) >= 10**_DIGITS):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"
