"""Closed ranges of values, one per operator or one per channel of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

from hoplon.errors import HoplonError, checked
from hoplon.formats.digest import LATER
from hoplon.registry import register


@register("part", "bound")
@final
@checked
@dataclass(frozen=True)
class Bound:
    """A closed range of values, both ends finite.

    Raises:
        HoplonError: ends that are not finite, or the lower one above the upper.
    Example:
        >>> Bound(0.0, 2.5).hull(Bound(-1.0, 1.0))
        Bound(low=-1.0, high=2.5)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise HoplonError(f"expected finite bounds with low <= high, got ({self.low}, {self.high})")
        object.__setattr__(self, "low", self.low + 0.0)  # -0.0 becomes +0.0
        object.__setattr__(self, "high", self.high + 0.0)

    def hull(self, other: Bound) -> Bound:
        """The smallest bound that holds both."""
        return Bound(min(self.low, other.low), max(self.high, other.high))

    def widened(self, share: float) -> Bound:
        """Each end moved outwards by a share of its magnitude."""
        return Bound(self.low - abs(self.low) * share, self.high + abs(self.high) * share)

    def loosened(self, share: float) -> Bound:
        """Both ends moved outwards by a share of the larger magnitude."""
        slack = max(abs(self.low), abs(self.high)) * share
        return Bound(self.low - slack, self.high + slack)


@register("part", "channel-bounds")
@final
@checked
@dataclass(frozen=True)
class ChannelBounds:
    """One bound per channel of a value; ``axis`` is that of the channels among the axes of one sample.

    ``medians``: of the values that the bounds were observed on, one per channel; none where nothing asks for them.

    Raises:
        HoplonError: no channel at all, or medians of another number of channels.
    """

    axis: int
    channels: tuple[Bound, ...]
    medians: tuple[float, ...] = field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        if not self.channels:
            raise HoplonError("expected the bound of at least one channel, got none")
        if len(self.medians) not in (0, len(self.channels)):
            raise HoplonError(f"expected {len(self.channels)} medians, one per channel, got {len(self.medians)}")

    @property
    def hull(self) -> Bound:
        """The smallest bound that holds all channels'."""
        return Bound(min(bound.low for bound in self.channels), max(bound.high for bound in self.channels))

    def widened(self, share: float) -> ChannelBounds:
        """Each end moved outwards by a share of its magnitude."""
        return self.each(lambda bound: bound.widened(share))

    def loosened(self, share: float) -> ChannelBounds:
        """Both ends of each channel moved outwards by a share of its larger magnitude."""
        return self.each(lambda bound: bound.loosened(share))

    def hull_with(self, other: Bound) -> ChannelBounds:
        """Each channel's bound widened to hold another."""
        return self.each(lambda bound: bound.hull(other))

    def each(self, change: Callable[[Bound], Bound]) -> ChannelBounds:
        """The same with another bound for each channel."""
        return replace(self, channels=tuple(map(change, self.channels)))
