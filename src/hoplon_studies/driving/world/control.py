"""From the road to waypoints, which the expert knows, and from waypoints to the pedals and the wheel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from hoplon_studies.driving.world.roads import Floats

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
_STEERING_RATIO = 15.0  # of a passenger car: degrees of its steering wheel for one of the front wheels


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

    def placed(self, points: Floats) -> Floats:
        """Points beside (to the right) and ahead of the car, shape ``(n, 2)``, where they are on the track."""
        sine, cosine = np.sin(self.heading), np.cos(self.heading)
        found: Floats = points @ np.array([[cosine, sine], [-sine, cosine]]) + self.point
        return found


@final
@dataclass(frozen=True)
class Command:
    """``steering`` in radians, positive to the left; ``gas`` and ``brake`` from 0 to 1."""

    steering: float
    gas: float
    brake: float


def expert_waypoints(path: Floats, pose: Pose, near: int) -> Floats:
    """Waypoints of the expert, 0.2, 0.4, ... 1 second from now: units ahead and to the left, shape ``(5, 2)``.

    Args:
        path: what the expert follows, a point for each of the road's ``line``.
        pose: of the car.
        near: the number of the point of the line that is closest to the car.
    """
    ahead = np.rint(near + SPACING * np.arange(1, WAYPOINTS + 1)).astype(int) % len(path)
    x, y = (path[ahead] - [pose.x, pose.y]).T
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
    target = _target(waypoints)
    squared = float(target @ target)
    curvature = 2 * float(target[1]) / squared if squared > 1e-6 else 0.0
    steering = float(np.clip(np.arctan(_WHEELBASE * curvature), -_STEERING_LIMIT, _STEERING_LIMIT))
    lack = SPEED - speed
    return Command(steering, gas=min(max(0.05 * lack, 0.0), 0.5), brake=min(max(-0.05 * (lack + 1.0), 0.0), 0.3))


def wheel_angle(waypoints: Floats) -> float:
    """Of the steering wheel under these waypoints, in degrees, positive to the left: 15 times the front wheels' angle.

    A simulator has no steering wheel; angles of such wheels are what steering networks are judged by. A ratio of 15 is
    common in passenger cars. At full lock it is 344 degrees.
    """
    return _STEERING_RATIO * math.degrees(pursue(waypoints, SPEED).steering)


def direction(waypoints: Floats) -> float:
    """Of the point that is steered for, as seen from the car: degrees to the left of straight ahead."""
    ahead, left = _target(waypoints)
    return math.degrees(math.atan2(left, ahead))


def _target(waypoints: Floats) -> Floats:
    """The place on the path one look-ahead distance away, or its end, in units ahead and to the left."""
    path = np.vstack([np.zeros((1, 2)), waypoints])
    distance = np.hypot(*path.T)
    beyond = np.flatnonzero(distance >= _LOOK_AHEAD)
    if not len(beyond):
        end: Floats = path[-1]
        return end
    after = int(beyond[0])
    share = (_LOOK_AHEAD - distance[after - 1]) / (distance[after] - distance[after - 1])
    target: Floats = path[after - 1] + share * (path[after] - path[after - 1])
    return target
