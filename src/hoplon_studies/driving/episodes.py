"""One episode: a driver at the wheel until the road ends, the car is off it, or a guard stops it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, final, get_args

import numpy as np
from numpy.typing import NDArray

from hoplon_studies.driving.world.camera import photograph
from hoplon_studies.driving.world.control import SPEED, STRAIGHT_ON, Pose, clipped, expert_waypoints, pursue
from hoplon_studies.driving.world.roads import Floats
from hoplon_studies.driving.world.simulator import SECONDS_PER_DECISION, Scenario, World

Ending = Literal["finished", "crash", "stall", "stopped"]
"""Ending of an episode.

crash: the car left the road or hit the obstacle. stall: it did not, but came less than half as far as its speed takes
it. stopped: a guard reported memory that it cannot repair, before anything else happened; the car would have to brake.
finished: the rest.
"""

ENDINGS: tuple[Ending, ...] = get_args(Ending)

DECISIONS = 125
"""Decisions of an episode: 10 seconds."""


class Driver(Protocol):
    """Whoever says where to go."""

    def waypoints(self, picture: NDArray[np.uint8], world: World) -> Floats | None:
        """Five waypoints in units, shape ``(5, 2)``, perhaps not finite; None: stop.

        Args:
            picture: what the camera sees.
            world: for drivers that cheat.
        """


@final
class Expert:
    """Sees the road itself."""

    def waypoints(self, picture: NDArray[np.uint8], world: World) -> Floats:
        """Points of the smoothed centre line, or of a way round the obstacle."""
        return expert_waypoints(world.path, world.pose, world.near)


@final
class Blind:
    """Says straight on, whatever it sees."""

    def waypoints(self, picture: NDArray[np.uint8], world: World) -> Floats:
        """Points ahead."""
        return STRAIGHT_ON


@final
@dataclasses.dataclass(frozen=True)
class Episode:
    """Outcome of an episode.

    ``seconds`` until the end; ``progress``: units along the road; ``widest``: the largest distance from the centre line
    at a decision, in units; ``nonfinite``: decisions at which a waypoint was NaN or infinite; ``hit``: the crash was
    into the obstacle.
    """

    ending: Ending
    seconds: float
    progress: float
    widest: float
    nonfinite: int
    hit: bool = False


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """One decision, for pictures: what was seen and said from where; ``waypoints`` are those that were followed."""

    pose: Pose
    picture: NDArray[np.uint8]
    waypoints: Floats


def drive(
    scenario: Scenario,
    driver: Driver,
    *,
    decisions: int = DECISIONS,
    watch: Callable[[World, Moment], None] | None = None,
) -> Episode:
    """Let a driver drive; the same scenario and the same waypoints give the same episode, bit for bit.

    Where a waypoint is not finite, the last ones that were go on being followed (at the very beginning: straight on).
    Finite ones are clipped to what a car can reach, `control.AHEAD` and `control.ASIDE`.

    Args:
        scenario: where.
        driver: who.
        decisions: after so many the episode is over.
        watch: told each decision.
    """
    world = World(scenario)
    held, nonfinite, widest = STRAIGHT_ON, 0, world.offset
    for decision in range(decisions):
        pose = world.pose
        picture = photograph(world.road.ground, pose)
        said = driver.waypoints(picture, world)
        if said is None:
            return _episode("stopped", decision, world, widest, nonfinite)
        if np.isfinite(said).all():
            held = clipped(said)
        else:
            nonfinite += 1
        if watch is not None:
            watch(world, Moment(pose, picture, held))
        world.advance(pursue(held, pose.speed))
        widest = max(widest, world.offset)
        if world.has_hit_the_obstacle or world.has_left_the_road:
            return _episode("crash", decision + 1, world, widest, nonfinite)
    planned = SPEED * SECONDS_PER_DECISION * decisions
    ending: Ending = "stall" if world.progress < planned / 2 else "finished"
    return _episode(ending, decisions, world, widest, nonfinite)


def _episode(ending: Ending, decisions: int, world: World, widest: float, nonfinite: int) -> Episode:
    seconds = round(decisions * SECONDS_PER_DECISION, 2)
    hit = world.has_hit_the_obstacle
    return Episode(ending, seconds, round(world.progress, 3), round(widest, 3), nonfinite, hit)
