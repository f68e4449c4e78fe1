"""One decision of an episode is struck: faults that turn it aside are looked for, and driven on from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hoplon_studies.driving.episodes import Driver, Episode
from hoplon_studies.driving.film_strip import Film
from hoplon_studies.driving.injected_driver import StruckStudent, Word
from hoplon_studies.driving.world.control import STRAIGHT_ON, clipped, direction, wheel_angle
from hoplon_studies.driving.world.roads import Floats
from hoplon_studies.driving.world.simulator import Scenario, World

ASIDE = 60.0
"""Degrees that a decision must be off by, as in Ranger's evaluation of steering networks."""

THRESHOLDS = (15, 30, 60, 120)
"""Of deviations in Ranger's Fig. 7, in degrees."""

FRAMES = 25
"""Decisions out of which the struck one is drawn: the first 2 seconds, at a random place of a random track."""

AFTERWARDS = 25
"""Decisions that are driven after the struck one: 2 seconds."""


@final
@dataclass(frozen=True, eq=False)
class StruckFrame:
    """A frame of a fault-free episode, and what faults make of the decision there.

    Attributes:
        frame: its number; ``golden`` is what was decided then.
        before: fault-free decisions up to there.
        episode: the fault-free one, which goes on for as long as struck ones do.
        wheel, turned: by fault, degrees by which the steering wheel and the direction of the point that is steered for
            differ from the fault-free ones: float64, shape ``(faults,)``.
        words: the faults, in the order of drawing.
    """

    frame: int
    golden: Floats
    before: Sequence[Floats]
    episode: Episode
    wheel: Floats
    turned: Floats
    words: Sequence[Word]

    def first(self, kind: str) -> Word | None:
        """The first fault that is off by more than :data:`ASIDE`: of the steering "wheel", or "direction"."""
        found = np.flatnonzero((self.wheel if kind == "wheel" else self.turned) > ASIDE)
        return self.words[int(found[0])] if len(found) else None

    def counts(self) -> dict[str, int]:
        """Faults drawn, and those off by more than each threshold."""
        by_wheel = {f"wheel-{limit}": int((self.wheel > limit).sum()) for limit in THRESHOLDS}
        return {
            "frame": self.frame,
            "drawn": len(self.words),
            **by_wheel,
            "direction": int((self.turned > ASIDE).sum()),
        }


def strike_one_frame(
    scenario: Scenario, driver: StruckStudent, words: Sequence[Word], *, frame: int, decisions: int = AFTERWARDS
) -> StruckFrame:
    """Drive without faults, then decide once more at one frame under each fault by itself.

    Args:
        driver: unprotected, its values struck.
        frame: which decision.
        decisions: driven after it.
    """
    with driver.under([]):
        film = Film(scenario, driver, decisions=frame + 1 + decisions)
    moments = film.moments
    frame = min(frame, len(moments) - 1)  # a student that leaves the road by itself
    picture, golden = moments[frame].picture, moments[frame].waypoints
    before = [moment.waypoints for moment in moments[:frame]]
    last = before[-1] if before else STRAIGHT_ON
    with driver.under(words):
        said = [_followed(driver.waypoints(picture), last) for _ in words]
    wheel, turned = (
        np.array([abs(angle(decision) - angle(golden)) for decision in said]) for angle in (wheel_angle, direction)
    )
    return StruckFrame(frame, golden, before, film.episode, wheel, turned, words)


def drive_on(
    scenario: Scenario,
    driver: StruckStudent,
    struck: StruckFrame,
    word: Word,
    *,
    frames: int = 1,
    decisions: int = AFTERWARDS,
) -> tuple[Film, float]:
    """The episode from the struck frame on, and by how many degrees the steering wheel was off there.

    Up to there decisions are the fault-free ones of the unprotected student, for every arm.

    Args:
        driver: of the arm, its values struck.
        word: the fault.
        frames: decisions in a row that it strikes.
        decisions: driven after the struck frame.
    """
    with driver.under([word] * frames, last=struck.before[-1] if struck.before else None):
        film = Film(scenario, _FromFrame(struck.before, driver), decisions=struck.frame + 1 + decisions)
    return film, abs(wheel_angle(film.moments[struck.frame].waypoints) - wheel_angle(struck.golden))


def drawn_frame(seed: int, number: int) -> int:
    """The decision of an episode that is struck: uniform, a function of seed and number alone."""
    return int(np.random.default_rng([seed, number, 2]).integers(FRAMES))


class _FromFrame(Driver):
    """Given decisions first, then a student's own."""

    def __init__(self, before: Sequence[Floats], driver: Driver) -> None:
        self._before, self._driver, self._at = before, driver, 0

    def waypoints(self, picture: NDArray[np.uint8], world: World) -> Floats | None:
        self._at += 1
        if self._at <= len(self._before):
            return self._before[self._at - 1]
        return self._driver.waypoints(picture, world)


def _followed(said: Floats | None, last: Floats) -> Floats:
    """What is followed of what was said."""
    return clipped(said) if said is not None and np.isfinite(said).all() else last
