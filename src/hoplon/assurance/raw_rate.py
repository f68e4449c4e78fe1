"""Raw rates: how often bits of a memory are upset, with range, source and every factor that was applied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, final

from annotated_types import Ge, Le, MinLen
from typing_extensions import TypedDict

from hoplon.errors import HoplonError, NonNegative, checked
from hoplon.files import read_json
from hoplon.report.text import listed

Unit = Literal["FIT/Mbit", "1/bit/h"]
Kind = Literal["measured", "extrapolated", "reference", "given"]

BITS_PER_MBIT = 10**6
HOURS_OF_FIT = 10**9
_PER_BIT_HOUR = 1 / (BITS_PER_MBIT * HOURS_OF_FIT)  # of 1 FIT/Mbit
_FIT_PER_MBIT: Mapping[Unit, float] = {"FIT/Mbit": 1.0, "1/bit/h": BITS_PER_MBIT * HOURS_OF_FIT}
_MOST_BITS = 3  # of one upset, whose share is asked for


@final
@checked
@dataclass(frozen=True)
class RawRate:
    """Upsets of a memory: how many per bit and hour, before anything that a network makes of them.

    An upset is one event, whatever number of neighbouring bits it changes; ``shares`` tells how many have 1, 2 and 3.

    Args:
        fit_per_mbit: upsets in 10^9 hours of 10^6 bits; a Mbit is 10^6 bits here, and 1 FIT/Mbit 10^-15 per bit and
            hour. (Sources that mean 2^20 bits are 5 % lower than they seem; few say.)
        low_fit_per_mbit, high_fit_per_mbit: the range in which the rate lies; None: it is taken as known.
        source: where the rate comes from, so that a reader can check it.
        year: of the source.
        kind: "measured", "extrapolated" from other technology, "reference" of a standard, or "given" by the user.
        shares: of upsets that change 1, 2 and 3 bits; they sum to 1.
        factors: what the rate was multiplied with, by name; `times` and `behind_ecc` keep the record.
    Example:
        >>> rate = RawRate.of(1000, unit="FIT/Mbit", low=700, high=1200).times("altitude 3 km", 5.0)
        >>> print(rate)
        5,000 FIT/Mbit [3,500, 6,000] (given; the user's own), = 1000 x 5 (altitude 3 km)
        >>> rate.upsets_per_hour(bits=8 * 10**6)
        4e-05
    """

    fit_per_mbit: NonNegative
    low_fit_per_mbit: NonNegative | None = None
    high_fit_per_mbit: NonNegative | None = None
    source: str = "the user's own"
    year: int | None = None
    kind: Kind = "given"
    shares: tuple[float, ...] = (1.0, 0.0, 0.0)
    factors: tuple[tuple[str, float], ...] = field(default=())

    def __post_init__(self) -> None:
        low, high = self.range_fit_per_mbit
        if not (math.isfinite(high) and low <= self.fit_per_mbit <= high):
            raise HoplonError(f"expected a raw rate within its range, got {self.fit_per_mbit} and [{low}, {high}]")
        good = len(self.shares) == _MOST_BITS and all(0 <= share <= 1 for share in self.shares)
        if not good or abs(sum(self.shares) - 1) > 1e-9:
            raise HoplonError(f"expected shares of 1-, 2- and 3-bit upsets that sum to 1, got {self.shares}")

    @classmethod
    def of(
        cls,
        rate: NonNegative,
        *,
        unit: Unit,
        low: NonNegative | None = None,
        high: NonNegative | None = None,
        source: str = "the user's own",
        year: int | None = None,
        kind: Kind = "given",
        shares: tuple[float, ...] = (1.0, 0.0, 0.0),
    ) -> RawRate:
        """Return a rate given in a unit: "FIT/Mbit", or "1/bit/h" (upsets per bit and hour)."""
        scale = _FIT_PER_MBIT[unit]
        below, above = (None if end is None else end * scale for end in (low, high))
        return cls(rate * scale, below, above, source=source, year=year, kind=kind, shares=shares)

    @property
    def range_fit_per_mbit(self) -> tuple[float, float]:
        """The ends of the range; twice the rate itself where it is taken as known."""
        ends = (self.low_fit_per_mbit, self.high_fit_per_mbit)
        return tuple(self.fit_per_mbit if end is None else end for end in ends)  # type: ignore[return-value]

    @property
    def per_bit_hour(self) -> float:
        """Upsets per bit and hour."""
        return self.fit_per_mbit * _PER_BIT_HOUR

    def upsets_per_hour(self, bits: NonNegative) -> float:
        """Upsets per hour of so many bits."""
        return self.per_bit_hour * bits

    def upsets_fit(self, bits: NonNegative) -> float:
        """Upsets of so many bits in 10^9 hours."""
        return self.fit_per_mbit * bits / BITS_PER_MBIT

    def times(self, name: str, factor: NonNegative) -> RawRate:
        """The rate elsewhere, such as at an altitude or a neutron flux, over New York City at sea level.

        Args:
            name: of the factor, for the record.
            factor: that rate and range are multiplied with.
        """
        low, high = (None if end is None else end * factor for end in (self.low_fit_per_mbit, self.high_fit_per_mbit))
        return replace(
            self,
            fit_per_mbit=self.fit_per_mbit * factor,
            low_fit_per_mbit=low,
            high_fit_per_mbit=high,
            factors=(*self.factors, (name, factor)),
        )

    def behind_ecc(self, *, corrects: int = 1, detects: int = 2) -> RawRate:
        """The rate of what passes an error-correcting code in silence: upsets of more bits than it detects in a word.

        What it detects and cannot correct stops the device or is reported; it belongs to another budget. All bits of
        an upset are taken to be in one word, which interleaved memories avoid: there no upset of these sizes passes.

        Args:
            corrects: bits in a word that are put right; 1 for SEC-DED.
            detects: bits in a word that are at least noticed; 2 for SEC-DED.
        Raises:
            HoplonError: a code that detects less than it corrects.
        """
        if not 0 <= corrects <= detects:
            raise HoplonError(f"expected a code that detects what it corrects, got {corrects} and {detects} bits")
        passing = [share if bits > detects else 0.0 for bits, share in enumerate(self.shares, 1)]
        share = sum(passing)
        name = f"share that passes ECC ({corrects} corrected, {detects} detected)"
        shares = tuple(part / share for part in passing) if share else self.shares
        return replace(self.times(name, share), shares=shares)

    def to_dict(self) -> dict[str, Any]:
        """The rate as plain values."""
        low, high = self.range_fit_per_mbit
        return {
            "fit_per_mbit": self.fit_per_mbit,
            "low_fit_per_mbit": low,
            "high_fit_per_mbit": high,
            "per_bit_hour": self.per_bit_hour,
            "source": self.source,
            "year": self.year,
            "kind": self.kind,
            "shares_of_1_2_3_bit_upsets": list(self.shares),
            "factors": [list(factor) for factor in self.factors],
        }

    def __str__(self) -> str:
        low, high = self.range_fit_per_mbit
        ends = f" [{low:,.6g}, {high:,.6g}]" if low < high else ""
        year = "" if self.year is None else f", {self.year}"
        applied = "".join(f" x {factor:g} ({name})" for name, factor in self.factors)
        total = math.prod(factor for _, factor in self.factors)
        begun = f"{self.fit_per_mbit / total:g}" if total else "a rate"
        made = f", = {begun}{applied}" if applied else ""
        return f"{self.fit_per_mbit:,.6g} FIT/Mbit{ends} ({self.kind}; {self.source}{year}){made}"


class Citation(TypedDict):
    """One row of the table: the rate, and where a reader can check it."""

    fit_per_mbit: Annotated[float, Ge(0), Le(1e9)]
    low_fit_per_mbit: Annotated[float, Ge(0), Le(1e9)]
    high_fit_per_mbit: Annotated[float, Ge(0), Le(1e9)]
    year: Annotated[int, Ge(1970)] | None
    kind: Literal["measured", "extrapolated", "reference"]
    what: Annotated[str, MinLen(20)]
    source: Annotated[str, MinLen(20)]
    read_at: Annotated[str, MinLen(20)]
    secondary: bool


@cache
def known_rates() -> Mapping[str, Citation]:
    """Rates from the literature by name, few and old: a rate of the device at hand is better.

    ``secondary``: the figure was read where another quotes the source.
    """
    found: dict[str, Citation] = read_json(Path(__file__).with_name("raw_rates.json"), dict[str, Citation])
    return found


@checked
def known_rate(name: str) -> RawRate:
    """A rate of `known_rates`.

    Raises:
        HoplonError: no rate of that name; lists them.
    """
    table = known_rates()
    if name not in table:
        raise HoplonError(f"expected a rate in FIT/Mbit or one of {listed(sorted(table))}, got {name!r}")
    row = table[name]
    source = row["source"] + ("; from a secondary source" if row["secondary"] else "")
    ends = (row["low_fit_per_mbit"], row["high_fit_per_mbit"])
    return RawRate(row["fit_per_mbit"], *ends, source=source, year=row["year"], kind=row["kind"])
