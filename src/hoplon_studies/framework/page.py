"""A study's page: Markdown with its figures beside it, made from the same content as JSON and from nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, final

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.errors import StoreError
from hoplon.files import read_json, write_atomically, write_json
from hoplon_studies.framework.claims import VERDICTS, Evidence
from hoplon_studies.framework.digits import cell
from hoplon_studies.framework.figures import Figure, against
from hoplon_studies.framework.grids import STAND_IN, absent_networks, network, tabulated
from hoplon_studies.framework.rows import KEYS, Row
from hoplon_studies.framework.study import Published, Study, StudyResult

FORMAT = 2
_CHARTED = ("%", "degrees", "MB", "ms", "million")
_CHART = "paper-against-here"


class _File(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    file: str


class _Part(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    figures: list[_File | str]  # a name alone in early versions


class _Document(TypedDict):
    """What tells the JSON of a page from other documents."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    parts: list[_Part]
    charts: NotRequired[list[_File | str]]


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
    name, charts = result.study.name, _chart(result.rows)
    figures = []
    for part, findings in {**result.findings, "": None}.items():
        for figure in charts if findings is None else findings.figures:
            file = out / _file(name, part, figure)
            write_atomically(file, figure.content)
            figures.append(file)
    markdown, document = out / f"{name}.md", out / f"{name}.json"
    for old in _figures_of(document, name):
        if old not in figures and old.is_file() and not (old.is_symlink() or old.parent.is_symlink()):
            old.unlink()
    content = as_document(result)
    write_json(document, content)
    write_atomically(markdown, as_markdown(content))
    return Pages(markdown, document, tuple(figures))


def _figures_of(document: Path, name: str) -> list[Path]:
    """Figures of an earlier page: the files that its document, if it is one of ours, names beside it."""
    try:
        found: _Document = read_json(document, _Document)
    except (OSError, ValueError):
        return []
    figures = [*found.get("charts", []), *(figure for part in found["parts"] for figure in part["figures"])]
    named = [figure if isinstance(figure, str) else figure["file"] for figure in figures]
    return [document.parent / one for one in named if re.fullmatch(rf"{re.escape(name)}/[a-z0-9-]+\.(svg|png)", one)]


def as_document(result: StudyResult) -> dict[str, Any]:
    """The study as plain values: ``rows`` with the keys of :data:`KEYS` of ``rows``, and what they rest on."""
    identity, findings, study = result.manifest["identity"], result.findings, result.study
    return {
        "format": FORMAT,
        "study": study.name,
        "title": study.title,
        "introduction": list(study.introduction),
        **{key: identity[key] for key in ("profile", "counts", "seed", "model", "data", "threads", "versions")},
        **{key: result.manifest[key] for key in ("begun", "command", "machine")},
        "unfinished": list(result.unfinished),
        "claims": [asdict(claim) for claim in result.claims],
        "charts": [_named(study.name, "", chart) for chart in _chart(result.rows)],
        "rows": [row.as_json() for row in result.rows],
        "parts": [
            {
                "name": part.name,
                "title": part.title,
                "text": list(findings[part.name].text),
                "rows": len(findings[part.name].rows),
                "tables": [asdict(table) for table in findings[part.name].tables],
                "figures": [_named(study.name, part.name, one) for one in findings[part.name].figures],
                "sources": [asdict(source) for source in findings[part.name].sources],
            }
            for part in study.parts
            if part.name in findings
        ],
    }


def as_markdown(document: Mapping[str, Any]) -> str:
    """The page of a study, from what :func:`as_document` gives or ``NAME.json`` holds.

    Raises:
        StoreError: a document of another format.
    """
    if document.get("format") != FORMAT:
        raise StoreError(
            f"expected a study's document of format {FORMAT}, got {document.get('format')}; run the study again"
        )
    environment = Environment(
        loader=PackageLoader("hoplon_studies.framework", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"cell": cell}
    rows = rows_of(document)
    absent = _absent(rows)
    sections = []
    for part in document["parts"]:
        own, rows = rows[: part["rows"]], rows[part["rows"] :]
        sections.append(
            (part, list(tabulated(own, absent)), [table for table in part["tables"] if not table["detail"]])
        )
    template = environment.get_template("page.md.j2")
    stand_ins = _stand_ins(rows_of(document))
    return template.render(
        document=document, sections=sections, verdicts=VERDICTS, stand_ins=stand_ins, absent=absent_networks(absent)
    )


def judged_again(document: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """The same document with a study's words and verdicts of now over its rows: what no run decides.

    Raises:
        StoreError: a document of another format.
    """
    as_markdown(document)
    rows = rows_of(document)
    said = {
        "title": study.title,
        "introduction": list(study.introduction),
        "claims": [asdict(one) for one in study.claims(Evidence(rows, Published(study.name)))],
        "charts": [_named(study.name, "", chart) for chart in _chart(rows)],
    }
    return {**document, **json.loads(json.dumps(said))}


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    """The rows of a document."""
    return [Row(**{key: row[key] for key in KEYS if key != "note"}) for row in document["rows"]]


def _absent(rows: Sequence[Row]) -> list[Row]:
    """Rows of networks about which nothing at all is here or published."""
    known = {(row.model, row.data) for row in rows if row.here is not None or row.paper is not None}
    return [row for row in rows if (row.model, row.data) not in known]


def _stand_ins(rows: Sequence[Row]) -> str:
    """Which networks stand in for which, as a sentence; empty where none does."""
    shown = [row for row in rows if row.stands_for and row.data != "-" and row.here is not None]
    pairs = {network(row).removesuffix(f" {STAND_IN}"): row.stands_for for row in shown}
    told = "; ".join(f"{here} for {paper}" for here, paper in pairs.items())
    return (
        f"{STAND_IN} Stands in, and is no measurement of the paper's network, which is not here: {told}."
        if told
        else ""
    )


def _named(study: str, part: str, figure: Figure) -> dict[str, str]:
    return {"file": _file(study, part, figure), "title": figure.title, "alt": figure.alt}


def _file(study: str, part: str, figure: Figure) -> str:
    return f"{study}/{part}-{figure.name}.{figure.suffix}" if part else f"{study}/{figure.name}.{figure.suffix}"


def _chart(rows: Sequence[Row]) -> list[Figure]:
    """The figures here over the published ones, those that have a unit and are not 0 in the paper; none without any.

    Logarithmic axes have no place for 0, so the title says how many are left out, and how many of these hold here.
    """
    points: dict[str, list[tuple[float, float, float, float, bool]]] = {}
    zeros = [row for row in rows if row.paper == 0 and isinstance(row.here, int | float) and row.unit in _CHARTED]
    for row in rows:
        both = isinstance(row.paper, int | float) and isinstance(row.here, int | float)
        if both and row.paper > 0 and row.here >= 0 and row.unit in _CHARTED:  # type: ignore[operator]
            paper, found = float(row.paper), float(row.here)  # type: ignore[arg-type]
            low, high = (found if end is None else end for end in (row.low, row.high))
            points.setdefault(row.unit, []).append((paper, found, low, high, bool(row.stands_for)))
    every = [point for group in points.values() for point in group]
    if not every:
        return []
    limited = [point for point in every if point[2] < point[3]]
    near = sum(low <= paper <= high for paper, _, low, high, _ in limited)
    title = f"Paper against here, {len(every)} published figures; of {len(limited)} with limits here {near} lie within"
    if zeros:
        met = sum(row.here == 0 or (row.low is not None and row.low <= 0) for row in zeros)
        title += f"; {len(zeros)} that are 0 in the paper are not drawn, of which {met} hold here"
    if any(point[-1] for point in every):
        title += "; hollow where a network stands in"
    alt = f"Points about a diagonal, {len(every)} published figures and those here"
    return [against(_CHART, title=title, alt=alt, points=points)]
