"""gymnasium's CarRacing without its pictures: the car, the ground it drives on, and a rolling start."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Literal, final

import numpy as np

from hoplon.errors import HoplonError
from hoplon_studies.driving.world.control import SPEED, Command, Pose
from hoplon_studies.driving.world.obstacle import CAR, Obstacle, lay, straight_track
from hoplon_studies.driving.world.roads import BLUE, HALF_WIDTH, RED, ROAD, WHITE, Floats, Road

STEPS_PER_DECISION = 4
SECONDS_PER_DECISION = STEPS_PER_DECISION / 50
_OFF_THE_EDGE = 2.0  # units beyond the edge at which the car has left the road, whatever its wheels touch
_RUN_UP = 0.02  # of the lap: the first units of the straight road, where an episode on it begins
_LATERAL, _SLANT = 2.0, 0.1  # of a rolling start: up to so many units off the centre line, and radians askew


Roads = Literal["winding", "straight"]
"""Winding roads of the simulator's own, or a straight one with an obstacle."""


@final
@dataclasses.dataclass(frozen=True)
class Scenario:
    """Start of an episode: the track, the place on it, the distance from the centre line and the angle to it.

    ``place`` is a share of the lap, in [0, 1); ``lateral`` in units, ``slant`` in radians. With an ``obstacle`` the
    road is straight, whatever the ``track``.
    """

    track: int
    place: float
    lateral: float
    slant: float
    obstacle: Obstacle | None = None

    @classmethod
    def drawn(cls, seed: int, number: int, roads: Roads = "winding") -> Scenario:
        """Scenario ``number`` under a seed; a function of both, and of the kind of road, alone."""
        generator = np.random.default_rng([seed, number])
        track = int(generator.integers(2**31))
        place, lateral, slant = generator.uniform([0, -_LATERAL, -_SLANT], [1, _LATERAL, _SLANT])
        if roads == "straight":
            return cls(0, _RUN_UP * float(place), float(lateral), float(slant), Obstacle.drawn(generator))
        return cls(track, float(place), float(lateral), float(slant))


class World:
    """One car on one track, from a rolling start; the same scenario and commands give the same poses, bit for bit.

    Attributes:
        road: what is driven on.
        path: what the expert follows: the middle of the road, or a way round the obstacle; a point for each of
            ``road.line``.
        near: the number of the point of ``road.line`` that is closest to the car.
        progress: along that line since the start, in units.
        offset: of the car's centre from the road's centre line, in units.
    Raises:
        HoplonError: gymnasium or Box2D is not installed.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._environment = _environment(scenario)
        self._obstacle = scenario.obstacle
        self.road, self.path = _road(dataclasses.replace(scenario, place=0.0, lateral=0.0, slant=0.0))
        self._environment.car.destroy()
        self._environment.car = self._car = _rolling(self._environment.world, self.road, scenario)
        self.near = self.road.nearest(self.pose.point)
        self.progress = 0.0
        self.offset = self.road.distance(self.pose.point, self.near)

    @property
    def pose(self) -> Pose:
        """As it is now."""
        hull = self._car.hull
        return Pose(float(hull.position[0]), float(hull.position[1]), float(hull.angle), hull.linearVelocity.length)

    def advance(self, command: Command) -> None:
        """Drive on for one decision, 0.08 seconds."""
        action = np.array([-command.steering, command.gas, command.brake])
        for _ in range(STEPS_PER_DECISION):
            self._environment.step(action)
        length = len(self.road.line)
        point = self.pose.point
        now = self.road.nearest(point, self.near)
        self.progress += (now - self.near + length // 2) % length - length // 2
        self.near = now
        self.offset = self.road.distance(point, now)

    @property
    def has_left_the_road(self) -> bool:
        """True if no wheel is on the road, or the car's centre is more than 2 units beyond its edge."""
        return not any(wheel.tiles for wheel in self._car.wheels) or self.offset > HALF_WIDTH + _OFF_THE_EDGE

    @property
    def has_hit_the_obstacle(self) -> bool:
        """True if the car overlaps the obstacle of the scenario."""
        return self._obstacle is not None and self._obstacle.is_hit(self.pose.placed(CAR))


@lru_cache(maxsize=1)
def racing() -> tuple[ModuleType, ModuleType]:
    """gymnasium's modules of the track and of the car.

    Raises:
        HoplonError: they are not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout, where results go
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an error made of the bindings' own warnings crashes the interpreter
        try:
            from gymnasium.envs.box2d import car_dynamics, car_racing
        except ImportError as error:
            raise HoplonError(
                f"expected gymnasium with Box2D for the driving study, got {error}; pip install 'hoplon[studies]'"
            ) from error
    return car_racing, car_dynamics


def _environment(scenario: Scenario) -> Any:
    """A world of its own for each episode: what an earlier one leaves in the physics would change the last bits."""
    environment = racing()[0].CarRacing()
    environment._render = lambda mode: None  # or every step draws a picture that nobody looks at
    if scenario.obstacle is not None:
        environment._create_track = partial(lay, environment, straight_track())
    environment.reset(seed=scenario.track)
    return environment


def road_of(track: int) -> Road:
    """The winding road that the simulator makes of a seed; errors as :class:`World`."""
    return _road(Scenario(track, 0.0, 0.0, 0.0))[0]


@lru_cache(maxsize=4)
def _road(scenario: Scenario) -> tuple[Road, Floats]:
    """The road that the simulator makes, and the expert's path on it."""
    environment = _environment(scenario)
    laid = np.array(environment.track)[:, 1:]
    polygons = [(np.array(corners), _colour(colour)) for corners, colour in environment.road_poly]
    if scenario.obstacle is None:
        road = Road(laid[:, 1:], laid[:, 0], polygons)
        return road, road.line
    road = Road(laid[:, 1:], laid[:, 0], [*polygons, (scenario.obstacle.corners, BLUE)])
    return road, road.line + scenario.obstacle.shift(road.line)[:, None] * [1.0, 0.0]


def _colour(colour: Any) -> int:
    """The row of the palette for a colour of the simulator: kerbs are tuples, tiles arrays."""
    if isinstance(colour, tuple):
        return WHITE if colour[1] else RED
    return ROAD[round((float(colour[0]) - 102) / 2.55) % 3]


def _rolling(world: Any, road: Road, scenario: Scenario) -> Any:
    """A car that is under way already."""
    tile = int(scenario.place * len(road.centre))
    along = float(road.heading[tile])
    x, y = road.centre[tile] + scenario.lateral * np.array([math.cos(along), math.sin(along)])
    heading = along + scenario.slant
    car = racing()[1].Car(world, heading, float(x), float(y))
    for body in (car.hull, *car.wheels):
        body.linearVelocity = (-math.sin(heading) * SPEED, math.cos(heading) * SPEED)
    for wheel in car.wheels:
        wheel.omega = SPEED / wheel.wheel_rad
    return car
