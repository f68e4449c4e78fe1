"""What ``profile``, ``harden`` and ``overhead`` share: bounds and what they do, as named on the command line."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from hoplon.program.program import Program
from hoplon.protections.ranges.inherent import inherent_ranges
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Coverage, Ranger
from hoplon.report.text_table import TextTable

_MOST_ROWS = 60


class Bounded(enum.StrEnum):
    """Which operators get a bound."""

    ALGORITHM1 = "algorithm1"
    ACTIVATIONS = "activations"
    OPERATORS = "operators"
    WITH_LAST_LINEAR = "with-last-linear"


class PolicyName(enum.StrEnum):
    """What becomes of a value outside of its bound."""

    CLAMP = "clamp"
    ZERO = "zero"
    RANDOM = "random"
    DETECT = "detect"


class FormName(enum.StrEnum):
    """How a bound enters the graph."""

    SEPARATE = "separate"
    FUSED = "fused"

    @property
    def form(self) -> Literal["separate", "fused"]:
        """As :func:`hoplon.harden` takes it."""
        return "fused" if self is FormName.FUSED else "separate"


def ranger(
    ranges: Ranges,
    *,
    where: Bounded = Bounded.ALGORITHM1,
    policy: PolicyName = PolicyName.CLAMP,
    seed: int = 0,
    leave_unprofiled: bool = False,
) -> Ranger:
    """The protection that these options describe.

    Args:
        seed: of random replacements.
    """
    policies: dict[PolicyName, Policy] = {
        PolicyName.CLAMP: Clamp(),
        PolicyName.ZERO: ToZero(),
        PolicyName.RANDOM: RandomInRange(seed),
        PolicyName.DETECT: Detect(),
    }
    return Ranger(
        ranges,
        where={Bounded.OPERATORS: "all", Bounded.ACTIVATIONS: "activations"}.get(where, "algorithm1"),  # type: ignore[arg-type]
        last_linear=where is Bounded.WITH_LAST_LINEAR,
        policy=policies[policy],
        unprofiled="leave" if leave_unprofiled else "refuse",
    )


def ranges_for(program: Program, path: Path | None) -> Ranges:
    """The ranges of a file, or those of the functions themselves."""
    return inherent_ranges(program) if path is None else Ranges.load(path.expanduser())


def listed(coverage: Sequence[Coverage]) -> list[dict[str, Any]]:
    """What is bounded to what, what is not, and why, as plain rows."""
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
    """The listing as a table."""
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
