"""Bounds that hold the decision of the frame before: what a driver does who knows that it has just driven well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from hoplon.program.program import Program
from hoplon.protections.base import Protection, ValueProtection
from hoplon_studies.driving.world.control import STRAIGHT_ON, clipped
from hoplon_studies.driving.world.roads import Floats


@final
@dataclass(frozen=True)
class PreviousFrame(Protection):
    """Bounds on values and on how far waypoints move from frame to frame; what is unsound is not followed.

    A decision is unsound if a value on its way lay outside of its bound, also when it was computed once more, if a
    waypoint is not finite, or if one lies farther from where the last sound decision had it than it ever moved between
    neighbouring frames of golden drives, times the frames since. The last sound decision is followed in its place.

    Args:
        detector: flags values outside of their bounds, and leaves them as they are.
        jumps: what each waypoint may move from frame to frame, in units.
    Source:
        hoplon's; the papers bound values of one frame, whatever the one before was.
    """

    detector: Protection
    jumps: tuple[float, ...]

    label = "previous frame"

    @property
    def made_for(self) -> str | None:
        """The student whose values were profiled."""
        return self.detector.made_for

    def values(self, program: Program) -> Mapping[str, ValueProtection]:
        """Those of the detector."""
        return self.detector.values(program)


@final
class LastSound:
    """The last sound decision of an episode, and how often it took the place of another (``held``)."""

    def __init__(self, jumps: Sequence[float]) -> None:
        self._jumps = np.array(jumps)
        self.begin()

    def begin(self, last: Floats | None = None) -> None:
        """Forget what was: the decision before was ``last``, or there was none."""
        self._last, self._since, self.held = last, 0, 0

    def choose(self, said: Floats, *, alarmed: bool) -> Floats:
        """What is followed: what was said, shape ``(5, 2)``, if it is sound; ``alarmed``: a value was out of bounds."""
        self._since += 1
        if alarmed or not (np.isfinite(said).all() and self._is_near(said)):
            self.held += 1
            return STRAIGHT_ON if self._last is None else self._last
        self._last, self._since = said, 0
        return said

    def _is_near(self, said: Floats) -> bool:
        if self._last is None:
            return True
        moved = np.hypot(*(clipped(said) - clipped(self._last)).T)
        return bool((moved <= self._since * self._jumps).all())


def largest_jumps(drives: Sequence[Sequence[Floats]]) -> tuple[float, ...]:
    """The farthest that each waypoint moved between neighbouring decisions of these drives, in units.

    Example:
        >>> here, there = STRAIGHT_ON, STRAIGHT_ON + np.array([3.0, 4.0])
        >>> largest_jumps([[here, there, there], [here, here]])
        (5.0, 5.0, 5.0, 5.0, 5.0)
    """
    moved = [np.linalg.norm(np.diff(np.stack(drive), axis=0), axis=2).max(0) for drive in drives]
    return tuple(np.max(moved, axis=0).tolist())
