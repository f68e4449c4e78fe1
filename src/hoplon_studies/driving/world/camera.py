"""The student's camera: a picture in perspective, looked up in the painted ground."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

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


@final
@dataclass(frozen=True)
class View:
    """Size of a picture in pixels, and how far the camera sees to either side, in degrees."""

    height: int
    width: int
    half_angle: float


STUDENT = View(SIZE, SIZE, 45.0)


def photograph(ground: Ground, pose: Pose, view: View = STUDENT) -> NDArray[np.uint8]:
    """Rows of :data:`PALETTE`, uint8, of the view's shape; the first row is farthest.

    Departure from the simulator's own picture, which is drawn from above, zooms during the first second and colours
    the tiles that were visited: this one looks ahead, always the same way, and takes a hundredth of the time.
    """
    forward, left = _rays(view)
    sine, cosine = np.sin(pose.heading), np.cos(pose.heading)
    x = pose.x - forward * sine - left * cosine
    y = pose.y + forward * cosine - left * sine
    return ground.colours(x, y)


def as_input(pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures ``(n, 64, 64)`` as the student takes them: float32, shape ``(n, 3, 64, 64)``, in [0, 1]."""
    colours = np.ascontiguousarray(PALETTE.T, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(colours[:, pictures].swapaxes(0, 1)))


@lru_cache(maxsize=2)
def _rays(view: View) -> tuple[Floats, Floats]:
    """Points that the pixels look at: units ahead of the car and to its left."""
    below = np.deg2rad(np.linspace(_FLATTEST, _STEEPEST, view.height))
    sideways = np.tan(np.deg2rad(view.half_angle)) * np.linspace(1.0, -1.0, view.width)
    distance = _HEIGHT / np.tan(below)
    return np.repeat(distance[:, None], view.width, axis=1), distance[:, None] * sideways[None, :]
