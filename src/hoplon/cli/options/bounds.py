"""Bounds and policies as named on the command line, for ``profile``, ``harden`` and ``overhead``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Option

from hoplon.cli.options.command_line import PROTECTIONS
from hoplon.errors import HoplonError
from hoplon.program.program import Program
from hoplon.protections.ranges.inherent import inherent_ranges
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.ranges.saturation import Saturating
from hoplon.protections.values.ranger import Coverage, Inherent, Where as Bounded
from hoplon.report.text_table import TextTable

_MOST_ROWS = 60


Where = Annotated[Bounded, Option(help="Which operators get a bound.", rich_help_panel=PROTECTIONS)]
LastLinear = Annotated[
    bool, Option("--last-linear", help="Bound the last linear layer too.", rich_help_panel=PROTECTIONS)
]
InherentOption = Annotated[
    Inherent,
    Option(
        help="Functions that keep to their own ends; both-ends, the paper's: tanh and the like too, without data.",
        rich_help_panel=PROTECTIONS,
    ),
]
SaturatingOption = Annotated[
    Saturating,
    Option(
        help="Where relu6, tanh and the like are bounded; input: what enters them too, where a huge value still shows.",
        rich_help_panel=PROTECTIONS,
    ),
]
PolicyOption = Annotated[
    str, Option(help="What replaces a value outside of its bound; see hoplon ls policies.", rich_help_panel=PROTECTIONS)
]


def inherent_for(program: Program) -> Ranges:
    """Derive the ranges of the functions themselves."""
    try:
        return inherent_ranges(program)
    except HoplonError as error:
        raise HoplonError(f"{error}; on the command line: --ranges FILE from hoplon profile, or --no-bounds") from error


def listed(coverage: Sequence[Coverage]) -> list[dict[str, Any]]:
    """List what is bounded to what, what is not, and why, as plain rows."""
    return [
        {
            "site": entry.site,
            "low": None if entry.bound is None else entry.bound.low,
            "high": None if entry.bound is None else entry.bound.high,
            "per_channel": entry.per_channel,
            "why": entry.why,
        }
        for entry in coverage
    ]


def coverage_table(rows: Sequence[dict[str, Any]], title: str) -> TextTable:
    """Tabulate such rows."""
    cells = [
        [
            row["site"],
            *("" if row[end] is None else f"{row[end]:.6g}" for end in ("low", "high")),
            "yes" if row["per_channel"] else "",
            row["why"],
        ]
        for row in rows[:_MOST_ROWS]
    ]
    more = f"{len(rows) - _MOST_ROWS} more rows in the JSON" if len(rows) > _MOST_ROWS else None
    columns = ("site", "low", "high", "per channel", "why")
    return TextTable(title, columns, cells, more, left=("site", "per channel", "why"))
