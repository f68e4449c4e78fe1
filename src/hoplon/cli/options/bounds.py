"""Bounds and policies as named on the command line, for ``profile``, ``harden`` and ``overhead``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Option

from hoplon.program.program import Program
from hoplon.protections.ranges.inherent import inherent_ranges
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Coverage, Ranger
from hoplon.report.text_table import TextTable

_MOST_ROWS = 60


Bounded = Literal["algorithm1", "activations", "operators", "with-last-linear"]
PolicyName = Literal["clamp", "zero", "random", "detect"]
Where = Annotated[Bounded, Option(help="Which operators get a bound.")]
PolicyOption = Annotated[
    PolicyName, Option(help="What replaces a value outside of its bound; detect cannot be exported.")
]


def ranger(
    ranges: Ranges,
    *,
    where: Bounded = "algorithm1",
    policy: PolicyName = "clamp",
    seed: int = 0,
    leave_unprofiled: bool = False,
) -> Ranger:
    """Return the protection that these options describe.

    Args:
        seed: of random replacements.
    """
    policies: dict[PolicyName, Policy] = {
        "clamp": Clamp(),
        "zero": ToZero(),
        "random": RandomInRange(seed),
        "detect": Detect(),
    }
    return Ranger(
        ranges,
        where={"operators": "all", "activations": "activations"}.get(where, "algorithm1"),  # type: ignore[arg-type]
        last_linear=where == "with-last-linear",
        policy=policies[policy],
        unprofiled="leave" if leave_unprofiled else "refuse",
    )


def ranges_for(program: Program, path: Path | None) -> Ranges:
    """Load the ranges of a file, or derive those of the functions themselves."""
    return inherent_ranges(program) if path is None else Ranges.load(path.expanduser())


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
