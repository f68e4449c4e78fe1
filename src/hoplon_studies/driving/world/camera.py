"""The student's camera: a picture in perspective, looked up in the painted ground."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon_studies.driving.world.control import Pose
from hoplon_studies.driving.world.roads import PALETTE, Floats, Ground

SIZE = 64
"""Pixels of a side."""

_HEIGHT = 7.0  # of the camera above the ground, in units
_STEEPEST, _FLATTEST = 62.0, 8.5  # degrees below the horizon: 3.7 to 47 units ahead
_HALF_ANGLE = 45.0  # degrees to either side


def photograph(ground: Ground, pose: Pose) -> NDArray[np.uint8]:
    """Rows of :data:`PALETTE`, uint8, shape ``(64, 64)``; the first row is farthest.

    Departure from the simulator's own picture, which is drawn from above, zooms during the first second and colours
    the tiles that were visited: this one looks ahead, always the same way, and takes a hundredth of the time.
    """
    forward, left = _rays()
    sine, cosine = np.sin(pose.heading), np.cos(pose.heading)
    x = pose.x - forward * sine - left * cosine
    y = pose.y + forward * cosine - left * sine
    return ground.colours(x, y)


def as_input(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures ``(n, 64, 64)`` as the student takes them: float32, shape ``(n, 3, 64, 64)``, in [0, 1]."""
    colours = np.ascontiguousarray(PALETTE.T, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(colours[:, pictures].swapaxes(0, 1)))


@lru_cache(maxsize=1)
def _rays() -> tuple[Floats, Floats]:
    """Points that the pixels look at: units ahead of the car and to its left."""
    below = np.deg2rad(np.linspace(_FLATTEST, _STEEPEST, SIZE))
    sideways = np.tan(np.deg2rad(_HALF_ANGLE)) * np.linspace(1.0, -1.0, SIZE)
    distance = _HEIGHT / np.tan(below)
    return np.repeat(distance[:, None], SIZE, axis=1), distance[:, None] * sideways[None, :]
