"""One figure of a paper beside the figure found here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self, final

from hoplon.errors import HoplonError
from hoplon.stats.intervals import Interval

Value = str | int | float | None
"""Content of a cell of a table."""

KEYS = (
    *("where", "model", "data", "paper", "here", "low", "high", "n", "seed", "note"),
    *("what", "unit", "arm", "setting", "stands_for", "why", "failure", "detail"),
)
DIFFERENCE = "difference"
"""The arm of a row that holds the difference of two arms on the same faults."""


@final
@dataclass(frozen=True)
class Row:
    """A published value and the value found here.

    Attributes:
        where: the place in the paper and nothing else: "Table II", "Fig. 6".
        model: the network it was found on; the paper's own, or what stands in for it.
        data: what inputs met it; "-" where none take part.
        what: the quantity alone: "top-1", "RMSE".
        unit: of ``paper``, ``here``, ``low`` and ``high``: "%", "MB", "s"; empty for plain counts.
        paper: the published value; None where the paper gives none.
        here: the value found; None where the row could not run, and ``why`` says what is missing.
        low: lower limit of ``here`` (95 %); None where nothing was estimated.
        high: upper limit.
        n: what the limits rest on: faults, runs or repeats.
        seed: of the faults or the order of measurements; None where nothing is drawn.
        why: why the two differ, where that is known, or why there is nothing here.
        arm: what protects, in a word or two: "none", "ranger"; empty where nothing is compared.
        setting: what all rows of one table share, such as the fault model.
        stands_for: the paper's network and data that this one stands in for; empty where it is the paper's own.
        failure: True for a share of failures, of which arms are compared by how many times fewer there are.
        detail: True for what the JSON holds and the page leaves out.
    Raises:
        HoplonError: a row without a place or without what is counted, one with nothing here and no reason, limits that
            do not enclose the value, or a number that JSON cannot hold.
    Example:
        >>> row = Row("Fig. 13", "ResNet-20", "CIFAR-10", "critical share", "%", paper=5.3, setting="random weights")
        >>> row.missing("no weights here").as_json()["note"]
        'random weights: critical share, %; no weights here'
    """

    where: str
    model: str
    data: str
    what: str
    unit: str = ""
    paper: Value = None
    here: Value = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    seed: int | None = None
    why: str = ""
    arm: str = ""
    setting: str = ""
    stands_for: str = ""
    failure: bool = False
    detail: bool = False

    def __post_init__(self) -> None:
        if not all((self.where, self.model, self.data, self.what)):
            raise HoplonError(f"expected a row with where, model, data and what, got {self}")
        for name in ("paper", "here", "low", "high"):
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise HoplonError(
                    f"expected a finite {name}, got {value} in {self.where}, {self.what}; None says unknown"
                )
        known = isinstance(self.here, (int, float)) and self.low is not None and self.high is not None
        if known and not self.low <= self.here <= self.high:  # type: ignore[operator]
            limits = (self.low, self.here, self.high)
            raise HoplonError(f"expected limits around the value, got {limits} in {self.where}, {self.what}")

    @property
    def note(self) -> str:
        """Setting, arm, quantity, unit, and the reason why the two differ, as one line."""
        under = ", ".join(part for part in (self.setting, self.arm) if part)
        counted = ", ".join(part for part in (f"{under}: {self.what}" if under else self.what, self.unit) if part)
        return f"{counted}; {self.why}" if self.why else counted

    def missing(self, why: str) -> Self:
        """The same row with nothing found here, and why."""
        if not why:
            raise HoplonError(f"expected a reason why {self.where} ({self.what}) has no figure here, got none")
        return replace(self, here=None, low=None, high=None, n=None, seed=None, why=why)

    def found(self, interval: Interval, *, n: int, seed: int | None, scale: float = 100.0) -> Self:
        """The same row with an estimate and its limits, times ``scale`` (per cent by default)."""
        here, low, high = (scale * float(value) for value in (interval.estimate, interval.low, interval.high))
        return replace(self, here=here, low=low, high=high, n=n, seed=seed)

    def as_json(self) -> dict[str, Any]:
        """The row as the page's JSON holds it: the keys of ``KEYS``."""
        return {key: getattr(self, key) for key in KEYS}
