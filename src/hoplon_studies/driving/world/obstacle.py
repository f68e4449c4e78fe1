"""A straight road with an obstacle on it: the scenario of Aspis' case study, laid in CarRacing's world."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from hoplon_studies.driving.world.roads import HALF_WIDTH, Floats

LENGTH, WIDTH = 5.0, 2.6
"""Of the obstacle, in units: about a car's."""

CAR = np.array([[1.2, 2.6], [-1.2, 2.6], [-1.2, -2.4], [1.2, -2.4]])
"""Corners of the car in units to its right and ahead of it."""

_STRAIGHT, _RADIUS = 320.0, 40.0  # two straights joined by half circles, so that the road is closed like all others
_TILE = 3.5  # units, as the simulator lays them
_CLEARANCE = 3.9  # between the middles of car and obstacle when the expert passes it
_BESIDE, _SWERVE = 6.0, 35.0  # units before and behind the obstacle: that far beside it, and swerving
_NEAREST, _FARTHEST = 60.0, 200.0  # units from the start of the straight to the obstacle
_LEAST, _MOST = 0.8, 3.0  # units off the centre line, to either side: so it is clear on which side there is more room


@final
@dataclass(frozen=True)
class Obstacle:
    """Where its middle lies: units along the straight from its start, and to the right of the centre line."""

    along: float
    right: float

    @classmethod
    def drawn(cls, generator: np.random.Generator) -> Obstacle:
        """At a random place."""
        along, right = generator.uniform([_NEAREST, _LEAST], [_FARTHEST, _MOST])
        return cls(float(along), float(right if generator.random() < 0.5 else -right))

    @property
    def corners(self) -> Floats:
        """On the track, shape ``(4, 2)``; the straight begins in the origin and leads along the second axis."""
        sides = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * [WIDTH / 2, LENGTH / 2]
        corners: Floats = sides + np.array([self.right, self.along])
        return corners

    def shift(self, line: Floats) -> Floats:
        """How far to the right of points of the centre line the expert drives, in units: shape ``(points,)``."""
        aside = self.right - math.copysign(_CLEARANCE, self.right)
        far = (np.abs(line[:, 1] - self.along) - _BESIDE).clip(0, _SWERVE) / _SWERVE
        on_the_straight = np.abs(line[:, 0]) < 1.0
        shifted: Floats = aside * (1 + np.cos(np.pi * far)) / 2 * on_the_straight
        return shifted

    def is_hit(self, car: Floats) -> bool:
        """True if the car, a rectangle of corners ``(4, 2)``, overlaps it: no side of either parts the two."""
        mine = self.corners
        sides = np.vstack([np.diff(mine[:3], axis=0), np.diff(car[:3], axis=0)])
        normals = sides[:, ::-1] * [1, -1]
        ours, theirs = mine @ normals.T, car @ normals.T
        parted = (ours.max(0) < theirs.min(0)) | (theirs.max(0) < ours.min(0))
        return not parted.any()


def straight_track() -> list[tuple[float, float, float, float]]:
    """Tiles as the simulator has them: an angle that nothing reads, the heading in radians, and the place."""
    turn = math.pi * _RADIUS
    count = round(2 * (_STRAIGHT + turn) / _TILE)
    found = []
    for at in np.arange(count) * 2 * (_STRAIGHT + turn) / count:
        half, along = divmod(float(at), _STRAIGHT + turn)
        angle = max(along - _STRAIGHT, 0.0) / _RADIUS
        x = -_RADIUS * (1 - math.cos(angle))
        y = min(along, _STRAIGHT) + _RADIUS * math.sin(angle)
        if half:
            x, y = -2 * _RADIUS - x, _STRAIGHT - y
        found.append((0.0, angle + math.pi * half, x, y))
    return found


def lay(environment: Any, track: list[tuple[float, float, float, float]]) -> bool:
    """Put tiles of a track into the simulator's world, as its own ``_create_track`` does, without kerbs."""
    environment.road, environment.track, environment.start_alpha = [], track, 0.0
    for number, (_, heading, x, y) in enumerate(track):
        _, heading_before, x_before, y_before = track[number - 1]
        ends = ((x, y, heading), (x_before, y_before, heading_before))
        (left, right), (left_before, right_before) = (
            [(px + side * math.cos(beta), py + side * math.sin(beta)) for side in (-HALF_WIDTH, HALF_WIDTH)]
            for px, py, beta in ends
        )
        corners = [left, right, right_before, left_before]
        environment.fd_tile.shape.vertices = corners
        tile = environment.world.CreateStaticBody(fixtures=environment.fd_tile)
        tile.userData, tile.road_visited, tile.road_friction, tile.idx = tile, False, 1.0, number
        tile.color = environment.road_color + 0.01 * (number % 3) * 255
        tile.fixtures[0].sensor = True
        environment.road_poly.append((corners, tile.color))
        environment.road.append(tile)
    return True
