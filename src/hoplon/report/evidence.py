"""The evidence page: requirement, test and figure in one table, and what fault injection in software cannot show."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import ConfigDict
from typing_extensions import TypedDict

from hoplon.errors import DataError, checked
from hoplon.files import json_as, write_atomically
from hoplon.report.page import from_template
from hoplon.report.schema import Number

NOT_SHOWN = (
    "Faults are injected where PyTorch holds a value or a stored word. Instructions, addresses, control logic, "
    "registers, caches, and partial sums inside an operator are not struck; hardware has them all.",
    "A figure is for the operators, number formats and order of the captured program. Another back end, fused kernels "
    "or another precision compute other values in between.",
    "How often bits are upset is not measured here: the raw rate is an input, with its source, and so are ECC, "
    "altitude and flux.",
    "Faults that stay in the hardware (stuck bits, wear, latch-up), several upsets at a time, and common causes are "
    "not in these figures unless a test names them.",
    "The inputs of a test stand for those of the field only as far as they were chosen to; a criterion tells a "
    "wrong output, not what a vehicle or a patient makes of it.",
    "Software outside of the network (input, output, operating system, drivers) is not struck.",
    "This page reports tests. It is no certificate, and no argument that the requirements are the right ones.",
)
"""Limits that no figure here lifts."""

_WORDS = {"pass": "met", "fail": "missed", "undecided": "undecided", "none": "figure only"}
_OPEN = ConfigDict(strict=True, extra="allow")


class Row(TypedDict):
    """A requirement, the test that was made of it, and its figure; ``value`` with limits in ``unit``."""

    requirement: Annotated[str, MinLen(1)]
    test: Annotated[str, MinLen(1)]
    figure: Annotated[str, MinLen(1)]
    value: Number
    low: Number
    high: Number
    unit: Annotated[str, MinLen(1)]
    verdict: Literal["pass", "fail", "undecided", "none"]


class Findings(TypedDict):
    """What documents of ``hoplon fit`` and ``hoplon gate`` give to a page of evidence."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    command: str
    evidence: Annotated[list[Row], MinLen(1)]
    assumptions: list[str]


class Source(TypedDict):
    """A document, and what made it."""

    name: str
    text: str


class Evidence(TypedDict):
    """``evidence.json``."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]

    format: Literal[1]
    title: str
    rows: Annotated[list[Row], MinLen(1)]
    assumptions: list[str]
    not_shown: list[str]
    sources: list[Source]


@checked
def evidence_of(title: str, tested: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Collect the rows of tests in one document.

    Args:
        title: of the page.
        tested: by name of its file, the document of a test: ``command``, ``evidence`` (rows) and ``assumptions``.
    Raises:
        DataError: no document, or one of something else; names it.
    """
    if not tested:
        raise DataError("expected documents of hoplon fit or hoplon gate, got none")
    found: list[Findings] = []
    for name, document in tested.items():
        try:
            found.append(json_as(Findings, json.dumps(document)))
        except (ValueError, TypeError) as error:
            raise DataError(f"expected a document of hoplon fit or hoplon gate in {name}, got {error}") from error
    return {
        "format": 1,
        "title": title,
        "rows": [row for one in found for row in one["evidence"]],
        "assumptions": list(dict.fromkeys(text for one in found for text in one["assumptions"])),
        "not_shown": list(NOT_SHOWN),
        "sources": [{"name": name, "text": one["command"]} for name, one in zip(tested, found, strict=True)],
    }


@checked
def render_evidence(document: Mapping[str, Any]) -> str:
    """The page of a document of `evidence_of` as one HTML text without any script, which loads nothing.

    Raises:
        DataError: another document.
    """
    try:
        known = json_as(Evidence, json.dumps(document))
    except (ValueError, TypeError) as error:
        raise DataError(f"expected a document of evidence, got {error}") from error
    return from_template("evidence.html.j2", document=known, words=_WORDS, summary=_summary(known["rows"]))


@checked
def write_evidence(path: str | os.PathLike[str], document: Mapping[str, Any]) -> Path:
    """Write the page, whole or not at all.

    Raises:
        DataError: another document; StoreError: the folder is not writable.
    """
    target = Path(path)
    write_atomically(target, render_evidence(document))
    return target


def _summary(rows: Sequence[Row]) -> str:
    """Such as "3 requirements: 2 met, 1 undecided." """
    judged = [row for row in rows if row["verdict"] != "none"]
    counts = [(word, sum(row["verdict"] == verdict for row in judged)) for verdict, word in _WORDS.items()]
    parts = ", ".join(f"{count} {word}" for word, count in counts if count)
    more = len(rows) - len(judged)
    figures = f"{more} {'figure' if more == 1 else 'figures'} without a requirement" if more else ""
    plural = "requirement" if len(judged) == 1 else "requirements"
    return "; ".join(filter(None, (f"{len(judged)} {plural}: {parts}" if judged else "", figures))) + "."
