"""Frames of the simulator's roads with the angle of the steering wheel: bends, and ways back from askew and aside."""

from __future__ import annotations

import hashlib
import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hoplon.errors import DataError, HoplonError
from hoplon.files import cache_folder, write_atomically
from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import read_arrays
from hoplon_studies.driving.world.camera import View, photograph
from hoplon_studies.driving.world.control import SPEED, Pose, clipped, expert_waypoints, pursue
from hoplon_studies.driving.world.roads import PALETTE, Floats, Road
from hoplon_studies.driving.world.simulator import road_of

NAME = "racing"
"""Of the data in the zoo."""

FRAMES_PER_TRACK = 25
_TRACKS = {"training": 160, "held out": 40}
_FIRST = {"training": 3_000_000, "held out": 4_000_000}  # seeds of tracks; lessons and episodes draw from elsewhere
_VIEW = View(66, 200, 60.0)
_ASIDE, _ASKEW = 4.0, 0.3  # up to so many units off the centre line, and radians to the road
_LOCK, _WHEELS_AT_LOCK = 150.0, 0.4  # degrees of the steering wheel, radians of the front wheels
_CALIBRATION_SHARE = 0.2
_PROCEDURE = 1  # goes up when the same settings give other frames


@final
@dataclass(frozen=True, eq=False)
class WheelFrames:
    """Frames in the order of tracks, as many of each.

    Attributes:
        pictures: uint8, shape ``(n, 66, 200)``, rows of :data:`~hoplon_studies.driving.world.roads.PALETTE`.
        degrees: of the steering wheel, float32, shape ``(n,)``; left is negative, 150 is the lock.
    """

    pictures: NDArray[np.uint8]
    degrees: NDArray[np.float32]

    @property
    def pixels(self) -> Tensor:
        """RGB, uint8, shape ``(n, 3, 66, 200)``."""
        return torch.from_numpy(np.ascontiguousarray(PALETTE.T[:, self.pictures].swapaxes(0, 1)))

    @property
    def angles(self) -> Tensor:
        """The degrees as a tensor."""
        return torch.from_numpy(self.degrees)


def frames_of(tracks: range) -> WheelFrames:
    """Frames of tracks, each a road of the simulator; a function of their seeds alone.

    The car stands anywhere on the road, up to 4 units aside and 0.3 radians askew; the expert says how it would steer.
    A car on the centre line would see bends alone, and no way back.

    Raises:
        HoplonError: gymnasium or Box2D is not installed.
    Source:
        Shifted and rotated frames as in M. Bojarski et al., "End to End Learning for Self-Driving Cars",
        arXiv:1604.07316, section 5; here the camera itself is moved.
    """
    pictures, degrees = [], []
    for track in tracks:
        road = road_of(track)
        for pose in _poses(road, np.random.default_rng([track, 1])):
            pictures.append(photograph(road.ground, pose, _VIEW))
            degrees.append(wheel_angle(road, pose))
    return WheelFrames(np.stack(pictures), np.array(degrees, np.float32))


def wheel_angle(road: Road, pose: Pose) -> float:
    """Degrees by which the expert turns the steering wheel, left negative; 150 are 0.4 radians of the front wheels.

    Source:
        So directly steer-by-wire cars answer; with a gear of 15 the lock would be at 344 degrees, and twice the arc
        tangent of a network in radians ends at 180.
    """
    command = pursue(clipped(expert_waypoints(road.line, pose, road.nearest(pose.point))), pose.speed)
    return -_LOCK / _WHEELS_AT_LOCK * command.steering


def _poses(road: Road, generator: np.random.Generator) -> list[Pose]:
    places = generator.integers(len(road.centre), size=FRAMES_PER_TRACK)
    moved: Floats = generator.uniform([-_ASIDE, -_ASKEW], [_ASIDE, _ASKEW], (FRAMES_PER_TRACK, 2))
    poses = []
    for tile, (aside, askew) in zip(places, moved, strict=True):
        along = float(road.heading[tile])
        x, y = road.centre[tile] + aside * np.array([math.cos(along), math.sin(along)])
        poses.append(Pose(float(x), float(y), along + float(askew), SPEED))
    return poses


@lru_cache(maxsize=2)
def wheel_frames(part: str) -> WheelFrames:
    """The frames ``"training"`` or ``"held out"``, whose tracks differ: from the cache folder, or made now and kept.

    Raises:
        DataError: a damaged file in the cache folder, or a folder that cannot be written to; or they are not there yet,
            and gymnasium or Box2D is not installed.
    """
    tracks = range(_FIRST[part], _FIRST[part] + _TRACKS[part])
    path = _path(part)
    if not path.is_file():
        try:
            made = frames_of(tracks)
        except HoplonError as error:
            raise DataError(str(error)) from error
        file = io.BytesIO()
        np.savez_compressed(file, pictures=made.pictures, degrees=made.degrees)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, file.getvalue())
    return WheelFrames(**read_arrays(path, ("pictures", "degrees")))


def _path(part: str) -> Path:
    settings = [_PROCEDURE, _FIRST[part], _TRACKS[part], FRAMES_PER_TRACK, repr(_VIEW), _ASIDE, _ASKEW, _LOCK]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    return cache_folder() / "data" / f"{NAME}-{part.replace(' ', '-')}-{digest}.npz"


def racing() -> ZooData:
    """Frames of tracks of gymnasium's CarRacing: a random 20 % of the training tracks' frames, and held-out tracks.

    Inputs are float32 of shape ``(n, 3, 66, 200)``, RGB / 255, without labels; the angles of the steering wheel in
    degrees are the ``targets`` of the data.

    Raises:
        DataError: as :func:`wheel_frames`.
    """
    training, held_out = wheel_frames("training"), wheel_frames("held out")
    order = torch.randperm(len(training.degrees), generator=torch.Generator().manual_seed(0))
    chosen = order[: int(len(order) * _CALIBRATION_SHARE)].sort().values
    return ZooData(
        name=NAME,
        calibration=Inputs(training.pixels[chosen].float().div_(255), name=f"{NAME}, 20 % of the training frames"),
        held_out=Inputs(held_out.pixels.float().div_(255), name=f"{NAME}, held-out tracks"),
        targets=(training.angles[chosen], held_out.angles),
    )
