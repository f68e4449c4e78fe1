"""Driving frames with steering angles, read from the file in ``HOPLON_DATA`` and split by time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from hoplon.errors import checked
from hoplon.program.inputs import Inputs
from hoplon.zoo.datasets._pictures import pictures
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file, read_arrays

_FILE = "driving-udacity.npz"
_TRAIN_SHARE = 0.8
_CALIBRATION_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Frames:
    """One drive in the order of time.

    Attributes:
        pixels: uint8, shape ``(frames, 3, 66, 200)``, RGB.
        degrees: steering angles, float32, shape ``(frames,)``; left is negative.
        border: frames before it are for training, those from it on are held out.
    """

    pixels: Tensor
    degrees: Tensor
    border: int


@dataclass(frozen=True)
class TrivialErrors:
    """Root mean square errors, in degrees, of predictors that do not look at the frame, on a held-out part.

    A regressor that is not better than both has learned nothing.
    """

    always_zero: float
    training_mean: float

    @property
    def best(self) -> float:
        """The smaller one."""
        return min(self.always_zero, self.training_mean)


@lru_cache(maxsize=1)
def frames() -> Frames:
    """The simulator's drive: the first 80 % of the time to train with, the last 20 % held out.

    Neighbouring frames are nearly equal, so a random split would test on what was trained on.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing or unreadable; HoplonError: Pillow is not installed.
    """
    arrays = read_arrays(data_file(_FILE), ("jpeg", "offsets", "steering_deg"))
    degrees = torch.from_numpy(arrays["steering_deg"]).float()
    pixels = pictures(arrays, file=_FILE, labels="steering_deg")
    return Frames(pixels, degrees, int(len(degrees) * _TRAIN_SHARE))


def driving() -> ZooData:
    """Frames of one drive: a random 20 % of the first 80 % to calibrate with, the last 20 % of the time held out.

    Inputs are float32 of shape ``(n, 3, 66, 200)``, RGB / 255, without labels; the steering angles in degrees are the
    ``targets`` of the data.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing or unreadable; HoplonError: Pillow is not installed.
    Source:
        The log ``rslim087a/track``, recorded with Udacity's simulator (``udacity/self-driving-car-sim``).
    """
    drive = frames()
    order = torch.randperm(drive.border, generator=torch.Generator().manual_seed(0))
    chosen = order[: int(drive.border * _CALIBRATION_SHARE)].sort().values
    seconds = slice(drive.border, None)
    return ZooData(
        name="driving",
        calibration=Inputs(drive.pixels[chosen].float().div_(255), name="driving, 20 % of the first 80 %"),
        held_out=Inputs(drive.pixels[seconds].float().div_(255), name="driving, last 20 %"),
        targets=(drive.degrees[chosen], drive.degrees[seconds]),
    )


@checked
def trivial_errors(held_out: Tensor, training_mean: float) -> TrivialErrors:
    """Errors of the two predictors that never look, on these true angles in degrees, shape ``(n,)``.

    Example:
        >>> trivial_errors(torch.tensor([1.0, -1.0]), training_mean=1.0)
        TrivialErrors(always_zero=1.0, training_mean=1.4142135623730951)
    """
    errors = (math.sqrt((held_out.double() - said).square().mean()) for said in (0.0, training_mean))
    return TrivialErrors(*errors)
