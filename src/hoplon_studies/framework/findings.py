"""Findings of one part of a study, and their form in a file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, ClassVar, Self, final

from pydantic import ConfigDict

from hoplon.errors import HoplonError
from hoplon_studies.framework.figures import Figure
from hoplon_studies.framework.rows import Row, Value


@final
@dataclass(frozen=True)
class Table:
    """A table beside the rows: what a figure of the paper shows, point by point.

    ``detail``: True for what the JSON holds and the page leaves out.

    Raises:
        HoplonError: a row of another length than the columns.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""
    detail: bool = False

    @classmethod
    def of(cls, title: str, records: Sequence[Mapping[str, Value]], note: str = "", *, detail: bool = False) -> Self:
        """A table of records, at least one, that all have the same keys: its columns."""
        return cls(title, tuple(records[0]), tuple(tuple(record.values()) for record in records), note, detail)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise HoplonError(f"expected {len(self.columns)} cells in a row of {self.title!r}, got {row}")


@final
@dataclass(frozen=True)
class Source:
    """Source of figures.

    Attributes:
        what: which figures.
        fault_model: what a fault is, where it strikes and how it was drawn; "none" where nothing is struck.
        seed: of the draw; None where nothing is drawn.
        runs: run directories relative to the study's folder of runs, from which the figures can be derived anew.
        command: what makes them again.
    """

    what: str
    fault_model: str
    seed: int | None = None
    runs: tuple[str, ...] = ()
    command: str = ""


Finding = Row | Table | Figure | Source | str
"""A single finding of a part; a string is a paragraph under its heading."""


@final
@dataclass(frozen=True)
class Findings:
    """Findings of a part. ``text``: paragraphs under its heading. ``study``: in a file, digest of its study."""

    rows: tuple[Row, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    text: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    study: str = field(default="", compare=False)
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    @classmethod
    def of(cls, found: Iterable[Finding]) -> Self:
        """Findings out of single ones, each kind in the order in which they come; a string is a paragraph."""
        single = tuple(found)
        kinds: dict[str, Any] = {"rows": Row, "tables": Table, "figures": Figure, "text": str, "sources": Source}
        parts: dict[str, Any] = {
            name: tuple(one for one in single if isinstance(one, kind)) for name, kind in kinds.items()
        }
        return cls(**parts)

    def __iter__(self) -> Iterator[Finding]:
        """The single findings, kind by kind."""
        return chain[Finding](self.rows, self.tables, self.figures, self.text, self.sources)

    def stored(self) -> dict[str, Any]:
        """The findings as values that JSON holds, the content of figures in base 64.

        This class is the schema by which :func:`hoplon.files.json_as` gives them back.
        """
        stored = asdict(self)
        for figure in stored["figures"]:
            figure["content"] = base64.b64encode(figure["content"]).decode("ascii")
        return stored
