"""From the road to waypoints, which the expert knows, and from waypoints to the pedals and the wheel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from hoplon_studies.driving.roads import Floats, Road

SPEED = 25.0
"""Speed of the car in units per second, which the controller keeps."""

WAYPOINTS = 5
SPACING = 0.2 * SPEED
"""Between waypoints, in units: 0.2 seconds."""

STRAIGHT_ON = np.stack([SPACING * np.arange(1.0, WAYPOINTS + 1), np.zeros(WAYPOINTS)], axis=1)
"""Waypoints straight ahead."""

AHEAD, ASIDE = (0.0, 30.0), (-25.0, 25.0)
"""Waypoints are clipped to these, in units in front of the car and to its left. The expert's lie well inside."""

_WHEELBASE = 3.24
_LOOK_AHEAD = min(max(0.35 * SPEED + 2.0, 5.0), 14.0)
_STEERING_LIMIT = 0.4


@final
@dataclass(frozen=True)
class Pose:
    """Position and speed of the car in units (per second), heading in radians; heading 0 looks along the y axis."""

    x: float
    y: float
    heading: float
    speed: float

    @property
    def point(self) -> np.ndarray:
        """The position, shape ``(2,)``."""
        return np.array([self.x, self.y])


@final
@dataclass(frozen=True)
class Command:
    """``steering`` in radians, positive to the left; ``gas`` and ``brake`` from 0 to 1."""

    steering: float
    gas: float
    brake: float


def expert_waypoints(road: Road, pose: Pose, near: int) -> Floats:
    """Waypoints of the expert, 0.2, 0.4, ... 1 second from now: units ahead and to the left, shape ``(5, 2)``.

    Args:
        road: the expert sees it.
        pose: of the car.
        near: the number of the point of ``road.line`` that is closest to the car.
    """
    ahead = np.rint(near + SPACING * np.arange(1, WAYPOINTS + 1)).astype(int) % len(road.line)
    x, y = (road.line[ahead] - [pose.x, pose.y]).T
    sine, cosine = np.sin(pose.heading), np.cos(pose.heading)
    return np.stack([-sine * x + cosine * y, -cosine * x - sine * y], axis=1)


def clipped(waypoints: Floats) -> Floats:
    """Waypoints inside of the region that a car can reach; NaN stays NaN."""
    low, high = np.array([AHEAD, ASIDE]).T
    return np.clip(waypoints, low, high)


def pursue(waypoints: Floats, speed: float) -> Command:
    """Steer for the place on the path that is one look-ahead distance away, and keep the speed.

    Args:
        waypoints: finite, shape ``(5, 2)``; the path begins at the car.
        speed: of the car, units per second.
    Source:
        R. C. Coulter, "Implementation of the Pure Pursuit Path Tracking Algorithm", CMU-RI-TR-92-01, 1992.
    Example:
        >>> straight = np.stack([5.0 * np.arange(1, 6), np.zeros(5)], axis=1)
        >>> pursue(straight, SPEED).steering
        0.0
    """
    path = np.vstack([np.zeros((1, 2)), waypoints])
    distance = np.hypot(*path.T)
    beyond = np.flatnonzero(distance >= _LOOK_AHEAD)
    if len(beyond):
        after = int(beyond[0])
        share = (_LOOK_AHEAD - distance[after - 1]) / (distance[after] - distance[after - 1])
        target = path[after - 1] + share * (path[after] - path[after - 1])
    else:
        target = path[-1]
    squared = float(target @ target)
    curvature = 2 * float(target[1]) / squared if squared > 1e-6 else 0.0
    steering = float(np.clip(np.arctan(_WHEELBASE * curvature), -_STEERING_LIMIT, _STEERING_LIMIT))
    lack = SPEED - speed
    return Command(steering, gas=min(max(0.05 * lack, 0.0), 0.5), brake=min(max(-0.05 * (lack + 1.0), 0.0), 0.3))
